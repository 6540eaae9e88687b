// The tables of rows of one shard: pushes to them, pulls from them, their part of an image.
//
// Each table has its own optimizer and learning rate, and a RowTable that says
// what comes and goes. Tables begin empty: rows need no initial values. Parts
// handed in have passed ParsePush or ParsePull of segment_content.h, and those of
// a push are finite. One thread; no clock, no I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/image.h"
#include "checkpoint/record.h"
#include "common/codec/row_codec.h"
#include "common/ids.h"
#include "common/job/job_spec.h"
#include "common/job/learning_rate.h"
#include "common/layout/layout.h"
#include "common/result.h"
#include "ps-server/core/byte_buffer.h"
#include "ps-server/core/optimizer.h"
#include "ps-server/core/rows/row_table.h"

namespace ps::server {

// Samples trained that are one tick of a table's clock.
inline constexpr std::uint64_t kSamplesPerTick = 1024;

// What a job's specification says about one table of rows.
struct RowRules {
  std::string name;
  std::uint32_t table = 0;  // number in the job
  std::uint32_t width = 0;
  RowInitializer initializer;
  Optimizer optimizer;
  LearningRate learning_rate;
  std::uint32_t sightings = 1;
  std::uint64_t sketch_bytes = 0;  // of all shards
  std::uint32_t unused_max = 0;    // ticks; 0: rows stay
  std::uint64_t max_bytes = 0;     // of all shards, optimizer's slots included; 0: no bound
  RowsFull when_full = RowsFull::kLru;
  wire::ValueCodec values = wire::ValueCodec::Bf16;  // of rows in answers, unless Fp32 is asked for

  // Of spec.embedding_tables[table]; `records` of one epoch.
  static RowRules Of(const JobSpec& spec, std::uint32_t table, std::uint64_t records);

  // Those of one of `shards` shards: an equal part of what is said of all.
  RowTableRules OnShard(std::uint32_t shards) const;
};

// True if the rules are of the tables that the layout has.
bool RowRulesFit(const LayoutView& layout, std::span<const RowRules> rules);

// Where a shard lives.
struct ShardMemory {
  // Of the index of rows: best not known to who chooses keys; it changes no result.
  std::uint64_t hash_seed = 0;
  // As CowPages asks; frozen shards keep it as well.
  std::shared_ptr<std::pmr::memory_resource> memory{std::pmr::new_delete_resource(),
                                                    [](std::pmr::memory_resource*) {}};
};

// One table on a shard, on a lane, or of a whole job on a server.
struct RowTableStatus {
  std::uint64_t rows = 0;  // now
  std::uint64_t bytes = 0;
  std::uint64_t pushed = 0;  // rows in applied pushes, as the next three
  std::uint64_t created = 0;
  std::uint64_t rejected = 0;  // not seen often enough
  std::uint64_t refused = 0;   // there was no room
  std::uint64_t expired = 0;
  std::uint64_t evicted = 0;
  std::uint64_t pulled = 0;  // rows in answers

  RowTableStatus& operator+=(const RowTableStatus& other);
};

// Memory that pulls share, so that none of them allocates.
struct RowScratch {
  std::vector<std::uint64_t> keys;
  std::vector<float> row;
};

// The rows of a shard as of an instant; may be read and ended on any one thread, and outlive the
// shard.
class FrozenShardRows {
 public:
  std::uint64_t content_bytes() const;
  // Appends all tables without their rows to image.rows.
  void SaveHeads(checkpoint::ShardImage& image) const;
  // Adds copies of all rows to image.rows, in no particular order (checkpoint::SortRows).
  void Save(checkpoint::ShardImage& image) const;
  const FrozenRowTable& table(std::size_t number) const { return tables_[number].rows; }

 private:
  friend class ShardRows;

  struct Table {
    std::uint8_t optimizer;
    FrozenRowTable rows;
  };
  std::shared_ptr<std::pmr::memory_resource> memory_;  // before the tables, which lie in it
  std::vector<Table> tables_;
};

class ShardRows {
 public:
  // `rules` fit `layout`; both outlive this.
  ShardRows(const LayoutView& layout, std::span<const RowRules> rules, ShardMemory memory);

  std::pmr::memory_resource* memory() const { return memory_.get(); }

  std::size_t tables() const { return tables_.size(); }
  const RowTable& table(std::size_t number) const { return *tables_[number].rows; }
  RowTableStatus status(std::size_t number) const;
  // What writes to frozen rows have copied so far.
  std::uint64_t bytes_copied() const;

  // One update of each row: `weight` is the samples of the push / reference batch.
  void Push(std::span<const codec::RowsView> parts, std::uint64_t samples_trained, double weight);

  // What Pull() appends, exactly.
  std::size_t PullBytes(std::span<const codec::RowsView> asked, bool fp32) const;
  // Appends a part for each one asked for. Rows that are not there are answered from the
  // initialiser.
  void Pull(std::span<const codec::RowsView> asked, bool fp32, RowScratch& scratch,
            ByteBuffer& out);

  // All rows, as of now.
  FrozenShardRows Freeze() const;
  // Takes the rows of a checkpoint into tables without rows, in order and as they come
  // (checkpoint::ContentCheck). kInvalid unless they are those of this shard and job, of the same
  // optimizers, and finite. With `values_only` slots and ticks start afresh, whatever the
  // optimizers were. With `expect` room is made for as many rows as the meta says.
  Status BeginLoad(const checkpoint::ShardMeta& meta, ShardId shard, bool values_only, bool expect);
  Status LoadRows(std::uint32_t table, std::span<const std::byte> records);
  void LoadSketch(std::uint32_t table, std::span<const std::uint8_t> counters);
  // After all of it.
  void EndLoad();
  // Adds rows that other jobs' checkpoints have of a table, with fresh slots and ticks: values of
  // `keys`, one after the other, each of `width` floats, at most those of a row, whose others are
  // as the initialiser says. Each key once.
  void AddLoaded(std::uint32_t table, std::span<const std::uint64_t> keys,
                 std::span<const float> values, std::uint32_t width);
  // Without rows again.
  void Clear();

 private:
  struct Table {
    const RowRules* rules = nullptr;
    std::unique_ptr<RowTable> rows;
    std::uint64_t pushed = 0;
    std::uint64_t pulled = 0;
  };

  wire::ValueCodec CodecOf(const Table& table, bool fp32) const;
  void LoadFresh(Table& table, std::size_t record_bytes, std::span<const std::byte> records);

  const std::uint32_t shards_;
  const std::uint64_t hash_seed_;
  const std::shared_ptr<std::pmr::memory_resource> memory_;  // before the tables, which lie in it
  std::vector<Table> tables_;
  std::vector<std::uint64_t> keys_;  // of the push under way
  std::vector<float> gradient_;
  // A load under way: what the checkpoint has of each table, its sketch as far as it has come.
  struct Load {
    ShardId shard;
    bool values_only = false;
    std::vector<checkpoint::RowTableImage> heads;
  };
  Load load_;
};

}  // namespace ps::server
