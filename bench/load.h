// Some workers at once, measured together.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench/load_worker.h"
#include "bench/options.h"
#include "bench/plan.h"
#include "bench/report.h"
#include "common/result.h"

namespace ps::bench {

using Say = std::function<void(const std::string&)>;

// Takes checkpoints of what is measured.
struct Checkpoints {
  std::function<void()> want;
  std::function<std::uint64_t()> committed;  // how many there are
  std::function<std::string()> trouble;      // why the last one came to nothing; empty: it did not
};

// Connects the workers, one after the other, calls `connected` (if there is one), lets them work at
// once, and stops them. `row` gets
// what was measured; with `checkpoints`, which may be null, every other window of
// options.checkpoint_seconds has one, and the others are what it is compared with. Of an overload,
// whose last worker pulls, only what that one did. Returns the pushes that were applied, of all
// workers. The errors are those of the workers.
Result<std::uint64_t> RunLoad(const std::vector<std::unique_ptr<LoadWorker>>& workers,
                              const Options& options, Operation operation, const Plan& plan,
                              const Say& say, const std::function<std::string()>& give_up,
                              const std::function<Status()>& connected,
                              const Checkpoints* checkpoints, Row& row);

// Exactly once: `applied` by all shards together is what the workers were told, for each shard.
// kInternal if not.
Status CheckPushes(std::uint64_t applied, std::uint64_t told, const Plan& plan);

}  // namespace ps::bench
