#include "ps-worker/agent/task_process.h"

#include <signal.h>
#include <spdlog/spdlog.h>

#include "ps-worker/agent/task_log.h"

namespace ps::worker {

Result<std::unique_ptr<TaskProcess>> TaskProcess::Start(net::Loop& loop, const TaskCommand& command,
                                                        const TaskTimeouts& timeouts,
                                                        Callbacks callbacks) {
  const net::UniqueFd log = PS_TRY(OpenTaskLog(command.log, command.log_heading));
  auto sockets = PS_TRY(net::MakeSocketPair());
  auto channel = PS_TRY(net::FrameChannel::Open(loop, std::move(sockets.first)));
  net::ProcessSpec spec;
  spec.argv = command.argv;
  spec.environment = command.environment;
  spec.cpus = command.cpus;
  spec.inherited_fd = sockets.second.get();
  spec.output_fd = log.get();
  auto child = PS_TRY(net::ChildProcess::Spawn(loop, spec));
  return std::unique_ptr<TaskProcess>(
      new TaskProcess(loop, timeouts, std::move(callbacks), std::move(channel), std::move(child)));
}

TaskProcess::TaskProcess(net::Loop& loop, const TaskTimeouts& timeouts, Callbacks callbacks,
                         std::unique_ptr<net::FrameChannel> channel,
                         std::unique_ptr<net::ChildProcess> child)
    : timeouts_(timeouts),
      callbacks_(std::move(callbacks)),
      channel_(std::move(channel)),
      child_(std::move(child)),
      timer_(loop) {
  channel_->OnMessage([this](std::span<const std::byte> bytes) { OnBytes(bytes); });
  channel_->OnClosed([this](const std::string& reason) { OnChannelClosed(reason); });
  child_->OnExit([this](net::ExitStatus status) { OnChildExit(status); });
  channel_->Start();
}

TaskProcess::~TaskProcess() = default;

void TaskProcess::Send(const control::MessageT& message) {
  const Status sent = channel_->Send(control::Encode(message));
  if (!sent.ok() && !exited_) {
    spdlog::warn("task {} (pid {}) does not get a {}: {}", message.task, pid(),
                 control::BodyName(message), sent.error().message);
  }
}

void TaskProcess::Stop(const control::StopTaskT& stop) {
  if (exited_) return;
  if (stop.kill) {
    (void)child_->SignalGroup(SIGKILL).ok();
    return;
  }
  if (stopping_) return;
  stopping_ = true;
  Send(control::Make(control::StopTaskT(stop), stop.task));
  SignalLater(SIGTERM, timeouts_.stop_grace);
}

void TaskProcess::SignalLater(int signal, net::Milliseconds delay) {
  timer_.After(delay, [this, signal] {
    if (exited_) return;
    (void)child_->SignalGroup(signal).ok();
    if (signal == SIGTERM) SignalLater(SIGKILL, timeouts_.term_grace);
  });
}

void TaskProcess::OnBytes(std::span<const std::byte> bytes) {
  Result<control::MessageT> message = control::Decode(bytes);
  if (!message.ok()) {
    spdlog::warn("task with pid {}: {}", pid(), message.error().message);
    return;
  }
  callbacks_.on_message(std::move(*message));
}

void TaskProcess::OnChannelClosed(const std::string& reason) {
  channel_closed_ = true;
  if (exited_) return Finish();
  spdlog::info("task with pid {} closed its connection: {}", pid(), reason);
  // It cannot be told anything any more.
  if (!stopping_) {
    stopping_ = true;
    SignalLater(SIGTERM, timeouts_.stop_grace);
  }
}

void TaskProcess::OnChildExit(net::ExitStatus status) {
  exited_ = true;
  status_ = status;
  if (channel_closed_) return Finish();
  // A child of the task may hold the socket open.
  timer_.After(timeouts_.drain, [this] { Finish(); });
}

void TaskProcess::Finish() {
  if (told_) return;
  told_ = true;
  const auto on_exit = callbacks_.on_exit;  // it may destroy us
  on_exit(status_);
}

}  // namespace ps::worker
