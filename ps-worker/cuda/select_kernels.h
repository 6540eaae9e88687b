// The kernels of a push: from a gradient on the device to the bytes of its largest entries.
//
// The selected region (see common/layout/layout.h) is taken in tiles of 4,096 elements, one for
// each CTA of 256 threads; every warp has 512 of them one after the other. All blocks of it but the
// last have 16 whole tiles. The steps of a push:
//
//   Norm      sum of squares -> clip factor                        only to clip
//   Rank      histograms of a sample -> threshold                  three levels of 11, 10, 10 bits
//   Select    g, v, u -> v', u'; entries at the threshold or above into the slots of their tiles
//   Finish    the slots of a block -> its positions and coded values, packed
//   Dense     the blocks that are sent whole
//
// Nothing is changed in place: Select and Dense read one copy of the state and write another, so a
// step whose gradient turns out not to be finite, or whose sample misled, never happened, at no
// cost in bytes. A tile reserves its slot in one pool with one atomic addition, a block its bytes
// with another: there is no scan over the tiles, and no atomic per element. Where the slots lie
// depends on the order of the tiles, what is in them does not.
//
// Bytes that Select must move for each element: the gradient (4, or 2 with 16 bits) and each array
// of the state twice (8): 12 or 10 with plain error feedback, 20 or 18 with momentum. Source:
// Deep Gradient Compression (Lin et al., 2018) for the rules, and block-local slots instead of a
// global compaction.
//
// All pointers are to the device's memory; arrays of the state and the gradient are aligned to 16
// bytes. Every function enqueues on `stream` and returns; an error is that of a launch.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "common/messages/wire.h"
#include "ps-worker/core/accumulation.h"
#include "ps-worker/core/selection.h"
#include "ps-worker/cuda/arithmetic.h"

namespace ps::worker::cuda {

inline constexpr std::uint32_t kTile = 4096;
inline constexpr std::uint32_t kTilesOfBlock = wire::kBlockElements / kTile;
inline constexpr std::uint32_t kPackedUnit = 16;  // bytes: what is packed begins at a multiple

enum class GradientType : std::uint8_t { kFp32, kBf16, kFp16 };

// What the kernels of a push tell each other and the host. Zero before a push.
struct Control {
  unsigned long long beyond;  // elements less the first that is not finite; 0: all are
  std::uint32_t selected;     // entries of the selected region
  std::uint32_t packed;       // units used for them
  float clip;                 // what the gradient is multiplied by, besides `unscale`
  std::uint32_t prefix;       // Rank: of the magnitude, as far as it is known
  std::uint32_t rank;         // Rank: among those with this prefix; 0: there is none
  std::uint32_t threshold;    // magnitude as bits; 0: all that is not zero
  std::uint32_t equals;       // entries of just this magnitude that belong to the largest
  std::uint32_t tickets[4];   // CTAs that are done: Rank's levels, Norm
};

struct Workspace {
  static constexpr std::uint32_t kLevels = 3;
  static constexpr std::uint32_t kClasses = 2048;
  static constexpr std::uint32_t kPartials = 1024;

  Control control;
  std::uint32_t classes[kLevels][kClasses];
  double partials[kPartials];
};

// What a rule keeps; u and s are null where it has none.
struct State {
  float* v = nullptr;
  float* u = nullptr;
  float* s = nullptr;
};

struct StepArguments {
  AccumulationRule rule = AccumulationRule::kPlain;
  Coefficients with;
  const void* gradient = nullptr;
  GradientType type = GradientType::kFp32;
  float unscale = 1;
  bool clips = false;                   // Control::clip is known
  std::uint64_t elements = 0;           // of the whole gradient
  std::uint64_t selected_elements = 0;  // those in front of it that are sparsified
  State before;
  State after;
  Workspace* workspace = nullptr;
};

// Entries of a tile: [first, first + count) of the pool.
struct Slot {
  std::uint32_t first;
  std::uint32_t count;
};

// Where Select puts entries and Finish finds them. `capacity` entries; if there are more,
// Control::selected says so and slots may be missing.
struct Pool {
  std::uint16_t* positions = nullptr;  // in their block
  float* values = nullptr;
  std::uint32_t capacity = 0;
  Slot* slots = nullptr;            // one for each tile
  std::uint32_t* equals = nullptr;  // of tiles, for ties
};

// A block in what is packed: its positions (2 bytes each, none if it is dense) and, from the next
// unit on, its values as codec::WriteValues() writes them.
struct PackedBlock {
  std::uint32_t count;
  std::uint32_t unit;
};

struct Packed {
  PackedBlock* blocks = nullptr;  // of the selected region
  std::byte* bytes = nullptr;
  std::uint32_t first_unit = 0;  // of Finish
  std::uint32_t units = 0;       // that there are
};

struct DenseBlock {
  std::uint64_t begin;
  std::uint32_t elements;
  std::uint32_t unit;
  wire::ValueCodec codec;
};

std::uint32_t TilesOf(std::uint64_t elements);

// control.clip: what brings the norm of the unscaled gradient down to clip_norm.
cudaError_t LaunchNorm(const StepArguments& step, double clip_norm, cudaStream_t stream);

// control.threshold and control.equals: the `rank`-th largest magnitude after the step, of the
// sample or (null) of all selected elements.
cudaError_t LaunchRank(const StepArguments& step, const Sample* sample, std::uint32_t rank,
                       cudaStream_t stream);

// Accumulates and selects: what is not below control.threshold, or with `ties` exactly those of the
// rank, of equals the first ones. What fp32 and bf16 send leaves v'; momenta are masked.
cudaError_t LaunchSelect(const StepArguments& step, const Pool& pool, wire::ValueCodec codec,
                         bool ties, cudaStream_t stream);

// Codes and packs what was selected. What 2-bit codes send leaves v' here.
cudaError_t LaunchFinish(const StepArguments& step, const Pool& pool, const Packed& packed,
                         wire::ValueCodec codec, cudaStream_t stream);

// Accumulates, codes and packs `count` blocks whole.
cudaError_t LaunchDense(const StepArguments& step, const DenseBlock* blocks, std::uint32_t count,
                        const Packed& packed, cudaStream_t stream);

// values *= factor, within bounds.
cudaError_t LaunchScale(float* values, std::uint64_t count, float factor, cudaStream_t stream);

// workspace->partials: sums of squares, which the caller adds up; zero before.
cudaError_t LaunchSquares(const float* values, std::uint64_t count, Workspace* workspace,
                          cudaStream_t stream);

}  // namespace ps::worker::cuda
