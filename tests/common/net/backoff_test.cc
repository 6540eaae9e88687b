#include "common/net/backoff.h"

#include <gtest/gtest.h>

namespace ps::net {
namespace {

TEST(BackoffTest, WaitsDoubleUpToTheLimitWithJitterBelowIt) {
  Backoff backoff(Milliseconds(100), Milliseconds(1000), 7);
  std::int64_t whole = 100;
  for (int i = 0; i < 10; ++i) {
    const auto wait = backoff.Next().count();
    EXPECT_GE(wait, whole / 2);
    EXPECT_LE(wait, whole);
    whole = std::min<std::int64_t>(whole * 2, 1000);
  }
}

TEST(BackoffTest, ResetBeginsAgainWithTheFirstWait) {
  Backoff backoff(Milliseconds(10), Milliseconds(10'000), 7);
  for (int i = 0; i < 8; ++i) (void)backoff.Next();
  backoff.Reset();
  EXPECT_LE(backoff.Next().count(), 10);
}

TEST(BackoffTest, TheSameSeedGivesTheSameWaits) {
  Backoff a(Milliseconds(50), Milliseconds(5000), 42);
  Backoff b(Milliseconds(50), Milliseconds(5000), 42);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(a.Next(), b.Next());
}

}  // namespace
}  // namespace ps::net
