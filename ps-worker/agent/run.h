// The whole program ps-worker: agent, ZooKeeper session and signals on one loop.
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "common/result.h"
#include "ps-worker/agent/agent.h"

namespace ps::worker {

struct RunConfig {
  std::string zookeeper = "127.0.0.1:2181/ds";
  std::chrono::milliseconds session_timeout{6000};
  std::string zookeeper_secret{};  // file; empty: none
  AgentOptions agent;              // `procid` is made here
  // On SIGHUP.
  std::function<Status()> reload = [] { return Ok(); };
};

// Runs until SIGTERM or SIGINT, then stops the tasks; a second signal ends at once. An error only
// if it cannot start. Without ZooKeeper it says so and keeps trying. systemd hears how it is
// (common/net/systemd.h): ready once the leading coordinator has welcomed it.
Status Run(RunConfig config);

}  // namespace ps::worker
