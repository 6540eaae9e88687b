// The life of one job: placement, workers, leases, checkpoint rounds, recovery, end.
//
// A state machine on the coordinator's loop. Handlers change the state and
// Send() messages through the Cluster; the caller writes what became dirty to
// ZooKeeper before it lets those messages go (docs/architecture.md, "Control
// plane"). Nothing here reads a clock or does I/O.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "checkpoint/manifest.h"
#include "common/job/job_spec.h"
#include "common/layout/layout.h"
#include "coordinator/core/batch_shares.h"
#include "coordinator/core/job_state.h"
#include "coordinator/core/members.h"
#include "coordinator/core/retention.h"

namespace ps::coordinator {

// What is constant over the life of a job.
struct JobDefinition {
  JobSpec spec;
  std::string spec_json;  // resolved
  control::LayoutT layout;
  control::DataInfoT data;
  std::uint64_t files_fingerprint = 0;  // of the values that checkpoint.load takes from files
  std::uint32_t shards = 0;

  // Of one push; leases are made of whole ones.
  std::uint64_t PushRecords() const {
    return static_cast<std::uint64_t>(spec.training.push_records());
  }
};

// How long things may take before the job acts on it.
struct JobTimeouts {
  std::uint64_t task_start_ms = 120'000;  // a task that was started must be ready
  std::uint64_t round_ms = 60'000;        // a checkpoint round that does not come on
  std::uint64_t round_retry_ms = 2'000;   // after a round that was aborted
  std::uint64_t failed_round_retry_ms = 10'000;
  std::uint64_t rewind_grace_ms = 10'000;  // for lost agents to come back before a rewind
  std::uint64_t feed_stalled_ms = 3'000;   // a backup that its chain cannot reach is dropped
  std::uint64_t backup_avoid_ms = 20'000;  // and its server gets no new ones for so long
  std::uint64_t synced_wait_ms = 1'000;    // for other backups to come in sync, to save maps
  std::uint64_t restore_retry_ms = 3'000;  // a restore whose source did not answer
};

// A checkpoint that is to come into the cluster, and where it is.
struct ImportOrder {
  std::string endpoint;   // of a file service that has it
  std::string directory;  // there: "job-7/ckpt-12"
  std::string manifest;   // its text
};

class Job {
 public:
  // A new job.
  Job(Cluster& cluster, JobDefinition definition, JobId id, const JobTimeouts& timeouts);
  // One that is made for an imported checkpoint; `manifest` is that of the order.
  Job(Cluster& cluster, JobDefinition definition, JobId id, const JobTimeouts& timeouts,
      ImportOrder order, checkpoint::Manifest manifest);
  // One that a former leader has left; members register again afterwards.
  Job(Cluster& cluster, JobDefinition definition, JobState state, control::MapT map,
      const JobTimeouts& timeouts);

  JobId id() const { return state_.id; }
  const JobState& state() const { return state_; }
  const control::MapT& map() const { return map_; }
  const JobDefinition& definition() const { return definition_; }
  bool over() const { return IsOver(state_.phase); }
  // Servers may have parts of an import that came to nothing, or of one that was removed.
  bool HasLeftovers() const { return over() && state_.imported && state_.checkpoints.empty(); }

  ~Job();
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  // Before the first Tick.
  void SetOrigin(JobOrigin origin) { state_.origin = std::move(origin); }

  // The checkpoint to start from; before the first Tick.
  void StartFrom(JobId job, Round round, std::string directory, PartPlaces places);

  // An event: with what the job begins, beside its initial values.
  void TellStart(const std::string& what) { Event("start", what); }

