// A data message from a stranger: head, segments, blocks, rows, values.
//
// Input: u16 length of frame 1 (little endian), frame 1, frame 2. What parses must decode to valid
// positions and keys and, if its values are finite, encode to the same bytes again. Blocks are
// those of blocks.h. Increments, with a hash before them or without, must be runs of such blocks,
// and what is held stays normal or zero, in the same bits for whoever adds them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/check.h"
#include "common/codec/block_codec.h"
#include "common/codec/increment.h"
#include "common/codec/row_codec.h"
#include "common/messages/wire.h"
#include "tests/fuzz/blocks.h"

namespace {

std::uint32_t WidthOf(std::uint32_t table) { return table < 32 ? table : 0; }

void CheckRows(std::span<const std::byte> rows, ps::codec::RowContent content) {
  std::vector<ps::codec::RowsView> parts;
  if (!ps::codec::ParseRows(rows, content, WidthOf, parts).ok()) return;
  std::vector<std::byte> again;
  std::vector<std::byte> copied;
  // Codes of 8 bits need not be those that the encoder would take.
  bool same = true;
  for (const ps::codec::RowsView& part : parts) {
    const std::uint32_t width = WidthOf(part.table);
    std::vector<std::uint64_t> keys;
    if (content != ps::codec::RowContent::kValues) {
      ps::codec::DecodeKeys(part, keys);
      PS_CHECK(keys.size() == part.count, part.count);
      for (std::size_t row = 1; row < part.count; ++row) PS_CHECK(keys[row - 1] < keys[row], row);
      const bool one = part.count == 1;
      PS_CHECK(!one || ps::codec::RowsOfShard(part, ps::codec::ShardOfRow(keys[0], 7), 7), keys[0]);
      ps::codec::AppendRows(part, copied);
    }
    std::vector<float> values;
    if (content != ps::codec::RowContent::kKeys) {
      const bool int8 = part.value_codec == ps::wire::ValueCodec::Int8;
      const bool finite = ps::codec::AllFinite(part);
      PS_CHECK(finite || !int8, part.table);
      same = same && finite && !int8;
      values.resize(std::size_t{part.count} * width);
      for (std::size_t row = 0; row < part.count; ++row) {
        ps::codec::DecodeRow(part, row, std::span(values).subspan(row * width, width));
      }
      PS_CHECK(!int8 || std::all_of(values.begin(), values.end(),
                                    [](float value) { return std::isfinite(value); }),
               part.table);
    }
    const std::size_t at = again.size();
    again.resize(at + ps::codec::MaxRowBytes(part.count, width, content, part.value_codec));
    again.resize(at + ps::codec::EncodeRows(part.table, keys, values, width, content,
                                            part.value_codec, again.data() + at));
    const std::size_t value_bytes = part.count * ps::codec::RowValueBytes(width, part.value_codec);
    const std::size_t key_bytes = part.key_bytes.size();
    const std::size_t begin = at + sizeof(ps::wire::BlockHeader);
    PS_CHECK(again.size() == begin + key_bytes + value_bytes, again.size(), key_bytes);
    PS_CHECK(
        key_bytes == 0 || std::memcmp(again.data() + begin, part.key_bytes.data(), key_bytes) == 0,
        key_bytes);
  }
  PS_CHECK(again.size() == rows.size() &&
               (!same || rows.empty() || std::memcmp(again.data(), rows.data(), rows.size()) == 0),
           rows.size());
  PS_CHECK(content == ps::codec::RowContent::kValues ||
               (copied.size() == rows.size() &&
                (rows.empty() || std::memcmp(copied.data(), rows.data(), rows.size()) == 0)),
           rows.size());
}

// What a task that holds something makes of increments.
void CheckIncrements(std::span<const std::byte> payload) {
  namespace codec = ps::codec;
  constexpr std::uint32_t kRunsMax = 1 + codec::kIncrementPushesMax;
  const std::vector<std::byte> bytes(payload.begin(), payload.end());
  std::vector<codec::BlockView> blocks;
  if (!codec::ParseSegment(bytes, ps::fuzz::ElementsOf, blocks, kRunsMax).ok()) {
    // What is one run is some runs as well.
    PS_CHECK(!codec::ParseSegment(bytes, ps::fuzz::ElementsOf, blocks).ok(), payload.size());
    return;
  }
  std::uint32_t runs = 1;
  std::size_t begin = 0;  // of the run
  std::size_t at = 0;
  std::int64_t previous = -1;
  std::vector<codec::BlockView> of_run;
  const auto end_run = [&] {
    const auto run = std::span(bytes).subspan(begin, at - begin);
    PS_CHECK(codec::ParseSegment(run, ps::fuzz::ElementsOf, of_run).ok(), begin, at);
    begin = at;
  };
  // Of all kinds of numbers.
  std::vector<std::uint16_t> held(ps::wire::kBlockElements);
  for (std::size_t i = 0; i < held.size(); ++i) {
    held[i] = codec::HeldOf(codec::Bf16ToFloat(static_cast<std::uint16_t>(i)));
  }
  std::vector<std::uint16_t> indices;
  std::vector<float> values;
  for (const codec::BlockView& block : blocks) {
    if (block.header.block() <= previous) {
      ++runs;
      end_run();
    }
    previous = block.header.block();
    at += sizeof(ps::wire::BlockHeader) + block.header.bytes();
    codec::DecodeIndices(block, indices);
    codec::DecodeValues(block, values);
    PS_CHECK(indices.size() == values.size(), indices.size());
    for (std::size_t i = 0; i < indices.size(); ++i) {
      std::uint16_t& one = held[indices[i]];
      const std::uint16_t before = one;
      one = block.dense() ? codec::HeldOf(values[i]) : codec::AddIncrement(one, values[i]);
      PS_CHECK((one & 0x7f80u) != 0 || one == 0, before, values[i]);
      // The task keeps floats: they must tell the same.
      PS_CHECK(codec::HeldOf(codec::Bf16ToFloat(one)) == one, before, values[i]);
    }
  }
  end_run();
  PS_CHECK(at == bytes.size() && runs <= kRunsMax, at, runs);
}

void CheckSegment(std::span<const std::byte> payload) {
  CheckIncrements(payload);
  constexpr std::size_t kHashBytes = 8;
  if (payload.size() >= kHashBytes) CheckIncrements(payload.subspan(kHashBytes));
  const auto parts = ps::codec::SplitSegment(payload);
  if (!parts.ok()) {
    // Then neither parser may take it.
    std::vector<ps::codec::BlockView> blocks;
    PS_CHECK(!ps::codec::ParseSegment(payload, ps::fuzz::ElementsOf, blocks).ok(), payload.size());
    return;
  }
  ps::fuzz::CheckBlocks(parts->blocks);
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
