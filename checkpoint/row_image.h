// The rows of one table on one shard, as of a cut.
//
// A plain value: the server fills it from its table, the checkpoint stores it,
// the server makes an equal table from it. Records are as the server has them in
// memory, little endian, without padding:
//
//   [key u64][updates u32][last used u32][values: width x f32][slots x f32]
//
// `updates` is how many pushes the row has had with these slots, plus 1.
//
// Pure functions, any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/result.h"

namespace ps::checkpoint {

inline constexpr std::size_t kRowHeaderBytes = 16;

struct RowTableImage {
  std::uint32_t table = 0;         // number of the table in its job
  std::uint32_t width = 0;         // floats of a row's values
  std::uint8_t optimizer = 0;      // its number in FORMAT.md
  std::uint32_t slots = 0;         // floats of its slots
  std::uint32_t tick = 0;          // of the newest push; no row was used later
  std::vector<std::byte> records;  // in any order until SortRows()
  // The sketch of sightings, empty if the table has none.
  std::vector<std::uint8_t> sketch;
  std::uint64_t sightings = 0;

  std::size_t record_bytes() const {
    return kRowHeaderBytes + (std::size_t{width} + slots) * sizeof(float);
  }
  std::size_t rows() const { return records.size() / record_bytes(); }
  std::uint64_t key(std::size_t row) const {
    std::uint64_t key;
    std::memcpy(&key, records.data() + row * record_bytes(), sizeof(key));
    return key;
  }

  friend bool operator==(const RowTableImage&, const RowTableImage&) = default;
};

// By key, the order that a checkpoint has.
void SortRows(RowTableImage& image);

// kInvalid, naming the table and the row, unless the records are whole, sorted, of keys that are
// there once, and each was used, not later than `tick`. For a sorted image.
Status CheckRows(const RowTableImage& image);

}  // namespace ps::checkpoint
