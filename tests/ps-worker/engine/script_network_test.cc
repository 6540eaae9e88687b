// TorchScript files as users save them, made here from source so that no Python is needed.
// First: clang 14 needs IValue complete where torch's other headers use it.
#include <ATen/core/ivalue.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "ps-worker/engine/model.h"
#include "tests/support/temp_directory.h"

namespace ps::worker {
namespace {

using ::testing::HasSubstr;

class ScriptNetworkTest : public ::testing::Test {
 protected:
  ScriptNetworkTest() {
    SetComputeThreads(1);
    spec_.model.type = "torchscript";
    spec_.model.file = (directory_ / "model.pt").string();
    spec_.model.input_shape = {3};
  }

  // Two classes of three features.
  static torch::jit::Module Linear() {
    torch::jit::Module module("linear");
    module.register_attribute("training", c10::BoolType::get(), true);
    const auto weight =
        (torch::arange(6, torch::kFloat).view({2, 3}) * 0.1).set_requires_grad(true);
    module.register_parameter("weight", weight, /*is_buffer=*/false);
    module.register_parameter("bias", torch::zeros({2}).set_requires_grad(true),
                              /*is_buffer=*/false);
    return module;
  }

  static void DefineLinear(torch::jit::Module& module) {
    module.define("def forward(self, x):\n  return torch.linear(x, self.weight, self.bias)\n");
  }

  void Save(const torch::jit::Module& module) { module.save(spec_.model.file); }

  std::unique_ptr<Model> Load() {
    auto model = Model::Create(spec_);
    EXPECT_TRUE(model.ok()) << model.error().message;
    return std::move(model).value();
  }

  std::string LoadError() {
    const auto model = Model::Create(spec_);
    if (model.ok()) return "";
    EXPECT_EQ(model.error().code, ErrorCode::kInvalid);
    EXPECT_THAT(model.error().message, HasSubstr(spec_.model.file));
    return model.error().message;
  }

  std::string StepError() {
    const auto result = Load()->Step(batch());
    if (result.ok()) return "";
    EXPECT_EQ(result.error().code, ErrorCode::kInvalid);
    EXPECT_THAT(result.error().message, HasSubstr(spec_.model.file));
    return result.error().message;
  }

  Batch batch() const { return {features_, labels_, 2}; }

