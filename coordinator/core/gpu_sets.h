// Which GPUs of a node a task gets.
//
// A node tells the bandwidth between each two of its GPUs (the agent reads it from NVML). Of all
// sets of the wanted size among the free ones the best is taken, by these in turn:
//   1. the slowest link that a tree over the set cannot do without: gradients are summed along
//      trees and rings, which are as fast as their slowest link;
//   2. the sum of the bandwidths between all pairs of the set;
//   3. the same sum over the free GPUs that are left: the next task should find a good set as well;
//   4. the lowest numbers.
// All sets are looked at: at most 12,870, of the 16 GPUs that a node may have.
//
// Pure functions; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace ps::coordinator {

// GPU i of a node is bit i; a node has kGpusMax at most.
using GpuMask = std::uint32_t;

struct GpuTopology {
  std::uint32_t count = 0;  // up to kGpusMax
  // count x count, in GB/s; symmetric, and what lies on the diagonal does not matter.
  std::vector<std::uint16_t> bandwidth;

  // Of what an agent tells: where it does not know all, all links are equal. Of two numbers for the
  // same link the smaller one counts.
  static GpuTopology Of(std::uint32_t count, const std::vector<std::uint16_t>& bandwidth);

  std::uint16_t Between(std::uint32_t a, std::uint32_t b) const { return bandwidth[a * count + b]; }
};

struct GpuSet {
  GpuMask gpus = 0;
  // As above; a single GPU has no links: the largest number, and 0.
  std::uint16_t slowest = 0;
  std::uint64_t sum = 0;
  std::uint64_t left = 0;

  // What sets of several nodes are compared by as well.
  std::tuple<std::uint16_t, std::uint64_t> Score() const { return {slowest, sum}; }
};

// Nothing if fewer than `wanted` > 0 are free. Bits of `free` beyond the topology's count are no
// GPUs.
std::optional<GpuSet> ChooseGpus(const GpuTopology& topology, GpuMask free, std::uint32_t wanted);

// The slowest link of the best tree over the GPUs; the largest number if there are fewer than two.
std::uint16_t SlowestLink(const GpuTopology& topology, GpuMask gpus);

}  // namespace ps::coordinator
