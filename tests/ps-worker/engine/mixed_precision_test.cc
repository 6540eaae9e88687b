// The same gradients in other numbers, at other scales, and in parts.
#include <ATen/core/ivalue.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "ps-worker/engine/model.h"
#include "tests/support/temp_directory.h"

namespace ps::worker {
namespace {

constexpr std::size_t kRecords = 256;
constexpr std::size_t kSide = 12;
constexpr std::size_t kClasses = 5;
constexpr double kBf16Error = 3e-2;  // of the norm

// A model, and a batch for it.
struct Case {
  std::string name;
  JobSpec spec;
  std::vector<float> features;
  std::vector<float> labels;
  std::vector<std::uint64_t> ids;
  BatchRows rows;

  std::unique_ptr<Model> Make() const {
    SetComputeThreads(1);
    auto model = Model::Create(spec, features.size() / kRecords);
    EXPECT_TRUE(model.ok()) << model.error().message;
    return std::move(model).value();
  }
  Batch batch() const {
    return {features, labels, static_cast<std::uint32_t>(labels.size()), ids,
            rows.tables.empty() ? nullptr : &rows};
  }
};

Case WithData(const char* name, std::size_t features, std::size_t classes) {
  Case one;
  one.name = name;
  // What the classes have in common would cancel in the gradient, and leave rounding errors: so
  // they differ, as they do in data that can be learned.
  for (std::size_t i = 0; i < kRecords; ++i) {
    for (std::size_t f = 0; f < features; ++f) {
      const float noise = std::sin(static_cast<float>(1 + i * features + f) * 1.3f);
      one.features.push_back(0.3f * noise + (f * classes / features == i % classes ? 1.0f : 0.0f));
    }
    one.labels.push_back(static_cast<float>(i % classes));
  }
  return one;
}

class MixedPrecisionTest : public ::testing::Test {
 protected:
  std::vector<Case> Cases() {
    Case mlp = WithData("mlp", 100, kClasses);
    mlp.spec.model.type = "mlp";
    mlp.spec.model.layers = {100, 64, 32, kClasses};
    Case cnn = WithData("cnn", kSide * kSide, kClasses);
    cnn.spec.model.type = "cnn";
    cnn.spec.model.input_shape = {1, kSide, kSide};
    cnn.spec.model.channels = {8, 16};
    cnn.spec.model.hidden = 32;
    cnn.spec.model.classes = kClasses;
    Case plain_cnn = cnn;
    plain_cnn.name = "cnn without batch norm";
    plain_cnn.spec.model.batch_norm = false;
    Case script = WithData("torchscript", 20, 3);
    script.spec.model.type = "torchscript";
    script.spec.model.file = (directory_ / "model.pt").string();
    script.spec.model.input_shape = {20};
    SaveScript(script.spec.model.file);
    Case deepfm = WithData("deepfm", 3, 2);
    deepfm.spec.model.type = "deepfm";
    deepfm.spec.model.hidden_layers = {16, 8};
    deepfm.spec.training.loss = "binary_cross_entropy";
    deepfm.spec.training.metric = "auc";
    deepfm.spec.embedding_tables.resize(1);
    deepfm.spec.embedding_tables[0].name = "things";
    deepfm.spec.embedding_tables[0].columns = {"a", "b"};
    deepfm.spec.embedding_tables[0].width = 5;
    for (std::size_t i = 0; i < kRecords; ++i) deepfm.ids.insert(deepfm.ids.end(), {i % 7, i % 3});
    FindRows(deepfm.spec.embedding_tables, deepfm.ids, deepfm.rows);
    for (auto& table : deepfm.rows.tables) {
      for (std::size_t i = 0; i < table.keys.size() * 5; ++i) {
        table.values.push_back(0.5f * std::sin(static_cast<float>(i) * 2.1f));
      }
    }
    return {mlp, cnn, plain_cnn, script, deepfm};
  }

  static void SaveScript(const std::string& path) {
    torch::manual_seed(7);
    torch::jit::Module module("two_layers");
    module.register_attribute("training", c10::BoolType::get(), true);
    for (const auto& [name, out, in] : {std::tuple("first", 24, 20), std::tuple("second", 3, 24)}) {
      module.register_parameter(name, (torch::randn({out, in}) * 0.3).set_requires_grad(true),
                                /*is_buffer=*/false);
    }
    module.define(
        "def forward(self, x):\n"
        "  h = torch.relu(torch.linear(x, self.first))\n"
        "  return torch.linear(h, self.second)\n");
    module.save(path);
  }

