#include "ps-server/core/shard_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "common/check.h"
#include "common/codec/block_codec.h"
#include "ps-server/core/kernels/denormals.h"

namespace ps::server {
namespace {

// A sketch smaller than this forgets more than it knows.
constexpr std::uint64_t kSketchBytesMin = 4096;

RowInitializer InitializerOf(const RowInitializerSpec& spec, std::uint64_t seed,
                             std::uint32_t table) {
  using Kind = RowInitializer::Kind;
  const auto make = [&](Kind kind, double first, double second) {
    return RowInitializer(kind, static_cast<float>(first), static_cast<float>(second), seed, table);
  };
  if (spec.type == "constant") return make(Kind::kConstant, spec.value, 0);
  if (spec.type == "normal") return make(Kind::kNormal, spec.mean, spec.standard_deviation);
  if (spec.type == "truncated_normal") {
    return make(Kind::kTruncatedNormal, spec.mean, spec.standard_deviation);
  }
  return make(Kind::kUniform, spec.low, spec.high);
}

std::uint32_t TickOf(std::uint64_t samples_trained) {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(
      samples_trained / kSamplesPerTick, std::numeric_limits<std::uint32_t>::max()));
}

// 0 only for 0 epochs.
std::uint32_t TicksOf(double epochs, std::uint64_t records) {
  if (epochs <= 0) return 0;
  const double ticks = epochs * static_cast<double>(records) / kSamplesPerTick;
  constexpr double kMost = std::numeric_limits<std::uint32_t>::max();
  return static_cast<std::uint32_t>(std::clamp(ticks, 1.0, kMost));
}

}  // namespace

RowRules RowRules::Of(const JobSpec& spec, std::uint32_t table, std::uint64_t records) {
  const EmbeddingTableSpec& from = spec.embedding_tables[table];
  RowRules rules;
  rules.name = from.name;
  rules.table = table;
  rules.width = static_cast<std::uint32_t>(from.width);
  rules.initializer =
      InitializerOf(from.initializer, static_cast<std::uint64_t>(spec.training.seed), table);
  rules.optimizer = Optimizer(OptimizerRulesOf(from.optimizer));
  rules.learning_rate = LearningRate(from.optimizer.learning_rate, spec.training.epochs, records);
  rules.sightings =
      static_cast<std::uint32_t>(std::clamp<std::int64_t>(from.sightings, 1, kSightingsMax + 1));
  rules.sketch_bytes = static_cast<std::uint64_t>(std::max<std::int64_t>(0, from.sketch_mebibytes))
                       << 20;
  rules.unused_max = TicksOf(from.unused_epochs, records);
  rules.max_bytes = static_cast<std::uint64_t>(std::max<std::int64_t>(0, from.max_mebibytes)) << 20;
  rules.when_full = from.when_full == "refuse" ? RowsFull::kRefuse
                    : from.when_full == "lfu"  ? RowsFull::kLfu
                                               : RowsFull::kLru;
  rules.values = codec::RowCodecNamed(from.values);
  return rules;
}

RowTableRules RowRules::OnShard(std::uint32_t shards) const {
  RowTableRules rules;
  rules.table = table;
  rules.width = width;
  rules.initializer = initializer;
  // Where they depend on the values they are set again when a row is made.
  rules.initial_slots.resize(optimizer.RowSlots(width));
  const std::vector<float> zeros(width);
  optimizer.InitRowSlots(zeros.data(), rules.initial_slots.data(), width);
  rules.sightings = sightings;
  rules.sketch_bytes = static_cast<std::size_t>(std::max(kSketchBytesMin, sketch_bytes / shards));
  rules.unused_max = unused_max;
  if (max_bytes > 0) {
    const std::uint64_t row_bytes =
        kRowOverheadBytes + sizeof(float) * (width + rules.initial_slots.size());
    rules.rows_max = std::max<std::uint64_t>(1, max_bytes / shards / row_bytes);
  }
  rules.when_full = when_full;
  return rules;
}

