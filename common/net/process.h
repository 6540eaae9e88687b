// A child process: started, watched and ended from a Loop.
//
// The child gets a process group of its own, dies with its parent (PR_SET_PDEATHSIG, SIGKILL), has
// default signal handling, and no descriptor but 0 (/dev/null), 1, 2 and, if asked for, 3.
//
// PDEATHSIG is bound to the *thread* that starts the child: Spawn() is called on the loop's thread,
// which lives as long as the process. A thread that ends sooner takes its children with it.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/net/loop.h"
#include "common/result.h"

namespace ps::net {

struct ProcessSpec {
  std::vector<std::string> argv;  // argv[0]: a path, or a name that is looked up in PATH
  std::vector<std::pair<std::string, std::string>> environment;  // added to ours, or replacing
  int inherited_fd = -1;          // the child's descriptor 3; stays the caller's to close
  int output_fd = -1;             // stdout and stderr; -1: ours. Stays the caller's to close
  std::string working_directory;  // empty: ours
  std::vector<int> cpus;          // that it runs on, as far as it may; empty: ours
};

struct ExitStatus {
  int code = 0;    // exit status, if signal is 0
  int signal = 0;  // what killed it, or 0

  bool success() const { return code == 0 && signal == 0; }
  // As in the TaskExited message: exit status, or -signal.
  int Number() const { return signal != 0 ? -signal : code; }
  // "exited with status 3", "killed by signal 9 (Killed)"
  std::string ToString() const;
};

class ChildProcess {
  struct State;
  struct Private {  // makes the constructor below ours alone
    explicit Private() = default;
  };

 public:
  // Fails (kNotFound, kDenied, kIo) with the reason when the program cannot be executed: the error
  // comes from the child's exec, so a value means that the program runs.
  static Result<std::unique_ptr<ChildProcess>> Spawn(Loop& loop, const ProcessSpec& spec);

  // Kills the child's group with SIGKILL if it still runs, and reaps it. OnExit is not called.
  ~ChildProcess();
  ChildProcess(Private, std::shared_ptr<State> state);
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // Once, after the child ended and was reaped; never inside this call. The callback may destroy
  // the ChildProcess.
  void OnExit(std::function<void(ExitStatus)> fn);

  // To the child, or to its whole group. kNotFound when it has ended (its pid may be another's).
  Status Signal(int signal);
  Status SignalGroup(int signal);

  pid_t pid() const;
  bool running() const;

 private:
  // Shared with the pending wait.
  const std::shared_ptr<State> state_;
};

}  // namespace ps::net
