// Blocks that a pull brings, into the values that a worker holds.
//
// A dense block replaces all of them, a sparse one those at its positions; the increments of a
// shadow are added (increment.h). One thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/codec/block_codec.h"

namespace ps::codec {

class BlockWriter {
 public:
  // `block` was validated for a block of values.size() elements.
  void Write(const BlockView& block, bool increments, std::span<float> values);

 private:
  std::vector<std::uint16_t> indices_;
  std::vector<float> values_;
};

}  // namespace ps::codec
