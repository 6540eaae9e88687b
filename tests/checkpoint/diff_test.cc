#include "checkpoint/diff.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/checkpoint/checkpoint_fixture.h"

namespace ps::checkpoint {
namespace {

// Two checkpoints of two shards on two servers, of which the second may be changed before it is
// written.
class DiffTest : public CheckpointTest {
 protected:
  void SetUp() override {
    CheckpointTest::SetUp();
    for (std::uint32_t shard = 0; shard < 2; ++shard) {
      before_.push_back(WithRows(MakeImage(shard, {50, 6}), 2, 400, 64));
    }
    after_ = before_;
    before_manifest_ = Store("ckpt-12", before_, kSpec);
  }

  Manifest Store(const std::string& name, const std::vector<ShardImage>& images,
                 const std::string& spec, const fs::path& server = "server-") {
    std::vector<std::pair<std::string, WrittenShard>> all;
    for (const ShardImage& image : images) {
      const std::string part = server.string() + std::to_string(image.shard.value());
      for (const WrittenShard& shard : WritePart(root_ / name / part, {image})) {
        all.emplace_back(part, shard);
      }
    }
    Manifest manifest = MakeManifest(all);
    manifest.row_tables = {{"users", 3}, {"items", 1024}};
    // The first block of the second shard lies in both tables.
    manifest.tables = {{"parameters", TableRule::Sgd, 80, {{"w", {80}, 0, 80}}},
                       {"buffers", TableRule::Average, 32, {{"b", {32}, 0, 32}}}};
    manifest.spec_json = spec;
    const auto text = ToJson(manifest);
    EXPECT_TRUE(text.ok()) << text.error().message;
    for (const ShardImage& image : images) {
      const std::string part = server.string() + std::to_string(image.shard.value());
      EXPECT_TRUE(WriteManifest(root_ / name / part, *text).ok());
    }
    return manifest;
  }

  Result<DiffReport> Diff(const std::string& spec = kSpec) {
    Store("ckpt-13", after_, spec);
    return DiffCheckpoints({root_ / "ckpt-12", ""}, {root_ / "ckpt-13", ""}, {});
  }

