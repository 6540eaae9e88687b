#include "ps-server/shell/server.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "checkpoint/part_directory.h"
#include "checkpoint/round_path.h"
#include "common/check.h"
#include "common/job/job_spec.h"
#include "common/net/metric_families.h"
#include "common/net/zmq_socket.h"
#include "common/unguessable.h"
#include "ps-server/core/lane_map.h"
#include "ps-server/core/shard_load.h"

namespace ps::server {
namespace {

// Rounds that wait for the disk: of different jobs, as a job has one open round.
constexpr std::size_t kCheckpointTasksMax = 1024;
// Pushes come first where no core is idle: the threads that write get a third of another's share.
constexpr int kCheckpointNice = 5;
// Shards that wait to be read, of all jobs.
constexpr std::size_t kRestoreTasksMax = std::size_t{64} * kMaxShards;
// One for each lane, but no more than keep a disk busy.
constexpr std::uint32_t kRestoreThreadsMax = 4;
// A checkpoint that cannot be opened may be on a file system that is not quite there yet.
constexpr int kRestoreAttempts = 3;
constexpr std::chrono::milliseconds kRestoreRetryWait{500};

// To ask again would not help.
bool IsDamage(const Error& error) {
  return error.code == ErrorCode::kInvalid || error.code == ErrorCode::kNotFound;
}

std::string HostName() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) return "unknown";
  return name.data();
}

}  // namespace

struct Server::Job {
  struct OpenRound {
    Round round;
    std::string directory;
    std::vector<bool> frozen;  // by lane
    std::vector<FrozenShard> shards;
    bool writing = false;
    Round base;  // that its images may build on
  };

  JobId id;
  std::string name;
  LayoutView layout;
  JobRules rules;
  std::uint64_t token = 0;
  std::uint32_t shards = 0;
  std::uint64_t map_version = 0;
  std::uint64_t asked = 0;       // of the newest ReportWanted
  std::map<ShardId, Epoch> own;  // under that map
  std::string restore;           // the round that restore_round of the map's entries means
  std::uint64_t restore_job = 0;
  std::vector<PartSource> sources;        // that have it, or may
  std::shared_ptr<const LoadOrder> load;  // null: nothing is loaded of other jobs
  std::optional<OpenRound> round;
  // Restores that failed, until the map takes the shard away: told again to each new leader.
  std::map<ShardId, control::RestoreFailedT> failed;
};

// ---- start and end

Server::Server(Private, net::Loop& loop, net::Context& context, ServerConfig config)
    : loop_(loop),
      context_(context),
      config_(std::move(config)),
      row_hash_seed_(UnguessableNumber()),
      report_timer_(loop),
      alive_(std::make_shared<int>(0)),
      store_(config_.checkpoint_dir, config_.procid) {}

Server::~Server() {
  alive_.reset();
  report_timer_.Cancel();
}

Result<std::unique_ptr<Server>> Server::Start(net::Loop& loop, net::Context& context,
                                              ServerConfig config) {
  std::string store = PS_TRY(PrepareCheckpointRoot(config.checkpoint_dir));
  auto server = std::make_unique<Server>(Private(), loop, context, std::move(config));
  server->store_id_ = std::move(store);
  server->checkpoint_thread_ =
      std::make_unique<TaskThread>(kCheckpointTasksMax, "checkpoint", kCheckpointNice);
  server->copy_thread_ = std::make_unique<TaskThread>(kCheckpointTasksMax, "copy", kCheckpointNice);
  const std::uint32_t restoring =
      std::clamp<std::uint32_t>(server->config_.lanes, 1, kRestoreThreadsMax);
  for (std::uint32_t i = 0; i < restoring; ++i) {
    const auto make_reader = [raw = server.get()] {
      return std::make_unique<RestoreReader>(raw->config_.checkpoint_dir, raw->store_id_,
                                             raw->context_);
    };
    server->restore_readers_.push_back(make_reader());
    server->source_loaders_.push_back(std::make_unique<SourceLoader>(make_reader));
  }
  for (std::uint32_t i = 0; i < restoring; ++i) {
    server->restore_threads_.push_back(std::make_unique<TaskThread>(kRestoreTasksMax, "restore"));
  }
  PS_TRY(server->StartFileService());
  PS_TRY(server->StartLanes());
  PS_TRY(server->StartAdmin());
  Server* const raw = server.get();
  server->control_ =
      std::make_unique<net::ControlClient>(loop, context, [raw] { return raw->Registration(); });
  server->control_->OnMessage(
      [raw](control::MessageT message) { raw->OnMessage(std::move(message)); });
  server->report_timer_.Every(server->config_.report_interval, [raw] { raw->Report(); });
  if (raw->config_.scrub_bytes_per_second > 0) {
    ScrubOptions scrub;
    scrub.root = raw->config_.checkpoint_dir;
    scrub.bytes_per_second = raw->config_.scrub_bytes_per_second;
    server->scrubber_ = std::make_unique<Scrubber>(scrub, [raw](const DamagedPart& damaged) {
      raw->PostToLoop([raw, damaged] { raw->OnDamagedPart(damaged); });
    });
  }
  return server;
}

