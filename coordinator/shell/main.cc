// coordinator: places jobs, notices failures, recovers. Any number may run; one leads.
#include <spdlog/spdlog.h>
#include <sysexits.h>

#include <CLI/CLI.hpp>
#include <csignal>

#include "common/net/log.h"
#include "common/net/loop.h"
#include "coordinator/shell/coordinator.h"

int main(int argc, char** argv) {
  ps::coordinator::CoordinatorOptions options;
  std::string log_level = "info";
  std::string log_format = "text";
  CLI::App app(
      "Coordinator of a parameter-server cluster: election, placement, recovery, REST API.",
      "coordinator");
  app.add_option("--id", options.id, "Name of this coordinator")->capture_default_str();
  app.add_option("--zookeeper", options.zookeeper, "HOST:PORT[,HOST:PORT...][/chroot]")
      ->capture_default_str();
  app.add_option("--bind", options.bind, "Address to listen on")->capture_default_str();
  app.add_option("--advertise", options.advertise, "Host that others connect to, if not --bind");
  app.add_option("--control-port", options.control_port, "For servers and agents; 0: any free one")
      ->capture_default_str();
  app.add_option("--http-port", options.http_port, "REST API; 0: any free one")
      ->capture_default_str();
  app.add_option("--session-timeout-ms", options.session_timeout_ms, "Of the ZooKeeper session")
      ->capture_default_str()
      ->check(CLI::Range(200, 600'000));
  app.add_option("--log-level", log_level, "trace, debug, info, warn, error, off")
      ->capture_default_str();
  app.add_option("--log-format", log_format, "text or json")->capture_default_str();
  app.set_version_flag("--version", std::string("coordinator ") + PS_VERSION);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? EX_OK : EX_USAGE;
  }
  const ps::Status logging = ps::SetUpLogging("coordinator", log_level, log_format);
  if (!logging.ok()) {
    fprintf(stderr, "coordinator: %s\n", logging.error().message.c_str());
    return EX_USAGE;
  }
  ps::net::Loop loop;
  {
    ps::coordinator::Coordinator coordinator(loop, options);
    const ps::Status started = coordinator.Start();
    if (!started.ok()) {
      spdlog::error("cannot start: {}", started.error().message);
      return started.error().code == ps::ErrorCode::kInvalid ? EX_CONFIG : EX_UNAVAILABLE;
    }
    loop.OnSignal({SIGTERM, SIGINT}, [&loop](int signal) {
      spdlog::info("stops on signal {}", signal);
      loop.Stop();
    });
    loop.Run();
  }
  return EX_OK;
}
