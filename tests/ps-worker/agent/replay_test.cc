// Replays of what dead tasks left, against a lane that the test plays.
#include <map>
#include <set>

#include "common/messages/wire.h"
#include "tests/ps-worker/agent/agent_fixture.h"

namespace ps::worker {
namespace {

using control::Body;
using control::Make;

// A server's lane with both shards of the job: rules S1 and S3 as far as a replay needs them.
class FakeLane {
 public:
  FakeLane(net::Loop& loop, net::Context& context) {
    socket_ = net::ZmqSocket::Open(loop, context, net::ZmqKind::kRouter).value();
    socket_->OnReceive([this](net::ZmqSocket::Frames&& frames) { OnReceive(std::move(frames)); });
    endpoint_ = *socket_->Bind("tcp://127.0.0.1:0");
  }

  std::uint64_t watermark[2] = {100, 100};
  std::uint64_t pushes = 0;
  std::uint64_t map_version = 1;
  std::uint32_t epoch = 1;
  bool silent = false;
  std::string endpoint_;

 private:
  void OnReceive(net::ZmqSocket::Frames&& frames) {
    ASSERT_GE(frames.size(), 2u);
    // Pushes may travel together.
    std::span<const std::byte> rest(static_cast<const std::byte*>(frames[1].data()),
                                    frames[1].size());
    const std::string peer(static_cast<const char*>(frames[0].data()), frames[0].size());
    while (!rest.empty()) {
      wire::Head head;
      const auto bytes = wire::ParseFirst(rest, head);
      ASSERT_TRUE(bytes.ok());
      rest = rest.subspan(*bytes);
      if (!silent) Answer(peer, head);
    }
  }

  void Answer(const std::string& peer, const wire::Head& head) {
    wire::LaneHeader header = head.header;
    header.mutate_map_version(map_version);
    header.mutate_payload_bytes(0);
    header.mutate_samples(0);
    std::vector<wire::Segment> segments;
    if (header.kind() == static_cast<std::uint8_t>(wire::Kind::Hello)) {
      header.mutate_kind(static_cast<std::uint8_t>(wire::Kind::HelloReply));
      for (std::uint32_t shard = 0; shard < 2; ++shard) {
        segments.emplace_back(shard, epoch, watermark[shard], 0, 0, 0, 0, 0, 0);
      }
    } else if (header.kind() == static_cast<std::uint8_t>(wire::Kind::Push)) {
      header.mutate_kind(static_cast<std::uint8_t>(wire::Kind::PushReply));
      std::set<std::uint32_t> taking_part;
      if ((header.flags() & wire::kCoversLane) != 0) taking_part = {0, 1};
      for (const wire::Segment& segment : head.segments) taking_part.insert(segment.shard());
      for (const std::uint32_t shard : taking_part) {
        ASSERT_LT(shard, 2u);
        if (header.clock() == watermark[shard] + 1) {
          ++watermark[shard];
          ++pushes;
        } else if (header.clock() > watermark[shard]) {
          segments.emplace_back(shard, epoch, watermark[shard], 0,
                                static_cast<std::uint8_t>(wire::Code::Gap), 0, 0, 0, 0);
        }
      }
    } else {
      return;
    }
    net::ZmqSocket::Frames reply;
    reply.emplace_back(peer.data(), peer.size());
    reply.push_back(net::TakeFrame(wire::BuildHead(header, segments)));
    (void)socket_->Send(std::move(reply)).ok();
  }

  std::unique_ptr<net::ZmqSocket> socket_;
};

class ReplayTest : public AgentTest {
 protected:
  void SetUp() override {
    AgentTest::SetUp();
    lane_ = std::make_unique<FakeLane>(loop_, context_);
    StartAgent();
    coordinator_->Await(Body::RegisterAgent);
    RunAndKillTask();
  }

  std::unique_ptr<control::MapT> Map(std::uint64_t version, std::uint32_t epoch,
                                     const FakeLane& lane) const {
    auto map = std::make_unique<control::MapT>();
    map->version = version;
    auto server = std::make_unique<control::ServerEntryT>();
    server->name = "server";
    server->lanes = {lane.endpoint_};
    map->servers.push_back(std::move(server));
    for (int i = 0; i < 2; ++i) {
      auto shard = std::make_unique<control::ShardEntryT>();
      shard->epoch = epoch;
      map->shards.push_back(std::move(shard));
    }
    return map;
  }
  void SendReplay(std::uint32_t incarnation = 7) {
    control::ReplayT replay;
    replay.job = 3;
    replay.incarnation = incarnation;
    replay.start = std::make_unique<control::JobStartT>();
    replay.start->job = 3;
    replay.start->map = Map(1, 1, *lane_);
    coordinator_->Send(Make(std::move(replay)));
  }

