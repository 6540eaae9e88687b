// First: clang 14 needs IValue complete where torch's other headers use it.
#include <ATen/core/ivalue.h>
// Then the others.
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <dlfcn.h>
#include <torch/autograd.h>
#include <torch/cuda.h>
#include <torch/types.h>
#include <torch/utils.h>
#include <torch/version.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <mutex>
#include <utility>
#include <vector>

#include "common/error_id.h"
#include "ps-worker/core/loss_scaler.h"
#include "ps-worker/engine/model.h"
#include "ps-worker/engine/network.h"
#include "ps-worker/engine/table_builder.h"

namespace ps::worker {
namespace {

enum class Loss { kCrossEntropy, kBinaryCrossEntropy, kMse };

Loss LossOfName(const std::string& name) {
  if (name == "mse") return Loss::kMse;
  return name == "binary_cross_entropy" ? Loss::kBinaryCrossEntropy : Loss::kCrossEntropy;
}

// A parameter and the range of the flat buffers that it is a view of.
struct ParameterView {
  at::Tensor tensor;
  std::uint64_t offset = 0;
};

struct BufferView {
  at::Tensor tensor;
  std::uint64_t offset = 0;
};

// Operations that gain by it compute in `type` on the device as long as this lives; parameters that
// were converted for it are kept until then.
class Autocast {
 public:
  Autocast(const at::Device& device, at::ScalarType type)
      : device_(device.type()), before_(Enabled()), type_before_(Type()) {
    Set(true, type);
    at::autocast::increment_nesting();
  }
  ~Autocast() {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    Set(before_, type_before_);
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 4)
  bool Enabled() const { return at::autocast::is_autocast_enabled(device_); }
  at::ScalarType Type() const { return at::autocast::get_autocast_dtype(device_); }
  void Set(bool on, at::ScalarType type) {
    at::autocast::set_autocast_enabled(device_, on);
    at::autocast::set_autocast_dtype(device_, type);
  }
#else
  bool Enabled() const {
    return device_ == at::kCPU ? at::autocast::is_cpu_enabled() : at::autocast::is_enabled();
  }
  at::ScalarType Type() const {
    return device_ == at::kCPU ? at::autocast::get_autocast_cpu_dtype()
                               : at::autocast::get_autocast_gpu_dtype();
  }
  void Set(bool on, at::ScalarType type) {
    if (device_ == at::kCPU) {
      at::autocast::set_cpu_enabled(on);
      at::autocast::set_autocast_cpu_dtype(type);
    } else {
      at::autocast::set_enabled(on);
      at::autocast::set_autocast_gpu_dtype(type);
    }
  }
#endif

  const at::DeviceType device_;
  const bool before_;
  const at::ScalarType type_before_;
};

class TorchModel final : public Model {
 public:
  static Result<std::unique_ptr<Model>> Build(const JobSpec& spec, std::unique_ptr<Network> network,
                                              const ModelDevice& device) {
    auto model = std::make_unique<TorchModel>();
    model->network_ = std::move(network);
    model->compute_ = device.compute;
    if (device.cuda >= 0) {
      model->device_ = at::Device(at::kCUDA, static_cast<at::DeviceIndex>(device.cuda));
      // Who wants fewer bits says so by training.precision.
      at::globalContext().setAllowTF32CuDNN(false);
    }
    model->seed_ = static_cast<std::uint64_t>(spec.training.seed);
    model->loss_ = LossOfName(spec.training.loss);
    if (spec.training.accumulate > 1) {
      model->part_records_ = static_cast<std::uint32_t>(spec.training.batch_size);
    }
    model->accuracy_ = spec.training.metric == "accuracy";
    model->squared_error_ = spec.training.metric == "mse";
    model->curve_ = spec.training.metric == "auc";
    model->log_loss_ = spec.training.metric == "logloss";
    model->column_tables_ = IdColumnTables(spec.embedding_tables);
    for (const auto& table : spec.embedding_tables) model->row_widths_.push_back(table.width);
    if (model->accuracy_ && model->loss_ == Loss::kMse) {
      return Error{ErrorId::kJobFileContradiction,
                   "training.metric: accuracy needs classes, so training.loss: cross_entropy or "
                   "binary_cross_entropy"};
    }
    if ((model->curve_ || model->log_loss_) && model->loss_ != Loss::kBinaryCrossEntropy) {
      return Error{ErrorId::kJobFileContradiction,
                   "training.metric: " + spec.training.metric +
                       " needs training.loss: binary_cross_entropy"};
    }
    if (model->squared_error_ && model->loss_ != Loss::kMse) {
      return Error{ErrorId::kJobFileContradiction, "training.metric: mse needs training.loss: mse"};
    }
    try {
      PS_TRY(model->MakeFlat(spec.sparsification.small_tensor_elements));
    } catch (const std::exception& error) {
      return model->Refuse(error);
    }
    AddRowTables(spec.embedding_tables, model->layout_);
    return std::unique_ptr<Model>(std::move(model));
  }

