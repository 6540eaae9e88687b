// What a pushed block of buffers does to the values of that block, and which positions a block
// touches. What it does to parameters is in kernels/.
//
// Every function reads the encoded bytes where they lie (they may start at any
// address), a piece at a time, and writes each value once. The block must have passed
// codec::ParseSegment for the elements at `values`, of which one is `stride`
// floats from the next: nothing is checked again here. Pure; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/codec/block_codec.h"

namespace ps::server {

// b += (v - b) * weight
void ApplyAverage(float* values, std::size_t stride, const codec::BlockView& push, float weight);
// b = max(b, v)
void ApplyMaximum(float* values, std::size_t stride, const codec::BlockView& push);

// One bit for each position of a block.
using BlockBitmap = std::span<std::uint64_t>;
constexpr std::size_t BitmapWords(std::size_t elements) { return (elements + 63) / 64; }

// Sets the bits of the positions that are left to read.
void MarkPositions(codec::PositionReader reader, BlockBitmap bitmap);
std::uint32_t CountPositions(std::span<const std::uint64_t> bitmap);
// The set bits, increasing; `positions` is replaced.
void CollectPositions(std::span<const std::uint64_t> bitmap, std::vector<std::uint16_t>& positions);

}  // namespace ps::server
