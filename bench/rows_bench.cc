// Embedding rows beside what they could be at best and what a plain hash map is.
//
// usage: bench_rows [--keys N] [--width W] [--json] [--pages huge|small] [--benchmark_...]
//
// In random batches of 4,096 keys, one thread:
//   gather   the row at a known number of one flat array: the floor
//   map      boost::unordered_flat_map from key to such a number, one key after the other, and a
//            std::vector of values, both with their default allocators: the peer
//   tuned    the same map and values in the memory that the table has (huge pages)
//   table    RowTable
// each read (all values summed up) and updated (SGD: w -= r g). Then a table of 1 M keys drawn from
// Zipf(0.99), as words and products are. Short runs, 31 of each, are interleaved at random, so that
// what disturbs one disturbs all; medians of processor time count. Exits with 1 if a goal is
// missed.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <boost/unordered/unordered_flat_map.hpp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <memory_resource>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "ps-server/core/rows/row_table.h"
#include "ps-server/shell/huge_page_memory.h"

namespace ps::server {
namespace {

constexpr std::size_t kBatch = 4096;
constexpr std::size_t kBatches = 256;  // drawn before, so that drawing is not measured
constexpr float kRate = 0.01F;

struct Options {
  std::uint64_t keys = 10'000'000;
  std::uint32_t width = 64;
  bool json = false;
  bool huge_pages = true;
};

std::uint64_t KeyOf(std::uint64_t number) { return number * 0x9e3779b97f4a7c15u + 1; }

float Sum(const float* values, std::size_t width) {
  float sum = 0;
  float parts[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= width; i += 8) {
    for (std::size_t lane = 0; lane < 8; ++lane) parts[lane] += values[i + lane];
  }
  for (; i < width; ++i) sum += values[i];
  for (const float part : parts) sum += part;
  return sum;
}

void Add(float* values, const float* gradient, std::size_t width) {
  for (std::size_t i = 0; i < width; ++i) values[i] -= kRate * gradient[i];
}

// Numbers of rows, in batches without repetition.
using Batches = std::vector<std::vector<std::uint32_t>>;

template <typename Draw>
Batches MakeBatches(Draw draw) {
  Batches batches(kBatches);
  for (std::vector<std::uint32_t>& batch : batches) {
    while (batch.size() < kBatch) {
      const std::size_t before = batch.size();
      while (batch.size() < kBatch) batch.push_back(draw());
      std::sort(batch.begin(), batch.end());
      batch.erase(std::unique(batch.begin(), batch.end()), batch.end());
      if (batch.size() == before) break;
    }
    // In the order of keys, which is what a push has, not of numbers.
    std::sort(batch.begin(), batch.end(),
              [](std::uint32_t left, std::uint32_t right) { return KeyOf(left) < KeyOf(right); });
  }
  return batches;
}

// Zipf by rejection-inversion is exact but long; the inverse of a table is exact and short.
Batches MakeZipfBatches(std::uint64_t keys, double exponent, std::mt19937_64& random) {
  std::vector<double> cumulative(keys);
  double sum = 0;
  for (std::uint64_t i = 0; i < keys; ++i) {
    sum += std::pow(static_cast<double>(i + 1), -exponent);
    cumulative[i] = sum;
  }
  Batches batches(kBatches);
  for (std::vector<std::uint32_t>& batch : batches) {
    for (std::size_t i = 0; i < kBatch; ++i) {
      const double at = std::uniform_real_distribution<double>(0, sum)(random);
      batch.push_back(static_cast<std::uint32_t>(
          std::lower_bound(cumulative.begin(), cumulative.end() - 1, at) - cumulative.begin()));
    }
  }
  return batches;
}

std::vector<std::vector<std::uint64_t>> KeysOf(const Batches& batches) {
  std::vector<std::vector<std::uint64_t>> keys(batches.size());
  for (std::size_t i = 0; i < batches.size(); ++i) {
    for (const std::uint32_t number : batches[i]) keys[i].push_back(KeyOf(number));
  }
  return keys;
}

using FlatMap = boost::unordered_flat_map<
    std::uint64_t, std::uint32_t, boost::hash<std::uint64_t>, std::equal_to<std::uint64_t>,
    std::pmr::polymorphic_allocator<std::pair<const std::uint64_t, std::uint32_t>>>;

struct Data {
  explicit Data(const Options& given)
      : options(given),
        memory(given.huge_pages
                   ? std::unique_ptr<std::pmr::memory_resource>(std::make_unique<HugePageMemory>())
                   : std::make_unique<std::pmr::monotonic_buffer_resource>()),
        flat(given.keys * given.width, memory.get()),
        tuned_map(memory.get()),
        plain_flat(given.keys * given.width),
        table(RulesOf(given), 1, memory.get()),
        zipf_table(RulesOf(given), 1, memory.get()),
        gradient(kBatch * given.width, 0.125F) {
    tuned_map.reserve(options.keys);
    plain_map.reserve(options.keys);
    for (std::uint64_t i = 0; i < options.keys; ++i) {
      tuned_map.emplace(KeyOf(i), static_cast<std::uint32_t>(i));
      plain_map.emplace(KeyOf(i), static_cast<std::uint32_t>(i));
    }
    Fill(table, options.keys);
    const std::uint64_t popular = std::min<std::uint64_t>(options.keys, 1'000'000);
    Fill(zipf_table, popular);
    std::mt19937_64 random(1);
    batches = MakeBatches([&] { return static_cast<std::uint32_t>(random() % options.keys); });
    keys = KeysOf(batches);
    zipf_keys = KeysOf(MakeZipfBatches(popular, 0.99, random));
  }

