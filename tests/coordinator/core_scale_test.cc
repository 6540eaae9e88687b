// Operators change how many workers a job has.
#include <string>

#include "tests/coordinator/core_fixture.h"

namespace ps::coordinator {
namespace {

class ScaleTest : public CoreTest {
 protected:
  Result<nlohmann::json> Scale(std::uint64_t workers, bool dry_run = false) {
    answers_.clear();
    core_->Scale(1, "count", workers, dry_run, now_);
    Flush();
    EXPECT_EQ(answers_.size(), 1u);
    return answers_.at(0).body;
  }
  std::size_t Live() {
    std::size_t live = 0;
    const nlohmann::json job = Describe();
    for (const auto& worker : job["workers"]) live += worker["state"] == "live" ? 1 : 0;
    return live;
  }
  // The agents do what they are told.
  void StartTasks() {
    Tick();
    ServeStarts();
    Tick();
  }
  void EndStopped() {
    for (const auto& name : agents_) {
      for (const auto& message : Take("p-" + name, Body::StopTask)) {
        EXPECT_FALSE(message.body.AsStopTask()->kill);
        control::TaskExitedT exited;
        exited.task = message.body.AsStopTask()->task;
        exited.job = 1;
        Say("p-" + name, std::move(exited));
        tasks_.erase(message.body.AsStopTask()->task);
      }
    }
  }
};

TEST_F(ScaleTest, MoreWorkersStartAndFewerEnd) {
  StartRunning();
  const auto dry = Scale(4, true);
  ASSERT_TRUE(dry.ok());
  EXPECT_EQ((*dry)["scale"]["before"], 2);
  StartTasks();
  EXPECT_EQ(Live(), 2u);
  AddAgent("a2");
  AddAgent("a3");
  ASSERT_TRUE(Scale(4).ok());
  StartTasks();
  EXPECT_EQ(Live(), 4u) << Events();
  EXPECT_EQ(Describe()["workers_wanted"], 4);
  ASSERT_TRUE(Scale(1).ok());
  Tick();
  EXPECT_EQ(Live(), 4u);  // they end by themselves
  EndStopped();
  StartTasks();
  EXPECT_EQ(Live(), 1u) << Events();
  EXPECT_EQ(Describe()["workers"].size(), 1u);
  EXPECT_EQ(Describe()["restarts"], 0);
  ASSERT_TRUE(Scale(1).ok());  // once more is as once
  EXPECT_EQ(Events().find("in the place of 1"), std::string::npos) << Events();
  ASSERT_TRUE(Scale(3).ok());
  StartTasks();
  EXPECT_EQ(Live(), 3u) << Events();
}

TEST_F(ScaleTest, TheNextLeaderKnows) {
  StartRunning();
  AddAgent("a2");
  ASSERT_TRUE(Scale(3).ok());
  Start(2);
  ASSERT_TRUE(core_->Load({Record()}, now_).ok());
  EXPECT_EQ(Describe()["workers_wanted"], 3);
  EXPECT_EQ(Describe()["workers"].size(), 3u);
}

TEST_F(ScaleTest, AJobThatWaitsForSlotsWaitsForAsManyAsAreWanted) {
  AddServer("s0");
  AddAgent("a0");
  Submit();
  Tick();
  EXPECT_EQ(PhaseNow(), "queued");
  ASSERT_TRUE(Scale(1).ok());
  Tick();
  EXPECT_EQ(PhaseNow(), "placing") << Events();
  ServeStarts();
  ReportShards();
  Tick();
  EXPECT_EQ(PhaseNow(), "running") << Events();
  EXPECT_EQ(Live(), 1u);
}

// Found by the simulation: it waited for ever for slots that there are not.
TEST_F(ScaleTest, AJobThatIsScaledBeforeItTrainsBeginsWithThoseThatHaveASlot) {
  AddServer("s0");
  AddAgent("a0");
  AddAgent("a1");
  Submit();
  Tick();
  EXPECT_EQ(PhaseNow(), "placing");
  ASSERT_TRUE(Scale(4).ok());
  Tick();
  EXPECT_EQ(PhaseNow(), "placing");
  ServeStarts();
  ReportShards();
  Tick();
  EXPECT_EQ(PhaseNow(), "running") << Events();
  EXPECT_EQ(Live(), 2u);
  AddAgent("a2");
  StartTasks();
  EXPECT_EQ(Live(), 3u);
}

TEST_F(ScaleTest, WhatCannotBeIsRefused) {
  StartRunning();
  EXPECT_EQ(Scale(0).error().code, ErrorCode::kUsage);
  EXPECT_EQ(Scale(1025).error().code, ErrorCode::kUsage);
  TrainAll();
  EXPECT_EQ(PhaseNow(), "draining");
  EXPECT_EQ(Scale(3).error().code, ErrorCode::kConflict);
}

TEST_F(ScaleTest, BulkSynchronousJobsKeepTheirWorkers) {
  std::string text = kSpec;
  text.replace(text.find("epochs: 1"), 9, "epochs: 1, staleness: 0");
  spec_text_ = text;
  spec_ = spec_text_.c_str();
  StartRunning();
  const auto refused = Scale(3);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("job restart"), std::string::npos);
}

}  // namespace
}  // namespace ps::coordinator
