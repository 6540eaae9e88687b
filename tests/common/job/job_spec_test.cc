#include "common/job/job_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

namespace ps {
namespace {

using testing::HasSubstr;

constexpr const char* kMlp = R"(apiVersion: ds/v1
kind: TrainJob
name: fashion
model:
  type: mlp
  layers: [784, 256, 10]
data:
  train: {format: idx, images: train.gz, labels: /data/labels.gz}
  test: {images: test.gz, labels: test-labels.gz}
)";

constexpr const char* kLedger = R"(apiVersion: ds/v1
kind: TrainJob
name: ledger
model: {type: ledger, blocks: 4}
data:
  train: {format: counter, records: 1000}
)";

constexpr const char* kCnn = R"(apiVersion: ds/v1
kind: TrainJob
name: cnn
model: {type: cnn, input_shape: [1, 28, 28]}
data:
  train: {format: csv, file: a.csv, label: 0, header: false, delimiter: ';'}
)";

constexpr const char* kDeepFm = R"(apiVersion: ds/v1
kind: TrainJob
name: movies
model: {type: deepfm, hidden: [32, 16]}
data:
  train: {format: csv, file: a.tsv, label: class, delimiter: tab, ignore: [split], label_positive: [2, yes]}
  test: {file: b.tsv}
embedding_tables:
  - name: users
    width: 9
    columns: [user]
    initializer: {type: normal, standard_deviation: 0.1}
    optimizer: {type: rowwise_adagrad, learning_rate: 0.2}
    sightings: 2
    unused_epochs: 1.5
    max_mebibytes: 100
    when_full: lfu
    values: fp32
  - {name: items, width: 9, columns: [item, 7]}
)";

constexpr const char* kTransformer = R"(apiVersion: ds/v1
kind: TrainJob
name: letters
model: {type: transformer, depth: 2, heads: 4, width: 64, dropout: 0.1}
data:
  train: {format: text, file: a.txt, context: 32, end: 0.9}
  test: {file: a.txt, begin: 0.9}
)";

JobSpec Parse(const std::string& text) {
  auto spec = ParseJobYaml(text, "job.yaml", "/base dir");
  EXPECT_TRUE(spec.ok()) << spec.error().message;
  return spec.ok() ? spec.value() : JobSpec{};
}

constexpr const char* kLoad = R"(checkpoint:
  load:
    - from: first@12
      tensors: ["linear0.*", "*.bias"]
      tables: [users]
      rename: {"0.weight": "1.weight", "linear0.*": "*", "*": "linear.*"}
      grow: true
    - {file: values/m.safetensors, tensors: ["*"]}
    - {from: 7, tables: ["*"]}
)";

std::string Findings(const std::string& text) {
  const auto spec = ParseJobYaml(text, "job.yaml", "/base");
  if (spec.ok()) return "";
  EXPECT_EQ(spec.error().code, ErrorCode::kInvalid);
  return spec.error().message;
}

std::string Replaced(std::string text, const std::string& what, const std::string& by) {
  const auto at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return at == std::string::npos ? text : text.replace(at, what.size(), by);
}

// ---- what is read

TEST(JobSpecTest, AShortFileGetsEveryDefault) {
  const JobSpec spec = Parse(kMlp);
  EXPECT_EQ(spec.name, "fashion");
  EXPECT_EQ(spec.model.layers, (std::vector<std::int64_t>{784, 256, 10}));
  EXPECT_EQ(spec.training.workers, 2);
  EXPECT_EQ(spec.training.loss, "cross_entropy");
  EXPECT_EQ(spec.training.staleness, 3);
  EXPECT_DOUBLE_EQ(spec.sparsification.ratio, 0.01);
  EXPECT_EQ(spec.checkpoint.keep, 5);
  EXPECT_EQ(spec.checkpoint.keep_every, 0);
  EXPECT_EQ(spec.checkpoint.full_every, 4);
  EXPECT_EQ(spec.resources.retention_mebibytes, 1024);
}

TEST(JobSpecTest, RelativePathsAreMadeAbsoluteAgainstTheBaseDirectory) {
  const JobSpec spec = Parse(kMlp);
  EXPECT_EQ(spec.data.train.images, "/base dir/train.gz");
  EXPECT_EQ(spec.data.train.labels, "/data/labels.gz");
  EXPECT_EQ(spec.data.test->images, "/base dir/test.gz");
}

TEST(JobSpecTest, TestDataTakesItsFormatFromTheTrainingData) {
  EXPECT_EQ(Parse(kMlp).data.test->format, "idx");
  const JobSpec csv = Parse(std::string(kCnn) + "  test: {file: b.csv}\n");
  EXPECT_EQ(csv.data.test->format, "csv");
  EXPECT_EQ(csv.data.test->label, "0");
  EXPECT_FALSE(csv.data.test->header);
  EXPECT_EQ(csv.data.test->delimiter, ';');
}

TEST(JobSpecTest, ScaleIsResolvedByFormat) {
  EXPECT_DOUBLE_EQ(Parse(kMlp).data.scale, 1.0 / 255.0);
  EXPECT_DOUBLE_EQ(Parse(kCnn).data.scale, 1.0);
  JobSpec unresolved = Parse(kMlp);
  unresolved.data.scale = 0;
  EXPECT_EQ(ResolvedJson(unresolved), ResolvedJson(Parse(kMlp)));
}

TEST(JobSpecTest, ALearningRateMayBeAPlainNumber) {
  EXPECT_DOUBLE_EQ(
      Parse(std::string(kMlp) + "optimizer: {learning_rate: 0.2}\n").optimizer.learning_rate.base,
      0.2);
  const JobSpec nested =
      Parse(std::string(kMlp) +
            "optimizer: {learning_rate: {base: 0.1, schedule: cosine, final_factor: 0.01}}\n");
  EXPECT_EQ(nested.optimizer.learning_rate.schedule, "cosine");
  EXPECT_DOUBLE_EQ(nested.optimizer.learning_rate.final_factor, 0.01);
}

TEST(JobSpecTest, TheLedgerNeedsNoWordOnLossAndMetric) {
  const JobSpec spec = Parse(kLedger);
  EXPECT_EQ(spec.training.loss, "none");
  EXPECT_EQ(spec.training.metric, "none");
  EXPECT_EQ(spec.data.train.records, 1000);
  EXPECT_EQ(spec.model.blocks, 4);
}

TEST(JobSpecTest, TheLossMseHasTheMetricMseByDefault) {
  EXPECT_EQ(Parse(std::string(kMlp) + "training: {loss: mse}\n").training.metric, "mse");
}

