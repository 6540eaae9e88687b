#include "ps-worker/engine/data/permutation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

namespace ps::worker {
namespace {

using ::testing::ElementsAre;

TEST(PermutationTest, EveryEpochHasEachRecordOnce) {
  Permutation permutation(1000, 7, true);
  for (std::uint64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<std::uint64_t> seen;
    for (std::uint64_t i = 0; i < 1000; ++i) {
      seen.push_back(permutation.RecordAt(epoch * 1000 + i));
    }
    std::sort(seen.begin(), seen.end());
    for (std::uint64_t i = 0; i < 1000; ++i) ASSERT_EQ(seen[i], i);
  }
}

TEST(PermutationTest, OrderIsTheDocumentedOneOnEveryMachine) {
  // From an independent implementation of the text in permutation.h.
  EXPECT_THAT(ShuffledEpoch(10, 1, 0), ElementsAre(0, 8, 3, 2, 6, 4, 5, 1, 9, 7));
  EXPECT_THAT(ShuffledEpoch(10, 1, 1), ElementsAre(1, 3, 7, 6, 8, 9, 4, 2, 0, 5));
  EXPECT_THAT(ShuffledEpoch(10, 18446744073709551615u, 3),
              ElementsAre(0, 6, 3, 5, 7, 1, 9, 2, 4, 8));
}

TEST(PermutationTest, SeedAndEpochChangeTheOrder) {
  EXPECT_NE(ShuffledEpoch(100, 1, 0), ShuffledEpoch(100, 2, 0));
  EXPECT_NE(ShuffledEpoch(100, 1, 0), ShuffledEpoch(100, 1, 1));
  EXPECT_NE(ShuffledEpoch(100, 1, 1), ShuffledEpoch(100, 2, 0));
}

TEST(PermutationTest, PlacesAreSpreadEvenly) {
  constexpr std::uint64_t kRecords = 8;
  constexpr std::uint64_t kEpochs = 8000;
  std::array<std::uint64_t, kRecords> first{};
  for (std::uint64_t epoch = 0; epoch < kEpochs; ++epoch) {
    ++first[ShuffledEpoch(kRecords, 3, epoch)[0]];
  }
  for (const std::uint64_t count : first) EXPECT_NEAR(static_cast<double>(count), 1000, 150);
}

TEST(PermutationTest, WithoutShuffleThePositionIsTheRecord) {
  Permutation permutation(10, 7, false);
  EXPECT_EQ(permutation.RecordAt(0), 0u);
  EXPECT_EQ(permutation.RecordAt(9), 9u);
  EXPECT_EQ(permutation.RecordAt(10), 0u);
  EXPECT_EQ(permutation.RecordAt(123), 3u);
}

TEST(PermutationTest, GoingBackToAnEarlierEpochGivesTheSameRecords) {
  Permutation permutation(50, 9, true);
  const std::uint64_t before = permutation.RecordAt(5);
  for (std::uint64_t epoch = 1; epoch < 5; ++epoch) permutation.RecordAt(epoch * 50);
  EXPECT_EQ(permutation.RecordAt(5), before);
  EXPECT_EQ(permutation.RecordAt(203), ShuffledEpoch(50, 9, 4)[3]);
}

TEST(PermutationTest, SingleRecordHasOneOrder) {
  Permutation permutation(1, 1, true);
  EXPECT_EQ(permutation.RecordAt(0), 0u);
  EXPECT_EQ(permutation.RecordAt(12345), 0u);
}

}  // namespace
}  // namespace ps::worker
