#include "cli/why.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

namespace ps::cli {
namespace {

using testing::HasSubstr;

Json Worker(int number, double clock, double steps) {
  return {{"worker", number},
          {"incarnation", number + 1},
          {"node", "n" + std::to_string(number)},
          {"state", "live"},
          {"clock", clock},
          {"steps", steps},
          {"samples_per_second", 1000},
          {"wait_data_ms", 0},
          {"wait_pull_ms", 0},
          {"wait_push_ms", 0},
          {"compute_ms", 0},
          {"retained_bytes", 10},
          {"retained_limit", 100}};
}

// Two workers that computed for all of three seconds.
class WhyTest : public ::testing::Test {
 protected:
  WhyTest() {
    looks_.seconds = 3;
    looks_.before = {{"id", 7},
                     {"phase", "running"},
                     {"shards", 16},
                     {"replicas", 1},
                     {"replicated_shards", 16},
                     {"workers", {Worker(0, 10, 10), Worker(1, 10, 10)}},
                     {"progress", {{"samples_trained", 1000}, {"skipped", 0}, {"too_old", 0}}}};
    looks_.after = looks_.before;
    looks_.after["progress"]["samples_trained"] = 4000;
    for (int i = 0; i < 2; ++i) {
      looks_.after["workers"][i]["clock"] = 40;
      looks_.after["workers"][i]["steps"] = 40;
      looks_.after["workers"][i]["compute_ms"] = 3000;
    }
  }

  Json& after(int worker) { return looks_.after["workers"][worker]; }
  void Event(const std::string& type, const std::string& message) {
    looks_.events.push_back({{"time", "12:00"}, {"type", type}, {"message", message}});
  }
  // No worker has moved.
  void Stop() {
    looks_.after["progress"]["samples_trained"] = 1000;
    for (int i = 0; i < 2; ++i) {
      after(i)["clock"] = 10;
      after(i)["steps"] = 10;
    }
  }
  // The worst.
  Cause First() { return Diagnose(looks_).front(); }
  bool Names(Cause::Weight weight, const std::string& what) {
    for (const Cause& cause : Diagnose(looks_)) {
      if (cause.weight == weight && cause.what.find(what) != std::string::npos) return true;
    }
    return false;
  }

