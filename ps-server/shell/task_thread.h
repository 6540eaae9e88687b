// A thread that runs tasks one after the other: work that blocks on the disk.
//
// Post() and the destructor may be called from any thread but its own.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "common/result.h"

namespace ps::server {

class TaskThread {
 public:
  // `name`: what ps and top call the thread, at most 15 letters. `nice`: how far it steps back for
  // the other threads of the machine where no core is idle, as nice(1) has it, 0 to 19.
  TaskThread(std::size_t queue_max, std::string name, int nice = 0);
  // Waits for the task that runs; those still queued are dropped.
  ~TaskThread();
  TaskThread(const TaskThread&) = delete;
  TaskThread& operator=(const TaskThread&) = delete;

  // kUnreachable if queue_max tasks wait already.
  Status Post(std::function<void()> task);

  // For a task, before it tries again: false if the thread is to end.
  bool Pause(std::chrono::milliseconds duration);

 private:
  void Run();

  const std::size_t queue_max_;
  const std::string name_;
  const int nice_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;  // guarded
  bool stopping_ = false;                    // guarded
  std::thread thread_;                       // last: it uses all of the above
};

}  // namespace ps::server
