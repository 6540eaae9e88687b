// Placement of a job's shards, and what happens when servers are lost.
#include <algorithm>
#include <limits>

#include "common/messages/wire.h"
#include "coordinator/core/job.h"
#include "coordinator/core/job_round.h"
#include "coordinator/core/placement.h"

namespace ps::coordinator {
namespace {

// wire::Code::Lost, as servers report it.
constexpr std::uint8_t kLost = static_cast<std::uint8_t>(wire::Code::Lost);

std::vector<PlacementServer> Alive(const Members& servers) {
  std::vector<PlacementServer> alive;
  for (const auto& [procid, server] : servers) {
    if (server.alive() && !server.lanes.empty()) {
      alive.push_back(PlacementServer{server.name, procid, server.lanes, server.host, server.rack,
                                      server.unsteady || server.duty != Duty::kFull});
    }
  }
  std::sort(alive.begin(), alive.end(), [](const PlacementServer& a, const PlacementServer& b) {
    return std::tie(a.name, a.procid) < std::tie(b.name, b.procid);
  });
  return alive;
}

bool IsAlive(const Members& servers, const std::string& procid) {
  const auto at = servers.find(procid);
  return at != servers.end() && at->second.alive();
}

// Those that may get a backup.
std::vector<PlacementServer> Able(const Members& members, const std::vector<std::string>& avoided) {
  std::vector<PlacementServer> servers = Alive(members);
  std::erase_if(servers, [&](const PlacementServer& server) {
    return members.at(server.procid).duty != Duty::kFull ||
           std::find(avoided.begin(), avoided.end(), server.procid) != avoided.end();
  });
  return servers;
}

std::size_t Backups(const JobDefinition& definition) {
  return static_cast<std::size_t>(definition.spec.resources.replicas);
}

// Present in ZooKeeper but not yet registered with a new leader: not gone.
bool IsGone(const Members& servers, const std::string& procid) {
  const auto at = servers.find(procid);
  return at == servers.end() || !at->second.present;
}

bool MayHold(const Members& servers, const std::string& procid) {
  const auto at = servers.find(procid);
  return at != servers.end() && at->second.may_hold();
}

}  // namespace

std::set<std::string> Job::FirstServers() const {
  std::set<std::string> servers;
  for (const auto& shard : map_.shards) servers.insert(map_.servers[shard->server]->procid);
  return servers;
}

std::set<std::string> Job::JobServers() const {
  std::set<std::string> servers = FirstServers();
  for (const auto& shard : map_.shards) {
    for (const auto& backup : shard->backups) {
      servers.insert(map_.servers[backup->server]->procid);
    }
  }
  return servers;
}

bool Job::Unplaced() const {
  return std::any_of(map_.shards.begin(), map_.shards.end(),
                     [](const auto& entry) { return entry->lane == kNoLane; });
}

bool Job::Homeless() const {
  if (!chains_.lost.empty() || Unplaced()) return true;
  const auto servers = FirstServers();
  return std::any_of(servers.begin(), servers.end(),
                     [&](const std::string& procid) { return IsGone(cluster_.servers(), procid); });
}

bool Job::AllHomeless() const {
  const auto servers = FirstServers();
  return std::all_of(servers.begin(), servers.end(),
                     [&](const std::string& procid) { return IsGone(cluster_.servers(), procid); });
}

bool Job::ShardsReady() const {
  if (map_.shards.empty()) return false;
  for (std::uint32_t shard = 0; shard < map_.shards.size(); ++shard) {
    const auto& entry = *map_.shards[shard];
    if (!IsAlive(cluster_.servers(), map_.servers[entry.server]->procid)) return false;
    const auto at = shard_states_.find(shard);
    if (at == shard_states_.end() || at->second.epoch != entry.epoch || at->second.state != 0) {
      return false;
    }
  }
  return true;
}

// Incarnations whose pushes since the last checkpoint nobody can replay.
bool Job::Unaccounted() const {
  return std::any_of(state_.dead.begin(), state_.dead.end(),
                     [](const DeadWorker& dead) { return dead.agent.empty() && !dead.covered; });
}

Job::RestoreSource Job::Restore() const {
  if (const CommittedCheckpoint* const newest = state_.NewestCheckpoint()) {
    return {newest->round, state_.id, newest->directory, &newest->places};
  }
  if (state_.start_round != 0) {
    return {Round(state_.start_round), JobId(state_.start_job), state_.start_directory,
            &state_.start_places};
  }
  return {};
}

void Job::PlaceShards() {
  auto alive = Alive(cluster_.servers());
  const bool first = map_.shards.empty();
  if (alive.empty()) {
    const std::string reason = "waits for a ps-server; none is registered";
    if (state_.reason != reason) {
      SetPhase(first ? state_.phase : Phase::kRecovering, reason);
      Event("waiting", reason);
    }
    return;
  }
  if (!first && AllHomeless() && Unaccounted() && LiveCount() == 0) {
    const std::uint64_t now = cluster_.now_ms();
    if (rewind_at_ms_ == 0) {
      rewind_at_ms_ = now + timeouts_.rewind_grace_ms;
      Event("waiting", "all servers and workers are gone; waits up to " +
                           std::to_string(timeouts_.rewind_grace_ms / 1000) +
                           " s for agents with retained pushes");
    }
    // Whoever comes back has what is given up.
    if (now >= rewind_at_ms_) GoBack("all servers and workers were lost");
    return;
  }
  rewind_at_ms_ = 0;
  const std::vector<std::uint32_t> shards = ShardsToPlace();
  if (shards.empty()) return;  // all that are gone are awaited
  if (const std::string missing = MissingParts(shards); !missing.empty()) {
    AbortRound("shards are lost", timeouts_.round_retry_ms);
    if (state_.reason != missing) {
      SetPhase(first ? state_.phase : Phase::kRecovering, missing);
      Event("waiting", missing);
    }
    return;
  }
  if (!first && Unaccounted()) {
    for (const DeadWorker& dead : state_.dead) {
      if (!dead.agent.empty() || dead.covered) continue;
      Event("lost", "pushes of worker " + std::to_string(dead.worker.value()) + " (incarnation " +
                        std::to_string(dead.incarnation.value()) +
                        ") since the last checkpoint are lost on the restored shards: its agent "
                        "is gone");
    }
  }
  AbortRound("shards move", timeouts_.round_retry_ms);
  const RestoreSource restore = Restore();
  // A copy that is not there can only be made anew.
  for (const std::uint32_t shard : chains_.lost) {
    map_.shards[shard]->lane = kNoLane;
  }
  chains_.lost.clear();
  chains_.moving.clear();
  // A new leader acts before all who are there have registered: they keep what they have, as do
  // those that may come back.
  for (const auto& server : map_.servers) {
    const std::string& procid = server->procid;
    if (IsAlive(cluster_.servers(), procid) || !MayHold(cluster_.servers(), procid)) continue;
    alive.push_back(PlacementServer{
        .name = server->name, .procid = procid, .lanes = server->lanes, .takes = false});
  }
  PlacementResult placed = Place(map_, alive, definition_.shards, restore.round);
  map_ = std::move(placed.map);
  AddBackups(map_, Able(cluster_.servers(), AvoidedServers()), Backups(definition_), map_.version);
  for (const ShardId shard : placed.moved) shard_states_.erase(shard.value());
  for (DeadWorker& dead : state_.dead) dead.replayed = false;
  dirty_.map = true;
  dirty_.state = true;
  const std::string from =
      restore.round.value() == 0
          ? std::string("initial values") +
                (definition_.spec.checkpoint.load.empty() ? "" : " and what the job loads")
          : "checkpoint " + std::to_string(restore.round.value()) + " (" + restore.directory + ")";
  Event("placed", std::to_string(placed.moved.size()) + " shards on " +
                      std::to_string(FirstServers().size()) + " servers, from " + from);
  if (state_.reason.rfind("waits for", 0) == 0) SetPhase(state_.phase, "shards are placed");
  if (Backups(definition_) > 0) TellWhole();
  for (const std::string& server : JobServers()) SendJobStart(server);
  if (!first) BroadcastUpdate(true, true);
}

// Nobody can replay what the newest checkpoint lacks, or it must not be replayed.
void Job::Rewind(const std::string& why) {
  const CommittedCheckpoint* const newest = state_.NewestCheckpoint();
  ForgetSinceCheckpoint("the job goes back to its newest checkpoint");
  Event("rewind", newest != nullptr
                      ? why + ": goes on from checkpoint " + std::to_string(newest->round.value())
                      : why + " before the first checkpoint: starts again");
  if (OffCluster()) return;
  SetPhase(Phase::kPlacing, "starts again: " + why);
  PlaceShards();
}

void Job::ForgetSinceCheckpoint(const std::string& why) {
  rewind_at_ms_ = 0;
  ++state_.generation;
  for (const DeadWorker& dead : state_.dead) {
    if (!dead.agent.empty()) SendDropRing(dead.agent, dead.worker, dead.incarnation);
  }
  state_.dead.clear();
  TakeLossScales();
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    WorkerSlot& worker = state_.workers[slot];
    slots_[slot].ready = false;
    slots_[slot].drained = false;
    if (worker.task == 0) continue;
    if (slots_[slot].progress) AddUp(*slots_[slot].progress);
    slots_[slot].progress.reset();
    SendStopTask(worker.agent, worker.task, why, true);
    if (worker.live) {
      SendDropRing(worker.agent, WorkerId(static_cast<std::uint32_t>(slot)), worker.incarnation);
    }
    worker.task = 0;
    worker.agent.clear();
    worker.live = false;
  }
  const CommittedCheckpoint* const newest = state_.NewestCheckpoint();
  state_.leases.Reset(newest != nullptr ? newest->remaining
                                        : std::vector<Range>{{0, state_.leases.total()}});
  // Each goes on where its own pushes end: with staleness 0 the images hold what is ahead of
  // others.
  state_.first_clocks.assign(state_.first_clocks.size(), newest != nullptr ? newest->step : 0);
  if (newest != nullptr) {
    for (const auto& [slot, clock] : newest->clocks) {
      if (slot < state_.first_clocks.size()) state_.first_clocks[slot] = clock;
    }
  }
  ++state_.live_version;
  dirty_.state = true;
}

