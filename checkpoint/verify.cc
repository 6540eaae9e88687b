#include "checkpoint/verify.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <span>
#include <system_error>
#include <utility>

#include "checkpoint/content.h"
#include "checkpoint/digest.h"
#include "checkpoint/reader.h"
#include "common/codec/row_codec.h"
#include "common/error_id.h"

namespace ps::checkpoint {
namespace {

namespace fs = std::filesystem;

// The round directory first, then the parts in it by name.
Result<std::vector<fs::path>> PlacesOfManifest(const fs::path& round_directory,
                                               const Storage& storage) {
  const Result<std::vector<std::string>> parts = storage.ListDirectories(round_directory);
  if (!parts.ok() && parts.error().code == ErrorCode::kNotFound) {
    return Error{ErrorId::kCheckpointMissing,
                 storage.Describe(round_directory) + ": no such checkpoint"};
  }
  std::vector<fs::path> places{round_directory};
  for (const std::string& part : PS_TRY(parts)) places.push_back(round_directory / part);
  return places;
}

struct Copies {
  std::map<std::string, std::vector<fs::path>> valid;  // text -> where
  std::vector<std::string> findings;
  // Of a copy that may be good, but could not be read.
  Error unread{ErrorId::kCheckpointDamaged, ""};
};

Result<Copies> CollectCopies(const fs::path& round_directory, const Storage& storage) {
  Copies copies;
  for (const fs::path& place : PS_TRY(PlacesOfManifest(round_directory, storage))) {
    Result<std::string> text = ReadManifest(place, storage);
    if (!text.ok()) {
      if (text.error().code == ErrorCode::kNotFound) continue;
      copies.findings.push_back(text.error().message);
      if (text.error().code != ErrorCode::kInvalid) copies.unread = text.error();
      continue;
    }
    const Result<Manifest> manifest = FromJson(*text);
    if (manifest.ok()) {
      copies.valid[*text].push_back(place);
    } else {
      copies.findings.push_back((place / kManifestFile).string() + ": " + manifest.error().message);
    }
  }
  return copies;
}

Error NoManifest(const fs::path& round_directory, const Copies& copies) {
  std::string message = round_directory.string() + ": no valid manifest, so nothing in it counts";
  for (const std::string& finding : copies.findings) message += "\n" + finding;
  Error error = copies.unread;
  error.message = std::move(message);
  return error;
}

// What there is to say about the content of a shard beyond its digest.
class VerifySink : public ShardSink {
 public:
  VerifySink(const Manifest& manifest, const ManifestShard& expected)
      : manifest_(manifest), expected_(expected) {}

  // What is wrong; empty if nothing is. After the whole shard.
  std::string Finding() {
    if (finding_.empty() && values_.Hex() != expected_.values_digest) {
      finding_ = "the digest of its values is not that of the manifest";
    }
    return finding_;
  }

  Status Begin(const ShardMeta& meta) override {
    const ShardImage& image = meta.image;
    elements_ = image.block_elements;
    for (const RowTableImage& table : image.rows) record_bytes_.push_back(table.record_bytes());
    std::uint64_t rows = 0;
    for (const ShardMeta::Rows& table : meta.rows) rows += table.rows;
    bool tables_fit = image.rows.size() == manifest_.row_tables.size();
    for (std::size_t i = 0; tables_fit && i < image.rows.size(); ++i) {
      tables_fit = image.rows[i].width == manifest_.row_tables[i].width;
    }
    if (image.job != manifest_.job || image.round != manifest_.round) {
      finding_ = "it belongs to job " + std::to_string(image.job.value()) + ", round " +
                 std::to_string(image.round.value());
    } else if (image.epoch != expected_.epoch || image.version != expected_.version) {
      finding_ = "epoch or version is not that of the manifest";
    } else if (rows != expected_.rows) {
      finding_ = "it has " + std::to_string(rows) + " rows, the manifest says " +
                 std::to_string(expected_.rows);
    } else if (!tables_fit) {
      finding_ = "its tables of rows are not those of the manifest";
    }
    return Ok();
  }
  Status AddBlock(std::size_t index, std::string_view content) override {
    values_.Update(std::as_bytes(std::span(content)).first(elements_[index] * sizeof(float)));
    return Ok();
  }
  Status AddRows(std::uint32_t table, std::span<const std::byte> records) override {
    const auto shards = static_cast<std::uint32_t>(manifest_.shards.size());
    for (std::size_t at = 0; at < records.size(); at += record_bytes_[table]) {
      std::uint64_t key = 0;
      std::memcpy(&key, records.data() + at, sizeof(key));
      if (finding_.empty() && codec::ShardOfRow(key, shards) != expected_.shard) {
        finding_ = "row " + std::to_string(key) + " belongs on another shard";
      }
    }
    return Ok();
  }
  Status AddSketch(std::uint32_t, std::span<const std::uint8_t>) override { return Ok(); }

