#include "ps-worker/engine/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "ps-worker/core/loss_scaler.h"
#include "ps-worker/engine/data/memory_dataset.h"
#ifdef PS_EMULATED_DEVICE
#include "ps-worker/engine/device_parameters.h"
#endif
#include "ps-worker/engine/ledger.h"
#include "ps-worker/engine/tensor_workload.h"
#include "tests/ps-worker/engine/linear_model.h"
#include "tests/ps-worker/engine/local_cluster.h"

namespace ps::worker {
namespace {

using ::testing::HasSubstr;

constexpr std::int64_t kFeatures = 40;
constexpr std::int64_t kClasses = 4;

// Four clouds of points around corners of a cube. Those from `wrong_begin` to `wrong_end` have
// wrong labels.
std::unique_ptr<Dataset> Clouds(std::size_t records, unsigned seed, std::size_t damaged_record,
                                std::size_t wrong_begin = 0, std::size_t wrong_end = 0) {
  std::mt19937 random(seed);
  std::vector<float> features;
  std::vector<double> labels;
  for (std::size_t i = 0; i < records; ++i) {
    const auto label = random() % kClasses;
    for (std::int64_t f = 0; f < kFeatures; ++f) {
      // A sum of uniform numbers is near enough to a normal one, and the same everywhere.
      float noise = -2;
      for (int k = 0; k < 4; ++k) noise += static_cast<float>(random() % 1000) / 1000;
      features.push_back(noise + (f % kClasses == static_cast<std::int64_t>(label) ? 0.8f : 0.0f));
    }
    const bool wrong = i >= wrong_begin && i < wrong_end;
    labels.push_back(static_cast<double>(wrong ? (label + 1) % kClasses : label));
  }
  if (damaged_record < records) {
    features[damaged_record * kFeatures] = std::numeric_limits<float>::infinity();
  }
  return std::make_unique<MemoryDataset>(std::vector<std::int64_t>{kFeatures}, features, labels);
}

constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();

JobSpec CloudsJob() {
  JobSpec spec;
  spec.name = "clouds";
  spec.model.type = "mlp";
  spec.training.workers = 2;
  spec.training.batch_size = 32;
  spec.training.epochs = 4;
  spec.training.evaluate_every_epochs = 1;
  spec.optimizer.learning_rate.base = 0.2;
  spec.optimizer.reference_batch = 64;
  spec.sparsification.ratio = 0.1;
  spec.sparsification.small_tensor_elements = 16;
  return spec;
}

class TrainerTest : public ::testing::Test {
 protected:
  virtual std::unique_ptr<Model> MakeModel(const JobSpec& spec) {
    return std::make_unique<test::LinearModel>(kFeatures, kClasses,
                                               spec.sparsification.small_tensor_elements);
  }

  virtual MakeDenseParameters MakeParameters() { return {}; }

  // Trains with a thread for each worker and returns what their Run() returned.
  std::vector<Result<std::string>> Train(const JobSpec& spec,
                                         const test::LocalClusterOptions& options) {
    workloads_.clear();
    for (std::int64_t i = 0; i < spec.training.workers; ++i) {
      if (spec.model.type == "ledger") {
        workloads_.push_back(std::make_unique<Ledger>(spec.model, spec.embedding_tables));
      } else {
        workloads_.push_back(std::make_unique<TensorWorkload>(spec, MakeModel(spec),
                                                              Precision::kFp32, MakeParameters()));
      }
    }
    cluster_ = std::make_unique<test::LocalCluster>(spec, workloads_[0]->layout(),
                                                    train_->records(), options);
    std::vector<Result<std::string>> results(workloads_.size(),
                                             Error{ErrorCode::kInternal, "did not run"});
    std::vector<std::thread> threads;
    for (std::uint32_t i = 0; i < workloads_.size(); ++i) {
      threads.emplace_back([&, i] {
        const auto session = cluster_->Connect(i);
        Trainer trainer(spec, *session, *workloads_[i], *train_, test_.get());
        results[i] = trainer.Run();
      });
    }
    for (auto& thread : threads) thread.join();
    return results;
  }

  void TrainWell(const JobSpec& spec, const test::LocalClusterOptions& options = {}) {
    for (const auto& result : Train(spec, options)) {
      EXPECT_TRUE(result.ok()) << result.error().message;
    }
    ASSERT_TRUE(outcome().evaluated.has_value());
    EXPECT_EQ(outcome().evaluated->error, "");
  }

