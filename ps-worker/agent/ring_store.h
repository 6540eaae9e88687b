// The retention rings of this agent's tasks: files in one directory that outlive task and agent.
//
// A ring is `job-<job>-<worker>-<incarnation>.ring`. While its task runs, the file is the task's
// alone; afterwards it is read here, offered to the coordinator and replayed, until the coordinator
// says that a checkpoint covers it. The directory is ours alone (mode 0700): what others could
// write into would be sent to servers as pushes.
//
// Belongs to one thread.
#pragma once

#include <compare>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/messages/control.h"
#include "common/result.h"

namespace ps::worker {

struct RingKey {
  JobId job;
  WorkerId worker;
  Incarnation incarnation;

  friend auto operator<=>(const RingKey&, const RingKey&) = default;
};

// "job-3-0-7.ring".
std::string RingFileName(const RingKey& key);
std::optional<RingKey> ParseRingFileName(const std::string& name);

// /dev/shm/ds-<user>-<hash of the state directory>.
std::filesystem::path DefaultRetentionDirectory(const std::filesystem::path& state_directory);

class RingStore {
 public:
  // Creates the directory. kDenied if it is not ours alone.
  static Result<RingStore> Open(const std::filesystem::path& directory);

  std::filesystem::path PathOf(const RingKey& key) const;

  // What the ring holds; nothing if its task never got as far as making one. kInvalid, naming the
  // file, if it is damaged.
  Result<std::optional<control::RingInfoT>> Describe(const RingKey& key) const;

  // Every ring that is there but those of `running` tasks: opening a ring tidies it up, which is
  // for its task to do while that lives. Damaged ones are logged and left out.
  std::vector<control::RingInfoT> Scan(const std::set<RingKey>& running) const;

  void Remove(const RingKey& key) const;

 private:
  explicit RingStore(std::filesystem::path directory) : directory_(std::move(directory)) {}

  std::filesystem::path directory_;
};

}  // namespace ps::worker
