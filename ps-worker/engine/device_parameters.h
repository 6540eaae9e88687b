// Parameters of a model that computes on a GPU: see dense_parameters.h. Values, residual and
// momenta stay on the device; what leaves it are the positions and coded values of a push.
//
// Not here yet: local steps. The device that is current when they are made must be so in all calls.
#pragma once

#include "ps-worker/cuda/device_pull.h"
#include "ps-worker/cuda/device_sparsifier.h"
#include "ps-worker/engine/dense_parameters.h"

namespace ps::worker {

class DeviceParameters final : public DenseParameters {
 public:
  // A MakeDenseParameters.
  static Result<std::unique_ptr<DenseParameters>> Create(Model& model, const LayoutView& layout,
                                                         const SparsifierOptions& options);

  Status Apply(const Block& block, const codec::BlockView& view, bool increments) override {
    return pull_.Apply(block, view, increments);
  }
  Status EndPull() override { return pull_.End(); }
  Status Read(const Block& block, std::span<float> values) const override;

  Status Step(double ratio) override;
  Status AddLocalStep(float weight, float rate) override;
  Status Select(double ratio) override;
  Status Flush() override { return sparsifier_->Flush(kStream); }

  std::size_t MaxBytes() const override { return sparsifier_->MaxBytes(); }
  std::uint64_t entries() const override { return sparsifier_->entries(); }
  std::size_t EncodeShard(ShardId shard, std::byte* out, std::size_t capacity) override {
    return sparsifier_->EncodeShard(shard, out, capacity);
  }

  Status TakeBack(std::span<const std::byte> payload, float weight) override {
    return sparsifier_->TakeBack(payload, weight, kStream);
  }
  Status ScaleResidual(float factor) override {
    return sparsifier_->ScaleResidual(factor, kStream);
  }
  Result<double> ResidualNorm() const override { return sparsifier_->ResidualNorm(kStream); }
  double SentNorm() const override { return sparsifier_->SentNorm(); }

 private:
  // The default one, which is the model's (engine/model.h).
  static constexpr cudaStream_t kStream = nullptr;

  DeviceParameters(Model& model, std::unique_ptr<cuda::DeviceSparsifier> sparsifier);

  Model& model_;
  cuda::DevicePull pull_;
  const std::unique_ptr<cuda::DeviceSparsifier> sparsifier_;
};

}  // namespace ps::worker
