#include "common/codec/block_codec.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "common/check.h"

namespace ps::codec {
namespace {

Error Bad(const wire::BlockHeader& header, const std::string& what) {
  return Error{ErrorCode::kInvalid, "block " + std::to_string(header.block()) + ": " + what};
}

// Of entries of blocks; others are of rows, or not known.
bool IsIndexCodec(std::uint8_t codec) {
  return codec <= static_cast<std::uint8_t>(wire::IndexCodec::MAX) &&
         codec != static_cast<std::uint8_t>(wire::IndexCodec::KeysDelta);
}

bool IsValueCodec(std::uint8_t codec) {
  return codec <= static_cast<std::uint8_t>(wire::ValueCodec::MAX) &&
         codec != static_cast<std::uint8_t>(wire::ValueCodec::Absent);
}

Result<BlockView> SplitBlock(const wire::BlockHeader& header, std::uint32_t elements,
                             std::span<const std::byte> body) {
  if (header.reserved() != 0) return Bad(header, "its reserved bytes are not zero");
  if (!IsIndexCodec(header.index_codec())) {
    return Bad(header, "unknown index codec " + std::to_string(header.index_codec()));
  }
  if (!IsValueCodec(header.value_codec())) {
    return Bad(header, "unknown value codec " + std::to_string(header.value_codec()));
  }
  if (header.count() > elements) {
    return Bad(header, std::to_string(header.count()) + " entries for " + std::to_string(elements) +
                           " elements");
  }
  const std::size_t value_bytes =
      ValueBytes(static_cast<wire::ValueCodec>(header.value_codec()), header.count());
  if (value_bytes > body.size()) {
    return Bad(header, std::to_string(body.size()) + " bytes for " +
                           std::to_string(header.count()) + " values of " +
                           std::to_string(value_bytes) + " bytes");
  }
  BlockView view;
  view.header = header;
  view.index_bytes = body.first(body.size() - value_bytes);
  view.value_bytes = body.last(value_bytes);
  PS_TRY(CheckIndices(header, elements, view.index_bytes));
  PS_TRY(CheckValues(header, view.value_bytes));
  return view;
}

// Writes the header of a block whose index stream and values end at `end`. Returns its bytes.
std::size_t WriteHeader(std::uint32_t block, std::size_t count, wire::IndexCodec index,
                        wire::ValueCodec value, std::byte* out, const std::byte* end) {
  const auto bytes = static_cast<std::size_t>(end - out);
  const wire::BlockHeader header(
      block, static_cast<std::uint32_t>(count), static_cast<std::uint32_t>(bytes - sizeof(header)),
      static_cast<std::uint8_t>(index), static_cast<std::uint8_t>(value), 0);
  std::memcpy(out, &header, sizeof(header));
  return bytes;
}

}  // namespace

std::size_t MaxEncodedBytes(std::uint32_t elements, std::uint32_t count, wire::IndexCodec index,
                            wire::ValueCodec value) {
  return sizeof(wire::BlockHeader) + MaxIndexBytes(elements, count, index) +
         ValueBytes(value, count);
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

  std::byte* at = WriteIndices(elements, indices, index, out + sizeof(wire::BlockHeader));
  at = WriteValues(values, value, at, sent);
  return WriteHeader(block, count, index, value, out, at);
}

std::size_t EncodeCodedBlock(std::uint32_t block, std::uint32_t elements, std::uint32_t count,
                             std::span<const std::uint16_t> indices,
                             std::span<const std::byte> value_bytes, wire::IndexCodec index,
                             wire::ValueCodec value, std::byte* out) {
  PS_CHECK(count <= elements, block, count, elements);
  PS_CHECK(index == wire::IndexCodec::Dense ? count == elements : count == indices.size(), block,
           count, elements, indices.size());
  PS_CHECK(value_bytes.size() == ValueBytes(value, count), block, count, value_bytes.size());
  std::byte* at = WriteIndices(elements, indices, index, out + sizeof(wire::BlockHeader));
  if (!value_bytes.empty()) std::memcpy(at, value_bytes.data(), value_bytes.size());
  return WriteHeader(block, count, index, value, out, at + value_bytes.size());
}

Status ParseSegment(std::span<const std::byte> payload,
                    const std::function<std::uint32_t(std::uint32_t)>& elements_of,
                    std::vector<BlockView>& blocks, std::uint32_t runs_max) {
  blocks.clear();
  std::int64_t previous = -1;
  std::uint32_t runs = 1;
  while (!payload.empty()) {
    wire::BlockHeader header;
    if (payload.size() < sizeof(header)) {
      return Error{ErrorCode::kInvalid, "segment ends in " + std::to_string(payload.size()) +
                                            " bytes, too few for the header of a block"};
    }
    std::memcpy(&header, payload.data(), sizeof(header));
    payload = payload.subspan(sizeof(header));
    if (header.block() <= previous && ++runs > runs_max) {
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

EntryReader::EntryReader(const BlockView& block, const kernels::Table& kernels)
    : positions_(block.positions(kernels)),
      values_(block.value_codec(), block.count(), block.value_bytes, kernels) {}

std::size_t EntryReader::Next(std::uint16_t* positions, float* values) {
  const std::size_t count = positions_.Next(positions);
  values_.Next(count, values);
  return count;
}

void DecodeIndices(const BlockView& block, std::vector<std::uint16_t>& indices) {
  indices.resize(block.count());
  PositionReader reader = block.positions();
  std::uint16_t piece[PositionReader::kRoom];
  std::size_t at = 0;
  while (const std::size_t count = reader.Next(piece)) {
    std::memcpy(indices.data() + at, piece, count * sizeof(piece[0]));
    at += count;
  }
}

void DecodeValues(const BlockView& block, std::vector<float>& values) {
  values.resize(block.count());
  ValueReader(block.value_codec(), block.count(), block.value_bytes)
      .Next(values.size(), values.data());
}

bool AllFinite(const BlockView& block) {
  return ValuesFinite(block.value_codec(), block.value_bytes);
}

}  // namespace ps::codec
