// Damage that servers find in their folders of checkpoints.
#include <set>
#include <string>

#include "tests/coordinator/core_fixture.h"

namespace ps::coordinator {
namespace {

class DamageTest : public CoreTest {
 protected:
  // Three servers with the first checkpoint, and one that the next builds on.
  void StartWith(bool own_disks) {
    for (const std::string name : {"s0", "s1", "s2"}) {
      stores_[name] = own_disks ? "store-" + name : "one";
    }
    AddServer("s2");
    StartRunning();
    Round(11);
    Round(22, {1});
    inbox_.clear();
  }
  void Round(std::uint64_t clock, const std::vector<std::uint64_t>& bases = {}) {
    Progress(clock);
    Tick();
    (void)PlayRound(clock, bases);
  }
  // What the server hears of it.
  control::RepairPartT Damage(const std::string& server, std::uint64_t round,
                              std::uint64_t job = 1) {
    control::PartDamagedT damaged;
    damaged.job = job;
    damaged.round = round;
    damaged.part = "p-s0";
    damaged.message = "000012.sst: a byte is another";
    Say("p-" + server, std::move(damaged));
    const auto told = Take("p-" + server, Body::RepairPart);
    EXPECT_EQ(told.size(), job == 1 ? 1u : 0u);
    return told.empty() ? control::RepairPartT() : control::Clone(*told[0].body.AsRepairPart());
  }
  void Repaired(const std::string& server, std::uint64_t round, const std::string& error = "") {
    control::PartRepairedT repaired;
    repaired.job = 1;
    repaired.round = round;
    repaired.part = "p-s0";
    repaired.error = error;
    Say("p-" + server, std::move(repaired));
    Tick();
  }
  std::size_t Told(const std::string& text) {
    const std::string events = Events();
    std::size_t count = 0;
    for (std::size_t at = events.find(text); at != std::string::npos;
         at = events.find(text, at + 1))
      ++count;
    return count;
  }
  // Whether one has begun, and on what it may build.
  bool RoundBegins(std::uint64_t& base) {
    bool begun = false;
    for (const auto& name : servers_) {
      for (const auto& message : Take("p-" + name, Body::RoundBegin)) {
        base = message.body.AsRoundBegin()->base;
        begun = true;
      }
    }
    return begun;
  }
};

TEST_F(DamageTest, TheServerHearsWhoElseMayHaveItAndTheEventsTellItOnce) {
  StartWith(/*own_disks=*/true);
  for (int pass = 0; pass < 3; ++pass) {
    const control::RepairPartT repair = Damage("s1", 2);
    EXPECT_FALSE(repair.unknown);
    EXPECT_EQ(repair.part, "p-s0");
    std::set<std::string> stores;
    for (const auto& source : repair.sources) stores.insert(source->store);
    EXPECT_EQ(stores, (std::set<std::string>{"store-s0", "store-s2"}));
  }
  EXPECT_EQ(Told("part damaged: checkpoint 2: part p-s0 in the folder of server s1 is damaged"),
            1u);
  EXPECT_EQ(Told("000012.sst"), 1u);
  Repaired("s1", 2);
  EXPECT_EQ(Told("part repaired: checkpoint 2"), 1u);
  std::uint64_t base = 0;
  EXPECT_FALSE(RoundBegins(base));
  // The next time it is news again, and in a part that another one builds on, too.
  (void)Damage("s1", 2);
  (void)Damage("s1", 1);
  EXPECT_EQ(Told("is damaged: 000012.sst"), 3u);
}

TEST_F(DamageTest, WhatNobodyCanMendMakesTheNextCheckpointWholeAndSoon) {
  StartWith(/*own_disks=*/false);
  EXPECT_TRUE(Damage("s0", 1).sources.empty());
  Tick(60'000);
  std::uint64_t base = 0;
  EXPECT_FALSE(RoundBegins(base));
  for (int pass = 0; pass < 3; ++pass) Repaired("s0", 1, "no other server has a copy of it");
  EXPECT_EQ(Told("stays damaged: no other server"), 1u);
  EXPECT_EQ(Told("the next checkpoint is written soon, and whole"), 1u);
  Tick();
  ASSERT_TRUE(RoundBegins(base));
  EXPECT_EQ(base, 0u);
}

TEST_F(DamageTest, WhatNoCheckpointNeedsIsNoEvent) {
  StartWith(/*own_disks=*/true);
  EXPECT_TRUE(Damage("s1", 7).unknown);
  EXPECT_EQ(Told("damaged"), 0u);
  (void)Damage("s1", 2, 99);
}

TEST_F(DamageTest, AJobThatIsOverIsTold) {
  StartWith(/*own_disks=*/true);
  core_->Cancel(9, "count", "", now_);
  Flush();
  EXPECT_EQ(PhaseNow(), "cancelled");
  EXPECT_EQ(Damage("s2", 2).sources.size(), 2u);
  EXPECT_EQ(Told("part damaged: checkpoint 2"), 1u);
  Repaired("s2", 2, "no room");
  EXPECT_EQ(Told("stays damaged: no room"), 1u);
  EXPECT_EQ(Told("is written soon"), 0u);
}

}  // namespace
}  // namespace ps::coordinator
