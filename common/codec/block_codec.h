// How the entries of one block travel: an index stream, then the values.
//
// Source of the formats: docs/wire-format.md. The streams are written and read
// by index_codec.h and value_codec.h; the codecs of rows (row_codec.h) are
// refused here. Encoders write to caller-owned memory; decoders are safe on
// hostile bytes: every index is checked to be increasing and below `elements`,
// every length exact, every bit that means nothing zero, every scale finite.
// All functions are pure and may run on any thread. Buffers may have any
// alignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "common/codec/index_codec.h"
#include "common/codec/value_codec.h"
#include "common/messages/wire.h"
#include "common/result.h"

namespace ps::codec {

// Largest number of bytes EncodeBlock can write for `count` entries of a block, header included.
std::size_t MaxEncodedBytes(std::uint32_t elements, std::uint32_t count, wire::IndexCodec index,
                            wire::ValueCodec value);

// Writes BlockHeader + index stream + values at `out` (which holds MaxEncodedBytes) and returns the
// bytes written. `indices` increase and are < elements; empty for Dense, then values has
// `elements`. `sent` (same length as values, may be empty) receives the values as the receiver will
// decode them, so that the caller can keep the rounding error as residual.
std::size_t EncodeBlock(std::uint32_t block, std::uint32_t elements,
                        std::span<const std::uint16_t> indices, std::span<const float> values,
                        wire::IndexCodec index, wire::ValueCodec value, std::byte* out,
                        std::span<float> sent);

// The same of values that are coded already: `value_bytes` are what WriteValues() would have
// written for `count` of them. A sparsifier on a GPU codes its values there.
std::size_t EncodeCodedBlock(std::uint32_t block, std::uint32_t elements, std::uint32_t count,
                             std::span<const std::uint16_t> indices,
                             std::span<const std::byte> value_bytes, wire::IndexCodec index,
                             wire::ValueCodec value, std::byte* out);

// One block of a segment's payload, borrowed from it.
struct BlockView {
  wire::BlockHeader header;
  std::span<const std::byte> index_bytes;
  std::span<const std::byte> value_bytes;

  std::uint32_t count() const { return header.count(); }
  wire::IndexCodec index_codec() const {
    return static_cast<wire::IndexCodec>(header.index_codec());
  }
  wire::ValueCodec value_codec() const {
    return static_cast<wire::ValueCodec>(header.value_codec());
  }
  bool dense() const { return header.index_codec() == 0; }

  // Of a validated block.
  PositionReader positions(const kernels::Table& kernels = kernels::Fastest()) const {
    return PositionReader(index_codec(), count(), index_bytes, kernels);
  }
};

// Splits a segment's payload into blocks. `elements_of(block)` returns the elements of a block that
// may appear in this segment, or 0 if it must not. kInvalid unless blocks increase, every count,
// codec and length is consistent and every index stream decodes to `count` increasing positions
// below `elements` (so that Decode* below cannot fail afterwards). With `runs_max` the blocks may
// begin again so often that there are that many increasing runs.
Status ParseSegment(std::span<const std::byte> payload,
                    const std::function<std::uint32_t(std::uint32_t)>& elements_of,
                    std::vector<BlockView>& blocks, std::uint32_t runs_max = 1);

// Reads the entries of a validated block a piece at a time.
class EntryReader {
 public:
  static constexpr std::size_t kPiece = PositionReader::kPiece;
  static constexpr std::size_t kRoom = PositionReader::kRoom;  // for positions
  static_assert(kPiece % kValueGroup == 0);

  explicit EntryReader(const BlockView& block, const kernels::Table& kernels = kernels::Fastest());

  // Returns how many entries it wrote: kPiece, at the end less, then 0. Positions up to kRoom may
  // be overwritten.
  std::size_t Next(std::uint16_t* positions, float* values);

 private:
  PositionReader positions_;
  ValueReader values_;
};

// Positions of a validated block; resized to count. For a dense block: 0, 1, 2, ...
void DecodeIndices(const BlockView& block, std::vector<std::uint16_t>& indices);
// Values of a validated block; resized to count.
void DecodeValues(const BlockView& block, std::vector<float>& values);
// False if any value is inf or NaN.
bool AllFinite(const BlockView& block);

}  // namespace ps::codec
