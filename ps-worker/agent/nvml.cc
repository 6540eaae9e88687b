#include "ps-worker/agent/nvml.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>
#include <utility>

namespace ps::worker {
namespace {

// ---- nvml.h

using Return = int;
constexpr Return kSuccess = 0;
constexpr Return kNotSupported = 3;
constexpr Return kTimeout = 10;
constexpr Return kGpuIsLost = 15;
constexpr Return kResetRequired = 16;

struct PciInfo {
  char legacy_bus_id[16];
  unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
  char bus_id[32];
};
struct Utilization {
  unsigned gpu, memory;
};
struct Memory {
  unsigned long long total, free, used;
};
struct EventData {
  void* device;
  unsigned long long type;
  unsigned long long data;
  unsigned gpu_instance, compute_instance;
};
constexpr unsigned kNvLinksMax = 18;
constexpr unsigned kNvLinkToSwitch = 2;
constexpr unsigned kTemperatureOfGpu = 0;
constexpr unsigned kUncorrectedErrors = 1;
constexpr unsigned kVolatileErrors = 0;
constexpr unsigned long long kXidEvent = 8;
// Slowed down by hardware: itself, heat (software's and hardware's judgement), power brake.
constexpr unsigned long long kThrottled = 0x08 | 0x20 | 0x40 | 0x80;

// XIDs by which a program, and not the GPU, is at fault: its GPU goes on.
// https://docs.nvidia.com/deploy/xid-errors/
constexpr std::array<unsigned long long, 6> kProgramsFault = {13, 31, 43, 45, 68, 109};

std::string LowerCase(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

// NVML has eight digits of the domain, the system four.
std::string SystemsPci(const PciInfo& pci) {
  std::string id = LowerCase(std::string(pci.bus_id, strnlen(pci.bus_id, sizeof(pci.bus_id))));
  const std::size_t colon = id.find(':');
  if (colon == 8) id.erase(0, 4);
  return id;
}

}  // namespace

struct Nvml::Library {
  struct Closer {
    void operator()(void* handle) const { dlclose(handle); }
  };
  std::unique_ptr<void, Closer> handle;
  bool begun = false;

  Return (*init)() = nullptr;
  Return (*shutdown)() = nullptr;
  const char* (*error_string)(Return) = nullptr;
  Return (*by_uuid)(const char*, void**) = nullptr;
  Return (*pci_info)(void*, PciInfo*) = nullptr;
  Return (*nvlink_state)(void*, unsigned, unsigned*) = nullptr;
  Return (*nvlink_remote_type)(void*, unsigned, unsigned*) = nullptr;
  Return (*nvlink_remote_pci)(void*, unsigned, PciInfo*) = nullptr;
  Return (*common_ancestor)(void*, void*, unsigned*) = nullptr;
  Return (*utilization)(void*, Utilization*) = nullptr;
  Return (*memory)(void*, Memory*) = nullptr;
  Return (*temperature)(void*, unsigned, unsigned*) = nullptr;
  Return (*ecc_errors)(void*, unsigned, unsigned, unsigned long long*) = nullptr;
  Return (*throttle_reasons)(void*, unsigned long long*) = nullptr;
  Return (*make_events)(void**) = nullptr;
  Return (*free_events)(void*) = nullptr;
  Return (*register_events)(void*, unsigned long long, void*) = nullptr;
  Return (*wait_event)(void*, EventData*, unsigned) = nullptr;

  // Null where the library is older than the function.
  template <typename Function>
  void Find(const char* name, Function*& function) {
    function = reinterpret_cast<Function*>(dlsym(handle.get(), name));
  }

  Error Failed(const std::string& what, Return result) const {
    return Error{ErrorCode::kInternal,
                 "NVML: " + what + ": " +
                     (error_string != nullptr ? error_string(result) : std::to_string(result))};
  }

