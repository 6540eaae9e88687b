// The order of the records in each epoch, fixed by the job's seed.
//
// The order is specified here to the last bit, as every task must come to the same one, whatever
// its standard library: xoshiro256**, its four words of state the next four outputs of SplitMix64
// started at seed + 0x9e3779b97f4a7c15 * (epoch + 1) (mod 2^64) mixed once; Fisher-Yates from the
// last record down, the partner of record i being the upper 64 bits of (output * (i + 1)).
//
// One thread. The orders of the two epochs used last are kept, 4 bytes per record each.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace ps::worker {

// The order of one epoch.
std::vector<std::uint32_t> ShuffledEpoch(std::uint64_t records, std::uint64_t seed,
                                         std::uint64_t epoch);

class Permutation {
 public:
  // Without `shuffle` position p is record p % records. 1 <= records <= kMaxRecords.
  Permutation(std::uint64_t records, std::uint64_t seed, bool shuffle);

  std::uint64_t records() const { return records_; }

  // Record at a position of the job's sequence: epoch p / records, place p % records.
  std::uint64_t RecordAt(std::uint64_t position);

 private:
  struct Epoch {
    std::optional<std::uint64_t> number;
    std::vector<std::uint32_t> order;
  };

  const std::uint64_t records_;
  const std::uint64_t seed_;
  const bool shuffle_;
  std::array<Epoch, 2> epochs_;  // the one used last first
};

}  // namespace ps::worker
