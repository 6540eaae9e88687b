// A data set whose records lie in memory, filled by the readers of the file formats.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ps-worker/engine/data/dataset.h"

namespace ps::worker {

// x' = (x * scale - mean) / standard_deviation, with scale 1/255 for bytes where none is given.
struct Normalisation {
  double scale = 1;
  double mean = 0;
  double standard_deviation = 1;

  static Result<Normalisation> Create(const DataSpec& data, double scale_of_format);
  float Apply(double value) const;
};

class MemoryDataset : public Dataset {
 public:
  // Features as bytes, normalised when they are read; features.size() is the product of the shape
  // and the number of labels.
  MemoryDataset(std::vector<std::int64_t> shape, std::vector<std::uint8_t> features,
                const Normalisation& normalisation, std::vector<double> labels);
  // Features that are normalised already.
  MemoryDataset(std::vector<std::int64_t> shape, std::vector<float> features,
                std::vector<double> labels);
  // The same with `id_columns` ids a record.
  MemoryDataset(std::vector<std::int64_t> shape, std::vector<float> features,
                std::vector<double> labels, std::uint64_t id_columns,
                std::vector<std::uint64_t> ids);

  std::uint64_t records() const override { return labels_.size(); }
  const std::vector<std::int64_t>& feature_shape() const override { return shape_; }
  std::uint64_t features() const override { return features_; }
  std::uint64_t id_columns() const override { return id_columns_; }
  LabelRange label_range() const override { return range_; }
  std::uint64_t fingerprint() const override { return fingerprint_; }
  Status Read(std::span<const std::uint64_t> records, float* features, std::int64_t* labels,
              float* targets, std::uint64_t* ids = nullptr) const override;

 private:
  void Finish();

  std::vector<std::int64_t> shape_;
  std::vector<std::uint8_t> bytes_;  // or
  std::vector<float> values_;
  std::array<float, 256> of_byte_{};
  std::vector<double> labels_;
  std::uint64_t id_columns_ = 0;
  std::vector<std::uint64_t> ids_;
  std::uint64_t features_ = 1;
  LabelRange range_;
  std::uint64_t fingerprint_ = 0;
};

// kInvalid if one of them does not exist.
Status CheckRecords(std::span<const std::uint64_t> asked, std::uint64_t records);

// data.*.format: idx. `images` has the records in its first dimension, `labels` has one dimension.
Result<std::unique_ptr<Dataset>> OpenIdx(const DataSourceSpec& source, const DataSpec& data);

// data.*.format: csv. One record a line; quotes around a field are taken off. Columns are the
// label, ids, ignored or numbers.
Result<std::unique_ptr<Dataset>> OpenCsv(const DataSourceSpec& source, const DataSpec& data,
                                         const std::vector<std::string>& id_columns);

// data.*.format: text. Each record has `context` bytes of the file, none is in two; what is left at
// the end is not used. A label is the byte after one of the record.
Result<std::unique_ptr<Dataset>> OpenText(const DataSourceSpec& source);

// The id of a field: a whole number of digits as it is, other text by its XXH3-64.
std::uint64_t IdOfText(std::string_view text);

}  // namespace ps::worker
