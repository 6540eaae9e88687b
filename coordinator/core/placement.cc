#include "coordinator/core/placement.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "common/check.h"

namespace ps::coordinator {
namespace {

// The bin of each of `items` new items, so that all bins end as even as can be. Neighbours go into
// the same bin: what a worker pushes to a lane is then one piece of memory, sent without a copy.
std::vector<std::size_t> FillUp(const std::vector<std::size_t>& load, std::size_t items) {
  std::vector<std::size_t> more(load.size(), 0);
  for (std::size_t item = 0; item < items; ++item) {
    std::size_t least = 0;
    for (std::size_t bin = 1; bin < load.size(); ++bin) {
      if (load[bin] + more[bin] < load[least] + more[least]) least = bin;
    }
    ++more[least];
  }
  std::vector<std::size_t> bins;
  for (std::size_t bin = 0; bin < load.size(); ++bin) bins.insert(bins.end(), more[bin], bin);
  return bins;
}

}  // namespace

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
  std::vector<std::size_t> homeless;
  for (std::size_t shard = 0; shard < count; ++shard) {
    if (next.shards[shard]->server == kNowhere) homeless.push_back(shard);
  }
  const std::vector<std::size_t> servers = FillUp(load, homeless.size());
  std::vector<std::vector<std::size_t>> of_server(alive.size());
  for (std::size_t i = 0; i < homeless.size(); ++i) of_server[servers[i]].push_back(homeless[i]);
  for (std::size_t server = 0; server < alive.size(); ++server) {
    const std::vector<std::size_t> lanes = FillUp(lane_load[server], of_server[server].size());
    for (std::size_t i = 0; i < lanes.size(); ++i) {
      control::ShardEntryT& entry = *next.shards[of_server[server][i]];
      entry.server = static_cast<std::uint16_t>(server);
      entry.lane = static_cast<std::uint16_t>(lanes[i]);
      entry.epoch += 1;
      entry.lineage += 1;
      entry.restore_round = restore_round.value();
    }
  }
  for (const std::size_t shard : homeless) {
    result.moved.push_back(ShardId(static_cast<std::uint32_t>(shard)));
  }
  return result;
}

}  // namespace ps::coordinator
