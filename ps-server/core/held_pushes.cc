#include "ps-server/core/held_pushes.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "ps-server/core/segment_content.h"

namespace ps::server {
namespace {

SegmentContent ParseOwn(const LayoutView& layout, ShardId shard, std::span<const std::byte> bytes) {
  SegmentContent content;
  const Status parsed = ParsePush(layout, shard, bytes, content);
  PS_CHECK(parsed.ok(), shard, parsed.error().message);
  return content;
}

const codec::RowsView* FindTable(const SegmentContent& content, std::uint32_t table) {
  const auto part =
      std::find_if(content.rows.begin(), content.rows.end(),
                   [table](const codec::RowsView& one) { return one.table == table; });
  return part != content.rows.end() ? &*part : nullptr;
}

float WeightOf(const HeldPush& push, double total) {
  return static_cast<float>(push.samples / total);
}

// Appends the sum of the rows of one table to `out`.
void MergeTable(std::uint32_t table, std::uint32_t width, std::span<const HeldPush> pushes,
                std::span<const SegmentContent> parsed, double total, MergeScratch& scratch,
                std::vector<std::byte>& out) {
  scratch.rows.clear();
  bool any = false;
  for (std::uint32_t push = 0; push < parsed.size(); ++push) {
    const codec::RowsView* const part = FindTable(parsed[push], table);
    if (part == nullptr) continue;
    any = true;
    codec::DecodeKeys(*part, scratch.keys);
    for (std::uint32_t row = 0; row < part->count; ++row) {
      scratch.rows.push_back({scratch.keys[row], push, row});
    }
  }
  if (!any) return;
  using PushedRow = MergeScratch::PushedRow;
  std::sort(scratch.rows.begin(), scratch.rows.end(),
            [](const PushedRow& left, const PushedRow& right) {
              return std::tie(left.key, left.push) < std::tie(right.key, right.push);
            });
  scratch.keys.clear();
  scratch.sum.clear();
  scratch.values.resize(width);
  for (const PushedRow& row : scratch.rows) {
    if (scratch.keys.empty() || scratch.keys.back() != row.key) {
      scratch.keys.push_back(row.key);
      scratch.sum.resize(scratch.sum.size() + width, 0);
    }
    codec::DecodeRow(*FindTable(parsed[row.push], table), row.row, scratch.values);
    const float weight = WeightOf(pushes[row.push], total);
    float* const sum = scratch.sum.data() + scratch.sum.size() - width;
    for (std::uint32_t i = 0; i < width; ++i) sum[i] += weight * scratch.values[i];
  }
  constexpr auto kContent = codec::RowContent::kKeysAndValues;
  const std::size_t at = out.size();
  out.resize(at + codec::MaxRowBytes(scratch.keys.size(), width, kContent, wire::ValueCodec::Fp32));
  out.resize(at + codec::EncodeRows(table, scratch.keys, scratch.sum, width, kContent,
                                    wire::ValueCodec::Fp32, out.data() + at));
}

}  // namespace

std::size_t HeldPushes::CountOf(Incarnation incarnation) const {
  return static_cast<std::size_t>(std::count_if(
      pushes_.begin(), pushes_.end(),
      [incarnation](const auto& push) { return std::get<2>(push.first) == incarnation; }));
}

void HeldPushes::Add(WorkerId worker, Incarnation incarnation, Clock clock, std::uint32_t samples,
                     std::span<const codec::BlockView> blocks,
                     std::span<const codec::RowsView> rows) {
  Content content;
  content.samples = samples;
  for (const codec::BlockView& block : blocks) {
    const auto* header = reinterpret_cast<const std::byte*>(&block.header);
    content.bytes.insert(content.bytes.end(), header, header + sizeof(block.header));
    content.bytes.insert(content.bytes.end(), block.index_bytes.begin(), block.index_bytes.end());
    content.bytes.insert(content.bytes.end(), block.value_bytes.begin(), block.value_bytes.end());
  }
  for (const codec::RowsView& part : rows) codec::AppendRows(part, content.bytes);
  pushes_[Key{clock, worker, incarnation}] = std::move(content);
}

std::vector<HeldPush> HeldPushes::TakeOldest() {
  std::vector<HeldPush> taken;
  const Clock clock = OldestClock();
  while (!pushes_.empty() && OldestClock() == clock) {
    const auto first = pushes_.begin();
    taken.push_back(HeldPush{std::get<1>(first->first), std::get<2>(first->first), clock,
                             first->second.samples, std::move(first->second.bytes)});
    pushes_.erase(first);
  }
  return taken;
}

std::vector<checkpoint::HeldPush> HeldPushes::Save() const {
  std::vector<checkpoint::HeldPush> saved;
  for (const auto& [key, content] : pushes_) {
    saved.push_back(checkpoint::HeldPush{std::get<1>(key), std::get<2>(key), std::get<0>(key),
                                         content.samples, content.bytes});
  }
  return saved;
}

void HeldPushes::Load(const std::vector<checkpoint::HeldPush>& saved) {
  pushes_.clear();
  for (const checkpoint::HeldPush& push : saved) {
    pushes_[Key{push.clock, push.worker, push.incarnation}] = Content{push.samples, push.bytes};
  }
}

MergedPush Merge(const LayoutView& layout, ShardId shard, std::span<const HeldPush> pushes,
                 MergeScratch& scratch) {
  MergedPush merged;
  std::vector<SegmentContent> parsed;
  for (const HeldPush& push : pushes) {
    parsed.push_back(ParseOwn(layout, shard, push.bytes));
    if (!push.bytes.empty()) merged.samples += push.samples;
  }
  const double total = std::max(1u, merged.samples);
  for (auto number = layout.shard_first_block(shard); number < layout.shard_last_block(shard);
       ++number) {
    if (layout.block(number).rule != TableRule::Sgd) continue;
    const std::uint32_t elements = layout.block(number).elements;
    bool any = false;
    for (std::size_t i = 0; i < pushes.size(); ++i) {
      const auto block = std::find_if(
          parsed[i].blocks.begin(), parsed[i].blocks.end(),
          [number](const codec::BlockView& view) { return view.header.block() == number; });
      if (block == parsed[i].blocks.end()) continue;
      if (!any) {
        scratch.sum.assign(elements, 0);
        scratch.touched.assign(elements, 0);
        any = true;
      }
      const float weight = WeightOf(pushes[i], total);
      codec::DecodeIndices(*block, scratch.indices);
      codec::DecodeValues(*block, scratch.values);
      for (std::size_t k = 0; k < scratch.indices.size(); ++k) {
        scratch.sum[scratch.indices[k]] += weight * scratch.values[k];
        scratch.touched[scratch.indices[k]] = 1;
      }
    }
    if (!any) continue;
    scratch.indices.clear();
    scratch.values.clear();
    for (std::uint32_t i = 0; i < elements; ++i) {
      if (scratch.touched[i] == 0) continue;
      scratch.indices.push_back(static_cast<std::uint16_t>(i));
      scratch.values.push_back(scratch.sum[i]);
    }
    const auto count = static_cast<std::uint32_t>(scratch.indices.size());
    auto index = codec::ChooseIndexCodec(elements, count);
    const auto bytes_as = [&](wire::IndexCodec codec) {
      return codec::MaxEncodedBytes(elements, codec == wire::IndexCodec::Dense ? elements : count,
                                    codec, wire::ValueCodec::Fp32);
    };
    if (count == elements) {
      index = wire::IndexCodec::Dense;
      scratch.indices.clear();
    }
    const std::size_t at = merged.bytes.size();
    merged.bytes.resize(at + bytes_as(index));
    merged.bytes.resize(at + codec::EncodeBlock(number, elements, scratch.indices, scratch.values,
                                                index, wire::ValueCodec::Fp32,
                                                merged.bytes.data() + at, {}));
  }
  if (!merged.bytes.empty()) merged.blocks = ParseOwn(layout, shard, merged.bytes).blocks;
  for (const SegmentContent& content : parsed) {
    for (const codec::BlockView& block : content.blocks) {
      if (layout.block(block.header.block()).rule != TableRule::Sgd) merged.blocks.push_back(block);
    }
  }
  for (std::uint32_t table = 0; table < layout.row_table_count(); ++table) {
    MergeTable(table, layout.row_width(table), pushes, parsed, total, scratch, merged.row_bytes);
  }
  if (!merged.row_bytes.empty()) merged.rows = ParseOwn(layout, shard, merged.row_bytes).rows;
  return merged;
}

}  // namespace ps::server
