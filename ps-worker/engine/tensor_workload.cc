#include "ps-worker/engine/tensor_workload.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "common/codec/block_codec.h"
#include "common/codec/row_codec.h"
#include "ps-worker/engine/batches.h"
#include "ps-worker/engine/host_parameters.h"

namespace ps::worker {
namespace {

constexpr std::uint32_t kEvaluationBatch = 500;
// Each batch with rows is a pull.
constexpr std::uint32_t kEvaluationBatchWithRows = 4096;

SparsifierOptions OptionsOf(const JobSpec& spec, WorkerId worker) {
  SparsifierOptions options;
  options.rule = spec.optimizer.type == "worker_nesterov" ? AccumulationRule::kNesterov
                 : spec.optimizer.type == "worker_adam"   ? AccumulationRule::kAdam
                                                          : AccumulationRule::kPlain;
  options.beta1 = spec.optimizer.beta1;
  options.beta2 = spec.optimizer.beta2;
  options.epsilon = spec.optimizer.epsilon;
  options.momentum = static_cast<float>(spec.optimizer.momentum);
  options.outer_momentum = static_cast<float>(spec.training.outer_momentum);
  options.clip_norm = spec.optimizer.clip_norm;
  options.index_codec = IndexCodecNamed(spec.sparsification.index_codec);
  options.value_codec = ValueCodecNamed(spec.sparsification.value_codec);
  options.seed = static_cast<std::uint64_t>(spec.training.seed) + worker.value();
  return options;
}

// Where the gradient is not finite the step does not count.
Status KeptUnlessNotFinite(const Status& status, ComputeResult& result) {
  if (status.ok() || status.error().code != ErrorCode::kInvalid) return status;
  result.nonfinite = status.error().message;
  return Ok();
}

}  // namespace

TensorWorkload::TensorWorkload(const JobSpec& spec, std::unique_ptr<Model> model,
                               Precision precision, MakeDenseParameters make_parameters)
    : spec_(spec),
      model_(std::move(model)),
      step_(spec_.training, *model_, precision, [this] { AdoptBuffers(); }),
      make_parameters_(std::move(make_parameters)),
      ratio_(spec.sparsification.ratio,
             std::max(spec.sparsification.ratio, spec.sparsification.ratio_max)) {
  for (const auto& table : layout().tables) {
    const bool parameters = pulled_.empty();
    pulled_.emplace_back(parameters ? 0 : static_cast<std::size_t>(table->elements));
    own_.emplace_back(pulled_.back());
  }
  if (model_->device().gpu) {
    initial_.resize(static_cast<std::size_t>(layout().tables[0]->elements));
    model_->ReadParameters(initial_);
  }
  model_->ReadBuffers(Pulled("buffers"), Pulled("counters"));
}

Status TensorWorkload::Prepare(const LayoutView& layout, WorkerId worker) {
  view_ = layout;
  const SparsifierOptions options = OptionsOf(spec_, worker);
  if (make_parameters_) {
    parameters_ = PS_TRY(make_parameters_(*model_, *view_, options));
  } else {
    parameters_ = std::make_unique<HostParameters>(*model_, *view_, options, local_steps());
  }
  if (!initial_.empty()) model_->WriteParameters(initial_);
  initial_ = std::vector<float>();
  rows_ = std::make_unique<RowPush>(*view_, RowCodecs(spec_.embedding_tables));
  return Ok();
}

std::span<float> TensorWorkload::table(std::uint32_t index) {
  PS_CHECK(parameters_ == nullptr, "the initial values are no longer there");
  if (index > 0) return pulled_[index];
  return model_->device().gpu ? std::span<float>(initial_) : model_->parameters();
}

Status TensorWorkload::Apply(const Block& block, const codec::BlockView& view, bool increments) {
  if (block.table == 0) return parameters_->Apply(block, view, increments);
  writer_.Write(view, increments,
                std::span(pulled_[block.table]).subspan(block.table_offset, block.elements));
  return Ok();
}

Status TensorWorkload::EndPull() { return parameters_->EndPull(); }

Status TensorWorkload::Read(const Block& block, std::span<float> values) const {
  if (block.table == 0) return parameters_->Read(block, values);
  std::copy_n(pulled_[block.table].data() + block.table_offset, block.elements, values.data());
  return Ok();
}

std::span<float> TensorWorkload::Pulled(const char* name) {
  for (std::size_t i = 1; i < pulled_.size(); ++i) {
    if (layout().tables[i]->name == name) return pulled_[i];
  }
  return {};
}

void TensorWorkload::AdoptBuffers() { model_->WriteBuffers(Pulled("buffers"), Pulled("counters")); }

Result<ComputeResult> TensorWorkload::Compute(const Batch& batch, double epoch,
                                              const std::function<void()>* meanwhile) {
  // What was selected before is pushed meanwhile.
  ComputeResult result = PS_TRY(step_.Run(batch, meanwhile));
  buffers_selected_ = false;
  std::vector<TableRows> gradients;
  if (result.kept()) result.nonfinite = RowGradients(batch, gradients);
  if (result.kept()) {
    PS_TRY(ForgetWhatWasLeftOut());
    PS_TRY(KeptUnlessNotFinite(parameters_->Step(RatioAt(epoch)), result));
  }
  // What made the gradient infinite has gone through the running statistics as well.
  if (result.kept()) {
    rows_->Select(std::move(gradients));
  } else {
    rows_->SelectNothing();
    AdoptBuffers();
  }
  return result;
}

Status TensorWorkload::ForgetWhatWasLeftOut() {
  if (spec_.sparsification.error_feedback) return Ok();
  return parameters_->ScaleResidual(0);
}

double TensorWorkload::RatioAt(double epoch) const {
  return WarmupRatio(ratio_.ratio(), spec_.sparsification.warmup_epochs, epoch);
}

Result<ComputeResult> TensorWorkload::ComputeLocal(const Batch& batch, const LocalStep& step) {
  buffers_selected_ = false;
  if (step.first) {
    PS_TRY(ForgetWhatWasLeftOut());
    parameters_->UndoLocalSteps();
  }
  ComputeResult result = PS_TRY(step_.Run(batch));
  if (result.kept()) {
    PS_TRY(KeptUnlessNotFinite(parameters_->AddLocalStep(step.weight, step.rate), result));
  }
  if (!result.kept()) AdoptBuffers();
  return result;
}

Status TensorWorkload::SelectLocal(double epoch) {
  rows_->Select({});
  return parameters_->Select(RatioAt(epoch));
}

// Copies the gradients of the batch's rows; says what is wrong if one is not finite.
std::string TensorWorkload::RowGradients(const Batch& batch, std::vector<TableRows>& gradients) {
  if (batch.rows == nullptr) return {};
  for (std::uint32_t table = 0; table < batch.rows->tables.size(); ++table) {
    const auto values = model_->row_gradients(table);
    const auto bad = std::find_if_not(values.begin(), values.end(),
                                      [](float value) { return std::abs(value) <= kRowLimit; });
    if (bad != values.end()) {
      const auto row = static_cast<std::size_t>(bad - values.begin()) / view_->row_width(table);
      return "the gradient is not finite: row " +
             std::to_string(batch.rows->tables[table].keys[row]) + " of table `" +
             spec_.embedding_tables[table].name + "` has " + std::to_string(*bad);
    }
    gradients.push_back({batch.rows->tables[table].keys, {values.begin(), values.end()}});
  }
  return {};
}

void TensorWorkload::FindRows(const Batch& batch, BatchRows& rows) const {
  worker::FindRows(spec_.embedding_tables, batch.ids, rows);
}

Status TensorWorkload::Observe(std::uint32_t pushes_without_verdict) {
  if (!ratio_.Observe(pushes_without_verdict)) return Ok();
  // The norm of the residual costs a pass over it.
  const bool adaptive = spec_.sparsification.ratio_max > spec_.sparsification.ratio;
  ratio_.Adjust(parameters_->SentNorm(), adaptive ? PS_TRY(parameters_->ResidualNorm()) : 0);
  return Ok();
}

Status TensorWorkload::SelectAll() {
  buffers_selected_ = false;
  rows_->Select({});
  PS_TRY(ForgetWhatWasLeftOut());
  return parameters_->Flush();
}

void TensorWorkload::SelectBuffers() {
  if (own_.size() < 2) return;
  std::span<float> buffers;
  std::span<float> counters;
  for (std::size_t i = 1; i < own_.size(); ++i) {
    (layout().tables[i]->name == "buffers" ? buffers : counters) = own_[i];
  }
  model_->ReadBuffers(buffers, counters);
  buffers_selected_ = true;
}

std::size_t TensorWorkload::max_push_bytes() const {
  std::size_t bytes = parameters_->MaxBytes() + rows_->MaxBytes();
  if (!buffers_selected_) return bytes;
  for (std::uint32_t block = 0; block < view_->block_count(); ++block) {
    if (IsParameters(block)) continue;
    const auto elements = view_->block(block).elements;
    bytes +=
        codec::MaxEncodedBytes(elements, elements, wire::IndexCodec::Dense, wire::ValueCodec::Fp32);
  }
  return bytes;
}

std::uint64_t TensorWorkload::selected_entries() const {
  return parameters_->entries() + rows_->entries();
}

std::size_t TensorWorkload::WriteShard(ShardId shard, std::span<std::byte> out) {
  std::size_t used = parameters_->EncodeShard(shard, out.data(), out.size());
  if (buffers_selected_) used += WriteBuffers(shard, out.subspan(used));
  return used + rows_->EncodeShard(shard, out.subspan(used));
}

std::size_t TensorWorkload::WriteBuffers(ShardId shard, std::span<std::byte> out) const {
  std::size_t used = 0;
  for (auto number = view_->shard_first_block(shard); number < view_->shard_last_block(shard);
       ++number) {
    if (IsParameters(number)) continue;
    const Block& block = view_->block(number);
    const std::span<const float> values(own_[block.table].data() + block.table_offset,
                                        block.elements);
    PS_CHECK(out.size() - used >= codec::MaxEncodedBytes(block.elements, block.elements,
                                                         wire::IndexCodec::Dense,
                                                         wire::ValueCodec::Fp32));
    used += codec::EncodeBlock(number, block.elements, {}, values, wire::IndexCodec::Dense,
                               wire::ValueCodec::Fp32, out.data() + used, {});
  }
  return used;
}

// Buffers are not taken back: the next ones say the same, and newer.
Status TensorWorkload::TakeBack(std::span<const std::byte> payload, float weight) {
  const auto parts = PS_TRY(codec::SplitSegment(payload));
  PS_TRY(parameters_->TakeBack(parts.blocks, weight));
  return rows_->TakeBack(parts.rows, weight);
}

Status TensorWorkload::ScaleResidual(float factor) {
  rows_->ScaleResidual(factor);
  return parameters_->ScaleResidual(factor);
}

Result<double> TensorWorkload::ResidualNorm() const {
  const double dense = PS_TRY(parameters_->ResidualNorm());
  return std::sqrt(dense * dense + rows_->ResidualSumOfSquares());
}

Result<EvaluationSums> TensorWorkload::Evaluate(const Dataset* data, const PullRows& pull) {
  if (data == nullptr) return EvaluationSums();
  std::vector<float> own_buffers(model_->buffer_elements());
  std::vector<float> own_counters(model_->counter_elements());
  model_->ReadBuffers(own_buffers, own_counters);
  AdoptBuffers();
  parameters_->UndoLocalSteps();
  EvaluationSums sums;
  const bool has_rows = !spec_.embedding_tables.empty();
  std::uint32_t size = has_rows ? kEvaluationBatchWithRows : kEvaluationBatch;
  // Each label of a record has an answer of its own: no more than in a step.
  if (data->labels_per_record() > 1) {
    size = static_cast<std::uint32_t>(std::min<std::int64_t>(size, spec_.training.batch_size));
  }
  BatchRows rows;
  auto status = ForEachBatch(*data, size, [&](const Batch& batch) -> Status {
    Batch complete = batch;
    if (has_rows) {
      FindRows(batch, rows);
      PS_TRY(pull(rows));
      complete.rows = &rows;
    }
    sums.Add(PS_TRY(model_->Evaluate(complete)));
    return Ok();
  });
  model_->WriteBuffers(own_buffers, own_counters);
  if (!status.ok()) return status.error();
  return sums;
}

}  // namespace ps::worker