  ComputeDevice device() const override { return compute_; }

  std::span<float> parameters() override {
    return {flat_.data_ptr<float>(), static_cast<std::size_t>(flat_.numel())};
  }
  std::span<const float> gradients() const override {
    return {flat_gradient_.data_ptr<float>(), static_cast<std::size_t>(flat_gradient_.numel())};
  }

  void ReadParameters(std::span<float> values) override { OnHost(values).copy_(flat_.detach()); }
  void WriteParameters(std::span<const float> values) override {
    flat_.detach().copy_(OnHost(values));
  }
  // In double, as the CPU's.
  double GradientSquares() const override {
    if (device_.is_cpu()) return Model::GradientSquares();
    const double norm = flat_gradient_.norm(2, at::kDouble).item<double>();
    return norm * norm;
  }

  void ReadBuffers(std::span<float> buffers, std::span<float> counters) const override {
    CopyOut(buffers_, buffers);
    CopyOut(counters_, counters);
  }

  void WriteBuffers(std::span<const float> buffers, std::span<const float> counters) override {
    CopyIn(buffers, buffers_);
    CopyIn(counters, counters_);
  }

  Result<double> Step(const Batch& batch, const StepMode& mode) override {
    try {
      network_->SetTraining(true);
      SeedDraws(batch.position);
      flat_gradient_.zero_();
      for (const auto& view : parameters_) AssertView(view);
      PS_TRY(LoadRows(batch, /*gradients=*/true));
      // Read after the backward passes are enqueued, so that a GPU does not wait for the host.
      std::vector<std::pair<double, at::Tensor>> losses;
      for (std::uint32_t first = 0; first < batch.records; first += part_records_) {
        const Batch part = batch.Part(first, std::min(part_records_, batch.records - first));
        const auto output = ForwardIn(mode.precision, part);
        PS_TRY(CheckOutput(output, part));
        auto loss = LossOf(output, part, at::Reduction::Mean);
        const double share = static_cast<double>(part.records) / batch.records;
        losses.emplace_back(share, loss.detach());
        const double factor = share * mode.loss_scale * mode.weight;
        (factor == 1 ? loss : loss * factor).backward();
      }
      if (mode.meanwhile != nullptr) (*mode.meanwhile)();
      for (const auto& view : parameters_) AssertView(view);
      KeepRowGradients();
      if (mode.loss_scale != 1) Unscale(LossScaler::Inverse(mode.loss_scale));
      double mean = 0;
      for (const auto& [share, loss] : losses) mean += share * loss.item<double>();
      return mean;
    } catch (const std::exception& error) {
      return Refuse(error);
    }
  }

  Result<EvaluationSums> Evaluate(const Batch& batch) override {
    try {
      torch::NoGradGuard no_grad;
      network_->SetTraining(false);
      PS_TRY(LoadRows(batch, /*gradients=*/false));
      const auto output = Forward(batch);
      PS_TRY(CheckOutput(output, batch));
      EvaluationSums sums;
      sums.records = batch.labels.size();
      sums.loss = LossOf(output, batch, at::Reduction::Sum).item<double>();
      if (curve_) {
        const auto scores = output.reshape({-1}).to(at::kCPU).contiguous();
        for (std::size_t i = 0; i < batch.labels.size(); ++i) {
          (batch.labels[i] == 1 ? sums.positive_scores : sums.negative_scores)
              .push_back(scores.data_ptr<float>()[i]);
        }
      } else if (log_loss_) {
        sums.metric = sums.loss;
      } else if (accuracy_ && loss_ == Loss::kBinaryCrossEntropy) {
        const auto positive = output.reshape({-1}).gt(0);
        sums.metric =
            static_cast<double>(positive.eq(Labels(batch).gt(0.5)).sum().item<std::int64_t>());
      } else if (accuracy_) {
        const auto answers = output.reshape({-1, output.size(-1)}).argmax(1);
        sums.metric =
            static_cast<double>(answers.eq(ClassLabels(batch)).sum().item<std::int64_t>());
      } else if (squared_error_) {
        sums.metric = sums.loss;
      }
      return sums;
    } catch (const std::exception& error) {
      return Refuse(error);
    }
  }

