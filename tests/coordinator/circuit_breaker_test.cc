#include "coordinator/core/circuit_breaker.h"

#include <gtest/gtest.h>

namespace ps::coordinator {
namespace {

TEST(CircuitBreakerTest, OpensWithTheFifthFailureOfAMinuteAndClosesAfterAMinutesRest) {
  CircuitBreaker breaker;
  for (std::uint64_t i = 0; i < 4; ++i) EXPECT_FALSE(breaker.Fail("a", 10'000 * i));
  EXPECT_EQ(breaker.UnsteadyUntil("a", 30'000), 0u);
  EXPECT_TRUE(breaker.Fail("a", 40'000));
  EXPECT_EQ(breaker.UnsteadyUntil("a", 40'000), 100'000u);
  EXPECT_FALSE(breaker.Fail("a", 50'000));  // it is already
  EXPECT_EQ(breaker.UnsteadyUntil("a", 109'999), 110'000u);
  EXPECT_EQ(breaker.UnsteadyUntil("a", 110'000), 0u);
  EXPECT_EQ(breaker.UnsteadyUntil("b", 50'000), 0u);
}

TEST(CircuitBreakerTest, FailuresNowAndThenAreBorne) {
  CircuitBreaker breaker;
  for (std::uint64_t i = 0; i < 100; ++i) EXPECT_FALSE(breaker.Fail("a", 16'000 * i));
}

}  // namespace
}  // namespace ps::coordinator
