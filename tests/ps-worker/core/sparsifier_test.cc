#include "ps-worker/core/sparsifier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>

namespace ps::worker {
namespace {

using ::testing::HasSubstr;
using Values = std::vector<float>;

constexpr std::size_t kSelected = 3 * 65536 + 1000;
constexpr std::size_t kSmall = 50;

// Four blocks of large tensors, one of small ones, and a buffer table, in three shards.
LayoutView Layout(std::vector<std::uint32_t> blocks = {65536, 65536, 65536, 1000, kSmall}) {
  control::LayoutT layout;
  layout.tables.push_back(std::make_unique<control::TableInfoT>());
  layout.tables.push_back(std::make_unique<control::TableInfoT>());
  control::TableInfoT& parameters = *layout.tables[0];
  for (const std::uint32_t elements : blocks) parameters.elements += elements;
  parameters.block_elements = std::move(blocks);
  control::TableInfoT& buffers = *layout.tables[1];
  buffers.rule = TableRule::Average;
  buffers.first_block = static_cast<std::uint32_t>(parameters.block_elements.size());
  buffers.block_elements = {8};
  buffers.elements = 8;
  layout.blocks = buffers.first_block + 1;
  auto view = LayoutView::Create(layout, std::min(3u, layout.blocks));
  EXPECT_TRUE(view.ok());
  return std::move(view).value();
}

SparsifierOptions Sgd(wire::ValueCodec codec = wire::ValueCodec::Fp32) {
  SparsifierOptions options;
  options.rule = AccumulationRule::kPlain;
  options.value_codec = codec;
  return options;
}

SparsifierOptions Nesterov(wire::ValueCodec codec = wire::ValueCodec::Fp32) {
  SparsifierOptions options;
  options.momentum = 0.5f;  // exact in binary
  options.value_codec = codec;
  return options;
}

// What servers would hold: every shard is encoded and its values are added up.
class Receiver {
 public:
  explicit Receiver(const LayoutView& layout, std::size_t elements)
      : layout_(layout), sum(elements), last(elements), touched(elements) {}

  std::vector<std::vector<std::byte>> Take(Sparsifier& sparsifier) {
    std::fill(last.begin(), last.end(), 0.0f);
    std::fill(touched.begin(), touched.end(), false);
    bytes = 0;
    std::vector<std::vector<std::byte>> segments;
    const std::size_t bound = sparsifier.MaxBytes();
    for (std::uint32_t shard = 0; shard < layout_.shard_count(); ++shard) {
      std::vector<std::byte> segment(sparsifier.MaxShardBytes(ShardId(shard)));
      segment.resize(sparsifier.EncodeShard(ShardId(shard), segment.data(), segment.size()));
      bytes += segment.size();
      Apply(ShardId(shard), segment);
      segments.push_back(std::move(segment));
    }
    EXPECT_LE(bytes, bound);
    return segments;
  }

  void Apply(ShardId shard, const std::vector<std::byte>& segment) {
    std::vector<codec::BlockView> blocks;
    const auto elements_of = [this, shard](std::uint32_t block) {
      return block >= layout_.shard_first_block(shard) && block < layout_.shard_last_block(shard)
                 ? layout_.block(block).elements
                 : 0;
    };
    const Status status = codec::ParseSegment(segment, elements_of, blocks);
    ASSERT_TRUE(status.ok()) << status.error().message;
    std::vector<std::uint16_t> indices;
    Values values;
    for (const codec::BlockView& block : blocks) {
      codec::DecodeIndices(block, indices);
      codec::DecodeValues(block, values);
      for (std::size_t i = 0; i < indices.size(); ++i) {
        const std::size_t at = layout_.block(block.header.block()).table_offset + indices[i];
        sum[at] += values[i];
        last[at] = values[i];
        touched[at] = true;
      }
    }
  }

  std::size_t TouchedIn(std::size_t begin, std::size_t end) const {
    return static_cast<std::size_t>(std::count(touched.begin() + static_cast<long>(begin),
                                               touched.begin() + static_cast<long>(end), true));
  }

 private:
  const LayoutView layout_;

 public:
  Values sum;
  Values last;  // of the last step
  std::vector<bool> touched;
  std::size_t bytes = 0;
};

Values Gaussian(std::mt19937& random, std::size_t count) {
  std::normal_distribution<float> normal;
  Values values(count);
  for (float& value : values) value = normal(random);
  return values;
}

// Small whole numbers: their sums are exact in fp32.
Values WholeNumbers(std::mt19937& random, std::size_t count) {
  Values values(count);
  for (float& value : values) value = static_cast<float>(static_cast<int>(random() % 201) - 100);
  return values;
}

TEST(SparsifierTest, WhatWasSentAndTheResidualAreExactlyWhatWasAccumulated) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Sgd());
  Receiver receiver(layout, sparsifier.elements());
  Values accumulated(sparsifier.elements());
  std::mt19937 random(1);
  for (int step = 0; step < 20; ++step) {
    const Values gradient = WholeNumbers(random, sparsifier.elements());
    for (std::size_t i = 0; i < gradient.size(); ++i) accumulated[i] += gradient[i];
    ASSERT_TRUE(sparsifier.Step(gradient, 0.01).ok());
    receiver.Take(sparsifier);
  }
  for (std::size_t i = 0; i < accumulated.size(); ++i) {
    ASSERT_EQ(receiver.sum[i] + sparsifier.residual()[i], accumulated[i]) << i;
  }
}

TEST(SparsifierTest, RoundingOfBf16StaysInTheResidualOfSparseAndDenseBlocks) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Sgd(wire::ValueCodec::Bf16));
  Receiver receiver(layout, sparsifier.elements());
  std::vector<double> accumulated(sparsifier.elements());
  std::mt19937 random(2);
  for (int step = 0; step < 20; ++step) {
    const Values gradient = Gaussian(random, sparsifier.elements());
    for (std::size_t i = 0; i < gradient.size(); ++i) accumulated[i] += gradient[i];
    ASSERT_TRUE(sparsifier.Step(gradient, step % 2 == 0 ? 0.05 : 1.0).ok());
    receiver.Take(sparsifier);
  }
  for (std::size_t i = 0; i < accumulated.size(); ++i) {
    ASSERT_NEAR(receiver.sum[i] + sparsifier.residual()[i], accumulated[i], 1e-4) << i;
    // After a dense step nothing but rounding is left.
    ASSERT_LT(std::abs(sparsifier.residual()[i]), 0.1) << i;
  }
}

