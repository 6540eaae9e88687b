// How the GPUs of the node are: how they are connected, what they have to do, and what is wrong
// with them.
//
// A thread of its own asks the driver (nvml.h), as its calls may take long. A GPU with a critical
// error that is not its program's own (an XID), or that no longer answers, is in trouble from then
// on: only a reset or another GPU helps, so that lasts until the agent begins anew. Without the
// driver's library the GPUs are used all the same, and nothing is known of them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/messages/control.h"
#include "common/net/loop.h"

namespace ps::worker {

class Nvml;

// GB/s between each two, row after row, as RegisterAgent has it: NVLinks at the rate of their
// generation; else what the way over PCIe usually gives, as NCCL reckons (its graph/topo.h). Empty
// if NVML does not know one of them.
std::vector<std::uint16_t> GpuBandwidth(const Nvml& nvml,
                                        const std::vector<control::GpuInfoT>& gpus);

class GpuWatch {
 public:
  struct Options {
    std::string library = "libnvidia-ml.so.1";
    net::Milliseconds interval{10'000};  // between two looks
  };
  struct Report {
    std::vector<control::GpuInfoT> gpus;
    std::vector<std::uint16_t> bandwidth;
  };
  using ReportFn = std::function<void(Report)>;

  // Calls `on_report` on the loop's thread: once as soon as it has looked, after each interval, and
  // when a GPU gets into trouble. `loop` outlives it.
  GpuWatch(net::Loop& loop, std::vector<control::GpuInfoT> gpus, Options options,
           ReportFn on_report);
  // No call follows. Waits for the thread, but not long: a driver may hang.
  ~GpuWatch();
  GpuWatch(const GpuWatch&) = delete;
  GpuWatch& operator=(const GpuWatch&) = delete;

 private:
  struct State;

  const std::shared_ptr<State> state_;
};

}  // namespace ps::worker
