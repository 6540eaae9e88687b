// Rules one by one first; at the end whole histories from a seed, against lanes that follow the
// rules S1-S6: loss, repetition, broken connections, lost servers, restores, rounds, ghosts.
#include "ps-worker/core/push_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <set>

namespace ps::worker {
namespace {

// ---- single rules

StreamOptions Options(std::uint32_t shards, std::uint32_t window = 4) {
  StreamOptions options;
  options.shards = shards;
  options.window = window;
  return options;
}

StreamMap MapOf(std::uint64_t version, const std::vector<std::uint32_t>& lanes,
                std::uint32_t epoch = 1) {
  StreamMap map;
  map.version = version;
  for (const std::uint32_t lane : lanes) map.shards.push_back({lane, Epoch(epoch), epoch});
  return map;
}

template <typename T>
std::vector<T> All(const StreamActions& actions) {
  std::vector<T> found;
  for (const StreamAction& action : actions) {
    if (const T* one = std::get_if<T>(&action)) found.push_back(*one);
  }
  return found;
}

class PushStreamTest : public testing::Test {
 protected:
  void Start(const StreamOptions& options, const StreamMap& map) {
    stream.emplace(options);
    now = 1000;
    StreamActions actions;
    stream->Tick(now, actions);
    stream->SetMap(map, actions);
    hellos = All<SendHello>(actions);
  }
  StreamActions Answer(const SendHello& hello, std::vector<StreamVerdict> shards,
                       std::uint64_t map_version = 1) {
    StreamActions actions;
    stream->HelloReply(hello.lane, hello.request, map_version, shards, actions);
    return actions;
  }
  StreamVerdict Has(std::uint32_t shard, std::uint64_t watermark, std::uint32_t epoch = 1) {
    return {ShardId(shard), Epoch(epoch), wire::Code::Applied, Clock(watermark)};
  }
  StreamActions Commit(std::uint64_t clock) {
    StreamActions actions;
    stream->Committed(Clock(clock), actions);
    return actions;
  }
  StreamActions Reply(const SendPush& push, std::vector<StreamVerdict> verdicts = {}) {
    StreamActions actions;
    stream->PushReply(push.lane, push.request, verdicts, actions);
    return actions;
  }
  StreamActions After(std::int64_t ms) {
    StreamActions actions;
    now += ms;
    stream->Tick(now, actions);
    return actions;
  }

