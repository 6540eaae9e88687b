#include "common/net/daemon_options.h"

#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "tests/support/temp_directory.h"

namespace ps::net {
namespace {

const std::vector<std::string> kKeys = {"zookeeper", "name", "lanes", "log-level"};

Result<Configuration> Parse(const std::string& text) {
  std::istringstream stream(text);
  return ParseConfiguration(stream, kKeys);
}

std::string ErrorOf(const std::string& text) {
  const auto parsed = Parse(text);
  if (parsed.ok()) return "";
  EXPECT_EQ(parsed.error().code, ErrorCode::kInvalid);
  return parsed.error().message;
}

TEST(ConfigurationTest, KeysHaveValuesWithCommasAndSpacesAsTheyStand) {
  const auto parsed = Parse(
      "# a comment\n"
      "; another\n"
      "\n"
      "  zookeeper = zk1:2181,zk2:2181/ds   # behind a value\r\n"
      "name=rack 4, left\n"
      "lanes =\n");
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(parsed->at("zookeeper").value, "zk1:2181,zk2:2181/ds");
  EXPECT_EQ(parsed->at("zookeeper").line, 4);
  EXPECT_EQ(parsed->at("name").value, "rack 4, left");
  EXPECT_EQ(parsed->at("lanes").value, "");
}

TEST(ConfigurationTest, QuotesKeepSpacesAndCommentSigns) {
  const auto parsed = Parse("name = \"  a # b; c='d' \"  # comment\nzookeeper='x=\"y\"'\n");
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(parsed->at("name").value, "  a # b; c='d' ");
  EXPECT_EQ(parsed->at("zookeeper").value, "x=\"y\"");
}

TEST(ConfigurationTest, ASignWithinAWordIsNoComment) {
  const auto parsed = Parse("name = node#4;5 # four\n");
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(parsed->at("name").value, "node#4;5");
}

TEST(ConfigurationTest, AnUnknownKeyIsAnErrorWithTheLineAndTheNearestKey) {
  EXPECT_EQ(ErrorOf("name = a\nlaness = 3\n"),
            "line 2: unknown key 'laness'; did you mean 'lanes'?");
  EXPECT_EQ(ErrorOf("colour = blue\n"), "line 1: unknown key 'colour'");
  EXPECT_EQ(ErrorOf("--lanes = 3\n"), "line 1: unknown key '--lanes'; did you mean 'lanes'?");
}

TEST(ConfigurationTest, AKeyTwiceIsAnErrorWithBothLines) {
  EXPECT_EQ(ErrorOf("name = a\nlanes = 2\nname = b\n"), "line 3: 'name' is in line 1 already");
}

TEST(ConfigurationTest, WhatIsNoKeyAndValueIsAnError) {
  EXPECT_EQ(ErrorOf("name\n"), "line 1: 'name' is not KEY = VALUE");
  EXPECT_EQ(ErrorOf("[server]\nname = a\n"), "line 1: '[server]': there are no sections");
  EXPECT_EQ(ErrorOf("name = \"a\n"), "line 1: name: the quote is not closed");
  EXPECT_EQ(ErrorOf("name = \"a\" b\n"), "line 1: name: 'b' follows the closing quote");
  EXPECT_EQ(ErrorOf(std::string("name = a\0b\n", 11)), "line 1: this is not text");
}

TEST(ConfigurationTest, AFileWithoutEndIsRefused) {
  std::string text;
  for (int line = 0; line <= kConfigurationLinesMax; ++line) text += "#\n";
  EXPECT_EQ(ErrorOf(text), "line 10001: the file is too long");
}

struct Ran {
  std::optional<int> status;
  std::string out;
  std::string err;
};

class DaemonOptionsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    options_.app().add_option("--name", name_, "name")->envname("DS_NAME");
    options_.app().add_option("--zookeeper", zookeeper_, "hosts")->required();
    options_.app().add_option("--lanes", lanes_, "threads")->check(CLI::Range(1, 64));
    ::unsetenv("DS_NAME");
  }

  void Write(const std::string& text) { std::ofstream(file()) << text; }
  std::string file() const { return (directory_ / "d.conf").string(); }

