// Small pieces of the API's vocabulary.
#pragma once

#include <cstdint>
#include <string>

namespace ps::coordinator {

// RFC 3339 in UTC with milliseconds; empty for 0.
std::string TimeText(std::uint64_t unix_ms);

}  // namespace ps::coordinator
