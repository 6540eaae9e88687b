// The rules W1-W8 of docs/architecture.md: which push goes to which shard when, so that each shard
// applies each push of one incarnation exactly once, whatever is lost on the way.
//
// A pure state machine: events in, actions out; no clock, socket or thread. Each event appends to
// `actions`, which the caller carries out in order. Losing an action's message is harmless: a
// timeout asks the lane by Hello what it has, and the stream goes on from there.
//
// Per shard the stream knows `acked` (every clock up to it has a verdict that we have seen) and
// `sent`. A lane is a connection endpoint; the caller gives each endpoint one number for ever. The
// same class drives a live task and, as a ghost, the replay of a dead task's ring: then the clocks
// are all there at the start and no rounds take place.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "common/ids.h"
#include "common/messages/wire.h"

namespace ps::worker {

inline constexpr std::uint32_t kNoLane = 0xffffffff;
// Rounds serve as the request of a Marker: all other requests of the stream are above them.
inline constexpr std::uint64_t kFirstRequest = std::uint64_t{1} << 40;

// Where the shards are, from a control::Map.
struct StreamMap {
  struct Shard {
    std::uint32_t lane = kNoLane;
    Epoch epoch;
    std::uint32_t lineage = 0;
    friend bool operator==(const Shard&, const Shard&) = default;
  };
  std::uint64_t version = 0;
  std::vector<Shard> shards;
  std::vector<std::uint32_t> far_lanes;  // those on other hosts than the worker's
};

// One segment of a HelloReply or PushReply.
struct StreamVerdict {
  ShardId shard;
  Epoch epoch;
  wire::Code code = wire::Code::Applied;
  Clock watermark;  // HelloReply and Gap
};

// ---- what the caller is to do
struct SendHello {
  std::uint32_t lane = 0;
  std::uint64_t request = 0;
};
struct SendInit {
  std::uint32_t lane = 0;
  std::uint64_t request = 0;
  ShardId shard;
};
// The clock's segments for `shards`: all shards of the lane if covers_lane, else exactly these, a
// shard without entries (or with void ones) as a segment of length 0.
struct SendPush {
  std::uint32_t lane = 0;
  std::uint64_t request = 0;
  Clock clock;
  bool covers_lane = false;
  bool replay = false;
  std::vector<ShardId> shards;
};
struct SendMarker {
  std::uint32_t lane = 0;
  std::uint64_t round = 0;  // also the request
  Clock clock;
};
// The segment was not applied: make the ring's copy void. `code` is TooOld (its entries go back
// into the residual, if it was not void before) or NonFinite.
struct Refused {
  Clock clock;
  ShardId shard;
  wire::Code code = wire::Code::TooOld;
};
// The worker's cut of this round: every push up to `clock` is in it, none after it.
struct RoundCut {
  std::uint64_t round = 0;
  Clock clock;
};
// Every lane is frozen for the round, or it came to nothing. Pushes go on.
struct RoundEnded {
  std::uint64_t round = 0;
  bool frozen = false;
};
// The stream cannot go on for this shard; the message says why.
struct StreamBroken {
  ShardId shard;
  enum class Why {
    kLost,       // it lacks clocks that a committed checkpoint let go
    kUnknown,    // it has seen clocks that were never sent: somebody else has our incarnation
    kMalformed,  // the lane does not understand our messages
  } why = Why::kLost;
  Clock watermark;
  std::uint32_t lane = kNoLane;
};
using StreamAction = std::variant<SendHello, SendInit, SendPush, SendMarker, Refused, RoundCut,
                                  RoundEnded, StreamBroken>;
using StreamActions = std::vector<StreamAction>;

struct StreamOptions {
  std::uint32_t shards = 0;
  Clock first_clock;
  std::uint32_t window = 4;  // 1 .. 32
  std::int64_t resend_timeout_ms = 2000;
  std::int64_t hello_interval_ms = 200;  // at most one Hello per lane in this time
  std::int64_t hello_timeout_ms = 500;   // an unanswered Hello is sent again
  std::int64_t compare_maps_ms = 1000;   // how often a lane with another map version is asked again
  // How long initial values of a blank shard on a far lane are left to workers that are nearer.
  std::int64_t nearer_init_ms = 300;
  std::int64_t marker_retry_ms = 100;
  int marker_refusals_max = 20;  // RoundAborted answers until the round counts as aborted
  bool ghost = false;
};

class PushStream {
 public:
  explicit PushStream(const StreamOptions& options);

  // Time for everything that follows until the next Tick, in any unit that only grows by
  // milliseconds. Call it before each event and at least every 50 ms: timeouts fire here.
  void Tick(std::int64_t now_ms, StreamActions& actions);

  // Older versions than the one set are ignored. Ends an open round.
  void SetMap(const StreamMap& map, StreamActions& actions);
  // The connection to the lane broke or came back: what was sent may be lost.
  void Reconnected(std::uint32_t lane, StreamActions& actions);

