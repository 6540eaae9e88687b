// Elects one leader among those that have an Election on the same directory.
//
// Each candidate has an ephemeral sequential node; the lowest leads, every other watches only the
// one before it. Becoming leader includes raising the number in the epoch node by compare-and-set,
// in one transaction that checks that our own node still exists. Each write of a leader should be a
// Session::Multi that begins with leadership.Fence(): it then fails with failed_op == 0 once there
// is a later leader, whatever this one still believes.
//
// Not-leader is reported when our node is gone, on Lost, and when two thirds of the session timeout
// have passed since ZooKeeper last answered while the connection is gone: before anybody else can
// lead. Each time of leading has an epoch of its own.
//
// All on the session's loop. Destroy it before the session; that gives the leadership up at once.
//
// Others find the leader with ChildrenWatcher on the directory and LowestSequence (member.h).
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "common/zookeeper/member.h"
#include "common/zookeeper/session.h"

namespace ps::zk {

struct Leadership {
  std::uint64_t epoch = 0;         // the number in the epoch node, 1 for the first leader
  std::int32_t epoch_version = 0;  // ZooKeeper's version of that node
  std::string epoch_path;

  Op Fence() const { return Op::Check(epoch_path, epoch_version); }
};

class Election {
 public:
  struct Options {
    std::string directory = "/coordinators";
    std::string prefix = "c-";
    std::string epoch_path = "/epoch";
    std::string data;  // of our node, for those that look for the leader
  };
  // A value: we lead from now on. nullopt: we do not lead any more. Called on changes only.
  using Callback = std::function<void(const std::optional<Leadership>&)>;

  Election(Session& session, Options options, Callback callback);
  Election(const Election&) = delete;
  Election& operator=(const Election&) = delete;
  ~Election();

  const std::optional<Leadership>& leadership() const { return leadership_; }

 private:
  void Check();
  void Judge(const std::vector<std::string>& names);
  void WatchPredecessor(const std::string& path);
  void RaiseEpoch();
  void WriteEpoch(std::uint64_t number, std::optional<std::int32_t> old_version);
  void Finish();
  void Retry(const Error& error);
  void StepDown(const std::string& why);
  void ArmLease();

  Session& session_;
  const Options options_;
  const Callback callback_;
  boost::asio::steady_timer retry_timer_;
  boost::asio::steady_timer lease_timer_;
  Session::WatchId watch_ = 0;
  Session::SubscriptionId subscription_ = 0;
  bool busy_ = false;
  bool again_ = false;
  std::optional<Leadership> leadership_;
  std::shared_ptr<void> alive_;
  std::unique_ptr<EphemeralNode> node_;
};

}  // namespace ps::zk
