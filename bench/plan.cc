#include "bench/plan.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>

#include "common/codec/block_codec.h"
#include "common/codec/row_codec.h"
#include "common/messages/control.h"
#include "ps-worker/core/row_push.h"

namespace ps::bench {
namespace {

constexpr std::size_t kSparseVariants = 4;
constexpr std::uint64_t kSeed = 20;
// Messages of rows that are drawn before: at most so many, of so many bytes in all.
constexpr std::size_t kRowVariantsMax = 1024;
constexpr std::size_t kRowVariantsBytes = std::size_t{64} << 20;
constexpr std::size_t kFillBytes = std::size_t{1} << 20;  // of a push that fills the table

// Of values that are not of rows.
std::uint64_t BytesOf(wire::ValueCodec values) { return values == wire::ValueCodec::Fp32 ? 4 : 2; }

control::LayoutT MakeModel(std::uint64_t parameters, std::uint32_t row_width) {
  auto table = std::make_unique<control::TableInfoT>();
  table->name = "parameters";
  table->rule = TableRule::Sgd;
  table->elements = parameters;
  for (std::uint64_t left = parameters; left > 0;) {
    const auto elements = std::min<std::uint64_t>(left, wire::kBlockElements);
    table->block_elements.push_back(static_cast<std::uint32_t>(elements));
    left -= elements;
  }
  control::LayoutT layout;
  layout.blocks = static_cast<std::uint32_t>(table->block_elements.size());
  layout.parameters = parameters;
  layout.tables.push_back(std::move(table));
  layout.fingerprint = parameters * 4096 + row_width;  // no two that differ are the same
  if (row_width > 0) {
    auto rows = std::make_unique<control::RowTableInfoT>();
    rows->name = "rows";
    rows->width = row_width;
    layout.row_tables.push_back(std::move(rows));
  }
  return layout;
}

Result<LayoutView> ViewOf(const control::LayoutT& model, std::uint32_t asked_shards) {
  return LayoutView::Create(model, ChooseShardCount(model, asked_shards));
}

// `count` different positions, increasing.
std::vector<std::uint16_t> RandomPositions(std::uint32_t elements, std::uint32_t count,
                                           std::mt19937_64& random) {
  std::vector<std::uint16_t> positions;
  positions.reserve(count);
  for (std::uint32_t at = 0; at < elements && positions.size() < count; ++at) {
    // Each position is taken with the chance that makes every choice equally likely.
    const std::uint64_t wanted = count - positions.size();
    if (random() % (elements - at) < wanted) positions.push_back(static_cast<std::uint16_t>(at));
  }
  return positions;
}

EncodedPush Encode(const LayoutView& layout, std::uint64_t parameters, std::uint64_t entries,
                   wire::ValueCodec values, std::mt19937_64& random) {
  EncodedPush push;
  const bool dense = entries == parameters;
  std::uint64_t before = 0;  // parameters in the blocks before
  for (std::uint32_t number = 0; number < layout.shard_count(); ++number) {
    const ShardId shard(number);
    worker::RingPart part;
    part.shard = number;
    part.offset = static_cast<std::uint32_t>(push.payload.size());
    part.lineage = 1;
    for (std::uint32_t block = layout.shard_first_block(shard);
         block < layout.shard_last_block(shard); ++block) {
      const std::uint32_t elements = layout.block(block).elements;
      const auto share_up_to = [&](std::uint64_t end) {
        return static_cast<std::uint64_t>(
            static_cast<double>(entries) *
            (static_cast<double>(end) / static_cast<double>(parameters)));
      };
      const auto count =
          static_cast<std::uint32_t>(share_up_to(before + elements) - share_up_to(before));
      before += elements;
      if (count == 0) continue;
      std::vector<std::uint16_t> positions;
      if (!dense) positions = RandomPositions(elements, count, random);
      std::vector<float> block_values(dense ? elements : positions.size());
      for (float& value : block_values) {
        value = static_cast<float>(random() % 2048) / 1024 - 1;
      }
      const wire::IndexCodec codec =
          dense ? wire::IndexCodec::Dense : codec::ChooseIndexCodec(elements, count);
      const std::size_t at = push.payload.size();
      push.payload.resize(at + codec::MaxEncodedBytes(elements, count, codec, values));
      push.payload.resize(at + codec::EncodeBlock(block, elements, positions, block_values, codec,
                                                  values, push.payload.data() + at, {}));
    }
    part.bytes = static_cast<std::uint32_t>(push.payload.size()) - part.offset;
    if (part.bytes > 0) push.parts.push_back(part);
  }
  return push;
}

// Ids are numbers from 0, by falling frequency; their keys are spread over all 64 bits.
std::uint64_t KeyOf(std::uint64_t id) { return id * 0x9e3779b97f4a7c15u + 1; }

class Ids {
 public:
  explicit Ids(const RowOptions& rows) : keys_(rows.keys) {
    if (rows.distribution != Distribution::kZipf) return;
    double sum = 0;
    cumulative_.reserve(keys_);
    for (std::uint64_t id = 0; id < keys_; ++id) {
      sum += std::pow(static_cast<double>(id + 1), -rows.zipf_exponent);
      cumulative_.push_back(sum);
    }
  }

