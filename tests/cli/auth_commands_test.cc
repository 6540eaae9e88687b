#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "cli/output.h"
#include "common/net/node_keys.h"
#include "common/zookeeper/secret.h"
#include "tests/cli/test_environment.h"
#include "tests/support/temp_directory.h"

namespace ps::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class AuthCommandsTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return (directory_ / name).string(); }
  int Create(const std::string& role, const std::string& name) {
    return test_.Run(
        {"auth", "create", role, name, "--key", Path(name + ".key"), "--trusted", Path("trusted")});
  }
  std::string Trusted() const {
    std::ostringstream text;
    text << std::ifstream(Path("trusted")).rdbuf();
    return text.str();
  }

  const test::TempDirectory directory_;
  TestEnvironment test_;
};

TEST_F(AuthCommandsTest, APairIsMadeForItsOwnerAloneAndTrusted) {
  ASSERT_EQ(Create("server", "node7"), 0) << test_.errors();
  struct stat state {};
  ASSERT_EQ(::stat(Path("node7.key").c_str(), &state), 0);
  EXPECT_EQ(state.st_mode & 0777, 0600U);
  const auto pair = net::ReadKeyFile(Path("node7.key"));
  const auto list = net::TrustedKeys::ReadFile(Path("trusted"));
  ASSERT_TRUE(pair.ok() && list.ok());
  const net::TrustedKey* const key = list->Find(pair->public_key, 0);
  ASSERT_NE(key, nullptr);
  EXPECT_EQ(key->role, net::Role::kServer);
  EXPECT_THAT(test_.output(), HasSubstr(pair->public_key));
  EXPECT_THAT(test_.output() + test_.errors(), Not(HasSubstr(pair->secret_key)));
}

TEST_F(AuthCommandsTest, NothingIsOverwrittenAndNobodyIsThereTwice) {
  ASSERT_EQ(Create("server", "node7"), 0);
  const std::string before = Trusted();
  EXPECT_EQ(Create("server", "node7"), 4);
  EXPECT_THAT(test_.errors(), HasSubstr("ds-cli auth revoke node7"));
  EXPECT_EQ(Create("worker", "node7"), 4);  // the file
  EXPECT_THAT(test_.errors(), HasSubstr("a key is not overwritten"));
  EXPECT_EQ(Trusted(), before);
}

TEST_F(AuthCommandsTest, TheSecretOfZooKeeperIsForItsOwnerAlone) {
  ASSERT_EQ(test_.Run({"auth", "zookeeper", "--secret", Path("zookeeper")}), 0);
  const auto secret = zk::ReadSecret(Path("zookeeper"));
  ASSERT_TRUE(secret.ok()) << secret.error().message;
  EXPECT_EQ(secret->rfind("ds:", 0), 0u);
  EXPECT_EQ(secret->size(), 43u);
  EXPECT_EQ(test_.Run({"auth", "zookeeper", "--secret", Path("zookeeper")}), 4);
  EXPECT_EQ(*zk::ReadSecret(Path("zookeeper")), *secret);
}

TEST_F(AuthCommandsTest, RevokedKeysLeaveTheListAndCommentsStay) {
  ASSERT_EQ(Create("server", "a"), 0);
  std::ofstream(Path("trusted"), std::ios::app) << "# the left rack\n";
  ASSERT_EQ(Create("worker", "b"), 0);
  EXPECT_EQ(test_.Run({"auth", "revoke", "b", "--role", "server", "--trusted", Path("trusted")}),
            3);
  EXPECT_EQ(test_.Run({"auth", "revoke", "b", "--trusted", Path("trusted")}), 0);
  EXPECT_THAT(Trusted(), HasSubstr("# the left rack\n"));
  EXPECT_THAT(Trusted(), HasSubstr("server a "));
  EXPECT_THAT(Trusted(), Not(HasSubstr("worker b ")));
  EXPECT_EQ(test_.Run({"auth", "list", "--trusted", Path("trusted"), "-o", "json"}), 0);
  const Json list = Json::parse(test_.output());
  ASSERT_EQ(list["keys"].size(), 1U);
  EXPECT_EQ(list["keys"][0]["name"], "a");
  EXPECT_EQ(list["keys"][0]["expired"], false);
}

TEST_F(AuthCommandsTest, WhatMakesNoSenseIsSaid) {
  EXPECT_EQ(Create("master", "a"), 2);
  EXPECT_THAT(test_.errors(), HasSubstr("`master` is no role"));
  EXPECT_EQ(test_.Run({"auth", "create", "server", "a b", "--trusted", Path("trusted")}), 2);
  EXPECT_EQ(test_.Run({"auth", "create", "server", "a", "--until", "soon", "--trusted",
                       Path("trusted"), "--key", Path("a.key")}),
            2);
  EXPECT_THAT(test_.errors(), HasSubstr("what follows `until` is no date"));
  EXPECT_EQ(test_.Run({"auth", "list", "--trusted", Path("trusted")}), 1);
  std::ofstream(Path("trusted")) << "server a nonsense\n";
  EXPECT_EQ(test_.Run({"auth", "list", "--trusted", Path("trusted")}), 7);
  EXPECT_EQ(Create("worker", "b"), 7);
  EXPECT_FALSE(std::filesystem::exists(Path("b.key")));
}

}  // namespace
}  // namespace ps::cli
