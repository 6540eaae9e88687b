// Which server holds which shard, and on which of its lanes.
//
// Shards without a living server go to the servers that hold the fewest, in runs
// of neighbours; those that have one stay where they are. Deterministic: the same
// input gives the same map.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/messages/control.h"

namespace ps::coordinator {

// A server that may hold shards.
struct PlacementServer {
  std::string name;
  std::string procid;
  std::vector<std::string> lanes;
};

struct PlacementResult {
  control::MapT map;
  std::vector<ShardId> moved;  // assigned anew, with epoch + 1 and lineage + 1
};

// The map after `map` when only `alive` remain. Moved shards get `restore_round`. A map without
// shards is filled with `shards` new ones of epoch 1. `alive` must not be empty.
PlacementResult Place(const control::MapT& map, const std::vector<PlacementServer>& alive,
                      std::uint32_t shards, Round restore_round);

}  // namespace ps::coordinator