  Ran Parse(std::vector<std::string> words) {
    std::vector<const char*> argv = {"daemon"};
    for (const std::string& word : words) argv.push_back(word.c_str());
    ::testing::internal::CaptureStdout();
    ::testing::internal::CaptureStderr();
    Ran ran;
    ran.status = options_.Parse(static_cast<int>(argv.size()), argv.data());
    ran.out = ::testing::internal::GetCapturedStdout();
    ran.err = ::testing::internal::GetCapturedStderr();
    return ran;
  }

  test::TempDirectory directory_{"options"};
  DaemonOptions options_{"daemon", "A daemon."};
  std::string name_ = "default";
  std::string zookeeper_;
  int lanes_ = 4;
};

TEST_F(DaemonOptionsTest, TheFileGivesWhatTheCommandLineDoesNot) {
  Write("zookeeper = a:1,b:2/ds\nname = from the file\nlanes = 7\nlog-level = debug\n");
  const Ran ran = Parse({"--config", file(), "--lanes", "9"});
  ASSERT_FALSE(ran.status) << ran.err;
  EXPECT_EQ(zookeeper_, "a:1,b:2/ds");
  EXPECT_EQ(name_, "from the file");
  EXPECT_EQ(lanes_, 9);
  EXPECT_EQ(options_.log_level(), "debug");
  EXPECT_EQ(spdlog::default_logger()->level(), spdlog::level::debug);
}

TEST_F(DaemonOptionsTest, TheEnvironmentComesAfterTheFile) {
  ::setenv("DS_NAME", "of the unit", 1);
  Write("zookeeper = a:1\n");
  EXPECT_FALSE(Parse({"--config=" + file()}).status);
  EXPECT_EQ(name_, "of the unit");
}

TEST_F(DaemonOptionsTest, TheFileComesBeforeTheEnvironment) {
  ::setenv("DS_NAME", "of the unit", 1);
  Write("zookeeper = a:1\nname = mine\n");
  EXPECT_FALSE(Parse({"--config", file()}).status);
  EXPECT_EQ(name_, "mine");
}

TEST_F(DaemonOptionsTest, AnUnknownKeyEndsWith78AndNamesTheFile) {
  Write("zookeeper = a:1\nlane = 3\n");
  const Ran ran = Parse({"--config", file()});
  EXPECT_EQ(ran.status, 78);
  EXPECT_EQ(ran.err, "daemon: DS-E0103: " + file() +
                         ": line 2: unknown key 'lane'; did you mean 'lanes'?\n");
}

TEST_F(DaemonOptionsTest, AValueThatTheFlagRefusesEndsWith78AndNamesTheLine) {
  Write("zookeeper = a:1\n\nlanes = 65\n");
  const Ran ran = Parse({"--config", file()});
  EXPECT_EQ(ran.status, 78);
  EXPECT_EQ(ran.err.find("daemon: DS-E0103: " + file() + ": line 3: --lanes: "), 0u) << ran.err;
}

TEST_F(DaemonOptionsTest, AWordWhereANumberIsWantedEndsWith78AndNamesTheLine) {
  Write("zookeeper = a:1\nlanes = many\n");
  const Ran ran = Parse({"--config", file()});
  EXPECT_EQ(ran.status, 78);
  EXPECT_EQ(ran.err.find("daemon: DS-E0103: " + file() + ": line 2: "), 0u) << ran.err;
}

TEST_F(DaemonOptionsTest, TheSameValueOnTheCommandLineIsAUsageError) {
  Write("zookeeper = a:1\nlanes = 3\n");
  const Ran ran = Parse({"--config", file(), "--lanes", "65"});
  EXPECT_EQ(ran.status, 64);
  EXPECT_EQ(ran.err.find(file()), std::string::npos) << ran.err;
}

TEST_F(DaemonOptionsTest, WhatIsMissingEndsWith64WithoutAndWith78WithAFile) {
  EXPECT_EQ(Parse({}).status, 64);
  Write("");
  const Ran ran = Parse({"--config", file()});
  EXPECT_EQ(ran.status, 78);
  EXPECT_NE(ran.err.find("--zookeeper is required"), std::string::npos) << ran.err;
}

TEST_F(DaemonOptionsTest, AFileThatIsNotThereEndsWith78) {
  const Ran ran = Parse({"--zookeeper", "a:1", "--config", file()});
  EXPECT_EQ(ran.status, 78);
  EXPECT_NE(ran.err.find(file() + ": cannot be read: No such file"), std::string::npos) << ran.err;
}

