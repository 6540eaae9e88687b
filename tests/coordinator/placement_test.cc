#include "coordinator/core/placement.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <utility>

namespace ps::coordinator {
namespace {

PlacementServer Server(const std::string& name, std::size_t lanes = 2) {
  PlacementServer server;
  server.name = name;
  server.procid = "proc-" + name;
  for (std::size_t i = 0; i < lanes; ++i) server.lanes.push_back("tcp://" + name);
  return server;
}

std::size_t CountOn(const control::MapT& map, const std::string& procid) {
  std::size_t count = 0;
  for (const auto& shard : map.shards) count += map.servers[shard->server]->procid == procid;
  return count;
}

TEST(PlacementTest, SpreadsNewShardsEvenlyOverServersAndLanes) {
  const auto placed = Place(control::MapT(), {Server("a"), Server("b")}, 30, Round(0));
  EXPECT_EQ(placed.moved.size(), 30u);
  EXPECT_EQ(CountOn(placed.map, "proc-a"), 15u);
  EXPECT_EQ(CountOn(placed.map, "proc-b"), 15u);
  std::size_t lanes[2][2] = {};
  for (const auto& shard : placed.map.shards) {
    EXPECT_EQ(shard->epoch, 1u);
    EXPECT_EQ(shard->restore_round, 0u);
    ++lanes[shard->server][shard->lane];
  }
  for (const auto& server : lanes) EXPECT_LE(std::max(server[0], server[1]), 8u);
}

TEST(PlacementTest, MovesOnlyTheShardsOfTheDead) {
  const auto first = Place(control::MapT(), {Server("a"), Server("b"), Server("c")}, 12, Round(0));
  const auto second = Place(first.map, {Server("a"), Server("c")}, 12, Round(7));
  EXPECT_EQ(second.map.version, first.map.version + 1);
  EXPECT_EQ(second.moved.size(), 4u);
  for (std::size_t i = 0; i < 12; ++i) {
    const auto& before = *first.map.shards[i];
    const auto& after = *second.map.shards[i];
    const bool moved = first.map.servers[before.server]->name == "b";
    EXPECT_EQ(after.epoch, before.epoch + (moved ? 1 : 0));
    EXPECT_EQ(after.lineage, before.lineage + (moved ? 1 : 0));
    EXPECT_EQ(after.restore_round, moved ? 7u : 0u);
    if (!moved) {
      EXPECT_EQ(second.map.servers[after.server]->procid, first.map.servers[before.server]->procid);
      EXPECT_EQ(after.lane, before.lane);
    }
  }
  EXPECT_EQ(CountOn(second.map, "proc-a"), 6u);
}

TEST(PlacementTest, WhoOnlyKeepsGetsNothing) {
  const auto first = Place(control::MapT(), {Server("a"), Server("b"), Server("c")}, 12, Round(0));
  PlacementServer keeps = Server("a");
  keeps.takes = false;
  PlacementServer last = Server("c");
  last.last_resort = true;
  const auto second = Place(first.map, {keeps, last}, 12, Round(7));
  EXPECT_EQ(second.moved.size(), 4u);
  EXPECT_EQ(CountOn(second.map, "proc-a"), 4u);
  EXPECT_EQ(CountOn(second.map, "proc-c"), 8u);
}

TEST(PlacementTest, RestartedServerOfTheSameNameIsAnotherServer) {
  const auto first = Place(control::MapT(), {Server("a")}, 4, Round(0));
  PlacementServer again = Server("a");
  again.procid = "proc-a2";
  const auto second = Place(first.map, {again}, 4, Round(3));
  EXPECT_EQ(second.moved.size(), 4u);
}

// ---- backups

std::vector<PlacementServer> OnHosts(
    const std::vector<std::pair<std::string, std::string>>& names) {
  std::vector<PlacementServer> servers;
  for (const auto& [name, host] : names) {
    servers.push_back(Server(name));
    servers.back().host = host;
  }
  return servers;
}
std::string BackupOf(const control::MapT& map, std::size_t shard, std::size_t place = 0) {
  return map.servers[map.shards[shard]->backups[place]->server]->name;
}
std::string FirstOf(const control::MapT& map, std::size_t shard) {
  return map.servers[map.shards[shard]->server]->name;
}
void SyncAll(control::MapT& map) {
  for (const auto& shard : map.shards) {
    for (const auto& backup : shard->backups) backup->synced = true;
  }
}

TEST(PlacementTest, BackupsAreSpreadEvenlyOverServersThatHaveNoCopy) {
  const std::vector<PlacementServer> servers = {Server("a"), Server("b"), Server("c")};
  control::MapT map = Place(control::MapT(), servers, 24, Round(0)).map;
  EXPECT_EQ(AddBackups(map, servers, 2, 7), 48u);
  std::map<std::string, int> copies;
  for (std::size_t shard = 0; shard < 24; ++shard) {
    const std::set<std::string> chain = {FirstOf(map, shard), BackupOf(map, shard),
                                         BackupOf(map, shard, 1)};
    EXPECT_EQ(chain.size(), 3u);
    for (const std::string& name : chain) ++copies[name];
    EXPECT_EQ(map.shards[shard]->backups[0]->since, 7u);
    EXPECT_FALSE(map.shards[shard]->backups[0]->synced);
    EXPECT_EQ(map.shards[shard]->epoch, 1u);
  }
  for (const auto& [name, count] : copies) EXPECT_EQ(count, 24) << name;
  EXPECT_EQ(AddBackups(map, servers, 2, 8), 0u);
}

TEST(PlacementTest, ShardsOfALaneHaveTheirBackupsOnOneLane) {
  const std::vector<PlacementServer> servers = {Server("a"), Server("b"), Server("c"), Server("d")};
  control::MapT map = Place(control::MapT(), servers, 40, Round(0)).map;
  AddBackups(map, servers, 1, 1);
  std::map<std::pair<int, int>, std::set<std::pair<int, int>>> to;
  std::map<std::string, int> backups;
  for (std::size_t shard = 0; shard < 40; ++shard) {
    const auto& entry = *map.shards[shard];
    to[{entry.server, entry.lane}].insert({entry.backups[0]->server, entry.backups[0]->lane});
    ++backups[BackupOf(map, shard)];
  }
  for (const auto& [from, lanes] : to) EXPECT_EQ(lanes.size(), 1u);
  for (const auto& [name, count] : backups) EXPECT_EQ(count, 10) << name;
}

TEST(PlacementTest, BackupsAreOnOtherHostsIfThereAreAny) {
  const auto servers = OnHosts({{"a", "x"}, {"b", "x"}, {"c", "y"}, {"d", "y"}});
  control::MapT map = Place(control::MapT(), servers, 16, Round(0)).map;
  AddBackups(map, servers, 1, 1);
  for (std::size_t shard = 0; shard < 16; ++shard) {
    EXPECT_NE(FirstOf(map, shard) < "c", BackupOf(map, shard) < "c") << shard;
  }
  const auto one_host = OnHosts({{"a", "x"}, {"b", "x"}});
  control::MapT small = Place(control::MapT(), one_host, 4, Round(0)).map;
  EXPECT_EQ(AddBackups(small, one_host, 2, 1), 4u);  // better than none; a second has no place
}

TEST(PlacementTest, BackupsAreInOtherRacksIfThereAreAny) {
  auto servers = OnHosts({{"a", "1"}, {"b", "2"}, {"c", "3"}, {"d", "4"}, {"e", "5"}});
  for (std::size_t i = 0; i < servers.size(); ++i) servers[i].rack = i < 3 ? "left" : "right";
  control::MapT map = Place(control::MapT(), servers, 20, Round(0)).map;
  EXPECT_EQ(AddBackups(map, servers, 1, 1), 20u);
  for (std::size_t shard = 0; shard < 20; ++shard) {
    EXPECT_NE(FirstOf(map, shard) < "d", BackupOf(map, shard) < "d") << shard;
  }
  // A second one finds none that has neither of the two: another host is better than nothing.
  EXPECT_EQ(AddBackups(map, servers, 2, 2), 20u);
  // Another rack on the same host is no better than that host.
  auto odd = OnHosts({{"a", "1"}, {"b", "1"}, {"c", "2"}});
  odd[1].rack = "right";
  control::MapT small = Place(control::MapT(), {odd[0]}, 4, Round(0)).map;
  AddBackups(small, odd, 1, 1);
  for (std::size_t shard = 0; shard < 4; ++shard) EXPECT_EQ(BackupOf(small, shard), "c");
}

TEST(PlacementTest, OnlyASyncedBackupTakesThePlaceOfAFirstThatIsGone) {
  const std::vector<PlacementServer> servers = {Server("a"), Server("b"), Server("c")};
  control::MapT map = Place(control::MapT(), servers, 6, Round(0)).map;
  AddBackups(map, servers, 2, 1);
  const auto gone = [](const std::string& procid) { return procid == "proc-a"; };
  const auto none = [](ShardId) { return false; };
  EXPECT_TRUE(PromoteBackups(map, gone, none).empty());
  SyncAll(map);
  const std::string heir = BackupOf(map, 0);
  const std::string last = BackupOf(map, 0, 1);
  ASSERT_EQ(FirstOf(map, 0), "a");
  EXPECT_EQ(PromoteBackups(map, gone, none).size(), 2u);
  EXPECT_EQ(FirstOf(map, 0), heir);
  EXPECT_EQ(map.shards[0]->epoch, 2u);
  EXPECT_EQ(map.shards[0]->lineage, map.shards[5]->lineage);
  EXPECT_EQ(map.shards[0]->since, 1u);
  ASSERT_EQ(map.shards[0]->backups.size(), 1u);
  EXPECT_EQ(BackupOf(map, 0), last);
  EXPECT_EQ(map.shards[5]->epoch, 1u);
}

TEST(PlacementTest, ARestoredShardHasNoBackupsAndOthersKeepTheirs) {
  const std::vector<PlacementServer> servers = {Server("a"), Server("b"), Server("c")};
  control::MapT map = Place(control::MapT(), servers, 6, Round(0)).map;
  AddBackups(map, servers, 1, 1);
  SyncAll(map);
  map.shards[0]->since = 1;
  const auto second = Place(map, {Server("b"), Server("c")}, 6, Round(3));
  for (const ShardId shard : second.moved) {
    EXPECT_TRUE(second.map.shards[shard.value()]->backups.empty());
    EXPECT_EQ(second.map.shards[shard.value()]->since, 0u);
  }
  for (std::size_t shard = 2; shard < 6; ++shard) {
    ASSERT_EQ(second.map.shards[shard]->backups.size(), 1u);
    EXPECT_EQ(BackupOf(second.map, shard), BackupOf(map, shard));
  }
}

TEST(PlacementTest, CopiesMoveUntilNoServerHasTwoMoreThanAnother) {
  std::vector<PlacementServer> servers = {Server("a"), Server("b")};
  control::MapT map = Place(control::MapT(), servers, 10, Round(0)).map;
  AddBackups(map, servers, 1, 1);
  EXPECT_TRUE(CopiesToMove(map, servers).empty());
  // A third joins: each of the two has ten copies, and should have seven or six.
  servers = {Server("a"), Server("b"), Server("c")};
  const auto moves = CopiesToMove(map, servers);
  EXPECT_EQ(moves.size(), 6u);
  std::map<std::string, int> from;
  for (const auto& [shard, server] : moves) ++from[server];
  EXPECT_EQ(from.size(), 2u);
  EXPECT_EQ(from["proc-a"], 3);
  EXPECT_EQ(from["proc-b"], 3);
  // Nothing leaves a server that does not count, and nothing moves to where a copy is.
  EXPECT_TRUE(CopiesToMove(map, {Server("c")}).empty());
  EXPECT_TRUE(CopiesToMove(map, {Server("a")}).empty());
}

}  // namespace
}  // namespace ps::coordinator