std::string Server::BindAnyPort() const {
  const bool ipv6 = config_.bind.find(':') != std::string::npos;
  return "tcp://" + (ipv6 ? "[" + config_.bind + "]" : config_.bind) + ":*";
}

Status Server::StartFileService() {
  files_ = PS_TRY(checkpoint::FileService::Start(context_, config_.checkpoint_dir, BindAnyPort()));
  const std::string host = config_.advertise.empty() ? config_.bind : config_.advertise;
  files_endpoint_ = net::EndpointWithHost(files_->endpoint(), host);
  return Ok();
}

Status Server::StartLanes() {
  const std::string host = config_.advertise.empty() ? config_.bind : config_.advertise;
  for (std::uint32_t number = 0; number < config_.lanes; ++number) {
    LaneOptions options;
    options.bind = BindAnyPort();
    options.number = number;
    options.row_hash_seed = row_hash_seed_;
    options.image_rate = config_.copy_rate / config_.lanes;
    auto lane = PS_TRY(Lane::Start(context_, options, [this, number](LaneEvent event) {
      // Shared, as what is posted must be copyable and a frozen shard is not.
      auto shared = std::make_shared<LaneEvent>(std::move(event));
      PostToLoop([this, number, shared] { OnLaneEvent(number, std::move(*shared)); });
    }));
    lane_endpoints_.push_back(net::EndpointWithHost(lane->endpoint(), host));
    lanes_.push_back(std::move(lane));
  }
  return Ok();
}

Status Server::StartAdmin() {
  if (!config_.admin_port.has_value()) return Ok();
  admin_ = std::make_unique<net::HttpServer>(loop_, config_.bind, *config_.admin_port);
  admin_->OnRequest([this](const net::HttpRequest& request, net::Responder responder) {
    Answer(request, responder);
  });
  admin_endpoint_ = PS_TRY(admin_->Start());
  return Ok();
}

void Server::Answer(const net::HttpRequest& request, const net::Responder& responder) {
  if (request.method != "GET" && request.method != "HEAD") {
    return responder.Answer(
        net::ErrorResponse(405, {ErrorCode::kUsage, "only GET is understood here"}));
  }
  if (request.path == "/healthz") return responder.Answer(net::TextResponse(200, "ok\n"));
  if (request.path == "/metrics") {
    std::vector<LaneStatus> lanes;
    for (const auto& lane : lanes_) lanes.push_back(lane->status());
    ControlCounters counters = counters_;
    counters.registered = registered();
    counters.scrubs = scrubber_ != nullptr;
    if (scrubber_) counters.scrub = scrubber_->counters();
    return responder.Answer(net::MetricsResponse(MetricsText(lanes, counters)));
  }
  responder.Answer(net::ErrorResponse(
      404, {ErrorCode::kNotFound, "no such page; there are /healthz and /metrics"}));
}

ServerSummary Server::Summary() const {
  ServerSummary summary;
  summary.jobs = jobs_.size();
  for (std::uint32_t number = 0; number < lanes_.size(); ++number) {
    for (const JobStatus& job : lanes_[number]->status().jobs) summary.shards += job.shards.size();
    const std::int64_t ms = net::MonotonicMs() - lanes_[number]->last_round_ms();
    if (ms <= summary.slowest_lane_ms) continue;
    summary.slowest_lane = number;
    summary.slowest_lane_ms = ms;
  }
  return summary;
}

void Server::SetLeader(const std::string& endpoint) { control_->SetEndpoint(endpoint); }

template <typename Task>
void Server::PostToLoop(Task task) {
  loop_.Post([weak = std::weak_ptr<void>(alive_), task = std::move(task)]() mutable {
    if (!weak.expired()) task();
  });
}

Server::Job* Server::FindJob(JobId job) {
  const auto at = jobs_.find(job);
  return at != jobs_.end() ? at->second.get() : nullptr;
}

void Server::Send(const control::MessageT& message) {
  const Status sent = control_->Send(message);
  if (sent.ok()) return;
  ++counters_.unsent_messages;
  spdlog::warn("{} was not sent: {}", control::BodyName(message), sent.error().message);
}

void Server::PostToLane(std::uint32_t lane, Lane::Command command) {
  const Status posted = lanes_[lane]->Post(std::move(command));
  if (!posted.ok()) spdlog::error("{}", ErrorLine(posted.error()));
}

