// coordinator: places jobs, notices failures, recovers. Any number may run; one leads.
#include <spdlog/spdlog.h>
#include <sysexits.h>

#include <CLI/CLI.hpp>
#include <csignal>

#include "common/error_id.h"
#include "common/net/daemon_options.h"
#include "common/net/loop.h"
#include "common/net/systemd.h"
#include "coordinator/shell/coordinator.h"

int main(int argc, char** argv) {
  ps::coordinator::CoordinatorOptions options;
  ps::net::DaemonOptions daemon(
      "coordinator",
      "Coordinator of a parameter-server cluster: election, placement, recovery, REST API.");
  CLI::App& app = daemon.app();
  app.add_option("--id", options.id, "Name of this coordinator")
      ->envname("DS_NAME")
      ->capture_default_str();
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
  app.add_option("--api-cert", options.api.tls.certificate,
                 "Certificate of the REST API, which speaks TLS then (PEM)");
  app.add_option("--api-key", options.api.tls.key, "Its secret key (PEM)");
  app.add_option("--api-tokens", options.api.tokens,
                 "List of who may use the REST API, of `ds-cli token create`; the same for all");
  daemon.AddSecurity();
  if (const auto status = daemon.Parse(argc, argv)) return *status;
  if ((options.bind == "0.0.0.0" || options.bind == "::") && options.advertise.empty()) {
    return daemon.Wrong(
        {ps::ErrorId::kAdvertiseWanted,
         "--bind " + options.bind + " needs --advertise: nobody can connect to it"});
  }
  const auto security = daemon.Security(options.bind);
  if (!security.ok()) return daemon.Wrong(security.error());
  options.security = *security;
  options.zookeeper_secret = daemon.zookeeper_secret();
  const ps::Status api = options.api.Check(options.bind, daemon.insecure());
  if (!api.ok()) return daemon.Wrong(api.error());
  if (daemon.check_only()) return daemon.ConfigurationIsGood();
  ps::net::Loop loop;
  {
    ps::coordinator::Coordinator coordinator(loop, options);
    const ps::Status started = coordinator.Start();
    if (!started.ok()) {
      spdlog::error("cannot start: {}", ps::ErrorLine(started.error()));
      const bool makes_no_sense = started.error().code == ps::ErrorCode::kInvalid ||
                                  started.error().code == ps::ErrorCode::kUsage ||
                                  started.error().code == ps::ErrorCode::kDenied;
      return makes_no_sense ? EX_CONFIG : EX_UNAVAILABLE;
    }
    ps::net::SystemdNotifier systemd(loop, [&coordinator] { return coordinator.State(); });
    loop.OnSignal({SIGTERM, SIGINT, SIGHUP}, [&](int signal) {
      if (signal == SIGHUP) {
        coordinator.Reload();
        return systemd.Reload([&daemon] { return daemon.Reload(); });
      }
      spdlog::info("stops on signal {}", signal);
      systemd.Stopping();
      loop.Stop();
    });
    loop.Run();
  }
  return EX_OK;
}
