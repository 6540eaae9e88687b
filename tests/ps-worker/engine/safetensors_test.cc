#include "ps-worker/engine/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <random>

#include "ps-worker/engine/file_values.h"
#include "ps-worker/engine/table_builder.h"
#include "tests/support/temp_directory.h"

namespace ps::worker {
namespace {

using ::testing::HasSubstr;

std::string Bytes(const auto& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(values[0])};
}

std::string File(const std::string& header, const std::string& data) {
  const std::uint64_t size = header.size();
  return std::string(reinterpret_cast<const char*>(&size), 8) + header + data;
}

constexpr const char* kHeader =
    R"({"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
    R"("h":{"dtype":"F16","shape":[4],"data_offsets":[24,32]},)"
    R"("b":{"dtype":"BF16","shape":[2],"data_offsets":[32,36]},)"
    R"("n":{"dtype":"I64","shape":[],"data_offsets":[36,44]},)"
    R"("d":{"dtype":"F64","shape":[1],"data_offsets":[44,52]}}   )";

std::string Data() {
  return Bytes(std::vector<float>{1, 2, 3, 4, 5, 6.5f}) +
         Bytes(std::vector<std::uint16_t>{0x3c00, 0xc000, 0x0001, 0x7bff}) +
         Bytes(std::vector<std::uint16_t>{0x3f80, 0xc2f7}) +
         Bytes(std::vector<std::int64_t>{12345}) + Bytes(std::vector<double>{1.5});
}

std::string HeaderError(const std::string& header, std::uint64_t data_bytes = 24) {
  const auto entries = ParseSafetensorsHeader(header, data_bytes);
  if (entries.ok()) return "";
  EXPECT_EQ(entries.error().code, ErrorCode::kInvalid);
  return entries.error().message;
}

class SafetensorsTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& bytes, const std::string& name = "m.safetensors") const {
    std::string path = directory_.path() / name;
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    return path;
  }
  // All values of an entry; the error's message if they cannot be read.
  static Result<std::vector<float>> Read(const SafetensorsFile& file, const std::string& name) {
    for (const SafetensorsEntry& entry : file.entries()) {
      if (entry.name != name) continue;
      std::vector<float> values;
      PS_TRY(file.Read(entry, [&](std::uint64_t first, std::span<const float> piece) {
        EXPECT_EQ(first, values.size());
        values.insert(values.end(), piece.begin(), piece.end());
      }));
      return values;
    }
    return Error{ErrorCode::kNotFound, name};
  }

  const test::TempDirectory directory_;
};

TEST_F(SafetensorsTest, TypesBecomeFp32) {
  const auto file = SafetensorsFile::Open(Write(File(kHeader, Data())));
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(Read(*file, "w").value(), (std::vector<float>{1, 2, 3, 4, 5, 6.5f}));
  EXPECT_EQ(Read(*file, "h").value(), (std::vector<float>{1, -2, 0x1p-24f, 65504}));
  EXPECT_EQ(Read(*file, "b").value(), (std::vector<float>{1, -123.5f}));
  EXPECT_EQ(Read(*file, "n").value(), std::vector<float>{12345});
  for (const SafetensorsEntry& entry : file->entries()) {
    EXPECT_EQ(entry.loadable(), entry.name != "d");
    EXPECT_EQ(entry.counter(), entry.name == "n");
  }
}

TEST_F(SafetensorsTest, EveryHalfBecomesWhatItIs) {
  std::vector<std::uint16_t> halves;
  for (std::uint32_t half = 0; half < 0x10000; ++half) {
    if ((half >> 10 & 31) != 31) halves.push_back(static_cast<std::uint16_t>(half));
  }
  const std::string size = std::to_string(halves.size());
  const auto file = SafetensorsFile::Open(
      Write(File("{\"h\":{\"dtype\":\"F16\",\"shape\":[" + size + "],\"data_offsets\":[0," +
                     std::to_string(2 * halves.size()) + "]}}",
                 Bytes(halves))));
  ASSERT_TRUE(file.ok()) << file.error().message;
  const auto values = Read(*file, "h");
  ASSERT_TRUE(values.ok()) << values.error().message;
  for (std::size_t i = 0; i < halves.size(); ++i) {
    const int exponent = halves[i] >> 10 & 31;
    const double fraction = halves[i] & 1023;
    const double size_of =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    EXPECT_EQ(std::abs(values.value()[i]), static_cast<float>(size_of)) << halves[i];
    EXPECT_EQ(std::signbit(values.value()[i]), halves[i] >= 0x8000) << halves[i];
  }
}