void Server::PostToLanes(const Lane::Command& command) {
  for (std::uint32_t lane = 0; lane < lanes_.size(); ++lane) PostToLane(lane, command);
}

// ---- messages of the coordinator

control::MessageT Server::Registration() const {
  control::RegisterServerT registration;
  registration.name = config_.name;
  registration.procid = config_.procid;
  registration.host = HostName();
  registration.version = PS_VERSION;
  registration.lanes = lane_endpoints_;
  registration.rack = config_.rack;
  registration.store = store_id_;
  registration.files = files_endpoint_;
  for (const auto& [id, job] : jobs_) {
    auto holding = std::make_unique<control::JobHoldingT>();
    holding->job = id.value();
    holding->map_version = job->map_version;
    registration.jobs.push_back(std::move(holding));
  }
  return control::Make(std::move(registration));
}

void Server::OnMessage(control::MessageT message) {
  switch (message.body.type) {
    case control::Body::Welcome:
      spdlog::info("registered with coordinator {}", message.body.AsWelcome()->coordinator);
      for (const auto& [id, job] : jobs_) {
        for (const auto& failed : job->failed) {
          Send(control::Make(control::RestoreFailedT(failed.second)));
        }
      }
      Report();
      break;
    case control::Body::JobStart: OnJobStart(*message.body.AsJobStart()); break;
    case control::Body::JobUpdate: OnJobUpdate(*message.body.AsJobUpdate()); break;
    case control::Body::JobDrop: OnJobDrop(JobId(message.body.AsJobDrop()->job)); break;
    case control::Body::ReportWanted: {
      const auto& wanted = *message.body.AsReportWanted();
      if (Job* job = FindJob(JobId(wanted.job))) {
        job->asked = std::max(job->asked, wanted.asked);
        Report();
      }
      break;
    }
    case control::Body::RoundBegin: OnRoundBegin(*message.body.AsRoundBegin()); break;
    case control::Body::RoundAbort: OnRoundAbort(*message.body.AsRoundAbort()); break;
    case control::Body::WriteManifest: OnWriteManifest(*message.body.AsWriteManifest()); break;
    case control::Body::CopyPart: OnCopyPart(*message.body.AsCopyPart()); break;
    case control::Body::RepairPart: OnRepairPart(*message.body.AsRepairPart()); break;
    case control::Body::RoundCommitted: OnRoundCommitted(*message.body.AsRoundCommitted()); break;
    default:
      spdlog::debug("a message of the coordinator that is not for servers: {}",
                    control::BodyName(message));
      break;
  }
}

void Server::OnJobStart(const control::JobStartT& start) {
  const JobId id(start.job);
  Job* job = FindJob(id);
  if (job == nullptr) {
    if (start.layout == nullptr || start.map == nullptr) {
      return spdlog::error("job {}: its start names no layout or no map", id.value());
    }
    const auto spec = ParseJobJson(start.spec_json);
    if (!spec.ok()) {
      return spdlog::error("job {}: its specification is refused: {}", id.value(),
                           ErrorLine(spec.error()));
    }
    const auto shards = static_cast<std::uint32_t>(start.map->shards.size());
    auto layout = LayoutView::Create(*start.layout, shards);
    if (!layout.ok()) return spdlog::error("job {}: {}", id.value(), ErrorLine(layout.error()));
    auto made = std::make_unique<Job>();
    made->id = id;
    made->name = start.name;
    made->layout = std::move(layout).value();
    made->rules = JobRules::Of(*spec, start.data != nullptr ? start.data->records : 0);
    if (!RowRulesFit(made->layout, made->rules.rows)) {
      return spdlog::error("job {}: its layout and its specification name other tables of rows",
                           id.value());
    }
    made->shards = shards;
    made->token = start.token;
    if (made->rules.loads) {
      auto order = LoadOrder::Of(id, *spec, *start.layout);
      if (!order.ok()) return spdlog::error("job {}: {}", id.value(), ErrorLine(order.error()));
      made->load = std::make_shared<const LoadOrder>(std::move(order).value());
    }
    job = jobs_.emplace(id, std::move(made)).first->second.get();
    spdlog::info("job {} ({}) begins here", id.value(), start.name);
  }
  // Lanes begin a job with a map and a live set, be it an empty one.
  const control::LiveSetT nobody;
  TakeSources(*job, start);
  ApplyUpdate(*job, start.map.get(), start.live != nullptr ? start.live.get() : &nobody);
}

void Server::OnJobUpdate(const control::JobUpdateT& update) {
  Job* job = FindJob(JobId(update.job));
  // The start of a job that we do not know comes after our next registration.
  if (job == nullptr) return spdlog::warn("job {}: an update of an unknown job", update.job);
  TakeSources(*job, update);
  ApplyUpdate(*job, update.map.get(), update.live.get());
}

