// ps-worker: the agent of a worker node. Reads flags and runs it; see run.h.
//
// Exit status: 0 after SIGTERM; 64 usage; 73 a directory cannot be made or used; 75 another agent
// uses the state directory; 78 the configuration makes no sense; 70 anything else.
#include <sysexits.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <thread>

#include "common/net/allocator.h"
#include "common/net/daemon_options.h"
#include "ps-worker/agent/ring_store.h"
#include "ps-worker/agent/run.h"

namespace {

std::string HostName() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) return "localhost";
  return name.data();
}

// systemd names the directory it made for us.
std::string DefaultStateDirectory() {
  const char* directory = std::getenv("STATE_DIRECTORY");
  return directory != nullptr && *directory != '\0' ? directory : "/var/lib/ds/ps-worker";
}

std::string TaskBinaryBesideUs() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? "ps-task" : (self.parent_path() / "ps-task").string();
}

int ExitStatus(const ps::Error& error) {
  switch (error.code) {
    case ps::ErrorCode::kUsage: return EX_USAGE;
    case ps::ErrorCode::kInvalid: return EX_CONFIG;
    case ps::ErrorCode::kIo:
    case ps::ErrorCode::kDenied: return EX_CANTCREAT;
    case ps::ErrorCode::kConflict: return EX_TEMPFAIL;
    default: return EX_SOFTWARE;
  }
}

}  // namespace

int main(int argc, char** argv) {
  ps::net::KeepFreedMemory();
  ps::worker::RunConfig config;
  ps::worker::AgentOptions& agent = config.agent;
  agent.host = HostName();
  agent.name = agent.host;
  agent.version = PS_VERSION;
  agent.slots = std::max(1u, std::thread::hardware_concurrency());
  agent.task_binary = TaskBinaryBesideUs();
  std::string state_directory = DefaultStateDirectory();
  std::string retention_directory;
  int session_timeout_ms = static_cast<int>(config.session_timeout.count());

  ps::net::DaemonOptions options("ps-worker",
                                 "Runs the worker tasks of training jobs on this node.");
  CLI::App& app = options.app();
  app.add_option("--name", agent.name, "Name of this node for people")
      ->envname("DS_NAME")
      ->capture_default_str();
  app.add_option("--zookeeper", config.zookeeper, "HOST:PORT,.../CHROOT")->capture_default_str();
  app.add_option("--session-timeout-ms", session_timeout_ms, "Of the ZooKeeper session")
      ->capture_default_str()
      ->check(CLI::Range(400, 600'000));
  app.add_option("--slots", agent.slots, "Tasks that run here at a time")
      ->capture_default_str()
      ->check(CLI::Range(1u, 1024u));
  app.add_option("--gpus", agent.gpus,
                 "Offer the node's GPUs to tasks: auto (where NVIDIA's driver is), on or off")
      ->envname("DS_GPUS")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "on", "off"}));
  app.add_option("--label", agent.label,
                 "Take only tasks of jobs with this resources.label (default: of those without)");
  app.add_option("--state-dir", state_directory, "Job files and logs of tasks")
      ->capture_default_str();
  app.add_option("--retention-dir", retention_directory,
                 "Retained pushes; in memory, one directory per agent (default: under /dev/shm)");
  app.add_option("--task-binary", agent.task_binary, "The program ps-task")->capture_default_str();
  app.add_option("--bind", agent.host, "Name or address by which others know this node")
      ->capture_default_str();
  options.AddSecurity();
  if (const auto status = options.Parse(argc, argv)) return *status;
  const auto security = options.Security("");  // it only connects to others
  if (!security.ok()) return options.Wrong(security.error());
  agent.security = *security;
  config.zookeeper_secret = options.zookeeper_secret();
  agent.log_level = options.log_level();
  config.session_timeout = std::chrono::milliseconds(session_timeout_ms);
  std::error_code error;
  agent.state_directory = std::filesystem::absolute(state_directory, error);
  agent.retention_directory = retention_directory.empty()
                                  ? ps::worker::DefaultRetentionDirectory(agent.state_directory)
                                  : std::filesystem::absolute(retention_directory, error);
  if (options.check_only()) return options.ConfigurationIsGood();
  config.reload = [&options] { return options.Reload(); };
  const ps::Status status = ps::worker::Run(std::move(config));
  if (status.ok()) return 0;
  std::fprintf(stderr, "ps-worker: %s\n", ps::ErrorLine(status.error()).c_str());
  return ExitStatus(status.error());
}
