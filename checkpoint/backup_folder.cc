#include "checkpoint/backup_folder.h"

#include <fcntl.h>
#include <sys/file.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <map>
#include <optional>
#include <system_error>
#include <utility>

#include "checkpoint/manifest.h"
#include "checkpoint/part_directory.h"
#include "checkpoint/reader.h"
#include "checkpoint/round_path.h"
#include "checkpoint/verify.h"
#include "common/error_id.h"

namespace ps::checkpoint {

namespace fs = std::filesystem;

namespace {

constexpr const char* kJobPrefix = "job-";
constexpr const char* kPartialSuffix = ".partial";

// "ckpt-12"; nothing: no folder of a checkpoint.
std::optional<Round> RoundOf(const std::string& name) {
  const auto round = RoundOfFolder(name);
  return round && round->value() > 0 ? round : std::nullopt;
}

bool IsSealed(const fs::path& part) {
  std::error_code error;
  return fs::is_regular_file(part / kSealFile, error);
}

bool IsName(const std::string& text) {
  const fs::path path(text);
  return !text.empty() && path.filename() == path && path != "." && path != "..";
}

void TakeManifest(const fs::path& folder, const std::string& text, const Manifest& manifest,
                  Backup& backup) {
  backup.job = manifest.job;
  backup.job_name = manifest.job_name;
  backup.time_ms = manifest.time_ms;
  backup.step = manifest.step;
  backup.samples = manifest.samples;
  backup.final_round = manifest.final_round;
  backup.shards = static_cast<std::uint32_t>(manifest.shards.size());
  backup.manifest_hash = Hash(text);
  for (const ManifestShard& shard : manifest.shards) {
    backup.bytes += shard.bytes;
    backup.state_bytes += shard.state_bytes;
    if (!IsName(shard.server)) {
      backup.damage = "`" + shard.server + "` is no name of a part";
      continue;
    }
    const fs::path part = backup.directory / shard.server;
    backup.parts.insert(part);
    for (const Round base : shard.bases) {
      backup.parts.insert(BaseDirectory(part, base));
      backup.bases.insert(base);
    }
  }
  if (manifest.round != backup.round) {
    backup.damage = "its manifest is that of checkpoint " + std::to_string(manifest.round.value());
  }
  for (const fs::path& part : backup.parts) {
    if (backup.damage.empty() && !IsSealed(folder / part)) {
      backup.damage = part.string() + " is missing";
    }
  }
}

// Nothing if no part has a manifest.
Result<std::optional<Backup>> FindBackup(const fs::path& folder, const fs::path& directory,
                                         Round round) {
  bool claims = false;
  for (const fs::path& part : PS_TRY(ListDirectories(folder / directory))) {
    std::error_code error;
    claims = claims || fs::exists(part / kManifestFile, error);
  }
  if (!claims) return std::optional<Backup>();
  Backup backup;
  backup.directory = directory;
  backup.round = round;
  const Result<std::string> text = FindManifest(folder / directory);
  const auto manifest = text.ok() ? FromJson(*text) : text.error();
  if (manifest.ok()) {
    TakeManifest(folder, *text, *manifest, backup);
  } else {
    backup.unreadable = true;
    backup.damage = manifest.error().message;
  }
  return std::optional(std::move(backup));
}

Result<std::vector<Backup>> ListJob(const fs::path& folder, const fs::path& job_folder) {
  std::vector<Backup> backups;
  for (const fs::path& path : PS_TRY(ListDirectories(folder / job_folder))) {
    const auto round = RoundOf(path.filename());
    if (!round) continue;
    auto backup = PS_TRY(FindBackup(folder, job_folder / path.filename(), *round));
    if (backup) backups.push_back(std::move(*backup));
  }
  std::sort(backups.begin(), backups.end(),
            [](const Backup& a, const Backup& b) { return a.round < b.round; });
  return backups;
}

// So that nothing of it is listed any more, whatever is still there.
Status Unlist(const fs::path& round_directory) {
  for (const fs::path& part : PS_TRY(ListDirectories(round_directory))) {
    std::error_code error;
    if (fs::remove(part / kManifestFile, error)) PS_TRY(SyncDirectory(part));
    if (error) return IoError(part / kManifestFile, "cannot remove", error.value());
  }
  return Ok();
}

}  // namespace

std::string BackupJobFolder(const std::string& id, const std::string& name,
                            const std::string& created) {
  std::string text = kJobPrefix + id + "-";
  for (const char c : name.substr(0, 100)) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_';
    text += plain ? c : '_';
  }
  text += '-';
  for (const char c : created) {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0) text += c;
  }
  return text;
}