bool Job::GoBackBefore(Round damaged, const std::string& message) {
  const bool runs = state_.phase == Phase::kPlacing || state_.phase == Phase::kRunning ||
                    state_.phase == Phase::kRecovering || state_.phase == Phase::kDraining;
  const CommittedCheckpoint* const newest = state_.NewestCheckpoint();
  if (!runs || newest == nullptr || newest->round != damaged) return false;
  const auto bad = std::find_if(state_.checkpoints.begin(), state_.checkpoints.end(),
                                [&](const auto& one) { return one.round == damaged; });
  bad->damaged = true;
  if (state_.NewestCheckpoint() == nullptr) {
    bad->damaged = false;  // it is all there is, and somebody may mend it
    return false;
  }
  Event("checkpoint damaged",
        "checkpoint " + std::to_string(damaged.value()) + " cannot be restored: " + message);
  GoBack("checkpoint " + std::to_string(damaged.value()) + " is damaged");
  return true;
}

void Job::GoBack(const std::string& why) {
  AbortRound("the job goes back to an earlier checkpoint", timeouts_.round_retry_ms);
  ForgetPlaces();
  Rewind(why);
}

// Also for the next leader, if they cannot be placed at once.
void Job::ForgetPlaces() {
  for (const auto& shard : map_.shards) {
    shard->lane = kNoLane;
    shard->backups.clear();
  }
  dirty_.map = true;
}

