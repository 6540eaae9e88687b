// What the groups of commands share: global options, and how a command is declared.
//
// Each Add*Commands() declares one group. A leaf's callback only sets
// `Globals::action`; it runs after the whole line was understood. `Globals`
// outlives the App.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "cli/api.h"
#include "cli/environment.h"
#include "cli/output.h"
#include "common/result.h"

namespace ps::cli {

struct Globals {
  Environment& environment;
  std::vector<std::string> coordinators = {};  // --coordinator
  std::string output = {};                     // -o
  std::function<Result<ExitCode>()> action = {};

  Result<Api> OpenApi() const;
  Result<OutputFormat> Format() const { return ParseOutputFormat(output); }
};

// A group such as `job`: shows its help if no command follows.
CLI::App* AddGroup(CLI::App& app, const std::string& name, const std::string& description);
// A command with its examples, -o and --coordinator.
CLI::App* AddCommand(CLI::App& group, const std::string& name, const std::string& description,
                     const std::string& examples, Globals& globals);

void AddJobCommands(CLI::App& app, Globals& globals);
void AddExplainCommand(CLI::App& job_group, Globals& globals);
void AddWhyCommand(CLI::App& job_group, Globals& globals);
void AddTopCommand(CLI::App& app, Globals& globals);
void AddCkptCommands(CLI::App& app, Globals& globals);
void AddBackupCommands(CLI::App& ckpt_group, Globals& globals);
void AddImportCommand(CLI::App& ckpt_group, Globals& globals);
void AddNodeCommands(CLI::App& app, Globals& globals);
void AddScaleCommands(CLI::App& app, Globals& globals);
void AddAuthCommands(CLI::App& app, Globals& globals);
void AddCertificateCommand(CLI::App& auth_group, Globals& globals);
void AddTokenCommands(CLI::App& app, Globals& globals);
void AddLocalCommands(CLI::App& app, Globals& globals);
void AddErrorCommand(CLI::App& app, Globals& globals);
void AddCompletionCommand(CLI::App& app, Globals& globals);

// Every field of the job file, as `job explain` takes it: "training.workers".
std::vector<std::string> JobFields();

// Every code of the catalogue, as `explain` takes it: "DS-E0801".
std::vector<std::string> ErrorCodes();

// The script for a shell, from the commands and options of the App. kUsage for another shell.
Result<std::string> CompletionScript(const CLI::App& app, const std::string& shell);

}  // namespace ps::cli
