#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>

#include "cli/job_wait.h"
#include "tests/cli/fake_coordinator.h"
#include "tests/cli/test_environment.h"

namespace ps::cli {
namespace {

using nlohmann::json;
using testing::Contains;
using testing::HasSubstr;

constexpr const char* kJobFile = R"(apiVersion: ds/v1
kind: TrainJob
name: fashion
model: {type: mlp, layers: [784, 10]}
data:
  train: {format: idx, images: a, labels: b}
  test: {images: c, labels: d}
)";

json Job(const std::string& phase) {
  return {{"id", 7},
          {"name", "fashion"},
          {"phase", phase},
          {"created", "2026-01-02T03:04:05.000Z"},
          {"checkpoints", 1},
          {"workers",
           {{{"worker", 0}, {"node", "worker-1"}, {"state", "live"}, {"clock", 12}},
            {{"worker", 1}, {"node", "worker-2"}, {"state", "live"}, {"clock", 11}}}},
          {"progress",
           {{"epochs", 1}, {"samples_trained", 500}, {"samples_total", 1000}, {"steps", 23}}}};
}

// A coordinator with the job 7, which goes through `phases`, one for each look at it.
class JobCoordinator {
 public:
  explicit JobCoordinator(std::vector<std::string> phases)
      : phases_(std::move(phases)),
        fake_([this](const net::HttpRequest& request) { return Handle(request); }) {}

  const std::string& url() const { return fake_.url(); }
  FakeCoordinator& fake() { return fake_; }

 private:
  net::HttpResponse Handle(const net::HttpRequest& request) {
    if (request.path == "/v1/version") return Answer(200, R"({"version": "9.9"})");
    if (request.path == "/v1/jobs" && request.method == "POST") {
      const json body = json::parse(request.body);
      if (body["dry_run"]) {
        return Answer(200, json{{"spec", body["spec"]},
                                {"parameters", 7850},
                                {"blocks", 1},
                                {"shards", 1},
                                {"records", 60000},
                                {"test_records", 10000}}
                               .dump());
      }
      return Answer(201, json{{"job", Job("queued")}}.dump());
    }
    if (request.path == "/v1/jobs") {
      return Answer(200, json{{"jobs", {Job("running"), Job("succeeded")}}}.dump());
    }
    if (request.path == "/v1/jobs/7/scale") {
      const json body = json::parse(request.body);
      return Answer(
          200, json{{"job", Job("running")},
                    {"scale", {{"before", 2}, {"workers", body["workers"]}, {"free_slots", 1}}}}
                   .dump());
    }
    if (request.path == "/v1/nodes/server-1" && request.method == "POST") {
      if (json::parse(request.body)["duty"] == "draining") copies_ = 2;
    }
    if (request.path == "/v1/nodes/server-1" || (request.path == "/v1/nodes" && copies_ > 0)) {
      // One shard fewer at each look.
      copies_ -= copies_ > 0 ? 1 : 0;
      return Answer(200, json{{"nodes",
                               {{{"name", "server-1"},
                                 {"kind", "server"},
                                 {"state", copies_ > 0 ? "draining" : "drained"},
                                 {"shards", copies_},
                                 {"jobs", {"fashion"}}}}}}
                             .dump());
    }
    if (request.path == "/v1/nodes") {
      return Answer(200, json{{"nodes",
                               {{{"name", "server-1"},
                                 {"kind", "server"},
                                 {"state", "ready"},
                                 {"lanes", {"tcp://a", "tcp://b"}},
                                 {"jobs", {"fashion"}}},
                                {{"name", "coordinator-1"},
                                 {"kind", "coordinator"},
                                 {"state", "ready"},
                                 {"leader", true}}}}}
                             .dump());
    }
    if (request.path == "/v1/jobs/7" || request.path == "/v1/jobs/fashion") {
      const std::size_t look = std::min<std::size_t>(looks_++, phases_.size() - 1);
      if (phases_[look] == "away") return AnswerError(503, ErrorId::kNoLeader, "no leader");
      json job = Job(phases_[look]);
      if (phases_[look] == "failed") {
        job["reason"] = "the loss is not finite";
        job["last_checkpoint"] = {{"round", 12}};
        job["spec"] = {{"apiVersion", "ds/v1"},
                       {"kind", "TrainJob"},
                       {"name", "fashion"},
                       {"model", {{"type", "mlp"}, {"layers", {784, 10}}}},
                       {"checkpoint", {{"load", {{{"from", "5@1"}, {"into", "*"}}}}}},
                       {"data",
                        {{"train", {{"format", "idx"}, {"images", "/a"}, {"labels", "/b"}}},
                         {"test", {{"images", "/c"}, {"labels", "/d"}}}}}};
      }
      if (phases_[look] == "succeeded") {
        job["result"] = {{"metric_name", "accuracy"},
                         {"metric", 0.88771},
                         {"test_accuracy", 0.88771},
                         {"loss", 0.31},
                         {"records", 10000}};
      }
      return Answer(200, json{{"job", job}}.dump());
    }
    if (request.path == "/v1/jobs/tables") {
      json job = Job("running");
      job["embedding_tables"] = {{{"name", "users"}, {"width", 17}},
                                 {{"name", "items"}, {"width", 9}}};
      job["progress"]["metric_name"] = "auc";
      job["progress"]["metric"] = 0.8125;
      job["progress"]["pull_bytes_per_step"] = 34800;
      job["progress"]["pull_bytes_per_parameter"] = nullptr;
      job["progress"]["dense_bytes"] = nullptr;
      return Answer(200, json{{"job", job}}.dump());
    }
    if (request.path == "/v1/jobs/7/events") {
      json events = json::array();
      for (int seq = std::stoi(request.QueryOr("after", "0")) + 1; seq <= 2; ++seq) {
        events.push_back({{"seq", seq},
                          {"time", "2026-01-02T03:04:05.000Z"},
                          {"type", "Placed"},
                          {"message", "event " + std::to_string(seq)}});
      }
      return Answer(200, json{{"events", events}}.dump());
    }
    if (request.path == "/v1/jobs/7/checkpoints") {
      return Answer(200, json{{"checkpoints", {{{"round", 1}, {"step", 10}}}}}.dump());
    }
    if (request.path == "/v1/jobs/7/logs") {
      const std::string text = "worker " + request.QueryOr("worker", "?") + " line 1\nline 2\n";
      const auto offset = static_cast<std::size_t>(std::stoul(request.QueryOr("offset", "0")));
      // In pieces of 10 bytes.
      const std::string piece = offset < text.size() ? text.substr(offset, 10) : "";
      return Answer(200, json{{"worker", 0},
                              {"text", piece},
                              {"offset", offset + piece.size()},
                              {"end", offset + piece.size() >= text.size()}}
                             .dump());
    }
    if (request.path == "/v1/jobs/7/suspend") {
      json job = Job("running");
      job["suspending"] = true;
      return Answer(200, json{{"job", job}}.dump());
    }
    if (request.path == "/v1/jobs/7/resume") {
      return Answer(200, json{{"job", Job("queued")}}.dump());
    }
    if (request.path == "/v1/jobs/7/cancel") {
      return Answer(200, json{{"job", Job("cancelled")}}.dump());
    }
    return AnswerError(404, ErrorId::kJobUnknown, "there is no job of this name");
  }

