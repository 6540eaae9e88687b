// Whether encoded values are all finite.
//
// Every push is looked over before its first value is applied (rule S2), so this
// runs over all the bytes that a lane receives, with the kernels that the
// processor has. Any thread, any alignment.
#pragma once

#include <cstddef>
#include <span>

namespace ps::codec {

// No infinity and no NaN. Bytes that make no whole value are not looked at.
bool AllFinite32(std::span<const std::byte> binary32);
bool AllFinite16(std::span<const std::byte> bfloat16);

}  // namespace ps::codec
