#include "ps-server/core/shadow.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <random>
#include <set>

#include "common/codec/increment.h"
#include "tests/ps-server/core/server_testing.h"

namespace ps::server {
namespace {

using testing::Bytes;
using testing::ConstantRules;
using testing::ConstantShard;
using testing::DenseBlock;
using testing::MakeLayout;
using testing::MakeMember;
using testing::Parse;
using testing::SparseBlock;

constexpr std::uint32_t kElements = 1000;
constexpr std::uint32_t kLineage = 9;

JobRules Rules(double rate) {
  JobRules rules = ConstantRules(rate);
  rules.increments = true;
  rules.version_gap_max = 1000000;
  return rules;
}

// What a worker does with the answers to its pulls.
class Holder {
 public:
  explicit Holder(const LayoutView& layout) : layout_(layout), values_(layout.block_count()) {}

  wire::PullContent Pull(Shard& shard) {
    ByteBuffer out;
    const auto content = shard.Pull({version_, kLineage, false, false}, scratch_, out);
    EXPECT_LE(out.size(), shard.MaxPullBytes(false));
    version_ = shard.version();
    bytes_ = out.size();
    std::span<const std::byte> payload(out);
    std::optional<std::uint64_t> hash;
    if (content == wire::PullContent::IncrementsAndHash) {
      hash.emplace();
      std::memcpy(&*hash, payload.data(), sizeof(*hash));
      payload = payload.subspan(sizeof(*hash));
    }
    const bool increments = hash.has_value() || content == wire::PullContent::Increments;
    std::vector<codec::BlockView> blocks;
    const Status parsed = codec::ParseSegment(
        payload, [&](std::uint32_t block) { return layout_.block(block).elements; }, blocks,
        increments ? 1 + codec::kIncrementPushesMax : 1);
    EXPECT_TRUE(parsed.ok()) << (parsed.ok() ? "" : parsed.error().message);
    for (const codec::BlockView& block : blocks) Take(block, increments);
    if (hash.has_value()) {
      codec::HeldHash held;
      for (std::uint32_t block = 0; block < layout_.block_count(); ++block) {
        if (layout_.block(block).rule != TableRule::Sgd) continue;
        std::vector<std::uint16_t> halves;
        for (const float value : values_[block]) halves.push_back(codec::FloatToBf16(value));
        held.Add(halves);
      }
      EXPECT_EQ(held.Digest(), *hash);
    }
    return content;
  }

  const std::vector<std::vector<float>>& values() const { return values_; }
  std::size_t bytes() const { return bytes_; }  // of the last answer

 private:
  void Take(const codec::BlockView& block, bool increments) {
    std::vector<std::uint16_t> indices;
    std::vector<float> decoded;
    codec::DecodeIndices(block, indices);
    codec::DecodeValues(block, decoded);
    std::vector<float>& to = values_[block.header.block()];
    to.resize(layout_.block(block.header.block()).elements);
    for (std::size_t i = 0; i < indices.size(); ++i) {
      float& at = to[indices[i]];
      at = increments && !block.dense()
               ? codec::Bf16ToFloat(codec::AddIncrement(codec::FloatToBf16(at), decoded[i]))
               : decoded[i];
    }
  }

  const LayoutView& layout_;
  PullScratch scratch_;
  std::uint64_t version_ = 0;
  std::size_t bytes_ = 0;
  std::vector<std::vector<float>> values_;
};

class ShadowTest : public ::testing::Test {
 protected:
  static std::vector<std::vector<float>> Snapshot(const LayoutView& layout, Shard& shard) {
    PullScratch scratch;
    ByteBuffer out;
    EXPECT_EQ(shard.Pull({0, kLineage, false, true}, scratch, out), wire::PullContent::Snapshot);
    std::vector<std::vector<float>> values(layout.block_count());
    testing::ApplyPulled(layout, out, values);
    return values;
  }
  void Push(Shard& shard, const LayoutView& layout, const Bytes& bytes) {
    const PushFacts facts{Clock(++clock_), shard.version(), 1, false};
    ASSERT_EQ(shard.Push(member_, facts, Parse(layout, bytes), 2).code, wire::Code::Applied);
  }
  Bytes RandomBlock(std::uint32_t block, std::uint32_t elements, std::size_t entries) {
    std::set<std::uint16_t> touched;
    while (touched.size() < entries) touched.insert(random_() % elements);
    const std::vector<std::uint16_t> indices(touched.begin(), touched.end());
    std::vector<float> values;
    for (std::size_t i = 0; i < indices.size(); ++i) values.push_back(normal_(random_));
    constexpr std::array kCodecs = {wire::IndexCodec::Gap8, wire::IndexCodec::Raw16,
                                    wire::IndexCodec::Rice, wire::IndexCodec::Bitmap};
    return SparseBlock(block, elements, indices, values, kCodecs[random_() % kCodecs.size()]);
  }
  Bytes RandomDense(std::uint32_t block, std::uint32_t elements) {
    std::vector<float> values;
    for (std::uint32_t i = 0; i < elements; ++i) values.push_back(normal_(random_));
    return DenseBlock(block, values);
  }

