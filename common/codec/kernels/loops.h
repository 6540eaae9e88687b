// The source of one variant of the kernels; see kernels.h.
//
// Included by plain.cc, avx2.cc and avx512.cc, which are compiled for their
// processors: everything here has internal linkage and nothing with inline
// functions may be included (those of intrinsics are always expanded). Where no
// intrinsic is used the loops are written so that the compiler makes vectors of
// them.
#pragma once

#include <cstddef>
#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/codec/kernels/kernels.h"

namespace ps::codec::kernels {
namespace {

using Size = std::size_t;

struct ByteTables {
  std::uint8_t ones[256][8];  // where a byte has its ones, then zeros
  std::uint8_t count[256];    // of its ones
  std::uint64_t spread[256];  // bit i of the byte as byte i
};

constexpr ByteTables MakeByteTables() {
  ByteTables tables{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    for (unsigned bit = 0; bit < 8; ++bit) {
      if ((byte >> bit & 1u) == 0) continue;
      tables.ones[byte][tables.count[byte]++] = static_cast<std::uint8_t>(bit);
      tables.spread[byte] |= std::uint64_t{1} << (8 * bit);
    }
  }
  return tables;
}

[[maybe_unused]] constexpr ByteTables kBytes = MakeByteTables();

#if defined(__AVX2__)
alignas(64) constexpr std::uint16_t kIota[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10,
                                                 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                                 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
#endif

// Up to `size` bytes as a number, the rest of it zero.
template <typename Word>
inline Word LoadUpTo(const std::byte* from, Size size) {
  Word word = 0;
  if (size >= sizeof(Word)) {
    __builtin_memcpy(&word, from, sizeof(Word));
    return word;
  }
  for (Size i = 0; i < size; ++i) {
    word = static_cast<Word>(word | static_cast<std::uint64_t>(from[i]) << (8 * i));
  }
  return word;
}

// ---- ones

// Writes where all ones of `word` are, and returns how many.
inline Size EmitOnes(std::uint64_t word, std::uint32_t base, std::uint16_t* out) {
#if defined(__AVX512VBMI2__)
  const __m512i low =
      _mm512_add_epi16(_mm512_load_si512(kIota), _mm512_set1_epi16(static_cast<short>(base)));
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(32));
  const auto low_mask = static_cast<std::uint32_t>(word);
  const auto high_mask = static_cast<std::uint32_t>(word >> 32);
  // To a register and then to memory: compressing stores are slow on some processors.
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi16(low_mask, low));
  _mm512_storeu_si512(out + __builtin_popcount(low_mask),
                      _mm512_maskz_compress_epi16(high_mask, high));
  return static_cast<Size>(__builtin_popcountll(word));
#else
  Size count = 0;
  for (std::uint32_t at = 0; at < 64; at += 8) {
    const auto byte = static_cast<std::uint8_t>(word >> at);
    const auto first = static_cast<std::uint16_t>(base + at);
    for (Size i = 0; i < 8; ++i) {
      out[count + i] = static_cast<std::uint16_t>(first + kBytes.ones[byte][i]);
    }
    count += kBytes.count[byte];
  }
  return count;
#endif
}

void NextOnes(Ones& ones, Size count, std::uint16_t* out) {
  std::uint64_t word = ones.word;
  std::uint32_t base = ones.base;
  while (count > 0) {
    if (word == 0) {
      if (ones.left == 0) break;  // a checked stream does not come here
      const Size taken = ones.left < 8 ? ones.left : 8;
      word = LoadUpTo<std::uint64_t>(ones.bytes, taken);
      ones.bytes += taken;
      ones.left -= taken;
      base += 64;
    }
    const Size found = EmitOnes(word, base, out);
    if (found > count) {
      for (; count > 0; --count) word &= word - 1;
      break;
    }
    out += found;
    count -= found;
    word = 0;
  }
  ones.word = word;
  ones.base = base;
}

std::uint64_t CountOnes(const std::byte* bytes, Size size) {
  std::uint64_t count = 0;
  Size at = 0;
#if defined(__POPCNT__)
  for (; at + 8 <= size; at += 8) {
    count +=
        static_cast<std::uint64_t>(__builtin_popcountll(LoadUpTo<std::uint64_t>(bytes + at, 8)));
  }
#endif
  for (; at < size; ++at) count += kBytes.count[static_cast<std::uint8_t>(bytes[at])];
  return count;
}

// ---- remainders

#if defined(__AVX512VBMI2__)

void AddRemainders(const Planes& planes, Size first, Size count, std::uint16_t& sum,
                   std::uint16_t* positions) {
  // Lane i takes the end of the group of eight before its own, where that is in the same half; then
  // the upper half takes the end of the lower one.
  alignas(64) static constexpr std::uint16_t kGroupEnds[32] = {
      0, 0, 0, 0, 0, 0, 0, 0, 7,  7,  7,  7,  7,  7,  7,  7,
      0, 0, 0, 0, 0, 0, 0, 0, 23, 23, 23, 23, 23, 23, 23, 23};
  const __m512i group_ends = _mm512_load_si512(kGroupEnds);
  const __m512i half_end = _mm512_set1_epi16(15);
  const __m512i last = _mm512_set1_epi16(31);
  const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(planes.bits));
  __m512i entries =
      _mm512_add_epi16(_mm512_load_si512(kIota), _mm512_set1_epi16(static_cast<short>(first)));
  __m512i carry = _mm512_set1_epi16(static_cast<short>(sum));
  for (Size at = 0; at < count; at += 32) {
    const std::byte* plane = planes.bytes + (first + at) / 8;
    const Size size = planes.plane_bytes - (first + at) / 8;
    __m512i x = _mm512_setzero_si512();
    for (std::uint32_t bit = 0; bit < planes.bits; ++bit, plane += planes.plane_bytes) {
      x = _mm512_mask_add_epi16(x, LoadUpTo<std::uint32_t>(plane, size), x,
                                _mm512_set1_epi16(static_cast<short>(1u << bit)));
    }
    x = _mm512_add_epi16(x, _mm512_bslli_epi128(x, 2));
    x = _mm512_add_epi16(x, _mm512_bslli_epi128(x, 4));
    x = _mm512_add_epi16(x, _mm512_bslli_epi128(x, 8));
    x = _mm512_add_epi16(x, _mm512_maskz_permutexvar_epi16(0xff00ff00u, group_ends, x));
    x = _mm512_add_epi16(x, _mm512_maskz_permutexvar_epi16(0xffff0000u, half_end, x));
    x = _mm512_add_epi16(x, carry);
    carry = _mm512_permutexvar_epi16(last, x);
    const __m512i quotients = _mm512_sub_epi16(_mm512_loadu_si512(positions + at), entries);
    x = _mm512_add_epi16(x, _mm512_sll_epi16(quotients, shift));
    _mm512_storeu_si512(positions + at, _mm512_add_epi16(x, entries));
    entries = _mm512_add_epi16(entries, _mm512_set1_epi16(32));
  }
  sum = static_cast<std::uint16_t>(_mm512_cvtsi512_si32(carry));
}