// ---- chains

std::vector<std::string> Job::AvoidedServers() const {
  std::vector<std::string> avoided;
  for (const auto& [procid, until_ms] : chains_.avoid_until_ms) {
    if (cluster_.now_ms() < until_ms) avoided.push_back(procid);
  }
  return avoided;
}

bool Job::Leaves(ShardId shard, const std::string& server) const {
  const auto at = cluster_.servers().find(server);
  if (at == cluster_.servers().end() || !at->second.alive()) return false;
  if (at->second.leaves()) return true;
  const auto moving = chains_.moving.find(shard);
  return moving != chains_.moving.end() && moving->second == server;
}

bool Job::MayShed(ShardId shard, const control::MapT& map) const {
  const control::ShardEntryT& entry = *map.shards[shard.value()];
  std::size_t able = 0;
  for (const auto& [procid, server] : cluster_.servers()) {
    able += server.alive() && !server.lanes.empty() && server.duty != Duty::kDraining ? 1 : 0;
  }
  const auto stays = [&](std::uint16_t server) {
    const std::string& procid = map.servers[server]->procid;
    return IsAlive(cluster_.servers(), procid) && !Leaves(shard, procid);
  };
  std::size_t staying = stays(entry.server) ? 1 : 0;
  for (const auto& backup : entry.backups) {
    staying += backup->synced && stays(backup->server) ? 1 : 0;
  }
  return staying > 0 && staying >= std::min(Backups(definition_) + 1, able);
}

