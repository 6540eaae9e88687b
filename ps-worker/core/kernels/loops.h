// The source of one variant of the kernels; see kernels.h.
//
// Included by plain.cc, avx2.cc and avx512.cc, which are compiled for their
// processors: everything here has internal linkage and nothing with inline
// functions may be included (those of intrinsics are always expanded).
//
// Elements are taken in groups of 64: first the gradient is looked at, then come
// all sums, then the positions of what is picked. With AVX-512 there is no branch
// for these, which a part of 1 % would mispredict in every second group. Their
// values are fetched at the end of a piece, which lies in the L1 cache.
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
  picker.count += MagnitudeBits(value) >= picker.least ? 1 : 0;
}

// What a step adds to v. One() is the loop's body for one element: the same products and sums as
// those of vectors below, in the same order.
struct Nothing {
  static constexpr bool kAdds = false;
  Gradient gradient{nullptr, 0, kNoBound};

  void One(Size) const {}
};

struct Plain {
  static constexpr bool kAdds = true;
  Gradient gradient;
  float limit;
  float* v;

  void One(Size i) const { v[i] = Bounded(v[i] + gradient.scale * gradient.g[i], limit); }
};

struct Nesterov {
  static constexpr bool kAdds = true;
  Gradient gradient;
  float momentum;
  float limit;
  float* u;
  float* v;

  void One(Size i) const {
    const float clipped = gradient.scale * gradient.g[i];
    const float moved = Bounded(momentum * u[i] + clipped, limit);
    u[i] = moved;
    v[i] = Bounded(v[i] + (momentum * moved + clipped), limit);
  }
};

#if defined(__AVX2__)

// So far ahead, in floats, that the memory is busy all the time; farther is worse. It may be behind
// the end, where nothing happens.
constexpr Size kAhead = 512;

template <typename Rule>
inline void FetchAhead(const Rule& rule, Size i, const float* v) {
  for (Size part = kAhead; part < kAhead + kGroup; part += 16) {
    __builtin_prefetch(v + i + part, 1);
    if constexpr (Rule::kAdds) __builtin_prefetch(rule.gradient.g + i + part);
  }
}

#endif

#if defined(__AVX512VBMI2__)

// max and min return their second operand where one is no number, as Bounded does.
inline __m512 Bounded(__m512 value, __m512 limit) {
  const __m512 least = _mm512_xor_ps(limit, _mm512_set1_ps(-0.0f));
  return _mm512_min_ps(limit, _mm512_max_ps(least, value));
}

inline __m512i Magnitude(__m512 value) {
  return _mm512_and_si512(_mm512_castps_si512(value),
                          _mm512_set1_epi32(static_cast<int>(kMagnitude)));
}

inline __m512 Sixteen(const Nothing&, Size i, __m512, const float* v) {
  return _mm512_loadu_ps(v + i);
}

inline __m512 Sixteen(const Plain& rule, Size i, __m512 g, const float*) {
  const __m512 added = _mm512_mul_ps(_mm512_set1_ps(rule.gradient.scale), g);
  const __m512 sum =
      Bounded(_mm512_add_ps(_mm512_loadu_ps(rule.v + i), added), _mm512_set1_ps(rule.limit));
  _mm512_storeu_ps(rule.v + i, sum);
  return sum;
}

