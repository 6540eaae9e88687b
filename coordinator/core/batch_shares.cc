#include "coordinator/core/batch_shares.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace ps::coordinator {

BatchShares::BatchShares(std::uint32_t usual, std::uint32_t unit, std::size_t workers)
    : usual_(usual), unit_(unit), workers_(workers) {
  PS_CHECK(unit > 0 && unit <= usual, unit, usual);
  for (Worker& worker : workers_) worker.share = usual_;
}

bool BatchShares::Observe(std::size_t slot, Incarnation task, std::uint64_t samples,
                          std::uint64_t compute_ms) {
  Worker& worker = workers_[slot];
  if (worker.task != task || samples < worker.samples || compute_ms < worker.compute_ms) {
    // Of another task, or sent before what is known already.
    if (worker.task == task) return false;
    worker = Worker{task, samples, compute_ms, 0, usual_};
    return false;
  }
  const std::uint64_t spent_ms = compute_ms - worker.compute_ms;
  if (spent_ms < kWindowMs || samples == worker.samples) return false;
  const double speed =
      static_cast<double>(samples - worker.samples) * 1000 / static_cast<double>(spent_ms);
  worker.speed = worker.speed == 0 ? speed : (worker.speed + speed) / 2;
  worker.samples = samples;
  worker.compute_ms = compute_ms;
  return Share();
}

void BatchShares::Forget(std::size_t slot) {
  workers_[slot] = Worker();
  workers_[slot].share = usual_;
}

bool BatchShares::Share() {
  double slowest = 0;
  double fastest = 0;
  double sum = 0;
  std::size_t known = 0;
  for (const Worker& worker : workers_) {
    if (worker.speed == 0) continue;
    slowest = known == 0 ? worker.speed : std::min(slowest, worker.speed);
    fastest = std::max(fastest, worker.speed);
    sum += worker.speed;
    ++known;
  }
  const bool was_unequal = unequal_;
  unequal_ = fastest >= slowest * (unequal_ ? kEqual : kUnequal);
  for (Worker& worker : workers_) {
    if (!unequal_ || worker.speed == 0) {
      worker.share = usual_;
      continue;
    }
    const double part =
        std::clamp(worker.speed * static_cast<double>(known) / sum, 1 / kMost, kMost);
    const double wanted = part * usual_;
    if (was_unequal && std::abs(wanted - worker.share) <= kStep * worker.share) continue;
    const auto units = static_cast<std::uint32_t>(std::lround(wanted / unit_));
    worker.share = std::max<std::uint32_t>(units, 1) * unit_;
  }
  return unequal_ != was_unequal;
}

}  // namespace ps::coordinator