  std::span<const float> row_gradients(std::uint32_t table) const override {
    if (table >= row_gradients_.size()) return {};
    return {row_gradients_[table].data_ptr<float>(),
            static_cast<std::size_t>(row_gradients_[table].numel())};
  }

 private:
  void SeedDraws(std::uint64_t position) const {
    auto generator = at::globalContext().defaultGenerator(device_);
    const std::lock_guard lock(generator.mutex());
    generator.set_current_seed(XXH3_64bits_withSeed(&position, sizeof(position), seed_));
  }

  Error Refuse(const std::exception& error) const {
    const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
    const std::string text =
        torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
    return Error{ErrorId::kModelOutput, network_->description() + ": " + ScriptError(text)};
  }

  // TorchScript puts the reason last, below the traceback of the script.
  static std::string ScriptError(const std::string& text) {
    const auto at = text.rfind("RuntimeError: ");
    return FirstLine(at == std::string::npos ? text : text.substr(at));
  }

  // The rows of each table as a tensor of their own, which the network reads by index.
  Status LoadRows(const Batch& batch, bool gradients) {
    row_leaves_.clear();
    row_gradients_.clear();
    if (row_widths_.empty()) return Ok();
    const auto& name = network_->description();
    const std::size_t columns = column_tables_.size();
    if (batch.rows == nullptr || batch.rows->tables.size() != row_widths_.size() ||
        batch.rows->index.size() < columns * (std::size_t{batch.first} + batch.records)) {
      return Error{ErrorCode::kInvalid, name + ": the batch comes without the rows of its ids"};
    }
    for (std::size_t i = 0; i < row_widths_.size(); ++i) {
      const TableRows& rows = batch.rows->tables[i];
      const auto count = static_cast<std::int64_t>(rows.keys.size());
      PS_CHECK(rows.values.size() == rows.keys.size() * static_cast<std::size_t>(row_widths_[i]), i,
               rows.values.size(), rows.keys.size());
      auto leaf =
          at::from_blob(const_cast<float*>(rows.values.data()), {count, row_widths_[i]}, at::kFloat)
              .to(device_, at::kFloat, /*non_blocking=*/false, /*copy=*/true);
      row_leaves_.push_back(leaf.requires_grad_(gradients));
    }
    return Ok();
  }

  void KeepRowGradients() {
    for (const auto& leaf : row_leaves_) {
      row_gradients_.push_back(leaf.grad().defined() ? leaf.grad().to(at::kCPU).contiguous()
                                                     : at::zeros(leaf.sizes()));
    }
  }

  void Unscale(float inverse) {
    flat_gradient_.mul_(inverse);
    for (auto& gradient : row_gradients_) gradient.mul_(inverse);
  }

  // Ends in fp32, where the loss is computed. The backward pass takes the precisions of this one.
  at::Tensor ForwardIn(Precision precision, const Batch& part) {
    if (precision == Precision::kFp32) return Forward(part);
    const Autocast autocast(device_, precision == Precision::kBf16 ? at::kBFloat16 : at::kHalf);
    return Forward(part).to(at::kFloat);
  }

  at::Tensor Forward(const Batch& batch) {
    if (row_widths_.empty()) return network_->Forward(Input(batch));
    const auto columns = static_cast<std::int64_t>(column_tables_.size());
    const auto index_of = batch.rows->index.begin() + std::int64_t{batch.first} * columns;
    std::vector<std::int64_t> wide(index_of, index_of + std::int64_t{batch.records} * columns);
    const auto index =
        at::from_blob(wide.data(), {static_cast<std::int64_t>(batch.records), columns}, at::kLong)
            // A copy in any case: the backward pass reads it again.
            .to(device_, at::kLong, /*non_blocking=*/false, /*copy=*/true);
    std::vector<at::Tensor> parts;
    for (std::int64_t column = 0; column < columns; ++column) {
      const auto& leaf = row_leaves_[column_tables_[static_cast<std::size_t>(column)]];
      parts.push_back(leaf.index_select(0, index.select(1, column)));
    }
    return network_->ForwardRows(Input(batch), at::stack(parts, 1));
  }

