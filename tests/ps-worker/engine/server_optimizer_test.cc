// The servers' optimizers beside LibTorch's, which users know, on the same gradients.
#include <ATen/core/ivalue.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "ps-server/core/dense_store.h"
#include "tests/ps-server/core/server_testing.h"

namespace ps::server {
namespace {

constexpr std::uint32_t kElements = 500;
constexpr int kSteps = 300;
constexpr double kRate = 0.02;

// Runs both and compares all along the way.
void ExpectAlike(const OptimizerRules& rules, torch::Tensor parameter,
                 torch::optim::Optimizer& peer) {
  const Optimizer optimizer(rules);
  const LayoutView layout = testing::MakeLayout({{TableRule::Sgd, {kElements}}}, 1);
  DenseStore store(layout, 0, 1, StoreShape::Of(optimizer, /*sparse=*/false));
  const float* const peer_values = parameter.data_ptr<float>();
  store.Init(std::vector<float>(peer_values, peer_values + kElements), optimizer);
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0.1f, 1.0f);
  std::vector<float> gradient(kElements);
  for (int step = 1; step <= kSteps; ++step) {
    for (float& value : gradient) value = normal(random);
    parameter.mutable_grad() =
        torch::from_blob(gradient.data(), {kElements}, torch::kFloat32).clone();
    peer.step();
    const testing::Bytes bytes = testing::DenseBlock(0, gradient);
    store.Update(testing::Parse(layout, bytes)[0], optimizer, optimizer.StepOf(kRate, 1));
    if (step % 25 != 0) continue;
    const std::vector<float> values = store.Values();
    for (std::uint32_t i = 0; i < kElements; ++i) {
      ASSERT_NEAR(values[i], peer_values[i], 2e-5 + 2e-5 * std::abs(peer_values[i]))
          << "element " << i << " after step " << step;
    }
  }
}

torch::Tensor Parameter() {
  torch::manual_seed(5);
  return torch::randn({kElements});
}

TEST(ServerOptimizerTest, SgdIsTorchs) {
  const torch::Tensor parameter = Parameter();
  torch::optim::SGD peer({parameter}, torch::optim::SGDOptions(kRate));
  OptimizerRules rules;
  ExpectAlike(rules, parameter, peer);
}

TEST(ServerOptimizerTest, MomentumIsTorchs) {
  const torch::Tensor parameter = Parameter();
  torch::optim::SGD peer({parameter}, torch::optim::SGDOptions(kRate).momentum(0.9));
  OptimizerRules rules;
  rules.type = OptimizerType::kMomentum;
  ExpectAlike(rules, parameter, peer);
}

TEST(ServerOptimizerTest, NesterovIsTorchs) {
  const torch::Tensor parameter = Parameter();
  torch::optim::SGD peer({parameter}, torch::optim::SGDOptions(kRate).momentum(0.9).nesterov(true));
  OptimizerRules rules;
  rules.type = OptimizerType::kNesterov;
  ExpectAlike(rules, parameter, peer);
}

TEST(ServerOptimizerTest, AdagradIsTorchs) {
  const torch::Tensor parameter = Parameter();
  torch::optim::Adagrad peer(
      {parameter}, torch::optim::AdagradOptions(kRate).initial_accumulator_value(0.1).eps(1e-10));
  OptimizerRules rules;
  rules.type = OptimizerType::kAdagrad;
  rules.initial_accumulator = 0.1;
  rules.epsilon = 1e-10;
  ExpectAlike(rules, parameter, peer);
}

TEST(ServerOptimizerTest, AdamIsTorchs) {
  const torch::Tensor parameter = Parameter();
  torch::optim::Adam peer({parameter}, torch::optim::AdamOptions(kRate));
  OptimizerRules rules;
  rules.type = OptimizerType::kAdam;
  ExpectAlike(rules, parameter, peer);
}

TEST(ServerOptimizerTest, AdamWIsTorchs) {
  const torch::Tensor parameter = Parameter();
  torch::optim::AdamW peer(
      {parameter},
      torch::optim::AdamWOptions(kRate).betas(std::make_tuple(0.8, 0.99)).weight_decay(0.05));
  OptimizerRules rules;
  rules.type = OptimizerType::kAdamW;
  rules.beta1 = 0.8;
  rules.beta2 = 0.99;
  rules.weight_decay = 0.05;
  ExpectAlike(rules, parameter, peer);
}

}  // namespace
}  // namespace ps::server
