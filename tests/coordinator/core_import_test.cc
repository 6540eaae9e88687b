// Checkpoints of elsewhere that become ones of this cluster.
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/coordinator/core_fixture.h"

namespace ps::coordinator {
namespace {

class ImportTest : public CoreTest {
 protected:
  // Checkpoint 12 of job 7 elsewhere: two parts, of which one builds on 9 and 4.
  static std::string ManifestText(const std::string& spec = kSpec) {
    checkpoint::Manifest manifest;
    manifest.job = JobId(7);
    manifest.job_name = "count";
    manifest.round = Round(12);
    manifest.generation = 1;
    manifest.time_ms = 1'700'000'000'000;
    manifest.step = 80;
    manifest.samples = 2560;
    manifest.layout_fingerprint = 77;
    manifest.tables = {
        {"parameters", TableRule::Sgd, 4 * 65536, {{"counts", {4 * 65536}, 0, 4 * 65536}}}};
    for (std::uint32_t shard = 0; shard < 4; ++shard) {
      checkpoint::ManifestShard one;
      one.shard = ShardId(shard);
      one.server = shard < 2 ? "a" : "b";
      one.epoch = Epoch(1);
      one.version = 160;
      one.bytes = 100;
      one.state_bytes = 1000;
      one.digest = std::string(32, 'a');
      one.values_digest = std::string(32, 'b');
      if (shard == 3) one.bases = {Round(9), Round(4)};
      manifest.shards.push_back(one);
    }
    manifest.data = {{{2560, 6400}}, 6400, 0};
    manifest.program_version = "0.1.0";
    manifest.spec_json = SpecJson(spec);
    const auto text = checkpoint::ToJson(manifest);
    PS_CHECK(text.ok(), text.ok() ? "" : text.error().message);
    return *text;
  }
  static ImportOrder Order(const std::string& manifest) {
    return {"tcp://elsewhere:5", "job-7-count-2026/ckpt-12", manifest};
  }