#elif defined(__AVX2__)

void AddRemainders(const Planes& planes, Size first, Size count, std::uint16_t& sum,
                   std::uint16_t* positions) {
  alignas(32) static constexpr std::uint16_t kBits[16] = {
      1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  const __m256i lane_bit = _mm256_load_si256(reinterpret_cast<const __m256i*>(kBits));
  const __m256i group_end = _mm256_set1_epi16(0x0f0e);  // the last of eight, in all of them
  const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(planes.bits));
  __m256i entries = _mm256_add_epi16(_mm256_load_si256(reinterpret_cast<const __m256i*>(kIota)),
                                     _mm256_set1_epi16(static_cast<short>(first)));
  __m256i carry = _mm256_set1_epi16(static_cast<short>(sum));
  for (Size at = 0; at < count; at += 16) {
    const std::byte* plane = planes.bytes + (first + at) / 8;
    const Size size = planes.plane_bytes - (first + at) / 8;
    __m256i x = _mm256_setzero_si256();
    for (std::uint32_t bit = 0; bit < planes.bits; ++bit, plane += planes.plane_bytes) {
      const auto word = LoadUpTo<std::uint16_t>(plane, size);
      const __m256i own = _mm256_and_si256(_mm256_set1_epi16(static_cast<short>(word)), lane_bit);
      const __m256i set = _mm256_cmpeq_epi16(own, lane_bit);
      x = _mm256_or_si256(x,
                          _mm256_and_si256(set, _mm256_set1_epi16(static_cast<short>(1u << bit))));
    }
    x = _mm256_add_epi16(x, _mm256_bslli_epi128(x, 2));
    x = _mm256_add_epi16(x, _mm256_bslli_epi128(x, 4));
    x = _mm256_add_epi16(x, _mm256_bslli_epi128(x, 8));
    const __m256i lower = _mm256_permute2x128_si256(x, x, 0x08);  // above, below zero
    x = _mm256_add_epi16(x, _mm256_shuffle_epi8(lower, group_end));
    x = _mm256_add_epi16(x, carry);
    carry = _mm256_shuffle_epi8(_mm256_permute2x128_si256(x, x, 0x11), group_end);
    auto* const to = reinterpret_cast<__m256i*>(positions + at);
    const __m256i quotients = _mm256_sub_epi16(_mm256_loadu_si256(to), entries);
    x = _mm256_add_epi16(x, _mm256_sll_epi16(quotients, shift));
    _mm256_storeu_si256(to, _mm256_add_epi16(x, entries));
    entries = _mm256_add_epi16(entries, _mm256_set1_epi16(16));
  }
  sum = static_cast<std::uint16_t>(_mm256_extract_epi16(carry, 0));
}

