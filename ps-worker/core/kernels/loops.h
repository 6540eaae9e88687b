// The source of one variant of the kernels; see kernels.h.
//
// Included by plain.cc, avx2.cc and avx512.cc, which are compiled for their
// processors: everything here has internal linkage and nothing with inline
// functions may be included (those of intrinsics are always expanded).
//
// Elements are taken in groups of 64: first all sums, then what is picked, as the
// ones of a word. With AVX-512 the second half has no branch, which a part of 1 %
// would mispredict in every second group.
#pragma once

#include <cstddef>
#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "ps-worker/core/kernels/kernels.h"

namespace ps::worker::kernels {
namespace {

using Size = std::size_t;

constexpr Size kGroup = 64;
constexpr std::uint32_t kMagnitude = 0x7fffffffu;

inline std::uint32_t MagnitudeBits(float value) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits & kMagnitude;
}

inline float Bounded(float value, float limit) {
  const float low = value < -limit ? -limit : value;
  return low > limit ? limit : low;
}

inline void PickOne(float value, std::uint32_t position, Picker& picker) {
  picker.positions[picker.count] = static_cast<std::uint16_t>(position);
  picker.values[picker.count] = value;
  picker.count += MagnitudeBits(value) >= picker.least ? 1 : 0;
}

// What a step adds to v; the loops of one element, as all variants have them at the end of a piece.
// The same products and sums as those of Vectors below, in the same order.
struct Nothing {
  void One(Size) const {}
};

struct Plain {
  const float* g;
  float scale;
  float limit;
  float* v;

  void One(Size i) const { v[i] = Bounded(v[i] + scale * g[i], limit); }
};

struct Nesterov {
  const float* g;
  float scale;
  float momentum;
  float limit;
  float* u;
  float* v;

