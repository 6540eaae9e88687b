// Reads the parts of checkpoints in the server's folder again and again, and compares them with
// their seals: a disk loses what nobody reads, and a copy elsewhere helps only who knows.
//
// A pass reads every sealed part below `root`, own ones and copies, at no more than a rate, past
// the page cache. Then it rests ten times as long as it took, within the bounds of ScrubOptions.
// While somebody holds a Yield it reads nothing: rounds, copies and restores come first. Of servers
// that share a folder one scrubs it, who holds the lock on the file SCRUB there (flock).
//
// Has a thread of its own, on which on_damage is called.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "common/ids.h"

namespace ps::server {

struct ScrubOptions {
  std::filesystem::path root;
  std::uint64_t bytes_per_second = std::uint64_t{10} << 20;  // at least 1
  std::chrono::milliseconds rest_min{5'000};
  std::chrono::milliseconds rest_max{3'600'000};
};

struct DamagedPart {
  JobId job;
  Round round;
  std::string part;     // its name
  std::string message;  // which file, and what is wrong with it
};

struct ScrubCounters {
  std::uint64_t bytes = 0;
  std::uint64_t parts = 0;
  std::uint64_t damaged = 0;  // findings: a part that stays damaged is found with each pass
  std::uint64_t passes = 0;
  std::uint64_t last_pass_end_ms = 0;  // Unix time; 0: none has ended
  std::uint64_t last_pass_ms = 0;      // how long it took
};

class Scrubber {
 public:
  Scrubber(ScrubOptions options, std::function<void(const DamagedPart&)> on_damage);
  ~Scrubber();
  Scrubber(const Scrubber&) = delete;
  Scrubber& operator=(const Scrubber&) = delete;

  ScrubCounters counters() const;

  // Any thread; `scrubber` may be null and outlives it.
  class Yield {
   public:
    explicit Yield(Scrubber* scrubber) : scrubber_(scrubber) {
      if (scrubber_ != nullptr) ++scrubber_->yields_;
    }
    ~Yield() {
      if (scrubber_ != nullptr) --scrubber_->yields_;
    }
    Yield(const Yield&) = delete;
    Yield& operator=(const Yield&) = delete;

   private:
    Scrubber* const scrubber_;
  };

 private:
  void Run();
  // False if the scrubber ends.
  bool Pass();
  bool CheckOne(const DamagedPart& part, const std::filesystem::path& directory);
  bool Wait(std::chrono::milliseconds duration);
  // After so many bytes: until the rate is kept, and nobody holds a Yield.
  bool Pace(std::uint64_t bytes);

  const ScrubOptions options_;
  const std::function<void(const DamagedPart&)> on_damage_;
  std::atomic<int> yields_{0};  // counts; whoever sees it a piece late does no harm

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;   // guarded
  ScrubCounters counters_;  // guarded
  double debt_ms_ = 0;      // the thread's: what reading was quicker than the rate

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace ps::server
