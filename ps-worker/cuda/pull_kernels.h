// The kernels of a pull: what servers sent goes into the flat buffer of parameters on the device.
//
// All pointers are to the device's memory. Every function enqueues on `stream` and returns; an
// error is that of a launch. The arithmetic is that of the CPU, bit for bit.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace ps::worker::cuda {

// to[piece.to ...] = from[piece.from ...], `elements` of each of `count` pieces that do not
// overlap. 16 bytes at a time where both begin at a multiple of 4 elements.
struct CopyPiece {
  std::uint64_t from;
  std::uint64_t to;
  std::uint32_t elements;  // up to 65,536
};
cudaError_t LaunchCopyPieces(const CopyPiece* pieces, std::uint32_t count, const float* from,
                             float* to, cudaStream_t stream);

// The same of bf16, which becomes fp32.
cudaError_t LaunchWidenPieces(const CopyPiece* pieces, std::uint32_t count,
                              const std::uint16_t* from, float* to, cudaStream_t stream);

// Entries [first, first + count) of a list, all at different positions of one block.
struct EntryRun {
  std::uint32_t first;
  std::uint32_t count;
};

// The block that begins at element `begin`, and its runs [first_run, first_run + runs), which are
// applied in this order: sums are rounded.
struct EntryBlock {
  std::uint64_t begin;
  std::uint32_t first_run;
  std::uint32_t runs;
};

// A list of entries of `count` different blocks.
struct EntryList {
  const EntryBlock* blocks = nullptr;
  std::uint32_t count = 0;
  const EntryRun* runs = nullptr;
  const std::uint16_t* positions = nullptr;
  const float* values = nullptr;
};

// The values become those of the list.
cudaError_t LaunchSet(const EntryList& entries, float* parameters, cudaStream_t stream);

// Increments of the shadow (common/codec/increment.h): parameters stay values of bf16.
cudaError_t LaunchAddIncrements(const EntryList& entries, float* parameters, cudaStream_t stream);

// v += weight * value, within the residual's bounds: what was sent comes back.
cudaError_t LaunchAddWeighted(const EntryList& entries, float weight, float* v,
                              cudaStream_t stream);

}  // namespace ps::worker::cuda