#else

void AddRemainders(const Planes& planes, Size first, Size count, std::uint16_t& sum,
                   std::uint16_t* positions) {
  std::uint32_t total = sum;
  for (Size at = 0; at < count; at += 8) {
    const std::byte* plane = planes.bytes + (first + at) / 8;
    // Eight remainders: their lower and their upper bytes.
    std::uint64_t low = 0;
    std::uint64_t high = 0;
    for (std::uint32_t bit = 0; bit < planes.bits; ++bit, plane += planes.plane_bytes) {
      const std::uint64_t ones = kBytes.spread[static_cast<std::uint8_t>(*plane)];
      if (bit < 8) {
        low |= ones << bit;
      } else {
        high |= ones << (bit - 8);
      }
    }
    const Size end = count - at < 8 ? count : at + 8;
    for (Size i = at; i < end; ++i) {
      total += static_cast<std::uint32_t>((low & 255) | (high & 255) << 8);
      low >>= 8;
      high >>= 8;
      const auto entry = static_cast<std::uint32_t>(first + i);
      positions[i] =
          static_cast<std::uint16_t>(((positions[i] - entry) << planes.bits) + total + entry);
    }
  }
  sum = static_cast<std::uint16_t>(total);
}

#endif

// ---- values

inline float LookedUp(const std::byte* codes, std::uint32_t bits, Size at, const float* values) {
  const Size bit = at * bits;
  const auto byte = static_cast<std::uint8_t>(codes[bit / 8]);
  return values[byte >> (bit % 8) & ((1u << bits) - 1)];
}

#if defined(__AVX512VBMI2__)

// Codes are shifted to the lowest bits of their lanes. What is left above them does not matter:
// `values` repeats.
void LookUp(const std::byte* codes, std::uint32_t bits, Size count, const float* values,
            float* out) {
  const __m512 table = _mm512_loadu_ps(values);
  Size at = 0;
  if (bits == 4) {
    const __m512i shifts =
        _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    for (; at + 16 <= count; at += 16) {
      const auto word = LoadUpTo<std::uint64_t>(codes + at / 2, 8);
      const __m512i low = _mm512_set1_epi32(static_cast<int>(word));
      const __m512i both = _mm512_mask_set1_epi32(low, 0xff00, static_cast<int>(word >> 32));
      _mm512_storeu_ps(out + at, _mm512_permutexvar_ps(_mm512_srlv_epi32(both, shifts), table));
    }
  } else {
    const __m512i shifts =
        _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                           _mm512_set1_epi32(static_cast<int>(bits)));
    for (; at + 16 <= count; at += 16) {
      const std::byte* const from = codes + at * bits / 8;
      const std::uint32_t word =
          bits == 2 ? LoadUpTo<std::uint32_t>(from, 4) : LoadUpTo<std::uint16_t>(from, 2);
      const __m512i lanes = _mm512_srlv_epi32(_mm512_set1_epi32(static_cast<int>(word)), shifts);
      _mm512_storeu_ps(out + at, _mm512_permutexvar_ps(lanes, table));
    }
  }
  for (; at < count; ++at) out[at] = LookedUp(codes, bits, at, values);
}

