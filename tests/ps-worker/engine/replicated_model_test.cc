// Several replicas beside one model: on the host, where a device that has its own memory is not.
#include "ps-worker/engine/replicated_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ps-worker/engine/collective.h"
#include "ps-worker/engine/model.h"
#include "ps-worker/engine/rows.h"

namespace ps::worker {
namespace {

using ::testing::HasSubstr;

JobSpec Mlp() {
  JobSpec spec;
  spec.model.type = "mlp";
  spec.model.layers = {20, 30, 3};
  return spec;
}

JobSpec CnnWithBatchNorm() {
  JobSpec spec;
  spec.model.type = "cnn";
  spec.model.channels = {4};
  spec.model.hidden = 8;
  spec.model.input_shape = {1, 4, 5};
  spec.model.classes = 3;
  spec.model.batch_norm = true;
  return spec;
}

JobSpec DeepFm() {
  JobSpec spec;
  spec.model.type = "deepfm";
  spec.model.hidden_layers = {6};
  spec.training.loss = "binary_cross_entropy";
  spec.training.metric = "logloss";
  spec.embedding_tables.resize(2);
  spec.embedding_tables[0].name = "users";
  spec.embedding_tables[0].columns = {"user"};
  spec.embedding_tables[1].name = "words";
  spec.embedding_tables[1].columns = {"first", "second"};
  for (auto& table : spec.embedding_tables) table.width = 4;
  return spec;
}

struct Data {
  std::vector<float> features;
  std::vector<float> labels;
  std::vector<std::uint64_t> ids;
  BatchRows rows;

  Data(const JobSpec& spec, std::size_t records, std::size_t classes = 3) {
    for (std::size_t i = 0; i < records; ++i) {
      for (std::size_t f = 0; f < 20; ++f) {
        features.push_back(std::sin(static_cast<float>(1 + i * 20 + f)));
      }
      labels.push_back(static_cast<float>(i % classes));
      ids.insert(ids.end(), {i % 5, i % 2, i % 7});
    }
    if (spec.embedding_tables.empty()) return;
    FindRows(spec.embedding_tables, ids, rows);
    for (auto& table : rows.tables) {
      for (std::size_t i = 0; i < table.keys.size() * 4; ++i) {
        table.values.push_back(0.4f * std::cos(static_cast<float>(i) * 1.7f));
      }
    }
  }
  Batch batch() const {
    Batch batch{features, labels, static_cast<std::uint32_t>(labels.size())};
    if (!rows.tables.empty()) {
      batch.ids = ids;
      batch.rows = &rows;
    }
    return batch;
  }
};

std::unique_ptr<Model> MakeOne(const JobSpec& spec) {
  SetComputeThreads(1);
  auto model = Model::Create(spec, 20);
  EXPECT_TRUE(model.ok()) << model.error().message;
  return std::move(model).value();
}

// As HostCollective, or broken.
class TestCollective final : public Collective {
 public:
  explicit TestCollective(const std::atomic<bool>& broken) : broken_(broken) {}
  Status Broadcast(std::span<const std::span<float>> values) override {
    return host_.Broadcast(values);
  }
  Status Sum(std::span<const std::span<const float>> values, std::span<float> sum) override {
    if (broken_) return Error{ErrorCode::kInternal, "a link is broken"};
    return host_.Sum(values, sum);
  }

 private:
  HostCollective host_;
  const std::atomic<bool>& broken_;
};

class ReplicatedModelTest : public ::testing::Test {
 protected:
  std::unique_ptr<Model> Make(const JobSpec& spec, std::size_t ranks) {
    std::vector<std::unique_ptr<Model>> replicas;
    replicas_.clear();
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      replicas.push_back(MakeOne(spec));
      replicas_.push_back(replicas.back().get());
    }
    return std::make_unique<ReplicatedModel>(std::move(replicas),
                                             std::make_unique<TestCollective>(broken_));
  }
  // The gradients of the parameters, and then of all rows.
  static std::vector<float> Gradients(const Model& model, const Data& data) {
    std::vector<float> values(model.gradients().begin(), model.gradients().end());
    for (std::uint32_t table = 0; table < data.rows.tables.size(); ++table) {
      const auto rows = model.row_gradients(table);
      values.insert(values.end(), rows.begin(), rows.end());
    }
    return values;
  }
  static void ExpectNear(const std::vector<float>& got, const std::vector<float>& wanted,
                         double relative) {
    ASSERT_EQ(got.size(), wanted.size());
    double difference = 0;
    double norm = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      difference += std::pow(double{got[i]} - wanted[i], 2);
      norm += std::pow(double{wanted[i]}, 2);
    }
    ASSERT_GT(norm, 0);
    EXPECT_LT(std::sqrt(difference / norm), relative);
  }

  std::atomic<bool> broken_{false};
  std::vector<Model*> replicas_;
};

