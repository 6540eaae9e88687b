// The coordinator's rules, driven by a small cluster of scripted members.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/manifest.h"
#include "common/messages/wire.h"
#include "coordinator/core/core.h"

namespace ps::coordinator {

using control::Body;

inline constexpr char kSpec[] = R"(
apiVersion: ds/v1
kind: TrainJob
name: count
model: {type: ledger, blocks: 4}
data: {train: {format: counter, records: 6400}}
training: {workers: 2, batch_size: 32, epochs: 1, loss: none, metric: none}
optimizer: {type: sgd, learning_rate: 1.0, reference_batch: 32}
checkpoint: {every_steps: 10}
)";

inline constexpr char kLocalSteps[] = R"(
apiVersion: ds/v1
kind: TrainJob
name: count
model: {type: mlp, layers: [2, 2]}
data: {train: {format: csv, file: /t.csv, label: y}}
training: {workers: 2, batch_size: 32, local_steps: 5, epochs: 1, metric: none}
)";

inline std::string SpecJson(const std::string& text = kSpec) {
  auto spec = ParseJobYaml(text, "spec.yaml", "/");
  PS_CHECK(spec.ok(), spec.ok() ? "" : spec.error().message);
  return ResolvedJson(*spec);
}

inline control::PreflightResultT GoodPreflight(std::uint64_t request) {
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
    options.await_ms = await_ms_;
    core_ = std::make_unique<Core>(options, epoch);
  }

  void Flush() {
    Output output = core_->TakeOutput(true);
    for (NodeWrite& write : output.writes) {
      EXPECT_EQ(write.create, !nodes_.contains(write.path)) << write.path;
      nodes_[write.path] = write.data;
      if (write.path.ends_with("/state") || write.path.ends_with("/events")) {
        EXPECT_EQ(nlohmann::json::parse(write.data).dump(), write.data) << write.path;
      }
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
    for (const auto& name : servers_) servers.push_back({"p-" + name, name, HostOf(name)});
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
    message.host = HostOf(name);
    message.lanes = {"tcp://" + name + ":1"};
    if (const auto rack = racks_.find(name); rack != racks_.end()) message.rack = rack->second;
    if (const auto store = stores_.find(name); store != stores_.end()) {
      message.store = store->second;
      message.files = "tcp://" + name + ":9";
    }
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
    for (const auto& uuid : gpus_[name]) {
      auto gpu = std::make_unique<control::GpuInfoT>();
      gpu->uuid = uuid;
      gpu->major = 9;
      gpu->trouble = gpu_trouble_[uuid];
      message.gpus.push_back(std::move(gpu));
    }
    message.gpu_bandwidth = gpu_bandwidth_[name];
    if (!message.gpus.empty()) message.slots = 4;
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

  std::string HostOf(const std::string& server) const {
    const auto at = hosts_.find(server);
    return at == hosts_.end() ? "host" : at->second;
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
    core_->Submit(1, {SpecJson(std::string(spec_) + spec_more_), false}, now_);
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
      if (loss_scale_ > 0) {
        cut.loss_scale = loss_scale_ + static_cast<float>(worker.worker);
        cut.growth_tracker = 7;
      }
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
    PlayCopies();
    std::string manifest;
    for (const auto& name : servers_) {
      for (const auto& message : Take("p-" + name, Body::WriteManifest)) {
        for (const auto& part : message.body.AsWriteManifest()->parts) {
          written_[name].insert(part->name);
        }
        manifest = message.body.AsWriteManifest()->manifest;
        control::ManifestWrittenT written;
        written.job = 1;
        written.round = round;
        Say("p-" + name, std::move(written));
      }
    }
    return manifest;
  }

  // Servers fetch what they are told to, but for those that cannot.
  void PlayCopies() {
    for (bool any = true; any;) {
      any = false;
      for (const auto& name : servers_) {
        for (const auto& message : Take("p-" + name, Body::CopyPart)) {
          any = true;
          const auto& copy = *message.body.AsCopyPart();
          copies_.push_back({name, copy.part, copy.source->endpoint, {}});
          for (const auto& base : copy.bases) copies_.back().bases.push_back(base->round);
          if (cannot_copy_.contains(name)) {
            control::PartCopyFailedT failed;
            failed.job = copy.job;
            failed.round = copy.round;
            failed.part = copy.part;
            failed.message = name + " has no room";
            Say("p-" + name, std::move(failed));
          } else {
            control::PartCopiedT done;
            done.job = copy.job;
            done.round = copy.round;
            done.part = copy.part;
            Say("p-" + name, std::move(done));
          }
        }
      }
    }
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

  static std::string LaneOf(const control::MapT& map, const control::BackupEntryT& backup) {
    return map.servers[backup.server]->lanes[backup.lane];
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
        feed->to = LaneOf(map, *entry.backups[0]);
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
  std::uint64_t await_ms_ = 0;  // of the next Start()

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
  // Of servers: their hosts, if not "host", and the folders of checkpoints that they have, if any.
  std::map<std::string, std::string> hosts_, stores_, racks_;
  struct Copy {
    std::string by, part, from;
    std::vector<std::uint64_t> bases;
  };
  std::vector<Copy> copies_;                              // that were asked for in PlayRound()
  std::set<std::string> cannot_copy_;                     // servers
  std::map<std::string, std::set<std::string>> written_;  // manifests: by server the parts
  std::set<std::string> servers_, agents_;
  std::map<std::string, std::vector<std::string>> gpus_;  // of agents, which then have four slots
  std::map<std::string, std::vector<std::uint16_t>> gpu_bandwidth_;  // of agents
  std::map<std::string, std::string> gpu_trouble_;                   // by uuid
  float loss_scale_ = 0;  // that workers have in their cuts, and their slot more; 0: none
  std::map<std::string, std::string> nodes_;
  std::map<std::string, std::vector<control::MessageT>> inbox_;
  std::vector<Answer> answers_;
  std::map<std::uint64_t, TaskOf> tasks_;
  std::uint64_t base_ = 0;  // of the round that was played last
};

}  // namespace ps::coordinator
