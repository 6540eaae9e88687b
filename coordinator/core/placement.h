// Which server holds which shard, and on which of its lanes.
//
// Shards without a living server go to the servers that hold the fewest, in runs
// of neighbours; those that have one stay where they are. Deterministic: the same
// input gives the same map.
//
// A shard may have backups, in the order of its chain: those that are synced hold all
// that anybody was told of it, each at least what the next one holds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
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
  std::string host{};
  std::string rack{};        // empty: as good as one of that name
  bool last_resort = false;  // gets what no other can take
  bool takes = true;         // false: keeps what it has and gets nothing
};

// The lane of a shard that is on none: its server counts for nothing.
inline constexpr std::uint16_t kNoLane = std::numeric_limits<std::uint16_t>::max();

struct PlacementResult {
  control::MapT map;
  std::vector<ShardId> moved;  // assigned anew, with epoch + 1 and lineage + 1
};

// The map after `map` when only `alive` remain. Moved shards get `restore_round`. A map without
// shards is filled with `shards` new ones of epoch 1. One of `alive` at least takes shards.
PlacementResult Place(const control::MapT& map, const std::vector<PlacementServer>& alive,
                      std::uint32_t shards, Round restore_round);

// ---- backups; these change `map` but not its version

using ServerFn = std::function<bool(const std::string& procid)>;
using CopyFn = std::function<bool(ShardId shard, const std::string& procid)>;
using BackupFn = std::function<bool(ShardId shard, const control::BackupEntryT& backup)>;

// Where the shard's first server `is_gone`, the first synced backup that is not takes its place,
// with epoch + 1 and what comes after it in the chain. Returns these shards. A backup that is not
// synced takes nobody's place.
std::vector<ShardId> PromoteBackups(control::MapT& map, const ServerFn& is_gone,
                                    const std::function<bool(ShardId)>& is_lost);

// Returns how many went. `goes` is asked about all of them before the first one goes.
std::size_t DropBackups(control::MapT& map, const BackupFn& goes);

// Gives every shard that has fewer than `backups` new ones, not synced, members since map `since`,
// on servers of `able` that have no other copy of it: no last resorts, of other hosts, of other
// racks, then where the fewest copies are. All shards of a lane that want one get it on the same
// lane, so that their changes travel together. Returns how many were added. A copy that `leaves`
// (if given) does not count.
std::size_t AddBackups(control::MapT& map, const std::vector<PlacementServer>& able,
                       std::size_t backups, std::uint64_t since, const CopyFn& leaves = {});

// Copies to move from servers with more of them than the others, so that in the end none has two
// more than another. By shard and the server that it leaves; at most one of a shard at a time.
// Servers that are not in `able` do not count.
std::map<ShardId, std::string> CopiesToMove(const control::MapT& map,
                                            const std::vector<PlacementServer>& able);

// Forgets servers that nothing is on.
void CompactServers(control::MapT& map);

}  // namespace ps::coordinator
