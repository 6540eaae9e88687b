#include "ps-server/core/lane_core.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <optional>
#include <utility>

#include "common/check.h"
#include "ps-server/core/shard_load.h"

namespace ps::server {
namespace {

constexpr std::size_t kSpareRepliesMax = 256;
constexpr std::size_t kSpareHeadBytesMax = std::size_t{16} << 10;
constexpr std::size_t kSparePullsMax = 64;
constexpr std::size_t kSpareKeyBytesMax = std::size_t{1} << 20;

std::uint8_t AllowedFlags(wire::Kind kind) {
  switch (kind) {
    case wire::Kind::Push: return wire::kCoversLane | wire::kReplay;
    case wire::Kind::Pull: return wire::kPullFp32 | wire::kPullSnapshot;
    case wire::Kind::Hold: return wire::kHoldOn;
    case wire::Kind::Replicate: return wire::kReplicateRelease;
    case wire::Kind::ReplicaImage: return wire::kLastPiece;
    default: return 0;
  }
}

bool IsRequest(wire::Kind kind) {
  switch (kind) {
    case wire::Kind::Hello:
    case wire::Kind::Init:
    case wire::Kind::Push:
    case wire::Kind::Pull:
    case wire::Kind::Marker:
    case wire::Kind::Hold:
    case wire::Kind::Replicate:
    case wire::Kind::ReplicaHello:
    case wire::Kind::ReplicaImage: return true;
    default: return false;
  }
}

wire::Segment StateSegment(ShardId id, const Shard* shard, wire::Code code, std::uint64_t version) {
  return wire::Segment(id.value(), shard != nullptr ? shard->epoch().value() : 0, version,
                       shard != nullptr ? shard->lineage() : 0, static_cast<std::uint8_t>(code), 0,
                       0, 0, 0);
}

}  // namespace

LaneCounters& LaneCounters::operator+=(const LaneCounters& other) {
  pushes += other.pushes;
  pushes_applied += other.pushes_applied;
  pushes_repeated += other.pushes_repeated;
  pushes_too_old += other.pushes_too_old;
  pushes_non_finite += other.pushes_non_finite;
  pushes_gap += other.pushes_gap;
  pulls += other.pulls;
  pulls_parked += other.pulls_parked;
  pulls_replaced += other.pulls_replaced;
  shards_unchanged += other.shards_unchanged;
  shards_sparse += other.shards_sparse;
  shards_increments += other.shards_increments;
  shards_snapshot += other.shards_snapshot;
  freezes += other.freezes;
  copies_changed += other.copies_changed;
  copies_installed += other.copies_installed;
  copies_broken += other.copies_broken;
  bytes_in += other.bytes_in;
  bytes_out += other.bytes_out;
  clocks_ahead += other.clocks_ahead;
  version_gap += other.version_gap;
  for (std::size_t code = 0; code < kCodes; ++code) refused[code] += other.refused[code];
  return *this;
}

// Whom to answer, and what the request said.
struct LaneCore::Peer {
  std::string identity;
  wire::LaneHeader header;
};

struct LaneCore::Job {
  struct ParkedPull {
    Incarnation incarnation;
    Peer peer;
    std::vector<wire::Segment> asked;
    std::vector<std::byte> keys;  // the payload: parts of rows
  };
  struct WaitingMarker {
    Incarnation incarnation;
    Round round;
    Clock clock;
    Peer peer;
  };
  struct OpenRound {
    Round round;
    std::uint64_t live_version = 0;
    std::uint64_t map_version = 0;
  };

  // Of a shard that is elsewhere.
  struct Copy {
    Epoch epoch;
    std::uint32_t lineage = 0;
    std::uint64_t since = 0;
    std::optional<ChainNext> next;
    std::unique_ptr<Shard> shard;  // null until it has values
    // The image on its way here.
    struct Incoming {
      std::string from;
      std::uint64_t image = 0;
      std::uint64_t pieces = 0;  // that are here
      std::uint64_t changes = 0;
      std::unique_ptr<Shard> made;
      std::unique_ptr<ShardLoad> load;
      ShardImageReader reader;
    };
    std::optional<Incoming> incoming;
  };
  struct HeldAnswer {
    std::uint64_t after = 0;  // leaves when the feeds cover this
    std::string to;
    wire::LaneHeader header;
    std::vector<wire::Segment> segments;
    PooledBuffer payload;
    std::optional<LaneFrozen> frozen;  // instead of a message
  };

  Job(JobSetup setup, const LaneMemory& lane_memory, ImageBudget& image_budget)
      : id(setup.job),
        token(setup.token),
        plan(std::make_shared<JobPlan>(std::move(setup.layout), std::move(setup.rules))),
        feeds(
            id, token, [this](ShardId shard) { return FindFed(shard); }, image_budget) {
    copies.resize(layout.shard_count());
    PS_CHECK(RowRulesFit(layout, rules.rows), id, rules.rows.size(), layout.row_table_count());
    shards.resize(layout.shard_count());
    seen.resize(layout.shard_count(), 0);
    gone.resize(rules.rows.size());
    memory.hash_seed = lane_memory.hash_seed;
    if (lane_memory.make_memory) memory.memory = lane_memory.make_memory();
  }

  Shard* Find(std::uint32_t shard) { return shard < shards.size() ? shards[shard].get() : nullptr; }
  Copy* FindCopy(std::uint32_t shard) {
    return shard < copies.size() ? copies[shard].get() : nullptr;
  }
  const Shard* FindFed(ShardId shard) const {
    const std::size_t number = shard.value();
    if (shards[number] != nullptr) return shards[number].get();
    return copies[number] != nullptr ? copies[number]->shard.get() : nullptr;
  }

  Member* FindMember(Incarnation incarnation) {
    const auto at = std::lower_bound(
        live.members.begin(), live.members.end(), incarnation,
        [](const Member& member, Incarnation wanted) { return member.incarnation < wanted; });
    return at != live.members.end() && at->incarnation == incarnation ? &*at : nullptr;
  }

  void Park(const Peer& peer, std::span<const wire::Segment> asked,
            std::span<const std::byte> keys) {
    ParkedPull pull;
    if (!spare_pulls.empty()) {
      pull = std::move(spare_pulls.back());
      spare_pulls.pop_back();
    }
    pull.incarnation = Incarnation(peer.header.incarnation());
    pull.peer = peer;
    pull.asked.assign(asked.begin(), asked.end());
    pull.keys.assign(keys.begin(), keys.end());
    parked.push_back(std::move(pull));
  }
  void Unpark(std::size_t at) {
    ParkedPull& pull = parked[at];
    if (spare_pulls.size() < kSparePullsMax && pull.keys.capacity() <= kSpareKeyBytesMax) {
      spare_pulls.push_back(std::move(pull));
    }
    parked.erase(parked.begin() + static_cast<std::ptrdiff_t>(at));
  }

  // What the tables of rows have done here, on shards that are gone too.
  std::vector<JobStatus::Table> TableStatus() const {
    std::vector<JobStatus::Table> tables;
    for (std::size_t number = 0; number < rules.rows.size(); ++number) {
      JobStatus::Table table{rules.rows[number].name, gone[number]};
      for (const ShardId shard : own) {
        table.status += shards[shard.value()]->rows().status(number);
      }
      tables.push_back(std::move(table));
    }
    return tables;
  }
  // Keeps what a shard that leaves has counted.
  void CountGone(const Shard& shard) {
    copied_gone += shard.memory_use().copied;
    for (std::size_t number = 0; number < gone.size(); ++number) {
      gone[number] += shard.rows().status(number);
      gone[number].rows = 0;
      gone[number].bytes = 0;
    }
  }

