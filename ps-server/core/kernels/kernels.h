// The loops that change values: one pushed block, or one row, under one optimizer.
//
// The same source (loops.inc) is compiled three times: for any x86-64, for AVX2
// and for AVX-512; Fastest() names the best one that this processor has. All
// variants do the same operations in the same order, without fused
// multiply-adds, so their results are equal bit for bit. They read the encoded
// bytes of a push in place, at any address, in pieces that stay in the L1 cache.
//
// This header is compiled for processors that the running one may not be: it
// must not include anything with inline functions, of which the linker would
// keep one variant for all. Nothing is checked here; a push has passed
// codec::ParseSegment. Pure functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ps::server::kernels {

// The formulas are in optimizer.h.
enum class Rule : std::uint8_t { kSgd, kMomentum, kNesterov, kAdagrad, kAdam, kFtrl, kSparseAdam };

struct Rules {
  Rule rule;
  float momentum;
  float beta1;
  float beta1_rest;  // 1 - beta1
  float beta2;
  float beta2_rest;
  float epsilon;
  float l1;
  float l2;
  float beta;
  float clip;  // infinity: off
};

// What all elements of a push have in common.
struct Step {
  float rate;   // r; with ftrl a
  float scale;  // of the gradient, after it was clipped: 1 but with ftrl
  float decay;  // r d
  // sparse_adam: pushes so far, this one included; modulo 2^32, and at most 2^32 - 1.
  std::uint32_t tick;
  std::uint32_t age;
};

// Of Adam's moments after t updates: 1 / (1 - b1^t) and 1 / sqrt(1 - b2^t). With sparse_adam b2^t
// and 1 / sqrt(1 - b2^t).
struct Correction {
  float first;
  float second;
};
// [t]; the last one is that of all higher t. Null unless the rule is Adam or sparse_adam.
struct Corrections {
  const Correction* of;
  std::uint32_t last;
};

enum class Positions : std::uint8_t { kDense, kGap8, kRaw16 };

// The entries of a block as they were pushed.
struct Push {
  Positions positions;
  bool bf16;  // the values are bf16, else fp32
  std::uint32_t count;
  const std::byte* index_bytes;
  const std::byte* values;
};

// The elements of a block: the one at `position` has its value at value[position * stride], and its
// slots likewise; null where the rule has none.
struct Elements {
  float* value;
  float* slot0;
  float* slot1;
  // Updates of each element, or with sparse_adam the tick of the last one. Their bits are a whole
  // number; null: `block_updates` for all.
  float* updates;
  std::uint32_t block_updates;  // this push included; sparse_adam: the tick before it
  std::uint32_t stride;         // in floats: 1, 2 or 4
};

// One variant.
struct Table {
  const char* name;  // "plain", "avx2", "avx512"

  // A row of aligned floats; slots lie in arrays of their own. `correction` is read with Adam only.
  void (*row)(const Rules&, const Step&, Correction, float* values, float* slot0, float* slot1,
              const float* gradient, std::size_t width);
  void (*rowwise_adagrad)(const Rules&, const Step&, float* values, float* row_slot,
                          const float* gradient, std::size_t width);

  // One pushed block of `count` elements.
  void (*block)(const Rules&, const Step&, const Corrections&, const Elements&,
                std::uint32_t elements, const Push&);
};

// Those that this processor has, the plain one first; ends with null.
const Table* const* Available();
const Table& Fastest();

}  // namespace ps::server::kernels
