// A stand-in for NVIDIA's management library, of a recorded machine (tests/support/gpu_machine.h)
// whose path DS_FAKE_NVML has. A uuid ends with -I for GPU I, as those of the devices that the CPU
// plays do.
//
// What happens to them is read from the file DS_FAKE_NVML_STATE, if there is one, in each call:
//   load I PERCENT BYTES CELSIUS ERRORS REASONS   how GPU I is
//   lost I                                       it does not answer any more
//   xid I NUMBER                                 an event; each such line is told once
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/gpu_machine.h"

namespace {

constexpr int kSuccess = 0;
constexpr int kInvalidArgument = 2;
constexpr int kNotSupported = 3;
constexpr int kNotFound = 6;
constexpr int kTimeout = 10;
constexpr int kLost = 15;

struct Gpu {
  std::size_t number = 0;
};

struct Machine {
  ps::test::GpuMachine machine;
  std::vector<Gpu> gpus;
};

Machine& TheMachine() {
  static auto* const machine = new Machine;
  return *machine;
}

std::size_t NumberOf(const void* device) { return static_cast<const Gpu*>(device)->number; }

// The lines of the state that begin with `word`.
std::vector<std::vector<unsigned long long>> Lines(const std::string& word) {
  std::vector<std::vector<unsigned long long>> lines;
  const char* const path = std::getenv("DS_FAKE_NVML_STATE");
  if (path == nullptr) return lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string first;
    if (!(words >> first) || first != word) continue;
    auto& numbers = lines.emplace_back();
    for (unsigned long long number; words >> number;) numbers.push_back(number);
  }
  return lines;
}

bool IsLost(const void* device) {
  for (const auto& line : Lines("lost")) {
    if (!line.empty() && line[0] == NumberOf(device)) return true;
  }
  return false;
}

// The last `load` of the device: percent, bytes, degrees, errors, reasons.
std::vector<unsigned long long> LoadOf(const void* device) {
  std::vector<unsigned long long> load(5, 0);
  for (const auto& line : Lines("load")) {
    if (line.size() == 6 && line[0] == NumberOf(device)) load.assign(line.begin() + 1, line.end());
  }
  return load;
}

struct PciInfo {
  char legacy_bus_id[16];
  unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
  char bus_id[32];
};

void SetPci(std::size_t number, PciInfo* pci) {
  std::memset(pci, 0, sizeof(*pci));
  pci->bus = 0x10 + static_cast<unsigned>(number);
  std::snprintf(pci->bus_id, sizeof(pci->bus_id), "00000000:%02X:00.0", pci->bus);
}

// The number of the GPU at the other end of each link.
std::vector<std::size_t> LinksOf(const void* device) {
  const auto& machine = TheMachine().machine;
  const std::size_t a = NumberOf(device);
  std::vector<std::size_t> links;
  for (std::size_t b = 0; b < machine.count(); ++b) {
    if (a == b) continue;
    links.insert(links.end(), static_cast<std::size_t>(machine.NvLinks(a, b)), b);
    if (machine.switched) break;  // each GPU has as many to the switches as to any other
  }
  return links;
}

}  // namespace

