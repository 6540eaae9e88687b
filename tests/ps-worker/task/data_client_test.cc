#include "ps-worker/task/data_client.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <random>

#include "tests/ps-worker/task/lane_cluster.h"

namespace ps::worker {
namespace {

using net::Milliseconds;
using testing::LaneServer;
using testing::MakeLive;
using testing::MakeMap;

constexpr auto kPatience = Milliseconds(20000);
const JobId kJob(1);

struct alignas(64) Line {
  std::byte bytes[64];
};

// A worker's ring and client on the test's loop. Its pushes add 1 to the entry (clock % elements)
// of every block: the sum over a shard counts the pushes that were applied.
class Worker {
 public:
  Worker(net::Loop& loop, net::Context& context, const LayoutView& layout, std::uint32_t worker = 0,
         std::uint32_t incarnation = 1, std::int64_t resend_timeout_ms = 150)
      : layout_(layout), memory_((std::size_t{4} << 20) / 64) {
    RingIdentity identity{kJob, WorkerId(worker),     Incarnation(incarnation),
                          0,    layout.shard_count(), Clock(0)};
    ring = std::make_unique<RetentionRing>(RetentionRing::Create(region(), identity).value());
    DataClientOptions options;
    options.resend_timeout_ms = resend_timeout_ms;
    options.pull_timeout_ms = 300;
    DataClient::Callbacks callbacks;
    callbacks.initial_values = [](ShardId, std::span<float> values) {
      std::fill(values.begin(), values.end(), 100.0F);
      return true;
    };
    callbacks.returned = [this](const RingEntryInfo& push, ShardId shard,
                                std::span<const std::byte> bytes) {
      returned.emplace_back(push.clock, shard);
      returned_bytes += bytes.size();
    };
    callbacks.round_cut = [this](std::uint64_t, Clock clock) { cut = clock; };
    callbacks.round_ended = [this](std::uint64_t round, bool is_frozen) {
      ended = round;
      frozen = is_frozen;
    };
    callbacks.pulled = [this](PullResult result) { pulled = std::move(result); };
    callbacks.broken = [this](const Error& error) { broken = error.message; };
    client = std::make_unique<DataClient>(loop, context, *ring, &layout, options, callbacks);
  }

  std::span<std::byte> region() {
    return {reinterpret_cast<std::byte*>(memory_.data()), memory_.size() * sizeof(Line)};
  }

  // Shards in this order in the payload; without one the shard gets an empty push.
  void Push(const std::vector<std::uint32_t>& shards, std::uint64_t base = 0) {
    Retain(shards, base);
    client->Committed();
  }
  // Into the ring only.
  void Retain(const std::vector<std::uint32_t>& shards, std::uint64_t base = 0) {
    const std::uint64_t clock = ring->last_clock().value() + 1;
    server::testing::Bytes payload;
    std::vector<RingPart> parts;
    for (const std::uint32_t number : shards) {
      RingPart part;
      part.shard = number;
      part.offset = static_cast<std::uint32_t>(payload.size());
      part.base_version = base;
      part.lineage = 1;
      const ShardId shard(number);
      for (std::uint32_t block = layout_.shard_first_block(shard);
           block < layout_.shard_last_block(shard); ++block) {
        const std::uint32_t elements = layout_.block(block).elements;
        const auto bytes = server::testing::SparseBlock(
            block, elements, {static_cast<std::uint16_t>(clock % elements)}, {-1.0F});
        payload.insert(payload.end(), bytes.begin(), bytes.end());
      }
      part.bytes = static_cast<std::uint32_t>(payload.size()) - part.offset;
      parts.push_back(part);
    }
    std::sort(parts.begin(), parts.end(),
              [](const RingPart& a, const RingPart& b) { return a.shard < b.shard; });
    RetentionRing::Reservation place;
    ASSERT_EQ(ring->Reserve(payload.size(), parts.size(), place),
              RetentionRing::ReserveStatus::kReserved);
    if (!payload.empty()) std::memcpy(place.payload.data(), payload.data(), payload.size());
    RingEntryInfo info;
    info.clock = Clock(clock);
    info.samples = 1;
    ring->Commit(info, payload.size(), parts);
  }

  std::unique_ptr<RetentionRing> ring;
  std::unique_ptr<DataClient> client;
  std::vector<std::pair<Clock, ShardId>> returned;
  std::size_t returned_bytes = 0;
  std::optional<Clock> cut;
  std::optional<std::uint64_t> ended;
  bool frozen = false;
  std::optional<PullResult> pulled;
  std::string broken;