  static void Fill(RowTable& to, std::uint64_t count) {
    std::vector<std::uint64_t> part;
    for (std::uint64_t i = 0; i < count; i += part.size()) {
      part.resize(std::min<std::uint64_t>(100'000, count - i));
      for (std::uint64_t k = 0; k < part.size(); ++k) part[k] = KeyOf(i + k);
      to.Push(part, 1, [](std::size_t, std::uint32_t, float*, float*) {});
    }
  }

  static RowTableRules RulesOf(const Options& options) {
    RowTableRules rules;
    rules.width = options.width;
    rules.initializer = RowInitializer(RowInitializer::Kind::kUniform, -1, 1, 42, 0);
    return rules;
  }

  const Options options;
  std::unique_ptr<std::pmr::memory_resource> memory;
  std::pmr::vector<float> flat;
  FlatMap tuned_map;  // to the rows of `flat`
  std::vector<float> plain_flat;
  boost::unordered_flat_map<std::uint64_t, std::uint32_t> plain_map;  // to those of `plain_flat`
  RowTable table;
  RowTable zipf_table;
  std::vector<float> gradient;
  Batches batches;
  std::vector<std::vector<std::uint64_t>> keys;
  std::vector<std::vector<std::uint64_t>> zipf_keys;
};

// One batch after the other; rows a second.
template <typename Batch>
void Run(benchmark::State& state, Batch batch) {
  std::size_t at = 0;
  float sum = 0;
  for (auto step : state) {
    (void)step;
    sum += batch(at);
    at = (at + 1) % kBatches;
  }
  benchmark::DoNotOptimize(sum);
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(kBatch));
}

void RegisterAll(Data& data) {
  const std::size_t width = data.options.width;
  const auto add = [](const std::string& name, auto batch) {
    benchmark::RegisterBenchmark(name.c_str(),
                                 [batch](benchmark::State& state) { Run(state, batch); });
  };
  add("gather/read", [&data, width](std::size_t at) {
    float sum = 0;
    for (const std::uint32_t number : data.batches[at]) {
      sum += Sum(data.flat.data() + number * width, width);
    }
    return sum;
  });
  add("gather/update", [&data, width](std::size_t at) {
    const float* gradient = data.gradient.data();
    for (const std::uint32_t number : data.batches[at]) {
      Add(data.flat.data() + number * width, gradient, width);
      gradient += width;
    }
    return 0.0F;
  });
  const auto add_map = [&](const std::string& name, const auto& map, auto& values) {
    add(name + "/read", [&data, &map, &values, width](std::size_t at) {
      float sum = 0;
      for (const std::uint64_t key : data.keys[at]) {
        sum += Sum(values.data() + map.find(key)->second * width, width);
      }
      return sum;
    });
    add(name + "/update", [&data, &map, &values, width](std::size_t at) {
      const float* gradient = data.gradient.data();
      for (const std::uint64_t key : data.keys[at]) {
        Add(values.data() + map.find(key)->second * width, gradient, width);
        gradient += width;
      }
      return 0.0F;
    });
  };
  add_map("map", data.plain_map, data.plain_flat);
  add_map("tuned", data.tuned_map, data.flat);
  const auto read = [width](const RowTable& table, const std::vector<std::uint64_t>& keys) {
    float sum = 0;
    table.Read(keys, [&](std::size_t, const float* values) { sum += Sum(values, width); });
    return sum;
  };
  const auto update = [&data, width](RowTable& table, const std::vector<std::uint64_t>& keys) {
    table.Push(keys, 1, [&](std::size_t i, std::uint32_t, float* values, float*) {
      Add(values, data.gradient.data() + i * width, width);
    });
    return 0.0F;
  };
  add("table/read", [&data, read](std::size_t at) { return read(data.table, data.keys[at]); });
  add("table/update",
      [&data, update](std::size_t at) { return update(data.table, data.keys[at]); });
  add("zipf/read",
      [&data, read](std::size_t at) { return read(data.zipf_table, data.zipf_keys[at]); });
  add("zipf/update",
      [&data, update](std::size_t at) { return update(data.zipf_table, data.zipf_keys[at]); });
}

// Collects the medians, in rows a second.
class Collector : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.run_type != Run::RT_Aggregate || run.aggregate_name != "median") continue;
      const std::string name = run.run_name.function_name;
      medians_[name] = run.counters.at("items_per_second");
    }
  }
  double Median(const std::string& name) const {
    const auto found = medians_.find(name);
    return found == medians_.end() ? 0 : found->second;
  }

 private:
  std::map<std::string, double> medians_;
};

