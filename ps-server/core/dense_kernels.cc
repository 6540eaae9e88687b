#include "ps-server/core/dense_kernels.h"

#include <algorithm>
#include <array>
#include <bit>

namespace ps::server {
namespace {

constexpr std::size_t kWordsPerSum = 16;  // at most 31, whose bits a byte can count

template <typename Update>
void UpdateBlock(float* values, std::size_t stride, const codec::BlockView& push, Update update) {
  codec::EntryReader reader(push);
  std::array<std::uint16_t, codec::EntryReader::kRoom> positions;
  std::array<float, codec::EntryReader::kPiece> pushed;
  while (const std::size_t count = reader.Next(positions.data(), pushed.data())) {
    for (std::size_t i = 0; i < count; ++i) {
      float& value = values[positions[i] * stride];
      value = update(value, pushed[i]);
    }
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

void MarkPositions(codec::PositionReader reader, BlockBitmap bitmap) {
  std::array<std::uint16_t, codec::PositionReader::kRoom> positions;
  while (const std::size_t count = reader.Next(positions.data())) {
    for (std::size_t i = 0; i < count; ++i) {
      bitmap[positions[i] >> 6] |= std::uint64_t{1} << (positions[i] & 63);
    }
  }
}

std::uint32_t CountPositions(std::span<const std::uint64_t> bitmap) {
  // Without an instruction for it std::popcount is a call; this is a loop of vector instructions.
  const auto bits_of_bytes = [](std::uint64_t word) {
    word -= (word >> 1) & 0x5555555555555555u;
    word = (word & 0x3333333333333333u) + ((word >> 2) & 0x3333333333333333u);
    return (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  };
  std::uint64_t count = 0;
  for (std::size_t first = 0; first < bitmap.size(); first += kWordsPerSum) {
    const auto words = bitmap.subspan(first, std::min(kWordsPerSum, bitmap.size() - first));
    std::uint64_t sums = 0;  // eight of a byte each
    for (const std::uint64_t word : words) sums += bits_of_bytes(word);
    sums = (sums & 0x00ff00ff00ff00ffu) + ((sums >> 8) & 0x00ff00ff00ff00ffu);
    count += (sums * 0x0001000100010001u) >> 48;
  }
  return static_cast<std::uint32_t>(count);
}

void CollectPositions(std::span<const std::uint64_t> bitmap,
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
