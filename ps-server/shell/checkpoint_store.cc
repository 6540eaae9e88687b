#include "ps-server/shell/checkpoint_store.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <system_error>
#include <utility>

#include "checkpoint/files.h"
#include "checkpoint/part_directory.h"
#include "checkpoint/round_path.h"
#include "checkpoint/verify.h"
#include "checkpoint/writer.h"
#include "common/error_id.h"
#include "common/net/unique_fd.h"

namespace ps::server {

namespace fs = std::filesystem;

namespace {

constexpr const char* kPartialSuffix = ".partial";

}  // namespace

namespace {

constexpr const char* kStoreFile = "STORE";
constexpr std::size_t kStoreDigits = 32;

// A new one unless another server is quicker: what is there then counts for both.
Status MakeStoreFile(const fs::path& root) {
  std::random_device random;
  std::string id;
  while (id.size() < kStoreDigits) id += "0123456789abcdef"[random() % 16];
  const fs::path file = root / kStoreFile;
  const fs::path temporary = root / ("." + std::string(kStoreFile) + "-" + id);
  PS_TRY(checkpoint::WriteFileDurably(temporary, id + "\n"));
  const int linked = ::link(temporary.c_str(), file.c_str());
  const int reason = errno;
  ::unlink(temporary.c_str());
  if (linked != 0 && reason != EEXIST) {
    return checkpoint::IoError(file, "cannot create", reason);
  }
  return checkpoint::SyncDirectory(root);
}

Result<std::string> ReadStoreFile(const fs::path& root) {
  std::string text = PS_TRY(checkpoint::ReadWholeFile(root / kStoreFile, kStoreDigits + 1));
  const bool ours = text.size() == kStoreDigits + 1 && text.back() == '\n' &&
                    text.find_first_not_of("0123456789abcdef") == kStoreDigits;
  if (!ours) {
    return Error{ErrorId::kStoreFile,
                 (root / kStoreFile).string() +
                     ": does not hold the identity of a checkpoint directory; remove the file and "
                     "a new one is made"};
  }
  text.pop_back();
  return text;
}

}  // namespace

Result<std::string> PrepareCheckpointRoot(const fs::path& root) {
  std::error_code error;
  fs::create_directories(root, error);
  if (error) {
    return Error{ErrorId::kCheckpointFolder,
                 "checkpoint directory " + root.string() + ": " + error.message()};
  }
  const fs::path probe = root / (".write-test-" + std::to_string(::getpid()));
  const net::UniqueFd file(::open(probe.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  const bool written = file.valid() && ::write(file.get(), "x", 1) == 1;
  const int reason = errno;
  if (file.valid()) ::unlink(probe.c_str());
  if (!written) {
    return Error{ErrorId::kCheckpointFolder, "checkpoint directory " + root.string() +
                                                 " cannot be written: " + std::strerror(reason)};
  }
  Result<std::string> store = ReadStoreFile(root);
  if (store.ok() || store.error().code != ErrorCode::kNotFound) return store;
  PS_TRY(MakeStoreFile(root));
  return ReadStoreFile(root);
}

Result<fs::path> ResolveRound(const fs::path& root, const std::string& name) {
  const fs::path asked(name);
  const bool climbs =
      std::any_of(asked.begin(), asked.end(), [](const fs::path& part) { return part == ".."; });
  if (name.empty() || climbs || name.find('\0') != std::string::npos) {
    return Error{ErrorCode::kDenied,
                 "`" + name + "` is not a name of a checkpoint below " + root.string()};
  }
  const fs::path base = root.lexically_normal();
  const fs::path full = (asked.is_absolute() ? asked : base / asked).lexically_normal();
  const auto [in_base, in_full] = std::mismatch(base.begin(), base.end(), full.begin(), full.end());
  const bool inside =
      in_base == base.end() || (in_base->empty() && std::next(in_base) == base.end());
  if (!inside || in_full == full.end() || in_full->empty()) {
    return Error{ErrorCode::kDenied,
                 "checkpoint `" + name + "` does not lie below " + root.string()};
  }
  return full;
}

std::string RoundName(const std::string& name, Round round) {
  const std::size_t slash = name.rfind('/');
  const std::string last = slash == std::string::npos ? name : name.substr(slash + 1);
  if (!checkpoint::RoundOfFolder(last).has_value()) return name;
  return (slash == std::string::npos ? std::string() : name.substr(0, slash + 1)) +
         checkpoint::RoundFolder(round);
}

CheckpointStore::CheckpointStore(fs::path root, std::string procid)
    : root_(std::move(root)), procid_(std::move(procid)) {}

const checkpoint::ShardBase* CheckpointStore::FindBase(const fs::path& round,
                                                       const FrozenShard& shard, Round base) const {
  const auto found = written_.find({shard.head().job, shard.shard()});
  if (base == Round() || found == written_.end()) return nullptr;
  const auto at = std::find_if(found->second.begin(), found->second.end(),
                               [base](const auto& one) { return one.round == base; });
  if (at == found->second.end()) return nullptr;
  std::vector<Round> needed = at->bases;
  needed.push_back(base);
  for (const Round one : needed) {
    const fs::path part = round.parent_path() / checkpoint::RoundFolder(one) / procid_;
    std::error_code error;
    if (!fs::exists(part / checkpoint::kSealFile, error)) return nullptr;
  }
  return &*at;
}

Result<std::vector<control::PreparedShardT>> CheckpointStore::Write(const std::string& round_name,
                                                                    std::vector<FrozenShard> shards,
                                                                    Round base) {
  const fs::path round = PS_TRY(ResolveRound(root_, round_name));
  std::uint64_t bytes = 0;
  for (const FrozenShard& shard : shards) bytes += shard.content_bytes();
  checkpoint::Writer writer = PS_TRY(checkpoint::Writer::Open(round / procid_, bytes));
  std::vector<std::uint64_t> samples;
  std::vector<std::pair<std::pair<JobId, ShardId>, checkpoint::ShardBase>> made;
  for (FrozenShard& shard : shards) {
    samples.push_back(shard.samples_trained());
    // What is written is let go at once: the shard need not copy it any more.
    const FrozenShard frozen = std::move(shard);
    made.emplace_back(std::pair(frozen.head().job, frozen.shard()),
                      PS_TRY(writer.Add(frozen, FindBase(round, frozen, base))));
  }
  const std::vector<checkpoint::WrittenShard> written = PS_TRY(writer.Finish());
  for (auto& [shard, one] : made) {
    std::vector<checkpoint::ShardBase>& of = written_[shard];
    std::erase_if(of, [base](const checkpoint::ShardBase& old) { return old.round != base; });
    of.push_back(std::move(one));
  }
  std::vector<control::PreparedShardT> prepared(written.size());
  for (std::size_t i = 0; i < written.size(); ++i) {
    prepared[i].shard = written[i].shard.value();
    prepared[i].epoch = written[i].epoch.value();
    prepared[i].version = written[i].version;
    prepared[i].bytes = written[i].bytes;
    prepared[i].state_bytes = written[i].state_bytes;
    for (const Round one : written[i].bases) {
      prepared[i].bases.push_back(std::make_unique<control::KeptRoundT>());
      prepared[i].bases.back()->round = one.value();
    }
    prepared[i].rows = written[i].rows;
    prepared[i].samples = samples[i];
    prepared[i].digest = written[i].digest;
    prepared[i].values_digest = written[i].values_digest;
  }
  return prepared;
}

void CheckpointStore::Forget(JobId job) {
  std::erase_if(written_, [job](const auto& entry) { return entry.first.first == job; });
}

Status CheckpointStore::WriteManifest(const std::string& round_name,
                                      const std::vector<std::string>& parts,
                                      const std::string& text) const {
  const fs::path round = PS_TRY(ResolveRound(root_, round_name));
  PS_TRY(checkpoint::FromJson(text));
  for (const std::string& name : parts) {
    const fs::path part = PS_TRY(ResolveRound(round, name));
    std::error_code error;
    if (!fs::is_directory(part, error)) {
      return Error{ErrorCode::kConflict, "this server has no part " + name + " of " + round_name};
    }
    PS_TRY(checkpoint::WriteManifest(part, text));
  }
  return Ok();
}

Status CheckpointStore::Discard(const std::string& round_name) const {
  const fs::path part = PS_TRY(ResolveRound(root_, round_name)) / procid_;
  PS_TRY(checkpoint::RemovePartial(part));
  return checkpoint::RemovePart(part);
}

int CheckpointStore::DeleteOldRounds(JobId job, Round committed,
                                     std::span<const std::uint64_t> keep) const {
  int deleted = 0;
  for (const fs::path& directory : checkpoint::DirectoriesIn(root_ / checkpoint::JobFolder(job))) {
    const auto round = checkpoint::RoundOfFolder(directory.filename().string());
    if (!round.has_value() || *round >= committed ||
        std::find(keep.begin(), keep.end(), round->value()) != keep.end()) {
      continue;
    }
    bool gone = true;
    for (const fs::path& part : checkpoint::DirectoriesIn(directory)) {
      std::string name = part.string();
      const std::size_t suffix = std::strlen(kPartialSuffix);
      const bool partial =
          name.size() > suffix && name.compare(name.size() - suffix, suffix, kPartialSuffix) == 0;
      if (partial) name.resize(name.size() - suffix);
      const Status removed =
          partial ? checkpoint::RemovePartial(name) : checkpoint::RemovePart(name);
      // Another server of the job may delete the same part at the same time.
      std::error_code error;
      if (!removed.ok() && fs::exists(part, error)) {
        spdlog::warn("old checkpoint {} cannot be deleted: {}", part.string(),
                     removed.error().message);
        gone = false;
      }
    }
    std::error_code error;
    fs::remove(directory, error);
    deleted += gone ? 1 : 0;
  }
  return deleted;
}

Status CopyPart(const checkpoint::Storage& source, const std::string& source_name,
                const fs::path& root, const std::string& round_name, const std::string& part,
                const std::vector<Round>& bases,
                const std::function<bool(std::uint64_t)>& progress) {
  std::vector<std::pair<std::string, std::string>> rounds;  // there and here
  for (const Round base : bases) {
    rounds.emplace_back(RoundName(source_name, base), RoundName(round_name, base));
  }
  rounds.emplace_back(source_name, round_name);
  for (const auto& [there, here] : rounds) {
    const fs::path round = PS_TRY(ResolveRound(root, here));
    const fs::path directory = PS_TRY(ResolveRound(round, part));
    PS_TRY(checkpoint::CopyPart(source, fs::path(there) / part, directory, progress));
  }
  return Ok();
}

Status RepairPart(net::Context& context, const std::vector<PartSource>& sources,
                  const fs::path& root, const std::string& round_name, const std::string& part,
                  const std::function<bool(std::uint64_t)>& progress) {
  const fs::path round = PS_TRY(ResolveRound(root, round_name));
  const fs::path directory = PS_TRY(ResolveRound(round, part));
  std::error_code error;
  if (!fs::is_directory(directory, error)) {
    return Error{ErrorId::kCheckpointMissing, directory.string() + ": is gone"};
  }
  const fs::path there = fs::path(round_name) / part;
  // A copy that another part builds on may have none.
  const Result<std::string> own = checkpoint::ReadManifest(directory);
  const std::string own_manifest = own.ok() && checkpoint::FromJson(*own).ok() ? *own : "";
  std::string failures;
  for (const PartSource& source : sources) {
    const checkpoint::RemoteStorage storage(context, source.endpoint);
    const auto replace = [&]() -> Status {
      std::string manifest = own_manifest;
      if (manifest.empty()) {
        Result<std::string> text = checkpoint::ReadManifest(there, storage);
        if (!text.ok() && text.error().code != ErrorCode::kNotFound) return text.error();
        if (text.ok()) PS_TRY(checkpoint::FromJson(*text));
        if (text.ok()) manifest = std::move(*text);
      }
      return checkpoint::ReplacePart(storage, there, directory, manifest, progress);
    };
    const Status replaced = replace();
    if (replaced.ok() || replaced.error().code == ErrorCode::kClosed) return replaced;
    if (replaced.error().code == ErrorCode::kNotFound) continue;
    failures += (failures.empty() ? "" : "; ") + replaced.error().message;
  }
  if (!failures.empty()) return Error{ErrorCode::kIo, failures};
  return Error{ErrorCode::kNotFound, "no other server has a copy of it"};
}

void RestoreReader::Failures::Add(const Error& error) {
  const auto weight = [](ErrorCode code) {
    if (code == ErrorCode::kNotFound) return 0;
    return code == ErrorCode::kInvalid ? 1 : 2;
  };
  if (error.code == ErrorCode::kNotFound) {
    missing_ = error.message;
    return;
  }
  if (weight(error.code) > weight(worst_.code)) worst_.code = error.code;
  worst_.message += (worst_.message.empty() ? "" : "; ") + error.message;
}

Error RestoreReader::Failures::Sum() const {
  if (!worst_.message.empty()) return worst_;
  return Error{ErrorCode::kNotFound, missing_};
}

void RestoreReader::Close() {
  open_name_.clear();
  parts_.clear();
  bad_.clear();
  places_.clear();
  remote_.clear();
  failures_ = {};
  again_ = false;
}

Error RestoreReader::Fail(Failures failures) {
  Close();
  return failures.Sum();
}

void RestoreReader::SetSources(const std::vector<PartSource>& sources) {
  if (sources == sources_) return;
  Close();
  sources_ = sources;
}

Status RestoreReader::OpenRound(const std::string& round_name) {
  if (open_name_ == round_name) return Ok();
  Close();
  const fs::path full = PS_TRY(ResolveRound(root_, round_name));
  open_path_ = full.lexically_relative(root_.lexically_normal());
  places_.push_back(&local_);
  for (const PartSource& source : sources_) {
    if (context_ == nullptr || source.store == store_) continue;
    remote_.push_back(std::make_unique<checkpoint::RemoteStorage>(*context_, source.endpoint));
    places_.push_back(remote_.back().get());
  }
  Failures failures;
  for (const checkpoint::Storage* const place : places_) {
    const auto text = checkpoint::FindManifest(open_path_, "", *place);
    auto manifest = text.ok() ? checkpoint::FromJson(*text) : text.error();
    if (manifest.ok()) {
      manifest_ = std::move(*manifest);
      open_name_ = round_name;
      return Ok();
    }
    failures.Add(manifest.error());
  }
  return Fail(std::move(failures));
}

Result<const checkpoint::ManifestShard*> RestoreReader::Find(const std::string& round_name,
                                                             ShardId shard) {
  PS_TRY(OpenRound(round_name));
  const auto entry =
      std::find_if(manifest_.shards.begin(), manifest_.shards.end(),
                   [&](const checkpoint::ManifestShard& one) { return one.shard == shard; });
  if (entry == manifest_.shards.end()) {
    return Error{ErrorCode::kNotFound,
                 "checkpoint " + round_name + " has no shard " + std::to_string(shard.value())};
  }
  // The manifest's names of parts come from the disk: they, too, must stay below the round.
  PS_TRY(ResolveRound(root_ / open_path_, entry->server));
  return &*entry;
}

Result<const checkpoint::Reader*> RestoreReader::OpenPart(std::size_t place,
                                                          const std::string& name) {
  const auto part = parts_.find({place, name});
  if (part != parts_.end()) return &part->second;
  checkpoint::Reader reader = PS_TRY(checkpoint::Reader::Open(open_path_ / name, *places_[place]));
  return &parts_.emplace(PartAt(place, name), std::move(reader)).first->second;
}

Status RestoreReader::Read(const std::string& round_name, ShardId shard,
                           checkpoint::ShardSink& sink) {
  again_ = false;
  const checkpoint::ManifestShard& entry = *PS_TRY(Find(round_name, shard));
  for (std::size_t place = 0; place < places_.size(); ++place) {
    const PartAt at(place, entry.server);
    if (bad_.contains(at)) continue;
    const auto part = OpenPart(place, entry.server);
    if (!part.ok()) {
      failures_.Add(part.error());
      if (part.error().code != ErrorCode::kNotFound) bad_.insert(at);
      continue;
    }
    const Status read = (*part)->ReadShard(shard, entry.digest, sink);
    if (read.ok()) {
      failures_ = {};
      return Ok();
    }
    failures_.Add(read.error());
    parts_.erase(at);
    bad_.insert(at);
    if (place + 1 == places_.size()) break;
    again_ = true;
    return failures_.Sum();
  }
  return Fail(std::move(failures_));
}

Result<checkpoint::ShardMeta> RestoreReader::ReadMeta(const std::string& round_name,
                                                      ShardId shard) {
  const checkpoint::ManifestShard& entry = *PS_TRY(Find(round_name, shard));
  Failures failures;
  for (std::size_t place = 0; place < places_.size(); ++place) {
    const auto part = OpenPart(place, entry.server);
    auto meta = part.ok() ? (*part)->ReadMeta(shard) : part.error();
    if (meta.ok()) return meta;
    failures.Add(meta.error());
  }
  return Fail(std::move(failures));
}

Result<const checkpoint::Manifest*> RestoreReader::ReadManifest(const std::string& round_name) {
  PS_TRY(OpenRound(round_name));
  return &manifest_;
}

}  // namespace ps::server
