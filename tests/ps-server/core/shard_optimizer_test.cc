// A shard under each optimizer, through checkpoints on disk.
#include <gtest/gtest.h>
#include <xmmintrin.h>

#include <cmath>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "checkpoint/reader.h"
#include "checkpoint/writer.h"
#include "ps-server/core/shard.h"
#include "tests/ps-server/core/server_testing.h"
#include "tests/support/temp_directory.h"

namespace ps::server {
namespace {

using testing::Bytes;
using testing::DenseBlock;
using testing::MakeLayout;
using testing::MakeMember;
using testing::Parse;
using testing::SparseBlock;

constexpr std::uint32_t kLarge = 900;
constexpr std::uint32_t kSmall = 20;
constexpr std::uint32_t kBuffers = 5;

JobRules RulesFor(const std::string& type, bool sparse) {
  JobSpec spec;
  spec.training.epochs = 1;
  spec.training.workers = 2;
  spec.optimizer.type = type;
  spec.optimizer.reference_batch = 32;
  spec.optimizer.learning_rate.base = 0.01;
  if (type != "ftrl") spec.optimizer.learning_rate.schedule = "linear";
  if (type == "adamw" || type == "momentum") spec.optimizer.weight_decay = 0.1;
  if (type == "adagrad" || type == "ftrl") spec.optimizer.initial_accumulator = 0.25;
  spec.sparsification.ratio = sparse ? 0.05 : 1;
  return JobRules::Of(spec, 4000);
}

class ShardOptimizerTest : public ::testing::TestWithParam<std::tuple<const char*, bool>> {
 protected:
  std::string type() const { return std::get<0>(GetParam()); }
  bool sparse() const { return std::get<1>(GetParam()); }

  Shard Make(const JobRules& rules, bool restoring) const {
    return Shard(layout_, rules, ShardId(0), Epoch(1), 1, restoring);
  }

  void Init(Shard& shard) const {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    Bytes bytes;
    for (std::uint32_t block = 0; block < layout_.block_count(); ++block) {
      std::vector<float> values(layout_.block(block).elements);
      for (float& value : values) value = normal(random);
      testing::operator+=(bytes, DenseBlock(block, values));
    }
    ASSERT_EQ(shard.Init(Parse(layout_, bytes)), wire::Code::Applied);
  }

  // The same for each clock, whichever shard takes it: large tensors as the job says, small ones
  // dense, buffers now and then.
  void Push(Shard& shard, std::uint64_t clock) const {
    std::mt19937 random(static_cast<unsigned>(clock));
    std::normal_distribution<float> normal;
    Bytes bytes;
    std::vector<std::uint16_t> indices;
    std::vector<float> values;
    for (std::uint32_t i = 0; i < kLarge; ++i) {
      if (sparse() && random() % 16 != 0) continue;
      indices.push_back(static_cast<std::uint16_t>(i));
      values.push_back(normal(random));
    }
    testing::operator+=(bytes, sparse()
                                   ? SparseBlock(0, kLarge, indices, values, wire::IndexCodec::Gap8,
                                                 wire::ValueCodec::Bf16)
                                   : DenseBlock(0, values, wire::ValueCodec::Bf16));
    values.resize(kSmall);
    for (float& value : values) value = normal(random);
    testing::operator+=(bytes, DenseBlock(1, values));
    if (clock % 10 == 0) {
      testing::operator+=(bytes,
                          DenseBlock(2, std::vector<float>(kBuffers, static_cast<float>(clock))));
    }
    const PushVerdict verdict = shard.Push(
        member_, PushFacts{Clock(clock), shard.version(), 24, false}, Parse(layout_, bytes), 2);
    ASSERT_EQ(verdict.code, wire::Code::Applied);
  }

