// The state of one shard and the rules S1, S2, S6 to S9 of docs/architecture.md.
//
// A shard is Blank until it gets its initial values, Restoring until it gets the
// image of a checkpoint, then Ready. It knows, for every incarnation of a worker
// that it has ever seen, the watermark (the last clock with a verdict) and the
// last verdicts, so that a push counts exactly once however often it arrives.
// Blocks and rows handed in have passed ParsePush or ParsePull of
// segment_content.h; who calls has checked epoch, live set and framing. A shard
// of a job with tables of rows may have no blocks. One thread; no clock, no I/O.
//
// What changes a shard with values is a log: pushes with their verdicts, and the
// ends of their being held. A copy that takes the same log with Take() and
// ApplyHeldUpTo() is equal, bit for bit; changes() says how far each one is.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "checkpoint/image.h"
#include "common/codec/block_codec.h"
#include "common/ids.h"
#include "common/job/learning_rate.h"
#include "common/layout/layout.h"
#include "common/messages/wire.h"
#include "common/result.h"
#include "ps-server/core/byte_buffer.h"
#include "ps-server/core/change_log.h"
#include "ps-server/core/dense_store.h"
#include "ps-server/core/frozen_shard.h"
#include "ps-server/core/held_pushes.h"
#include "ps-server/core/optimizer.h"
#include "ps-server/core/shadow.h"
#include "ps-server/core/shard_rows.h"

namespace ps::server {

// Verdicts of a worker that a shard remembers.
inline constexpr std::uint64_t kVerdictsKept = 64;
// An answer with increments that passes a multiple of so many pushes has the hash of what its
// worker holds then.
inline constexpr std::uint64_t kHashedPushes = 1024;

// What a job's specification says about pushes.
struct JobRules {
  LearningRate learning_rate;
  double reference_batch = 1;
  Optimizer optimizer;
  bool sparse = false;  // pushes leave out entries of large tensors
  // Pulls that are not fp32 bring what the pushes added to a shadow that all workers hold.
  bool increments = false;
  // A push computed on values that are more than this many pushes old is TooOld.
  std::uint64_t version_gap_max = 8;
  // The bound is twice the live workers if that is more: a job may be scaled.
  bool version_gap_follows = false;
  // Staleness 0: the pushes of a clock are summed and applied at once; none is TooOld.
  bool bulk_synchronous = false;
  // A shard without values first gets what checkpoint.load says of other jobs' checkpoints.
  bool loads = false;
  std::vector<RowRules> rows;  // by number of the table

  StoreShape store_shape() const { return StoreShape::Of(optimizer, sparse); }

  static JobRules Of(const JobSpec& spec, std::uint64_t records);
};

// A member of the live set.
struct Member {
  WorkerId worker;
  Incarnation incarnation;
  Clock first_clock;
  bool draining = false;           // dead; its agent pushes what it left
  bool held = false;               // out of the staleness rule
  std::uint64_t hold_request = 0;  // the newest Hold that said so

  bool Counts() const { return !draining && !held; }
};

struct PushFacts {
  Clock clock;
  std::uint64_t base_version = 0;
  std::uint32_t samples = 0;
  bool replay = false;
};

// A push as another copy of the shard has decided it.
struct DecidedPush {
  WorkerId worker;
  Incarnation incarnation;
  Clock first_clock;
  Clock clock;
  std::uint32_t samples = 0;
  wire::Code verdict = wire::Code::Applied;
};

struct PushVerdict {
  wire::Code code = wire::Code::Applied;
  bool repeated = false;      // the verdict was given before
  bool decided = false;       // it is a change of the shard
  std::uint64_t version = 0;  // of the shard; with Gap the watermark
};

// Memory that pulls of all shards of a lane share, so that none of them allocates.
struct PullScratch {
  std::vector<std::uint64_t> bitmap;       // of each block, one after the other
  std::vector<std::size_t> bitmap_begins;  // in words
  std::vector<std::uint8_t> touched;       // per block of the shard: 0 no, 1 some entries, 2 all
  std::vector<wire::IndexCodec> plans;     // per block
  std::vector<std::uint16_t> positions;
  std::vector<float> values;
  RowScratch rows;
};

// In bytes. Rows count in their own status.
struct MemoryUse {
  std::uint64_t dense = 0;       // values, and slots of the optimizer
  std::uint64_t change_log = 0;  // what is kept of recent pushes, at most half of the values
  std::uint64_t shadow = 0;      // what the workers hold, for increments
  std::uint64_t copied = 0;      // so far, by writes to what a checkpoint had frozen; rows too

