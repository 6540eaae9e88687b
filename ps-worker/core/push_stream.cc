#include "ps-worker/core/push_stream.h"

#include <algorithm>

#include "common/check.h"

namespace ps::worker {
namespace {

// While pushes are in flight on a lane, the next ones wait until there are so many of the window's
// pushes to send together.
constexpr std::uint32_t kBurstShare = 4;

}  // namespace

PushStream::PushStream(const StreamOptions& options)
    : options_(options),
      shards_(options.shards),
      head_(options.first_clock),
      released_(options.first_clock) {
  PS_CHECK(options.window >= 1 && options.window <= 32, options.window);
  for (Shard& shard : shards_) {
    shard.acked = shard.sent = shard.seen = shard.sent_max = options.first_clock;
  }
}

bool PushStream::Current(std::uint32_t lane, ShardId shard, Epoch epoch) const {
  if (shard.value() >= map_.shards.size()) return false;
  const StreamMap::Shard& place = map_.shards[shard.value()];
  return place.lane == lane && place.epoch == epoch;
}

void PushStream::Ask(Lane& lane, ShardId shard) {
  if (At(shard).phase == Phase::kBroken) return;
  At(shard).phase = Phase::kAsk;
  if (!lane.hello_pending) lane.hello_wanted = true;
}

void PushStream::AskAll(Lane& lane) {
  for (const ShardId shard : lane.shards) {
    if (At(shard).phase == Phase::kReady) Ask(lane, shard);
  }
}

void PushStream::Break(ShardId shard, StreamBroken::Why why, Clock watermark,
                       StreamActions& actions) {
  if (At(shard).phase == Phase::kBroken) return;
  At(shard).phase = Phase::kBroken;
  actions.push_back(StreamBroken{shard, why, watermark, map_.shards[shard.value()].lane});
}

void PushStream::Tick(std::int64_t now_ms, StreamActions& actions) {
  now_ms_ = std::max(now_ms_, now_ms);
  for (auto& [number, lane] : lanes_) {
    if (lane.hello_pending && now_ms_ - lane.hello_sent_ms >= options_.hello_timeout_ms) {
      // The same request: whichever copy is answered, nothing was pushed to the shards that wait
      // for the answer in between.
      lane.hello_sent_ms = now_ms_;
      ++counters_.hellos;
      actions.push_back(SendHello{number, lane.hello_request});
    }
    if (!lane.hello_pending && !lane.hello_wanted) {
      for (const auto& [request, push] : lane.in_flight) {
        if (now_ms_ - push.sent_ms < options_.resend_timeout_ms) continue;
        ++counters_.timeouts;
        lane.hello_wanted = true;
        AskAll(lane);
        break;
      }
    }
    for (auto init = lane.inits.begin(); init != lane.inits.end();) {
      if (now_ms_ - init->second.sent_ms >= options_.resend_timeout_ms) {
        Ask(lane, init->second.shard);
        init = lane.inits.erase(init);
      } else {
        ++init;
      }
    }
    if (!lane.same_map && !lane.hello_pending && now_ms_ >= lane.compare_maps_ms) {
      lane.hello_wanted = true;
    }
  }
  Pump(actions);
}

void PushStream::SetMap(const StreamMap& map, StreamActions& actions) {
  PS_CHECK(map.shards.size() == shards_.size(), map.shards.size(), shards_.size());
  if (map.version <= map_.version && !map_.shards.empty()) return;
  // Servers and the coordinator abort the round as well, each when it learns of the map.
  EndRound(false, actions);
  for (auto& [number, lane] : lanes_) {
    lane.shards.clear();
    lane.same_map = false;
  }
  for (std::uint32_t i = 0; i < shards_.size(); ++i) {
    const StreamMap::Shard& place = map.shards[i];
    const bool moved = map_.shards.empty() || !(map_.shards[i] == place);
    if (place.lane != kNoLane) lanes_[place.lane].shards.push_back(ShardId(i));
    if (!moved) continue;
    Shard& shard = shards_[i];
    if (shard.phase == Phase::kBroken) continue;
    shard.phase = Phase::kAsk;
    shard.moved = true;
    shard.left_to_nearer = false;
    // It may have been restored from a checkpoint: only what that covers is certain.
    shard.acked = shard.sent = std::min(shard.acked, released_);
    shard.ahead = 0;
  }
  map_ = map;
  for (auto lane = lanes_.begin(); lane != lanes_.end();) {
    if (lane->second.shards.empty()) {
      lane = lanes_.erase(lane);
      continue;
    }
    if (!lane->second.hello_pending) lane->second.hello_wanted = true;
    lane->second.hello_not_before_ms = 0;
    lane->second.compare_maps_ms = now_ms_ + options_.compare_maps_ms;
    std::erase_if(lane->second.inits, [this, number = lane->first](const auto& init) {
      const ShardId shard = init.second.shard;
      return map_.shards[shard.value()].lane != number || At(shard).phase != Phase::kBlank;
    });
    ++lane;
  }
  Pump(actions);
}

void PushStream::Reconnected(std::uint32_t number, StreamActions& actions) {
  const auto found = lanes_.find(number);
  if (found == lanes_.end()) return;
  Lane& lane = found->second;
  if (lane.hello_pending) {
    lane.hello_sent_ms = now_ms_;
    ++counters_.hellos;
    actions.push_back(SendHello{number, lane.hello_request});
  } else if (!lane.in_flight.empty()) {
    lane.hello_wanted = true;
    AskAll(lane);
  }
  lane.marker_next_ms = 0;
  Pump(actions);
}

void PushStream::TakeWatermark(ShardId number, Clock watermark, StreamActions& actions) {
  Shard& shard = At(number);
  if (watermark > head_ && !options_.ghost) {
    Break(number, StreamBroken::Why::kUnknown, watermark, actions);
    return;
  }
  // Clocks that the shard has but whose verdict never reached us are sent again: the shard repeats
  // the verdict, and a TooOld among them must not be missed. A ghost has no residual to give back
  // to.
  const Clock from = options_.ghost ? watermark : std::min(watermark, shard.seen);
  // Behind an epoch's change the bases of all committed pushes belong to another life of the shard.
  shard.replay_until = shard.moved || options_.ghost ? head_ : shard.sent_max;
  shard.moved = false;
  shard.acked = shard.sent = from;
  shard.ahead = 0;
  shard.phase = Phase::kReady;
}

void PushStream::HelloReply(std::uint32_t number, std::uint64_t request, std::uint64_t map_version,
                            std::span<const StreamVerdict> segments, StreamActions& actions) {
  const auto found = lanes_.find(number);
  if (found == lanes_.end() || !found->second.hello_pending ||
      found->second.hello_request != request) {
    return;
  }
  Lane& lane = found->second;
  lane.hello_pending = false;
  lane.not_live_since.reset();
  lane.same_map = map_version == map_.version;
  lane.compare_maps_ms = now_ms_ + options_.compare_maps_ms;
  // The lane answers in order: pushes from before this Hello that are not answered by now never
  // will be, and the watermark tells what became of them.
  for (auto push = lane.in_flight.begin(); push != lane.in_flight.end() && push->first < request;) {
    for (const auto& [shard, epoch] : push->second.shards) {
      if (Current(number, shard, epoch) && At(shard).phase == Phase::kReady) {
        At(shard).phase = Phase::kAsk;
      }
    }
    push = lane.in_flight.erase(push);
  }
  const bool far = !options_.ghost && std::find(map_.far_lanes.begin(), map_.far_lanes.end(),
                                                number) != map_.far_lanes.end();
  for (const StreamVerdict& segment : segments) {
    if (!Current(number, segment.shard, segment.epoch)) continue;
    if (At(segment.shard).phase != Phase::kAsk) continue;
    if (segment.code == wire::Code::Applied) {
      TakeWatermark(segment.shard, segment.watermark, actions);
    } else if (segment.code == wire::Code::Blank && far && !At(segment.shard).left_to_nearer) {
      // Every worker has the same values, and they are the largest message of all: over a slow link
      // they would hold up everything for as long as they take.
      At(segment.shard).left_to_nearer = true;
      lane.hello_not_before_ms =
          std::max(lane.hello_not_before_ms, now_ms_ + options_.nearer_init_ms);
    } else if (segment.code == wire::Code::Blank && !options_.ghost) {
      At(segment.shard).phase = Phase::kBlank;
      const std::uint64_t init = next_request_++;
      lane.inits[init] = Init{segment.shard, now_ms_};
      actions.push_back(SendInit{number, init, segment.shard});
    }
  }
  for (const ShardId shard : lane.shards) {
    if (At(shard).phase == Phase::kAsk) lane.hello_wanted = true;
  }
  Pump(actions);
}

void PushStream::InitReply(std::uint32_t number, std::uint64_t request, StreamActions& actions) {
  const auto found = lanes_.find(number);
  if (found == lanes_.end()) return;
  Lane& lane = found->second;
  const auto init = lane.inits.find(request);
  if (init == lane.inits.end()) return;
  Ask(lane, init->second.shard);
  lane.inits.erase(init);
  // An answer, not a refusal: no reason to wait with the question once it is the last.
  if (lane.inits.empty()) lane.hello_not_before_ms = now_ms_;
  Pump(actions);
}

void PushStream::Settle(Shard& shard, Clock clock) {
  if (clock <= shard.acked) return;
  const std::uint64_t distance = clock.value() - shard.acked.value() - 1;
  if (distance >= 64) return;
  shard.ahead |= std::uint64_t{1} << distance;
  while ((shard.ahead & 1) != 0) {
    shard.ahead >>= 1;
    shard.acked = Clock(shard.acked.value() + 1);
  }
  shard.sent = std::max(shard.sent, shard.acked);
  shard.seen = std::max(shard.seen, shard.acked);
}

void PushStream::TakeVerdict(Lane& lane, ShardId number, Clock clock, wire::Code code,
                             StreamActions& actions) {
  switch (code) {
    case wire::Code::TooOld:
    case wire::Code::NonFinite:
      if (code == wire::Code::TooOld) ++counters_.too_old;
      if (code == wire::Code::NonFinite) ++counters_.non_finite;
      actions.push_back(Refused{clock, number, code});
      Settle(At(number), clock);
      break;
    case wire::Code::Applied: Settle(At(number), clock); break;
    default:
      if (code == wire::Code::Gap) ++counters_.gaps;
      if (At(number).phase == Phase::kReady) Ask(lane, number);
      break;
  }
}

void PushStream::PushReply(std::uint32_t number, std::uint64_t request,
                           std::span<const StreamVerdict> verdicts, StreamActions& actions) {
  const auto found = lanes_.find(number);
  if (found == lanes_.end()) return;
  Lane& lane = found->second;
  const auto push = lane.in_flight.find(request);
  if (push == lane.in_flight.end()) return;
  std::map<ShardId, wire::Code> listed;
  for (const StreamVerdict& verdict : verdicts) listed[verdict.shard] = verdict.code;
  for (const auto& [shard, epoch] : push->second.shards) {
    if (!Current(number, shard, epoch)) continue;
    const auto code = listed.find(shard);
    TakeVerdict(lane, shard, push->second.clock,
                code == listed.end() ? wire::Code::Applied : code->second, actions);
  }
  lane.in_flight.erase(push);
  Pump(actions);
}

void PushStream::Nack(std::uint32_t number, std::uint64_t request, wire::Code code,
                      StreamActions& actions) {
  const auto found = lanes_.find(number);
  if (found == lanes_.end()) return;
  Lane& lane = found->second;
  if (round_ && request == round_->number) {
    MarkerReply(number, request, code, actions);
    return;
  }
  const auto push = lane.in_flight.find(request);
  const auto init = lane.inits.find(request);
  const bool hello = lane.hello_pending && lane.hello_request == request;
  if (!hello && push == lane.in_flight.end() && init == lane.inits.end()) return;
  if (code == wire::Code::Malformed || code == wire::Code::BadVersion ||
      code == wire::Code::TooLarge || code == wire::Code::Denied) {
    Break(lane.shards.front(), StreamBroken::Why::kMalformed, Clock(), actions);
  }
  if (code == wire::Code::NotLive && !lane.not_live_since) lane.not_live_since = now_ms_;
  if (code == wire::Code::StaleMap) lane.same_map = false;
  if (hello) {
    lane.hello_pending = false;
    lane.hello_wanted = true;
    lane.hello_not_before_ms = now_ms_ + options_.hello_interval_ms;
  } else if (push != lane.in_flight.end()) {
    for (const auto& [shard, epoch] : push->second.shards) {
      if (Current(number, shard, epoch) && At(shard).phase == Phase::kReady) Ask(lane, shard);
    }
    lane.in_flight.erase(push);
  } else {
    Ask(lane, init->second.shard);
    lane.inits.erase(init);
  }
  Pump(actions);
}

void PushStream::Committed(Clock clock, StreamActions& actions) {
  head_ = std::max(head_, clock);
  Pump(actions);
}

void PushStream::Released(Clock clock) { released_ = std::max(released_, clock); }

void PushStream::BeginRound(std::uint64_t number, StreamActions& actions) {
  if (options_.ghost || number <= last_round_ || (round_ && number <= round_->number)) return;
  EndRound(false, actions);
  round_ = Round{number, head_};
  for (auto& [lane_number, lane] : lanes_) {
    lane.marker_sent = false;
    lane.marker_done = false;
    lane.marker_next_ms = 0;
    lane.marker_refusals = 0;
  }
  actions.push_back(RoundCut{number, head_});
  Pump(actions);
}

void PushStream::AbortRound(std::uint64_t number, StreamActions& actions) {
  if (round_ && round_->number <= number) EndRound(false, actions);
  last_round_ = std::max(last_round_, number);
  Pump(actions);
}

void PushStream::MarkerReply(std::uint32_t number, std::uint64_t round, wire::Code code,
                             StreamActions& actions) {
  const auto found = lanes_.find(number);
  if (!round_ || round_->number != round || found == lanes_.end()) return;
  Lane& lane = found->second;
  if (!lane.marker_sent || lane.marker_done) return;
  if (code == wire::Code::Applied) {
    lane.marker_done = true;
    const bool all = std::all_of(lanes_.begin(), lanes_.end(),
                                 [](const auto& each) { return each.second.marker_done; });
    if (all) EndRound(true, actions);
  } else if (++lane.marker_refusals >= options_.marker_refusals_max) {
    EndRound(false, actions);
  } else {
    // The lane may not have heard of the round yet, or we not of its end.
    lane.marker_next_ms = now_ms_ + options_.marker_retry_ms;
  }
  Pump(actions);
}

void PushStream::EndRound(bool frozen, StreamActions& actions) {
  if (!round_) return;
  const std::uint64_t number = round_->number;
  round_.reset();
  last_round_ = std::max(last_round_, number);
  actions.push_back(RoundEnded{number, frozen});
}

void PushStream::Pump(StreamActions& actions) {
  for (auto& [number, lane] : lanes_) {
    if (lane.hello_wanted && !lane.hello_pending && now_ms_ >= lane.hello_not_before_ms) {
      lane.hello_wanted = false;
      lane.hello_pending = true;
      lane.hello_request = next_request_++;
      lane.hello_sent_ms = now_ms_;
      lane.hello_not_before_ms = now_ms_ + options_.hello_interval_ms;
      ++counters_.hellos;
      actions.push_back(SendHello{number, lane.hello_request});
    }
    PumpLane(number, lane, actions);
    PumpMarker(number, lane, actions);
  }
}

Clock PushStream::LeastSent(const Lane& lane, Clock limit) const {
  for (const ShardId shard : lane.shards) {
    const Shard& state = shards_[shard.value()];
    if (state.phase == Phase::kReady) limit = std::min(limit, state.sent);
  }
  return limit;
}

void PushStream::PumpLane(std::uint32_t number, Lane& lane, StreamActions& actions) {
  const Clock limit = round_ ? round_->cut : head_;
  const std::uint32_t burst = options_.window / kBurstShare;
  if (!lane.in_flight.empty() && burst > 1) {
    // With answers on their way, a few small pushes are worth less than a message of many.
    const std::uint64_t room =
        options_.window - std::min<std::uint64_t>(options_.window, lane.in_flight.size());
    const std::uint64_t unsent = limit.value() - LeastSent(lane, limit).value();
    if (std::min(room, unsent) < burst) return;
  }
  while (lane.in_flight.size() < options_.window) {
    // The shards furthest behind go first and so catch up with the others, clock by clock.
    const Clock sent = LeastSent(lane, limit);
    if (sent >= limit) return;
    SendPush push;
    push.clock = Clock(sent.value() + 1);
    bool full = false;
    for (const ShardId shard : lane.shards) {
      const Shard& state = At(shard);
      if (state.phase != Phase::kReady || state.sent != sent) continue;
      full = full || state.sent.value() - state.acked.value() >= options_.window;
      push.replay = push.replay || push.clock <= state.replay_until;
      push.shards.push_back(shard);
    }
    if (full) return;
    if (push.clock <= released_) {
      for (const ShardId shard : push.shards) {
        Break(shard, StreamBroken::Why::kLost, sent, actions);
      }
      continue;
    }
    push.lane = number;
    push.request = next_request_++;
    push.covers_lane = lane.same_map && !push.replay && push.shards.size() == lane.shards.size();
    InFlight& record = lane.in_flight[push.request];
    record.clock = push.clock;
    record.sent_ms = now_ms_;
    for (const ShardId shard : push.shards) {
      record.shards.emplace_back(shard, map_.shards[shard.value()].epoch);
      At(shard).sent = push.clock;
      At(shard).sent_max = std::max(At(shard).sent_max, push.clock);
    }
    ++counters_.pushes;
    if (push.replay) ++counters_.replays;
    actions.push_back(std::move(push));
  }
}

void PushStream::PumpMarker(std::uint32_t number, Lane& lane, StreamActions& actions) {
  if (!round_ || lane.marker_done || now_ms_ < lane.marker_next_ms) return;
  // With the verdicts in hand no marker can overtake a push that a broken connection lost.
  for (const ShardId shard : lane.shards) {
    if (At(shard).phase != Phase::kReady || At(shard).acked < round_->cut) return;
  }
  lane.marker_sent = true;
  lane.marker_next_ms = now_ms_ + options_.resend_timeout_ms;
  actions.push_back(SendMarker{number, round_->number, round_->cut});
}

Clock PushStream::AckedByAll() const {
  Clock least = head_;
  for (const Shard& shard : shards_) {
    least = std::min(least, shard.moved || shard.phase == Phase::kBroken
                                ? std::min(shard.acked, released_)
                                : shard.acked);
  }
  return least;
}

std::optional<std::int64_t> PushStream::not_live_since() const {
  std::optional<std::int64_t> since;
  for (const auto& [number, lane] : lanes_) {
    if (lane.not_live_since && (!since || *lane.not_live_since < *since)) {
      since = lane.not_live_since;
    }
  }
  return since;
}

}  // namespace ps::worker
