// A session against real lanes and a make-believe agent; the test's thread is the compute thread.
#include "ps-worker/task/task_session.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <filesystem>
#include <limits>
#include <mutex>
#include <thread>

#include "common/net/socket_pair_channel.h"
#include "ps-worker/core/retention_ring.h"
#include "ps-worker/task/ring_file.h"
#include "tests/ps-worker/task/lane_cluster.h"

namespace ps::worker {
namespace {

using testing::LaneServer;
using testing::MakeLive;
using testing::MakeMap;

constexpr std::uint32_t kShards = 3;
constexpr auto kPatience = std::chrono::seconds(20);
const JobId kJob(1);

// Agent and servers, on a thread of their own.
class Cluster {
 public:
  explicit Cluster(net::UniqueFd agent_end)
      : layout_message_(server::testing::MakeLayoutMessage({{TableRule::Sgd, {300, 40, 9000}}})),
        layout(LayoutView::Create(layout_message_, kShards).value()) {
    server_ = std::make_unique<LaneServer>(loop_, context_, "a", 2);
    map_ = MakeMap(1, {server_.get()}, kShards);
    live_ = MakeLive(1, {7}, 0);
    server_->SetJob(kJob, layout, server::testing::ConstantRules(1.0), map_, live_);
    channel_ = net::FrameChannel::Open(loop_, std::move(agent_end)).value();
    channel_->OnMessage([this](std::span<const std::byte> bytes) { OnMessage(bytes); });
    channel_->OnClosed([](const std::string&) {});
    channel_->Start();
    thread_ = std::thread([this] { loop_.Run(); });
  }
  ~Cluster() {
    loop_.Stop();
    thread_.join();
  }

  template <typename BodyT>
  void Tell(BodyT body, std::uint64_t leader_epoch = 5) {
    auto message =
        std::make_shared<control::MessageT>(control::Make(std::move(body), 1, leader_epoch));
    loop_.Post([this, message] {
      if (channel_ != nullptr) (void)channel_->Send(control::Encode(*message)).ok();
    });
  }
  void GiveLeases(std::vector<std::uint64_t> sizes, bool no_more = false) {
    control::LeaseGrantT grant;
    for (const std::uint64_t size : sizes) {
      auto lease = std::make_unique<control::LeaseT>();
      lease->id = ++last_lease_;
      lease->begin = position_;
      lease->end = position_ += size;
      grant.leases.push_back(std::move(lease));
    }
    grant.no_more = no_more;
    Tell(std::move(grant));
  }
  void BeginRound(std::uint64_t round) {
    loop_.Post([this, round] { server_->BeginRound(kJob, Round(round), 1, 1); });
    control::RoundBeginT begin;
    begin.round = round;
    Tell(begin);
  }
  void CloseAgent() {
    loop_.Post([this] { channel_.reset(); });
  }
  double Sum(std::uint32_t shard) {
    std::atomic<double> sum{-1};
    loop_.Post([&] {
      double total = 0;
      for (const float value : server_->FindShard(kJob, ShardId(shard))->values()) total += value;
      sum = total;
    });
    while (sum < 0) std::this_thread::yield();
    return sum;
  }

  // The first message of this type that `good` accepts; all others stay.
  template <typename BodyT>
  std::optional<BodyT> Await(control::Body type,
                             const std::function<bool(const BodyT&)>& good = nullptr) {
    std::unique_lock lock(mutex_);
    std::optional<BodyT> found;
    arrived_.wait_for(lock, kPatience, [&] {
      for (auto at = inbox_.begin(); at != inbox_.end(); ++at) {
        if (at->body.type != type) continue;
        auto* body = static_cast<BodyT*>(at->body.value);
        if (good && !good(*body)) continue;
        found = control::Clone(*body);
        inbox_.erase(at);
        return true;
      }
      return false;
    });
    return found;
  }

 private:
  void OnMessage(std::span<const std::byte> bytes) {
    auto message = control::Decode(bytes);
    ASSERT_TRUE(message.ok());
    if (message->body.type == control::Body::TaskReady) {
      control::TaskStartT start;
      start.start = std::make_unique<control::JobStartT>();
      start.start->job = kJob.value();
      start.start->layout = control::ClonePtr(layout_message_);
      start.start->map = control::ClonePtr(map_);
      start.start->live = control::ClonePtr(live_);
      start.worker = 0;
      start.incarnation = 7;
      start.total_records = 1000;
      Tell(std::move(start));
    }
    const std::lock_guard lock(mutex_);
    inbox_.push_back(std::move(*message));
    arrived_.notify_all();
  }

