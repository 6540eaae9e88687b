// The agent of a worker node: starts the tasks that the coordinator gives it, carries messages
// between them and the coordinator, and keeps and replays what dead tasks had pushed.
//
// It decides nothing about jobs: a task that ended is reported, not restarted. While there is no
// coordinator, tasks go on and what matters of their messages is kept (outbox.h). Tasks die with
// the agent; their rings stay and are offered by the next agent on the same state directory.
//
// ZooKeeper is outside: SetLeader() says where the coordinator is. Belongs to the loop's thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/net/context.h"
#include "common/net/control_client.h"
#include "common/net/loop.h"
#include "common/net/unique_fd.h"
#include "common/result.h"
#include "ps-worker/agent/ghost.h"
#include "ps-worker/agent/gpu_watch.h"
#include "ps-worker/agent/ring_store.h"
#include "ps-worker/agent/task_process.h"
#include "ps-worker/core/outbox.h"

namespace ps::worker {

struct AgentOptions {
  std::string name;
  std::string procid;  // new at each start
  std::string host;
  std::string version;
  std::uint32_t slots = 1;
  std::string label;  // takes the tasks of jobs with this resources.label only
  std::filesystem::path state_directory;
  std::filesystem::path retention_directory;
  std::string task_binary;
  // Whether it is asked which GPUs it can compute on: "on", "off", or "auto", where the node has
  // NVIDIA's driver.
  std::string gpus = "auto";
  GpuWatch::Options gpu_watch;
  std::filesystem::path pci_directory = "/sys/bus/pci/devices";
  std::string log_level = "info";                          // of the tasks
  std::uint64_t log_keep_bytes = std::uint64_t{16} << 20;  // per worker slot of a job
  std::size_t log_files_max = 256;
  std::size_t preflights_max = 4;  // at a time
  net::Milliseconds preflight_deadline{60'000};
  net::Milliseconds devices_deadline{120'000};  // a node of many GPUs takes long at first
  net::Milliseconds gpu_look_deadline{30'000};
  net::Milliseconds housekeeping{2'000};
  TaskTimeouts task;
  net::ControlClientOptions control;
  net::SecurityOptions security;  // of the tasks too
};

class Agent {
 public:
  // kConflict if another agent uses the state directory.
  static Result<std::unique_ptr<Agent>> Create(net::Loop& loop, net::Context& context,
                                               AgentOptions options);
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;
  ~Agent();  // kills the tasks

  // The control endpoint of the leading coordinator; empty: there is none. It is told of this agent
  // as soon as the node's GPUs are known.
  void SetLeader(const std::string& endpoint);

  // Stops all tasks, tells the coordinator of their ends, then calls `done`, once. No new task is
  // started from now on.
  void Stop(const std::string& reason, std::function<void()> done);

  bool registered() const { return client_.registered(); }
  // The node's GPUs are known, or that it has none.
  bool devices_known() const { return devices_ == nullptr && gpu_look_ == nullptr; }
  std::size_t running_tasks() const { return tasks_.size(); }
  std::size_t ghosts() const { return ghosts_.size(); }

 private:
  struct Task {
    RingKey key;
    std::uint32_t generation = 0;
    std::filesystem::path spec;
    std::filesystem::path log;
    std::vector<std::string> gpus;
    std::unique_ptr<TaskProcess> process;
    bool ending = false;     // was told to stop: its slot counts as free
    bool drop_ring = false;  // as soon as it has ended
  };
  struct Check {  // ps-task is asked something; without a spec which GPUs there are
    std::filesystem::path spec;
    std::filesystem::path result;
    std::filesystem::path log;
    std::unique_ptr<net::ChildProcess> child;
    std::unique_ptr<net::Timer> deadline;
    bool timed_out = false;
  };

  Agent(net::Loop& loop, net::Context& context, AgentOptions options, RingStore rings,
        net::UniqueFd lock);

  // Runs ps-task with these words, the first of which says what is asked, on these GPUs (empty: on
  // all that it finds). Its answer, log and spec are removed by who gets it.
  Result<std::unique_ptr<Check>> Ask(const std::string& name, const std::vector<std::string>& words,
                                     net::Milliseconds deadline, const std::string& gpus,
                                     std::function<void(net::ExitStatus)> on_exit);
  // Those that a check may use: well, and of no task.
  std::string IdleGpus() const;
  // Asks which GPUs there are.
  Status FindDevices();
  void OnDevices(net::ExitStatus status);
  void OnGpuReport(GpuWatch::Report report);
  control::MessageT Registration() const;
  void OnMessage(control::MessageT message);
  void OnWelcome();
  void ToTask(control::MessageT message);
  void FromTask(std::uint64_t task, control::MessageT message);
  void ToCoordinator(control::MessageT message);

  void OnStartTask(const control::StartTaskT& start);
  Result<TaskCommand> PrepareTask(const control::StartTaskT& start, Task& task) const;
  std::vector<int> CpusNearGpu(const std::string& uuid) const;
  void OnTaskExit(std::uint64_t number, net::ExitStatus status);
  void ReportExit(std::uint64_t number, const Task& task, int status, std::string message);
  void OnStopTask(const control::StopTaskT& stop);

  void OnReplay(const control::ReplayT& replay);
  void OnJobUpdate(const control::JobUpdateT& update);
  void OnJobDrop(const control::JobDropT& drop);
  void DropRing(const RingKey& key);

  void OnPreflight(const control::PreflightT& preflight);
  Result<std::unique_ptr<Check>> StartCheck(const control::PreflightT& preflight);
  void OnCheckExit(std::uint64_t request, net::ExitStatus status);
  void AnswerPreflight(std::uint64_t request, control::PreflightResultT result);

  void OnLogRead(const control::LogReadT& read);
  void Housekeep();
  void MaybeStopped();
  std::size_t BusySlots() const;
  std::set<RingKey> Running() const;

  std::filesystem::path LogPath(JobId job, WorkerId worker) const;

  net::Loop& loop_;
  net::Context& context_;
  const AgentOptions options_;
  const RingStore rings_;
  const net::UniqueFd lock_;  // on the state directory, as long as we live

  net::ControlClient client_;
  net::Timer housekeeping_;
  Outbox outbox_;
  std::map<std::uint64_t, Task> tasks_;  // by the coordinator's number
  std::map<RingKey, std::unique_ptr<Ghost>> ghosts_;
  std::map<std::uint64_t, std::unique_ptr<Check>> checks_;  // by request
  std::unique_ptr<Check> devices_;                          // as long as the GPUs are not known
  std::vector<control::GpuInfoT> gpus_;
  std::vector<std::uint16_t> gpu_bandwidth_;
  std::unique_ptr<net::Timer> gpu_look_;  // deadline of the first look at them, until there was one
  std::unique_ptr<GpuWatch> gpu_watch_;
  std::string leader_;
  bool stopping_ = false;
  std::function<void()> stopped_;
};

}  // namespace ps::worker
