// Measurements of a running cluster: its servers, its network, with exactly-once on.
//
// ds-bench becomes a worker node for its own jobs (bench_agent.h) and submits one job for each
// measurement: the job's shards lie on all servers of the cluster, as those of any job, and its
// workers are threads here. So no slot of the cluster is used; the lanes are shared with whatever
// runs. At the end the job is cancelled, also when the user interrupts or something fails; the
// servers then drop its shards. If this process is killed, the coordinator finds it gone when its
// ZooKeeper session ends, and the job has failed, with the same effect. One thread; every wait has
// a deadline and says what it waited for.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bench/bench_agent.h"
#include "bench/load.h"
#include "bench/options.h"
#include "bench/report.h"
#include "cli/api.h"
#include "cli/environment.h"
#include "common/result.h"

namespace ps::bench {

class ClusterBench {
 public:
  // Joins the cluster of these coordinators, found as ds-cli finds them if none is given, with
  // room for options.workers tasks. `zookeeper` empty: the coordinator says it. kUnreachable if no
  // coordinator answers or no server is registered, kTimeout if the cluster does not take us.
  static Result<std::unique_ptr<ClusterBench>> Join(cli::Environment& environment,
                                                    const std::vector<std::string>& coordinators,
                                                    const std::string& zookeeper,
                                                    const Options& options, const Say& say);

  // A push, a pull or both. kClosed if the user interrupted, or the cluster ended it; kInternal if
  // the shards have not applied exactly what the workers were told.
  Result<Row> Measure(const Options& options, Operation operation, std::uint64_t size,
                      const Say& say);

 private:
  ClusterBench(cli::Environment& environment, cli::Context context);

  Status AwaitRegistered(double deadline_seconds);
  Result<Row> MeasureJob(const Options& options, Operation operation, const Plan& plan,
                         const Say& say);
  Result<BenchAgent::Started> AwaitStarted(const Options& options);
  // Until every shard has its backups.
  Status AwaitReplicated(const Options& options, const Plan& plan);
  // Cancels our newest job, if it is not over.
  Status EndJob(const std::string& reason);
  // Why a measurement has to end now; empty: it goes on. Asks the coordinator once a second.
  std::string GiveUp();
  Result<cli::Json> JobNow();

  cli::Environment& environment_;
  cli::Environment uninterrupted_;  // for what must be done after an interruption
  cli::Api api_;
  cli::Api end_api_;
  std::unique_ptr<BenchAgent> agent_;
  std::int64_t next_look_ms_ = 0;
  std::uint32_t replicas_ = 0;  // of the job that is measured
};

}  // namespace ps::bench
