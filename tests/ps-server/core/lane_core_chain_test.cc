// Two lanes that hold the same shards: what the first tells the second, and what waits for that.
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/ps-server/core/lane_core_fixture.h"

namespace ps::server::testing {
namespace {

constexpr std::uint64_t kSince = 1;

class ChainTest : public ::testing::Test {
 protected:
  static constexpr std::uint32_t kElements = 500;
  static constexpr std::uint32_t kShards = 2;

  struct Node {
    std::string name;
    LaneCore lane;
    std::vector<TestReply> answers{};  // to workers
  };

  explicit ChainTest(JobRules rules = ConstantRules(1.0), std::uint64_t image_rate = 0)
      : rules_(std::move(rules)), first_{"first", LaneCore({}, image_rate)} {
    Start(first_, {Own(0, 5, 0, true), Own(1, 5, 0, true)}, {});
    Start(second_, {}, {Own(0, 5, kSince, false), Own(1, 5, kSince, false)});
  }

  static OwnShard Own(std::uint32_t shard, std::uint32_t epoch, std::uint64_t since, bool feeds,
                      const std::string& to = "second", std::uint64_t next_since = kSince) {
    OwnShard own{ShardId(shard), Epoch(epoch), 1, Round(), since, std::nullopt};
    if (feeds) own.next = ChainNext{to, next_since, false};
    return own;
  }
  void Start(Node& node, std::vector<OwnShard> shards, std::vector<OwnShard> copies) {
    node.lane.SetJob(JobSetup{JobId(1), layout_, rules_, LaneMap{1, shards, copies},
                              LiveMembers{1, {MakeMember(0, 11), MakeMember(1, 12)}}});
  }

  // Messages of workers.
  void Init(Node& node, std::uint32_t epoch = 5) {
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      if (node.lane.FindShard(JobId(1), ShardId(shard)) == nullptr) continue;
      TestMessage message(wire::Kind::Init, 0, 11);
      message.Segment(shard, epoch, ConstantShard(layout_, ShardId(shard), 1));
      Say(node, message);
    }
  }
  static TestMessage Push(std::uint32_t incarnation, std::uint64_t clock,
                          const std::vector<std::uint32_t>& shards, float value = -1,
                          std::uint32_t epoch = 5, std::uint64_t base = 1'000'000) {
    TestMessage message(wire::Kind::Push, incarnation - 11, incarnation);
    message.Clock(clock).Request(100 + clock);
    for (const std::uint32_t shard : shards) {
      message.Segment(shard, epoch,
                      SparseBlock(shard, kElements, {3, static_cast<std::uint16_t>(7 + clock)},
                                  {value, 2 * value}),
                      base);
    }
    return message;
  }
  void Say(Node& node, const TestMessage& message) {
    node.lane.OnMessage("w" + std::to_string(message.header.incarnation()), message.Head(),
                        message.payload);
    Collect(node);
  }
  void Collect(Node& node) {
    for (TestReply& reply : Replies(node.lane)) {
      if (reply.to.compare(0, 5, "chain") == 0) {
        const std::string to = reply.to.substr(6);
        Node& upstream = to == "first" ? first_ : second_;
        const Bytes head = wire::BuildHead(reply.head.header, reply.head.segments);
        upstream.lane.OnChainMessage(node.name, head);
        if (&upstream != &node) Collect(upstream);
      } else {
        node.answers.push_back(std::move(reply));
      }
    }
  }
  // Carries what one lane has for the other; `lose` it instead.
  bool Carry(Node& from, bool lose = false) {
    std::vector<ChainMessage> messages;
    from.lane.TakeChainMessages(messages);
    for (const ChainMessage& message : messages) {
      if (lose) continue;
      Node& to = message.endpoint == "first" ? first_ : second_;
      const Bytes payload = message.payload != nullptr
                                ? Bytes(message.payload->begin(), message.payload->end())
                                : Bytes();
      to.lane.OnMessage("chain " + from.name, message.head, payload);
      Collect(to);
    }
    Collect(from);
    return !messages.empty();
  }
  // Until nothing more happens, for a while.
  void Settle(std::int64_t ms = 300) {
    for (const std::int64_t end = now_ms_ + ms; now_ms_ < end; now_ms_ += 50) {
      first_.lane.Tick(now_ms_);
      second_.lane.Tick(now_ms_);
      while (Carry(first_) || Carry(second_)) {
      }
    }
  }

