#include "common/codec/finite.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace ps::codec {
namespace {

// The largest magnitude, as bits: no branch and no early end, which lets the compiler use vectors.
template <typename Bits>
[[gnu::always_inline]] inline Bits Largest(const std::byte* from, std::size_t count) {
  constexpr Bits kMagnitude = static_cast<Bits>(~Bits{0}) >> 1;
  Bits largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, from + i * sizeof(Bits), sizeof(Bits));
    largest = std::max(largest, static_cast<Bits>(bits & kMagnitude));
  }
  return largest;
}

struct Loops {
  std::uint32_t (*of32)(const std::byte*, std::size_t);
  std::uint16_t (*of16)(const std::byte*, std::size_t);
};

template <typename Bits>
Bits Plain(const std::byte* from, std::size_t count) {
  return Largest<Bits>(from, count);
}
template <typename Bits>
[[gnu::target("avx2")]] Bits Avx2(const std::byte* from, std::size_t count) {
  return Largest<Bits>(from, count);
}
// clang knows the width by another attribute only, and takes half of it here.
#if defined(__clang__)
#define PS_AVX512 "avx512f,avx512bw,avx512vl"
#else
#define PS_AVX512 "avx512f,avx512bw,avx512vl,prefer-vector-width=512"
#endif
template <typename Bits>
[[gnu::target(PS_AVX512)]] Bits Avx512(const std::byte* from, std::size_t count) {
  return Largest<Bits>(from, count);
}

const Loops& Fastest() {
  static const Loops loops = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
      return Loops{Avx512<std::uint32_t>, Avx512<std::uint16_t>};
    }
    if (__builtin_cpu_supports("avx2")) return Loops{Avx2<std::uint32_t>, Avx2<std::uint16_t>};
    return Loops{Plain<std::uint32_t>, Plain<std::uint16_t>};
  }();
  return loops;
}

}  // namespace

bool AllFinite32(std::span<const std::byte> binary32) {
  return Fastest().of32(binary32.data(), binary32.size() / 4) < 0x7f800000u;
}

bool AllFinite16(std::span<const std::byte> bfloat16) {
  return Fastest().of16(bfloat16.data(), bfloat16.size() / 2) < 0x7f80u;
}

}  // namespace ps::codec
