#include "checkpoint/record.h"

#include <gtest/gtest.h>

#include <random>

#include "checkpoint/manifest.h"
#include "tests/checkpoint/checkpoint_fixture.h"

namespace ps::checkpoint {
namespace {

// As its meta tells it.
ShardImage WithoutValues(ShardImage image) {
  image.values.clear();
  image.slots.floats.clear();
  if (image.slots.counts == UpdateCounts::kPerElement) image.slots.updates.clear();
  for (RowTableImage& table : image.rows) {
    table.records.clear();
    table.sketch.clear();
  }
  return image;
}

TEST(RecordTest, KeysSortAsTheirNumbersDo) {
  const std::string meta = EncodeKey(RecordKind::kMeta, ShardId(4000), 0);
  const std::string low = EncodeKey(RecordKind::kBlock, ShardId(1), 255);
  const std::string next = EncodeKey(RecordKind::kBlock, ShardId(1), 256);
  const std::string high = EncodeKey(RecordKind::kBlock, ShardId(256), 0);
  EXPECT_LT(meta, low);
  EXPECT_LT(low, next);
  EXPECT_LT(next, high);
}

TEST(RecordTest, AKeyIsReadBack) {
  const Result<RecordKey> key = DecodeKey(EncodeKey(RecordKind::kBlock, ShardId(70000), 123456));
  ASSERT_TRUE(key.ok());
  EXPECT_EQ(key->kind, RecordKind::kBlock);
  EXPECT_EQ(key->shard, ShardId(70000));
  EXPECT_EQ(key->block, 123456u);
}

TEST(RecordTest, AKeyOfAnotherLengthOrKindIsRefused) {
  EXPECT_FALSE(DecodeKey("").ok());
  EXPECT_FALSE(DecodeKey("12345678").ok());
  std::string key = EncodeKey(RecordKind::kBlock, ShardId(1), 1);
  key[0] = 9;
  EXPECT_FALSE(DecodeKey(key).ok());
}

TEST(RecordTest, AValueUnderAnotherKeyDoesNotUnseal) {
  const std::string key = EncodeKey(RecordKind::kBlock, ShardId(1), 1);
  const std::string other = EncodeKey(RecordKind::kBlock, ShardId(1), 2);
  const std::string value = Seal(key, "content");
  ASSERT_TRUE(Unseal(key, value).ok());
  EXPECT_EQ(*Unseal(key, value), "content");
  EXPECT_FALSE(Unseal(other, value).ok());
}

TEST(RecordTest, EveryFlippedBitOfASealedValueIsFound) {
  const std::string key = EncodeKey(RecordKind::kBlock, ShardId(1), 1);
  const std::string value = Seal(key, "some content of a block");
  for (std::size_t bit = 0; bit < value.size() * 8; ++bit) {
    std::string damaged = value;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_FALSE(Unseal(key, damaged).ok()) << bit;
  }
  EXPECT_FALSE(Unseal(key, "short").ok());
}

TEST(RecordTest, TheMetaOfAnImageIsReadBack) {
  for (const std::uint32_t shard : {9u, 10u, 11u}) {
    for (const bool rows : {false, true}) {
      const ShardImage image = rows ? WithRows(MakeImage(shard), 16, 250) : MakeImage(shard);
      const Result<ShardMeta> decoded = DecodeMeta(EncodeMeta(image));
      ASSERT_TRUE(decoded.ok()) << decoded.error().message;
      EXPECT_EQ(decoded->image, WithoutValues(image));
      ASSERT_EQ(decoded->rows.size(), rows ? 2u : 0u);
      if (!rows) continue;
      EXPECT_EQ(decoded->rows[0].rows, 250u);
      EXPECT_EQ(decoded->rows[0].sketch_bytes, 300'032u);
      EXPECT_EQ(decoded->rows[1].rows, 2u);
      EXPECT_EQ(decoded->rows[1].sketch_bytes, 0u);
    }
  }
}

TEST(RecordTest, KeysOfRowsSortAsTheirNumbersDo) {
  const auto rows = [](std::uint32_t shard, std::uint32_t table, std::uint64_t first) {
    return EncodeRowKey(RecordKind::kRows, ShardId(shard), table, first);
  };
  EXPECT_LT(EncodeKey(RecordKind::kBlock, ShardId(4000), 9), rows(0, 0, 0));
  EXPECT_LT(rows(1, 2, 255), rows(1, 2, 256));
  EXPECT_LT(rows(1, 2, 0x7fff'ffff'ffff'ffff), rows(1, 2, 0x8000'0000'0000'0000));
  EXPECT_LT(rows(1, 2, ~std::uint64_t{0}), rows(1, 3, 0));
  EXPECT_LT(rows(1, 900, 7), rows(256, 0, 0));
  EXPECT_LT(rows(4000, 900, 7), EncodeRowKey(RecordKind::kSketch, ShardId(0), 0, 0));
  const Result<RecordKey> key = DecodeKey(rows(70000, 12, 0x0102'0304'0506'0708));
  ASSERT_TRUE(key.ok());
  EXPECT_EQ(key->kind, RecordKind::kRows);
  EXPECT_EQ(key->shard, ShardId(70000));
  EXPECT_EQ(key->block, 12u);
  EXPECT_EQ(key->first, 0x0102'0304'0506'0708u);
  EXPECT_FALSE(DecodeKey(rows(1, 2, 3).substr(0, kKeyBytes)).ok());
  EXPECT_FALSE(DecodeKey(EncodeKey(RecordKind::kBlock, ShardId(1), 2) + "12345678").ok());
}

TEST(RecordTest, RowsComeBackInOrderOrNotAtAll) {
  const ShardImage image = WithRows(MakeImage(1), 4, 20'000);
  const RowTableImage& table = image.rows[0];
  const std::size_t per_record = RowsPerRecord(table);
  EXPECT_EQ(per_record, kChunkBytes / 40);
  const auto content = [&](std::size_t first, std::size_t rows) {
    return std::string(reinterpret_cast<const char*>(table.records.data()) + first * 40, rows * 40);
  };
  RowTableImage read = table;
  read.records.clear();
  const std::uint64_t rows = table.rows();
  EXPECT_FALSE(DecodeRows(content(0, per_record - 1), table.key(0), rows, read).ok()) << "too few";
  EXPECT_FALSE(DecodeRows(content(0, per_record + 1), table.key(0), rows, read).ok()) << "too many";
  EXPECT_FALSE(DecodeRows(content(0, per_record), table.key(1), rows, read).ok()) << "another key";
  EXPECT_FALSE(DecodeRows("", table.key(0), rows, read).ok());
  EXPECT_TRUE(read.records.empty());
  for (std::size_t at = 0; at < rows; at += per_record) {
    const std::size_t count = std::min<std::size_t>(per_record, rows - at);
    ASSERT_TRUE(DecodeRows(content(at, count), table.key(at), rows, read).ok());
  }
  EXPECT_EQ(read, table);
  EXPECT_FALSE(DecodeRows(content(0, 1), table.key(0), rows, read).ok()) << "one record more";

  RowTableImage sketch = table;
  sketch.sketch.clear();
  const std::string bytes(table.sketch.begin(), table.sketch.end());
  EXPECT_FALSE(DecodeSketch(bytes.substr(0, 100), 0, bytes.size(), sketch).ok());
  ASSERT_TRUE(DecodeSketch(bytes.substr(0, kChunkBytes), 0, bytes.size(), sketch).ok());
  EXPECT_FALSE(DecodeSketch(bytes.substr(kChunkBytes), 0, bytes.size(), sketch).ok());
  ASSERT_TRUE(DecodeSketch(bytes.substr(kChunkBytes), kChunkBytes, bytes.size(), sketch).ok());
  EXPECT_EQ(sketch, table);
}

TEST(RecordTest, AMetaCutAnywhereIsRefused) {
  const std::string meta = EncodeMeta(WithRows(MakeImage(10), 16, 250));
  for (std::size_t size = 0; size < meta.size(); ++size) {
    EXPECT_FALSE(DecodeMeta(std::string_view(meta).substr(0, size)).ok()) << size;
  }
  EXPECT_FALSE(DecodeMeta(meta + "x").ok());
}

TEST(RecordTest, ABlockHoldsItsValuesSlotsAndCountsTogether) {
  const ShardImage image = MakeImage(11);
  ShardImage read = WithoutValues(image);
  read.values.resize(image.values.size());
  read.slots.floats.resize(image.slots.floats.size());
  read.slots.updates.resize(image.slots.updates.size());
  std::size_t offset = 0;
  for (std::size_t block = 0; block < image.block_elements.size(); ++block) {
    const std::string content = EncodeBlock(image, block, offset);
    EXPECT_EQ(content.size(), image.block_elements[block] * 16u);
    EXPECT_FALSE(DecodeBlock(content.substr(1), block, offset, read).ok());
    ASSERT_TRUE(DecodeBlock(content, block, offset, read).ok());
    offset += image.block_elements[block];
  }
  EXPECT_EQ(read, image);
}

TEST(RecordTest, SlotsOfAnUnknownKindAreRefused) {
  const std::string meta = EncodeMeta(MakeImage(9));
  // Behind magic and version, shard, job, round, epoch, lineage, version, samples, first block, the
  // number of blocks and three blocks.
  const std::size_t at = 8 + 4 + 4 + 8 + 8 + 4 + 4 + 8 + 8 + 4 + 4 + 12;
  for (const std::size_t byte : {at + 1, at + 2, at + 3}) {
    std::string changed = meta;
    changed[byte] = 3;
    EXPECT_FALSE(DecodeMeta(changed).ok()) << byte - at;
  }
}

TEST(RecordTest, AnotherFormatVersionIsNamed) {
  std::string meta = EncodeMeta(MakeImage(9));
  meta[8] = kFormatVersion + 1;
  Result<ShardMeta> decoded = DecodeMeta(meta);
  ASSERT_FALSE(decoded.ok());
  EXPECT_NE(decoded.error().message.find("format version 4, this program reads 3"),
            std::string::npos);
  meta[8] = 2;
  decoded = DecodeMeta(meta);
  ASSERT_FALSE(decoded.ok());
  EXPECT_NE(decoded.error().message.find("format version 2, this program reads 3"),
            std::string::npos);
}

TEST(RecordTest, ATableOfRowsOfAnImpossibleShapeIsRefused) {
  const ShardImage image = WithRows(MakeImage(9), 16, 250);
  const std::string meta = EncodeMeta(image);
  constexpr std::size_t kTableBytes = 40;
  const std::size_t at = meta.size() - 2 * kTableBytes;
  ASSERT_EQ(meta[at], 3) << "the width of the first table";
  const auto refused = [&](std::size_t byte, int value) {
    std::string changed = meta;
    changed[at + byte] = static_cast<char>(value);
    return !DecodeMeta(changed).ok();
  };
  EXPECT_TRUE(refused(0, 0)) << "no width";
  EXPECT_TRUE(refused(1, 5)) << "a width beyond 1,024";
  EXPECT_TRUE(refused(4, 7)) << "more slots than two for each value";
  for (const std::size_t byte : {9u, 10u, 11u}) EXPECT_TRUE(refused(byte, 1)) << "reserved";
  EXPECT_FALSE(refused(4, 6));
}

TEST(RecordTest, RandomBytesNeverCrashTheDecoder) {
  std::mt19937 random(1);
  const std::string meta = EncodeMeta(WithRows(MakeImage(9), 16, 250));
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = meta;
    for (int i = 0; i < 4; ++i) bytes[random() % bytes.size()] = static_cast<char>(random());
    (void)DecodeMeta(bytes).ok();
  }
}

TEST(ImageTest, PartsThatDisagreeAreRefused) {
  EXPECT_TRUE(CheckImage(MakeImage(1)).ok());
  ShardImage image = MakeImage(1);
  image.values.pop_back();
  EXPECT_FALSE(CheckImage(image).ok());
  image = MakeImage(1, {});
  EXPECT_FALSE(CheckImage(image).ok());
  image = MakeImage(1, {0, 4});
  EXPECT_FALSE(CheckImage(image).ok());
  image = MakeImage(1, {65537});
  EXPECT_FALSE(CheckImage(image).ok());
  image = MakeImage(1);
  image.marks[1].watermark = Clock(599);
  EXPECT_FALSE(CheckImage(image).ok());
  image = MakeImage(1);
  image.slots.floats.pop_back();
  EXPECT_FALSE(CheckImage(image).ok());
  image = MakeImage(1);
  image.slots.updates.pop_back();
  EXPECT_FALSE(CheckImage(image).ok());
  image = MakeImage(1);
  image.marks[1].verdicts = {0};
  EXPECT_FALSE(CheckImage(image).ok());
  image = MakeImage(1);
  std::swap(image.held[0], image.held[1]);
  EXPECT_FALSE(CheckImage(image).ok());
  image.held[1] = image.held[0];
  EXPECT_FALSE(CheckImage(image).ok());
}

TEST(ImageTest, TheDigestDependsOnEverythingInTheImage) {
  const ShardImage image = MakeImage(2);
  const std::string digest = Digest(image);
  EXPECT_TRUE(IsHexDigest(digest));
  EXPECT_EQ(Digest(MakeImage(2)), digest);
  const std::vector<void (*)(ShardImage&)> changes = {
      [](ShardImage& i) { i.job = JobId(4); },
      [](ShardImage& i) { i.round = Round(13); },
      [](ShardImage& i) { i.shard = ShardId(5); },
      [](ShardImage& i) { i.epoch = Epoch(77); },
      [](ShardImage& i) { ++i.lineage; },
      [](ShardImage& i) { ++i.version; },
      [](ShardImage& i) { ++i.samples_trained; },
      [](ShardImage& i) { ++i.first_block; },
      [](ShardImage& i) { std::swap(i.block_elements[0], i.block_elements[2]); },
      [](ShardImage& i) { i.values[100] += 1; },
      [](ShardImage& i) { i.slots.optimizer = 6; },
      [](ShardImage& i) { i.slots.floats[100] += 1; },
      [](ShardImage& i) { ++i.slots.updates[100]; },
      [](ShardImage& i) { i.marks.pop_back(); },
      [](ShardImage& i) { i.marks[0].verdicts[0] = 2; },
      [](ShardImage& i) { i.marks[0].watermark = Clock(601); },
      [](ShardImage& i) { i.held.pop_back(); },
      [](ShardImage& i) { i.held[0].clock = Clock(599); },
      [](ShardImage& i) { i.held[0].samples = 33; },
      [](ShardImage& i) { i.held[0].bytes[1] = std::byte{3}; },
  };
  for (std::size_t i = 0; i < changes.size(); ++i) {
    ShardImage changed = image;
    changes[i](changed);
    EXPECT_NE(Digest(changed), digest) << i;
  }
}

TEST(ImageTest, TheDigestOfValuesIsThatOfTheirBytesAlone) {
  ShardImage image = MakeImage(1);
  const std::string digest = ValuesDigest(image.values);
  image.version = 5;
  EXPECT_EQ(ValuesDigest(image.values), digest);
  image.values[0] = 9;
  EXPECT_NE(ValuesDigest(image.values), digest);
  EXPECT_EQ(ValuesDigest({}), "99aa06d3014798d86001c324468d497f");
}

}  // namespace
}  // namespace ps::checkpoint
