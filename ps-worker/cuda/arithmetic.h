// What the kernels compute, element by element, as functions that run on the CPU as well.
//
// The same products and sums in the same order as the loops of the CPU (core/kernels/loops.h,
// core/sparsifier.cc, common/codec/value_codec.cc), each rounded by itself: what includes this must
// be compiled without contraction (nvcc -fmad=false, -ffp-contract=off), and then both select and
// send the same bits. A test compares them on the CPU. Pure functions; any thread, any device.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "common/codec/value_codec.h"
#include "common/host_device.h"
#include "ps-worker/core/accumulation.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace ps::worker::cuda {

inline constexpr std::uint32_t kMagnitude = 0x7fffffffu;

PS_HOST_DEVICE inline std::uint32_t MagnitudeBits(float value) {
  return std::bit_cast<std::uint32_t>(value) & kMagnitude;
}

PS_HOST_DEVICE inline float Bounded(float value) {
  const float low = value < -kAccumulatedLimit ? -kAccumulatedLimit : value;
  return low > kAccumulatedLimit ? kAccumulatedLimit : low;
}

// IEEE binary16, which holds no more than fp32 does: exact.
PS_HOST_DEVICE inline float Fp16ToFloat(std::uint16_t bits) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(bits));
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t magnitude = bits & 0x7fffu;
  if (magnitude < 0x400u) {  // zero or subnormal: a whole number of 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | sign);
  }
  const std::uint32_t exponent = magnitude >= 0x7c00u ? 0x7f800000u - (0x7c00u << 13) : 112u << 23;
  return std::bit_cast<float>(sign | ((magnitude << 13) + exponent));
#endif
}

// ---- accumulation

// What a rule has for an element: the residual v, the momentum u, Adam's squares s.
struct Element {
  float v = 0;
  float u = 0;
  float s = 0;
};

struct Coefficients {
  float momentum = 0;  // nesterov
  float beta1 = 0;     // adam, as all below
  float beta2 = 0;
  float epsilon = 0;
  float correction1 = 1;  // 1 / (1 - b1^t), and of b2
  float correction2 = 1;
  bool has_momentum = false;
};

// An element after a step on `scale` times the gradient g.
template <AccumulationRule kRule>
PS_HOST_DEVICE inline Element Accumulated(const Element& before, float g, float scale,
                                          const Coefficients& with) {
  const float clipped = scale * g;
  Element after = before;
  if constexpr (kRule == AccumulationRule::kPlain) {
    after.v = Bounded(before.v + clipped);
  } else if constexpr (kRule == AccumulationRule::kNesterov) {
    after.u = Bounded(with.momentum * before.u + clipped);
    after.v = Bounded(before.v + (with.momentum * after.u + clipped));
  } else {
    after.u = with.has_momentum ? with.beta1 * before.u + (1 - with.beta1) * clipped : clipped;
    after.s = Bounded(with.beta2 * before.s + (1 - with.beta2) * clipped * clipped);
    after.v = Bounded(before.v + after.u * with.correction1 /
                                     (std::sqrt(after.s * with.correction2) + with.epsilon));
  }
  return after;
}

// What a receiver will have of a value, for the codecs that code each one by itself.
PS_HOST_DEVICE inline float SentAlone(float value, wire::ValueCodec codec) {
  return codec == wire::ValueCodec::Bf16 ? codec::Bf16ToFloat(codec::FloatToBf16(value)) : value;
}

// ---- two magnitudes for a group of values (wire::ValueCodec::Bits2)

inline constexpr int kSumLanes = 4;     // partial sums of a group, each of every fourth value
inline constexpr int kSplitRounds = 3;  // of Lloyd's algorithm
inline constexpr float kSumScale = 0x1p-10f;
inline constexpr std::uint16_t kGreatestBf16 = 0x7f7fu;