TEST_F(ReplicatedModelTest, TheSumIsTheGradientOfTheWholeBatch) {
  for (const JobSpec& spec : {Mlp(), DeepFm()}) {
    // The parts differ by a record; more replicas than records leaves some without any.
    for (const auto& [records, ranks] : {std::pair(32, 2), {31, 3}, {5, 8}}) {
      const Data data(spec, static_cast<std::size_t>(records), spec.model.type == "deepfm" ? 2 : 3);
      const auto one = MakeOne(spec);
      const auto several = Make(spec, static_cast<std::size_t>(ranks));
      EXPECT_EQ(several->layout().fingerprint, one->layout().fingerprint);
      EXPECT_EQ(several->selected_elements(), one->selected_elements());
      // A step before it: nothing of it may stay.
      ASSERT_TRUE(several->Step(Data(spec, 16, 2).batch()).ok());
      const auto wanted = one->Step(data.batch());
      const auto got = several->Step(data.batch());
      ASSERT_TRUE(wanted.ok() && got.ok());
      EXPECT_NEAR(*got, *wanted, 1e-5 * *wanted);
      ExpectNear(Gradients(*several, data), Gradients(*one, data), 1e-5);
      EXPECT_NEAR(several->GradientSquares(), one->GradientSquares(),
                  1e-4 * one->GradientSquares());
    }
  }
}

TEST_F(ReplicatedModelTest, WithAScaleAndAccumulationItIsTheSame) {
  JobSpec spec = DeepFm();
  spec.training.batch_size = 4;
  spec.training.accumulate = 6;
  const Data data(spec, 24, 2);
  const auto one = MakeOne(spec);
  const auto several = Make(spec, 3);
  StepMode mode;
  mode.loss_scale = 1024;
  ASSERT_TRUE(one->Step(data.batch(), mode).ok());
  ASSERT_TRUE(several->Step(data.batch(), mode).ok());
  ExpectNear(Gradients(*several, data), Gradients(*one, data), 1e-5);
  mode.precision = Precision::kBf16;
  ASSERT_TRUE(several->Step(data.batch(), mode).ok());
  ExpectNear(Gradients(*several, data), Gradients(*one, data), 3e-2);
}

TEST_F(ReplicatedModelTest, AllComputeWithTheParametersOfTheFirst) {
  const Data data(Mlp(), 12);
  const auto one = MakeOne(Mlp());
  const auto several = Make(Mlp(), 3);
  std::vector<float> values(one->parameters().size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = 0.1f * std::sin(static_cast<float>(i));
  }
  one->WriteParameters(values);
  std::copy(values.begin(), values.end(), several->parameters().begin());
  ASSERT_TRUE(one->Step(data.batch()).ok());
  ASSERT_TRUE(several->Step(data.batch()).ok());
  ExpectNear(Gradients(*several, data), Gradients(*one, data), 1e-5);
  EXPECT_NEAR(several->Evaluate(data.batch())->loss, one->Evaluate(data.batch())->loss, 1e-4);
}

TEST_F(ReplicatedModelTest, BuffersAreThoseOfTheFirstAndWrittenToAll) {
  const Data data(CnnWithBatchNorm(), 12);
  const auto several = Make(CnnWithBatchNorm(), 2);
  ASSERT_GT(several->buffer_elements(), 0u);
  const auto read = [](const Model& model) {
    std::vector<float> values(model.buffer_elements());
    std::vector<float> counters(model.counter_elements());
    model.ReadBuffers(values, counters);
    values.insert(values.end(), counters.begin(), counters.end());
    return values;
  };
  ASSERT_TRUE(several->Step(data.batch()).ok());
  EXPECT_NE(read(*replicas_[0]), read(*replicas_[1]));
  EXPECT_EQ(read(*several), read(*replicas_[0]));
  const std::vector<float> buffers(several->buffer_elements(), 0.5f);
  const std::vector<float> counters(several->counter_elements(), 7.0f);
  several->WriteBuffers(buffers, counters);
  EXPECT_EQ(read(*replicas_[0]), read(*replicas_[1]));
}

// Batch norm refuses a single record: the short batch at the end of an epoch goes to fewer
// replicas.
TEST_F(ReplicatedModelTest, NoPartHasASingleRecordIfTheBatchHasMore) {
  const auto several = Make(CnnWithBatchNorm(), 4);
  for (const std::size_t records : {2, 3, 5, 7, 8, 9}) {
    const auto loss = several->Step(Data(CnnWithBatchNorm(), records).batch());
    EXPECT_TRUE(loss.ok()) << records << ": " << (loss.ok() ? "" : loss.error().message);
  }
}

TEST_F(ReplicatedModelTest, WhatIsWrongWithAnyPartIsSaid) {
  Data data(Mlp(), 12);
  data.labels.back() = 9;
  const auto several = Make(Mlp(), 3);
  const auto refused = several->Step(data.batch());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalid);
  EXPECT_THAT(refused.error().message, HasSubstr("the data has the label 9"));
  data.labels.back() = 2;
  EXPECT_TRUE(several->Step(data.batch()).ok());
  broken_ = true;
  const auto failed = several->Step(data.batch());
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.error().code, ErrorCode::kInternal);
}

TEST_F(ReplicatedModelTest, ANumberThatIsNotFiniteAnywhereIsInTheSum) {
  Data data(Mlp(), 12);
  data.features[11 * 20] = std::numeric_limits<float>::infinity();
  const auto several = Make(Mlp(), 3);
  const auto loss = several->Step(data.batch());
  ASSERT_TRUE(loss.ok());
  EXPECT_FALSE(std::isfinite(*loss));
  EXPECT_FALSE(std::isfinite(several->GradientSquares()));
}

}  // namespace
}  // namespace ps::worker
