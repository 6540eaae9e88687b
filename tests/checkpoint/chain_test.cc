// Rounds that build on earlier ones: what is put together, what is refused, what damage does.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>

#include "checkpoint/export.h"
#include "checkpoint/reader.h"
#include "checkpoint/verify.h"
#include "tests/checkpoint/checkpoint_fixture.h"

namespace ps::checkpoint {
namespace {

// An image of a shard that goes on: it says of itself what has changed since the one before.
class NextSource : public ImageSource {
 public:
  struct Changes {
    std::set<std::size_t> blocks;
    std::vector<std::uint64_t> removed;  // of table 0
    bool removed_known = true;
  };
  NextSource(const ShardImage& image, std::shared_ptr<const void> identity, Changes changes)
      : ImageSource(image), identity_(std::move(identity)), changes_(std::move(changes)) {}

  std::shared_ptr<const void> identity() const override { return identity_; }
  std::uint64_t cut() const override { return head().round.value(); }
  bool BlockChanged(std::size_t index, std::uint64_t) const override {
    return changes_.blocks.contains(index);
  }
  bool GroupChanged(std::size_t table, std::size_t, std::uint64_t) const override {
    return table == 0;
  }
  std::optional<std::vector<std::uint64_t>> Removed(std::size_t table,
                                                    std::uint64_t) const override {
    if (!changes_.removed_known) return std::nullopt;
    return table == 0 ? changes_.removed : std::vector<std::uint64_t>();
  }

