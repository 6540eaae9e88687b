#include "ps-worker/agent/run.h"

#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>

#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/net/systemd.h"
#include "common/net/zmq_socket.h"
#include "common/zookeeper/leader.h"
#include "common/zookeeper/member.h"
#include "common/zookeeper/session.h"
#include "common/zookeeper/watcher.h"

namespace ps::worker {
namespace {

// For the last messages to leave before the sockets are closed.
constexpr net::Milliseconds kFarewell{200};

Result<std::string> MakeProcid() {
  std::array<unsigned char, 16> bytes{};
  if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    return Error{ErrorCode::kInternal, "no random numbers from the system"};
  }
  std::string id;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) id += '-';
    char text[3];
    std::snprintf(text, sizeof(text), "%02x", bytes[i]);
    id += text;
  }
  return id;
}

std::string Announcement(const AgentOptions& options) {
  const nlohmann::json data = {
      {"name", options.name}, {"host", options.host}, {"version", options.version}};
  return data.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Why the agent is not registered.
std::string Missing(const zk::Session& session, const std::string& leader) {
  if (!session.connected()) return session.Trouble();
  if (leader.empty()) {
    return "no coordinator is registered in ZooKeeper at " + session.options().hosts;
  }
  return leader + " does not welcome us";
}

}  // namespace

Status Run(RunConfig config) {
  config.agent.procid = PS_TRY(MakeProcid());
  net::Loop loop;
  net::Context context;
  PS_TRY(context.Secure(config.agent.security));
  const AgentOptions options = config.agent;
  const std::unique_ptr<Agent> agent = PS_TRY(Agent::Create(loop, context, config.agent));

  zk::Session::Options session_options;
  session_options.hosts = config.zookeeper;
  session_options.secret_file = config.zookeeper_secret;
  session_options.session_timeout = config.session_timeout;
  zk::Session session(loop.context(), session_options);
  PS_TRY(session.Start());
  std::string leader;
  const auto node =
      zk::EphemeralNode::Fixed(session, "/agents/" + options.procid, Announcement(options));
  const zk::ChildrenWatcher coordinators(
      session, "/coordinators", [&](const zk::ChildrenWatcher::Children& children) {
        const std::string endpoint = zk::LeaderEndpoint(children);
        if (endpoint.empty()) {
          spdlog::warn("there is no coordinator; tasks go on, nothing new starts");
        } else {
          spdlog::info("the coordinator is at {}", endpoint);
        }
        leader = endpoint;
        agent->SetLeader(endpoint);
      });

  net::Timer farewell(loop);
  bool stopping = false;
  net::SystemdNotifier systemd(loop, [&] {
    net::DaemonState state;
    state.ready = agent->registered();
    const std::string tasks = std::to_string(agent->running_tasks()) + " tasks in " +
                              std::to_string(options.slots) + " slots";
    if (stopping) {
      state.status = "stops; " + tasks;
    } else if (agent->registered()) {
      state.status = "registered; " + tasks;
    } else {
      const std::string missing =
          agent->devices_known() ? Missing(session, leader) : "ps-task looks for GPUs";
      state.status = "waits: " + missing + "; " + tasks;
    }
    return state;
  });
  loop.OnSignal({SIGTERM, SIGINT, SIGHUP}, [&](int signal) {
    if (signal == SIGHUP) return systemd.Reload(config.reload);
    systemd.Stopping();
    if (std::exchange(stopping, true)) {
      spdlog::warn("signal {} again: ends at once", signal);
      loop.Stop();
      return;
    }
    spdlog::info("signal {}: stops {} tasks", signal, agent->running_tasks());
    agent->Stop("the agent stops", [&] { farewell.After(kFarewell, [&] { loop.Stop(); }); });
  });
  spdlog::info("ps-worker {} ({}) on {} with {} slots, state in {}, pushes retained in {}",
               options.name, options.procid, options.host, options.slots,
               options.state_directory.string(), options.retention_directory.string());
  loop.Run();
  return Ok();
}

}  // namespace ps::worker
