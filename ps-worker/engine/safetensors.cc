#include "ps-worker/engine/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>
#include <utility>

#include "common/error_id.h"
#include "common/job/document.h"

namespace ps::worker {
namespace {

using job::Node;

constexpr std::size_t kPieceBytes = std::size_t{1} << 20;
constexpr std::size_t kDimensionsMax = 32;

Error Bad(const std::string& what) { return Error{ErrorId::kInitialValues, what}; }

// Bytes of an element; 0: not a type of the format.
std::uint64_t BytesOf(const std::string& type) {
  static const std::map<std::string, std::uint64_t> kTypes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"I64", 8}, {"U64", 8},     {"F64", 8}};
  const auto found = kTypes.find(type);
  return found == kTypes.end() ? 0 : found->second;
}

bool ParseSize(const Node& node, std::uint64_t& value) {
  if (node.kind != Node::Kind::kScalar || node.quoted) return false;
  const char* const end = node.text.data() + node.text.size();
  const auto [rest, failure] = std::from_chars(node.text.data(), end, value);
  return failure == std::errc() && rest == end && value <= INT64_MAX;
}

Result<SafetensorsEntry> ParseEntry(const std::string& name, const Node& node) {
  const auto bad = [&name](const std::string& what) {
    return Bad("tensor `" + name + "`: " + what);
  };
  if (node.kind != Node::Kind::kMap || node.keys.size() != 3) {
    return bad("must have dtype, shape and data_offsets");
  }
  const Node* const type = node.Find("dtype");
  const Node* const shape = node.Find("shape");
  const Node* const offsets = node.Find("data_offsets");
  if (type == nullptr || shape == nullptr || offsets == nullptr) {
    return bad("must have dtype, shape and data_offsets");
  }
  SafetensorsEntry entry;
  entry.name = name;
  entry.type = type->text;
  const std::uint64_t bytes = BytesOf(entry.type);
  if (type->kind != Node::Kind::kScalar || !type->quoted || bytes == 0) {
    return bad("has an unknown dtype");
  }
  if (shape->kind != Node::Kind::kList || shape->items.size() > kDimensionsMax) {
    return bad("its shape must be a list of at most " + std::to_string(kDimensionsMax) + " sizes");
  }
  entry.elements = 1;
  for (const Node& item : shape->items) {
    std::uint64_t size = 0;
    if (!ParseSize(item, size)) return bad("has a size that is no whole number");
    if (size != 0 && entry.elements > INT64_MAX / 8 / size) return bad("is too large");
    entry.elements *= size;
    entry.shape.push_back(static_cast<std::int64_t>(size));
  }
  if (offsets->kind != Node::Kind::kList || offsets->items.size() != 2 ||
      !ParseSize(offsets->items[0], entry.begin) || !ParseSize(offsets->items[1], entry.end)) {
    return bad("its data_offsets must be two whole numbers");
  }
  if (entry.end < entry.begin || entry.end - entry.begin != entry.elements * bytes) {
    return bad("its data_offsets do not fit its dtype and shape");
  }
  return entry;
}

float FromHalf(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t{half} >> 15 << 31;
  const std::uint32_t exponent = half >> 10 & 31;
  const std::uint32_t fraction = half & 1023;
  if (exponent == 0) {
    const float value = std::ldexp(static_cast<float>(fraction), -24);
    return sign != 0 ? -value : value;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | fraction << 13);
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

template <typename Word>
Word WordAt(const char* from, std::size_t index) {
  Word word;
  std::memcpy(&word, from + index * sizeof(word), sizeof(word));
  return word;
}

// False if fp32 cannot hold it, or it is no number.
bool Convert(const std::string& type, const char* from, std::size_t index, float& value) {
  if (type == "I64") {
    const auto whole = WordAt<std::int64_t>(from, index);
    value = static_cast<float>(whole);
    return std::abs(value) < 0x1p62f && static_cast<std::int64_t>(value) == whole;
  }
  if (type == "F16") {
    value = FromHalf(WordAt<std::uint16_t>(from, index));
  } else if (type == "BF16") {
    value = std::bit_cast<float>(std::uint32_t{WordAt<std::uint16_t>(from, index)} << 16);
  } else {
    value = WordAt<float>(from, index);
  }
  return std::isfinite(value);
}

}  // namespace

bool SafetensorsEntry::loadable() const {
  return type == "F32" || type == "F16" || type == "BF16" || type == "I64";
}

