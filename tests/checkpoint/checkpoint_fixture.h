// A scratch directory, and shard images with reproducible content, for the tests of checkpoints.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/image.h"
#include "checkpoint/manifest.h"
#include "checkpoint/writer.h"
#include "common/codec/row_codec.h"

namespace ps::checkpoint {

namespace fs = std::filesystem;

inline ShardImage MakeImage(std::uint32_t shard,
                            std::vector<std::uint32_t> blocks = {7, 65536, 1}) {
  ShardImage image;
  image.job = JobId(3);
  image.round = Round(12);
  image.shard = ShardId(shard);
  image.epoch = Epoch(shard + 1);
  image.lineage = 2;
  image.version = 1000 + shard;
  image.samples_trained = 128000;
  image.first_block = shard * 3;
  image.block_elements = std::move(blocks);
  std::size_t elements = 0;
  for (const std::uint32_t count : image.block_elements) elements += count;
  std::mt19937 random(shard);
  std::uniform_real_distribution<float> values(-1, 1);
  for (std::size_t i = 0; i < elements; ++i) image.values.push_back(values(random));
  // One shard of three has no slots, one Adam's counted per block, one counted per element.
  if (shard % 3 != 0) {
    image.slots.optimizer = 5;
    image.slots.per_element = 2;
    for (std::size_t i = 0; i < 2 * elements; ++i) image.slots.floats.push_back(values(random));
    const bool per_block = shard % 3 == 1;
    image.slots.counts = per_block ? UpdateCounts::kPerBlock : UpdateCounts::kPerElement;
    image.slots.updates.resize(per_block ? image.block_elements.size() : elements);
    for (std::uint32_t& updates : image.slots.updates) updates = random() % 1000;
  }
  image.marks = {{WorkerId(0), Incarnation(5), Clock(10), Clock(600), {0, 0, 1, 2}},
                 {WorkerId(1), Incarnation(6), Clock(600), Clock(600), {}}};
  image.held = {{WorkerId(0), Incarnation(5), Clock(600), 32, {std::byte{1}, std::byte{2}}},
                {WorkerId(1), Incarnation(6), Clock(600), 7, {}}};
  return image;
}

inline void AddRow(RowTableImage& table, std::uint64_t key, std::mt19937& random) {
  const std::uint32_t updates = 1 + random() % 9;
  const std::uint32_t last_used = random() % (table.tick + 1);
  const auto append = [&table](const auto& value) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    table.records.insert(table.records.end(), bytes, bytes + sizeof(value));
  };
  append(key);
  append(updates);
  append(last_used);
  std::uniform_real_distribution<float> values(-1, 1);
  for (std::uint32_t i = 0; i < table.width + table.slots; ++i) append(values(random));
}

// The image of one of `shards` shards with two tables: `rows` rows of three values with three slots
// and a sketch, and a hundredth of that of 1,024 values without any.
inline ShardImage WithRows(ShardImage image, std::uint32_t shards, std::size_t rows,
                           std::size_t sketch_bytes = 300'032) {
  std::mt19937 random(image.shard.value() + 77);
  RowTableImage narrow;
  narrow.width = 3;
  narrow.optimizer = 3;
  narrow.slots = 3;
  narrow.tick = 125;
  narrow.sightings = 4242;
  narrow.sketch.resize(sketch_bytes);
  for (std::uint8_t& counter : narrow.sketch) counter = static_cast<std::uint8_t>(random());
  RowTableImage wide;
  wide.table = 1;
  wide.width = 1024;
  wide.tick = 3;
  for (RowTableImage* table : {&narrow, &wide}) {
    const std::size_t count = table == &narrow ? rows : rows / 100;
    while (table->rows() < count) {
      const std::uint64_t key = std::uint64_t{random()} << 32 | random();
      if (codec::ShardOfRow(key, shards) == image.shard) AddRow(*table, key, random);
    }
    SortRows(*table);
    image.rows.push_back(std::move(*table));
  }
  return image;
}

class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "ds-checkpoint-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root_ = name;
  }
  void TearDown() override {
    std::error_code error;
    fs::remove_all(root_, error);
  }

  std::vector<WrittenShard> WritePart(const fs::path& directory,
                                      const std::vector<ShardImage>& images) {
    Result<Writer> writer = Writer::Open(directory, 0);
    if (!writer.ok()) {
      ADD_FAILURE() << writer.error().message;
      return {};
    }
    for (const ShardImage& image : images) {
      const Status added = writer->Add(image);
      EXPECT_TRUE(added.ok()) << (added.ok() ? "" : added.error().message);
    }
    Result<std::vector<WrittenShard>> written = writer->Finish();
    if (!written.ok()) {
      ADD_FAILURE() << written.error().message;
      return {};
    }
    return *written;
  }

  static std::string ReadFile(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  static void WriteFile(const fs::path& path, const std::string& content) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
  }
  static std::vector<fs::path> FilesOf(const fs::path& directory) {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(directory)) files.push_back(entry.path());
    return files;
  }

  fs::path root_;
};

// A manifest of `written` shards of one server, for job 3 and round 12 as in MakeImage.
inline Manifest MakeManifest(const std::vector<std::pair<std::string, WrittenShard>>& written) {
  Manifest manifest;
  manifest.job = JobId(3);
  manifest.job_name = "fashion \"mlp\" é";
  manifest.round = Round(12);
  manifest.generation = 1;
  manifest.time_ms = 1'700'000'000'123;
  manifest.step = 600;
  manifest.samples = 128000;
  manifest.layout_fingerprint = 0xFFEEDDCCBBAA9988;
  manifest.tables = {{"parameters",
                      TableRule::Sgd,
                      100,
                      {{"fc1.weight", {10, 9}, 0, 90}, {"fc1.bias", {10}, 90, 10}}},
                     {"counters", TableRule::Maximum, 1, {{"batches", {}, 0, 1}}}};
  for (std::size_t i = 0; i < written.size(); ++i) {
    const WrittenShard& shard = written[i].second;
    manifest.shards.push_back({shard.shard, written[i].first, shard.epoch, shard.version,
                               shard.bytes, shard.digest, shard.values_digest, shard.rows,
                               shard.state_bytes, shard.bases});
  }
  manifest.data = {{{1000, 2000}, {2000, 2010}, {5000, 60000}}, 60000, 17};
  manifest.cuts = {{WorkerId(0), Incarnation(5), Clock(600)},
                   {WorkerId(1), Incarnation(6), Clock(640), true}};
  manifest.program_version = "0.1.0";
  manifest.spec_json = R"({"name":"mlp","training":{"epochs":1.5,"workers":2}})";
  return manifest;
}

}  // namespace ps::checkpoint
