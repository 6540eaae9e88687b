// simulate --seeds N --first S: runs that many clusters; the last line is JSON, exit 1 on any
// violation. A failing seed says how to repeat it; a crash names its seed.
#include <CLI/CLI.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>

#include "tests/simulation/cluster/cluster_simulation.h"

namespace {

volatile std::sig_atomic_t running_seed = 0;  // read by the handler of a crash

void NameTheSeed(int) {
  std::fprintf(stderr, "crashed in seed %ld\n", static_cast<long>(running_seed));
  std::_Exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace ps::simulation;
  std::uint64_t seeds = 200;
  std::uint64_t first = 1;
  bool json = false;
  bool trace = false;
  bool shrink = false;
  bool calm = false;
  std::string mutant_name = "none";
  ClusterOptions options;
  CLI::App app("A whole cluster and its misfortunes in one thread, from seeds");
  app.add_option("--seeds", seeds, "how many schedules")->capture_default_str();
  app.add_option("--first", first, "the first seed")->capture_default_str();
  app.add_flag("--json", json, "only the JSON line");
  app.add_flag("--trace", trace, "say what happens");
  app.add_flag("--shrink", shrink, "leave out the faults that a failing seed can do without");
  app.add_option("--without", mutant_name, "switch a guard off, to see it missed")
      ->capture_default_str();
  app.add_flag("--calm", calm, "without the seeds' faults");
  app.add_option("--replicas", options.replicas, "backups of each shard, instead of the seed's");
  CLI11_PARSE(app, argc, argv);
  bool known = false;
  for (int i = 0; i < kMutants; ++i) {
    if (mutant_name != MutantName(static_cast<Mutant>(i))) continue;
    options.mutant = static_cast<Mutant>(i);
    known = true;
  }
  if (!known) {
    std::cerr << "no such guard: " << mutant_name << "\n";
    return 2;
  }
  for (const int signal : {SIGABRT, SIGSEGV}) std::signal(signal, NameTheSeed);

  const auto log = [](const std::string& line) { std::cerr << "  " << line << "\n"; };
  ClusterReport sum;
  nlohmann::json failed = nlohmann::json::array();
  const auto begun = std::chrono::steady_clock::now();
  for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
    running_seed = static_cast<std::sig_atomic_t>(seed);
    options.seed = seed;
    options.faults.assign(calm ? 100 : 0, false);
    options.suspicions = !calm;
    options.log = nullptr;
    if (trace) options.log = log;
    const ClusterReport report = RunCluster(options);
    sum += report;
    if (!report.violation.empty()) {
      failed.push_back(seed);
      std::cerr << "seed " << seed << ": " << report.violation << "\n  repeat it: scripts/simulate "
                << "--seeds 1 --first " << seed
                << (options.mutant == Mutant::kNone ? "" : " --without " + mutant_name)
                << " --shrink --trace\n";
      if (shrink) {
        options.faults = Shrink(options);
        std::cerr << "  it still fails with these faults alone:\n";
        options.log = nullptr;
        for (std::size_t i = 0; i < options.faults.size(); ++i) {
          if (options.faults[i]) std::cerr << "    " << Describe(report.faults[i]) << "\n";
        }
        if (trace) options.log = log;
        std::cerr << "  " << RunCluster(options).violation << "\n";
      }
    }
    if (!json && (seed - first + 1) % 100 == 0) {
      std::cerr << seed - first + 1 << " of " << seeds << " schedules, " << failed.size()
                << " failed\n";
    }
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  nlohmann::json strikes = nlohmann::json::object();
  for (int kind = 0; kind < kFaultKinds; ++kind) {
    strikes[FaultName(static_cast<FaultKind>(kind))] = sum.strikes[kind];
  }
  const nlohmann::json result = {
      {"schedules", seeds},
      {"first", first},
      {"violations", failed.size()},
      {"failed_seeds", failed},
      {"lost", sum.records_lost},
      {"doubled", sum.records_repeated},
      {"events", sum.events},
      {"events_per_second", sum.events / std::max(seconds, 1e-9)},
      {"schedules_per_second", static_cast<double>(seeds) / std::max(seconds, 1e-9)},
      {"simulated_seconds", sum.virtual_ms / 1000},
      {"messages", sum.messages},
      {"pushes", sum.pushes},
      {"checks", sum.checks},
      {"checkpoints", sum.checkpoints},
      {"leaders", sum.leaders},
      {"restores", sum.restores},
      {"promotions", sum.promotions},
      {"copies_compared", sum.copies_compared},
      {"backups_lost", sum.backups_lost},
      {"suspicions", sum.suspicions},
      {"rewinds", sum.rewinds},
      {"incarnations", sum.incarnations},
      {"too_old", sum.too_old}};
  std::cout << result.dump() << "\n";
  return failed.empty() ? 0 : 1;
}