// What the value codec loses stays in the residual as well.
TEST(SparsifierTest, ErrorOfEveryValueCodecStaysInTheResidual) {
  const LayoutView layout = Layout();
  for (const wire::ValueCodec codec : {wire::ValueCodec::Int8, wire::ValueCodec::Bits4,
                                       wire::ValueCodec::Bits2, wire::ValueCodec::Bits1}) {
    for (const double ratio : {0.01, 1.0}) {
      Sparsifier sparsifier(layout, 0, kSelected, Sgd(codec));
      Receiver receiver(layout, sparsifier.elements());
      std::vector<double> accumulated(sparsifier.elements());
      std::mt19937 random(2);
      for (int step = 0; step < 20; ++step) {
        const Values gradient = Gaussian(random, sparsifier.elements());
        for (std::size_t i = 0; i < gradient.size(); ++i) accumulated[i] += gradient[i];
        ASSERT_TRUE(sparsifier.Step(gradient, ratio).ok());
        receiver.Take(sparsifier);
      }
      double residual = 0;
      for (std::size_t i = 0; i < accumulated.size(); ++i) {
        ASSERT_NEAR(receiver.sum[i] + sparsifier.residual()[i], accumulated[i], 1e-4)
            << i << ", codec " << static_cast<int>(codec);
        // Small tensors are rounded to bf16 only.
        if (i >= kSelected) {
          ASSERT_LT(std::abs(sparsifier.residual()[i]), 0.05) << i;
        }
        residual += double{sparsifier.residual()[i]} * sparsifier.residual()[i];
      }
      // It does not grow with the steps: they bring a sum of squares of 1 per element each.
      if (ratio == 1.0) {
        EXPECT_LT(residual, 3.0 * kSelected) << "codec " << static_cast<int>(codec);
      }
      sparsifier.Flush();
      receiver.Take(sparsifier);
      for (std::size_t i = 0; i < accumulated.size(); ++i) {
        ASSERT_EQ(sparsifier.residual()[i], 0.0f);
        ASSERT_NEAR(receiver.sum[i], accumulated[i], 1e-4);
      }
    }
  }
}

TEST(SparsifierTest, QuantisedPushThatIsTakenBackIsInTheResidualAgain) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Sgd(wire::ValueCodec::Bits2));
  std::mt19937 random(21);
  const Values gradient = Gaussian(random, sparsifier.elements());
  ASSERT_TRUE(sparsifier.Step(gradient, 0.01).ok());
  Receiver receiver(layout, sparsifier.elements());
  for (const auto& segment : receiver.Take(sparsifier)) {
    ASSERT_TRUE(sparsifier.TakeBack(segment).ok());
  }
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    ASSERT_NEAR(sparsifier.residual()[i], gradient[i], 1e-6);
  }
}

TEST(SparsifierTest, WithoutErrorFeedbackMostOfTheGradientWouldBeLost) {
  // The control for the two tests above: the same sum without the residual is far off.
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Sgd());
  std::mt19937 random(3);
  const Values gradient = Gaussian(random, sparsifier.elements());
  Receiver feedback(layout, sparsifier.elements());
  Receiver forgetful(layout, sparsifier.elements());
  constexpr int kSteps = 200;
  for (int step = 0; step < kSteps; ++step) {
    ASSERT_TRUE(sparsifier.Step(gradient, 0.01).ok());
    feedback.Take(sparsifier);
    Sparsifier fresh(layout, 0, kSelected, Sgd());
    ASSERT_TRUE(fresh.Step(gradient, 0.01).ok());
    forgetful.Take(fresh);
  }
  double error = 0;
  double error_of_forgetful = 0;
  for (std::size_t i = 0; i < kSelected; ++i) {
    error += std::abs(feedback.sum[i] / kSteps - gradient[i]);
    error_of_forgetful += std::abs(forgetful.sum[i] / kSteps - gradient[i]);
  }
  EXPECT_LT(error, 0.6 * kSelected);
  EXPECT_GT(error_of_forgetful, 0.75 * kSelected);
  EXPECT_LT(error, 0.7 * error_of_forgetful);
}

TEST(SparsifierTest, DensityIsOnAverageWithinThreePercentOfTheRatio) {
  const LayoutView layout = Layout();
  for (const double ratio : {0.002, 0.01, 0.05, 0.25}) {
    Sparsifier sparsifier(layout, 0, kSelected, Nesterov(wire::ValueCodec::Bf16));
    Receiver receiver(layout, sparsifier.elements());
    std::mt19937 random(4);
    double selected = 0;
    constexpr int kSteps = 40;
    for (int step = 0; step < kSteps; ++step) {
      ASSERT_TRUE(sparsifier.Step(Gaussian(random, sparsifier.elements()), ratio).ok());
      const double entries = static_cast<double>(sparsifier.entries() - kSmall);
      receiver.Take(sparsifier);
      EXPECT_EQ(receiver.TouchedIn(0, kSelected), entries);
      EXPECT_GE(entries, 0.8 * ratio * kSelected);
      EXPECT_LE(entries, 1.3 * ratio * kSelected);
      selected += entries;
    }
    const double realised = selected / kSteps / (ratio * kSelected);
    EXPECT_GT(realised, 0.98) << ratio;
    EXPECT_LT(realised, 1.03) << ratio;
  }
}

