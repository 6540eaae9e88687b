// First: clang 14 needs IValue complete where torch's other headers use it.
#include <ATen/core/ivalue.h>
#include <torch/nn.h>
#include <torch/version.h>

#include <cmath>
#include <exception>
#include <limits>
#include <utility>

#include "common/error_id.h"
#include "ps-worker/engine/initializer.h"
#include "ps-worker/engine/network.h"

namespace ps::worker {
namespace {

namespace nn = torch::nn;

constexpr std::int64_t kBytes = 256;
// Of GPT-2's initial weights; here uniform with that deviation.
constexpr double kDeviation = 0.02;

// Attention that looks back only, over `heads` parts of the width.
class AttentionImpl final : public nn::Module {
 public:
  AttentionImpl(std::int64_t width, std::int64_t heads, double dropout)
      : heads_(heads), dropout_(dropout) {
    in_ = register_module("in", nn::Linear(width, 3 * width));
    out_ = register_module("out", nn::Linear(width, width));
  }

  at::Tensor forward(const at::Tensor& x) {
    const auto records = x.size(0);
    const auto positions = x.size(1);
    const auto width = x.size(2);
    const auto parts = in_->forward(x).chunk(3, 2);
    const auto split = [&](const at::Tensor& part) {
      return part.view({records, positions, heads_, width / heads_}).transpose(1, 2);
    };
    const auto mixed = Attend(split(parts[0]), split(parts[1]), split(parts[2]));
    return out_->forward(mixed.transpose(1, 2).reshape({records, positions, width}));
  }

 private:
  at::Tensor Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const {
    const double dropout = is_training() ? dropout_ : 0;
#if TORCH_VERSION_MAJOR >= 2
    return at::scaled_dot_product_attention(q, k, v, {}, dropout, /*is_causal=*/true);
#else
    const auto positions = q.size(2);
    const double scale = 1 / std::sqrt(static_cast<double>(q.size(3)));
    const auto later =
        at::ones({positions, positions}, q.options().dtype(at::kBool)).triu(/*diagonal=*/1);
    const auto weights = at::matmul(q, k.transpose(2, 3))
                             .mul(scale)
                             .masked_fill(later, -std::numeric_limits<double>::infinity())
                             .softmax(3);
    return at::matmul(at::dropout(weights, dropout, is_training()), v);
#endif
  }

  const std::int64_t heads_;
  const double dropout_;
  nn::Linear in_{nullptr};
  nn::Linear out_{nullptr};
};
TORCH_MODULE(Attention);

class BlockImpl final : public nn::Module {
 public:
  BlockImpl(std::int64_t width, std::int64_t heads, double dropout) : dropout_(dropout) {
    const nn::LayerNormOptions norm({width});
    attention_norm_ = register_module("attention_norm", nn::LayerNorm(norm));
    attention_ = register_module("attention", Attention(width, heads, dropout));
    norm_ = register_module("norm", nn::LayerNorm(norm));
    in_ = register_module("in", nn::Linear(width, 4 * width));
    out_ = register_module("out", nn::Linear(4 * width, width));
  }

  at::Tensor forward(at::Tensor x) {
    x = x + Dropped(attention_->forward(attention_norm_->forward(x)));
    return x + Dropped(out_->forward(at::gelu(in_->forward(norm_->forward(x)))));
  }

 private:
  at::Tensor Dropped(const at::Tensor& x) const { return at::dropout(x, dropout_, is_training()); }

  const double dropout_;
  nn::LayerNorm attention_norm_{nullptr};
  Attention attention_{nullptr};
  nn::LayerNorm norm_{nullptr};
  nn::Linear in_{nullptr};
  nn::Linear out_{nullptr};
};
TORCH_MODULE(Block);

class TransformerImpl final : public nn::Module {
 public:
  TransformerImpl(const ModelSpec& spec, std::int64_t context) : dropout_(spec.dropout) {
    bytes_ = register_parameter("bytes", at::zeros({kBytes, spec.width}));
    positions_ = register_parameter("positions", at::zeros({context, spec.width}));
    for (std::int64_t i = 0; i < spec.depth; ++i) {
      blocks_->push_back(Block(spec.width, spec.heads, spec.dropout));
    }
    register_module("blocks", blocks_);
    norm_ = register_module("norm", nn::LayerNorm(nn::LayerNormOptions({spec.width})));
  }

  // [records, positions] of numbers of bytes to [records, positions, kBytes].
  at::Tensor forward(const at::Tensor& input) {
    auto x = at::embedding(bytes_, input.to(at::kLong)) + positions_;
    x = at::dropout(x, dropout_, is_training());
    for (const auto& block : *blocks_) x = block->as<BlockImpl>()->forward(x);
    return at::linear(norm_->forward(x), bytes_);
  }

  void Initialize(std::int64_t depth, std::uint64_t seed) {
    torch::NoGradGuard no_grad;
    for (auto& parameter : named_parameters()) {
      auto& tensor = parameter.value();
      const std::string& name = parameter.key();
      // Norms keep their ones and zeros, biases are zero.
      if (tensor.dim() < 2) {
        if (name.find("norm") == std::string::npos) tensor.zero_();
        continue;
      }
      double deviation = kDeviation;
      // What each block adds: the sum of all keeps its size.
      if (name.find("out.weight") != std::string::npos) {
        deviation /= std::sqrt(2.0 * static_cast<double>(depth));
      }
      FillUniform(seed, name, static_cast<float>(deviation * std::sqrt(3.0)),
                  {tensor.data_ptr<float>(), static_cast<std::size_t>(tensor.numel())});
    }
  }

 private:
  const double dropout_;
  at::Tensor bytes_;  // what a byte is when it is read, and by what it is recognised at the end
  at::Tensor positions_;
  nn::ModuleList blocks_;
  nn::LayerNorm norm_{nullptr};
};
TORCH_MODULE(Transformer);

class TransformerNetwork final : public Network {
 public:
  TransformerNetwork(const ModelSpec& spec, std::int64_t context, std::uint64_t seed)
      : layers_(spec, context) {
    input_shape_ = {context};
    description_ = "transformer";
    layers_->Initialize(spec.depth, seed);
  }

  at::Tensor Forward(const at::Tensor& input) override { return layers_->forward(input); }

  std::vector<NamedTensor> Parameters() override { return ParametersOf(*layers_); }
  std::vector<NamedTensor> Buffers() override { return BuffersOf(*layers_); }
  void SetTraining(bool on) override { layers_->train(on); }
  void MoveTo(const at::Device& device) override { layers_->to(device); }

 private:
  Transformer layers_;
};

}  // namespace

Result<std::unique_ptr<Network>> MakeTransformer(const ModelSpec& spec, std::int64_t context,
                                                 std::uint64_t seed) {
  if (spec.width < 1 || spec.heads < 1 || spec.width % spec.heads != 0) {
    return Error{ErrorId::kModelShape, "model.width: is " + std::to_string(spec.width) +
                                           ", which model.heads, " + std::to_string(spec.heads) +
                                           ", does not divide"};
  }
  if (spec.depth < 1 || context < 1) {
    return Error{ErrorId::kModelShape, "a transformer needs at least one block and one position"};
  }
  try {
    return std::unique_ptr<Network>(std::make_unique<TransformerNetwork>(spec, context, seed));
  } catch (const std::exception& error) {
    return Error{ErrorId::kModelShape, "cannot build the model: " + FirstLine(error.what())};
  }
}

}  // namespace ps::worker