  std::string DigestOf(const Shard* shard) const {
    if (shard == nullptr) return "none";
    checkpoint::ShardImage image = shard->Freeze(JobId(1), Round(1)).ToImage();
    image.epoch = Epoch(0);
    return checkpoint::Digest(image);
  }
  void ExpectEqual() {
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      const Shard* copy = second_.lane.FindCopy(JobId(1), ShardId(shard));
      const Shard* own = first_.lane.FindShard(JobId(1), ShardId(shard));
      ASSERT_NE(copy, nullptr);
      EXPECT_EQ(copy->changes(), own->changes());
      EXPECT_EQ(DigestOf(copy), DigestOf(own)) << "shard " << shard;
    }
  }
  FeedStatus Feed(Node& node) { return node.lane.Report().at(0).feeds.at(0); }

  const LayoutView layout_ = MakeLayout({{TableRule::Sgd, {kElements, kElements}}}, kShards, {});
  const JobRules rules_;
  Node first_;
  Node second_{"second", LaneCore()};
  std::int64_t now_ms_ = 1000;
};

TEST_F(ChainTest, CopyIsEqualBitForBitAfterTheSameChanges) {
  Init(first_);
  for (std::uint64_t clock = 1; clock <= 5; ++clock) Say(first_, Push(11, clock, {0, 1}, 0.1f));
  Settle();
  EXPECT_TRUE(Feed(first_).synced);
  ExpectEqual();
  for (std::uint64_t clock = 6; clock <= 20; ++clock) {
    Say(first_, Push(11, clock, {0, 1}, 0.3f));
    Say(first_, Push(12, clock - 5, {1}, 0.7f));
    Say(first_, Push(12, clock - 5, {0}, 0.7f, 5, 0));  // too old, most of them
    Settle(50);
  }
  EXPECT_GT(first_.lane.counters().pushes_too_old, 0u);
  ExpectEqual();
}

TEST_F(ChainTest, AnswersWaitUntilTheBackupHasWhatTheyTellOf) {
  Init(first_);
  Settle();
  first_.answers.clear();
  Say(first_, Push(11, 1, {0, 1}));
  TestMessage pull(wire::Kind::Pull, 1, 12);
  pull.Request(7).Segment(0, 5);
  Say(first_, pull);
  EXPECT_TRUE(first_.answers.empty());
  while (Carry(first_)) {
  }
  ASSERT_EQ(first_.answers.size(), 2u);
  EXPECT_EQ(first_.answers[0].kind(), wire::Kind::PushReply);
  EXPECT_EQ(first_.answers[1].kind(), wire::Kind::PullReply);
}

TEST_F(ChainTest, ACutIsNotToldBeforeTheBackupHasAllOfIt) {
  Init(first_);
  Settle();
  (void)first_.lane.TakeEvents();
  Say(first_, Push(11, 1, {0, 1}));
  first_.lane.BeginRound(JobId(1), Round(1), 1, 1);
  for (const std::uint32_t incarnation : {11u, 12u}) {
    TestMessage marker(wire::Kind::Marker, incarnation - 11, incarnation);
    Say(first_, marker.Request(1).Clock(incarnation == 11 ? 1 : 0));
  }
  EXPECT_FALSE(first_.lane.has_events());
  while (Carry(first_)) {
  }
  const auto events = first_.lane.TakeEvents();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_NE(std::get_if<LaneFrozen>(&events[0]), nullptr);
}

