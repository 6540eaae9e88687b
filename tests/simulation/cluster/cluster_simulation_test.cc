#include "tests/simulation/cluster/cluster_simulation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace ps::simulation {
namespace {

ClusterReport RunSeed(std::uint64_t seed, Mutant mutant = Mutant::kNone) {
  ClusterOptions options;
  options.seed = seed;
  options.mutant = mutant;
  return RunCluster(options);
}

TEST(ClusterSimulationTest, NoPushAndNoRecordIsLostOrDoubledWhateverFails) {
  ClusterReport sum;
  for (std::uint64_t seed = 1; seed <= 250; ++seed) {
    sum += RunSeed(seed);
    ASSERT_EQ(sum.violation, "") << "seed " << seed
                                 << "; repeat it: scripts/simulate --seeds 1 --first " << seed
                                 << " --shrink --trace";
  }
  // The schedules have seen what they are meant to see.
  for (int kind = 0; kind < kFaultKinds; ++kind) {
    EXPECT_GT(sum.strikes[kind], 10u) << FaultName(static_cast<FaultKind>(kind));
  }
  EXPECT_GT(sum.pushes, 50'000u);
  EXPECT_GT(sum.checkpoints, 500u);
  EXPECT_GT(sum.increments, 500u);
  EXPECT_GT(sum.kept_checked, 5'000u);
  EXPECT_GT(sum.restores, 40u);
  EXPECT_GT(sum.rewinds, 5u);
  EXPECT_GT(sum.suspensions, 20u);
  EXPECT_GT(sum.scalings, 50u);
  EXPECT_GT(sum.leaders, 300u);
  EXPECT_GT(sum.incarnations, 1000u);
  EXPECT_GT(sum.too_old, 500u);
  EXPECT_GT(sum.promotions, 30u);
  EXPECT_GT(sum.adoptions, 5u);
  EXPECT_GT(sum.copies_compared, 10'000u);
}

// A chain that waits for itself, or an answer that is forgotten, would look like a lost backup.
TEST(ClusterSimulationTest, WithoutFaultsNoBackupIsLostAndNoShardMoves) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    ClusterOptions options;
    options.seed = seed;
    options.faults.assign(100, false);
    options.replicas = 1 + static_cast<int>(seed % 2);
    options.suspicions = false;
    const ClusterReport report = RunCluster(options);
    EXPECT_EQ(report.violation, "") << seed;
    EXPECT_EQ(report.backups_lost, 0u) << seed;
    EXPECT_EQ(report.promotions, 0u) << seed;
    EXPECT_EQ(report.restores, 0u) << seed;
  }
}

// Schedules that once failed, on the cores as they were then.
TEST(ClusterSimulationTest, SchedulesThatFailedBeforeDoNotAgain) {
  // A server that had slept through checkpoints reported that it could not restore a shard which it
  // did not have any more. An agent's introduction reached the leader after that of its successor,
  // which was from then on never taken for present. A chain was looked at while a drain shortened
  // it. What a living worker had pushed since the checkpoint that the job went back to, as the
  // newest one could not be read, was missed by this simulation in the next. A new leader restored
  // the shards of servers that were there but had not registered yet, and took a checkpoint for
  // damaged whose holders had not been asked. A worker whose evaluation a loss had undone was not
  // told of the next. What a server had said of a backup that is gone was taken for the next one.
  for (const std::uint64_t seed : {21478, 502345, 10435, 41006600, 42007113, 43071840})
    EXPECT_EQ(RunSeed(seed).violation, "") << seed;
}

TEST(ClusterSimulationTest, TheSameSeedGivesTheSameHistory) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const ClusterReport first = RunSeed(seed);
    const ClusterReport second = RunSeed(seed);
    EXPECT_EQ(first.trace_hash, second.trace_hash) << seed;
    EXPECT_EQ(first.events, second.events) << seed;
    EXPECT_NE(first.trace_hash, RunSeed(seed + 1000).trace_hash) << seed;
  }
}

TEST(ClusterSimulationTest, AFailingScheduleIsShrunkToFaultsThatStillFail) {
  ClusterOptions options;
  options.mutant = Mutant::kReleaseAtCut;
  options.seed = 1;
  while (RunCluster(options).violation.empty())
    ASSERT_LT(++options.seed, 100u) << "no schedule fails";
  options.faults = Shrink(options);
  EXPECT_NE(RunCluster(options).violation, "");
}

// A guard whose absence nobody notices is not tested.
class ClusterMutantTest : public ::testing::TestWithParam<int> {};

TEST_P(ClusterMutantTest, AMissingGuardIsNoticed) {
  const auto mutant = static_cast<Mutant>(GetParam());
  for (std::uint64_t seed = 1; seed <= 400; ++seed) {
    ClusterOptions options;
    options.seed = seed;
    options.mutant = mutant;
    // Guards of chains are missed where there are some.
    if (mutant >= Mutant::kAnswerBeforeBackups) options.replicas = 1;
    if (!RunCluster(options).violation.empty()) return;
  }
  FAIL() << "400 schedules without the guard " << MutantName(mutant);
}

INSTANTIATE_TEST_SUITE_P(All, ClusterMutantTest, ::testing::Range(1, kMutants),
                         [](const auto& mutant) {
                           std::string name = MutantName(static_cast<Mutant>(mutant.param));
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace ps::simulation
