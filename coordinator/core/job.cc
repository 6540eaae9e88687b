#include "coordinator/core/job.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <tuple>
#include <utility>

#include "checkpoint/round_path.h"
#include "coordinator/core/circuit_breaker.h"
#include "coordinator/core/job_import.h"
#include "coordinator/core/job_round.h"
#include "coordinator/core/load_sources.h"
#include "coordinator/core/placement.h"

namespace ps::coordinator {
namespace {

using control::Make;

constexpr std::uint32_t kLeasesInHand = 2;
constexpr std::uint64_t kMaxBackoffMs = 30'000;

std::uint64_t LeaseRecords(const JobDefinition& definition) {
  // About an eighth of a worker's share of an epoch, at most 32 steps: small enough to balance
  // workers of unequal speed, large enough that asking is rare.
  const std::uint64_t batch = definition.PushRecords();
  const auto workers = static_cast<std::uint64_t>(definition.spec.training.workers);
  const std::uint64_t batches = definition.data.records / (batch * workers * 8);
  // What is granted keeps its batches, so those that follow the speed must not be granted far
  // ahead.
  return batch *
         std::clamp<std::uint64_t>(batches, 1, definition.spec.training.batch_by_speed ? 8 : 32);
}

LeaseBook NewLeases(const JobDefinition& definition) {
  LeaseBook::Options options;
  options.records = definition.data.records;
  options.total = static_cast<std::uint64_t>(
      std::llround(definition.spec.training.epochs * static_cast<double>(definition.data.records)));
  options.batch = definition.PushRecords();
  options.lease_records = LeaseRecords(definition);
  options.workers = static_cast<std::uint64_t>(definition.spec.training.workers);
  options.in_turn = definition.spec.training.staleness == 0;
  return LeaseBook(options);
}

// Implausible steps of a task that are events each, before those at each doubling.
constexpr std::uint64_t kImplausibleTold = 20;

// What a counter says is an event at each doubling, so that a job whose steps all fail does not
// fill its history with it. `told`: the count of the last one.
bool HasDoubled(std::uint64_t count, std::uint64_t& told) {
  if (count == 0 || count < 2 * told) return false;
  told = count;
  return true;
}

std::string GpusText(std::int64_t gpus) {
  return gpus == 1 ? "a GPU" : std::to_string(gpus) + " GPUs";
}

std::string WorkerText(std::size_t slot, Incarnation incarnation) {
  return "worker " + std::to_string(slot) + " (incarnation " + std::to_string(incarnation.value()) +
         ")";
}

}  // namespace

Job::Job(Cluster& cluster, JobDefinition definition, JobId id, const JobTimeouts& timeouts)
    : Job(cluster, std::move(definition), id, timeouts, Phase::kQueued, "waits to be placed") {}

Job::Job(Cluster& cluster, JobDefinition definition, JobId id, const JobTimeouts& timeouts,
         Phase phase, const std::string& reason)
    : cluster_(cluster), definition_(std::move(definition)), timeouts_(timeouts) {
  state_.id = id;
  state_.name = definition_.spec.name;
  state_.created_ms = cluster_.now_ms();
  state_.workers.resize(static_cast<std::size_t>(definition_.spec.training.workers));
  state_.first_clocks.assign(state_.workers.size(), 0);
  state_.leases = NewLeases(definition_);
  slots_.resize(state_.workers.size());
  BeginShares();
  SetPhase(phase, reason);
  dirty_.map = true;
}

Job::Job(Cluster& cluster, JobDefinition definition, JobState state, control::MapT map,
         const JobTimeouts& timeouts)
    : cluster_(cluster),
      definition_(std::move(definition)),
      timeouts_(timeouts),
      state_(std::move(state)),
      map_(std::move(map)) {
  BeginShares();
  slots_.resize(state_.workers.size());
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    slots_[slot].ready = state_.workers[slot].live;
    slots_[slot].started_ms = cluster_.now_ms();
    // By the former leader's clock, which may have been hours ahead.
    std::uint64_t& retry_at = state_.workers[slot].retry_at_ms;
    retry_at = std::min(retry_at, cluster_.now_ms() + kMaxBackoffMs);
  }
  TakeLossScales();
  if (!over()) Event("leader", "a new coordinator has taken over");
}

Job::~Job() = default;

void Job::StartFrom(JobId job, Round round, std::string directory, PartPlaces places) {
  state_.start_job = job.value();
  state_.start_round = round.value();
  state_.start_directory = std::move(directory);
  state_.start_places = std::move(places);
  Event("start", "starts from checkpoint " + std::to_string(round.value()) + " of job " +
                     std::to_string(job.value()));
  dirty_.state = true;
}

// ---- the clock