TEST_F(SafetensorsTest, ValuesThatAreNoNumbersAreRefused) {
  const std::string header = R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  const auto file =
      SafetensorsFile::Open(Write(File(header, Bytes(std::vector<float>{1, INFINITY}))));
  ASSERT_TRUE(file.ok());
  EXPECT_THAT(Read(*file, "w").error().message, HasSubstr("tensor `w`: element 1 is no number"));
  const std::string whole = R"({"n":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})";
  for (const std::int64_t bad : {(std::int64_t{1} << 24) + 1, INT64_MAX, INT64_MIN}) {
    const auto counts =
        SafetensorsFile::Open(Write(File(whole, Bytes(std::vector<std::int64_t>{bad}))));
    ASSERT_TRUE(counts.ok());
    EXPECT_FALSE(Read(*counts, "n").ok()) << bad;
  }
}

TEST_F(SafetensorsTest, HostileHeadersAreRefused) {
  const auto entry = [](const std::string& inner) { return "{\"w\":{" + inner + "}}"; };
  const std::string good = R"("dtype":"F32","shape":[2,3],"data_offsets":[0,24])";
  EXPECT_EQ(HeaderError(entry(good)), "");
  EXPECT_THAT(HeaderError(""), HasSubstr("no JSON object"));
  EXPECT_THAT(HeaderError("[]"), HasSubstr("no JSON object"));
  EXPECT_NE(HeaderError("{"), "");
  EXPECT_THAT(HeaderError(entry(good) + entry(good)), HasSubstr("its header"));
  EXPECT_THAT(HeaderError("{\"w\":{" + good + "},\"w\":{" + good + "}}"), HasSubstr("twice"));
  EXPECT_THAT(HeaderError(entry(R"("dtype":"F32","shape":[2,3])")), HasSubstr("must have dtype"));
  EXPECT_THAT(HeaderError(entry(good + R"(,"x":1)")), HasSubstr("must have dtype"));
  EXPECT_THAT(HeaderError(entry(R"("dtype":"F31","shape":[2,3],"data_offsets":[0,24])")),
              HasSubstr("unknown dtype"));
  EXPECT_THAT(HeaderError(entry(R"("dtype":32,"shape":[2,3],"data_offsets":[0,24])")),
              HasSubstr("unknown dtype"));
  for (const char* shape :
       {"[-2,-3]", "[2.0,3]", "[\"2\",3]", "6", "[[2,3]]", "[null,3]", "[2e0,3]"}) {
    EXPECT_NE(HeaderError(entry(R"("dtype":"F32","shape":)" + std::string(shape) +
                                R"(,"data_offsets":[0,24])")),
              "")
        << shape;
  }
  EXPECT_THAT(HeaderError(entry(R"("dtype":"F32","shape":[4294967296,4294967296,6],)"
                                R"("data_offsets":[0,24])")),
              HasSubstr("too large"));
  EXPECT_THAT(HeaderError(entry(R"("dtype":"F32","shape":[2,3],"data_offsets":[24,0])")),
              HasSubstr("do not fit"));
  EXPECT_THAT(HeaderError(entry(R"("dtype":"F32","shape":[2,3],"data_offsets":[0,23])")),
              HasSubstr("do not fit"));
  EXPECT_THAT(HeaderError(entry(R"("dtype":"F32","shape":[2,3],"data_offsets":[0,24,30])")),
              HasSubstr("two whole numbers"));
  EXPECT_THAT(HeaderError(entry(R"("dtype":"F32","shape":[2,3],"data_offsets":[-1,23])")),
              HasSubstr("two whole numbers"));
  // Not at its place, beyond the file, less than the file, over another one.
  EXPECT_THAT(HeaderError(entry(R"("dtype":"F32","shape":[5],"data_offsets":[4,24])")),
              HasSubstr("begins at byte 4 of the data, where byte 0 is due"));
  EXPECT_THAT(HeaderError(entry(good), 23), HasSubstr("24 bytes, the file has 23"));
  EXPECT_THAT(HeaderError(entry(good), 28), HasSubstr("24 bytes, the file has 28"));
  EXPECT_THAT(HeaderError(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},)"
                          R"("b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}})"),
              HasSubstr("tensor `b` begins at byte 8"));
  EXPECT_NE(HeaderError(R"({"__metadata__":[],"w":{)" + good + "}}"), "");
  EXPECT_EQ(HeaderError("{}", 0), "");
  // Without elements: any number of them at one place.
  EXPECT_EQ(HeaderError(R"({"a":{"dtype":"F32","shape":[0,9],"data_offsets":[0,0]},)"
                        R"("b":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},)"
                        R"("c":{"dtype":"F32","shape":[0],"data_offsets":[24,24]}})"),
            "");
}

