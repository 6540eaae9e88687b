#include <algorithm>
#include <bit>
#include <cfloat>
#include <utility>

#include "common/codec/value_codec.h"
#include "ps-worker/cuda/select_kernels.h"

namespace ps::worker::cuda {
namespace {

constexpr std::uint32_t kThreads = 256;
constexpr std::uint32_t kLanes = 32;
constexpr std::uint32_t kWarps = kThreads / kLanes;
constexpr std::uint32_t kAllLanes = 0xffffffffu;
constexpr int kVectors = 4;  // of each array that a thread loads before it uses the first
constexpr int kWide = 4;     // floats of a vector
constexpr std::uint32_t kWarpElements = kTile / kWarps;
constexpr std::uint32_t kVectorElements = kLanes * kWide;  // that a warp loads at once
static_assert(kWarpElements == kVectors * kVectorElements);
constexpr std::uint32_t kFiniteMost = std::bit_cast<std::uint32_t>(kAccumulatedLimit);

__device__ std::uint32_t Lane() { return threadIdx.x % kLanes; }
__device__ std::uint32_t Warp() { return threadIdx.x / kLanes; }

// ---- loads and stores; everything is used once, so caches need not keep it

struct Four {
  float at[kWide];
};

__device__ Four LoadFour(const float* from) {
  const float4 four = __ldcs(reinterpret_cast<const float4*>(from));
  return {{four.x, four.y, four.z, four.w}};
}

__device__ void StoreFour(float* to, const Four& four) {
  __stcs(reinterpret_cast<float4*>(to),
         make_float4(four.at[0], four.at[1], four.at[2], four.at[3]));
}

template <GradientType kType>
__device__ float Widened(std::uint32_t bits) {
  const auto half = static_cast<std::uint16_t>(bits);
  return kType == GradientType::kBf16 ? codec::Bf16ToFloat(half) : Fp16ToFloat(half);
}

template <GradientType kType>
__device__ float GradientAt(const void* gradient, std::uint64_t at) {
  if constexpr (kType == GradientType::kFp32) {
    return __ldcs(static_cast<const float*>(gradient) + at);
  } else {
    return Widened<kType>(__ldcs(static_cast<const unsigned short*>(gradient) + at));
  }
}

template <GradientType kType>
__device__ Four GradientFour(const void* gradient, std::uint64_t at) {
  if constexpr (kType == GradientType::kFp32) {
    return LoadFour(static_cast<const float*>(gradient) + at);
  } else {
    const auto* const halves = static_cast<const unsigned short*>(gradient) + at;
    const uint2 four = __ldcs(reinterpret_cast<const uint2*>(halves));
    return {{Widened<kType>(four.x & 0xffffu), Widened<kType>(four.x >> 16),
             Widened<kType>(four.y & 0xffffu), Widened<kType>(four.y >> 16)}};
  }
}

template <AccumulationRule kRule>
__device__ Element LoadElement(const State& state, std::uint64_t at) {
  Element element;
  element.v = __ldcs(state.v + at);
  if (kRule != AccumulationRule::kPlain && state.u != nullptr) element.u = __ldcs(state.u + at);
  if constexpr (kRule == AccumulationRule::kAdam) element.s = __ldcs(state.s + at);
  return element;
}

template <AccumulationRule kRule>
__device__ void StoreElement(const State& state, std::uint64_t at, const Element& element) {
  __stcs(state.v + at, element.v);
  if (kRule != AccumulationRule::kPlain && state.u != nullptr) __stcs(state.u + at, element.u);
  if constexpr (kRule == AccumulationRule::kAdam) __stcs(state.s + at, element.s);
}

__device__ float ScaleOf(const StepArguments& step) {
  return step.clips ? step.unscale * step.workspace->control.clip : step.unscale;
}

__device__ bool Beyond(float g) { return MagnitudeBits(g) > kFiniteMost; }

__device__ void ReportBeyond(const StepArguments& step, std::uint64_t at) {
  atomicMax(&step.workspace->control.beyond, static_cast<unsigned long long>(step.elements - at));
}

// ---- within a CTA

// What the threads before this one have together, and all of them. `sums` is of the CTA.
__device__ std::uint32_t SumBefore(std::uint32_t mine, std::uint32_t (&sums)[kThreads],
                                   std::uint32_t& total) {
  sums[threadIdx.x] = mine;
  __syncthreads();
  for (std::uint32_t distance = 1; distance < kThreads; distance *= 2) {
    const std::uint32_t left = threadIdx.x >= distance ? sums[threadIdx.x - distance] : 0;
    __syncthreads();
    sums[threadIdx.x] += left;
    __syncthreads();
  }
  total = sums[kThreads - 1];
  const std::uint32_t before = sums[threadIdx.x] - mine;
  __syncthreads();  // before it is used again
  return before;
}

// Always in the same order.
__device__ double SumOf(double mine, double (&sums)[kThreads]) {
  sums[threadIdx.x] = mine;
  __syncthreads();
  for (std::uint32_t half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  const double sum = sums[0];
  __syncthreads();
  return sum;
}

// True in the CTA that is the last to come here; it sees what the others wrote before.
__device__ bool IsLast(std::uint32_t& ticket, std::uint32_t& shared) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) shared = atomicAdd(&ticket, 1u);
  __syncthreads();
  const bool last = shared == gridDim.x - 1;
  __threadfence();
  return last;
}

// ---- Norm

template <GradientType kType>
__global__ void __launch_bounds__(kThreads) NormKernel(const StepArguments step, double clip_norm) {
  __shared__ double sums[kThreads];
  __shared__ std::uint32_t shared;
  double squares = 0;
  const std::uint64_t whole = step.elements / kWide * kWide;
  const std::uint64_t thread = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::uint64_t stride = std::uint64_t{gridDim.x} * kThreads * kWide;
#pragma unroll 4
  for (std::uint64_t at = thread * kWide; at < whole; at += stride) {
    const Four four = GradientFour<kType>(step.gradient, at);
    for (int i = 0; i < kWide; ++i) squares += double{four.at[i]} * double{four.at[i]};
  }
  if (thread < step.elements - whole) {
    const double g = GradientAt<kType>(step.gradient, whole + thread);
    squares += g * g;
  }
  const double sum = SumOf(squares, sums);
  Workspace& workspace = *step.workspace;
  if (threadIdx.x == 0) workspace.partials[blockIdx.x] = sum;
  if (!IsLast(workspace.control.tickets[3], shared)) return;
  double mine = 0;
  for (std::uint32_t at = threadIdx.x; at < gridDim.x; at += kThreads) {
    mine += __ldcg(&workspace.partials[at]);
  }
  const double norm = std::sqrt(SumOf(mine, sums)) * step.unscale;
  if (threadIdx.x == 0) {
    workspace.control.clip = norm > clip_norm ? static_cast<float>(clip_norm / norm) : 1.0f;
  }
}

__global__ void __launch_bounds__(kThreads)
    SquaresKernel(const float* values, std::uint64_t count, Workspace* workspace) {
  __shared__ double sums[kThreads];
  double squares = 0;
  const std::uint64_t stride = std::uint64_t{gridDim.x} * kThreads;
#pragma unroll 4
  for (std::uint64_t at = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x; at < count;
       at += stride) {
    const double value = __ldcs(values + at);
    squares += value * value;
  }
  const double sum = SumOf(squares, sums);
  if (threadIdx.x == 0) workspace->partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    ScaleKernel(float* values, std::uint64_t count, float factor) {
  const std::uint64_t stride = std::uint64_t{gridDim.x} * kThreads;
  for (std::uint64_t at = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x; at < count;
       at += stride) {
    values[at] = Bounded(factor * values[at]);
  }
}

// ---- Rank: the digits of a magnitude from the upper ones on

constexpr std::uint32_t kLevelShift[Workspace::kLevels] = {20, 10, 0};

template <AccumulationRule kRule, GradientType kType>
__device__ std::uint32_t MagnitudeAfter(const StepArguments& step, std::uint64_t at, float scale) {
  const float g = GradientAt<kType>(step.gradient, at);
  return MagnitudeBits(
      Accumulated<kRule>(LoadElement<kRule>(step.before, at), g, scale, step.with).v);
}

// With the last CTA: the class that the rank falls in.
template <AccumulationRule kRule, GradientType kType, bool kSampled>
__global__ void __launch_bounds__(kThreads)
    RankKernel(const StepArguments step, const Sample sample, std::uint32_t first_rank,
               std::uint32_t level, std::uint32_t shift) {
  __shared__ std::uint32_t classes[Workspace::kClasses];
  __shared__ std::uint32_t sums[kThreads];
  __shared__ std::uint32_t shared;
  Workspace& workspace = *step.workspace;
  for (std::uint32_t at = threadIdx.x; at < Workspace::kClasses; at += kThreads) classes[at] = 0;
  __syncthreads();
  const float scale = ScaleOf(step);
  const std::uint32_t prefix = workspace.control.prefix;
  const std::uint32_t mask = level == 0 ? 0x7ffu : 0x3ffu;
  const std::uint64_t count = kSampled ? sample.strata * kSampledLine : step.selected_elements;
  const std::uint64_t stride = std::uint64_t{gridDim.x} * kThreads;
  for (std::uint64_t i = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += stride) {
    const std::uint64_t at = kSampled ? sample.BeginOf(i / kSampledLine) + i % kSampledLine : i;
    if (at >= step.selected_elements) continue;  // behind a short line
    const std::uint32_t magnitude = MagnitudeAfter<kRule, kType>(step, at, scale);
    // Zeros are never selected, and there may be many.
    if (magnitude == 0 || (level > 0 && magnitude >> (shift + 10) != prefix)) continue;
    atomicAdd(&classes[magnitude >> shift & mask], 1u);
  }
  __syncthreads();
  std::uint32_t* const all = workspace.classes[level];
  for (std::uint32_t at = threadIdx.x; at < Workspace::kClasses; at += kThreads) {
    if (classes[at] != 0) atomicAdd(&all[at], classes[at]);
  }
  if (!IsLast(workspace.control.tickets[level], shared)) return;

  // Thread t has the t-th eight classes from above.
  constexpr std::uint32_t kOwn = Workspace::kClasses / kThreads;
  std::uint32_t own[kOwn];
  std::uint32_t mine = 0;
  for (std::uint32_t i = 0; i < kOwn; ++i) {
    own[i] = __ldcg(&all[Workspace::kClasses - 1 - (threadIdx.x * kOwn + i)]);
    mine += own[i];
  }
  const std::uint32_t rank = level == 0 ? first_rank : workspace.control.rank;
  std::uint32_t total = 0;
  std::uint32_t above = SumBefore(mine, sums, total);
  if (rank <= above || rank > above + mine) return;  // one thread goes on, or none
  for (std::uint32_t i = 0; i < kOwn; ++i) {
    if (rank <= above + own[i]) {
      const std::uint32_t digit = Workspace::kClasses - 1 - (threadIdx.x * kOwn + i);
      const std::uint32_t known = level == 0 ? digit : prefix << 10 | digit;
      workspace.control.prefix = known;
      workspace.control.rank = rank - above;
      if (level + 1 == Workspace::kLevels) {
        workspace.control.threshold = known;
        workspace.control.equals = rank - above;
      }
      return;
    }
    above += own[i];
  }
}

// ---- ties

// pool.equals: of each tile the entries that have just the threshold's magnitude.
template <AccumulationRule kRule, GradientType kType>
__global__ void __launch_bounds__(kThreads)
    CountEqualsKernel(const StepArguments step, const Pool pool) {
  __shared__ std::uint32_t count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  const float scale = ScaleOf(step);
  const std::uint32_t threshold = step.workspace->control.threshold;
  const std::uint64_t tile = blockIdx.x;
  std::uint32_t mine = 0;
  for (std::uint32_t i = threadIdx.x; i < kTile; i += kThreads) {
    const std::uint64_t at = tile * kTile + i;
    if (at >= step.selected_elements) break;
    mine += MagnitudeAfter<kRule, kType>(step, at, scale) == threshold ? 1 : 0;
  }
  if (mine != 0) atomicAdd(&count, mine);
  __syncthreads();
  if (threadIdx.x == 0) pool.equals[tile] = count;
}

// Makes of it those in the tiles before. One CTA.
__global__ void __launch_bounds__(kThreads) ScanEqualsKernel(const Pool pool, std::uint32_t tiles) {
  __shared__ std::uint32_t sums[kThreads];
  std::uint32_t before = 0;
  for (std::uint32_t first = 0; first < tiles; first += kThreads) {
    const std::uint32_t tile = first + threadIdx.x;
    const std::uint32_t mine = tile < tiles ? pool.equals[tile] : 0;
    std::uint32_t total = 0;
    const std::uint32_t within = SumBefore(mine, sums, total);
    if (tile < tiles) pool.equals[tile] = before + within;
    before += total;
  }
}

// ---- Select

// Of one vector of a warp: how many lanes before this one have, and all.
struct Places {
  std::uint32_t before;
  std::uint32_t all;
};

__device__ Places PlacesOf(std::uint32_t mask) {
  const std::uint32_t lanes_before = (1u << Lane()) - 1;
  Places places{0, 0};
#pragma unroll
  for (int i = 0; i < kWide; ++i) {
    const std::uint32_t lanes = __ballot_sync(kAllLanes, (mask >> i & 1u) != 0);
    places.before += __popc(lanes & lanes_before);
    places.all += __popc(lanes);
  }
  return places;
}

// The sum over the warps before this one, and over all. `counts` is of the CTA.
__device__ std::uint32_t WarpsBefore(std::uint32_t mine, std::uint32_t (&counts)[kWarps],
                                     std::uint32_t& total) {
  if (Lane() == 0) counts[Warp()] = mine;
  __syncthreads();
  std::uint32_t before = 0;
  total = 0;
#pragma unroll
  for (std::uint32_t warp = 0; warp < kWarps; ++warp) {
    before += warp < Warp() ? counts[warp] : 0;
    total += counts[warp];
  }
  return before;
}

template <AccumulationRule kRule, GradientType kType, bool kTies>
__global__ void __launch_bounds__(kThreads)
    SelectKernel(const StepArguments step, const Pool pool, wire::ValueCodec codec) {
  constexpr bool kHasU = kRule != AccumulationRule::kPlain;
  constexpr bool kHasS = kRule == AccumulationRule::kAdam;
  __shared__ std::uint32_t counts[kWarps];
  __shared__ std::uint32_t equal_counts[kWarps];
  __shared__ std::uint32_t slot_begin;
  Control& control = step.workspace->control;
  const std::uint64_t tile_begin = std::uint64_t{blockIdx.x} * kTile;
  const std::uint64_t rest = step.selected_elements - tile_begin;
  const std::uint32_t elements = rest < kTile ? static_cast<std::uint32_t>(rest) : kTile;
  const bool uses_u = kHasU && step.before.u != nullptr;
  const std::uint32_t in_tile = Warp() * kWarpElements + Lane() * kWide;
  const std::uint64_t own = tile_begin + in_tile;  // the first of this thread

  Four g[kVectors];
  Four v[kVectors];
  Four u[kVectors] = {};
  Four s[kVectors] = {};
  if (elements == kTile) {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const std::uint64_t at = own + k * kVectorElements;
      g[k] = GradientFour<kType>(step.gradient, at);
      v[k] = LoadFour(step.before.v + at);
      if (uses_u) u[k] = LoadFour(step.before.u + at);
      if constexpr (kHasS) s[k] = LoadFour(step.before.s + at);
    }
  } else {
    // What is not there is zero, which is never selected.
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const std::uint64_t at = own + k * kVectorElements;
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        const bool there = in_tile + k * kVectorElements + i < elements;
        g[k].at[i] = there ? GradientAt<kType>(step.gradient, at + i) : 0.0f;
        v[k].at[i] = there ? __ldcs(step.before.v + at + i) : 0.0f;
        if (uses_u) u[k].at[i] = there ? __ldcs(step.before.u + at + i) : 0.0f;
        if constexpr (kHasS) s[k].at[i] = there ? __ldcs(step.before.s + at + i) : 0.0f;
      }
    }
  }

  const float scale = ScaleOf(step);
  const std::uint32_t threshold = control.threshold;
  const std::uint32_t least = threshold > 0 && !kTies ? threshold : threshold + 1;
  std::uint32_t kept = 0;   // bit 4 k + i: element i of vector k
  std::uint32_t equal = 0;  // kTies: has just the threshold's magnitude
  bool beyond = false;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      beyond = beyond || Beyond(g[k].at[i]);
      const Element after =
          Accumulated<kRule>({v[k].at[i], u[k].at[i], s[k].at[i]}, g[k].at[i], scale, step.with);
      v[k].at[i] = after.v;
      u[k].at[i] = after.u;
      s[k].at[i] = after.s;
      const std::uint32_t magnitude = MagnitudeBits(after.v);
      kept |= magnitude >= least ? 1u << (k * kWide + i) : 0u;
      if constexpr (kTies) {
        equal |= magnitude == threshold && threshold > 0 ? 1u << (k * kWide + i) : 0u;
      }
    }
  }
  if (beyond) {
#pragma unroll 1
    for (int k = 0; k < kVectors; ++k) {
#pragma unroll 1
      for (int i = 0; i < kWide; ++i) {
        if (in_tile + k * kVectorElements + i >= elements) continue;
        const std::uint64_t at = own + k * kVectorElements + i;
        if (Beyond(GradientAt<kType>(step.gradient, at))) ReportBeyond(step, at);
      }
    }
  }

  if constexpr (kTies) {
    // Of equals the first ones: so many are in the tiles, warps, vectors, lanes before.
    std::uint32_t in_warp = 0;
    std::uint32_t before[kVectors];
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const Places places = PlacesOf(equal >> (k * kWide) & 15u);
      before[k] = in_warp + places.before;
      in_warp += places.all;
    }
    std::uint32_t total = 0;
    const std::uint32_t rank = pool.equals[blockIdx.x] + WarpsBefore(in_warp, equal_counts, total);
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      std::uint32_t at = rank + before[k];
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        const std::uint32_t bit = 1u << (k * kWide + i);
        if ((equal & bit) == 0) continue;
        if (at < control.equals) kept |= bit;
        ++at;
      }
    }
  }

  // Places within the tile, in the order of the elements.
  std::uint32_t in_warp = 0;
  std::uint32_t place[kVectors];
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const Places places = PlacesOf(kept >> (k * kWide) & 15u);
    place[k] = in_warp + places.before;
    in_warp += places.all;
  }
  std::uint32_t total = 0;
  const std::uint32_t before_warp = WarpsBefore(in_warp, counts, total);
  if (threadIdx.x == 0) {
    const std::uint32_t begin = total > 0 ? atomicAdd(&control.selected, total) : 0;
    const bool fits = begin <= pool.capacity && total <= pool.capacity - begin;
    slot_begin = fits ? begin : pool.capacity;
    pool.slots[blockIdx.x] = Slot{begin, fits ? total : 0};
  }

  // The state, while thread 0 waits for its slot.
  const auto is_kept = [&](int k, int i) { return (kept >> (k * kWide + i) & 1u) != 0; };
  const auto left_of = [&](int k, int i) {
    const float value = v[k].at[i];
    // What 2-bit codes send is known when they are.
    float sent = codec == wire::ValueCodec::Bits2 ? 0.0f : value;
    if (codec == wire::ValueCodec::Bf16) sent = SentAlone(value, wire::ValueCodec::Bf16);
    return is_kept(k, i) ? value - sent : value;
  };
  if constexpr (kRule == AccumulationRule::kNesterov) {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
#pragma unroll
      for (int i = 0; i < kWide; ++i) u[k].at[i] = is_kept(k, i) ? 0.0f : u[k].at[i];
    }
  }
  if (elements == kTile) {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const std::uint64_t at = own + k * kVectorElements;
      StoreFour(step.after.v + at, {{left_of(k, 0), left_of(k, 1), left_of(k, 2), left_of(k, 3)}});
      if (uses_u) StoreFour(step.after.u + at, u[k]);
      if constexpr (kHasS) StoreFour(step.after.s + at, s[k]);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const std::uint64_t at = own + k * kVectorElements;
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        if (in_tile + k * kVectorElements + i >= elements) continue;
        step.after.v[at + i] = left_of(k, i);
        if (uses_u) step.after.u[at + i] = u[k].at[i];
        if constexpr (kHasS) step.after.s[at + i] = s[k].at[i];
      }
    }
  }

  __syncthreads();
  if (slot_begin == pool.capacity) return;  // the whole CTA: no room, or nothing
  const std::uint32_t slot = slot_begin + before_warp;
  const std::uint32_t in_block = blockIdx.x % kTilesOfBlock * kTile + in_tile;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    std::uint32_t at = slot + place[k];
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      if (!is_kept(k, i)) continue;
      pool.positions[at] = static_cast<std::uint16_t>(in_block + k * kVectorElements + i);
      pool.values[at] = v[k].at[i];
      ++at;
    }
  }
}

