#include "ps-server/shell/task_thread.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <future>
#include <vector>

namespace ps::server {
namespace {

TEST(TaskThreadTest, TasksRunInOrder) {
  std::vector<int> order;
  std::promise<void> done;
  TaskThread thread(100, "test");
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(thread.Post([&order, i] { order.push_back(i); }).ok());
  }
  ASSERT_TRUE(thread.Post([&] { done.set_value(); }).ok());
  done.get_future().wait();
  ASSERT_EQ(order.size(), 50u);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
}

TEST(TaskThreadTest, AFullQueueIsRefused) {
  std::promise<void> started;
  std::promise<void> go;
  TaskThread thread(1, "test");
  ASSERT_TRUE(thread
                  .Post([&] {
                    started.set_value();
                    go.get_future().wait();
                  })
                  .ok());
  started.get_future().wait();
  EXPECT_TRUE(thread.Post([] {}).ok());
  EXPECT_EQ(thread.Post([] {}).error().code, ErrorCode::kUnreachable);
  go.set_value();
}

TEST(TaskThreadTest, OnlyItsOwnThreadStepsBack) {
  const int here = ::getpriority(PRIO_PROCESS, 0);
  std::promise<int> there;
  TaskThread thread(1, "test", 5);
  ASSERT_TRUE(thread.Post([&] { there.set_value(::getpriority(PRIO_PROCESS, 0)); }).ok());
  EXPECT_EQ(there.get_future().get(), std::min(here + 5, 19));
  EXPECT_EQ(::getpriority(PRIO_PROCESS, 0), here);
}

TEST(TaskThreadTest, TheEndInterruptsAPauseAndDropsWhatIsQueued) {
  bool ran = false;
  bool paused = true;
  {
    std::promise<void> started;
    TaskThread thread(10, "test");
    ASSERT_TRUE(thread
                    .Post([&] {
                      started.set_value();
                      paused = thread.Pause(std::chrono::hours(1));
                    })
                    .ok());
    ASSERT_TRUE(thread.Post([&] { ran = true; }).ok());
    started.get_future().wait();
  }
  EXPECT_FALSE(paused);
  EXPECT_FALSE(ran);
}

}  // namespace
}  // namespace ps::server