  JobLooks looks_;
};

TEST_F(WhyTest, AJobThatComputesIsFine) {
  const auto causes = Diagnose(looks_);
  ASSERT_EQ(causes.size(), 1u);
  EXPECT_EQ(causes[0].weight, Cause::Weight::kFine);
  EXPECT_EQ(causes[0].what, "workers compute 100 % of their time");
}

TEST_F(WhyTest, AQueuedJobNamesWhatIsMissing) {
  looks_.after["phase"] = "queued";
  looks_.after["reason"] = "waits for 2 free worker slots, 1 free now";
  looks_.nodes = {{{"name", "w"},
                   {"kind", "worker"},
                   {"state", "ready"},
                   {"free_slots", 1},
                   {"jobs", {"other"}}}};
  const auto causes = Diagnose(looks_);
  ASSERT_EQ(causes.size(), 2u);
  EXPECT_EQ(causes[0].what, "no ps-server is registered");
  EXPECT_EQ(causes[1].what, "there are too few free worker slots");
  EXPECT_THAT(causes[1].evidence, HasSubstr("busy with other"));
  looks_.nodes[0]["free_slots"] = 5;
  looks_.nodes.push_back({{"name", "s"}, {"kind", "server"}, {"state", "ready"}});
  EXPECT_EQ(First().what, "the job is queued");
  looks_.after["gpus_per_worker"] = 1;
  looks_.nodes[0]["gpus"] = Json::array({{{"uuid", "GPU-1"}}});
  looks_.nodes[0]["free_gpus"] = 0;
  EXPECT_EQ(First().what, "there are too few free GPUs");
  EXPECT_THAT(First().evidence, HasSubstr("the agents have 1, 0 of them free"));
  looks_.nodes[0]["gpus"][0]["trouble"] = "XID 79";
  EXPECT_THAT(First().evidence, HasSubstr("0 of them free; sick: GPU-1 of w (XID 79)"));
}

TEST_F(WhyTest, AJobThatRecoversSaysFromWhat) {
  looks_.after["phase"] = "recovering";
  looks_.after["reason"] = "server s1 is gone";
  Event("server lost", "s1 held 8 shards");
  EXPECT_EQ(First().weight, Cause::Weight::kBlocked);
  EXPECT_THAT(First().evidence, HasSubstr("server s1 is gone; the newest event: server lost"));
}

TEST_F(WhyTest, AllWaitForTheOneThatIsBehind) {
  Stop();
  after(1)["clock"] = 7;
  EXPECT_EQ(First().weight, Cause::Weight::kBlocked);
  EXPECT_EQ(First().what, "all wait for worker 1 on n1");
  EXPECT_THAT(First().next, HasSubstr("--worker 1"));
}

TEST_F(WhyTest, AFullRingBlocksOrSoonWill) {
  after(0)["retained_bytes"] = 95;
  EXPECT_TRUE(Names(Cause::Weight::kRisk, "will soon have to wait for a checkpoint"));
  Stop();
  EXPECT_EQ(First().what, "worker 0 on n0 waits for a checkpoint");
}

TEST_F(WhyTest, AStragglerIsNamedAndWhetherOthersWaitForIt) {
  after(1)["samples_per_second"] = 300;
  EXPECT_TRUE(Names(Cause::Weight::kRisk, "worker 1 on n1 is a straggler"));
  after(0)["wait_pull_ms"] = 2000;
  after(0)["compute_ms"] = 1000;
  EXPECT_TRUE(Names(Cause::Weight::kSlow, "worker 1 on n1 is a straggler"));
}

TEST_F(WhyTest, WhatTheTimeGoesIntoIsNamed) {
  const std::pair<const char*, const char*> parts[] = {
      {"wait_data_ms", "workers wait for data 75 %"},
      {"wait_pull_ms", "workers wait for pulls 75 %"},
      {"wait_push_ms", "workers wait for room for their pushes 75 %"}};
  for (const auto& [key, what] : parts) {
    for (int i = 0; i < 2; ++i) {
      for (const auto& part : parts) after(i)[part.first] = 0;
      after(i)[key] = 2250;
      after(i)["compute_ms"] = 750;
    }
    EXPECT_EQ(First().weight, Cause::Weight::kSlow);
    EXPECT_THAT(First().what, HasSubstr(what));
  }
}

TEST_F(WhyTest, TasksThatAreMissingOrKeepDyingAreNamed) {
  after(1)["state"] = "none";
  Event("waiting", "waits for a free worker slot for worker 1");
  EXPECT_TRUE(Names(Cause::Weight::kSlow, "worker 1 on n1 has no task"));
  for (int i = 0; i < 3; ++i) Event("worker lost", "worker 1 killed by signal 11");
  EXPECT_TRUE(Names(Cause::Weight::kSlow, "tasks keep dying"));
}

TEST_F(WhyTest, ChecksWhatMayHarmLater) {
  Event("checkpoint aborted", "no room");
  Event("checkpoint", "12");
  Event("checkpoint aborted", "no room");
  EXPECT_EQ(First().weight, Cause::Weight::kFine);
  Event("checkpoint aborted", "no room on s2");
  EXPECT_EQ(First().what, "checkpoints fail: 2 since the last good one");
  EXPECT_EQ(First().evidence, "12:00 no room on s2");
  looks_.after["replicated_shards"] = 10;
  EXPECT_TRUE(Names(Cause::Weight::kRisk, "6 of 16 shards lack a backup in sync"));
  looks_.nodes = {{{"name", "s1"}, {"kind", "server"}, {"state", "unsteady"}, {"host", "h"}}};
  EXPECT_TRUE(Names(Cause::Weight::kRisk, "server s1 is unsteady"));
}

TEST_F(WhyTest, LostStepsAreNamed) {
  looks_.after["progress"]["skipped"] = 4;
  Event("not finite", "worker 0, positions 5 to 9");
  EXPECT_TRUE(Names(Cause::Weight::kSlow, "steps are skipped"));
  looks_.after["progress"]["implausible_skipped"] = 2;
  EXPECT_TRUE(Names(Cause::Weight::kSlow, "batches are skipped: their loss"));
  looks_.after["progress"]["too_old"] = 9;
  EXPECT_TRUE(Names(Cause::Weight::kSlow, "pushes come too late"));
}

TEST_F(WhyTest, TheEndIsAnAnswerToo) {
  looks_.after["phase"] = "failed";
  looks_.after["reason"] = "no such file";
  EXPECT_EQ(First().weight, Cause::Weight::kBlocked);
  EXPECT_EQ(First().evidence, "no such file");
  looks_.after["phase"] = "succeeded";
  EXPECT_EQ(First().weight, Cause::Weight::kFine);
}

// What comes from a server of another version may lack anything.
TEST_F(WhyTest, AnEmptyAnswerIsBorne) {
  looks_ = JobLooks();
  EXPECT_FALSE(Diagnose(looks_).empty());
  looks_.before = looks_.after = Json::array({1, "x"});
  EXPECT_FALSE(Diagnose(looks_).empty());
}

}  // namespace
}  // namespace ps::cli
