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
#include <utility>
#include <vector>

#include "checkpoint/image.h"
#include "checkpoint/manifest.h"
#include "checkpoint/reader.h"
#include "checkpoint/source.h"
#include "common/ids.h"
#include "common/messages/control.h"
#include "common/result.h"
#include "ps-server/core/frozen_shard.h"

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

  // Writes all shards of a round durably, one after the other; in the order of `shards`. With
  // `base`, the newest committed round, those that this store wrote in it are written as what has
  // changed since, where that saves enough. Those that came or were made anew since are whole.
  Result<std::vector<control::PreparedShardT>> Write(const std::string& round_name,
                                                     std::vector<FrozenShard> shards, Round base);

  // kConflict if this server wrote no part of the round.
  Status WriteManifest(const std::string& round_name, const std::string& text) const;

  // What this server wrote for a round that came to nothing.
  Status Discard(const std::string& round_name) const;

  // The job is over: nothing will build on what was written of it.
  void Forget(JobId job);

  // Deletes every round of the job before `committed` that is not in `keep`, the parts of servers
  // that are gone too. Returns how many; what cannot be deleted is logged and left.
  int DeleteOldRounds(JobId job, Round committed, std::span<const std::uint64_t> keep) const;

 private:
  // What was written of a shard in the round `base`; null if nothing was, or it is gone.
  const checkpoint::ShardBase* FindBase(const std::filesystem::path& round,
                                        const FrozenShard& shard, Round base) const;

  const std::filesystem::path root_;
  const std::string procid_;
  // By shard: the newest round that is known to count, and the last one that was written. Which of
  // them counts is known when the next round begins: so an aborted one takes nothing back.
  std::map<std::pair<JobId, ShardId>, std::vector<checkpoint::ShardBase>> written_;
};

class RestoreReader {
 public:
  explicit RestoreReader(std::filesystem::path root) : root_(std::move(root)) {}

  // As checkpoint::Reader::ReadShard: what `sink` got counts if this is Ok. kNotFound if the round
  // or the shard is not there, kInvalid if what is there is damaged, or the sink refuses it.
  Status Read(const std::string& round_name, ShardId shard, checkpoint::ShardSink& sink);
  // What the shard is, without its content.
  Result<checkpoint::ShardMeta> ReadMeta(const std::string& round_name, ShardId shard);
  // Valid until a call names another round, or fails.
  Result<const checkpoint::Manifest*> ReadManifest(const std::string& round_name);

 private:
  // The part that has the shard, and what the manifest says of it.
  struct Place {
    const checkpoint::Reader* part = nullptr;
    const checkpoint::ManifestShard* entry = nullptr;
  };

  Status OpenRound(const std::string& round_name);
  Result<Place> OpenPart(const std::string& round_name, ShardId shard);

  const std::filesystem::path root_;
  // The round that was read last stays open: shards of one round come one after the other.
  std::string open_name_;
  std::filesystem::path open_path_;
  checkpoint::Manifest manifest_;
  std::map<std::string, checkpoint::Reader> parts_;
};

}  // namespace ps::server
