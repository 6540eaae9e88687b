#include <filesystem>

#include "cli/commands.h"
#include "cli/local_cluster.h"
#include "common/error_id.h"

namespace ps::cli {
namespace {

namespace fs = std::filesystem;

struct UpOptions {
  std::string directory;
  LocalSizes sizes;
  std::string timeout = "15s";
  std::string session;
  bool repair = false;
};

// --dir, or the directory of the running cluster, or the default one.
Result<fs::path> ChosenDirectory(const Environment& environment, const std::string& flag) {
  std::error_code error;
  fs::path directory = flag;
  if (flag.empty()) {
    const auto context = ReadContextFile(environment);
    directory = context.ok() && !context->directory.empty() ? fs::path(context->directory)
                                                            : DefaultLocalDirectory(environment);
  }
  directory = fs::absolute(directory, error).lexically_normal();
  if (error) return Error{ErrorId::kOptionValue, "--dir " + flag + ": " + error.message()};
  if (!directory.has_filename()) directory = directory.parent_path();
  return directory;
}

Status CheckNoOtherCluster(Environment& environment, const fs::path& directory) {
  const auto context = ReadContextFile(environment);
  if (!context.ok() || context->directory.empty() || context->directory == directory) return Ok();
  const LocalCluster other(environment, context->directory);
  const auto alive = other.AnyAlive();
  if (alive.ok() && *alive) {
    return Error{ErrorId::kClusterRuns, "another local cluster runs in " + context->directory +
                                            "; `ds-cli local down` stops it, or set DS_STATE to "
                                            "another file to have two"};
  }
  return Ok();
}

Result<ExitCode> Up(Globals& globals, const UpOptions& options) {
  Environment& environment = globals.environment;
  const OutputFormat format = PS_TRY(globals.Format());
  const std::int64_t patience_ms = PS_TRY(ParseDuration(options.timeout));
  LocalSizes sizes = options.sizes;
  if (!options.session.empty()) {
    const std::int64_t session_ms = PS_TRY(ParseDuration(options.session));
    if (session_ms < 1000 || session_ms > 10'000) {
      return Error{ErrorId::kOptionValue, "--session-timeout " + options.session + ": 1s to 10s"};
    }
    sizes.session_ms = static_cast<int>(session_ms);
  }
  const fs::path directory = PS_TRY(ChosenDirectory(environment, options.directory));
  PS_TRY(CheckNoOtherCluster(environment, directory));
  LocalCluster cluster(environment, directory);
  PS_TRY(options.repair ? cluster.Repair(sizes, patience_ms) : cluster.Up(sizes, patience_ms));
  const LocalConfig config = PS_TRY(cluster.ReadConfig());
  const Context context = PS_TRY(cluster.OperatorContext(config));
  if (const Status written = WriteContextFile(environment, context); !written.ok()) {
    if (!options.repair) PS_TRY(cluster.Down());
    return written.error();
  }
  const std::string zookeeper = "127.0.0.1:" + std::to_string(config.zookeeper_port) + "/ds";
  if (WriteStructured(environment.out, format,
                      Json{{"directory", directory.string()},
                           {"coordinators", context.coordinators},
                           {"zookeeper", zookeeper},
                           {"servers", config.servers},
                           {"workers", config.workers()},
                           {"context", ContextPath(environment).string()}})) {
    return ExitCode::kOk;
  }
  if (format == OutputFormat::kName) {
    environment.out << directory.string() << "\n";
    return ExitCode::kOk;
  }
  std::string urls;
  for (const auto& url : context.coordinators) urls += (urls.empty() ? "" : " ") + url;
  environment.out << FieldsText({{"directory", directory.string()},
                                 {"coordinators", urls},
                                 {"zookeeper", zookeeper},
                                 {"servers", std::to_string(config.servers)},
                                 {"workers", std::to_string(config.workers())}});
  environment.err << "the cluster runs; `ds-cli local down` stops it\n";
  return ExitCode::kOk;
}

Result<ExitCode> Down(Globals& globals, const std::string& flag, bool purge) {
  Environment& environment = globals.environment;
  const fs::path directory = PS_TRY(ChosenDirectory(environment, flag));
  LocalCluster cluster(environment, directory);
  if (auto config = cluster.ReadConfig();
      !config.ok() && config.error().code != ErrorCode::kInvalid) {
    return config.error();
  }
  const bool alive = PS_TRY(cluster.AnyAlive());
  PS_TRY(cluster.Down());
  const auto context = ReadContextFile(environment);
  if (context.ok() && context->directory == directory) PS_TRY(RemoveContextFile(environment));
  environment.err << (alive ? "stopped the cluster in " : "no cluster ran in ")
                  << directory.string() << "\n";
  if (purge) {
    PS_TRY(cluster.Purge());
    environment.err << "removed its data\n";
  }
  return ExitCode::kOk;
}

Result<ExitCode> ShowStatus(Globals& globals, const std::string& flag) {
  Environment& environment = globals.environment;
  const OutputFormat format = PS_TRY(globals.Format());
  const fs::path directory = PS_TRY(ChosenDirectory(environment, flag));
  const LocalCluster cluster(environment, directory);
  const LocalConfig config = PS_TRY(cluster.ReadConfig());
  const auto processes = PS_TRY(cluster.Processes());
  Table table({"NAME", "PID", "STATE", "LOG"});
  Json list = Json::array();
  bool good = !processes.empty();
  for (const auto& process : processes) {
    const bool alive = process.IsAlive();
    good = good && alive;
    const std::string log = (directory / "logs" / (process.name + ".log")).string();
    const char* state = alive ? "running" : "dead";
    table.Add({process.name, std::to_string(process.pid), state, log});
    list.push_back(
        Json{{"name", process.name}, {"pid", process.pid}, {"state", state}, {"log", log}});
  }
  const ExitCode code = good ? ExitCode::kOk : ExitCode::kFindings;
  const Json json{{"directory", directory.string()},
                  {"coordinators", LocalCluster::CoordinatorUrls(config)},
                  {"processes", list}};
  if (WriteStructured(environment.out, format, json)) return code;
  if (format == OutputFormat::kName) {
    for (const auto& process : processes) environment.out << process.name << "\n";
    return code;
  }
  if (processes.empty()) {
    environment.err << "the cluster in " << directory.string()
                    << " is stopped; `ds-cli local up` starts it again\n";
    return code;
  }
  environment.out << table.ToString();
  return code;
}

}  // namespace

void AddLocalCommands(CLI::App& app, Globals& globals) {
  CLI::App* group = AddGroup(app, "local", "A whole cluster on this machine");
  CLI::App* up = AddCommand(*group, "up",
                            "Start ZooKeeper, coordinators, servers and workers on 127.0.0.1, and "
                            "wait until all are registered",
                            "  ds-cli local up\n"
                            "  ds-cli local up --servers 3 --workers 4 --coordinators 3\n"
                            "  ds-cli local up --dir '/tmp/my cluster'\n\n"
                            "In a directory that was used before, the cluster goes on with its "
                            "data: jobs continue from their newest checkpoint.\n",
                            globals);
  const auto options = std::make_shared<UpOptions>();
  up->add_option("--dir", options->directory, "Where everything is kept")->type_name("DIR");
  up->add_option("--servers", options->sizes.servers, "Parameter servers (2)")
      ->check(CLI::Range(1, 64));
  up->add_option("--workers", options->sizes.workers, "Slots for worker tasks in all (2)")
      ->check(CLI::Range(1, 64));
  up->add_option("--agents", options->sizes.agents,
                 "ps-worker processes that share the slots (one "
                 "for each slot)")
      ->check(CLI::Range(1, 64));
  up->add_option("--coordinators", options->sizes.coordinators, "Coordinators (1)")
      ->check(CLI::Range(1, 9));
  up->add_option("--lanes", options->sizes.lanes, "Threads that serve shards, per server (1)")
      ->check(CLI::Range(1, 64));
  up->add_flag("--own-disks", options->sizes.own_disks,
               "Each server keeps its checkpoints where no other sees them, as on hosts of their "
               "own");
  up->add_flag(
      "--secure", options->sizes.secure,
      "Every daemon has a key of its own and what they say is encrypted, the REST API has TLS and "
      "wants a token: as between hosts");
  up->add_option("--session-timeout", options->session,
                 "After so long a silence ZooKeeper takes a process for dead, 1s to 10s (4s)")
      ->type_name("TIME");
  up->add_flag("--repair", options->repair, "Of a cluster that runs, start what died");
  up->add_option("--timeout", options->timeout, "For each step of the start (15s)")
      ->type_name("TIME");
  up->callback([&globals, options] {
    globals.action = [&globals, options] { return Up(globals, *options); };
  });

  CLI::App* down = AddCommand(*group, "down", "Stop the cluster; nothing stays running",
                              "  ds-cli local down\n  ds-cli local down --purge\n", globals);
  const auto down_directory = std::make_shared<std::string>();
  const auto purge = std::make_shared<bool>(false);
  down->add_option("--dir", *down_directory, "Which one")->type_name("DIR");
  down->add_flag("--purge", *purge, "Remove its data, checkpoints and logs too");
  down->callback([&globals, down_directory, purge] {
    globals.action = [&globals, down_directory, purge] {
      return Down(globals, *down_directory, *purge);
    };
  });

  CLI::App* status =
      AddCommand(*group, "status", "Show the processes of the cluster; exits 10 if one is dead",
                 "  ds-cli local status\n", globals);
  const auto status_directory = std::make_shared<std::string>();
  status->add_option("--dir", *status_directory, "Which one")->type_name("DIR");
  status->callback([&globals, status_directory] {
    globals.action = [&globals, status_directory] {
      return ShowStatus(globals, *status_directory);
    };
  });
}

}  // namespace ps::cli