  const std::vector<std::string> phases_;
  std::size_t looks_ = 0;
  int copies_ = 0;
  FakeCoordinator fake_;
};

class JobCommandsTest : public testing::Test {
 protected:
  int Run(JobCoordinator& coordinator, std::vector<std::string> arguments) {
    test_.Set("DS_COORDINATOR", coordinator.url());
    return test_.Run(arguments);
  }

  TestEnvironment test_;
};

TEST_F(JobCommandsTest, SubmitSendsTheResolvedSpec) {
  JobCoordinator coordinator({"running"});
  const std::string file = test_.Write("job.yaml", kJobFile);
  EXPECT_EQ(Run(coordinator, {"job", "submit", file}), 0) << test_.errors();
  EXPECT_EQ(test_.output(), "submitted job 7 (fashion)\n");
  const json body = json::parse(coordinator.fake().last_body());
  EXPECT_EQ(body["dry_run"], false);
  EXPECT_EQ(body["spec"]["training"]["staleness"], 3);
  EXPECT_EQ(body["spec"]["data"]["train"]["images"], (test_.directory() / "a").string());
  EXPECT_EQ(Run(coordinator, {"job", "submit", file, "-o", "name"}), 0);
  EXPECT_EQ(test_.output(), "7\n");
  EXPECT_EQ(Run(coordinator, {"job", "submit", file, "-o", "json"}), 0);
  EXPECT_EQ(json::parse(test_.output())["job"]["id"], 7);
}

TEST_F(JobCommandsTest, WhatIsSetTakesThePlaceOfWhatTheFileSays) {
  JobCoordinator coordinator({"running"});
  const std::string file = test_.Write("job.yaml", kJobFile);
  EXPECT_EQ(Run(coordinator, {"job", "submit", file, "--set", "training.workers=3", "--set",
                              "model.layers=[784, 20, 10]", "--set", "name=other"}),
            0)
      << test_.errors();
  EXPECT_EQ(test_.output(), "submitted job 7 (other)\n");
  const json spec = json::parse(coordinator.fake().last_body())["spec"];
  EXPECT_EQ(spec["training"]["workers"], 3);
  EXPECT_EQ(spec["model"]["layers"], json({784, 20, 10}));
  EXPECT_EQ(Run(coordinator,
                {"job", "submit", file, "--dry-run", "--offline", "--set", "training.workers=0"}),
            7);
  EXPECT_THAT(test_.errors(),
              HasSubstr("DS-E0205: --set training.workers=0: training.workers: must "
                        "be 1 to 1024, found 0\n  next: "));
  EXPECT_EQ(Run(coordinator, {"job", "submit", file, "--set", "training.workers"}), 2);
  EXPECT_THAT(test_.errors(), HasSubstr("must be PATH=VALUE"));
}

TEST_F(JobCommandsTest, WhyNamesWhatAJobWaitsFor) {
  JobCoordinator coordinator({"running"});
  EXPECT_EQ(Run(coordinator, {"job", "why", "fashion"}), 10) << test_.errors();
  EXPECT_THAT(test_.output(), HasSubstr("blocked: all wait for worker 1 on worker-2\n"
                                        "  seen: no step in 3 s; it is at clock 11, "));
  EXPECT_EQ(Run(coordinator, {"job", "why", "7", "-o", "json"}), 10);
  const json answer = json::parse(test_.output());
  EXPECT_EQ(answer["job"], "7");
  EXPECT_EQ(answer["causes"][0]["weight"], "blocked");
  EXPECT_EQ(Run(coordinator, {"job", "why", "7", "--look", "soon"}), 2);
  JobCoordinator done({"succeeded"});
  EXPECT_EQ(Run(done, {"job", "why", "7"}), 0);
  EXPECT_EQ(test_.output(), "fine: the job is over: succeeded\n");
}

TEST_F(JobCommandsTest, TopShowsNodesJobsAndWorkers) {
  JobCoordinator coordinator({"running"});
  EXPECT_EQ(Run(coordinator, {"top"}), 0) << test_.errors();
  EXPECT_THAT(test_.output(), HasSubstr("leader coordinator-1   servers 1 ready   agents none, 0 "
                                        "of 0 slots free\n"));
  EXPECT_THAT(test_.output(), HasSubstr("Workers of job 7 fashion\nWORKER"));
  EXPECT_THAT(test_.output(), testing::Not(HasSubstr("\x1b")));
  EXPECT_EQ(Run(coordinator, {"top", "-o", "json"}), 0);
  EXPECT_EQ(json::parse(test_.output())["jobs"].size(), 2u);
  // On a terminal in place, until it is interrupted, and the screen is given back.
  test_.environment().out_is_terminal = true;
  test_.environment().columns = 40;
  test_.environment().rows = 5;
  test_.InterruptAfterSleeps(2);
  EXPECT_EQ(Run(coordinator, {"top"}), 0);
  const std::string text = test_.output();
  EXPECT_EQ(text.substr(0, 8), "\x1b[?1049h");
  EXPECT_EQ(text.substr(text.size() - 8), "\x1b[?1049l");
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2 * 4);
}