TEST(JobSpecTest, EveryFieldIsRead) {
  const JobSpec spec = Parse(R"(apiVersion: ds/v1
kind: TrainJob
name: a-1
model:
  type: cnn
  channels: [8, 24]
  hidden: 64
  batch_norm: false
  input_shape: [3, 32, 16]
  classes: 7
  initialization: xavier_uniform
data:
  train: {format: csv, file: /t.csv, label: y, header: true, delimiter: tab}
  scale: 2
  mean: -0.5
  standard_deviation: 0.25
  shuffle: false
training:
  workers: 3
  threads_per_worker: 2
  batch_size: 64
  accumulate: 3
  precision: bf16
  loss_scaling: {mode: dynamic, initial_scale: 1024, growth_factor: 3, backoff_factor: 0.25, growth_interval: 10}
  loss_calibration: {enabled: true, threshold: 7, warmup_steps: 99}
  epochs: 2.5
  loss: cross_entropy
  metric: none
  staleness: -1
  max_version_gap: 12
  pull_values: fp32
  evaluate_every_epochs: 0
  on_nonfinite: stop
  seed: 9
optimizer:
  type: worker_nesterov
  momentum: 0.5
  learning_rate: {base: 1, schedule: step, step_factor: 0.5, step_epochs: [1, 2], warmup_epochs: 1}
  reference_batch: 32
  weight_decay: 0.001
  clip_norm: 4
sparsification:
  ratio: 1.0
  warmup_epochs: 1
  index_codec: gap8
  value_codec: fp32
  small_tensor_elements: 0
checkpoint: {every_steps: 7, keep: 2, keep_every: 10, full_every: 9, from: other@12}
resources: {shards: 4096, replicas: 2, retention_mebibytes: 64, max_restarts: 0, label: gpu.a_b-1}
)");
  EXPECT_EQ(spec.model.channels, (std::vector<std::int64_t>{8, 24}));
  EXPECT_EQ(spec.model.hidden, 64);
  EXPECT_FALSE(spec.model.batch_norm);
  EXPECT_EQ(spec.model.input_shape, (std::vector<std::int64_t>{3, 32, 16}));
  EXPECT_EQ(spec.model.classes, 7);
  EXPECT_EQ(spec.model.initialization, "xavier_uniform");
  EXPECT_EQ(spec.data.train.file, "/t.csv");
  EXPECT_EQ(spec.data.train.label, "y");
  EXPECT_TRUE(spec.data.train.header);
  EXPECT_EQ(spec.data.train.delimiter, '\t');
  EXPECT_DOUBLE_EQ(spec.data.scale, 2);
  EXPECT_DOUBLE_EQ(spec.data.mean, -0.5);
  EXPECT_DOUBLE_EQ(spec.data.standard_deviation, 0.25);
  EXPECT_FALSE(spec.data.shuffle);
  EXPECT_EQ(spec.training.workers, 3);
  EXPECT_EQ(spec.training.threads_per_worker, 2);
  EXPECT_EQ(spec.training.batch_size, 64);
  EXPECT_EQ(spec.training.accumulate, 3);
  EXPECT_EQ(spec.training.step_records(), 192);
  EXPECT_EQ(spec.training.push_records(), 192);
  EXPECT_EQ(spec.training.precision, "bf16");
  EXPECT_EQ(spec.training.loss_scaling.mode, "dynamic");
  EXPECT_DOUBLE_EQ(spec.training.loss_scaling.initial_scale, 1024);
  EXPECT_DOUBLE_EQ(spec.training.loss_scaling.growth_factor, 3);
  EXPECT_DOUBLE_EQ(spec.training.loss_scaling.backoff_factor, 0.25);
  EXPECT_EQ(spec.training.loss_scaling.growth_interval, 10);
  EXPECT_TRUE(spec.training.loss_calibration.enabled);
  EXPECT_DOUBLE_EQ(spec.training.loss_calibration.threshold, 7);
  EXPECT_EQ(spec.training.loss_calibration.warmup_steps, 99);
  EXPECT_DOUBLE_EQ(spec.training.epochs, 2.5);
  EXPECT_EQ(spec.training.metric, "none");
  EXPECT_EQ(spec.training.staleness, -1);
  EXPECT_EQ(spec.training.max_version_gap, 12);
  EXPECT_EQ(spec.training.pull_values, "fp32");
  EXPECT_DOUBLE_EQ(spec.training.evaluate_every_epochs, 0);
  EXPECT_EQ(spec.training.on_nonfinite, "stop");
  EXPECT_EQ(spec.training.seed, 9);
  EXPECT_DOUBLE_EQ(spec.optimizer.momentum, 0.5);
  EXPECT_DOUBLE_EQ(spec.optimizer.learning_rate.base, 1);
  EXPECT_DOUBLE_EQ(spec.optimizer.learning_rate.step_factor, 0.5);
  EXPECT_EQ(spec.optimizer.learning_rate.step_epochs, (std::vector<double>{1, 2}));
  EXPECT_DOUBLE_EQ(spec.optimizer.learning_rate.warmup_epochs, 1);
  EXPECT_EQ(spec.optimizer.reference_batch, 32);
  EXPECT_DOUBLE_EQ(spec.optimizer.weight_decay, 0.001);
  EXPECT_DOUBLE_EQ(spec.optimizer.clip_norm, 4);
  EXPECT_DOUBLE_EQ(spec.sparsification.ratio, 1);
  EXPECT_DOUBLE_EQ(spec.sparsification.warmup_epochs, 1);
  EXPECT_EQ(spec.sparsification.index_codec, "gap8");
  EXPECT_EQ(spec.sparsification.value_codec, "fp32");
  EXPECT_EQ(spec.sparsification.small_tensor_elements, 0);
  EXPECT_EQ(spec.checkpoint.every_steps, 7);
  EXPECT_EQ(spec.checkpoint.keep, 2);
  EXPECT_EQ(spec.checkpoint.keep_every, 10);
  EXPECT_EQ(spec.checkpoint.full_every, 9);
  EXPECT_EQ(spec.checkpoint.from, "other@12");
  EXPECT_EQ(spec.resources.shards, 4096);
  EXPECT_EQ(spec.resources.retention_mebibytes, 64);
  EXPECT_EQ(spec.resources.replicas, 2);
  EXPECT_EQ(spec.resources.max_restarts, 0);
  EXPECT_EQ(spec.resources.label, "gpu.a_b-1");
}

// ---- the resolved form

TEST(JobSpecTest, ResolvedJsonAndYamlParseBackToTheSame) {
  for (const std::string& text :
       {std::string(kMlp), std::string(kLedger), std::string(kCnn), std::string(kTransformer),
        std::string(kMlp) + "optimizer: {type: adamw, epsilon: 1e-6, weight_decay: 0}\n",
        std::string(kMlp) + "optimizer: {type: sparse_adam, beta2: 0.9999, weight_decay: 0.1}\n",
        std::string(kMlp) + "optimizer: {type: worker_adam}\n",
        std::string(kMlp) + "optimizer: {type: worker_adam, beta1: 0.9}\n",
        std::string(kMlp) + "optimizer: {type: ftrl, l1: 0.1}\n",
        std::string(kMlp) + "optimizer: {type: sgd, learning_rate: {schedule: step, step_epochs: "
                            "[0.1, 2]}}\ncheckpoint: {from: '12@3'}\n"}) {
    const JobSpec spec = Parse(text);
    const std::string json = ResolvedJson(spec);
    const auto again = ParseJobJson(json);
    ASSERT_TRUE(again.ok()) << again.error().message;
    EXPECT_EQ(ResolvedJson(*again), json);
    const auto yaml = ParseJobYaml(ResolvedYaml(spec), "resolved.yaml", "");
    ASSERT_TRUE(yaml.ok()) << yaml.error().message << "\n" << ResolvedYaml(spec);
    EXPECT_EQ(ResolvedJson(*yaml), json);
    EXPECT_EQ(nlohmann::json::parse(ResolvedJson(spec, 2)), nlohmann::json::parse(json));
  }
}

TEST(JobSpecTest, AdamOnTheWorkersHasNoMomentumUnlessAsked) {
  EXPECT_EQ(Parse(std::string(kMlp) + "optimizer: {type: worker_adam}\n").optimizer.beta1, 0);
  EXPECT_EQ(
      Parse(std::string(kMlp) + "optimizer: {type: worker_adam, beta1: 0.9}\n").optimizer.beta1,
      0.9);
  EXPECT_EQ(Parse(std::string(kMlp) + "optimizer: {type: adam}\n").optimizer.beta1, 0.9);
}

TEST(JobSpecTest, ResolvedJsonNamesEveryDefault) {
  const auto json = nlohmann::json::parse(ResolvedJson(Parse(kMlp)));
  EXPECT_EQ(json["apiVersion"], "ds/v1");
  EXPECT_EQ(json["kind"], "TrainJob");
  EXPECT_EQ(json["training"]["staleness"], 3);
  EXPECT_EQ(json["optimizer"]["learning_rate"]["schedule"], "constant");
  EXPECT_EQ(json["data"]["scale"], 1.0 / 255.0);
  EXPECT_FALSE(json["model"].contains("channels")) << "a cnn's keys are not for an mlp";
}

TEST(JobSpecTest, TextThatLooksLikeSomethingElseSurvivesTheYaml) {
  const JobSpec spec =
      Parse(Replaced(kCnn, "label: 0, header: false", "label: 'true: # \"x\" \xc3\xa4'"));
  const auto again = ParseJobYaml(ResolvedYaml(spec), "r", "");
  ASSERT_TRUE(again.ok()) << again.error().message;
  EXPECT_EQ(again->data.train.label, "true: # \"x\" \xc3\xa4");
}

