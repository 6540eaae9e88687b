// Jobs that load parts of other jobs' checkpoints: what is refused, what is pinned and kept.
#include <gmock/gmock.h>

#include "tests/coordinator/core_fixture.h"

namespace ps::coordinator {
namespace {

using ::testing::HasSubstr;

class CoreLoadTest : public CoreTest {
 protected:
  // The source has a checkpoint 1.
  void SetUp() override {
    UseCheckpoints("{every_steps: 10, keep: 1}");
    StartRunning();
    CommitNext();
  }

  // What comes of a job "heir" with this checkpoint section, whose preflight says so.
  Result<nlohmann::json> Submit(
      const std::string& checkpoint, bool dry_run = false,
      const std::function<void(control::PreflightResultT&)>& change = {}) {
    std::string text = spec_ + spec_more_;
    const std::string own = "{every_steps: 10, keep: 1}";
    text.replace(text.find(own), own.size(), checkpoint);
    text.replace(text.find("name: count"), 11, "name: heir");
    answers_.clear();
    core_->Submit(2, {SpecJson(text), dry_run}, now_);
    Flush();
    for (const auto& name : agents_) {
      for (const auto& message : Take("p-" + name, Body::Preflight)) {
        preflight_spec_ = message.body.AsPreflight()->spec_json;
        auto result = GoodPreflight(message.body.AsPreflight()->request);
        if (change) change(result);
        Say("p-" + name, std::move(result));
      }
    }
    if (answers_.size() != 1u) return Error{ErrorCode::kInternal, "no answer"};
    return answers_[0].body;
  }
  std::string ErrorOf(const std::string& checkpoint) {
    const auto body = Submit(checkpoint);
    return body.ok() ? "" : body.error().message;
  }

