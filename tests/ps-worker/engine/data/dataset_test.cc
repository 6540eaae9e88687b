#include "ps-worker/engine/data/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "ps-worker/engine/data/memory_dataset.h"

namespace ps::worker {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::FloatNear;
using ::testing::HasSubstr;

constexpr char kFashionMnist[] = "/usr/share/datasets/fashion-mnist";

class DatasetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "ps_data_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { fs::remove_all(directory_); }

  std::string Write(const std::string& name, const std::string& content) {
    const fs::path path = directory_ / name;
    std::ofstream(path, std::ios::binary) << content;
    return path.string();
  }

  std::string WriteGzip(const std::string& name, const std::string& content) {
    const std::string path = (directory_ / name).string();
    gzFile file = gzopen(path.c_str(), "wb");
    EXPECT_EQ(gzwrite(file, content.data(), static_cast<unsigned>(content.size())),
              static_cast<int>(content.size()));
    gzclose(file);
    return path;
  }

  // An IDX file of the given type and dimensions with these content bytes.
  static std::string Idx(int type, const std::vector<std::uint32_t>& dimensions,
                         const std::string& content) {
    std::string text{'\0', '\0', static_cast<char>(type), static_cast<char>(dimensions.size())};
    for (const std::uint32_t size : dimensions) {
      for (int shift = 24; shift >= 0; shift -= 8) text += static_cast<char>(size >> shift);
    }
    return text + content;
  }

  // Three records of 1 x 2 pixels, labels 7, 0, 9.
  DataSourceSpec SmallIdx() {
    DataSourceSpec source;
    source.format = "idx";
    source.images = Write("images", Idx(8, {3, 1, 2}, std::string("\x00\x33\x66\x99\xcc\xff", 6)));
    source.labels = Write("labels", Idx(8, {3}, std::string("\x07\x00\x09", 3)));
    return source;
  }

  DataSourceSpec Csv(const std::string& text) {
    DataSourceSpec source;
    source.format = "csv";
    source.file = Write("data.csv", text);
    source.label = "y";
    return source;
  }

  static std::string ErrorOf(const DataSourceSpec& source, const DataSpec& data = {}) {
    const auto dataset = Dataset::Open(source, data);
    return dataset.ok() ? "" : dataset.error().message;
  }

  static std::unique_ptr<Dataset> Open(const DataSourceSpec& source, const DataSpec& data = {}) {
    auto dataset = Dataset::Open(source, data);
    EXPECT_TRUE(dataset.ok()) << dataset.error().message;
    return dataset.ok() ? std::move(dataset).value() : nullptr;
  }

  fs::path directory_;
};

TEST_F(DatasetTest, IdxRecordsAreReadInTheOrderAskedFor) {
  const auto dataset = Open(SmallIdx());
  ASSERT_NE(dataset, nullptr);
  EXPECT_EQ(dataset->records(), 3u);
  EXPECT_EQ(dataset->features(), 2u);
  EXPECT_THAT(dataset->feature_shape(), ElementsAre(1, 2));
  EXPECT_TRUE(dataset->label_range().whole);
  EXPECT_EQ(dataset->label_range().minimum, 0);
  EXPECT_EQ(dataset->label_range().maximum, 9);
  const std::vector<std::uint64_t> records = {2, 0};
  std::vector<float> features(4);
  std::vector<std::int64_t> labels(2);
  std::vector<float> targets(2);
  ASSERT_TRUE(dataset->Read(records, features.data(), labels.data(), targets.data()).ok());
  EXPECT_THAT(features, ElementsAre(FloatNear(0.8f, 1e-6f), FloatNear(1.0f, 1e-6f), 0.0f,
                                    FloatNear(0.2f, 1e-6f)));
  EXPECT_THAT(labels, ElementsAre(9, 7));
  EXPECT_THAT(targets, ElementsAre(9.0f, 7.0f));
}

