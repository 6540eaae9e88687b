// Replicas on GPUs of one node, joined by NCCL: over NVLink where there is one, else over PCIe.
//
// https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/colls.html
#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "common/result.h"
#include "ps-worker/engine/collective.h"

namespace ps::worker {

class NcclCollective final : public Collective {
 public:
  // Rank r is CUDA's device r; at least one.
  static Result<std::unique_ptr<Collective>> Create(std::size_t ranks);
  ~NcclCollective() override;
  NcclCollective(const NcclCollective&) = delete;
  NcclCollective& operator=(const NcclCollective&) = delete;

  Status Broadcast(std::span<const std::span<float>> values) override;
  Status Sum(std::span<const std::span<const float>> values, std::span<float> sum) override;

 private:
  struct Rank {
    ncclComm_t communicator = nullptr;
    cudaStream_t stream = nullptr;  // waits for the device's default stream, and that for it
  };

  NcclCollective() = default;
  Status Open(std::size_t ranks);

  std::vector<Rank> ranks_;
};

}  // namespace ps::worker