  std::uint32_t LiveWorkers() const {
    return static_cast<std::uint32_t>(
        std::count_if(live.members.begin(), live.members.end(),
                      [](const Member& member) { return !member.draining; }));
  }

  const JobId id;
  const std::uint64_t token;
  const std::shared_ptr<const JobPlan> plan;
  const LayoutView& layout = plan->layout;
  const JobRules& rules = plan->rules;

  bool has_map = false;
  std::uint64_t map_version = 0;
  bool has_live = false;
  LiveMembers live;
  std::uint32_t live_workers = 0;
  ShardMemory memory;
  std::vector<std::unique_ptr<Shard>> shards;  // by number; null: not on this lane
  std::vector<RowTableStatus> gone;            // counters of tables on shards that left
  std::uint64_t copied_gone = 0;               // MemoryUse::copied of these shards
  std::vector<ShardId> own;                    // increasing
  std::vector<ParkedPull> parked;
  std::vector<ParkedPull> spare_pulls;  // memory of answered pulls, for later ones
  std::vector<WaitingMarker> markers;
  std::optional<OpenRound> open;
  Round last_round;    // the highest begun or aborted
  Round frozen_round;  // the last that this lane completed, not aborted since
  LaneCounters counters;

  std::vector<std::unique_ptr<Copy>> copies;  // by number; null: none here
  std::vector<ShardStatus> lost;              // that we should have had a copy of
  ChainFeeds feeds;
  std::deque<HeldAnswer> held_answers;
  struct HeldReplyUp {
    std::string to;
    wire::LaneHeader header;
    std::vector<wire::Segment> segments;
    std::vector<std::pair<ShardId, std::uint64_t>> needs;
  };
  std::vector<HeldReplyUp> held_up;

