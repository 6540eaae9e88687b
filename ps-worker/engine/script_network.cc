// First: clang 14 needs IValue complete where torch's other headers use it.
#include <ATen/core/ivalue.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/import.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <exception>
#include <fstream>
#include <mutex>
#include <utility>

#include "common/error_id.h"
#include "ps-worker/engine/network.h"

namespace ps::worker {
namespace {

class ScriptNetwork final : public Network {
 public:
  ScriptNetwork(const torch::jit::Module& module, const ModelSpec& spec, std::uint64_t salt)
      : module_(module) {
    input_shape_ = spec.input_shape;
    description_ = spec.file;
    salt_ = salt;
  }

  at::Tensor Forward(const at::Tensor& input) override {
    auto output = module_.forward({input});
    TORCH_CHECK(output.isTensor(), "forward() returns ", output.tagKind(),
                " where one tensor is expected");
    return output.toTensor();
  }

  std::vector<NamedTensor> Parameters() override {
    std::vector<NamedTensor> result;
    for (const auto& item : module_.named_parameters()) {
      if (item.value.requires_grad()) result.push_back({item.name, item.value});
    }
    return result;
  }

  std::vector<NamedTensor> Buffers() override {
    std::vector<NamedTensor> result;
    for (const auto& item : module_.named_buffers()) result.push_back({item.name, item.value});
    return result;
  }

  void SetTraining(bool on) override { module_.train(on); }
  void MoveTo(const at::Device& device) override { module_.to(device); }

 private:
  torch::jit::Module module_;
};

Result<std::uint64_t> HashFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return Error{ErrorId::kModelFile, path + ": cannot be opened (model.file)"};
  }
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state(XXH3_createState());
  XXH3_64bits_reset(state.get());
  std::vector<char> buffer(std::size_t{1} << 20);
  while (file) {
    file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    XXH3_64bits_update(state.get(), buffer.data(), static_cast<std::size_t>(file.gcount()));
  }
  if (file.bad()) return Error{ErrorCode::kIo, path + ": read error"};
  return XXH3_64bits_digest(state.get());
}

// TorchScript files are zip archives with a record `<name>/constants.pkl`; what torch.save writes
// of a state_dict is a zip as well, but without code.
bool LooksLikeZip(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::array<char, 4> magic{};
  file.read(magic.data(), magic.size());
  return file.gcount() == 4 && magic == std::array<char, 4>{'P', 'K', 3, 4};
}

}  // namespace

Result<std::unique_ptr<Network>> LoadScriptNetwork(const ModelSpec& spec) {
  const auto salt = PS_TRY(HashFile(spec.file));
  if (!LooksLikeZip(spec.file)) {
    return Error{ErrorId::kModelFile, spec.file +
                                          ": not a TorchScript file (model.file wants what "
                                          "torch.jit.script(model).save(path) writes)"};
  }
  // Specialising the graph to each shape of a batch costs more than it brings for a few layers, and
  // the last short batch of an epoch would start it again.
  static std::once_flag once;
  std::call_once(once, [] { torch::jit::setGraphExecutorOptimize(false); });
  try {
    auto module = torch::jit::load(spec.file, c10::Device(c10::kCPU));
    if (!module.find_method("forward")) {
      return Error{ErrorId::kModelFile, spec.file + ": the module has no forward()"};
    }
    if (!module.hasattr("training")) {
      return Error{ErrorId::kModelFile,
                   spec.file +
                       ": is a frozen module (torch.jit.freeze) and cannot be trained; "
                       "save it without freezing"};
    }
    return std::unique_ptr<Network>(std::make_unique<ScriptNetwork>(std::move(module), spec, salt));
  } catch (const std::exception& error) {
    return Error{
        ErrorId::kModelFile,
        spec.file + ": not a TorchScript file this LibTorch can read: " + FirstLine(error.what())};
  }
}

}  // namespace ps::worker