bool RowRulesFit(const LayoutView& layout, std::span<const RowRules> rules) {
  if (rules.size() != layout.row_table_count()) return false;
  for (std::uint32_t table = 0; table < rules.size(); ++table) {
    if (rules[table].table != table || rules[table].width != layout.row_width(table)) return false;
  }
  return true;
}

RowTableStatus& RowTableStatus::operator+=(const RowTableStatus& other) {
  rows += other.rows;
  bytes += other.bytes;
  pushed += other.pushed;
  created += other.created;
  rejected += other.rejected;
  refused += other.refused;
  expired += other.expired;
  evicted += other.evicted;
  pulled += other.pulled;
  return *this;
}

ShardRows::ShardRows(const LayoutView& layout, std::span<const RowRules> rules, ShardMemory memory)
    : shards_(layout.shard_count()),
      hash_seed_(memory.hash_seed),
      memory_(std::move(memory.memory)) {
  PS_CHECK(RowRulesFit(layout, rules), rules.size(), layout.row_table_count());
  for (const RowRules& one : rules) {
    Table table;
    table.rules = &one;
    table.rows = std::make_unique<RowTable>(one.OnShard(shards_), hash_seed_, memory_.get());
    tables_.push_back(std::move(table));
  }
}

std::uint64_t ShardRows::bytes_copied() const {
  std::uint64_t bytes = 0;
  for (const Table& table : tables_) bytes += table.rows->bytes_copied();
  return bytes;
}

RowTableStatus ShardRows::status(std::size_t number) const {
  const Table& table = tables_[number];
  const RowCounters& counters = table.rows->counters();
  RowTableStatus status;
  status.rows = table.rows->rows();
  status.bytes = table.rows->bytes();
  status.pushed = table.pushed;
  status.created = counters.created;
  status.rejected = counters.rejected;
  status.refused = counters.refused;
  status.expired = counters.expired;
  status.evicted = counters.evicted;
  status.pulled = table.pulled;
  return status;
}

void ShardRows::Push(std::span<const codec::RowsView> parts, std::uint64_t samples_trained,
                     double weight) {
  const std::uint32_t tick = TickOf(samples_trained);
  for (const codec::RowsView& part : parts) {
    Table& table = tables_[part.table];
    const RowRules& rules = *table.rules;
    const kernels::Step step =
        rules.optimizer.StepOf(rules.learning_rate.At(samples_trained), weight);
    codec::DecodeKeys(part, keys_);
    gradient_.resize(rules.width);
    table.pushed += part.count;
    table.rows->Push(
        keys_, tick, [&](std::size_t at, std::uint32_t updates, float* values, float* slots) {
          if (updates == 1) rules.optimizer.InitRowSlots(values, slots, rules.width);
          codec::DecodeRow(part, at, gradient_);
          rules.optimizer.ApplyRow(step, updates, values, slots, gradient_.data(), rules.width);
        });
  }
}

wire::ValueCodec ShardRows::CodecOf(const Table& table, bool fp32) const {
  return fp32 ? wire::ValueCodec::Fp32 : table.rules->values;
}

std::size_t ShardRows::PullBytes(std::span<const codec::RowsView> asked, bool fp32) const {
  std::size_t bytes = 0;
  for (const codec::RowsView& part : asked) {
    const Table& table = tables_[part.table];
    bytes += codec::MaxRowBytes(part.count, table.rules->width, codec::RowContent::kValues,
                                CodecOf(table, fp32));
  }
  return bytes;
}

