#include "cli/app.h"

#include "cli/commands.h"
#include "common/error_id.h"
#include "common/job/document.h"

namespace ps::cli {
namespace {

constexpr const char* kExitCodes =
    "Exit status: 0 ok, 1 internal error, 2 usage, 3 not found, 4 conflict, 5 denied,\n"
    "6 unreachable, 7 invalid spec or data, 8 job failed, 9 job cancelled, 10 findings,\n"
    "124 timeout, 130 interrupted.\n";

void AddGlobalOptions(CLI::App& app, Globals& globals) {
  app.add_option("--coordinator", globals.coordinators,
                 "URL of a coordinator; may be repeated (default: DS_COORDINATOR, or the cluster "
                 "of `ds-cli local up`)")
      ->allow_extra_args(false)
      ->type_name("URL");
  app.add_option("-o,--output", globals.output, "table, wide, json, yaml or name")
      ->type_name("FORMAT");
}

std::vector<std::string> CommandNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  return names;
}

CLI::App* FindCommand(CLI::App& app, const std::string& name) {
  for (CLI::App* command : app.get_subcommands([](CLI::App*) { return true; })) {
    if (command->get_name() == name) return command;
  }
  return nullptr;
}

// The finding about the first word that should be a command and is none; "" if all are.
std::string UnknownCommand(CLI::App& root, const std::vector<std::string>& arguments) {
  CLI::App* app = &root;
  std::string path = "ds-cli";
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::vector<std::string> names = CommandNames(*app);
    if (names.empty()) return "";
    const std::string& word = arguments[i];
    if (word.size() > 1 && word[0] == '-') {
      if (word == "-h" || word == "--help" || word == "--version") return "";
      const bool has_value = word.find('=') != std::string::npos;
      const CLI::Option* option = app->get_option_no_throw(word);
      if (option != nullptr && !has_value && option->get_items_expected_max() > 0) ++i;
      continue;
    }
    CLI::App* next = FindCommand(*app, word);
    if (next == nullptr) {
      const std::string nearest = job::NearestWord(word, names);
      std::string text = "`" + word + "` is not a command of " + path;
      if (!nearest.empty()) return text + ", did you mean `" + nearest + "`?";
      text += "; the commands are";
      for (const auto& name : names) text += " " + name;
      return text;
    }
    app = next;
    path += " " + word;
  }
  return "";
}

// The nearest option of the command that was being parsed.
std::string NearestOption(const CLI::App& app, const std::string& message) {
  const auto at = message.find("--");
  if (at == std::string::npos) return "";
  const std::string word = message.substr(at, message.find_first_of(" =,", at) - at);
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const auto& name : option->get_lnames()) names.push_back("--" + name);
  }
  return job::NearestWord(word, names);
}

// The innermost command of the line, for its name and its help.
const CLI::App* ChosenCommand(const CLI::App& root) {
  const CLI::App* app = &root;
  while (true) {
    const auto chosen = app->get_subcommands();
    if (chosen.empty()) return app;
    app = chosen.front();
  }
}

std::string PathOf(const CLI::App& app) {
  return app.get_parent() == nullptr ? "ds-cli" : PathOf(*app.get_parent()) + " " + app.get_name();
}

std::string HelpOf(const CLI::App& app) {
  const CLI::App* parent = app.get_parent();
  return parent == nullptr ? app.help() : app.help(PathOf(*parent));
}

void AddVersionCommand(CLI::App& app, Globals& globals) {
  CLI::App* command = AddCommand(app, "version", "Show the version of ds-cli, and of the cluster",
                                 "  ds-cli version\n  ds-cli version --cluster -o json\n", globals);
  const auto cluster = std::make_shared<bool>(false);
  command->add_flag("--cluster", *cluster, "Ask the coordinator for its version too");
  command->callback([&globals, cluster] {
    globals.action = [&globals, cluster]() -> Result<ExitCode> {
      const OutputFormat format = PS_TRY(globals.Format());
      Json versions{{"client", PS_VERSION}};
      if (*cluster) {
        Api api = PS_TRY(globals.OpenApi());
        const Json answer = PS_TRY(api.Get("/v1/version"));
        versions["coordinator"] = TextOf(answer, "version", "unknown");
      }
      std::ostream& out = globals.environment.out;
      if (WriteStructured(out, format, versions)) return ExitCode::kOk;
      out << "ds-cli " << PS_VERSION << "\n";
      if (*cluster) out << "coordinator " << Printable(TextOf(versions, "coordinator")) << "\n";
      return ExitCode::kOk;
    };
  });
}