  Status MakeFlat(std::int64_t small_tensor_elements) {
    const auto& name = network_->description();
    // Parameters that share memory (tied weights) become one tensor of the table with several
    // views.
    struct Slot {
      const void* data;
      std::size_t tensor;  // index into shapes
    };
    std::vector<Slot> slots;
    std::vector<TensorShape> shapes;
    const auto named = network_->Parameters();
    for (const auto& [key, tensor] : named) {
      if (tensor.scalar_type() != at::kFloat) {
        return Error{ErrorId::kModelParameters, name + ": parameter " + key + " is " +
                                                    c10::toString(tensor.scalar_type()) +
                                                    ", only Float is trained; save model.float()"};
      }
      if (tensor.numel() == 0) {
        return Error{ErrorId::kModelParameters, name + ": parameter " + key + " has no elements"};
      }
      const void* data = tensor.data_ptr();
      const auto elements_here = static_cast<std::uint64_t>(tensor.numel());
      const auto same = std::find_if(slots.begin(), slots.end(), [&](const Slot& slot) {
        return slot.data == data && shapes[slot.tensor].elements() == elements_here;
      });
      if (same != slots.end()) {
        if (shapes[same->tensor].shape != tensor.sizes().vec()) {
          return Error{ErrorId::kModelParameters,
                       name + ": parameter " + key + " shares memory with " +
                           shapes[same->tensor].name + " in another shape, which is not supported"};
        }
        slots.push_back({data, same->tensor});
        continue;
      }
      slots.push_back({data, shapes.size()});
      shapes.push_back({key, tensor.sizes().vec()});
    }
    if (shapes.empty()) {
      return Error{ErrorId::kModelParameters,
                   name + ": has no trainable float parameters (a frozen module has none)"};
    }

    // Not before: what shares memory on the host may not there.
    network_->MoveTo(device_);
    auto table = BuildParameterTable(shapes, small_tensor_elements);
    const auto elements = static_cast<std::int64_t>(table.table.elements);
    flat_ = at::zeros({elements}, Floats());
    flat_gradient_ = at::zeros({elements}, Floats());
    selected_elements_ = table.selected_elements;
    for (std::size_t i = 0; i < named.size(); ++i) {
      auto tensor = named[i].tensor;
      const auto offset = table.offsets[slots[i].tensor];
      const auto at_offset = static_cast<std::int64_t>(offset);
      auto view = flat_.narrow(0, at_offset, tensor.numel()).view(tensor.sizes());
      {
        torch::NoGradGuard no_grad;
        view.copy_(tensor);
      }
      tensor.set_data(view);
      tensor.mutable_grad() =
          flat_gradient_.narrow(0, at_offset, tensor.numel()).view(tensor.sizes());
      parameters_.push_back({tensor, offset});
    }

    std::vector<TensorShape> buffer_shapes;
    std::vector<TensorShape> counter_shapes;
    for (const auto& [key, tensor] : network_->Buffers()) {
      if (tensor.numel() == 0) continue;
      const bool is_float = at::isFloatingType(tensor.scalar_type());
      if (!is_float && !at::isIntegralType(tensor.scalar_type(), /*includeBool=*/true)) {
        return Error{ErrorId::kModelParameters, name + ": buffer " + key + " is " +
                                                    c10::toString(tensor.scalar_type()) +
                                                    ", which is neither float nor integer"};
      }
      auto& total = is_float ? buffer_elements_ : counter_elements_;
      (is_float ? buffers_ : counters_).push_back({tensor, total});
      (is_float ? buffer_shapes : counter_shapes).push_back({key, tensor.sizes().vec()});
      total += static_cast<std::uint64_t>(tensor.numel());
    }

    std::vector<control::TableInfoT> tables;
    tables.push_back(std::move(table.table));
    tables.push_back(BuildPlainTable("buffers", control::TableRule::Average, buffer_shapes));
    tables.push_back(BuildPlainTable("counters", control::TableRule::Maximum, counter_shapes));
    layout_ = BuildLayout(std::move(tables), network_->salt());
    return Ok();
  }

  // The optimizer, push and pull work on the flat buffers: a tensor that left them would train
  // alone.
  void AssertView(const ParameterView& view) const {
    PS_CHECK(view.tensor.data_ptr<float>() == flat_.data_ptr<float>() + view.offset);
    const auto& gradient = view.tensor.grad();
    PS_CHECK(gradient.defined() &&
             gradient.data_ptr<float>() == flat_gradient_.data_ptr<float>() + view.offset);
  }

