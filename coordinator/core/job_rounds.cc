// Checkpoint rounds of a job: begin, cuts and images, manifest, commit or abort.
#include <algorithm>
#include <cmath>
#include <limits>

#include "checkpoint/manifest.h"
#include "checkpoint/round_path.h"
#include "coordinator/core/job.h"
#include "coordinator/core/job_round.h"

namespace ps::coordinator {

using control::Make;

void Job::MaybeBeginRound() {
  if (state_.phase != Phase::kRunning || round_) return;
  if (cluster_.now_ms() < next_round_ms_ || LiveCount() == 0) return;
  const CommittedCheckpoint* const newest = state_.NewestCheckpoint();
  const std::uint64_t last = newest == nullptr ? 0 : newest->step;
  const auto every = static_cast<std::uint64_t>(definition_.spec.checkpoint.every_steps);
  const bool due = every > 0 && MinClock() >= last + every;
  if (!due && !round_wanted_ && !state_.suspending) return;
  if (Homeless() || !ShardsReady()) return;
  for (const DeadWorker& dead : state_.dead) {
    if (!dead.agent.empty() && !dead.replayed) return;
  }
  // A task that is about to join would abort the round.
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (state_.workers[slot].task != 0 && !state_.workers[slot].live) return;
  }
  BeginRound(false);
}

void Job::BeginRound(bool final_round) {
  round_ = std::make_unique<Round_>();
  round_->number = Round(state_.next_round++);
  round_->final_round = final_round;
  round_->suspends = state_.suspending;
  round_->started_ms = cluster_.now_ms();
  round_->news_ms = round_->started_ms;
  round_->directory = checkpoint::RoundPath(state_.id, round_->number);
  round_->base = final_round ? Round() : BaseOfRounds();
  round_->servers = FirstServers();
  for (const WorkerSlot& worker : state_.workers) {
    if (worker.live) round_->workers.insert(worker.incarnation);
  }
  for (const DeadWorker& dead : state_.dead) round_->covered_dead.push_back(dead.incarnation);
  round_wanted_ = false;
  dirty_.state = true;
  state_.leases.BeginCut();
  const auto begin = [&] {
    control::RoundBeginT message;
    message.job = state_.id.value();
    message.round = round_->number.value();
    message.live_version = state_.live_version;
    message.map_version = map_.version;
    message.final = final_round;
    message.directory = round_->directory;
    message.base = round_->base.value();
    message.flush = round_->suspends;
    return message;
  };
  for (const std::string& server : round_->servers) cluster_.Send(server, Make(begin()));
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (state_.workers[slot].live) SendToTask(slot, Make(begin()));
  }
}

// The checkpoint that the next one may build on: none if it is time for a whole one.
Round Job::BaseOfRounds() const {
  const CommittedCheckpoint* const newest = state_.NewestCheckpoint();
  const auto every = static_cast<std::uint64_t>(definition_.spec.checkpoint.full_every);
  if (newest == nullptr || whole_wanted_ || newest->since_whole + 1 >= every) return Round();
  return newest->round;
}

// A part may leave out only what is kept: the base of the round, and what that builds on.
bool Job::BasesAreKept(const std::vector<Round>& bases) const {
  if (bases.empty()) return true;
  const CommittedCheckpoint* const newest = state_.NewestCheckpoint();
  if (newest == nullptr || bases.front() != round_->base || newest->round != round_->base) {
    return false;
  }
  return std::all_of(bases.begin() + 1, bases.end(), [newest](Round base) {
    return std::find(newest->bases.begin(), newest->bases.end(), base) != newest->bases.end();
  });
}

