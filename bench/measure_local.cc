#include <memory>
#include <string>
#include <vector>

#include "bench/load.h"
#include "bench/load_worker.h"
#include "bench/local_servers.h"
#include "bench/measure.h"
#include "bench/plan.h"
#include "common/net/zmq_socket.h"

namespace ps::bench {
namespace {

// Exactly once: what the lanes applied is what the workers were told, on every shard. And what was
// measured are rows that are there.
Status CheckApplied(const LocalServers& servers, const Plan& plan, std::uint64_t pushes,
                    double deadline_seconds) {
  const LocalServers::Content content = PS_TRY(servers.Count(deadline_seconds));
  if (content.rows != plan.keys) {
    return Error{ErrorCode::kInternal, "the shards have " + std::to_string(content.rows) +
                                           " rows, not " + std::to_string(plan.keys)};
  }
  return CheckPushes(content.pushes_applied, pushes, plan);
}

}  // namespace

Result<Row> MeasureLocal(const Options& options, Operation operation, std::uint64_t size,
                         const Say& say) {
  const Plan plan = PS_TRY(Plan::Make(options, operation, size));
  const bool overload = operation == Operation::kOverload;
  const std::uint32_t workers = options.workers + (overload ? 1 : 0);
  net::Context context;
  const auto servers = PS_TRY(LocalServers::Start(options, plan, workers));
  std::vector<std::unique_ptr<LoadWorker>> load;
  for (std::uint32_t number = 0; number < workers; ++number) {
    LoadWorker::Settings settings;
    settings.operation = !overload                   ? operation
                         : number == options.workers ? Operation::kPull
                                                     : Operation::kPush;
    settings.job = kLocalJob;
    settings.number = number;
    settings.incarnation = LocalServers::IncarnationOf(number);
    settings.fills = plan.row_width > 0 && number == 0;
    settings.window = options.window;
    settings.deadline_seconds = options.deadline_seconds;
    load.push_back(std::make_unique<LoadWorker>(context, plan, servers->map(), settings));
  }
  Row row;
  const std::uint64_t pushes =
      PS_TRY(RunLoad(load, options, operation, plan, say, nullptr, nullptr, nullptr, row));
  PS_TRY(CheckApplied(*servers, plan, pushes, options.deadline_seconds));
  row.lanes = options.servers * options.lanes;
  row.servers = options.servers;
  return row;
}

}  // namespace ps::bench