  at::Tensor Input(const Batch& batch) const {
    std::vector<std::int64_t> shape{batch.records};
    const auto features =
        static_cast<std::int64_t>(batch.features.size() / std::max<std::size_t>(batch.records, 1));
    if (network_->input_shape().empty()) {
      shape.push_back(features);
    } else {
      std::int64_t wanted = 1;
      for (const auto extent : network_->input_shape()) {
        shape.push_back(extent);
        wanted *= extent;
      }
      TORCH_CHECK(wanted == features, "the model takes ", wanted,
                  " features a record, the data has ", features);
    }
    // The tensor is only read; from_blob has no const form.
    return at::from_blob(const_cast<float*>(batch.features.data()), shape, at::kFloat).to(device_);
  }

  at::TensorOptions Floats() const { return at::TensorOptions(at::kFloat).device(device_); }
  // Floats of the host as a tensor, without a copy.
  static at::Tensor OnHost(std::span<const float> values) {
    return at::from_blob(const_cast<float*>(values.data()),
                         {static_cast<std::int64_t>(values.size())}, at::kFloat);
  }

  Status CheckOutput(const at::Tensor& output, const Batch& batch) const {
    const auto& name = network_->description();
    const auto labels = static_cast<std::int64_t>(batch.labels.size());
    const auto shape = [&output] {
      std::string text;
      for (const auto extent : output.sizes()) {
        text += (text.empty() ? "[" : ", ") + std::to_string(extent);
      }
      return text.empty() ? std::string("[]") : text + "]";
    };
    if (output.scalar_type() != at::kFloat) {
      return Error{ErrorId::kModelOutput,
                   name + ": the output is " + c10::toString(output.scalar_type()) + ", not Float"};
    }
    if (loss_ != Loss::kCrossEntropy) {
      const bool binary = loss_ == Loss::kBinaryCrossEntropy;
      if (output.numel() != labels) {
        return Error{ErrorId::kModelOutput,
                     name + ": output " + shape() + " for " + std::to_string(batch.records) +
                         " records, loss " + (binary ? "binary_cross_entropy" : "mse") +
                         " wants one number a " + (labels == batch.records ? "record" : "label")};
      }
      for (const float label : batch.labels) {
        if (binary && label != 0 && label != 1) {
          return Error{ErrorId::kDataLabels, name + ": the data has the label " +
                                                 std::to_string(label) +
                                                 ", binary_cross_entropy wants 0 and 1"};
        }
      }
      return Ok();
    }
    const bool one = labels == batch.records;
    const bool fits = (one && output.dim() == 2 && output.size(0) == labels) ||
                      (output.dim() == 3 && output.size(0) == batch.records &&
                       output.size(1) == labels / batch.records);
    if (!fits) {
      return Error{ErrorId::kModelOutput, name + ": output " + shape() + " for " +
                                              std::to_string(batch.records) +
                                              " records, cross_entropy wants [records, " +
                                              (one ? "" : "labels of a record, ") + "classes]"};
    }
    const auto classes = static_cast<float>(output.size(-1));
    for (const float label : batch.labels) {
      if (!(label >= 0) || label >= classes || label != std::floor(label)) {
        return Error{ErrorId::kDataLabels,
                     name + ": the data has the label " + std::to_string(label) +
                         ", the model has the classes 0 to " + std::to_string(output.size(-1) - 1)};
      }
    }
    return Ok();
  }

  at::Tensor Labels(const Batch& batch) const { return OnHost(batch.labels).to(device_); }
  at::Tensor ClassLabels(const Batch& batch) const { return Labels(batch).to(at::kLong); }

  at::Tensor LossOf(const at::Tensor& output, const Batch& batch,
                    at::Reduction::Reduction how) const {
    if (loss_ == Loss::kMse) return at::mse_loss(output.reshape({-1}), Labels(batch), how);
    if (loss_ == Loss::kBinaryCrossEntropy) {
      return at::binary_cross_entropy_with_logits(output.reshape({-1}), Labels(batch), {}, {}, how);
    }
    return at::cross_entropy_loss(output.reshape({-1, output.size(-1)}), ClassLabels(batch), {},
                                  how);
  }

  static void CopyOut(const std::vector<BufferView>& views, std::span<float> out) {
    for (const auto& view : views) {
      const auto values = view.tensor.detach().to(at::kCPU, at::kFloat).contiguous();
      std::memcpy(out.data() + view.offset, values.data_ptr<float>(), values.nbytes());
    }
  }

