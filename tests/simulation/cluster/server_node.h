// A simulated ps-server: real lanes behind the shell's rules (ps-server/shell/server.cc).
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ps-server/core/lane_core.h"
#include "tests/simulation/cluster/world.h"

namespace ps::simulation {

class ServerNode {
 public:
  ServerNode(World& world, MachineId machine, const std::string& name, std::uint32_t lanes);
  void End(bool crash);

  const std::string& procid() const { return procid_; }
  ZkClient& client() { return client_; }
  // Every shard that is ready is compared with the history.
  void CheckShards();

 private:
  struct Job {
    struct OpenRound {
      Round round;
      std::string directory;
      std::vector<bool> frozen;
      std::vector<checkpoint::ShardImage> images;
    };
    LayoutView layout;
    server::JobRules rules;
    std::uint32_t shards = 0;
    std::uint64_t map_version = 0;
    std::uint64_t asked = 0;
    std::map<ShardId, Epoch> own;
    std::string restore;
    std::uint64_t restore_job = 0;
    std::optional<OpenRound> round;
    std::map<ShardId, std::pair<server::RestoreWanted, std::string>> failed;
  };
  struct Lane {
    std::unique_ptr<server::LaneCore> core;
    std::int64_t last_ms = 0;  // commands run in order
    std::map<std::pair<ShardId, Epoch>, std::uint64_t> versions;
    std::map<std::string, Network::LinkId> links;  // to lanes of other servers
    // The shards that a push is for, by who sent it and its request, until it is answered.
    struct Asked {
      ShardId shard;
      std::uint32_t lineage = 0;
      Epoch epoch;
    };
    std::map<std::pair<std::string, std::uint64_t>, std::vector<Asked>> asked;
  };

  Job* FindJob(JobId job);
  void Send(const control::MessageT& message) { control_->Send(message); }
  void PostToLane(std::uint32_t lane, std::function<void(server::LaneCore&)> command);
  void PostToLanes(const std::function<void(server::LaneCore&)>& command);
  void FlushLane(std::uint32_t lane);
  void OnLanePacket(std::uint32_t lane, const std::string& from, const Packet& packet);
  void SendToChains(std::uint32_t lane);
  void TellAcknowledged(Lane& lane, const std::string& to, const wire::Head& head);
  control::MessageT Registration() const;
  void OnMessage(control::MessageT message);
  void OnJobStart(const control::JobStartT& start);
  void ApplyUpdate(JobId id, Job& job, const control::MapT* map, const control::LiveSetT* live,
                   const std::string& restore, std::uint64_t restore_job);
  void OnRoundBegin(const control::RoundBeginT& begin);
  void OnRoundAbort(const control::RoundAbortT& abort);
  void OnRoundFailed(JobId id, Round round, const std::string& reason);
  void OnFrozen(std::uint32_t lane, server::LaneFrozen frozen);
  void OnWriteManifest(const control::WriteManifestT& write);
  void OnRoundCommitted(const control::RoundCommittedT& committed);
  void OnRestoreWanted(std::uint32_t lane, const server::RestoreWanted& wanted);
  void Load(std::uint32_t lane, const server::RestoreWanted& wanted);
  void Restore(std::uint32_t lane, const server::RestoreWanted& wanted, const std::string& name,
               int attempt);
  void OnRestoreFailed(const server::RestoreWanted& wanted, const std::string& message);
  void Report();

  // The writer: steps of disk work, one after the other, with time between them. The first step
  // that fails ends the work.
  using DiskStep = std::function<Status()>;
  void Post(std::vector<DiskStep> steps, std::function<void(const Status&)> done);
  void RunWriter();

  World& world_;
  const MachineId machine_;
  const std::string name_;
  const std::string procid_;
  Life life_ = std::make_shared<int>(0);
  ZkClient client_;
  std::unique_ptr<SimulatedControlClient> control_;
  std::unique_ptr<ZkMember> member_;
  std::unique_ptr<ZkWatcher> coordinators_;
  std::vector<std::string> endpoints_;
  std::vector<Lane> lanes_;
  std::map<JobId, Job> jobs_;

  struct Work {
    std::vector<DiskStep> steps;
    std::size_t next = 0;
    std::function<void(const Status&)> done;
  };
  std::deque<Work> writer_;
  bool writing_ = false;
};

}  // namespace ps::simulation
