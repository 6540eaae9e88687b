// A language model of bytes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "ps-worker/engine/model.h"

namespace ps::worker {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kContext = 8;

JobSpec Small() {
  JobSpec spec;
  spec.model.type = "transformer";
  spec.model.depth = 2;
  spec.model.heads = 2;
  spec.model.width = 32;
  return spec;
}

std::unique_ptr<Model> Make(const JobSpec& spec) {
  SetComputeThreads(1);
  auto model = Model::Create(spec, kContext);
  EXPECT_TRUE(model.ok()) << model.error().message;
  return std::move(model).value();
}

// Pieces of `text`, one after the other.
struct Records {
  std::vector<float> features;
  std::vector<float> labels;

  explicit Records(const std::string& text) {
    for (std::size_t begin = 0; begin + kContext < text.size(); begin += kContext) {
      for (std::size_t i = begin; i < begin + kContext; ++i) {
        features.push_back(static_cast<float>(text[i]));
        labels.push_back(static_cast<float>(text[i + 1]));
      }
    }
  }
  Batch batch() const {
    return {features, labels, static_cast<std::uint32_t>(labels.size() / kContext)};
  }
};

// What Adam makes of it in some steps, each on text of its own; then of text that it has not seen.
double LossAfter(int steps, const std::function<std::string(unsigned)>& text) {
  const auto model = Make(Small());
  const std::size_t size = model->parameters().size();
  std::vector<double> first(size), second(size);
  for (int step = 1; step <= steps; ++step) {
    EXPECT_TRUE(model->Step(Records(text(static_cast<unsigned>(step))).batch()).ok());
    const auto gradients = std::as_const(*model).gradients();
    for (std::size_t i = 0; i < size; ++i) {
      first[i] += 0.1 * (gradients[i] - first[i]);
      second[i] += 0.01 * (gradients[i] * gradients[i] - second[i]);
      const double mean = first[i] / (1 - std::pow(0.9, step));
      const double square = second[i] / (1 - std::pow(0.99, step));
      model->parameters()[i] -= static_cast<float>(0.003 * mean / (std::sqrt(square) + 1e-8));
    }
  }
  return model->Evaluate(Records(text(0)).batch())->mean_loss();
}

TEST(TransformerTest, HasTheWeightsThatItsFormulaSays) {
  const auto model = Make(Small());
  const std::uint64_t width = 32;
  const std::uint64_t block = 12 * width * width + 13 * width;
  EXPECT_EQ(model->layout().parameters, 2 * block + 2 * width + (256 + kContext) * width);
  // Nothing is known yet: all bytes are nearly alike.
  const Records records("It is a truth universally acknowledged, that");
  const auto sums = model->Evaluate(records.batch());
  ASSERT_TRUE(sums.ok()) << sums.error().message;
  EXPECT_NEAR(sums->mean_loss(), std::log(256), 0.1);
  EXPECT_EQ(sums->records, records.labels.size());  // an answer for each byte
  EXPECT_NEAR(*model->Step(records.batch()), sums->mean_loss(), 1e-4);
}

TEST(TransformerTest, BeginsTheSameForTheSameSeedOnly) {
  const auto values = [](const JobSpec& spec) {
    const auto model = Make(spec);
    return std::vector<float>(model->parameters().begin(), model->parameters().end());
  };
  JobSpec other = Small();
  other.training.seed = 2;
  EXPECT_EQ(values(Small()), values(Small()));
  EXPECT_NE(values(Small()), values(other));
}

TEST(TransformerTest, LearnsWhatFollowsWhat) {
  const auto text = [](unsigned seed) {
    std::string letters;
    for (unsigned i = 0; i < 16 * kContext + 1; ++i) letters += "abcde"[(i + seed) % 5];
    return letters;
  };
  EXPECT_LT(LossAfter(100, text), 0.2);
}

// Each byte is among those that are read, one place later: who looked ahead would know it.
TEST(TransformerTest, DoesNotLookAhead) {
  const auto text = [](unsigned seed) {
    std::mt19937 random(seed);
    std::string letters;
    for (unsigned i = 0; i < 32 * kContext + 1; ++i) letters += "abcd"[random() % 4];
    return letters;
  };
  const double loss = LossAfter(200, text);
  EXPECT_GT(loss, std::log(4) - 0.05);
  EXPECT_LT(loss, std::log(4) + 0.2);  // and it has learnt which bytes there are
}

TEST(TransformerTest, DropoutIsForTrainingOnly) {
  JobSpec spec = Small();
  spec.model.dropout = 0.5;
  const auto model = Make(spec);
  const Records records("It is a truth universally acknowledged, that");
  EXPECT_NE(*model->Step(records.batch()), model->Evaluate(records.batch())->mean_loss());
  EXPECT_EQ(model->Evaluate(records.batch())->loss, model->Evaluate(records.batch())->loss);
}

TEST(TransformerTest, WhatIsLeftOutDependsOnThePlaceInTheDataAndTheSeed) {
  JobSpec spec = Small();
  spec.model.dropout = 0.5;
  const auto model = Make(spec);
  const Records records("It is a truth universally acknowledged, that");
  Batch batch = records.batch();
  const double one = *model->Step(batch);
  batch.position = 64;
  const double other = *model->Step(batch);
  EXPECT_NE(other, one);
  // Another task, which has not drawn before, goes on there.
  const auto next = Make(spec);
  EXPECT_EQ(*next->Step(batch), other);
  batch.position = 0;
  EXPECT_EQ(*model->Step(batch), one);
  spec.training.seed = 2;
  const auto differs = Make(spec);
  std::ranges::copy(model->parameters(), differs->parameters().begin());
  EXPECT_NE(*differs->Step(batch), one);
}

TEST(TransformerTest, OtherRecordsAreRefused) {
  const auto model = Make(Small());
  Records records("It is a truth universally acknowledged, that");
  Batch batch = records.batch();
  records.labels.back() = 256;
  const auto label = model->Step(records.batch());
  ASSERT_FALSE(label.ok());
  EXPECT_THAT(label.error().message, HasSubstr("the data has the label 256"));
  records.labels.back() = 0;
  records.features.back() = 300;
  const auto feature = model->Step(records.batch());
  ASSERT_FALSE(feature.ok());
  EXPECT_EQ(feature.error().code, ErrorCode::kInvalid);
  batch.labels = batch.labels.first(batch.records);
  EXPECT_FALSE(model->Step(batch).ok());

  JobSpec uneven = Small();
  uneven.model.heads = 3;
  const auto made = Model::Create(uneven, kContext);
  ASSERT_FALSE(made.ok());
  EXPECT_THAT(made.error().message, HasSubstr("model.width: is 32, which model.heads, 3"));
}

}  // namespace
}  // namespace ps::worker
