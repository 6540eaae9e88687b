#include "bench/plain_loops.h"

#include <cstddef>

namespace ps::bench {

void AddDense(std::span<float> table, std::span<const float> values, float rate) {
  float* const to = table.data();
  const float* const from = values.data();
  const std::size_t count = values.size();
  for (std::size_t i = 0; i < count; ++i) to[i] += rate * from[i];
}

void AddSparse(std::span<float> table, std::span<const std::uint32_t> indices,
               std::span<const float> values, float rate) {
  float* const to = table.data();
  const std::size_t count = values.size();
  for (std::size_t i = 0; i < count; ++i) to[indices[i]] += rate * values[i];
}

}  // namespace ps::bench
