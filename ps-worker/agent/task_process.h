// One running ps-task: its process, its socket pair and its end.
//
// The end is told once, when the process was reaped and everything it had said was read (a task
// that fails says why and exits at once). Belongs to the loop's thread; OnExit may destroy it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/messages/control.h"
#include "common/net/loop.h"
#include "common/net/process.h"
#include "common/net/socket_pair_channel.h"
#include "common/result.h"

namespace ps::worker {

struct TaskTimeouts {
  net::Milliseconds stop_grace{10'000};  // from asking a task to stop to SIGTERM
  net::Milliseconds term_grace{5'000};   // from SIGTERM to SIGKILL
  net::Milliseconds drain{2'000};        // from its end to giving up on what it had said
};

struct TaskCommand {
  std::vector<std::string> argv;
  std::vector<std::pair<std::string, std::string>> environment;
  std::vector<int> cpus;  // empty: any
  std::filesystem::path log;
  std::string log_heading;
};

class TaskProcess {
 public:
  // Both are called on the loop, never inside Start.
  struct Callbacks {
    std::function<void(control::MessageT)> on_message;
    std::function<void(net::ExitStatus)> on_exit;
  };

  static Result<std::unique_ptr<TaskProcess>> Start(net::Loop& loop, const TaskCommand& command,
                                                    const TaskTimeouts& timeouts,
                                                    Callbacks callbacks);
  TaskProcess(const TaskProcess&) = delete;
  TaskProcess& operator=(const TaskProcess&) = delete;
  ~TaskProcess();  // kills it

  // Lost, with a log line, if the task is gone or does not read.
  void Send(const control::MessageT& message);

  // Asks it to stop, then SIGTERM, then SIGKILL. With `kill` SIGKILL at once.
  void Stop(const control::StopTaskT& stop);

  pid_t pid() const { return child_->pid(); }

 private:
  TaskProcess(net::Loop& loop, const TaskTimeouts& timeouts, Callbacks callbacks,
              std::unique_ptr<net::FrameChannel> channel, std::unique_ptr<net::ChildProcess> child);

  void OnBytes(std::span<const std::byte> bytes);
  void OnChannelClosed(const std::string& reason);
  void OnChildExit(net::ExitStatus status);
  void SignalLater(int signal, net::Milliseconds delay);
  void Finish();

  const TaskTimeouts timeouts_;
  const Callbacks callbacks_;
  std::unique_ptr<net::FrameChannel> channel_;
  std::unique_ptr<net::ChildProcess> child_;
  net::Timer timer_;
  bool channel_closed_ = false;
  bool exited_ = false;
  bool stopping_ = false;
  bool told_ = false;
  net::ExitStatus status_;
};

}  // namespace ps::worker
