#include "checkpoint/export.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/checkpoint/checkpoint_fixture.h"

namespace ps::checkpoint {
namespace {

class ExportTest : public CheckpointTest {
 protected:
  // Six shards on three servers: parameters over the first five and a half, counters in the last.
  void SetUp() override {
    CheckpointTest::SetUp();
    std::vector<std::pair<std::string, WrittenShard>> all;
    for (std::uint32_t server = 0; server < 3; ++server) {
      const std::string name = "server-" + std::to_string(server);
      std::vector<ShardImage> images;
      for (const std::uint32_t shard : {2 * server, 2 * server + 1}) {
        ShardImage image = WithRows(MakeImage(shard, {50, 6}), 6, 400, 64);
        if (shard == 5) std::fill(image.values.end() - 6, image.values.end(), 40.0F);
        values_.insert(values_.end(), image.values.begin(), image.values.end());
        for (const RowTableImage& table : image.rows) {
          for (std::size_t row = 0; row < table.rows(); ++row) {
            float first;
            std::memcpy(&first, table.records.data() + row * table.record_bytes() + kRowHeaderBytes,
                        sizeof(first));
            rows_[table.table][table.key(row)] = first;
          }
        }
        images.push_back(std::move(image));
      }
      for (const WrittenShard& shard : WritePart(round() / name, images)) {
        all.emplace_back(name, shard);
      }
    }
    manifest_ = MakeManifest(all);
    manifest_.row_tables = {{"users", 3}, {"items", 1024}};
    manifest_.tables = {{"parameters", TableRule::Sgd, 330, {{"w", {11, 30}, 0, 330}}},
                        {"counters", TableRule::Maximum, 6, {{"n", {}, 0, 1}, {"m", {5}, 1, 5}}}};
    Store();
  }

  void Store() {
    const std::string text = *ToJson(manifest_);
    for (std::uint32_t server = 0; server < 3; ++server) {
      ASSERT_TRUE(WriteManifest(round() / ("server-" + std::to_string(server)), text).ok());
    }
  }
  Result<ExportReport> Export() const { return ExportCheckpoint(round(), "", target(), {}); }
  fs::path round() const { return root_ / "round-12"; }
  fs::path target() const { return root_ / "model"; }

  Manifest manifest_;
  std::vector<float> values_;
  std::map<std::uint32_t, std::map<std::uint64_t, float>> rows_;  // first value by table and key
};

TEST_F(ExportTest, TensorsAreThereByNameWithTheirValues) {
  const auto report = Export();
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->files.size(), 6u);
  const std::string file = ReadFile(target() / "model.safetensors");
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof(length));
  ASSERT_LE(8 + length, file.size());
  EXPECT_EQ(length % 8, 0u);
  const auto header = nlohmann::json::parse(file.substr(8, length));
  EXPECT_EQ(header["w"]["dtype"], "F32");
  EXPECT_EQ(header["w"]["shape"], nlohmann::json({11, 30}));
  EXPECT_EQ(header["n"]["dtype"], "I64");
  EXPECT_EQ(header["n"]["shape"], nlohmann::json::array());
  const auto bytes_of = [&](const char* name) {
    const std::size_t begin = header[name]["data_offsets"][0];
    const std::size_t end = header[name]["data_offsets"][1];
    return file.substr(8 + length + begin, end - begin);
  };
  EXPECT_EQ(8 + length + 330 * 4 + 6 * 8, file.size());
  EXPECT_EQ(bytes_of("w"), std::string(reinterpret_cast<const char*>(values_.data()), 330 * 4));
  std::vector<std::int64_t> counters(5);
  ASSERT_EQ(bytes_of("m").size(), 40u);
  std::memcpy(counters.data(), bytes_of("m").data(), 40);
  EXPECT_EQ(counters, std::vector<std::int64_t>(5, 40));
}

