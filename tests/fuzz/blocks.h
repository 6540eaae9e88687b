// What must hold of any bytes that are taken for the blocks of a segment.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "common/check.h"
#include "common/codec/block_codec.h"

namespace ps::fuzz {

// Block 0 is full, others have few elements.
inline std::uint32_t ElementsOf(std::uint32_t block) {
  if (block >= 64) return 0;
  return block == 0 ? wire::kBlockElements : 16 * block - block % 3;
}

// Every variant of the readers finds the same entries.
inline void CheckReaders(const codec::BlockView& block, const std::vector<std::uint16_t>& indices,
                         const std::vector<float>& values) {
  for (const auto* const* variant = codec::kernels::Available(); *variant != nullptr; ++variant) {
    codec::EntryReader reader(block, **variant);
    std::vector<std::uint16_t> positions(codec::EntryReader::kRoom);
    std::vector<float> read(codec::EntryReader::kPiece);
    std::size_t at = 0;
    while (const std::size_t count = reader.Next(positions.data(), read.data())) {
      PS_CHECK(at + count <= indices.size(), at, count);
      PS_CHECK(std::memcmp(positions.data(), &indices[at], count * sizeof(indices[0])) == 0, at);
      PS_CHECK(std::memcmp(read.data(), &values[at], count * sizeof(values[0])) == 0, at);
      at += count;
    }
    PS_CHECK(at == indices.size(), at);
  }
}

// Decodes a block, and returns it as it is encoded from that.
inline std::vector<std::byte> CheckBlock(const codec::BlockView& block) {
  const std::uint32_t elements = ElementsOf(block.header.block());
  std::vector<std::uint16_t> indices;
  std::vector<float> values;
  codec::DecodeIndices(block, indices);
  codec::DecodeValues(block, values);
  PS_CHECK(indices.size() == block.count() && values.size() == block.count(), block.count());
  for (std::size_t i = 0; i < indices.size(); ++i) {
    PS_CHECK(indices[i] < elements, indices[i], elements);
    PS_CHECK(i == 0 || indices[i - 1] < indices[i], indices[i]);
  }
  if (block.value_codec() > wire::ValueCodec::Bf16) {
    for (const float value : values) PS_CHECK(std::isfinite(value), value);
  }
  CheckReaders(block, indices, values);
  std::vector<float> sent(values.size());
  const std::span<const std::uint16_t> sparse =
      block.dense() ? std::span<const std::uint16_t>() : indices;
  std::vector<std::byte> again(
      codec::MaxEncodedBytes(elements, block.count(), block.index_codec(), block.value_codec()));
  again.resize(codec::EncodeBlock(block.header.block(), elements, sparse, values,
                                  block.index_codec(), block.value_codec(), again.data(), sent));
  // What an encoder writes can be read, and says what it says it does.
  std::vector<codec::BlockView> blocks;
  PS_CHECK(codec::ParseSegment(again, ElementsOf, blocks).ok());
  std::vector<std::uint16_t> indices_again;
  codec::DecodeIndices(blocks.at(0), indices_again);
  PS_CHECK(indices_again == indices);
  codec::DecodeValues(blocks.at(0), values);
  PS_CHECK(values.empty() ||
           std::memcmp(values.data(), sent.data(), sent.size() * sizeof(sent[0])) == 0);
  return again;
}

inline void CheckBlocks(std::span<const std::byte> payload) {
  // A copy that ends where the bytes end: what is read behind them is seen.
  const std::vector<std::byte> bytes(payload.begin(), payload.end());
  std::vector<codec::BlockView> blocks;
  if (!codec::ParseSegment(bytes, ElementsOf, blocks).ok()) return;
  std::size_t begin = 0;
  for (const codec::BlockView& block : blocks) {
    const std::vector<std::byte> again = CheckBlock(block);
    const std::size_t size = sizeof(wire::BlockHeader) + block.header.bytes();
    // A signalling NaN comes back as a quiet one; scales and the parameter of Rice are chosen anew.
    const bool exact = block.value_codec() <= wire::ValueCodec::Bf16 &&
                       block.index_codec() != wire::IndexCodec::Rice && codec::AllFinite(block);
    PS_CHECK(!exact || (again.size() == size &&
                        std::memcmp(again.data(), bytes.data() + begin, size) == 0),
             size);
    begin += size;
  }
  PS_CHECK(begin == bytes.size(), begin);
}

}  // namespace ps::fuzz
