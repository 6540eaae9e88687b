// What a sparsifier costs beside the loop that only accumulates, and how near it comes to its
// ratio.
//
//   bench_sparsifier [--elements 67108864] [--ratio 0.01] [--rounds 9] [--variant plain] [--json]
//
// For each rule the bare loop over plain arrays (the peer: v += g, with momentum u = m u + g and
// v += m u + g) and ours take turns; a figure is the median of the rounds. "select" is
// Sparsifier::Step: threshold, check of the gradient, accumulation, packing of what is selected;
// "and encode" that and EncodeShard of all shards, into the bytes of a push. Both are counted by
// the bytes that the bare loop moves, so a ratio is one of times: those of the processor, of which
// other programs take none. Before it measures it makes steps until the residual is that of a job
// under way. Exit 1 if a goal is missed, 2 if the arguments are bad.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "bench/bench_support.h"
#include "bench/kernels_bare.h"
#include "common/check.h"
#include "common/layout/layout.h"
#include "common/messages/control.h"
#include "ps-worker/core/sparsifier.h"

namespace ps::bench {
namespace {

using worker::AccumulationRule;
using worker::Sparsifier;
using worker::SparsifierOptions;

struct Options {
  std::uint64_t elements = 64u << 20;
  double ratio = 0.01;
  int rounds = 9;
  int warmup = 0;  // steps; 0: until every entry was sent once, on average
  std::string value_codec = "2bit";
  std::string variant;
  bool json = false;
};

struct Case {
  const char* name;
  AccumulationRule rule;
  double clip_norm;
  double bytes;        // that the bare loop moves for each element
  double select_goal;  // of the bare loop's speed; 0: none
  double encode_goal;
};

constexpr Case kCases[] = {
    {"sgd", AccumulationRule::kPlain, 0, 12, 0.85, 0.75},
    {"nesterov", AccumulationRule::kNesterov, 0, 20, 0.85, 0.75},
    // The norm must be known before the first value is scaled: the gradient is read twice.
    {"sgd, clipped", AccumulationRule::kPlain, 1, 12, 0, 0},
    {"adam", AccumulationRule::kAdam, 0, 12, 0, 0},
};
constexpr double kKeptLeast = 0.8;
constexpr double kKeptMost = 1.3;

// A new gradient for each step: another piece of a longer row of normal numbers.
class Gradients {
 public:
  explicit Gradients(std::uint64_t elements) : elements_(elements), values_(elements + kShift) {
    // The sum of four bytes of a random word: near enough to normal, and fast.
    for (float& value : values_) {
      const std::uint64_t word = random_();
      int sum = 0;
      for (int byte = 0; byte < 8; ++byte) sum += static_cast<int>(word >> (8 * byte) & 255);
      value = (static_cast<float>(sum) - 1020.0f) / 209.0f;
    }
  }

  std::span<const float> Next() {
    const std::uint64_t shift = random_() % kShift & ~std::uint64_t{15};
    return std::span<const float>(values_).subspan(shift, elements_);
  }