TEST_F(DatasetTest, IdxBytesAreScaledAndThenNormalised) {
  DataSpec data;
  data.mean = 0.5;
  data.standard_deviation = 0.25;
  const auto dataset = Open(SmallIdx(), data);
  ASSERT_NE(dataset, nullptr);
  std::vector<float> features(2);
  ASSERT_TRUE(dataset->Read(std::vector<std::uint64_t>{0}, features.data(), nullptr, nullptr).ok());
  EXPECT_THAT(features, ElementsAre(-2.0f, FloatNear(-1.2f, 1e-6f)));
}

TEST_F(DatasetTest, GzipAndPlainFilesAreTheSameData) {
  const DataSourceSpec plain = SmallIdx();
  DataSourceSpec zipped = plain;
  zipped.images =
      WriteGzip("images.gz", Idx(8, {3, 1, 2}, std::string("\x00\x33\x66\x99\xcc\xff", 6)));
  const auto a = Open(plain);
  const auto b = Open(zipped);
  ASSERT_TRUE(a != nullptr && b != nullptr);
  EXPECT_EQ(a->fingerprint(), b->fingerprint());
}

TEST_F(DatasetTest, OtherContentOrShapeHasAnotherFingerprint) {
  DataSourceSpec source = SmallIdx();
  const std::uint64_t before = Open(source)->fingerprint();
  source.images = Write("images", Idx(8, {3, 2, 1}, std::string("\x00\x33\x66\x99\xcc\xff", 6)));
  EXPECT_NE(Open(source)->fingerprint(), before);
  source.images = Write("images", Idx(8, {3, 1, 2}, std::string("\x00\x33\x66\x99\xcc\xfe", 6)));
  EXPECT_NE(Open(source)->fingerprint(), before);
}

TEST_F(DatasetTest, IdxOfFloatsAndShortsIsReadBigEndian) {
  DataSourceSpec source = SmallIdx();
  source.images = Write("images", Idx(0x0d, {3, 1},
                                      std::string("\x3f\x80\x00\x00"
                                                  "\xc0\x00\x00\x00"
                                                  "\x3f\x00\x00\x00",
                                                  12)));
  source.labels = Write("labels", Idx(0x0b, {3}, std::string("\x00\x01\xff\xff\x01\x00", 6)));
  const auto dataset = Open(source);
  ASSERT_NE(dataset, nullptr);
  std::vector<float> features(3);
  std::vector<std::int64_t> labels(3);
  ASSERT_TRUE(
      dataset->Read(std::vector<std::uint64_t>{0, 1, 2}, features.data(), labels.data(), nullptr)
          .ok());
  EXPECT_THAT(features, ElementsAre(1.0f, -2.0f, 0.5f));
  EXPECT_THAT(labels, ElementsAre(1, -1, 256));
}

TEST_F(DatasetTest, CutIdxFileIsRefusedWithExpectedAndFoundBytes) {
  DataSourceSpec source = SmallIdx();
  source.images = Write("cut", Idx(8, {3, 1, 2}, std::string("\x00\x33\x66\x99", 4)));
  EXPECT_THAT(ErrorOf(source),
              AllOf(HasSubstr("/cut: "), HasSubstr("22 bytes expected, 20 found")));
  source.images = Write("cut", std::string("\x00\x00\x08", 3));
  EXPECT_THAT(ErrorOf(source), HasSubstr("4 bytes expected, 3 found"));
}

TEST_F(DatasetTest, TrailingBytesAreRefusedWithExpectedAndFoundBytes) {
  DataSourceSpec source = SmallIdx();
  source.labels = Write("long", Idx(8, {3}, "abcd"));
  EXPECT_THAT(ErrorOf(source),
              AllOf(HasSubstr("/long: "), HasSubstr("11 bytes expected, 12 found")));
}