TEST(JobSpecTest, JsonIsCheckedAsTheFileIs) {
  auto json = nlohmann::json::parse(ResolvedJson(Parse(kMlp)));
  json["training"]["workers"] = 0;
  const auto refused = ParseJobJson(json.dump());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalid);
  EXPECT_EQ(refused.error().message, "job spec: training.workers: must be 1 to 1024, found 0");
  EXPECT_FALSE(ParseJobJson("[]").ok());
  EXPECT_FALSE(ParseJobJson("{").ok());
  EXPECT_FALSE(ParseJobJson("null").ok());
}

// ---- findings

TEST(JobSpecTest, AnUnknownKeyNamesTheLineAndTheNearestKey) {
  EXPECT_EQ(Findings(std::string(kMlp) + "training:\n  workrs: 3\n"),
            "job.yaml:11: training.workrs: unknown key, did you mean `workers`?");
  EXPECT_EQ(Findings(std::string(kMlp) + "chekpoint: {}\n"),
            "job.yaml:10: chekpoint: unknown key, did you mean `checkpoint`?");
  EXPECT_THAT(Findings(std::string(kMlp) + "resources: {zebra: 1}\n"),
              HasSubstr("unknown key; the keys here are shards, retention_mebibytes"));
}

TEST(JobSpecTest, AllFindingsAreReportedOneALineInTheOrderOfTheFile) {
  EXPECT_EQ(Findings(R"(apiVersion: ds/v2
kind: TrainJob
name: Bad_Name
model:
  type: mlp
data:
  train: {format: idx, images: a}
training:
  epochs: 0
  workers: many
)"),
            "job.yaml:1: apiVersion: must be ds/v1, found the text `ds/v2`\n"
            "job.yaml:3: name: must be 1 to 63 lower-case letters, digits and `-`, begin with a "
            "letter and not end with `-`, found the text `Bad_Name`\n"
            "job.yaml:4: model.layers: is missing\n"
            "job.yaml:7: data.train.labels: is missing\n"
            "job.yaml:9: training.epochs: must be more than 0 and at most 1e+06, found 0\n"
            "job.yaml:10: training.workers: must be a whole number, found the text `many`");
}

TEST(JobSpecTest, ARootThatIsNoMapIsRefused) {
  EXPECT_THAT(Findings("- a\n- b\n"), HasSubstr("must be a map of keys"));
  EXPECT_THAT(Findings("just text\n"), HasSubstr("found the text `just text`"));
  EXPECT_NE(Findings(""), "");
  EXPECT_NE(Findings("# a comment\n"), "");
}

TEST(JobSpecTest, MissingSectionsAreNamed) {
  const std::string findings = Findings("apiVersion: ds/v1\nkind: TrainJob\n");
  EXPECT_THAT(findings, HasSubstr("name: is missing"));
  EXPECT_THAT(findings, HasSubstr("model: is missing"));
  EXPECT_THAT(findings, HasSubstr("data: is missing"));
}

struct BadCase {
  const char* base;
  const char* what;  // replaced in the base, or "" to append
  const char* by;
  const char* finding;  // part of the message
};

class JobSpecFindingTest : public testing::TestWithParam<BadCase> {};

TEST_P(JobSpecFindingTest, IsReported) {
  const BadCase& bad = GetParam();
  const std::string text =
      *bad.what == '\0' ? std::string(bad.base) + bad.by : Replaced(bad.base, bad.what, bad.by);
  const std::string findings = Findings(text);
  EXPECT_THAT(findings, HasSubstr(bad.finding)) << text;
  EXPECT_EQ(findings.rfind("job.yaml:", 0), 0U) << findings;
}

