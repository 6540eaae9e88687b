#include "ps-worker/engine/load.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "common/error_id.h"
#include "ps-worker/engine/batches.h"
#include "ps-worker/engine/ledger.h"
#include "ps-worker/engine/model.h"
#include "ps-worker/engine/replicated_model.h"
#include "ps-worker/engine/tensor_workload.h"

namespace ps::worker {
namespace {

constexpr std::uint64_t kTriedRecords = 256;

std::string ShapeText(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const auto extent : shape) text += (text.empty() ? "" : ", ") + std::to_string(extent);
  return "[" + text + "]";
}

Status CheckData(const JobSpec& spec, const Dataset& data, const char* name) {
  const std::string key = std::string("data.") + name;
  if (data.records() == 0) return Error{ErrorId::kDataDisagree, key + ": has no records"};
  if (data.features() == 0 && spec.embedding_tables.empty()) {
    return Error{ErrorId::kDataDisagree,
                 key + ": its records have no content, which only the ledger model can use"};
  }
  const auto labels = data.label_range();
  if (spec.training.loss == "cross_entropy" && (!labels.whole || labels.minimum < 0)) {
    return Error{ErrorId::kDataLabels,
                 key + ": cross_entropy wants classes 0, 1, 2, ... as labels, these lie between " +
                     std::to_string(labels.minimum) + " and " + std::to_string(labels.maximum) +
                     (labels.whole ? "" : " and are not whole")};
  }
  if (spec.training.loss == "binary_cross_entropy" &&
      (!labels.whole || labels.minimum < 0 || labels.maximum > 1)) {
    return Error{ErrorId::kDataLabels,
                 key + ": binary_cross_entropy wants the labels 0 and 1, these lie between " +
                     std::to_string(labels.minimum) + " and " + std::to_string(labels.maximum) +
                     (labels.whole ? "" : " and are not whole") +
                     "; label_positive says which labels count as 1"};
  }
  if (spec.model.type == "mlp") {
    const auto wanted = static_cast<std::uint64_t>(spec.model.layers.front());
    if (wanted != data.features()) {
      return Error{ErrorId::kModelShape,
                   "model.layers: begins with " + std::to_string(wanted) + ", but " + key +
                       " has " + std::to_string(data.features()) + " features a record"};
    }
  } else if (!spec.model.input_shape.empty()) {
    std::uint64_t wanted = 1;
    for (const auto extent : spec.model.input_shape) wanted *= static_cast<std::uint64_t>(extent);
    if (wanted != data.features()) {
      return Error{ErrorId::kModelShape, "model.input_shape: " + ShapeText(spec.model.input_shape) +
                                             " has " + std::to_string(wanted) + " values, but " +
                                             key + " has " + std::to_string(data.features()) +
                                             " features a record"};
    }
  }
  return Ok();
}

// The first records, with the smallest and the largest label among them: so that a class that the
// model lacks is found even where the first records do not have it.
Result<Batch> TriedBatch(const Dataset& data, std::uint64_t size, BatchBuffer& buffer,
                         std::vector<float>& labels) {
  std::vector<std::uint64_t> records(
      static_cast<std::size_t>(std::min({data.records(), size, kTriedRecords})));
  std::iota(records.begin(), records.end(), std::uint64_t{0});
  Batch batch = PS_TRY(buffer.Read(data, records));
  labels.assign(batch.labels.begin(), batch.labels.end());
  labels.front() = static_cast<float>(data.label_range().minimum);
  labels.back() = static_cast<float>(data.label_range().maximum);
  batch.labels = labels;
  return batch;
}

Result<std::unique_ptr<Model>> MakeModel(const JobSpec& spec, const Dataset& train,
                                         const TaskDevice& device) {
  std::vector<std::unique_ptr<Model>> replicas;
  for (const ModelDevice& one : device.models) {
    replicas.push_back(PS_TRY(Model::Create(spec, train.features(), one)));
  }
  if (replicas.size() == 1) return std::move(replicas.front());
  return std::unique_ptr<Model>(
      std::make_unique<ReplicatedModel>(std::move(replicas), PS_TRY(device.make_collective())));
}

Result<control::PreflightResultT> Try(const JobSpec& spec, const TaskDevice& device) {
  auto task = PS_TRY(LoadTask(spec, device));
  if (spec.model.type != "ledger") {
    auto model = PS_TRY(MakeModel(spec, *task.train, device));
    BatchBuffer buffer;
    std::vector<float> labels;
    const auto size =
        static_cast<std::uint64_t>(std::max<std::int64_t>(spec.training.batch_size, 1));
    // Rows that nobody has trained: zeros will do.
    BatchRows rows;
    const auto with_rows = [&](Batch batch) {
      if (spec.embedding_tables.empty()) return batch;
      FindRows(spec.embedding_tables, batch.ids, rows);
      for (std::size_t i = 0; i < rows.tables.size(); ++i) {
        rows.tables[i].values.assign(
            rows.tables[i].keys.size() * static_cast<std::size_t>(spec.embedding_tables[i].width),
            0.0f);
      }
      batch.rows = &rows;
      return batch;
    };
    const Batch batch = with_rows(PS_TRY(TriedBatch(*task.train, size, buffer, labels)));
    StepMode mode;
    mode.precision = task.workload->precision();
    PS_TRY(model->Step(batch, mode));
    if (task.test != nullptr) {
      const Batch test = with_rows(PS_TRY(TriedBatch(*task.test, size, buffer, labels)));
      PS_TRY(model->Evaluate(test));
    }
  }
  control::PreflightResultT result;
  result.ok = true;
  result.layout = std::make_unique<control::LayoutT>(task.workload->layout());
  result.data = std::make_unique<control::DataInfoT>();
  result.data->records = task.train->records();
  result.data->test_records = task.test == nullptr ? 0 : task.test->records();
  result.data->fingerprint = task.train->fingerprint();
  result.file_tensors = task.files.tensors;
  result.files_fingerprint = task.files.fingerprint;
  return result;
}

}  // namespace