  // seen[shard] == seen_mark: the message at hand lists the shard.
  std::vector<std::uint64_t> seen;
  std::uint64_t seen_mark = 0;
};

LaneCore::LaneCore(LaneMemory memory, std::uint64_t image_rate)
    : memory_(std::move(memory)), image_budget_(image_rate) {}
LaneCore::~LaneCore() = default;

LaneCore::Job* LaneCore::FindJob(JobId job) {
  const auto at = jobs_.find(job);
  return at != jobs_.end() ? at->second.get() : nullptr;
}

const Shard* LaneCore::FindShard(JobId job, ShardId shard) const {
  const auto at = jobs_.find(job);
  return at != jobs_.end() ? at->second->Find(shard.value()) : nullptr;
}

const Shard* LaneCore::FindCopy(JobId job, ShardId shard) const {
  const auto at = jobs_.find(job);
  const Job::Copy* copy = at != jobs_.end() ? at->second->FindCopy(shard.value()) : nullptr;
  return copy != nullptr ? copy->shard.get() : nullptr;
}

// ---- replies

void LaneCore::Reply(const Peer& peer, wire::LaneHeader header,
                     std::span<const wire::Segment> segments, PooledBuffer payload) {
  header.mutate_payload_bytes(payload.size());
  if (!payload.empty()) buffers_->CountOut(payload);
  Job* job = has_chains_ ? FindJob(JobId(header.job())) : nullptr;
  if (job == nullptr || MayLeave(*job)) {
    return Answer(peer.identity, header, segments, std::move(payload));
  }
  if (job->held_answers.size() >= kHeldAnswersMax) return;
  job->held_answers.push_back(Job::HeldAnswer{job->feeds.appended(),
                                              peer.identity,
                                              header,
                                              {segments.begin(), segments.end()},
                                              std::move(payload),
                                              std::nullopt});
}

bool LaneCore::MayLeave(const Job& job) const {
  return job.held_answers.empty() && job.feeds.Covers(job.feeds.appended());
}

void LaneCore::Emit(Job& job, LaneFrozen frozen) {
  if (MayLeave(job)) return events_.emplace_back(std::move(frozen)), void();
  Job::HeldAnswer held;
  held.after = job.feeds.appended();
  held.frozen = std::move(frozen);
  job.held_answers.push_back(std::move(held));
}

void LaneCore::ReplyUp(Job& job, const Peer& peer, wire::LaneHeader header,
                       std::span<const wire::Segment> segments) {
  header.mutate_payload_bytes(0);
  const bool everywhere = std::all_of(needs_.begin(), needs_.end(), [&](const auto& need) {
    return job.feeds.Has(need.first, need.second);
  });
  if (everywhere) return Answer(peer.identity, header, segments, {});
  if (job.held_up.size() >= kHeldAnswersMax) return;
  job.held_up.push_back({peer.identity, header, {segments.begin(), segments.end()}, needs_});
}

void LaneCore::ReleaseAnswers(Job& job) {
  std::erase_if(job.held_up, [&](const Job::HeldReplyUp& held) {
    const bool everywhere =
        std::all_of(held.needs.begin(), held.needs.end(),
                    [&](const auto& need) { return job.feeds.Has(need.first, need.second); });
    if (everywhere) Answer(held.to, held.header, held.segments, {});
    return everywhere;
  });
  while (!job.held_answers.empty() && job.feeds.Covers(job.held_answers.front().after)) {
    Job::HeldAnswer held = std::move(job.held_answers.front());
    job.held_answers.pop_front();
    if (held.frozen.has_value()) {
      events_.emplace_back(std::move(*held.frozen));
    } else {
      Answer(held.to, held.header, held.segments, std::move(held.payload));
    }
  }
}

void LaneCore::Answer(const std::string& to, wire::LaneHeader header,
                      std::span<const wire::Segment> segments, PooledBuffer payload) {
  const std::uint64_t bytes = sizeof(wire::LaneHeader) + segments.size_bytes() + payload.size();
  counters_.bytes_out += bytes;
  if (Job* job = FindJob(JobId(header.job()))) job->counters.bytes_out += bytes;
  const bool batches = header.kind() == static_cast<std::uint8_t>(wire::Kind::PushReply);
  if (batches && batched_ > 0 && batched_ < wire::kMaxBatch && replies_.back().to == to) {
    wire::AppendHead(header, segments, replies_.back().head);
    ++batched_;
    return;
  }
  batched_ = batches ? 1 : 0;
  LaneReply reply;
  if (!spare_replies_.empty()) {
    reply = std::move(spare_replies_.back());
    spare_replies_.pop_back();
  }
  reply.to = to;
  reply.head.clear();
  wire::AppendHead(header, segments, reply.head);
  if (!payload.empty()) reply.payload = std::move(payload);
  replies_.push_back(std::move(reply));
}

namespace {

// The header of an answer: it repeats whom it is for and which request it answers.
wire::LaneHeader AnswerTo(const wire::LaneHeader& request, wire::Kind kind,
                          std::uint64_t map_version, wire::Code code) {
  return wire::LaneHeader(wire::kMagic, wire::kProtocolVersion, static_cast<std::uint8_t>(kind), 0,
                          request.job(), request.worker(), request.incarnation(), request.clock(),
                          request.request(), map_version, 0, static_cast<std::uint32_t>(code), 0,
                          0);
}

}  // namespace

void LaneCore::Nack(const Peer& peer, wire::Code code, std::span<const wire::Segment> segments) {
  ++counters_.refused[static_cast<std::size_t>(code)];
  Job* job = FindJob(JobId(peer.header.job()));
  if (job != nullptr) ++job->counters.refused[static_cast<std::size_t>(code)];
  // Who is denied learns nothing of the job.
  const bool tells = job != nullptr && code != wire::Code::Denied;
  Reply(peer, AnswerTo(peer.header, wire::Kind::Nack, tells ? job->map_version : 0, code), segments,
        {});
}

void LaneCore::TakeReplies(std::vector<LaneReply>& replies) {
  for (LaneReply& reply : replies) {
    reply.payload.Reset();
    if (spare_replies_.size() < kSpareRepliesMax && reply.head.capacity() <= kSpareHeadBytesMax) {
      spare_replies_.push_back(std::move(reply));
    }
  }
  replies.clear();
  replies.swap(replies_);
  batched_ = 0;
}
std::vector<LaneEvent> LaneCore::TakeEvents() { return std::exchange(events_, {}); }

std::size_t LaneCore::parked_pulls() const {
  std::size_t parked = 0;
  for (const auto& [id, job] : jobs_) parked += job->parked.size();
  return parked;
}

std::vector<JobStatus> LaneCore::Report() const {
  std::vector<JobStatus> status;
  for (const auto& [id, job] : jobs_) {
    JobStatus one;
    one.job = id;
    one.map_version = job->map_version;
    one.parked_pulls = job->parked.size();
    one.counters = job->counters;
    one.memory.copied = job->copied_gone;
    for (const ShardId shard : job->own) {
      const Shard& own = *job->shards[shard.value()];
      one.memory += own.memory_use();
      one.shards.push_back(ShardStatus{shard, own.epoch(), own.state(), own.version()});
    }
    one.tables = job->TableStatus();
    one.shards.insert(one.shards.end(), job->lost.begin(), job->lost.end());
    one.feeds = job->feeds.Report();
    one.feed_counters = job->feeds.counters();
    one.unconfirmed_bytes = job->feeds.unconfirmed_bytes();
    one.held_answers = job->held_answers.size();
    for (const auto& copy : job->copies) {
      if (copy == nullptr || copy->shard == nullptr) continue;
      ++one.copies;
      one.memory += copy->shard->memory_use();
    }
    status.push_back(std::move(one));
  }
  return status;
}

// ---- messages

void LaneCore::OnMessage(std::string_view from, std::span<const std::byte> head,
                         std::span<const std::byte> payload) {
  counters_.bytes_in += head.size() + payload.size();
  Peer peer{std::string(from), {}};
  std::uint32_t heads = 0;
  do {
    const auto parsed = wire::ParseFirst(head, head_);
    if (!parsed.ok()) return RefuseUnreadable(peer, head);
    peer.header = head_.header;
    head = head.subspan(*parsed);
    const bool batch = heads > 0 || !head.empty();
    if (batch && peer.header.kind() != static_cast<std::uint8_t>(wire::Kind::Push)) {
      return Nack(peer, wire::Code::Malformed);
    }
    if (heads == wire::kMaxBatch) return Nack(peer, wire::Code::TooLarge);
    Dispatch(peer, payload, heads == 0);
    ++heads;
  } while (!head.empty());
}

void LaneCore::RefuseUnreadable(Peer& peer, std::span<const std::byte> head) {
  // Who does not begin with our magic would not understand the answer either.
  if (head.size() >= sizeof(wire::LaneHeader)) {
    std::memcpy(&peer.header, head.data(), sizeof(wire::LaneHeader));
  }
  if (head.size() < sizeof(wire::LaneHeader) || peer.header.magic() != wire::kMagic) {
    ++counters_.refused[static_cast<std::size_t>(wire::Code::Malformed)];
    return;
  }
  if (peer.header.version() != wire::kProtocolVersion) {
    Nack(peer, wire::Code::BadVersion);
  } else if (peer.header.segments() > wire::kMaxSegments ||
             peer.header.payload_bytes() > wire::kMaxPayloadBytes) {
    Nack(peer, wire::Code::TooLarge);
  } else {
    Nack(peer, wire::Code::Malformed);
  }
}

void LaneCore::Dispatch(const Peer& peer, std::span<const std::byte> payload, bool payload_counts) {
  const wire::LaneHeader& header = peer.header;
  const auto kind = static_cast<wire::Kind>(header.kind());
  // A Nack is never answered: two sides that refuse each other would do so for ever.
  if (!IsRequest(kind)) {
    ++counters_.refused[static_cast<std::size_t>(wire::Code::Malformed)];
    return;
  }
  if (header.payload_bytes() != payload.size() ||
      (header.flags() & static_cast<unsigned>(~AllowedFlags(kind))) != 0) {
    return Nack(peer, wire::Code::Malformed);
  }
  Job* job = FindJob(JobId(header.job()));
  if (job == nullptr) return Nack(peer, wire::Code::UnknownJob);
  if (header.token() != job->token) {
    denied_ = job->id;
    return Nack(peer, wire::Code::Denied);
  }
  job->counters.bytes_in += sizeof(wire::LaneHeader) +
                            head_.segments.size() * sizeof(wire::Segment) +
                            (payload_counts ? payload.size() : 0);
  switch (kind) {
    case wire::Kind::Replicate: return OnReplicate(*job, peer, payload);
    case wire::Kind::ReplicaHello: return OnReplicaHello(*job, peer);
    case wire::Kind::ReplicaImage: return OnReplicaImage(*job, peer, payload);
    default: break;
  }
  Member* member = job->FindMember(Incarnation(header.incarnation()));
  if (member == nullptr || member->worker != WorkerId(header.worker())) {
    return Nack(peer, wire::Code::NotLive);
  }
  switch (kind) {
    case wire::Kind::Hello: return OnHello(*job, peer);
    case wire::Kind::Init: return OnInit(*job, peer, payload);
    case wire::Kind::Push: return OnPush(*job, *member, peer, payload);
    case wire::Kind::Pull: return OnPull(*job, peer, payload);
    case wire::Kind::Marker: return OnMarker(*job, peer);
    case wire::Kind::Hold: return OnHold(*job, *member, peer);
    default: PS_CHECK(false, header.kind());
  }
}

void LaneCore::OnHello(Job& job, const Peer& peer) {
  const Member* member = job.FindMember(Incarnation(peer.header.incarnation()));
  answer_.clear();
  for (const ShardId id : job.own) {
    const Shard& shard = *job.shards[id.value()];
    answer_.push_back(StateSegment(id, &shard, shard.state(), shard.Watermark(*member).value()));
  }
  Reply(peer, AnswerTo(peer.header, wire::Kind::HelloReply, job.map_version, wire::Code::Applied),
        answer_, {});
}

bool LaneCore::ParseSegments(Job& job, std::span<const std::byte> payload) {
  const std::vector<wire::Segment>& segments = head_.segments;
  if (parsed_.size() < segments.size()) parsed_.resize(segments.size());
  ++job.seen_mark;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const std::uint32_t number = segments[i].shard();
    if (number >= job.layout.shard_count() || job.seen[number] == job.seen_mark) return false;
    job.seen[number] = job.seen_mark;
    const auto bytes = wire::SegmentPayload(segments[i], payload);
    if (!bytes.ok()) return false;
    if (!ParsePush(job.layout, ShardId(number), bytes.value(), parsed_[i]).ok()) return false;
  }
  return true;
}

