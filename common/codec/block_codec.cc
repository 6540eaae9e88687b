#include "common/codec/block_codec.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "common/check.h"
#include "common/codec/finite.h"

namespace ps::codec {
namespace {

static_assert(std::endian::native == std::endian::little,
              "values and indices are copied to the wire as they lie in memory");

constexpr std::uint8_t kSkip = 255;

std::size_t ValueBytes(wire::ValueCodec value) { return value == wire::ValueCodec::Fp32 ? 4 : 2; }

std::uint8_t ByteAt(std::span<const std::byte> bytes, std::size_t at) {
  return std::to_integer<std::uint8_t>(bytes[at]);
}

std::uint16_t Load16(const std::byte* from) {
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return bits;
}

std::byte* WriteGap8(std::span<const std::uint16_t> indices, std::byte* out) {
  std::uint32_t next = 0;  // the first position that no index has passed yet
  for (const std::uint16_t index : indices) {
    std::uint32_t gap = index - next;
    for (; gap >= kSkip; gap -= kSkip) *out++ = std::byte{kSkip};
    *out++ = static_cast<std::byte>(gap);
    next = std::uint32_t{index} + 1;
  }
  return out;
}

Error Bad(const wire::BlockHeader& header, const std::string& what) {
  return Error{ErrorCode::kInvalid, "block " + std::to_string(header.block()) + ": " + what};
}

Status CheckGap8(const wire::BlockHeader& header, std::uint32_t elements,
                 std::span<const std::byte> stream) {
  if (stream.empty()) {
    if (header.count() == 0) return Ok();
    return Bad(header, "an empty index stream for " + std::to_string(header.count()) + " entries");
  }
  if (ByteAt(stream, stream.size() - 1) == kSkip) {
    return Bad(header, "its index stream ends in a skip");
  }
  // A byte b < 255 moves past b + 1 positions, 255 past 255: the sum is the last index + 1. The
  // sum of a stream that passes the length checks of ParseSegment cannot exceed 64 bits.
  std::uint64_t passed = 0;
  std::uint64_t skips = 0;
  for (const std::byte byte : stream) {
    passed += std::to_integer<std::uint8_t>(byte);
    skips += byte == std::byte{kSkip} ? 1 : 0;
  }
  const std::uint64_t entries = stream.size() - skips;
  if (entries != header.count()) {
    return Bad(header, "its index stream has " + std::to_string(entries) + " entries, " +
                           std::to_string(header.count()) + " announced");
  }
  if (passed + entries > elements) {
    return Bad(header, "index " + std::to_string(passed + entries - 1) + " in a block of " +
                           std::to_string(elements) + " elements");
  }
  return Ok();
}

Status CheckRaw16(const wire::BlockHeader& header, std::uint32_t elements,
                  std::span<const std::byte> stream) {
  if (stream.size() != std::size_t{header.count()} * 2) {
    return Bad(header, "an index stream of " + std::to_string(stream.size()) + " bytes, " +
                           std::to_string(std::size_t{header.count()} * 2) + " expected");
  }
  std::int32_t previous = -1;
  for (std::size_t at = 0; at < stream.size(); at += 2) {
    const std::int32_t index = Load16(stream.data() + at);
    if (index <= previous) {
      return Bad(header, "index " + std::to_string(index) + " after " + std::to_string(previous));
    }
    previous = index;
  }
  if (previous >= static_cast<std::int64_t>(elements)) {
    return Bad(header, "index " + std::to_string(previous) + " in a block of " +
                           std::to_string(elements) + " elements");
  }
  return Ok();
}

Result<BlockView> SplitBlock(const wire::BlockHeader& header, std::uint32_t elements,
                             std::span<const std::byte> body) {
  if (header.reserved() != 0) return Bad(header, "its reserved bytes are not zero");
  if (header.index_codec() > static_cast<std::uint8_t>(wire::IndexCodec::Raw16)) {
    return Bad(header, "unknown index codec " + std::to_string(header.index_codec()));
  }
  if (header.value_codec() > static_cast<std::uint8_t>(wire::ValueCodec::Bf16)) {
    return Bad(header, "unknown value codec " + std::to_string(header.value_codec()));
  }
  if (header.count() > elements) {
    return Bad(header, std::to_string(header.count()) + " entries for " + std::to_string(elements) +
                           " elements");
  }
  const std::size_t value_bytes =
      header.count() * ValueBytes(static_cast<wire::ValueCodec>(header.value_codec()));
  if (value_bytes > body.size()) {
    return Bad(header, std::to_string(body.size()) + " bytes for " +
                           std::to_string(header.count()) + " values of " +
                           std::to_string(value_bytes) + " bytes");
  }
  BlockView view;
  view.header = header;
  view.index_bytes = body.first(body.size() - value_bytes);
  view.value_bytes = body.last(value_bytes);
  switch (static_cast<wire::IndexCodec>(header.index_codec())) {
    case wire::IndexCodec::Dense:
      if (header.count() != elements) {
        return Bad(header, "dense with " + std::to_string(header.count()) + " entries, " +
                               std::to_string(elements) + " expected");
      }
      if (!view.index_bytes.empty()) {
        return Bad(header, "dense with " + std::to_string(view.index_bytes.size()) +
                               " bytes beside its values");
      }
      break;
    case wire::IndexCodec::Gap8: PS_TRY(CheckGap8(header, elements, view.index_bytes)); break;
    case wire::IndexCodec::Raw16: PS_TRY(CheckRaw16(header, elements, view.index_bytes)); break;
    case wire::IndexCodec::Keys64: break;  // refused above
  }
  return view;
}

}  // namespace

std::size_t MaxEncodedBytes(std::uint32_t elements, std::uint32_t count, wire::IndexCodec index,
                            wire::ValueCodec value) {
  std::size_t index_bytes = 0;
  switch (index) {
    case wire::IndexCodec::Dense: break;
    case wire::IndexCodec::Gap8:
      // Each skip passes 255 positions that no entry takes.
      index_bytes = count == 0 ? 0 : count + (elements - count) / kSkip;
      break;
    case wire::IndexCodec::Raw16: index_bytes = std::size_t{count} * 2; break;
    case wire::IndexCodec::Keys64: PS_CHECK(false, "rows are no entries of a block"); break;
  }
  return sizeof(wire::BlockHeader) + index_bytes + count * ValueBytes(value);
}

wire::IndexCodec ChooseIndexCodec(std::uint32_t elements, std::uint32_t count) {
  // Raw16 costs one byte more per entry than a gap below 255. With entries spread at random the
  // skips cost as much once (1 - density)^255 > 1/2, that is below a density of 1 in 368.
  return std::uint64_t{count} * 368 >= elements ? wire::IndexCodec::Gap8 : wire::IndexCodec::Raw16;
}

std::size_t EncodeBlock(std::uint32_t block, std::uint32_t elements,
                        std::span<const std::uint16_t> indices, std::span<const float> values,
                        wire::IndexCodec index, wire::ValueCodec value, std::byte* out,
                        std::span<float> sent) {
  const std::size_t count = values.size();
  PS_CHECK(count <= elements, block, count, elements);
  PS_CHECK(index == wire::IndexCodec::Dense ? count == elements : count == indices.size(), block,
           count, elements, indices.size());
  PS_CHECK(sent.empty() || sent.size() == count, block, sent.size(), count);

  std::byte* at = out + sizeof(wire::BlockHeader);
  switch (index) {
    case wire::IndexCodec::Dense: break;
    case wire::IndexCodec::Gap8: at = WriteGap8(indices, at); break;
    case wire::IndexCodec::Raw16:
      if (count > 0) std::memcpy(at, indices.data(), count * 2);
      at += count * 2;
      break;
    case wire::IndexCodec::Keys64: PS_CHECK(false, "rows are no entries of a block"); break;
  }
  if (value == wire::ValueCodec::Fp32) {
    if (count > 0) std::memcpy(at, values.data(), count * 4);
    if (!sent.empty()) std::memcpy(sent.data(), values.data(), count * 4);
    at += count * 4;
  } else {
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint16_t bits = FloatToBf16(values[i]);
      std::memcpy(at + i * 2, &bits, sizeof(bits));
    }
    for (std::size_t i = 0; i < sent.size(); ++i) sent[i] = Bf16ToFloat(FloatToBf16(values[i]));
    at += count * 2;
  }
  const wire::BlockHeader header(
      block, static_cast<std::uint32_t>(count),
      static_cast<std::uint32_t>(at - out - static_cast<std::ptrdiff_t>(sizeof(header))),
      static_cast<std::uint8_t>(index), static_cast<std::uint8_t>(value), 0);
  std::memcpy(out, &header, sizeof(header));
  return static_cast<std::size_t>(at - out);
}

