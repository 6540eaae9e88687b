// What a job says to its servers, agents and tasks.
#include <set>
#include <utility>

#include "checkpoint/round_path.h"
#include "coordinator/core/job.h"

namespace ps::coordinator {

using control::Make;

control::LiveSetT Job::LiveSet() const {
  control::LiveSetT live;
  live.version = state_.live_version;
  for (std::size_t slot = 0; slot < state_.workers.size(); ++slot) {
    if (!state_.workers[slot].live) continue;
    auto worker = std::make_unique<control::LiveWorkerT>();
    worker->worker = static_cast<std::uint32_t>(slot);
    worker->incarnation = state_.workers[slot].incarnation.value();
    worker->first_clock = state_.first_clocks[slot];
    worker->state = control::WorkerState::Live;
    live.workers.push_back(std::move(worker));
  }
  for (const DeadWorker& dead : state_.dead) {
    if (dead.agent.empty()) continue;
    auto worker = std::make_unique<control::LiveWorkerT>();
    worker->worker = dead.worker.value();
    worker->incarnation = dead.incarnation.value();
    worker->first_clock = dead.first_clock.value();
    worker->state = control::WorkerState::Draining;
    live.workers.push_back(std::move(worker));
  }
  return live;
}

control::JobStartT Job::JobStart() const {
  control::JobStartT start;
  start.job = state_.id.value();
  start.name = state_.name;
  start.generation = state_.generation;
  start.spec_json = definition_.spec_json;
  start.layout = control::ClonePtr(definition_.layout);
  start.data = control::ClonePtr(definition_.data);
  start.map = control::ClonePtr(map_);
  start.live = control::ClonePtr(LiveSet());
  const RestoreSource restore = Restore();
  start.restore = restore.directory;
  start.restore_job = restore.job.value();
  start.sources = Sources();
  const CommittedCheckpoint* const newest = state_.NewestCheckpoint();
  start.committed_round = newest == nullptr ? 0 : newest->round.value();
  start.checkpoint_dir = checkpoint::JobFolder(state_.id);
  start.token = state_.origin.token;
  return start;
}

void Job::SendJobStart(const std::string& server) { cluster_.Send(server, Make(JobStart())); }

void Job::SendJobDrop(const std::string& server) {
  control::JobDropT drop;
  drop.job = state_.id.value();
  cluster_.Send(server, Make(std::move(drop)));
}

void Job::SendDropRing(const std::string& agent, WorkerId worker, Incarnation incarnation) {
  control::DropRingT drop;
  drop.job = state_.id.value();
  drop.worker = worker.value();
  drop.incarnation = incarnation.value();
  cluster_.Send(agent, Make(std::move(drop)));
}

void Job::SendStopTask(const std::string& agent, std::uint64_t task, const std::string& reason,
                       bool kill) {
  control::StopTaskT stop;
  stop.task = task;
  stop.reason = reason;
  stop.kill = kill;
  cluster_.Send(agent, Make(std::move(stop)));
}

void Job::SendToTask(std::size_t slot, control::MessageT message) {
  message.task = state_.workers[slot].task;
  cluster_.Send(state_.workers[slot].agent, std::move(message));
}

void Job::BroadcastUpdate(bool with_map, bool with_live) {
  const RestoreSource restore = Restore();
  const auto update = [&] {
    control::JobUpdateT message;
    message.job = state_.id.value();
    if (with_map) message.map = control::ClonePtr(map_);
    if (with_live) message.live = control::ClonePtr(LiveSet());
    message.restore = restore.directory;
    message.restore_job = restore.job.value();
    if (with_map) message.sources = Sources();
    return message;
  };
  for (const std::string& server : JobServers()) cluster_.Send(server, Make(update()));
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (state_.workers[slot].live) SendToTask(slot, Make(update()));
  }
  std::set<std::string> ghosts;
  for (const DeadWorker& dead : state_.dead) {
    if (!dead.agent.empty()) ghosts.insert(dead.agent);
  }
  for (const std::string& agent : ghosts) cluster_.Send(agent, Make(update()));
}

}  // namespace ps::coordinator
