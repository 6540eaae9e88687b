// Daemons that outlive the command that started them, known by their pid files.
//
// A pid file holds the pid and the kernel's start time of the process, so that a
// pid that was given to another program since is not taken for ours. Each daemon
// leads a session of its own; what it started and left behind is found by that.
// One thread; ds-cli waits with the environment's sleep.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/environment.h"
#include "common/result.h"

namespace ps::cli {

struct DaemonProcess {
  std::string name;
  pid_t pid = 0;
  std::uint64_t start_time = 0;  // in clock ticks since boot

  // A zombie counts as dead.
  bool IsAlive() const;
};

struct DaemonSpec {
  std::string name;
  std::vector<std::string> argv;
  std::filesystem::path working_directory;
  std::filesystem::path log;  // stdout and stderr are appended
};

class ProcessTable {
 public:
  explicit ProcessTable(std::filesystem::path directory) : directory_(std::move(directory)) {}

  // Starts it and writes its pid file. The program runs (its exec succeeded) when this returns.
  Result<DaemonProcess> Start(const DaemonSpec& spec) const;

  // Everything with a pid file, by name.
  Result<std::vector<DaemonProcess>> List() const;

  // SIGTERM to all, SIGKILL to what is left after `patience`; then to what they left behind. The
  // pid files are removed. kInternal names what survived even that.
  Status Stop(const std::vector<DaemonProcess>& processes, std::chrono::milliseconds patience,
              Environment& environment) const;

 private:
  std::filesystem::path PidFile(const std::string& name) const;

  const std::filesystem::path directory_;  // of the pid files
};

// The start time of a live process; nothing if there is none or it is a zombie.
std::optional<std::uint64_t> StartTimeOf(pid_t pid);

}  // namespace ps::cli