  std::optional<PushStream> stream;
  std::vector<SendHello> hellos;
  std::int64_t now = 0;
};

TEST_F(PushStreamTest, NothingIsPushedBeforeTheLaneHasSaidWhatItHas) {
  Start(Options(2), MapOf(1, {0, 0}));
  ASSERT_EQ(hellos.size(), 1u);
  EXPECT_TRUE(Commit(1).empty());
  const auto pushes = All<SendPush>(Answer(hellos[0], {Has(0, 0), Has(1, 0)}));
  ASSERT_EQ(pushes.size(), 1u);
  EXPECT_EQ(pushes[0].clock, Clock(1));
  EXPECT_EQ(pushes[0].shards.size(), 2u);
}

TEST_F(PushStreamTest, OnlyAWindowOfStepsIsUnderWay) {
  Start(Options(1), MapOf(1, {0}));
  Answer(hellos[0], {Has(0, 0)});
  std::vector<SendPush> pushes;
  for (std::uint64_t clock = 1; clock <= 6; ++clock) {
    for (const auto& push : All<SendPush>(Commit(clock))) pushes.push_back(push);
  }
  ASSERT_EQ(pushes.size(), 4u);
  EXPECT_FALSE(stream->HasRoom());
  EXPECT_TRUE(pushes[3].covers_lane);
  const auto more = All<SendPush>(Reply(pushes[0]));
  ASSERT_EQ(more.size(), 1u);
  EXPECT_EQ(more[0].clock, Clock(5));
  // The verdict on clock 2 is missing: what comes behind it does not move the window.
  EXPECT_TRUE(All<SendPush>(Reply(pushes[2])).empty());
  EXPECT_EQ(stream->AckedByAll(), Clock(1));
  EXPECT_EQ(All<SendPush>(Reply(pushes[1])).size(), 1u);
  EXPECT_EQ(stream->AckedByAll(), Clock(3));
}

TEST_F(PushStreamTest, WithPushesUnderWayAQuarterOfTheWindowGoesOutTogether) {
  Start(Options(1, 8), MapOf(1, {0}));
  Answer(hellos[0], {Has(0, 0)});
  const auto first = All<SendPush>(Commit(1));
  ASSERT_EQ(first.size(), 1u);  // nothing is under way
  EXPECT_TRUE(Commit(2).empty());
  const auto burst = All<SendPush>(Commit(3));
  ASSERT_EQ(burst.size(), 2u);
  EXPECT_TRUE(Commit(4).empty());
  EXPECT_TRUE(All<SendPush>(Reply(first[0])).empty());
  EXPECT_TRUE(All<SendPush>(Reply(burst[0])).empty());
  // With the last answer nobody is left to wait for.
  const auto last = All<SendPush>(Reply(burst[1]));
  ASSERT_EQ(last.size(), 1u);
  EXPECT_EQ(last[0].clock, Clock(4));
  Reply(last[0]);
  EXPECT_TRUE(stream->AllAcked());
}

TEST_F(PushStreamTest, ALaneIsOnlyCoveredWhenBothSidesHaveTheSameMap) {
  Start(Options(2), MapOf(5, {0, 0}));
  Answer(hellos[0], {Has(0, 0), Has(1, 0)}, 4);
  const auto first = All<SendPush>(Commit(1));
  ASSERT_EQ(first.size(), 1u);
  EXPECT_FALSE(first[0].covers_lane);
  // The lane is asked again whether it has heard of the map by now.
  const auto again = All<SendHello>(After(1000));
  ASSERT_EQ(again.size(), 1u);
  Reply(first[0]);
  Answer(again[0], {Has(0, 1), Has(1, 1)}, 5);
  const auto second = All<SendPush>(Commit(2));
  ASSERT_EQ(second.size(), 1u);
  EXPECT_TRUE(second[0].covers_lane);
}

TEST_F(PushStreamTest, AShardThatIsBehindCatchesUpClockByClock) {
  Start(Options(3), MapOf(1, {0, 0, 1}));
  for (const auto& hello : hellos) {
    if (hello.lane == 0) Answer(hello, {Has(0, 0), Has(1, 0)});
    if (hello.lane == 1) Answer(hello, {Has(2, 0)});
  }
  for (std::uint64_t clock = 1; clock <= 3; ++clock) {
    for (const auto& push : All<SendPush>(Commit(clock))) Reply(push);
  }
  ASSERT_TRUE(stream->AllAcked());
  // Lane 1 is lost; shard 2 comes back on lane 0 as of clock 1.
  StreamMap map = MapOf(2, {0, 0, 0});
  map.shards[2].epoch = Epoch(2);
  StreamActions actions;
  stream->SetMap(map, actions);
  EXPECT_FALSE(stream->AllAcked());
  const auto hello = All<SendHello>(actions);
  ASSERT_EQ(hello.size(), 1u);
  std::vector<SendPush> pushes =
      All<SendPush>(Answer(hello[0], {Has(0, 3), Has(1, 3), Has(2, 1, 2)}, 2));
  ASSERT_EQ(pushes.size(), 2u);
  for (const auto& push : pushes) {
    EXPECT_TRUE(push.replay);
    EXPECT_FALSE(push.covers_lane);
    EXPECT_EQ(push.shards, std::vector<ShardId>{ShardId(2)});
  }
  for (const auto& push : pushes) Reply(push);
  EXPECT_TRUE(stream->AllAcked());
  pushes = All<SendPush>(Commit(4));
  ASSERT_EQ(pushes.size(), 1u);
  EXPECT_TRUE(pushes[0].covers_lane);
  EXPECT_FALSE(pushes[0].replay);
}

TEST_F(PushStreamTest, AMissingVerdictIsAskedForAndThePushRepeated) {
  Start(Options(1), MapOf(1, {0}));
  Answer(hellos[0], {Has(0, 0)});
  const auto push = All<SendPush>(Commit(1));
  ASSERT_EQ(push.size(), 1u);
  EXPECT_TRUE(All<SendHello>(After(1900)).empty());
  const auto hello = All<SendHello>(After(200));
  ASSERT_EQ(hello.size(), 1u);
  // The shard has the push: it is sent again to hear the verdict once more.
  const auto again = All<SendPush>(Answer(hello[0], {Has(0, 1)}));
  ASSERT_EQ(again.size(), 1u);
  EXPECT_EQ(again[0].clock, Clock(1));
  EXPECT_TRUE(again[0].replay);
  // The first answer comes late and is no longer waited for.
  Reply(push[0]);
  EXPECT_FALSE(stream->AllAcked());
  Reply(again[0]);
  EXPECT_TRUE(stream->AllAcked());
}

TEST_F(PushStreamTest, RefusalsCauseAtMostOneHelloInItsInterval) {
  Start(Options(1), MapOf(1, {0}));
  Answer(hellos[0], {Has(0, 0)});
  After(1000);
  const auto push = All<SendPush>(Commit(1));
  const StreamVerdict gap{ShardId(0), Epoch(1), wire::Code::Gap, Clock(0)};
  int asked = 0;
  std::optional<SendHello> hello;
  StreamActions actions = Reply(push[0], {gap});
  for (int i = 0; i < 100; ++i) {
    for (const auto& one : All<SendHello>(actions)) {
      ++asked;
      hello = one;
    }
    actions.clear();
    if (hello) {
      const auto pushes = All<SendPush>(Answer(*hello, {Has(0, 0)}));
      hello.reset();
      for (const auto& one : pushes) actions = Reply(one, {gap});
    } else {
      actions = After(10);
    }
  }
  EXPECT_GE(asked, 3);
  EXPECT_LE(asked, 7);
}

TEST_F(PushStreamTest, ABlankShardGetsItsInitialValues) {
  Start(Options(2), MapOf(1, {0, 0}));
  auto blank = Has(1, 0);
  blank.code = wire::Code::Blank;
  StreamActions actions = Answer(hellos[0], {Has(0, 0), blank});
  const auto init = All<SendInit>(actions);
  ASSERT_EQ(init.size(), 1u);
  EXPECT_EQ(init[0].shard, ShardId(1));
  // The others go on meanwhile.
  ASSERT_EQ(All<SendPush>(Commit(1)).size(), 1u);
  actions.clear();
  stream->InitReply(0, init[0].request, actions);
  const auto hello = All<SendHello>(actions);
  ASSERT_EQ(hello.size(), 1u);
  const auto pushes = All<SendPush>(Answer(hello[0], {Has(0, 1), Has(1, 0)}));
  ASSERT_FALSE(pushes.empty());
}

TEST_F(PushStreamTest, ABlankShardOnAFarLaneIsLeftToANearerWorkerOnceAndThenInitialised) {
  StreamMap map = MapOf(1, {0, 1});
  map.far_lanes = {1};
  Start(Options(2), map);
  ASSERT_EQ(hellos.size(), 2u);
  const auto blank = [this](std::uint32_t shard, std::uint32_t epoch = 1) {
    auto segment = Has(shard, 0, epoch);
    segment.code = wire::Code::Blank;
    return segment;
  };
  EXPECT_EQ(All<SendInit>(Answer(hellos[0], {blank(0)})).size(), 1u) << "the near one at once";
  const StreamActions far = Answer(hellos[1], {blank(1)});
  EXPECT_TRUE(All<SendInit>(far).empty());
  EXPECT_TRUE(All<SendHello>(far).empty());
  EXPECT_TRUE(All<SendHello>(After(250)).empty());
  const auto again = All<SendHello>(After(60));
  ASSERT_EQ(again.size(), 1u);
  EXPECT_EQ(again[0].lane, 1u);
  // Nobody was nearer.
  const auto init = All<SendInit>(Answer(again[0], {blank(1)}));
  ASSERT_EQ(init.size(), 1u);
  EXPECT_EQ(init[0].shard, ShardId(1));

  // Where the shard has moved, others may be nearer.
  StreamActions actions;
  StreamMap moved = MapOf(2, {0, 1}, 2);
  moved.far_lanes = {1};
  stream->SetMap(moved, actions);
  for (const SendHello& hello : All<SendHello>(actions)) {
    if (hello.lane != 1) continue;
    EXPECT_TRUE(All<SendInit>(Answer(hello, {blank(1, 2)}, 2)).empty());
  }
  const auto third = All<SendHello>(After(310));
  const auto ready = std::find_if(third.begin(), third.end(),
                                  [](const SendHello& hello) { return hello.lane == 1; });
  ASSERT_NE(ready, third.end());
  EXPECT_TRUE(All<SendInit>(Answer(*ready, {Has(1, 0, 2)}, 2)).empty());
}

TEST_F(PushStreamTest, ATooOldVerdictIsHandedOverOnceAndSettlesTheClock) {
  Start(Options(2), MapOf(1, {0, 0}));
  Answer(hellos[0], {Has(0, 0), Has(1, 0)});
  const auto push = All<SendPush>(Commit(1));
  const StreamVerdict old{ShardId(1), Epoch(1), wire::Code::TooOld, Clock(0)};
  const auto refused = All<Refused>(Reply(push[0], {old}));
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].shard, ShardId(1));
  EXPECT_EQ(refused[0].clock, Clock(1));
  EXPECT_TRUE(All<Refused>(Reply(push[0], {old})).empty());
  EXPECT_TRUE(stream->AllAcked());
}