 private:
  const std::shared_ptr<const void> identity_;
  const Changes changes_;
};

using Changes = NextSource::Changes;

class ChainTest : public CheckpointTest {
 protected:
  // Of job 3 in round 12, which is whole.
  void SetUp() override {
    CheckpointTest::SetUp();
    image_ = WithRows(MakeImage(0, {100, 20000, 70, 3000}), 1, 2000, 300'032);
    image_.first_block = 0;
    ASSERT_TRUE(WriteRound(Changes{}).has_value());
  }

  fs::path round(std::uint64_t number) const { return root_ / ("ckpt-" + std::to_string(number)); }
  fs::path part(std::uint64_t number) const { return round(number) / "server"; }

  // Writes the present image with its manifest; on `base_`, if there is one.
  std::optional<WrittenShard> WriteRound(const Changes& changes) {
    Result<Writer> writer = Writer::Open(part(image_.round.value()), 0);
    if (!writer.ok()) return std::nullopt;
    const NextSource source(image_, identity_, changes);
    auto made = writer->Add(source, base_.has_value() ? &*base_ : nullptr);
    if (!made.ok()) return std::nullopt;
    auto written = writer->Finish();
    if (!written.ok()) return std::nullopt;
    base_ = std::move(*made);
    written_ = written->at(0);
    images_[image_.round.value()] = image_;
    Manifest manifest = MakeManifest({{"server", written_}});
    manifest.round = image_.round;
    manifest.tables = {{"parameters", TableRule::Sgd, 23170, {{"w", {23170}, 0, 23170}}}};
    manifest.row_tables = {{"users", 3}, {"items", 1024}};
    if (!WriteManifest(part(image_.round.value()), *ToJson(manifest)).ok()) return std::nullopt;
    digests_[image_.round.value()] = written_.digest;
    return written_;
  }

  // Rows of table 0: some change, some go, some come; and one block.
  Changes GoOn(std::mt19937& random) {
    image_.round = Round(image_.round.value() + 1);
    ++image_.version;
    Changes changes;
    RowTableImage& table = image_.rows[0];
    const std::size_t bytes = table.record_bytes();
    ++table.tick;
    std::vector<std::byte> records;
    for (std::size_t row = 0; row < table.rows(); ++row) {
      std::byte* const record = table.records.data() + row * bytes;
      const auto dice = random() % 50;
      if (dice == 0) {
        changes.removed.push_back(table.key(row));
        continue;
      }
      if (dice == 1) {
        std::memcpy(record + 12, &table.tick, 4);
        record[20] ^= std::byte{1};
      }
      records.insert(records.end(), record, record + bytes);
    }
    table.records = std::move(records);
    for (int i = 0; i < 30; ++i) {
      // Now and then one that has just gone.
      const std::uint64_t key = i == 0 && !changes.removed.empty()
                                    ? changes.removed.front()
                                    : std::uint64_t{random()} << 32 | random();
      AddRow(table, key, random);
      std::memcpy(table.records.data() + table.records.size() - bytes + 12, &table.tick, 4);
    }
    SortRows(table);
    table.sketch.back() ^= 1;  // in the second piece of two
    const std::size_t block = random() % 2 == 0 ? 0 : 2;
    changes.blocks.insert(block);
    image_.values[block == 0 ? 5 : 20105] += 1;
    return changes;
  }

  Result<ShardImage> Read(std::uint64_t number) const {
    const Reader reader = PS_TRY(Reader::Open(part(number)));
    return reader.ReadShard(ShardId(0), digests_.at(number));
  }

  ShardImage image_;
  std::shared_ptr<const void> identity_ = std::make_shared<int>();
  std::optional<ShardBase> base_;
  WrittenShard written_;
  std::map<std::uint64_t, ShardImage> images_;
  std::map<std::uint64_t, std::string> digests_;
};

TEST_F(ChainTest, EveryRoundOfAChainIsReadBackEqualWithTheDigestOfAWholeOne) {
  std::mt19937 random(1);
  for (std::uint64_t number = 13; number <= 17; ++number) {
    const Changes changes = GoOn(random);
    const auto written = WriteRound(changes);
    ASSERT_TRUE(written.has_value());
    EXPECT_EQ(written->bases.size(), number - 12);
    EXPECT_EQ(written->bases.front(), Round(number - 1));
    EXPECT_EQ(written->bases.back(), Round(12));
    EXPECT_EQ(written->digest, Digest(image_));
    EXPECT_EQ(written->values_digest, ValuesDigest(image_.values));
    EXPECT_EQ(written->state_bytes, ContentBytes(image_));
    EXPECT_LT(written->bytes, written->state_bytes / 3) << "one of two pieces of the sketch";
  }
  for (const auto& [number, image] : images_) {
    const auto read = Read(number);
    ASSERT_TRUE(read.ok()) << read.error().message;
    EXPECT_EQ(*read, image);
    const auto report = VerifyCheckpoint(round(number), {});
    ASSERT_TRUE(report.ok());
    EXPECT_EQ(report->findings, std::vector<std::string>{});
  }
  // As a whole one is exported.
  ASSERT_TRUE(ExportCheckpoint(round(17), "", root_ / "of-chain", {}).ok());
  base_.reset();
  fs::remove_all(round(17));
  ASSERT_TRUE(WriteRound(Changes{}).has_value());
  EXPECT_TRUE(written_.bases.empty());
  ASSERT_TRUE(ExportCheckpoint(round(17), "", root_ / "of-whole", {}).ok());
  for (const char* file : {"model.safetensors", "users.keys.npy", "users.values.npy",
                           "items.keys.npy", "items.values.npy"}) {
    EXPECT_EQ(ReadFile(root_ / "of-chain" / file), ReadFile(root_ / "of-whole" / file)) << file;
  }
}

TEST_F(ChainTest, WhatSavesTooLittleOrHasAnotherHistoryIsWrittenWhole) {
  std::mt19937 random(2);
  const auto whole = [&](auto change) {
    Changes changes = GoOn(random);
    change(changes);
    const auto written = WriteRound(changes);
    EXPECT_TRUE(written.has_value());
    const auto read = Read(image_.round.value());
    EXPECT_TRUE(read.ok() && *read == image_);
    return written.has_value() && written->bases.empty();
  };
  EXPECT_FALSE(whole([](Changes&) {}));
  EXPECT_TRUE(whole([&](Changes& changes) {
    changes.blocks = {0, 1, 2, 3};
    image_.rows[0].sketch[0] ^= 1;
  })) << "half and more";
  EXPECT_FALSE(whole([](Changes&) {}));
  EXPECT_TRUE(whole([](Changes& changes) { changes.removed_known = false; }));
  EXPECT_FALSE(whole([](Changes&) {}));
  EXPECT_TRUE(whole([&](Changes&) { identity_ = std::make_shared<int>(); }));
  // Together the parts of a chain have less than half of a whole one beside that.
  int rounds = 0;
  while (!whole([](Changes& changes) { changes.blocks.insert(3); })) ++rounds;
  EXPECT_GE(rounds, 2);
  EXPECT_LE(rounds, 9);
}

TEST_F(ChainTest, DamageInAnyPartOfAChainIsFoundAndRoundsBeforeItAreGood) {
  std::mt19937 random(3);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(WriteRound(GoOn(random)).has_value());
  for (std::uint64_t damaged = 12; damaged <= 15; ++damaged) {
    for (const fs::path& file : FilesOf(part(damaged))) {
      if (file.filename() == kManifestFile) continue;
      const std::string content = ReadFile(file);
      std::vector<std::size_t> places = {0, content.size() / 2, content.size() - 1};
      for (std::size_t at = 4096; at < content.size(); at += 65'536) places.push_back(at);
      for (const std::size_t at : places) {
        std::string changed = content;
        changed[at] ^= 1;
        WriteFile(file, changed);
        for (const std::uint64_t number : {damaged - 1, std::uint64_t{15}}) {
          if (number < 12) continue;
          const auto report = VerifyCheckpoint(round(number), {});
          ASSERT_TRUE(report.ok());
          EXPECT_EQ(report->findings.empty(), number < damaged) << file << " at " << at;
          const auto read = Read(number);
          if (read.ok()) {
            EXPECT_EQ(*read, images_[number]) << "a damaged shard was given out";
          } else {
            EXPECT_GE(number, damaged) << read.error().message;
            EXPECT_EQ(read.error().code, ErrorCode::kInvalid);
          }
        }
      }
      WriteFile(file, content);
    }
  }
}

TEST_F(ChainTest, AMissingOrExchangedPartOfAChainIsNamed) {
  std::mt19937 random(4);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(WriteRound(GoOn(random)).has_value());
  const auto refused = [&](const std::string& name) {
    const auto read = Read(15);
    ASSERT_FALSE(read.ok());
    EXPECT_EQ(read.error().code, ErrorCode::kInvalid);
    EXPECT_NE(read.error().message.find(name), std::string::npos) << read.error().message;
    const auto report = VerifyCheckpoint(round(15), {});
    ASSERT_TRUE(report.ok());
    EXPECT_FALSE(report->findings.empty());
  };
  for (const int gone : {12, 13, 14}) {
    fs::rename(part(static_cast<std::uint64_t>(gone)), root_ / "away");
    refused("ckpt-" + std::to_string(gone));
    fs::rename(root_ / "away", part(static_cast<std::uint64_t>(gone)));
  }
  // Another history in the place of a round.
  fs::rename(part(13), root_ / "away");
  ShardImage other = images_[13];
  other.values[5] += 1;
  WritePart(part(13), {other});
  refused("another history");
  fs::remove_all(part(13));
  fs::rename(root_ / "away", part(13));
  // A base with the same bases, whose content is another.
  fs::rename(part(12), root_ / "away");
  other = images_[12];
  other.values[20050] += 1;  // in a block that no later round has
  other.values[3] += 1;
  WritePart(part(12), {other});
  refused("digest");
  EXPECT_TRUE(Reader::Open(part(12)).ok());
  fs::remove_all(part(12));
  fs::rename(root_ / "away", part(12));
  EXPECT_EQ(*Read(15), images_[15]);
}

}  // namespace
}  // namespace ps::checkpoint
