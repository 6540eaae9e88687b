#include "coordinator/core/batch_shares.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

namespace ps::coordinator {
namespace {

constexpr std::uint32_t kUsual = 128;
constexpr std::uint32_t kUnit = 8;

// Tasks that compute without a pause, each at its speed.
class BatchSharesTest : public ::testing::Test {
 protected:
  // Every worker computes for so long and reports twice a second.
  void Compute(const std::vector<double>& samples_per_second, int seconds = 4) {
    for (int half = 0; half < 2 * seconds; ++half) {
      for (std::size_t slot = 0; slot < samples_per_second.size(); ++slot) {
        samples_[slot] += static_cast<std::uint64_t>(samples_per_second[slot] / 2);
        ms_[slot] += 500;
        changes_ += shares_.Observe(slot, Incarnation(static_cast<std::uint32_t>(slot) + 1),
                                    samples_[slot], ms_[slot])
                        ? 1
                        : 0;
      }
    }
  }
  std::vector<std::uint32_t> Shares() const {
    return {shares_.push_records(0), shares_.push_records(1), shares_.push_records(2)};
  }

  BatchShares shares_{kUsual, kUnit, 3};
  std::array<std::uint64_t, 3> samples_{};
  std::array<std::uint64_t, 3> ms_{};
  int changes_ = 0;
};

using Records = std::vector<std::uint32_t>;

TEST_F(BatchSharesTest, WorkersThatDifferLittleHaveTheUsualShare) {
  Compute({1000, 1250, 1100});
  EXPECT_EQ(Shares(), (Records{128, 128, 128}));
  EXPECT_FALSE(shares_.unequal());
  EXPECT_EQ(changes_, 0);
}

TEST_F(BatchSharesTest, SharesAreInProportionToSpeedAndAddUpToTheUsualOnes) {
  Compute({1000, 3000, 2000});
  EXPECT_EQ(Shares(), (Records{64, 192, 128}));
  EXPECT_TRUE(shares_.unequal());
  EXPECT_EQ(changes_, 1);
  EXPECT_DOUBLE_EQ(shares_.speed(1), 3000);
}

TEST_F(BatchSharesTest, SmallChangesOfSpeedChangeNothing) {
  Compute({1000, 3000, 2000});
  Compute({1050, 2900, 2050});
  EXPECT_EQ(Shares(), (Records{64, 192, 128}));
  Compute({1500, 3000, 1500}, 12);
  EXPECT_NEAR(shares_.push_records(0), 96, 96 * BatchShares::kStep);
  EXPECT_EQ(shares_.push_records(1), 192u);
  EXPECT_NEAR(shares_.push_records(2), 96, 96 * BatchShares::kStep);
}

TEST_F(BatchSharesTest, WorkersThatAreAlikeAgainHaveTheUsualShare) {
  Compute({1000, 3000, 2000});
  // Not yet: where they differ about as much as the bound, they would go back and forth.
  Compute({1000, 1250, 1250}, 12);
  EXPECT_TRUE(shares_.unequal());
  Compute({1000, 1050, 1000}, 12);
  EXPECT_EQ(Shares(), (Records{128, 128, 128}));
  EXPECT_EQ(changes_, 2);
}

TEST_F(BatchSharesTest, AShareIsWithinBounds) {
  Compute({100, 3000, 3000});
  EXPECT_EQ(Shares(), (Records{32, 192, 192}));
}

TEST_F(BatchSharesTest, ATaskIsMeasuredFromItsFirstReportOn) {
  // A new leader hears of tasks that have run for long.
  EXPECT_FALSE(shares_.Observe(0, Incarnation(1), 1'000'000, 500));
  EXPECT_FALSE(shares_.Observe(1, Incarnation(2), 10, 500'000));
  EXPECT_EQ(shares_.speed(0), 0);
  EXPECT_FALSE(shares_.Observe(0, Incarnation(1), 1'001'000, 1500));
  EXPECT_FALSE(shares_.Observe(1, Incarnation(2), 1010, 501'000));
  EXPECT_DOUBLE_EQ(shares_.speed(0), 1000);
  EXPECT_DOUBLE_EQ(shares_.speed(1), 1000);
}

TEST_F(BatchSharesTest, AReportThatIsOlderThanWhatIsKnownIsNoMeasurement) {
  Compute({1000, 1000, 1000});
  EXPECT_FALSE(shares_.Observe(0, Incarnation(1), 500, 500));
  EXPECT_DOUBLE_EQ(shares_.speed(0), 1000);
}

TEST_F(BatchSharesTest, ANewTaskHasTheUsualShareUntilItsSpeedIsKnown) {
  Compute({1000, 3000, 2000});
  shares_.Forget(0);
  EXPECT_EQ(Shares(), (Records{128, 192, 128}));
  EXPECT_FALSE(shares_.Observe(0, Incarnation(7), 0, 0));
  EXPECT_EQ(shares_.push_records(0), kUsual);
  EXPECT_FALSE(shares_.Observe(0, Incarnation(7), 500, 1000));
  EXPECT_DOUBLE_EQ(shares_.speed(0), 500);
  EXPECT_LT(shares_.push_records(0), kUsual / 2);
}

}  // namespace
}  // namespace ps::coordinator
