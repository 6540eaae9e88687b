// The values of the entries of a block.
//
// The formats are in docs/wire-format.md. Fp32 and Bf16 are written entry by
// entry; the others quantise groups of kValueGroup entries, in their order, by
// scales of their own. What a receiver decodes is always finite for those: their
// scales are checked. Pure functions, any thread; bytes may start at any address.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "common/codec/kernels/kernels.h"
#include "common/host_device.h"
#include "common/messages/wire.h"
#include "common/result.h"

namespace ps::codec {

inline constexpr std::uint32_t kValueGroup = 512;

// Exactly the bytes of `count` values.
std::size_t ValueBytes(wire::ValueCodec codec, std::size_t count);

// Writes the values at `out`, which holds ValueBytes(), and returns the end. `sent` (same length,
// or empty) receives them as they will be decoded. Values of the quantising codecs should be
// finite: others, and magnitudes above the greatest bf16, are taken for that one.
std::byte* WriteValues(std::span<const float> values, wire::ValueCodec codec, std::byte* out,
                       std::span<float> sent);

// kInvalid unless `bytes` are values of the header's codec and number. Infinite Fp32 and Bf16 pass.
Status CheckValues(const wire::BlockHeader& header, std::span<const std::byte> bytes);

// False if any value is inf or NaN: never for checked values of the quantising codecs.
bool ValuesFinite(wire::ValueCodec codec, std::span<const std::byte> value_bytes);

// Reads checked values, which it borrows, in pieces.
class ValueReader {
 public:
  ValueReader(wire::ValueCodec codec, std::size_t count, std::span<const std::byte> bytes,
              const kernels::Table& kernels = kernels::Fastest());

  // Writes the next `count` values. All but the last call take a multiple of kValueGroup.
  void Next(std::size_t count, float* out);

 private:
  void NextGroup(std::size_t count, float* out);

  const kernels::Table* kernels_;
  wire::ValueCodec codec_;
  const std::byte* scales_;  // of the next group; Fp32, Bf16: not used
  const std::byte* at_;
};

// Of Int8: the least scale, as bf16, by which magnitudes up to `greatest` have codes up to 127; at
// least the least normal number, whose inverse is finite.
std::uint16_t Int8ScaleOf(float greatest);
// False if a code times this could be infinite, or if it is negative.
bool IsInt8Scale(std::uint16_t bits);

PS_HOST_DEVICE inline float Bf16ToFloat(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// To nearest even; NaN stays NaN.
PS_HOST_DEVICE inline std::uint16_t FloatToBf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  // Rounding could carry a NaN into infinity or zero: keep its upper half, quiet.
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<std::uint16_t>(nan ? (bits >> 16) | 0x40u : rounded);
}

}  // namespace ps::codec
