// The rules of one lane: all shards, of all jobs, that one thread of a server owns.
//
// Messages of the data plane and commands of the control loop go in; replies
// (outbox) and events (for the control loop) come out. Nothing here reads a
// clock, a socket or a disk, and the same inputs give the same outputs, so that
// a simulation drives exactly this code. Bytes of messages are not trusted: a
// message is checked as a whole before anything changes (rule S2), and one that
// fails is answered with a Nack and counted. One thread.
//
// What waits here is bounded by the live set: one parked pull, with the keys of
// the rows it asks for, and one marker for each incarnation in it.
//
// Of a shard with a chain the lane is the first, or keeps a copy. Whatever tells anybody of such a
// shard leaves once every member after us has it too (chain_feeds.h): answers to workers, and the
// cuts of rounds, wait in the order in which they were made. What a copy answers to the member
// before it waits for the member after it, of that shard alone: lanes that are each other's backups
// would wait for each other for ever if it waited for more.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <memory_resource>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "checkpoint/image.h"
#include "common/codec/block_codec.h"
#include "common/ids.h"
#include "common/layout/layout.h"
#include "common/messages/wire.h"
#include "common/result.h"
#include "ps-server/core/buffer_pool.h"
#include "ps-server/core/chain_feeds.h"
#include "ps-server/core/lane_map.h"
#include "ps-server/core/segment_content.h"
#include "ps-server/core/shard.h"
#include "ps-server/core/staleness_histogram.h"

namespace ps::server {

// A message to a peer: its routing identity, frame 1 and, if not empty, frame 2.
struct LaneReply {
  std::string to;
  std::vector<std::byte> head;  // more than one head only if all are PushReply
  PooledBuffer payload;
};

// ---- what the control loop has to do

// What the shards of a job on a lane share, and keep for as long as one of them is there.
struct JobPlan {
  LayoutView layout;
  JobRules rules;
};

// A shard waits for a checkpoint: its job's `round`, or with 0 those that its job loads parts of,
// before it is Blank.
struct RestoreWanted {
  JobId job;
  ShardId shard;
  Epoch epoch;
  Round round;
  std::uint32_t lineage = 0;
  std::shared_ptr<const JobPlan> plan;
  ShardMemory memory;

  // A shard like the one that waits, to be loaded on any one thread (ShardLoad). Who asks keeps
  // this until the shard is gone or installed.
  std::unique_ptr<Shard> MakeShard() const {
    return std::make_unique<Shard>(plan->layout, plan->rules, shard, epoch, lineage,
                                   /*restoring=*/true, memory);
  }
};
// The cut of a round on this lane is complete: every shard the lane has of the job.
struct LaneFrozen {
  JobId job;
  Round round;
  std::vector<FrozenShard> shards;
};
// The lane cannot take part in the round.
struct LaneRoundFailed {
  JobId job;
  Round round;
  std::string reason;
};
// The next members of some shards' chains have come in sync: worth a report.
struct ChainSynced {
  JobId job;
};
using LaneEvent = std::variant<RestoreWanted, LaneFrozen, LaneRoundFailed, ChainSynced>;

// ---- counters, growing for ever

inline constexpr std::size_t kCodes = static_cast<std::size_t>(wire::Code::MAX) + 1;

struct LaneCounters {
  std::uint64_t pushes = 0;          // messages
  std::uint64_t pushes_applied = 0;  // verdicts of a shard, as the next four
  std::uint64_t pushes_repeated = 0;
  std::uint64_t pushes_too_old = 0;
  std::uint64_t pushes_non_finite = 0;
  std::uint64_t pushes_gap = 0;
  std::uint64_t pulls = 0;  // answered
  std::uint64_t pulls_parked = 0;
  std::uint64_t pulls_replaced = 0;    // by a newer pull of the same worker
  std::uint64_t shards_unchanged = 0;  // segments of answers to pulls
  std::uint64_t shards_sparse = 0;
  std::uint64_t shards_increments = 0;
  std::uint64_t shards_snapshot = 0;
  std::uint64_t freezes = 0;
  std::uint64_t copies_changed = 0;    // changes that copies took
  std::uint64_t copies_installed = 0;  // from images
  std::uint64_t copies_broken = 0;     // given up: a change did not fit
  std::uint64_t bytes_in = 0;          // both frames
  std::uint64_t bytes_out = 0;
  // Of the applied pushes with entries, but for replays and those of the dead and the held.
  StalenessHistogram clocks_ahead;  // of the slowest worker, when the step was made
  StalenessHistogram version_gap;   // pushes that others had applied since the step's values
  std::array<std::uint64_t, kCodes> refused{};  // messages, by the Code of their Nack

