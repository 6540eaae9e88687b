#include "cli/app.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/commands.h"
#include "tests/cli/test_environment.h"

namespace ps::cli {
namespace {

using testing::HasSubstr;

const std::vector<std::vector<std::string>> kCommands = {
    {"job", "submit"},  {"job", "list"},   {"job", "get"},       {"job", "describe"},
    {"job", "logs"},    {"job", "wait"},   {"job", "cancel"},    {"job", "events"},
    {"job", "explain"}, {"ckpt", "list"},  {"ckpt", "describe"}, {"ckpt", "verify"},
    {"ckpt", "export"}, {"node", "list"},  {"local", "up"},      {"local", "down"},
    {"job", "suspend"}, {"job", "resume"}, {"job", "restart"},   {"local", "status"},
    {"completion"},     {"version"},       {"explain"}};

TEST(AppTest, WithoutArgumentsTheHelpIsShown) {
  TestEnvironment test;
  EXPECT_EQ(test.Run({}), 0);
  EXPECT_THAT(test.output(), HasSubstr("Usage: ds-cli [OPTIONS]"));
  EXPECT_THAT(test.output(), HasSubstr("ds-cli local up"));
  EXPECT_THAT(test.output(), HasSubstr("124 timeout"));
  EXPECT_EQ(test.errors(), "");
}

TEST(AppTest, EveryCommandHasHelpWithExamples) {
  for (const auto& command : kCommands) {
    TestEnvironment test;
    auto arguments = command;
    arguments.emplace_back("--help");
    EXPECT_EQ(test.Run(arguments), 0);
    EXPECT_THAT(test.output(), HasSubstr("Examples:\n  ")) << command.back();
    EXPECT_THAT(test.output(), HasSubstr("ds-cli " + command[0])) << command.back();
    EXPECT_EQ(test.errors(), "");
  }
}

TEST(AppTest, AnUnknownCommandNamesTheNearest) {
  TestEnvironment test;
  EXPECT_EQ(test.Run({"jbo", "list"}), 2);
  EXPECT_THAT(test.errors(), HasSubstr("`jbo` is not a command of ds-cli, did you mean `job`?"));
  EXPECT_EQ(test.Run({"job", "submt", "x.yaml"}), 2);
  EXPECT_THAT(test.errors(), HasSubstr("ds-cli job, did you mean `submit`?"));
  EXPECT_EQ(test.Run({"ckpt", "frobnicate"}), 2);
  EXPECT_THAT(test.errors(), HasSubstr("the commands are list describe verify"));
  EXPECT_EQ(test.output(), "");
}

TEST(AppTest, OptionsBeforeTheCommandAreSteppedOver) {
  TestEnvironment test;
  EXPECT_EQ(test.Run({"--coordinator", "job", "--output=json", "nod", "list"}), 2);
  EXPECT_THAT(test.errors(), HasSubstr("`nod` is not a command"));
  EXPECT_EQ(test.Run({"-o", "json", "version"}), 0);
  EXPECT_THAT(test.output(), HasSubstr("\"client\""));
}

TEST(AppTest, AGroupWithoutCommandShowsItsCommands) {
  TestEnvironment test;
  EXPECT_EQ(test.Run({"job"}), 2);
  EXPECT_THAT(test.errors(), HasSubstr("submit"));
  EXPECT_THAT(test.errors(), HasSubstr("ds-cli job: error DS-E0101: a command is missing"));
  EXPECT_EQ(test.output(), "");
}

TEST(AppTest, AnUnknownOptionNamesTheNearest) {
  TestEnvironment test;
  EXPECT_EQ(test.Run({"job", "submit", "x.yaml", "--wiat"}), 2);
  EXPECT_THAT(test.errors(), HasSubstr("did you mean `--wait`?"));
  EXPECT_THAT(test.errors(), HasSubstr("See `ds-cli job submit --help`."));
}

TEST(AppTest, MissingAndContradictoryArgumentsAreUsageErrors) {
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{"job", "submit"},
                                             {"job", "get"},
                                             {"job", "get", "a", "b"},
                                             {"job", "submit", "x", "--dry-run", "--wait"},
                                             {"job", "submit", "x", "--timeout", "3s"},
                                             {"job", "wait", "7", "--timeout", "soon"},
                                             {"job", "logs", "7", "--worker", "-3"},
                                             {"job", "list", "-o", "xml"},
                                             {"local", "up", "--servers", "0"},
                                             {"local", "up", "--servers", "many"},
                                             {"local", "up", "--timeout", "soon"},
                                             {"ckpt", "verify", "a", "--dir", "b"},
                                             {"ckpt", "verify"},
                                             {"completion", "tcsh"},
                                             {"completion"}}) {
    TestEnvironment test;
    test.Set("DS_COORDINATOR", "http://127.0.0.1:1");
    EXPECT_EQ(test.Run(arguments), 2) << testing::PrintToString(arguments) << test.errors();
    EXPECT_NE(test.errors(), "");
    EXPECT_EQ(test.output(), "");
  }
}

