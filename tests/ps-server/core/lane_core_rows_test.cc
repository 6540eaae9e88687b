// Rows of embedding tables through a lane: pushes, pulls, rounds, and what no honest worker sends.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <random>

#include "tests/ps-server/core/server_testing.h"

namespace ps::server::testing {
namespace {

using Keys = std::vector<std::uint64_t>;
using Floats = std::vector<float>;

constexpr std::uint32_t kShards = 5;
constexpr std::uint32_t kWidth = 3;      // of table 0
constexpr std::uint32_t kElements = 40;  // of the blocks, on shards 2 and 4

class LaneCoreRowsTest : public ::testing::Test {
 protected:
  LaneCoreRowsTest() { Start(TestRules()); }

  static JobRules TestRules() {
    JobRules rules = ConstantRules(1.0);
    rules.rows = {MakeRowRules(0, kWidth, 1.0), MakeRowRules(1, 1, 0.5)};
    rules.rows[0].initializer =
        RowInitializer(RowInitializer::Kind::kUniform, -1, 1, /*seed=*/9, 0);
    rules.rows[1].values = wire::ValueCodec::Fp32;
    return rules;
  }

  void Start(const JobRules& rules) {
    lane_ = std::make_unique<LaneCore>(LaneMemory{77, {}});
    LiveMembers live{1, {MakeMember(0, 11), MakeMember(1, 12)}};
    lane_->SetJob(JobSetup{JobId(1), layout_, rules, MapOf(1, {0, 1, 2, 3, 4}), live});
    TestMessage init(wire::Kind::Init, 0, 11);
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      init.Segment(shard, 1, ConstantShard(layout_, ShardId(shard), 0));
    }
    const TestReply reply = SendOne(*lane_, init);
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      ASSERT_EQ(reply.CodeOf(shard), wire::Code::Applied) << shard;
    }
  }

  static LaneMap MapOf(std::uint64_t version, const std::vector<std::uint32_t>& shards,
                       std::uint32_t epoch = 1) {
    LaneMap map;
    map.version = version;
    for (const std::uint32_t shard : shards) {
      map.shards.push_back(OwnShard{ShardId(shard), Epoch(epoch), epoch, Round()});
    }
    return map;
  }

  static TestMessage PushMessage(std::uint32_t incarnation, std::uint64_t clock) {
    TestMessage message(wire::Kind::Push, incarnation - 11, incarnation);
    return message.Clock(clock).Flags(wire::kCoversLane);
  }
  static TestMessage PullMessage(std::uint32_t incarnation, std::uint64_t needed) {
    TestMessage message(wire::Kind::Pull, incarnation - 11, incarnation);
    return message.Clock(needed).Flags(wire::kPullFp32);
  }
  Floats InitialOf(const Keys& keys) const {
    Floats all;
    for (const std::uint64_t key : keys) {
      Floats row(kWidth);
      TestRules().rows[0].initializer.Fill(key, row);
      all.insert(all.end(), row.begin(), row.end());
    }
    return all;
  }
  Floats Pull(std::uint32_t shard, std::uint32_t table, const Keys& keys,
              std::uint8_t flags = wire::kPullFp32) {
    TestMessage message = PullMessage(11, 0).Flags(flags);
    message.Segment(shard, 1, AskedRows(table, keys));
    const TestReply reply = SendOne(*lane_, message);
    EXPECT_EQ(reply.kind(), wire::Kind::PullReply);
    return PulledRows(layout_, reply.PayloadOf(shard))[table];
  }
  const Shard& shard(std::uint32_t number) const {
    return *lane_->FindShard(JobId(1), ShardId(number));
  }
  std::uint64_t RowsOf(std::uint32_t number, std::size_t table) const {
    return shard(number).rows().table(table).rows();
  }
  Keys KeysOf(std::uint32_t number, std::size_t count, std::uint64_t first = 0) const {
    return KeysOfShard(layout_, number, count, first);
  }

  const LayoutView layout_ =
      MakeLayout({{TableRule::Sgd, {kElements, kElements}}}, kShards, {kWidth, 1});
  std::unique_ptr<LaneCore> lane_;
};

