// A model as the trainer sees it: flat parameters, flat gradients, one step.
//
// All trainable parameters lie in one flat fp32 buffer and their gradients in
// another, both in the memory of the device that computes; the tensors inside the engine are views
// of these, which every Step asserts. Their order is that of the table `parameters` in layout():
// first the large tensors (the selected region, gradients()[0, selected_elements())), then the
// small and one-dimensional ones. Parameters that share memory share one range. Buffers (batch-norm
// statistics and the like) are copied in and out.
//
// One thread at a time. Torch's exceptions end at this interface: what a job
// file, a model file or the data can cause is kInvalid and names the file.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/job/job_spec.h"
#include "common/messages/control.h"
#include "common/result.h"
#include "ps-worker/core/precision.h"
#include "ps-worker/engine/rows.h"

namespace ps::worker {

// Records of one step, borrowed from the reader.
struct Batch {
  std::span<const float> features;  // records times features of a record
  std::span<const float> labels;    // class number (cross_entropy) or target, as many a record
  std::uint32_t records = 0;
  std::span<const std::uint64_t> ids{};  // one for each id column, record after record
  const BatchRows* rows = nullptr;       // what the ids stand for; null: the model has no tables
  std::uint32_t first = 0;               // number of its first record among those of `rows`
  // Of its first record in the job's order, all epochs counted. What a step draws (dropout) depends
  // on it and on training.seed alone: who trains the batch again draws the same.
  std::uint64_t position = 0;

  // `count` of its records from `begin` on; `rows` are those of the whole batch.
  Batch Part(std::uint32_t begin, std::uint32_t count) const;
};

// Sums over the records seen, so that batches of different sizes add up.
struct EvaluationSums {
  double loss = 0;
  double metric = 0;  // accuracy: records answered right; mse: squared errors; logloss: losses
  std::uint64_t records = 0;  // of text: bytes, as each has an answer
  // auc: the scores of all records, by their label. They take the place of `metric`.
  std::vector<float> positive_scores;
  std::vector<float> negative_scores;

  void Add(const EvaluationSums& other);
  double mean_loss() const { return records == 0 ? 0 : loss / static_cast<double>(records); }
  double mean_metric() const;
};

// The area under the ROC curve: the part of the pairs of a positive and a negative in which the
// positive has the higher score; equal scores count half. 0.5 if there are no pairs.
double AreaUnderCurve(std::vector<float> positive_scores, std::vector<float> negative_scores);

// How a step is computed.
struct StepMode {
  Precision precision = Precision::kFp32;
  // The loss is multiplied by it for the backward pass, and gradients by its inverse afterwards
  // (core/loss_scaler.h). More than 0.
  float loss_scale = 1;
  // Gradients are multiplied by it, the loss is not: the part that this batch is of a larger one.
  double weight = 1;
  // Called once, on the calling thread: on a GPU when all is enqueued and before the device is
  // waited for. What it enqueues on the default stream comes after the step.
  const std::function<void()>* meanwhile = nullptr;
};

// Where a model computes, and where that is for LibTorch.
struct ModelDevice {
  ComputeDevice compute;
  int cuda = -1;  // number of the device; less than 0: LibTorch computes on the CPU
};

class Model {
 public:
  virtual ~Model() = default;

  // Builds the model with its initial values: those of `spec.training.seed`, or with a TorchScript
  // file those of the file. The same on every task of a job. Not for the ledger (ledger.h).
  // `features` of a record: only deepfm and transformer, whose files do not say it, need them.
  static Result<std::unique_ptr<Model>> Create(const JobSpec& spec, std::uint64_t features = 0,
                                               const ModelDevice& device = {});

  const control::LayoutT& layout() const { return layout_; }
  // Elements of the large tensors; the first of the table `parameters`.
  std::uint64_t selected_elements() const { return selected_elements_; }
  std::uint64_t buffer_elements() const { return buffer_elements_; }
  std::uint64_t counter_elements() const { return counter_elements_; }

  // Where it computes.
  virtual ComputeDevice device() const { return {}; }

  // Valid and at the same place as long as the model lives. Addresses of the device's memory: with
  // a GPU nothing of the host may read them, and what is enqueued on the default stream comes after
  // the model's own work and before its next.
  virtual std::span<float> parameters() = 0;
  virtual std::span<const float> gradients() const = 0;
  // Copies all parameters, to and from the host.
  virtual void ReadParameters(std::span<float> values);
  virtual void WriteParameters(std::span<const float> values);
  // The sum of the gradients' squares, on the host.
  virtual double GradientSquares() const;

  // After Step(): the gradients of batch.rows->tables[table], for its keys in their order. Valid
  // until the next step; empty if the model reads no rows.
  virtual std::span<const float> row_gradients(std::uint32_t table) const {
    static_cast<void>(table);
    return {};
  }

  // The tables `buffers` and `counters`; the spans have exactly their elements.
  virtual void ReadBuffers(std::span<float> buffers, std::span<float> counters) const = 0;
  virtual void WriteBuffers(std::span<const float> buffers, std::span<const float> counters) = 0;

  // Forward and backward in training mode: gradients() holds the gradient of the mean loss, which
  // is returned (it may be non-finite, and the gradients too). Neither is scaled. With
  // training.accumulate the batch is computed in parts of training.batch_size records. Without
  // records gradients and loss are 0.
  virtual Result<double> Step(const Batch& batch, const StepMode& mode) = 0;
  Result<double> Step(const Batch& batch) { return Step(batch, StepMode()); }
  // Forward in evaluation mode.
  virtual Result<EvaluationSums> Evaluate(const Batch& batch) = 0;

 protected:
  control::LayoutT layout_;
  std::uint64_t selected_elements_ = 0;
  std::uint64_t buffer_elements_ = 0;
  std::uint64_t counter_elements_ = 0;
};

// Threads of one step, for torch and for OpenBLAS; and the calling thread flushes denormals to zero
// from now on. Call it on the compute thread before the first Model of the process.
void SetComputeThreads(std::int64_t threads);

// "LibTorch 1.13.1", for logs.
std::string EngineVersion();
// GPUs on which LibTorch can compute; 0 also where it was built for CPUs.
int EngineDevices();

}  // namespace ps::worker