void LaneCore::OnInit(Job& job, const Peer& peer, std::span<const std::byte> payload) {
  if (head_.segments.empty() || !ParseSegments(job, payload)) {
    return Nack(peer, wire::Code::Malformed);
  }
  for (std::size_t i = 0; i < head_.segments.size(); ++i) {
    if (!parsed_[i].rows.empty()) return Nack(peer, wire::Code::Malformed);
  }
  answer_.clear();
  for (std::size_t i = 0; i < head_.segments.size(); ++i) {
    const wire::Segment& segment = head_.segments[i];
    Shard* shard = job.Find(segment.shard());
    if (shard == nullptr || shard->epoch() != Epoch(segment.epoch())) {
      answer_.push_back(StateSegment(ShardId(segment.shard()), shard, wire::Code::WrongEpoch, 0));
      continue;
    }
    const wire::Code code = shard->Init(parsed_[i].blocks);
    if (code == wire::Code::Malformed || code == wire::Code::NonFinite) {
      ++counters_.refused[static_cast<std::size_t>(code)];
      ++job.counters.refused[static_cast<std::size_t>(code)];
    }
    answer_.push_back(StateSegment(shard->id(), shard, code, shard->version()));
  }
  Reply(peer, AnswerTo(peer.header, wire::Kind::InitReply, job.map_version, wire::Code::Applied),
        answer_, {});
  WakePulls(job);
  TryFreeze(job);
}

void LaneCore::OnPush(Job& job, const Member& member, const Peer& peer,
                      std::span<const std::byte> payload) {
  const wire::LaneHeader& header = peer.header;
  const bool covers = (header.flags() & wire::kCoversLane) != 0;
  if (!ParseSegments(job, payload)) return Nack(peer, wire::Code::Malformed);
  if (covers && header.map_version() != job.map_version) return Nack(peer, wire::Code::StaleMap);
  ++counters_.pushes;
  ++job.counters.pushes;

  PushFacts facts;
  facts.clock = Clock(header.clock());
  facts.samples = header.samples();
  facts.replay = (header.flags() & wire::kReplay) != 0;
  answer_.clear();
  LaneCounters delta;
  const auto push = [&](Shard& shard, std::span<const codec::BlockView> blocks,
                        std::span<const codec::RowsView> rows, std::span<const std::byte> bytes) {
    const Clock slowest = shard.SlowestClock(job.live.members);
    const std::uint64_t version = shard.version();
    const PushVerdict verdict = shard.Push(member, facts, blocks, job.live_workers, rows);
    if (verdict.code == wire::Code::Applied && !verdict.repeated && !facts.replay &&
        (!blocks.empty() || !rows.empty()) && member.Counts()) {
      // The worker had finished the clock before when it made this step.
      const std::uint64_t finished = facts.clock.value() - 1;
      delta.clocks_ahead.Count(finished - std::min(finished, slowest.value()));
      delta.version_gap.Count(version - std::min(version, facts.base_version));
    }
    if (verdict.decided) job.feeds.AddPush(shard.id(), verdict.code, bytes);
    ApplyHeld(job, shard);
    if (verdict.repeated) {
      ++delta.pushes_repeated;
    } else {
      switch (verdict.code) {
        case wire::Code::Applied: ++delta.pushes_applied; break;
        case wire::Code::TooOld: ++delta.pushes_too_old; break;
        case wire::Code::NonFinite: ++delta.pushes_non_finite; break;
        case wire::Code::Gap: ++delta.pushes_gap; break;
        default: break;
      }
    }
    if (verdict.code != wire::Code::Applied) {
      answer_.push_back(StateSegment(shard.id(), &shard, verdict.code, verdict.version));
    }
  };
  for (std::size_t i = 0; i < head_.segments.size(); ++i) {
    const wire::Segment& segment = head_.segments[i];
    Shard* shard = job.Find(segment.shard());
    if (shard == nullptr || shard->epoch() != Epoch(segment.epoch())) {
      answer_.push_back(StateSegment(ShardId(segment.shard()), shard, wire::Code::WrongEpoch, 0));
      continue;
    }
    facts.base_version = segment.version();
    push(*shard, parsed_[i].blocks, parsed_[i].rows,
         payload.subspan(segment.offset(), segment.length()));
  }
  if (covers) {
    facts.base_version = 0;  // of an empty push: not looked at
    for (const ShardId id : job.own) {
      if (job.seen[id.value()] != job.seen_mark) push(*job.shards[id.value()], {}, {}, {});
    }
  }
  job.feeds.SendPushes(DecidedPush{member.worker, member.incarnation, member.first_clock,
                                   facts.clock, facts.samples, wire::Code::Applied},
                       job.live_workers);
  job.feeds.SendReleases(job.live_workers);
  counters_ += delta;
  job.counters += delta;
  Reply(peer, AnswerTo(header, wire::Kind::PushReply, job.map_version, wire::Code::Applied),
        answer_, {});
  WakePulls(job);
  TryFreeze(job);
}

// ---- pulls

bool LaneCore::ParseAsked(Job& job, std::span<const wire::Segment> segments,
                          std::span<const std::byte> payload) {
  if (asked_.size() < segments.size()) asked_.resize(segments.size());
  ++job.seen_mark;
  std::uint64_t named = 0;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const std::uint32_t number = segments[i].shard();
    if (number >= job.layout.shard_count() || job.seen[number] == job.seen_mark) return false;
    job.seen[number] = job.seen_mark;
    const auto bytes = wire::SegmentPayload(segments[i], payload);
    if (!bytes.ok()) return false;
    if (!ParsePull(job.layout, ShardId(number), bytes.value(), asked_[i]).ok()) return false;
    named += segments[i].length();
  }
  // What waits with a pull is what it asks for.
  return named == payload.size();
}

void LaneCore::OnPull(Job& job, const Peer& peer, std::span<const std::byte> payload) {
  if (!ParseAsked(job, head_.segments, payload)) return Nack(peer, wire::Code::Malformed);
  const Incarnation incarnation(peer.header.incarnation());
  const auto replaced =
      std::find_if(job.parked.begin(), job.parked.end(),
                   [&](const Job::ParkedPull& pull) { return pull.incarnation == incarnation; });
  if (replaced != job.parked.end()) {
    job.Unpark(static_cast<std::size_t>(replaced - job.parked.begin()));
    ++counters_.pulls_replaced;
    ++job.counters.pulls_replaced;
  }
  if (!MustWait(job, peer, head_.segments)) return AnswerPull(job, peer, head_.segments);
  ++counters_.pulls_parked;
  ++job.counters.pulls_parked;
  job.Park(peer, head_.segments, payload);
}