struct Goal {
  std::string name;
  double value = 0;
  double floor = 0;
  double peer = 0;
  std::string goal;
  bool holds = false;
};

std::vector<Goal> GoalsOf(const Collector& medians) {
  std::vector<Goal> goals;
  for (const char* const act : {"read", "update"}) {
    const auto median = [&](const char* what) {
      return medians.Median(std::string(what) + "/" + act);
    };
    const double table = median("table");
    const double gather = median("gather");
    const double map = median("map");
    const std::string name = std::string("rows, ") + act;
    goals.push_back({name, table, gather, map, ">= 0.5 floor and >= 1.5 peer",
                     table >= 0.5 * gather && table >= 1.5 * map});
    goals.push_back({name + " (peer: the map in huge pages)", table, 0, median("tuned"), "", true});
    goals.push_back({name + ", Zipf(0.99) of 1 M", median("zipf"), 0, table, ">= 2 peer",
                     median("zipf") >= 2 * table});
  }
  return goals;
}

int Report(const Data& data, const std::vector<Goal>& goals) {
  bool all_hold = true;
  nlohmann::json list = nlohmann::json::array();
  for (const Goal& goal : goals) {
    all_hold &= goal.holds;
    list.push_back({{"name", goal.name},
                    {"value", goal.value},
                    {"unit", "rows/s"},
                    {"floor", goal.floor > 0 ? nlohmann::json(goal.floor) : nlohmann::json()},
                    {"peer", goal.peer},
                    {"goal", goal.goal},
                    {"holds", goal.holds}});
  }
  if (data.options.json) {
    std::printf("%s\n", list.dump(2).c_str());
    return all_hold ? 0 : 1;
  }
  const double overhead =
      static_cast<double>(data.table.bytes()) / static_cast<double>(data.table.rows()) -
      data.options.width * sizeof(float);
  std::printf("%llu rows of %u floats, %.1f bytes a row beside them, %s pages\n",
              static_cast<unsigned long long>(data.table.rows()), data.options.width, overhead,
              data.options.huge_pages ? "huge" : "small");
  std::printf("%-44s %10s %10s %10s  %s\n", "M rows/s", "floor", "peer", "ours", "goal");
  for (const Goal& goal : goals) {
    std::printf("%-44s %10.2f %10.2f %10.2f  %s%s\n", goal.name.c_str(), goal.floor / 1e6,
                goal.peer / 1e6, goal.value / 1e6, goal.goal.c_str(),
                goal.goal.empty() ? ""
                : goal.holds      ? ": holds"
                                  : ": MISSED");
  }
  return all_hold ? 0 : 1;
}

int Main(int argc, char** argv) {
  std::vector<char*> arguments(argv, argv + argc);
  std::vector<std::string> defaults = {"--benchmark_repetitions=31",
                                       "--benchmark_enable_random_interleaving=true",
                                       "--benchmark_min_time=0.02"};
  for (std::string& flag : defaults) {
    arguments.insert(arguments.begin() + 1, flag.data());
  }
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string flag = arguments[static_cast<std::size_t>(i)];
    const auto value = [&] {
      return std::string(i + 1 < count ? arguments[static_cast<std::size_t>(++i)] : "");
    };
    if (flag == "--json") {
      options.json = true;
    } else if (flag == "--keys") {
      options.keys = std::max<std::uint64_t>(10'000, std::strtoull(value().c_str(), nullptr, 10));
    } else if (flag == "--width") {
      options.width = static_cast<std::uint32_t>(
          std::clamp<unsigned long long>(std::strtoull(value().c_str(), nullptr, 10), 1, 1024));
    } else if (flag == "--pages") {
      options.huge_pages = value() != "small";
    } else {
      std::fprintf(stderr, "bench_rows: unknown option %s\n", flag.c_str());
      return 2;
    }
  }
  std::fprintf(stderr, "making %llu rows\n", static_cast<unsigned long long>(options.keys));
  Data data(options);
  RegisterAll(data);
  Collector medians;
  benchmark::RunSpecifiedBenchmarks(&medians);
  return Report(data, GoalsOf(medians));
}

}  // namespace
}  // namespace ps::server

int main(int argc, char** argv) { return ps::server::Main(argc, argv); }
