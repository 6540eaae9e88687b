#include "tests/simulation/simulated_worker.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "common/check.h"
#include "tests/ps-server/core/server_testing.h"

namespace ps::simulation {
namespace {

constexpr std::int64_t kHoldRetryMs = 200;
constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
constexpr std::uint64_t kFirstHold = std::uint64_t{1} << 62;
constexpr std::int64_t kPullRetryMs = 100;
constexpr std::int64_t kPullTimeoutMs = 400;

}  // namespace

SimulatedWorker::SimulatedWorker(SimulatedNetwork& network, const ShardSpace& space,
                                 std::uint64_t peer, const worker::RingIdentity& identity,
                                 RingMemory& memory, std::uint32_t window, bool ghost, bool fp32,
                                 Callbacks callbacks)
    : network_(network),
      space_(space),
      layout_(space.layout()),
      peer_(peer),
      ghost_(ghost),
      fp32_(fp32),
      callbacks_(std::move(callbacks)),
      pulled_(layout_.shard_count()),
      base_(layout_.shard_count()),
      values_(layout_.block_count()),
      rows_(layout_.shard_count()) {
  auto ring = ghost ? worker::RetentionRing::Open(memory.region())
                    : worker::RetentionRing::Create(memory.region(), identity);
  PS_CHECK(ring.ok(), ring.error().message);
  ring_.emplace(std::move(ring).value());
  PS_CHECK(ring_->identity() == identity, "the ring is another's");
  worker::StreamOptions options;
  options.shards = identity.shards;
  options.first_clock = ring_->first_clock();
  options.window = window;
  options.resend_timeout_ms = 300;
  options.ghost = ghost;
  stream_.emplace(options);
  stream_->Released(ring_->released());
  worker::StreamActions none;
  stream_->Committed(ring_->last_clock(), none);
}

wire::LaneHeader SimulatedWorker::Header(wire::Kind kind, std::uint64_t request) const {
  const worker::RingIdentity& me = ring_->identity();
  return wire::LaneHeader(wire::kMagic, wire::kProtocolVersion, static_cast<std::uint8_t>(kind), 0,
                          me.job.value(), me.worker.value(), me.incarnation.value(), 0, request,
                          stream_->map_version(), 0, 0, 0, 0);
}

void SimulatedWorker::Send(std::uint32_t lane, wire::LaneHeader header,
                           std::span<const wire::Segment> segments, Bytes payload) {
  header.mutate_payload_bytes(payload.size());
  network_.SendToLane(peer_, lane, wire::BuildHead(header, segments), std::move(payload));
}

void SimulatedWorker::Tick(std::int64_t now_ms) {
  now_ms_ = now_ms;
  worker::StreamActions actions;
  stream_->Tick(now_ms, actions);
  Do(std::move(actions));
  SendPulls();
  SendHolds();
}

void SimulatedWorker::SetMap(const worker::StreamMap& map) {
  worker::StreamActions actions;
  stream_->SetMap(map, actions);
  Do(std::move(actions));
  if (pull_) pull_->next_send_ms.clear();
  hold_next_ms_.clear();
  SendHolds();
}

void SimulatedWorker::Reconnected(std::uint32_t lane) {
  worker::StreamActions actions;
  stream_->Reconnected(lane, actions);
  Do(std::move(actions));
  if (pull_) pull_->next_send_ms[lane] = 0;
  hold_next_ms_.erase(lane);
}

void SimulatedWorker::BeginRound(std::uint64_t round) {
  worker::StreamActions actions;
  stream_->BeginRound(round, actions);
  Do(std::move(actions));
}

void SimulatedWorker::AbortRound(std::uint64_t round) {
  worker::StreamActions actions;
  stream_->AbortRound(round, actions);
  Do(std::move(actions));
}

void SimulatedWorker::Release(Clock cut) {
  ring_->Release(cut);
  stream_->Released(ring_->released());
}

bool SimulatedWorker::Push(const std::vector<ShardEntries>& shards, std::uint32_t samples) {
  Bytes payload;
  std::vector<worker::RingPart> parts;
  for (std::uint32_t number = 0; number < shards.size(); ++number) {
    if (shards[number].empty()) continue;
    worker::RingPart part;
    part.shard = number;
    part.offset = static_cast<std::uint32_t>(payload.size());
    part.base_version = base_[number].version;
    part.lineage = base_[number].lineage;
    const Bytes bytes = space_.Encode(number, shards[number]);
    payload.insert(payload.end(), bytes.begin(), bytes.end());
    part.bytes = static_cast<std::uint32_t>(payload.size()) - part.offset;
    parts.push_back(part);
  }
  worker::RetentionRing::Reservation place;
  if (ring_->Reserve(payload.size(), parts.size(), place) !=
      worker::RetentionRing::ReserveStatus::kReserved) {
    return false;
  }
  if (!payload.empty()) std::memcpy(place.payload.data(), payload.data(), payload.size());
  worker::RingEntryInfo info;
  info.clock = Clock(ring_->last_clock().value() + 1);
  info.samples = samples;
  ring_->Commit(info, payload.size(), parts);
  worker::StreamActions actions;
  stream_->Committed(info.clock, actions);
  Do(std::move(actions));
  return true;
}

void SimulatedWorker::OnMessage(std::uint32_t lane, const Bytes& bytes, const Bytes& payload) {
  wire::Head head;
  PS_CHECK(wire::ParseInto(bytes, head).ok(), "a lane sends a head that does not parse");
  const wire::LaneHeader& header = head.header;
  PS_CHECK(header.payload_bytes() == payload.size());
  const std::uint64_t request = header.request();
  std::vector<worker::StreamVerdict> verdicts;
  for (const wire::Segment& segment : head.segments) {
    verdicts.push_back({ShardId(segment.shard()), Epoch(segment.epoch()),
                        static_cast<wire::Code>(segment.code()), Clock(segment.version())});
  }
  worker::StreamActions actions;
  switch (static_cast<wire::Kind>(header.kind())) {
    case wire::Kind::HelloReply:
      stream_->HelloReply(lane, request, header.map_version(), verdicts, actions);
      break;
    case wire::Kind::PushReply: stream_->PushReply(lane, request, verdicts, actions); break;
    case wire::Kind::InitReply: stream_->InitReply(lane, request, actions); break;
    case wire::Kind::MarkerReply:
      stream_->MarkerReply(lane, request,
                           header.samples() == 0 ? wire::Code::Applied : wire::Code::RoundAborted,
                           actions);
      break;
    case wire::Kind::PullReply:
      if (pull_ && request == pull_->request) OnPullReply(head, payload);
      break;
    case wire::Kind::HoldReply:
      if (request == kFirstHold + hold_request_) hold_next_ms_[lane] = kNever;
      break;
    case wire::Kind::Nack:
      if (pull_ && request == pull_->request) {
        pull_->next_send_ms[lane] = now_ms_ + kPullRetryMs;
      } else {
        stream_->Nack(lane, request, static_cast<wire::Code>(header.samples()), actions);
      }
      break;
    default: PS_CHECK(false, header.kind());
  }
  Do(std::move(actions));
}

void SimulatedWorker::Do(worker::StreamActions actions) {
  for (const worker::StreamAction& action : actions) {
    if (const auto* hello = std::get_if<worker::SendHello>(&action)) {
      Send(hello->lane, Header(wire::Kind::Hello, hello->request), {});
    } else if (const auto* init = std::get_if<worker::SendInit>(&action)) {
      Bytes payload;
      callbacks_.initial(payload, init->shard);
      const auto& place = stream_->map().shards[init->shard.value()];
      const wire::Segment segment(init->shard.value(), place.epoch.value(), 0, place.lineage, 0, 0,
                                  0, 0, static_cast<std::uint32_t>(payload.size()));
      Send(init->lane, Header(wire::Kind::Init, init->request), {&segment, 1}, std::move(payload));
    } else if (const auto* push = std::get_if<worker::SendPush>(&action)) {
      SendPush(*push);
    } else if (const auto* marker = std::get_if<worker::SendMarker>(&action)) {
      wire::LaneHeader header = Header(wire::Kind::Marker, marker->round);
      header.mutate_clock(marker->clock.value());
      Send(marker->lane, header, {});
    } else if (const auto* refused = std::get_if<worker::Refused>(&action)) {
      worker::RingEntryView entry;
      if (!ring_->Find(refused->clock, entry)) continue;
      const worker::RingPart* part = entry.FindPart(refused->shard);
      if (part == nullptr || part->bytes == 0 || part->is_void != 0) continue;
      callbacks_.refused(refused->clock, refused->shard, refused->code);
      ring_->MarkVoid(refused->clock, refused->shard);
    } else if (const auto* cut = std::get_if<worker::RoundCut>(&action)) {
      callbacks_.cut(cut->round, cut->clock);
    } else if (const auto* broken = std::get_if<worker::StreamBroken>(&action)) {
      callbacks_.broken("shard " + std::to_string(broken->shard.value()) + ", reason " +
                        std::to_string(static_cast<int>(broken->why)) + ", watermark " +
                        std::to_string(broken->watermark.value()));
    }
  }
}

void SimulatedWorker::SendPush(const worker::SendPush& push) {
  worker::RingEntryView entry;
  PS_CHECK(ring_->Find(push.clock, entry), push.clock, ring_->released(), ring_->last_clock());
  std::vector<wire::Segment> segments;
  bool any = false;
  for (const ShardId shard : push.shards) {
    const auto& place = stream_->map().shards[shard.value()];
    const worker::RingPart* part = entry.FindPart(shard);
    if (part != nullptr && part->bytes != 0 && part->is_void == 0) {
      segments.push_back(wire::Segment(shard.value(), place.epoch.value(), part->base_version,
                                       part->lineage, 0, 0, 0, part->offset, part->bytes));
      any = true;
    } else if (!push.covers_lane) {
      segments.push_back(
          wire::Segment(shard.value(), place.epoch.value(), 0, place.lineage, 0, 0, 0, 0, 0));
    }
  }
  wire::LaneHeader header = Header(wire::Kind::Push, push.request);
  header.mutate_flags(
      static_cast<std::uint8_t>((push.covers_lane ? unsigned{wire::kCoversLane} : 0U) |
                                (push.replay ? unsigned{wire::kReplay} : 0U)));
  header.mutate_clock(push.clock.value());
  header.mutate_samples(entry.info.samples);
  Send(push.lane, header, segments,
       any ? Bytes(entry.payload.begin(), entry.payload.end()) : Bytes());
}

// ---- pulls

void SimulatedWorker::StartPull(Clock needed) {
  PS_CHECK(!ghost_, "a ghost does not pull");
  pull_.emplace(CurrentPull{});
  pull_->request = next_pull_++;
  pull_->needed = needed;
  pull_->have.assign(layout_.shard_count(), false);
  SendPulls();
}

void SimulatedWorker::SetHold(bool on) {
  if (hold_ == on) return;
  hold_ = on;
  ++hold_request_;
  hold_next_ms_.clear();
  SendHolds();
}

void SimulatedWorker::SendHolds() {
  if (hold_request_ == 0) return;
  for (const auto& place : stream_->map().shards) {
    std::int64_t& next = hold_next_ms_[place.lane];
    if (now_ms_ < next) continue;
    next = now_ms_ + kHoldRetryMs;
    wire::LaneHeader header = Header(wire::Kind::Hold, kFirstHold + hold_request_);
    if (hold_) header.mutate_flags(wire::kHoldOn);
    Send(place.lane, header, {});
  }
}

void SimulatedWorker::SendPulls() {
  if (!pull_ || stream_->map().shards.empty()) return;
  struct Missing {
    std::vector<wire::Segment> segments;
    Bytes keys;
  };
  std::map<std::uint32_t, Missing> missing;
  for (std::uint32_t i = 0; i < layout_.shard_count(); ++i) {
    const auto& place = stream_->map().shards[i];
    if (pull_->have[i]) continue;
    Missing& of_lane = missing[place.lane];
    const Bytes keys = space_.Asked(i);
    of_lane.segments.push_back(wire::Segment(
        i, place.epoch.value(), pulled_[i].version, pulled_[i].lineage, 0, 0, 0,
        static_cast<std::uint32_t>(of_lane.keys.size()), static_cast<std::uint32_t>(keys.size())));
    of_lane.keys.insert(of_lane.keys.end(), keys.begin(), keys.end());
  }
  for (auto& [lane, of_lane] : missing) {
    std::int64_t& next = pull_->next_send_ms[lane];
    if (now_ms_ < next) continue;
    next = now_ms_ + kPullTimeoutMs;
    wire::LaneHeader header = Header(wire::Kind::Pull, pull_->request);
    header.mutate_clock(pull_->needed.value());
    if (fp32_) header.mutate_flags(wire::kPullFp32);
    Send(lane, header, of_lane.segments, std::move(of_lane.keys));
  }
}

void SimulatedWorker::OnPullReply(const wire::Head& head, const Bytes& payload) {
  for (const wire::Segment& segment : head.segments) {
    const std::uint32_t number = segment.shard();
    if (pull_->have[number] || stream_->map().shards[number].epoch != Epoch(segment.epoch())) {
      continue;
    }
    const auto bytes = wire::SegmentPayload(segment, payload);
    PS_CHECK(bytes.ok());
    const auto parts = codec::SplitSegment(*bytes);
    PS_CHECK(parts.ok());
    server::testing::ApplyPulled(layout_, parts->blocks, values_);
    rows_[number].clear();
    for (const std::vector<float>& table : server::testing::PulledRows(layout_, *bytes)) {
      rows_[number].insert(rows_[number].end(), table.begin(), table.end());
    }
    PS_CHECK(rows_[number].size() == space_.Elements(number) - space_.BlockElements(number));
    pulled_[number] = Base{segment.version(), segment.lineage()};
    pull_->have[number] = true;
  }
  if (std::find(pull_->have.begin(), pull_->have.end(), false) == pull_->have.end()) pull_.reset();
}

}  // namespace ps::simulation