// ---- coding groups of values in 2 bits

__device__ LaneSum SumOfLane(const LaneSum& mine, int lane) {
  return {__shfl_sync(kAllLanes, mine.below, lane), __shfl_sync(kAllLanes, mine.above, lane),
          __shfl_sync(kAllLanes, mine.above_count, lane)};
}

// By a warp; every lane gets the result.
__device__ Means MeansAround(const float* magnitudes, std::uint32_t count, float split) {
  const std::uint32_t whole = count / kSumLanes * kSumLanes;
  // Four lanes are enough: their sums must be those of the CPU, and groups are many.
  const LaneSum mine =
      SumLane(magnitudes, Lane() < kSumLanes ? whole : 0, split, Lane() % kSumLanes);
  const LaneSum sums[kSumLanes] = {SumOfLane(mine, 0), SumOfLane(mine, 1), SumOfLane(mine, 2),
                                   SumOfLane(mine, 3)};
  return MeansOf(sums, magnitudes, whole, count, split);
}

// The values of a group as a warp has them: entry 32 j + lane is at [j].
constexpr std::uint32_t kPerLane = codec::kValueGroup / kLanes;

// A warp codes a group of `count` values; `sent` is what they will be decoded to. `magnitudes` is
// the warp's, for a whole group.
__device__ void CodeGroup(const float (&values)[kPerLane], std::uint32_t count, float* magnitudes,
                          std::uint32_t* scales, std::uint32_t* codes, float (&sent)[kPerLane]) {
  __syncwarp();  // the group before is done with them
#pragma unroll
  for (std::uint32_t j = 0; j < kPerLane; ++j) {
    const std::uint32_t at = j * kLanes + Lane();
    if (at < count) magnitudes[at] = GroupMagnitude(values[j]);
  }
  __syncwarp();
  double split = MeansAround(magnitudes, count, FLT_MAX).below;
  Means means;
  for (int round = 0; round < kSplitRounds; ++round) {
    means = MeansAround(magnitudes, count, static_cast<float>(split));
    split = (means.below + means.above) / 2;
  }
  const Centroids centroids = CentroidsOf(means);
  if (Lane() == 0) {
    *scales = centroids.small_bits | static_cast<std::uint32_t>(centroids.large_bits) << 16;
  }
  // Lane j keeps the codes of entries 32 j to 32 j + 31.
  std::uint32_t larges = 0;
  std::uint32_t negatives = 0;
#pragma unroll
  for (std::uint32_t j = 0; j < kPerLane; ++j) {
    const bool there = j * kLanes + Lane() < count;
    const bool large = there && GroupMagnitude(values[j]) > centroids.between;
    const bool negative = there && std::bit_cast<std::uint32_t>(values[j]) >> 31 != 0;
    const std::uint32_t large_lanes = __ballot_sync(kAllLanes, large);
    const std::uint32_t negative_lanes = __ballot_sync(kAllLanes, negative);
    if (Lane() == j) {
      larges = large_lanes;
      negatives = negative_lanes;
    }
    const float magnitude = large ? centroids.large : centroids.small;
    sent[j] = negative ? -magnitude : magnitude;
  }
  const std::uint32_t bytes = (count * 2 + 7) / 8;
  if (Lane() * 8 < bytes) codes[Lane() * 2] = Bits2Codes(larges, negatives);
  if (Lane() * 8 + 4 < bytes) codes[Lane() * 2 + 1] = Bits2Codes(larges >> 16, negatives >> 16);
}

