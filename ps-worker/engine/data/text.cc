// Text for language models: what byte follows each of those before it.
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/error_id.h"
#include "ps-worker/engine/data/input_file.h"
#include "ps-worker/engine/data/memory_dataset.h"

namespace ps::worker {
namespace {

// Record r has the bytes from r * context on, as numbers, and as labels the byte after each.
class TextDataset final : public Dataset {
 public:
  TextDataset(std::string text, std::uint64_t context)
      : text_(std::move(text)),
        context_(context),
        shape_{static_cast<std::int64_t>(context)},
        records_((text_.size() - 1) / context) {
    const auto ends = std::minmax_element(text_.begin(), text_.end(),
                                          [](char a, char b) { return Number(a) < Number(b); });
    range_.minimum = Number(*ends.first);
    range_.maximum = Number(*ends.second);
  }

  std::uint64_t records() const override { return records_; }
  const std::vector<std::int64_t>& feature_shape() const override { return shape_; }
  std::uint64_t features() const override { return context_; }
  std::uint64_t labels_per_record() const override { return context_; }
  std::uint64_t id_columns() const override { return 0; }
  LabelRange label_range() const override { return range_; }
  std::uint64_t fingerprint() const override {
    return XXH3_64bits_withSeed(text_.data(), text_.size(), context_);
  }

  Status Read(std::span<const std::uint64_t> records, float* features, std::int64_t* labels,
              float* targets, std::uint64_t* /*ids*/) const override {
    PS_TRY(CheckRecords(records, records_));
    for (const std::uint64_t record : records) {
      const char* const begin = text_.data() + record * context_;
      for (std::uint64_t i = 0; i < context_; ++i) {
        *features++ = Number(begin[i]);
        if (labels != nullptr) *labels++ = static_cast<unsigned char>(begin[i + 1]);
        if (targets != nullptr) *targets++ = Number(begin[i + 1]);
      }
    }
    return Ok();
  }

 private:
  static float Number(char byte) { return static_cast<float>(static_cast<unsigned char>(byte)); }

  const std::string text_;
  const std::uint64_t context_;
  const std::vector<std::int64_t> shape_;
  const std::uint64_t records_;
  LabelRange range_;
};

}  // namespace

Result<std::unique_ptr<Dataset>> OpenText(const DataSourceSpec& source) {
  InputFile file = PS_TRY(InputFile::Open(source.file));
  std::string text;
  PS_TRY(file.ReadRest(text));
  const auto at = [&](double part) {
    return static_cast<std::size_t>(std::llround(part * static_cast<double>(text.size())));
  };
  const std::size_t begin = std::min(at(source.begin), text.size());
  const std::size_t end = std::clamp(at(source.end), begin, text.size());
  const auto context = static_cast<std::uint64_t>(source.context);
  if (end - begin < context + 1) {
    return Error{ErrorId::kDataFileFormat, source.file + ": has " + std::to_string(text.size()) +
                                               " bytes, " + std::to_string(end - begin) +
                                               " of them between `begin` and `end`; a record of " +
                                               std::to_string(context) +
                                               " needs one more than that"};
  }
  if ((end - begin - 1) / context > kMaxRecords) {
    return Error{ErrorId::kDataFileFormat,
                 source.file + ": has more than " + std::to_string(kMaxRecords) + " records"};
  }
  return std::unique_ptr<Dataset>(
      std::make_unique<TextDataset>(text.substr(begin, end - begin), context));
}

}  // namespace ps::worker