  const control::LayoutT layout_message_;

 public:
  const LayoutView layout;

 private:
  net::Context context_;
  net::Loop loop_;
  std::unique_ptr<LaneServer> server_;
  control::MapT map_;
  control::LiveSetT live_;
  std::unique_ptr<net::FrameChannel> channel_;
  std::uint64_t last_lease_ = 0;
  std::uint64_t position_ = 0;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<control::MessageT> inbox_;
  std::thread thread_;
};

class TaskSessionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ =
        std::filesystem::temp_directory_path() / ("task_session_test." + std::to_string(getpid()));
    std::filesystem::create_directories(directory_);
    auto sockets = net::MakeSocketPair().value();
    cluster = std::make_unique<Cluster>(std::move(sockets.first));
    options.control_fd = sockets.second.Release();
    options.ring_path = (directory_ / "ring").string();
    options.ring_bytes = 1 << 20;
    options.resend_timeout = std::chrono::milliseconds(300);
    session = TaskSession::Open(options).value();
  }
  void TearDown() override {
    session.reset();
    cluster.reset();
    std::filesystem::remove_all(directory_);
  }

  void Start() {
    control::TaskReadyT ready;
    ready.layout_fingerprint = 99;
    auto started = session->Ready(ready);
    ASSERT_TRUE(started.ok()) << started.error().message;
    EXPECT_EQ(started->shards, kShards);
    EXPECT_EQ(started->incarnation, Incarnation(7));
    EXPECT_EQ(started->start.total_records, 1000u);
    session->SetInitialValues(
        [](ShardId, std::span<float> values) { std::fill(values.begin(), values.end(), 0.0F); });
  }
  // One step that adds 1 to one entry of each shard, or pushes this.
  void Step(std::uint64_t lease, std::uint64_t done, float value = -1.0F) {
    auto push = session->BeginPush(4096);
    ASSERT_TRUE(push.ok()) << push.error().message;
    for (std::uint32_t shard = 0; shard < kShards; ++shard) {
      const std::uint32_t block = cluster->layout.shard_first_block(ShardId(shard));
      const auto bytes = server::testing::SparseBlock(block, cluster->layout.block(block).elements,
                                                      {static_cast<std::uint16_t>(shard)}, {value});
      std::memcpy(push->space().data(), bytes.data(), bytes.size());
      push->Add(ShardId(shard), bytes.size());
    }
    const auto clock = session->CommitPush(std::move(*push), 1, lease, done);
    ASSERT_TRUE(clock.ok());
    EXPECT_EQ(*clock, session->clock());
    StepReport report;
    report.loss = 0.5;
    report.samples = 1;
    report.entries = kShards;
    session->Report(report);
  }

  std::filesystem::path directory_;
  TaskOptions options;
  std::unique_ptr<Cluster> cluster;
  std::unique_ptr<TaskSession> session;
};