  void Tick();
  void OnServerReady(const std::string& procid);
  void OnServerGone(const std::string& procid);
  void OnAgentReady(const std::string& procid, const control::RegisterAgentT& registration);
  void OnAgentGone(const std::string& procid);
  void OnUnsteady(const std::string& who);  // for the events
  // A message of a server, an agent, or (task != 0) of a task of this job.
  void OnServerMessage(const std::string& procid, const control::MessageT& message);
  void OnAgentMessage(const std::string& procid, const control::MessageT& message);
  void Cancel(const std::string& reason);
  // Takes the job off the cluster with a checkpoint that is taken for it; of it nothing but its
  // checkpoints is left, until Resume(), which also takes back a Suspend() that waits for its
  // checkpoint. Said twice is as said once. kConflict if the job is over or about to be.
  Status Suspend();
  Status Resume();
  // From now on the job has so many workers: missing ones start as there are slots, those of the
  // highest numbers end as with a node that drains. {before, workers, free_slots}; `dry_run`
  // changes nothing. kConflict if the job is over or about to be, or bulk-synchronous.
  Result<nlohmann::json> Scale(std::uint64_t workers, bool dry_run);

  // Evens out how many copies of shards the servers have, while training goes on. Returns those to
  // move first: {shard, from}; none: it is even. Forgotten when the leader changes.
  nlohmann::json Rebalance(bool dry_run);
  // Copies of shards on the server.
  std::size_t CopiesOn(const std::string& server) const;
  // Tasks, and pushes that the agent keeps and may have to replay.
  bool NeedsAgent(const std::string& agent) const;
  // Operators and checkpoints. Each says what it has done, as the API tells it.
  // kNotFound without that checkpoint; kConflict beyond kPinsMax.
  Result<nlohmann::json> PinCheckpoint(Round round, bool pinned);
  // Removes what retention does not keep, with `keep` in the place of the job's. Servers delete it.
  // `all`: but for what is pinned or held nothing is kept. kConflict while an import is under way,
  // and with `all` while the job is not over.
  Result<nlohmann::json> PruneCheckpoints(std::optional<std::size_t> keep, bool all, bool dry_run);
  // The whole job goes back to the checkpoint, and later ones are discarded. kConflict if it is not
  // confirmed (the message says what it costs), a later one is pinned or held, or the job cannot.
  Result<nlohmann::json> RollBack(Round round, bool confirmed);

  // Uuids of the agent's GPUs that tasks of this job have.
  void AddGpusOn(const std::string& agent, std::set<std::string>& taken) const;
  // Something is wrong with it: the task that computes on it ends, and begins anew elsewhere.
  void LeaveGpu(const Member& agent, const Gpu& gpu);
  // Tasks of this job that occupy slots of the agent.
  std::uint32_t TasksOn(const std::string& agent) const;
  // Agent that runs or ran the worker's newest task; empty if none.
  std::string AgentOfWorker(WorkerId worker) const;

  // What has to be written. Progress of leases alone is lazy: it may wait a second.
  struct Dirty {
    bool state = false;
    bool lazy = false;
    bool map = false;
    bool events = false;
  };
  Dirty TakeDirty();
  void MarkLazy() { dirty_.lazy = true; }

  // For people: JOB of the API.
  nlohmann::json Describe() const;
  nlohmann::json DescribeCheckpoints() const;

 private:
  struct Round_;
  struct Import_;
  Job(Cluster& cluster, JobDefinition definition, JobId id, const JobTimeouts& timeouts,
      Phase phase, const std::string& reason);
  struct Slot {  // what is not persisted of a worker slot
    bool ready = false;
    std::uint64_t started_ms = 0;
    std::uint32_t early_failures = 0;
    std::string failure;  // last TaskFailed
    bool drained = false;
    std::uint64_t drained_clock = 0;  // its last push then
    std::optional<control::ProgressT> progress;
    std::uint64_t progress_ms = 0;
    std::uint64_t skipped_told = 0;  // steps skipped that the events name
    std::uint64_t refused_told = 0;  // segments not finite, the same
    std::uint64_t redone_told = 0;   // implausible steps, the same
    std::uint64_t dropped_told = 0;
    // What the slot's next task begins with: of its last one, or of the checkpoint the job is at.
    std::optional<TaskLossScale> loss_scale;
    bool evicted = false;   // was asked to end: its agent drains, or there are too many
    bool gpu_left = false;  // likewise, at once: something is wrong with its GPU
  };

