#include "common/net/peer_rates.h"

#include <gtest/gtest.h>

namespace ps::net {
namespace {

TEST(PeerRatesTest, ABurstThenTheRate) {
  PeerRates rates(10, 3);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(rates.Take("a", 1000));
  EXPECT_FALSE(rates.Take("a", 1000));
  EXPECT_FALSE(rates.Take("a", 1099));
  EXPECT_TRUE(rates.Take("a", 1200));
  EXPECT_TRUE(rates.Take("b", 1200)) << "another address has a bucket of its own";
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(rates.Take("a", 100'000));
  EXPECT_FALSE(rates.Take("a", 100'000)) << "a pause is not worth more than the burst";
}

TEST(PeerRatesTest, WithoutARateThereIsNoBound) {
  PeerRates rates(0, 0);
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE(rates.Take("a", 0));
  EXPECT_EQ(rates.size(), 0u);
}

TEST(PeerRatesTest, ManyAddressesAreForgottenOrShareOneBucket) {
  PeerRates rates(1, 2);
  for (std::size_t i = 0; i < PeerRates::kAddressesMax; ++i) {
    EXPECT_TRUE(rates.Take(std::to_string(i), 1000));
  }
  EXPECT_TRUE(rates.Take("new", 1001));
  EXPECT_TRUE(rates.Take("newer", 1001));
  EXPECT_FALSE(rates.Take("newest", 1001));
  EXPECT_LE(rates.size(), PeerRates::kAddressesMax + 1);
  EXPECT_TRUE(rates.Take("later", 10'000));
  EXPECT_LE(rates.size(), 2u);
}

}  // namespace
}  // namespace ps::net
