// What the GPU code needs of CUDA's runtime: errors as Results, and buffers that release
// themselves.
//
// Buffers belong to whoever holds them and may be used by any thread; the caller sees to it that
// nothing on a stream still uses one when it goes. Their sizes are in elements of T. What they
// hold at first is not defined.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "common/result.h"

namespace ps::worker::cuda {

// Ok, or kInternal with what was tried and CUDA's words.
Status Checked(cudaError_t error, const char* what);

// Devices that can be used; 0 also where there is no driver.
int DeviceCount();
struct DeviceProperties {
  std::string name;
  std::string uuid;  // "GPU-" and 32 digits in groups, as CUDA_VISIBLE_DEVICES takes it
  std::uint64_t memory_bytes = 0;
  int major = 0;  // compute capability
  int minor = 0;
};
Result<DeviceProperties> PropertiesOf(int device);
// "NVIDIA H100 80GB HBM3, 132 multiprocessors, sm_90, driver 13.0".
Result<std::string> DeviceDescription(int device);

namespace internal {
Result<void*> AllocateDevice(std::size_t bytes);
Result<void*> AllocatePinned(std::size_t bytes);
struct FreeDevice {
  void operator()(void* memory) const;
};
struct FreePinned {
  void operator()(void* memory) const;
};
}  // namespace internal

// On the current device, aligned to 256 bytes.
template <typename T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  static Result<DeviceBuffer> Create(std::size_t size) {
    DeviceBuffer buffer;
    if (size > 0) buffer.memory_.reset(PS_TRY(internal::AllocateDevice(size * sizeof(T))));
    buffer.size_ = size;
    return buffer;
  }

  T* data() const { return static_cast<T*>(memory_.get()); }
  std::size_t size() const { return size_; }
  std::size_t bytes() const { return size_ * sizeof(T); }

 private:
  std::unique_ptr<void, internal::FreeDevice> memory_;
  std::size_t size_ = 0;
};

// Of the host, page-locked, so that copies run beside everything else.
template <typename T>
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  static Result<PinnedBuffer> Create(std::size_t size) {
    PinnedBuffer buffer;
    if (size > 0) buffer.memory_.reset(PS_TRY(internal::AllocatePinned(size * sizeof(T))));
    buffer.size_ = size;
    return buffer;
  }

  T* data() const { return static_cast<T*>(memory_.get()); }
  std::size_t size() const { return size_; }
  std::size_t bytes() const { return size_ * sizeof(T); }

 private:
  std::unique_ptr<void, internal::FreePinned> memory_;
  std::size_t size_ = 0;
};

// A DeviceBuffer or PinnedBuffer that is too small is made anew, with other contents.
template <typename Buffer>
Status Grow(Buffer& buffer, std::size_t size) {
  if (buffer.size() >= size) return Ok();
  buffer = Buffer();  // before, as both may not fit
  buffer = PS_TRY(Buffer::Create(size));
  return Ok();
}

}  // namespace ps::worker::cuda
