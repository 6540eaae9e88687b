// What a command may use of the world: two streams, variables, time, interruption.
//
// Commands write data to `out` and all else to `err`. Tests put string streams
// and a clock of their own here. One thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <ostream>
#include <string>

#include "common/result.h"

namespace ps::cli {

// The exit status is the interface of scripts: docs and ds-cli.1 list it.
enum class ExitCode {
  kOk = 0,
  kInternal = 1,
  kUsage = 2,
  kNotFound = 3,
  kConflict = 4,
  kDenied = 5,
  kUnreachable = 6,
  kInvalid = 7,
  kJobFailed = 8,
  kJobCancelled = 9,
  kFindings = 10,
  kTimeout = 124,
  kInterrupted = 130,
};

ExitCode ExitCodeOf(ErrorCode code);

struct Environment {
  std::ostream& out;
  std::ostream& err;
  bool out_is_terminal = false;
  bool err_is_terminal = false;
  int columns = 80;  // of the terminal
  int rows = 24;
  std::string program_directory = {};  // where ds-cli lies, and the daemons beside it
  // "" if it is not set.
  std::function<std::string(const char* name)> variable = {};
  std::function<std::int64_t()> now_ms = {};  // monotonic
  // Returns early when the user interrupts.
  std::function<void(std::chrono::milliseconds)> sleep = {};
  std::function<bool()> interrupted = {};
};

// The real one. From this call on SIGINT and SIGTERM only set interrupted(); a second one kills.
Environment RealEnvironment();

}  // namespace ps::cli
