// Which entries of a shard the most recent pushes changed.
//
// A pull that names the version it has gets the entries of all newer pushes, so
// the log keeps each push's index streams, compressed as they came, or what was
// coded to follow it (shadow.h), in a ring of bounded size. When room is needed the oldest pushes
// are forgotten; a pull that would need them gets a snapshot. The log costs no memory before the
// first push. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/codec/block_codec.h"

namespace ps::server {

class ChangeLog {
 public:
  // One block that a push touched.
  struct Touched {
    std::uint32_t block = 0;  // number in the job's block space
    bool whole = false;       // every entry of the block
    wire::IndexCodec codec = wire::IndexCodec::Dense;
    std::uint32_t count = 0;                 // of its entries; not of a whole block
    std::span<const std::byte> index_bytes;  // borrowed until the next Append
    std::span<const std::byte> encoded;      // the block with its header; borrowed

    codec::PositionReader positions() const {
      return codec::PositionReader(codec, count, index_bytes);
    }
  };

  explicit ChangeLog(std::size_t capacity_bytes) : capacity_(capacity_bytes) {}

  // Forgets everything: what changed up to `version` is not known.
  void Reset(std::uint64_t version);

  // The push that made the shard's version `version`; versions increase. With `whole_blocks` each
  // listed block counts as changed in full.
  void Append(std::uint64_t version, std::span<const codec::BlockView> blocks, bool whole_blocks);
  // The same from what is to be kept: blocks as they are encoded. A whole block is a header alone:
  // Dense, Absent and without bytes.
  void Append(std::uint64_t version, std::span<const std::byte> encoded);

  // True if every change after `version` is in the log.
  bool Covers(std::uint64_t version) const { return version >= known_since_; }

  // Calls visit(Touched) for every block of every push after `version`, the oldest push first.
  template <typename Visit>
  void ForEachAfter(std::uint64_t version, Visit visit) const {
    std::size_t first = count_;
    while (first > 0 && RecordAt(first - 1).version > version) --first;
    for (std::size_t i = first; i < count_; ++i) VisitRecord(RecordAt(i), visit);
  }

  std::size_t bytes() const { return used_; }

 private:
  struct Record {
    std::uint64_t version = 0;
    std::size_t offset = 0;   // into ring_
    std::size_t bytes = 0;    // contiguous
    std::size_t skipped = 0;  // unused bytes before it, at the end of the ring
  };
  template <typename Visit>
  void VisitRecord(const Record& record, Visit& visit) const {
    std::size_t at = record.offset;
    const std::size_t end = record.offset + record.bytes;
    while (at < end) {
      const wire::BlockHeader header = LoadHeader(at);
      Touched touched;
      touched.block = header.block();
      touched.codec = static_cast<wire::IndexCodec>(header.index_codec());
      touched.count = header.count();
      touched.whole = touched.codec == wire::IndexCodec::Dense;
      touched.encoded =
          std::span<const std::byte>(ring_).subspan(at, sizeof(header) + header.bytes());
      touched.index_bytes = touched.encoded.subspan(sizeof(header), IndexBytes(header));
      at += touched.encoded.size();
      visit(touched);
    }
  }
  wire::BlockHeader LoadHeader(std::size_t at) const;
  static std::size_t IndexBytes(const wire::BlockHeader& header);
  // Makes room for a push at head_. False if it is larger than the log, which then knows nothing.
  bool Reserve(std::uint64_t version, std::size_t bytes);
  const Record& RecordAt(std::size_t i) const { return records_[(first_ + i) % records_.size()]; }
  void Remember(const Record& record);
  void ForgetOldest();

  const std::size_t capacity_;
  std::vector<std::byte> ring_;
  // Round and round: count_ of them from first_ on, oldest first. Grows and never shrinks, so that
  // a push costs no allocation once the ring has been full.
  std::vector<Record> records_;
  std::size_t first_ = 0;
  std::size_t count_ = 0;
  std::size_t head_ = 0;  // where the next record goes
  std::size_t used_ = 0;  // bytes of records and skipped ends
  std::uint64_t known_since_ = 0;
};

}  // namespace ps::server