  ~Library() {
    if (begun) (void)shutdown();
  }
};

Nvml::Nvml(std::unique_ptr<Library> library) : library_(std::move(library)) {}

Nvml::~Nvml() {
  if (events_ != nullptr) (void)library_->free_events(events_);
}

Result<std::unique_ptr<Nvml>> Nvml::Open(const std::string& name) {
  auto library = std::make_unique<Library>();
  library->handle.reset(dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL));
  if (library->handle == nullptr) {
    const char* const reason = dlerror();
    return Error{ErrorCode::kNotFound, reason == nullptr ? name : std::string(reason)};
  }
  Library& l = *library;
  l.Find("nvmlInit_v2", l.init);
  l.Find("nvmlShutdown", l.shutdown);
  l.Find("nvmlErrorString", l.error_string);
  l.Find("nvmlDeviceGetHandleByUUID", l.by_uuid);
  l.Find("nvmlDeviceGetPciInfo_v3", l.pci_info);
  l.Find("nvmlDeviceGetNvLinkState", l.nvlink_state);
  l.Find("nvmlDeviceGetNvLinkRemoteDeviceType", l.nvlink_remote_type);
  l.Find("nvmlDeviceGetNvLinkRemotePciInfo_v2", l.nvlink_remote_pci);
  l.Find("nvmlDeviceGetTopologyCommonAncestor", l.common_ancestor);
  l.Find("nvmlDeviceGetUtilizationRates", l.utilization);
  l.Find("nvmlDeviceGetMemoryInfo", l.memory);
  l.Find("nvmlDeviceGetTemperature", l.temperature);
  l.Find("nvmlDeviceGetTotalEccErrors", l.ecc_errors);
  l.Find("nvmlDeviceGetCurrentClocksThrottleReasons", l.throttle_reasons);
  l.Find("nvmlEventSetCreate", l.make_events);
  l.Find("nvmlEventSetFree", l.free_events);
  l.Find("nvmlDeviceRegisterEvents", l.register_events);
  l.Find("nvmlEventSetWait_v2", l.wait_event);
  if (l.init == nullptr || l.shutdown == nullptr || l.by_uuid == nullptr) {
    return Error{ErrorCode::kInternal, name + ": is not NVML, or one that is too old"};
  }
  if (const Return result = l.init(); result != kSuccess) return l.Failed("beginning", result);
  l.begun = true;
  return std::unique_ptr<Nvml>(new Nvml(std::move(library)));
}

Result<Nvml::Device> Nvml::DeviceOf(const std::string& uuid) const {
  Device device = nullptr;
  const Return result = library_->by_uuid(uuid.c_str(), &device);
  if (result != kSuccess) return library_->Failed("looking for GPU " + uuid, result);
  return device;
}

std::string Nvml::PciOf(Device device) const {
  PciInfo pci{};
  if (library_->pci_info == nullptr || library_->pci_info(device, &pci) != kSuccess) return "";
  return SystemsPci(pci);
}

Nvml::NvLinks Nvml::NvLinksOf(Device device) const {
  NvLinks links;
  if (library_->nvlink_state == nullptr) return links;
  for (unsigned link = 0; link < kNvLinksMax; ++link) {
    unsigned active = 0;
    if (library_->nvlink_state(device, link, &active) != kSuccess || active == 0) continue;
    unsigned type = 0;
    PciInfo pci{};
    if (library_->nvlink_remote_type != nullptr &&
        library_->nvlink_remote_type(device, link, &type) == kSuccess && type == kNvLinkToSwitch) {
      ++links.to_switches;
    } else if (library_->nvlink_remote_pci != nullptr &&
               library_->nvlink_remote_pci(device, link, &pci) == kSuccess) {
      links.to.push_back(SystemsPci(pci));
    }
  }
  return links;
}

Nvml::PciWay Nvml::WayBetween(Device a, Device b) const {
  unsigned level = 50;
  if (library_->common_ancestor == nullptr || library_->common_ancestor(a, b, &level) != kSuccess) {
    return PciWay::kSystem;
  }
  if (level <= 10) return PciWay::kSwitch;  // or the same board
  if (level <= 20) return PciWay::kSwitches;
  if (level <= 30) return PciWay::kHostBridge;
  return level <= 40 ? PciWay::kNode : PciWay::kSystem;
}

Result<Nvml::Load> Nvml::LoadOf(Device device) const {
  const Library& l = *library_;
  Load load;
  // What a device does not support it says in each call; one that is lost says so in all.
  const auto ask = [&](auto* function, const char* what, auto... arguments) -> Status {
    if (function == nullptr) return Ok();
    const Return result = function(device, arguments...);
    if (result == kSuccess || result == kNotSupported) return Ok();
    Error error = l.Failed(what, result);
    if (result == kGpuIsLost || result == kResetRequired) error.code = ErrorCode::kUnreachable;
    return error;
  };
  Utilization utilization{};
  PS_TRY(ask(l.utilization, "reading the utilisation", &utilization));
  load.utilization_percent = std::min(utilization.gpu, 100u);
  Memory memory{};
  PS_TRY(ask(l.memory, "reading the memory in use", &memory));
  load.memory_used = memory.used;
  unsigned celsius = 0;
  PS_TRY(ask(l.temperature, "reading the temperature", kTemperatureOfGpu, &celsius));
  load.celsius = std::min(celsius, 255u);
  unsigned long long errors = 0;
  PS_TRY(ask(l.ecc_errors, "reading the errors of the memory", kUncorrectedErrors, kVolatileErrors,
             &errors));
  load.ecc_errors = errors;
  unsigned long long reasons = 0;
  PS_TRY(ask(l.throttle_reasons, "reading why it is slow", &reasons));
  load.throttled = (reasons & kThrottled) != 0;
  return load;
}

bool Nvml::Watch(const std::vector<Device>& devices) {
  const Library& l = *library_;
  if (l.make_events == nullptr || l.free_events == nullptr || l.register_events == nullptr ||
      l.wait_event == nullptr || l.make_events(&events_) != kSuccess) {
    events_ = nullptr;
    return false;
  }
  bool all = true;
  for (const Device device : devices) {
    all = l.register_events(device, kXidEvent, events_) == kSuccess && all;
  }
  return all;
}

Result<std::optional<Nvml::Trouble>> Nvml::NextTrouble(std::uint32_t timeout_ms) {
  if (events_ == nullptr) return Error{ErrorCode::kInternal, "NVML: no device is watched"};
  EventData event{};
  const Return result = library_->wait_event(events_, &event, timeout_ms);
  if (result == kTimeout) return std::optional<Trouble>();
  if (result != kSuccess) return library_->Failed("waiting for events", result);
  const bool programs =
      std::find(kProgramsFault.begin(), kProgramsFault.end(), event.data) != kProgramsFault.end();
  if (event.type != kXidEvent || programs) return std::optional<Trouble>();
  return std::optional<Trouble>({event.device, "XID " + std::to_string(event.data)});
}

}  // namespace ps::worker
