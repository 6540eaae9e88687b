#include "checkpoint/record.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "checkpoint/content.h"
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

TEST(RecordTest, RecordsOfRowsAreOfWholeRowsUnderTheKeyOfTheFirst) {
  const ShardImage image = WithRows(MakeImage(1), 4, 20'000);
  const RowTableImage& table = image.rows[0];
  const std::size_t per_record = RowsPerRecord(table);
  EXPECT_EQ(per_record, kChunkBytes / 40);
  const auto content = [&](std::size_t first, std::size_t rows) {
    return std::string(reinterpret_cast<const char*>(table.records.data()) + first * 40, rows * 40);
  };
  EXPECT_TRUE(CheckRowsRecord(content(0, per_record), table.key(0), table).ok());
  EXPECT_TRUE(CheckRowsRecord(content(7, 1), table.key(7), table).ok());
  EXPECT_FALSE(CheckRowsRecord(content(0, per_record + 1), table.key(0), table).ok());
  EXPECT_FALSE(CheckRowsRecord(content(0, 3), table.key(1), table).ok()) << "another key";
  EXPECT_FALSE(CheckRowsRecord(content(0, 3).substr(1), table.key(0), table).ok());
  EXPECT_FALSE(CheckRowsRecord("", table.key(0), table).ok());
}

TEST(RecordTest, RemovedKeysIncrease) {
  const auto content = [](std::vector<std::uint64_t> keys) {
    return std::string(reinterpret_cast<const char*>(keys.data()), keys.size() * 8);
  };
  EXPECT_TRUE(CheckRemovedRecord(content({0, 1, 700}), 0).ok());
  EXPECT_FALSE(CheckRemovedRecord(content({3, 4}), 2).ok());
  EXPECT_FALSE(CheckRemovedRecord(content({3, 4, 4}), 3).ok());
  EXPECT_FALSE(CheckRemovedRecord(content({3, 2}), 3).ok());
  EXPECT_FALSE(CheckRemovedRecord("", 0).ok());
  EXPECT_FALSE(CheckRemovedRecord(content({3}) + "x", 3).ok());
  EXPECT_FALSE(CheckRemovedRecord(std::string(kChunkBytes + 8, 1), 1).ok());
}

TEST(RecordTest, TheRoundsThatAPartBuildsOnAreEarlierAndDecrease) {
  const std::vector<Round> bases = {Round(9), Round(7), Round(2)};
  EXPECT_EQ(DecodeBases(EncodeBases(bases)).value(), bases);
  EXPECT_FALSE(DecodeBases("").ok());
  EXPECT_FALSE(DecodeBases(EncodeBases(bases) + "x").ok());
  EXPECT_FALSE(DecodeBases(std::string(8 * (kBasesMax + 1), 1)).ok());
  EXPECT_TRUE(CheckBases(Round(10), bases).ok());
  EXPECT_FALSE(CheckBases(Round(9), bases).ok());
  EXPECT_FALSE(CheckBases(Round(12), std::vector<Round>{Round(7), Round(9)}).ok());
  EXPECT_FALSE(CheckBases(Round(12), std::vector<Round>{Round(7), Round(0)}).ok());
}

TEST(RecordTest, ContentThatDoesNotFitWhatCameBeforeStopsAtTheCheck) {
  const ShardImage image = WithRows(MakeImage(1, {7, 500}), 4, 20'000);
  const auto chars = [](const auto& bytes, std::size_t from, std::size_t count) {
    return std::string(reinterpret_cast<const char*>(bytes.data()) + from, count);
  };
  const auto& records = image.rows[0].records;
  const auto& sketch = image.rows[0].sketch;
  // Sends the beginning of the image, and then what `more` does.
  const auto refused = [&](int parts, auto more) {
    ImageSink sink(std::uint64_t{1} << 30);
    ContentCheck check(image.shard, sink, true);
    if (parts > 0) {
      EXPECT_TRUE(check.AddMeta(EncodeMeta(image)).ok());
    }
    if (parts > 1) {
      EXPECT_TRUE(check.AddBlock(3, EncodeBlock(image, 0, 0)).ok());
    }
    if (parts > 2) {
      EXPECT_TRUE(check.AddBlock(4, EncodeBlock(image, 1, 7)).ok());
    }
    if (parts > 3) {
      EXPECT_TRUE(check.AddRows(0, chars(records, 0, 400)).ok());
    }
    const Status status = more(check);
    EXPECT_TRUE(status.ok() || status.error().code == ErrorCode::kInvalid);
    return !status.ok();
  };
  const auto finish = [](ContentCheck& check) -> Status {
    PS_TRY(check.Finish());
    return Ok();
  };
  for (int parts = 0; parts < 5; ++parts) EXPECT_TRUE(refused(parts, finish)) << parts;
  using Check = ContentCheck;
  EXPECT_TRUE(refused(0, [&](Check& to) { return to.AddBlock(3, EncodeBlock(image, 0, 0)); }));
  EXPECT_TRUE(refused(0, [&](Check& to) { return to.AddRows(0, chars(records, 0, 40)); }));
  EXPECT_TRUE(refused(0, [&](Check& to) { return to.AddMeta(EncodeMeta(MakeImage(2))); }));
  EXPECT_TRUE(refused(1, [&](Check& to) { return to.AddMeta(EncodeMeta(image)); })) << "a second";
  EXPECT_TRUE(refused(1, [&](Check& to) { return to.AddBlock(4, EncodeBlock(image, 0, 0)); }));
  EXPECT_TRUE(refused(1, [&](Check& to) { return to.AddBlock(3, EncodeBlock(image, 1, 7)); }));
  EXPECT_TRUE(refused(3, [&](Check& to) { return to.AddBlock(5, EncodeBlock(image, 0, 0)); }));
  EXPECT_TRUE(refused(4, [&](Check& to) { return to.AddRows(0, chars(records, 360, 40)); }))
      << "a row twice";
  EXPECT_TRUE(refused(4, [&](Check& to) { return to.AddRows(0, chars(records, 400, 39)); }));
  EXPECT_TRUE(refused(4, [&](Check& to) { return to.AddRows(2, chars(records, 400, 40)); }));
  std::string none = chars(records, 400, 40);
  std::memset(none.data() + 8, 0, 4);
  EXPECT_TRUE(refused(4, [&](Check& to) { return to.AddRows(0, none); })) << "of no updates";
  std::string late = chars(records, 400, 40);
  late[12] = static_cast<char>(image.rows[0].tick + 1);
  EXPECT_TRUE(refused(4, [&](Check& to) { return to.AddRows(0, late); })) << "after the cut";
  EXPECT_TRUE(refused(4, [&](Check& to) -> Status {
    PS_TRY(to.AddRows(0, chars(records, 400, records.size() - 400)));
    return to.AddRows(0, chars(records, 0, 40));
  })) << "a row too many";
  EXPECT_TRUE(refused(3, [&](Check& to) { return to.AddSketch(0, 0, chars(sketch, 0, 100)); }));
  EXPECT_TRUE(refused(
      3, [&](Check& to) { return to.AddSketch(0, kChunkBytes, chars(sketch, 0, kChunkBytes)); }));
  EXPECT_FALSE(
      refused(3, [&](Check& to) { return to.AddSketch(0, 0, chars(sketch, 0, kChunkBytes)); }));
}

TEST(RecordTest, AnImagePassesTheCheckWithItsDigestAndComesOutEqual) {
  for (std::uint32_t shard = 0; shard < 3; ++shard) {
    const ShardImage image = WithRows(MakeImage(shard), 4, 700);
    ImageSink sink(ContentBytes(image));
    ContentCheck check(image.shard, sink, true);
    ASSERT_TRUE(SendImage(image, check).ok());
    EXPECT_EQ(check.Finish().value(), Digest(image));
    EXPECT_EQ(sink.Take(), image);
    ImageSink small(ContentBytes(image) / 2);
    ContentCheck other(image.shard, small, true);
    EXPECT_FALSE(SendImage(image, other).ok()) << "more than there can be";
  }
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
  EXPECT_NE(decoded.error().message.find("format version 5, this program reads 4"),
            std::string::npos);
  meta[8] = 3;
  decoded = DecodeMeta(meta);
  ASSERT_FALSE(decoded.ok());
  EXPECT_NE(decoded.error().message.find("format version 3, this program reads 4"),
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