TEST_F(DatasetTest, CutOrDamagedGzipIsRefused) {
  DataSourceSpec source = SmallIdx();
  std::string pixels(60000, '\0');
  std::uint32_t state = 1;
  for (char& pixel : pixels)
    pixel = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
  source.images = WriteGzip("images.gz", Idx(8, {3, 20000}, pixels));
  EXPECT_EQ(ErrorOf(source), "");
  fs::resize_file(source.images, fs::file_size(source.images) / 2);
  EXPECT_THAT(ErrorOf(source), AllOf(HasSubstr("images.gz: the compressed data is cut or damaged"),
                                     HasSubstr(" of 60012 bytes")));
  source.images = WriteGzip("images.gz", Idx(8, {3, 20000}, pixels));
  {
    std::fstream file(source.images, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-6, std::ios::end);
    file.put('\x5a');
  }
  EXPECT_THAT(ErrorOf(source), HasSubstr("cut or damaged"));
}

TEST_F(DatasetTest, FileThatIsNoIdxIsRefused) {
  DataSourceSpec source = SmallIdx();
  source.images = Write("image.png", "\x89PNG and so on");
  EXPECT_THAT(ErrorOf(source), AllOf(HasSubstr("image.png"), HasSubstr("not an IDX file")));
  source.images = Write("five", Idx(8, {1, 1, 1, 1, 1}, "a"));
  EXPECT_THAT(ErrorOf(source), HasSubstr("5 dimensions, 1 to 4 expected"));
  source.images = Write("none", Idx(8, {0}, ""));
  EXPECT_THAT(ErrorOf(source), HasSubstr("dimension 0 is 0"));
}

TEST_F(DatasetTest, DimensionsThatClaimTerabytesAreRefusedWithoutTakingTheMemory) {
  DataSourceSpec source = SmallIdx();
  source.images = Write("huge", Idx(8, {0xffffffff, 0xffffffff, 0xffffffff}, "a"));
  EXPECT_THAT(ErrorOf(source), HasSubstr("its dimensions make more than"));
  source.images = Write("huge", Idx(8, {3, 1u << 30, 100}, "a"));
  EXPECT_THAT(ErrorOf(source), HasSubstr("the file is cut"));
}

TEST_F(DatasetTest, CountsOfImagesAndLabelsMustMatch) {
  DataSourceSpec source = SmallIdx();
  source.labels = Write("four", Idx(8, {4}, "abcd"));
  EXPECT_THAT(ErrorOf(source), AllOf(HasSubstr("images: 3 records"), HasSubstr("four has 4")));
  source.labels = Write("two", Idx(8, {3, 1}, "abc"));
  EXPECT_THAT(ErrorOf(source), HasSubstr("labels of 2 dimensions, 1 expected"));
}

