// The program: parses the command line, runs the command, maps its error to the exit status.
//
// Usage errors name the nearest command. An error is written as "ds-cli: what"
// to the error stream. Nothing throws out of here (CLI11 does inside).
#pragma once

#include <string>
#include <vector>

#include "cli/environment.h"

namespace ps::cli {

// `arguments` without the program's name.
ExitCode RunCli(const std::vector<std::string>& arguments, Environment& environment);

}  // namespace ps::cli
