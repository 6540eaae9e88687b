#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "cli/output.h"
#include "common/net/api_tokens.h"
#include "common/net/tls.h"
#include "tests/cli/test_environment.h"
#include "tests/support/temp_directory.h"

namespace ps::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class TokenCommandsTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  int Create(const std::string& role, const std::string& name,
             const std::vector<std::string>& more = {}) {
    std::vector<std::string> words = {
        "token", "create", role, name, "--to", Path(name + ".token"), "--tokens", Path("tokens")};
    words.insert(words.end(), more.begin(), more.end());
    return test_.Run(words);
  }
  std::string Read(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(Path(name)).rdbuf();
    return text.str();
  }
  mode_t ModeOf(const std::string& name) const {
    struct stat state {};
    return ::stat(Path(name).c_str(), &state) == 0 ? state.st_mode & 0777 : 0;
  }

  const test::TempDirectory folder_;
  TestEnvironment test_;
};

TEST_F(TokenCommandsTest, ATokenIsMadeForItsOwnerAloneAndOnlyItsHashIsListed) {
  ASSERT_EQ(Create("submitter", "anna", {"--until", "2040-02-29"}), 0) << test_.errors();
  EXPECT_EQ(ModeOf("anna.token"), 0600U);
  const std::string token = net::ReadApiTokenFile(Path("anna.token")).value();
  const auto list = net::ApiTokens::ReadFile(Path("tokens"));
  ASSERT_TRUE(list.ok()) << list.error().message;
  const net::ApiToken* const known = list->Find(token);
  ASSERT_NE(known, nullptr);
  EXPECT_EQ(known->role, net::ApiRole::kSubmitter);
  EXPECT_EQ(known->name, "anna");
  EXPECT_TRUE(known->until_ms.has_value());
  EXPECT_THAT(test_.output() + test_.errors() + Read("tokens"), Not(HasSubstr(token)));
}

TEST_F(TokenCommandsTest, NothingIsOverwrittenAndNobodyIsThereTwice) {
  ASSERT_EQ(Create("viewer", "anna"), 0);
  const std::string before = Read("tokens");
  EXPECT_EQ(Create("admin", "anna"), 4);
  EXPECT_THAT(test_.errors(), HasSubstr("ds-cli token revoke anna"));
  EXPECT_EQ(Create("admin", "bob", {"--to", Path("anna.token")}), 2) << "--to twice";
  EXPECT_EQ(test_.Run({"token", "create", "admin", "bob", "--to", Path("anna.token"), "--tokens",
                       Path("tokens")}),
            4);
  EXPECT_EQ(Read("tokens"), before);
}

TEST_F(TokenCommandsTest, RevokedTokensLeaveTheListAndCommentsStay) {
  ASSERT_EQ(Create("viewer", "anna"), 0);
  std::ofstream(Path("tokens"), std::ios::app) << "# the other team\n";
  ASSERT_EQ(Create("admin", "bob", {"--until", "2020-01-01"}), 0);
  EXPECT_EQ(test_.Run({"token", "list", "--tokens", Path("tokens")}), 0);
  EXPECT_THAT(test_.output(), HasSubstr("2020-01-01, expired"));
  EXPECT_EQ(test_.Run({"token", "revoke", "carl", "--tokens", Path("tokens")}), 3);
  EXPECT_EQ(test_.Run({"token", "revoke", "bob", "--tokens", Path("tokens")}), 0);
  EXPECT_THAT(Read("tokens"), HasSubstr("# the other team\n"));
  EXPECT_EQ(test_.Run({"token", "list", "--tokens", Path("tokens"), "-o", "json"}), 0);
  const Json list = Json::parse(test_.output());
  ASSERT_EQ(list["tokens"].size(), 1U);
  EXPECT_EQ(list["tokens"][0]["name"], "anna");
  EXPECT_EQ(list["tokens"][0]["role"], "viewer");
  EXPECT_EQ(list["tokens"][0]["expired"], false);
}

