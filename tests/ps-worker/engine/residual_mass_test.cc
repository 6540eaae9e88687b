// No gradient is lost and none counts twice: gradients are whole numbers that do not depend on the
// weights, so that the final values show the exact sum of all of them, whatever became of the
// pushes on the way. With binary fractions as quantisation errors everything is exact in fp32.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "ps-worker/engine/data/memory_dataset.h"
#include "ps-worker/engine/model.h"
#include "ps-worker/engine/table_builder.h"
#include "ps-worker/engine/tensor_workload.h"
#include "ps-worker/engine/trainer.h"
#include "tests/ps-worker/engine/local_cluster.h"

namespace ps::worker {
namespace {

constexpr std::uint64_t kRecords = 2048;
constexpr std::int64_t kBatch = 32;
constexpr std::int64_t kRows = 90;
constexpr std::int64_t kColumns = 40;
constexpr std::int64_t kBias = 30;

// What one record adds to the gradient of one element.
float Part(std::uint64_t record, std::uint64_t element) {
  std::uint64_t mixed = (record * 4099 + element + 1) * 0x9e3779b97f4a7c15u;
  mixed ^= mixed >> 29;
  mixed *= 0xbf58476d1ce4e5b9u;
  return static_cast<float>(static_cast<int>((mixed >> 33) % 21) - 10);
}

// Counts: the gradient of a batch is the mean of its records' parts, times kBatch, so that servers
// that weigh it by its samples add up the parts.
class WholeNumberModel final : public Model {
 public:
  explicit WholeNumberModel(std::int64_t small_tensor_elements) {
    auto table = BuildParameterTable({{"weight", {kRows, kColumns}}, {"bias", {kBias}}},
                                     small_tensor_elements);
    selected_elements_ = table.selected_elements;
    parameters_.resize(table.table.elements);
    gradients_.resize(table.table.elements);
    std::vector<control::TableInfoT> tables;
    tables.push_back(std::move(table.table));
    layout_ = BuildLayout(std::move(tables), 0);
  }

  std::span<float> parameters() override { return parameters_; }
  std::span<const float> gradients() const override { return gradients_; }
  void ReadBuffers(std::span<float>, std::span<float>) const override {}
  void WriteBuffers(std::span<const float>, std::span<const float>) override {}

  using Model::Step;
  Result<double> Step(const Batch& batch, const StepMode&) override {
    std::fill(gradients_.begin(), gradients_.end(), 0.0f);
    for (std::uint32_t i = 0; i < batch.records; ++i) {
      const auto record = static_cast<std::uint64_t>(batch.features[i]);
      for (std::size_t at = 0; at < gradients_.size(); ++at) gradients_[at] += Part(record, at);
    }
    const float weight = static_cast<float>(kBatch) / static_cast<float>(batch.records);
    for (float& gradient : gradients_) gradient *= weight;
    return 0.0;
  }
  Result<EvaluationSums> Evaluate(const Batch& batch) override {
    EvaluationSums sums;
    sums.records = batch.records;
    return sums;
  }

 private:
  std::vector<float> parameters_;
  std::vector<float> gradients_;
};

struct MassCase {
  const char* name;
  const char* value_codec;
  double ratio;
  const char* pull_values;
  std::int64_t local_steps;
};

class ResidualMassTest : public ::testing::TestWithParam<MassCase> {
 protected:
  ResidualMassTest() {
    std::vector<float> features;
    for (std::uint64_t i = 0; i < kRecords; ++i) features.push_back(static_cast<float>(i));
    train_ = std::make_unique<MemoryDataset>(std::vector<std::int64_t>{1}, features,
                                             std::vector<double>(kRecords));
    spec_.name = "mass";
    spec_.model.type = "mlp";
    spec_.training.workers = 3;
    spec_.training.batch_size = kBatch;
    spec_.training.epochs = 3;
    spec_.training.pull_values = GetParam().pull_values;
    spec_.training.local_steps = GetParam().local_steps;
    spec_.optimizer.type = "sgd";
    spec_.optimizer.learning_rate.base = 1;
    spec_.optimizer.reference_batch = kBatch;
    spec_.sparsification.ratio = GetParam().ratio;
    spec_.sparsification.value_codec = GetParam().value_codec;
  }

  void Train(test::LocalClusterOptions options) {
    options.lease_records = 256;
    std::vector<std::unique_ptr<Workload>> workloads;
    for (std::int64_t i = 0; i < spec_.training.workers; ++i) {
      workloads.push_back(std::make_unique<TensorWorkload>(
          spec_, std::make_unique<WholeNumberModel>(spec_.sparsification.small_tensor_elements)));
    }
    cluster_ =
        std::make_unique<test::LocalCluster>(spec_, workloads[0]->layout(), kRecords, options);
    std::vector<std::thread> threads;
    for (std::uint32_t i = 0; i < workloads.size(); ++i) {
      threads.emplace_back([&, i] {
        const auto session = cluster_->Connect(i);
        Trainer trainer(spec_, *session, *workloads[i], *train_, nullptr);
        const auto result = trainer.Run();
        EXPECT_TRUE(result.ok()) << result.error().message;
      });
    }
    for (auto& thread : threads) thread.join();
    for (const auto& workload : workloads) EXPECT_EQ(workload->ResidualNorm().value(), 0.0);
  }

