#include "common/net/api_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "tests/support/temp_directory.h"

namespace ps::net {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

const std::string kHash(64, 'a');

TEST(ApiTokensTest, TokensAreDifferentAndKnownByTheirForm) {
  std::set<std::string> made;
  for (int i = 0; i < 100; ++i) {
    const auto token = MakeApiToken();
    ASSERT_TRUE(token.ok());
    EXPECT_TRUE(IsApiToken(*token)) << *token;
    made.insert(*token);
  }
  EXPECT_EQ(made.size(), 100u);
  const std::string token = *made.begin();
  for (const std::string& other :
       {std::string(), token + "a", token.substr(1), token.substr(0, token.size() - 1) + "=",
        std::string(token.size(), 'a')}) {
    EXPECT_FALSE(IsApiToken(other)) << other;
  }
}

TEST(ApiTokensTest, TheHashIsSha256) {
  EXPECT_EQ(ApiTokenHash("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(ApiTokensTest, WhoHasATokenIsFoundUntilItsDate) {
  const std::string token = MakeApiToken().value();
  ApiToken anna{ApiRole::kSubmitter, "anna", ApiTokenHash(token), 1'800'000'000'000};
  const std::string text = "# people\n\nviewer grafana " + kHash + "\n" + ApiTokenLine(anna);
  const auto list = ApiTokens::Parse(text);
  ASSERT_TRUE(list.ok()) << list.error().message;
  const ApiToken* const found = list->Find(token);
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->name, "anna");
  EXPECT_EQ(found->role, ApiRole::kSubmitter);
  // The day of the line, at 00:00 UTC.
  EXPECT_FALSE(found->expired(*found->until_ms - 1));
  EXPECT_TRUE(found->expired(*found->until_ms));
  EXPECT_EQ(list->Find(token.substr(0, token.size() - 1)), nullptr);
  EXPECT_EQ(list->Find(""), nullptr);
  EXPECT_EQ(list->Find(found->hash), nullptr) << "the hash is no token";
  EXPECT_EQ(ApiTokens().Find(token), nullptr);
}

TEST(ApiTokensTest, AListThatMakesNoSenseNamesTheLine) {
  const std::pair<std::string, const char*> cases[] = {
      {"reader a " + kHash, "`reader` is no role"},
      {"viewer a*b " + kHash, "a name"},
      {"viewer a", "64 hex digits"},
      {"viewer a " + kHash + "0", "64 hex digits"},
      {"viewer a " + std::string(64, 'A'), "64 hex digits"},
      {"viewer a " + kHash + " until soon", "what follows `until` is no date"},
      {"viewer a " + kHash + " until", "`until DATE`"},
      {"viewer a " + kHash + " until 2027-02-30", "no date"},
      {"viewer a " + kHash + " until 2027-02-03 x", "one word too many"},
      {"viewer a " + kHash + "\nadmin a " + std::string(64, 'b'), "a stands there twice"},
      {"viewer a " + kHash + "\nadmin b " + kHash, "the token of b stands there twice"}};
  for (const auto& [text, message] : cases) {
    const auto list = ApiTokens::Parse("# first\n" + text);
    ASSERT_FALSE(list.ok()) << text;
    EXPECT_EQ(list.error().code, ErrorCode::kInvalid);
    EXPECT_THAT(list.error().message, StartsWith("line ")) << text;
    EXPECT_THAT(list.error().message, HasSubstr(message)) << text;
  }
}

TEST(ApiTokensTest, ATokenInTheWrongPlaceIsNotRepeated) {
  const std::string token = MakeApiToken().value();
  for (const std::string& text :
       {token, "viewer anna " + token, "viewer anna " + kHash + " until " + token,
        "viewer anna " + kHash + " until 2027-01-01 " + token}) {
    const auto list = ApiTokens::Parse(text);
    ASSERT_FALSE(list.ok());
    EXPECT_THAT(list.error().message, Not(HasSubstr(token.substr(4))));
  }
}

TEST(ApiTokensTest, AFileThatOthersMayReadIsRefused) {
  const test::TempDirectory folder;
  const std::string path = (folder / "token").string();
  const std::string token = MakeApiToken().value();
  EXPECT_EQ(ReadApiTokenFile(path).error().code, ErrorCode::kIo);
  std::ofstream(path) << token << "\n";
  ::chmod(path.c_str(), 0640);
  EXPECT_EQ(ReadApiTokenFile(path).error().code, ErrorCode::kDenied);
  ::chmod(path.c_str(), 0600);
  EXPECT_EQ(ReadApiTokenFile(path).value(), token);
  std::ofstream(path) << token << "x\n";
  const auto wrong = ReadApiTokenFile(path);
  ASSERT_FALSE(wrong.ok());
  EXPECT_EQ(wrong.error().code, ErrorCode::kInvalid);
  EXPECT_THAT(wrong.error().message, Not(HasSubstr(token)));
}

TEST(ApiTokensTest, AListThatEverybodyMayWriteIsRefused) {
  const test::TempDirectory folder;
  const std::string path = (folder / "tokens").string();
  std::ofstream(path) << "viewer a " << kHash << "\n";
  ::chmod(path.c_str(), 0644);
  EXPECT_TRUE(ApiTokens::ReadFile(path).ok());
  ::chmod(path.c_str(), 0666);
  EXPECT_EQ(ApiTokens::ReadFile(path).error().code, ErrorCode::kDenied);
}

}  // namespace
}  // namespace ps::net