void Job::Tick() {
  if (over() || state_.phase == Phase::kSuspended) return;
  if (state_.phase == Phase::kImporting) return ContinueImport();
  const std::uint64_t now = cluster_.now_ms();
  if (state_.phase == Phase::kQueued) {
    std::size_t servers = 0;
    std::uint32_t slots = 0;
    for (const auto& [procid, server] : cluster_.servers()) servers += server.alive() ? 1 : 0;
    for (const auto& [procid, agent] : cluster_.agents()) {
      slots += RoomOn(agent);
    }
    std::string reason;
    if (servers == 0) reason = "waits for a ps-server; none is registered";
    if (slots < state_.leases.workers()) {
      reason += (reason.empty() ? "" : "; ");
      reason += "waits for " + std::to_string(state_.leases.workers()) + " " + SlotsText() + ", " +
                std::to_string(slots) + " free now";
    }
    if (!reason.empty()) {
      if (reason != state_.reason) SetPhase(Phase::kQueued, reason);
      return;
    }
    state_.started_ms = now;
    SetPhase(Phase::kPlacing, "starts its tasks");
  }
  ContinueRebalance();
  MendChains();
  if (state_.phase == Phase::kRunning || state_.phase == Phase::kPlacing) EvictTasks();
  for (auto& [shard, retry] : restore_retries_) {
    if (retry.at_ms == 0 || now < retry.at_ms) continue;
    retry.at_ms = 0;
    if (map_.shards[shard]->epoch == retry.epoch.value()) chains_.lost.insert(shard);
  }
  if (map_.shards.empty() || Homeless()) {
    PlaceShards();
  } else {
    rewind_at_ms_ = 0;
  }
  // A worker that joined while a rewind is considered would train on without what is lost.
  if (rewind_at_ms_ == 0) {
    StartMissingTasks();
    if (over()) return;
    JoinReadyTasks();
  }
  if (state_.phase == Phase::kPlacing) StartRunning();
  if (state_.phase == Phase::kRecovering && !Homeless() && ShardsReady() && LiveCount() > 0) {
    ++recoveries_;
    recovery_ms_ += MsSince(PhaseName(Phase::kRecovering), "").value_or(0);
    Event("recovered", "all shards are ready again" +
                           After(PhaseName(Phase::kRecovering), "", "the loss was noticed"));
    SetPhase(Phase::kRunning, "");
  }
  CopyParts();
  if (round_ && now >= round_->news_ms + timeouts_.round_ms) {
    std::string missing;
    for (const Incarnation incarnation : round_->workers) {
      if (!round_->cuts.contains(incarnation)) {
        missing += " worker incarnation " + std::to_string(incarnation.value()) + " (marker)";
      }
    }
    for (const std::string& server : round_->servers) {
      if (!round_->prepared.contains(server)) missing += " server " + server + " (images)";
    }
    for (const auto& [part, copies] : round_->copies) {
      for (const std::string& server : copies.fetching) {
        missing += " server " + server + " (copy of what " + part + " wrote)";
      }
    }
    for (const auto& [server, parts] : round_->holders) {
      if (!round_->written.contains(server)) missing += " server " + server + " (manifest)";
    }
    AbortRound(
        "nothing new in " + std::to_string(timeouts_.round_ms / 1000) + " s; missing:" + missing,
        timeouts_.failed_round_retry_ms);
  }
  MaybeDrain();
  MaybeBeginRound();
  if (state_.phase == Phase::kEvaluating) SendEvaluate();
}

void Job::StartRunning() {
  const bool bulk = definition_.spec.training.staleness == 0;
  std::vector<std::size_t> ready;
  for (std::size_t slot = 0; slot < state_.leases.workers(); ++slot) {
    if (slots_[slot].ready) {
      ready.push_back(slot);
    } else if (state_.workers[slot].task != 0 || last_wait_reason_.empty() || bulk) {
      return;
    }  // else there is no slot for it: it joins later
  }
  if (ready.empty() || map_.shards.empty() || Homeless()) return;
  SetPhase(Phase::kRunning, "");
  MakeLive(ready, bulk);
  Event("running", "training starts with " + std::to_string(ready.size()) + " workers on " +
                       std::to_string(FirstServers().size()) + " servers, " +
                       std::to_string(definition_.shards) + " shards");
}

// ---- workers

void Job::OnUnsteady(const std::string& who) {
  Event("unsteady", who + " has failed " + std::to_string(CircuitBreaker::kFailures) +
                        " times within " + std::to_string(CircuitBreaker::kWindowMs / 1000) +
                        " s: it gets nothing new, where others can take it, until it has been well "
                        "for " +
                        std::to_string(CircuitBreaker::kRestMs / 1000) + " s");
}

bool Job::Takes(const Member& agent) const {
  return agent.alive() && agent.duty == Duty::kFull &&
         agent.label == definition_.spec.resources.label;
}

std::uint32_t Job::RoomOn(const Member& agent) const {
  if (!Takes(agent)) return 0;
  const std::uint32_t slots = cluster_.FreeSlots(agent.procid);
  const auto gpus = static_cast<std::size_t>(definition_.spec.resources.gpus);
  if (gpus == 0 || slots == 0) return slots;
  const auto sets = static_cast<std::size_t>(std::popcount(cluster_.FreeGpus(agent.procid))) / gpus;
  return static_cast<std::uint32_t>(std::min<std::size_t>(slots, sets));
}

std::string Job::SlotsText() const {
  const JobResources& resources = definition_.spec.resources;
  std::string text = "free worker slots";
  if (resources.gpus > 0) text += " with " + GpusText(resources.gpus) + " each";
  if (!resources.label.empty()) text += " on agents with the label `" + resources.label + "`";
  if (resources.gpus == 0) return text;
  const bool any =
      std::any_of(cluster_.agents().begin(), cluster_.agents().end(), [&](const auto& entry) {
        return Takes(entry.second) && entry.second.well_gpus() >= resources.gpus;
      });
  if (any) return text;
  return text + " (no agent that takes the job's tasks has " + GpusText(resources.gpus) + ")";
}

std::size_t Job::LiveCount() const {
  std::size_t count = 0;
  for (const WorkerSlot& slot : state_.workers) count += slot.live ? 1 : 0;
  return count;
}

std::uint32_t Job::TasksOn(const std::string& agent) const {
  if (over()) return 0;
  std::uint32_t count = 0;
  for (const WorkerSlot& slot : state_.workers) count += slot.agent == agent && slot.task != 0;
  return count;
}

void Job::AddGpusOn(const std::string& agent, std::set<std::string>& taken) const {
  if (over()) return;
  for (const WorkerSlot& slot : state_.workers) {
    if (slot.task != 0 && slot.agent == agent) taken.insert(slot.gpus.begin(), slot.gpus.end());
  }
}

void Job::LeaveGpu(const Member& agent, const Gpu& gpu) {
  if (over()) return;
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    const WorkerSlot& worker = state_.workers[slot];
    const bool has =
        std::find(worker.gpus.begin(), worker.gpus.end(), gpu.uuid) != worker.gpus.end();
    if (worker.task == 0 || worker.agent != agent.procid || !has) continue;
    if (!std::exchange(slots_[slot].gpu_left, true)) {
      Event("gpu", WorkerText(slot, worker.incarnation) + " leaves GPU " + gpu.uuid + " of " +
                       agent.name + ": " + gpu.trouble);
    }
    slots_[slot].evicted = true;
    // What it computes there may be wrong, and it may wait for the GPU for ever. Said with each
    // report, as the message may be lost.
    SendStopTask(worker.agent, worker.task, "GPU " + gpu.uuid + ": " + gpu.trouble, true);
  }
}

