// What operators do with a job's checkpoints: pin, prune, roll back.
#include <algorithm>

#include "common/error_id.h"
#include "coordinator/core/job.h"
#include "coordinator/core/job_round.h"
#include "coordinator/core/retention.h"

namespace ps::coordinator {
namespace {

std::string ListText(const std::vector<Round>& rounds) {
  std::string text;
  for (const Round round : rounds) {
    text += (text.empty() ? "" : ", ") + std::to_string(round.value());
  }
  return text;
}

std::string CheckpointsText(const std::vector<Round>& rounds) {
  return (rounds.size() == 1 ? "checkpoint " : "checkpoints ") + ListText(rounds);
}

nlohmann::json ToJson(const std::vector<Round>& rounds) {
  nlohmann::json json = nlohmann::json::array();
  for (const Round round : rounds) json.push_back(round.value());
  return json;
}

}  // namespace

CommittedCheckpoint* Job::FindCheckpoint(Round round) {
  const auto found = std::find_if(state_.checkpoints.begin(), state_.checkpoints.end(),
                                  [round](const auto& one) { return one.round == round; });
  return found == state_.checkpoints.end() ? nullptr : &*found;
}

Error Job::NoSuchCheckpoint(Round round) const {
  return Error{ErrorId::kCheckpointUnknown,
               "job " + state_.name + " has no checkpoint " + std::to_string(round.value())};
}

RetentionRule Job::Retention() const {
  const CheckpointSpec& spec = definition_.spec.checkpoint;
  return {static_cast<std::size_t>(std::max<std::int64_t>(spec.keep, 1)),
          static_cast<std::uint64_t>(std::max<std::int64_t>(spec.keep_every, 0))};
}

void Job::RemoveCheckpoints(const std::vector<Round>& rounds) {
  std::erase_if(state_.checkpoints, [&](const CommittedCheckpoint& one) {
    return std::find(rounds.begin(), rounds.end(), one.round) != rounds.end();
  });
  dirty_.state = true;
}

control::RoundCommittedT Job::KeptRounds(Round below) const {
  control::RoundCommittedT message;
  message.job = state_.id.value();
  message.round = below.value();
  for (const Round kept : RoundsOnDisk(state_.checkpoints)) {
    message.keep.push_back(std::make_unique<control::KeptRoundT>());
    message.keep.back()->round = kept.value();
  }
  return message;
}

Result<nlohmann::json> Job::PinCheckpoint(Round round, bool pinned) {
  CommittedCheckpoint* const checkpoint = FindCheckpoint(round);
  if (checkpoint == nullptr) return NoSuchCheckpoint(round);
  const auto pins = std::count_if(state_.checkpoints.begin(), state_.checkpoints.end(),
                                  [](const auto& one) { return one.pinned; });
  if (pinned && !checkpoint->pinned && static_cast<std::size_t>(pins) >= kPinsMax) {
    return Error{ErrorId::kPinsMost, "job " + state_.name + " has " + std::to_string(kPinsMax) +
                                         " pinned checkpoints, which is the most; unpin one"};
  }
  if (checkpoint->pinned != pinned) {
    checkpoint->pinned = pinned;
    Event(pinned ? "checkpoint pinned" : "checkpoint unpinned",
          "checkpoint " + std::to_string(round.value()) +
              (pinned ? " is kept until it is unpinned" : " is kept no longer than others"));
  }
  return nlohmann::json{{"checkpoint", DescribeCheckpoint(*checkpoint)}};
}

Result<nlohmann::json> Job::PruneCheckpoints(std::optional<std::size_t> keep, bool all,
                                             bool dry_run) {
  if (state_.phase == Phase::kImporting) {
    return Error{ErrorId::kJobImporting,
                 "job " + state_.name + " is being imported; `ds-cli job cancel` ends that"};
  }
  if (all && !over()) {
    return Error{ErrorId::kCheckpointNeeded, "job " + state_.name + " is not over: it is " +
                                                 PhaseName(state_.phase) +
                                                 ", and its newest checkpoint is needed"};
  }
  RetentionRule rule = Retention();
  if (keep) rule.keep = *keep;
  const std::set<Round> held = cluster_.RoundsHeldOf(state_.id);
  std::vector<Round> expired;
  if (all) {
    for (const CommittedCheckpoint& one : state_.checkpoints) {
      if (!one.pinned && !held.contains(one.round)) expired.push_back(one.round);
    }
  } else {
    expired = ExpiredCheckpoints(state_.checkpoints, rule, held);
  }
  std::vector<CommittedCheckpoint> kept = state_.checkpoints;
  std::erase_if(kept, [&](const CommittedCheckpoint& one) {
    return std::find(expired.begin(), expired.end(), one.round) != expired.end();
  });
  const std::set<Round> on_disk = RoundsOnDisk(kept);
  std::vector<Round> needed;
  std::uint64_t bytes = 0;
  for (const CommittedCheckpoint& one : state_.checkpoints) {
    if (std::find(expired.begin(), expired.end(), one.round) == expired.end()) continue;
    if (on_disk.contains(one.round)) {
      needed.push_back(one.round);
    } else {
      bytes += one.bytes;
    }
  }
  nlohmann::json list = nlohmann::json::array();
  for (const CommittedCheckpoint& one : kept) list.push_back(one.round.value());
  nlohmann::json json = {{"removed", ToJson(expired)},
                         {"needed", ToJson(needed)},
                         {"kept", std::move(list)},
                         {"bytes", bytes},
                         {"dry_run", dry_run}};
  if (dry_run) return json;
  if (!expired.empty()) {
    RemoveCheckpoints(expired);
    Event("checkpoints pruned", CheckpointsText(expired) + " removed by the operator");
  }
  // Also if nothing went: what an earlier deletion or a rollback left on a disk goes now. An open
  // round is none of that.
  const Round below(round_ ? round_->number.value() - 1 : state_.next_round);
  for (const auto& [procid, server] : cluster_.servers()) {
    if (server.alive()) cluster_.Send(procid, control::Make(KeptRounds(below)));
  }
  return json;
}

Result<nlohmann::json> Job::RollBack(Round round, bool confirmed) {
  if (over()) {
    return Error{ErrorId::kJobOver, "job " + state_.name + " is over: it has " +
                                        PhaseName(state_.phase) +
                                        "; start another with checkpoint.from"};
  }
  if (state_.phase == Phase::kEvaluating) {
    return Error{ErrorId::kJobEnding, "job " + state_.name + " evaluates its final checkpoint"};
  }
  const CommittedCheckpoint* const checkpoint = FindCheckpoint(round);
  if (checkpoint == nullptr) return NoSuchCheckpoint(round);
  if (checkpoint->damaged) {
    return Error{ErrorId::kCheckpointNotUsable,
                 "checkpoint " + std::to_string(round.value()) + " is damaged"};
  }
  const bool served = std::any_of(cluster_.servers().begin(), cluster_.servers().end(),
                                  [](const auto& entry) { return entry.second.alive(); });
  if (!served) {
    return Error{ErrorId::kNoServer,
                 "no ps-server is registered that could restore a checkpoint; ask again"};
  }
  const std::set<Round> held = cluster_.RoundsHeldOf(state_.id);
  std::vector<Round> later;
  std::vector<Round> kept;
  for (const CommittedCheckpoint& one : state_.checkpoints) {
    if (one.round <= round) continue;
    later.push_back(one.round);
    if (one.pinned || held.contains(one.round)) kept.push_back(one.round);
  }
  if (!kept.empty()) {
    return Error{ErrorId::kCheckpointPinned,
                 CheckpointsText(kept) + " would be discarded, and " +
                     (kept.size() == 1 ? "is" : "are") +
                     " pinned, or another job starts there; unpin first"};
  }
  const std::string lost = later.empty() ? ""
                                         : ", and " + CheckpointsText(later) +
                                               (later.size() == 1 ? " is" : " are") + " discarded";
  if (!confirmed) {
    return Error{ErrorId::kRollbackUnconfirmed,
                 "job " + state_.name + " goes back from step " +
                     std::to_string(OffCluster() ? state_.NewestCheckpoint()->step : MinClock()) +
                     " to step " + std::to_string(checkpoint->step) +
                     ": what came after is trained again" + lost + "; confirm it"};
  }
  const std::uint64_t step = checkpoint->step;
  Event("rollback", "the operator takes the job back to checkpoint " +
                        std::to_string(round.value()) + " at step " + std::to_string(step) + lost);
  RemoveCheckpoints(later);
  round_wanted_ = false;
  GoBack("rolled back by the operator");
  return nlohmann::json{
      {"round", round.value()}, {"step", step}, {"discarded", ToJson(later)}, {"job", Describe()}};
}

}  // namespace ps::coordinator