TEST_F(JobCommandsTest, DrainWaitsUntilNothingIsLeft) {
  JobCoordinator coordinator({"running"});
  EXPECT_EQ(Run(coordinator, {"node", "drain", "server-1"}), 0) << test_.errors();
  EXPECT_EQ(test_.output(), "server server-1 is draining\n");
  EXPECT_EQ(json::parse(coordinator.fake().last_body()), json({{"duty", "draining"}}));
  EXPECT_EQ(Run(coordinator, {"node", "drain", "server-1", "--wait"}), 0) << test_.errors();
  EXPECT_EQ(test_.output(), "server server-1 is drained\n");
  EXPECT_EQ(test_.errors(), "server server-1 has 1 copies of shards (fashion)\n");
  EXPECT_EQ(Run(coordinator, {"node", "drain", "server-1", "--wait", "--timeout", "0"}), 124);
  EXPECT_EQ(Run(coordinator, {"node", "cordon", "server-1"}), 0);
  EXPECT_EQ(json::parse(coordinator.fake().last_body()), json({{"duty", "cordoned"}}));
  EXPECT_EQ(Run(coordinator, {"node", "undrain", "server-1", "-o", "json"}), 0);
  EXPECT_EQ(json::parse(coordinator.fake().last_body()), json({{"duty", "full"}}));
  EXPECT_EQ(Run(coordinator, {"node", "drain", "nobody"}), 3);
}

