// The worker's connections to the lanes: the PushStream's actions carried out, and pulls.
//
// One DEALER per lane of the map. Pushes are sent from the retention ring without a copy where a
// lane's segments lie next to each other. A task's session uses it, and an agent to replay what a
// dead task left (options.ghost): the latter never pulls, initialises or takes part in rounds.
//
// Belongs to the loop's thread, as do the callbacks; they must not destroy the client. Answers of
// the lanes are checked before use; what is wrong is counted and dropped, and asked for again.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/layout/layout.h"
#include "common/messages/control.h"
#include "common/messages/wire.h"
#include "common/net/context.h"
#include "common/net/loop.h"
#include "common/net/zmq_socket.h"
#include "ps-worker/core/push_stream.h"
#include "ps-worker/core/retention_ring.h"
#include "ps-worker/task/task_session.h"

namespace ps::worker {

struct DataClientOptions {
  bool ghost = false;
  std::uint64_t token = 0;  // of the job (LaneHeader.token)
  std::uint32_t window = 4;
  std::int64_t resend_timeout_ms = 2000;
  std::int64_t pull_retry_ms = 100;  // after a refusal of a pull
  // An unanswered pull is sent again after this time, then after twice that, and so on up to a
  // minute: over a slow link the answer may just be long.
  std::int64_t pull_timeout_ms = 3000;
};

struct DataClientCounters {
  std::uint64_t pushes = 0;      // messages
  std::uint64_t push_bytes = 0;  // both frames
  std::uint64_t pulls = 0;       // answered by all lanes
  std::uint64_t pull_bytes = 0;
  std::uint64_t copied_bytes = 0;  // of pushes that could not be sent from the ring itself
  std::uint64_t bad_messages = 0;
  std::uint64_t unsent = 0;  // no connection, or its queue was full
};

class DataClient {
 public:
  // Any may be empty.
  struct Callbacks {
    // Initial values of a blank shard; false if they are not known yet.
    std::function<bool(ShardId, std::span<float>)> initial_values;
    // A TooOld segment, as it was pushed, before the ring's copy becomes void.
    std::function<void(const RingEntryInfo&, ShardId, std::span<const std::byte>)> returned;
    // A shard found a segment not finite that the task had found finite; before the ring's copy
    // becomes void.
    std::function<void(const RingEntryInfo&, ShardId)> non_finite;
    std::function<void(std::uint64_t round, Clock cut)> round_cut;
    std::function<void(std::uint64_t round, bool frozen)> round_ended;
    // A verdict, a map or a watermark arrived: all_acked() and has_room() may have changed.
    std::function<void()> advanced;
    // The answer to the newest StartPull().
    std::function<void(PullResult)> pulled;
    // Exactly-once can no longer be kept, or a lane speaks another protocol. Once.
    std::function<void(const Error&)> broken;
  };
  // What the puller has of a shard; nothing by default.
  struct Base {
    std::uint64_t version = 0;
    std::uint32_t lineage = 0;
  };
  struct Pull {
    Clock needed;
    bool fp32 = false;
    bool snapshot = false;
    std::vector<ShardId> shards;          // empty: all
    std::vector<Base> bases;              // by shard; empty: none
    std::shared_ptr<const RowKeys> rows;  // null: none; else `shards` is empty
  };

  // `ring`'s identity says who we are; what it holds counts as committed. `layout` may be null for
  // a ghost. All references must outlive the client.
  DataClient(net::Loop& loop, net::Context& context, RetentionRing& ring, const LayoutView* layout,
             const DataClientOptions& options, Callbacks callbacks);
  ~DataClient();
  DataClient(const DataClient&) = delete;
  DataClient& operator=(const DataClient&) = delete;

  // Connects to the lanes and says Hello. An older map than the present one changes nothing.
  // kInvalid if it does not belong to this job.
  Status SetMap(const control::MapT& map);

  // The ring has a new entry.
  void Committed();
  // A committed checkpoint covers the clocks up to `cut`.
  void Release(Clock cut);

  void BeginRound(std::uint64_t round);
  void AbortRound(std::uint64_t round);

  // Replaces the pull before, answered or not.
  void StartPull(const Pull& pull);
  // Puts the clock out of the staleness rule, or back in; repeated until every lane has it.
  void SetHold(bool on);

  // Every push has a verdict on every shard.
  bool all_acked() const { return stream_.AllAcked(); }
  bool has_room() const { return stream_.HasRoom(); }
  const PushStream& stream() const { return stream_; }
  const DataClientCounters& counters() const { return counters_; }
  // By how many pushes each pulled shard had moved on from its base, since the last call.
  std::vector<std::uint32_t> TakeVersionGaps();

