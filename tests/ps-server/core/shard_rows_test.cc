// Rows of embedding tables on a shard: their optimizers, and the way through images.
#include "ps-server/core/shard_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "checkpoint/reader.h"
#include "checkpoint/writer.h"
#include "ps-server/core/shard.h"
#include "tests/ps-server/core/server_testing.h"
#include "tests/support/temp_directory.h"

namespace ps::server {
namespace {

using testing::AskedRows;
using testing::Bytes;
using testing::ConstantShard;
using testing::KeysOfShard;
using testing::MakeLayout;
using testing::MakeMember;
using testing::Parse;
using testing::PulledRows;
using testing::PushedRows;

using Keys = std::vector<std::uint64_t>;
using Floats = std::vector<float>;

constexpr std::uint32_t kShards = 3;
constexpr std::uint32_t kWidth = 5;
constexpr std::uint64_t kRecords = 40'960;
constexpr std::uint32_t kSamples = 24;

JobSpec SpecWith(const std::string& optimizer) {
  JobSpec spec;
  spec.training.epochs = 2;
  spec.training.workers = 2;
  spec.training.seed = 17;
  spec.optimizer.type = "sgd";
  spec.optimizer.reference_batch = 32;
  EmbeddingTableSpec table;
  table.name = "users";
  table.width = kWidth;
  table.initializer.type = "normal";
  table.initializer.standard_deviation = 0.5;
  table.optimizer.type = optimizer;
  table.optimizer.learning_rate.base = 0.05;
  table.optimizer.reference_batch = 1;  // not read: the job's counts
  if (optimizer == "adagrad" || optimizer == "ftrl") table.optimizer.initial_accumulator = 0.25;
  if (optimizer == "ftrl") table.optimizer.l1 = 0.01;
  table.max_mebibytes = 0;
  spec.embedding_tables.push_back(table);
  return spec;
}

class ShardRowsTest : public ::testing::Test {
 protected:
  static Shard Make(const LayoutView& layout, const JobRules& rules, std::uint64_t hash_seed = 5) {
    Shard shard(layout, rules, ShardId(1), Epoch(1), 1, false, ShardMemory{hash_seed});
    const Bytes bytes = ConstantShard(layout, ShardId(1), 0);
    PS_CHECK(shard.Init(Parse(layout, bytes)) == wire::Code::Applied);
    return shard;
  }
  Shard Make(const JobRules& rules, std::uint64_t hash_seed = 5) const {
    return Make(layout_, rules, hash_seed);
  }
  Shard MakeRestoring(const JobRules& rules) const {
    return Shard(layout_, rules, ShardId(1), Epoch(2), 2, true, ShardMemory{99});
  }

  static void Push(const LayoutView& layout, Shard& shard, std::uint64_t clock, const Bytes& bytes,
                   std::uint32_t samples = kSamples) {
    SegmentContent content;
    ASSERT_TRUE(ParsePush(layout, ShardId(1), bytes, content).ok());
    ASSERT_EQ(shard
                  .Push(MakeMember(0, 11), PushFacts{Clock(clock), shard.version(), samples, false},
                        content.blocks, 1, content.rows)
                  .code,
              wire::Code::Applied);
  }
  void Push(Shard& shard, std::uint64_t clock, const Keys& keys, const Floats& values,
            std::uint32_t samples = kSamples) const {
    Push(layout_, shard, clock, keys.empty() ? Bytes() : PushedRows(0, keys, values), samples);
  }
  Floats Pull(Shard& shard, const Keys& keys, bool fp32 = true) const {
    std::vector<codec::RowsView> asked;
    const Bytes wanted = AskedRows(0, keys);
    PS_CHECK(ParsePull(layout_, ShardId(1), wanted, asked).ok());
    Shard::PullQuery query;
    query.fp32 = fp32;
    PullScratch scratch;
    ByteBuffer out;
    shard.Pull(query, scratch, out, asked);
    EXPECT_EQ(out.size(), shard.MaxPullBytes(fp32, asked));
    last_bytes_ = out.size();
    return PulledRows(layout_, out)[0];
  }
  static checkpoint::ShardImage Freeze(const Shard& shard) {
    return shard.Freeze(JobId(1), Round(1)).ToImage();
  }
  checkpoint::ShardImage ThroughDisk(const checkpoint::ShardImage& image) {
    const auto part = directory_ / ("part-" + std::to_string(parts_++));
    auto writer = checkpoint::Writer::Open(part, 0).value();
    PS_CHECK(writer.Add(image).ok());
    const auto written = writer.Finish().value();
    const auto reader = checkpoint::Reader::Open(part).value();
    return reader.ReadShard(image.shard, written.at(0).digest).value();
  }

