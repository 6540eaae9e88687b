#include "ps-server/core/dense_store.h"

#include <gtest/gtest.h>

#include <optional>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/image.h"
#include "ps-server/core/optimizer.h"
#include "tests/ps-server/core/server_testing.h"

namespace ps::server {
namespace {

using testing::Bytes;
using testing::DenseBlock;
using testing::MakeLayout;
using testing::SparseBlock;

constexpr std::uint32_t kElements = 4000;
constexpr std::uint32_t kBlocks = 3;

struct Case {
  const char* name;
  OptimizerType type;
  bool sparse;  // the job's pushes
  double weight_decay = 0;
};

class DenseStoreTest : public ::testing::TestWithParam<Case> {
 protected:
  DenseStoreTest()
      : layout_(MakeLayout({{TableRule::Sgd, std::vector<std::uint32_t>(kBlocks, kElements)}}, 1)) {
    OptimizerRules rules;
    rules.type = GetParam().type;
    rules.weight_decay = GetParam().weight_decay;
    optimizer_ = Optimizer(rules);
  }
  DenseStore Make() {
    DenseStore store(layout_, 0, kBlocks, StoreShape::Of(optimizer_, GetParam().sparse));
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> values(kBlocks * kElements);
    for (float& value : values) value = normal(random);
    store.Init(values, optimizer_);
    return store;
  }
  // The same push to all of them.
  void Push(std::initializer_list<DenseStore*> stores, std::uint32_t entries) {
    const std::uint32_t block = random_() % kBlocks;
    std::vector<std::uint16_t> positions;
    std::vector<float> values;
    for (std::uint32_t at = random_() % 7; at < kElements && positions.size() < entries;
         at += 1 + random_() % (2 * kElements / (entries + 1))) {
      positions.push_back(static_cast<std::uint16_t>(at));
      values.push_back(std::normal_distribution<float>()(random_));
    }
    constexpr wire::IndexCodec kIndex[] = {wire::IndexCodec::Gap8, wire::IndexCodec::Raw16,
                                           wire::IndexCodec::Rice, wire::IndexCodec::Bitmap};
    constexpr wire::ValueCodec kValue[] = {wire::ValueCodec::Fp32, wire::ValueCodec::Bf16,
                                           wire::ValueCodec::Bits2};
    Bytes bytes;
    if (entries >= kElements) {
      values.assign(kElements, 0.25f);
      bytes = DenseBlock(block, values);
    } else {
      bytes = SparseBlock(block, kElements, positions, values, kIndex[random_() % 4],
                          kValue[random_() % 3]);
    }
    std::vector<codec::BlockView> blocks;
    ASSERT_TRUE(codec::ParseSegment(
                    bytes, [](std::uint32_t) { return kElements; }, blocks)
                    .ok());
    const kernels::Step step = optimizer_.StepOf(0.05, 1, ++pushes_);
    for (DenseStore* const store : stores) store->Update(blocks.at(0), optimizer_, step);
  }
  static checkpoint::ShardImage ImageOf(const FrozenDenseStore& frozen) {
    checkpoint::ShardImage image;
    frozen.Save(image);
    return image;
  }
  static std::vector<std::string> BlocksOf(const FrozenDenseStore& frozen) {
    std::vector<std::string> blocks;
    for (std::size_t i = 0; i < kBlocks; ++i) blocks.push_back(frozen.EncodeBlock(i));
    return blocks;
  }

  const LayoutView layout_;
  Optimizer optimizer_;
  std::mt19937 random_{5};
  std::uint64_t pushes_ = 0;
};

// Beside a store that is never frozen: what is frozen stays what it was, to the bit, whatever is
// pushed then, and the store itself goes on as if nobody had frozen it.
TEST_P(DenseStoreTest, AViewIsWhatTheStoreWasAndTheStoreGoesOn) {
  DenseStore store = Make();
  DenseStore plain = Make();
  std::optional<FrozenDenseStore> view;
  checkpoint::ShardImage expected;
  std::vector<std::string> expected_blocks;
  for (int push = 0; push < 400; ++push) {
    const std::uint32_t entries = push % 50 == 49   ? kElements      // dense
                                  : push % 20 == 19 ? kElements / 3  // so many that a copy is made
                                                    : random_() % 40;  // none at all, too
    Push({&store, &plain}, entries);
    if (push % 80 == 10) {
      view = store.Freeze();
      const FrozenDenseStore now = plain.Freeze();
      expected = ImageOf(now);
      expected_blocks = BlocksOf(now);
    }
    if (push % 80 == 50) view.reset();
    if (view.has_value() && push % 7 == 0) {
      ASSERT_EQ(ImageOf(*view), expected) << push;
      ASSERT_EQ(BlocksOf(*view), expected_blocks) << push;
    }
    ASSERT_EQ(store.Values(), plain.Values()) << push;
  }
  EXPECT_EQ(ImageOf(store.Freeze()), ImageOf(plain.Freeze()));
}

// What a checkpoint costs the first push after it.
TEST_P(DenseStoreTest, AFewEntriesAreSavedAndNotTheirBlocks) {
  const Case& one = GetParam();
  DenseStore store = Make();
  const FrozenDenseStore view = store.Freeze();
  Push({&store}, 10);
  const StoreShape shape = StoreShape::Of(optimizer_, one.sparse);
  const bool whole = one.weight_decay != 0;
  if (whole) {
    EXPECT_EQ(store.bytes_copied(), kElements * shape.floats() * sizeof(float));
  } else {
    EXPECT_GT(store.bytes_copied(), 0u);
    EXPECT_LE(store.bytes_copied(), 10 * 3 * detail::kLine);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Optimizers, DenseStoreTest,
    ::testing::Values(Case{"sgd", OptimizerType::kSgd, true},
                      Case{"sgd_of_dense_pushes", OptimizerType::kSgd, false},
                      Case{"sgd_with_decay", OptimizerType::kSgd, true, 0.01},
                      Case{"momentum", OptimizerType::kMomentum, true},
                      Case{"adagrad_of_dense_pushes", OptimizerType::kAdagrad, false},
                      Case{"adam", OptimizerType::kAdam, true},
                      Case{"adam_of_dense_pushes", OptimizerType::kAdam, false},
                      Case{"ftrl", OptimizerType::kFtrl, true},
                      Case{"sparse_adam", OptimizerType::kSparseAdam, true}),
    [](const auto& one) { return std::string(one.param.name); });

}  // namespace
}  // namespace ps::server
