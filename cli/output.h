// How results are written: tables for people, JSON, YAML and names for programs.
//
// Text that came from a server is shown without control characters, so that it
// cannot drive the terminal. Pure functions.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "common/result.h"

namespace ps::cli {

using Json = nlohmann::ordered_json;

enum class OutputFormat { kTable, kWide, kJson, kYaml, kName };
// kUsage with the list for anything else.
Result<OutputFormat> ParseOutputFormat(const std::string& word);

class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
  void Add(std::vector<std::string> row);
  // Columns two spaces apart, none trailing. Nothing but the header if there are no rows.
  std::string ToString() const;

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

// Aligned "key  value" lines.
std::string FieldsText(const std::vector<std::pair<std::string, std::string>>& fields,
                       int indent = 0);

std::string JsonText(const Json& json);
std::string YamlText(const Json& json);
// JSON or YAML if that is the format; else nothing was written and false is returned.
bool WriteStructured(std::ostream& out, OutputFormat format, const Json& json);

// "ds-cli: error DS-E0801: there is no job x" and, for an error with an id of its own, a line with
// what to do next. As JSON one line with an object, as YAML a document: {"error": {"code", ...}}.
void WriteError(std::ostream& err, OutputFormat format, const Error& error);

// Control characters become `?`.
std::string Printable(const std::string& text);

// Members of an answer that may be missing or of another type.
std::string TextOf(const Json& json, const char* key, const std::string& fallback = "");
std::optional<double> NumberOf(const Json& json, const char* key);
std::int64_t IntegerOf(const Json& json, const char* key, std::int64_t fallback = 0);
bool FlagOf(const Json& json, const char* key);
const Json& MemberOf(const Json& json, const char* key);  // null if it is missing

// "1,234,567"
std::string CountText(std::int64_t value);
std::string CountText(const std::optional<double>& value);  // "-" if there is none
// Four significant digits: "0.8877", "123.4".
std::string DecimalText(const std::optional<double>& value);
// "83.1 kB", "7.45 MB"
std::string BytesText(const std::optional<double>& bytes);
// "45s", "1m 20s", "3h 05m"
std::string DurationText(const std::optional<double>& seconds);

// "2026-11-22T21:50:00Z"; empty for 0.
std::string TimeText(std::uint64_t unix_ms);

// "90", "90s", "10m", "2h" or "500ms" in milliseconds. kUsage otherwise.
Result<std::int64_t> ParseDuration(const std::string& text);

}  // namespace ps::cli