// Whatever the sample makes of them.
TEST(SparsifierTest, NumberOfEntriesIsNeverFarFromTheRatio) {
  const LayoutView layout = Layout();
  std::mt19937 random(41);
  std::normal_distribution<float> normal;
  std::cauchy_distribution<float> heavy;
  const std::size_t all = kSelected + kSmall;
  const auto gradient = [&](int kind, int step) {
    Values values(all);
    for (std::size_t i = 0; i < all; ++i) {
      switch (kind) {
        case 0: values[i] = heavy(random); break;
        // Only some lines of 16 have anything: few of them are in the sample.
        case 1: values[i] = i / 16 % 61 == 0 ? normal(random) : 1e-3f * normal(random); break;
        // One block after the other is the one that counts.
        case 2: values[i] = static_cast<int>(i >> 16) == step % 4 ? normal(random) : 0; break;
        // Whole numbers, many of them equal.
        case 3: values[i] = static_cast<float>(random() % 3); break;
        // Each step is a thousand times as large as the one before, or as small.
        default: values[i] = normal(random) * std::pow(1000.0f, static_cast<float>(step % 5 - 2));
      }
    }
    return values;
  };
  for (int kind = 0; kind < 5; ++kind) {
    for (const double ratio : {0.001, 0.01, 0.1}) {
      Sparsifier sparsifier(layout, 0, kSelected, Nesterov(wire::ValueCodec::Bits2));
      Receiver receiver(layout, all);
      for (int step = 0; step < 15; ++step) {
        ASSERT_TRUE(sparsifier.Step(gradient(kind, step), ratio).ok());
        const auto entries = static_cast<double>(sparsifier.entries() - kSmall);
        receiver.Take(sparsifier);
        EXPECT_GE(entries, 0.8 * ratio * kSelected - 1) << kind << " " << ratio << " " << step;
        EXPECT_LE(entries, 1.3 * ratio * kSelected + 1) << kind << " " << ratio << " " << step;
      }
    }
  }
}

TEST(SparsifierTest, LargestMagnitudesAreTheOnesThatAreSent) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Sgd());
  Receiver receiver(layout, sparsifier.elements());
  std::mt19937 random(5);
  const Values gradient = Gaussian(random, sparsifier.elements());
  ASSERT_TRUE(sparsifier.Step(gradient, 0.01).ok());
  receiver.Take(sparsifier);
  float smallest_sent = std::numeric_limits<float>::max();
  float largest_kept = 0;
  for (std::size_t i = 0; i < kSelected; ++i) {
    if (receiver.touched[i]) {
      smallest_sent = std::min(smallest_sent, std::abs(gradient[i]));
      EXPECT_EQ(receiver.last[i], gradient[i]);
      EXPECT_EQ(sparsifier.residual()[i], 0.0f);
    } else {
      largest_kept = std::max(largest_kept, std::abs(gradient[i]));
    }
  }
  EXPECT_GE(smallest_sent, largest_kept);
}

TEST(SparsifierTest, ManyEqualValuesAreTrimmedToTheRatio) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Sgd());
  ASSERT_TRUE(sparsifier.Step(Values(sparsifier.elements(), 1.0f), 0.01).ok());
  EXPECT_NEAR(static_cast<double>(sparsifier.entries() - kSmall), 0.01 * kSelected,
              0.02 * 0.01 * kSelected);
}

TEST(SparsifierTest, GradientOfZerosSelectsNothingInTheSelectedRegion) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Sgd());
  ASSERT_TRUE(sparsifier.Step(Values(sparsifier.elements()), 0.01).ok());
  EXPECT_EQ(sparsifier.entries(), kSmall);
  EXPECT_EQ(sparsifier.MaxShardBytes(ShardId(0)), 0u);
}

TEST(SparsifierTest, FewEntriesThatAreNotZeroAreAllFound) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Sgd());
  Receiver receiver(layout, sparsifier.elements());
  Values gradient(sparsifier.elements());
  for (std::size_t i = 77; i < kSelected; i += 9973) gradient[i] = 1e-30f;
  ASSERT_TRUE(sparsifier.Step(gradient, 0.01).ok());
  receiver.Take(sparsifier);
  for (std::size_t i = 0; i < kSelected; ++i) ASSERT_EQ(receiver.touched[i], gradient[i] != 0);
}

TEST(SparsifierTest, MomentumOfSentEntriesIsMaskedAndOfKeptOnesGoesOn) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Nesterov());
  Receiver receiver(layout, sparsifier.elements());
  std::mt19937 random(6);
  const Values gradient = WholeNumbers(random, sparsifier.elements());
  ASSERT_TRUE(sparsifier.Step(gradient, 0.01).ok());
  receiver.Take(sparsifier);
  for (std::size_t i = 0; i < kSelected; ++i) {
    // u = g, v = m u + g = 1.5 g
    ASSERT_EQ(sparsifier.momentum()[i], receiver.touched[i] ? 0.0f : gradient[i]);
    ASSERT_EQ(receiver.last[i] + sparsifier.residual()[i], 1.5f * gradient[i]);
  }
  const std::vector<bool> touched = receiver.touched;
  ASSERT_TRUE(sparsifier.Step(gradient, 0.01).ok());
  receiver.Take(sparsifier);
  for (std::size_t i = 0; i < kSelected; ++i) {
    const float before = touched[i] ? 0.0f : gradient[i];
    ASSERT_EQ(sparsifier.momentum()[i], receiver.touched[i] ? 0.0f : 0.5f * before + gradient[i]);
  }
}

TEST(SparsifierTest, RatioOneIsPlainNesterovWithoutMasking) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Nesterov());
  Receiver receiver(layout, sparsifier.elements());
  Values momentum(sparsifier.elements());
  std::mt19937 random(7);
  for (int step = 0; step < 5; ++step) {
    const Values gradient = Gaussian(random, sparsifier.elements());
    ASSERT_TRUE(sparsifier.Step(gradient, 1.0).ok());
    receiver.Take(sparsifier);
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      momentum[i] = 0.5f * momentum[i] + gradient[i];
      ASSERT_EQ(receiver.last[i], 0.5f * momentum[i] + gradient[i]) << step << " " << i;
      ASSERT_EQ(sparsifier.residual()[i], 0.0f);
    }
  }
}

TEST(SparsifierTest, SmallTensorsAreDenseWithPlainNesterovAtEveryRatio) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Nesterov());
  Receiver receiver(layout, sparsifier.elements());
  Values momentum(sparsifier.elements());
  std::mt19937 random(8);
  for (int step = 0; step < 5; ++step) {
    const Values gradient = Gaussian(random, sparsifier.elements());
    ASSERT_TRUE(sparsifier.Step(gradient, 0.01).ok());
    receiver.Take(sparsifier);
    for (std::size_t i = kSelected; i < gradient.size(); ++i) {
      momentum[i] = 0.5f * momentum[i] + gradient[i];
      ASSERT_EQ(receiver.last[i], 0.5f * momentum[i] + gradient[i]);
    }
  }
}

// Adam as it is known, in double.
class KnownAdam {
 public:
  KnownAdam(double beta1, std::size_t elements) : beta1_(beta1), m_(elements), s_(elements) {}

