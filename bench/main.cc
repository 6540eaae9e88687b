// ds-bench: measures how fast a server takes pushes and answers pulls.
#include <sysexits.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bench/measure.h"
#include "bench/measure_cluster.h"
#include "bench/options.h"
#include "bench/report.h"
#include "bench/transport.h"
#include "cli/environment.h"
#include "common/net/allocator.h"
#include "common/net/log.h"

namespace {

using ps::bench::Carrier;
using ps::bench::Operation;

constexpr int kExitBoundMissed = 10;  // "findings", as ds-cli has it, and so the next
constexpr int kExitInterrupted = 130;

const std::map<std::string, Operation> kOperations = {
    {"push", Operation::kPush},
    {"pull", Operation::kPull},
    {"pushpull", Operation::kPushPull},
    {"overload", Operation::kOverload},
    {"rowpush", Operation::kRowPush},
    {"rowpull", Operation::kRowPull},
    {"rowpushpull", Operation::kRowPushPull},
    {"apply", Operation::kApply},
    {"kernel", Operation::kKernel},
};
const std::map<std::string, ps::wire::ValueCodec> kValues = {
    {"fp32", ps::wire::ValueCodec::Fp32},
    {"bf16", ps::wire::ValueCodec::Bf16},
    {"int8", ps::wire::ValueCodec::Int8},
};
const std::map<std::string, ps::bench::Distribution> kDistributions = {
    {"uniform", ps::bench::Distribution::kUniform},
    {"zipf", ps::bench::Distribution::kZipf},
};
const std::vector<std::string> kRowOptimizers = {
    "sgd", "momentum", "nesterov", "adagrad", "rowwise_adagrad", "adam", "adamw", "ftrl"};

void Say(const std::string& what) { std::fprintf(stderr, "ds-bench:   %s\n", what.c_str()); }

ps::Error CannotDo(const char* carrier, Operation operation) {
  return ps::Error{ps::ErrorCode::kUsage,
                   std::string(carrier) + " cannot measure " + NameOf(operation)};
}

// `cluster` is null but with the carrier kCluster.
ps::Result<ps::bench::Row> Measure(const ps::bench::Options& options, Operation operation,
                                   std::uint64_t size, ps::bench::ClusterBench* cluster) {
  const bool in_process = operation == Operation::kApply || operation == Operation::kKernel;
  if (cluster != nullptr) {
    if (in_process || operation == Operation::kOverload) return CannotDo("--cluster", operation);
    return cluster->Measure(options, operation, size, Say);
  }
  if (in_process) return ps::bench::MeasureInProcess(options, operation, size);
  if (options.carrier == Carrier::kZmq) {
    if (IsOfRows(operation) || operation == Operation::kOverload) {
      return CannotDo("--transport", operation);
    }
    return ps::bench::MeasureTransport(options, operation, size);
  }
  return ps::bench::MeasureLocal(options, operation, size, Say);
}

int ExitStatusOf(const ps::Error& error, bool interrupted) {
  if (interrupted) return kExitInterrupted;
  switch (error.code) {
    case ps::ErrorCode::kUsage: return EX_USAGE;
    case ps::ErrorCode::kUnreachable: return EX_UNAVAILABLE;
    default: return EX_SOFTWARE;
  }
}

bool HoldsCheckpointBounds(const ps::bench::Options& options, const ps::bench::Row& row) {
  bool holds = true;
  if (row.checkpoints.count == 0) return holds;
  if (options.stall_bound_ms > 0 && row.StallMs() > options.stall_bound_ms) {
    std::fprintf(stderr,
                 "ds-bench: p99 is %.2f ms higher while a checkpoint is written, the bound is "
                 "%.2f ms\n",
                 row.StallMs(), options.stall_bound_ms);
    holds = false;
  }
  if (options.loss_bound_percent > 0 && row.LossPercent() > options.loss_bound_percent) {
    std::fprintf(stderr, "ds-bench: %.1f %% less with a checkpoint, the bound is %.1f %%\n",
                 row.LossPercent(), options.loss_bound_percent);
    holds = false;
  }
  return holds;
}

bool HoldsBounds(const ps::bench::Options& options, const ps::bench::Row& row) {
  if (!HoldsCheckpointBounds(options, row)) return false;
  if (row.operation != Operation::kOverload) return true;
  bool holds = true;
  const double p99_ms = static_cast<double>(row.latency.Percentile(0.99)) / 1e6;
  if (options.p99_bound_ms > 0 && p99_ms > options.p99_bound_ms) {
    std::fprintf(stderr, "ds-bench: p99 of a pull is %.2f ms, the bound is %.2f ms\n", p99_ms,
                 options.p99_bound_ms);
    holds = false;
  }
  if (options.memory_bound_mib > 0 &&
      row.memory_growth_mib > static_cast<double>(options.memory_bound_mib)) {
    std::fprintf(stderr, "ds-bench: memory grew by %.0f MiB, the bound is %llu MiB\n",
                 row.memory_growth_mib, static_cast<unsigned long long>(options.memory_bound_mib));
    holds = false;
  }
  return holds;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Measures pushes and pulls of parameters and of rows: of the servers of a running cluster "
      "(--cluster), through lanes of a ps-server in this process (--local), or over libzmq alone "
      "(--transport), for comparison. The table goes to stdout, progress to stderr.",
      "ds-bench"};
  ps::bench::Options options;
  bool local = false;
  bool transport = false;
  bool cluster = false;
  bool json = false;
  std::vector<std::string> coordinators;
  std::string zookeeper;
  auto* carriers = app.add_option_group("what carries the bytes");
  carriers->add_flag("--local", local,
                     "lanes of this process over tcp loopback; every push is applied exactly once");
  carriers->add_flag("--transport", transport,
                     "libzmq alone: frames of the same sizes, nothing done with them");
  auto* cluster_flag = carriers->add_flag(
      "--cluster", cluster,
      "a running cluster, by jobs of our own that are cancelled at the end; slows down what runs");
  carriers->require_option(1);
  app.add_option(
         "--coordinator", coordinators,
         "URL of a coordinator of the cluster; may be repeated (default: DS_COORDINATOR, or "
         "the cluster of `ds-cli local up`)")
      ->allow_extra_args(false)
      ->needs(cluster_flag)
      ->option_text("URL");
  app.add_option("--zookeeper", zookeeper,
                 "HOST:PORT,.../CHROOT of the cluster (default: what the coordinator says)")
      ->needs(cluster_flag)
      ->option_text("HOSTS");
  app.add_option(
         "-t,--operation", options.operations,
         "push, pull, pushpull, rowpush, rowpull, rowpushpull (rows of an embedding table), "
         "overload, apply (a lane's rules without sockets), kernel (a plain loop)")
      ->delimiter(',')
      ->transform(CLI::CheckedTransformer(kOperations))
      ->option_text("OPERATION,...");
  app.add_option("--size", options.sizes,
                 "bytes of a dense push's values, such as 64K or 1M; several with commas")
      ->delimiter(',')
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::uint64_t{4}, std::uint64_t{1} << 30))
      ->option_text("BYTES,...");
  auto* entries =
      app.add_option("--entries", options.entries, "values of a sparse push (default: dense)")
          ->option_text("N");
  app.add_option("--ratio", options.ratio, "the same as a share of --parameters")
      ->check(CLI::Range(0.0, 1.0))
      ->excludes(entries)
      ->option_text("R");
  app.add_option("--parameters", options.parameters,
                 "of the model (default: as a dense push needs; sparse: 25,000,000)")
      ->option_text("N");
  app.add_option("--values", options.values, "fp32, bf16, or of rows int8 (default: fp32)")
      ->transform(CLI::CheckedTransformer(kValues))
      ->option_text("CODEC");
  auto& row_options = options.rows;
  app.add_option("--width", row_options.width, "rows: floats of a row")

      ->check(CLI::Range(1, 1024))
      ->option_text("N (64)");
  app.add_option("--rows", row_options.ids, "rows: ids of a message; equal ids are one row")

      ->check(CLI::Range(1, 1'000'000))
      ->option_text("N (512)");
  app.add_option("--keys", row_options.keys, "rows: of the table, made before the measurement")

      ->check(CLI::Range(1, 10'000'000))
      ->option_text("N (100000)");
  app.add_option("--distribution", row_options.distribution,
                 "rows: of ids, uniform or zipf (default: uniform)")
      ->transform(CLI::CheckedTransformer(kDistributions))
      ->option_text("WORD");
  app.add_option("--zipf-exponent", row_options.zipf_exponent, "rows: id k has the weight k^-s")

      ->check(CLI::Range(0.01, 10.0))
      ->option_text("S (0.99)");
  app.add_option("--optimizer", row_options.optimizer,
                 "rows: sgd, momentum, nesterov, adagrad, rowwise_adagrad, adam, adamw, ftrl")

      ->check(CLI::IsMember(kRowOptimizers))
      ->option_text("WORD (adagrad)");
  app.add_option("--window", options.window, "pushes of a worker that wait for their answer")

      ->check(CLI::Range(1, 32))
      ->option_text("N (4)");
  app.add_option(
         "--pause-ms", options.pause_ms,
         "with --cluster: of a worker between an answer and its next push, as if it computed")

      ->check(CLI::Range(0, 1000))
      ->option_text("MS (0)");
  app.add_option("--workers", options.workers, "that push or pull at once")

      ->check(CLI::Range(1, 256))
      ->option_text("N (1)");
  app.add_option("--servers", options.servers, "that --local starts")

      ->check(CLI::Range(1, 16))
      ->excludes(cluster_flag)
      ->option_text("N (1)");
  app.add_option("--lanes", options.lanes, "threads of such a server, which hold its shards")

      ->check(CLI::Range(1, 64))
      ->excludes(cluster_flag)
      ->option_text("N (1)");
  app.add_option("--shards", options.shards, "of the model (default: one per 65,536 values)")
      ->check(CLI::Range(1, 4096))
      ->option_text("N");
  app.add_option("--replicas", options.replicas,
                 "with --cluster: backups of each shard; a server may then be lost meanwhile")

      ->check(CLI::Range(0, 2))
      ->needs(cluster_flag)
      ->option_text("N (0)");
  app.add_option("--seconds", options.seconds, "of each measurement")

      ->check(CLI::Range(0.05, 3600.0))
      ->option_text("S (1)");
  app.add_option("--warm-up", options.warm_up_seconds, "seconds before it")

      ->check(CLI::Range(0.0, 60.0))
      ->option_text("S (0.2)");
  app.add_option("--deadline", options.deadline_seconds, "seconds for whatever must be answered")

      ->check(CLI::Range(1.0, 3600.0))
      ->option_text("S (60)");
  auto* checkpoints =
      app.add_option("--checkpoints-every", options.checkpoint_seconds,
                     "with --cluster: windows of so many seconds, every other with a checkpoint of "
                     "all that is measured; --seconds is of all windows")
          ->check(CLI::Range(0.5, 3600.0))
          ->needs(cluster_flag)
          ->option_text("S");
  app.add_option("--stall-bound-ms", options.stall_bound_ms,
                 "exit with 10 if p99 is more than that higher while a checkpoint is written")
      ->check(CLI::PositiveNumber)
      ->needs(checkpoints)
      ->option_text("MS");
  app.add_option("--loss-bound-percent", options.loss_bound_percent,
                 "exit with 10 if windows with a checkpoint have fewer operations by more")
      ->check(CLI::PositiveNumber)
      ->needs(checkpoints)
      ->option_text("P");
  app.add_option("--p99-bound-ms", options.p99_bound_ms,
                 "exit with 10 if the pulls of an overload are slower")
      ->option_text("MS");
  app.add_option("--memory-bound-mib", options.memory_bound_mib,
                 "exit with 10 if an overload makes the process grow by more")
      ->option_text("MIB");
  app.add_flag("--json", json, "a list of objects instead of the table");
  app.set_version_flag("--version", std::string("ds-bench " PS_VERSION));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? EX_OK : EX_USAGE;
  }
  options.carrier = cluster ? Carrier::kCluster : transport ? Carrier::kZmq : Carrier::kDs;
  ps::net::KeepFreedMemory();
  if (const ps::Status logging = ps::SetUpLogging("ds-bench", "warn", "text"); !logging.ok()) {
    return EX_SOFTWARE;
  }

  std::optional<ps::cli::Environment> environment;
  std::unique_ptr<ps::bench::ClusterBench> joined;
  const auto fail = [&environment](const ps::Error& error) {
    std::fprintf(stderr, "ds-bench: %s\n", ps::ErrorLine(error).c_str());
    return ExitStatusOf(error, environment && environment->interrupted());
  };
  if (cluster) {
    environment.emplace(ps::cli::RealEnvironment());
    auto join = ps::bench::ClusterBench::Join(*environment, coordinators, zookeeper, options, Say);
    if (!join.ok()) return fail(join.error());
    joined = std::move(*join);
  }

  std::vector<ps::bench::Row> rows;
  int exit_status = EX_OK;
  const auto measure_all = [&]() -> ps::Status {
    for (const Operation operation : options.operations) {
      for (const std::uint64_t size : options.sizes) {
        if (IsOfRows(operation) && size != options.sizes.front()) continue;  // they have no size
        std::fprintf(stderr, "ds-bench: %s over %s, %.1f s\n", NameOf(operation),
                     NameOf(options.carrier), options.seconds);
        rows.push_back(PS_TRY(Measure(options, operation, size, joined.get())));
        if (!HoldsBounds(options, rows.back())) exit_status = kExitBoundMissed;
      }
    }
    return ps::Ok();
  };
  if (const ps::Status status = measure_all(); !status.ok()) exit_status = fail(status.error());
  // What was measured before something failed is not lost.
  if (exit_status == EX_OK || exit_status == kExitBoundMissed || !rows.empty()) {
    std::fputs(json ? (ps::bench::Json(rows) + "\n").c_str() : ps::bench::Table(rows).c_str(),
               stdout);
  }
  return exit_status;
}
