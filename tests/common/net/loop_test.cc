#include "common/net/loop.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <memory>
#include <thread>
#include <vector>

namespace ps::net {
namespace {

constexpr Milliseconds kSoon{5000};

TEST(LoopTest, PostsFromAnotherThreadRunOnTheLoopInOrder) {
  Loop loop;
  std::vector<int> seen;
  std::thread::id runner;
  std::thread other([&loop, &seen, &runner] {
    for (int i = 0; i < 1000; ++i) {
      loop.Post([i, &loop, &seen, &runner] {
        seen.push_back(i);
        runner = std::this_thread::get_id();
        if (i == 999) loop.Stop();
      });
    }
  });
  loop.Run();
  other.join();
  ASSERT_EQ(seen.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(seen[static_cast<std::size_t>(i)], i);
  EXPECT_EQ(runner, std::this_thread::get_id());
}

TEST(LoopTest, AStopBeforeRunIsNotLostAndTheLoopCanRunAgain) {
  Loop loop;
  loop.Stop();
  loop.Run();
  bool ran = false;
  loop.Post([&] {
    ran = true;
    loop.Stop();
  });
  loop.Run();
  EXPECT_TRUE(ran);
}

TEST(LoopTest, APostedTaskMayBeMoveOnlyAndIsNotRunInsideThePost) {
  Loop loop;
  int value = 0;
  loop.Post([owned = std::make_unique<int>(5), &value] { value = *owned; });
  EXPECT_EQ(value, 0);
  EXPECT_TRUE(loop.RunUntil([&value] { return value == 5; }, kSoon));
}

TEST(LoopTest, OnlyTheRunningThreadIsInTheLoop) {
  Loop loop;
  EXPECT_TRUE(loop.InLoop());
  bool inside = false;
  bool outside = true;
  loop.Post([&] {
    inside = loop.InLoop();
    std::thread([&] { outside = loop.InLoop(); }).join();
    loop.Stop();
  });
  loop.Run();
  EXPECT_TRUE(inside);
  EXPECT_FALSE(outside);
}

TEST(LoopDeathTest, ACallFromAnotherThreadAborts) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(
      {
        Loop loop;
        loop.Post([&loop] { std::thread([&loop] { loop.AssertInLoop(); }).join(); });
        loop.Run();
      },
      "not the loop's");
}

TEST(LoopTest, RunUntilGivesUpAtItsDeadline) {
  Loop loop;
  EXPECT_FALSE(loop.RunUntil([] { return false; }, Milliseconds(20)));
}

TEST(LoopTest, ASignalArrivesOnTheLoopEachTime) {
  Loop loop;
  std::vector<int> signals;
  loop.OnSignal({SIGUSR1, SIGUSR2}, [&signals](int signal) { signals.push_back(signal); });
  ::raise(SIGUSR1);
  ASSERT_TRUE(loop.RunUntil([&signals] { return signals.size() == 1; }, kSoon));
  ::raise(SIGUSR2);
  ASSERT_TRUE(loop.RunUntil([&signals] { return signals.size() == 2; }, kSoon));
  EXPECT_EQ(signals, (std::vector<int>{SIGUSR1, SIGUSR2}));
}

TEST(TimerTest, FiresOnceAfterItsDelay) {
  Loop loop;
  Timer timer(loop);
  int fired = 0;
  const auto begin = MonotonicMs();
  timer.After(Milliseconds(20), [&fired] { ++fired; });
  EXPECT_TRUE(timer.armed());
  ASSERT_TRUE(loop.RunUntil([&fired] { return fired == 1; }, kSoon));
  EXPECT_GE(MonotonicMs() - begin, 19);
  EXPECT_FALSE(timer.armed());
  EXPECT_FALSE(loop.RunUntil([&fired] { return fired == 2; }, Milliseconds(50)));
}

TEST(TimerTest, EveryFiresUntilItIsCancelled) {
  Loop loop;
  Timer timer(loop);
  int fired = 0;
  timer.Every(Milliseconds(2), [&] {
    if (++fired == 5) timer.Cancel();
  });
  ASSERT_TRUE(loop.RunUntil([&fired] { return fired == 5; }, kSoon));
  EXPECT_FALSE(loop.RunUntil([&fired] { return fired == 6; }, Milliseconds(20)));
}

TEST(TimerTest, ADestroyedTimerDoesNotFireEvenIfItsTimeHadCome) {
  Loop loop;
  bool fired = false;
  auto timer = std::make_unique<Timer>(loop);
  Timer first(loop);
  // Both are due before the loop looks; the first destroys the second.
  first.After(Milliseconds(0), [&timer] { timer.reset(); });
  timer->After(Milliseconds(1), [&fired] { fired = true; });
  std::this_thread::sleep_for(Milliseconds(5));
  EXPECT_FALSE(loop.RunUntil([&fired] { return fired; }, Milliseconds(20)));
  EXPECT_EQ(timer, nullptr);
}

TEST(TimerTest, ACallbackMayDestroyOrRearmItsOwnTimer) {
  Loop loop;
  auto timer = std::make_unique<Timer>(loop);
  int steps = 0;
  timer->Every(Milliseconds(1), [&] {
    ++steps;
    timer->After(Milliseconds(1), [&] {
      ++steps;
      timer.reset();
    });
  });
  ASSERT_TRUE(loop.RunUntil([&timer] { return timer == nullptr; }, kSoon));
  EXPECT_EQ(steps, 2);
}

}  // namespace
}  // namespace ps::net
