// The loops of the codecs that are worth vectors: decoding and validating streams.
//
// The same source (loops.h) is compiled three times: for any x86-64, for AVX2
// and for AVX-512 with VBMI2; Fastest() names the best one that this processor
// has. They compute whole numbers, copies and single products, so the results
// of all variants are equal bit for bit.
//
// This header is compiled for processors that the running one may not be: it
// must not include anything with inline functions, of which the linker would
// keep one variant for all. Streams may start at any address; nothing is read
// behind their end. Pure functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ps::codec::kernels {

// Positions are written up to so many places behind the last one that was asked for.
inline constexpr std::size_t kSlack = 64;

// A reader of the ones of a bit stream (bit i of byte b is bit 8 b + i).
struct Ones {
  const std::byte* bytes;     // not looked at yet
  std::size_t left;           // of them
  std::uint64_t word = 0;     // looked at: its ones are to be given out
  std::uint32_t base = -64u;  // the stream's bit that bit 0 of `word` is
};

// Bit b of the remainder of entry i is bit i of plane b; each plane is `plane_bytes` long.
struct Planes {
  const std::byte* bytes;
  std::size_t plane_bytes;
  std::uint32_t bits;  // planes, 0 .. 15
};

// One variant.
struct Table {
  const char* name;  // "plain", "avx2", "avx512"

  // Where the next `count` ones are, modulo 2^16; the stream has so many.
  void (*ones)(Ones&, std::size_t count, std::uint16_t* out);
  // `positions` are those of ones in a unary stream, of the entries from `first` (a multiple of 32)
  // on; they become those of the entries. `sum` is that of the remainders so far. Modulo 2^16.
  void (*add_remainders)(const Planes&, std::size_t first, std::size_t count, std::uint16_t& sum,
                         std::uint16_t* positions);
  std::uint64_t (*count_ones)(const std::byte* bytes, std::size_t size);

  // Codes of 1, 2 or 4 bits, the first one in the lowest bits: out[i] = values[code i]. `values` is
  // repeated to a length of 16; for 4 bits values[8 + i] is -values[i].
  void (*look_up)(const std::byte* codes, std::uint32_t bits, std::size_t count,
                  const float* values, float* out);
  void (*scale_int8)(const std::byte* codes, std::size_t count, float scale, float* out);
  void (*widen_bf16)(const std::byte* values, std::size_t count, float* out);

  // The largest of `count` values without their signs, as bits; 0 if there is none.
  std::uint32_t (*largest32)(const std::byte* values, std::size_t count);
  std::uint16_t (*largest16)(const std::byte* values, std::size_t count);
};

// Those that this processor has, the plain one first; ends with null.
const Table* const* Available();
const Table& Fastest();

}  // namespace ps::codec::kernels
