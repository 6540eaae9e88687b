// The workload of a model with tensors: Model computes, DenseParameters selects what is pushed of
// its gradients; rows go as they are.
//
// The tables of buffers are pulled into copies of their own; the model keeps the
// buffers that it computed itself while it trains, and evaluates with the pulled
// ones.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/codec/block_writer.h"
#include "common/job/job_spec.h"
#include "ps-worker/core/adaptive_ratio.h"
#include "ps-worker/core/row_push.h"
#include "ps-worker/engine/dense_parameters.h"
#include "ps-worker/engine/guarded_step.h"
#include "ps-worker/engine/workload.h"

namespace ps::worker {

class TensorWorkload final : public Workload {
 public:
  // `make_parameters` for a model that does not compute on the CPU.
  TensorWorkload(const JobSpec& spec, std::unique_ptr<Model> model,
                 Precision precision = Precision::kFp32, MakeDenseParameters make_parameters = {});

  const control::LayoutT& layout() const override { return model_->layout(); }
  std::span<float> table(std::uint32_t index) override;
  Status Prepare(const LayoutView& layout, WorkerId worker) override;
  Status Apply(const Block& block, const codec::BlockView& view, bool increments) override;
  Status EndPull() override;
  Status Read(const Block& block, std::span<float> values) const override;
  void AdoptBuffers() override;
  void FindRows(const Batch& batch, BatchRows& rows) const override;
  Result<ComputeResult> Compute(const Batch& batch, double epoch) override {
    return Compute(batch, epoch, nullptr);
  }
  Result<ComputeResult> Compute(const Batch& batch, double epoch,
                                const std::function<void()>& meanwhile) override {
    return Compute(batch, epoch, &meanwhile);
  }
  bool computes_apart() const override { return model_->device().gpu; }
  Result<ComputeResult> ComputeLocal(const Batch& batch, const LocalStep& step) override;
  Status SelectLocal(double epoch) override;
  Precision precision() const override { return step_.precision(); }
  std::optional<LossScale> loss_scale() const override { return step_.loss_scale(); }
  void RestoreLossScale(const LossScale& state) override { step_.RestoreLossScale(state); }
  Status Observe(std::uint32_t pushes_without_verdict) override;
  Status SelectAll() override;
  void SelectBuffers() override;
  std::size_t max_push_bytes() const override;
  std::uint64_t selected_entries() const override;
  std::size_t WriteShard(ShardId shard, std::span<std::byte> out) override;
  Status TakeBack(std::span<const std::byte> payload, float weight) override;
  Status ScaleResidual(float factor) override;
  Result<double> ResidualNorm() const override;
  Result<EvaluationSums> Evaluate(const Dataset* data, const PullRows& pull) override;

 private:
  Result<ComputeResult> Compute(const Batch& batch, double epoch,
                                const std::function<void()>* meanwhile);
  std::string RowGradients(const Batch& batch, std::vector<TableRows>& gradients);
  std::size_t WriteBuffers(ShardId shard, std::span<std::byte> out) const;
  // The values of one table of buffers, by name; empty if the model has none.
  std::span<float> Pulled(const char* name);
  bool local_steps() const { return spec_.training.local_steps > 1; }
  // Where the job has no error feedback.
  Status ForgetWhatWasLeftOut();
  double RatioAt(double epoch) const;
  bool IsParameters(std::uint32_t block) const { return view_->block(block).table == 0; }

  const JobSpec spec_;
  const std::unique_ptr<Model> model_;
  GuardedStep step_;
  std::optional<LayoutView> view_;
  const MakeDenseParameters make_parameters_;
  std::vector<float> initial_;  // values of the parameters; until Prepare()
  std::unique_ptr<DenseParameters> parameters_;
  AdaptiveRatio ratio_;
  std::unique_ptr<RowPush> rows_;
  std::vector<std::vector<float>> pulled_;  // by table; empty for table 0: parameters_ has them
  codec::BlockWriter writer_;
  std::vector<std::vector<float>> own_;  // by table: buffers to push
  bool buffers_selected_ = false;
};

}  // namespace ps::worker
