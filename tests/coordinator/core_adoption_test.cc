// A server whose session ended, but perhaps not its process.
#include <string>

#include "tests/coordinator/core_fixture.h"

namespace ps::coordinator {
namespace {

class AdoptionTest : public CoreTest {
 protected:
  static constexpr std::uint64_t kAwaitMs = 3000;

  AdoptionTest() {
    await_ms_ = kAwaitMs;
    Start(1);
  }

  // Two servers without backups, and one of them loses its session.
  void LoseSession() {
    StartRunning();
    before_ = Map();
    inbox_.clear();
    servers_.erase("s1");
    Announce();
    EXPECT_EQ(PhaseNow(), "recovering");
  }
  std::size_t ShardsOf(const std::string& procid) {
    std::size_t count = 0;
    const auto map = Map();
    for (const auto& shard : map.shards) {
      count += map.servers[shard->server]->procid == procid ? 1 : 0;
    }
    return count;
  }

  control::MapT before_;
};

TEST_F(AdoptionTest, AServerThatComesBackKeepsItsShards) {
  LoseSession();
  Tick(kAwaitMs - 200);
  EXPECT_EQ(Map().version, before_.version);
  servers_.insert("s1");
  Announce();
  Tick();
  // It may never have heard of what it has by the map.
  EXPECT_EQ(Take("p-s1", Body::JobStart).size(), 1u);
  EXPECT_EQ(PhaseNow(), "recovering");
  ReportShards();
  Tick();
  EXPECT_EQ(PhaseNow(), "running");
  EXPECT_EQ(Map().version, before_.version);
  EXPECT_EQ(ShardsOf("p-s1"), 2u);
  EXPECT_NE(Events().find("adopted: server s1 is back"), std::string::npos) << Events();
  EXPECT_EQ(Events().find("placed: 2"), std::string::npos) << Events();
}

TEST_F(AdoptionTest, NobodyTrainsBeforeItHasSaidThatItHasThem) {
  LoseSession();
  servers_.insert("s1");
  Announce();
  control::ServerReportT report;
  report.job = 1;
  for (std::uint32_t i = 0; i < before_.shards.size(); ++i) {
    if (before_.servers[before_.shards[i]->server]->procid != "p-s1") continue;
    auto state = std::make_unique<control::ShardStateT>();
    state->shard = i;
    state->epoch = before_.shards[i]->epoch;
    state->state = static_cast<std::uint8_t>(wire::Code::Blank);
    report.shards.push_back(std::move(state));
  }
  Say("p-s1", std::move(report));
  Tick();
  EXPECT_EQ(PhaseNow(), "recovering");
  ReportShards();
  Tick();
  EXPECT_EQ(PhaseNow(), "running");
}

TEST_F(AdoptionTest, WhoStaysAwayIsNotAwaitedForEver) {
  LoseSession();
  Tick(kAwaitMs - 200);
  EXPECT_EQ(ShardsOf("p-s1"), 2u);
  Tick(200);
  EXPECT_EQ(ShardsOf("p-s0"), 4u);
  ReportShards();
  Tick();
  EXPECT_EQ(PhaseNow(), "running");
  // As the process that it is it gets nothing back.
  servers_.insert("s1");
  Announce();
  Tick();
  EXPECT_EQ(ShardsOf("p-s1"), 0u);
  EXPECT_EQ(Events().find("adopted"), std::string::npos) << Events();
}

TEST_F(AdoptionTest, AProcessThatHasEndedIsNotAwaited) {
  LoseSession();
  core_->MarkServerDead("p-s1", now_);
  Tick();
  EXPECT_EQ(ShardsOf("p-s0"), 4u);
}

TEST_F(AdoptionTest, AServerKnownToBeDeadBeforeItsSessionEndsIsNotAwaited) {
  StartRunning();
  core_->MarkServerDead("p-s1", now_);
  servers_.erase("s1");
  Announce();
  Tick();
  EXPECT_EQ(ShardsOf("p-s0"), 4u);
}

TEST_F(AdoptionTest, ItsSuccessorEndsTheWait) {
  LoseSession();
  // The same name and host, another process.
  core_->SetServers({{"p-s0", "s0", HostOf("s0")}, {"p-s1b", "s1", HostOf("s1")}}, now_);
  control::RegisterServerT message;
  message.name = "s1";
  message.procid = "p-s1b";
  message.host = HostOf("s1");
  message.lanes = {"tcp://s1:2"};
  Say("p-s1b", std::move(message));
  Tick();
  EXPECT_EQ(ShardsOf("p-s1"), 0u);
  EXPECT_EQ(ShardsOf("p-s1b"), 2u);
}

TEST_F(AdoptionTest, OthersAreRestoredMeanwhile) {
  AddServer("s2");
  LoseSession();
  const std::size_t awaited = ShardsOf("p-s1");
  const std::size_t dead = ShardsOf("p-s2");
  ASSERT_GT(awaited, 0u);
  ASSERT_GT(dead, 0u);
  servers_.erase("s2");
  core_->MarkServerDead("p-s2", now_);
  Tick();
  EXPECT_EQ(ShardsOf("p-s1"), awaited);
  EXPECT_EQ(ShardsOf("p-s0"), 4 - awaited);
}

TEST_F(AdoptionTest, BackupsDoNotWait) {
  StartReplicated();
  servers_.erase("s1");
  Announce();
  EXPECT_EQ(ShardsOf("p-s0"), 4u);
  EXPECT_NE(Events().find("promoted"), std::string::npos) << Events();
  EXPECT_EQ(Events().find("to come back"), std::string::npos) << Events();
}

}  // namespace
}  // namespace ps::coordinator