  void Add(const Values& gradient, std::vector<double>& sum) {
    ++t_;
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      const double g = gradient[i];
      m_[i] = beta1_ * m_[i] + (1 - beta1_) * g;
      s_[i] = 0.999 * s_[i] + 0.001 * g * g;
      sum[i] += m_[i] / (1 - std::pow(beta1_, t_)) /
                (std::sqrt(s_[i] / (1 - std::pow(0.999, t_))) + 1e-8);
    }
  }

 private:
  const double beta1_;
  int t_ = 0;
  std::vector<double> m_;
  std::vector<double> s_;
};

TEST(SparsifierTest, AdamsStepsAreWhatIsSentAndWhatWaits) {
  const auto layout = Layout();
  for (const double beta1 : {0.0, 0.9}) {
    for (const double ratio : {0.01, 1.0}) {
      SparsifierOptions options = Sgd();
      options.rule = AccumulationRule::kAdam;
      options.beta1 = beta1;
      Sparsifier sparsifier(layout, 0, kSelected, options);
      Receiver receiver(layout, kSelected + kSmall);
      KnownAdam known(beta1, kSelected + kSmall);
      std::vector<double> expected(kSelected + kSmall);
      std::mt19937 random(31);
      for (int step = 0; step < 20; ++step) {
        const Values gradient = Gaussian(random, kSelected + kSmall);
        known.Add(gradient, expected);
        ASSERT_TRUE(sparsifier.Step(gradient, ratio).ok());
        receiver.Take(sparsifier);
        const std::size_t sent = receiver.TouchedIn(0, kSelected);
        EXPECT_NEAR(static_cast<double>(sent), ratio * kSelected, 0.3 * ratio * kSelected) << step;
      }
      for (std::size_t i = 0; i < expected.size(); ++i) {
        const double got = double{receiver.sum[i]} + double{sparsifier.residual()[i]};
        ASSERT_NEAR(got, expected[i], 1e-4 * (1 + std::abs(expected[i]))) << i << " " << beta1;
      }
    }
  }
}

SparsifierOptions OfRule(AccumulationRule rule) {
  SparsifierOptions options = Nesterov();
  options.rule = rule;
  options.beta1 = 0.5;
  return options;
}

TEST(SparsifierTest, OneLocalStepIsAStep) {
  const auto layout = Layout();
  for (const auto rule :
       {AccumulationRule::kPlain, AccumulationRule::kNesterov, AccumulationRule::kAdam}) {
    for (const double ratio : {0.01, 1.0}) {
      Sparsifier one(layout, 0, kSelected, OfRule(rule));
      Sparsifier other(layout, 0, kSelected, OfRule(rule));
      Receiver of_one(layout, kSelected + kSmall);
      Receiver of_other(layout, kSelected + kSmall);
      Values parameters(kSelected + kSmall);
      std::mt19937 random(7);
      for (int step = 0; step < 5; ++step) {
        const Values gradient = Gaussian(random, kSelected + kSmall);
        ASSERT_TRUE(one.Step(gradient, ratio).ok());
        ASSERT_TRUE(other.AddLocalStep(gradient, 1, 0.5f, parameters).ok());
        other.Select(ratio);
        EXPECT_EQ(of_one.Take(one), of_other.Take(other));
      }
      EXPECT_TRUE(
          std::equal(one.residual().begin(), one.residual().end(), other.residual().begin()));
    }
  }
}

TEST(SparsifierTest, LocalStepsMoveTheParametersAndAreSentAsTheirMean) {
  const auto layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Sgd());
  Receiver receiver(layout, kSelected + kSmall);
  Values expected(kSelected + kSmall);
  Values parameters(kSelected + kSmall);
  std::mt19937 random(7);
  for (int push = 0; push < 3; ++push) {
    std::fill(parameters.begin(), parameters.end(), 1.0f);
    Values moved = parameters;
    for (int step = 0; step < 4; ++step) {
      const Values gradient = WholeNumbers(random, kSelected + kSmall);
      ASSERT_TRUE(sparsifier.AddLocalStep(gradient, 0.25f, 0.5f, parameters).ok());
      for (std::size_t i = 0; i < gradient.size(); ++i) {
        expected[i] += 0.25f * gradient[i];
        moved[i] -= 0.5f * gradient[i];
      }
    }
    EXPECT_EQ(parameters, moved);
    sparsifier.Select(0.01);
    receiver.Take(sparsifier);
    EXPECT_LT(receiver.TouchedIn(0, kSelected), kSelected / 70);
  }
  for (std::size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(receiver.sum[i] + sparsifier.residual()[i], expected[i]) << i;
  }
}

TEST(SparsifierTest, OuterMomentumIsNesterovsOfWhatLocalStepsComeTo) {
  const auto layout = Layout();
  for (const double ratio : {0.01, 1.0}) {
    SparsifierOptions options = Sgd();
    options.outer_momentum = 0.5f;
    Sparsifier sparsifier(layout, 0, kSelected, options);
    Receiver receiver(layout, kSelected + kSmall);
    Values outer(kSelected + kSmall);
    Values accumulated(kSelected + kSmall);
    Values parameters(kSelected + kSmall, 1.0f);
    std::mt19937 random(7);
    for (int push = 0; push < 4; ++push) {
      Values moved = parameters;
      Values pseudo(kSelected + kSmall);
      for (int step = 0; step < 4; ++step) {
        const Values gradient = WholeNumbers(random, kSelected + kSmall);
        ASSERT_TRUE(sparsifier.AddLocalStep(gradient, 0.25f, 0.5f, parameters).ok());
        for (std::size_t i = 0; i < gradient.size(); ++i) {
          pseudo[i] += 0.25f * gradient[i];
          moved[i] -= 0.5f * gradient[i];
        }
      }
      // The worker's own weights know nothing of it.
      EXPECT_EQ(parameters, moved);
      sparsifier.Select(ratio);
      receiver.Take(sparsifier);
      for (std::size_t i = 0; i < pseudo.size(); ++i) {
        outer[i] = 0.5f * outer[i] + pseudo[i];
        accumulated[i] += 0.5f * outer[i] + pseudo[i];
        ASSERT_EQ(receiver.sum[i] + sparsifier.residual()[i], accumulated[i]) << i;
        // Masked, as the momentum of single steps is; what is dense follows the rule as it is
        // known.
        if (receiver.touched[i] && ratio < 1 && i < kSelected) outer[i] = 0;
      }
    }
  }
}

