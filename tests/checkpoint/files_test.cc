#include "checkpoint/files.h"

#include <gtest/gtest.h>

#include "tests/checkpoint/checkpoint_fixture.h"

namespace ps::checkpoint {
namespace {

class FilesTest : public CheckpointTest {};

TEST_F(FilesTest, AFileIsWrittenWholeAndReplaced) {
  const fs::path path = root_ / "file";
  ASSERT_TRUE(WriteFileDurably(path, "first").ok());
  ASSERT_TRUE(WriteFileDurably(path, "second").ok());
  EXPECT_EQ(*ReadWholeFile(path, 100), "second");
  EXPECT_EQ(FilesOf(root_).size(), 1u);
}

TEST_F(FilesTest, ErrorsNameTheFile) {
  const Result<std::string> missing = ReadWholeFile(root_ / "missing", 100);
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_NE(missing.error().message.find("missing"), std::string::npos);
  EXPECT_FALSE(WriteFileDurably(root_ / "no" / "file", "x").ok());
  EXPECT_FALSE(SyncFile(root_ / "missing").ok());
}

TEST_F(FilesTest, AFileBeyondTheLimitIsInvalid) {
  WriteFile(root_ / "file", std::string(101, 'x'));
  const Result<std::string> read = ReadWholeFile(root_ / "file", 100);
  ASSERT_FALSE(read.ok());
  EXPECT_EQ(read.error().code, ErrorCode::kInvalid);
  EXPECT_TRUE(ReadWholeFile(root_ / "file", 101).ok());
}

TEST_F(FilesTest, MissingParentsAreCreated) {
  ASSERT_TRUE(CreateDirectories(root_ / "a" / "b" / "c").ok());
  EXPECT_TRUE(fs::is_directory(root_ / "a" / "b" / "c"));
  EXPECT_TRUE(CreateDirectories(root_ / "a" / "b" / "c").ok());
  WriteFile(root_ / "file", "x");
  EXPECT_FALSE(CreateDirectories(root_ / "file" / "d").ok());
}

TEST_F(FilesTest, ASealIsReadBackAndFindsEveryChangedByte) {
  WriteFile(root_ / "one.sst", std::string(200'000, 'a'));
  WriteFile(root_ / "two", "b");
  WriteFile(root_ / "empty", "");
  const Result<std::vector<SealedFile>> files = SealFiles(root_);
  ASSERT_TRUE(files.ok());
  ASSERT_EQ(files->size(), 3u);
  const std::string seal = EncodeSeal(*files);
  const Result<std::vector<SealedFile>> decoded = DecodeSeal(seal);
  ASSERT_TRUE(decoded.ok()) << decoded.error().message;
  EXPECT_EQ(EncodeSeal(*decoded), seal);
  for (std::size_t i = 0; i < seal.size(); ++i) {
    for (const char flip : {1, 2, 4, 64}) {
      std::string damaged = seal;
      damaged[i] = static_cast<char>(damaged[i] ^ flip);
      EXPECT_FALSE(DecodeSeal(damaged).ok()) << i;
    }
    EXPECT_FALSE(DecodeSeal(std::string_view(seal).substr(0, i)).ok()) << i;
  }
  EXPECT_FALSE(DecodeSeal(seal + "\n").ok());
}

TEST_F(FilesTest, AKnownDigestIsNotTakenAgain) {
  WriteFile(root_ / "one.sst", "a");
  WriteFile(root_ / "two.sst", "b");
  const Result<std::vector<SealedFile>> files = SealFiles(root_, [](const fs::path& path) {
    return path.filename() == "one.sst" ? HexDigest("known") : std::string();
  });
  ASSERT_TRUE(files.ok());
  ASSERT_EQ(files->size(), 2u);
  EXPECT_EQ((*files)[0].digest, HexDigest("known"));
  EXPECT_EQ((*files)[0].tail_digest, HexDigest("a"));
  EXPECT_EQ((*files)[1].digest, HexDigest("b"));
}

TEST_F(FilesTest, ASealOfAnotherVersionIsNamed) {
  const Result<std::vector<SealedFile>> decoded = DecodeSeal("ds-checkpoint-part 7\nseal x\n");
  ASSERT_FALSE(decoded.ok());
  EXPECT_NE(decoded.error().message.find("format version 7"), std::string::npos);
}

TEST_F(FilesTest, ASealThatLeavesTheDirectoryIsRefused) {
  SealedFile file;
  file.name = "../../etc/passwd";
  file.digest = file.tail_digest = HexDigest("");
  EXPECT_FALSE(DecodeSeal(EncodeSeal({file})).ok());
  file.name = "..";
  EXPECT_FALSE(DecodeSeal(EncodeSeal({file})).ok());
}

TEST_F(FilesTest, TheTailCheckSeesTheTailAndTheWholeCheckAll) {
  WriteFile(root_ / "one.sst", std::string(200'000, 'a'));
  const SealedFile file = SealFiles(root_)->front();
  std::string content = ReadFile(root_ / "one.sst");
  content[10] = 'b';
  WriteFile(root_ / "one.sst", content);
  EXPECT_TRUE(CheckSealedFile(ThisHost(), root_, file, false, {}).ok());
  EXPECT_FALSE(CheckSealedFile(ThisHost(), root_, file, true, {}).ok());
  content[10] = 'a';
  content[199'999] = 'b';
  WriteFile(root_ / "one.sst", content);
  EXPECT_FALSE(CheckSealedFile(ThisHost(), root_, file, false, {}).ok());
  fs::resize_file(root_ / "one.sst", 199'999);
  EXPECT_FALSE(CheckSealedFile(ThisHost(), root_, file, false, {}).ok());
  fs::remove(root_ / "one.sst");
  const Status missing = CheckSealedFile(ThisHost(), root_, file, false, {});
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ErrorCode::kInvalid);
}

}  // namespace
}  // namespace ps::checkpoint
