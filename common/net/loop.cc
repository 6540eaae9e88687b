#include "common/net/loop.h"

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <thread>

#include "common/check.h"

namespace ps::net {

namespace asio = boost::asio;

std::int64_t MonotonicMs() {
  return std::chrono::duration_cast<Milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::int64_t WallClockMs() {
  return std::chrono::duration_cast<Milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

struct Loop::Impl {
  asio::io_context io{1};
  // Keeps run() from returning while there is nothing to do.
  asio::executor_work_guard<asio::io_context::executor_type> work = asio::make_work_guard(io);
  asio::signal_set signals{io};
  std::function<void(int)> on_signal;
  // Who is inside Run(). Atomic: InLoop() is asked from any thread.
  std::atomic<std::thread::id> runner{};
  std::atomic<bool> stop_asked{false};

  void WaitForSignal() {
    signals.async_wait([this](const boost::system::error_code& error, int signal) {
      if (error) return;
      on_signal(signal);
      WaitForSignal();
    });
  }

  void Enter() {
    auto nobody = std::thread::id();
    PS_CHECK(runner.compare_exchange_strong(nobody, std::this_thread::get_id()),
             "a loop is run by one thread at a time");
  }
  void Leave() { runner.store(std::thread::id()); }
};

Loop::Loop() : impl_(std::make_unique<Impl>()) {}
Loop::~Loop() = default;

void Loop::Run() {
  impl_->Enter();
  while (!impl_->stop_asked.exchange(false)) {
    impl_->io.restart();
    // Between the exchange and restart() a Stop() may have been undone; the flag tells.
    if (impl_->stop_asked.exchange(false)) break;
    impl_->io.run();
  }
  impl_->Leave();
}

void Loop::Stop() {
  impl_->stop_asked.store(true);
  impl_->io.stop();
}

bool Loop::RunUntil(const std::function<bool()>& done, Milliseconds deadline) {
  impl_->Enter();
  const auto end = std::chrono::steady_clock::now() + deadline;
  bool result = done();
  while (!result && std::chrono::steady_clock::now() < end) {
    impl_->io.restart();
    impl_->io.run_one_until(end);
    result = done();
  }
  impl_->Leave();
  return result;
}

void Loop::PostFunction(std::function<void()> task) { asio::post(impl_->io, std::move(task)); }

bool Loop::InLoop() const {
  const auto runner = impl_->runner.load();
  return runner == std::thread::id() || runner == std::this_thread::get_id();
}

void Loop::AssertInLoop() const {
  PS_CHECK(InLoop(), "called from a thread that is not the loop's");
}

void Loop::OnSignal(std::initializer_list<int> signals, std::function<void(int)> fn) {
  AssertInLoop();
  PS_CHECK(!impl_->on_signal, "OnSignal is called once per loop");
  impl_->on_signal = std::move(fn);
  for (const int signal : signals) {
    boost::system::error_code error;
    impl_->signals.add(signal, error);
    PS_CHECK(!error, "signal", signal, error.message());
  }
  impl_->WaitForSignal();
}

asio::io_context& Loop::context() { return impl_->io; }

struct Timer::State : std::enable_shared_from_this<Timer::State> {
  explicit State(Loop& owner) : loop(owner), timer(owner.context()) {}

  // A wait whose expiry is already queued cannot be cancelled any more; its round tells it apart.
  void Wait(std::uint64_t of_round) {
    timer.async_wait([self = shared_from_this(), of_round](const boost::system::error_code& error) {
      if (error || self->round != of_round) return;
      self->Fire(of_round);
    });
  }

  void Fire(std::uint64_t of_round) {
    if (period.count() == 0) {
      armed = false;
      const auto call = std::move(fn);
      fn = nullptr;
      call();
      return;
    }
    // A copy: the callback may re-arm this timer with another function.
    const auto call = fn;
    call();
    if (round != of_round) return;
    const auto now = std::chrono::steady_clock::now();
    auto next = timer.expiry() + period;
    if (next <= now) next = now + period;
    timer.expires_at(next);
    Wait(of_round);
  }

  void Arm(Milliseconds delay, Milliseconds every, std::function<void()> callback) {
    loop.AssertInLoop();
    ++round;
    armed = true;
    period = every;
    fn = std::move(callback);
    timer.expires_after(delay);
    Wait(round);
  }

  void Cancel() {
    ++round;
    armed = false;
    fn = nullptr;
    timer.cancel();
  }

  Loop& loop;
  asio::steady_timer timer;
  std::uint64_t round = 0;
  bool armed = false;
  Milliseconds period{0};
  std::function<void()> fn;
};

Timer::Timer(Loop& loop) : state_(std::make_shared<State>(loop)) {}
Timer::~Timer() {
  state_->loop.AssertInLoop();
  state_->Cancel();
}

void Timer::After(Milliseconds delay, std::function<void()> fn) {
  state_->Arm(delay, Milliseconds(0), std::move(fn));
}
void Timer::Every(Milliseconds period, std::function<void()> fn) {
  PS_CHECK(period.count() > 0);
  state_->Arm(period, period, std::move(fn));
}
void Timer::Cancel() {
  state_->loop.AssertInLoop();
  state_->Cancel();
}
bool Timer::armed() const { return state_->armed; }

}  // namespace ps::net