  // Shard 1 has no block.
  const LayoutView layout_ = MakeLayout({{TableRule::Sgd, {9}}}, kShards, {kWidth});
  const test::TempDirectory directory_{"rows"};
  int parts_ = 0;
  mutable std::size_t last_bytes_ = 0;  // of an answer
};

// ---- optimizers

// The formulas of optimizer.h in float64.
class ReferenceRow {
 public:
  ReferenceRow(const OptimizerSpec& spec, const Floats& values)
      : spec_(spec), values_(values.begin(), values.end()) {
    slots_.resize(values.size());
    second_.resize(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (spec.type == "adagrad") slots_[i] = spec.initial_accumulator;
      if (spec.type != "ftrl") continue;
      second_[i] = spec.initial_accumulator;
      const double slope =
          (spec.beta + std::sqrt(spec.initial_accumulator)) / spec.learning_rate.base + spec.l2;
      slots_[i] = -(values_[i] * slope + std::copysign(spec.l1, values_[i]));
    }
  }

  void Update(double rate, double weight, const Floats& gradient) {
    ++updates_;
    const double r = rate * weight;
    double mean = 0;
    for (const float g : gradient) mean += Clipped(g) * Clipped(g);
    row_slot_ += mean / static_cast<double>(gradient.size());
    for (std::size_t i = 0; i < values_.size(); ++i) {
      double g = Clipped(gradient[i]);
      double& w = values_[i];
      double& m = slots_[i];
      double& v = second_[i];
      if (spec_.type != "ftrl") w -= r * spec_.weight_decay * w;
      if (spec_.type == "sgd") w -= r * g;
      if (spec_.type == "momentum" || spec_.type == "nesterov") {
        m = spec_.momentum * m + g;
        w -= r * (spec_.type == "momentum" ? m : g + spec_.momentum * m);
      }
      if (spec_.type == "adagrad") {
        m += g * g;
        w -= r * g / (std::sqrt(m) + spec_.epsilon);
      }
      if (spec_.type == "rowwise_adagrad") w -= r * g / (std::sqrt(row_slot_) + spec_.epsilon);
      if (spec_.type == "adam" || spec_.type == "adamw") {
        m = spec_.beta1 * m + (1 - spec_.beta1) * g;
        v = spec_.beta2 * v + (1 - spec_.beta2) * g * g;
        w -= r / (1 - std::pow(spec_.beta1, updates_)) * m /
             (std::sqrt(v / (1 - std::pow(spec_.beta2, updates_))) + spec_.epsilon);
      }
      if (spec_.type == "ftrl") {
        g *= weight;
        const double alpha = spec_.learning_rate.base;
        const double s = (std::sqrt(v + g * g) - std::sqrt(v)) / alpha;
        m += g - s * w;
        v += g * g;
        w = std::abs(m) <= spec_.l1 ? 0
                                    : (std::copysign(spec_.l1, m) - m) /
                                          ((spec_.beta + std::sqrt(v)) / alpha + spec_.l2);
      }
    }
  }
  const std::vector<double>& values() const { return values_; }

 private:
  double Clipped(float g) const {
    return spec_.clip_value > 0 ? std::clamp<double>(g, -spec_.clip_value, spec_.clip_value) : g;
  }