template <typename MessageT>
void Server::TakeSources(Job& job, const MessageT& message) {
  if (!message.restore.empty()) {
    job.restore = message.restore;
    job.restore_job = message.restore_job;
  }
  // An update without a map says nothing of them.
  if (message.map == nullptr) return;
  job.sources.clear();
  for (const auto& source : message.sources) {
    job.sources.push_back({source->store, source->endpoint});
  }
}

void Server::ApplyUpdate(Job& job, const control::MapT* map, const control::LiveSetT* live) {
  std::vector<LaneMap> own;
  LiveMembers members;
  for (std::uint32_t lane = 0; map != nullptr && lane < lanes_.size(); ++lane) {
    auto lane_map = LaneMapOf(*map, config_.procid, lane, job.shards);
    if (!lane_map.ok()) {
      return spdlog::error("job {}: {}", job.id.value(), ErrorLine(lane_map.error()));
    }
    own.push_back(std::move(lane_map).value());
  }
  if (live != nullptr) {
    auto parsed = LiveMembersOf(*live);
    if (!parsed.ok()) return spdlog::error("job {}: {}", job.id.value(), ErrorLine(parsed.error()));
    members = std::move(parsed).value();
  }
  if (map != nullptr && map->version > job.map_version) {
    job.map_version = map->version;
    job.own.clear();
    for (const LaneMap& lane : own) {
      for (const OwnShard& shard : lane.shards) job.own[shard.shard] = shard.epoch;
    }
    std::erase_if(job.failed, [&](const auto& failed) {
      const auto at = job.own.find(failed.first);
      return at == job.own.end() || at->second.value() != failed.second.epoch;
    });
    std::size_t copies = 0;
    std::size_t promoted = 0;
    for (const LaneMap& lane : own) {
      copies += lane.copies.size();
      for (const OwnShard& shard : lane.shards) promoted += shard.since != 0 ? 1 : 0;
    }
    spdlog::info("job {}: map {} places {} of {} shards here, {} of them promoted, and {} copies",
                 job.id.value(), map->version, job.own.size(), job.shards, promoted, copies);
  }
  for (std::uint32_t lane = 0; lane < lanes_.size(); ++lane) {
    // The lane ignores what is not newer than what it has.
    JobSetup setup{job.id,  job.layout, job.rules, map != nullptr ? own[lane] : LaneMap(),
                   members, job.token};
    const bool with_map = map != nullptr;
    const bool with_live = live != nullptr;
    PostToLane(lane, [setup = std::move(setup), with_map, with_live](LaneCore& core) {
      if (with_map && with_live) {
        core.SetJob(setup);
      } else if (with_map) {
        core.UpdateMap(setup.job, setup.map);
      } else if (with_live) {
        core.UpdateLive(setup.job, setup.live);
      }
    });
  }
}

void Server::OnJobDrop(JobId id) {
  if (jobs_.erase(id) == 0) return;
  spdlog::info("job {} ends here", id.value());
  PostToLanes([id](LaneCore& core) { core.DropJob(id); });
  const Status posted = checkpoint_thread_->Post([this, id] { store_.Forget(id); });
  if (!posted.ok()) spdlog::warn("job {}: {}", id.value(), posted.error().message);
}

// ---- checkpoint rounds

void Server::OnRoundBegin(const control::RoundBeginT& begin) {
  const JobId id(begin.job);
  const Round round(begin.round);
  Job* job = FindJob(id);
  if (job == nullptr) return OnRoundFailed(id, round, "the job is not known here");
  if (job->round.has_value() && job->round->round >= round) return;
  const auto path = ResolveRound(config_.checkpoint_dir, begin.directory);
  if (!path.ok()) {
    // The lanes must not wait for markers of a round that cannot be written.
    PostToLanes([id, round](LaneCore& core) { core.AbortRound(id, round); });
    return OnRoundFailed(id, round, path.error().message);
  }
  job->round = Job::OpenRound{round, begin.directory, std::vector<bool>(lanes_.size(), false),
                              {},    false,           Round(begin.base)};
  PostToLanes([id, round, live = begin.live_version, map = begin.map_version](LaneCore& core) {
    core.BeginRound(id, round, live, map);
  });
}

void Server::OnRoundAbort(const control::RoundAbortT& abort) {
  const JobId id(abort.job);
  const Round round(abort.round);
  PostToLanes([id, round](LaneCore& core) { core.AbortRound(id, round); });
  DiscardCopies(id, round);
  Job* job = FindJob(id);
  if (job == nullptr || !job->round.has_value() || job->round->round > round) return;
  // An older round may have been committed: only its commit was not heard of.
  if (job->round->round < round) return job->round.reset();
  spdlog::info("job {}: checkpoint {} is aborted: {}", id.value(), round.value(), abort.reason);
  // What is written already goes; what is being written goes when the writer is done with it.
  const Status posted = checkpoint_thread_->Post([this, directory = job->round->directory] {
    const Status discarded = store_.Discard(directory);
    if (!discarded.ok()) spdlog::warn("{}: {}", directory, discarded.error().message);
  });
  if (!posted.ok()) spdlog::warn("{}: {}", job->round->directory, posted.error().message);
  job->round.reset();
}

