// A data message from a stranger: head, segments, blocks, rows, values.
//
// Input: u16 length of frame 1 (little endian), frame 1, frame 2. What parses must decode to valid
// positions and, if its values are finite, encode to the same bytes again.
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/check.h"
#include "common/codec/block_codec.h"
#include "common/codec/row_codec.h"
#include "common/messages/wire.h"

namespace {

// Block 0 is full, others have few elements.
std::uint32_t ElementsOf(std::uint32_t block) {
  if (block >= 64) return 0;
  return block == 0 ? ps::wire::kBlockElements : 16 * block;
}

void CheckBlock(const ps::codec::BlockView& block, std::vector<std::byte>& again) {
  const std::uint32_t elements = ElementsOf(block.header.block());
  std::vector<std::uint16_t> indices;
  std::vector<float> values;
  ps::codec::DecodeIndices(block, indices);
  ps::codec::DecodeValues(block, values);
  PS_CHECK(indices.size() == block.count() && values.size() == block.count(), block.count());
  for (std::size_t i = 0; i < indices.size(); ++i) {
    PS_CHECK(indices[i] < elements, indices[i], elements);
    PS_CHECK(i == 0 || indices[i - 1] < indices[i], indices[i]);
  }
  const auto index = static_cast<ps::wire::IndexCodec>(block.header.index_codec());
  const auto value = static_cast<ps::wire::ValueCodec>(block.header.value_codec());
  const std::size_t at = again.size();
  again.resize(at + ps::codec::MaxEncodedBytes(elements, block.count(), index, value));
  again.resize(at + ps::codec::EncodeBlock(block.header.block(), elements, indices, values, index,
                                           value, again.data() + at, {}));
}

std::uint32_t WidthOf(std::uint32_t table) { return table < 32 ? table : 0; }

void CheckRows(std::span<const std::byte> rows, ps::codec::RowContent content) {
  std::vector<ps::codec::RowsView> parts;
  if (!ps::codec::ParseRows(rows, content, WidthOf, parts).ok()) return;
  std::vector<std::byte> again;
  std::vector<std::byte> copied;
  bool finite = true;
  for (const ps::codec::RowsView& part : parts) {
    const std::uint32_t width = WidthOf(part.table);
    std::vector<std::uint64_t> keys;
    if (content != ps::codec::RowContent::kValues) {
      ps::codec::DecodeKeys(part, keys);
      PS_CHECK(keys.size() == part.count, part.count);
      for (std::size_t row = 0; row < part.count; ++row) PS_CHECK(keys[row] == part.key(row), row);
      const bool one = part.count == 1;
      PS_CHECK(!one || ps::codec::RowsOfShard(part, ps::codec::ShardOfRow(keys[0], 7), 7), keys[0]);
      ps::codec::AppendRows(part, copied);
    }
    std::vector<float> values;
    if (content != ps::codec::RowContent::kKeys) {
      finite = ps::codec::AllFinite(part) && finite;
      values.resize(std::size_t{part.count} * width);
      for (std::size_t row = 0; row < part.count; ++row) {
        ps::codec::DecodeRow(part, row, std::span(values).subspan(row * width, width));
      }
    }
    const std::size_t at = again.size();
    again.resize(at + ps::codec::RowBytes(part.count, width, content, part.value_codec));
    ps::codec::EncodeRows(part.table, keys, values, width, content, part.value_codec,
                          again.data() + at);
  }
  PS_CHECK(
      again.size() == rows.size() &&
          (!finite || rows.empty() || std::memcmp(again.data(), rows.data(), rows.size()) == 0),
      rows.size());
  PS_CHECK(content == ps::codec::RowContent::kValues ||
               (copied.size() == rows.size() &&
                (rows.empty() || std::memcmp(copied.data(), rows.data(), rows.size()) == 0)),
           rows.size());
}

void CheckBlocks(std::span<const std::byte> payload) {
  std::vector<ps::codec::BlockView> blocks;
  if (!ps::codec::ParseSegment(payload, ElementsOf, blocks).ok()) return;
  std::vector<std::byte> again;
  bool finite = true;
  for (const ps::codec::BlockView& block : blocks) {
    finite = ps::codec::AllFinite(block) && finite;
    CheckBlock(block, again);
  }
  // A signalling NaN comes back as a quiet one.
  PS_CHECK(!finite || (again.size() == payload.size() &&
                       (payload.empty() ||
                        std::memcmp(again.data(), payload.data(), payload.size()) == 0)),
           payload.size());
}

void CheckSegment(std::span<const std::byte> payload) {
  const auto parts = ps::codec::SplitSegment(payload);
  if (!parts.ok()) {
    // Then neither parser may take it.
    std::vector<ps::codec::BlockView> blocks;
    PS_CHECK(!ps::codec::ParseSegment(payload, ElementsOf, blocks).ok(), payload.size());
    return;
  }
  CheckBlocks(parts->blocks);
  CheckRows(parts->rows, ps::codec::RowContent::kKeysAndValues);
  CheckRows(parts->rows, ps::codec::RowContent::kKeys);
  CheckRows(parts->rows, ps::codec::RowContent::kValues);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const std::size_t head_bytes = data[0] | data[1] << 8;
  const auto rest = bytes.subspan(2);
  if (head_bytes > rest.size()) {
    CheckSegment(rest);
    return 0;
  }
  const auto payload = rest.subspan(head_bytes);
  ps::wire::Head head;
  if (!ps::wire::ParseInto(rest.first(head_bytes), head).ok()) return 0;
  const auto built = ps::wire::BuildHead(head.header, head.segments);
  PS_CHECK(built.size() == head_bytes && std::memcmp(built.data(), rest.data(), head_bytes) == 0,
           head_bytes);
  for (const ps::wire::Segment& segment : head.segments) {
    const auto part = ps::wire::SegmentPayload(segment, payload);
    if (part.ok()) CheckSegment(part.value());
  }
  return 0;
}
