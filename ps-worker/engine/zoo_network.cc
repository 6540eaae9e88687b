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

class ZooNetwork final : public Network {
 public:
  ZooNetwork(nn::Sequential layers, std::vector<std::int64_t> input_shape, std::string description)
      : layers_(std::move(layers)) {
    input_shape_ = std::move(input_shape);
    description_ = std::move(description);
  }

  at::Tensor Forward(const at::Tensor& input) override { return layers_->forward(input); }

  std::vector<NamedTensor> Parameters() override { return ParametersOf(*layers_); }
  std::vector<NamedTensor> Buffers() override { return BuffersOf(*layers_); }
  void SetTraining(bool on) override { layers_->train(on); }
  void MoveTo(const at::Device& device) override { layers_->to(device); }

  void Initialize(const std::string& how, std::uint64_t seed) {
    FillLinearLayers(*layers_, how, seed);
  }

 private:
  nn::Sequential layers_;
};

std::unique_ptr<ZooNetwork> MakeMlp(const ModelSpec& spec) {
  nn::Sequential layers;
  std::string widths;
  for (std::size_t i = 0; i + 1 < spec.layers.size(); ++i) {
    const auto number = std::to_string(i);
    layers->push_back("linear" + number, nn::Linear(spec.layers[i], spec.layers[i + 1]));
    widths += std::to_string(spec.layers[i]) + "-";
    if (i + 2 == spec.layers.size()) break;
    if (spec.activation == "tanh") {
      layers->push_back("tanh" + number, nn::Tanh());
    } else {
      layers->push_back("relu" + number, nn::ReLU());
    }
  }
  return std::make_unique<ZooNetwork>(layers, std::vector<std::int64_t>{spec.layers.front()},
                                      "mlp " + widths + std::to_string(spec.layers.back()));
}

std::unique_ptr<ZooNetwork> MakeCnn(const ModelSpec& spec) {
  nn::Sequential layers;
  auto channels = spec.input_shape[0];
  auto height = spec.input_shape[1];
  auto width = spec.input_shape[2];
  for (std::size_t i = 0; i < spec.channels.size(); ++i) {
    const auto number = std::to_string(i);
    // A bias before a batch norm does nothing: the norm takes it away.
    layers->push_back(
        "convolution" + number,
        nn::Conv2d(
            nn::Conv2dOptions(channels, spec.channels[i], 3).padding(1).bias(!spec.batch_norm)));
    if (spec.batch_norm) layers->push_back("norm" + number, nn::BatchNorm2d(spec.channels[i]));
    layers->push_back("relu" + number, nn::ReLU());
    layers->push_back("pool" + number, nn::MaxPool2d(2));
    channels = spec.channels[i];
    height /= 2;
    width /= 2;
  }
  layers->push_back("flatten", nn::Flatten());
  layers->push_back("hidden", nn::Linear(channels * height * width, spec.hidden));
  layers->push_back("relu_hidden", nn::ReLU());
  layers->push_back("output", nn::Linear(spec.hidden, spec.classes));
  return std::make_unique<ZooNetwork>(layers, spec.input_shape, "cnn");
}

Status CheckMlp(const ModelSpec& spec) {
  if (spec.layers.size() < 2) {
    return Error{ErrorId::kModelShape, "model.layers: an mlp needs an input and an output width"};
  }
  for (const auto width : spec.layers) {
    if (width < 1) return Error{ErrorId::kModelShape, "model.layers: a width is below 1"};
  }
  return Ok();
}

Status CheckCnn(const ModelSpec& spec) {
  if (spec.input_shape.size() != 3) {
    return Error{ErrorId::kModelShape,
                 "model.input_shape: a cnn needs [channels, height, width], e.g. [1, 28, 28]"};
  }
  std::int64_t least = 1;
  for (const auto channels : spec.channels) {
    if (channels < 1) return Error{ErrorId::kModelShape, "model.channels: a number is below 1"};
    least *= 2;
  }
  if (spec.channels.empty()) return Error{ErrorId::kModelShape, "model.channels: is empty"};
  if (spec.input_shape[0] < 1 || spec.input_shape[1] < least || spec.input_shape[2] < least) {
    return Error{ErrorId::kModelShape, "model.input_shape: smaller than the cnn's poolings need"};
  }
  if (spec.hidden < 1 || spec.classes < 1) {
    return Error{ErrorId::kModelShape, "model.hidden and model.classes must be at least 1"};
  }
  return Ok();
}

}  // namespace

std::vector<NamedTensor> ParametersOf(const torch::nn::Module& module) {
  std::vector<NamedTensor> result;
  for (const auto& item : module.named_parameters()) result.push_back({item.key(), item.value()});
  return result;
}

std::vector<NamedTensor> BuffersOf(const torch::nn::Module& module) {
  std::vector<NamedTensor> result;
  for (const auto& item : module.named_buffers()) result.push_back({item.key(), item.value()});
  return result;
}

void FillLinearLayers(torch::nn::Module& layers, const std::string& how, std::uint64_t seed) {
  torch::NoGradGuard no_grad;
  for (const auto& child : layers.named_children()) {
    if (child.value()->as<nn::BatchNorm2d>() != nullptr) continue;
    auto parameters = child.value()->named_parameters(/*recurse=*/false);
    const auto* weight = parameters.find("weight");
    if (weight == nullptr) continue;
    const auto per_filter = weight->dim() > 2 ? (*weight)[0][0].numel() : 1;
    const auto fan_in = static_cast<double>(weight->size(1) * per_filter);
    const auto fan_out = static_cast<double>(weight->size(0) * per_filter);
    for (auto& parameter : parameters) {
      auto& tensor = parameter.value();
      const bool is_weight = parameter.key() == "weight";
      double bound = 1.0 / std::sqrt(fan_in);
      if (how == "xavier_uniform") bound = is_weight ? std::sqrt(6.0 / (fan_in + fan_out)) : 0.0;
      if (how == "zeros") bound = 0.0;
      FillUniform(seed, child.key() + "." + parameter.key(), static_cast<float>(bound),
                  {tensor.data_ptr<float>(), static_cast<std::size_t>(tensor.numel())});
    }
  }
}

std::string FirstLine(const std::string& text) { return text.substr(0, text.find('\n')); }

Result<std::unique_ptr<Network>> MakeZooNetwork(const ModelSpec& spec, std::uint64_t seed) {
  const bool mlp = spec.type == "mlp";
  PS_TRY(mlp ? CheckMlp(spec) : CheckCnn(spec));
  try {
    auto network = mlp ? MakeMlp(spec) : MakeCnn(spec);
    network->Initialize(spec.initialization, seed);
    return std::unique_ptr<Network>(std::move(network));
  } catch (const std::exception& error) {
    return Error{ErrorId::kModelShape, "cannot build the model: " + FirstLine(error.what())};
  }
}

}  // namespace ps::worker
