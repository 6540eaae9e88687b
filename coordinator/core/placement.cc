#include "coordinator/core/placement.h"

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

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

// The server's place in the map, which gets it if it does not list it yet.
std::uint16_t IndexOf(control::MapT& map, const control::ServerEntryT& server) {
  for (std::size_t i = 0; i < map.servers.size(); ++i) {
    if (map.servers[i]->procid == server.procid) return static_cast<std::uint16_t>(i);
  }
  map.servers.push_back(control::ClonePtr(server));
  return static_cast<std::uint16_t>(map.servers.size() - 1);
}

}  // namespace

PlacementResult Place(const control::MapT& map, const std::vector<PlacementServer>& alive,
                      std::uint32_t shards, Round restore_round) {
  PS_CHECK(std::any_of(alive.begin(), alive.end(), [](const auto& server) { return server.takes; }),
           "placement without a server");
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
      entry->since = old.since;
      const std::string& procid = map.servers[old.server]->procid;
      for (std::size_t i = 0; i < alive.size(); ++i) {
        if (alive[i].procid == procid && old.lane < alive[i].lanes.size()) {
          entry->server = static_cast<std::uint16_t>(i);
          ++load[i];
          ++lane_load[i][old.lane];
          for (const auto& backup : old.backups) {
            auto kept = control::ClonePtr(*backup);
            kept->server = IndexOf(next, *map.servers[backup->server]);
            entry->backups.push_back(std::move(kept));
          }
        }
      }
    }
    next.shards.push_back(std::move(entry));
  }
  std::vector<std::size_t> homeless;
  for (std::size_t shard = 0; shard < count; ++shard) {
    if (next.shards[shard]->server == kNowhere) homeless.push_back(shard);
  }
  std::vector<std::size_t> burden = load;
  for (std::size_t i = 0; i < alive.size(); ++i) {
    if (alive[i].last_resort) burden[i] += count;
    // Above all that the others can come to have.
    if (!alive[i].takes) burden[i] += 3 * count;
  }
  const std::vector<std::size_t> servers = FillUp(burden, homeless.size());
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
      entry.since = 0;
    }
  }
  for (const std::size_t shard : homeless) {
    result.moved.push_back(ShardId(static_cast<std::uint32_t>(shard)));
  }
  return result;
}

std::vector<ShardId> PromoteBackups(control::MapT& map, const ServerFn& is_gone,
                                    const std::function<bool(ShardId)>& is_lost) {
  std::vector<ShardId> promoted;
  for (std::uint32_t shard = 0; shard < map.shards.size(); ++shard) {
    control::ShardEntryT& entry = *map.shards[shard];
    if (!is_gone(map.servers[entry.server]->procid) && !is_lost(ShardId(shard))) continue;
    const auto heir =
        std::find_if(entry.backups.begin(), entry.backups.end(), [&](const auto& backup) {
          return backup->synced && !is_gone(map.servers[backup->server]->procid);
        });
    if (heir == entry.backups.end()) continue;
    entry.server = (*heir)->server;
    entry.lane = (*heir)->lane;
    entry.since = (*heir)->since;
    entry.epoch += 1;
    entry.backups.erase(entry.backups.begin(), heir + 1);
    promoted.push_back(ShardId(shard));
  }
  return promoted;
}

std::size_t DropBackups(control::MapT& map, const BackupFn& goes) {
  std::set<const control::BackupEntryT*> dropped;
  for (std::uint32_t shard = 0; shard < map.shards.size(); ++shard) {
    for (const auto& backup : map.shards[shard]->backups) {
      if (goes(ShardId(shard), *backup)) dropped.insert(backup.get());
    }
  }
  for (const auto& entry : map.shards) {
    std::erase_if(entry->backups,
                  [&](const auto& backup) { return dropped.contains(backup.get()); });
  }
  return dropped.size();
}