TEST_F(PushStreamTest, VerdictsOfAnEarlierEpochDoNotCount) {
  Start(Options(1), MapOf(1, {0}));
  Answer(hellos[0], {Has(0, 0)});
  const auto push = All<SendPush>(Commit(1));
  StreamActions actions;
  stream->SetMap(MapOf(2, {0}, 2), actions);
  Reply(push[0]);
  EXPECT_FALSE(stream->AllAcked());
}

TEST_F(PushStreamTest, TheMarkerFollowsTheVerdictsAndHoldsLaterPushesBack) {
  Start(Options(2), MapOf(1, {0, 1}));
  for (const auto& hello : hellos) Answer(hello, {Has(hello.lane, 0)});
  const auto first = All<SendPush>(Commit(1));
  ASSERT_EQ(first.size(), 2u);
  StreamActions actions;
  stream->BeginRound(9, actions);
  ASSERT_EQ(All<RoundCut>(actions).size(), 1u);
  EXPECT_EQ(All<RoundCut>(actions)[0].clock, Clock(1));
  EXPECT_TRUE(All<SendMarker>(actions).empty());
  EXPECT_TRUE(All<SendPush>(Commit(2)).empty());
  EXPECT_EQ(All<SendMarker>(Reply(first[0])).size(), 1u);
  EXPECT_EQ(All<SendMarker>(Reply(first[1])).size(), 1u);
  actions.clear();
  stream->MarkerReply(0, 9, wire::Code::Applied, actions);
  EXPECT_TRUE(actions.empty());
  stream->MarkerReply(1, 9, wire::Code::Applied, actions);
  ASSERT_EQ(All<RoundEnded>(actions).size(), 1u);
  EXPECT_TRUE(All<RoundEnded>(actions)[0].frozen);
  EXPECT_EQ(All<SendPush>(actions).size(), 2u);
}

TEST_F(PushStreamTest, AnAbortedRoundLetsPushesGoOnAndNeverComesBack) {
  Start(Options(1), MapOf(1, {0}));
  Answer(hellos[0], {Has(0, 0)});
  StreamActions actions;
  stream->BeginRound(9, actions);
  EXPECT_TRUE(All<SendPush>(Commit(1)).empty());
  actions.clear();
  stream->AbortRound(9, actions);
  EXPECT_EQ(All<SendPush>(actions).size(), 1u);
  actions.clear();
  stream->BeginRound(9, actions);
  EXPECT_TRUE(actions.empty());
  EXPECT_EQ(stream->open_round(), 0u);
}

