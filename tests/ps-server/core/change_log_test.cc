#include "ps-server/core/change_log.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "tests/ps-server/core/server_testing.h"

namespace ps::server {
namespace {

using testing::Bytes;
using testing::DenseBlock;
using testing::MakeLayout;
using testing::Parse;
using testing::SparseBlock;

constexpr std::uint32_t kElements = 1000;

class ChangeLogTest : public ::testing::Test {
 protected:
  void Append(ChangeLog& log, std::uint64_t version, const Bytes& bytes, bool whole = false) {
    const std::vector<codec::BlockView> blocks = Parse(layout_, bytes);
    log.Append(version, blocks, whole);
  }

  // The positions of block 0 that changed after `version`; 65,536 stands for all of them.
  static std::set<std::uint32_t> After(const ChangeLog& log, std::uint64_t version) {
    std::set<std::uint32_t> positions;
    log.ForEachAfter(version, [&](const ChangeLog::Touched& touched) {
      if (touched.whole) {
        positions.insert(65536);
        return;
      }
      codec::PositionReader reader = touched.positions();
      std::vector<std::uint16_t> piece(codec::PositionReader::kRoom);
      while (const std::size_t count = reader.Next(piece.data())) {
        positions.insert(piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(count));
      }
    });
    return positions;
  }

  const LayoutView layout_ = MakeLayout({{TableRule::Sgd, {kElements, kElements}}}, 1);
};

TEST_F(ChangeLogTest, NamesWhatChangedAfterAVersion) {
  ChangeLog log(1000);
  log.Reset(10);
  Append(log, 11, SparseBlock(0, kElements, {1, 5}, {0, 0}));
  Append(log, 12, SparseBlock(0, kElements, {5, 7}, {0, 0}));
  EXPECT_TRUE(log.Covers(10));
  EXPECT_FALSE(log.Covers(9));
  EXPECT_EQ(After(log, 10), (std::set<std::uint32_t>{1, 5, 7}));
  EXPECT_EQ(After(log, 11), (std::set<std::uint32_t>{5, 7}));
  EXPECT_TRUE(After(log, 12).empty());
}

TEST_F(ChangeLogTest, StreamsOfAllCodecsAreKeptAsTheyCame) {
  const std::vector<std::uint16_t> indices = {0, 1, 300, 301, 999};
  for (const auto codec : {wire::IndexCodec::Gap8, wire::IndexCodec::Raw16, wire::IndexCodec::Rice,
                           wire::IndexCodec::Bitmap}) {
    ChangeLog log(1000);
    Append(log, 1,
           SparseBlock(0, kElements, indices, std::vector<float>(indices.size(), 1.0f), codec));
    EXPECT_EQ(After(log, 0), std::set<std::uint32_t>(indices.begin(), indices.end()));
  }
}

TEST_F(ChangeLogTest, ADensePushMarksTheWholeBlock) {
  ChangeLog log(1000);
  Append(log, 1, DenseBlock(0, std::vector<float>(kElements)));
  EXPECT_EQ(After(log, 0), (std::set<std::uint32_t>{65536}));
  EXPECT_LT(log.bytes(), 50u);
}

TEST_F(ChangeLogTest, WholeBlocksAreMarkedWhateverThePushListed) {
  ChangeLog log(1000);
  Append(log, 1, SparseBlock(0, kElements, {3}, {0}), /*whole=*/true);
  EXPECT_EQ(After(log, 0), (std::set<std::uint32_t>{65536}));
}

TEST_F(ChangeLogTest, WhatIsEncodedIsKeptWholeAndInTheOrderOfThePushes) {
  ChangeLog log(2000);
  std::vector<Bytes> pushes;
  for (std::uint16_t i = 0; i < 5; ++i) {
    pushes.push_back(SparseBlock(0, kElements, {i, 300, 700}, {1, 2, 3}, wire::IndexCodec::Rice,
                                 wire::ValueCodec::Bits2));
    log.Append(i + 1u, pushes.back());
  }
  EXPECT_EQ(After(log, 3), (std::set<std::uint32_t>{3, 4, 300, 700}));
  std::size_t at = 1;
  log.ForEachAfter(1, [&](const ChangeLog::Touched& touched) {
    ASSERT_LT(at, pushes.size());
    EXPECT_TRUE(std::equal(touched.encoded.begin(), touched.encoded.end(), pushes[at].begin(),
                           pushes[at].end()));
    ++at;
  });
  EXPECT_EQ(at, pushes.size());
}

TEST_F(ChangeLogTest, APushThatTouchedNothingCostsNothing) {
  ChangeLog log(1000);
  Append(log, 1, {});
  Append(log, 2, SparseBlock(0, kElements, {}, {}));
  EXPECT_EQ(log.bytes(), 0u);
  EXPECT_TRUE(log.Covers(0));
}

TEST_F(ChangeLogTest, APushLargerThanTheLogForgetsEverything) {
  ChangeLog log(30);
  Append(log, 1, SparseBlock(0, kElements, {3}, {0}));
  EXPECT_TRUE(log.Covers(0));
  Append(
      log, 2,
      SparseBlock(0, kElements, std::vector<std::uint16_t>{1,  2,  3,  4,  5,  6,  7,  8,  9,  10,
                                                           11, 12, 13, 14, 15, 16, 17, 18, 19, 20},
                  std::vector<float>(20)));
  EXPECT_FALSE(log.Covers(1));
  EXPECT_TRUE(log.Covers(2));
  EXPECT_TRUE(After(log, 2).empty());
}

TEST_F(ChangeLogTest, NeverExceedsItsBoundAndNeverForgetsWhatItSaysItCovers) {
  std::mt19937 random(3);
  for (const std::size_t capacity : {40u, 100u, 333u, 1024u}) {
    ChangeLog log(capacity);
    std::map<std::uint64_t, std::set<std::uint32_t>> truth;
    for (std::uint64_t version = 1; version <= 500; ++version) {
      std::set<std::uint16_t> touched;
      const auto count = random() % 20;
      for (std::size_t i = 0; i < count; ++i) touched.insert(random() % 200);
      const std::vector<std::uint16_t> indices(touched.begin(), touched.end());
      Append(log, version, SparseBlock(0, kElements, indices, std::vector<float>(indices.size())));
      truth[version] = {touched.begin(), touched.end()};
      ASSERT_LE(log.bytes(), capacity);
      for (std::uint64_t since = version > 30 ? version - 30 : 0; since <= version; ++since) {
        if (!log.Covers(since)) continue;
        std::set<std::uint32_t> expected;
        for (auto at = truth.upper_bound(since); at != truth.end(); ++at) {
          expected.insert(at->second.begin(), at->second.end());
        }
        ASSERT_EQ(After(log, since), expected) << version << " since " << since;
      }
    }
    EXPECT_TRUE(log.Covers(500));
  }
}

}  // namespace
}  // namespace ps::server
