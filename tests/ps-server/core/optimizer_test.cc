// Each optimizer against an independent reference in double precision, written from the papers and
// PyTorch's documentation and not from the kernels.
#include "ps-server/core/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "ps-server/core/dense_store.h"
#include "tests/ps-server/core/server_testing.h"

namespace ps::server {
namespace {

using testing::Bytes;
using testing::DenseBlock;
using testing::MakeLayout;
using testing::Parse;
using testing::SparseBlock;

constexpr int kSteps = 320;

// One parameter.
struct Reference {
  double w = 0;
  double first = 0;   // momentum buffer, sum of squares, exp_avg, z
  double second = 0;  // exp_avg_sq, n
  int steps = 0;

  Reference(const OptimizerRules& rules, double initial) : w(initial) {
    if (rules.type == OptimizerType::kAdagrad) first = rules.initial_accumulator;
    if (rules.type != OptimizerType::kFtrl) return;
    second = rules.initial_accumulator;
    // Solves the closed form of w for z.
    const double slope = (rules.beta + std::sqrt(second)) / rules.learning_rate + rules.l2;
    first = initial == 0 ? 0 : -initial * slope - (initial > 0 ? rules.l1 : -rules.l1);
  }

  void Step(const OptimizerRules& rules, double rate, double weight, double gradient) {
    ++steps;
    double g = gradient;
    if (rules.clip_value > 0) g = std::clamp(g, -rules.clip_value, rules.clip_value);
    const double lr = rate * weight;
    if (rules.type != OptimizerType::kFtrl) w *= 1 - lr * rules.weight_decay;
    switch (rules.type) {
      case OptimizerType::kSgd: w -= lr * g; break;
      case OptimizerType::kMomentum:
        first = rules.momentum * first + g;
        w -= lr * first;
        break;
      case OptimizerType::kNesterov:
        first = rules.momentum * first + g;
        w -= lr * (g + rules.momentum * first);
        break;
      case OptimizerType::kAdagrad:
      case OptimizerType::kRowwiseAdagrad:  // of a row of one element
        first += g * g;
        w -= lr * g / (std::sqrt(first) + rules.epsilon);
        break;
      case OptimizerType::kAdam:
      case OptimizerType::kAdamW: {
        first = rules.beta1 * first + (1 - rules.beta1) * g;
        second = rules.beta2 * second + (1 - rules.beta2) * g * g;
        const double mean = first / (1 - std::pow(rules.beta1, steps));
        const double square = second / (1 - std::pow(rules.beta2, steps));
        w -= lr * mean / (std::sqrt(square) + rules.epsilon);
        break;
      }
      case OptimizerType::kSparseAdam: break;  // has a test of its own
      case OptimizerType::kFtrl: {
        const double a = rules.learning_rate;
        const double scaled = g * weight;
        const double sigma = (std::sqrt(second + scaled * scaled) - std::sqrt(second)) / a;
        first += scaled - sigma * w;
        second += scaled * scaled;
        if (std::abs(first) <= rules.l1) {
          w = 0;
        } else {
          const double sign = first > 0 ? 1 : -1;
          w = -(first - sign * rules.l1) / ((rules.beta + std::sqrt(second)) / a + rules.l2);
        }
        break;
      }
    }
  }
};

class OptimizerTest : public ::testing::TestWithParam<OptimizerType> {
 protected:
  static constexpr std::uint32_t kFirst = 1000;
  static constexpr std::uint32_t kSecond = 37;

  OptimizerTest() {
    rules_.type = GetParam();
    rules_.learning_rate = 0.05;
    rules_.epsilon = GetParam() == OptimizerType::kAdagrad ? 1e-10 : 1e-8;
    rules_.clip_value = 2;
    if (GetParam() == OptimizerType::kAdamW || GetParam() == OptimizerType::kSgd) {
      rules_.weight_decay = 0.05;
    }
    if (GetParam() == OptimizerType::kFtrl) {
      rules_.l1 = 0.3;
      rules_.l2 = 0.01;
      rules_.initial_accumulator = 0.1;
    }
    for (std::uint32_t i = 0; i < kFirst + kSecond; ++i) {
      initial_.push_back(normal_(random_));
      reference_.emplace_back(rules_, initial_.back());
    }
  }

  // Different for each element and not zero on average, so that values travel.
  float Gradient(std::uint32_t element) {
    return normal_(random_) + 0.2f * std::sin(static_cast<float>(element));
  }
  // FTRL's rate never changes; the others' falls.
  double RateAt(int step) const {
    return GetParam() == OptimizerType::kFtrl ? rules_.learning_rate : 0.02 / (1 + 0.01 * step);
  }