  LaneCounters& operator+=(const LaneCounters& other);
};

struct ShardStatus {
  ShardId shard;
  Epoch epoch;
  wire::Code state = wire::Code::Blank;
  std::uint64_t version = 0;
};
struct JobStatus {
  JobId job;
  std::uint64_t map_version = 0;
  std::vector<ShardStatus> shards;  // of which we are the first; Lost: should be
  struct Table {
    std::string name;
    RowTableStatus status;  // its counters grow for ever, also when shards leave
  };
  std::vector<Table> tables;  // of rows, by number
  MemoryUse memory;           // copies too; `copied` grows for ever, also when shards leave
  std::vector<FeedStatus> feeds;
  FeedCounters feed_counters;
  std::size_t copies = 0;  // that have values
  std::size_t unconfirmed_bytes = 0;
  std::size_t held_answers = 0;
  std::size_t parked_pulls = 0;
  LaneCounters counters;
};

struct JobSetup {
  JobId job;
  LayoutView layout;
  JobRules rules;  // whose tables of rows are those of the layout (RowRulesFit)
  LaneMap map;
  LiveMembers live;
  std::uint64_t token = 0;  // that each request about the job must have
};

// Where a lane keeps its shards.
struct LaneMemory {
  // Of the indexes of rows: best not known to who chooses keys; it changes no result.
  std::uint64_t hash_seed = 0;
  // Makes the memory of one job on the lane, which goes with the job and the last of its frozen
  // shards; as CowPages asks. Empty: that of operator new.
  std::function<std::shared_ptr<std::pmr::memory_resource>()> make_memory;
};

class LaneCore {
 public:
  // Answers that are not sent yet: a pull beyond it is refused with Overloaded, unless it is alone.
  static constexpr std::size_t kAnswerBytesMax = std::size_t{1} << 30;
  // An answer to a pull ends before the shard that could make it larger, so that others are
  // answered in between; that of one shard may be as large as a message.
  static constexpr std::uint64_t kAnswerPartBytes = std::uint64_t{256} << 20;
  // Answers of a job that wait for its chains; more are dropped, and asked for again.
  static constexpr std::size_t kHeldAnswersMax = std::size_t{1} << 14;

  // `image_rate`: see ImageBudget.
  explicit LaneCore(LaneMemory memory = {}, std::uint64_t image_rate = 0);
  ~LaneCore();
  LaneCore(const LaneCore&) = delete;
  LaneCore& operator=(const LaneCore&) = delete;

  // ---- from the network

  // One message: frame 1 as it came, frame 2 or nothing. Both are only read inside the call.
  void OnMessage(std::string_view from, std::span<const std::byte> head,
                 std::span<const std::byte> payload);

  // What the lane at `endpoint` answered to a message of ours to it.
  void OnChainMessage(std::string_view endpoint, std::span<const std::byte> head);

  // ---- from the control loop

  // Time in milliseconds that only grow; nothing is due more often than every 50 of them, and
  // without chains nothing ever.
  void Tick(std::int64_t now_ms);

  // A job that is here already gets the map and the live set only, as by the two calls below.
  void SetJob(JobSetup setup);
  // An older map or live set than the present one changes nothing.
  void UpdateMap(JobId job, LaneMap map);
  void UpdateLive(JobId job, LiveMembers live);
  void DropJob(JobId job);
  void BeginRound(JobId job, Round round, std::uint64_t live_version, std::uint64_t map_version);
  void AbortRound(JobId job, Round round);
  // Puts a shard of wanted.MakeShard() that is loaded, by ShardLoad or PartialLoad, into the place
  // of the one that waits.
  // kConflict if none does under this epoch (the map went on).
  Status InstallRestored(const RestoreWanted& wanted, std::unique_ptr<Shard> loaded);
  // The same with an image in memory. kInvalid if that does not fit the job.
  Status InstallRestored(JobId job, Epoch epoch, const checkpoint::ShardImage& image,
                         bool values_only);

  // ---- out

  // Swaps in the replies since the last call, in order. What `replies` held is used again for later
  // ones, so that a caller who always passes the same vector costs no allocation.
  void TakeReplies(std::vector<LaneReply>& replies);
  std::vector<LaneEvent> TakeEvents();
  bool has_events() const { return !events_.empty(); }

  // Swaps in the messages to other lanes since the last call.
  void TakeChainMessages(std::vector<ChainMessage>& messages);
  // Of the lanes that messages go to now, each once, sorted.
  std::vector<std::string> ChainEndpoints() const;
  bool has_chains() const { return has_chains_; }