TEST(SparsifierTest, LocalStepsThatWereNotSelectedAreFlushed) {
  const auto layout = Layout();
  SparsifierOptions options = Sgd();
  options.outer_momentum = 0.5f;
  Sparsifier sparsifier(layout, 0, kSelected, options);
  Receiver receiver(layout, kSelected + kSmall);
  Values parameters(kSelected + kSmall);
  std::mt19937 random(7);
  const Values gradient = WholeNumbers(random, kSelected + kSmall);
  ASSERT_TRUE(sparsifier.AddLocalStep(gradient, 1, 1, parameters).ok());
  sparsifier.Flush();
  receiver.Take(sparsifier);
  EXPECT_EQ(receiver.sum, gradient);
  sparsifier.Flush();
  EXPECT_EQ(sparsifier.entries(), 0u);
}

TEST(SparsifierTest, ResidualInOtherUnitsIsScaled) {
  const auto layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Sgd());
  Receiver receiver(layout, kSelected + kSmall);
  std::mt19937 random(7);
  const Values gradient = WholeNumbers(random, kSelected + kSmall);
  ASSERT_TRUE(sparsifier.Step(gradient, 0.05).ok());
  const auto segments = receiver.Take(sparsifier);
  sparsifier.ScaleResidual(2);
  // What comes back was pushed in units half as large.
  for (const auto& segment : segments) ASSERT_TRUE(sparsifier.TakeBack(segment, 2).ok());
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    ASSERT_EQ(sparsifier.residual()[i], 2 * gradient[i]) << i;
  }
}

TEST(SparsifierTest, ALocalStepThatIsNotFiniteChangesNothing) {
  const auto layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Sgd());
  Values parameters(kSelected + kSmall, 3.0f);
  Values gradient(kSelected + kSmall, 1.0f);
  gradient[kSelected] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(sparsifier.AddLocalStep(gradient, 1, 1, parameters).ok());
  EXPECT_EQ(parameters, Values(kSelected + kSmall, 3.0f));
  EXPECT_EQ(sparsifier.ResidualNorm(), 0);
}

TEST(SparsifierTest, AdamIsNotUpsetByGradientsThatAreHugeOrZero) {
  const auto layout = Layout();
  SparsifierOptions options = Sgd();
  options.rule = AccumulationRule::kAdam;
  Sparsifier sparsifier(layout, 0, kSelected, options);
  Receiver receiver(layout, kSelected + kSmall);
  const Values zeros(kSelected + kSmall, 0.0f);
  Values huge(kSelected + kSmall, 0.0f);
  for (std::size_t i = 0; i < huge.size(); i += 7) huge[i] = 1e38f;
  for (const Values& gradient : {zeros, huge, zeros, huge}) {
    ASSERT_TRUE(sparsifier.Step(gradient, 1.0).ok());
    receiver.Take(sparsifier);
    for (const float value : receiver.last) ASSERT_LE(std::abs(value), 100.0f);
  }
}

TEST(SparsifierTest, SgdWithRatioOneSendsTheGradient) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Sgd());
  Receiver receiver(layout, sparsifier.elements());
  std::mt19937 random(9);
  for (int step = 0; step < 3; ++step) {
    const Values gradient = Gaussian(random, sparsifier.elements());
    ASSERT_TRUE(sparsifier.Step(gradient, 1.0).ok());
    receiver.Take(sparsifier);
    EXPECT_EQ(receiver.last, gradient);
  }
}

TEST(SparsifierTest, RefusedSegmentGoesBackIntoTheResidual) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Sgd());
  Receiver receiver(layout, sparsifier.elements());
  std::mt19937 random(10);
  const Values gradient = WholeNumbers(random, sparsifier.elements());
  ASSERT_TRUE(sparsifier.Step(gradient, 0.05).ok());
  for (const auto& segment : receiver.Take(sparsifier)) {
    ASSERT_TRUE(sparsifier.TakeBack(segment).ok());
  }
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    ASSERT_EQ(sparsifier.residual()[i], gradient[i]);
  }
}

TEST(SparsifierTest, BlocksOfOtherTablesInAReturnedSegmentArePassedOver) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Sgd());
  std::vector<std::byte> segment(200);
  const Values buffers(8, 3.0f);
  segment.resize(codec::EncodeBlock(5, 8, {}, buffers, wire::IndexCodec::Dense,
                                    wire::ValueCodec::Fp32, segment.data(), {}));
  EXPECT_TRUE(sparsifier.TakeBack(segment).ok());
  EXPECT_EQ(sparsifier.ResidualNorm(), 0.0);
}

TEST(SparsifierTest, DamagedReturnedSegmentChangesNothing) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Sgd());
  Receiver receiver(layout, sparsifier.elements());
  std::mt19937 random(11);
  ASSERT_TRUE(sparsifier.Step(Gaussian(random, sparsifier.elements()), 0.01).ok());
  auto segments = receiver.Take(sparsifier);
  const double norm = sparsifier.ResidualNorm();
  segments[0].pop_back();
  EXPECT_FALSE(sparsifier.TakeBack(segments[0]).ok());
  Values infinite(kSmall, std::numeric_limits<float>::infinity());
  std::vector<std::byte> segment(16 + kSmall * 4);
  codec::EncodeBlock(4, kSmall, {}, infinite, wire::IndexCodec::Dense, wire::ValueCodec::Fp32,
                     segment.data(), {});
  EXPECT_FALSE(sparsifier.TakeBack(segment).ok());
  EXPECT_EQ(sparsifier.ResidualNorm(), norm);
}

TEST(SparsifierTest, FlushSendsTheWholeResidualAndEmptiesIt) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Nesterov(wire::ValueCodec::Bf16));
  Receiver receiver(layout, sparsifier.elements());
  std::mt19937 random(12);
  for (int step = 0; step < 3; ++step) {
    ASSERT_TRUE(sparsifier.Step(Gaussian(random, sparsifier.elements()), 0.01).ok());
    receiver.Take(sparsifier);
  }
  const Values residual(sparsifier.residual().begin(), sparsifier.residual().end());
  EXPECT_GT(sparsifier.ResidualNorm(), 0);
  sparsifier.Flush();
  receiver.Take(sparsifier);
  EXPECT_EQ(receiver.last, residual);
  EXPECT_EQ(sparsifier.ResidualNorm(), 0.0);
  sparsifier.Flush();
  EXPECT_EQ(sparsifier.MaxBytes(), 0u);
}

