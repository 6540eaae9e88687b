#include "cli/commands.h"

namespace ps::cli {
namespace {

struct CommandWords {
  std::string path;  // "job submit", "" for the program
  std::vector<std::string> commands;
  std::vector<std::string> options;
};

void Collect(const CLI::App& app, const std::string& path, std::vector<CommandWords>& all) {
  CommandWords words;
  words.path = path;
  for (const CLI::Option* option : app.get_options()) {
    for (const auto& name : option->get_lnames()) words.options.push_back("--" + name);
    for (const auto& name : option->get_snames()) words.options.push_back("-" + name);
  }
  const auto commands = app.get_subcommands([](const CLI::App*) { return true; });
  for (const CLI::App* command : commands) words.commands.push_back(command->get_name());
  all.push_back(words);
  for (const CLI::App* command : commands) {
    Collect(*command, path.empty() ? command->get_name() : path + " " + command->get_name(), all);
  }
}

std::string Joined(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

std::string BashScript(const std::vector<CommandWords>& all) {
  std::string script =
      "# bash completion of ds-cli: source <(ds-cli completion bash)\n"
      "_ds_cli() {\n"
      "  local current=\"${COMP_WORDS[COMP_CWORD]}\" path='' next word commands options\n"
      "  local i=1\n"
      "  while ((i < COMP_CWORD)); do\n"
      "    word=\"${COMP_WORDS[i]}\"\n"
      "    next=\"${path:+$path }$word\"\n"
      "    case \"$next\" in\n";
  std::string paths;
  for (const auto& words : all) {
    if (!words.path.empty()) paths += (paths.empty() ? "" : "|") + ("'" + words.path + "'");
  }
  script += "      " + paths + ") path=\"$next\" ;;\n    esac\n    ((i++))\n  done\n";
  script += "  case \"$path\" in\n";
  for (const auto& words : all) {
    script += "    '" + words.path + "') commands='" + Joined(words.commands) + "' options='" +
              Joined(words.options) + "' ;;\n";
  }
  script +=
      "  esac\n"
      "  if [[ $current == -* ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$options\" -- \"$current\"))\n"
      "  elif [[ -n $commands ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$commands\" -- \"$current\"))\n"
      "  else\n"
      "    COMPREPLY=($(compgen -f -- \"$current\"))\n"
      "  fi\n"
      "}\n"
      "complete -o filenames -F _ds_cli ds-cli\n";
  return script;
}

std::string FishScript(const std::vector<CommandWords>& all) {
  std::string script = "# fish completion of ds-cli: ds-cli completion fish | source\n";
  for (const auto& words : all) {
    const auto space = words.path.find(' ');
    std::string condition = "__fish_use_subcommand";
    if (space != std::string::npos) {
      condition = "__fish_seen_subcommand_from " + words.path.substr(0, space) +
                  "; and __fish_seen_subcommand_from " + words.path.substr(space + 1);
    } else if (!words.path.empty()) {
      condition = "__fish_seen_subcommand_from " + words.path;
      if (!words.commands.empty()) {
        condition += "; and not __fish_seen_subcommand_from " + Joined(words.commands);
      }
    }
    if (!words.commands.empty()) {
      script +=
          "complete -c ds-cli -f -n '" + condition + "' -a '" + Joined(words.commands) + "'\n";
    }
    for (const auto& option : words.options) {
      const bool long_option = option.rfind("--", 0) == 0;
      script += "complete -c ds-cli -n '" + condition + "' " +
                (long_option ? "-l " + option.substr(2) : "-s " + option.substr(1)) + "\n";
    }
  }
  return script;
}

}  // namespace

Result<std::string> CompletionScript(const CLI::App& app, const std::string& shell) {
  std::vector<CommandWords> all;
  Collect(app, "", all);
  if (shell == "bash") return BashScript(all);
  if (shell == "zsh") {
    return "#compdef ds-cli\n# zsh completion of ds-cli: source <(ds-cli completion zsh)\n"
           "autoload -U +X bashcompinit && bashcompinit\n" +
           BashScript(all);
  }
  if (shell == "fish") return FishScript(all);
  return Error{ErrorCode::kUsage, "`" + shell + "`: the shells are bash, zsh and fish"};
}

void AddCompletionCommand(CLI::App& app, Globals& globals) {
  CLI::App* command = AddCommand(app, "completion", "Write a completion script for a shell",
                                 "  source <(ds-cli completion bash)\n"
                                 "  ds-cli completion fish | source\n",
                                 globals);
  const auto shell = std::make_shared<std::string>();
  command->add_option("shell", *shell, "bash, zsh or fish")->required();
  command->callback([&app, &globals, shell] {
    globals.action = [&app, &globals, shell]() -> Result<ExitCode> {
      globals.environment.out << PS_TRY(CompletionScript(app, *shell));
      return ExitCode::kOk;
    };
  });
}

}  // namespace ps::cli