  OptimizerSpec spec_;
  std::vector<double> values_;
  std::vector<double> slots_;   // m, s, z
  std::vector<double> second_;  // v, n
  double row_slot_ = 0;
  int updates_ = 0;
};

class RowOptimizerTest : public ShardRowsTest, public ::testing::WithParamInterface<const char*> {
 protected:
  JobSpec Spec() const {
    JobSpec spec = SpecWith(GetParam());
    OptimizerSpec& optimizer = spec.embedding_tables[0].optimizer;
    if (optimizer.type != "ftrl") {
      optimizer.weight_decay = 0.05;
      optimizer.learning_rate.schedule = "linear";
    }
    optimizer.clip_value = 1.5;
    return spec;
  }
  // What clock `clock` pushes: some of the keys.
  std::pair<Keys, Floats> PushOf(const Keys& keys, std::uint64_t clock) const {
    std::mt19937 random(static_cast<unsigned>(clock));
    std::normal_distribution<float> normal;
    std::pair<Keys, Floats> push;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (random() % (i + 1) > 1) continue;  // some much rarer than others
      push.first.push_back(keys[i]);
      for (std::uint32_t k = 0; k < kWidth; ++k) push.second.push_back(normal(random));
    }
    return push;
  }
};

TEST_P(RowOptimizerTest, EachRowGoesTheWayOfTheFormulas) {
  const JobSpec spec = Spec();
  const JobRules rules = JobRules::Of(spec, kRecords);
  const OptimizerSpec& optimizer = spec.embedding_tables[0].optimizer;
  Shard shard = Make(rules);
  const Keys keys = KeysOfShard(layout_, 1, 20);
  const Floats initial = Pull(shard, keys);
  std::map<std::uint64_t, ReferenceRow> reference;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto row = initial.begin() + static_cast<std::ptrdiff_t>(i * kWidth);
    reference.emplace(keys[i], ReferenceRow(optimizer, Floats(row, row + kWidth)));
  }
  const LearningRate schedule(optimizer.learning_rate, spec.training.epochs, kRecords);
  for (std::uint64_t clock = 1; clock <= 150; ++clock) {
    const auto [pushed, gradient] = PushOf(keys, clock);
    const double rate = schedule.At(shard.samples_trained());
    for (std::size_t i = 0; i < pushed.size(); ++i) {
      const auto row = gradient.begin() + static_cast<std::ptrdiff_t>(i * kWidth);
      reference.at(pushed[i]).Update(rate, kSamples / 32.0, Floats(row, row + kWidth));
    }
    Push(shard, clock, pushed, gradient);
  }
  const Floats found = Pull(shard, keys);
  double moved = 0;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    for (std::uint32_t k = 0; k < kWidth; ++k) {
      const double expected = reference.at(keys[i]).values()[k];
      const float value = found[i * kWidth + k];
      EXPECT_NEAR(value, expected, 2e-5 * (1 + std::abs(expected))) << keys[i] << " " << k;
      moved = std::max(moved, std::abs(expected - double{initial[i * kWidth + k]}));
    }
  }
  EXPECT_GT(moved, 0.1);
}