// Where a group's scales and codes lie among the values of a block with `groups` of them.
__device__ std::uint32_t* ScalesOf(std::byte* values, std::uint32_t group) {
  return reinterpret_cast<std::uint32_t*>(values) + group;
}
__device__ std::uint32_t* CodesOf(std::byte* values, std::uint32_t groups, std::uint32_t group) {
  return ScalesOf(values, groups) + group * (codec::kValueGroup * 2 / 32);
}

__device__ std::uint32_t GroupsOf(std::uint32_t count) {
  return (count + codec::kValueGroup - 1) / codec::kValueGroup;
}

// Entries of a group of a block with `count`.
__device__ std::uint32_t GroupSize(std::uint32_t count, std::uint32_t group) {
  const std::uint32_t rest = count - group * codec::kValueGroup;
  return rest < codec::kValueGroup ? rest : codec::kValueGroup;
}

// ---- Finish

__device__ std::uint32_t UnitsOf(std::uint32_t bytes) {
  return (bytes + kPackedUnit - 1) / kPackedUnit;
}

__device__ std::uint32_t ValueBytesOf(wire::ValueCodec codec, std::uint32_t count) {
  if (codec == wire::ValueCodec::Fp32) return count * 4;
  if (codec == wire::ValueCodec::Bf16) return count * 2;
  return GroupsOf(count) * 4 + (count * 2 + 7) / 8;
}

