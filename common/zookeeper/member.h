// Keeps one ephemeral node present for as long as the session lives, and over new sessions.
//
// The node is created, with its parents, once the session is connected; again after a new session;
// and again if somebody deletes it. An unknown outcome is read back before anything is repeated.
//
// Fixed(path): a node that a former session of this process left behind is replaced in one
// transaction, so that nobody sees it absent. One that belongs to a foreign session (another
// process with the same name, or ourselves before a restart) is left alone until it goes, with a
// warning.
//
// Sequential(directory, prefix): the node is directory/prefix<32 hex digits>-<ten digits>. The hex
// digits are drawn anew for each EphemeralNode; by them a node is found again whose creation was
// not answered, which would otherwise block an election for ever.
//
// All on the session's loop. Destroy it before the session. The destructor deletes the node
// without waiting for an answer.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/zookeeper/session.h"

namespace ps::zk {

class EphemeralNode {
 public:
  // The path of our node each time it is seen present in a session or under a new path; nullopt
  // when it is known to be gone (the session was lost, or somebody deleted it).
  using Callback = std::function<void(const std::optional<std::string>& path)>;

  static std::unique_ptr<EphemeralNode> Fixed(Session& session, std::string path, std::string data,
                                              Callback callback = nullptr);
  static std::unique_ptr<EphemeralNode> Sequential(Session& session, std::string directory,
                                                   const std::string& prefix, std::string data,
                                                   Callback callback = nullptr);
  EphemeralNode(const EphemeralNode&) = delete;
  EphemeralNode& operator=(const EphemeralNode&) = delete;
  ~EphemeralNode();

  // The node, while it is present as far as we know.
  const std::optional<std::string>& path() const { return path_; }

  // For Fixed and Sequential only, which make_unique.
  struct Target {
    std::string fixed_path;  // empty if sequential
    std::string directory;
    std::string name_start;  // of a sequential node, with the hex digits
    std::string data;
  };
  EphemeralNode(Session& session, Target target, Callback callback);

 private:
  void Reconcile();
  void VerifyAt(const std::string& path);
  void FindByName();
  void CreateNode();
  void CreateParent();
  void Replace(const std::string& path, std::int32_t version);
  void Done(std::optional<std::string> path);
  void Retry(const Error& error);
  void SetPath(const std::optional<std::string>& path);

  Session& session_;
  const Target target_;
  const Callback callback_;
  boost::asio::steady_timer retry_timer_;
  Session::WatchId watch_ = 0;
  Session::SubscriptionId subscription_ = 0;
  bool busy_ = false;
  bool again_ = false;
  bool told_foreign_ = false;
  std::optional<std::string> path_;
  std::string last_path_;  // where a sequential node was last seen
  std::int64_t told_session_ = 0;
  std::shared_ptr<void> alive_;
};

// The number that ZooKeeper appended to the name of a sequential node, or nullopt.
std::optional<std::int64_t> SequenceOf(const std::string& name);
// The name with the lowest number, which is the leader's in an election; names without a number do
// not count. nullopt if there is none.
std::optional<std::string> LowestSequence(const std::vector<std::string>& names);

}  // namespace ps::zk
