// A GPU that the CPU plays: kernels run in tests on machines without one.
//
// Found instead of CUDA's header of this name by targets that compile the project's .cu files as
// C++ (ps_emulated_cuda). Memory of the "device" is the host's, so sanitizers see every access
// behind its end. Copies, clearing and kernels happen at once, streams mean nothing.
//
// A kernel's CTAs run one after the other, the threads of one as fibers: each runs until it waits
// for others, at __syncthreads() or for its warp, and then the next one does. In which order they
// take turns, and the CTAs too, is drawn from a seed, so that a missing barrier shows. Waiting for
// what cannot come (a barrier that some have left out) aborts. Only what the kernels of this
// project use is here; a warp acts as a whole (masks are those of all lanes).
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
// One CTA runs at a time.
#define __shared__ static

struct dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct float4 {
  float x, y, z, w;
};
struct uint2 {
  unsigned x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

extern dim3 threadIdx;
extern dim3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

namespace ps::emulated {

// Runs `body` in every thread of every CTA.
void RunKernel(dim3 grid, dim3 block, const std::function<void()>& body);
// What the next kernels' order is drawn from.
void SetSeed(std::uint64_t seed);
void WaitForCta();
// Gives `value` to the warp and returns those of all its 32 lanes.
const std::uint64_t* Exchange(std::uint64_t value);
// Kernels that ran since the program began.
std::uint64_t Launches();
std::uint64_t Synchronisations();

}  // namespace ps::emulated

inline void __syncthreads() { ps::emulated::WaitForCta(); }
inline void __syncwarp() { (void)ps::emulated::Exchange(0); }
inline void __threadfence() {}
inline int __popc(unsigned value) { return std::popcount(value); }

inline unsigned __ballot_sync(unsigned, bool value) {
  const std::uint64_t* const values = ps::emulated::Exchange(value ? 1 : 0);
  unsigned lanes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) lanes |= static_cast<unsigned>(values[lane]) << lane;
  return lanes;
}

template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const std::uint64_t got = ps::emulated::Exchange(bits)[lane];
  std::memcpy(&value, &got, sizeof(T));
  return value;
}

template <typename T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at += value;
  return before;
}

template <typename T>
T atomicMax(T* at, T value) {
  const T before = *at;
  *at = std::max(before, value);
  return before;
}

// A vector must lie at a multiple of its size, as on the device.
[[noreturn]] void EmulatedMisaligned(const void* at, std::size_t size);

template <typename T>
T __ldcs(const T* from) {
  if (reinterpret_cast<std::uintptr_t>(from) % sizeof(T) != 0) EmulatedMisaligned(from, sizeof(T));
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <typename T>
T __ldcg(const T* from) {
  return __ldcs(from);
}
template <typename T>
void __stcs(T* to, T value) {
  if (reinterpret_cast<std::uintptr_t>(to) % sizeof(T) != 0) EmulatedMisaligned(to, sizeof(T));
  std::memcpy(to, &value, sizeof(T));
}

// ---- the runtime

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3
};
using cudaStream_t = void*;
// When it was recorded, in seconds.
using cudaEvent_t = double*;

struct cudaUUID_t {
  char bytes[16];
};
struct cudaDeviceProp {
  char name[256];
  cudaUUID_t uuid;
  std::size_t totalGlobalMem;
  int multiProcessorCount;
  int major;
  int minor;
};

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  ps::emulated::RunKernel(config->gridDim, config->blockDim, [&] { kernel(arguments...); });
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMallocHost(void** memory, std::size_t bytes);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemset(void* to, int value, std::size_t bytes);
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaGetLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDriverGetVersion(int* version);