TEST_F(LaneCoreRowsTest, RowsThatAreNotThereAreAnsweredFromTheInitialiserAndNotMade) {
  for (std::uint32_t number = 0; number < kShards; ++number) {
    const Keys keys = KeysOf(number, 4);
    EXPECT_EQ(Pull(number, 0, keys), InitialOf(keys));
    EXPECT_EQ(Pull(number, 1, keys), Floats(4, 0.0F));
    EXPECT_EQ(RowsOf(number, 0), 0u);
  }
}

TEST_F(LaneCoreRowsTest, APushMakesAndUpdatesRowsBesideItsBlocks) {
  const Keys keys = KeysOf(2, 3);
  Bytes bytes = SparseBlock(0, kElements, {7}, {-4});
  bytes += PushedRows(0, {keys[0], keys[2]}, {1, 2, 3, 4, 5, 6});
  bytes += PushedRows(1, {keys[1]}, {-8}, wire::ValueCodec::Bf16);
  TestMessage message = PushMessage(11, 1);
  message.Segment(2, 1, bytes, 1).Segment(0, 1, PushedRows(1, KeysOf(0, 1), {6}), 1);
  EXPECT_TRUE(SendOne(*lane_, message).head.segments.empty());

  Floats expected = InitialOf(keys);
  for (int i = 0; i < 3; ++i) {
    expected[static_cast<std::size_t>(i)] -= static_cast<float>(1 + i);
    expected[static_cast<std::size_t>(6 + i)] -= static_cast<float>(4 + i);
  }
  EXPECT_EQ(Pull(2, 0, keys), expected);
  EXPECT_EQ(Pull(2, 1, keys), Floats({0, 4, 0})) << "a rate of its own, 0.5";
  EXPECT_EQ(Pull(0, 1, KeysOf(0, 1)), Floats({-3}));
  EXPECT_EQ(shard(2).values()[7], 4);
  EXPECT_EQ(RowsOf(2, 0), 2u);
  EXPECT_EQ(RowsOf(2, 1), 1u);
  for (std::uint32_t number = 0; number < kShards; ++number) EXPECT_EQ(shard(number).version(), 1u);
}

TEST_F(LaneCoreRowsTest, ARepeatedPushIsAppliedOnce) {
  const Keys keys = KeysOf(1, 2);
  TestMessage message = PushMessage(11, 1);
  message.Segment(1, 1, PushedRows(1, keys, {1, 2}), 1);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(SendOne(*lane_, message).head.segments.empty());
  EXPECT_EQ(Pull(1, 1, keys), Floats({-0.5, -1}));
  EXPECT_EQ(lane_->counters().pushes_repeated, 2 * kShards);
  EXPECT_EQ(lane_->Report()[0].tables[1].status.pushed, 2u);
}

TEST_F(LaneCoreRowsTest, ValuesTravelAsFp32WhereThePullOrTheTableSaysSo) {
  const Keys keys = KeysOf(3, 1);
  TestMessage push = PushMessage(11, 1);
  push.Segment(3, 1, PushedRows(1, keys, {-2.0078125F}), 1);  // 1.00390625 is no bf16
  SendOne(*lane_, push);
  EXPECT_EQ(Pull(3, 1, keys, 0), Floats({1.00390625F}));
  const Floats exact = Pull(3, 0, keys);
  Floats rounded;
  for (const float value : exact) {
    rounded.push_back(codec::Bf16ToFloat(codec::FloatToBf16(value)));
  }
  EXPECT_NE(rounded, exact);
  EXPECT_EQ(Pull(3, 0, keys, 0), rounded);
}

