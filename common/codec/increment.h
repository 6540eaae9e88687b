// What all workers of a shard hold of its parameters, and how increments move it.
//
// A worker that takes increments holds every parameter as a bf16, and so does the
// server, which codes its increments against that: both do the same arithmetic, so
// that they hold the same bits. A sum is that of binary32, rounded to bf16;
// denormals count as zero, so that it does not matter in which mode a processor is.
// docs/wire-format.md, "Increments". Pure, any thread.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "common/codec/value_codec.h"

struct XXH3_state_s;

namespace ps::codec {

// Answers to pulls have at most so many increments of a block.
inline constexpr std::uint32_t kIncrementPushesMax = 64;

// A value as it is held.
PS_HOST_DEVICE inline std::uint16_t HeldOf(float value) {
  const std::uint16_t bits = FloatToBf16(value);
  return (bits & 0x7f80u) == 0 ? std::uint16_t{0} : bits;
}

PS_HOST_DEVICE inline std::uint16_t AddIncrement(std::uint16_t held, float increment) {
  constexpr std::uint32_t kExponent = 0x7f800000u;
  if ((std::bit_cast<std::uint32_t>(increment) & kExponent) == 0) return held;
  const float sum = Bf16ToFloat(held) + increment;
  return (std::bit_cast<std::uint32_t>(sum) & kExponent) == 0 ? std::uint16_t{0} : FloatToBf16(sum);
}

// XXH3-64 of what is held, block by block, each value as 2 bytes.
class HeldHash {
 public:
  HeldHash();
  void Add(std::span<const std::uint16_t> held);
  std::uint64_t Digest() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

}  // namespace ps::codec