std::size_t Job::CopiesOn(const std::string& server) const {
  if (OffCluster()) return 0;
  std::size_t copies = 0;
  for (const auto& entry : map_.shards) {
    copies += map_.servers[entry->server]->procid == server ? 1 : 0;
    for (const auto& backup : entry->backups) {
      copies += map_.servers[backup->server]->procid == server ? 1 : 0;
    }
  }
  return copies;
}

nlohmann::json Job::Rebalance(bool dry_run) {
  const auto moves = CopiesToMove(map_, Able(cluster_.servers(), {}));
  nlohmann::json list = nlohmann::json::array();
  for (const auto& [shard, from] : moves) {
    const auto at = cluster_.servers().find(from);
    list.push_back({{"shard", shard.value()},
                    {"from", at != cluster_.servers().end() ? at->second.name : from}});
  }
  if (!dry_run && !moves.empty() && !over()) {
    chains_.rebalances = true;
    Event("rebalance", std::to_string(moves.size()) + " copies of shards are to move");
  }
  return list;
}

// Moves some copies after the others, until there is nothing to gain.
void Job::ContinueRebalance() {
  std::erase_if(chains_.moving, [&](const auto& move) {
    const control::ShardEntryT& entry = *map_.shards[move.first.value()];
    const auto is_there = [&](std::uint16_t server) {
      return map_.servers[server]->procid == move.second;
    };
    return !IsAlive(cluster_.servers(), move.second) ||
           (!is_there(entry.server) &&
            std::none_of(entry.backups.begin(), entry.backups.end(),
                         [&](const auto& backup) { return is_there(backup->server); }));
  });
  if (!chains_.rebalances || !chains_.moving.empty() || round_ || state_.phase != Phase::kRunning ||
      ReplicatedShards() < map_.shards.size()) {
    return;
  }
  chains_.moving = CopiesToMove(map_, Able(cluster_.servers(), AvoidedServers()));
  if (!chains_.moving.empty()) return;
  chains_.rebalances = false;
  Event("rebalanced", "no server has two copies of shards more than another" +
                          After("rebalance", "", "it began"));
}

// Whether MendChains() may find something to do: it is asked often.
bool Job::ChainsNeedMending() const {
  if (!chains_.lost.empty() || !chains_.stalled.empty()) return true;
  if (!round_ && !chains_.synced.empty()) return true;
  if (!round_ && !chains_.moving.empty()) return true;
  std::vector<bool> gone;
  for (const auto& server : map_.servers) {
    const auto at = cluster_.servers().find(server->procid);
    if (!round_ && at != cluster_.servers().end() && at->second.leaves()) return true;
    gone.push_back(IsGone(cluster_.servers(), server->procid));
  }
  std::size_t alive = 0;
  for (const auto& [procid, server] : cluster_.servers()) alive += server.alive() ? 1 : 0;
  const std::size_t backups =
      std::min(Backups(definition_), alive - std::min<std::size_t>(1, alive));
  return std::any_of(map_.shards.begin(), map_.shards.end(), [&](const auto& entry) {
    return gone[entry->server] || (!round_ && entry->backups.size() < backups) ||
           std::any_of(entry->backups.begin(), entry->backups.end(),
                       [&](const auto& backup) { return gone[backup->server]; });
  });
}

