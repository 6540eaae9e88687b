#include "ps-worker/agent/gpu_watch.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <iterator>
#include <mutex>
#include <thread>
#include <utility>

#include "ps-worker/agent/nvml.h"

namespace ps::worker {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint32_t kEventWaitMs = 200;
constexpr std::chrono::seconds kPatience{2};

// Of one link, in one direction, for payload.
int NvLinkBandwidth(int major, int minor) {
  if (major < 7) return 18;
  if (major == 8 && minor == 6) return 12;
  return major < 10 ? 20 : 40;
}

int PciBandwidth(Nvml::PciWay way) {
  switch (way) {
    case Nvml::PciWay::kSwitch: return 12;
    case Nvml::PciWay::kSwitches: return 11;
    case Nvml::PciWay::kHostBridge: return 10;
    case Nvml::PciWay::kNode: return 9;
    case Nvml::PciWay::kSystem: break;
  }
  return 6;
}

}  // namespace

std::vector<std::uint16_t> GpuBandwidth(const Nvml& nvml,
                                        const std::vector<control::GpuInfoT>& gpus) {
  struct Known {
    Nvml::Device device;
    std::string pci;
    Nvml::NvLinks links;
  };
  std::vector<Known> known;
  for (const control::GpuInfoT& gpu : gpus) {
    const auto device = nvml.DeviceOf(gpu.uuid);
    if (!device.ok()) return {};
    known.push_back({*device, nvml.PciOf(*device), nvml.NvLinksOf(*device)});
  }
  std::vector<std::uint16_t> bandwidth;
  for (std::size_t a = 0; a < gpus.size(); ++a) {
    for (std::size_t b = 0; b < gpus.size(); ++b) {
      if (a == b) {
        bandwidth.push_back(0);
        continue;
      }
      const auto direct =
          std::count(known[a].links.to.begin(), known[a].links.to.end(), known[b].pci);
      const int switched = std::min(known[a].links.to_switches, known[b].links.to_switches);
      const int links = static_cast<int>(direct) + switched;
      const int slower = std::min(NvLinkBandwidth(gpus[a].major, gpus[a].minor),
                                  NvLinkBandwidth(gpus[b].major, gpus[b].minor));
      bandwidth.push_back(static_cast<std::uint16_t>(
          links > 0 ? links * slower
                    : PciBandwidth(nvml.WayBetween(known[a].device, known[b].device))));
    }
  }
  return bandwidth;
}

// Shared with the thread, which may live longer where the driver hangs.
struct GpuWatch::State {
  State(net::Loop& watched_loop, Options o, ReportFn report)
      : loop(watched_loop), options(std::move(o)), on_report(std::move(report)) {}

  net::Loop& loop;  // not after `ended`
  const Options options;
  const ReportFn on_report;
  std::mutex mutex;
  std::condition_variable left;
  bool ended = false;  // guarded, as what follows
  bool gone = false;   // the thread has nothing more to do with us

  void Tell(const std::shared_ptr<State>& self, Report report) {
    const std::lock_guard lock(mutex);
    if (ended) return;
    loop.Post([self, report = std::move(report)]() mutable {
      {
        const std::lock_guard inner(self->mutex);
        if (self->ended) return;
      }
      self->on_report(std::move(report));
    });
  }
  bool Ended() {
    const std::lock_guard lock(mutex);
    return ended;
  }
  void Run(const std::shared_ptr<State>& self, Report report);
};

void GpuWatch::State::Run(const std::shared_ptr<State>& self, Report report) {
  auto nvml = Nvml::Open(options.library);
  if (!nvml.ok()) {
    spdlog::warn("how the GPUs are connected and how they are is not known: {}",
                 nvml.error().message);
    return Tell(self, std::move(report));
  }
  report.bandwidth = GpuBandwidth(**nvml, report.gpus);
  std::vector<Nvml::Device> devices;
  for (control::GpuInfoT& gpu : report.gpus) {
    const auto device = (*nvml)->DeviceOf(gpu.uuid);
    if (!device.ok()) spdlog::warn("{}", device.error().message);
    devices.push_back(device.ok() ? *device : nullptr);
    if (device.ok()) gpu.pci = (*nvml)->PciOf(*device);
  }
  std::vector<Nvml::Device> watched;
  std::copy_if(devices.begin(), devices.end(), std::back_inserter(watched),
               [](Nvml::Device device) { return device != nullptr; });
  if (!(*nvml)->Watch(watched)) spdlog::warn("NVML tells nothing of critical errors of some GPUs");

  const auto look = [&] {
    for (std::size_t i = 0; i < devices.size(); ++i) {
      control::GpuInfoT& gpu = report.gpus[i];
      if (devices[i] == nullptr || !gpu.trouble.empty()) continue;
      const auto load = (*nvml)->LoadOf(devices[i]);
      gpu.measured = load.ok();
      if (!load.ok() && load.error().code == ErrorCode::kUnreachable) {
        gpu.trouble = load.error().message;
        spdlog::error("GPU {}: {}: no task gets it", gpu.uuid, gpu.trouble);
      }
      if (!load.ok()) {
        spdlog::debug("GPU {}: {}", gpu.uuid, load.error().message);
        continue;
      }
      gpu.utilization = static_cast<std::uint8_t>(load->utilization_percent);
      gpu.memory_used = load->memory_used;
      gpu.temperature = static_cast<std::uint8_t>(load->celsius);
      gpu.ecc_errors = load->ecc_errors;
      gpu.throttled = load->throttled;
    }
    Tell(self, report);
  };
  look();
  auto next_look = Clock::now() + options.interval;
  while (!Ended()) {
    const auto trouble = (*nvml)->NextTrouble(kEventWaitMs);
    if (!trouble.ok()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(kEventWaitMs));
    } else if (trouble->has_value()) {
      const auto at = std::find(devices.begin(), devices.end(), (*trouble)->device);
      if (at != devices.end()) {
        control::GpuInfoT& gpu = report.gpus[static_cast<std::size_t>(at - devices.begin())];
        if (gpu.trouble.empty()) {
          gpu.trouble = (*trouble)->what;
          spdlog::error("GPU {}: {}: no task gets it", gpu.uuid, gpu.trouble);
          Tell(self, report);
        }
      }
    }
    if (Clock::now() >= next_look) {
      look();
      next_look = Clock::now() + options.interval;
    }
  }
}

GpuWatch::GpuWatch(net::Loop& loop, std::vector<control::GpuInfoT> gpus, Options options,
                   ReportFn on_report)
    : state_(std::make_shared<State>(loop, std::move(options), std::move(on_report))) {
  std::thread([state = state_, report = Report{std::move(gpus), {}}]() mutable {
    state->Run(state, std::move(report));
    const std::lock_guard lock(state->mutex);
    state->gone = true;
    state->left.notify_all();
  }).detach();
}

GpuWatch::~GpuWatch() {
  std::unique_lock lock(state_->mutex);
  state_->ended = true;
  if (!state_->left.wait_for(lock, kPatience, [this] { return state_->gone; })) {
    spdlog::warn("the GPUs' driver does not answer");
  }
}

}  // namespace ps::worker
