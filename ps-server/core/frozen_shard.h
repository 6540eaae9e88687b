// A shard as of an instant, from which its image is made while the shard goes on.
//
// Taking it costs little: memory is shared with the shard until that writes on it
// (cow_pages.h). It knows which blocks, and which slabs of rows, have changed since
// earlier ones of the same shard. May be read and ended on any one thread, and
// outlive the shard.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/image.h"
#include "checkpoint/source.h"
#include "ps-server/core/dense_store.h"
#include "ps-server/core/shard_rows.h"

namespace ps::server {

class FrozenShard : public checkpoint::ShardSource {
 public:
  // `head`: the image but for what the others have. `identity` is of the shard object, and of no
  // other one as long as anybody holds it.
  FrozenShard(checkpoint::ShardImage head, std::shared_ptr<const void> identity,
              FrozenDenseStore blocks, FrozenShardRows rows)
      : head_(std::move(head)),
        identity_(std::move(identity)),
        rows_(std::move(rows)),
        blocks_(std::move(blocks)) {
    blocks_.SaveHead(head_);
    rows_.SaveHeads(head_);
  }

  ShardId shard() const { return head_.shard; }
  std::uint64_t samples_trained() const { return head_.samples_trained; }
  // As checkpoint::ContentBytes() of the image.
  std::uint64_t content_bytes() const { return blocks_.content_bytes() + rows_.content_bytes(); }

  // A copy of everything, as a checkpoint has it: as much memory again.
  checkpoint::ShardImage ToImage() const {
    checkpoint::ShardImage image = head_;
    blocks_.Save(image);
    rows_.Save(image);
    for (checkpoint::RowTableImage& table : image.rows) checkpoint::SortRows(table);
    return image;
  }

  const checkpoint::ShardImage& head() const override { return head_; }
  std::span<const std::uint8_t> sketch(std::size_t table) const override {
    return head_.rows[table].sketch;
  }
  std::uint64_t rows(std::size_t table) const override { return rows_.table(table).rows().size(); }
  std::string EncodeBlock(std::size_t index) const override { return blocks_.EncodeBlock(index); }
  std::size_t row_groups(std::size_t table) const override {
    return rows_.table(table).rows().slabs();
  }
  void VisitRows(std::size_t table, std::size_t group, const RowVisit& visit) const override {
    rows_.table(table).rows().ForEachIn(group, [&visit](RowNumber row, const RowRecord& record) {
      visit({record.key(), row}, reinterpret_cast<const std::byte*>(&record));
    });
  }
  void CopyRow(std::size_t table, const checkpoint::SourceRow& row, std::byte* to) const override {
    rows_.table(table).rows().Copy(static_cast<RowNumber>(row.place), to);
  }

  std::shared_ptr<const void> identity() const override { return identity_; }
  std::uint64_t cut() const override { return blocks_.number(); }
  bool BlockChanged(std::size_t index, std::uint64_t since) const override {
    return blocks_.Changed(index, since);
  }
  bool GroupChanged(std::size_t table, std::size_t group, std::uint64_t since) const override {
    return rows_.table(table).rows().Changed(group, since);
  }
  std::optional<std::vector<std::uint64_t>> Removed(std::size_t table,
                                                    std::uint64_t since) const override {
    return rows_.table(table).removed().Since(since);
  }

 private:
  checkpoint::ShardImage head_;
  std::shared_ptr<const void> identity_;
  FrozenShardRows rows_;  // has the memory that both lie in
  FrozenDenseStore blocks_;
};

}  // namespace ps::server
