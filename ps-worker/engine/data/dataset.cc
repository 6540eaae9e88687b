#include "ps-worker/engine/data/dataset.h"

#include <xxhash.h>

#include <algorithm>

#include "common/error_id.h"
#include "ps-worker/engine/data/memory_dataset.h"

namespace ps::worker {
namespace {

class CounterDataset : public Dataset {
 public:
  explicit CounterDataset(std::uint64_t records) : records_(records) {}

  std::uint64_t records() const override { return records_; }
  const std::vector<std::int64_t>& feature_shape() const override { return shape_; }
  std::uint64_t features() const override { return 0; }
  std::uint64_t id_columns() const override { return 1; }
  LabelRange label_range() const override { return {}; }
  std::uint64_t fingerprint() const override { return XXH3_64bits(&records_, sizeof(records_)); }

  Status Read(std::span<const std::uint64_t> records, float* /*features*/, std::int64_t* labels,
              float* targets, std::uint64_t* ids) const override {
    PS_TRY(CheckRecords(records, records_));
    if (ids != nullptr) std::copy(records.begin(), records.end(), ids);
    if (labels != nullptr) std::fill_n(labels, records.size(), std::int64_t{0});
    if (targets != nullptr) std::fill_n(targets, records.size(), 0.0f);
    return Ok();
  }

 private:
  const std::uint64_t records_;
  const std::vector<std::int64_t> shape_;
};

}  // namespace

Status CheckRecords(std::span<const std::uint64_t> asked, std::uint64_t records) {
  for (const std::uint64_t record : asked) {
    if (record >= records) {
      return Error{ErrorCode::kInvalid, "record " + std::to_string(record) + " of a data set of " +
                                            std::to_string(records)};
    }
  }
  return Ok();
}

Result<std::unique_ptr<Dataset>> Dataset::Open(const DataSourceSpec& source, const DataSpec& data,
                                               const std::vector<std::string>& id_columns) {
  if (source.format == "idx") return OpenIdx(source, data);
  if (source.format == "csv") return OpenCsv(source, data, id_columns);
  if (source.format == "text") return OpenText(source);
  if (source.format != "counter") {
    return Error{ErrorId::kJobFileValue,
                 "data: format `" + source.format + "`, one of idx, csv, text, counter expected"};
  }
  if (source.records < 1 || static_cast<std::uint64_t>(source.records) > kMaxRecords) {
    return Error{ErrorId::kJobFileValue, "data: " + std::to_string(source.records) +
                                             " records, 1 to " + std::to_string(kMaxRecords) +
                                             " expected"};
  }
  return std::unique_ptr<Dataset>(
      std::make_unique<CounterDataset>(static_cast<std::uint64_t>(source.records)));
}

}  // namespace ps::worker
