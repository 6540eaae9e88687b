// The communication side of a worker task, as its compute thread sees it.
//
// A TaskSession owns the communication thread: the socket pair to the agent,
// the DEALERs to the lanes, the push stream and the retention ring. The compute
// thread calls the methods below, and only it. Each blocks at most until its
// deadline, the end of the task or a fatal error, and counts the time by name
// (data, pull, push). A fatal error (agent gone, fenced, job stopped) makes all
// later calls return kClosed with the reason.
//
// The order of calls in a step k (docs/architecture.md, "Pull pipeline"):
//   work = NextWork()                      -> a lease to train batch by batch, or what else to do
//   pull = WaitPull(); apply it to the weights
//   RequestPull()                          -> for step k + 1; travels while k computes
//   forward, backward, sparsify
//   push = BeginPush(bytes); write the segments; CommitPush(push, ...)
// Where a device computes (docs/architecture.md), the thread does other things while it does: once
// the device has what it needs for step k, the push of step k - 1 is written and committed, and the
// pull for step k + 1 applied if it is there. BeginPush() of step k comes after it, with the bases
// from before.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "common/codec/block_codec.h"
#include "common/codec/row_codec.h"
#include "common/ids.h"
#include "common/layout/layout.h"
#include "common/messages/control.h"
#include "common/messages/wire.h"
#include "common/net/context.h"
#include "common/result.h"
#include "ps-worker/core/loss_scaler.h"

namespace ps::worker {

struct TaskOptions {
  int control_fd = 3;     // socket pair to the agent
  std::string ring_path;  // file of the retention ring (the agent made the directory)
  std::uint64_t ring_bytes = std::uint64_t{1} << 30;
  std::uint32_t window = 4;  // sent and not acknowledged steps on a lane
  std::chrono::milliseconds resend_timeout{2000};
  // Staleness 0: others wait for this task while it has records to train, however idle it is.
  bool bulk_synchronous = false;
  // A checkpoint's cut comes after the residual was pushed (CutWork), where that can be.
  bool flush_residuals = false;
  // A shard that finds a push not finite ends the job; else it is an event.
  bool stop_on_nonfinite = false;
  net::SecurityOptions security;
};

// What the coordinator decided for this task; constant afterwards, except where noted.
struct TaskContext {
  control::TaskStartT start;  // map and live set as of the start
  WorkerId worker;
  Incarnation incarnation;
  Clock first_clock;  // the first push has first_clock + 1
  std::uint32_t shards = 0;
};

struct TrainLease {
  control::LeaseT lease;
};  // train records [begin + done, end)
// Bulk-synchronous: no record is left for this task. Its residual is pushed now, at a clock that
// does not depend on when the others end; once, then nobody waits for its clock any more.
struct FlushWork {};
// A checkpoint waits for the residual: push it, then Flushed().
struct CutWork {};
struct DrainWork {};  // flush the residual, then Drained()
// The job goes on without this task: push the residual, then end the process with success.
struct LeaveWork {
  std::string reason;
};
struct EvaluateWork {
  std::uint64_t round;
  std::vector<std::string> digests;
};
struct StopWork {
  std::string reason;
};  // end the process with success
using Work =
    std::variant<TrainLease, FlushWork, CutWork, DrainWork, EvaluateWork, LeaveWork, StopWork>;

// One shard's part of a pull. Views into the received message, which `PullResult` keeps alive.
struct PulledShard {
  ShardId shard;
  // Unchanged: no blocks. Increments: blocks that are not dense are to be added, in their order
  // (codec::AddIncrement), the others are values.
  wire::PullContent content;  // never IncrementsAndHash: see `hash`
  std::uint64_t version;
  std::uint32_t lineage;
  std::vector<codec::BlockView> blocks;  // validated; block numbers are the job's
  // Of what the task holds of the shard's parameters afterwards (codec::HeldHash).
  std::optional<std::uint64_t> hash = std::nullopt;
  // Values of the rows that were asked of this shard, a part for each table that has some.
  std::vector<codec::RowsView> rows;
};
// The keys of rows that a pull asks for: increasing strictly, by table.
using RowKeys = std::vector<std::vector<std::uint64_t>>;

struct PullResult {
  std::vector<PulledShard> shards;
  std::vector<std::shared_ptr<void>> frames;
};

// Space in the retention ring for one step. Segments are written one after the other.
class PushBuilder {
 public:
  struct Part {
    ShardId shard;
    std::uint32_t offset;
    std::uint32_t bytes;
  };

  // The state of a shard that a push was computed with.
  struct Base {
    std::uint64_t version = 0;
    std::uint32_t lineage = 0;
  };

  PushBuilder() = default;
  // Memory that the session owns until CommitPush; the base of each shard.
  PushBuilder(std::span<std::byte> memory, std::vector<Base> bases)
      : begin_(memory.data()), capacity_(memory.size()), bases_(std::move(bases)) {}

  // Unused rest of the reserved space. The caller writes a segment's blocks here, then Add()s it.
  std::span<std::byte> space();
  // Takes the first `bytes` of space() as the segment of `shard`. Each shard at most once.
  void Add(ShardId shard, std::size_t bytes);

  // What was added, in that order.
  const std::vector<Part>& parts() const { return parts_; }
  const Base& base(ShardId shard) const { return bases_[shard.value()]; }
  // Another one for each shard than that of the newest pull.
  void set_bases(std::vector<Base> bases) { bases_ = std::move(bases); }