  const test::LocalCluster::Outcome& outcome() const { return cluster_->outcome(); }

  std::unique_ptr<Dataset> train_ = Clouds(2000, 1, kNone);
  std::unique_ptr<Dataset> test_ = Clouds(500, 2, kNone);
  std::vector<std::unique_ptr<Workload>> workloads_;
  std::unique_ptr<test::LocalCluster> cluster_;
};

// A ledger of 40,000 records with two tables of rows: one of 999 keys and two floats.
JobSpec LedgerWithRows() {
  JobSpec spec;
  spec.name = "rows";
  spec.model.type = "ledger";
  spec.model.blocks = 3;
  spec.model.rows = 999;
  spec.training.workers = 2;
  spec.training.batch_size = 100;
  spec.training.epochs = 2;
  spec.training.loss = "none";
  spec.training.metric = "none";
  spec.optimizer.type = "sgd";
  spec.optimizer.reference_batch = 100;
  spec.optimizer.learning_rate.base = 1;
  for (const std::int64_t width : {1, 2}) {
    EmbeddingTableSpec table;
    table.name = "counts" + std::to_string(width);
    table.width = width;
    table.initializer.type = "constant";
    table.optimizer.type = "sgd";
    table.optimizer.reference_batch = 100;
    table.optimizer.learning_rate.base = 1;
    table.values = "fp32";
    spec.embedding_tables.push_back(table);
  }
  return spec;
}

class LedgerRowsTest : public TrainerTest {
 protected:
  static constexpr std::uint64_t kRecords = 40'000;

  LedgerRowsTest() {
    DataSourceSpec source;
    source.format = "counter";
    source.records = kRecords;
    train_ = Dataset::Open(source, {}).value();
    test_.reset();
  }

  // Leases of whole batches: a short one would count by its part of the reference batch.
  static test::LocalClusterOptions Options() {
    test::LocalClusterOptions options;
    options.lease_records = 4000;
    return options;
  }

