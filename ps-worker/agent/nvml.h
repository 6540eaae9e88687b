// NVIDIA's management library, as far as the agent asks it: how the GPUs of the node are connected,
// how they are, and what went wrong with them.
//
// It comes with the driver and is opened at run time, so that the agent runs without it. Its C
// interface is stable; what is used of it is declared in the source, after
// https://docs.nvidia.com/deploy/nvml-api/. Calls may take long, and for ever where a driver hangs:
// not for the agent's own thread. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/result.h"

namespace ps::worker {

class Nvml {
 public:
  using Device = void*;

  struct Load {
    std::uint32_t utilization_percent = 0;
    std::uint64_t memory_used = 0;
    std::uint32_t celsius = 0;
    std::uint64_t ecc_errors = 0;  // not corrected; 0 also without ECC
    bool throttled = false;        // by heat or power
  };
  struct Trouble {
    Device device = nullptr;
    std::string what;
  };

  // kNotFound if there is no such library, kInternal if it does not begin.
  static Result<std::unique_ptr<Nvml>> Open(const std::string& library);
  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  // By "GPU-" and 32 digits.
  Result<Device> DeviceOf(const std::string& uuid) const;
  // "0000:3b:00.0", as in /sys/bus/pci/devices; empty if it does not say.
  std::string PciOf(Device device) const;
  // Of NVLinks, all that the device has.
  struct NvLinks {
    int to_switches = 0;
    std::vector<std::string> to;  // PCI of the device at the other end, one for each link
  };
  NvLinks NvLinksOf(Device device) const;
  // What the way over PCIe between two has in common.
  enum class PciWay { kSwitch, kSwitches, kHostBridge, kNode, kSystem };
  PciWay WayBetween(Device a, Device b) const;

  // kUnreachable if the device is lost or must be reset; kInternal for any other failure, which
  // says nothing of the device.
  Result<Load> LoadOf(Device device) const;
  // From now on NextTrouble() tells of these. False where it cannot of one.
  bool Watch(const std::vector<Device>& devices);
  // Waits for the next critical error of a watched device that is not its program's own, but no
  // longer than that. kInternal at once where that cannot be, as when a device is lost.
  Result<std::optional<Trouble>> NextTrouble(std::uint32_t timeout_ms);

 private:
  struct Library;
  explicit Nvml(std::unique_ptr<Library> library);

  const std::unique_ptr<Library> library_;
  void* events_ = nullptr;
};

}  // namespace ps::worker
