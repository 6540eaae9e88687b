#include "common/layout/tensor_copy.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace ps {
namespace {

using Shape = std::vector<std::int64_t>;

std::uint64_t Product(const Shape& shape) {
  std::uint64_t product = 1;
  for (const auto size : shape) product *= static_cast<std::uint64_t>(size);
  return product;
}

// The place in `to` of element `element` of `from`, index by index.
std::uint64_t PlaceOf(const Shape& from, const Shape& to, std::uint64_t element) {
  std::uint64_t place = 0;
  std::uint64_t stride = 1;
  for (std::size_t i = from.size(); i-- > 0;) {
    const auto size = static_cast<std::uint64_t>(from[i]);
    place += element % size * stride;
    element /= size;
    stride *= static_cast<std::uint64_t>(to[i]);
  }
  return place;
}

TEST(TensorCopyTest, EqualShapesAreOneRun) {
  const TensorCopy copy({3, 4, 5}, {3, 4, 5});
  int runs = 0;
  copy.ForEachRun(7, 55, [&](std::uint64_t first, std::uint64_t target, std::uint64_t count) {
    EXPECT_EQ(first, 7u);
    EXPECT_EQ(target, 7u);
    EXPECT_EQ(count, 48u);
    ++runs;
  });
  EXPECT_EQ(runs, 1);
  EXPECT_EQ(copy.ElementsBefore(17), 17u);
  EXPECT_EQ(copy.ElementsBefore(1000), 60u);
}

TEST(TensorCopyTest, MoreRowsAreOneRunAndWiderOnesARunEach) {
  int runs = 0;
  const auto count_runs = [&](std::uint64_t, std::uint64_t, std::uint64_t) { ++runs; };
  TensorCopy({3, 4}, {9, 4}).ForEachRun(0, 12, count_runs);
  EXPECT_EQ(runs, 1);
  runs = 0;
  TensorCopy({3, 4}, {3, 5}).ForEachRun(0, 12, count_runs);
  EXPECT_EQ(runs, 3);
}

TEST(TensorCopyTest, AScalarIsItself) {
  const TensorCopy copy({}, {});
  EXPECT_EQ(copy.elements(), 1u);
  int runs = 0;
  copy.ForEachRun(0, 1, [&](std::uint64_t, std::uint64_t target, std::uint64_t count) {
    EXPECT_EQ(target, 0u);
    EXPECT_EQ(count, 1u);
    ++runs;
  });
  EXPECT_EQ(runs, 1);
}

TEST(TensorCopyTest, ATensorWithoutElementsHasNone) {
  const TensorCopy copy({2, 0}, {2, 3});
  EXPECT_EQ(copy.elements(), 0u);
  EXPECT_EQ(copy.ElementsBefore(4), 0u);
  EXPECT_EQ(copy.ElementsBefore(6), 0u);
}

TEST(TensorCopyTest, OnlyWhatIsNowhereSmallerCanHold) {
  EXPECT_TRUE(TensorCopy::CanHold({3, 4}, {3, 4}));
  EXPECT_TRUE(TensorCopy::CanHold({5, 4}, {3, 4}));
  EXPECT_FALSE(TensorCopy::CanHold({5, 3}, {3, 4}));
  EXPECT_FALSE(TensorCopy::CanHold({12}, {3, 4}));
}

TEST(TensorCopyTest, RandomShapesAndRangesGoWhereTheirIndicesSay) {
  std::mt19937 random(3);
  for (int turn = 0; turn < 500; ++turn) {
    SCOPED_TRACE(turn);
    Shape from;
    Shape to;
    for (std::size_t i = random() % 5; i-- > 0;) {
      from.push_back(1 + random() % 5);
      to.push_back(from.back() + (random() % 2 == 0 ? 0 : random() % 4));
    }
    const TensorCopy copy(from, to);
    const std::uint64_t elements = Product(from);
    ASSERT_EQ(copy.elements(), elements);
    const std::uint64_t begin = random() % (elements + 1);
    const std::uint64_t end = begin + random() % (elements - begin + 1);
    std::uint64_t next = begin;
    copy.ForEachRun(begin, end,
                    [&](std::uint64_t first, std::uint64_t target, std::uint64_t count) {
                      ASSERT_EQ(first, next);
                      ASSERT_GT(count, 0u);
                      next += count;
                      for (std::uint64_t i = 0; i < count; ++i) {
                        ASSERT_EQ(target + i, PlaceOf(from, to, first + i));
                      }
                    });
    EXPECT_EQ(next, std::max(begin, end));
    const std::uint64_t border = random() % (Product(to) + 2);
    std::uint64_t before = 0;
    for (std::uint64_t i = 0; i < elements; ++i) before += PlaceOf(from, to, i) < border ? 1 : 0;
    EXPECT_EQ(copy.ElementsBefore(border), before) << border;
  }
}

}  // namespace
}  // namespace ps
