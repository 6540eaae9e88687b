// Trains Fashion-MNIST in one process, with real shards and a thread for each worker, with and
// without staged anomalies, and says what training.loss_calibration makes of them:
//
//   calibration_check [--json]          exit 1 if a goal is missed
//   calibration_check --record FILE     the losses and gradient norms of quiet trainings
//
// Anomalies: batches with wrong labels; batches whose features are multiplied; gradients of which
// some entries are multiplied where they are computed in less than fp32, as an overflow does that
// saturates instead of becoming infinite. The first two are in the data, so they stay when the step
// is computed again; the third does not.
//
// Goals, over --seeds runs: of the staged anomalies at least 18 of 20 are noticed, of all other
// steps none but one in 10,000; by their means, with the module the accuracy is at most 0.3 points
// below that of the quiet training, without it more; in bf16 it is at most 0.3 points below fp32.
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/job/job_spec.h"
#include "ps-worker/core/precision.h"
#include "ps-worker/engine/data/dataset.h"
#include "ps-worker/engine/model.h"
#include "ps-worker/engine/tensor_workload.h"
#include "ps-worker/engine/trainer.h"
#include "tests/ps-worker/engine/local_cluster.h"

namespace {

using ps::Result;
using ps::Status;
using ps::worker::Batch;
using ps::worker::Dataset;
using ps::worker::Model;
using ps::worker::StepMode;

enum class Fault { kNone, kLabels, kFeatures, kOverflow };
constexpr const char* kFaultNames[] = {"none", "wrong labels", "exploding features", "overflow"};

// What one worker's batches have wrong, by their number, and what was seen of them.
struct Staged {
  std::map<std::uint64_t, Fault> faults;
  int overflows_left = 0;
  std::uint64_t overflow_after = 0;             // this batch
  std::uint64_t batches = 0;                    // read so far
  std::set<std::uint64_t> noticed;              // computed again
  std::vector<std::pair<float, float>> values;  // loss and gradient norm of each first computation

  Fault Now() const {
    const auto found = faults.find(batches);
    return found == faults.end() ? Fault::kNone : found->second;
  }
  // An overflow that is due happens with the first batch that is computed in less than fp32.
  void Overflow(bool fp32) {
    if (fp32 || Now() != Fault::kNone || overflows_left == 0 || batches < overflow_after) return;
    --overflows_left;
    overflow_after = batches + 100;
    faults[batches] = Fault::kOverflow;
  }
};

class StagedDataset final : public Dataset {
 public:
  StagedDataset(const Dataset& data, Staged& staged) : data_(data), staged_(staged) {}

  std::uint64_t records() const override { return data_.records(); }
  const std::vector<std::int64_t>& feature_shape() const override { return data_.feature_shape(); }
  std::uint64_t features() const override { return data_.features(); }
  std::uint64_t id_columns() const override { return data_.id_columns(); }
  ps::worker::LabelRange label_range() const override { return data_.label_range(); }
  std::uint64_t fingerprint() const override { return data_.fingerprint(); }

  Status Read(std::span<const std::uint64_t> records, float* features, std::int64_t* labels,
              float* targets, std::uint64_t* ids) const override {
    PS_TRY(data_.Read(records, features, labels, targets, ids));
    ++staged_.batches;
    if (staged_.Now() == Fault::kLabels) {
      for (std::size_t i = 0; i < records.size(); ++i) {
        targets[i] = std::fmod(targets[i] + 1 + static_cast<float>(i % 9), 10.0f);
      }
    } else if (staged_.Now() == Fault::kFeatures) {
      for (std::size_t i = 0; i < records.size() * data_.features(); ++i) features[i] *= 300;
    }
    return ps::Ok();
  }

 private:
  const Dataset& data_;
  Staged& staged_;
};

class StagedModel final : public Model {
 public:
  StagedModel(std::unique_ptr<Model> model, Staged& staged)
      : model_(std::move(model)), staged_(staged) {
    layout_ = ps::control::Clone(model_->layout());
    selected_elements_ = model_->selected_elements();
    buffer_elements_ = model_->buffer_elements();
    counter_elements_ = model_->counter_elements();
  }

