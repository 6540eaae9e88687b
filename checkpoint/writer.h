// Writes one server's part of a checkpoint round.
//
// The part is a RocksDB database (FORMAT.md), built in `<directory>.partial` and
// renamed to `<directory>` by Finish(), after every file and the directory have
// reached the disk (part_directory.h). A failed write or fsync is an error of the
// round: the writer is then unusable.
//
// One thread at a time. Blocks on the disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/image.h"
#include "checkpoint/source.h"
#include "common/result.h"

namespace ps::checkpoint {

struct WrittenShard {
  ShardId shard;
  Epoch epoch;
  std::uint64_t version = 0;
  std::uint64_t bytes = 0;        // keys and values stored for it
  std::uint64_t state_bytes = 0;  // of all its values, slots, counts, rows and sketches
  std::vector<Round> bases;       // rounds that it builds on, newest first
  std::uint64_t rows = 0;         // of all tables
  std::string digest;
  std::string values_digest;
};

class Writer {
 public:
  // `expected_bytes` is the size of all values to come. As BeginPart().
  static Result<Writer> Open(const std::filesystem::path& directory, std::uint64_t expected_bytes);

  Writer(Writer&&) noexcept;
  Writer& operator=(Writer&&) noexcept;
  // Without a Finish() before it, leaves the partial directory behind.
  ~Writer();

  // Each shard at most once, in any order. kInvalid if CheckImage() refuses it.
  Status Add(const ShardImage& image);
  // With `base` only what has changed since, if `base` is of the same history and that saves at
  // least half. `base` must be of a part with the name of this one in a round directory beside this
  // one. What a later part needs to build on this one, once this one counts.
  Result<ShardBase> Add(const ShardSource& source, const ShardBase* base);

  // Makes the part durable and visible; in the order of the Add() calls. No call may follow.
  Result<std::vector<WrittenShard>> Finish();

 private:
  class Impl;
  explicit Writer(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace ps::checkpoint
