// hostile_network --seeds N --first S: runs that many schedules; the last line is JSON, exit 1 on
// any violation. A crash names its seed.
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>

#include "tests/simulation/hostile_network.h"

namespace {

volatile std::sig_atomic_t running_seed = 0;  // read by the handler of a crash

void NameTheSeed(int) {
  std::fprintf(stderr, "crashed in seed %ld\n", static_cast<long>(running_seed));
  std::_Exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  std::uint64_t seeds = 1000;
  std::uint64_t first = 1;
  bool json = false;
  CLI::App app("Exactly-once under a hostile network, from seeds");
  app.add_option("--seeds", seeds, "how many schedules")->capture_default_str();
  app.add_option("--first", first, "the first seed")->capture_default_str();
  app.add_flag("--json", json, "only the JSON line");
  CLI11_PARSE(app, argc, argv);
  std::signal(SIGABRT, NameTheSeed);

  ps::simulation::HostileReport sum;
  nlohmann::json failed = nlohmann::json::array();
  for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
    running_seed = static_cast<std::sig_atomic_t>(seed);
    const auto report = ps::simulation::RunHostileNetwork(seed);
    if (!report.violation.empty()) {
      failed.push_back(seed);
      std::cerr << report.violation << "\n";
    }
    sum += report;
    if (!json && (seed - first + 1) % 1000 == 0) {
      std::cerr << seed - first + 1 << " of " << seeds << " schedules, " << failed.size()
                << " failed\n";
    }
  }
  const nlohmann::json result = {{"seeds", seeds},
                                 {"first", first},
                                 {"failed", failed.size()},
                                 {"failed_seeds", failed},
                                 {"steps", sum.steps},
                                 {"messages", sum.messages},
                                 {"lost", sum.lost},
                                 {"repeated", sum.repeated},
                                 {"cuts", sum.cuts},
                                 {"garbled", sum.garbled},
                                 {"replays", sum.replays},
                                 {"too_old", sum.too_old},
                                 {"non_finite", sum.non_finite},
                                 {"rows", sum.rows},
                                 {"measured", sum.measured},
                                 {"task_deaths", sum.task_deaths},
                                 {"server_deaths", sum.server_deaths},
                                 {"checkpoints", sum.checkpoints},
                                 {"unheard_too_old", sum.unheard_too_old}};
  std::cout << result.dump() << "\n";
  return failed.empty() ? 0 : 1;
}
