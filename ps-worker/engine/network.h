// What computes: a network of the zoo or a TorchScript module, behind one face.
//
// Internal to the engine (the only header here that shows torch). Functions may
// throw torch's exceptions, except the two that make a network.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/job/job_spec.h"
#include "common/result.h"

namespace torch::nn {
class Module;
}

namespace ps::worker {

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

class Network {
 public:
  virtual ~Network() = default;

  virtual at::Tensor Forward(const at::Tensor& input) = 0;
  // The same with the rows of the record's ids, [records, id columns, width]; for networks that
  // take them.
  virtual at::Tensor ForwardRows(const at::Tensor& input, const at::Tensor& rows) {
    static_cast<void>(rows);
    return Forward(input);
  }
  // In the order of the module, each slot once; trainable ones only.
  virtual std::vector<NamedTensor> Parameters() = 0;
  virtual std::vector<NamedTensor> Buffers() = 0;
  virtual void SetTraining(bool on) = 0;
  // Its parameters and buffers from now on, and whatever else it holds.
  virtual void MoveTo(const at::Device& device) = 0;

  // Shape of one record; empty: a flat vector of what the data has.
  const std::vector<std::int64_t>& input_shape() const { return input_shape_; }
  // Says in errors which model it is.
  const std::string& description() const { return description_; }
  // Hash of what the values depend on beside names and shapes.
  std::uint64_t salt() const { return salt_; }

 protected:
  std::vector<std::int64_t> input_shape_;
  std::string description_;
  std::uint64_t salt_ = 0;
};

// mlp and cnn, with their initial values.
Result<std::unique_ptr<Network>> MakeZooNetwork(const ModelSpec& spec, std::uint64_t seed);

// What a deepfm has beside its rows: bias, weights of the features, hidden layers.
struct DeepFmShape {
  std::int64_t features = 0;
  std::int64_t id_columns = 0;
  std::int64_t width = 0;  // of a row: a weight and the factors
};
Result<std::unique_ptr<Network>> MakeDeepFm(const ModelSpec& spec, const DeepFmShape& shape,
                                            std::uint64_t seed);

// A language model of bytes, as GPT-2 is of its tokens: `context` positions.
Result<std::unique_ptr<Network>> MakeTransformer(const ModelSpec& spec, std::int64_t context,
                                                 std::uint64_t seed);

// A TorchScript file, with the values it holds.
Result<std::unique_ptr<Network>> LoadScriptNetwork(const ModelSpec& spec);

// Of a module, with its children: as Network has them.
std::vector<NamedTensor> ParametersOf(const torch::nn::Module& module);
std::vector<NamedTensor> BuffersOf(const torch::nn::Module& module);

// Sets the linear and convolutional layers of a module; batch norm keeps its ones and zeros.
// kaiming_uniform is torch's default for them, U(+-1/sqrt(fan_in)) for weight and bias;
// xavier_uniform is U(+-sqrt(6 / (fan_in + fan_out))) with zero biases.
void FillLinearLayers(torch::nn::Module& layers, const std::string& how, std::uint64_t seed);

// The first line of a torch exception's text, without its stack trace.
std::string FirstLine(const std::string& text);

}  // namespace ps::worker
