// Tells a standby soon that the process of the leader has ended, where its session would take
// seconds.
//
// A standby keeps a connection to the leader's control socket, over which nothing is said. When it
// breaks and that port refuses connections (death_watch.h), the leader is dead. Nothing is
// suspected of a leader to whom there never was a connection: where a network refuses all, its
// session decides. A wrong verdict harms nobody: the epoch fences the leader (election.h). Belongs
// to the loop's thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "common/net/context.h"
#include "common/net/loop.h"
#include "common/net/zmq_socket.h"
#include "coordinator/shell/death_watch.h"

namespace ps::coordinator {

class LeaderWatch {
 public:
  // Called once for a leader that is dead, by its name. Must not destroy the watch.
  using DeadFn = std::function<void(const std::string& name)>;

  LeaderWatch(net::Loop& loop, net::Context& context, DeadFn dead, DeathWatchOptions options = {});
  LeaderWatch(const LeaderWatch&) = delete;
  LeaderWatch& operator=(const LeaderWatch&) = delete;

  // Who leads: a name that is used once, and its control endpoint. An empty endpoint: nobody is
  // watched. The same name again changes nothing.
  void Watch(const std::string& name, const std::string& endpoint);

 private:
  Status Connect();
  void OnConnection(bool connected);

  net::Loop& loop_;
  net::Context& context_;
  const DeadFn dead_;
  std::string name_;
  std::string endpoint_;
  DeathWatch deaths_;
  std::unique_ptr<net::ZmqSocket> socket_;
};

}  // namespace ps::coordinator
