#include "ps-server/core/rows/removed_rows.h"

#include <gtest/gtest.h>

namespace ps::server {
namespace {

using Keys = std::vector<std::uint64_t>;
constexpr std::uint64_t kMany = 10'000'000;

TEST(RemovedRowsTest, WhatWentSinceAFreezeIsKnownAtALaterOne) {
  RemovedRows removed;
  removed.Add(1, kMany);  // before the first freeze nobody asks
  EXPECT_EQ(removed.Freeze(1).Since(1), std::nullopt);
  removed.Add(2, kMany);
  removed.Add(3, kMany);
  const auto second = removed.Freeze(2);
  EXPECT_EQ(second.Since(1), (Keys{2, 3}));
  removed.Add(4, kMany);
  const auto third = removed.Freeze(3);
  EXPECT_EQ(third.Since(1), (Keys{2, 3, 4}));
  EXPECT_EQ(third.Since(2), Keys{4});
  EXPECT_EQ(second.Since(1), (Keys{2, 3})) << "what was taken does not change";
  EXPECT_EQ(third.Since(3), std::nullopt) << "it is not earlier";
  EXPECT_EQ(third.Since(0), std::nullopt);
  EXPECT_EQ(removed.Freeze(4).Since(3), Keys{});
}

TEST(RemovedRowsTest, OldFreezesAreForgotten) {
  RemovedRows removed;
  for (std::uint64_t number = 1; number <= 20; ++number) {
    const auto frozen = removed.Freeze(number);
    for (std::uint64_t since = 1; since < number; ++since) {
      EXPECT_EQ(frozen.Since(since).has_value(), since + RemovedRows::kIntervals >= number);
    }
    removed.Add(number, kMany);
  }
}

TEST(RemovedRowsTest, MoreKeysThanAShareOfTheRowsAreNotKept) {
  RemovedRows removed;
  (void)removed.Freeze(1);
  for (std::uint64_t key = 0; key < RemovedRows::kKeysMin; ++key) removed.Add(key, 100);
  EXPECT_EQ(removed.Freeze(2).Since(1)->size(), RemovedRows::kKeysMin);
  // The older interval makes room.
  removed.Add(5, 100);
  const auto third = removed.Freeze(3);
  EXPECT_EQ(third.Since(1), std::nullopt);
  EXPECT_EQ(third.Since(2), Keys{5});
  for (std::uint64_t key = 0; key < 3 * RemovedRows::kKeysMin; ++key) removed.Add(key, 100);
  const auto fourth = removed.Freeze(4);
  EXPECT_EQ(fourth.Since(3), std::nullopt);
  EXPECT_EQ(fourth.Since(2), std::nullopt);
  removed.Add(9, 100);
  const auto fifth = removed.Freeze(5);
  EXPECT_EQ(fifth.Since(4), Keys{9});
  EXPECT_EQ(fifth.Since(3), std::nullopt) << "part of it is not known";
  // A sixteenth of the rows.
  for (std::uint64_t key = 0; key < 60'000; ++key) removed.Add(key, 1'000'000);
  EXPECT_EQ(removed.Freeze(6).Since(5)->size(), 60'000u);
}

}  // namespace
}  // namespace ps::server
