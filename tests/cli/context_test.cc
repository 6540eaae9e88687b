#include "cli/context.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "common/net/api_tokens.h"
#include "tests/cli/test_environment.h"

namespace ps::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(ContextTest, FlagsComeBeforeTheVariableAndTheVariableBeforeTheFile) {
  TestEnvironment test;
  Environment& environment = test.environment();
  ASSERT_TRUE(WriteContextFile(environment, Context{{"http://file:1"}, "", "/d"}).ok());
  auto context = FindContext(environment, {});
  ASSERT_TRUE(context.ok());
  EXPECT_THAT(context->coordinators, ElementsAre("http://file:1"));
  EXPECT_EQ(context->directory, "/d");
  test.Set("DS_COORDINATOR", "http://a:1,http://b:2");
  context = FindContext(environment, {});
  EXPECT_THAT(context->coordinators, ElementsAre("http://a:1", "http://b:2"));
  EXPECT_EQ(context->source, "DS_COORDINATOR");
  context = FindContext(environment, {"http://c:3", "http://d:4"});
  EXPECT_THAT(context->coordinators, ElementsAre("http://c:3", "http://d:4"));
  EXPECT_EQ(context->source, "--coordinator");
}

TEST(ContextTest, WhereNothingIsKnownEveryPlaceIsNamed) {
  TestEnvironment test;
  const auto context = FindContext(test.environment(), {});
  ASSERT_FALSE(context.ok());
  EXPECT_EQ(context.error().code, ErrorCode::kUnreachable);
  EXPECT_THAT(context.error().message, HasSubstr("--coordinator"));
  EXPECT_THAT(context.error().message, HasSubstr("DS_COORDINATOR"));
  EXPECT_THAT(context.error().message, HasSubstr(ContextPath(test.environment()).string()));
}

TEST(ContextTest, ADamagedFileIsInvalid) {
  for (const char* text : {"", "{", "[]", "{\"coordinators\": []}", "{\"coordinators\": 3}"}) {
    TestEnvironment test;
    test.Write("state/local.json", text);
    const auto context = FindContext(test.environment(), {});
    ASSERT_FALSE(context.ok()) << text;
    EXPECT_EQ(context.error().code, ErrorCode::kInvalid) << text;
  }
}

TEST(ContextTest, TheTokenIsInAFileOrAVariable) {
  TestEnvironment test;
  Environment& environment = test.environment();
  const std::string first = net::MakeApiToken().value();
  const std::string second = net::MakeApiToken().value();
  const std::string third = net::MakeApiToken().value();
  const auto write = [&test](const std::string& name, const std::string& text) {
    const std::string path = test.Write(name, text);
    EXPECT_EQ(::chmod(path.c_str(), 0600), 0);
    return path;
  };
  Context local{{"https://file:1"}, "", "/d"};
  local.access.authorities = "/d/ca.crt";
  local.token_file = write("local.token", first + "\n");
  ASSERT_TRUE(WriteContextFile(environment, local).ok());
  EXPECT_EQ(test.Run({"local", "status", "--dir", "/nowhere"}), 3);
  auto context = FindContext(environment, {});
  ASSERT_TRUE(context.ok()) << context.error().message;
  EXPECT_EQ(context->access.token, first);
  EXPECT_EQ(context->access.authorities, "/d/ca.crt");
  EXPECT_TRUE(FindContext(environment, {"https://other:1"})->access.token.empty())
      << "the local cluster's token is for that alone";
  test.Set("DS_TOKEN_FILE", write("anna.token", "# anna\n" + second + "\n"));
  test.Set("DS_CA", "/e/ca.crt");
  context = FindContext(environment, {"https://other:1"});
  ASSERT_TRUE(context.ok()) << context.error().message;
  EXPECT_EQ(context->access.token, second);
  EXPECT_EQ(context->access.authorities, "/e/ca.crt");
  test.Set("DS_TOKEN", third);
  EXPECT_EQ(FindContext(environment, {})->access.token, third);
  test.Set("DS_TOKEN", "secret?");
  context = FindContext(environment, {});
  ASSERT_FALSE(context.ok());
  EXPECT_EQ(context.error().code, ErrorCode::kUsage);
  EXPECT_THAT(context.error().message, testing::Not(HasSubstr("secret?")));
}

TEST(ContextTest, ATokenThatOthersMayReadIsRefused) {
  TestEnvironment test;
  const std::string path = test.Write("token", net::MakeApiToken().value() + "\n");
  ASSERT_EQ(::chmod(path.c_str(), 0644), 0);
  test.Set("DS_TOKEN_FILE", path);
  test.Set("DS_COORDINATOR", "https://a:1");
  const auto context = FindContext(test.environment(), {});
  ASSERT_FALSE(context.ok());
  EXPECT_EQ(context.error().code, ErrorCode::kDenied);
  EXPECT_THAT(context.error().message, HasSubstr("chmod 600"));
  EXPECT_EQ(test.Run({"job", "list"}), 5);
}

TEST(ContextTest, ThePathFollowsTheVariables) {
  TestEnvironment test;
  test.Set("DS_STATE", "");
  test.Set("HOME", "/h");
  EXPECT_EQ(ContextPath(test.environment()), "/h/.local/state/ds/local.json");
  test.Set("XDG_STATE_HOME", "/x");
  EXPECT_EQ(ContextPath(test.environment()), "/x/ds/local.json");
  test.Set("DS_STATE", "/s.json");
  EXPECT_EQ(ContextPath(test.environment()), "/s.json");
}

TEST(ContextTest, RemovingAFileThatIsNotThereIsFine) {
  TestEnvironment test;
  EXPECT_TRUE(RemoveContextFile(test.environment()).ok());
}

}  // namespace
}  // namespace ps::cli