  test::TempDirectory directory_{"precision"};
};

struct Gradients {
  double loss = 0;
  std::vector<float> values;  // of the parameters, and then of all rows
};

Gradients StepOf(Model& model, const Case& one, const StepMode& mode) {
  Gradients result;
  const auto loss = model.Step(one.batch(), mode);
  EXPECT_TRUE(loss.ok()) << one.name << ": " << loss.error().message;
  if (!loss.ok()) return result;
  result.loss = *loss;
  result.values.assign(model.gradients().begin(), model.gradients().end());
  for (std::uint32_t table = 0; table < one.rows.tables.size(); ++table) {
    const auto rows = model.row_gradients(table);
    result.values.insert(result.values.end(), rows.begin(), rows.end());
  }
  return result;
}

double Distance(const Gradients& a, const Gradients& b) {
  EXPECT_EQ(a.values.size(), b.values.size());
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < a.values.size() && i < b.values.size(); ++i) {
    difference += std::pow(double{a.values[i]} - b.values[i], 2);
    norm += std::pow(double{b.values[i]}, 2);
  }
  return std::sqrt(difference / norm);
}

TEST_F(MixedPrecisionTest, GradientsInBf16AreNearThoseInFp32) {
  for (const Case& one : Cases()) {
    const auto fp32 = StepOf(*one.Make(), one, {});
    const auto bf16 = StepOf(*one.Make(), one, {Precision::kBf16, 1});
    EXPECT_NEAR(bf16.loss, fp32.loss, kBf16Error * fp32.loss) << one.name;
    const double distance = Distance(bf16, fp32);
    RecordProperty(one.name, std::to_string(distance));
    EXPECT_LT(distance, kBf16Error) << one.name;
    // It does compute in other numbers.
    EXPECT_GT(distance, 1e-4) << one.name;
  }
}

TEST_F(MixedPrecisionTest, WhatFollowsABf16StepIsFp32Again) {
  for (const Case& one : Cases()) {
    const auto model = one.Make();
    const auto before = StepOf(*model, one, {});
    StepOf(*model, one, {Precision::kBf16, 1});
    const auto after = StepOf(*model, one, {});
    EXPECT_EQ(after.values, before.values) << one.name;
    ASSERT_TRUE(model->Evaluate(one.batch()).ok()) << one.name;
  }
}

// A step in bf16 after the parameters have changed computes with the new ones.
TEST_F(MixedPrecisionTest, ConvertedParametersAreNotKept) {
  for (const Case& one : Cases()) {
    const auto model = one.Make();
    StepOf(*model, one, {Precision::kBf16, 1});
    for (float& value : model->parameters()) value *= 0.5f;
    const auto halved = StepOf(*model, one, {Precision::kBf16, 1});
    const auto fp32 = StepOf(*model, one, {});
    EXPECT_LT(Distance(halved, fp32), kBf16Error) << one.name;
  }
}

// Powers of two change no digit.
TEST_F(MixedPrecisionTest, TheLossScaleDoesNotShowInTheGradients) {
  for (const Case& one : Cases()) {
    const auto plain = StepOf(*one.Make(), one, {});
    const auto scaled = StepOf(*one.Make(), one, {Precision::kFp32, 1024});
    EXPECT_EQ(scaled.loss, plain.loss) << one.name;
    EXPECT_EQ(scaled.values, plain.values) << one.name;
    const auto odd = StepOf(*one.Make(), one, {Precision::kFp32, 777});
    EXPECT_LT(Distance(odd, plain), 1e-5) << one.name;
  }
}

TEST_F(MixedPrecisionTest, AScaleThatIsTooLargeMakesGradientsThatAreNotFinite) {
  for (const Case& one : Cases()) {
    const auto huge = StepOf(*one.Make(), one, {Precision::kFp32, 3e38f});
    EXPECT_TRUE(std::isfinite(huge.loss)) << one.name;
    EXPECT_FALSE(std::isfinite(Distance(huge, huge))) << one.name;
  }
}

// Parts of 96, 96 and 64 records.
TEST_F(MixedPrecisionTest, AccumulatedBatchesHaveTheGradientOfTheWhole) {
  for (Case one : Cases()) {
    if (one.name == "cnn") continue;  // each part has its own batch norm
    const auto whole = StepOf(*one.Make(), one, {});
    one.spec.training.batch_size = 96;
    one.spec.training.accumulate = 4;
    const auto parts = StepOf(*one.Make(), one, {});
    EXPECT_NEAR(parts.loss, whole.loss, 1e-5) << one.name;
    EXPECT_LT(Distance(parts, whole), 1e-5) << one.name;
    const auto scaled = StepOf(*one.Make(), one, {Precision::kFp32, 4096});
    EXPECT_EQ(scaled.values, parts.values) << one.name;
  }
}

// Batch norm sees each part by itself, as where PyTorch accumulates.
TEST_F(MixedPrecisionTest, AccumulatedBatchesAreNormalisedEachByItself) {
  Case cnn = Cases()[1];
  ASSERT_EQ(cnn.name, "cnn");
  cnn.spec.training.batch_size = 128;
  cnn.spec.training.accumulate = 2;
  const auto parts = StepOf(*cnn.Make(), cnn, {});
  Gradients mean;
  cnn.spec.training.accumulate = 1;
  for (const std::size_t half : {0u, 1u}) {
    Case part = cnn;
    const std::size_t features = kSide * kSide;
    part.features.assign(
        cnn.features.begin() + static_cast<std::ptrdiff_t>(half * 128 * features),
        cnn.features.begin() + static_cast<std::ptrdiff_t>((half + 1) * 128 * features));
    part.labels.assign(cnn.labels.begin() + static_cast<std::ptrdiff_t>(half * 128),
                       cnn.labels.begin() + static_cast<std::ptrdiff_t>((half + 1) * 128));
    const auto model = cnn.Make();
    const auto step = StepOf(*model, part, {});
    mean.values.resize(step.values.size());
    for (std::size_t i = 0; i < step.values.size(); ++i) mean.values[i] += step.values[i] / 2;
  }
  EXPECT_LT(Distance(parts, mean), 1e-5);
}

}  // namespace
}  // namespace ps::worker
