#include "ps-server/core/held_pushes.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"

namespace ps::server {
namespace {

std::vector<codec::BlockView> ParseOwn(const LayoutView& layout, ShardId shard,
                                       std::span<const std::byte> bytes) {
  std::vector<codec::BlockView> blocks;
  const Status parsed = codec::ParseSegment(
      bytes,
      [&](std::uint32_t block) -> std::uint32_t {
        return block >= layout.shard_first_block(shard) && block < layout.shard_last_block(shard)
                   ? layout.block(block).elements
                   : 0;
      },
      blocks);
  PS_CHECK(parsed.ok(), shard, parsed.error().message);
  return blocks;
}

}  // namespace

std::size_t HeldPushes::CountOf(Incarnation incarnation) const {
  return static_cast<std::size_t>(std::count_if(
      pushes_.begin(), pushes_.end(),
      [incarnation](const auto& push) { return std::get<2>(push.first) == incarnation; }));
}

void HeldPushes::Add(WorkerId worker, Incarnation incarnation, Clock clock, std::uint32_t samples,
                     std::span<const codec::BlockView> blocks) {
  Content content;
  content.samples = samples;
  for (const codec::BlockView& block : blocks) {
    const auto* header = reinterpret_cast<const std::byte*>(&block.header);
    content.bytes.insert(content.bytes.end(), header, header + sizeof(block.header));
    content.bytes.insert(content.bytes.end(), block.index_bytes.begin(), block.index_bytes.end());
    content.bytes.insert(content.bytes.end(), block.value_bytes.begin(), block.value_bytes.end());
  }
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
  std::vector<std::vector<codec::BlockView>> parsed;
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
          parsed[i].begin(), parsed[i].end(),
          [number](const codec::BlockView& view) { return view.header.block() == number; });
      if (block == parsed[i].end()) continue;
      if (!any) {
        scratch.sum.assign(elements, 0);
        scratch.touched.assign(elements, 0);
        any = true;
      }
      const auto weight = static_cast<float>(pushes[i].samples / total);
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
  if (!merged.bytes.empty()) merged.blocks = ParseOwn(layout, shard, merged.bytes);
  for (const auto& blocks : parsed) {
    for (const codec::BlockView& block : blocks) {
      if (layout.block(block.header.block()).rule != TableRule::Sgd) merged.blocks.push_back(block);
    }
  }
  return merged;
}

}  // namespace ps::server
