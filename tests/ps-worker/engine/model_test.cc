#include "ps-worker/engine/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "common/layout/layout.h"

namespace ps::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

JobSpec Mlp(std::vector<std::int64_t> layers) {
  JobSpec spec;
  spec.model.type = "mlp";
  spec.model.layers = std::move(layers);
  return spec;
}

JobSpec Cnn() {
  JobSpec spec;
  spec.model.type = "cnn";
  spec.model.channels = {4, 8};
  spec.model.hidden = 16;
  spec.model.input_shape = {1, 8, 8};
  spec.model.classes = 3;
  return spec;
}

std::unique_ptr<Model> Make(const JobSpec& spec) {
  SetComputeThreads(1);
  auto model = Model::Create(spec);
  EXPECT_TRUE(model.ok()) << model.error().message;
  return std::move(model).value();
}

std::string ErrorOf(const JobSpec& spec) {
  const auto model = Model::Create(spec);
  if (model.ok()) return "";
  EXPECT_EQ(model.error().code, ErrorCode::kInvalid);
  return model.error().message;
}

// Values of one tensor of the table `parameters`.
std::span<float> Tensor(Model& model, const std::string& name) {
  for (const auto& tensor : model.layout().tables[0]->tensors) {
    if (tensor->name == name) {
      return model.parameters().subspan(static_cast<std::size_t>(tensor->offset),
                                        static_cast<std::size_t>(tensor->elements));
    }
  }
  ADD_FAILURE() << "no tensor " << name;
  return {};
}

struct Records {
  std::vector<float> features;
  std::vector<float> labels;
  Batch batch() const { return {features, labels, static_cast<std::uint32_t>(labels.size())}; }
};

Records Pattern(std::size_t records, std::size_t features, std::size_t classes) {
  Records result;
  for (std::size_t i = 0; i < records; ++i) {
    for (std::size_t f = 0; f < features; ++f) {
      result.features.push_back(std::sin(static_cast<float>(1 + i * features + f)));
    }
    result.labels.push_back(static_cast<float>(i % classes));
  }
  return result;
}