void Job::AbortRound(const std::string& reason, std::uint64_t retry_ms) {
  if (!round_) return;
  const auto abort = [&] {
    control::RoundAbortT message;
    message.job = state_.id.value();
    message.round = round_->number.value();
    message.reason = reason;
    return message;
  };
  std::set<std::string> servers = round_->servers;
  for (const auto& [part, copies] : round_->copies) {
    servers.insert(copies.fetching.begin(), copies.fetching.end());
    servers.insert(copies.done.begin(), copies.done.end());
  }
  for (const std::string& server : servers) cluster_.Send(server, Make(abort()));
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (state_.workers[slot].live) SendToTask(slot, Make(abort()));
  }
  Event("checkpoint aborted",
        "checkpoint " + std::to_string(round_->number.value()) + ": " + reason);
  if (round_->final_round && state_.phase == Phase::kDraining) {
    // The job cannot end before: whoever looks at it must see what it waits for.
    SetPhase(Phase::kDraining, "the final checkpoint failed and is tried again: " + reason);
  }
  next_round_ms_ = cluster_.now_ms() + retry_ms;
  round_.reset();
}

void Job::OnWorkerCut(std::size_t slot, const control::WorkerCutT& cut) {
  const Incarnation incarnation = state_.workers[slot].incarnation;
  for (const auto& lease : cut.leases) {
    state_.leases.Progress(incarnation, lease->id, lease->done);
  }
  dirty_.lazy = true;
  if (!round_ || round_->number.value() != cut.round || !round_->workers.contains(incarnation) ||
      round_->cuts.contains(incarnation)) {
    return;
  }
  if (round_->final_round && cut.clock != slots_[slot].drained_clock) {
    // The agent repeats what was kept of its task, and that was of a drain before: records came
    // back since, and the task still has to flush what they left.
    slots_[slot].drained = false;
    AbortRound("a worker has pushed since it was drained", timeouts_.round_retry_ms);
    SendToTask(slot, Make(control::DrainT{}));
    return;
  }
  state_.leases.CutWorker(incarnation);
  round_->news_ms = cluster_.now_ms();
  round_->cuts[incarnation] = {WorkerId(static_cast<std::uint32_t>(slot)), Clock(cut.clock),
                               cut.flushed, std::nullopt};
  if (cut.loss_scale > 0 && std::isfinite(cut.loss_scale)) {
    round_->cuts[incarnation].loss_scale = TaskLossScale{cut.loss_scale, cut.growth_tracker};
  }
  MaybeWriteManifest();
}

void Job::OnPrepared(const std::string& procid, const control::PreparedT& prepared) {
  if (!round_ || round_->number.value() != prepared.round || !round_->servers.contains(procid)) {
    return;
  }
  round_->prepared[procid] = control::Clone(prepared);
  NoteStore(procid);
  round_->news_ms = cluster_.now_ms();
  CopyParts();
  MaybeWriteManifest();
}