TEST_F(SafetensorsTest, FilesThatAreNoneAreRefused) {
  const auto error = [](const std::string& path) {
    const auto file = SafetensorsFile::Open(path);
    return file.ok() ? "" : file.error().message;
  };
  EXPECT_THAT(error(directory_.path() / "none"), HasSubstr("cannot be opened"));
  EXPECT_THAT(error(directory_.path()), HasSubstr("no regular file"));
  EXPECT_THAT(error(Write("short")), HasSubstr("too short"));
  EXPECT_THAT(error(Write(std::string(8, '\xff'))), HasSubstr("its header would have"));
  EXPECT_THAT(error(Write(File(kHeader, Data()).substr(0, 60))),
              HasSubstr("its header would have"));
}

// Whatever is changed in a file, it is refused, or read as some numbers.
TEST_F(SafetensorsTest, EveryCutAndEveryChangedByteIsAnAnswer) {
  const std::string whole = File(kHeader, Data());
  const auto try_all = [&](const std::string& bytes) {
    const auto file = SafetensorsFile::Open(Write(bytes));
    if (!file.ok()) {
      EXPECT_EQ(file.error().code, ErrorCode::kInvalid);
      return false;
    }
    for (const SafetensorsEntry& entry : file->entries()) {
      if (!entry.loadable()) continue;
      std::uint64_t read = 0;
      const Status status = file->Read(entry, [&](std::uint64_t, std::span<const float> values) {
        for (const float value : values) EXPECT_TRUE(std::isfinite(value));
        read += values.size();
      });
      EXPECT_TRUE(!status.ok() || read == entry.elements);
    }
    return true;
  };
  ASSERT_TRUE(try_all(whole));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(try_all(whole.substr(0, size))) << size;
  }
  EXPECT_FALSE(try_all(whole + "x"));
  std::mt19937 random(11);
  for (int turn = 0; turn < 4000; ++turn) {
    std::string bytes = whole;
    for (int change = 0; change <= turn % 3; ++change) {
      const std::size_t at = random() % bytes.size();
      bytes[at] = turn % 2 == 0 ? static_cast<char>(random())
                                : static_cast<char>(bytes[at] ^ 1 << random() % 8);
    }
    try_all(bytes);
  }
}

// ---- into the tables of a workload

class Tables : public Workload {
 public:
  Tables() {
    std::vector<control::TableInfoT> tables;
    tables.push_back(BuildParameterTable({{"w", {3, 4}}, {"b", {4}}, {"kept", {2}}}, 0).table);
    tables.push_back(BuildPlainTable("counters", control::TableRule::Maximum, {{"n", {}}}));
    layout_ = BuildLayout(std::move(tables), 0);
    for (const auto& table : layout_.tables) {
      values_.emplace_back(static_cast<std::size_t>(table->elements), -1.0f);
    }
  }

