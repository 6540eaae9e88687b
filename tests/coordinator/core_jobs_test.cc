// A job's life: submission, tasks, leases, events, its end.
#include <map>
#include <set>
#include <string>
#include <vector>

#include "common/error_id.h"
#include "tests/coordinator/core_fixture.h"

namespace ps::coordinator {
namespace {

TEST_F(CoreTest, SubmissionWithoutAnAgentSaysWhatIsMissing) {
  core_->Submit(9, {SpecJson(), false}, now_);
  Flush();
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_EQ(answers_[0].body.error().code, ErrorCode::kUnreachable);
  EXPECT_NE(answers_[0].body.error().message.find("no ps-worker agent"), std::string::npos);
  EXPECT_TRUE(nodes_.empty());
}

TEST_F(CoreTest, SubmissionThatFailsItsCheckCreatesNothing) {
  AddAgent("a0");
  core_->Submit(9, {SpecJson(), false}, now_);
  Flush();
  const auto asked = Take("p-a0", Body::Preflight);
  ASSERT_EQ(asked.size(), 1u);
  control::PreflightResultT bad;
  bad.request = asked[0].body.AsPreflight()->request;
  bad.error = "no such file: x";
  bad.error_id = 301;
  Say("p-a0", std::move(bad));
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_EQ(answers_[0].body.error().code, ErrorCode::kInvalid);
  EXPECT_EQ(answers_[0].body.error().message, "no such file: x");
  EXPECT_EQ(answers_[0].body.error().id, ErrorId::kDataFileMissing);
  EXPECT_TRUE(nodes_.empty());
}

TEST_F(CoreTest, CheckThatNeverEndsIsAnsweredInTheEnd) {
  AddAgent("a0");
  core_->Submit(9, {SpecJson(), false}, now_);
  Flush();
  Tick(91'000);
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_EQ(answers_[0].body.error().code, ErrorCode::kTimeout);
}

TEST_F(CoreTest, DryRunCreatesNothing) {
  AddAgent("a0");
  core_->Submit(9, {SpecJson(), true}, now_);
  Flush();
  const auto asked = Take("p-a0", Body::Preflight);
  Say("p-a0", GoodPreflight(asked[0].body.AsPreflight()->request));
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_EQ((*answers_[0].body)["records"], 6400);
  EXPECT_EQ((*answers_[0].body)["shards"], 4);
  EXPECT_TRUE(nodes_.empty());
}

TEST_F(CoreTest, QueuedJobNamesWhatItWaitsFor) {
  AddAgent("a0");
  Submit();
  Tick();
  EXPECT_EQ(PhaseNow(), "queued");
  const std::string reason = Describe()["reason"];
  EXPECT_NE(reason.find("ps-server"), std::string::npos) << reason;
  EXPECT_NE(reason.find("2 free worker slots"), std::string::npos) << reason;
}

TEST_F(CoreTest, AJobWithALabelIsCheckedAndRunByAgentsThatHaveItAlone) {
  AddServer("s0");
  AddAgent("a0");
  AddAgent("a1", {}, "bench");
  AddAgent("a2", {}, "other");
  auto spec = ParseJobJson(SpecJson());
  spec->training.workers = 1;
  spec->resources.label = "bench";
  spec->resources.max_restarts = 0;
  core_->Submit(1, {ResolvedJson(*spec), false}, now_);
  Flush();
  EXPECT_TRUE(Take("p-a0", Body::Preflight).empty());
  EXPECT_TRUE(Take("p-a2", Body::Preflight).empty());
  const auto checks = Take("p-a1", Body::Preflight);
  ASSERT_EQ(checks.size(), 1u);
  Say("p-a1", GoodPreflight(checks[0].body.AsPreflight()->request));
  Tick();
  EXPECT_TRUE(Take("p-a0", Body::StartTask).empty());
  EXPECT_TRUE(Take("p-a2", Body::StartTask).empty());
  EXPECT_EQ(Take("p-a1", Body::StartTask).size(), 1u);
  EXPECT_EQ(PhaseNow(), "placing");
  agents_.erase("a1");
  Announce();
  EXPECT_EQ(PhaseNow(), "failed") << "whoever measured is gone, and nobody else may go on";
}

TEST_F(CoreTest, AJobWithoutALabelLeavesAgentsWithOneAlone) {
  AddServer("s0");
  AddAgent("a0", {}, "bench");
  core_->Submit(9, {SpecJson(), false}, now_);
  Flush();
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_EQ(answers_[0].body.error().code, ErrorCode::kUnreachable);
  answers_.clear();
  AddAgent("a1");
  Submit();
  Tick();
  EXPECT_EQ(PhaseNow(), "queued");
  const std::string reason = Describe()["reason"];
  EXPECT_NE(reason.find("2 free worker slots, 1 free now"), std::string::npos) << reason;
  EXPECT_TRUE(Take("p-a0", Body::StartTask).empty());
}

TEST_F(CoreTest, AQueuedJobNamesTheLabelItWaitsFor) {
  AddServer("s0");
  AddAgent("a0", {}, "bench");
  auto spec = ParseJobJson(SpecJson());
  spec->resources.label = "bench";
  core_->Submit(1, {ResolvedJson(*spec), false}, now_);
  Flush();
  for (const auto& message : Take("p-a0", Body::Preflight)) {
    Say("p-a0", GoodPreflight(message.body.AsPreflight()->request));
  }
  Tick();
  const std::string reason = Describe()["reason"];
  EXPECT_NE(reason.find("with the label `bench`, 1 free now"), std::string::npos) << reason;
}

constexpr char kGpuJob[] = R"(
apiVersion: ds/v1
kind: TrainJob
name: count
model: {type: mlp, layers: [2, 2]}
data: {train: {format: csv, file: /t.csv, label: y}}
training: {workers: 2, batch_size: 32, epochs: 1, metric: none}
)";

class GpuJobTest : public CoreTest {
 protected:
  GpuJobTest() {
    spec_ = kGpuJob;
    spec_more_ = "resources: {replicas: 0, gpus: 1}\n";
  }
  // {task: uuids} of the tasks that an agent has to start.
  std::map<std::uint64_t, std::vector<std::string>> Starts(const std::string& agent) {
    std::map<std::uint64_t, std::vector<std::string>> starts;
    for (const auto& message : Take("p-" + agent, Body::StartTask)) {
      const auto& start = *message.body.AsStartTask();
      starts[start.task] = start.gpus;
    }
    return starts;
  }
  nlohmann::json Node(const std::string& name) {
    const nlohmann::json body = core_->DescribeNodes();
    for (const auto& node : body["nodes"]) {
      if (node["name"] == name) return node;
    }
    return {};
  }
};

TEST_F(GpuJobTest, EachTaskHasAGpuThatNoOtherHas) {
  gpus_["a1"] = {"g0", "g1"};
  AddServer("s0");
  AddAgent("a0");
  AddAgent("a1");
  Submit();
  Tick();
  EXPECT_TRUE(Starts("a0").empty());
  auto starts = Starts("a1");
  ASSERT_EQ(starts.size(), 2u);
  EXPECT_EQ(starts.begin()->second, std::vector<std::string>{"g0"});
  EXPECT_EQ(starts.rbegin()->second, std::vector<std::string>{"g1"});
  EXPECT_EQ(Node("a1")["free_gpus"], 0);
  EXPECT_EQ(Node("a1")["gpus"][1]["uuid"], "g1");
  EXPECT_EQ(Describe()["workers"][0]["gpus"], 1);

  // Who comes next waits, and says for what; a job that needs none does not.
  auto spec = ParseJobJson(SpecJson(std::string(kGpuJob) + spec_more_));
  spec->name = "next";
  answers_.clear();
  core_->Submit(2, {ResolvedJson(*spec), false}, now_);
  Flush();
  for (const auto& message : Take("p-a1", Body::Preflight)) {
    Say("p-a1", GoodPreflight(message.body.AsPreflight()->request));
  }
  Tick();
  const auto next = core_->DescribeJob("next")->at("job");
  EXPECT_EQ(next["phase"], "queued");
  EXPECT_EQ(next["reason"], "waits for 2 free worker slots with a GPU each, 0 free now");

  // The task of one ends: its successor has the GPU that is free then.
  Say("p-a1", Exited(starts.rbegin()->first, /*with_ring=*/false));
  Tick(60'000);
  starts = Starts("a1");
  ASSERT_EQ(starts.size(), 1u);
  EXPECT_EQ(starts.begin()->second, std::vector<std::string>{"g1"});

  // The next leader knows whose they are.
  for (const std::uint32_t worker : {0u, 1u}) {
    const auto incarnation = Describe()["workers"][worker]["incarnation"].get<std::uint32_t>();
    tasks_[std::uint64_t{1} << 32 | incarnation] = {worker, incarnation, "p-a1"};
  }
  const auto record = Record();
  Start(2);
  ASSERT_TRUE(core_->Load({record}, now_).ok());
  Announce();
  Register("s0");
  AddAgent("a0");
  AddAgent("a1");
  Tick();
  EXPECT_EQ(Node("a1")["free_gpus"], 0);
  EXPECT_TRUE(Starts("a1").empty());
}

TEST_F(GpuJobTest, WithoutAGpuAnywhereItSaysSo) {
  AddServer("s0");
  AddAgent("a0");
  AddAgent("a1");
  Submit();
  Tick();
  EXPECT_EQ(PhaseNow(), "queued");
  EXPECT_EQ(Describe()["reason"],
            "waits for 2 free worker slots with a GPU each (no agent that takes the job's tasks "
            "has a GPU), 0 free now");
  EXPECT_TRUE(Starts("a0").empty());
  gpus_["a2"] = {"g0", "g1"};
  AddAgent("a2");
  Tick();
  EXPECT_EQ(Starts("a2").size(), 2u);
}

TEST_F(GpuJobTest, SeveralGpusOfATaskAreThoseBestConnected) {
  spec_more_ = "resources: {replicas: 0, gpus: 2}\n";
  // Of a0 the links are slow; on a1 0 and 2, 1 and 3 belong together.
  gpus_["a0"] = {"s0", "s1", "s2", "s3"};
  gpu_bandwidth_["a0"] = std::vector<std::uint16_t>(16, 6);
  gpus_["a1"] = {"g0", "g1", "g2", "g3"};
  gpu_bandwidth_["a1"] = {0, 6, 12, 6, 6, 0, 6, 12, 12, 6, 0, 6, 6, 12, 6, 0};
  AddServer("s0");
  AddAgent("a0");
  AddAgent("a1");
  Submit();
  Tick();
  const auto starts = Starts("a1");
  ASSERT_EQ(starts.size(), 2u);
  EXPECT_EQ(starts.begin()->second, (std::vector<std::string>{"g0", "g2"}));
  EXPECT_EQ(starts.rbegin()->second, (std::vector<std::string>{"g1", "g3"}));
  EXPECT_EQ(Node("a1")["free_gpus"], 0);
  EXPECT_EQ(Node("a0")["free_gpus"], 4);
}

TEST_F(GpuJobTest, ANodeWithTooFewForATaskIsNoPlaceForIt) {
  spec_more_ = "resources: {replicas: 0, gpus: 3}\n";
  gpus_["a0"] = {"g0", "g1"};
  AddServer("s0");
  AddAgent("a0");
  Submit();
  Tick();
  EXPECT_EQ(Describe()["reason"],
            "waits for 2 free worker slots with 3 GPUs each (no agent that takes the job's tasks "
            "has 3 GPUs), 0 free now");
}

TEST_F(GpuJobTest, ATaskLeavesAGpuThatIsSick) {
  gpus_["a1"] = {"g0", "g1", "g2"};
  AddServer("s0");
  AddAgent("a1");
  Submit();
  Tick();
  const auto starts = Starts("a1");
  ASSERT_EQ(starts.size(), 2u);
  control::GpuReportT report;
  for (const char* uuid : {"g1", "g0", "unknown"}) {
    auto gpu = std::make_unique<control::GpuInfoT>();
    gpu->uuid = uuid;
    gpu->trouble = uuid == std::string("g1") ? "XID 79" : "";
    gpu->measured = true;
    gpu->utilization = 40;
    report.gpus.push_back(std::move(gpu));
  }
  Say("p-a1", report);
  Say("p-a1", report);  // the first message may have been lost
  const auto stops = Take("p-a1", Body::StopTask);
  ASSERT_EQ(stops.size(), 2u);
  EXPECT_EQ(stops[1].body.AsStopTask()->task, stops[0].body.AsStopTask()->task);
  EXPECT_EQ(stops[0].body.AsStopTask()->task, starts.rbegin()->first);
  EXPECT_TRUE(stops[0].body.AsStopTask()->kill);
  EXPECT_EQ(Node("a1")["gpus"][1]["trouble"], "XID 79");
  EXPECT_EQ(Node("a1")["gpus"][0]["utilization"], 0.4);
  EXPECT_EQ(Node("a1")["gpus"].size(), 3u);
  // Its successor has another; no restart is counted, as it is not to blame.
  Say("p-a1", Exited(starts.rbegin()->first, /*with_ring=*/false));
  Tick(60'000);
  const auto next = Starts("a1");
  ASSERT_EQ(next.size(), 1u);
  EXPECT_EQ(next.begin()->second, std::vector<std::string>{"g2"});
  EXPECT_EQ(Describe()["restarts"], 0);
  EXPECT_EQ(Node("a1")["free_gpus"], 0);
}

TEST_F(GpuJobTest, OneThatIsSickFromTheBeginningIsNotUsed) {
  gpus_["a1"] = {"g0", "g1", "g2"};
  gpu_trouble_["g0"] = "XID 48";
  AddServer("s0");
  AddAgent("a1");
  Submit();
  Tick();
  const auto starts = Starts("a1");
  ASSERT_EQ(starts.size(), 2u);
  EXPECT_EQ(starts.begin()->second, std::vector<std::string>{"g1"});
  EXPECT_EQ(starts.rbegin()->second, std::vector<std::string>{"g2"});
}

TEST_F(CoreTest, ASubmissionThatIsSentAgainIsTheSameJob) {
  AddServer("s0");
  AddAgent("a0");
  const auto submit = [&](Ticket ticket, const std::string& owner, const std::string& request,
                          const std::string& spec) {
    core_->Submit(ticket, {spec, false, {owner, request, 77}}, now_);
    Flush();
    for (const auto& message : Take("p-a0", Body::Preflight)) {
      Say("p-a0", GoodPreflight(message.body.AsPreflight()->request));
    }
  };
  // While an agent looks at it the newest one gets the answer.
  core_->Submit(1, {SpecJson(), false, {"anna", "r1", 77}}, now_);
  submit(2, "anna", "r1", SpecJson());
  ASSERT_EQ(answers_.size(), 2u);
  EXPECT_EQ(answers_[0].ticket, 1u);
  EXPECT_EQ(answers_[0].body.error().code, ErrorCode::kUnreachable);
  EXPECT_EQ(answers_[1].ticket, 2u);
  EXPECT_TRUE(answers_[1].created);
  EXPECT_EQ((*answers_[1].body)["job"]["owner"], "anna");
  const auto id = (*answers_[1].body)["job"]["id"];
  // The next leader knows it as well.
  Start(2);
  ASSERT_TRUE(core_->Load({Record()}, now_).ok());
  Announce();
  Register("s0");
  AddAgent("a0");
  answers_.clear();
  submit(3, "anna", "r1", SpecJson());
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_FALSE(answers_[0].created);
  EXPECT_EQ((*answers_[0].body)["job"]["id"], id);
  EXPECT_EQ(core_->OwnerOf("1"), "anna");
  // Of somebody else, or of no name, it is another one.
  answers_.clear();
  submit(4, "bert", "r1", SpecJson());
  submit(5, "anna", "", SpecJson());
  submit(6, "anna", "", SpecJson());
  ASSERT_EQ(answers_.size(), 3u);
  for (const Answer& answer : answers_) EXPECT_TRUE(answer.created);
  EXPECT_EQ(core_->DescribeJobs()["jobs"].size(), 4u);
  answers_.clear();
  auto other = ParseJobJson(SpecJson());
  other->name = "another";
  submit(7, "anna", "r1", ResolvedJson(*other));
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_EQ(answers_[0].body.error().code, ErrorCode::kConflict);
}

TEST_F(CoreTest, TheTokenOfAJobGoesToThoseWhoTakePartAndNowhereElse) {
  AddServer("s0");
  AddAgent("a0");
  AddAgent("a1");
  constexpr std::uint64_t kToken = 7777777777777777777U;
  core_->Submit(1, {SpecJson(), false, {"anna", "r1", kToken}}, now_);
  Flush();
  for (const auto& message : Take("p-a0", Body::Preflight)) {
    Say("p-a0", GoodPreflight(message.body.AsPreflight()->request));
  }
  Tick();
  const auto starts = Take("p-s0", Body::JobStart);
  ASSERT_EQ(starts.size(), 1u);
  EXPECT_EQ(starts[0].body.AsJobStart()->token, kToken);
  const std::string text = std::to_string(kToken);
  for (const auto& json : {core_->DescribeJob("1").value(), core_->DescribeJobs(),
                           core_->DescribeEvents("1", 0).value(), core_->DescribeNodes()}) {
    EXPECT_EQ(json.dump().find(text), std::string::npos);
  }
}

TEST_F(CoreTest, JobStartsOnceServersAndWorkersAreThere) {
  StartRunning();
  for (const auto& [task, worker] : tasks_) {
    const auto starts = Take(worker.agent, Body::TaskStart);
    ASSERT_EQ(starts.size(), 1u);
    const auto& start = *starts[0].body.AsTaskStart();
    EXPECT_EQ(start.first_clock, 0u);
    EXPECT_EQ(start.start->live->workers.size(), 2u);
    EXPECT_EQ(start.start->map->shards.size(), 4u);
  }
  EXPECT_EQ(Take("p-s0", Body::JobStart).size(), 1u);
}

TEST_F(CoreTest, TaskWithAnotherModelFailsTheJob) {
  AddServer("s0");
  AddAgent("a0");
  AddAgent("a1");
  Submit();
  Tick();
  const auto starts = Take("p-a0", Body::StartTask);
  control::TaskReadyT ready;
  ready.layout_fingerprint = 78;
  Say("p-a0", std::move(ready), starts.at(0).body.AsStartTask()->task);
  EXPECT_EQ(PhaseNow(), "failed");
  EXPECT_NE(Describe()["reason"].get<std::string>().find("another model"), std::string::npos);
}

TEST_F(CoreTest, LeasesAreOfWholePushes) {
  spec_ = kLocalSteps;
  StartRunning();
  std::uint64_t leases = 0;
  for (const auto& [task, worker] : tasks_) {
    Say(worker.agent, control::LeaseRequestT{}, task);
    for (const auto& grant : Take(worker.agent, Body::LeaseGrant)) {
      for (const auto& lease : grant.body.AsLeaseGrant()->leases) {
        ++leases;
        EXPECT_EQ(lease->end - lease->begin, 320u) << "two pushes of five batches of 32";
      }
    }
  }
  EXPECT_EQ(leases, 4u);
}

// One worker is three times as fast as the other: their pushes become so, and what is granted
// before and after is trained once.
TEST_F(CoreTest, BatchesFollowTheSpeedsOfTheWorkersAndEveryRecordIsTrainedOnce) {
  static const std::string spec = [] {
    std::string text = kSpec;
    const std::string batch = "batch_size: 32";
    return text.replace(text.find(batch), batch.size(), batch + ", batch_by_speed: true");
  }();
  spec_ = spec.c_str();
  StartRunning();
  std::vector<int> trained(6400);
  std::map<std::uint64_t, control::ProgressT> progress;      // by task
  std::map<std::uint32_t, std::set<std::uint32_t>> records;  // of pushes, by worker
  std::uint64_t left = 6400;
  for (int turn = 0; turn < 1000 && left > 0; ++turn) {
    for (const auto& [task, worker] : tasks_) {
      Say(worker.agent, control::LeaseRequestT{}, task);
      for (const auto& grant : Take(worker.agent, Body::LeaseGrant)) {
        control::LeaseProgressT done;
        for (const auto& lease : grant.body.AsLeaseGrant()->leases) {
          records[worker.worker].insert(lease->push_records);
          done.leases.push_back(control::ClonePtr(*lease));
          done.leases.back()->done = lease->end - lease->begin;
          for (std::uint64_t at = lease->begin; at < lease->end; ++at) ++trained[at];
          left -= lease->end - lease->begin;
          progress[task].samples += lease->end - lease->begin;
          progress[task].compute_ms += (lease->end - lease->begin) * (worker.worker == 0 ? 30 : 10);
        }
        Say(worker.agent, std::move(done), task);
      }
      Say(worker.agent, control::ProgressT(progress[task]), task);
    }
    Tick();
  }
  EXPECT_EQ(trained, std::vector<int>(6400, 1));
  EXPECT_EQ(records[0], (std::set<std::uint32_t>{32, 16}));
  EXPECT_EQ(records[1], (std::set<std::uint32_t>{32, 48}));
  EXPECT_NE(Events().find("batches: records of a push in proportion to speed: 16 of worker 0 (33 a "
                          "second), 48 of worker 1 (100 a second)"),
            std::string::npos)
      << Events();
  const auto workers = Describe()["workers"];
  EXPECT_EQ(workers[0]["push_records"], 16);
  EXPECT_EQ(workers[1]["push_records"], 48);
  EXPECT_NEAR(workers[1]["compute_samples_per_second"].get<double>(), 100, 1);
}

TEST_F(CoreTest, LeasesAreWrittenBeforeTheyAreSent) {
  StartRunning();
  const auto task = tasks_.begin()->first;
  const auto agent = tasks_.begin()->second.agent;
  core_->OnMessage(agent, control::Make(control::LeaseRequestT{}, task), now_);
  const Output output = core_->TakeOutput(false);
  bool state_written = false;
  for (const auto& write : output.writes) state_written |= write.path.ends_with("/state");
  EXPECT_TRUE(state_written);
  ASSERT_EQ(output.sends.size(), 1u);
  const auto grant = control::Decode(output.sends[0].bytes);
  EXPECT_EQ(grant->body.AsLeaseGrant()->leases.size(), 2u);
  EXPECT_EQ(grant->task, task);
}

TEST_F(CoreTest, SkippedStepsAreEventsThatNameTheWorkerOncePerDoubling) {
  StartRunning();
  const auto& [task, worker] = *tasks_.begin();
  Say(worker.agent, control::LeaseRequestT{}, task);
  for (std::uint64_t skipped = 0; skipped <= 9; ++skipped) {
    control::ProgressT progress;
    progress.clock = 10 + skipped;
    progress.skipped = skipped;
    Say(worker.agent, std::move(progress), task);
  }
  const std::string events = Events();
  std::size_t count = 0;
  for (auto at = events.find("not finite: "); at != std::string::npos;
       at = events.find("not finite: ", at + 1)) {
    ++count;
  }
  EXPECT_EQ(count, 4u);  // 1, 2, 4, 8
  EXPECT_NE(events.find("(incarnation 1) has skipped 8 steps"), std::string::npos) << events;
  EXPECT_NE(events.find("by clock 18, near data position 0; "), std::string::npos) << events;
  // Where the worker says, whatever leases it has by now.
  control::ProgressT later;
  later.clock = 40;
  later.skipped = 16;
  later.skipped_position = 77;
  Say(worker.agent, std::move(later), task);
  const std::string more = Events();
  EXPECT_NE(more.find("by clock 40, near data position 77; "), std::string::npos) << more;
}

TEST_F(CoreTest, ImplausibleStepsAreEventsThatNameTheirRecords) {
  StartRunning();
  const auto& [task, worker] = *tasks_.begin();
  const auto tell = [&, task = task, agent = worker.agent](std::uint64_t dropped,
                                                           std::uint64_t redone) {
    control::ProgressT progress;
    progress.overflows = 5;
    progress.anomalies = dropped + redone;
    progress.dropped = dropped;
    progress.redone = redone;
    progress.last_dropped = "records " + std::to_string(dropped) + " of a.csv";
    progress.last_redone = "the gradient norm is 1e9";
    Say(agent, std::move(progress), task);
  };
  const auto count = [this] {
    const std::string events = Events();
    std::size_t found = 0;
    for (auto at = events.find("implausible: "); at != std::string::npos;
         at = events.find("implausible: ", at + 1)) {
      ++found;
    }
    return found;
  };
  for (std::uint64_t dropped = 0; dropped <= 3; ++dropped) tell(dropped, 0);
  tell(3, 0);
  EXPECT_EQ(count(), 3u);
  const std::string events = Events();
  EXPECT_NE(events.find("(incarnation 1) has skipped a batch (2 so far): records 2 of a.csv; "
                        "computed again in fp32 it was so, too"),
            std::string::npos)
      << events;
  tell(3, 1);
  EXPECT_NE(Events().find("has computed a step again in fp32 (1 so far), which is plausible: the "
                          "gradient norm is 1e9"),
            std::string::npos);
  // A job that finds one everywhere does not fill its history with it.
  for (std::uint64_t dropped = 4; dropped <= 100; ++dropped) tell(dropped, 1);
  EXPECT_EQ(count(), 1 + 20 + 2u);  // ... 20, 40, 80
  const auto progress = Describe()["progress"];
  EXPECT_EQ(progress["implausible"], 101);
  EXPECT_EQ(progress["implausible_skipped"], 100);
  EXPECT_EQ(progress["implausible_redone"], 1);
  EXPECT_EQ(progress["overflows"], 5);
  EXPECT_EQ(progress["skipped"], 0);
}

TEST_F(CoreTest, SegmentsThatAShardFoundNotFiniteAreEventsOncePerDoubling) {
  StartRunning();
  const auto& [task, worker] = *tasks_.begin();
  for (std::uint64_t refused = 0; refused <= 5; ++refused) {
    control::ProgressT progress;
    progress.refused = refused;
    progress.last_refused = "shard 3 refused its part of the push of clock " +
                            std::to_string(10 + refused) + ", data positions 5 to 6";
    Say(worker.agent, std::move(progress), task);
  }
  const std::string events = Events();
  for (const int clock : {11, 12, 14}) {
    EXPECT_NE(events.find("shard 3 refused its part of the push of clock " + std::to_string(clock) +
                          ", data positions 5 to 6, of worker"),
              std::string::npos)
        << events;
  }
  EXPECT_EQ(events.find("clock 13"), std::string::npos) << events;
  EXPECT_EQ(events.find("clock 10"), std::string::npos) << events;
}

TEST_F(CoreTest, JobEndsWithDrainFinalCheckpointAndEvaluation) {
  StartRunning();
  TrainAll();
  Drain();
  PlayRound(100);
  EXPECT_EQ(PhaseNow(), "evaluating");
  std::uint64_t asked = 0;
  for (const auto& [task, worker] : tasks_) {
    for (const auto& message : Take(worker.agent, Body::Evaluate)) {
      asked = message.task;
      EXPECT_EQ(message.body.AsEvaluate()->digests.size(), 4u);
    }
  }
  ASSERT_NE(asked, 0u);
  control::EvaluatedT evaluated;
  evaluated.round = 1;
  evaluated.metric = 0.5;
  Say(tasks_[asked].agent, std::move(evaluated), asked);
  EXPECT_EQ(PhaseNow(), "succeeded");
  EXPECT_EQ(Describe()["progress"]["samples_trained"], 6400);
  for (const auto& [task, worker] : tasks_) {
    EXPECT_EQ(Take(worker.agent, Body::StopTask).size(), 1u);
  }
  EXPECT_EQ(Take("p-s0", Body::JobDrop).size(), 1u);
}

TEST_F(CoreTest, AJobWithTablesOfRowsNamesThemAndHasNoDenseModelToCompareWith) {
  row_widths_ = {8, 17};
  AddServer("s0");
  AddAgent("a0");
  Submit();
  const nlohmann::json job = Describe();
  EXPECT_EQ(job["shards"], 64);
  ASSERT_EQ(job["embedding_tables"].size(), 2u);
  EXPECT_EQ(job["embedding_tables"][1]["name"], "rows17");
  EXPECT_EQ(job["embedding_tables"][1]["width"], 17);
  EXPECT_TRUE(job["progress"]["dense_bytes"].is_null());
  EXPECT_TRUE(job["progress"]["pull_bytes_per_parameter"].is_null());
}

// Its agent keeps the Drained of an earlier drain and says it again after a reconnect.
TEST_F(CoreTest, FinalCheckpointIsOfWhatWasDrained) {
  StartRunning();
  TrainAll();
  Drain();
  const auto [task, worker] = *tasks_.begin();
  control::WorkerCutT cut;
  cut.round = 1;
  cut.clock = 101;
  Say(worker.agent, std::move(cut), task);
  EXPECT_EQ(Take("p-s0", Body::RoundAbort).size(), 1u);
  EXPECT_EQ(Take(worker.agent, Body::Drain).size(), 1u);
  Take("p-s0", Body::RoundBegin);
  Tick(3000);
  EXPECT_TRUE(Take("p-s0", Body::RoundBegin).empty());  // until it is drained
  control::DrainedT drained;
  drained.clock = 101;
  Say(worker.agent, std::move(drained), task);
  Tick();
  EXPECT_EQ(Take("p-s0", Body::RoundBegin).size(), 1u);
}

TEST_F(CoreTest, JobThatCannotWriteItsFinalCheckpointSaysWhyAndTriesAgain) {
  StartRunning();
  TrainAll();
  Drain();
  const auto begun = Take("p-s0", Body::RoundBegin);
  ASSERT_EQ(begun.size(), 1u);
  control::PrepareFailedT failed;
  failed.job = begun[0].body.AsRoundBegin()->job;
  failed.round = begun[0].body.AsRoundBegin()->round;
  failed.message = "No space left on device";
  Say("p-s0", std::move(failed));
  EXPECT_EQ(PhaseNow(), "draining");
  EXPECT_NE(Describe()["reason"].get<std::string>().find("No space left"), std::string::npos);
  Tick(11'000);
  PlayRound(100);
  EXPECT_EQ(PhaseNow(), "evaluating");
  EXPECT_EQ(Describe()["reason"], "evaluates the final checkpoint");
}

// Found by the simulation: the connection broke with the only message that says so on it.
TEST_F(CoreTest, TaskThatIsReadyAgainIsStartedAgain) {
  StartRunning();
  const auto [task, worker] = *tasks_.begin();
  ASSERT_EQ(Take(worker.agent, Body::TaskStart).size(), 1u);
  control::TaskReadyT ready;
  ready.layout_fingerprint = 77;
  ready.data_fingerprint = 5;
  ready.records = 6400;
  Say(worker.agent, std::move(ready), task);
  const auto starts = Take(worker.agent, Body::TaskStart);
  ASSERT_EQ(starts.size(), 1u);
  EXPECT_EQ(starts[0].body.AsTaskStart()->incarnation, worker.incarnation);
  EXPECT_EQ(starts[0].task, task);
}

TEST_F(CoreTest, AfterAReconnectOfItsAgentSomebodyIsToldAgainToEvaluate) {
  StartRunning();
  TrainAll();
  Drain();
  PlayRound(100);
  EXPECT_EQ(PhaseNow(), "evaluating");
  const auto told = [this] {
    std::size_t count = 0;
    for (const auto& [task, worker] : tasks_) count += Take(worker.agent, Body::Evaluate).size();
    return count;
  };
  EXPECT_EQ(told(), 1u);
  Tick();
  EXPECT_EQ(told(), 0u);
  for (const std::string& name : std::set<std::string>(agents_)) AddAgent(name);
  Tick();
  EXPECT_EQ(told(), 1u);
}

// Found by the simulation: a loss during the evaluation undoes it, and the next one was asked for
// of nobody.
TEST_F(CoreTest, AnEvaluationThatALossHasUndoneIsBegunAgain) {
  StartRunning();
  TrainAll();
  Drain();
  PlayRound(100);
  ASSERT_EQ(PhaseNow(), "evaluating");
  const auto told = [this] {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> tasks;
    for (const auto& [task, worker] : tasks_) {
      for (const auto& message : Take(worker.agent, Body::Evaluate)) {
        tasks.emplace_back(message.task, message.body.AsEvaluate()->round);
      }
    }
    return tasks;
  };
  const auto first = told();
  ASSERT_EQ(first.size(), 1u);
  servers_.clear();
  Announce();
  Tick();
  AddServer("s2");
  Tick();
  ReportShards();
  Tick();
  Drain();
  PlayRound(100);
  ASSERT_EQ(PhaseNow(), "evaluating");
  const auto second = told();
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(second[0].second, first[0].second + 1);
  control::EvaluatedT evaluated;
  evaluated.round = first[0].second;
  evaluated.metric = 0.25;
  Say(tasks_[first[0].first].agent, evaluated, first[0].first);
  EXPECT_EQ(PhaseNow(), "evaluating") << "the result is of another checkpoint";
  evaluated.round = second[0].second;
  evaluated.metric = 0.5;
  Say(tasks_[second[0].first].agent, evaluated, second[0].first);
  EXPECT_EQ(PhaseNow(), "succeeded");
}

TEST_F(CoreTest, CancelledJobStopsItsTasksAndCannotBeCancelledAgain) {
  StartRunning();
  core_->Cancel(5, "count", "", now_);
  Flush();
  EXPECT_EQ(PhaseNow(), "cancelled");
  EXPECT_EQ(Take("p-a0", Body::StopTask).size(), 1u);
  core_->Cancel(6, "count", "", now_);
  core_->Cancel(7, "nobody", "", now_);
  Flush();
  EXPECT_EQ(answers_[answers_.size() - 2].body.error().code, ErrorCode::kConflict);
  EXPECT_EQ(answers_.back().body.error().code, ErrorCode::kNotFound);
}

TEST_F(CoreTest, TaskThatKeepsDyingFailsTheJobWithItsWords) {
  StartRunning();
  for (int life = 0; life < 200 && PhaseNow() != "failed"; ++life) {
    for (const auto& [task, worker] : std::map(tasks_)) {
      control::TaskFailedT failed;
      failed.message = "out of luck";
      Say(worker.agent, std::move(failed), task);
      Say(worker.agent, Exited(task, false));
      tasks_.erase(task);
    }
    Tick(40'000);
    ServeStarts();
    ReportShards();
    Tick();
  }
  EXPECT_EQ(PhaseNow(), "failed");
  const std::string reason = Describe()["reason"];
  EXPECT_NE(reason.find("max_restarts"), std::string::npos) << reason;
  EXPECT_NE(reason.find("out of luck"), std::string::npos) << reason;
}

TEST_F(CoreTest, JunkFromStrangersChangesNothing) {
  StartRunning();
  const std::string before = nodes_["/jobs/0000000001/state"];
  Say("stranger", Exited(tasks_.begin()->first, false));
  control::PreparedT prepared;
  prepared.job = 99;
  Say("p-s0", std::move(prepared));
  control::ServerReportT report;
  report.job = 1;
  report.shards.push_back(std::make_unique<control::ShardStateT>());
  report.shards.back()->shard = 4000;
  Say("p-s0", std::move(report));
  EXPECT_EQ(nodes_["/jobs/0000000001/state"], before);
  EXPECT_EQ(PhaseNow(), "running");
}

}  // namespace
}  // namespace ps::coordinator
