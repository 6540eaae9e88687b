// A lane with one job: two live workers (incarnations 11 and 12), four shards of one block each.
#pragma once

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "tests/ps-server/core/server_testing.h"

namespace ps::server::testing {

class LaneCoreFixture : public ::testing::Test {
 protected:
  static constexpr std::uint32_t kElements = 500;
  static constexpr std::uint32_t kEpoch = 5;
  static constexpr std::uint32_t kLineage = 1;

  LaneCoreFixture() {
    JobSetup setup{JobId(1), layout_, ConstantRules(1.0), MapOf(1, {0, 1, 2, 3}),
                   LiveOf(1, {MakeMember(0, 11), MakeMember(1, 12)})};
    lane_.SetJob(std::move(setup));
  }

  static LaneMap MapOf(std::uint64_t version, const std::vector<std::uint32_t>& shards,
                       std::uint32_t epoch = kEpoch, std::uint64_t restore_round = 0) {
    LaneMap map;
    map.version = version;
    for (const std::uint32_t shard : shards) {
      map.shards.push_back(OwnShard{ShardId(shard), Epoch(epoch), kLineage, Round(restore_round)});
    }
    return map;
  }
  static LiveMembers LiveOf(std::uint64_t version, std::vector<Member> members) {
    return LiveMembers{version, std::move(members)};
  }

  void InitAll() {
    TestMessage message(wire::Kind::Init, 0, 11);
    for (std::uint32_t shard = 0; shard < 4; ++shard) {
      message.Segment(shard, kEpoch, ConstantShard(layout_, ShardId(shard), 0));
    }
    const TestReply reply = SendOne(lane_, message);
    ASSERT_EQ(reply.kind(), wire::Kind::InitReply);
    for (std::uint32_t shard = 0; shard < 4; ++shard) {
      ASSERT_EQ(reply.CodeOf(shard), wire::Code::Applied);
    }
  }

  static std::uint32_t WorkerOf(std::uint32_t incarnation) { return incarnation - 11; }

  // A push that covers the lane, with one entry for each of the shards listed.
  static TestMessage PushMessage(std::uint32_t incarnation, std::uint64_t clock,
                                 const std::vector<std::uint32_t>& shards, float value = -1) {
    TestMessage message(wire::Kind::Push, WorkerOf(incarnation), incarnation);
    message.Clock(clock).Flags(wire::kCoversLane);
    for (const std::uint32_t shard : shards) {
      message.Segment(shard, kEpoch, SparseBlock(shard, kElements, {7}, {value}), 1'000'000);
    }
    return message;
  }
  static TestMessage PullMessage(std::uint32_t incarnation, std::uint64_t needed,
                                 const std::vector<std::uint32_t>& shards = {0, 1, 2, 3}) {
    TestMessage message(wire::Kind::Pull, WorkerOf(incarnation), incarnation);
    message.Clock(needed);
    for (const std::uint32_t shard : shards) message.Segment(shard, kEpoch);
    return message;
  }
  static TestMessage MarkerMessage(std::uint32_t incarnation, std::uint64_t round,
                                   std::uint64_t clock) {
    TestMessage message(wire::Kind::Marker, WorkerOf(incarnation), incarnation);
    message.Request(round).Clock(clock);
    return message;
  }

  float ValueOf(std::uint32_t shard, std::size_t position = 7) const {
    return lane_.FindShard(JobId(1), ShardId(shard))->values()[position];
  }
  std::uint64_t Refused(wire::Code code) const {
    return lane_.counters().refused[static_cast<std::size_t>(code)];
  }

  const LayoutView layout_ =
      MakeLayout({{TableRule::Sgd, {kElements, kElements, kElements, kElements}}}, 4);
  LaneCore lane_;
};

}  // namespace ps::server::testing
