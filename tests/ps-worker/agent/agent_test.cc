#include "ps-worker/agent/agent.h"

#include <signal.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/ps-worker/agent/agent_fixture.h"

namespace ps::worker {
namespace {

using control::Body;
using control::Make;

TEST_F(AgentTest, RegistersWithWhatItHas) {
  StartAgent();
  const control::MessageT message = coordinator_->Await(Body::RegisterAgent);
  const control::RegisterAgentT& registration = *message.body.AsRegisterAgent();
  EXPECT_EQ(registration.name, "node-1");
  EXPECT_EQ(registration.procid, "procid-1");
  EXPECT_EQ(registration.slots, 2u);
  EXPECT_TRUE(registration.tasks.empty());
  EXPECT_TRUE(registration.rings.empty());
}

class AgentWithGpusTest : public AgentTest {
 protected:
  void StartWith(const char* gpus) {
    options_.gpus = "on";
    if (gpus != nullptr) ::setenv("DS_FAKE_GPUS", gpus, 1);
    StartAgent();
  }
  // As if on a recorded machine: see tests/support/fake_nvml.
  void StartOn(const char* machine, const char* gpus) {
    ::setenv("DS_FAKE_NVML", (std::string(PS_GPU_MACHINES) + "/" + machine + ".txt").c_str(), 1);
    ::setenv("DS_FAKE_NVML_STATE", state_.c_str(), 1);
    options_.gpu_watch.library = PS_FAKE_NVML;
    options_.gpu_watch.interval = net::Milliseconds(200);
    StartWith(gpus);
  }
  // Starts a task, and returns what it says of itself.
  std::string StartTaskOn(std::vector<std::string> gpus) {
    control::StartTaskT start;
    start.task = kTask;
    start.job = 3;
    start.incarnation = 7;
    start.spec_json = LedgerSpec("ledger");
    start.gpus = std::move(gpus);
    coordinator_->Send(Make(std::move(start)));
    coordinator_->Await(Body::TaskReady);
    control::LogReadT read;
    read.job = 3;
    read.limit = 1000;
    coordinator_->Send(Make(std::move(read)));
    return coordinator_->Await(Body::LogChunk).body.AsLogChunk()->text;
  }
  void TearDown() override {
    agent_.reset();
    for (const char* name : {"DS_FAKE_GPUS", "DS_FAKE_NVML", "DS_FAKE_NVML_STATE"}) {
      ::unsetenv(name);
    }
  }

