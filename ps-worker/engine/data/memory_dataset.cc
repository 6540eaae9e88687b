#include "ps-worker/engine/data/memory_dataset.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/check.h"
#include "common/error_id.h"

namespace ps::worker {
namespace {

class Fingerprint {
 public:
  Fingerprint& Add(std::uint64_t number) {
    hash_ = XXH3_64bits_withSeed(&number, sizeof(number), hash_);
    return *this;
  }

  template <typename T>
  Fingerprint& Add(const std::vector<T>& values) {
    Add(values.size());
    if (!values.empty()) {
      hash_ = XXH3_64bits_withSeed(values.data(), values.size() * sizeof(T), hash_);
    }
    return *this;
  }

  std::uint64_t value() const { return hash_; }

 private:
  std::uint64_t hash_ = 0;
};

}  // namespace

Result<Normalisation> Normalisation::Create(const DataSpec& data, double scale_of_format) {
  Normalisation normalisation;
  normalisation.scale = data.scale == 0 ? scale_of_format : data.scale;
  normalisation.mean = data.mean;
  normalisation.standard_deviation = data.standard_deviation;
  if (!std::isfinite(normalisation.scale) || !std::isfinite(normalisation.mean) ||
      !std::isfinite(normalisation.standard_deviation) || normalisation.standard_deviation <= 0) {
    return Error{ErrorId::kJobFileValue,
                 "data: scale, mean and standard_deviation must be finite, the last above 0"};
  }
  return normalisation;
}

float Normalisation::Apply(double value) const {
  return static_cast<float>((value * scale - mean) / standard_deviation);
}

MemoryDataset::MemoryDataset(std::vector<std::int64_t> shape, std::vector<std::uint8_t> features,
                             const Normalisation& normalisation, std::vector<double> labels)
    : shape_(std::move(shape)), bytes_(std::move(features)), labels_(std::move(labels)) {
  for (std::size_t byte = 0; byte < of_byte_.size(); ++byte) {
    of_byte_[byte] = normalisation.Apply(static_cast<double>(byte));
  }
  Finish();
}

MemoryDataset::MemoryDataset(std::vector<std::int64_t> shape, std::vector<float> features,
                             std::vector<double> labels)
    : shape_(std::move(shape)), values_(std::move(features)), labels_(std::move(labels)) {
  Finish();
}

MemoryDataset::MemoryDataset(std::vector<std::int64_t> shape, std::vector<float> features,
                             std::vector<double> labels, std::uint64_t id_columns,
                             std::vector<std::uint64_t> ids)
    : shape_(std::move(shape)),
      values_(std::move(features)),
      labels_(std::move(labels)),
      id_columns_(id_columns),
      ids_(std::move(ids)) {
  Finish();
}

void MemoryDataset::Finish() {
  for (const std::int64_t size : shape_) features_ *= static_cast<std::uint64_t>(size);
  PS_CHECK(bytes_.size() + values_.size() == features_ * labels_.size(), bytes_.size(),
           values_.size(), features_, labels_.size());
  PS_CHECK(ids_.size() == id_columns_ * labels_.size(), ids_.size(), id_columns_, labels_.size());
  if (!labels_.empty()) {
    const auto ends = std::minmax_element(labels_.begin(), labels_.end());
    range_.minimum = *ends.first;
    range_.maximum = *ends.second;
    range_.whole = std::all_of(labels_.begin(), labels_.end(), [](double label) {
      return label == std::floor(label) && std::abs(label) < 9e15;
    });
  }
  fingerprint_ = Fingerprint().Add(shape_).Add(bytes_).Add(values_).Add(labels_).value();
  if (id_columns_ > 0) fingerprint_ = Fingerprint().Add(fingerprint_).Add(ids_).value();
}

Status MemoryDataset::Read(std::span<const std::uint64_t> records, float* features,
                           std::int64_t* labels, float* targets, std::uint64_t* ids) const {
  PS_TRY(CheckRecords(records, labels_.size()));
  for (const std::uint64_t record : records) {
    if (bytes_.empty()) {
      features = std::copy_n(values_.data() + record * features_, features_, features);
    } else {
      const std::uint8_t* from = bytes_.data() + record * features_;
      for (std::uint64_t i = 0; i < features_; ++i) *features++ = of_byte_[from[i]];
    }
    if (ids != nullptr) {
      ids = std::copy_n(ids_.data() + record * id_columns_, id_columns_, ids);
    }
    const double label = labels_[record];
    // Only whole labels are asked for as classes; the conversion of others must be defined too.
    if (labels != nullptr) *labels++ = range_.whole ? static_cast<std::int64_t>(label) : 0;
    if (targets != nullptr) *targets++ = static_cast<float>(label);
  }
  return Ok();
}

}  // namespace ps::worker
