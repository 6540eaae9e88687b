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

#include "common/error_id.h"
#include "common/net/allocator.h"
#include "common/net/daemon_options.h"
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
  ps::net::DaemonOptions options(
      "ps-server",
      "Holds shards of the parameters of training jobs in memory, applies pushes, answers pulls "
      "and writes checkpoints. Finds the coordinator through ZooKeeper.");
  CLI::App& app = options.app();
  ps::server::DaemonConfig config;
  config.server.name = DefaultName();
  config.server.lanes = std::max(1u, std::thread::hardware_concurrency());
  std::int64_t session_timeout_ms = config.session_timeout.count();
  std::string checkpoint_dir;
  std::uint16_t admin_port = 0;

  app.add_option("--name", config.server.name, "name of this server, for people")
      ->envname("DS_NAME")
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
  app.add_option("--checkpoint-dir", checkpoint_dir,
                 "where checkpoints are written; several servers may share it")
      ->required();
  app.add_option(
      "--rack", config.server.rack,
      "what else may fail at once, a rack or a switch: backups and copies of checkpoints go "
      "to others where there are any");
  app.add_option("--copy-rate", config.server.copy_rate,
                 "bytes a second, as in 50M, of new backups that leave this server (default: no "
                 "limit)")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true));
  app.add_option("--scrub-rate", config.server.scrub_bytes_per_second,
                 "bytes a second, as in 10M, that are read of checkpoints in --checkpoint-dir to "
                 "find damage; 0: none")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->capture_default_str();
  auto* admin = app.add_option("--admin-port", admin_port,
                               "port of /healthz and /metrics; 0: any free one; absent: none");
  options.AddSecurity();
  if (const auto status = options.Parse(argc, argv)) return *status;
  const bool bound_everywhere = config.server.bind == "0.0.0.0" || config.server.bind == "::";
  if (bound_everywhere && config.server.advertise.empty()) {
    return options.Wrong(
        {ps::ErrorId::kAdvertiseWanted,
         "--bind " + config.server.bind + " needs --advertise: workers cannot connect to it"});
  }
  const auto security = options.Security(config.server.bind);
  if (!security.ok()) return options.Wrong(security.error());
  config.security = *security;
  config.zookeeper_secret = options.zookeeper_secret();
  config.session_timeout = std::chrono::milliseconds(session_timeout_ms);
  config.server.checkpoint_dir = checkpoint_dir;
  if (admin->count() > 0) config.server.admin_port = admin_port;

  if (options.check_only()) return options.ConfigurationIsGood();
  config.reload = [&options] { return options.Reload(); };

  const ps::Status ended = ps::server::Run(std::move(config));
  if (ended.ok()) return EX_OK;
  std::fprintf(stderr, "ps-server: %s\n", ps::ErrorLine(ended.error()).c_str());
  return ExitCodeOf(ended.error());
}