  MemoryUse& operator+=(const MemoryUse& other);
};

class Shard {
 public:
  // `layout` and `rules`, which fit each other, outlive the shard.
  Shard(const LayoutView& layout, const JobRules& rules, ShardId id, Epoch epoch,
        std::uint32_t lineage, bool restoring, ShardMemory memory = {});

  ShardId id() const { return id_; }
  Epoch epoch() const { return epoch_; }
  std::uint32_t lineage() const { return lineage_; }
  // Applied (ready), Blank or Restoring.
  wire::Code state() const { return state_; }
  bool ready() const { return state_ == wire::Code::Applied; }
  std::uint64_t version() const { return version_; }
  // How many there were since the shard got its first values in this lineage.
  std::uint64_t changes() const { return changes_; }
  std::uint64_t samples_trained() const { return samples_trained_; }
  // Of all elements, copied.
  std::vector<float> values() const { return store_.Values(); }
  MemoryUse memory_use() const;
  const ShardRows& rows() const { return rows_; }

  // Elements of a block of this shard, 0 for any other block number.
  std::uint32_t ElementsOf(std::uint32_t block) const;

  // Takes the initial values: all blocks of the shard, be it none, dense, fp32. What was loaded of
  // other jobs (partial_load.h) takes the place of its part of them. Applied also if the
  // shard has values already, which it keeps. Malformed or NonFinite if the values cannot be taken.
  wire::Code Init(std::span<const codec::BlockView> blocks);

  // Takes the image of a checkpoint, whose rows are sorted. kInvalid if it does not fit the layout
  // or the optimizers, kConflict if the shard does not wait for one. With `values_only` versions,
  // samples, watermarks and the optimizers' slots start afresh, whatever optimizers the image is
  // of; rows stay.
  Status Restore(const checkpoint::ShardImage& image, bool values_only);

  // One push of a live incarnation; no blocks and no rows: an empty push. `live_workers` counts the
  // live.
  PushVerdict Push(const Member& member, const PushFacts& facts,
                   std::span<const codec::BlockView> blocks, std::uint32_t live_workers,
                   std::span<const codec::RowsView> rows = {});

  // Bulk-synchronous: applies what is held of the clocks that all members that count have reached,
  // clock by clock. Call it after a push, and when the members or who counts changed. The clock up
  // to which something was applied, if anything was: that is one change.
  std::optional<Clock> ApplyHeld(std::span<const Member> members, std::uint32_t live_workers,
                                 MergeScratch& scratch);
  const HeldPushes& held() const { return held_; }

  // ---- as a copy of a shard that is elsewhere

  // The image that was restored is of a shard with so many changes.
  void SetChanges(std::uint64_t changes) { changes_ = changes; }
  // The next change; what was not applied comes without blocks and rows. kConflict if it cannot be
  // the next one of this shard, which is then as before.
  Status Take(const DecidedPush& push, std::span<const codec::BlockView> blocks,
              std::span<const codec::RowsView> rows, std::uint32_t live_workers);
  void ApplyHeldUpTo(Clock clock, std::uint32_t live_workers, MergeScratch& scratch);
  // The chain has another first.
  void SetEpoch(Epoch epoch) { epoch_ = epoch; }
  // It is the first of its chain now. Workers that take increments hold the shadow of the one
  // before it, which is not ours: they get snapshots until they have a newer version than this one.
  void Promote(Epoch epoch);

  // The last clock of the incarnation with a verdict.
  Clock Watermark(const Member& member) const;

  // The lowest watermark of the members that count; the highest possible clock if none does.
  Clock SlowestClock(std::span<const Member> members);
  // The members, or who of them counts, changed.
  void MembersChanged() { slowest_known_ = false; }

