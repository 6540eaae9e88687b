// A simulated ps-server: real lanes behind the shell's rules (ps-server/shell/server.cc).
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
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
  using Sources = std::vector<std::pair<std::string, std::string>>;  // store, endpoint
  struct Job {
    struct OpenRound {
      Round round;
      std::string directory;
      std::vector<bool> frozen;
      std::vector<server::FrozenShard> shards;
      Round base;
    };
    LayoutView layout;
    server::JobRules rules;
    std::uint64_t token = 0;
    std::uint32_t shards = 0;
    std::uint64_t map_version = 0;
    std::uint64_t asked = 0;
    std::map<ShardId, Epoch> own;
    std::string restore;
    std::uint64_t restore_job = 0;
    Sources sources;
    std::optional<OpenRound> round;
    std::map<ShardId, control::RestoreFailedT> failed;
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
  void ApplyUpdate(JobId id, Job& job, const control::MapT* map, const control::LiveSetT* live);
  template <typename MessageT>
  static void TakeSources(Job& job, const MessageT& message);
  void OnRoundBegin(const control::RoundBeginT& begin);
  void OnRoundAbort(const control::RoundAbortT& abort);
  void OnRoundFailed(JobId id, Round round, const std::string& reason);
  void OnFrozen(std::uint32_t lane, server::LaneFrozen frozen);
  // What a part gets of the shard: with `base`, a committed round, what has changed since that if
  // it can be told.
  StoredShard Store(const server::FrozenShard& frozen, Round base);
  void OnCopyPart(const control::CopyPartT& copy);
  // The folder of the server whose file service that is; empty if it cannot be reached.
  std::string Reach(const std::string& endpoint) const;
  void OnWriteManifest(const control::WriteManifestT& write);
  void OnRoundCommitted(const control::RoundCommittedT& committed);
  void OnRestoreWanted(std::uint32_t lane, const server::RestoreWanted& wanted);
  void Load(std::uint32_t lane, const server::RestoreWanted& wanted);
  void Restore(std::uint32_t lane, const server::RestoreWanted& wanted, const std::string& name,
               int attempt);
  void OnRestoreFailed(const server::RestoreWanted& wanted, const std::string& message,
                       bool damaged, std::vector<std::string> asked = {});
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
  const std::string files_;  // endpoint of its file service
  const std::string store_;
  Life life_ = std::make_shared<int>(0);
  ZkClient client_;
  std::unique_ptr<SimulatedControlClient> control_;
  std::unique_ptr<ZkMember> member_;
  std::unique_ptr<ZkWatcher> coordinators_;
  std::vector<std::string> endpoints_;
  std::vector<Lane> lanes_;
  std::map<JobId, Job> jobs_;

  // What was written of a shard in a round: checkpoint::ShardBase.
  struct Written {
    Round round;
    std::vector<Round> bases;
    std::shared_ptr<const void> identity;
    std::uint64_t cut = 0;
    std::vector<float> values;
  };
  std::map<std::pair<JobId, ShardId>, std::vector<Written>> written_;

  struct Work {
    std::vector<DiskStep> steps;
    std::size_t next = 0;
    std::function<void(const Status&)> done;
  };
  std::deque<Work> writer_;
  bool writing_ = false;
};

}  // namespace ps::simulation
