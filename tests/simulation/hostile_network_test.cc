#include "tests/simulation/hostile_network.h"

#include <gtest/gtest.h>

namespace ps::simulation {
namespace {

TEST(HostileNetworkTest, EveryPushCountsExactlyOnceOnAThousandHostileSchedules) {
  HostileReport sum;
  for (std::uint64_t seed = 1; seed <= 1000; ++seed) {
    sum += RunHostileNetwork(seed);
    ASSERT_EQ(sum.violation, "");
  }
  // The schedules have seen what they are meant to see.
  EXPECT_GT(sum.steps, 100'000u);
  EXPECT_GT(sum.lost, 10'000u);
  EXPECT_GT(sum.repeated, 10'000u);
  EXPECT_GT(sum.cuts, 1000u);
  EXPECT_GT(sum.garbled, 5000u);
  EXPECT_GT(sum.replays, 5000u);
  EXPECT_GT(sum.too_old, 1000u);
  EXPECT_GT(sum.non_finite, 500u);
  EXPECT_GT(sum.rows, 100'000u);
  EXPECT_GT(sum.task_deaths, 800u);
  EXPECT_GT(sum.server_deaths, 500u);
  EXPECT_GT(sum.checkpoints, 1000u);
}

TEST(HostileNetworkTest, TheSameSeedGivesTheSameHistory) {
  const HostileReport first = RunHostileNetwork(77);
  const HostileReport second = RunHostileNetwork(77);
  EXPECT_EQ(first.messages, second.messages);
  EXPECT_EQ(first.steps, second.steps);
  EXPECT_EQ(first.virtual_ms, second.virtual_ms);
}

}  // namespace
}  // namespace ps::simulation