  struct PullQuery {
    std::uint64_t version = 0;  // what the puller has; 0: nothing
    std::uint32_t lineage = 0;
    bool fp32 = false;
    bool snapshot = false;
  };
  // Appends the answer to `out`: blocks, then the rows asked for. The shard must be ready. Values
  // of blocks with another rule than Sgd are always sent as fp32. What it returns is about the
  // blocks. Where pulls bring increments, `version` must be one that a pull without fp32 brought.
  wire::PullContent Pull(const PullQuery& query, PullScratch& scratch, ByteBuffer& out,
                         std::span<const codec::RowsView> rows = {});
  // The most bytes that Pull() can append.
  std::size_t MaxPullBytes(bool fp32, std::span<const codec::RowsView> rows = {}) const;

  // Everything, as of now. The shard must be ready.
  FrozenShard Freeze(JobId job, Round round) const;

 private:
  friend class ShardLoad;
  friend class PartialLoad;

  // What is known about the pushes of one incarnation.
  struct Stream {
    WorkerId worker;
    Incarnation incarnation;
    Clock first_clock;
    Clock watermark;
    std::uint32_t verdict_count = 0;                     // of the clocks up to the watermark
    std::array<std::uint8_t, kVerdictsKept> verdicts{};  // of clock c at c % kVerdictsKept
  };

  const Stream* FindStream(Incarnation incarnation) const;
  Stream& StreamOf(WorkerId worker, Incarnation incarnation, Clock first_clock);
  // The verdict is given: everything that follows from it.
  void Settle(Stream& stream, Clock clock, std::uint32_t samples, wire::Code verdict,
              std::span<const codec::BlockView> blocks, std::span<const codec::RowsView> rows,
              std::uint32_t live_workers);
  void Consume(Stream& stream, Clock clock, wire::Code verdict);
  Status CheckHeld(const checkpoint::ShardImage& image) const;
  void Apply(std::span<const codec::BlockView> blocks, std::span<const codec::RowsView> rows,
             std::uint32_t samples, std::uint32_t live_workers);
  wire::ValueCodec PullCodecOf(std::uint32_t block, bool fp32) const;
  bool FromShadow(std::uint32_t block, bool fp32) const {
    return shadow_.has_value() && !fp32 && shadow_->Has(block);
  }
  // The values of a block as a pull gets them, or those at some positions, which replace `values`.
  std::span<const float> PulledValues(std::uint32_t block, bool fp32,
                                      std::vector<float>& values) const;
  void PulledValuesAt(std::uint32_t block, bool fp32, std::span<const std::uint16_t> positions,
                      std::vector<float>& values) const;
  void WriteSnapshot(bool fp32, PullScratch& scratch, ByteBuffer& out) const;
  // False if the answer might not be smaller than `most` bytes; `out` is then as before.
  bool WriteChanges(std::uint64_t since, bool fp32, std::size_t most, PullScratch& scratch,
                    ByteBuffer& out) const;
  // The smaller one of increments and changed values; nothing if both might be larger than a
  // snapshot.
  std::optional<wire::PullContent> WriteIncrements(std::uint64_t since, PullScratch& scratch,
                                                   ByteBuffer& out) const;
  wire::PullContent PullBlocks(const PullQuery& query, PullScratch& scratch, ByteBuffer& out) const;
  std::size_t MaxBlockBytes(bool fp32) const;

  const LayoutView& layout_;
  const JobRules& rules_;
  const ShardId id_;
  const std::uint32_t lineage_;
  const std::uint32_t first_block_;
  const std::uint32_t last_block_;
  const std::shared_ptr<const void> identity_ = std::make_shared<char>();  // FrozenShard's

  Epoch epoch_;
  wire::Code state_;
  std::uint64_t version_ = 0;
  std::uint64_t changes_ = 0;
  std::uint64_t samples_trained_ = 0;
  ShardRows rows_;  // has the memory that the blocks lie in, too
  DenseStore store_;
  // Blank: what takes the place of initial values when these come, NaN where they stay; or empty.
  std::vector<float> loaded_;
  std::vector<Stream> streams_;  // by incarnation; never forgotten, an agent may bring a ring back
  HeldPushes held_;              // bulk-synchronous only
  ChangeLog log_;
  std::optional<Shadow> shadow_;  // if pulls bring increments
  Clock slowest_;
  bool slowest_known_ = false;
};

}  // namespace ps::server
