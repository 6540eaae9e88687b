// Servers and chains of copies: loss, promotion, drain.
#include <algorithm>
#include <string>
#include <vector>

#include "tests/coordinator/core_fixture.h"

namespace ps::coordinator {
namespace {

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

TEST_F(CoreTest, BackupsGoToOtherRacks) {
  spec_more_ = "resources: {replicas: 1}\n";
  racks_ = {{"s0", "left"}, {"s1", "left"}, {"s2", "right"}};
  AddServer("s2");
  StartRunning();
  const auto map = Map();
  for (const auto& shard : map.shards) {
    ASSERT_EQ(shard->backups.size(), 1u);
    const auto of = [&](std::uint16_t server) { return racks_.at(map.servers[server]->name); };
    EXPECT_NE(of(shard->server), of(shard->backups[0]->server));
  }
  for (const auto& node : core_->DescribeNodes()["nodes"]) {
    if (node["kind"] != "server") continue;
    EXPECT_EQ(node["rack"], racks_.at(node["name"]));
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
    feed->to = LaneOf(map, *map.shards[i]->backups[0]);
    feed->stalled_ms = 1'000'000;
    report.feeds.push_back(std::move(feed));
  }
  Say("p-s0", std::move(report));
  Tick();
  EXPECT_EQ(Backups(true), 4u) << Events();
}

// Found by the simulation: both backups were members since the same map; what the first server had
// said of the one that is gone was taken for the other, which lacked pushes.
TEST_F(CoreTest, WhatWasSaidOfTheBackupBeforeItDoesNotCount) {
  AddServer("s2");
  spec_more_ = "resources: {replicas: 2}\n";
  StartRunning();
  const auto before = Map();
  const control::ShardEntryT& entry = *before.shards[0];
  ASSERT_EQ(entry.backups.size(), 2u);
  ASSERT_EQ(entry.backups[0]->since, entry.backups[1]->since);
  const std::string first = before.servers[entry.server]->procid;
  const std::string gone = before.servers[entry.backups[0]->server]->name;
  const std::string next = before.servers[entry.backups[1]->server]->procid;
  servers_.erase(gone);
  Announce();
  Tick();
  const auto say = [&](const control::BackupEntryT& backup) {
    control::ServerReportT report;
    report.job = 1;
    auto feed = std::make_unique<control::FeedStateT>();
    feed->epoch = 1;
    feed->since = backup.since;
    feed->to = LaneOf(before, backup);
    feed->synced = true;
    report.feeds.push_back(std::move(feed));
    Say(first, std::move(report));
    for (int tick = 0; tick < 40; ++tick) Tick();
    const auto map = Map();
    const auto& backups = map.shards[0]->backups;
    EXPECT_FALSE(backups.empty());
    EXPECT_EQ(map.servers[backups[0]->server]->procid, next);
    return backups[0]->synced;
  };
  EXPECT_FALSE(say(*entry.backups[0]));
  EXPECT_TRUE(say(*entry.backups[1]));
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
  failed.damaged = true;
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
    feed->to = LaneOf(map, *map.shards[i]->backups[0]);
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

// Found by the simulation: the shards of those that had not registered yet were restored, too.
TEST_F(CoreTest, ANewLeaderPlacesTheShardsOfTheDeadAlone) {
  AddServer("s2");
  StartRunning();
  Progress(11);
  Tick();
  PlayRound(11);
  const auto before = Map();
  servers_.erase("s2");
  Start(2);
  ASSERT_TRUE(core_->Load({Record()}, now_).ok());
  Announce();
  Register("s0");
  Tick();
  const auto after = Map();
  for (std::size_t i = 0; i < after.shards.size(); ++i) {
    const std::string& was = before.servers[before.shards[i]->server]->procid;
    const std::string& is = after.servers[after.shards[i]->server]->procid;
    EXPECT_EQ(is, was == "p-s2" ? "p-s0" : was);
    EXPECT_EQ(after.shards[i]->epoch, was == "p-s2" ? 2u : 1u);
  }
  Register("s1");
  const auto starts = Take("p-s1", Body::JobStart);
  ASSERT_FALSE(starts.empty());
  EXPECT_EQ(starts.back().body.AsJobStart()->map->version, after.version);
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
  EXPECT_FALSE(core_->servers().at("p-s1").alive());
  core_->MarkServerDead("p-s1", now_);
  EXPECT_FALSE(core_->servers().contains("p-s1"));
  core_->MarkServerDead("p-s1", now_);  // nobody any more
  Tick();
}

}  // namespace
}  // namespace ps::coordinator
