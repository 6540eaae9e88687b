// Softmax regression without LibTorch: what the trainer's tests train.
//
// Tensors "weight" [classes, features] and "bias" [classes]; a float buffer with
// the running mean of the features, and a counter of the training steps.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "ps-worker/engine/initializer.h"
#include "ps-worker/engine/model.h"
#include "ps-worker/engine/table_builder.h"

namespace ps::test {

class LinearModel final : public worker::Model {
 public:
  LinearModel(std::int64_t features, std::int64_t classes, std::int64_t small_tensor_elements)
      : features_(static_cast<std::size_t>(features)), classes_(static_cast<std::size_t>(classes)) {
    auto table = worker::BuildParameterTable({{"weight", {classes, features}}, {"bias", {classes}}},
                                             small_tensor_elements);
    bias_ = table.offsets[1];
    selected_elements_ = table.selected_elements;
    parameters_.resize(table.table.elements);
    gradients_.resize(table.table.elements);
    worker::FillUniform(1, "weight", 0.01f, std::span(parameters_).first(features_ * classes_));
    buffer_elements_ = features_;
    counter_elements_ = 1;
    mean_.resize(features_);
    std::vector<control::TableInfoT> tables;
    tables.push_back(std::move(table.table));
    tables.push_back(
        worker::BuildPlainTable("buffers", control::TableRule::Average, {{"mean", {features}}}));
    tables.push_back(
        worker::BuildPlainTable("counters", control::TableRule::Maximum, {{"steps", {1}}}));
    layout_ = worker::BuildLayout(std::move(tables), 0);
  }

  // As if it computed there.
  void set_device(const worker::ComputeDevice& device) { device_ = device; }
  worker::ComputeDevice device() const override { return device_; }
  std::span<float> parameters() override { return parameters_; }
  std::span<const float> gradients() const override { return gradients_; }

  void ReadBuffers(std::span<float> buffers, std::span<float> counters) const override {
    std::copy(mean_.begin(), mean_.end(), buffers.begin());
    counters[0] = steps_;
  }
  void WriteBuffers(std::span<const float> buffers, std::span<const float> counters) override {
    mean_.assign(buffers.begin(), buffers.end());
    steps_ = counters[0];
  }

  using Model::Step;
  // In fp32 alone, and without a scale.
  Result<double> Step(const worker::Batch& batch, const worker::StepMode& mode) override {
    std::fill(gradients_.begin(), gradients_.end(), 0.0f);
    const float weight = 1.0f / static_cast<float>(batch.records);
    double loss = 0;
    for (std::uint32_t record = 0; record < batch.records; ++record) {
      const float* x = batch.features.data() + record * features_;
      const auto p = Probabilities(x);
      const auto label = static_cast<std::size_t>(batch.labels[record]);
      loss -= std::log(std::max(p[label], 1e-30));
      for (std::size_t c = 0; c < classes_; ++c) {
        const auto error = static_cast<float>(p[c] - (c == label ? 1 : 0)) * weight;
        for (std::size_t i = 0; i < features_; ++i) gradients_[c * features_ + i] += error * x[i];
        gradients_[bias_ + c] += error;
      }
      for (std::size_t i = 0; i < features_; ++i) mean_[i] += 0.01f * (x[i] - mean_[i]);
    }
    steps_ += 1;
    if (mode.meanwhile != nullptr) (*mode.meanwhile)();
    return loss * weight;
  }

  Result<worker::EvaluationSums> Evaluate(const worker::Batch& batch) override {
    worker::EvaluationSums sums;
    sums.records = batch.records;
    for (std::uint32_t record = 0; record < batch.records; ++record) {
      const auto p = Probabilities(batch.features.data() + record * features_);
      const auto label = static_cast<std::size_t>(batch.labels[record]);
      sums.loss -= std::log(std::max(p[label], 1e-30));
      const auto best = std::max_element(p.begin(), p.end()) - p.begin();
      if (static_cast<std::size_t>(best) == label) sums.metric += 1;
    }
    return sums;
  }

 private:
  std::vector<double> Probabilities(const float* x) const {
    std::vector<double> p(classes_);
    for (std::size_t c = 0; c < classes_; ++c) {
      p[c] = parameters_[bias_ + c];
      for (std::size_t i = 0; i < features_; ++i) p[c] += parameters_[c * features_ + i] * x[i];
    }
    const double largest = *std::max_element(p.begin(), p.end());
    double sum = 0;
    for (auto& value : p) sum += value = std::exp(value - largest);
    for (auto& value : p) value /= sum;
    return p;
  }

  worker::ComputeDevice device_;
  const std::size_t features_;
  const std::size_t classes_;
  std::size_t bias_ = 0;
  std::vector<float> parameters_;
  std::vector<float> gradients_;
  std::vector<float> mean_;
  float steps_ = 0;
};

}  // namespace ps::test
