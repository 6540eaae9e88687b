// What a push does to a table, beside the bare loop that does the same and the memory's limit.
//
//   bench_kernels [--elements 100000000] [--rounds 5] [--json]
//
// For each case the stream through memory (the floor), the bare loop (the peer) and ours run in
// turn; a figure is the median of the rounds, a goal the least ratio of ours to the bare loop. Ours
// is what a shard calls: blocks of a parsed segment, through a DenseStore. Exit 1 if a goal is
// missed, 2 if the arguments are bad.
#include <benchmark/benchmark.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "bench/bench_support.h"
#include "bench/kernels_bare.h"
#include "common/check.h"
#include "common/codec/block_codec.h"
#include "common/layout/layout.h"
#include "common/messages/control.h"
#include "ps-server/core/dense_store.h"
#include "ps-server/core/kernels/denormals.h"
#include "ps-server/core/optimizer.h"

namespace ps::bench {
namespace {

using server::DenseStore;
using server::Optimizer;
using server::OptimizerRules;
using server::OptimizerType;
using server::StoreShape;

struct Options {
  std::uint64_t elements = 100'000'000;
  int rounds = 5;
  double seconds = 0.3;  // of one measurement, at least
  std::string only;
  std::string variant;
  bool json = false;
};

struct Case {
  const char* name;
  OptimizerType type;
  double density;  // 1: dense
  wire::IndexCodec index;
  wire::ValueCodec value;
  double goal;  // of the bare loop
};

constexpr Case kCases[] = {
    {"dense SGD", OptimizerType::kSgd, 1, wire::IndexCodec::Dense, wire::ValueCodec::Fp32, 0.95},
    {"dense momentum", OptimizerType::kMomentum, 1, wire::IndexCodec::Dense, wire::ValueCodec::Fp32,
     0.95},
    {"dense Adam", OptimizerType::kAdam, 1, wire::IndexCodec::Dense, wire::ValueCodec::Fp32, 0.95},
    {"sparse SGD, 1 %", OptimizerType::kSgd, 0.01, wire::IndexCodec::Raw16, wire::ValueCodec::Fp32,
     0.9},
    {"sparse SGD, 5 %", OptimizerType::kSgd, 0.05, wire::IndexCodec::Raw16, wire::ValueCodec::Fp32,
     0.9},
    {"packed SGD, 1 %", OptimizerType::kSgd, 0.01, wire::IndexCodec::Gap8, wire::ValueCodec::Bf16,
     0.6},
    {"packed SGD, 5 %", OptimizerType::kSgd, 0.05, wire::IndexCodec::Gap8, wire::ValueCodec::Bf16,
     0.6},
    {"sparse Adam, 1 %", OptimizerType::kAdam, 0.01, wire::IndexCodec::Raw16,
     wire::ValueCodec::Fp32, 0.9},
    {"sparse Adam, 5 %", OptimizerType::kAdam, 0.05, wire::IndexCodec::Raw16,
     wire::ValueCodec::Fp32, 0.9},
};

// One push of random entries over the whole table: encoded, and as plain arrays.
struct Push {
  std::vector<std::uint32_t> indices;  // empty if dense
  std::vector<float> values;
  std::vector<std::byte> payload;
  std::vector<codec::BlockView> blocks;
  std::uint64_t lines = 0;  // of 16 floats that it touches