  // No server has anything of it in memory, and no agent a task.
  bool OffCluster() const {
    return over() || state_.phase == Phase::kSuspended || state_.phase == Phase::kQueued;
  }
  // With the newest checkpoint, which is all that is left.
  void TakeOff();

  // Workers.
  void BeginShares();                     // speeds of as many workers as are wanted
  bool Takes(const Member& agent) const;  // tasks of this job, if it has a slot
  // How many tasks of this job it has room for.
  std::uint32_t RoomOn(const Member& agent) const;
  // How well the GPUs are connected that a task would get there; the same for all if it gets one.
  std::tuple<std::uint16_t, std::uint64_t> GpuScoreOn(const Member& agent) const;
  // "free worker slots with 2 GPUs each on agents with the label `x`".
  std::string SlotsText() const;
  std::size_t LiveCount() const;
  std::optional<std::size_t> SlotOfTask(const std::string& agent, std::uint64_t task) const;
  void EvictTasks();
  void StartMissingTasks();
  void StartTask(std::size_t slot, const Member& agent);
  void SendTaskStart(std::size_t slot);
  void JoinReadyTasks();
  void OnTaskReady(std::size_t slot, const control::TaskReadyT& ready);
  void OnTaskFailed(std::size_t slot, const control::TaskFailedT& failed);
  void OnTaskExited(const std::string& agent, const control::TaskExitedT& exited);
  // They begin where the one that is furthest has come to, or each where its own slot has.
  void MakeLive(const std::vector<std::size_t>& slots, bool at_their_own_clocks = false);
  void LoseTask(std::size_t slot, const control::RingInfoT* ring, const std::string& why);
  void OnRingOffered(const std::string& procid, const std::string& name,
                     const control::RingInfoT& ring);
  void OnLeaseRequest(std::size_t slot, const control::LeaseRequestT& request);
  void OnProgress(std::size_t slot, const control::ProgressT& progress);
  void OnReplayDone(const control::ReplayDoneT& done);
  void SendReplay(const DeadWorker& dead);
  void AddUp(const control::ProgressT& progress);
  void TellNotFinite(std::size_t slot, const control::ProgressT& progress);
  void TellImplausible(std::size_t slot, const control::ProgressT& progress);
  // Every slot's is that of the newest checkpoint, if this has one of it.
  void TakeLossScales();

  // Shards.
  bool Homeless() const;
  bool Unplaced() const;  // some are on no server, by the map
  bool AllHomeless() const;
  bool ShardsReady() const;
  void PlaceShards();
  // What the restore of these shards has to wait for, in words; empty: nothing.
  std::string MissingParts(const std::vector<std::uint32_t>& shards) const;
  std::vector<std::uint32_t> ShardsToPlace() const;
  // Servers that have something of the checkpoint to restore, and then all others with a store of
  // their own.
  std::vector<std::unique_ptr<control::FileSourceT>> Sources() const;
  void OnRestoreFailed(const control::RestoreFailedT& failed);
  // `why` the whole job goes back to its newest checkpoint.
  void Rewind(const std::string& why);
  // Tasks end and their pushes are dropped; what is left to train is as the newest checkpoint says.
  void ForgetSinceCheckpoint(const std::string& why);
  // Shards cannot be restored from a checkpoint: the job goes back to the one before. False if
  // there is none.
  bool GoBackBefore(Round damaged, const std::string& message);
  // All shards, those that are well too, and a Rewind().
  void GoBack(const std::string& why);
  // Wherever they are: they are placed anew.
  void ForgetPlaces();
  bool Unaccounted() const;
  // Those that are the first of some shard's chain, and all that hold or get a copy of one.
  std::set<std::string> FirstServers() const;
  std::set<std::string> JobServers() const;

