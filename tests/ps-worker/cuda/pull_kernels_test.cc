#include "ps-worker/cuda/pull_kernels.h"

#include <gtest/gtest.h>

#include <random>

#include "common/codec/increment.h"
#include "common/codec/value_codec.h"
#include "tests/ps-worker/cuda/device_support.h"

namespace ps::worker::cuda {
namespace {

using Values = std::vector<float>;
using PullKernelsTest = OnDevice;

std::vector<CopyPiece> Pieces() {
  // Aligned and not, and of every kind of length; gaps stay as they are.
  std::vector<CopyPiece> pieces = {{0, 4, 1},          {4, 8, 4095},         {5000, 9000, 4096},
                                   {9999, 20000, 777}, {12000, 25001, 4097}, {20000, 40000, 65536},
                                   {0, 110000, 0},     {3, 120003, 8192}};
  return pieces;
}

TEST_F(PullKernelsTest, PiecesAreCopiedAndNothingElse) {
  std::mt19937 random(1);
  Values from(100000);
  for (float& value : from) value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
  Values expected(130000, -7.0f);
  const auto to = ToDevice(expected);
  const auto pieces = Pieces();
  for (const CopyPiece& piece : pieces) {
    for (std::uint32_t i = 0; i < piece.elements; ++i)
      expected[piece.to + i] = from[piece.from + i];
  }
  const auto device_from = ToDevice(from);
  const auto device_pieces = ToDevice(pieces);
  ASSERT_EQ(LaunchCopyPieces(device_pieces.data(), static_cast<std::uint32_t>(pieces.size()),
                             device_from.data(), to.data(), nullptr),
            cudaSuccess);
  EXPECT_EQ(FirstDifference(FromDevice(to), expected), -1);
}

TEST_F(PullKernelsTest, Bf16IsWidened) {
  std::mt19937 random(2);
  std::vector<std::uint16_t> from(100000);
  for (std::uint16_t& value : from) value = static_cast<std::uint16_t>(random());
  Values expected(130000, -7.0f);
  const auto to = ToDevice(expected);
  const auto pieces = Pieces();
  for (const CopyPiece& piece : pieces) {
    for (std::uint32_t i = 0; i < piece.elements; ++i) {
      expected[piece.to + i] = codec::Bf16ToFloat(from[piece.from + i]);
    }
  }
  const auto device_from = ToDevice(from);
  const auto device_pieces = ToDevice(pieces);
  ASSERT_EQ(LaunchWidenPieces(device_pieces.data(), static_cast<std::uint32_t>(pieces.size()),
                              device_from.data(), to.data(), nullptr),
            cudaSuccess);
  EXPECT_EQ(FirstDifference(FromDevice(to), expected), -1);
}

TEST_F(PullKernelsTest, NoPiecesAndNoEntriesAreNothing) {
  const auto to = ToDevice(Values(5, 1.0f));
  EXPECT_EQ(LaunchCopyPieces(nullptr, 0, nullptr, to.data(), nullptr), cudaSuccess);
  EXPECT_EQ(LaunchAddIncrements(EntryList(), to.data(), nullptr), cudaSuccess);
  EXPECT_EQ(FirstDifference(FromDevice(to), Values(5, 1.0f)), -1);
}

// Blocks of 65,536 with several pushes each, in order.
struct Entries {
  std::vector<EntryBlock> blocks;
  std::vector<EntryRun> runs;
  std::vector<std::uint16_t> positions;
  Values values;
};

Entries RandomEntries(std::mt19937& random) {
  std::normal_distribution<float> normal;
  Entries entries;
  for (std::uint64_t block = 0; block < 3; ++block) {
    const std::uint32_t runs = block == 1 ? 0 : 8;
    entries.blocks.push_back(
        {block * 65536, static_cast<std::uint32_t>(entries.runs.size()), runs});
    for (std::uint32_t run = 0; run < runs; ++run) {
      const auto first = static_cast<std::uint32_t>(entries.positions.size());
      for (std::uint32_t i = random() % 100; i < 65536; i += 1 + random() % 60) {
        entries.positions.push_back(static_cast<std::uint16_t>(i));
        const float size = random() % 5 == 0 ? 1e-39f : 0.01f;
        entries.values.push_back(size * normal(random));
      }
      entries.runs.push_back({first, static_cast<std::uint32_t>(entries.positions.size()) - first});
    }
  }
  return entries;
}

template <typename Launch, typename Add>
void ExpectAdded(const Launch& launch, const Add& add) {
  std::mt19937 random(3);
  const Entries entries = RandomEntries(random);
  std::normal_distribution<float> normal;
  Values expected(3 * 65536);
  for (float& value : expected) value = codec::Bf16ToFloat(codec::HeldOf(normal(random)));
  const auto to = ToDevice(expected);
  for (const EntryBlock& block : entries.blocks) {
    for (std::uint32_t run = block.first_run; run < block.first_run + block.runs; ++run) {
      for (std::uint32_t i = 0; i < entries.runs[run].count; ++i) {
        const std::uint32_t at = entries.runs[run].first + i;
        float& value = expected[block.begin + entries.positions[at]];
        value = add(value, entries.values[at]);
      }
    }
  }
  const auto blocks = ToDevice(entries.blocks);
  const auto runs = ToDevice(entries.runs);
  const auto positions = ToDevice(entries.positions);
  const auto values = ToDevice(entries.values);
  const EntryList list{blocks.data(), static_cast<std::uint32_t>(entries.blocks.size()),
                       runs.data(), positions.data(), values.data()};
  ASSERT_EQ(launch(list, to.data()), cudaSuccess);
  EXPECT_EQ(FirstDifference(FromDevice(to), expected), -1);
}

TEST_F(PullKernelsTest, IncrementsAreAddedPushByPushAsTheServersDo) {
  ExpectAdded(
      [](const EntryList& list, float* to) { return LaunchAddIncrements(list, to, nullptr); },
      [](float held, float increment) {
        return codec::Bf16ToFloat(codec::AddIncrement(codec::FloatToBf16(held), increment));
      });
}

TEST_F(PullKernelsTest, EntriesTakeThePlaceOfWhatWasThere) {
  ExpectAdded([](const EntryList& list, float* to) { return LaunchSet(list, to, nullptr); },
              [](float, float value) { return value; });
}

TEST_F(PullKernelsTest, EntriesAreAddedByTheirWeight) {
  ExpectAdded(
      [](const EntryList& list, float* to) { return LaunchAddWeighted(list, 0.3f, to, nullptr); },
      [](float v, float value) {
        volatile float weighted = 0.3f * value;
        return v + weighted;
      });
}

}  // namespace
}  // namespace ps::worker::cuda
