#include "common/codec/index_codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>

#include "common/check.h"

namespace ps::codec {
namespace {

static_assert(std::endian::native == std::endian::little,
              "values and indices are copied to the wire as they lie in memory");

constexpr std::uint32_t kSkip = 255;  // Gap8: passes so many positions
constexpr std::uint32_t kRiceBitsMax = 15;

std::uint16_t Load16(const std::byte* from) {
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return bits;
}

std::size_t BytesOfBits(std::size_t bits) { return (bits + 7) / 8; }

// Calls visit(gap) for each position: how many positions lie between it and the one before.
template <typename Visit>
void ForEachGap(std::span<const std::uint16_t> indices, Visit visit) {
  if (indices.empty()) return;
  visit(std::uint32_t{indices[0]});
  for (std::size_t i = 1; i < indices.size(); ++i) {
    visit(std::uint32_t{indices[i]} - indices[i - 1] - 1);
  }
}

// ---- Rice: u8 bits, planes of the remainders, quotients in unary

// The length of remainders that is best for entries at random places: the power of two next to
// ln 2 times the mean distance.
std::uint32_t RiceBitsOf(std::uint32_t elements, std::uint32_t count) {
  std::uint32_t bits = 0;
  // ln 2 * elements / count > 2^(bits + 1/2)
  const double distance = 0.6931471805599453 * elements / count;
  for (double limit = 1.4142135623730951; distance > limit && bits < kRiceBitsMax; limit *= 2) {
    ++bits;
  }
  return bits;
}

std::size_t RiceBytes(std::size_t count, std::uint32_t bits, std::uint64_t quotients) {
  return 1 + bits * BytesOfBits(count) + BytesOfBits(count + quotients);
}

// Sums over all gaps; the first three are at most the elements of a block.
struct GapSums {
  std::uint32_t quotients[3] = {};  // for remainders of one bit less, of `bits`, of one more
  std::uint32_t long_gaps = 0;      // those that Gap8 cannot write as one byte
};

// All in one pass, which costs hardly more than one of them.
GapSums SumGaps(std::span<const std::uint16_t> indices, std::uint32_t bits) {
  const std::uint32_t fewer = bits > 0 ? bits - 1 : 0;
  GapSums sums;
  ForEachGap(indices, [&](std::uint32_t gap) {
    sums.quotients[0] += gap >> fewer;
    sums.quotients[1] += gap >> bits;
    sums.quotients[2] += gap >> (bits + 1);
    sums.long_gaps += gap >= kSkip ? 1 : 0;
  });
  return sums;
}

struct RicePlan {
  std::uint32_t bits = 0;
  std::size_t bytes = 0;
  std::uint32_t long_gaps = 0;
};

// The closed form, and from there downhill: entries that lie in heaps have another optimum.
RicePlan PlanRice(std::uint32_t elements, std::span<const std::uint16_t> indices) {
  const std::size_t count = indices.size();
  std::uint32_t bits = RiceBitsOf(elements, static_cast<std::uint32_t>(count));
  GapSums sums = SumGaps(indices, bits);
  const auto bytes_of = [&](int step) {
    return RiceBytes(count, bits + static_cast<std::uint32_t>(step),
                     sums.quotients[static_cast<std::size_t>(step + 1)]);
  };
  const int step = bits > 0 && bytes_of(-1) < bytes_of(0)             ? -1
                   : bits < kRiceBitsMax && bytes_of(1) < bytes_of(0) ? 1
                                                                      : 0;
  std::size_t bytes = bytes_of(0);
  while (step != 0 && (step < 0 ? bits > 0 : bits < kRiceBitsMax) && bytes_of(step) < bytes) {
    bytes = bytes_of(step);
    bits += static_cast<std::uint32_t>(step);
    sums = SumGaps(indices, bits);
  }
  return {bits, bytes, sums.long_gaps};
}

// Bit `bit` of each byte of `bytes`, as one byte.
std::byte Gather(std::uint64_t bytes, std::uint32_t bit) {
  return static_cast<std::byte>((bytes >> bit & 0x0101010101010101u) * 0x0102040810204080u >> 56);
}

std::byte* WriteRice(std::uint32_t elements, std::span<const std::uint16_t> indices,
                     std::byte* out) {
  const std::size_t count = indices.size();
  if (count == 0) return out;
  const RicePlan plan = PlanRice(elements, indices);
  const std::uint32_t bits = plan.bits;
  const std::size_t plane_bytes = BytesOfBits(count);
  *out = static_cast<std::byte>(bits);
  std::byte* const planes = out + 1;
  std::byte* const unary = planes + bits * plane_bytes;
  const std::size_t unary_bytes = plan.bytes - 1 - bits * plane_bytes;
  std::memset(unary, 0, unary_bytes);

  const std::uint32_t mask = (1u << bits) - 1;
  std::uint32_t next = 0;     // the first position that no entry has passed
  std::uint64_t place = 0;    // in the unary stream
  std::uint64_t word = 0;     // of the unary stream
  std::uint64_t word_at = 0;  // its number
  const std::uint64_t whole_words = unary_bytes / 8;
  for (std::size_t first = 0; first < count; first += 8) {
    std::uint64_t low = 0;
    std::uint64_t high = 0;
    const std::size_t end = std::min(first + 8, count);
    for (std::size_t i = first; i < end; ++i) {
      const std::uint32_t gap = indices[i] - next;
      next = std::uint32_t{indices[i]} + 1;
      const std::uint64_t remainder = gap & mask;
      low |= (remainder & 255) << (8 * (i - first));
      high |= (remainder >> 8) << (8 * (i - first));
      place += gap >> bits;
      const std::uint64_t at = place >> 6;
      word = (at == word_at ? word : 0) | std::uint64_t{1} << (place & 63);
      word_at = at;
      // Stored again with each one: cheaper than to know when it is full.
      if (at < whole_words) std::memcpy(unary + at * 8, &word, sizeof(word));
      ++place;
    }
    std::byte* plane = planes + first / 8;
    for (std::uint32_t bit = 0; bit < bits; ++bit, plane += plane_bytes) {
      *plane = bit < 8 ? Gather(low, bit) : Gather(high, bit - 8);
    }
  }
  if (word_at >= whole_words) {
    std::memcpy(unary + whole_words * 8, &word, unary_bytes - whole_words * 8);
  }
  return out + plan.bytes;
}

// ---- Gap8

std::byte* WriteGap8(std::span<const std::uint16_t> indices, std::byte* out) {
  ForEachGap(indices, [&out](std::uint32_t gap) {
    for (; gap >= kSkip; gap -= kSkip) *out++ = std::byte{kSkip};
    *out++ = static_cast<std::byte>(gap);
  });
  return out;
}

// ---- Bitmap

std::byte* WriteBitmap(std::uint32_t elements, std::span<const std::uint16_t> indices,
                       std::byte* out) {
  const std::size_t bytes = BytesOfBits(elements);
  std::memset(out, 0, bytes);
  for (const std::uint16_t index : indices) out[index / 8] |= std::byte{1} << index % 8;
  return out + bytes;
}

// ---- checks

Error Bad(const wire::BlockHeader& header, const std::string& what) {
  return Error{ErrorCode::kInvalid, "block " + std::to_string(header.block()) + ": " + what};
}

Error BadEntries(const wire::BlockHeader& header, std::uint64_t found) {
  return Bad(header, "its index stream has " + std::to_string(found) + " entries, " +
                         std::to_string(header.count()) + " announced");
}

Error BadLength(const wire::BlockHeader& header, std::size_t found, std::size_t expected) {
  return Bad(header, "an index stream of " + std::to_string(found) + " bytes, " +
                         std::to_string(expected) + " expected");
}

Error Beyond(const wire::BlockHeader& header, std::uint64_t index, std::uint32_t elements) {
  return Bad(header, "index " + std::to_string(index) + " in a block of " +
                         std::to_string(elements) + " elements");
}

Error BadPadding(const wire::BlockHeader& header) {
  return Bad(header, "bits behind the last one of its index stream are not zero");
}

// True if the bits of `byte` from `used` on are zero; `used` is 0 for a whole byte.
bool RestIsZero(std::byte byte, std::size_t used) {
  return used == 0 || std::to_integer<unsigned>(byte) >> used == 0;
}

Status CheckGap8(const wire::BlockHeader& header, std::uint32_t elements,
                 std::span<const std::byte> stream) {
  if (stream.back() == std::byte{kSkip}) return Bad(header, "its index stream ends in a skip");
  // A byte b < 255 moves past b + 1 positions, 255 past 255: the sum is the last index + 1. The
  // sum of a stream that passes the length checks of ParseSegment cannot exceed 64 bits.
  std::uint64_t passed = 0;
  std::uint64_t skips = 0;
  for (const std::byte byte : stream) {
    passed += std::to_integer<std::uint8_t>(byte);
    skips += byte == std::byte{kSkip} ? 1 : 0;
  }
  const std::uint64_t entries = stream.size() - skips;
  if (entries != header.count()) return BadEntries(header, entries);
  if (passed + entries > elements) return Beyond(header, passed + entries - 1, elements);
  return Ok();
}

Status CheckRaw16(const wire::BlockHeader& header, std::uint32_t elements,
                  std::span<const std::byte> stream) {
  const std::size_t expected = std::size_t{header.count()} * 2;
  if (stream.size() != expected) return BadLength(header, stream.size(), expected);
  std::int32_t previous = -1;
  for (std::size_t at = 0; at < stream.size(); at += 2) {
    const std::int32_t index = Load16(stream.data() + at);
    if (index <= previous) {
      return Bad(header, "index " + std::to_string(index) + " after " + std::to_string(previous));
    }
    previous = index;
  }
  if (previous >= static_cast<std::int64_t>(elements)) {
    return Beyond(header, static_cast<std::uint64_t>(previous), elements);
  }
  return Ok();
}

Status CheckRice(const wire::BlockHeader& header, std::uint32_t elements,
                 std::span<const std::byte> stream) {
  const kernels::Table& kernels = kernels::Fastest();
  const auto bits = std::to_integer<std::uint32_t>(stream[0]);
  if (bits > kRiceBitsMax) {
    return Bad(header, "remainders of " + std::to_string(bits) + " bits");
  }
  const std::size_t plane_bytes = BytesOfBits(header.count());
  // A one for each entry, so its bytes are those of a plane at least.
  if (stream.size() < 1 + (bits + 1) * plane_bytes) {
    return BadLength(header, stream.size(), 1 + (bits + 1) * plane_bytes);
  }
  std::uint64_t remainders = 0;
  const std::byte* plane = stream.data() + 1;
  for (std::uint32_t bit = 0; bit < bits; ++bit, plane += plane_bytes) {
    if (!RestIsZero(plane[plane_bytes - 1], header.count() % 8)) return BadPadding(header);
    remainders += kernels.count_ones(plane, plane_bytes) << bit;
  }
  const auto unary = stream.subspan(1 + bits * plane_bytes);
  if (unary.back() == std::byte{0}) return Bad(header, "its index stream ends in zeros");
  const std::uint64_t entries = kernels.count_ones(unary.data(), unary.size());
  if (entries != header.count()) return BadEntries(header, entries);
  const std::uint64_t used =
      (unary.size() - 1) * 8 +
      static_cast<std::uint64_t>(std::bit_width(std::to_integer<unsigned>(unary.back())));
  // Gaps and entries together: the last index + 1. Neither term can exceed 64 bits.
  const std::uint64_t passed = ((used - entries) << bits) + remainders + entries;
  if (passed > elements) return Beyond(header, passed - 1, elements);
  return Ok();
}

Status CheckBitmap(const wire::BlockHeader& header, std::uint32_t elements,
                   std::span<const std::byte> stream) {
  const std::size_t expected = BytesOfBits(elements);
  if (stream.size() != expected) return BadLength(header, stream.size(), expected);
  if (!RestIsZero(stream.back(), elements % 8)) return BadPadding(header);
  const std::uint64_t entries = kernels::Fastest().count_ones(stream.data(), stream.size());
  if (entries != header.count()) return BadEntries(header, entries);
  return Ok();
}

}  // namespace

std::size_t MaxIndexBytes(std::uint32_t elements, std::uint32_t count, wire::IndexCodec codec) {
  if (count == 0) return 0;
  switch (codec) {
    case wire::IndexCodec::Dense: return 0;
    // Each skip passes 255 positions that no entry takes.
    case wire::IndexCodec::Gap8: return count + (elements - count) / kSkip;
    case wire::IndexCodec::Raw16: return std::size_t{count} * 2;
    case wire::IndexCodec::KeysDelta: PS_CHECK(false, "rows are no entries of a block"); break;
    // The quotients are those of gaps that are elements - count together. What the encoder finds
    // from there is not longer.
    case wire::IndexCodec::Rice: {
      const std::uint32_t bits = RiceBitsOf(elements, count);
      return RiceBytes(count, bits, (elements - count) >> bits);
    }
    case wire::IndexCodec::Bitmap: return BytesOfBits(elements);
  }
  return 0;
}

std::size_t IndexBytes(std::uint32_t elements, std::span<const std::uint16_t> indices,
                       wire::IndexCodec codec) {
  if (indices.empty()) return 0;
  if (codec == wire::IndexCodec::Rice) return PlanRice(elements, indices).bytes;
  if (codec == wire::IndexCodec::Gap8) {
    std::uint32_t skips = 0;
    ForEachGap(indices, [&skips](std::uint32_t gap) { skips += gap / kSkip; });
    return indices.size() + skips;
  }
  return MaxIndexBytes(elements, static_cast<std::uint32_t>(indices.size()), codec);
}

// Those of equal size in the order of what they cost to read.
constexpr std::array kSparse = {wire::IndexCodec::Raw16, wire::IndexCodec::Gap8,
                                wire::IndexCodec::Bitmap, wire::IndexCodec::Rice};

wire::IndexCodec ChooseIndexCodec(std::uint32_t elements, std::uint32_t count) {
  return *std::min_element(
      kSparse.begin(), kSparse.end(), [=](wire::IndexCodec left, wire::IndexCodec right) {
        return MaxIndexBytes(elements, count, left) < MaxIndexBytes(elements, count, right);
      });
}

wire::IndexCodec SmallestIndexCodec(std::uint32_t elements,
                                    std::span<const std::uint16_t> indices) {
  if (indices.size() == elements) return wire::IndexCodec::Dense;
  if (indices.empty()) return kSparse[0];
  const RicePlan rice = PlanRice(elements, indices);
  wire::IndexCodec smallest = kSparse[0];
  std::size_t least = IndexBytes(elements, indices, smallest);
  for (const wire::IndexCodec codec : kSparse) {
    // A long gap is a skip at least: to count them all divides each gap.
    if (codec == wire::IndexCodec::Gap8 && indices.size() + rice.long_gaps > rice.bytes) continue;
    const std::size_t bytes =
        codec == wire::IndexCodec::Rice ? rice.bytes : IndexBytes(elements, indices, codec);
    if (bytes >= least) continue;
    least = bytes;
    smallest = codec;
  }
  return smallest;
}

std::byte* WriteIndices(std::uint32_t elements, std::span<const std::uint16_t> indices,
                        wire::IndexCodec codec, std::byte* out) {
  if (indices.empty()) return out;
  switch (codec) {
    case wire::IndexCodec::Dense: return out;
    case wire::IndexCodec::Gap8: return WriteGap8(indices, out);
    case wire::IndexCodec::Raw16:
      std::memcpy(out, indices.data(), indices.size_bytes());
      return out + indices.size_bytes();
    case wire::IndexCodec::KeysDelta: PS_CHECK(false, "rows are no entries of a block"); break;
    case wire::IndexCodec::Rice: return WriteRice(elements, indices, out);
    case wire::IndexCodec::Bitmap: return WriteBitmap(elements, indices, out);
  }
  return out;
}

Status CheckIndices(const wire::BlockHeader& header, std::uint32_t elements,
                    std::span<const std::byte> stream) {
  const auto codec = static_cast<wire::IndexCodec>(header.index_codec());
  if (codec == wire::IndexCodec::Dense) {
    if (header.count() != elements) {
      return Bad(header, "dense with " + std::to_string(header.count()) + " entries, " +
                             std::to_string(elements) + " expected");
    }
    if (!stream.empty()) {
      return Bad(header,
                 "dense with " + std::to_string(stream.size()) + " bytes beside its values");
    }
    return Ok();
  }
  if (header.count() == 0 && stream.empty()) return Ok();
  if (stream.empty()) {
    return Bad(header, "an empty index stream for " + std::to_string(header.count()) + " entries");
  }
  if (header.count() == 0) return BadLength(header, stream.size(), 0);
  switch (codec) {
    case wire::IndexCodec::Gap8: return CheckGap8(header, elements, stream);
    case wire::IndexCodec::Raw16: return CheckRaw16(header, elements, stream);
    case wire::IndexCodec::Rice: return CheckRice(header, elements, stream);
    case wire::IndexCodec::Bitmap: return CheckBitmap(header, elements, stream);
    default: break;
  }
  return Bad(header, "unknown index codec " + std::to_string(header.index_codec()));
}

PositionReader::PositionReader(wire::IndexCodec codec, std::uint32_t count,
                               std::span<const std::byte> stream, const kernels::Table& kernels)
    : kernels_(&kernels), codec_(codec), count_(count), at_(stream.data()) {
  if (count == 0) return;
  if (codec == wire::IndexCodec::Rice) {
    planes_.bytes = stream.data() + 1;
    planes_.plane_bytes = BytesOfBits(count);
    planes_.bits = std::to_integer<std::uint32_t>(stream[0]);
    const auto unary = stream.subspan(1 + planes_.bits * planes_.plane_bytes);
    ones_ = kernels::Ones{unary.data(), unary.size()};
  } else if (codec == wire::IndexCodec::Bitmap) {
    ones_ = kernels::Ones{stream.data(), stream.size()};
  }
}

std::size_t PositionReader::Next(std::uint16_t* out) {
  const std::size_t count = std::min<std::size_t>(kPiece, count_ - done_);
  if (count == 0) return 0;
  switch (codec_) {
    case wire::IndexCodec::Dense:
      for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<std::uint16_t>(done_ + i);
      break;
    case wire::IndexCodec::Gap8: NextGaps(out, count); break;
    case wire::IndexCodec::Raw16:
      std::memcpy(out, at_, count * 2);
      at_ += count * 2;
      break;
    case wire::IndexCodec::KeysDelta: PS_CHECK(false, "no block that was checked has keys"); break;
    case wire::IndexCodec::Rice:
      kernels_->ones(ones_, count, out);
      if (planes_.bits > 0) kernels_->add_remainders(planes_, done_, count, remainders_, out);
      break;
    case wire::IndexCodec::Bitmap: kernels_->ones(ones_, count, out); break;
  }
  done_ += static_cast<std::uint32_t>(count);
  return count;
}

// A skip writes its position too, where the next entry overwrites it: no branch.
void PositionReader::NextGaps(std::uint16_t* out, std::size_t count) {
  const std::byte* at = at_;
  std::uint32_t next = next_;
  for (std::size_t done = 0; done < count;) {
    const auto gap = std::to_integer<std::uint32_t>(*at++);
    next += gap;
    out[done] = static_cast<std::uint16_t>(next);
    const std::uint32_t entry = gap != kSkip ? 1 : 0;
    next += entry;
    done += entry;
  }
  at_ = at;
  next_ = next;
}

}  // namespace ps::codec
