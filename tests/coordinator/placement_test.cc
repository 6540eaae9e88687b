#include "coordinator/core/placement.h"

#include <gtest/gtest.h>

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

TEST(PlacementTest, RestartedServerOfTheSameNameIsAnotherServer) {
  const auto first = Place(control::MapT(), {Server("a")}, 4, Round(0));
  PlacementServer again = Server("a");
  again.procid = "proc-a2";
  const auto second = Place(first.map, {again}, 4, Round(3));
  EXPECT_EQ(second.moved.size(), 4u);
}

}  // namespace
}  // namespace ps::coordinator
