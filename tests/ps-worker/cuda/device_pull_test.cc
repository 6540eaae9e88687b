#include "ps-worker/cuda/device_pull.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>

#include "common/codec/block_writer.h"
#include "common/codec/increment.h"
#include "common/codec/value_codec.h"
#include "tests/ps-worker/cuda/device_support.h"

namespace ps::worker::cuda {
namespace {

// Whole blocks, a short one, and one that begins where no vector does.
std::vector<Block> Blocks() {
  std::vector<Block> blocks;
  std::uint64_t offset = 0;
  for (const std::uint32_t elements : {65536u, 65536u, 65536u, 1003u, 77u}) {
    blocks.push_back({0, TableRule::Sgd, elements, offset});
    offset += elements;
  }
  return blocks;
}

class DevicePullTest : public OnDevice {
 protected:
  void SetUp() override {
    OnDevice::SetUp();
    if (IsSkipped()) return;
    std::normal_distribution<float> normal;
    expected_.resize(blocks_.back().table_offset + blocks_.back().elements);
    // Values that bf16 has, as a shadow is of such.
    for (float& value : expected_) value = codec::Bf16ToFloat(codec::HeldOf(normal(random_)));
    held_ = ToDevice(expected_);
    pull_ = std::make_unique<DevicePull>(held_.data(), nullptr);
  }

  // To both, as a segment of one block.
  void Apply(std::uint32_t number, const std::vector<std::uint16_t>& indices,
             const std::vector<float>& values, wire::IndexCodec index_codec,
             wire::ValueCodec value_codec, bool increments) {
    const Block& block = blocks_[number];
    std::vector<std::byte> bytes(codec::MaxEncodedBytes(
        block.elements, static_cast<std::uint32_t>(values.size()), index_codec, value_codec));
    bytes.resize(codec::EncodeBlock(number, block.elements, indices, values, index_codec,
                                    value_codec, bytes.data(), {}));
    std::vector<codec::BlockView> views;
    ASSERT_TRUE(codec::ParseSegment(
                    bytes, [&](std::uint32_t) { return block.elements; }, views)
                    .ok());
    ASSERT_EQ(views.size(), 1u);
    writer_.Write(views[0], increments,
                  std::span(expected_).subspan(block.table_offset, block.elements));
    ASSERT_TRUE(pull_->Apply(block, views[0], increments).ok());
  }

  void ApplyDense(std::uint32_t number, wire::ValueCodec codec, bool increments) {
    std::normal_distribution<float> normal;
    std::vector<float> values(blocks_[number].elements);
    for (float& value : values) value = normal(random_);
    Apply(number, {}, values, wire::IndexCodec::Dense, codec, increments);
  }

  void ApplySparse(std::uint32_t number, bool increments) {
    std::normal_distribution<float> normal;
    std::vector<std::uint16_t> indices;
    std::vector<float> values;
    for (auto i = static_cast<std::uint32_t>(random_() % 30); i < blocks_[number].elements;
         i += 1 + static_cast<std::uint32_t>(random_() % 90)) {
      indices.push_back(static_cast<std::uint16_t>(i));
      values.push_back((increments ? 0.01f : 1.0f) * normal(random_));
    }
    if (indices.empty()) return;
    Apply(number, indices, values, wire::IndexCodec::Rice,
          increments ? wire::ValueCodec::Bits2 : wire::ValueCodec::Bf16, increments);
  }

  void ExpectTheSame() {
    ASSERT_TRUE(pull_->End().ok());
    ASSERT_EQ(FirstDifference(FromDevice(held_), expected_), -1);
  }

  const std::vector<Block> blocks_ = Blocks();
  std::mt19937 random_{7};
  codec::BlockWriter writer_;
  std::vector<float> expected_;
  DeviceBuffer<float> held_;
  std::unique_ptr<DevicePull> pull_;
};

TEST_F(DevicePullTest, ASnapshotReplacesEverything) {
  for (const auto codec : {wire::ValueCodec::Fp32, wire::ValueCodec::Bf16}) {
    for (std::uint32_t number = 0; number < blocks_.size(); ++number) {
      ASSERT_NO_FATAL_FAILURE(ApplyDense(number, codec, false));
    }
    ASSERT_NO_FATAL_FAILURE(ExpectTheSame());
  }
}

TEST_F(DevicePullTest, IncrementsOfSeveralPushesAreAddedInTheirOrder) {
  for (int pull = 0; pull < 5; ++pull) {
    for (int push = 0; push < 4; ++push) {
      for (std::uint32_t number = 0; number < blocks_.size(); ++number) {
        if (random_() % 4 == 0) continue;
        ASSERT_NO_FATAL_FAILURE(ApplySparse(number, true));
      }
    }
    ASSERT_NO_FATAL_FAILURE(ExpectTheSame());
  }
}

TEST_F(DevicePullTest, WhatComesOfABlockTakesEffectInItsOrder) {
  for (int pull = 0; pull < 30; ++pull) {
    for (auto left = random_() % 12; left > 0; --left) {
      const auto number = static_cast<std::uint32_t>(random_() % blocks_.size());
      const bool increments = random_() % 2 == 0;
      if (random_() % 3 == 0) {
        const auto codec = random_() % 2 == 0 ? wire::ValueCodec::Fp32 : wire::ValueCodec::Bf16;
        ASSERT_NO_FATAL_FAILURE(ApplyDense(number, codec, increments));
      } else {
        ASSERT_NO_FATAL_FAILURE(ApplySparse(number, increments));
      }
    }
    ASSERT_NO_FATAL_FAILURE(ExpectTheSame());
  }
}

TEST_F(DevicePullTest, APullThatBringsNothingDoesNothing) {
  ASSERT_NO_FATAL_FAILURE(ExpectTheSame());
  ASSERT_NO_FATAL_FAILURE(ExpectTheSame());
}

}  // namespace
}  // namespace ps::worker::cuda
