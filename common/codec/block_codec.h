// How the entries of one block travel: an index stream, then the values.
//
// Source of the formats: docs/wire-format.md. Index codecs: Dense (no stream;
// count == elements), Gap8 (one u8 per gap, 255 skips 255 positions), Raw16
// (u16 positions). Value codecs: Fp32, Bf16 (round to nearest even). The others
// are those of rows (row_codec.h) and refused here.
// Encoders append to caller-owned memory; decoders are safe on hostile bytes:
// every index is checked to be increasing and below `elements`, every length
// exact. All functions are pure and may run on any thread. Buffers may have any
// alignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "common/messages/wire.h"
#include "common/result.h"

namespace ps::codec {

// Largest number of bytes EncodeBlock can write for `count` entries of a block, header included.
std::size_t MaxEncodedBytes(std::uint32_t elements, std::uint32_t count, wire::IndexCodec index,
                            wire::ValueCodec value);

// Gap8 or Raw16, whichever is smaller for this density.
wire::IndexCodec ChooseIndexCodec(std::uint32_t elements, std::uint32_t count);

// Writes BlockHeader + index stream + values at `out` (which holds MaxEncodedBytes) and returns the
// bytes written. `indices` increase and are < elements; empty for Dense, then values has
// `elements`. `sent` (same length as values, may be empty) receives the values as the receiver will
// decode them, so that the caller can keep the rounding error as residual.
std::size_t EncodeBlock(std::uint32_t block, std::uint32_t elements,
                        std::span<const std::uint16_t> indices, std::span<const float> values,
                        wire::IndexCodec index, wire::ValueCodec value, std::byte* out,
                        std::span<float> sent);

// One block of a segment's payload, borrowed from it.
struct BlockView {
  wire::BlockHeader header;
  std::span<const std::byte> index_bytes;
  std::span<const std::byte> value_bytes;

  std::uint32_t count() const { return header.count(); }
  bool dense() const { return header.index_codec() == 0; }
};

// Splits a segment's payload into blocks. `elements_of(block)` returns the elements of a block that
// may appear in this segment, or 0 if it must not. kInvalid unless blocks increase, every count,
// codec and length is consistent and every index stream decodes to `count` increasing positions
// below `elements` (so that Decode* below cannot fail afterwards).
Status ParseSegment(std::span<const std::byte> payload,
                    const std::function<std::uint32_t(std::uint32_t)>& elements_of,
                    std::vector<BlockView>& blocks);

// Positions of a validated block; resized to count. For a dense block: 0, 1, 2, ...
void DecodeIndices(const BlockView& block, std::vector<std::uint16_t>& indices);
// Values of a validated block; resized to count.
void DecodeValues(const BlockView& block, std::vector<float>& values);
// False if any value is inf or NaN.
bool AllFinite(const BlockView& block);
bool ValuesFinite(wire::ValueCodec codec, std::span<const std::byte> value_bytes);

float Bf16ToFloat(std::uint16_t bits);
std::uint16_t FloatToBf16(float value);  // to nearest even; NaN stays NaN

}  // namespace ps::codec