TEST_F(ChainTest, APromotedCopyGoesOnWhereAnybodyWasTold) {
  Init(first_);
  Settle();
  for (std::uint64_t clock = 1; clock <= 3; ++clock) Say(first_, Push(11, clock, {0, 1}));
  Settle();
  second_.lane.UpdateMap(JobId(1),
                         LaneMap{2, {Own(0, 6, kSince, false), Own(1, 6, kSince, false)}, {}});
  TestMessage hello(wire::Kind::Hello, 0, 11);
  Say(second_, hello);
  ASSERT_EQ(second_.answers.size(), 1u);
  EXPECT_EQ(second_.answers[0].CodeOf(0), wire::Code::Applied);
  EXPECT_EQ(second_.answers[0].Find(0)->version(), 3u);
  EXPECT_EQ(second_.answers[0].Find(0)->epoch(), 6u);
  EXPECT_EQ(second_.answers[0].Find(0)->lineage(), 1u);

  // Who was the first does not know, and can acknowledge nothing any more.
  first_.answers.clear();
  Say(first_, Push(11, 4, {0, 1}));
  Settle(2000);
  EXPECT_TRUE(first_.answers.empty());
  EXPECT_EQ(second_.lane.FindShard(JobId(1), ShardId(0))->changes(), 3u);
}

TEST_F(ChainTest, WhatIsLostOnTheWayIsSentAgain) {
  Init(first_);
  Settle();
  first_.answers.clear();
  Say(first_, Push(11, 1, {0, 1}));
  Carry(first_, true);
  Say(first_, Push(11, 2, {0, 1}));
  Settle(50);
  EXPECT_TRUE(first_.answers.empty());
  Settle(1500);
  EXPECT_EQ(first_.answers.size(), 2u);
  ExpectEqual();
}

TEST_F(ChainTest, ACopyOfAnotherMembershipIsMadeAnew) {
  Init(first_);
  Settle();
  second_.lane.UpdateMap(JobId(1), LaneMap{2, {}, {Own(0, 5, 2, false), Own(1, 5, 2, false)}});
  EXPECT_EQ(second_.lane.FindCopy(JobId(1), ShardId(0)), nullptr);
  Say(first_, Push(11, 1, {0, 1}));
  first_.lane.UpdateMap(
      JobId(1), LaneMap{2, {Own(0, 5, 0, true, "second", 2), Own(1, 5, 0, true, "second", 2)}, {}});
  Settle();
  ExpectEqual();
  EXPECT_TRUE(Feed(first_).synced);
}

TEST_F(ChainTest, APromotionWithoutACopyIsSaidAndMakesNoShard) {
  second_.lane.UpdateMap(JobId(1), LaneMap{2, {Own(0, 6, kSince, false)}, {}});
  EXPECT_EQ(second_.lane.FindShard(JobId(1), ShardId(0)), nullptr);
  const JobStatus status = second_.lane.Report().at(0);
  ASSERT_EQ(status.shards.size(), 1u);
  EXPECT_EQ(status.shards[0].state, wire::Code::Lost);
  EXPECT_EQ(status.shards[0].epoch, Epoch(6));
}

// Each would wait for the other's answer, which waits for its own.
TEST_F(ChainTest, LanesThatAreEachOthersBackupsDoNotWaitForEachOther) {
  first_.lane.UpdateMap(JobId(1), LaneMap{2, {Own(0, 6, 0, true)}, {Own(1, 6, kSince, false)}});
  second_.lane.UpdateMap(JobId(1),
                         LaneMap{2, {Own(1, 6, 0, true, "first")}, {Own(0, 6, kSince, false)}});
  Init(first_, 6);
  Init(second_, 6);
  Settle();
  first_.answers.clear();
  second_.answers.clear();
  Say(first_, Push(11, 1, {0}, -1, 6));
  Say(second_, Push(11, 1, {1}, -1, 6));
  EXPECT_TRUE(first_.answers.empty() && second_.answers.empty());
  std::vector<ChainMessage> to_second;
  std::vector<ChainMessage> to_first;
  first_.lane.TakeChainMessages(to_second);
  second_.lane.TakeChainMessages(to_first);
  ASSERT_EQ(to_second.size(), 1u);
  ASSERT_EQ(to_first.size(), 1u);
  const auto bytes = [](const ChainMessage& message) {
    return Bytes(message.payload->begin(), message.payload->end());
  };
  second_.lane.OnMessage("chain first", to_second[0].head, bytes(to_second[0]));
  first_.lane.OnMessage("chain second", to_first[0].head, bytes(to_first[0]));
  Collect(first_);
  Collect(second_);
  EXPECT_EQ(first_.answers.size(), 1u);
  EXPECT_EQ(second_.answers.size(), 1u);
}

