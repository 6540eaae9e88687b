// The state of one shard at the cut of a checkpoint round, and its digests.
//
// A plain value: the server fills it from the frozen shard, the writer stores
// it, the reader gives it back equal. Digests are XXH3-128, as 32 hex digits,
// over the canonical serialisation that FORMAT.md describes, so that they do
// not depend on how, where or by which server the shard was written. Pure
// functions, any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/row_image.h"
#include "common/ids.h"
#include "common/result.h"

namespace ps::checkpoint {

// What the shard knows about the pushes of one incarnation of a worker.
struct WorkerMark {
  WorkerId worker;
  Incarnation incarnation;
  Clock first_clock;
  Clock watermark;
  // Of the clocks (watermark - size, watermark], oldest first.
  std::vector<std::uint8_t> verdicts;

  friend bool operator==(const WorkerMark&, const WorkerMark&) = default;
};

// How often updates of elements were counted, which some optimizers do.
enum class UpdateCounts : std::uint8_t { kNone = 0, kPerBlock = 1, kPerElement = 2 };

// What the optimizer keeps beside the values.
struct ImageSlots {
  std::uint8_t optimizer = 0;    // its number in FORMAT.md
  std::uint8_t per_element = 0;  // floats beside each value, at most kSlotsMax
  UpdateCounts counts = UpdateCounts::kNone;
  std::vector<float> floats;           // slot 0 of all elements, then slot 1 of all elements
  std::vector<std::uint32_t> updates;  // of each block, or of each element

  friend bool operator==(const ImageSlots&, const ImageSlots&) = default;
};

inline constexpr std::uint8_t kSlotsMax = 2;

// A push that a bulk-synchronous shard has a verdict for and has not applied: its clock waits for
// other workers.
struct HeldPush {
  WorkerId worker;
  Incarnation incarnation;
  Clock clock;
  std::uint32_t samples = 0;
  std::vector<std::byte> bytes;  // blocks and rows, as in docs/wire-format.md

  friend bool operator==(const HeldPush&, const HeldPush&) = default;
};

struct ShardImage {
  JobId job;
  Round round;
  ShardId shard;
  Epoch epoch;
  std::uint32_t lineage = 0;
  std::uint64_t version = 0;
  std::uint64_t samples_trained = 0;
  std::uint32_t first_block = 0;              // number in the job's block space
  std::vector<std::uint32_t> block_elements;  // of each block, 1 .. 65,536; may be empty
  std::vector<float> values;                  // all blocks, one after the other
  ImageSlots slots;
  std::vector<RowTableImage> rows;  // of each table of rows, by its number
  std::vector<WorkerMark> marks;
  std::vector<HeldPush> held;  // by clock, worker, incarnation; each once

  friend bool operator==(const ShardImage&, const ShardImage&) = default;
};

// Brings the rows of all tables into the order of a checkpoint. Whatever takes an image wants it
// so.
void SortRows(ShardImage& image);

// kInvalid, naming the shard, unless the parts of the image agree with each other.
Status CheckImage(const ShardImage& image);
// The same of an image that may lack its content: values, slots and counts of elements, rows and
// sketches.
Status CheckHead(const ShardImage& image);

// Of all tables.
std::uint64_t RowCount(const ShardImage& image);

// Bytes of values, slots, counts, rows and sketches.
std::uint64_t ContentBytes(const ShardImage& image);

// Over everything in the image.
std::string Digest(const ShardImage& image);

// Over the fp32 values of the blocks alone, which is what an evaluation of the checkpoint can
// check.
std::string ValuesDigest(std::span<const float> values);

// XXH3-128 of any bytes, as 32 lower-case hex digits.
std::string HexDigest(std::span<const std::byte> bytes);
std::string HexDigest(std::string_view text);
// True for 32 lower-case hex digits.
bool IsHexDigest(std::string_view text);

}  // namespace ps::checkpoint