TEST_F(JobCommandsTest, ScalesWorkers) {
  JobCoordinator coordinator({"running"});
  EXPECT_EQ(Run(coordinator, {"scale", "workers", "7", "5"}), 0) << test_.errors();
  EXPECT_EQ(test_.output(),
            "job 7 (fashion) has 5 workers from now on in the place of 2; 2 wait for a free slot: "
            "`scripts/scale_out` brings another host in\n");
  EXPECT_EQ(json::parse(coordinator.fake().last_body()),
            json({{"workers", 5}, {"dry_run", false}}));
  EXPECT_EQ(Run(coordinator, {"scale", "workers", "7", "1", "--dry-run"}), 0);
  EXPECT_EQ(test_.output(), "job 7 (fashion) would have 1 workers in the place of 2\n");
  EXPECT_EQ(json::parse(coordinator.fake().last_body()), json({{"workers", 1}, {"dry_run", true}}));
  EXPECT_EQ(Run(coordinator, {"scale", "workers", "7", "2", "--wait", "-o", "json"}), 0);
  EXPECT_EQ(json::parse(test_.output())["scale"]["before"], 2);
  EXPECT_EQ(Run(coordinator, {"scale", "workers", "7", "3", "--wait", "--timeout", "0"}), 124);
  EXPECT_THAT(test_.errors(), HasSubstr("2 of 3 workers train"));
  EXPECT_EQ(Run(coordinator, {"scale", "workers", "7", "0"}), 2);
}

TEST_F(JobCommandsTest, ScalesServers) {
  JobCoordinator coordinator({"running"});
  EXPECT_EQ(Run(coordinator, {"scale", "servers", "1"}), 0) << test_.errors();
  EXPECT_EQ(test_.output(), "there are 1 servers\n");
  EXPECT_EQ(Run(coordinator, {"scale", "servers", "2"}), 4);
  EXPECT_THAT(test_.errors(), HasSubstr("scripts/scale_out"));
}

TEST(ScaleTest, TheFewestCopiesLeaveAndTheMostComeBack) {
  json nodes = json::array();
  const auto add = [&](const char* name, const char* state, int shards) {
    nodes.push_back({{"name", name}, {"kind", "server"}, {"state", state}, {"shards", shards}});
  };
  add("a", "ready", 9);
  add("b", "unsteady", 2);
  add("c", "cordoned", 5);
  add("d", "draining", 3);
  add("e", "drained", 0);
  add("f", "gone", 7);
  nodes.push_back({{"name", "w"}, {"kind", "worker"}, {"state", "ready"}});
  std::set<std::string> asked;
  FakeCoordinator fake([&](const net::HttpRequest& request) {
    if (request.method == "POST") {
      asked.insert(request.path + " " + std::string(json::parse(request.body)["duty"]));
    }
    return Answer(200, json{{"nodes", nodes}}.dump());
  });
  TestEnvironment test;
  const auto scale = [&](const char* number, const char* more) {
    asked.clear();
    return test.Run({"scale", "servers", number, more, "--coordinator", fake.url()});
  };
  EXPECT_EQ(scale("1", "--dry-run"), 0) << test.errors();
  EXPECT_EQ(test.output(), "server b would drain\nserver c would drain\n");
  EXPECT_TRUE(asked.empty());
  EXPECT_EQ(scale("1", "-otable"), 0) << test.errors();
  EXPECT_EQ(asked, (std::set<std::string>{"/v1/nodes/b draining", "/v1/nodes/c draining"}));
  EXPECT_EQ(scale("4", "-ojson"), 0) << test.errors();
  EXPECT_EQ(asked, (std::set<std::string>{"/v1/nodes/d full"}));
  EXPECT_EQ(json::parse(test.output()), json({{"drain", json::array()}, {"undrain", {"d"}}}));
  EXPECT_EQ(scale("6", "-otable"), 4);
}

TEST_F(JobCommandsTest, ExplainNeedsNoCoordinator) {
  EXPECT_EQ(test_.Run({"job", "explain", "training.workers"}), 0) << test_.errors();
  EXPECT_EQ(test_.output(),
            "field    training.workers\ntype     whole number\nvalues   1 to 1024\ndefault  2\n"
            "meaning  Worker tasks.\n");
  EXPECT_EQ(test_.Run({"job", "explain", "training.workers", "-o", "json"}), 0);
  EXPECT_EQ(json::parse(test_.output()), json({{"field", "training.workers"},
                                               {"type", "whole number"},
                                               {"required", false},
                                               {"description", "Worker tasks."},
                                               {"default", 2},
                                               {"values", "1 to 1024"}}));
}

