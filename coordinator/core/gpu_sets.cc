#include "coordinator/core/gpu_sets.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "common/check.h"
#include "common/job/job_spec.h"

namespace ps::coordinator {
namespace {

std::uint64_t SumOfPairs(const GpuTopology& topology, GpuMask gpus) {
  std::uint64_t sum = 0;
  for (std::uint32_t a = 0; a < topology.count; ++a) {
    if ((gpus >> a & 1) == 0) continue;
    for (std::uint32_t b = a + 1; b < topology.count; ++b) {
      if ((gpus >> b & 1) != 0) sum += topology.Between(a, b);
    }
  }
  return sum;
}

}  // namespace

GpuTopology GpuTopology::Of(std::uint32_t count, const std::vector<std::uint16_t>& bandwidth) {
  GpuTopology topology;
  topology.count = count;
  topology.bandwidth.assign(std::size_t{count} * count, 0);
  if (bandwidth.size() != topology.bandwidth.size()) return topology;
  for (std::uint32_t a = 0; a < count; ++a) {
    for (std::uint32_t b = 0; b < count; ++b) {
      topology.bandwidth[a * count + b] =
          std::min(bandwidth[a * count + b], bandwidth[b * count + a]);
    }
  }
  return topology;
}

// Prim's maximum spanning tree: it has the largest smallest link of all trees.
std::uint16_t SlowestLink(const GpuTopology& topology, GpuMask gpus) {
  auto slowest = std::numeric_limits<std::uint16_t>::max();
  GpuMask reached = gpus & (~gpus + 1);
  while (reached != gpus) {
    std::uint16_t widest = 0;
    std::uint32_t next = topology.count;
    for (std::uint32_t a = 0; a < topology.count; ++a) {
      if ((reached >> a & 1) == 0) continue;
      for (std::uint32_t b = 0; b < topology.count; ++b) {
        if (((gpus & ~reached) >> b & 1) == 0) continue;
        if (next == topology.count || topology.Between(a, b) > widest) {
          widest = topology.Between(a, b);
          next = b;
        }
      }
    }
    reached |= GpuMask{1} << next;
    slowest = std::min(slowest, widest);
  }
  return slowest;
}

std::optional<GpuSet> ChooseGpus(const GpuTopology& topology, GpuMask free, std::uint32_t wanted) {
  PS_CHECK(topology.count <= static_cast<std::uint32_t>(kGpusMax) && wanted > 0, topology.count,
           wanted);
  PS_CHECK(topology.bandwidth.size() == std::size_t{topology.count} * topology.count,
           topology.bandwidth.size(), topology.count);
  free &= (GpuMask{1} << topology.count) - 1;
  std::optional<GpuSet> best;
  // Subsets of `free` from the lowest numbers up: the first of equals stays.
  for (GpuMask gpus = (~free + 1) & free; gpus != 0; gpus = (gpus - free) & free) {
    if (static_cast<std::uint32_t>(std::popcount(gpus)) != wanted) continue;
    GpuSet set;
    set.gpus = gpus;
    set.slowest = SlowestLink(topology, gpus);
    if (best && set.slowest < best->slowest) continue;
    set.sum = SumOfPairs(topology, gpus);
    set.left = SumOfPairs(topology, free & ~gpus);
    if (!best || std::tuple(set.slowest, set.sum, set.left) >
                     std::tuple(best->slowest, best->sum, best->left)) {
      best = set;
    }
  }
  return best;
}

}  // namespace ps::coordinator
