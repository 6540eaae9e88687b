// Parameters of a model that computes on the CPU: see dense_parameters.h.
#pragma once

#include <vector>

#include "common/codec/block_writer.h"
#include "ps-worker/engine/dense_parameters.h"

namespace ps::worker {

class HostParameters final : public DenseParameters {
 public:
  // With `local_steps` the values that pulls bring are kept beside the model's.
  HostParameters(Model& model, const LayoutView& layout, const SparsifierOptions& options,
                 bool local_steps);

  Status Apply(const Block& block, const codec::BlockView& view, bool increments) override;
  Status EndPull() override { return Ok(); }
  Status Read(const Block& block, std::span<float> values) const override;
  void UndoLocalSteps() override;

  Status Step(double ratio) override;
  Status AddLocalStep(float weight, float rate) override;
  Status Select(double ratio) override;
  Status Flush() override;

  std::size_t MaxBytes() const override { return sparsifier_.MaxBytes(); }
  std::uint64_t entries() const override { return sparsifier_.entries(); }
  std::size_t EncodeShard(ShardId shard, std::byte* out, std::size_t capacity) override {
    return sparsifier_.EncodeShard(shard, out, capacity);
  }

  Status TakeBack(std::span<const std::byte> payload, float weight) override {
    return sparsifier_.TakeBack(payload, weight);
  }
  Status ScaleResidual(float factor) override;
  Result<double> ResidualNorm() const override { return sparsifier_.ResidualNorm(); }
  double SentNorm() const override { return sparsifier_.SentNorm(); }

 private:
  std::span<float> Values(const Block& block);

  Model& model_;
  Sparsifier sparsifier_;
  std::vector<float> pulled_;  // with local steps
  codec::BlockWriter writer_;
};

}  // namespace ps::worker
