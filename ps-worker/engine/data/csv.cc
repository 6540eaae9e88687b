#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <string_view>
#include <utility>

#include "ps-worker/engine/data/input_file.h"
#include "ps-worker/engine/data/memory_dataset.h"

namespace ps::worker {
namespace {

std::string_view Trimmed(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\t' || c == '\r'; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  if (text.size() >= 2 && text.front() == '"' && text.back() == '"') {
    text = text.substr(1, text.size() - 2);
  }
  return text;
}

// Fields of a line. A delimiter between quotes does not end a field; a tab may be the delimiter.
void Split(std::string_view line, char delimiter, std::vector<std::string_view>& fields) {
  fields.clear();
  std::size_t begin = 0;
  bool quoted = false;
  for (std::size_t at = 0; at <= line.size(); ++at) {
    if (at < line.size() && line[at] == '"') quoted = !quoted;
    if (at < line.size() && (line[at] != delimiter || quoted)) continue;
    fields.push_back(Trimmed(line.substr(begin, at - begin)));
    begin = at + 1;
  }
}

template <typename T>
std::optional<T> ParseNumber(std::string_view text) {
  if (text.size() > 1 && text[0] == '+' && text[1] != '-') text.remove_prefix(1);
  T value{};
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) return std::nullopt;
  return value;
}

class CsvReader {
 public:
  CsvReader(const DataSourceSpec& source, const Normalisation& normalisation)
      : source_(source), normalisation_(normalisation) {}

  Result<std::unique_ptr<Dataset>> Read(std::string_view text) {
    while (!text.empty()) {
      const std::size_t end = std::min(text.find('\n'), text.size());
      const std::string_view line = text.substr(0, end);
      text.remove_prefix(std::min(end + 1, text.size()));
      ++line_number_;
      Split(line, source_.delimiter, fields_);
      if (line_number_ == 1) {
        PS_TRY(FirstLine());
        if (source_.header) continue;
      }
      PS_TRY(RecordLine());
    }
    if (labels_.empty()) {
      return Error{ErrorCode::kInvalid, source_.file + ": the file holds no record"};
    }
    const auto features = static_cast<std::int64_t>(columns_.size()) - 1;
    return std::unique_ptr<Dataset>(std::make_unique<MemoryDataset>(
        std::vector<std::int64_t>{features}, std::move(values_), std::move(labels_)));
  }

 private:
  Error At(const std::string& what) const {
    return Error{ErrorCode::kInvalid,
                 source_.file + ":" + std::to_string(line_number_) + ": " + what};
  }

  // Learns the columns and which of them is the label.
  Status FirstLine() {
    for (std::size_t at = 0; at < fields_.size(); ++at) {
      columns_.push_back(source_.header ? std::string(fields_[at]) : std::to_string(at));
    }
    const auto found = std::find(columns_.begin(), columns_.end(), source_.label);
    const auto number = ParseNumber<std::size_t>(source_.label);
    if (found != columns_.end()) {
      label_column_ = static_cast<std::size_t>(found - columns_.begin());
    } else if (number.has_value() && *number < columns_.size()) {
      label_column_ = *number;
    } else {
      std::string names;
      for (const std::string& name : columns_) names += (names.empty() ? "" : ", ") + name;
      return At("no column `" + source_.label + "` for the label; the columns are: " + names);
    }
    if (columns_.size() < 2) return At("one column, a label and at least one feature expected");
    return Ok();
  }

  Status RecordLine() {
    if (fields_.size() != columns_.size()) {
      return At(std::to_string(fields_.size()) + " fields, " + std::to_string(columns_.size()) +
                " expected");
    }
    if (labels_.size() >= kMaxRecords) {
      return At("more than " + std::to_string(kMaxRecords) + " records");
    }
    for (std::size_t at = 0; at < fields_.size(); ++at) {
      const std::optional<double> value = ParseNumber<double>(fields_[at]);
      const bool label = at == label_column_;
      const float normal = value.has_value() && !label ? normalisation_.Apply(*value) : 0.0f;
      if (!value.has_value() || !std::isfinite(*value) || !std::isfinite(normal)) {
        return At("column " + std::to_string(at) + " (`" + columns_[at] + "`): a finite number " +
                  "expected, found `" + std::string(fields_[at].substr(0, 40)) + "`");
      }
      if (label) {
        labels_.push_back(*value);
      } else {
        values_.push_back(normal);
      }
    }
    return Ok();
  }

  const DataSourceSpec& source_;
  const Normalisation normalisation_;
  std::size_t line_number_ = 0;
  std::vector<std::string_view> fields_;
  std::vector<std::string> columns_;
  std::size_t label_column_ = 0;
  std::vector<float> values_;
  std::vector<double> labels_;
};

}  // namespace

Result<std::unique_ptr<Dataset>> OpenCsv(const DataSourceSpec& source, const DataSpec& data) {
  const Normalisation normalisation = PS_TRY(Normalisation::Create(data, 1.0));
  InputFile file = PS_TRY(InputFile::Open(source.file));
  std::string text;
  PS_TRY(file.ReadRest(text));
  return CsvReader(source, normalisation).Read(text);
}

}  // namespace ps::worker
