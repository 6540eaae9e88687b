// Exactly-once between real DataClients and real lane threads, with a hostile proxy in between.
#include "tests/ps-worker/task/hostile_proxy.h"

#include <gtest/gtest.h>

#include <cstring>
#include <future>

#include "common/net/loop.h"
#include "ps-server/shell/lane.h"
#include "ps-worker/task/data_client.h"
#include "tests/ps-server/core/server_testing.h"

namespace ps::worker {
namespace {

using net::Milliseconds;

constexpr std::uint32_t kLanes = 2;
constexpr std::uint32_t kShards = 5;
constexpr std::uint32_t kElements = 64;
constexpr std::uint32_t kWorkers = 2;
constexpr int kSteps = 14;
constexpr auto kPatience = Milliseconds(60'000);
const JobId kJob(1);

struct alignas(64) Line {
  std::byte bytes[64];
};

// Its push of clock c takes 1 from the element (c % kElements) of each shard.
struct Worker {
  Worker(net::Loop& loop, net::Context& context, const LayoutView& layout, std::uint32_t number)
      : memory((std::size_t{1} << 20) / sizeof(Line)) {
    const RingIdentity identity{kJob, WorkerId(number), Incarnation(number + 1),
                                0,    kShards,          Clock(0)};
    ring = std::make_unique<RetentionRing>(
        RetentionRing::Create(
            {reinterpret_cast<std::byte*>(memory.data()), memory.size() * sizeof(Line)}, identity)
            .value());
    DataClientOptions options;
    options.resend_timeout_ms = 100;
    options.pull_timeout_ms = 200;
    DataClient::Callbacks callbacks;
    callbacks.initial_values = [](ShardId, std::span<float> values) {
      std::fill(values.begin(), values.end(), 1000.0F);
      return true;
    };
    callbacks.pulled = [this](PullResult result) { pulled = std::move(result); };
    callbacks.broken = [this](const Error& error) { broken = error.message; };
    client = std::make_unique<DataClient>(loop, context, *ring, &layout, options, callbacks);
  }

  void Push() {
    const std::uint64_t clock = ring->last_clock().value() + 1;
    server::testing::Bytes payload;
    std::vector<RingPart> parts;
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      const auto bytes = server::testing::SparseBlock(
          shard, kElements, {static_cast<std::uint16_t>(clock % kElements)}, {1.0F});
      RingPart part;
      part.shard = shard;
      part.offset = static_cast<std::uint32_t>(payload.size());
      part.bytes = static_cast<std::uint32_t>(bytes.size());
      payload.insert(payload.end(), bytes.begin(), bytes.end());
      parts.push_back(part);
    }
    RetentionRing::Reservation place;
    ASSERT_EQ(ring->Reserve(payload.size(), parts.size(), place),
              RetentionRing::ReserveStatus::kReserved);
    std::memcpy(place.payload.data(), payload.data(), payload.size());
    RingEntryInfo info;
    info.clock = Clock(clock);
    info.samples = 1;
    ring->Commit(info, payload.size(), parts);
    client->Committed();
  }

  std::vector<Line> memory;
  std::unique_ptr<RetentionRing> ring;
  std::unique_ptr<DataClient> client;
  std::optional<PullResult> pulled;
  std::string broken;
};

class HostileProxyTest : public ::testing::Test {
 protected:
  HostileProxyTest()
      : layout_(server::testing::MakeLayout(
            {{TableRule::Sgd, std::vector<std::uint32_t>(kShards, kElements)}}, kShards)) {}

  // Two workers push through one proxy for each lane; in the end every element is exact.
  template <typename Proxy>
  void Run(std::uint64_t seed, const typename Proxy::Faults& faults) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::vector<std::unique_ptr<server::Lane>> lanes;
    std::vector<std::unique_ptr<Proxy>> proxies;
    control::MapT map;
    map.version = 1;
    map.servers.push_back(std::make_unique<control::ServerEntryT>());
    map.servers[0]->procid = "a";
    for (std::uint32_t i = 0; i < kLanes; ++i) {
      server::LaneOptions options;
      options.number = i;
      lanes.push_back(server::Lane::Start(context_, options, [](server::LaneEvent) {}).value());
      proxies.push_back(std::make_unique<Proxy>(lanes[i]->endpoint(), seed * kLanes + i, faults));
      map.servers[0]->lanes.push_back(proxies[i]->endpoint());
    }
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      map.shards.push_back(std::make_unique<control::ShardEntryT>());
      map.shards[shard]->lane = static_cast<std::uint16_t>(shard % kLanes);
      map.shards[shard]->epoch = 1;
      map.shards[shard]->lineage = 1;
    }
    server::LiveMembers live;
    live.version = 1;
    for (std::uint32_t i = 0; i < kWorkers; ++i) {
      live.members.push_back(server::testing::MakeMember(i, i + 1));
    }
    auto rules = server::testing::ConstantRules(1.0);
    rules.version_gap_max = 1'000'000;
    for (std::uint32_t i = 0; i < kLanes; ++i) {
      const server::JobSetup setup{kJob, layout_, rules,
                                   server::LaneMapOf(map, "a", i, kShards).value(), live};
      ASSERT_TRUE(lanes[i]->Post([setup](server::LaneCore& core) { core.SetJob(setup); }).ok());
    }

