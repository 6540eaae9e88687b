#include "ps-server/core/dense_kernels.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace ps::server {
namespace {

constexpr std::uint32_t kGapSkip = 255;

std::uint16_t Load16(const std::byte* from) {
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return bits;
}

struct Fp32Source {
  const std::byte* bytes;
  float operator[](std::size_t entry) const {
    float value;
    std::memcpy(&value, bytes + entry * sizeof(value), sizeof(value));
    return value;
  }
};

struct Bf16Source {
  const std::byte* bytes;
  float operator[](std::size_t entry) const {
    return std::bit_cast<float>(std::uint32_t{Load16(bytes + entry * 2)} << 16);
  }
};

// Calls visit(position, entry) for each entry of an index stream.
template <typename Visit>
void ForEachPosition(wire::IndexCodec codec, std::span<const std::byte> stream, Visit visit) {
  if (codec == wire::IndexCodec::Raw16) {
    const std::size_t count = stream.size() / 2;
    for (std::size_t entry = 0; entry < count; ++entry) {
      visit(Load16(stream.data() + entry * 2), entry);
    }
    return;
  }
  std::uint32_t position = 0;
  std::size_t entry = 0;
  for (const std::byte byte : stream) {
    const std::uint32_t gap = std::to_integer<std::uint32_t>(byte);
    position += gap;
    if (gap != kGapSkip) visit(position++, entry++);
  }
}

template <typename Source, typename Update>
void UpdateFrom(float* values, std::size_t stride, const codec::BlockView& push, Source source,
                Update update) {
  const auto change = [=](std::size_t position, std::size_t entry) {
    values[position * stride] = update(values[position * stride], source[entry]);
  };
  if (push.dense()) {
    for (std::size_t at = 0; at < push.count(); ++at) change(at, at);
    return;
  }
  ForEachPosition(static_cast<wire::IndexCodec>(push.header.index_codec()), push.index_bytes,
                  change);
}

template <typename Update>
void UpdateBlock(float* values, std::size_t stride, const codec::BlockView& push, Update update) {
  const std::byte* bytes = push.value_bytes.data();
  if (push.header.value_codec() == static_cast<std::uint8_t>(wire::ValueCodec::Fp32)) {
    UpdateFrom(values, stride, push, Fp32Source{bytes}, update);
  } else {
    UpdateFrom(values, stride, push, Bf16Source{bytes}, update);
  }
}

}  // namespace

void ApplyAverage(float* values, std::size_t stride, const codec::BlockView& push, float weight) {
  UpdateBlock(values, stride, push,
              [weight](float old, float value) { return old + (value - old) * weight; });
}

void ApplyMaximum(float* values, std::size_t stride, const codec::BlockView& push) {
  UpdateBlock(values, stride, push, [](float old, float value) { return std::max(old, value); });
}

void MarkPositions(wire::IndexCodec codec, std::span<const std::byte> index_bytes,
                   BlockBitmap bitmap) {
  ForEachPosition(codec, index_bytes, [bitmap](std::uint32_t position, std::size_t) {
    bitmap[position >> 6] |= std::uint64_t{1} << (position & 63);
  });
}

std::uint32_t CountPositions(std::span<const std::uint64_t, kBitmapWords> bitmap) {
  std::uint32_t count = 0;
  for (const std::uint64_t word : bitmap) count += static_cast<std::uint32_t>(std::popcount(word));
  return count;
}

void CollectPositions(std::span<const std::uint64_t, kBitmapWords> bitmap,
                      std::vector<std::uint16_t>& positions) {
  positions.clear();
  for (std::size_t word = 0; word < bitmap.size(); ++word) {
    for (std::uint64_t bits = bitmap[word]; bits != 0; bits &= bits - 1) {
      positions.push_back(
          static_cast<std::uint16_t>(word * 64 + static_cast<unsigned>(std::countr_zero(bits))));
    }
  }
}

}  // namespace ps::server