TEST_F(PushStreamTest, ALaneThatKeepsRefusingTheMarkerEndsTheRound) {
  StreamOptions options = Options(1);
  options.marker_refusals_max = 3;
  Start(options, MapOf(1, {0}));
  Answer(hellos[0], {Has(0, 0)});
  StreamActions actions;
  stream->BeginRound(9, actions);
  ASSERT_EQ(All<SendMarker>(actions).size(), 1u);
  for (int i = 0; i < 2; ++i) {
    actions.clear();
    stream->Nack(0, 9, wire::Code::RoundAborted, actions);
    EXPECT_TRUE(actions.empty());
    EXPECT_EQ(All<SendMarker>(After(100)).size(), 1u);
  }
  stream->Nack(0, 9, wire::Code::RoundAborted, actions);
  ASSERT_EQ(All<RoundEnded>(actions).size(), 1u);
  EXPECT_FALSE(All<RoundEnded>(actions)[0].frozen);
}

TEST_F(PushStreamTest, AShardThatLacksReleasedClocksBreaksTheStream) {
  Start(Options(1), MapOf(1, {0}));
  Answer(hellos[0], {Has(0, 0)});
  for (std::uint64_t clock = 1; clock <= 3; ++clock) {
    for (const auto& push : All<SendPush>(Commit(clock))) Reply(push);
  }
  stream->Released(Clock(2));
  StreamActions actions;
  stream->SetMap(MapOf(2, {0}, 2), actions);
  const auto hello = All<SendHello>(actions);
  ASSERT_EQ(hello.size(), 1u);
  const auto broken = All<StreamBroken>(Answer(hello[0], {Has(0, 1, 2)}, 2));
  ASSERT_EQ(broken.size(), 1u);
  EXPECT_EQ(broken[0].why, StreamBroken::Why::kLost);
}

TEST_F(PushStreamTest, AShardWithClocksNobodyPushedBreaksALiveStream) {
  Start(Options(1), MapOf(1, {0}));
  const auto broken = All<StreamBroken>(Answer(hellos[0], {Has(0, 7)}));
  ASSERT_EQ(broken.size(), 1u);
  EXPECT_EQ(broken[0].why, StreamBroken::Why::kUnknown);
}

TEST_F(PushStreamTest, NotLiveIsToldSinceWhenAndForgottenOnceAccepted) {
  Start(Options(1), MapOf(1, {0}));
  StreamActions actions;
  stream->Nack(0, hellos[0].request, wire::Code::NotLive, actions);
  EXPECT_EQ(stream->not_live_since(), now);
  const auto hello = All<SendHello>(After(200));
  ASSERT_EQ(hello.size(), 1u);
  Answer(hello[0], {Has(0, 0)});
  EXPECT_FALSE(stream->not_live_since().has_value());
}

// ---- whole histories

struct ModelShard {
  Epoch epoch;
  std::uint32_t lineage = 0;
  wire::Code state = wire::Code::Applied;
  std::int64_t ready_at = 0;  // end of Restoring
  std::uint64_t watermark = 0;
  std::int64_t sum = 0;
  std::map<std::uint64_t, int> applied;  // clock -> times
  std::map<std::uint64_t, wire::Code> verdicts;
};

struct Message {
  enum Kind { kHello, kInit, kPush, kMarker } kind = kHello;
  std::uint64_t request = 0;
  std::uint64_t map_version = 0;
  std::uint64_t clock = 0;
  bool covers = false;
  bool replay = false;
  struct Segment {
    std::uint32_t shard;
    Epoch epoch;
    std::int64_t value;
    bool empty;
  };
  std::vector<Segment> segments;
};

struct Answer {
  enum Kind { kHello, kInit, kPush, kMarker, kNack } kind = kHello;
  std::uint64_t request = 0;
  std::uint64_t map_version = 0;
  wire::Code code = wire::Code::Applied;
  std::vector<StreamVerdict> verdicts;
};

struct Assignment {
  std::uint64_t version = 0;
  StreamMap map;
  std::vector<bool> restore;  // by shard: from `images`, else blank
  std::vector<ModelShard> images;
};

struct ModelLane {
  bool alive = true;
  std::uint64_t map_version = 0;
  std::map<std::uint32_t, ModelShard> shards;
  std::deque<Message> in;
  std::deque<Answer> out;
  std::vector<Message> seen;  // may be delivered once more, much later
  std::deque<Assignment> maps;
  std::uint64_t open_round = 0;
  std::uint64_t frozen_round = 0;
  std::uint64_t last_round = 0;
  std::map<std::uint64_t, std::uint64_t> markers;  // round -> clock
  std::vector<std::uint64_t> round_starts;         // on their way
  std::map<std::uint32_t, ModelShard> image;
};

struct Entry {
  std::vector<std::int64_t> values;
  std::vector<bool> empty;
};

class History {
 public:
  explicit History(std::uint32_t seed) : random_(seed), seed_(seed) {
    shards_ = 1 + random_() % 8;
    window_ = 1 + random_() % 12;
    loss_ = random_() % 3 == 0 ? 0 : random_() % 12;
    repeat_ = random_() % 6;
    ghost_at_ = random_() % 3 == 0 ? 300 + static_cast<int>(random_() % 600) : -1;
    too_old_ = ghost_at_ >= 0 ? 0 : random_() % 20;
    first_ = random_() % 2 == 0 ? 0 : 1000;
    head_ = released_ = first_;
    residual_.assign(shards_, 0);
    generated_.assign(shards_, 0);
    StreamOptions options = Options(shards_, window_);
    options.first_clock = Clock(first_);
    stream_.emplace(options);
    lanes_.resize(1 + random_() % 4);
    live_at_ = static_cast<std::int64_t>(random_() % 500);
    Assignment first;
    first.version = 1;
    first.restore.assign(shards_, false);
    for (std::uint32_t i = 0; i < shards_; ++i) {
      first.map.shards.push_back(
          {static_cast<std::uint32_t>(random_() % lanes_.size()), Epoch(1), 1});
    }
    Publish(std::move(first));
    committed_.resize(shards_);
    for (ModelShard& shard : committed_) shard.watermark = first_;
  }

