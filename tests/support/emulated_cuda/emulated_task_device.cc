// ps-task on GPUs that the CPU plays: as many as DS_EMULATED_GPUS says, each as slow as the others.
// The model computes on the CPU, as if its memory were the device's.
#include <cstdlib>
#include <memory>
#include <string>

#include "common/error_id.h"
#include "ps-worker/engine/device_parameters.h"
#include "ps-worker/engine/task_device.h"

namespace ps::worker {
namespace {

constexpr const char* kPrefix = "GPU-emulated-";

std::string Variable(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

control::DeviceReportT FindDevices() {
  control::DeviceReportT report;
  for (int i = 0; i < std::atoi(Variable("DS_EMULATED_GPUS").c_str()); ++i) {
    auto gpu = std::make_unique<control::GpuInfoT>();
    gpu->uuid = kPrefix + std::to_string(i);
    gpu->name = "emulated";
    gpu->memory_bytes = std::uint64_t{1} << 30;
    gpu->major = 9;
    report.gpus.push_back(std::move(gpu));
  }
  return report;
}

Result<TaskDevice> ChooseDevice(const JobSpec& spec) {
  if (spec.resources.gpus == 0) return TaskDevice();
  const std::string visible = Variable("CUDA_VISIBLE_DEVICES");
  const auto wanted = static_cast<std::size_t>(spec.resources.gpus);
  std::size_t count = 0;
  for (std::size_t at = visible.find(kPrefix); at != std::string::npos;
       at = visible.find(kPrefix, at + 1)) {
    ++count;
  }
  if (Variable("DS_EMULATED_GPUS").empty() || count < wanted) {
    return Error{ErrorId::kNoGpu, "resources.gpus: " + std::to_string(wanted) +
                                      " are wanted, emulated and visible are " +
                                      std::to_string(count)};
  }
  TaskDevice device;
  device.models.assign(wanted, ModelDevice());
  for (ModelDevice& model : device.models) model.compute = {true, 9, 0};
  device.make_parameters = DeviceParameters::Create;
  device.make_collective = []() -> Result<std::unique_ptr<Collective>> {
    return std::unique_ptr<Collective>(std::make_unique<HostCollective>());
  };
  return device;
}

}  // namespace ps::worker
