// A whole cluster on this machine: ZooKeeper and every daemon as processes of their own.
//
// Everything lies in one directory: cluster.json (sizes and ports), run/ (pid
// files), logs/, zookeeper/, checkpoints/, workers/ and, if secure, keys/, which also has the API's
// certificate, its authority, the list of tokens and the operator's token. Starting again in the
// same directory goes on with the same ports and data. One thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cli/context.h"
#include "cli/environment.h"
#include "cli/process_table.h"
#include "common/net/context.h"
#include "common/net/unique_fd.h"
#include "common/result.h"

namespace ps::cli {

// What the user asked for; what is not given is as before in this directory, or the default.
struct LocalSizes {
  std::optional<int> coordinators;  // 1
  std::optional<int> servers;       // 2
  std::optional<int> workers;       // 2 slots in all
  std::optional<int> agents;        // one for each slot
  std::optional<int> lanes;         // 1 for each server
  std::optional<int> session_ms;    // 4000
  bool own_disks = false;           // from now on, as the next
  bool secure = false;
};

// cluster.json
struct LocalConfig {
  int coordinators = 1;
  int servers = 2;
  int agents = 2;
  int slots = 1;  // of each agent
  int lanes = 1;
  bool own_disks = false;  // each server has a folder of checkpoints that no other sees
  // Every daemon has a key, and talks to those only that it trusts; the API speaks TLS and wants a
  // token.
  bool secure = false;
  int session_ms = 4000;  // of ZooKeeper: after so long a silence a process counts as dead
  int zookeeper_port = 0;
  std::vector<int> http_ports;

  int workers() const { return agents * slots; }
};

LocalConfig ApplySizes(LocalConfig config, const LocalSizes& sizes);

// Where `local up` keeps its files unless --dir says otherwise.
std::filesystem::path DefaultLocalDirectory(const Environment& environment);

class LocalCluster {
 public:
  LocalCluster(Environment& environment, std::filesystem::path directory);

  // Starts everything and waits until all are registered, `patience_ms` for each of the steps.
  // kConflict if it runs already. On any error nothing stays running.
  Status Up(const LocalSizes& sizes, std::int64_t patience_ms);

  // Starts those processes of a running cluster that died. As Up() if all did.
  Status Repair(const LocalSizes& sizes, std::int64_t patience_ms);

  // Stops workers, servers, coordinators and ZooKeeper in this order.
  Status Down();

  // Removes the directory; nothing may run.
  Status Purge();

  Result<LocalConfig> ReadConfig() const;  // kNotFound if there is no cluster here
  Result<std::vector<DaemonProcess>> Processes() const { return table_.List(); }
  Result<bool> AnyAlive() const;
  const std::filesystem::path& directory() const { return directory_; }
  // Of who uses the cluster. His keys are made if they are not there; it names his token's file.
  Result<Context> OperatorContext(const LocalConfig& config) const;
  static std::vector<std::string> CoordinatorUrls(const LocalConfig& config);

 private:
  struct Programs;

  Result<Programs> FindPrograms() const;
  Status Prepare(const LocalConfig& config) const;
  Status WriteConfig(const LocalConfig& config) const;
  // Keeps two commands from working in one directory at the same time.
  Result<net::UniqueFd> Lock() const;
  Status UpLocked(const LocalSizes& sizes, std::int64_t patience_ms, const Programs& programs);
  Status StartAll(const LocalConfig& config, const Programs& programs, std::int64_t patience_ms);
  std::string KeyPath(const std::string& name) const;
  std::string TrustedPath() const;
  // What else lies in keys/.
  std::string SecurePath(const char* file) const;
  Status MakeKey(net::Role role, const std::string& name) const;
  // For the keys of a daemon, which are made if they are not there. Nothing if not secure.
  Status AddKeyFlags(const LocalConfig& config, net::Role role, const std::string& name,
                     std::vector<std::string>& argv) const;
  // Likewise for certificate and tokens of a coordinator's API.
  Status AddApiFlags(const LocalConfig& config, std::vector<std::string>& argv) const;
  // Nothing to do if a process of this name runs.
  Status StartOne(const std::string& name, std::vector<std::string> argv,
                  const std::filesystem::path& working_directory);
  // Repeats `ready` until it says "" (else: what is missing) or the time is over.
  Status WaitFor(const std::string& what, std::int64_t patience_ms,
                 const std::function<Result<std::string>()>& ready);
  std::string LogTail(const std::string& name) const;

  Environment& environment_;
  const std::filesystem::path directory_;
  const ProcessTable table_;
  std::vector<DaemonProcess> started_;
};

}  // namespace ps::cli
