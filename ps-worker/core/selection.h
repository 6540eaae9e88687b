// How many entries a step should select, and which sample tells above what threshold they lie.
//
// The sparsifiers of the CPU and of a GPU have this in common, so that the same gradients and seed
// select the same entries on both. A sample has lines of kSampledLine elements, one at a random
// place in each of so many equal strata; its order statistic is the threshold. The algorithm is the
// strided sampling of Deep Gradient Compression (Lin et al., 2018), with whole lines, and corrected
// by the surplus of earlier steps. Pure functions; any thread.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "common/host_device.h"

namespace ps::worker {

inline constexpr std::size_t kSampledLine = 16;

PS_HOST_DEVICE inline std::uint64_t SplitMix(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

// Of `elements` values, the first of which begins a line.
struct Sample {
  std::uint64_t elements;
  std::uint64_t lines;
  std::uint64_t strata;
  std::uint64_t seed;

  // The first element of the line that is sampled of a stratum. The last line may be short.
  PS_HOST_DEVICE std::uint64_t BeginOf(std::uint64_t stratum) const {
    const std::uint64_t first = lines * stratum / strata;
    const std::uint64_t width = lines * (stratum + 1) / strata - first;
    return (first + SplitMix(seed ^ stratum) % width) * kSampledLine;
  }

  std::uint64_t values() const {
    const std::uint64_t last = BeginOf(strata - 1);
    return (strata - 1) * kSampledLine + std::min<std::uint64_t>(kSampledLine, elements - last);
  }

  // So many of its values, at least 1, are not less than the threshold for `aim` of all elements.
  std::uint64_t Rank(double aim) const {
    const double share = aim / static_cast<double>(elements);
    const auto count = static_cast<double>(values());
    return static_cast<std::uint64_t>(std::clamp(std::round(share * (count + 1)), 1.0, count));
  }
};

// `seed` is that of the step. elements > 0, aim >= 1.
inline Sample PlanSample(std::uint64_t elements, double aim, std::uint64_t seed) {
  // Sampled values above the threshold, if there are so many: at least, and of large models.
  constexpr double kEntries = 500;
  constexpr double kEntriesMax = 1000;
  const auto n = static_cast<double>(elements);
  const double per_entry = n / aim;
  const double wanted =
      std::max({std::min(n / 100, kEntriesMax * per_entry), kEntries * per_entry, 4096.0});
  const std::uint64_t lines = (elements + kSampledLine - 1) / kSampledLine;
  // A sample of more than a quarter would cost more than the pass it spares.
  const auto sampled = static_cast<std::uint64_t>(
      std::clamp(wanted / kSampledLine, 1.0, std::max(static_cast<double>(lines) / 4, 256.0)));
  return {elements, lines, std::min(sampled, lines), SplitMix(seed)};
}

// What a ratio asks of a step, and what may come of it.
struct SelectionGoal {
  double target;  // entries, at least 1
  double aim;     // those that the threshold is for: what was too much before is made good

  double least() const { return 0.8 * target; }
  double most() const { return 1.3 * target; }
  // The sample said something else than the values: they are to be chosen anew.
  bool Misled(double selected) const { return selected < least() || selected > most(); }
};

// Entries selected beyond the ratio, over all steps.
class Surplus {
 public:
  SelectionGoal GoalOf(double ratio, std::uint64_t elements) const {
    constexpr double kGain = 0.25;  // part of the surplus that the next step makes good
    const double target = std::max(ratio * static_cast<double>(elements), 1.0);
    return {target,
            std::clamp(target - kGain * surplus_, std::max(0.9 * target, 1.0), 1.1 * target)};
  }

  void Add(const SelectionGoal& goal, double selected) {
    // Where there is little but zeros, too few entries are no debt to make good later.
    surplus_ = std::clamp(surplus_ + selected - goal.target, -goal.target, goal.target);
  }

 private:
  double surplus_ = 0;
};

}  // namespace ps::worker
