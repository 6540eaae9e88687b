// A simulated agent with its tasks (ps-worker/agent). The rings are the machine's and outlive it.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ps-worker/core/outbox.h"
#include "tests/simulation/cluster/task_node.h"
#include "tests/simulation/cluster/world.h"

namespace ps::simulation {

class AgentNode {
 public:
  AgentNode(World& world, MachineId machine, const std::string& name, std::uint32_t slots,
            Rings& rings);
  // The process ends, and its tasks with it.
  void End();

  const std::string& procid() const { return procid_; }
  ZkClient& client() { return client_; }
  // A running task is killed; false if there is none.
  bool KillTask(std::uint64_t dice);
  // To the coordinator it is gone, or may be: what its workers pushed last may be trained again.
  void Orphan();
  // The rings that a leader must have heard of by now, to the history.
  void TellOffered() const;
  std::vector<std::string> Describe() const;

 private:
  struct Task {
    RingKey key;
    std::uint32_t generation = 0;
    std::unique_ptr<SimulatedTask> process;
    bool ending = false;
    bool drop_ring = false;
  };
  struct Ghost {
    std::shared_ptr<RingRegion> region;
    std::optional<worker::RetentionRing> ring;
    std::unique_ptr<SimulatedDataClient> client;
    std::optional<std::uint64_t> reported;
  };

  control::MessageT Registration() const;
  std::optional<control::RingInfoT> Describe(const RingKey& key) const;
  bool Runs(const RingKey& key) const;
  void OnMessage(control::MessageT message);
  void ToTask(control::MessageT message);
  void ToCoordinator(control::MessageT message);
  void OnStartTask(const control::StartTaskT& start);
  void OnTaskExit(std::uint64_t number, int status);
  void ReportExit(std::uint64_t number, const Task& task, int status);
  void OnStopTask(const control::StopTaskT& stop);
  void Stop(std::uint64_t number, const control::StopTaskT& stop);
  void OnReplay(const control::ReplayT& replay);
  void Check(const RingKey& key);
  void DropRing(const RingKey& key, bool job_over);

  World& world_;
  const MachineId machine_;
  const std::string name_;
  const std::string procid_;
  const std::uint32_t slots_;
  Rings& rings_;
  Life life_ = std::make_shared<int>(0);
  ZkClient client_;
  std::unique_ptr<SimulatedControlClient> control_;
  std::unique_ptr<ZkMember> member_;
  std::unique_ptr<ZkWatcher> coordinators_;
  worker::Outbox outbox_;
  std::map<std::uint64_t, Task> tasks_;
  std::map<RingKey, Ghost> ghosts_;
};

}  // namespace ps::simulation