TEST(SparsifierTest, GradientThatIsNotFiniteLeavesTheStateUntouched) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Nesterov());
  Receiver receiver(layout, sparsifier.elements());
  std::mt19937 random(13);
  Values gradient = Gaussian(random, sparsifier.elements());
  ASSERT_TRUE(sparsifier.Step(gradient, 0.01).ok());
  receiver.Take(sparsifier);
  const Values u(sparsifier.momentum().begin(), sparsifier.momentum().end());
  const Values v(sparsifier.residual().begin(), sparsifier.residual().end());
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -2e38f}) {
    // The last element: what is before it must not have been accumulated.
    gradient.back() = bad;
    const Status status = sparsifier.Step(gradient, 0.01);
    ASSERT_FALSE(status.ok());
    EXPECT_THAT(status.error().message, HasSubstr("element 197657 of 197658"));
    EXPECT_EQ(sparsifier.MaxBytes(), 0u);
    EXPECT_TRUE(std::equal(u.begin(), u.end(), sparsifier.momentum().begin()));
    EXPECT_TRUE(std::equal(v.begin(), v.end(), sparsifier.residual().begin()));
  }
}

// Of most places the sample knows nothing: they are found when much has been accumulated.
TEST(SparsifierTest, OneValueThatIsNotFiniteIsFoundWhereverItIs) {
  const LayoutView layout = Layout();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::mt19937 random(42);
  for (const bool nesterov : {false, true}) {
    Sparsifier sparsifier(layout, 0, kSelected, nesterov ? Nesterov() : Sgd());
    Receiver receiver(layout, sparsifier.elements());
    Values accumulated(sparsifier.elements());
    for (int round = 0; round < 12; ++round) {
      // Sums of whole numbers are exact, so nothing may be left of what was subtracted.
      Values gradient = WholeNumbers(random, sparsifier.elements());
      for (std::size_t at : {std::size_t{0}, kSelected - 1, random() % kSelected,
                             random() % kSelected, random() % kSelected}) {
        const Values u(sparsifier.momentum().begin(), sparsifier.momentum().end());
        const Values v(sparsifier.residual().begin(), sparsifier.residual().end());
        const float good = gradient[at];
        gradient[at] = round % 3 == 0   ? std::numeric_limits<float>::quiet_NaN()
                       : round % 3 == 1 ? -kInfinity
                                        : 2e38f;
        const Status status = sparsifier.Step(gradient, 0.01);
        ASSERT_FALSE(status.ok());
        EXPECT_THAT(status.error().message, HasSubstr("element " + std::to_string(at) + " of"));
        EXPECT_EQ(sparsifier.MaxBytes(), 0u);
        ASSERT_TRUE(std::equal(v.begin(), v.end(), sparsifier.residual().begin()));
        ASSERT_TRUE(std::equal(u.begin(), u.end(), sparsifier.momentum().begin()));
        gradient[at] = good;
      }
      // Momentum in halves of halves is exact for some steps only.
      if (nesterov && round >= 4) continue;
      ASSERT_TRUE(sparsifier.Step(gradient, 0.01).ok());
      receiver.Take(sparsifier);
    }
  }
}

// Had they been accumulated, nothing of the residual could be had back.
TEST(SparsifierTest, HugeValuesBeforeOneThatIsNotFiniteTakeNothingWithThem) {
  const LayoutView layout = Layout();
  for (const bool nesterov : {false, true}) {
    Sparsifier sparsifier(layout, 0, kSelected, nesterov ? Nesterov() : Sgd());
    Receiver receiver(layout, sparsifier.elements());
    std::mt19937 random(43);
    ASSERT_TRUE(sparsifier.Step(Gaussian(random, sparsifier.elements()), 0.01).ok());
    receiver.Take(sparsifier);
    const Values u(sparsifier.momentum().begin(), sparsifier.momentum().end());
    const Values v(sparsifier.residual().begin(), sparsifier.residual().end());
    for (int round = 0; round < 20; ++round) {
      Values gradient = Gaussian(random, sparsifier.elements());
      // In the later half: before them much was accumulated, and is subtracted.
      for (std::size_t i = 0; i < 20; ++i) {
        gradient[kSelected / 2 + random() % (kSelected / 2)] = 1e30f;
      }
      gradient[kSelected - 1 - random() % 100] = std::numeric_limits<float>::quiet_NaN();
      ASSERT_FALSE(sparsifier.Step(gradient, 0.01).ok());
      for (std::size_t i = 0; i < v.size(); ++i) {
        ASSERT_NEAR(sparsifier.residual()[i], v[i], 1e-4) << round << " " << i;
        if (nesterov) {
          ASSERT_NEAR(sparsifier.momentum()[i], u[i], 1e-4);
        }
      }
    }
  }
}

TEST(SparsifierTest, HugeGradientsNeverMakeTheResidualOrTheWireInfinite) {
  const LayoutView layout = Layout({100});
  Sparsifier sparsifier(layout, 0, 0, Nesterov(wire::ValueCodec::Bf16));
  const Values gradient(100, 9.9e37f);
  Receiver receiver(layout, 100);
  for (int step = 0; step < 10; ++step) {
    ASSERT_TRUE(sparsifier.Step(gradient, 1.0).ok());
    if (step % 2 == 0) receiver.Take(sparsifier);
    for (const float value : sparsifier.residual()) ASSERT_TRUE(std::isfinite(value));
    for (const float value : receiver.last) ASSERT_TRUE(std::isfinite(value));
  }
}

TEST(SparsifierTest, NormOfTheWholeGradientIsClipped) {
  const LayoutView layout = Layout({4});
  SparsifierOptions options = Sgd();
  options.clip_norm = 1.0;
  Sparsifier sparsifier(layout, 0, 0, options);
  Receiver receiver(layout, 4);
  ASSERT_TRUE(sparsifier.Step(Values{3, 0, 4, 0}, 1.0).ok());
  receiver.Take(sparsifier);
  EXPECT_THAT(receiver.last, ::testing::ElementsAre(::testing::FloatEq(0.6f), 0.0f,
                                                    ::testing::FloatEq(0.8f), 0.0f));
  ASSERT_TRUE(sparsifier.Step(Values{0.3f, 0, 0.4f, 0}, 1.0).ok());
  receiver.Take(sparsifier);
  EXPECT_THAT(receiver.last, ::testing::ElementsAre(0.3f, 0.0f, 0.4f, 0.0f));
}