Result<LoadedTask> LoadTask(const JobSpec& spec, const TaskDevice& device) {
  LoadedTask task;
  const auto id_columns = IdColumns(spec.embedding_tables);
  task.train = PS_TRY(Dataset::Open(spec.data.train, spec.data, id_columns));
  if (spec.data.test.has_value()) {
    task.test = PS_TRY(Dataset::Open(*spec.data.test, spec.data, id_columns));
  }
  if (spec.model.type == "ledger") {
    task.workload = std::make_unique<Ledger>(spec.model, spec.embedding_tables);
    task.files = PS_TRY(LoadFileValues(spec, *task.workload));
    return task;
  }
  PS_TRY(CheckData(spec, *task.train, "train"));
  if (spec.model.type == "deepfm" && task.test != nullptr &&
      task.test->features() != task.train->features()) {
    return Error{ErrorId::kDataDisagree, "data.test: has " + std::to_string(task.test->features()) +
                                             " features a record, data.train has " +
                                             std::to_string(task.train->features())};
  }
  if (task.test != nullptr) PS_TRY(CheckData(spec, *task.test, "test"));
  auto model = PS_TRY(MakeModel(spec, *task.train, device));
  const auto precision = PS_TRY(ChoosePrecision(spec.training.precision, model->device()));
  task.workload =
      std::make_unique<TensorWorkload>(spec, std::move(model), precision, device.make_parameters);
  task.files = PS_TRY(LoadFileValues(spec, *task.workload));
  return task;
}

control::PreflightResultT Preflight(const JobSpec& spec, const TaskDevice& device) {
  auto tried = Try(spec, device);
  if (tried.ok()) return std::move(tried).value();
  control::PreflightResultT result;
  result.error = tried.error().message;
  result.error_id = static_cast<std::uint16_t>(tried.error().id);
  return result;
}

}  // namespace ps::worker
