#include "ps-worker/engine/ledger.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "common/codec/block_codec.h"
#include "ps-worker/engine/table_builder.h"

namespace ps::worker {
namespace {

constexpr auto kIndexCodec = wire::IndexCodec::Raw16;
constexpr auto kValueCodec = wire::ValueCodec::Fp32;

std::size_t BlockBytes() {
  return codec::MaxEncodedBytes(wire::kBlockElements, 1, kIndexCodec, kValueCodec);
}

}  // namespace

Ledger::Ledger(const ModelSpec& spec) {
  std::vector<control::TableInfoT> tables;
  tables.push_back(BuildPlainTable("parameters", control::TableRule::Sgd,
                                   {{"ledger", {spec.blocks, wire::kBlockElements}}}));
  layout_ = BuildLayout(std::move(tables), /*salt=*/0);
  values_.assign(static_cast<std::size_t>(layout_.parameters), 0.0f);
}

void Ledger::Prepare(const LayoutView& layout, WorkerId worker, Incarnation) {
  view_ = layout;
  element_ = static_cast<std::uint16_t>(worker.value() % wire::kBlockElements);
  owed_.assign(view_->block_count(), 0.0f);
  selected_.assign(view_->block_count(), 0.0f);
}

std::span<float> Ledger::table(std::uint32_t index) {
  return index == 0 ? std::span<float>(values_) : std::span<float>();
}

Result<ComputeResult> Ledger::Compute(const Batch&, double) {
  SelectAll();
  for (auto& steps : selected_) steps += 1.0f;
  return ComputeResult();
}

void Ledger::SelectAll() {
  selected_ = owed_;
  std::fill(owed_.begin(), owed_.end(), 0.0f);
}

std::size_t Ledger::max_push_bytes() const { return selected_entries() * BlockBytes(); }

std::uint64_t Ledger::selected_entries() const {
  return static_cast<std::uint64_t>(
      std::count_if(selected_.begin(), selected_.end(), [](float steps) { return steps != 0.0f; }));
}

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
  return used;
}

Status Ledger::TakeBack(std::span<const std::byte> payload) {
  std::vector<codec::BlockView> blocks;
  PS_TRY(codec::ParseSegment(
      payload,
      [this](std::uint32_t block) {
        return block < view_->block_count() ? view_->block(block).elements : 0u;
      },
      blocks));
  std::vector<float> values;
  for (const auto& block : blocks) {
    codec::DecodeValues(block, values);
    owed_[block.header.block()] -= std::accumulate(values.begin(), values.end(), 0.0f);
  }
  return Ok();
}

double Ledger::ResidualNorm() const {
  return std::sqrt(std::inner_product(owed_.begin(), owed_.end(), owed_.begin(), 0.0));
}

Result<EvaluationSums> Ledger::Evaluate(const Dataset*) {
  EvaluationSums sums;
  sums.records = 1;  // so that the mean is the sum
  sums.metric = std::accumulate(values_.begin(), values_.end(), 0.0);
  return sums;
}

}  // namespace ps::worker
