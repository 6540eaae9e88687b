#include "tests/simulation/cluster/task_node.h"

#include <algorithm>
#include <utility>

#include "checkpoint/image.h"

namespace ps::simulation {
namespace {

constexpr std::size_t kRingBytes = std::size_t{48} << 10;
constexpr std::size_t kLeasesQueued = 2;
constexpr std::int64_t kLeaseRequestMs = 2000;
constexpr std::int64_t kLeaseProgressMs = 300;
constexpr std::int64_t kProgressMs = 500;
constexpr std::int64_t kCheckpointReminderMs = 10'000;
constexpr std::int64_t kTickMs = 50;
constexpr std::int64_t kIdleBeforeHoldMs = 200;
constexpr std::int64_t kLongWaitMs = 100;
constexpr std::int64_t kLoadMs = 1500;

}  // namespace

SimulatedTask::SimulatedTask(World& world, MachineId machine, const control::StartTaskT& start,
                             Rings& rings, Callbacks callbacks)
    : world_(world),
      machine_(machine),
      job_(start.job),
      worker_(start.worker),
      incarnation_(start.incarnation),
      rings_(rings),
      callbacks_(std::move(callbacks)),
      bulk_(world.spec.training.staleness == 0),
      pace_ms_(5 + world.schedule.Below(world.schedule.Dice(4) == 0 ? 200 : 40)),
      window_(static_cast<std::uint32_t>(1 + world.schedule.Dice(8))) {
  world_.schedule.After(20 + world_.schedule.Below(kLoadMs), machine_, life_, [this] {
    control::TaskReadyT ready;
    ready.layout_fingerprint = world_.layout.fingerprint;
    ready.data_fingerprint = world_.data.fingerprint;
    ready.records = world_.data.records;
    Tell(std::move(ready));
  });
  world_.schedule.Every(kTickMs, machine_, life_, [this] { Tick(); });
}

std::string SimulatedTask::Describe() const {
  static constexpr const char* kNames[] = {"waits for its start",
                                           "waits for work",
                                           "waits for its first pull",
                                           "waits for a pull",
                                           "computes",
                                           "waits for room",
                                           "waits for verdicts",
                                           "pulls to drain",
                                           "waits for room to drain",
                                           "waits for verdicts to drain",
                                           "pulls to evaluate",
                                           "has ended"};
  std::string text = "worker " + std::to_string(worker_.value()) + " (incarnation " +
                     std::to_string(incarnation_.value()) + ") " + kNames[static_cast<int>(doing_)];
  if (client_ != nullptr) {
    text += " at clock " + std::to_string(clock_.value()) + ", acknowledged up to " +
            std::to_string(client_->stream().AckedByAll().value()) + ", map " +
            std::to_string(client_->stream().map_version());
  }
  return text;
}

void SimulatedTask::Exit(int status) {
  if (doing_ == Doing::kEnded) return;
  doing_ = Doing::kEnded;
  // Not from inside whatever calls this: the task is destroyed there.
  world_.schedule.After(1 + world_.schedule.Below(20), machine_, life_,
                        [this, status] { callbacks_.exit(status); });
}

void SimulatedTask::Fatal(const std::string& why) {
  control::TaskFailedT failed;
  failed.message = why;
  Tell(std::move(failed));
  Exit(1);
}

void SimulatedTask::OnMessage(const control::MessageT& message) {
  if (doing_ == Doing::kEnded) return;
  if (message.leader_epoch != 0) {
    if (message.leader_epoch < leader_epoch_) return;
    leader_epoch_ = message.leader_epoch;
  }
  switch (message.body.type) {
    case control::Body::TaskStart:
      if (client_ != nullptr) {
        client_->SetMap(*message.body.AsTaskStart()->start->map);
      } else {
        Begin(*message.body.AsTaskStart());
      }
      break;
    case control::Body::JobUpdate:
      if (client_ != nullptr && message.body.AsJobUpdate()->map != nullptr) {
        client_->SetMap(*message.body.AsJobUpdate()->map);
      }
      break;
    case control::Body::LeaseGrant: OnLeaseGrant(*message.body.AsLeaseGrant()); break;
    case control::Body::RoundBegin:
      if (client_ != nullptr) client_->BeginRound(message.body.AsRoundBegin()->round);
      break;
    case control::Body::RoundAbort:
      if (client_ != nullptr) client_->AbortRound(message.body.AsRoundAbort()->round);
      break;
    case control::Body::RoundCommitted: OnCommitted(*message.body.AsRoundCommitted()); break;
    case control::Body::Drain: OnDrain(); break;
    case control::Body::Evaluate: {
      const auto& evaluate = *message.body.AsEvaluate();
      if (evaluating_ == evaluate.round && evaluate.round != 0) break;
      evaluating_ = evaluate.round;
      evaluate_ = evaluate;
      break;
    }
    case control::Body::StopTask: stop_ = message.body.AsStopTask()->reason; break;
    default: break;
  }
  Advance();
}

void SimulatedTask::Begin(const control::TaskStartT& start) {
  worker::RingIdentity identity;
  identity.job = job_;
  identity.worker = worker_;
  identity.incarnation = incarnation_;
  identity.generation = start.start->generation;
  identity.shards = static_cast<std::uint32_t>(start.start->map->shards.size());
  identity.first_clock = Clock(start.first_clock);
  region_ = std::make_shared<RingRegion>(kRingBytes);
  rings_[{job_, worker_, incarnation_}] = region_;
  ring_.emplace(worker::RetentionRing::Create(region_->bytes(), identity, region_).value());
  clock_ = identity.first_clock;
  residual_.assign(identity.shards, Units());
  world_.history.Began(incarnation_, clock_);
  SimulatedDataClient::Callbacks callbacks;
  callbacks.returned = [this](ShardId shard, Units units) {
    residual_[shard.value()].count += units.count;
    residual_[shard.value()].clocks += units.clocks;
    returned_ = true;
  };
  callbacks.round_cut = [this](std::uint64_t round, Clock clock) { OnCut(round, clock); };
  callbacks.advanced = [this] { Advance(); };
  callbacks.pulled = [this] { Advance(); };
  callbacks.broken = [this](const std::string& why) {
    world_.history.Fail("the stream of incarnation " + std::to_string(incarnation_.value()) +
                        " broke: " + why);
    Fatal(why);
  };
  client_ = std::make_unique<SimulatedDataClient>(
      world_.schedule, world_.network, world_.history, machine_, *ring_, start.start->token,
      /*ghost=*/false, window_, world_.Lacks(Mutant::kKeepRefused), std::move(callbacks));
  client_->SetMap(*start.start->map);
  client_->StartPull(Clock(0), /*snapshot=*/true);
  doing_ = Doing::kFirstPull;
  AskForLeases();
}

// ---- the trainer

void SimulatedTask::Tick() {
  if (client_ == nullptr || doing_ == Doing::kEnded) return;
  const std::int64_t now = world_.schedule.now_ms();
  AskForLeases();
  if (now >= next_lease_progress_ms_) SendLeaseProgress();
  if (now >= next_progress_ms_) SendProgress();
  Advance();
}

Clock SimulatedTask::Needed(Clock clock) const {
  const auto staleness = world_.spec.training.staleness;
  if (staleness < 0 || clock.value() < static_cast<std::uint64_t>(staleness)) return Clock(0);
  return Clock(clock.value() - static_cast<std::uint64_t>(staleness));
}

bool SimulatedTask::AnyResidual() const {
  return std::any_of(residual_.begin(), residual_.end(),
                     [](const Units& units) { return !units.empty(); });
}

void SimulatedTask::SetIdle(bool idle) {
  idle_ = idle;
  UpdateHold();
}
void SimulatedTask::UpdateHold() {
  if (client_ != nullptr) client_->SetHold(hold_asked_ || idle_);
}

void SimulatedTask::Advance() {
  if (advancing_ || client_ == nullptr) return;
  advancing_ = true;
  for (bool more = true; more && doing_ != Doing::kEnded;) {
    more = false;
    if (stop_) {
      Exit(0);
      break;
    }
    switch (doing_) {
      case Doing::kLoading:
      case Doing::kCompute:
      case Doing::kEnded: break;
      case Doing::kFirstPull:
        if (!client_->pulled()) break;
        client_->Adopt();
        doing_ = Doing::kIdle;
        idle_since_ms_ = world_.schedule.now_ms();
        more = true;
        break;
      case Doing::kIdle: more = TakeWork(); break;
      case Doing::kWaitPull:
        if (!client_->pulled()) break;
        pull_pending_ = false;
        client_->Adopt();
        if (!bulk_) {
          client_->StartPull(Needed(Clock(clock_.value() + 1)), false);
          pull_pending_ = true;
        }
        doing_ = Doing::kCompute;
        world_.schedule.After(1 + world_.schedule.Below(2 * pace_ms_), machine_, life_, [this] {
          if (doing_ != Doing::kCompute) return;
          doing_ = Doing::kWaitRoom;
          Advance();
        });
        break;
      case Doing::kWaitRoom: {
        if (!client_->stream().HasRoom()) break;
        const auto batch = static_cast<std::uint64_t>(world_.spec.training.batch_size);
        const std::uint64_t begin = lease_.begin + lease_done_;
        const std::uint64_t end = std::min(begin + batch, lease_.end);
        if (!PushStep(static_cast<std::uint32_t>(end - begin), begin, end)) {
          WantCheckpoint();
          break;
        }
        if (lease_.begin + lease_done_ < lease_.end) {
          BeginStep();
        } else {
          doing_ = Doing::kIdle;
          idle_since_ms_ = world_.schedule.now_ms();
        }
        more = true;
        break;
      }
      case Doing::kFlushVerdicts:
        if (!client_->stream().AllAcked()) break;
        doing_ = Doing::kIdle;
        idle_since_ms_ = world_.schedule.now_ms();
        more = true;
        break;
      case Doing::kDrainPull:
        if (!client_->pulled()) break;
        client_->Adopt();
        returned_ = false;
        doing_ = AnyResidual() ? Doing::kDrainRoom : Doing::kDrainVerdicts;
        more = true;
        break;
      case Doing::kDrainRoom:
        if (!client_->stream().HasRoom()) break;
        if (!PushStep(static_cast<std::uint32_t>(world_.spec.training.batch_size), 0, 0)) {
          WantCheckpoint();
          break;
        }
        doing_ = Doing::kDrainVerdicts;
        more = true;
        break;
      case Doing::kDrainVerdicts:
        if (!client_->stream().AllAcked()) break;
        if (returned_) {
          client_->StartPull(Clock(0), false);
          doing_ = Doing::kDrainPull;
          more = true;
          break;
        }
        if (bulk_) UpdateHold();
        SendLeaseProgress();
        SendProgress();
        {
          control::DrainedT drained;
          drained.clock = clock_.value();
          Tell(std::move(drained));
        }
        drained_at_ = clock_;
        draining_ = false;
        doing_ = Doing::kIdle;
        idle_since_ms_ = world_.schedule.now_ms();
        more = true;
        break;
      case Doing::kEvaluatePull:
        if (!client_->pulled()) break;
        Evaluate();
        doing_ = Doing::kIdle;
        idle_since_ms_ = world_.schedule.now_ms();
        more = true;
        break;
    }
  }
  advancing_ = false;
}

bool SimulatedTask::TakeWork() {
  const std::int64_t waited = world_.schedule.now_ms() - idle_since_ms_;
  const bool some = !leases_.empty() || FlushDue() || drain_ || evaluate_.has_value();
  if (!some) {
    if (waited >= kIdleBeforeHoldMs && !idle_ && (!bulk_ || flushed_)) SetIdle(true);
    return false;
  }
  if (idle_) SetIdle(false);
  if (waited > kLongWaitMs) pull_pending_ = false;
  if (!leases_.empty()) {
    lease_ = leases_.front();
    leases_.pop_front();
    lease_done_ = lease_.done;
    flushed_ = false;
    AskForLeases();
    if (hold_asked_) {
      hold_asked_ = false;
      pull_pending_ = false;
      UpdateHold();
    }
    BeginStep();
    return true;
  }
  if (FlushDue()) {
    flushed_ = true;
    doing_ = Doing::kFlushVerdicts;
    return true;
  }
  if (drain_) {
    drain_ = false;
    hold_asked_ = true;
    if (bulk_) {  // the hold comes after the verdicts
      doing_ = Doing::kDrainVerdicts;
      returned_ = false;
    } else {
      UpdateHold();
      client_->StartPull(Clock(0), false);
      pull_pending_ = false;
      doing_ = Doing::kDrainPull;
    }
    return true;
  }
  evaluation_ = std::move(*evaluate_);
  evaluate_.reset();
  client_->StartPull(Clock(0), true);
  pull_pending_ = false;
  doing_ = Doing::kEvaluatePull;
  return true;
}

void SimulatedTask::BeginStep() {
  if (!pull_pending_) client_->StartPull(Needed(clock_), false);
  pull_pending_ = true;
  doing_ = Doing::kWaitPull;
}

bool SimulatedTask::PushStep(std::uint32_t samples, std::uint64_t begin, std::uint64_t end) {
  History::Push push;
  push.begin = begin;
  push.end = end;
  push.shards = residual_;
  const Clock clock(clock_.value() + 1);
  if (end > begin) {
    for (Units& units : push.shards) {
      units.count += 1;
      units.clocks += static_cast<double>(clock.value());
    }
  }
  worker::RingEntryInfo info;
  info.clock = clock;
  info.samples = samples;
  info.lease_id = end > begin ? lease_.id : last_lease_;
  info.lease_done = end > begin ? lease_done_ + (end - begin) : last_lease_done_;
  if (!client_->Push(info, push.shards)) return false;
  world_.history.Pushed(incarnation_, clock, std::move(push));
  clock_ = clock;
  residual_.assign(residual_.size(), Units());
  drained_at_.reset();
  last_lease_ = info.lease_id;
  last_lease_done_ = info.lease_done;
  if (end > begin) lease_done_ = info.lease_done;
  ++steps_;
  samples_ += samples;
  const bool finished = tracker_.Trained(info.lease_id, info.lease_done);
  client_->Committed();
  if (finished) SendLeaseProgress();
  if (ring_->used_bytes() > ring_->capacity_bytes() / 2) WantCheckpoint();
  return true;
}

void SimulatedTask::WantCheckpoint() {
  const std::int64_t now = world_.schedule.now_ms();
  if (now < next_checkpoint_wish_ms_) return;
  next_checkpoint_wish_ms_ = now + kCheckpointReminderMs;
  control::ReadyForCheckpointT ready;
  ready.reason = "the retention ring is half full";
  Tell(std::move(ready));
}

void SimulatedTask::Evaluate() {
  client_->Adopt();
  control::EvaluatedT result;
  result.round = evaluation_.round;
  result.records = 1;
  const auto& values = client_->values();
  for (std::size_t shard = 0; shard < evaluation_.digests.size(); ++shard) {
    if (checkpoint::ValuesDigest(values[shard]) == evaluation_.digests[shard]) continue;
    result.error =
        "shard " + std::to_string(shard) + " has other values than the manifest says: " +
        world_.history.Difference(ShardId(static_cast<std::uint32_t>(shard)), values[shard]);
  }
  Tell(std::move(result));
  if (evaluating_ == evaluation_.round) evaluating_ = 0;
}

// ---- leases

void SimulatedTask::AskForLeases() {
  const std::int64_t now = world_.schedule.now_ms();
  if (client_ == nullptr || leases_.size() >= kLeasesQueued || now < next_lease_request_ms_) return;
  next_lease_request_ms_ = now + kLeaseRequestMs;
  control::LeaseRequestT request;
  request.have = static_cast<std::uint32_t>(leases_.size());
  request.highest_lease = tracker_.highest();
  Tell(std::move(request));
}

void SimulatedTask::OnLeaseGrant(const control::LeaseGrantT& grant) {
  std::vector<control::LeaseT> leases;
  for (const auto& lease : grant.leases) leases.push_back(*lease);
  for (control::LeaseT& lease : tracker_.Add(leases)) leases_.push_back(std::move(lease));
  no_more_ = grant.no_more;
  if (!grant.no_more) next_lease_request_ms_ = 0;
  AskForLeases();
}

void SimulatedTask::SendLeaseProgress() {
  control::LeaseProgressT progress;
  worker::RingEntryView open;
  const bool some_open = ring_->Find(Clock(client_->stream().AckedByAll().value() + 1), open);
  for (control::LeaseT& lease : tracker_.Positions()) {
    if (some_open && lease.id >= open.info.lease_id) {
      const std::uint64_t before =
          open.info.lease_done - std::min<std::uint64_t>(open.info.samples, open.info.lease_done);
      lease.done = lease.id == open.info.lease_id ? std::min(lease.done, before) : 0;
    }
    progress.leases.push_back(std::make_unique<control::LeaseT>(lease));
  }
  next_lease_progress_ms_ = world_.schedule.now_ms() + kLeaseProgressMs;
  if (!progress.leases.empty()) Tell(std::move(progress));
}

void SimulatedTask::SendProgress() {
  next_progress_ms_ = world_.schedule.now_ms() + kProgressMs;
  control::ProgressT progress;
  progress.clock = ring_->last_clock().value();
  progress.steps = steps_;
  progress.samples = samples_;
  Tell(std::move(progress));
}

// ---- rounds and the end

void SimulatedTask::OnCut(std::uint64_t round, Clock clock) {
  tracker_.Cut(round);
  control::WorkerCutT cut;
  cut.round = round;
  cut.clock = clock.value();
  cut.highest_lease = tracker_.highest();
  cut.samples = samples_;
  for (const control::LeaseT& lease : tracker_.Positions()) {
    cut.leases.push_back(std::make_unique<control::LeaseT>(lease));
  }
  if (world_.Lacks(Mutant::kCutTooEarly) && !cut.leases.empty() && cut.leases.back()->done > 0) {
    cut.leases.back()->done -= std::min(
        cut.leases.back()->done, static_cast<std::uint64_t>(world_.spec.training.batch_size));
  }
  Tell(std::move(cut));
  if (world_.Lacks(Mutant::kReleaseAtCut)) {
    world_.history.CheckReleased(incarnation_, clock);
    client_->Release(clock);
  }
}

void SimulatedTask::OnCommitted(const control::RoundCommittedT& committed) {
  if (client_ == nullptr) return;
  for (const auto& cut : committed.cuts) {
    if (cut->worker != worker_.value() || cut->incarnation != incarnation_.value()) continue;
    client_->AbortRound(committed.round);
    world_.history.CheckReleased(incarnation_, Clock(cut->clock));
    client_->Release(Clock(cut->clock));
    tracker_.Committed(committed.round);
    next_checkpoint_wish_ms_ = 0;
  }
}

void SimulatedTask::OnDrain() {
  if (drained_at_) {
    control::DrainedT drained;
    drained.clock = drained_at_->value();
    return Tell(std::move(drained));
  }
  if (std::exchange(draining_, true)) return;
  drain_ = true;
}

}  // namespace ps::simulation