  std::unique_ptr<FakeLane> lane_;
};

TEST_F(ReplayTest, EveryRetainedPushReachesEveryShardOnce) {
  SendReplay();
  const control::MessageT message = coordinator_->Await(Body::ReplayDone);
  const auto& done = *message.body.AsReplayDone();
  EXPECT_EQ(done.job, 3u);
  EXPECT_EQ(done.worker, 0u);
  EXPECT_EQ(done.incarnation, 7u);
  EXPECT_EQ(done.last_clock, 103u);
  EXPECT_EQ(done.map_version, 1u);
  EXPECT_EQ(lane_->watermark[0], 103u);
  EXPECT_EQ(lane_->watermark[1], 103u);
  EXPECT_EQ(lane_->pushes, 6u);
  EXPECT_EQ(agent_->ghosts(), 1u);
  EXPECT_TRUE(std::filesystem::exists(RingPath()));
}

TEST_F(ReplayTest, WhatTheShardsHaveIsNotSentAgain) {
  lane_->watermark[0] = lane_->watermark[1] = 103;
  SendReplay();
  coordinator_->Await(Body::ReplayDone);
  EXPECT_EQ(lane_->pushes, 0u);
}

TEST_F(ReplayTest, AShardThatMovesIsReplayedAgain) {
  SendReplay();
  coordinator_->Await(Body::ReplayDone);
  FakeLane other(loop_, context_);
  other.map_version = 2;
  other.epoch = 2;
  control::JobUpdateT update;
  update.job = 3;
  update.map = Map(2, 2, other);
  coordinator_->Send(Make(std::move(update)));
  const control::MessageT message = coordinator_->Await(Body::ReplayDone);
  EXPECT_EQ(message.body.AsReplayDone()->map_version, 2u);
  EXPECT_EQ(other.pushes, 6u);
}

TEST_F(ReplayTest, TheSameReplayAgainIsReportedAgain) {
  SendReplay();
  coordinator_->Await(Body::ReplayDone);
  SendReplay();
  EXPECT_EQ(coordinator_->Await(Body::ReplayDone).body.AsReplayDone()->map_version, 1u);
  EXPECT_EQ(lane_->pushes, 6u);
  EXPECT_EQ(agent_->ghosts(), 1u);
}

TEST_F(ReplayTest, AnAgentThatComesBackReplaysTheRingItFound) {
  agent_.reset();
  options_.procid = "procid-2";
  StartAgent();
  coordinator_->Await(Body::RegisterAgent);
  SendReplay();
  EXPECT_EQ(coordinator_->Await(Body::ReplayDone).body.AsReplayDone()->last_clock, 103u);
  EXPECT_EQ(lane_->pushes, 6u);
}

TEST_F(ReplayTest, ADroppedRingEndsItsReplay) {
  lane_->silent = true;
  SendReplay();
  ASSERT_TRUE(Until([&] { return agent_->ghosts() == 1; }));
  control::DropRingT drop;
  drop.job = 3;
  drop.incarnation = 7;
  coordinator_->Send(Make(std::move(drop)));
  EXPECT_TRUE(Until([&] { return agent_->ghosts() == 0; }));
  EXPECT_FALSE(std::filesystem::exists(RingPath()));
}

TEST_F(ReplayTest, AReplayWithoutARingOrAMapDoesNothing) {
  SendReplay(99);
  control::ReplayT replay;
  replay.job = 3;
  replay.incarnation = 7;
  coordinator_->Send(Make(std::move(replay)));
  SendReplay(7);
  coordinator_->Await(Body::ReplayDone);
  EXPECT_EQ(agent_->ghosts(), 1u);
}

TEST_F(ReplayTest, ShardsThatLackReleasedPushesAreReportedAsFarAsTheyGot) {
  // The lane has lost what came before the ring's first push.
  lane_->watermark[0] = 50;
  lane_->watermark[1] = 100;
  SendReplay();
  const control::MessageT message = coordinator_->Await(Body::ReplayDone);
  EXPECT_LE(message.body.AsReplayDone()->last_clock, 100u);
}

}  // namespace
}  // namespace ps::worker
