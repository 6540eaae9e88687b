#include "coordinator/core/retention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace ps::coordinator {
namespace {

std::vector<CommittedCheckpoint> Checkpoints(std::uint64_t count) {
  std::vector<CommittedCheckpoint> list(count);
  for (std::uint64_t i = 0; i < count; ++i) {
    list[i].round = Round(10 * (i + 1));
    list[i].ordinal = i + 1;
  }
  return list;
}

std::vector<std::uint64_t> Expired(const std::vector<CommittedCheckpoint>& list,
                                   const RetentionRule& rule, const std::set<Round>& held = {}) {
  std::vector<std::uint64_t> numbers;
  for (const Round round : ExpiredCheckpoints(list, rule, held)) numbers.push_back(round.value());
  return numbers;
}

using Numbers = std::vector<std::uint64_t>;

TEST(RetentionTest, TheNewestStay) {
  const auto list = Checkpoints(5);
  EXPECT_EQ(Expired(list, {2, 0}), (Numbers{10, 20, 30}));
  EXPECT_EQ(Expired(list, {5, 0}), Numbers{});
  EXPECT_EQ(Expired(list, {9, 0}), Numbers{});
  EXPECT_EQ(Expired({}, {2, 0}), Numbers{});
  // However little is asked for, the newest stays.
  EXPECT_EQ(Expired(list, {0, 0}), (Numbers{10, 20, 30, 40}));
}

TEST(RetentionTest, EverySoManythStaysByItsNumberAmongTheCommittedOnes) {
  EXPECT_EQ(Expired(Checkpoints(9), {1, 4}), (Numbers{10, 20, 30, 50, 60, 70}));
  // One whose number is not known, of a state that is older than numbers, is none of them.
  auto list = Checkpoints(3);
  for (auto& one : list) one.ordinal = 0;
  EXPECT_EQ(Expired(list, {1, 1}), (Numbers{10, 20}));
}

TEST(RetentionTest, NumbersKeepNoMoreThanTheStateHasRoomFor) {
  const auto list = Checkpoints(kCheckpointsMax + 50);
  const auto expired = Expired(list, {10, 1});
  ASSERT_EQ(expired.size(), 50u);
  EXPECT_EQ(expired.front(), 10u);
  EXPECT_EQ(expired.back(), 500u);
}

TEST(RetentionTest, WhatIsPinnedOrHeldStaysAndTakesNoPlace) {
  auto list = Checkpoints(5);
  list[0].pinned = true;
  EXPECT_EQ(Expired(list, {2, 0}, {Round(20)}), Numbers{30});
}

TEST(RetentionTest, ADamagedOneCountsForNothingButItsPin) {
  auto list = Checkpoints(5);
  list[4].damaged = true;
  EXPECT_EQ(Expired(list, {2, 5}), (Numbers{10, 20, 50}));
  list[4].pinned = true;
  EXPECT_EQ(Expired(list, {2, 5}), (Numbers{10, 20}));
}

TEST(RetentionTest, WhatAKeptOneBuildsOnStaysOnTheDisk) {
  auto list = Checkpoints(2);
  list[1].bases = {Round(10), Round(7)};
  EXPECT_EQ(RoundsOnDisk(list), (std::set<Round>{Round(7), Round(10), Round(20)}));
}

// By definition, over lists of any kind.
TEST(RetentionTest, WhatGoesIsExactlyWhatNoRuleKeeps) {
  std::mt19937 random(5);
  for (int turn = 0; turn < 2000; ++turn) {
    auto list = Checkpoints(random() % 12);
    std::set<Round> held;
    for (auto& one : list) {
      one.pinned = random() % 6 == 0;
      one.damaged = random() % 6 == 0;
      if (random() % 8 == 0) held.insert(one.round);
    }
    const RetentionRule rule{1 + random() % 4, random() % 4};
    const auto expired = ExpiredCheckpoints(list, rule, held);
    for (std::size_t i = 0; i < list.size(); ++i) {
      const auto newer = std::count_if(list.begin() + static_cast<std::ptrdiff_t>(i) + 1,
                                       list.end(), [](const auto& one) { return !one.damaged; });
      const bool kept =
          list[i].pinned || held.contains(list[i].round) ||
          (!list[i].damaged && (static_cast<std::size_t>(newer) < rule.keep ||
                                (rule.keep_every > 0 && list[i].ordinal % rule.keep_every == 0)));
      EXPECT_EQ(std::count(expired.begin(), expired.end(), list[i].round), kept ? 0 : 1);
    }
  }
}

}  // namespace
}  // namespace ps::coordinator