Status ParseSegment(std::span<const std::byte> payload,
                    const std::function<std::uint32_t(std::uint32_t)>& elements_of,
                    std::vector<BlockView>& blocks) {
  blocks.clear();
  std::int64_t previous = -1;
  while (!payload.empty()) {
    wire::BlockHeader header;
    if (payload.size() < sizeof(header)) {
      return Error{ErrorCode::kInvalid, "segment ends in " + std::to_string(payload.size()) +
                                            " bytes, too few for the header of a block"};
    }
    std::memcpy(&header, payload.data(), sizeof(header));
    payload = payload.subspan(sizeof(header));
    if (header.block() <= previous) {
      return Bad(header, "listed after block " + std::to_string(previous));
    }
    previous = header.block();
    const std::uint32_t elements = elements_of(header.block());
    if (elements == 0 || elements > wire::kBlockElements) {
      return Bad(header, "does not belong to this segment");
    }
    if (header.bytes() > payload.size()) {
      return Bad(header, std::to_string(header.bytes()) + " bytes announced, the segment has " +
                             std::to_string(payload.size()) + " left");
    }
    blocks.push_back(PS_TRY(SplitBlock(header, elements, payload.first(header.bytes()))));
    payload = payload.subspan(header.bytes());
  }
  return Ok();
}

