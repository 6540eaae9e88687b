// The compute thread of a worker task: leases in, pushes out.
//
// Run() announces the task, takes the initial values from the servers and does
// what TaskSession::NextWork says until the job ends or a call fails. Weights
// change between steps only. See docs/architecture.md, "Pull pipeline", and
// task_session.h for the order of calls.
//
// Errors: kClosed is the session's end (agent gone, fenced, job stopped). The
// session has been told of any other; kInvalid would happen on every node.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/job/job_spec.h"
#include "common/job/learning_rate.h"
#include "common/layout/layout.h"
#include "common/result.h"
#include "ps-worker/engine/batches.h"
#include "ps-worker/engine/data/dataset.h"
#include "ps-worker/engine/data/permutation.h"
#include "ps-worker/engine/workload.h"
#include "ps-worker/task/task_session.h"

namespace ps::worker {

class Trainer {
 public:
  // All are borrowed and outlive the trainer; `test` may be null. `files_fingerprint` is of
  // the values that the workload has of files (FileValues).
  Trainer(const JobSpec& spec, TaskSession& session, Workload& workload, const Dataset& train,
          const Dataset* test, std::uint64_t files_fingerprint = 0);

  // The reason why the session ended the task, or the error.
  Result<std::string> Run();

 private:
  Result<std::string> RunLoop();
  Status Start();

  // A batch of a lease, with the rows that it reads. What is read ahead waits in one of these.
  struct StepBatch {
    control::LeaseT lease;
    std::uint64_t done = 0;  // of the lease, before this batch
    bool read = false;
    std::vector<std::uint64_t> records;
    BatchBuffer buffer;
    Batch batch;
    BatchRows rows;

    bool Is(const control::LeaseT& of, std::uint64_t at) const {
      return read && lease.id == of.id && lease.begin == of.begin && done == at;
    }
  };

  Status CheckLease(const control::LeaseT& lease) const;
  Status Train(const control::LeaseT& lease);
  Status ReadBatch(const control::LeaseT& lease, std::uint64_t done, StepBatch& step);
  // With rows: reads the batch that follows `step`, if it is known, and asks for its rows.
  Status ReadAhead(const StepBatch& step);
  Status Step(const control::LeaseT& lease, std::uint64_t& done);
  // Computes the batch of step_, or with local steps that and those after it in the lease; `done`
  // and `report` count them.
  Status Compute(const control::LeaseT& lease, std::uint64_t& done, StepReport& report);
  // One batch, with Meanwhile() while the device computes.
  Result<ComputeResult> ComputeOverlapped(double epoch);
  // What the outcome of one batch, in step_, means for the job: an error if this is to end, else
  // `report` has it.
  Status Judge(const ComputeResult& computed, std::uint64_t position, StepReport& report) const;
  // Which records step_ has, where they are and whose lease they are, for people.
  std::string RecordsText(std::uint64_t position) const;
  // Records of a push, and of a batch, in this lease.
  std::uint32_t PushRecords(const control::LeaseT& lease) const;
  std::uint64_t BatchRecords(const control::LeaseT& lease) const;
  // Pushes have so many records from now on.
  Status SetPushRecords(std::uint32_t records);
  Status EvaluateLive(std::uint64_t position);
  // Bulk-synchronous: pushes what is held back, dense, and waits for the verdicts; nothing if the
  // last push was such a flush.
  Status FlushOnce();
  // Pushes what is selected, if anything is, as a flush.
  Status PushSelected();
  // Pushes the residual, dense, until every shard has applied it; false if some of it came back as
  // too old each time.
  Result<bool> PushResidual();
  Status FlushForCut();
  Status Leave();
  Status Drain();
  Status EvaluateFinal(const EvaluateWork& work);

  // The clock that the slowest worker must have reached for the weights of the step after `clock`.
  Clock Needed(Clock clock) const;
  // `rows` is where the answer's rows go, null for none; it must stay until then.
  void RequestPull(Clock clock, BatchRows* rows);
  void Request(TaskSession::PullRequest request, BatchRows* rows);
  bool bulk_synchronous() const { return spec_.training.staleness == 0; }
  bool pull_fp32() const;
  bool pull_increments() const { return spec_.training.pull_values == "increments"; }
  Status WaitPull();
  Status Pull(bool fp32, bool snapshot, BatchRows* rows = nullptr);
  // False if the task does not hold of some shard what it should.
  Result<bool> Apply(const PullResult& pull);
  Result<bool> HashHolds(const PulledShard& shard);
  void ApplyRows(const PullResult& pull, BatchRows& rows) const;
  bool has_rows() const { return view_->row_table_count() > 0; }
  Status TakeReturned(bool* any = nullptr);
  // Writes what the workload has selected and hands it over.
  Status Push(std::uint32_t samples);
  // A step whose push is written while the device computes the next one.
  struct OpenPush {
    PushBuilder push;
    StepReport report;
    std::uint64_t lease_id = 0;
    std::uint64_t lease_done = 0;
    std::optional<LossScale> loss_scale;
  };
  void WriteSegments(PushBuilder& push);
  Status BeginOpenPush(const StepReport& report);
  // No effect without one. Everything but the next step begins with it.
  Status FinishOpenPush();
  // What the thread does while the device computes a step.
  Status Meanwhile();
  Status SetHold(bool on);
  // What disagrees; empty: nothing.
  Result<std::string> CheckDigests(const std::vector<std::string>& digests);

  const JobSpec& spec_;
  TaskSession& session_;
  Workload& workload_;
  const Dataset& train_;
  const Dataset* const test_;
  const std::uint64_t files_fingerprint_;

  TaskContext context_;
  std::optional<LayoutView> view_;
  Clock clock_;  // of the last push
  bool pull_pending_ = false;
  // With increments: whether they can be added to what the task holds. Not to fp32 values.
  bool holds_shadow_ = false;
  bool pull_is_fp32_ = false;       // the last request
  BatchRows* pull_rows_ = nullptr;  // of the last request
  bool held_ = false;
  // Whether the push of a step is written, and the pull for the next one applied, while the device
  // computes.
  const bool overlaps_;
  std::optional<OpenPush> open_push_;
  bool pull_applied_ = false;                        // that of the next step
  std::vector<PushBuilder::Base> bases_;             // of the step that is computed
  std::chrono::steady_clock::duration meanwhile_{};  // what the thread did besides, in this step
  std::optional<Clock> flushed_at_;                  // of the last flush
  // A push has as many, but at the end of an epoch. What waits to be pushed weighs as much as that.
  std::uint32_t push_records_;
  std::uint64_t lease_id_ = 0;  // of the last push
  std::uint64_t lease_done_ = 0;
  std::uint64_t steps_ = 0;
  std::uint64_t evaluations_ = 0;  // boundaries of evaluate_every_epochs that were passed
  bool evaluations_known_ = false;
  std::uint64_t compute_us_ = 0;  // not reported yet

  const LearningRate learning_rate_;  // of local steps
  Permutation order_;
  StepBatch step_;
  StepBatch ahead_;            // with rows: the batch after step_, if it is known
  std::vector<float> values_;  // of a block
  std::vector<std::uint16_t> halves_;
};

}  // namespace ps::worker