void ShardRows::Pull(std::span<const codec::RowsView> asked, bool fp32, RowScratch& scratch,
                     ByteBuffer& out) {
  if (asked.empty()) return;
  // The same values as a push finds, to the last bit.
  const kernels::DenormalsAreZero denormals_are_zero;
  std::size_t at = out.size();
  out.resize(at + PullBytes(asked, fp32));
  for (const codec::RowsView& part : asked) {
    Table& table = tables_[part.table];
    const RowRules& rules = *table.rules;
    const wire::ValueCodec codec = CodecOf(table, fp32);
    codec::WriteRowsHeader(part.table, part.count,
                           part.count * codec::RowValueBytes(rules.width, codec),
                           codec::RowContent::kValues, codec, out.data() + at);
    at += sizeof(wire::BlockHeader);
    codec::DecodeKeys(part, scratch.keys);
    scratch.row.resize(rules.width);
    table.pulled += part.count;
    table.rows->Read(scratch.keys, [&](std::size_t row, const float* values) {
      if (values == nullptr) {
        rules.initializer.Fill(scratch.keys[row], scratch.row);
        values = scratch.row.data();
      }
      at += codec::EncodeRow({values, rules.width}, codec, out.data() + at);
    });
  }
}

FrozenShardRows ShardRows::Freeze() const {
  FrozenShardRows frozen;
  frozen.memory_ = memory_;
  for (const Table& table : tables_) {
    frozen.tables_.push_back(
        {static_cast<std::uint8_t>(table.rules->optimizer.type()), table.rows->Freeze()});
  }
  return frozen;
}

std::uint64_t FrozenShardRows::content_bytes() const {
  std::uint64_t bytes = 0;
  for (const Table& table : tables_) bytes += table.rows.content_bytes();
  return bytes;
}

void FrozenShardRows::SaveHeads(checkpoint::ShardImage& image) const {
  for (const Table& table : tables_) {
    image.rows.push_back(table.rows.head());
    image.rows.back().optimizer = table.optimizer;
  }
}

void FrozenShardRows::Save(checkpoint::ShardImage& image) const {
  for (std::size_t number = 0; number < tables_.size(); ++number) {
    image.rows[number].records = tables_[number].rows.ToImage().records;
  }
}

Status ShardRows::BeginLoad(const checkpoint::ShardMeta& meta, ShardId shard, bool values_only,
                            bool expect) {
  if (meta.image.rows.size() != tables_.size()) {
    return Error{ErrorCode::kInvalid, "the image has " + std::to_string(meta.image.rows.size()) +
                                          " tables of rows, the job has " +
                                          std::to_string(tables_.size())};
  }
  for (std::size_t number = 0; number < tables_.size(); ++number) {
    const checkpoint::RowTableImage& head = meta.image.rows[number];
    const RowRules& rules = *tables_[number].rules;
    const auto bad = [&](const std::string& what) {
      return Error{ErrorCode::kInvalid, "table of rows `" + rules.name + "`: " + what};
    };
    if (head.table != rules.table || head.width != rules.width) {
      return bad("the image has table " + std::to_string(head.table) + " with rows of " +
                 std::to_string(head.width) + " values in its place");
    }
    if (!values_only && (head.optimizer != static_cast<std::uint8_t>(rules.optimizer.type()) ||
                         head.slots != rules.optimizer.RowSlots(rules.width))) {
      return bad("the image has the state of another optimizer");
    }
    checkpoint::RowTableImage own = head;
    if (values_only) {
      own.slots = static_cast<std::uint32_t>(rules.optimizer.RowSlots(rules.width));
      own.tick = 0;
    }
    PS_TRY(tables_[number].rows->BeginRestore(own, expect ? meta.rows[number].rows : 0));
  }
  load_ = {shard, values_only, meta.image.rows};
  return Ok();
}

