// Jobs that load parts of others' checkpoints: whatever the two are cut into, every element and row
// comes from where the mapping says.
#include "ps-server/shell/source_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/manifest.h"
#include "common/check.h"
#include "ps-server/core/shard.h"
#include "tests/ps-server/core/server_testing.h"
#include "tests/ps-server/shell/temporary_directory.h"

namespace ps::server {
namespace {

using ::testing::HasSubstr;
using testing::TemporaryDirectory;
using testing::operator+=;

using Shape = std::vector<std::int64_t>;

struct Tensor {
  std::string name;
  Shape shape;
};

std::uint64_t Product(const Shape& shape) {
  std::uint64_t product = 1;
  for (const auto size : shape) product *= static_cast<std::uint64_t>(size);
  return product;
}

// A model of parameters, in blocks of `block` elements, counters, and tables of rows.
control::LayoutT MakeModel(const std::vector<Tensor>& tensors, std::uint32_t block,
                           const std::vector<Tensor>& counters,
                           const std::vector<std::pair<std::string, std::uint32_t>>& tables) {
  control::LayoutT layout;
  const auto add = [&](TableRule rule, const std::vector<Tensor>& of) {
    if (of.empty()) return;
    auto table = std::make_unique<control::TableInfoT>();
    table->name = rule == TableRule::Sgd ? "parameters" : "counters";
    table->rule = rule;
    table->first_block = layout.blocks;
    for (const Tensor& tensor : of) {
      auto info = std::make_unique<control::TensorInfoT>();
      info->name = tensor.name;
      info->offset = table->elements;
      info->elements = Product(tensor.shape);
      for (const auto size : tensor.shape) {
        info->shape.push_back(std::make_unique<control::ExtentT>());
        info->shape.back()->size = size;
      }
      table->elements += info->elements;
      table->tensors.push_back(std::move(info));
    }
    for (std::uint64_t left = table->elements; left > 0;) {
      table->block_elements.push_back(
          static_cast<std::uint32_t>(std::min<std::uint64_t>(left, block)));
      left -= table->block_elements.back();
    }
    layout.blocks += static_cast<std::uint32_t>(table->block_elements.size());
    if (rule == TableRule::Sgd) layout.parameters = table->elements;
    layout.tables.push_back(std::move(table));
  };
  add(TableRule::Sgd, tensors);
  add(TableRule::Maximum, counters);
  for (const auto& [name, width] : tables) {
    layout.row_tables.push_back(std::make_unique<control::RowTableInfoT>());
    layout.row_tables.back()->name = name;
    layout.row_tables.back()->width = width;
  }
  return layout;
}

JobRules RulesOf(const control::LayoutT& layout) {
  JobRules rules = testing::ConstantRules(1.0);
  for (std::uint32_t i = 0; i < layout.row_tables.size(); ++i) {
    RowRules rows =
        testing::MakeRowRules(i, layout.row_tables[i]->width, 1.0, OptimizerType::kAdagrad);
    rows.initializer = RowInitializer(RowInitializer::Kind::kUniform, -1, 1, 5, i);
    rules.rows.push_back(rows);
  }
  return rules;
}

// A whole job's shards in memory.
struct Model {
  explicit Model(control::LayoutT message, std::uint32_t shard_count)
      : layout(std::move(message)),
        view(LayoutView::Create(layout, shard_count).value()),
        rules(RulesOf(layout)),
        count(shard_count) {}

