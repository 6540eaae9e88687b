#include "common/codec/finite.h"

#include "common/codec/kernels/kernels.h"

namespace ps::codec {

bool AllFinite32(std::span<const std::byte> binary32) {
  return kernels::Fastest().largest32(binary32.data(), binary32.size() / 4) < 0x7f800000u;
}

bool AllFinite16(std::span<const std::byte> bfloat16) {
  return kernels::Fastest().largest16(bfloat16.data(), bfloat16.size() / 2) < 0x7f80u;
}

}  // namespace ps::codec
