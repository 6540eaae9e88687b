// One worker of a measurement: a thread with the data client of a task, which pushes and pulls as
// fast as it is answered.
//
// Pushes lie in a retention ring, from which they are sent without a copy; the ring is so sized
// that each place in it always holds the same push, which is written there once, as a sparsifier
// would write it there itself. What every shard has answered leaves the ring: unlike a task's, the
// pushes cannot be replayed to a server that lost them, and then the measurement fails (unless the
// shards have backups). Built, told
// and destroyed by one thread; each wait has a deadline and says what it waited for.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench/histogram.h"
#include "bench/options.h"
#include "bench/plan.h"
#include "common/ids.h"
#include "common/messages/control.h"
#include "common/net/context.h"
#include "common/net/loop.h"
#include "common/result.h"
#include "ps-worker/core/retention_ring.h"
#include "ps-worker/task/data_client.h"

namespace ps::bench {

class LoadWorker {
 public:
  struct Settings {
    Operation operation = Operation::kPush;  // a push, a pull or both, of values or of rows
    JobId job;
    std::uint32_t number = 0;
    Incarnation incarnation;
    std::uint32_t generation = 1;
    std::uint64_t token = 0;  // of the job's data plane
    Clock first_clock;
    bool fills = false;  // makes all rows of the plan's table before it counts as connected
    std::uint32_t window = 4;
    std::uint32_t pause_ms = 0;  // between an answer and the next pushes
    double deadline_seconds = 60;
    // Why every wait is to end now; empty: it is not. Asked on the caller's thread; may be null.
    std::function<std::string()> give_up = {};
    // A checkpoint's markers have gone out after the push of this clock. On the worker's thread.
    std::function<void(std::uint64_t round, Clock cut)> cut = {};
  };
  // What an operation counts for that ends now.
  enum class Phase {
    kNone,
    kPlain,
    kWriting,  // a checkpoint is being written
    kWritten,  // the rest of a window with one
  };
  struct Part {
    Histogram latency;
    std::uint64_t operations = 0;
  };
  struct Measured {
    std::array<Part, 4> parts;  // by phase
    std::uint64_t pushes = 0;   // applied by all shards, since the worker began

    const Part& of(Phase phase) const { return parts[static_cast<std::size_t>(phase)]; }
  };

  // `plan`, `map` and `context` outlive the worker.
  LoadWorker(net::Context& context, const Plan& plan, const control::MapT& map,
             const Settings& settings);
  ~LoadWorker();
  LoadWorker(const LoadWorker&) = delete;
  LoadWorker& operator=(const LoadWorker&) = delete;

  // Connects, and waits until a first push has its verdicts: then every shard has its values, and
  // with `fills` its rows.
  Status Connect();
  // After Connect(), from any thread until Close(): where the shards are now.
  void SetMap(const control::MapT& map);
  // Works until Stop(); what ends counts for the phase of that time.
  void Start();
  void Measure(Phase phase) { phase_ = phase; }
  // Operations that have ended in any phase but kNone. Any thread.
  std::uint64_t finished() const { return finished_; }
  // As SetMap(): a checkpoint begins or comes to nothing.
  void BeginRound(std::uint64_t round);
  void AbortRound(std::uint64_t round);
  // Lets the open operations end, and waits for that.
  Result<Measured> Stop();
  // After Stop(): pushes that the shards have applied by now, of all workers, summed over shards.
  Result<std::uint64_t> CountApplied();
  // Ends the thread; nothing else may follow.
  void Close();

 private:
  struct Slot {
    std::uint64_t started_ns = 0;
  };

  void RunThread();
  Status SetUp();
  void OnAdvanced();
  void OnPulled(const worker::PullResult& result);
  void Fill();
  bool filling() const { return settings_.fills && filled_ < plan_.keys; }
  void FillTable();
  bool PushOne();
  void PullOne();
  void StartPull(worker::DataClient::Pull pull);
  void FinishIfIdle();
  void Finish(std::uint64_t started_ns);
  void Fail(const Error& error);
  template <typename T>
  Result<T> WaitFor(std::future<Result<T>>& future, const char* what);

  net::Context& context_;
  const Plan& plan_;
  const control::MapT& map_;
  const Settings settings_;
  std::atomic<Phase> phase_{Phase::kNone};  // atomic: set by the caller's thread while we work

  std::atomic<std::uint64_t> finished_{0};  // atomic: read by the caller's thread while we work

  // The worker's thread, but for Post and Stop.
  net::Loop loop_;
  net::Timer pause_{loop_};
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::shared_ptr<std::vector<Line>> memory_;  // of the ring; frames on their way hold it too
  std::vector<bool> written_;                  // by place in the ring: it holds its push
  std::unique_ptr<worker::RetentionRing> ring_;
  std::unique_ptr<worker::DataClient> client_;
  std::vector<worker::DataClient::Base> bases_;
  std::vector<Slot> slots_;  // by clock
  Clock acked_;
  std::uint64_t filled_ = 0;  // rows that were pushed to make them
  std::size_t turn_ = 0;      // of the next look-up
  bool connected_ = false;
  bool running_ = false;
  bool stopping_ = false;
  bool broken_ = false;
  bool pulling_ = false;
  bool counting_ = false;
  std::uint64_t pull_started_ns_ = 0;
  std::uint32_t steps_allowed_ = 0;  // kPushPull: pushes that a finished pull has made room for
  Measured measured_;
  struct Nothing {};
  std::promise<Result<Nothing>> ready_;
  std::promise<Result<Nothing>> stopped_;
  std::promise<Result<std::uint64_t>> counted_;
  bool stopped_told_ = false;
  bool counted_told_ = false;

  std::future<Result<Nothing>> ready_future_;
  std::future<Result<Nothing>> stopped_future_;
  std::future<Result<std::uint64_t>> counted_future_;
  std::thread thread_;
};

}  // namespace ps::bench