  std::unique_ptr<Shard> NewShard(std::uint32_t number, bool restoring) const {
    return std::make_unique<Shard>(view, rules, ShardId(number), Epoch(1), 1, restoring);
  }
  // Elements of all tables are `base` + their number.
  testing::Bytes InitialValues(std::uint32_t number, float base) const {
    testing::Bytes bytes;
    std::uint64_t element = view.shard_first_element(ShardId(number));
    for (auto block = view.shard_first_block(ShardId(number));
         block < view.shard_last_block(ShardId(number)); ++block) {
      std::vector<float> values;
      for (std::uint32_t i = 0; i < view.block(block).elements; ++i) {
        values.push_back(base + static_cast<float>(element++));
      }
      bytes += testing::DenseBlock(block, values);
    }
    return bytes;
  }
  void Init(Shard& shard, float base) const {
    const testing::Bytes bytes = InitialValues(shard.id().value(), base);
    SegmentContent content;
    const Status parsed = ParsePush(view, shard.id(), bytes, content);
    PS_CHECK(parsed.ok(), parsed.ok() ? "" : parsed.error().message);
    PS_CHECK(shard.Init(content.blocks) == wire::Code::Applied, shard.id());
  }

  control::LayoutT layout;
  LayoutView view;
  JobRules rules;
  std::uint32_t count;
};

constexpr std::uint64_t kKeys = 400;

float RowGradient(std::uint64_t key, std::uint32_t table, std::uint32_t position) {
  return 0.001f * static_cast<float>(key) + 0.1f * static_cast<float>(position + 1) +
         static_cast<float>(table);
}

class SourceLoaderTest : public ::testing::Test {
 protected:
  // Trains rows of all keys of a model whose values are `base` + number, and writes its checkpoint,
  // in parts of `servers`.
  void WriteSource(const Model& model, std::uint64_t job, std::uint64_t round, float base,
                   std::uint32_t servers = 2) {
    std::vector<checkpoint::ManifestShard> stored(model.count);
    const std::string name = NameOf(job, round);
    for (std::uint32_t server = 0; server < servers; ++server) {
      const std::string part = "p" + std::to_string(server);
      CheckpointStore store(root_.path(), part);
      std::vector<FrozenShard> frozen;
      for (std::uint32_t number = server; number < model.count; number += servers) {
        const auto shard = model.NewShard(number, false);
        model.Init(*shard, base);
        Train(model, *shard);
        frozen.push_back(shard->Freeze(JobId(job), Round(round)));
        Remember(model, job, *shard);
      }
      if (frozen.empty()) continue;
      const auto prepared = store.Write(name, std::move(frozen), Round());
      ASSERT_TRUE(prepared.ok()) << prepared.error().message;
      for (const control::PreparedShardT& shard : *prepared) {
        stored[shard.shard] = {ShardId(shard.shard), part,
                               Epoch(shard.epoch),   shard.version,
                               shard.bytes,          shard.digest,
                               shard.values_digest,  shard.rows,
                               shard.state_bytes,    {}};
      }
    }
    checkpoint::Manifest manifest;
    manifest.job = JobId(job);
    manifest.job_name = "j";
    manifest.round = Round(round);
    manifest.program_version = "1";
    manifest.spec_json = "{}";
    for (const auto& table : model.layout.tables) {
      checkpoint::ManifestTable entry{table->name, table->rule, table->elements, {}};
      for (const auto& tensor : table->tensors) {
        Shape shape;
        for (const auto& extent : tensor->shape) shape.push_back(extent->size);
        entry.tensors.push_back({tensor->name, shape, tensor->offset, tensor->elements});
      }
      manifest.tables.push_back(std::move(entry));
    }
    for (const auto& table : model.layout.row_tables) {
      manifest.row_tables.push_back({table->name, table->width});
    }
    manifest.shards = std::move(stored);
    const auto text = checkpoint::ToJson(manifest);
    ASSERT_TRUE(text.ok()) << text.error().message;
    for (std::uint32_t server = 0; server < std::min(servers, model.count); ++server) {
      const CheckpointStore store(root_.path(), "p" + std::to_string(server));
      ASSERT_TRUE(store.WriteManifest(name, {"p" + std::to_string(server)}, *text).ok());
    }
  }

  static std::string NameOf(std::uint64_t job, std::uint64_t round) {
    return "job-" + std::to_string(job) + "/ckpt-" + std::to_string(round);
  }

