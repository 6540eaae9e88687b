// A child process of a test, with its output in a file.
//
// It never survives: the destructor kills its whole process group, and the kernel kills the child
// when the thread that started it ends (PR_SET_PDEATHSIG), so start children from the main thread.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/result.h"

namespace ps::test {

class ChildProcess {
 public:
  struct Options {
    std::vector<std::string> argv;  // argv[0] is looked up in PATH if it has no slash
    std::map<std::string, std::string> environment;  // beside and above our own
    std::filesystem::path output;                    // stdout and stderr are appended; empty: ours
    std::filesystem::path directory;                 // working directory; empty: ours
  };

  // An error if the program cannot be executed.
  static Result<std::unique_ptr<ChildProcess>> Start(const Options& options);

  struct Adopted {
    pid_t pid = -1;
    std::filesystem::path output;
  };
  explicit ChildProcess(Adopted child);  // for Start
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;
  ~ChildProcess();

  pid_t pid() const { return pid_; }
  bool Running();

  // The exit code, or 128 + the signal that ended it; nullopt if it still runs after `deadline`.
  std::optional<int> Wait(std::chrono::milliseconds deadline);

  // To the child alone. Does nothing once it has ended.
  void Signal(int signal);
  // SIGKILL to the whole process group, and waits.
  void Kill();
  // SIGSTOP and SIGCONT to the whole process group; Stop() returns once no thread of the child
  // runs.
  void Stop();
  void Continue();
  // SIGTERM, then SIGKILL after `grace`. The result as of Wait.
  int Terminate(std::chrono::milliseconds grace);

  // What it printed so far.
  std::string Output() const;

 private:
  void SignalGroup(int signal);

  const pid_t pid_;
  const std::filesystem::path output_;
  std::optional<int> exit_;
  bool killed_ = false;
};

// Runs a program to its end. kTimeout (and the program is killed) after `deadline`.
struct Finished {
  int exit = 0;
  std::string output;
};
Result<Finished> RunProgram(ChildProcess::Options options, std::chrono::milliseconds deadline);

// A TCP port of 127.0.0.1 that nobody listens on. Another process may take it before you do.
Result<int> FreePort();

}  // namespace ps::test