TEST(AppTest, TheVersionIsShown) {
  TestEnvironment test;
  EXPECT_EQ(test.Run({"version"}), 0);
  EXPECT_EQ(test.output(), "ds-cli " PS_VERSION "\n");
  EXPECT_EQ(test.Run({"--version"}), 0);
  EXPECT_EQ(test.output(), "ds-cli " PS_VERSION "\n");
}

TEST(AppTest, CompletionsNameEveryCommandAndOption) {
  for (const char* shell : {"bash", "zsh", "fish"}) {
    TestEnvironment test;
    EXPECT_EQ(test.Run({"completion", shell}), 0);
    for (const auto& command : kCommands) {
      EXPECT_THAT(test.output(), HasSubstr(command.back())) << shell;
    }
    EXPECT_THAT(test.output(), HasSubstr("dry-run")) << shell;
  }
}

TEST(AppTest, TheBashCompletionIsAScriptThatBashAccepts) {
  TestEnvironment test;
  ASSERT_EQ(test.Run({"completion", "bash"}), 0);
  const std::string script = test.Write("completion", test.output());
  const std::string command =
      "bash -c '. \"" + script +
      "\"; complete_with() { COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _ds_cli; echo "
      "\"${COMPREPLY[*]}\"; }; complete_with ds-cli job su; complete_with ds-cli lo; "
      "complete_with ds-cli -o json job submit --dr' > \"" +
      script + ".out\"";
  ASSERT_EQ(std::system(command.c_str()), 0);
  std::FILE* file = std::fopen((script + ".out").c_str(), "r");
  ASSERT_NE(file, nullptr);
  char text[256] = {};
  const std::size_t size = std::fread(text, 1, sizeof text - 1, file);
  (void)std::fclose(file);
  EXPECT_EQ(std::string(text, size), "submit suspend\nlocal\n--dry-run\n");
}

TEST(AppTest, EveryErrorCodeHasItsExitStatus) {
  EXPECT_EQ(ExitCodeOf(ErrorCode::kInternal), ExitCode::kInternal);
  EXPECT_EQ(ExitCodeOf(ErrorCode::kUsage), ExitCode::kUsage);
  EXPECT_EQ(ExitCodeOf(ErrorCode::kNotFound), ExitCode::kNotFound);
  EXPECT_EQ(ExitCodeOf(ErrorCode::kConflict), ExitCode::kConflict);
  EXPECT_EQ(ExitCodeOf(ErrorCode::kDenied), ExitCode::kDenied);
  EXPECT_EQ(ExitCodeOf(ErrorCode::kUnreachable), ExitCode::kUnreachable);
  EXPECT_EQ(ExitCodeOf(ErrorCode::kMaybeApplied), ExitCode::kUnreachable);
  EXPECT_EQ(ExitCodeOf(ErrorCode::kInvalid), ExitCode::kInvalid);
  EXPECT_EQ(ExitCodeOf(ErrorCode::kTimeout), ExitCode::kTimeout);
  EXPECT_EQ(ExitCodeOf(ErrorCode::kClosed), ExitCode::kInterrupted);
  EXPECT_EQ(static_cast<int>(ExitCode::kInterrupted), 130);
  EXPECT_EQ(static_cast<int>(ExitCode::kTimeout), 124);
}

}  // namespace
}  // namespace ps::cli