  std::string preflight_spec_;
};

TEST_F(CoreLoadTest, SourcesAreStoredWithTheNumbersOfJobAndRound) {
  const auto body = Submit("{load: [{from: count, tensors: [counts]}]}");
  ASSERT_TRUE(body.ok()) << body.error().message;
  EXPECT_EQ(ParseJobJson(preflight_spec_)->checkpoint.load.at(0).from, "1@1");
  const auto described = core_->DescribeJob("heir");
  ASSERT_TRUE(described.ok());
  EXPECT_EQ((*described)["job"]["spec"]["checkpoint"]["load"][0]["from"], "1@1");
  const auto events = core_->DescribeEvents("heir", 0);
  ASSERT_TRUE(events.ok());
  EXPECT_THAT(events->dump(), HasSubstr("begins with 1 tensor and 0 embedding tables of checkpoint "
                                        "1 of job 1 (count)"));
}

TEST_F(CoreLoadTest, WhatIsLoadedStaysUntilTheJobHasACheckpointOfItsOwnOrIsOver) {
  ASSERT_TRUE(Submit("{load: [{from: count@1, tensors: ['*']}]}").ok());
  CommitNext();
  CommitNext();
  EXPECT_EQ(Listed(), (Rounds{1, 3}));
  core_->Cancel(7, "heir", "", now_);
  Flush();
  CommitNext();
  EXPECT_EQ(Listed(), Rounds{4});
}

TEST_F(CoreLoadTest, WhatCannotBeLoadedIsRefusedWithItsReason) {
  EXPECT_THAT(ErrorOf("{load: [{from: nobody, tensors: ['*']}]}"),
              HasSubstr("checkpoint.load[0] (nobody): there is no job nobody"));
  EXPECT_THAT(ErrorOf("{load: [{from: count@7, tensors: ['*']}]}"),
              HasSubstr("checkpoint.load[0] (count@7): job count has no checkpoint 7"));
  EXPECT_THAT(ErrorOf("{load: [{from: count, tensors: [count]}]}"),
              HasSubstr("checkpoint.load[0] (1@1): tensors: `count` names no tensor of the source, "
                        "did you mean `counts`?"));
  EXPECT_THAT(ErrorOf("{load: [{from: count, tables: [users]}]}"),
              HasSubstr("names no table of the source, there are none"));
  EXPECT_THAT(ErrorOf("{load: [{from: count, tensors: [counts]}, {from: 1@1, tensors: ['c*']}]}"),
              HasSubstr("checkpoint.load[1] (1@1): tensor `counts` of the job has another source"));
  EXPECT_EQ(Submit("{load: [{from: nobody, tensors: ['*']}]}").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(Submit("{load: [{from: count, tensors: [x]}]}").error().code, ErrorCode::kInvalid);
  EXPECT_FALSE(core_->DescribeJob("heir").ok());
}

TEST_F(CoreLoadTest, AModelThatGrewSaysSo) {
  const auto wider = [](control::PreflightResultT& result) {
    auto& table = *result.layout->tables[0];
    table.elements += 65536;
    table.block_elements.push_back(65536);
    table.tensors[0]->elements += 65536;
    table.tensors[0]->shape[0]->size += 65536;
    result.layout->blocks = 5;
    result.layout->fingerprint = 78;
  };
  const auto refused = Submit("{load: [{from: count, tensors: ['*']}]}", false, wider);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("`grow: true`"));
  EXPECT_TRUE(Submit("{load: [{from: count, tensors: ['*'], grow: true}]}", true, wider).ok());
  EXPECT_FALSE(core_->DescribeJob("heir").ok());  // a dry run
  EXPECT_TRUE(Submit("{load: [{from: count, tensors: ['*'], grow: true}]}", false, wider).ok());
}

TEST_F(CoreLoadTest, ATensorOfAFileIsNotLoadedTwice) {
  const auto from_file = [](control::PreflightResultT& result) {
    result.file_tensors = {"counts"};
  };
  const std::string file = "{file: /m.safetensors, tensors: ['*']}";
  EXPECT_TRUE(Submit("{load: [" + file + "]}", true, from_file).ok());
  const auto twice =
      Submit("{load: [" + file + ", {from: count, tensors: ['*']}]}", false, from_file);
  ASSERT_FALSE(twice.ok());
  EXPECT_THAT(twice.error().message,
              HasSubstr("checkpoint.load[1] (1@1): tensor `counts` of the job has another source "
                        "already: a file of checkpoint.load"));
}

// The job of the fixture loads a file itself.
class CoreFileTest : public CoreTest {
 protected:
  void Begin() {
    UseCheckpoints("{every_steps: 10, load: [{file: /m.safetensors, tensors: ['*']}]}");
    AddServer("s0");
    AddServer("s1");
    AddAgent("a0");
    AddAgent("a1");
    Submit();
    Tick();
  }
  // The specs that tasks are started with.
  std::vector<std::string> StartedWith() {
    std::vector<std::string> specs;
    for (const auto& name : agents_) {
      for (auto& message : Take("p-" + name, Body::StartTask)) {
        specs.push_back(message.body.AsStartTask()->spec_json);
        inbox_["p-" + name].push_back(std::move(message));
      }
    }
    return specs;
  }
};

TEST_F(CoreFileTest, TasksThatStartAfterACheckpointNeedNoFile) {
  Begin();
  for (const std::string& spec : StartedWith()) EXPECT_THAT(spec, HasSubstr("/m.safetensors"));
  ServeStarts();
  ReportShards();
  Tick();
  ASSERT_EQ(PhaseNow(), "running");
  CommitNext();
  const auto lost = tasks_.begin();
  control::TaskExitedT exited;
  exited.task = lost->first;
  exited.job = 1;
  exited.worker = lost->second.worker;
  exited.incarnation = lost->second.incarnation;
  exited.status = -9;
  const std::string agent = lost->second.agent;
  tasks_.erase(lost);
  Say(agent, std::move(exited));
  for (int i = 0; i < 40; ++i) Tick();
  const auto specs = StartedWith();
  ASSERT_FALSE(specs.empty());
  for (const std::string& spec : specs) {
    EXPECT_EQ(spec.find("/m.safetensors"), std::string::npos);
    EXPECT_TRUE(ParseJobJson(spec).ok());
  }
  ServeStarts();
  EXPECT_NE(PhaseNow(), "failed") << Events();
}

TEST_F(CoreFileTest, ATaskWithAnotherFileEndsTheJob) {
  Begin();
  for (const auto& name : agents_) {
    for (const auto& message : Take("p-" + name, Body::StartTask)) {
      control::TaskReadyT ready;
      ready.layout_fingerprint = 77;
      ready.data_fingerprint = 5;
      ready.records = 6400;
      ready.files_fingerprint = 12;
      Say("p-" + name, std::move(ready), message.body.AsStartTask()->task);
    }
  }
  EXPECT_EQ(PhaseNow(), "failed");
  EXPECT_THAT(Events(), HasSubstr("has another file of checkpoint.load than was checked"));
}

TEST_F(CoreLoadTest, AShardThatCannotBeLoadedEndsTheJobWithTheReason) {
  ASSERT_TRUE(Submit("{load: [{from: count, tensors: ['*']}]}").ok());
  // The source is over, so that its tasks make room.
  core_->Cancel(7, "count", "", now_);
  Flush();
  for (int i = 0; i < 5; ++i) {
    now_ += 1000;
    core_->Tick(now_);
    Flush();
  }
  const auto starts = Take("p-s0", Body::JobStart);
  const control::JobStartT* start = nullptr;
  for (const auto& message : starts) {
    if (message.body.AsJobStart()->name == "heir") start = message.body.AsJobStart();
  }
  ASSERT_NE(start, nullptr);
  EXPECT_EQ(start->restore, "");
  EXPECT_EQ(start->map->shards[0]->restore_round, 0u);
  const auto owner = start->map->servers[start->map->shards[2]->server]->procid;
  control::RestoreFailedT failed;
  failed.job = start->job;
  failed.shard = 2;
  failed.epoch = start->map->shards[2]->epoch;
  failed.message = "checkpoint 1 of job 1: part: shard 0: gone bad";
  failed.damaged = true;
  Say(owner, std::move(failed));
  const auto described = core_->DescribeJob("heir");
  ASSERT_TRUE(described.ok());
  EXPECT_EQ((*described)["job"]["phase"], "failed");
  EXPECT_EQ((*described)["job"]["reason"],
            "shard 2 could not be loaded: checkpoint 1 of job 1: part: shard 0: gone bad");
}

}  // namespace
}  // namespace ps::coordinator
