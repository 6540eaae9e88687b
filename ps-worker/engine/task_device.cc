#include "ps-worker/engine/task_device.h"

#include <memory>
#include <string>
#include <utility>

#include "common/error_id.h"
#ifdef PS_DEVICE_PARAMETERS
#include "ps-worker/cuda/runtime.h"
#include "ps-worker/engine/device_parameters.h"
#endif
#ifdef PS_NCCL
#include "ps-worker/engine/nccl_collective.h"
#endif

namespace ps::worker {

#ifdef PS_DEVICE_PARAMETERS

namespace {

// Why LibTorch cannot compute where CUDA could; empty: it can.
std::string EngineTrouble() {
  if (EngineDevices() > 0) return "";
  return "ps-task computes with " + EngineVersion() +
         ", which finds no GPU: a LibTorch for CUDA is needed, and a driver that is new enough";
}

}  // namespace

control::DeviceReportT FindDevices() {
  control::DeviceReportT report;
  const int count = cuda::DeviceCount();
  if (count == 0) {
    report.note = "CUDA finds no device";
    return report;
  }
  report.note = EngineTrouble();
  if (!report.note.empty()) return report;
  for (int device = 0; device < count; ++device) {
    auto properties = cuda::PropertiesOf(device);
    if (!properties.ok()) {
      report.note = "device " + std::to_string(device) + ": " + properties.error().message;
      continue;
    }
    auto gpu = std::make_unique<control::GpuInfoT>();
    gpu->uuid = std::move(properties->uuid);
    gpu->name = std::move(properties->name);
    gpu->memory_bytes = properties->memory_bytes;
    gpu->major = static_cast<std::uint8_t>(properties->major);
    gpu->minor = static_cast<std::uint8_t>(properties->minor);
    report.gpus.push_back(std::move(gpu));
  }
  return report;
}

Result<TaskDevice> ChooseDevice(const JobSpec& spec) {
  TaskDevice device;
  if (spec.resources.gpus == 0) return device;
  if (cuda::DeviceCount() == 0) {
    return Error{ErrorId::kNoGpu, "resources.gpus: CUDA finds no device on this node"};
  }
  if (const std::string trouble = EngineTrouble(); !trouble.empty()) {
    return Error{ErrorId::kNoGpu, "resources.gpus: " + trouble};
  }
  if (cuda::DeviceCount() < spec.resources.gpus) {
    return Error{ErrorId::kNoGpu, "resources.gpus: " + std::to_string(spec.resources.gpus) +
                                      " are wanted, CUDA finds " +
                                      std::to_string(cuda::DeviceCount()) + " for this task"};
  }
  device.models.clear();
  for (int number = 0; number < spec.resources.gpus; ++number) {
    const auto properties = PS_TRY(cuda::PropertiesOf(number));
    ModelDevice& model = device.models.emplace_back();
    model.compute = {true, properties.major, properties.minor};
    model.cuda = number;
  }
  device.make_parameters = DeviceParameters::Create;
  if (spec.resources.gpus == 1) return device;
#ifdef PS_NCCL
  device.make_collective = [count = device.models.size()] { return NcclCollective::Create(count); };
  return device;
#else
  return Error{
      ErrorId::kNoGpu,
      "resources.gpus: this ps-task was built without NCCL, which sums up what several GPUs "
      "compute; one GPU a task can be used"};
#endif
}

#else

control::DeviceReportT FindDevices() {
  control::DeviceReportT report;
  report.note = "this ps-task was built without GPU code (no nvcc was found)";
  return report;
}

Result<TaskDevice> ChooseDevice(const JobSpec& spec) {
  if (spec.resources.gpus == 0) return TaskDevice();
  return Error{ErrorId::kNoGpu, "resources.gpus: " + FindDevices().note};
}

#endif

}  // namespace ps::worker