  // Chains: promotes backups of who is gone, drops and adds backups. A new map if it has to change.
  void MendChains();
  bool ChainsNeedMending() const;
  void OnChainReport(const std::string& procid, const control::ServerReportT& report);
  bool MayDrop(ShardId shard, const control::BackupEntryT& backup);
  bool TakeSynced(control::MapT& map);
  bool SyncedNow(const control::MapT& map, std::uint32_t shard, std::size_t place) const;
  void AskSurvivors();
  void TellWhole();
  // That have all their backups in sync.
  std::size_t ReplicatedShards() const;
  std::vector<std::string> AvoidedServers() const;
  // The server drains, or the shard's copy there is to move.
  bool Leaves(ShardId shard, const std::string& server) const;
  // Enough of its copies are in sync where they stay: those that leave may go.
  bool MayShed(ShardId shard, const control::MapT& map) const;
  void ContinueRebalance();

  // Rounds.
  void MaybeBeginRound();
  void BeginRound(bool final_round);
  void AbortRound(const std::string& reason, std::uint64_t retry_ms);
  void OnWorkerCut(std::size_t slot, const control::WorkerCutT& cut);
  void OnPrepared(const std::string& procid, const control::PreparedT& prepared);
  void OnManifestWritten(const std::string& procid, const control::ManifestWrittenT& written);
  void MaybeWriteManifest();
  void CommitRound();
  // A part lies in several servers' stores before the round counts.
  void CopyParts();
  void OnPartCopied(const std::string& procid, const control::PartCopiedT& copied);
  void OnPartCopyFailed(const std::string& procid, const control::PartCopyFailedT& failed);
  bool PartsAreCopied() const;
  // A server has found it so in its folder; also when the job is over.
  void OnPartDamaged(const std::string& procid, const control::PartDamagedT& damaged);
  void OnPartRepaired(const std::string& procid, const control::PartRepairedT& repaired);
  // Servers with other stores than those that have the part or are about to, the best first.
  std::vector<const Member*> CopyCandidates(const std::string& part) const;
  std::string StoreOf(const std::string& procid) const;  // empty if the server is gone
  void NoteStore(const std::string& procid);             // that it has a part of the round
  PartPlaces PlacesOfRound() const;

  // An import. It ends with the term of the leader that began it.
  void ContinueImport();
  void OnImportMessage(const std::string& procid, const control::MessageT& message);
  // Those that may have the part next, the best first; `none_left`: nobody is left who may.
  std::vector<const Member*> ImportCandidates(const std::string& part, bool& none_left) const;
  void SendImportCopy(const std::string& server, const std::string& part);
  void SendImportManifest(const std::string& server, const std::set<std::string>& parts);
  // To a server that may not have heard it.
  void RepeatImport(const std::string& server);
  void CommitImport();
  void AbortImport();
  void SendLeftovers(const std::string& server);

  // Checkpoints.
  CommittedCheckpoint* FindCheckpoint(Round round);  // null if there is none
  Error NoSuchCheckpoint(Round round) const;
  RetentionRule Retention() const;
  void RemoveCheckpoints(const std::vector<Round>& rounds);
  // Tells servers what to keep on their disks: what is older than `below` and not named goes.
  control::RoundCommittedT KeptRounds(Round below) const;
  nlohmann::json DescribeCheckpoint(const CommittedCheckpoint& checkpoint) const;

  // Phases.
  void StartRunning();
  void MaybeDrain();
  void SendEvaluate();
  void OnEvaluated(std::size_t slot, const control::EvaluatedT& evaluated);
  void Finish(Phase phase, const std::string& reason);
  void SetPhase(Phase phase, const std::string& reason);
  // How long ago the newest event of the type was whose message begins so; none if none is known
  // any more.
  std::optional<std::uint64_t> MsSince(const std::string& type, const std::string& begins) const;
  // ", 0.3 s after TEXT", by the same; empty if none is known any more.
  std::string After(const std::string& type, const std::string& begins,
                    const std::string& text) const;
  void Event(const std::string& type, const std::string& message);

