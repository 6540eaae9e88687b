// The coordinator's rules, driven by a small cluster of scripted members.
#include "coordinator/core/core.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <optional>
#include <random>
#include <set>

#include "checkpoint/manifest.h"
#include "common/messages/wire.h"

namespace ps::coordinator {
namespace {

using control::Body;

const char kSpec[] = R"(
apiVersion: ds/v1
kind: TrainJob
name: count
model: {type: ledger, blocks: 4}
data: {train: {format: counter, records: 6400}}
training: {workers: 2, batch_size: 32, epochs: 1, loss: none, metric: none}
optimizer: {type: sgd, learning_rate: 1.0, reference_batch: 32}
checkpoint: {every_steps: 10}
)";

const char kLocalSteps[] = R"(
apiVersion: ds/v1
kind: TrainJob
name: count
model: {type: mlp, layers: [2, 2]}
data: {train: {format: csv, file: /t.csv, label: y}}
training: {workers: 2, batch_size: 32, local_steps: 5, epochs: 1, metric: none}
)";

std::string SpecJson(const std::string& text = kSpec) {
  auto spec = ParseJobYaml(text, "spec.yaml", "/");
  PS_CHECK(spec.ok(), spec.ok() ? "" : spec.error().message);
  return ResolvedJson(*spec);
}

control::PreflightResultT GoodPreflight(std::uint64_t request) {
  control::PreflightResultT result;
  result.request = request;
  result.ok = true;
  result.layout = std::make_unique<control::LayoutT>();
  auto table = std::make_unique<control::TableInfoT>();
  table->name = "parameters";
  table->elements = 4 * 65536;
  table->block_elements.assign(4, 65536);
  auto tensor = std::make_unique<control::TensorInfoT>();
  tensor->name = "counts";
  tensor->shape.push_back(std::make_unique<control::ExtentT>());
  tensor->shape.back()->size = 4 * 65536;
  tensor->elements = 4 * 65536;
  table->tensors.push_back(std::move(tensor));
  result.layout->tables.push_back(std::move(table));
  result.layout->blocks = 4;
  result.layout->parameters = 4 * 65536;
  result.layout->fingerprint = 77;
  result.data = std::make_unique<control::DataInfoT>();
  result.data->records = 6400;
  result.data->fingerprint = 5;
  return result;
}

// What ZooKeeper would hold, what members have heard, and what operators were told.
class CoreTest : public ::testing::Test {
 protected:
  CoreTest() { Start(1); }

  void Start(std::uint64_t epoch) {
    CoreOptions options;
    options.id = "c0";
    options.settle_ms = 0;
    core_ = std::make_unique<Core>(options, epoch);
  }

  void Flush() {
    Output output = core_->TakeOutput(true);
    for (NodeWrite& write : output.writes) {
      EXPECT_EQ(write.create, !nodes_.contains(write.path)) << write.path;
      nodes_[write.path] = write.data;
    }
    for (Output::Send& send : output.sends) {
      auto message = control::Decode(send.bytes);
      ASSERT_TRUE(message.ok());
      if (message->body.type == Body::Ping) continue;
      inbox_[send.procid].push_back(std::move(message).value());
    }
    for (Answer& answer : output.answers) answers_.push_back(std::move(answer));
  }

  void Tick(std::uint64_t ms = 100) {
    now_ += ms;
    core_->Tick(now_);
    Flush();
  }

  template <typename BodyT>
  void Say(const std::string& procid, BodyT body, std::uint64_t task = 0) {
    core_->OnMessage(procid, control::Make(std::move(body), task), now_);
    Flush();
  }

  void Announce() {
    std::vector<Presence> servers, agents;
    for (const auto& name : servers_) servers.push_back({"p-" + name, name, "host"});
    for (const auto& name : agents_) agents.push_back({"p-" + name, name, "host"});
    core_->SetServers(servers, now_);
    core_->SetAgents(agents, now_);
    Flush();
  }

  void AddServer(const std::string& name) {
    servers_.insert(name);
    Announce();
    Register(name);
  }
  void Register(const std::string& name) {
    control::RegisterServerT message;
    message.name = name;
    message.procid = "p-" + name;
    message.host = "host";
    message.lanes = {"tcp://" + name + ":1"};
    Say("p-" + name, std::move(message));
  }
  void AddAgent(const std::string& name, std::vector<control::RingInfoT> rings = {},
                const std::string& label = "") {
    agents_.insert(name);
    Announce();
    control::RegisterAgentT message;
    message.name = name;
    message.procid = "p-" + name;
    message.host = "host";
    message.slots = 1;
    message.label = label;
    for (const auto& [task, worker] : tasks_) {
      if (worker.agent != "p-" + name) continue;
      auto info = std::make_unique<control::TaskInfoT>();
      info->task = task;
      info->job = 1;
      message.tasks.push_back(std::move(info));
    }
    for (const auto& ring : rings) message.rings.push_back(control::ClonePtr(ring));
    Say("p-" + name, std::move(message));
  }

  // Messages of one type to a member, removed from its inbox.
  std::vector<control::MessageT> Take(const std::string& procid, Body type) {
    std::vector<control::MessageT> taken, rest;
    for (auto& message : inbox_[procid]) {
      (message.body.type == type ? taken : rest).push_back(std::move(message));
    }
    inbox_[procid] = std::move(rest);
    return taken;
  }

  void Submit() {
    core_->Submit(1, SpecJson(std::string(spec_) + spec_more_), false, now_);
    Flush();
    for (const auto& name : agents_) {
      for (const auto& message : Take("p-" + name, Body::Preflight)) {
        auto result = GoodPreflight(message.body.AsPreflight()->request);
        for (const std::uint32_t width : row_widths_) {
          auto table = std::make_unique<control::RowTableInfoT>();
          table->name = "rows" + std::to_string(width);
          table->width = width;
          result.layout->row_tables.push_back(std::move(table));
        }
        Say("p-" + name, std::move(result));
      }
    }
    ASSERT_EQ(answers_.size(), 1u);
    ASSERT_TRUE(answers_[0].body.ok()) << answers_[0].body.error().message;
  }

  // Tasks the core has started; each says it is ready.
  void ServeStarts() {
    for (const auto& name : agents_) {
      for (const auto& message : Take("p-" + name, Body::StartTask)) {
        const auto& start = *message.body.AsStartTask();
        tasks_[start.task] = {start.worker, start.incarnation, "p-" + name};
        control::TaskReadyT ready;
        ready.layout_fingerprint = 77;
        ready.data_fingerprint = 5;
        ready.records = 6400;
        Say("p-" + name, std::move(ready), start.task);
      }
    }
  }

  void ReportShards() {
    for (const auto& name : servers_) {
      control::ServerReportT report;
      report.job = 1;
      const auto& map = Map();
      for (std::uint32_t i = 0; i < map.shards.size(); ++i) {
        if (map.servers[map.shards[i]->server]->procid != "p-" + name) continue;
        auto state = std::make_unique<control::ShardStateT>();
        state->shard = i;
        state->epoch = map.shards[i]->epoch;
        report.shards.push_back(std::move(state));
      }
      Say("p-" + name, std::move(report));
    }
  }

  control::MapT Map() {
    const std::string& text = nodes_["/jobs/0000000001/map"];
    auto message = control::Decode({reinterpret_cast<const std::byte*>(text.data()), text.size()});
    return std::move(*message->body.AsJobUpdate()->map);
  }

