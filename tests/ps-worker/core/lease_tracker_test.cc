#include "ps-worker/core/lease_tracker.h"

#include <gtest/gtest.h>

namespace ps::worker {
namespace {

control::LeaseT Lease(std::uint64_t id, std::uint64_t begin, std::uint64_t end,
                      std::uint64_t done = 0) {
  control::LeaseT lease;
  lease.id = id;
  lease.begin = begin;
  lease.end = end;
  lease.done = done;
  return lease;
}

TEST(LeaseTrackerTest, RepeatedAndSenselessLeasesAreLeftOut) {
  LeaseTracker tracker;
  EXPECT_EQ(tracker.Add({Lease(2, 10, 20), Lease(1, 0, 10)}).size(), 2u);
  EXPECT_EQ(tracker.highest(), 2u);
  EXPECT_TRUE(tracker.Add({Lease(2, 10, 20), Lease(1, 0, 10)}).empty());
  EXPECT_TRUE(tracker.Add({Lease(3, 10, 10), Lease(4, 20, 10), Lease(5, 0, 10, 10)}).empty());
  const auto positions = tracker.Positions();
  ASSERT_EQ(positions.size(), 2u);
  EXPECT_EQ(positions[0].id, 1u);
}

TEST(LeaseTrackerTest, ProgressNeverGoesBackOrBeyondTheEnd) {
  LeaseTracker tracker;
  tracker.Add({Lease(1, 0, 10, 2)});
  EXPECT_FALSE(tracker.Trained(1, 6));
  EXPECT_FALSE(tracker.Trained(1, 4));
  EXPECT_EQ(tracker.Positions()[0].done, 6u);
  EXPECT_FALSE(tracker.Trained(9, 4));
  EXPECT_TRUE(tracker.Trained(1, 99));
  EXPECT_FALSE(tracker.Trained(1, 99));
  EXPECT_EQ(tracker.Positions()[0].done, 10u);
}

TEST(LeaseTrackerTest, AFinishedLeaseIsReportedUntilACommittedCutHasIt) {
  LeaseTracker tracker;
  tracker.Add({Lease(1, 0, 10), Lease(2, 10, 20)});
  tracker.Trained(1, 10);
  tracker.Cut(5);
  tracker.Trained(2, 10);
  EXPECT_EQ(tracker.Positions().size(), 2u);
  tracker.Cut(6);
  tracker.Committed(5);
  ASSERT_EQ(tracker.Positions().size(), 1u);
  EXPECT_EQ(tracker.Positions()[0].id, 2u);
  tracker.Committed(6);
  EXPECT_TRUE(tracker.Positions().empty());
  EXPECT_EQ(tracker.highest(), 2u);
}

TEST(LeaseTrackerTest, FinishedLeasesAreBounded) {
  LeaseTracker tracker;
  for (std::uint64_t id = 1; id <= LeaseTracker::kFinishedMax + 100; ++id) {
    tracker.Add({Lease(id, id * 10, id * 10 + 10)});
    tracker.Trained(id, 10);
  }
  EXPECT_EQ(tracker.Positions().size(), LeaseTracker::kFinishedMax);
}

}  // namespace
}  // namespace ps::worker
