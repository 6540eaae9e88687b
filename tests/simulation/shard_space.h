// The elements of the shards of a job in a simulation: those of the blocks of a shard, then those
// of some of its rows, numbered as if they were one space.
//
// Pure; one for a cluster, read by all in it.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "common/layout/layout.h"
#include "tests/ps-server/core/server_testing.h"
#include "tests/simulation/simulated_network.h"

namespace ps::simulation {

// One shard's part of a push: values by element of the shard, increasing.
using ShardEntries = std::map<std::uint32_t, float>;

class ShardSpace {
 public:
  // Rows of each table and shard that pushes may have.
  static constexpr std::size_t kRows = 5;

  explicit ShardSpace(const LayoutView& layout);

  const LayoutView& layout() const { return layout_; }
  std::uint32_t BlockElements(std::uint32_t shard) const {
    return static_cast<std::uint32_t>(layout_.shard_elements(ShardId(shard)));
  }
  std::uint32_t Elements(std::uint32_t shard) const;
  const std::vector<std::uint64_t>& Keys(std::uint32_t shard, std::uint32_t table) const {
    return keys_[shard][table];
  }

  // The segment of a push.
  Bytes Encode(std::uint32_t shard, const ShardEntries& entries) const;
  // The segment of a pull: all rows.
  Bytes Asked(std::uint32_t shard) const;

 private:
  const LayoutView& layout_;
  std::vector<std::vector<std::vector<std::uint64_t>>> keys_;  // by shard and table
};

}  // namespace ps::simulation
