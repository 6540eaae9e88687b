// Cuts and flips bytes of every file of a part.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "checkpoint/reader.h"
#include "tests/checkpoint/checkpoint_fixture.h"

namespace ps::checkpoint {
namespace {

class DamageTest : public CheckpointTest {
 protected:
  void SetUp() override {
    CheckpointTest::SetUp();
    images_ = {MakeImage(1, {100, 20000}), MakeImage(2, {30000, 7}), MakeImage(5, {9}),
               WithRows(MakeImage(6, {9}), 8, 9000)};
    written_ = WritePart(part(), images_);
  }

  fs::path part() const { return root_ / "round" / "server"; }

  // The first error of opening, verifying and reading everything.
  Status ReadAll() const {
    const Reader reader = PS_TRY(Reader::Open(part()));
    Status files = reader.VerifyFiles({});
    Status shards = ReadShards(reader);
    // Damage that changes a shard must be found without reading every file, too.
    if (files.ok() && !shards.ok()) return shards;
    return files;
  }
  Status ReadShards(const Reader& reader) const {
    if (reader.ListShards().size() != images_.size()) {
      return Error{ErrorCode::kInvalid, "a shard is missing"};
    }
    for (std::size_t i = 0; i < images_.size(); ++i) {
      const ShardImage image = PS_TRY(reader.ReadShard(images_[i].shard, written_[i].digest));
      EXPECT_EQ(image, images_[i]) << "a damaged shard was given out";
    }
    return Ok();
  }

  std::vector<std::size_t> Offsets(std::size_t size) const {
    std::vector<std::size_t> offsets;
    for (std::size_t i = 0; i < std::min<std::size_t>(size, 4); ++i) offsets.push_back(i);
    for (std::size_t i = 1; i <= std::min<std::size_t>(size, 60); i += 7) {
      offsets.push_back(size - i);
    }
    std::mt19937 random(static_cast<unsigned>(size));
    for (int i = 0; size > 0 && i < 12; ++i) offsets.push_back(random() % size);
    return offsets;
  }

  std::vector<ShardImage> images_;
  std::vector<WrittenShard> written_;
};

TEST_F(DamageTest, TheWholePartReads) { EXPECT_TRUE(ReadAll().ok()); }

TEST_F(DamageTest, AFlippedByteInAnyFileIsFound) {
  const std::vector<fs::path> files = FilesOf(part());
  ASSERT_GE(files.size(), 4u);
  for (const fs::path& file : files) {
    const std::string content = ReadFile(file);
    for (const std::size_t offset : Offsets(content.size())) {
      std::string damaged = content;
      damaged[offset] = static_cast<char>(damaged[offset] ^ 0x10);
      WriteFile(file, damaged);
      const Status read = ReadAll();
      ASSERT_FALSE(read.ok()) << file << " at " << offset;
      EXPECT_EQ(read.error().code, ErrorCode::kInvalid) << read.error().message;
      EXPECT_NE(read.error().message.find(part().string()), std::string::npos)
          << read.error().message;
    }
    WriteFile(file, content);
  }
  EXPECT_TRUE(ReadAll().ok());
}

TEST_F(DamageTest, ACutFileIsFoundWhenThePartIsOpened) {
  for (const fs::path& file : FilesOf(part())) {
    const std::string content = ReadFile(file);
    for (const std::size_t size : Offsets(content.size())) {
      WriteFile(file, content.substr(0, size));
      const Result<Reader> reader = Reader::Open(part());
      ASSERT_FALSE(reader.ok()) << file << " cut to " << size;
      EXPECT_EQ(reader.error().code, ErrorCode::kInvalid);
      EXPECT_NE(reader.error().message.find(file.filename().string()), std::string::npos)
          << reader.error().message;
    }
    WriteFile(file, content);
  }
  EXPECT_TRUE(ReadAll().ok());
}

TEST_F(DamageTest, AMissingFileIsNamed) {
  for (const fs::path& file : FilesOf(part())) {
    const std::string content = ReadFile(file);
    fs::remove(file);
    const Result<Reader> reader = Reader::Open(part());
    ASSERT_FALSE(reader.ok()) << file;
    EXPECT_EQ(reader.error().code, ErrorCode::kInvalid);
    EXPECT_NE(reader.error().message.find(file.filename().string()), std::string::npos);
    WriteFile(file, content);
  }
  EXPECT_TRUE(ReadAll().ok());
}

TEST_F(DamageTest, AFlippedValueIsFoundByReadingItsShardAlone) {
  int found = 0;
  for (const fs::path& file : FilesOf(part())) {
    const std::string content = ReadFile(file);
    if (file.extension() != ".sst" || content.size() < 70'000) continue;
    std::string damaged = content;
    damaged[500] = static_cast<char>(damaged[500] ^ 1);  // far from the tail that Open() checks
    WriteFile(file, damaged);
    const Result<Reader> reader = Reader::Open(part());
    ASSERT_TRUE(reader.ok()) << reader.error().message;
    const Status read = ReadShards(*reader);
    ASSERT_FALSE(read.ok());
    EXPECT_EQ(read.error().code, ErrorCode::kInvalid);
    EXPECT_NE(read.error().message.find("shard "), std::string::npos) << read.error().message;
    ++found;
    WriteFile(file, content);
  }
  EXPECT_EQ(found, 4) << "blocks of two shards, rows and sketches of one";
}

TEST_F(DamageTest, AFileOfAnotherPartInTheSamePlaceIsFound) {
  const fs::path other = root_ / "other" / "server";
  WritePart(other, {MakeImage(7, {100, 20000})});
  for (const fs::path& file : FilesOf(part())) {
    const fs::path twin = other / file.filename();
    if (!fs::exists(twin) || ReadFile(twin) == ReadFile(file)) continue;
    const std::string content = ReadFile(file);
    WriteFile(file, ReadFile(twin));
    EXPECT_FALSE(ReadAll().ok()) << file;
    WriteFile(file, content);
  }
}

}  // namespace
}  // namespace ps::checkpoint
