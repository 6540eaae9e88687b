#include "tests/simulation/shard_space.h"

namespace ps::simulation {
namespace {

using server::testing::operator+=;

}  // namespace

ShardSpace::ShardSpace(const LayoutView& layout) : layout_(layout), keys_(layout.shard_count()) {
  for (std::uint32_t shard = 0; shard < layout.shard_count(); ++shard) {
    for (std::uint32_t table = 0; table < layout.row_table_count(); ++table) {
      keys_[shard].push_back(server::testing::KeysOfShard(layout, shard, kRows, table * 1000));
    }
  }
}

std::uint32_t ShardSpace::Elements(std::uint32_t shard) const {
  std::uint32_t elements = BlockElements(shard);
  for (std::uint32_t table = 0; table < layout_.row_table_count(); ++table) {
    elements += static_cast<std::uint32_t>(kRows) * layout_.row_width(table);
  }
  return elements;
}

Bytes ShardSpace::Encode(std::uint32_t number, const ShardEntries& entries) const {
  Bytes payload;
  const ShardId shard(number);
  for (auto block = layout_.shard_first_block(shard); block < layout_.shard_last_block(shard);
       ++block) {
    const auto begin = static_cast<std::uint32_t>(layout_.offset_in_shard(block));
    const std::uint32_t elements = layout_.block(block).elements;
    std::vector<std::uint16_t> indices;
    std::vector<float> values;
    for (auto at = entries.lower_bound(begin); at != entries.end() && at->first < begin + elements;
         ++at) {
      indices.push_back(static_cast<std::uint16_t>(at->first - begin));
      values.push_back(at->second);
    }
    if (!indices.empty()) {
      payload += server::testing::SparseBlock(block, elements, indices, values);
    }
  }
  std::uint32_t begin = BlockElements(number);
  for (std::uint32_t table = 0; table < layout_.row_table_count(); ++table) {
    const std::uint32_t width = layout_.row_width(table);
    std::vector<std::uint64_t> keys;
    std::vector<float> values;
    for (const std::uint64_t key : Keys(number, table)) {
      const auto first = entries.lower_bound(begin);
      if (first != entries.end() && first->first < begin + width) {
        keys.push_back(key);
        values.resize(values.size() + width);
        for (auto at = first; at != entries.end() && at->first < begin + width; ++at) {
          values[values.size() - width + (at->first - begin)] = at->second;
        }
      }
      begin += width;
    }
    if (!keys.empty()) payload += server::testing::PushedRows(table, keys, values);
  }
  return payload;
}

Bytes ShardSpace::Asked(std::uint32_t shard) const {
  Bytes payload;
  for (std::uint32_t table = 0; table < layout_.row_table_count(); ++table) {
    payload += server::testing::AskedRows(table, Keys(shard, table));
  }
  return payload;
}

}  // namespace ps::simulation