TEST_F(LaneCoreRowsTest, AnUnchangedShardAnswersItsRows) {
  const Keys keys = KeysOf(2, 2);
  TestMessage pull = PullMessage(11, 0);
  pull.Segment(2, 1).Segment(3, 1);
  TestReply reply = SendOne(*lane_, pull);
  EXPECT_EQ(reply.ContentOf(2), wire::PullContent::Snapshot);
  EXPECT_EQ(reply.ContentOf(3), wire::PullContent::Snapshot) << "of no blocks";
  EXPECT_EQ(reply.Find(3)->length(), 0u);

  // A push of rows alone changes no block.
  TestMessage push = PushMessage(11, 1);
  push.Segment(2, 1, PushedRows(0, keys, {1, 1, 1, 1, 1, 1}), 1);
  push.Segment(3, 1, PushedRows(0, KeysOf(3, 1), {1, 1, 1}), 1);
  SendOne(*lane_, push);
  TestMessage again = PullMessage(11, 1);
  again.Segment(2, 1, AskedRows(0, keys), 1).Segment(3, 1, AskedRows(0, KeysOf(3, 1)), 1);
  push = PushMessage(12, 1);
  EXPECT_TRUE(Send(*lane_, again).empty()) << "waits for the other worker";
  const std::vector<TestReply> replies = Send(*lane_, push);
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[1].ContentOf(2), wire::PullContent::Unchanged);
  EXPECT_EQ(replies[1].ContentOf(3), wire::PullContent::Unchanged);
  EXPECT_EQ(replies[1].Find(2)->version(), 2u);
  Floats expected = InitialOf(keys);
  for (float& value : expected) value -= 1;
  EXPECT_EQ(PulledRows(layout_, replies[1].PayloadOf(2))[0], expected);
  EXPECT_EQ(PulledRows(layout_, replies[1].PayloadOf(3))[0].size(), kWidth);
}

TEST_F(LaneCoreRowsTest, BlocksAndRowsOfSeveralShardsTravelInOneAnswer) {
  TestMessage pull = PullMessage(11, 0).Flags(0);
  std::map<std::uint32_t, Keys> keys;
  for (const std::uint32_t number : {4u, 0u, 2u}) {
    keys[number] = KeysOf(number, 3 + number);
    Bytes asked = AskedRows(0, keys[number]);
    asked += AskedRows(1, {});
    pull.Segment(number, 1, asked);
  }
  const TestReply reply = SendOne(*lane_, pull);
  ASSERT_EQ(reply.head.segments.size(), 3u);
  for (const auto& [number, asked] : keys) {
    Floats expected = InitialOf(asked);
    for (float& value : expected) value = codec::Bf16ToFloat(codec::FloatToBf16(value));
    const auto rows = PulledRows(layout_, reply.PayloadOf(number));
    EXPECT_EQ(rows[0], expected);
    EXPECT_TRUE(rows[1].empty());
    const auto parts = codec::SplitSegment(reply.PayloadOf(number)).value();
    EXPECT_EQ(parts.blocks.empty(), layout_.shard_elements(ShardId(number)) == 0);
  }
}

TEST_F(LaneCoreRowsTest, AParkedPullKeepsItsKeysAndIsAnsweredWithWhatIsThereThen) {
  const Keys keys = KeysOf(1, 50);
  TestMessage pull = PullMessage(11, 1);
  pull.Segment(1, 1, AskedRows(1, keys));
  {
    // The bytes of the message are gone after the call.
    Bytes head = pull.Head();
    Bytes payload = pull.payload;
    lane_->OnMessage("w11", head, payload);
    std::fill(head.begin(), head.end(), std::byte{0xff});
    std::fill(payload.begin(), payload.end(), std::byte{0xff});
  }
  EXPECT_EQ(lane_->parked_pulls(), 1u);
  for (const std::uint32_t incarnation : {11u, 12u}) {
    TestMessage push = PushMessage(incarnation, 1);
    push.Segment(1, 1, PushedRows(1, {keys[3]}, {-1}), 5);
    const auto replies = Send(*lane_, push);
    if (incarnation == 11) continue;
    ASSERT_EQ(replies.size(), 2u);
    Floats expected(50, 0.0F);
    expected[3] = 1;
    EXPECT_EQ(PulledRows(layout_, replies[1].PayloadOf(1))[1], expected);
  }
  // A newer pull takes the place of a parked one, and so do its keys.
  TestMessage first = PullMessage(11, 2);
  first.Segment(1, 1, AskedRows(1, {keys[3]}));
  TestMessage second = PullMessage(11, 2);
  second.Segment(1, 1, AskedRows(1, {keys[2], keys[3]}));
  Send(*lane_, first);
  Send(*lane_, second);
  EXPECT_EQ(lane_->parked_pulls(), 1u);
  Send(*lane_, PushMessage(11, 2));
  const auto replies = Send(*lane_, PushMessage(12, 2));
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(PulledRows(layout_, replies[1].PayloadOf(1))[1], Floats({0, 1}));
}

