// Operators change how many workers a job has.
#include <algorithm>

#include "common/error_id.h"
#include "coordinator/core/job.h"

namespace ps::coordinator {

void Job::BeginShares() {
  const TrainingSpec& training = definition_.spec.training;
  shares_.reset();
  if (!training.batch_by_speed) return;
  // With local steps the number of batches follows, else the batch, in sixteenths.
  const auto step = training.step_records();
  const auto unit = training.local_steps > 1 ? step : std::max<std::int64_t>(step / 16, 1);
  shares_.emplace(static_cast<std::uint32_t>(definition_.PushRecords()),
                  static_cast<std::uint32_t>(unit), state_.leases.workers());
}

Result<nlohmann::json> Job::Scale(std::uint64_t workers, bool dry_run) {
  const TrainingSpec& training = definition_.spec.training;
  if (workers < 1 || workers > static_cast<std::uint64_t>(kWorkersMax)) {
    return Error{ErrorId::kOptionValue,
                 "a job has 1 to " + std::to_string(kWorkersMax) + " workers"};
  }
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
  if (training.staleness == 0) {
    return Error{ErrorId::kBulkSynchronous,
                 "job " + state_.name +
                     " is bulk-synchronous: what each of its workers trains is settled by their "
                     "number. `ds-cli job cancel` it, and `ds-cli job restart " +
                     state_.name + " --set training.workers=" + std::to_string(workers) +
                     "` goes on from its newest checkpoint"};
  }
  const std::uint64_t before = state_.leases.workers();
  std::uint64_t free = 0;
  for (const auto& [procid, agent] : cluster_.agents()) {
    free += RoomOn(agent);
  }
  nlohmann::json done = {{"before", before}, {"workers", workers}, {"free_slots", free}};
  if (dry_run || workers == before) return done;
  state_.leases.SetWorkers(workers);
  if (workers > state_.workers.size()) {
    state_.workers.resize(workers);
    state_.first_clocks.resize(workers, 0);
    slots_.resize(workers);
  }
  BeginShares();
  dirty_.state = true;
  Event("scaled", "an operator wants " + std::to_string(workers) + " workers in the place of " +
                      std::to_string(before));
  return done;
}

}  // namespace ps::coordinator