  test::TempDirectory directory_{"script"};
  JobSpec spec_;
  const std::vector<float> features_ = {1, 2, 3, -1, 0, 1};
  const std::vector<float> labels_ = {0, 1};
};

TEST_F(ScriptNetworkTest, TrainsFromTheValuesOfTheFile) {
  auto module = Linear();
  DefineLinear(module);
  Save(module);
  const auto model = Load();
  ASSERT_EQ(model->parameters().size(), 8u);
  EXPECT_FLOAT_EQ(model->parameters()[5], 0.5f);
  const double before = model->Step(batch()).value();
  for (int step = 0; step < 50; ++step) {
    ASSERT_TRUE(model->Step(batch()).ok());
    for (std::size_t i = 0; i < 8; ++i) model->parameters()[i] -= model->gradients()[i];
  }
  EXPECT_LT(model->Step(batch()).value(), before / 4);
  EXPECT_EQ(model->Evaluate(batch())->metric, 2.0);
}

TEST_F(ScriptNetworkTest, BuffersAndTrainingModeAreThoseOfTheModule) {
  auto module = Linear();
  module.register_parameter("seen", torch::zeros({3}), /*is_buffer=*/true);
  module.register_parameter("count", torch::zeros({}, torch::kLong), /*is_buffer=*/true);
  module.define(
      "def forward(self, x):\n"
      "  if self.training:\n"
      "    self.seen.add_(x.sum(0).detach())\n"
      "    self.count.add_(1)\n"
      "  return torch.linear(x, self.weight, self.bias)\n");
  Save(module);
  const auto model = Load();
  ASSERT_TRUE(model->Step(batch()).ok());
  ASSERT_TRUE(model->Evaluate(batch()).ok());
  std::vector<float> seen(model->buffer_elements());
  std::vector<float> count(model->counter_elements());
  model->ReadBuffers(seen, count);
  EXPECT_EQ(seen, (std::vector<float>{0, 2, 4}));
  EXPECT_EQ(count, (std::vector<float>{1}));
}

TEST_F(ScriptNetworkTest, TiedParametersAreOneTensorWithTheSumOfTheirGradients) {
  torch::jit::Module module("tied");
  module.register_attribute("training", c10::BoolType::get(), true);
  const auto weight = torch::eye(3).mul(0.5).set_requires_grad(true);
  module.register_parameter("first", weight, false);
  module.register_parameter("second", weight, false);
  module.define(
      "def forward(self, x):\n"
      "  return torch.matmul(torch.matmul(x, self.first), self.second)\n");
  Save(module);
  const auto model = Load();
  EXPECT_EQ(model->parameters().size(), 9u);
  ASSERT_TRUE(model->Step(batch()).ok());
  const std::vector<float> gradients(model->gradients().begin(), model->gradients().end());
  // A step along the one tensor moves both places where it is used.
  for (std::size_t i = 0; i < 9; ++i) {
    float& parameter = model->parameters()[i];
    const float kept = parameter;
    parameter = kept + 1e-2f;
    const double above = model->Step(batch()).value();
    parameter = kept - 1e-2f;
    const double below = model->Step(batch()).value();
    parameter = kept;
    EXPECT_NEAR(gradients[i], (above - below) / 2e-2, 2e-3) << i;
  }
}

TEST_F(ScriptNetworkTest, ParametersThatAreNotTrainedAreNotInTheTable) {
  auto module = Linear();
  DefineLinear(module);
  module.attr("bias").toTensor().set_requires_grad(false);
  Save(module);
  EXPECT_EQ(Load()->parameters().size(), 6u);
}

TEST_F(ScriptNetworkTest, AnotherFileIsAnotherFingerprint) {
  auto module = Linear();
  DefineLinear(module);
  Save(module);
  const auto first = Load()->layout().fingerprint;
  EXPECT_EQ(Load()->layout().fingerprint, first);
  {
    torch::NoGradGuard no_grad;
    module.attr("weight").toTensor().add_(1);
  }
  Save(module);
  EXPECT_NE(Load()->layout().fingerprint, first);
}

TEST_F(ScriptNetworkTest, AMissingFileIsNamed) {
  EXPECT_THAT(LoadError(), HasSubstr("cannot be opened"));
}

TEST_F(ScriptNetworkTest, OtherFilesAreRefused) {
  for (const std::string content : {"", "\x80\x02}q.", "PK\x03\x04 and nothing that follows"}) {
    std::ofstream(spec_.model.file, std::ios::binary | std::ios::trunc) << content;
    EXPECT_THAT(LoadError(), HasSubstr("not a TorchScript file"));
  }
}

TEST_F(ScriptNetworkTest, ACutFileIsRefused) {
  auto module = Linear();
  DefineLinear(module);
  Save(module);
  std::ifstream in(spec_.model.file, std::ios::binary);
  const std::string whole(std::istreambuf_iterator<char>(in), {});
  for (const std::size_t size : {whole.size() / 4, whole.size() / 2, whole.size() - 1}) {
    std::ofstream(spec_.model.file, std::ios::binary | std::ios::trunc) << whole.substr(0, size);
    EXPECT_THAT(LoadError(), HasSubstr("not a TorchScript file"));
  }
}

TEST_F(ScriptNetworkTest, AModuleWithoutParametersIsRefused) {
  torch::jit::Module module("none");
  module.register_attribute("training", c10::BoolType::get(), true);
  module.define("def forward(self, x):\n  return x\n");
  Save(module);
  EXPECT_THAT(LoadError(), HasSubstr("no trainable float parameters"));
}

TEST_F(ScriptNetworkTest, AFrozenModuleIsRefused) {
  auto module = Linear();
  DefineLinear(module);
  module.eval();
  Save(torch::jit::freeze(module));
  EXPECT_THAT(LoadError(), HasSubstr("frozen"));
}

TEST_F(ScriptNetworkTest, ParametersOfAnotherTypeAreRefused) {
  auto module = Linear();
  DefineLinear(module);
  module.to(torch::kDouble);
  Save(module);
  EXPECT_THAT(LoadError(), HasSubstr("only Float is trained"));
}

TEST_F(ScriptNetworkTest, AModuleWithoutForwardIsRefused) {
  Save(Linear());
  EXPECT_THAT(LoadError(), HasSubstr("forward"));
}

TEST_F(ScriptNetworkTest, AnOutputThatIsNoTensorIsAnError) {
  auto module = Linear();
  module.define("def forward(self, x):\n  return (torch.linear(x, self.weight, self.bias), x)\n");
  Save(module);
  EXPECT_THAT(StepError(), HasSubstr("one tensor is expected"));
}

TEST_F(ScriptNetworkTest, AnOutputWithoutClassesIsAnError) {
  auto module = Linear();
  module.define("def forward(self, x):\n  return torch.linear(x, self.weight, self.bias).sum(1)\n");
  Save(module);
  EXPECT_THAT(StepError(), HasSubstr("cross_entropy wants [records, classes]"));
}

TEST_F(ScriptNetworkTest, AnErrorInTheScriptGivesItsReason) {
  auto module = Linear();
  module.define("def forward(self, x):\n  return torch.matmul(x, self.weight)\n");
  Save(module);
  EXPECT_THAT(StepError(), HasSubstr("mat1 and mat2 shapes cannot be multiplied"));
}

}  // namespace
}  // namespace ps::worker
