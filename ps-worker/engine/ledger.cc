#include "ps-worker/engine/ledger.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <utility>

#include "common/codec/block_codec.h"
#include "common/codec/row_codec.h"
#include "ps-worker/engine/table_builder.h"

namespace ps::worker {
namespace {

constexpr auto kIndexCodec = wire::IndexCodec::Raw16;
constexpr auto kValueCodec = wire::ValueCodec::Fp32;
constexpr std::uint64_t kPulledRows = 10'000;  // of each table at once, to evaluate

std::size_t BlockBytes() {
  return codec::MaxEncodedBytes(wire::kBlockElements, 1, kIndexCodec, kValueCodec);
}

}  // namespace

Ledger::Ledger(const ModelSpec& spec, std::vector<EmbeddingTableSpec> row_tables)
    : tables_(std::move(row_tables)), keys_(static_cast<std::uint64_t>(spec.rows)) {
  std::vector<control::TableInfoT> tables;
  tables.push_back(BuildPlainTable("parameters", control::TableRule::Sgd,
                                   {{"ledger", {spec.blocks, wire::kBlockElements}}}));
  layout_ = BuildLayout(std::move(tables), /*salt=*/0);
  AddRowTables(tables_, layout_);
  values_.assign(static_cast<std::size_t>(layout_.parameters), 0.0f);
}

Status Ledger::Prepare(const LayoutView& layout, WorkerId worker) {
  view_ = layout;
  rows_ = std::make_unique<RowPush>(*view_, RowCodecs(tables_));
  element_ = static_cast<std::uint16_t>(worker.value() % wire::kBlockElements);
  owed_.assign(view_->block_count(), 0.0f);
  selected_.assign(view_->block_count(), 0.0f);
  return Ok();
}

std::span<float> Ledger::table(std::uint32_t index) {
  return index == 0 ? std::span<float>(values_) : std::span<float>();
}

Status Ledger::Apply(const Block& block, const codec::BlockView& view, bool increments) {
  writer_.Write(view, increments, std::span(values_).subspan(block.table_offset, block.elements));
  return Ok();
}

Status Ledger::Read(const Block& block, std::span<float> values) const {
  std::copy_n(values_.data() + block.table_offset, block.elements, values.data());
  return Ok();
}

void Ledger::FindRows(const Batch& batch, BatchRows& rows) const {
  std::vector<std::uint64_t> keys;
  for (const std::uint64_t record : batch.ids) keys.push_back(record % keys_);
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  rows.tables.assign(tables_.size(), TableRows{keys, {}});
}

Result<ComputeResult> Ledger::Compute(const Batch& batch, double) {
  selected_ = owed_;
  std::fill(owed_.begin(), owed_.end(), 0.0f);
  std::vector<TableRows> gradients;
  if (batch.rows != nullptr) {
    std::map<std::uint64_t, float> records;  // by key
    for (const std::uint64_t record : batch.ids) records[record % keys_] += 1.0f;
    gradients.resize(tables_.size());
    for (std::size_t i = 0; i < tables_.size(); ++i) {
      for (const auto& [key, count] : records) {
        gradients[i].keys.push_back(key);
        gradients[i].values.insert(gradients[i].values.end(),
                                   static_cast<std::size_t>(tables_[i].width), -count);
      }
    }
  }
  rows_->Select(std::move(gradients));
  for (auto& steps : selected_) steps += 1.0f;
  return ComputeResult();
}

Status Ledger::SelectAll() {
  selected_ = owed_;
  std::fill(owed_.begin(), owed_.end(), 0.0f);
  rows_->Select({});
  return Ok();
}

std::uint64_t Ledger::SelectedBlocks() const {
  return static_cast<std::uint64_t>(
      std::count_if(selected_.begin(), selected_.end(), [](float steps) { return steps != 0.0f; }));
}

std::size_t Ledger::max_push_bytes() const {
  return SelectedBlocks() * BlockBytes() + rows_->MaxBytes();
}

std::uint64_t Ledger::selected_entries() const { return SelectedBlocks() + rows_->entries(); }

std::size_t Ledger::WriteShard(ShardId shard, std::span<std::byte> out) {
  std::size_t used = 0;
  for (auto block = view_->shard_first_block(shard); block < view_->shard_last_block(shard);
       ++block) {
    if (selected_[block] == 0.0f) continue;
    PS_CHECK(out.size() - used >= BlockBytes());
    const float value = -selected_[block];
    used += codec::EncodeBlock(block, view_->block(block).elements, {&element_, 1}, {&value, 1},
                               kIndexCodec, kValueCodec, out.data() + used, {});
    selected_[block] = 0.0f;
  }
  return used + rows_->EncodeShard(shard, out.subspan(used));
}

Status Ledger::TakeBack(std::span<const std::byte> payload, float weight) {
  const auto parts = PS_TRY(codec::SplitSegment(payload));
  std::vector<codec::BlockView> blocks;
  PS_TRY(codec::ParseSegment(
      parts.blocks,
      [this](std::uint32_t block) {
        return block < view_->block_count() ? view_->block(block).elements : 0u;
      },
      blocks));
  PS_TRY(rows_->TakeBack(parts.rows, weight));
  std::vector<float> values;
  for (const auto& block : blocks) {
    codec::DecodeValues(block, values);
    owed_[block.header.block()] -= weight * std::accumulate(values.begin(), values.end(), 0.0f);
  }
  return Ok();
}

Status Ledger::ScaleResidual(float factor) {
  for (float& steps : owed_) steps *= factor;
  rows_->ScaleResidual(factor);
  return Ok();
}

Result<double> Ledger::ResidualNorm() const {
  return std::sqrt(
      std::inner_product(owed_.begin(), owed_.end(), owed_.begin(), rows_->ResidualSumOfSquares()));
}

Result<EvaluationSums> Ledger::Evaluate(const Dataset*, const PullRows& pull) {
  EvaluationSums sums;
  sums.records = 1;  // so that the mean is the sum
  if (!tables_.empty()) {
    BatchRows rows;
    for (std::uint64_t begin = 0; begin < keys_; begin += kPulledRows) {
      std::vector<std::uint64_t> keys(
          static_cast<std::size_t>(std::min(kPulledRows, keys_ - begin)));
      std::iota(keys.begin(), keys.end(), begin);
      rows.tables.assign(tables_.size(), TableRows{keys, {}});
      PS_TRY(pull(rows));
      for (const TableRows& table : rows.tables) {
        sums.metric = std::accumulate(table.values.begin(), table.values.end(), sums.metric);
      }
    }
  }
  // After the pulls, which may bring newer values.
  sums.metric = std::accumulate(values_.begin(), values_.end(), sums.metric);
  return sums;
}

}  // namespace ps::worker
