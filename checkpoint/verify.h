// Verifies a whole checkpoint: `<round_directory>/<server>/...` of every server.
//
// Reads every byte of every part that the manifest names, and of those in earlier
// rounds that they build on, and compares files with their seals, shards with the digests of the
// manifest, and the copies of the manifest with each other. Blocks on the disk; any thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/manifest.h"
#include "checkpoint/storage.h"
#include "common/result.h"

namespace ps::checkpoint {

struct VerifyReport {
  Manifest manifest;
  std::string manifest_hash;
  std::uint64_t bytes = 0;            // read from disk
  std::uint32_t shards = 0;           // found good
  std::vector<std::string> findings;  // one sentence each; empty: the checkpoint is good
};

// Shards done and shards in all.
using VerifyProgress = std::function<void(std::uint32_t done, std::uint32_t total)>;

// Looks for the manifest in the round directory itself, then in the folders of the servers; copies
// that differ are findings and the majority of them counts. kNotFound if the directory does not
// exist, kInvalid if there is no readable manifest at all: then nothing is known to verify.
Result<VerifyReport> VerifyCheckpoint(const std::filesystem::path& round_directory,
                                      const VerifyProgress& progress);

// The manifest of a checkpoint, from wherever in the round directory a valid copy lies. With
// `expected_hash` (from ZooKeeper) only a copy with that hash is taken. kInvalid if there is none;
// another code if there may be one among those that could not be read.
Result<std::string> FindManifest(const std::filesystem::path& round_directory,
                                 const std::string& expected_hash = "",
                                 const Storage& storage = ThisHost());

}  // namespace ps::checkpoint