const BadCase kBadCases[] = {
    {kMlp, "ds/v1", "2", "apiVersion: must be ds/v1, found the number 2"},
    {kMlp, "TrainJob", "Job", "kind: must be TrainJob"},
    {kMlp, "name: fashion", "name: 12",
     "name: must be text, found the number 12; put it in quotes"},
    {kMlp, "name: fashion", "name: '12'", "begin with a letter"},
    {kMlp, "name: fashion", "name: a-", "not end with `-`"},
    {kMlp, "name: fashion", "name:", "name: has no value"},
    {kMlp, "name: fashion", "name: [a]", "name: must be text, found a list"},
    {kMlp, "type: mlp", "type: mpl",
     "must be one of mlp, cnn, torchscript, deepfm, transformer, ledger, found the text "
     "`mpl`, did you mean `mlp`?"},
    {kMlp, "[784, 256, 10]", "[784]", "model.layers: must have 2 to 64 entries, found 1"},
    {kMlp, "[784, 256, 10]", "784", "must be a list of whole numbers, found the number 784"},
    {kMlp, "[784, 256, 10]", "[784, x]", "must be a whole number, found the text `x`"},
    {kMlp, "[784, 256, 10]", "[784, 0]", "must be 1 to 1000000, found 0"},
    {kMlp, "[784, 256, 10]", "[784, 1.5]", "must be a whole number, found the number 1.5"},
    {kMlp, "[784, 256, 10]", "[1000000, 1000000]", "may have at most 2000000000"},
    {kMlp, "type: mlp", "type: mlp\n  hidden: 3",
     "model.hidden: belongs to model types cnn and deepfm only"},
    {kMlp, "type: mlp", "type: mlp\n  activation: gelu", "must be one of relu, tanh"},
    {kMlp, "type: mlp", "type: mlp\n  initialization: ones", "must be one of kaiming_uniform"},
    {kMlp, "type: mlp\n  layers: [784, 256, 10]", "type: torchscript", "model.file: is missing"},
    {kMlp, "type: mlp\n  layers: [784, 256, 10]", "type: torchscript",
     "model.input_shape: is missing"},
    {kCnn, "[1, 28, 28]", "[28, 28]", "model.input_shape: must have 3 entries, found 2"},
    {kCnn, "[1, 28, 28]", "[1, 3, 28]", "at least 4"},
    {kCnn, "[1, 28, 28]", "[5000, 28, 28]", "at most 4096 channels"},
    {kCnn, "[1, 28, 28]", "[1, 60000, 60000]", "more than 2000000000 parameters"},
    {kCnn, ", input_shape: [1, 28, 28]", "", "model.input_shape: is missing"},
    {kCnn, "type: cnn", "type: cnn, channels: [1, 2, 3]", "must have 2 entries, found 3"},
    {kCnn, "type: cnn", "type: cnn, batch_norm: maybe", "must be true or false, found the text"},
    {kCnn, "type: cnn", "type: cnn, batch_norm: 1", "must be true or false, found the number 1"},
    {kCnn, "label: 0, ", "", "data.train.label: is missing"},
    {kCnn, "file: a.csv, ", "", "data.train.file: is missing"},
    {kCnn, "label: 0", "label: price", "must be the number of a column"},
    {kCnn, "';'", "';;'", "data.train.delimiter: must be one character"},
    {kCnn, "';'", "a", "data.train.delimiter: must be one character"},
    {kCnn, "file: a.csv", "file: \"a\\nb\"", "must not hold control characters"},
    {kCnn, "file: a.csv", "file: ''", "must have 1 to 4096 characters"},
    {kCnn, "file: a.csv", "file: a.csv, images: b", "belongs to data format idx only"},
    {kMlp, "format: idx", "format: tfrecord", "must be one of idx, csv, text, counter"},
    {kMlp, "format: idx, ", "", "data.train.format: is missing"},
    {kMlp, "{format: idx, images: train.gz, labels: /data/labels.gz}", "train.gz",
     "data.train: must be a map of keys, found the text `train.gz`"},
    {kLedger, "", "  test: {format: counter, records: 3}\n", "data.test: must not be given"},
    {kLedger, ", records: 1000", "", "data.train.records: is missing"},
    {kLedger, "records: 1000", "records: 0", "data.train.records: must be 1 to"},
    {kLedger, "", "training: {loss: mse}\n", "training.loss: must be none for the ledger model"},
    {kLedger, "", "training: {metric: mse}\n", "training.metric: must be none for the ledger"},
    {kLedger, "{format: counter, records: 1000}", "{format: csv, file: a, label: b}",
     "data.train.format: must be counter for the ledger model"},
    {kMlp, "{format: idx, images: train.gz, labels: /data/labels.gz}",
     "{format: counter, records: 5}", "which only the ledger model can train on"},
    {kMlp, "", "training: {loss: none}\n", "none is for the ledger model only"},
    {kMlp, "", "training: {loss: mse, metric: accuracy}\n", "accuracy needs the loss"},
    {kMlp, "", "training: {metric: mse}\n", "mse needs the loss mse"},
    {kMlp, "", "training: {workers: 0}\n", "training.workers: must be 1 to 1024, found 0"},
    {kMlp, "", "training: {workers: 1025}\n", "must be 1 to 1024, found 1025"},
    {kMlp, "", "training: {workers: '2'}\n", "must be a whole number, found the text `2`"},
    {kMlp, "", "training: {workers: 99999999999999999999}\n", "must be a whole number"},
    {kMlp, "", "training: {batch_size: 0}\n", "training.batch_size: must be 1 to"},
    {kMlp, "", "training: {epochs: -1}\n", "training.epochs: must be more than 0"},
    {kMlp, "", "training: {epochs: .nan}\n", "training.epochs: must be a number"},
    {kMlp, "", "training: {epochs: inf}\n", "training.epochs: must be a number"},
    {kMlp, "", "training: {epochs: 1e999}\n", "training.epochs: must be a number"},
    {kMlp, "", "training: {staleness: -2}\n", "at least 0, or unlimited (-1)"},
    {kMlp, "", "training: {staleness: few}\n", "at least 0, or unlimited (-1)"},
    {kMlp, "", "training: {max_version_gap: -1}\n", "training.max_version_gap: must be 0 to"},
    {kMlp, "", "training: {pull_values: fp16}\n", "must be one of auto, bf16, fp32, increments"},
    {kMlp, "", "training: {pull_values: increments}\nsparsification: {ratio: 1}\n",
     "increments need a sparsification.ratio below 1"},
    {kMlp, "", "training: {pull_values: increments, staleness: 0}\n",
     "increments need a staleness above 0"},
    {kMlp, "", "training: {pull_values: increments}\noptimizer: {weight_decay: 0.1}\n",
     "increments need an optimizer.weight_decay of 0"},
    {kMlp, "", "training: {on_nonfinite: ignore}\n", "must be one of skip, stop"},
    {kMlp, "", "training: {evaluate_every_epochs: -1}\n", "must be at least 0"},
    {kMlp, "", "training: {threads_per_worker: 0}\n", "must be 1 to 256"},
    {kMlp, "", "training: {seed: -1}\n", "training.seed: must be at least 0, found -1"},
    {kMlp, "", "training:\n", "training: has no value"},
    {kMlp, "", "training: 3\n", "training: must be a map of keys, found the number 3"},
    {kMlp, "", "optimizer: {type: adamm}\n", "did you mean `adam`?"},
    {kMlp, "", "optimizer: {type: rowwise_adagrad}\n",
     "must be one of worker_nesterov, worker_adam, sgd"},
    {kMlp, "", "optimizer: {beta1: 0.5}\n",
     "optimizer.beta1: belongs to optimizer types adam, adamw and worker_adam only"},
    {kMlp, "", "optimizer: {type: sparse_adam, beta1: 0.5}\n",
     "optimizer.beta1: belongs to optimizer types adam, adamw and worker_adam only"},
    {kMlp, "", "optimizer: {type: adam, beta2: 0.99999}\n",
     "optimizer.beta2: must be at least 0 and at most 0.9999"},
    {kMlp, "", "optimizer: {type: adam, weight_decay: 0.1}\n",
     "belongs to optimizer types other than adam (adamw has it)"},
    {kMlp, "", "optimizer: {type: ftrl, weight_decay: 0.1}\n", "optimizer.weight_decay: belongs"},
    {kMlp, "", "optimizer: {type: adam, epsilon: 0}\n",
     "optimizer.epsilon: must be at least 1e-30"},
    // A float could not hold them: 0 by 0, and 1 by 0.
    {kMlp, "", "optimizer: {type: adam, epsilon: 1e-40}\n", "optimizer.epsilon: must be at least"},
    {kMlp, "", "optimizer: {learning_rate: 1e-300}\n", "optimizer.learning_rate: must be at least"},
    {kMlp, "", "optimizer: {momentum: 0.99999999}\n", "must be at least 0 and at most 0.9999"},
    {kMlp, "", "optimizer: {type: momentum, epsilon: 1e-6}\n",
     "belongs to optimizer types adagrad, adam, adamw, worker_adam and sparse_adam only"},
    {kMlp, "", "optimizer: {type: sgd, initial_accumulator: 1}\n",
     "belongs to optimizer types adagrad and ftrl only"},
    {kMlp, "", "optimizer: {type: adam, l1: 1}\n", "belongs to optimizer type ftrl only"},
    {kMlp, "", "optimizer: {clip_value: 1}\n", "belongs to optimizers on the servers only"},
    {kMlp, "", "optimizer: {type: ftrl, learning_rate: {schedule: cosine}}\n",
     "optimizer.learning_rate: must be constant and without a warm-up for ftrl"},
    {kMlp, "", "optimizer: {learning_rate: {schedule: inverse_square_root}}\n",
     "warmup_epochs: must be more than 0 for the schedule inverse_square_root"},
    {kMlp, "", "optimizer: {momentum: 1}\n", "must be at least 0 and at most 0.9999, found 1"},
    {kMlp, "", "optimizer: {type: sgd, momentum: 0.5}\n",
     "optimizer.momentum: belongs to optimizer types worker_nesterov, momentum and nesterov only"},
    {kMlp, "", "optimizer: {learning_rate: 0}\n",
     "optimizer.learning_rate: must be at least 1e-30"},
    {kMlp, "", "optimizer: {learning_rate: fast}\n", "must be a number, found the text `fast`"},
    {kMlp, "", "optimizer: {learning_rate: {schedule: step}}\n",
     "optimizer.learning_rate.step_epochs: is missing"},
    {kMlp, "", "optimizer: {learning_rate: {schedule: step, step_epochs: [3, 2]}}\n",
     "step_epochs: must increase"},
    {kMlp, "", "optimizer: {learning_rate: {step_epochs: [1]}}\n",
     "step_epochs: belongs to the schedule step only"},
    {kMlp, "", "optimizer: {learning_rate: {final_factor: 1}}\n",
     "final_factor: belongs to the schedules cosine and linear only"},
    {kMlp, "", "optimizer: {learning_rate: {warmup_epochs: 2}}\n",
     "is longer than the training, which has 1 epochs"},
    {kMlp, "", "optimizer: {weight_decay: 1}\n", "less than 1"},
    {kMlp, "", "optimizer: {clip_norm: -1}\n", "optimizer.clip_norm: must be at least 0"},
    {kMlp, "", "optimizer: {reference_batch: 0}\n", "optimizer.reference_batch: must be 1 to"},
    {kMlp, "", "sparsification: {ratio: 0}\n", "must be more than 0 and at most 1, found 0"},
    {kMlp, "", "sparsification: {ratio: 1.01}\n", "must be more than 0 and at most 1"},
    {kMlp, "", "sparsification: {warmup_epochs: 5}\n", "sparsification.warmup_epochs: is longer"},
    {kMlp, "", "sparsification: {index_codec: rle}\n",
     "must be one of auto, rice, gap8, raw16, bitmap"},
    {kMlp, "", "optimizer: {type: worker_adam, clip_value: 1}\n",
     "belongs to optimizers on the servers only"},
    {kMlp, "", "training: {local_steps: 4}\noptimizer: {type: adam}\n",
     "training.local_steps: needs the optimizer worker_nesterov, worker_adam or sgd"},
    {kMlp, "", "training: {accumulate: 0}\n", "training.accumulate: must be 1 to 1000"},
    {kMlp, "", "training: {batch_size: 65536, accumulate: 17}\n",
     "training.accumulate: makes steps of 1114112 records, at most 1048576"},
    {kMlp, "", "training: {precision: fp8}\n", "must be one of auto, fp32, bf16, fp16"},
    {kMlp, "", "training: {loss_scaling: {mode: static}}\n",
     "training.loss_scaling.mode: must be one of auto, dynamic, none"},
    {kMlp, "", "training: {loss_scaling: {growth_factor: 1}}\n",
     "training.loss_scaling.growth_factor: must be more than 1"},
    {kMlp, "", "training: {loss_scaling: {backoff_factor: 1}}\n", "less than 1, found 1"},
    {kMlp, "", "training: {loss_calibration: {warmup_steps: 3}}\n",
     "training.loss_calibration.warmup_steps: must be 50 to 1000000"},
    {kMlp, "", "training: {loss_calibration: true}\n",
     "training.loss_calibration: must be a map of keys"},
    {kMlp, "", "training: {local_steps: 1001}\n", "training.local_steps: must be 1 to 1000"},
    {kMlp, "", "training: {outer_momentum: 0.5}\n",
     "training.outer_momentum: needs local_steps above 1"},
    {kMlp, "", "training: {local_steps: 4, outer_momentum: 1}\n",
     "training.outer_momentum: must be at least 0 and at most 0.9999, found 1"},
    {kMlp, "", "training: {batch_by_speed: true, staleness: 0}\n",
     "training.batch_by_speed: needs a staleness above 0"},
    {kMlp, "", "training: {staleness: 0}\ncheckpoint: {flush_residuals: true}\n",
     "checkpoint.flush_residuals: needs a staleness above 0"},
    {kMlp, "", "resources: {gpus: 17}\n", "resources.gpus: must be 0 to 16, found 17"},
    {kMlp, "", "resources: {gpus: 2}\ntraining: {batch_size: 1}\n",
     "resources.gpus: is more than training.batch_size"},
    {kTransformer, "heads: 4", "heads: 5", "model.heads: must divide model.width, which is 64"},
    {kTransformer, "begin: 0.9", "begin: 0.9, end: 0.9",
     "data.test.begin: must be less than `end`, which is 0.9"},
    {kTransformer, "begin: 0.9", "context: 64", "data.test.context: is 64, 32 in data.train"},
    {kTransformer, "format: text, file: a.txt, context: 32, end: 0.9",
     "format: csv, file: a.csv, label: y",
     "data.train.format: must be text for a transformer, which reads bytes, found `csv`"},
    {kTransformer, "depth: 2, heads: 4, width: 64", "depth: 256, heads: 4, width: 65536",
     "model.width: makes more than 2000000000 parameters"},
    {kTransformer, "data:\n", "data:\n  mean: 3\n",
     "data: scale, mean and standard_deviation are not for text"},
    {kMlp, "", "resources: {gpus: 1}\ntraining: {local_steps: 4}\n",
     "training.local_steps: is not computed on GPUs"},
    {kMlp, "", "resources: {gpus: 1}\nsparsification: {value_codec: int8}\n",
     "sparsification.value_codec: int8 is not computed on GPUs: use 2bit, bf16 or fp32"},
    {kMlp, "", "sparsification: {ratio: 0.1, ratio_max: 0.05}\n",
     "must not be below ratio, which is 0.1"},
    {kMlp, "", "training: {staleness: 0}\nsparsification: {ratio_max: 0.05}\n",
     "needs a staleness above 0"},
    {kMlp, "", "sparsification: {value_codec: fp16}\n",
     "must be one of fp32, bf16, int8, 4bit, 2bit, 1bit"},
    {kMlp, "", "sparsification: {small_tensor_elements: -1}\n", "must be 0 to"},
    {kMlp, "", "checkpoint: {every_steps: 0}\n", "checkpoint.every_steps: must be 1 to"},
    {kMlp, "", "checkpoint: {keep: 0}\n", "checkpoint.keep: must be 1 to 1000"},
    {kMlp, "", "checkpoint: {keep_every: -1}\n", "checkpoint.keep_every: must be 0 to"},
    {kMlp, "", "checkpoint: {full_every: 0}\n", "checkpoint.full_every: must be 1 to 1000"},
    {kMlp, "", "checkpoint: {from: a@b}\n", "must be JOB or JOB@ROUND"},
    {kMlp, "", "checkpoint: {from: ../x}\n", "must be JOB or JOB@ROUND"},
    {kMlp, "", "resources: {shards: 4097}\n", "resources.shards: must be 0 to 4096"},
    {kMlp, "", "resources: {retention_mebibytes: 0}\n", "must be 1 to 1048576"},
    {kMlp, "", "resources: {label: a b}\n", "resources.label: must be 1 to 63 letters"},
    {kMlp, "", "resources: {replicas: 3}\n", "resources.replicas: must be 0 to"},
    {kMlp, "", "resources: {max_restarts: -1}\n", "resources.max_restarts: must be 0 to"},
    {kMlp, "", "name: again\n", "`name` is given twice"},
};

