// A whole job in one process: the servers' real shards without sockets, and a
// TaskSession for each worker that speaks to them through a lock.
//
// Leases are handed out in order; when all is trained every worker drains, the
// first one evaluates against the digests of the shards, and all stop. Pulls see
// the values as of the moment when their clock is reached, so staleness is as in
// a cluster. Waits end in an error after `deadline`.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/job/job_spec.h"
#include "common/layout/layout.h"
#include "common/messages/control.h"
#include "ps-server/core/segment_content.h"
#include "ps-server/core/shard.h"
#include "ps-worker/task/task_session.h"

namespace ps::test {

struct LocalClusterOptions {
  std::uint32_t shards = 0;  // 0: as the job asks
  std::uint64_t lease_records = 4096;
  std::vector<std::uint32_t> push_records;  // of a lease, in turn; none: as the job says
  std::chrono::seconds deadline{60};
  // Pushes of these clocks are answered as too old by every shard, for every worker.
  std::set<std::uint64_t> too_old_clocks;
  bool damage_digests = false;               // what the evaluation is compared with
  std::uint32_t pushes_without_verdict = 0;  // what tasks are told
  bool damage_hash = false;                  // the first one that comes with increments
  Clock first_clock;
  worker::LossScale loss_scale{0, 0};  // that tasks start with; 0: none
  // A checkpoint after so many pushes of all workers; then, after so many more, all shards are
  // lost, restored from it, and get the pushes since again. 0: never.
  std::uint64_t checkpoint_after_pushes = 0;
  std::uint64_t lose_shards_after_pushes = 0;
  std::uint64_t cut_after_pushes = 0;  // then each worker flushes its residual once; 0: it does not
  std::uint64_t leave_after_pushes = 0;  // then each worker is to leave; 0: it is not
  std::uint64_t stop_after_pushes = 0;   // then the job ends every task; 0: it does not
};

class LocalCluster {
 public:
  // What happened, for assertions; read it when the workers have ended.
  struct Outcome {
    std::vector<double> losses;                             // of all steps
    std::vector<std::pair<std::uint64_t, double>> metrics;  // live evaluations: samples, metric
    std::optional<control::EvaluatedT> evaluated;
    std::vector<std::string> failures;
    std::uint64_t pushes = 0;
    std::uint64_t empty_pushes = 0;
    std::map<std::uint32_t, std::uint64_t> pushes_of;  // by their samples; of steps with a lease
    std::uint64_t skipped = 0;
    std::uint64_t overflows = 0;
    std::uint64_t redone = 0;  // implausible steps, by what became of them
    std::uint64_t dropped = 0;
    std::vector<std::string> anomalies;                      // what reports say of them
    std::map<std::uint32_t, worker::LossScale> loss_scales;  // by worker, of its last push
    std::uint64_t returned = 0;
    std::uint64_t entries = 0;
    std::uint64_t pulls = 0;
    std::uint64_t push_bytes = 0;
    // Of pulls that did not begin with nothing, but for live evaluations and the end.
    std::uint64_t update_pulls = 0;
    std::uint64_t update_bytes = 0;  // of blocks and rows
    std::uint64_t increments = 0;    // answers of shards
    std::uint64_t hashes = 0;        // of them, with a hash
    std::uint64_t snapshot_pulls = 0;
    std::uint64_t replayed = 0;         // pushes, after all shards were lost
    std::uint64_t update_versions = 0;  // pushes that they brought, over all shards
    std::uint64_t drained = 0;
    std::vector<std::vector<float>> cuts;  // table 0 where a worker had flushed its residual
    std::uint64_t samples = 0;             // of steps with a lease
    std::vector<std::uint64_t> staleness;  // of applied pushes at shard 0
  };

  LocalCluster(const JobSpec& spec, const control::LayoutT& layout, std::uint64_t records,
               const LocalClusterOptions& options);
  ~LocalCluster();

  // One for each worker slot 0 .. workers - 1; the cluster outlives it.
  std::unique_ptr<worker::TaskSession> Connect(std::uint32_t worker);

  const Outcome& outcome() const { return outcome_; }
  // The values of one table, from all shards.
  std::vector<float> Table(std::uint32_t index) const;
  // The rows of a table, from all shards: their values by key.
  std::map<std::uint64_t, std::vector<float>> Rows(std::uint32_t table) const;
  std::uint32_t shards() const { return view_.shard_count(); }
  const LayoutView& view() const { return view_; }

 private:
  friend class LocalSession;

  struct WorkerState {
    bool waiting = false;     // for work
    bool flush_told = false;  // bulk-synchronous: no lease is left for it
    bool drain_told = false;
    bool drained = false;
    bool lease_open = false;
    bool cut = false;  // it has flushed its residual
  };

  server::Member& MemberOf(std::uint32_t worker) { return members_[worker]; }
  bool AllTrained() const;
  void MembersChanged();
  void ApplyHeld();
  // What a retention ring has of a push: void where it came back as too old.
  struct RetainedPush {
    std::uint32_t worker = 0;
    Clock clock;
    std::uint32_t samples = 0;
    std::vector<std::vector<std::byte>> segments;  // by shard
  };
  void Retain(RetainedPush push);
  void LoseShards();
  void Fail(const std::string& message);

  const JobSpec spec_;
  const LocalClusterOptions options_;
  const LayoutView view_;
  const std::uint64_t records_;
  const std::uint64_t total_;
  const server::JobRules rules_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<server::Shard>> shards_;
  std::vector<server::Member> members_;
  server::MergeScratch merge_scratch_;
  std::vector<WorkerState> workers_;
  std::uint64_t next_position_ = 0;
  std::uint64_t next_lease_ = 1;
  bool evaluation_told_ = false;
  bool stopped_ = false;
  bool cancelled_ = false;  // in the middle of the training
  bool hash_damaged_ = false;
  std::vector<checkpoint::ShardImage> images_;  // of the checkpoint, by shard
  std::vector<RetainedPush> retained_;          // since then
  Outcome outcome_;
};

}  // namespace ps::test
