// What the tests of the GPU code have in common; they run on a real device or on an emulated one.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "ps-worker/cuda/runtime.h"

namespace ps::worker::cuda {

class OnDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    if (DeviceCount() == 0) GTEST_SKIP() << "skipped: no CUDA device";
  }
};

template <typename T>
DeviceBuffer<T> ToDevice(const std::vector<T>& values) {
  auto buffer = DeviceBuffer<T>::Create(values.size());
  EXPECT_TRUE(buffer.ok());
  if (!values.empty()) {
    EXPECT_EQ(cudaMemcpy(buffer->data(), values.data(), buffer->bytes(), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  return std::move(buffer).value();
}

template <typename T>
std::vector<T> FromDevice(const DeviceBuffer<T>& buffer) {
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  std::vector<T> values(buffer.size());
  if (!values.empty()) {
    EXPECT_EQ(cudaMemcpy(values.data(), buffer.data(), buffer.bytes(), cudaMemcpyDeviceToHost),
              cudaSuccess);
  }
  return values;
}

// By bits: 0 is not -0, and NaN is itself. -1 if they are equal, else where they differ first.
inline long FirstDifference(const std::vector<float>& one, const std::vector<float>& other) {
  if (one.size() != other.size()) return static_cast<long>(std::min(one.size(), other.size()));
  for (std::size_t i = 0; i < one.size(); ++i) {
    if (std::bit_cast<std::uint32_t>(one[i]) != std::bit_cast<std::uint32_t>(other[i])) {
      return static_cast<long>(i);
    }
  }
  return -1;
}

}  // namespace ps::worker::cuda