Result<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(std::string_view text,
                                                             std::uint64_t data_bytes) {
  if (text.empty() || text.front() != '{') return Bad("its header is no JSON object");
  auto parsed = job::ParseJsonDocument(std::string(text), "its header");
  if (!parsed.ok()) return Bad(parsed.error().message);
  if (parsed->kind != Node::Kind::kMap) return Bad("its header is no JSON object");
  std::vector<SafetensorsEntry> entries;
  for (std::size_t i = 0; i < parsed->keys.size(); ++i) {
    if (parsed->keys[i] == "__metadata__") {
      if (parsed->items[i].kind != Node::Kind::kMap) return Bad("its __metadata__ are no texts");
      continue;
    }
    entries.push_back(PS_TRY(ParseEntry(parsed->keys[i], parsed->items[i])));
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const SafetensorsEntry& left, const SafetensorsEntry& right) {
                     return std::pair(left.begin, left.end) < std::pair(right.begin, right.end);
                   });
  std::uint64_t at = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.begin != at) {
      return Bad("tensor `" + entry.name + "` begins at byte " + std::to_string(entry.begin) +
                 " of the data, where byte " + std::to_string(at) + " is due");
    }
    at = entry.end;
  }
  if (at != data_bytes) {
    return Bad("its tensors have " + std::to_string(at) + " bytes, the file has " +
               std::to_string(data_bytes));
  }
  return entries;
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : path_(other.path_),
      fd_(std::exchange(other.fd_, -1)),
      data_(other.data_),
      entries_(std::move(other.entries_)) {}

SafetensorsFile::~SafetensorsFile() {
  if (fd_ >= 0) ::close(fd_);
}

Status SafetensorsFile::ReadAt(std::uint64_t at, std::span<char> to) const {
  while (!to.empty()) {
    const ssize_t count = ::pread(fd_, to.data(), to.size(), static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Bad(path_ + ": cannot be read: " + std::strerror(errno));
    if (count == 0) return Bad(path_ + ": has become shorter");
    at += static_cast<std::uint64_t>(count);
    to = to.subspan(static_cast<std::size_t>(count));
  }
  return Ok();
}

Result<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  SafetensorsFile file(path);
  file.fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file.fd_ < 0) return Bad(path + ": cannot be opened: " + std::strerror(errno));
  struct stat status {};
  if (::fstat(file.fd_, &status) != 0 || !S_ISREG(status.st_mode)) {
    return Bad(path + ": is no regular file");
  }
  const auto size = static_cast<std::uint64_t>(status.st_size);
  std::uint64_t header = 0;
  if (size < sizeof(header)) return Bad(path + ": is no safetensors file: it is too short");
  PS_TRY(file.ReadAt(0, {reinterpret_cast<char*>(&header), sizeof(header)}));
  if (header > job::kDocumentBytesMax || header > size - sizeof(header)) {
    return Bad(
        path + ": its header would have " + std::to_string(header) +
        " bytes; it may have at most " +
        std::to_string(std::min<std::uint64_t>(job::kDocumentBytesMax, size - sizeof(header))));
  }
  std::string text(static_cast<std::size_t>(header), '\0');
  PS_TRY(file.ReadAt(sizeof(header), text));
  file.data_ = sizeof(header) + header;
  auto entries = ParseSafetensorsHeader(text, size - file.data_);
  if (!entries.ok()) return Annotate(entries.error(), path + ": ");
  file.entries_ = std::move(entries).value();
  return file;
}

Status SafetensorsFile::Read(
    const SafetensorsEntry& entry,
    const std::function<void(std::uint64_t first, std::span<const float>)>& take) const {
  const std::uint64_t bytes = BytesOf(entry.type);
  const std::uint64_t piece = kPieceBytes / bytes;
  std::vector<char> raw;
  std::vector<float> values;
  for (std::uint64_t first = 0; first < entry.elements; first += piece) {
    const auto count = static_cast<std::size_t>(std::min(piece, entry.elements - first));
    raw.resize(count * bytes);
    values.resize(count);
    PS_TRY(ReadAt(data_ + entry.begin + first * bytes, raw));
    for (std::size_t i = 0; i < count; ++i) {
      if (!Convert(entry.type, raw.data(), i, values[i])) {
        return Bad(path_ + ": tensor `" + entry.name + "`: element " + std::to_string(first + i) +
                   (entry.counter() ? " is no number that fp32 holds" : " is no number"));
      }
    }
    take(first, values);
  }
  return Ok();
}

}  // namespace ps::worker
