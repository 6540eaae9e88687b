#include "common/net/node_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

#include "tests/support/temp_directory.h"

namespace ps::net {
namespace {

using ::testing::HasSubstr;

std::string Key() { return MakeKeyPair().value().public_key; }

TEST(NodeKeysTest, AKeyFileIsReadAsItWasWritten) {
  const KeyPair pair = MakeKeyPair().value();
  EXPECT_EQ(pair.public_key.size(), 40U);
  const auto read = ParseKeyFile(KeyFileText(pair));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->public_key, pair.public_key);
  EXPECT_EQ(read->secret_key, pair.secret_key);
}

TEST(NodeKeysTest, AFileThatIsNoPairIsRefusedAndTheSecretIsNotRepeated) {
  const KeyPair pair = MakeKeyPair().value();
  const KeyPair other = MakeKeyPair().value();
  const std::string good = KeyFileText(pair);
  for (const std::string& text :
       {std::string(), std::string("x"), good + "more\n", good.substr(0, good.size() - 2),
        KeyFileText({pair.public_key, other.secret_key}), "secret " + pair.secret_key + "\n",
        "public: " + pair.public_key + "\n",
        KeyFileText({pair.public_key, std::string(40, '\x7f')})}) {
    const auto read = ParseKeyFile(text);
    ASSERT_FALSE(read.ok()) << text;
    EXPECT_EQ(read.error().code, ErrorCode::kInvalid);
    EXPECT_EQ(read.error().message.find(pair.secret_key), std::string::npos);
  }
}

TEST(NodeKeysTest, ASecretThatOthersCanReadIsNotUsed) {
  const test::TempDirectory directory;
  const std::string path = (directory.path() / "a.key").string();
  EXPECT_EQ(ReadKeyFile(path).error().code, ErrorCode::kIo);
  std::ofstream(path) << KeyFileText(MakeKeyPair().value());
  ::chmod(path.c_str(), 0640);
  const auto read = ReadKeyFile(path);
  ASSERT_FALSE(read.ok());
  EXPECT_EQ(read.error().code, ErrorCode::kDenied);
  EXPECT_THAT(read.error().message, HasSubstr(path));
  ::chmod(path.c_str(), 0600);
  EXPECT_TRUE(ReadKeyFile(path).ok());
}

TEST(NodeKeysTest, TheListSaysWhoIsWhatAndUntilWhen) {
  const std::string server = Key();
  const std::string worker = Key();
  const auto list = TrustedKeys::Parse("# the rack on the left\n\nserver  node7 " + server +
                                       "\r\nworker node7\t" + worker + " until 2027-01-31\n");
  ASSERT_TRUE(list.ok()) << list.error().message;
  const std::int64_t january = 1'801'353'600'000;  // 2027-01-31 00:00 UTC
  const TrustedKey* const found = list->Find(server, january);
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->role, Role::kServer);
  EXPECT_EQ(found->name, "node7");
  ASSERT_NE(list->Find(worker, january - 1), nullptr);
  EXPECT_EQ(list->Find(worker, january), nullptr);
  EXPECT_EQ(list->Find(Key(), 0), nullptr);
  EXPECT_EQ(TrustedLine(*list->Find(worker, 0)), "worker node7 " + worker + " until 2027-01-31\n");
}

TEST(NodeKeysTest, AWrongLineIsNamedWithItsNumber) {
  const std::string key = Key();
  const std::string line = "server a " + key;
  const std::pair<std::string, const char*> wrong[] = {
      {"master a " + key, "`master` is no role"},
      {"server", "a name"},
      {"server a/b " + key, "a name"},
      {"server a short", "40 characters"},
      {"server a " + key.substr(1) + "~", "40 characters"},
      {line + " for ever", "until DATE"},
      {line + " until", "until DATE"},
      {line + " until 2027-02-30", "no date"},
      {line + " until 2027-1-1", "no date"},
      {line + " until 2027-01-01 or so", "too many"},
      {line + "\nworker b " + key, "line 4: the key of b stands there twice"},
      {line + "\nserver a " + Key(), "line 4: server a stands there twice"},
  };
  for (const auto& [text, what] : wrong) {
    const auto list = TrustedKeys::Parse("# one\n\n" + text);
    ASSERT_FALSE(list.ok()) << text;
    EXPECT_EQ(list.error().code, ErrorCode::kInvalid);
    EXPECT_THAT(list.error().message, HasSubstr(what));
    EXPECT_THAT(list.error().message, HasSubstr("line "));
  }
}

TEST(NodeKeysTest, EndpointsCarryTheKeyThatMustAnswer) {
  EXPECT_EQ(WithKey("tcp://a:1", ""), "tcp://a:1");
  const auto split = SplitKey(WithKey("tcp://[::1]:47", "k:e/y"));
  EXPECT_EQ(split.address, "tcp://[::1]:47");
  EXPECT_EQ(split.key, "k:e/y");
  EXPECT_EQ(SplitKey("tcp://a:1").key, "");
}

}  // namespace
}  // namespace ps::net