// One CTA for each block, a warp for each group of its entries. All that a lane needs from memory
// is asked for before the first of it is used.
template <std::uint32_t kGroupWarps>
__global__ void __launch_bounds__(kGroupWarps* kLanes)
    FinishKernel(const StepArguments step, const Pool pool, const Packed packed,
                 wire::ValueCodec codec) {
  __shared__ Slot slots[kTilesOfBlock];
  __shared__ std::uint32_t begins[kTilesOfBlock + 1];  // number of a tile's first entry; the end
  __shared__ std::uint32_t shared_unit;
  __shared__ float magnitudes[kGroupWarps][codec::kValueGroup];
  const std::uint32_t block = blockIdx.x;
  const std::uint64_t block_begin = std::uint64_t{block} * wire::kBlockElements;
  const std::uint64_t rest = step.selected_elements - block_begin;
  const std::uint32_t elements =
      rest < wire::kBlockElements ? static_cast<std::uint32_t>(rest) : wire::kBlockElements;
  const std::uint32_t tiles = (elements + kTile - 1) / kTile;
  if (threadIdx.x < tiles) slots[threadIdx.x] = pool.slots[block * kTilesOfBlock + threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) {
    begins[0] = 0;
    for (std::uint32_t tile = 0; tile < tiles; ++tile) {
      begins[tile + 1] = begins[tile] + slots[tile].count;
    }
    const std::uint32_t count = begins[tiles];
    const std::uint32_t units = UnitsOf(count * 2) + UnitsOf(ValueBytesOf(codec, count));
    const std::uint32_t unit =
        packed.first_unit + (count > 0 ? atomicAdd(&step.workspace->control.packed, units) : 0);
    const bool fits = count > 0 && unit <= packed.units && units <= packed.units - unit;
    packed.blocks[block] = PackedBlock{fits ? count : 0, unit};
    shared_unit = fits ? unit : packed.units;
  }
  __syncthreads();
  if (shared_unit == packed.units) return;
  const std::uint32_t count = begins[tiles];
  std::byte* const bytes = packed.bytes + std::uint64_t{shared_unit} * kPackedUnit;
  auto* const packed_positions = reinterpret_cast<std::uint16_t*>(bytes);
  std::byte* const packed_values = bytes + UnitsOf(count * 2) * kPackedUnit;
  float* const v = step.after.v + block_begin;
  const std::uint32_t groups = GroupsOf(count);
  for (std::uint32_t group = Warp(); group < groups; group += kGroupWarps) {
    const std::uint32_t first = group * codec::kValueGroup;
    const std::uint32_t size = GroupSize(count, group);
    std::uint32_t places[kPerLane];
    std::uint32_t tile = 0;
#pragma unroll
    for (std::uint32_t j = 0; j < kPerLane; ++j) {
      const std::uint32_t at = j * kLanes + Lane();
      const std::uint32_t entry = first + (at < size ? at : 0);
      while (entry >= begins[tile + 1]) ++tile;
      while (entry < begins[tile]) --tile;
      places[j] = slots[tile].first + (entry - begins[tile]);
    }
    float values[kPerLane];
    std::uint16_t positions[kPerLane];
#pragma unroll
    for (std::uint32_t j = 0; j < kPerLane; ++j) {
      values[j] = __ldcs(pool.values + places[j]);
      positions[j] = __ldcs(pool.positions + places[j]);
    }
#pragma unroll
    for (std::uint32_t j = 0; j < kPerLane; ++j) {
      const std::uint32_t at = j * kLanes + Lane();
      if (at >= size) continue;
      packed_positions[first + at] = positions[j];
      if (codec == wire::ValueCodec::Fp32) {
        reinterpret_cast<float*>(packed_values)[first + at] = values[j];
      } else if (codec == wire::ValueCodec::Bf16) {
        reinterpret_cast<std::uint16_t*>(packed_values)[first + at] = codec::FloatToBf16(values[j]);
      }
    }
    if (codec != wire::ValueCodec::Bits2) continue;
    float sent[kPerLane];
    CodeGroup(values, size, magnitudes[Warp()], ScalesOf(packed_values, group),
              CodesOf(packed_values, groups, group), sent);
#pragma unroll
    for (std::uint32_t j = 0; j < kPerLane; ++j) {
      if (j * kLanes + Lane() < size) v[positions[j]] = values[j] - sent[j];
    }
  }
}

