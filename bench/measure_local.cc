#include <algorithm>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench/clock.h"
#include "bench/load_worker.h"
#include "bench/local_servers.h"
#include "bench/measure.h"
#include "bench/plan.h"
#include "common/net/zmq_socket.h"

namespace ps::bench {
namespace {

void Sleep(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

// Of this process; 0 where the system does not tell.
double ResidentMib() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    double kib = 0;
    if (word == "VmRSS:" && status >> kib) return kib / 1024;
  }
  return 0;
}

// Exactly once: what the lanes applied is what the workers were told, on every shard.
Status CheckApplied(const LocalServers& servers, const Plan& plan, std::uint64_t pushes,
                    double deadline_seconds) {
  const server::LaneCounters counters = PS_TRY(servers.Counters(deadline_seconds));
  const std::uint64_t expected = pushes * plan.layout.shard_count();
  if (counters.pushes_applied == expected) return Ok();
  return Error{ErrorCode::kInternal,
               "the shards applied " + std::to_string(counters.pushes_applied) +
                   " pushes, the workers were told " + std::to_string(expected)};
}

}  // namespace

Result<Row> MeasureLocal(const Options& options, Operation operation, std::uint64_t size,
                         const Say& say) {
  const Plan plan = PS_TRY(Plan::Make(options, size));
  const bool overload = operation == Operation::kOverload;
  const std::uint32_t workers = options.workers + (overload ? 1 : 0);
  zmq::context_t context = net::MakeContext();
  const auto servers = PS_TRY(LocalServers::Start(options, plan, workers));
  std::vector<std::unique_ptr<LoadWorker>> load;
  for (std::uint32_t number = 0; number < workers; ++number) {
    LoadWorker::Settings settings;
    settings.operation = !overload                   ? operation
                         : number == options.workers ? Operation::kPull
                                                     : Operation::kPush;
    settings.number = number;
    settings.window = options.window;
    settings.deadline_seconds = options.deadline_seconds;
    load.push_back(std::make_unique<LoadWorker>(context, plan, servers->map(), settings));
    PS_TRY(load.back()->Connect());
  }
  say("connected, every shard has its values");
  const double memory_before = ResidentMib();
  for (const auto& worker : load) worker->Start();
  Sleep(options.warm_up_seconds);
  const std::uint64_t begin = NowNs();
  for (const auto& worker : load) worker->Measure(true);
  Sleep(options.seconds);
  for (const auto& worker : load) worker->Measure(false);
  Row row;
  row.seconds = static_cast<double>(NowNs() - begin) / 1e9;
  row.memory_growth_mib = std::max(0.0, ResidentMib() - memory_before);
  std::uint64_t pushes = 0;
  for (std::uint32_t number = 0; number < workers; ++number) {
    const LoadWorker::Measured measured = PS_TRY(load[number]->Stop());
    pushes += measured.pushes;
    if (overload && number < options.workers) {
      row.pushes += measured.operations;
      continue;
    }
    row.operations += measured.operations;
    row.latency.Add(measured.latency);
  }
  say("stopped; checking what was applied");
  PS_TRY(CheckApplied(*servers, plan, pushes, options.deadline_seconds));
  row.operation = operation;
  row.carrier = Carrier::kDs;
  const std::uint64_t value_bytes = plan.values == wire::ValueCodec::Fp32 ? 4 : 2;
  row.bytes = operation == Operation::kPush || operation == Operation::kPushPull
                  ? plan.value_bytes
                  : plan.parameters * value_bytes;
  row.entries =
      operation == Operation::kPush || operation == Operation::kPushPull ? plan.entries : 0;
  row.window = options.window;
  row.workers = options.workers;
  row.lanes = options.servers * options.lanes;
  return row;
}

}  // namespace ps::bench