TEST_F(DatasetTest, MissingFileAndDirectoryAreNamed) {
  DataSourceSpec source = SmallIdx();
  source.images = (directory_ / "missing").string();
  const auto dataset = Dataset::Open(source, {});
  ASSERT_FALSE(dataset.ok());
  EXPECT_EQ(dataset.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(dataset.error().message, HasSubstr("/missing: cannot be read"));
  source.images = directory_.string();
  EXPECT_THAT(ErrorOf(source), HasSubstr("is not a file"));
}

TEST_F(DatasetTest, OfTextEachRecordHasBytesAndThoseThatFollow) {
  DataSourceSpec source;
  source.format = "text";
  source.file = Write("text", "abcdefgh\xff");
  source.context = 3;
  const auto dataset = Open(source);
  ASSERT_NE(dataset, nullptr);
  EXPECT_EQ(dataset->records(), 2u);  // the next one would want a byte after the last
  EXPECT_EQ(dataset->features(), 3u);
  EXPECT_EQ(dataset->labels_per_record(), 3u);
  EXPECT_EQ(dataset->label_range().minimum, 'a');
  EXPECT_EQ(dataset->label_range().maximum, 255);
  std::vector<float> features(6), targets(6);
  std::vector<std::int64_t> labels(6);
  ASSERT_TRUE(
      dataset
          ->Read(std::vector<std::uint64_t>{1, 0}, features.data(), labels.data(), targets.data())
          .ok());
  EXPECT_THAT(features, ElementsAre('d', 'e', 'f', 'a', 'b', 'c'));
  EXPECT_THAT(labels, ElementsAre('e', 'f', 'g', 'b', 'c', 'd'));
  EXPECT_THAT(targets, ElementsAre('e', 'f', 'g', 'b', 'c', 'd'));

  source.begin = 1.0 / 3;
  const auto part = Open(source);
  ASSERT_NE(part, nullptr);
  EXPECT_EQ(part->records(), 1u);
  ASSERT_TRUE(part->Read(std::vector<std::uint64_t>{0}, features.data(), nullptr, nullptr).ok());
  EXPECT_EQ(features[0], 'd');
  EXPECT_NE(part->fingerprint(), dataset->fingerprint());

  source.end = 0.6;
  EXPECT_THAT(ErrorOf(source),
              HasSubstr("has 9 bytes, 2 of them between `begin` and `end`; a record of 3 needs"));
  source.file = Write("empty", "");
  EXPECT_THAT(ErrorOf(source), HasSubstr("has 0 bytes"));
}

TEST_F(DatasetTest, RecordThatDoesNotExistIsRefused) {
  const auto dataset = Open(SmallIdx());
  ASSERT_NE(dataset, nullptr);
  std::vector<float> features(4);
  const Status status =
      dataset->Read(std::vector<std::uint64_t>{0, 3}, features.data(), nullptr, nullptr);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().message, "record 3 of a data set of 3");
}

TEST_F(DatasetTest, CsvColumnsBesideTheLabelAreFeatures) {
  const auto dataset = Open(Csv("a, \"y\" ,b\r\n1,0.5,-2e1\r\n\"3\", 1.5 ,+4\r\n"));
  ASSERT_NE(dataset, nullptr);
  EXPECT_EQ(dataset->records(), 2u);
  EXPECT_THAT(dataset->feature_shape(), ElementsAre(2));
  EXPECT_FALSE(dataset->label_range().whole);
  std::vector<float> features(4);
  std::vector<float> targets(2);
  ASSERT_TRUE(
      dataset->Read(std::vector<std::uint64_t>{0, 1}, features.data(), nullptr, targets.data())
          .ok());
  EXPECT_THAT(features, ElementsAre(1.0f, -20.0f, 3.0f, 4.0f));
  EXPECT_THAT(targets, ElementsAre(0.5f, 1.5f));
}

TEST_F(DatasetTest, CsvWithoutHeaderNamesColumnsByNumber) {
  DataSourceSpec source = Csv("1;2;3\n4;5;6");
  source.header = false;
  source.delimiter = ';';
  source.label = "2";
  DataSpec data;
  data.scale = 2;
  data.mean = 1;
  const auto dataset = Open(source, data);
  ASSERT_NE(dataset, nullptr);
  std::vector<float> features(4);
  std::vector<std::int64_t> labels(2);
  ASSERT_TRUE(
      dataset->Read(std::vector<std::uint64_t>{0, 1}, features.data(), labels.data(), nullptr)
          .ok());
  EXPECT_THAT(features, ElementsAre(1.0f, 3.0f, 7.0f, 9.0f));
  EXPECT_THAT(labels, ElementsAre(3, 6));
}

TEST_F(DatasetTest, CsvLabelMayBeANumberBesideAHeader) {
  DataSourceSpec source = Csv("a,b\n1,2\n");
  source.label = "0";
  EXPECT_EQ(Open(source)->label_range().maximum, 1);
}

TEST_F(DatasetTest, TabMayDelimitAndAnEmptyFieldIsNoNumber) {
  DataSourceSpec source = Csv("a\ty\n1\t2\n\t3\n");
  source.delimiter = '\t';
  EXPECT_THAT(ErrorOf(source), HasSubstr("data.csv:3: column 0 (`a`): a finite number expected"));
}

