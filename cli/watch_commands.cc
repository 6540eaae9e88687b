#include <algorithm>
#include <sstream>

#include "cli/commands.h"
#include "cli/job_tables.h"
#include "cli/progress.h"
#include "cli/why.h"

namespace ps::cli {
namespace {

// ---- why

struct WhyCommand {
  std::string job;
  std::string look = "3s";
};

Result<ExitCode> Why(Globals& globals, const WhyCommand& command) {
  Environment& environment = globals.environment;
  const OutputFormat format = PS_TRY(globals.Format());
  const std::int64_t look_ms = PS_TRY(ParseDuration(command.look));
  Api api = PS_TRY(globals.OpenApi());
  JobLooks looks;
  looks.before = PS_TRY(GetJob(api, command.job));
  const std::string id = TextOf(looks.before, "id", command.job);
  const std::int64_t begun = environment.now_ms();
  if (!IsFinished(looks.before) && TextOf(looks.before, "phase") != "queued") {
    if (environment.err_is_terminal) {
      environment.err << "looks at job " << Printable(id) << " for " << command.look << std::endl;
    }
    environment.sleep(std::chrono::milliseconds(look_ms));
    if (environment.interrupted()) return ExitCode::kInterrupted;
  }
  looks.after = PS_TRY(GetJob(api, id));
  looks.seconds = static_cast<double>(environment.now_ms() - begun) / 1000.0;
  looks.events = MemberOf(PS_TRY(api.Get(JobPath(id) + "/events?after=0")), "events");
  looks.nodes = MemberOf(PS_TRY(api.Get("/v1/nodes")), "nodes");
  const std::vector<Cause> causes = Diagnose(looks);
  const bool fine = std::all_of(causes.begin(), causes.end(), [](const Cause& cause) {
    return cause.weight == Cause::Weight::kFine;
  });
  const ExitCode code = fine ? ExitCode::kOk : ExitCode::kFindings;
  Json list = Json::array();
  for (const Cause& cause : causes) {
    list.push_back({{"weight", WeightName(cause.weight)},
                    {"cause", cause.what},
                    {"evidence", cause.evidence},
                    {"next", cause.next}});
  }
  std::ostream& out = environment.out;
  if (WriteStructured(out, format,
                      Json{{"job", id}, {"seconds", looks.seconds}, {"causes", list}})) {
    return code;
  }
  if (format == OutputFormat::kName) {
    for (const Cause& cause : causes) out << Printable(cause.what) << "\n";
    return code;
  }
  for (const Cause& cause : causes) {
    out << WeightName(cause.weight) << ": " << Printable(cause.what) << "\n";
    if (!cause.evidence.empty()) out << "  seen: " << Printable(cause.evidence) << "\n";
    if (!cause.next.empty()) out << "  next: " << Printable(cause.next) << "\n";
  }
  return code;
}

// ---- top

struct TopCommand {
  std::string interval = "2s";
  std::int64_t count = 0;  // frames; 0: until it is interrupted
};

// "3 servers ready; 2 agents ready, 1 announcing, 4 of 6 slots free"
std::string MembersLine(const Json& nodes) {
  const auto of_kind = [&](const char* kind, const char* name) {
    std::vector<std::pair<std::string, int>> states;
    for (const Json& node : nodes) {
      if (TextOf(node, "kind") != kind) continue;
      const std::string state = TextOf(node, "state", "there");
      const auto at = std::find_if(states.begin(), states.end(),
                                   [&](const auto& entry) { return entry.first == state; });
      if (at == states.end()) {
        states.emplace_back(state, 1);
      } else {
        ++at->second;
      }
    }
    std::string text;
    for (const auto& [state, count] : states) {
      text += (text.empty() ? "" : ", ") + std::to_string(count) + " " + state;
    }
    return std::string(name) + " " + (text.empty() ? "none" : text);
  };
  double slots = 0;
  double free = 0;
  std::string leader = "none";
  for (const Json& node : nodes) {
    slots += NumberOf(node, "slots").value_or(0);
    free += NumberOf(node, "free_slots").value_or(0);
    if (FlagOf(node, "leader")) leader = TextOf(node, "name");
  }
  return "leader " + leader + "   " + of_kind("server", "servers") + "   " +
         of_kind("worker", "agents") + ", " + CountText(free) + " of " + CountText(slots) +
         " slots free\n";
}

std::string Frame(const Json& nodes, const Json& jobs) {
  std::ostringstream out;
  out << MembersLine(nodes) << "\n";
  // Those that go on first, then the newest of the others.
  Json open = Json::array();
  Json over = Json::array();
  for (const Json& job : jobs) (IsFinished(job) ? over : open).push_back(job);
  Json shown = open;
  for (auto job = over.rbegin(); job != over.rend() && shown.size() < open.size() + 5; ++job) {
    shown.push_back(*job);
  }
  WriteJobs(out, shown, true);
  for (const Json& job : open) {
    out << "\nWorkers of job " << Printable(TextOf(job, "id") + " " + TextOf(job, "name")) << "\n";
    WriteWorkers(out, MemberOf(job, "workers"));
  }
  return out.str();
}

// In place: as many lines as the terminal has.
void Draw(Environment& environment, const std::string& frame) {
  std::istringstream lines(frame);
  std::string line;
  environment.out << "\x1b[H";
  for (int row = 1; row < environment.rows && std::getline(lines, line); ++row) {
    environment.out << Fitted(line, environment.columns) << "\x1b[K\n";
  }
  environment.out << "\x1b[J";
  environment.out.flush();
}

Result<ExitCode> Top(Globals& globals, const TopCommand& command) {
  Environment& environment = globals.environment;
  const OutputFormat format = PS_TRY(globals.Format());
  const std::int64_t interval_ms = PS_TRY(ParseDuration(command.interval));
  Api api = PS_TRY(globals.OpenApi());
  const bool in_place =
      environment.out_is_terminal && format != OutputFormat::kJson && format != OutputFormat::kYaml;
  // Not a terminal: one frame, unless more are asked for.
  const std::int64_t count = command.count > 0 ? command.count : in_place ? 0 : 1;
  const auto look = [&]() -> Result<std::pair<Json, Json>> {
    const Json nodes = MemberOf(PS_TRY(api.Get("/v1/nodes")), "nodes");
    const Json listed = MemberOf(PS_TRY(api.Get("/v1/jobs")), "jobs");
    return std::pair(nodes, listed);
  };
  if (in_place) environment.out << "\x1b[?1049h";
  Result<ExitCode> result = ExitCode::kOk;
  for (std::int64_t frame = 0; count == 0 || frame < count; ++frame) {
    if (frame > 0) environment.sleep(std::chrono::milliseconds(interval_ms));
    if (environment.interrupted()) break;
    auto seen = look();
    if (!seen.ok()) {
      // While a coordinator takes over the last frame stays.
      if (in_place && frame > 0 && seen.error().code == ErrorCode::kUnreachable) {
        environment.out << "\x1b[H" << Fitted(seen.error().message, environment.columns)
                        << "\x1b[K";
        environment.out.flush();
        continue;
      }
      if (!environment.interrupted()) result = seen.error();
      break;
    }
    const auto& [nodes, jobs] = *seen;
    if (WriteStructured(environment.out, format, Json{{"nodes", nodes}, {"jobs", jobs}})) continue;
    const std::string text = Frame(nodes, jobs);
    if (in_place) {
      Draw(environment, text);
    } else {
      environment.out << text;
    }
  }
  if (in_place) environment.out << "\x1b[?1049l";
  return result;
}

}  // namespace

void AddWhyCommand(CLI::App& job_group, Globals& globals) {
  CLI::App* command = AddCommand(job_group, "why",
                                 "Say what a job waits for, and what to do; exits 10 if there is "
                                 "anything",
                                 "  ds-cli job why fashion-mlp\n  ds-cli job why 7 --look 10s -o "
                                 "json\n",
                                 globals);
  const auto options = std::make_shared<WhyCommand>();
  command->add_option("job", options->job, "Number or name (then the newest)")->required();
  command->add_option("--look", options->look, "How long to look at it")
      ->type_name("TIME")
      ->capture_default_str();
  command->callback([&globals, options] {
    globals.action = [&globals, options] { return Why(globals, *options); };
  });
}

void AddTopCommand(CLI::App& app, Globals& globals) {
  CLI::App* command = AddCommand(app, "top", "Show nodes, jobs and workers, again and again",
                                 "  ds-cli top\n  ds-cli top --interval 500ms\n  ds-cli top -n 1 "
                                 "-o json\n",
                                 globals);
  const auto options = std::make_shared<TopCommand>();
  command->add_option("--interval", options->interval, "Between two looks")
      ->type_name("TIME")
      ->capture_default_str();
  command
      ->add_option("-n,--count", options->count,
                   "Looks; without it until it is interrupted, or one if the output is no "
                   "terminal")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1'000'000'000}));
  command->callback([&globals, options] {
    globals.action = [&globals, options] { return Top(globals, *options); };
  });
}

}  // namespace ps::cli