 private:
  struct Lane {
    std::string endpoint;
    std::unique_ptr<net::ZmqSocket> socket;
    bool hold_known = true;  // the lane has confirmed hold_on_
    std::int64_t hold_sent_ms = 0;
  };
  // The part of the current pull that one lane is asked for.
  struct LanePull {
    std::vector<ShardId> shards;
    std::int64_t next_send_ms = 0;
    std::int64_t timeout_ms = 0;  // of the last time that it was sent; 0: it was not
  };
  // The rows that one shard is asked for.
  struct RowsAsked {
    std::vector<std::byte> parts;  // as they are sent
    struct Part {
      std::uint32_t table = 0;
      std::uint32_t count = 0;
    };
    std::vector<Part> tables;
  };
  struct CurrentPull {
    std::uint64_t request = 0;
    Pull what;
    std::map<std::uint32_t, LanePull> missing;
    std::vector<bool> have;       // by shard
    std::vector<RowsAsked> rows;  // by shard; empty: none are asked for
    PullResult result;
  };

  void Tick();
  void Run(StreamActions actions);
  void Do(const SendHello& hello);
  void Do(const SendInit& init);
  void Do(const SendPush&) {}  // Run() collects them for SendPushes
  void Do(const SendMarker& marker);
  void Do(const Refused& refused);
  void Do(const RoundCut& cut);
  void Do(const RoundEnded& ended);
  void Do(const StreamBroken& broken);

  wire::LaneHeader Header(wire::Kind kind, std::uint64_t request) const;
  bool Send(std::uint32_t lane, wire::LaneHeader header, std::span<const wire::Segment> segments,
            std::optional<zmq::message_t> payload);
  bool SendFrames(std::uint32_t lane, std::vector<std::byte> heads,
                  std::optional<zmq::message_t> payload);
  // The pushes of run_, to one lane, in as few messages as their places in the ring allow.
  void SendPushes();
  void AddToBatch(const SendPush& push);
  void SendBatch();

  void OnReceive(std::uint32_t lane, net::ZmqSocket::Frames frames);
  // One answer, whose head is head_; false if it cannot be meant for us.
  bool OnAnswer(std::uint32_t lane, net::ZmqSocket::Frames& frames, StreamActions& actions);
  void OnConnection(std::uint32_t lane, bool connected);
  void OnPullReply(std::uint32_t lane, zmq::message_t payload);
  // Takes a reply's segment apart; false if it is not what the shard was asked for.
  bool ReadPulled(const wire::Segment& segment, std::span<const std::byte> frame,
                  PulledShard& pulled) const;
  std::vector<RowsAsked> SplitRows(const RowKeys& keys) const;
  void SplitPull();
  void SendPulls();
  void FinishPull();
  void SendHolds();
  void Break(Error error);
  std::uint32_t ElementsOf(ShardId shard, std::uint32_t block) const;

  net::Loop& loop_;
  net::Context& context_;
  RetentionRing& ring_;
  const LayoutView* const layout_;
  const DataClientOptions options_;
  const std::uint32_t shards_;
  const Callbacks callbacks_;

  PushStream stream_;
  std::map<std::string, std::uint32_t> lane_numbers_;  // of every endpoint ever seen
  std::map<std::uint32_t, Lane> lanes_;                // of the present map
  std::optional<CurrentPull> pull_;
  std::uint64_t next_pull_request_;
  bool hold_on_ = false;
  std::uint64_t hold_request_ = 0;
  bool broken_ = false;
  std::vector<std::uint32_t> version_gaps_;  // bounded
  DataClientCounters counters_;
  wire::Head head_;  // scratch
  // The next message of pushes: their heads' parts, and the range of the ring that it sends.
  struct Batch {
    struct Push {
      wire::LaneHeader header;
      Clock clock;
      std::size_t segments = 0;         // so many of `segments`, after those of the pushes before
      const std::byte* base = nullptr;  // the segments' offsets count from here
    };
    std::uint32_t lane = kNoLane;
    std::vector<Push> pushes;
    std::vector<wire::Segment> segments;
    const std::byte* low = nullptr;  // null: no payload yet
    const std::byte* high = nullptr;
    std::size_t used = 0;  // bytes of [low, high) that a segment names
  };
  Batch batch_;
  std::vector<SendPush> run_;  // scratch
  net::Timer timer_;
};

}  // namespace ps::worker
