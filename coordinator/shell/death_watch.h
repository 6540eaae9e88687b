// Tells soon that the process of a server has ended, where its session would take seconds.
//
// The kernel closes the sockets of a process that ends, so its control connection breaks at once.
// That alone is only a suspicion: connections break for other reasons. The server is dead when the
// port of its first lane refuses connections. A host that vanished, and a process that hangs,
// refuse nothing: their sessions end. A wrong verdict harms nobody: epochs fence the server, and it
// introduces itself again. (Agents are left to their sessions: one that is back sooner, or was
// never away, brings its retained pushes, and no record is trained again.) Belongs to the loop's
// thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "common/net/loop.h"

namespace ps::coordinator {

struct DeathWatchOptions {
  net::Milliseconds probe_interval{20};
  net::Milliseconds patience{1000};  // then its session decides
};

class DeathWatch {
 public:
  // Called once for a server that is dead.
  using DeadFn = std::function<void(const std::string& procid)>;

  DeathWatch(net::Loop& loop, DeadFn dead, DeathWatchOptions options = {});
  ~DeathWatch();
  DeathWatch(const DeathWatch&) = delete;
  DeathWatch& operator=(const DeathWatch&) = delete;

  // The member's connection broke. `endpoint`: where a server listens ("tcp://node7:4711"), empty
  // for an agent.
  void OnLost(const std::string& procid, const std::string& endpoint);
  // It introduced itself again.
  void Forget(const std::string& procid);
  void Clear();

 private:
  class Suspect;

  net::Loop& loop_;
  const DeadFn dead_;
  const DeathWatchOptions options_;
  std::map<std::string, std::shared_ptr<Suspect>> suspects_;  // by procid
};

}  // namespace ps::coordinator
