#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <string_view>
#include <utility>

#include "common/error_id.h"
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

// What a column is for.
struct Use {
  enum class Kind { kFeature, kLabel, kId, kNone };
  Kind kind = Kind::kFeature;
  std::size_t id = 0;  // kId: which of a record's ids
};

class CsvReader {
 public:
  CsvReader(const DataSourceSpec& source, const Normalisation& normalisation,
            const std::vector<std::string>& id_columns)
      : source_(source), normalisation_(normalisation), id_columns_(id_columns) {}

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
      return Error{ErrorId::kDataFileFormat, source_.file + ": the file holds no record"};
    }
    return std::unique_ptr<Dataset>(
        std::make_unique<MemoryDataset>(std::vector<std::int64_t>{features_}, std::move(values_),
                                        std::move(labels_), id_columns_.size(), std::move(ids_)));
  }

 private:
  Error At(const std::string& what) const {
    return Error{ErrorId::kDataFileFormat,
                 source_.file + ":" + std::to_string(line_number_) + ": " + what};
  }

  // The number of a column that has this name, or else this number; nothing if there is none.
  Result<std::size_t> Find(const std::string& column, const char* what) const {
    const auto found = std::find(columns_.begin(), columns_.end(), column);
    if (found != columns_.end()) return static_cast<std::size_t>(found - columns_.begin());
    const auto number = ParseNumber<std::size_t>(column);
    if (number.has_value() && *number < columns_.size()) return *number;
    std::string names;
    for (const std::string& name : columns_) names += (names.empty() ? "" : ", ") + name;
    return At("no column `" + column + "` for " + what + "; the columns are: " + names);
  }

  // Gives a column its use, which it must not have had before.
  Status Take(const std::string& column, const char* what, Use use) {
    const std::size_t at = PS_TRY(Find(column, what));
    if (uses_[at].kind != Use::Kind::kFeature) {
      return At("column `" + columns_[at] + "` for " + what + " has another use already");
    }
    uses_[at] = use;
    return Ok();
  }

  // Learns the columns and what they are for.
  Status FirstLine() {
    for (std::size_t at = 0; at < fields_.size(); ++at) {
      columns_.push_back(source_.header ? std::string(fields_[at]) : std::to_string(at));
    }
    uses_.assign(columns_.size(), Use());
    PS_TRY(Take(source_.label, "the label", {Use::Kind::kLabel, 0}));
    for (std::size_t i = 0; i < id_columns_.size(); ++i) {
      PS_TRY(Take(id_columns_[i], "ids", {Use::Kind::kId, i}));
    }
    for (const std::string& column : source_.ignore) {
      PS_TRY(Take(column, "`ignore`", {Use::Kind::kNone, 0}));
    }
    features_ = std::count_if(uses_.begin(), uses_.end(),
                              [](const Use& use) { return use.kind == Use::Kind::kFeature; });
    if (features_ == 0 && id_columns_.empty()) {
      return At("no column is left, a label and at least one feature expected");
    }
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
    const std::size_t first_id = ids_.size();
    ids_.resize(first_id + id_columns_.size());
    for (std::size_t at = 0; at < fields_.size(); ++at) {
      const std::string_view field = fields_[at];
      switch (uses_[at].kind) {
        case Use::Kind::kNone: break;
        case Use::Kind::kId: ids_[first_id + uses_[at].id] = IdOfText(field); break;
        case Use::Kind::kLabel: labels_.push_back(PS_TRY(Label(at, field))); break;
        case Use::Kind::kFeature: {
          const double value = PS_TRY(Number(at, field));
          const float normal = normalisation_.Apply(value);
          if (!std::isfinite(normal)) return NotFinite(at, field);
          values_.push_back(normal);
          break;
        }
      }
    }
    return Ok();
  }

  Error NotFinite(std::size_t at, std::string_view field) const {
    return At("column " + std::to_string(at) + " (`" + columns_[at] + "`): a finite number " +
              "expected, found `" + std::string(field.substr(0, 40)) + "`");
  }

  Result<double> Number(std::size_t at, std::string_view field) const {
    const std::optional<double> value = ParseNumber<double>(field);
    if (!value.has_value() || !std::isfinite(*value)) return NotFinite(at, field);
    return *value;
  }

  Result<double> Label(std::size_t at, std::string_view field) const {
    const auto& positive = source_.label_positive;
    if (positive.empty()) return Number(at, field);
    return std::find(positive.begin(), positive.end(), field) != positive.end() ? 1.0 : 0.0;
  }

  const DataSourceSpec& source_;
  const Normalisation normalisation_;
  const std::vector<std::string>& id_columns_;
  std::size_t line_number_ = 0;
  std::vector<std::string_view> fields_;
  std::vector<std::string> columns_;
  std::vector<Use> uses_;  // by column
  std::int64_t features_ = 0;
  std::vector<float> values_;
  std::vector<double> labels_;
  std::vector<std::uint64_t> ids_;
};

}  // namespace

std::uint64_t IdOfText(std::string_view text) {
  std::uint64_t id = 0;
  const auto [rest, failure] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (failure == std::errc() && rest == text.data() + text.size()) return id;
  return XXH3_64bits(text.data(), text.size());
}

Result<std::unique_ptr<Dataset>> OpenCsv(const DataSourceSpec& source, const DataSpec& data,
                                         const std::vector<std::string>& id_columns) {
  const Normalisation normalisation = PS_TRY(Normalisation::Create(data, 1.0));
  InputFile file = PS_TRY(InputFile::Open(source.file));
  std::string text;
  PS_TRY(file.ReadRest(text));
  return CsvReader(source, normalisation, id_columns).Read(text);
}

}  // namespace ps::worker
