// `ds-cli node doctor`: what a machine needs to be a node of a cluster, looked at before a daemon
// starts and while it runs.
//
// Each check has a deadline, changes nothing that stays, and says what it measured.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/api.h"
#include "common/result.h"

namespace ps::cli {

struct Finding {
  enum class State { kOk, kWarn, kFail };
  State state = State::kOk;
  std::string check;
  std::string detail;
  std::string next;  // what to do; empty: nothing
};

const char* StateName(Finding::State state);  // "ok", "warn", "fail"

struct DoctorOptions {
  std::string zookeeper;                 // HOST:PORT,.../CHROOT; empty: what the coordinator says
  std::vector<std::string> directories;  // that daemons write to
  std::vector<int> ports;                // that a daemon is going to listen on
  std::int64_t deadline_ms = 5000;       // of each check that waits for others
};

// Of this machine alone.
Finding CheckProcessor();
Finding CheckMemory();
Finding CheckSharedMemory();
Finding CheckOpenFiles();
Finding CheckClock();
Finding CheckGpus();
// Writes a file of 4 KiB and syncs it, again and again, and removes it.
Finding CheckDirectory(const std::string& directory);
Finding CheckPort(int port);

// Of what it talks to. Each server's first lane and the coordinator are connected to.
std::vector<Finding> CheckCluster(Api& api, const DoctorOptions& options);
Finding CheckZooKeeper(const std::string& hosts, std::int64_t deadline_ms);

}  // namespace ps::cli