  static void Train(const Model& model, Shard& shard) {
    testing::Bytes bytes;
    for (std::uint32_t table = 0; table < model.layout.row_tables.size(); ++table) {
      const std::uint32_t width = model.layout.row_tables[table]->width;
      std::vector<std::uint64_t> keys;
      std::vector<float> values;
      for (std::uint64_t key = 0; key < kKeys; ++key) {
        if (codec::ShardOfRow(key, model.count) != shard.id()) continue;
        keys.push_back(key);
        for (std::uint32_t i = 0; i < width; ++i) values.push_back(RowGradient(key, table, i));
      }
      if (!keys.empty()) bytes += testing::PushedRows(table, keys, values);
    }
    SegmentContent content;
    PS_CHECK(ParsePush(model.view, shard.id(), bytes, content).ok());
    const auto pushed = shard.Push(testing::MakeMember(0, 11), PushFacts{Clock(1), 0, 64, false},
                                   content.blocks, 1, content.rows);
    PS_CHECK(pushed.code == wire::Code::Applied);
  }

  using Row = std::vector<float>;
  static std::map<std::uint64_t, Row> RowsOf(const Shard& shard, std::uint32_t table) {
    std::map<std::uint64_t, Row> rows;
    const FrozenShard frozen = shard.Freeze(JobId(1), Round(1));
    const checkpoint::ShardImage whole = frozen.ToImage();
    const checkpoint::RowTableImage& from = whole.rows[table];
    for (std::size_t i = 0; i < from.rows(); ++i) {
      Row values(from.width);
      std::memcpy(values.data(),
                  from.records.data() + i * from.record_bytes() + checkpoint::kRowHeaderBytes,
                  values.size() * sizeof(float));
      rows[from.key(i)] = values;
    }
    return rows;
  }

  void Remember(const Model& model, std::uint64_t job, const Shard& shard) {
    for (std::uint32_t table = 0; table < model.layout.row_tables.size(); ++table) {
      for (auto& [key, row] : RowsOf(shard, table)) source_rows_[{job, table}][key] = row;
    }
  }

  static LoadSourceSpec From(const std::string& from, std::vector<std::string> tensors,
                             std::vector<std::string> tables = {}) {
    LoadSourceSpec source;
    source.from = from;
    source.tensors = std::move(tensors);
    source.tables = std::move(tables);
    source.grow = true;
    return source;
  }
  static LoadOrder Order(const Model& model, std::vector<LoadSourceSpec> sources) {
    JobSpec spec;
    spec.checkpoint.load = std::move(sources);
    return LoadOrder::Of(JobId(99), spec, model.layout).value();
  }
  SourceLoader Loader() {
    return SourceLoader([this] { return std::make_unique<RestoreReader>(root_.path()); });
  }
  Status Load(const Model& model, std::vector<LoadSourceSpec> sources, std::uint32_t shard = 0) {
    SourceLoader loader = Loader();
    const auto made = model.NewShard(shard, true);
    Status loaded = loader.Load(Order(model, std::move(sources)), *made);
    EXPECT_EQ(made->state(), loaded.ok() ? wire::Code::Blank : wire::Code::Restoring);
    return loaded;
  }