 private:
  const LayoutView& layout_;
  std::vector<Line> memory_;
};

class DataClientTest : public ::testing::Test {
 protected:
  DataClientTest()
      : layout_(server::testing::MakeLayout(
            {{TableRule::Sgd, {1000, 500, 65536, 7}}, {TableRule::Sgd, {20, 30}}}, kShards)) {}

  LaneServer& AddServer(const std::string& procid, std::uint32_t lanes) {
    servers_.push_back(std::make_unique<LaneServer>(loop_, context_, procid, lanes));
    return *servers_.back();
  }
  control::MapT Map(std::uint64_t version) {
    std::vector<const LaneServer*> servers;
    for (const auto& one : servers_) servers.push_back(one.get());
    return MakeMap(version, servers, kShards);
  }
  void Configure(const control::MapT& map, const control::LiveSetT& live,
                 std::uint64_t version_gap_max = 1000, bool increments = false) {
    auto rules = server::testing::ConstantRules(1.0);
    rules.increments = increments;
    rules.version_gap_max = version_gap_max;
    for (const auto& one : servers_) one->SetJob(kJob, layout_, rules, map, live);
  }
  double SumOf(std::uint32_t shard) const {
    for (const auto& one : servers_) {
      const server::Shard* found = one->FindShard(kJob, ShardId(shard));
      if (found == nullptr || !found->ready()) continue;
      double sum = 0;
      for (const float value : found->values()) sum += value - 100.0;
      return sum;
    }
    return -1;
  }
  std::uint32_t BlocksOf(std::uint32_t shard) const {
    return layout_.shard_last_block(ShardId(shard)) - layout_.shard_first_block(ShardId(shard));
  }
  bool Until(const std::function<bool()>& done) { return loop_.RunUntil(done, kPatience); }
  bool AllAcked(Worker& worker) {
    return Until([&] { return worker.client->all_acked() || !worker.broken.empty(); });
  }
  void PushMany(Worker& worker, int steps) {
    for (int i = 0; i < steps; ++i) {
      ASSERT_TRUE(Until([&] { return worker.client->has_room() || !worker.broken.empty(); }));
      ASSERT_EQ(worker.broken, "");
      worker.Push({0, 1, 2, 3});
    }
  }

