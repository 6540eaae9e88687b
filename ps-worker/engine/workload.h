// What a task trains: a model with its sparsifier, or the ledger. The trainer
// drives it and moves what it writes and reads between the shards.
//
// Values that pulls bring go through Apply(); those of table 0 are the weights that
// Compute uses, and may be on a GPU. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "common/codec/block_codec.h"
#include "common/ids.h"
#include "common/layout/layout.h"
#include "common/messages/control.h"
#include "common/result.h"
#include "ps-worker/core/loss_scaler.h"
#include "ps-worker/core/precision.h"
#include "ps-worker/engine/data/dataset.h"
#include "ps-worker/engine/model.h"

namespace ps::worker {

struct ComputeResult {
  double loss = 0;
  // Not empty: loss or gradient is not finite, which this says; the step must push nothing.
  std::string nonfinite;
  // It is the loss scale that made it so; the scale is smaller now.
  bool overflow = false;
  // Not empty: loss or gradient norm was implausible, which this says. Computed again in fp32 it
  // was plausible if `redone`; else the step must push nothing.
  std::string implausible;
  bool redone = false;

  bool kept() const { return nonfinite.empty() && (implausible.empty() || redone); }
};

class Workload {
 public:
  virtual ~Workload() = default;

  virtual const control::LayoutT& layout() const = 0;

  // The initial values of a table, one flat span, to read and to change until Prepare().
  virtual std::span<float> table(std::uint32_t index) = 0;
  // Call once, before what follows. An error is that of a device.
  virtual Status Prepare(const LayoutView& layout, WorkerId worker) = 0;

  // What a pull brought of a block, for which `view` was verified; after the last block of a pull
  // EndPull(), before anything else. An error is that of a device.
  virtual Status Apply(const Block& block, const codec::BlockView& view, bool increments) = 0;
  virtual Status EndPull() { return Ok(); }
  // Copies the values of a block, as many as it has elements.
  virtual Status Read(const Block& block, std::span<float> values) const = 0;

  // Takes what pulls wrote into the tables of buffers as the task's own buffers.
  virtual void AdoptBuffers() = 0;

  // The rows that a step on this batch reads: keys and index are set, values are for the caller to
  // pull. Nothing where the layout has no tables of rows.
  virtual void FindRows(const Batch& batch, BatchRows& rows) const {
    static_cast<void>(batch);
    rows = BatchRows();
  }
  // One step on the current weights and the batch's rows: selects what to push. `epoch` counts the
  // job's, with a fraction. An error means that model and data do not fit together, and is the same
  // on every task.
  virtual Result<ComputeResult> Compute(const Batch& batch, double epoch) = 0;
  // Whether a device computes while the calling thread could do something else.
  virtual bool computes_apart() const { return false; }
  // Compute(), and `meanwhile` once while the device is at it, on this thread: it may write what
  // was selected before (WriteShard), and bring what a pull says (Apply, EndPull), which is then of
  // the next step. Not with steps that may be computed again.
  virtual Result<ComputeResult> Compute(const Batch& batch, double epoch,
                                        const std::function<void()>& meanwhile) {
    auto result = Compute(batch, epoch);
    meanwhile();
    return result;
  }
  // One of several steps that are pushed together, on weights of this task's own, which begin with
  // the current ones and follow its steps; then SelectLocal() says that no other follows. `weight`
  // is its part of the push, `rate` what the servers will multiply the step with.
  struct LocalStep {
    bool first = false;
    float weight = 1;
    float rate = 0;
  };
  virtual Result<ComputeResult> ComputeLocal(const Batch& batch, const LocalStep& step) {
    static_cast<void>(batch);
    static_cast<void>(step);
    return Error{ErrorCode::kInvalid, "this model makes no local steps"};
  }
  virtual Status SelectLocal(double epoch) {
    static_cast<void>(epoch);
    return Ok();
  }

  // In which numbers steps are computed.
  virtual Precision precision() const { return Precision::kFp32; }
  // Of the loss, after the last step; nothing where it is not scaled.
  virtual std::optional<LossScale> loss_scale() const { return std::nullopt; }
  // Goes on with that of another task or of a checkpoint. No effect where the loss is not scaled.
  virtual void RestoreLossScale(const LossScale& state) { static_cast<void>(state); }

  // How many pushes have no verdict yet: call it before each step.
  virtual Status Observe(std::uint32_t pushes_without_verdict) {
    static_cast<void>(pushes_without_verdict);
    return Ok();
  }
  // Selects everything that was not pushed yet.
  virtual Status SelectAll() = 0;
  // Adds the task's own buffers to what the next push holds.
  virtual void SelectBuffers() = 0;

  // What is selected, shard by shard: bound for all of it, and the bytes written for one shard
  // (0: nothing). Each shard once.
  virtual std::size_t max_push_bytes() const = 0;
  virtual std::uint64_t selected_entries() const = 0;
  virtual std::size_t WriteShard(ShardId shard, std::span<std::byte> out) = 0;

  // A segment that came back as too old goes into a later push, `weight` times.
  virtual Status TakeBack(std::span<const std::byte> payload, float weight) = 0;
  // What waits to be pushed is multiplied: from now on pushes have another number of samples, by
  // which the servers weigh them.
  virtual Status ScaleResidual(float factor) = 0;
  virtual Result<double> ResidualNorm() const = 0;

  // Sets the values of the rows whose keys it is given to those of now. It may bring
  // other values as well.
  using PullRows = std::function<Status(BatchRows&)>;
  // Metric and loss of what pulls brought, over all records of `data` (null: the job has none),
  // with the rows that `pull` gets piece by piece. Without records where there is nothing to
  // evaluate.
  virtual Result<EvaluationSums> Evaluate(const Dataset* data, const PullRows& pull) = 0;
};

}  // namespace ps::worker
