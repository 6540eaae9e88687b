#include <ucontext.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx;
dim3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace ps::emulated {
namespace {

constexpr std::size_t kStackBytes = 256 * 1024;
constexpr unsigned kWarp = 32;

[[noreturn]] void Die(const char* why) {
  std::fprintf(stderr, "emulated CUDA: %s (CTA %u, thread %u)\n", why, blockIdx.x, threadIdx.x);
  std::abort();
}

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  enum { kReady, kAtBarrier, kAtWarp, kDone } state = kReady;
};

// What the lanes of a warp gave. Twice: who is through may give the next value before others have
// read this one.
struct WarpExchange {
  std::uint64_t values[2][kWarp];
  unsigned arrived = 0;
  unsigned turn = 0;
};

class Scheduler {
 public:
  void Run(dim3 grid, dim3 block, const std::function<void()>& body) {
    if (block.x % kWarp != 0 || block.y != 1 || grid.y != 1) Die("a shape that is not known here");
    body_ = &body;
    gridDim = grid;
    blockDim = block;
    ++launches_;
    std::vector<unsigned> ctas(grid.x);
    std::iota(ctas.begin(), ctas.end(), 0u);
    std::shuffle(ctas.begin(), ctas.end(), random_);
    for (const unsigned cta : ctas) RunCta(cta, block.x);
  }

  void WaitForCta() {
    fibers_[current_].state = Fiber::kAtBarrier;
    if (++at_barrier_ == fibers_used_) {
      at_barrier_ = 0;
      for (unsigned i = 0; i < fibers_used_; ++i) fibers_[i].state = Fiber::kReady;
    }
    Leave(current_);
  }

  const std::uint64_t* Exchange(std::uint64_t value) {
    WarpExchange& warp = warps_[current_ / kWarp];
    const unsigned turn = warp.turn;
    warp.values[turn][current_ % kWarp] = value;
    fibers_[current_].state = Fiber::kAtWarp;
    if (++warp.arrived == kWarp) {
      warp.arrived = 0;
      warp.turn = 1 - turn;
      const unsigned first = current_ / kWarp * kWarp;
      for (unsigned i = first; i < first + kWarp; ++i) fibers_[i].state = Fiber::kReady;
    }
    Leave(current_);
    return warp.values[turn];
  }

  void Seed(std::uint64_t seed) { random_.seed(seed); }
  std::uint64_t launches() const { return launches_; }
  unsigned current() const { return current_; }

 private:
  static void Entry();

  void RunCta(unsigned cta, unsigned threads) {
    blockIdx = dim3(cta);
    fibers_used_ = threads;
    if (fibers_.size() < threads) fibers_.resize(threads);
    warps_.assign(threads / kWarp, WarpExchange());
    at_barrier_ = 0;
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = fibers_[i];
      if (fiber.stack == nullptr) fiber.stack = std::make_unique<char[]>(kStackBytes);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &Scheduler::Entry, 0);
      fiber.state = Fiber::kReady;
    }
    std::vector<unsigned> order(threads);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), random_);
    unsigned done = 0;
    while (done < threads) {
      bool moved = false;
      for (const unsigned i : order) {
        if (fibers_[i].state != Fiber::kReady) continue;
        moved = true;
        Enter(i);
        if (fibers_[i].state == Fiber::kDone) ++done;
      }
      if (!moved) Die("threads wait for others that have gone or wait elsewhere");
    }
  }

  void Enter(unsigned i) {
    current_ = i;
    threadIdx = dim3(i);
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fibers_[i].stack.get(), kStackBytes);
#endif
    swapcontext(&main_, &fibers_[i].context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  void Leave(unsigned i) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(fibers_[i].state == Fiber::kDone ? nullptr : &fake, main_stack_,
                                   main_stack_bytes_);
#endif
    swapcontext(&fibers_[i].context, &main_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  const std::function<void()>* body_ = nullptr;
  ucontext_t main_;
  std::vector<Fiber> fibers_;
  std::vector<WarpExchange> warps_;
  unsigned fibers_used_ = 0;
  unsigned current_ = 0;
  unsigned at_barrier_ = 0;
  std::uint64_t launches_ = 0;
  std::mt19937_64 random_{1};
#if defined(__SANITIZE_ADDRESS__)
  const void* main_stack_ = nullptr;
  std::size_t main_stack_bytes_ = 0;
#endif
};

Scheduler& TheScheduler() {
  static Scheduler scheduler;
  return scheduler;
}

void Scheduler::Entry() {
  Scheduler& self = TheScheduler();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self.main_stack_, &self.main_stack_bytes_);
#endif
  const unsigned i = self.current_;
  (*self.body_)();
  self.fibers_[i].state = Fiber::kDone;
  self.Leave(i);
}

std::uint64_t synchronisations = 0;

}  // namespace

void RunKernel(dim3 grid, dim3 block, const std::function<void()>& body) {
  TheScheduler().Run(grid, block, body);
}
void SetSeed(std::uint64_t seed) { TheScheduler().Seed(seed); }
void WaitForCta() { TheScheduler().WaitForCta(); }
const std::uint64_t* Exchange(std::uint64_t value) { return TheScheduler().Exchange(value); }
std::uint64_t Launches() { return TheScheduler().launches(); }
std::uint64_t Synchronisations() { return synchronisations; }

}  // namespace ps::emulated

void EmulatedMisaligned(const void* at, std::size_t size) {
  std::fprintf(stderr, "emulated CUDA: %zu bytes at %p\n", size, at);
  std::abort();
}

namespace {

// Not zero: what is read before it is written should show.
cudaError_t Allocate(void** memory, std::size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xcb, bytes);
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaMalloc(void** memory, std::size_t bytes) { return Allocate(memory, bytes); }
cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) { return Allocate(memory, bytes); }
cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  return cudaMemset(to, value, bytes);
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  ++ps::emulated::synchronisations;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaStreamSynchronize(nullptr); }
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new double(0);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  *event = std::chrono::duration<double>(now).count();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end) {
  *ms = static_cast<float>((*end - *begin) * 1e3);
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "error"; }
const char* cudaGetErrorString(cudaError_t) { return "of an emulated device"; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = cudaDeviceProp();
  std::snprintf(properties->name, sizeof(properties->name), "emulated");
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}