  // Every record of every epoch is in its rows once.
  void ExpectExact(const JobSpec& spec) {
    const auto keys = static_cast<std::uint64_t>(spec.model.rows);
    double sum = 0;
    for (std::uint32_t t = 0; t < spec.embedding_tables.size(); ++t) {
      const auto rows = cluster_->Rows(t);
      EXPECT_EQ(rows.size(), keys);
      for (const auto& [key, values] : rows) {
        const auto records = (kRecords - key - 1) / keys + 1;
        const auto expected =
            static_cast<float>(records) * static_cast<float>(spec.training.epochs);
        for (const float value : values)
          EXPECT_EQ(value, expected) << "table " << t << " key " << key;
        sum += std::accumulate(values.begin(), values.end(), 0.0);
      }
    }
    const double steps = static_cast<double>(kRecords) * spec.training.epochs /
                         static_cast<double>(spec.training.batch_size);
    ASSERT_TRUE(outcome().evaluated.has_value());
    EXPECT_EQ(outcome().evaluated->metric, sum + steps * static_cast<double>(spec.model.blocks));
  }
};

TEST_F(LedgerRowsTest, EveryRecordIsInItsRowsOnce) {
  const JobSpec spec = LedgerWithRows();
  TrainWell(spec, Options());
  EXPECT_EQ(cluster_->shards(), 64u);
  ExpectExact(spec);
}

TEST_F(LedgerRowsTest, AStepAsksForItsRowsOnceWhereTheNextBatchIsKnown) {
  JobSpec spec = LedgerWithRows();
  spec.training.workers = 1;
  TrainWell(spec, Options());
  // 800 steps in 20 leases; the others are the start, the flushes and the evaluation.
  EXPECT_LE(outcome().pulls, 800u + 20u + 5u);
}

TEST_F(LedgerRowsTest, RowsThatCameBackAsTooOldArePushedAgain) {
  const JobSpec spec = LedgerWithRows();
  test::LocalClusterOptions options = Options();
  for (std::uint64_t clock = 3; clock < 200; clock += 7) options.too_old_clocks.insert(clock);
  for (std::uint64_t clock = 395; clock < 420; ++clock) options.too_old_clocks.insert(clock);
  TrainWell(spec, options);
  EXPECT_GT(outcome().returned, 1000u);
  ExpectExact(spec);
}

TEST_F(LedgerRowsTest, BulkSynchronousRowsAreExact) {
  JobSpec spec = LedgerWithRows();
  spec.training.staleness = 0;
  // The mean of the workers' pushes of a clock counts as one: a single worker is its own mean.
  spec.training.workers = 1;
  TrainWell(spec, Options());
  ExpectExact(spec);
}

TEST_F(LedgerRowsTest, ShardsWithoutBlocksTakePartFromTheBeginning) {
  JobSpec spec = LedgerWithRows();
  spec.resources.shards = 200;
  spec.training.workers = 3;
  TrainWell(spec, Options());
  EXPECT_EQ(cluster_->shards(), 200u);
  ExpectExact(spec);
}

TEST_F(TrainerTest, TwoAsynchronousWorkersLearnWithSparsePushes) {
  TrainWell(CloudsJob());
  EXPECT_GT(outcome().evaluated->metric, 0.9);
  EXPECT_EQ(outcome().evaluated->records, 500u);
  EXPECT_LT(outcome().losses.back(), outcome().losses.front() / 2);
}

TEST_F(TrainerTest, EveryRecordIsTrainedOnceAnEpochAndTheLastShortBatchToo) {
  auto spec = CloudsJob();
  spec.training.epochs = 2.5;
  test::LocalClusterOptions options;
  options.lease_records = 333;  // no multiple of the batch
  TrainWell(spec, options);
  EXPECT_EQ(outcome().samples, 5000u);
}

TEST_F(TrainerTest, BulkSynchronousWorkersNeverUseWeightsOlderThanOneRound) {
  auto spec = CloudsJob();
  spec.training.staleness = 0;
  spec.training.workers = 3;
  TrainWell(spec);
  EXPECT_GT(outcome().evaluated->metric, 0.9);
  // Own pushes and those of the others in the same and in the round before.
  for (const auto staleness : outcome().staleness) EXPECT_LE(staleness, 6u);
}

TEST_F(TrainerTest, UnlimitedStalenessNeverWaitsForAClock) {
  auto spec = CloudsJob();
  spec.training.staleness = -1;
  spec.training.max_version_gap = 1000;
  TrainWell(spec);
  EXPECT_GT(outcome().evaluated->metric, 0.85);
}

TEST_F(TrainerTest, Fp32PullsAndDensePushesLearnAsWell) {
  auto spec = CloudsJob();
  spec.training.pull_values = "fp32";
  spec.sparsification.ratio = 1;
  spec.optimizer.type = "sgd";
  spec.optimizer.learning_rate.base = 0.5;
  TrainWell(spec);
  EXPECT_GT(outcome().evaluated->metric, 0.9);
}

TEST_F(TrainerTest, WorkersLearnFromIncrementsAndHoldWhatTheServersSay) {
  auto spec = CloudsJob();
  spec.training.pull_values = "increments";
  spec.training.epochs = 60;
  TrainWell(spec);
  EXPECT_GT(outcome().evaluated->metric, 0.9);
  EXPECT_GT(outcome().increments, 1000u);
  EXPECT_GT(outcome().hashes, 0u);
  // A start for each worker and the final evaluation: every hash was right.
  EXPECT_EQ(outcome().snapshot_pulls, 3u);
}

TEST_F(TrainerTest, AWorkerThatHoldsSomethingElseTakesASnapshot) {
  auto spec = CloudsJob();
  spec.training.pull_values = "increments";
  spec.training.epochs = 60;
  test::LocalClusterOptions options;
  options.damage_hash = true;
  TrainWell(spec, options);
  EXPECT_GT(outcome().evaluated->metric, 0.9);
  EXPECT_EQ(outcome().snapshot_pulls, 4u);
}

TEST_F(TrainerTest, TheDrainPushesTheWholeResidual) {
  auto spec = CloudsJob();
  spec.sparsification.ratio = 0.02;
  TrainWell(spec);
  EXPECT_EQ(outcome().drained, 2u);
  for (const auto& workload : workloads_) EXPECT_EQ(workload->ResidualNorm().value(), 0.0);
}

TEST_F(TrainerTest, PushesThatComeBackAsTooOldAreSentAgain) {
  auto spec = CloudsJob();
  test::LocalClusterOptions options;
  options.too_old_clocks = {1, 5, 17, 40};
  TrainWell(spec, options);
  EXPECT_GT(outcome().returned, 0u);
  EXPECT_GT(outcome().evaluated->metric, 0.9);
}

TEST_F(TrainerTest, RestartedWorkersGoOnFromTheirFirstClock) {
  test::LocalClusterOptions options;
  options.first_clock = Clock(1000);
  TrainWell(CloudsJob(), options);
  EXPECT_GT(outcome().evaluated->metric, 0.9);
}

TEST_F(TrainerTest, TheLowestSlotEvaluatesAtEachBoundaryOnce) {
  auto spec = CloudsJob();
  spec.training.evaluate_every_epochs = 0.5;
  test::LocalClusterOptions options;
  options.lease_records = 100;
  TrainWell(spec, options);
  // Boundaries at 0.5, 1.0, ... 3.5 of 4 epochs; the task that gets no lease between two of them
  // passes both at once.
  EXPECT_GE(outcome().metrics.size(), 1u);
  EXPECT_LE(outcome().metrics.size(), 7u);
  EXPECT_TRUE(std::is_sorted(outcome().metrics.begin(), outcome().metrics.end()));

  spec.training.workers = 1;
  TrainWell(spec, options);
  ASSERT_EQ(outcome().metrics.size(), 7u);
  for (std::size_t i = 0; i < 7; ++i) EXPECT_EQ(outcome().metrics[i].first, 1000 * (i + 1));
  EXPECT_GT(outcome().metrics.back().second, 0.8);
}

TEST_F(TrainerTest, WithoutEvaluationOnlyTheLastOneTakesPlace) {
  auto spec = CloudsJob();
  spec.training.evaluate_every_epochs = 0;
  TrainWell(spec);
  EXPECT_TRUE(outcome().metrics.empty());
}

TEST_F(TrainerTest, WithoutTestDataTheEvaluationHasNoRecords) {
  test_.reset();
  TrainWell(CloudsJob());
  EXPECT_EQ(outcome().evaluated->records, 0u);
  EXPECT_TRUE(outcome().metrics.empty());
}

TEST_F(TrainerTest, BuffersReachTheServersAndCountersTakeTheMaximum) {
  TrainWell(CloudsJob());
  const auto mean = cluster_->Table(1);
  ASSERT_EQ(mean.size(), static_cast<std::size_t>(kFeatures));
  // Each cloud is raised by 0.8 in a quarter of the features.
  const float average =
      std::accumulate(mean.begin(), mean.end(), 0.0f) / static_cast<float>(mean.size());
  EXPECT_NEAR(average, 0.2f, 0.1f);
  const auto steps = cluster_->Table(2);
  ASSERT_EQ(steps.size(), 1u);
  EXPECT_GT(steps[0], 10.0f);
  EXPECT_LT(static_cast<std::size_t>(steps[0]), outcome().losses.size());
}

TEST_F(TrainerTest, AStepThatIsNotFiniteIsAnEmptyPush) {
  train_ = Clouds(2000, 1, 77);
  auto spec = CloudsJob();
  spec.training.epochs = 2;
  TrainWell(spec);
  EXPECT_EQ(outcome().skipped, 2u);  // once an epoch
  EXPECT_GE(outcome().empty_pushes, 2u);
  EXPECT_EQ(outcome().samples, 4000u);
  EXPECT_GT(outcome().evaluated->metric, 0.85);
  for (const float value : cluster_->Table(1)) EXPECT_TRUE(std::isfinite(value));
}

TEST_F(TrainerTest, AStepThatIsNotFiniteEndsTheJobIfAsked) {
  train_ = Clouds(2000, 1, 77);
  auto spec = CloudsJob();
  spec.training.on_nonfinite = "stop";
  const auto results = Train(spec, {});
  EXPECT_TRUE(std::any_of(results.begin(), results.end(), [](const auto& result) {
    return !result.ok() && result.error().code == ErrorCode::kInvalid;
  }));
  ASSERT_FALSE(outcome().failures.empty());
  EXPECT_THAT(outcome().failures[0], HasSubstr("permanent: "));
  EXPECT_THAT(outcome().failures[0], HasSubstr("in the batch of positions "));
}

// Softmax regression whose scaled gradients are written as fp16, beyond whose largest value is
// infinity.
class Fp16LinearModel final : public Model {
 public:
  Fp16LinearModel(std::int64_t features, std::int64_t classes, std::int64_t small_tensor_elements)
      : model_(features, classes, small_tensor_elements) {
    layout_ = control::Clone(model_.layout());
    selected_elements_ = model_.selected_elements();
    buffer_elements_ = model_.buffer_elements();
    counter_elements_ = model_.counter_elements();
  }

