#include "tests/simulation/cluster/agent_node.h"

#include <algorithm>
#include <utility>

namespace ps::simulation {
namespace {

constexpr int kExitTemporary = 75;
constexpr std::int64_t kExitMs = 50;
constexpr std::uint32_t kGhostWindow = 4;
constexpr std::int64_t kOfferedMs = 10'000;

}  // namespace

AgentNode::AgentNode(World& world, MachineId machine, const std::string& name, std::uint32_t slots,
                     Rings& rings)
    : world_(world),
      machine_(machine),
      name_(name),
      procid_(name + ".p" + std::to_string(world.next_process++)),
      slots_(slots),
      rings_(rings),
      client_(world.schedule, world.zookeeper, machine, life_) {
  control_ = std::make_unique<SimulatedControlClient>(
      world_, machine_, [this] { return Registration(); },
      [this](control::MessageT message) { OnMessage(std::move(message)); });
  member_ =
      std::make_unique<ZkMember>(world_.schedule, client_, machine_, "/agents/" + procid_, name_);
  coordinators_ = std::make_unique<ZkWatcher>(
      world_.schedule, client_, machine_, "/coordinators",
      [this](const ZooKeeper::Children& children) { control_->SetCoordinators(children); });
}

void AgentNode::End() {
  Orphan();
  life_.reset();
}

void AgentNode::Orphan() {
  for (const auto& [number, task] : tasks_) world_.history.run(std::get<2>(task.key)).orphan = true;
  for (const auto& [key, region] : rings_) world_.history.run(std::get<2>(key)).orphan = true;
}

bool AgentNode::KillTask(std::uint64_t dice) {
  if (tasks_.empty()) return false;
  auto task = tasks_.begin();
  std::advance(task, static_cast<std::ptrdiff_t>(dice % tasks_.size()));
  OnTaskExit(task->first, -9);
  return true;
}

void AgentNode::TellOffered() const {
  const std::int64_t now = world_.schedule.now_ms();
  const ZkNode* node = world_.zookeeper.Find("/agents/" + procid_);
  if (node == nullptr || now - node->created_ms < kOfferedMs || !control_->registered() ||
      now - control_->registered_ms() < kOfferedMs) {
    return;
  }
  for (const auto& [key, region] : rings_) {
    if (!Runs(key)) world_.history.Offered(std::get<2>(key));
  }
}

std::vector<std::string> AgentNode::Describe() const {
  std::vector<std::string> lines;
  for (const auto& [number, task] : tasks_)
    lines.push_back(name_ + ": " + task.process->Describe());
  for (const auto& [key, ghost] : ghosts_) {
    lines.push_back(name_ + ": replays incarnation " + std::to_string(std::get<2>(key).value()) +
                    " up to " + std::to_string(ghost.client->stream().AckedByAll().value()) +
                    " of " + std::to_string(ghost.ring->last_clock().value()));
  }
  return lines;
}

std::optional<control::RingInfoT> AgentNode::Describe(const RingKey& key) const {
  const auto found = rings_.find(key);
  if (found == rings_.end()) return std::nullopt;
  const auto ring = worker::RetentionRing::Open(found->second->bytes());
  if (!ring.ok()) {
    world_.history.Fail("a ring that its task left cannot be opened: " + ring.error().message);
    return std::nullopt;
  }
  control::RingInfoT info;
  info.job = std::get<0>(key).value();
  info.worker = std::get<1>(key).value();
  info.incarnation = std::get<2>(key).value();
  info.generation = ring->identity().generation;
  info.last_clock = ring->last_clock().value();
  worker::RingEntryView last;
  if (ring->Find(ring->last_clock(), last)) {
    info.lease_id = last.info.lease_id;
    info.lease_done = last.info.lease_done;
  }
  return info;
}

bool AgentNode::Runs(const RingKey& key) const {
  return std::any_of(tasks_.begin(), tasks_.end(),
                     [&](const auto& task) { return task.second.key == key; });
}

// ---- the coordinator

control::MessageT AgentNode::Registration() const {
  control::RegisterAgentT registration;
  registration.name = name_;
  registration.procid = procid_;
  registration.host = name_;
  registration.slots = slots_;
  for (const auto& [number, task] : tasks_) {
    control::TaskInfoT info;
    info.task = number;
    info.job = std::get<0>(task.key).value();
    info.worker = std::get<1>(task.key).value();
    info.incarnation = std::get<2>(task.key).value();
    registration.tasks.push_back(std::make_unique<control::TaskInfoT>(info));
  }
  for (const control::TaskExitedT* exited : outbox_.Exits()) {
    control::TaskInfoT info;
    info.task = exited->task;
    info.job = exited->job;
    info.worker = exited->worker;
    info.incarnation = exited->incarnation;
    registration.tasks.push_back(std::make_unique<control::TaskInfoT>(info));
  }
  for (const auto& [key, region] : rings_) {
    if (Runs(key) || world_.Lacks(Mutant::kForgetRings)) continue;
    if (const auto info = Describe(key)) {
      registration.rings.push_back(std::make_unique<control::RingInfoT>(*info));
    }
  }
  return control::Make(std::move(registration));
}

void AgentNode::OnMessage(control::MessageT message) {
  if (message.task != 0 && message.body.type != control::Body::StopTask) {
    return ToTask(std::move(message));
  }
  switch (message.body.type) {
    case control::Body::Welcome:
      outbox_.Flush([this](const control::MessageT& kept) { return control_->Send(kept); });
      break;
    case control::Body::StartTask: OnStartTask(*message.body.AsStartTask()); break;
    case control::Body::StopTask: OnStopTask(*message.body.AsStopTask()); break;
    case control::Body::Replay: OnReplay(*message.body.AsReplay()); break;
    case control::Body::JobUpdate: {
      const auto& update = *message.body.AsJobUpdate();
      if (update.map == nullptr) break;
      for (auto& [key, ghost] : ghosts_) {
        ghost.client->SetMap(*update.map);
        ghost.reported.reset();
        Check(key);
      }
      break;
    }
    case control::Body::JobDrop: {
      const JobId job(message.body.AsJobDrop()->job);
      control::StopTaskT stop;
      stop.reason = "the job is over";
      for (auto& [number, task] : tasks_) {
        if (std::get<0>(task.key) != job) continue;
        task.drop_ring = task.ending = true;
        Stop(number, stop);
      }
      std::vector<RingKey> keys;
      for (const auto& [key, region] : rings_) {
        if (std::get<0>(key) == job && !Runs(key)) keys.push_back(key);
      }
      for (const RingKey& key : keys) DropRing(key, true);
      break;
    }
    case control::Body::DropRing: {
      const auto& drop = *message.body.AsDropRing();
      DropRing({JobId(drop.job), WorkerId(drop.worker), Incarnation(drop.incarnation)}, false);
      break;
    }
    case control::Body::Preflight: {
      const std::uint64_t request = message.body.AsPreflight()->request;
      world_.schedule.After(10 + world_.schedule.Below(500), machine_, life_, [this, request] {
        control::PreflightResultT result;
        result.request = request;
        result.ok = true;
        result.layout = control::ClonePtr(world_.layout);
        result.data = control::ClonePtr(world_.data);
        ToCoordinator(control::Make(std::move(result)));
      });
      break;
    }
    default: break;
  }
}

void AgentNode::ToTask(control::MessageT message) {
  switch (message.body.type) {
    case control::Body::TaskStart: outbox_.Settle(message.task, control::Body::TaskReady); break;
    case control::Body::LeaseGrant:
      outbox_.Settle(message.task, control::Body::LeaseRequest);
      break;
    case control::Body::RoundCommitted:
    case control::Body::RoundAbort: outbox_.Settle(message.task, control::Body::WorkerCut); break;
    default: break;
  }
  const auto found = tasks_.find(message.task);
  if (found != tasks_.end()) found->second.process->OnMessage(message);
}

void AgentNode::ToCoordinator(control::MessageT message) {
  if (control_->registered()) control_->Send(message);
  if (worker::Outbox::Keeps(message.body.type)) outbox_.Keep(std::move(message));
}

// ---- tasks

void AgentNode::OnStartTask(const control::StartTaskT& start) {
  if (tasks_.contains(start.task)) return;
  Task task;
  task.key = {JobId(start.job), WorkerId(start.worker), Incarnation(start.incarnation)};
  task.generation = start.generation;
  const auto busy = std::count_if(tasks_.begin(), tasks_.end(),
                                  [](const auto& one) { return !one.second.ending; });
  if (busy >= static_cast<std::ptrdiff_t>(slots_)) {
    return ReportExit(start.task, task, kExitTemporary);
  }
  SimulatedTask::Callbacks callbacks;
  callbacks.tell = [this, number = start.task](control::MessageT message) {
    message.task = number;
    message.leader_epoch = 0;
    ToCoordinator(std::move(message));
  };
  callbacks.exit = [this, number = start.task](int status) { OnTaskExit(number, status); };
  task.process =
      std::make_unique<SimulatedTask>(world_, machine_, start, rings_, std::move(callbacks));
  tasks_.emplace(start.task, std::move(task));
}

void AgentNode::OnTaskExit(std::uint64_t number, int status) {
  const auto found = tasks_.find(number);
  if (found == tasks_.end()) return;
  const Task task = std::move(found->second);
  tasks_.erase(found);
  ReportExit(number, task, status);
  if (task.drop_ring) DropRing(task.key, true);
}

void AgentNode::ReportExit(std::uint64_t number, const Task& task, int status) {
  control::TaskExitedT exited;
  exited.task = number;
  exited.job = std::get<0>(task.key).value();
  exited.worker = std::get<1>(task.key).value();
  exited.incarnation = std::get<2>(task.key).value();
  exited.status = status;
  if (const auto ring = Describe(task.key)) {
    exited.ring = std::make_unique<control::RingInfoT>(*ring);
  } else {
    exited.ring = std::make_unique<control::RingInfoT>();
    exited.ring->job = exited.job;
    exited.ring->worker = exited.worker;
    exited.ring->incarnation = exited.incarnation;
    exited.ring->generation = task.generation;
  }
  control::MessageT last = control::Make(std::move(exited));
  if (control_->registered() && control_->Send(last)) {
    outbox_.Forget(number);
  } else {
    outbox_.KeepExit(std::move(last));
  }
}

void AgentNode::OnStopTask(const control::StopTaskT& stop) {
  const auto found = tasks_.find(stop.task);
  if (found == tasks_.end()) return;
  found->second.ending = true;
  Stop(stop.task, stop);
}

void AgentNode::Stop(std::uint64_t number, const control::StopTaskT& stop) {
  Task& task = tasks_.at(number);
  if (!stop.kill) task.process->OnMessage(control::Make(control::StopTaskT(stop), number));
  // Who does not end by itself is killed.
  const std::int64_t wait = stop.kill ? 1 + world_.schedule.Below(kExitMs) : 1000;
  world_.schedule.After(wait, machine_, life_, [this, number] { OnTaskExit(number, -9); });
}

// ---- replays

void AgentNode::OnReplay(const control::ReplayT& replay) {
  const RingKey key{JobId(replay.job), WorkerId(replay.worker), Incarnation(replay.incarnation)};
  if (Runs(key)) return;
  if (world_.Lacks(Mutant::kReplayNothing)) {
    control::ReplayDoneT done;
    done.job = replay.job;
    done.worker = replay.worker;
    done.incarnation = replay.incarnation;
    done.map_version = replay.start->map->version;
    return ToCoordinator(control::Make(std::move(done)));
  }
  if (!ghosts_.contains(key)) {
    const auto region = rings_.find(key);
    if (region == rings_.end()) return;
    auto ring = worker::RetentionRing::Open(region->second->bytes(), region->second);
    if (!ring.ok()) return world_.history.Fail(ring.error().message);
    Ghost& ghost = ghosts_[key];
    ghost.region = region->second;
    ghost.ring.emplace(std::move(ring).value());
    SimulatedDataClient::Callbacks callbacks;
    callbacks.advanced = [this, key] { Check(key); };
    callbacks.broken = [this, key](const std::string& why) {
      world_.history.Fail("the replay of incarnation " + std::to_string(std::get<2>(key).value()) +
                          " broke: " + why);
    };
    ghost.client = std::make_unique<SimulatedDataClient>(
        world_.schedule, world_.network, world_.history, machine_, *ghost.ring, replay.start->token,
        /*ghost=*/true, kGhostWindow, world_.Lacks(Mutant::kKeepRefused), std::move(callbacks));
  }
  Ghost& ghost = ghosts_[key];
  ghost.client->SetMap(*replay.start->map);
  ghost.reported.reset();
  Check(key);
}

void AgentNode::Check(const RingKey& key) {
  const auto found = ghosts_.find(key);
  if (found == ghosts_.end() || found->second.client == nullptr) return;
  Ghost& ghost = found->second;
  if (!ghost.client->stream().AllAcked()) return;
  const std::uint64_t version = ghost.client->stream().map_version();
  if (version == 0 || ghost.reported == version) return;
  ghost.reported = version;
  control::ReplayDoneT done;
  done.job = std::get<0>(key).value();
  done.worker = std::get<1>(key).value();
  done.incarnation = std::get<2>(key).value();
  done.last_clock = ghost.ring->last_clock().value();
  done.map_version = version;
  ToCoordinator(control::Make(std::move(done)));
}

void AgentNode::DropRing(const RingKey& key, bool job_over) {
  for (auto& [number, task] : tasks_) {
    if (task.key == key) {
      task.drop_ring = true;
      return;
    }
  }
  const auto region = rings_.find(key);
  if (region == rings_.end()) return;
  const auto info = Describe(key);
  if (!job_over && info && !world_.history.over() &&
      info->generation == world_.history.generation()) {
    world_.history.CheckReleased(std::get<2>(key), Clock(info->last_clock));
  }
  ghosts_.erase(key);
  rings_.erase(key);
}

}  // namespace ps::simulation
