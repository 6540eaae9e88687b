#include "common/net/list_file.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <sstream>

#include "common/error_id.h"

namespace ps::net {
namespace {

constexpr std::size_t kFileBytesMax = std::size_t{4} << 20;
constexpr std::size_t kNameCharsMax = 128;

}  // namespace

std::vector<std::pair<int, std::string>> LinesOf(std::string_view text) {
  std::vector<std::pair<int, std::string>> lines;
  std::istringstream stream{std::string(text)};
  std::string line;
  for (int number = 1; std::getline(stream, line); ++number) {
    while (!line.empty() && (line.back() == ' ' || line.back() == '\t' || line.back() == '\r')) {
      line.pop_back();
    }
    if (!line.empty() && line[0] != '#') lines.emplace_back(number, line);
  }
  return lines;
}

Result<std::string> ReadListFile(const std::string& path) {
  const auto failed = [&path] {
    return Error{ErrorId::kSecretUnreadable, path + ": cannot be read: " + std::strerror(errno)};
  };
  std::ifstream file(path, std::ios::binary);
  if (!file) return failed();
  std::string text;
  std::array<char, 4096> piece{};
  while (file.read(piece.data(), piece.size()), file.gcount() > 0) {
    text.append(piece.data(), static_cast<std::size_t>(file.gcount()));
    if (text.size() > kFileBytesMax) {
      return Error{ErrorCode::kInvalid, path + ": is too large to be such a file"};
    }
  }
  if (file.bad()) return failed();
  return text;
}

bool IsListName(std::string_view name) {
  return !name.empty() && name.size() <= kNameCharsMax &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  (c != '\0' && std::strchr("-_.@:", c) != nullptr);
         });
}

std::optional<std::int64_t> DateMs(const std::string& text) {
  std::tm date{};
  const char* const end = ::strptime(text.c_str(), "%Y-%m-%d", &date);
  if (end == nullptr || *end != '\0' || text.size() != 10) return std::nullopt;
  const std::tm asked = date;
  const std::time_t time = ::timegm(&date);
  // timegm makes the 30th of February a day of March.
  if (time < 0 || date.tm_mday != asked.tm_mday) return std::nullopt;
  return static_cast<std::int64_t>(time) * 1000;
}

Result<std::optional<std::int64_t>> ReadUntil(std::istream& words) {
  const auto wrong = [](const char* what) { return Error{ErrorCode::kInvalid, what}; };
  std::string word;
  if (!(words >> word)) return std::optional<std::int64_t>();
  if (word != "until" || !(words >> word)) return wrong("the line may end with `until DATE` only");
  const auto until = DateMs(word);
  if (!until) return wrong("what follows `until` is no date as in 2027-01-31");
  if (words >> word) return wrong("there is one word too many after the date");
  return until;
}

std::string DateText(std::int64_t unix_ms) {
  const auto time = static_cast<std::time_t>(unix_ms / 1000);
  std::tm date{};
  ::gmtime_r(&time, &date);
  std::array<char, 16> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%d", &date);
  return text.data();
}

}  // namespace ps::net