TEST_F(LaneCoreRowsTest, ANonFiniteRowRefusesTheWholeSegmentAndConsumesTheClock) {
  const Keys keys = KeysOf(2, 2);
  for (const float bad :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    Start(TestRules());
    Bytes bytes = SparseBlock(0, kElements, {7}, {-4});
    bytes += PushedRows(0, {keys[0]}, {1, 1, 1});
    bytes += PushedRows(1, {keys[1]}, {bad}, wire::ValueCodec::Bf16);
    TestMessage push = PushMessage(11, 1);
    push.Segment(2, 1, bytes, 1).Segment(0, 1, PushedRows(1, KeysOf(0, 1), {-2}), 1);
    EXPECT_EQ(SendOne(*lane_, push).CodeOf(2), wire::Code::NonFinite);
    EXPECT_EQ(RowsOf(2, 0), 0u);
    EXPECT_EQ(shard(2).values()[7], 0);
    EXPECT_EQ(RowsOf(0, 1), 1u) << "other shards have verdicts of their own";
    EXPECT_EQ(SendOne(*lane_, push).CodeOf(2), wire::Code::NonFinite);
    EXPECT_TRUE(SendOne(*lane_, PushMessage(11, 2)).head.segments.empty());
  }
}

TEST_F(LaneCoreRowsTest, APushOfRowsAloneMayBeTooOld) {
  for (std::uint64_t clock = 1; clock <= 12; ++clock) SendOne(*lane_, PushMessage(12, clock));
  TestMessage push = PushMessage(11, 1);
  push.Segment(1, 1, PushedRows(1, KeysOf(1, 1), {1}), 2);
  EXPECT_EQ(SendOne(*lane_, push).CodeOf(1), wire::Code::TooOld);
  EXPECT_EQ(RowsOf(1, 1), 0u);
}

