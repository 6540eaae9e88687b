// The manifest of a checkpoint: what belongs to it, and where training stood.
//
// The coordinator makes it, every server that wrote a part stores a copy beside
// its data as MANIFEST.json, and ZooKeeper holds its hash: a checkpoint whose
// manifest is not committed there does not exist. The text is canonical (sorted
// keys, fixed indentation) and carries a checksum over itself, so that any
// changed byte is found without ZooKeeper as well.
//
// ToJson, FromJson and Hash are pure and may run on any thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/ids.h"
#include "common/layout/layout.h"
#include "common/result.h"

namespace ps::checkpoint {

class Storage;

inline constexpr int kFormatVersion = 4;
inline constexpr std::size_t kMaxManifestBytes = std::size_t{32} << 20;
inline constexpr const char* kManifestFile = "MANIFEST.json";

struct ManifestShard {
  ShardId shard;
  std::string server;  // name of the part's directory inside the round directory
  Epoch epoch;
  std::uint64_t version = 0;
  std::uint64_t bytes = 0;  // keys and values that this checkpoint stores of it
  std::string digest;
  std::string values_digest;
  std::uint64_t rows = 0;         // of all tables of rows
  std::uint64_t state_bytes = 0;  // of its values, slots, counts, rows and sketches
  // Earlier rounds in whose parts of the same name the rest lies, newest first.
  std::vector<Round> bases;

  friend bool operator==(const ManifestShard&, const ManifestShard&) = default;
};

struct ManifestTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::uint64_t offset = 0;  // first element inside the table
  std::uint64_t elements = 0;

  friend bool operator==(const ManifestTensor&, const ManifestTensor&) = default;
};

struct ManifestTable {
  std::string name;
  TableRule rule = TableRule::Sgd;
  std::uint64_t elements = 0;
  std::vector<ManifestTensor> tensors;

  friend bool operator==(const ManifestTable&, const ManifestTable&) = default;
};

struct ManifestRowTable {
  std::string name;
  std::uint32_t width = 0;  // floats of a row's values

  friend bool operator==(const ManifestRowTable&, const ManifestRowTable&) = default;
};

// Positions of the job's record sequence, [begin, end).
struct PositionRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  friend bool operator==(const PositionRange&, const PositionRange&) = default;
};

struct DataPosition {
  std::vector<PositionRange> remaining;  // increasing, disjoint
  std::uint64_t total_positions = 0;
  std::uint64_t repeated = 0;  // records trained more than once after failures

  friend bool operator==(const DataPosition&, const DataPosition&) = default;
};

// Of a task that scales its loss (training.loss_scaling): what it went on with after its last push.
struct ManifestLossScale {
  float scale = 0;  // more than 0, finite
  std::uint32_t growth_tracker = 0;

  friend bool operator==(const ManifestLossScale&, const ManifestLossScale&) = default;
};

struct ManifestCut {
  WorkerId worker;
  Incarnation incarnation;
  Clock clock;
  bool flushed = false;  // its residual was pushed before the cut, by checkpoint.flush_residuals
  std::optional<ManifestLossScale> loss_scale = std::nullopt;

  friend bool operator==(const ManifestCut&, const ManifestCut&) = default;
};

struct Manifest {
  JobId job;
  std::string job_name;
  Round round;
  std::uint32_t generation = 0;
  std::uint64_t time_ms = 0;  // Unix time
  std::uint64_t step = 0;     // clock of the slowest worker at the cut
  std::uint64_t samples = 0;  // trained
  bool final_round = false;   // after the job was drained
  std::uint64_t layout_fingerprint = 0;
  std::vector<ManifestTable> tables;
  std::vector<ManifestRowTable> row_tables;
  std::vector<ManifestShard> shards;  // 0 .. shards - 1, in order
  DataPosition data;
  std::vector<ManifestCut> cuts;
  std::string program_version;
  std::string spec_json;  // resolved job spec, a JSON object

  friend bool operator==(const Manifest&, const Manifest&) = default;
};

// The canonical text. kInvalid if the manifest contradicts itself or its spec is not JSON.
Result<std::string> ToJson(const Manifest& manifest);

// The inverse; safe on any bytes. kInvalid with the reason; another format version is named.
Result<Manifest> FromJson(std::string_view text);

// XXH3-128 of the text as 32 hex digits: what is committed in ZooKeeper.
std::string Hash(std::string_view text);

// Writes `<directory>/MANIFEST.json` durably: temporary file, fsync, rename, fsync of the
// directory.
Status WriteManifest(const std::filesystem::path& directory, std::string_view text);

// The text of `<directory>/MANIFEST.json`, not yet checked. kNotFound if there is none.
Result<std::string> ReadManifest(const std::filesystem::path& directory);
Result<std::string> ReadManifest(const std::filesystem::path& directory, const Storage& storage);

}  // namespace ps::checkpoint