  void Run() {
    for (int step = 0; step < 1200 && !testing::Test::HasFatalFailure(); ++step) {
      if (step == ghost_at_) BecomeGhost();
      Step(/*faults=*/true);
    }
    // Heal: from now on everything arrives, and all must come to an end.
    loss_ = repeat_ = too_old_ = 0;
    calm_ = true;
    for (int step = 0; step < 40000; ++step) {
      Step(/*faults=*/false);
      if (Settled()) break;
    }
    ASSERT_TRUE(Settled()) << "seed " << seed_ << ": does not settle; acked "
                           << stream_->AckedByAll() << " of " << stream_->head();
    Verify();
  }

  std::uint64_t commits = 0;
  std::uint64_t replays = 0;
  std::uint64_t returned = 0;
  std::uint64_t kills = 0;

 private:
  std::uint32_t Dice(std::uint32_t sides) { return static_cast<std::uint32_t>(random_() % sides); }

  bool Settled() {
    if (!stream_->AllAcked() || stream_->map_version() != assignment_.version) return false;
    for (const ModelLane& lane : lanes_) {
      if (lane.alive && !lane.maps.empty()) return false;
    }
    if (ghost_) return true;
    return std::all_of(residual_.begin(), residual_.end(), [](std::int64_t r) { return r == 0; });
  }

  void Verify() {
    for (std::uint32_t i = 0; i < shards_; ++i) {
      const ModelLane& lane = lanes_[assignment_.map.shards[i].lane];
      const auto found = lane.shards.find(i);
      ASSERT_NE(found, lane.shards.end());
      const ModelShard& shard = found->second;
      ASSERT_EQ(shard.watermark, head_) << "seed " << seed_ << " shard " << i;
      for (std::uint64_t clock = first_ + 1; clock <= head_; ++clock) {
        const auto applied = shard.applied.find(clock);
        const auto verdict = shard.verdicts.find(clock);
        ASSERT_TRUE(verdict != shard.verdicts.end()) << "seed " << seed_;
        if (verdict->second == wire::Code::Applied) {
          ASSERT_EQ(applied != shard.applied.end() ? applied->second : 0, 1)
              << "seed " << seed_ << " shard " << i << " clock " << clock;
        }
      }
      if (!ghost_) {
        ASSERT_EQ(shard.sum, generated_[i]) << "seed " << seed_ << " shard " << i;
      } else {
        ASSERT_EQ(shard.sum, written_[i]) << "seed " << seed_ << " shard " << i;
      }
    }
    commits = commits_;
    replays = stream_->counters().replays;
  }

  void Publish(Assignment assignment) {
    assignment.map.version = assignment.version;
    assignment_ = assignment;
    for (ModelLane& lane : lanes_) {
      if (lane.alive) lane.maps.push_back(assignment);
    }
    worker_maps_.push_back(assignment.map);
  }

  void Step(bool faults) {
    StreamActions actions;
    now_ += Dice(faults ? 20 : 40);
    stream_->Tick(now_, actions);
    Do(actions);
    switch (Dice(faults ? 16 : 8)) {
      case 0:
      case 1: PushMore(); break;
      case 2:
      case 3:
      case 4: DeliverToLane(); break;
      case 5:
      case 6: DeliverToWorker(); break;
      case 7: Control(); break;
      case 8:
        if (Dice(6) == 0) BreakConnection();
        break;
      case 9:
        if (Dice(40) == 0) LoseServer();
        break;
      case 10:
        if (Dice(8) == 0) BeginRound();
        break;
      case 11:
        if (Dice(20) == 0) AbortRound();
        break;
      default:
        DeliverToLane();
        DeliverToWorker();
        break;
    }
    if (calm_) {
      DeliverToLane();
      DeliverToWorker();
      Control();
    }
    MaybeCommitRound();
  }

  void PushMore() {
    if (ghost_ || worker_has_map_ == 0) return;
    const bool rest =
        std::any_of(residual_.begin(), residual_.end(), [](auto r) { return r != 0; });
    if (calm_ && !rest) return;
    if (!stream_->HasRoom() && Dice(20) != 0) return;
    ++head_;
    Entry entry;
    for (std::uint32_t i = 0; i < shards_; ++i) {
      const bool own = !calm_ && Dice(10) < 7;
      const std::int64_t value = own ? 1 + Dice(9) : 0;
      generated_[i] += value;
      entry.values.push_back(value + residual_[i]);
      entry.empty.push_back(!own && residual_[i] == 0);
      residual_[i] = 0;
    }
    if (written_.empty()) written_.assign(shards_, 0);
    for (std::uint32_t i = 0; i < shards_; ++i) written_[i] += entry.values[i];
    ring_[head_] = std::move(entry);
    StreamActions actions;
    stream_->Committed(Clock(head_), actions);
    Do(actions);
  }

  void BecomeGhost() {
    if (worker_has_map_ == 0) return;
    ghost_ = true;
    if (written_.empty()) written_.assign(shards_, 0);
    AbortRound();
    for (ModelLane& lane : lanes_) {
      lane.in.clear();
      lane.out.clear();
    }
    StreamOptions options = Options(shards_, window_);
    options.first_clock = Clock(first_);
    options.ghost = true;
    stream_.emplace(options);
    StreamActions actions;
    stream_->Tick(now_, actions);
    stream_->Released(Clock(released_));
    stream_->Committed(Clock(head_), actions);
    stream_->SetMap(worker_map_, actions);
    Do(actions);
  }