  std::span<float> parameters() override { return model_->parameters(); }
  std::span<const float> gradients() const override { return gradients_; }
  void ReadBuffers(std::span<float> buffers, std::span<float> counters) const override {
    model_->ReadBuffers(buffers, counters);
  }
  void WriteBuffers(std::span<const float> buffers, std::span<const float> counters) override {
    model_->WriteBuffers(buffers, counters);
  }
  Result<ps::worker::EvaluationSums> Evaluate(const Batch& batch) override {
    return model_->Evaluate(batch);
  }

  Result<double> Step(const Batch& batch, const StepMode& mode) override {
    const double loss = PS_TRY(model_->Step(batch, mode));
    const bool fp32 = mode.precision == ps::worker::Precision::kFp32;
    if (last_ != staged_.batches) staged_.Overflow(fp32);
    gradients_.assign(model_->gradients().begin(), model_->gradients().end());
    if (staged_.Now() == Fault::kOverflow && !fp32) {
      for (std::size_t i = 0; i < gradients_.size(); i += 97) gradients_[i] *= 3e4f;
    }
    if (last_ == staged_.batches) {
      staged_.noticed.insert(last_);
    } else {
      double squares = 0;
      for (const float one : gradients_) squares += double{one} * one;
      staged_.values.emplace_back(static_cast<float>(loss), static_cast<float>(std::sqrt(squares)));
    }
    last_ = staged_.batches;
    return loss;
  }

