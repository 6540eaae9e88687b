#include "tests/simulation/cluster/schedule.h"

#include <xxhash.h>

#include <array>

namespace ps::simulation {

void Schedule::Trace(std::string_view what, std::uint64_t a, std::uint64_t b) {
  const std::array<std::uint64_t, 5> words = {trace_, static_cast<std::uint64_t>(now_ms()),
                                              XXH3_64bits(what.data(), what.size()), a, b};
  trace_ = XXH3_64bits(words.data(), sizeof(words));
}

void Schedule::Trace(std::string_view what, std::span<const std::byte> bytes) {
  Trace(what, bytes.size(), XXH3_64bits(bytes.data(), bytes.size()));
}

}  // namespace ps::simulation
