// The coordinator daemon: election, the control socket, the REST API, and the core while it leads.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "common/net/context.h"
#include "common/net/http_server.h"
#include "common/net/loop.h"
#include "common/net/systemd.h"
#include "common/net/zmq_socket.h"
#include "common/zookeeper/election.h"
#include "common/zookeeper/session.h"
#include "common/zookeeper/watcher.h"
#include "coordinator/core/core.h"
#include "coordinator/shell/api_access.h"
#include "coordinator/shell/death_watch.h"
#include "coordinator/shell/leader_watch.h"
#include "coordinator/shell/store.h"

namespace ps::coordinator {

struct CoordinatorOptions {
  std::string id = "coordinator";
  std::string zookeeper = "127.0.0.1:2181/ds";
  std::string bind = "127.0.0.1";
  std::string advertise;           // empty: as bound
  std::uint16_t control_port = 0;  // 0: any free one
  std::uint16_t http_port = 7070;
  std::uint32_t session_timeout_ms = 6000;
  net::SecurityOptions security;
  std::string zookeeper_secret;  // file; empty: none
  ApiSecurity api;
};

class Coordinator {
 public:
  Coordinator(net::Loop& loop, CoordinatorOptions options);
  ~Coordinator();

  // Binds the sockets and joins the election. kConflict: a port is taken.
  Status Start();

  // Reads certificate and tokens of the API again.
  void Reload();

  // For systemd: ready once the session with ZooKeeper is there.
  net::DaemonState State() const;

 private:
  void OnLeadership(const std::optional<zk::Leadership>& leadership);
  void TakeOver();
  void StepDown(const std::string& why);
  void OnControl(std::vector<zmq::message_t>&& frames);
  void OnPeerLost(const std::string& identity);
  void OnDead(const std::string& procid);
  // Unix time when this term began, and what has passed since: a step of the wall clock must
  // neither end all deadlines nor put them off.
  std::uint64_t Now() const;
  void OnTick();
  void Flush(bool with_lazy);
  void Release(Output& output);
  void OnRequest(const net::HttpRequest& request, const net::Responder& responder);
  void Route(const net::HttpRequest& request, const net::Responder& responder);
  void FeedMembers();
  // The name of the leader's node, the lowest; none: nobody leads.
  std::optional<std::string> LeaderNode() const;
  std::string LeaderHttp() const;
  void WatchLeader();
  void OnLeaderDead(const std::string& node);

  net::Loop& loop_;
  const CoordinatorOptions options_;
  net::Context context_;
  std::unique_ptr<zk::Session> session_;
  std::unique_ptr<net::ZmqSocket> control_;
  std::unique_ptr<net::HttpServer> http_;
  std::unique_ptr<ApiAccess> access_;
  std::string control_endpoint_;  // for others
  std::string url_;               // of our API, for others
  std::unique_ptr<zk::ChildrenWatcher> servers_watcher_;
  std::unique_ptr<zk::ChildrenWatcher> agents_watcher_;
  std::unique_ptr<zk::ChildrenWatcher> coordinators_watcher_;
  std::optional<zk::ChildrenWatcher::Children> servers_;
  std::optional<zk::ChildrenWatcher::Children> agents_;
  zk::ChildrenWatcher::Children coordinators_;
  std::unique_ptr<zk::Election> election_;
  net::Timer tick_;
  net::Timer retry_;
  DeathWatch deaths_;
  LeaderWatch leader_watch_;

  std::optional<zk::Leadership> leadership_;
  std::shared_ptr<void> term_;  // what is under way for this leadership holds it weakly
  std::unique_ptr<Core> core_;  // while the jobs are loaded
  std::unique_ptr<Store> store_;
  std::map<std::string, std::string> identity_of_;  // procid -> ZeroMQ routing id
  std::map<std::string, std::string> procid_of_;
  std::map<Ticket, net::Responder> tickets_;
  Ticket next_ticket_ = 1;
  std::int64_t wall_offset_ms_ = 0;
  std::int64_t last_lazy_ms_ = 0;
  std::uint64_t bad_messages_ = 0;
};

// {"apiVersion", "error": {"code", "message"}} with the status that fits.
net::HttpResponse ApiError(const Error& error);

}  // namespace ps::coordinator