TEST_P(RowOptimizerTest, ARestoredShardGoesOnBitForBitAsIfNothingHadHappened) {
  JobSpec spec = Spec();
  // Everything by which rows come and go.
  EmbeddingTableSpec& table = spec.embedding_tables[0];
  table.sightings = 2;
  table.sketch_mebibytes = 1;
  table.when_full = "lfu";
  JobRules rules = JobRules::Of(spec, kRecords);
  rules.rows[0].max_bytes =
      std::uint64_t{kShards} * 60 * (kRowOverheadBytes + sizeof(float) * 3 * kWidth);
  rules.rows[0].unused_max = 40;
  Shard unbroken = Make(rules);
  const Keys keys = KeysOfShard(layout_, 1, 150);
  for (std::uint64_t clock = 1; clock <= 120; ++clock) {
    const auto [pushed, gradient] = PushOf(keys, clock);
    Push(unbroken, clock, pushed, gradient, 900);
  }
  Shard restored = MakeRestoring(rules);
  const checkpoint::ShardImage image = ThroughDisk(Freeze(unbroken));
  const Status taken = restored.Restore(image, false);
  ASSERT_TRUE(taken.ok()) << taken.error().message;
  EXPECT_EQ(Freeze(restored).rows, image.rows);
  EXPECT_EQ(Pull(restored, keys), Pull(unbroken, keys));
  for (std::uint64_t clock = 121; clock <= 240; ++clock) {
    const auto [pushed, gradient] = PushOf(keys, clock);
    Push(unbroken, clock, pushed, gradient, 900);
    Push(restored, clock, pushed, gradient, 900);
  }
  checkpoint::ShardImage expected = Freeze(unbroken);
  const checkpoint::ShardImage found = Freeze(restored);
  EXPECT_EQ(found.rows, expected.rows);
  expected.epoch = found.epoch;
  expected.lineage = found.lineage;
  EXPECT_EQ(checkpoint::Digest(found), checkpoint::Digest(expected));
  EXPECT_GT(unbroken.rows().status(0).rejected, 100u);
  EXPECT_GT(unbroken.rows().status(0).expired, 10u);
}

TEST_P(RowOptimizerTest, ValuesAloneAreTakenWithFreshSlots) {
  // From a job with another optimizer, which has trained for some time.
  const JobRules others = JobRules::Of(SpecWith("adam"), kRecords);
  Shard other = Make(others);
  const Keys keys = KeysOfShard(layout_, 1, 20);
  for (std::uint64_t clock = 1; clock <= 60; ++clock) {
    const auto [pushed, gradient] = PushOf(keys, clock);
    Push(other, clock, pushed, gradient, 512);
  }
  const JobSpec spec = Spec();
  const JobRules rules = JobRules::Of(spec, kRecords);
  Shard shard = MakeRestoring(rules);
  const checkpoint::ShardImage image = Freeze(other);
  if (spec.embedding_tables[0].optimizer.type != "adam") {
    EXPECT_FALSE(shard.Restore(image, false).ok()) << "slots of another optimizer";
  }
  const Status taken = shard.Restore(image, true);
  ASSERT_TRUE(taken.ok()) << taken.error().message;
  const Floats values = Pull(shard, keys);
  EXPECT_EQ(values, Pull(other, keys));
  EXPECT_EQ(shard.version(), 0u);
  EXPECT_EQ(shard.rows().status(0).rows, other.rows().status(0).rows);
  // The first pushes are those of rows with initial slots: the bias correction of Adam, too.
  std::map<std::uint64_t, ReferenceRow> reference;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto row = values.begin() + static_cast<std::ptrdiff_t>(i * kWidth);
    reference.emplace(keys[i],
                      ReferenceRow(spec.embedding_tables[0].optimizer, Floats(row, row + kWidth)));
  }
  const LearningRate schedule(spec.embedding_tables[0].optimizer.learning_rate,
                              spec.training.epochs, kRecords);
  for (std::uint64_t clock = 1; clock <= 3; ++clock) {
    const Floats gradient(keys.size() * kWidth, 0.25F * static_cast<float>(clock));
    const double rate = schedule.At(shard.samples_trained());
    for (auto& [key, row] : reference) {
      row.Update(rate, kSamples / 32.0, Floats(gradient.begin(), gradient.begin() + kWidth));
    }
    Push(shard, clock, keys, gradient);
  }
  const Floats found = Pull(shard, keys);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    for (std::uint32_t k = 0; k < kWidth; ++k) {
      const double expected = reference.at(keys[i]).values()[k];
      EXPECT_NEAR(found[i * kWidth + k], expected, 1e-5 * (1 + std::abs(expected)));
    }
  }
}