void Job::MendChains() {
  if (OffCluster() || map_.shards.empty() || !cluster_.servers_known() || !ChainsNeedMending())
    return;
  control::MapT next = control::Clone(map_);
  next.version = map_.version + 1;
  const auto is_gone = [&](const std::string& procid) {
    return IsGone(cluster_.servers(), procid);
  };
  // What can wait does not abort a round.
  const auto is_handed_over = [&](ShardId shard) {
    const std::string& first = map_.servers[map_.shards[shard.value()]->server]->procid;
    return !round_ && Leaves(shard, first) && MayShed(shard, map_);
  };
  std::vector<ShardId> promoted = PromoteBackups(next, is_gone, [&](ShardId shard) {
    return chains_.lost.contains(shard.value()) || is_handed_over(shard);
  });
  std::size_t handed_over = 0;
  for (const ShardId shard : promoted) {
    const std::string& first = map_.servers[map_.shards[shard.value()]->server]->procid;
    handed_over += chains_.lost.erase(shard.value()) == 0 && !is_gone(first) ? 1 : 0;
  }
  // Who is the first of a chain now has said so far nothing as such: it is asked.
  std::swap(map_, next);
  AskSurvivors();
  std::size_t left = 0;  // with servers that drain
  std::size_t dropped = DropBackups(map_, [&](ShardId shard, const control::BackupEntryT& backup) {
    if (!MayDrop(shard, backup)) return false;
    left += Leaves(shard, map_.servers[backup.server]->procid) ? 1 : 0;
    return true;
  });
  const bool urgent = !promoted.empty() || dropped > 0;
  bool changed = urgent;
  // What can wait does not abort a round.
  if (urgent || !round_) {
    changed = TakeSynced(map_) || changed;
    if (!Homeless()) {
      changed = AddBackups(map_, Able(cluster_.servers(), AvoidedServers()), Backups(definition_),
                           map_.version,
                           [&](ShardId shard, const std::string& server) {
                             return Leaves(shard, server);
                           }) > 0 ||
                changed;
    }
  }
  if (!changed) {
    std::swap(map_, next);
    return;
  }
  if (!promoted.empty()) {
    std::set<std::string> from;
    std::set<std::string> to;
    for (const ShardId shard : promoted) {
      from.insert(next.servers[next.shards[shard.value()]->server]->name);
      to.insert(map_.servers[map_.shards[shard.value()]->server]->name);
      shard_states_.erase(shard.value());
    }
    const std::string moved = std::to_string(promoted.size()) + " shards of " +
                              std::to_string(from.size()) +
                              (from.size() == 1 ? " server" : " servers");
    const std::string where =
        " on " + std::to_string(to.size()) + (to.size() == 1 ? " server" : " servers");
    if (handed_over == promoted.size()) {
      Event("moved", moved + " have been handed over and are now" + where);
    } else {
      Event("promoted", moved + " go on at their backups" + where + "; none is restored");
    }
  }
  dropped -= left;
  if (dropped > 0) {
    Event("backup lost", std::to_string(dropped) +
                             (dropped == 1 ? " backup of a shard is gone" : " backups are gone"));
  }
  AbortRound("copies of shards change", timeouts_.round_retry_ms);
  CompactServers(map_);
  chains_.stalled.clear();
  dirty_.map = true;
  dirty_.state = true;
  // Those that are not in the map any more hear of it, too: they may believe that they are.
  std::set<std::string> before;
  std::swap(map_, next);
  before = JobServers();
  std::swap(map_, next);
  for (const std::string& server : JobServers()) {
    if (!before.contains(server)) SendJobStart(server);
  }
  BroadcastUpdate(true, true);
  for (const std::string& server : before) {
    if (JobServers().contains(server) || !IsAlive(cluster_.servers(), server)) continue;
    control::JobUpdateT update;
    update.job = state_.id.value();
    update.map = control::ClonePtr(map_);
    cluster_.Send(server, control::Make(std::move(update)));
  }
  TellWhole();
}

