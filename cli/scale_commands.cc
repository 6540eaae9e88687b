#include <algorithm>
#include <memory>
#include <set>
#include <vector>

#include "cli/commands.h"
#include "cli/progress.h"
#include "cli/wait_until.h"
#include "common/error_id.h"
#include "common/job/job_spec.h"

namespace ps::cli {
namespace {

struct ScaleOptions {
  std::string job;
  std::int64_t number = 0;
  bool dry_run = false;
  bool wait = false;
  std::string timeout = "10m";
};

// ---- workers

std::int64_t LiveWorkers(const Json& job) {
  const Json& workers = MemberOf(job, "workers");
  return std::count_if(workers.begin(), workers.end(),
                       [](const Json& worker) { return TextOf(worker, "state") == "live"; });
}

// "2 of 3 workers train"; empty if all do. kConflict if the job does not train any more.
Result<std::string> MissingWorkers(const Json& job, std::int64_t wanted) {
  const std::int64_t live = LiveWorkers(job);
  if (live == wanted) return std::string();
  if (IsFinished(job) || TextOf(job, "phase") == "suspended") {
    return Error{IsFinished(job) ? ErrorId::kJobOver : ErrorId::kJobNotTraining,
                 "job " + TextOf(job, "id") + " is " + TextOf(job, "phase")};
  }
  return std::to_string(live) + " of " + std::to_string(wanted) + " workers train";
}

Result<ExitCode> ScaleWorkers(Globals& globals, const ScaleOptions& options) {
  Environment& environment = globals.environment;
  const OutputFormat format = PS_TRY(globals.Format());
  const std::int64_t timeout_ms = PS_TRY(ParseDuration(options.timeout));
  Api api = PS_TRY(globals.OpenApi());
  Json answer = PS_TRY(api.Post(JobPath(options.job) + "/scale",
                                Json{{"workers", options.number}, {"dry_run", options.dry_run}}));
  if (options.wait) {
    const std::string id = TextOf(MemberOf(answer, "job"), "id");
    const auto missing = [&options](const Json& now) {
      return MissingWorkers(MemberOf(now, "job"), options.number);
    };
    const Json now = PS_TRY(WaitUntil(api, environment, JobPath(id), answer, missing, timeout_ms,
                                      "ds-cli job why " + id));
    answer["job"] = MemberOf(now, "job");
  }
  if (WriteStructured(environment.out, format, answer)) return ExitCode::kOk;
  const Json& job = MemberOf(answer, "job");
  if (format == OutputFormat::kName) {
    environment.out << Printable(TextOf(job, "id")) << "\n";
    return ExitCode::kOk;
  }
  const Json& scale = MemberOf(answer, "scale");
  const std::int64_t before = NumberOf(scale, "before").value_or(0);
  const std::int64_t more = options.number - before;
  const std::int64_t free = NumberOf(scale, "free_slots").value_or(0);
  std::string text = "job " + TextOf(job, "id") + " (" + TextOf(job, "name") + ") ";
  text += more == 0         ? "has " + CountText(before) + " workers"
          : options.dry_run ? "would have " + CountText(options.number) + " workers"
                            : "has " + CountText(options.number) + " workers from now on";
  if (more != 0) text += " in the place of " + CountText(before);
  if (more > free) {
    text += "; " + CountText(more - free) + (more - free == 1 ? " waits" : " wait") +
            " for a free slot: `scripts/scale_out` brings another host in";
  }
  environment.out << Printable(text) << "\n";
  return ExitCode::kOk;
}

// ---- servers

struct Plan {
  std::vector<std::string> drain;
  std::vector<std::string> undrain;
};

// Those with the fewest copies of shards leave, those with the most come back. A cordoned server
// stays as it is, and counts.
Result<Plan> PlanServers(const Json& nodes, std::int64_t number) {
  struct Server {
    std::string name;
    double copies = 0;
  };
  std::vector<Server> full;
  std::vector<Server> leaving;
  for (const Json& node : nodes) {
    if (TextOf(node, "kind") != "server") continue;
    const std::string state = TextOf(node, "state");
    const Server server{TextOf(node, "name"), NumberOf(node, "shards").value_or(0)};
    if (state == "draining" || state == "drained") {
      leaving.push_back(server);
    } else if (state == "ready" || state == "unsteady" || state == "cordoned") {
      full.push_back(server);
    }
  }
  const auto fewest_first = [](const Server& a, const Server& b) {
    return std::tie(a.copies, b.name) < std::tie(b.copies, a.name);
  };
  std::sort(full.begin(), full.end(), fewest_first);
  std::sort(leaving.begin(), leaving.end(), fewest_first);
  const auto there = static_cast<std::int64_t>(full.size());
  const auto away = static_cast<std::int64_t>(leaving.size());
  if (number > there + away) {
    return Error{ErrorId::kTooFewServers,
                 "there are " + CountText(there + away) +
                     " servers: `scripts/scale_out` brings another host in, and with it a server"};
  }
  Plan plan;
  for (std::int64_t i = 0; i < there - number; ++i) {
    plan.drain.push_back(full[static_cast<std::size_t>(i)].name);
  }
  for (std::int64_t i = 0; i < number - there; ++i) {
    plan.undrain.push_back(leaving[static_cast<std::size_t>(away - 1 - i)].name);
  }
  return plan;
}

Result<ExitCode> ScaleServers(Globals& globals, const ScaleOptions& options) {
  Environment& environment = globals.environment;
  const OutputFormat format = PS_TRY(globals.Format());
  const std::int64_t timeout_ms = PS_TRY(ParseDuration(options.timeout));
  Api api = PS_TRY(globals.OpenApi());
  Json answer = PS_TRY(api.Get("/v1/nodes"));
  const Plan plan = PS_TRY(PlanServers(MemberOf(answer, "nodes"), options.number));
  if (!options.dry_run) {
    for (const bool drains : {true, false}) {
      for (const std::string& name : drains ? plan.drain : plan.undrain) {
        PS_TRY(
            api.Post("/v1/nodes/" + UrlEncode(name), Json{{"duty", drains ? "draining" : "full"}}));
      }
    }
    answer = PS_TRY(api.Get("/v1/nodes"));
  }
  if (options.wait) {
    PS_TRY(WaitUntilDrained(api, environment, answer, {plan.drain.begin(), plan.drain.end()},
                            timeout_ms));
  }
  const Json done{{"drain", plan.drain}, {"undrain", plan.undrain}};
  if (WriteStructured(environment.out, format, done)) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    for (const auto* names : {&plan.drain, &plan.undrain}) {
      for (const std::string& name : *names) environment.out << Printable(name) << "\n";
    }
    return ExitCode::kOk;
  }
  if (plan.drain.empty() && plan.undrain.empty()) {
    environment.out << "there are " << CountText(options.number) << " servers\n";
  }
  for (const std::string& name : plan.drain) {
    environment.out << Printable("server " + name + " " +
                                 (options.dry_run ? "would drain"
                                  : options.wait  ? "is drained"
                                                  : "drains"))
                    << "\n";
  }
  for (const std::string& name : plan.undrain) {
    environment.out << Printable("server " + name + " " +
                                 (options.dry_run ? "would be taken back" : "is taken back"))
                    << "\n";
  }
  return ExitCode::kOk;
}

void AddCommon(CLI::App& command, ScaleOptions& options) {
  auto* dry_run =
      command.add_flag("--dry-run", options.dry_run, "Change nothing, show what would be");
  auto* wait = command.add_flag("--wait", options.wait, "Until it is so")->excludes(dry_run);
  command.add_option("--timeout", options.timeout, "End the wait (124), not the change")
      ->needs(wait)
      ->type_name("TIME")
      ->capture_default_str();
}

}  // namespace

