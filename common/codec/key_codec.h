// The keys of rows: increasing, as the gaps between them (KeysDelta).
//
// The format is in docs/wire-format.md: groups of 16 gaps, each in as many bits as the greatest of
// its group needs. Some keys have one stream only. Pure functions, any thread; bytes may start at
// any address. The reader is safe on hostile bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

namespace ps::codec {

inline constexpr std::size_t kKeyGroup = 16;

// Largest number of bytes that EncodeKeys can write.
constexpr std::size_t MaxKeyBytes(std::size_t count) {
  return (count + kKeyGroup - 1) / kKeyGroup + count * sizeof(std::uint64_t);
}

// Writes keys, which increase strictly, at `out`, which holds MaxKeyBytes(), and returns the bytes
// written.
std::size_t EncodeKeys(std::span<const std::uint64_t> keys, std::byte* out);

// False unless `bytes` are, exactly, what EncodeKeys writes for some `count` keys.
bool KeysFit(std::size_t count, std::span<const std::byte> bytes);

// Reads keys group by group from bytes that it borrows.
class KeyReader {
 public:
  KeyReader(std::size_t count, std::span<const std::byte> bytes) : left_(count), bytes_(bytes) {}

  // Writes the next keys, and returns how many: kKeyGroup, at the end less, then 0; 0 as well where
  // the bytes are not a stream.
  std::size_t Next(std::uint64_t* keys);

  // Keys not read yet, and bytes.
  std::size_t left() const { return left_; }
  std::size_t bytes_left() const { return bytes_.size(); }

 private:
  std::size_t left_;
  std::span<const std::byte> bytes_;
  // The key before. That before the first one is -1, so that its gap is the key itself.
  std::uint64_t last_ = std::numeric_limits<std::uint64_t>::max();
  unsigned wraps_ = 0;  // past 2^64: once, with the first key
};

}  // namespace ps::codec
