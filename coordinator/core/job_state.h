// What ZooKeeper keeps of a job: all that a new leader needs to go on.
//
// /jobs/<id>/state is ToJson of this; the routing map is a node of its own. What
// is not here (progress reports, which shards are ready, an open checkpoint
// round) is learnt again from the members or aborted by a take-over.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/messages/control.h"
#include "common/result.h"
#include "coordinator/core/leases.h"

namespace ps::coordinator {

enum class Phase {
  kQueued,   // waits for servers and worker slots
  kPlacing,  // tasks start, shards are placed
  kRunning,
  kRecovering,  // some shards or all workers are missing
  kDraining,    // all records trained; residuals are flushed, the last checkpoint is written
  kEvaluating,
  kSucceeded,
  kFailed,
  kCancelled,
  kImporting,  // a checkpoint of elsewhere is copied to the servers
  kImported,   // it is there; nothing is or was trained here
  kSuspended,  // by an operator: its checkpoints are all there is of it
};
const char* PhaseName(Phase phase);
std::optional<Phase> PhaseFromName(const std::string& name);
inline bool IsOver(Phase phase) {
  return phase == Phase::kSucceeded || phase == Phase::kFailed || phase == Phase::kCancelled ||
         phase == Phase::kImported;
}

// One slot of the job. `incarnation` 0: no task yet.
struct WorkerSlot {
  Incarnation incarnation;
  std::string agent;  // procid, empty: none
  std::string agent_name;
  std::uint64_t task = 0;
  std::vector<std::string> gpus;  // uuids, of the agent's; the task's as long as there is one
  bool live = false;              // in the live set: it has been told to train
  std::uint64_t retry_at_ms = 0;
};

// A dead incarnation whose pushes no checkpoint covers yet.
struct DeadWorker {
  WorkerId worker;
  Incarnation incarnation;
  Clock first_clock;
  std::string agent;      // procid that has the ring; empty: nobody (the agent is gone)
  bool replayed = false;  // under the present map
  // A checkpoint holds what the shards had applied of it. Kept while the agent is away: what no
  // shard had answered when it died may still be in a ring that comes back with the agent.
  bool covered = false;
  friend bool operator==(const DeadWorker&, const DeadWorker&) = default;
};

// Where training.loss_scaling stood, of one slot.
struct TaskLossScale {
  float scale = 0;
  std::uint32_t growth_tracker = 0;
  friend bool operator==(const TaskLossScale&, const TaskLossScale&) = default;
};

// Which folders of checkpoints have which parts. Empty: nothing is known, as in a checkpoint of an
// earlier version, or all servers share one folder.
struct PartPlaces {
  struct Store {
    std::string id;
    std::string server;  // the name of a server that had it
    friend bool operator==(const Store&, const Store&) = default;
  };
  std::vector<Store> stores;
  std::vector<std::vector<std::uint32_t>> parts;  // of each part the stores, by their number
  std::vector<std::uint32_t> shards;              // of each shard the part

  bool empty() const { return shards.empty(); }
  // Stores that every part lies in, at least.
  std::size_t Copies() const {
    std::size_t copies = parts.empty() ? 1 : parts.front().size();
    for (const auto& part : parts) copies = std::min(copies, part.size());
    return copies;
  }
  friend bool operator==(const PartPlaces&, const PartPlaces&) = default;
};

struct CommittedCheckpoint {
  Round round;
  std::uint64_t time_ms = 0;
  std::uint64_t step = 0;
  std::uint64_t samples = 0;
  std::uint64_t bytes = 0;
  std::uint64_t duration_ms = 0;
  std::string directory;  // relative to the servers' checkpoint directory
  std::string manifest_hash;
  bool final_round = false;
  std::uint64_t state_bytes = 0;  // of the whole state, of which `bytes` were written
  std::vector<Round> bases;       // earlier ones that it builds on, the newest first
  std::uint64_t since_whole = 0;  // checkpoints since the last one that builds on none
  std::vector<Range> remaining;   // data position
  bool damaged = false;           // a shard could not be restored from it
  bool pinned = false;            // by an operator: it stays
  std::uint64_t ordinal = 0;      // which of the job's checkpoints it is, from 1
  PartPlaces places;
  std::map<std::uint32_t, TaskLossScale> loss_scales;  // by slot, of those that had one
  std::map<std::uint32_t, std::uint64_t> clocks;       // of the last push in it, by slot
};

struct JobEvent {
  std::uint64_t seq = 0;
  std::uint64_t time_ms = 0;
  std::string type;
  std::string message;
};

struct JobResult {
  double metric = 0;
  double loss = 0;
  std::uint64_t records = 0;
  std::string metric_name;
};

// With whose request a job began.
struct JobOrigin {
  std::string owner = {};    // empty: nobody in particular
  std::string request = {};  // what its sender called it, so that it may be sent again; or empty
  std::uint64_t token = 0;   // of the job's data plane (LaneHeader.token); in no answer and no log
};

struct JobState {
  JobId id;
  std::string name;
  Phase phase = Phase::kQueued;
  std::string reason;
  std::uint32_t generation = 1;
  std::uint64_t created_ms = 0;
  std::uint64_t started_ms = 0;
  std::uint64_t finished_ms = 0;
  std::uint64_t live_version = 0;
  std::uint32_t next_incarnation = 1;
  std::uint64_t next_round = 1;
  std::uint64_t restarts = 0;
  std::uint64_t next_event = 1;
  std::vector<WorkerSlot> workers;
  std::vector<std::uint64_t> first_clocks;  // of each slot's live incarnation
  std::vector<DeadWorker> dead;
  LeaseBook leases;
  std::vector<CommittedCheckpoint> checkpoints;  // oldest first
  std::uint64_t start_job = 0;                   // checkpoint the job started from, if any
  std::uint64_t start_round = 0;
  std::string start_directory;
  PartPlaces start_places;
  bool suspending = false;  // with the next checkpoint
  bool imported = false;    // it is there for a checkpoint that came from elsewhere
  JobOrigin origin;
  std::optional<JobResult> result;
  std::deque<JobEvent> events;  // a node of its own, the newest kMaxEvents

  // The newest that is not damaged, or null.
  const CommittedCheckpoint* NewestCheckpoint() const {
    const auto found = std::find_if(checkpoints.rbegin(), checkpoints.rend(),
                                    [](const CommittedCheckpoint& one) { return !one.damaged; });
    return found == checkpoints.rend() ? nullptr : &*found;
  }
};

inline constexpr std::size_t kMaxEvents = 500;

std::string StateToJson(const JobState& state);
Result<JobState> StateFromJson(const nlohmann::json& json);
std::string EventsToJson(const std::deque<JobEvent>& events);
Result<std::deque<JobEvent>> EventsFromJson(const nlohmann::json& json);

}  // namespace ps::coordinator
