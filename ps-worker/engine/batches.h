// Records of a data set as the batches that a model takes.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "common/result.h"
#include "ps-worker/engine/data/dataset.h"
#include "ps-worker/engine/model.h"

namespace ps::worker {

// Memory for one batch, used again for each.
class BatchBuffer {
 public:
  // The batch is valid until the next call.
  Result<Batch> Read(const Dataset& data, std::span<const std::uint64_t> records);

 private:
  std::vector<float> features_;
  std::vector<float> labels_;
  std::vector<std::uint64_t> ids_;
};

// All records in their order, `size` at a time; ends at the first error.
Status ForEachBatch(const Dataset& data, std::uint32_t size,
                    const std::function<Status(const Batch&)>& use);

}  // namespace ps::worker
