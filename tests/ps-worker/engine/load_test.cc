#include "ps-worker/engine/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "common/error_id.h"
#include "ps-worker/engine/model.h"
#include "tests/support/temp_directory.h"

namespace ps::worker {
namespace {

using ::testing::HasSubstr;

class LoadTest : public ::testing::Test {
 protected:
  LoadTest() {
    SetComputeThreads(1);
    spec_.model.type = "mlp";
    spec_.model.layers = {2, 8, 3};
    spec_.training.batch_size = 4;
    spec_.data.train = Csv("train.csv", "a,b,class\n1,2,0\n3,4,1\n5,6,2\n7,8,0\n9,0,1\n");
    spec_.data.test = Csv("test.csv", "a,b,class\n1,2,0\n3,4,1\n");
  }

  DataSourceSpec Csv(const std::string& name, const std::string& text) {
    std::ofstream(directory_ / name, std::ios::trunc) << text;
    DataSourceSpec source;
    source.format = "csv";
    source.file = (directory_ / name).string();
    source.label = "class";
    return source;
  }

  std::string PreflightError() {
    const auto result = Preflight(spec_);
    EXPECT_FALSE(result.ok);
    EXPECT_EQ(result.layout, nullptr);
    return result.error;
  }

  test::TempDirectory directory_{"load"};
  JobSpec spec_;
};

TEST_F(LoadTest, APreflightReturnsLayoutAndData) {
  const auto result = Preflight(spec_);
  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(result.data->records, 5u);
  EXPECT_EQ(result.data->test_records, 2u);
  EXPECT_EQ(result.layout->parameters, 51u);
  const auto task = LoadTask(spec_);
  ASSERT_TRUE(task.ok());
  EXPECT_EQ(task->workload->layout().fingerprint, result.layout->fingerprint);
  EXPECT_EQ(task->train->fingerprint(), result.data->fingerprint);
}

TEST_F(LoadTest, APrecisionThatTheDeviceLacksIsRefused) {
  spec_.training.precision = "fp16";
  EXPECT_EQ(static_cast<ErrorId>(Preflight(spec_).error_id), ErrorId::kPrecision);
  EXPECT_THAT(PreflightError(), HasSubstr("training.precision: fp16 needs a GPU"));
  spec_.training.precision = "bf16";
  const auto result = Preflight(spec_);
  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(LoadTask(spec_)->workload->precision(), Precision::kBf16);
}

TEST_F(LoadTest, TestDataAreOptional) {
  spec_.data.test.reset();
  const auto result = Preflight(spec_);
  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(result.data->test_records, 0u);
}

TEST_F(LoadTest, AMissingDataFileIsNamed) {
  spec_.data.train.file += ".gone";
  EXPECT_THAT(PreflightError(), HasSubstr("train.csv.gone"));
}

TEST_F(LoadTest, FeaturesThatDoNotFitTheModelAreFoundInBothDataSets) {
  spec_.model.layers = {3, 8, 3};
  EXPECT_THAT(PreflightError(), HasSubstr("model.layers: begins with 3, but data.train has 2"));
  spec_.model.layers = {2, 8, 3};
  spec_.data.test = Csv("test.csv", "a,class\n1,0\n");
  EXPECT_THAT(PreflightError(), HasSubstr("data.test has 1 features"));
}

TEST_F(LoadTest, AClassThatTheModelLacksIsFoundBeyondTheFirstBatch) {
  std::string text = "a,b,class\n";
  for (int i = 0; i < 1000; ++i) text += "1,2,0\n";
  spec_.data.train = Csv("train.csv", text + "1,2,3\n");
  EXPECT_THAT(PreflightError(), HasSubstr("the model has the classes 0 to 2"));
}

TEST_F(LoadTest, LabelsThatAreNoClassesAreRefused) {
  spec_.data.train = Csv("train.csv", "a,b,class\n1,2,0.5\n3,4,1\n");
  EXPECT_THAT(PreflightError(), HasSubstr("are not whole"));
  spec_.data.train = Csv("train.csv", "a,b,class\n1,2,-1\n3,4,1\n");
  EXPECT_THAT(PreflightError(), HasSubstr("cross_entropy wants classes"));
}

TEST_F(LoadTest, RecordsWithoutContentAreForTheLedgerAlone) {
  spec_.data.train = DataSourceSpec();
  spec_.data.train.format = "counter";
  spec_.data.train.records = 100;
  spec_.data.test.reset();
  EXPECT_THAT(PreflightError(), HasSubstr("ledger"));
  spec_.model.type = "ledger";
  const auto result = Preflight(spec_);
  ASSERT_TRUE(result.ok) << result.error;
  EXPECT_EQ(result.layout->blocks, 16u);
  EXPECT_EQ(result.data->records, 100u);
}

TEST_F(LoadTest, AnInputShapeThatDoesNotFitTheDataIsRefused) {
  spec_.model.type = "cnn";
  spec_.model.input_shape = {1, 28, 28};
  EXPECT_THAT(PreflightError(), HasSubstr("model.input_shape: [1, 28, 28] has 784 values"));
}

TEST_F(LoadTest, AFileThatIsNoModelIsNamed) {
  spec_.model.type = "torchscript";
  spec_.model.input_shape = {2};
  spec_.model.file = spec_.data.train.file;
  EXPECT_THAT(PreflightError(), HasSubstr("train.csv: not a TorchScript file"));
}

}  // namespace
}  // namespace ps::worker