  test::TempDirectory gpu_directory_{"gpus"};
  const std::string state_ = (gpu_directory_ / "state").string();
};

TEST_F(AgentWithGpusTest, RegistersWithThoseThatItsTasksCanUse) {
  StartWith("2");
  EXPECT_FALSE(agent_->devices_known());
  const control::MessageT message = coordinator_->Await(Body::RegisterAgent);
  const auto& gpus = message.body.AsRegisterAgent()->gpus;
  ASSERT_EQ(gpus.size(), 2u);
  EXPECT_EQ(gpus[1]->uuid, "GPU-1");
}

TEST_F(AgentWithGpusTest, IsANodeWithoutThemIfTheyAreOfNoUse) {
  for (const char* gpus : {"", "none"}) {
    StartWith(gpus);
    const control::MessageT message = coordinator_->Await(Body::RegisterAgent);
    EXPECT_TRUE(message.body.AsRegisterAgent()->gpus.empty());
    agent_.reset();
  }
}

TEST_F(AgentWithGpusTest, ATaskSeesItsOwnOnly) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  const std::string said = StartTaskOn({"GPU-4", "GPU-7"});
  EXPECT_NE(said.find("GPUs GPU-4,GPU-7\n"), std::string::npos) << said;
}

TEST_F(AgentWithGpusTest, TellsHowTheyAreConnectedAndWhatHappensToThem) {
  StartOn("pcie", "4");
  const control::MessageT message = coordinator_->Await(Body::RegisterAgent);
  const control::RegisterAgentT& registration = *message.body.AsRegisterAgent();
  ASSERT_EQ(registration.gpus.size(), 4u);
  EXPECT_EQ(registration.gpu_bandwidth,
            (std::vector<std::uint16_t>{0, 12, 9, 9, 12, 0, 9, 9, 9, 9, 0, 12, 9, 9, 12, 0}));
  EXPECT_TRUE(registration.gpus[0]->measured);
  coordinator_->Send(Make(control::WelcomeT()));
  std::ofstream(state_) << "xid 2 79\n";
  while (true) {
    const control::MessageT report = coordinator_->Await(Body::GpuReport);
    const auto& gpus = report.body.AsGpuReport()->gpus;
    ASSERT_EQ(gpus.size(), 4u);
    if (gpus[2]->trouble.empty()) continue;
    EXPECT_EQ(gpus[2]->trouble, "XID 79");
    EXPECT_EQ(gpus[3]->trouble, "");
    break;
  }
}

TEST_F(AgentWithGpusTest, ATaskRunsNearItsGpu) {
  options_.pci_directory = gpu_directory_.path();
  std::filesystem::create_directories(gpu_directory_ / "0000:12:00.0");
  std::ofstream(gpu_directory_ / "0000:12:00.0" / "local_cpulist") << "0\n";
  StartOn("pcie", "4");
  coordinator_->Await(Body::RegisterAgent);
  const std::string said = StartTaskOn({"GPU-2"});
  EXPECT_NE(said.find("CPUs 1\n"), std::string::npos) << said;
}

TEST_F(AgentTest, CarriesMessagesBothWaysUnderTheTasksNumber) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendStart();
  control::MessageT ready = coordinator_->Await(Body::TaskReady);
  EXPECT_EQ(ready.task, kTask);
  EXPECT_EQ(ready.body.AsTaskReady()->records, LedgerSpec("ledger").size());
  SendTaskStart();
  const control::MessageT progress = coordinator_->Await(Body::Progress);
  EXPECT_EQ(progress.task, kTask);
  EXPECT_EQ(coordinator_->Await(Body::LeaseRequest).task, kTask);
  coordinator_->Send(Make(control::DrainT(), kTask));
  EXPECT_EQ(coordinator_->Await(Body::Drained).task, kTask);
  EXPECT_EQ(agent_->running_tasks(), 1u);
}

TEST_F(AgentTest, ATaskCannotSpeakForTheAgent) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendStart();
  coordinator_->Await(Body::TaskReady);
  SendTaskStart();
  coordinator_->Await(Body::LeaseRequest);
  coordinator_->Send(Make(control::DrainT(), kTask));
  Until([&] {
    const std::vector<Body> kinds = coordinator_->Kinds();
    return !kinds.empty() && kinds.back() == Body::Drained;
  });
  for (const Body kind : coordinator_->Kinds()) EXPECT_NE(kind, Body::TaskExited);
}

TEST_F(AgentTest, TheEndOfATaskIsToldWithItsLogAndItsRing) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendStart();
  coordinator_->Await(Body::TaskReady);
  SendTaskStart();
  coordinator_->Await(Body::LeaseRequest);
  SendEvaluate(3);
  const control::MessageT failed = coordinator_->Await(Body::TaskFailed);
  EXPECT_TRUE(failed.body.AsTaskFailed()->permanent);
  const control::MessageT message = coordinator_->Await(Body::TaskExited);
  const control::TaskExitedT& exited = *message.body.AsTaskExited();
  EXPECT_EQ(exited.task, kTask);
  EXPECT_EQ(exited.status, 3);
  EXPECT_EQ(exited.message, "threads 2\nends with 3");
  ASSERT_NE(exited.ring, nullptr);
  EXPECT_EQ(exited.ring->last_clock, 103u);
  EXPECT_EQ(exited.ring->lease_id, 77u);
  EXPECT_EQ(exited.ring->lease_done, 30u);
  EXPECT_EQ(exited.ring->generation, 1u);
  EXPECT_EQ(agent_->running_tasks(), 0u);
  EXPECT_TRUE(std::filesystem::exists(RingPath()));
  EXPECT_TRUE(std::filesystem::is_empty(directory_ / "state" / "tasks"));
}

TEST_F(AgentTest, AKilledTaskIsToldByItsSignal) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  const control::MessageT message = RunAndKillTask();
  EXPECT_EQ(message.body.AsTaskExited()->status, -SIGKILL);
  EXPECT_EQ(message.body.AsTaskExited()->ring->last_clock, 103u);
}