INSTANTIATE_TEST_SUITE_P(Cases, JobSpecFindingTest, testing::ValuesIn(kBadCases));

TEST(JobSpecTest, ScaleMustBePositiveAndTheDataNumbersFinite) {
  for (const char* line :
       {"scale: 0", "scale: -1", "standard_deviation: 0", "mean: x", "shuffle: 2"}) {
    EXPECT_NE(Findings(std::string(kMlp) + "  " + line + "\n"), "") << line;
  }
}

TEST(JobSpecTest, NumbersOfColumnsAndJobsNeedNoQuotes) {
  EXPECT_EQ(Parse(kCnn).data.train.label, "0");
  EXPECT_EQ(Parse(std::string(kMlp) + "checkpoint: {from: 12}\n").checkpoint.from, "12");
}

TEST(JobSpecTest, ManyFindingsAreCutOff) {
  std::string text = std::string(kMlp) + "training:\n";
  for (int i = 0; i < 500; ++i) text += "  zz" + std::to_string(i) + ": 1\n";
  const std::string findings = Findings(text);
  EXPECT_THAT(findings, HasSubstr("more findings are not shown"));
  EXPECT_LE(std::count(findings.begin(), findings.end(), '\n'), 101);
}

TEST(JobSpecTest, AVeryLongKeyIsShortenedInTheMessage) {
  EXPECT_LT(Findings(std::string(kMlp) + std::string(900, 'k') + ": 1\n").size(), 300U);
}

TEST(JobSpecTest, EveryCutAndEveryFlippedByteOfAFileIsAnAnswer) {
  const std::string text = kMlp;
  for (std::size_t i = 0; i < text.size(); ++i) {
    (void)ParseJobYaml(text.substr(0, i), "f", "/");
    for (const char c : {'\0', '{', '[', '*', '&', ':', '\xff', '\n', '"', '!'}) {
      std::string changed = text;
      changed[i] = c;
      const auto spec = ParseJobYaml(changed, "f", "/");
      if (spec.ok()) {
        EXPECT_TRUE(ParseJobJson(ResolvedJson(*spec)).ok()) << changed;
      }
    }
  }
}

// ---- warnings

TEST(JobSpecTest, MoreThanEightWorkersAreAWarningAndNoError) {
  EXPECT_TRUE(JobWarnings(Parse(kMlp)).empty());
  const auto warnings = JobWarnings(Parse(std::string(kMlp) + "training: {workers: 9}\n"));
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_THAT(warnings[0], HasSubstr("training.workers is 9"));
}

TEST(JobSpecTest, UnlimitedStalenessAndMissingTestDataAreWarnings) {
  EXPECT_EQ(JobWarnings(Parse(std::string(kMlp) + "training: {staleness: -1}\n")).size(), 1U);
  EXPECT_EQ(Parse(std::string(kMlp) + "training: {staleness: unlimited}\n").training.staleness, -1);
  EXPECT_EQ(Parse(std::string(kMlp) + "training: {staleness: 0}\n").training.staleness, 0);
  EXPECT_EQ(JobWarnings(Parse(kCnn)).size(), 1U);
  EXPECT_TRUE(JobWarnings(Parse(kLedger)).empty());
}