std::tuple<std::uint16_t, std::uint64_t> Job::GpuScoreOn(const Member& agent) const {
  const auto gpus = static_cast<std::uint32_t>(definition_.spec.resources.gpus);
  if (gpus < 2) return {};
  const auto best = ChooseGpus(agent.gpu_topology, cluster_.FreeGpus(agent.procid), gpus);
  return best.has_value() ? best->Score() : GpuSet().Score();
}

std::string Job::AgentOfWorker(WorkerId worker) const {
  if (worker.value() >= state_.workers.size()) return "";
  return state_.workers[worker.value()].agent;
}

std::optional<std::size_t> Job::SlotOfTask(const std::string& agent, std::uint64_t task) const {
  for (std::size_t slot = 0; slot < state_.workers.size(); ++slot) {
    if (state_.workers[slot].task == task && state_.workers[slot].agent == agent) return slot;
  }
  return std::nullopt;
}

bool Job::NeedsAgent(const std::string& agent) const {
  return TasksOn(agent) > 0 ||
         std::any_of(state_.dead.begin(), state_.dead.end(),
                     [&](const DeadWorker& dead) { return !over() && dead.agent == agent; });
}

// They push what they hold back, if their agents' patience suffices for that, and end as they would
// if they were killed: what has no verdict is replayed by their agents, the slots go to others.
void Job::EvictTasks() {
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    const WorkerSlot& worker = state_.workers[slot];
    const auto agent = cluster_.agents().find(worker.agent);
    if (worker.task == 0 || slots_[slot].evicted) continue;
    const bool spare = slot >= state_.leases.workers();
    const bool drains = agent != cluster_.agents().end() && agent->second.leaves();
    if (!spare && !drains) continue;
    slots_[slot].evicted = true;
    Event("evicted", WorkerText(slot, worker.incarnation) + " leaves " + worker.agent_name +
                         (spare ? ": the job has fewer workers now" : ", which drains"));
    SendStopTask(worker.agent, worker.task, spare ? "the job has fewer workers" : "the node drains",
                 false);
  }
}

void Job::StartMissingTasks() {
  const std::uint64_t now = cluster_.now_ms();
  // Near the end one task is enough to flush and evaluate.
  const bool ending = state_.phase == Phase::kDraining || state_.phase == Phase::kEvaluating;
  std::size_t present = 0;
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    WorkerSlot& worker = state_.workers[slot];
    if (worker.task == 0) continue;
    ++present;
    if (!worker.live && !slots_[slot].ready &&
        now >= slots_[slot].started_ms + timeouts_.task_start_ms) {
      SendStopTask(worker.agent, worker.task, "not ready in time", true);
      slots_[slot].started_ms = now;  // its TaskExited follows
    }
  }
  for (std::size_t slot = 0; slot < state_.leases.workers(); ++slot) {
    WorkerSlot& worker = state_.workers[slot];
    if (worker.task != 0 || now < worker.retry_at_ms || (ending && present > 0)) continue;
    const Member* best = nullptr;
    std::tuple<bool, std::tuple<std::uint16_t, std::uint64_t>, std::uint32_t> best_rank;
    for (const auto& [procid, agent] : cluster_.agents()) {
      const std::uint32_t room = RoomOn(agent);
      if (room == 0) continue;
      const auto rank = std::tuple(!agent.unsteady, GpuScoreOn(agent), room);
      if (best != nullptr && rank <= best_rank) continue;
      best = &agent;
      best_rank = rank;
    }
    if (best == nullptr) {
      std::string reason = "waits for a free worker slot for worker " + std::to_string(slot);
      const std::int64_t gpus = definition_.spec.resources.gpus;
      if (gpus > 0) reason += ", with " + GpusText(gpus);
      if (last_wait_reason_ != reason) {
        last_wait_reason_ = reason;
        Event("waiting", reason);
      }
      return;
    }
    last_wait_reason_.clear();
    StartTask(slot, *best);
    ++present;
  }
}

void Job::StartTask(std::size_t slot, const Member& agent) {
  WorkerSlot& worker = state_.workers[slot];
  // While the slot has no task, as those of its last one may be among them.
  worker.gpus.clear();
  const auto gpus = static_cast<std::uint32_t>(definition_.spec.resources.gpus);
  if (gpus > 0) {
    const auto set = ChooseGpus(agent.gpu_topology, cluster_.FreeGpus(agent.procid), gpus);
    PS_CHECK(set.has_value(), agent.name, gpus);
    for (std::size_t i = 0; i < agent.gpus.size(); ++i) {
      if ((set->gpus >> i & 1) != 0) worker.gpus.push_back(agent.gpus[i].uuid);
    }
  }
  worker.incarnation = Incarnation(state_.next_incarnation++);
  worker.agent = agent.procid;
  worker.agent_name = agent.name;
  worker.task = (state_.id.value() << 32) | worker.incarnation.value();
  worker.live = false;
  worker.retry_at_ms = 0;
  Slot& memory = slots_[slot];
  memory.ready = false;
  memory.started_ms = cluster_.now_ms();
  memory.failure.clear();
  memory.drained = false;
  memory.evicted = false;
  memory.gpu_left = false;
  memory.progress.reset();
  memory.skipped_told = 0;
  memory.refused_told = 0;
  memory.redone_told = 0;
  memory.dropped_told = 0;

  control::StartTaskT start;
  start.task = worker.task;
  start.job = state_.id.value();
  start.job_name = state_.name;
  start.worker = static_cast<std::uint32_t>(slot);
  start.incarnation = worker.incarnation.value();
  start.generation = state_.generation;
  start.gpus = worker.gpus;
  // Nobody is asked for initial values any more: files that they came from may be gone.
  start.spec_json =
      state_.NewestCheckpoint() != nullptr ? SpecWithoutFiles(definition_) : definition_.spec_json;
  cluster_.Send(agent.procid, Make(std::move(start)));
  Event("task", WorkerText(slot, worker.incarnation) + " starts on " + agent.name);
  dirty_.state = true;
}