TEST_F(ChainTest, AMessageWithABadPartChangesNothing) {
  Init(first_);
  Settle();
  const std::string before = DigestOf(second_.lane.FindCopy(JobId(1), ShardId(0)));
  TestMessage message(wire::Kind::Replicate, 0, 11);
  message.Clock(1).MapVersion(0);
  message.Segment(0, 5, SparseBlock(0, kElements, {3}, {1}), 1);
  message.Segment(1, 5, Bytes(5), 1);
  Say(second_, message);
  ASSERT_EQ(second_.answers.size(), 1u);
  EXPECT_EQ(second_.answers[0].kind(), wire::Kind::Nack);
  EXPECT_EQ(second_.answers[0].code(), wire::Code::Malformed);
  EXPECT_EQ(DigestOf(second_.lane.FindCopy(JobId(1), ShardId(0))), before);
}

TEST_F(ChainTest, ACopyThatAChangeDoesNotFitIsMadeAnew) {
  Init(first_);
  Settle();
  TestMessage message(wire::Kind::Replicate, 0, 11);
  message.Clock(9).MapVersion(0);  // its watermark is 0
  message.Segment(0, 5, SparseBlock(0, kElements, {3}, {1}), 1);
  Say(second_, message);
  EXPECT_EQ(second_.lane.FindCopy(JobId(1), ShardId(0)), nullptr);
  EXPECT_EQ(second_.lane.counters().copies_broken, 1u);
  Say(first_, Push(11, 1, {0, 1}));
  Settle(2000);
  ExpectEqual();
}

TEST_F(ChainTest, ABackupThatDoesNotAnswerIsReportedAsStalledAndLetGoByTheMap) {
  Init(first_);
  Settle();
  first_.answers.clear();
  Say(first_, Push(11, 1, {0, 1}));
  for (int turn = 0; turn < 60; ++turn) {
    first_.lane.Tick(now_ms_ += 50);
    Carry(first_, true);
  }
  EXPECT_GE(Feed(first_).stalled_ms, 2900u);
  EXPECT_TRUE(first_.answers.empty());
  first_.lane.UpdateMap(JobId(1), LaneMap{2, {Own(0, 5, 0, false), Own(1, 5, 0, false)}, {}});
  Collect(first_);
  EXPECT_EQ(first_.answers.size(), 1u);
}

class RatedChainTest : public ChainTest {
 protected:
  RatedChainTest() : ChainTest(ConstantRules(1.0), /*image_rate=*/1000) {}
};