void Server::OnRoundFailed(JobId id, Round round, const std::string& reason) {
  Job* job = FindJob(id);
  if (job != nullptr && job->round.has_value() && job->round->round == round) {
    job->round.reset();
    // One lane failed: the others need not wait.
    PostToLanes([id, round](LaneCore& core) { core.AbortRound(id, round); });
  }
  ++counters_.checkpoints_failed;
  spdlog::warn("job {}: checkpoint {} failed here: {}", id.value(), round.value(), reason);
  control::PrepareFailedT failed;
  failed.job = id.value();
  failed.round = round.value();
  failed.message = reason;
  Send(control::Make(std::move(failed)));
}

void Server::OnFrozen(std::uint32_t lane, LaneFrozen frozen) {
  Job* job = FindJob(frozen.job);
  if (job == nullptr || !job->round.has_value() || job->round->round != frozen.round ||
      job->round->frozen[lane]) {
    return;
  }
  job->round->frozen[lane] = true;
  for (FrozenShard& shard : frozen.shards) job->round->shards.push_back(std::move(shard));
  const std::vector<bool>& done = job->round->frozen;
  if (std::all_of(done.begin(), done.end(), [](bool one) { return one; })) WriteRound(*job);
}

void Server::WriteRound(Job& job) {
  Job::OpenRound& open = *job.round;
  open.writing = true;
  struct Work {
    JobId job;
    Round round;
    std::string directory;
    std::vector<FrozenShard> shards;
    Round base;
  };
  auto work = std::make_shared<Work>(
      Work{job.id, open.round, open.directory, std::exchange(open.shards, {}), open.base});
  const Status posted = checkpoint_thread_->Post([this, work] {
    const Scrubber::Yield yield(scrubber_.get());
    const auto begun = net::MonotonicMs();
    auto written = std::make_shared<Result<std::vector<control::PreparedShardT>>>(
        store_.Write(work->directory, std::move(work->shards), work->base));
    if (!written->ok()) {
      const Status discarded = store_.Discard(work->directory);
      if (!discarded.ok()) spdlog::warn("{}: {}", work->directory, discarded.error().message);
    }
    PostToLoop([this, work, written, took_ms = net::MonotonicMs() - begun] {
      Job* owner = FindJob(work->job);
      if (owner == nullptr || !owner->round.has_value() || owner->round->round != work->round) {
        return;  // aborted since
      }
      if (!written->ok()) {
        return OnRoundFailed(work->job, work->round, written->error().message);
      }
      control::PreparedT prepared;
      prepared.job = work->job.value();
      prepared.round = work->round.value();
      prepared.directory = work->directory;
      std::uint64_t bytes = 0;
      std::uint64_t state_bytes = 0;
      for (const control::PreparedShardT& shard : written->value()) {
        bytes += shard.bytes;
        state_bytes += shard.state_bytes;
        prepared.shards.push_back(std::make_unique<control::PreparedShardT>(shard));
      }
      ++counters_.checkpoints_written;
      counters_.checkpoint_bytes += bytes;
      spdlog::info("job {}: checkpoint {}: {} shards of {} bytes, {} bytes written in {} ms",
                   work->job.value(), work->round.value(), prepared.shards.size(), state_bytes,
                   bytes, took_ms);
      Send(control::Make(std::move(prepared)));
    });
  });
  if (!posted.ok()) OnRoundFailed(job.id, open.round, posted.error().message);
}

void Server::OnWriteManifest(const control::WriteManifestT& write) {
  auto work = std::make_shared<control::WriteManifestT>(write);
  const Status posted = checkpoint_thread_->Post([this, work] {
    std::vector<std::string> parts;
    for (const auto& part : work->parts) parts.push_back(part->name);
    const Status written = store_.WriteManifest(work->directory, parts, work->manifest);
    PostToLoop([this, work, written] {
      if (!written.ok()) {
        return OnRoundFailed(JobId(work->job), Round(work->round),
                             "manifest: " + written.error().message);
      }
      control::ManifestWrittenT done;
      done.job = work->job;
      done.round = work->round;
      Send(control::Make(std::move(done)));
    });
  });
  if (!posted.ok()) OnRoundFailed(JobId(write.job), Round(write.round), posted.error().message);
}

