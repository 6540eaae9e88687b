#include "ps-worker/core/precision.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace ps::worker {
namespace {

using ::testing::HasSubstr;

constexpr ComputeDevice kCpu{};

ComputeDevice Gpu(int major, int minor) { return {true, major, minor}; }

TEST(PrecisionTest, AutoIsWhatTheDeviceIsMadeFor) {
  const auto chosen = [](const ComputeDevice& device) {
    return ChoosePrecision("auto", device).value();
  };
  EXPECT_EQ(chosen(kCpu), Precision::kFp32);
  for (const auto& [major, minor] : {std::pair(3, 5), {5, 0}, {5, 3}, {6, 0}, {6, 2}}) {
    EXPECT_EQ(chosen(Gpu(major, minor)), Precision::kFp32) << major << minor;
  }
  for (const auto& [major, minor] : {std::pair(7, 0), {7, 2}, {7, 5}}) {
    EXPECT_EQ(chosen(Gpu(major, minor)), Precision::kFp16) << major << minor;
  }
  for (const auto& [major, minor] : {std::pair(8, 0), {8, 6}, {8, 9}, {9, 0}, {10, 0}, {12, 0}}) {
    EXPECT_EQ(chosen(Gpu(major, minor)), Precision::kBf16) << major << minor;
  }
}

TEST(PrecisionTest, TheJobFileMaySayIt) {
  EXPECT_EQ(ChoosePrecision("bf16", kCpu).value(), Precision::kBf16);
  EXPECT_EQ(ChoosePrecision("fp32", Gpu(9, 0)).value(), Precision::kFp32);
  EXPECT_EQ(ChoosePrecision("fp16", Gpu(9, 0)).value(), Precision::kFp16);
  EXPECT_EQ(ChoosePrecision("fp16", Gpu(6, 0)).value(), Precision::kFp16);
}

TEST(PrecisionTest, WhatTheDeviceDoesNotComputeIsRefusedWithWhatWouldDo) {
  const auto refused = [](const char* wanted, const ComputeDevice& device) {
    const auto chosen = ChoosePrecision(wanted, device);
    EXPECT_FALSE(chosen.ok());
    return chosen.ok() ? std::string() : chosen.error().message;
  };
  EXPECT_THAT(refused("fp16", kCpu), HasSubstr("fp16 needs a GPU"));
  EXPECT_THAT(refused("fp16", kCpu), HasSubstr("use auto, bf16 or fp32"));
  EXPECT_THAT(refused("fp16", Gpu(5, 2)), HasSubstr("needs sm_53, the worker has a GPU of sm_52"));
  EXPECT_THAT(refused("bf16", Gpu(7, 5)), HasSubstr("needs sm_80, the worker has a GPU of sm_75"));
}

TEST(PrecisionTest, OnlyFp16IsScaledUnlessTheJobFileSaysSo) {
  for (const auto precision : {Precision::kFp32, Precision::kBf16, Precision::kFp16}) {
    EXPECT_EQ(ScalesLoss("auto", precision), precision == Precision::kFp16);
    EXPECT_TRUE(ScalesLoss("dynamic", precision));
    EXPECT_FALSE(ScalesLoss("none", precision));
  }
}

}  // namespace
}  // namespace ps::worker
