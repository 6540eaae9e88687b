// One model on several devices: each has a replica of it, and computes its part of every batch.
//
// What the trainer sees is the first replica, whose parameters pulls change and whose gradients
// pushes are selected from. A step brings its parameters to the others, has all compute at once,
// and sums the gradients up into its own, so that a node pulls and pushes once however many devices
// it has (synchronous data parallelism within the node).
//
// A batch is cut into contiguous parts, of equal sizes but for one record; each is weighed by its
// records, so that the sum is the gradient of the mean over the whole batch. Batch norm takes the
// statistics of a part, and of its buffers those of the first replica count, as PyTorch's
// DistributedDataParallel does without SyncBatchNorm. Of embedding tables each device gets all rows
// of the batch.
//
// One thread calls; as many compute as there are devices.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/result.h"
#include "ps-worker/engine/collective.h"
#include "ps-worker/engine/model.h"

namespace ps::worker {

class ReplicatedModel final : public Model {
 public:
  // `replicas`: at least two, made alike; they and `collective` have the same ranks.
  ReplicatedModel(std::vector<std::unique_ptr<Model>> replicas,
                  std::unique_ptr<Collective> collective);
  ~ReplicatedModel() override;

  ComputeDevice device() const override { return first().device(); }
  std::span<float> parameters() override { return first().parameters(); }
  std::span<const float> gradients() const override { return gradients_; }
  void ReadParameters(std::span<float> values) override { first().ReadParameters(values); }
  void WriteParameters(std::span<const float> values) override { first().WriteParameters(values); }
  double GradientSquares() const override { return first().GradientSquares(); }
  std::span<const float> row_gradients(std::uint32_t table) const override;

  void ReadBuffers(std::span<float> buffers, std::span<float> counters) const override {
    first().ReadBuffers(buffers, counters);
  }
  void WriteBuffers(std::span<const float> buffers, std::span<const float> counters) override;

  using Model::Step;
  Result<double> Step(const Batch& batch, const StepMode& mode) override;
  // On the first device alone.
  Result<EvaluationSums> Evaluate(const Batch& batch) override { return first().Evaluate(batch); }

 private:
  class Threads;

  Model& first() const { return *replicas_.front(); }
  void SumRowGradients(std::size_t tables);

  const std::vector<std::unique_ptr<Model>> replicas_;
  const std::unique_ptr<Collective> collective_;
  std::span<float> gradients_;  // of the first
  std::vector<std::vector<float>> row_gradients_;
  std::unique_ptr<Threads> threads_;
};

}  // namespace ps::worker
