// What encoding and decoding a sparsified block costs, beside copying its bytes and a bare scatter;
// and the keys of rows.
//
//   bench_codecs [--density 0.01 --density 0.05] [--rounds 5] [--variant plain] [--json]
//
// A line is one pair of codecs at one density: nanoseconds of each entry to write, to validate, to
// decode, and to apply to a table (plain SGD through a DenseStore). The floor of decoding is a
// memcpy of as many bytes as positions and values have then; the peer of applying is a scatter of
// entries that lie decoded in arrays. Figures are medians of the rounds. Goals are bounds of
// decoding, in nanoseconds of an entry. Keys are in batches of 4,096, dense ids of 10 M or hashes;
// the floor of decoding them is a memcpy of the decoded ones. Exit 1 if one is missed, 2 if the
// arguments are bad.
#include <benchmark/benchmark.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
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
#include "common/codec/key_codec.h"
#include "common/layout/layout.h"
#include "common/messages/control.h"
#include "ps-server/core/dense_store.h"

namespace ps::bench {
namespace {

using wire::IndexCodec;
using wire::ValueCodec;

struct Options {
  std::uint32_t blocks = 160;  // 10 M elements
  std::vector<double> densities = {0.01, 0.05};
  int rounds = 5;
  double seconds = 0.1;  // of one measurement, at least
  std::string only;
  std::string variant;
  bool json = false;
};

struct Case {
  const char* name;
  IndexCodec index;
  ValueCodec value;
  double decode_goal;  // ns of an entry, at most; 0: none
};

constexpr Case kCases[] = {
    {"raw16 + fp32", IndexCodec::Raw16, ValueCodec::Fp32, 0},
    {"raw16 + bf16", IndexCodec::Raw16, ValueCodec::Bf16, 0},
    {"gap8 + bf16", IndexCodec::Gap8, ValueCodec::Bf16, 0},
    {"bitmap + bf16", IndexCodec::Bitmap, ValueCodec::Bf16, 0},
    {"rice + bf16", IndexCodec::Rice, ValueCodec::Bf16, 2.5},
    {"rice + int8", IndexCodec::Rice, ValueCodec::Int8, 2.5},
    {"rice + 4bit", IndexCodec::Rice, ValueCodec::Bits4, 2.5},
    {"rice + 2bit", IndexCodec::Rice, ValueCodec::Bits2, 2.5},
    {"rice + 1bit", IndexCodec::Rice, ValueCodec::Bits1, 2.5},
};

constexpr std::uint32_t kSize = wire::kBlockElements;

// One push of random entries, as error feedback selects them: just above a threshold.
struct Entries {
  struct Block {
    std::vector<std::uint16_t> indices;
    std::vector<float> values;
  };
  std::vector<Block> blocks;
  std::vector<std::uint32_t> flat_indices;  // in the table
  std::vector<float> flat_values;

  Entries(std::uint32_t block_count, double density) {
    std::mt19937_64 random(7);
    std::geometric_distribution<std::uint32_t> gap(density);
    std::exponential_distribution<float> above(4);
    blocks.resize(block_count);
    for (std::uint32_t block = 0; block < block_count; ++block) {
      for (std::uint32_t at = gap(random); at < kSize; at += 1 + gap(random)) {
        const float value = (1 + above(random)) * (random() % 2 == 0 ? 1.0f : -1.0f);
        blocks[block].indices.push_back(static_cast<std::uint16_t>(at));
        blocks[block].values.push_back(value);
        flat_indices.push_back(block * kSize + at);
        flat_values.push_back(value);
      }
    }
  }

