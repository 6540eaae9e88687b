#include "cli/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/cli/test_environment.h"

namespace ps::cli {
namespace {

using testing::HasSubstr;

Json RunningJob() {
  return Json::parse(R"({"id": 7, "name": "fashion", "phase": "running", "checkpoints": 2,
    "workers": [{"worker": 0, "staleness_p50": 1, "staleness_p99": 2},
                {"worker": 1, "staleness_p50": 2, "staleness_p99": 3}, {"worker": 2}],
    "progress": {"epochs": 10, "samples_trained": 252000, "samples_total": 600000,
      "steps": 1969, "samples_per_second": 5321.4, "loss": 0.41237, "metric": 0.8712,
      "metric_name": "accuracy", "push_bytes_per_step": 83123, "pull_bytes_per_step": 102400,
      "dense_bytes": 7454760, "seconds_left": 65.4}})");
}

std::string BlockText(const Json& job) {
  std::string text;
  for (const auto& line : ProgressBlock(job)) text += line + "\n";
  return text;
}

TEST(ProgressTest, TheBlockShowsWhatMatters) {
  EXPECT_EQ(BlockText(RunningJob()),
            "job 7 fashion: running\n"
            "  42 % of 10 epochs, 252,000 samples, time left 1m 05s\n"
            "  steps 1,969  samples/s 5,321  loss 0.4124  test accuracy 0.8712\n"
            "  workers 3  staleness p50 2 p99 3  checkpoints 2\n"
            "  a step pushes 83.1 kB (1.12 % of dense), pulls 102 kB (1.37 % of dense)\n");
}

TEST(ProgressTest, TheLineShowsTheSame) {
  const std::string line = ProgressLine(RunningJob());
  for (const char* part :
       {"job 7 fashion running 42 %", "steps 1,969", "samples/s 5,321", "loss 0.4124",
        "test accuracy 0.8712", "p50 2 p99 3", "push 83.1 kB", "left 1m 05s"}) {
    EXPECT_THAT(line, HasSubstr(part));
  }
}

TEST(ProgressTest, AJobWithoutNumbersIsShownWithDashes) {
  const Json job = Json::parse(R"({"id": 1, "name": "x", "phase": "queued", "reason": "no slots",
                                   "progress": {"loss": null}, "workers": 3})");
  EXPECT_THAT(BlockText(job), HasSubstr("job 1 x: queued - no slots\n"));
  EXPECT_THAT(BlockText(job), HasSubstr("loss -"));
  EXPECT_NE(ProgressLine(Json()), "");
  EXPECT_NE(BlockText(Json::array()), "");
}

TEST(ProgressTest, OnlyThreePhasesAreTheEnd) {
  for (const char* phase :
       {"queued", "placing", "running", "recovering", "draining", "evaluating"}) {
    EXPECT_FALSE(IsFinished(Json{{"phase", phase}})) << phase;
  }
  for (const char* phase : {"succeeded", "failed", "cancelled", "imported"}) {
    EXPECT_TRUE(IsFinished(Json{{"phase", phase}})) << phase;
  }
  EXPECT_FALSE(IsFinished(Json()));
}

TEST(ProgressTest, WithoutATerminalThereIsALineEveryFiveSeconds) {
  TestEnvironment test;
  ProgressView view(test.environment());
  for (int i = 0; i < 22; ++i) {
    view.Show(RunningJob());
    test.environment().sleep(std::chrono::milliseconds(500));
  }
  const std::string text = test.errors();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_EQ(test.output(), "");
}

TEST(ProgressTest, AChangeOfPhaseIsShownAtOnce) {
  TestEnvironment test;
  ProgressView view(test.environment());
  view.Show(RunningJob());
  Json job = RunningJob();
  job["phase"] = "draining";
  view.Show(job);
  EXPECT_THAT(test.errors(), HasSubstr("draining"));
}

TEST(ProgressTest, OnATerminalTheBlockIsRedrawnInPlace) {
  TestEnvironment test;
  test.environment().err_is_terminal = true;
  ProgressView view(test.environment());
  view.Show(RunningJob());
  EXPECT_EQ(test.errors().find('\x1b'), std::string::npos);
  view.Show(RunningJob());
  EXPECT_THAT(test.errors(), HasSubstr("\x1b[5A\x1b[J"));
  view.Note("worker 1 died");
  EXPECT_THAT(test.errors(), HasSubstr("\x1b[5A\x1b[Jworker 1 died\njob 7"));
}

TEST(ProgressTest, LinesAreCutToTheTerminal) {
  TestEnvironment test;
  test.environment().err_is_terminal = true;
  test.environment().columns = 20;
  ProgressView view(test.environment());
  view.Show(RunningJob());
  std::istringstream lines(test.errors());
  for (std::string line; std::getline(lines, line);) EXPECT_LT(line.size(), 20U) << line;
}

TEST(ProgressTest, TheResultNamesTheAccuracyAndTheCheckpoint) {
  Json job = RunningJob();
  job["phase"] = "succeeded";
  job["result"] = Json{{"metric_name", "accuracy"},
                       {"metric", 0.88771},
                       {"loss", 0.31},
                       {"records", 10000},
                       {"test_accuracy", 0.88771}};
  job["last_checkpoint"] = Json{{"round", 1234}, {"directory", "7/3"}};
  const std::string text = ResultText(job);
  EXPECT_THAT(text, HasSubstr("test accuracy    0.8877\n"));
  EXPECT_THAT(text, HasSubstr("test records     10,000\n"));
  EXPECT_THAT(text, HasSubstr("last checkpoint  7@1234\n"));
  job["result"] = Json{{"metric_name", "mse"}, {"metric", 2.5}};
  EXPECT_THAT(ResultText(job), HasSubstr("test mse"));
  job["result"] = Json{{"metric_name", "none"}, {"metric", 640000}};
  EXPECT_THAT(ResultText(job), HasSubstr("sum              640,000\n"));
}

}  // namespace
}  // namespace ps::cli
