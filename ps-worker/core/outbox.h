// What tasks say to the coordinator and must not be lost while there is none.
//
// Of each task the newest message of each kind that matters is kept, and given out again at each
// registration, until the coordinator's answer settles it or the task's end was told. The
// coordinator takes all of these twice without harm. Progress reports and the like are not kept:
// the next one says more.
//
// Pure state of one thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "common/messages/control.h"

namespace ps::worker {

class Outbox {
 public:
  // Ended tasks that are remembered; beyond it the oldest are forgotten, their rings remain.
  static constexpr std::size_t kExitsMax = 256;

  static bool Keeps(control::Body kind);

  // Replaces what the task said of this kind before. Only for kinds that Keeps().
  void Keep(control::MessageT message);
  // The coordinator has answered.
  void Settle(std::uint64_t task, control::Body kind);
  // The last message of the task, a TaskExited, which could not be sent.
  void KeepExit(control::MessageT exited);
  // The task's end was told.
  void Forget(std::uint64_t task) { tasks_.erase(task); }

  // Hands out everything in the order in which it must arrive; false from `send` ends it. A task
  // whose end was sent is forgotten.
  void Flush(const std::function<bool(const control::MessageT&)>& send);

  // Tasks whose end was not told yet: to the coordinator they still run.
  std::vector<const control::TaskExitedT*> Exits() const;

  std::size_t size() const;

 private:
  // In the order of sending.
  static constexpr std::array<control::Body, 7> kKinds = {
      control::Body::TaskReady, control::Body::LeaseProgress, control::Body::LeaseRequest,
      control::Body::WorkerCut, control::Body::Drained,       control::Body::Evaluated,
      control::Body::TaskFailed};

  struct Entry {
    std::array<std::optional<control::MessageT>, kKinds.size()> kept;
    std::optional<control::MessageT> exited;
  };

  static std::size_t IndexOf(control::Body kind);

  std::map<std::uint64_t, Entry> tasks_;
};

}  // namespace ps::worker
