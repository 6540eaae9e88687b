#include "ps-worker/cuda/runtime.h"

namespace ps::worker::cuda {

Status Checked(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return Ok();
  return Error{ErrorCode::kInternal, std::string("CUDA: ") + what + ": " + cudaGetErrorName(error) +
                                         ", " + cudaGetErrorString(error)};
}

int DeviceCount() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();  // else the next call would report it
    return 0;
  }
  return count;
}

Result<DeviceProperties> PropertiesOf(int device) {
  cudaDeviceProp properties{};
  PS_TRY(Checked(cudaGetDeviceProperties(&properties, device), "reading a device's properties"));
  DeviceProperties result;
  result.name = properties.name;
  result.uuid = "GPU-";
  for (std::size_t i = 0; i < sizeof(properties.uuid.bytes); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) result.uuid += '-';
    const auto byte = static_cast<unsigned char>(properties.uuid.bytes[i]);
    result.uuid += "0123456789abcdef"[byte >> 4];
    result.uuid += "0123456789abcdef"[byte & 15];
  }
  result.memory_bytes = properties.totalGlobalMem;
  result.major = properties.major;
  result.minor = properties.minor;
  return result;
}

Result<std::string> DeviceDescription(int device) {
  cudaDeviceProp properties{};
  PS_TRY(Checked(cudaGetDeviceProperties(&properties, device), "reading a device's properties"));
  int driver = 0;
  PS_TRY(Checked(cudaDriverGetVersion(&driver), "reading the driver's version"));
  return std::string(properties.name) + ", " + std::to_string(properties.multiProcessorCount) +
         " multiprocessors, sm_" + std::to_string(properties.major) +
         std::to_string(properties.minor) + ", driver for CUDA " + std::to_string(driver / 1000) +
         "." + std::to_string(driver % 1000 / 10);
}

namespace internal {

Result<void*> AllocateDevice(std::size_t bytes) {
  void* memory = nullptr;
  const std::string what = "allocating " + std::to_string(bytes) + " bytes of the device";
  PS_TRY(Checked(cudaMalloc(&memory, bytes), what.c_str()));
  return memory;
}

Result<void*> AllocatePinned(std::size_t bytes) {
  void* memory = nullptr;
  const std::string what = "allocating " + std::to_string(bytes) + " page-locked bytes";
  PS_TRY(Checked(cudaMallocHost(&memory, bytes), what.c_str()));
  return memory;
}

void FreeDevice::operator()(void* memory) const { (void)cudaFree(memory); }

void FreePinned::operator()(void* memory) const { (void)cudaFreeHost(memory); }

}  // namespace internal
}  // namespace ps::worker::cuda