// On a thread of its own: what this server writes itself does not wait for the network.
void Server::OnCopyPart(const control::CopyPartT& copy) {
  auto work = std::make_shared<control::CopyPartT>(control::Clone(copy));
  const auto answer = [this, work](const Status& copied) {
    if (copied.ok()) {
      control::PartCopiedT done;
      done.job = work->job;
      done.round = work->round;
      done.part = work->part;
      return Send(control::Make(std::move(done)));
    }
    spdlog::warn("job {}: what {} wrote of checkpoint {} could not be copied: {}", work->job,
                 work->part, work->round, copied.error().message);
    control::PartCopyFailedT failed;
    failed.job = work->job;
    failed.round = work->round;
    failed.part = work->part;
    failed.message = copied.error().message;
    Send(control::Make(std::move(failed)));
  };
  if (work->source == nullptr) {
    return answer(Error{ErrorCode::kInvalid, "the coordinator names no source"});
  }
  Copies& copies = copies_[JobId(copy.job)];
  if (copies.round != Round(copy.round)) {
    copies = {Round(copy.round),
              copy.directory,
              {},
              std::make_shared<std::atomic<bool>>(false),
              !copy.source_directory.empty()};
  }
  copies.parts.insert(copy.part);
  TaskThread* const thread = copy_thread_.get();
  const Status posted = thread->Post([this, work, thread, answer, stopped = copies.stopped] {
    const Scrubber::Yield yield(scrubber_.get());
    const auto begun = net::MonotonicMs();
    const checkpoint::RemoteStorage source(context_, work->source->endpoint);
    std::vector<Round> bases;
    for (const auto& base : work->bases) bases.emplace_back(base->round);
    std::uint64_t bytes = 0;
    const std::string& there =
        work->source_directory.empty() ? work->directory : work->source_directory;
    const Status copied =
        CopyPart(source, there, config_.checkpoint_dir, work->directory, work->part, bases,
                 [&](std::uint64_t piece) {
                   bytes += piece;
                   return !*stopped && thread->Pause(std::chrono::milliseconds(0));
                 });
    PostToLoop([this, work, copied, answer, bytes, took_ms = net::MonotonicMs() - begun] {
      if (copied.ok()) {
        ++counters_.parts_copied;
        counters_.copied_bytes += bytes;
        spdlog::info("job {}: checkpoint {}: {} bytes that {} wrote are copied in {} ms", work->job,
                     work->round, bytes, work->part, took_ms);
      }
      answer(copied);
    });
  });
  if (!posted.ok()) answer(posted.error());
}

// Told with each pass until it is mended: the coordinator knows who may have a copy.
void Server::OnDamagedPart(const DamagedPart& damaged) {
  spdlog::error("job {}: checkpoint {}: part {} is damaged: {}", damaged.job.value(),
                damaged.round.value(), damaged.part, damaged.message);
  if (!registered()) return;
  control::PartDamagedT message;
  message.job = damaged.job.value();
  message.round = damaged.round.value();
  message.part = damaged.part;
  message.message = damaged.message;
  Send(control::Make(std::move(message)));
}

void Server::OnRepairPart(const control::RepairPartT& repair) {
  if (repair.unknown) {
    return spdlog::info("job {}: checkpoint {}: no checkpoint needs the damaged part {}",
                        repair.job, repair.round, repair.part);
  }
  auto work = std::make_shared<control::RepairPartT>(control::Clone(repair));
  const auto answer = [this, work](const Status& repaired) {
    ++(repaired.ok() ? counters_.parts_repaired : counters_.repairs_failed);
    control::PartRepairedT done;
    done.job = work->job;
    done.round = work->round;
    done.part = work->part;
    if (!repaired.ok()) {
      done.error = repaired.error().message;
      spdlog::error("job {}: checkpoint {}: the damaged part {} stays: {}", work->job, work->round,
                    work->part, done.error);
    } else {
      spdlog::info("job {}: checkpoint {}: a copy of another server takes the place of part {}",
                   work->job, work->round, work->part);
    }
    Send(control::Make(std::move(done)));
  };
  TaskThread* const thread = copy_thread_.get();
  const Status posted = thread->Post([this, work, thread, answer] {
    const Scrubber::Yield yield(scrubber_.get());
    std::vector<PartSource> sources;
    for (const auto& source : work->sources) {
      if (source->store != store_id_) sources.push_back({source->store, source->endpoint});
    }
    const std::string round = checkpoint::RoundPath(JobId(work->job), Round(work->round));
    const Status repaired =
        RepairPart(context_, sources, config_.checkpoint_dir, round, work->part,
                   [&](std::uint64_t) { return thread->Pause(std::chrono::milliseconds(0)); });
    PostToLoop([answer, repaired] { answer(repaired); });
  });
  if (!posted.ok()) answer(posted.error());
}

