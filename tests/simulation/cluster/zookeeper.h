// ZooKeeper as the daemons use it, simulated: its contract, not its code.
//
// Sessions that expire only after their timeout without contact, ephemeral nodes that go with them,
// versions, multi with checks, sequences, watches that fire once and may be late (but before any
// answer that shows the change). While it is away, or a machine is cut off from it, requests and
// answers are lost: then a client knows of no outcome, and of no expiry until it is back.
//
// ZkClient is one session of one process, with the states of common/zookeeper/session.h: Lost is
// told when the expiry is learnt, and the next session begins by itself.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/result.h"
#include "tests/simulation/cluster/network.h"
#include "tests/simulation/cluster/schedule.h"

namespace ps::simulation {

struct ZkNode {
  std::string data;
  std::int32_t version = 0;
  std::int64_t owner = 0;  // session, 0: persistent
  std::int64_t created_ms = 0;
};
struct ZkOp {
  enum class Kind { kCheck, kCreate, kSet, kDelete } kind = Kind::kCheck;
  std::string path;
  std::string data;
  std::int32_t version = -1;  // -1: any
  bool ephemeral = false;
};
struct ZkOutcome {
  Status status;
  std::vector<std::int32_t> versions;  // after the operation, by operation
  std::string created;                 // of the last create: its path, with the sequence
};

class ZooKeeper {
 public:
  static constexpr std::int64_t kSessionMs = 4000;

  ZooKeeper(Schedule& schedule, Network& network);

  void GoAway();
  void ComeBack();
  bool away() const { return away_ > 0; }
  bool Reaches(MachineId machine) const;
  // For whoever checks: each node that was written, in order, and those that went with a session.
  std::function<void(std::int64_t session, const std::string& path, const std::string& data)>
      on_write;
  std::function<void(const std::string& path)> on_expired;

  const ZkNode* Find(const std::string& path) const;
  // By an operator's hand.
  void Delete(const std::string& path);

  // ---- the service, for ZkClient
  std::int64_t OpenSession();
  // False if it has expired.
  bool Touch(std::int64_t session);
  ZkOutcome Apply(std::int64_t session, const std::vector<ZkOp>& ops);
  // A sequence is appended to `start`.
  std::string CreateSequential(std::int64_t session, const std::string& start,
                               const std::string& data);
  using Children = std::map<std::string, ZkNode>;
  Children ListChildren(const std::string& path) const;
  using WatchFn = std::function<void()>;
  void WatchChildren(const std::string& path, WatchFn fired);

 private:
  struct Session {
    std::int64_t heard_ms = 0;
    bool expired = false;
  };

  void Tick();
  void Changed(const std::string& path);

  Schedule& schedule_;
  Network& network_;
  int away_ = 0;
  std::map<std::string, ZkNode> nodes_;
  std::map<std::string, std::uint64_t> sequences_;
  std::map<std::int64_t, Session> sessions_;
  std::map<std::string, std::vector<WatchFn>> watches_;  // on the children of a path
  std::int64_t next_session_ = 1;
};

class ZkClient {
 public:
  enum class State { kConnecting, kConnected, kSuspended, kLost };

  ZkClient(Schedule& schedule, ZooKeeper& zookeeper, MachineId machine, Life process);
  ~ZkClient();

  void OnState(std::function<void(State)> told) { told_.push_back(std::move(told)); }
  bool connected() const { return state_ == State::kConnected; }
  std::int64_t session() const { return session_; }
  std::int64_t since_contact_ms() const { return schedule_.now_ms() - contact_ms_; }
  bool IsFormerSession(std::int64_t session) const;

  // Each callback comes once, unless the process ends. An error may mean: done, or not.
  void Multi(std::vector<ZkOp> ops, std::function<void(const ZkOutcome&)> done);
  void CreateSequential(const std::string& start, const std::string& data,
                        std::function<void(const Result<std::string>&)> done);
  void Get(const std::string& path, std::function<void(const Result<ZkNode>&)> done);
  // With the data of the children, as of one moment.
  void List(const std::string& path, bool watch,
            std::function<void(const Result<ZooKeeper::Children>&)> done,
            std::function<void()> fired = nullptr);

  // The connection breaks for a moment: what is under way has no known outcome.
  void Disconnect();

 private:
  using Service = std::function<std::function<void()>()>;  // at the service; returns the answer

  void Call(Service service, std::function<void()> failed);
  void Tick();
  void Lose(State state);
  void Tell(State state);

  Schedule& schedule_;
  ZooKeeper& zookeeper_;
  const MachineId machine_;
  const Life process_;
  Life life_ = std::make_shared<int>(0);
  State state_ = State::kConnecting;
  std::int64_t session_ = 0;
  std::vector<std::int64_t> former_;
  std::int64_t contact_ms_ = 0;
  std::int64_t not_before_ms_ = 0;
  std::uint64_t connection_ = 0;
  std::int64_t last_to_ms_ = 0;
  std::int64_t last_from_ms_ = 0;
  std::uint64_t next_call_ = 1;
  std::map<std::uint64_t, std::function<void()>> open_;  // how each fails
  std::vector<std::function<void(State)>> told_;
};

// An ephemeral node of a fixed path, kept in being (common/zookeeper/member.h).
class ZkMember {
 public:
  ZkMember(Schedule& schedule, ZkClient& client, MachineId machine, std::string path,
           std::string data);

 private:
  void Reconcile();

  Schedule& schedule_;
  ZkClient& client_;
  const MachineId machine_;
  const std::string path_;
  const std::string data_;
  bool busy_ = false;
  bool again_ = false;
  Life life_ = std::make_shared<int>(0);
};

// The children of a node, read again after each event and reconnect (common/zookeeper/watcher.h).
class ZkWatcher {
 public:
  using Callback = std::function<void(const ZooKeeper::Children&)>;
  ZkWatcher(Schedule& schedule, ZkClient& client, MachineId machine, std::string path,
            Callback callback);

 private:
  void Read();

  Schedule& schedule_;
  ZkClient& client_;
  const MachineId machine_;
  const std::string path_;
  const Callback callback_;
  bool reading_ = false;
  bool again_ = false;
  std::optional<ZooKeeper::Children> told_;
  Life life_ = std::make_shared<int>(0);
};

// The child with the lowest sequence number.
std::optional<std::string> LowestOf(const ZooKeeper::Children& children);

struct ZkLeadership {
  std::uint64_t epoch = 0;
  std::int32_t epoch_version = 0;
};

// One of those that stand for leader (common/zookeeper/election.h).
class ZkElection {
 public:
  using Callback = std::function<void(const std::optional<ZkLeadership>&)>;
  ZkElection(Schedule& schedule, ZkClient& client, MachineId machine, std::string data,
             Callback callback);

 private:
  void Check();
  void Judge(const ZooKeeper::Children& children);
  void RaiseEpoch();
  void Retry();
  void Finish();
  void StepDown();

  Schedule& schedule_;
  ZkClient& client_;
  const MachineId machine_;
  const std::string start_;
  const std::string data_;
  const Callback callback_;
  std::string node_;  // ours, empty: none that we know of
  bool busy_ = false;
  bool again_ = false;
  std::optional<ZkLeadership> leadership_;
  Life life_ = std::make_shared<int>(0);
};

}  // namespace ps::simulation