TEST_F(JobCommandsTest, ExplainOfASectionShowsItsKeys) {
  EXPECT_EQ(test_.Run({"job", "explain"}), 0);
  EXPECT_THAT(test_.output(),
              testing::MatchesRegex("FIELD +TYPE +DEFAULT +VALUES +DESCRIPTION\n.*"));
  EXPECT_THAT(test_.output(), HasSubstr("\nembedding_tables  list of: map"));
  EXPECT_THAT(test_.output(), HasSubstr("What is trained.\n"));
  EXPECT_EQ(test_.output().find("training.workers"), std::string::npos);
  EXPECT_EQ(test_.Run({"job", "explain", "embedding_tables[3].optimizer.learning_rate"}), 0);
  EXPECT_THAT(test_.output(), HasSubstr("type     number or map\n"));
  EXPECT_THAT(test_.output(), HasSubstr("\nschedule       word"));
  EXPECT_EQ(test_.Run({"job", "explain", "checkpoint", "-o", "name"}), 0);
  EXPECT_EQ(
      test_.output(),
      "checkpoint.every_steps\ncheckpoint.keep\ncheckpoint.keep_every\ncheckpoint.full_"
      "every\ncheckpoint.flush_residuals\ncheckpoint.copies\ncheckpoint.from\ncheckpoint.load\n");
  EXPECT_EQ(test_.Run({"job", "explain", "checkpoint", "-o", "json"}), 0);
  EXPECT_EQ(json::parse(test_.output())["fields"].size(), 8u);
  EXPECT_EQ(test_.Run({"job", "explain", "optimizer", "-r", "-o", "name"}), 0);
  EXPECT_THAT(test_.output(), HasSubstr("optimizer.learning_rate.schedule\n"));
  EXPECT_EQ(test_.Run({"job", "explain", "name", "-o", "name"}), 0);
  EXPECT_EQ(test_.output(), "name\n");
}

TEST_F(JobCommandsTest, ExplainOfAnUnknownFieldNamesTheNearest) {
  EXPECT_EQ(test_.Run({"job", "explain", "training.wrokers"}), 3);
  EXPECT_THAT(test_.errors(), HasSubstr("did you mean `training.workers`?"));
  EXPECT_EQ(test_.Run({"job", "explain", "label"}), 3);
  EXPECT_THAT(test_.errors(), HasSubstr("`data.train.label` or `data.test.label` or "
                                        "`resources.label`?"));
  EXPECT_EQ(test_.output(), "");
}

TEST_F(JobCommandsTest, AnInvalidJobFileIsRefusedBeforeAnyCall) {
  JobCoordinator coordinator({"running"});
  const std::string file =
      test_.Write("job.yaml", std::string(kJobFile) + "training: {workrs: 3, epochs: 0}\n");
  EXPECT_EQ(Run(coordinator, {"job", "submit", file}), 7);
  EXPECT_THAT(test_.errors(), HasSubstr(file + ":8: training.workrs: unknown key, did you mean"));
  EXPECT_THAT(test_.errors(), HasSubstr(file + ":8: training.epochs: must be more than 0"));
  EXPECT_TRUE(coordinator.fake().requests().empty());
  EXPECT_EQ(Run(coordinator, {"job", "submit", "/does/not/exist.yaml"}), 3);
  EXPECT_EQ(Run(coordinator, {"job", "submit", test_.directory().string()}), 2);
}

TEST_F(JobCommandsTest, WarningsGoToTheErrorStream) {
  JobCoordinator coordinator({"running"});
  const std::string file =
      test_.Write("job.yaml", std::string(kJobFile) + "training: {workers: 9}\n");
  EXPECT_EQ(Run(coordinator, {"job", "submit", file, "-o", "name"}), 0);
  EXPECT_THAT(test_.errors(), HasSubstr("warning: training.workers is 9"));
  EXPECT_EQ(test_.output(), "7\n");
}

TEST_F(JobCommandsTest, ADryRunPrintsAJobFileAndWhatTheModelHas) {
  JobCoordinator coordinator({"running"});
  const std::string file = test_.Write("job.yaml", kJobFile);
  EXPECT_EQ(Run(coordinator, {"job", "submit", file, "--dry-run"}), 0);
  EXPECT_THAT(test_.output(), HasSubstr("staleness: 3\n"));
  EXPECT_THAT(test_.output(), HasSubstr("# parameters: 7,850\n"));
  EXPECT_TRUE(json::parse(coordinator.fake().last_body())["dry_run"]);
  const std::string again = test_.Write("again.yaml", test_.output());
  EXPECT_EQ(Run(coordinator, {"job", "submit", again, "--dry-run", "--offline"}), 0);
  EXPECT_EQ(Run(coordinator, {"job", "submit", file, "--dry-run", "-o", "json"}), 0);
  EXPECT_EQ(json::parse(test_.output())["parameters"], 7850);
}

