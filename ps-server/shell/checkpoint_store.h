// This server's side of the checkpoint directory: <root>/job-<id>/ckpt-<round>/<procid>/.
//
// The root is shared by all servers. Names of rounds come from the coordinator
// and are resolved against it; none may lead out of it. Everything here blocks
// on the disk: CheckpointStore belongs to the writer thread, RestoreReader to
// the restore thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/image.h"
#include "checkpoint/manifest.h"
#include "checkpoint/reader.h"
#include "common/ids.h"
#include "common/messages/control.h"
#include "common/result.h"

namespace ps::server {

// Creates the directory and checks that a file can be written in it. kIo otherwise.
Status PrepareCheckpointRoot(const std::filesystem::path& root);

// `name` under `root`; an absolute name must lie there already. kDenied if it is empty or leads
// out.
Result<std::filesystem::path> ResolveRound(const std::filesystem::path& root,
                                           const std::string& name);

// The name of the round `round` beside the one that `name` names: "job-7/ckpt-3" and 5 make
// "job-7/ckpt-5". A name of another form is returned as it is.
std::string RoundName(const std::string& name, Round round);

class CheckpointStore {
 public:
  CheckpointStore(std::filesystem::path root, std::string procid);

  // Sorts the rows of all images of a round and writes them durably; in the order of `images`.
  Result<std::vector<control::PreparedShardT>> Write(
      const std::string& round_name, std::vector<checkpoint::ShardImage> images) const;

  // kConflict if this server wrote no part of the round.
  Status WriteManifest(const std::string& round_name, const std::string& text) const;

  // What this server wrote for a round that came to nothing.
  Status Discard(const std::string& round_name) const;

  // Deletes every round of the job before `committed` that is not in `keep`, the parts of servers
  // that are gone too. Returns how many; what cannot be deleted is logged and left.
  int DeleteOldRounds(JobId job, Round committed, std::span<const std::uint64_t> keep) const;

 private:
  const std::filesystem::path root_;
  const std::string procid_;
};

class RestoreReader {
 public:
  explicit RestoreReader(std::filesystem::path root) : root_(std::move(root)) {}

  // kNotFound if the round or the shard is not there, kInvalid if what is there is damaged.
  Result<checkpoint::ShardImage> Read(const std::string& round_name, ShardId shard);

 private:
  Status OpenRound(const std::string& round_name);

  const std::filesystem::path root_;
  // The round that was read last stays open: shards of one round come one after the other.
  std::string open_name_;
  std::filesystem::path open_path_;
  checkpoint::Manifest manifest_;
  std::map<std::string, checkpoint::Reader> parts_;
};

}  // namespace ps::server