Result<std::vector<Backup>> ListBackups(const fs::path& folder) {
  std::vector<Backup> backups;
  for (const fs::path& job : PS_TRY(ListDirectories(folder))) {
    const fs::path name = job.filename();
    if (name.string().rfind(kJobPrefix, 0) != 0) continue;
    std::vector<Backup> of = PS_TRY(ListJob(folder, name));
    std::move(of.begin(), of.end(), std::back_inserter(backups));
  }
  return backups;
}

std::vector<Backup> ExpiredBackups(const std::vector<Backup>& backups, const BackupRule& rule,
                                   std::uint64_t now_ms) {
  std::vector<const Backup*> newest_first;
  for (const Backup& backup : backups) newest_first.push_back(&backup);
  std::sort(newest_first.begin(), newest_first.end(),
            [](const Backup* a, const Backup* b) { return a->round > b->round; });
  std::vector<Backup> expired;
  std::size_t whole = 0;
  for (const Backup* const backup : newest_first) {
    if (backup->unreadable) continue;
    // What cannot be used does not count as kept.
    if (backup->damage.empty() && whole++ < rule.keep_min) continue;
    const bool old = backup->time_ms <= now_ms && now_ms - backup->time_ms > rule.age_max_ms;
    if (old) expired.push_back(*backup);
  }
  return expired;
}

Result<SweepReport> SweepBackups(const fs::path& folder, const fs::path& job_folder,
                                 const BackupRule& rule, std::uint64_t now_ms) {
  std::vector<Backup> backups = PS_TRY(ListJob(folder, job_folder));
  SweepReport report;
  for (const Backup& backup : ExpiredBackups(backups, rule, now_ms)) {
    PS_TRY(Unlist(folder / backup.directory));
    report.removed.push_back(backup.directory);
  }
  std::set<fs::path> needed;
  for (const Backup& backup : backups) {
    const bool removed = std::find(report.removed.begin(), report.removed.end(),
                                   backup.directory) != report.removed.end();
    if (removed) continue;
    report.held_up = report.held_up || backup.unreadable;
    needed.insert(backup.parts.begin(), backup.parts.end());
  }
  if (report.held_up) return report;
  for (const fs::path& round : PS_TRY(ListDirectories(folder / job_folder))) {
    if (!RoundOf(round.filename())) continue;
    for (const fs::path& part : PS_TRY(ListDirectories(round))) {
      if (needed.contains(job_folder / round.filename() / part.filename())) continue;
      if (part.extension() == kPartialSuffix) {
        PS_TRY(RemovePartial(fs::path(part).replace_extension()));
      } else {
        PS_TRY(RemovePart(part));
      }
      ++report.parts;
    }
    std::error_code error;
    fs::remove(round, error);  // fails unless it is empty
  }
  return report;
}

nlohmann::ordered_json ToJson(const Backup& backup) {
  nlohmann::ordered_json bases = nlohmann::ordered_json::array();
  for (auto base = backup.bases.rbegin(); base != backup.bases.rend(); ++base) {
    bases.push_back(base->value());
  }
  return {{"directory", backup.directory.string()},
          {"job", backup.job.value()},
          {"job_name", backup.job_name},
          {"round", backup.round.value()},
          {"step", backup.step},
          {"samples", backup.samples},
          {"bytes", backup.bytes},
          {"state_bytes", backup.state_bytes},
          {"final", backup.final_round},
          {"shards", backup.shards},
          {"bases", std::move(bases)},
          {"manifest_hash", backup.manifest_hash},
          {"damage", backup.damage}};
}

Status WriteCatalogue(const fs::path& folder) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Backup& backup : PS_TRY(ListBackups(folder))) {
    list.push_back(ToJson(backup));
    list.back()["time_ms"] = backup.time_ms;
  }
  const nlohmann::ordered_json json{{"format_version", 1}, {"backups", std::move(list)}};
  return WriteFileDurably(
      folder / kCatalogueFile,
      json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

Result<FileDescriptor> LockBackups(const fs::path& folder) {
  PS_TRY(CreateDirectories(folder));
  const fs::path file = folder / "LOCK";
  FileDescriptor lock(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  if (lock.get() < 0) return IoError(file, "cannot open", errno);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) == 0) return lock;
  if (errno != EWOULDBLOCK) return IoError(file, "cannot lock", errno);
  return Error{ErrorId::kBackupUnderWay, folder.string() + ": another backup is under way there"};
}

}  // namespace ps::checkpoint
