#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "checkpoint/part_directory.h"
#include "checkpoint/reader.h"
#include "checkpoint/writer.h"
#include "tests/checkpoint/checkpoint_fixture.h"

namespace ps::checkpoint {
namespace {

class PartTest : public CheckpointTest {
 protected:
  fs::path part() const { return root_ / "job-3" / "round-12" / "server-a"; }
  fs::path partial() const { return part().string() + ".partial"; }
};

TEST_F(PartTest, AnyNumberOfShardsIsReadBackEqual) {
  for (const std::uint32_t count : {0u, 1u, 2u, 7u, 300u}) {
    const fs::path directory = root_ / std::to_string(count) / "server";
    std::vector<ShardImage> images;
    for (std::uint32_t i = 0; i < count; ++i) images.push_back(MakeImage(i * 2, {3, 500}));
    const std::vector<WrittenShard> written = WritePart(directory, images);
    ASSERT_EQ(written.size(), count);
    const Result<Reader> reader = Reader::Open(directory);
    ASSERT_TRUE(reader.ok()) << reader.error().message;
    ASSERT_EQ(reader->ListShards().size(), count);
    EXPECT_TRUE(reader->VerifyFiles({}).ok());
    for (std::uint32_t i = 0; i < count; ++i) {
      EXPECT_EQ(reader->ListShards()[i], ShardId(i * 2));
      const Result<ShardImage> image = reader->ReadShard(ShardId(i * 2), written[i].digest);
      ASSERT_TRUE(image.ok()) << image.error().message;
      EXPECT_EQ(*image, images[i]);
    }
  }
}

TEST_F(PartTest, RowsAndSketchesAreReadBackEqual) {
  // Of one record, of several, of none; a shard without blocks.
  std::vector<ShardImage> images;
  const std::vector<std::size_t> rows = {100, 20'000, 0, 6553, 13'107};
  for (std::uint32_t i = 0; i < rows.size(); ++i) {
    images.push_back(WithRows(MakeImage(i, {3, 500}), 5, rows[i]));
  }
  images.push_back(WithRows(MakeImage(5), 6, 300));
  ShardImage& bare = images.back();
  bare.block_elements.clear();
  bare.values.clear();
  bare.slots = {};
  const std::vector<WrittenShard> written = WritePart(part(), images);
  const Result<Reader> reader = Reader::Open(part());
  ASSERT_TRUE(reader.ok()) << reader.error().message;
  for (std::size_t i = 0; i < images.size(); ++i) {
    EXPECT_EQ(written[i].rows, RowCount(images[i]));
    EXPECT_GT(written[i].bytes, ContentBytes(images[i]));
    const Result<ShardImage> image = reader->ReadShard(images[i].shard, written[i].digest);
    ASSERT_TRUE(image.ok()) << image.error().message;
    EXPECT_EQ(*image, images[i]);
  }
}

TEST_F(PartTest, TheDigestOfAShardIsOverItsRowsAndTheirSketch) {
  const ShardImage image = WithRows(MakeImage(1), 4, 500);
  const std::string digest = Digest(image);
  const auto differs = [&](auto change) {
    ShardImage other = image;
    change(other.rows[0]);
    return Digest(other) != digest;
  };
  EXPECT_TRUE(differs([](RowTableImage& rows) { rows.records.back() ^= std::byte{1}; }));
  EXPECT_TRUE(differs([](RowTableImage& rows) { rows.records[8] ^= std::byte{1}; }));
  EXPECT_TRUE(differs([](RowTableImage& rows) { rows.sketch[77] ^= 1; }));
  EXPECT_TRUE(differs([](RowTableImage& rows) { rows.tick += 1; }));
  EXPECT_TRUE(differs([](RowTableImage& rows) { rows.sightings += 1; }));
  EXPECT_TRUE(differs([](RowTableImage& rows) { rows.optimizer = 1; }));
  EXPECT_FALSE(differs([](RowTableImage&) {}));
}

TEST_F(PartTest, RowsThatAreNotInOrderOrOfAnImpossibleShapeAreRefused) {
  const ShardImage image = WithRows(MakeImage(1), 4, 500);
  Result<Writer> writer = Writer::Open(part(), 0);
  ASSERT_TRUE(writer.ok());
  const auto refused = [&](auto change, const std::string& what) {
    ShardImage other = image;
    change(other.rows);
    const Status added = writer->Add(other);
    ASSERT_FALSE(added.ok()) << what;
    EXPECT_EQ(added.error().code, ErrorCode::kInvalid);
    EXPECT_NE(added.error().message.find(what), std::string::npos) << added.error().message;
  };
  using Tables = std::vector<RowTableImage>;
  refused(
      [](Tables& tables) {
        auto& records = tables[0].records;
        std::swap_ranges(records.begin(), records.begin() + 40, records.begin() + 40);
      },
      "stands after");
  refused([](Tables& tables) { tables[0].records.pop_back(); }, "no whole number");
  refused([](Tables& tables) { tables[0].sketch.pop_back(); }, "a sketch of");
  refused([](Tables& tables) { std::swap(tables[0], tables[1]); }, "it is table 1");
  refused([](Tables& tables) { tables[0].slots = 7; }, "7 slots");
  ShardImage shuffled = image;
  std::swap_ranges(shuffled.rows[0].records.begin(), shuffled.rows[0].records.begin() + 40,
                   shuffled.rows[0].records.begin() + 4000);
  SortRows(shuffled);
  EXPECT_EQ(shuffled, image);
  EXPECT_TRUE(writer->Add(shuffled).ok());
}

TEST_F(PartTest, ShardsMayComeInAnyOrder) {
  const std::vector<WrittenShard> written =
      WritePart(part(), {MakeImage(9), MakeImage(2), MakeImage(300)});
  ASSERT_EQ(written.size(), 3u);
  EXPECT_EQ(written[0].shard, ShardId(9));
  EXPECT_EQ(written[2].version, 1300u);
  EXPECT_EQ(written[0].epoch, Epoch(10));
  EXPECT_EQ(written[0].digest, Digest(MakeImage(9)));
  EXPECT_EQ(written[0].values_digest, ValuesDigest(MakeImage(9).values));
  EXPECT_GT(written[0].bytes, MakeImage(9).values.size() * sizeof(float));
  const Result<Reader> reader = Reader::Open(part());
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ(reader->ListShards(), (std::vector<ShardId>{ShardId(2), ShardId(9), ShardId(300)}));
  EXPECT_EQ(*reader->ReadShard(ShardId(300)), MakeImage(300));
}

TEST_F(PartTest, AShardThatIsNotThereIsNotFound) {
  WritePart(part(), {MakeImage(1)});
  const Result<Reader> reader = Reader::Open(part());
  ASSERT_TRUE(reader.ok());
  const Result<ShardImage> image = reader->ReadShard(ShardId(2));
  ASSERT_FALSE(image.ok());
  EXPECT_EQ(image.error().code, ErrorCode::kNotFound);
  const Result<Reader> missing = Reader::Open(root_ / "nothing");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
}

TEST_F(PartTest, AnotherDigestThanTheManifestsIsInvalid) {
  WritePart(part(), {MakeImage(1)});
  const Result<Reader> reader = Reader::Open(part());
  const Result<ShardImage> image = reader->ReadShard(ShardId(1), Digest(MakeImage(2)));
  ASSERT_FALSE(image.ok());
  EXPECT_EQ(image.error().code, ErrorCode::kInvalid);
  EXPECT_NE(image.error().message.find("shard 1"), std::string::npos);
}

TEST_F(PartTest, ReadingChangesNothingOnDisk) {
  WritePart(part(), {MakeImage(1)});
  const std::size_t files = FilesOf(part()).size();
  for (int i = 0; i < 3; ++i) {
    const Result<Reader> reader = Reader::Open(part());
    ASSERT_TRUE(reader.ok());
    EXPECT_TRUE(reader->ReadShard(ShardId(1)).ok());
  }
  EXPECT_EQ(FilesOf(part()).size(), files);
  EXPECT_TRUE(Reader::Open(part())->VerifyFiles({}).ok());
}

TEST_F(PartTest, TwoReadersMayBeOpenAtOnce) {
  WritePart(part(), {MakeImage(1)});
  const Result<Reader> one = Reader::Open(part());
  const Result<Reader> two = Reader::Open(part());
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_EQ(*one->ReadShard(ShardId(1)), *two->ReadShard(ShardId(1)));
}

TEST_F(PartTest, NothingIsVisibleBeforeFinish) {
  {
    Result<Writer> writer = Writer::Open(part(), 0);
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE(writer->Add(MakeImage(1)).ok());
    EXPECT_FALSE(fs::exists(part()));
    EXPECT_TRUE(fs::exists(partial()));
  }
  EXPECT_FALSE(fs::exists(part()));
  EXPECT_TRUE(fs::exists(partial()));
  EXPECT_TRUE(RemovePartial(part()).ok());
  EXPECT_FALSE(fs::exists(partial()));
  EXPECT_TRUE(RemovePartial(part()).ok());
}

// The writer is killed at arbitrary moments: afterwards the part is whole or not there.
TEST_F(PartTest, AKilledWriterLeavesAWholePartOrNone) {
  int visible = 0;
  for (int delay_us = 0; delay_us < 60'000; delay_us += 4'000) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      Result<Writer> writer = Writer::Open(part(), 0);
      for (std::uint32_t i = 0; writer.ok() && i < 4; ++i) (void)writer->Add(MakeImage(i)).ok();
      const bool done = writer.ok() && writer->Finish().ok();
      ::_exit(done ? 0 : 1);
    }
    ::usleep(static_cast<useconds_t>(delay_us));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    if (fs::exists(part())) {
      ++visible;
      const Result<Reader> reader = Reader::Open(part());
      ASSERT_TRUE(reader.ok()) << reader.error().message;
      EXPECT_TRUE(reader->VerifyFiles({}).ok());
      EXPECT_EQ(reader->ListShards().size(), 4u);
      EXPECT_EQ(*reader->ReadShard(ShardId(3)), MakeImage(3));
      ASSERT_TRUE(RemovePart(part()).ok());
    }
  }
  RecordProperty("finished_before_the_kill", visible);
}