 private:
  static constexpr std::uint64_t kShift = 1u << 20;
  const std::uint64_t elements_;
  std::mt19937_64 random_{7};
  std::vector<float> values_;
};

// Of the processor, for this thread.
double Now() {
  timespec now{};
  PS_CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

struct Figures {
  double bare = 0;  // seconds of a step
  double select = 0;
  double encode = 0;  // select and encode
  double kept_least = 1e9;
  double kept_most = 0;
  double bytes = 0;  // of the last push
};

class Contest {
 public:
  Contest(const LayoutView& layout, const Case& one, const Options& options)
      : layout_(layout),
        options_(options),
        nesterov_(one.rule == AccumulationRule::kNesterov),
        sparsifier_(layout, 0, options.elements, OptionsOf(one, options),
                    VariantNamed(options.variant, worker::kernels::Available(),
                                 worker::kernels::Fastest())),
        v_(options.elements),
        u_(nesterov_ ? options.elements : 0) {}

  Figures Run(Gradients& gradients) {
    Figures figures;
    const int warmup = options_.warmup > 0 ? options_.warmup : static_cast<int>(1 / options_.ratio);
    for (int step = 0; step < warmup; ++step) Step(gradients.Next(), figures);
    std::vector<double> bare;
    std::vector<double> select;
    std::vector<double> encode;
    for (int round = 0; round < options_.rounds; ++round) {
      const auto gradient = gradients.Next();
      const double begin = Now();
      if (nesterov_) {
        BareNesterov(v_, u_, gradient, 0.9f);
      } else {
        BareAccumulate(v_, gradient);
      }
      bare.push_back(Now() - begin);
      const auto times = Step(gradients.Next(), figures);
      select.push_back(times.first);
      encode.push_back(times.first + times.second);
    }
    figures.bare = Median(bare);
    figures.select = Median(select);
    figures.encode = Median(encode);
    return figures;
  }

 private:
  static SparsifierOptions OptionsOf(const Case& one, const Options& options) {
    SparsifierOptions result;
    result.rule = one.rule;
    result.clip_norm = one.clip_norm;
    result.value_codec = worker::ValueCodecNamed(options.value_codec);
    return result;
  }

  // Seconds to select, and to encode.
  std::pair<double, double> Step(std::span<const float> gradient, Figures& figures) {
    const double begin = Now();
    PS_CHECK(sparsifier_.Step(gradient, options_.ratio).ok());
    const double select = Now() - begin;
    // Room for the push is that of the retention ring, which is there.
    if (push_.size() < sparsifier_.MaxBytes()) push_.assign(sparsifier_.MaxBytes() * 2, {});
    const double kept = static_cast<double>(sparsifier_.entries()) /
                        (options_.ratio * static_cast<double>(options_.elements));
    figures.kept_least = std::min(figures.kept_least, kept);
    figures.kept_most = std::max(figures.kept_most, kept);
    const double encoding = Now();
    std::size_t used = 0;
    for (std::uint32_t shard = 0; shard < layout_.shard_count(); ++shard) {
      used += sparsifier_.EncodeShard(ShardId(shard), push_.data() + used, push_.size() - used);
    }
    figures.bytes = static_cast<double>(used);
    return {select, Now() - encoding};
  }

  const LayoutView& layout_;
  const Options& options_;
  const bool nesterov_;
  Sparsifier sparsifier_;
  std::vector<float> v_;
  std::vector<float> u_;
  std::vector<std::byte> push_;
};

int Main(const Options& options) {
  const LayoutView layout = PlainLayout(options.elements, 256);
  Gradients gradients(options.elements);
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  bool all_hold = true;
  const auto add = [&](const std::string& name, const char* unit, double value, double peer,
                       double goal) {
    const bool holds = value >= goal * peer;
    all_hold = all_hold && holds;
    list.push_back({{"name", name},
                    {"value", value},
                    {"unit", unit},
                    {"floor", nullptr},
                    {"peer", peer},
                    {"goal", goal}});
    if (goal == 0) list.back()["goal"] = "";
    list.back()["holds"] = holds;
  };
  if (!options.json) {
    std::printf("%-14s %9s %9s %6s %9s %6s  %-13s %s\n", "", "bare", "select", "", "+ encode", "",
                "kept", "B/param");
  }
  for (const Case& one : kCases) {
    const Figures figures = Contest(layout, one, options).Run(gradients);
    const auto elements = static_cast<double>(options.elements);
    const auto gb = [&](double seconds) { return elements * one.bytes / seconds * 1e-9; };
    const std::string name = one.name;
    const bool before = std::exchange(all_hold, true);
    add(name + ", select", "GB/s", gb(figures.select), gb(figures.bare), one.select_goal);
    add(name + ", select and encode", "GB/s", gb(figures.encode), gb(figures.bare),
        one.encode_goal);
    for (const auto& [what, kept] :
         {std::pair{"fewest", figures.kept_least}, std::pair{"most", figures.kept_most}}) {
      const bool within = kept >= kKeptLeast && kept <= kKeptMost;
      all_hold = all_hold && within;
      char goal[40];
      std::snprintf(goal, sizeof(goal), "%g to %g", kKeptLeast, kKeptMost);
      list.push_back({{"name", name + ", " + what + " entries of the ratio's"},
                      {"value", kept},
                      {"unit", ""},
                      {"floor", nullptr},
                      {"peer", nullptr},
                      {"goal", goal},
                      {"holds", within}});
    }
    if (!options.json) {
      std::printf("%-14s %6.2f ms %6.2f ms %6.2f %6.2f ms %6.2f  %.3f - %.3f %.5f  %s\n", one.name,
                  figures.bare * 1e3, figures.select * 1e3, figures.bare / figures.select,
                  figures.encode * 1e3, figures.bare / figures.encode, figures.kept_least,
                  figures.kept_most, figures.bytes / elements, all_hold ? "" : "MISSED");
      std::fflush(stdout);
    }
    all_hold = all_hold && before;
  }
  if (options.json) std::printf("%s\n", list.dump(2).c_str());
  return all_hold ? 0 : 1;
}

}  // namespace
}  // namespace ps::bench

int main(int argc, char** argv) {
  ps::bench::Options options;
  CLI::App app("What a sparsifier costs beside the loop that only accumulates.");
  app.add_option("--elements", options.elements, "of the gradient")
      ->check(CLI::Range(std::uint64_t{65536}, std::uint64_t{1} << 31))
      ->capture_default_str();
  app.add_option("--ratio", options.ratio, "part of them that is selected")
      ->check(CLI::Range(1e-4, 0.5))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "the median of so many is shown")
      ->check(CLI::Range(1, 999))
      ->capture_default_str();
  app.add_option("--warmup", options.warmup, "steps before; by default 1 / ratio")
      ->check(CLI::Range(1, 100'000));
  app.add_option("--value-codec", options.value_codec, "of the push")
      ->check(CLI::IsMember({"fp32", "bf16", "int8", "4bit", "2bit", "1bit"}))
      ->capture_default_str();
  app.add_option("--variant", options.variant, "of the loops, instead of the fastest")
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