TEST(JobSpecTest, EachOptimizerHasItsOwnDefaults) {
  const auto optimizer = [](const std::string& rest) {
    return Parse(std::string(kMlp) + "optimizer: {" + rest + "}\n").optimizer;
  };
  EXPECT_EQ(optimizer("type: adam").epsilon, 1e-8);
  EXPECT_EQ(optimizer("type: adam").weight_decay, 0);
  EXPECT_EQ(optimizer("type: adamw").weight_decay, 0.01);
  EXPECT_EQ(optimizer("type: adamw, weight_decay: 0").weight_decay, 0);
  EXPECT_EQ(optimizer("type: adagrad").epsilon, 1e-10);
  EXPECT_EQ(optimizer("type: adagrad, epsilon: 1e-8").epsilon, 1e-8);
  EXPECT_EQ(optimizer("type: ftrl, l1: 0.5, l2: 2, beta: 3").beta, 3);
  EXPECT_EQ(optimizer("type: sgd, clip_value: 0.5").clip_value, 0.5);
}

TEST(JobSpecTest, OptimizersThatSparseOrAsynchronousPushesDisturbAreWarnings) {
  const auto warnings = [](const std::string& rest) {
    return JobWarnings(Parse(std::string(kMlp) + rest)).size();
  };
  EXPECT_EQ(warnings("optimizer: {type: adam}\n"), 2U);
  EXPECT_EQ(warnings("optimizer: {type: sparse_adam}\n"), 0U);
  EXPECT_EQ(warnings("optimizer: {type: adam}\nsparsification: {ratio: 1}\n"), 1U);
  EXPECT_EQ(warnings("training: {staleness: 0, workers: 9}\n"
                     "optimizer: {type: adam}\nsparsification: {ratio: 1}\n"),
            0U);
  EXPECT_EQ(warnings("optimizer: {type: adam, beta1: 0}\nsparsification: {ratio: 1}\n"), 0U);
  EXPECT_EQ(warnings("optimizer: {type: momentum}\nsparsification: {ratio: 1}\n"
                     "training: {workers: 1}\n"),
            0U);
  EXPECT_EQ(warnings("optimizer: {type: adagrad}\n"), 1U);
  EXPECT_EQ(warnings("optimizer: {type: sgd}\n"), 0U);
  EXPECT_EQ(warnings("sparsification: {error_feedback: false}\n"), 1U);
  EXPECT_EQ(warnings("sparsification: {ratio: 1, error_feedback: false}\n"), 0U);
}

// ---- what is published

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::stringstream text;
  text << stream.rdbuf();
  return text.str();
}

TEST(JobSpecTest, TablesOfRowsAreReadWithTheirDefaults) {
  const JobSpec spec = Parse(kDeepFm);
  EXPECT_EQ(spec.model.hidden_layers, (std::vector<std::int64_t>{32, 16}));
  EXPECT_EQ(spec.training.loss, "binary_cross_entropy");
  EXPECT_EQ(spec.training.metric, "auc");
  EXPECT_EQ(spec.data.train.label_positive, (std::vector<std::string>{"2", "yes"}));
  EXPECT_EQ(spec.data.test->label_positive, spec.data.train.label_positive);
  EXPECT_EQ(spec.data.test->ignore, (std::vector<std::string>{"split"}));
  ASSERT_EQ(spec.embedding_tables.size(), 2u);
  const EmbeddingTableSpec& users = spec.embedding_tables[0];
  EXPECT_EQ(users.name, "users");
  EXPECT_EQ(users.width, 9);
  EXPECT_EQ(users.initializer.type, "normal");
  EXPECT_EQ(users.initializer.standard_deviation, 0.1);
  EXPECT_EQ(users.optimizer.type, "rowwise_adagrad");
  EXPECT_EQ(users.optimizer.epsilon, 1e-10);
  EXPECT_EQ(users.optimizer.learning_rate.base, 0.2);
  EXPECT_EQ(users.sightings, 2);
  EXPECT_EQ(users.unused_epochs, 1.5);
  EXPECT_EQ(users.max_mebibytes, 100);
  EXPECT_EQ(users.when_full, "lfu");
  EXPECT_EQ(users.values, "fp32");
  const EmbeddingTableSpec& items = spec.embedding_tables[1];
  EXPECT_EQ(items.columns, (std::vector<std::string>{"item", "7"}));
  EXPECT_EQ(items.optimizer.type, "adagrad");
  EXPECT_EQ(items.optimizer.epsilon, 1e-10);
  EXPECT_EQ(items.optimizer.learning_rate.base, 0.05);
  EXPECT_EQ(items.values, "bf16");
}

TEST(JobSpecTest, RowsTravelInThreeWays) {
  for (const std::string values : {"bf16", "fp32", "int8"}) {
    std::string text = kDeepFm;
    const std::size_t at = text.find("values: fp32");
    ASSERT_NE(at, std::string::npos);
    EXPECT_EQ(Parse(text.replace(at, 12, "values: " + values)).embedding_tables[0].values, values);
  }
}

TEST(JobSpecTest, TablesOfRowsSurviveTheResolvedForms) {
  for (const std::string& text :
       {std::string(kDeepFm),
        std::string(kDeepFm) + "optimizer: {type: sgd, reference_batch: 64}\n",
        Replaced(kDeepFm, "test: {file: b.tsv}", "test: {file: b.tsv, ignore: []}"),
        Replaced(kDeepFm, "{type: deepfm, hidden: [32, 16]}", "{type: deepfm}")}) {
    const JobSpec spec = Parse(text);
    const auto from_json = ParseJobJson(ResolvedJson(spec));
    ASSERT_TRUE(from_json.ok()) << from_json.error().message;
    EXPECT_EQ(ResolvedJson(*from_json), ResolvedJson(spec));
    EXPECT_EQ(from_json->embedding_tables[1].optimizer.reference_batch,
              spec.optimizer.reference_batch);
    const auto from_yaml = ParseJobYaml(ResolvedYaml(spec), "resolved", "");
    ASSERT_TRUE(from_yaml.ok()) << from_yaml.error().message << ResolvedYaml(spec);
    EXPECT_EQ(ResolvedJson(*from_yaml), ResolvedJson(spec));
  }
}

TEST(JobSpecTest, SourcesOfValuesAreReadAndSurviveTheResolvedForms) {
  const JobSpec spec = Parse(std::string(kMlp) + kLoad);
  ASSERT_EQ(spec.checkpoint.load.size(), 3u);
  const LoadSourceSpec& first = spec.checkpoint.load[0];
  EXPECT_EQ(first.from, "first@12");
  EXPECT_EQ(first.tensors, (std::vector<std::string>{"linear0.*", "*.bias"}));
  EXPECT_EQ(first.tables, std::vector<std::string>{"users"});
  ASSERT_EQ(first.rename.size(), 3u);
  EXPECT_EQ(first.rename[1], (std::pair<std::string, std::string>("0.weight", "1.weight")));
  EXPECT_TRUE(first.grow);
  EXPECT_EQ(spec.checkpoint.load[1].file.substr(spec.checkpoint.load[1].file.size() - 21),
            "/values/m.safetensors");
  EXPECT_FALSE(spec.checkpoint.load[1].grow);
  EXPECT_EQ(spec.checkpoint.load[2].from, "7");
  const auto from_json = ParseJobJson(ResolvedJson(spec));
  ASSERT_TRUE(from_json.ok()) << from_json.error().message;
  EXPECT_EQ(ResolvedJson(*from_json), ResolvedJson(spec));
  const auto from_yaml = ParseJobYaml(ResolvedYaml(spec), "resolved", "");
  ASSERT_TRUE(from_yaml.ok()) << from_yaml.error().message << ResolvedYaml(spec);
  EXPECT_EQ(ResolvedJson(*from_yaml), ResolvedJson(spec));
  EXPECT_EQ(ParseOrigin("first@12").job, "first");
  EXPECT_EQ(ParseOrigin("first@12").round, 12u);
  EXPECT_EQ(ParseOrigin("7").round, std::nullopt);
}

