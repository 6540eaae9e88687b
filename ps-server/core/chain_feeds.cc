#include "ps-server/core/chain_feeds.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>

#include "common/check.h"

namespace ps::server {

ChainFeeds::Feed* ChainFeeds::Find(ShardId shard) {
  const auto at = feeds_.find(shard);
  return at != feeds_.end() ? &at->second : nullptr;
}

void ImageBudget::Tick(std::int64_t now_ms) {
  const std::int64_t passed = std::clamp<std::int64_t>(now_ms - now_ms_, 0, 1000);
  now_ms_ = std::max(now_ms_, now_ms);
  const auto rate = static_cast<std::int64_t>(rate_);
  const std::int64_t most = std::max<std::int64_t>(1, rate * kSavedMs / 1000);
  credit_ = std::min(most, credit_ + rate * passed / 1000);
}

void ImageBudget::Spend(std::size_t bytes) {
  if (rate_ != 0) credit_ -= static_cast<std::int64_t>(bytes);
}

// ---- who feeds whom

bool ChainFeeds::SetNext(ShardId shard, const std::optional<ChainNext>& next) {
  Feed* feed = Find(shard);
  if (feed != nullptr && next.has_value() && feed->next.endpoint == next->endpoint &&
      feed->next.since == next->since) {
    feed->next.synced = next->synced;
    return false;
  }
  const bool fed = feed != nullptr;
  if (feed != nullptr) {
    const std::string endpoint = feed->next.endpoint;
    Link& link = links_.find(endpoint)->second;
    if (link.image_shard == shard) EndImage(link);
    Forget(link, shard, std::numeric_limits<std::uint64_t>::max());
    feeds_.erase(shard);
    const bool used = std::any_of(feeds_.begin(), feeds_.end(), [&](const auto& other) {
      return other.second.next.endpoint == endpoint;
    });
    if (!used) links_.erase(endpoint);
  }
  if (next.has_value()) {
    Feed& made = feeds_[shard];
    made.next = *next;
    Link& link = links_[next->endpoint];
    link.next_hello_ms = 0;
    if (next->synced) Require(shard, made, link);
  }
  CountBlocked();
  return fed;
}

void ChainFeeds::Restart(ShardId shard) {
  Feed* feed = Find(shard);
  if (feed == nullptr) return;
  Link& link = links_.find(feed->next.endpoint)->second;
  if (link.image_shard == shard) EndImage(link);
  Forget(link, shard, std::numeric_limits<std::uint64_t>::max());
  feed->phase = Phase::kAsk;
  feed->feeding = false;
  feed->acked = feed->base = 0;
  CountBlocked();
}

void ChainFeeds::Require(ShardId shard, Feed& feed, Link& link) {
  if (feed.required) return;
  feed.required = true;
  feed.sync_at = shard_of_(shard)->changes();
  for (Entry& entry : link.window) {
    for (const Part& part : entry.parts) {
      if (part.shard == shard && !part.done) ++entry.required;
    }
  }
  CountBlocked();
}

void ChainFeeds::CountBlocked() {
  blocked_ =
      static_cast<std::size_t>(std::count_if(feeds_.begin(), feeds_.end(), [](const auto& entry) {
        return entry.second.required && !entry.second.confirmed();
      }));
}

void ChainFeeds::Forget(Link& link, ShardId shard, std::uint64_t change) {
  const Feed& feed = feeds_.find(shard)->second;
  for (Entry& entry : link.window) {
    for (Part& part : entry.parts) {
      if (part.done || part.shard != shard || part.change > change) continue;
      part.done = true;
      --entry.missing;
      if (feed.required) --entry.required;
    }
  }
  Pop(link);
}

void ChainFeeds::Pop(Link& link) {
  while (!link.window.empty() && link.window.front().missing == 0) {
    if (link.window.front().payload != nullptr) link.bytes -= link.window.front().payload->size();
    link.window.pop_front();
  }
}

bool ChainFeeds::Covers(std::uint64_t appended) const {
  if (blocked_ > 0) return false;
  for (const auto& [endpoint, link] : links_) {
    for (const Entry& entry : link.window) {
      if (entry.number > appended) break;
      if (entry.required > 0) return false;
    }
  }
  return true;
}

bool ChainFeeds::Has(ShardId shard, std::uint64_t changes) const {
  const auto at = feeds_.find(shard);
  if (at == feeds_.end() || !at->second.required) return true;
  return at->second.confirmed() && at->second.acked >= changes;
}

// ---- messages

wire::LaneHeader ChainFeeds::Header(wire::Kind kind, std::uint64_t request) const {
  return wire::LaneHeader(wire::kMagic, wire::kProtocolVersion, static_cast<std::uint8_t>(kind), 0,
                          job_.value(), 0, 0, 0, request, 0, 0, 0, 0, token_);
}

void ChainFeeds::Push(const std::string& endpoint, wire::LaneHeader header,
                      std::span<const wire::Segment> segments,
                      std::shared_ptr<const ByteBuffer> payload) {
  header.mutate_payload_bytes(payload != nullptr ? payload->size() : 0);
  ChainMessage message{endpoint, wire::BuildHead(header, segments), std::move(payload)};
  counters_.bytes += message.head.size() + header.payload_bytes();
  out_.push_back(std::move(message));
  Link& link = links_.find(endpoint)->second;
  if (!std::exchange(link.waiting, true)) link.waiting_since_ms = now_ms_;
}

void ChainFeeds::TakeMessages(std::vector<ChainMessage>& into) {
  into.clear();
  into.swap(out_);
}

void ChainFeeds::AddPush(ShardId shard, wire::Code verdict, std::span<const std::byte> bytes) {
  Feed* feed = Find(shard);
  if (feed == nullptr || !feed->feeding) return;
  const auto link = links_.find(feed->next.endpoint);
  pushes_.push_back(Added{shard, shard_of_(shard)->changes(), verdict, Clock(),
                          verdict == wire::Code::Applied ? bytes : std::span<const std::byte>(),
                          &link->second, &link->first});
}

void ChainFeeds::AddRelease(ShardId shard, Clock until) {
  Feed* feed = Find(shard);
  if (feed == nullptr || !feed->feeding) return;
  const auto link = links_.find(feed->next.endpoint);
  releases_.push_back(Added{shard,
                            shard_of_(shard)->changes(),
                            wire::Code::Applied,
                            until,
                            {},
                            &link->second,
                            &link->first});
}

void ChainFeeds::SendPushes(const DecidedPush& push, std::uint32_t live_workers) {
  if (pushes_.empty()) return;
  std::stable_sort(pushes_.begin(), pushes_.end(), [](const Added& left, const Added& right) {
    return *left.endpoint < *right.endpoint;
  });
  for (auto from = pushes_.begin(); from != pushes_.end();) {
    const auto to = std::find_if(from, pushes_.end(),
                                 [&](const Added& other) { return other.link != from->link; });
    wire::LaneHeader header = Header(wire::Kind::Replicate, 0);
    header.mutate_worker(push.worker.value());
    header.mutate_incarnation(push.incarnation.value());
    header.mutate_clock(push.clock.value());
    header.mutate_map_version(push.first_clock.value());
    header.mutate_samples(push.samples);
    Append(*from->endpoint, *from->link, header, {from, to}, live_workers);
    from = to;
  }
  pushes_.clear();
}

void ChainFeeds::SendReleases(std::uint32_t live_workers) {
  if (releases_.empty()) return;
  std::stable_sort(releases_.begin(), releases_.end(), [](const Added& left, const Added& right) {
    return std::tie(*left.endpoint, left.until) < std::tie(*right.endpoint, right.until);
  });
  for (auto from = releases_.begin(); from != releases_.end();) {
    const auto to = std::find_if(from, releases_.end(), [&](const Added& other) {
      return other.link != from->link || other.until != from->until;
    });
    wire::LaneHeader header = Header(wire::Kind::Replicate, 0);
    header.mutate_flags(wire::kReplicateRelease);
    header.mutate_clock(from->until.value());
    Append(*from->endpoint, *from->link, header, {from, to}, live_workers);
    from = to;
  }
  releases_.clear();
}

void ChainFeeds::Append(const std::string& endpoint, Link& link, wire::LaneHeader header,
                        std::span<const Added> added, std::uint32_t live_workers) {
  Entry entry;
  entry.number = ++appended_;
  header.mutate_request(entry.number);
  entry.header = header;
  entry.live_workers = static_cast<std::uint16_t>(
      std::min<std::uint32_t>(live_workers, std::numeric_limits<std::uint16_t>::max()));
  entry.missing = added.size();
  std::size_t bytes = 0;
  for (const Added& one : added) bytes += one.bytes.size();
  std::shared_ptr<ByteBuffer> payload;
  if (bytes > 0) payload = std::make_shared<ByteBuffer>(bytes);
  std::size_t at = 0;
  bool now = false;
  for (const Added& one : added) {
    const Feed& feed = feeds_.find(one.shard)->second;
    entry.parts.push_back(Part{one.shard, one.change, one.verdict, static_cast<std::uint32_t>(at),
                               static_cast<std::uint32_t>(one.bytes.size()), false});
    if (!one.bytes.empty()) std::memcpy(payload->data() + at, one.bytes.data(), one.bytes.size());
    at += one.bytes.size();
    if (feed.required) ++entry.required;
    now = now || feed.phase == Phase::kTail;
  }
  entry.payload = std::move(payload);
  link.bytes += bytes;
  link.window.push_back(std::move(entry));
  if (now) Send(endpoint, link.window.back());
  if (link.bytes <= kWindowBytesMax && link.window.size() <= kWindowMessagesMax) return;
  for (auto& [shard, feed] : feeds_) {
    if (feed.next.endpoint == endpoint && feed.feeding) Require(shard, feed, link);
  }
}

void ChainFeeds::Send(const std::string& endpoint, const Entry& entry) {
  std::vector<wire::Segment> segments;
  segments.reserve(entry.parts.size());
  for (const Part& part : entry.parts) {
    if (part.done) continue;
    // Of this epoch, whatever it was when the change was made: one that is promoted goes on.
    const Shard& shard = *shard_of_(part.shard);
    segments.push_back(wire::Segment(part.shard.value(), shard.epoch().value(), part.change,
                                     shard.lineage(), static_cast<std::uint8_t>(part.verdict), 0,
                                     entry.live_workers, part.offset, part.length));
  }
  ++counters_.messages;
  Push(endpoint, entry.header, segments, entry.payload);
}

void ChainFeeds::Resend(const std::string& endpoint, Link& link, std::span<const ShardId> shards) {
  if (shards.empty()) return;
  for (const Entry& entry : link.window) {
    const bool wanted = std::any_of(entry.parts.begin(), entry.parts.end(), [&](const Part& part) {
      return !part.done && std::find(shards.begin(), shards.end(), part.shard) != shards.end();
    });
    if (!wanted) continue;
    ++counters_.resent;
    Send(endpoint, entry);
  }
}

// ---- images

void ChainFeeds::StartImage(const std::string& endpoint, Link& link, ShardId shard, Feed& feed) {
  const Shard& from = *shard_of_(shard);
  Forget(link, shard, std::numeric_limits<std::uint64_t>::max());
  feed.phase = Phase::kImage;
  feed.feeding = true;
  feed.base = from.changes();
  feed.acked = 0;
  CountBlocked();
  link.image_shard = shard;
  link.image = std::make_unique<ShardImageWriter>(from.Freeze(job_, Round()).ToImage());
  link.piece_number = ++images_ << kPieceBits;
  link.piece = link.image->Next();
  SendPiece(endpoint, link);
}

void ChainFeeds::EndImage(Link& link) {
  link.image_shard.reset();
  link.image.reset();
  link.piece.reset();
  link.piece_held = false;
}

// Sent at once, or held until the budget allows it.
void ChainFeeds::SendPiece(const std::string& endpoint, Link& link) {
  if (!budget_.allows()) return HoldPiece(link);
  link.piece_held = false;
  budget_.Spend(link.piece->size());
  const ShardId number = *link.image_shard;
  const Shard& shard = *shard_of_(number);
  wire::LaneHeader header = Header(wire::Kind::ReplicaImage, link.piece_number);
  if (link.image->done()) header.mutate_flags(wire::kLastPiece);
  const wire::Segment segment(number.value(), shard.epoch().value(),
                              feeds_.find(number)->second.base, shard.lineage(), 0, 0, 0, 0,
                              static_cast<std::uint32_t>(link.piece->size()));
  link.piece_sent_ms = now_ms_;
  Push(endpoint, header, {&segment, 1}, link.piece);
}

// Nobody owes us an answer for what we hold.
void ChainFeeds::HoldPiece(Link& link) {
  link.piece_held = true;
  link.waiting = std::any_of(link.window.begin(), link.window.end(), [&](const Entry& entry) {
    return std::any_of(entry.parts.begin(), entry.parts.end(), [&](const Part& part) {
      return !part.done && feeds_.find(part.shard)->second.phase == Phase::kTail;
    });
  });
}

// ---- answers

void ChainFeeds::OnMessage(std::string_view endpoint, const wire::LaneHeader& header,
                           std::span<const wire::Segment> segments) {
  const auto found = links_.find(endpoint);
  if (found == links_.end()) return;
  auto& [name, link] = *found;
  switch (static_cast<wire::Kind>(header.kind())) {
    case wire::Kind::ReplicateReply:
      return OnReplicateReply(name, link, header.request(), segments);
    case wire::Kind::ReplicaHelloReply: return OnHelloReply(name, link, header.request(), segments);
    case wire::Kind::ReplicaImageReply:
      if (segments.size() == 1) OnImageReply(name, link, header.request(), segments[0]);
      return;
    default: return;  // refusals: it is asked again when an answer fails to come
  }
}

void ChainFeeds::Progress(Link& link) {
  link.waiting = !link.window.empty() || link.image_shard.has_value();
  link.waiting_since_ms = now_ms_;
}

void ChainFeeds::OnReplicateReply(const std::string& endpoint, Link& link, std::uint64_t number,
                                  std::span<const wire::Segment> segments) {
  const auto at = std::lower_bound(
      link.window.begin(), link.window.end(), number,
      [](const Entry& entry, std::uint64_t wanted) { return entry.number < wanted; });
  if (at == link.window.end() || at->number != number) return;
  for (const Part& part : at->parts) {
    if (part.done) continue;
    Feed& feed = feeds_.find(part.shard)->second;
    const auto refused = std::find_if(
        segments.begin(), segments.end(),
        [&](const wire::Segment& segment) { return segment.shard() == part.shard.value(); });
    if (refused == segments.end()) {
      feed.acked = std::max(feed.acked, part.change);
      // Who has a change behind the image has the image: only that answer was lost.
      if (feed.phase == Phase::kImage && feed.acked > feed.base) {
        EndImage(link);
        feed.phase = Phase::kTail;
        CountBlocked();
      }
    } else if (feed.phase == Phase::kTail) {
      feed.phase = Phase::kAsk;
    }
  }
  // Who has a change has those before it.
  bool further = false;
  for (auto entry = link.window.begin(); entry <= at; ++entry) {
    for (Part& part : entry->parts) {
      if (part.done) continue;
      const Feed& feed = feeds_.find(part.shard)->second;
      if (part.change > feed.acked) continue;
      part.done = true;
      further = true;
      --entry->missing;
      if (feed.required) --entry->required;
    }
  }
  std::vector<ShardId> touched;
  for (const Part& part : at->parts) touched.push_back(part.shard);
  Pop(link);
  if (further) Progress(link);
  for (const ShardId shard : touched) {
    if (Feed* feed = Find(shard); feed != nullptr && feed->next.endpoint == endpoint) {
      Look(shard, *feed, link);
    }
  }
}

void ChainFeeds::OnHelloReply(const std::string& endpoint, Link& link, std::uint64_t hello,
                              std::span<const wire::Segment> segments) {
  std::vector<ShardId> resend;
  bool further = false;
  for (const wire::Segment& segment : segments) {
    const ShardId shard(segment.shard());
    Feed* feed = Find(shard);
    // An answer to an older question may be of a copy that is not there any more.
    if (feed == nullptr || feed->phase != Phase::kAsk || feed->asked != hello) continue;
    const Shard& own = *shard_of_(shard);
    const auto code = static_cast<wire::Code>(segment.code());
    // It has not heard of the newest map yet, or we have not.
    if (segment.epoch() != own.epoch().value()) continue;
    further = true;
    const std::uint64_t has = segment.version();
    if (code == wire::Code::Applied && feed->feeding && has <= own.changes() &&
        has >= std::max(feed->base, feed->acked)) {
      Forget(link, shard, has);
      feed->acked = has;
      feed->phase = Phase::kTail;
      resend.push_back(shard);
    } else if (code == wire::Code::Applied && has == own.changes()) {
      Forget(link, shard, has);
      feed->feeding = true;
      feed->base = feed->acked = has;
      feed->phase = Phase::kTail;
    } else if (code == wire::Code::Applied || code == wire::Code::Blank) {
      feed->phase = Phase::kWaitImage;
    }
  }
  CountBlocked();
  if (further) Progress(link);
  Resend(endpoint, link, resend);
  for (auto& [shard, feed] : feeds_) {
    if (feed.next.endpoint == endpoint) Look(shard, feed, link);
  }
}

void ChainFeeds::OnImageReply(const std::string& endpoint, Link& link, std::uint64_t piece,
                              const wire::Segment& segment) {
  if (!link.image_shard.has_value() || link.image_shard->value() != segment.shard() ||
      ImageOfPiece(piece) != ImageOfPiece(link.piece_number)) {
    return;
  }
  const ShardId shard = *link.image_shard;
  Feed& feed = feeds_.find(shard)->second;
  const auto code = static_cast<wire::Code>(segment.code());
  if (segment.epoch() != shard_of_(shard)->epoch().value()) {
    EndImage(link);
    feed.phase = Phase::kAsk;
    return;
  }
  if (code == wire::Code::Applied && segment.version() >= feed.base &&
      segment.version() <= shard_of_(shard)->changes()) {
    EndImage(link);
    feed.phase = Phase::kTail;
    Forget(link, shard, segment.version());
    feed.acked = segment.version();
    ++counters_.images;
    CountBlocked();
    Progress(link);
    const ShardId shards[] = {shard};
    Resend(endpoint, link, shards);
    return Look(shard, feed, link);
  }
  if (code != wire::Code::Blank) return;
  if (PlaceOfPiece(piece) == 0 && PlaceOfPiece(link.piece_number) > 0) {
    // It has begun anew, or refused a piece: so do we.
    EndImage(link);
    feed.phase = Phase::kWaitImage;
  } else if (piece == link.piece_number + 1 && !link.image->done()) {
    Progress(link);
    ++link.piece_number;
    link.piece = link.image->Next();
    SendPiece(endpoint, link);
  }
}

void ChainFeeds::Look(ShardId shard, Feed& feed, Link& link) {
  if (feed.phase != Phase::kTail || !feed.confirmed()) return;
  const std::uint64_t changes = shard_of_(shard)->changes();
  if (!feed.required && changes - feed.acked <= kNear) Require(shard, feed, link);
  if (feed.required && !feed.in_sync && feed.acked >= feed.sync_at) {
    feed.in_sync = true;
    news_ = true;
  }
}

void ChainFeeds::Tick(std::int64_t now_ms) {
  now_ms_ = std::max(now_ms_, now_ms);
  for (auto& [endpoint, link] : links_) {
    const bool late = link.waiting && now_ms_ - link.waiting_since_ms >= kAnswerMs;
    std::vector<wire::Segment> ask;
    std::optional<ShardId> image;
    bool asking = false;
    for (auto& [shard, feed] : feeds_) {
      if (feed.next.endpoint != endpoint) continue;
      const Shard& own = *shard_of_(shard);
      if (!own.ready()) continue;
      asking = asking || feed.phase == Phase::kAsk;
      if (late && feed.phase == Phase::kTail && feed.acked < own.changes()) {
        feed.phase = Phase::kAsk;
      }
      if (feed.phase == Phase::kAsk && ask.size() < wire::kMaxSegments) {
        ask.push_back(wire::Segment(shard.value(), own.epoch().value(), feed.next.since,
                                    own.lineage(), 0, 0, 0, 0, 0));
      }
      if (feed.phase == Phase::kWaitImage && !image.has_value()) image = shard;
    }
    if (!ask.empty() && now_ms_ >= link.next_hello_ms) {
      link.next_hello_ms = now_ms_ + kHelloEveryMs;
      const std::uint64_t hello = ++hellos_;
      for (const wire::Segment& segment : ask) {
        feeds_.find(ShardId(segment.shard()))->second.asked = hello;
      }
      Push(endpoint, Header(wire::Kind::ReplicaHello, hello), ask, nullptr);
    }
    if (!asking && link.window.empty() && !link.image_shard.has_value()) link.waiting = false;
    if (link.image_shard.has_value()) {
      const bool due = link.piece_held || now_ms_ - link.piece_sent_ms >= kAnswerMs;
      if (due) SendPiece(endpoint, link);
    } else if (image.has_value()) {
      StartImage(endpoint, link, *image, feeds_.find(*image)->second);
    }
  }
}

// ---- for people and the coordinator

void ChainFeeds::AddEndpoints(std::vector<std::string>& into) const {
  for (const auto& [endpoint, link] : links_) into.push_back(endpoint);
}

std::vector<FeedStatus> ChainFeeds::Report() const {
  std::vector<FeedStatus> status;
  for (const auto& [shard, feed] : feeds_) {
    const Link& link = links_.find(feed.next.endpoint)->second;
    const Shard& own = *shard_of_(shard);
    FeedStatus one;
    one.shard = shard;
    one.epoch = own.epoch();
    one.since = feed.next.since;
    one.endpoint = feed.next.endpoint;
    one.synced = feed.in_sync;
    if (link.waiting) {
      one.stalled_ms = static_cast<std::uint64_t>(now_ms_ - link.waiting_since_ms);
    }
    one.behind = feed.confirmed() ? own.changes() - feed.acked : own.changes();
    status.push_back(one);
  }
  return status;
}

std::size_t ChainFeeds::unconfirmed_bytes() const {
  std::size_t bytes = 0;
  for (const auto& [endpoint, link] : links_) bytes += link.bytes;
  return bytes;
}

}  // namespace ps::server
