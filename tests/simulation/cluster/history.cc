#include "tests/simulation/cluster/history.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "checkpoint/manifest.h"

namespace ps::simulation {
namespace {

std::string Text(Incarnation incarnation, Clock clock) {
  return "incarnation " + std::to_string(incarnation.value()) + ", clock " +
         std::to_string(clock.value());
}

}  // namespace

void History::Fail(const std::string& what) {
  if (!violation_.empty()) return;
  violation_ = "at " + std::to_string(schedule_.now_ms()) + " ms: " + what;
  Log("VIOLATION " + violation_);
}

void History::Began(Incarnation incarnation, Clock first_clock) {
  Run& run = runs_[incarnation];
  run.first_clock = run.last_clock = first_clock;
}

void History::Pushed(Incarnation incarnation, Clock clock, Push push) {
  Run& run = runs_[incarnation];
  std::vector<Push>& pushes = pushes_[incarnation];
  if (clock.value() != run.first_clock.value() + pushes.size() + 1) {
    return Fail(Text(incarnation, clock) + " is not the next one of its worker");
  }
  pushes.push_back(std::move(push));
  ++push_count_;
  run.last_clock = clock;
}

template <typename Act>
void History::ForPushes(Incarnation incarnation, Clock until, Act act) const {
  const auto pushes = pushes_.find(incarnation);
  if (pushes == pushes_.end()) return;
  std::uint64_t clock = runs_.at(incarnation).first_clock.value();
  for (const Push& push : pushes->second) {
    if (++clock > until.value()) return;
    act(Clock(clock), push);
  }
}

Units History::TakenBack(Incarnation incarnation, Clock clock, ShardId shard) {
  const std::uint64_t before = runs_[incarnation].first_clock.value();
  std::vector<Push>& pushes = pushes_[incarnation];
  if (clock.value() <= before || clock.value() > before + pushes.size()) return {};
  return std::exchange(pushes[clock.value() - before - 1].shards[shard.value()], Units());
}

void History::TooOld(ShardId shard, std::uint32_t lineage, Incarnation incarnation, Clock clock) {
  if (too_old_[{shard, lineage}].emplace(incarnation, clock).second) ++too_old_count_;
}

void History::Restored(ShardId shard, std::uint32_t lineage, const checkpoint::ShardImage& image) {
  ++restores_;
  // The shard has the verdicts of the image again, and none that was given after it.
  std::set<std::pair<Incarnation, Clock>> kept;
  for (const auto& [incarnation, clock] : too_old_[{shard, image.lineage}]) {
    if (clock <= WatermarkOf(image, incarnation, Clock(0))) kept.emplace(incarnation, clock);
  }
  too_old_[{shard, lineage}] = std::move(kept);
}

void History::Acknowledged(ShardId shard, std::uint32_t lineage, Epoch epoch,
                           Incarnation incarnation, Clock clock) {
  const auto first = firsts_.find({shard, lineage});
  if (first != firsts_.end() && first->second.epoch > epoch) {
    const auto had = first->second.watermarks.find(incarnation);
    if (had == first->second.watermarks.end() || had->second < clock) {
      return Fail("shard " + std::to_string(shard.value()) + " acknowledges " +
                  Text(incarnation, clock) + " in epoch " + std::to_string(epoch.value()) +
                  ", and its copy that goes on since epoch " +
                  std::to_string(first->second.epoch.value()) + " does not have it");
    }
  }
  Clock& most = acknowledged_[{shard, lineage}][incarnation];
  most = std::max(most, clock);
}

Clock History::WatermarkOf(const checkpoint::ShardImage& image, Incarnation incarnation,
                           Clock otherwise) {
  for (const checkpoint::WorkerMark& mark : image.marks) {
    if (mark.incarnation == incarnation) return mark.watermark;
  }
  return otherwise;
}

// ---- checks

void History::CheckImage(const checkpoint::ShardImage& image, const std::string& where) {
  ++checks_;
  const std::size_t shard = image.shard.value();
  std::vector<double> sum(image.values.size(), kInitialValue);
  std::set<std::pair<Incarnation, Clock>> waiting;
  for (const checkpoint::HeldPush& push : image.held) waiting.emplace(push.incarnation, push.clock);
  const auto& told = too_old_[{image.shard, image.lineage}];
  for (const auto& [incarnation, run] : runs_) {
    const auto mark =
        std::find_if(image.marks.begin(), image.marks.end(),
                     [id = incarnation](const auto& one) { return one.incarnation == id; });
    const Clock until = mark != image.marks.end() ? mark->watermark : run.first_clock;
    if (until > run.last_clock) {
      return Fail(where + " has a verdict on " + Text(incarnation, until) + ", only " +
                  std::to_string(run.last_clock.value()) + " were pushed");
    }
    const std::uint32_t cell = incarnation.value() % kCells;
    ForPushes(incarnation, until, [&, id = incarnation](Clock clock, const Push& push) {
      const Units& units = push.shards[shard];
      // Of its last verdicts the shard knows itself; the others were told to the worker long ago.
      const std::uint64_t age = until.value() - clock.value();
      const std::size_t known = mark != image.marks.end() ? mark->verdicts.size() : 0;
      bool refused = told.contains({id, clock});
      if (age < known) {
        const auto verdict = static_cast<wire::Code>(mark->verdicts[known - 1 - age]);
        if (refused && verdict == wire::Code::Applied && !units.empty()) {
          Fail(where + " has another verdict on " + Text(id, clock) + " than the worker was told");
        }
        refused = verdict != wire::Code::Applied;
      }
      if (units.empty() || refused || waiting.contains({id, clock})) return;
      sum[cell] += units.count;
      sum[kCells + cell] += units.clocks;
    });
  }
  for (std::uint32_t i = 0; i < sum.size(); ++i) {
    if (std::abs(image.values[i] - sum[i]) < 0.01) continue;
    std::ostringstream text;
    text << where << ": of the incarnations " << i % kCells << " + n * " << kCells << " the "
         << (i < kCells ? "count of steps" : "sum of clocks") << " is " << image.values[i]
         << ", not " << sum[i];
    return Fail(text.str());
  }
}

void History::CheckShard(const server::Shard& shard, bool first) {
  if (!shard.ready()) return;
  const checkpoint::ShardImage image = shard.Freeze(JobId(), Round()).ToImage();
  CheckImage(image, std::string(first ? "" : "the copy of ") + "shard " +
                        std::to_string(shard.id().value()) + ", epoch " +
                        std::to_string(shard.epoch().value()));
  const Life life(shard.id(), shard.lineage());
  if (first && firsts_[life].epoch == shard.epoch()) {
    for (const auto& [incarnation, clock] : acknowledged_[life]) {
      if (WatermarkOf(image, incarnation, Clock(0)) >= clock) continue;
      Fail("shard " + std::to_string(shard.id().value()) + " lacks " + Text(incarnation, clock) +
           ", which was acknowledged");
    }
  }
  const auto [known, fresh] = digests_.try_emplace(
      {shard.id(), shard.lineage(), shard.epoch(), shard.changes()}, checkpoint::Digest(image));
  if (!fresh) ++copies_compared_;
  if (!fresh && known->second != checkpoint::Digest(image)) {
    Fail("two copies of shard " + std::to_string(shard.id().value()) + " differ after the same " +
         std::to_string(shard.changes()) + " changes");
  }
}

void History::CheckFirst(const server::Shard& shard) {
  if (!shard.ready()) return;
  const Life life(shard.id(), shard.lineage());
  First& first = firsts_[life];
  if (shard.epoch() <= first.epoch) return;
  if (first.epoch != Epoch()) ++promotions_;
  first.epoch = shard.epoch();
  first.watermarks.clear();
  for (const auto& mark : shard.Freeze(JobId(), Round()).ToImage().marks) {
    first.watermarks[mark.incarnation] = mark.watermark;
  }
  for (const auto& [incarnation, clock] : acknowledged_[life]) {
    if (first.watermarks[incarnation] >= clock) continue;
    Fail("shard " + std::to_string(shard.id().value()) + " goes on in epoch " +
         std::to_string(shard.epoch().value()) + " without " + Text(incarnation, clock) +
         ", which was acknowledged");
  }
}

std::vector<std::string> History::StoresOf(
    const coordinator::CommittedCheckpoint& checkpoint) const {
  if (stores_.shared()) return {"shared"};
  std::vector<std::string> stores;
  for (const auto& store : checkpoint.places.stores) {
    if (!stores_.IsLost(store.id)) stores.push_back(store.id);
  }
  return stores;
}

bool History::Load(const coordinator::CommittedCheckpoint& checkpoint, bool of_new,
                   Loaded& loaded) {
  const std::string& directory = checkpoint.directory;
  const std::vector<std::string> stores = StoresOf(checkpoint);
  const std::string* text = nullptr;
  for (const std::string& store : stores) {
    const std::string round = store + "/" + directory;
    for (const std::string& part : disk_.List(round)) {
      const auto copy = disk_.ReadDurable(round + "/" + part + "/" + checkpoint::kManifestFile);
      if (!copy.ok() || checkpoint::Hash((*copy)->text) != checkpoint.manifest_hash) continue;
      text = &(*copy)->text;
    }
  }
  if (text == nullptr) {
    Fail(directory + " is committed and no durable copy has the manifest of that hash");
    return false;
  }
  const auto [known, fresh] = manifests_.try_emplace(checkpoint.manifest_hash);
  if (fresh) {
    auto manifest = checkpoint::FromJson(*text);
    if (!manifest.ok()) {
      Fail(directory + ": " + manifest.error().message);
      return false;
    }
    known->second = std::move(manifest).value();
  }
  loaded.manifest = &known->second;
  loaded.images.assign(loaded.manifest->shards.size(), nullptr);
  for (const checkpoint::ManifestShard& entry : loaded.manifest->shards) {
    // Each folder that is said to have the shard has it.
    std::vector<std::string> holders = stores;
    if (!stores_.shared()) {
      const coordinator::PartPlaces& places = checkpoint.places;
      holders.clear();
      for (const std::uint32_t store : places.parts[places.shards[entry.shard.value()]]) {
        const std::string& id = places.stores[store].id;
        if (!stores_.IsLost(id)) holders.push_back(id);
      }
      copies_checked_ += holders.size();
    }
    for (const std::string& store : holders) {
      auto image = disk_.ReadShard(store + "/" + directory, entry, true);
      if (!image.ok()) {
        Fail(directory + " is committed and " + image.error().message);
        return false;
      }
      loaded.images[entry.shard.value()] = *image;
    }
    if (holders.empty()) {
      Fail(directory + " is committed and nobody has its shard " +
           std::to_string(entry.shard.value()));
      return false;
    }
    increments_ += !entry.bases.empty() && of_new ? 1 : 0;
  }
  return true;
}

std::vector<std::uint32_t> History::CountPositions(const checkpoint::ShardImage& image,
                                                   std::uint64_t total,
                                                   bool all_but_orphans) const {
  std::vector<std::uint32_t> count(total, 0);
  for (const auto& [incarnation, pushes] : pushes_) {
    if (all_but_orphans && runs_.at(incarnation).orphan) continue;
    ForPushes(incarnation, WatermarkOf(image, incarnation, Clock(0)),
              [&count](Clock, const Push& push) {
                for (std::uint64_t at = push.begin; at < push.end; ++at) ++count[at];
              });
  }
  return count;
}

bool History::MayBeLost(std::uint64_t position) const {
  return std::any_of(pushes_.begin(), pushes_.end(), [&](const auto& of) {
    const auto& [incarnation, pushes] = of;
    if (!runs_.at(incarnation).ring_lost && !away_.contains(incarnation) &&
        !given_up_.contains(incarnation)) {
      return false;
    }
    return std::any_of(pushes.begin(), pushes.end(), [position](const Push& push) {
      return position >= push.begin && position < push.end;
    });
  });
}

void History::CheckCommitted(const coordinator::CommittedCheckpoint& checkpoint) {
  const std::string& directory = checkpoint.directory;
  Loaded loaded;
  if (!Load(checkpoint, true, loaded)) return;
  const checkpoint::Manifest& manifest = *loaded.manifest;
  std::vector<bool> remaining(manifest.data.total_positions, false);
  for (const checkpoint::PositionRange& range : manifest.data.remaining) {
    for (std::uint64_t at = range.begin; at < range.end; ++at) remaining[at] = true;
  }
  for (const auto& image : loaded.images) {
    const std::string where = directory + ", shard " + std::to_string(image->shard.value());
    CheckImage(*image, where);
    std::set<Incarnation> cut_workers;
    for (const checkpoint::ManifestCut& cut : manifest.cuts) {
      cut_workers.insert(cut.incarnation);
      const Clock first = runs_[cut.incarnation].first_clock;
      if (WatermarkOf(*image, cut.incarnation, first) != cut.clock) {
        return Fail(where + " is not of the cut " + Text(cut.incarnation, cut.clock));
      }
    }
    // Who died before was replayed whole, unless nobody had its ring or the job went back.
    for (const checkpoint::WorkerMark& mark : image->marks) {
      const Run& run = runs_[mark.incarnation];
      if (cut_workers.contains(mark.incarnation) || run.orphan || run.rewound ||
          mark.watermark == run.last_clock) {
        continue;
      }
      return Fail(where + " has " + Text(mark.incarnation, mark.watermark) +
                  " of a dead worker that pushed up to " + std::to_string(run.last_clock.value()));
    }
    const auto all = CountPositions(*image, remaining.size(), false);
    const auto sure = CountPositions(*image, remaining.size(), true);
    for (std::uint64_t at = 0; at < remaining.size(); ++at) {
      if (remaining[at] ? sure[at] != 0 : sure[at] > 1) {
        return Fail(where + ": position " + std::to_string(at) + " is trained " +
                    std::to_string(sure[at]) + " times and " +
                    (remaining[at] ? "is to be trained again" : "is counted once"));
      }
      if (!remaining[at] && all[at] == 0 && !MayBeLost(at)) {
        return Fail(where + ": position " + std::to_string(at) +
                    " is counted as trained, and no push of the image has trained it");
      }
    }
  }
  newest_ = std::move(loaded);
}

void History::CheckKept(const coordinator::CommittedCheckpoint& checkpoint) {
  Loaded loaded;
  if (Load(checkpoint, false, loaded)) ++kept_checked_;
}

void History::CheckOwnWrites(Incarnation incarnation, Clock acked, ShardId shard,
                             std::uint32_t lineage, std::span<const float> values) {
  if (bulk_) return;
  double count = kInitialValue;
  const auto& refused = too_old_[{shard, lineage}];
  ForPushes(incarnation, acked, [&](Clock clock, const Push& push) {
    if (!refused.contains({incarnation, clock})) count += push.shards[shard.value()].count;
  });
  if (values[incarnation.value() % kCells] > count - 0.01) return;
  Fail("shard " + std::to_string(shard.value()) + " answers a pull of " + Text(incarnation, acked) +
       " without all of its pushes");
}

std::string History::Difference(ShardId shard, std::span<const float> values) const {
  std::ostringstream text;
  if (shard.value() >= newest_.images.size()) return "no checkpoint";
  const std::vector<float>& image = newest_.images[shard.value()]->values;
  for (std::uint32_t i = 0; i < kCells; ++i) {
    if (values[i] == image[i] && values[kCells + i] == image[kCells + i]) continue;
    text << "incarnations " << i << " + n * " << kCells << ": " << values[i] << " steps, clocks "
         << values[kCells + i] << ", not " << image[i] << " steps, clocks " << image[kCells + i]
         << "; ";
  }
  return text.str();
}

void History::CheckReleased(Incarnation incarnation, Clock clock) {
  const Clock first = runs_[incarnation].first_clock;
  if (clock <= first) return;
  for (const auto& image : newest_.images) {
    if (WatermarkOf(*image, incarnation, first) >= clock) continue;
    return Fail(Text(incarnation, clock) + " is released, and shard " +
                std::to_string(image->shard.value()) + " of the newest committed checkpoint has " +
                std::to_string(WatermarkOf(*image, incarnation, first).value()));
  }
  if (newest_.images.empty()) {
    Fail(Text(incarnation, clock) + " is released before any checkpoint");
  }
}

void History::CheckEnd(const std::string& directory, std::uint64_t total, std::uint64_t repeated) {
  if (newest_.images.empty() || !newest_.manifest->final_round) {
    return Fail("the job has succeeded without a final checkpoint");
  }
  if (!newest_.manifest->data.remaining.empty()) {
    return Fail("the job has succeeded with records left to train");
  }
  std::uint64_t most_repeated = 0;
  std::uint64_t most_lost = 0;
  for (const auto& image : newest_.images) {
    const auto count = CountPositions(*image, total, false);
    std::uint64_t twice = 0;
    std::uint64_t never = 0;
    for (std::uint64_t at = 0; at < total; ++at) {
      if (count[at] == 0) {
        ++never;
        if (!MayBeLost(at)) {
          return Fail(directory + ", shard " + std::to_string(image->shard.value()) +
                      ": position " + std::to_string(at) +
                      " is missing, and nobody was lost with it");
        }
      }
      twice += count[at] > 1 ? count[at] - 1 : 0;
    }
    most_repeated = std::max(most_repeated, twice);
    most_lost = std::max(most_lost, never);
  }
  records_repeated_ = most_repeated;
  records_lost_ = most_lost;
  const bool orphans =
      std::any_of(runs_.begin(), runs_.end(), [](const auto& run) { return run.second.orphan; });
  if (most_repeated > 0 && !orphans) {
    Fail(directory + ": " + std::to_string(most_repeated) +
         " records were trained again, and no agent was ever away");
  }
  if (repeated > 0 && !orphans) {
    Fail(directory + ": " + std::to_string(repeated) + " records count as repeated");
  }
}

}  // namespace ps::simulation
