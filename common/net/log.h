// Sets spdlog up for a daemon: one line per event on stderr, with time, level and role.
//
// After it, use spdlog::info("shard {} restored", shard) anywhere, from any thread.
#pragma once

#include <string>

#include "common/result.h"

namespace ps {

// `level`: trace, debug, info, warn, error or off. `format`: "text", "json" (one object a line), or
// "journal" (the priority that journald reads, and the message: it knows time and role itself).
// kUsage otherwise, with the list. Flags of the daemons: --log-level, --log-format.
Status SetUpLogging(const std::string& role, const std::string& level = "info",
                    const std::string& format = "text");

// From any thread, after SetUpLogging(). kUsage as there.
Status SetLogLevel(const std::string& level);

}  // namespace ps