// Magnitudes that bf16 has: no infinity, no NaN.
PS_HOST_DEVICE inline float GroupMagnitude(float value) {
  const float greatest = codec::Bf16ToFloat(kGreatestBf16);
  const float magnitude = std::bit_cast<float>(MagnitudeBits(value));
  return magnitude <= greatest ? magnitude : greatest;
}

struct LaneSum {
  float below = 0;
  float above = 0;
  std::uint32_t above_count = 0;
};

// Of the magnitudes at lane, lane + 4, ... below `whole`, a multiple of four.
PS_HOST_DEVICE inline LaneSum SumLane(const float* magnitudes, std::uint32_t whole, float split,
                                      std::uint32_t lane) {
  LaneSum sum;
  for (std::uint32_t at = lane; at < whole; at += kSumLanes) {
    const float magnitude = magnitudes[at];
    const bool is_above = magnitude > split;
    const float scaled = magnitude * kSumScale;
    sum.below += is_above ? 0.0f : scaled;
    sum.above += is_above ? scaled : 0.0f;
    sum.above_count += is_above ? 1 : 0;
  }
  return sum;
}

struct Means {
  double below = 0;
  double above = 0;
};

// Of all of a group: of the sums of its lanes and of what is left behind `whole`.
PS_HOST_DEVICE inline Means MeansOf(const LaneSum (&lanes)[kSumLanes], const float* magnitudes,
                                    std::uint32_t whole, std::uint32_t count, float split) {
  double sum_below = 0;
  double sum_above = 0;
  std::uint32_t count_above = 0;
  for (const LaneSum& lane : lanes) {
    sum_below += lane.below;
    sum_above += lane.above;
    count_above += lane.above_count;
  }
  for (std::uint32_t at = whole; at < count; ++at) {
    const float magnitude = magnitudes[at];
    const float scaled = magnitude * kSumScale;
    if (magnitude > split) {
      sum_above += scaled;
      ++count_above;
    } else {
      sum_below += scaled;
    }
  }
  const std::uint32_t count_below = count - count_above;
  if (count_below == 0 || count_above == 0) {
    const double mean = (sum_below + sum_above) / kSumScale / static_cast<double>(count);
    return {mean, mean};
  }
  return {sum_below / kSumScale / static_cast<double>(count_below),
          sum_above / kSumScale / static_cast<double>(count_above)};
}

PS_HOST_DEVICE inline std::uint16_t Centroid(double mean) {
  const std::uint16_t bits = codec::FloatToBf16(static_cast<float>(mean));
  return bits < kGreatestBf16 ? bits : kGreatestBf16;
}

// The two magnitudes of a group, and what lies between them.
struct Centroids {
  std::uint16_t small_bits = 0;
  std::uint16_t large_bits = 0;
  float small = 0;
  float large = 0;
  float between = 0;
};

PS_HOST_DEVICE inline Centroids CentroidsOf(const Means& means) {
  Centroids centroids;
  centroids.small_bits = Centroid(means.below);
  centroids.large_bits = Centroid(means.above);
  centroids.small = codec::Bf16ToFloat(centroids.small_bits);
  centroids.large = codec::Bf16ToFloat(centroids.large_bits);
  centroids.between = centroids.small + (centroids.large - centroids.small) / 2;
  return centroids;
}

// Bit i of the lower half to bit 2i.
PS_HOST_DEVICE inline std::uint32_t SpreadBits(std::uint32_t half) {
  std::uint32_t bits = half & 0xffffu;
  bits = (bits | bits << 8) & 0x00ff00ffu;
  bits = (bits | bits << 4) & 0x0f0f0f0fu;
  bits = (bits | bits << 2) & 0x33333333u;
  return (bits | bits << 1) & 0x55555555u;
}

// The codes of 16 values: bit i says whether a value is large, and negative.
PS_HOST_DEVICE inline std::uint32_t Bits2Codes(std::uint32_t large, std::uint32_t negative) {
  return SpreadBits(large) | SpreadBits(negative) << 1;
}

}  // namespace ps::worker::cuda
