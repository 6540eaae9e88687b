#include "ps-server/core/lane_map.h"

#include <gtest/gtest.h>

#include <memory>

namespace ps::server {
namespace {

control::MapT MakeMap() {
  control::MapT map;
  map.version = 7;
  for (const char* procid : {"p-one", "p-two"}) {
    auto server = std::make_unique<control::ServerEntryT>();
    server->name = "same-name";
    server->procid = procid;
    map.servers.push_back(std::move(server));
  }
  for (std::uint32_t shard = 0; shard < 8; ++shard) {
    auto entry = std::make_unique<control::ShardEntryT>();
    entry->server = static_cast<std::uint16_t>(shard % 2);
    entry->lane = static_cast<std::uint16_t>(shard / 4);
    entry->epoch = 10 + shard;
    entry->lineage = 20 + shard;
    entry->restore_round = shard == 5 ? 3 : 0;
    map.shards.push_back(std::move(entry));
  }
  return map;
}

TEST(LaneMapTest, ALaneGetsExactlyTheEntriesThatNameItsProcessAndItsNumber) {
  const auto own = LaneMapOf(MakeMap(), "p-two", 1, 8);
  ASSERT_TRUE(own.ok());
  EXPECT_EQ(own->version, 7u);
  ASSERT_EQ(own->shards.size(), 2u);
  EXPECT_EQ(own->shards[0].shard, ShardId(5));
  EXPECT_EQ(own->shards[0].epoch, Epoch(15));
  EXPECT_EQ(own->shards[0].lineage, 25u);
  EXPECT_EQ(own->shards[0].restore_round, Round(3));
  EXPECT_EQ(own->shards[1].shard, ShardId(7));
  EXPECT_EQ(own->shards[1].restore_round, Round(0));
}

TEST(LaneMapTest, AnEarlierProcessOfTheSameNameGetsNothing) {
  const auto own = LaneMapOf(MakeMap(), "p-three", 0, 8);
  ASSERT_TRUE(own.ok());
  EXPECT_TRUE(own->shards.empty());
}

TEST(LaneMapTest, AMapOfAnotherShardCountIsRefused) {
  EXPECT_FALSE(LaneMapOf(MakeMap(), "p-one", 0, 9).ok());
}

TEST(LaneMapTest, AShardOnAServerThatTheMapDoesNotListIsRefused) {
  control::MapT map = MakeMap();
  map.shards[3]->server = 2;
  EXPECT_FALSE(LaneMapOf(map, "p-one", 0, 8).ok());
}

control::MapT MakeChains() {
  control::MapT map = MakeMap();
  for (const auto& server : map.servers)
    server->lanes = {server->procid + "/0", server->procid + "/1"};
  const auto add = [&](std::size_t shard, std::uint16_t server, std::uint16_t lane, bool synced) {
    auto backup = std::make_unique<control::BackupEntryT>();
    backup->server = server;
    backup->lane = lane;
    backup->since = 6;
    backup->synced = synced;
    map.shards[shard]->backups.push_back(std::move(backup));
  };
  add(0, 1, 1, true);   // first p-one/0, then p-two/1
  add(0, 0, 1, false);  // and p-one/1
  return map;
}

TEST(LaneMapTest, EachMemberOfAChainKnowsTheNextOne) {
  const control::MapT map = MakeChains();
  const auto first = LaneMapOf(map, "p-one", 0, 8);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->shards[0].next, (ChainNext{"p-two/1", 6, true}));
  EXPECT_EQ(first->shards[0].since, 0u);
  EXPECT_EQ(first->shards[1].next, std::nullopt);
  EXPECT_TRUE(first->copies.empty());
  const auto second = LaneMapOf(map, "p-two", 1, 8);
  ASSERT_TRUE(second.ok());
  ASSERT_EQ(second->copies.size(), 1u);
  EXPECT_EQ(second->copies[0].shard, ShardId(0));
  EXPECT_EQ(second->copies[0].epoch, Epoch(10));
  EXPECT_EQ(second->copies[0].since, 6u);
  EXPECT_EQ(second->copies[0].next, (ChainNext{"p-one/1", 6, false}));
  const auto last = LaneMapOf(map, "p-one", 1, 8);
  ASSERT_TRUE(last.ok());
  ASSERT_EQ(last->copies.size(), 1u);
  EXPECT_EQ(last->copies[0].next, std::nullopt);
}

TEST(LaneMapTest, ABackupThatTheMapDoesNotDescribeIsRefused) {
  control::MapT map = MakeChains();
  map.shards[0]->backups[0]->server = 2;
  EXPECT_FALSE(LaneMapOf(map, "p-one", 0, 8).ok());
  map = MakeChains();
  map.shards[0]->backups[0]->lane = 2;
  EXPECT_FALSE(LaneMapOf(map, "p-one", 0, 8).ok());
  map = MakeChains();
  map.shards[0]->backups[1]->since = 0;
  EXPECT_FALSE(LaneMapOf(map, "p-one", 0, 8).ok());
  map = MakeChains();
  map.shards[0]->backups[1].reset();
  EXPECT_FALSE(LaneMapOf(map, "p-one", 0, 8).ok());
}

TEST(LaneMapTest, MembersComeInTheOrderOfTheirIncarnations) {
  control::LiveSetT live;
  live.version = 4;
  for (const std::uint32_t incarnation : {9u, 2u}) {
    auto worker = std::make_unique<control::LiveWorkerT>();
    worker->worker = 1;
    worker->incarnation = incarnation;
    worker->first_clock = 100 + incarnation;
    worker->state = incarnation == 2 ? control::WorkerState::Draining : control::WorkerState::Live;
    live.workers.push_back(std::move(worker));
  }
  const auto members = LiveMembersOf(live);
  ASSERT_TRUE(members.ok());
  EXPECT_EQ(members->version, 4u);
  ASSERT_EQ(members->members.size(), 2u);
  EXPECT_EQ(members->members[0].incarnation, Incarnation(2));
  EXPECT_TRUE(members->members[0].draining);
  EXPECT_FALSE(members->members[0].Counts());
  EXPECT_EQ(members->members[1].first_clock, Clock(109));
  EXPECT_TRUE(members->members[1].Counts());
}

TEST(LaneMapTest, AnIncarnationNamedTwiceIsRefused) {
  control::LiveSetT live;
  for (int i = 0; i < 2; ++i) {
    auto worker = std::make_unique<control::LiveWorkerT>();
    worker->incarnation = 3;
    live.workers.push_back(std::move(worker));
  }
  EXPECT_FALSE(LiveMembersOf(live).ok());
}

}  // namespace
}  // namespace ps::server