  // ---- actions of the stream

  template <typename Action>
  void Send(const Action& action, Message message) {
    ModelLane& lane = lanes_[action.lane];
    if (!lane.alive || Dice(100) < loss_) return;
    message.map_version = stream_->map_version();
    lane.in.push_back(message);
    if (Dice(100) < repeat_) lane.in.push_back(message);
    if (lane.seen.size() < 200) lane.seen.push_back(message);
  }

  void Do(const StreamActions& actions) {
    for (const StreamAction& action : actions) {
      Message message;
      if (const auto* hello = std::get_if<SendHello>(&action)) {
        message.kind = Message::kHello;
        message.request = hello->request;
        Send(*hello, message);
      } else if (const auto* init = std::get_if<SendInit>(&action)) {
        message.kind = Message::kInit;
        message.request = init->request;
        message.segments.push_back(
            {init->shard.value(), stream_->map().shards[init->shard.value()].epoch, 0, false});
        Send(*init, message);
      } else if (const auto* push = std::get_if<SendPush>(&action)) {
        message.kind = Message::kPush;
        message.request = push->request;
        message.clock = push->clock.value();
        message.covers = push->covers_lane;
        message.replay = push->replay;
        ASSERT_TRUE(ring_.contains(message.clock)) << "seed " << seed_;
        const Entry& entry = ring_[message.clock];
        for (const ShardId shard : push->shards) {
          const std::uint32_t i = shard.value();
          if (message.covers && entry.empty[i]) continue;
          message.segments.push_back({i, stream_->map().shards[i].epoch, entry.values[i],
                                      static_cast<bool>(entry.empty[i])});
        }
        Send(*push, message);
      } else if (const auto* marker = std::get_if<SendMarker>(&action)) {
        message.kind = Message::kMarker;
        message.request = marker->round;
        message.clock = marker->clock.value();
        Send(*marker, message);
      } else if (const auto* refused = std::get_if<Refused>(&action)) {
        Entry& entry = ring_[refused->clock.value()];
        const std::uint32_t i = refused->shard.value();
        if (entry.values.empty() || entry.empty[i]) continue;
        residual_[i] += entry.values[i];
        written_[i] -= entry.values[i];
        entry.empty[i] = true;
        entry.values[i] = 0;
        ++returned;
      } else if (const auto* cut = std::get_if<RoundCut>(&action)) {
        if (round_ == cut->round) cut_ = cut->clock.value();
      } else if (std::get_if<StreamBroken>(&action) != nullptr) {
        FAIL() << "seed " << seed_ << ": the stream broke";
      }
    }
  }

  // ---- the network

  void DeliverToLane() {
    ModelLane& lane = lanes_[Dice(static_cast<std::uint32_t>(lanes_.size()))];
    if (!lane.alive) return;
    if (repeat_ > 0 && !lane.seen.empty() && Dice(60) == 0) {
      // Something from long ago arrives a second time.
      const Message old = lane.seen[Dice(static_cast<std::uint32_t>(lane.seen.size()))];
      if (old.kind != Message::kMarker) OnMessage(lane, old);
      return;
    }
    if (lane.in.empty()) return;
    const Message message = lane.in.front();
    lane.in.pop_front();
    OnMessage(lane, message);
  }

  void DeliverToWorker() {
    const std::uint32_t number = Dice(static_cast<std::uint32_t>(lanes_.size()));
    ModelLane& lane = lanes_[number];
    if (lane.out.empty()) return;
    const struct Answer answer = lane.out.front();
    lane.out.pop_front();
    StreamActions actions;
    for (int copies = Dice(100) < repeat_ ? 2 : 1; copies > 0; --copies) {
      switch (answer.kind) {
        case Answer::kHello:
          stream_->HelloReply(number, answer.request, answer.map_version, answer.verdicts, actions);
          break;
        case Answer::kInit: stream_->InitReply(number, answer.request, actions); break;
        case Answer::kPush:
          stream_->PushReply(number, answer.request, answer.verdicts, actions);
          break;
        case Answer::kMarker:
          stream_->MarkerReply(number, answer.request, answer.code, actions);
          break;
        case Answer::kNack: stream_->Nack(number, answer.request, answer.code, actions); break;
      }
    }
    Do(actions);
  }

  void BreakConnection() {
    const std::uint32_t number = Dice(static_cast<std::uint32_t>(lanes_.size()));
    lanes_[number].in.clear();
    lanes_[number].out.clear();
    if (Dice(2) == 0) return;
    StreamActions actions;
    stream_->Reconnected(number, actions);
    Do(actions);
  }

  void Reply(ModelLane& lane, struct Answer answer) {
    answer.map_version = lane.map_version;
    if (Dice(100) >= loss_) lane.out.push_back(std::move(answer));
  }

  // ---- a lane: S1-S6

  void OnMessage(ModelLane& lane, const Message& message) {
    struct Answer answer;
    answer.request = message.request;
    if (now_ < live_at_ || lane.map_version == 0) {
      answer.kind = Answer::kNack;
      answer.code = lane.map_version == 0 ? wire::Code::UnknownJob : wire::Code::NotLive;
      return Reply(lane, answer);
    }
    switch (message.kind) {
      case Message::kHello:
        answer.kind = Answer::kHello;
        for (const auto& [number, shard] : lane.shards) {
          answer.verdicts.push_back(
              {ShardId(number), shard.epoch, shard.state, Clock(shard.watermark)});
        }
        return Reply(lane, answer);
      case Message::kInit: {
        answer.kind = Answer::kInit;
        const auto found = lane.shards.find(message.segments[0].shard);
        if (found != lane.shards.end() && found->second.epoch == message.segments[0].epoch &&
            found->second.state == wire::Code::Blank) {
          found->second.state = wire::Code::Applied;
        }
        return Reply(lane, answer);
      }
      case Message::kPush: return OnPush(lane, message);
      case Message::kMarker: return OnMarker(lane, message);
    }
  }