void Job::OnTaskReady(std::size_t slot, const control::TaskReadyT& ready) {
  if (ready.layout_fingerprint != definition_.layout.fingerprint) {
    Finish(Phase::kFailed, WorkerText(slot, state_.workers[slot].incarnation) + " on " +
                               state_.workers[slot].agent_name +
                               " has another model than the one checked at submission; the model "
                               "file must be the same on every node");
    return;
  }
  const bool other_files = ready.files_fingerprint != definition_.files_fingerprint &&
                           state_.NewestCheckpoint() == nullptr;
  if (ready.records != definition_.data.records ||
      ready.data_fingerprint != definition_.data.fingerprint || other_files) {
    Finish(Phase::kFailed,
           WorkerText(slot, state_.workers[slot].incarnation) + " on " +
               state_.workers[slot].agent_name + " has " +
               (other_files ? "another file of checkpoint.load" : "other training data") +
               " than was checked at submission; it must be the same on every node");
    return;
  }
  slots_[slot].ready = true;
  slots_[slot].early_failures = 0;
  if (state_.phase == Phase::kPlacing) {
    StartRunning();
  } else if (state_.workers[slot].live) {
    SendTaskStart(slot);  // it has not come: the task says that it is ready until it does
  } else if (rewind_at_ms_ == 0 && !Unplaced()) {
    MakeLive({slot});
  }
}

// Those that became ready while a rewind was considered, or there was nowhere to push to.
void Job::JoinReadyTasks() {
  if (state_.phase == Phase::kQueued || state_.phase == Phase::kPlacing || Unplaced()) return;
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    const WorkerSlot& worker = state_.workers[slot];
    if (worker.task != 0 && !worker.live && slots_[slot].ready) MakeLive({slot});
  }
}

void Job::SendTaskStart(std::size_t slot) {
  control::TaskStartT start;
  start.start = std::make_unique<control::JobStartT>(JobStart());
  start.worker = static_cast<std::uint32_t>(slot);
  start.incarnation = state_.workers[slot].incarnation.value();
  start.first_clock = state_.first_clocks[slot];
  start.total_records = state_.leases.total();
  if (const auto& scale = slots_[slot].loss_scale) {
    start.loss_scale = scale->scale;
    start.growth_tracker = scale->growth_tracker;
  }
  SendToTask(slot, Make(std::move(start)));
  if (state_.phase == Phase::kDraining) SendToTask(slot, Make(control::DrainT{}));
}

void Job::MakeLive(const std::vector<std::size_t>& slots, bool at_their_own_clocks) {
  const std::uint64_t clock = MaxClock();
  for (const std::size_t slot : slots) {
    state_.workers[slot].live = true;
    if (!at_their_own_clocks) state_.first_clocks[slot] = clock;
  }
  ++state_.live_version;
  dirty_.state = true;
  AbortRound("a worker joins", timeouts_.round_retry_ms);
  for (const std::size_t slot : slots) SendTaskStart(slot);
  BroadcastUpdate(false, true);
}

void Job::OnTaskFailed(std::size_t slot, const control::TaskFailedT& failed) {
  slots_[slot].failure = failed.message;
  Event("task failed", WorkerText(slot, state_.workers[slot].incarnation) + ": " + failed.message);
  if (failed.permanent) {
    Finish(Phase::kFailed,
           WorkerText(slot, state_.workers[slot].incarnation) + ": " + failed.message);
  }
}

void Job::OnTaskExited(const std::string& agent, const control::TaskExitedT& exited) {
  const auto slot = SlotOfTask(agent, exited.task);
  if (!slot) {
    // It was given up when its agent seemed to be gone; now the agent has stopped it.
    if (exited.ring == nullptr) return;
    const auto at = cluster_.agents().find(agent);
    return OnRingOffered(agent, at != cluster_.agents().end() ? at->second.name : agent,
                         *exited.ring);
  }
  std::string why = exited.status < 0 ? "killed by signal " + std::to_string(-exited.status)
                                      : "exited with status " + std::to_string(exited.status);
  if (!slots_[*slot].failure.empty()) {
    why += ": " + slots_[*slot].failure;
  } else if (!exited.message.empty()) {
    why += ": " + exited.message;
  }
  LoseTask(*slot, exited.ring.get(), why);
}

// The task of the slot is gone. With a ring its pushes will be replayed by its agent.
void Job::LoseTask(std::size_t slot, const control::RingInfoT* ring, const std::string& why) {
  WorkerSlot& worker = state_.workers[slot];
  Slot& memory = slots_[slot];
  const Incarnation incarnation = worker.incarnation;
  const std::string agent = worker.agent;
  Event("worker lost", WorkerText(slot, incarnation) + " on " + worker.agent_name + " " + why);
  if (memory.progress) AddUp(*memory.progress);
  const bool was_live = worker.live;
  const bool pushed = ring != nullptr && ring->last_clock > state_.first_clocks[slot];
  if (was_live) {
    AbortRound("a worker died", timeouts_.round_retry_ms);
    if (ring != nullptr) {
      // lease_id 0: it never pushed a record.
      state_.leases.Return(WorkerId(static_cast<std::uint32_t>(slot)), incarnation, ring->lease_id,
                           ring->lease_done);
    } else {
      state_.leases.Return(WorkerId(static_cast<std::uint32_t>(slot)), incarnation, std::nullopt,
                           0);
    }
    if (pushed || ring == nullptr) {
      DeadWorker dead;
      dead.worker = WorkerId(static_cast<std::uint32_t>(slot));
      dead.incarnation = incarnation;
      dead.first_clock = Clock(state_.first_clocks[slot]);
      dead.agent = ring != nullptr ? agent : "";
      state_.dead.push_back(dead);
    } else if (ring != nullptr) {
      SendDropRing(agent, WorkerId(static_cast<std::uint32_t>(slot)), incarnation);
    }
  } else if (!memory.evicted) {
    ++memory.early_failures;
    cluster_.NoteTaskFailure(agent);
  }
  worker.task = 0;
  worker.agent.clear();
  worker.live = false;
  memory.ready = false;
  memory.drained = false;
  memory.progress.reset();
  if (shares_) shares_->Forget(slot);
  if (!memory.evicted) ++state_.restarts;
  dirty_.state = true;
  const std::uint64_t backoff =
      memory.early_failures == 0
          ? 0
          : std::min<std::uint64_t>(kMaxBackoffMs,
                                    1000ULL << std::min<std::uint32_t>(memory.early_failures, 10));
  worker.retry_at_ms = cluster_.now_ms() + backoff;
  if (state_.restarts > static_cast<std::uint64_t>(definition_.spec.resources.max_restarts)) {
    Finish(Phase::kFailed, "its tasks were restarted more than resources.max_restarts (" +
                               std::to_string(definition_.spec.resources.max_restarts) +
                               ") times; the last: " + WorkerText(slot, incarnation) + " " + why);
    return;
  }
  if (!was_live) return;
  ++state_.live_version;
  BroadcastUpdate(false, true);
  if (pushed) SendReplay(state_.dead.back());
  if (state_.phase == Phase::kRunning && LiveCount() == 0) {
    SetPhase(Phase::kRecovering, "all workers are lost; new tasks start");
  }
  if (evaluator_ == incarnation) evaluator_ = Incarnation();
}