bool LaneCore::MustWait(Job& job, const Peer& peer, std::span<const wire::Segment> asked) {
  bool wait = false;
  for (const wire::Segment& segment : asked) {
    Shard* shard = job.Find(segment.shard());
    // A pull of what is not here is refused at once.
    if (shard == nullptr || shard->epoch() != Epoch(segment.epoch())) return false;
    // A shard without values gets them soon, from a worker's Init or from a checkpoint.
    wait = wait || !shard->ready() ||
           shard->SlowestClock(job.live.members) < Clock(peer.header.clock());
  }
  return wait;
}

void LaneCore::AnswerPull(Job& job, const Peer& peer, std::span<const wire::Segment> asked) {
  answer_.clear();
  for (const wire::Segment& segment : asked) {
    Shard* shard = job.Find(segment.shard());
    if (shard == nullptr || shard->epoch() != Epoch(segment.epoch())) {
      answer_.push_back(StateSegment(ShardId(segment.shard()), shard, wire::Code::WrongEpoch, 0));
    }
  }
  if (!answer_.empty()) return Nack(peer, wire::Code::WrongEpoch, answer_);

  const bool fp32 = (peer.header.flags() & wire::kPullFp32) != 0;
  const bool snapshot = (peer.header.flags() & wire::kPullSnapshot) != 0;
  const auto most_of = [&](std::size_t i) {
    return job.Find(asked[i].shard())->MaxPullBytes(fp32, asked_[i]);
  };
  const std::uint64_t first = asked.empty() ? 0 : most_of(0);
  if (first > wire::kMaxPayloadBytes) return Nack(peer, wire::Code::TooLarge);
  std::uint64_t most = first;
  for (std::size_t i = 1; i < asked.size(); ++i) most += most_of(i);
  const bool in_parts = most > kAnswerPartBytes;
  if (in_parts) most = std::max(kAnswerPartBytes, first);
  const std::size_t waiting = buffers_->bytes_out();
  if (waiting > 0 && waiting + most > kAnswerBytesMax) return Nack(peer, wire::Code::Overloaded);
  PooledBuffer answer = buffers_->Take();
  ByteBuffer& payload = answer.bytes();
  if (snapshot) payload.reserve(most);
  Clock slowest(~std::uint64_t{0});
  LaneCounters delta;
  delta.pulls = 1;
  for (std::size_t i = 0; i < asked.size(); ++i) {
    const wire::Segment& segment = asked[i];
    Shard& shard = *job.Find(segment.shard());
    const std::size_t offset = payload.size();
    // Who asked asks again for the rest.
    if (in_parts && i > 0 && offset + most_of(i) > kAnswerPartBytes) break;
    const wire::PullContent content =
        shard.Pull(Shard::PullQuery{segment.version(), segment.lineage(), fp32, snapshot},
                   pull_scratch_, payload, asked_[i]);
    switch (content) {
      case wire::PullContent::Unchanged: ++delta.shards_unchanged; break;
      case wire::PullContent::Sparse: ++delta.shards_sparse; break;
      case wire::PullContent::Increments:
      case wire::PullContent::IncrementsAndHash: ++delta.shards_increments; break;
      case wire::PullContent::Snapshot: ++delta.shards_snapshot; break;
    }
    slowest = std::min(slowest, shard.SlowestClock(job.live.members));
    answer_.push_back(wire::Segment(segment.shard(), shard.epoch().value(), shard.version(),
                                    shard.lineage(), static_cast<std::uint8_t>(content), 0, 0,
                                    static_cast<std::uint32_t>(offset),
                                    static_cast<std::uint32_t>(payload.size() - offset)));
  }
  counters_ += delta;
  job.counters += delta;
  wire::LaneHeader header =
      AnswerTo(peer.header, wire::Kind::PullReply, job.map_version, wire::Code::Applied);
  header.mutate_clock(slowest.value());
  Reply(peer, header, answer_, std::move(answer));
}

void LaneCore::WakePulls(Job& job) {
  for (std::size_t at = 0; at < job.parked.size();) {
    const Job::ParkedPull& pull = job.parked[at];
    if (MustWait(job, pull.peer, pull.asked)) {
      ++at;
      continue;
    }
    PS_CHECK(ParseAsked(job, pull.asked, pull.keys), "the keys of a parked pull were good");
    AnswerPull(job, pull.peer, pull.asked);
    job.Unpark(at);
  }
}

// ---- checkpoint rounds

void LaneCore::OnMarker(Job& job, const Peer& peer) {
  if (!head_.segments.empty() || peer.header.payload_bytes() != 0) {
    return Nack(peer, wire::Code::Malformed);
  }
  const Round round(peer.header.request());
  const bool open = job.open.has_value() && job.open->round == round;
  if (!open && round == job.frozen_round && round != Round()) {
    return Reply(
        peer, AnswerTo(peer.header, wire::Kind::MarkerReply, job.map_version, wire::Code::Applied),
        {}, {});
  }
  // A round above all that are known is about to begin: its marker came over another connection
  // than the coordinator's message and overtook it.
  if (!open && round <= job.last_round) return Nack(peer, wire::Code::RoundAborted);
  const Incarnation incarnation(peer.header.incarnation());
  std::erase_if(job.markers, [&](const Job::WaitingMarker& marker) {
    return marker.incarnation == incarnation;
  });
  job.markers.push_back(Job::WaitingMarker{incarnation, round, Clock(peer.header.clock()), peer});
  TryFreeze(job);
}

void LaneCore::RefuseMarkersUpTo(Job& job, Round round) {
  std::erase_if(job.markers, [&](const Job::WaitingMarker& marker) {
    if (marker.round > round) return false;
    Nack(marker.peer, wire::Code::RoundAborted);
    return true;
  });
}

void LaneCore::FailRound(Job& job, const std::string& reason) {
  const Round round = job.open->round;
  job.open.reset();
  RefuseMarkersUpTo(job, round);
  events_.push_back(LaneRoundFailed{job.id, round, reason});
}

void LaneCore::BeginRound(JobId job_id, Round round, std::uint64_t live_version,
                          std::uint64_t map_version) {
  Job* job = FindJob(job_id);
  if (job == nullptr) {
    events_.push_back(LaneRoundFailed{job_id, round, "the job is not known here"});
    return;
  }
  if (round <= job->last_round) return;
  if (job->open.has_value()) FailRound(*job, "a newer round began");
  // Markers of rounds in between wait for nothing any more.
  RefuseMarkersUpTo(*job, Round(round.value() - 1));
  job->last_round = round;
  job->open = Job::OpenRound{round, live_version, map_version};
  if (live_version != job->live.version || map_version != job->map_version) {
    return FailRound(*job, "the round is of live set " + std::to_string(live_version) +
                               " and map " + std::to_string(map_version) + ", this server has " +
                               std::to_string(job->live.version) + " and " +
                               std::to_string(job->map_version));
  }
  TryFreeze(*job);
}

void LaneCore::AbortRound(JobId job_id, Round round) {
  Job* job = FindJob(job_id);
  if (job == nullptr) return;
  if (job->open.has_value() && job->open->round <= round) job->open.reset();
  if (job->frozen_round <= round) job->frozen_round = Round();
  std::erase_if(job->held_answers, [&](const Job::HeldAnswer& held) {
    return held.frozen.has_value() && held.frozen->round <= round;
  });
  job->last_round = std::max(job->last_round, round);
  RefuseMarkersUpTo(*job, round);
}

