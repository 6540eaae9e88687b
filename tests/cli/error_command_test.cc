// `ds-cli explain`, and how errors are written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/commands.h"
#include "cli/output.h"
#include "common/error_catalogue.h"
#include "tests/cli/test_environment.h"

namespace ps::cli {
namespace {

using nlohmann::json;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

std::string Written(OutputFormat format, const Error& error) {
  std::ostringstream out;
  WriteError(out, format, error);
  return out.str();
}

TEST(ErrorCommandTest, OneCodeIsExplained) {
  TestEnvironment test;
  ASSERT_EQ(test.Run({"explain", "DS-E0801"}), 0) << test.errors();
  EXPECT_THAT(test.output(), StartsWith("DS-E0801: there is no such job\n\ncause        "));
  EXPECT_THAT(test.output(), HasSubstr("\nnext         `ds-cli job list`"));
  EXPECT_THAT(test.output(), EndsWith("kind         not_found\nexit status  3\n"));
  ASSERT_EQ(test.Run({"explain", "e801", "-o", "json"}), 0) << test.errors();
  const json error = json::parse(test.output())["error"];
  EXPECT_EQ(error["code"], "DS-E0801");
  EXPECT_EQ(error["title"], "there is no such job");
  EXPECT_EQ(error["exit_status"], 3);
  EXPECT_EQ(error["cause"], FindError(ErrorId::kJobUnknown)->cause);
  EXPECT_EQ(error["next"], FindError(ErrorId::kJobUnknown)->next);
  ASSERT_EQ(test.Run({"explain", "801", "-o", "name"}), 0);
  EXPECT_EQ(test.output(), "DS-E0801\n");
}

TEST(ErrorCommandTest, WithoutACodeAllAreListed) {
  TestEnvironment test;
  ASSERT_EQ(test.Run({"explain"}), 0) << test.errors();
  EXPECT_THAT(test.output(), StartsWith("CODE      ERROR\nDS-E0001  "));
  EXPECT_THAT(test.output(), HasSubstr("\nDS-E0801  there is no such job\n"));
  ASSERT_EQ(test.Run({"explain", "-o", "json"}), 0);
  EXPECT_EQ(json::parse(test.output())["errors"].size(), ErrorCatalogue().size());
  ASSERT_EQ(test.Run({"explain", "-o", "name"}), 0);
  EXPECT_THAT(test.output(), StartsWith("DS-E0001\nDS-E0002\n"));
  EXPECT_EQ(ErrorCodes().size(), ErrorCatalogue().size());
}

TEST(ErrorCommandTest, AnUnknownCodeIsAnErrorWithACode) {
  TestEnvironment test;
  for (const char* code : {"DS-E9998", "nonsense"}) {
    EXPECT_EQ(test.Run({"explain", code}), 3);
    EXPECT_THAT(test.errors(), StartsWith("ds-cli: error DS-E0111: `" + std::string(code)));
  }
  EXPECT_EQ(test.Run({"explain", "DS-E0801", "--markdown"}), 2);
}

TEST(ErrorCommandTest, TheDocumentHasEveryCode) {
  TestEnvironment test;
  ASSERT_EQ(test.Run({"explain", "--markdown"}), 0) << test.errors();
  for (const ErrorEntry& entry : ErrorCatalogue()) {
    EXPECT_THAT(test.output(),
                HasSubstr("\n### " + ErrorIdName(entry.id) + ": " + entry.title + "\n"));
  }
  for (const ErrorGroup& group : ErrorGroups()) {
    EXPECT_THAT(test.output(), HasSubstr("\n## " + std::string(group.name) + "\n"));
  }
}

TEST(WriteErrorTest, AnErrorOfItsOwnIdSaysWhatToDoNext) {
  EXPECT_THAT(Written(OutputFormat::kTable, {ErrorId::kJobUnknown, "there is no job 7"}),
              StartsWith("ds-cli: error DS-E0801: there is no job 7\n  next: `ds-cli job list`"));
  EXPECT_EQ(Written(OutputFormat::kTable, {ErrorCode::kConflict, "it is there already"}),
            "ds-cli: error DS-E0005: it is there already\n");
}

TEST(WriteErrorTest, EachFindingHasALineOfItsOwn) {
  EXPECT_THAT(
      Written(OutputFormat::kTable, {ErrorId::kJobFileFindings, "a.yaml:1: x\na.yaml:2: y"}),
      StartsWith("ds-cli: error DS-E0207: the job file is wrong in several places:\n"
                 "a.yaml:1: x\na.yaml:2: y\n  next: "));
}

TEST(WriteErrorTest, ProgramsGetAnObjectOnOneLine) {
  const Error error{ErrorId::kJobUnknown, "there is\n\xff no job"};
  const std::string text = Written(OutputFormat::kJson, error);
  EXPECT_EQ(text.find('\n'), text.size() - 1);
  const json read = json::parse(text);
  EXPECT_EQ(read["apiVersion"], "ds/v1");
  EXPECT_EQ(read["error"]["code"], "DS-E0801");
  EXPECT_EQ(read["error"]["kind"], "not_found");
  EXPECT_THAT(read["error"]["message"].get<std::string>(), StartsWith("there is\n"));
  EXPECT_EQ(read["error"]["next"], FindError(ErrorId::kJobUnknown)->next);
  EXPECT_THAT(Written(OutputFormat::kJson, {ErrorCode::kIo, "x"}), Not(HasSubstr("next")));
  EXPECT_THAT(Written(OutputFormat::kYaml, error), HasSubstr("  code: DS-E0801\n"));
}

// An id of a newer coordinator.
TEST(WriteErrorTest, AnIdThatIsNotInTheCatalogueIsShownAlone) {
  Error error{ErrorCode::kConflict, "not now"};
  error.id = static_cast<ErrorId>(9998);
  EXPECT_EQ(Written(OutputFormat::kTable, error), "ds-cli: error DS-E9998: not now\n");
}

TEST(WriteErrorTest, WhatIsWrongWithAJobFileHasItsCode) {
  TestEnvironment test;
  const std::string head =
      "apiVersion: ds/v1\nkind: TrainJob\nname: x\nmodel: {type: mlp, layers: [784, 10]}\n"
      "data: {train: {format: idx, images: a, labels: b}}\n";
  const auto code = [&](const std::string& rest) {
    const std::string file = test.Write("job.yaml", head + rest);
    EXPECT_EQ(test.Run({"job", "submit", file, "--dry-run", "--offline", "-o", "json"}), 7) << rest;
    return json::parse(test.errors())["error"]["code"].get<std::string>();
  };
  EXPECT_EQ(code("training: {epochs: 1}\ntrainin: {epochs: 1}\n"), "DS-E0203");
  EXPECT_EQ(code("training: {epochs: -1}\n"), "DS-E0205");
  EXPECT_EQ(code("trainin: 1\ntraining: {epochs: -1}\n"), "DS-E0207");
  EXPECT_EQ(code("training: {epochs: 1\n"), "DS-E0202");
  EXPECT_EQ(test.Run({"job", "submit", "/nowhere.yaml"}), 3);
  EXPECT_THAT(test.errors(),
              StartsWith("ds-cli: error DS-E0201: cannot read the job file /nowhere"));
}

}  // namespace
}  // namespace ps::cli