  static constexpr const char* kSpec =
      R"({"name":"mlp","training":{"epochs":1.5,"workers":2},"model":{"layers":[2,3]}})";
  std::vector<ShardImage> before_;
  std::vector<ShardImage> after_;
  Manifest before_manifest_;
};

TEST_F(DiffTest, EqualCheckpointsDifferInNothing) {
  // What only the optimizer keeps is not compared.
  after_[1].slots.floats[3] += 1;
  ++after_[1].version;
  const auto report = Diff();
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_FALSE(report->different());
  EXPECT_EQ(report->before.round, Round(12));
  ASSERT_EQ(report->tables.size(), 2u);
  EXPECT_EQ(report->tables[0].name, "parameters");
  EXPECT_EQ(report->tables[0].elements, 80u);
  EXPECT_EQ(report->tables[0].elements_changed, 0u);
  EXPECT_EQ(report->tables[0].blocks, 3u);
  EXPECT_EQ(report->tables[1].blocks, 2u);
  double squares = 0;
  for (std::size_t i = 0; i < 80; ++i) {
    const double value = i < 56 ? before_[0].values[i] : before_[1].values[i - 56];
    squares += value * value;
  }
  EXPECT_DOUBLE_EQ(report->tables[0].values.before_norm, std::sqrt(squares));
  EXPECT_EQ(report->tables[0].values.difference_norm, 0);
  ASSERT_EQ(report->row_tables.size(), 2u);
  EXPECT_EQ(report->row_tables[0].rows_before, 800u);
  EXPECT_EQ(report->row_tables[0].rows_after, 800u);
  EXPECT_EQ(report->row_tables[1].rows_changed, 0u);
  EXPECT_GT(report->row_tables[1].values.before_norm, 0);
  EXPECT_TRUE(report->spec.empty());
}

TEST_F(DiffTest, ChangedValuesAreCountedByTableAndBlock) {
  before_[0].values.assign(56, 1.0F);
  before_[1].values.assign(56, 1.0F);
  fs::remove_all(root_ / "ckpt-12");
  Store("ckpt-12", before_, kSpec);
  after_[0].values.assign(56, 1.0F);
  after_[1].values.assign(56, 1.0F);
  after_[0].values[2] = 4.0F;   // parameters, its first block
  after_[0].values[3] = -3.0F;  // the same
  after_[1].values[23] = 2.0F;  // the last of the parameters
  after_[1].values[24] = 0.5F;  // the first of the buffers, of the same block
  after_[1].values[55] = std::numeric_limits<float>::infinity();
  const auto report = Diff();
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_TRUE(report->different());
  const TableDiff& parameters = report->tables[0];
  EXPECT_EQ(parameters.blocks_changed, 2u);
  EXPECT_EQ(parameters.elements_changed, 3u);
  EXPECT_DOUBLE_EQ(parameters.values.before_norm, std::sqrt(80.0));
  EXPECT_DOUBLE_EQ(parameters.values.difference_norm, std::sqrt(9.0 + 16.0 + 1.0));
  EXPECT_DOUBLE_EQ(parameters.values.largest, 4.0);
  EXPECT_EQ(parameters.values.nonfinite, 0u);
  const TableDiff& buffers = report->tables[1];
  EXPECT_EQ(buffers.blocks_changed, 2u);
  EXPECT_EQ(buffers.elements_changed, 2u);
  EXPECT_DOUBLE_EQ(buffers.values.difference_norm, 0.5);
  EXPECT_DOUBLE_EQ(buffers.values.before_norm, std::sqrt(31.0));
  EXPECT_EQ(buffers.values.nonfinite, 1u);
}

TEST_F(DiffTest, RowsThatCameWentAndChangedAreCounted) {
  RowTableImage& users = after_[0].rows[0];
  const std::size_t bytes = users.record_bytes();
  float value = 0;
  std::memcpy(&value, users.records.data() + 5 * bytes + kRowHeaderBytes, sizeof(value));
  value += 2.0F;
  std::memcpy(users.records.data() + 5 * bytes + kRowHeaderBytes, &value, sizeof(value));
  // Two rows less, at both ends, and three more in the other shard.
  users.records.erase(users.records.begin(),
                      users.records.begin() + static_cast<std::ptrdiff_t>(bytes));
  users.records.resize(users.records.size() - bytes);
  RowTableImage& others = after_[1].rows[0];
  std::mt19937 random(99);
  for (std::uint64_t key = 1; others.rows() < 403; ++key) {
    if (codec::ShardOfRow(key, 2) == ShardId(1)) AddRow(others, key, random);
  }
  SortRows(others);
  const auto report = Diff();
  ASSERT_TRUE(report.ok()) << report.error().message;
  const RowTableDiff& diff = report->row_tables[0];
  EXPECT_EQ(diff.rows_before, 800u);
  EXPECT_EQ(diff.rows_after, 801u);
  EXPECT_EQ(diff.rows_added, 3u);
  EXPECT_EQ(diff.rows_removed, 2u);
  EXPECT_EQ(diff.rows_changed, 1u);
  EXPECT_NEAR(diff.values.difference_norm, 2.0, 1e-6);
  EXPECT_EQ(report->row_tables[1].rows_changed, 0u);
  EXPECT_TRUE(report->different());
}

TEST_F(DiffTest, KeysOfTheJobsThatDifferAreNamed) {
  const auto report = Diff(
      R"({"name":"mlp","training":{"epochs":3,"workers":2,"seed":7},"model":{"layers":[2,4]}})");
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_TRUE(report->different());
  ASSERT_EQ(report->spec.size(), 3u);
  EXPECT_EQ(report->spec[0].path, "model.layers");
  EXPECT_EQ(report->spec[0].before, "[2,3]");
  EXPECT_EQ(report->spec[0].after, "[2,4]");
  EXPECT_EQ(report->spec[1].path, "training.epochs");
  EXPECT_EQ(report->spec[1].before, "1.5");
  EXPECT_EQ(report->spec[2].path, "training.seed");
  EXPECT_EQ(report->spec[2].before, "");
  EXPECT_EQ(report->spec[2].after, "7");
}

TEST_F(DiffTest, CheckpointsOfOtherModelsAreNotCompared) {
  after_[0].block_elements = {49, 7};
  EXPECT_EQ(Diff().error().code, ErrorCode::kInvalid);
  // One shard of the same number of elements.
  Store("one", {WithRows(MakeImage(0, {112}), 1, 400, 64)}, kSpec);
  const auto fewer = DiffCheckpoints({root_ / "ckpt-12", ""}, {root_ / "one", ""}, {});
  ASSERT_FALSE(fewer.ok());
  EXPECT_NE(fewer.error().message.find("shards"), std::string::npos) << fewer.error().message;
}

TEST_F(DiffTest, ADamagedCheckpointAndAnotherHashAreRefused) {
  ASSERT_TRUE(Diff().ok());
  const auto other =
      DiffCheckpoints({root_ / "ckpt-12", std::string(32, 'a')}, {root_ / "ckpt-13", ""}, {});
  EXPECT_FALSE(other.ok());
  EXPECT_EQ(DiffCheckpoints({root_ / "none", ""}, {root_ / "ckpt-13", ""}, {}).error().code,
            ErrorCode::kNotFound);
  for (const fs::path& file : FilesOf(root_ / "ckpt-13" / "server-1")) {
    if (file.extension() != ".sst") continue;
    std::string bytes = ReadFile(file);
    bytes[bytes.size() / 4] = static_cast<char>(bytes[bytes.size() / 4] ^ 1);
    WriteFile(file, bytes);
  }
  const auto damaged = DiffCheckpoints({root_ / "ckpt-12", ""}, {root_ / "ckpt-13", ""}, {});
  ASSERT_FALSE(damaged.ok());
  EXPECT_EQ(damaged.error().code, ErrorCode::kInvalid);
  EXPECT_NE(damaged.error().message.find("ckpt-13"), std::string::npos) << damaged.error().message;
}

}  // namespace
}  // namespace ps::checkpoint