inline __m512 Sixteen(const Nesterov& rule, Size i, __m512 g, const float*) {
  const __m512 limit = _mm512_set1_ps(rule.limit);
  const __m512 momentum = _mm512_set1_ps(rule.momentum);
  const __m512 clipped = _mm512_mul_ps(_mm512_set1_ps(rule.gradient.scale), g);
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
  const __m512i bound = _mm512_set1_epi32(static_cast<int>(rule.gradient.bound));
  __m512i position =
      _mm512_add_epi16(_mm512_load_si512(kIota), _mm512_set1_epi16(static_cast<short>(piece.at)));
  std::uint16_t* positions = picker.positions + picker.count;
  Size i = 0;
  for (; i + kGroup <= piece.count; i += kGroup) {
    FetchAhead(rule, i, v);
    __m512 g[4] = {};
    if constexpr (Rule::kAdds) {
      __m512i largest = _mm512_setzero_si512();
      for (Size part = 0; part < 4; ++part) {
        g[part] = _mm512_loadu_ps(rule.gradient.g + i + part * 16);
        largest = _mm512_max_epi32(largest, Magnitude(g[part]));
      }
      if (_mm512_cmpgt_epi32_mask(largest, bound) != 0) break;
    }
    for (Size half = 0; half < 2; ++half) {
      __mmask16 masks[2];
      for (Size part = 0; part < 2; ++part) {
        const Size number = 2 * half + part;
        const __m512 sum = Sixteen(rule, i + number * 16, g[number], v);
        masks[part] = _mm512_cmpge_epi32_mask(Magnitude(sum), least);
      }
      // Not by a shift: gcc 12 stores such a mask as 16 bits and may load it back as 32.
      const std::uint32_t mask = _mm512_kunpackw(masks[1], masks[0]);
      // To a register and then to memory: compressing stores are slow on some processors.
      _mm512_storeu_si512(positions, _mm512_maskz_compress_epi16(mask, position));
      positions += __builtin_popcount(mask);
      position = _mm512_add_epi16(position, _mm512_set1_epi16(32));
    }
  }
  picker.count = static_cast<Size>(positions - picker.positions);
  return i;
}

#elif defined(__AVX2__)

inline __m256 Bounded(__m256 value, __m256 limit) {
  const __m256 least = _mm256_xor_ps(limit, _mm256_set1_ps(-0.0f));
  return _mm256_min_ps(limit, _mm256_max_ps(least, value));
}

inline __m256i Magnitude(__m256 value) {
  return _mm256_and_si256(_mm256_castps_si256(value),
                          _mm256_set1_epi32(static_cast<int>(kMagnitude)));
}

inline __m256 Eight(const Nothing&, Size i, const float* v) { return _mm256_loadu_ps(v + i); }

inline __m256 Eight(const Plain& rule, Size i, const float*) {
  const __m256 added =
      _mm256_mul_ps(_mm256_set1_ps(rule.gradient.scale), _mm256_loadu_ps(rule.gradient.g + i));
  const __m256 sum =
      Bounded(_mm256_add_ps(_mm256_loadu_ps(rule.v + i), added), _mm256_set1_ps(rule.limit));
  _mm256_storeu_ps(rule.v + i, sum);
  return sum;
}

inline __m256 Eight(const Nesterov& rule, Size i, const float*) {
  const __m256 limit = _mm256_set1_ps(rule.limit);
  const __m256 momentum = _mm256_set1_ps(rule.momentum);
  const __m256 clipped =
      _mm256_mul_ps(_mm256_set1_ps(rule.gradient.scale), _mm256_loadu_ps(rule.gradient.g + i));
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
  const __m256i bound = _mm256_set1_epi32(static_cast<int>(rule.gradient.bound));
  Size picked = picker.count;
  Size i = 0;
  for (; i + kGroup <= piece.count; i += kGroup) {
    FetchAhead(rule, i, v);
    if constexpr (Rule::kAdds) {
      __m256i largest = _mm256_setzero_si256();
      for (Size part = 0; part < 8; ++part) {
        largest =
            _mm256_max_epi32(largest, Magnitude(_mm256_loadu_ps(rule.gradient.g + i + part * 8)));
      }
      const __m256i beyond = _mm256_cmpgt_epi32(largest, bound);
      if (_mm256_testz_si256(beyond, beyond) == 0) break;
    }
    std::uint64_t mask = 0;
    for (Size part = 0; part < 8; ++part) {
      const __m256i is_above = _mm256_cmpgt_epi32(Magnitude(Eight(rule, i + part * 8, v)), below);
      const int lanes = _mm256_movemask_ps(_mm256_castsi256_ps(is_above));
      mask |= static_cast<std::uint64_t>(lanes) << (8 * part);
    }
    for (; mask != 0; mask &= mask - 1) {
      const auto lane = static_cast<Size>(__builtin_ctzll(mask));
      picker.positions[picked++] = static_cast<std::uint16_t>(piece.at + i + lane);
    }
  }
  picker.count = picked;
  return i;
}

#else

std::uint32_t Largest(const float* values, Size count);

