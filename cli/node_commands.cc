#include <spdlog/spdlog.h>

#include <algorithm>

#include "cli/commands.h"
#include "cli/doctor.h"
#include "cli/wait_until.h"
#include "common/error_id.h"
#include "common/net/loop.h"

namespace ps::cli {
namespace {

// Lanes come as a list of endpoints or as their number.
std::string SizeText(const Json& node) {
  const Json& lanes = MemberOf(node, "lanes");
  return lanes.is_array() ? std::to_string(lanes.size())
                          : TextOf(node, "lanes", TextOf(node, "slots"));
}

// "1 of 4 free"; nothing for a node without.
std::string GpusText(const Json& node) {
  const Json& gpus = MemberOf(node, "gpus");
  if (!gpus.is_array() || gpus.empty()) return "";
  const auto sick = std::count_if(gpus.begin(), gpus.end(),
                                  [](const Json& gpu) { return !TextOf(gpu, "trouble").empty(); });
  return TextOf(node, "free_gpus") + " of " + std::to_string(gpus.size()) + " free" +
         (sick > 0 ? ", " + std::to_string(sick) + " sick" : "");
}

Result<ExitCode> ListNodes(Globals& globals) {
  const OutputFormat format = PS_TRY(globals.Format());
  Api api = PS_TRY(globals.OpenApi());
  const Json answer = PS_TRY(api.Get("/v1/nodes"));
  std::ostream& out = globals.environment.out;
  if (WriteStructured(out, format, answer)) return ExitCode::kOk;
  const Json& nodes = MemberOf(answer, "nodes");
  if (format == OutputFormat::kName) {
    for (const Json& node : nodes) out << Printable(TextOf(node, "name")) << "\n";
    return ExitCode::kOk;
  }
  const bool wide = format == OutputFormat::kWide;
  std::vector<std::string> header = {"NAME", "KIND", "STATE", "HOST", "LANES/SLOTS", "JOBS"};
  if (wide) header.insert(header.end(), {"GPUS", "LABEL", "RACK", "PROCESS"});
  Table table(header);
  for (const Json& node : nodes) {
    std::string state = TextOf(node, "state");
    if (FlagOf(node, "leader")) state += (state.empty() ? "" : ",") + std::string("leader");
    std::vector<std::string> row = {
        TextOf(node, "name"), TextOf(node, "kind"), state,
        TextOf(node, "host"), SizeText(node),       JobNames(MemberOf(node, "jobs"))};
    if (wide)
      row.insert(row.end(), {GpusText(node), TextOf(node, "label"), TextOf(node, "rack"),
                             TextOf(node, "procid")});
    table.Add(row);
  }
  out << table.ToString();
  return ExitCode::kOk;
}

// ---- duty

struct DutyCommand {
  std::string node;
  bool wait = false;
  std::string timeout = "10m";
};

Result<ExitCode> SetDuty(Globals& globals, const DutyCommand& command, const std::string& duty) {
  Environment& environment = globals.environment;
  const OutputFormat format = PS_TRY(globals.Format());
  const std::int64_t timeout_ms = PS_TRY(ParseDuration(command.timeout));
  Api api = PS_TRY(globals.OpenApi());
  Json answer = PS_TRY(api.Post("/v1/nodes/" + UrlEncode(command.node), Json{{"duty", duty}}));
  if (command.wait) {
    answer =
        PS_TRY(WaitUntilDrained(api, environment, std::move(answer), {command.node}, timeout_ms));
  }
  Json nodes = Json::array();
  for (const Json& node : MemberOf(answer, "nodes")) {
    if (TextOf(node, "name") == command.node) nodes.push_back(node);
  }
  if (WriteStructured(environment.out, format, Json{{"nodes", nodes}})) return ExitCode::kOk;
  for (const Json& node : nodes) {
    environment.out << Printable(TextOf(node, "kind") + " " + TextOf(node, "name") + " is " +
                                 TextOf(node, "state"))
                    << "\n";
  }
  return ExitCode::kOk;
}

void AddDutyCommands(CLI::App& group, Globals& globals) {
  struct Duty {
    const char* name;
    const char* duty;
    const char* description;
    const char* examples;
  };
  const Duty duties[] = {
      {"drain", "draining",
       "Move what a node has to others while training goes on: shards are copied and handed over, "
       "tasks start elsewhere",
       "  ds-cli node drain server-2 --wait\n  ds-cli node drain gpu-17 --wait --timeout 1h\n"},
      {"cordon", "cordoned", "Give a node nothing new; it keeps what it has",
       "  ds-cli node cordon server-2\n"},
      {"undrain", "full", "Take a node back that drains, or was cordoned",
       "  ds-cli node undrain server-2\n"}};
  for (const Duty& duty : duties) {
    CLI::App* command = AddCommand(group, duty.name, duty.description, duty.examples, globals);
    const auto options = std::make_shared<DutyCommand>();
    command->add_option("node", options->node, "Name of the node: its server, its agent, or both")
        ->required();
    if (std::string(duty.duty) == "draining") {
      auto* wait = command->add_flag("--wait", options->wait, "Until it has nothing any more");
      command->add_option("--timeout", options->timeout, "End the wait (124), not the drain")
          ->needs(wait)
          ->type_name("TIME")
          ->capture_default_str();
    }
    command->callback([&globals, options, word = duty.duty] {
      globals.action = [&globals, options, word] { return SetDuty(globals, *options, word); };
    });
  }
}

struct DoctorCommand {
  DoctorOptions options;
  std::string deadline = "5s";
  bool offline = false;
};

Result<ExitCode> Doctor(Globals& globals, const DoctorCommand& command) {
  Environment& environment = globals.environment;
  const OutputFormat format = PS_TRY(globals.Format());
  DoctorOptions options = command.options;
  options.deadline_ms = PS_TRY(ParseDuration(command.deadline));
  const net::TlsFiles& tls = options.api_tls;
  if (tls.given() != !tls.key.empty()) {
    return Error{ErrorId::kFlagsTogether, "--api-cert and --api-key go together"};
  }
  spdlog::set_level(spdlog::level::off);  // what the session says is in the findings
  std::vector<Finding> findings = {CheckProcessor(), CheckMemory(), CheckSharedMemory(),
                                   CheckOpenFiles(), CheckClock(),  CheckGpus()};
  for (const std::string& directory : options.directories) {
    findings.push_back(CheckDirectory(directory));
  }
  for (const int port : options.ports) findings.push_back(CheckPort(port));
  for (const std::string& key : options.keys) {
    findings.push_back(CheckKey(key, options.trusted, net::WallClockMs()));
  }
  if (tls.given()) findings.push_back(CheckCertificate(tls, net::WallClockMs()));
  if (!options.api_tokens.empty()) {
    findings.push_back(CheckTokens(options.api_tokens, net::WallClockMs()));
  }
  if (command.offline) {
    if (!options.zookeeper.empty()) {
      findings.push_back(
          CheckZooKeeper(options.zookeeper, options.zookeeper_secret, options.deadline_ms));
    }
  } else {
    Api api = PS_TRY(globals.OpenApi());
    for (Finding& finding : CheckCluster(api, options)) findings.push_back(std::move(finding));
  }
  if (environment.interrupted()) return ExitCode::kInterrupted;
  const bool fine = std::all_of(findings.begin(), findings.end(), [](const Finding& finding) {
    return finding.state == Finding::State::kOk;
  });
  const ExitCode code = fine ? ExitCode::kOk : ExitCode::kFindings;
  Json list = Json::array();
  for (const Finding& finding : findings) {
    list.push_back({{"check", finding.check},
                    {"state", StateName(finding.state)},
                    {"detail", finding.detail},
                    {"next", finding.next}});
  }
  if (WriteStructured(environment.out, format, Json{{"findings", list}})) return code;
  if (format == OutputFormat::kName) {
    for (const Finding& finding : findings) {
      if (finding.state != Finding::State::kOk) {
        environment.out << Printable(finding.check) << "\n";
      }
    }
    return code;
  }
  Table table({"CHECK", "STATE", "DETAIL", "NEXT"});
  for (const Finding& finding : findings) {
    table.Add({finding.check, StateName(finding.state), finding.detail, finding.next});
  }
  environment.out << table.ToString();
  return code;
}

void AddDoctorCommand(CLI::App& group, Globals& globals) {
  CLI::App* command = AddCommand(
      group, "doctor",
      "Check this machine, and what it reaches of the cluster; exits 10 if "
      "anything is amiss",
      "  ds-cli node doctor\n"
      "  ds-cli node doctor --dir /var/lib/ds/checkpoints --port 7070\n"
      "  ds-cli node doctor --key /etc/ds/keys/ps-server.key --zookeeper-secret "
      "/etc/ds/keys/zookeeper.secret\n"
      "  ds-cli node doctor --api-cert /etc/ds/keys/api.crt --api-key /etc/ds/keys/api.key "
      "--api-tokens /etc/ds/tokens\n"
      "  ds-cli node doctor --offline --zookeeper zk1:2181,zk2:2181/ds   # before a start\n",
      globals);
  const auto options = std::make_shared<DoctorCommand>();
  command
      ->add_option("--dir", options->options.directories,
                   "A directory that a daemon writes to; may be repeated")
      ->allow_extra_args(false);
  command
      ->add_option("--port", options->options.ports,
                   "A port that a daemon is going to listen on; may be repeated")
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 65535));
  command->add_option("--zookeeper", options->options.zookeeper,
                      "HOST:PORT,.../CHROOT (default: what the coordinator says)");
  command
      ->add_option("--key", options->options.keys,
                   "The key of a daemon of this node; may be repeated")
      ->allow_extra_args(false)
      ->type_name("FILE");
  command->add_option("--trusted", options->options.trusted, "The list of those that are trusted")
      ->type_name("FILE")
      ->capture_default_str();
  command
      ->add_option("--zookeeper-secret", options->options.zookeeper_secret,
                   "What guards the cluster's nodes in ZooKeeper")
      ->type_name("FILE");
  command
      ->add_option("--api-cert", options->options.api_tls.certificate,
                   "The certificate of a coordinator of this node")
      ->type_name("FILE");
  command->add_option("--api-key", options->options.api_tls.key, "The key that belongs to it")
      ->type_name("FILE");
  command
      ->add_option("--api-tokens", options->options.api_tokens,
                   "The list of tokens of a coordinator of this node")
      ->type_name("FILE");
  command->add_option("--deadline", options->deadline, "Of each check that waits for others")
      ->type_name("TIME")
      ->capture_default_str();
  command->add_flag("--offline", options->offline, "Ask no coordinator and no server");
  command->callback([&globals, options] {
    globals.action = [&globals, options] { return Doctor(globals, *options); };
  });
}

}  // namespace

void AddNodeCommands(CLI::App& app, Globals& globals) {
  CLI::App* group = AddGroup(app, "node", "Servers, workers and coordinators of the cluster");
  AddCommand(*group, "list", "List them with their state",
             "  ds-cli node list\n  ds-cli node list -o wide\n", globals)
      ->callback([&globals] { globals.action = [&globals] { return ListNodes(globals); }; });
  AddDutyCommands(*group, globals);
  AddDoctorCommand(*group, globals);
}

}  // namespace ps::cli