  double count() const { return static_cast<double>(flat_values.size()); }
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

double Measure(const Options& options, const std::function<void()>& body) {
  auto* registered = benchmark::RegisterBenchmark("one", [&body](benchmark::State& state) {
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

// Nanoseconds of an entry.
struct Figures {
  double bytes_per_entry = 0;
  double bytes_per_parameter = 0;
  double encode = 0;
  double validate = 0;
  double decode = 0;
  double copy = 0;  // the floor of decode
  double apply = 0;
  double scatter = 0;  // the peer of apply
};

Figures Run(const LayoutView& layout, const Entries& entries, const Case& one,
            const Options& options) {
  const auto elements_of = [](std::uint32_t) { return kSize; };
  std::size_t bound = 0;
  for (const Entries::Block& block : entries.blocks) {
    bound += codec::MaxEncodedBytes(kSize, static_cast<std::uint32_t>(block.indices.size()),
                                    one.index, one.value);
  }
  std::vector<std::byte> payload(bound);
  std::vector<float> sent(kSize);
  const auto encode = [&] {
    std::size_t at = 0;
    for (std::uint32_t number = 0; number < entries.blocks.size(); ++number) {
      const Entries::Block& block = entries.blocks[number];
      at += codec::EncodeBlock(number, kSize, block.indices, block.values, one.index, one.value,
                               payload.data() + at, std::span(sent).first(block.values.size()));
    }
    return at;
  };
  payload.resize(encode());
  std::vector<codec::BlockView> blocks;
  PS_CHECK(codec::ParseSegment(payload, elements_of, blocks).ok());
  const codec::kernels::Table& kernels =
      VariantNamed(options.variant, codec::kernels::Available(), codec::kernels::Fastest());

  std::vector<std::uint16_t> positions(codec::EntryReader::kRoom);
  std::vector<float> values(codec::EntryReader::kPiece);
  const auto decode = [&] {
    for (const codec::BlockView& block : blocks) {
      codec::EntryReader reader(block, kernels);
      while (reader.Next(positions.data(), values.data()) > 0) benchmark::ClobberMemory();
    }
  };
  std::vector<std::byte> decoded(codec::EntryReader::kPiece * 6);
  const std::vector<std::byte> source(entries.flat_values.size() * 6);
  const auto copy = [&] {
    for (std::size_t at = 0; at < source.size(); at += decoded.size()) {
      std::memcpy(decoded.data(), source.data() + at, std::min(decoded.size(), source.size() - at));
      benchmark::ClobberMemory();
    }
  };
  const server::Optimizer optimizer;
  server::DenseStore store(layout, 0, layout.block_count(),
                           server::StoreShape::Of(optimizer, true));
  store.Init(std::vector<float>(std::size_t{layout.block_count()} * kSize, 1.0f), optimizer);
  const server::kernels::Step step = optimizer.StepOf(1e-4, 1);
  const auto apply = [&] {
    for (const codec::BlockView& block : blocks) store.Update(block, optimizer, step);
  };
  std::vector<float> bare(std::size_t{layout.block_count()} * kSize, 1.0f);

  std::vector<std::vector<double>> seconds(6);
  for (int round = 0; round < options.rounds; ++round) {
    seconds[0].push_back(Measure(options, [&] { encode(); }));
    seconds[1].push_back(
        Measure(options, [&] { (void)codec::ParseSegment(payload, elements_of, blocks); }));
    seconds[2].push_back(Measure(options, decode));
    seconds[3].push_back(Measure(options, copy));
    seconds[4].push_back(Measure(options, apply));
    seconds[5].push_back(Measure(
        options, [&] { BareScatterSgd(bare, entries.flat_indices, entries.flat_values, 1e-4f); }));
  }
  const auto of = [&](std::size_t what) { return Median(seconds[what]) * 1e9 / entries.count(); };
  const auto bytes = static_cast<double>(payload.size());
  return {bytes / entries.count(),
          bytes / (static_cast<double>(entries.blocks.size()) * kSize),
          of(0),
          of(1),
          of(2),
          of(3),
          of(4),
          of(5)};
}

constexpr std::size_t kKeyBatch = 4096;
constexpr std::size_t kKeyBatches = 64;
constexpr std::uint64_t kDenseIds = 10'000'000;

struct KeyCase {
  const char* name;
  std::uint64_t (*key)(std::uint64_t random);
};

constexpr KeyCase kKeyCases[] = {
    {"dense ids", [](std::uint64_t random) { return random % kDenseIds; }},
    {"hashed ids", [](std::uint64_t random) { return random; }},
};

struct KeyFigures {
  double bytes = 0;  // of a key
  double encode = 0;
  double validate = 0;
  double decode = 0;
  double copy = 0;  // the floor of decode
};

KeyFigures RunKeys(const KeyCase& one, const Options& options) {
  std::mt19937_64 random(11);
  std::vector<std::vector<std::uint64_t>> batches(kKeyBatches);
  std::vector<std::vector<std::byte>> streams;
  std::vector<std::byte> out(codec::MaxKeyBytes(kKeyBatch));
  double keys = 0;
  double bytes = 0;
  for (auto& batch : batches) {
    for (std::size_t i = 0; i < kKeyBatch; ++i) batch.push_back(one.key(random()));
    std::sort(batch.begin(), batch.end());
    batch.erase(std::unique(batch.begin(), batch.end()), batch.end());
    const std::size_t size = codec::EncodeKeys(batch, out.data());
    streams.emplace_back(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(size));
    keys += static_cast<double>(batch.size());
    bytes += static_cast<double>(size);
  }
  std::vector<std::uint64_t> decoded(kKeyBatch);
  const auto encode = [&] {
    for (const auto& batch : batches) {
      codec::EncodeKeys(batch, out.data());
      benchmark::ClobberMemory();
    }
  };
  const auto validate = [&] {
    for (std::size_t i = 0; i < kKeyBatches; ++i) {
      benchmark::DoNotOptimize(codec::KeysFit(batches[i].size(), streams[i]));
    }
  };
  const auto decode = [&] {
    for (std::size_t i = 0; i < kKeyBatches; ++i) {
      codec::KeyReader reader(batches[i].size(), streams[i]);
      for (std::uint64_t* at = decoded.data(); const std::size_t read = reader.Next(at);)
        at += read;
      benchmark::ClobberMemory();
    }
  };
  const auto copy = [&] {
    for (const auto& batch : batches) {
      std::memcpy(decoded.data(), batch.data(), batch.size() * sizeof(batch[0]));
      benchmark::ClobberMemory();
    }
  };
  std::vector<std::vector<double>> seconds(4);
  for (int round = 0; round < options.rounds; ++round) {
    seconds[0].push_back(Measure(options, encode));
    seconds[1].push_back(Measure(options, validate));
    seconds[2].push_back(Measure(options, decode));
    seconds[3].push_back(Measure(options, copy));
  }
  const auto of = [&](std::size_t what) { return Median(seconds[what]) * 1e9 / keys; };
  return {bytes / keys, of(0), of(1), of(2), of(3)};
}

int Main(const Options& options) {
  const LayoutView layout = PlainLayout(std::uint64_t{options.blocks} * kSize, 1);
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  bool all_hold = true;
  for (const double density : options.densities) {
    const Entries entries(options.blocks, density);
    if (!options.json) {
      std::printf("%5.2f %%         %8s %9s  %7s %8s %7s %7s  %7s %7s   ns an entry\n",
                  100 * density, "B/entry", "B/param", "encode", "validate", "decode", "(copy)",
                  "apply", "(bare)");
    }
    for (const Case& one : kCases) {
      if (std::string(one.name).find(options.only) == std::string::npos) continue;
      const Figures figures = Run(layout, entries, one, options);
      const bool holds = one.decode_goal == 0 || figures.decode <= one.decode_goal;
      all_hold = all_hold && holds;
      const std::string name =
          std::string(one.name) + ", " + std::to_string(std::lround(100 * density)) + " %";
      char goal[40] = "";
      if (one.decode_goal > 0) std::snprintf(goal, sizeof(goal), "at most %g ns", one.decode_goal);
      list.push_back({{"name", "decode " + name},
                      {"value", figures.decode},
                      {"unit", "ns/entry"},
                      {"floor", figures.copy},
                      {"peer", nullptr},
                      {"goal", goal},
                      {"holds", holds},
                      {"bytes_per_entry", figures.bytes_per_entry},
                      {"bytes_per_parameter", figures.bytes_per_parameter},
                      {"encode", figures.encode},
                      {"validate", figures.validate}});
      list.push_back({{"name", "apply " + name},
                      {"value", figures.apply},
                      {"unit", "ns/entry"},
                      {"floor", nullptr},
                      {"peer", figures.scatter},
                      {"goal", ""},
                      {"holds", true}});
      if (options.json) continue;
      std::printf("%-15s %8.3f %9.5f  %7.2f %8.2f %7.2f %7.2f  %7.2f %7.2f   %s\n", one.name,
                  figures.bytes_per_entry, figures.bytes_per_parameter, figures.encode,
                  figures.validate, figures.decode, figures.copy, figures.apply, figures.scatter,
                  holds ? "" : "MISSED");
      std::fflush(stdout);
    }
  }
  if (!options.json) {
    std::printf("keys             %8s %9s  %7s %8s %7s %7s   ns a key\n", "B/key", "", "encode",
                "validate", "decode", "(copy)");
  }
  for (const KeyCase& one : kKeyCases) {
    if (std::string(one.name).find(options.only) == std::string::npos) continue;
    const KeyFigures figures = RunKeys(one, options);
    list.push_back({{"name", "decode keys, " + std::string(one.name)},
                    {"value", figures.decode},
                    {"unit", "ns/key"},
                    {"floor", figures.copy},
                    {"peer", nullptr},
                    {"goal", ""},
                    {"holds", true},
                    {"bytes_per_key", figures.bytes},
                    {"encode", figures.encode},
                    {"validate", figures.validate}});
    if (options.json) continue;
    std::printf("%-15s %9.3f %9s  %7.2f %8.2f %7.2f %7.2f\n", one.name, figures.bytes, "",
                figures.encode, figures.validate, figures.decode, figures.copy);
    std::fflush(stdout);
  }
  if (options.json) std::printf("%s\n", list.dump(2).c_str());
  return all_hold ? 0 : 1;
}

}  // namespace
}  // namespace ps::bench

int main(int argc, char** argv) {
  ps::bench::Options options;
  CLI::App app("What encoding and decoding a sparsified block costs.");
  app.add_option("--blocks", options.blocks, "of 65,536 elements")
      ->check(CLI::Range(1u, 10'000u))
      ->capture_default_str();
  app.add_option("--density", options.densities, "part of the elements that has an entry")
      ->check(CLI::Range(1e-4, 0.9));
  app.add_option("--rounds", options.rounds, "the median of so many is shown")
      ->check(CLI::Range(1, 99))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "least time of one measurement")
      ->check(CLI::Range(0.001, 60.0))
      ->capture_default_str();
  app.add_option("--only", options.only, "codecs whose names have this in them");
  app.add_option("--variant", options.variant, "of the decoders, instead of the fastest")
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