  // The servers hold minus the sum of every record's part in every epoch.
  void ExpectTheExactSum() const {
    ExpectSumsOf(static_cast<float>(spec_.training.epochs), cluster_->Table(0));
  }
  static void ExpectSumsOf(float epochs, const std::vector<float>& values) {
    ASSERT_EQ(values.size(), static_cast<std::size_t>(kRows * kColumns + kBias));
    for (std::size_t at = 0; at < values.size(); ++at) {
      float sum = 0;
      for (std::uint64_t record = 0; record < kRecords; ++record) sum += Part(record, at);
      ASSERT_EQ(values[at], -epochs * sum) << at;
    }
  }
  const test::LocalCluster::Outcome& outcome() const { return cluster_->outcome(); }

  JobSpec spec_;
  std::unique_ptr<Dataset> train_;
  std::unique_ptr<test::LocalCluster> cluster_;
};

TEST_P(ResidualMassTest, EveryGradientIsInTheValuesAfterTheDrain) {
  Train({});
  ExpectTheExactSum();
  EXPECT_GT(outcome().pushes, 20u);
}

TEST_P(ResidualMassTest, WhatComesBackAsTooOldIsNotLost) {
  spec_.training.max_version_gap = 1;
  test::LocalClusterOptions options;
  options.too_old_clocks = {2, 3, 5, 11};
  Train(options);
  ExpectTheExactSum();
  EXPECT_GT(outcome().returned, 0u);
}

TEST_P(ResidualMassTest, ARestoreFromACheckpointAndAReplayLoseNothing) {
  spec_.training.max_version_gap = 2;
  test::LocalClusterOptions options;
  options.too_old_clocks = {6, 9};
  options.checkpoint_after_pushes = 15;
  options.lose_shards_after_pushes = 20;
  Train(options);
  ExpectTheExactSum();
  EXPECT_EQ(outcome().replayed, 20u);
  EXPECT_GT(outcome().returned, 0u);
}

// One worker, and the cut at the end of the first epoch: all it has computed by then is there.
TEST_P(ResidualMassTest, ACutThatWaitsForTheResidualHasEveryGradient) {
  spec_.training.workers = 1;
  spec_.checkpoint.flush_residuals = true;
  const auto pushes = kRecords / static_cast<std::uint64_t>(kBatch * spec_.training.local_steps);
  test::LocalClusterOptions options;
  options.cut_after_pushes = pushes;
  options.too_old_clocks = {pushes - 1, pushes, pushes + 1, pushes + 2};
  Train(options);
  ASSERT_EQ(outcome().cuts.size(), 1u);
  ExpectSumsOf(1, outcome().cuts[0]);
  EXPECT_GE(outcome().returned, 3u);
  ExpectTheExactSum();
}

// One worker, that is to leave when the first epoch is over: all it has computed stays.
TEST_P(ResidualMassTest, AWorkerThatLeavesTakesNothingWithIt) {
  spec_.training.workers = 1;
  const auto pushes = kRecords / static_cast<std::uint64_t>(kBatch * spec_.training.local_steps);
  test::LocalClusterOptions options;
  options.leave_after_pushes = pushes;
  options.too_old_clocks = {pushes - 1, pushes, pushes + 1, pushes + 2};
  Train(options);
  ExpectSumsOf(1, cluster_->Table(0));
  EXPECT_GE(outcome().returned, 3u);
  EXPECT_EQ(outcome().drained, 0u);
}

// What waits was computed in batches of other sizes than those it is pushed with. Powers of two, so
// that all stays exact.
TEST_P(ResidualMassTest, BatchesOfChangingSizesAreWeighedAsTheirSamples) {
  spec_.training.batch_by_speed = true;
  spec_.training.max_version_gap = 3;
  const auto usual = static_cast<std::uint32_t>(kBatch * spec_.training.local_steps);
  test::LocalClusterOptions options;
  options.push_records = {usual / 2, usual * 2, usual, usual / 4};
  options.too_old_clocks = {2, 5, 6, 13};
  Train(options);
  ExpectTheExactSum();
  EXPECT_GT(outcome().returned, 0u);
  for (const std::uint32_t records : options.push_records) {
    EXPECT_GT(outcome().pushes_of.at(records), 0u) << records;
  }
}

INSTANTIATE_TEST_SUITE_P(All, ResidualMassTest,
                         ::testing::Values(MassCase{"exact", "fp32", 0.05, "fp32", 1},
                                           MassCase{"bf16", "bf16", 0.05, "bf16", 1},
                                           MassCase{"two_bits", "2bit", 0.02, "increments", 1},
                                           MassCase{"one_bit", "1bit", 0.1, "bf16", 1},
                                           MassCase{"dense", "2bit", 1, "bf16", 1},
                                           MassCase{"local_steps", "2bit", 0.05, "increments", 4}),
                         [](const auto& one) { return std::string(one.param.name); });

}  // namespace
}  // namespace ps::worker