TEST(SparsifierTest, ShardThatIsNotEncodedKeepsItsEntries) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Nesterov());
  std::mt19937 random(14);
  const Values gradient = WholeNumbers(random, sparsifier.elements());
  ASSERT_TRUE(sparsifier.Step(gradient, 0.01).ok());
  std::vector<std::byte> segment(sparsifier.MaxShardBytes(ShardId(0)));
  sparsifier.EncodeShard(ShardId(0), segment.data(), segment.size());
  EXPECT_EQ(sparsifier.EncodeShard(ShardId(0), segment.data(), segment.size()), 0u);
  // What nobody has taken is there again when the next step begins.
  const std::size_t first = layout.block(layout.shard_first_block(ShardId(1))).table_offset;
  sparsifier.Flush();
  for (std::size_t i = first; i < gradient.size(); ++i) {
    ASSERT_EQ(sparsifier.residual()[i], 1.5f * gradient[i]);
    ASSERT_EQ(sparsifier.momentum()[i], gradient[i]);
  }
}

TEST(SparsifierTest, WhatNobodyTakesIsNeitherLostNorSentTwice) {
  const LayoutView layout = Layout();
  for (const auto& options : {Sgd(), Nesterov()}) {
    const bool nesterov = options.rule == AccumulationRule::kNesterov;
    Sparsifier sparsifier(layout, 0, kSelected, options);
    Receiver receiver(layout, sparsifier.elements());
    Receiver seen(layout, sparsifier.elements());
    Values sum(sparsifier.elements());
    Values u(sparsifier.elements());
    std::mt19937 random(31);
    for (int step = 0; step < 12; ++step) {
      Values gradient = WholeNumbers(random, sparsifier.elements());
      // Powers of two, so that halves of halves stay exact.
      for (float& value : gradient) value = std::ldexp(value, 14);
      ASSERT_TRUE(sparsifier.Step(gradient, 0.01).ok());
      std::fill(seen.touched.begin(), seen.touched.end(), false);
      std::vector<std::byte> segment;
      for (std::uint32_t shard = 0; shard < layout.shard_count(); ++shard) {
        if ((step + static_cast<int>(shard)) % 3 == 0) continue;
        segment.resize(sparsifier.MaxShardBytes(ShardId(shard)));
        segment.resize(sparsifier.EncodeShard(ShardId(shard), segment.data(), segment.size()));
        seen.Apply(ShardId(shard), segment);
        // What comes back because it was refused is added to what waits.
        if (step % 4 == 3) {
          ASSERT_TRUE(sparsifier.TakeBack(segment).ok());
        } else {
          receiver.Apply(ShardId(shard), segment);
        }
      }
      for (std::size_t i = 0; i < gradient.size(); ++i) {
        u[i] = nesterov ? 0.5f * u[i] + gradient[i] : 0;
        sum[i] += gradient[i] + 0.5f * u[i];
        if (nesterov && i < kSelected && seen.touched[i]) u[i] = 0;
      }
    }
    sparsifier.Flush();
    for (std::size_t i = 0; i < sum.size(); ++i) {
      ASSERT_EQ(receiver.sum[i] + sparsifier.residual()[i], sum[i]) << nesterov << " " << i;
    }
  }
}

TEST(SparsifierTest, AStepWhoseSampleMisledSendsWhatAPatientOneWould) {
  const LayoutView layout = Layout();
  // Few lines of 16 hold all that is large, and they are not the same in each step: most samples
  // see too many of them or too few.
  for (const auto& options :
       {Nesterov(wire::ValueCodec::Fp32), Nesterov(wire::ValueCodec::Bits2)}) {
    Sparsifier sparsifier(layout, 0, kSelected, options);
    Receiver receiver(layout, sparsifier.elements());
    std::vector<double> accumulated(sparsifier.elements());
    Values u(sparsifier.elements());
    std::mt19937 random(32);
    for (int step = 0; step < 30; ++step) {
      Values gradient(sparsifier.elements());
      for (std::size_t line = 0; line + 16 <= gradient.size(); line += 16) {
        const float scale = random() % 61 == 0 ? 1000.0f : 1.0f;
        for (std::size_t i = line; i < line + 16; ++i) {
          gradient[i] = scale * (static_cast<float>(random() % 2001) / 1000 - 1);
        }
      }
      ASSERT_TRUE(sparsifier.Step(gradient, 0.001).ok());
      receiver.Take(sparsifier);
      for (std::size_t i = 0; i < gradient.size(); ++i) {
        u[i] = 0.5f * u[i] + gradient[i];
        accumulated[i] += gradient[i] + 0.5 * u[i];
        if (i < kSelected && receiver.touched[i]) u[i] = 0;
        ASSERT_NEAR(sparsifier.momentum()[i], u[i], 1e-2) << step << " " << i;
      }
    }
    for (std::size_t i = 0; i < accumulated.size(); ++i) {
      ASSERT_NEAR(receiver.sum[i] + sparsifier.residual()[i], accumulated[i], 1) << i;
    }
  }
}