void Server::DiscardCopies(JobId job, Round round) {
  const auto at = copies_.find(job);
  if (at == copies_.end() || at->second.round != round) return;
  *at->second.stopped = true;
  // After what is being copied.
  const Status posted = copy_thread_->Post([this, job, copies = std::move(at->second)] {
    if (copies.import) {
      const CheckpointStore store(config_.checkpoint_dir, config_.procid);
      store.DeleteOldRounds(job, Round(copies.round.value() + 1), {});
      return;
    }
    for (const std::string& part : copies.parts) {
      const auto discard = [&]() -> Status {
        const auto path = PS_TRY(ResolveRound(config_.checkpoint_dir, copies.directory));
        return checkpoint::RemovePart(PS_TRY(ResolveRound(path, part)));
      };
      const Status discarded = discard();
      if (!discarded.ok()) spdlog::warn("{}", discarded.error().message);
    }
  });
  if (!posted.ok())
    spdlog::warn("copies of an aborted checkpoint stay: {}", posted.error().message);
  copies_.erase(job);
}

void Server::OnRoundCommitted(const control::RoundCommittedT& committed) {
  const JobId id(committed.job);
  const Round round(committed.round);
  if (const auto at = copies_.find(id); at != copies_.end() && at->second.round <= round) {
    copies_.erase(at);
  }
  Job* job = FindJob(id);
  if (job != nullptr && job->round.has_value() && job->round->round <= round) job->round.reset();
  std::vector<std::uint64_t> keep;
  for (const auto& kept : committed.keep) keep.push_back(kept->round);
  const Status posted = checkpoint_thread_->Post([this, id, round, keep = std::move(keep)] {
    const int deleted = store_.DeleteOldRounds(id, round, keep);
    if (deleted > 0) {
      spdlog::info("job {}: {} old checkpoints deleted after {}", id.value(), deleted,
                   round.value());
    }
  });
  if (!posted.ok()) spdlog::warn("old checkpoints stay: {}", posted.error().message);
}

// ---- events of the lanes

void Server::OnLaneEvent(std::uint32_t lane, LaneEvent event) {
  if (auto* frozen = std::get_if<LaneFrozen>(&event)) return OnFrozen(lane, std::move(*frozen));
  if (const auto* wanted = std::get_if<RestoreWanted>(&event)) {
    return OnRestoreWanted(lane, *wanted);
  }
  if (const auto* failed = std::get_if<LaneRoundFailed>(&event)) {
    Job* job = FindJob(failed->job);
    // Several lanes fail for the same reason: it is told once.
    if (job != nullptr && job->round.has_value() && job->round->round == failed->round) {
      OnRoundFailed(failed->job, failed->round, failed->reason);
    }
  }
  if (std::get_if<ChainSynced>(&event) != nullptr) Report();
}

void Server::OnRestoreWanted(std::uint32_t lane, const RestoreWanted& wanted) {
  if (wanted.round == Round()) return OnLoadWanted(lane, wanted);
  Job* job = FindJob(wanted.job);
  if (job == nullptr) return;
  if (job->restore.empty()) {
    return OnRestoreFailed(
        wanted, {ErrorCode::kConflict, "the map wants a restore, but no checkpoint was named"}, {});
  }
  const bool values_only = job->restore_job != 0 && JobId(job->restore_job) != wanted.job;
  const std::string name = RoundName(job->restore, wanted.round);
  const std::size_t number = wanted.shard.value() % restore_threads_.size();
  RestoreReader& reader = *restore_readers_[number];
  const auto read = [&reader, name, wanted, values_only](Shard& shard) -> Status {
    ShardLoad load(shard, {values_only, /*expect=*/true});
    PS_TRY(reader.Read(name, wanted.shard, load));
    load.Finish();
    return Ok();
  };
  MakeShardOn(number, lane, wanted,
              "is restored from checkpoint " + std::to_string(wanted.round.value()), job->sources,
              reader, read);
}

// What is read are the checkpoints of other jobs, and the shard is Blank then.
void Server::OnLoadWanted(std::uint32_t lane, const RestoreWanted& wanted) {
  const Job* const job = FindJob(wanted.job);
  if (job == nullptr) return;
  PS_CHECK(job->load != nullptr, wanted.job);
  const std::size_t number = wanted.shard.value() % restore_threads_.size();
  SourceLoader& loader = *source_loaders_[number];
  const auto load = [&loader, order = job->load](Shard& shard) {
    return loader.Load(*order, shard);
  };
  MakeShardOn(number, lane, wanted, "has what the job loads", job->sources, loader, load);
}