TEST(ModelTest, AnMlpHasItsWeightsFirstAndItsBiasesBehindThem) {
  const auto model = Make(Mlp({784, 100, 10}));
  const auto& table = *model->layout().tables.at(0);
  std::vector<std::string> names;
  for (const auto& tensor : table.tensors) names.push_back(tensor->name);
  EXPECT_THAT(names,
              ElementsAre("linear0.weight", "linear0.bias", "linear1.weight", "linear1.bias"));
  EXPECT_EQ(model->selected_elements(), 78'400u);  // linear1 has 1,000 elements: small
  EXPECT_EQ(table.elements, 79'510u);
  EXPECT_EQ(model->parameters().size(), 79'510u);
  EXPECT_THAT(table.block_elements, ElementsAre(65'536, 12'864, 1110));
  EXPECT_EQ(model->layout().tables.size(), 1u);
  EXPECT_TRUE(LayoutView::Create(model->layout(), 3).ok());
}

TEST(ModelTest, ACnnHasTablesForItsBatchNormStatistics) {
  const auto model = Make(Cnn());
  const auto& tables = model->layout().tables;
  ASSERT_EQ(tables.size(), 3u);
  EXPECT_EQ(tables[1]->name, "buffers");
  EXPECT_EQ(tables[1]->rule, control::TableRule::Average);
  EXPECT_EQ(tables[1]->elements, 24u);
  EXPECT_EQ(tables[2]->rule, control::TableRule::Maximum);
  EXPECT_EQ(tables[2]->elements, 2u);
  auto spec = Cnn();
  spec.model.batch_norm = false;
  EXPECT_EQ(Make(spec)->layout().tables.size(), 1u);
}

TEST(ModelTest, InitialValuesAreTheSameForTheSameSeedOnly) {
  auto spec = Mlp({20, 30, 5});
  const auto first = Make(spec);
  const auto second = Make(spec);
  EXPECT_TRUE(std::equal(first->parameters().begin(), first->parameters().end(),
                         second->parameters().begin()));
  EXPECT_EQ(first->layout().fingerprint, second->layout().fingerprint);
  spec.training.seed = 2;
  const auto other = Make(spec);
  EXPECT_FALSE(std::equal(first->parameters().begin(), first->parameters().end(),
                          other->parameters().begin()));
  EXPECT_EQ(first->layout().fingerprint, other->layout().fingerprint);
}

TEST(ModelTest, InitialisationsHaveTheirBounds) {
  auto spec = Mlp({100, 50, 5});
  const auto largest = [&](const char* how, const char* tensor) {
    spec.model.initialization = how;
    const auto model = Make(spec);
    float most = 0;
    for (const float value : Tensor(*model, tensor)) most = std::max(most, std::abs(value));
    return most;
  };
  EXPECT_NEAR(largest("kaiming_uniform", "linear0.weight"), 0.1, 0.001);
  EXPECT_NEAR(largest("kaiming_uniform", "linear0.bias"), 0.1, 0.01);
  EXPECT_NEAR(largest("xavier_uniform", "linear0.weight"), 0.2, 0.001);
  EXPECT_EQ(largest("xavier_uniform", "linear0.bias"), 0.0f);
  EXPECT_EQ(largest("zeros", "linear0.weight"), 0.0f);
}

TEST(ModelTest, BatchNormStartsAsIdentity) {
  const auto model = Make(Cnn());
  for (const float value : Tensor(*model, "norm0.weight")) EXPECT_EQ(value, 1.0f);
  for (const float value : Tensor(*model, "norm0.bias")) EXPECT_EQ(value, 0.0f);
}

// Against the difference quotient of the loss, for some parameters of each tensor.
void ExpectGradientsOf(const JobSpec& spec, const Records& records) {
  const auto model = Make(spec);
  ASSERT_TRUE(model->Step(records.batch()).ok());
  const std::vector<float> gradients(model->gradients().begin(), model->gradients().end());
  for (const auto& tensor : model->layout().tables[0]->tensors) {
    for (std::uint64_t i = 0; i < tensor->elements; i += 1 + tensor->elements / 5) {
      float& parameter = model->parameters()[tensor->offset + i];
      const float kept = parameter;
      const float step = 1e-2f;
      parameter = kept + step;
      const double above = model->Step(records.batch()).value();
      parameter = kept - step;
      const double below = model->Step(records.batch()).value();
      parameter = kept;
      EXPECT_NEAR(gradients[tensor->offset + i], (above - below) / (2 * step), 5e-3)
          << tensor->name << " " << i;
    }
  }
}

TEST(ModelTest, GradientsOfAnMlpAreThoseOfItsLoss) {
  auto spec = Mlp({12, 9, 4});
  spec.model.activation = "tanh";
  ExpectGradientsOf(spec, Pattern(16, 12, 4));
}

TEST(ModelTest, GradientsOfSquaredErrorAreThoseOfItsLoss) {
  auto spec = Mlp({6, 5, 1});
  spec.model.activation = "tanh";
  spec.training.loss = "mse";
  spec.training.metric = "mse";
  ExpectGradientsOf(spec, Pattern(8, 6, 3));
}

TEST(ModelTest, GradientsStayInTheFlatBufferStepAfterStep) {
  const auto model = Make(Cnn());
  const auto records = Pattern(6, 64, 3);
  const float* parameters = model->parameters().data();
  const float* gradients = model->gradients().data();
  ASSERT_TRUE(model->Step(records.batch()).ok());
  const std::vector<float> first(gradients, gradients + model->gradients().size());
  EXPECT_TRUE(std::any_of(first.begin(), first.end(), [](float value) { return value != 0; }));
  // In training mode batch norm does not depend on its statistics: the same batch, the same
  // gradient, so nothing is left over from the step before.
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(model->Step(records.batch()).ok());
  EXPECT_EQ(model->parameters().data(), parameters);
  EXPECT_EQ(model->gradients().data(), gradients);
  EXPECT_TRUE(std::equal(first.begin(), first.end(), gradients));
}

TEST(ModelTest, DescendingTheGradientLowersTheLoss) {
  for (const auto& spec : {Mlp({64, 32, 3}), Cnn()}) {
    const auto model = Make(spec);
    const auto records = Pattern(12, 64, 3);
    const double before = model->Step(records.batch()).value();
    double after = before;
    for (int step = 0; step < 150; ++step) {
      after = model->Step(records.batch()).value();
      for (std::size_t i = 0; i < model->parameters().size(); ++i) {
        model->parameters()[i] -= 0.1f * model->gradients()[i];
      }
    }
    EXPECT_LT(after, before / 2) << spec.model.type;
  }
}

TEST(ModelTest, EvaluationCountsRightAnswersOfAModelMadeByHand) {
  const auto model = Make(Mlp({2, 2}));
  // Class 0 where the first feature is larger, class 1 otherwise.
  const std::vector<float> identity = {1, 0, 0, 1};
  std::copy(identity.begin(), identity.end(), Tensor(*model, "linear0.weight").begin());
  for (float& bias : Tensor(*model, "linear0.bias")) bias = 0;
  const Records records{{3, 1, 0, 2, 5, 4, 1, 9}, {0, 1, 1, 1}};
  const auto sums = model->Evaluate(records.batch());
  ASSERT_TRUE(sums.ok());
  EXPECT_EQ(sums->records, 4u);
  EXPECT_EQ(sums->metric, 3.0);
  EXPECT_EQ(sums->mean_metric(), 0.75);
  const double expected = std::log(1 + std::exp(-2.0)) + std::log(1 + std::exp(-2.0)) +
                          std::log(1 + std::exp(1.0)) + std::log(1 + std::exp(-8.0));
  EXPECT_NEAR(sums->loss, expected, 1e-5);
}

TEST(ModelTest, EvaluationOfSquaredErrorAddsUpTheErrors) {
  auto spec = Mlp({1, 1});
  spec.training.loss = "mse";
  spec.training.metric = "mse";
  const auto model = Make(spec);
  Tensor(*model, "linear0.weight")[0] = 2;
  Tensor(*model, "linear0.bias")[0] = 1;
  const Records records{{0, 1, 2}, {1, 3, 2}};  // answers 1, 3, 5
  const auto sums = model->Evaluate(records.batch());
  ASSERT_TRUE(sums.ok());
  EXPECT_NEAR(sums->metric, 9, 1e-5);
  EXPECT_NEAR(sums->mean_loss(), 3, 1e-5);
}

TEST(ModelTest, BuffersMoveInTrainingOnlyAndCanBeReadAndWritten) {
  const auto model = Make(Cnn());
  const auto records = Pattern(6, 64, 3);
  std::vector<float> buffers(model->buffer_elements());
  std::vector<float> counters(model->counter_elements());
  ASSERT_TRUE(model->Evaluate(records.batch()).ok());
  model->ReadBuffers(buffers, counters);
  EXPECT_THAT(counters, ElementsAre(0, 0));
  ASSERT_TRUE(model->Step(records.batch()).ok());
  const auto before = buffers;
  model->ReadBuffers(buffers, counters);
  EXPECT_THAT(counters, ElementsAre(1, 1));
  EXPECT_NE(buffers, before);

  std::iota(buffers.begin(), buffers.end(), 1.0f);
  counters = {16'000'000, 7};
  model->WriteBuffers(buffers, counters);
  std::vector<float> read(buffers.size());
  std::vector<float> counted(counters.size());
  model->ReadBuffers(read, counted);
  EXPECT_EQ(read, buffers);
  EXPECT_EQ(counted, counters);
}

TEST(ModelTest, AClassThatTheModelLacksIsAnError) {
  const auto model = Make(Mlp({4, 3}));
  for (const float label : {3.0f, -1.0f, 0.5f, std::nanf("")}) {
    auto records = Pattern(2, 4, 3);
    records.labels[1] = label;
    const auto result = model->Step(records.batch());
    ASSERT_FALSE(result.ok()) << label;
    EXPECT_EQ(result.error().code, ErrorCode::kInvalid);
    EXPECT_THAT(result.error().message, HasSubstr("the model has the classes 0 to 2"));
  }
}

TEST(ModelTest, RecordsOfAnotherSizeAreAnError) {
  const auto model = Make(Mlp({4, 3}));
  const auto result = model->Step(Pattern(2, 5, 3).batch());
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(result.error().message, HasSubstr("takes 4 features a record, the data has 5"));
}

TEST(ModelTest, SquaredErrorWantsOneNumberARecord) {
  auto spec = Mlp({4, 3});
  spec.training.loss = "mse";
  spec.training.metric = "none";
  const auto result = Make(spec)->Step(Pattern(2, 4, 3).batch());
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(result.error().message, HasSubstr("loss mse wants one number a record"));
}

TEST(ModelTest, MetricsThatDoNotGoWithTheLossAreRefused) {
  auto spec = Mlp({4, 1});
  spec.training.loss = "mse";
  EXPECT_THAT(ErrorOf(spec), HasSubstr("training.metric"));
  spec.training.loss = "cross_entropy";
  spec.training.metric = "mse";
  EXPECT_THAT(ErrorOf(spec), HasSubstr("training.metric"));
}

TEST(ModelTest, ShapesThatCannotBeAreRefused) {
  EXPECT_THAT(ErrorOf(Mlp({4})), HasSubstr("model.layers"));
  EXPECT_THAT(ErrorOf(Mlp({4, 0, 2})), HasSubstr("model.layers"));
  auto spec = Cnn();
  spec.model.input_shape = {1, 3, 8};
  EXPECT_THAT(ErrorOf(spec), HasSubstr("model.input_shape"));
  spec.model.input_shape = {28, 28};
  EXPECT_THAT(ErrorOf(spec), HasSubstr("model.input_shape"));
  spec.model.type = "rnn";
  EXPECT_THAT(ErrorOf(spec), HasSubstr("rnn"));
}

}  // namespace
}  // namespace ps::worker