TEST(SparsifierTest, SameSeedAndGradientsGiveTheSameBytes) {
  const LayoutView layout = Layout();
  const auto run = [&layout](std::uint64_t seed) {
    SparsifierOptions options = Nesterov(wire::ValueCodec::Bf16);
    options.seed = seed;
    Sparsifier sparsifier(layout, 0, kSelected, options);
    Receiver receiver(layout, sparsifier.elements());
    std::mt19937 random(15);
    std::vector<std::vector<std::byte>> all;
    for (int step = 0; step < 4; ++step) {
      EXPECT_TRUE(sparsifier.Step(Gaussian(random, sparsifier.elements()), 0.01).ok());
      for (auto& segment : receiver.Take(sparsifier)) all.push_back(std::move(segment));
    }
    return all;
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
}

TEST(SparsifierTest, EveryProcessorSelectsTheSameBytes) {
  const LayoutView layout = Layout();
  for (const auto rule :
       {AccumulationRule::kPlain, AccumulationRule::kNesterov, AccumulationRule::kAdam}) {
    for (const double clip_norm : {0.0, 100.0}) {
      const auto run = [&](const kernels::Table& kernels) {
        SparsifierOptions options;
        options.rule = rule;
        options.clip_norm = clip_norm;
        options.value_codec = wire::ValueCodec::Bits2;
        Sparsifier sparsifier(layout, 0, kSelected, options, kernels);
        Receiver receiver(layout, sparsifier.elements());
        std::mt19937 random(15);
        std::vector<std::vector<std::byte>> all;
        for (int step = 0; step < 5; ++step) {
          EXPECT_TRUE(sparsifier.Step(Gaussian(random, sparsifier.elements()), 0.01).ok());
          for (auto& segment : receiver.Take(sparsifier)) all.push_back(std::move(segment));
        }
        return all;
      };
      const auto plain = run(**kernels::Available());
      for (const auto* const* at = kernels::Available(); *at != nullptr; ++at) {
        EXPECT_EQ(run(**at), plain) << (*at)->name;
      }
    }
  }
}

TEST(SparsifierTest, OnePercentCostsAboutThreeBytesPerEntry) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Nesterov(wire::ValueCodec::Bf16));
  Receiver receiver(layout, sparsifier.elements());
  std::mt19937 random(16);
  ASSERT_TRUE(sparsifier.Step(Gaussian(random, sparsifier.elements()), 0.01).ok());
  const double entries = static_cast<double>(sparsifier.entries());
  receiver.Take(sparsifier);
  EXPECT_LT(static_cast<double>(receiver.bytes), 3.3 * entries);
}

TEST(SparsifierTest, OnePercentInTwoBitsCostsAThirdOfThat) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Nesterov(wire::ValueCodec::Bits2));
  Receiver receiver(layout, sparsifier.elements());
  std::mt19937 random(16);
  ASSERT_TRUE(sparsifier.Step(Gaussian(random, sparsifier.elements()), 0.01).ok());
  const double entries = static_cast<double>(sparsifier.entries() - kSmall);
  receiver.Take(sparsifier);
  const double small = sizeof(wire::BlockHeader) + 2.0 * kSmall;
  EXPECT_LT(static_cast<double>(receiver.bytes) - small, 1.34 * entries);
}

TEST(SparsifierTest, DenseGradientInFourBitsCostsHalfAByte) {
  const LayoutView layout = Layout();
  Sparsifier sparsifier(layout, 0, kSelected, Nesterov(wire::ValueCodec::Bits4));
  Receiver receiver(layout, sparsifier.elements());
  std::mt19937 random(16);
  ASSERT_TRUE(sparsifier.Step(Gaussian(random, sparsifier.elements()), 1.0).ok());
  receiver.Take(sparsifier);
  EXPECT_LT(static_cast<double>(receiver.bytes), 0.51 * kSelected + 2.0 * kSmall);
}

TEST(SparsifierTest, NamesAreThoseOfTheJobFile) {
  EXPECT_EQ(IndexCodecNamed("auto"), std::nullopt);
  EXPECT_EQ(IndexCodecNamed("rice"), wire::IndexCodec::Rice);
  EXPECT_EQ(IndexCodecNamed("gap8"), wire::IndexCodec::Gap8);
  EXPECT_EQ(IndexCodecNamed("raw16"), wire::IndexCodec::Raw16);
  EXPECT_EQ(IndexCodecNamed("bitmap"), wire::IndexCodec::Bitmap);
  EXPECT_EQ(ValueCodecNamed("fp32"), wire::ValueCodec::Fp32);
  EXPECT_EQ(ValueCodecNamed("bf16"), wire::ValueCodec::Bf16);
  EXPECT_EQ(ValueCodecNamed("int8"), wire::ValueCodec::Int8);
  EXPECT_EQ(ValueCodecNamed("4bit"), wire::ValueCodec::Bits4);
  EXPECT_EQ(ValueCodecNamed("2bit"), wire::ValueCodec::Bits2);
  EXPECT_EQ(ValueCodecNamed("1bit"), wire::ValueCodec::Bits1);
  EXPECT_EQ(ValueCodecNamed("auto", 0.25), wire::ValueCodec::Bits2);
  EXPECT_EQ(ValueCodecNamed("auto", 1), wire::ValueCodec::Bf16);
  EXPECT_EQ(ValueCodecNamed("4bit", 0.01), wire::ValueCodec::Bits4);
}

TEST(SparsifierTest, AskedIndexCodecIsUsed) {
  const LayoutView layout = Layout();
  SparsifierOptions options = Sgd(wire::ValueCodec::Bf16);
  options.index_codec = wire::IndexCodec::Raw16;
  Sparsifier sparsifier(layout, 0, kSelected, options);
  std::mt19937 random(17);
  ASSERT_TRUE(sparsifier.Step(Gaussian(random, sparsifier.elements()), 0.05).ok());
  std::vector<std::byte> segment(sparsifier.MaxShardBytes(ShardId(0)));
  segment.resize(sparsifier.EncodeShard(ShardId(0), segment.data(), segment.size()));
  wire::BlockHeader header;
  std::memcpy(&header, segment.data(), sizeof(header));
  EXPECT_EQ(header.index_codec(), static_cast<std::uint8_t>(wire::IndexCodec::Raw16));
  EXPECT_EQ(header.bytes(), header.count() * 4);
}

TEST(WarmupRatioTest, FallsExponentiallyFromAQuarterToTheRatio) {
  EXPECT_DOUBLE_EQ(WarmupRatio(0.01, 4, 0), 0.25);
  EXPECT_DOUBLE_EQ(WarmupRatio(0.01, 4, 2), 0.05);
  EXPECT_DOUBLE_EQ(WarmupRatio(0.01, 4, 4), 0.01);
  EXPECT_DOUBLE_EQ(WarmupRatio(0.01, 4, 9), 0.01);
  EXPECT_DOUBLE_EQ(WarmupRatio(0.01, 0, 0), 0.01);
  EXPECT_DOUBLE_EQ(WarmupRatio(1.0, 4, 1), 1.0);
}

}  // namespace
}  // namespace ps::worker