Status ShardRows::LoadRows(std::uint32_t number, std::span<const std::byte> records) {
  Table& table = tables_[number];
  const std::size_t bytes = load_.heads[number].record_bytes();
  for (std::size_t at = 0; at < records.size(); at += bytes) {
    std::uint64_t key = 0;
    std::memcpy(&key, records.data() + at, sizeof(key));
    const auto bad = [&](const std::string& what) {
      return Error{ErrorCode::kInvalid, "table of rows `" + table.rules->name + "`: row " +
                                            std::to_string(key) + " " + what};
    };
    if (codec::ShardOfRow(key, shards_) != load_.shard) return bad("belongs on another shard");
    const auto values =
        records.subspan(at + checkpoint::kRowHeaderBytes, table.rules->width * sizeof(float));
    if (!codec::ValuesFinite(wire::ValueCodec::Fp32, values)) {
      return bad("has a value that is no number");
    }
  }
  if (load_.values_only) {
    LoadFresh(table, bytes, records);
  } else {
    table.rows->RestoreRows(records);
  }
  return Ok();
}

void ShardRows::LoadFresh(Table& table, std::size_t record_bytes,
                          std::span<const std::byte> records) {
  const RowRules& rules = *table.rules;
  const std::size_t floats = rules.width + rules.optimizer.RowSlots(rules.width);
  std::vector<std::byte> fresh;
  std::vector<float> row(floats);
  for (std::size_t at = 0; at < records.size(); at += record_bytes) {
    RowRecord header;
    std::memcpy(&header, records.data() + at, sizeof(header));
    header.updates = 1;
    header.last_used = 0;
    std::memcpy(row.data(), records.data() + at + sizeof(header), rules.width * sizeof(float));
    rules.optimizer.InitRowSlots(row.data(), row.data() + rules.width, rules.width);
    const auto head = std::as_bytes(std::span(&header, 1));
    const auto rest = std::as_bytes(std::span(row));
    fresh.insert(fresh.end(), head.begin(), head.end());
    fresh.insert(fresh.end(), rest.begin(), rest.end());
  }
  table.rows->RestoreRows(fresh);
}

void ShardRows::AddLoaded(std::uint32_t number, std::span<const std::uint64_t> keys,
                          std::span<const float> values, std::uint32_t width) {
  Table& table = tables_[number];
  const RowRules& rules = *table.rules;
  PS_CHECK(width <= rules.width && values.size() == keys.size() * width, width, values.size());
  std::vector<float> row(rules.width + rules.optimizer.RowSlots(rules.width));
  std::vector<std::byte> fresh;
  fresh.reserve(keys.size() * (sizeof(RowRecord) + row.size() * sizeof(float)));
  for (std::size_t i = 0; i < keys.size(); ++i) {
    RowRecord header;
    header.set_key(keys[i]);
    header.updates = 1;
    header.last_used = 0;
    if (width < rules.width) rules.initializer.Fill(keys[i], std::span(row).first(rules.width));
    std::copy_n(values.data() + i * width, width, row.data());
    rules.optimizer.InitRowSlots(row.data(), row.data() + rules.width, rules.width);
    const auto head = std::as_bytes(std::span(&header, 1));
    const auto rest = std::as_bytes(std::span(row));
    fresh.insert(fresh.end(), head.begin(), head.end());
    fresh.insert(fresh.end(), rest.begin(), rest.end());
  }
  table.rows->RestoreRows(fresh);
}

void ShardRows::LoadSketch(std::uint32_t table, std::span<const std::uint8_t> counters) {
  std::vector<std::uint8_t>& sketch = load_.heads[table].sketch;
  sketch.insert(sketch.end(), counters.begin(), counters.end());
}

void ShardRows::EndLoad() {
  for (std::size_t number = 0; number < tables_.size() && !load_.values_only; ++number) {
    const checkpoint::RowTableImage& head = load_.heads[number];
    tables_[number].rows->RestoreSketch(head.sketch, head.sightings);
  }
  load_ = {};
}

void ShardRows::Clear() {
  for (Table& table : tables_) {
    table.rows =
        std::make_unique<RowTable>(table.rules->OnShard(shards_), hash_seed_, memory_.get());
  }
  load_ = {};
}

}  // namespace ps::server