extern "C" {

int nvmlInit_v2() {
  const char* const path = std::getenv("DS_FAKE_NVML");
  if (path == nullptr) return kNotFound;
  Machine& machine = TheMachine();
  machine.machine = ps::test::GpuMachine::Read(path);
  machine.gpus.clear();
  for (std::size_t i = 0; i < machine.machine.count(); ++i) machine.gpus.push_back({i});
  return kSuccess;
}
int nvmlShutdown() { return kSuccess; }
const char* nvmlErrorString(int result) {
  return result == kLost ? "GPU is lost" : result == kNotFound ? "Not Found" : "Unknown Error";
}

int nvmlDeviceGetHandleByUUID(const char* uuid, void** device) {
  const char* const dash = std::strrchr(uuid, '-');
  if (dash == nullptr) return kNotFound;
  const auto number = std::strtoull(dash + 1, nullptr, 10);
  if (number >= TheMachine().gpus.size()) return kNotFound;
  *device = &TheMachine().gpus[number];
  return kSuccess;
}

int nvmlDeviceGetPciInfo_v3(void* device, PciInfo* pci) {
  SetPci(NumberOf(device), pci);
  return kSuccess;
}

int nvmlDeviceGetNvLinkState(void* device, unsigned link, unsigned* active) {
  if (LinksOf(device).empty()) return kNotSupported;
  *active = link < LinksOf(device).size() ? 1 : 0;
  return kSuccess;
}

int nvmlDeviceGetNvLinkRemoteDeviceType(void* device, unsigned link, unsigned* type) {
  if (link >= LinksOf(device).size()) return kInvalidArgument;
  *type = TheMachine().machine.switched ? 2 : 0;
  return kSuccess;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(void* device, unsigned link, PciInfo* pci) {
  const auto links = LinksOf(device);
  if (link >= links.size()) return kInvalidArgument;
  SetPci(links[link], pci);
  return kSuccess;
}

int nvmlDeviceGetTopologyCommonAncestor(void* a, void* b, unsigned* level) {
  const std::string& way = TheMachine().machine.links[NumberOf(a)][NumberOf(b)];
  *level = way == "PIX" ? 10 : way == "PXB" ? 20 : way == "PHB" ? 30 : way == "NODE" ? 40 : 50;
  return kSuccess;
}

int nvmlDeviceGetUtilizationRates(void* device, unsigned* rates) {
  if (IsLost(device)) return kLost;
  rates[0] = static_cast<unsigned>(LoadOf(device)[0]);
  rates[1] = 0;
  return kSuccess;
}

int nvmlDeviceGetMemoryInfo(void* device, unsigned long long* memory) {
  if (IsLost(device)) return kLost;
  memory[0] = 1ull << 30;
  memory[2] = LoadOf(device)[1];
  memory[1] = memory[0] - memory[2];
  return kSuccess;
}

int nvmlDeviceGetTemperature(void* device, unsigned, unsigned* celsius) {
  if (IsLost(device)) return kLost;
  *celsius = static_cast<unsigned>(LoadOf(device)[2]);
  return kSuccess;
}

int nvmlDeviceGetTotalEccErrors(void* device, unsigned, unsigned, unsigned long long* errors) {
  if (IsLost(device)) return kLost;
  *errors = LoadOf(device)[3];
  return kSuccess;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void* device, unsigned long long* reasons) {
  if (IsLost(device)) return kLost;
  *reasons = LoadOf(device)[4];
  return kSuccess;
}

struct EventSet {
  std::vector<void*> devices;
  std::size_t told = 0;  // lines
};
struct EventData {
  void* device;
  unsigned long long type, data;
  unsigned gpu_instance, compute_instance;
};

int nvmlEventSetCreate(void** set) {
  *set = new EventSet;
  return kSuccess;
}
int nvmlEventSetFree(void* set) {
  delete static_cast<EventSet*>(set);
  return kSuccess;
}
int nvmlDeviceRegisterEvents(void* device, unsigned long long, void* set) {
  static_cast<EventSet*>(set)->devices.push_back(device);
  return kSuccess;
}
int nvmlEventSetWait_v2(void* set, EventData* event, unsigned timeout_ms) {
  auto* const events = static_cast<EventSet*>(set);
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  while (true) {
    const auto lines = Lines("xid");
    while (events->told < lines.size()) {
      const auto& line = lines[events->told++];
      if (line.size() != 2 || line[0] >= TheMachine().gpus.size()) continue;
      void* const device = &TheMachine().gpus[line[0]];
      if (std::find(events->devices.begin(), events->devices.end(), device) ==
          events->devices.end()) {
        continue;
      }
      *event = {device, 8, line[1], ~0u, ~0u};
      return kSuccess;
    }
    if (Clock::now() >= deadline) return kTimeout;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

}  // extern "C"