  checkpoint::ShardImage ThroughDisk(const checkpoint::ShardImage& image) const {
    auto writer = checkpoint::Writer::Open(directory_ / "part", 0).value();
    PS_CHECK(writer.Add(image).ok());
    const auto written = writer.Finish().value();
    const auto reader = checkpoint::Reader::Open(directory_ / "part").value();
    return reader.ReadShard(ShardId(0), written.at(0).digest).value();
  }

  const LayoutView layout_ =
      MakeLayout({{TableRule::Sgd, {kLarge, kSmall}}, {TableRule::Average, {kBuffers}}}, 1);
  const Member member_ = MakeMember(0, 11);
  const test::TempDirectory directory_{"optimizer"};
};

TEST_P(ShardOptimizerTest, ARestoredShardGoesOnBitForBitAsIfNothingHadHappened) {
  const JobRules rules = RulesFor(type(), sparse());
  Shard unbroken = Make(rules, false);
  Init(unbroken);
  for (std::uint64_t clock = 1; clock <= 40; ++clock) Push(unbroken, clock);

  Shard restored = Make(rules, true);
  const checkpoint::ShardImage image = unbroken.Freeze(JobId(1), Round(1)).ToImage();
  const Status taken = restored.Restore(ThroughDisk(image), false);
  ASSERT_TRUE(taken.ok()) << taken.error().message;
  EXPECT_EQ(restored.Freeze(JobId(1), Round(1)).ToImage(), image);

  for (std::uint64_t clock = 41; clock <= 80; ++clock) {
    Push(unbroken, clock);
    Push(restored, clock);
  }
  const auto expected = unbroken.Freeze(JobId(1), Round(2)).ToImage();
  const auto found = restored.Freeze(JobId(1), Round(2)).ToImage();
  EXPECT_EQ(checkpoint::Digest(found), checkpoint::Digest(expected));
  EXPECT_EQ(found, expected);
  for (const float value : found.values) ASSERT_TRUE(std::isfinite(value));
}

TEST_P(ShardOptimizerTest, ValuesOfAnotherJobComeWithFreshSlots) {
  const JobRules other_rules = RulesFor(type() == "adam" ? "momentum" : "adam", !sparse());
  Shard other = Make(other_rules, false);
  Init(other);
  ASSERT_EQ(other
                .Push(member_, PushFacts{Clock(1), 0, 24, false},
                      Parse(layout_, DenseBlock(0, std::vector<float>(kLarge, 0.5f))), 2)
                .code,
            wire::Code::Applied);

  const JobRules rules = RulesFor(type(), sparse());
  Shard taking = Make(rules, true);
  ASSERT_TRUE(taking.Restore(other.Freeze(JobId(1), Round(1)).ToImage(), true).ok());
  Bytes bytes;
  const std::vector<float> values = other.values();
  std::size_t offset = 0;
  for (std::uint32_t block = 0; block < layout_.block_count(); ++block) {
    const auto begin = values.begin() + static_cast<std::ptrdiff_t>(offset);
    offset += layout_.block(block).elements;
    testing::operator+=(
        bytes, DenseBlock(block, {begin, values.begin() + static_cast<std::ptrdiff_t>(offset)}));
  }
  Shard fresh = Make(rules, false);
  ASSERT_EQ(fresh.Init(Parse(layout_, bytes)), wire::Code::Applied);
  for (std::uint64_t clock = 1; clock <= 10; ++clock) {
    Push(taking, clock);
    Push(fresh, clock);
  }
  EXPECT_EQ(taking.Freeze(JobId(2), Round(1)).ToImage(),
            fresh.Freeze(JobId(2), Round(1)).ToImage());
}

TEST_P(ShardOptimizerTest, PullsBringTheValuesHoweverTheyAreKept) {
  const JobRules rules = RulesFor(type(), sparse());
  Shard shard = Make(rules, false);
  Init(shard);
  PullScratch scratch;
  std::vector<std::vector<float>> pulled(layout_.block_count());
  const auto pull = [&](std::uint64_t version) {
    ByteBuffer out;
    shard.Pull(Shard::PullQuery{version, 1, true, false}, scratch, out);
    testing::ApplyPulled(layout_, out, pulled);
  };
  pull(0);
  for (std::uint64_t clock = 1; clock <= 12; ++clock) {
    const std::uint64_t before = shard.version();
    Push(shard, clock);
    pull(before);
  }
  std::vector<float> all;
  for (const auto& block : pulled) all.insert(all.end(), block.begin(), block.end());
  EXPECT_EQ(all, shard.values());
}

TEST_P(ShardOptimizerTest, AnImageWithTheStateOfAnotherOptimizerIsRefused) {
  const JobRules other_rules = RulesFor(type() == "adam" ? "momentum" : "adam", sparse());
  Shard other = Make(other_rules, false);
  Init(other);
  const JobRules rules = RulesFor(type(), sparse());
  Shard shard = Make(rules, true);
  const Status refused = shard.Restore(other.Freeze(JobId(1), Round(1)).ToImage(), false);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalid);
  EXPECT_NE(refused.error().message.find("the job's optimizer is " + type()), std::string::npos)
      << refused.error().message;
  EXPECT_EQ(shard.state(), wire::Code::Restoring) << "another image may still come";
}

INSTANTIATE_TEST_SUITE_P(Types, ShardOptimizerTest,
                         ::testing::Combine(::testing::Values("sgd", "momentum", "nesterov",
                                                              "adagrad", "adam", "adamw", "ftrl",
                                                              "sparse_adam"),
                                            ::testing::Bool()),
                         [](const auto& one) {
                           return std::string(std::get<0>(one.param)) +
                                  (std::get<1>(one.param) ? "Sparse" : "Dense");
                         });

// Otherwise it would stay a denormal number for ever, on which each further push is slow.
TEST(ShardOptimizerLayoutTest, AMomentumThatFadesBecomesZero) {
  const LayoutView layout = MakeLayout({{TableRule::Sgd, {10}}}, 1);
  const JobRules rules = RulesFor("momentum", false);
  Shard shard(layout, rules, ShardId(0), Epoch(1), 1, false);
  const Bytes initial = testing::ConstantShard(layout, ShardId(0), 1);
  ASSERT_EQ(shard.Init(Parse(layout, initial)), wire::Code::Applied);
  const unsigned rounding_before = _mm_getcsr() & 0xFFC0;
  for (std::uint64_t clock = 1; clock <= 1200; ++clock) {
    const Bytes push = DenseBlock(0, std::vector<float>(10, clock == 1 ? 1.0f : 0.0f));
    shard.Push(MakeMember(0, 11), PushFacts{Clock(clock), shard.version(), 24, false},
               Parse(layout, push), 1);
  }
  const auto image = shard.Freeze(JobId(1), Round(1)).ToImage();
  for (const float slot : image.slots.floats) EXPECT_EQ(slot, 0);
  EXPECT_EQ(_mm_getcsr() & 0xFFC0, rounding_before) << "the thread keeps its own mode";
}

TEST(ShardOptimizerLayoutTest, CountsPerBlockAreNotTakenForCountsPerElement) {
  const LayoutView layout = MakeLayout({{TableRule::Sgd, {10}}}, 1);
  const JobRules dense = RulesFor("adam", false);
  const JobRules sparse = RulesFor("adam", true);
  Shard from(layout, dense, ShardId(0), Epoch(1), 1, false);
  const Bytes bytes = testing::ConstantShard(layout, ShardId(0), 1);
  ASSERT_EQ(from.Init(Parse(layout, bytes)), wire::Code::Applied);
  Shard to(layout, sparse, ShardId(0), Epoch(1), 1, true);
  const Status refused = to.Restore(from.Freeze(JobId(1), Round(1)).ToImage(), false);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalid);
}

}  // namespace
}  // namespace ps::server
