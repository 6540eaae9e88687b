// A checkpoint of elsewhere becomes one of this cluster.
#include "coordinator/core/job_import.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "checkpoint/round_path.h"
#include "common/job/load_mapping.h"

namespace ps::coordinator {

using control::Make;

Result<JobDefinition> DefinitionOfImport(const checkpoint::Manifest& manifest,
                                         const std::string& name) {
  auto spec = ParseJobJson(manifest.spec_json);
  if (!spec.ok()) {
    return Annotate(spec.error(), "the job of the checkpoint is not understood by this version: ");
  }
  spec->name = name.empty() ? manifest.job_name : name;
  // What it began with are jobs and files of the other cluster.
  spec->checkpoint.from.clear();
  spec->checkpoint.load.clear();
  spec->resources.shards = static_cast<std::int64_t>(manifest.shards.size());
  JobDefinition definition;
  definition.spec_json = ResolvedJson(*spec);
  definition.spec = PS_TRY(ParseJobJson(definition.spec_json));
  for (const checkpoint::ManifestTable& table : manifest.tables) {
    auto info = std::make_unique<control::TableInfoT>();
    info->name = table.name;
    info->rule = table.rule;
    info->elements = table.elements;
    for (const checkpoint::ManifestTensor& tensor : table.tensors) {
      auto entry = std::make_unique<control::TensorInfoT>();
      entry->name = tensor.name;
      entry->offset = tensor.offset;
      entry->elements = tensor.elements;
      for (const std::int64_t size : tensor.shape) {
        entry->shape.push_back(std::make_unique<control::ExtentT>());
        entry->shape.back()->size = size;
      }
      info->tensors.push_back(std::move(entry));
    }
    if (table.rule == TableRule::Sgd) definition.layout.parameters += table.elements;
    definition.layout.tables.push_back(std::move(info));
  }
  for (const checkpoint::ManifestRowTable& table : manifest.row_tables) {
    definition.layout.row_tables.push_back(std::make_unique<control::RowTableInfoT>());
    definition.layout.row_tables.back()->name = table.name;
    definition.layout.row_tables.back()->width = table.width;
  }
  // How tables are cut into blocks is in the parts, and nobody asks for it here. The number of
  // shards does not follow from it, as it does when a job is submitted: it is that of the manifest.
  definition.layout.blocks = static_cast<std::uint32_t>(manifest.shards.size());
  definition.layout.fingerprint = manifest.layout_fingerprint;
  PS_TRY(ModelParts::Of(definition.layout));
  definition.shards = ChooseShardCount(definition.layout, definition.spec.resources.shards);
  const double epochs = std::max(definition.spec.training.epochs, 1e-9);
  const double records = static_cast<double>(manifest.data.total_positions) / epochs;
  definition.data.records =
      std::max<std::uint64_t>(static_cast<std::uint64_t>(std::llround(records)), 1);
  return definition;
}

Job::Job(Cluster& cluster, JobDefinition definition, JobId id, const JobTimeouts& timeouts,
         ImportOrder order, checkpoint::Manifest manifest)
    : Job(cluster, std::move(definition), id, timeouts, Phase::kImporting,
          "checkpoint " + std::to_string(manifest.round.value()) + " of job " + manifest.job_name +
              " (" + std::to_string(manifest.job.value()) + " where it was trained)") {
  state_.imported = true;
  state_.started_ms = cluster_.now_ms();
  state_.next_round = manifest.round.value() + 1;
  std::vector<Range> remaining;
  for (const auto& range : manifest.data.remaining) remaining.push_back({range.begin, range.end});
  state_.leases.Reset(remaining);
  import_ = std::make_unique<Import_>();
  import_->order = std::move(order);
  import_->directory = checkpoint::RoundPath(id, manifest.round);
  for (const checkpoint::ManifestShard& shard : manifest.shards) {
    import_->parts[shard.server].bases.insert(shard.bases.begin(), shard.bases.end());
  }
  import_->manifest = std::move(manifest);
}

std::vector<const Member*> Job::ImportCandidates(const std::string& part, bool& none_left) const {
  const Import_::Copies& copies = import_->parts.at(part);
  std::set<std::string> taken;
  std::set<std::string> hosts;
  for (const std::string& server : copies.done) {
    taken.insert(import_->stores.at(server).id);
    const auto at = cluster_.servers().find(server);
    if (at != cluster_.servers().end()) hosts.insert(at->second.host);
  }
  std::set<std::string> busy;  // one part at a time
  std::map<std::string, std::size_t> load;
  for (const auto& entry : import_->parts) {
    if (!entry.second.fetching.empty()) busy.insert(entry.second.fetching);
    for (const std::string& server : entry.second.done) ++load[import_->stores.at(server).id];
  }
  std::vector<const Member*> candidates;
  none_left = true;
  for (const auto& [procid, server] : cluster_.servers()) {
    if (!server.alive() || server.store.empty() || server.files.empty()) continue;
    if (taken.contains(server.store) || copies.failed.contains(procid)) continue;
    none_left = false;
    if (!busy.contains(procid)) candidates.push_back(&server);
  }
  const auto rank = [&](const Member* server) {
    return std::tuple(hosts.contains(server->host), server->unsteady || server->duty != Duty::kFull,
                      load[server->store], server->name, server->procid);
  };
  std::sort(candidates.begin(), candidates.end(),
            [&](const Member* a, const Member* b) { return rank(a) < rank(b); });
  return candidates;
}

void Job::SendImportCopy(const std::string& server, const std::string& part) {
  control::CopyPartT copy;
  copy.job = state_.id.value();
  copy.round = import_->manifest.round.value();
  copy.directory = import_->directory;
  copy.source_directory = import_->order.directory;
  copy.part = part;
  copy.source = std::make_unique<control::FileSourceT>();
  copy.source->endpoint = import_->order.endpoint;
  for (const Round base : import_->parts.at(part).bases) {
    copy.bases.push_back(std::make_unique<control::KeptRoundT>());
    copy.bases.back()->round = base.value();
  }
  cluster_.Send(server, Make(std::move(copy)));
}

void Job::ContinueImport() {
  if (import_ == nullptr) {  // begun by a former leader
    return Finish(Phase::kFailed,
                  "the coordinator has changed while it was imported; import it again");
  }
  const auto gone = [this](const std::string& procid) {
    const auto at = cluster_.servers().find(procid);
    return at == cluster_.servers().end() || !at->second.present;
  };
  std::set<std::string> stores;
  for (const auto& [procid, server] : cluster_.servers()) {
    if (server.alive() && !server.store.empty()) stores.insert(server.store);
  }
  const std::size_t wanted = std::clamp<std::size_t>(
      stores.size(), 1, static_cast<std::size_t>(definition_.spec.checkpoint.copies));
  std::size_t copied = 0;
  for (auto& [part, copies] : import_->parts) {
    if (gone(copies.fetching)) copies.fetching.clear();
    std::erase_if(copies.done, gone);
    if (copies.done.size() >= wanted) {
      ++copied;
      continue;
    }
    // Whoever had the manifest already is gone.
    import_->holders.clear();
    import_->written.clear();
    if (!copies.fetching.empty()) continue;
    bool none_left = false;
    const std::vector<const Member*> candidates = ImportCandidates(part, none_left);
    if (candidates.empty()) {
      if (none_left && !copies.failed.empty()) {
        return Finish(Phase::kFailed, "part " + part + " could not be copied: " + copies.failure);
      }
      continue;
    }
    const Member& server = *candidates.front();
    copies.fetching = server.procid;
    import_->stores[server.procid] = {server.store, server.name};
    import_->told.insert(server.procid);
    SendImportCopy(server.procid, part);
  }
  if (copied == import_->parts.size()) {
    if (!import_->holders.empty()) return;
    for (const auto& [part, copies] : import_->parts) {
      for (const std::string& server : copies.done) import_->holders[server].insert(part);
    }
    for (const auto& [server, parts] : import_->holders) SendImportManifest(server, parts);
    return;
  }
  const std::string waits = std::to_string(copied) + " of " +
                            std::to_string(import_->parts.size()) + " parts are copied" +
                            (stores.empty() ? "; waits for a ps-server, none is registered" : "");
  if (waits == import_->waits) return;
  import_->waits = waits;
  SetPhase(Phase::kImporting, waits);
}

void Job::OnImportMessage(const std::string& procid, const control::MessageT& message) {
  if (import_ == nullptr) return;
  const std::uint64_t round = import_->manifest.round.value();
  if (const auto* copied = message.body.AsPartCopied()) {
    const auto at = import_->parts.find(copied->part);
    if (copied->round != round || at == import_->parts.end() || at->second.fetching != procid) {
      return;
    }
    at->second.fetching.clear();
    at->second.done.insert(procid);
  } else if (const auto* failed = message.body.AsPartCopyFailed()) {
    const auto at = import_->parts.find(failed->part);
    if (failed->round != round || at == import_->parts.end() || at->second.fetching != procid) {
      return;
    }
    at->second.fetching.clear();
    at->second.failed.insert(procid);
    at->second.failure = failed->message;
    Event("import", "part " + failed->part + ": " + failed->message);
  } else if (const auto* written = message.body.AsManifestWritten()) {
    if (written->round != round || !import_->holders.contains(procid)) return;
    import_->written.insert(procid);
    if (import_->written.size() == import_->holders.size()) return CommitImport();
  } else if (const auto* refused = message.body.AsPrepareFailed()) {
    if (refused->round != round) return;
    return Finish(Phase::kFailed, "server " + procid + ": " + refused->message);
  } else {
    return;
  }
  ContinueImport();
}

void Job::SendImportManifest(const std::string& server, const std::set<std::string>& parts) {
  control::WriteManifestT write;
  write.job = state_.id.value();
  write.round = import_->manifest.round.value();
  write.directory = import_->directory;
  write.manifest = import_->order.manifest;
  for (const std::string& part : parts) {
    write.parts.push_back(std::make_unique<control::PartNameT>());
    write.parts.back()->name = part;
  }
  cluster_.Send(server, Make(std::move(write)));
}

void Job::RepeatImport(const std::string& server) {
  if (import_ == nullptr) return;
  for (const auto& [part, copies] : import_->parts) {
    if (copies.fetching == server) SendImportCopy(server, part);
  }
  const auto holder = import_->holders.find(server);
  if (holder != import_->holders.end() && !import_->written.contains(server)) {
    SendImportManifest(server, holder->second);
  }
}

// As in a round: the state node that is written next is the commit point.
void Job::CommitImport() {
  const std::unique_ptr<Import_> import = std::move(import_);
  const checkpoint::Manifest& manifest = import->manifest;
  CommittedCheckpoint checkpoint;
  checkpoint.round = manifest.round;
  checkpoint.time_ms = manifest.time_ms;
  checkpoint.step = manifest.step;
  checkpoint.samples = manifest.samples;
  checkpoint.duration_ms = cluster_.now_ms() - std::min(cluster_.now_ms(), state_.started_ms);
  checkpoint.directory = import->directory;
  checkpoint.manifest_hash = checkpoint::Hash(import->order.manifest);
  checkpoint.final_round = manifest.final_round;
  checkpoint.ordinal = 1;
  std::set<Round> bases;
  std::map<std::string, std::uint32_t> stores;
  std::map<std::string, std::uint32_t> parts;
  for (const auto& [part, copies] : import->parts) {
    bases.insert(copies.bases.begin(), copies.bases.end());
    parts[part] = static_cast<std::uint32_t>(checkpoint.places.parts.size());
    std::vector<std::uint32_t> of;
    for (const std::string& server : copies.done) {
      const PartPlaces::Store& store = import->stores.at(server);
      const auto [at, added] = stores.emplace(store.id, static_cast<std::uint32_t>(stores.size()));
      if (added) checkpoint.places.stores.push_back(store);
      of.push_back(at->second);
    }
    checkpoint.places.parts.push_back(std::move(of));
  }
  for (const checkpoint::ManifestShard& shard : manifest.shards) {
    checkpoint.bytes += shard.bytes;
    checkpoint.state_bytes += shard.state_bytes;
    checkpoint.places.shards.push_back(parts.at(shard.server));
  }
  checkpoint.bases.assign(bases.rbegin(), bases.rend());
  checkpoint.since_whole = bases.size();
  for (const auto& range : manifest.data.remaining) {
    checkpoint.remaining.push_back({range.begin, range.end});
  }
  state_.checkpoints.push_back(std::move(checkpoint));
  for (const std::string& server : import->told) {
    cluster_.Send(server, Make(KeptRounds(manifest.round)));
  }
  Finish(Phase::kImported, "checkpoint " + std::to_string(manifest.round.value()) + " of job " +
                               manifest.job_name + " at step " + std::to_string(manifest.step) +
                               ", " + std::to_string(state_.checkpoints.back().bytes) + " bytes");
}

void Job::AbortImport() {
  if (import_ == nullptr) return;
  const std::unique_ptr<Import_> import = std::move(import_);
  for (const std::string& server : import->told) SendLeftovers(server);
}

void Job::SendLeftovers(const std::string& server) {
  // It may still be copying, if the leader has changed.
  control::RoundAbortT abort;
  abort.job = state_.id.value();
  abort.round = state_.next_round - 1;
  abort.reason = "the import has ended";
  cluster_.Send(server, Make(std::move(abort)));
  cluster_.Send(server, Make(KeptRounds(Round(state_.next_round))));
}

}  // namespace ps::coordinator
