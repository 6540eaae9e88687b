#include "common/codec/key_codec.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "common/check.h"

namespace ps::codec {
namespace {

static_assert(std::endian::native == std::endian::little,
              "keys are copied to the wire as they lie in memory");

constexpr unsigned kWordBits = 64;
// Unpack may look so far behind the gaps of a group.
constexpr std::size_t kReadSlack = sizeof(std::uint64_t);

std::uint64_t Load64(const std::byte* from) {
  std::uint64_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

// The gaps of a whole group, of `bits` bits each.
void Unpack(const std::byte* bytes, unsigned bits, std::uint64_t* gaps) {
  // Of a word that begins with any bit of a byte there are so many bits.
  constexpr unsigned kInWord = kWordBits - 7;
  const std::uint64_t mask = bits == 0 ? 0 : ~std::uint64_t{0} >> (kWordBits - bits);
  if (bits <= kInWord) {
    for (unsigned i = 0; i < kKeyGroup; ++i) {
      const unsigned at = i * bits;
      gaps[i] = Load64(bytes + at / 8) >> at % 8 & mask;
    }
    return;
  }
  for (unsigned i = 0; i < kKeyGroup; ++i) {
    const unsigned at = i * bits;
    const std::uint64_t low = Load64(bytes + at / 8) >> at % 8;
    const auto high = std::to_integer<std::uint64_t>(bytes[at / 8 + sizeof(std::uint64_t)]);
    // Twice, as 64 places at once are not defined.
    gaps[i] = (low | high << 1 << (kWordBits - 1 - at % 8)) & mask;
  }
}

// The other way; the gaps are used up, and words behind theirs are written too.
void Pack(std::uint64_t* gaps, unsigned bits, std::uint64_t* words) {
  // Two that fit a word are one of twice the bits: each step of the loop below waits for the last.
  std::size_t count = kKeyGroup;
  for (; bits <= kWordBits / 2 && count > 1; bits *= 2) {
    count /= 2;
    for (std::size_t i = 0; i < count; ++i) gaps[i] = gaps[2 * i] | gaps[2 * i + 1] << bits;
  }
  std::uint64_t word = 0;
  unsigned used = 0;  // bits of it
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t whole = word | gaps[i] << used;
    *words = whole;
    const bool full = used + bits >= kWordBits;
    word = full ? gaps[i] >> 1 >> (kWordBits - 1 - used) : whole;
    words += full ? 1 : 0;
    used = (used + bits) % kWordBits;
  }
  *words = word;
}

}  // namespace

std::size_t EncodeKeys(std::span<const std::uint64_t> keys, std::byte* out) {
  std::byte* at = out;
  std::uint64_t last = std::numeric_limits<std::uint64_t>::max();
  unsigned wraps = 0;  // of gaps: with the first key alone
  for (std::size_t first = 0; first < keys.size(); first += kKeyGroup) {
    const std::size_t count = std::min(kKeyGroup, keys.size() - first);
    std::uint64_t gaps[kKeyGroup] = {};
    std::uint64_t all = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint64_t key = keys[first + i];
      wraps += key <= last ? 1 : 0;
      gaps[i] = key - last - 1;
      all |= gaps[i];
      last = key;
    }
    const auto bits = static_cast<unsigned>(std::bit_width(all));
    std::uint64_t words[kKeyGroup + 1];
    Pack(gaps, bits, words);
    *at++ = static_cast<std::byte>(bits);
    const std::size_t bytes = (count * bits + 7) / 8;
    std::memcpy(at, words, bytes);
    at += bytes;
  }
  PS_CHECK(wraps == (keys.empty() ? 0 : 1), "keys of rows increase", keys.size());
  return static_cast<std::size_t>(at - out);
}

std::size_t KeyReader::Next(std::uint64_t* keys) {
  const std::size_t count = std::min(kKeyGroup, left_);
  if (count == 0 || bytes_.empty()) return 0;
  const auto bits = std::to_integer<unsigned>(bytes_[0]);
  if (bits > kWordBits) return 0;
  const std::size_t size = (count * bits + 7) / 8;
  if (size >= bytes_.size()) return 0;
  const std::byte* packed = bytes_.data() + 1;
  std::byte copied[kKeyGroup * sizeof(std::uint64_t) + kReadSlack];
  if (count < kKeyGroup || bytes_.size() - 1 - size < kReadSlack) {
    const unsigned last_bits = count * bits % 8;
    if (last_bits != 0 && std::to_integer<unsigned>(packed[size - 1]) >> last_bits != 0) return 0;
    std::memset(copied, 0, sizeof(copied));
    std::memcpy(copied, packed, size);
    packed = copied;
  }
  std::uint64_t gaps[kKeyGroup];
  Unpack(packed, bits, gaps);
  std::uint64_t all = 0;
  std::uint64_t last = last_;
  for (std::size_t i = 0; i < count; ++i) {
    all |= gaps[i];
    const std::uint64_t key = last + gaps[i] + 1;
    wraps_ += key <= last ? 1 : 0;
    keys[i] = key;
    last = key;
  }
  if (wraps_ != 1 || static_cast<unsigned>(std::bit_width(all)) != bits) return 0;
  last_ = last;
  left_ -= count;
  bytes_ = bytes_.subspan(1 + size);
  return count;
}

bool KeysFit(std::size_t count, std::span<const std::byte> bytes) {
  KeyReader reader(count, bytes);
  std::uint64_t keys[kKeyGroup];
  while (reader.Next(keys) > 0) {
  }
  return reader.left() == 0 && reader.bytes_left() == 0;
}

}  // namespace ps::codec
