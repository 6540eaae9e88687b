// The disks of a simulated cluster, and the folders of checkpoints on them.
//
// What a machine has written and not synced is lost when it crashes, and so are names (new,
// renamed) whose directory it has not synced. While a machine's disk is full its writes and syncs
// fail. What another machine wrote and did not sync can be read until that one crashes.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/image.h"
#include "checkpoint/manifest.h"
#include "common/ids.h"
#include "common/result.h"
#include "tests/simulation/cluster/schedule.h"

namespace ps::simulation {

// A shard in a part: whole, or what has changed of it since an earlier round.
struct StoredShard {
  std::vector<Round> bases;  // newest first, as in checkpoint/FORMAT.md; empty: it is whole
  std::shared_ptr<const checkpoint::ShardImage> image;  // without values if it is not
  std::map<std::uint32_t, float> changed;               // values by element
};

struct DiskContent {
  std::string text;
  std::vector<StoredShard> shards;
};

// "job-1/ckpt-7", 5: "job-1/ckpt-5".
std::string RoundBeside(const std::string& round_directory, Round round);

// The folders of checkpoints: one that all servers share, or one of each machine.
class Stores {
 public:
  explicit Stores(bool shared) : shared_(shared) {}

  bool shared() const { return shared_; }
  // The identity of the machine's folder; paths in it begin with that and a slash.
  std::string Of(MachineId machine) const {
    if (shared_) return "shared";
    const auto at = losses_.find(machine);
    return "m" + std::to_string(machine) + "." +
           std::to_string(at == losses_.end() ? 0 : at->second);
  }
  bool IsLost(const std::string& store) const { return lost_.contains(store); }
  // The disk is gone: from now on the machine has another one. Returns the folder that was there.
  std::string Lose(MachineId machine) {
    std::string store = Of(machine);
    lost_.insert(store);
    ++losses_[machine];
    return store;
  }

 private:
  const bool shared_;
  std::map<MachineId, int> losses_;
  std::set<std::string> lost_;
};

class Disk {
 public:
  Status Write(MachineId machine, const std::string& path, DiskContent content);
  Status Sync(MachineId machine, const std::string& path);
  Status Rename(MachineId machine, const std::string& from, const std::string& to);
  Status SyncDirectory(MachineId machine, const std::string& directory);
  void Remove(const std::string& path);
  void RemoveTree(const std::string& directory);

  // Valid until the disk changes. kNotFound if it is not there.
  Result<const DiskContent*> Read(const std::string& path) const;
  // What a crash of all machines would leave. kInvalid if the name alone would be left.
  Result<const DiskContent*> ReadDurable(const std::string& path) const;
  // The shard of a manifest's entry in a round directory, put together with what it builds on in
  // the parts of the same name beside it. With `durable` only of what a crash of all machines would
  // leave. kInvalid if it is not the one of the entry, or a base is not there.
  Result<std::shared_ptr<const checkpoint::ShardImage>> ReadShard(
      const std::string& round_directory, const checkpoint::ManifestShard& entry,
      bool durable) const;
  // Names of the directories and files directly below.
  std::set<std::string> List(const std::string& directory) const;

  void Crash(MachineId machine);
  void SetFull(MachineId machine, bool full);
  bool full(MachineId machine) const { return full_.contains(machine); }

 private:
  struct File {
    DiskContent content;
    bool synced = false;
    MachineId machine = 0;
  };
  using Names = std::map<std::string, std::shared_ptr<File>>;

  Result<const StoredShard*> ReadStored(const std::string& round_directory,
                                        const checkpoint::ManifestShard& entry, bool durable) const;
  Status Room(MachineId machine, const std::string& path) const;

  Names visible_;
  Names durable_;
  std::map<MachineId, int> full_;
};

}  // namespace ps::simulation
