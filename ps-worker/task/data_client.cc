#include "ps-worker/task/data_client.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "common/codec/block_codec.h"
#include "common/codec/increment.h"
#include "common/codec/row_codec.h"
#include "common/net/this_host.h"

namespace ps::worker {
namespace {

constexpr auto kTickPeriod = net::Milliseconds(20);
constexpr std::int64_t kHoldRetryMs = 500;
constexpr std::int64_t kPullTimeoutMaxMs = 60'000;
constexpr std::size_t kVersionGapsMax = 4096;
constexpr std::uint64_t kBadMessagesLogged = 5;
// Above all requests of the stream: the answers tell by themselves whose they are.
constexpr std::uint64_t kFirstPullRequest = std::uint64_t{1} << 60;
constexpr std::uint64_t kFirstHoldRequest = std::uint64_t{1} << 62;
// Bytes between a lane's segments that are sent along rather than copying the segments together,
// or sending another message.
constexpr std::size_t kWasteMin = 256;
constexpr std::size_t kWasteShare = 16;
// Frames of this size carry the most bytes per second: more is sent in the next message.
constexpr std::size_t kBatchBytes = std::size_t{256} << 10;

StreamOptions MakeStreamOptions(const RetentionRing& ring, const DataClientOptions& options) {
  StreamOptions stream;
  stream.shards = ring.identity().shards;
  stream.first_clock = ring.first_clock();
  stream.window = options.window;
  stream.resend_timeout_ms = options.resend_timeout_ms;
  stream.ghost = options.ghost;
  return stream;
}

// libzmq calls this on one of its threads when the frame is sent or dropped.
using Pins = std::vector<RingPin>;
void Unpin(void*, void* hint) { const std::unique_ptr<Pins> pins(static_cast<Pins*>(hint)); }

const char* CodeName(std::uint32_t code) {
  return code <= static_cast<std::uint32_t>(wire::Code::MAX)
             ? wire::EnumNameCode(static_cast<wire::Code>(code))
             : "unknown code";
}

}  // namespace

DataClient::DataClient(net::Loop& loop, net::Context& context, RetentionRing& ring,
                       const LayoutView* layout, const DataClientOptions& options,
                       Callbacks callbacks)
    : loop_(loop),
      context_(context),
      ring_(ring),
      layout_(layout),
      options_(options),
      shards_(ring.identity().shards),
      callbacks_(std::move(callbacks)),
      stream_(MakeStreamOptions(ring, options)),
      next_pull_request_(kFirstPullRequest),
      timer_(loop) {
  PS_CHECK(options.ghost || layout != nullptr, "a live task has a layout");
  stream_.Released(ring_.released());
  StreamActions none;
  stream_.Committed(ring_.last_clock(), none);
  PS_CHECK(none.empty());
  timer_.Every(kTickPeriod, [this] { Tick(); });
}

DataClient::~DataClient() = default;

void DataClient::Tick() {
  StreamActions actions;
  stream_.Tick(loop_.NowMs(), actions);
  Run(std::move(actions));
  SendPulls();
  SendHolds();
}

// ---- events

Status DataClient::SetMap(const control::MapT& map) {
  loop_.AssertInLoop();
  if (map.shards.size() != shards_) {
    return Error{ErrorCode::kInvalid, "a map of " + std::to_string(map.shards.size()) +
                                          " shards for a job of " + std::to_string(shards_)};
  }
  if (map.version <= stream_.map_version() && !lanes_.empty()) return Ok();
  StreamMap stream_map;
  stream_map.version = map.version;
  stream_map.shards.resize(map.shards.size());
  std::map<std::uint32_t, std::string> used;
  for (std::size_t i = 0; i < map.shards.size(); ++i) {
    if (map.shards[i] == nullptr) {
      return Error{ErrorCode::kInvalid, "a map without shard " + std::to_string(i)};
    }
    const control::ShardEntryT& entry = *map.shards[i];
    StreamMap::Shard& place = stream_map.shards[i];
    place.epoch = Epoch(entry.epoch);
    place.lineage = entry.lineage;
    if (entry.server >= map.servers.size() || map.servers[entry.server] == nullptr) continue;
    const control::ServerEntryT& server = *map.servers[entry.server];
    if (entry.lane >= server.lanes.size() || server.lanes[entry.lane].empty()) continue;
    const std::string& endpoint = server.lanes[entry.lane];
    const auto number =
        lane_numbers_.try_emplace(endpoint, static_cast<std::uint32_t>(lane_numbers_.size()))
            .first->second;
    place.lane = number;
    used[number] = endpoint;
  }
  for (const auto& [number, endpoint] : used) {
    if (!net::OnThisHost(endpoint)) stream_map.far_lanes.push_back(number);
  }
  std::erase_if(lanes_, [&](const auto& lane) { return !used.contains(lane.first); });
  for (const auto& [number, endpoint] : used) {
    Lane& lane = lanes_[number];
    lane.hold_known = hold_request_ == 0;
    lane.hold_sent_ms = 0;
    if (lane.socket != nullptr) continue;
    lane.endpoint = endpoint;
    net::ZmqOptions options;
    options.max_frame_bytes = static_cast<std::int64_t>(wire::kMaxPayloadBytes);
    options.name = "lane " + endpoint;
    lane.socket =
        PS_TRY(net::ZmqSocket::Open(loop_, context_, net::ZmqKind::kDealer, std::move(options)));
    const std::uint32_t lane_number = number;
    lane.socket->OnReceive([this, lane_number](net::ZmqSocket::Frames&& frames) {
      OnReceive(lane_number, std::move(frames));
    });
    PS_TRY(lane.socket->OnConnection(
        [this, lane_number](bool connected) { OnConnection(lane_number, connected); }));
    PS_TRY(lane.socket->Connect(endpoint));
  }
  StreamActions actions;
  stream_.Tick(loop_.NowMs(), actions);
  stream_.SetMap(stream_map, actions);
  Run(std::move(actions));
  if (pull_) SplitPull();
  SendHolds();
  if (callbacks_.advanced) callbacks_.advanced();
  return Ok();
}

void DataClient::Committed() {
  StreamActions actions;
  stream_.Tick(loop_.NowMs(), actions);
  stream_.Committed(ring_.last_clock(), actions);
  Run(std::move(actions));
}

void DataClient::Release(Clock cut) {
  ring_.Release(cut);
  stream_.Released(ring_.released());
}

void DataClient::BeginRound(std::uint64_t round) {
  StreamActions actions;
  stream_.Tick(loop_.NowMs(), actions);
  stream_.BeginRound(round, actions);
  Run(std::move(actions));
}

void DataClient::AbortRound(std::uint64_t round) {
  StreamActions actions;
  stream_.Tick(loop_.NowMs(), actions);
  stream_.AbortRound(round, actions);
  Run(std::move(actions));
}

void DataClient::OnConnection(std::uint32_t number, bool connected) {
  const auto lane = lanes_.find(number);
  if (lane == lanes_.end()) return;
  spdlog::debug("lane {}: {}", lane->second.endpoint, connected ? "connected" : "disconnected");
  if (!connected) return;
  lane->second.hold_known = hold_request_ == 0;
  lane->second.hold_sent_ms = 0;
  StreamActions actions;
  stream_.Tick(loop_.NowMs(), actions);
  stream_.Reconnected(number, actions);
  Run(std::move(actions));
  if (pull_) {
    const auto missing = pull_->missing.find(number);
    if (missing != pull_->missing.end()) {
      missing->second.next_send_ms = 0;
      missing->second.timeout_ms = 0;
    }
    SendPulls();
  }
  SendHolds();
}

void DataClient::OnReceive(std::uint32_t number, net::ZmqSocket::Frames frames) {
  StreamActions actions;
  stream_.Tick(loop_.NowMs(), actions);
  std::span<const std::byte> heads;
  if (!frames.empty() && frames.size() <= 2) {
    heads = {static_cast<const std::byte*>(frames[0].data()), frames[0].size()};
  }
  // A lane answers several pushes in one message; any other answer stands alone.
  bool good = !heads.empty();
  bool first = true;
  while (good && !heads.empty()) {
    const auto parsed = wire::ParseFirst(heads, head_);
    good = parsed.ok() && ((first && parsed.value() == heads.size()) ||
                           head_.header.kind() == static_cast<std::uint8_t>(wire::Kind::PushReply));
    if (!good) break;
    heads = heads.subspan(*parsed);
    good = OnAnswer(number, frames, actions);
    first = false;
  }
  if (!good) ++counters_.bad_messages;
  Run(std::move(actions));
  if (callbacks_.advanced) callbacks_.advanced();
}

bool DataClient::OnAnswer(std::uint32_t number, net::ZmqSocket::Frames& frames,
                          StreamActions& actions) {
  const RingIdentity& me = ring_.identity();
  const wire::LaneHeader header = head_.header;
  const std::size_t payload_bytes = frames.size() == 2 ? frames[1].size() : 0;
  if (header.payload_bytes() != payload_bytes || header.job() != me.job.value() ||
      header.worker() != me.worker.value() || header.incarnation() != me.incarnation.value()) {
    return false;
  }
  const std::uint64_t request = header.request();
  std::vector<StreamVerdict> verdicts;
  const auto read_verdicts = [&] {
    for (const wire::Segment& segment : head_.segments) {
      if (segment.shard() >= me.shards ||
          segment.code() > static_cast<std::uint8_t>(wire::Code::MAX)) {
        ++counters_.bad_messages;
        continue;
      }
      verdicts.push_back(StreamVerdict{ShardId(segment.shard()), Epoch(segment.epoch()),
                                       static_cast<wire::Code>(segment.code()),
                                       Clock(segment.version())});
    }
  };
  switch (static_cast<wire::Kind>(header.kind())) {
    case wire::Kind::HelloReply:
      read_verdicts();
      stream_.HelloReply(number, request, header.map_version(), verdicts, actions);
      break;
    case wire::Kind::PushReply:
      read_verdicts();
      stream_.PushReply(number, request, verdicts, actions);
      break;
    case wire::Kind::InitReply: stream_.InitReply(number, request, actions); break;
    case wire::Kind::MarkerReply:
      stream_.MarkerReply(number, request,
                          header.samples() == 0 ? wire::Code::Applied : wire::Code::RoundAborted,
                          actions);
      break;
    case wire::Kind::PullReply:
      counters_.pull_bytes += frames[0].size() + payload_bytes;
      if (pull_ && request == pull_->request) {
        OnPullReply(number, frames.size() == 2 ? std::move(frames[1]) : zmq::message_t());
      }
      break;
    case wire::Kind::HoldReply: {
      const auto lane = lanes_.find(number);
      if (lane != lanes_.end() && request == kFirstHoldRequest + hold_request_) {
        lane->second.hold_known = true;
      }
      break;
    }
    case wire::Kind::Nack: {
      const std::uint32_t code = header.samples();
      spdlog::debug("lane {} refuses request {}: {}", number, request, CodeName(code));
      if (code > static_cast<std::uint32_t>(wire::Code::MAX)) {
        ++counters_.bad_messages;
      } else if (pull_ && request == pull_->request) {
        const auto missing = pull_->missing.find(number);
        if (missing != pull_->missing.end()) {
          missing->second.next_send_ms = loop_.NowMs() + options_.pull_retry_ms;
        }
        const auto why = static_cast<wire::Code>(code);
        if (why == wire::Code::Malformed || why == wire::Code::TooLarge ||
            why == wire::Code::BadVersion || why == wire::Code::Denied) {
          Break(Error{ErrorCode::kInvalid,
                      std::string("a lane refuses our pulls: ") + CodeName(code)});
        }
      } else {
        stream_.Nack(number, request, static_cast<wire::Code>(code), actions);
      }
      break;
    }
    default: return false;
  }
  return true;
}

// ---- actions

void DataClient::Run(StreamActions actions) {
  for (std::size_t at = 0; at < actions.size();) {
    // Pushes that follow each other to the same lane go out together.
    run_.clear();
    while (at < actions.size()) {
      auto* const push = std::get_if<SendPush>(&actions[at]);
      if (push == nullptr || (!run_.empty() && run_.front().lane != push->lane)) break;
      run_.push_back(std::move(*push));
      ++at;
    }
    if (!run_.empty()) {
      SendPushes();
      continue;
    }
    std::visit([this](const auto& one) { Do(one); }, actions[at]);
    ++at;
  }
}

wire::LaneHeader DataClient::Header(wire::Kind kind, std::uint64_t request) const {
  const RingIdentity& me = ring_.identity();
  return wire::LaneHeader(wire::kMagic, wire::kProtocolVersion, static_cast<std::uint8_t>(kind), 0,
                          me.job.value(), me.worker.value(), me.incarnation.value(), 0, request,
                          stream_.map_version(), 0, 0, 0, options_.token);
}

bool DataClient::Send(std::uint32_t number, wire::LaneHeader header,
                      std::span<const wire::Segment> segments,
                      std::optional<zmq::message_t> payload) {
  header.mutate_payload_bytes(payload ? payload->size() : 0);
  return SendFrames(number, wire::BuildHead(header, segments), std::move(payload));
}

bool DataClient::SendFrames(std::uint32_t number, std::vector<std::byte> heads,
                            std::optional<zmq::message_t> payload) {
  const auto lane = lanes_.find(number);
  if (lane == lanes_.end()) return false;
  net::ZmqSocket::Frames frames;
  frames.reserve(2);
  frames.push_back(net::CopyFrame(heads.data(), heads.size()));
  if (payload) frames.push_back(std::move(*payload));
  // What is not sent counts as lost: the stream's and the pulls' timeouts send it again.
  if (lane->second.socket->Send(std::move(frames)).ok()) return true;
  ++counters_.unsent;
  return false;
}

void DataClient::Do(const SendHello& hello) {
  Send(hello.lane, Header(wire::Kind::Hello, hello.request), {}, std::nullopt);
}

void DataClient::Do(const SendInit& init) {
  if (layout_ == nullptr || !callbacks_.initial_values) return;
  std::vector<float> values(layout_->shard_elements(init.shard));
  if (!callbacks_.initial_values(init.shard, values)) return;
  std::size_t bytes = 0;
  const std::uint32_t first = layout_->shard_first_block(init.shard);
  const std::uint32_t last = layout_->shard_last_block(init.shard);
  for (std::uint32_t block = first; block < last; ++block) {
    const std::uint32_t elements = layout_->block(block).elements;
    bytes +=
        codec::MaxEncodedBytes(elements, elements, wire::IndexCodec::Dense, wire::ValueCodec::Fp32);
  }
  std::vector<std::byte> payload(bytes);
  std::size_t at = 0;
  for (std::uint32_t block = first; block < last; ++block) {
    const std::uint32_t elements = layout_->block(block).elements;
    const auto part = std::span<const float>(values).subspan(
        static_cast<std::size_t>(layout_->offset_in_shard(block)), elements);
    at += codec::EncodeBlock(block, elements, {}, part, wire::IndexCodec::Dense,
                             wire::ValueCodec::Fp32, payload.data() + at, {});
  }
  payload.resize(at);
  const wire::Segment segment(
      init.shard.value(), stream_.map().shards[init.shard.value()].epoch.value(), 0,
      stream_.map().shards[init.shard.value()].lineage, 0, 0, 0, 0, static_cast<std::uint32_t>(at));
  // A shard of a job with tables of rows may have no block: there is no second frame then.
  std::optional<zmq::message_t> frame;
  if (!payload.empty()) frame = net::TakeFrame(std::move(payload));
  Send(init.lane, Header(wire::Kind::Init, init.request), {&segment, 1}, std::move(frame));
}

void DataClient::SendPushes() {
  for (const SendPush& push : run_) AddToBatch(push);
  SendBatch();
}

// Appends the push to the batch, or sends that first if the two do not lie next to each other in
// the ring: a frame is sent from one range of it.
void DataClient::AddToBatch(const SendPush& push) {
  RingEntryView entry;
  PS_CHECK(ring_.Find(push.clock, entry), push.clock, ring_.released(), ring_.last_clock());
  Batch::Push added;
  added.clock = push.clock;
  added.base = entry.payload.data();
  const std::size_t first = batch_.segments.size();
  const std::byte* low = batch_.low;
  const std::byte* high = batch_.high;
  std::size_t used = 0;
  for (const ShardId shard : push.shards) {
    const StreamMap::Shard& place = stream_.map().shards[shard.value()];
    const RingPart* part = entry.FindPart(shard);
    if (part != nullptr && part->bytes != 0 && part->is_void == 0) {
      batch_.segments.push_back(wire::Segment(shard.value(), place.epoch.value(),
                                              part->base_version, part->lineage, 0, 0, 0,
                                              part->offset, part->bytes));
      const std::byte* const begin = added.base + part->offset;
      low = low == nullptr ? begin : std::min(low, begin);
      high = high == nullptr ? begin + part->bytes : std::max(high, begin + part->bytes);
      used += part->bytes;
    } else if (!push.covers_lane) {
      batch_.segments.push_back(
          wire::Segment(shard.value(), place.epoch.value(), 0, place.lineage, 0, 0, 0, 0, 0));
    }
  }
  added.segments = batch_.segments.size() - first;
  added.header = Header(wire::Kind::Push, push.request);
  added.header.mutate_flags(
      static_cast<std::uint8_t>((push.covers_lane ? unsigned{wire::kCoversLane} : 0U) |
                                (push.replay ? unsigned{wire::kReplay} : 0U)));
  added.header.mutate_clock(push.clock.value());
  added.header.mutate_samples(entry.info.samples);
  if (!batch_.pushes.empty()) {
    const auto range = static_cast<std::size_t>(high - low);
    const std::size_t all = batch_.used + used;
    if (batch_.pushes.size() == wire::kMaxBatch ||
        range > all + all / kWasteShare + kWasteMin * (batch_.pushes.size() + 1) ||
        range > kBatchBytes) {
      batch_.segments.resize(first);
      SendBatch();
      return AddToBatch(push);
    }
  }
  batch_.lane = push.lane;
  batch_.pushes.push_back(added);
  batch_.low = low;
  batch_.high = high;
  batch_.used += used;
}

void DataClient::SendBatch() {
  if (batch_.pushes.empty()) return;
  const auto range = static_cast<std::size_t>(batch_.high - batch_.low);
  // Only a single push may lie so scattered: it is copied together.
  const bool copy =
      range > batch_.used + batch_.used / kWasteShare + kWasteMin * batch_.pushes.size();
  std::optional<zmq::message_t> payload;
  if (batch_.used > 0 && copy) {
    payload.emplace(batch_.used);
    counters_.copied_bytes += batch_.used;
  } else if (batch_.used > 0) {
    auto pins = std::make_unique<Pins>();
    pins->reserve(batch_.pushes.size());
    for (const Batch::Push& push : batch_.pushes) pins->push_back(ring_.Pin(push.clock));
    // libzmq only reads what it sends; its interface has no const.
    payload.emplace(const_cast<std::byte*>(batch_.low), range, &Unpin, pins.release());
  }
  const std::size_t payload_bytes = payload ? payload->size() : 0;
  std::vector<std::byte> heads;
  heads.reserve(batch_.pushes.size() * sizeof(wire::LaneHeader) +
                batch_.segments.size() * sizeof(wire::Segment));
  std::size_t copied = 0;
  std::span<wire::Segment> left(batch_.segments);
  for (Batch::Push& push : batch_.pushes) {
    const std::span<wire::Segment> segments = left.first(push.segments);
    left = left.subspan(push.segments);
    for (wire::Segment& segment : segments) {
      if (segment.length() == 0) continue;
      const std::byte* const from = push.base + segment.offset();
      if (copy) {
        std::memcpy(static_cast<std::byte*>(payload->data()) + copied, from, segment.length());
        segment.mutate_offset(static_cast<std::uint32_t>(copied));
        copied += segment.length();
      } else {
        segment.mutate_offset(static_cast<std::uint32_t>(from - batch_.low));
      }
    }
    push.header.mutate_payload_bytes(payload_bytes);
    wire::AppendHead(push.header, segments, heads);
  }
  const std::size_t pushes = batch_.pushes.size();
  const std::size_t bytes = heads.size() + payload_bytes;
  if (SendFrames(batch_.lane, std::move(heads), std::move(payload))) {
    counters_.pushes += pushes;
    counters_.push_bytes += bytes;
  }
  batch_.pushes.clear();
  batch_.segments.clear();
  batch_.low = batch_.high = nullptr;
  batch_.used = 0;
}

void DataClient::Do(const SendMarker& marker) {
  // A lane that has not heard of our hold would freeze with pushes that wait for us in vain.
  const auto lane = lanes_.find(marker.lane);
  if (lane != lanes_.end() && !lane->second.hold_known) {
    lane->second.hold_sent_ms = 0;
    SendHolds();
  }
  wire::LaneHeader header = Header(wire::Kind::Marker, marker.round);
  header.mutate_clock(marker.clock.value());
  Send(marker.lane, header, {}, std::nullopt);
}

void DataClient::Do(const Refused& refused) {
  RingEntryView entry;
  if (!ring_.Find(refused.clock, entry)) return;
  const RingPart* part = entry.FindPart(refused.shard);
  // A verdict that comes again finds the segment void and returns nothing twice.
  if (part == nullptr || part->bytes == 0 || part->is_void != 0) return;
  if (refused.code == wire::Code::TooOld && callbacks_.returned) {
    callbacks_.returned(entry.info, refused.shard,
                        entry.payload.subspan(part->offset, part->bytes));
  }
  if (refused.code == wire::Code::NonFinite) {
    spdlog::warn("shard {} refuses the push of clock {}: not finite", refused.shard.value(),
                 refused.clock.value());
    if (callbacks_.non_finite) callbacks_.non_finite(entry.info, refused.shard);
  }
  ring_.MarkVoid(refused.clock, refused.shard);
}

void DataClient::Do(const RoundCut& cut) {
  if (callbacks_.round_cut) callbacks_.round_cut(cut.round, cut.clock);
}

void DataClient::Do(const RoundEnded& ended) {
  if (callbacks_.round_ended) callbacks_.round_ended(ended.round, ended.frozen);
}

void DataClient::Do(const StreamBroken& broken) {
  const std::string shard = "shard " + std::to_string(broken.shard.value());
  switch (broken.why) {
    case StreamBroken::Why::kLost:
      return Break(Error{ErrorCode::kInternal, shard + " has only the pushes up to clock " +
                                                   std::to_string(broken.watermark.value()) +
                                                   " of this worker, and those up to " +
                                                   std::to_string(ring_.released().value()) +
                                                   " were released by a committed checkpoint"});
    case StreamBroken::Why::kUnknown:
      return Break(
          Error{ErrorCode::kConflict, shard + " has pushes of this incarnation up to clock " +
                                          std::to_string(broken.watermark.value()) + ", only " +
                                          std::to_string(stream_.head().value()) + " were made"});
    case StreamBroken::Why::kMalformed:
      return Break(
          Error{ErrorCode::kInvalid, "the lane of " + shard + " does not understand our messages"});
  }
}

void DataClient::Break(Error error) {
  if (broken_) return;
  broken_ = true;
  spdlog::error("{}", ErrorLine(error));
  if (callbacks_.broken) callbacks_.broken(error);
}

// ---- pulls

void DataClient::StartPull(const Pull& pull) {
  PS_CHECK(!options_.ghost, "a ghost does not pull");
  pull_.emplace(CurrentPull{});
  pull_->request = next_pull_request_++;
  pull_->what = pull;
  pull_->what.bases.resize(shards_);
  if (pull_->what.shards.empty()) {
    for (std::uint32_t i = 0; i < shards_; ++i) pull_->what.shards.push_back(ShardId(i));
  }
  pull_->have.assign(shards_, false);
  if (pull.rows != nullptr) {
    PS_CHECK(pull.shards.empty(), "rows lie on all shards");
    pull_->rows = SplitRows(*pull.rows);
  }
  SplitPull();
}

std::vector<DataClient::RowsAsked> DataClient::SplitRows(const RowKeys& keys) const {
  PS_CHECK(keys.size() == layout_->row_table_count(), keys.size(), layout_->row_table_count());
  std::vector<RowsAsked> asked(shards_);
  std::vector<std::vector<std::uint64_t>> by_shard(shards_);
  for (std::uint32_t table = 0; table < keys.size(); ++table) {
    for (const std::uint64_t key : keys[table]) {
      by_shard[codec::ShardOfRow(key, shards_).value()].push_back(key);
    }
    for (std::uint32_t shard = 0; shard < shards_; ++shard) {
      const std::vector<std::uint64_t>& some = by_shard[shard];
      if (some.empty()) continue;
      const std::uint32_t width = layout_->row_width(table);
      auto& parts = asked[shard].parts;
      const std::size_t at = parts.size();
      parts.resize(at + codec::MaxRowBytes(some.size(), width, codec::RowContent::kKeys,
                                           wire::ValueCodec::Absent));
      parts.resize(at + codec::EncodeRows(table, some, {}, width, codec::RowContent::kKeys,
                                          wire::ValueCodec::Absent, parts.data() + at));
      asked[shard].tables.push_back({table, static_cast<std::uint32_t>(some.size())});
      by_shard[shard].clear();
    }
  }
  return asked;
}

void DataClient::SplitPull() {
  pull_->missing.clear();
  for (const ShardId shard : pull_->what.shards) {
    if (shard.value() >= shards_ || pull_->have[shard.value()]) continue;
    const std::uint32_t lane =
        stream_.map().shards.empty() ? kNoLane : stream_.map().shards[shard.value()].lane;
    pull_->missing[lane].shards.push_back(shard);
  }
  SendPulls();
}

void DataClient::SendPulls() {
  if (!pull_) return;
  const std::int64_t now = loop_.NowMs();
  for (auto& [number, lane] : pull_->missing) {
    if (number == kNoLane || now < lane.next_send_ms) continue;
    std::vector<wire::Segment> segments;
    segments.reserve(lane.shards.size());
    std::vector<std::byte> payload;
    for (const ShardId shard : lane.shards) {
      const Base& base = pull_->what.bases[shard.value()];
      const std::size_t offset = payload.size();
      if (!pull_->rows.empty()) {
        const auto& parts = pull_->rows[shard.value()].parts;
        payload.insert(payload.end(), parts.begin(), parts.end());
      }
      const std::size_t length = payload.size() - offset;
      segments.push_back(wire::Segment(
          shard.value(), stream_.map().shards[shard.value()].epoch.value(), base.version,
          base.lineage, 0, 0, 0, length == 0 ? 0 : static_cast<std::uint32_t>(offset),
          static_cast<std::uint32_t>(length)));
    }
    wire::LaneHeader header = Header(wire::Kind::Pull, pull_->request);
    header.mutate_clock(pull_->what.needed.value());
    header.mutate_flags(
        static_cast<std::uint8_t>((pull_->what.fp32 ? unsigned{wire::kPullFp32} : 0U) |
                                  (pull_->what.snapshot ? unsigned{wire::kPullSnapshot} : 0U)));
    std::optional<zmq::message_t> frame;
    if (!payload.empty()) frame = net::TakeFrame(std::move(payload));
    const bool sent = Send(number, header, segments, std::move(frame));
    if (sent) {
      lane.timeout_ms = lane.timeout_ms == 0 ? options_.pull_timeout_ms
                                             : std::min(2 * lane.timeout_ms, kPullTimeoutMaxMs);
    }
    lane.next_send_ms = now + (sent ? lane.timeout_ms : options_.pull_retry_ms);
  }
}

std::uint32_t DataClient::ElementsOf(ShardId shard, std::uint32_t block) const {
  return block >= layout_->shard_first_block(shard) && block < layout_->shard_last_block(shard)
             ? layout_->block(block).elements
             : 0;
}

void DataClient::OnPullReply(std::uint32_t number, zmq::message_t payload) {
  const auto missing = pull_->missing.find(number);
  if (missing == pull_->missing.end()) return;
  // Small messages lie inside message_t: it is moved to its final place before it is looked into.
  const auto frame = std::make_shared<zmq::message_t>(std::move(payload));
  const std::span<const std::byte> bytes(static_cast<const std::byte*>(frame->data()),
                                         frame->size());
  bool used = false;
  for (const wire::Segment& segment : head_.segments) {
    if (segment.shard() >= shards_) {
      ++counters_.bad_messages;
      continue;
    }
    const ShardId shard(segment.shard());
    const StreamMap::Shard& place = stream_.map().shards[shard.value()];
    if (place.lane != number || place.epoch != Epoch(segment.epoch()) ||
        pull_->have[shard.value()] ||
        std::find(missing->second.shards.begin(), missing->second.shards.end(), shard) ==
            missing->second.shards.end()) {
      continue;
    }
    PulledShard pulled;
    pulled.shard = shard;
    pulled.version = segment.version();
    pulled.lineage = segment.lineage();
    const bool good = ReadPulled(segment, bytes, pulled);
    if (!good) {
      ++counters_.bad_messages;
      spdlog::log(
          counters_.bad_messages <= kBadMessagesLogged ? spdlog::level::warn : spdlog::level::debug,
          "lane {}: a bad answer to a pull of shard {}", number, shard.value());
      continue;
    }
    pull_->have[shard.value()] = true;
    pull_->result.shards.push_back(std::move(pulled));
    used = true;
  }
  if (used) pull_->result.frames.push_back(frame);
  std::erase_if(missing->second.shards,
                [this](ShardId shard) { return pull_->have[shard.value()]; });
  if (missing->second.shards.empty()) {
    pull_->missing.erase(missing);
    if (pull_->missing.empty()) FinishPull();
  } else {
    // Of a large answer the lane sends a part at a time.
    missing->second.timeout_ms = 0;
    missing->second.next_send_ms = loop_.NowMs() + (used ? 0 : options_.pull_retry_ms);
    if (used) SendPulls();
  }
}

bool DataClient::ReadPulled(const wire::Segment& segment, std::span<const std::byte> frame,
                            PulledShard& pulled) const {
  const ShardId shard = pulled.shard;
  if (segment.code() > static_cast<std::uint8_t>(wire::PullContent::MAX)) return false;
  pulled.content = static_cast<wire::PullContent>(segment.code());
  auto payload = wire::SegmentPayload(segment, frame);
  if (!payload.ok()) return false;
  if (pulled.content == wire::PullContent::IncrementsAndHash) {
    std::uint64_t hash = 0;
    if (payload->size() < sizeof(hash)) return false;
    std::memcpy(&hash, payload->data(), sizeof(hash));
    pulled.hash = hash;
    pulled.content = wire::PullContent::Increments;
    payload = payload->subspan(sizeof(hash));
  }
  const bool increments = pulled.content == wire::PullContent::Increments;
  const auto parts = codec::SplitSegment(*payload);
  if (!parts.ok() ||
      !codec::ParseSegment(
           parts->blocks, [this, shard](std::uint32_t block) { return ElementsOf(shard, block); },
           pulled.blocks, increments ? 1 + codec::kIncrementPushesMax : 1)
           .ok() ||
      !codec::ParseRows(
           parts->rows, codec::RowContent::kValues,
           [this](std::uint32_t table) { return layout_->row_width(table); }, pulled.rows)
           .ok()) {
    return false;
  }
  if (pulled.content == wire::PullContent::Unchanged && !pulled.blocks.empty()) return false;
  // Only parameters have increments; they are to what the task has, which must be something.
  if (increments &&
      (pull_->what.bases[shard.value()].version == 0 || pull_->what.fp32 || pull_->what.snapshot ||
       std::any_of(
           pulled.blocks.begin(), pulled.blocks.end(), [this](const codec::BlockView& block) {
             return !block.dense() && layout_->block(block.header.block()).rule != TableRule::Sgd;
           }))) {
    return false;
  }
  if (pulled.content == wire::PullContent::Snapshot &&
      (pulled.blocks.size() !=
           layout_->shard_last_block(shard) - layout_->shard_first_block(shard) ||
       !std::all_of(pulled.blocks.begin(), pulled.blocks.end(),
                    [](const codec::BlockView& block) { return block.dense(); }))) {
    return false;
  }
  // Row by row what was asked for: values have no keys by which they could be told apart.
  const std::vector<RowsAsked::Part> none;
  const auto& asked = pull_->rows.empty() ? none : pull_->rows[shard.value()].tables;
  return std::equal(asked.begin(), asked.end(), pulled.rows.begin(), pulled.rows.end(),
                    [](const RowsAsked::Part& part, const codec::RowsView& rows) {
                      return part.table == rows.table && part.count == rows.count;
                    });
}

void DataClient::FinishPull() {
  PullResult result = std::move(pull_->result);
  const std::vector<Base> bases = std::move(pull_->what.bases);
  pull_.reset();
  std::sort(result.shards.begin(), result.shards.end(),
            [](const PulledShard& a, const PulledShard& b) { return a.shard < b.shard; });
  for (const PulledShard& pulled : result.shards) {
    const Base& base = bases[pulled.shard.value()];
    if (base.version != 0 && base.lineage == pulled.lineage && pulled.version >= base.version &&
        version_gaps_.size() < kVersionGapsMax) {
      version_gaps_.push_back(static_cast<std::uint32_t>(
          std::min<std::uint64_t>(pulled.version - base.version, UINT32_MAX)));
    }
  }
  ++counters_.pulls;
  if (callbacks_.pulled) callbacks_.pulled(std::move(result));
}

std::vector<std::uint32_t> DataClient::TakeVersionGaps() {
  return std::exchange(version_gaps_, {});
}

// ---- staleness

void DataClient::SetHold(bool on) {
  if (hold_on_ == on && hold_request_ != 0) return;
  if (!on && hold_request_ == 0) return;
  hold_on_ = on;
  ++hold_request_;
  for (auto& [number, lane] : lanes_) {
    lane.hold_known = false;
    lane.hold_sent_ms = 0;
  }
  SendHolds();
}

void DataClient::SendHolds() {
  const std::int64_t now = loop_.NowMs();
  for (auto& [number, lane] : lanes_) {
    if (lane.hold_known || (lane.hold_sent_ms != 0 && now - lane.hold_sent_ms < kHoldRetryMs)) {
      continue;
    }
    wire::LaneHeader header = Header(wire::Kind::Hold, kFirstHoldRequest + hold_request_);
    if (hold_on_) header.mutate_flags(wire::kHoldOn);
    lane.hold_sent_ms = now;
    Send(number, header, {}, std::nullopt);
  }
}

}  // namespace ps::worker