template <typename Rule>
Size Groups(const Rule& rule, Piece piece, const float* v, Picker& picker) {
  constexpr Size kLine = 16;
  const auto least = static_cast<std::int32_t>(picker.least);
  Size i = 0;
  for (; i + kGroup <= piece.count; i += kGroup) {
    if constexpr (Rule::kAdds) {
      if (Largest(rule.gradient.g + i, kGroup) > rule.gradient.bound) break;
      for (Size lane = i; lane < i + kGroup; ++lane) rule.One(lane);
    }
    for (Size line = i; line < i + kGroup; line += kLine) {
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
  }
  return i;
}

#endif

// No branch and no early end, which lets the compiler use vectors.
std::uint32_t Largest(const float* values, Size count) {
  std::int32_t largest = 0;
  for (Size i = 0; i < count; ++i) {
    const auto bits = static_cast<std::int32_t>(MagnitudeBits(values[i]));
    largest = bits > largest ? bits : largest;
  }
  return static_cast<std::uint32_t>(largest);
}

// The product of two floats is exact in double.
double Squares(const float* values, Size count) {
  constexpr Size kLanes = 16;
  double lanes[kLanes] = {};
  Size at = 0;
#if defined(__AVX512VBMI2__)
  __m512d sums[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
  for (; at + kLanes <= count; at += kLanes) {
    for (Size half = 0; half < 2; ++half) {
      const __m512d value = _mm512_cvtps_pd(_mm256_loadu_ps(values + at + 8 * half));
      sums[half] = _mm512_add_pd(sums[half], _mm512_mul_pd(value, value));
    }
  }
  for (Size half = 0; half < 2; ++half) _mm512_storeu_pd(lanes + 8 * half, sums[half]);
#elif defined(__AVX2__)
  __m256d sums[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(),
                     _mm256_setzero_pd()};
  for (; at + kLanes <= count; at += kLanes) {
    for (Size part = 0; part < 4; ++part) {
      const __m256d value = _mm256_cvtps_pd(_mm_loadu_ps(values + at + 4 * part));
      sums[part] = _mm256_add_pd(sums[part], _mm256_mul_pd(value, value));
    }
  }
  for (Size part = 0; part < 4; ++part) _mm256_storeu_pd(lanes + 4 * part, sums[part]);
#else
  for (; at + kLanes <= count; at += kLanes) {
    for (Size lane = 0; lane < kLanes; ++lane) {
      const double value = values[at + lane];
      lanes[lane] += value * value;
    }
  }
#endif
  for (Size lane = 0; at < count; ++at, ++lane) {
    const double value = values[at];
    lanes[lane] += value * value;
  }
  double sum = 0;
  for (Size lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
  return sum;
}

template <typename Rule>
Size Run(const Rule& rule, Piece piece, const float* v, Picker& picker) {
  const Size before = picker.count;
  Size done = Groups(rule, piece, v, picker);
  // What is left of a piece that was not stopped is less than a group.
  if (piece.count - done < kGroup &&
      (!Rule::kAdds ||
       Largest(rule.gradient.g + done, piece.count - done) <= rule.gradient.bound)) {
    for (; done < piece.count; ++done) {
      rule.One(done);
      PickOne(v[done], piece.at + static_cast<std::uint32_t>(done), picker);
    }
  }
  for (Size at = before; at < picker.count; ++at) {
    picker.values[at] = v[static_cast<std::uint16_t>(picker.positions[at] - piece.at)];
  }
  return done;
}

Size Add(Piece piece, const Gradient& gradient, float limit, float* v, Picker& picker) {
  return Run(Plain{gradient, limit, v}, piece, v, picker);
}

Size AddNesterov(Piece piece, const Gradient& gradient, float momentum, float limit, float* u,
                 float* v, Picker& picker) {
  return Run(Nesterov{gradient, momentum, limit, u, v}, piece, v, picker);
}

void Pick(Piece piece, const float* v, Picker& picker) { Run(Nothing(), piece, v, picker); }

constexpr Table MakeTable(const char* name) {
  return Table{name, &Add, &AddNesterov, &Pick, &Largest, &Squares};
}

}  // namespace
}  // namespace ps::worker::kernels
