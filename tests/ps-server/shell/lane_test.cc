#include "ps-server/shell/lane.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <thread>

#include "common/net/loop.h"
#include "common/net/zmq_socket.h"
#include "tests/ps-server/shell/lane_client.h"

namespace ps::server::testing {
namespace {

class LaneTest : public ::testing::Test {
 protected:
  static constexpr std::uint32_t kElements = 60'000;
  static constexpr std::uint32_t kShards = 4;

  LaneTest() {
    LaneOptions options;
    options.status_interval_ms = 5;
    auto started = Lane::Start(context_, options, [this](LaneEvent event) {
      const std::lock_guard lock(mutex_);
      events_.push_back(std::move(event));
    });
    PS_CHECK(started.ok());
    lane_ = std::move(started).value();
  }

  void SetJob(std::uint32_t workers = 1) {
    LaneMap map;
    map.version = 1;
    LiveMembers live;
    live.version = 1;
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      map.shards.push_back(OwnShard{ShardId(shard), Epoch(1), 1, Round()});
    }
    for (std::uint32_t worker = 0; worker < workers; ++worker) {
      live.members.push_back(MakeMember(worker, 11 + worker));
    }
    const JobSetup setup{JobId(1), layout_, ConstantRules(1.0), map, live};
    ASSERT_TRUE(lane_->Post([setup](LaneCore& core) { core.SetJob(setup); }).ok());
  }
  void Init(LaneClient& client) {
    TestMessage init(wire::Kind::Init, 0, 11);
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      init.Segment(shard, 1, ConstantShard(layout_, ShardId(shard), 0.5f));
    }
    const auto reply = client.Ask(init);
    ASSERT_TRUE(reply.has_value());
    ASSERT_EQ(reply->kind(), wire::Kind::InitReply);
  }
  TestMessage PullMessage() const {
    TestMessage pull(wire::Kind::Pull, 0, 11);
    pull.Flags(wire::kPullFp32 | wire::kPullSnapshot);
    for (std::uint32_t shard = 0; shard < kShards; ++shard) pull.Segment(shard, 1);
    return pull;
  }
  template <typename Done>
  bool Eventually(Done done) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    while (!done(lane_->status())) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::yield();
    }
    return true;
  }

  const LayoutView layout_ =
      MakeLayout({{TableRule::Sgd, std::vector<std::uint32_t>(kShards, kElements)}}, kShards);
  net::Context context_;
  std::mutex mutex_;
  std::vector<LaneEvent> events_;
  std::unique_ptr<Lane> lane_;
};

