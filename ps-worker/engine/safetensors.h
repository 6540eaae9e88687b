// Reads tensors of a .safetensors file.
//
//   8 bytes   length N of the header, little endian
//   N bytes   JSON: {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...},
//   where
//             "__metadata__" has texts; may end with spaces
//   rest      the tensors' elements, row-major, little endian, without gaps
//
// Format: https://github.com/huggingface/safetensors#format. The file is
// hostile: nothing is read before all of the header is verified (names once,
// offsets that fit types and shapes, and cover the rest of the file without
// overlap). F32, F16 and BF16 become fp32, exactly; I64 also, if fp32 holds the
// number. Other types may be there, and are refused when they are asked for. All
// errors name the file and are kInvalid. One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace ps::worker {

struct SafetensorsEntry {
  std::string name;
  std::string type;  // "F32"
  std::vector<std::int64_t> shape;
  std::uint64_t elements = 0;
  std::uint64_t begin = 0;  // in the data behind the header
  std::uint64_t end = 0;

  bool loadable() const;
  bool counter() const { return type == "I64"; }
};

// The header's text, and how many bytes are behind it. In the order of their places. Pure.
Result<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(std::string_view text,
                                                             std::uint64_t data_bytes);

class SafetensorsFile {
 public:
  static Result<SafetensorsFile> Open(const std::string& path);

  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) = delete;
  ~SafetensorsFile();

  const std::vector<SafetensorsEntry>& entries() const { return entries_; }

  // The values of a loadable entry, in order and in pieces. Those that are no numbers are an error.
  Status Read(const SafetensorsEntry& entry,
              const std::function<void(std::uint64_t first, std::span<const float>)>& take) const;

 private:
  explicit SafetensorsFile(std::string path) : path_(std::move(path)) {}

  Status ReadAt(std::uint64_t at, std::span<char> to) const;

  const std::string path_;
  int fd_ = -1;
  std::uint64_t data_ = 0;  // where the data begins
  std::vector<SafetensorsEntry> entries_;
};

}  // namespace ps::worker