void LaneCore::TryFreeze(Job& job) {
  if (!job.open.has_value() || !job.lost.empty()) return;
  const Round round = job.open->round;
  const auto marker_of = [&](const Member& member) {
    return std::find_if(job.markers.begin(), job.markers.end(),
                        [&](const Job::WaitingMarker& marker) {
                          return marker.incarnation == member.incarnation && marker.round == round;
                        });
  };
  // Workers speak only to lanes that have shards: without any there is nothing to wait for.
  for (const Member& member : job.live.members) {
    if (job.own.empty()) break;
    if (!member.draining && marker_of(member) == job.markers.end()) return;
  }
  for (const ShardId id : job.own) {
    const Shard& shard = *job.shards[id.value()];
    if (!shard.ready()) return;
    for (const Member& member : job.live.members) {
      if (member.draining) continue;
      const Clock marked = marker_of(member)->clock;
      const Clock watermark = shard.Watermark(member);
      // A push before the marker was lost on the way; it is sent again.
      if (watermark < marked) return;
      if (watermark > marked) {
        return FailRound(job, "worker " + std::to_string(member.worker.value()) + " pushed clock " +
                                  std::to_string(watermark.value()) + " after its marker at " +
                                  std::to_string(marked.value()));
      }
    }
  }
  LaneFrozen frozen{job.id, round, {}};
  frozen.shards.reserve(job.own.size());
  for (const ShardId id : job.own) {
    frozen.shards.push_back(job.shards[id.value()]->Freeze(job.id, round));
  }
  Emit(job, std::move(frozen));
  job.open.reset();
  job.frozen_round = round;
  ++counters_.freezes;
  ++job.counters.freezes;
  std::erase_if(job.markers, [&](const Job::WaitingMarker& marker) {
    if (marker.round != round) return false;
    Reply(
        marker.peer,
        AnswerTo(marker.peer.header, wire::Kind::MarkerReply, job.map_version, wire::Code::Applied),
        {}, {});
    return true;
  });
}

// ---- staleness

void LaneCore::MembersChanged(Job& job) {
  for (const ShardId id : job.own) {
    Shard& shard = *job.shards[id.value()];
    shard.MembersChanged();
    ApplyHeld(job, shard);
  }
  job.feeds.SendReleases(job.live_workers);
}

void LaneCore::ApplyHeld(Job& job, Shard& shard) {
  const auto until = shard.ApplyHeld(job.live.members, job.live_workers, merge_scratch_);
  if (until.has_value()) job.feeds.AddRelease(shard.id(), *until);
}

void LaneCore::OnHold(Job& job, Member& member, const Peer& peer) {
  if (!head_.segments.empty() || peer.header.payload_bytes() != 0) {
    return Nack(peer, wire::Code::Malformed);
  }
  const bool on = (peer.header.flags() & wire::kHoldOn) != 0;
  // One that was sent before and comes late, or again, says what was so then.
  const bool newest = peer.header.request() >= member.hold_request;
  member.hold_request = std::max(member.hold_request, peer.header.request());
  if (newest && member.held != on) {
    member.held = on;
    MembersChanged(job);
  }
  Reply(peer, AnswerTo(peer.header, wire::Kind::HoldReply, job.map_version, wire::Code::Applied),
        {}, {});
  WakePulls(job);
}

// ---- copies of shards

void LaneCore::OnReplicate(Job& job, const Peer& peer, std::span<const std::byte> payload) {
  const wire::LaneHeader& header = peer.header;
  const bool release = (header.flags() & wire::kReplicateRelease) != 0;
  if (!ParseSegments(job, payload)) return Nack(peer, wire::Code::Malformed);
  for (const wire::Segment& segment : head_.segments) {
    const auto verdict = static_cast<wire::Code>(segment.code());
    const bool known = verdict == wire::Code::Applied ||
                       (!release && segment.length() == 0 &&
                        (verdict == wire::Code::TooOld || verdict == wire::Code::NonFinite));
    if (!known || (release && segment.length() != 0)) return Nack(peer, wire::Code::Malformed);
  }
  DecidedPush push{WorkerId(header.worker()),
                   Incarnation(header.incarnation()),
                   Clock(header.map_version()),
                   Clock(header.clock()),
                   header.samples(),
                   wire::Code::Applied};
  answer_.clear();
  needs_.clear();
  std::uint32_t live_workers = 0;
  for (std::size_t i = 0; i < head_.segments.size(); ++i) {
    const wire::Segment& segment = head_.segments[i];
    const ShardId id(segment.shard());
    Job::Copy* copy = job.FindCopy(segment.shard());
    const auto refuse = [&](wire::Code code) {
      const std::uint64_t has =
          copy != nullptr && copy->shard != nullptr ? copy->shard->changes() : 0;
      answer_.push_back(wire::Segment(segment.shard(), copy != nullptr ? copy->epoch.value() : 0,
                                      has, 0, static_cast<std::uint8_t>(code), 0, 0, 0, 0));
    };
    // Who was the first of the chain before must not change what is another's now.
    if (copy == nullptr || copy->epoch != Epoch(segment.epoch()) ||
        copy->lineage != segment.lineage()) {
      refuse(wire::Code::WrongEpoch);
      continue;
    }
    if (copy->shard == nullptr) {
      refuse(wire::Code::Blank);
      continue;
    }
    Shard& shard = *copy->shard;
    if (segment.version() <= shard.changes()) {
      needs_.emplace_back(id, segment.version());
      continue;
    }
    if (segment.version() != shard.changes() + 1) {
      refuse(wire::Code::Gap);
      continue;
    }
    live_workers = segment.reserved();
    if (release) {
      shard.ApplyHeldUpTo(push.clock, live_workers, merge_scratch_);
      job.feeds.AddRelease(id, push.clock);
    } else {
      push.verdict = static_cast<wire::Code>(segment.code());
      const Status taken = shard.Take(push, parsed_[i].blocks, parsed_[i].rows, live_workers);
      if (!taken.ok()) {
        BreakCopy(job, segment.shard());
        refuse(wire::Code::Blank);
        continue;
      }
      job.feeds.AddPush(id, push.verdict, payload.subspan(segment.offset(), segment.length()));
    }
    needs_.emplace_back(id, segment.version());
    ++counters_.copies_changed;
    ++job.counters.copies_changed;
  }
  job.feeds.SendPushes(push, live_workers);
  job.feeds.SendReleases(live_workers);
  ReplyUp(job, peer,
          AnswerTo(header, wire::Kind::ReplicateReply, job.map_version, wire::Code::Applied),
          answer_);
}

// Its next change does not fit: it is not what it should be. A new image makes it so again.
void LaneCore::BreakCopy(Job& job, std::uint32_t shard) {
  ++counters_.copies_broken;
  ++job.counters.copies_broken;
  job.feeds.SetNext(ShardId(shard), std::nullopt);
  job.FindCopy(shard)->shard.reset();
}

