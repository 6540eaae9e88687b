// Any topology of up to eight GPUs, any of them free: the set that is chosen is as good as the best
// of all, see tests/support/gpu_set_reference.h.
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "coordinator/core/gpu_sets.h"
#include "tests/support/gpu_set_reference.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ps::coordinator;
  if (size < 3) return 0;
  const std::uint32_t count = 1 + data[0] % 8;
  const GpuMask free = data[1] & ((GpuMask{1} << count) - 1);
  const std::uint32_t wanted = 1 + data[2] % 8;
  std::vector<std::uint16_t> bandwidth(count * count);
  for (std::size_t i = 0; i < bandwidth.size() && 3 + 2 * i < size; ++i) {
    bandwidth[i] = data[3 + 2 * i];
    if (4 + 2 * i < size)
      bandwidth[i] = static_cast<std::uint16_t>(bandwidth[i] | data[4 + 2 * i] << 8);
  }
  const GpuTopology topology = GpuTopology::Of(count, bandwidth);
  const auto set = ChooseGpus(topology, free, wanted);
  if (set.has_value() != (static_cast<std::uint32_t>(std::popcount(free)) >= wanted)) std::abort();
  if (!set.has_value()) return 0;
  if ((set->gpus & ~free) != 0) std::abort();
  const ps::test::GpuSetQuality quality(set->slowest, set->sum, set->left);
  if (quality != ps::test::QualityOf(topology, free, set->gpus)) std::abort();
  if (quality != ps::test::BestQuality(topology, free, wanted)) std::abort();
  return 0;
}