TEST_F(JobCommandsTest, SubmitAndWaitEndsWithTheResult) {
  JobCoordinator coordinator({"queued", "running", "draining", "succeeded"});
  const std::string file = test_.Write("job.yaml", kJobFile);
  EXPECT_EQ(Run(coordinator, {"job", "submit", file, "--wait"}), 0) << test_.errors();
  EXPECT_THAT(test_.output(), HasSubstr("test accuracy  0.8877"));
  EXPECT_THAT(test_.errors(), HasSubstr("submitted job 7 (fashion)"));
  EXPECT_THAT(test_.errors(), HasSubstr("03:04:05 event 1\n"));
  EXPECT_THAT(test_.errors(), HasSubstr("running 50 %"));
  EXPECT_EQ(test_.errors().find('\x1b'), std::string::npos);
}

TEST_F(JobCommandsTest, AWaitExitsWithTheFateOfTheJob) {
  for (const auto& [phase, code] : std::vector<std::pair<std::string, int>>{
           {"succeeded", 0}, {"failed", 8}, {"cancelled", 9}}) {
    JobCoordinator coordinator({"running", phase});
    EXPECT_EQ(Run(coordinator, {"job", "wait", "fashion"}), code);
    EXPECT_THAT(test_.output(), HasSubstr(phase));
    EXPECT_EQ(Run(coordinator, {"job", "wait", "7", "-q", "-o", "json"}), code);
    EXPECT_EQ(json::parse(test_.output())["job"]["phase"], phase);
  }
  JobCoordinator coordinator({"failed"});
  EXPECT_EQ(Run(coordinator, {"job", "wait", "7"}), 8);
  EXPECT_THAT(test_.errors(), HasSubstr("job 7 failed: the loss is not finite"));
}

TEST_F(JobCommandsTest, AWaitByNameStaysWithTheJobThatItFoundFirst) {
  JobCoordinator coordinator({"running", "running", "succeeded"});
  EXPECT_EQ(Run(coordinator, {"job", "wait", "fashion", "-q"}), 0);
  EXPECT_EQ(coordinator.fake().requests(),
            (std::vector<std::string>{"GET /v1/jobs/fashion", "GET /v1/jobs/7", "GET /v1/jobs/7"}));
}

TEST_F(JobCommandsTest, AWaitEndsAfterItsTimeoutAndTheJobGoesOn) {
  JobCoordinator coordinator({"running"});
  EXPECT_EQ(Run(coordinator, {"job", "wait", "7", "--timeout", "3s"}), 124);
  EXPECT_THAT(test_.errors(), HasSubstr("is not over after 3s"));
  EXPECT_EQ(test_.output(), "");
}

TEST_F(JobCommandsTest, AnInterruptedWaitSaysThatTheJobGoesOn) {
  JobCoordinator coordinator({"running"});
  test_.InterruptAfterSleeps(2);
  EXPECT_EQ(Run(coordinator, {"job", "wait", "7"}), 130);
  EXPECT_THAT(test_.errors(), HasSubstr("job 7 goes on"));
  EXPECT_THAT(test_.errors(), HasSubstr("ds-cli job cancel 7"));
}

TEST_F(JobCommandsTest, AWaitBearsThatTheCoordinatorIsAwayForAWhile) {
  std::vector<std::string> phases = {"running"};
  for (int i = 0; i < 60; ++i) phases.emplace_back("away");  // 18 s of retries
  phases.emplace_back("succeeded");
  JobCoordinator coordinator(phases);
  EXPECT_EQ(Run(coordinator, {"job", "wait", "7"}), 0) << test_.errors();
  EXPECT_THAT(test_.errors(), HasSubstr("the coordinator answers again"));
  JobCoordinator gone({"running", "away"});
  EXPECT_EQ(Run(gone, {"job", "wait", "7"}), 6);
  EXPECT_THAT(test_.errors(), HasSubstr("gave up on job 7"));
}

TEST_F(JobCommandsTest, JobsAreListedInEveryFormat) {
  JobCoordinator coordinator({"running"});
  EXPECT_EQ(Run(coordinator, {"job", "list"}), 0);
  EXPECT_THAT(test_.output(), HasSubstr("ID  NAME     PHASE      DONE"));
  EXPECT_THAT(test_.output(), HasSubstr("7   fashion  succeeded  50%"));
  EXPECT_EQ(Run(coordinator, {"job", "list", "-o", "wide"}), 0);
  EXPECT_THAT(test_.output(), HasSubstr("SAMPLES/S"));
  EXPECT_EQ(Run(coordinator, {"job", "list", "-o", "name"}), 0);
  EXPECT_EQ(test_.output(), "7\n7\n");
  EXPECT_EQ(Run(coordinator, {"job", "list", "-o", "json"}), 0);
  EXPECT_EQ(json::parse(test_.output())["jobs"].size(), 2U);
  EXPECT_EQ(Run(coordinator, {"-o", "yaml", "job", "list"}), 0);
  EXPECT_THAT(test_.output(), HasSubstr("jobs:\n- "));
}

