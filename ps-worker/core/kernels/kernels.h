// The loops of the sparsifier over all elements: accumulate, and pick what is large.
//
// The same source (loops.h) is compiled three times: for any x86-64, for AVX2
// and for AVX-512 with VBMI2; Fastest() names the best one that this processor
// has. Each product and sum is rounded by itself, so the results of all variants
// are equal bit for bit.
//
// This header is compiled for processors that the running one may not be: it
// must not include anything with inline functions, of which the linker would
// keep one variant for all. Arrays may start at any address. Pure functions; any
// thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ps::worker::kernels {

// Entries are written up to so many places behind the last one that is picked.
inline constexpr std::size_t kSlack = 64;

// Collects the entries of a block whose magnitude is at least `least`, in their order.
struct Picker {
  std::uint32_t least;       // a float without its sign, as bits; at least 1
  std::uint16_t* positions;  // of entries in the block: where the first one goes
  float* values;
  std::size_t count;  // of those that are there
};

// `count` elements of a block, the first of which has the position `at`.
struct Piece {
  std::size_t count;
  std::uint32_t at;
};

// A gradient, which is multiplied by `scale`. A value beyond `bound` (of its magnitude, as bits;
// NaN is beyond all that are finite) stops the loop.
struct Gradient {
  const float* g;
  float scale;
  std::uint32_t bound;
};

inline constexpr std::uint32_t kNoBound = 0x7fffffffu;

// One variant. Sums stay within +-limit; what is no number stays that. What adds returns how many
// elements it did: all, or those before the first group of 64 (of the piece; at its end fewer) in
// which a value is beyond the bound.
struct Table {
  const char* name;  // "plain", "avx2", "avx512"

  // v += scale g, and picks from v.
  std::size_t (*add)(Piece, const Gradient&, float limit, float* v, Picker&);
  // u = momentum u + scale g; v += momentum u + scale g; and picks from v.
  std::size_t (*add_nesterov)(Piece, const Gradient&, float momentum, float limit, float* u,
                              float* v, Picker&);
  void (*pick)(Piece, const float* v, Picker&);
  // The largest of the values without their signs, as bits: those of NaN are above all others. 0 if
  // there is none.
  std::uint32_t (*largest)(const float* values, std::size_t count);
  // The sum of their squares. Those of every sixteenth value are added up by themselves.
  double (*squares)(const float* values, std::size_t count);
};

// Those that this processor has, the plain one first; ends with null.
const Table* const* Available();
const Table& Fastest();

}  // namespace ps::worker::kernels