void Job::OnLeaseRequest(std::size_t slot, const control::LeaseRequestT& request) {
  if (!state_.workers[slot].live) return;
  const Incarnation incarnation = state_.workers[slot].incarnation;
  control::LeaseGrantT grant;
  for (control::LeaseT& lease : state_.leases.GrantedAbove(incarnation, request.highest_lease)) {
    grant.leases.push_back(std::make_unique<control::LeaseT>(std::move(lease)));
  }
  while (request.have + grant.leases.size() < kLeasesInHand) {
    auto lease = state_.leases.Grant(WorkerId(static_cast<std::uint32_t>(slot)), incarnation,
                                     shares_ ? shares_->push_records(slot) : 0);
    if (!lease) {
      grant.no_more = true;
      break;
    }
    grant.leases.push_back(std::make_unique<control::LeaseT>(std::move(*lease)));
    dirty_.state = true;
    if (state_.phase == Phase::kDraining) SetPhase(Phase::kRunning, "records came back");
  }
  SendToTask(slot, Make(std::move(grant)));
}

void Job::OnProgress(std::size_t slot, const control::ProgressT& progress) {
  TellNotFinite(slot, progress);
  TellImplausible(slot, progress);
  if (progress.loss_scale > 0) {
    slots_[slot].loss_scale = TaskLossScale{progress.loss_scale, progress.growth_tracker};
  }
  slots_[slot].progress = progress;
  slots_[slot].progress_ms = cluster_.now_ms();
  if (!shares_ || !shares_->Observe(slot, state_.workers[slot].incarnation, progress.samples,
                                    progress.compute_ms)) {
    return;
  }
  if (!shares_->unequal()) {
    Event("batches", "the workers are alike: all pushes have the same number of records again");
    return;
  }
  std::string text;
  for (std::size_t worker = 0; worker < slots_.size(); ++worker) {
    if (shares_->speed(worker) == 0) continue;
    text += (text.empty() ? "" : ", ") + std::to_string(shares_->push_records(worker)) +
            " of worker " + std::to_string(worker) + " (" +
            std::to_string(std::llround(shares_->speed(worker))) + " a second)";
  }
  Event("batches", "records of a push in proportion to speed: " + text);
}

void Job::SendReplay(const DeadWorker& dead) {
  control::ReplayT replay;
  replay.job = state_.id.value();
  replay.start = std::make_unique<control::JobStartT>(JobStart());
  replay.worker = dead.worker.value();
  replay.incarnation = dead.incarnation.value();
  cluster_.Send(dead.agent, Make(std::move(replay)));
}

void Job::OnReplayDone(const control::ReplayDoneT& done) {
  if (done.map_version != map_.version) return;
  for (DeadWorker& dead : state_.dead) {
    if (dead.incarnation.value() != done.incarnation || dead.replayed) continue;
    dead.replayed = true;
    dirty_.state = true;
    Event("replayed", WorkerText(dead.worker.value(), dead.incarnation) + " up to clock " +
                          std::to_string(done.last_clock) +
                          After("worker lost", WorkerText(dead.worker.value(), dead.incarnation),
                                "the loss was noticed"));
  }
}

void Job::TellNotFinite(std::size_t slot, const control::ProgressT& progress) {
  Slot& memory = slots_[slot];
  const std::string worker = WorkerText(slot, state_.workers[slot].incarnation);
  if (HasDoubled(progress.skipped, memory.skipped_told)) {
    Event("not finite", worker + " has skipped " + std::to_string(progress.skipped) +
                            (progress.skipped == 1 ? " step" : " steps") +
                            " whose loss or gradient was not finite, by clock " +
                            std::to_string(progress.clock) + ", near data position " +
                            std::to_string(progress.skipped_position) +
                            "; its log names the records");
  }
  if (HasDoubled(progress.refused, memory.refused_told)) {
    Event("not finite", progress.last_refused + ", of " + worker +
                            ": not finite, though the worker had sent finite values (" +
                            std::to_string(progress.refused) +
                            " so far); look for bad memory on both nodes");
  }
}

void Job::TellImplausible(std::size_t slot, const control::ProgressT& progress) {
  Slot& memory = slots_[slot];
  const std::string worker = WorkerText(slot, state_.workers[slot].incarnation);
  const auto is_told = [](std::uint64_t count, std::uint64_t& told) {
    if (count == told || (count > kImplausibleTold && count < 2 * told)) return true;
    told = count;
    return false;
  };
  const auto count = [](std::uint64_t number) {
    return " (" + std::to_string(number) + " so far)";
  };
  if (!is_told(progress.dropped, memory.dropped_told)) {
    Event("implausible", worker + " has skipped a batch" + count(progress.dropped) + ": " +
                             progress.last_dropped + "; computed again in fp32 it was so, too");
  }
  if (!is_told(progress.redone, memory.redone_told)) {
    Event("implausible", worker + " has computed a step again in fp32" + count(progress.redone) +
                             ", which is plausible: " + progress.last_redone);
  }
}