// A frozen shard as a writer reads it, to which somebody does something before each piece.
class InterruptedSource : public checkpoint::ShardSource {
 public:
  InterruptedSource(const FrozenShard& frozen, std::function<void(bool copying)> interrupt)
      : frozen_(frozen), interrupt_(std::move(interrupt)) {}

  const checkpoint::ShardImage& head() const override { return frozen_.head(); }
  std::span<const std::uint8_t> sketch(std::size_t table) const override {
    return frozen_.sketch(table);
  }
  std::uint64_t rows(std::size_t table) const override {
    interrupt_(false);
    return frozen_.rows(table);
  }
  std::string EncodeBlock(std::size_t index) const override { return frozen_.EncodeBlock(index); }
  std::size_t row_groups(std::size_t table) const override {
    interrupt_(false);
    return frozen_.row_groups(table);
  }
  void VisitRows(std::size_t table, std::size_t group, const RowVisit& visit) const override {
    interrupt_(false);
    frozen_.VisitRows(table, group, visit);
    interrupt_(false);  // before what was found is copied
  }
  void CopyRow(std::size_t table, const checkpoint::SourceRow& row, std::byte* to) const override {
    if (++copied_ % 100 == 0) interrupt_(true);
    frozen_.CopyRow(table, row, to);
  }
  std::shared_ptr<const void> identity() const override { return frozen_.identity(); }
  std::uint64_t cut() const override { return frozen_.cut(); }
  bool BlockChanged(std::size_t index, std::uint64_t since) const override {
    return frozen_.BlockChanged(index, since);
  }
  bool GroupChanged(std::size_t table, std::size_t group, std::uint64_t since) const override {
    interrupt_(false);
    return frozen_.GroupChanged(table, group, since);
  }
  std::optional<std::vector<std::uint64_t>> Removed(std::size_t table,
                                                    std::uint64_t since) const override {
    interrupt_(false);
    return frozen_.Removed(table, since);
  }

 private:
  const FrozenShard& frozen_;
  const std::function<void(bool copying)> interrupt_;
  mutable std::size_t copied_ = 0;
};

