// What the shards of one job on one lane tell the next members of their chains
// (docs/architecture.md, "Chains"), and how far these have it.
//
// Each shard that has a next member feeds it: asks how far its copy is, sends it the image if it
// has none, then every change in order. Changes of several shards to one lane go in one message,
// which is kept until all of it is confirmed, and sent again when an answer fails to come. A feed
// is required once its member is close: from then on nothing may leave the lane that the member
// does not have, which is what Covers() is for; once it has all that left before, it is in sync.
// No clock: Tick() brings the time. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/ids.h"
#include "common/messages/wire.h"
#include "ps-server/core/byte_buffer.h"
#include "ps-server/core/shard.h"
#include "ps-server/core/shard_image_stream.h"

namespace ps::server {

// The next member of a shard's chain.
struct ChainNext {
  std::string endpoint;     // of its lane
  std::uint64_t since = 0;  // version of the map that made it a member
  bool synced = false;      // the map says that it is in the chain

  friend bool operator==(const ChainNext&, const ChainNext&) = default;
};

// A message to another lane: frame 1 and, if there is one, frame 2.
struct ChainMessage {
  std::string endpoint;
  std::vector<std::byte> head;
  std::shared_ptr<const ByteBuffer> payload;  // shared with the feed, which may send it again
};

// The number of a piece names its image too, so that an answer to another one is not taken for it.
inline constexpr int kPieceBits = 24;
inline std::uint64_t ImageOfPiece(std::uint64_t number) { return number >> kPieceBits; }
inline std::uint64_t PlaceOfPiece(std::uint64_t number) {
  return number & ((std::uint64_t{1} << kPieceBits) - 1);
}

struct FeedStatus {
  ShardId shard;
  Epoch epoch;
  std::uint64_t since = 0;
  std::string endpoint;  // of the member's lane
  bool synced = false;
  std::uint64_t stalled_ms = 0;  // what its lane was last sent is not answered for so long
  std::uint64_t behind = 0;      // changes that it is not known to have
};

struct FeedCounters {
  std::uint64_t messages = 0;  // of changes, those sent again too
  std::uint64_t bytes = 0;     // of all messages, both frames
  std::uint64_t images = 0;    // that a member has confirmed
  std::uint64_t resent = 0;
};

// How much of images may leave a lane, for all of its jobs: `rate` bytes a second, 0: any. What a
// new backup is sent then leaves room on the link for pushes and pulls. No clock, one thread.
class ImageBudget {
 public:
  explicit ImageBudget(std::uint64_t rate = 0) : rate_(rate) {}

  void Tick(std::int64_t now_ms);
  bool allows() const { return rate_ == 0 || credit_ > 0; }
  void Spend(std::size_t bytes);

 private:
  // So long may pass between two ticks without a loss.
  static constexpr std::int64_t kSavedMs = 100;

  const std::uint64_t rate_;
  std::int64_t credit_ = 1;  // bytes; below 0 after a piece that was larger
  std::int64_t now_ms_ = 0;
};

class ChainFeeds {
 public:
  // Unconfirmed changes of one lane beyond which who is not required yet becomes so: then workers
  // wait for it, and their windows are the bound.
  static constexpr std::size_t kWindowBytesMax = std::size_t{64} << 20;
  static constexpr std::size_t kWindowMessagesMax = std::size_t{1} << 14;
  static constexpr std::uint64_t kNear = 64;  // changes
  static constexpr std::int64_t kHelloEveryMs = 100;
  static constexpr std::int64_t kAnswerMs = 500;  // without one it is asked again

  using ShardFn = std::function<const Shard*(ShardId)>;  // every one that is fed is there

  // `budget` outlives the feeds.
  // `token`: of the job (LaneHeader.token).
  ChainFeeds(JobId job, std::uint64_t token, ShardFn shard, ImageBudget& budget)
      : job_(job), token_(token), shard_of_(std::move(shard)), budget_(budget) {}

  // The shard feeds `next` from now on, as before if it is the same; nothing: nobody. True if it
  // fed another one before.
  bool SetNext(ShardId shard, const std::optional<ChainNext>& next);
  // Our own copy was replaced: what the next one has may be something else.
  void Restart(ShardId shard);
  bool empty() const { return feeds_.empty(); }

  // ---- changes, right after they were made: those of one message, then Send*
  void AddPush(ShardId shard, wire::Code verdict, std::span<const std::byte> bytes);
  void SendPushes(const DecidedPush& push, std::uint32_t live_workers);
  void AddRelease(ShardId shard, Clock until);
  void SendReleases(std::uint32_t live_workers);

  // ---- answers, whose segments are not trusted
  void OnMessage(std::string_view endpoint, const wire::LaneHeader& header,
                 std::span<const wire::Segment> segments);
  void Tick(std::int64_t now_ms);

  // Counts messages of changes.
  std::uint64_t appended() const { return appended_; }
  // What was caused by the changes up to then may leave: all required members have them.
  bool Covers(std::uint64_t appended) const;
  // The required member after us, if there is one, has so many changes of this shard.
  bool Has(ShardId shard, std::uint64_t changes) const;

