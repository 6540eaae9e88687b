#include "coordinator/core/placement.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "common/check.h"

namespace ps::coordinator {

PlacementResult Place(const control::MapT& map, const std::vector<PlacementServer>& alive,
                      std::uint32_t shards, Round restore_round) {
  PS_CHECK(!alive.empty(), "placement without a server");
  PlacementResult result;
  control::MapT& next = result.map;
  next.version = map.version + 1;
  for (const PlacementServer& server : alive) {
    auto entry = std::make_unique<control::ServerEntryT>();
    entry->name = server.name;
    entry->procid = server.procid;
    entry->lanes = server.lanes;
    next.servers.push_back(std::move(entry));
  }
  constexpr std::uint16_t kNowhere = std::numeric_limits<std::uint16_t>::max();
  const std::size_t count = map.shards.empty() ? shards : map.shards.size();
  std::vector<std::size_t> load(alive.size(), 0);
  std::vector<std::vector<std::size_t>> lane_load(alive.size());
  for (std::size_t i = 0; i < alive.size(); ++i) lane_load[i].assign(alive[i].lanes.size(), 0);

  for (std::size_t shard = 0; shard < count; ++shard) {
    auto entry = std::make_unique<control::ShardEntryT>();
    entry->server = kNowhere;
    if (shard < map.shards.size()) {
      const control::ShardEntryT& old = *map.shards[shard];
      entry->lane = old.lane;
      entry->epoch = old.epoch;
      entry->lineage = old.lineage;
      entry->restore_round = old.restore_round;
      const std::string& procid = map.servers[old.server]->procid;
      for (std::size_t i = 0; i < alive.size(); ++i) {
        if (alive[i].procid == procid && old.lane < alive[i].lanes.size()) {
          entry->server = static_cast<std::uint16_t>(i);
          ++load[i];
          ++lane_load[i][old.lane];
        }
      }
    }
    next.shards.push_back(std::move(entry));
  }
  for (std::size_t shard = 0; shard < count; ++shard) {
    control::ShardEntryT& entry = *next.shards[shard];
    if (entry.server != kNowhere) continue;
    const auto server =
        static_cast<std::size_t>(std::min_element(load.begin(), load.end()) - load.begin());
    auto& lanes = lane_load[server];
    const auto lane =
        static_cast<std::size_t>(std::min_element(lanes.begin(), lanes.end()) - lanes.begin());
    ++load[server];
    ++lanes[lane];
    entry.server = static_cast<std::uint16_t>(server);
    entry.lane = static_cast<std::uint16_t>(lane);
    entry.epoch += 1;
    entry.lineage += 1;
    entry.restore_round = restore_round.value();
    result.moved.push_back(ShardId(static_cast<std::uint32_t>(shard)));
  }
  return result;
}

}  // namespace ps::coordinator