// A chain gets shorter only once the first of it is known to be there still, after the backup was
// gone: if both are gone, what the backup had may be all that there is.
bool Job::MayDrop(ShardId shard, const control::BackupEntryT& backup) {
  const std::string& procid = map_.servers[backup.server]->procid;
  if (chains_.stalled.contains({shard.value(), procid, backup.since})) {
    chains_.avoid_until_ms[procid] = cluster_.now_ms() + timeouts_.backup_avoid_ms;
    return true;
  }
  if (Leaves(shard, procid)) {
    if (round_ || !MayShed(shard, map_)) return false;
  } else if (!IsGone(cluster_.servers(), procid)) {
    return false;
  }
  if (!backup.synced) return true;
  const std::string& first = map_.servers[map_.shards[shard.value()]->server]->procid;
  const auto asked = chains_.gone.find(procid);
  const auto heard = chains_.heard.find(first);
  return asked != chains_.gone.end() && heard != chains_.heard.end() &&
         heard->second >= asked->second && heard->second <= chains_.last_asked;
}

void Job::AskSurvivors() {
  std::set<std::string> gone;
  std::set<std::string> firsts;
  for (std::uint32_t i = 0; i < map_.shards.size(); ++i) {
    const auto& entry = map_.shards[i];
    for (const auto& backup : entry->backups) {
      const std::string& procid = map_.servers[backup->server]->procid;
      const bool goes = IsGone(cluster_.servers(), procid) ||
                        (Leaves(ShardId(i), procid) && MayShed(ShardId(i), map_));
      if (!backup->synced || !goes) continue;
      gone.insert(procid);
      firsts.insert(map_.servers[entry->server]->procid);
    }
  }
  bool news = false;
  for (const std::string& procid : gone) news = news || !chains_.gone.contains(procid);
  std::erase_if(chains_.gone, [&](const auto& entry) { return !gone.contains(entry.first); });
  if (gone.empty() || (!news && cluster_.now_ms() < chains_.ask_again_ms)) return;
  // Larger than what any leader before has asked, as far as clocks agree; and it is the answer to
  // our own questions only that counts.
  chains_.last_asked = std::max(chains_.last_asked + 1, cluster_.now_ms() << 8);
  if (chains_.first_asked == 0) chains_.first_asked = chains_.last_asked;
  chains_.ask_again_ms = cluster_.now_ms() + 500;
  for (const std::string& procid : gone) {
    chains_.gone.try_emplace(procid, chains_.last_asked);
  }
  for (const std::string& first : firsts) {
    control::ReportWantedT wanted;
    wanted.job = state_.id.value();
    wanted.asked = chains_.last_asked;
    cluster_.Send(first, control::Make(std::move(wanted)));
  }
}

// Whether the one before it in the chain, which it is fed by, has said so: what a former one said
// is of no use.
bool Job::SyncedNow(const control::MapT& map, std::uint32_t shard, std::size_t place) const {
  const control::ShardEntryT& entry = *map.shards[shard];
  const control::BackupEntryT& backup = *entry.backups[place];
  const std::uint16_t feeder = place == 0 ? entry.server : entry.backups[place - 1]->server;
  const auto said = chains_.synced.find({shard, map.servers[backup.server]->procid, backup.since});
  return said != chains_.synced.end() && said->second == map.servers[feeder]->procid;
}