  // Swaps in the messages since the last call.
  void TakeMessages(std::vector<ChainMessage>& into);
  bool has_messages() const { return !out_.empty(); }
  // True once after a feed has come in sync.
  bool TakeNews() { return std::exchange(news_, false); }
  void AddEndpoints(std::vector<std::string>& into) const;
  std::vector<FeedStatus> Report() const;
  const FeedCounters& counters() const { return counters_; }
  std::size_t unconfirmed_bytes() const;

 private:
  enum class Phase { kAsk, kWaitImage, kImage, kTail };
  struct Feed {
    ChainNext next;
    Phase phase = Phase::kAsk;
    // Changes beyond `base` are in the window until they are confirmed. Below it: an image.
    bool feeding = false;
    std::uint64_t base = 0;
    std::uint64_t acked = 0;  // the member has so many changes
    bool required = false;
    std::uint64_t sync_at = 0;  // changes that had left when it became required
    std::uint64_t asked = 0;    // the newest hello that named it
    bool in_sync = false;

    bool confirmed() const { return feeding && acked >= base; }
  };
  struct Part {
    ShardId shard;
    std::uint64_t change = 0;
    wire::Code verdict = wire::Code::Applied;
    std::uint32_t offset = 0;
    std::uint32_t length = 0;
    bool done = false;  // confirmed, or nobody is to have it any more
  };
  struct Entry {
    std::uint64_t number = 0;
    wire::LaneHeader header;
    std::uint16_t live_workers = 0;
    std::vector<Part> parts;
    std::shared_ptr<const ByteBuffer> payload;
    std::size_t missing = 0;   // parts that are not done
    std::size_t required = 0;  // of these, of required feeds
  };
  struct Link {
    std::deque<Entry> window;
    std::size_t bytes = 0;
    std::int64_t next_hello_ms = 0;
    bool waiting = false;  // for an answer, since then or since the last one that brought us on
    std::int64_t waiting_since_ms = 0;
    // The image under way; one at a time.
    std::optional<ShardId> image_shard;
    std::unique_ptr<ShardImageWriter> image;
    std::shared_ptr<const ByteBuffer> piece;
    std::uint64_t piece_number = 0;  // place in the image, and image
    std::int64_t piece_sent_ms = 0;
    bool piece_held = false;  // for the budget
  };
  struct Added {
    ShardId shard;
    std::uint64_t change = 0;
    wire::Code verdict = wire::Code::Applied;
    Clock until;
    std::span<const std::byte> bytes;
    Link* link = nullptr;
    const std::string* endpoint = nullptr;
  };

  Feed* Find(ShardId shard);
  wire::LaneHeader Header(wire::Kind kind, std::uint64_t request) const;
  void Append(const std::string& endpoint, Link& link, wire::LaneHeader header,
              std::span<const Added> added, std::uint32_t live_workers);
  void Send(const std::string& endpoint, const Entry& entry);
  void Push(const std::string& endpoint, wire::LaneHeader header,
            std::span<const wire::Segment> segments, std::shared_ptr<const ByteBuffer> payload);
  // Nobody is to have the changes of the shard up to `change` that are in the window.
  void Forget(Link& link, ShardId shard, std::uint64_t change);
  void Confirm(ShardId shard, Feed& feed, Link& link, std::uint64_t change);
  void Pop(Link& link);
  void Resend(const std::string& endpoint, Link& link, std::span<const ShardId> shards);
  void StartImage(const std::string& endpoint, Link& link, ShardId shard, Feed& feed);
  void EndImage(Link& link);
  void SendPiece(const std::string& endpoint, Link& link);
  void HoldPiece(Link& link);
  void OnReplicateReply(const std::string& endpoint, Link& link, std::uint64_t number,
                        std::span<const wire::Segment> segments);
  void OnHelloReply(const std::string& endpoint, Link& link, std::uint64_t hello,
                    std::span<const wire::Segment> segments);
  void OnImageReply(const std::string& endpoint, Link& link, std::uint64_t piece,
                    const wire::Segment& segment);
  void Require(ShardId shard, Feed& feed, Link& link);
  void Look(ShardId shard, Feed& feed, Link& link);
  void Progress(Link& link);
  void CountBlocked();

  const JobId job_;
  const std::uint64_t token_;
  const ShardFn shard_of_;
  ImageBudget& budget_;
  std::int64_t now_ms_ = 0;
  std::map<ShardId, Feed> feeds_;
  std::map<std::string, Link, std::less<>> links_;  // by endpoint
  std::size_t blocked_ = 0;  // required feeds of whose copies nothing is known yet
  std::uint64_t appended_ = 0;
  std::uint64_t hellos_ = 0;
  std::uint64_t images_ = 0;
  std::vector<Added> pushes_;
  std::vector<Added> releases_;
  std::vector<ChainMessage> out_;
  bool news_ = false;
  FeedCounters counters_;
};

}  // namespace ps::server