TEST_F(LaneTest, ThePulledStateEqualsTheValues) {
  SetJob();
  LaneClient client(context_, lane_->endpoint());
  Init(client);
  for (std::uint64_t clock = 1; clock <= 5; ++clock) {
    TestMessage push(wire::Kind::Push, 0, 11);
    push.Clock(clock)
        .Flags(wire::kCoversLane)
        .Segment(2, 1,
                 SparseBlock(2, kElements, {3, 30'000, 59'999}, {1, 2, static_cast<float>(clock)}));
    const auto reply = client.Ask(push);
    ASSERT_TRUE(reply.has_value());
    EXPECT_EQ(reply->kind(), wire::Kind::PushReply);
    EXPECT_TRUE(reply->head.segments.empty());
  }
  const auto reply = client.Ask(PullMessage());
  ASSERT_TRUE(reply.has_value());
  ASSERT_EQ(reply->kind(), wire::Kind::PullReply);
  std::vector<std::vector<float>> pulled(kShards);
  for (std::uint32_t shard = 0; shard < kShards; ++shard) {
    ApplyPulled(layout_, reply->PayloadOf(shard), pulled);
  }
  std::promise<std::vector<std::vector<float>>> held;
  ASSERT_TRUE(lane_
                  ->Post([&](LaneCore& core) {
                    std::vector<std::vector<float>> values;
                    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
                      const auto own = core.FindShard(JobId(1), ShardId(shard))->values();
                      values.emplace_back(own.begin(), own.end());
                    }
                    held.set_value(std::move(values));
                  })
                  .ok());
  EXPECT_EQ(pulled, held.get_future().get());
  EXPECT_EQ(pulled[2][59'999], 0.5f - 15);
}

TEST_F(LaneTest, JunkIsCountedAndHarmsNobody) {
  SetJob();
  LaneClient client(context_, lane_->endpoint());
  Init(client);
  const Bytes junk(300, std::byte{0x41});
  client.SendFrames({junk});
  client.SendFrames({junk, junk});
  client.SendFrames({junk, junk, junk, junk, junk});
  client.SendFrames({Bytes()});
  Bytes cut = TestMessage(wire::Kind::Hello, 0, 11).Head();
  cut.resize(40);
  client.SendFrames({cut});
  // One that can be read and is wrong is answered.
  TestMessage wrong(wire::Kind::Push, 0, 11);
  wrong.Clock(1).Segment(99, 1);
  const auto nack = client.Ask(wrong);
  ASSERT_TRUE(nack.has_value());
  EXPECT_EQ(nack->kind(), wire::Kind::Nack);
  EXPECT_EQ(nack->code(), wire::Code::Malformed);
  const auto hello = client.Ask(TestMessage(wire::Kind::Hello, 0, 11));
  ASSERT_TRUE(hello.has_value());
  EXPECT_EQ(hello->head.segments.size(), kShards);
  EXPECT_TRUE(Eventually([](const LaneStatus& status) {
    return status.bad_framing == 1 &&
           status.counters.refused[static_cast<std::size_t>(wire::Code::Malformed)] == 5;
  }));
}

TEST_F(LaneTest, BytesThatAreNoZmtpHarmNobody) {
  SetJob();
  const std::string endpoint = lane_->endpoint();
  const auto port = static_cast<std::uint16_t>(std::stoi(endpoint.substr(endpoint.rfind(':') + 1)));
  for (int round = 0; round < 5; ++round) {
    const int raw = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(::connect(raw, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    const std::string bytes(4096, static_cast<char>(round * 63));
    (void)!::send(raw, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    ::close(raw);
  }
  LaneClient client(context_, endpoint);
  EXPECT_TRUE(client.Ask(TestMessage(wire::Kind::Hello, 0, 11)).has_value());
}

TEST_F(LaneTest, APeerThatDoesNotReadDoesNotStopTheOthers) {
  SetJob(2);
  LaneClient good(context_, lane_->endpoint());
  Init(good);
  LaneClient lazy(context_, lane_->endpoint(), 1);
  // Each answer has about a megabyte; none is read.
  for (int i = 0; i < 300; ++i) lazy.Send(PullMessage());
  for (std::uint64_t clock = 1; clock <= 20; ++clock) {
    TestMessage push(wire::Kind::Push, 1, 12);
    push.Clock(clock).Flags(wire::kCoversLane);
    ASSERT_TRUE(good.Ask(push).has_value()) << clock;
  }
  EXPECT_TRUE(Eventually([](const LaneStatus& status) { return status.slow_peer > 0; }));
}

TEST_F(LaneTest, AParkedPullOfAPeerThatLeftIsDropped) {
  SetJob(2);
  LaneClient stays(context_, lane_->endpoint());
  Init(stays);
  {
    LaneClient leaves(context_, lane_->endpoint());
    leaves.Send(PullMessage().Clock(1));
    ASSERT_TRUE(Eventually([](const LaneStatus& status) { return status.parked_pulls == 1; }));
  }
  for (const std::uint32_t incarnation : {11u, 12u}) {
    TestMessage push(wire::Kind::Push, incarnation - 11, incarnation);
    push.Clock(1).Flags(wire::kCoversLane);
    // Until libzmq has noticed that the peer is gone the answer is taken, and lost.
    ASSERT_TRUE(stays.Ask(push).has_value());
  }
  EXPECT_TRUE(Eventually([](const LaneStatus& status) { return status.parked_pulls == 0; }));
}

TEST_F(LaneTest, CommandsRunInOrderOnTheLanesThread) {
  std::vector<int> order;
  std::promise<std::thread::id> thread;
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(lane_->Post([&order, i](LaneCore&) { order.push_back(i); }).ok());
  }
  ASSERT_TRUE(lane_->Post([&](LaneCore&) { thread.set_value(std::this_thread::get_id()); }).ok());
  EXPECT_NE(thread.get_future().get(), std::this_thread::get_id());
  ASSERT_EQ(order.size(), 100u);
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
}

TEST_F(LaneTest, EventsReachTheCallback) {
  SetJob();
  LaneClient client(context_, lane_->endpoint());
  Init(client);
  ASSERT_TRUE(lane_->Post([](LaneCore& core) { core.BeginRound(JobId(1), Round(1), 1, 1); }).ok());
  const auto reply = client.Ask(TestMessage(wire::Kind::Marker, 0, 11).Request(1).Clock(0));
  ASSERT_TRUE(reply.has_value());
  EXPECT_EQ(reply->kind(), wire::Kind::MarkerReply);
  EXPECT_TRUE(Eventually([this](const LaneStatus&) {
    const std::lock_guard lock(mutex_);
    return events_.size() == 1 && std::holds_alternative<LaneFrozen>(events_[0]);
  }));
}

TEST_F(LaneTest, AnAddressInUseIsAConflict) {
  LaneOptions options;
  options.bind = lane_->endpoint();
  const auto second = Lane::Start(context_, options, [](LaneEvent) {});
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, ErrorCode::kConflict);
  options.bind = "tcp://256.1.1.1:*";
  EXPECT_EQ(Lane::Start(context_, options, [](LaneEvent) {}).error().code, ErrorCode::kUsage);
}

// Two lanes over real sockets: what one answers, the other has.
TEST_F(LaneTest, APushIsAnsweredOnceTheLaneOfTheBackupHasIt) {
  auto second = std::move(Lane::Start(context_, LaneOptions(), [](LaneEvent) {})).value();
  LaneMap first_map;
  LaneMap second_map;
  first_map.version = second_map.version = 1;
  for (std::uint32_t shard = 0; shard < kShards; ++shard) {
    OwnShard own{ShardId(shard), Epoch(1), 1, Round()};
    own.next = ChainNext{second->endpoint(), 1, false};
    first_map.shards.push_back(own);
    OwnShard copy{ShardId(shard), Epoch(1), 1, Round()};
    copy.since = 1;
    second_map.copies.push_back(copy);
  }
  const LiveMembers live{1, {MakeMember(0, 11)}};
  const JobSetup first_setup{JobId(1), layout_, ConstantRules(1.0), first_map, live};
  const JobSetup second_setup{JobId(1), layout_, ConstantRules(1.0), second_map, live};
  ASSERT_TRUE(lane_->Post([&](LaneCore& core) { core.SetJob(first_setup); }).ok());
  ASSERT_TRUE(second->Post([&](LaneCore& core) { core.SetJob(second_setup); }).ok());
  LaneClient client(context_, lane_->endpoint());
  Init(client);
  const auto synced = [&] {
    const LaneStatus status = lane_->status();
    return !status.jobs.empty() && status.jobs[0].feeds.size() == kShards &&
           std::all_of(status.jobs[0].feeds.begin(), status.jobs[0].feeds.end(),
                       [](const FeedStatus& feed) { return feed.synced; });
  };
  for (int turn = 0; turn < 1000 && !synced(); ++turn) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  ASSERT_TRUE(synced());
  for (std::uint64_t clock = 1; clock <= 50; ++clock) {
    TestMessage push(wire::Kind::Push, 0, 11);
    push.Clock(clock).Request(clock).Flags(wire::kCoversLane);
    push.Segment(1, 1, DenseBlock(1, std::vector<float>(kElements, -1)), 1'000'000);
    const auto reply = client.Ask(push);
    ASSERT_TRUE(reply.has_value());
    ASSERT_EQ(reply->kind(), wire::Kind::PushReply);
    std::promise<std::uint64_t> changes;
    ASSERT_TRUE(second
                    ->Post([&](LaneCore& core) {
                      changes.set_value(core.FindCopy(JobId(1), ShardId(1))->changes());
                    })
                    .ok());
    EXPECT_EQ(changes.get_future().get(), clock);
  }
}

}  // namespace
}  // namespace ps::server::testing