TEST(JobSpecTest, WhatIsWrongWithASourceOfValuesIsNamed) {
  const auto finds = [](const std::string& source, const std::string& said) {
    EXPECT_THAT(Findings(std::string(kMlp) + "checkpoint: {load: [" + source + "]}\n"),
                HasSubstr(said));
  };
  finds("{tensors: ['*']}", "checkpoint.load[0]: must have `from` (a checkpoint) or `file`");
  finds("{from: a, file: b, tensors: ['*']}", "checkpoint.load[0]: must have `from`");
  finds("{from: a}", "checkpoint.load[0]: names no `tensors` and no `tables`");
  finds("{from: a@b, tensors: ['*']}", "checkpoint.load[0].from: must be JOB or JOB@ROUND");
  finds("{file: a, tables: ['*']}",
        "checkpoint.load[0].tables: belongs to sources with `from` only");
  finds("{from: a, tensors: ['']}", "must have 1 to 4096 characters");
  finds("{from: a, tensors: '*'}", "checkpoint.load[0].tensors: must be a list of texts");
  finds("{from: a, tensors: ['*'], rename: [a]}", "checkpoint.load[0].rename: must be a map of at");
  finds("{from: a, tensors: ['*'], rename: {a: [b]}}", "must be text, found a list");
  finds("{from: a, tensors: ['*'], rename: {'a*': b}}", "`a*` to `b`: both must be names, or both");
  finds("{from: a, tensors: ['*'], rename: {a: 'b*'}}", "`a` to `b*`: both must be names");
  finds("{from: a, tensors: ['*'], rename: {'a*b': c}}", "both must be names");
  finds("{from: a, tensors: ['*'], rename: {'?.b': c}}", "both must be names");
  finds("{from: a, tensors: ['*'], grwo: true}", "unknown key, did you mean `grow`?");
  EXPECT_THAT(
      Findings(std::string(kMlp) + "checkpoint: {from: a, load: [{from: b, tensors: ['*']}]}\n"),
      HasSubstr("checkpoint.load: is for parts of checkpoints and `from` for a whole one"));
}

TEST(JobSpecTest, TheLedgerHasTablesWithoutColumns) {
  const std::string rows =
      "embedding_tables: [{name: counts, width: 1, values: fp32, initializer: {type: constant}, "
      "optimizer: {type: sgd, learning_rate: 1}}]\n";
  const std::string text = Replaced(kLedger, "blocks: 4", "blocks: 4, rows: 50") + rows;
  const JobSpec spec = Parse(text);
  EXPECT_EQ(spec.model.rows, 50);
  EXPECT_EQ(spec.embedding_tables.at(0).initializer.value, 0);
  EXPECT_THAT(Findings(Replaced(text, "width: 1,", "width: 1, columns: [a],")),
              HasSubstr("embedding_tables[0].columns: must not be given for the ledger model"));
}

TEST(JobSpecTest, WhatIsWrongWithATableOfRowsIsNamed) {
  const auto finds = [](const std::string& what, const std::string& by, const std::string& said) {
    EXPECT_THAT(Findings(Replaced(kDeepFm, what, by)), HasSubstr(said));
  };
  finds("sightings: 2", "sighting: 2",
        "embedding_tables[0].sighting: unknown key, did you mean `sightings`?");
  finds("sightings: 2", "sightings: 257",
        "job.yaml:14: embedding_tables[0].sightings: must be 1 to 256, found 257");
  finds("width: 9\n", "width: 1025\n", "embedding_tables[0].width: must be 1 to 1024");
  finds("name: items, width: 9", "name: items, width: 8",
        "embedding_tables[1].width: is 8, but 9 for the first table");
  finds("name: items", "name: users", "`users` is the name of a table before it too");
  finds("name: items", "name: 'a b'", "embedding_tables[1].name: must be 1 to 63 letters");
  finds("name: users\n    width", "width", "embedding_tables[0].name: is missing");
  finds("[item, 7]", "[item, user]", "`user` is used twice, by the table `users` and here");
  finds("[item, 7]", "[item, class]", "`class` is the label");
  finds("[item, 7]", "[item, split]", "`split` is ignored by the data");
  finds(", columns: [item, 7]", "", "embedding_tables[1].columns: is missing");
  finds("rowwise_adagrad", "worker_nesterov", "embedding_tables[0].optimizer.type: must be one of");
  finds("learning_rate: 0.2", "clip_norm: 1", "embedding_tables[0].optimizer.clip_norm: unknown");
  finds("learning_rate: 0.2", "reference_batch: 1", "optimizer.reference_batch: unknown key");
  finds("learning_rate: 0.2", "momentum: 0.5",
        "belongs to optimizer types momentum and nesterov only");
  finds("learning_rate: 0.2", "learning_rate: {warmup_epochs: 9}",
        "embedding_tables[0].optimizer.learning_rate.warmup_epochs: is longer");
  finds("{type: normal, standard_deviation: 0.1}", "{type: normal, low: 1}",
        "belongs to initializer type uniform only");
  finds("{type: normal, standard_deviation: 0.1}", "{low: 1}", "initializer.low: is 1, more than");
  finds("when_full: lfu", "when_full: mru", "must be one of lru, lfu, refuse");
  finds("{type: deepfm, hidden: [32, 16]}", "{type: mlp, layers: [1, 2]}",
        "embedding_tables: has no use in a model of type mlp");
  finds("{type: deepfm, hidden: [32, 16]}", "{type: deepfm, hidden: 32}",
        "model.hidden: must be a list of whole numbers");
  EXPECT_THAT(Findings(std::string(kDeepFm) + "training: {loss: cross_entropy}\n"),
              HasSubstr("must be binary_cross_entropy or mse for a deepfm"));
  EXPECT_THAT(Findings(std::string(kMlp) + "training: {metric: auc}\n"),
              HasSubstr("auc needs the loss binary_cross_entropy"));
  const std::string text(kDeepFm);
  EXPECT_THAT(Findings(text.substr(0, text.find("embedding_tables"))),
              HasSubstr("embedding_tables: is missing"));
  EXPECT_THAT(Findings(text.substr(0, text.find("  - name")) + "  - 3\n"),
              HasSubstr("embedding_tables[0]: must be a map of keys, found the number 3"));
  EXPECT_THAT(Findings(text.substr(0, text.find("\n  - name")) + " {}\n"),
              HasSubstr("embedding_tables: must be a list"));
}

TEST(JobSpecTest, EveryExampleParses) {
  const std::filesystem::path examples = std::filesystem::path(PS_SOURCE_DIRECTORY) / "examples";
  if (!std::filesystem::exists(examples)) GTEST_SKIP() << "no examples";
  for (const auto& entry : std::filesystem::directory_iterator(examples)) {
    if (entry.path().extension() != ".yaml") continue;
    const auto spec = ParseJobYaml(ReadFile(entry.path()), entry.path().filename(), examples);
    EXPECT_TRUE(spec.ok()) << spec.error().message;
  }
}

// ---- --set

Result<JobSpec> ParseWith(const std::string& text, const std::vector<JobOverride>& overrides) {
  return ParseJobYaml(text, "job.yaml", "/base", overrides);
}

std::string OverrideFinding(const std::string& text, const JobOverride& override) {
  const auto spec = ParseWith(text, {override});
  return spec.ok() ? "" : spec.error().message;
}

TEST(JobOverrideTest, TakesThePlaceOfWhatTheFileSaysOrIsAddedToIt) {
  const auto spec = ParseWith(kDeepFm, {{"training.workers", "4"},
                                        {"training.workers", "5"},  // the last one counts
                                        {"model.hidden", "[8, 4, 2]"},
                                        {"embedding_tables[0].optimizer.learning_rate", "0.5"},
                                        {"checkpoint", "{keep: 7}"},
                                        {"data.train.file", "other.csv"}});
  ASSERT_TRUE(spec.ok()) << spec.error().message;
  EXPECT_EQ(spec->training.workers, 5);
  EXPECT_EQ(spec->model.hidden_layers, (std::vector<std::int64_t>{8, 4, 2}));
  EXPECT_EQ(spec->embedding_tables[0].optimizer.learning_rate.base, 0.5);
  EXPECT_EQ(spec->embedding_tables[0].optimizer.type, "rowwise_adagrad");
  EXPECT_EQ(spec->checkpoint.keep, 7);
  EXPECT_EQ(spec->data.train.file, "/base/other.csv");
}