TEST_F(PartTest, ALeftoverPartialIsReplaced) {
  fs::create_directories(partial() / "staging");
  WriteFile(partial() / "CURRENT", "rubbish");
  WritePart(part(), {MakeImage(1)});
  EXPECT_TRUE(Reader::Open(part()).ok());
}

TEST_F(PartTest, AFinishedPartIsNotOverwritten) {
  WritePart(part(), {MakeImage(1)});
  const Result<Writer> writer = Writer::Open(part(), 0);
  ASSERT_FALSE(writer.ok());
  EXPECT_EQ(writer.error().code, ErrorCode::kConflict);
  EXPECT_EQ(*Reader::Open(part())->ReadShard(ShardId(1)), MakeImage(1));
}

TEST_F(PartTest, ATrailingSeparatorMakesNoDifference) {
  WritePart(part() / "", {MakeImage(1)});
  EXPECT_TRUE(fs::exists(part()));
  EXPECT_FALSE(fs::exists(partial()));
  EXPECT_TRUE(RemovePart(part() / "").ok());
}

TEST_F(PartTest, AShardTwiceOrInconsistentIsRefusedAndTheRestIsKept) {
  Result<Writer> writer = Writer::Open(part(), 0);
  ASSERT_TRUE(writer->Add(MakeImage(1)).ok());
  EXPECT_EQ(writer->Add(MakeImage(1)).error().code, ErrorCode::kConflict);
  ShardImage bad = MakeImage(2);
  bad.values.pop_back();
  EXPECT_EQ(writer->Add(bad).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(writer->Finish()->size(), 1u);
}

TEST_F(PartTest, MoreThanHalfOfTheFreeSpaceIsRefusedBeforeAnythingIsWritten) {
  const Result<Writer> writer = Writer::Open(part(), std::uint64_t{1} << 60);
  ASSERT_FALSE(writer.ok());
  EXPECT_EQ(writer.error().code, ErrorCode::kIo);
  EXPECT_NE(writer.error().message.find("not enough space"), std::string::npos);
  EXPECT_FALSE(fs::exists(partial()));
}

TEST_F(PartTest, AFullDiskIsAnErrorThatSticks) {
  const fs::path small = root_ / "small";
  fs::create_directories(small);
  if (::mount("tmpfs", small.c_str(), "tmpfs", 0, "size=1m") != 0) {
    GTEST_SKIP() << "no file system of limited size: " << std::strerror(errno);
  }
  {
    Result<Writer> writer = Writer::Open(small / "round" / "server", 0);
    EXPECT_TRUE(writer.ok());
    Status added = Ok();
    for (std::uint32_t i = 0; added.ok() && i < 8; ++i) added = writer->Add(MakeImage(i));
    EXPECT_FALSE(added.ok());
    if (!added.ok()) {
      EXPECT_EQ(added.error().code, ErrorCode::kIo);
      EXPECT_NE(added.error().message.find("No space left"), std::string::npos)
          << added.error().message;
    }
    EXPECT_FALSE(writer->Add(MakeImage(100, {1})).ok());
    EXPECT_FALSE(writer->Finish().ok());
    EXPECT_FALSE(fs::exists(small / "round" / "server"));
    EXPECT_TRUE(RemovePartial(small / "round" / "server").ok());
    const Result<Writer> refused = Writer::Open(small / "round" / "server", 600 << 10);
    EXPECT_FALSE(refused.ok());
  }
  ::umount(small.c_str());
}

TEST_F(PartTest, TheLastPartTakesTheRoundDirectoryWithIt) {
  const fs::path other = part().parent_path() / "server-b";
  WritePart(part(), {MakeImage(1)});
  WritePart(other, {MakeImage(2)});
  ASSERT_TRUE(WriteManifest(part(), "text").ok());
  EXPECT_TRUE(Reader::Open(part()).ok());
  ASSERT_TRUE(RemovePart(part()).ok());
  EXPECT_TRUE(fs::exists(other));
  ASSERT_TRUE(RemovePart(other).ok());
  EXPECT_FALSE(fs::exists(part().parent_path()));
  EXPECT_TRUE(fs::exists(part().parent_path().parent_path()));
  EXPECT_TRUE(RemovePart(other).ok());
}

}  // namespace
}  // namespace ps::checkpoint
