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
    const ShardImage image = MakeImage(shard);
    const Result<ShardImage> decoded = DecodeMeta(EncodeMeta(image));
    ASSERT_TRUE(decoded.ok()) << decoded.error().message;
    EXPECT_EQ(*decoded, WithoutValues(image));
  }
}

TEST(RecordTest, AMetaCutAnywhereIsRefused) {
  const std::string meta = EncodeMeta(MakeImage(10));
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
  const Result<ShardImage> decoded = DecodeMeta(meta);
  ASSERT_FALSE(decoded.ok());
  EXPECT_NE(decoded.error().message.find("format version 3, this program reads 2"),
            std::string::npos);
}

TEST(RecordTest, RandomBytesNeverCrashTheDecoder) {
  std::mt19937 random(1);
  const std::string meta = EncodeMeta(MakeImage(9));
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
