// Parts of checkpoints in several servers' folders, and restores that find them there.
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "coordinator/core/placement.h"
#include "tests/coordinator/core_fixture.h"

namespace ps::coordinator {
namespace {

class CopiesTest : public CoreTest {
 protected:
  // Three servers with folders of their own, which have the first checkpoint between them.
  void StartWith(const std::string& checkpoint = "{every_steps: 10}") {
    spec_text_ = kSpec;
    const std::string every = "{every_steps: 10}";
    spec_text_.replace(spec_text_.find(every), every.size(), checkpoint);
    spec_ = spec_text_.c_str();
    for (const std::string name : {"s0", "s1", "s2"}) {
      if (!stores_.contains(name)) stores_[name] = "store-" + name;
    }
    AddServer("s2");
    StartRunning();
  }
  void Play(std::uint64_t clock, const std::vector<std::uint64_t>& bases = {}) {
    copies_.clear();
    written_.clear();
    Progress(clock);
    Tick();
    (void)PlayRound(clock, bases);
  }
  void Lose(const std::string& name) {
    servers_.erase(name);
    Announce();
    Tick();
  }
  std::string ReasonNow() { return Describe()["reason"]; }
  // The server of the copies of a part.
  std::string CopierOf(const std::string& part) {
    for (const Copy& copy : copies_) {
      if (copy.part == "p-" + part) return copy.by;
    }
    return "";
  }
  // The server that a shard is on.
  std::string FirstOf(std::uint32_t shard) {
    const control::MapT map = Map();
    return map.servers[map.shards[shard]->server]->name;
  }
  // The folders of all servers that are here were looked at, but for these.
  void FailRestore(std::uint32_t shard, bool damaged, const std::set<std::string>& unasked = {}) {
    const control::MapT map = Map();
    control::RestoreFailedT failed;
    failed.job = 1;
    failed.shard = shard;
    failed.round = map.shards[shard]->restore_round;
    failed.epoch = map.shards[shard]->epoch;
    failed.damaged = damaged;
    failed.message = "it is not there";
    for (const std::string& server : servers_) {
      if (!unasked.contains(server)) failed.asked.push_back(stores_[server]);
    }
    Say(map.servers[map.shards[shard]->server]->procid, std::move(failed));
  }

  // The server of the shard 0 dies, and another one starts with its folder.
  void ReplaceFirst() {
    const std::string first = FirstOf(0);
    const std::string store = stores_[first];
    Lose(first);
    stores_["s9"] = store;
    AddServer("s9");
    Tick();
  }