 private:
  const Manifest& manifest_;
  const ManifestShard& expected_;
  std::vector<std::uint32_t> elements_;
  std::vector<std::size_t> record_bytes_;
  Digester values_;
  std::string finding_;
};

class Verification {
 public:
  Verification(const fs::path& round_directory, VerifyReport& report,
               const VerifyProgress& progress)
      : round_directory_(round_directory), report_(report), progress_(progress) {}

  void Run() {
    std::map<std::string, std::vector<const ManifestShard*>> by_server;
    for (const ManifestShard& shard : report_.manifest.shards) {
      by_server[shard.server].push_back(&shard);
    }
    for (const auto& entry : by_server) VerifyPart(entry.first, entry.second);
  }

 private:
  void Find(const std::string& finding) { report_.findings.push_back(finding); }

  void Advance() {
    ++done_;
    if (progress_) progress_(done_, static_cast<std::uint32_t>(report_.manifest.shards.size()));
  }

  void VerifyFiles(const Reader& reader) {
    const Status files =
        reader.VerifyFiles([this](std::uint64_t bytes) { report_.bytes += bytes; });
    if (!files.ok()) Find(files.error().message);
  }

  void VerifyPart(const std::string& server, const std::vector<const ManifestShard*>& shards) {
    const fs::path directory = round_directory_ / server;
    const Result<std::string> copy = ReadManifest(directory);
    if (!copy.ok() && copy.error().code == ErrorCode::kNotFound) {
      Find((directory / kManifestFile).string() + ": the file is missing");
    }
    std::set<Round> bases;
    for (const ManifestShard* shard : shards) {
      bases.insert(shard->bases.begin(), shard->bases.end());
    }
    for (const Round base : bases) VerifyBase(server, base);
    Result<Reader> reader = Reader::Open(directory);
    if (!reader.ok()) {
      Find(reader.error().message);
      for (std::size_t i = 0; i < shards.size(); ++i) Advance();
      return;
    }
    VerifyFiles(*reader);
    for (const ManifestShard* shard : shards) {
      VerifyShard(*reader, *shard);
      Advance();
    }
  }

  // The files of an earlier part that this checkpoint builds on.
  void VerifyBase(const std::string& server, Round base) {
    const Result<Reader> reader = Reader::Open(BaseDirectory(round_directory_ / server, base));
    if (!reader.ok()) return Find(reader.error().message);
    VerifyFiles(*reader);
  }

  void VerifyShard(const Reader& reader, const ManifestShard& expected) {
    const std::string name = (round_directory_ / expected.server).string() + ": shard " +
                             std::to_string(expected.shard.value()) + ": ";
    const Result<std::vector<Round>> bases = reader.ListBases(expected.shard);
    if (!bases.ok()) return Find(bases.error().message);
    if (*bases != expected.bases) {
      return Find(name + "it builds on other checkpoints than the manifest says");
    }
    VerifySink sink(report_.manifest, expected);
    const Status read = reader.ReadShard(expected.shard, expected.digest, sink);
    if (!read.ok()) return Find(read.error().message);
    const std::string finding = sink.Finding();
    if (!finding.empty()) return Find(name + finding);
    ++report_.shards;
  }

  const fs::path& round_directory_;
  VerifyReport& report_;
  const VerifyProgress& progress_;
  std::uint32_t done_ = 0;
};

}  // namespace

Result<VerifyReport> VerifyCheckpoint(const fs::path& round_directory,
                                      const VerifyProgress& progress) {
  Copies copies = PS_TRY(CollectCopies(round_directory, ThisHost()));
  if (copies.valid.empty()) return NoManifest(round_directory, copies);
  const auto chosen = std::max_element(
      copies.valid.begin(), copies.valid.end(),
      [](const auto& a, const auto& b) { return a.second.size() < b.second.size(); });
  VerifyReport report;
  report.findings = std::move(copies.findings);
  for (auto other = copies.valid.begin(); other != copies.valid.end(); ++other) {
    if (other == chosen) continue;
    for (const fs::path& place : other->second) {
      report.findings.push_back((place / kManifestFile).string() +
                                ": differs from the other copies of the manifest");
    }
  }
  report.manifest = PS_TRY(FromJson(chosen->first));
  report.manifest_hash = Hash(chosen->first);
  Verification(round_directory, report, progress).Run();
  return report;
}

Result<std::string> FindManifest(const fs::path& round_directory, const std::string& expected_hash,
                                 const Storage& storage) {
  Copies copies = PS_TRY(CollectCopies(round_directory, storage));
  if (copies.valid.empty()) return NoManifest(storage.Describe(round_directory), copies);
  for (const auto& copy : copies.valid) {
    if (expected_hash.empty() || Hash(copy.first) == expected_hash) return copy.first;
  }
  Error error = copies.unread;
  error.message =
      storage.Describe(round_directory) + ": no manifest with the committed hash " + expected_hash;
  return error;
}

}  // namespace ps::checkpoint