TEST_F(LaneCoreRowsTest, RowsThatBreakARuleRefuseTheWholeMessage) {
  const Keys keys = KeysOf(1, 3);
  const auto refused = [&](const Bytes& bytes, const std::string& what) {
    const std::uint64_t before =
        lane_->counters().refused[static_cast<std::size_t>(wire::Code::Malformed)];
    TestMessage push = PushMessage(11, 1);
    push.Segment(0, 1, PushedRows(1, KeysOf(0, 1), {1}), 1).Segment(1, 1, bytes, 1);
    const TestReply reply = SendOne(*lane_, push);
    EXPECT_EQ(reply.kind(), wire::Kind::Nack) << what;
    EXPECT_EQ(reply.code(), wire::Code::Malformed) << what;
    EXPECT_EQ(RowsOf(0, 1), 0u) << what;
    EXPECT_EQ(shard(0).version(), 0u) << what;
    EXPECT_EQ(lane_->counters().refused[static_cast<std::size_t>(wire::Code::Malformed)],
              before + 1);
  };
  const auto changed = [](Bytes bytes, std::size_t at, int value) {
    bytes[at] = static_cast<std::byte>(value);
    return bytes;
  };
  const Bytes good = PushedRows(1, keys, {1, 2, 3});
  refused(PushedRows(1, KeysOf(2, 3), {1, 2, 3}), "rows of another shard");
  refused(PushedRows(2, keys, {1, 2, 3}), "a table that the job does not have");
  refused(PushedRows(1023, keys, {1, 2, 3}), "a table that the job does not have");
  refused(PushedRows(0, keys, {1, 2, 3}), "a table of another width");
  Bytes cut = good;
  cut.pop_back();
  refused(cut, "cut short");
  refused(changed(good, 4, 2), "a count that does not fit");
  refused(changed(good, 12, 0), "no keys");
  refused(changed(good, 12, 1), "positions");
  refused(changed(good, 13, 2), "no values");
  refused(changed(good, 14, 1), "reserved bytes");
  refused(changed(good, 16, std::to_integer<int>(good[16]) + 1), "gaps of more bits");
  refused(changed(good, 16, 65), "gaps of more bits than a key has");
  // A gap by which a key comes after itself.
  const std::vector<std::uint64_t> gaps = {keys[0], ~std::uint64_t{0}, 0};
  Bytes twice(sizeof(wire::BlockHeader) + 1 + 3 * 8 + 3 * 4);
  codec::WriteRowsHeader(1, 3, twice.size() - sizeof(wire::BlockHeader),
                         codec::RowContent::kKeysAndValues, wire::ValueCodec::Fp32, twice.data());
  twice[16] = std::byte{64};
  std::memcpy(twice.data() + 17, gaps.data(), 3 * 8);
  refused(twice, "a key that is there twice");
  Bytes scale = PushedRows(1, keys, {1, 2, 3}, wire::ValueCodec::Int8);
  scale[scale.size() - 2] = std::byte{0xff};
  refused(scale, "a scale that is negative");
  Bytes order = PushedRows(1, keys, {1, 2, 3});
  order += PushedRows(0, {keys[0]}, {1, 2, 3});
  refused(order, "tables out of order");
  Bytes behind = good;
  behind += SparseBlock(0, kElements, {7}, {-4});
  refused(behind, "a block behind rows");
  refused(AskedRows(1, keys), "rows as a pull has them");

  const auto refused_pull = [&](const Bytes& bytes, const std::string& what) {
    TestMessage pull = PullMessage(11, 0);
    pull.Segment(0, 1).Segment(1, 1, bytes);
    const TestReply reply = SendOne(*lane_, pull);
    EXPECT_EQ(reply.kind(), wire::Kind::Nack) << what;
    EXPECT_EQ(reply.code(), wire::Code::Malformed) << what;
  };
  refused_pull(good, "rows as a push has them");
  refused_pull(AskedRows(1, KeysOf(2, 3)), "rows of another shard");
  refused_pull(AskedRows(2, keys), "a table that the job does not have");
  refused_pull(SparseBlock(0, kElements, {7}, {-4}), "a block");
  Bytes asked = AskedRows(1, keys);
  asked.pop_back();
  refused_pull(asked, "cut short");
  TestMessage spare = PullMessage(11, 0);
  spare.Segment(1, 1, AskedRows(1, keys)).payload += Bytes(1);
  EXPECT_EQ(SendOne(*lane_, spare).code(), wire::Code::Malformed) << "bytes that nobody names";
  TestMessage outside = PullMessage(11, 0);
  outside.Segment(1, 1, AskedRows(1, keys));
  outside.segments[0].mutate_offset(1);
  EXPECT_EQ(SendOne(*lane_, outside).code(), wire::Code::Malformed);

  TestMessage init(wire::Kind::Init, 0, 11);
  init.Segment(1, 1, good);
  EXPECT_EQ(SendOne(*lane_, init).code(), wire::Code::Malformed);
}

TEST_F(LaneCoreRowsTest, RandomDamageToRowsNeverChangesMoreThanItShould) {
  std::mt19937 random(3);
  std::uint64_t refused = 0;
  for (int round = 0; round < 3000; ++round) {
    TestMessage message = round % 2 == 0 ? PushMessage(11, 1) : PullMessage(11, 0);
    for (const std::uint32_t number : {1u, 2u}) {
      const Keys keys = KeysOf(number, 1 + random() % 6, random() % 1000);
      message.Segment(
          number, 1,
          round % 2 == 0 ? PushedRows(1, keys, Floats(keys.size(), 0.5F)) : AskedRows(0, keys));
    }
    Bytes head = message.Head();
    const int flips = 1 + static_cast<int>(random() % 3);
    for (int i = 0; i < flips; ++i) {
      Bytes& frame = random() % 4 == 0 ? head : message.payload;
      frame[random() % frame.size()] ^= static_cast<std::byte>(1u << random() % 8);
    }
    lane_->OnMessage("w11", head, message.payload);
    for (const TestReply& reply : Replies(*lane_)) {
      if (reply.kind() == wire::Kind::Nack) ++refused;
    }
  }
  EXPECT_GT(refused, 500u);
  EXPECT_LE(shard(1).version(), 1u) << "one clock";
}

