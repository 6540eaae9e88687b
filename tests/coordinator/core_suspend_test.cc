#include "tests/coordinator/core_fixture.h"

namespace ps::coordinator {
namespace {

class SuspendTest : public CoreTest {
 protected:
  Result<nlohmann::json> Suspend() {
    return Ask([&](Ticket ticket) { core_->Suspend(ticket, "count", now_); });
  }
  Result<nlohmann::json> Resume() {
    return Ask([&](Ticket ticket) { core_->Resume(ticket, "count", now_); });
  }
  void StartSuspended() {
    StartRunning();
    Progress(5);
    ASSERT_TRUE(Suspend().ok());
    Tick();
    PlayRound(5);
    ASSERT_EQ(PhaseNow(), "suspended") << Events();
  }
};

TEST_F(SuspendTest, AJobIsTakenOffWithACheckpointAndGoesOnFromIt) {
  StartRunning();
  const auto before = Map();
  Progress(5);
  const auto asked = Suspend();
  ASSERT_TRUE(asked.ok()) << asked.error().message;
  EXPECT_EQ(asked->at("job")["suspending"], true);
  EXPECT_EQ(PhaseNow(), "running");
  for (const auto& agent : agents_) Take("p-" + agent, Body::StopTask);
  Tick();
  for (const auto& [task, worker] : tasks_) {
    bool flush = false;
    for (const auto& begin : inbox_[worker.agent]) {
      if (begin.body.type == Body::RoundBegin) flush = begin.body.AsRoundBegin()->flush;
    }
    EXPECT_TRUE(flush) << "what a worker holds back would be lost";
  }
  PlayRound(5);
  EXPECT_EQ(PhaseNow(), "suspended") << Events();
  EXPECT_EQ(Describe()["reason"], "by an operator, at checkpoint 1");
  EXPECT_EQ(Describe()["suspending"], false);
  EXPECT_EQ(Describe()["servers"], 0);
  for (const auto& name : servers_) {
    EXPECT_EQ(Take("p-" + name, Body::JobDrop).size(), 1u);
    Take("p-" + name, Body::JobStart);
    EXPECT_EQ(core_->DescribeNodes()["nodes"][0]["shards"], 0);
  }
  for (const auto& agent : agents_) {
    EXPECT_EQ(Take("p-" + agent, Body::StopTask).size(), 1u);
    EXPECT_EQ(Take("p-" + agent, Body::DropRing).size(), 1u);
  }
  tasks_.clear();
  // Said again it changes nothing, and nothing happens by itself.
  ASSERT_TRUE(Suspend().ok());
  for (int i = 0; i < 100; ++i) Tick();
  EXPECT_EQ(PhaseNow(), "suspended");
  for (const auto& agent : agents_) EXPECT_TRUE(Take("p-" + agent, Body::StartTask).empty());
  for (const auto& name : servers_) EXPECT_TRUE(Take("p-" + name, Body::JobStart).empty());

  ASSERT_TRUE(Resume().ok());
  EXPECT_EQ(PhaseNow(), "queued");
  Tick();
  ServeStarts();
  ReportShards();
  Tick();
  EXPECT_EQ(PhaseNow(), "running") << Events();
  const auto after = Map();
  for (std::size_t i = 0; i < after.shards.size(); ++i) {
    EXPECT_EQ(after.shards[i]->restore_round, 1u);
    EXPECT_EQ(after.shards[i]->epoch, before.shards[i]->epoch + 1);
    EXPECT_EQ(after.shards[i]->lineage, before.shards[i]->lineage + 1);
  }
}

TEST_F(SuspendTest, AServerThatWasAwayForgetsTheJobWhenItIsBack) {
  StartSuspended();
  for (const auto& name : servers_) inbox_["p-" + name].clear();
  Register("s1");
  EXPECT_EQ(Take("p-s1", Body::JobDrop).size(), 1u);
  EXPECT_TRUE(Take("p-s1", Body::JobStart).empty());
  servers_.erase("s1");
  Announce();
  Tick();
  EXPECT_EQ(PhaseNow(), "suspended");
}

TEST_F(SuspendTest, TheNextLeaderKnows) {
  StartRunning();
  Progress(5);
  ASSERT_TRUE(Suspend().ok());
  Start(2);
  ASSERT_TRUE(core_->Load({Record()}, now_).ok());
  Announce();
  for (const auto& name : servers_) Register(name);
  for (const auto& name : std::set<std::string>(agents_)) AddAgent(name);
  EXPECT_EQ(Describe()["suspending"], true);
  EXPECT_EQ(PhaseNow(), "running");
}

TEST_F(SuspendTest, WhatWaitsForItsCheckpointMayGoOn) {
  StartRunning();
  Progress(5);
  ASSERT_TRUE(Suspend().ok());
  Tick();
  ASSERT_TRUE(Resume().ok());
  PlayRound(5);
  EXPECT_EQ(PhaseNow(), "running");
  EXPECT_EQ(Describe()["checkpoints"], 1);
  ASSERT_TRUE(Resume().ok()) << "it runs already";
}

TEST_F(SuspendTest, ACheckpointThatWasOpenThenIsNotTheOne) {
  StartRunning();
  Progress(11);
  Tick();
  ASSERT_TRUE(Suspend().ok());
  PlayRound(11);
  EXPECT_EQ(PhaseNow(), "running") << "its workers had not been asked for their residuals";
  Progress(12);
  for (int i = 0; i < 20; ++i) Tick();
  PlayRound(12, {1});
  EXPECT_EQ(PhaseNow(), "suspended") << Events();
}

TEST_F(SuspendTest, AJobThatWasNeverPlacedNeedsNoCheckpoint) {
  AddServer("s0");
  AddAgent("a0");
  Submit();
  Tick();
  ASSERT_EQ(PhaseNow(), "queued");
  ASSERT_TRUE(Suspend().ok());
  AddAgent("a1");
  Tick();
  EXPECT_EQ(PhaseNow(), "suspended");
  ASSERT_TRUE(Resume().ok());
  Tick();
  ServeStarts();
  ReportShards();
  Tick();
  EXPECT_EQ(PhaseNow(), "running") << Events();
}

TEST_F(SuspendTest, WhatIsOverOrEndsSoonCannotBeSuspended) {
  StartRunning();
  TrainAll();
  const auto late = Suspend();
  ASSERT_FALSE(late.ok());
  EXPECT_EQ(late.error().code, ErrorCode::kConflict);
  EXPECT_NE(late.error().message.find("ends soon: it is draining"), std::string::npos)
      << late.error().message;
  core_->Cancel(5, "count", "", now_);
  Flush();
  EXPECT_EQ(Suspend().error().code, ErrorCode::kConflict);
  EXPECT_EQ(Resume().error().code, ErrorCode::kConflict);
}

TEST_F(SuspendTest, TheLastRecordsEndTheJobInsteadOfSuspendingIt) {
  StartRunning();
  ASSERT_TRUE(Suspend().ok());
  TrainAll();
  EXPECT_EQ(PhaseNow(), "draining") << Events();
  EXPECT_NE(Events().find("the job ends instead of being suspended"), std::string::npos);
  EXPECT_EQ(Describe()["suspending"], false);
}

TEST_F(SuspendTest, ASuspendedJobIsCancelledAndRolledBack) {
  StartSuspended();
  ASSERT_TRUE(Resume().ok());
  Tick();
  RestartTasks();
  Progress(16);
  ASSERT_TRUE(Suspend().ok());
  for (int i = 0; i < 20; ++i) Tick();
  PlayRound(16, {1});
  ASSERT_EQ(PhaseNow(), "suspended") << Events();
  const auto back =
      Ask([&](Ticket ticket) { core_->RollBack(ticket, "count", Round(1), true, now_); });
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(PhaseNow(), "suspended");
  EXPECT_EQ(Describe()["checkpoints"], 1);
  core_->Cancel(5, "count", "", now_);
  Flush();
  EXPECT_EQ(PhaseNow(), "cancelled");
}

}  // namespace
}  // namespace ps::coordinator