  // What a new leader reads.
  JobRecord Record() {
    JobRecord record;
    record.id = 1;
    record.spec = nodes_["/jobs/0000000001/spec"];
    record.layout = nodes_["/jobs/0000000001/layout"];
    record.state = nodes_["/jobs/0000000001/state"];
    record.map = nodes_["/jobs/0000000001/map"];
    record.events = nodes_["/jobs/0000000001/events"];
    return record;
  }

  nlohmann::json Describe() { return core_->DescribeJob("count")->at("job"); }
  std::string PhaseNow() { return Describe()["phase"]; }
  std::string Events() {
    std::string text;
    const auto body = core_->DescribeEvents("count", 0);
    for (const auto& event : body->at("events")) {
      text += event["type"].get<std::string>() + ": " + event["message"].get<std::string>() + "\n";
    }
    return text;
  }

  void StartRunning() {
    AddServer("s0");
    AddServer("s1");
    AddAgent("a0");
    AddAgent("a1");
    Submit();
    Tick();
    ServeStarts();
    ReportShards();
    Tick();
    ASSERT_EQ(PhaseNow(), "running");
  }

  void Progress(std::uint64_t clock) {
    for (const auto& [task, worker] : tasks_) {
      control::ProgressT progress;
      progress.clock = clock;
      progress.steps = clock;
      Say(worker.agent, std::move(progress), task);
    }
  }

  // Both workers train all there is.
  void TrainAll() {
    for (int turn = 0; turn < 1000 && PhaseNow() == "running"; ++turn) {
      for (const auto& [task, worker] : tasks_) {
        Say(worker.agent, control::LeaseRequestT{}, task);
        for (const auto& grant : Take(worker.agent, Body::LeaseGrant)) {
          control::LeaseProgressT progress;
          for (const auto& lease : grant.body.AsLeaseGrant()->leases) {
            progress.leases.push_back(control::ClonePtr(*lease));
            progress.leases.back()->done = lease->end - lease->begin;
          }
          Say(worker.agent, std::move(progress), task);
        }
      }
      Tick();
    }
  }

  // Every task has flushed.
  void Drain() {
    EXPECT_EQ(PhaseNow(), "draining");
    for (const auto& [task, worker] : tasks_) {
      EXPECT_EQ(Take(worker.agent, Body::Drain).size(), 1u);
      control::DrainedT drained;
      drained.clock = 100;
      Say(worker.agent, std::move(drained), task);
    }
    Tick();
  }

  // Plays an open round to its commit. Returns the manifest. The shard 0 builds on `bases`.
  std::string PlayRound(std::uint64_t clock, const std::vector<std::uint64_t>& bases = {}) {
    std::uint64_t round = 0;
    for (const auto& name : servers_) {
      for (const auto& message : Take("p-" + name, Body::RoundBegin)) {
        round = message.body.AsRoundBegin()->round;
        base_ = message.body.AsRoundBegin()->base;
      }
    }
    EXPECT_NE(round, 0u);
    for (const auto& [task, worker] : tasks_) {
      control::WorkerCutT cut;
      cut.round = round;
      cut.clock = clock;
      Say(worker.agent, std::move(cut), task);
    }
    const auto map = Map();
    for (const auto& name : servers_) {
      control::PreparedT prepared;
      prepared.job = 1;
      prepared.round = round;
      for (std::uint32_t i = 0; i < map.shards.size(); ++i) {
        if (map.servers[map.shards[i]->server]->procid != "p-" + name) continue;
        auto shard = std::make_unique<control::PreparedShardT>();
        shard->shard = i;
        shard->epoch = map.shards[i]->epoch;
        shard->bytes = 100;
        shard->state_bytes = 1000;
        for (const std::uint64_t base : i == 0 ? bases : std::vector<std::uint64_t>()) {
          shard->bases.push_back(std::make_unique<control::KeptRoundT>());
          shard->bases.back()->round = base;
        }
        shard->digest = std::string(32, 'a');
        shard->values_digest = std::string(32, 'b');
        prepared.shards.push_back(std::move(shard));
      }
      Say("p-" + name, std::move(prepared));
    }
    std::string manifest;
    for (const auto& name : servers_) {
      for (const auto& message : Take("p-" + name, Body::WriteManifest)) {
        manifest = message.body.AsWriteManifest()->manifest;
        control::ManifestWrittenT written;
        written.job = 1;
        written.round = round;
        Say("p-" + name, std::move(written));
      }
    }
    return manifest;
  }

  control::TaskExitedT Exited(std::uint64_t task, bool with_ring, std::uint64_t last_clock = 20) {
    control::TaskExitedT exited;
    exited.task = task;
    exited.job = 1;
    exited.worker = tasks_[task].worker;
    exited.incarnation = tasks_[task].incarnation;
    exited.status = -9;
    if (with_ring) {
      exited.ring = std::make_unique<control::RingInfoT>();
      exited.ring->job = 1;
      exited.ring->worker = exited.worker;
      exited.ring->incarnation = exited.incarnation;
      exited.ring->generation = 1;
      exited.ring->last_clock = last_clock;
    }
    return exited;
  }

  // Servers say of all that comes after them in a chain that it is in sync, or stalled.
  void ReportFeeds(bool synced, std::uint64_t stalled_ms = 0, std::uint64_t asked = 0) {
    const auto map = Map();
    for (const auto& name : servers_) {
      control::ServerReportT report;
      report.job = 1;
      report.asked = asked;
      for (std::uint32_t i = 0; i < map.shards.size(); ++i) {
        const auto& entry = *map.shards[i];
        if (map.servers[entry.server]->procid != "p-" + name || entry.backups.empty()) continue;
        auto feed = std::make_unique<control::FeedStateT>();
        feed->shard = i;
        feed->epoch = entry.epoch;
        feed->since = entry.backups[0]->since;
        feed->synced = synced;
        feed->stalled_ms = stalled_ms;
        report.feeds.push_back(std::move(feed));
      }
      Say("p-" + name, std::move(report));
    }
  }
  std::size_t Backups(bool synced) {
    const auto map = Map();
    std::size_t count = 0;
    for (const auto& shard : map.shards) {
      for (const auto& backup : shard->backups) count += backup->synced == synced ? 1 : 0;
    }
    return count;
  }
  void StartReplicated() {
    spec_more_ = "resources: {replicas: 1}\n";
    StartRunning();
    EXPECT_EQ(Backups(false), 4u);
    ReportFeeds(true);
    Tick();
    ASSERT_EQ(Backups(true), 4u) << Events();
  }

  // ---- checkpoints

  using Rounds = std::vector<std::uint64_t>;