  std::string spec_text_;
};

TEST_F(CopiesTest, EveryPartLiesInTwoFoldersBeforeTheRoundCounts) {
  StartWith();
  Play(11);
  EXPECT_EQ(Describe()["checkpoints"], 1);
  ASSERT_EQ(copies_.size(), 3u);
  std::set<std::string> parts, by;
  for (const Copy& copy : copies_) {
    EXPECT_NE("p-" + copy.by, copy.part);
    EXPECT_EQ("tcp://" + copy.part.substr(2) + ":9", copy.from);
    parts.insert(copy.part);
    by.insert(copy.by);
  }
  EXPECT_EQ(parts.size(), 3u);
  EXPECT_EQ(by.size(), 3u) << "one server has more to copy than another";
  // Each has the manifest beside its own part and beside its copy.
  for (const auto& [name, written] : written_) EXPECT_EQ(written.size(), 2u) << name;
}

TEST_F(CopiesTest, TheRoundWaitsForItsCopies) {
  StartWith();
  Progress(11);
  Tick();
  cannot_copy_ = {"s0", "s1", "s2"};
  (void)PlayRound(11);
  EXPECT_EQ(Describe()["checkpoints"], 0);
  EXPECT_NE(Events().find("could not be copied: "), std::string::npos) << Events();
  EXPECT_NE(Events().find("has no room"), std::string::npos);
}

TEST_F(CopiesTest, WhatOneServerCannotCopyAnotherDoes) {
  StartWith();
  cannot_copy_ = {"s1"};
  Play(11);
  EXPECT_EQ(Describe()["checkpoints"], 1);
  EXPECT_FALSE(written_["s1"].contains("p-s0"));
  EXPECT_FALSE(written_["s1"].contains("p-s2"));
  std::map<std::string, int> holders;
  for (const auto& [name, written] : written_) {
    for (const std::string& part : written) ++holders[part];
  }
  for (const std::string part : {"p-s0", "p-s1", "p-s2"}) EXPECT_EQ(holders[part], 2) << part;
}

TEST_F(CopiesTest, AFolderThatAllShareIsOne) {
  stores_ = {{"s0", "shared"}, {"s1", "shared"}, {"s2", "shared"}};
  StartWith();
  Play(11);
  EXPECT_EQ(Describe()["checkpoints"], 1);
  EXPECT_TRUE(copies_.empty());
}

TEST_F(CopiesTest, NoMoreCopiesThanAskedFor) {
  StartWith("{every_steps: 10, copies: 1}");
  Play(11);
  EXPECT_EQ(Describe()["checkpoints"], 1);
  EXPECT_TRUE(copies_.empty());
}

TEST_F(CopiesTest, ThreeCopiesOfThree) {
  StartWith("{every_steps: 10, copies: 3}");
  Play(11);
  EXPECT_EQ(Describe()["checkpoints"], 1);
  EXPECT_EQ(copies_.size(), 6u);
  for (const auto& [name, written] : written_) EXPECT_EQ(written.size(), 3u) << name;
}

TEST_F(CopiesTest, AnotherHostComesFirst) {
  hosts_ = {{"s0", "a"}, {"s1", "a"}, {"s2", "b"}};
  StartWith();
  Play(11);
  EXPECT_EQ(CopierOf("s0"), "s2");
  EXPECT_EQ(CopierOf("s1"), "s2");
}

TEST_F(CopiesTest, WhoHasWhatAPartBuildsOnCopiesItAgain) {
  StartWith("{every_steps: 10, full_every: 10}");
  Play(11);
  std::map<std::string, std::string> before;
  for (const Copy& copy : copies_) before[copy.part] = copy.by;
  Play(21, {1});
  ASSERT_EQ(copies_.size(), 3u);
  for (const Copy& copy : copies_) {
    EXPECT_EQ(copy.by, before[copy.part]);
    // The shard 0 alone builds on the round before.
    const bool of_first = copy.part == "p-" + FirstOf(0);
    EXPECT_EQ(copy.bases, of_first ? std::vector<std::uint64_t>{1} : std::vector<std::uint64_t>());
  }
}

TEST_F(CopiesTest, ACopierThatDiesIsReplaced) {
  StartWith();
  AddServer("s3");  // has no folder that others could read
  stores_["s4"] = "store-s4";
  hosts_["s4"] = "elsewhere";
  AddServer("s4");
  Progress(11);
  Tick();
  // All copies go to the other host; it never answers, and dies.
  servers_.erase("s4");
  const auto rest = servers_;
  (void)PlayRound(11);
  Announce();
  Tick();
  PlayCopies();
  std::map<std::string, std::set<std::string>> written;
  for (const auto& name : rest) {
    for (const auto& message : Take("p-" + name, Body::WriteManifest)) {
      for (const auto& part : message.body.AsWriteManifest()->parts) {
        written[part->name].insert(name);
      }
    }
  }
  for (const std::string part : {"p-s0", "p-s1", "p-s2"}) {
    EXPECT_EQ(written[part].size(), 2u) << part;
  }
}

TEST_F(CopiesTest, OneOfTwoHoldersIsEnough) {
  StartWith();
  Play(11);
  Lose(FirstOf(0));
  EXPECT_EQ(ReasonNow().find("waits for server"), std::string::npos) << ReasonNow();
  EXPECT_EQ(Map().shards[0]->restore_round, 1u);
  ReportShards();
  Tick();
  EXPECT_EQ(PhaseNow(), "running");
}

TEST_F(CopiesTest, BothHoldersGoneIsWaitedForByName) {
  StartWith();
  Play(11);
  const std::string first = FirstOf(0);
  const std::string second = CopierOf(first);
  servers_.erase(first);
  servers_.erase(second);
  Announce();
  Tick();
  EXPECT_EQ(PhaseNow(), "recovering");
  EXPECT_NE(ReasonNow().find("waits for server "), std::string::npos) << ReasonNow();
  EXPECT_NE(ReasonNow().find(first), std::string::npos) << ReasonNow();
  EXPECT_NE(ReasonNow().find(second), std::string::npos) << ReasonNow();
  const std::uint64_t version = Map().version;
  for (int i = 0; i < 50; ++i) Tick();
  EXPECT_EQ(Map().version, version);
  // A new leader waits as well.
  const JobRecord record = Record();
  Start(2);
  ASSERT_TRUE(core_->Load({record}, now_).ok());
  Announce();
  for (const auto& name : servers_) Register(name);
  for (int i = 0; i < 10; ++i) Tick();
  EXPECT_NE(ReasonNow().find("waits for server "), std::string::npos) << ReasonNow();
  // The folder is what counts, not the process, nor its name.
  stores_["s9"] = stores_[second];
  AddServer("s9");
  Tick();
  EXPECT_EQ(ReasonNow().find("waits for server "), std::string::npos) << ReasonNow();
  EXPECT_GT(Map().version, version);
  // It is the first that is asked.
  const auto starts = Take("p-s9", Body::JobStart);
  ASSERT_FALSE(starts.empty());
  const auto& sources = starts.back().body.AsJobStart()->sources;
  ASSERT_EQ(sources.size(), 2u);
  std::set<std::string> stores;
  for (const auto& source : sources) stores.insert(source->store);
  EXPECT_TRUE(stores.contains(stores_["s9"]));
}

TEST_F(CopiesTest, WhatWasNotThereWhileAHolderWasAwayIsTriedAgain) {
  StartWith();
  Play(11);
  Play(21);
  ASSERT_EQ(Describe()["checkpoints"], 2);
  Lose(FirstOf(0));
  const std::uint32_t epoch = Map().shards[0]->epoch;
  // Who has the other copy has just gone, too: the new place of the shard does not find it.
  FailRestore(0, /*damaged=*/true);
  EXPECT_NE(Events().find("it is tried again"), std::string::npos) << Events();
  EXPECT_EQ(Events().find("is damaged"), std::string::npos);
  for (int i = 0; i < 40; ++i) Tick();
  EXPECT_GT(Map().shards[0]->epoch, epoch);
  EXPECT_EQ(Map().shards[0]->restore_round, 2u);
}

// Found by the simulation: a checkpoint was taken for damaged, as its holders came while the
// server read elsewhere.
TEST_F(CopiesTest, WhatNoHolderWasAskedForIsNotDamaged) {
  StartWith();
  Play(11);
  Play(21);
  ReplaceFirst();
  const std::uint32_t epoch = Map().shards[0]->epoch;
  FailRestore(0, /*damaged=*/true, {"s9"});
  EXPECT_EQ(Events().find("cannot be restored: "), std::string::npos) << Events();
  for (int i = 0; i < 40; ++i) Tick();
  EXPECT_GT(Map().shards[0]->epoch, epoch);
  EXPECT_EQ(Map().shards[0]->restore_round, 2u);
}

// The job stood still for good, and the shards were where they were for the next leader, with more
// in them than was left to train.
TEST_F(CopiesTest, ARollbackThatHasToWaitForAPartIsKnownToTheNextLeader) {
  StartWith();
  Play(11);
  const std::string first = FirstOf(0);
  const std::string copier = CopierOf(first);
  ASSERT_NE(copier, "");
  Play(21);
  Lose(first);
  Lose(copier);
  AddServer("s7");
  ASSERT_TRUE(
      Ask([&](Ticket ticket) { core_->RollBack(ticket, "count", Round(1), true, now_); }).ok());
  EXPECT_NE(ReasonNow().find("waits for server"), std::string::npos) << Events();
  for (const auto& shard : Map().shards) EXPECT_EQ(shard->lane, kNoLane);
  // Tasks that are ready have nowhere to push to yet.
  tasks_.clear();
  for (int i = 0; i < 20; ++i) Tick();
  for (const auto& agent : agents_) Take("p-" + agent, Body::TaskStart);
  ServeStarts();
  for (int i = 0; i < 20; ++i) Tick();
  ASSERT_FALSE(tasks_.empty());
  for (const auto& [task, worker] : tasks_) {
    EXPECT_TRUE(Take(worker.agent, Body::TaskStart).empty());
  }
  EXPECT_NE(ReasonNow().find("waits for server"), std::string::npos);
  AddServer(first);
  Tick();
  EXPECT_EQ(ReasonNow().find("waits for server"), std::string::npos) << Events();
  for (const auto& shard : Map().shards) {
    EXPECT_NE(shard->lane, kNoLane);
    EXPECT_EQ(shard->restore_round, 1u);
  }
}

TEST_F(CopiesTest, WhatIsDamagedWhereverItLiesTakesTheJobBack) {
  StartWith();
  Play(11);
  Play(21);
  ReplaceFirst();
  FailRestore(0, /*damaged=*/true);
  EXPECT_NE(Events().find("checkpoint 2 cannot be restored"), std::string::npos) << Events();
}

TEST_F(CopiesTest, ASourceThatDoesNotAnswerEndsTheJobOnlyAfterSeveralTries) {
  StartWith();
  Play(11);
  ReplaceFirst();
  for (int i = 0; i < 5; ++i) {
    FailRestore(0, /*damaged=*/false);
    EXPECT_NE(PhaseNow(), "failed");
    for (int tick = 0; tick < 40; ++tick) Tick();
  }
  FailRestore(0, /*damaged=*/false);
  EXPECT_EQ(PhaseNow(), "failed");
}

}  // namespace
}  // namespace ps::coordinator