  Push(const LayoutView& layout, const Case& one) {
    std::mt19937_64 random(7);
    const bool dense = one.index == wire::IndexCodec::Dense;
    std::geometric_distribution<std::uint32_t> gap(dense ? 0.5 : one.density);
    const auto value = [&random] {
      return static_cast<float>(static_cast<std::int32_t>(random() >> 32)) * 0x1p-31f;
    };
    std::uint64_t first = 0;
    std::uint64_t next = dense ? 0 : gap(random);
    std::uint64_t last_line = UINT64_MAX;
    for (std::uint32_t block = 0; block < layout.block_count(); ++block) {
      const std::uint32_t elements = layout.block(block).elements;
      std::vector<std::uint16_t> positions;
      std::vector<float> entries;
      for (; next < first + elements; next += 1 + (dense ? 0 : gap(random))) {
        entries.push_back(value());
        if (dense) continue;
        positions.push_back(static_cast<std::uint16_t>(next - first));
        indices.push_back(static_cast<std::uint32_t>(next));
        if (next / 16 != last_line) ++lines;
        last_line = next / 16;
      }
      first += elements;
      const std::size_t at = payload.size();
      payload.resize(at + codec::MaxEncodedBytes(elements,
                                                 static_cast<std::uint32_t>(entries.size()),
                                                 one.index, one.value));
      payload.resize(at + codec::EncodeBlock(block, elements, positions, entries, one.index,
                                             one.value, payload.data() + at, {}));
      values.insert(values.end(), entries.begin(), entries.end());
    }
    const Status parsed = codec::ParseSegment(
        payload, [&](std::uint32_t block) { return layout.block(block).elements; }, blocks);
    PS_CHECK(parsed.ok());
  }
};

// The two competitors on the same push, each on memory of its own.
class Contest {
 public:
  Contest(const LayoutView& layout, const Case& one, const Options& options)
      : one_(one),
        push_(layout, one),
        optimizer_(RulesOf(one), VariantNamed(options.variant, server::kernels::Available(),
                                              server::kernels::Fastest())),
        store_(layout, 0, layout.block_count(), StoreShape::Of(optimizer_, one.density < 1)) {
    store_.Init(std::vector<float>(options.elements, 1.0f), optimizer_);
    if (records()) {
      bare_records_.assign(options.elements, BareRecord{1, 0, 0, 0});
      return;
    }
    bare_w_.assign(options.elements, 1.0f);
    if (optimizer_.slots_per_element() > 0) bare_m_.assign(options.elements, 0.0f);
    if (optimizer_.slots_per_element() > 1) bare_v_.assign(options.elements, 0.0f);
  }

  std::size_t updates() const { return push_.values.size(); }

  // The least that must pass between memory and processor for one push.
  double MinimalBytes() const {
    const double slots = optimizer_.slots_per_element();
    if (one_.density == 1) return static_cast<double>(updates()) * (8 * (1 + slots) + 4);
    const double lines =
        records() ? static_cast<double>(updates()) : static_cast<double>(push_.lines);
    return lines * 2 * 64 + static_cast<double>(push_.payload.size());
  }

  void Bare() {
    const bool dense = one_.density == 1;
    switch (one_.type) {
      case OptimizerType::kMomentum:
        BareMomentum(bare_w_, bare_m_, push_.values, kRate, 0.9f);
        break;
      case OptimizerType::kAdam:
        if (dense) {
          BareAdam(bare_w_, bare_m_, bare_v_, push_.values, kRate);
        } else {
          BareScatterAdam(bare_records_, push_.indices, push_.values, kRate);
        }
        break;
      default:
        if (dense) {
          BareSgd(bare_w_, push_.values, kRate);
        } else {
          BareScatterSgd(bare_w_, push_.indices, push_.values, kRate);
        }
    }
  }

  void Ours() {
    const server::kernels::DenormalsAreZero denormals_are_zero;
    const server::kernels::Step step = optimizer_.StepOf(kRate, 1);
    for (const codec::BlockView& block : push_.blocks) store_.Update(block, optimizer_, step);
  }

 private:
  static constexpr float kRate = 1e-4f;

  static OptimizerRules RulesOf(const Case& one) {
    OptimizerRules rules;
    rules.type = one.type;
    return rules;
  }
  bool records() const { return store_.shape().records; }

  const Case& one_;
  const Push push_;
  const Optimizer optimizer_;
  DenseStore store_;
  std::vector<float> bare_w_;
  std::vector<float> bare_m_;
  std::vector<float> bare_v_;
  std::vector<BareRecord> bare_records_;
};

// Takes the seconds of one iteration; prints nothing.
class SecondsReporter : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      seconds = run.real_accumulated_time / static_cast<double>(run.iterations);
    }
  }
  double seconds = 0;
};

