#include "ps-worker/core/row_push.h"

#include <algorithm>
#include <string>
#include <utility>

#include "common/check.h"
#include "common/codec/key_codec.h"
#include "common/codec/row_codec.h"

namespace ps::worker {
namespace {

// The row that is `row`th in `rows` gets `added`, value by value.
void AddTo(std::span<float> row, std::span<const float> added) {
  for (std::size_t i = 0; i < row.size(); ++i) {
    row[i] = std::clamp(row[i] + added[i], -kRowLimit, kRowLimit);
  }
}

// Both by increasing keys; where both have a row it is their sum.
TableRows Merged(const TableRows& rows, const std::map<std::uint64_t, std::vector<float>>& others,
                 std::size_t width) {
  TableRows merged;
  merged.keys.reserve(rows.keys.size() + others.size());
  merged.values.reserve((rows.keys.size() + others.size()) * width);
  auto other = others.begin();
  const auto take_other = [&] {
    merged.keys.push_back(other->first);
    merged.values.insert(merged.values.end(), other->second.begin(), other->second.end());
    ++other;
  };
  for (std::size_t at = 0; at < rows.keys.size(); ++at) {
    while (other != others.end() && other->first < rows.keys[at]) take_other();
    const auto values = std::span(rows.values).subspan(at * width, width);
    if (other == others.end() || other->first != rows.keys[at]) {
      merged.keys.push_back(rows.keys[at]);
      merged.values.insert(merged.values.end(), values.begin(), values.end());
      continue;
    }
    take_other();
    AddTo(std::span(merged.values).last(width), values);
  }
  while (other != others.end()) take_other();
  return merged;
}

}  // namespace

RowPush::RowPush(const LayoutView& layout, std::vector<wire::ValueCodec> codecs)
    : shards_(layout.shard_count()) {
  PS_CHECK(codecs.size() == layout.row_table_count(), codecs.size(), layout.row_table_count());
  tables_.resize(codecs.size());
  for (std::uint32_t i = 0; i < tables_.size(); ++i) {
    tables_[i].width = layout.row_width(i);
    tables_[i].codec = codecs[i];
    Sort(tables_[i]);
  }
}

void RowPush::Select(std::vector<TableRows> gradients) {
  PS_CHECK(gradients.empty() || gradients.size() == tables_.size(), gradients.size());
  gradients.resize(tables_.size());
  for (std::size_t i = 0; i < tables_.size(); ++i) {
    Table& table = tables_[i];
    PS_CHECK(gradients[i].values.size() == gradients[i].keys.size() * table.width, i,
             gradients[i].values.size(), gradients[i].keys.size());
    table.selected = table.residual.empty() ? std::move(gradients[i])
                                            : Merged(gradients[i], table.residual, table.width);
    table.residual.clear();
    Sort(table);
  }
}

void RowPush::SelectNothing() {
  for (Table& table : tables_) {
    table.selected = TableRows();
    Sort(table);
  }
}

void RowPush::Sort(Table& table) const {
  const auto& keys = table.selected.keys;
  table.first.assign(std::size_t{shards_} + 1, 0);
  for (const std::uint64_t key : keys) ++table.first[codec::ShardOfRow(key, shards_).value() + 1];
  for (std::uint32_t shard = 0; shard < shards_; ++shard) {
    table.first[shard + 1] += table.first[shard];
  }
  std::vector<std::uint32_t> next(table.first.begin(), table.first.end() - 1);
  table.order.resize(keys.size());
  table.keys.resize(keys.size());
  for (std::uint32_t row = 0; row < keys.size(); ++row) {
    const std::uint32_t at = next[codec::ShardOfRow(keys[row], shards_).value()]++;
    table.order[at] = row;
    table.keys[at] = keys[row];
  }
}

std::size_t RowPush::MaxBytes() const {
  std::size_t bytes = 0;
  for (const Table& table : tables_) {
    const std::size_t rows = table.selected.keys.size();
    if (rows == 0) continue;
    bytes += codec::MaxRowBytes(rows, table.width, codec::RowContent::kKeysAndValues, table.codec);
    // A header, and a group of keys that is not whole, for each shard that has one of the rows; one
    // is counted already.
    bytes += (std::min<std::size_t>(rows, shards_) - 1) * (sizeof(wire::BlockHeader) + 1);
  }
  return bytes;
}

std::uint64_t RowPush::entries() const {
  std::uint64_t entries = 0;
  for (const Table& table : tables_) entries += table.selected.values.size();
  return entries;
}

std::size_t RowPush::EncodeShard(ShardId shard, std::span<std::byte> out) const {
  std::size_t used = 0;
  for (std::uint32_t i = 0; i < tables_.size(); ++i) {
    const Table& table = tables_[i];
    const std::size_t first = table.first[shard.value()];
    const std::size_t count = table.first[shard.value() + 1] - first;
    if (count == 0) continue;
    constexpr auto kContent = codec::RowContent::kKeysAndValues;
    const std::size_t most = codec::MaxRowBytes(count, table.width, kContent, table.codec);
    PS_CHECK(out.size() - used >= most, shard, most, out.size(), used);
    const auto keys = std::span(table.keys).subspan(first, count);
    std::byte* const header = out.data() + used;
    std::byte* const body = header + sizeof(wire::BlockHeader);
    std::byte* at = body + codec::EncodeKeys(keys, body);
    for (std::size_t row = 0; row < count; ++row) {
      const std::size_t selected = table.order[first + row];
      at += codec::EncodeGradient(
          keys[row], std::span(table.selected.values).subspan(selected * table.width, table.width),
          table.codec, at);
    }
    codec::WriteRowsHeader(i, count, static_cast<std::size_t>(at - body), kContent, table.codec,
                           header);
    used = static_cast<std::size_t>(at - out.data());
  }
  return used;
}

Status RowPush::TakeBack(std::span<const std::byte> rows, float weight) {
  std::vector<codec::RowsView> parts;
  PS_TRY(codec::ParseRows(
      rows, codec::RowContent::kKeysAndValues,
      [this](std::uint32_t table) { return table < tables_.size() ? tables_[table].width : 0; },
      parts));
  std::vector<std::uint64_t> keys;
  std::vector<float> values;
  for (const codec::RowsView& part : parts) {
    Table& table = tables_[part.table];
    codec::DecodeKeys(part, keys);
    values.resize(table.width);
    for (std::size_t row = 0; row < part.count; ++row) {
      codec::DecodeRow(part, row, values);
      for (float& value : values) value = std::clamp(weight * value, -kRowLimit, kRowLimit);
      const auto [found, fresh] = table.residual.try_emplace(keys[row], values);
      if (!fresh) AddTo(found->second, values);
    }
  }
  return Ok();
}

void RowPush::ScaleResidual(float factor) {
  for (Table& table : tables_) {
    for (auto& [key, values] : table.residual) {
      for (float& value : values) value = std::clamp(factor * value, -kRowLimit, kRowLimit);
    }
  }
}

double RowPush::ResidualSumOfSquares() const {
  double sum = 0;
  for (const Table& table : tables_) {
    for (const auto& [key, values] : table.residual) {
      for (const float value : values) sum += double{value} * value;
    }
  }
  return sum;
}

}  // namespace ps::worker