TEST_F(RatedChainTest, ImagesWaitForTheRateAndChangesDoNot) {
  Init(first_);
  Settle();
  // The first image was more than is allowed in a second: the other has to wait.
  ASSERT_NE(second_.lane.FindCopy(JobId(1), ShardId(0)), nullptr);
  EXPECT_EQ(second_.lane.FindCopy(JobId(1), ShardId(1)), nullptr);
  first_.answers.clear();
  Say(first_, Push(11, 1, {0, 1}));
  Settle(200);
  EXPECT_EQ(first_.answers.size(), 1u);
  Settle(700);
  EXPECT_EQ(second_.lane.FindCopy(JobId(1), ShardId(1)), nullptr);
  for (const FeedStatus& feed : first_.lane.Report().at(0).feeds) EXPECT_EQ(feed.stalled_ms, 0u);
  Settle(10'000);
  ExpectEqual();
}

TEST(ImageBudgetTest, SavesForAMomentOnly) {
  ImageBudget budget(1000);
  budget.Tick(10'000);
  budget.Spend(600);
  for (std::int64_t now = 10'050; now <= 10'500; now += 50) budget.Tick(now);
  EXPECT_FALSE(budget.allows());
  budget.Tick(10'550);
  EXPECT_TRUE(budget.allows());
  budget.Tick(20'000);
  budget.Spend(150);
  EXPECT_FALSE(budget.allows());
  ImageBudget any(0);
  any.Spend(1'000'000);
  EXPECT_TRUE(any.allows());
}

JobRules Bulk() {
  JobRules rules = ConstantRules(1.0);
  rules.bulk_synchronous = true;
  return rules;
}
class BulkChainTest : public ChainTest {
 protected:
  BulkChainTest() : ChainTest(Bulk()) {}
};

TEST_F(BulkChainTest, WhatIsHeldAndWhenItIsAppliedIsTheSameOnTheCopy) {
  Init(first_);
  Say(first_, Push(11, 1, {0, 1}, 0.1f));
  Settle();
  ExpectEqual();
  EXPECT_FALSE(second_.lane.FindCopy(JobId(1), ShardId(0))->held().empty());
  Say(first_, Push(12, 1, {0, 1}, 0.7f));
  Say(first_, Push(12, 2, {0, 1}, 0.7f));
  Settle(50);
  ExpectEqual();
  EXPECT_EQ(second_.lane.FindCopy(JobId(1), ShardId(0))->version(), 1u);
  // Who is out of the rule lets the others' pushes go.
  TestMessage hold(wire::Kind::Hold, 0, 11);
  Say(first_, hold.Flags(wire::kHoldOn));
  Settle(50);
  ExpectEqual();
  EXPECT_EQ(second_.lane.FindCopy(JobId(1), ShardId(0))->version(), 2u);
}

TEST(ShardImageStreamTest, EveryCutOrChangedPieceIsRefused) {
  const LayoutView layout = MakeLayout({{TableRule::Sgd, {300, 200}}}, 1, {});
  const JobRules rules = ConstantRules(1.0);
  Shard shard(layout, rules, ShardId(0), Epoch(1), 1, false);
  ASSERT_EQ(shard.Init(Parse(layout, ConstantShard(layout, ShardId(0), 2))), wire::Code::Applied);
  const checkpoint::ShardImage image = shard.Freeze(JobId(1), Round(1)).ToImage();
  ShardImageWriter writer(image);
  const auto piece = writer.Next();
  EXPECT_TRUE(writer.done());
  checkpoint::ImageSink whole(std::uint64_t{1} << 20);
  ShardImageReader good(ShardId(0), whole);
  ASSERT_TRUE(good.Add(*piece).ok());
  ASSERT_TRUE(good.Finish().ok());
  EXPECT_EQ(checkpoint::Digest(whole.Take()), checkpoint::Digest(image));
  for (std::size_t size = 0; size < piece->size(); size += 7) {
    checkpoint::ImageSink sink(std::uint64_t{1} << 20);
    ShardImageReader reader(ShardId(0), sink);
    const bool added = reader.Add(std::span(*piece).first(size)).ok();
    EXPECT_FALSE(added && reader.Finish().ok()) << size;
  }
  for (std::size_t at = 0; at < piece->size(); at += 11) {
    ByteBuffer changed = *piece;
    changed[at] ^= std::byte{1};
    checkpoint::ImageSink sink(std::uint64_t{1} << 20);
    ShardImageReader reader(ShardId(0), sink);
    const bool added = reader.Add(changed).ok();
    EXPECT_FALSE(added && reader.Finish().ok()) << at;
  }
}

}  // namespace
}  // namespace ps::server::testing
