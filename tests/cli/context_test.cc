#include "cli/context.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