void LaneCore::OnReplicaHello(Job& job, const Peer& peer) {
  if (peer.header.payload_bytes() != 0) return Nack(peer, wire::Code::Malformed);
  answer_.clear();
  needs_.clear();
  for (const wire::Segment& segment : head_.segments) {
    const Job::Copy* copy = job.FindCopy(segment.shard());
    // `version` says which membership is meant: what we had as another one is not here any more.
    const bool same = copy != nullptr && copy->epoch == Epoch(segment.epoch()) &&
                      copy->lineage == segment.lineage() && copy->since == segment.version();
    const Shard* shard = same ? copy->shard.get() : nullptr;
    const wire::Code code = !same              ? wire::Code::WrongEpoch
                            : shard == nullptr ? wire::Code::Blank
                                               : wire::Code::Applied;
    if (shard != nullptr) needs_.emplace_back(shard->id(), shard->changes());
    answer_.push_back(wire::Segment(
        segment.shard(), same ? copy->epoch.value() : 0, shard != nullptr ? shard->changes() : 0,
        copy != nullptr ? copy->lineage : 0, static_cast<std::uint8_t>(code), 0, 0, 0, 0));
  }
  ReplyUp(
      job, peer,
      AnswerTo(peer.header, wire::Kind::ReplicaHelloReply, job.map_version, wire::Code::Applied),
      answer_);
}

void LaneCore::OnReplicaImage(Job& job, const Peer& peer, std::span<const std::byte> payload) {
  if (head_.segments.size() != 1 || head_.segments[0].offset() != 0 ||
      head_.segments[0].length() != payload.size()) {
    return Nack(peer, wire::Code::Malformed);
  }
  const wire::Segment& segment = head_.segments[0];
  const std::uint64_t image = ImageOfPiece(peer.header.request());
  Job::Copy* copy = job.FindCopy(segment.shard());
  const auto answer = [&](wire::Code code, std::uint64_t pieces, std::uint64_t changes) {
    wire::LaneHeader header =
        AnswerTo(peer.header, wire::Kind::ReplicaImageReply, job.map_version, wire::Code::Applied);
    header.mutate_request(image << kPieceBits | pieces);
    const wire::Segment state(segment.shard(), copy != nullptr ? copy->epoch.value() : 0, changes,
                              segment.lineage(), static_cast<std::uint8_t>(code), 0, 0, 0, 0);
    needs_.clear();
    if (code == wire::Code::Applied) needs_.emplace_back(ShardId(segment.shard()), changes);
    ReplyUp(job, peer, header, {&state, 1});
  };
  if (copy == nullptr || copy->epoch != Epoch(segment.epoch()) ||
      copy->lineage != segment.lineage()) {
    return answer(wire::Code::WrongEpoch, 0, 0);
  }
  if (copy->shard != nullptr && copy->shard->changes() >= segment.version()) {
    copy->incoming.reset();
    return answer(wire::Code::Applied, 0, copy->shard->changes());
  }
  const std::uint64_t place = PlaceOfPiece(peer.header.request());
  if (place == 0) {
    copy->incoming.reset();  // its memory may be needed
    auto made = std::make_unique<Shard>(job.layout, job.rules, ShardId(segment.shard()),
                                        copy->epoch, copy->lineage, /*restoring=*/true, job.memory);
    auto load = std::make_unique<ShardLoad>(*made, ShardLoadOptions{});
    ShardImageReader reader(made->id(), *load);
    copy->incoming.emplace(Job::Copy::Incoming{peer.identity, image, 0, segment.version(),
                                               std::move(made), std::move(load),
                                               std::move(reader)});
  }
  auto& incoming = copy->incoming;
  if (!incoming.has_value() || incoming->image != image || incoming->from != peer.identity ||
      incoming->changes != segment.version()) {
    return answer(wire::Code::Blank, 0, 0);
  }
  if (place != incoming->pieces) return answer(wire::Code::Blank, incoming->pieces, 0);
  const auto refuse = [&] {
    incoming.reset();
    ++counters_.refused[static_cast<std::size_t>(wire::Code::Malformed)];
    ++job.counters.refused[static_cast<std::size_t>(wire::Code::Malformed)];
    answer(wire::Code::Blank, 0, 0);
  };
  if (!incoming->reader.Add(payload).ok()) return refuse();
  ++incoming->pieces;
  if ((peer.header.flags() & wire::kLastPiece) == 0) {
    return answer(wire::Code::Blank, incoming->pieces, 0);
  }
  if (!incoming->reader.Finish().ok()) return refuse();
  incoming->load->Finish();
  incoming->load.reset();
  std::unique_ptr<Shard> made = std::move(incoming->made);
  // The chain may have another first since the image began.
  made->SetEpoch(copy->epoch);
  made->SetChanges(segment.version());
  incoming.reset();
  // Who is after us has some beginning of what we had, and may need an image as well.
  job.feeds.Restart(made->id());
  copy->shard = std::move(made);
  job.feeds.SetNext(copy->shard->id(), copy->next);
  ++counters_.copies_installed;
  ++job.counters.copies_installed;
  answer(wire::Code::Applied, 0, segment.version());
}

void LaneCore::OnChainMessage(std::string_view endpoint, std::span<const std::byte> head) {
  counters_.bytes_in += head.size();
  if (!wire::ParseInto(head, head_).ok()) {
    ++counters_.refused[static_cast<std::size_t>(wire::Code::Malformed)];
    return;
  }
  Job* job = FindJob(JobId(head_.header.job()));
  if (job == nullptr) return;
  job->feeds.OnMessage(endpoint, head_.header, head_.segments);
  if (job->feeds.TakeNews()) events_.emplace_back(ChainSynced{job->id});
  ReleaseAnswers(*job);
}

void LaneCore::Tick(std::int64_t now_ms) {
  if (!has_chains_) return;
  image_budget_.Tick(now_ms);
  for (const auto& [id, job] : jobs_) {
    job->feeds.Tick(now_ms);
    ReleaseAnswers(*job);
  }
}

void LaneCore::TakeChainMessages(std::vector<ChainMessage>& messages) {
  messages.clear();
  if (!has_chains_) return;
  std::vector<ChainMessage> more;
  for (const auto& [id, job] : jobs_) {
    if (!job->feeds.has_messages()) continue;
    if (messages.empty()) {
      job->feeds.TakeMessages(messages);
      continue;
    }
    job->feeds.TakeMessages(more);
    std::move(more.begin(), more.end(), std::back_inserter(messages));
  }
}

std::vector<std::string> LaneCore::ChainEndpoints() const {
  std::vector<std::string> endpoints;
  for (const auto& [id, job] : jobs_) job->feeds.AddEndpoints(endpoints);
  std::sort(endpoints.begin(), endpoints.end());
  endpoints.erase(std::unique(endpoints.begin(), endpoints.end()), endpoints.end());
  return endpoints;
}

// ---- commands

void LaneCore::SetJob(JobSetup setup) {
  std::unique_ptr<Job>& job = jobs_[setup.job];
  const JobId id = setup.job;
  LaneMap map = std::move(setup.map);
  LiveMembers live = std::move(setup.live);
  if (job == nullptr) job = std::make_unique<Job>(std::move(setup), memory_, image_budget_);
  UpdateMap(id, std::move(map));
  UpdateLive(id, std::move(live));
}

