// Placement of a job's shards, and what happens when servers are lost.
#include <algorithm>

#include "coordinator/core/job.h"
#include "coordinator/core/job_round.h"
#include "coordinator/core/placement.h"

namespace ps::coordinator {
namespace {

std::vector<PlacementServer> Alive(const Members& servers) {
  std::vector<PlacementServer> alive;
  for (const auto& [procid, server] : servers) {
    if (server.alive() && !server.lanes.empty()) {
      alive.push_back(PlacementServer{server.name, procid, server.lanes});
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

// Present in ZooKeeper but not yet registered with a new leader: not gone.
bool IsGone(const Members& servers, const std::string& procid) {
  const auto at = servers.find(procid);
  return at == servers.end() || !at->second.present;
}

}  // namespace

std::set<std::string> Job::JobServers() const {
  std::set<std::string> servers;
  for (const auto& shard : map_.shards) servers.insert(map_.servers[shard->server]->procid);
  return servers;
}

bool Job::Homeless() const {
  const auto servers = JobServers();
  return std::any_of(servers.begin(), servers.end(),
                     [&](const std::string& procid) { return IsGone(cluster_.servers(), procid); });
}

bool Job::AllHomeless() const {
  const auto servers = JobServers();
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
  if (!state_.checkpoints.empty()) {
    const CommittedCheckpoint& newest = state_.checkpoints.back();
    return {newest.round, state_.id, newest.directory};
  }
  if (state_.start_round != 0) {
    return {Round(state_.start_round), JobId(state_.start_job), state_.start_directory};
  }
  return {};
}

void Job::PlaceShards() {
  const auto alive = Alive(cluster_.servers());
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
    if (now >= rewind_at_ms_) Rewind();
    return;
  }
  rewind_at_ms_ = 0;
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
  PlacementResult placed = Place(map_, alive, definition_.shards, restore.round);
  map_ = std::move(placed.map);
  for (const ShardId shard : placed.moved) shard_states_.erase(shard.value());
  for (DeadWorker& dead : state_.dead) dead.replayed = false;
  dirty_.map = true;
  dirty_.state = true;
  const std::string from =
      restore.round.value() == 0
          ? "initial values"
          : "checkpoint " + std::to_string(restore.round.value()) + " (" + restore.directory + ")";
  Event("placed", std::to_string(placed.moved.size()) + " shards on " +
                      std::to_string(JobServers().size()) + " servers, from " + from);
  for (const std::string& server : JobServers()) SendJobStart(server);
  if (!first) BroadcastUpdate(true, true);
}

// Everything that could replay is gone: the whole job goes back to its newest checkpoint.
void Job::Rewind() {
  rewind_at_ms_ = 0;
  ++state_.generation;
  for (const DeadWorker& dead : state_.dead) {
    if (dead.agent.empty()) continue;
    control::DropRingT drop;
    drop.job = state_.id.value();
    drop.worker = dead.worker.value();
    drop.incarnation = dead.incarnation.value();
    cluster_.Send(dead.agent, control::Make(std::move(drop)));
  }
  state_.dead.clear();
  for (WorkerSlot& worker : state_.workers) {
    if (worker.task == 0) continue;  // none is live; those that start belong to the old generation
    control::StopTaskT stop;
    stop.task = worker.task;
    stop.reason = "the job goes back to its newest checkpoint";
    stop.kill = true;
    cluster_.Send(worker.agent, control::Make(std::move(stop)));
    worker.task = 0;
    worker.agent.clear();
  }
  for (Slot& slot : slots_) slot.ready = false;
  const bool from_checkpoint = !state_.checkpoints.empty();
  state_.leases.Reset(from_checkpoint ? state_.committed_remaining
                                      : std::vector<Range>{{0, state_.leases.total()}});
  for (auto& first_clock : state_.first_clocks) {
    first_clock = from_checkpoint ? state_.checkpoints.back().step : 0;
  }
  ++state_.live_version;
  Event("rewind", from_checkpoint
                      ? "all servers and workers were lost: goes on from checkpoint " +
                            std::to_string(state_.checkpoints.back().round.value())
                      : "all servers and workers were lost before the first checkpoint: starts "
                        "again");
  SetPhase(Phase::kPlacing, "starts again after all was lost");
  PlaceShards();
}

void Job::SendJobStart(const std::string& server) {
  cluster_.Send(server, control::Make(JobStart()));
}

}  // namespace ps::coordinator