TEST_F(AgentTest, ATaskThatNeverPushedHasAnEmptyRingAndNoFile) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendStart();
  coordinator_->Await(Body::TaskReady);
  SendEvaluate(5);
  const control::MessageT message = coordinator_->Await(Body::TaskExited);
  ASSERT_NE(message.body.AsTaskExited()->ring, nullptr);
  EXPECT_EQ(message.body.AsTaskExited()->ring->last_clock, 0u);
  EXPECT_EQ(message.body.AsTaskExited()->ring->lease_id, 0u);
  EXPECT_FALSE(std::filesystem::exists(RingPath()));
}

TEST_F(AgentTest, AStoppedTaskEndsByItself) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendStart();
  coordinator_->Await(Body::TaskReady);
  control::StopTaskT stop;
  stop.task = kTask;
  stop.reason = "test";
  coordinator_->Send(Make(std::move(stop)));
  EXPECT_EQ(coordinator_->Await(Body::TaskExited).body.AsTaskExited()->status, 0);
}

TEST_F(AgentTest, ATaskThatDoesNotStopIsKilled) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendStart();
  coordinator_->Await(Body::TaskReady);
  coordinator_->Send(Make(control::RoundBeginT(), kTask));
  control::StopTaskT stop;
  stop.task = kTask;
  coordinator_->Send(Make(std::move(stop)));
  EXPECT_EQ(coordinator_->Await(Body::TaskExited).body.AsTaskExited()->status, -SIGKILL);
}

TEST_F(AgentTest, AKillIsNotAskedFor) {
  options_.task.stop_grace = net::Milliseconds(60'000);
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendStart();
  coordinator_->Await(Body::TaskReady);
  coordinator_->Send(Make(control::RoundBeginT(), kTask));
  control::StopTaskT stop;
  stop.task = kTask;
  stop.kill = true;
  coordinator_->Send(Make(std::move(stop)));
  EXPECT_EQ(coordinator_->Await(Body::TaskExited).body.AsTaskExited()->status, -SIGKILL);
}

TEST_F(AgentTest, MoreTasksThanSlotsAreRefused) {
  options_.slots = 1;
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendStart(7);
  coordinator_->Await(Body::TaskReady);
  SendStart(8, 1);
  const control::MessageT message = coordinator_->Await(Body::TaskExited);
  EXPECT_EQ(message.body.AsTaskExited()->incarnation, 8u);
  EXPECT_EQ(message.body.AsTaskExited()->status, 75);
  EXPECT_NE(message.body.AsTaskExited()->message.find("no free slot"), std::string::npos);
  EXPECT_EQ(agent_->running_tasks(), 1u);
}

TEST_F(AgentTest, AStoppingTaskGivesItsSlotToTheNext) {
  options_.slots = 1;
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendStart(7);
  coordinator_->Await(Body::TaskReady);
  control::StopTaskT stop;
  stop.task = kTask;
  stop.kill = true;
  coordinator_->Send(Make(std::move(stop)));
  SendStart(8, 1);
  EXPECT_EQ(coordinator_->Await(Body::TaskReady).task, (std::uint64_t{3} << 32) | 8);
}

TEST_F(AgentTest, AProgramThatCannotBeStartedIsATaskThatExited) {
  options_.task_binary = "/nonexistent/ps-task";
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendStart();
  const control::MessageT message = coordinator_->Await(Body::TaskExited);
  EXPECT_EQ(message.body.AsTaskExited()->status, 71);
  EXPECT_NE(message.body.AsTaskExited()->message.find("/nonexistent/ps-task"), std::string::npos);
}

TEST_F(AgentTest, AJobThatCannotBeReadIsNotStarted) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  control::StartTaskT start;
  start.task = kTask;
  start.job = 3;
  start.incarnation = 7;
  start.spec_json = "{\"name\": 5}";
  coordinator_->Send(Make(std::move(start)));
  EXPECT_EQ(coordinator_->Await(Body::TaskExited).body.AsTaskExited()->status, 65);
}

TEST_F(AgentTest, WhatMattersIsSentAgainToTheNextLeader) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendStart();
  coordinator_->Await(Body::TaskReady);
  SendTaskStart();
  coordinator_->Await(Body::LeaseRequest);
  coordinator_->Send(Make(control::DrainT(), kTask));
  coordinator_->Await(Body::Drained);
  const auto next = std::make_unique<FakeCoordinator>(loop_, context_, 2);
  agent_->SetLeader(next->endpoint());
  const control::MessageT message = next->Await(Body::RegisterAgent);
  ASSERT_EQ(message.body.AsRegisterAgent()->tasks.size(), 1u);
  EXPECT_EQ(message.body.AsRegisterAgent()->tasks[0]->task, kTask);
  EXPECT_EQ(next->Await(Body::LeaseRequest).task, kTask);
  EXPECT_EQ(next->Await(Body::Drained).task, kTask);
  for (const Body kind : next->Kinds()) EXPECT_NE(kind, Body::TaskReady) << "it was answered";
}

