// A model that counts pushes, to test a cluster: no loss, no gradient, no torch.
//
// One table of `blocks` blocks. Each step pushes -1 at the element `worker` of
// every block; with learning rate 1 and batches of `reference_batch` records the
// servers add 1 for each push applied. So after a job every block holds how many
// steps each worker slot made, whatever died meanwhile: a lost push is missing,
// a doubled one is too much. In tables of rows the step's record r adds 1 to each
// float of the row with the key r % `rows` of every table. The metric is the sum
// of all elements and rows.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/codec/block_writer.h"
#include "common/job/job_spec.h"
#include "ps-worker/engine/workload.h"

namespace ps::worker {

class Ledger final : public Workload {
 public:
  explicit Ledger(const ModelSpec& spec, std::vector<EmbeddingTableSpec> row_tables = {});

  const control::LayoutT& layout() const override { return layout_; }
  // Of this model they stay, and show what pulls brought.
  std::span<float> table(std::uint32_t index) override;
  Status Prepare(const LayoutView& layout, WorkerId worker) override;
  Status Apply(const Block& block, const codec::BlockView& view, bool increments) override;
  Status Read(const Block& block, std::span<float> values) const override;
  void AdoptBuffers() override {}
  void FindRows(const Batch& batch, BatchRows& rows) const override;
  Result<ComputeResult> Compute(const Batch& batch, double epoch) override;
  Status SelectAll() override;
  void SelectBuffers() override {}
  std::size_t max_push_bytes() const override;
  std::uint64_t selected_entries() const override;
  std::size_t WriteShard(ShardId shard, std::span<std::byte> out) override;
  Status TakeBack(std::span<const std::byte> payload, float weight) override;
  Status ScaleResidual(float factor) override;
  Result<double> ResidualNorm() const override;
  Result<EvaluationSums> Evaluate(const Dataset* data, const PullRows& pull) override;

 private:
  std::uint64_t SelectedBlocks() const;

  const std::vector<EmbeddingTableSpec> tables_;  // of rows
  const std::uint64_t keys_;                      // of each of them
  control::LayoutT layout_;
  std::optional<LayoutView> view_;
  std::unique_ptr<RowPush> rows_;
  std::uint16_t element_ = 0;  // of each block: the worker's slot
  std::vector<float> values_;
  codec::BlockWriter writer_;
  std::vector<float> owed_;      // per block: steps that came back and were not pushed again
  std::vector<float> selected_;  // per block: steps of the push being written
};

}  // namespace ps::worker