  void OnPush(ModelLane& lane, const Message& message) {
    struct Answer answer;
    answer.kind = Answer::kPush;
    answer.request = message.request;
    if (message.covers && message.map_version != lane.map_version) {
      answer.kind = Answer::kNack;
      answer.code = wire::Code::StaleMap;
      return Reply(lane, answer);
    }
    std::set<std::uint32_t> listed;
    const auto push = [&](std::uint32_t number, ModelShard& shard, std::int64_t value, bool empty) {
      wire::Code code = shard.state;
      std::uint64_t watermark = shard.watermark;
      if (shard.state == wire::Code::Applied) {
        if (message.clock <= shard.watermark) {
          const auto known = shard.verdicts.find(message.clock);
          code = known != shard.verdicts.end() ? known->second : wire::Code::Applied;
        } else if (message.clock > shard.watermark + 1) {
          code = wire::Code::Gap;
        } else if (!message.replay && !empty && Dice(100) < too_old_) {
          code = wire::Code::TooOld;
          shard.watermark = message.clock;
          shard.verdicts[message.clock] = code;
        } else {
          shard.watermark = message.clock;
          shard.sum += value;
          ++shard.applied[message.clock];
          shard.verdicts[message.clock] = code;
        }
      }
      if (code != wire::Code::Applied) {
        answer.verdicts.push_back({ShardId(number), shard.epoch, code, Clock(watermark)});
      }
    };
    for (const Message::Segment& segment : message.segments) {
      listed.insert(segment.shard);
      const auto found = lane.shards.find(segment.shard);
      if (found == lane.shards.end() || found->second.epoch != segment.epoch) {
        answer.verdicts.push_back(
            {ShardId(segment.shard), Epoch(0), wire::Code::WrongEpoch, Clock(0)});
        continue;
      }
      push(segment.shard, found->second, segment.value, segment.empty);
    }
    if (message.covers) {
      for (auto& [number, shard] : lane.shards) {
        if (!listed.contains(number)) push(number, shard, 0, true);
      }
    }
    Reply(lane, answer);
    TryFreeze(lane);
  }

  void OnMarker(ModelLane& lane, const Message& message) {
    struct Answer answer;
    answer.kind = Answer::kMarker;
    answer.request = message.request;
    if (message.request == lane.frozen_round) return Reply(lane, answer);
    if (message.request != lane.open_round && message.request <= lane.last_round) {
      answer.kind = Answer::kNack;
      answer.code = wire::Code::RoundAborted;
      return Reply(lane, answer);
    }
    lane.markers[message.request] = message.clock;
    TryFreeze(lane);
  }

  void TryFreeze(ModelLane& lane) {
    const auto marker = lane.markers.find(lane.open_round);
    if (lane.open_round == 0 || marker == lane.markers.end()) return;
    for (const auto& [number, shard] : lane.shards) {
      if (shard.state != wire::Code::Applied || shard.watermark < marker->second) return;
      ASSERT_EQ(shard.watermark, marker->second)
          << "seed " << seed_ << ": a push passed its marker";
    }
    lane.image = lane.shards;
    lane.frozen_round = lane.open_round;
    lane.open_round = 0;
    struct Answer answer;
    answer.kind = Answer::kMarker;
    answer.request = lane.frozen_round;
    Reply(lane, answer);
  }

  // ---- the coordinator

  void Control() {
    if (!worker_maps_.empty() && Dice(2) == 0) {
      worker_map_ = worker_maps_.front();
      worker_maps_.pop_front();
      worker_has_map_ = worker_map_.version;
      StreamActions actions;
      stream_->SetMap(worker_map_, actions);
      Do(actions);
    }
    for (ModelLane& lane : lanes_) {
      if (!lane.alive) continue;
      if (!lane.round_starts.empty()) {
        const std::uint64_t round = lane.round_starts.front();
        lane.round_starts.erase(lane.round_starts.begin());
        if (round > lane.last_round) {
          lane.last_round = round;
          if (round == round_) lane.open_round = round;
          TryFreeze(lane);
        }
      }
      if (!lane.maps.empty() && Dice(2) == 0) Assign(lane);
      for (auto& [number, shard] : lane.shards) {
        if (shard.state == wire::Code::Restoring && now_ >= shard.ready_at) {
          shard.state = wire::Code::Applied;
        }
        // A ghost has no values: some living task brings them.
        if (ghost_ && shard.state == wire::Code::Blank) shard.state = wire::Code::Applied;
      }
    }
  }

  void Assign(ModelLane& lane) {
    const Assignment assignment = lane.maps.front();
    lane.maps.pop_front();
    lane.open_round = 0;
    std::map<std::uint32_t, ModelShard> before;
    before.swap(lane.shards);
    const auto self = static_cast<std::uint32_t>(&lane - lanes_.data());
    for (std::uint32_t i = 0; i < shards_; ++i) {
      if (assignment.map.shards[i].lane != self) continue;
      const auto old = before.find(i);
      if (old != before.end() && old->second.epoch == assignment.map.shards[i].epoch) {
        lane.shards[i] = old->second;
        continue;
      }
      ModelShard shard;
      shard.watermark = first_;
      shard.state = wire::Code::Blank;
      if (assignment.restore[i]) {
        shard = assignment.images[i];
        shard.state = wire::Code::Restoring;
        shard.ready_at = now_ + Dice(600);
      }
      shard.epoch = assignment.map.shards[i].epoch;
      lane.shards[i] = shard;
    }
    lane.map_version = assignment.version;
  }

