// Initial values of the zoo's parameters, by counter: the value of an element
// depends on the seed, the tensor's name and the element's position alone, so
// it is the same on every task and for any number of servers.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace ps::worker {

// Uniform in [-bound, bound).
void FillUniform(std::uint64_t seed, std::string_view tensor, float bound, std::span<float> values);

}  // namespace ps::worker
