// Rounds, retention, and going back to a checkpoint.
#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "tests/coordinator/core_fixture.h"

namespace ps::coordinator {
namespace {

TEST_F(CoreTest, CheckpointIsCommittedWhenAllHaveDoneTheirPart) {
  StartRunning();
  Progress(11);
  Tick();
  const auto manifest = checkpoint::FromJson(PlayRound(11));
  ASSERT_TRUE(manifest.ok()) << manifest.error().message;
  EXPECT_EQ(manifest->step, 11u);
  EXPECT_EQ(manifest->cuts.size(), 2u);
  EXPECT_EQ(Describe()["checkpoints"], 1);
  for (const auto& [task, worker] : tasks_) {
    EXPECT_EQ(Take(worker.agent, Body::RoundCommitted).size(), 1u);
  }
  EXPECT_EQ(Take("p-s0", Body::RoundCommitted).size(), 1u);
  // The next one is due ten steps later.
  Tick();
  EXPECT_TRUE(Take("p-s0", Body::RoundBegin).empty());
  Progress(21);
  Tick();
  const auto begun = Take("p-s0", Body::RoundBegin);
  ASSERT_EQ(begun.size(), 1u);
  EXPECT_EQ(begun[0].body.AsRoundBegin()->round, 2u);
}

TEST_F(CoreTest, RoundsBuildOnTheNewestCheckpointUntilAWholeOneIsDueAndItsBasesAreKept) {
  std::string spec = kSpec;
  const std::string every = "{every_steps: 10}";
  spec.replace(spec.find(every), every.size(), "{every_steps: 10, keep: 2, full_every: 3}");
  spec_ = spec.c_str();
  StartRunning();
  const auto keep_of_commit = [&] {
    std::vector<std::uint64_t> keep;
    for (const auto& message : Take("p-s0", Body::RoundCommitted)) {
      keep.clear();
      for (const auto& one : message.body.AsRoundCommitted()->keep) keep.push_back(one->round);
    }
    return keep;
  };
  struct Step {
    std::uint64_t base;  // that servers are told
    Rounds bases;        // that they build on
    Rounds keep;
  };
  const std::vector<Step> steps = {
      {0, {}, {1}},     {1, {1}, {1, 2}},   {2, {2, 1}, {1, 2, 3}}, {0, {}, {1, 2, 3, 4}},
      {4, {4}, {4, 5}}, {5, {}, {4, 5, 6}}, {6, {6}, {6, 7}},
  };
  for (std::size_t i = 0; i < steps.size(); ++i) {
    SCOPED_TRACE(i + 1);
    Progress(11 * (i + 1));
    Tick();
    const auto manifest = checkpoint::FromJson(PlayRound(11 * (i + 1), steps[i].bases));
    ASSERT_TRUE(manifest.ok()) << manifest.error().message;
    EXPECT_EQ(base_, steps[i].base);
    Rounds bases;
    for (const Round base : manifest->shards[0].bases) bases.push_back(base.value());
    EXPECT_EQ(bases, steps[i].bases);
    EXPECT_TRUE(manifest->shards[1].bases.empty());
    EXPECT_EQ(manifest->shards[0].state_bytes, 1000u);
    EXPECT_EQ(keep_of_commit(), steps[i].keep);
  }
  // A new leader knows it, too.
  const auto state = StateFromJson(nlohmann::json::parse(nodes_["/jobs/0000000001/state"]));
  ASSERT_TRUE(state.ok()) << state.error().message;
  ASSERT_EQ(state->checkpoints.size(), 2u);
  EXPECT_EQ(state->checkpoints[1].bases, std::vector<Round>{Round(6)});
  EXPECT_EQ(state->checkpoints[1].since_whole, 1u);
  EXPECT_EQ(state->checkpoints[0].since_whole, 0u);
  EXPECT_FALSE(state->checkpoints[1].remaining.empty());
}

TEST_F(CoreTest, AnImageThatBuildsOnWhatMayBeGoneAbortsItsRound) {
  StartRunning();
  Progress(11);
  Tick();
  EXPECT_NE(PlayRound(11), "");
  const std::vector<std::vector<std::uint64_t>> wrong = {{7}, {1, 1}, {2, 1}, {1, 0}};
  for (const std::vector<std::uint64_t>& bases : wrong) {
    Progress(100);
    Tick(60'000);
    EXPECT_EQ(PlayRound(100, bases), "");
    EXPECT_EQ(Describe()["checkpoints"], 1);
  }
  EXPECT_NE(Events().find("built on a checkpoint that may be gone"), std::string::npos);
  Tick(60'000);
  EXPECT_NE(PlayRound(100, {1}), "");
  EXPECT_EQ(Describe()["checkpoints"], 2);
}

TEST_F(CoreTest, ADamagedCheckpointTakesTheWholeJobBackToTheOneBefore) {
  StartRunning();
  Progress(11);
  Tick();
  PlayRound(11);
  Progress(22);
  Tick();
  PlayRound(22, {1});
  servers_.erase("s1");
  Announce();
  Tick();
  const auto failed_for = [&](std::uint64_t round, bool damaged) {
    const auto map = Map();
    const auto waits = std::find_if(map.shards.begin(), map.shards.end(), [&](const auto& shard) {
      return shard->restore_round == round;
    });
    EXPECT_NE(waits, map.shards.end());
    control::RestoreFailedT failed;
    failed.job = 1;
    failed.shard = static_cast<std::uint32_t>(waits - map.shards.begin());
    failed.round = round;
    failed.epoch = (*waits)->epoch;
    failed.message = "its digest is another";
    failed.damaged = damaged;
    return failed;
  };
  const auto before = Map();
  Take("p-a0", Body::StopTask);
  Take("p-a0", Body::DropRing);
  Say("p-s0", failed_for(2, true));
  // Whatever the workers and the other shards know is later than what the job goes on from.
  EXPECT_EQ(PhaseNow(), "placing");
  EXPECT_EQ(Describe()["generation"], 2);
  EXPECT_EQ(Take("p-a0", Body::StopTask).size(), 1u);
  EXPECT_EQ(Take("p-a0", Body::DropRing).size(), 1u);
  const auto after = Map();
  for (std::size_t i = 0; i < after.shards.size(); ++i) {
    EXPECT_EQ(after.shards[i]->restore_round, 1u);
    EXPECT_EQ(after.shards[i]->epoch, before.shards[i]->epoch + 1);
    EXPECT_EQ(after.shards[i]->lineage, before.shards[i]->lineage + 1);
  }
  EXPECT_NE(Events().find("checkpoint damaged: checkpoint 2"), std::string::npos);
  EXPECT_NE(Events().find("goes on from checkpoint 1"), std::string::npos);
  const auto checkpoints = core_->DescribeCheckpoints("count")->at("checkpoints");
  EXPECT_EQ(checkpoints.at(0)["damaged"], false);
  EXPECT_EQ(checkpoints.at(1)["damaged"], true);
  // What other shards say of the map before changes nothing.
  control::RestoreFailedT late;
  late.job = 1;
  late.round = 2;
  late.epoch = before.shards[0]->epoch;
  late.damaged = true;
  Say("p-s0", late);
  EXPECT_EQ(PhaseNow(), "placing");

  tasks_.clear();
  Tick();
  ServeStarts();
  ReportShards();
  Tick();
  ASSERT_EQ(PhaseNow(), "running");
  Progress(33);
  Tick();
  EXPECT_NE(PlayRound(33), "");
  EXPECT_EQ(base_, 1u) << "not the damaged one";
  const auto kept = core_->DescribeCheckpoints("count")->at("checkpoints");
  ASSERT_EQ(kept.size(), 2u);
  EXPECT_EQ(kept.at(1)["round"], 3);
}

// ---- retention

TEST_F(CoreTest, APinnedCheckpointOutlivesTheNewestOnesUntilItIsUnpinned) {
  UseCheckpoints("{every_steps: 10, keep: 1}");
  StartRunning();
  CommitNext();
  CommitNext();
  EXPECT_EQ(Listed(), Rounds{2});
  EXPECT_EQ(Ask([&](Ticket ticket) { core_->PinCheckpoint(ticket, "count", Round(1), true, now_); })
                .error()
                .code,
            ErrorCode::kNotFound);
  const auto pin = [&](std::uint64_t round, bool pinned) {
    return Ask(
        [&](Ticket ticket) { core_->PinCheckpoint(ticket, "count", Round(round), pinned, now_); });
  };
  const auto answer = pin(2, true);
  ASSERT_TRUE(answer.ok()) << answer.error().message;
  EXPECT_EQ(answer->at("checkpoint").at("round"), 2);
  EXPECT_EQ(answer->at("checkpoint").at("pinned"), true);
  CommitNext();
  CommitNext();
  EXPECT_EQ(Listed(), (Rounds{2, 4}));
  // A new leader knows it, and one that was written before there were pins is read all the same.
  auto json = nlohmann::json::parse(nodes_["/jobs/0000000001/state"]);
  const auto state = StateFromJson(json);
  ASSERT_TRUE(state.ok()) << state.error().message;
  EXPECT_TRUE(state->checkpoints[0].pinned);
  EXPECT_EQ(state->checkpoints[0].ordinal, 2u);
  EXPECT_FALSE(state->checkpoints[1].pinned);
  json["checkpoints"][0].erase("pinned");
  json["checkpoints"][0].erase("ordinal");
  EXPECT_TRUE(StateFromJson(json).ok());
  ASSERT_TRUE(pin(2, false).ok());
  ASSERT_TRUE(pin(2, false).ok());
  EXPECT_EQ(Listed(), (Rounds{2, 4}));
  CommitNext();
  EXPECT_EQ(Listed(), Rounds{5});
  EXPECT_NE(Events().find("checkpoint pinned: checkpoint 2"), std::string::npos);
  EXPECT_NE(Events().find("checkpoint unpinned: checkpoint 2"), std::string::npos);
}

TEST_F(CoreTest, EverySoManythCheckpointStays) {
  UseCheckpoints("{every_steps: 10, keep: 2, keep_every: 3}");
  StartRunning();
  for (int i = 0; i < 8; ++i) CommitNext();
  EXPECT_EQ(Listed(), (Rounds{3, 6, 7, 8}));
}

TEST_F(CoreTest, PruneSaysWhatGoesAndTellsTheServersWhatStays) {
  UseCheckpoints("{every_steps: 10, keep: 9, full_every: 3}");
  StartRunning();
  CommitNext();
  CommitNext({1});
  CommitNext({2, 1});
  CommitNext();
  CommitNext({4});
  for (const auto& server : servers_) Take("p-" + server, Body::RoundCommitted);
  const auto prune = [&](std::optional<std::size_t> keep, bool dry_run) {
    return Ask([&](Ticket ticket) {
      core_->PruneCheckpoints(ticket, "count", keep, false, dry_run, now_);
    });
  };
  const auto tried = prune(1, true);
  ASSERT_TRUE(tried.ok());
  EXPECT_EQ(tried->at("removed"), nlohmann::json({1, 2, 3, 4}));
  EXPECT_EQ(tried->at("needed"), nlohmann::json::array({4}));
  EXPECT_EQ(tried->at("kept"), nlohmann::json::array({5}));
  EXPECT_EQ(tried->at("bytes"), 3 * 400);
  EXPECT_EQ(Listed(), (Rounds{1, 2, 3, 4, 5}));
  EXPECT_TRUE(Take("p-s0", Body::RoundCommitted).empty());

  const auto done = prune(1, false);
  ASSERT_TRUE(done.ok());
  EXPECT_EQ(done->at("removed"), tried->at("removed"));
  EXPECT_EQ(done->at("dry_run"), false);
  EXPECT_EQ(Listed(), Rounds{5});
  for (const auto& server : servers_) {
    const auto told = Take("p-" + server, Body::RoundCommitted);
    ASSERT_EQ(told.size(), 1u);
    const auto& message = *told[0].body.AsRoundCommitted();
    EXPECT_EQ(message.job, 1u);
    EXPECT_EQ(message.round, 6u) << "all that was ever written, and what never will be";
    EXPECT_TRUE(message.cuts.empty());
    ASSERT_EQ(message.keep.size(), 2u);
    EXPECT_EQ(message.keep[0]->round, 4u);
    EXPECT_EQ(message.keep[1]->round, 5u);
  }
  EXPECT_NE(Events().find("checkpoints pruned: checkpoints 1, 2, 3, 4"), std::string::npos);
  EXPECT_EQ(prune(0, false).error().code, ErrorCode::kUsage);
  EXPECT_EQ(prune(1001, false).error().code, ErrorCode::kUsage);
  // Without a number the job's own, also when the job is over.
  core_->Cancel(7, "count", "", now_);
  Flush();
  ASSERT_TRUE(prune(std::nullopt, false).ok());
  EXPECT_EQ(Listed(), Rounds{5});
  EXPECT_EQ(Take("p-s0", Body::RoundCommitted).size(), 1u);
}

TEST_F(CoreTest, APruneDuringARoundLeavesTheRoundAndWhatItBuildsOn) {
  UseCheckpoints("{every_steps: 10, keep: 9}");
  StartRunning();
  CommitNext();
  CommitNext({1});
  Progress(clock_ += 11);
  Tick();
  ASSERT_TRUE(Ask([&](Ticket ticket) {
                core_->PruneCheckpoints(ticket, "count", 1, false, false, now_);
              }).ok());
  EXPECT_EQ(Describe()["open_checkpoint"], 3);
  const auto told = Take("p-s0", Body::RoundCommitted);
  ASSERT_FALSE(told.empty());
  EXPECT_EQ(told.back().body.AsRoundCommitted()->round, 2u) << "the open round goes on";
  EXPECT_NE(PlayRound(clock_, {2, 1}), "");
  EXPECT_EQ(Listed(), (Rounds{2, 3}));
}

TEST_F(CoreTest, ARollbackTakesTheWholeJobBackOnceItIsConfirmed) {
  UseCheckpoints("{every_steps: 10, keep: 9}");
  StartRunning();
  CommitNext();
  CommitNext({1});
  CommitNext({2, 1});
  const auto before = Map();
  const auto roll = [&](std::uint64_t round, bool confirmed) {
    return Ask(
        [&](Ticket ticket) { core_->RollBack(ticket, "count", Round(round), confirmed, now_); });
  };
  EXPECT_EQ(roll(9, true).error().code, ErrorCode::kNotFound);
  const auto asked = roll(1, false);
  EXPECT_EQ(asked.error().code, ErrorCode::kConflict);
  EXPECT_NE(asked.error().message.find("checkpoints 2, 3 are discarded"), std::string::npos)
      << asked.error().message;
  EXPECT_EQ(Listed(), (Rounds{1, 2, 3}));
  EXPECT_EQ(PhaseNow(), "running");

  ASSERT_TRUE(Ask([&](Ticket ticket) {
                core_->PinCheckpoint(ticket, "count", Round(3), true, now_);
              }).ok());
  EXPECT_NE(roll(1, true).error().message.find("checkpoint 3 would be discarded"),
            std::string::npos);
  ASSERT_TRUE(Ask([&](Ticket ticket) {
                core_->PinCheckpoint(ticket, "count", Round(3), false, now_);
              }).ok());

  // Also out of an open round, which comes to nothing.
  Progress(clock_ += 11);
  Tick();
  EXPECT_EQ(Describe()["open_checkpoint"], 4);
  for (const auto& agent : agents_) Take("p-" + agent, Body::StopTask);
  const auto done = roll(1, true);
  ASSERT_TRUE(done.ok()) << done.error().message;
  EXPECT_EQ(done->at("round"), 1);
  EXPECT_EQ(done->at("step"), 11);
  EXPECT_EQ(done->at("discarded"), nlohmann::json({2, 3}));
  EXPECT_EQ(PhaseNow(), "placing");
  EXPECT_EQ(Describe()["generation"], 2);
  EXPECT_FALSE(Describe().contains("open_checkpoint"));
  EXPECT_EQ(Listed(), Rounds{1});
  for (const auto& agent : agents_) {
    EXPECT_EQ(Take("p-" + agent, Body::StopTask).size(), 1u);
    EXPECT_EQ(Take("p-" + agent, Body::DropRing).size(), 1u);
  }
  const auto after = Map();
  for (std::size_t i = 0; i < after.shards.size(); ++i) {
    EXPECT_EQ(after.shards[i]->restore_round, 1u);
    EXPECT_EQ(after.shards[i]->lineage, before.shards[i]->lineage + 1);
  }
  RestartTasks();
  // Its number is a new one, and once it is committed what was discarded may be deleted.
  for (const auto& server : servers_) Take("p-" + server, Body::RoundCommitted);
  clock_ = 11;
  CommitNext();
  EXPECT_EQ(Listed(), (Rounds{1, 5}));
  const auto told = Take("p-s0", Body::RoundCommitted);
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].body.AsRoundCommitted()->round, 5u);
  EXPECT_EQ(told[0].body.AsRoundCommitted()->keep.size(), 2u);
}

TEST_F(CoreTest, ARollbackIsRefusedWhereNothingCouldCarryItOut) {
  UseCheckpoints("{every_steps: 10, keep: 9}");
  StartRunning();
  CommitNext();
  const auto roll = [&] {
    return Ask([&](Ticket ticket) { core_->RollBack(ticket, "count", Round(1), true, now_); });
  };
  const auto servers = servers_;
  servers_.clear();
  Announce();
  EXPECT_EQ(roll().error().code, ErrorCode::kUnreachable);
  servers_ = servers;
  Announce();
  for (const auto& server : servers) Register(server);
  core_->Cancel(7, "count", "", now_);
  Flush();
  EXPECT_EQ(roll().error().code, ErrorCode::kConflict);
  EXPECT_EQ(Ask([&](Ticket ticket) { core_->RollBack(ticket, "none", Round(1), true, now_); })
                .error()
                .code,
            ErrorCode::kNotFound);
}

TEST_F(CoreTest, WhatAnotherJobStartsFromStaysUntilThatHasACheckpointOfItsOwn) {
  UseCheckpoints("{every_steps: 10, keep: 1}");
  StartRunning();
  CommitNext();
  const std::string from = "{every_steps: 10, keep: 1}";
  std::string text = spec_ + spec_more_;
  text.replace(text.find(from), from.size(), "{from: count@1}");
  text.replace(text.find("name: count"), 11, "name: heir");
  answers_.clear();
  core_->Submit(2, {SpecJson(text), false}, now_);
  Flush();
  for (const auto& name : agents_) {
    for (const auto& message : Take("p-" + name, Body::Preflight)) {
      Say("p-" + name, GoodPreflight(message.body.AsPreflight()->request));
    }
  }
  ASSERT_EQ(answers_.size(), 1u);
  ASSERT_TRUE(answers_[0].body.ok()) << answers_[0].body.error().message;
  CommitNext();
  CommitNext();
  EXPECT_EQ(Listed(), (Rounds{1, 3}));
  core_->Cancel(7, "heir", "", now_);
  Flush();
  CommitNext();
  EXPECT_EQ(Listed(), Rounds{4});
}

// The disks are a model: whatever servers are told to delete is gone.
TEST_F(CoreTest, RandomRoundsPinsPrunesAndRollbacksNeverLoseWhatAKeptOneBuildsOn) {
  UseCheckpoints("{every_steps: 10, keep: 3, keep_every: 5, full_every: 1000}");
  StartRunning();
  std::mt19937 random(11);
  std::map<std::uint64_t, Rounds> disk;  // rounds and what they build on
  std::size_t deleted = 0;
  std::size_t rollbacks = 0;
  for (int turn = 0; turn < 400; ++turn) {
    SCOPED_TRACE(turn);
    const Rounds listed = Listed();
    const auto any = [&] { return listed[random() % listed.size()]; };
    const auto dice = random() % 10;
    if (listed.empty() || dice < 5) {
      Rounds bases;
      if (!listed.empty() && random() % 5 != 0) {
        bases = disk[listed.back()];
        bases.insert(bases.begin(), listed.back());
      }
      CommitNext(bases);
      disk[Listed().back()] = bases;
    } else if (dice < 7) {
      const std::uint64_t round = any();
      const bool pinned = random() % 2 == 0;
      ASSERT_TRUE(Ask([&](Ticket ticket) {
                    core_->PinCheckpoint(ticket, "count", Round(round), pinned, now_);
                  }).ok());
    } else if (dice < 9) {
      ASSERT_TRUE(Ask([&](Ticket ticket) {
                    core_->PruneCheckpoints(ticket, "count", 1 + random() % 4, false, false, now_);
                  }).ok());
    } else {
      const std::uint64_t round = any();
      const auto rolled =
          Ask([&](Ticket ticket) { core_->RollBack(ticket, "count", Round(round), true, now_); });
      if (!rolled.ok()) {
        EXPECT_NE(rolled.error().message.find("pinned"), std::string::npos);
        continue;
      }
      ++rollbacks;
      EXPECT_EQ(Listed().back(), round);
      RestartTasks();
      clock_ = StepOf(round);
    }
    for (const auto& server : servers_) {
      for (const auto& message : Take("p-" + server, Body::RoundCommitted)) {
        const auto& told = *message.body.AsRoundCommitted();
        deleted += std::erase_if(disk, [&](const auto& on_disk) {
          return on_disk.first < told.round &&
                 std::none_of(told.keep.begin(), told.keep.end(),
                              [&](const auto& kept) { return kept->round == on_disk.first; });
        });
      }
    }
    for (const std::uint64_t round : Listed()) {
      ASSERT_TRUE(disk.contains(round)) << round;
      for (const std::uint64_t base : disk[round]) ASSERT_TRUE(disk.contains(base)) << base;
    }
  }
  EXPECT_GT(deleted, 50u);
  EXPECT_GT(rollbacks, 10u);
  // And nothing stays for ever: with no pins and no numbers kept the newest alone is left.
  for (const std::uint64_t round : Listed()) {
    ASSERT_TRUE(Ask([&](Ticket ticket) {
                  core_->PinCheckpoint(ticket, "count", Round(round), false, now_);
                }).ok());
  }
  CommitNext();
  ASSERT_TRUE(Ask([&](Ticket ticket) {
                core_->PruneCheckpoints(ticket, "count", 1, false, false, now_);
              }).ok());
  const Rounds left = Listed();
  for (std::size_t i = 0; i + 1 < left.size(); ++i) EXPECT_EQ(OrdinalOf(left[i]) % 5, 0u);
}

TEST_F(CoreTest, WithoutAnEarlierCheckpointADamagedOneFailsTheJob) {
  StartRunning();
  Progress(11);
  Tick();
  PlayRound(11);
  servers_.erase("s1");
  Announce();
  Tick();
  const auto map = Map();
  const auto moved = std::find_if(map.shards.begin(), map.shards.end(),
                                  [](const auto& shard) { return shard->epoch == 2; });
  ASSERT_NE(moved, map.shards.end());
  control::RestoreFailedT failed;
  failed.job = 1;
  failed.shard = static_cast<std::uint32_t>(moved - map.shards.begin());
  failed.round = 1;
  failed.epoch = 2;
  failed.damaged = true;
  Say("p-s0", failed);
  EXPECT_EQ(PhaseNow(), "failed");
}

// Found by the simulation: a worker's progress after its cut overtook the cut over a new
// connection.
TEST_F(CoreTest, WhatIsTrainedAfterACutIsLeftToTrainInItsCheckpoint) {
  StartRunning();
  const auto [task, worker] = *tasks_.begin();
  Say(worker.agent, control::LeaseRequestT{}, task);
  const auto grants = Take(worker.agent, Body::LeaseGrant);
  ASSERT_EQ(grants.size(), 1u);
  const control::LeaseT lease = *grants[0].body.AsLeaseGrant()->leases.at(0);
  ASSERT_GT(lease.end - lease.begin, 32u);
  Progress(11);
  Tick();
  control::LeaseProgressT progress;
  progress.leases.push_back(control::ClonePtr(lease));
  progress.leases.back()->done = lease.end - lease.begin;
  Say(worker.agent, std::move(progress), task);
  // The cut is at the first batch.
  control::WorkerCutT cut;
  cut.round = 1;
  cut.clock = 11;
  cut.leases.push_back(control::ClonePtr(lease));
  cut.leases.back()->done = 32;
  Say(worker.agent, std::move(cut), task);
  const auto manifest = checkpoint::FromJson(PlayRound(11));
  ASSERT_TRUE(manifest.ok()) << manifest.error().message;
  ASSERT_FALSE(manifest->data.remaining.empty());
  EXPECT_EQ(manifest->data.remaining.front().begin, lease.begin + 32);
}

TEST_F(CoreTest, RoundThatStallsIsAbortedAndItsNumberNotUsedAgain) {
  StartRunning();
  Progress(11);
  Tick();
  ASSERT_EQ(Take("p-s0", Body::RoundBegin).size(), 1u);
  Tick(61'000);
  EXPECT_EQ(Take("p-s0", Body::RoundAbort).size(), 1u);
  EXPECT_NE(Events().find("missing"), std::string::npos);
  Tick(11'000);
  const auto begun = Take("p-s0", Body::RoundBegin);
  ASSERT_EQ(begun.size(), 1u);
  EXPECT_EQ(begun[0].body.AsRoundBegin()->round, 2u);
}

// Found by the simulation: the leader died when some tasks had heard of its round and others had
// not.
TEST_F(CoreTest, RoundThatTheLeaderDoesNotKnowIsOverForWhoeverRegisters) {
  StartRunning();
  Progress(11);
  Tick();
  const std::string agent = tasks_.begin()->second.agent;
  ASSERT_EQ(Take(agent, Body::RoundBegin).size(), 1u);
  AddAgent(agent.substr(2));
  EXPECT_TRUE(Take(agent, Body::RoundAbort).empty());  // it is open here
  Tick(61'000);
  Take(agent, Body::RoundAbort);
  AddAgent(agent.substr(2));
  const auto aborts = Take(agent, Body::RoundAbort);
  ASSERT_EQ(aborts.size(), 1u);
  EXPECT_EQ(aborts[0].body.AsRoundAbort()->round, 1u);
}

}  // namespace
}  // namespace ps::coordinator
