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
  for (std::uint32_t number = 0; number < shard_count; ++number) {
    const auto& entry = map.shards[number];
    if (entry == nullptr || entry->server >= map.servers.size() ||
        map.servers[entry->server] == nullptr) {
      return Error{ErrorCode::kInvalid, "map " + std::to_string(map.version) + ": shard " +
                                            std::to_string(number) +
                                            " is on a server that the map does not list"};
    }
    if (entry->lane != lane || map.servers[entry->server]->procid != procid) continue;
    own.shards.push_back(OwnShard{ShardId(number), Epoch(entry->epoch), entry->lineage,
                                  Round(entry->restore_round)});
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