TEST_F(LaneCoreRowsTest, ALargeAnswerHasTheFirstShardsAlone) {
  const LayoutView wide =
      MakeLayout({{TableRule::Sgd, {kElements, kElements, kElements}}}, 3, {1024});
  JobRules rules = ConstantRules(1.0);
  rules.rows = {MakeRowRules(0, 1024, 1.0)};
  LaneCore lane;
  lane.SetJob(
      JobSetup{JobId(1), wide, rules, MapOf(1, {0, 1, 2}), LiveMembers{1, {MakeMember(0, 11)}}});
  TestMessage init(wire::Kind::Init, 0, 11);
  for (std::uint32_t shard = 0; shard < 3; ++shard) {
    init.Segment(shard, 1, ConstantShard(wide, ShardId(shard), 0));
  }
  SendOne(lane, init);
  // 102 MB of each shard.
  std::vector<Keys> keys;
  for (std::uint32_t shard = 0; shard < 3; ++shard) {
    keys.push_back(KeysOfShard(wide, shard, 25'000));
  }
  const auto ask = [&](std::initializer_list<std::uint32_t> shards) {
    TestMessage pull = PullMessage(11, 0);
    for (const std::uint32_t shard : shards) pull.Segment(shard, 1, AskedRows(0, keys[shard]));
    const TestReply reply = SendOne(lane, pull);
    EXPECT_EQ(reply.kind(), wire::Kind::PullReply);
    std::vector<std::uint32_t> answered;
    for (const wire::Segment& segment : reply.head.segments) answered.push_back(segment.shard());
    return answered;
  };
  EXPECT_EQ(ask({0, 1, 2}), (std::vector<std::uint32_t>{0, 1}));
  EXPECT_EQ(ask({2}), (std::vector<std::uint32_t>{2}));
}

TEST_F(LaneCoreRowsTest, AnAnswerBeyondTheLargestMessageIsRefused) {
  // Keys are cheap and wide rows are not: 300,000 rows of 1,024 values are more than 1 GiB.
  const LayoutView wide = MakeLayout({{TableRule::Sgd, {kElements}}}, 1, {1024});
  JobRules rules = ConstantRules(1.0);
  rules.rows = {MakeRowRules(0, 1024, 1.0)};
  LaneCore lane;
  lane.SetJob(JobSetup{JobId(1), wide, rules, MapOf(1, {0}), LiveMembers{1, {MakeMember(0, 11)}}});
  TestMessage init(wire::Kind::Init, 0, 11);
  SendOne(lane, init.Segment(0, 1, ConstantShard(wide, ShardId(0), 0)));
  Keys keys(300'000);
  std::iota(keys.begin(), keys.end(), 0);
  TestMessage pull = PullMessage(11, 0);
  pull.Segment(0, 1, AskedRows(0, keys));
  EXPECT_EQ(SendOne(lane, pull).code(), wire::Code::TooLarge);
}

TEST_F(LaneCoreRowsTest, CountersOutliveShardsThatLeave) {
  TestMessage push = PushMessage(11, 1);
  for (const std::uint32_t number : {0u, 1u}) {
    push.Segment(number, 1, PushedRows(1, KeysOf(number, 4), {1, 1, 1, 1}), 1);
  }
  SendOne(*lane_, push);
  Pull(0, 1, KeysOf(0, 3));
  auto table = lane_->Report()[0].tables[1];
  EXPECT_EQ(table.name, "rows1");
  EXPECT_EQ(table.status.rows, 8u);
  EXPECT_EQ(table.status.created, 8u);
  EXPECT_EQ(table.status.pushed, 8u);
  EXPECT_EQ(table.status.pulled, 3u);
  EXPECT_GT(table.status.bytes, 8 * 20u);
  const std::uint64_t bytes = table.status.bytes;
  lane_->UpdateMap(JobId(1), MapOf(2, {1, 2, 3, 4}));
  table = lane_->Report()[0].tables[1];
  EXPECT_EQ(table.status.rows, 4u);
  EXPECT_EQ(table.status.created, 8u);
  EXPECT_EQ(table.status.pulled, 3u);
  EXPECT_LT(table.status.bytes, bytes);
  lane_->UpdateMap(JobId(1), MapOf(3, {1, 2, 3, 4}, /*epoch=*/2));
  table = lane_->Report()[0].tables[1];
  EXPECT_EQ(table.status.rows, 0u);
  EXPECT_EQ(table.status.created, 8u);
}

}  // namespace
}  // namespace ps::server::testing