  // In the place of the job's `checkpoint`.
  void UseCheckpoints(const std::string& text) {
    const std::string every = "{every_steps: 10}";
    spec_text_ = kSpec;
    spec_text_.replace(spec_text_.find(every), every.size(), text);
    spec_ = spec_text_.c_str();
  }
  // The next checkpoint, 11 steps later. The shard 0 builds on `bases`.
  void CommitNext(const Rounds& bases = {}) {
    Progress(clock_ += 11);
    Tick(60'000);
    ASSERT_NE(PlayRound(clock_, bases), "") << Events();
  }
  Rounds Listed() {
    Rounds rounds;
    const auto body = core_->DescribeCheckpoints("count");
    for (const auto& one : body->at("checkpoints")) {
      rounds.push_back(one["round"].get<std::uint64_t>());
    }
    return rounds;
  }
  CommittedCheckpoint Stored(std::uint64_t round) {
    const auto state = StateFromJson(nlohmann::json::parse(nodes_["/jobs/0000000001/state"]));
    EXPECT_TRUE(state.ok());
    for (const CommittedCheckpoint& one : state->checkpoints) {
      if (one.round == Round(round)) return one;
    }
    ADD_FAILURE() << "no checkpoint " << round;
    return {};
  }
  std::uint64_t StepOf(std::uint64_t round) { return Stored(round).step; }
  std::uint64_t OrdinalOf(std::uint64_t round) { return Stored(round).ordinal; }
  // What an operator is answered.
  template <typename Request>
  Result<nlohmann::json> Ask(const Request& request) {
    answers_.clear();
    request(Ticket{77});
    Flush();
    EXPECT_EQ(answers_.size(), 1u);
    if (answers_.size() != 1) return Error{ErrorCode::kInternal, "no answer"};
    EXPECT_EQ(answers_[0].ticket, 77u);
    return answers_[0].body;
  }
  // After a rewind.
  void RestartTasks() {
    tasks_.clear();
    Tick();
    ServeStarts();
    ReportShards();
    Tick();
    ASSERT_EQ(PhaseNow(), "running") << Events();
  }

  std::string spec_text_;
  std::uint64_t clock_ = 0;

  std::string spec_more_ = "resources: {replicas: 0}\n";
  struct TaskOf {
    std::uint32_t worker = 0;
    std::uint32_t incarnation = 0;
    std::string agent;
  };
  std::unique_ptr<Core> core_;
  std::uint64_t now_ = 1'000'000;
  std::vector<std::uint32_t> row_widths_;  // tables of rows of the job submitted
  const char* spec_ = kSpec;
  std::set<std::string> servers_, agents_;
  std::map<std::string, std::string> nodes_;
  std::map<std::string, std::vector<control::MessageT>> inbox_;
  std::vector<Answer> answers_;
  std::map<std::uint64_t, TaskOf> tasks_;
  std::uint64_t base_ = 0;  // of the round that was played last
};

TEST_F(CoreTest, SubmissionWithoutAnAgentSaysWhatIsMissing) {
  core_->Submit(9, SpecJson(), false, now_);
  Flush();
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_EQ(answers_[0].body.error().code, ErrorCode::kUnreachable);
  EXPECT_NE(answers_[0].body.error().message.find("no ps-worker agent"), std::string::npos);
  EXPECT_TRUE(nodes_.empty());
}

TEST_F(CoreTest, SubmissionThatFailsItsCheckCreatesNothing) {
  AddAgent("a0");
  core_->Submit(9, SpecJson(), false, now_);
  Flush();
  const auto asked = Take("p-a0", Body::Preflight);
  ASSERT_EQ(asked.size(), 1u);
  control::PreflightResultT bad;
  bad.request = asked[0].body.AsPreflight()->request;
  bad.error = "no such file: x";
  Say("p-a0", std::move(bad));
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_EQ(answers_[0].body.error().code, ErrorCode::kInvalid);
  EXPECT_EQ(answers_[0].body.error().message, "no such file: x");
  EXPECT_TRUE(nodes_.empty());
}

TEST_F(CoreTest, CheckThatNeverEndsIsAnsweredInTheEnd) {
  AddAgent("a0");
  core_->Submit(9, SpecJson(), false, now_);
  Flush();
  Tick(91'000);
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_EQ(answers_[0].body.error().code, ErrorCode::kTimeout);
}

TEST_F(CoreTest, DryRunCreatesNothing) {
  AddAgent("a0");
  core_->Submit(9, SpecJson(), true, now_);
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
  core_->Submit(1, ResolvedJson(*spec), false, now_);
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
  core_->Submit(9, SpecJson(), false, now_);
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
  core_->Submit(1, ResolvedJson(*spec), false, now_);
  Flush();
  for (const auto& message : Take("p-a0", Body::Preflight)) {
    Say("p-a0", GoodPreflight(message.body.AsPreflight()->request));
  }
  Tick();
  const std::string reason = Describe()["reason"];
  EXPECT_NE(reason.find("with the label `bench`, 1 free now"), std::string::npos) << reason;
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

TEST_F(CoreTest, CheckpointIsCommittedWhenAllHaveDoneTheirPart) {
  StartRunning();
  Progress(11);
  Tick();
  const auto manifest = checkpoint::FromJson(PlayRound(11));
  ASSERT_TRUE(manifest.ok()) << manifest.error().message;
  EXPECT_EQ(manifest->step, 11u);
  EXPECT_EQ(manifest->cuts.size(), 2u);
  EXPECT_EQ(Describe()["checkpoints"], 1);
  for (const auto& [task, worker] : tasks_) {
    EXPECT_EQ(Take(worker.agent, Body::RoundCommitted).size(), 1u);
  }
  EXPECT_EQ(Take("p-s0", Body::RoundCommitted).size(), 1u);
  // The next one is due ten steps later.
  Tick();
  EXPECT_TRUE(Take("p-s0", Body::RoundBegin).empty());
  Progress(21);
  Tick();
  const auto begun = Take("p-s0", Body::RoundBegin);
  ASSERT_EQ(begun.size(), 1u);
  EXPECT_EQ(begun[0].body.AsRoundBegin()->round, 2u);
}

TEST_F(CoreTest, RoundsBuildOnTheNewestCheckpointUntilAWholeOneIsDueAndItsBasesAreKept) {
  std::string spec = kSpec;
  const std::string every = "{every_steps: 10}";
  spec.replace(spec.find(every), every.size(), "{every_steps: 10, keep: 2, full_every: 3}");
  spec_ = spec.c_str();
  StartRunning();
  const auto keep_of_commit = [&] {
    std::vector<std::uint64_t> keep;
    for (const auto& message : Take("p-s0", Body::RoundCommitted)) {
      keep.clear();
      for (const auto& one : message.body.AsRoundCommitted()->keep) keep.push_back(one->round);
    }
    return keep;
  };
  struct Step {
    std::uint64_t base;  // that servers are told
    Rounds bases;        // that they build on
    Rounds keep;
  };
  const std::vector<Step> steps = {
      {0, {}, {1}},     {1, {1}, {1, 2}},   {2, {2, 1}, {1, 2, 3}}, {0, {}, {1, 2, 3, 4}},
      {4, {4}, {4, 5}}, {5, {}, {4, 5, 6}}, {6, {6}, {6, 7}},
  };
  for (std::size_t i = 0; i < steps.size(); ++i) {
    SCOPED_TRACE(i + 1);
    Progress(11 * (i + 1));
    Tick();
    const auto manifest = checkpoint::FromJson(PlayRound(11 * (i + 1), steps[i].bases));
    ASSERT_TRUE(manifest.ok()) << manifest.error().message;
    EXPECT_EQ(base_, steps[i].base);
    Rounds bases;
    for (const Round base : manifest->shards[0].bases) bases.push_back(base.value());
    EXPECT_EQ(bases, steps[i].bases);
    EXPECT_TRUE(manifest->shards[1].bases.empty());
    EXPECT_EQ(manifest->shards[0].state_bytes, 1000u);
    EXPECT_EQ(keep_of_commit(), steps[i].keep);
  }
  // A new leader knows it, too.
  const auto state = StateFromJson(nlohmann::json::parse(nodes_["/jobs/0000000001/state"]));
  ASSERT_TRUE(state.ok()) << state.error().message;
  ASSERT_EQ(state->checkpoints.size(), 2u);
  EXPECT_EQ(state->checkpoints[1].bases, std::vector<Round>{Round(6)});
  EXPECT_EQ(state->checkpoints[1].since_whole, 1u);
  EXPECT_EQ(state->checkpoints[0].since_whole, 0u);
  EXPECT_FALSE(state->checkpoints[1].remaining.empty());
}

TEST_F(CoreTest, AnImageThatBuildsOnWhatMayBeGoneAbortsItsRound) {
  StartRunning();
  Progress(11);
  Tick();
  EXPECT_NE(PlayRound(11), "");
  const std::vector<std::vector<std::uint64_t>> wrong = {{7}, {1, 1}, {2, 1}, {1, 0}};
  for (const std::vector<std::uint64_t>& bases : wrong) {
    Progress(100);
    Tick(60'000);
    EXPECT_EQ(PlayRound(100, bases), "");
    EXPECT_EQ(Describe()["checkpoints"], 1);
  }
  EXPECT_NE(Events().find("built on a checkpoint that may be gone"), std::string::npos);
  Tick(60'000);
  EXPECT_NE(PlayRound(100, {1}), "");
  EXPECT_EQ(Describe()["checkpoints"], 2);
}

TEST_F(CoreTest, ADamagedCheckpointTakesTheWholeJobBackToTheOneBefore) {
  StartRunning();
  Progress(11);
  Tick();
  PlayRound(11);
  Progress(22);
  Tick();
  PlayRound(22, {1});
  servers_.erase("s1");
  Announce();
  Tick();
  const auto failed_for = [&](std::uint64_t round, bool damaged) {
    const auto map = Map();
    const auto waits = std::find_if(map.shards.begin(), map.shards.end(), [&](const auto& shard) {
      return shard->restore_round == round;
    });
    EXPECT_NE(waits, map.shards.end());
    control::RestoreFailedT failed;
    failed.job = 1;
    failed.shard = static_cast<std::uint32_t>(waits - map.shards.begin());
    failed.round = round;
    failed.epoch = (*waits)->epoch;
    failed.message = "its digest is another";
    failed.damaged = damaged;
    return failed;
  };
  const auto before = Map();
  Take("p-a0", Body::StopTask);
  Take("p-a0", Body::DropRing);
  Say("p-s0", failed_for(2, true));
  // Whatever the workers and the other shards know is later than what the job goes on from.
  EXPECT_EQ(PhaseNow(), "placing");
  EXPECT_EQ(Describe()["generation"], 2);
  EXPECT_EQ(Take("p-a0", Body::StopTask).size(), 1u);
  EXPECT_EQ(Take("p-a0", Body::DropRing).size(), 1u);
  const auto after = Map();
  for (std::size_t i = 0; i < after.shards.size(); ++i) {
    EXPECT_EQ(after.shards[i]->restore_round, 1u);
    EXPECT_EQ(after.shards[i]->epoch, before.shards[i]->epoch + 1);
    EXPECT_EQ(after.shards[i]->lineage, before.shards[i]->lineage + 1);
  }
  EXPECT_NE(Events().find("checkpoint damaged: checkpoint 2"), std::string::npos);
  EXPECT_NE(Events().find("goes on from checkpoint 1"), std::string::npos);
  const auto checkpoints = core_->DescribeCheckpoints("count")->at("checkpoints");
  EXPECT_EQ(checkpoints.at(0)["damaged"], false);
  EXPECT_EQ(checkpoints.at(1)["damaged"], true);
  // What other shards say of the map before changes nothing.
  control::RestoreFailedT late;
  late.job = 1;
  late.round = 2;
  late.epoch = before.shards[0]->epoch;
  late.damaged = true;
  Say("p-s0", late);
  EXPECT_EQ(PhaseNow(), "placing");

  tasks_.clear();
  Tick();
  ServeStarts();
  ReportShards();
  Tick();
  ASSERT_EQ(PhaseNow(), "running");
  Progress(33);
  Tick();
  EXPECT_NE(PlayRound(33), "");
  EXPECT_EQ(base_, 1u) << "not the damaged one";
  const auto kept = core_->DescribeCheckpoints("count")->at("checkpoints");
  ASSERT_EQ(kept.size(), 2u);
  EXPECT_EQ(kept.at(1)["round"], 3);
}

// ---- retention

TEST_F(CoreTest, APinnedCheckpointOutlivesTheNewestOnesUntilItIsUnpinned) {
  UseCheckpoints("{every_steps: 10, keep: 1}");
  StartRunning();
  CommitNext();
  CommitNext();
  EXPECT_EQ(Listed(), Rounds{2});
  EXPECT_EQ(Ask([&](Ticket ticket) { core_->PinCheckpoint(ticket, "count", Round(1), true, now_); })
                .error()
                .code,
            ErrorCode::kNotFound);
  const auto pin = [&](std::uint64_t round, bool pinned) {
    return Ask(
        [&](Ticket ticket) { core_->PinCheckpoint(ticket, "count", Round(round), pinned, now_); });
  };
  const auto answer = pin(2, true);
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  EXPECT_EQ(answer->at("checkpoint").at("round"), 2);
  EXPECT_EQ(answer->at("checkpoint").at("pinned"), true);
  CommitNext();
  CommitNext();
  EXPECT_EQ(Listed(), (Rounds{2, 4}));
  // A new leader knows it, and one that was written before there were pins is read all the same.
  auto json = nlohmann::json::parse(nodes_["/jobs/0000000001/state"]);
  const auto state = StateFromJson(json);
  ASSERT_TRUE(state.ok()) << state.error().message;
  EXPECT_TRUE(state->checkpoints[0].pinned);
  EXPECT_EQ(state->checkpoints[0].ordinal, 2u);
  EXPECT_FALSE(state->checkpoints[1].pinned);
  json["checkpoints"][0].erase("pinned");
  json["checkpoints"][0].erase("ordinal");
  EXPECT_TRUE(StateFromJson(json).ok());
  ASSERT_TRUE(pin(2, false).ok());
  ASSERT_TRUE(pin(2, false).ok());
  EXPECT_EQ(Listed(), (Rounds{2, 4}));
  CommitNext();
  EXPECT_EQ(Listed(), Rounds{5});
  EXPECT_NE(Events().find("checkpoint pinned: checkpoint 2"), std::string::npos);
  EXPECT_NE(Events().find("checkpoint unpinned: checkpoint 2"), std::string::npos);
}

TEST_F(CoreTest, EverySoManythCheckpointStays) {
  UseCheckpoints("{every_steps: 10, keep: 2, keep_every: 3}");
  StartRunning();
  for (int i = 0; i < 8; ++i) CommitNext();
  EXPECT_EQ(Listed(), (Rounds{3, 6, 7, 8}));
}

TEST_F(CoreTest, PruneSaysWhatGoesAndTellsTheServersWhatStays) {
  UseCheckpoints("{every_steps: 10, keep: 9, full_every: 3}");
  StartRunning();
  CommitNext();
  CommitNext({1});
  CommitNext({2, 1});
  CommitNext();
  CommitNext({4});
  for (const auto& server : servers_) Take("p-" + server, Body::RoundCommitted);
  const auto prune = [&](std::optional<std::size_t> keep, bool dry_run) {
    return Ask(
        [&](Ticket ticket) { core_->PruneCheckpoints(ticket, "count", keep, dry_run, now_); });
  };
  const auto tried = prune(1, true);
  ASSERT_TRUE(tried.ok());
  EXPECT_EQ(tried->at("removed"), nlohmann::json({1, 2, 3, 4}));
  EXPECT_EQ(tried->at("needed"), nlohmann::json::array({4}));
  EXPECT_EQ(tried->at("kept"), nlohmann::json::array({5}));
  EXPECT_EQ(tried->at("bytes"), 3 * 400);
  EXPECT_EQ(Listed(), (Rounds{1, 2, 3, 4, 5}));
  EXPECT_TRUE(Take("p-s0", Body::RoundCommitted).empty());

  const auto done = prune(1, false);
  ASSERT_TRUE(done.ok());
  EXPECT_EQ(done->at("removed"), tried->at("removed"));
  EXPECT_EQ(done->at("dry_run"), false);
  EXPECT_EQ(Listed(), Rounds{5});
  for (const auto& server : servers_) {
    const auto told = Take("p-" + server, Body::RoundCommitted);
    ASSERT_EQ(told.size(), 1u);
    const auto& message = *told[0].body.AsRoundCommitted();
    EXPECT_EQ(message.job, 1u);
    EXPECT_EQ(message.round, 6u) << "all that was ever written, and what never will be";
    EXPECT_TRUE(message.cuts.empty());
    ASSERT_EQ(message.keep.size(), 2u);
    EXPECT_EQ(message.keep[0]->round, 4u);
    EXPECT_EQ(message.keep[1]->round, 5u);
  }
  EXPECT_NE(Events().find("checkpoints pruned: checkpoints 1, 2, 3, 4"), std::string::npos);
  EXPECT_EQ(prune(0, false).error().code, ErrorCode::kUsage);
  EXPECT_EQ(prune(1001, false).error().code, ErrorCode::kUsage);
  // Without a number the job's own, also when the job is over.
  core_->Cancel(7, "count", "", now_);
  Flush();
  ASSERT_TRUE(prune(std::nullopt, false).ok());
  EXPECT_EQ(Listed(), Rounds{5});
  EXPECT_EQ(Take("p-s0", Body::RoundCommitted).size(), 1u);
}

TEST_F(CoreTest, APruneDuringARoundLeavesTheRoundAndWhatItBuildsOn) {
  UseCheckpoints("{every_steps: 10, keep: 9}");
  StartRunning();
  CommitNext();
  CommitNext({1});
  Progress(clock_ += 11);
  Tick();
  ASSERT_TRUE(
      Ask([&](Ticket ticket) { core_->PruneCheckpoints(ticket, "count", 1, false, now_); }).ok());
  EXPECT_EQ(Describe()["open_checkpoint"], 3);
  const auto told = Take("p-s0", Body::RoundCommitted);
  ASSERT_FALSE(told.empty());
  EXPECT_EQ(told.back().body.AsRoundCommitted()->round, 2u) << "the open round goes on";
  EXPECT_NE(PlayRound(clock_, {2, 1}), "");
  EXPECT_EQ(Listed(), (Rounds{2, 3}));
}

TEST_F(CoreTest, ARollbackTakesTheWholeJobBackOnceItIsConfirmed) {
  UseCheckpoints("{every_steps: 10, keep: 9}");
  StartRunning();
  CommitNext();
  CommitNext({1});
  CommitNext({2, 1});
  const auto before = Map();
  const auto roll = [&](std::uint64_t round, bool confirmed) {
    return Ask(
        [&](Ticket ticket) { core_->RollBack(ticket, "count", Round(round), confirmed, now_); });
  };
  EXPECT_EQ(roll(9, true).error().code, ErrorCode::kNotFound);
  const auto asked = roll(1, false);
  EXPECT_EQ(asked.error().code, ErrorCode::kConflict);
  EXPECT_NE(asked.error().message.find("checkpoints 2, 3 are discarded"), std::string::npos)
      << asked.error().message;
  EXPECT_EQ(Listed(), (Rounds{1, 2, 3}));
  EXPECT_EQ(PhaseNow(), "running");

  ASSERT_TRUE(Ask([&](Ticket ticket) {
                core_->PinCheckpoint(ticket, "count", Round(3), true, now_);
              }).ok());
  EXPECT_NE(roll(1, true).error().message.find("checkpoint 3 would be discarded"),
            std::string::npos);
  ASSERT_TRUE(Ask([&](Ticket ticket) {
                core_->PinCheckpoint(ticket, "count", Round(3), false, now_);
              }).ok());

  // Also out of an open round, which comes to nothing.
  Progress(clock_ += 11);
  Tick();
  EXPECT_EQ(Describe()["open_checkpoint"], 4);
  for (const auto& agent : agents_) Take("p-" + agent, Body::StopTask);
  const auto done = roll(1, true);
  ASSERT_TRUE(done.ok()) << done.error().message;
  EXPECT_EQ(done->at("round"), 1);
  EXPECT_EQ(done->at("step"), 11);
  EXPECT_EQ(done->at("discarded"), nlohmann::json({2, 3}));
  EXPECT_EQ(PhaseNow(), "placing");
  EXPECT_EQ(Describe()["generation"], 2);
  EXPECT_FALSE(Describe().contains("open_checkpoint"));
  EXPECT_EQ(Listed(), Rounds{1});
  for (const auto& agent : agents_) {
    EXPECT_EQ(Take("p-" + agent, Body::StopTask).size(), 1u);
    EXPECT_EQ(Take("p-" + agent, Body::DropRing).size(), 1u);
  }
  const auto after = Map();
  for (std::size_t i = 0; i < after.shards.size(); ++i) {
    EXPECT_EQ(after.shards[i]->restore_round, 1u);
    EXPECT_EQ(after.shards[i]->lineage, before.shards[i]->lineage + 1);
  }
  RestartTasks();
  // Its number is a new one, and once it is committed what was discarded may be deleted.
  for (const auto& server : servers_) Take("p-" + server, Body::RoundCommitted);
  clock_ = 11;
  CommitNext();
  EXPECT_EQ(Listed(), (Rounds{1, 5}));
  const auto told = Take("p-s0", Body::RoundCommitted);
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].body.AsRoundCommitted()->round, 5u);
  EXPECT_EQ(told[0].body.AsRoundCommitted()->keep.size(), 2u);
}

TEST_F(CoreTest, ARollbackIsRefusedWhereNothingCouldCarryItOut) {
  UseCheckpoints("{every_steps: 10, keep: 9}");
  StartRunning();
  CommitNext();
  const auto roll = [&] {
    return Ask([&](Ticket ticket) { core_->RollBack(ticket, "count", Round(1), true, now_); });
  };
  const auto servers = servers_;
  servers_.clear();
  Announce();
  EXPECT_EQ(roll().error().code, ErrorCode::kUnreachable);
  servers_ = servers;
  Announce();
  for (const auto& server : servers) Register(server);
  core_->Cancel(7, "count", "", now_);
  Flush();
  EXPECT_EQ(roll().error().code, ErrorCode::kConflict);
  EXPECT_EQ(Ask([&](Ticket ticket) { core_->RollBack(ticket, "none", Round(1), true, now_); })
                .error()
                .code,
            ErrorCode::kNotFound);
}

TEST_F(CoreTest, WhatAnotherJobStartsFromStaysUntilThatHasACheckpointOfItsOwn) {
  UseCheckpoints("{every_steps: 10, keep: 1}");
  StartRunning();
  CommitNext();
  const std::string from = "{every_steps: 10, keep: 1}";
  std::string text = spec_ + spec_more_;
  text.replace(text.find(from), from.size(), "{from: count@1}");
  text.replace(text.find("name: count"), 11, "name: heir");
  answers_.clear();
  core_->Submit(2, SpecJson(text), false, now_);
  Flush();
  for (const auto& name : agents_) {
    for (const auto& message : Take("p-" + name, Body::Preflight)) {
      Say("p-" + name, GoodPreflight(message.body.AsPreflight()->request));
    }
  }
  ASSERT_EQ(answers_.size(), 1u);
  ASSERT_TRUE(answers_[0].body.ok()) << answers_[0].body.error().message;
  CommitNext();
  CommitNext();
  EXPECT_EQ(Listed(), (Rounds{1, 3}));
  core_->Cancel(7, "heir", "", now_);
  Flush();
  CommitNext();
  EXPECT_EQ(Listed(), Rounds{4});
}

// The disks are a model: whatever servers are told to delete is gone.
TEST_F(CoreTest, RandomRoundsPinsPrunesAndRollbacksNeverLoseWhatAKeptOneBuildsOn) {
  UseCheckpoints("{every_steps: 10, keep: 3, keep_every: 5, full_every: 1000}");
  StartRunning();
  std::mt19937 random(11);
  std::map<std::uint64_t, Rounds> disk;  // rounds and what they build on
  std::size_t deleted = 0;
  std::size_t rollbacks = 0;
  for (int turn = 0; turn < 400; ++turn) {
    SCOPED_TRACE(turn);
    const Rounds listed = Listed();
    const auto any = [&] { return listed[random() % listed.size()]; };
    const auto dice = random() % 10;
    if (listed.empty() || dice < 5) {
      Rounds bases;
      if (!listed.empty() && random() % 5 != 0) {
        bases = disk[listed.back()];
        bases.insert(bases.begin(), listed.back());
      }
      CommitNext(bases);
      disk[Listed().back()] = bases;
    } else if (dice < 7) {
      const std::uint64_t round = any();
      const bool pinned = random() % 2 == 0;
      ASSERT_TRUE(Ask([&](Ticket ticket) {
                    core_->PinCheckpoint(ticket, "count", Round(round), pinned, now_);
                  }).ok());
    } else if (dice < 9) {
      ASSERT_TRUE(Ask([&](Ticket ticket) {
                    core_->PruneCheckpoints(ticket, "count", 1 + random() % 4, false, now_);
                  }).ok());
    } else {
      const std::uint64_t round = any();
      const auto rolled =
          Ask([&](Ticket ticket) { core_->RollBack(ticket, "count", Round(round), true, now_); });
      if (!rolled.ok()) {
        EXPECT_NE(rolled.error().message.find("pinned"), std::string::npos);
        continue;
      }
      ++rollbacks;
      EXPECT_EQ(Listed().back(), round);
      RestartTasks();
      clock_ = StepOf(round);
    }
    for (const auto& server : servers_) {
      for (const auto& message : Take("p-" + server, Body::RoundCommitted)) {
        const auto& told = *message.body.AsRoundCommitted();
        deleted += std::erase_if(disk, [&](const auto& on_disk) {
          return on_disk.first < told.round &&
                 std::none_of(told.keep.begin(), told.keep.end(),
                              [&](const auto& kept) { return kept->round == on_disk.first; });
        });
      }
    }
    for (const std::uint64_t round : Listed()) {
      ASSERT_TRUE(disk.contains(round)) << round;
      for (const std::uint64_t base : disk[round]) ASSERT_TRUE(disk.contains(base)) << base;
    }
  }
  EXPECT_GT(deleted, 50u);
  EXPECT_GT(rollbacks, 10u);
  // And nothing stays for ever: with no pins and no numbers kept the newest alone is left.
  for (const std::uint64_t round : Listed()) {
    ASSERT_TRUE(Ask([&](Ticket ticket) {
                  core_->PinCheckpoint(ticket, "count", Round(round), false, now_);
                }).ok());
  }
  CommitNext();
  ASSERT_TRUE(
      Ask([&](Ticket ticket) { core_->PruneCheckpoints(ticket, "count", 1, false, now_); }).ok());
  const Rounds left = Listed();
  for (std::size_t i = 0; i + 1 < left.size(); ++i) EXPECT_EQ(OrdinalOf(left[i]) % 5, 0u);
}

TEST_F(CoreTest, WithoutAnEarlierCheckpointADamagedOneFailsTheJob) {
  StartRunning();
  Progress(11);
  Tick();
  PlayRound(11);
  servers_.erase("s1");
  Announce();
  Tick();
  const auto map = Map();
  const auto moved = std::find_if(map.shards.begin(), map.shards.end(),
                                  [](const auto& shard) { return shard->epoch == 2; });
  ASSERT_NE(moved, map.shards.end());
  control::RestoreFailedT failed;
  failed.job = 1;
  failed.shard = static_cast<std::uint32_t>(moved - map.shards.begin());
  failed.round = 1;
  failed.epoch = 2;
  failed.damaged = true;
  Say("p-s0", failed);
  EXPECT_EQ(PhaseNow(), "failed");
}

// Found by the simulation: a worker's progress after its cut overtook the cut over a new
// connection.
TEST_F(CoreTest, WhatIsTrainedAfterACutIsLeftToTrainInItsCheckpoint) {
  StartRunning();
  const auto [task, worker] = *tasks_.begin();
  Say(worker.agent, control::LeaseRequestT{}, task);
  const auto grants = Take(worker.agent, Body::LeaseGrant);
  ASSERT_EQ(grants.size(), 1u);
  const control::LeaseT lease = *grants[0].body.AsLeaseGrant()->leases.at(0);
  ASSERT_GT(lease.end - lease.begin, 32u);
  Progress(11);
  Tick();
  control::LeaseProgressT progress;
  progress.leases.push_back(control::ClonePtr(lease));
  progress.leases.back()->done = lease.end - lease.begin;
  Say(worker.agent, std::move(progress), task);
  // The cut is at the first batch.
  control::WorkerCutT cut;
  cut.round = 1;
  cut.clock = 11;
  cut.leases.push_back(control::ClonePtr(lease));
  cut.leases.back()->done = 32;
  Say(worker.agent, std::move(cut), task);
  const auto manifest = checkpoint::FromJson(PlayRound(11));
  ASSERT_TRUE(manifest.ok()) << manifest.error().message;
  ASSERT_FALSE(manifest->data.remaining.empty());
  EXPECT_EQ(manifest->data.remaining.front().begin, lease.begin + 32);
}

TEST_F(CoreTest, RoundThatStallsIsAbortedAndItsNumberNotUsedAgain) {
  StartRunning();
  Progress(11);
  Tick();
  ASSERT_EQ(Take("p-s0", Body::RoundBegin).size(), 1u);
  Tick(61'000);
  EXPECT_EQ(Take("p-s0", Body::RoundAbort).size(), 1u);
  EXPECT_NE(Events().find("missing"), std::string::npos);
  Tick(11'000);
  const auto begun = Take("p-s0", Body::RoundBegin);
  ASSERT_EQ(begun.size(), 1u);
  EXPECT_EQ(begun[0].body.AsRoundBegin()->round, 2u);
}

// Found by the simulation: the leader died when some tasks had heard of its round and others had
// not.
TEST_F(CoreTest, RoundThatTheLeaderDoesNotKnowIsOverForWhoeverRegisters) {
  StartRunning();
  Progress(11);
  Tick();
  const std::string agent = tasks_.begin()->second.agent;
  ASSERT_EQ(Take(agent, Body::RoundBegin).size(), 1u);
  AddAgent(agent.substr(2));
  EXPECT_TRUE(Take(agent, Body::RoundAbort).empty());  // it is open here
  Tick(61'000);
  Take(agent, Body::RoundAbort);
  AddAgent(agent.substr(2));
  const auto aborts = Take(agent, Body::RoundAbort);
  ASSERT_EQ(aborts.size(), 1u);
  EXPECT_EQ(aborts[0].body.AsRoundAbort()->round, 1u);
}

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

TEST_F(CoreTest, LostServerHasItsShardsRestoredOnTheOther) {
  StartRunning();
  Progress(20);
  Tick();
  PlayRound(20);
  servers_.erase("s1");
  Announce();
  EXPECT_EQ(PhaseNow(), "recovering");
  Tick();
  const auto map = Map();
  for (const auto& shard : map.shards) {
    EXPECT_EQ(map.servers[shard->server]->procid, "p-s0");
    if (shard->epoch == 2) {
      EXPECT_EQ(shard->restore_round, 1u);
    }
  }
  EXPECT_EQ(PhaseNow(), "recovering");
  ReportShards();
  Tick();
  EXPECT_EQ(PhaseNow(), "running");
  for (const auto& [task, worker] : tasks_) {
    bool got_map = false;
    for (const auto& message : Take(worker.agent, Body::JobUpdate)) {
      got_map |= message.body.AsJobUpdate()->map != nullptr;
    }
    EXPECT_TRUE(got_map);
  }
}

TEST_F(CoreTest, ShardsOfALostServerGoOnAtTheirBackupsAtOnce) {
  StartReplicated();
  const auto before = Map();
  inbox_.clear();
  servers_.erase("s1");
  Announce();  // no tick
  const auto after = Map();
  for (std::uint32_t i = 0; i < 4; ++i) {
    const bool was_there = before.servers[before.shards[i]->server]->procid == "p-s1";
    EXPECT_EQ(after.servers[after.shards[i]->server]->procid, "p-s0");
    EXPECT_EQ(after.shards[i]->epoch, before.shards[i]->epoch + (was_there ? 1 : 0));
    EXPECT_EQ(after.shards[i]->lineage, before.shards[i]->lineage);
    EXPECT_EQ(after.shards[i]->since != 0, was_there);
  }
  EXPECT_EQ(Take("p-s0", Body::JobUpdate).size(), 1u);
  EXPECT_NE(Events().find("promoted: 2 shards of 1 server"), std::string::npos) << Events();
  // What s1 had of the others goes once s0 is heard of after that.
  EXPECT_EQ(Backups(true), 2u);
  const auto wanted = Take("p-s0", Body::ReportWanted);
  ASSERT_EQ(wanted.size(), 1u);
  Tick();
  EXPECT_EQ(Backups(true), 2u);
  ReportFeeds(true, 0, wanted[0].body.AsReportWanted()->asked);
  EXPECT_EQ(Backups(true), 0u);
  EXPECT_NE(Events().find("there are not more than 1 servers"), std::string::npos) << Events();
  ReportShards();
  Tick();
  EXPECT_EQ(PhaseNow(), "running");
  EXPECT_EQ(Events().find("placed: 2"), std::string::npos) << Events();

  // A server that joins gets them.
  AddServer("s2");
  Tick();
  EXPECT_EQ(Backups(false), 4u);
  EXPECT_EQ(Take("p-s2", Body::JobStart).size(), 1u);
  ReportFeeds(true);
  Tick();
  EXPECT_EQ(Describe()["replicated_shards"], 4);
}

TEST_F(CoreTest, ABackupThatIsNotInSyncIsNotPromoted) {
  spec_more_ = "resources: {replicas: 1}\n";
  StartRunning();
  const auto before = Map();
  servers_.erase("s1");
  Announce();
  Tick();
  const auto after = Map();
  for (std::uint32_t i = 0; i < 4; ++i) {
    const bool was_there = before.servers[before.shards[i]->server]->procid == "p-s1";
    EXPECT_EQ(after.shards[i]->lineage, before.shards[i]->lineage + (was_there ? 1 : 0));
    EXPECT_EQ(after.shards[i]->since, 0u);
  }
}

TEST_F(CoreTest, WhatAFormerFeederSaidOfABackupDoesNotCount) {
  spec_more_ = "resources: {replicas: 1}\n";
  StartRunning();
  ReportFeeds(true);
  // Reports of who is not before it in the chain, or of another membership, or epoch.
  control::ServerReportT report;
  report.job = 1;
  const auto map = Map();
  for (std::uint32_t i = 0; i < 4; ++i) {
    auto feed = std::make_unique<control::FeedStateT>();
    feed->shard = i;
    feed->epoch = 99;
    feed->since = map.shards[i]->backups[0]->since;
    feed->stalled_ms = 1'000'000;
    report.feeds.push_back(std::move(feed));
  }
  Say("p-s0", std::move(report));
  Tick();
  EXPECT_EQ(Backups(true), 4u) << Events();
}

TEST_F(CoreTest, ABackupThatItsChainCannotReachIsDroppedAndItsServerAvoided) {
  StartReplicated();
  AddServer("s2");
  ReportFeeds(true, 3500);
  Tick();
  const auto map = Map();
  for (std::uint32_t i = 0; i < 4; ++i) {
    for (const auto& backup : map.shards[i]->backups) {
      EXPECT_EQ(map.servers[backup->server]->procid, "p-s2");
      EXPECT_FALSE(backup->synced);
    }
  }
  EXPECT_NE(Events().find("backup lost"), std::string::npos);
  EXPECT_EQ(PhaseNow(), "running");
}

TEST_F(CoreTest, APromotedCopyThatIsNotThereIsRestored) {
  StartReplicated();
  servers_.erase("s1");
  Announce();
  const auto promoted = Map();
  control::ServerReportT report;
  report.job = 1;
  for (std::uint32_t i = 0; i < 4; ++i) {
    auto state = std::make_unique<control::ShardStateT>();
    state->shard = i;
    state->epoch = promoted.shards[i]->epoch;
    state->state = static_cast<std::uint8_t>(promoted.shards[i]->since != 0 ? wire::Code::Lost
                                                                            : wire::Code::Applied);
    report.shards.push_back(std::move(state));
  }
  Say("p-s0", std::move(report));
  Tick();
  const auto after = Map();
  for (std::uint32_t i = 0; i < 4; ++i) {
    const bool lost = promoted.shards[i]->since != 0;
    EXPECT_EQ(after.shards[i]->epoch, promoted.shards[i]->epoch + (lost ? 1 : 0));
    EXPECT_EQ(after.shards[i]->lineage, promoted.shards[i]->lineage + (lost ? 1 : 0));
    EXPECT_EQ(after.shards[i]->since, 0u);
  }
}

TEST_F(CoreTest, AFailedRestoreCountsFromTheServerThatHasTheShardAlone) {
  StartRunning();
  Progress(20);
  Tick();
  PlayRound(20);
  servers_.erase("s1");
  Announce();
  Tick();
  const auto map = Map();
  const auto moved = std::find_if(map.shards.begin(), map.shards.end(),
                                  [](const auto& shard) { return shard->epoch == 2; });
  ASSERT_NE(moved, map.shards.end());
  control::RestoreFailedT failed;
  failed.job = 1;
  failed.shard = static_cast<std::uint32_t>(moved - map.shards.begin());
  failed.round = 1;
  failed.epoch = 1;
  failed.message = "it is gone";
  Say("p-s0", failed);  // of an assignment that is over
  failed.epoch = 2;
  Say("p-s1", failed);
  control::RestoreFailedT nowhere = failed;
  nowhere.shard = 1000;
  Say("p-s0", nowhere);
  EXPECT_EQ(PhaseNow(), "recovering");
  Say("p-s0", failed);
  EXPECT_EQ(PhaseNow(), "failed");
}

TEST_F(CoreTest, RestartedServerReplacesItsFormerSelfAtOnce) {
  StartRunning();
  // The old node is still in ZooKeeper when the new process introduces itself.
  std::vector<Presence> servers = {
      {"p-s0", "s0", "host"}, {"p-s1", "s1", "host"}, {"p-s1b", "s1", "host"}};
  core_->SetServers(servers, now_);
  control::RegisterServerT message;
  message.name = "s1";
  message.procid = "p-s1b";
  message.host = "host";
  message.lanes = {"tcp://x"};
  Say("p-s1b", std::move(message));
  Tick();
  bool uses_new = false;
  const auto map = Map();
  for (const auto& shard : map.shards) {
    EXPECT_NE(map.servers[shard->server]->procid, "p-s1");
    uses_new |= map.servers[shard->server]->procid == "p-s1b";
  }
  EXPECT_TRUE(uses_new);
}

TEST_F(CoreTest, AnIntroductionThatArrivesAfterItsSendersDeathDelaysTheLivingOneOnly) {
  AddAgent("a0");
  EXPECT_TRUE(core_->agents().at("p-a0").alive());
  control::RegisterAgentT former;
  former.name = "a0";
  former.procid = "p-former";
  former.host = "host";
  former.slots = 1;
  Say("p-former", std::move(former));
  EXPECT_FALSE(core_->agents().at("p-former").alive());
  // It hears no more pings and introduces itself again, while nothing changes in ZooKeeper.
  AddAgent("a0");
  EXPECT_TRUE(core_->agents().at("p-a0").alive());
  EXPECT_FALSE(core_->agents().contains("p-former"));
}

TEST_F(CoreTest, WhoRegistersAndDiesBeforeItsNodeIsSeenIsForgotten) {
  control::RegisterServerT server;
  server.name = "s9";
  server.procid = "p-s9";
  server.host = "host";
  server.lanes = {"tcp://s9:1"};
  Announce();
  Say("p-s9", std::move(server));
  AddServer("s0");
  Tick(14'000);
  EXPECT_TRUE(core_->servers().contains("p-s9"));
  Tick(1000);
  EXPECT_FALSE(core_->servers().contains("p-s9"));
  EXPECT_TRUE(core_->servers().at("p-s0").alive());
}

TEST_F(CoreTest, AServerThatCrashesAgainAndAgainGetsNoShardsWhileAnotherCanTakeThem) {
  StartRunning();
  const auto shards_of = [&](const std::string& procid) {
    const auto map = Map();
    return std::count_if(map.shards.begin(), map.shards.end(), [&](const auto& shard) {
      return map.servers[shard->server]->procid == procid;
    });
  };
  for (int crash = 0; crash < 4; ++crash) {
    core_->MarkServerDead("p-s1", now_);
    Tick(2000);
    Register("s1");
  }
  EXPECT_FALSE(core_->servers().at("p-s1").unsteady);
  core_->MarkServerDead("p-s1", now_);
  Tick(2000);
  Register("s1");
  EXPECT_TRUE(core_->servers().at("p-s1").unsteady);
  EXPECT_NE(Events().find("unsteady: server s1 on host has failed 5 times"), std::string::npos);
  // The shards that s0 loses go to a new server, all of them.
  AddServer("s2");
  core_->MarkServerDead("p-s0", now_);
  Tick();
  EXPECT_EQ(shards_of("p-s1"), 0);
  EXPECT_EQ(shards_of("p-s2"), 4);
  // If there is no other it has to do.
  core_->MarkServerDead("p-s2", now_);
  Tick();
  EXPECT_EQ(shards_of("p-s1"), 4);
  Tick(60'000);
  EXPECT_FALSE(core_->servers().at("p-s1").unsteady);
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

TEST_F(CoreTest, AServerThatDrainsGetsItsShardsCopiedAndHandedOver) {
  StartRunning();
  const auto first_on = [&](const std::string& procid) {
    const auto map = Map();
    return std::count_if(map.shards.begin(), map.shards.end(), [&](const auto& shard) {
      return map.servers[shard->server]->procid == procid;
    });
  };
  const auto state_of = [&](const std::string& name) {
    const nlohmann::json described = core_->DescribeNodes();
    for (const auto& node : described.at("nodes")) {
      if (node.at("name") == name) return node.at("state").get<std::string>();
    }
    return std::string();
  };
  ASSERT_EQ(first_on("p-s1"), 2);
  answers_.clear();
  core_->SetDuty(5, "nobody", Duty::kDraining, now_);
  core_->SetDuty(6, "s1", Duty::kDraining, now_);
  Flush();
  ASSERT_EQ(answers_.size(), 2u);
  EXPECT_EQ(answers_[0].body.error().code, ErrorCode::kNotFound);
  EXPECT_EQ((*answers_[1].body)["nodes"][0]["state"], "draining");
  Tick();
  // A copy of each is made on the other, although the job wants no backups.
  auto map = Map();
  EXPECT_EQ(first_on("p-s1"), 2);
  control::ServerReportT report;
  report.job = 1;
  for (std::uint32_t i = 0; i < map.shards.size(); ++i) {
    if (map.servers[map.shards[i]->server]->procid != "p-s1") {
      EXPECT_TRUE(map.shards[i]->backups.empty());
      continue;
    }
    ASSERT_EQ(map.shards[i]->backups.size(), 1u);
    EXPECT_EQ(map.servers[map.shards[i]->backups[0]->server]->procid, "p-s0");
    auto feed = std::make_unique<control::FeedStateT>();
    feed->shard = i;
    feed->epoch = map.shards[i]->epoch;
    feed->since = map.shards[i]->backups[0]->since;
    feed->synced = true;
    report.feeds.push_back(std::move(feed));
  }
  Say("p-s1", std::move(report));
  Tick();
  Tick();
  EXPECT_EQ(first_on("p-s1"), 0);
  EXPECT_EQ(Map().shards[0]->restore_round, 0u);
  EXPECT_NE(
      Events().find("moved: 2 shards of 1 server have been handed over and are now on 1 server"),
      std::string::npos);
  EXPECT_EQ(PhaseNow(), "running");
  EXPECT_EQ(state_of("s1"), "drained");
  // The next leader knows, and what is cordoned or drains gets nothing.
  const std::string cluster = nodes_["/cluster"];
  Start(2);
  ASSERT_TRUE(core_->LoadCluster(cluster).ok());
  ASSERT_TRUE(core_->Load({Record()}, now_).ok());
  Announce();
  Register("s0");
  Register("s1");
  EXPECT_EQ(core_->servers().at("p-s1").duty, Duty::kDraining);
  core_->SetDuty(7, "s1", Duty::kFull, now_);
  Flush();
  EXPECT_EQ(state_of("s1"), "ready");
  EXPECT_EQ(nodes_["/cluster"], "{\"duties\":{}}");
  EXPECT_FALSE(core_->LoadCluster("[]").ok());
  EXPECT_FALSE(core_->LoadCluster("{\"duties\": {\"s1\": \"asleep\"}}").ok());
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

TEST_F(CoreTest, AServerThatIsMarkedDeadIsGoneAlthoughItsNodeStays) {
  StartRunning();
  core_->MarkServerDead("p-s1", now_);
  Announce();  // its session has not ended
  Tick();
  EXPECT_NE(Events().find("server s1 is gone"), std::string::npos);
  const auto holds = [&](const std::string& procid) {
    const auto map = Map();
    return std::any_of(map.shards.begin(), map.shards.end(), [&](const auto& shard) {
      return map.servers[shard->server]->procid == procid;
    });
  };
  EXPECT_FALSE(holds("p-s1"));
  inbox_["p-s1"].clear();
  Say("p-s1", control::ServerReportT{});  // it has to introduce itself first
  Tick(5000);
  EXPECT_TRUE(inbox_["p-s1"].empty());
  // It was alive after all: a member as before, and its end is seen as ever.
  Register("s1");
  EXPECT_TRUE(core_->servers().at("p-s1").alive());
  Announce();
  EXPECT_TRUE(core_->servers().at("p-s1").alive());
  servers_.erase("s1");
  Announce();
  EXPECT_FALSE(core_->servers().contains("p-s1"));
  core_->MarkServerDead("p-s1", now_);  // nobody any more
  Tick();
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