  static constexpr std::uint32_t kShards = 4;
  const LayoutView layout_;
  net::Context context_;
  net::Loop loop_;
  std::vector<std::unique_ptr<LaneServer>> servers_;
};

TEST_F(DataClientTest, BlankShardsAreInitialisedAndEveryPushArrives) {
  AddServer("a", 1);
  AddServer("b", 2);
  const auto map = Map(1);
  Configure(map, MakeLive(1, {1}));
  Worker worker(loop_, context_, layout_);
  ASSERT_TRUE(worker.client->SetMap(map).ok());
  PushMany(worker, 50);
  worker.Push({});
  worker.Push({2});
  ASSERT_TRUE(AllAcked(worker));
  for (std::uint32_t shard = 0; shard < kShards; ++shard) {
    EXPECT_EQ(SumOf(shard), (shard == 2 ? 51 : 50) * BlocksOf(shard)) << shard;
  }
  EXPECT_GT(worker.client->counters().push_bytes, 0u);
}

TEST_F(DataClientTest, ALaneWhoseSegmentsLieTogetherIsSentFromTheRingItself) {
  AddServer("a", 1);
  const auto map = Map(1);
  Configure(map, MakeLive(1, {1}));
  Worker worker(loop_, context_, layout_);
  ASSERT_TRUE(worker.client->SetMap(map).ok());
  PushMany(worker, 10);
  ASSERT_TRUE(AllAcked(worker));
  EXPECT_EQ(worker.client->counters().copied_bytes, 0u);
  // With all of it sent nothing is pinned any more and the ring runs empty.
  worker.client->Release(Clock(10));
  EXPECT_TRUE(Until([&] {
    worker.ring->Release(Clock(10));
    RetentionRing::Reservation place;
    const bool whole = worker.ring->Reserve(worker.ring->capacity_bytes() - 4096, 4, place) ==
                       RetentionRing::ReserveStatus::kReserved;
    worker.ring->Cancel();
    return whole;
  }));
}

TEST_F(DataClientTest, PushesThatLieNextToEachOtherTravelInOneMessage) {
  LaneServer& server = AddServer("a", 1);
  const auto map = Map(1);
  Configure(map, MakeLive(1, {1}));
  // On a slow machine nothing may be sent twice: every message counts here.
  Worker worker(loop_, context_, layout_, 0, 1, /*resend_timeout_ms=*/20'000);
  ASSERT_TRUE(worker.client->SetMap(map).ok());
  PushMany(worker, 1);
  ASSERT_TRUE(AllAcked(worker));
  int messages = 0;
  server.lose_request = [&] {
    ++messages;
    return false;
  };
  worker.Retain({0, 1, 2, 3});
  worker.Retain({});
  worker.Retain({2, 3});
  worker.client->Committed();
  ASSERT_TRUE(AllAcked(worker));
  EXPECT_EQ(messages, 1);
  EXPECT_EQ(worker.client->counters().pushes, 4u);
  EXPECT_EQ(worker.client->counters().copied_bytes, 0u);
  EXPECT_EQ(SumOf(0), 2 * BlocksOf(0));
  EXPECT_EQ(SumOf(2), 3 * BlocksOf(2));
}

TEST_F(DataClientTest, APullBringsWhatChangedAndThenNothing) {
  AddServer("a", 2);
  const auto map = Map(1);
  Configure(map, MakeLive(1, {1}));
  Worker worker(loop_, context_, layout_);
  ASSERT_TRUE(worker.client->SetMap(map).ok());
  PushMany(worker, 1);
  ASSERT_TRUE(AllAcked(worker));
  DataClient::Pull pull;
  pull.fp32 = true;
  worker.client->StartPull(pull);
  ASSERT_TRUE(Until([&] { return worker.pulled.has_value(); }));
  ASSERT_EQ(worker.pulled->shards.size(), kShards);
  pull.bases.resize(kShards);
  for (const PulledShard& shard : worker.pulled->shards) {
    EXPECT_EQ(shard.content, wire::PullContent::Snapshot);
    pull.bases[shard.shard.value()] = {shard.version, shard.lineage};
  }
  PushMany(worker, 1);
  ASSERT_TRUE(AllAcked(worker));
  pull.needed = Clock(2);
  worker.pulled.reset();
  worker.client->StartPull(pull);
  ASSERT_TRUE(Until([&] { return worker.pulled.has_value(); }));
  bool sparse = false;
  for (const PulledShard& shard : worker.pulled->shards) {
    ASSERT_NE(shard.content, wire::PullContent::Unchanged);
    pull.bases[shard.shard.value()] = {shard.version, shard.lineage};
    if (shard.content != wire::PullContent::Sparse) continue;
    sparse = true;
    std::vector<float> values;
    for (const codec::BlockView& block : shard.blocks) {
      codec::DecodeValues(block, values);
      ASSERT_EQ(values.size(), 1u);
      EXPECT_EQ(values[0], 101.0F);
    }
  }
  EXPECT_TRUE(sparse);
  EXPECT_EQ(worker.client->TakeVersionGaps(), std::vector<std::uint32_t>(kShards, 1));
  pull.shards = {ShardId(2)};
  worker.pulled.reset();
  worker.client->StartPull(pull);
  ASSERT_TRUE(Until([&] { return worker.pulled.has_value(); }));
  ASSERT_EQ(worker.pulled->shards.size(), 1u);
  EXPECT_EQ(worker.pulled->shards[0].content, wire::PullContent::Unchanged);
}

TEST_F(DataClientTest, IncrementsArriveAndAreRefusedWhereTheyCannotBe) {
  LaneServer& server = AddServer("a", 1);
  const auto map = Map(1);
  Configure(map, MakeLive(1, {1}), 10000, /*increments=*/true);
  Worker worker(loop_, context_, layout_);
  ASSERT_TRUE(worker.client->SetMap(map).ok());
  PushMany(worker, 1020);
  ASSERT_TRUE(AllAcked(worker));
  DataClient::Pull pull;
  const auto answer = [&] {
    worker.pulled.reset();
    worker.client->StartPull(pull);
    EXPECT_TRUE(Until([&] { return worker.pulled.has_value(); }));
    pull.bases.resize(kShards);
    std::size_t hashes = 0;
    for (const PulledShard& shard : worker.pulled->shards) {
      pull.bases[shard.shard.value()] = {shard.version, shard.lineage};
      hashes += shard.hash.has_value() ? 1 : 0;
    }
    return hashes;
  };
  EXPECT_EQ(answer(), 0u);
  for (const PulledShard& shard : worker.pulled->shards) {
    EXPECT_EQ(shard.content, wire::PullContent::Snapshot);
  }
  // Past the 1,024th push the answer has a hash, and before it none.
  PushMany(worker, 3);
  ASSERT_TRUE(AllAcked(worker));
  EXPECT_EQ(answer(), 0u);
  PushMany(worker, 3);
  ASSERT_TRUE(AllAcked(worker));
  std::size_t increments = 0;
  const std::size_t hashes = answer();
  for (const PulledShard& shard : worker.pulled->shards) {
    if (shard.content != wire::PullContent::Increments) continue;
    ++increments;
    EXPECT_TRUE(shard.hash.has_value());
    EXPECT_EQ(shard.blocks.size(), 3 * BlocksOf(shard.shard.value()));
  }
  EXPECT_GT(increments, 0u);
  EXPECT_EQ(hashes, increments);

  // A server that sends them to who has nothing, or to who asked for fp32, is not believed.
  const std::uint64_t bad = worker.client->counters().bad_messages;
  bool change = true;
  server.change_reply = [&](server::LaneReply& reply) {
    wire::Head head;
    if (!change || !wire::ParseFirst(reply.head, head).ok() ||
        head.header.kind() != static_cast<std::uint8_t>(wire::Kind::PullReply)) {
      return;
    }
    change = false;
    for (wire::Segment& segment : head.segments) {
      segment.mutate_code(static_cast<std::uint8_t>(wire::PullContent::Increments));
    }
    reply.head = wire::BuildHead(head.header, head.segments);
  };
  const auto bases = pull.bases;
  for (const bool fp32 : {false, true}) {
    change = true;
    pull.fp32 = fp32;
    pull.bases = fp32 ? bases : std::vector<DataClient::Base>(kShards);
    pull.snapshot = fp32;
    answer();
    EXPECT_FALSE(change);
  }
  EXPECT_EQ(worker.client->counters().bad_messages, bad + 2 * kShards);
}

TEST_F(DataClientTest, LostMessagesDelayButChangeNothing) {
  AddServer("a", 1);
  AddServer("b", 1);
  std::mt19937 random(3);
  for (const auto& one : servers_) {
    one->lose_request = [&random] { return random() % 20 == 0; };
    one->lose_reply = [&random] { return random() % 20 == 0; };
  }
  const auto map = Map(1);
  Configure(map, MakeLive(1, {1}));
  Worker worker(loop_, context_, layout_);
  ASSERT_TRUE(worker.client->SetMap(map).ok());
  PushMany(worker, 60);
  ASSERT_TRUE(AllAcked(worker));
  DataClient::Pull pull;
  pull.needed = Clock(60);
  worker.client->StartPull(pull);
  ASSERT_TRUE(Until([&] { return worker.pulled.has_value(); }));
  for (std::uint32_t shard = 0; shard < kShards; ++shard) {
    EXPECT_EQ(SumOf(shard), 60.0 * BlocksOf(shard)) << shard;
  }
  EXPECT_GT(worker.client->stream().counters().hellos, 2u);
}

TEST_F(DataClientTest, ARoundFreezesExactlyTheCutAndALostServerIsReplayedFromIt) {
  AddServer("a", 1);
  LaneServer& victim = AddServer("b", 1);
  auto map = Map(1);
  const auto live = MakeLive(1, {1});
  Configure(map, live);
  Worker worker(loop_, context_, layout_);
  ASSERT_TRUE(worker.client->SetMap(map).ok());
  PushMany(worker, 7);
  for (const auto& one : servers_) one->BeginRound(kJob, Round(5), 1, 1);
  worker.client->BeginRound(5);
  worker.Push({0, 1, 2, 3});
  ASSERT_TRUE(Until([&] { return worker.ended.has_value(); }));
  EXPECT_TRUE(worker.frozen);
  EXPECT_EQ(worker.cut, Clock(7));
  ASSERT_TRUE(AllAcked(worker));
  std::vector<checkpoint::ShardImage> images;
  for (const auto& one : servers_) {
    images.insert(images.end(), one->images.begin(), one->images.end());
  }
  ASSERT_EQ(images.size(), kShards);
  for (const auto& image : images) EXPECT_EQ(image.version, 7u);
  worker.client->Release(Clock(7));
  PushMany(worker, 5);

  // Server b is gone; c takes its shards as of the checkpoint.
  const std::vector<std::string> lost = victim.endpoints();
  servers_.pop_back();
  LaneServer& heir = AddServer("c", 1);
  map = Map(2);
  for (auto& shard : map.shards) {
    if (shard->server != 1) continue;
    shard->epoch = 2;
    shard->lineage = 2;
    shard->restore_round = 5;
  }
  Configure(map, live);
  ASSERT_TRUE(worker.client->SetMap(map).ok());
  EXPECT_FALSE(worker.client->all_acked());
  for (const auto& image : images) {
    if (map.shards[image.shard.value()]->server == 1) heir.Restore(kJob, Epoch(2), image);
  }
  PushMany(worker, 5);
  ASSERT_TRUE(AllAcked(worker));
  EXPECT_EQ(worker.broken, "");
  for (std::uint32_t shard = 0; shard < kShards; ++shard) {
    EXPECT_EQ(SumOf(shard), 18.0 * BlocksOf(shard)) << shard;
  }
}

TEST_F(DataClientTest, TheAgentReplaysTheRingOfADeadTask) {
  LaneServer& server = AddServer("a", 2);
  const auto map = Map(1);
  Configure(map, MakeLive(1, {1}));
  Worker worker(loop_, context_, layout_);
  ASSERT_TRUE(worker.client->SetMap(map).ok());
  PushMany(worker, 3);
  ASSERT_TRUE(AllAcked(worker));
  // From here on nothing arrives, and then the task dies.
  server.lose_request = [] { return true; };
  for (int i = 0; i < 3; ++i) worker.Push({0, 1, 2, 3});
  worker.client.reset();
  server.lose_request = nullptr;

  auto ring = RetentionRing::Open(worker.region());
  ASSERT_TRUE(ring.ok()) << ring.error().message;
  EXPECT_EQ(ring->last_clock(), Clock(6));
  Configure(map, MakeLive(2, {1}, 0, /*draining=*/true));
  DataClientOptions options;
  options.ghost = true;
  int advanced = 0;
  DataClient::Callbacks callbacks;
  callbacks.advanced = [&advanced] { ++advanced; };
  DataClient ghost(loop_, context_, *ring, nullptr, options, callbacks);
  EXPECT_FALSE(ghost.all_acked());
  ASSERT_TRUE(ghost.SetMap(map).ok());
  ASSERT_TRUE(Until([&] { return ghost.all_acked(); }));
  EXPECT_GT(advanced, 0);
  for (std::uint32_t shard = 0; shard < kShards; ++shard) {
    EXPECT_EQ(SumOf(shard), 6.0 * BlocksOf(shard)) << shard;
  }
}

TEST_F(DataClientTest, ATooOldSegmentComesBackOnceAndIsVoidInTheRing) {
  AddServer("a", 1);
  const auto map = Map(1);
  Configure(map, MakeLive(1, {1}), /*version_gap_max=*/3);
  Worker worker(loop_, context_, layout_);
  ASSERT_TRUE(worker.client->SetMap(map).ok());
  for (std::uint64_t base = 0; base < 3; ++base) worker.Push({0, 1, 2, 3}, base);
  ASSERT_TRUE(AllAcked(worker));
  for (std::uint64_t base = 3; base < 6; ++base) worker.Push({0, 1, 2, 3}, base);
  ASSERT_TRUE(AllAcked(worker));
  EXPECT_TRUE(worker.returned.empty());
  worker.Push({0, 1, 2, 3}, 1);
  ASSERT_TRUE(AllAcked(worker));
  ASSERT_EQ(worker.returned.size(), kShards);
  EXPECT_GT(worker.returned_bytes, 0u);
  RingEntryView entry;
  ASSERT_TRUE(worker.ring->Find(Clock(7), entry));
  for (const RingPart& part : entry.parts) EXPECT_EQ(part.is_void, 1u);
  for (std::uint32_t shard = 0; shard < kShards; ++shard) {
    EXPECT_EQ(SumOf(shard), 6.0 * BlocksOf(shard)) << shard;
  }
}

TEST_F(DataClientTest, NobodyWaitsForAWorkerThatHolds) {
  AddServer("a", 2);
  const auto map = Map(1);
  Configure(map, MakeLive(1, {1, 2}));
  Worker busy(loop_, context_, layout_, 0, 1);
  Worker idle(loop_, context_, layout_, 1, 2);
  ASSERT_TRUE(busy.client->SetMap(map).ok());
  ASSERT_TRUE(idle.client->SetMap(map).ok());
  PushMany(busy, 3);
  ASSERT_TRUE(AllAcked(busy));
  DataClient::Pull pull;
  pull.needed = Clock(3);
  busy.client->StartPull(pull);
  EXPECT_FALSE(loop_.RunUntil([&] { return busy.pulled.has_value(); }, Milliseconds(100)));
  idle.client->SetHold(true);
  EXPECT_TRUE(Until([&] { return busy.pulled.has_value(); }));
  idle.client->SetHold(false);
  busy.pulled.reset();
  ASSERT_FALSE(loop_.RunUntil([] { return false; }, Milliseconds(50)));
  busy.client->StartPull(pull);
  EXPECT_FALSE(loop_.RunUntil([&] { return busy.pulled.has_value(); }, Milliseconds(100)));
}

TEST_F(DataClientTest, AMapThatIsNotOfThisJobIsRefused) {
  AddServer("a", 1);
  Worker worker(loop_, context_, layout_);
  auto map = Map(1);
  map.shards.pop_back();
  EXPECT_FALSE(worker.client->SetMap(map).ok());
  map = Map(1);
  map.shards[1].reset();
  EXPECT_FALSE(worker.client->SetMap(map).ok());
  map = Map(1);
  map.shards[1]->server = 77;
  EXPECT_TRUE(worker.client->SetMap(map).ok());
  worker.Push({0, 1, 2, 3});
  EXPECT_FALSE(worker.client->all_acked());
}

// A lane that answers everything with something broken must not hurt the worker.
TEST_F(DataClientTest, HostileAnswersAreCountedAndDropped) {
  net::ZmqOptions options;
  auto router =
      net::ZmqSocket::Open(loop_, context_, net::ZmqKind::kRouter, std::move(options)).value();
  std::mt19937 random(11);
  int answers = 0;
  router->OnReceive([&](net::ZmqSocket::Frames&& frames) {
    if (frames.size() < 2 || frames[1].size() < sizeof(wire::LaneHeader)) return;
    for (int copy = 0; copy < 4; ++copy) {
      wire::LaneHeader header;
      std::memcpy(&header, frames[1].data(), sizeof(header));
      header.mutate_kind(static_cast<std::uint8_t>(
          random() % 3 == 0 ? random() % 16 : static_cast<std::uint32_t>(header.kind()) + 1));
      header.mutate_samples(random() % 20 == 0 ? random() : 0);
      if (random() % 8 == 0) header.mutate_job(random());
      if (random() % 8 == 0) header.mutate_map_version(random());
      std::vector<std::byte> payload(random() % 200);
      for (std::byte& b : payload) b = static_cast<std::byte>(random());
      std::vector<wire::Segment> segments;
      for (std::uint32_t i = 0; i < random() % 8; ++i) {
        segments.push_back(wire::Segment(random() % 6, 1, random() % 3 == 0 ? random() : 0, 1,
                                         static_cast<std::uint8_t>(random() % 20), 0, 0,
                                         random() % 300, random() % 300));
      }
      header.mutate_payload_bytes(random() % 6 == 0 ? random() : payload.size());
      auto head = wire::BuildHead(header, segments);
      if (random() % 5 == 0) head.resize(random() % (head.size() + 1));
      net::ZmqSocket::Frames out;
      out.push_back(net::CopyFrame(frames[0].data(), frames[0].size()));
      out.push_back(net::CopyFrame(head.data(), head.size()));
      if (!payload.empty()) out.push_back(net::CopyFrame(payload.data(), payload.size()));
      if (random() % 10 == 0) out.push_back(net::CopyFrame("x", 1));
      (void)router->Send(std::move(out)).ok();
    }
    ++answers;
  });
  control::MapT map;
  map.version = 1;
  auto entry = std::make_unique<control::ServerEntryT>();
  entry->lanes = {router->Bind("tcp://127.0.0.1:*").value()};
  map.servers.push_back(std::move(entry));
  for (std::uint32_t i = 0; i < kShards; ++i) {
    map.shards.push_back(std::make_unique<control::ShardEntryT>());
    map.shards.back()->epoch = 1;
  }
  for (int round = 0; round < 10; ++round) {
    Worker worker(loop_, context_, layout_);
    ASSERT_TRUE(worker.client->SetMap(map).ok());
    for (int i = 0; i < 3; ++i) worker.Push({0, 1, 2, 3});
    worker.client->StartPull(DataClient::Pull());
    worker.client->BeginRound(1);
    worker.client->SetHold(true);
    const int before = answers;
    ASSERT_TRUE(Until([&] { return answers > before + 8 || !worker.broken.empty(); }));
  }
  EXPECT_GT(answers, 20);
}

// Two tables of rows on more shards than there are blocks.
class DataClientRowsTest : public ::testing::Test {
 protected:
  static constexpr std::uint32_t kShards = 9;

  DataClientRowsTest()
      : layout_(server::testing::MakeLayout({{TableRule::Sgd, {10, 20}}}, kShards, {2, 3})),
        server_(loop_, context_, "a", 2),
        map_(MakeMap(1, {&server_}, kShards)) {
    auto rules = server::testing::ConstantRules(1.0);
    rules.rows = {server::testing::MakeRowRules(0, 2, 1.0),
                  server::testing::MakeRowRules(1, 3, 1.0)};
    server_.SetJob(kJob, layout_, rules, map_, MakeLive(1, {1}));
    for (std::uint64_t key = 0; key < 100; ++key) {
      keys_[0].push_back(key * key * 1'000'003);
      if (key % 3 == 0) keys_[1].push_back(key);
    }
  }

  // Pushes -(key % 50) for every float of every key of both tables.
  void PushRows(Worker& worker) {
    server::testing::Bytes payload;
    std::vector<RingPart> parts;
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      RingPart part;
      part.shard = shard;
      part.offset = static_cast<std::uint32_t>(payload.size());
      part.lineage = 1;
      for (std::uint32_t table = 0; table < 2; ++table) {
        std::vector<std::uint64_t> here;
        std::vector<float> values;
        for (const std::uint64_t key : keys_[table]) {
          if (codec::ShardOfRow(key, kShards) != ShardId(shard)) continue;
          here.push_back(key);
          values.insert(values.end(), layout_.row_width(table), -static_cast<float>(key % 50));
        }
        if (here.empty()) continue;
        const auto bytes = server::testing::PushedRows(table, here, values);
        payload.insert(payload.end(), bytes.begin(), bytes.end());
      }
      part.bytes = static_cast<std::uint32_t>(payload.size()) - part.offset;
      parts.push_back(part);
    }
    RetentionRing::Reservation place;
    ASSERT_EQ(worker.ring->Reserve(payload.size(), parts.size(), place),
              RetentionRing::ReserveStatus::kReserved);
    std::memcpy(place.payload.data(), payload.data(), payload.size());
    RingEntryInfo info;
    info.clock = Clock(worker.ring->last_clock().value() + 1);
    info.samples = 1;
    worker.ring->Commit(info, payload.size(), parts);
    worker.client->Committed();
  }

  DataClient::Pull Asked() const {
    DataClient::Pull pull;
    pull.fp32 = true;
    pull.rows = std::make_shared<RowKeys>(keys_);
    return pull;
  }

  void ExpectRows(const PullResult& result, float factor) const {
    std::array<std::size_t, 2> found{};
    for (const PulledShard& shard : result.shards) {
      for (const codec::RowsView& part : shard.rows) {
        std::vector<std::uint64_t> here;
        for (const std::uint64_t key : keys_[part.table]) {
          if (codec::ShardOfRow(key, kShards) == shard.shard) here.push_back(key);
        }
        ASSERT_EQ(here.size(), part.count);
        std::vector<float> values(layout_.row_width(part.table));
        for (std::size_t row = 0; row < here.size(); ++row) {
          codec::DecodeRow(part, row, values);
          for (const float value : values) {
            EXPECT_EQ(value, factor * static_cast<float>(here[row] % 50)) << here[row];
          }
        }
        found[part.table] += part.count;
      }
    }
    EXPECT_EQ(found[0], keys_[0].size());
    EXPECT_EQ(found[1], keys_[1].size());
  }

  bool Until(const std::function<bool()>& done) { return loop_.RunUntil(done, kPatience); }

  const LayoutView layout_;
  RowKeys keys_{2};
  net::Context context_;
  net::Loop loop_;
  LaneServer server_;
  const control::MapT map_;
};

TEST_F(DataClientRowsTest, RowsArePushedAndPulledOnShardsWithAndWithoutBlocks) {
  Worker worker(loop_, context_, layout_);
  ASSERT_TRUE(worker.client->SetMap(map_).ok());
  PushRows(worker);
  PushRows(worker);
  ASSERT_TRUE(Until([&] { return worker.client->all_acked(); }));
  worker.client->StartPull(Asked());
  ASSERT_TRUE(Until([&] { return worker.pulled.has_value(); }));
  ASSERT_EQ(worker.pulled->shards.size(), kShards);
  ExpectRows(*worker.pulled, 2);
  // Nothing has changed since: the blocks stay away, the rows come.
  DataClient::Pull again = Asked();
  again.bases.resize(kShards);
  for (const PulledShard& shard : worker.pulled->shards) {
    again.bases[shard.shard.value()] = {shard.version, shard.lineage};
  }
  worker.pulled.reset();
  const std::uint64_t before = worker.client->counters().pull_bytes;
  worker.client->StartPull(again);
  ASSERT_TRUE(Until([&] { return worker.pulled.has_value(); }));
  for (const PulledShard& shard : worker.pulled->shards) {
    EXPECT_EQ(shard.content, wire::PullContent::Unchanged);
  }
  ExpectRows(*worker.pulled, 2);
  EXPECT_GE(worker.client->counters().pull_bytes - before,
            keys_[0].size() * 2 * sizeof(float) + keys_[1].size() * 3 * sizeof(float));
  EXPECT_EQ(worker.client->counters().bad_messages, 0u);
}

TEST_F(DataClientRowsTest, RowsThatNobodyPushedHaveTheirFirstValues) {
  Worker worker(loop_, context_, layout_);
  ASSERT_TRUE(worker.client->SetMap(map_).ok());
  worker.client->StartPull(Asked());
  ASSERT_TRUE(Until([&] { return worker.pulled.has_value(); }));
  ExpectRows(*worker.pulled, 0);
}

TEST_F(DataClientRowsTest, AnAnswerInPartsIsAskedForUntilAllIsThere) {
  Worker worker(loop_, context_, layout_);
  ASSERT_TRUE(worker.client->SetMap(map_).ok());
  PushRows(worker);
  ASSERT_TRUE(Until([&] { return worker.client->all_acked(); }));
  int answers = 0;
  server_.change_reply = [&](server::LaneReply& reply) {
    wire::Head head;
    if (!wire::ParseFirst(std::span<const std::byte>(reply.head), head).ok() ||
        head.header.kind() != static_cast<std::uint8_t>(wire::Kind::PullReply)) {
      return;
    }
    ++answers;
    head.segments.resize(1);
    head.header.mutate_payload_bytes(head.segments[0].offset() + head.segments[0].length());
    reply.payload.bytes().resize(head.header.payload_bytes());
    reply.head = wire::BuildHead(head.header, head.segments);
  };
  worker.client->StartPull(Asked());
  ASSERT_TRUE(Until([&] { return worker.pulled.has_value(); }));
  EXPECT_EQ(answers, static_cast<int>(layout_.shard_count()));
  EXPECT_EQ(worker.pulled->shards.size(), layout_.shard_count());
  EXPECT_EQ(worker.client->counters().bad_messages, 0u);
}

TEST_F(DataClientRowsTest, AnAnswerWithOtherRowsThanAskedForIsDroppedAndAskedForAgain) {
  Worker worker(loop_, context_, layout_);
  ASSERT_TRUE(worker.client->SetMap(map_).ok());
  PushRows(worker);
  ASSERT_TRUE(Until([&] { return worker.client->all_acked(); }));
  int damaged = 0;
  server_.change_reply = [&](server::LaneReply& reply) {
    wire::Head head;
    if (!wire::ParseFirst(std::span<const std::byte>(reply.head), head).ok() ||
        head.header.kind() != static_cast<std::uint8_t>(wire::Kind::PullReply) || damaged == 4) {
      return;
    }
    // The last segment with rows of both tables, whose last part goes, or is said to be another.
    for (std::size_t i = head.segments.size(); i-- > 0;) {
      wire::Segment& segment = head.segments[i];
      const std::span<std::byte> payload(reply.payload.data() + segment.offset(), segment.length());
      const auto parts = codec::SplitSegment(payload).value();
      std::vector<codec::RowsView> rows;
      ASSERT_TRUE(codec::ParseRows(
                      parts.rows, codec::RowContent::kValues,
                      [&](std::uint32_t table) { return layout_.row_width(table); }, rows)
                      .ok());
      if (rows.size() != 2) continue;
      const std::size_t last = sizeof(wire::BlockHeader) + rows[1].value_bytes.size();
      const std::size_t at = payload.size() - last;
      const std::size_t first = at - rows[0].value_bytes.size() - sizeof(wire::BlockHeader);
      const auto set = [&](std::size_t header, std::size_t field, std::uint32_t value) {
        std::memcpy(payload.data() + header + 4 * field, &value, sizeof(value));
      };
      switch (damaged++) {
        case 0:  // no rows of table 1
          segment.mutate_length(segment.length() - static_cast<std::uint32_t>(last));
          break;
        case 1:  // a row less, and so too many bytes for those that are there
          set(at, 1, rows[1].count - 1);
          break;
        case 2:  // a table that the job does not have
          set(at, 0, codec::kFirstRowTable + 2);
          break;
        default: {  // whole rows, but one less of table 0
          const auto bytes = static_cast<std::uint32_t>(rows[0].value_bytes.size());
          const std::uint32_t row = bytes / rows[0].count;
          set(first, 1, rows[0].count - 1);
          set(first, 2, bytes - row);
          std::memmove(payload.data() + at - row, payload.data() + at, last);
          segment.mutate_length(segment.length() - row);
        }
      }
      reply.head = wire::BuildHead(head.header, head.segments);
      return;
    }
  };
  worker.client->StartPull(Asked());
  ASSERT_TRUE(Until([&] { return worker.pulled.has_value(); }));
  EXPECT_EQ(damaged, 4);
  EXPECT_EQ(worker.client->counters().bad_messages, 4u);
  ExpectRows(*worker.pulled, 1);
}

}  // namespace
}  // namespace ps::worker