 private:
  const std::unique_ptr<Model> model_;
  Staged& staged_;
  std::vector<float> gradients_;
  std::uint64_t last_ = 0;  // batch
};

// What is to happen to one worker.
struct Plan {
  std::map<std::uint64_t, Fault> faults;  // by batch; of the data
  int overflows = 0;
  std::uint64_t overflow_after = 0;
};

struct Outcome {
  double accuracy = 0;
  std::uint64_t steps = 0;
  std::uint64_t redone = 0;
  std::uint64_t dropped = 0;
  std::uint64_t skipped = 0;
  std::vector<Staged> workers;
};

Result<Outcome> Train(const ps::JobSpec& spec, const std::vector<Plan>& plans) {
  const auto workers = static_cast<std::size_t>(spec.training.workers);
  Outcome outcome;
  outcome.workers.resize(workers);
  struct Task {
    std::unique_ptr<Dataset> data;
    std::unique_ptr<Dataset> test;
    std::unique_ptr<StagedDataset> staged;
    std::unique_ptr<ps::worker::TensorWorkload> workload;
  };
  std::vector<Task> tasks(workers);
  for (std::size_t i = 0; i < workers; ++i) {
    if (i < plans.size()) {
      outcome.workers[i].faults = plans[i].faults;
      outcome.workers[i].overflows_left = plans[i].overflows;
      outcome.workers[i].overflow_after = plans[i].overflow_after;
    }
    Task& task = tasks[i];
    task.data = PS_TRY(Dataset::Open(spec.data.train, spec.data));
    task.test = PS_TRY(Dataset::Open(*spec.data.test, spec.data));
    task.staged = std::make_unique<StagedDataset>(*task.data, outcome.workers[i]);
    auto model = std::make_unique<StagedModel>(PS_TRY(Model::Create(spec)), outcome.workers[i]);
    const auto precision =
        PS_TRY(ps::worker::ChoosePrecision(spec.training.precision, model->device()));
    task.workload = std::make_unique<ps::worker::TensorWorkload>(spec, std::move(model), precision);
  }
  ps::test::LocalClusterOptions options;
  options.lease_records = static_cast<std::uint64_t>(8 * spec.training.batch_size);
  options.deadline = std::chrono::seconds(1200);
  ps::test::LocalCluster cluster(spec, tasks[0].workload->layout(), tasks[0].data->records(),
                                 options);
  std::vector<std::thread> threads;
  std::vector<std::string> errors(workers);
  for (std::uint32_t i = 0; i < workers; ++i) {
    threads.emplace_back([&, i] {
      ps::worker::SetComputeThreads(1);
      const auto session = cluster.Connect(i);
      ps::worker::Trainer trainer(spec, *session, *tasks[i].workload, *tasks[i].staged,
                                  tasks[i].test.get());
      const auto result = trainer.Run();
      if (!result.ok()) errors[i] = result.error().message;
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& error : errors) {
    if (!error.empty()) return ps::Error{ps::ErrorCode::kInternal, error};
  }
  if (!cluster.outcome().evaluated) return ps::Error{ps::ErrorCode::kInternal, "no evaluation"};
  outcome.accuracy = cluster.outcome().evaluated->metric;
  outcome.steps = cluster.outcome().losses.size();
  outcome.redone = cluster.outcome().redone;
  outcome.dropped = cluster.outcome().dropped;
  outcome.skipped = cluster.outcome().skipped;
  return outcome;
}

ps::JobSpec FashionJob(const std::string& folder) {
  ps::JobSpec spec;
  spec.name = "calibration";
  spec.model.type = "mlp";
  spec.model.layers = {784, 256, 128, 10};
  spec.data.scale = 1.0 / 255;
  spec.data.mean = 0.2860;
  spec.data.standard_deviation = 0.3530;
  spec.data.train.format = "idx";
  spec.data.train.images = folder + "/train-images-idx3-ubyte.gz";
  spec.data.train.labels = folder + "/train-labels-idx1-ubyte.gz";
  spec.data.test.emplace();
  spec.data.test->format = "idx";
  spec.data.test->images = folder + "/t10k-images-idx3-ubyte.gz";
  spec.data.test->labels = folder + "/t10k-labels-idx1-ubyte.gz";
  spec.training.workers = 2;
  spec.training.batch_size = 64;
  spec.training.epochs = 5;
  spec.training.evaluate_every_epochs = 0;
  spec.optimizer.learning_rate.base = 0.1;
  spec.optimizer.learning_rate.schedule = "cosine";
  spec.optimizer.learning_rate.warmup_epochs = 0.3;
  spec.optimizer.learning_rate.final_factor = 0.01;
  spec.sparsification.ratio = 0.01;
  return spec;
}

int Fail(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  return 2;
}

int Record(const std::string& path, const std::string& folder) {
  struct Curve {
    const char* name;
    ps::JobSpec spec;
  };
  std::vector<Curve> curves;
  curves.push_back({"mlp, 2 workers, batch 64, 7 epochs, ratio 0.01", FashionJob(folder)});
  curves.back().spec.training.epochs = 7;
  curves.push_back({"mlp, 1 worker, batch 128, 10 epochs, dense", FashionJob(folder)});
  curves.back().spec.training.workers = 1;
  curves.back().spec.training.batch_size = 128;
  curves.back().spec.training.epochs = 10;
  curves.back().spec.sparsification.ratio = 1;
  curves.push_back(
      {"cnn, 2 workers, batch 128, 5 epochs, sparse_adam, ratio 0.05", FashionJob(folder)});
  auto& cnn = curves.back().spec;
  cnn.model.type = "cnn";
  cnn.model.layers.clear();
  cnn.model.input_shape = {1, 28, 28};
  cnn.training.batch_size = 128;
  cnn.training.epochs = 5;
  cnn.optimizer.type = "sparse_adam";
  cnn.optimizer.learning_rate.base = 0.001;
  cnn.sparsification.ratio = 0.05;
  std::FILE* const file = std::fopen(path.c_str(), "w");
  if (file == nullptr) return Fail(path + ": cannot be opened");
  std::fprintf(
      file,
      "# Loss and gradient norm of each step of a worker, on Fashion-MNIST, as hundredths of\n"
      "# their natural logarithms: calibration_check --record makes this file.\n");
  for (const Curve& curve : curves) {
    const auto outcome = Train(curve.spec, {});
    if (!outcome.ok()) return Fail(outcome.error().message);
    for (const Staged& worker : outcome->workers) {
      std::fprintf(file, "series %s\n", curve.name);
      for (const auto& [loss, norm] : worker.values) {
        std::fprintf(file, "%ld %ld\n", std::lround(100 * std::log(loss)),
                     std::lround(100 * std::log(norm)));
      }
    }
    std::printf("%s: accuracy %.4f\n", curve.name, outcome->accuracy);
  }
  return std::fclose(file) == 0 ? 0 : Fail(path + ": cannot be written");
}

// Twenty anomalies, at random steps of the two workers once they are judged: eight batches with
// wrong labels, six with exploding features, three overflows on each worker.
std::vector<Plan> TwentyAnomalies(std::uint64_t steps_of_worker, std::uint64_t warmup,
                                  unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Plan> plans(2);
  const std::uint64_t begin = warmup + 50;
  for (int i = 0; i < 14; ++i) {
    auto& faults = plans[static_cast<std::size_t>(i) % 2].faults;
    const Fault fault = i % 4 < 2 ? Fault::kLabels : Fault::kFeatures;
    while (!faults.emplace(begin + random() % (steps_of_worker - begin), fault).second) {
    }
  }
  for (Plan& plan : plans) {
    plan.overflows = 3;
    plan.overflow_after = begin + random() % 100;
  }
  return plans;
}

struct Arguments {
  std::string data = "/usr/share/datasets/fashion-mnist";
  std::string record;
  unsigned seed = 1;
  unsigned seeds = 3;
  int epochs = 5;
  bool json = false;
  bool verbose = false;
};

// Sums over the seeds.
struct Totals {
  double fp32 = 0;
  double quiet = 0;
  double quiet_with = 0;
  double helped = 0;
  double left = 0;
  std::map<std::string, std::pair<int, int>> kinds;  // noticed, of
  int noticed = 0;
  int staged = 0;
  std::size_t false_alarms = 0;
  std::uint64_t steps = 0;  // of the calibrated trainings
};

Status CheckSeed(const Arguments& arguments, unsigned seed, Totals& totals) {
  ps::JobSpec spec = FashionJob(arguments.data);
  spec.training.seed = seed;
  spec.training.epochs = arguments.epochs;
  spec.training.precision = "bf16";
  ps::JobSpec with = spec;
  with.training.loss_calibration.enabled = true;
  ps::JobSpec fp32 = spec;
  fp32.training.precision = "fp32";
  const auto steps = static_cast<std::uint64_t>(
      60'000 * spec.training.epochs /
      static_cast<double>(spec.training.batch_size * spec.training.workers));
  // The slower worker may get fewer batches.
  const auto plans = TwentyAnomalies(
      steps * 9 / 10, static_cast<std::uint64_t>(spec.training.loss_calibration.warmup_steps),
      seed);
  const auto train = [&](const char* name, const ps::JobSpec& job,
                         const std::vector<Plan>& with_plans, double& sum) -> Result<Outcome> {
    Outcome outcome = PS_TRY(Train(job, with_plans));
    std::fprintf(arguments.json ? stderr : stdout,
                 "seed %u  %-24s accuracy %.4f  %llu steps, %llu computed again, %llu batches "
                 "skipped, %llu not finite\n",
                 seed, name, outcome.accuracy, static_cast<unsigned long long>(outcome.steps),
                 static_cast<unsigned long long>(outcome.redone + outcome.dropped),
                 static_cast<unsigned long long>(outcome.dropped),
                 static_cast<unsigned long long>(outcome.skipped - outcome.dropped));
    sum += outcome.accuracy;
    return outcome;
  };
  PS_TRY(train("quiet, fp32", fp32, {}, totals.fp32));
  PS_TRY(train("quiet, bf16", spec, {}, totals.quiet));
  const Outcome quiet = PS_TRY(train("quiet, calibrated", with, {}, totals.quiet_with));
  const Outcome helped = PS_TRY(train("anomalies, calibrated", with, plans, totals.helped));
  PS_TRY(train("anomalies", spec, plans, totals.left));
  for (const auto* outcome : {&quiet, &helped}) {
    totals.steps += outcome->steps;
    for (const Staged& worker : outcome->workers) {
      for (const auto batch : worker.noticed)
        totals.false_alarms += worker.faults.count(batch) == 0;
      for (const auto& [batch, fault] : worker.faults) {
        auto& kind = totals.kinds[kFaultNames[static_cast<int>(fault)]];
        ++kind.second;
        ++totals.staged;
        if (worker.noticed.count(batch) == 0) continue;
        ++kind.first;
        ++totals.noticed;
      }
    }
  }
  return ps::Ok();
}

Result<int> Check(const Arguments& arguments) {
  Totals totals;
  for (unsigned i = 0; i < arguments.seeds; ++i) {
    PS_TRY(CheckSeed(arguments, arguments.seed + i, totals));
  }
  const auto seeds = static_cast<int>(arguments.seeds);
  const auto mean = [seeds](double sum) { return std::round(sum / seeds * 1e5) / 1e5; };
  const double allowed = 0.003;
  nlohmann::json goals = {
      {"noticed", totals.staged == 20 * seeds && totals.noticed >= 18 * seeds},
      {"false_alarms", totals.false_alarms <= std::max<std::uint64_t>(1, totals.steps / 10'000)},
      {"calibrated_is_near_quiet", mean(totals.helped) >= mean(totals.quiet) - allowed},
      {"without_it_is_not", mean(totals.left) < mean(totals.quiet) - allowed},
      {"bf16_is_near_fp32", mean(totals.quiet) >= mean(totals.fp32) - allowed}};
  const bool holds = std::all_of(goals.begin(), goals.end(),
                                 [](const nlohmann::json& goal) { return goal.get<bool>(); });
  nlohmann::json by_kind;
  for (const auto& [kind, counts] : totals.kinds) by_kind[kind] = {counts.first, counts.second};
  const nlohmann::json line = {{"first_seed", arguments.seed},
                               {"seeds", seeds},
                               {"staged", totals.staged},
                               {"noticed", totals.noticed},
                               {"noticed_of", by_kind},
                               {"false_alarms", totals.false_alarms},
                               {"steps", totals.steps},
                               {"fp32", mean(totals.fp32)},
                               {"bf16", mean(totals.quiet)},
                               {"quiet_calibrated", mean(totals.quiet_with)},
                               {"anomalies_calibrated", mean(totals.helped)},
                               {"anomalies", mean(totals.left)},
                               {"goals", goals},
                               {"holds", holds}};
  std::printf("%s\n", line.dump().c_str());
  return holds ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("What training.loss_calibration makes of anomalies", "calibration_check");
  app.add_option("--data", arguments.data, "Folder of Fashion-MNIST")->capture_default_str();
  app.add_option("--record", arguments.record,
                 "Write the curves of quiet trainings, check nothing");
  app.add_option("--seed", arguments.seed, "The first, of values, data and anomalies")
      ->capture_default_str();
  app.add_option("--seeds", arguments.seeds, "So many")->capture_default_str();
  app.add_option("--epochs", arguments.epochs, "Of each training")->capture_default_str();
  app.add_flag("--json", arguments.json, "Only the JSON line on stdout");
  app.add_flag("--verbose", arguments.verbose, "What the workers log");
  CLI11_PARSE(app, argc, argv);
  ps::worker::SetComputeThreads(1);
  spdlog::set_level(arguments.verbose ? spdlog::level::info : spdlog::level::off);
  if (!arguments.record.empty()) return Record(arguments.record, arguments.data);
  const auto checked = Check(arguments);
  return checked.ok() ? *checked : Fail(checked.error().message);
}
