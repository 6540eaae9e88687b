// Cuts and flips bytes of every file of a part.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <utility>

#include "checkpoint/reader.h"
#include "checkpoint/verify.h"
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

// Two checkpoints of two servers each, one after the other.
class CheckpointDamageTest : public CheckpointTest {
 protected:
  void SetUp() override {
    CheckpointTest::SetUp();
    for (const std::uint64_t number : {11, 12}) WriteRound(number);
  }

  fs::path round(std::uint64_t number) const { return root_ / ("ckpt-" + std::to_string(number)); }

  void WriteRound(std::uint64_t number) {
    std::vector<std::pair<std::string, WrittenShard>> all;
    for (std::uint32_t server = 0; server < 2; ++server) {
      const std::string name = "server-" + std::to_string(server);
      std::vector<ShardImage> images = {WithRows(MakeImage(2 * server, {4000, 6}), 4, 0, 64),
                                        WithRows(MakeImage(2 * server + 1, {9}), 4, 700, 64)};
      for (ShardImage& image : images) image.round = Round(number);
      for (const WrittenShard& shard : WritePart(round(number) / name, images)) {
        all.emplace_back(name, shard);
      }
      images_[number].insert(images_[number].end(), images.begin(), images.end());
    }
    Manifest manifest = MakeManifest(all);
    manifest.round = Round(number);
    manifest.row_tables = {{"users", 3}, {"items", 1024}};
    const std::string text = *ToJson(manifest);
    for (const char* const name : {"server-0", "server-1"}) {
      ASSERT_TRUE(WriteManifest(round(number) / name, text).ok());
    }
  }

  // As a restore does it; what it gives out must be what was written.
  Status Restore(std::uint64_t number) const {
    const std::string text = PS_TRY(FindManifest(round(number)));
    const Manifest manifest = PS_TRY(FromJson(text));
    for (const ManifestShard& entry : manifest.shards) {
      const Reader reader = PS_TRY(Reader::Open(round(number) / entry.server));
      const ShardImage image = PS_TRY(reader.ReadShard(entry.shard, entry.digest));
      EXPECT_EQ(image, images_.at(number)[entry.shard.value()]) << "a damaged shard was given out";
    }
    return Ok();
  }

  bool IsGood(std::uint64_t number) const {
    const Result<VerifyReport> report = VerifyCheckpoint(round(number), {});
    return report.ok() && report->findings.empty();
  }

  std::map<std::uint64_t, std::vector<ShardImage>> images_;
};

TEST_F(CheckpointDamageTest, AtEvery4KibAndBothEndsOfEachFileItIsFoundAndTheOneBeforeIsGood) {
  ASSERT_TRUE(IsGood(12));
  ASSERT_TRUE(Restore(12).ok());
  std::size_t files = 0;
  std::size_t harmless = 0;
  for (const auto& entry : fs::recursive_directory_iterator(round(12))) {
    if (!entry.is_regular_file()) continue;
    ++files;
    const std::string content = ReadFile(entry.path());
    ASSERT_FALSE(content.empty()) << entry.path();
    std::set<std::size_t> places = {0, content.size() - 1};
    for (std::size_t at = 4096; at < content.size(); at += 4096) places.insert(at);
    for (const std::size_t at : places) {
      std::string flipped = content;
      flipped[at] = static_cast<char>(flipped[at] ^ 0x20);
      for (const std::string& damaged : {flipped, content.substr(0, at)}) {
        WriteFile(entry.path(), damaged);
        const std::string where = entry.path().string() + " at " + std::to_string(at);
        EXPECT_FALSE(IsGood(12)) << where;
        const Status restored = Restore(12);
        // The other copy of the manifest is as good, and what no shard needs does no harm.
        harmless += restored.ok() ? 1 : 0;
        if (!restored.ok()) {
          EXPECT_EQ(restored.error().code, ErrorCode::kInvalid) << where;
        }
      }
    }
    WriteFile(entry.path(), content);
    EXPECT_TRUE(IsGood(11)) << entry.path();
    EXPECT_TRUE(Restore(11).ok()) << entry.path();
  }
  EXPECT_GE(files, 14u);
  EXPECT_LE(harmless, 20u);
  EXPECT_TRUE(IsGood(12));
}

}  // namespace
}  // namespace ps::checkpoint