TEST_F(DatasetTest, RaggedCsvLineIsNamed) {
  EXPECT_THAT(ErrorOf(Csv("a,y\n1,2\n3\n")), HasSubstr("data.csv:3: 1 fields, 2 expected"));
  EXPECT_THAT(ErrorOf(Csv("a,y\n1,2,3\n")), HasSubstr("data.csv:2: 3 fields, 2 expected"));
  EXPECT_THAT(ErrorOf(Csv("a,y\n1,2\n\n3,4\n")), HasSubstr("data.csv:3: 1 fields, 2 expected"));
}

TEST_F(DatasetTest, CsvValueThatIsNoFiniteNumberIsNamed) {
  EXPECT_THAT(ErrorOf(Csv("a,y\n1,2\n4x,3\n")),
              HasSubstr("data.csv:3: column 0 (`a`): a finite number expected, found `4x`"));
  EXPECT_THAT(ErrorOf(Csv("a,y\n1,nan\n")), HasSubstr("data.csv:2: column 1 (`y`)"));
  EXPECT_THAT(ErrorOf(Csv("a,y\n1e300,1\n")), HasSubstr("data.csv:2: column 0 (`a`)"));
}

TEST_F(DatasetTest, CsvWithoutTheLabelsColumnListsTheColumns) {
  EXPECT_THAT(ErrorOf(Csv("a,b\n1,2\n")),
              HasSubstr("data.csv:1: no column `y` for the label; the columns are: a, b"));
  EXPECT_THAT(ErrorOf(Csv("y\n1\n")), HasSubstr("no column is left"));
  EXPECT_THAT(ErrorOf(Csv("a,y\n")), HasSubstr("holds no record"));
  EXPECT_THAT(ErrorOf(Csv("")), HasSubstr("holds no record"));
}

TEST_F(DatasetTest, CsvColumnsMayBeIdsOrIgnored) {
  DataSourceSpec source = Csv("word,x,user,y,note\nabc,0.5,7,2,n\n,1.5,18446744073709551615,1,\n");
  source.ignore = {"note"};
  const std::vector<std::string> columns = {"user", "0"};
  auto opened = Dataset::Open(source, {}, columns);
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const auto& dataset = **opened;
  EXPECT_EQ(dataset.features(), 1u);
  ASSERT_EQ(dataset.id_columns(), 2u);
  const std::vector<std::uint64_t> records = {1, 0};
  std::vector<float> features(2);
  std::vector<float> targets(2);
  std::vector<std::uint64_t> ids(4);
  ASSERT_TRUE(dataset.Read(records, features.data(), nullptr, targets.data(), ids.data()).ok());
  EXPECT_THAT(features, ElementsAre(1.5f, 0.5f));
  EXPECT_THAT(targets, ElementsAre(1.0f, 2.0f));
  // XXH3-64 of the empty text and of "abc", by the reference implementation.
  EXPECT_THAT(ids,
              ElementsAre(18446744073709551615u, 0x2d06800538d394c2u, 7u, 0x78af5f94892f3950u));
  source.label_positive = {"2", "x"};
  auto positive = Dataset::Open(source, {}, columns);
  ASSERT_TRUE(positive.ok());
  ASSERT_TRUE((*positive)->Read(records, features.data(), nullptr, targets.data()).ok());
  EXPECT_THAT(targets, ElementsAre(0.0f, 1.0f));
  EXPECT_NE((*positive)->fingerprint(), dataset.fingerprint());
}

TEST_F(DatasetTest, IdsAreNumbersOnlyIfAllOfThemIsDigits) {
  EXPECT_EQ(IdOfText("42"), 42u);
  EXPECT_EQ(IdOfText("18446744073709551615"), 18446744073709551615u);
  for (const char* text : {"-1", "+1", "1.0", "18446744073709551616", "1 2", "0x1"}) {
    EXPECT_GT(IdOfText(text), 1'000'000u) << text;
  }
}

