// The leading coordinator as a state machine: members, jobs, and requests of operators.
//
// Inputs are calls; what they cause is taken with TakeOutput() after each:
// first the nodes to write (in one multi that checks the leadership), then the
// messages and answers, which must not leave before that write is durable. So
// whatever a member or an operator has heard survives the coordinator.
// One loop owns it. No clock: the caller gives the time with each input.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "coordinator/core/circuit_breaker.h"
#include "coordinator/core/job.h"
#include "coordinator/core/members.h"

namespace ps::coordinator {

// Names one open request of an operator; the shell answers it once.
using Ticket = std::uint64_t;

// A job that is to be.
struct SubmitOrder {
  std::string spec_json;
  bool dry_run = false;
  JobOrigin origin = {};
};

struct NodeWrite {
  std::string path;  // below the chroot
  std::string data;
  bool create = false;
};

struct Answer {
  Ticket ticket = 0;
  Result<nlohmann::json> body = nlohmann::json();
  bool created = false;  // 201 instead of 200
};

struct Output {
  std::vector<NodeWrite> writes;
  struct Send {
    std::string procid;
    std::vector<std::byte> bytes;
  };
  std::vector<Send> sends;
  std::vector<Answer> answers;
  bool lazy = false;  // there is something to write, but it may wait a second

  bool empty() const { return writes.empty() && sends.empty() && answers.empty(); }
};

// The nodes of one job as read from ZooKeeper.
struct JobRecord {
  std::uint64_t id = 0;
  std::string spec;    // resolved JSON
  std::string layout;  // control::Preflight result: layout and data, FlatBuffers
  std::string state;
  std::string map;
  std::string events;
};

struct CoreOptions {
  std::string id;  // of this coordinator
  std::uint64_t heartbeat_ms = 1000;
  std::uint64_t settle_ms = 3000;  // after a take-over, for members to register
  std::uint64_t preflight_ms = 90'000;
  std::uint64_t announce_ms = 15'000;  // who has registered and has no node by then is gone
  // For a server whose session ended to come back before what it alone has is restored elsewhere.
  std::uint64_t await_ms = 3000;
  JobTimeouts job;
};

// A member as its ephemeral node announces it.
struct Presence {
  std::string procid;
  std::string name;
  std::string host;
};

class Core final : public Cluster {
 public:
  // A node with what concerns no job.
  static constexpr const char* kClusterPath = "/cluster";

  Core(CoreOptions options, std::uint64_t leader_epoch);

  // Jobs of former leaders. A record that cannot be read is an error: the operator must know.
  Status Load(const std::vector<JobRecord>& records, std::uint64_t now_ms);

  // What SetDuty() of former leaders has left; before the first member.
  Status LoadCluster(const std::string& text);

  void SetServers(const std::vector<Presence>& present, std::uint64_t now_ms);
  void SetAgents(const std::vector<Presence>& present, std::uint64_t now_ms);
  // There is good reason to think that the server's process has ended: it is gone now, although its
  // ephemeral node stays until its session ends. If it was alive after all it introduces itself
  // again and is a member as before; epochs bear that.
  void MarkServerDead(const std::string& procid, std::uint64_t now_ms);
  // From the control socket; procid is the sender's identity. Unregistered senders are ignored
  // until they introduce themselves.
  void OnMessage(const std::string& procid, control::MessageT message, std::uint64_t now_ms);
  void Tick(std::uint64_t now_ms);

  // Operators. Each is answered through Output::answers.
  // An order that is repeated (the same owner and request, which has a name) is answered with the
  // job that there is; kConflict if that has another name.
  void Submit(Ticket ticket, SubmitOrder order, std::uint64_t now_ms);
  void Cancel(Ticket ticket, const std::string& job, const std::string& reason,
              std::uint64_t now_ms);
  void ReadLog(Ticket ticket, const std::string& job, std::uint32_t worker, std::uint64_t offset,
               std::uint32_t limit, std::uint64_t now_ms);
  // Of all members of that name, now and later. kNotFound if there is none.
  void SetDuty(Ticket ticket, const std::string& node, Duty duty, std::uint64_t now_ms);
  void Suspend(Ticket ticket, const std::string& job, std::uint64_t now_ms);
  void Resume(Ticket ticket, const std::string& job, std::uint64_t now_ms);
  void Scale(Ticket ticket, const std::string& job, std::uint64_t workers, bool dry_run,
             std::uint64_t now_ms);
  void Rebalance(Ticket ticket, const std::string& job, bool dry_run, std::uint64_t now_ms);
  void PinCheckpoint(Ticket ticket, const std::string& job, Round round, bool pinned,
                     std::uint64_t now_ms);
  // `keep` in the place of the job's checkpoint.keep.
  void PruneCheckpoints(Ticket ticket, const std::string& job, std::optional<std::size_t> keep,
                        bool all, bool dry_run, std::uint64_t now_ms);
  // Makes a job for a checkpoint of elsewhere and has servers copy it. `name` empty: that of its
  // job there. `owner` as in JobOrigin. The answer comes at once; the job's phase says when it is
  // there.
  void Import(Ticket ticket, ImportOrder order, const std::string& name, const std::string& owner,
              std::uint64_t now_ms);
  void RollBack(Ticket ticket, const std::string& job, Round round, bool confirmed,
                std::uint64_t now_ms);
  // Answered at once.
  // JobOrigin::owner; nothing if there is no such job.
  std::optional<std::string> OwnerOf(const std::string& job) const;
  Result<nlohmann::json> DescribeJob(const std::string& job) const;
  nlohmann::json DescribeJobs() const;
  std::vector<nlohmann::json> DescribeOpenJobs() const;  // each as DescribeJob() has it
  Result<nlohmann::json> DescribeEvents(const std::string& job, std::uint64_t after) const;
  Result<nlohmann::json> DescribeCheckpoints(const std::string& job) const;
  nlohmann::json DescribeNodes() const;