void DecodeIndices(const BlockView& block, std::vector<std::uint16_t>& indices) {
  indices.resize(block.count());
  switch (static_cast<wire::IndexCodec>(block.header.index_codec())) {
    case wire::IndexCodec::Dense:
      for (std::size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<std::uint16_t>(i);
      break;
    case wire::IndexCodec::Gap8: {
      std::uint32_t position = 0;
      std::size_t entry = 0;
      for (const std::byte byte : block.index_bytes) {
        position += std::to_integer<std::uint8_t>(byte);
        if (byte == std::byte{kSkip}) continue;
        indices[entry++] = static_cast<std::uint16_t>(position++);
      }
      break;
    }
    case wire::IndexCodec::Raw16:
      if (!indices.empty()) {
        std::memcpy(indices.data(), block.index_bytes.data(), block.index_bytes.size());
      }
      break;
    case wire::IndexCodec::Keys64: PS_CHECK(false, "no block that was checked has keys"); break;
  }
}

void DecodeValues(const BlockView& block, std::vector<float>& values) {
  values.resize(block.count());
  if (values.empty()) return;
  const std::byte* from = block.value_bytes.data();
  if (block.header.value_codec() == static_cast<std::uint8_t>(wire::ValueCodec::Fp32)) {
    std::memcpy(values.data(), from, block.value_bytes.size());
    return;
  }
  float* to = values.data();
  for (std::size_t i = 0; i < values.size(); ++i) to[i] = Bf16ToFloat(Load16(from + i * 2));
}

bool AllFinite(const BlockView& block) {
  return ValuesFinite(static_cast<wire::ValueCodec>(block.header.value_codec()), block.value_bytes);
}

bool ValuesFinite(wire::ValueCodec codec, std::span<const std::byte> bytes) {
  return codec == wire::ValueCodec::Fp32 ? AllFinite32(bytes) : AllFinite16(bytes);
}

float Bf16ToFloat(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

std::uint16_t FloatToBf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  // Rounding could carry a NaN into infinity or zero: keep its upper half, quiet.
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<std::uint16_t>(nan ? (bits >> 16) | 0x40u : rounded);
}

}  // namespace ps::codec
