// What the routing map and the live set of a job mean for one lane of one server.
//
// A server acts only on entries that name its own process id. Maps and live
// sets come from the coordinator; numbers in them are checked all the same.
// Pure functions, any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "common/ids.h"
#include "common/messages/control.h"
#include "common/result.h"
#include "ps-server/core/chain_feeds.h"
#include "ps-server/core/shard.h"

namespace ps::server {

struct OwnShard {
  ShardId shard;
  Epoch epoch;
  std::uint32_t lineage = 0;
  Round restore_round;              // 0: blank, waits for its initial values
  std::uint64_t since = 0;          // not 0: it is here as a copy since that map
  std::optional<ChainNext> next{};  // who comes after us in the chain
};

struct LaneMap {
  std::uint64_t version = 0;
  std::vector<OwnShard> shards;    // of which we are the first; by number
  std::vector<OwnShard> copies{};  // that we keep for others; by number
};

struct LiveMembers {
  std::uint64_t version = 0;
  std::vector<Member> members;  // by incarnation
};

// The shards that `map` places on lane `lane` of the process `procid`. kInvalid if the map does not
// have `shard_count` shards or names a server that it does not list.
Result<LaneMap> LaneMapOf(const control::MapT& map, std::string_view procid, std::uint32_t lane,
                          std::uint32_t shard_count);

// kInvalid if an incarnation is named twice.
Result<LiveMembers> LiveMembersOf(const control::LiveSetT& live);

}  // namespace ps::server