  void One(Size i) const {
    const float clipped = scale * g[i];
    const float moved = Bounded(momentum * u[i] + clipped, limit);
    u[i] = moved;
    v[i] = Bounded(v[i] + (momentum * moved + clipped), limit);
  }
};

#if defined(__AVX512VBMI2__)

// max and min return their second operand where one is no number, as Bounded does.
inline __m512 Bounded(__m512 value, __m512 limit) {
  const __m512 least = _mm512_xor_ps(limit, _mm512_set1_ps(-0.0f));
  return _mm512_min_ps(limit, _mm512_max_ps(least, value));
}

inline __m512 Sixteen(const Nothing&, Size i, const float* v) { return _mm512_loadu_ps(v + i); }

inline __m512 Sixteen(const Plain& rule, Size i, const float*) {
  const __m512 added = _mm512_mul_ps(_mm512_set1_ps(rule.scale), _mm512_loadu_ps(rule.g + i));
  const __m512 sum =
      Bounded(_mm512_add_ps(_mm512_loadu_ps(rule.v + i), added), _mm512_set1_ps(rule.limit));
  _mm512_storeu_ps(rule.v + i, sum);
  return sum;
}

inline __m512 Sixteen(const Nesterov& rule, Size i, const float*) {
  const __m512 limit = _mm512_set1_ps(rule.limit);
  const __m512 momentum = _mm512_set1_ps(rule.momentum);
  const __m512 clipped = _mm512_mul_ps(_mm512_set1_ps(rule.scale), _mm512_loadu_ps(rule.g + i));
  const __m512 moved =
      Bounded(_mm512_add_ps(_mm512_mul_ps(momentum, _mm512_loadu_ps(rule.u + i)), clipped), limit);
  _mm512_storeu_ps(rule.u + i, moved);
  const __m512 added = _mm512_add_ps(_mm512_mul_ps(momentum, moved), clipped);
  const __m512 sum = Bounded(_mm512_add_ps(_mm512_loadu_ps(rule.v + i), added), limit);
  _mm512_storeu_ps(rule.v + i, sum);
  return sum;
}

template <typename Rule>
Size Groups(const Rule& rule, Piece piece, const float* v, Picker& picker) {
  alignas(64) static constexpr std::uint16_t kIota[32] = {
      0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
      16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
  const __m512i least = _mm512_set1_epi32(static_cast<int>(picker.least));
  const __m512i magnitude = _mm512_set1_epi32(static_cast<int>(kMagnitude));
  __m512i position =
      _mm512_add_epi16(_mm512_load_si512(kIota), _mm512_set1_epi16(static_cast<short>(piece.at)));
  std::uint16_t* positions = picker.positions + picker.count;
  float* values = picker.values + picker.count;
  Size i = 0;
  for (; i + kGroup <= piece.count; i += kGroup) {
    __m512 sums[4];
    std::uint32_t masks[4];
    for (Size part = 0; part < 4; ++part) {
      sums[part] = Sixteen(rule, i + part * 16, v);
      masks[part] = _mm512_cmpge_epi32_mask(
          _mm512_and_si512(_mm512_castps_si512(sums[part]), magnitude), least);
    }
    // To a register and then to memory: compressing stores are slow on some processors.
    for (Size half = 0; half < 2; ++half) {
      const std::uint32_t mask = masks[2 * half] | masks[2 * half + 1] << 16;
      _mm512_storeu_si512(positions, _mm512_maskz_compress_epi16(mask, position));
      positions += __builtin_popcount(mask);
      position = _mm512_add_epi16(position, _mm512_set1_epi16(32));
    }
    for (Size part = 0; part < 4; ++part) {
      _mm512_storeu_ps(values,
                       _mm512_maskz_compress_ps(static_cast<__mmask16>(masks[part]), sums[part]));
      values += __builtin_popcount(masks[part]);
    }
  }
  picker.count = static_cast<Size>(values - picker.values);
  return i;
}

#elif defined(__AVX2__)

inline __m256 Bounded(__m256 value, __m256 limit) {
  const __m256 least = _mm256_xor_ps(limit, _mm256_set1_ps(-0.0f));
  return _mm256_min_ps(limit, _mm256_max_ps(least, value));
}

inline __m256 Eight(const Nothing&, Size i, const float* v) { return _mm256_loadu_ps(v + i); }

inline __m256 Eight(const Plain& rule, Size i, const float*) {
  const __m256 added = _mm256_mul_ps(_mm256_set1_ps(rule.scale), _mm256_loadu_ps(rule.g + i));
  const __m256 sum =
      Bounded(_mm256_add_ps(_mm256_loadu_ps(rule.v + i), added), _mm256_set1_ps(rule.limit));
  _mm256_storeu_ps(rule.v + i, sum);
  return sum;
}

inline __m256 Eight(const Nesterov& rule, Size i, const float*) {
  const __m256 limit = _mm256_set1_ps(rule.limit);
  const __m256 momentum = _mm256_set1_ps(rule.momentum);
  const __m256 clipped = _mm256_mul_ps(_mm256_set1_ps(rule.scale), _mm256_loadu_ps(rule.g + i));
  const __m256 moved =
      Bounded(_mm256_add_ps(_mm256_mul_ps(momentum, _mm256_loadu_ps(rule.u + i)), clipped), limit);
  _mm256_storeu_ps(rule.u + i, moved);
  const __m256 added = _mm256_add_ps(_mm256_mul_ps(momentum, moved), clipped);
  const __m256 sum = Bounded(_mm256_add_ps(_mm256_loadu_ps(rule.v + i), added), limit);
  _mm256_storeu_ps(rule.v + i, sum);
  return sum;
}

template <typename Rule>
Size Groups(const Rule& rule, Piece piece, const float* v, Picker& picker) {
  const __m256i below = _mm256_set1_epi32(static_cast<int>(picker.least - 1));
  const __m256i magnitude = _mm256_set1_epi32(static_cast<int>(kMagnitude));
  Size picked = picker.count;
  Size i = 0;
  for (; i + kGroup <= piece.count; i += kGroup) {
    std::uint64_t mask = 0;
    for (Size part = 0; part < 8; ++part) {
      const __m256i bits = _mm256_castps_si256(Eight(rule, i + part * 8, v));
      const __m256i is_above = _mm256_cmpgt_epi32(_mm256_and_si256(bits, magnitude), below);
      const int lanes = _mm256_movemask_ps(_mm256_castsi256_ps(is_above));
      mask |= static_cast<std::uint64_t>(lanes) << (8 * part);
    }
    for (; mask != 0; mask &= mask - 1) {
      const auto lane = static_cast<Size>(__builtin_ctzll(mask));
      picker.positions[picked] = static_cast<std::uint16_t>(piece.at + i + lane);
      picker.values[picked] = v[i + lane];
      ++picked;
    }
  }
  picker.count = picked;
  return i;
}

#else

template <typename Rule>
Size Groups(const Rule& rule, Piece piece, const float* v, Picker& picker) {
  constexpr Size kLine = 16;
  const auto least = static_cast<std::int32_t>(picker.least);
  const Size whole = piece.count - piece.count % kGroup;
  for (Size i = 0; i < whole; ++i) rule.One(i);
  for (Size line = 0; line < whole; line += kLine) {
    std::int32_t any = 0;
    // Signed, which is what the vectors of every x86-64 can compare.
    for (Size lane = line; lane < line + kLine; ++lane) {
      any |= static_cast<std::int32_t>(MagnitudeBits(v[lane])) >= least ? 1 : 0;
    }
    if (any == 0) continue;
    for (Size lane = line; lane < line + kLine; ++lane) {
      PickOne(v[lane], piece.at + static_cast<std::uint32_t>(lane), picker);
    }
  }
  return whole;
}

#endif

template <typename Rule>
void Run(const Rule& rule, Piece piece, const float* v, Picker& picker) {
  for (Size i = Groups(rule, piece, v, picker); i < piece.count; ++i) {
    rule.One(i);
    PickOne(v[i], piece.at + static_cast<std::uint32_t>(i), picker);
  }
}

void Add(Piece piece, const float* g, float scale, float limit, float* v, Picker& picker) {
  Run(Plain{g, scale, limit, v}, piece, v, picker);
}

void AddNesterov(Piece piece, const float* g, float scale, float momentum, float limit, float* u,
                 float* v, Picker& picker) {
  Run(Nesterov{g, scale, momentum, limit, u, v}, piece, v, picker);
}

void Pick(Piece piece, const float* v, Picker& picker) { Run(Nothing(), piece, v, picker); }

// No branch and no early end, which lets the compiler use vectors.
std::uint32_t Largest(const float* values, Size count) {
  std::int32_t largest = 0;
  for (Size i = 0; i < count; ++i) {
    const auto bits = static_cast<std::int32_t>(MagnitudeBits(values[i]));
    largest = bits > largest ? bits : largest;
  }
  return static_cast<std::uint32_t>(largest);
}

constexpr Table MakeTable(const char* name) {
  return Table{name, &Add, &AddNesterov, &Pick, &Largest};
}

}  // namespace
}  // namespace ps::worker::kernels
