#include "cli/output.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <set>

#include "common/error_catalogue.h"

namespace ps::cli {
namespace {

// Code points, so that columns stay straight with UTF-8.
std::size_t Width(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

std::string Dump(const Json& json, int indent = -1) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

std::string YamlScalar(const Json& json) {
  if (!json.is_string()) return Dump(json);
  const auto& text = json.get_ref<const std::string&>();
  static const std::set<std::string> kWords = {"true", "false", "null", "yes", "no",
                                               "on",   "off",   "y",    "n"};
  std::string lower = text;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const bool plain =
      !text.empty() && (std::isalpha(static_cast<unsigned char>(text[0])) != 0 || text[0] == '/') &&
      kWords.count(lower) == 0 && std::all_of(text.begin(), text.end(), [](unsigned char c) {
        return std::isalnum(c) != 0 || c == '_' || c == '-' || c == '/' || c == '.' || c == '@';
      });
  return plain ? text : Dump(json);
}

bool IsFlat(const Json& json) {
  return std::none_of(json.begin(), json.end(),
                      [](const Json& item) { return item.is_structured(); });
}

void WriteYaml(const Json& json, int indent, bool after_dash, std::string& out) {
  const std::string pad(static_cast<std::size_t>(indent), ' ');
  if (json.is_object() && !json.empty()) {
    bool first = after_dash;
    for (const auto& item : json.items()) {
      if (!first) out += pad;
      first = false;
      out += YamlScalar(Json(item.key())) + ":";
      const Json& value = item.value();
      if (value.is_object() && !value.empty()) {
        out += "\n";
        WriteYaml(value, indent + 2, false, out);
      } else if (value.is_array() && !value.empty() && !IsFlat(value)) {
        out += "\n";
        WriteYaml(value, indent, false, out);
      } else {
        out += " ";
        WriteYaml(value, indent, true, out);
      }
    }
    return;
  }
  if (json.is_array() && !json.empty() && !IsFlat(json)) {
    bool first = after_dash;
    for (const Json& item : json) {
      if (!first) out += pad;
      first = false;
      out += "- ";
      WriteYaml(item, indent + 2, true, out);
    }
    return;
  }
  if (json.is_array()) {
    out += "[";
    for (std::size_t i = 0; i < json.size(); ++i) out += (i == 0 ? "" : ", ") + YamlScalar(json[i]);
    out += "]\n";
    return;
  }
  out += (json.is_object() ? "{}" : YamlScalar(json)) + "\n";
}

std::string Formatted(const char* format, double value) {
  char text[64];
  (void)std::snprintf(text, sizeof text, format, value);
  return text;
}

}  // namespace

Result<OutputFormat> ParseOutputFormat(const std::string& word) {
  if (word.empty() || word == "table") return OutputFormat::kTable;
  if (word == "wide") return OutputFormat::kWide;
  if (word == "json") return OutputFormat::kJson;
  if (word == "yaml") return OutputFormat::kYaml;
  if (word == "name") return OutputFormat::kName;
  return Error{ErrorId::kOptionValue,
               "-o " + word + ": the formats are table, wide, json, yaml and name"};
}

void Table::Add(std::vector<std::string> row) {
  row.resize(header_.size());
  for (auto& cell : row) {
    cell = Printable(cell);
    if (cell.empty()) cell = "-";
  }
  rows_.push_back(std::move(row));
}

std::string Table::ToString() const {
  std::vector<std::size_t> widths(header_.size());
  for (std::size_t i = 0; i < header_.size(); ++i) {
    widths[i] = Width(header_[i]);
    for (const auto& row : rows_) widths[i] = std::max(widths[i], Width(row[i]));
  }
  std::string text;
  const auto add = [&](const std::vector<std::string>& row) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      text += row[i];
      if (i + 1 < row.size()) text.append(widths[i] - Width(row[i]) + 2, ' ');
    }
    text += '\n';
  };
  add(header_);
  for (const auto& row : rows_) add(row);
  return text;
}

std::string FieldsText(const std::vector<std::pair<std::string, std::string>>& fields, int indent) {
  std::size_t width = 0;
  for (const auto& field : fields) width = std::max(width, Width(field.first));
  std::string text;
  for (const auto& field : fields) {
    text.append(static_cast<std::size_t>(indent), ' ');
    text += field.first;
    text.append(width - Width(field.first) + 2, ' ');
    const std::string value = Printable(field.second);
    text += (value.empty() ? "-" : value) + "\n";
  }
  return text;
}

std::string JsonText(const Json& json) { return Dump(json, 2) + "\n"; }

std::string YamlText(const Json& json) {
  std::string text;
  WriteYaml(json, 0, false, text);
  return text;
}

bool WriteStructured(std::ostream& out, OutputFormat format, const Json& json) {
  if (format == OutputFormat::kJson) {
    out << JsonText(json);
    return true;
  }
  if (format == OutputFormat::kYaml) {
    out << YamlText(json);
    return true;
  }
  return false;
}

