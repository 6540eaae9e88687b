#include "tests/simulation/cluster/data_client.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "tests/ps-server/core/server_testing.h"

namespace ps::simulation {
namespace {

constexpr std::int64_t kTickMs = 20;
constexpr std::int64_t kHoldRetryMs = 500;
constexpr std::int64_t kPullRetryMs = 100;
constexpr std::int64_t kPullTimeoutMs = 1500;
constexpr std::uint64_t kFirstPull = std::uint64_t{1} << 60;
constexpr std::uint64_t kFirstHold = std::uint64_t{1} << 62;

worker::StreamOptions OptionsOf(const worker::RetentionRing& ring, bool ghost,
                                std::uint32_t window) {
  worker::StreamOptions options;
  options.shards = ring.identity().shards;
  options.first_clock = ring.first_clock();
  options.window = window;
  options.resend_timeout_ms = 1000;
  options.ghost = ghost;
  return options;
}

}  // namespace

SimulatedDataClient::SimulatedDataClient(Schedule& schedule, Network& network, History& history,
                                         MachineId machine, worker::RetentionRing& ring,
                                         std::uint64_t token, bool ghost, std::uint32_t window,
                                         bool keep_refused, Callbacks callbacks)
    : schedule_(schedule),
      network_(network),
      history_(history),
      machine_(machine),
      ring_(ring),
      token_(token),
      ghost_(ghost),
      keep_refused_(keep_refused),
      callbacks_(std::move(callbacks)),
      stream_(OptionsOf(ring, ghost, window)),
      pulled_(ring.identity().shards),
      base_(ring.identity().shards),
      values_(ring.identity().shards),
      next_pull_(kFirstPull) {
  stream_.Released(ring_.released());
  worker::StreamActions none;
  stream_.Committed(ring_.last_clock(), none);
  schedule_.Every(kTickMs, machine_, life_, [this] { Tick(); });
}

SimulatedDataClient::~SimulatedDataClient() {
  for (const auto& [number, lane] : lanes_) network_.Close(lane.link);
}

void SimulatedDataClient::Tick() {
  worker::StreamActions actions;
  stream_.Tick(schedule_.now_ms(), actions);
  Do(std::move(actions));
  SendPulls();
  SendHolds();
}

void SimulatedDataClient::SetMap(const control::MapT& map) {
  if (map.version <= stream_.map_version() && !lanes_.empty()) return;
  worker::StreamMap stream_map;
  stream_map.version = map.version;
  std::map<std::uint32_t, std::string> used;
  for (const auto& entry : map.shards) {
    const std::string& endpoint = map.servers[entry->server]->lanes[entry->lane];
    const auto number =
        lane_numbers_.try_emplace(endpoint, static_cast<std::uint32_t>(lane_numbers_.size()))
            .first->second;
    stream_map.shards.push_back({number, Epoch(entry->epoch), entry->lineage});
    used[number] = endpoint;
  }
  for (auto lane = lanes_.begin(); lane != lanes_.end();) {
    if (used.contains(lane->first)) {
      ++lane;
      continue;
    }
    network_.Close(lane->second.link);
    lane = lanes_.erase(lane);
  }
  for (const auto& [number, endpoint] : used) {
    Lane& lane = lanes_[number];
    lane.hold_known = hold_request_ == 0;
    lane.hold_sent_ms = 0;
    if (lane.link != 0) continue;
    lane.link = network_.Connect(
        machine_, endpoint, Network::Plane::kData,
        [this, number = number, weak = std::weak_ptr<void>(life_)](const Packet& packet) {
          if (!weak.expired()) OnMessage(number, packet);
        },
        [this, number = number, weak = std::weak_ptr<void>(life_)](bool connected) {
          if (!weak.expired()) OnConnection(number, connected);
        });
  }
  worker::StreamActions actions;
  stream_.Tick(schedule_.now_ms(), actions);
  stream_.SetMap(stream_map, actions);
  Do(std::move(actions));
  if (pull_) pull_->next_send_ms.clear();
  SendHolds();
  if (callbacks_.advanced) callbacks_.advanced();
}

void SimulatedDataClient::OnConnection(std::uint32_t number, bool connected) {
  const auto lane = lanes_.find(number);
  if (!connected || lane == lanes_.end()) return;
  lane->second.hold_known = hold_request_ == 0;
  lane->second.hold_sent_ms = 0;
  worker::StreamActions actions;
  stream_.Tick(schedule_.now_ms(), actions);
  stream_.Reconnected(number, actions);
  Do(std::move(actions));
  if (pull_) pull_->next_send_ms[number] = 0;
  SendPulls();
  SendHolds();
}

void SimulatedDataClient::BeginRound(std::uint64_t round) {
  worker::StreamActions actions;
  stream_.Tick(schedule_.now_ms(), actions);
  stream_.BeginRound(round, actions);
  Do(std::move(actions));
}

void SimulatedDataClient::AbortRound(std::uint64_t round) {
  worker::StreamActions actions;
  stream_.Tick(schedule_.now_ms(), actions);
  stream_.AbortRound(round, actions);
  Do(std::move(actions));
}

void SimulatedDataClient::Committed() {
  worker::StreamActions actions;
  stream_.Tick(schedule_.now_ms(), actions);
  stream_.Committed(ring_.last_clock(), actions);
  Do(std::move(actions));
}

void SimulatedDataClient::Release(Clock cut) {
  ring_.Release(cut);
  stream_.Released(ring_.released());
}

bool SimulatedDataClient::Push(worker::RingEntryInfo info, const std::vector<Units>& units) {
  const LayoutView& layout = history_.layout();
  const std::uint32_t cell = ring_.identity().incarnation.value() % kCells;
  Bytes payload;
  std::vector<worker::RingPart> parts;
  for (std::uint32_t number = 0; number < units.size(); ++number) {
    if (units[number].empty()) continue;
    worker::RingPart part;
    part.shard = number;
    part.offset = static_cast<std::uint32_t>(payload.size());
    part.base_version = base_[number].version;
    part.lineage = base_[number].lineage;
    // The rate is 1 and w falls by what is pushed.
    const Bytes block = server::testing::SparseBlock(
        layout.shard_first_block(ShardId(number)), 2 * kCells,
        {static_cast<std::uint16_t>(cell), static_cast<std::uint16_t>(kCells + cell)},
        {static_cast<float>(-units[number].count), static_cast<float>(-units[number].clocks)});
    payload.insert(payload.end(), block.begin(), block.end());
    part.bytes = static_cast<std::uint32_t>(payload.size()) - part.offset;
    parts.push_back(part);
  }
  worker::RetentionRing::Reservation place;
  if (ring_.Reserve(payload.size(), parts.size(), place) !=
      worker::RetentionRing::ReserveStatus::kReserved) {
    return false;
  }
  if (!payload.empty()) std::memcpy(place.payload.data(), payload.data(), payload.size());
  ring_.Commit(info, payload.size(), parts);
  return true;
}

void SimulatedDataClient::OnMessage(std::uint32_t lane, const Packet& packet) {
  if (!lanes_.contains(lane)) return;
  wire::Head head;
  PS_CHECK(wire::ParseInto(packet.head, head).ok(), "a lane sends a head that does not parse");
  const wire::LaneHeader& header = head.header;
  const worker::RingIdentity& me = ring_.identity();
  if (header.payload_bytes() != packet.payload.size() || header.job() != me.job.value() ||
      header.worker() != me.worker.value() || header.incarnation() != me.incarnation.value()) {
    return history_.Fail("a lane's answer is not for who it was sent to");
  }
  const std::uint64_t request = header.request();
  std::vector<worker::StreamVerdict> verdicts;
  for (const wire::Segment& segment : head.segments) {
    verdicts.push_back({ShardId(segment.shard()), Epoch(segment.epoch()),
                        static_cast<wire::Code>(segment.code()), Clock(segment.version())});
  }
  worker::StreamActions actions;
  stream_.Tick(schedule_.now_ms(), actions);
  switch (static_cast<wire::Kind>(header.kind())) {
    case wire::Kind::HelloReply:
      stream_.HelloReply(lane, request, header.map_version(), verdicts, actions);
      break;
    case wire::Kind::PushReply: stream_.PushReply(lane, request, verdicts, actions); break;
    case wire::Kind::InitReply: stream_.InitReply(lane, request, actions); break;
    case wire::Kind::MarkerReply:
      stream_.MarkerReply(lane, request,
                          header.samples() == 0 ? wire::Code::Applied : wire::Code::RoundAborted,
                          actions);
      break;
    case wire::Kind::PullReply:
      if (pull_ && request == pull_->request) OnPullReply(head, packet.payload);
      break;
    case wire::Kind::HoldReply:
      if (request == kFirstHold + hold_request_) lanes_[lane].hold_known = true;
      break;
    case wire::Kind::Nack:
      if (pull_ && request == pull_->request) {
        pull_->next_send_ms[lane] = schedule_.now_ms() + kPullRetryMs;
      } else {
        stream_.Nack(lane, request, static_cast<wire::Code>(header.samples()), actions);
      }
      break;
    default: PS_CHECK(false, header.kind());
  }
  Do(std::move(actions));
  if (callbacks_.advanced) callbacks_.advanced();
}

wire::LaneHeader SimulatedDataClient::Header(wire::Kind kind, std::uint64_t request) const {
  const worker::RingIdentity& me = ring_.identity();
  return wire::LaneHeader(wire::kMagic, wire::kProtocolVersion, static_cast<std::uint8_t>(kind), 0,
                          me.job.value(), me.worker.value(), me.incarnation.value(), 0, request,
                          stream_.map_version(), 0, 0, 0, token_);
}

void SimulatedDataClient::Send(std::uint32_t lane, wire::LaneHeader header,
                               std::span<const wire::Segment> segments, Bytes payload) {
  const auto found = lanes_.find(lane);
  if (found == lanes_.end()) return;
  header.mutate_payload_bytes(payload.size());
  network_.Send(found->second.link, Packet{wire::BuildHead(header, segments), std::move(payload)});
}

void SimulatedDataClient::Do(worker::StreamActions actions) {
  for (const worker::StreamAction& action : actions) {
    if (const auto* hello = std::get_if<worker::SendHello>(&action)) {
      Send(hello->lane, Header(wire::Kind::Hello, hello->request), {});
    } else if (const auto* init = std::get_if<worker::SendInit>(&action)) {
      if (ghost_) continue;
      Bytes payload;
      const LayoutView& layout = history_.layout();
      for (auto block = layout.shard_first_block(init->shard);
           block < layout.shard_last_block(init->shard); ++block) {
        std::vector<float> values;
        while (values.size() < layout.block(block).elements) {
          values.push_back(history_.InitialValue(values.size()));
        }
        const Bytes bytes = server::testing::DenseBlock(block, values);
        payload.insert(payload.end(), bytes.begin(), bytes.end());
      }
      const auto& place = stream_.map().shards[init->shard.value()];
      const wire::Segment segment(init->shard.value(), place.epoch.value(), 0, place.lineage, 0, 0,
                                  0, 0, static_cast<std::uint32_t>(payload.size()));
      Send(init->lane, Header(wire::Kind::Init, init->request), {&segment, 1}, std::move(payload));
    } else if (const auto* push = std::get_if<worker::SendPush>(&action)) {
      SendPush(*push);
    } else if (const auto* marker = std::get_if<worker::SendMarker>(&action)) {
      const auto lane = lanes_.find(marker->lane);
      if (lane != lanes_.end() && !lane->second.hold_known) {
        lane->second.hold_sent_ms = 0;
        SendHolds();
      }
      wire::LaneHeader header = Header(wire::Kind::Marker, marker->round);
      header.mutate_clock(marker->clock.value());
      Send(marker->lane, header, {});
    } else if (const auto* refused = std::get_if<worker::Refused>(&action)) {
      worker::RingEntryView entry;
      if (!ring_.Find(refused->clock, entry)) continue;
      const worker::RingPart* part = entry.FindPart(refused->shard);
      if (part == nullptr || part->bytes == 0 || part->is_void != 0) continue;
      const Units units =
          history_.TakenBack(ring_.identity().incarnation, refused->clock, refused->shard);
      if (refused->code == wire::Code::TooOld && callbacks_.returned) {
        callbacks_.returned(refused->shard, units);
      }
      if (!keep_refused_) ring_.MarkVoid(refused->clock, refused->shard);
    } else if (const auto* cut = std::get_if<worker::RoundCut>(&action)) {
      if (callbacks_.round_cut) callbacks_.round_cut(cut->round, cut->clock);
    } else if (const auto* broken = std::get_if<worker::StreamBroken>(&action)) {
      callbacks_.broken("shard " + std::to_string(broken->shard.value()) + ", reason " +
                        std::to_string(static_cast<int>(broken->why)) + ", watermark " +
                        std::to_string(broken->watermark.value()) + ", released " +
                        std::to_string(ring_.released().value()));
    }
  }
}

void SimulatedDataClient::SendPush(const worker::SendPush& push) {
  worker::RingEntryView entry;
  PS_CHECK(ring_.Find(push.clock, entry), push.clock, ring_.released(), ring_.last_clock());
  std::vector<wire::Segment> segments;
  bool any = false;
  for (const ShardId shard : push.shards) {
    const auto& place = stream_.map().shards[shard.value()];
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

void SimulatedDataClient::StartPull(Clock needed, bool snapshot) {
  pull_.emplace(CurrentPull{});
  pull_->request = next_pull_++;
  pull_->needed = needed;
  pull_->snapshot = snapshot;
  pull_->have.assign(values_.size(), false);
  pull_->acked = stream_.AckedByAll();
  pull_->map_version = stream_.map_version();
  SendPulls();
}

void SimulatedDataClient::SendPulls() {
  if (!pull_ || stream_.map().shards.empty()) return;
  bool due = false;
  for (std::uint32_t i = 0; i < values_.size() && !due; ++i) {
    if (pull_->have[i]) continue;
    const auto next = pull_->next_send_ms.find(stream_.map().shards[i].lane);
    due = next == pull_->next_send_ms.end() || schedule_.now_ms() >= next->second;
  }
  if (!due) return;
  std::map<std::uint32_t, std::vector<wire::Segment>> missing;
  for (std::uint32_t i = 0; i < values_.size(); ++i) {
    const auto& place = stream_.map().shards[i];
    if (pull_->have[i]) continue;
    missing[place.lane].push_back(wire::Segment(i, place.epoch.value(), pulled_[i].version,
                                                pulled_[i].lineage, 0, 0, 0, 0, 0));
  }
  for (const auto& [lane, segments] : missing) {
    std::int64_t& next = pull_->next_send_ms[lane];
    if (schedule_.now_ms() < next) continue;
    next = schedule_.now_ms() + kPullTimeoutMs;
    wire::LaneHeader header = Header(wire::Kind::Pull, pull_->request);
    header.mutate_clock(pull_->needed.value());
    header.mutate_flags(static_cast<std::uint8_t>(
        unsigned{wire::kPullFp32} | (pull_->snapshot ? unsigned{wire::kPullSnapshot} : 0U)));
    Send(lane, header, segments);
  }
}

void SimulatedDataClient::OnPullReply(const wire::Head& head, const Bytes& payload) {
  for (const wire::Segment& segment : head.segments) {
    const std::uint32_t number = segment.shard();
    if (pull_->have[number] || stream_.map().shards[number].epoch != Epoch(segment.epoch())) {
      continue;
    }
    const auto bytes = wire::SegmentPayload(segment, payload);
    PS_CHECK(bytes.ok());
    if (pulled_[number].lineage == segment.lineage() &&
        segment.version() < pulled_[number].version) {
      return history_.Fail("shard " + std::to_string(number) + " answers a pull with version " +
                           std::to_string(segment.version()) + " after " +
                           std::to_string(pulled_[number].version) + " of the same lineage");
    }
    std::vector<std::vector<float>> blocks(history_.layout().block_count());
    const std::uint32_t block = history_.layout().shard_first_block(ShardId(number));
    blocks[block] = std::move(values_[number]);
    server::testing::ApplyPulled(history_.layout(), *bytes, blocks);
    values_[number] = std::move(blocks[block]);
    pulled_[number] = Base{segment.version(), segment.lineage()};
    pull_->have[number] = true;
    history_.CheckOwnWrites(ring_.identity().incarnation,
                            pull_->map_version == stream_.map_version() ? pull_->acked : Clock(0),
                            ShardId(number), segment.lineage(), values_[number]);
  }
  if (std::find(pull_->have.begin(), pull_->have.end(), false) != pull_->have.end()) return;
  pull_.reset();
  if (callbacks_.pulled) callbacks_.pulled();
}

// ---- holds

void SimulatedDataClient::SetHold(bool on) {
  if (hold_ == on && hold_request_ != 0) return;
  if (!on && hold_request_ == 0) return;
  hold_ = on;
  ++hold_request_;
  for (auto& [number, lane] : lanes_) {
    lane.hold_known = false;
    lane.hold_sent_ms = 0;
  }
  SendHolds();
}

void SimulatedDataClient::SendHolds() {
  const std::int64_t now = schedule_.now_ms();
  for (auto& [number, lane] : lanes_) {
    if (lane.hold_known || (lane.hold_sent_ms != 0 && now - lane.hold_sent_ms < kHoldRetryMs)) {
      continue;
    }
    lane.hold_sent_ms = now;
    wire::LaneHeader header = Header(wire::Kind::Hold, kFirstHold + hold_request_);
    if (hold_) header.mutate_flags(wire::kHoldOn);
    Send(number, header, {});
  }
}

}  // namespace ps::simulation
