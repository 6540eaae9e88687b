// Level-triggered watches: what a node, or the children of a node, look like now.
//
// ZooKeeper's own watches fire once and tell only that something changed; changes between an event
// and the next read are never seen. A watcher reads again after each event and each reconnect, and
// calls back when what it read differs from what it told last. So it may skip states in between,
// but never misses a final one. While ZooKeeper is away the last value stands.
//
// All on the session's loop. The first callback comes once the value was read. A watcher must be
// destroyed before its session; it may be destroyed in its own callback.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "common/zookeeper/session.h"

namespace ps::zk {

// The data of one node, or its absence.
class NodeWatcher {
 public:
  // nullopt: there is no such node.
  using Callback = std::function<void(const std::optional<NodeValue>&)>;

  NodeWatcher(Session& session, std::string path, Callback callback);
  NodeWatcher(const NodeWatcher&) = delete;
  NodeWatcher& operator=(const NodeWatcher&) = delete;
  ~NodeWatcher();

 private:
  void Refresh();
  void ReadValue();
  void CheckAbsence();
  void Finish(const std::optional<NodeValue>& value);
  void Retry(const Error& error);

  Session& session_;
  const std::string path_;
  const Callback callback_;
  boost::asio::steady_timer retry_timer_;
  Session::WatchId watch_ = 0;
  Session::SubscriptionId subscription_ = 0;
  bool reading_ = false;
  bool read_again_ = false;
  bool told_ = false;
  std::optional<NodeValue> value_;  // as told last
  std::shared_ptr<void> alive_;     // callbacks hold it weakly and do nothing once it is gone
};

// The children of a node with their data. A node that does not exist has no children.
class ChildrenWatcher {
 public:
  using Children = std::map<std::string, NodeValue>;  // by name
  using Callback = std::function<void(const Children&)>;

  ChildrenWatcher(Session& session, std::string path, Callback callback);
  ChildrenWatcher(const ChildrenWatcher&) = delete;
  ChildrenWatcher& operator=(const ChildrenWatcher&) = delete;
  ~ChildrenWatcher();

 private:
  void Refresh();
  void ReadNames();
  void CheckAbsence();
  void ReadData(std::vector<std::string> names);
  void Finish();
  void Retry(const Error& error);

  Session& session_;
  const std::string path_;
  const Callback callback_;
  boost::asio::steady_timer retry_timer_;
  Session::WatchId names_watch_ = 0;
  Session::WatchId data_watch_ = 0;  // one for all children, the event has the path
  Session::SubscriptionId subscription_ = 0;
  bool reading_ = false;
  bool read_again_ = false;
  bool told_ = false;
  bool changed_ = false;         // children_ differs from what was told
  Children children_;            // as read last
  std::set<std::string> stale_;  // names whose data must be read again
  std::size_t reads_open_ = 0;
  std::optional<Error> read_error_;  // of the reads of this pass
  std::shared_ptr<void> alive_;
};

}  // namespace ps::zk
