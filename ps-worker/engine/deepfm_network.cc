// First: clang 14 needs IValue complete where torch's other headers use it.
#include <ATen/core/ivalue.h>
#include <torch/nn.h>

#include <cmath>
#include <exception>
#include <utility>

#include "common/error_id.h"
#include "ps-worker/engine/initializer.h"
#include "ps-worker/engine/network.h"

namespace ps::worker {
namespace {

namespace nn = torch::nn;

// docs/job-file.md has the formula. The pairs' sum of products is half of the difference of the
// square of the sum and the sum of the squares of the factors.
class DeepFm final : public Network {
 public:
  DeepFm(const ModelSpec& spec, const DeepFmShape& shape, std::uint64_t seed) : shape_(shape) {
    description_ = "deepfm";
    bias_ = at::zeros({1}).requires_grad_(true);
    if (shape.features > 0) {
      weights_ = at::zeros({shape.features, 1}).requires_grad_(true);
    }
    std::int64_t width = shape.features + shape.id_columns * (shape.width - 1);
    for (std::size_t i = 0; i < spec.hidden_layers.size(); ++i) {
      const auto number = std::to_string(i);
      layers_->push_back("linear" + number, nn::Linear(width, spec.hidden_layers[i]));
      if (spec.activation == "tanh") {
        layers_->push_back("tanh" + number, nn::Tanh());
      } else {
        layers_->push_back("relu" + number, nn::ReLU());
      }
      width = spec.hidden_layers[i];
    }
    if (!spec.hidden_layers.empty()) layers_->push_back("output", nn::Linear(width, 1));
    FillLinearLayers(*layers_, spec.initialization, seed);
  }

  at::Tensor Forward(const at::Tensor&) override {
    TORCH_CHECK(false, "a deepfm needs the rows of its ids");
    return {};
  }

  at::Tensor ForwardRows(const at::Tensor& input, const at::Tensor& rows) override {
    TORCH_CHECK(rows.size(1) == shape_.id_columns && rows.size(2) == shape_.width,
                "the rows do not fit the model");
    const auto factors = rows.narrow(2, 1, shape_.width - 1);
    auto output = rows.select(2, 0).sum(1) + bias_;
    output = output + 0.5 * (factors.sum(1).square() - factors.square().sum(1)).sum(1);
    if (weights_.defined()) output = output + input.matmul(weights_).squeeze(1);
    if (!layers_->is_empty()) {
      auto deep = factors.flatten(1);
      if (weights_.defined()) deep = at::cat({deep, input}, 1);
      output = output + layers_->forward(deep).squeeze(1);
    }
    return output;
  }

  std::vector<NamedTensor> Parameters() override {
    std::vector<NamedTensor> result{{"bias", bias_}};
    if (weights_.defined()) result.push_back({"weights", weights_});
    for (auto& parameter : ParametersOf(*layers_)) result.push_back(std::move(parameter));
    return result;
  }
  std::vector<NamedTensor> Buffers() override { return {}; }
  void SetTraining(bool on) override { layers_->train(on); }
  void MoveTo(const at::Device& device) override {
    layers_->to(device);
    bias_.set_data(bias_.detach().to(device));
    if (weights_.defined()) weights_.set_data(weights_.detach().to(device));
  }

 private:
  const DeepFmShape shape_;
  at::Tensor bias_;
  at::Tensor weights_;  // not defined without features
  nn::Sequential layers_;
};

}  // namespace

Result<std::unique_ptr<Network>> MakeDeepFm(const ModelSpec& spec, const DeepFmShape& shape,
                                            std::uint64_t seed) {
  if (shape.id_columns < 1 || shape.width < 2) {
    return Error{ErrorId::kModelShape,
                 "embedding_tables: a deepfm needs columns of ids and rows of at least 2 floats"};
  }
  try {
    return std::unique_ptr<Network>(std::make_unique<DeepFm>(spec, shape, seed));
  } catch (const std::exception& error) {
    return Error{ErrorId::kModelShape, "cannot build the model: " + FirstLine(error.what())};
  }
}

}  // namespace ps::worker
