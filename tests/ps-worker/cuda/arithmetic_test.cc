#include "ps-worker/cuda/arithmetic.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "ps-worker/core/kernels/kernels.h"

namespace ps::worker::cuda {
namespace {

using Values = std::vector<float>;

float RandomFloat(std::mt19937& random) {
  std::normal_distribution<float> normal;
  const float odd[] = {0.0f, -0.0f, 1e-45f, -1e-40f, 1e38f, -1e38f, 3e37f, 1.0f};
  return random() % 4 == 0 ? odd[random() % std::size(odd)] : normal(random);
}

TEST(CudaArithmeticTest, ElementsAccumulateAsTheLoopsOfTheCpuDo) {
  std::mt19937 random(1);
  Coefficients with;
  with.momentum = 0.9f;
  for (int round = 0; round < 20; ++round) {
    Values g(1000);
    Values u(1000);
    Values v(1000);
    for (Values* values : {&g, &u, &v}) {
      for (float& value : *values) value = RandomFloat(random);
    }
    std::vector<std::uint16_t> positions(1000 + kernels::kSlack);
    Values picked(1000 + kernels::kSlack);
    for (const bool nesterov : {false, true}) {
      Values cpu_u = u;
      Values cpu_v = v;
      kernels::Picker picker{1, positions.data(), picked.data(), 0};
      const kernels::Gradient gradient{g.data(), 0.7f, kernels::kNoBound};
      const kernels::Piece piece{1000, 0};
      if (nesterov) {
        kernels::Fastest().add_nesterov(piece, gradient, 0.9f, kAccumulatedLimit, cpu_u.data(),
                                        cpu_v.data(), picker);
      } else {
        kernels::Fastest().add(piece, gradient, kAccumulatedLimit, cpu_v.data(), picker);
      }
      for (std::size_t i = 0; i < 1000; ++i) {
        const Element before{v[i], u[i], 0};
        const Element after =
            nesterov ? Accumulated<AccumulationRule::kNesterov>(before, g[i], 0.7f, with)
                     : Accumulated<AccumulationRule::kPlain>(before, g[i], 0.7f, with);
        ASSERT_EQ(std::bit_cast<std::uint32_t>(after.v), std::bit_cast<std::uint32_t>(cpu_v[i]));
        ASSERT_EQ(std::bit_cast<std::uint32_t>(after.u), std::bit_cast<std::uint32_t>(cpu_u[i]));
      }
    }
  }
}

// A group as a warp codes it, with a loop for its lanes.
std::vector<std::byte> CodeGroup(const Values& values, Values& sent) {
  const auto count = static_cast<std::uint32_t>(values.size());
  const std::uint32_t whole = count / kSumLanes * kSumLanes;
  Values magnitudes;
  for (const float value : values) magnitudes.push_back(GroupMagnitude(value));
  const auto means_around = [&](float split) {
    LaneSum lanes[kSumLanes];
    for (std::uint32_t lane = 0; lane < kSumLanes; ++lane) {
      lanes[lane] = SumLane(magnitudes.data(), whole, split, lane);
    }
    return MeansOf(lanes, magnitudes.data(), whole, count, split);
  };
  double split = means_around(FLT_MAX).below;
  Means means;
  for (int round = 0; round < kSplitRounds; ++round) {
    means = means_around(static_cast<float>(split));
    split = (means.below + means.above) / 2;
  }
  const Centroids centroids = CentroidsOf(means);
  std::vector<std::byte> bytes(4 + (count + 15) / 16 * 4);
  std::memcpy(bytes.data(), &centroids.small_bits, 2);
  std::memcpy(bytes.data() + 2, &centroids.large_bits, 2);
  for (std::uint32_t first = 0; first < count; first += 16) {
    std::uint32_t large = 0;
    std::uint32_t negative = 0;
    for (std::uint32_t i = first; i < std::min(first + 16, count); ++i) {
      const bool is_large = magnitudes[i] > centroids.between;
      const bool is_negative = std::signbit(values[i]);
      large |= (is_large ? 1u : 0u) << (i - first);
      negative |= (is_negative ? 1u : 0u) << (i - first);
      const float magnitude = is_large ? centroids.large : centroids.small;
      sent.push_back(is_negative ? -magnitude : magnitude);
    }
    const std::uint32_t codes = Bits2Codes(large, negative);
    std::memcpy(bytes.data() + 4 + first / 4, &codes, 4);
  }
  bytes.resize(codec::ValueBytes(wire::ValueCodec::Bits2, count));
  return bytes;
}

TEST(CudaArithmeticTest, GroupsAreCodedAsTheCodecDoes) {
  std::mt19937 random(2);
  std::exponential_distribution<float> above(4);
  for (std::uint32_t count = 1; count <= codec::kValueGroup; ++count) {
    for (int kind = 0; kind < 4; ++kind) {
      Values values(count);
      for (float& value : values) {
        if (kind == 0) value = (1 + above(random)) * (random() % 2 == 0 ? 1.0f : -1.0f);
        if (kind == 1) value = RandomFloat(random);
        if (kind == 2) value = -2.5f;
        if (kind == 3) value = random() % 3 == 0 ? 1e-42f : 3e38f;
      }
      std::vector<std::byte> expected(codec::ValueBytes(wire::ValueCodec::Bits2, count));
      Values expected_sent(count);
      codec::WriteValues(values, wire::ValueCodec::Bits2, expected.data(), expected_sent);
      Values sent;
      ASSERT_EQ(CodeGroup(values, sent), expected) << count << " " << kind;
      ASSERT_EQ(std::memcmp(sent.data(), expected_sent.data(), count * 4), 0);
    }
  }
}

TEST(CudaArithmeticTest, ValuesThatAreCodedAloneAreSentAsTheCodecDoes) {
  std::mt19937 random(3);
  for (const wire::ValueCodec codec : {wire::ValueCodec::Fp32, wire::ValueCodec::Bf16}) {
    for (int round = 0; round < 1000; ++round) {
      const float value = RandomFloat(random);
      std::byte bytes[4];
      float sent = 0;
      codec::WriteValues({&value, 1}, codec, bytes, {&sent, 1});
      ASSERT_EQ(std::bit_cast<std::uint32_t>(SentAlone(value, codec)),
                std::bit_cast<std::uint32_t>(sent));
    }
  }
}

TEST(CudaArithmeticTest, EveryFp16IsWidened) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const float got = Fp16ToFloat(static_cast<std::uint16_t>(bits));
    const std::uint32_t exponent = bits >> 10 & 31u;
    const std::uint32_t fraction = bits & 0x3ffu;
    if (exponent == 31 && fraction != 0) {
      ASSERT_TRUE(std::isnan(got)) << bits;
      continue;
    }
    double expected = exponent == 0
                          ? std::ldexp(fraction, -24)
                          : std::ldexp(1024.0 + fraction, static_cast<int>(exponent) - 25);
    if (exponent == 31) expected = std::numeric_limits<double>::infinity();
    ASSERT_EQ(got, bits >> 15 != 0 ? -expected : expected) << bits;
    ASSERT_EQ(std::signbit(got), bits >> 15 != 0) << bits;
  }
}

}  // namespace
}  // namespace ps::worker::cuda