TEST_F(AgentTest, AnEndWithoutACoordinatorIsToldAfterTheNextRegistration) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendStart();
  coordinator_->Await(Body::TaskReady);
  SendTaskStart();
  coordinator_->Await(Body::LeaseRequest);
  const pid_t pid = PidOfTask();
  agent_->SetLeader("");
  ::kill(pid, SIGKILL);
  ASSERT_TRUE(Until([&] { return agent_->running_tasks() == 0; }));
  const auto next = std::make_unique<FakeCoordinator>(loop_, context_, 2);
  agent_->SetLeader(next->endpoint());
  const control::MessageT message = next->Await(Body::RegisterAgent);
  const auto& registration = *message.body.AsRegisterAgent();
  ASSERT_EQ(registration.tasks.size(), 1u) << "its end was not told yet";
  EXPECT_EQ(registration.tasks[0]->task, kTask);
  ASSERT_EQ(registration.rings.size(), 1u);
  EXPECT_EQ(next->Await(Body::TaskExited).body.AsTaskExited()->status, -SIGKILL);
}

TEST_F(AgentTest, MessagesOfAFormerLeaderAreIgnored) {
  const auto next = std::make_unique<FakeCoordinator>(loop_, context_, 2);
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  agent_->SetLeader(next->endpoint());
  next->Await(Body::RegisterAgent);
  ASSERT_TRUE(Until([&] { return agent_->registered(); }));
  agent_->SetLeader(coordinator_->endpoint());
  coordinator_->Await(Body::RegisterAgent);
  SendStart();
  loop_.RunUntil([] { return false; }, net::Milliseconds(300));
  EXPECT_EQ(agent_->running_tasks(), 0u);
}

TEST_F(AgentTest, AnAgentThatComesBackOffersTheRings) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  RunAndKillTask();
  agent_.reset();
  options_.procid = "procid-2";
  StartAgent();
  const control::MessageT message = coordinator_->Await(Body::RegisterAgent);
  const auto& registration = *message.body.AsRegisterAgent();
  EXPECT_EQ(registration.procid, "procid-2");
  ASSERT_EQ(registration.rings.size(), 1u);
  EXPECT_EQ(registration.rings[0]->job, 3u);
  EXPECT_EQ(registration.rings[0]->incarnation, 7u);
  EXPECT_EQ(registration.rings[0]->last_clock, 103u);
}

TEST_F(AgentTest, TasksDieWithTheAgent) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendStart();
  coordinator_->Await(Body::TaskReady);
  const pid_t pid = PidOfTask();
  EXPECT_EQ(::kill(pid, 0), 0);
  agent_.reset();
  EXPECT_NE(::kill(pid, 0), 0);
}

TEST_F(AgentTest, ADroppedRingIsGone) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  RunAndKillTask();
  ASSERT_TRUE(std::filesystem::exists(RingPath()));
  control::DropRingT drop;
  drop.job = 3;
  drop.incarnation = 7;
  coordinator_->Send(Make(std::move(drop)));
  EXPECT_TRUE(Until([&] { return !std::filesystem::exists(RingPath()); }));
}

TEST_F(AgentTest, TheRingOfARunningTaskIsDroppedAfterItsEnd) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendStart();
  coordinator_->Await(Body::TaskReady);
  SendTaskStart();
  coordinator_->Await(Body::LeaseRequest);
  control::DropRingT drop;
  drop.job = 3;
  drop.incarnation = 7;
  coordinator_->Send(Make(std::move(drop)));
  coordinator_->Send(Make(control::DrainT(), kTask));
  coordinator_->Await(Body::Drained);
  EXPECT_TRUE(std::filesystem::exists(RingPath()));
  SendEvaluate(5);
  coordinator_->Await(Body::TaskExited);
  EXPECT_TRUE(Until([&] { return !std::filesystem::exists(RingPath()); }));
}

