#include "ps-server/core/lane_map.h"

#include <algorithm>
#include <string>

namespace ps::server {

Result<LaneMap> LaneMapOf(const control::MapT& map, std::string_view procid, std::uint32_t lane,
                          std::uint32_t shard_count) {
  if (map.shards.size() != shard_count) {
    return Error{ErrorCode::kInvalid, "map " + std::to_string(map.version) + " has " +
                                          std::to_string(map.shards.size()) + " shards, the job " +
                                          std::to_string(shard_count)};
  }
  LaneMap own;
  own.version = map.version;
  const auto knows = [&map](std::uint16_t server, std::uint16_t on) {
    return server < map.servers.size() && map.servers[server] != nullptr &&
           on < map.servers[server]->lanes.size();
  };
  for (std::uint32_t number = 0; number < shard_count; ++number) {
    const auto& entry = map.shards[number];
    bool known = entry != nullptr && entry->server < map.servers.size() &&
                 map.servers[entry->server] != nullptr;
    for (std::size_t i = 0; known && i < entry->backups.size(); ++i) {
      const auto& backup = entry->backups[i];
      known = backup != nullptr && backup->since != 0 && knows(backup->server, backup->lane);
    }
    if (!known) {
      return Error{ErrorCode::kInvalid, "map " + std::to_string(map.version) + ": shard " +
                                            std::to_string(number) +
                                            " is on a server that the map does not list"};
    }
    const auto here = [&](std::uint16_t server, std::uint16_t on) {
      return on == lane && map.servers[server]->procid == procid;
    };
    OwnShard shard{ShardId(number), Epoch(entry->epoch),
                   entry->lineage,  Round(entry->restore_round),
                   entry->since,    std::nullopt};
    // Our place in the chain: 0 is the first.
    std::size_t place = here(entry->server, entry->lane) ? 0 : entry->backups.size() + 1;
    for (std::size_t i = 0; i < entry->backups.size() && place != 0; ++i) {
      if (!here(entry->backups[i]->server, entry->backups[i]->lane)) continue;
      place = i + 1;
      shard.since = entry->backups[i]->since;
      break;
    }
    if (place > entry->backups.size()) continue;
    if (place < entry->backups.size()) {
      const control::BackupEntryT& next = *entry->backups[place];
      shard.next = ChainNext{map.servers[next.server]->lanes[next.lane], next.since, next.synced};
    }
    (place == 0 ? own.shards : own.copies).push_back(std::move(shard));
  }
  return own;
}

Result<LiveMembers> LiveMembersOf(const control::LiveSetT& live) {
  LiveMembers result;
  result.version = live.version;
  for (const auto& worker : live.workers) {
    if (worker == nullptr) continue;
    Member member;
    member.worker = WorkerId(worker->worker);
    member.incarnation = Incarnation(worker->incarnation);
    member.first_clock = Clock(worker->first_clock);
    member.draining = worker->state != control::WorkerState::Live;
    result.members.push_back(member);
  }
  std::sort(
      result.members.begin(), result.members.end(),
      [](const Member& left, const Member& right) { return left.incarnation < right.incarnation; });
  const auto twice = std::adjacent_find(result.members.begin(), result.members.end(),
                                        [](const Member& left, const Member& right) {
                                          return left.incarnation == right.incarnation;
                                        });
  if (twice != result.members.end()) {
    return Error{ErrorCode::kInvalid, "live set " + std::to_string(live.version) +
                                          " names incarnation " +
                                          std::to_string(twice->incarnation.value()) + " twice"};
  }
  return result;
}

}  // namespace ps::server
