// ps-server: holds the shards of the parameters of training jobs.
#include <sysexits.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <thread>

#include "common/net/allocator.h"
#include "common/net/log.h"
#include "ps-server/shell/daemon.h"

namespace {

std::string DefaultName() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "ps-server";
}

int ExitCodeOf(const ps::Error& error) {
  switch (error.code) {
    case ps::ErrorCode::kUsage: return EX_USAGE;
    case ps::ErrorCode::kInvalid: return EX_CONFIG;
    case ps::ErrorCode::kIo:
    case ps::ErrorCode::kDenied: return EX_CANTCREAT;
    case ps::ErrorCode::kConflict:
    case ps::ErrorCode::kUnreachable:
    case ps::ErrorCode::kTimeout: return EX_UNAVAILABLE;
    default: return EX_SOFTWARE;
  }
}

}  // namespace

int main(int argc, char** argv) {
  ps::net::KeepFreedMemory();
  CLI::App app{
      "Holds shards of the parameters of training jobs in memory, applies pushes, answers pulls "
      "and writes checkpoints. Finds the coordinator through ZooKeeper.",
      "ps-server"};
  ps::server::DaemonConfig config;
  config.server.name = DefaultName();
  config.server.lanes = std::max(1u, std::thread::hardware_concurrency());
  std::int64_t session_timeout_ms = config.session_timeout.count();
  std::string checkpoint_dir;
  std::string log_level = "info";
  std::string log_format = "text";
  std::uint16_t admin_port = 0;

  app.add_option("--name", config.server.name, "name of this server, for people")
      ->capture_default_str();
  app.add_option("--zookeeper", config.zookeeper, "HOST:PORT[,HOST:PORT...][/CHROOT]")->required();
  app.add_option("--session-timeout-ms", session_timeout_ms,
                 "ZooKeeper session: after so long without contact this server counts as dead")
      ->capture_default_str()
      ->check(CLI::Range(200, 600'000));
  app.add_option("--bind", config.server.bind, "address to listen on")->capture_default_str();
  app.add_option("--advertise", config.server.advertise,
                 "host or address that workers connect to (default: the address of --bind)");
  app.add_option("--lanes", config.server.lanes, "threads that hold shards (default: cores)")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  app.add_option("--checkpoint-dir", checkpoint_dir, "directory that all servers share")
      ->required();
  auto* admin = app.add_option("--admin-port", admin_port,
                               "port of /healthz and /metrics; 0: any free one; absent: none");
  app.add_option("--log-level", log_level, "trace, debug, info, warn, error or off")
      ->capture_default_str();
  app.add_option("--log-format", log_format, "text or json")->capture_default_str();
  app.set_version_flag("--version", std::string("ps-server " PS_VERSION));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? EX_OK : EX_USAGE;
  }
  if (const ps::Status logging = ps::SetUpLogging("ps-server", log_level, log_format);
      !logging.ok()) {
    std::fprintf(stderr, "ps-server: %s\n", logging.error().message.c_str());
    return EX_USAGE;
  }
  const bool bound_everywhere = config.server.bind == "0.0.0.0" || config.server.bind == "::";
  if (bound_everywhere && config.server.advertise.empty()) {
    std::fprintf(stderr, "ps-server: --bind %s needs --advertise: workers cannot connect to it\n",
                 config.server.bind.c_str());
    return EX_USAGE;
  }
  config.session_timeout = std::chrono::milliseconds(session_timeout_ms);
  config.server.checkpoint_dir = checkpoint_dir;
  if (admin->count() > 0) config.server.admin_port = admin_port;

  const ps::Status ended = ps::server::Run(std::move(config));
  if (ended.ok()) return EX_OK;
  std::fprintf(stderr, "ps-server: %s\n", ended.error().message.c_str());
  return ExitCodeOf(ended.error());
}