  using Model::Step;
  Result<double> Step(const Batch& batch, const StepMode& mode) override {
    const double loss = PS_TRY(model_.Step(batch));
    gradients_.assign(model_.gradients().begin(), model_.gradients().end());
    for (float& one : gradients_) {
      const float scaled = one * mode.loss_scale;
      one = std::abs(scaled) > 65'504 ? std::numeric_limits<float>::infinity()
                                      : scaled * LossScaler::Inverse(mode.loss_scale);
    }
    return loss;
  }
  std::span<float> parameters() override { return model_.parameters(); }
  std::span<const float> gradients() const override { return gradients_; }
  void ReadBuffers(std::span<float> buffers, std::span<float> counters) const override {
    model_.ReadBuffers(buffers, counters);
  }
  void WriteBuffers(std::span<const float> buffers, std::span<const float> counters) override {
    model_.WriteBuffers(buffers, counters);
  }
  Result<EvaluationSums> Evaluate(const Batch& batch) override { return model_.Evaluate(batch); }

 private:
  test::LinearModel model_;
  std::vector<float> gradients_;
};

class ScalingTrainerTest : public TrainerTest {
 protected:
  std::unique_ptr<Model> MakeModel(const JobSpec& spec) override {
    return std::make_unique<Fp16LinearModel>(kFeatures, kClasses,
                                             spec.sparsification.small_tensor_elements);
  }
};

// The first steps overflow until the scale is small enough; that is no failure.
TEST_F(ScalingTrainerTest, OverflowsAreEmptyPushesThatLowerTheScale) {
  auto spec = CloudsJob();
  spec.training.loss_scaling.mode = "dynamic";
  spec.training.loss_scaling.initial_scale = 1 << 22;
  spec.training.loss_scaling.growth_interval = 20;
  spec.training.on_nonfinite = "stop";
  TrainWell(spec);
  EXPECT_GE(outcome().overflows, 4u);
  EXPECT_EQ(outcome().skipped, outcome().overflows);
  EXPECT_EQ(outcome().empty_pushes, outcome().overflows);
  EXPECT_GT(outcome().evaluated->metric, 0.85);
  ASSERT_EQ(outcome().loss_scales.size(), 2u);
  for (const auto& [worker, scale] : outcome().loss_scales) {
    EXPECT_LT(scale.scale, 1 << 22) << worker;
    EXPECT_GT(scale.scale, 1 << 14) << worker;
  }
}

TEST_F(ScalingTrainerTest, ATaskGoesOnWithTheScaleThatItIsGiven) {
  auto spec = CloudsJob();
  spec.training.epochs = 0.5;  // 1000 records: 32 steps of two workers
  spec.training.loss_scaling.mode = "dynamic";
  test::LocalClusterOptions options;
  options.loss_scale = {256, 1990};
  TrainWell(spec, options);
  std::uint64_t steps = 0;
  for (const auto& [worker, scale] : outcome().loss_scales) {
    // Growth at the tenth step of a worker, if it made as many.
    const auto made = scale.scale == 256 ? scale.growth_tracker - 1990 : 10 + scale.growth_tracker;
    EXPECT_TRUE(scale.scale == 256 || scale.scale == 512) << scale.scale;
    steps += made;
  }
  EXPECT_EQ(steps, 32u);
}

TEST_F(ScalingTrainerTest, WhatIsNotFiniteAtAnyScaleIsNotTheScalesMatter) {
  train_ = Clouds(2000, 1, 77);
  auto spec = CloudsJob();
  spec.training.loss_scaling.mode = "dynamic";
  spec.training.loss_scaling.initial_scale = 1024;
  spec.training.epochs = 2;
  TrainWell(spec);
  EXPECT_EQ(outcome().overflows, 0u);
  EXPECT_EQ(outcome().skipped, 2u);  // once an epoch
}

TEST_F(TrainerTest, AnImplausibleBatchIsAnEmptyPushThatNamesItsRecords) {
  auto spec = CloudsJob();
  spec.training.workers = 1;
  spec.training.epochs = 6;
  spec.data.shuffle = false;
  spec.data.train.format = "csv";
  spec.data.train.file = "clouds.csv";
  spec.training.loss_calibration.enabled = true;
  spec.training.loss_calibration.warmup_steps = 100;
  // From the third epoch on: those before are the warm-up.
  train_ = Clouds(2000, 1, kNone, 640, 672);
  TrainWell(spec);
  EXPECT_EQ(outcome().redone, 0u);
  EXPECT_EQ(outcome().skipped, outcome().dropped);
  EXPECT_EQ(outcome().empty_pushes, outcome().dropped);
  EXPECT_EQ(outcome().samples, 12'000u);
  ASSERT_EQ(outcome().anomalies.size(), 4u);
  for (const auto& text : outcome().anomalies) {
    EXPECT_THAT(text, HasSubstr("the loss is "));
    EXPECT_THAT(text, HasSubstr("; records 640-671 of clouds.csv, positions "));
    EXPECT_THAT(text, HasSubstr(", lease "));
  }
  EXPECT_THAT(outcome().anomalies[0], HasSubstr("positions 4640 to 4671 of epoch 2"));
}

TEST_F(TrainerTest, ACancelledJobIsNoFailure) {
  test::LocalClusterOptions options;
  options.stop_after_pushes = 50;
  for (const auto& result : Train(CloudsJob(), options)) {
    ASSERT_TRUE(result.ok()) << result.error().message;
  }
  EXPECT_TRUE(outcome().failures.empty());
  EXPECT_EQ(outcome().pushes, 50u);
}

TEST_F(TrainerTest, AnotherDigestThanTheManifestsIsReported) {
  test::LocalClusterOptions options;
  options.damage_digests = true;
  for (const auto& result : Train(CloudsJob(), options)) EXPECT_TRUE(result.ok());
  ASSERT_TRUE(outcome().evaluated.has_value());
  EXPECT_THAT(outcome().evaluated->error, HasSubstr("the manifest says"));
  EXPECT_EQ(outcome().evaluated->records, 0u);
}

TEST_F(TrainerTest, LocalStepsLearnWithFewerPushes) {
  auto spec = CloudsJob();
  spec.training.epochs = 8;
  for (const char* optimizer : {"worker_nesterov", "worker_adam", "sgd"}) {
    spec.optimizer.type = optimizer;
    spec.optimizer.beta1 = 0;
    spec.optimizer.learning_rate.base = optimizer == std::string("worker_adam") ? 0.01 : 0.2;
    spec.training.local_steps = 4;
    test::LocalClusterOptions options;
    options.lease_records = 320;  // the last push of a lease has two batches
    TrainWell(spec, options);
    EXPECT_GT(outcome().evaluated->metric, 0.9) << optimizer;
    EXPECT_EQ(outcome().samples, 16000u);
    // An epoch has 63 batches, a lease three pushes for its ten; two flushes come on top.
    EXPECT_LT(outcome().pushes, 8 * 63 / 2) << optimizer;
  }
}

TEST_F(TrainerTest, LocalStepsWithAnOuterMomentumLearnAtASmallerRate) {
  auto spec = CloudsJob();
  spec.training.epochs = 8;
  spec.training.local_steps = 4;
  spec.training.outer_momentum = 0.5;
  spec.optimizer.learning_rate.base = 0.1;
  TrainWell(spec);
  EXPECT_GT(outcome().evaluated->metric, 0.9);
}

TEST_F(TrainerTest, ALocalStepThatIsNotFiniteIsLeftOutOfItsPush) {
  train_ = Clouds(2000, 1, 700);
  auto spec = CloudsJob();
  spec.training.local_steps = 4;
  TrainWell(spec);
  EXPECT_EQ(outcome().samples, 8000u);
  EXPECT_EQ(outcome().empty_pushes, 0u);
  EXPECT_GT(outcome().evaluated->metric, 0.9);
}

TEST_F(TrainerTest, TheRatioFollowsTheLinkBetweenItsBounds) {
  auto spec = CloudsJob();
  spec.training.epochs = 16;
  spec.sparsification.ratio = 0.05;
  const auto entries = [&](double ratio_max, std::uint32_t waiting) {
    spec.sparsification.ratio_max = ratio_max;
    test::LocalClusterOptions options;
    options.pushes_without_verdict = waiting;
    TrainWell(spec, options);
    return static_cast<double>(outcome().entries) / static_cast<double>(outcome().pushes);
  };
  const double fixed = entries(0, 0);
  EXPECT_GT(entries(0.2, 0), 1.2 * fixed);
  EXPECT_NEAR(entries(0.2, 4), fixed, 0.05 * fixed);
}

// Nothing of it is there to be pushed at the end.
TEST_F(TrainerTest, WithoutErrorFeedbackWhatAPushLeavesOutIsLost) {
  auto spec = CloudsJob();
  spec.training.workers = 1;
  spec.sparsification.ratio = 0.05;
  TrainWell(spec);
  const auto all = outcome().entries;
  spec.sparsification.error_feedback = false;
  TrainWell(spec);
  EXPECT_LT(outcome().entries, all);
}

TEST_F(TrainerTest, TheRatioWarmsUpFromAQuarter) {
  auto spec = CloudsJob();
  spec.training.workers = 1;
  TrainWell(spec);
  const auto without = outcome().entries;
  spec.sparsification.warmup_epochs = 2;
  TrainWell(spec);
  EXPECT_GT(outcome().entries, without + without / 10);
}

JobSpec LedgerJob() {
  JobSpec spec;
  spec.model.type = "ledger";
  spec.model.blocks = 3;
  spec.training.workers = 2;
  spec.training.batch_size = 50;
  spec.training.epochs = 2;
  spec.training.loss = "none";
  spec.training.metric = "none";
  spec.optimizer.type = "sgd";
  spec.optimizer.learning_rate.base = 1;
  spec.optimizer.reference_batch = 50;
  return spec;
}

TEST_F(TrainerTest, TheLedgerCountsEveryStepInEveryBlock) {
  test_.reset();
  TrainWell(LedgerJob());
  EXPECT_EQ(outcome().losses.size(), 80u);
  const auto values = cluster_->Table(0);
  ASSERT_EQ(values.size(), 3u * wire::kBlockElements);
  for (int block = 0; block < 3; ++block) {
    const float* at = values.data() + block * wire::kBlockElements;
    EXPECT_EQ(at[0] + at[1], 80.0f);
    EXPECT_EQ(std::count_if(at, at + wire::kBlockElements, [](float v) { return v != 0; }),
              (at[0] != 0 ? 1 : 0) + (at[1] != 0 ? 1 : 0));
  }
  EXPECT_EQ(outcome().evaluated->metric, 240.0);
}

TEST_F(TrainerTest, BulkSynchronousWorkersCountEveryStepOnTheNewestValues) {
  auto spec = LedgerJob();
  spec.training.staleness = 0;
  TrainWell(spec);
  const auto values = cluster_->Table(0);
  EXPECT_EQ(std::accumulate(values.begin(), values.end(), 0.0), 240.0);
  // Nobody computes on values that lack a push.
  for (const auto gap : outcome().staleness) EXPECT_EQ(gap, 0u);
}

TEST_F(TrainerTest, TheLedgerLosesNothingThatComesBackAsTooOld) {
  test::LocalClusterOptions options;
  options.too_old_clocks = {1, 2, 3, 20, 40, 41};
  TrainWell(LedgerJob(), options);
  EXPECT_GT(outcome().returned, 0u);
  const auto values = cluster_->Table(0);
  EXPECT_EQ(std::accumulate(values.begin(), values.end(), 0.0), 240.0);
}

#ifdef PS_EMULATED_DEVICE
// The same job on the CPU and on a GPU, which the CPU plays. The model's arithmetic is the same, so
// what the servers hold in the end must be, bit for bit.
class DeviceTrainerTest : public TrainerTest {
 protected:
  std::unique_ptr<Model> MakeModel(const JobSpec& spec) override {
    auto model = std::make_unique<test::LinearModel>(kFeatures, kClasses,
                                                     spec.sparsification.small_tensor_elements);
    if (on_device_) model->set_device({true, 9, 0});
    return model;
  }
  MakeDenseParameters MakeParameters() override {
    return on_device_ ? DeviceParameters::Create : MakeDenseParameters();
  }

  // One worker, as the emulation has one thread; bulk-synchronous, so that no pull is early or
  // late.
  static JobSpec DeviceJob() {
    auto spec = CloudsJob();
    spec.training.workers = 1;
    spec.training.staleness = 0;
    spec.training.epochs = 2;
    return spec;
  }

  void ExpectTheSameOnBoth(const JobSpec& spec) {
    on_device_ = false;
    ASSERT_NO_FATAL_FAILURE(TrainWell(spec));
    const auto values = cluster_->Table(0);
    const double metric = outcome().evaluated->metric;
    const double residual = workloads_[0]->ResidualNorm().value();
    on_device_ = true;
    ASSERT_NO_FATAL_FAILURE(TrainWell(spec));
    EXPECT_EQ(cluster_->Table(0), values);
    EXPECT_EQ(outcome().evaluated->metric, metric);
    EXPECT_GT(metric, 0.5);
    EXPECT_NEAR(workloads_[0]->ResidualNorm().value(), residual, 1e-6 * residual);
  }

  bool on_device_ = false;
};

TEST_F(DeviceTrainerTest, TrainsAsOnTheCpu) { ExpectTheSameOnBoth(DeviceJob()); }

TEST_F(DeviceTrainerTest, ByEveryRuleAndWithPullsOfEveryKind) {
  for (const char* rule : {"sgd", "worker_nesterov", "worker_adam"}) {
    for (const char* values : {"fp32", "bf16", "increments"}) {
      SCOPED_TRACE(std::string(rule) + ", " + values);
      auto spec = DeviceJob();
      spec.training.epochs = 0.5;
      spec.optimizer.type = rule;
      if (spec.optimizer.type == "worker_adam") spec.optimizer.learning_rate.base = 0.01;
      spec.training.pull_values = values;
      spec.sparsification.value_codec = "2bit";
      ExpectTheSameOnBoth(spec);
    }
  }
}

// With staleness a task writes a push while the device computes the next step.
TEST_F(DeviceTrainerTest, APushIsWrittenWhileTheNextStepIsComputed) {
  on_device_ = true;
  for (const char* values : {"bf16", "increments"}) {
    auto spec = CloudsJob();
    spec.training.workers = 1;
    spec.training.epochs = 4;
    spec.training.pull_values = values;
    spec.training.evaluate_every_epochs = 1;
    test::LocalClusterOptions options;
    options.lease_records = 500;
    TrainWell(spec, options);
    EXPECT_EQ(outcome().samples, 4u * 2000);
    EXPECT_EQ(outcome().metrics.size(), 3u);
    EXPECT_GT(outcome().evaluated->metric, 0.9);
    // The values of a step lack the worker's own two pushes before it: one is written while it is
    // computed, the other one was, when the values were asked for. Pushes say so.
    ASSERT_FALSE(outcome().staleness.empty());
    EXPECT_EQ(*std::max_element(outcome().staleness.begin(), outcome().staleness.end()), 2u);
  }
}

// A cut's flush comes behind the push that is still to be written.
TEST_F(DeviceTrainerTest, ACutComesBehindTheOpenPush) {
  on_device_ = true;
  auto spec = CloudsJob();
  spec.training.workers = 1;
  test::LocalClusterOptions options;
  options.cut_after_pushes = 7;
  TrainWell(spec, options);
  EXPECT_EQ(outcome().cuts.size(), 1u);
  EXPECT_EQ(outcome().samples, 8000u + 32);  // a flush weighs as much as a step
}

TEST_F(DeviceTrainerTest, WhatComesBackAsTooOldIsPushedAgain) {
  on_device_ = true;
  test::LocalClusterOptions options;
  options.too_old_clocks = {1, 2, 3, 20, 40};
  auto spec = CloudsJob();
  spec.training.workers = 1;
  TrainWell(spec, options);
  EXPECT_GT(outcome().returned, 0u);
  EXPECT_GT(outcome().evaluated->metric, 0.9);
  EXPECT_EQ(workloads_[0]->ResidualNorm().value(), 0.0);
}
#endif

TEST_F(TrainerTest, TheLedgerStartsFromZero) {
  Ledger ledger(LedgerJob().model);
  EXPECT_EQ(ledger.layout().blocks, 3u);
  EXPECT_EQ(ledger.layout().parameters, 3u * wire::kBlockElements);
  const auto values = ledger.table(0);
  EXPECT_TRUE(std::all_of(values.begin(), values.end(), [](float value) { return value == 0; }));
}

}  // namespace
}  // namespace ps::worker
