// What computes: a network of the zoo or a TorchScript module, behind one face.
//
// Internal to the engine (the only header here that shows torch). Functions may
// throw torch's exceptions, except the two that make a network.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/job/job_spec.h"
#include "common/result.h"

namespace ps::worker {

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

class Network {
 public:
  virtual ~Network() = default;

  virtual at::Tensor Forward(const at::Tensor& input) = 0;
  // In the order of the module, each slot once; trainable ones only.
  virtual std::vector<NamedTensor> Parameters() = 0;
  virtual std::vector<NamedTensor> Buffers() = 0;
  virtual void SetTraining(bool on) = 0;

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

// A TorchScript file, with the values it holds.
Result<std::unique_ptr<Network>> LoadScriptNetwork(const ModelSpec& spec);

// The first line of a torch exception's text, without its stack trace.
std::string FirstLine(const std::string& text);

}  // namespace ps::worker