template <typename Reader>
void Server::MakeShardOn(std::size_t thread_number, std::uint32_t lane, const RestoreWanted& wanted,
                         const std::string& what, const std::vector<PartSource>& sources,
                         Reader& reader, std::function<Status(Shard&)> read) {
  TaskThread* const thread = restore_threads_[thread_number].get();
  const Status posted =
      thread->Post([this, lane, wanted, what, sources, &reader, read = std::move(read), thread] {
        const Scrubber::Yield yield(scrubber_.get());
        reader.SetSources(sources);
        std::shared_ptr<std::unique_ptr<Shard>> made;
        Status done = Ok();
        for (int attempt = 1; attempt <= kRestoreAttempts;) {
          made = std::make_shared<std::unique_ptr<Shard>>(wanted.MakeShard());
          done = read(**made);
          if (done.ok()) break;
          // What came of one server is thrown away, and another one has it, too.
          if (reader.again()) continue;
          // What is damaged stays damaged, and a server that does not answer may be known to be
          // gone by now: the coordinator asks again.
          const ErrorCode code = done.error().code;
          if (code == ErrorCode::kInvalid || code == ErrorCode::kUnreachable) break;
          if (++attempt <= kRestoreAttempts && !thread->Pause(kRestoreRetryWait)) return;
        }
        if (!done.ok()) {
          return PostToLoop([this, wanted, error = done.error(), sources] {
            OnRestoreFailed(wanted, error, sources);
          });
        }
        const auto install = [this, wanted, made, what](LaneCore& core) {
          // A conflict: the map went on, and nobody waits for this shard any more.
          if (!core.InstallRestored(wanted, std::move(*made)).ok()) return;
          PostToLoop([this, wanted, what] {
            ++counters_.shards_restored;
            spdlog::debug("job {}: shard {} {}", wanted.job.value(), wanted.shard.value(), what);
          });
        };
        PostToLoop([this, lane, install] { PostToLane(lane, install); });
      });
  if (!posted.ok()) OnRestoreFailed(wanted, posted.error(), {});
}

void Server::OnRestoreFailed(const RestoreWanted& wanted, const Error& error,
                             const std::vector<PartSource>& sources) {
  Job* job = FindJob(wanted.job);
  if (job == nullptr) return;
  const auto own = job->own.find(wanted.shard);
  // The failure of an old assignment would end a job that no longer depends on it.
  if (own == job->own.end() || own->second != wanted.epoch) return;
  ++counters_.restores_failed;
  if (wanted.round == Round()) {
    spdlog::error("job {}: shard {} cannot be loaded: {}", wanted.job.value(), wanted.shard.value(),
                  ErrorLine(error));
  } else {
    spdlog::error("job {}: shard {} cannot be restored from checkpoint {}: {}", wanted.job.value(),
                  wanted.shard.value(), wanted.round.value(), ErrorLine(error));
  }
  control::RestoreFailedT& failed = job->failed[wanted.shard];
  failed = {};
  failed.job = wanted.job.value();
  failed.shard = wanted.shard.value();
  failed.round = wanted.round.value();
  failed.epoch = wanted.epoch.value();
  failed.message = error.message;
  failed.damaged = IsDamage(error);
  failed.asked.push_back(store_id_);
  for (const PartSource& source : sources) failed.asked.push_back(source.store);
  Send(control::Make(control::RestoreFailedT(failed)));
}

// ---- reports

void Server::Report() {
  if (!registered()) return;
  std::map<JobId, control::ServerReportT> reports;
  for (const auto& [id, job] : jobs_) {
    reports[id].job = id.value();
    reports[id].asked = job->asked;
  }
  for (const auto& lane : lanes_) {
    const LaneStatus status = lane->status();
    for (const JobStatus& job : status.jobs) {
      const auto at = reports.find(job.job);
      if (at == reports.end()) continue;
      control::ServerReportT& report = at->second;
      for (const ShardStatus& shard : job.shards) {
        auto state = std::make_unique<control::ShardStateT>();
        state->shard = shard.shard.value();
        state->epoch = shard.epoch.value();
        state->state = static_cast<std::uint8_t>(shard.state);
        state->version = shard.version;
        report.shards.push_back(std::move(state));
      }
      for (const FeedStatus& feed : job.feeds) {
        auto state = std::make_unique<control::FeedStateT>();
        state->shard = feed.shard.value();
        state->epoch = feed.epoch.value();
        state->since = feed.since;
        state->to = feed.endpoint;
        state->synced = feed.synced;
        state->stalled_ms = feed.stalled_ms;
        report.feeds.push_back(std::move(state));
      }
      report.pushes += job.counters.pushes;
      report.pulls += job.counters.pulls;
      for (std::size_t code = 1; code < kCodes; ++code) {
        report.refused += job.counters.refused[code];
      }
      report.bad_messages += job.counters.refused[static_cast<std::size_t>(wire::Code::Malformed)];
    }
  }
  for (auto& [id, report] : reports) Send(control::Make(std::move(report)));
}

}  // namespace ps::server
