#include "ps-worker/engine/batches.h"

#include <algorithm>
#include <numeric>

namespace ps::worker {

Result<Batch> BatchBuffer::Read(const Dataset& data, std::span<const std::uint64_t> records) {
  features_.resize(static_cast<std::size_t>(data.features()) * records.size());
  labels_.resize(static_cast<std::size_t>(data.labels_per_record()) * records.size());
  ids_.resize(static_cast<std::size_t>(data.id_columns()) * records.size());
  PS_TRY(data.Read(records, features_.data(), nullptr, labels_.data(), ids_.data()));
  return Batch{features_, labels_, static_cast<std::uint32_t>(records.size()), ids_, nullptr};
}

Status ForEachBatch(const Dataset& data, std::uint32_t size,
                    const std::function<Status(const Batch&)>& use) {
  BatchBuffer buffer;
  std::vector<std::uint64_t> records;
  for (std::uint64_t begin = 0; begin < data.records(); begin += records.size()) {
    records.resize(static_cast<std::size_t>(std::min<std::uint64_t>(size, data.records() - begin)));
    std::iota(records.begin(), records.end(), begin);
    const Batch batch = PS_TRY(buffer.Read(data, records));
    PS_TRY(use(batch));
  }
  return Ok();
}

}  // namespace ps::worker
