#include "coordinator/core/job_state.h"

#include <algorithm>
#include <array>
#include <utility>

namespace ps::coordinator {
namespace {

constexpr std::array<std::pair<Phase, const char*>, 11> kPhases = {{
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
}};

nlohmann::json RangesToJson(const std::vector<Range>& ranges) {
  nlohmann::json json = nlohmann::json::array();
  for (const Range& range : ranges) json.push_back({range.begin, range.end});
  return json;
}

std::vector<Range> RangesFromJson(const nlohmann::json& json) {
  std::vector<Range> ranges;
  for (const auto& range : json) {
    ranges.push_back({range.at(0).get<std::uint64_t>(), range.at(1).get<std::uint64_t>()});
  }
  return ranges;
}

// {"stores": [["<id>", "server-1"], ..], "parts": [[0, 1], ..], "shards": [0, ..]}
nlohmann::json PlacesToJson(const PartPlaces& places) {
  nlohmann::json stores = nlohmann::json::array();
  for (const PartPlaces::Store& store : places.stores) stores.push_back({store.id, store.server});
  return {{"stores", std::move(stores)}, {"parts", places.parts}, {"shards", places.shards}};
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
    return Error{ErrorCode::kInvalid, "job state: a checkpoint's places contradict themselves"};
  }
  return places;
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

nlohmann::json StateToJson(const JobState& state) {
  nlohmann::json workers = nlohmann::json::array();
  for (const WorkerSlot& slot : state.workers) {
    workers.push_back({{"incarnation", slot.incarnation.value()},
                       {"agent", slot.agent},
                       {"agent_name", slot.agent_name},
                       {"task", slot.task},
                       {"live", slot.live},
                       {"retry_at_ms", slot.retry_at_ms}});
  }
  nlohmann::json dead = nlohmann::json::array();
  for (const DeadWorker& worker : state.dead) {
    dead.push_back({{"worker", worker.worker.value()},
                    {"incarnation", worker.incarnation.value()},
                    {"first_clock", worker.first_clock.value()},
                    {"agent", worker.agent},
                    {"replayed", worker.replayed},
                    {"covered", worker.covered}});
  }
  nlohmann::json checkpoints = nlohmann::json::array();
  for (const CommittedCheckpoint& checkpoint : state.checkpoints) {
    nlohmann::json bases = nlohmann::json::array();
    for (const Round base : checkpoint.bases) bases.push_back(base.value());
    checkpoints.push_back({{"round", checkpoint.round.value()},
                           {"time_ms", checkpoint.time_ms},
                           {"step", checkpoint.step},
                           {"samples", checkpoint.samples},
                           {"bytes", checkpoint.bytes},
                           {"duration_ms", checkpoint.duration_ms},
                           {"directory", checkpoint.directory},
                           {"manifest_hash", checkpoint.manifest_hash},
                           {"final", checkpoint.final_round},
                           {"state_bytes", checkpoint.state_bytes},
                           {"bases", bases},
                           {"since_whole", checkpoint.since_whole},
                           {"remaining", RangesToJson(checkpoint.remaining)},
                           {"damaged", checkpoint.damaged},
                           {"pinned", checkpoint.pinned},
                           {"ordinal", checkpoint.ordinal}});
    if (!checkpoint.places.empty()) {
      checkpoints.back()["places"] = PlacesToJson(checkpoint.places);
    }
  }
  nlohmann::json json = {
      {"version", 1},
      {"id", state.id.value()},
      {"name", state.name},
      {"phase", PhaseName(state.phase)},
      {"reason", state.reason},
      {"generation", state.generation},
      {"created_ms", state.created_ms},
      {"started_ms", state.started_ms},
      {"finished_ms", state.finished_ms},
      {"live_version", state.live_version},
      {"next_incarnation", state.next_incarnation},
      {"next_round", state.next_round},
      {"restarts", state.restarts},
      {"next_event", state.next_event},
      {"workers", workers},
      {"first_clocks", state.first_clocks},
      {"dead", dead},
      {"leases", state.leases.ToJson()},
      {"checkpoints", checkpoints},
      {"start_job", state.start_job},
      {"start_round", state.start_round},
      {"start_directory", state.start_directory},
  };
  if (!state.start_places.empty()) json["start_places"] = PlacesToJson(state.start_places);
  if (state.imported) json["imported"] = true;
  if (state.result) {
    json["result"] = {{"metric", state.result->metric},
                      {"loss", state.result->loss},
                      {"records", state.result->records},
                      {"metric_name", state.result->metric_name}};
  }
  return json;
}

Result<JobState> StateFromJson(const nlohmann::json& json) {
  try {
    if (json.at("version").get<int>() != 1) {
      return Error{ErrorCode::kInvalid,
                   "job state of version " + json.at("version").dump() + ", this program reads 1"};
    }
    JobState state;
    state.id = JobId(json.at("id").get<std::uint64_t>());
    state.name = json.at("name").get<std::string>();
    const auto phase = PhaseFromName(json.at("phase").get<std::string>());
    if (!phase) return Error{ErrorCode::kInvalid, "job state: unknown phase"};
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
      slot.task = entry.at("task").get<std::uint64_t>();
      slot.live = entry.at("live").get<bool>();
      slot.retry_at_ms = entry.at("retry_at_ms").get<std::uint64_t>();
      state.workers.push_back(std::move(slot));
    }
    state.first_clocks = json.at("first_clocks").get<std::vector<std::uint64_t>>();
    if (state.first_clocks.size() != state.workers.size()) {
      return Error{ErrorCode::kInvalid, "job state: workers and their first clocks differ"};
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
      state.checkpoints.push_back(std::move(checkpoint));
    }
    state.start_job = json.at("start_job").get<std::uint64_t>();
    state.start_round = json.at("start_round").get<std::uint64_t>();
    state.start_directory = json.at("start_directory").get<std::string>();
    state.start_places = PS_TRY(PlacesFromJson(json, "start_places"));
    state.imported = json.value("imported", false);
    if (json.contains("result")) {
      const auto& result = json.at("result");
      state.result = JobResult{result.at("metric").get<double>(), result.at("loss").get<double>(),
                               result.at("records").get<std::uint64_t>(),
                               result.at("metric_name").get<std::string>()};
    }
    return state;
  } catch (const nlohmann::json::exception& e) {
    return Error{ErrorCode::kInvalid, std::string("job state: ") + e.what()};
  }
}

nlohmann::json EventsToJson(const std::deque<JobEvent>& events) {
  nlohmann::json json = nlohmann::json::array();
  for (const JobEvent& event : events) {
    json.push_back({{"seq", event.seq},
                    {"time_ms", event.time_ms},
                    {"type", event.type},
                    {"message", event.message}});
  }
  return json;
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
    return Error{ErrorCode::kInvalid, std::string("job events: ") + e.what()};
  }
}

}  // namespace ps::coordinator