TEST_F(DatasetTest, AnIdColumnThatIsNotThereOrHasAnotherUseIsNamed) {
  const auto error = [&](const std::vector<std::string>& columns) {
    const auto dataset = Dataset::Open(Csv("a,b,y\n1,2,3\n"), {}, columns);
    return dataset.ok() ? "" : dataset.error().message;
  };
  EXPECT_EQ(error({"a", "b"}), "");
  EXPECT_THAT(error({"c"}),
              HasSubstr("data.csv:1: no column `c` for ids; the columns are: a, b, y"));
  EXPECT_THAT(error({"2"}), HasSubstr("data.csv:1: column `y` for ids has another use already"));
  EXPECT_THAT(error({"a", "0"}), HasSubstr("column `a` for ids has another use already"));
  DataSourceSpec source = Csv("a,b,y\n1,2,3\n");
  source.ignore = {"z"};
  EXPECT_THAT(ErrorOf(source), HasSubstr("no column `z` for `ignore`"));
}

TEST_F(DatasetTest, CounterHasRecordsWithoutContent) {
  DataSourceSpec source;
  source.format = "counter";
  source.records = 1000;
  const auto dataset = Open(source);
  ASSERT_NE(dataset, nullptr);
  EXPECT_EQ(dataset->records(), 1000u);
  EXPECT_EQ(dataset->features(), 0u);
  std::int64_t label = 5;
  EXPECT_TRUE(dataset->Read(std::vector<std::uint64_t>{999}, nullptr, &label, nullptr).ok());
  EXPECT_EQ(label, 0);
  EXPECT_FALSE(dataset->Read(std::vector<std::uint64_t>{1000}, nullptr, nullptr, nullptr).ok());
  source.records = 0;
  EXPECT_THAT(ErrorOf(source), HasSubstr("0 records"));
}

TEST_F(DatasetTest, UnknownFormatAndBadNormalisationAreRefused) {
  DataSourceSpec source = SmallIdx();
  DataSpec data;
  data.standard_deviation = 0;
  EXPECT_THAT(ErrorOf(source, data), HasSubstr("standard_deviation"));
  source.format = "parquet";
  EXPECT_THAT(ErrorOf(source), HasSubstr("format `parquet`"));
}

TEST_F(DatasetTest, FashionMnistIsReadWhereItIsInstalled) {
  DataSourceSpec source;
  source.format = "idx";
  source.images = std::string(kFashionMnist) + "/t10k-images-idx3-ubyte.gz";
  source.labels = std::string(kFashionMnist) + "/t10k-labels-idx1-ubyte.gz";
  if (!fs::exists(source.images)) GTEST_SKIP() << "the package dataset-fashion-mnist is absent";
  const auto dataset = Open(source);
  ASSERT_NE(dataset, nullptr);
  EXPECT_EQ(dataset->records(), 10000u);
  EXPECT_THAT(dataset->feature_shape(), ElementsAre(28, 28));
  EXPECT_EQ(dataset->label_range().maximum, 9);
  std::vector<std::uint64_t> all(10000);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = i;
  std::vector<float> features(784 * all.size());
  std::vector<std::int64_t> labels(all.size());
  ASSERT_TRUE(dataset->Read(all, features.data(), labels.data(), nullptr).ok());
  for (std::int64_t digit = 0; digit < 10; ++digit) {
    EXPECT_EQ(std::count(labels.begin(), labels.end(), digit), 1000);
  }
  double sum = 0;
  for (const float value : features) {
    ASSERT_TRUE(value >= 0 && value <= 1);
    sum += value;
  }
  EXPECT_NEAR(sum / static_cast<double>(features.size()), 0.2868, 0.001);
}

}  // namespace
}  // namespace ps::worker
