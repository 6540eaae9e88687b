#include "cli/environment.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <system_error>

namespace ps::cli {
namespace {

// A signal handler can reach nothing but such a variable.
std::atomic<bool> g_interrupted{false};

extern "C" void OnInterrupt(int signal_number) {
  g_interrupted.store(true);
  // The second one ends the program at once.
  (void)::signal(signal_number, SIG_DFL);
}

void FindTerminalSize(Environment& environment) {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0) return;
  if (size.ws_col > 0) environment.columns = size.ws_col;
  if (size.ws_row > 0) environment.rows = size.ws_row;
}

void Sleep(std::chrono::milliseconds time) {
  // poll() without descriptors is a sleep that a signal ends.
  const auto end = std::chrono::steady_clock::now() + time;
  while (!g_interrupted.load()) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        end - std::chrono::steady_clock::now());
    if (left.count() <= 0) return;
    (void)::poll(nullptr, 0, static_cast<int>(std::min<std::int64_t>(left.count(), 200)));
  }
}

}  // namespace

ExitCode ExitCodeOf(ErrorCode code) {
  switch (code) {
    case ErrorCode::kUsage: return ExitCode::kUsage;
    case ErrorCode::kInvalid: return ExitCode::kInvalid;
    case ErrorCode::kNotFound: return ExitCode::kNotFound;
    case ErrorCode::kConflict: return ExitCode::kConflict;
    case ErrorCode::kDenied: return ExitCode::kDenied;
    case ErrorCode::kUnreachable:
    case ErrorCode::kMaybeApplied: return ExitCode::kUnreachable;
    case ErrorCode::kTimeout: return ExitCode::kTimeout;
    case ErrorCode::kClosed: return ExitCode::kInterrupted;
    case ErrorCode::kInternal:
    case ErrorCode::kIo: return ExitCode::kInternal;
  }
  return ExitCode::kInternal;
}

Environment RealEnvironment() {
  struct sigaction action {};
  action.sa_handler = OnInterrupt;
  (void)::sigaction(SIGINT, &action, nullptr);
  (void)::sigaction(SIGTERM, &action, nullptr);
  // A reader that goes away (`ds-cli job list | head -1`) ends the program by a failed write.
  (void)::signal(SIGPIPE, SIG_DFL);

  Environment environment{.out = std::cout, .err = std::cerr};
  environment.out_is_terminal = ::isatty(STDOUT_FILENO) == 1;
  environment.err_is_terminal = ::isatty(STDERR_FILENO) == 1;
  FindTerminalSize(environment);
  std::error_code error;
  environment.program_directory =
      std::filesystem::read_symlink("/proc/self/exe", error).parent_path().string();
  environment.variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  environment.now_ms = [] {
    return std::chrono::duration_cast<std::chrono::milliseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  environment.sleep = Sleep;
  environment.interrupted = [] { return g_interrupted.load(); };
  return environment;
}

}  // namespace ps::cli