  const Member member_ = MakeMember(0, 11);
  std::uint64_t clock_ = 0;
  std::mt19937 random_{23};
  std::normal_distribution<float> normal_;
};

TEST_F(ShadowTest, EveryWorkerHoldsTheSameHoweverOftenItPulls) {
  const LayoutView layout = MakeLayout(
      {{TableRule::Sgd, {kElements, 300}}, {TableRule::Average, {10}}, {TableRule::Maximum, {4}}},
      1);
  const JobRules rules = Rules(0.01);
  Shard shard(layout, rules, ShardId(0), Epoch(1), kLineage, false);
  ASSERT_EQ(shard.Init(Parse(layout, ConstantShard(layout, ShardId(0), 1))), wire::Code::Applied);
  const std::vector<std::uint64_t> intervals = {1, 5, 40, 90, 700};
  std::vector<Holder> holders(intervals.size(), Holder(layout));
  std::array<int, 5> contents{};
  for (int push = 1; push <= 2200; ++push) {
    Bytes bytes;
    for (const auto& [block, elements] :
         std::vector<std::pair<std::uint32_t, std::uint32_t>>{{0, kElements}, {1, 300}}) {
      if (random_() % 4 == 0) continue;
      testing::operator+=(bytes, random_() % 40 == 0 ? RandomDense(block, elements)
                                                     : RandomBlock(block, elements, 8));
    }
    if (push % 10 == 0) testing::operator+=(bytes, RandomDense(2, 10));
    if (push % 10 == 0) testing::operator+=(bytes, RandomDense(3, 4));
    Push(shard, layout, bytes);
    for (std::size_t i = 0; i < holders.size(); ++i) {
      if (static_cast<std::uint64_t>(push) % intervals[i] != 0) continue;
      ++contents[static_cast<std::size_t>(holders[i].Pull(shard))];
      ASSERT_EQ(holders[i].values(), Snapshot(layout, shard)) << push << " " << intervals[i];
    }
  }
  EXPECT_GT(contents[static_cast<std::size_t>(wire::PullContent::Increments)], 1000);
  EXPECT_GT(contents[static_cast<std::size_t>(wire::PullContent::IncrementsAndHash)], 2);
  EXPECT_GT(contents[static_cast<std::size_t>(wire::PullContent::Sparse)], 3);
  EXPECT_GT(contents[static_cast<std::size_t>(wire::PullContent::Snapshot)], 3);
}

TEST_F(ShadowTest, WhatQuantisationLeavesOutIsMadeGoodByLaterPushes) {
  const LayoutView layout = MakeLayout({{TableRule::Sgd, {kElements}}}, 1);
  const JobRules rules = Rules(1);
  Shard shard(layout, rules, ShardId(0), Epoch(1), kLineage, false);
  ASSERT_EQ(shard.Init(Parse(layout, ConstantShard(layout, ShardId(0), 1))), wire::Code::Applied);
  Holder holder(layout);
  holder.Pull(shard);
  // The same 200 entries in each push; only the first moves them.
  std::vector<std::uint16_t> indices;
  std::vector<float> values;
  for (std::uint16_t i = 0; i < 200; ++i) {
    indices.push_back(static_cast<std::uint16_t>(5 * i));
    values.push_back(normal_(random_));
  }
  const auto error = [&] {
    holder.Pull(shard);
    double sum = 0;
    const std::vector<float> exact = shard.values();
    for (std::size_t i = 0; i < exact.size(); ++i) {
      sum += std::pow(double{exact[i]} - double{holder.values()[0][i]}, 2);
    }
    return std::sqrt(sum);
  };
  Push(shard, layout, SparseBlock(0, kElements, indices, values));
  const double first = error();
  EXPECT_GT(first, 1);
  const std::vector<float> nothing(indices.size(), 0.0f);
  for (int i = 0; i < 12; ++i) Push(shard, layout, SparseBlock(0, kElements, indices, nothing));
  // What is left is a bf16's rounding.
  EXPECT_LT(error(), first / 20);
}

TEST_F(ShadowTest, EightPushesOfAPercentCostLessThanElevenHundredthsOfAByteForEachParameter) {
  constexpr std::uint32_t kBlock = wire::kBlockElements;
  const LayoutView layout = MakeLayout({{TableRule::Sgd, {kBlock}}}, 1);
  const JobRules rules = Rules(0.001);
  Shard shard(layout, rules, ShardId(0), Epoch(1), kLineage, false);
  ASSERT_EQ(shard.Init(Parse(layout, ConstantShard(layout, ShardId(0), 1))), wire::Code::Applied);
  Holder holder(layout);
  for (int i = 0; i < 9; ++i) {
    if (i == 1) holder.Pull(shard);
    std::set<std::uint16_t> touched;
    while (touched.size() < kBlock / 100) touched.insert(random_() % kBlock);
    const std::vector<std::uint16_t> indices(touched.begin(), touched.end());
    const std::vector<float> values(indices.size(), 1.0f);
    Push(shard, layout,
         SparseBlock(0, kBlock, indices, values, wire::IndexCodec::Rice, wire::ValueCodec::Bits2));
  }
  EXPECT_EQ(holder.Pull(shard), wire::PullContent::Increments);
  EXPECT_LT(static_cast<double>(holder.bytes() + sizeof(wire::Segment)) / kBlock, 0.11);
}

TEST_F(ShadowTest, PullsOfFp32HaveTheValuesThemselves) {
  const LayoutView layout = MakeLayout({{TableRule::Sgd, {kElements}}}, 1);
  const JobRules rules = Rules(1);
  Shard shard(layout, rules, ShardId(0), Epoch(1), kLineage, false);
  ASSERT_EQ(shard.Init(Parse(layout, ConstantShard(layout, ShardId(0), 1))), wire::Code::Applied);
  Push(shard, layout, SparseBlock(0, kElements, {3, 4, 5}, {0.1f, 0.7f, 1.3f}));
  PullScratch scratch;
  for (const bool snapshot : {false, true}) {
    ByteBuffer out;
    const auto content = shard.Pull({1, kLineage, true, snapshot}, scratch, out);
    if (!snapshot) {
      EXPECT_EQ(content, wire::PullContent::Unchanged);
      continue;
    }
    std::vector<std::vector<float>> values(1);
    testing::ApplyPulled(layout, out, values);
    EXPECT_EQ(values[0], shard.values());
  }
}

TEST_F(ShadowTest, AfterARestoreAllBeginWithASnapshotOfTheValues) {
  const LayoutView layout = MakeLayout({{TableRule::Sgd, {kElements}}}, 1);
  const JobRules rules = Rules(1);
  Shard shard(layout, rules, ShardId(0), Epoch(1), kLineage - 1, false);
  ASSERT_EQ(shard.Init(Parse(layout, ConstantShard(layout, ShardId(0), 1))), wire::Code::Applied);
  Push(shard, layout, RandomBlock(0, kElements, 50));
  Shard restored(layout, rules, ShardId(0), Epoch(2), kLineage, true);
  ASSERT_TRUE(restored.Restore(shard.Freeze(JobId(1), Round(1)).ToImage(), false).ok());
  Holder holder(layout);
  EXPECT_EQ(holder.Pull(restored), wire::PullContent::Snapshot);
  const std::vector<float> exact = shard.values();
  for (std::size_t i = 0; i < exact.size(); ++i) {
    EXPECT_EQ(holder.values()[0][i], codec::Bf16ToFloat(codec::HeldOf(exact[i])));
  }
  Push(restored, layout, RandomBlock(0, kElements, 50));
  EXPECT_EQ(holder.Pull(restored), wire::PullContent::Increments);
  EXPECT_EQ(holder.values(), Snapshot(layout, restored));
}

// A backup's shadow began with its image, not with the shadow of the first of the chain.
TEST_F(ShadowTest, AfterAPromotionAllBeginWithASnapshotOfTheValues) {
  const LayoutView layout = MakeLayout({{TableRule::Sgd, {kElements}}}, 1);
  const JobRules rules = Rules(1);
  Shard first(layout, rules, ShardId(0), Epoch(1), kLineage, false);
  ASSERT_EQ(first.Init(Parse(layout, ConstantShard(layout, ShardId(0), 1))), wire::Code::Applied);
  Push(first, layout, RandomBlock(0, kElements, 50));
  Shard backup(layout, rules, ShardId(0), Epoch(1), kLineage, true);
  ASSERT_TRUE(backup.Restore(first.Freeze(JobId(1), Round(1)).ToImage(), false).ok());
  for (int i = 0; i < 20; ++i) {
    const Bytes bytes = RandomBlock(0, kElements, 50);
    Push(first, layout, bytes);
    --clock_;
    Push(backup, layout, bytes);
  }
  Holder behind(layout);
  behind.Pull(first);
  Push(first, layout, RandomBlock(0, kElements, 1));
  --clock_;
  Holder level(layout);
  level.Pull(first);
  Push(backup, layout, RandomBlock(0, kElements, 1));
  ASSERT_EQ(first.version(), backup.version());
  ASSERT_NE(Snapshot(layout, first), Snapshot(layout, backup)) << "else there is nothing to test";

  backup.Promote(Epoch(2));
  for (Holder* holder : {&behind, &level}) {
    EXPECT_EQ(holder->Pull(backup), wire::PullContent::Snapshot);
    EXPECT_EQ(holder->values(), Snapshot(layout, backup));
  }
  // The version that they have now was also one of the other shadow.
  for (const auto content : {wire::PullContent::Snapshot, wire::PullContent::Increments}) {
    Push(backup, layout, RandomBlock(0, kElements, 50));
    for (Holder* holder : {&behind, &level}) {
      EXPECT_EQ(holder->Pull(backup), content);
      EXPECT_EQ(holder->values(), Snapshot(layout, backup));
    }
  }
}

}  // namespace
}  // namespace ps::server
