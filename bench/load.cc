#include "bench/load.h"

#include <algorithm>
#include <fstream>
#include <thread>

#include "bench/clock.h"

namespace ps::bench {
namespace {

constexpr double kAskWhetherToGiveUp = 0.05;  // seconds

Status Sleep(double seconds, const std::function<std::string()>& give_up) {
  const std::uint64_t end = NowNs() + Nanoseconds(seconds);
  for (std::uint64_t now = NowNs(); now < end; now = NowNs()) {
    const double left = static_cast<double>(end - now) / 1e9;
    std::this_thread::sleep_for(
        std::chrono::duration<double>(give_up ? std::min(left, kAskWhetherToGiveUp) : left));
    if (!give_up) continue;
    if (const std::string why = give_up(); !why.empty()) return Error{ErrorCode::kClosed, why};
  }
  return Ok();
}

// Of this process; 0 where the system does not tell.
double ResidentMib() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    double kib = 0;
    if (word == "VmRSS:" && status >> kib) return kib / 1024;
  }
  return 0;
}

}  // namespace

Result<std::uint64_t> RunLoad(const std::vector<std::unique_ptr<LoadWorker>>& workers,
                              const Options& options, Operation operation, const Plan& plan,
                              const Say& say, const std::function<std::string()>& give_up,
                              const std::function<Status()>& connected, Row& row) {
  const bool overload = operation == Operation::kOverload;
  for (const auto& worker : workers) PS_TRY(worker->Connect());
  say(plan.row_width > 0 ? "connected, the table has its " + std::to_string(plan.keys) + " rows"
                         : "connected, every shard has its values");
  if (connected) PS_TRY(connected());
  const double memory_before = ResidentMib();
  for (const auto& worker : workers) worker->Start();
  PS_TRY(Sleep(options.warm_up_seconds, give_up));
  const std::uint64_t begin = NowNs();
  for (const auto& worker : workers) worker->Measure(true);
  PS_TRY(Sleep(options.seconds, give_up));
  for (const auto& worker : workers) worker->Measure(false);
  row.seconds = static_cast<double>(NowNs() - begin) / 1e9;
  row.memory_growth_mib = std::max(0.0, ResidentMib() - memory_before);
  std::uint64_t pushes = 0;
  for (std::size_t number = 0; number < workers.size(); ++number) {
    const LoadWorker::Measured measured = PS_TRY(workers[number]->Stop());
    pushes += measured.pushes;
    if (overload && number + 1 < workers.size()) {
      row.pushes += measured.operations;
      continue;
    }
    row.operations += measured.operations;
    row.latency.Add(measured.latency);
  }
  say("stopped; checking what was applied");

  row.operation = operation;
  row.carrier = Carrier::kDs;
  const bool moves_push = operation != Operation::kOverload && Pushes(operation);
  const std::uint64_t value_bytes = plan.values == wire::ValueCodec::Fp32 ? 4 : 2;
  row.bytes = moves_push || plan.row_width > 0 ? plan.value_bytes : plan.parameters * value_bytes;
  row.entries = moves_push ? plan.entries : 0;
  row.rows = plan.rows;
  row.row_width = plan.row_width;
  row.window = options.window;
  row.workers = options.workers;
  return pushes;
}

Status CheckPushes(std::uint64_t applied, std::uint64_t told, const Plan& plan) {
  const std::uint64_t expected = told * plan.layout.shard_count();
  if (applied == expected) return Ok();
  return Error{ErrorCode::kInternal, "the shards applied " + std::to_string(applied) +
                                         " pushes, the workers were told " +
                                         std::to_string(expected)};
}

}  // namespace ps::bench