  void StartServers(bool own_disks = true) {
    for (const std::string name : {"s0", "s1", "s2"}) {
      stores_[name] = own_disks ? "store-" + name : "one";
      AddServer(name);
    }
    Tick();
  }
  Result<nlohmann::json> Import(const std::string& name = "",
                                const std::string& manifest = ManifestText()) {
    answers_.clear();
    core_->Import(9, Order(manifest), name, "", now_);
    Flush();
    PS_CHECK(answers_.size() == 1, answers_.size());
    Result<nlohmann::json> body = std::move(answers_[0].body);
    answers_.clear();
    if (body.ok()) Tick();
    return body;
  }
  // Servers write what they are told to.
  void PlayManifests() {
    for (const auto& name : servers_) {
      for (const auto& message : Take("p-" + name, Body::WriteManifest)) {
        const auto& write = *message.body.AsWriteManifest();
        for (const auto& part : write.parts) written_[name].insert(part->name);
        control::ManifestWrittenT written;
        written.job = write.job;
        written.round = write.round;
        Say("p-" + name, std::move(written));
      }
    }
  }
  nlohmann::json Checkpoints(const std::string& job = "count") {
    return core_->DescribeCheckpoints(job)->at("checkpoints");
  }
  Result<nlohmann::json> Prune(bool all, bool dry_run = false) {
    answers_.clear();
    core_->PruneCheckpoints(9, "count", std::nullopt, all, dry_run, now_);
    Flush();
    Result<nlohmann::json> body = std::move(answers_.at(0).body);
    answers_.clear();
    return body;
  }
  void Lose(const std::string& name) {
    servers_.erase(name);
    Announce();
    Tick();
  }
};

TEST_F(ImportTest, EveryPartLiesInTwoFoldersBeforeItIsListed) {
  StartServers();
  const auto body = Import();
  ASSERT_TRUE(body.ok()) << body.error().message;
  EXPECT_EQ(PhaseNow(), "importing");
  EXPECT_EQ(Checkpoints().size(), 0u);
  PlayCopies();
  EXPECT_EQ(copies_.size(), 4u);
  std::map<std::string, std::set<std::string>> by_part;
  for (const Copy& copy : copies_) {
    by_part[copy.part].insert(copy.by);
    EXPECT_EQ(copy.bases.size(), copy.part == "b" ? 2u : 0u);
    EXPECT_EQ(copy.from, "tcp://elsewhere:5");
  }
  EXPECT_EQ(by_part["a"].size(), 2u);
  EXPECT_EQ(by_part["b"].size(), 2u);
  EXPECT_EQ(Checkpoints().size(), 0u);
  PlayManifests();
  EXPECT_EQ(PhaseNow(), "imported");
  ASSERT_EQ(Checkpoints().size(), 1u);
  const nlohmann::json checkpoint = Checkpoints()[0];
  EXPECT_EQ(checkpoint["round"], 12);
  EXPECT_EQ(checkpoint["step"], 80);
  EXPECT_EQ(checkpoint["directory"], "job-1/ckpt-12");
  EXPECT_EQ(checkpoint["manifest_hash"], checkpoint::Hash(ManifestText()));
  EXPECT_EQ(checkpoint["bases"], nlohmann::json::array({9, 4}));
  EXPECT_EQ(checkpoint["copies"], 2);
  EXPECT_EQ(checkpoint["shards"], 4);
  // What it builds on is kept, and nothing else of the job.
  const auto told = Take("p-s0", Body::RoundCommitted);
  ASSERT_FALSE(told.empty());
  EXPECT_EQ(told.back().body.AsRoundCommitted()->keep.size(), 3u);
}

TEST_F(ImportTest, WithOneFolderForAllEachPartIsCopiedOnce) {
  StartServers(/*own_disks=*/false);
  ASSERT_TRUE(Import("mine").ok());
  PlayCopies();
  EXPECT_EQ(copies_.size(), 2u);
  PlayManifests();
  EXPECT_EQ(core_->DescribeJob("mine")->at("job")["phase"], "imported");
}

TEST_F(ImportTest, WhoeverCannotTakeAPartIsReplacedAndWhenNobodyCanItFailsAndGoes) {
  StartServers();
  cannot_copy_ = {"s1"};
  ASSERT_TRUE(Import().ok());
  PlayCopies();
  PlayManifests();
  EXPECT_EQ(PhaseNow(), "imported") << Events();
  cannot_copy_ = {"s0", "s1"};
  ASSERT_TRUE(Import().ok());
  PlayCopies();
  EXPECT_EQ(PhaseNow(), "failed");
  EXPECT_NE(Describe()["reason"].get<std::string>().find("has no room"), std::string::npos);
  EXPECT_EQ(Checkpoints().size(), 0u);
  // Whoever was told to copy hears that it came to nothing, and that nothing is kept.
  for (const std::string name : {"s0", "s1", "s2"}) {
    EXPECT_FALSE(Take("p-" + name, Body::RoundAbort).empty()) << name;
    const auto kept = Take("p-" + name, Body::RoundCommitted);
    ASSERT_FALSE(kept.empty());
    EXPECT_EQ(kept.back().body.AsRoundCommitted()->job, 2u);
    EXPECT_EQ(kept.back().body.AsRoundCommitted()->round, 13u);
    EXPECT_TRUE(kept.back().body.AsRoundCommitted()->keep.empty());
  }
  // And whoever was away hears it when it comes.
  Register("s1");
  EXPECT_FALSE(Take("p-s1", Body::RoundCommitted).empty());
}

TEST_F(ImportTest, AServerThatDiesIsReplacedAndOneThatReturnsIsToldAgain) {
  StartServers();
  ASSERT_TRUE(Import().ok());
  // The first two have a part each to copy; what one heard is lost with its connection.
  EXPECT_EQ(Take("p-s0", Body::CopyPart).size(), 1u);
  Register("s0");
  EXPECT_EQ(Take("p-s0", Body::CopyPart).size(), 1u);
  Lose("s0");
  PlayCopies();
  EXPECT_EQ(PhaseNow(), "importing");
  // The two that are left have everything; the last word is lost.
  for (const auto& name : servers_) EXPECT_EQ(Take("p-" + name, Body::WriteManifest).size(), 1u);
  Register("s1");
  Register("s2");
  PlayManifests();
  EXPECT_EQ(PhaseNow(), "imported") << Events();
  EXPECT_EQ(Checkpoints()[0]["copies"], 2);
}

TEST_F(ImportTest, ItMayBeCancelledAndEndsWithTheCoordinator) {
  StartServers();
  ASSERT_TRUE(Import().ok());
  EXPECT_FALSE(Prune(false).ok());
  core_->Cancel(9, "count", "", now_);
  Flush();
  EXPECT_EQ(PhaseNow(), "cancelled");
  EXPECT_FALSE(Take("p-s0", Body::RoundAbort).empty());

  ASSERT_TRUE(Import("again").ok());
  JobRecord record;
  record.id = 2;
  for (auto& [node, text] : std::map<std::string, std::string*>{{"spec", &record.spec},
                                                                {"layout", &record.layout},
                                                                {"state", &record.state},
                                                                {"map", &record.map},
                                                                {"events", &record.events}}) {
    *text = nodes_["/jobs/0000000002/" + node];
  }
  Start(2);
  ASSERT_TRUE(core_->Load({record}, now_).ok());
  inbox_.clear();
  Announce();
  for (const auto& name : servers_) Register(name);
  Tick();
  const nlohmann::json job = core_->DescribeJob("again")->at("job");
  EXPECT_EQ(job["phase"], "failed");
  EXPECT_NE(job["reason"].get<std::string>().find("import it again"), std::string::npos);
  inbox_.clear();
  Register("s0");
  const auto aborts = Take("p-s0", Body::RoundAbort);
  ASSERT_EQ(aborts.size(), 1u) << "it may still copy";
  EXPECT_EQ(aborts[0].body.AsRoundAbort()->round, 12u);
  EXPECT_FALSE(Take("p-s0", Body::RoundCommitted).empty());
}

TEST_F(ImportTest, WhatCannotBeUnderstoodMakesNoJob) {
  EXPECT_EQ(Import().error().code, ErrorCode::kUnreachable);
  StartServers();
  std::string text = ManifestText();
  text[text.size() / 2] ^= 1;
  EXPECT_EQ(Import("", text).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(Import("", "").error().code, ErrorCode::kInvalid);
  EXPECT_EQ(Import("../x").error().code, ErrorCode::kInvalid);
  ImportOrder order = Order(ManifestText());
  order.endpoint = "/etc/passwd";
  core_->Import(9, order, "", "", now_);
  Flush();
  EXPECT_EQ(answers_.at(0).body.error().code, ErrorCode::kUsage);
  EXPECT_EQ(core_->DescribeJobs()["jobs"].size(), 0u);
  EXPECT_EQ(nodes_.count("/jobs/0000000001"), 0u);
}

TEST_F(ImportTest, AJobStartsFromItAndUntilItHasACheckpointItIsHeld) {
  StartServers();
  AddAgent("a0");
  AddAgent("a1");
  ASSERT_TRUE(Import("old").ok());
  PlayCopies();
  PlayManifests();
  EXPECT_EQ(core_->DescribeJob("old")->at("job")["phase"], "imported");
  const std::string text = std::string(kSpec).replace(std::string(kSpec).find("{every_steps: 10}"),
                                                      17, "{every_steps: 10, from: old@12}");
  spec_ = text.c_str();
  Submit();
  ASSERT_TRUE(answers_.at(0).body.ok());
  Tick();
  ServeStarts();
  Tick();
  bool restored = false;
  for (const auto& name : servers_) {
    for (const auto& message : Take("p-" + name, Body::JobStart)) {
      const auto& start = *message.body.AsJobStart();
      EXPECT_EQ(start.restore, "job-1/ckpt-12");
      EXPECT_EQ(start.restore_job, 1u);
      restored = true;
    }
  }
  EXPECT_TRUE(restored);
  answers_.clear();
  core_->PruneCheckpoints(9, "old", std::nullopt, true, false, now_);
  Flush();
  EXPECT_EQ(answers_.at(0).body->at("removed").size(), 0u);
  EXPECT_EQ(Checkpoints("old").size(), 1u);
}

TEST_F(ImportTest, AllOfItMayBeRemoved) {
  StartServers();
  ASSERT_TRUE(Import().ok());
  PlayCopies();
  PlayManifests();
  EXPECT_EQ(Prune(false)->at("removed").size(), 0u);
  EXPECT_EQ(Prune(true, true)->at("removed"), nlohmann::json::array({12}));
  EXPECT_EQ(Checkpoints().size(), 1u);
  inbox_.clear();
  EXPECT_EQ(Prune(true)->at("removed"), nlohmann::json::array({12}));
  EXPECT_EQ(Checkpoints().size(), 0u);
  const auto kept = Take("p-s0", Body::RoundCommitted);
  ASSERT_EQ(kept.size(), 1u);
  EXPECT_EQ(kept[0].body.AsRoundCommitted()->round, 13u);
  EXPECT_TRUE(kept[0].body.AsRoundCommitted()->keep.empty());
}

TEST_F(ImportTest, AllOfAJobThatRunsStays) {
  StartRunning();
  EXPECT_EQ(Prune(true).error().code, ErrorCode::kConflict);
}

}  // namespace
}  // namespace ps::coordinator
