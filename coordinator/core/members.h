// The servers and agents of the cluster, as the leader knows them.
//
// A member is present while its ephemeral node exists and registered once it has
// introduced itself to this leader; it is used when it is both. Identity is the
// procid: a restarted daemon is a new member, its predecessor of the same name
// is gone at that moment, without waiting for its session to end. An introduction
// of the predecessor that was long on its way takes the new one's place until
// that one, which hears no more pings, introduces itself again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/messages/control.h"
#include "coordinator/core/gpu_sets.h"

namespace ps::coordinator {

// What an operator lets a node have, by its name.
enum class Duty {
  kFull,
  kCordoned,  // keeps what it has, gets nothing new
  kDraining,  // and what it has moves to others
};
const char* DutyName(Duty duty);  // "full", "cordoned", "draining"
std::optional<Duty> DutyOf(const std::string& name);

struct Gpu {
  std::string uuid;
  std::string name;
  std::uint64_t memory_bytes = 0;
  std::string capability;  // "9.0"
  std::string trouble;     // why no task gets it; empty: it is well
  // As its agent said last, if it can say it.
  struct Load {
    std::uint32_t utilization_percent = 0;
    std::uint64_t memory_used = 0;
    std::uint32_t celsius = 0;
    std::uint64_t ecc_errors = 0;  // not corrected
    bool throttled = false;
  };
  std::optional<Load> load;
};

struct Member {
  std::string procid;
  std::string name;
  std::string host;
  std::string version;
  bool present = false;
  bool registered = false;
  std::uint64_t registered_ms = 0;
  // A server whose node went at that time, as when its session ended; 0 if not so. Its process may
  // live, and is awaited for a while with what nobody else has.
  std::uint64_t gone_ms = 0;
  std::vector<std::string> lanes;  // servers, as the next three
  std::string store;               // identity of its folder of checkpoints, which several may share
  std::string files;               // where others read from it; empty: nowhere
  std::string rack;                // with what else it may fail at once; empty: not known
  std::uint32_t slots = 0;         // agents, as the next
  std::string label;               // takes the tasks of jobs with this resources.label only
  std::vector<Gpu> gpus;           // that its tasks can compute on
  GpuTopology gpu_topology;        // of these

  bool unsteady = false;  // fails again and again: gets what nobody else can take
  Duty duty = Duty::kFull;

  bool alive() const { return present && registered; }
  std::int64_t well_gpus() const {
    return std::count_if(gpus.begin(), gpus.end(),
                         [](const Gpu& gpu) { return gpu.trouble.empty(); });
  }
  bool awaited() const { return !present && gone_ms != 0; }
  // What it had may be there still.
  bool may_hold() const { return present || awaited(); }
  bool leaves() const { return alive() && duty == Duty::kDraining; }
};

using Members = std::map<std::string, Member>;  // by procid

// What a job needs of the coordinator around it.
class Cluster {
 public:
  virtual ~Cluster() = default;
  virtual std::uint64_t now_ms() const = 0;  // Unix time
  virtual const Members& servers() const = 0;
  // False while a new leader has not seen yet which servers there are: none is gone then.
  virtual bool servers_known() const = 0;
  virtual const Members& agents() const = 0;
  // Slots of the agent that no task of any job occupies.
  virtual std::uint32_t FreeSlots(const std::string& agent) const = 0;
  // GPUs of the agent, by their places among its own, that are well and that no task has.
  virtual GpuMask FreeGpus(const std::string& agent) const = 0;
  // Checkpoints of the job that other jobs start from, or load parts of, and have none of their own
  // yet.
  virtual std::set<Round> RoundsHeldOf(JobId job) const = 0;
  virtual void Send(const std::string& procid, control::MessageT message) = 0;
  // A task that never got ready: the agent may be the reason.
  virtual void NoteTaskFailure(const std::string& agent) = 0;
};

}  // namespace ps::coordinator
