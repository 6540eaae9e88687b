// The sparsifier of a gradient on a GPU: device pointer in, blocks of the wire out.
//
// It does what Sparsifier (core/sparsifier.h) does, with the same arithmetic: on equal gradients,
// options and seed both write the same bytes and keep the same residual, bit for bit (with
// clip_norm only nearly, as the norm's sum is in another order). Residual and momentum stay on the
// device, in fp32 also for gradients of 16 bits, so that nothing is lost; twice, as a step writes a
// second copy (see select_kernels.h): 8 bytes an element for each array.
//
// What leaves the device are positions of 2 bytes and coded values. The index streams are written
// here on the host, by the encoder of the CPU: its codes are of variable length, chosen for each
// block by sizes that must be known first, and at 1 % there are two bytes of positions to copy for
// a hundred elements. One push:
//
//     Step(gradient, ratio, stream)      enqueues all kernels and the copy, and returns
//     Collect()                          waits for them: the only synchronisation of a push, but
//                                        for one whose sample misled, which is selected anew
//     EncodeShard(...)                   for each shard, on the host, while the device goes on
//
// The gradient must stay as it is until Collect(). Between Step() and Collect() only the
// destructor may be called. Blocks that nobody takes are put back before the next step (without
// the momentum that was masked, and rounded once).
//
// One thread; the device that is current in Create() must be so in all calls. All work is on
// the caller's stream, so what was enqueued there before is done first.
//
// Not here yet: local steps and the outer momentum; codecs other than Fp32, Bf16 and Bits2.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "common/codec/block_codec.h"
#include "common/ids.h"
#include "common/layout/layout.h"
#include "common/result.h"
#include "ps-worker/core/selection.h"
#include "ps-worker/core/sparsifier.h"
#include "ps-worker/cuda/pull_kernels.h"
#include "ps-worker/cuda/runtime.h"
#include "ps-worker/cuda/select_kernels.h"

namespace ps::worker::cuda {

// Of a step: elements() values on the device, aligned to 16 bytes, which are multiplied by
// `unscale` (1 / the scale of the loss) before anything else.
struct DeviceGradient {
  const void* data = nullptr;
  GradientType type = GradientType::kFp32;
  float unscale = 1;
};

class DeviceSparsifier {
 public:
  // As Sparsifier's constructor. kInvalid if the options ask for what is not here, or if a selected
  // block but the last is not whole; kInternal if the device has no memory.
  static Result<std::unique_ptr<DeviceSparsifier>> Create(const LayoutView& layout,
                                                          std::uint32_t table,
                                                          std::uint64_t selected_elements,
                                                          const SparsifierOptions& options);
  // Waits for what it has enqueued.
  ~DeviceSparsifier();

  std::uint64_t elements() const { return elements_; }

  Status Step(const DeviceGradient& gradient, double ratio, cudaStream_t stream);
  // kInvalid if a value of the gradient is not finite (or beyond Sparsifier::kLimit): then nothing
  // is selected, and the state is as before the step.
  Status Collect();

  // Selects the whole residual, dense in fp32, which empties it; waits for it. Blocks that are zero
  // throughout are left out.
  Status Flush(cudaStream_t stream);

  // As Sparsifier's, after Collect() or Flush().
  std::size_t MaxBytes() const;
  std::size_t MaxShardBytes(ShardId shard) const;
  std::uint64_t entries() const;
  std::size_t EncodeShard(ShardId shard, std::byte* out, std::size_t capacity);

  // As Sparsifier's. They wait for the device.
  Status TakeBack(std::span<const std::byte> payload, float weight, cudaStream_t stream);
  Status ScaleResidual(float factor, cudaStream_t stream);
  Result<double> ResidualNorm(cudaStream_t stream);
  // Of what the shards were sent since the last Collect() or Flush().
  double SentNorm() const;

  // Copies of the state; empty if the rule has no momentum.
  Result<std::vector<float>> residual() const;
  Result<std::vector<float>> momentum() const;

  // Bytes that were copied from the device for the last push.
  std::size_t copied_bytes() const { return copied_bytes_; }

 private:
  enum class Mode : std::uint8_t { kNothing, kSparse, kDense, kFlushed };

  struct Selection {
    Mode mode = Mode::kNothing;
    std::uint32_t count = 0;
    std::uint32_t unit = 0;  // in packed_
  };

  // One array of the state, twice: the current copy is the one of generation_.
  struct StateArray {
    DeviceBuffer<float> copies[2];
  };

  DeviceSparsifier(const LayoutView& layout, const SparsifierOptions& options)
      : layout_(layout), options_(options) {}

  const Block& BlockAt(std::uint32_t at) const { return layout_.block(first_block_ + at); }
  wire::ValueCodec ValueCodecOf(std::uint32_t at) const;
  std::pair<std::uint32_t, std::uint32_t> BlocksOf(ShardId shard) const;
  std::size_t MaxBlockBytes(std::uint32_t at) const;
  State StateOf(int generation) const;
  bool Sparse(double ratio) const { return ratio < 1 && selected_blocks_ > 0; }
  // Everything of a step, for its goal; `anew`: exactly, as the sample misled.
  Status Enqueue(bool anew);
  // Room on both sides for what a step may pack.
  Status MakeRoom();
  Status Wait();
  void ReadSelections();
  // Blocks that nobody took; afterwards nothing is selected.
  Status PutBack(cudaStream_t stream);
  std::size_t EncodeBlock(std::uint32_t at, std::byte* out);
  Status AddEntries(const std::vector<codec::BlockView>& blocks, float weight, cudaStream_t stream);

  const LayoutView layout_;
  const SparsifierOptions options_;
  std::uint32_t first_block_ = 0;  // of the table
  std::uint32_t block_count_ = 0;
  std::uint32_t selected_blocks_ = 0;
  std::uint64_t elements_ = 0;
  std::uint64_t selected_elements_ = 0;

  // The state. A step reads those of generation_ and writes the others.
  StateArray residual_;
  StateArray momentum_;
  StateArray squares_;
  int generation_ = 0;
  std::uint64_t steps_ = 0;
  Surplus surplus_;

  // On the device, for a push.
  DeviceBuffer<Workspace> workspace_;
  DeviceBuffer<Slot> slots_;
  DeviceBuffer<std::uint32_t> equals_;
  DeviceBuffer<std::uint16_t> pool_positions_;
  DeviceBuffer<float> pool_values_;
  DeviceBuffer<DenseBlock> dense_blocks_;
  DeviceBuffer<std::byte> device_packed_;
  // What came from there: blocks of the selected region, then units.
  PinnedBuffer<std::byte> packed_;
  PinnedBuffer<Control> control_;

  // Of the step that is under way.
  bool pending_ = false;
  cudaStream_t stream_ = nullptr;
  StepArguments step_;
  bool sparse_ = false;
  SelectionGoal goal_{};
  std::vector<DenseBlock> dense_plan_;  // in dense_blocks_ are those of dense_from_ on
  std::uint32_t dense_from_ = ~0u;
  std::uint32_t dense_units_ = 0;  // of packed_, behind the table of blocks
  std::uint32_t units_ = 0;        // that the step may use
  std::size_t copied_bytes_ = 0;

  std::vector<Selection> selections_;  // per block of the table
  std::vector<float> flushed_;         // the residual as it was
  double sent_squares_ = 0;
  std::vector<float> scratch_;
};

}  // namespace ps::worker::cuda
