#include "ps-worker/core/kernels/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace ps::worker::kernels {
namespace {

constexpr float kLimit = 1e38f;

// What a kernel has changed and picked. Compared by bits: NaN equals itself, 0 is not -0.
struct Outcome {
  std::vector<float> u;
  std::vector<float> v;
  std::vector<std::uint16_t> positions;
  std::vector<float> values;
  std::size_t done;

  bool operator==(const Outcome& other) const {
    return Same(u, other.u) && Same(v, other.v) && positions == other.positions &&
           Same(values, other.values) && done == other.done;
  }
  static bool Same(const std::vector<float>& one, const std::vector<float>& other) {
    return one.size() == other.size() &&
           (one.empty() || std::memcmp(one.data(), other.data(), one.size() * 4) == 0);
  }
};

struct Input {
  std::vector<float> g;
  std::vector<float> u;
  std::vector<float> v;
  float scale = 0.7f;
  float momentum = 0.9f;
  std::uint32_t least = 1;
  std::uint32_t at = 0;
  std::uint32_t bound = kNoBound;

  std::size_t count() const { return g.size(); }
};

enum class What { kAdd, kNesterov, kPick };

Outcome OutcomeOf(const Table& kernels, What what, const Input& input) {
  Outcome outcome{input.u, input.v, {}, {}, 0};
  // Something was picked before, and must stay.
  constexpr std::size_t kBefore = 3;
  outcome.positions.assign(kBefore + input.count() + kSlack, 7);
  outcome.values.assign(kBefore + input.count() + kSlack, 7.0f);
  Picker picker{input.least, outcome.positions.data(), outcome.values.data(), kBefore};
  const Piece piece{input.count(), input.at};
  const Gradient gradient{input.g.data(), input.scale, input.bound};
  float* const u = outcome.u.data();
  float* const v = outcome.v.data();
  switch (what) {
    case What::kAdd: outcome.done = kernels.add(piece, gradient, kLimit, v, picker); break;
    case What::kNesterov:
      outcome.done = kernels.add_nesterov(piece, gradient, input.momentum, kLimit, u, v, picker);
      break;
    case What::kPick:
      kernels.pick(piece, v, picker);
      outcome.done = input.count();
      break;
  }
  EXPECT_LE(picker.count, kBefore + input.count());
  outcome.positions.resize(picker.count);
  outcome.values.resize(picker.count);
  return outcome;
}

float Bounded(float value) {
  if (value < -kLimit) return -kLimit;
  return value > kLimit ? kLimit : value;
}

// Element by element, as kernels.h says it. Products are rounded before they are added.
Outcome Expected(What what, const Input& input) {
  Outcome outcome{input.u, input.v, {7, 7, 7}, {7, 7, 7}, 0};
  const auto beyond = [&](std::size_t group) {
    for (std::size_t i = group; i < std::min(group + 64, input.count()); ++i) {
      if ((std::bit_cast<std::uint32_t>(input.g[i]) & 0x7fffffffu) > input.bound) return true;
    }
    return false;
  };
  for (std::size_t i = 0; i < input.count(); ++i) {
    if (what != What::kPick && i % 64 == 0 && beyond(i)) break;
    outcome.done = i + 1;
    volatile float clipped = input.scale * input.g[i];
    if (what == What::kAdd) outcome.v[i] = Bounded(input.v[i] + clipped);
    if (what == What::kNesterov) {
      volatile float kept = input.momentum * input.u[i];
      outcome.u[i] = Bounded(kept + clipped);
      volatile float ahead = input.momentum * outcome.u[i];
      volatile float added = ahead + clipped;
      outcome.v[i] = Bounded(input.v[i] + added);
    }
    const float value = outcome.v[i];
    if ((std::bit_cast<std::uint32_t>(value) & 0x7fffffffu) >= input.least) {
      outcome.positions.push_back(static_cast<std::uint16_t>(input.at + i));
      outcome.values.push_back(value);
    }
  }
  return outcome;
}

Input MakeInput(std::mt19937& random, std::size_t count) {
  std::normal_distribution<float> normal;
  Input input;
  for (std::vector<float>* values : {&input.g, &input.u, &input.v}) {
    for (std::size_t i = 0; i < count; ++i) values->push_back(normal(random));
  }
  const float large[] = {2.5f, 0.0f, 0.5f};
  input.least = std::max(std::bit_cast<std::uint32_t>(large[random() % 3]), 1u);
  input.at = static_cast<std::uint32_t>(random() % (65536 - count));
  return input;
}

void ExpectAllVariants(const Input& input) {
  for (const What what : {What::kAdd, What::kNesterov, What::kPick}) {
    const Outcome expected = Expected(what, input);
    for (const Table* const* variant = Available(); *variant != nullptr; ++variant) {
      EXPECT_EQ(OutcomeOf(**variant, what, input), expected)
          << (*variant)->name << " " << static_cast<int>(what) << " " << input.count();
    }
  }
}

TEST(SparsifierKernelsTest, VariantsDoWhatOneElementAfterTheOtherWouldAtEveryLength) {
  std::mt19937 random(1);
  for (std::size_t count = 0; count < 300; ++count) ExpectAllVariants(MakeInput(random, count));
  ExpectAllVariants(MakeInput(random, 2048));
}

TEST(SparsifierKernelsTest, VariantsAgreeOnHugeTinyAndMissingNumbers) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float odd[] = {0.0f,    -0.0f,    1e-45f,    -1e-40f,    kLimit, -kLimit,
                       3.4e38f, -3.4e38f, kInfinity, -kInfinity, 1.0f,   -1.0f};
  std::mt19937 random(2);
  for (int round = 0; round < 50; ++round) {
    Input input = MakeInput(random, 200);
    for (std::vector<float>* values : {&input.g, &input.u, &input.v}) {
      for (float& value : *values) {
        if (random() % 4 == 0) value = odd[random() % std::size(odd)];
      }
    }
    // Values at the threshold itself are picked, those next to it are not.
    input.least = std::bit_cast<std::uint32_t>(1.0f) + random() % 3 - 1;
    ExpectAllVariants(input);
  }
}