double Measure(const std::string& name, const Options& options, const std::function<void()>& body) {
  auto* registered = benchmark::RegisterBenchmark(name.c_str(), [&body](benchmark::State& state) {
    for (auto _ : state) {
      body();
      benchmark::ClobberMemory();
    }
  });
  registered->MinTime(options.seconds)->UseRealTime();
  SecondsReporter reporter;
  benchmark::RunSpecifiedBenchmarks(&reporter);
  benchmark::ClearRegisteredBenchmarks();
  return reporter.seconds;
}

struct Figures {
  double floor = 0;  // millions of elements a second, as the others
  double bare = 0;
  double ours = 0;

  double ratio() const { return ours / bare; }
};

Figures Run(const LayoutView& layout, const Case& one, const Options& options) {
  Contest contest(layout, one, options);
  std::vector<float> stream(options.elements, 1.0f);
  std::vector<double> stream_rates;
  std::vector<double> bare;
  std::vector<double> ours;
  for (int round = 0; round < options.rounds; ++round) {
    stream_rates.push_back(static_cast<double>(options.elements) * 8 /
                           Measure("stream", options, [&] { BareTouch(stream, 1.0f); }));
    bare.push_back(Measure("bare", options, [&] { contest.Bare(); }));
    ours.push_back(Measure("ours", options, [&] { contest.Ours(); }));
  }
  const double millions = static_cast<double>(contest.updates()) / 1e6;
  Figures figures;
  figures.floor = millions * Median(stream_rates) / contest.MinimalBytes();
  figures.bare = millions / Median(bare);
  figures.ours = millions / Median(ours);
  return figures;
}

int Main(const Options& options) {
  const LayoutView layout = PlainLayout(options.elements, 1);
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  bool all_hold = true;
  if (!options.json) {
    std::printf("%-18s %9s %9s %9s   %s\n", "M elements/s", "floor", "bare", "ours", "ours / bare");
  }
  for (const Case& one : kCases) {
    if (std::string(one.name).find(options.only) == std::string::npos) continue;
    const Figures figures = Run(layout, one, options);
    const bool holds = figures.ratio() >= one.goal;
    all_hold = all_hold && holds;
    list.push_back({{"name", one.name},
                    {"value", figures.ours},
                    {"unit", "M elements/s"},
                    {"floor", figures.floor},
                    {"peer", figures.bare},
                    {"ratio", figures.ratio()},
                    {"goal", one.goal},
                    {"holds", holds}});
    if (!options.json) {
      std::printf("%-18s %9.0f %9.0f %9.0f   %.2f, goal %.2f: %s\n", one.name, figures.floor,
                  figures.bare, figures.ours, figures.ratio(), one.goal,
                  holds ? "holds" : "MISSED");
      std::fflush(stdout);
    }
  }
  if (options.json) std::printf("%s\n", list.dump(2).c_str());
  return all_hold ? 0 : 1;
}

}  // namespace
}  // namespace ps::bench

int main(int argc, char** argv) {
  ps::bench::Options options;
  CLI::App app("What a push does to a table, beside the bare loop that does the same.");
  app.add_option("--elements", options.elements, "parameters of the table")
      ->check(CLI::Range(std::uint64_t{65'536}, std::uint64_t{2'000'000'000}))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "the median of so many is shown")
      ->check(CLI::Range(1, 99))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "least time of one measurement")
      ->check(CLI::Range(0.001, 60.0))
      ->capture_default_str();
  app.add_option("--only", options.only, "cases whose name has this in it");
  app.add_option("--variant", options.variant, "of the kernels, instead of the fastest")
      ->check(CLI::IsMember({"plain", "avx2", "avx512"}));
  app.add_flag("--json", options.json, "a list of {name, value, unit, floor, peer, goal, holds}");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int status = app.exit(error);
    return status == 0 ? 0 : 2;
  }
  return ps::bench::Main(options);
}