TEST_F(JobCommandsTest, DescribeNamesTheTablesOfRowsInPlaceOfADenseModel) {
  JobCoordinator coordinator({"running"});
  EXPECT_EQ(Run(coordinator, {"job", "describe", "tables"}), 0);
  EXPECT_THAT(test_.output(), HasSubstr("users of 17, items of 9"));
  EXPECT_THAT(test_.output(), HasSubstr("auc         0.8125"));
  EXPECT_THAT(test_.output(), HasSubstr("34.8 kB a step\n"));
  EXPECT_THAT(test_.output(), testing::Not(HasSubstr("a parameter")));
  EXPECT_THAT(test_.output(), testing::Not(HasSubstr("dense")));
}

TEST_F(JobCommandsTest, OneJobIsShown) {
  JobCoordinator coordinator({"running"});
  EXPECT_EQ(Run(coordinator, {"job", "get", "fashion", "-o", "json"}), 0);
  EXPECT_EQ(json::parse(test_.output())["job"]["id"], 7);
  EXPECT_EQ(Run(coordinator, {"job", "get", "other"}), 3);
  EXPECT_THAT(test_.errors(),
              HasSubstr("ds-cli: error DS-E0801: there is no job of this name\n  next: `ds-cli "));
  EXPECT_EQ(Run(coordinator, {"job", "get", "other", "-o", "json"}), 3);
  const json error = json::parse(test_.errors())["error"];
  EXPECT_EQ(error["code"], "DS-E0801");
  EXPECT_EQ(error["kind"], "not_found");
  EXPECT_EQ(error["message"], "there is no job of this name");
  EXPECT_EQ(test_.output(), "");
  EXPECT_EQ(Run(coordinator, {"job", "describe", "fashion"}), 0);
  for (const char* part : {"Workers\n", "worker-2", "Checkpoints\n", "event 2"}) {
    EXPECT_THAT(test_.output(), HasSubstr(part));
  }
  EXPECT_EQ(Run(coordinator, {"job", "describe", "7", "-o", "json"}), 0);
  EXPECT_EQ(json::parse(test_.output())["events"].size(), 2U);
}

TEST_F(JobCommandsTest, EventsAreShownAndFollowed) {
  JobCoordinator coordinator({"running", "running", "succeeded"});
  EXPECT_EQ(Run(coordinator, {"job", "events", "7", "-f"}), 0);
  EXPECT_EQ(test_.output(),
            "2026-01-02T03:04:05.000Z  Placed  event 1\n"
            "2026-01-02T03:04:05.000Z  Placed  event 2\n");
  EXPECT_EQ(Run(coordinator, {"job", "events", "7"}), 0);
  EXPECT_THAT(test_.output(), HasSubstr("TIME"));
  EXPECT_EQ(Run(coordinator, {"job", "events", "7", "-o", "json"}), 0);
  EXPECT_EQ(json::parse(test_.output())["events"].size(), 2U);
}

TEST_F(JobCommandsTest, LogsOfSeveralWorkersAreToldApart) {
  JobCoordinator coordinator({"running", "running", "succeeded"});
  EXPECT_EQ(Run(coordinator, {"job", "logs", "7"}), 0);
  EXPECT_EQ(test_.output(), "[0] worker 0 line 1\n[0] line 2\n[1] worker 1 line 1\n[1] line 2\n");
  EXPECT_EQ(Run(coordinator, {"job", "logs", "7", "--worker", "1", "-f"}), 0);
  EXPECT_EQ(test_.output(), "worker 1 line 1\nline 2\n");
  EXPECT_THAT(coordinator.fake().requests(),
              Contains("GET /v1/jobs/7/logs?worker=1&offset=10&limit=262144"));
}

TEST_F(JobCommandsTest, CancelNamesTheReasonAndMayWait) {
  JobCoordinator coordinator({"running", "cancelled"});
  EXPECT_EQ(Run(coordinator, {"job", "cancel", "7", "--reason", "wrong data"}), 0);
  EXPECT_EQ(test_.output(), "job 7 (fashion) is cancelled\n");
  EXPECT_EQ(json::parse(coordinator.fake().last_body())["reason"], "wrong data");
  EXPECT_EQ(Run(coordinator, {"job", "cancel", "7", "--wait"}), 0);
}

