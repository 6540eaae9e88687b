// Time, chance and the trace of one simulated history.
//
// Everything that happens is an event of one queue; all chance comes from one generator; each event
// that matters is folded into a hash. So a seed names one history, and two runs of it have the same
// hash. A machine may be paused: what should happen on it happens when it goes on, in order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tests/simulation/event_queue.h"

namespace ps::simulation {

using Bytes = std::vector<std::byte>;
using MachineId = int;
inline constexpr MachineId kZooKeeperMachine = -1;

// What a process holds as long as it runs: events of a process that ended do nothing.
using Life = std::shared_ptr<void>;

class Schedule {
 public:
  explicit Schedule(std::uint64_t seed) : random_(seed) {}

  std::int64_t now_ms() const { return events_.now_ms(); }
  std::uint64_t Dice(std::uint64_t sides) { return sides == 0 ? 0 : random_() % sides; }
  std::int64_t Below(std::int64_t limit) {
    return static_cast<std::int64_t>(
        Dice(static_cast<std::uint64_t>(std::max<std::int64_t>(1, limit))));
  }
  bool Happens(std::uint32_t per_ten_thousand) {
    return per_ten_thousand != 0 && Dice(10'000) < per_ten_thousand;
  }

  void At(std::int64_t time_ms, std::function<void()> act) { events_.At(time_ms, std::move(act)); }
  void After(std::int64_t delay_ms, std::function<void()> act) {
    events_.After(delay_ms, std::move(act));
  }
  // On a machine, while the process lives.
  void After(std::int64_t delay_ms, MachineId machine, const Life& life,
             std::function<void()> act) {
    After(delay_ms, [this, machine, weak = std::weak_ptr<void>(life), act = std::move(act)] {
      OnMachine(machine, weak, act);
    });
  }
  // Again and again while the process lives.
  void Every(std::int64_t period_ms, MachineId machine, const Life& life,
             std::function<void()> act) {
    Repeat(period_ms, machine, life, std::make_shared<std::function<void()>>(std::move(act)));
  }
  bool RunNext() {
    ++events_run_;
    return events_.RunNext();
  }
  std::uint64_t events_run() const { return events_run_; }

  void Pause(MachineId machine, std::int64_t until_ms) {
    paused_[machine] = std::max(paused_[machine], until_ms);
  }
  void EndPauses() { paused_.clear(); }
  // When what arrives at the machine now is taken up.
  std::int64_t AwakeAt(MachineId machine) const {
    const auto found = paused_.find(machine);
    return found == paused_.end() ? now_ms() : std::max(now_ms(), found->second);
  }

  void Trace(std::string_view what, std::uint64_t a = 0, std::uint64_t b = 0);
  void Trace(std::string_view what, std::span<const std::byte> bytes);
  std::uint64_t trace_hash() const { return trace_; }

 private:
  // The events of a period share what they do.
  void Repeat(std::int64_t period_ms, MachineId machine, const Life& life,
              std::shared_ptr<const std::function<void()>> act) {
    After(period_ms, machine, life,
          [this, period_ms, machine, weak = std::weak_ptr<void>(life), act = std::move(act)] {
            (*act)();
            if (const Life still = weak.lock()) Repeat(period_ms, machine, still, act);
          });
  }
  void OnMachine(MachineId machine, const std::weak_ptr<void>& life,
                 const std::function<void()>& act) {
    if (life.expired()) return;
    if (const std::int64_t awake = AwakeAt(machine); awake > now_ms()) {
      events_.At(awake, [this, machine, life, act] { OnMachine(machine, life, act); });
      return;
    }
    act();
  }

  EventQueue events_;
  std::mt19937_64 random_;
  std::map<MachineId, std::int64_t> paused_;
  std::uint64_t trace_ = 0;
  std::uint64_t events_run_ = 0;
};

}  // namespace ps::simulation
