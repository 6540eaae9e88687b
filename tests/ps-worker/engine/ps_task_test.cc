// The program: its flags, its exit status, and what a preflight writes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "common/job/job_spec.h"
#include "common/messages/control.h"
#include "tests/support/child_process.h"
#include "tests/support/temp_directory.h"

namespace ps::worker {
namespace {

using ::testing::HasSubstr;

class PsTaskTest : public ::testing::Test {
 protected:
  PsTaskTest() {
    std::ofstream(directory_ / "train.csv") << "a,b,class\n1,2,0\n3,4,1\n5,6,1\n";
    const std::string yaml =
        "apiVersion: ds/v1\nkind: TrainJob\nname: tiny\nmodel: {type: mlp, layers: [2, 2]}\n"
        "data: {train: {format: csv, file: train.csv, label: class}}\n";
    const auto spec = ParseJobYaml(yaml, "tiny.yaml", directory_.path().string());
    EXPECT_TRUE(spec.ok()) << spec.error().message;
    if (spec.ok()) spec_ = spec.value();
    WriteSpec();
  }

  void WriteSpec() {
    std::ofstream(directory_ / "spec.json", std::ios::trunc) << ResolvedJson(spec_);
  }

  test::Finished Run(std::vector<std::string> arguments) {
    test::ChildProcess::Options options;
    options.argv = {PS_TASK_PATH};
    options.argv.insert(options.argv.end(), arguments.begin(), arguments.end());
    options.output = directory_ / "output";
    auto finished = test::RunProgram(options, std::chrono::seconds(60));
    EXPECT_TRUE(finished.ok()) << finished.error().message;
    return finished.ok() ? finished.value() : test::Finished();
  }

  test::Finished Preflight() {
    return Run({"--preflight", "--spec", (directory_ / "spec.json").string(), "--result",
                (directory_ / "result").string()});
  }

  control::PreflightResultT ReadResult() {
    std::ifstream file(directory_ / "result", std::ios::binary);
    const std::string text(std::istreambuf_iterator<char>(file), {});
    auto message = control::Decode(std::as_bytes(std::span(text)));
    EXPECT_TRUE(message.ok()) << message.error().message;
    if (!message.ok() || message->body.AsPreflightResult() == nullptr) return {};
    return *message->body.AsPreflightResult();
  }

  test::TempDirectory directory_{"task"};
  JobSpec spec_;
};

TEST_F(PsTaskTest, APreflightWritesTheLayoutAndALineOfJson) {
  const auto finished = Preflight();
  EXPECT_EQ(finished.exit, 0) << finished.output;
  const auto line = nlohmann::json::parse(finished.output);
  EXPECT_EQ(line["ok"], true);
  EXPECT_EQ(line["records"], 3);
  EXPECT_EQ(line["parameters"], 6);
  const auto result = ReadResult();
  EXPECT_TRUE(result.ok);
  ASSERT_NE(result.layout, nullptr);
  EXPECT_EQ(result.layout->parameters, 6u);
  ASSERT_NE(result.data, nullptr);
  EXPECT_EQ(result.data->records, 3u);
}

TEST_F(PsTaskTest, APreflightThatFindsSomethingExitsWithSeven) {
  spec_.model.layers = {5, 2};
  WriteSpec();
  const auto finished = Preflight();
  EXPECT_EQ(finished.exit, 7);
  const auto result = ReadResult();
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.error, HasSubstr("model.layers: begins with 5"));
  EXPECT_EQ(result.layout, nullptr);
}

TEST_F(PsTaskTest, AJobFileThatCannotBeReadIsAFinding) {
  std::ofstream(directory_ / "spec.json", std::ios::trunc) << "{\"model\": 3}";
  EXPECT_EQ(Preflight().exit, 7);
  EXPECT_FALSE(ReadResult().ok);
  const auto missing = Run({"--preflight", "--spec", (directory_ / "gone.json").string()});
  EXPECT_EQ(missing.exit, 7);
  EXPECT_THAT(missing.output, HasSubstr("gone.json"));
}

TEST_F(PsTaskTest, WrongFlagsAreAUsageError) {
  EXPECT_EQ(Run({"--what"}).exit, 64);
  EXPECT_EQ(Run({"--preflight"}).exit, 64);
  EXPECT_EQ(Run({"--spec", "x"}).exit, 64);
  EXPECT_EQ(Run({"--preflight", "--spec", "x", "--log-level", "loud"}).exit, 64);
  EXPECT_EQ(Run({"--help"}).exit, 0);
}

TEST(ExamplesTest, EveryJobFileIsValid) {
  int files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(PS_EXAMPLES)) {
    if (entry.path().extension() != ".yaml") continue;
    std::ifstream file(entry.path());
    const std::string text(std::istreambuf_iterator<char>(file), {});
    const auto spec = ParseJobYaml(text, entry.path().string(), entry.path().parent_path());
    EXPECT_TRUE(spec.ok()) << spec.error().message;
    ++files;
  }
  EXPECT_GE(files, 5);
}

TEST_F(PsTaskTest, WithoutAnAgentItEnds) {
  const auto finished = Run({"--spec", (directory_ / "spec.json").string(), "--ring",
                             (directory_ / "ring").string(), "--control-fd", "77"});
  EXPECT_NE(finished.exit, 0);
  EXPECT_LT(finished.exit, 128) << finished.output;
}

}  // namespace
}  // namespace ps::worker
