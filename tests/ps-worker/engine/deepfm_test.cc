#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "common/codec/row_codec.h"
#include "common/layout/layout.h"
#include "ps-worker/engine/model.h"
#include "ps-worker/engine/tensor_workload.h"

namespace ps::worker {
namespace {

using ::testing::HasSubstr;

constexpr std::size_t kRecords = 7;
constexpr std::size_t kFeatures = 2;
constexpr std::size_t kWidth = 4;

JobSpec Job(std::vector<std::int64_t> hidden) {
  JobSpec spec;
  spec.model.type = "deepfm";
  spec.model.activation = "tanh";  // smooth: differences come near the gradients
  spec.model.hidden_layers = std::move(hidden);
  spec.training.loss = "binary_cross_entropy";
  spec.training.metric = "auc";
  spec.embedding_tables.resize(2);
  spec.embedding_tables[0].name = "users";
  spec.embedding_tables[0].columns = {"user"};
  spec.embedding_tables[1].name = "words";
  spec.embedding_tables[1].columns = {"first", "second"};
  for (auto& table : spec.embedding_tables) table.width = kWidth;
  return spec;
}

struct Data {
  std::vector<float> features;
  std::vector<float> labels;
  std::vector<std::uint64_t> ids;
  BatchRows rows;

  Batch batch() const {
    return {features, labels, static_cast<std::uint32_t>(labels.size()), ids, &rows};
  }
};

Data MakeData(const JobSpec& spec) {
  Data data;
  for (std::size_t i = 0; i < kRecords; ++i) {
    for (std::size_t f = 0; f < kFeatures; ++f) {
      data.features.push_back(std::sin(static_cast<float>(1 + i * kFeatures + f)));
    }
    data.labels.push_back(i % 3 == 0 ? 1.0f : 0.0f);
    data.ids.insert(data.ids.end(), {i % 3, i % 2, i % 4});
  }
  FindRows(spec.embedding_tables, data.ids, data.rows);
  float next = 0.3f;
  for (auto& table : data.rows.tables) {
    for (std::size_t i = 0; i < table.keys.size() * kWidth; ++i) {
      table.values.push_back(next = std::fmod(next * 7.31f + 0.17f, 1.0f) - 0.4f);
    }
  }
  return data;
}

std::unique_ptr<Model> Make(const JobSpec& spec) {
  SetComputeThreads(1);
  auto model = Model::Create(spec, kFeatures);
  EXPECT_TRUE(model.ok()) << model.error().message;
  return std::move(model).value();
}

// The formula of docs/job-file.md, without hidden layers, in double.
double Logit(const Data& data, std::span<const float> parameters, std::size_t record) {
  // Small tensors in the order of the network: bias, weights.
  double output = parameters[0];
  for (std::size_t f = 0; f < kFeatures; ++f) {
    output += double{parameters[1 + f]} * data.features[record * kFeatures + f];
  }
  const auto row = [&](std::size_t column) {
    const auto& table = data.rows.tables[column == 0 ? 0 : 1];
    return std::span(table.values).subspan(data.rows.index[record * 3 + column] * kWidth, kWidth);
  };
  for (std::size_t i = 0; i < 3; ++i) {
    output += row(i)[0];
    for (std::size_t j = i + 1; j < 3; ++j) {
      for (std::size_t k = 1; k < kWidth; ++k) output += double{row(i)[k]} * row(j)[k];
    }
  }
  return output;
}

TEST(DeepFmTest, WithoutHiddenLayersItIsAFactorisationMachine) {
  const JobSpec spec = Job({});
  const auto model = Make(spec);
  const Data data = MakeData(spec);
  ASSERT_EQ(model->parameters().size(), 1 + kFeatures);
  for (std::size_t i = 0; i < model->parameters().size(); ++i) {
    model->parameters()[i] = 0.1f * static_cast<float>(i + 1);
  }
  double loss = 0;
  for (std::size_t record = 0; record < kRecords; ++record) {
    const double logit = Logit(data, model->parameters(), record);
    loss += std::log1p(std::exp(data.labels[record] == 1 ? -logit : logit));
  }
  const auto step = model->Step(data.batch());
  ASSERT_TRUE(step.ok()) << step.error().message;
  EXPECT_NEAR(*step, loss / kRecords, 1e-5);
  const auto sums = model->Evaluate(data.batch());
  ASSERT_TRUE(sums.ok());
  EXPECT_NEAR(sums->mean_loss(), loss / kRecords, 1e-5);
  EXPECT_EQ(sums->positive_scores.size(), 3u);
  EXPECT_EQ(sums->negative_scores.size(), 4u);
}

class DeepFmGradientTest : public ::testing::TestWithParam<std::vector<std::int64_t>> {};

TEST_P(DeepFmGradientTest, RowsAndParametersHaveTheGradientsThatDifferencesShow) {
  const JobSpec spec = Job(GetParam());
  const auto model = Make(spec);
  Data data = MakeData(spec);
  ASSERT_TRUE(model->Step(data.batch()).ok());
  std::vector<std::vector<float>> rows;
  for (std::uint32_t t = 0; t < 2; ++t) {
    const auto gradients = model->row_gradients(t);
    rows.emplace_back(gradients.begin(), gradients.end());
    ASSERT_EQ(rows[t].size(), data.rows.tables[t].values.size());
  }
  const std::vector<float> parameters(model->gradients().begin(), model->gradients().end());
  constexpr float kStep = 0.01f;
  const auto difference = [&](float& value) {
    const float at = value;
    value = at + kStep;
    const double above = model->Step(data.batch()).value();
    value = at - kStep;
    const double below = model->Step(data.batch()).value();
    value = at;
    return (above - below) / (2 * kStep);
  };
  double largest = 0;
  for (std::uint32_t t = 0; t < 2; ++t) {
    for (std::size_t i = 0; i < rows[t].size(); ++i) {
      EXPECT_NEAR(rows[t][i], difference(data.rows.tables[t].values[i]), 1e-4) << t << " " << i;
      largest = std::max(largest, std::abs(double{rows[t][i]}));
    }
  }
  EXPECT_GT(largest, 0.01);
  for (std::size_t i = 0; i < parameters.size(); i += 5) {
    EXPECT_NEAR(parameters[i], difference(model->parameters()[i]), 1e-4) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, DeepFmGradientTest,
                         ::testing::Values(std::vector<std::int64_t>{},
                                           std::vector<std::int64_t>{8, 4}));

TEST(DeepFmTest, TheLayoutHasTheTablesAndItsFingerprintDependsOnThem) {
  JobSpec spec = Job({8});
  const auto model = Make(spec);
  const auto& layout = model->layout();
  ASSERT_EQ(layout.row_tables.size(), 2u);
  EXPECT_EQ(layout.row_tables[1]->name, "words");
  EXPECT_EQ(layout.row_tables[1]->width, kWidth);
  EXPECT_TRUE(LayoutView::Create(layout, 64).ok());
  std::swap(spec.embedding_tables[1].columns[0], spec.embedding_tables[1].columns[1]);
  EXPECT_NE(Make(spec)->layout().fingerprint, layout.fingerprint);
}

TEST(DeepFmTest, LabelsOtherThanNoughtAndOneAreRefused) {
  const JobSpec spec = Job({});
  const auto model = Make(spec);
  Data data = MakeData(spec);
  data.labels[2] = 2;
  const auto step = model->Step(data.batch());
  ASSERT_FALSE(step.ok());
  EXPECT_THAT(step.error().message, HasSubstr("binary_cross_entropy wants 0 and 1"));
}

// A row that is not finite must not reach the servers, nor change what the next step pushes.
TEST(DeepFmTest, AStepWhoseRowsAreNotFiniteSelectsNothing) {
  const JobSpec spec = Job({});
  TensorWorkload workload(spec, Make(spec));
  const auto view = LayoutView::Create(workload.layout(), 64).value();
  ASSERT_TRUE(workload.Prepare(view, WorkerId(0)).ok());
  Data data = MakeData(spec);
  const float good = data.rows.tables[1].values[0];
  data.rows.tables[1].values[0] = std::numeric_limits<float>::infinity();
  auto computed = workload.Compute(data.batch(), 0);
  ASSERT_TRUE(computed.ok()) << computed.error().message;
  EXPECT_NE(computed->nonfinite, "");
  // Finite in the loss, infinite in a gradient.
  data.rows.tables[1].values[0] = good;
  data.rows.tables[1].values[1] = 3e38f;
  data.rows.tables[0].values[1] = 1e-38f;
  computed = workload.Compute(data.batch(), 0);
  ASSERT_TRUE(computed.ok());
  EXPECT_NE(computed->nonfinite, "");
  EXPECT_EQ(workload.ResidualNorm().value(), 0);
}

TEST(DeepFmTest, APushHoldsEveryRowOfTheBatchBehindTheBlocks) {
  const JobSpec spec = Job({8});
  TensorWorkload workload(spec, Make(spec));
  const auto view = LayoutView::Create(workload.layout(), 64).value();
  ASSERT_TRUE(workload.Prepare(view, WorkerId(0)).ok());
  const Data data = MakeData(spec);
  const auto computed = workload.Compute(data.batch(), 0);
  ASSERT_TRUE(computed.ok());
  ASSERT_EQ(computed->nonfinite, "");
  std::vector<std::byte> space(workload.max_push_bytes());
  std::size_t used = 0;
  std::size_t rows = 0;
  for (std::uint32_t shard = 0; shard < 64; ++shard) {
    const auto out = std::span(space).subspan(used);
    const std::size_t bytes = workload.WriteShard(ShardId(shard), out);
    used += bytes;
    const auto parts = codec::SplitSegment(out.first(bytes)).value();
    std::vector<codec::RowsView> views;
    ASSERT_TRUE(codec::ParseRows(
                    parts.rows, codec::RowContent::kKeysAndValues,
                    [&](std::uint32_t table) { return view.row_width(table); }, views)
                    .ok());
    for (const auto& part : views) rows += part.count;
    // All of it comes back: the residual is the push.
    ASSERT_TRUE(workload.TakeBack(out.first(bytes), 1).ok());
  }
  EXPECT_EQ(rows, data.rows.tables[0].keys.size() + data.rows.tables[1].keys.size());
  EXPECT_GT(workload.ResidualNorm().value(), 0);
}

}  // namespace
}  // namespace ps::worker
