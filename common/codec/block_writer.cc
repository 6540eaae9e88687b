#include "common/codec/block_writer.h"

#include <algorithm>

#include "common/check.h"
#include "common/codec/increment.h"
#include "common/codec/value_codec.h"

namespace ps::codec {

void BlockWriter::Write(const BlockView& block, bool increments, std::span<float> values) {
  DecodeValues(block, values_);
  if (block.dense()) {
    PS_CHECK(values_.size() == values.size(), values_.size(), values.size());
    std::copy(values_.begin(), values_.end(), values.begin());
    return;
  }
  DecodeIndices(block, indices_);
  if (!increments) {
    for (std::size_t i = 0; i < indices_.size(); ++i) values[indices_[i]] = values_[i];
    return;
  }
  for (std::size_t i = 0; i < indices_.size(); ++i) {
    float& at = values[indices_[i]];
    at = Bf16ToFloat(AddIncrement(FloatToBf16(at), values_[i]));
  }
}

}  // namespace ps::codec
