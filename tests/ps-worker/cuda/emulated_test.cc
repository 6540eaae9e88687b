// What only an emulated device can show: the order of threads, and who waits for whom.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>

#include "common/messages/control.h"
#include "ps-worker/cuda/device_sparsifier.h"
#include "tests/ps-worker/cuda/device_support.h"

namespace ps::worker::cuda {
namespace {

constexpr std::uint32_t kElements = 65536 + 9000;

LayoutView Layout() {
  control::LayoutT layout;
  layout.tables.push_back(std::make_unique<control::TableInfoT>());
  layout.tables[0]->elements = kElements;
  layout.tables[0]->block_elements = {65536, 9000};
  layout.blocks = 2;
  return LayoutView::Create(layout, 1).value();
}

std::unique_ptr<DeviceSparsifier> Make(const LayoutView& layout) {
  SparsifierOptions options;
  options.value_codec = wire::ValueCodec::Bits2;
  options.clip_norm = 1;
  return std::move(DeviceSparsifier::Create(layout, 0, kElements, options)).value();
}

// Half of them equal, so that the sample misleads and ties must be broken, if `ties`.
std::vector<float> Gradient(bool ties) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(kElements);
  for (float& value : values) value = ties && random() % 2 == 0 ? 4.0f : normal(random);
  return values;
}

struct Outcome {
  std::vector<std::byte> segment;
  std::vector<float> residual;
};

Outcome OutcomeOf(std::uint64_t seed, bool ties) {
  emulated::SetSeed(seed);
  const LayoutView layout = Layout();
  const auto sparsifier = Make(layout);
  const auto gradient = ToDevice(Gradient(ties));
  EXPECT_TRUE(sparsifier->Step({gradient.data(), GradientType::kFp32, 1}, 0.02, nullptr).ok());
  EXPECT_TRUE(sparsifier->Collect().ok());
  Outcome outcome{std::vector<std::byte>(sparsifier->MaxBytes()), {}};
  outcome.segment.resize(
      sparsifier->EncodeShard(ShardId(0), outcome.segment.data(), outcome.segment.size()));
  outcome.residual = sparsifier->residual().value();
  return outcome;
}

TEST(EmulatedDeviceTest, OrderOfThreadsDoesNotMatter) {
  for (const bool ties : {false, true}) {
    const Outcome first = OutcomeOf(1, ties);
    for (const std::uint64_t seed : {2u, 3u, 4u}) {
      const Outcome other = OutcomeOf(seed, ties);
      EXPECT_EQ(other.segment, first.segment);
      EXPECT_EQ(FirstDifference(other.residual, first.residual), -1);
    }
  }
}

TEST(EmulatedDeviceTest, PushWaitsOnceForTheDeviceAndTwiceIfItsSampleMisled) {
  const LayoutView layout = Layout();
  for (const bool ties : {false, true}) {
    const auto sparsifier = Make(layout);
    const auto gradient = ToDevice(Gradient(ties));
    const std::uint64_t before = emulated::Synchronisations();
    ASSERT_TRUE(sparsifier->Step({gradient.data(), GradientType::kFp32, 1}, 0.02, nullptr).ok());
    EXPECT_EQ(emulated::Synchronisations(), before);
    ASSERT_TRUE(sparsifier->Collect().ok());
    std::vector<std::byte> segment(sparsifier->MaxBytes());
    sparsifier->EncodeShard(ShardId(0), segment.data(), segment.size());
    EXPECT_EQ(emulated::Synchronisations(), before + (ties ? 2 : 1));
    // And what it copied is what it packed, with room for the most that may be selected.
    EXPECT_LT(sparsifier->copied_bytes(), 0.02 * kElements * 1.3 * 2.3 + 400);
  }
}

// A barrier that half of the threads leave out.
void Divergent() {
  if (threadIdx.x < 128) __syncthreads();
}

TEST(EmulatedDeviceDeathTest, BarrierThatNotAllReachIsFound) {
  EXPECT_DEATH(emulated::RunKernel(dim3(1), dim3(256), Divergent), "wait for others");
}

// Without the barrier that belongs there, the outcome depends on the order.
int NeighboursSeen(bool barrier) {
  static int values[256];
  static int seen;
  seen = 0;
  std::fill_n(values, 256, 0);
  emulated::RunKernel(dim3(1), dim3(256), [barrier] {
    values[threadIdx.x] = 1;
    if (barrier) __syncthreads();
    seen += values[(threadIdx.x + 1) % 256];
  });
  return seen;
}

TEST(EmulatedDeviceTest, MissingBarrierShows) {
  EXPECT_EQ(NeighboursSeen(true), 256);
  EXPECT_LT(NeighboursSeen(false), 256);
}

}  // namespace
}  // namespace ps::worker::cuda
