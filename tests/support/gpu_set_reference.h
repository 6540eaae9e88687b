// What the best set of GPUs is (coordinator/core/gpu_sets.h), written down a second time in another
// way: for the test and the fuzzer of it.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

#include "coordinator/core/gpu_sets.h"

namespace ps::test {

using GpuSetQuality = std::tuple<std::uint16_t, std::uint64_t, std::uint64_t>;

inline std::vector<std::uint32_t> GpusOf(coordinator::GpuMask mask) {
  std::vector<std::uint32_t> gpus;
  for (std::uint32_t i = 0; i < 32; ++i) {
    if ((mask >> i & 1) != 0) gpus.push_back(i);
  }
  return gpus;
}

inline std::uint64_t SumOfLinks(const coordinator::GpuTopology& topology,
                                const std::vector<std::uint32_t>& gpus) {
  std::uint64_t twice = 0;
  for (const auto a : gpus) {
    for (const auto b : gpus) twice += a == b ? 0 : topology.Between(a, b);
  }
  return twice / 2;
}

// Whether links of at least that bandwidth connect all.
inline bool ConnectedBy(const coordinator::GpuTopology& topology,
                        const std::vector<std::uint32_t>& gpus, std::uint32_t bandwidth) {
  std::vector<std::uint32_t> reached = {gpus.front()};
  for (std::size_t i = 0; i < reached.size(); ++i) {
    for (const auto next : gpus) {
      bool known = false;
      for (const auto one : reached) known = known || one == next;
      if (!known && topology.Between(reached[i], next) >= bandwidth) reached.push_back(next);
    }
  }
  return reached.size() == gpus.size();
}

inline GpuSetQuality QualityOf(const coordinator::GpuTopology& topology, coordinator::GpuMask free,
                               coordinator::GpuMask chosen) {
  const auto gpus = GpusOf(chosen);
  std::uint16_t slowest = std::numeric_limits<std::uint16_t>::max();
  if (gpus.size() > 1) {
    // The largest bandwidth of a link that still connects them.
    slowest = 0;
    for (const auto a : gpus) {
      for (const auto b : gpus) {
        const auto link = topology.Between(a, b);
        if (a != b && link > slowest && ConnectedBy(topology, gpus, link)) slowest = link;
      }
    }
  }
  return {slowest, SumOfLinks(topology, gpus), SumOfLinks(topology, GpusOf(free & ~chosen))};
}

// Of all sets; the quality of none if there are too few.
inline GpuSetQuality BestQuality(const coordinator::GpuTopology& topology,
                                 coordinator::GpuMask free, std::uint32_t wanted) {
  GpuSetQuality best;
  for (coordinator::GpuMask set = 1; set < coordinator::GpuMask{1} << topology.count; ++set) {
    if ((set & ~free) != 0 || static_cast<std::uint32_t>(std::popcount(set)) != wanted) continue;
    best = std::max(best, QualityOf(topology, free, set));
  }
  return best;
}

}  // namespace ps::test