  void ExpectClose(const std::vector<float>& values, int step) const {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double expected = reference_[i].w;
      ASSERT_NEAR(values[i], expected, 2e-5 + 1e-4 * std::abs(expected))
          << NameOf(GetParam()) << ": element " << i << " after step " << step;
    }
  }

  OptimizerRules rules_;
  std::mt19937 random_{17};
  std::normal_distribution<float> normal_;
  std::vector<float> initial_;
  std::vector<Reference> reference_;
  const LayoutView layout_ = MakeLayout({{TableRule::Sgd, {kFirst, kSecond}}}, 1);
};

TEST_P(OptimizerTest, DensePushesFollowTheReference) {
  const Optimizer optimizer(rules_);
  DenseStore store(layout_, 0, 2, StoreShape::Of(optimizer, /*sparse=*/false));
  store.Init(initial_, optimizer);
  for (int step = 1; step <= kSteps; ++step) {
    const double weight = step % 7 == 0 ? 0.5 : 1;
    std::vector<float> gradient;
    for (std::uint32_t i = 0; i < kFirst + kSecond; ++i) {
      gradient.push_back(Gradient(i));
      reference_[i].Step(rules_, RateAt(step), weight, gradient.back());
    }
    const auto middle = gradient.begin() + kFirst;
    const Bytes bytes = [&] {
      Bytes both = DenseBlock(0, std::vector<float>(gradient.begin(), middle));
      testing::operator+=(both, DenseBlock(1, std::vector<float>(middle, gradient.end())));
      return both;
    }();
    for (const codec::BlockView& block : Parse(layout_, bytes)) {
      store.Update(block, optimizer, optimizer.StepOf(RateAt(step), weight));
    }
    if (step % 40 == 0) ExpectClose(store.Values(), step);
  }
}

// Weight decay touches whole blocks, so it is left out: the elements have clocks of their own here.
TEST_P(OptimizerTest, SparsePushesFollowTheReferenceOfEachElement) {
  rules_.weight_decay = 0;
  const Optimizer optimizer(rules_);
  DenseStore store(layout_, 0, 2, StoreShape::Of(optimizer, /*sparse=*/true));
  store.Init(initial_, optimizer);
  for (int step = 1; step <= kSteps; ++step) {
    std::vector<std::uint16_t> indices;
    std::vector<float> gradient;
    for (std::uint32_t i = 0; i < kFirst; ++i) {
      // From each tenth to every step.
      if (std::uniform_real_distribution<>()(random_) > 0.1 + 0.9 * i / kFirst) continue;
      indices.push_back(static_cast<std::uint16_t>(i));
      gradient.push_back(Gradient(i));
      reference_[i].Step(rules_, RateAt(step), 1, gradient.back());
    }
    constexpr std::array kCodecs = {wire::IndexCodec::Gap8, wire::IndexCodec::Raw16,
                                    wire::IndexCodec::Rice, wire::IndexCodec::Bitmap};
    const auto codec = kCodecs[static_cast<std::size_t>(step) % kCodecs.size()];
    const Bytes bytes = SparseBlock(0, kFirst, indices, gradient, codec);
    store.Update(Parse(layout_, bytes)[0], optimizer, optimizer.StepOf(RateAt(step), 1));
    if (step % 40 == 0) ExpectClose(store.Values(), step);
  }
}

// What recipe A of sparsified training rests on: Adam without momentum, fed with zeros where
// nothing was pushed.
class SparseAdamTest : public ::testing::TestWithParam<bool> {};

TEST_P(SparseAdamTest, IsAdamWithoutMomentumFedWithZeros) {
  const bool sparse = GetParam();
  OptimizerRules rules;
  rules.type = OptimizerType::kSparseAdam;
  rules.beta2 = 0.99;
  rules.clip_value = 2;
  OptimizerRules adam = rules;
  adam.type = OptimizerType::kAdam;
  adam.beta1 = 0;
  const Optimizer optimizer(rules);
  constexpr std::uint32_t kFirst = 1000;
  constexpr std::uint32_t kSecond = 37;
  const LayoutView layout = MakeLayout({{TableRule::Sgd, {kFirst, kSecond}}}, 1);
  DenseStore store(layout, 0, 2, StoreShape::Of(optimizer, sparse));
  std::mt19937 random(23);
  std::normal_distribution<float> normal;
  std::vector<float> initial(kFirst + kSecond);
  std::vector<Reference> reference;
  for (float& value : initial) {
    value = normal(random);
    reference.emplace_back(adam, value);
  }
  store.Init(initial, optimizer);
  for (std::uint64_t step = 1; step <= 4 * kSteps; ++step) {
    const double weight = step % 7 == 0 ? 0.5 : 1;
    const double rate = 0.02 / (1 + 0.01 * static_cast<double>(step));
    std::vector<float> gradient(initial.size(), 0.0f);
    Bytes bytes;
    std::vector<std::uint16_t> indices;
    std::vector<float> pushed;
    for (std::uint32_t i = 0; i < kFirst; ++i) {
      // From one in a hundred to every step; dense pushes leave out all or nothing.
      const double density = sparse ? 0.01 + 0.99 * i / kFirst : 1;
      if (std::uniform_real_distribution<>()(random) > density) continue;
      indices.push_back(static_cast<std::uint16_t>(i));
      pushed.push_back(gradient[i] = normal(random));
    }
    bytes = sparse ? SparseBlock(0, kFirst, indices, pushed, wire::IndexCodec::Gap8)
                   : DenseBlock(0, pushed);
    if (step % 50 == 0) {  // the second block is dense and pushed rarely
      std::vector<float> dense(kSecond);
      for (std::uint32_t i = 0; i < kSecond; ++i) dense[i] = gradient[kFirst + i] = normal(random);
      testing::operator+=(bytes, DenseBlock(1, dense));
    }
    for (std::size_t i = 0; i < reference.size(); ++i) {
      reference[i].Step(adam, rate, weight, gradient[i]);
    }
    for (const codec::BlockView& block : Parse(layout, bytes)) {
      store.Update(block, optimizer, optimizer.StepOf(rate, weight, step));
    }
    if (step % 40 != 0) continue;
    const std::vector<float> values = store.Values();
    for (std::size_t i = 0; i < values.size(); ++i) {
      ASSERT_NEAR(values[i], reference[i].w, 2e-5 + 1e-4 * std::abs(reference[i].w))
          << "element " << i << " after step " << step;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, SparseAdamTest, ::testing::Bool(),
                         [](const auto& sparse) { return sparse.param ? "Records" : "Arrays"; });

TEST(SparseAdamTicksTest, AgeAndTickGoOnBeyond32Bits) {
  OptimizerRules rules;
  rules.type = OptimizerType::kSparseAdam;
  rules.epsilon = 1e-30;
  const Optimizer optimizer(rules);
  const LayoutView layout = MakeLayout({{TableRule::Sgd, {2}}}, 1);
  DenseStore store(layout, 0, 1, StoreShape::Of(optimizer, /*sparse=*/true));
  store.Init({0, 0}, optimizer);
  const Bytes bytes = SparseBlock(0, 2, {1}, {3.0f});
  const std::uint64_t wrap = std::uint64_t{1} << 32;
  store.Update(Parse(layout, bytes)[0], optimizer, optimizer.StepOf(1, 1, wrap - 1));
  const float first = store.Values()[1];
  // v = 0.001 * 9, and no bias is left: a step of 1 / sqrt(0.001).
  EXPECT_NEAR(first, -1 / std::sqrt(0.001), 1e-3);
  store.Update(Parse(layout, bytes)[0], optimizer, optimizer.StepOf(1, 1, wrap + 1));
  // Two pushes later: v = 0.999^2 v + 0.001 * 9.
  EXPECT_NEAR(store.Values()[1] - first, -1 / std::sqrt(0.001 * (1 + 0.998001)), 1e-3);
  EXPECT_EQ(store.Values()[0], 0);
}

TEST_P(OptimizerTest, RowsFollowTheReference) {
  const Optimizer optimizer(rules_);
  constexpr std::uint32_t kWidth = 37;
  std::vector<float> row(initial_.begin(), initial_.begin() + kWidth);
  std::vector<float> slots(optimizer.RowSlots(kWidth), std::nanf(""));
  optimizer.InitRowSlots(row.data(), slots.data(), kWidth);
  std::vector<float> gradient(kWidth);
  for (int step = 1; step <= kSteps; ++step) {
    for (std::uint32_t i = 0; i < kWidth; ++i) {
      gradient[i] = Gradient(i);
      reference_[i].Step(rules_, RateAt(step), 1, gradient[i]);
    }
    optimizer.ApplyRow(optimizer.StepOf(RateAt(step), 1), static_cast<std::uint64_t>(step),
                       row.data(), slots.data(), gradient.data(), kWidth);
  }
  ExpectClose(row, kSteps);
}

INSTANTIATE_TEST_SUITE_P(Types, OptimizerTest,
                         ::testing::Values(OptimizerType::kSgd, OptimizerType::kMomentum,
                                           OptimizerType::kNesterov, OptimizerType::kAdagrad,
                                           OptimizerType::kAdam, OptimizerType::kAdamW,
                                           OptimizerType::kFtrl),
                         [](const auto& one) { return std::string(NameOf(one.param)); });

TEST(OptimizerRulesTest, RowwiseAdagradSharesOneSumOfMeanSquares) {
  OptimizerRules rules;
  rules.type = OptimizerType::kRowwiseAdagrad;
  rules.epsilon = 1e-8;
  rules.initial_accumulator = 0.5;
  const Optimizer optimizer(rules);
  constexpr std::uint32_t kWidth = 50;
  ASSERT_EQ(optimizer.RowSlots(kWidth), 1u);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> row(kWidth, 1.0f);
  std::vector<double> expected(kWidth, 1.0);
  double sum = 0.5;
  float slot = -1;
  optimizer.InitRowSlots(row.data(), &slot, kWidth);
  std::vector<float> gradient(kWidth);
  for (int step = 1; step <= kSteps; ++step) {
    double squares = 0;
    for (float& g : gradient) {
      g = normal(random);
      squares += static_cast<double>(g) * g;
    }
    sum += squares / kWidth;
    for (std::uint32_t i = 0; i < kWidth; ++i) {
      expected[i] -= 0.1 * gradient[i] / (std::sqrt(sum) + 1e-8);
    }
    optimizer.ApplyRow(optimizer.StepOf(0.1, 1), 0, row.data(), &slot, gradient.data(), kWidth);
  }
  EXPECT_NEAR(slot, sum, 1e-3);
  for (std::uint32_t i = 0; i < kWidth; ++i) EXPECT_NEAR(row[i], expected[i], 1e-4);
}

// With a count shared by the block, the first gradient of an element that waited for 500 pushes
// would be scaled as if its averages were full: its step would be a third of the rate.
TEST(OptimizerRulesTest, AdamCorrectsARarelyTouchedEntryByItsOwnUpdates) {
  OptimizerRules rules;
  rules.type = OptimizerType::kAdam;
  const Optimizer optimizer(rules);
  const LayoutView layout = MakeLayout({{TableRule::Sgd, {100}}}, 1);
  DenseStore store(layout, 0, 1, StoreShape::Of(optimizer, /*sparse=*/true));
  store.Init(std::vector<float>(100, 0.0f), optimizer);
  for (int push = 0; push < 500; ++push) {
    const Bytes bytes = SparseBlock(0, 100, {3}, {1});
    store.Update(Parse(layout, bytes)[0], optimizer, optimizer.StepOf(0.01, 1));
  }
  const Bytes bytes = SparseBlock(0, 100, {3, 50}, {1, -0.25});
  store.Update(Parse(layout, bytes)[0], optimizer, optimizer.StepOf(0.01, 1));
  const std::vector<float> values = store.Values();
  EXPECT_NEAR(values[50], 0.01, 1e-6);
  EXPECT_NEAR(values[3], -5.01, 1e-3);
  EXPECT_EQ(values[51], 0);
}

TEST(OptimizerRulesTest, AdamCorrectsLongAfterItsTableEnds) {
  OptimizerRules rules;
  rules.type = OptimizerType::kAdam;
  rules.beta1 = 0.5;
  rules.beta2 = 0.9;
  const Optimizer optimizer(rules);
  float value = 0;
  float slots[2] = {0.5f, 0.25f};
  const float gradient = 0.5f;
  optimizer.ApplyRow(optimizer.StepOf(0.125, 1), 1'000'000'000'000, &value, slots, &gradient, 1);
  EXPECT_NEAR(value, -0.125, 1e-6);
}

TEST(OptimizerRulesTest, FtrlKeepsInitialValuesUntilTheirFirstGradient) {
  OptimizerRules rules;
  rules.type = OptimizerType::kFtrl;
  rules.l1 = 0.1;
  rules.l2 = 0.5;
  const Optimizer optimizer(rules);
  float values[3] = {0.75f, -0.5f, 0};
  float slots[6];
  optimizer.InitRowSlots(values, slots, 3);
  const float gradient[3] = {0, 0, 0};
  optimizer.ApplyRow(optimizer.StepOf(0.05, 1), 0, values, slots, gradient, 3);
  EXPECT_NEAR(values[0], 0.75, 1e-6);
  EXPECT_NEAR(values[1], -0.5, 1e-6);
  EXPECT_EQ(values[2], 0);
}

TEST(OptimizerRulesTest, NamesAreThoseOfTheJobFile) {
  for (std::uint8_t number = 0; number <= static_cast<std::uint8_t>(OptimizerType::kFtrl);
       ++number) {
    const auto type = static_cast<OptimizerType>(number);
    EXPECT_EQ(OptimizerTypeOf(NameOf(type)), type);
  }
  OptimizerSpec spec;
  EXPECT_EQ(OptimizerRulesOf(spec).type, OptimizerType::kSgd) << "the workers have the momentum";
  spec.type = "adamw";
  spec.beta2 = 0.95;
  EXPECT_EQ(OptimizerRulesOf(spec).type, OptimizerType::kAdamW);
  EXPECT_EQ(OptimizerRulesOf(spec).beta2, 0.95);
}

}  // namespace
}  // namespace ps::server