  std::uint64_t Draw(std::mt19937_64& random) const {
    if (cumulative_.empty()) return random() % keys_;
    const double at = std::uniform_real_distribution<double>(0, cumulative_.back())(random);
    const auto found = std::lower_bound(cumulative_.begin(), cumulative_.end() - 1, at);
    return static_cast<std::uint64_t>(found - cumulative_.begin());
  }

 private:
  const std::uint64_t keys_;
  std::vector<double> cumulative_;  // of Zipf: the sum of the frequencies up to each id
};

// Increasing, each once.
void SortKeys(std::vector<std::uint64_t>& keys) {
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
}

EncodedPush EncodeRowPush(const LayoutView& layout, wire::ValueCodec codec,
                          std::vector<std::uint64_t> keys, std::mt19937_64& random) {
  std::vector<worker::TableRows> gradients(1);
  gradients[0].values.resize(keys.size() * layout.row_width(0));
  gradients[0].keys = std::move(keys);
  for (float& value : gradients[0].values) {
    value = static_cast<float>(random() % 2048) / 1024 - 1;
  }
  worker::RowPush rows(layout, {codec});
  rows.Select(std::move(gradients));
  EncodedPush push;
  push.payload.resize(rows.MaxBytes());
  std::size_t used = 0;
  for (std::uint32_t shard = 0; shard < layout.shard_count(); ++shard) {
    worker::RingPart part;
    part.shard = shard;
    part.offset = static_cast<std::uint32_t>(used);
    part.bytes = static_cast<std::uint32_t>(
        rows.EncodeShard(ShardId(shard), std::span(push.payload).subspan(used)));
    part.lineage = 1;
    used += part.bytes;
    if (part.bytes > 0) push.parts.push_back(part);
  }
  push.payload.resize(used);
  return push;
}

Result<Plan> MakeRowPlan(const Options& options) {
  const RowOptions& rows = options.rows;
  const std::uint64_t value_bytes = codec::RowValueBytes(rows.width, options.values);
  const std::uint64_t row_bytes = value_bytes + sizeof(std::uint64_t);  // at most
  if (rows.ids * row_bytes > wire::kMaxPayloadBytes / 4) {
    return Error{ErrorCode::kUsage, "messages of " + std::to_string(rows.ids) + " rows of " +
                                        std::to_string(rows.width) + " floats are too large"};
  }
  Plan plan;
  plan.model = MakeModel(1, rows.width);
  plan.layout = PS_TRY(ViewOf(plan.model, options.shards));
  plan.parameters = 1;
  plan.dense = false;
  plan.values = options.values;
  plan.row_width = rows.width;
  plan.keys = rows.keys;
  plan.filled_at_once = std::clamp<std::uint64_t>(kFillBytes / row_bytes, 1, rows.keys);
  const std::size_t variants = std::clamp<std::size_t>(kRowVariantsBytes / (rows.ids * row_bytes),
                                                       kSparseVariants, kRowVariantsMax);
  const Ids ids(rows);
  std::mt19937_64 random(kSeed);
  std::uint64_t all = 0;
  for (std::size_t i = 0; i < variants; ++i) {
    std::vector<std::uint64_t> keys(rows.ids);
    for (std::uint64_t& key : keys) key = KeyOf(ids.Draw(random));
    SortKeys(keys);
    all += keys.size();
    plan.look_ups.push_back(std::make_shared<const worker::RowKeys>(worker::RowKeys{keys}));
    plan.pushes.push_back(EncodeRowPush(plan.layout, plan.values, std::move(keys), random));
  }
  plan.rows = static_cast<double>(all) / static_cast<double>(variants);
  plan.entries = static_cast<std::uint64_t>(std::llround(plan.rows * rows.width));
  plan.value_bytes =
      static_cast<std::uint64_t>(std::llround(plan.rows * static_cast<double>(value_bytes)));
  return plan;
}

std::string WordOf(wire::ValueCodec values) {
  if (values == wire::ValueCodec::Fp32) return "fp32";
  return values == wire::ValueCodec::Bf16 ? "bf16" : "int8";
}

}  // namespace

EncodedPush Plan::FillPush(std::uint64_t first) const {
  std::vector<std::uint64_t> all;
  for (std::uint64_t id = first; id < std::min(first + filled_at_once, keys); ++id) {
    all.push_back(KeyOf(id));
  }
  SortKeys(all);
  std::mt19937_64 random(first);
  return EncodeRowPush(layout, values, std::move(all), random);
}

std::size_t Plan::max_push_bytes() const {
  std::size_t bytes = 0;
  if (row_width > 0) {
    // A push that fills: a header, and a group of keys that is not whole, on every shard.
    bytes =
        codec::MaxRowBytes(filled_at_once, row_width, codec::RowContent::kKeysAndValues, values) +
        layout.shard_count() * (sizeof(wire::BlockHeader) + 1);
  }
  for (const EncodedPush& push : pushes) bytes = std::max(bytes, push.payload.size());
  return bytes;
}

JobSpec SpecOf(const Options& options, const Plan& plan, std::uint32_t workers) {
  JobSpec spec;
  spec.name = "ds-bench";
  spec.model.type = "ledger";
  spec.model.blocks = plan.layout.block_count();
  spec.data.train.format = "counter";
  spec.data.train.records = 1'000'000;
  spec.data.scale = 1;
  spec.training.workers = workers;
  spec.training.batch_size = 1;
  spec.training.loss = "none";
  spec.training.metric = "none";
  spec.training.staleness = -1;
  // What is measured is the work of a push: none is refused for its age.
  spec.training.max_version_gap = 1'000'000'000;
  spec.optimizer.type = "sgd";
  spec.optimizer.reference_batch = 1;
  spec.optimizer.learning_rate.base = 0.001;
  spec.sparsification.ratio =
      plan.dense || plan.row_width > 0
          ? 1
          : static_cast<double>(plan.entries) / static_cast<double>(plan.parameters);
  if (plan.row_width > 0) {
    EmbeddingTableSpec table;
    table.name = "rows";
    table.width = plan.row_width;
    table.optimizer.type = options.rows.optimizer;
    table.optimizer.learning_rate.base = 0.001;
    table.values = WordOf(plan.values);
    spec.embedding_tables.push_back(table);
  }
  spec.checkpoint.every_steps = 1'000'000'000;
  // Those that are asked for are of everything.
  spec.checkpoint.full_every = 1;
  spec.checkpoint.keep = 1;
  spec.resources.shards = plan.layout.shard_count();
  // Whoever measures is its only worker: once that has gone there is nothing to go on with.
  spec.resources.max_restarts = 0;
  return spec;
}

Result<Plan> Plan::Make(const Options& options, Operation operation, std::uint64_t size) {
  if (IsOfRows(operation)) return MakeRowPlan(options);
  if (options.values == wire::ValueCodec::Int8) {
    return Error{ErrorCode::kUsage, "values as int8 are measured of rows alone"};
  }
  std::uint64_t parameters = options.parameters;
  const std::uint64_t bytes_per_value = BytesOf(options.values);
  const bool sparse = options.entries > 0 || options.ratio > 0;
  if (sparse && parameters == 0) parameters = 25'000'000;
  if (!sparse && parameters == 0) parameters = size / bytes_per_value;
  if (parameters == 0 || parameters > wire::kMaxPayloadBytes / 4) {
    return Error{ErrorCode::kUsage, "a model of " + std::to_string(parameters) +
                                        " parameters: 1 to " +
                                        std::to_string(wire::kMaxPayloadBytes / 4) + " allowed"};
  }
  std::uint64_t entries = parameters;
  if (options.entries > 0) entries = options.entries;
  if (options.ratio > 0) {
    entries =
        static_cast<std::uint64_t>(std::llround(options.ratio * static_cast<double>(parameters)));
  }
  if (entries == 0 || entries > parameters) {
    return Error{ErrorCode::kUsage, "pushes of " + std::to_string(entries) + " of " +
                                        std::to_string(parameters) + " parameters"};
  }
  Plan plan;
  plan.model = MakeModel(parameters, 0);
  plan.layout = PS_TRY(ViewOf(plan.model, options.shards));
  plan.parameters = parameters;
  plan.entries = entries;
  plan.value_bytes = entries * bytes_per_value;
  plan.dense = entries == parameters;
  plan.values = options.values;
  std::mt19937_64 random(kSeed);
  for (std::size_t i = 0; i < (plan.dense ? 1 : kSparseVariants); ++i) {
    plan.pushes.push_back(Encode(plan.layout, parameters, entries, options.values, random));
  }
  return plan;
}

}  // namespace ps::bench