void Job::TakeLossScales() {
  const CommittedCheckpoint* const newest = state_.NewestCheckpoint();
  if (newest == nullptr) return;
  for (const auto& [slot, scale] : newest->loss_scales) {
    if (slot < slots_.size()) slots_[slot].loss_scale = scale;
  }
}

void Job::AddUp(const control::ProgressT& progress) {
  finished_.steps += progress.steps;
  finished_.skipped += progress.skipped;
  finished_.overflows += progress.overflows;
  finished_.anomalies += progress.anomalies;
  finished_.redone += progress.redone;
  finished_.dropped += progress.dropped;
  finished_.too_old += progress.too_old;
  finished_.pushes += progress.pushes;
  finished_.push_bytes += progress.push_bytes;
  finished_.push_entries += progress.push_entries;
  finished_.pulls += progress.pulls;
  finished_.pull_bytes += progress.pull_bytes;
  if (progress.metric_samples > finished_.metric_samples) {
    finished_.metric = progress.metric;
    finished_.metric_samples = progress.metric_samples;
  }
}

// ---- members

void Job::OnServerReady(const std::string& procid) {
  if (state_.phase == Phase::kImporting) return RepeatImport(procid);
  if (OffCluster()) {
    // It may not have heard that the job is over or was suspended.
    SendJobDrop(procid);
    if (HasLeftovers()) SendLeftovers(procid);
    return;
  }
  if (awaited_.erase(procid) > 0 && FirstServers().contains(procid)) {
    Event("adopted", "server " + cluster_.servers().at(procid).name +
                         " is back with its shards; they need not be restored");
  }
  if (JobServers().contains(procid)) return SendJobStart(procid);
  if (definition_.spec.resources.replicas == 0) return;
  // It may believe that it still has what is another's since: it hears that it has not.
  control::JobUpdateT update;
  update.job = state_.id.value();
  update.map = control::ClonePtr(map_);
  cluster_.Send(procid, Make(std::move(update)));
}

void Job::OnServerGone(const std::string& procid) {
  if (state_.phase == Phase::kImporting) return ContinueImport();
  if (OffCluster() || !JobServers().contains(procid)) return;
  std::size_t shards = 0;
  std::string name = procid;
  for (const auto& shard : map_.shards) {
    const auto& server = *map_.servers[shard->server];
    if (server.procid != procid) continue;
    ++shards;
    name = server.name;
  }
  if (shards == 0) {
    // It has backups only: training goes on without it.
    return MendChains();
  }
  Event("server lost", "server " + name + " is gone with " + std::to_string(shards) + " shards");
  AbortRound("a server died", timeouts_.round_retry_ms);
  if (state_.phase == Phase::kRunning) {
    SetPhase(Phase::kRecovering, "server " + name + " is gone");
  }
  MendChains();
  // What it alone has: it is asked whether it still has it, should it come back.
  std::size_t left = 0;
  for (std::uint32_t shard = 0; shard < map_.shards.size(); ++shard) {
    if (map_.servers[map_.shards[shard]->server]->procid != procid) continue;
    ++left;
    shard_states_.erase(shard);
  }
  const auto server = cluster_.servers().find(procid);
  if (left == 0 || server == cluster_.servers().end() || !server->second.awaited()) return;
  awaited_.insert(procid);
  Event("waiting", "for server " + name + " to come back, which alone has " + std::to_string(left) +
                       " shards: only its session has ended");
}

void Job::OnAgentGone(const std::string& procid) {
  if (over()) return;
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (state_.workers[slot].task != 0 && state_.workers[slot].agent == procid) {
      LoseTask(slot, nullptr, "went with its agent");
      if (over()) return;
    }
  }
  for (DeadWorker& dead : state_.dead) {
    if (dead.agent != procid) continue;
    dead.agent.clear();
    dead.replayed = false;
    ++state_.live_version;
    dirty_.state = true;
    BroadcastUpdate(false, true);
  }
}

// The agent has pushes of a task that it does not run.
void Job::OnRingOffered(const std::string& procid, const std::string& name,
                        const control::RingInfoT& ring) {
  const auto drop = [&] {
    SendDropRing(procid, WorkerId(ring.worker), Incarnation(ring.incarnation));
  };
  if (over() || ring.generation != state_.generation) return drop();
  if (SlotOfTask(procid, (state_.id.value() << 32) | ring.incarnation)) {
    return;  // its TaskExited follows
  }
  const auto dead = std::find_if(state_.dead.begin(), state_.dead.end(), [&](const DeadWorker& d) {
    return d.incarnation.value() == ring.incarnation;
  });
  if (dead == state_.dead.end()) {
    // The agent may be back before its former self was noticed to be gone.
    const auto former =
        std::find_if(state_.workers.begin(), state_.workers.end(), [&](const WorkerSlot& worker) {
          return worker.task != 0 && worker.incarnation.value() == ring.incarnation;
        });
    if (former == state_.workers.end()) return drop();
    const auto lost = static_cast<std::size_t>(former - state_.workers.begin());
    former->agent = procid;
    return LoseTask(lost, &ring, "went with its agent, which is back with its pushes");
  }
  // The result is the final checkpoint, which must not change under its evaluation.
  if (state_.phase == Phase::kEvaluating) return drop();
  // Whoever offers a ring has it: its agent may be back under a new identity before the former one
  // was noticed to be gone.
  if (dead->agent != procid) {
    // An open round counts this incarnation as it was when the round began.
    AbortRound("a lost worker's pushes are found", timeouts_.round_retry_ms);
    if (ring.last_clock <= dead->first_clock.value()) {
      // It never pushed, so nothing of it is missing anywhere.
      state_.dead.erase(dead);
      dirty_.state = true;
      return drop();
    }
    dead->agent = procid;
    dead->replayed = false;
    dead->covered = false;
    state_.leases.Reclaim(dead->incarnation, ring.lease_id, ring.lease_done);
    ++state_.live_version;
    dirty_.state = true;
    Event("ring found", "the agent " + name + " is back with the pushes of " +
                            WorkerText(dead->worker.value(), dead->incarnation));
    BroadcastUpdate(false, true);
  }
  if (dead->agent == procid && !dead->replayed) SendReplay(*dead);
}

