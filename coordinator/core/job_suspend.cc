// Operators take a job off the cluster, and bring it back.
#include "common/error_id.h"
#include "coordinator/core/job.h"

namespace ps::coordinator {

Status Job::Suspend() {
  if (state_.phase == Phase::kSuspended || state_.suspending) return Ok();
  if (over() || state_.phase == Phase::kImporting) {
    return Error{
        over() ? ErrorId::kJobOver : ErrorId::kJobImporting,
        "job " + state_.name + " is not trained any more: it is " + PhaseName(state_.phase)};
  }
  if (state_.phase == Phase::kDraining || state_.phase == Phase::kEvaluating) {
    return Error{ErrorId::kJobEnding, "job " + state_.name +
                                          " has trained all its records and ends soon: it is " +
                                          PhaseName(state_.phase)};
  }
  if (state_.phase == Phase::kQueued) {
    SetPhase(Phase::kSuspended, "by an operator, before it was placed");
    return Ok();
  }
  state_.suspending = true;
  dirty_.state = true;
  Event("suspend", "an operator suspends the job, with a checkpoint that is taken now");
  return Ok();
}

Status Job::Resume() {
  if (state_.suspending) {
    state_.suspending = false;
    dirty_.state = true;
    Event("suspend", "an operator lets the job go on before it was suspended");
    return Ok();
  }
  if (state_.phase != Phase::kSuspended) {
    if (!over()) return Ok();
    return Error{ErrorId::kJobOver,
                 "job " + state_.name + " is over: it has " + PhaseName(state_.phase)};
  }
  SetPhase(Phase::kQueued, "an operator resumes it: waits to be placed");
  return Ok();
}

void Job::TakeOff() {
  state_.suspending = false;
  for (const DeadWorker& dead : state_.dead) {
    if (!dead.agent.empty()) continue;
    Event("lost", "what worker " + std::to_string(dead.worker.value()) + " (incarnation " +
                      std::to_string(dead.incarnation.value()) +
                      ") had pushed and its agent, which is gone, may have alone is given up with "
                      "the suspension");
  }
  for (const std::string& server : JobServers()) SendJobDrop(server);
  ForgetSinceCheckpoint("the job is suspended");
  ForgetPlaces();
  shard_states_.clear();
  restore_retries_.clear();
  chains_ = {};
  SetPhase(Phase::kSuspended, "by an operator, at checkpoint " +
                                  std::to_string(state_.NewestCheckpoint()->round.value()));
}

}  // namespace ps::coordinator
