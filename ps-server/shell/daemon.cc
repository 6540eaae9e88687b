#include "ps-server/shell/daemon.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "common/net/loop.h"
#include "common/net/systemd.h"
#include "common/net/zmq_socket.h"
#include "common/zookeeper/leader.h"
#include "common/zookeeper/member.h"
#include "common/zookeeper/session.h"
#include "common/zookeeper/watcher.h"

namespace ps::server {
namespace {

// Without a coordinator for so long we say so, and again after each further kNagAgain.
constexpr std::chrono::milliseconds kNagFirst{8000};
constexpr std::chrono::milliseconds kNagAgain{30000};

std::string DrawProcid() {
  std::random_device random;
  std::string id;
  for (int word = 0; word < 4; ++word) {
    std::array<char, 9> digits{};
    std::snprintf(digits.data(), digits.size(), "%08x", static_cast<unsigned>(random()));
    id += digits.data();
  }
  return id;
}

std::string HostName() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) return "unknown";
  return name.data();
}

// A lane that has not gone round for so long hangs, if no watchdog asks for less: restoring and
// freezing a large shard takes seconds.
constexpr std::chrono::milliseconds kLaneRoundMax{30000};

// Says in the log that the coordinator, or ZooKeeper before it, cannot be reached.
class Nagger {
 public:
  Nagger(net::Loop& loop, const Server& server, const zk::Session& session)
      : server_(server), session_(session), timer_(loop), since_ms_(net::MonotonicMs()) {
    timer_.Every(net::Milliseconds(500), [this] { Look(); });
  }
  void SetLeader(std::string endpoint) { leader_ = std::move(endpoint); }

  // What is missing, while the server is not registered.
  std::string Missing() const {
    if (!session_.connected()) return session_.Trouble();
    if (leader_.empty()) {
      return "no coordinator is registered in ZooKeeper at " + session_.options().hosts;
    }
    return leader_ + " does not welcome us";
  }

 private:
  void Look() {
    const std::int64_t now_ms = net::MonotonicMs();
    if (server_.registered()) {
      since_ms_ = now_ms;
      next_after_ms_ = kNagFirst.count();
      return;
    }
    if (now_ms - since_ms_ < next_after_ms_) return;
    const auto seconds = (now_ms - since_ms_) / 1000;
    spdlog::warn("no coordinator since {} s: {}", seconds, Missing());
    next_after_ms_ = now_ms - since_ms_ + kNagAgain.count();
  }

  const Server& server_;
  const zk::Session& session_;
  net::Timer timer_;
  std::string leader_;
  std::int64_t since_ms_;
  std::int64_t next_after_ms_ = kNagFirst.count();
};

net::DaemonState Look(const Server& server, const Nagger& nagger, net::Milliseconds watchdog) {
  net::DaemonState state;
  state.ready = server.registered();
  const ServerSummary summary = server.Summary();
  state.status = server.registered() ? "registered" : "waits: " + nagger.Missing();
  state.status += "; " + std::to_string(summary.shards) + " shards of " +
                  std::to_string(summary.jobs) + " jobs on " +
                  std::to_string(server.lane_endpoints().size()) + " lanes";
  const auto round_max = watchdog.count() > 0 ? watchdog / 2 : kLaneRoundMax;
  if (summary.slowest_lane_ms > round_max.count()) {
    state.stuck = "lane " + std::to_string(summary.slowest_lane) + " has not gone round for " +
                  std::to_string(summary.slowest_lane_ms / 1000) + " s";
  }
  return state;
}

}  // namespace

Status Run(DaemonConfig config) {
  config.server.procid = DrawProcid();
  net::Context context;
  PS_TRY(context.Secure(config.security));
  net::Loop loop;
  // Signals come once the loop runs.
  std::unique_ptr<net::SystemdNotifier> systemd;
  loop.OnSignal({SIGTERM, SIGINT, SIGHUP}, [&](int signal) {
    if (signal == SIGHUP) return systemd->Reload(config.reload);
    spdlog::info("signal {}: ends", signal);
    systemd->Stopping();
    loop.Stop();
  });
  const auto server = PS_TRY(Server::Start(loop, context, config.server));

  zk::Session::Options options;
  options.hosts = config.zookeeper;
  options.secret_file = config.zookeeper_secret;
  options.session_timeout = config.session_timeout;
  zk::Session session(loop.context(), options);
  PS_TRY(session.Start());

  Nagger nagger(loop, *server, session);
  systemd = std::make_unique<net::SystemdNotifier>(
      loop, [&] { return Look(*server, nagger, systemd->watchdog()); });
  const nlohmann::json data = {
      {"name", config.server.name}, {"host", HostName()}, {"version", PS_VERSION}};
  const auto node =
      zk::EphemeralNode::Fixed(session, "/servers/" + config.server.procid, data.dump());
  const zk::ChildrenWatcher coordinators(session, "/coordinators",
                                         [&](const zk::ChildrenWatcher::Children& children) {
                                           const std::string leader = zk::LeaderEndpoint(children);
                                           if (leader.empty())
                                             spdlog::info("no coordinator leads at present");
                                           nagger.SetLeader(leader);
                                           server->SetLeader(leader);
                                         });

  std::string lanes;
  for (const std::string& endpoint : server->lane_endpoints()) lanes += " " + endpoint;
  spdlog::info("server {} ({}) listens on{}{}", config.server.name, config.server.procid, lanes,
               server->admin_endpoint().empty() ? "" : ", admin on " + server->admin_endpoint());
  loop.Run();
  systemd.reset();  // what it looks at goes before it otherwise
  return Ok();
}

}  // namespace ps::server
