#include "ps-worker/engine/collective.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace ps::worker {

Status HostCollective::Broadcast(std::span<const std::span<float>> values) {
  for (const std::span<float> one : values.subspan(1)) {
    std::copy(values[0].begin(), values[0].end(), one.begin());
  }
  return Ok();
}

Status HostCollective::Sum(std::span<const std::span<const float>> values, std::span<float> sum) {
  std::memmove(sum.data(), values[0].data(), sum.size_bytes());
  for (const std::span<const float> one : values.subspan(1)) {
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += one[i];
  }
  return Ok();
}

}  // namespace ps::worker
