#include "common/zookeeper/election.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/common/zookeeper/fixture.h"

namespace ps::zk {
namespace {

// One coordinator: a session and its candidacy.
struct Candidate {
  Candidate(std::unique_ptr<Session> own_session, const std::string& name)
      : session(std::move(own_session)) {
    Election::Options options;
    options.data = name;
    election = std::make_unique<Election>(*session, options,
                                          [this](const std::optional<Leadership>& leadership) {
                                            history.push_back(leadership ? leadership->epoch : 0);
                                          });
  }

  bool leads() const { return election->leadership().has_value(); }

  std::unique_ptr<Session> session;
  std::vector<std::uint64_t> history;  // epochs, 0 when it stepped down
  std::unique_ptr<Election> election;
};

class ElectionTest : public ZooKeeperTest {
 protected:
  std::unique_ptr<Candidate> Join(const std::string& name) {
    return std::make_unique<Candidate>(Open(), name);
  }
  static int Leaders(const std::vector<std::unique_ptr<Candidate>>& candidates) {
    int leaders = 0;
    for (const auto& candidate : candidates) leaders += candidate && candidate->leads() ? 1 : 0;
    return leaders;
  }
};

TEST_F(ElectionTest, ALoneCandidateLeadsWithTheFirstEpoch) {
  const auto one = Join("one");
  ASSERT_TRUE(RunUntil(io_, [&] { return one->leads(); }));
  EXPECT_EQ(one->election->leadership()->epoch, 1u);
  EXPECT_EQ(one->election->leadership()->epoch_version, 0);
  EXPECT_EQ(Get(*one->session, "/epoch")->data, "1");
  const auto names = Children(*one->session, "/coordinators");
  ASSERT_EQ(names->size(), 1u);
  EXPECT_EQ(Get(*one->session, "/coordinators/" + names->front())->data, "one");
  EXPECT_TRUE(Multi(*one->session, {one->election->leadership()->Fence(), Op::Create("/w", "")})
                  .status.ok());
}

TEST_F(ElectionTest, OfThreeExactlyOneLeadsAndTheNextFollowsWhenItsSessionEnds) {
  std::vector<std::unique_ptr<Candidate>> all;
  for (const char* name : {"a", "b", "c"}) all.push_back(Join(name));
  const auto watcher = Open();
  for (std::uint64_t epoch = 1; epoch <= 3; ++epoch) {
    ASSERT_TRUE(RunUntil(io_, [&] { return Leaders(all) == 1; }));
    RunFor(io_, milliseconds(100));
    ASSERT_EQ(Leaders(all), 1);
    const auto leader = std::find_if(all.begin(), all.end(), [](const auto& candidate) {
      return candidate && candidate->leads();
    });
    EXPECT_EQ((*leader)->election->leadership()->epoch, epoch);
    EXPECT_EQ((*leader)->election->leadership()->epoch_version, Get(*watcher, "/epoch")->version);
    (*leader)->session->Close();
    leader->reset();
  }
  EXPECT_TRUE(Children(*watcher, "/coordinators")->empty());
}

TEST_F(ElectionTest, AWaitingCandidateThatLeavesIsSkipped) {
  auto one = Join("one");
  ASSERT_TRUE(RunUntil(io_, [&] { return one->leads(); }));
  auto two = Join("two");
  ASSERT_TRUE(RunUntil(io_, [&] { return Children(*one->session, "/coordinators")->size() == 2; }));
  const auto three = Join("three");
  ASSERT_TRUE(RunUntil(io_, [&] { return Children(*one->session, "/coordinators")->size() == 3; }));
  two.reset();
  RunFor(io_, milliseconds(200));
  EXPECT_TRUE(one->leads());
  EXPECT_FALSE(three->leads());
  one.reset();
  EXPECT_TRUE(RunUntil(io_, [&] { return three->leads(); }));
}

TEST_F(ElectionTest, AnExpiredLeaderStepsDownIsFencedAndWaitsBehindTheNext) {
  const auto one = Join("one");
  ASSERT_TRUE(RunUntil(io_, [&] { return one->leads(); }));
  const Leadership old = *one->election->leadership();
  const auto two = Join("two");
  ASSERT_TRUE(RunUntil(io_, [&] { return Children(*one->session, "/coordinators")->size() == 2; }));
  Expire(*one->session, SharedServer().address());
  ASSERT_TRUE(RunUntil(io_, [&] { return two->leads(); }));
  EXPECT_THAT(one->history, testing::ElementsAre(1, 0));
  EXPECT_THAT(two->history, testing::ElementsAre(2));
  const MultiOutcome write = Multi(*one->session, {old.Fence(), Op::Create("/w", "")});
  EXPECT_EQ(CodeOf(write.status), ErrorCode::kConflict);
  EXPECT_EQ(write.failed_op, std::size_t{0});
  EXPECT_TRUE(RunUntil(io_, [&] { return Children(*one->session, "/coordinators")->size() == 2; }));
  EXPECT_FALSE(one->leads());
}

TEST_F(ElectionTest, ALeaderWhoseNodeIsDeletedStepsDownAndMayLeadAgainLater) {
  const auto one = Join("one");
  ASSERT_TRUE(RunUntil(io_, [&] { return one->leads(); }));
  const auto names = Children(*one->session, "/coordinators");
  ASSERT_TRUE(Delete(*one->session, "/coordinators/" + names->front()).ok());
  ASSERT_TRUE(RunUntil(io_, [&] { return one->history.size() == 3; }));
  EXPECT_THAT(one->history, testing::ElementsAre(1, 0, 2));
}

TEST_F(ElectionTest, AnEpochThatIsNoNumberElectsNobodyUntilItIsRepaired) {
  const auto other = Open();
  ASSERT_TRUE(Create(*other, "/epoch", "seven").ok());
  const auto one =
      std::make_unique<Candidate>(Open(SharedServer().address(), milliseconds(2000)), "one");
  RunFor(io_, milliseconds(400));
  EXPECT_FALSE(one->leads());
  ASSERT_TRUE(Set(*other, "/epoch", "7").ok());
  ASSERT_TRUE(RunUntil(io_, [&] { return one->leads(); }));
  EXPECT_EQ(one->election->leadership()->epoch, 8u);
  EXPECT_EQ(one->election->leadership()->epoch_version, 2);
}

TEST_F(ElectionTest, ALeaderCutOffStepsDownBeforeItsSessionCanExpire) {
  const auto server = OwnServer();
  const milliseconds timeout(3000);
  const Candidate one(Open(server->address(), timeout), "one");
  ASSERT_TRUE(RunUntil(io_, [&] { return one.leads(); }));
  server->Stop();
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_TRUE(RunUntil(io_, [&] { return !one.leads(); }));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, timeout);
  EXPECT_EQ(one.session->state(), State::kSuspended);
  server->Continue();
  ASSERT_TRUE(RunUntil(io_, [&] { return one.leads(); }));
  EXPECT_EQ(one.election->leadership()->epoch, 2u);
}

TEST_F(ElectionTest, AShortRestartOfZooKeeperChangesNoLeader) {
  const auto server = OwnServer();
  const Candidate one(Open(server->address(), milliseconds(30'000)), "one");
  const Candidate two(Open(server->address(), milliseconds(30'000)), "two");
  ASSERT_TRUE(RunUntil(io_, [&] { return one.leads() || two.leads(); }));
  server->Kill();
  ASSERT_TRUE(server->Restart().ok());
  ASSERT_TRUE(RunUntil(io_, [&] { return one.session->connected() && two.session->connected(); }));
  RunFor(io_, milliseconds(500));
  EXPECT_EQ(one.history.size() + two.history.size(), 1u);
}

}  // namespace
}  // namespace ps::zk
