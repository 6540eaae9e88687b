// The rules by which a gradient enters the residual; core/sparsifier.h says what they compute.
#pragma once

#include <cstdint>

namespace ps::worker {

enum class AccumulationRule : std::uint8_t { kPlain, kNesterov, kAdam };

// Bound of the magnitudes of all that is accumulated, so that no value on the wire is ever
// infinite.
inline constexpr float kAccumulatedLimit = 1e38f;

}  // namespace ps::worker
