#include "checkpoint/manifest.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/checkpoint/checkpoint_fixture.h"

namespace ps::checkpoint {
namespace {

class ManifestTest : public CheckpointTest {
 protected:
  static Manifest Example() {
    std::vector<std::pair<std::string, WrittenShard>> shards;
    for (std::uint32_t i = 0; i < 3; ++i) {
      WrittenShard shard;
      shard.shard = ShardId(i);
      shard.epoch = Epoch(i + 1);
      shard.version = UINT64_MAX - i;
      shard.bytes = 1000;
      shard.digest = HexDigest("image" + std::to_string(i));
      shard.values_digest = HexDigest("values" + std::to_string(i));
      shards.emplace_back(i == 2 ? "server-b" : "server-a", shard);
    }
    return MakeManifest(shards);
  }
  static std::string Text() { return *ToJson(Example()); }
  static std::string Replaced(std::string text, const std::string& from, const std::string& to) {
    const std::size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    if (at != std::string::npos) text.replace(at, from.size(), to);
    return text;
  }
  static std::string Refusal(const std::string& text) {
    const Result<Manifest> manifest = FromJson(text);
    if (manifest.ok()) return "accepted";
    EXPECT_EQ(manifest.error().code, ErrorCode::kInvalid);
    return manifest.error().message;
  }
};

TEST_F(ManifestTest, IsReadBackEqual) {
  const Result<Manifest> manifest = FromJson(Text());
  ASSERT_TRUE(manifest.ok()) << manifest.error().message;
  EXPECT_EQ(*manifest, Example());
  EXPECT_EQ(*ToJson(*manifest), Text());
}

TEST_F(ManifestTest, AFinalRoundWithoutRemainingDataIsReadBack) {
  Manifest manifest = Example();
  manifest.final_round = true;
  manifest.data.remaining.clear();
  manifest.cuts.clear();
  manifest.tables.clear();
  EXPECT_EQ(*FromJson(*ToJson(manifest)), manifest);
}

TEST_F(ManifestTest, TheLossScalesOfWorkersAreReadBack) {
  Manifest manifest = Example();
  ASSERT_FALSE(manifest.cuts.empty());
  for (const float scale : {65'536.0f, 0.1f, 1.7e38f, 3.0f}) {
    manifest.cuts[0].loss_scale = ManifestLossScale{scale, 1999};
    const std::string text = *ToJson(manifest);
    const Result<Manifest> read = FromJson(text);
    ASSERT_TRUE(read.ok()) << read.error().message;
    EXPECT_EQ(*read, manifest);
  }
  manifest.cuts[0].loss_scale = ManifestLossScale{0, 1};
  EXPECT_NE(ToJson(manifest).error().message.find("is not positive and finite"), std::string::npos);
}

TEST_F(ManifestTest, TheHashIsThatOfTheText) {
  EXPECT_EQ(Hash(Text()), Hash(Text()));
  EXPECT_TRUE(IsHexDigest(Hash(Text())));
  Manifest other = Example();
  ++other.step;
  EXPECT_NE(Hash(*ToJson(other)), Hash(Text()));
}

TEST_F(ManifestTest, EveryFlippedByteIsFound) {
  const std::string text = Text();
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string damaged = text;
    damaged[i] = static_cast<char>(damaged[i] ^ 1);
    EXPECT_FALSE(FromJson(damaged).ok()) << "at " << i << ": " << text.substr(i, 20);
  }
}

TEST_F(ManifestTest, EveryCutIsFound) {
  const std::string text = Text();
  for (std::size_t size = 0; size < text.size(); size += 3) {
    EXPECT_FALSE(FromJson(std::string_view(text).substr(0, size)).ok()) << size;
  }
  EXPECT_FALSE(FromJson(text + " ").ok());
}

TEST_F(ManifestTest, AnotherFormatVersionIsNamed) {
  EXPECT_NE(Refusal(Replaced(Text(), "\"format_version\": 4", "\"format_version\": 3"))
                .find("format version 3, this program reads 4"),
            std::string::npos);
  EXPECT_NE(Refusal(Replaced(Text(), "\"format_version\": 4", "\"format_version\": 5"))
                .find("format version 5"),
            std::string::npos);
}

TEST_F(ManifestTest, WrongTypesAreNamedByTheirPath) {
  EXPECT_NE(Refusal(Replaced(Text(), "\"samples\": 128000", "\"samples\": -1")).find("`samples`"),
            std::string::npos);
  EXPECT_NE(Refusal(Replaced(Text(), "\"epoch\": 2", "\"epoch\": 99999999999"))
                .find("shards[1] `epoch` is too large"),
            std::string::npos);
  EXPECT_NE(
      Refusal(Replaced(Text(), "\"rule\": \"maximum\"", "\"rule\": \"median\"")).find("median"),
      std::string::npos);
  EXPECT_NE(Refusal(Replaced(Text(), "\"cuts\": [", "\"cuts\": 5, \"x\": [")).find("`cuts`"),
            std::string::npos);
  EXPECT_NE(Refusal(Replaced(Text(), "\"step\": 600", "\"pets\": 600")).find("has no `step`"),
            std::string::npos);
  EXPECT_NE(Refusal(Replaced(Text(), "\"step\": 600", "\"step\": 600, \"extra\": 1"))
                .find("unknown members"),
            std::string::npos);
}

TEST_F(ManifestTest, WhatIsNotAnObjectIsRefused) {
  for (const char* text :
       {"", "null", "[]", "1", "\"x\"", "{", "{}", "\xff\xfe", "{\"a\":\"\xff\"}"}) {
    EXPECT_FALSE(FromJson(text).ok()) << text;
  }
}

TEST_F(ManifestTest, DeepNestingIsRefusedWithoutRecursion) {
  EXPECT_FALSE(FromJson(std::string(5'000'000, '[')).ok());
  std::string nested = "{\"a\":";
  for (int i = 0; i < 1000; ++i) nested += "{\"a\":";
  EXPECT_FALSE(FromJson(nested).ok());
}

TEST_F(ManifestTest, AnOversizedTextIsRefused) {
  EXPECT_FALSE(FromJson(std::string(kMaxManifestBytes + 1, ' ')).ok());
}

TEST_F(ManifestTest, RandomBytesAndRandomEditsAreNeverAccepted) {
  std::mt19937 random(7);
  const std::string text = Text();
  for (int round = 0; round < 2000; ++round) {
    std::string bytes;
    for (std::uint32_t i = random() % 200; i > 0; --i) bytes.push_back(static_cast<char>(random()));
    EXPECT_FALSE(FromJson(bytes).ok());
    std::string edited = text;
    const std::size_t from = random() % text.size();
    const std::size_t count = random() % 40;
    if (random() % 2 == 0) {
      edited.erase(from, count);
    } else {
      edited.insert(from, text.substr(random() % text.size(), count));
    }
    if (edited != text) {
      EXPECT_FALSE(FromJson(edited).ok()) << edited;
    }
  }
}

TEST_F(ManifestTest, AManifestThatContradictsItselfIsNotWritten) {
  const std::vector<std::pair<const char*, void (*)(Manifest&)>> cases = {
      {"no shards", [](Manifest& m) { m.shards.clear(); }},
      {"in order is", [](Manifest& m) { m.shards[1].shard = ShardId(2); }},
      {"name of a directory", [](Manifest& m) { m.shards[0].server = "../other"; }},
      {"name of a directory", [](Manifest& m) { m.shards[0].server = ".."; }},
      {"name of a directory", [](Manifest& m) { m.shards[0].server = ""; }},
      {"hex digits", [](Manifest& m) { m.shards[0].digest = "abc"; }},
      {"lies outside", [](Manifest& m) { m.tables[0].tensors[0].elements = UINT64_MAX; }},
      {"out of order", [](Manifest& m) { std::swap(m.data.remaining[0], m.data.remaining[1]); }},
      {"is empty", [](Manifest& m) { m.data.remaining[0].end = 1000; }},
      {"beyond", [](Manifest& m) { m.data.total_positions = 59999; }},
      {"two cuts", [](Manifest& m) { m.cuts.push_back(m.cuts[0]); }},
      {"spec", [](Manifest& m) { m.spec_json = "{"; }},
      {"spec", [](Manifest& m) { m.spec_json = "[1]"; }},
  };
  for (const auto& entry : cases) {
    Manifest manifest = Example();
    entry.second(manifest);
    const Result<std::string> text = ToJson(manifest);
    ASSERT_FALSE(text.ok()) << entry.first;
    EXPECT_NE(text.error().message.find(entry.first), std::string::npos) << text.error().message;
  }
}

TEST_F(ManifestTest, ANameThatIsNotUtf8IsStillWritten) {
  Manifest manifest = Example();
  manifest.job_name = "bad \xff name";
  const Result<std::string> text = ToJson(manifest);
  ASSERT_TRUE(text.ok());
  EXPECT_TRUE(FromJson(*text).ok());
}

TEST_F(ManifestTest, TheLargestJobFits) {
  Manifest manifest = Example();
  const ManifestShard shard = manifest.shards[0];
  manifest.shards.clear();
  for (std::uint32_t i = 0; i < kMaxShards; ++i) {
    manifest.shards.push_back(shard);
    manifest.shards.back().shard = ShardId(i);
  }
  EXPECT_EQ(*FromJson(*ToJson(manifest)), manifest);
  manifest.shards.push_back(shard);
  manifest.shards.back().shard = ShardId(kMaxShards);
  EXPECT_FALSE(ToJson(manifest).ok());
}

TEST_F(ManifestTest, TheFileIsWrittenAndRead) {
  ASSERT_TRUE(WriteManifest(root_, Text()).ok());
  EXPECT_EQ(*ReadManifest(root_), Text());
  EXPECT_EQ(FilesOf(root_).size(), 1u);
  const Result<std::string> missing = ReadManifest(root_ / "nowhere");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_FALSE(WriteManifest(root_ / "nowhere", Text()).ok());
}

}  // namespace
}  // namespace ps::checkpoint
