#include "ps-server/core/shadow.h"

#include <cstring>

#include "common/codec/increment.h"

namespace ps::server {
namespace {

// Of increments: what they leave out is sent later, so that two bits an entry are enough.
constexpr wire::ValueCodec kIncrementCodec = wire::ValueCodec::Bits2;

std::size_t EncodedBytes(const codec::BlockView& push) {
  return sizeof(wire::BlockHeader) + push.index_bytes.size() +
         codec::ValueBytes(kIncrementCodec, push.count());
}

}  // namespace

Shadow::Shadow(const LayoutView& layout, std::uint32_t first_block, std::uint32_t last_block)
    : layout_(layout), first_block_(first_block), last_block_(last_block) {}

std::span<std::uint16_t> Shadow::HeldOfBlock(std::uint32_t block) {
  return {held_.data() + layout_.offset_in_shard(block), layout_.block(block).elements};
}

std::span<const std::uint16_t> Shadow::HeldOfBlock(std::uint32_t block) const {
  return {held_.data() + layout_.offset_in_shard(block), layout_.block(block).elements};
}

void Shadow::TakeBlock(std::uint32_t block, const DenseStore& store) {
  const std::span<const float> values = store.ValuesOf(block, values_);
  const std::span<std::uint16_t> held = HeldOfBlock(block);
  for (std::size_t i = 0; i < held.size(); ++i) held[i] = codec::HeldOf(values[i]);
}

void Shadow::TakeAll(const DenseStore& store) {
  std::size_t elements = 0;
  for (std::uint32_t block = first_block_; block < last_block_; ++block) {
    elements += layout_.block(block).elements;
  }
  held_.resize(elements);
  for (std::uint32_t block = first_block_; block < last_block_; ++block) {
    if (Has(block)) TakeBlock(block, store);
  }
}

std::span<const std::byte> Shadow::Follow(std::span<const codec::BlockView> blocks,
                                          bool whole_blocks, const DenseStore& store) {
  std::size_t most = 0;
  for (const codec::BlockView& block : blocks) most += EncodedBytes(block);
  if (encoded_.size() < most) encoded_.resize(most);
  std::size_t used = 0;
  for (const codec::BlockView& block : blocks) {
    if (block.count() == 0 && !whole_blocks) continue;
    const std::uint32_t number = block.header.block();
    if (!whole_blocks && !block.dense() && Has(number)) {
      used += FollowBlock(block, store, encoded_.data() + used);
      continue;
    }
    if (Has(number)) TakeBlock(number, store);
    const wire::BlockHeader header(number, block.count(), 0,
                                   static_cast<std::uint8_t>(wire::IndexCodec::Dense),
                                   static_cast<std::uint8_t>(wire::ValueCodec::Absent), 0);
    std::memcpy(encoded_.data() + used, &header, sizeof(header));
    used += sizeof(header);
  }
  return std::span<const std::byte>(encoded_).first(used);
}

// The increments stand at the positions of the push, under the same index stream.
std::size_t Shadow::FollowBlock(const codec::BlockView& push, const DenseStore& store,
                                std::byte* out) {
  const std::uint32_t block = push.header.block();
  const std::span<std::uint16_t> held = HeldOfBlock(block);
  codec::DecodeIndices(push, positions_);
  store.Gather(block, positions_, values_);
  for (std::size_t i = 0; i < positions_.size(); ++i) {
    values_[i] -= codec::Bf16ToFloat(held[positions_[i]]);
  }
  sent_.resize(values_.size());
  std::byte* const index_at = out + sizeof(wire::BlockHeader);
  std::memcpy(index_at, push.index_bytes.data(), push.index_bytes.size());
  const std::byte* const end =
      codec::WriteValues(values_, kIncrementCodec, index_at + push.index_bytes.size(), sent_);
  for (std::size_t i = 0; i < positions_.size(); ++i) {
    std::uint16_t& at = held[positions_[i]];
    at = codec::AddIncrement(at, sent_[i]);
  }
  const wire::BlockHeader header(block, push.count(), static_cast<std::uint32_t>(end - index_at),
                                 push.header.index_codec(),
                                 static_cast<std::uint8_t>(kIncrementCodec), 0);
  std::memcpy(out, &header, sizeof(header));
  return static_cast<std::size_t>(end - out);
}

std::span<const float> Shadow::ValuesOf(std::uint32_t block, std::vector<float>& values) const {
  const std::span<const std::uint16_t> held = HeldOfBlock(block);
  values.resize(held.size());
  for (std::size_t i = 0; i < held.size(); ++i) values[i] = codec::Bf16ToFloat(held[i]);
  return values;
}

void Shadow::Gather(std::uint32_t block, std::span<const std::uint16_t> positions,
                    std::vector<float>& values) const {
  const std::span<const std::uint16_t> held = HeldOfBlock(block);
  values.resize(positions.size());
  for (std::size_t i = 0; i < positions.size(); ++i) {
    values[i] = codec::Bf16ToFloat(held[positions[i]]);
  }
}

std::uint64_t Shadow::Hash() const {
  codec::HeldHash hash;
  for (std::uint32_t block = first_block_; block < last_block_; ++block) {
    if (Has(block)) hash.Add(HeldOfBlock(block));
  }
  return hash.Digest();
}

}  // namespace ps::server