  Output TakeOutput(bool with_lazy);

  // Cluster:
  std::uint64_t now_ms() const override { return now_ms_; }
  const Members& servers() const override { return servers_; }
  bool servers_known() const override { return servers_known_; }
  const Members& agents() const override { return agents_; }
  std::uint32_t FreeSlots(const std::string& agent) const override;
  GpuMask FreeGpus(const std::string& agent) const override;
  std::set<Round> RoundsHeldOf(JobId job) const override;
  void Send(const std::string& procid, control::MessageT message) override;
  void NoteTaskFailure(const std::string& agent) override;

 private:
  struct Submission {
    Ticket ticket = 0;
    std::string spec_json;
    JobSpec spec;
    bool dry_run = false;
    JobOrigin origin;
    std::string agent;
    std::uint64_t deadline_ms = 0;
  };
  struct LogRequest {
    Ticket ticket = 0;
    std::string agent;
    std::uint64_t deadline_ms = 0;
  };

  // True if the order is one that is known, and is answered.
  bool AnswerRepeated(Ticket ticket, const SubmitOrder& order, const JobSpec& spec);
  const Job* Find(const std::string& name_or_id) const;
  Job* Find(const std::string& name_or_id);
  void SetPresent(Members& members, const std::vector<Presence>& present, bool servers);
  // `may_return`: its node went, but its process may live: a server is awaited.
  void Gone(const std::string& procid, bool server, bool may_return = false);
  template <typename MessageT>
  Member& Introduce(const std::string& procid, const MessageT& message, bool server);
  void RegisterServer(const std::string& procid, const control::RegisterServerT& message);
  void RegisterAgent(const std::string& procid, const control::RegisterAgentT& message);
  void OnGpuReport(Member& agent, const control::GpuReportT& report);
  void LeaveSickGpus(const Member& agent);
  void DropUnannounced();
  void NoteFailure(const Member& member, bool server);
  bool IsUnsteady(const Member& member, bool server) const;
  void JudgeSteadiness();
  void ApplyDuty(Member& member) const;
  std::string StateOf(const Member& member, bool server) const;
  void ReplaceNamesake(Members& members, const Member& member, bool server);
  void OnPreflightResult(const control::PreflightResultT& result);
  // With its nodes, and `layout`: the job's layout and data.
  void AddJob(Ticket ticket, std::unique_ptr<Job> job, control::PreflightResultT layout);
  void Fail(Ticket ticket, Error error);
  // Null, and the request has failed, if there is no such job.
  void AnswerWithJob(Ticket ticket, const Job& job, const Status& done);
  Job* FindFor(Ticket ticket, const std::string& job);

  const CoreOptions options_;
  const std::uint64_t leader_epoch_;
  std::uint64_t now_ms_ = 0;
  std::uint64_t settle_until_ms_ = 0;
  bool servers_known_ = false;
  bool agents_known_ = false;
  bool settled_ = false;
  std::uint64_t next_ping_ms_ = 0;
  std::uint64_t next_request_ = 1;
  std::uint64_t next_job_ = 1;

  Members servers_;
  Members agents_;
  // By procid: whose nodes are there, as ZooKeeper has it. A member's `present` says the same
  // unless it was marked dead.
  std::set<std::string> server_nodes_;
  std::set<std::string> agent_nodes_;
  CircuitBreaker breaker_;
  std::map<std::string, Duty> duties_;  // by node; full ones are left out
  bool cluster_stored_ = false;         // its node in ZooKeeper is there
  std::set<std::string> dead_servers_;  // marked dead, and the node is still there
  std::map<std::uint64_t, std::unique_ptr<Job>> jobs_;
  std::map<std::uint64_t, Submission> submissions_;  // by request
  std::map<std::uint64_t, LogRequest> log_requests_;
  std::vector<NodeWrite> new_nodes_;
  std::vector<Output::Send> sends_;
  std::vector<Answer> answers_;
};

}  // namespace ps::coordinator