 private:
  friend class TaskSession;
  friend class TaskSessionImpl;
  std::byte* begin_ = nullptr;
  std::size_t capacity_ = 0;
  std::size_t used_ = 0;
  std::vector<Part> parts_;
  std::vector<Base> bases_;
};

// A segment that came back as TooOld; its entries belong into the residual again.
struct ReturnedSegment {
  Clock clock;
  ShardId shard;
  std::vector<std::byte> payload;  // as it was pushed
  std::uint32_t samples = 0;       // of that push
};

struct StepReport {
  double loss = 0;
  std::uint32_t samples = 0;
  bool skipped = false;         // none of its batches counts: an empty push was made
  std::uint32_t nonfinite = 0;  // batches that were not finite
  std::uint64_t position = 0;   // of the newest of them
  bool flush = false;           // not a step: only `entries` counts
  double residual_norm = -1;    // < 0: not measured this time
  std::uint64_t entries = 0;    // values pushed
  std::uint64_t compute_ms = 0;
  std::uint32_t overflows = 0;  // batches that were not counted as the scaled gradient overflowed
  // Batches whose loss or gradient norm was implausible, by what became of them; and the newest of
  // each: why, and which records.
  std::uint32_t redone = 0;   // plausible when computed again in fp32
  std::uint32_t dropped = 0;  // not counted
  std::string last_redone;
  std::string last_dropped;
};

class TaskSession {
 public:
  virtual ~TaskSession() = default;

  // Starts the communication thread on the inherited socket.
  static Result<std::unique_ptr<TaskSession>> Open(const TaskOptions& options);

  // Announces the loaded model and data, then waits for the coordinator's TaskStart.
  virtual Result<TaskContext> Ready(const control::TaskReadyT& ready) = 0;

  // Initial values of a shard (all its blocks, fp32), asked for on the communication thread while a
  // shard is blank. Must be the same on every task of the job; set it before the first pull.
  virtual void SetInitialValues(std::function<void(ShardId, std::span<float>)> fill) = 0;

  virtual Result<Work> NextWork() = 0;
  // CutWork is due, also within a lease.
  virtual bool cut_wanted() const = 0;
  // LeaveWork is due, also within a lease, which others go on with.
  virtual bool leave_wanted() const = 0;
  // The residual is pushed, all of it if `whole`, and nothing was since: the checkpoint's cut is
  // here. Does nothing if the checkpoint did not wait so long.
  virtual void Flushed(bool whole) = 0;
  // The lease that NextWork will return if nothing else comes up; nothing while none is granted.
  virtual std::optional<control::LeaseT> NextLease() const = 0;

  // Asks for what changed in the shards of the given tables since they were last returned.
  // `needed` is the clock the slowest live worker must have reached (0: no wait).
  struct PullRequest {
    Clock needed;
    bool fp32 = false;
    bool snapshot = false;
    std::vector<ShardId> shards;  // empty: all
    // Rows that are wanted as well, with all shards only. Null: none.
    std::shared_ptr<const RowKeys> rows;
  };
  virtual void RequestPull(const PullRequest& request) = 0;
  // The answer to the last RequestPull, complete over all shards.
  virtual Result<PullResult> WaitPull() = 0;

  // Whether WaitPull() would return at once.
  virtual bool PullIsThere() = 0;
  // What WaitPull() has returned so far, by shard.
  virtual std::vector<PushBuilder::Base> Bases() const = 0;

  // Reserves ring space for one step; waits while the ring or the window is full. The push is of
  // the values that the last WaitPull() before it returned, unless it is said otherwise
  // (set_bases).
  virtual Result<PushBuilder> BeginPush(std::size_t max_bytes) = 0;
  // Hands the step over. `lease_done` counts the records of `lease_id` that are trained with it.
  // Returns the clock of the push. An empty builder is a skipped step, which counts as well.
  virtual Result<Clock> CommitPush(PushBuilder push, std::uint32_t samples, std::uint64_t lease_id,
                                   std::uint64_t lease_done) = 0;
  // The state of the loss scale after the step that the next CommitPush hands over; checkpoints
  // have it with that push. Not called where nothing is scaled.
  virtual void SetLossScale(const LossScale& state) { static_cast<void>(state); }
  // In which numbers the task computes, for people.
  virtual void SetPrecision(const std::string& name) { static_cast<void>(name); }
  virtual Clock clock() const = 0;  // of the last committed push
  // Pushes on which some shard has not given its verdict, as far as is known.
  virtual std::uint32_t pushes_without_verdict() const = 0;
  // TooOld segments since the last call.
  virtual std::vector<ReturnedSegment> TakeReturned() = 0;
  // Waits until every push has a verdict on every shard.
  virtual Status WaitVerdicts() = 0;

  // Takes this task's clock out of the staleness rule (evaluation, no data), or back in.
  virtual Status Hold(bool on) = 0;

  virtual void Report(const StepReport& report) = 0;
  virtual void ReportMetric(double metric, std::uint64_t samples_trained) = 0;
  virtual void Drained() = 0;
  virtual void Evaluated(const control::EvaluatedT& result) = 0;
  // Why the job wants this task to end; empty while it does not. Then waits end with kClosed, which
  // is no failure.
  virtual std::string stop_reason() const { return {}; }
  // Tells the coordinator why this task ends; `permanent` if it would fail anywhere.
  virtual void Failed(bool permanent, const std::string& message) = 0;
};

}  // namespace ps::worker
