#include <utility>

#include "common/codec/increment.h"
#include "common/codec/value_codec.h"
#include "ps-worker/cuda/arithmetic.h"
#include "ps-worker/cuda/pull_kernels.h"

namespace ps::worker::cuda {
namespace {

constexpr std::uint32_t kThreads = 256;
constexpr std::uint32_t kPart = 4096;  // elements of a piece that a CTA has
constexpr std::uint32_t kPartsOfPiece = 65536 / kPart;
constexpr std::uint32_t kWide = 4;
constexpr std::uint32_t kVectors = kPart / (kThreads * kWide);

__device__ float4 LoadWide(const float* from) {
  return __ldcs(reinterpret_cast<const float4*>(from));
}

__device__ float4 LoadWide(const std::uint16_t* from) {
  const uint2 four = __ldcs(reinterpret_cast<const uint2*>(from));
  return make_float4(codec::Bf16ToFloat(static_cast<std::uint16_t>(four.x)),
                     codec::Bf16ToFloat(static_cast<std::uint16_t>(four.x >> 16)),
                     codec::Bf16ToFloat(static_cast<std::uint16_t>(four.y)),
                     codec::Bf16ToFloat(static_cast<std::uint16_t>(four.y >> 16)));
}

__device__ float LoadOne(const float* from) { return *from; }
__device__ float LoadOne(const std::uint16_t* from) { return codec::Bf16ToFloat(*from); }

// The last part of a piece, and pieces that do not begin where vectors do, go one by one.
template <typename From>
__global__ void __launch_bounds__(kThreads)
    CopyKernel(const CopyPiece* pieces, const From* all_from, float* all_to) {
  const CopyPiece piece = pieces[blockIdx.x / kPartsOfPiece];
  const std::uint32_t begin = blockIdx.x % kPartsOfPiece * kPart;
  if (begin >= piece.elements) return;
  const From* const from = all_from + piece.from + begin;
  float* const to = all_to + piece.to + begin;
  const bool wide =
      begin + kPart <= piece.elements && piece.from % kWide == 0 && piece.to % kWide == 0;
  if (wide) {
    float4 values[kVectors];
#pragma unroll
    for (std::uint32_t k = 0; k < kVectors; ++k) {
      values[k] = LoadWide(from + (k * kThreads + threadIdx.x) * kWide);
    }
#pragma unroll
    for (std::uint32_t k = 0; k < kVectors; ++k) {
      __stcs(reinterpret_cast<float4*>(to + (k * kThreads + threadIdx.x) * kWide), values[k]);
    }
    return;
  }
  const std::uint32_t rest = piece.elements - begin;
  for (std::uint32_t i = threadIdx.x; i < kPart && i < rest; i += kThreads) {
    to[i] = LoadOne(from + i);
  }
}

struct SetTo {
  __device__ float operator()(float, float value) const { return value; }
};

struct AddIncrementTo {
  __device__ float operator()(float held, float increment) const {
    return codec::Bf16ToFloat(codec::AddIncrement(codec::FloatToBf16(held), increment));
  }
};

struct AddWeightedTo {
  float weight;

  __device__ float operator()(float v, float value) const {
    return Bounded(v + Bounded(weight * value));
  }
};

// One CTA for each block, so that its runs keep their order.
template <typename Add>
__global__ void __launch_bounds__(kThreads)
    EntriesKernel(const EntryList entries, const Add add, float* all) {
  const EntryBlock block = entries.blocks[blockIdx.x];
  float* const values = all + block.begin;
  for (std::uint32_t number = 0; number < block.runs; ++number) {
    const EntryRun run = entries.runs[block.first_run + number];
    for (std::uint32_t i = threadIdx.x; i < run.count; i += kThreads) {
      float& value = values[entries.positions[run.first + i]];
      value = add(value, entries.values[run.first + i]);
    }
    __syncthreads();
  }
}

template <typename... Parameters>
cudaError_t Enqueue(void (*kernel)(Parameters...), std::uint64_t ctas, cudaStream_t stream,
                    Parameters... arguments) {
  if (ctas == 0) return cudaSuccess;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(ctas));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, std::move(arguments)...);
}

}  // namespace

cudaError_t LaunchCopyPieces(const CopyPiece* pieces, std::uint32_t count, const float* from,
                             float* to, cudaStream_t stream) {
  return Enqueue(CopyKernel<float>, std::uint64_t{count} * kPartsOfPiece, stream, pieces, from, to);
}

cudaError_t LaunchWidenPieces(const CopyPiece* pieces, std::uint32_t count,
                              const std::uint16_t* from, float* to, cudaStream_t stream) {
  return Enqueue(CopyKernel<std::uint16_t>, std::uint64_t{count} * kPartsOfPiece, stream, pieces,
                 from, to);
}

cudaError_t LaunchSet(const EntryList& entries, float* parameters, cudaStream_t stream) {
  return Enqueue(EntriesKernel<SetTo>, entries.count, stream, entries, SetTo{}, parameters);
}

cudaError_t LaunchAddIncrements(const EntryList& entries, float* parameters, cudaStream_t stream) {
  return Enqueue(EntriesKernel<AddIncrementTo>, entries.count, stream, entries, AddIncrementTo{},
                 parameters);
}

cudaError_t LaunchAddWeighted(const EntryList& entries, float weight, float* v,
                              cudaStream_t stream) {
  return Enqueue(EntriesKernel<AddWeightedTo>, entries.count, stream, entries,
                 AddWeightedTo{weight}, v);
}

}  // namespace ps::worker::cuda