TEST(SparsifierKernelsTest, AGroupWithAGradientBeyondTheBoundAndWhatFollowsIsLeftAsItIs) {
  std::mt19937 random(5);
  for (std::size_t count = 1; count < 300; ++count) {
    Input input = MakeInput(random, count);
    const float large[] = {-101.0f, std::numeric_limits<float>::infinity(),
                           std::numeric_limits<float>::quiet_NaN()};
    input.bound = std::bit_cast<std::uint32_t>(100.0f);
    ExpectAllVariants(input);
    input.g[random() % count] = 100.0f;
    ExpectAllVariants(input);
    input.g[random() % count] = large[count % 3];
    ExpectAllVariants(input);
    EXPECT_LT(OutcomeOf(Fastest(), What::kAdd, input).done, count);
  }
}

TEST(SparsifierKernelsTest, AllElementsOfAGroupCanBePicked) {
  std::mt19937 random(3);
  Input input = MakeInput(random, 256);
  input.least = 1;
  input.v.assign(256, 1.0f);
  const Outcome outcome = OutcomeOf(Fastest(), What::kPick, input);
  EXPECT_EQ(outcome.positions.size(), 3u + 256);
  ExpectAllVariants(input);
}

TEST(SparsifierKernelsTest, LargestFindsWhatIsNoNumberAboveAllOthers) {
  std::mt19937 random(4);
  for (const Table* const* variant = Available(); *variant != nullptr; ++variant) {
    const Table& kernels = **variant;
    EXPECT_EQ(kernels.largest(nullptr, 0), 0u);
    for (std::size_t count = 1; count < 200; ++count) {
      std::vector<float> values = MakeInput(random, count).g;
      const std::size_t at = random() % count;
      values[at] = -100.0f;
      EXPECT_EQ(kernels.largest(values.data(), count), std::bit_cast<std::uint32_t>(100.0f));
      values[at] = -std::numeric_limits<float>::infinity();
      EXPECT_EQ(kernels.largest(values.data(), count), 0x7f800000u);
      values[at] = std::numeric_limits<float>::quiet_NaN();
      EXPECT_GT(kernels.largest(values.data(), count), 0x7f800000u);
    }
  }
}

TEST(SparsifierKernelsTest, SquaresAreTheSameToTheBitOnEveryProcessor) {
  std::mt19937 random(5);
  for (std::size_t count = 0; count < 200; ++count) {
    std::vector<float> values = count == 0 ? std::vector<float>() : MakeInput(random, count).g;
    if (count > 3) values[1] = 1e38f;  // their sum is no float any more
    double sum = 0;
    for (const float value : values) sum += double{value} * value;
    const double plain = Available()[0]->squares(values.data(), count);
    EXPECT_NEAR(plain, sum, 1e-12 * sum);
    for (const Table* const* variant = Available(); *variant != nullptr; ++variant) {
      EXPECT_EQ((*variant)->squares(values.data(), count), plain) << (*variant)->name << count;
    }
  }
}

}  // namespace
}  // namespace ps::worker::kernels
