// What the processes of one simulated cluster share.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/job/job_spec.h"
#include "common/messages/control.h"
#include "tests/simulation/cluster/disk.h"
#include "tests/simulation/cluster/history.h"
#include "tests/simulation/cluster/network.h"
#include "tests/simulation/cluster/schedule.h"
#include "tests/simulation/cluster/zookeeper.h"

namespace ps::simulation {

// A guard that is switched off, to see that somebody notices.
enum class Mutant {
  kNone,
  kUnfencedWrites,           // a leader's writes do not check that it still leads
  kSendBeforeDurable,        // messages leave before the write they follow from is durable
  kAnswerBeforeWritten,      // servers do not wait for the disk
  kNoSync,                   // files of a checkpoint are not synced
  kNoDirectorySync,          // their names are not
  kReleaseAtCut,             // a ring lets go at the marker instead of the commit
  kImagesWithoutWatermarks,  // an image brings values back and forgets what they consist of
  kKeepRefused,              // what came back as too old stays in the ring
  kForgetRings,              // an agent does not offer the rings it finds
  kReplayNothing,            // an agent says that a replay is done and does not begin it
  kCutTooEarly,              // a worker's cut names a position before its last push
  kAnswerBeforeBackups,      // the first of a chain does not wait for the others
  kTakeOldEpoch,             // a backup confirms what a former first of its chain says
  kSyncedTooEarly,           // backups count as in sync before they are
  kBuildOnAborted,           // a part leaves out what an aborted round has
  kDeleteKept,               // the oldest round that is to be kept is deleted
  kCopyAlone,                // a part is copied without what it builds on
  kInitWithoutLoad,          // a shard takes initial values before what its job loads of others
};
inline constexpr int kMutants = 19;
const char* MutantName(Mutant mutant);

struct World {
  World(std::uint64_t seed, Mutant off)
      : schedule(seed),
        network(schedule),
        zookeeper(schedule, network),
        stores(seed % 3 == 1),
        history(schedule, disk, stores),
        mutant(off) {}

  bool Lacks(Mutant guard) const { return mutant == guard; }

  Schedule schedule;
  Network network;
  ZooKeeper zookeeper;
  Disk disk;
  Stores stores;
  std::map<std::string, MachineId> file_services;  // by endpoint, while they run
  History history;
  const Mutant mutant;

  JobSpec spec;
  std::string spec_json;
  const std::uint64_t token = 0x746f6b656eU;  // of the job's data plane
  control::LayoutT layout;
  control::DataInfoT data;
  std::uint64_t total_positions = 0;
  std::uint64_t next_process = 1;
};

// The connection of a server or an agent to the leader: common/net/control_client.h.
class SimulatedControlClient {
 public:
  using RegistrationFn = std::function<control::MessageT()>;
  using MessageFn = std::function<void(control::MessageT)>;

  SimulatedControlClient(World& world, MachineId machine, RegistrationFn registration,
                         MessageFn on_message);
  ~SimulatedControlClient();

  // From the children of /coordinators.
  void SetCoordinators(const ZooKeeper::Children& children);
  bool Send(const control::MessageT& message);
  bool registered() const { return registered_; }
  std::int64_t registered_ms() const { return registered_ms_; }

 private:
  void Open();
  void Register();
  void Expect(std::int64_t time_ms);
  void Receive(const Packet& packet);

  World& world_;
  const MachineId machine_;
  const RegistrationFn registration_;
  const MessageFn on_message_;
  std::string endpoint_;
  Network::LinkId link_ = 0;
  bool connected_ = false;
  bool register_sent_ = false;
  bool registered_ = false;
  std::int64_t registered_ms_ = 0;
  std::uint64_t leader_epoch_ = 0;
  std::uint64_t timer_ = 0;
  Life life_ = std::make_shared<int>(0);
};

}  // namespace ps::simulation