void Job::MaybeWriteManifest() {
  if (!round_ || !round_->manifest.empty() || round_->cuts.size() < round_->workers.size() ||
      round_->prepared.size() < round_->servers.size() || !PartsAreCopied()) {
    return;
  }
  checkpoint::Manifest manifest;
  manifest.job = state_.id;
  manifest.job_name = state_.name;
  manifest.round = round_->number;
  manifest.generation = state_.generation;
  manifest.time_ms = cluster_.now_ms();
  manifest.final_round = round_->final_round;
  manifest.layout_fingerprint = definition_.layout.fingerprint;
  manifest.program_version = PS_VERSION;
  manifest.spec_json = definition_.spec_json;
  for (const auto& table : definition_.layout.tables) {
    checkpoint::ManifestTable entry;
    entry.name = table->name;
    entry.rule = table->rule;
    entry.elements = table->elements;
    for (const auto& tensor : table->tensors) {
      std::vector<std::int64_t> shape;
      for (const auto& extent : tensor->shape) shape.push_back(extent->size);
      entry.tensors.push_back({tensor->name, std::move(shape), tensor->offset, tensor->elements});
    }
    manifest.tables.push_back(std::move(entry));
  }
  for (const auto& table : definition_.layout.row_tables) {
    manifest.row_tables.push_back({table->name, table->width});
  }
  manifest.shards.resize(map_.shards.size());
  std::vector<bool> seen(map_.shards.size(), false);
  round_->values_digests.assign(map_.shards.size(), "");
  for (const auto& [procid, prepared] : round_->prepared) {
    for (const auto& shard : prepared.shards) {
      if (shard->shard >= seen.size() || seen[shard->shard]) continue;
      const auto& entry = *map_.shards[shard->shard];
      if (map_.servers[entry.server]->procid != procid || entry.epoch != shard->epoch) continue;
      std::vector<Round> bases;
      for (const auto& base : shard->bases) bases.emplace_back(base->round);
      if (!BasesAreKept(bases)) {
        AbortRound("a server built on a checkpoint that may be gone",
                   timeouts_.failed_round_retry_ms);
        return;
      }
      seen[shard->shard] = true;
      checkpoint::ManifestShard& stored = manifest.shards[shard->shard];
      stored = {ShardId(shard->shard), procid,
                Epoch(shard->epoch),   shard->version,
                shard->bytes,          shard->digest,
                shard->values_digest,  shard->rows,
                shard->state_bytes,    {}};
      round_->bases.insert(bases.begin(), bases.end());
      stored.bases = std::move(bases);
      round_->state_bytes += shard->state_bytes;
      round_->values_digests[shard->shard] = shard->values_digest;
      round_->bytes += shard->bytes;
    }
  }
  if (std::find(seen.begin(), seen.end(), false) != seen.end()) {
    AbortRound("a server did not write all of its shards", timeouts_.failed_round_retry_ms);
    return;
  }
  round_->step = std::numeric_limits<std::uint64_t>::max();
  for (const auto& [incarnation, cut] : round_->cuts) {
    manifest.cuts.push_back({cut.worker, incarnation, cut.clock, cut.flushed});
    if (cut.loss_scale) {
      manifest.cuts.back().loss_scale = {cut.loss_scale->scale, cut.loss_scale->growth_tracker};
    }
    round_->step = std::min(round_->step, cut.clock.value());
  }
  manifest.step = round_->step;
  std::uint64_t samples = state_.leases.total();
  for (const Range& range : state_.leases.RemainingAtCut()) {
    manifest.data.remaining.push_back({range.begin, range.end});
    samples -= range.end - range.begin;
  }
  manifest.data.total_positions = state_.leases.total();
  manifest.data.repeated = state_.leases.repeated();
  round_->samples = samples;
  manifest.samples = samples;
  auto text = checkpoint::ToJson(manifest);
  if (!text.ok()) {
    AbortRound("manifest: " + text.error().message, timeouts_.failed_round_retry_ms);
    return;
  }
  round_->manifest = std::move(text).value();
  round_->manifest_hash = checkpoint::Hash(round_->manifest);
  committed_remaining_next_.clear();
  for (const auto& range : manifest.data.remaining) {
    committed_remaining_next_.push_back({range.begin, range.end});
  }
  for (const auto& [part, prepared] : round_->prepared) {
    round_->holders[part].insert(part);
    for (const std::string& server : round_->copies[part].done) {
      round_->holders[server].insert(part);
    }
  }
  for (const auto& [server, parts] : round_->holders) {
    control::WriteManifestT write;
    write.job = state_.id.value();
    write.round = round_->number.value();
    write.directory = round_->directory;
    write.manifest = round_->manifest;
    for (const std::string& part : parts) {
      write.parts.push_back(std::make_unique<control::PartNameT>());
      write.parts.back()->name = part;
    }
    cluster_.Send(server, Make(std::move(write)));
  }
}

void Job::OnManifestWritten(const std::string& procid, const control::ManifestWrittenT& written) {
  if (!round_ || round_->manifest.empty() || round_->number.value() != written.round) return;
  if (!round_->holders.contains(procid)) return;
  round_->written.insert(procid);
  round_->news_ms = cluster_.now_ms();
  if (round_->written.size() == round_->holders.size()) CommitRound();
}