  void HelloReply(std::uint32_t lane, std::uint64_t request, std::uint64_t map_version,
                  std::span<const StreamVerdict> shards, StreamActions& actions);
  // The shards of the push that are not listed applied it.
  void PushReply(std::uint32_t lane, std::uint64_t request, std::span<const StreamVerdict> verdicts,
                 StreamActions& actions);
  void InitReply(std::uint32_t lane, std::uint64_t request, StreamActions& actions);
  void MarkerReply(std::uint32_t lane, std::uint64_t round, wire::Code code,
                   StreamActions& actions);
  // A refusal of any message of ours; unknown requests are ignored.
  void Nack(std::uint32_t lane, std::uint64_t request, wire::Code code, StreamActions& actions);

  // The push of `clock` is in the ring, as are all before it that are not released.
  void Committed(Clock clock, StreamActions& actions);
  // The ring let go of the clocks up to `clock`.
  void Released(Clock clock);

  void BeginRound(std::uint64_t round, StreamActions& actions);
  void AbortRound(std::uint64_t round, StreamActions& actions);

  // Of the last committed push.
  Clock head() const { return head_; }
  // Every shard has given its verdict on all clocks up to this one, as far as we know.
  Clock AckedByAll() const;
  bool AllAcked() const { return AckedByAll() >= head_; }
  // False while the slowest shard is a whole window behind: more steps would only pile up.
  bool HasRoom() const { return head_.value() - AckedByAll().value() < options_.window; }
  std::uint64_t open_round() const { return round_ ? round_->number : 0; }
  std::uint64_t map_version() const { return map_.version; }
  const StreamMap& map() const { return map_; }
  // Since when (Tick's time) every Hello of some lane has been answered by NotLive; nothing if
  // none.
  std::optional<std::int64_t> not_live_since() const;

  struct Counters {
    std::uint64_t hellos = 0;
    std::uint64_t pushes = 0;
    std::uint64_t replays = 0;
    std::uint64_t too_old = 0;
    std::uint64_t non_finite = 0;
    std::uint64_t gaps = 0;
    std::uint64_t timeouts = 0;
  };
  const Counters& counters() const { return counters_; }

 private:
  enum class Phase {
    kAsk,    // its watermark must be asked for by Hello
    kBlank,  // Init is on its way
    kReady,
    kBroken,
  };
  struct Shard {
    Phase phase = Phase::kAsk;
    Clock acked;
    Clock sent;
    Clock seen;  // verdicts up to it have reached us, whatever became of the shard since
    Clock sent_max;
    std::uint64_t ahead = 0;      // bit i: clock acked + 1 + i has its verdict
    Clock replay_until;           // clocks up to it may have been sent before
    bool moved = true;            // under this epoch no Hello has been answered yet
    bool left_to_nearer = false;  // it was blank under this epoch, on a far lane
  };
  struct InFlight {
    Clock clock;
    std::int64_t sent_ms = 0;
    std::vector<std::pair<ShardId, Epoch>> shards;
  };
  struct Init {
    ShardId shard;
    std::int64_t sent_ms = 0;
  };
  struct Lane {
    std::vector<ShardId> shards;
    bool hello_wanted = false;
    bool hello_pending = false;
    std::uint64_t hello_request = 0;
    std::int64_t hello_sent_ms = 0;
    std::int64_t hello_not_before_ms = 0;
    bool same_map = false;  // kCoversLane may be used
    std::map<std::uint64_t, InFlight> in_flight;
    std::map<std::uint64_t, Init> inits;
    std::int64_t compare_maps_ms = 0;  // when to ask again whether the maps are the same
    std::optional<std::int64_t> not_live_since;
    // Of the open round.
    bool marker_sent = false;
    bool marker_done = false;
    std::int64_t marker_next_ms = 0;
    int marker_refusals = 0;
  };
  struct Round {
    std::uint64_t number = 0;
    Clock cut;
  };

  Shard& At(ShardId shard) { return shards_[shard.value()]; }
  bool Current(std::uint32_t lane, ShardId shard, Epoch epoch) const;
  void Ask(Lane& lane, ShardId shard);
  void AskAll(Lane& lane);
  void TakeVerdict(Lane& lane, ShardId shard, Clock clock, wire::Code code, StreamActions& actions);
  void TakeWatermark(ShardId shard, Clock watermark, StreamActions& actions);
  void Settle(Shard& shard, Clock clock);
  void Pump(StreamActions& actions);
  // The lowest `sent` of the lane's ready shards, or `limit` if that is lower.
  Clock LeastSent(const Lane& lane, Clock limit) const;
  void PumpLane(std::uint32_t number, Lane& lane, StreamActions& actions);
  void PumpMarker(std::uint32_t number, Lane& lane, StreamActions& actions);
  void EndRound(bool frozen, StreamActions& actions);
  void FinishRoundIfDone(StreamActions& actions);
  void Break(ShardId shard, StreamBroken::Why why, Clock watermark, StreamActions& actions);

  const StreamOptions options_;
  std::int64_t now_ms_ = 0;
  StreamMap map_;
  std::vector<Shard> shards_;
  std::map<std::uint32_t, Lane> lanes_;
  Clock head_;
  Clock released_;
  std::uint64_t next_request_ = kFirstRequest;
  std::optional<Round> round_;
  std::uint64_t last_round_ = 0;  // rounds up to it are over for us
  Counters counters_;
};

}  // namespace ps::worker