// What has come in sync becomes part of its chain, in order: each after the one it is fed by.
bool Job::TakeSynced(control::MapT& map) {
  if (chains_.synced.empty()) return false;
  const std::uint64_t now = cluster_.now_ms();
  bool all = true;
  for (std::uint32_t shard = 0; shard < map.shards.size(); ++shard) {
    const auto& backups = map.shards[shard]->backups;
    for (std::size_t place = 0; place < backups.size(); ++place) {
      all = all && (backups[place]->synced || SyncedNow(map, shard, place));
    }
  }
  if (chains_.synced_ms == 0) chains_.synced_ms = now;
  if (!all && now < chains_.synced_ms + timeouts_.synced_wait_ms) return false;
  bool changed = false;
  for (std::uint32_t shard = 0; shard < map.shards.size(); ++shard) {
    const auto& backups = map.shards[shard]->backups;
    for (std::size_t place = 0; place < backups.size(); ++place) {
      if (backups[place]->synced) continue;
      if (!SyncedNow(map, shard, place)) break;
      backups[place]->synced = true;
      changed = true;
    }
  }
  chains_.synced.clear();
  chains_.synced_ms = 0;
  return changed;
}

void Job::OnChainReport(const std::string& procid, const control::ServerReportT& report) {
  if (chains_.first_asked != 0 && report.asked >= chains_.first_asked) {
    chains_.heard[procid] = report.asked;
  }
  for (const auto& feed : report.feeds) {
    if (feed->shard >= map_.shards.size()) continue;
    const auto& entry = *map_.shards[feed->shard];
    if (entry.epoch != feed->epoch) continue;
    for (std::size_t i = 0; i < entry.backups.size(); ++i) {
      const auto& backup = *entry.backups[i];
      const control::ServerEntryT& server = *map_.servers[backup.server];
      // What is said of who was there before it, since the same map, may come late.
      if (backup.since != feed->since || backup.lane >= server.lanes.size() ||
          server.lanes[backup.lane] != feed->to) {
        continue;
      }
      // Only who feeds it knows.
      const std::uint16_t feeder = i == 0 ? entry.server : entry.backups[i - 1]->server;
      if (map_.servers[feeder]->procid != procid) continue;
      const Chains::Copy copy(feed->shard, server.procid, feed->since);
      if (feed->synced && !backup.synced) chains_.synced[copy] = procid;
      if (feed->stalled_ms >= timeouts_.feed_stalled_ms) {
        chains_.stalled.insert(copy);
      } else {
        chains_.stalled.erase(copy);
      }
    }
  }
  for (const auto& shard : report.shards) {
    if (shard->shard >= map_.shards.size()) continue;
    const auto& entry = *map_.shards[shard->shard];
    if (shard->state == kLost && entry.since != 0 && entry.epoch == shard->epoch &&
        map_.servers[entry.server]->procid == procid) {
      chains_.lost.insert(shard->shard);
    }
  }
  if (!chains_.stalled.empty() || !chains_.gone.empty()) MendChains();
}

std::size_t Job::ReplicatedShards() const {
  return static_cast<std::size_t>(
      std::count_if(map_.shards.begin(), map_.shards.end(), [&](const auto& entry) {
        const auto synced = std::count_if(entry->backups.begin(), entry->backups.end(),
                                          [](const auto& backup) { return backup->synced; });
        return static_cast<std::size_t>(synced) >= Backups(definition_);
      }));
}

void Job::TellWhole() {
  const std::size_t with = ReplicatedShards();
  const bool whole = with == map_.shards.size();
  if (whole == chains_.whole) return;
  const bool first = !chains_.whole.has_value();
  chains_.whole = whole;
  const std::string backups =
      std::to_string(Backups(definition_)) + (Backups(definition_) == 1 ? " backup" : " backups");
  if (whole) {
    return Event("replicated",
                 "every shard has " + backups + After("not replicated", "", "some had less"));
  }
  std::size_t servers = 0;
  for (const auto& [procid, server] : cluster_.servers()) servers += server.alive() ? 1 : 0;
  // That the backups of a new job are made is no news.
  if (first && servers > Backups(definition_)) return;
  Event("not replicated",
        std::to_string(map_.shards.size() - with) + " of " + std::to_string(map_.shards.size()) +
            " shards have less than " + backups +
            (servers <= Backups(definition_)
                 ? ": there are not more than " + std::to_string(servers) + " servers"
                 : "; new ones are made"));
}

}  // namespace ps::coordinator
