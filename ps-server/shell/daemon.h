// The whole server as a daemon: ZooKeeper presence, finding the leader, signals.
//
// Run() returns when SIGTERM or SIGINT asks for it, or with the error that kept
// the server from starting. systemd hears how it is (common/net/systemd.h): ready once the leading
// coordinator has welcomed it, alive while the loop and every lane go round.
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "common/net/context.h"
#include "common/result.h"
#include "ps-server/shell/server.h"

namespace ps::server {

struct DaemonConfig {
  std::string zookeeper;  // "host:port,host:port/chroot"
  std::chrono::milliseconds session_timeout{6000};
  net::SecurityOptions security;
  std::string zookeeper_secret{};  // file; empty: none
  ServerConfig server;             // procid is drawn by Run()
  // On SIGHUP.
  std::function<Status()> reload = [] { return Ok(); };
};

Status Run(DaemonConfig config);

}  // namespace ps::server
