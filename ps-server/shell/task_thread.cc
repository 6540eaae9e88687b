#include "ps-server/shell/task_thread.h"

#include <pthread.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <string>
#include <utility>

namespace ps::server {

TaskThread::TaskThread(std::size_t queue_max, std::string name, int nice)
    : queue_max_(queue_max), name_(std::move(name)), nice_(nice), thread_([this] { Run(); }) {}

TaskThread::~TaskThread() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

Status TaskThread::Post(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    if (tasks_.size() >= queue_max_) {
      return Error{ErrorCode::kUnreachable,
                   std::to_string(queue_max_) + " tasks wait for the disk already"};
    }
    tasks_.push_back(std::move(task));
  }
  changed_.notify_all();
  return Ok();
}

bool TaskThread::Pause(std::chrono::milliseconds duration) {
  std::unique_lock lock(mutex_);
  return !changed_.wait_for(lock, duration, [this] { return stopping_; });
}

void TaskThread::Run() {
  ::pthread_setname_np(::pthread_self(), name_.c_str());
  // On Linux, unlike POSIX, of this thread alone. Without it the work is done as well.
  if (nice_ != 0 && ::nice(nice_) == -1) spdlog::debug("thread {}: nice is not allowed", name_);
  for (;;) {
    std::function<void()> task;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
      if (stopping_) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace ps::server