TEST_F(AgentTest, ADroppedJobLosesItsTasksAndRings) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  RunAndKillTask();
  SendStart(8);
  coordinator_->Await(Body::TaskReady);
  control::JobDropT drop;
  drop.job = 3;
  coordinator_->Send(Make(std::move(drop)));
  EXPECT_EQ(coordinator_->Await(Body::TaskExited).body.AsTaskExited()->incarnation, 8u);
  EXPECT_TRUE(std::filesystem::is_empty(directory_ / "rings"));
}

TEST_F(AgentTest, APreflightIsAnsweredByTheTaskProgram) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"says-yes", ""}, {"says-no", "the labels do not fit"}, {"says-nothing", "the model file"}};
  std::uint64_t request = 50;
  for (const auto& one : cases) {
    control::PreflightT preflight;
    preflight.request = ++request;
    preflight.spec_json = LedgerSpec(one.first);
    coordinator_->Send(Make(std::move(preflight)));
    const control::MessageT message = coordinator_->Await(Body::PreflightResult);
    const auto& result = *message.body.AsPreflightResult();
    EXPECT_EQ(result.request, request);
    EXPECT_EQ(result.ok, one.second.empty()) << result.error;
    EXPECT_NE(result.error.find(one.second), std::string::npos) << result.error;
    if (result.ok) {
      EXPECT_EQ(result.data->records, 42u);
    }
  }
  EXPECT_TRUE(std::filesystem::is_empty(directory_ / "state" / "tasks"));
}

TEST_F(AgentTest, APreflightThatTakesTooLongIsEnded) {
  options_.preflight_deadline = net::Milliseconds(300);
  options_.preflights_max = 1;
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  control::PreflightT preflight;
  preflight.request = 1;
  preflight.spec_json = LedgerSpec("says-never");
  coordinator_->Send(Make(control::PreflightT(preflight)));
  preflight.request = 2;
  coordinator_->Send(Make(std::move(preflight)));
  const control::MessageT busy = coordinator_->Await(Body::PreflightResult);
  EXPECT_EQ(busy.body.AsPreflightResult()->request, 2u);
  EXPECT_NE(busy.body.AsPreflightResult()->error.find("try again"), std::string::npos);
  const control::MessageT late = coordinator_->Await(Body::PreflightResult);
  EXPECT_EQ(late.body.AsPreflightResult()->request, 1u);
  EXPECT_NE(late.body.AsPreflightResult()->error.find("could not be checked within"),
            std::string::npos);
}

TEST_F(AgentTest, TheLogOfAWorkerIsRead) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendStart();
  coordinator_->Await(Body::TaskReady);
  SendEvaluate(5);
  coordinator_->Await(Body::TaskExited);
  control::LogReadT read;
  read.request = 9;
  read.job = 3;
  coordinator_->Send(Make(control::LogReadT(read)));
  const control::MessageT message = coordinator_->Await(Body::LogChunk);
  const auto& chunk = *message.body.AsLogChunk();
  EXPECT_EQ(chunk.request, 9u);
  EXPECT_EQ(chunk.text, "--- job 3 worker 0 incarnation 7\nthreads 2\nends with 5\n");
  EXPECT_TRUE(chunk.end);
  read.worker = 4;
  coordinator_->Send(Make(std::move(read)));
  EXPECT_NE(coordinator_->Await(Body::LogChunk).body.AsLogChunk()->error.find("has no log"),
            std::string::npos);
}

TEST_F(AgentTest, StopEndsAllTasksThenTells) {
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendStart(7);
  coordinator_->Await(Body::TaskReady);
  SendStart(8, 1);
  coordinator_->Await(Body::TaskReady);
  bool stopped = false;
  agent_->Stop("test", [&] { stopped = true; });
  EXPECT_FALSE(stopped);
  coordinator_->Await(Body::TaskExited);
  coordinator_->Await(Body::TaskExited);
  EXPECT_TRUE(Until([&] { return stopped; }));
  SendStart(9);
  EXPECT_EQ(coordinator_->Await(Body::TaskExited).body.AsTaskExited()->message, "the agent stops");
}

TEST_F(AgentTest, TwoAgentsCannotShareAStateDirectory) {
  StartAgent();
  const Result<std::unique_ptr<Agent>> second = Agent::Create(loop_, context_, options_);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, ErrorCode::kConflict);
}

}  // namespace
}  // namespace ps::worker