#elif defined(__AVX2__)

void LookUp(const std::byte* codes, std::uint32_t bits, Size count, const float* values,
            float* out) {
  // Of codes of four bits the highest is the sign; shorter ones fit three bits.
  const __m256 table = _mm256_loadu_ps(values);
  const __m256i shifts = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                            _mm256_set1_epi32(static_cast<int>(bits)));
  const __m256i sign = _mm256_set1_epi32(bits == 4 ? static_cast<int>(0x80000000u) : 0);
  Size at = 0;
  for (; at + 8 <= count; at += 8) {
    const std::byte* const from = codes + at * bits / 8;
    const std::uint32_t word = bits == 4 ? LoadUpTo<std::uint32_t>(from, 4)
                               : bits == 2 ? LoadUpTo<std::uint16_t>(from, 2)
                                           : LoadUpTo<std::uint8_t>(from, 1);
    const __m256i lanes = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(word)), shifts);
    const __m256i signs = _mm256_and_si256(_mm256_slli_epi32(lanes, 28), sign);
    _mm256_storeu_ps(out + at, _mm256_xor_ps(_mm256_permutevar8x32_ps(table, lanes),
                                             _mm256_castsi256_ps(signs)));
  }
  for (; at < count; ++at) out[at] = LookedUp(codes, bits, at, values);
}

#else

template <std::uint32_t kBits>
void LookUpBytes(const std::byte* codes, Size count, const float* values, float* out) {
  constexpr Size kInByte = 8 / kBits;
  Size at = 0;
  for (; at + kInByte <= count; at += kInByte) {
    const std::uint32_t byte = static_cast<std::uint8_t>(codes[at / kInByte]);
    for (Size i = 0; i < kInByte; ++i) {
      out[at + i] = values[byte >> (i * kBits) & ((1u << kBits) - 1)];
    }
  }
  for (; at < count; ++at) out[at] = LookedUp(codes, kBits, at, values);
}

void LookUp(const std::byte* codes, std::uint32_t bits, Size count, const float* values,
            float* out) {
  switch (bits) {
    case 1: return LookUpBytes<1>(codes, count, values, out);
    case 2: return LookUpBytes<2>(codes, count, values, out);
    default: return LookUpBytes<4>(codes, count, values, out);
  }
}

#endif

void ScaleInt8(const std::byte* codes, Size count, float scale, float* out) {
  for (Size i = 0; i < count; ++i) {
    out[i] = static_cast<float>(static_cast<std::int8_t>(codes[i])) * scale;
  }
}

void WidenBf16(const std::byte* values, Size count, float* out) {
  for (Size i = 0; i < count; ++i) {
    std::uint16_t half;
    __builtin_memcpy(&half, values + i * 2, sizeof(half));
    const std::uint32_t bits = std::uint32_t{half} << 16;
    __builtin_memcpy(out + i, &bits, sizeof(bits));
  }
}

// No branch and no early end, which lets the compiler use vectors.
template <typename Bits>
Bits Largest(const std::byte* values, Size count) {
  constexpr auto kMagnitude = static_cast<Bits>(static_cast<Bits>(-1) >> 1);
  Bits largest = 0;
  for (Size i = 0; i < count; ++i) {
    Bits bits;
    __builtin_memcpy(&bits, values + i * sizeof(bits), sizeof(bits));
    bits = static_cast<Bits>(bits & kMagnitude);
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

constexpr Table MakeTable(const char* name) {
  return Table{name,
               &NextOnes,
               &AddRemainders,
               &CountOnes,
               &LookUp,
               &ScaleInt8,
               &WidenBf16,
               &Largest<std::uint32_t>,
               &Largest<std::uint16_t>};
}

}  // namespace
}  // namespace ps::codec::kernels
