// What a folder of backups holds, as `ckpt list --backup` shows it.
#pragma once

#include <string>

#include "cli/commands.h"
#include "common/result.h"

namespace ps::cli {

// `job` is a number or a name; empty: all.
Result<ExitCode> ListBackups(Globals& globals, const std::string& folder, const std::string& job);

}  // namespace ps::cli
