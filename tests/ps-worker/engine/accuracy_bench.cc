// Trains a job file in one process, with real shards and a thread for each worker, and prints the
// accuracy for each seed: to choose hyper-parameters before a cluster is there, and to compare with
// what the cluster reaches.
//
//   accuracy_bench --job examples/fashion-mlp.yaml --seeds 5 [--ratio 1] [--rate 0.2] ...
#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/job/job_spec.h"
#include "ps-worker/engine/load.h"
#include "ps-worker/engine/model.h"
#include "ps-worker/engine/trainer.h"
#include "tests/ps-worker/engine/local_cluster.h"

namespace {

int Fail(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  return 1;
}

// The final metric; negative if the job failed.
double Train(const ps::JobSpec& spec) {
  using ps::worker::LoadTask;
  std::vector<ps::worker::LoadedTask> tasks;
  for (std::int64_t i = 0; i < spec.training.workers; ++i) {
    auto task = LoadTask(spec);
    if (!task.ok()) return -Fail(task.error().message);
    tasks.push_back(std::move(task).value());
  }
  ps::test::LocalClusterOptions options;
  options.lease_records = static_cast<std::uint64_t>(8 * spec.training.batch_size);
  options.deadline = std::chrono::seconds(600);
  ps::test::LocalCluster cluster(spec, tasks[0].workload->layout(), tasks[0].train->records(),
                                 options);
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (std::uint32_t i = 0; i < tasks.size(); ++i) {
    threads.emplace_back([&, i] {
      ps::worker::SetComputeThreads(spec.training.threads_per_worker);
      const auto session = cluster.Connect(i);
      ps::worker::Trainer trainer(spec, *session, *tasks[i].workload, *tasks[i].train,
                                  tasks[i].test.get());
      const auto result = trainer.Run();
      if (!result.ok()) Fail(result.error().message);
    });
  }
  for (auto& thread : threads) thread.join();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const auto& outcome = cluster.outcome();
  if (!outcome.evaluated.has_value()) return -1;
  const auto parameters = static_cast<double>(tasks[0].workload->layout().tables[0]->elements);
  const auto pulls = static_cast<double>(std::max<std::uint64_t>(outcome.update_pulls, 1));
  double staleness = 0;
  for (const auto one : outcome.staleness) staleness += static_cast<double>(one);
  std::printf(
      "seed %2lld  metric %.4f  loss %.4f  %.0f s  %.1f ms a step  %.5f bytes a parameter and "
      "push, "
      "%.5f a pull of %.2f pushes  staleness %.2f  live",
      static_cast<long long>(spec.training.seed), outcome.evaluated->metric,
      outcome.evaluated->loss, seconds,
      1000 * seconds * static_cast<double>(tasks.size()) / static_cast<double>(outcome.pushes),
      static_cast<double>(outcome.push_bytes) / (parameters * static_cast<double>(outcome.pushes)),
      static_cast<double>(outcome.update_bytes) / (parameters * pulls),
      static_cast<double>(outcome.update_versions) / (pulls * cluster.shards()),
      staleness / static_cast<double>(std::max<std::size_t>(outcome.staleness.size(), 1)));
  for (const auto& metric : outcome.metrics) std::printf(" %.4f", metric.second);
  std::printf("\n");
  std::fflush(stdout);
  return outcome.evaluated->metric;
}

}  // namespace

int main(int argc, char** argv) {
  std::string job;
  int seeds = 1;
  int first_seed = 1;
  double ratio = 0;
  double rate = 0;
  double clip = -1;
  double epochs = 0;
  std::int64_t workers = 0;
  std::string pull_values;
  CLI::App app("Trains a job file in one process", "accuracy_bench");
  app.add_option("--job", job, "Job file (YAML)")->required();
  app.add_option("--seeds", seeds, "Number of seeds")->capture_default_str();
  app.add_option("--first-seed", first_seed, "The first of them")->capture_default_str();
  app.add_option("--ratio", ratio, "sparsification.ratio instead of the file's");
  app.add_option("--rate", rate, "optimizer.learning_rate.base instead of the file's");
  app.add_option("--clip", clip, "optimizer.clip_norm instead of the file's");
  app.add_option("--epochs", epochs, "training.epochs instead of the file's");
  app.add_option("--pull-values", pull_values, "training.pull_values instead of the file's");
  app.add_option("--workers", workers, "training.workers instead of the file's");
  CLI11_PARSE(app, argc, argv);

  std::ifstream file(job);
  if (!file) return Fail(job + ": cannot be opened");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  auto parsed = ps::ParseJobYaml(text, job, std::filesystem::absolute(job).parent_path().string());
  if (!parsed.ok()) return Fail(parsed.error().message);
  auto spec = parsed.value();
  if (ratio > 0) spec.sparsification.ratio = ratio;
  if (rate > 0) spec.optimizer.learning_rate.base = rate;
  if (clip >= 0) spec.optimizer.clip_norm = clip;
  if (!pull_values.empty()) spec.training.pull_values = pull_values;
  if (workers > 0) spec.training.workers = workers;
  if (epochs > 0) spec.training.epochs = epochs;

  ps::worker::SetComputeThreads(spec.training.threads_per_worker);
  double sum = 0;
  double squares = 0;
  for (int i = 0; i < seeds; ++i) {
    spec.training.seed = first_seed + i;
    const double metric = Train(spec);
    if (metric < 0) return 1;
    sum += metric;
    squares += metric * metric;
  }
  const double mean = sum / seeds;
  std::printf("mean %.4f  deviation %.4f  of %d seeds\n", mean,
              std::sqrt(std::max(0.0, squares / seeds - mean * mean)), seeds);
  return 0;
}
