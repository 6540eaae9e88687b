// The event loop that one thread of a daemon runs, and timers on it.
//
// Every object built on a Loop (ZmqSocket, HttpServer, FrameChannel, Timer, ...)
// belongs to the loop's thread: its methods are called there, its callbacks run
// there, one at a time, and it is destroyed before the Loop. While no thread is
// inside Run() any one thread may set objects up or take them down.
// Post() and Stop() alone are safe from any thread. Callbacks must not throw.
#pragma once

#include <chrono>
#include <concepts>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <type_traits>
#include <utility>

namespace boost::asio {
class io_context;
}

namespace ps::net {

using Milliseconds = std::chrono::milliseconds;

// Monotonic; has no relation to the time of day.
std::int64_t MonotonicMs();
// Milliseconds since 1970, for people and for files.
std::int64_t WallClockMs();

class Loop {
 public:
  Loop();
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // Runs callbacks until Stop(). A Stop() that came before Run() is not lost. May be called again.
  void Run();

  // From any thread, and from signal callbacks. Run() returns after the callback it is in.
  void Stop();

  // Runs callbacks until `done` is true (checked after each) or the time is over; returns done().
  // For start-up steps and tests, by a thread that is not inside Run().
  bool RunUntil(const std::function<bool()>& done, Milliseconds deadline);

  // From any thread: runs `task` on the loop, never inside this call, in order of the posts.
  // Tasks may be move-only. Tasks still queued when the Loop is destroyed are destroyed unrun.
  template <typename Task>
  void Post(Task&& task) {
    using Decayed = std::decay_t<Task>;
    if constexpr (std::copy_constructible<Decayed>) {
      PostFunction(std::function<void()>(std::forward<Task>(task)));
    } else {
      auto shared = std::make_shared<Decayed>(std::forward<Task>(task));
      PostFunction([shared] { (*shared)(); });
    }
  }

  // True on the thread inside Run(), and on any thread while none is.
  bool InLoop() const;
  // Aborts when called from another thread than the one inside Run().
  void AssertInLoop() const;

  std::int64_t NowMs() const { return MonotonicMs(); }

  // Calls `fn(signal)` on the loop for each arrival of one of these signals of the process.
  // One call per Loop; a signal may be watched by several loops.
  void OnSignal(std::initializer_list<int> signals, std::function<void(int)> fn);

  boost::asio::io_context& context();

 private:
  struct Impl;

  void PostFunction(std::function<void()> task);

  const std::unique_ptr<Impl> impl_;
};

// One timer; armed anew by each After() or Every(). Cancelled by destruction: after that, or after
// Cancel(), the callback does not run any more. A callback may re-arm or destroy its own timer.
class Timer {
 public:
  explicit Timer(Loop& loop);
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  void After(Milliseconds delay, std::function<void()> fn);
  // First after one period. Beats that the loop was too busy for are left out, not made up for.
  void Every(Milliseconds period, std::function<void()> fn);
  void Cancel();
  bool armed() const;

 private:
  struct State;

  // Shared with the pending wait, which finds out through it that the timer is gone.
  const std::shared_ptr<State> state_;
};

}  // namespace ps::net