void AddScaleCommands(CLI::App& app, Globals& globals) {
  CLI::App* group = AddGroup(app, "scale", "More or fewer workers of a job, or servers");
  {
    CLI::App* command =
        AddCommand(*group, "workers", "Give a job another number of workers while it trains",
                   "  ds-cli scale workers fashion-mlp 6 --wait\n"
                   "  ds-cli scale workers 7 2 --dry-run\n",
                   globals);
    const auto options = std::make_shared<ScaleOptions>();
    command->add_option("job", options->job, "Number or name (then the newest)")->required();
    command->add_option("number", options->number, "Of workers from now on")
        ->required()
        ->check(CLI::Range(std::int64_t{1}, kWorkersMax));
    AddCommon(*command, *options);
    command->callback([&globals, options] {
      globals.action = [&globals, options] { return ScaleWorkers(globals, *options); };
    });
  }
  CLI::App* command =
      AddCommand(*group, "servers",
                 "Let as many servers drain that so many are left, or take some back that drain",
                 "  ds-cli scale servers 2 --dry-run\n  ds-cli scale servers 2 --wait\n", globals);
  const auto options = std::make_shared<ScaleOptions>();
  command->add_option("number", options->number, "Of servers that do not drain")
      ->required()
      ->check(CLI::Range(1, 100'000));
  AddCommon(*command, *options);
  command->callback([&globals, options] {
    globals.action = [&globals, options] { return ScaleServers(globals, *options); };
  });
}

}  // namespace ps::cli