    std::vector<std::unique_ptr<Worker>> workers;
    for (std::uint32_t i = 0; i < kWorkers; ++i) {
      workers.push_back(std::make_unique<Worker>(loop_, context_, layout_, i));
      ASSERT_TRUE(workers[i]->client->SetMap(map).ok());
    }
    int calm_at = kSteps * 3 / 4;
    for (int step = 0; step < kSteps; ++step) {
      // The last quarter is quiet, so that a schedule of many faults ends in time.
      if (step == calm_at) {
        for (const auto& proxy : proxies) proxy->Calm();
      }
      for (const auto& worker : workers) {
        ASSERT_TRUE(loop_.RunUntil(
            [&] { return worker->client->has_room() || !worker->broken.empty(); }, kPatience));
        ASSERT_EQ(worker->broken, "");
        worker->Push();
      }
    }
    for (const auto& worker : workers) {
      ASSERT_TRUE(loop_.RunUntil(
          [&] { return worker->client->all_acked() || !worker->broken.empty(); }, kPatience));
      ASSERT_EQ(worker->broken, "");
      hellos_ += worker->client->stream().counters().hellos;
    }
    DataClient::Pull pull;
    pull.needed = Clock(kSteps);
    pull.fp32 = true;
    workers[0]->client->StartPull(pull);
    ASSERT_TRUE(loop_.RunUntil([&] { return workers[0]->pulled.has_value(); }, kPatience));
    ASSERT_EQ(workers[0]->pulled->shards.size(), kShards);
    for (const PulledShard& shard : workers[0]->pulled->shards) {
      ASSERT_EQ(shard.version, kWorkers * kSteps);
      std::vector<float> values;
      codec::DecodeValues(shard.blocks.at(0), values);
      for (std::uint32_t i = 0; i < kElements; ++i) {
        const float pushed = i >= 1 && i <= kSteps ? kWorkers : 0;
        ASSERT_EQ(values[i], 1000.0F - pushed) << "shard " << shard.shard << " element " << i;
      }
    }
    for (const auto& proxy : proxies) faults_seen_ += FaultsOf(*proxy);
  }

  static std::uint64_t FaultsOf(const testing::TcpProxy& proxy) { return proxy.cuts(); }
  static std::uint64_t FaultsOf(const testing::MessageProxy& proxy) {
    return proxy.lost() + proxy.repeated();
  }

  const LayoutView layout_;
  net::Context context_;
  net::Loop loop_;
  std::uint64_t hellos_ = 0;
  std::uint64_t faults_seen_ = 0;
};

TEST_F(HostileProxyTest, ConnectionsThatAreSlowAndCutAtAnyByteLoseAndDoubleNothing) {
  std::mt19937_64 random(5);
  for (std::uint64_t seed = 1; seed <= 25 && !HasFatalFailure(); ++seed) {
    testing::TcpProxy::Faults faults;
    faults.piece_bytes_max = static_cast<int>(40 + random() % 4000);
    faults.delay_ms_max = static_cast<int>(random() % 4);
    faults.hold_ms_max = static_cast<int>(random() % 3 == 0 ? 0 : 200);
    faults.cut_after_bytes = static_cast<int>(1500 + random() % 8000);
    Run<testing::TcpProxy>(seed, faults);
  }
  EXPECT_GT(faults_seen_, 30u);
}

TEST_F(HostileProxyTest, MessagesLostRepeatedAndReorderedLoseAndDoubleNothing) {
  std::mt19937_64 random(6);
  for (std::uint64_t seed = 1; seed <= 25 && !HasFatalFailure(); ++seed) {
    testing::MessageProxy::Faults faults;
    faults.lost_percent = static_cast<int>(random() % 8);
    faults.repeated_percent = static_cast<int>(random() % 12);
    faults.delay_ms_max = static_cast<int>(random() % 25);
    Run<testing::MessageProxy>(seed, faults);
  }
  EXPECT_GT(faults_seen_, 100u);
  EXPECT_GT(hellos_, 60u);
}

}  // namespace
}  // namespace ps::worker