  const TemporaryDirectory root_;
  std::map<std::pair<std::uint64_t, std::uint32_t>, std::map<std::uint64_t, Row>> source_rows_;
};

// The element of the source that a place of the target has, if any.
std::optional<std::uint64_t> SourceOf(const Shape& from, const Shape& to, std::uint64_t place) {
  std::uint64_t element = 0;
  std::uint64_t stride = 1;
  for (std::size_t i = to.size(); i-- > 0;) {
    const std::uint64_t index = place % static_cast<std::uint64_t>(to[i]);
    place /= static_cast<std::uint64_t>(to[i]);
    if (index >= static_cast<std::uint64_t>(from[i])) return std::nullopt;
    element += index * stride;
    stride *= static_cast<std::uint64_t>(from[i]);
  }
  return element;
}

TEST_F(SourceLoaderTest, RandomModelsCutIntoRandomShardsGetWhatTheMappingSays) {
  std::mt19937 random(7);
  for (std::uint64_t turn = 1; turn <= 20; ++turn) {
    SCOPED_TRACE(turn);
    std::vector<Tensor> from;
    std::vector<Tensor> to;
    const std::size_t tensors = 1 + random() % 4;
    for (std::size_t i = 0; i < tensors; ++i) {
      Tensor tensor{"t" + std::to_string(i), {}};
      Tensor grown = tensor;
      for (std::size_t d = 1 + random() % 3; d-- > 0;) {
        tensor.shape.push_back(1 + random() % 9);
        grown.shape.push_back(tensor.shape.back() + (random() % 2 == 0 ? 0 : random() % 7));
      }
      from.push_back(tensor);
      to.push_back(grown);
    }
    to.insert(to.begin() + static_cast<std::ptrdiff_t>(random() % to.size()), {"new", {5, 3}});
    const std::uint32_t width = 2 + random() % 3;
    const std::uint32_t grown_width = width + random() % 3;
    const std::vector<Tensor> counters{{"steps", {2}}};
    const Model source(
        MakeModel(from, 1 + random() % 40, counters, {{"other", 2}, {"users", width}}),
        1 + random() % 12);
    const Model target(MakeModel(to, 1 + random() % 40, counters, {{"users", grown_width}}),
                       1 + random() % 12);
    constexpr float kSourceBase = 100000;
    constexpr float kTargetBase = -5000;
    WriteSource(source, turn, 3, kSourceBase, 1 + random() % 3);
    const LoadOrder order = Order(target, {From(std::to_string(turn) + "@3", {"*"}, {"users"})});
    SourceLoader loader = Loader();
    std::vector<float> values;
    std::map<std::uint64_t, Row> rows;
    for (std::uint32_t number = 0; number < target.count; ++number) {
      const auto shard = target.NewShard(number, true);
      const Status loaded = loader.Load(order, *shard);
      ASSERT_TRUE(loaded.ok()) << loaded.error().message;
      ASSERT_EQ(shard->state(), wire::Code::Blank);
      target.Init(*shard, kTargetBase);
      ASSERT_TRUE(shard->ready());
      EXPECT_EQ(shard->version(), 0u);
      const std::vector<float> own = shard->values();
      values.insert(values.end(), own.begin(), own.end());
      for (auto& [key, row] : RowsOf(*shard, 0)) {
        EXPECT_EQ(codec::ShardOfRow(key, target.count), shard->id());
        rows[key] = row;
      }
    }
    // Values: those of the source where the mapping has them, else the initial ones.
    const ModelParts parts = ModelParts::Of(target.layout).value();
    const ModelParts source_parts = ModelParts::Of(source.layout).value();
    std::size_t loaded = 0;
    for (const ModelParts::Tensor& tensor : parts.tensors) {
      const auto origin =
          std::find_if(source_parts.tensors.begin(), source_parts.tensors.end(),
                       [&](const ModelParts::Tensor& one) { return one.name == tensor.name; });
      for (std::uint64_t i = 0; i < tensor.elements(); ++i) {
        float expected = kTargetBase + static_cast<float>(tensor.begin + i);
        if (origin != source_parts.tensors.end()) {
          if (const auto element = SourceOf(origin->shape, tensor.shape, i)) {
            expected = kSourceBase + static_cast<float>(origin->begin + *element);
            ++loaded;
          }
        }
        ASSERT_EQ(values[tensor.begin + i], expected) << tensor.name << " " << i;
      }
    }
    std::size_t all = 0;
    for (const ModelParts::Tensor& tensor : source_parts.tensors) all += tensor.elements();
    EXPECT_EQ(loaded, all);
    // Rows: the source's values first, then those of the key's initial row.
    const auto& trained = source_rows_[{turn, 1}];
    ASSERT_EQ(rows.size(), kKeys);
    ASSERT_EQ(trained.size(), kKeys);
    for (const auto& [key, row] : rows) {
      Row expected(grown_width);
      target.rules.rows[0].initializer.Fill(key, expected);
      std::copy_n(trained.at(key).begin(), width, expected.begin());
      ASSERT_EQ(row, expected) << key;
    }
  }
}

TEST_F(SourceLoaderTest, SeveralSourcesMakeOneModel) {
  const Model dense(MakeModel({{"w", {40}}}, 16, {}, {}), 3);
  const Model rows(MakeModel({{"b", {2}}}, 16, {}, {{"users", 3}}), 5);
  const Model target(MakeModel({{"w", {40}}, {"b", {2}}}, 10, {}, {{"users", 3}}), 4);
  WriteSource(dense, 1, 1, 1000);
  WriteSource(rows, 2, 6, 2000);
  std::size_t found = 0;
  for (std::uint32_t number = 0; number < target.count; ++number) {
    SourceLoader loader = Loader();
    const auto shard = target.NewShard(number, true);
    const Status loaded =
        loader.Load(Order(target, {From("1@1", {"w"}), From("2@6", {}, {"users"})}), *shard);
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    target.Init(*shard, 0);
    std::uint64_t element = target.view.shard_first_element(ShardId(number));
    for (const float value : shard->values()) {
      EXPECT_EQ(value, static_cast<float>(element < 40 ? 1000 + element : element));
      ++element;
    }
    for (const auto& [key, row] : RowsOf(*shard, 0)) {
      EXPECT_EQ(row, (source_rows_[{2, 0}].at(key)));
      ++found;
    }
  }
  EXPECT_EQ(found, kKeys);
}

TEST_F(SourceLoaderTest, WhatIsMissingOrDamagedIsNamed) {
  const Model source(MakeModel({{"w", {400}}}, 16, {}, {{"users", 3}}), 4);
  WriteSource(source, 1, 1, 0);
  EXPECT_TRUE(Load(source, {From("1@1", {"*"}, {"*"})}).ok());
  Status loaded = Load(source, {From("1@2", {"*"})});
  ASSERT_FALSE(loaded.ok());
  EXPECT_EQ(loaded.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(loaded.error().message, HasSubstr("checkpoint 2 of job 1: "));
  // Not what the coordinator looked at.
  loaded = Load(source, {From("1@1", {"v"})});
  ASSERT_FALSE(loaded.ok());
  EXPECT_EQ(loaded.error().code, ErrorCode::kInvalid);
  EXPECT_THAT(loaded.error().message, HasSubstr("`v` names no tensor"));

  // A flipped byte in the middle of each file of each part.
  std::size_t flipped = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root_.path())) {
    if (entry.path().extension() != ".sst") continue;
    SCOPED_TRACE(entry.path());
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    const auto place = static_cast<std::streamoff>(entry.file_size() / 4);
    file.seekg(place);
    const char byte = static_cast<char>(file.get());
    file.seekp(place);
    file.put(static_cast<char>(byte ^ 1));
    file.flush();
    bool failed = false;
    for (std::uint32_t shard = 0; shard < source.count; ++shard) {
      const Status damaged = Load(source, {From("1@1", {"*"}, {"*"})}, shard);
      if (damaged.ok()) continue;
      failed = true;
      EXPECT_EQ(damaged.error().code, ErrorCode::kInvalid);
      EXPECT_THAT(damaged.error().message, HasSubstr("checkpoint 1 of job 1: "));
    }
    EXPECT_TRUE(failed);
    file.seekp(place);
    file.put(byte);
    ++flipped;
  }
  EXPECT_GE(flipped, 2u);
  EXPECT_TRUE(Load(source, {From("1@1", {"*"}, {"*"})}).ok());
}

TEST_F(SourceLoaderTest, ValuesThatAreNoNumbersAreRefused) {
  const Model source(MakeModel({{"v", {20}}, {"w", {20}}}, 16, {}, {}), 1);
  WriteSource(source, 1, 1, std::numeric_limits<float>::max());
  EXPECT_TRUE(Load(source, {From("1@1", {"*"})}).ok());
  // Init refuses them, a checkpoint that somebody made need not.
  checkpoint::ShardImage image;
  image.job = JobId(2);
  image.round = Round(1);
  image.epoch = Epoch(1);
  image.block_elements = {16, 16, 8};
  image.values.assign(40, 1.0f);
  image.values[25] = std::numeric_limits<float>::quiet_NaN();
  LoadSource made;
  made.parts = ModelParts::Of(source.layout).value();
  made.mapping.tensors = {{1, 1}};
  made.shard_begins = {0, 40};
  const auto pass = [&](const LoadSource& from) -> Status {
    const auto shard = source.NewShard(0, true);
    const ModelParts parts = ModelParts::Of(source.layout).value();
    PartialLoad load(*shard, parts);
    for (const ShardId one : load.BeginSource(from)) {
      load.BeginShard(one);
      checkpoint::ContentCheck check(one, load, /*with_digest=*/false);
      PS_TRY(checkpoint::SendImage(image, check));
      PS_TRY(check.Finish());
    }
    PS_TRY(load.EndSource());
    load.Finish();
    return Ok();
  };
  const Status refused = pass(made);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("tensor `w`: element 5 is no number"));
  // What is not loaded does not matter.
  made.mapping.tensors = {{0, 0}};
  EXPECT_TRUE(pass(made).ok());
  // An image of another size than the source had.
  made.shard_begins = {0, 41};
  EXPECT_FALSE(pass(made).ok());
}