TEST_F(ExportTest, RowsAreThereOnceWithTheirKeys) {
  ASSERT_TRUE(Export().ok());
  for (const std::uint32_t table : {0U, 1U}) {
    const ManifestRowTable& of = manifest_.row_tables[table];
    const std::string keys = ReadFile(target() / (of.name + ".keys.npy"));
    const std::string values = ReadFile(target() / (of.name + ".values.npy"));
    const std::size_t rows = rows_[table].size();
    EXPECT_EQ(keys.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
    EXPECT_NE(keys.find("'<u8', 'fortran_order': False, 'shape': (" + std::to_string(rows) + ",)"),
              std::string::npos);
    EXPECT_NE(values.find("'<f4', 'fortran_order': False, 'shape': (" + std::to_string(rows) +
                          ", " + std::to_string(of.width) + ")"),
              std::string::npos);
    ASSERT_EQ(keys.size(), 128 + 8 * rows);
    ASSERT_EQ(values.size(), 128 + 4 * rows * of.width);
    std::map<std::uint64_t, float> found;
    for (std::size_t row = 0; row < rows; ++row) {
      std::uint64_t key = 0;
      std::memcpy(&key, keys.data() + 128 + 8 * row, sizeof(key));
      std::memcpy(&found[key], values.data() + 128 + 4 * row * of.width, sizeof(float));
    }
    EXPECT_EQ(found, rows_[table]);
  }
}

TEST_F(ExportTest, AFolderThatIsThereIsLeftAlone) {
  fs::create_directory(target());
  WriteFile(target() / "mine", "x");
  const auto report = Export();
  ASSERT_FALSE(report.ok());
  EXPECT_EQ(report.error().code, ErrorCode::kUsage);
  EXPECT_EQ(FilesOf(target()).size(), 1u);
}

TEST_F(ExportTest, WhatAnExportThatWasKilledLeftBehindIsReplaced) {
  fs::create_directory(target().string() + ".partial");
  WriteFile(target().string() + ".partial/model.safetensors", "half");
  ASSERT_TRUE(Export().ok());
  EXPECT_FALSE(fs::exists(target().string() + ".partial"));
}

TEST_F(ExportTest, ADamagedShardLeavesNothing) {
  for (const fs::path& file : FilesOf(round() / "server-1")) {
    if (file.extension() != ".sst") continue;
    std::string bytes = ReadFile(file);
    bytes[bytes.size() / 3] = static_cast<char>(bytes[bytes.size() / 3] ^ 1);
    WriteFile(file, bytes);
  }
  const auto report = Export();
  ASSERT_FALSE(report.ok());
  EXPECT_EQ(report.error().code, ErrorCode::kInvalid);
  EXPECT_FALSE(fs::exists(target()));
  EXPECT_FALSE(fs::exists(target().string() + ".partial"));
}

TEST_F(ExportTest, NamesThatLeadElsewhereAndTwiceTheSameNameAreRefused) {
  manifest_.row_tables[0].name = "../users";
  Store();
  EXPECT_EQ(Export().error().code, ErrorCode::kInvalid);
  manifest_.row_tables[0].name = "items";
  Store();
  EXPECT_EQ(Export().error().code, ErrorCode::kInvalid);
  manifest_.row_tables[0].name = "users";
  manifest_.tables[1].tensors[0].name = "w";
  Store();
  const auto report = Export();
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.error().message.find("two tensors have the name `w`"), std::string::npos);
  EXPECT_FALSE(fs::exists(target().string() + ".partial"));
}

TEST_F(ExportTest, TablesThatAreNotWhatTheShardsHoldAreRefused) {
  manifest_.tables[0].elements = 331;
  Store();
  EXPECT_EQ(Export().error().code, ErrorCode::kInvalid);
  manifest_.tables[0].elements = 330;
  manifest_.row_tables[0].width = 4;
  Store();
  EXPECT_EQ(Export().error().code, ErrorCode::kInvalid);
  EXPECT_FALSE(fs::exists(target()));
}

}  // namespace
}  // namespace ps::checkpoint
