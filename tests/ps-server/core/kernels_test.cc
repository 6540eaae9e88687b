// All variants of the kernels that this processor has give the same bits.
#include "ps-server/core/kernels/kernels.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "ps-server/core/dense_store.h"
#include "tests/ps-server/core/server_testing.h"

namespace ps::server {
namespace {

using testing::Bytes;
using testing::DenseBlock;
using testing::MakeLayout;
using testing::SparseBlock;

std::vector<const kernels::Table*> Variants() {
  std::vector<const kernels::Table*> variants;
  for (const kernels::Table* const* at = kernels::Available(); *at != nullptr; ++at) {
    variants.push_back(*at);
  }
  return variants;
}

OptimizerRules RulesOf(OptimizerType type) {
  OptimizerRules rules;
  rules.type = type;
  rules.initial_accumulator = 0.125;
  rules.l1 = 0.01;
  rules.l2 = 0.02;
  rules.weight_decay = type == OptimizerType::kFtrl ? 0 : 0.1;
  rules.clip_value = 1.5;
  return rules;
}

constexpr OptimizerType kDenseTypes[] = {OptimizerType::kSgd,       OptimizerType::kMomentum,
                                         OptimizerType::kNesterov,  OptimizerType::kAdagrad,
                                         OptimizerType::kAdam,      OptimizerType::kFtrl,
                                         OptimizerType::kSparseAdam};

struct Encoding {
  wire::IndexCodec index;
  wire::ValueCodec value;
  double density;
};

constexpr Encoding kEncodings[] = {
    {wire::IndexCodec::Dense, wire::ValueCodec::Fp32, 1},
    {wire::IndexCodec::Dense, wire::ValueCodec::Bf16, 1},
    {wire::IndexCodec::Gap8, wire::ValueCodec::Bf16, 0.05},
    {wire::IndexCodec::Gap8, wire::ValueCodec::Fp32, 0.002},
    {wire::IndexCodec::Raw16, wire::ValueCodec::Fp32, 0.01},
    {wire::IndexCodec::Raw16, wire::ValueCodec::Bf16, 0.5},
    {wire::IndexCodec::Rice, wire::ValueCodec::Bits2, 0.05},
    {wire::IndexCodec::Bitmap, wire::ValueCodec::Int8, 0.3},
    {wire::IndexCodec::Dense, wire::ValueCodec::Bits4, 1},
};

// A push in a buffer whose first `shift` bytes do not belong to it.
struct ShiftedPush {
  Bytes bytes;
  std::vector<codec::BlockView> views;