TEST_F(SourceLoaderTest, RowsThatBelongElsewhereAreRefused) {
  const Model source(MakeModel({{"w", {4}}}, 16, {}, {{"users", 3}}), 2);
  const Model target(MakeModel({{"w", {4}}}, 16, {}, {{"users", 3}}), 1);
  LoadSource from;
  from.parts = ModelParts::Of(source.layout).value();
  from.mapping.tables = {{0, 0}};
  from.shard_begins = {0, 2, 4};
  const ModelParts parts = ModelParts::Of(target.layout).value();
  const auto pass = [&](std::uint32_t key_shard) -> Status {
    const auto shard = target.NewShard(0, true);
    PartialLoad load(*shard, parts);
    checkpoint::ShardImage image;
    image.job = JobId(2);
    image.round = Round(1);
    image.epoch = Epoch(1);
    image.block_elements = {2};
    image.values.assign(2, 1.0f);
    checkpoint::RowTableImage rows;
    rows.width = 3;
    const std::uint64_t key = testing::KeysOfShard(source.view, key_shard, 1).front();
    const std::uint32_t words[2] = {1, 0};
    const float values[3] = {1, 2, 3};
    rows.records.resize(rows.record_bytes());
    std::memcpy(rows.records.data(), &key, 8);
    std::memcpy(rows.records.data() + 8, words, 8);
    std::memcpy(rows.records.data() + 16, values, 12);
    image.rows.push_back(rows);
    EXPECT_EQ(load.BeginSource(from), (std::vector<ShardId>{ShardId(0), ShardId(1)}));
    load.BeginShard(ShardId(0));
    checkpoint::ContentCheck check(ShardId(0), load, /*with_digest=*/false);
    return checkpoint::SendImage(image, check);
  };
  EXPECT_TRUE(pass(0).ok());
  const Status refused = pass(1);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("belongs on another shard"));
}

TEST_F(SourceLoaderTest, ASourceWithoutNumbersIsRefused) {
  JobSpec spec;
  spec.checkpoint.load = {From("first@3", {"*"})};
  const Model model(MakeModel({{"w", {4}}}, 16, {}, {}), 1);
  EXPECT_FALSE(LoadOrder::Of(JobId(1), spec, model.layout).ok());
  spec.checkpoint.load = {From("3", {"*"})};
  EXPECT_FALSE(LoadOrder::Of(JobId(1), spec, model.layout).ok());
  // Files are read elsewhere.
  spec.checkpoint.load = {LoadSourceSpec()};
  spec.checkpoint.load[0].file = "/m.safetensors";
  EXPECT_TRUE(LoadOrder::Of(JobId(1), spec, model.layout)->sources.empty());
}

}  // namespace
}  // namespace ps::server
