// What differs between two checkpoints of the same model.
//
// Compares values, not what optimizers keep: of each dense table the blocks and
// elements, of each table of rows the rows by their keys; and the resolved jobs,
// key by key. Every shard of both is verified against its digest on the way.
// Needs memory for one shard. Blocks on the disk; any thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/manifest.h"
#include "checkpoint/verify.h"
#include "common/result.h"

namespace ps::checkpoint {

// Of values that are finite on both sides.
struct ValuesDiff {
  double before_norm = 0;       // of the values of the first that have one in the second
  double difference_norm = 0;   // of second - first
  double largest = 0;           // of the absolute differences
  std::uint64_t nonfinite = 0;  // not finite on either side; in none of the above
};

struct TableDiff {
  std::string name;
  std::uint64_t blocks = 0;
  std::uint64_t blocks_changed = 0;
  std::uint64_t elements = 0;
  std::uint64_t elements_changed = 0;  // other bits
  ValuesDiff values;
};

struct RowTableDiff {
  std::string name;
  std::uint64_t rows_before = 0;
  std::uint64_t rows_after = 0;
  std::uint64_t rows_added = 0;
  std::uint64_t rows_removed = 0;
  std::uint64_t rows_changed = 0;  // in both, with other bits
  ValuesDiff values;               // of the rows that are in both
};

// A key of the resolved jobs, "training.epochs"; JSON, empty where it is not there.
struct SpecDiff {
  std::string path;
  std::string before;
  std::string after;
};

struct DiffReport {
  Manifest before;
  Manifest after;
  std::vector<TableDiff> tables;
  std::vector<RowTableDiff> row_tables;
  std::vector<SpecDiff> spec;

  // Values or jobs differ.
  bool different() const;
};

// A round directory, and the hash of its manifest as FindManifest has it.
struct DiffSide {
  std::filesystem::path directory;
  std::string expected_hash;
};

// kInvalid, with the directory, if one is damaged or the two are of other tables or shards.
Result<DiffReport> DiffCheckpoints(const DiffSide& before, const DiffSide& after,
                                   const VerifyProgress& progress);

}  // namespace ps::checkpoint
