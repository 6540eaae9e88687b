// `ds-cli node doctor`: what a machine needs to be a node of a cluster, looked at before a daemon
// starts and while it runs.
//
// Each check has a deadline, changes nothing that stays, and says what it measured.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/api.h"
#include "common/net/tls.h"
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
  std::vector<std::string> keys;         // files with the pairs of daemons of this node
  std::string trusted = "/etc/ds/trusted";
  std::string zookeeper_secret;     // file; empty: none
  net::TlsFiles api_tls;            // of a coordinator on this node; none: it has none
  std::string api_tokens;           // the list of a coordinator on this node; empty: none
  std::int64_t deadline_ms = 5000;  // of each check that waits for others
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
// The pair that a daemon has, and whether the list trusts it, now and in a month.
Finding CheckKey(const std::string& file, const std::string& trusted, std::int64_t now_ms);

// What a coordinator's API begins with: whether certificate and key belong together and when they
// expire; whether the list of tokens makes sense, and whose have expired or do so within a month.
Finding CheckCertificate(const net::TlsFiles& files, std::int64_t now_ms);
Finding CheckTokens(const std::string& file, std::int64_t now_ms);

// Of what it talks to. Each server's first lane and the coordinator are connected to.
std::vector<Finding> CheckCluster(Api& api, const DoctorOptions& options);
// Also whether the cluster's nodes there may be read, with this secret (a file, or empty).
Finding CheckZooKeeper(const std::string& hosts, const std::string& secret,
                       std::int64_t deadline_ms);

}  // namespace ps::cli
