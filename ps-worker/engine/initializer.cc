#include "ps-worker/engine/initializer.h"

#include <xxhash.h>

#include <cstddef>

namespace ps::worker {
namespace {

// SplitMix64's output function: a bijection whose outputs for 0, 1, 2, ... times the golden ratio
// pass the usual tests for randomness.
std::uint64_t Mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

void FillUniform(std::uint64_t seed, std::string_view tensor, float bound,
                 std::span<float> values) {
  const std::uint64_t key = XXH3_64bits_withSeed(tensor.data(), tensor.size(), Mix(seed + 1));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint64_t bits = Mix(key + 0x9e3779b97f4a7c15u * (i + 1));
    const auto unit = static_cast<float>(bits >> 40) * 0x1p-24f;  // [0, 1), exact
    values[i] = bound * (2.0f * unit - 1.0f);
  }
}

}  // namespace ps::worker
