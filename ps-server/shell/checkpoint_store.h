// This server's side of the checkpoint directory: <root>/job-<id>/ckpt-<round>/<procid>/.
//
// The root is shared by servers, or each has its own; then others fetch copies of
// what it writes, and it reads from them what it has not. Names of rounds come from the coordinator
// and are resolved against it; none may lead out of it. Everything here blocks
// on the disk: CheckpointStore belongs to the writer thread, RestoreReader to
// the restore thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/image.h"
#include "checkpoint/manifest.h"
#include "checkpoint/reader.h"
#include "checkpoint/remote/remote_storage.h"
#include "checkpoint/source.h"
#include "common/ids.h"
#include "common/messages/control.h"
#include "common/net/context.h"
#include "common/result.h"
#include "ps-server/core/frozen_shard.h"

namespace ps::server {

// Creates the directory, checks that a file can be written in it, and returns its identity, which
// is made with the first start and lies in the file STORE: servers that share the directory have
// the same. kIo, or kInvalid if that file is none of ours.
Result<std::string> PrepareCheckpointRoot(const std::filesystem::path& root);

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

  // Into these parts, the own one and copies of others'. kConflict if one of them is not here.
  Status WriteManifest(const std::string& round_name, const std::vector<std::string>& parts,
                       const std::string& text) const;

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

// Fetches what another server wrote, and what that builds on, into this one's directory. As
// checkpoint::CopyPart(). `source_name` is what the source calls the round. `bases` are earlier
// rounds.
Status CopyPart(const checkpoint::Storage& source, const std::string& source_name,
                const std::filesystem::path& root, const std::string& round_name,
                const std::string& part, const std::vector<Round>& bases,
                const std::function<bool(std::uint64_t)>& progress);

// A server that may have parts of a checkpoint.
struct PartSource {
  std::string store;     // identity of its directory
  std::string endpoint;  // of its file service

  friend bool operator==(const PartSource&, const PartSource&) = default;
};

// Puts a whole copy of the first source that has one in the place of a damaged part, its manifest
// too. kNotFound if none has it, or the part itself is gone.
Status RepairPart(net::Context& context, const std::vector<PartSource>& sources,
                  const std::filesystem::path& root, const std::string& round_name,
                  const std::string& part, const std::function<bool(std::uint64_t)>& progress);

class RestoreReader {
 public:
  // Reads from this directory alone.
  explicit RestoreReader(std::filesystem::path root) : root_(std::move(root)), local_(root_) {}
  // `store` is the identity of `root`. `context` outlives the reader.
  RestoreReader(std::filesystem::path root, std::string store, net::Context& context)
      : root_(std::move(root)), store_(std::move(store)), context_(&context), local_(root_) {}

  // Where to read what the directory has not, or has damaged, one after the other.
  void SetSources(const std::vector<PartSource>& sources);

  // As checkpoint::Reader::ReadShard: what `sink` got counts if this is Ok. Else, once no place is
  // left to try: kNotFound if nobody has it; kInvalid if whoever has it has it damaged, or the sink
  // refuses it; any other code if it may be there where it could not be read.
  Status Read(const std::string& round_name, ShardId shard, checkpoint::ShardSink& sink);
  // After a Read() that was not Ok: there is a place left that may have the shard whole. It is
  // tried by the next Read(), with another sink.
  bool again() const { return again_; }
  // What the shard is, without its content.
  Result<checkpoint::ShardMeta> ReadMeta(const std::string& round_name, ShardId shard);
  // Valid until a call names another round, or fails.
  Result<const checkpoint::Manifest*> ReadManifest(const std::string& round_name);

 private:
  // What is to be said of several places, none of which had it: what may be there after all weighs
  // most, then what is there and damaged.
  class Failures {
   public:
    void Add(const Error& error);
    Error Sum() const;

   private:
    Error worst_{ErrorCode::kNotFound, ""};
    std::string missing_;
  };

  Status OpenRound(const std::string& round_name);
  Result<const checkpoint::ManifestShard*> Find(const std::string& round_name, ShardId shard);
  Result<const checkpoint::Reader*> OpenPart(std::size_t place, const std::string& name);
  // Whoever tries again opens everything again.
  Error Fail(Failures failures);
  void Close();

  const std::filesystem::path root_;
  const std::string store_;
  net::Context* const context_ = nullptr;
  const checkpoint::LocalStorage local_;
  std::vector<PartSource> sources_;
  // The round that was read last stays open: shards of one round come one after the other.
  std::string open_name_;
  std::filesystem::path open_path_;  // below each place
  std::vector<std::unique_ptr<checkpoint::RemoteStorage>> remote_;
  std::vector<const checkpoint::Storage*> places_;  // the local one first
  checkpoint::Manifest manifest_;
  using PartAt = std::pair<std::size_t, std::string>;  // place and name
  std::map<PartAt, checkpoint::Reader> parts_;
  std::set<PartAt> bad_;  // not to be tried again while the round is open
  Failures failures_;     // of the shard that is read
  bool again_ = false;
};

}  // namespace ps::server
