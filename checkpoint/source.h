// A shard as a writer reads it, and what is known of an earlier cut of the same shard.
//
// A source may say what has changed since an earlier one of the same shard was
// taken; it says so too often rather than too rarely. Cuts are named by numbers
// that grow. A writer asks with the number that it got from the earlier source
// (ShardBase::cut), and only of a source with the same `identity`: another one
// is of a shard that was made anew and shares no history with it.
//
// Pure. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/content.h"
#include "checkpoint/image.h"
#include "common/ids.h"

namespace ps::checkpoint {

struct SourceRow {
  std::uint64_t key = 0;
  std::uint64_t place = 0;  // in the source
};

class ShardSource {
 public:
  virtual ~ShardSource() = default;

  // May lack the content.
  virtual const ShardImage& head() const = 0;
  // Has the sketches of the tables, which head() may lack.
  virtual std::span<const std::uint8_t> sketch(std::size_t table) const = 0;
  virtual std::uint64_t rows(std::size_t table) const = 0;
  // The content of a block's record.
  virtual std::string EncodeBlock(std::size_t index) const = 0;
  // Rows lie in groups, and stay in theirs.
  virtual std::size_t row_groups(std::size_t table) const = 0;
  // Calls `visit` for all rows of a group, in any order, with their records, which may be elsewhere
  // afterwards.
  using RowVisit = std::function<void(const SourceRow& row, const std::byte* record)>;
  virtual void VisitRows(std::size_t table, std::size_t group, const RowVisit& visit) const = 0;
  // Copies the record of a row that was visited.
  virtual void CopyRow(std::size_t table, const SourceRow& row, std::byte* to) const = 0;

  virtual std::shared_ptr<const void> identity() const = 0;
  virtual std::uint64_t cut() const = 0;
  virtual bool BlockChanged(std::size_t index, std::uint64_t since) const = 0;
  virtual bool GroupChanged(std::size_t table, std::size_t group, std::uint64_t since) const = 0;
  // Keys of the rows that went since then, some of which may be back; in any order, also twice.
  // Nothing if that is not known any more.
  virtual std::optional<std::vector<std::uint64_t>> Removed(std::size_t table,
                                                            std::uint64_t since) const = 0;
};

// What was written of a shard at an earlier cut, as far as it takes to leave it out later.
struct ShardBase {
  Round round;
  std::vector<Round> bases;  // on which that one builds
  std::shared_ptr<const void> identity;
  std::uint64_t cut = 0;
  std::uint64_t chain_bytes = 0;  // of content, in this round and those it builds on, but the whole
  ContentHashes hashes;
  std::string values_digest;
  struct Row {
    std::uint64_t key = 0;
    ContentHash hash;
  };
  struct Table {
    std::uint32_t tick = 0;
    std::vector<ContentHash> groups;  // sums over their rows
    // By key, the rows that were pushed in this tick before the cut: those pushed in it after the
    // cut are others, or have another hash. Without them, as there were too many, all are new.
    std::vector<Row> recent;
  };
  std::vector<Table> tables;
};

// An image, all of which is new. It has passed CheckImage() and outlives the source.
class ImageSource : public ShardSource {
 public:
  explicit ImageSource(const ShardImage& image);

  const ShardImage& head() const override { return image_; }
  std::span<const std::uint8_t> sketch(std::size_t table) const override {
    return image_.rows[table].sketch;
  }
  std::uint64_t rows(std::size_t table) const override { return image_.rows[table].rows(); }
  std::string EncodeBlock(std::size_t index) const override;
  std::size_t row_groups(std::size_t) const override { return 1; }
  void VisitRows(std::size_t table, std::size_t group, const RowVisit& visit) const override;
  void CopyRow(std::size_t table, const SourceRow& row, std::byte* to) const override;

  std::shared_ptr<const void> identity() const override { return nullptr; }
  std::uint64_t cut() const override { return 0; }
  bool BlockChanged(std::size_t, std::uint64_t) const override { return true; }
  bool GroupChanged(std::size_t, std::size_t, std::uint64_t) const override { return true; }
  std::optional<std::vector<std::uint64_t>> Removed(std::size_t, std::uint64_t) const override {
    return std::nullopt;
  }

 private:
  const ShardImage& image_;
  std::vector<std::size_t> offsets_;  // of each block, in elements
};

}  // namespace ps::checkpoint