std::size_t AddBackups(control::MapT& map, const std::vector<PlacementServer>& able,
                       std::size_t backups, std::uint64_t since, const CopyFn& leaves) {
  // Copies of any kind that each lane has, as a server's load is what it is for.
  std::vector<std::vector<std::size_t>> load(able.size());
  const auto find = [&](const std::string& procid) {
    const auto at = std::find_if(able.begin(), able.end(), [&](const PlacementServer& server) {
      return server.procid == procid;
    });
    return static_cast<std::size_t>(at - able.begin());
  };
  for (std::size_t i = 0; i < able.size(); ++i) load[i].assign(able[i].lanes.size(), 0);
  const auto count = [&](std::uint16_t server, std::uint16_t lane) {
    const std::size_t i = find(map.servers[server]->procid);
    if (i < able.size() && lane < load[i].size()) ++load[i][lane];
  };
  for (const auto& entry : map.shards) {
    count(entry->server, entry->lane);
    for (const auto& backup : entry->backups) count(backup->server, backup->lane);
  }
  const auto total = [&](std::size_t server) {
    std::size_t sum = 0;
    for (const std::size_t lane : load[server]) sum += lane;
    return sum;
  };
  // Of each shard.
  std::vector<std::size_t> wanted(map.shards.size(), backups);
  for (std::uint32_t shard = 0; leaves && shard < map.shards.size(); ++shard) {
    const control::ShardEntryT& entry = *map.shards[shard];
    wanted[shard] += leaves(ShardId(shard), map.servers[entry.server]->procid) ? 1 : 0;
    for (const auto& backup : entry.backups) {
      wanted[shard] += leaves(ShardId(shard), map.servers[backup->server]->procid) ? 1 : 0;
    }
  }
  const std::size_t longest = wanted.empty() ? 0 : *std::max_element(wanted.begin(), wanted.end());
  std::size_t added = 0;
  for (std::size_t place = 0; place < longest; ++place) {
    // Where a lane's shards have been given theirs, by the chain that these had before.
    struct Place {
      std::size_t server;
      std::size_t lane;
    };
    std::map<std::vector<std::pair<std::uint16_t, std::uint16_t>>, std::optional<Place>> chosen;
    for (std::size_t shard = 0; shard < map.shards.size(); ++shard) {
      const auto& entry = map.shards[shard];
      if (entry->backups.size() != place || place >= wanted[shard]) continue;
      std::vector<std::pair<std::uint16_t, std::uint16_t>> chain = {{entry->server, entry->lane}};
      for (const auto& backup : entry->backups) chain.emplace_back(backup->server, backup->lane);
      auto known = chosen.find(chain);
      if (known == chosen.end()) {
        std::optional<std::tuple<bool, bool, bool, std::size_t, std::size_t, std::size_t>> best;
        // Of equals the next one around: so the last servers find others than themselves, too.
        const std::size_t from = find(map.servers[chain.back().first]->procid);
        for (std::size_t i = 0; i < able.size(); ++i) {
          bool holds = false;
          bool same_host = false;
          bool same_rack = false;
          for (const auto& [server, lane] : chain) {
            holds = holds || map.servers[server]->procid == able[i].procid;
            const std::size_t other = find(map.servers[server]->procid);
            if (other == able.size()) continue;
            same_host = same_host || able[other].host == able[i].host;
            same_rack = same_rack || able[other].rack == able[i].rack;
          }
          if (holds) continue;
          const std::size_t around = (i + 2 * able.size() - from) % able.size();
          const auto worth =
              std::make_tuple(able[i].last_resort, same_host, same_rack, total(i), around, i);
          if (!best.has_value() || worth < *best) best = worth;
        }
        known = chosen.emplace(chain, std::nullopt).first;
        if (best.has_value()) {
          const std::size_t server = std::get<5>(*best);
          const std::vector<std::size_t>& lanes = load[server];
          const auto least = std::min_element(lanes.begin(), lanes.end());
          known->second = Place{server, static_cast<std::size_t>(least - lanes.begin())};
        }
      }
      if (!known->second.has_value()) continue;
      const auto [server, lane] = *known->second;
      control::ServerEntryT described;
      described.name = able[server].name;
      described.procid = able[server].procid;
      described.lanes = able[server].lanes;
      auto backup = std::make_unique<control::BackupEntryT>();
      backup->server = IndexOf(map, described);
      backup->lane = static_cast<std::uint16_t>(lane);
      backup->since = since;
      entry->backups.push_back(std::move(backup));
      ++load[server][lane];
      ++added;
    }
  }
  return added;
}

std::map<ShardId, std::string> CopiesToMove(const control::MapT& map,
                                            const std::vector<PlacementServer>& able) {
  std::map<std::string, std::size_t> copies;
  for (const PlacementServer& server : able) copies[server.procid] = 0;
  const auto each = [&](const control::ShardEntryT& entry, const auto& act) {
    act(map.servers[entry.server]->procid);
    for (const auto& backup : entry.backups) act(map.servers[backup->server]->procid);
  };
  for (const auto& entry : map.shards) {
    each(*entry, [&](const std::string& procid) {
      if (const auto at = copies.find(procid); at != copies.end()) ++at->second;
    });
  }
  std::map<ShardId, std::string> moves;
  for (std::uint32_t shard = 0; shard < map.shards.size(); ++shard) {
    std::vector<std::string> holders;
    each(*map.shards[shard], [&](const std::string& procid) { holders.push_back(procid); });
    // From the holder with the most to the other server with the fewest, if it helps.
    const std::string* from = nullptr;
    for (const std::string& holder : holders) {
      if (!copies.contains(holder)) continue;
      if (from == nullptr || copies.at(holder) > copies.at(*from)) from = &holder;
    }
    const std::string* to = nullptr;
    for (const auto& [procid, count] : copies) {
      if (std::find(holders.begin(), holders.end(), procid) != holders.end()) continue;
      if (to == nullptr || count < copies.at(*to)) to = &procid;
    }
    if (from == nullptr || to == nullptr || copies.at(*from) < copies.at(*to) + 2) continue;
    moves[ShardId(shard)] = *from;
    --copies.at(*from);
    ++copies.at(*to);
  }
  return moves;
}

void CompactServers(control::MapT& map) {
  control::MapT used;
  for (const auto& entry : map.shards) {
    entry->server = IndexOf(used, *map.servers[entry->server]);
    for (const auto& backup : entry->backups) {
      backup->server = IndexOf(used, *map.servers[backup->server]);
    }
  }
  map.servers = std::move(used.servers);
}

}  // namespace ps::coordinator