ExitCode Usage(Environment& environment, const CLI::App& app, const std::string& what) {
  environment.err << PathOf(app) << ": error " << ErrorIdName(ErrorId::kCommandLine) << ": " << what
                  << "\nSee `" << PathOf(app) << " --help`.\n";
  return ExitCode::kUsage;
}

ExitCode ReportError(const Globals& globals, const Error& error) {
  Environment& environment = globals.environment;
  if (environment.interrupted()) {
    environment.err << "ds-cli: interrupted\n";
    return ExitCode::kInterrupted;
  }
  const auto format = globals.Format();
  WriteError(environment.err, format.ok() ? *format : OutputFormat::kTable, error);
  return ExitCodeOf(error.code);
}

ExitCode RunParsed(const std::vector<std::string>& arguments, Environment& environment) {
  Globals globals{.environment = environment};
  CLI::App app("Runs training jobs on a parameter-server cluster.", "ds-cli");
  app.require_subcommand(0, 1);
  app.footer(std::string("\nStart here:\n"
                         "  ds-cli local up                          a cluster on this machine\n"
                         "  ds-cli job submit examples/fashion-mlp.yaml --wait\n"
                         "  ds-cli local down\n\n") +
             kExitCodes);
  app.set_version_flag("--version", "ds-cli " PS_VERSION);
  AddGlobalOptions(app, globals);
  AddJobCommands(app, globals);
  AddCkptCommands(app, globals);
  AddNodeCommands(app, globals);
  AddScaleCommands(app, globals);
  AddAuthCommands(app, globals);
  AddTokenCommands(app, globals);
  AddTopCommand(app, globals);
  AddLocalCommands(app, globals);
  AddErrorCommand(app, globals);
  AddCompletionCommand(app, globals);
  AddVersionCommand(app, globals);

  if (arguments.empty()) {
    environment.out << HelpOf(app);
    return ExitCode::kOk;
  }
  if (const std::string unknown = UnknownCommand(app, arguments); !unknown.empty()) {
    return Usage(environment, app, unknown);
  }
  try {
    // CLI11 takes them from the back.
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::CallForVersion&) {
    environment.out << "ds-cli " << PS_VERSION << "\n";
    return ExitCode::kOk;
  } catch (const CLI::Success&) {  // --help
    environment.out << HelpOf(*ChosenCommand(app));
    return ExitCode::kOk;
  } catch (const CLI::ParseError& error) {
    const CLI::App* command = ChosenCommand(app);
    std::string what = error.what();
    if (const std::string nearest = NearestOption(*command, what); !nearest.empty()) {
      if (what.find(nearest) == std::string::npos) what += ", did you mean `" + nearest + "`?";
    }
    return Usage(environment, *command, what);
  }
  if (!globals.action) {
    const CLI::App* command = ChosenCommand(app);
    environment.err << HelpOf(*command);
    return Usage(environment, *command, "a command is missing");
  }
  const Result<ExitCode> result = globals.action();
  environment.out.flush();
  if (!result.ok()) return ReportError(globals, result.error());
  if (!environment.out) {
    return ReportError(globals, {ErrorId::kStandardOutput, "cannot write to standard output"});
  }
  return result.value();
}

}  // namespace

Result<Api> Globals::OpenApi() const {
  Context context = PS_TRY(FindContext(environment, coordinators));
  return Api(environment, std::move(context));
}

CLI::App* AddGroup(CLI::App& app, const std::string& name, const std::string& description) {
  CLI::App* group = app.add_subcommand(name, description);
  group->require_subcommand(0, 1);
  group->footer("");  // not the one of the program
  return group;
}

CLI::App* AddCommand(CLI::App& group, const std::string& name, const std::string& description,
                     const std::string& examples, Globals& globals) {
  CLI::App* command = group.add_subcommand(name, description);
  command->footer("\nExamples:\n" + examples);
  AddGlobalOptions(*command, globals);
  return command;
}

ExitCode RunCli(const std::vector<std::string>& arguments, Environment& environment) {
  try {
    return RunParsed(arguments, environment);
  } catch (const std::exception& error) {
    WriteError(environment.err, OutputFormat::kTable,
               {ErrorId::kInternal, std::string("internal error: ") + error.what()});
    return ExitCode::kInternal;
  }
}

}  // namespace ps::cli
