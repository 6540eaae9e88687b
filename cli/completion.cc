#include <set>

#include "cli/commands.h"
#include "common/error_id.h"

namespace ps::cli {
namespace {

struct CommandWords {
  std::string path;  // "job submit", "" for the program
  std::vector<std::string> commands;
  std::vector<std::string> options;
  std::vector<std::string> valued;  // those options that take a value
  std::string argument;             // name of the first argument that is no option; "" if none
};

void Collect(const CLI::App& app, const std::string& path, std::vector<CommandWords>& all) {
  CommandWords words;
  words.path = path;
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_positional() && words.argument.empty()) words.argument = option->get_name(true);
    for (std::string name : option->get_lnames()) {
      name.insert(0, "--");
      if (option->get_items_expected_max() > 0) words.valued.push_back(name);
      words.options.push_back(std::move(name));
    }
    for (std::string name : option->get_snames()) {
      name.insert(0, "-");
      if (option->get_items_expected_max() > 0) words.valued.push_back(name);
      words.options.push_back(std::move(name));
    }
  }
  const auto commands = app.get_subcommands([](const CLI::App*) { return true; });
  for (const CLI::App* command : commands) words.commands.push_back(command->get_name());
  all.push_back(words);
  for (const CLI::App* command : commands) {
    Collect(*command, path.empty() ? command->get_name() : path + " " + command->get_name(), all);
  }
}

std::string Joined(const std::vector<std::string>& words, const char* between = " ") {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : between) + word;
  return text;
}

// Markers between @ are replaced.
constexpr const char* kBash = R"sh(# bash completion of ds-cli: source <(ds-cli completion bash)

# Numbers and names of the jobs of the cluster, if it answers soon.
_ds_cli_jobs() {
  local cluster=() rest="${COMP_LINE#*--coordinator[ =]}"
  [[ $rest != "$COMP_LINE" ]] && cluster=(--coordinator "${rest%% *}")
  timeout 3 "${COMP_WORDS[0]}" job list "${cluster[@]}" 2>/dev/null |
    awk 'NR > 1 {print $1; print $2}'
}

# Codes of errors.
_ds_cli_codes() {
  echo '@codes@'
}

# Fields of the job file.
_ds_cli_fields() {
  echo '@fields@'
}

_ds_cli() {
  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD - 1]}"
  local path='' next word commands options argument
  local i=1
  while ((i < COMP_CWORD)); do
    word="${COMP_WORDS[i]}"
    next="${path:+$path }$word"
    case "$word" in
      @valued@) ((i++)) ;;
    esac
    case "$next" in
      @paths@) path="$next" ;;
    esac
    ((i++))
  done
  case "$path" in
@commands@  esac
  case "$previous" in
    -o|--output) COMPREPLY=($(compgen -W 'table wide json yaml name' -- "$current")); return ;;
    --dir|--checkpoint-dir|--to) COMPREPLY=($(compgen -d -- "$current")); return ;;
    --set)
      COMPREPLY=($(compgen -W "$(_ds_cli_fields)" -S = -- "$current"))
      compopt -o nospace 2>/dev/null
      return ;;
    @valued@) COMPREPLY=(); return ;;
  esac
  if [[ $current == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$current"))
  elif [[ -n $commands ]]; then
    COMPREPLY=($(compgen -W "$commands" -- "$current"))
  else
    case "$argument" in
      job|checkpoint) COMPREPLY=($(compgen -W "$(_ds_cli_jobs)" -- "$current")) ;;
      shell) COMPREPLY=($(compgen -W 'bash zsh fish' -- "$current")) ;;
      field) COMPREPLY=($(compgen -W "$(_ds_cli_fields)" -- "$current")) ;;
      code) COMPREPLY=($(compgen -W "$(_ds_cli_codes)" -- "$current")) ;;
      file) COMPREPLY=($(compgen -f -- "$current")) ;;
      *) COMPREPLY=() ;;
    esac
  fi
}
complete -o filenames -F _ds_cli ds-cli
)sh";

void ReplaceAll(std::string& text, const std::string& marker, const std::string& with) {
  for (std::size_t at = text.find(marker); at != std::string::npos; at = text.find(marker, at)) {
    text.replace(at, marker.size(), with);
    at += with.size();
  }
}

std::string BashScript(const std::vector<CommandWords>& all) {
  std::set<std::string> valued;
  std::vector<std::string> paths;
  std::string commands;
  for (const auto& words : all) {
    valued.insert(words.valued.begin(), words.valued.end());
    if (!words.path.empty()) paths.push_back("'" + words.path + "'");
    commands += "    '" + words.path + "') commands='" + Joined(words.commands) + "' options='" +
                Joined(words.options) + "' argument='" + words.argument + "' ;;\n";
  }
  std::string script = kBash;
  ReplaceAll(script, "@fields@", Joined(JobFields()));
  ReplaceAll(script, "@codes@", Joined(ErrorCodes()));
  ReplaceAll(script, "@valued@", Joined({valued.begin(), valued.end()}, "|"));
  ReplaceAll(script, "@paths@", Joined(paths, "|"));
  ReplaceAll(script, "@commands@", commands);
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
    if (words.argument == "job" || words.argument == "checkpoint") {
      script += "complete -c ds-cli -f -n '" + condition +
                "' -a \"(ds-cli job list 2>/dev/null | awk 'NR > 1 {print \\$1; print \\$2}')\"\n";
    } else if (words.argument == "field") {
      script += "complete -c ds-cli -f -n '" + condition + "' -a '" + Joined(JobFields()) + "'\n";
    } else if (words.argument == "code") {
      script += "complete -c ds-cli -f -n '" + condition + "' -a '" + Joined(ErrorCodes()) + "'\n";
    } else if (words.argument == "shell") {
      script += "complete -c ds-cli -f -n '" + condition + "' -a 'bash zsh fish'\n";
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
  return Error{ErrorId::kOptionValue, "`" + shell + "`: the shells are bash, zsh and fish"};
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