  std::vector<JobStatus> Report() const;
  // All jobs, those that are gone too.
  const LaneCounters& counters() const { return counters_; }
  std::size_t parked_pulls() const;
  // The job of a request without its token since the last call; the newest.
  std::optional<JobId> TakeDenied() { return std::exchange(denied_, std::nullopt); }
  // nullptr if it is not on this lane.
  const Shard* FindShard(JobId job, ShardId shard) const;
  // nullptr if we keep no copy of it, or it has no values yet.
  const Shard* FindCopy(JobId job, ShardId shard) const;

 private:
  struct Job;
  struct Peer;

  Job* FindJob(JobId job);
  // `payload_counts`: not for a batch's second head and those after it, which share the payload.
  void Dispatch(const Peer& peer, std::span<const std::byte> payload, bool payload_counts);
  void OnHello(Job& job, const Peer& peer);
  void OnInit(Job& job, const Peer& peer, std::span<const std::byte> payload);
  void OnPush(Job& job, const Member& member, const Peer& peer, std::span<const std::byte> payload);
  void OnPull(Job& job, const Peer& peer, std::span<const std::byte> payload);
  void OnMarker(Job& job, const Peer& peer);
  void OnHold(Job& job, Member& member, const Peer& peer);
  void OnReplicate(Job& job, const Peer& peer, std::span<const std::byte> payload);
  void OnReplicaHello(Job& job, const Peer& peer);
  void OnReplicaImage(Job& job, const Peer& peer, std::span<const std::byte> payload);

  // Checks shards, blocks and rows of every segment into parsed_. False if the message is bad.
  bool ParseSegments(Job& job, std::span<const std::byte> payload);
  // Checks shards and keys of rows of every segment of a pull into asked_. False if they are bad.
  bool ParseAsked(Job& job, std::span<const wire::Segment> segments,
                  std::span<const std::byte> payload);
  // After a change of the members or of who counts.
  void MembersChanged(Job& job);
  void WakePulls(Job& job);
  // True if the pull has to wait, false if it can be answered or refused.
  bool MustWait(Job& job, const Peer& peer, std::span<const wire::Segment> asked);
  // Answers a pull that need not wait, whose rows are in asked_.
  void AnswerPull(Job& job, const Peer& peer, std::span<const wire::Segment> asked);
  void TryFreeze(Job& job);
  static Error NotWaiting(JobId job, ShardId shard);
  void OnRestored(Job& job);
  void FailRound(Job& job, const std::string& reason);
  void RefuseMarkersUpTo(Job& job, Round round);

  // Applies what is held of a shard, if it can be now.
  void ApplyHeld(Job& job, Shard& shard);
  void CountChains();
  void BreakCopy(Job& job, std::uint32_t shard);
  // False if something that somebody has to hear of is not everywhere yet.
  bool MayLeave(const Job& job) const;
  void ReleaseAnswers(Job& job);
  void Emit(Job& job, LaneFrozen frozen);

  void Reply(const Peer& peer, wire::LaneHeader header, std::span<const wire::Segment> segments,
             PooledBuffer payload);
  // To the member before us: says that our copies have what needs_ names.
  void ReplyUp(Job& job, const Peer& peer, wire::LaneHeader header,
               std::span<const wire::Segment> segments);
  void Answer(const std::string& to, wire::LaneHeader header,
              std::span<const wire::Segment> segments, PooledBuffer payload);
  void RefuseUnreadable(Peer& peer, std::span<const std::byte> head);
  void Nack(const Peer& peer, wire::Code code, std::span<const wire::Segment> segments = {});

  const LaneMemory memory_;
  ImageBudget image_budget_;
  std::map<JobId, std::unique_ptr<Job>> jobs_;
  LaneCounters counters_;
  std::vector<LaneReply> replies_;
  std::uint32_t batched_ = 0;  // heads of the last reply if it is a batch of PushReply, else 0
  std::vector<LaneEvent> events_;
  std::optional<JobId> denied_;
  bool has_chains_ = false;

  // Scratch, kept to avoid allocations. The pool is shared with the buffers on their way.
  const std::shared_ptr<BufferPool> buffers_ = BufferPool::Create();
  std::vector<LaneReply> spare_replies_;
  wire::Head head_;
  std::vector<SegmentContent> parsed_;               // by segment
  std::vector<std::vector<codec::RowsView>> asked_;  // by segment of a pull
  std::vector<wire::Segment> answer_;
  std::vector<std::pair<ShardId, std::uint64_t>> needs_;  // shards and changes
  PullScratch pull_scratch_;
  MergeScratch merge_scratch_;
};

}  // namespace ps::server