TEST_F(TaskSessionTest, AJobRunsFromTheFirstPullToTheLastEvaluation) {
  Start();
  session->RequestPull({});
  auto pull = session->WaitPull();
  ASSERT_TRUE(pull.ok()) << pull.error().message;
  EXPECT_EQ(pull->shards.size(), kShards);

  const auto asked = cluster->Await<control::LeaseRequestT>(control::Body::LeaseRequest);
  ASSERT_TRUE(asked.has_value());
  EXPECT_EQ(asked->have, 0u);
  cluster->GiveLeases({3, 2});
  for (std::uint64_t lease = 1; lease <= 2; ++lease) {
    auto work = session->NextWork();
    ASSERT_TRUE(work.ok());
    const auto* train = std::get_if<TrainLease>(&*work);
    ASSERT_NE(train, nullptr);
    EXPECT_EQ(train->lease.id, lease);
    for (std::uint64_t i = 1; i <= train->lease.end - train->lease.begin; ++i) Step(lease, i);
  }
  ASSERT_TRUE(session->WaitVerdicts().ok());
  for (std::uint32_t shard = 0; shard < kShards; ++shard) EXPECT_EQ(cluster->Sum(shard), 5.0);
  const auto done = cluster->Await<control::LeaseProgressT>(
      control::Body::LeaseProgress,
      [](const auto& p) { return p.leases.size() == 2 && p.leases[1]->done == 2; });
  ASSERT_TRUE(done.has_value());
  EXPECT_EQ(done->leases[0]->done, 3u);

  cluster->Tell(control::DrainT());
  auto work = session->NextWork();
  ASSERT_TRUE(work.ok());
  ASSERT_NE(std::get_if<DrainWork>(&*work), nullptr);
  ASSERT_TRUE(session->Hold(true).ok());
  session->Drained();
  EXPECT_EQ(cluster->Await<control::DrainedT>(control::Body::Drained)->clock, 5u);
  // A new leader asks again: the answer comes without the compute thread.
  cluster->Tell(control::DrainT());
  EXPECT_EQ(cluster->Await<control::DrainedT>(control::Body::Drained)->clock, 5u);

  control::EvaluateT evaluate;
  evaluate.round = 3;
  evaluate.digests = {"x"};
  cluster->Tell(evaluate);
  work = session->NextWork();
  ASSERT_TRUE(work.ok());
  ASSERT_NE(std::get_if<EvaluateWork>(&*work), nullptr);
  EXPECT_EQ(std::get_if<EvaluateWork>(&*work)->digests, evaluate.digests);
  control::EvaluatedT evaluated;
  evaluated.round = 3;
  evaluated.metric = 0.9;
  session->Evaluated(evaluated);
  EXPECT_EQ(cluster->Await<control::EvaluatedT>(control::Body::Evaluated)->metric, 0.9);

  const auto progress = cluster->Await<control::ProgressT>(
      control::Body::Progress, [](const auto& p) { return p.steps == 5; });
  ASSERT_TRUE(progress.has_value());
  EXPECT_EQ(progress->clock, 5u);
  EXPECT_EQ(progress->samples, 5u);
  EXPECT_EQ(progress->push_entries, 15u);
  EXPECT_GE(progress->pushes, 5u);
  EXPECT_GT(progress->push_bytes, 5 * 64u);
  EXPECT_GT(progress->retained_bytes, 0u);
  EXPECT_GE(progress->pulls, 1u);

  control::StopTaskT stop;
  stop.reason = "the job has succeeded";
  cluster->Tell(stop);
  work = session->NextWork();
  ASSERT_TRUE(work.ok());
  ASSERT_NE(std::get_if<StopWork>(&*work), nullptr);
  EXPECT_EQ(session->stop_reason(), stop.reason);
}

