// A simulated coordinator: the real core behind the shell's rules (coordinator/shell).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/core/core.h"
#include "tests/simulation/cluster/world.h"

namespace ps::simulation {

class CoordinatorNode {
 public:
  // `skew_ms`: how wrong the machine's clock is.
  CoordinatorNode(World& world, MachineId machine, const std::string& name, std::int64_t skew_ms);
  // The process ends; with `crash` the whole machine, and nobody is told.
  void End(bool crash);

  bool leads() const { return core_ != nullptr; }
  // The members it knows, a line each; none unless it leads.
  std::vector<std::string> Describe() const;
  void MarkServerDead(const std::string& procid);
  void Submit();
  // An operator asks for it; it may be lost with the leader.
  void SetDuty(const std::string& node, coordinator::Duty duty);
  void Rebalance();
  void Suspend(bool suspend);  // or resume
  void Scale(std::uint64_t workers);
  // As the leader has it; nothing unless it leads and knows the node.
  std::optional<coordinator::Duty> DutyOf(const std::string& node) const;
  ZkClient& client() { return client_; }

 private:
  void OnLeadership(const std::optional<ZkLeadership>& leadership);
  void TakeOver();
  void OnJobs(const ZooKeeper::Children& jobs);
  void Begin(const std::vector<coordinator::JobRecord>& records);
  void StepDown();
  void FeedMembers();
  void OnControl(const std::string& identity, const Packet& packet);
  void OnLost(const std::string& identity);
  void Watch(const std::string& procid, const std::string& endpoint, std::uint64_t watch,
             std::int64_t until_ms);
  void OnTick();
  void Flush(bool with_lazy);
  void Write();
  void Release(const coordinator::Output& output);
  std::uint64_t Now() const;

  World& world_;
  const MachineId machine_;
  const std::string name_;
  const std::int64_t skew_ms_;
  Life life_ = std::make_shared<int>(0);
  ZkClient client_;
  std::unique_ptr<ZkWatcher> servers_watcher_;
  std::unique_ptr<ZkWatcher> agents_watcher_;
  std::unique_ptr<ZkElection> election_;
  std::optional<ZooKeeper::Children> servers_;
  std::optional<ZooKeeper::Children> agents_;
  std::optional<ZkLeadership> leadership_;
  Life term_;
  std::unique_ptr<coordinator::Core> core_;
  std::map<std::string, std::string> identity_of_;  // by procid
  std::map<std::string, std::string> procid_of_;
  std::map<std::string, std::uint64_t> watched_;  // suspected of being dead, by procid
  std::uint64_t next_watch_ = 1;
  std::int64_t last_lazy_ms_ = 0;
  coordinator::Ticket next_ticket_ = 1;
  // The store: one write at a time, those that come meanwhile are joined.
  coordinator::Output pending_;
  bool writing_ = false;
  bool broken_ = false;
};

}  // namespace ps::simulation