  const control::LayoutT& layout() const override { return layout_; }
  Status Prepare(const LayoutView&, WorkerId) override { return Ok(); }
  Status Apply(const Block&, const codec::BlockView&, bool) override { return Ok(); }
  Status Read(const Block&, std::span<float>) const override { return Ok(); }
  std::span<float> table(std::uint32_t index) override { return values_[index]; }
  void AdoptBuffers() override {}
  Result<ComputeResult> Compute(const Batch&, double) override { return ComputeResult(); }
  Status SelectAll() override { return Ok(); }
  void SelectBuffers() override {}
  std::size_t max_push_bytes() const override { return 0; }
  std::uint64_t selected_entries() const override { return 0; }
  std::size_t WriteShard(ShardId, std::span<std::byte>) override { return 0; }
  Status TakeBack(std::span<const std::byte>, float) override { return Ok(); }
  Status ScaleResidual(float) override { return Ok(); }
  Result<double> ResidualNorm() const override { return 0.0; }
  Result<EvaluationSums> Evaluate(const Dataset*, const PullRows&) override {
    return EvaluationSums();
  }

  control::LayoutT layout_;
  std::vector<std::vector<float>> values_;
};

JobSpec Spec(const std::vector<LoadSourceSpec>& sources) {
  JobSpec spec;
  spec.checkpoint.load = sources;
  return spec;
}

LoadSourceSpec From(const std::string& file, std::vector<std::string> tensors, bool grow = false) {
  LoadSourceSpec source;
  source.file = file;
  source.tensors = std::move(tensors);
  source.grow = grow;
  return source;
}

TEST_F(SafetensorsTest, NamedTensorsBecomeTheLeadingCornerOfTheJobs) {
  const std::string path = Write(File(kHeader, Data()));
  Tables tables;
  LoadSourceSpec source = From(path, {"w", "h", "n"}, /*grow=*/true);
  source.rename = {{"h", "b"}};
  const auto loaded = LoadFileValues(Spec({source}), tables);
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_EQ(loaded->tensors, (std::vector<std::string>{"w", "b", "n"}));
  EXPECT_EQ(tables.values_[0], (std::vector<float>{1, 2, 3, -1, 4, 5, 6.5f, -1, -1, -1, -1, -1,  //
                                                   1, -2, 0x1p-24f, 65504, -1, -1}));
  EXPECT_EQ(tables.values_[1], std::vector<float>{12345});
  // The same of two files is another fingerprint only if the values are others.
  Tables again;
  const auto same = LoadFileValues(Spec({source}), again);
  ASSERT_TRUE(same.ok());
  EXPECT_EQ(same->fingerprint, loaded->fingerprint);
  std::string changed = File(kHeader, Data());
  changed[changed.size() - 52] ^= 1;
  Write(changed);
  const auto other = LoadFileValues(Spec({source}), again);
  ASSERT_TRUE(other.ok());
  EXPECT_NE(other->fingerprint, loaded->fingerprint);
  EXPECT_EQ(LoadFileValues(Spec({}), again)->fingerprint, 0u);
}

TEST_F(SafetensorsTest, WhatCannotBeLoadedNamesItsSource) {
  const std::string path = Write(File(kHeader, Data()));
  Tables tables;
  const auto error = [&](const std::vector<LoadSourceSpec>& sources) {
    const auto loaded = LoadFileValues(Spec(sources), tables);
    return loaded.ok() ? "" : loaded.error().message;
  };
  EXPECT_THAT(error({From("/none", {"*"})}),
              HasSubstr("checkpoint.load[0] (/none): /none: cannot"));
  EXPECT_THAT(error({From(path, {"w"})}),
              HasSubstr("has the shape [2, 3], in the job it is [3, 4]"));
  EXPECT_THAT(error({From(path, {"x"})}), HasSubstr("names no tensor of the source"));
  LoadSourceSpec source = From(path, {"d"}, true);
  source.rename = {{"d", "kept"}};
  EXPECT_THAT(error({source}), HasSubstr("tensor `d` is of the type F64; F32, F16, BF16 and I64"));
  EXPECT_THAT(error({From(path, {"w"}, true), From(path, {"w"}, true)}),
              HasSubstr("tensor `w` of the job has another source already"));
  source = From(path, {"b"});
  source.rename = {{"b", "n"}};
  EXPECT_THAT(error({source}), HasSubstr("is no counter, in the job it is"));
}

}  // namespace
}  // namespace ps::worker