void Job::OnAgentReady(const std::string& procid, const control::RegisterAgentT& registration) {
  std::set<std::uint64_t> running;
  for (const auto& task : registration.tasks) {
    if (task->job != state_.id.value()) continue;
    running.insert(task->task);
    if (!SlotOfTask(procid, task->task) || over()) {
      SendStopTask(procid, task->task, "the job does not know this task", true);
    }
  }
  for (const auto& ring : registration.rings) {
    if (ring->job != state_.id.value()) continue;
    OnRingOffered(procid, registration.name, *ring);
  }
  if (over()) return;
  // A task of ours that the agent does not run has never started or its end was not told.
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    const WorkerSlot& worker = state_.workers[slot];
    if (worker.agent != procid || worker.task == 0) continue;
    if (!running.contains(worker.task)) {
      const control::RingInfoT* ring = nullptr;
      for (const auto& offered : registration.rings) {
        if (offered->job == state_.id.value() &&
            offered->incarnation == worker.incarnation.value()) {
          ring = offered.get();
        }
      }
      LoseTask(slot, ring, "is not known to its agent");
      if (over()) return;
    } else if (worker.live) {
      // What a former leader may have failed to deliver.
      control::JobUpdateT update;
      update.job = state_.id.value();
      update.map = control::ClonePtr(map_);
      update.live = control::ClonePtr(LiveSet());
      SendToTask(slot, Make(std::move(update)));
      if (state_.phase == Phase::kDraining) SendToTask(slot, Make(control::DrainT{}));
      // A former leader's round, or one whose end was lost, must not hold its pushes back.
      control::RoundAbortT abort;
      abort.job = state_.id.value();
      abort.round = round_ ? round_->number.value() - 1 : state_.next_round - 1;
      abort.reason = "not known to this leader";
      if (abort.round > 0) SendToTask(slot, Make(std::move(abort)));
      // It may not have heard that it is to evaluate: somebody is told again.
      if (state_.phase == Phase::kEvaluating && evaluator_ == worker.incarnation) {
        evaluator_ = Incarnation();
      }
    }
  }
}

void Job::OnServerMessage(const std::string& procid, const control::MessageT& message) {
  if (const auto* damaged = message.body.AsPartDamaged()) return OnPartDamaged(procid, *damaged);
  if (const auto* repaired = message.body.AsPartRepaired()) {
    return OnPartRepaired(procid, *repaired);
  }
  if (OffCluster()) return;
  if (state_.phase == Phase::kImporting) return OnImportMessage(procid, message);
  switch (message.body.type) {
    case control::Body::ServerReport: {
      const auto& report = *message.body.AsServerReport();
      for (const auto& shard : report.shards) {
        if (shard->shard >= map_.shards.size()) continue;
        const auto& entry = *map_.shards[shard->shard];
        if (map_.servers[entry.server]->procid != procid) continue;
        shard_states_[shard->shard] = *shard;
        if (shard->state == 0) restore_retries_.erase(shard->shard);
      }
      OnChainReport(procid, report);
      break;
    }
    case control::Body::RestoreFailed: {
      const auto& failed = *message.body.AsRestoreFailed();
      // A server that slept, or has not heard of the newer map, speaks of a shard that is
      // elsewhere.
      if (failed.shard >= map_.shards.size()) break;
      const auto& entry = *map_.shards[failed.shard];
      if (map_.servers[entry.server]->procid != procid || entry.epoch != failed.epoch) break;
      OnRestoreFailed(failed);
      break;
    }
    case control::Body::Prepared: OnPrepared(procid, *message.body.AsPrepared()); break;
    case control::Body::PrepareFailed: {
      const auto& failed = *message.body.AsPrepareFailed();
      if (round_ && round_->number.value() == failed.round) {
        AbortRound("server " + procid + ": " + failed.message, timeouts_.failed_round_retry_ms);
      }
      break;
    }
    case control::Body::ManifestWritten:
      OnManifestWritten(procid, *message.body.AsManifestWritten());
      break;
    case control::Body::PartCopied: OnPartCopied(procid, *message.body.AsPartCopied()); break;
    case control::Body::PartCopyFailed:
      OnPartCopyFailed(procid, *message.body.AsPartCopyFailed());
      break;
    default: break;
  }
}

void Job::OnAgentMessage(const std::string& procid, const control::MessageT& message) {
  if (over()) return;
  if (message.body.type == control::Body::TaskExited) {
    OnTaskExited(procid, *message.body.AsTaskExited());
    return;
  }
  if (message.body.type == control::Body::ReplayDone) {
    OnReplayDone(*message.body.AsReplayDone());
    return;
  }
  const auto slot = SlotOfTask(procid, message.task);
  if (!slot) {
    // It was given up, and its agent was not told or had not even started it then: it must not
    // keep its slot.
    return SendStopTask(procid, message.task, "the job does not know this task", true);
  }
  const Incarnation incarnation = state_.workers[*slot].incarnation;
  switch (message.body.type) {
    case control::Body::TaskReady: OnTaskReady(*slot, *message.body.AsTaskReady()); break;
    case control::Body::TaskFailed: OnTaskFailed(*slot, *message.body.AsTaskFailed()); break;
    case control::Body::LeaseRequest: OnLeaseRequest(*slot, *message.body.AsLeaseRequest()); break;
    case control::Body::LeaseProgress:
      // After a reconnect what the task has done since its cut may come before the cut: the
      // checkpoint would count it as trained. It is reported again.
      if (round_ && round_->workers.contains(incarnation) && !round_->cuts.contains(incarnation)) {
        break;
      }
      for (const auto& lease : message.body.AsLeaseProgress()->leases) {
        state_.leases.Progress(incarnation, lease->id, lease->done);
      }
      dirty_.lazy = true;
      break;
    case control::Body::WorkerCut: OnWorkerCut(*slot, *message.body.AsWorkerCut()); break;
    case control::Body::Progress: OnProgress(*slot, *message.body.AsProgress()); break;
    case control::Body::Drained:
      slots_[*slot].drained = true;
      slots_[*slot].drained_clock = message.body.AsDrained()->clock;
      break;
    case control::Body::Evaluated: OnEvaluated(*slot, *message.body.AsEvaluated()); break;
    case control::Body::ReadyForCheckpoint: round_wanted_ = true; break;
    default: break;
  }
}