// A row's values and slots are one record, made by one push and frozen at one instant. So there is
// no row whose values are of the freeze and whose slots are not, or are of nobody: neither in a
// whole round nor in one that holds what has changed.
TEST_P(RowOptimizerTest, RowsThatAppearWhileACheckpointIsWrittenLeaveNoSlotUninitialised) {
  constexpr std::size_t kAtOnce = 250;
  const JobRules rules = JobRules::Of(Spec(), kRecords);
  const Keys keys = KeysOfShard(layout_, 1, 12'000);
  // Each push makes new rows and updates older ones. The same clock is the same push everywhere.
  const auto push = [&](Shard& shard, std::uint64_t clock) {
    std::mt19937 random(static_cast<unsigned>(clock));
    std::normal_distribution<float> normal;
    Keys pushed;
    const std::size_t begin = (clock - 1) * kAtOnce;
    for (std::size_t i = 0; i < kAtOnce && begin + i < keys.size(); ++i) {
      pushed.push_back(keys[begin + i]);
      if (clock > 1) pushed.push_back(keys[random() % begin]);
    }
    std::sort(pushed.begin(), pushed.end());
    pushed.erase(std::unique(pushed.begin(), pushed.end()), pushed.end());
    Floats gradient(pushed.size() * kWidth);
    for (float& one : gradient) one = normal(random);
    Push(shard, clock, pushed, gradient);
  };
  // A shard of the first `clocks` pushes, to which nothing else ever happened.
  const auto undisturbed = [&](std::uint64_t clocks) {
    Shard shard = Make(rules);
    for (std::uint64_t clock = 1; clock <= clocks; ++clock) push(shard, clock);
    return Freeze(shard).rows;
  };

  Shard shard = Make(rules);
  std::uint64_t clock = 0;
  while (clock < 20) push(shard, ++clock);
  std::optional<checkpoint::ShardBase> base;
  checkpoint::ShardImage image;
  for (std::uint64_t round = 1; round <= 3; ++round) {
    const std::uint64_t cut = clock;
    const FrozenShard frozen = shard.Freeze(JobId(1), Round(round));
    std::size_t interrupted = 0;
    std::size_t while_copying = 0;
    const InterruptedSource source(frozen, [&](bool copying) {
      // Not all keys at once: there are more rounds, and what has changed must be less than half.
      if (copying ? ++while_copying <= 1 : ++interrupted <= 2) push(shard, ++clock);
    });
    const auto part = directory_ / ("ckpt-" + std::to_string(round)) / "p0";
    auto writer = checkpoint::Writer::Open(part, 0).value();
    base = writer.Add(source, base.has_value() ? &*base : nullptr).value();
    const auto written = writer.Finish().value();
    EXPECT_EQ(written.at(0).bases.size(), round - 1) << "only what has changed";
    ASSERT_GE(interrupted, 2u);
    ASSERT_GE(while_copying, 1u);
    const auto reader = checkpoint::Reader::Open(part).value();
    image = reader.ReadShard(ShardId(1), written.at(0).digest).value();
    EXPECT_EQ(image.rows, undisturbed(cut)) << "of round " << round;
    // It goes on from there as if it had been alone: rows that appeared are made anew, with slots.
    Shard restored = MakeRestoring(rules);
    ASSERT_TRUE(restored.Restore(image, false).ok());
    for (std::uint64_t again = cut + 1; again <= clock; ++again) push(restored, again);
    EXPECT_EQ(Freeze(restored).rows, Freeze(shard).rows) << "after round " << round;
  }
  EXPECT_GT(Freeze(shard).rows[0].rows(), image.rows[0].rows());
}

INSTANTIATE_TEST_SUITE_P(All, RowOptimizerTest,
                         ::testing::Values("sgd", "momentum", "nesterov", "adagrad",
                                           "rowwise_adagrad", "adam", "adamw", "ftrl"),
                         [](const auto& type) { return std::string(type.param); });

// ---- rules

TEST_F(ShardRowsTest, WhatAJobSaysOfAWholeTableIsDividedAmongItsShards) {
  JobSpec spec = SpecWith("adam");
  EmbeddingTableSpec& table = spec.embedding_tables[0];
  table.sightings = 3;
  table.sketch_mebibytes = 6;
  table.max_mebibytes = 12;
  table.unused_epochs = 0.5;
  table.when_full = "refuse";
  table.values = "fp32";
  const JobRules rules = JobRules::Of(spec, kRecords);
  ASSERT_EQ(rules.rows.size(), 1u);
  EXPECT_EQ(rules.rows[0].name, "users");
  EXPECT_EQ(rules.rows[0].values, wire::ValueCodec::Fp32);
  EXPECT_EQ(rules.rows[0].unused_max, kRecords / 2 / 1024);
  const RowTableRules one = rules.rows[0].OnShard(4);
  EXPECT_EQ(one.width, kWidth);
  EXPECT_EQ(one.initial_slots, Floats(2 * kWidth, 0.0F));
  EXPECT_EQ(one.sightings, 3u);
  EXPECT_EQ(one.sketch_bytes, std::size_t{6} << 18);
  EXPECT_EQ(one.rows_max, (std::uint64_t{12} << 18) / (24 + 4 * 3 * kWidth));
  EXPECT_EQ(one.when_full, RowsFull::kRefuse);
  EXPECT_EQ(rules.rows[0].OnShard(4096).sketch_bytes, 4096u);

  // However little there is, a shard has room for a row and time to keep it.
  table.max_mebibytes = 1;
  table.width = 1024;
  table.unused_epochs = 1e-9;
  EXPECT_EQ(JobRules::Of(spec, kRecords).rows[0].OnShard(4096).rows_max, 1u);
  EXPECT_EQ(JobRules::Of(spec, kRecords).rows[0].unused_max, 1u);
  table.max_mebibytes = 0;
  table.unused_epochs = 0;
  EXPECT_EQ(JobRules::Of(spec, kRecords).rows[0].OnShard(1).rows_max, 0u);
  EXPECT_EQ(JobRules::Of(spec, kRecords).rows[0].unused_max, 0u);
}

TEST_F(ShardRowsTest, RowsOf8BitsArePulledWithAScaleForEach) {
  JobSpec spec = SpecWith("sgd");
  spec.embedding_tables[0].values = "int8";
  const JobRules rules = JobRules::Of(spec, kRecords);
  Shard shard = Make(rules);
  const Keys keys = KeysOfShard(layout_, 1, 5);
  const Floats gradients = {1, -0.5F, 0.25F, 0.125F, 0, 100, 3, -7, 0.01F, 50};
  ASSERT_EQ(gradients.size(), 2 * kWidth);
  Push(layout_, shard, 1, PushedRows(0, {keys[0], keys[3]}, gradients, wire::ValueCodec::Int8));
  EXPECT_EQ(shard.rows().status(0).pushed, 2u);
  const Floats exact = Pull(shard, keys);
  const std::size_t fp32_bytes = last_bytes_;
  const Floats rough = Pull(shard, keys, false);
  EXPECT_EQ(fp32_bytes - last_bytes_, keys.size() * (4 * kWidth - 2 - kWidth));
  ASSERT_EQ(exact.size(), rough.size());
  for (std::size_t row = 0; row < keys.size(); ++row) {
    float greatest = 0;
    for (std::size_t i = 0; i < kWidth; ++i) {
      greatest = std::max(greatest, std::abs(exact[row * kWidth + i]));
    }
    for (std::size_t i = row * kWidth; i < (row + 1) * kWidth; ++i) {
      EXPECT_NEAR(rough[i], exact[i], greatest / 250) << i;
    }
  }
  // A row of another shard is refused, however it is written.
  SegmentContent content;
  const Bytes other =
      PushedRows(0, KeysOfShard(layout_, 0, 1), Floats(kWidth, 1.0F), wire::ValueCodec::Int8);
  EXPECT_FALSE(ParsePush(layout_, ShardId(1), other, content).ok());
}

TEST_F(ShardRowsTest, InitialValuesAreOfTheSeedTheTableAndTheKeyAlone) {
  JobSpec spec = SpecWith("sgd");
  const Keys keys = KeysOfShard(layout_, 1, 8);
  const JobRules rules = JobRules::Of(spec, kRecords);
  Shard one = Make(rules);
  Shard two = Make(rules, 1234);
  Push(two, 1, {keys[2]}, Floats(kWidth, 0));
  EXPECT_EQ(Pull(one, keys), Pull(two, keys)) << "made with a push of zeros";
  spec.training.seed = 18;
  const JobRules other_rules = JobRules::Of(spec, kRecords);
  Shard other = Make(other_rules);
  EXPECT_NE(Pull(one, keys), Pull(other, keys));
}

TEST_F(ShardRowsTest, RowsExpireBySamplesTrained) {
  JobSpec spec = SpecWith("sgd");
  spec.embedding_tables[0].unused_epochs = 0.8;  // 32 ticks of 1,024 samples
  const JobRules rules = JobRules::Of(spec, kRecords);
  Shard shard = Make(rules);
  const Keys keys = KeysOfShard(layout_, 1, 2);
  Push(shard, 1, keys, Floats(2 * kWidth, 1), 1024);
  std::uint64_t clock = 1;
  for (; clock < 20; ++clock) Push(shard, clock + 1, {keys[0]}, Floats(kWidth, 1), 1024);
  EXPECT_EQ(shard.rows().status(0).rows, 2u);
  // An empty push moves time and touches no table; the next one with rows does.
  for (; clock < 40; ++clock) Push(shard, clock + 1, {}, {}, 1024);
  EXPECT_EQ(shard.rows().status(0).rows, 2u);
  Push(shard, clock + 1, {keys[0]}, Floats(kWidth, 1), 1024);
  EXPECT_EQ(shard.rows().status(0).rows, 1u);
  EXPECT_EQ(shard.rows().status(0).expired, 1u);
}

// ---- images

TEST_F(ShardRowsTest, AnImageThatCannotBeIsRefusedAndTheShardGoesOnWaiting) {
  const JobRules rules = JobRules::Of(SpecWith("adagrad"), kRecords);
  Shard shard = Make(rules);
  const Keys keys = KeysOfShard(layout_, 1, 10);
  Push(shard, 1, keys, Floats(keys.size() * kWidth, 1));
  const checkpoint::ShardImage good = Freeze(shard);
  Shard waiting = MakeRestoring(rules);
  const auto refused = [&](auto change, const std::string& what) {
    checkpoint::ShardImage image = good;
    change(image);
    for (const bool values_only : {false, true}) {
      const Status restored = waiting.Restore(image, values_only);
      if (values_only && what == "another optimizer") continue;
      ASSERT_FALSE(restored.ok()) << what;
      EXPECT_EQ(restored.error().code, ErrorCode::kInvalid);
      EXPECT_NE(restored.error().message.find(what), std::string::npos) << restored.error().message;
      EXPECT_EQ(waiting.state(), wire::Code::Restoring);
    }
  };
  const auto set_float = [](checkpoint::ShardImage& image, std::size_t at, float value) {
    std::memcpy(image.rows[0].records.data() + at, &value, sizeof(value));
  };
  refused([](auto& image) { image.rows.clear(); }, "no blocks");
  refused(
      [](auto& image) {
        image.rows.push_back(image.rows[0]);
        image.rows[1].table = 1;
      },
      "2 tables of rows");
  refused([](auto& image) { image.rows[0].table = 1; }, "it is table 1");
  refused([](auto& image) { image.rows[0].width = kWidth + 1; }, "no whole number");
  refused(
      [](auto& image) {
        // Of rows with as many bytes.
        image.rows[0].width += 1;
        image.rows[0].slots -= 1;
      },
      "in its place");
  refused(
      [&](auto& image) {
        // A row of another shard, still in order.
        const std::uint64_t stranger = KeysOfShard(layout_, 0, 1, keys.back() + 1)[0];
        auto& records = image.rows[0].records;
        std::memcpy(records.data() + 9 * image.rows[0].record_bytes(), &stranger, 8);
      },
      "belongs on another shard");
  refused([&](auto& image) { set_float(image, 16 + 8, std::numeric_limits<float>::infinity()); },
          "no number");
  refused(
      [](auto& image) {
        auto& records = image.rows[0].records;
        std::copy_n(records.begin(), 8,
                    records.begin() + static_cast<std::ptrdiff_t>(image.rows[0].record_bytes()));
      },
      "stands after");
  refused([](auto& image) { image.rows[0].records.pop_back(); }, "no whole number");
  EXPECT_TRUE(waiting.Restore(good, false).ok());

  checkpoint::ShardImage momentum = good;
  momentum.rows[0].optimizer = static_cast<std::uint8_t>(OptimizerType::kMomentum);
  Shard other = MakeRestoring(rules);
  const Status restored = other.Restore(momentum, false);
  ASSERT_FALSE(restored.ok()) << "as many slots, but another's";
  EXPECT_NE(restored.error().message.find("another optimizer"), std::string::npos);
}

TEST_F(ShardRowsTest, AnImageIsTheSameWhateverTheOrderOfTheIndex) {
  const JobRules rules = JobRules::Of(SpecWith("adam"), kRecords);
  Shard one = Make(rules, 1);
  Shard two = Make(rules, 2);
  const Keys keys = KeysOfShard(layout_, 1, 3000);
  for (Shard* shard : {&one, &two}) {
    Push(*shard, 1, keys, Floats(keys.size() * kWidth, 0.5F));
  }
  EXPECT_EQ(checkpoint::Digest(Freeze(one)), checkpoint::Digest(Freeze(two)));
}

}  // namespace
}  // namespace ps::server
