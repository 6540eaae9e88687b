#include "coordinator/core/core.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "common/error_id.h"
#include "coordinator/core/describe.h"
#include "coordinator/core/job_import.h"
#include "coordinator/core/load_sources.h"

namespace ps::coordinator {
namespace {

using control::Make;

std::string JobPath(std::uint64_t id, const char* node) {
  std::string number = std::to_string(id);
  number.insert(0, 10 - std::min<std::size_t>(number.size(), 10), '0');
  return "/jobs/" + number + (*node != '\0' ? std::string("/") + node : "");
}

std::string Text(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::span<const std::byte> Bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

Gpu GpuOf(const control::GpuInfoT& told) {
  Gpu gpu;
  gpu.uuid = told.uuid;
  gpu.name = told.name;
  gpu.memory_bytes = told.memory_bytes;
  gpu.capability = std::to_string(told.major) + "." + std::to_string(told.minor);
  gpu.trouble = told.trouble;
  if (told.measured) {
    gpu.load = Gpu::Load{told.utilization, told.memory_used, told.temperature, told.ecc_errors,
                         told.throttled};
  }
  return gpu;
}

nlohmann::json DescribeGpu(const Gpu& gpu) {
  nlohmann::json entry = {{"uuid", gpu.uuid},
                          {"name", gpu.name},
                          {"memory_bytes", gpu.memory_bytes},
                          {"capability", gpu.capability},
                          {"trouble", gpu.trouble}};
  if (gpu.load.has_value()) {
    entry["utilization"] = gpu.load->utilization_percent / 100.0;
    entry["memory_used_bytes"] = gpu.load->memory_used;
    entry["temperature_celsius"] = gpu.load->celsius;
    entry["ecc_errors"] = gpu.load->ecc_errors;
    entry["throttled"] = gpu.load->throttled;
  }
  return entry;
}

// The map node is a control message around a JobUpdate, so that one verifier serves all.
std::string MapText(std::uint64_t job, const control::MapT& map) {
  control::JobUpdateT update;
  update.job = job;
  update.map = control::ClonePtr(map);
  return Text(control::Encode(Make(std::move(update))));
}

std::string LabelText(const std::string& label) {
  return label.empty() ? "" : "with the label `" + label + "` ";
}

Error Annotated(const std::string& what, const Error& error) {
  return Annotate(error, what + ": ");
}

// A restarted daemon has the failures of its former process.
std::string BreakerName(const Member& member, bool server) {
  return (server ? "server " : "agent ") + member.name + " on " + member.host;
}

}  // namespace

Core::Core(CoreOptions options, std::uint64_t leader_epoch)
    : options_(std::move(options)), leader_epoch_(leader_epoch) {}

Status Core::Load(const std::vector<JobRecord>& records, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  settle_until_ms_ = now_ms + options_.settle_ms;
  for (const JobRecord& record : records) {
    const std::string what = "job " + std::to_string(record.id) + " in ZooKeeper";
    next_job_ = std::max(next_job_, record.id + 1);
    JobDefinition definition;
    definition.spec_json = record.spec;
    auto spec = ParseJobJson(record.spec);
    if (!spec.ok()) return Annotated(what + ", spec", spec.error());
    definition.spec = std::move(spec).value();
    auto layout = control::Decode(Bytes(record.layout));
    if (!layout.ok()) return Annotated(what + ", layout", layout.error());
    auto* preflight = layout->body.AsPreflightResult();
    if (preflight == nullptr || !preflight->layout || !preflight->data) {
      return Error{ErrorId::kZooKeeperContent, what + ", layout: of another type"};
    }
    definition.layout = std::move(*preflight->layout);
    definition.data = std::move(*preflight->data);
    definition.files_fingerprint = preflight->files_fingerprint;
    definition.shards = ChooseShardCount(definition.layout, definition.spec.resources.shards);
    const auto json = nlohmann::json::parse(record.state, nullptr, false);
    auto state = StateFromJson(json);
    if (!state.ok()) return Annotated(what, state.error());
    auto events = EventsFromJson(nlohmann::json::parse(record.events, nullptr, false));
    if (!events.ok()) return Annotated(what, events.error());
    state->events = std::move(events).value();
    auto map = control::Decode(Bytes(record.map));
    if (!map.ok()) return Annotated(what + ", map", map.error());
    auto* update = map->body.AsJobUpdate();
    if (update == nullptr || !update->map) {
      return Error{ErrorId::kZooKeeperContent, what + ", map: of another type"};
    }
    for (const auto& shard : update->map->shards) {
      if (shard->server >= update->map->servers.size()) {
        return Error{ErrorId::kZooKeeperContent, what + ", map: a shard names no server"};
      }
      for (const auto& backup : shard->backups) {
        if (backup->server >= update->map->servers.size()) {
          return Error{ErrorId::kZooKeeperContent, what + ", map: a backup names no server"};
        }
      }
    }
    jobs_[record.id] = std::make_unique<Job>(*this, std::move(definition), std::move(state).value(),
                                             std::move(*update->map), options_.job);
  }
  return Ok();
}

Status Core::LoadCluster(const std::string& text) {
  cluster_stored_ = true;
  const auto json = nlohmann::json::parse(text, nullptr, false);
  const auto duties = json.is_object() ? json.find("duties") : json.end();
  if (!json.is_object() || duties == json.end() || !duties->is_object()) {
    return Error{ErrorId::kZooKeeperContent,
                 std::string(kClusterPath) + ": has no duties of nodes"};
  }
  for (const auto& [node, name] : duties->items()) {
    const auto duty = name.is_string() ? DutyOf(name.get<std::string>()) : std::nullopt;
    if (!duty)
      return Error{ErrorId::kZooKeeperContent, std::string(kClusterPath) + ": the duty of " + node};
    duties_[node] = *duty;
  }
  return Ok();
}

// ---- members

void Core::SetServers(const std::vector<Presence>& present, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  servers_known_ = true;
  SetPresent(servers_, present, true);
}

void Core::SetAgents(const std::vector<Presence>& present, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  agents_known_ = true;
  SetPresent(agents_, present, false);
}

void Core::SetPresent(Members& members, const std::vector<Presence>& present, bool servers) {
  std::set<std::string>& nodes = servers ? server_nodes_ : agent_nodes_;
  nodes.clear();
  for (const Presence& one : present) nodes.insert(one.procid);
  if (servers) {
    std::erase_if(dead_servers_,
                  [&](const std::string& procid) { return !nodes.contains(procid); });
  }
  std::vector<std::string> gone;
  for (const auto& [procid, member] : members) {
    if (member.present && !nodes.contains(procid)) gone.push_back(procid);
  }
  for (const Presence& presence : present) {
    if (servers && dead_servers_.contains(presence.procid)) continue;
    Member& member = members[presence.procid];
    const bool was_alive = member.alive();
    member.procid = presence.procid;
    member.name = presence.name;
    member.host = presence.host;
    member.present = true;
    member.gone_ms = 0;
    ApplyDuty(member);
    if (!was_alive && member.alive()) {
      // Registered before its node was seen: it takes part from now on.
      for (auto& [id, job] : jobs_) {
        if (servers) job->OnServerReady(presence.procid);
      }
    }
  }
  for (const std::string& procid : gone) Gone(procid, servers, /*may_return=*/servers);
}

void Core::MarkServerDead(const std::string& procid, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  const auto at = servers_.find(procid);
  if (at == servers_.end()) return;
  if (server_nodes_.contains(procid)) dead_servers_.insert(procid);
  Gone(std::string(procid), true);
}

void Core::Gone(const std::string& procid, bool server, bool may_return) {
  Members& members = server ? servers_ : agents_;
  const auto member = members.find(procid);
  if (member != members.end()) {
    if (member->second.alive()) NoteFailure(member->second, server);
    const bool known = member->second.awaited();
    if (may_return) {
      member->second.present = false;
      member->second.gone_ms = std::max<std::uint64_t>(now_ms_, 1);
    } else {
      members.erase(member);
    }
    if (known) return;  // the jobs know that it is gone, and see that it is not awaited any more
  }
  for (auto& [id, job] : jobs_) {
    if (server) {
      job->OnServerGone(procid);
    } else {
      job->OnAgentGone(procid);
    }
  }
  for (auto at = submissions_.begin(); at != submissions_.end();) {
    if (at->second.agent != procid) {
      ++at;
      continue;
    }
    Fail(at->second.ticket,
         {ErrorId::kCheckInterrupted,
          "the agent that checked the job's model and data is gone; submit again"});
    at = submissions_.erase(at);
  }
}

// A daemon that died before its node was seen would otherwise stay for ever, and with it what jobs
// wait for.
void Core::DropUnannounced() {
  for (const bool servers : {true, false}) {
    std::vector<std::string> gone;
    for (const auto& [procid, member] : servers ? servers_ : agents_) {
      if (member.present) continue;
      const std::uint64_t until_ms = member.awaited() ? member.gone_ms + options_.await_ms
                                                      : member.registered_ms + options_.announce_ms;
      if (now_ms_ >= until_ms) gone.push_back(procid);
    }
    for (const std::string& procid : gone) Gone(procid, servers);
  }
}

void Core::NoteFailure(const Member& member, bool server) {
  const std::string name = BreakerName(member, server);
  if (!breaker_.Fail(name, now_ms_)) return;
  for (auto& [id, job] : jobs_) {
    if (!job->over()) job->OnUnsteady(name);
  }
  JudgeSteadiness();
}

void Core::NoteTaskFailure(const std::string& agent) {
  const auto at = agents_.find(agent);
  if (at != agents_.end()) NoteFailure(at->second, false);
}

bool Core::IsUnsteady(const Member& member, bool server) const {
  return breaker_.UnsteadyUntil(BreakerName(member, server), now_ms_) != 0;
}

void Core::ApplyDuty(Member& member) const {
  const auto at = duties_.find(member.name);
  member.duty = at != duties_.end() ? at->second : Duty::kFull;
}

void Core::SetDuty(Ticket ticket, const std::string& node, Duty duty, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  bool known = duties_.contains(node);
  for (Members* members : {&servers_, &agents_}) {
    for (const auto& [procid, member] : *members) known = known || member.name == node;
  }
  if (!known) return Fail(ticket, {ErrorId::kNodeUnknown, "there is no node " + node});
  if (duty == Duty::kFull) {
    duties_.erase(node);
  } else {
    duties_[node] = duty;
  }
  nlohmann::json duties = nlohmann::json::object();
  for (const auto& [name, given] : duties_) duties[name] = DutyName(given);
  new_nodes_.push_back({kClusterPath, nlohmann::json{{"duties", std::move(duties)}}.dump(),
                        !std::exchange(cluster_stored_, true)});
  for (Members* members : {&servers_, &agents_}) {
    for (auto& [procid, member] : *members) ApplyDuty(member);
  }
  nlohmann::json nodes = nlohmann::json::array();
  const nlohmann::json all = DescribeNodes();
  for (const nlohmann::json& one : all.at("nodes")) {
    if (one.at("name") == node) nodes.push_back(one);
  }
  answers_.push_back({ticket, nlohmann::json{{"nodes", std::move(nodes)}}, false});
}

// As node lists show it.
std::string Core::StateOf(const Member& member, bool server) const {
  if (member.awaited()) return "gone";
  if (!member.alive()) return member.present ? "registering" : "announcing";
  if (member.duty == Duty::kCordoned) return "cordoned";
  if (member.duty == Duty::kDraining) {
    const bool needed = std::any_of(jobs_.begin(), jobs_.end(), [&](const auto& entry) {
      return server ? entry.second->CopiesOn(member.procid) > 0
                    : entry.second->NeedsAgent(member.procid);
    });
    return needed ? "draining" : "drained";
  }
  return member.unsteady ? "unsteady" : "ready";
}

void Core::JudgeSteadiness() {
  for (const bool servers : {true, false}) {
    for (auto& [procid, member] : servers ? servers_ : agents_) {
      member.unsteady = IsUnsteady(member, servers);
    }
  }
}

// A daemon of the same name that registers anew means that its former process is dead.
void Core::ReplaceNamesake(Members& members, const Member& member, bool server) {
  std::vector<std::string> former;
  for (const auto& [procid, other] : members) {
    if (procid != member.procid && other.name == member.name && other.host == member.host) {
      former.push_back(procid);
    }
  }
  for (const std::string& procid : former) Gone(procid, server);
}

// What servers and agents tell of themselves alike.
template <typename MessageT>
Member& Core::Introduce(const std::string& procid, const MessageT& message, bool server) {
  Member& member = (server ? servers_ : agents_)[procid];
  member.procid = procid;
  member.name = message.name;
  member.host = message.host;
  member.version = message.version;
  member.registered = true;
  member.registered_ms = now_ms_;
  member.present = (server ? server_nodes_ : agent_nodes_).contains(procid);
  member.unsteady = IsUnsteady(member, server);
  ApplyDuty(member);
  control::WelcomeT welcome;
  welcome.leader_epoch = leader_epoch_;
  welcome.coordinator = options_.id;
  welcome.heartbeat_ms = static_cast<std::uint32_t>(options_.heartbeat_ms);
  Send(procid, Make(std::move(welcome)));
  return member;
}

void Core::RegisterServer(const std::string& procid, const control::RegisterServerT& message) {
  dead_servers_.erase(procid);  // alive after all
  Member& member = Introduce(procid, message, true);
  member.lanes = message.lanes;
  member.store = message.store;
  member.files = message.files;
  member.rack = message.rack;
  ReplaceNamesake(servers_, member, true);
  for (const auto& held : message.jobs) {
    if (!jobs_.contains(held->job)) {
      control::JobDropT drop;
      drop.job = held->job;
      Send(procid, Make(std::move(drop)));
    }
  }
  for (auto& [id, job] : jobs_) {
    const bool holds = std::any_of(message.jobs.begin(), message.jobs.end(),
                                   [job_id = id](const auto& held) { return held->job == job_id; });
    if (!job->over() || holds || job->HasLeftovers()) job->OnServerReady(procid);
  }
}

void Core::RegisterAgent(const std::string& procid, const control::RegisterAgentT& message) {
  Member& member = Introduce(procid, message, false);
  member.slots = message.slots;
  member.label = message.label;
  member.gpus.clear();
  for (const auto& gpu : message.gpus) {
    if (member.gpus.size() < static_cast<std::size_t>(kGpusMax)) {
      member.gpus.push_back(GpuOf(*gpu));
    }
  }
  member.gpu_topology =
      GpuTopology::Of(static_cast<std::uint32_t>(member.gpus.size()), message.gpu_bandwidth);
  for (const auto& ring : message.rings) {
    if (jobs_.contains(ring->job)) continue;
    control::DropRingT drop;
    drop.job = ring->job;
    drop.worker = ring->worker;
    drop.incarnation = ring->incarnation;
    Send(procid, Make(std::move(drop)));
  }
  for (auto& [id, job] : jobs_) job->OnAgentReady(procid, message);
  LeaveSickGpus(member);
  ReplaceNamesake(agents_, member, false);
}

void Core::OnGpuReport(Member& agent, const control::GpuReportT& report) {
  for (const auto& told : report.gpus) {
    const auto known = std::find_if(agent.gpus.begin(), agent.gpus.end(),
                                    [&](const Gpu& gpu) { return gpu.uuid == told->uuid; });
    if (known != agent.gpus.end()) *known = GpuOf(*told);
  }
  if (report.gpu_bandwidth.size() == agent.gpus.size() * agent.gpus.size()) {
    agent.gpu_topology =
        GpuTopology::Of(static_cast<std::uint32_t>(agent.gpus.size()), report.gpu_bandwidth);
  }
  LeaveSickGpus(agent);
}

void Core::LeaveSickGpus(const Member& agent) {
  for (const Gpu& gpu : agent.gpus) {
    if (gpu.trouble.empty()) continue;
    for (auto& [id, job] : jobs_) job->LeaveGpu(agent, gpu);
  }
}

void Core::OnMessage(const std::string& procid, control::MessageT message, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  switch (message.body.type) {
    case control::Body::RegisterServer:
      if (message.body.AsRegisterServer()->procid == procid) {
        RegisterServer(procid, *message.body.AsRegisterServer());
      }
      return;
    case control::Body::RegisterAgent:
      if (message.body.AsRegisterAgent()->procid == procid) {
        RegisterAgent(procid, *message.body.AsRegisterAgent());
      }
      return;
    case control::Body::Pong: return;
    default: break;
  }
  const auto server = servers_.find(procid);
  if (server != servers_.end() && server->second.registered) {
    std::uint64_t job = 0;
    switch (message.body.type) {
      case control::Body::ServerReport: job = message.body.AsServerReport()->job; break;
      case control::Body::RestoreFailed: job = message.body.AsRestoreFailed()->job; break;
      case control::Body::Prepared: job = message.body.AsPrepared()->job; break;
      case control::Body::PrepareFailed: job = message.body.AsPrepareFailed()->job; break;
      case control::Body::PartCopied: job = message.body.AsPartCopied()->job; break;
      case control::Body::PartCopyFailed: job = message.body.AsPartCopyFailed()->job; break;
      case control::Body::ManifestWritten: job = message.body.AsManifestWritten()->job; break;
      case control::Body::PartDamaged: job = message.body.AsPartDamaged()->job; break;
      case control::Body::PartRepaired: job = message.body.AsPartRepaired()->job; break;
      default: return;
    }
    const auto at = jobs_.find(job);
    if (at != jobs_.end()) at->second->OnServerMessage(procid, message);
    return;
  }
  const auto agent = agents_.find(procid);
  if (agent == agents_.end() || !agent->second.registered) return;
  switch (message.body.type) {
    case control::Body::PreflightResult:
      OnPreflightResult(*message.body.AsPreflightResult());
      return;
    case control::Body::GpuReport: OnGpuReport(agent->second, *message.body.AsGpuReport()); return;
    case control::Body::LogChunk: {
      auto& chunk = *message.body.AsLogChunk();
      const auto at = log_requests_.find(chunk.request);
      if (at == log_requests_.end()) return;
      if (!chunk.error.empty()) {
        Fail(at->second.ticket, {ErrorId::kNoLog, chunk.error});
      } else {
        answers_.push_back({at->second.ticket,
                            nlohmann::json{{"worker", chunk.worker},
                                           {"text", chunk.text},
                                           {"offset", chunk.offset},
                                           {"end", chunk.end}},
                            false});
      }
      log_requests_.erase(at);
      return;
    }
    default: break;
  }
  std::uint64_t job = message.task >> 32;
  if (message.body.type == control::Body::TaskExited) job = message.body.AsTaskExited()->job;
  if (message.body.type == control::Body::ReplayDone) job = message.body.AsReplayDone()->job;
  const auto at = jobs_.find(job);
  if (at != jobs_.end()) at->second->OnAgentMessage(procid, message);
}

std::uint32_t Core::FreeSlots(const std::string& agent) const {
  const auto at = agents_.find(agent);
  if (at == agents_.end()) return 0;
  std::uint32_t used = 0;
  for (const auto& [id, job] : jobs_) used += job->TasksOn(agent);
  return at->second.slots > used ? at->second.slots - used : 0;
}

GpuMask Core::FreeGpus(const std::string& agent) const {
  const auto at = agents_.find(agent);
  if (at == agents_.end() || at->second.gpus.empty()) return 0;
  std::set<std::string> taken;
  for (const auto& [id, job] : jobs_) job->AddGpusOn(agent, taken);
  GpuMask free = 0;
  for (std::size_t i = 0; i < at->second.gpus.size(); ++i) {
    const Gpu& gpu = at->second.gpus[i];
    if (gpu.trouble.empty() && !taken.contains(gpu.uuid)) free |= GpuMask{1} << i;
  }
  return free;
}

std::set<Round> Core::RoundsHeldOf(JobId job) const {
  std::set<Round> held;
  for (const auto& [id, other] : jobs_) {
    const JobState& state = other->state();
    if (state.start_round != 0 && state.start_job == job.value() && !other->over() &&
        state.checkpoints.empty()) {
      held.insert(Round(state.start_round));
    }
    if (!other->over() && state.checkpoints.empty()) {
      held.merge(RoundsLoaded(other->definition().spec, job));
    }
  }
  return held;
}

void Core::Send(const std::string& procid, control::MessageT message) {
  message.leader_epoch = leader_epoch_;
  sends_.push_back({procid, control::Encode(message)});
}

void Core::Tick(std::uint64_t now_ms) {
  now_ms_ = now_ms;
  if (now_ms >= next_ping_ms_) {
    next_ping_ms_ = now_ms + options_.heartbeat_ms;
    for (const Members* members : {&servers_, &agents_}) {
      for (const auto& [procid, member] : *members) {
        if (!member.registered) continue;
        control::PingT ping;
        ping.sent_ms = now_ms;
        Send(procid, Make(std::move(ping)));
      }
    }
  }
  for (auto at = submissions_.begin(); at != submissions_.end();) {
    if (now_ms < at->second.deadline_ms) {
      ++at;
      continue;
    }
    Fail(at->second.ticket,
         {ErrorId::kCheckTimeout, "the check of the job's model and data did not end within " +
                                      std::to_string(options_.preflight_ms / 1000) +
                                      " s on agent " + at->second.agent});
    at = submissions_.erase(at);
  }
  for (auto at = log_requests_.begin(); at != log_requests_.end();) {
    if (now_ms < at->second.deadline_ms) {
      ++at;
      continue;
    }
    Fail(at->second.ticket, {ErrorId::kAgentSilent, "the agent does not answer"});
    at = log_requests_.erase(at);
  }
  if (!servers_known_ || !agents_known_) return;
  DropUnannounced();
  JudgeSteadiness();
  if (!settled_) {
    if (now_ms < settle_until_ms_) return;
    settled_ = true;
    // Who was known to a former leader and is not here any more.
    for (auto& [id, job] : jobs_) {
      if (job->over()) continue;
      std::vector<std::string> agents;
      for (const WorkerSlot& worker : job->state().workers) agents.push_back(worker.agent);
      for (const DeadWorker& dead : job->state().dead) agents.push_back(dead.agent);
      for (const std::string& agent : agents) {
        if (!agent.empty() && !agents_.contains(agent)) job->OnAgentGone(agent);
      }
    }
  }
  for (auto& [id, job] : jobs_) job->Tick();
}

// ---- operators

void Core::Fail(Ticket ticket, Error error) {
  answers_.push_back({ticket, std::move(error), false});
}

bool Core::AnswerRepeated(Ticket ticket, const SubmitOrder& order, const JobSpec& spec) {
  if (order.dry_run || order.origin.request.empty()) return false;
  const auto is_ours = [&](const JobOrigin& origin) {
    return origin.request == order.origin.request && origin.owner == order.origin.owner;
  };
  for (const auto& [id, job] : jobs_) {
    if (!is_ours(job->state().origin)) continue;
    if (job->state().name == spec.name) {
      answers_.push_back({ticket, nlohmann::json{{"job", job->Describe()}}, false});
    } else {
      Fail(ticket,
           {ErrorCode::kConflict, "request " + order.origin.request +
                                      " was for another job, number " + std::to_string(id)});
    }
    return true;
  }
  for (auto& [request, submission] : submissions_) {
    if (submission.dry_run || !is_ours(submission.origin)) continue;
    // Whoever asked first is not there any more, or would not ask again.
    Fail(std::exchange(submission.ticket, ticket),
         {ErrorCode::kUnreachable, "the request was sent again, and that one is answered"});
    return true;
  }
  return false;
}

void Core::Submit(Ticket ticket, SubmitOrder order, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  auto spec = ParseJobJson(order.spec_json);
  if (!spec.ok()) return Fail(ticket, spec.error());
  if (AnswerRepeated(ticket, order, *spec)) return;
  if (!spec->checkpoint.from.empty()) {
    const std::string& from = spec->checkpoint.from;
    const Job* source = Find(from.substr(0, from.find('@')));
    if (source == nullptr) {
      return Fail(ticket,
                  {ErrorId::kLoadSourceMissing, "checkpoint.from: there is no job " + from});
    }
    if (source->state().checkpoints.empty()) {
      return Fail(ticket, {ErrorId::kLoadSourceMissing,
                           "checkpoint.from: job " + from + " has no checkpoint"});
    }
  }
  const Status pinned = PinLoadSources(*spec, [this](const std::string& job) { return Find(job); });
  if (!pinned.ok()) return Fail(ticket, pinned.error());
  // Where there is what the job wants, else where its model and data can be looked at.
  const auto fitness = [&](const Member& agent) {
    const bool has_gpus = agent.well_gpus() >= spec->resources.gpus;
    return std::pair(has_gpus, FreeSlots(agent.procid));
  };
  const Member* chosen = nullptr;
  for (const auto& [procid, agent] : agents_) {
    if (agent.alive() && agent.label == spec->resources.label &&
        (chosen == nullptr || fitness(agent) > fitness(*chosen))) {
      chosen = &agent;
    }
  }
  if (chosen == nullptr) {
    return Fail(ticket, {ErrorId::kNoAgentForCheck,
                         "no ps-worker agent " + LabelText(spec->resources.label) +
                             "is registered with coordinator " + options_.id +
                             ", so the job's model and data cannot be checked"});
  }
  Submission submission;
  submission.ticket = ticket;
  submission.spec_json = ResolvedJson(*spec);
  submission.spec = std::move(spec).value();
  submission.dry_run = order.dry_run;
  submission.origin = std::move(order.origin);
  submission.agent = chosen->procid;
  submission.deadline_ms = now_ms + options_.preflight_ms;
  const std::uint64_t request = next_request_++;
  control::PreflightT preflight;
  preflight.request = request;
  preflight.spec_json = submission.spec_json;
  submissions_[request] = std::move(submission);
  Send(chosen->procid, Make(std::move(preflight)));
}

void Core::OnPreflightResult(const control::PreflightResultT& result) {
  const auto at = submissions_.find(result.request);
  if (at == submissions_.end()) return;
  Submission submission = std::move(at->second);
  submissions_.erase(at);
  if (!result.ok) {
    Error error{ErrorCode::kInvalid, result.error};
    if (result.error_id != 0) error.id = static_cast<ErrorId>(result.error_id);
    return Fail(submission.ticket, std::move(error));
  }
  if (!result.layout || !result.data || result.data->records == 0) {
    return Fail(submission.ticket,
                {ErrorId::kDataDisagree, "the check of the job found no model or no records"});
  }
  JobDefinition definition;
  definition.spec = submission.spec;
  definition.spec_json = submission.spec_json;
  definition.layout = control::Clone(*result.layout);
  definition.data = control::Clone(*result.data);
  definition.files_fingerprint = result.files_fingerprint;
  definition.shards = ChooseShardCount(definition.layout, definition.spec.resources.shards);
  auto view = LayoutView::Create(definition.layout, definition.shards);
  if (!view.ok()) return Fail(submission.ticket, Annotate(view.error(), "model layout: "));
  const auto loads = CheckLoadSources(submission.spec, result,
                                      [this](const std::string& job) { return Find(job); });
  if (!loads.ok()) return Fail(submission.ticket, loads.error());
  if (submission.dry_run) {
    nlohmann::json body = {{"spec", nlohmann::json::parse(submission.spec_json, nullptr, false)},
                           {"parameters", definition.layout.parameters},
                           {"blocks", definition.layout.blocks},
                           {"shards", definition.shards},
                           {"records", definition.data.records},
                           {"test_records", definition.data.test_records}};
    answers_.push_back({submission.ticket, std::move(body), false});
    return;
  }
  Round from_round;
  JobId from_job;
  std::string from_directory;
  PartPlaces from_places;
  const std::string& from = submission.spec.checkpoint.from;
  if (!from.empty()) {
    const Job* source = Find(from.substr(0, from.find('@')));
    const CommittedCheckpoint* found = nullptr;
    if (source != nullptr) {
      const std::size_t sign = from.find('@');
      for (const CommittedCheckpoint& checkpoint : source->state().checkpoints) {
        if (sign == std::string::npos ||
            std::to_string(checkpoint.round.value()) == from.substr(sign + 1)) {
          found = &checkpoint;
        }
      }
    }
    if (found == nullptr) {
      return Fail(submission.ticket,
                  {ErrorId::kLoadSourceMissing, "checkpoint.from: there is no checkpoint " + from});
    }
    if (source->definition().layout.fingerprint != definition.layout.fingerprint ||
        source->definition().shards != definition.shards) {
      return Fail(submission.ticket,
                  {ErrorId::kFromOtherModel, "checkpoint.from: the model of job " + from +
                                                 " has other tensors or shards than this one"});
    }
    from_round = found->round;
    from_job = source->id();
    from_directory = found->directory;
    from_places = found->places;
  }
  auto job = std::make_unique<Job>(*this, std::move(definition), JobId(next_job_++), options_.job);
  job->SetOrigin(std::move(submission.origin));
  if (from_round.value() != 0) {
    job->StartFrom(from_job, from_round, from_directory, std::move(from_places));
  }
  for (const std::string& what : *loads) job->TellStart(what);
  AddJob(submission.ticket, std::move(job), control::Clone(result));
}

void Core::AddJob(Ticket ticket, std::unique_ptr<Job> job, control::PreflightResultT layout) {
  const std::uint64_t id = job->id().value();
  new_nodes_.push_back({JobPath(id, ""), "", true});
  new_nodes_.push_back({JobPath(id, "spec"), job->definition().spec_json, true});
  new_nodes_.push_back(
      {JobPath(id, "layout"), Text(control::Encode(Make(std::move(layout)))), true});
  new_nodes_.push_back({JobPath(id, "state"), StateToJson(job->state()), true});
  new_nodes_.push_back({JobPath(id, "events"), EventsToJson(job->state().events), true});
  new_nodes_.push_back({JobPath(id, "map"), MapText(id, job->map()), true});
  (void)job->TakeDirty();
  answers_.push_back({ticket, nlohmann::json{{"job", job->Describe()}}, true});
  jobs_[id] = std::move(job);
}

void Core::Import(Ticket ticket, ImportOrder order, const std::string& name,
                  const std::string& owner, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  if (order.endpoint.rfind("tcp://", 0) != 0) {
    return Fail(ticket, {ErrorId::kRequestBody, "`" + order.endpoint + "` is no endpoint"});
  }
  auto manifest = checkpoint::FromJson(order.manifest);
  if (!manifest.ok()) return Fail(ticket, Annotate(manifest.error(), "the manifest: "));
  const bool served = std::any_of(servers_.begin(), servers_.end(), [](const auto& entry) {
    return entry.second.alive() && !entry.second.store.empty() && !entry.second.files.empty();
  });
  if (!served) {
    return Fail(ticket,
                {ErrorId::kNoServer, "no ps-server is registered that could take the checkpoint"});
  }
  auto definition = DefinitionOfImport(*manifest, name);
  if (!definition.ok()) return Fail(ticket, definition.error());
  control::PreflightResultT layout;
  layout.ok = true;
  layout.layout = control::ClonePtr(definition->layout);
  layout.data = control::ClonePtr(definition->data);
  auto job = std::make_unique<Job>(*this, std::move(*definition), JobId(next_job_++), options_.job,
                                   std::move(order), std::move(*manifest));
  job->SetOrigin({.owner = owner});
  AddJob(ticket, std::move(job), std::move(layout));
}

void Core::Cancel(Ticket ticket, const std::string& name, const std::string& reason,
                  std::uint64_t now_ms) {
  now_ms_ = now_ms;
  Job* const job = FindFor(ticket, name);
  if (job == nullptr) return;
  if (job->over()) {
    return Fail(ticket, {ErrorId::kJobOver,
                         "job " + name + " is over: it has " + PhaseName(job->state().phase)});
  }
  job->Cancel(reason);
  AnswerWithJob(ticket, *job, Ok());
}

void Core::Suspend(Ticket ticket, const std::string& name, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  Job* const job = FindFor(ticket, name);
  if (job != nullptr) AnswerWithJob(ticket, *job, job->Suspend());
}

void Core::Resume(Ticket ticket, const std::string& name, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  Job* const job = FindFor(ticket, name);
  if (job != nullptr) AnswerWithJob(ticket, *job, job->Resume());
}

void Core::Scale(Ticket ticket, const std::string& name, std::uint64_t workers, bool dry_run,
                 std::uint64_t now_ms) {
  now_ms_ = now_ms;
  Job* const job = FindFor(ticket, name);
  if (job == nullptr) return;
  auto scaled = job->Scale(workers, dry_run);
  if (!scaled.ok()) return Fail(ticket, scaled.error());
  answers_.push_back(
      {ticket, nlohmann::json{{"job", job->Describe()}, {"scale", *std::move(scaled)}}, false});
}

void Core::AnswerWithJob(Ticket ticket, const Job& job, const Status& done) {
  if (!done.ok()) return Fail(ticket, done.error());
  answers_.push_back({ticket, nlohmann::json{{"job", job.Describe()}}, false});
}

void Core::Rebalance(Ticket ticket, const std::string& name, bool dry_run, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  Job* const job = FindFor(ticket, name);
  if (job == nullptr) return;
  if (job->state().phase != Phase::kRunning) {
    return Fail(ticket, {job->over() ? ErrorId::kJobOver : ErrorId::kJobNotTraining,
                         "job " + name + " does not run: it is " + PhaseName(job->state().phase)});
  }
  answers_.push_back({ticket, nlohmann::json{{"moves", job->Rebalance(dry_run)}}, false});
}

Job* Core::FindFor(Ticket ticket, const std::string& name) {
  Job* const job = Find(name);
  if (job == nullptr) Fail(ticket, {ErrorId::kJobUnknown, "there is no job " + name});
  return job;
}

void Core::PinCheckpoint(Ticket ticket, const std::string& name, Round round, bool pinned,
                         std::uint64_t now_ms) {
  now_ms_ = now_ms;
  Job* const job = FindFor(ticket, name);
  if (job != nullptr) answers_.push_back({ticket, job->PinCheckpoint(round, pinned), false});
}

void Core::PruneCheckpoints(Ticket ticket, const std::string& name, std::optional<std::size_t> keep,
                            bool all, bool dry_run, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  if (keep && (*keep < 1 || *keep > kCheckpointsMax)) {
    return Fail(ticket,
                {ErrorId::kOptionValue, "`keep` must be 1 to " + std::to_string(kCheckpointsMax)});
  }
  Job* const job = FindFor(ticket, name);
  if (job != nullptr) {
    answers_.push_back({ticket, job->PruneCheckpoints(keep, all, dry_run), false});
  }
}

void Core::RollBack(Ticket ticket, const std::string& name, Round round, bool confirmed,
                    std::uint64_t now_ms) {
  now_ms_ = now_ms;
  Job* const job = FindFor(ticket, name);
  if (job != nullptr) answers_.push_back({ticket, job->RollBack(round, confirmed), false});
}

void Core::ReadLog(Ticket ticket, const std::string& name, std::uint32_t worker,
                   std::uint64_t offset, std::uint32_t limit, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  const Job* const job = FindFor(ticket, name);
  if (job == nullptr) return;
  if (worker >= job->state().workers.size()) {
    return Fail(ticket,
                {ErrorId::kWorkerUnknown, "job " + name + " has workers 0 to " +
                                              std::to_string(job->state().workers.size() - 1)});
  }
  const WorkerSlot& slot = job->state().workers[worker];
  std::string procid = slot.agent;
  for (const auto& [id, agent] : agents_) {
    if (agent.alive() && (procid.empty() || !agents_.contains(procid)) &&
        agent.name == slot.agent_name) {
      procid = id;
    }
  }
  if (procid.empty() || !agents_.contains(procid)) {
    return Fail(ticket, {ErrorId::kNoLog, "worker " + std::to_string(worker) + " of job " + name +
                                              " has no agent now that could read its log"});
  }
  const std::uint64_t request = next_request_++;
  log_requests_[request] = {ticket, procid, now_ms + 10'000};
  control::LogReadT read;
  read.request = request;
  read.job = job->id().value();
  read.worker = worker;
  read.offset = offset;
  read.limit = limit;
  Send(procid, Make(std::move(read)));
}

const Job* Core::Find(const std::string& name_or_id) const {
  const Job* found = nullptr;
  for (const auto& [id, job] : jobs_) {
    if (job->state().name == name_or_id) found = job.get();  // the newest of that name
  }
  if (found != nullptr) return found;
  for (const auto& [id, job] : jobs_) {
    if (std::to_string(id) == name_or_id) return job.get();
  }
  return nullptr;
}

Job* Core::Find(const std::string& name_or_id) {
  return const_cast<Job*>(std::as_const(*this).Find(name_or_id));
}

std::optional<std::string> Core::OwnerOf(const std::string& name) const {
  const Job* job = Find(name);
  return job == nullptr ? std::nullopt : std::optional(job->state().origin.owner);
}

Result<nlohmann::json> Core::DescribeJob(const std::string& name) const {
  const Job* job = Find(name);
  if (job == nullptr) return Error{ErrorId::kJobUnknown, "there is no job " + name};
  nlohmann::json body = job->Describe();
  body["spec"] = nlohmann::json::parse(job->definition().spec_json, nullptr, false);
  return nlohmann::json{{"job", std::move(body)}};
}

nlohmann::json Core::DescribeJobs() const {
  nlohmann::json list = nlohmann::json::array();
  for (const auto& [id, job] : jobs_) list.push_back(job->Describe());
  return {{"jobs", std::move(list)}};
}

Result<nlohmann::json> Core::DescribeEvents(const std::string& name, std::uint64_t after) const {
  const Job* job = Find(name);
  if (job == nullptr) return Error{ErrorId::kJobUnknown, "there is no job " + name};
  nlohmann::json list = nlohmann::json::array();
  for (const JobEvent& event : job->state().events) {
    if (event.seq <= after) continue;
    list.push_back({{"seq", event.seq},
                    {"time", TimeText(event.time_ms)},
                    {"type", event.type},
                    {"message", event.message}});
  }
  return nlohmann::json{{"events", std::move(list)}};
}

Result<nlohmann::json> Core::DescribeCheckpoints(const std::string& name) const {
  const Job* job = Find(name);
  if (job == nullptr) return Error{ErrorId::kJobUnknown, "there is no job " + name};
  return nlohmann::json{{"checkpoints", job->DescribeCheckpoints()}};
}

std::vector<nlohmann::json> Core::DescribeOpenJobs() const {
  std::vector<nlohmann::json> open;
  for (const auto& [id, job] : jobs_) {
    if (!job->over()) open.push_back(job->Describe());
  }
  return open;
}

nlohmann::json Core::DescribeNodes() const {
  nlohmann::json list = nlohmann::json::array();
  const auto add = [&](const Members& members, bool server) {
    for (const auto& [procid, member] : members) {
      nlohmann::json jobs = nlohmann::json::array();
      for (const auto& [id, job] : jobs_) {
        if (job->over()) continue;
        if (server ? job->CopiesOn(procid) > 0 : job->NeedsAgent(procid)) {
          jobs.push_back(job->state().name);
        }
      }
      nlohmann::json entry = {{"name", member.name},       {"kind", server ? "server" : "worker"},
                              {"procid", procid},          {"host", member.host},
                              {"version", member.version}, {"state", StateOf(member, server)},
                              {"jobs", std::move(jobs)},   {"leader", false}};
      if (server) {
        entry["lanes"] = member.lanes;
        entry["store"] = member.store;
        entry["files"] = member.files;
        entry["rack"] = member.rack;
        std::size_t copies = 0;
        for (const auto& [id, job] : jobs_) copies += job->CopiesOn(procid);
        entry["shards"] = copies;
      } else {
        entry["slots"] = member.slots;
        entry["free_slots"] = FreeSlots(procid);
        entry["label"] = member.label;
        nlohmann::json gpus = nlohmann::json::array();
        for (const Gpu& gpu : member.gpus) {
          gpus.push_back(DescribeGpu(gpu));
        }
        entry["gpus"] = std::move(gpus);
        entry["free_gpus"] = std::popcount(FreeGpus(procid));
      }
      list.push_back(std::move(entry));
    }
  };
  add(servers_, true);
  add(agents_, false);
  return {{"nodes", std::move(list)}};
}

// ---- output

Output Core::TakeOutput(bool with_lazy) {
  Output output;
  output.writes = std::exchange(new_nodes_, {});
  for (auto& [id, job] : jobs_) {
    const Job::Dirty dirty = job->TakeDirty();
    if (dirty.lazy && !dirty.state) {
      output.lazy = true;
      if (!with_lazy) {
        job->MarkLazy();
        continue;
      }
    }
    if (dirty.map) output.writes.push_back({JobPath(id, "map"), MapText(id, job->map()), false});
    if (dirty.events) {
      output.writes.push_back({JobPath(id, "events"), EventsToJson(job->state().events), false});
    }
    if (dirty.state || dirty.lazy) {
      output.writes.push_back({JobPath(id, "state"), StateToJson(job->state()), false});
    }
  }
  output.sends = std::exchange(sends_, {});
  output.answers = std::exchange(answers_, {});
  return output;
}

}  // namespace ps::coordinator
