// The table `parameters` of a model while it trains: its values, and what of its gradients is
// pushed. They are where the model computes: on the host (host_parameters.h) or on a GPU
// (device_parameters.h).
//
// A step: what pulls bring through Apply() and EndPull(), the model's step, Step(); or with local
// steps AddLocalStep() after each of the model's steps and then Select(). Then EncodeShard() for
// each shard. What the functions of pushes say is what Sparsifier's of these names say
// (core/sparsifier.h).
//
// One thread. kInvalid is for who trains, such as a gradient that is not finite; any other error
// is of the device, and ends the task.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "common/codec/block_codec.h"
#include "common/ids.h"
#include "common/layout/layout.h"
#include "common/result.h"
#include "ps-worker/core/sparsifier.h"
#include "ps-worker/engine/model.h"

namespace ps::worker {

class DenseParameters {
 public:
  virtual ~DenseParameters() = default;

  // ---- values; blocks are of the table

  virtual Status Apply(const Block& block, const codec::BlockView& view, bool increments) = 0;
  virtual Status EndPull() = 0;
  virtual Status Read(const Block& block, std::span<float> values) const = 0;
  // The model has the values that pulls brought, and no longer those of its local steps.
  virtual void UndoLocalSteps() {}

  // ---- of the model's gradients

  virtual Status Step(double ratio) = 0;
  // Not on a GPU: the job file is checked for that.
  virtual Status AddLocalStep(float weight, float rate) = 0;
  virtual Status Select(double ratio) = 0;
  virtual Status Flush() = 0;

  virtual std::size_t MaxBytes() const = 0;
  virtual std::uint64_t entries() const = 0;
  virtual std::size_t EncodeShard(ShardId shard, std::byte* out, std::size_t capacity) = 0;

  virtual Status TakeBack(std::span<const std::byte> payload, float weight) = 0;
  virtual Status ScaleResidual(float factor) = 0;
  virtual Result<double> ResidualNorm() const = 0;
  virtual double SentNorm() const = 0;
};

// Makes those of a model, which is borrowed.
using MakeDenseParameters = std::function<Result<std::unique_ptr<DenseParameters>>(
    Model& model, const LayoutView& layout, const SparsifierOptions& options)>;

}  // namespace ps::worker