void LaneCore::UpdateMap(JobId job_id, LaneMap map) {
  Job* job = FindJob(job_id);
  if (job == nullptr || (job->has_map && map.version <= job->map_version)) return;
  job->has_map = true;
  if (job->open.has_value()) FailRound(*job, "the map changed");
  job->map_version = map.version;
  std::vector<std::unique_ptr<Shard>> before(job->layout.shard_count());
  before.swap(job->shards);
  std::vector<std::unique_ptr<Job::Copy>> copies(job->layout.shard_count());
  copies.swap(job->copies);
  job->own.clear();
  job->lost.clear();
  bool promoted = false;
  bool fed_left = false;
  for (const OwnShard& entry : map.shards) {
    const std::uint32_t number = entry.shard.value();
    PS_CHECK(number < job->shards.size(), entry.shard);
    std::unique_ptr<Shard>& old = before[number];
    std::unique_ptr<Shard>& now = job->shards[number];
    if (old != nullptr && old->epoch() == entry.epoch && old->lineage() == entry.lineage) {
      now = std::move(old);
      job->own.push_back(entry.shard);
      continue;
    }
    if (entry.since != 0) {
      // We are the first of the chain now: whatever anybody was told of the shard is in our copy.
      // Without the very copy that the map means, another one must bring the shard back.
      std::unique_ptr<Job::Copy>& copy = copies[number];
      if (copy == nullptr || copy->shard == nullptr || copy->since != entry.since ||
          copy->lineage != entry.lineage) {
        job->lost.push_back(ShardStatus{entry.shard, entry.epoch, wire::Code::Lost, 0});
        continue;
      }
      now = std::move(copy->shard);
      now->Promote(entry.epoch);
      job->own.push_back(entry.shard);
      promoted = true;
      continue;
    }
    job->own.push_back(entry.shard);
    const bool restoring = entry.restore_round != Round() || job->rules.loads;
    now = std::make_unique<Shard>(job->layout, job->rules, entry.shard, entry.epoch, entry.lineage,
                                  restoring, job->memory);
    if (restoring) {
      events_.push_back(RestoreWanted{job_id, entry.shard, entry.epoch, entry.restore_round,
                                      entry.lineage, job->plan, job->memory});
    }
  }
  for (const OwnShard& entry : map.copies) {
    const std::uint32_t number = entry.shard.value();
    PS_CHECK(number < job->copies.size() && job->shards[number] == nullptr, entry.shard);
    std::unique_ptr<Job::Copy>& now = job->copies[number];
    now = std::move(copies[number]);
    if (now == nullptr || now->since != entry.since || now->lineage != entry.lineage) {
      // What we had as another member of the chain, or as its first, is of no use.
      fed_left = job->feeds.SetNext(entry.shard, std::nullopt) || fed_left;
      now = std::make_unique<Job::Copy>();
      now->lineage = entry.lineage;
      now->since = entry.since;
    }
    // From here on nothing of an older epoch is taken.
    now->epoch = entry.epoch;
    now->next = entry.next;
    if (now->shard != nullptr) now->shard->SetEpoch(entry.epoch);
  }
  for (std::uint32_t number = 0; number < before.size(); ++number) {
    const bool gone = before[number] != nullptr ||
                      (copies[number] != nullptr && copies[number]->shard != nullptr);
    if (!gone) continue;
    if (before[number] != nullptr) {
      job->CountGone(*before[number]);
    } else {
      job->copied_gone += copies[number]->shard->memory_use().copied;
    }
    fed_left = job->feeds.SetNext(ShardId(number), std::nullopt) || fed_left;
  }
  // Answers about a shard that is not ours any more must not leave: the others do not have it all.
  if (fed_left) {
    job->held_answers.clear();
    job->held_up.clear();
  }
  for (const OwnShard& entry : map.shards) {
    if (job->shards[entry.shard.value()] != nullptr) job->feeds.SetNext(entry.shard, entry.next);
  }
  for (const OwnShard& entry : map.copies) {
    if (job->copies[entry.shard.value()]->shard != nullptr) {
      job->feeds.SetNext(entry.shard, entry.next);
    }
  }
  CountChains();
  if (promoted) MembersChanged(*job);
  ReleaseAnswers(*job);
  WakePulls(*job);
}

void LaneCore::UpdateLive(JobId job_id, LiveMembers live) {
  Job* job = FindJob(job_id);
  if (job == nullptr || (job->has_live && live.version <= job->live.version)) return;
  job->has_live = true;
  if (job->open.has_value()) FailRound(*job, "the live set changed");
  LiveMembers before = std::exchange(job->live, std::move(live));
  for (const Member& old : before.members) {
    if (Member* member = job->FindMember(old.incarnation)) {
      member->held = old.held;
      member->hold_request = old.hold_request;
    }
  }
  job->live_workers = job->LiveWorkers();
  MembersChanged(*job);
  std::erase_if(job->parked, [&](const Job::ParkedPull& pull) {
    if (job->FindMember(pull.incarnation) != nullptr) return false;
    Nack(pull.peer, wire::Code::NotLive);
    return true;
  });
  std::erase_if(job->markers, [&](const Job::WaitingMarker& marker) {
    if (job->FindMember(marker.incarnation) != nullptr) return false;
    Nack(marker.peer, wire::Code::NotLive);
    return true;
  });
  WakePulls(*job);
}

void LaneCore::DropJob(JobId job_id) {
  Job* job = FindJob(job_id);
  if (job == nullptr) return;
  for (const Job::ParkedPull& pull : job->parked) Nack(pull.peer, wire::Code::UnknownJob);
  for (const Job::WaitingMarker& marker : job->markers) {
    Nack(marker.peer, wire::Code::RoundAborted);
  }
  jobs_.erase(job_id);
  CountChains();
}

void LaneCore::CountChains() {
  has_chains_ = std::any_of(jobs_.begin(), jobs_.end(), [](const auto& job) {
    return !job.second->feeds.empty() ||
           std::any_of(job.second->copies.begin(), job.second->copies.end(),
                       [](const auto& copy) { return copy != nullptr; });
  });
}

Status LaneCore::InstallRestored(const RestoreWanted& wanted, std::unique_ptr<Shard> loaded) {
  PS_CHECK(loaded != nullptr && loaded->state() != wire::Code::Restoring, wanted.shard);
  Job* job = FindJob(wanted.job);
  const Shard* waits = job != nullptr ? job->Find(wanted.shard.value()) : nullptr;
  if (waits == nullptr || waits->epoch() != wanted.epoch || job->plan != wanted.plan ||
      waits->state() != wire::Code::Restoring) {
    return NotWaiting(wanted.job, wanted.shard);
  }
  job->shards[wanted.shard.value()] = std::move(loaded);
  OnRestored(*job);
  return Ok();
}

Status LaneCore::InstallRestored(JobId job_id, Epoch epoch, const checkpoint::ShardImage& image,
                                 bool values_only) {
  Job* job = FindJob(job_id);
  Shard* shard = job != nullptr ? job->Find(image.shard.value()) : nullptr;
  if (shard == nullptr || shard->epoch() != epoch) return NotWaiting(job_id, image.shard);
  PS_TRY(shard->Restore(image, values_only));
  OnRestored(*job);
  return Ok();
}

Error LaneCore::NotWaiting(JobId job, ShardId shard) {
  return Error{ErrorCode::kConflict,
               "shard " + std::to_string(shard.value()) + " of job " + std::to_string(job.value()) +
                   " does not wait for a checkpoint under this epoch any more"};
}

void LaneCore::OnRestored(Job& job) {
  MembersChanged(job);
  WakePulls(job);
  TryFreeze(job);
}

}  // namespace ps::server