TEST_F(JobCommandsTest, AJobIsSuspendedAndResumedAndTheWaitIsForItsPhase) {
  JobCoordinator coordinator({"running", "running", "suspended", "queued", "running"});
  EXPECT_EQ(Run(coordinator, {"job", "suspend", "7"}), 0);
  EXPECT_EQ(test_.output(), "job 7 (fashion) is running, and suspended with its next checkpoint\n");
  EXPECT_EQ(Run(coordinator, {"job", "suspend", "7", "--wait", "-q"}), 0) << test_.errors();
  EXPECT_EQ(test_.output(), "job 7 (fashion) is suspended\n");
  EXPECT_EQ(Run(coordinator, {"job", "resume", "7"}), 0);
  EXPECT_EQ(test_.output(), "job 7 (fashion) is queued\n");
  EXPECT_EQ(Run(coordinator, {"job", "resume", "7", "--wait", "-q", "-o", "name"}), 0);
  EXPECT_EQ(test_.output(), "7\n");

  JobCoordinator ending({"running", "succeeded"});
  EXPECT_EQ(Run(ending, {"job", "suspend", "7", "--wait", "-q"}), 4) << "it was over before";
  JobCoordinator stuck({"running"});
  EXPECT_EQ(Run(stuck, {"job", "suspend", "7", "--wait", "-q", "--timeout", "2s"}), 124);
  EXPECT_THAT(test_.errors(), HasSubstr("is not suspended after 2s"));
}

TEST_F(JobCommandsTest, AJobThatIsOverBeginsAgainFromItsCheckpoint) {
  JobCoordinator coordinator({"failed"});
  EXPECT_EQ(Run(coordinator, {"job", "restart", "7", "--from", "3", "--set", "training.epochs=9"}),
            0)
      << test_.errors();
  EXPECT_EQ(test_.output(), "submitted job 7 (fashion)\n");
  json spec = json::parse(coordinator.fake().last_body())["spec"];
  EXPECT_EQ(spec["checkpoint"]["from"], "7@3");
  EXPECT_EQ(spec["training"]["epochs"], 9.0);
  EXPECT_EQ(spec["name"], "fashion");
  EXPECT_EQ(Run(coordinator, {"job", "restart", "7"}), 0) << test_.errors();
  spec = json::parse(coordinator.fake().last_body())["spec"];
  EXPECT_EQ(spec["checkpoint"]["from"], "7@12") << "its newest";

  JobCoordinator running({"running"});
  EXPECT_EQ(Run(running, {"job", "restart", "7"}), 4);
  EXPECT_THAT(test_.errors(), HasSubstr("ds-cli job cancel 7"));
  JobCoordinator suspended({"suspended"});
  EXPECT_EQ(Run(suspended, {"job", "restart", "7"}), 4);
  EXPECT_THAT(test_.errors(), HasSubstr("ds-cli job resume 7"));
}

TEST_F(JobCommandsTest, NodesAreListed) {
  JobCoordinator coordinator({"running"});
  EXPECT_EQ(Run(coordinator, {"node", "list"}), 0);
  EXPECT_THAT(test_.output(), HasSubstr("ready,leader"));
  EXPECT_THAT(test_.output(), HasSubstr("server-1"));
  EXPECT_EQ(Run(coordinator, {"node", "list", "-o", "name"}), 0);
  EXPECT_EQ(test_.output(), "server-1\ncoordinator-1\n");
}

TEST_F(JobCommandsTest, TheVersionOfTheClusterIsAskedFor) {
  JobCoordinator coordinator({"running"});
  EXPECT_EQ(Run(coordinator, {"version", "--cluster", "-o", "json"}), 0);
  EXPECT_EQ(json::parse(test_.output())["coordinator"], "9.9");
}

TEST_F(JobCommandsTest, EveryCommandSaysWhenNobodyAnswers) {
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           {"job", "list"}, {"job", "wait", "7"}, {"node", "list"}, {"ckpt", "list", "7"}}) {
    test_.Set("DS_COORDINATOR", "http://127.0.0.1:1");
    EXPECT_EQ(test_.Run(arguments), 6) << arguments[1];
    EXPECT_THAT(test_.errors(), HasSubstr("127.0.0.1:1"));
    EXPECT_EQ(test_.output(), "");
  }
}

TEST_F(JobCommandsTest, AStatusBecomesTheExitCode) {
  for (const auto& [status, code] : std::vector<std::pair<int, int>>{
           {400, 7}, {422, 7}, {401, 5}, {403, 5}, {404, 3}, {409, 4}, {500, 1}}) {
    const int answered = status;
    FakeCoordinator fake([answered](const net::HttpRequest&) {
      return AnswerError(answered, ErrorId::kConflict, "because of this");
    });
    test_.Set("DS_COORDINATOR", fake.url());
    EXPECT_EQ(test_.Run({"job", "get", "7"}), code) << status;
    EXPECT_THAT(test_.errors(), HasSubstr("because of this"));
  }
}

}  // namespace
}  // namespace ps::cli
