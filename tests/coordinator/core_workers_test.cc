// Agents, tasks and their rings; leaders that follow one another.
#include <map>
#include <string>

#include "tests/coordinator/core_fixture.h"

namespace ps::coordinator {
namespace {

TEST_F(CoreTest, KilledTaskIsReplayedAndReplaced) {
  StartRunning();
  Progress(20);
  Tick();
  PlayRound(20);
  const auto [task, worker] = *tasks_.begin();
  Say(worker.agent, Exited(task, true, 25));
  const auto replay = Take(worker.agent, Body::Replay);
  ASSERT_EQ(replay.size(), 1u);
  const auto& live = *replay[0].body.AsReplay()->start->live;
  int draining = 0;
  for (const auto& entry : live.workers) draining += entry->state == control::WorkerState::Draining;
  EXPECT_EQ(draining, 1);
  tasks_.erase(task);
  Tick();
  ServeStarts();
  EXPECT_EQ(tasks_.size(), 2u);
  const auto starts = Take(worker.agent, Body::TaskStart);
  ASSERT_FALSE(starts.empty());
  EXPECT_EQ(starts.back().body.AsTaskStart()->first_clock, 20u);

  // No round while the replay is open; afterwards one that covers the dead, whose ring may go.
  Progress(40);
  Tick(3000);
  EXPECT_TRUE(Take("p-s0", Body::RoundBegin).empty());
  control::ReplayDoneT done;
  done.job = 1;
  done.worker = worker.worker;
  done.incarnation = worker.incarnation;
  done.last_clock = 25;
  done.map_version = Map().version;
  Say(worker.agent, std::move(done));
  Tick(100);
  PlayRound(40);
  const auto drops = Take(worker.agent, Body::DropRing);
  ASSERT_EQ(drops.size(), 1u);
  EXPECT_EQ(drops[0].body.AsDropRing()->incarnation, worker.incarnation);
}

TEST_F(CoreTest, AnAgentWhoseTasksNeverGetReadyIsTheLastToGetOne) {
  AddServer("s0");
  AddAgent("a0");
  AddAgent("a1");
  Submit();
  Tick();
  for (int failure = 0; failure < 5; ++failure) {
    for (const auto& message : Take("p-a0", Body::StartTask)) {
      control::TaskExitedT exited;
      exited.task = message.body.AsStartTask()->task;
      exited.job = 1;
      exited.status = 1;
      Say("p-a0", std::move(exited));
    }
    Tick(1000u << (failure + 1));
  }
  EXPECT_TRUE(core_->agents().at("p-a0").unsteady);
  AddAgent("a2");
  const auto last = Take("p-a0", Body::StartTask);
  ASSERT_EQ(last.size(), 1u);
  control::TaskExitedT exited;
  exited.task = last[0].body.AsStartTask()->task;
  exited.job = 1;
  exited.status = 1;
  Say("p-a0", std::move(exited));
  Tick(30'000);
  EXPECT_EQ(Take("p-a0", Body::StartTask).size(), 0u);
  EXPECT_EQ(Take("p-a2", Body::StartTask).size(), 1u);
}

TEST_F(CoreTest, TheTasksOfAnAgentThatDrainsGoToOthers) {
  StartRunning();
  AddAgent("a2");
  core_->SetDuty(6, "a0", Duty::kDraining, now_);
  Flush();
  Tick();
  const auto stops = Take("p-a0", Body::StopTask);
  ASSERT_EQ(stops.size(), 1u);
  const std::uint64_t task = stops[0].body.AsStopTask()->task;
  EXPECT_FALSE(stops[0].body.AsStopTask()->kill);
  Tick();
  EXPECT_TRUE(Take("p-a0", Body::StopTask).empty());  // once
  Say("p-a0", Exited(task, true));
  Tick();
  EXPECT_EQ(Take("p-a0", Body::StartTask).size(), 0u);
  EXPECT_EQ(Take("p-a2", Body::StartTask).size(), 1u);
  EXPECT_EQ(Describe()["restarts"], 0);
  // It is needed until a checkpoint has what it keeps.
  EXPECT_EQ(core_->DescribeNodes()["nodes"][2]["state"], "draining");
}

TEST_F(CoreTest, LostAgentGivesItsRecordsBackAndIsReplacedElsewhere) {
  StartRunning();
  const auto [task, worker] = *tasks_.begin();
  Say(worker.agent, control::LeaseRequestT{}, task);
  agents_.erase(worker.agent.substr(2));
  Announce();
  tasks_.erase(task);
  EXPECT_NE(Events().find("went with its agent"), std::string::npos);
  AddAgent("a9");
  Tick();
  ServeStarts();
  EXPECT_EQ(tasks_.size(), 2u);
  Say("p-a9", control::LeaseRequestT{}, tasks_.rbegin()->first);
  const auto grants = Take("p-a9", Body::LeaseGrant);
  ASSERT_EQ(grants.size(), 1u);
  EXPECT_EQ(grants[0].body.AsLeaseGrant()->leases.at(0)->begin, 0u);
}

TEST_F(CoreTest, RestartedAgentBringsItsRingsBack) {
  StartRunning();
  const auto [task, worker] = *tasks_.begin();
  const std::string name = worker.agent.substr(2);
  agents_.erase(name);
  Announce();
  tasks_.erase(task);
  control::RingInfoT ring;
  ring.job = 1;
  ring.worker = worker.worker;
  ring.incarnation = worker.incarnation;
  ring.generation = 1;
  ring.last_clock = 5;
  AddAgent(name, {ring});
  EXPECT_EQ(Take(worker.agent, Body::Replay).size(), 1u);
  EXPECT_NE(Events().find("ring found"), std::string::npos);
}

// Found by the simulation: an agent that lost its session stops its tasks only after it has
// registered.
TEST_F(CoreTest, TaskThatWasGivenUpWithItsAgentLeavesItsRingWhenItIsStopped) {
  StartRunning();
  const auto [task, worker] = *tasks_.begin();
  const std::string name = worker.agent.substr(2);
  agents_.erase(name);
  Announce();
  AddAgent(name);
  ASSERT_EQ(Take(worker.agent, Body::StopTask).size(), 1u);
  EXPECT_TRUE(Take(worker.agent, Body::Replay).empty());
  Say(worker.agent, Exited(task, true, 25));
  const auto replays = Take(worker.agent, Body::Replay);
  ASSERT_EQ(replays.size(), 1u);
  EXPECT_EQ(replays[0].body.AsReplay()->incarnation, worker.incarnation);
}

// Found by the simulation: the agent registered without the task whose start was on its way to it,
// and kept the slot for it when it came.
TEST_F(CoreTest, TaskThatNobodyKnowsIsStopped) {
  StartRunning();
  const auto [task, worker] = *tasks_.begin();
  tasks_.erase(task);
  AddAgent(worker.agent.substr(2));
  EXPECT_NE(Events().find("is not known to its agent"), std::string::npos);
  EXPECT_TRUE(Take(worker.agent, Body::StopTask).empty());
  control::TaskReadyT ready;
  ready.layout_fingerprint = 77;
  ready.data_fingerprint = 5;
  ready.records = 6400;
  Say(worker.agent, std::move(ready), task);
  const auto stops = Take(worker.agent, Body::StopTask);
  ASSERT_EQ(stops.size(), 1u);
  EXPECT_EQ(stops[0].body.AsStopTask()->task, task);
  EXPECT_TRUE(stops[0].body.AsStopTask()->kill);
}

// Found by the simulation: the open round covered the dead worker as it was without its last
// pushes, and its commit dropped the ring.
TEST_F(CoreTest, RingThatComesBackDuringARoundAbortsIt) {
  StartRunning();
  const auto [task, worker] = *tasks_.begin();
  const std::string name = worker.agent.substr(2);
  agents_.erase(name);
  Announce();
  tasks_.erase(task);
  Progress(20);
  Tick(3000);
  ASSERT_EQ(Take("p-s0", Body::RoundBegin).size(), 1u);
  control::RingInfoT ring;
  ring.job = 1;
  ring.worker = worker.worker;
  ring.incarnation = worker.incarnation;
  ring.generation = 1;
  ring.last_clock = 4;
  AddAgent(name, {ring});
  EXPECT_EQ(Take("p-s0", Body::RoundAbort).size(), 1u);
  EXPECT_EQ(Take(worker.agent, Body::Replay).size(), 1u);
}

// Found by the simulation: with a new leader the agent was back before its former self was seen to
// be gone, and its ring was not looked at.
TEST_F(CoreTest, RingMovesToTheAgentThatOffersIt) {
  StartRunning();
  const auto [task, worker] = *tasks_.begin();
  Say(worker.agent, Exited(task, true, 25));
  ASSERT_EQ(Take(worker.agent, Body::Replay).size(), 1u);
  tasks_.erase(task);
  control::RingInfoT ring;
  ring.job = 1;
  ring.worker = worker.worker;
  ring.incarnation = worker.incarnation;
  ring.generation = 1;
  ring.last_clock = 25;
  AddAgent("a7", {ring});
  EXPECT_EQ(Take("p-a7", Body::Replay).size(), 1u);
  // The former one's end changes nothing.
  agents_.erase(worker.agent.substr(2));
  Announce();
  Tick();
  EXPECT_TRUE(Take("p-a7", Body::Replay).empty());
  EXPECT_EQ(Events().find("are lost"), std::string::npos);
}

TEST_F(CoreTest, RingThatComesBackDuringTheEvaluationIsTooLate) {
  StartRunning();
  const auto [task, worker] = *tasks_.begin();
  const std::string name = worker.agent.substr(2);
  agents_.erase(name);
  Announce();
  tasks_.erase(task);
  TrainAll();
  Drain();
  PlayRound(100);
  ASSERT_EQ(PhaseNow(), "evaluating");
  control::RingInfoT ring;
  ring.job = 1;
  ring.worker = worker.worker;
  ring.incarnation = worker.incarnation;
  ring.generation = 1;
  ring.last_clock = 4;
  AddAgent(name, {ring});
  EXPECT_TRUE(Take(worker.agent, Body::Replay).empty());
  EXPECT_EQ(Take(worker.agent, Body::DropRing).size(), 1u);
}

TEST_F(CoreTest, TaskThatWasGivenUpAndNeverPushedIsForgotten) {
  StartRunning();
  const auto [task, worker] = *tasks_.begin();
  const std::string name = worker.agent.substr(2);
  agents_.erase(name);
  Announce();
  AddAgent(name);
  Say(worker.agent, Exited(task, true, 0));
  EXPECT_TRUE(Take(worker.agent, Body::Replay).empty());
  EXPECT_EQ(Take(worker.agent, Body::DropRing).size(), 1u);
}

// Found by killing every role in turn: the checkpoint holds what the shards had applied of the dead
// worker, but its last pushes had reached nobody yet.
TEST_F(CoreTest, RingThatComesBackAfterACheckpointIsReplayedAllTheSame) {
  StartRunning();
  const auto [task, worker] = *tasks_.begin();
  const std::string name = worker.agent.substr(2);
  agents_.erase(name);
  Announce();
  tasks_.erase(task);
  Progress(20);
  Tick(3000);
  PlayRound(20);
  EXPECT_EQ(Describe()["checkpoints"], 1);
  control::RingInfoT ring;
  ring.job = 1;
  ring.worker = worker.worker;
  ring.incarnation = worker.incarnation;
  ring.generation = 1;
  ring.last_clock = 4;
  AddAgent(name, {ring});
  EXPECT_EQ(Take(worker.agent, Body::Replay).size(), 1u);
  EXPECT_TRUE(Take(worker.agent, Body::DropRing).empty());
}

TEST_F(CoreTest, WhenAllIsLostTheJobGoesBackToItsCheckpoint) {
  StartRunning();
  Progress(20);
  Tick();
  PlayRound(20);
  servers_.clear();
  agents_.clear();
  Announce();
  Tick();
  AddServer("s7");
  AddAgent("a7");
  AddAgent("a8");
  tasks_.clear();
  Tick(100);
  EXPECT_EQ(Describe()["generation"], 1);  // agents with rings may still come back
  // Found by the simulation: a task that is quick to start must not make the job go on without.
  EXPECT_TRUE(Take("p-a7", Body::StartTask).empty());
  EXPECT_TRUE(Take("p-a8", Body::StartTask).empty());
  Tick(11'000);
  EXPECT_EQ(Describe()["generation"], 2);
  Tick();
  ServeStarts();
  ReportShards();
  Tick();
  EXPECT_EQ(PhaseNow(), "running");
  const auto map = Map();
  for (const auto& shard : map.shards) EXPECT_EQ(shard->restore_round, 1u);
}

// What the task of each slot begins with.
std::map<std::uint32_t, std::pair<float, std::uint32_t>> ScalesOf(
    const std::vector<control::MessageT>& starts) {
  std::map<std::uint32_t, std::pair<float, std::uint32_t>> scales;
  for (const auto& message : starts) {
    const auto& start = *message.body.AsTaskStart();
    scales[start.worker] = {start.loss_scale, start.growth_tracker};
  }
  return scales;
}

TEST_F(CoreTest, LossScalesGoBackWithTheJobToItsCheckpoint) {
  StartRunning();
  for (const auto& name : agents_) {
    for (const auto& [slot, scale] : ScalesOf(Take("p-" + name, Body::TaskStart))) {
      EXPECT_EQ(scale.first, 0) << slot;  // as the job file says
    }
  }
  Progress(20);
  Tick();
  loss_scale_ = 1024;
  const auto manifest = checkpoint::FromJson(PlayRound(20));
  ASSERT_TRUE(manifest.ok()) << manifest.error().message;
  ASSERT_EQ(manifest->cuts.size(), 2u);
  for (const auto& cut : manifest->cuts) {
    ASSERT_TRUE(cut.loss_scale.has_value());
    EXPECT_EQ(cut.loss_scale->scale, 1024 + static_cast<float>(cut.worker.value()));
    EXPECT_EQ(cut.loss_scale->growth_tracker, 7u);
  }
  // They go on, and are lost with all that came after the checkpoint; so is the leader.
  for (const auto& [task, worker] : tasks_) {
    control::ProgressT progress;
    progress.clock = 30;
    progress.loss_scale = 64;
    progress.growth_tracker = 3;
    Say(worker.agent, std::move(progress), task);
  }
  servers_.clear();
  agents_.clear();
  Announce();
  Tick();
  AddServer("s7");
  AddAgent("a7");
  AddAgent("a8");
  tasks_.clear();
  Tick(100);
  Tick(11'000);
  ASSERT_EQ(Describe()["generation"], 2);
  Tick();
  ServeStarts();
  std::map<std::uint32_t, std::pair<float, std::uint32_t>> scales;
  for (const auto& name : agents_) scales.merge(ScalesOf(Take("p-" + name, Body::TaskStart)));
  EXPECT_EQ(scales, (std::map<std::uint32_t, std::pair<float, std::uint32_t>>{{0, {1024, 7}},
                                                                              {1, {1025, 7}}}));
}

TEST_F(CoreTest, ATaskThatIsReplacedGoesOnWithTheScaleOfItsSlot) {
  StartRunning();
  Progress(20);
  Tick();
  loss_scale_ = 1024;
  PlayRound(20);
  const auto [task, worker] = *tasks_.begin();
  Take(worker.agent, Body::TaskStart);
  control::ProgressT progress;
  progress.clock = 30;
  progress.loss_scale = 64;
  progress.growth_tracker = 3;
  Say(worker.agent, std::move(progress), task);
  EXPECT_EQ(Describe()["workers"][worker.worker]["loss_scale"], 64);
  Say(worker.agent, Exited(task, true, 30));
  tasks_.erase(task);
  Tick();
  ServeStarts();
  EXPECT_EQ(ScalesOf(Take(worker.agent, Body::TaskStart))[worker.worker],
            std::pair(64.0f, std::uint32_t{3}));
}

TEST_F(CoreTest, ANewLeaderTakesTheScalesOfTheCheckpoint) {
  StartRunning();
  Progress(20);
  Tick();
  loss_scale_ = 0.1f;
  PlayRound(20);
  const auto [task, worker] = *tasks_.begin();
  const JobRecord record = Record();
  Start(2);
  inbox_.clear();
  ASSERT_TRUE(core_->Load({record}, now_).ok());
  Announce();
  Register("s0");
  Register("s1");
  AddAgent("a0");
  AddAgent("a1");
  ReportShards();
  Tick();
  Say(worker.agent, Exited(task, true, 30));
  tasks_.erase(task);
  Tick();
  ServeStarts();
  EXPECT_EQ(ScalesOf(Take(worker.agent, Body::TaskStart))[worker.worker],
            std::pair(0.1f + static_cast<float>(worker.worker), std::uint32_t{7}));
}

TEST_F(CoreTest, WhenAllIsLostButTheRingsComeBackNothingIsLost) {
  StartRunning();
  servers_.clear();
  agents_.clear();
  Announce();
  AddServer("s7");
  for (const auto& [task, worker] : std::map(tasks_)) {
    control::RingInfoT ring;
    ring.job = 1;
    ring.worker = worker.worker;
    ring.incarnation = worker.incarnation;
    ring.generation = 1;
    ring.last_clock = 5;
    const std::string agent = "b" + std::to_string(worker.worker);
    tasks_.erase(task);
    AddAgent(agent, {ring});
  }
  Tick();
  EXPECT_EQ(Describe()["generation"], 1);
  EXPECT_FALSE(Take("p-b0", Body::Replay).empty());
  ServeStarts();
  ReportShards();
  Tick();
  EXPECT_EQ(PhaseNow(), "running");
}

TEST_F(CoreTest, ANewLeaderWhoseClockIsBehindStartsTasksAllTheSame) {
  AddServer("s0");
  AddAgent("a0");
  AddAgent("a1");
  Submit();
  Tick();
  for (const auto& message : Take("p-a0", Body::StartTask)) {
    control::TaskExitedT exited;
    exited.task = message.body.AsStartTask()->task;
    exited.job = 1;
    exited.status = 1;
    Say("p-a0", std::move(exited));  // it is tried again a little later
  }
  const JobRecord record = Record();
  Start(2);
  inbox_.clear();
  now_ -= 900'000;
  ASSERT_TRUE(core_->Load({record}, now_).ok());
  Announce();
  Register("s0");
  AddAgent("a0");
  AddAgent("a1");
  Tick(31'000);
  EXPECT_EQ(Take("p-a0", Body::StartTask).size(), 1u);
  EXPECT_EQ(Describe()["seconds"], 0.0);
}

TEST_F(CoreTest, NewLeaderGoesOnWithWhatZooKeeperHolds) {
  StartRunning();
  Progress(20);
  Tick();
  PlayRound(20);
  Progress(40);
  Tick();  // opens a round, which the take-over aborts
  const JobRecord record = Record();
  Start(2);
  inbox_.clear();
  ASSERT_TRUE(core_->Load({record}, now_).ok());
  Announce();
  Register("s0");
  Register("s1");
  AddAgent("a0");
  AddAgent("a1");
  ReportShards();
  Progress(40);
  Tick();
  EXPECT_EQ(PhaseNow(), "running");
  const auto begun = Take("p-s0", Body::RoundBegin);
  ASSERT_EQ(begun.size(), 1u);
  EXPECT_EQ(begun[0].body.AsRoundBegin()->round, 3u);  // round 2 was aborted by the take-over
  EXPECT_EQ(begun[0].leader_epoch, 2u);
  EXPECT_TRUE(Take("p-a0", Body::StopTask).empty());
}

}  // namespace
}  // namespace ps::coordinator