// ---- Dense

template <AccumulationRule kRule, GradientType kType>
__global__ void __launch_bounds__(kThreads)
    DenseKernel(const StepArguments step, const DenseBlock* blocks, const Packed packed) {
  const DenseBlock block = blocks[blockIdx.x / kTilesOfBlock];
  const std::uint32_t first = blockIdx.x % kTilesOfBlock * kTile + threadIdx.x;
  const float scale = ScaleOf(step);
  std::byte* const values = packed.bytes + std::uint64_t{block.unit} * kPackedUnit;
  constexpr std::uint32_t kAtOnce = 4;
  for (std::uint32_t part = 0; part < kTile / kThreads; part += kAtOnce) {
    Element elements[kAtOnce];
    float g[kAtOnce];
#pragma unroll
    for (std::uint32_t k = 0; k < kAtOnce; ++k) {
      const std::uint32_t i = first + (part + k) * kThreads;
      g[k] = 0;
      if (i >= block.elements) continue;
      g[k] = GradientAt<kType>(step.gradient, block.begin + i);
      elements[k] = LoadElement<kRule>(step.before, block.begin + i);
    }
#pragma unroll
    for (std::uint32_t k = 0; k < kAtOnce; ++k) {
      const std::uint32_t i = first + (part + k) * kThreads;
      if (i >= block.elements) continue;
      if (Beyond(g[k])) ReportBeyond(step, block.begin + i);
      Element after = Accumulated<kRule>(elements[k], g[k], scale, step.with);
      if (block.codec == wire::ValueCodec::Fp32) {
        reinterpret_cast<float*>(values)[i] = after.v;
      } else if (block.codec == wire::ValueCodec::Bf16) {
        reinterpret_cast<std::uint16_t*>(values)[i] = codec::FloatToBf16(after.v);
      }
      if (block.codec != wire::ValueCodec::Bits2) after.v -= SentAlone(after.v, block.codec);
      StoreElement<kRule>(step.after, block.begin + i, after);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    DenseCodeKernel(const StepArguments step, const DenseBlock* blocks, const Packed packed) {
  __shared__ float magnitudes[kWarps][codec::kValueGroup];
  const DenseBlock block = blocks[blockIdx.x];
  if (block.codec != wire::ValueCodec::Bits2) return;
  std::byte* const packed_values = packed.bytes + std::uint64_t{block.unit} * kPackedUnit;
  const std::uint32_t groups = GroupsOf(block.elements);
  for (std::uint32_t group = Warp(); group < groups; group += kWarps) {
    float* const v = step.after.v + block.begin + group * codec::kValueGroup;
    const std::uint32_t size = GroupSize(block.elements, group);
    float values[kPerLane];
#pragma unroll
    for (std::uint32_t j = 0; j < kPerLane; ++j) {
      const std::uint32_t at = j * kLanes + Lane();
      values[j] = at < size ? v[at] : 0.0f;
    }
    float sent[kPerLane];
    CodeGroup(values, size, magnitudes[Warp()], ScalesOf(packed_values, group),
              CodesOf(packed_values, groups, group), sent);
#pragma unroll
    for (std::uint32_t j = 0; j < kPerLane; ++j) {
      const std::uint32_t at = j * kLanes + Lane();
      if (at < size) v[at] = values[j] - sent[j];
    }
  }
}

// ---- launches

template <typename... Parameters>
cudaError_t EnqueueThreads(void (*kernel)(Parameters...), std::uint64_t ctas, std::uint32_t threads,
                           cudaStream_t stream, Parameters... arguments) {
  if (ctas == 0) return cudaSuccess;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(ctas));
  config.blockDim = dim3(threads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, std::move(arguments)...);
}

template <typename... Parameters>
cudaError_t Enqueue(void (*kernel)(Parameters...), std::uint64_t ctas, cudaStream_t stream,
                    Parameters... arguments) {
  return EnqueueThreads(kernel, ctas, kThreads, stream, std::move(arguments)...);
}

template <AccumulationRule kRule, typename Call>
cudaError_t WithType(GradientType type, const Call& call) {
  switch (type) {
    case GradientType::kFp32: return call.template operator()<kRule, GradientType::kFp32>();
    case GradientType::kBf16: return call.template operator()<kRule, GradientType::kBf16>();
    case GradientType::kFp16: return call.template operator()<kRule, GradientType::kFp16>();
  }
  return cudaErrorInvalidValue;
}

// Calls call<rule, type>().
template <typename Call>
cudaError_t Dispatch(const StepArguments& step, const Call& call) {
  switch (step.rule) {
    case AccumulationRule::kPlain: return WithType<AccumulationRule::kPlain>(step.type, call);
    case AccumulationRule::kNesterov: return WithType<AccumulationRule::kNesterov>(step.type, call);
    case AccumulationRule::kAdam: return WithType<AccumulationRule::kAdam>(step.type, call);
  }
  return cudaErrorInvalidValue;
}

// CTAs that share `items`, each of them with at least `least`, as many as a large device runs at
// once.
std::uint64_t SharingCtas(std::uint64_t items, std::uint64_t least) {
  return std::min<std::uint64_t>((items + least - 1) / least, Workspace::kPartials);
}

}  // namespace

std::uint32_t TilesOf(std::uint64_t elements) {
  return static_cast<std::uint32_t>((elements + kTile - 1) / kTile);
}

cudaError_t LaunchNorm(const StepArguments& step, double clip_norm, cudaStream_t stream) {
  return WithType<AccumulationRule::kPlain>(step.type, [&]<AccumulationRule, GradientType kType>() {
    return Enqueue(NormKernel<kType>, SharingCtas(step.elements, kTile), stream, step, clip_norm);
  });
}

cudaError_t LaunchRank(const StepArguments& step, const Sample* sample, std::uint32_t rank,
                       cudaStream_t stream) {
  for (std::uint32_t level = 0; level < Workspace::kLevels; ++level) {
    const std::uint32_t shift = kLevelShift[level];
    const cudaError_t error = Dispatch(step, [&]<AccumulationRule kRule, GradientType kType>() {
      if (sample != nullptr) {
        // Few elements for each thread: it is latency that counts.
        return Enqueue(RankKernel<kRule, kType, true>,
                       SharingCtas(sample->strata * kSampledLine, kThreads), stream, step, *sample,
                       rank, level, shift);
      }
      return Enqueue(RankKernel<kRule, kType, false>, SharingCtas(step.selected_elements, kTile),
                     stream, step, Sample{}, rank, level, shift);
    });
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t LaunchSelect(const StepArguments& step, const Pool& pool, wire::ValueCodec codec,
                         bool ties, cudaStream_t stream) {
  const std::uint32_t tiles = TilesOf(step.selected_elements);
  return Dispatch(step, [&]<AccumulationRule kRule, GradientType kType>() {
    if (!ties) return Enqueue(SelectKernel<kRule, kType, false>, tiles, stream, step, pool, codec);
    cudaError_t error = Enqueue(CountEqualsKernel<kRule, kType>, tiles, stream, step, pool);
    if (error != cudaSuccess) return error;
    error = Enqueue(ScanEqualsKernel, 1, stream, pool, tiles);
    if (error != cudaSuccess) return error;
    return Enqueue(SelectKernel<kRule, kType, true>, tiles, stream, step, pool, codec);
  });
}

cudaError_t LaunchFinish(const StepArguments& step, const Pool& pool, const Packed& packed,
                         wire::ValueCodec codec, cudaStream_t stream) {
  const std::uint64_t blocks =
      (step.selected_elements + wire::kBlockElements - 1) / wire::kBlockElements;
  // A warp for each group of a block, as far as they are evenly spread: with few of them many
  // blocks run at once, and what counts is how long one takes.
  const std::uint64_t groups = pool.capacity / codec::kValueGroup;
  const auto enqueue = [&]<std::uint32_t kGroupWarps>() {
    return EnqueueThreads(FinishKernel<kGroupWarps>, blocks, kGroupWarps * kLanes, stream, step,
                          pool, packed, codec);
  };
  if (groups <= 2 * blocks) return enqueue.template operator()<2>();
  if (groups <= 4 * blocks) return enqueue.template operator()<4>();
  return enqueue.template operator()<8>();
}

cudaError_t LaunchDense(const StepArguments& step, const DenseBlock* blocks, std::uint32_t count,
                        const Packed& packed, cudaStream_t stream) {
  const cudaError_t error = Dispatch(step, [&]<AccumulationRule kRule, GradientType kType>() {
    return Enqueue(DenseKernel<kRule, kType>, std::uint64_t{count} * kTilesOfBlock, stream, step,
                   blocks, packed);
  });
  if (error != cudaSuccess) return error;
  return Enqueue(DenseCodeKernel, count, stream, step, blocks, packed);
}

cudaError_t LaunchScale(float* values, std::uint64_t count, float factor, cudaStream_t stream) {
  return Enqueue(ScaleKernel, SharingCtas(count, kTile), stream, values, count, factor);
}

cudaError_t LaunchSquares(const float* values, std::uint64_t count, Workspace* workspace,
                          cudaStream_t stream) {
  return Enqueue(SquaresKernel, SharingCtas(count, kTile), stream, values, count, workspace);
}

}  // namespace ps::worker::cuda