TEST(JobOverrideTest, IsNamedByWhatIsWrongWithIt) {
  EXPECT_EQ(OverrideFinding(kMlp, {"training.workers", "0"}),
            "--set training.workers=0: training.workers: must be 1 to 1024, found 0");
  EXPECT_EQ(OverrideFinding(kMlp, {"trainin.workers", "1"}),
            "--set trainin.workers=1: trainin: unknown key, did you mean `training`?");
  EXPECT_EQ(OverrideFinding(std::string(kMlp) + "optimizer: {learning_rate: 0.1}\n",
                            {"optimizer.learning_rate.schedule", "cosine"}),
            "--set optimizer.learning_rate.schedule=cosine: optimizer.learning_rate is the number "
            "0.1, not a map of keys");
  EXPECT_EQ(OverrideFinding(kDeepFm, {"embedding_tables[9].width", "9"}).substr(0, 76),
            "--set embedding_tables[9].width=9: embedding_tables is a list of 2, it has n");
  EXPECT_EQ(OverrideFinding(kMlp, {"embedding_tables[0].width", "9"}),
            "--set embedding_tables[0].width=9: embedding_tables is not there, it has no item 0");
  EXPECT_EQ(OverrideFinding("- a\n- b\n", {"training.workers", "1"}),
            "--set training.workers=1: the file is a list, not a map of keys");
  for (const char* const path : {"", ".", "a.", ".a", "a..b", "a[", "a[]", "a[x]", "[0]", "a]"}) {
    EXPECT_NE(OverrideFinding(kMlp, {path, "1"}).find("must be a path"), std::string::npos) << path;
  }
  for (const char* const value : {"", "[", "{a: 1, a: 2}", "*x", "\xff"}) {
    EXPECT_FALSE(ParseWith(kMlp, {{"model.layers", value}}).ok()) << value;
  }
  std::string deep = "a";
  for (int i = 0; i < 100; ++i) deep += ".a";
  EXPECT_NE(OverrideFinding(kMlp, {deep, "1"}).find("must be a path"), std::string::npos);
}

TEST(JobOverrideTest, FindingsOfTheFileKeepTheirLines) {
  const auto spec =
      ParseWith(std::string(kMlp) + "training: {epochs: 0}\n", {{"training.seed", "-1"}});
  ASSERT_FALSE(spec.ok());
  EXPECT_NE(spec.error().message.find("--set training.seed=-1: training.seed: must be"),
            std::string::npos);
  EXPECT_NE(spec.error().message.find("job.yaml:10: training.epochs: must be"), std::string::npos)
      << spec.error().message;
}

void ExpectInSchema(const nlohmann::json& schema, const nlohmann::json& value,
                    const std::string& path, std::set<std::string>& seen) {
  if (value.is_array() && !value.empty() && value.front().is_object()) {
    for (const auto& item : value) ExpectInSchema(schema["items"], item, path + "[]", seen);
  }
  if (!value.is_object()) return;
  // Keys that the user chooses.
  if (const auto any = schema.find("additionalProperties");
      any != schema.end() && any->is_object()) {
    return;
  }
  const nlohmann::json* properties = nullptr;
  nlohmann::json resolved = schema;
  if (schema.contains("oneOf")) {
    for (const auto& choice : schema["oneOf"]) {
      if (choice.value("type", "") == "object") resolved = choice;
    }
  }
  ASSERT_TRUE(resolved.contains("properties")) << path;
  properties = &resolved["properties"];
  EXPECT_EQ(resolved.value("additionalProperties", true), false) << path;
  for (const auto& item : value.items()) {
    const std::string here = path + "/" + item.key();
    ASSERT_TRUE(properties->contains(item.key())) << here;
    seen.insert(here);
    ExpectInSchema((*properties)[item.key()], item.value(), here, seen);
    const auto& property = (*properties)[item.key()];
    if (property.contains("enum")) {
      EXPECT_NE(std::find(property["enum"].begin(), property["enum"].end(), item.value()),
                property["enum"].end())
          << here;
    }
  }
}

void Collect(const nlohmann::json& schema, const std::string& path, std::set<std::string>& all) {
  const nlohmann::json* object = &schema;
  if (schema.contains("oneOf")) {
    for (const auto& choice : schema["oneOf"]) {
      if (choice.value("type", "") == "object") object = &choice;
    }
  }
  if (object->contains("items")) return Collect((*object)["items"], path + "[]", all);
  if (!object->contains("properties")) return;
  for (const auto& item : (*object)["properties"].items()) {
    all.insert(path + "/" + item.key());
    Collect(item.value(), path + "/" + item.key(), all);
  }
}

TEST(JobSpecTest, TheSchemaHasExactlyTheKeysThatTheReaderKnows) {
  const auto schema = nlohmann::json::parse(
      ReadFile(std::filesystem::path(PS_SOURCE_DIRECTORY) / "docs/job.schema.json"));
  std::set<std::string> seen;
  const std::string idx_csv =
      Replaced(kCnn, "  train:", "  test: {format: idx, images: a, labels: b}\n  train:");
  for (const std::string& text :
       {std::string(kMlp), std::string(kLedger), std::string(kCnn),
        std::string(idx_csv) + "checkpoint: {from: a}\nresources: {label: a}\n",
        std::string(kCnn) + "  test: {file: b}\n", std::string(kMlp) + kLoad,
        Replaced(kMlp, "type: mlp\n  layers: [784, 256, 10]",
                 "type: torchscript\n  file: a.pt\n  input_shape: [3]"),
        std::string(kMlp) + "optimizer: {learning_rate: {schedule: step, step_epochs: [1]}}\n",
        std::string(kMlp) + "optimizer: {type: adam, learning_rate: {schedule: cosine}}\n",
        std::string(kMlp) + "optimizer: {type: ftrl}\n", std::string(kDeepFm),
        Replaced(kDeepFm, "{type: rowwise_adagrad, learning_rate: 0.2}",
                 "{type: adam, learning_rate: {schedule: step, step_epochs: [1]}}"),
        Replaced(kDeepFm, "{type: rowwise_adagrad, learning_rate: 0.2}",
                 "{type: ftrl, learning_rate: {schedule: constant}}"),
        Replaced(kDeepFm, "{type: rowwise_adagrad, learning_rate: 0.2}",
                 "{type: momentum, learning_rate: {schedule: linear}}"),
        Replaced(kDeepFm, "{type: normal, standard_deviation: 0.1}", "{type: constant}"),
        std::string(kTransformer)}) {
    ExpectInSchema(schema, nlohmann::json::parse(ResolvedJson(Parse(text))), "", seen);
  }
  std::set<std::string> all;
  Collect(schema, "", all);
  // Counter data cannot be test data.
  for (const auto& path : all) EXPECT_TRUE(seen.count(path) > 0) << path << " is never written";
}

void ExpectDescribed(const nlohmann::json& schema, const std::string& path) {
  for (const auto& choice : schema.value("oneOf", nlohmann::json::array())) {
    ExpectDescribed(choice, path);
  }
  if (schema.contains("items")) ExpectDescribed(schema["items"], path);
  if (!schema.contains("properties")) return;
  for (const auto& item : schema["properties"].items()) {
    EXPECT_NE(item.value().value("description", ""), "") << path + "/" + item.key();
    ExpectDescribed(item.value(), path + "/" + item.key());
  }
}

TEST(JobSpecTest, TheSchemaDescribesEveryKey) {
  ExpectDescribed(nlohmann::json::parse(ReadFile(std::filesystem::path(PS_SOURCE_DIRECTORY) /
                                                 "docs/job.schema.json")),
                  "");
}

TEST(JobSpecTest, TheReferenceNamesEveryKey) {
  const std::string reference =
      ReadFile(std::filesystem::path(PS_SOURCE_DIRECTORY) / "docs/job-file.md");
  const auto schema = nlohmann::json::parse(
      ReadFile(std::filesystem::path(PS_SOURCE_DIRECTORY) / "docs/job.schema.json"));
  std::set<std::string> all;
  Collect(schema, "", all);
  for (const auto& path : all) {
    const std::string key = path.substr(path.rfind('/') + 1);
    EXPECT_NE(reference.find("`" + key + "`"), std::string::npos) << key;
  }
}

}  // namespace
}  // namespace ps