TEST_F(TokenCommandsTest, WhatMakesNoSenseIsSaid) {
  EXPECT_EQ(Create("master", "anna"), 2);
  EXPECT_THAT(test_.errors(), HasSubstr("`master` is no role"));
  EXPECT_EQ(Create("viewer", "a b"), 2);
  EXPECT_EQ(Create("viewer", "anna", {"--until", "soon"}), 2);
  EXPECT_EQ(test_.Run({"token", "list", "--tokens", Path("tokens")}), 1);
  std::ofstream(Path("tokens")) << "viewer anna nonsense\n";
  EXPECT_EQ(test_.Run({"token", "list", "--tokens", Path("tokens")}), 7);
  EXPECT_EQ(Create("viewer", "bob"), 7);
  EXPECT_FALSE(std::filesystem::exists(Path("bob.token")));
}

class CertificateCommandTest : public TokenCommandsTest {
 protected:
  int Certify(const std::string& name, const std::vector<std::string>& more = {}) {
    std::vector<std::string> words = {
        "auth",        "certificate",       name,   "--cert",       Path(name + ".crt"),
        "--key",       Path(name + ".key"), "--ca", Path("ca.crt"), "--ca-key",
        Path("ca.key")};
    words.insert(words.end(), more.begin(), more.end());
    return test_.Run(words);
  }
};

TEST_F(CertificateCommandTest, TheAuthorityIsMadeOnceAndKeysAreForTheirOwnersAlone) {
  ASSERT_EQ(Certify("node1"), 0) << test_.errors();
  EXPECT_THAT(test_.errors(), HasSubstr("A new authority was made"));
  EXPECT_EQ(ModeOf("node1.key"), 0600U);
  EXPECT_EQ(ModeOf("ca.key"), 0600U);
  EXPECT_TRUE(net::OpenServerTls({Path("node1.crt"), Path("node1.key")}).ok());
  const std::string authority = Read("ca.crt");
  ASSERT_EQ(Certify("node2", {"--host", "node2", "--host", "10.0.0.7", "-o", "json"}), 0);
  EXPECT_EQ(Json::parse(test_.output())["hosts"], (Json{"node2", "10.0.0.7"}));
  EXPECT_EQ(Read("ca.crt"), authority);
}

TEST_F(CertificateCommandTest, ACertificateIsMadeAnewForTheSameKey) {
  ASSERT_EQ(Certify("node1"), 0);
  const std::string key = Read("node1.key");
  const std::string certificate = Read("node1.crt");
  ASSERT_EQ(Certify("node1", {"--days", "90"}), 0) << test_.errors();
  EXPECT_EQ(Read("node1.key"), key);
  EXPECT_NE(Read("node1.crt"), certificate);
  EXPECT_TRUE(net::OpenServerTls({Path("node1.crt"), Path("node1.key")}).ok());
}

TEST_F(CertificateCommandTest, WhatMakesNoSenseIsSaidAndNothingIsWritten) {
  EXPECT_EQ(Certify("node1", {"--host", "a,DNS:b"}), 2);
  EXPECT_EQ(Certify("node1", {"--days", "0"}), 2);
  EXPECT_FALSE(std::filesystem::exists(Path("ca.crt")));
  EXPECT_FALSE(std::filesystem::exists(Path("node1.key")));
  ASSERT_EQ(Certify("node1"), 0);
  std::filesystem::remove(Path("ca.key"));
  EXPECT_EQ(Certify("node2"), 3);
  EXPECT_THAT(test_.errors(), HasSubstr("an authority is both"));
  std::ofstream(Path("ca.key")) << "junk";
  EXPECT_EQ(Certify("node2"), 5) << "others may read it";
  ::chmod(Path("ca.key").c_str(), 0600);
  EXPECT_EQ(Certify("node2"), 7);
  EXPECT_FALSE(std::filesystem::exists(Path("node2.key")));
}

}  // namespace
}  // namespace ps::cli