  // Messages.
  control::LiveSetT LiveSet() const;
  control::JobStartT JobStart() const;
  void SendJobStart(const std::string& server);
  void SendJobDrop(const std::string& server);
  void SendDropRing(const std::string& agent, WorkerId worker, Incarnation incarnation);
  void SendStopTask(const std::string& agent, std::uint64_t task, const std::string& reason,
                    bool kill);
  void SendToTask(std::size_t slot, control::MessageT message);
  void BroadcastUpdate(bool with_map, bool with_live);
  struct RestoreSource {
    Round round;
    JobId job;
    std::string directory;
    const PartPlaces* places = nullptr;  // in the state
  };
  RestoreSource Restore() const;
  Round BaseOfRounds() const;
  bool BasesAreKept(const std::vector<Round>& bases) const;
  std::uint64_t MaxClock() const;
  std::uint64_t MinClock() const;

  Cluster& cluster_;
  JobDefinition definition_;
  const JobTimeouts timeouts_;
  JobState state_;
  control::MapT map_;

  std::vector<Slot> slots_;
  std::optional<BatchShares>
      shares_;  // with training.batch_by_speed; measured again after a take-over
  std::map<std::uint32_t, control::ShardStateT> shard_states_;
  std::unique_ptr<Round_> round_;
  std::unique_ptr<Import_> import_;
  // What is known of chains beyond the map; learnt again after a take-over.
  struct Chains {
    // Shard, server, and since when it is a member.
    using Copy = std::tuple<std::uint32_t, std::string, std::uint64_t>;
    std::map<Copy, std::string> synced;  // to be written into the map, and who says so
    std::uint64_t synced_ms = 0;         // since when there are any
    std::set<Copy> stalled;
    std::set<std::uint32_t> lost;  // promoted copies that are not there
    // A backup is dropped once the first of its chain has been heard of after it was gone.
    std::map<std::string, std::uint64_t> gone;   // by server: the question that was asked then
    std::map<std::string, std::uint64_t> heard;  // by server: the newest question it has answered
    std::uint64_t first_asked = 0;
    std::uint64_t last_asked = 0;
    std::uint64_t ask_again_ms = 0;
    std::map<std::string, std::uint64_t> avoid_until_ms;  // by server
    std::optional<bool> whole;                            // as the events say
    bool rebalances = false;
    std::map<ShardId, std::string> moving;  // and the server that it leaves
  };
  Chains chains_;
  // Restores whose source did not answer are tried again: the shard, how often, and when.
  struct RestoreRetry {
    std::uint32_t times = 0;
    std::uint64_t at_ms = 0;  // 0: it is under way
    Epoch epoch;              // of the shard when it failed
  };
  std::map<std::uint32_t, RestoreRetry> restore_retries_;
  std::uint64_t next_round_ms_ = 0;
  bool round_wanted_ = false;
  bool whole_wanted_ = false;  // a part that the next round would build on is damaged everywhere
  // Damage that the events tell of, in this term: store, round and part.
  std::set<std::tuple<std::string, Round, std::string>> damage_told_;
  std::uint64_t rewind_at_ms_ = 0;
  std::set<std::string> awaited_;  // servers that may come back with what they alone have
  std::vector<Range> committed_remaining_next_;  // of the checkpoint to come
  std::vector<std::string> final_digests_;       // empty after a take-over: not checked then
  Incarnation evaluator_;
  control::ProgressT finished_;                        // sums over tasks that are gone
  std::map<std::string, std::uint64_t> event_counts_;  // in this term, by type
  std::uint64_t recoveries_ = 0;                       // in this term
  std::uint64_t recovery_ms_ = 0;                      // of all these
  std::string last_wait_reason_;
  Dirty dirty_;
};

}  // namespace ps::coordinator