  static void CopyIn(std::span<const float> in, const std::vector<BufferView>& views) {
    torch::NoGradGuard no_grad;
    for (const auto& view : views) {
      auto tensor = view.tensor;
      const auto values =
          at::from_blob(const_cast<float*>(in.data() + view.offset), tensor.sizes(), at::kFloat);
      // Counters are whole numbers; a rounding average never touches them, but fp32 came over a
      // wire.
      if (at::isFloatingType(tensor.scalar_type())) {
        tensor.copy_(values);
      } else {
        tensor.copy_(values.nan_to_num(0.0).round());
      }
    }
  }

  ComputeDevice compute_;
  at::Device device_ = at::Device(at::kCPU);
  std::unique_ptr<Network> network_;
  std::uint64_t seed_ = 0;                                                  // the job's
  std::uint32_t part_records_ = std::numeric_limits<std::uint32_t>::max();  // computed at once
  Loss loss_ = Loss::kCrossEntropy;
  bool accuracy_ = false;
  bool squared_error_ = false;
  bool curve_ = false;
  bool log_loss_ = false;
  std::vector<std::uint32_t> column_tables_;  // of each id column
  std::vector<std::int64_t> row_widths_;      // by table
  std::vector<at::Tensor> row_leaves_;        // of the last batch, by table
  std::vector<at::Tensor> row_gradients_;
  at::Tensor flat_;
  at::Tensor flat_gradient_;
  std::vector<ParameterView> parameters_;
  std::vector<BufferView> buffers_;
  std::vector<BufferView> counters_;
};

}  // namespace

Result<std::unique_ptr<Model>> Model::Create(const JobSpec& spec, std::uint64_t features,
                                             const ModelDevice& device) {
  const auto& type = spec.model.type;
  if (type == "mlp" || type == "cnn") {
    auto network =
        PS_TRY(MakeZooNetwork(spec.model, static_cast<std::uint64_t>(spec.training.seed)));
    return TorchModel::Build(spec, std::move(network), device);
  }
  if (type == "deepfm") {
    DeepFmShape shape;
    shape.features = static_cast<std::int64_t>(features);
    shape.id_columns = static_cast<std::int64_t>(IdColumns(spec.embedding_tables).size());
    shape.width = spec.embedding_tables.empty() ? 0 : spec.embedding_tables.front().width;
    auto network =
        PS_TRY(MakeDeepFm(spec.model, shape, static_cast<std::uint64_t>(spec.training.seed)));
    return TorchModel::Build(spec, std::move(network), device);
  }
  if (type == "transformer") {
    auto network = PS_TRY(MakeTransformer(spec.model, static_cast<std::int64_t>(features),
                                          static_cast<std::uint64_t>(spec.training.seed)));
    return TorchModel::Build(spec, std::move(network), device);
  }
  if (type == "torchscript") {
    auto network = PS_TRY(LoadScriptNetwork(spec.model));
    return TorchModel::Build(spec, std::move(network), device);
  }
  return Error{ErrorId::kJobFileValue, "model.type: " + type + " is not a model of the engine"};
}

void SetComputeThreads(std::int64_t threads) {
  const auto count = static_cast<int>(std::clamp<std::int64_t>(threads, 1, 1024));
  // OpenBLAS is loaded, and has read its environment, before main; the variables are for libraries
  // that torch loads later. at::set_num_threads does not reach OpenBLAS.
  setenv("OPENBLAS_NUM_THREADS", std::to_string(count).c_str(), /*overwrite=*/1);
  setenv("OMP_NUM_THREADS", std::to_string(count).c_str(), /*overwrite=*/1);
  using SetThreads = void (*)(int);
  if (auto* set_blas =
          reinterpret_cast<SetThreads>(dlsym(RTLD_DEFAULT, "openblas_set_num_threads"));
      set_blas != nullptr) {
    set_blas(count);
  }
  at::set_num_threads(count);
  // Torch refuses a second call.
  static std::once_flag once;
  std::call_once(once, [] { at::set_num_interop_threads(1); });
  // The momentum of a dead unit decays into denormals, on which a processor is many times slower.
  at::globalContext().setFlushDenormal(true);
}

int EngineDevices() { return static_cast<int>(torch::cuda::device_count()); }

std::string EngineVersion() { return std::string("LibTorch ") + TORCH_VERSION; }

}  // namespace ps::worker
