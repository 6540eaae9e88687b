// ds-bench: measures how fast a server takes pushes and answers pulls.
#include <sysexits.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "bench/measure.h"
#include "bench/options.h"
#include "bench/report.h"
#include "bench/transport.h"
#include "common/net/allocator.h"
#include "common/net/log.h"

namespace {

using ps::bench::Carrier;
using ps::bench::Operation;

constexpr int kExitBoundMissed = 10;  // "findings", as ds-cli has it

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
};
const std::map<std::string, ps::bench::Distribution> kDistributions = {
    {"uniform", ps::bench::Distribution::kUniform},
    {"zipf", ps::bench::Distribution::kZipf},
};
const std::vector<std::string> kRowOptimizers = {
    "sgd", "momentum", "nesterov", "adagrad", "rowwise_adagrad", "adam", "adamw", "ftrl"};

ps::Result<ps::bench::Row> Measure(const ps::bench::Options& options, Operation operation,
                                   std::uint64_t size) {
  if (operation == Operation::kApply || operation == Operation::kKernel) {
    return ps::bench::MeasureInProcess(options, operation, size);
  }
  if (options.carrier == Carrier::kZmq) {
    if (IsOfRows(operation) || operation == Operation::kOverload) {
      return ps::Error{ps::ErrorCode::kUsage,
                       std::string(NameOf(operation)) + " is nothing that libzmq alone can do"};
    }
    return ps::bench::MeasureTransport(options, operation, size);
  }
  return ps::bench::MeasureLocal(options, operation, size, [](const std::string& what) {
    std::fprintf(stderr, "ds-bench:   %s\n", what.c_str());
  });
}

bool HoldsBounds(const ps::bench::Options& options, const ps::bench::Row& row) {
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
      "Measures pushes and pulls of parameters: through lanes of a ps-server that it starts in "
      "this "
      "process (--local), or over libzmq alone (--transport), for comparison. The table goes to "
      "stdout, progress to stderr.",
      "ds-bench"};
  ps::bench::Options options;
  bool local = false;
  bool transport = false;
  bool json = false;
  auto* carriers = app.add_option_group("what carries the bytes");
  carriers->add_flag("--local", local,
                     "lanes of this process over tcp loopback; every push is applied exactly once");
  carriers->add_flag("--transport", transport,
                     "libzmq alone: frames of the same sizes, nothing done with them");
  carriers->require_option(1);
  app.add_option(
         "-t,--operation", options.operations,
         "push, pull, pushpull, rowpush, rowpull, rowpushpull (rows of an embedding table), "
         "overload, apply (a lane's rules without sockets), kernel (a plain loop)")
      ->delimiter(',')
      ->transform(CLI::CheckedTransformer(kOperations));
  app.add_option("--size", options.sizes,
                 "bytes of a dense push's values, such as 64K or 1M; several with commas")
      ->delimiter(',')
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::uint64_t{4}, std::uint64_t{1} << 30));
  auto* entries =
      app.add_option("--entries", options.entries, "values of a sparse push (default: dense)");
  app.add_option("--ratio", options.ratio, "the same as a share of --parameters")
      ->check(CLI::Range(0.0, 1.0))
      ->excludes(entries);
  app.add_option("--parameters", options.parameters,
                 "of the model (default: as a dense push needs; sparse: 25,000,000)");
  app.add_option("--values", options.values, "fp32 or bf16")
      ->transform(CLI::CheckedTransformer(kValues));
  auto& row_options = options.rows;
  app.add_option("--width", row_options.width, "rows: floats of a row")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  app.add_option("--rows", row_options.ids, "rows: ids of a message; equal ids are one row")
      ->capture_default_str()
      ->check(CLI::Range(1, 1'000'000));
  app.add_option("--keys", row_options.keys, "rows: of the table, made before the measurement")
      ->capture_default_str()
      ->check(CLI::Range(1, 10'000'000));
  app.add_option("--distribution", row_options.distribution, "rows: of ids, uniform or zipf")
      ->transform(CLI::CheckedTransformer(kDistributions));
  app.add_option("--zipf-exponent", row_options.zipf_exponent, "rows: id k has the weight k^-s")
      ->capture_default_str()
      ->check(CLI::Range(0.01, 10.0));
  app.add_option("--optimizer", row_options.optimizer,
                 "rows: sgd, momentum, nesterov, adagrad, rowwise_adagrad, adam, adamw, ftrl")
      ->capture_default_str()
      ->check(CLI::IsMember(kRowOptimizers));
  app.add_option("--window", options.window, "pushes of a worker that wait for their answer")
      ->capture_default_str()
      ->check(CLI::Range(1, 32));
  app.add_option("--workers", options.workers, "that push or pull at once")
      ->capture_default_str()
      ->check(CLI::Range(1, 256));
  app.add_option("--servers", options.servers)->capture_default_str()->check(CLI::Range(1, 16));
  app.add_option("--lanes", options.lanes, "threads of a server that hold shards")
      ->capture_default_str()
      ->check(CLI::Range(1, 64));
  app.add_option("--shards", options.shards, "of the model (default: one per 65,536 values)")
      ->check(CLI::Range(1, 4096));
  app.add_option("--seconds", options.seconds, "of each measurement")
      ->capture_default_str()
      ->check(CLI::Range(0.05, 3600.0));
  app.add_option("--warm-up", options.warm_up_seconds, "seconds before it")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 60.0));
  app.add_option("--deadline", options.deadline_seconds, "seconds for whatever must be answered")
      ->capture_default_str()
      ->check(CLI::Range(1.0, 3600.0));
  app.add_option("--p99-bound-ms", options.p99_bound_ms,
                 "exit with 10 if the pulls of an overload are slower");
  app.add_option("--memory-bound-mib", options.memory_bound_mib,
                 "exit with 10 if an overload makes the process grow by more");
  app.add_flag("--json", json, "a list of objects instead of the table");
  app.set_version_flag("--version", std::string("ds-bench " PS_VERSION));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? EX_OK : EX_USAGE;
  }
  options.carrier = transport ? Carrier::kZmq : Carrier::kDs;
  ps::net::KeepFreedMemory();
  if (const ps::Status logging = ps::SetUpLogging("ds-bench", "warn", "text"); !logging.ok()) {
    return EX_SOFTWARE;
  }

  std::vector<ps::bench::Row> rows;
  bool holds = true;
  for (const Operation operation : options.operations) {
    for (const std::uint64_t size : options.sizes) {
      if (IsOfRows(operation) && size != options.sizes.front()) continue;  // they have no size
      std::fprintf(stderr, "ds-bench: %s over %s, %.1f s\n", NameOf(operation),
                   NameOf(options.carrier), options.seconds);
      auto row = Measure(options, operation, size);
      if (!row.ok()) {
        std::fprintf(stderr, "ds-bench: %s\n", row.error().message.c_str());
        return row.error().code == ps::ErrorCode::kUsage ? EX_USAGE : EX_SOFTWARE;
      }
      holds = HoldsBounds(options, *row) && holds;
      rows.push_back(std::move(*row));
    }
  }
  std::fputs(json ? (ps::bench::Json(rows) + "\n").c_str() : ps::bench::Table(rows).c_str(),
             stdout);
  return holds ? EX_OK : kExitBoundMissed;
}
