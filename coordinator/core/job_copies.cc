// Parts of checkpoints in several servers' stores: copied in a round, found again for a restore.
#include <algorithm>
#include <tuple>

#include "coordinator/core/job.h"
#include "coordinator/core/job_round.h"
#include "coordinator/core/placement.h"

namespace ps::coordinator {
namespace {

// Of a restore that finds its sources but cannot read them.
constexpr std::uint32_t kRestoreRetriesMax = 5;

std::unique_ptr<control::FileSourceT> SourceOf(const Member& server) {
  auto source = std::make_unique<control::FileSourceT>();
  source->store = server.store;
  source->endpoint = server.files;
  return source;
}

// Others can read from it.
bool Gives(const Member& server) {
  return server.alive() && !server.store.empty() && !server.files.empty();
}

}  // namespace

std::string Job::StoreOf(const std::string& procid) const {
  const auto at = cluster_.servers().find(procid);
  return at == cluster_.servers().end() ? "" : at->second.store;
}

// ---- in a round

void Job::NoteStore(const std::string& procid) {
  const auto at = cluster_.servers().find(procid);
  if (at != cluster_.servers().end()) round_->stores[procid] = {at->second.store, at->second.name};
}

std::vector<const Member*> Job::CopyCandidates(const std::string& part) const {
  const Round_::Copies& copies = round_->copies.at(part);
  std::set<std::string> taken{StoreOf(part)};
  for (const std::string& server : copies.fetching) taken.insert(StoreOf(server));
  for (const std::string& server : copies.done) taken.insert(StoreOf(server));
  std::map<std::string, std::size_t> load;  // copies in this round, by server
  for (const auto& entry : round_->copies) {
    for (const std::string& server : entry.second.fetching) ++load[server];
    for (const std::string& server : entry.second.done) ++load[server];
  }
  // Who has copied the part in the round before need not fetch what it builds on again.
  std::set<std::string> former;
  const CommittedCheckpoint* const newest = state_.NewestCheckpoint();
  for (std::uint32_t shard = 0; newest != nullptr && !newest->places.empty(); ++shard) {
    if (shard >= std::min(newest->places.shards.size(), map_.shards.size())) break;
    if (map_.servers[map_.shards[shard]->server]->procid != part) continue;
    for (const std::uint32_t store : newest->places.parts[newest->places.shards[shard]]) {
      former.insert(newest->places.stores[store].id);
    }
    break;
  }
  const auto own = cluster_.servers().find(part);
  const bool known = own != cluster_.servers().end();
  const std::string host = known ? own->second.host : "";
  const std::string rack = known ? own->second.rack : "";
  const std::string name = known ? own->second.name : "";
  std::vector<const Member*> candidates;
  for (const auto& [procid, server] : cluster_.servers()) {
    if (!Gives(server) || taken.contains(server.store) || copies.failed.contains(procid)) continue;
    candidates.push_back(&server);
  }
  const auto rank = [&](const Member* server) {
    return std::tuple(server->host == host, server->rack == rack,
                      server->unsteady || server->duty != Duty::kFull,
                      !former.contains(server->store), load[server->procid], server->name < name,
                      server->name, server->procid);  // else the next in turn
  };
  std::sort(candidates.begin(), candidates.end(),
            [&](const Member* a, const Member* b) { return rank(a) < rank(b); });
  return candidates;
}

// Who is gone is replaced; a part that nobody else can have stays in one place.
void Job::CopyParts() {
  if (!round_) return;
  const auto wanted = static_cast<std::size_t>(definition_.spec.checkpoint.copies) - 1;
  const auto gone = [this](const std::string& procid) {
    const auto at = cluster_.servers().find(procid);
    return at == cluster_.servers().end() || !at->second.present;
  };
  for (const auto& [server, parts] : round_->holders) {
    if (!gone(server)) continue;
    return AbortRound("a server that had to write the manifest is gone", timeouts_.round_retry_ms);
  }
  if (!round_->manifest.empty()) return;
  for (const auto& [part, prepared] : round_->prepared) {
    Round_::Copies& copies = round_->copies[part];
    const auto own = cluster_.servers().find(part);
    // Without a server to read from; if it is gone its shards move, which ends the round.
    if (own == cluster_.servers().end() || !Gives(own->second)) continue;
    std::erase_if(copies.fetching, gone);
    std::erase_if(copies.done, gone);
    while (copies.fetching.size() + copies.done.size() < wanted) {
      const std::vector<const Member*> candidates = CopyCandidates(part);
      if (candidates.empty()) break;
      const Member& server = *candidates.front();
      control::CopyPartT copy;
      copy.job = state_.id.value();
      copy.round = round_->number.value();
      copy.directory = round_->directory;
      copy.part = part;
      copy.source = SourceOf(own->second);
      std::set<std::uint64_t> bases;
      for (const auto& shard : prepared.shards) {
        for (const auto& base : shard->bases) bases.insert(base->round);
      }
      for (const std::uint64_t base : bases) {
        copy.bases.push_back(std::make_unique<control::KeptRoundT>());
        copy.bases.back()->round = base;
      }
      cluster_.Send(server.procid, control::Make(std::move(copy)));
      copies.fetching.insert(server.procid);
    }
    if (!copies.failed.empty() && copies.fetching.empty() && copies.done.size() < wanted) {
      return AbortRound(
          "what server " + own->second.name + " wrote could not be copied: " + copies.failure,
          timeouts_.failed_round_retry_ms);
    }
  }
}

bool Job::PartsAreCopied() const {
  return std::all_of(round_->prepared.begin(), round_->prepared.end(), [this](const auto& entry) {
    const auto copies = round_->copies.find(entry.first);
    return copies != round_->copies.end() && copies->second.fetching.empty();
  });
}

void Job::OnPartCopied(const std::string& procid, const control::PartCopiedT& copied) {
  if (!round_ || round_->number.value() != copied.round || !round_->manifest.empty()) return;
  const auto at = round_->copies.find(copied.part);
  if (at == round_->copies.end() || at->second.fetching.erase(procid) == 0) return;
  at->second.done.insert(procid);
  NoteStore(procid);
  round_->news_ms = cluster_.now_ms();
  MaybeWriteManifest();
}

void Job::OnPartCopyFailed(const std::string& procid, const control::PartCopyFailedT& failed) {
  if (!round_ || round_->number.value() != failed.round) return;
  const auto at = round_->copies.find(failed.part);
  if (at == round_->copies.end() || at->second.fetching.erase(procid) == 0) return;
  at->second.failed.insert(procid);
  at->second.failure = failed.message;
  CopyParts();
}

PartPlaces Job::PlacesOfRound() const {
  PartPlaces places;
  std::map<std::string, std::uint32_t> stores;
  const auto number = [&](const std::string& procid) {
    const PartPlaces::Store& store = round_->stores.at(procid);
    const auto [at, added] =
        stores.emplace(store.id, static_cast<std::uint32_t>(places.stores.size()));
    if (added) places.stores.push_back(store);
    return at->second;
  };
  places.shards.resize(map_.shards.size());
  for (const auto& [part, prepared] : round_->prepared) {
    // A server without an identity of its store is of an earlier version: nothing is known.
    if (round_->stores.at(part).id.empty()) return {};
    for (const auto& shard : prepared.shards) {
      if (shard->shard < places.shards.size()) {
        places.shards[shard->shard] = static_cast<std::uint32_t>(places.parts.size());
      }
    }
    std::vector<std::uint32_t> of{number(part)};
    for (const std::string& server : round_->copies.at(part).done) of.push_back(number(server));
    places.parts.push_back(std::move(of));
  }
  return places;
}

// ---- for a restore

std::vector<std::uint32_t> Job::ShardsToPlace() const {
  std::vector<std::uint32_t> shards;
  for (std::uint32_t shard = 0; shard < definition_.shards; ++shard) {
    bool lost = shard >= map_.shards.size() || chains_.lost.contains(shard);
    if (!lost) {
      const control::ShardEntryT& entry = *map_.shards[shard];
      const auto at = cluster_.servers().find(map_.servers[entry.server]->procid);
      lost = entry.lane == kNoLane || at == cluster_.servers().end() || !at->second.may_hold();
    }
    if (lost) shards.push_back(shard);
  }
  return shards;
}

std::string Job::MissingParts(const std::vector<std::uint32_t>& shards) const {
  const RestoreSource restore = Restore();
  if (restore.places == nullptr || restore.places->empty()) return "";
  const PartPlaces& places = *restore.places;
  std::set<std::string> here;
  for (const auto& entry : cluster_.servers()) {
    if (entry.second.alive()) here.insert(entry.second.store);
  }
  std::set<std::uint32_t> checked;
  for (const std::uint32_t shard : shards) {
    if (shard >= places.shards.size() || !checked.insert(places.shards[shard]).second) continue;
    const std::vector<std::uint32_t>& holders = places.parts[places.shards[shard]];
    const auto is_here = [&](std::uint32_t store) {
      return here.contains(places.stores[store].id);
    };
    if (std::any_of(holders.begin(), holders.end(), is_here)) continue;
    std::string names;
    for (const std::uint32_t store : holders) {
      names += (names.empty() ? "" : " or ") + places.stores[store].server;
    }
    return "waits for server " + names + ": only there is shard " + std::to_string(shard) +
           " of checkpoint " + std::to_string(restore.round.value()) +
           (restore.job == state_.id ? "; if it is gone for good, `ds-cli ckpt rollback` goes back "
                                       "to an earlier checkpoint"
                                     : " of job " + std::to_string(restore.job.value()));
  }
  return "";
}

std::vector<std::unique_ptr<control::FileSourceT>> Job::Sources() const {
  std::vector<std::unique_ptr<control::FileSourceT>> sources;
  const RestoreSource restore = Restore();
  if (restore.round == Round() && definition_.spec.checkpoint.load.empty()) return sources;
  std::set<std::string> holders;
  if (restore.places != nullptr) {
    for (const PartPlaces::Store& store : restore.places->stores) holders.insert(store.id);
  }
  std::set<std::string> added;
  for (const bool holding : {true, false}) {
    for (const auto& entry : cluster_.servers()) {
      const Member& server = entry.second;
      if (!Gives(server) || holders.contains(server.store) != holding) continue;
      if (added.insert(server.store).second) sources.push_back(SourceOf(server));
    }
  }
  return sources;
}

void Job::OnRestoreFailed(const control::RestoreFailedT& failed) {
  RestoreRetry& retry = restore_retries_[failed.shard];
  if (retry.at_ms != 0) return;
  const std::string what = "shard " + std::to_string(failed.shard) +
                           (failed.round == 0 ? std::string(" could not be loaded")
                                              : " could not be restored from checkpoint " +
                                                    std::to_string(failed.round)) +
                           ": " + failed.message;
  // What was not there may be on a server that was not asked: it is once it is here, or is waited
  // for by name.
  const RestoreSource restore = Restore();
  bool all_asked = true;
  if (restore.places != nullptr && failed.shard < restore.places->shards.size()) {
    for (const std::uint32_t store : restore.places->parts[restore.places->shards[failed.shard]]) {
      all_asked = all_asked && std::find(failed.asked.begin(), failed.asked.end(),
                                         restore.places->stores[store].id) != failed.asked.end();
    }
  }
  if (failed.damaged && all_asked) {
    restore_retries_.erase(failed.shard);
    if (!GoBackBefore(Round(failed.round), failed.message)) Finish(Phase::kFailed, what);
    return;
  }
  if (all_asked && ++retry.times > kRestoreRetriesMax) return Finish(Phase::kFailed, what);
  retry.at_ms = cluster_.now_ms() + timeouts_.restore_retry_ms;
  retry.epoch = Epoch(failed.epoch);
  Event("restore failed", what + "; it is tried again");
}

// ---- damage that servers find when they read their folders again

void Job::OnPartDamaged(const std::string& procid, const control::PartDamagedT& damaged) {
  const auto server = cluster_.servers().find(procid);
  if (server == cluster_.servers().end()) return;
  const Round round(damaged.round);
  control::RepairPartT repair;
  repair.job = state_.id.value();
  repair.round = damaged.round;
  repair.part = damaged.part;
  // What is being written, imported, or deleted is looked after by whoever does that.
  repair.unknown = !RoundsOnDisk(state_.checkpoints).contains(round);
  if (!repair.unknown) {
    std::set<std::string> stores{server->second.store};
    for (const auto& entry : cluster_.servers()) {
      if (Gives(entry.second) && stores.insert(entry.second.store).second) {
        repair.sources.push_back(SourceOf(entry.second));
      }
    }
    if (damage_told_.emplace(server->second.store, round, damaged.part).second) {
      Event("part damaged", "checkpoint " + std::to_string(damaged.round) + ": part " +
                                damaged.part + " in the folder of server " + server->second.name +
                                " is damaged: " + damaged.message);
    }
  }
  cluster_.Send(procid, control::Make(std::move(repair)));
}

void Job::OnPartRepaired(const std::string& procid, const control::PartRepairedT& repaired) {
  const auto server = cluster_.servers().find(procid);
  if (server == cluster_.servers().end()) return;
  const Round round(repaired.round);
  const std::string what = "checkpoint " + std::to_string(repaired.round) + ": part " +
                           repaired.part + " in the folder of server " + server->second.name;
  if (repaired.error.empty()) {
    damage_told_.erase({server->second.store, round, repaired.part});
    return Event("part repaired", what + " is whole again: a copy of another server is there now");
  }
  // Once: it is tried again with each pass over the folder.
  if (damage_told_.emplace(server->second.store, round, "failed " + repaired.part).second) {
    Event("part damaged", what + " stays damaged: " + repaired.error);
  }
  const CommittedCheckpoint* const newest = state_.NewestCheckpoint();
  const bool needed = newest != nullptr && RoundsOnDisk({*newest}).contains(round);
  if (over() || !needed || whole_wanted_) return;
  whole_wanted_ = true;
  round_wanted_ = true;
  Event("part damaged",
        "the next checkpoint is written soon, and whole, as the newest one needs " + repaired.part);
}

}  // namespace ps::coordinator