void WriteError(std::ostream& err, OutputFormat format, const Error& error) {
  const ErrorEntry* const entry = FindError(error.id);
  const bool tells = entry != nullptr && !IsGeneric(error.id);
  const std::string id = ErrorIdName(error.id);
  if (format == OutputFormat::kJson || format == OutputFormat::kYaml) {
    Json json{{"code", id}, {"kind", ErrorCodeName(error.code)}, {"message", error.message}};
    if (tells) json["next"] = entry->next;
    json = Json{{"apiVersion", "ds/v1"}, {"error", std::move(json)}};
    if (format == OutputFormat::kYaml) {
      err << YamlText(json);
    } else {
      err << json.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
    }
    return;
  }
  err << "ds-cli: error " << id << ": ";
  // Lines stand for themselves, as those of a compiler do.
  if (tells && error.message.find('\n') != std::string::npos) err << entry->title << ":\n";
  err << error.message << "\n";
  if (tells) err << "  next: " << entry->next << "\n";
}

std::string Printable(const std::string& text) {
  std::string clean = text;
  for (std::size_t i = 0; i < clean.size(); ++i) {
    const auto c = static_cast<unsigned char>(clean[i]);
    if (c < 0x20 || c == 0x7f) clean[i] = '?';
    // U+0080 to U+009F are control characters too: 0xc2 0x80 to 0xc2 0x9f.
    if (c == 0xc2 && i + 1 < clean.size() && static_cast<unsigned char>(clean[i + 1]) < 0xa0) {
      clean[i] = '?';
      clean[i + 1] = '?';
    }
  }
  return clean;
}

const Json& MemberOf(const Json& json, const char* key) {
  static const Json kNull;
  if (!json.is_object()) return kNull;
  const auto found = json.find(key);
  return found == json.end() ? kNull : *found;
}

std::string TextOf(const Json& json, const char* key, const std::string& fallback) {
  const Json& member = MemberOf(json, key);
  if (member.is_string()) return member.get<std::string>();
  if (member.is_null()) return fallback;
  return Dump(member);
}

std::optional<double> NumberOf(const Json& json, const char* key) {
  const Json& member = MemberOf(json, key);
  if (!member.is_number()) return std::nullopt;
  const double value = member.get<double>();
  if (!std::isfinite(value)) return std::nullopt;
  return value;
}

std::int64_t IntegerOf(const Json& json, const char* key, std::int64_t fallback) {
  const Json& member = MemberOf(json, key);
  if (member.is_number_integer()) return member.get<std::int64_t>();
  const auto number = NumberOf(json, key);
  if (!number || std::abs(*number) > 9e15) return fallback;
  return static_cast<std::int64_t>(*number);
}

bool FlagOf(const Json& json, const char* key) {
  const Json& member = MemberOf(json, key);
  return member.is_boolean() && member.get<bool>();
}

std::string CountText(std::int64_t value) {
  std::string digits = std::to_string(value);
  const std::size_t first = value < 0 ? 1 : 0;
  for (std::size_t i = digits.size(); i > first + 3;) {
    i -= 3;
    digits.insert(i, ",");
  }
  return digits;
}

std::string CountText(const std::optional<double>& value) {
  if (!value || std::abs(*value) > 9e15) return "-";
  return CountText(static_cast<std::int64_t>(std::llround(*value)));
}

std::string DecimalText(const std::optional<double>& value) {
  return value ? Formatted("%.4g", *value) : "-";
}

std::string BytesText(const std::optional<double>& bytes) {
  if (!bytes) return "-";
  double value = *bytes;
  const char* unit = "B";
  for (const char* larger : {"kB", "MB", "GB", "TB", "PB"}) {
    if (std::abs(value) < 999.5) break;
    value /= 1000;
    unit = larger;
  }
  const bool whole = unit[0] == 'B' && value == std::floor(value);
  return Formatted(whole || std::abs(value) >= 99.95 ? "%.0f"
                   : std::abs(value) >= 9.995        ? "%.1f"
                                                     : "%.2f",
                   value) +
         " " + unit;
}

std::string DurationText(const std::optional<double>& seconds) {
  if (!seconds || *seconds < 0 || *seconds > 1e10) return "-";
  const auto whole = static_cast<std::int64_t>(std::llround(*seconds));
  char text[64];
  if (whole < 60) {
    (void)std::snprintf(text, sizeof text, "%llds", static_cast<long long>(whole));
  } else if (whole < 3600) {
    (void)std::snprintf(text, sizeof text, "%lldm %02llds", static_cast<long long>(whole / 60),
                        static_cast<long long>(whole % 60));
  } else {
    (void)std::snprintf(text, sizeof text, "%lldh %02lldm", static_cast<long long>(whole / 3600),
                        static_cast<long long>(whole / 60 % 60));
  }
  return text;
}

std::string TimeText(std::uint64_t unix_ms) {
  if (unix_ms == 0) return "";
  const auto seconds = static_cast<std::time_t>(unix_ms / 1000);
  std::tm parts{};
  char text[32];
  if (gmtime_r(&seconds, &parts) == nullptr ||
      std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts) == 0) {
    return "";
  }
  return text;
}

Result<std::int64_t> ParseDuration(const std::string& text) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [rest, failure] = std::from_chars(text.data(), end, value);
  const std::string unit(rest, end);
  double factor = 0;
  if (unit.empty() || unit == "s") factor = 1000;
  if (unit == "ms") factor = 1;
  if (unit == "m") factor = 60'000;
  if (unit == "h") factor = 3'600'000;
  if (failure != std::errc() || factor == 0 || !(value >= 0) || value * factor > 1e14) {
    return Error{ErrorId::kOptionValue,
                 "`" + text + "` is not a duration such as 90s, 10m or 2h (a number is seconds)"};
  }
  return static_cast<std::int64_t>(value * factor);
}

}  // namespace ps::cli