// ---- the end

void Job::MaybeDrain() {
  if (state_.phase != Phase::kRunning && state_.phase != Phase::kDraining) return;
  const bool replaying =
      std::any_of(state_.dead.begin(), state_.dead.end(),
                  [](const DeadWorker& d) { return !d.agent.empty() && !d.replayed; });
  if (!state_.leases.AllTrained() || replaying || LiveCount() == 0) {
    if (state_.phase == Phase::kDraining && !state_.leases.AllTrained() && !round_) {
      SetPhase(Phase::kRunning, "records came back from a lost worker");
    }
    return;
  }
  if (state_.phase == Phase::kRunning) {
    if (round_ && !round_->final_round) return;  // let it finish
    if (state_.suspending) {
      state_.suspending = false;
      Event("suspend", "all records are trained: the job ends instead of being suspended");
    }
    for (Slot& slot : slots_) slot.drained = false;
    SetPhase(Phase::kDraining, "all records are trained; workers flush what they hold back");
    for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
      if (state_.workers[slot].live) SendToTask(slot, Make(control::DrainT{}));
    }
    return;
  }
  if (round_ || cluster_.now_ms() < next_round_ms_ || Homeless() || !ShardsReady()) return;
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (state_.workers[slot].live && !slots_[slot].drained) return;
  }
  BeginRound(true);
}

void Job::SendEvaluate() {
  if (evaluator_ != Incarnation()) return;
  if (state_.checkpoints.empty()) return;
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (!state_.workers[slot].live) continue;
    evaluator_ = state_.workers[slot].incarnation;
    control::EvaluateT evaluate;
    evaluate.round = state_.checkpoints.back().round.value();
    evaluate.digests = final_digests_;
    SendToTask(slot, Make(std::move(evaluate)));
    return;
  }
}

void Job::OnEvaluated(std::size_t slot, const control::EvaluatedT& evaluated) {
  if (state_.phase != Phase::kEvaluating || state_.workers[slot].incarnation != evaluator_) return;
  if (evaluated.round != state_.checkpoints.back().round.value()) return;
  if (!evaluated.error.empty()) {
    Finish(Phase::kFailed, "the final evaluation failed: " + evaluated.error);
    return;
  }
  JobResult result;
  result.metric = std::isfinite(evaluated.metric) ? evaluated.metric : 0;
  result.loss = std::isfinite(evaluated.loss) ? evaluated.loss : 0;
  result.records = evaluated.records;
  result.metric_name = definition_.spec.training.metric;
  state_.result = result;
  Finish(Phase::kSucceeded, "");
}

void Job::Cancel(const std::string& reason) {
  if (over()) return;
  Finish(Phase::kCancelled, reason.empty() ? "cancelled by the operator" : reason);
}

void Job::Finish(Phase phase, const std::string& reason) {
  AbortRound("the job ends", 0);
  AbortImport();
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    WorkerSlot& worker = state_.workers[slot];
    if (worker.task != 0) {
      if (slots_[slot].progress) AddUp(*slots_[slot].progress);
      SendStopTask(worker.agent, worker.task, std::string("the job has ") + PhaseName(phase),
                   phase != Phase::kSucceeded);
      SendDropRing(worker.agent, WorkerId(static_cast<std::uint32_t>(slot)), worker.incarnation);
    }
    worker.task = 0;
    worker.live = false;
  }
  for (const DeadWorker& dead : state_.dead) {
    if (!dead.agent.empty()) SendDropRing(dead.agent, dead.worker, dead.incarnation);
  }
  state_.dead.clear();
  for (const std::string& server : JobServers()) SendJobDrop(server);
  state_.finished_ms = cluster_.now_ms();
  SetPhase(phase, reason);
}

void Job::SetPhase(Phase phase, const std::string& reason) {
  if (phase != state_.phase || state_.next_event == 1) {
    Event(PhaseName(phase), reason);
  }
  state_.phase = phase;
  state_.reason = reason;
  dirty_.state = true;
}

std::optional<std::uint64_t> Job::MsSince(const std::string& type,
                                          const std::string& begins) const {
  for (auto event = state_.events.rbegin(); event != state_.events.rend(); ++event) {
    if (event->type != type || event->message.rfind(begins, 0) != 0) continue;
    // Clocks of leaders may differ.
    return cluster_.now_ms() - std::min(cluster_.now_ms(), event->time_ms);
  }
  return std::nullopt;
}

std::string Job::After(const std::string& type, const std::string& begins,
                       const std::string& text) const {
  const auto ms = MsSince(type, begins);
  if (!ms) return "";
  const std::string tenths = std::to_string(*ms % 1000 / 100);
  return ", " + std::to_string(*ms / 1000) + "." + tenths + " s after " + text;
}

void Job::Event(const std::string& type, const std::string& message) {
  state_.events.push_back(JobEvent{state_.next_event++, cluster_.now_ms(), type, message});
  if (state_.events.size() > kMaxEvents) state_.events.pop_front();
  ++event_counts_[type];
  dirty_.state = true;
  dirty_.events = true;
}

Job::Dirty Job::TakeDirty() { return std::exchange(dirty_, Dirty{}); }

std::uint64_t Job::MaxClock() const {
  std::uint64_t clock = 0;
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    clock = std::max(clock, state_.first_clocks[slot]);
    if (slots_[slot].progress) clock = std::max(clock, slots_[slot].progress->clock);
  }
  return clock;
}

std::uint64_t Job::MinClock() const {
  std::optional<std::uint64_t> clock;
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (!state_.workers[slot].live) continue;
    std::uint64_t own = state_.first_clocks[slot];
    if (slots_[slot].progress) own = std::max(own, slots_[slot].progress->clock);
    clock = clock ? std::min(*clock, own) : own;
  }
  return clock.value_or(0);
}

}  // namespace ps::coordinator
