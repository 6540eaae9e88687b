// simulate --seeds N --first S: runs that many clusters; the last line is JSON, exit 1 on any
// violation. A failing seed says how to repeat it; a crash names its seed.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "tests/simulation/cluster/cluster_simulation.h"

namespace {

thread_local volatile std::sig_atomic_t running_seed = 0;  // read by the handler of a crash

void NameTheSeed(int) {
  std::fprintf(stderr, "crashed in seed %ld\n", static_cast<long>(running_seed));
  std::_Exit(1);
}

double ThreadCpuSeconds() {
  std::timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Schedules of a range of seeds on some threads; a schedule has one thread for itself.
class Campaign {
 public:
  Campaign(ps::simulation::ClusterOptions options, std::uint64_t first, std::uint64_t seeds)
      : options_(std::move(options)), first_(first), seeds_(seeds), next_(first) {}

  bool calm = false;
  bool trace = false;
  bool shrink = false;
  bool progress = false;

  void Run(unsigned jobs) {
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < jobs; ++i) threads.emplace_back([this] { RunSome(); });
    for (std::thread& thread : threads) thread.join();
    std::sort(failed_.begin(), failed_.end());
  }

  const ps::simulation::ClusterReport& sum() const { return sum_; }
  const std::vector<std::uint64_t>& failed() const { return failed_; }
  double cpu_seconds() const { return cpu_seconds_; }

 private:
  void RunSome() {
    using namespace ps::simulation;
    const auto log = [](const std::string& line) { std::cerr << "  " << line << "\n"; };
    ClusterOptions options = options_;
    while (true) {
      const std::uint64_t seed = next_.fetch_add(1);
      if (seed >= first_ + seeds_) break;
      running_seed = static_cast<std::sig_atomic_t>(seed);
      options.seed = seed;
      options.faults.assign(calm ? 100 : 0, false);
      options.suspicions = !calm;
      options.log = nullptr;
      if (trace) options.log = log;
      const ClusterReport report = RunCluster(options);
      const std::lock_guard lock(mutex_);
      sum_ += report;
      ++done_;
      if (!report.violation.empty()) {
        failed_.push_back(seed);
        Tell(options, report);
      }
      if (progress && done_ % 100 == 0) {
        std::cerr << done_ << " of " << seeds_ << " schedules, " << failed_.size() << " failed\n";
      }
    }
    const std::lock_guard lock(mutex_);
    cpu_seconds_ += ThreadCpuSeconds();
  }

  void Tell(ps::simulation::ClusterOptions options, const ps::simulation::ClusterReport& report) {
    using namespace ps::simulation;
    std::cerr << "seed " << options.seed << ": " << report.violation
              << "\n  repeat it: scripts/simulate --seeds 1 --first " << options.seed
              << (options.mutant == Mutant::kNone
                      ? std::string()
                      : " --without " + std::string(MutantName(options.mutant)))
              << " --shrink --trace\n";
    if (!shrink) return;
    const auto log = std::exchange(options.log, nullptr);
    options.faults = Shrink(options);
    std::cerr << "  it still fails with these faults alone:\n";
    for (std::size_t i = 0; i < options.faults.size(); ++i) {
      if (options.faults[i]) std::cerr << "    " << Describe(report.faults[i]) << "\n";
    }
    options.log = log;
    std::cerr << "  " << RunCluster(options).violation << "\n";
  }

  const ps::simulation::ClusterOptions options_;
  const std::uint64_t first_;
  const std::uint64_t seeds_;
  std::atomic<std::uint64_t> next_;
  std::mutex mutex_;  // of what follows, and of stderr
  ps::simulation::ClusterReport sum_;
  std::vector<std::uint64_t> failed_;
  std::uint64_t done_ = 0;
  double cpu_seconds_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  using namespace ps::simulation;
  std::uint64_t seeds = 200;
  std::uint64_t first = 1;
  bool json = false;
  bool trace = false;
  bool shrink = false;
  bool calm = false;
  unsigned jobs = std::max(1u, std::thread::hardware_concurrency());
  std::string mutant_name = "none";
  ClusterOptions options;
  CLI::App app("A whole cluster and its misfortunes in one thread, from seeds");
  app.add_option("--seeds", seeds, "how many schedules")->capture_default_str();
  app.add_option("--first", first, "the first seed")->capture_default_str();
  app.add_option("--jobs", jobs, "threads, each with schedules of its own; --trace: one")
      ->check(CLI::Range(1u, 1024u))
      ->capture_default_str();
  app.add_flag("--json", json,
               "only the JSON line; its events per second are by the CPU time of the threads");
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

  Campaign campaign(options, first, seeds);
  campaign.calm = calm;
  campaign.trace = trace;
  campaign.shrink = shrink;
  campaign.progress = !json;
  const auto begun = std::chrono::steady_clock::now();
  campaign.Run(trace ? 1 : jobs);
  const ClusterReport& sum = campaign.sum();
  const auto& failed = campaign.failed();
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
      {"trace_hash", sum.trace_hash},
      {"events", sum.events},
      {"events_per_cpu_second",
       static_cast<double>(sum.events) / std::max(campaign.cpu_seconds(), 1e-9)},
      {"schedules_per_second", static_cast<double>(seeds) / std::max(seconds, 1e-9)},
      {"simulated_seconds", sum.virtual_ms / 1000},
      {"messages", sum.messages},
      {"pushes", sum.pushes},
      {"checks", sum.checks},
      {"checkpoints", sum.checkpoints},
      {"increments", sum.increments},
      {"kept_checked", sum.kept_checked},
      {"copies_checked", sum.copies_checked},
      {"disks_lost", sum.disks_lost},
      {"leaders", sum.leaders},
      {"restores", sum.restores},
      {"promotions", sum.promotions},
      {"adoptions", sum.adoptions},
      {"copies_compared", sum.copies_compared},
      {"backups_lost", sum.backups_lost},
      {"suspicions", sum.suspicions},
      {"drains", sum.drains},
      {"suspensions", sum.suspensions},
      {"scalings", sum.scalings},
      {"moves", sum.moves},
      {"rewinds", sum.rewinds},
      {"incarnations", sum.incarnations},
      {"too_old", sum.too_old}};
  std::cout << result.dump() << "\n";
  return failed.empty() ? 0 : 1;
}
