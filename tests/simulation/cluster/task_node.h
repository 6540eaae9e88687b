// A simulated worker task: session and trainer (ps-worker/task, ps-worker/engine/trainer.cc) as one
// machine that never blocks. Each step trains a batch of its lease and pushes, to every shard, what
// history.h says.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "ps-worker/core/lease_tracker.h"
#include "tests/simulation/cluster/data_client.h"
#include "tests/simulation/cluster/world.h"

namespace ps::simulation {

// Shared memory of a worker machine: by job, worker, incarnation.
using RingKey = std::tuple<JobId, WorkerId, Incarnation>;
using Rings = std::map<RingKey, std::shared_ptr<RingRegion>>;

class SimulatedTask {
 public:
  struct Callbacks {
    std::function<void(control::MessageT)> tell;
    std::function<void(int status)> exit;  // may destroy the task
  };

  SimulatedTask(World& world, MachineId machine, const control::StartTaskT& start, Rings& rings,
                Callbacks callbacks);

  void OnMessage(const control::MessageT& message);
  // For whoever asks what a run that does not end waits for.
  std::string Describe() const;

 private:
  enum class Doing {
    kLoading,
    kIdle,
    kFirstPull,
    kWaitPull,
    kCompute,
    kWaitRoom,
    kFlushVerdicts,
    kDrainPull,
    kDrainRoom,
    kDrainVerdicts,
    kEvaluatePull,
    kEnded,
  };

  template <typename BodyT>
  void Tell(BodyT body) {
    callbacks_.tell(control::Make(std::move(body)));
  }
  void Exit(int status);
  void Fatal(const std::string& why);
  void Begin(const control::TaskStartT& start);
  void Tick();
  void Advance();
  bool TakeWork();
  void BeginStep();
  bool PushStep(std::uint32_t samples, std::uint64_t begin, std::uint64_t end);
  void WantCheckpoint();
  void AskForLeases();
  void OnLeaseGrant(const control::LeaseGrantT& grant);
  void SendLeaseProgress();
  void SendProgress();
  void OnCut(std::uint64_t round, Clock clock);
  void OnCommitted(const control::RoundCommittedT& committed);
  void OnDrain();
  void Evaluate();
  void SetIdle(bool idle);
  void UpdateHold();
  Clock Needed(Clock clock) const;
  bool FlushDue() const { return bulk_ && no_more_ && leases_.empty() && !flushed_; }
  bool AnyResidual() const;

  World& world_;
  const MachineId machine_;
  const JobId job_;
  const WorkerId worker_;
  const Incarnation incarnation_;
  Rings& rings_;
  const Callbacks callbacks_;
  const bool bulk_;
  const std::int64_t pace_ms_;
  const std::uint32_t window_;
  Life life_ = std::make_shared<int>(0);

  Doing doing_ = Doing::kLoading;
  std::uint64_t leader_epoch_ = 0;
  std::shared_ptr<RingRegion> region_;
  std::optional<worker::RetentionRing> ring_;
  std::unique_ptr<SimulatedDataClient> client_;
  Clock clock_;
  std::vector<Units> residual_;
  bool returned_ = false;  // since the last flush
  std::optional<std::string> stop_;

  worker::LeaseTracker tracker_;
  std::deque<control::LeaseT> leases_;
  control::LeaseT lease_;  // at work
  std::uint64_t lease_done_ = 0;
  std::uint64_t last_lease_ = 0;
  std::uint64_t last_lease_done_ = 0;
  bool no_more_ = false;
  bool flushed_ = false;
  bool pull_pending_ = false;
  bool advancing_ = false;
  std::int64_t idle_since_ms_ = 0;

  bool drain_ = false;
  bool draining_ = false;
  std::optional<Clock> drained_at_;
  std::optional<control::EvaluateT> evaluate_;
  control::EvaluateT evaluation_;  // under way
  std::uint64_t evaluating_ = 0;

  bool hold_asked_ = false;
  bool idle_ = false;
  std::uint64_t samples_ = 0;
  std::uint64_t steps_ = 0;
  std::int64_t next_lease_request_ms_ = 0;
  std::int64_t next_lease_progress_ms_ = 0;
  std::int64_t next_progress_ms_ = 0;
  std::int64_t next_checkpoint_wish_ms_ = 0;
};

}  // namespace ps::simulation