TEST_F(TaskSessionTest, ATaskThatIsToLeavePushesWhatItHoldsFirst) {
  Start();
  cluster->GiveLeases({4});
  ASSERT_TRUE(session->NextWork().ok());
  Step(1, 1);
  EXPECT_FALSE(session->leave_wanted());
  control::StopTaskT stop;
  stop.reason = "the node drains";
  cluster->Tell(stop);
  for (int i = 0; i < 1000 && !session->leave_wanted(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ASSERT_TRUE(session->leave_wanted());
  Step(1, 1);
  ASSERT_TRUE(session->WaitVerdicts().ok());
  const auto work = session->NextWork();
  ASSERT_TRUE(work.ok());
  ASSERT_NE(std::get_if<LeaveWork>(&*work), nullptr);
  EXPECT_EQ(std::get_if<LeaveWork>(&*work)->reason, "the node drains");
}

TEST_F(TaskSessionTest, TheLongestPullIsReportedWhileItWaitsAndAfterwards) {
  ASSERT_TRUE(session->Ready(control::TaskReadyT()).ok());
  session->RequestPull({});
  const auto waiting = cluster->Await<control::ProgressT>(
      control::Body::Progress, [](const auto& p) { return p.longest_pull_ms >= 600; });
  ASSERT_TRUE(waiting.has_value()) << "no shard has values yet";
  EXPECT_EQ(waiting->pulls, 0u);
  session->SetInitialValues(
      [](ShardId, std::span<float> values) { std::fill(values.begin(), values.end(), 0.0F); });
  ASSERT_TRUE(session->WaitPull().ok());
  session->RequestPull({});
  ASSERT_TRUE(session->WaitPull().ok());
  const auto after = cluster->Await<control::ProgressT>(control::Body::Progress,
                                                        [](const auto& p) { return p.pulls >= 2; });
  ASSERT_TRUE(after.has_value());
  EXPECT_GE(after->longest_pull_ms, waiting->longest_pull_ms);
}

TEST_F(TaskSessionTest, WhatAShardFindsNotFiniteIsReportedWithItsDataPosition) {
  Start();
  cluster->GiveLeases({3, 3});
  ASSERT_TRUE(session->NextWork().ok());
  ASSERT_TRUE(session->NextWork().ok());
  for (std::uint64_t done = 1; done <= 3; ++done) Step(1, done);
  Step(2, 1);
  Step(2, 2, std::numeric_limits<float>::infinity());
  Step(2, 3);
  ASSERT_TRUE(session->WaitVerdicts().ok());
  for (std::uint32_t shard = 0; shard < kShards; ++shard) EXPECT_EQ(cluster->Sum(shard), 5.0);
  const auto progress = cluster->Await<control::ProgressT>(
      control::Body::Progress, [](const auto& p) { return p.refused == kShards; });
  ASSERT_TRUE(progress.has_value());
  EXPECT_NE(progress->last_refused.find("push of clock 5, data positions 4 to 4"),
            std::string::npos)
      << progress->last_refused;
}

class StoppingTaskSessionTest : public TaskSessionTest {
 protected:
  StoppingTaskSessionTest() { options.stop_on_nonfinite = true; }
};

TEST_F(StoppingTaskSessionTest, WhatAShardFindsNotFiniteEndsTheJobThatWantsIt) {
  Start();
  cluster->GiveLeases({3});
  ASSERT_TRUE(session->NextWork().ok());
  Step(1, 1, std::numeric_limits<float>::quiet_NaN());
  const auto failed = cluster->Await<control::TaskFailedT>(control::Body::TaskFailed);
  ASSERT_TRUE(failed.has_value());
  EXPECT_TRUE(failed->permanent);
  EXPECT_NE(failed->message.find("push of clock 1, data positions 0 to 0: it is not finite"),
            std::string::npos)
      << failed->message;
  EXPECT_EQ(session->NextWork().error().code, ErrorCode::kClosed);
}

TEST_F(TaskSessionTest, TheCutHasTheLeasePositionsOfExactlyItsClock) {
  Start();
  cluster->GiveLeases({4, 4});
  ASSERT_TRUE(session->NextWork().ok());
  Step(1, 1);
  Step(1, 2);
  ASSERT_TRUE(session->WaitVerdicts().ok());
  cluster->BeginRound(3);
  const auto cut = cluster->Await<control::WorkerCutT>(control::Body::WorkerCut);
  ASSERT_TRUE(cut.has_value());
  EXPECT_EQ(cut->round, 3u);
  EXPECT_EQ(cut->clock, 2u);
  EXPECT_EQ(cut->highest_lease, 2u);
  EXPECT_EQ(cut->samples, 2u);
  ASSERT_EQ(cut->leases.size(), 2u);
  EXPECT_EQ(cut->leases[0]->done, 2u);
  EXPECT_EQ(cut->leases[1]->done, 0u);
  Step(1, 3);
  ASSERT_TRUE(session->WaitVerdicts().ok());
  control::RoundCommittedT committed;
  committed.round = 3;
  auto entry = std::make_unique<control::WorkerCutEntryT>();
  entry->incarnation = 7;
  entry->clock = 2;
  committed.cuts.push_back(std::move(entry));
  cluster->Tell(std::move(committed));
  // What the agent would find now: clock 3 alone.
  Step(1, 4);
  ASSERT_TRUE(session->WaitVerdicts().ok());
  session.reset();
  auto file = RingFile::Open(options.ring_path).value();
  auto ring = RetentionRing::Open(file->region(), file);
  ASSERT_TRUE(ring.ok()) << ring.error().message;
  EXPECT_EQ(ring->released(), Clock(2));
  EXPECT_EQ(ring->last_clock(), Clock(4));
  RingEntryView view;
  ASSERT_TRUE(ring->Find(Clock(4), view));
  EXPECT_EQ(view.info.lease_id, 1u);
  EXPECT_EQ(view.info.lease_done, 4u);
}

TEST_F(TaskSessionTest, TheCutHasTheLossScaleOfExactlyItsClock) {
  Start();
  cluster->GiveLeases({4});
  ASSERT_TRUE(session->NextWork().ok());
  session->SetLossScale({1024, 5});
  Step(1, 1);
  session->SetLossScale({512, 0});  // of the step that comes next
  cluster->BeginRound(3);
  const auto cut = cluster->Await<control::WorkerCutT>(control::Body::WorkerCut);
  ASSERT_TRUE(cut.has_value());
  EXPECT_EQ(cut->clock, 1u);
  EXPECT_EQ(cut->loss_scale, 1024);
  EXPECT_EQ(cut->growth_tracker, 5u);
}

TEST_F(TaskSessionTest, ATaskThatScalesNothingHasNoScaleInItsCut) {
  Start();
  cluster->BeginRound(3);
  const auto cut = cluster->Await<control::WorkerCutT>(control::Body::WorkerCut);
  ASSERT_TRUE(cut.has_value());
  EXPECT_EQ(cut->loss_scale, 0);
}

TEST_F(TaskSessionTest, ImplausibleBatchesAreReportedAtOnceAndInFull) {
  Start();
  session->SetPrecision("bf16");
  StepReport report;
  report.samples = 3;
  report.overflows = 1;
  report.skipped = true;
  session->Report(report);
  report = StepReport();
  report.skipped = true;
  report.loss = 99;
  report.dropped = 1;
  report.last_dropped = "the loss is 99; records 5-7";
  session->Report(report);
  const auto progress = cluster->Await<control::ProgressT>(
      control::Body::Progress, [](const auto& one) { return one.dropped > 0; });
  ASSERT_TRUE(progress.has_value());
  EXPECT_EQ(progress->overflows, 1u);
  EXPECT_EQ(progress->skipped, 0u);
  EXPECT_EQ(progress->anomalies, 1u);
  EXPECT_EQ(progress->redone, 0u);
  EXPECT_EQ(progress->last_dropped, "the loss is 99; records 5-7");
  EXPECT_EQ(progress->precision, "bf16");
  EXPECT_LT(progress->loss, 1);  // what was skipped is not part of the mean
}

class FlushingTaskSessionTest : public TaskSessionTest {
 protected:
  FlushingTaskSessionTest() { options.flush_residuals = true; }

  bool AwaitWish() {
    for (int i = 0; i < 1000 && !session->cut_wanted(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return session->cut_wanted();
  }
};

TEST_F(FlushingTaskSessionTest, TheCutWaitsForTheResidual) {
  Start();
  cluster->GiveLeases({4});
  ASSERT_TRUE(session->NextWork().ok());
  Step(1, 1);
  cluster->BeginRound(3);
  ASSERT_TRUE(AwaitWish());
  Step(1, 1);
  session->Flushed(true);
  EXPECT_FALSE(session->cut_wanted());
  Step(1, 2);
  const auto cut = cluster->Await<control::WorkerCutT>(control::Body::WorkerCut);
  ASSERT_TRUE(cut.has_value());
  EXPECT_EQ(cut->clock, 2u);
  EXPECT_TRUE(cut->flushed);
  ASSERT_TRUE(session->WaitVerdicts().ok());
}

TEST_F(FlushingTaskSessionTest, ATaskWithoutWorkIsWokenForIt) {
  Start();
  cluster->BeginRound(3);
  const auto work = session->NextWork();
  ASSERT_TRUE(work.ok());
  ASSERT_NE(std::get_if<CutWork>(&*work), nullptr);
  session->Flushed(false);
  const auto cut = cluster->Await<control::WorkerCutT>(control::Body::WorkerCut);
  ASSERT_TRUE(cut.has_value());
  EXPECT_EQ(cut->clock, 0u);
  EXPECT_FALSE(cut->flushed);
}

TEST_F(FlushingTaskSessionTest, AnAbortedRoundWaitsForNothing) {
  Start();
  cluster->BeginRound(3);
  ASSERT_TRUE(AwaitWish());
  control::RoundAbortT abort;
  abort.round = 3;
  cluster->Tell(abort);
  for (int i = 0; i < 1000 && session->cut_wanted(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_FALSE(session->cut_wanted());
  session->Flushed(true);
  cluster->BeginRound(4);
  ASSERT_TRUE(AwaitWish());
  session->Flushed(true);
  const auto cut = cluster->Await<control::WorkerCutT>(control::Body::WorkerCut);
  ASSERT_TRUE(cut.has_value());
  EXPECT_EQ(cut->round, 4u);
}

TEST_F(FlushingTaskSessionTest, ADrainedTaskHasNothingToPush) {
  Start();
  cluster->Tell(control::DrainT());
  const auto work = session->NextWork();
  ASSERT_TRUE(work.ok());
  ASSERT_NE(std::get_if<DrainWork>(&*work), nullptr);
  session->Drained();
  cluster->BeginRound(3);
  const auto cut = cluster->Await<control::WorkerCutT>(control::Body::WorkerCut);
  ASSERT_TRUE(cut.has_value());
  EXPECT_TRUE(cut->flushed);
}

// Only a checkpoint makes room, so it does not wait for a push.
TEST_F(FlushingTaskSessionTest, AFullRingIsCutAsItIs) {
  Start();
  std::thread coordinator([&] {
    EXPECT_TRUE(cluster->Await<control::ReadyForCheckpointT>(control::Body::ReadyForCheckpoint)
                    .has_value());
    // Long enough for the writer to fill the rest.
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    cluster->BeginRound(1);
    const auto cut = cluster->Await<control::WorkerCutT>(control::Body::WorkerCut);
    ASSERT_TRUE(cut.has_value());
    EXPECT_FALSE(cut->flushed);
    control::RoundCommittedT committed;
    committed.round = 1;
    auto entry = std::make_unique<control::WorkerCutEntryT>();
    entry->incarnation = 7;
    entry->clock = cut->clock;
    committed.cuts.push_back(std::move(entry));
    cluster->Tell(std::move(committed));
  });
  for (int steps = 0; steps < 30; ++steps) {
    auto push = session->BeginPush(100'000);
    ASSERT_TRUE(push.ok());
    const auto bytes = server::testing::DenseBlock(2, std::vector<float>(9000, 0.0F));
    std::memcpy(push->space().data(), bytes.data(), bytes.size());
    push->Add(ShardId(2), bytes.size());
    ASSERT_TRUE(session->CommitPush(std::move(*push), 1, 0, 0).ok());
  }
  coordinator.join();
}

TEST_F(TaskSessionTest, AHalfFullRingAsksForACheckpointAndAFullOneWaits) {
  Start();
  std::atomic<bool> blocked{false};
  std::uint64_t steps = 0;
  std::thread committer([&] {
    const auto ready =
        cluster->Await<control::ReadyForCheckpointT>(control::Body::ReadyForCheckpoint);
    EXPECT_TRUE(ready.has_value());
    EXPECT_NE(ready->reason.find("half"), std::string::npos);
    // Long enough for the writer to fill the rest.
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    blocked = true;
    control::RoundCommittedT committed;
    committed.round = 1;
    auto entry = std::make_unique<control::WorkerCutEntryT>();
    entry->incarnation = 7;
    entry->clock = 5;
    committed.cuts.push_back(std::move(entry));
    cluster->Tell(std::move(committed));
  });
  bool waited = false;
  while (!waited && steps < 1000) {
    auto push = session->BeginPush(100'000);
    ASSERT_TRUE(push.ok());
    const bool was_blocked = blocked;
    const auto bytes = server::testing::DenseBlock(2, std::vector<float>(9000, 0.0F));
    std::memcpy(push->space().data(), bytes.data(), bytes.size());
    push->Add(ShardId(2), bytes.size());
    ASSERT_TRUE(session->CommitPush(std::move(*push), 1, 0, 0).ok());
    ++steps;
    waited = was_blocked;
  }
  committer.join();
  // The ring has room for not even 30 of them.
  EXPECT_TRUE(waited);
  EXPECT_GT(steps, 14u);
  EXPECT_LT(steps, 40u);
}

TEST_F(TaskSessionTest, NextWorkWithoutALeaseHoldsTheClock) {
  Start();
  cluster->GiveLeases({}, /*no_more=*/true);
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    cluster->GiveLeases({1});
  });
  const auto begin = std::chrono::steady_clock::now();
  auto work = session->NextWork();
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(300));
  ASSERT_TRUE(work.ok());
  EXPECT_NE(std::get_if<TrainLease>(&*work), nullptr);
  later.join();
}

class BulkTaskSessionTest : public TaskSessionTest {
 protected:
  BulkTaskSessionTest() { options.bulk_synchronous = true; }
};

TEST_F(BulkTaskSessionTest, TheEndOfTheDataIsAFlushOnceAndOnlyThenAHold) {
  Start();
  cluster->GiveLeases({1});
  auto work = session->NextWork();
  ASSERT_TRUE(work.ok());
  ASSERT_NE(std::get_if<TrainLease>(&*work), nullptr);
  Step(1, 1);
  // Until the coordinator says that nothing is left there may be more to train.
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    cluster->GiveLeases({}, /*no_more=*/true);
  });
  work = session->NextWork();
  later.join();
  ASSERT_TRUE(work.ok());
  ASSERT_NE(std::get_if<FlushWork>(&*work), nullptr);

  // Nobody reaches clock 100: the pull is answered because the only worker does not count.
  TaskSession::PullRequest request;
  request.needed = Clock(100);
  session->RequestPull(request);
  later = std::thread([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    cluster->GiveLeases({1}, /*no_more=*/true);
  });
  work = session->NextWork();
  later.join();
  ASSERT_TRUE(work.ok());
  ASSERT_NE(std::get_if<TrainLease>(&*work), nullptr);
  EXPECT_TRUE(session->WaitPull().ok());
  Step(2, 1);
  work = session->NextWork();
  ASSERT_TRUE(work.ok());
  ASSERT_NE(std::get_if<FlushWork>(&*work), nullptr);
  cluster->Tell(control::DrainT());
  work = session->NextWork();
  ASSERT_TRUE(work.ok());
  ASSERT_NE(std::get_if<DrainWork>(&*work), nullptr);
}

TEST_F(TaskSessionTest, WithoutTheAgentEverythingIsClosed) {
  Start();
  cluster->CloseAgent();
  const auto work = session->NextWork();
  ASSERT_FALSE(work.ok());
  EXPECT_EQ(work.error().code, ErrorCode::kClosed);
  session->RequestPull({});
  EXPECT_EQ(session->WaitPull().error().code, ErrorCode::kClosed);
  EXPECT_EQ(session->BeginPush(10).error().code, ErrorCode::kClosed);
  EXPECT_EQ(session->WaitVerdicts().error().code, ErrorCode::kClosed);
  EXPECT_FALSE(session->Hold(true).ok());
}

TEST_F(TaskSessionTest, APushThatCanNeverFitIsAPermanentFailure) {
  Start();
  const auto push = session->BeginPush(std::size_t{8} << 20);
  ASSERT_FALSE(push.ok());
  const auto failed = cluster->Await<control::TaskFailedT>(control::Body::TaskFailed);
  ASSERT_TRUE(failed.has_value());
  EXPECT_TRUE(failed->permanent);
  EXPECT_NE(failed->message.find("retention"), std::string::npos);
}

TEST_F(TaskSessionTest, WhyATaskFailsReachesTheAgentBeforeTheProcessEnds) {
  session->Failed(true, "the data file is missing");
  session.reset();
  const auto failed = cluster->Await<control::TaskFailedT>(control::Body::TaskFailed);
  ASSERT_TRUE(failed.has_value());
  EXPECT_TRUE(failed->permanent);
  EXPECT_EQ(failed->message, "the data file is missing");
}

TEST_F(TaskSessionTest, AnOlderLeaderIsNotListenedTo) {
  Start();
  control::LeaseGrantT grant;
  grant.leases.push_back(std::make_unique<control::LeaseT>());
  grant.leases[0]->id = 50;
  grant.leases[0]->end = 9;
  cluster->Tell(std::move(grant), /*leader_epoch=*/4);
  cluster->GiveLeases({3});
  auto work = session->NextWork();
  ASSERT_TRUE(work.ok());
  EXPECT_EQ(std::get_if<TrainLease>(&*work)->lease.id, 1u);
}

}  // namespace
}  // namespace ps::worker
