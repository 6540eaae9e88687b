#include "coordinator/core/job_state.h"

#include <algorithm>
#include <array>
#include <utility>

#include "common/error_id.h"
#include "coordinator/core/json_writer.h"

namespace ps::coordinator {
namespace {

constexpr std::array<std::pair<Phase, const char*>, 12> kPhases = {{
    {Phase::kQueued, "queued"},
    {Phase::kPlacing, "placing"},
    {Phase::kRunning, "running"},
    {Phase::kRecovering, "recovering"},
    {Phase::kDraining, "draining"},
    {Phase::kEvaluating, "evaluating"},
    {Phase::kSucceeded, "succeeded"},
    {Phase::kFailed, "failed"},
    {Phase::kCancelled, "cancelled"},
    {Phase::kImporting, "importing"},
    {Phase::kImported, "imported"},
    {Phase::kSuspended, "suspended"},
}};

std::vector<Range> RangesFromJson(const nlohmann::json& json) {
  std::vector<Range> ranges;
  for (const auto& range : json) {
    ranges.push_back({range.at(0).get<std::uint64_t>(), range.at(1).get<std::uint64_t>()});
  }
  return ranges;
}

// {"stores": [["<id>", "server-1"], ..], "parts": [[0, 1], ..], "shards": [0, ..]}
void AddPlaces(JsonWriter& out, const PartPlaces& places) {
  out.BeginObject();
  out.Member("parts", places.parts);
  out.Member("shards", places.shards);
  out.Key("stores");
  out.BeginArray();
  for (const PartPlaces::Store& store : places.stores) out.Row(store.id, store.server);
  out.EndArray();
  out.EndObject();
}

// Empty if `json` has none under `key`.
Result<PartPlaces> PlacesFromJson(const nlohmann::json& json, const char* key) {
  PartPlaces places;
  if (!json.contains(key)) return places;
  const nlohmann::json& found = json.at(key);
  for (const auto& store : found.at("stores")) {
    places.stores.push_back({store.at(0).get<std::string>(), store.at(1).get<std::string>()});
  }
  places.parts = found.at("parts").get<std::vector<std::vector<std::uint32_t>>>();
  places.shards = found.at("shards").get<std::vector<std::uint32_t>>();
  const auto no_part = [&](std::uint32_t part) { return part >= places.parts.size(); };
  const auto no_store = [&](const std::vector<std::uint32_t>& part) {
    return std::any_of(part.begin(), part.end(),
                       [&](std::uint32_t store) { return store >= places.stores.size(); });
  };
  if (std::any_of(places.shards.begin(), places.shards.end(), no_part) ||
      std::any_of(places.parts.begin(), places.parts.end(), no_store)) {
    return Error{ErrorId::kZooKeeperContent,
                 "job state: a checkpoint's places contradict themselves"};
  }
  return places;
}

void AddCheckpoint(JsonWriter& out, const CommittedCheckpoint& checkpoint) {
  out.BeginObject();
  out.Key("bases");
  out.BeginArray();
  for (const Round base : checkpoint.bases) out.Add(base.value());
  out.EndArray();
  out.Member("bytes", checkpoint.bytes);
  out.Key("clocks");
  out.BeginArray();
  for (const auto& [slot, clock] : checkpoint.clocks) out.Row(slot, clock);
  out.EndArray();
  out.Member("damaged", checkpoint.damaged);
  out.Member("directory", checkpoint.directory);
  out.Member("duration_ms", checkpoint.duration_ms);
  out.Member("final", checkpoint.final_round);
  if (!checkpoint.loss_scales.empty()) {
    // [[<slot>, <scale>, <growth tracker>], ..]
    nlohmann::json scales = nlohmann::json::array();
    for (const auto& [slot, scale] : checkpoint.loss_scales) {
      scales.push_back({slot, static_cast<double>(scale.scale), scale.growth_tracker});
    }
    out.Key("loss_scales");
    out.AddTree(scales);
  }
  out.Member("manifest_hash", checkpoint.manifest_hash);
  out.Member("ordinal", checkpoint.ordinal);
  out.Member("pinned", checkpoint.pinned);
  if (!checkpoint.places.empty()) {
    out.Key("places");
    AddPlaces(out, checkpoint.places);
  }
  out.Key("remaining");
  out.BeginArray();
  for (const Range& range : checkpoint.remaining) out.Row(range.begin, range.end);
  out.EndArray();
  out.Member("round", checkpoint.round.value());
  out.Member("samples", checkpoint.samples);
  out.Member("since_whole", checkpoint.since_whole);
  out.Member("state_bytes", checkpoint.state_bytes);
  out.Member("step", checkpoint.step);
  out.Member("time_ms", checkpoint.time_ms);
  out.EndObject();
}

}  // namespace

const char* PhaseName(Phase phase) {
  for (const auto& entry : kPhases) {
    if (entry.first == phase) return entry.second;
  }
  return "unknown";
}

std::optional<Phase> PhaseFromName(const std::string& name) {
  for (const auto& entry : kPhases) {
    if (name == entry.second) return entry.first;
  }
  return std::nullopt;
}

std::string StateToJson(const JobState& state) {
  JsonWriter out;
  out.BeginObject();
  out.Key("checkpoints");
  out.BeginArray();
  for (const CommittedCheckpoint& checkpoint : state.checkpoints) AddCheckpoint(out, checkpoint);
  out.EndArray();
  out.Member("created_ms", state.created_ms);
  out.Key("dead");
  out.BeginArray();
  for (const DeadWorker& worker : state.dead) {
    out.BeginObject();
    out.Member("agent", worker.agent);
    out.Member("covered", worker.covered);
    out.Member("first_clock", worker.first_clock.value());
    out.Member("incarnation", worker.incarnation.value());
    out.Member("replayed", worker.replayed);
    out.Member("worker", worker.worker.value());
    out.EndObject();
  }
  out.EndArray();
  out.Member("finished_ms", state.finished_ms);
  out.Member("first_clocks", state.first_clocks);
  out.Member("generation", state.generation);
  out.Member("id", state.id.value());
  if (state.imported) out.Member("imported", true);
  out.Key("leases");
  state.leases.Write(out);
  out.Member("live_version", state.live_version);
  out.Member("name", state.name);
  out.Member("next_event", state.next_event);
  out.Member("next_incarnation", state.next_incarnation);
  out.Member("next_round", state.next_round);
  if (!state.origin.owner.empty()) out.Member("owner", state.origin.owner);
  out.Member("phase", PhaseName(state.phase));
  out.Member("reason", state.reason);
  if (!state.origin.request.empty()) out.Member("request", state.origin.request);
  out.Member("restarts", state.restarts);
  if (state.result) {
    out.Key("result");
    out.AddTree({{"metric", state.result->metric},
                 {"loss", state.result->loss},
                 {"records", state.result->records},
                 {"metric_name", state.result->metric_name}});
  }
  out.Member("start_directory", state.start_directory);
  out.Member("start_job", state.start_job);
  if (!state.start_places.empty()) {
    out.Key("start_places");
    AddPlaces(out, state.start_places);
  }
  out.Member("start_round", state.start_round);
  out.Member("started_ms", state.started_ms);
  if (state.suspending) out.Member("suspending", true);
  if (state.origin.token != 0) out.Member("token", state.origin.token);
  out.Member("version", 1U);
  out.Key("workers");
  out.BeginArray();
  for (const WorkerSlot& slot : state.workers) {
    out.BeginObject();
    out.Member("agent", slot.agent);
    out.Member("agent_name", slot.agent_name);
    if (!slot.gpus.empty()) out.Member("gpus", slot.gpus);
    out.Member("incarnation", slot.incarnation.value());
    out.Member("live", slot.live);
    out.Member("retry_at_ms", slot.retry_at_ms);
    out.Member("task", slot.task);
    out.EndObject();
  }
  out.EndArray();
  out.EndObject();
  return out.Take();
}

Result<JobState> StateFromJson(const nlohmann::json& json) {
  try {
    if (json.at("version").get<int>() != 1) {
      return Error{ErrorId::kZooKeeperContent,
                   "job state of version " + json.at("version").dump() + ", this program reads 1"};
    }
    JobState state;
    state.id = JobId(json.at("id").get<std::uint64_t>());
    state.name = json.at("name").get<std::string>();
    const auto phase = PhaseFromName(json.at("phase").get<std::string>());
    if (!phase) return Error{ErrorId::kZooKeeperContent, "job state: unknown phase"};
    state.phase = *phase;
    state.reason = json.at("reason").get<std::string>();
    state.generation = json.at("generation").get<std::uint32_t>();
    state.created_ms = json.at("created_ms").get<std::uint64_t>();
    state.started_ms = json.at("started_ms").get<std::uint64_t>();
    state.finished_ms = json.at("finished_ms").get<std::uint64_t>();
    state.live_version = json.at("live_version").get<std::uint64_t>();
    state.next_incarnation = json.at("next_incarnation").get<std::uint32_t>();
    state.next_round = json.at("next_round").get<std::uint64_t>();
    state.restarts = json.at("restarts").get<std::uint64_t>();
    state.next_event = json.at("next_event").get<std::uint64_t>();
    for (const auto& entry : json.at("workers")) {
      WorkerSlot slot;
      slot.incarnation = Incarnation(entry.at("incarnation").get<std::uint32_t>());
      slot.agent = entry.at("agent").get<std::string>();
      slot.agent_name = entry.at("agent_name").get<std::string>();
      slot.gpus = entry.value("gpus", std::vector<std::string>());
      slot.task = entry.at("task").get<std::uint64_t>();
      slot.live = entry.at("live").get<bool>();
      slot.retry_at_ms = entry.at("retry_at_ms").get<std::uint64_t>();
      state.workers.push_back(std::move(slot));
    }
    state.first_clocks = json.at("first_clocks").get<std::vector<std::uint64_t>>();
    if (state.first_clocks.size() != state.workers.size()) {
      return Error{ErrorId::kZooKeeperContent, "job state: workers and their first clocks differ"};
    }
    for (const auto& entry : json.at("dead")) {
      DeadWorker worker;
      worker.worker = WorkerId(entry.at("worker").get<std::uint32_t>());
      worker.incarnation = Incarnation(entry.at("incarnation").get<std::uint32_t>());
      worker.first_clock = Clock(entry.at("first_clock").get<std::uint64_t>());
      worker.agent = entry.at("agent").get<std::string>();
      worker.replayed = entry.at("replayed").get<bool>();
      worker.covered = entry.at("covered").get<bool>();
      state.dead.push_back(std::move(worker));
    }
    state.leases = PS_TRY(LeaseBook::FromJson(json.at("leases")));
    for (const auto& entry : json.at("checkpoints")) {
      CommittedCheckpoint checkpoint;
      checkpoint.round = Round(entry.at("round").get<std::uint64_t>());
      checkpoint.time_ms = entry.at("time_ms").get<std::uint64_t>();
      checkpoint.step = entry.at("step").get<std::uint64_t>();
      checkpoint.samples = entry.at("samples").get<std::uint64_t>();
      checkpoint.bytes = entry.at("bytes").get<std::uint64_t>();
      checkpoint.duration_ms = entry.at("duration_ms").get<std::uint64_t>();
      checkpoint.directory = entry.at("directory").get<std::string>();
      checkpoint.manifest_hash = entry.at("manifest_hash").get<std::string>();
      checkpoint.final_round = entry.at("final").get<bool>();
      checkpoint.state_bytes = entry.at("state_bytes").get<std::uint64_t>();
      for (const auto& base : entry.at("bases")) {
        checkpoint.bases.emplace_back(base.get<std::uint64_t>());
      }
      checkpoint.since_whole = entry.at("since_whole").get<std::uint64_t>();
      checkpoint.remaining = RangesFromJson(entry.at("remaining"));
      checkpoint.damaged = entry.at("damaged").get<bool>();
      checkpoint.pinned = entry.value("pinned", false);
      checkpoint.ordinal = entry.value("ordinal", std::uint64_t{0});
      checkpoint.places = PS_TRY(PlacesFromJson(entry, "places"));
      // A leader of an earlier version wrote none.
      for (const auto& row : entry.value("clocks", nlohmann::json::array())) {
        checkpoint.clocks[row.at(0).get<std::uint32_t>()] = row.at(1).get<std::uint64_t>();
      }
      for (const auto& row : entry.value("loss_scales", nlohmann::json::array())) {
        checkpoint.loss_scales[row.at(0).get<std::uint32_t>()] = {row.at(1).get<float>(),
                                                                  row.at(2).get<std::uint32_t>()};
      }
      state.checkpoints.push_back(std::move(checkpoint));
    }
    state.start_job = json.at("start_job").get<std::uint64_t>();
    state.start_round = json.at("start_round").get<std::uint64_t>();
    state.start_directory = json.at("start_directory").get<std::string>();
    state.start_places = PS_TRY(PlacesFromJson(json, "start_places"));
    state.suspending = json.value("suspending", false);
    state.imported = json.value("imported", false);
    state.origin.owner = json.value("owner", std::string());
    state.origin.request = json.value("request", std::string());
    state.origin.token = json.value("token", std::uint64_t{0});
    if (json.contains("result")) {
      const auto& result = json.at("result");
      state.result = JobResult{result.at("metric").get<double>(), result.at("loss").get<double>(),
                               result.at("records").get<std::uint64_t>(),
                               result.at("metric_name").get<std::string>()};
    }
    return state;
  } catch (const nlohmann::json::exception& e) {
    return Error{ErrorId::kZooKeeperContent, std::string("job state: ") + e.what()};
  }
}

std::string EventsToJson(const std::deque<JobEvent>& events) {
  JsonWriter out;
  out.BeginArray();
  for (const JobEvent& event : events) {
    out.BeginObject();
    out.Member("message", event.message);
    out.Member("seq", event.seq);
    out.Member("time_ms", event.time_ms);
    out.Member("type", event.type);
    out.EndObject();
  }
  out.EndArray();
  return out.Take();
}

Result<std::deque<JobEvent>> EventsFromJson(const nlohmann::json& json) {
  try {
    std::deque<JobEvent> events;
    for (const auto& entry : json) {
      events.push_back(
          JobEvent{entry.at("seq").get<std::uint64_t>(), entry.at("time_ms").get<std::uint64_t>(),
                   entry.at("type").get<std::string>(), entry.at("message").get<std::string>()});
    }
    return events;
  } catch (const nlohmann::json::exception& e) {
    return Error{ErrorId::kZooKeeperContent, std::string("job events: ") + e.what()};
  }
}

}  // namespace ps::coordinator
