// Index streams: which elements of a block have an entry.
//
// The formats are in docs/wire-format.md. Positions increase strictly and lie
// below the elements of the block, at most 65,536. A stream is read without its
// block: the codec, the count of its entries and its bytes suffice. Pure
// functions, any thread; streams may start at any address.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/codec/kernels/kernels.h"
#include "common/messages/wire.h"
#include "common/result.h"

namespace ps::codec {

// Bounds of the bytes of a stream, whatever the positions are.
std::size_t MaxIndexBytes(std::uint32_t elements, std::uint32_t count, wire::IndexCodec codec);
// Exactly the bytes that WriteIndices() will write.
std::size_t IndexBytes(std::uint32_t elements, std::span<const std::uint16_t> indices,
                       wire::IndexCodec codec);

// The codec of sparse entries with the smallest bound for this density.
wire::IndexCodec ChooseIndexCodec(std::uint32_t elements, std::uint32_t count);
// The codec whose stream for these positions is the smallest: at most as long as the bound of the
// one above. Dense, which has no stream, if every element has an entry.
wire::IndexCodec SmallestIndexCodec(std::uint32_t elements, std::span<const std::uint16_t> indices);

// Writes the stream (none for Dense) and returns its end. Writes nothing behind it.
std::byte* WriteIndices(std::uint32_t elements, std::span<const std::uint16_t> indices,
                        wire::IndexCodec codec, std::byte* out);

// kInvalid unless the stream is exactly that of `header.count()` positions that increase and are
// below `elements`: then it can be read.
Status CheckIndices(const wire::BlockHeader& header, std::uint32_t elements,
                    std::span<const std::byte> stream);

// Reads the positions of a checked stream, which it borrows, a piece at a time.
class PositionReader {
 public:
  static constexpr std::size_t kPiece = 1024;
  // What Next() may write to.
  static constexpr std::size_t kRoom = kPiece + kernels::kSlack;

  PositionReader(wire::IndexCodec codec, std::uint32_t count, std::span<const std::byte> stream,
                 const kernels::Table& kernels = kernels::Fastest());

  // Returns how many positions it wrote: kPiece, at the end less, then 0. Places of kRoom behind
  // them may be overwritten.
  std::size_t Next(std::uint16_t* out);

 private:
  void NextGaps(std::uint16_t* out, std::size_t count);

  const kernels::Table* kernels_;
  wire::IndexCodec codec_;
  std::uint32_t count_;
  std::uint32_t done_ = 0;
  const std::byte* at_;     // Gap8, Raw16
  std::uint32_t next_ = 0;  // Gap8: the first position that no entry has passed
  kernels::Ones ones_{};    // Rice, Bitmap
  kernels::Planes planes_{};
  std::uint16_t remainders_ = 0;  // Rice: their sum so far
};

}  // namespace ps::codec
