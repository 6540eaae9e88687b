// A folder of backups: checkpoints of any number of jobs, away from the servers that wrote them.
//
//   <folder>/
//     CATALOGUE.json                   what is here, for people and other programs
//     LOCK                             held (flock) by who changes the folder
//     job-7-fashion-20261122T215000123Z/   of one job; its time tells jobs of one number apart
//       PINNED                         while a backup is under way: the checkpoint that it holds
//       ckpt-12/<part>/...             as on the servers (FORMAT.md), with MANIFEST.json
//
// A checkpoint is a backup once one of its parts has the manifest, which is written when everything
// is there. Parts without one are what others build on, or were left by a backup that was cut off.
// The folder itself says what it holds: the catalogue is written anew from it and never read.
// Blocks on the disk; any thread, one process at a time for what changes something (LockBackups()).
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/files.h"
#include "common/ids.h"
#include "common/result.h"

namespace ps::checkpoint {

inline constexpr const char* kCatalogueFile = "CATALOGUE.json";

struct Backup {
  std::filesystem::path directory;  // below the folder: "job-7-.../ckpt-12"
  Round round;
  std::string damage;  // why it is of no use as it is; empty: it has all its parts
  // Of the manifest; not there if `unreadable`.
  bool unreadable = false;
  JobId job;
  std::string job_name;
  std::uint64_t time_ms = 0;  // Unix time of the cut
  std::uint64_t step = 0;
  std::uint64_t samples = 0;
  std::uint64_t bytes = 0;        // that its own parts hold
  std::uint64_t state_bytes = 0;  // of the whole state
  bool final_round = false;
  std::uint32_t shards = 0;
  std::string manifest_hash;
  std::set<std::filesystem::path> parts;  // below the folder, with those that it builds on
  std::set<Round> bases;
};

// "job-7-fashion-20261122T215000123Z" of the job's number, name, and when it was created as the
// API says it, "2026-11-22T21:50:00.123Z".
std::string BackupJobFolder(const std::string& id, const std::string& name,
                            const std::string& created);

// By job folder and round. Looks at manifests and at which parts are there, not into them:
// VerifyCheckpoint() does. kNotFound if there is no such folder.
Result<std::vector<Backup>> ListBackups(const std::filesystem::path& folder);

struct BackupRule {
  std::uint64_t age_max_ms = 0;  // older ones go,
  std::size_t keep_min = 1;      // but for so many of the newest that are whole
};

// Of the backups of one job. Pure. Those with an unreadable manifest stay.
std::vector<Backup> ExpiredBackups(const std::vector<Backup>& backups, const BackupRule& rule,
                                   std::uint64_t now_ms);

struct SweepReport {
  std::vector<std::filesystem::path> removed;  // backups
  std::size_t parts = 0;                       // that nothing needs any more
  // Parts stay while it is not known what a backup with an unreadable manifest builds on.
  bool held_up = false;
};

// Removes what the rule lets go of one job, `job_folder` below `folder`, and every part that no
// backup needs: its own or as a base. A crash leaves a backup whole or unlisted.
Result<SweepReport> SweepBackups(const std::filesystem::path& folder,
                                 const std::filesystem::path& job_folder, const BackupRule& rule,
                                 std::uint64_t now_ms);

// As the catalogue has it, but for the time.
nlohmann::ordered_json ToJson(const Backup& backup);

// Writes the catalogue anew from what is there.
Status WriteCatalogue(const std::filesystem::path& folder);

// Held while it is open, and given back by the kernel when a process dies. Creates the folder.
// kConflict if somebody holds it.
Result<FileDescriptor> LockBackups(const std::filesystem::path& folder);

}  // namespace ps::checkpoint