  ShiftedPush(std::uint32_t elements, const Encoding& encoding, std::size_t shift,
              std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::vector<std::uint16_t> indices;
    std::vector<float> values;
    for (std::uint32_t at = 0; at < elements; ++at) {
      const bool dense = encoding.index == wire::IndexCodec::Dense;
      if (!dense && std::uniform_real_distribution<>()(random) >= encoding.density) continue;
      if (!dense) indices.push_back(static_cast<std::uint16_t>(at));
      values.push_back(normal(random));
    }
    bytes.resize(shift);
    testing::operator+=(
        bytes, encoding.index == wire::IndexCodec::Dense
                   ? DenseBlock(0, values, encoding.value)
                   : SparseBlock(0, elements, indices, values, encoding.index, encoding.value));
    PS_CHECK(codec::ParseSegment(
                 std::span<const std::byte>(bytes).subspan(shift),
                 [elements](std::uint32_t) { return elements; }, views)
                 .ok());
  }
};

// Values, slots and counts after some pushes.
checkpoint::ShardImage AfterPushes(OptimizerType type, bool sparse, const kernels::Table& variant,
                                   std::uint32_t elements, const Encoding& encoding) {
  const Optimizer optimizer(RulesOf(type), variant);
  const LayoutView layout = MakeLayout({{TableRule::Sgd, {elements}}}, 1);
  DenseStore store(layout, 0, 1, StoreShape::Of(optimizer, sparse));
  std::mt19937 random(elements);
  std::normal_distribution<float> normal;
  std::vector<float> initial(elements);
  for (float& value : initial) value = normal(random);
  store.Init(initial, optimizer);
  for (std::size_t push = 0; push < 4; ++push) {
    const ShiftedPush shifted(elements, encoding, push, random);
    store.Update(shifted.views.at(0), optimizer, optimizer.StepOf(0.1, 0.75, push + 1));
  }
  checkpoint::ShardImage image;
  store.Freeze().Save(image);
  return image;
}

bool SameBits(const std::vector<float>& left, const std::vector<float>& right) {
  if (left.size() != right.size()) return false;
  return left.empty() || std::memcmp(left.data(), right.data(), left.size() * sizeof(float)) == 0;
}

TEST(KernelsTest, VariantsAgreeBitForBitOnBlocks) {
  const auto variants = Variants();
  if (variants.size() < 2) GTEST_SKIP() << "this processor has the plain variant only";
  for (const OptimizerType type : kDenseTypes) {
    for (const bool sparse : {false, true}) {
      for (const Encoding& encoding : kEncodings) {
        for (const std::uint32_t elements : {1u, 15u, 17u, 255u, 2049u, 65'536u}) {
          const auto expected = AfterPushes(type, sparse, *variants[0], elements, encoding);
          for (std::size_t other = 1; other < variants.size(); ++other) {
            const auto found = AfterPushes(type, sparse, *variants[other], elements, encoding);
            ASSERT_TRUE(SameBits(found.values, expected.values) &&
                        SameBits(found.slots.floats, expected.slots.floats) &&
                        found.slots.updates == expected.slots.updates)
                << NameOf(type) << (sparse ? ", records, " : ", arrays, ") << elements
                << " elements, index codec " << static_cast<int>(encoding.index) << ", "
                << variants[other]->name;
          }
        }
      }
    }
  }
}

TEST(KernelsTest, VariantsAgreeBitForBitOnRows) {
  const auto variants = Variants();
  if (variants.size() < 2) GTEST_SKIP() << "this processor has the plain variant only";
  for (std::uint8_t number = 0; number <= static_cast<std::uint8_t>(OptimizerType::kFtrl);
       ++number) {
    const auto type = static_cast<OptimizerType>(number);
    for (const std::uint32_t width : {1u, 7u, 16u, 64u, 100u, 1024u}) {
      std::vector<std::vector<float>> results;
      for (const kernels::Table* variant : variants) {
        const Optimizer optimizer(RulesOf(type), *variant);
        std::mt19937 random(width);
        std::normal_distribution<float> normal;
        std::vector<float> row(width);
        for (float& value : row) value = normal(random);
        std::vector<float> slots(optimizer.RowSlots(width));
        optimizer.InitRowSlots(row.data(), slots.data(), width);
        std::vector<float> gradient(width);
        for (std::uint64_t count = 1; count <= 5; ++count) {
          for (float& value : gradient) value = normal(random);
          optimizer.ApplyRow(optimizer.StepOf(0.1, 0.75), count, row.data(), slots.data(),
                             gradient.data(), width);
        }
        row.insert(row.end(), slots.begin(), slots.end());
        results.push_back(row);
      }
      for (std::size_t other = 1; other < results.size(); ++other) {
        ASSERT_TRUE(SameBits(results[other], results[0]))
            << NameOf(type) << ", width " << width << ", " << variants[other]->name;
      }
    }
  }
}

// Records and arrays are two ways to keep the same numbers: only Adam's counts differ, and not when
// every push has every element.
TEST(KernelsTest, RecordsAndArraysAgreeBitForBitOnWholeBlocks) {
  for (const OptimizerType type : kDenseTypes) {
    for (const wire::ValueCodec codec : {wire::ValueCodec::Fp32, wire::ValueCodec::Bf16}) {
      const Encoding encoding{wire::IndexCodec::Dense, codec, 1};
      const auto arrays = AfterPushes(type, false, kernels::Fastest(), 3001, encoding);
      const auto records = AfterPushes(type, true, kernels::Fastest(), 3001, encoding);
      EXPECT_TRUE(SameBits(arrays.values, records.values)) << NameOf(type);
      EXPECT_TRUE(SameBits(arrays.slots.floats, records.slots.floats)) << NameOf(type);
    }
  }
}

// What a block does is what its decoded entries do, whatever it was encoded with.
TEST(KernelsTest, EveryCodecUpdatesAsItsDecodedValuesDo) {
  struct Codecs {
    wire::IndexCodec index;
    wire::ValueCodec value;
  };
  std::vector<Codecs> all;
  for (const auto index : {wire::IndexCodec::Dense, wire::IndexCodec::Gap8, wire::IndexCodec::Raw16,
                           wire::IndexCodec::Rice, wire::IndexCodec::Bitmap}) {
    for (const auto value :
         {wire::ValueCodec::Fp32, wire::ValueCodec::Bf16, wire::ValueCodec::Int8,
          wire::ValueCodec::Bits4, wire::ValueCodec::Bits2, wire::ValueCodec::Bits1}) {
      all.push_back({index, value});
    }
  }
  for (const OptimizerType type : kDenseTypes) {
    for (const bool sparse : {false, true}) {
      for (const Codecs& codecs : all) {
        constexpr std::uint32_t kSize = 5000;
        const Optimizer optimizer(RulesOf(type));
        const LayoutView layout = MakeLayout({{TableRule::Sgd, {kSize}}}, 1);
        DenseStore ours(layout, 0, 1, StoreShape::Of(optimizer, sparse));
        DenseStore plain(layout, 0, 1, StoreShape::Of(optimizer, sparse));
        ours.Init(std::vector<float>(kSize, 0.5f), optimizer);
        plain.Init(std::vector<float>(kSize, 0.5f), optimizer);
        std::mt19937 random(3);
        for (std::uint64_t push = 0; push < 3; ++push) {
          const ShiftedPush shifted(kSize, {codecs.index, codecs.value, 0.4}, 1, random);
          std::vector<std::uint16_t> indices;
          std::vector<float> values;
          codec::DecodeIndices(shifted.views.at(0), indices);
          codec::DecodeValues(shifted.views.at(0), values);
          const Bytes bytes = codecs.index == wire::IndexCodec::Dense
                                  ? DenseBlock(0, values)
                                  : SparseBlock(0, kSize, indices, values, wire::IndexCodec::Raw16);
          std::vector<codec::BlockView> views;
          ASSERT_TRUE(codec::ParseSegment(
                          bytes, [](std::uint32_t) { return kSize; }, views)
                          .ok());
          ours.Update(shifted.views.at(0), optimizer, optimizer.StepOf(0.1, 0.75, push + 1));
          plain.Update(views.at(0), optimizer, optimizer.StepOf(0.1, 0.75, push + 1));
        }
        checkpoint::ShardImage found;
        checkpoint::ShardImage expected;
        ours.Freeze().Save(found);
        plain.Freeze().Save(expected);
        ASSERT_TRUE(SameBits(found.values, expected.values) &&
                    SameBits(found.slots.floats, expected.slots.floats) &&
                    found.slots.updates == expected.slots.updates)
            << NameOf(type) << (sparse ? ", records" : ", arrays") << ", codecs "
            << static_cast<int>(codecs.index) << ", " << static_cast<int>(codecs.value);
      }
    }
  }
}

TEST(KernelsTest, EmptyBlockLetsItsElementsDecay) {
  const LayoutView layout = MakeLayout({{TableRule::Sgd, {100}}}, 1);
  const Optimizer optimizer(RulesOf(OptimizerType::kSgd));
  for (const auto index : {wire::IndexCodec::Gap8, wire::IndexCodec::Rice}) {
    const Bytes bytes = SparseBlock(0, 100, {}, {}, index, wire::ValueCodec::Bits2);
    std::vector<codec::BlockView> views;
    ASSERT_TRUE(codec::ParseSegment(
                    bytes, [](std::uint32_t) { return 100u; }, views)
                    .ok());
    DenseStore store(layout, 0, 1, StoreShape::Of(optimizer, true));
    store.Init(std::vector<float>(100, 1.0f), optimizer);
    store.Update(views.at(0), optimizer, optimizer.StepOf(0.5, 1));
    EXPECT_EQ(store.Values(), std::vector<float>(100, 0.95f));
  }
}

TEST(KernelsTest, FirstAndLastPositionOfAFullBlockAreReached) {
  const Bytes bytes = SparseBlock(0, wire::kBlockElements, {0, 255, 256, 65535}, {1, 2, 3, 4});
  std::vector<codec::BlockView> blocks;
  ASSERT_TRUE(codec::ParseSegment(
                  bytes, [](std::uint32_t) { return wire::kBlockElements; }, blocks)
                  .ok());
  const LayoutView layout = MakeLayout({{TableRule::Sgd, {wire::kBlockElements}}}, 1);
  for (const kernels::Table* variant : Variants()) {
    const Optimizer optimizer(OptimizerRules{}, *variant);
    DenseStore store(layout, 0, 1, StoreShape::Of(optimizer, true));
    store.Init(std::vector<float>(wire::kBlockElements, 1.0f), optimizer);
    store.Update(blocks[0], optimizer, optimizer.StepOf(1, 1));
    const std::vector<float> values = store.Values();
    EXPECT_EQ(values[0], 0);
    EXPECT_EQ(values[254], 1);
    EXPECT_EQ(values[255], -1);
    EXPECT_EQ(values[256], -2);
    EXPECT_EQ(values[65534], 1);
    EXPECT_EQ(values[65535], -3);
  }
}

}  // namespace
}  // namespace ps::server