TEST_F(DaemonOptionsTest, ADirectoryIsNoFile) {
  const Ran ran = Parse({"--zookeeper", "a:1", "--config", directory_.path().string()});
  EXPECT_EQ(ran.status, 78);
  EXPECT_NE(ran.err.find("is a directory"), std::string::npos) << ran.err;
}

TEST_F(DaemonOptionsTest, WhatIsForTheCommandLineOnlyIsNoKey) {
  for (const char* key : {"config", "check-config", "help", "version"}) {
    Write(std::string(key) + " = x\nzookeeper = a:1\n");
    DaemonOptions options("daemon", "A daemon.");
    const std::string path = file();
    const char* const argv[] = {"daemon", "--config", path.c_str()};
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(options.Parse(3, argv), 78) << key;
    EXPECT_NE(::testing::internal::GetCapturedStderr().find("unknown key"), std::string::npos);
  }
}

TEST_F(DaemonOptionsTest, AnUnknownLogLevelInTheFileEndsWith78) {
  Write("zookeeper = a:1\nlog-level = loud\n");
  EXPECT_EQ(Parse({"--config", file()}).status, 78);
}

TEST_F(DaemonOptionsTest, HelpNeedsNoGoodFile) {
  const Ran ran = Parse({"--config", file(), "--help"});
  EXPECT_EQ(ran.status, 0);
  EXPECT_NE(ran.out.find("--check-config"), std::string::npos);
}

TEST_F(DaemonOptionsTest, ASecondConfigIsRefused) {
  Write("zookeeper = a:1\n");
  EXPECT_EQ(Parse({"--config", file(), "--config", file()}).status, 64);
}

TEST_F(DaemonOptionsTest, CheckConfigIsKnownToTheCaller) {
  Write("zookeeper = a:1\n");
  EXPECT_FALSE(Parse({"--config", file(), "--check-config"}).status);
  EXPECT_TRUE(options_.check_only());
}

TEST_F(DaemonOptionsTest, AReloadTakesTheLogLevelAndNamesWhatNeedsARestart) {
  Write("zookeeper = a:1\nlanes = 2\n");
  ASSERT_FALSE(Parse({"--config", file()}).status);
  Write("zookeeper = a:1\nlanes = 3\nname = new\nlog-level = debug\n");
  ::testing::internal::CaptureStderr();
  EXPECT_TRUE(options_.Reload().ok());
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(spdlog::default_logger()->level(), spdlog::level::debug);
  EXPECT_NE(log.find("changed, and needs a restart: name lanes\n"), std::string::npos) << log;
  EXPECT_EQ(lanes_, 2);
}

TEST_F(DaemonOptionsTest, ALogLevelThatLeavesTheFileIsTheDefaultAgain) {
  Write("zookeeper = a:1\nlog-level = debug\n");
  ASSERT_FALSE(Parse({"--config", file()}).status);
  Write("zookeeper = a:1\n");
  EXPECT_TRUE(options_.Reload().ok());
  EXPECT_EQ(spdlog::default_logger()->level(), spdlog::level::info);
}

TEST_F(DaemonOptionsTest, AReloadOfABadFileChangesNothing) {
  Write("zookeeper = a:1\nlog-level = debug\n");
  ASSERT_FALSE(Parse({"--config", file()}).status);
  for (const char* bad : {"zookeeper = a:1\nlog-level = loud\n", "log-level = warn\nlane = 2\n"}) {
    Write(bad);
    const Status reloaded = options_.Reload();
    ASSERT_FALSE(reloaded.ok());
    EXPECT_NE(reloaded.error().message.find(file() + ": line 2: "), std::string::npos);
    EXPECT_EQ(spdlog::default_logger()->level(), spdlog::level::debug);
  }
}

TEST_F(DaemonOptionsTest, AFlagKeepsTheLogLevelOverAReload) {
  Write("zookeeper = a:1\n");
  ASSERT_FALSE(Parse({"--config", file(), "--log-level", "warn"}).status);
  Write("zookeeper = a:1\nlog-level = debug\n");
  EXPECT_TRUE(options_.Reload().ok());
  EXPECT_EQ(spdlog::default_logger()->level(), spdlog::level::warn);
}

TEST_F(DaemonOptionsTest, WithoutAFileThereIsNothingToReload) {
  ASSERT_FALSE(Parse({"--zookeeper", "a:1"}).status);
  EXPECT_TRUE(options_.Reload().ok());
}

}  // namespace
}  // namespace ps::net