  void LoseServer() {
    AbortRound();
    const std::uint32_t victim = Dice(static_cast<std::uint32_t>(lanes_.size()));
    if (!lanes_[victim].alive) return;
    ++kills;
    lanes_[victim] = ModelLane();
    lanes_[victim].alive = false;
    // Another process, with another endpoint, takes its place.
    lanes_.emplace_back();
    Assignment next = assignment_;
    ++next.version;
    next.restore.assign(shards_, commits_ > 0);
    next.images = committed_;
    std::vector<std::uint32_t> alive;
    for (std::uint32_t i = 0; i < lanes_.size(); ++i) {
      if (lanes_[i].alive) alive.push_back(i);
    }
    for (std::uint32_t i = 0; i < shards_; ++i) {
      StreamMap::Shard& place = next.map.shards[i];
      // Sometimes a shard that nobody lost moves as well.
      if (place.lane != victim && Dice(12) != 0) continue;
      place.lane = alive[Dice(static_cast<std::uint32_t>(alive.size()))];
      place.epoch = Epoch(place.epoch.value() + 1);
      ++place.lineage;
    }
    Publish(std::move(next));
  }

  void BeginRound() {
    if (ghost_ || round_ != 0 || worker_has_map_ != assignment_.version) return;
    for (const ModelLane& lane : lanes_) {
      if (lane.alive && !lane.maps.empty()) return;
    }
    round_ = ++last_round_;
    cut_.reset();
    for (ModelLane& lane : lanes_) {
      if (lane.alive) lane.round_starts.push_back(round_);
    }
    StreamActions actions;
    stream_->BeginRound(round_, actions);
    Do(actions);
  }

  void AbortRound() {
    if (round_ == 0) return;
    const std::uint64_t round = std::exchange(round_, 0);
    for (ModelLane& lane : lanes_) {
      if (lane.open_round == round) lane.open_round = 0;
      if (lane.frozen_round == round) lane.frozen_round = 0;
      lane.last_round = std::max(lane.last_round, round);
    }
    StreamActions actions;
    stream_->AbortRound(round, actions);
    Do(actions);
  }

  void MaybeCommitRound() {
    if (round_ == 0 || !cut_) return;
    for (std::uint32_t i = 0; i < lanes_.size(); ++i) {
      const bool used = std::any_of(assignment_.map.shards.begin(), assignment_.map.shards.end(),
                                    [i](const auto& place) { return place.lane == i; });
      if (used && lanes_[i].frozen_round != round_) return;
    }
    for (std::uint32_t i = 0; i < shards_; ++i) {
      committed_[i] = lanes_[assignment_.map.shards[i].lane].image[i];
      ASSERT_EQ(committed_[i].watermark, *cut_) << "seed " << seed_ << ": not one cut";
    }
    ++commits_;
    StreamActions actions;
    stream_->AbortRound(round_, actions);
    released_ = *cut_;
    ring_.erase(ring_.begin(), ring_.upper_bound(released_));
    stream_->Released(Clock(released_));
    round_ = 0;
    Do(actions);
  }

  std::mt19937 random_;
  const std::uint32_t seed_;
  std::uint32_t shards_ = 0;
  std::uint32_t window_ = 0;
  std::uint32_t loss_ = 0;
  std::uint32_t repeat_ = 0;
  std::uint32_t too_old_ = 0;
  int ghost_at_ = -1;
  bool ghost_ = false;
  bool calm_ = false;
  std::int64_t now_ = 0;
  std::int64_t live_at_ = 0;

  std::uint64_t first_ = 0;
  std::uint64_t head_ = 0;
  std::uint64_t released_ = 0;
  std::map<std::uint64_t, Entry> ring_;
  std::vector<std::int64_t> residual_;
  std::vector<std::int64_t> generated_;  // all that was ever computed
  std::vector<std::int64_t> written_;    // all that was ever put into the ring and not returned
  std::optional<PushStream> stream_;

  std::vector<ModelLane> lanes_;
  Assignment assignment_;
  std::deque<StreamMap> worker_maps_;
  StreamMap worker_map_;
  std::uint64_t worker_has_map_ = 0;
  std::vector<ModelShard> committed_;
  std::uint64_t commits_ = 0;
  std::uint64_t round_ = 0;
  std::uint64_t last_round_ = 0;
  std::optional<std::uint64_t> cut_;
};

TEST(PushStreamHistoryTest, EveryShardAppliesEveryClockExactlyOnceWhateverHappens) {
  std::uint64_t commits = 0;
  std::uint64_t replays = 0;
  std::uint64_t returned = 0;
  std::uint64_t kills = 0;
  for (std::uint32_t seed = 0; seed < 1500; ++seed) {
    History history(seed);
    history.Run();
    if (testing::Test::HasFatalFailure()) FAIL() << "seed " << seed;
    commits += history.commits;
    replays += history.replays;
    returned += history.returned;
    kills += history.kills;
  }
  // The histories have seen what they are meant to see.
  EXPECT_GT(commits, 1000u);
  EXPECT_GT(replays, 5000u);
  EXPECT_GT(returned, 1000u);
  EXPECT_GT(kills, 1000u);
  RecordProperty("commits", static_cast<int>(commits));
}

}  // namespace
}  // namespace ps::worker
