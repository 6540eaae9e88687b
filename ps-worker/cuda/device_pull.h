// What pulls bring, into the flat buffer of parameters on a GPU.
//
// Blocks are decoded on the host, into a page-locked buffer; End() copies that to the device at
// once and puts everything in its place there (pull_kernels.h). The outcome is that of
// codec::BlockWriter, bit for bit; blocks of bf16 are widened on the device.
//
// One thread, and all work on one stream: what is enqueued there after End() sees the new values.
// The device that is current in the constructor must be so in all calls.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/codec/block_codec.h"
#include "common/layout/layout.h"
#include "common/result.h"
#include "ps-worker/cuda/pull_kernels.h"
#include "ps-worker/cuda/runtime.h"

namespace ps::worker::cuda {

class DevicePull {
 public:
  // `parameters` is on the device and outlives this.
  DevicePull(float* parameters, cudaStream_t stream);
  // Waits for what it has enqueued.
  ~DevicePull();
  DevicePull(const DevicePull&) = delete;
  DevicePull& operator=(const DevicePull&) = delete;

  // `view` was verified against the block. Increments are those of the shadow.
  Status Apply(const Block& block, const codec::BlockView& view, bool increments);
  Status End();

 private:
  enum class Kind : std::uint8_t { kValues, kEntries, kIncrements };

  // Entries of several blocks, in the order in which they came.
  struct Entries {
    std::vector<std::pair<std::uint64_t, EntryRun>> runs;  // with where the block begins
    std::vector<std::uint16_t> positions;
    std::vector<float> values;
  };
  // Where in the buffer the arrays of an EntryList are.
  struct Place {
    std::uint32_t count = 0;
    std::size_t blocks = 0;
    std::size_t runs = 0;
    std::size_t positions = 0;
    std::size_t values = 0;
  };

  Status Enqueue();
  void Clear();
  // Puts an array into the staged buffer, and returns where.
  template <typename T>
  std::size_t Stage(const std::vector<T>& values);
  Place StageEntries(Entries& entries);
  EntryList ListAt(const Place& place) const;

  float* const parameters_;
  const cudaStream_t stream_;

  // Of a pull.
  std::unordered_map<std::uint64_t, Kind> blocks_;  // by where they begin
  std::vector<CopyPiece> pieces_;
  std::vector<float> floats_;
  std::vector<CopyPiece> wide_pieces_;
  std::vector<std::uint16_t> halves_;
  Entries entries_;
  Entries increments_;
  std::vector<std::uint16_t> indices_;
  std::vector<float> values_;

  // Two take turns: a pull that is brought while the device is still at a step need not wait for
  // what was enqueued before that step.
  struct Buffers {
    PinnedBuffer<std::byte> staged;
    DeviceBuffer<std::byte> device;
    cudaEvent_t done = nullptr;  // with what was enqueued last
    bool enqueued = false;
  };
  std::array<Buffers, 2> buffers_;
  std::size_t turn_ = 0;
  std::size_t used_ = 0;  // of the one whose turn it is
};

}  // namespace ps::worker::cuda
