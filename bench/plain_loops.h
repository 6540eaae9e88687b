// The simplest loops that change a table: what our kernels are compared with.
#pragma once

#include <cstdint>
#include <span>

namespace ps::bench {

// table[i] += rate * values[i]
void AddDense(std::span<float> table, std::span<const float> values, float rate);
// table[indices[i]] += rate * values[i]
void AddSparse(std::span<float> table, std::span<const std::uint32_t> indices,
               std::span<const float> values, float rate);

}  // namespace ps::bench
