#include "tests/simulation/cluster/server_node.h"

#include <algorithm>
#include <utility>

#include "checkpoint/content.h"
#include "checkpoint/manifest.h"
#include "common/check.h"
#include "ps-server/core/lane_map.h"
#include "ps-server/core/partial_load.h"

namespace ps::simulation {
namespace {

constexpr std::int64_t kReportMs = 500;
constexpr std::int64_t kLaneMs = 4;  // a command waits for its lane, at most
constexpr std::int64_t kTickMs = 50;
constexpr std::int64_t kDiskMs = 60;
constexpr int kRestoreAttempts = 3;
constexpr std::int64_t kRestoreRetryMs = 500;

}  // namespace

ServerNode::ServerNode(World& world, MachineId machine, const std::string& name,
                       std::uint32_t lanes)
    : world_(world),
      machine_(machine),
      name_(name),
      procid_(name + ".p" + std::to_string(world.next_process++)),
      files_(procid_ + "/files"),
      store_(world.stores.Of(machine)),
      client_(world.schedule, world.zookeeper, machine, life_),
      lanes_(lanes) {
  for (std::uint32_t number = 0; number < lanes; ++number) {
    lanes_[number].core = std::make_unique<server::LaneCore>();
    endpoints_.push_back(procid_ + "/" + std::to_string(number));
    world_.network.Bind(endpoints_.back(), machine_,
                        [this, number, weak = std::weak_ptr<void>(life_)](const std::string& from,
                                                                          const Packet& packet) {
                          if (!weak.expired()) OnLanePacket(number, from, packet);
                        });
  }
  world_.file_services[files_] = machine_;
  control_ = std::make_unique<SimulatedControlClient>(
      world_, machine_, [this] { return Registration(); },
      [this](control::MessageT message) { OnMessage(std::move(message)); });
  member_ =
      std::make_unique<ZkMember>(world_.schedule, client_, machine_, "/servers/" + procid_, name_);
  coordinators_ = std::make_unique<ZkWatcher>(
      world_.schedule, client_, machine_, "/coordinators",
      [this](const ZooKeeper::Children& children) { control_->SetCoordinators(children); });
  world_.schedule.Every(kReportMs, machine_, life_, [this] { Report(); });
  world_.schedule.Every(kTickMs, machine_, life_, [this] {
    for (std::uint32_t lane = 0; lane < lanes_.size(); ++lane) {
      if (!lanes_[lane].core->has_chains()) continue;
      lanes_[lane].core->Tick(world_.schedule.now_ms());
      FlushLane(lane);
    }
  });
}

void ServerNode::End(bool crash) {
  life_.reset();
  world_.file_services.erase(files_);
  for (const std::string& endpoint : endpoints_) world_.network.Unbind(endpoint, crash);
  for (const Lane& lane : lanes_) {
    for (const auto& [endpoint, link] : lane.links) world_.network.Close(link);
  }
}

void ServerNode::CheckShards() {
  for (Lane& lane : lanes_) {
    for (const server::JobStatus& job : lane.core->Report()) {
      for (const server::ShardStatus& status : job.shards) {
        const server::Shard* shard = lane.core->FindShard(job.job, status.shard);
        if (shard == nullptr) {
          if (status.state == wire::Code::Lost) {
            world_.history.Fail("shard " + std::to_string(status.shard.value()) +
                                " is promoted where no copy of it is");
          }
          continue;
        }
        world_.history.CheckShard(*shard, true);
        std::uint64_t& version = lane.versions[{status.shard, status.epoch}];
        if (shard->ready() && status.version < version) {
          world_.history.Fail("the version of shard " + std::to_string(status.shard.value()) +
                              " falls within an epoch");
        }
        version = std::max(version, status.version);
      }
      const Job* const known = FindJob(job.job);  // a lane hears of the end a little later
      for (std::uint32_t number = 0; known != nullptr && number < known->shards; ++number) {
        const server::Shard* copy = lane.core->FindCopy(job.job, ShardId(number));
        if (copy != nullptr) world_.history.CheckShard(*copy, false);
      }
    }
  }
}

ServerNode::Job* ServerNode::FindJob(JobId job) {
  const auto found = jobs_.find(job);
  return found == jobs_.end() ? nullptr : &found->second;
}

void ServerNode::PostToLane(std::uint32_t number, std::function<void(server::LaneCore&)> command) {
  Lane& lane = lanes_[number];
  lane.last_ms =
      std::max(lane.last_ms, world_.schedule.now_ms() + world_.schedule.Below(kLaneMs + 1));
  world_.schedule.After(lane.last_ms - world_.schedule.now_ms(), machine_, life_,
                        [this, number, command = std::move(command)] {
                          command(*lanes_[number].core);
                          for (const server::JobStatus& job : lanes_[number].core->Report()) {
                            for (const server::ShardStatus& status : job.shards) {
                              const server::Shard* shard =
                                  lanes_[number].core->FindShard(job.job, status.shard);
                              if (shard != nullptr) world_.history.CheckFirst(*shard);
                            }
                          }
                          FlushLane(number);
                        });
}

void ServerNode::OnLanePacket(std::uint32_t number, const std::string& from, const Packet& packet) {
  Lane& lane = lanes_[number];
  wire::Head head;
  if (wire::ParseInto(packet.head, head).ok() &&
      head.header.kind() == static_cast<std::uint8_t>(wire::Kind::Push)) {
    const JobId job(head.header.job());
    const Job* known = FindJob(job);
    std::vector<Lane::Asked> asked;
    for (std::uint32_t i = 0; known != nullptr && i < known->shards; ++i) {
      const server::Shard* shard = lane.core->FindShard(job, ShardId(i));
      const bool listed =
          std::any_of(head.segments.begin(), head.segments.end(),
                      [i](const wire::Segment& segment) { return segment.shard() == i; });
      if (shard == nullptr || (!listed && (head.header.flags() & wire::kCoversLane) == 0)) continue;
      asked.push_back({ShardId(i), shard->lineage(), shard->epoch()});
    }
    lane.asked[{from, head.header.request()}] = std::move(asked);
  }
  lane.core->OnMessage(from, packet.head, packet.payload);
  FlushLane(number);
}

void ServerNode::TellAcknowledged(Lane& lane, const std::string& to, const wire::Head& head) {
  const auto asked = lane.asked.find({to, head.header.request()});
  if (asked == lane.asked.end()) return;
  for (const Lane::Asked& one : asked->second) {
    const auto listed = std::find_if(
        head.segments.begin(), head.segments.end(),
        [&](const wire::Segment& segment) { return segment.shard() == one.shard.value(); });
    wire::Code code = wire::Code::Applied;
    if (listed != head.segments.end()) code = static_cast<wire::Code>(listed->code());
    const Incarnation incarnation(head.header.incarnation());
    const Clock clock(head.header.clock());
    if (code == wire::Code::TooOld) {
      world_.history.TooOld(one.shard, one.lineage, incarnation, clock);
    }
    if (code == wire::Code::Applied || code == wire::Code::TooOld ||
        code == wire::Code::NonFinite) {
      world_.history.Acknowledged(one.shard, one.lineage, one.epoch, incarnation, clock);
    }
  }
  lane.asked.erase(asked);
}

// What the lanes of a daemon do with sockets of their own.
void ServerNode::SendToChains(std::uint32_t number) {
  Lane& lane = lanes_[number];
  const std::vector<std::string> endpoints = lane.core->ChainEndpoints();
  for (auto link = lane.links.begin(); link != lane.links.end();) {
    if (std::binary_search(endpoints.begin(), endpoints.end(), link->first)) {
      ++link;
      continue;
    }
    world_.network.Close(link->second);
    link = lane.links.erase(link);
  }
  std::vector<server::ChainMessage> messages;
  lane.core->TakeChainMessages(messages);
  for (const server::ChainMessage& message : messages) {
    auto link = lane.links.find(message.endpoint);
    if (link == lane.links.end()) {
      if (!std::binary_search(endpoints.begin(), endpoints.end(), message.endpoint)) continue;
      const Network::LinkId id = world_.network.Connect(
          machine_, message.endpoint, Network::Plane::kData,
          [this, number, endpoint = message.endpoint,
           weak = std::weak_ptr<void>(life_)](const Packet& packet) {
            if (weak.expired()) return;
            lanes_[number].core->OnChainMessage(endpoint, packet.head);
            FlushLane(number);
          },
          nullptr);
      link = lane.links.emplace(message.endpoint, id).first;
    }
    Packet packet{message.head, {}};
    if (message.payload != nullptr) {
      packet.payload.assign(message.payload->begin(), message.payload->end());
    }
    world_.network.Send(link->second, std::move(packet));
    wire::Head head;
    if (!world_.Lacks(Mutant::kAnswerBeforeBackups) || !wire::ParseInto(message.head, head).ok() ||
        head.header.kind() != static_cast<std::uint8_t>(wire::Kind::Replicate)) {
      continue;
    }
    head.header.mutate_kind(static_cast<std::uint8_t>(wire::Kind::ReplicateReply));
    head.header.mutate_payload_bytes(0);
    lane.core->OnChainMessage(message.endpoint, wire::BuildHead(head.header, {}));
  }
}

void ServerNode::PostToLanes(const std::function<void(server::LaneCore&)>& command) {
  for (std::uint32_t lane = 0; lane < lanes_.size(); ++lane) PostToLane(lane, command);
}

void ServerNode::FlushLane(std::uint32_t number) {
  server::LaneCore& core = *lanes_[number].core;
  SendToChains(number);
  std::vector<server::LaneReply> replies;
  core.TakeReplies(replies);
  for (const server::LaneReply& reply : replies) {
    // Answers that travel together meet the network one by one: it can do more to them.
    for (std::span<const std::byte> rest(reply.head); !rest.empty();) {
      wire::Head head;
      const Result<std::size_t> bytes = wire::ParseFirst(rest, head);
      if (!bytes.ok()) return world_.history.Fail("a lane's answer does not parse");
      if (head.header.kind() == static_cast<std::uint8_t>(wire::Kind::PushReply)) {
        TellAcknowledged(lanes_[number], reply.to, head);
      }
      if (world_.Lacks(Mutant::kTakeOldEpoch) &&
          head.header.kind() == static_cast<std::uint8_t>(wire::Kind::ReplicateReply)) {
        std::erase_if(head.segments, [](const wire::Segment& segment) {
          return segment.code() == static_cast<std::uint8_t>(wire::Code::WrongEpoch);
        });
        world_.network.Reply(reply.to, Packet{wire::BuildHead(head.header, head.segments), {}});
        rest = rest.subspan(*bytes);
        continue;
      }
      world_.network.Reply(
          reply.to,
          Packet{Bytes(rest.begin(), rest.begin() + static_cast<std::ptrdiff_t>(*bytes)),
                 Bytes(reply.payload.data(), reply.payload.data() + reply.payload.size())});
      rest = rest.subspan(*bytes);
    }
  }
  for (server::LaneEvent& event : core.TakeEvents()) {
    world_.schedule.After(
        0, machine_, life_,
        [this, number, shared = std::make_shared<server::LaneEvent>(std::move(event))] {
          if (auto* frozen = std::get_if<server::LaneFrozen>(shared.get())) {
            OnFrozen(number, std::move(*frozen));
          } else if (const auto* wanted = std::get_if<server::RestoreWanted>(shared.get())) {
            OnRestoreWanted(number, *wanted);
          } else if (const auto* failed = std::get_if<server::LaneRoundFailed>(shared.get())) {
            Job* job = FindJob(failed->job);
            if (job != nullptr && job->round.has_value() && job->round->round == failed->round) {
              OnRoundFailed(failed->job, failed->round, failed->reason);
            }
          } else if (std::get_if<server::ChainSynced>(shared.get()) != nullptr) {
            Report();
          }
        });
  }
}

// ---- messages of the coordinator

control::MessageT ServerNode::Registration() const {
  control::RegisterServerT registration;
  registration.name = name_;
  registration.procid = procid_;
  registration.host = name_;
  registration.lanes = endpoints_;
  registration.store = store_;
  registration.files = files_;
  for (const auto& [id, job] : jobs_) {
    auto holding = std::make_unique<control::JobHoldingT>();
    holding->job = id.value();
    holding->map_version = job.map_version;
    registration.jobs.push_back(std::move(holding));
  }
  return control::Make(std::move(registration));
}

void ServerNode::OnMessage(control::MessageT message) {
  switch (message.body.type) {
    case control::Body::Welcome:
      for (const auto& [id, job] : jobs_) {
        for (const auto& failed : job.failed) {
          Send(control::Make(control::RestoreFailedT(failed.second)));
        }
      }
      Report();
      break;
    case control::Body::JobStart: OnJobStart(*message.body.AsJobStart()); break;
    case control::Body::JobUpdate: {
      const auto& update = *message.body.AsJobUpdate();
      Job* job = FindJob(JobId(update.job));
      if (job == nullptr) return;
      TakeSources(*job, update);
      ApplyUpdate(JobId(update.job), *job, update.map.get(), update.live.get());
      break;
    }
    case control::Body::JobDrop: {
      const JobId id(message.body.AsJobDrop()->job);
      if (jobs_.erase(id) == 0) return;
      PostToLanes([id](server::LaneCore& core) { core.DropJob(id); });
      std::erase_if(written_, [id](const auto& entry) { return entry.first.first == id; });
      break;
    }
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
    case control::Body::CopyPart: OnCopyPart(*message.body.AsCopyPart()); break;
    case control::Body::WriteManifest: OnWriteManifest(*message.body.AsWriteManifest()); break;
    case control::Body::RoundCommitted: OnRoundCommitted(*message.body.AsRoundCommitted()); break;
    default: break;
  }
}

void ServerNode::OnJobStart(const control::JobStartT& start) {
  const JobId id(start.job);
  if (FindJob(id) == nullptr) {
    Job& made = jobs_[id];
    made.shards = static_cast<std::uint32_t>(start.map->shards.size());
    made.layout = LayoutView::Create(*start.layout, made.shards).value();
    made.rules = server::JobRules::Of(ParseJobJson(start.spec_json).value(), start.data->records);
    made.token = start.token;
    made.rules.loads = world_.history.loads() && !world_.Lacks(Mutant::kInitWithoutLoad);
  }
  const control::LiveSetT nobody;
  TakeSources(jobs_[id], start);
  ApplyUpdate(id, jobs_[id], start.map.get(), start.live != nullptr ? start.live.get() : &nobody);
}

template <typename MessageT>
void ServerNode::TakeSources(Job& job, const MessageT& message) {
  if (!message.restore.empty()) {
    job.restore = message.restore;
    job.restore_job = message.restore_job;
  }
  if (message.map == nullptr) return;
  job.sources.clear();
  for (const auto& source : message.sources) {
    job.sources.emplace_back(source->store, source->endpoint);
  }
}

void ServerNode::ApplyUpdate(JobId id, Job& job, const control::MapT* map,
                             const control::LiveSetT* live) {
  std::vector<server::LaneMap> own;
  server::LiveMembers members;
  for (std::uint32_t lane = 0; map != nullptr && lane < lanes_.size(); ++lane) {
    auto lane_map = server::LaneMapOf(*map, procid_, lane, job.shards);
    if (!lane_map.ok()) return world_.history.Fail(lane_map.error().message);
    own.push_back(std::move(lane_map).value());
  }
  if (live != nullptr) {
    auto parsed = server::LiveMembersOf(*live);
    if (!parsed.ok()) return world_.history.Fail(parsed.error().message);
    members = std::move(parsed).value();
  }
  if (map != nullptr && map->version > job.map_version) {
    job.map_version = map->version;
    job.own.clear();
    for (const server::LaneMap& lane : own) {
      for (const server::OwnShard& shard : lane.shards) job.own[shard.shard] = shard.epoch;
    }
    std::erase_if(job.failed, [&](const auto& failed) {
      const auto at = job.own.find(failed.first);
      return at == job.own.end() || at->second.value() != failed.second.epoch;
    });
  }
  for (std::uint32_t lane = 0; lane < lanes_.size(); ++lane) {
    server::JobSetup setup{id,        job.layout,
                           job.rules, map != nullptr ? own[lane] : server::LaneMap(),
                           members,   job.token};
    PostToLane(lane, [setup, with_map = map != nullptr,
                      with_live = live != nullptr](server::LaneCore& core) {
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

// ---- checkpoint rounds

void ServerNode::OnRoundBegin(const control::RoundBeginT& begin) {
  const JobId id(begin.job);
  const Round round(begin.round);
  Job* job = FindJob(id);
  if (job == nullptr) return OnRoundFailed(id, round, "the job is not known here");
  if (job->round.has_value() && job->round->round >= round) return;
  job->round = Job::OpenRound{
      round, begin.directory, std::vector<bool>(lanes_.size(), false), {}, Round(begin.base)};
  PostToLanes([id, round, live = begin.live_version, map = begin.map_version](
                  server::LaneCore& core) { core.BeginRound(id, round, live, map); });
}

void ServerNode::OnRoundAbort(const control::RoundAbortT& abort) {
  const JobId id(abort.job);
  const Round round(abort.round);
  PostToLanes([id, round](server::LaneCore& core) { core.AbortRound(id, round); });
  Job* job = FindJob(id);
  if (job == nullptr || !job->round.has_value() || job->round->round > round) return;
  // An older round may have been committed: only its commit was not heard of.
  if (job->round->round < round) return job->round.reset();
  Post({[this, part = store_ + "/" + job->round->directory + "/" + procid_] {
         world_.disk.RemoveTree(part);
         return Ok();
       }},
       nullptr);
  job->round.reset();
}

void ServerNode::OnRoundFailed(JobId id, Round round, const std::string& reason) {
  Job* job = FindJob(id);
  if (job != nullptr && job->round.has_value() && job->round->round == round) {
    job->round.reset();
    PostToLanes([id, round](server::LaneCore& core) { core.AbortRound(id, round); });
  }
  control::PrepareFailedT failed;
  failed.job = id.value();
  failed.round = round.value();
  failed.message = reason;
  Send(control::Make(std::move(failed)));
}

void ServerNode::OnFrozen(std::uint32_t lane, server::LaneFrozen frozen) {
  Job* job = FindJob(frozen.job);
  if (job == nullptr || !job->round.has_value() || job->round->round != frozen.round ||
      job->round->frozen[lane]) {
    return;
  }
  Job::OpenRound& open = *job->round;
  open.frozen[lane] = true;
  for (server::FrozenShard& shard : frozen.shards) open.shards.push_back(std::move(shard));
  if (std::find(open.frozen.begin(), open.frozen.end(), false) != open.frozen.end()) return;

  auto prepared = std::make_shared<control::PreparedT>();
  prepared->job = frozen.job.value();
  prepared->round = frozen.round.value();
  prepared->directory = open.directory;
  for (const server::FrozenShard& shard : open.shards) {
    const checkpoint::ShardImage image = shard.ToImage();
    auto one = std::make_unique<control::PreparedShardT>();
    one->shard = image.shard.value();
    one->epoch = image.epoch.value();
    one->version = image.version;
    one->samples = image.samples_trained;
    one->digest = checkpoint::Digest(image);
    one->values_digest = checkpoint::ValuesDigest(image.values);
    prepared->shards.push_back(std::move(one));
  }
  const std::string part = store_ + "/" + open.directory + "/" + procid_;
  const auto tell = [this, prepared] { Send(control::Make(control::PreparedT(*prepared))); };
  if (world_.Lacks(Mutant::kAnswerBeforeWritten)) tell();
  std::vector<DiskStep> steps;
  steps.push_back([this, part, prepared, base = open.base,
                   shards = std::make_shared<std::vector<server::FrozenShard>>(
                       std::exchange(open.shards, {}))] {
    // What it builds on is known once it is its turn: what went before may have deleted some.
    DiskContent content;
    for (std::size_t i = 0; i < shards->size(); ++i) {
      content.shards.push_back(Store((*shards)[i], base));
      const StoredShard& stored = content.shards.back();
      control::PreparedShardT& one = *prepared->shards[i];
      one.state_bytes = checkpoint::ContentBytes((*shards)[i].ToImage());
      one.bytes = stored.bases.empty() ? one.state_bytes : stored.changed.size() * sizeof(float);
      for (const Round round : stored.bases) {
        one.bases.push_back(std::make_unique<control::KeptRoundT>());
        one.bases.back()->round = round.value();
      }
    }
    return world_.disk.Write(machine_, part + "/DATA.partial", content);
  });
  if (!world_.Lacks(Mutant::kNoSync)) {
    steps.push_back([this, part] { return world_.disk.Sync(machine_, part + "/DATA.partial"); });
  }
  steps.push_back([this, part] {
    return world_.disk.Rename(machine_, part + "/DATA.partial", part + "/DATA");
  });
  if (!world_.Lacks(Mutant::kNoDirectorySync)) {
    steps.push_back([this, part] { return world_.disk.SyncDirectory(machine_, part); });
  }
  Post(std::move(steps),
       [this, id = frozen.job, round = frozen.round, part, tell](const Status& status) {
         if (!status.ok()) world_.disk.RemoveTree(part);
         Job* owner = FindJob(id);
         if (owner == nullptr || !owner->round.has_value() || owner->round->round != round) return;
         if (!status.ok()) return OnRoundFailed(id, round, status.error().message);
         if (!world_.Lacks(Mutant::kAnswerBeforeWritten)) tell();
       });
}

// As CheckpointStore::Write() and checkpoint::Writer do it with a shard.
StoredShard ServerNode::Store(const server::FrozenShard& frozen, Round base) {
  auto image = std::make_shared<checkpoint::ShardImage>(frozen.ToImage());
  std::vector<Written>& of = written_[{image->job, image->shard}];
  Written made{image->round, {}, frozen.identity(), frozen.cut(), image->values};
  auto from =
      std::find_if(of.begin(), of.end(), [base](const Written& one) { return one.round == base; });
  if (base == Round()) from = of.end();
  if (from != of.end()) {
    std::vector<Round> bases = from->bases;
    bases.insert(bases.begin(), base);
    const std::string job = store_ + "/job-" + std::to_string(image->job.value()) + "/ckpt-";
    const bool there = std::all_of(bases.begin(), bases.end(), [&](Round one) {
      const std::string part = job + std::to_string(one.value()) + "/" + procid_;
      return world_.disk.List(part).contains("DATA");
    });
    if (there && from->identity == made.identity) made.bases = std::move(bases);
  }
  StoredShard stored{made.bases, image, {}};
  if (!made.bases.empty()) {
    const Written& since = world_.Lacks(Mutant::kBuildOnAborted) ? of.back() : *from;
    for (std::uint32_t i = 0; i < image->values.size(); ++i) {
      if (!frozen.BlockChanged(0, since.cut)) break;  // a shard has one block
      if (image->values[i] != since.values[i]) stored.changed[i] = image->values[i];
    }
    image->values.clear();
  }
  std::erase_if(of, [base](const Written& old) { return old.round != base; });
  of.push_back(std::move(made));
  return stored;
}

std::string ServerNode::Reach(const std::string& endpoint) const {
  const auto at = world_.file_services.find(endpoint);
  if (at == world_.file_services.end() || world_.network.Blocked(machine_, at->second) ||
      world_.network.Blocked(at->second, machine_)) {
    return "";
  }
  return world_.stores.Of(at->second);
}

void ServerNode::OnCopyPart(const control::CopyPartT& copy) {
  const auto work = std::make_shared<control::CopyPartT>(control::Clone(copy));
  const auto tell = [this, work](const Status& copied) {
    if (copied.ok()) {
      control::PartCopiedT done;
      done.job = work->job;
      done.round = work->round;
      done.part = work->part;
      return Send(control::Make(std::move(done)));
    }
    control::PartCopyFailedT failed;
    failed.job = work->job;
    failed.round = work->round;
    failed.part = work->part;
    failed.message = copied.error().message;
    Send(control::Make(std::move(failed)));
  };
  if (world_.Lacks(Mutant::kAnswerBeforeWritten)) tell(Ok());
  std::vector<std::string> rounds;
  for (const auto& base : copy.bases) {
    if (world_.Lacks(Mutant::kCopyAlone)) break;
    rounds.push_back(RoundBeside(copy.directory, Round(base->round)));
  }
  rounds.push_back(copy.directory);
  std::vector<DiskStep> steps;
  for (const std::string& round : rounds) {
    const std::string part = round + "/" + copy.part;
    const std::string own = store_ + "/" + part;
    const auto is_there = [this, own] { return world_.disk.List(own).contains("DATA"); };
    steps.push_back([this, part, own, work, is_there]() -> Status {
      if (is_there()) return Ok();
      const std::string from = Reach(work->source->endpoint);
      if (from.empty()) return Error{ErrorCode::kUnreachable, "the source does not answer"};
      return world_.disk.Write(machine_, own + "/DATA.partial",
                               *PS_TRY(world_.disk.Read(from + "/" + part + "/DATA")));
    });
    steps.push_back([this, own, is_there]() -> Status {
      if (is_there() || world_.Lacks(Mutant::kNoSync)) return Ok();
      return world_.disk.Sync(machine_, own + "/DATA.partial");
    });
    steps.push_back([this, own, is_there]() -> Status {
      if (is_there()) return Ok();
      return world_.disk.Rename(machine_, own + "/DATA.partial", own + "/DATA");
    });
    if (world_.Lacks(Mutant::kNoDirectorySync)) continue;
    steps.push_back([this, own] { return world_.disk.SyncDirectory(machine_, own); });
  }
  Post(std::move(steps), [this, tell](const Status& status) {
    if (!world_.Lacks(Mutant::kAnswerBeforeWritten)) tell(status);
  });
}

void ServerNode::OnWriteManifest(const control::WriteManifestT& write) {
  const auto tell = [this, job = write.job, round = write.round] {
    control::ManifestWrittenT done;
    done.job = job;
    done.round = round;
    Send(control::Make(std::move(done)));
  };
  if (world_.Lacks(Mutant::kAnswerBeforeWritten)) tell();
  std::vector<DiskStep> steps;
  for (const auto& one : write.parts) {
    const std::string part = store_ + "/" + write.directory + "/" + one->name;
    const std::string name = part + "/" + checkpoint::kManifestFile;
    steps.push_back([this, part, name, text = write.manifest]() -> Status {
      if (world_.disk.List(part).empty()) {
        return Error{ErrorCode::kConflict, "this server has no such part of the round"};
      }
      return world_.disk.Write(machine_, name + ".partial", DiskContent{text, {}});
    });
    steps.push_back([this, name] { return world_.disk.Sync(machine_, name + ".partial"); });
    steps.push_back([this, name] { return world_.disk.Rename(machine_, name + ".partial", name); });
    if (!world_.Lacks(Mutant::kNoDirectorySync)) {
      steps.push_back([this, part] { return world_.disk.SyncDirectory(machine_, part); });
    }
  }
  Post(std::move(steps), [this, job = write.job, round = write.round, tell](const Status& status) {
    if (!status.ok()) {
      return OnRoundFailed(JobId(job), Round(round), "manifest: " + status.error().message);
    }
    if (!world_.Lacks(Mutant::kAnswerBeforeWritten)) tell();
  });
}

void ServerNode::OnRoundCommitted(const control::RoundCommittedT& committed) {
  Job* job = FindJob(JobId(committed.job));
  const Round round(committed.round);
  if (job != nullptr && job->round.has_value() && job->round->round <= round) job->round.reset();
  std::vector<std::uint64_t> keep;
  for (const auto& kept : committed.keep) keep.push_back(kept->round);
  if (world_.Lacks(Mutant::kDeleteKept) && keep.size() > 1) {
    keep.erase(std::min_element(keep.begin(), keep.end()));
  }
  Post({[this, base = store_ + "/job-" + std::to_string(committed.job), round,
         keep = std::move(keep)] {
         for (const std::string& name : world_.disk.List(base)) {
           const std::uint64_t number = std::stoull(name.substr(name.find('-') + 1));
           if (number >= round.value() ||
               std::find(keep.begin(), keep.end(), number) != keep.end()) {
             continue;
           }
           world_.disk.RemoveTree(base + "/" + name);
         }
         return Ok();
       }},
       nullptr);
}

void ServerNode::Post(std::vector<DiskStep> steps, std::function<void(const Status&)> done) {
  writer_.push_back(Work{std::move(steps), 0, std::move(done)});
  if (!std::exchange(writing_, true)) RunWriter();
}

void ServerNode::RunWriter() {
  world_.schedule.After(1 + world_.schedule.Below(kDiskMs), machine_, life_, [this] {
    Work& work = writer_.front();
    const Status status = work.steps[work.next++]();
    if (status.ok() && work.next < work.steps.size()) return RunWriter();
    const auto done = std::move(work.done);
    writer_.pop_front();
    writing_ = !writer_.empty();
    if (writing_) RunWriter();
    if (done) done(status);
  });
}

// ---- restores

// As SourceLoader::Load() of a checkpoint with every other value of the job's only tensor, in one
// shard.
void ServerNode::Load(std::uint32_t lane, const server::RestoreWanted& wanted) {
  world_.schedule.After(1 + world_.schedule.Below(4 * kDiskMs), machine_, life_, [=, this] {
    PostToLane(lane, [this, wanted](server::LaneCore& core) {
      std::uint64_t elements = 0;
      for (const auto& table : world_.layout.tables) elements += table->elements;
      const auto half = static_cast<std::int64_t>(elements / 2);
      const ModelParts job{{{"counts", {half, 2}, 0, false}}, {}};
      server::LoadSource source;
      source.parts = {{{"counts", {half, 1}, 0, false}}, {}};
      source.mapping.tensors = {{0, 0}};
      source.shard_begins = {0, elements / 2};
      checkpoint::ShardImage image;
      image.job = JobId(1000);
      image.round = Round(1);
      image.epoch = Epoch(1);
      image.block_elements = {static_cast<std::uint32_t>(half)};
      image.values.assign(elements / 2, kInitialValue);
      std::unique_ptr<server::Shard> shard = wanted.MakeShard();
      {
        server::PartialLoad load(*shard, job);
        for (const ShardId from : load.BeginSource(source)) {
          load.BeginShard(from);
          checkpoint::ContentCheck check(from, load, /*with_digest=*/false);
          PS_CHECK(checkpoint::SendImage(image, check).ok() && check.Finish().ok(), from);
        }
        PS_CHECK(load.EndSource().ok(), wanted.shard);
        load.Finish();
      }
      (void)core.InstallRestored(wanted, std::move(shard));
    });
  });
}

void ServerNode::OnRestoreWanted(std::uint32_t lane, const server::RestoreWanted& wanted) {
  if (wanted.round == Round()) return Load(lane, wanted);
  Job* job = FindJob(wanted.job);
  if (job == nullptr) return;
  if (job->restore.empty()) {
    return OnRestoreFailed(wanted, "the map wants a restore, but no checkpoint was named", false);
  }
  Restore(lane, wanted, RoundBeside(job->restore, wanted.round), 1);
}

void ServerNode::Restore(std::uint32_t lane, const server::RestoreWanted& wanted,
                         const std::string& name, int attempt) {
  world_.schedule.After(1 + world_.schedule.Below(4 * kDiskMs), machine_, life_, [=, this] {
    // As server::RestoreReader: the own folder, then those of the others.
    const Job* const job = FindJob(wanted.job);
    std::vector<std::string> places = {store_};
    bool silent = false;
    std::vector<std::string> asked = {store_};
    for (const auto& [source, endpoint] : job == nullptr ? Sources() : job->sources) {
      asked.push_back(source);
      const std::string store = Reach(endpoint);
      silent = silent || store.empty();
      if (!store.empty() && store != store_) places.push_back(store);
    }
    std::string text;
    for (const std::string& store : places) {
      const std::string round = store + "/" + name;
      for (const std::string& part : world_.disk.List(round)) {
        const auto copy = world_.disk.Read(round + "/" + part + "/" + checkpoint::kManifestFile);
        if (copy.ok() && text.empty()) text = (*copy)->text;
      }
    }
    std::shared_ptr<const checkpoint::ShardImage> image;
    const auto manifest = checkpoint::FromJson(text);
    for (const std::string& store : places) {
      if (!manifest.ok() || image != nullptr) break;
      const auto read =
          world_.disk.ReadShard(store + "/" + name, manifest->shards[wanted.shard.value()], false);
      if (read.ok()) image = *read;
    }
    if (image == nullptr) {
      if (!silent && attempt < kRestoreAttempts) {
        world_.schedule.After(kRestoreRetryMs, machine_, life_,
                              [=, this] { Restore(lane, wanted, name, attempt + 1); });
        return;
      }
      return OnRestoreFailed(wanted, name + " cannot be read", !silent, asked);
    }
    PostToLane(lane, [this, wanted, image](server::LaneCore& core) {
      checkpoint::ShardImage copy = *image;
      if (world_.Lacks(Mutant::kImagesWithoutWatermarks)) copy.marks.clear();
      const Status installed =
          core.InstallRestored(wanted.job, wanted.epoch, std::move(copy), false);
      if (installed.ok()) {
        const server::Shard* shard = core.FindShard(wanted.job, wanted.shard);
        return world_.history.Restored(wanted.shard, shard->lineage(), *image);
      }
      if (installed.error().code == ErrorCode::kConflict) return;
      OnRestoreFailed(wanted, installed.error().message, false);
    });
  });
}

void ServerNode::OnRestoreFailed(const server::RestoreWanted& wanted, const std::string& message,
                                 bool damaged, std::vector<std::string> asked) {
  Job* job = FindJob(wanted.job);
  if (job == nullptr) return;
  const auto own = job->own.find(wanted.shard);
  if (own == job->own.end() || own->second != wanted.epoch) return;
  control::RestoreFailedT& failed = job->failed[wanted.shard];
  failed = {};
  failed.job = wanted.job.value();
  failed.shard = wanted.shard.value();
  failed.round = wanted.round.value();
  failed.epoch = wanted.epoch.value();
  failed.message = message;
  failed.damaged = damaged;
  failed.asked = std::move(asked);
  Send(control::Make(control::RestoreFailedT(failed)));
}

void ServerNode::Report() {
  if (!control_->registered()) return;
  std::map<JobId, control::ServerReportT> reports;
  for (const auto& [id, job] : jobs_) {
    reports[id].job = id.value();
    reports[id].asked = job.asked;
  }
  for (const Lane& lane : lanes_) {
    for (const server::JobStatus& job : lane.core->Report()) {
      const auto at = reports.find(job.job);
      if (at == reports.end()) continue;
      for (const server::ShardStatus& shard : job.shards) {
        auto state = std::make_unique<control::ShardStateT>();
        state->shard = shard.shard.value();
        state->epoch = shard.epoch.value();
        state->state = static_cast<std::uint8_t>(shard.state);
        state->version = shard.version;
        at->second.shards.push_back(std::move(state));
      }
      for (const server::FeedStatus& feed : job.feeds) {
        auto state = std::make_unique<control::FeedStateT>();
        state->shard = feed.shard.value();
        state->epoch = feed.epoch.value();
        state->since = feed.since;
        state->to = feed.endpoint;
        state->synced = feed.synced || world_.Lacks(Mutant::kSyncedTooEarly);
        state->stalled_ms = feed.stalled_ms;
        at->second.feeds.push_back(std::move(state));
      }
    }
  }
  for (auto& [id, report] : reports) Send(control::Make(std::move(report)));
}

}  // namespace ps::simulation