// The state node that is written next is the commit point; RoundCommitted leaves after it.
void Job::CommitRound() {
  CommittedCheckpoint checkpoint;
  checkpoint.places = PlacesOfRound();
  const std::unique_ptr<Round_> round = std::move(round_);
  checkpoint.round = round->number;
  checkpoint.time_ms = cluster_.now_ms();
  checkpoint.step = round->step;
  checkpoint.samples = round->samples;
  checkpoint.bytes = round->bytes;
  checkpoint.duration_ms = cluster_.now_ms() - round->started_ms;
  checkpoint.directory = round->directory;
  checkpoint.manifest_hash = round->manifest_hash;
  checkpoint.final_round = round->final_round;
  checkpoint.state_bytes = round->state_bytes;
  checkpoint.bases.assign(round->bases.rbegin(), round->bases.rend());
  const CommittedCheckpoint* const before = state_.NewestCheckpoint();
  checkpoint.since_whole =
      checkpoint.bases.empty() || before == nullptr ? 0 : before->since_whole + 1;
  checkpoint.remaining = committed_remaining_next_;
  for (const auto& [incarnation, cut] : round->cuts) {
    if (cut.loss_scale) checkpoint.loss_scales[cut.worker.value()] = *cut.loss_scale;
    checkpoint.clocks[cut.worker.value()] = cut.clock.value();
  }
  checkpoint.ordinal = before == nullptr ? 1 : before->ordinal + 1;
  if (checkpoint.bases.empty()) whole_wanted_ = false;
  state_.checkpoints.push_back(checkpoint);
  RemoveCheckpoints(
      ExpiredCheckpoints(state_.checkpoints, Retention(), cluster_.RoundsHeldOf(state_.id)));
  const std::string share =
      checkpoint.bases.empty() ? std::string() : " of " + std::to_string(round->state_bytes);
  Event("checkpoint", "checkpoint " + std::to_string(round->number.value()) + " at step " +
                          std::to_string(round->step) + ", " + std::to_string(round->bytes) +
                          share + " bytes in " + std::to_string(checkpoint.duration_ms) + " ms");

  // The images hold what the dead had pushed: nobody needs to replay it again.
  bool live_changed = false;
  for (auto dead = state_.dead.begin(); dead != state_.dead.end();) {
    const bool covered = std::find(round->covered_dead.begin(), round->covered_dead.end(),
                                   dead->incarnation) != round->covered_dead.end();
    if (!covered) {
      ++dead;
      continue;
    }
    if (dead->agent.empty()) {
      dead->covered = true;
      ++dead;
      continue;
    }
    SendDropRing(dead->agent, dead->worker, dead->incarnation);
    live_changed = true;
    dead = state_.dead.erase(dead);
  }
  const auto committed = [&] {
    control::RoundCommittedT message = KeptRounds(round->number);
    for (const auto& [incarnation, cut] : round->cuts) {
      auto entry = std::make_unique<control::WorkerCutEntryT>();
      entry->worker = cut.worker.value();
      entry->incarnation = incarnation.value();
      entry->clock = cut.clock.value();
      message.cuts.push_back(std::move(entry));
    }
    return message;
  };
  // And one of each other folder, where copies of this round or of older ones may lie.
  std::set<std::string> servers = round->servers;
  std::set<std::string> stores;
  for (const std::string& server : servers) stores.insert(StoreOf(server));
  for (const auto& [procid, server] : cluster_.servers()) {
    if (server.alive() && stores.insert(server.store).second) servers.insert(procid);
  }
  for (const std::string& server : servers) cluster_.Send(server, Make(committed()));
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (state_.workers[slot].live) SendToTask(slot, Make(committed()));
  }
  if (live_changed) {
    ++state_.live_version;
    BroadcastUpdate(false, true);
  }
  if (round->suspends && state_.suspending) return TakeOff();
  if (round->final_round) {
    final_digests_ = round->values_digests;
    evaluator_ = Incarnation();  // who evaluates an earlier one, which a loss has undone, is told
    SetPhase(Phase::kEvaluating, "evaluates the final checkpoint");
    SendEvaluate();
  }
}

}  // namespace ps::coordinator
