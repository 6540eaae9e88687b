#include "common/job/job_spec.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <type_traits>

#include "common/error_id.h"
#include "common/job/document.h"

namespace ps {
namespace {

using job::Node;
using Json = nlohmann::ordered_json;

constexpr const char* kApiVersion = "ds/v1";
constexpr const char* kKind = "TrainJob";
constexpr std::size_t kFindingsMax = 100;
constexpr std::int64_t kParametersMax = 2'000'000'000;
constexpr std::int64_t kStepRecordsMax = 1'048'576;
// As kMaxRowTables and kMaxRowWidth of common/layout/layout.h.
constexpr std::size_t kRowTablesMax = 1024;
constexpr std::int64_t kRowWidthMax = 1024;
constexpr std::size_t kLoadSourcesMax = 64;
constexpr std::size_t kPatternsMax = 4096;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
// What servers compute with are floats: a smaller number than this would be 0 there.
constexpr double kFloatLeast = 1e-30;

// ---- what a field may hold

struct Range {
  double least = -kInfinity;
  double most = kInfinity;
  bool least_excluded = false;
  bool most_excluded = false;

  bool Holds(double value) const {
    return (least_excluded ? value > least : value >= least) &&
           (most_excluded ? value < most : value <= most);
  }
};

struct Whole {
  std::int64_t least;
  std::int64_t most;
};

struct Count {
  std::size_t least;
  std::size_t most;
};

enum class TextRule {
  kPlain,
  kPath,     // made absolute
  kName,     // of a job
  kTable,    // the name of a table of rows
  kColumn,   // a name or a number
  kValue,    // any scalar as it is written
  kOrigin,   // JOB or JOB@ROUND
  kLabel,    // of agents
  kPattern,  // of names of tensors
};

enum class Need { kOptional, kRequired };

// When a field has a meaning: `applies` is false for, say, a mlp's layers in a cnn.
struct When {
  bool applies = true;
  const char* what = "";
};

// ---- the fields. One list serves the reader and the writer, so that they cannot differ.

template <typename Visitor>
void Visit(Visitor& v, ModelSpec& m) {
  v.Choice("type", m.type, {"mlp", "cnn", "torchscript", "deepfm", "transformer", "ledger"},
           Need::kRequired);
  const bool known = !m.type.empty();
  const When mlp{!known || m.type == "mlp", "model type mlp"};
  const When cnn{!known || m.type == "cnn", "model type cnn"};
  const When script{!known || m.type == "torchscript", "model type torchscript"};
  const When deepfm{!known || m.type == "deepfm", "model type deepfm"};
  const When transformer{!known || m.type == "transformer", "model type transformer"};
  const When ledger{!known || m.type == "ledger", "model type ledger"};
  const When shaped{!known || m.type == "cnn" || m.type == "torchscript",
                    "model types cnn and torchscript"};
  const When hidden{cnn.applies || deepfm.applies, "model types cnn and deepfm"};
  const When made{!known || m.type == "mlp" || m.type == "cnn" || m.type == "deepfm",
                  "model types mlp, cnn and deepfm"};
  const auto need = [known](const When& when) {
    return known && when.applies ? Need::kRequired : Need::kOptional;
  };
  v.Integers("layers", m.layers, Count{2, 64}, Whole{1, 1'000'000}, need(mlp), mlp);
  v.Choice("activation", m.activation, {"relu", "tanh"}, Need::kOptional,
           When{mlp.applies || deepfm.applies, "model types mlp and deepfm"});
  v.Integers("channels", m.channels, Count{2, 2}, Whole{1, 4096}, Need::kOptional, cnn);
  if (m.type == "deepfm") {
    v.Integers("hidden", m.hidden_layers, Count{0, 16}, Whole{1, 65'536}, Need::kOptional, hidden);
  } else {
    v.Integer("hidden", m.hidden, Whole{1, 65'536}, hidden);
  }
  v.Flag("batch_norm", m.batch_norm, cnn);
  const Count dimensions = m.type == "cnn" ? Count{3, 3} : Count{1, 8};
  v.Integers("input_shape", m.input_shape, dimensions, Whole{1, 1'000'000}, need(shaped), shaped);
  v.Integer("classes", m.classes, Whole{1, 1'000'000}, cnn);
  v.Integer("depth", m.depth, Whole{1, 256}, transformer);
  v.Integer("heads", m.heads, Whole{1, 256}, transformer);
  v.Integer("width", m.width, Whole{1, 65'536}, transformer);
  v.Number("dropout", m.dropout, Range{0, 0.99, false, false}, transformer);
  v.Text("file", m.file, TextRule::kPath, need(script), script);
  v.Integer("blocks", m.blocks, Whole{1, 65'536}, ledger);
  v.Integer("rows", m.rows, Whole{1, 10'000'000}, ledger);
  v.Choice("initialization", m.initialization, {"kaiming_uniform", "xavier_uniform", "zeros"},
           Need::kOptional, made);
}

template <typename Visitor>
void Visit(Visitor& v, DataSourceSpec& s) {
  v.Choice("format", s.format, {"idx", "csv", "text", "counter"},
           s.format.empty() ? Need::kRequired : Need::kOptional);
  const bool known = !s.format.empty();
  const When idx{!known || s.format == "idx", "data format idx"};
  const When csv{!known || s.format == "csv", "data format csv"};
  const When text{!known || s.format == "text", "data format text"};
  const When counter{!known || s.format == "counter", "data format counter"};
  const When file{csv.applies || text.applies, "data formats csv and text"};
  const auto need = [known](const When& when) {
    return known && when.applies ? Need::kRequired : Need::kOptional;
  };
  v.Text("images", s.images, TextRule::kPath, need(idx), idx);
  v.Text("labels", s.labels, TextRule::kPath, need(idx), idx);
  v.Text("file", s.file, TextRule::kPath, need(file), file);
  v.Text("label", s.label, TextRule::kColumn, s.label.empty() ? need(csv) : Need::kOptional, csv);
  v.Flag("header", s.header, csv);
  v.Character("delimiter", s.delimiter, csv);
  v.Texts("ignore", s.ignore, Count{0, 4096}, TextRule::kColumn, Need::kOptional, csv);
  v.Texts("label_positive", s.label_positive, Count{0, 1000}, TextRule::kValue, Need::kOptional,
          csv);
  v.Integer("context", s.context, Whole{1, 65'536}, text);
  v.Number("begin", s.begin, Range{0, 1, false, true}, text);
  v.Number("end", s.end, Range{0, 1, true, false}, text);
  v.Integer("records", s.records, Whole{1, std::int64_t{1} << 40}, counter, need(counter));
}

template <typename Visitor>
void Visit(Visitor& v, DataSpec& d) {
  v.Section("train", d.train, Need::kRequired);
  v.Section("test", d.test, d.train);
  v.Number("scale", d.scale, Range{0, 1e9, true, false});
  v.Number("mean", d.mean, Range{-1e9, 1e9, false, false});
  v.Number("standard_deviation", d.standard_deviation, Range{0, 1e9, true, false});
  v.Flag("shuffle", d.shuffle);
}

template <typename Visitor>
void Visit(Visitor& v, LossScalingSpec& s) {
  v.Choice("mode", s.mode, {"auto", "dynamic", "none"}, Need::kOptional);
  v.Number("initial_scale", s.initial_scale, Range{kFloatLeast, 1e38, false, false});
  v.Number("growth_factor", s.growth_factor, Range{1, 1e6, true, false});
  v.Number("backoff_factor", s.backoff_factor, Range{0, 1, true, true});
  v.Integer("growth_interval", s.growth_interval, Whole{1, 1'000'000'000});
}

template <typename Visitor>
void Visit(Visitor& v, LossCalibrationSpec& c) {
  v.Flag("enabled", c.enabled);
  v.Number("threshold", c.threshold, Range{1, 1000, false, false});
  v.Integer("warmup_steps", c.warmup_steps, Whole{50, 1'000'000});
}

template <typename Visitor>
void Visit(Visitor& v, TrainingSpec& t) {
  v.Integer("workers", t.workers, Whole{1, kWorkersMax});
  v.Integer("threads_per_worker", t.threads_per_worker, Whole{1, 256});
  v.Integer("batch_size", t.batch_size, Whole{1, kStepRecordsMax});
  v.Integer("accumulate", t.accumulate, Whole{1, 1000});
  v.Flag("batch_by_speed", t.batch_by_speed);
  v.Integer("local_steps", t.local_steps, Whole{1, 1000});
  v.Number("outer_momentum", t.outer_momentum, Range{0, 0.9999, false, false});
  v.Number("epochs", t.epochs, Range{0, 1e6, true, false});
  v.Choice("loss", t.loss, {"cross_entropy", "binary_cross_entropy", "mse", "none"},
           Need::kOptional);
  v.Choice("metric", t.metric, {"accuracy", "auc", "logloss", "mse", "none"}, Need::kOptional);
  v.Staleness("staleness", t.staleness);
  v.Integer("max_version_gap", t.max_version_gap, Whole{0, 1'000'000'000});
  v.Choice("pull_values", t.pull_values, {"auto", "bf16", "fp32", "increments"}, Need::kOptional);
  v.Number("evaluate_every_epochs", t.evaluate_every_epochs, Range{0, 1e6, false, false});
  v.Choice("on_nonfinite", t.on_nonfinite, {"skip", "stop"}, Need::kOptional);
  v.Choice("precision", t.precision, {"auto", "fp32", "bf16", "fp16"}, Need::kOptional);
  v.Section("loss_scaling", t.loss_scaling, Need::kOptional);
  v.Section("loss_calibration", t.loss_calibration, Need::kOptional);
  v.Integer("seed", t.seed, Whole{0, std::numeric_limits<std::int64_t>::max()});
}

template <typename Visitor>
void Visit(Visitor& v, LearningRateSpec& r) {
  v.Number("base", r.base, Range{kFloatLeast, 1e6, false, false});
  v.Choice("schedule", r.schedule, {"constant", "step", "cosine", "linear", "inverse_square_root"},
           Need::kOptional);
  const When step{r.schedule == "step", "the schedule step"};
  const When falling{r.schedule == "cosine" || r.schedule == "linear",
                     "the schedules cosine and linear"};
  v.Number("step_factor", r.step_factor, Range{0, 1, true, false}, step);
  v.Numbers("step_epochs", r.step_epochs, Count{1, 1000}, Range{0, 1e6, true, false},
            step.applies ? Need::kRequired : Need::kOptional, step);
  v.Number("warmup_epochs", r.warmup_epochs, Range{0, 1e6, false, false});
  v.Number("final_factor", r.final_factor, Range{0, 1, false, false}, falling);
}

// The optimizer of a table of rows: always on the servers, and some of its keys are the job's.
struct RowOptimizer {
  OptimizerSpec& spec;
};

template <typename Visitor>
void VisitOptimizer(Visitor& v, OptimizerSpec& o, const std::vector<std::string>& types,
                    bool rows) {
  v.Choice("type", o.type, types, Need::kOptional);
  const bool adam = o.type == "adam" || o.type == "adamw" || o.type == "worker_adam";
  const bool adagrad = o.type == "adagrad" || o.type == "rowwise_adagrad";
  const bool ftrl = o.type == "ftrl";
  const When with_momentum{
      o.type == "worker_nesterov" || o.type == "momentum" || o.type == "nesterov",
      rows ? "optimizer types momentum and nesterov"
           : "optimizer types worker_nesterov, momentum and nesterov"};
  const bool sparse_adam = o.type == "sparse_adam";
  const When adams{adam, rows ? "optimizer types adam and adamw"
                              : "optimizer types adam, adamw and worker_adam"};
  const When ftrl_only{ftrl, "optimizer type ftrl"};
  v.Number("momentum", o.momentum, Range{0, 0.9999, false, false}, with_momentum);
  v.Number("beta1", o.beta1, Range{0, 0.9999, false, false}, adams);
  v.Number("beta2", o.beta2, Range{0, 0.9999, false, false},
           When{adam || sparse_adam, rows ? "optimizer types adam and adamw"
                                          : "optimizer types adam, adamw, worker_adam and "
                                            "sparse_adam"});
  v.Number("epsilon", o.epsilon, Range{kFloatLeast, 1, false, false},
           When{adam || adagrad || sparse_adam,
                rows ? "optimizer types adagrad, rowwise_adagrad, adam and adamw"
                     : "optimizer types adagrad, adam, adamw, worker_adam and sparse_adam"});
  v.Number("initial_accumulator", o.initial_accumulator, Range{0, 1e9, false, false},
           When{adagrad || ftrl, rows ? "optimizer types adagrad, rowwise_adagrad and ftrl"
                                      : "optimizer types adagrad and ftrl"});
  v.Number("l1", o.l1, Range{0, 1e9, false, false}, ftrl_only);
  v.Number("l2", o.l2, Range{0, 1e9, false, false}, ftrl_only);
  v.Number("beta", o.beta, Range{kFloatLeast, 1e9, false, false}, ftrl_only);
  v.LearningRate("learning_rate", o.learning_rate);
  if (!rows) v.Integer("reference_batch", o.reference_batch, Whole{1, 1'048'576});
  v.Number("weight_decay", o.weight_decay, Range{0, 1, false, true},
           When{o.type != "adam" && !ftrl,
                "optimizer types other than adam (adamw has it) and ftrl (which has l2)"});
  if (!rows) v.Number("clip_norm", o.clip_norm, Range{0, 1e9, false, false});
  v.Number(
      "clip_value", o.clip_value, Range{0, 1e9, false, false},
      When{o.type != "worker_nesterov" && o.type != "worker_adam", "optimizers on the servers"});
}

template <typename Visitor>
void Visit(Visitor& v, OptimizerSpec& o) {
  VisitOptimizer(v, o,
                 {"worker_nesterov", "worker_adam", "sgd", "momentum", "nesterov", "adagrad",
                  "adam", "adamw", "sparse_adam", "ftrl"},
                 /*rows=*/false);
}

template <typename Visitor>
void Visit(Visitor& v, RowOptimizer& o) {
  VisitOptimizer(
      v, o.spec,
      {"sgd", "momentum", "nesterov", "adagrad", "rowwise_adagrad", "adam", "adamw", "ftrl"},
      /*rows=*/true);
}

template <typename Visitor>
void Visit(Visitor& v, RowInitializerSpec& i) {
  v.Choice("type", i.type, {"constant", "uniform", "normal", "truncated_normal"}, Need::kOptional);
  const When uniform{i.type == "uniform", "initializer type uniform"};
  const When normal{i.type == "normal" || i.type == "truncated_normal",
                    "initializer types normal and truncated_normal"};
  v.Number("value", i.value, Range{-1e9, 1e9, false, false},
           When{i.type == "constant", "initializer type constant"});
  v.Number("low", i.low, Range{-1e9, 1e9, false, false}, uniform);
  v.Number("high", i.high, Range{-1e9, 1e9, false, false}, uniform);
  v.Number("mean", i.mean, Range{-1e9, 1e9, false, false}, normal);
  v.Number("standard_deviation", i.standard_deviation, Range{0, 1e9, false, false}, normal);
}

template <typename Visitor>
void Visit(Visitor& v, EmbeddingTableSpec& t) {
  v.Text("name", t.name, TextRule::kTable, Need::kRequired);
  v.Integer("width", t.width, Whole{1, kRowWidthMax});
  v.Texts("columns", t.columns, Count{0, 1024}, TextRule::kColumn, Need::kOptional);
  v.Section("initializer", t.initializer, Need::kOptional);
  RowOptimizer optimizer{t.optimizer};
  v.Section("optimizer", optimizer, Need::kOptional);
  v.Integer("sightings", t.sightings, Whole{1, 256});
  v.Integer("sketch_mebibytes", t.sketch_mebibytes, Whole{1, 1'048'576});
  v.Number("unused_epochs", t.unused_epochs, Range{0, 1e6, false, false});
  v.Integer("max_mebibytes", t.max_mebibytes, Whole{0, 1'073'741'824});
  v.Choice("when_full", t.when_full, {"lru", "lfu", "refuse"}, Need::kOptional);
  v.Choice("values", t.values, {"bf16", "fp32", "int8"}, Need::kOptional);
}

template <typename Visitor>
void Visit(Visitor& v, SparsificationSpec& s) {
  v.Number("ratio", s.ratio, Range{0, 1, true, false});
  v.Number("ratio_max", s.ratio_max, Range{0, 1, false, false});
  v.Number("warmup_epochs", s.warmup_epochs, Range{0, 1e6, false, false});
  v.Flag("error_feedback", s.error_feedback);
  v.Choice("index_codec", s.index_codec, {"auto", "rice", "gap8", "raw16", "bitmap"},
           Need::kOptional);
  v.Choice("value_codec", s.value_codec, {"fp32", "bf16", "int8", "4bit", "2bit", "1bit"},
           Need::kOptional);
  v.Integer("small_tensor_elements", s.small_tensor_elements, Whole{0, 1'000'000'000});
}

template <typename Visitor>
void Visit(Visitor& v, LoadSourceSpec& l) {
  v.Text("from", l.from, TextRule::kOrigin, Need::kOptional);
  v.Text("file", l.file, TextRule::kPath, Need::kOptional);
  v.Texts("tensors", l.tensors, Count{0, kPatternsMax}, TextRule::kPattern, Need::kOptional);
  v.Texts("tables", l.tables, Count{0, kPatternsMax}, TextRule::kPattern, Need::kOptional,
          When{l.file.empty(), "sources with `from`"});
  v.Pairs("rename", l.rename, Count{0, kPatternsMax}, TextRule::kPattern);
  v.Flag("grow", l.grow);
}

template <typename Visitor>
void Visit(Visitor& v, CheckpointSpec& c) {
  v.Integer("every_steps", c.every_steps, Whole{1, 1'000'000'000});
  v.Integer("keep", c.keep, Whole{1, 1000});
  v.Integer("keep_every", c.keep_every, Whole{0, 1'000'000});
  v.Integer("full_every", c.full_every, Whole{1, 1000});
  v.Flag("flush_residuals", c.flush_residuals);
  v.Integer("copies", c.copies, Whole{1, 3});
  v.Text("from", c.from, TextRule::kOrigin, Need::kOptional);
  v.Sections("load", c.load, Count{0, kLoadSourcesMax});
}

template <typename Visitor>
void Visit(Visitor& v, JobResources& r) {
  v.Integer("shards", r.shards, Whole{0, 4096});
  v.Integer("retention_mebibytes", r.retention_mebibytes, Whole{1, 1'048'576});
  v.Integer("replicas", r.replicas, Whole{0, 2});
  v.Integer("max_restarts", r.max_restarts, Whole{0, 1'000'000});
  v.Integer("gpus", r.gpus, Whole{0, kGpusMax});
  v.Text("label", r.label, TextRule::kLabel, Need::kOptional);
}

template <typename Visitor>
void Visit(Visitor& v, JobSpec& s) {
  v.Fixed("apiVersion", kApiVersion);
  v.Fixed("kind", kKind);
  v.Text("name", s.name, TextRule::kName, Need::kRequired);
  v.Section("model", s.model, Need::kRequired);
  v.Section("data", s.data, Need::kRequired);
  v.Section("training", s.training, Need::kOptional);
  v.Section("optimizer", s.optimizer, Need::kOptional);
  v.Section("sparsification", s.sparsification, Need::kOptional);
  v.Sections("embedding_tables", s.embedding_tables, Count{0, kRowTablesMax});
  v.Section("checkpoint", s.checkpoint, Need::kOptional);
  v.Section("resources", s.resources, Need::kOptional);
}

// ---- words for messages

std::string NumberText(double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  return std::string(text, end);
}

std::string RangeText(const Range& range) {
  std::string text;
  if (range.least != -kInfinity) {
    text = (range.least_excluded ? "more than " : "at least ") + NumberText(range.least);
  }
  if (range.most != kInfinity) {
    if (!text.empty()) text += " and ";
    text += (range.most_excluded ? "less than " : "at most ") + NumberText(range.most);
  }
  return text;
}

std::string WholeText(const Whole& range) {
  if (range.most == std::numeric_limits<std::int64_t>::max()) {
    return "at least " + std::to_string(range.least);
  }
  return std::to_string(range.least) + " to " + std::to_string(range.most);
}

std::string Joined(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

bool ParseNumber(const Node& node, double& value) {
  if (node.kind != Node::Kind::kScalar || node.quoted || node.text.empty()) return false;
  const char* begin = node.text.data();
  const char* end = begin + node.text.size();
  if (*begin == '+') ++begin;
  const auto [rest, failure] = std::from_chars(begin, end, value);
  return failure == std::errc() && rest == end && std::isfinite(value);
}

bool ParseInteger(const Node& node, std::int64_t& value) {
  if (node.kind != Node::Kind::kScalar || node.quoted) return false;
  const char* end = node.text.data() + node.text.size();
  const auto [rest, failure] = std::from_chars(node.text.data(), end, value);
  return failure == std::errc() && rest == end;
}

bool IsLower(char c) { return c >= 'a' && c <= 'z'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

bool IsJobName(const std::string& name) {
  if (name.empty() || name.size() > 63 || !IsLower(name.front()) || name.back() == '-') {
    return false;
  }
  return std::all_of(name.begin(), name.end(),
                     [](char c) { return IsLower(c) || IsDigit(c) || c == '-'; });
}

// "embedding_tables[2]", as paths name an item of a list.
std::string ItemPath(const std::string& list, std::size_t number) {
  return list + "[" + std::to_string(number) + "]";
}

bool IsTableName(const std::string& name) {
  return !name.empty() && name.size() <= 63 &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '_' || c == '-' || c == '.';
         });
}

bool IsNumeral(const std::string& text) {
  return !text.empty() && text.size() <= 18 && std::all_of(text.begin(), text.end(), IsDigit);
}

// JOB or JOB@ROUND, with the job's name or number.
bool IsOrigin(const std::string& text) {
  const auto at = text.find('@');
  const std::string name = text.substr(0, at);
  if (!IsJobName(name) && !IsNumeral(name)) return false;
  return at == std::string::npos || IsNumeral(text.substr(at + 1));
}

// ---- reading

// What one parse knows: the findings, and where each key stands.
struct Report {
  std::string file;
  std::vector<JobOverride> overrides;  // the line of the i-th one's values is -1 - i
  std::string base_directory;
  struct Finding {
    int line;
    std::string text;
    ErrorId id;
  };
  std::vector<Finding> findings;
  std::map<std::string, int> lines;  // of the paths that were given

  void Add(int line, const std::string& path, const std::string& what,
           ErrorId id = ErrorId::kJobFileValue) {
    if (findings.size() > kFindingsMax) return;
    findings.push_back({line, path.empty() ? what : path + ": " + what, id});
  }
  bool Given(const std::string& path) const { return lines.count(path) > 0; }
  // The line of the path, or of the nearest section around it.
  int Line(std::string path) const {
    while (true) {
      if (const auto found = lines.find(path); found != lines.end()) return found->second;
      const auto dot = path.rfind('.');
      if (dot == std::string::npos) break;
      path.resize(dot);
    }
    const auto root = lines.find("");
    return root == lines.end() ? 0 : root->second;
  }
  void AddAt(const std::string& path, const std::string& what,
             ErrorId id = ErrorId::kJobFileContradiction) {
    Add(Line(path), path, what, id);
  }

  std::string Place(int line) const {
    if (line < 0 && static_cast<std::size_t>(-1 - line) < overrides.size()) {
      const JobOverride& override = overrides[static_cast<std::size_t>(-1 - line)];
      return "--set " + override.path + "=" + override.value;
    }
    return line > 0 ? file + ":" + std::to_string(line) : file;
  }

  Error ToError() {
    std::stable_sort(findings.begin(), findings.end(),
                     [](const auto& a, const auto& b) { return a.line < b.line; });
    std::string text;
    std::size_t count = 0;
    ErrorId common = findings.front().id;
    for (const auto& [line, what, id] : findings) {
      if (id != common) common = ErrorId::kJobFileFindings;
      if (!text.empty()) text += '\n';
      if (count++ == kFindingsMax) {
        text += file + ": more findings are not shown";
        break;
      }
      text += Place(line) + ": " + what;
    }
    return Error{common, text};
  }
};

class Reader {
 public:
  Reader(const Node* map, std::string path, Report& report)
      : map_(map), path_(std::move(path)), report_(report) {
    if (map_ != nullptr) report_.lines[path_] = map_->line;
  }

  void Fixed(const char* key, const char* value) {
    const Node* node = Take(key, Need::kRequired, {});
    if (node == nullptr) return;
    if (node->kind != Node::Kind::kScalar || node->text != value) {
      Finding(*node, key, std::string("must be ") + value + ", found " + DescribeNode(*node));
    }
  }

  void Choice(const char* key, std::string& value, const std::vector<std::string>& words, Need need,
              When when = {}) {
    const Node* node = Take(key, need, when);
    if (node == nullptr) return;
    if (node->kind == Node::Kind::kScalar &&
        std::find(words.begin(), words.end(), node->text) != words.end()) {
      value = node->text;
      return;
    }
    std::string what = "must be one of " + Joined(words) + ", found " + DescribeNode(*node);
    if (node->kind == Node::Kind::kScalar) {
      const std::string nearest = job::NearestWord(node->text, words);
      if (!nearest.empty()) what += ", did you mean `" + nearest + "`?";
    }
    Finding(*node, key, what);
  }

  void Text(const char* key, std::string& value, TextRule rule, Need need, When when = {}) {
    if (const Node* node = Take(key, need, when)) ReadText(*node, key, rule, value);
  }

  void Texts(const char* key, std::vector<std::string>& values, Count count, TextRule rule,
             Need need, When when = {}) {
    ReadList(key, values, count, need, when, "texts", [&](const Node& node, std::string& value) {
      return ReadText(node, key, rule, value);
    });
  }

  // A map whose keys the user chooses.
  void Pairs(const char* key, std::vector<std::pair<std::string, std::string>>& pairs, Count count,
             TextRule rule) {
    const Node* node = Take(key, Need::kOptional, {});
    if (node == nullptr) return;
    if (node->kind != Node::Kind::kMap || node->items.size() > count.most) {
      return Finding(*node, key,
                     "must be a map of at most " + std::to_string(count.most) +
                         " texts to texts, found " + DescribeNode(*node));
    }
    pairs.clear();
    for (std::size_t i = 0; i < node->items.size(); ++i) {
      Node name;
      name.kind = Node::Kind::kScalar;
      name.quoted = true;
      name.line = node->items[i].line;
      name.text = node->keys[i];
      std::pair<std::string, std::string> pair;
      if (ReadText(name, key, rule, pair.first) &&
          ReadText(node->items[i], key, rule, pair.second)) {
        pairs.push_back(std::move(pair));
      }
    }
    // A map has no order, and JSON's keys may come in any.
    std::sort(pairs.begin(), pairs.end());
  }

  void Integer(const char* key, std::int64_t& value, Whole range, When when = {},
               Need need = Need::kOptional) {
    if (const Node* node = Take(key, need, when)) ReadInteger(*node, key, range, value);
  }

  void Number(const char* key, double& value, Range range, When when = {}) {
    if (const Node* node = Take(key, Need::kOptional, when)) ReadNumber(*node, key, range, value);
  }

  void Flag(const char* key, bool& value, When when = {}) {
    const Node* node = Take(key, Need::kOptional, when);
    if (node == nullptr) return;
    if (node->kind == Node::Kind::kScalar && !node->quoted &&
        (node->text == "true" || node->text == "false")) {
      value = node->text == "true";
      return;
    }
    Finding(*node, key, "must be true or false, found " + DescribeNode(*node));
  }

  void Character(const char* key, char& value, When when = {}) {
    const Node* node = Take(key, Need::kOptional, when);
    if (node == nullptr) return;
    const std::string text = node->text == "tab" ? "\t" : node->text;
    const bool one = node->kind == Node::Kind::kScalar && text.size() == 1;
    const char c = one ? text[0] : '\0';
    if (!one || (c != '\t' && (c < 0x20 || c > 0x7e)) || c == '"' || c == '.' || c == '-' ||
        c == '+' || std::isalnum(static_cast<unsigned char>(c)) != 0) {
      Finding(*node, key,
              "must be one character such as `,`, `;`, `|` or tab, found " + DescribeNode(*node));
      return;
    }
    value = c;
  }

  void Integers(const char* key, std::vector<std::int64_t>& values, Count count, Whole range,
                Need need, When when = {}) {
    ReadList(key, values, count, need, when, "whole numbers",
             [&](const Node& node, std::int64_t& value) {
               return ReadInteger(node, key, range, value);
             });
  }

  void Numbers(const char* key, std::vector<double>& values, Count count, Range range, Need need,
               When when = {}) {
    ReadList(key, values, count, need, when, "numbers",
             [&](const Node& node, double& value) { return ReadNumber(node, key, range, value); });
  }

  void Staleness(const char* key, std::int64_t& value) {
    const Node* node = Take(key, Need::kOptional, {});
    if (node == nullptr) return;
    std::int64_t number = 0;
    if (node->kind == Node::Kind::kScalar && node->text == "unlimited") {
      value = -1;
      return;
    }
    if (ParseInteger(*node, number) && number >= -1 && number <= 1'000'000) {
      value = number;
      return;
    }
    Finding(
        *node, key,
        "must be a whole number of at least 0, or unlimited (-1), found " + DescribeNode(*node));
  }

  void LearningRate(const char* key, LearningRateSpec& value) {
    if (map_ != nullptr) {
      if (const Node* node = map_->Find(key);
          node != nullptr && node->kind == Node::Kind::kScalar) {
        known_.push_back(key);
        report_.lines[Path(key)] = node->line;
        ReadNumber(*node, key, Range{kFloatLeast, 1e6, false, false}, value.base);
        return;
      }
    }
    Section(key, value, Need::kOptional);
  }

  template <typename Spec>
  void Section(const char* key, Spec& spec, Need need) {
    ReadSection(key, Take(key, need, {}), spec);
  }

  template <typename Spec>
  void Sections(const char* key, std::vector<Spec>& specs, Count count) {
    const Node* node = Take(key, Need::kOptional, {});
    if (node == nullptr) return;
    if (node->kind != Node::Kind::kList || node->items.size() > count.most) {
      Finding(*node, key,
              "must be a list of at most " + std::to_string(count.most) + " maps, found " +
                  (node->kind == Node::Kind::kList ? std::to_string(node->items.size())
                                                   : DescribeNode(*node)));
      return;
    }
    specs.clear();
    for (std::size_t i = 0; i < node->items.size(); ++i) {
      ReadSection(ItemPath(key, i), &node->items[i], specs.emplace_back());
    }
  }

  // The test data: what it does not say of the format is as in the training data.
  void Section(const char* key, std::optional<DataSourceSpec>& spec, const DataSourceSpec& like) {
    const Node* node = Take(key, Need::kOptional, {});
    if (node == nullptr) return;
    DataSourceSpec source;
    source.format = like.format;
    source.label = like.label;
    source.header = like.header;
    source.delimiter = like.delimiter;
    source.ignore = like.ignore;
    source.label_positive = like.label_positive;
    source.context = like.context;
    ReadSection(key, node, source);
    spec = source;
  }

  // Names every key that no call above asked for.
  void Finish() {
    if (map_ == nullptr) return;
    for (std::size_t i = 0; i < map_->keys.size(); ++i) {
      const std::string& key = map_->keys[i];
      if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
      const std::string nearest = job::NearestWord(key, known_);
      Finding(map_->items[i], key,
              nearest.empty() ? "unknown key; the keys here are " + Joined(known_)
                              : "unknown key, did you mean `" + nearest + "`?",
              ErrorId::kJobFileKeyUnknown);
    }
  }

 private:
  std::string Path(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }
  void Finding(const Node& node, const std::string& key, const std::string& what,
               ErrorId id = ErrorId::kJobFileValue) {
    report_.Add(node.line, Path(key.size() > 64 ? key.substr(0, 61) + "..." : key), what, id);
  }

  // The node of a key that is there and has a meaning; else reports what is wrong with that.
  const Node* Take(const char* key, Need need, When when) {
    known_.push_back(key);
    const Node* node = map_ == nullptr ? nullptr : map_->Find(key);
    if (node != nullptr) report_.lines[Path(key)] = node->line;
    if (node != nullptr && !when.applies) {
      Finding(*node, key, std::string("belongs to ") + when.what + " only",
              ErrorId::kJobFileContradiction);
      return nullptr;
    }
    if (node != nullptr && node->kind == Node::Kind::kNull) {
      report_.Add(node->line, Path(key), "has no value");
      return nullptr;
    }
    if (node == nullptr && need == Need::kRequired) {
      report_.AddAt(Path(key), "is missing", ErrorId::kJobFileKeyMissing);
    }
    return node;
  }

  template <typename Spec>
  void ReadSection(const std::string& key, const Node* node, Spec& spec) {
    if (node == nullptr) return;
    if (node->kind != Node::Kind::kMap) {
      Finding(*node, key, "must be a map of keys, found " + DescribeNode(*node));
      return;
    }
    Reader reader(node, Path(key), report_);
    Visit(reader, spec);
    reader.Finish();
  }

  bool ReadText(const Node& node, const char* key, TextRule rule, std::string& value) {
    std::int64_t number = 0;
    const bool numeral_allowed = rule == TextRule::kColumn || rule == TextRule::kOrigin;
    if (rule == TextRule::kValue && node.kind == Node::Kind::kScalar && node.text.size() <= 4096) {
      value = node.text;
      return true;
    }
    double any = 0;
    if (node.kind != Node::Kind::kScalar ||
        (!node.quoted && (node.text == "true" || node.text == "false")) ||
        (ParseNumber(node, any) && !(numeral_allowed && ParseInteger(node, number)))) {
      const bool scalar = node.kind == Node::Kind::kScalar;
      Finding(node, key,
              "must be text, found " + DescribeNode(node) + (scalar ? "; put it in quotes" : ""));
      return false;
    }
    const std::string& text = node.text;
    if (text.empty() || text.size() > 4096) {
      Finding(node, key, "must have 1 to 4096 characters");
      return false;
    }
    if (std::any_of(text.begin(), text.end(),
                    [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; })) {
      Finding(node, key, "must not hold control characters");
      return false;
    }
    const auto check = [&](bool good, const char* what) {
      if (good) value = text;
      if (!good) Finding(node, key, what + (", found " + DescribeNode(node)));
      return good;
    };
    switch (rule) {
      case TextRule::kPlain:
      case TextRule::kPattern:
      case TextRule::kColumn:
      case TextRule::kValue: value = text; return true;
      case TextRule::kPath: value = Absolute(text); return true;
      case TextRule::kName:
        return check(IsJobName(text),
                     "must be 1 to 63 lower-case letters, digits and `-`, begin with a letter and "
                     "not end with `-`");
      case TextRule::kTable:
      case TextRule::kLabel:
        return check(IsTableName(text), "must be 1 to 63 letters, digits, `_`, `-` and `.`");
      case TextRule::kOrigin:
        return check(IsOrigin(text), "must be JOB or JOB@ROUND with a job's name or number");
    }
    return false;
  }

  bool ReadInteger(const Node& node, const char* key, Whole range, std::int64_t& value) {
    std::int64_t number = 0;
    if (!ParseInteger(node, number)) {
      Finding(node, key, "must be a whole number, found " + DescribeNode(node));
      return false;
    }
    if (number < range.least || number > range.most) {
      Finding(node, key, "must be " + WholeText(range) + ", found " + node.text);
      return false;
    }
    value = number;
    return true;
  }

  bool ReadNumber(const Node& node, const char* key, Range range, double& value) {
    double number = 0;
    if (!ParseNumber(node, number)) {
      Finding(node, key, "must be a number, found " + DescribeNode(node));
      return false;
    }
    if (!range.Holds(number)) {
      Finding(node, key, "must be " + RangeText(range) + ", found " + node.text);
      return false;
    }
    value = number;
    return true;
  }

  template <typename T, typename Read>
  void ReadList(const char* key, std::vector<T>& values, Count count, Need need, When when,
                const char* what, const Read& read) {
    const Node* node = Take(key, need, when);
    if (node == nullptr) return;
    if (node->kind != Node::Kind::kList) {
      Finding(*node, key,
              std::string("must be a list of ") + what + ", found " + DescribeNode(*node));
      return;
    }
    if (node->items.size() < count.least || node->items.size() > count.most) {
      const std::string wanted = count.least == count.most ? std::to_string(count.least)
                                                           : std::to_string(count.least) + " to " +
                                                                 std::to_string(count.most);
      Finding(*node, key,
              "must have " + wanted + " entries, found " + std::to_string(node->items.size()));
      return;
    }
    std::vector<T> read_values;
    for (const Node& item : node->items) {
      T value{};
      if (!read(item, value)) return;
      read_values.push_back(value);
    }
    values = std::move(read_values);
  }

  std::string Absolute(const std::string& path) const {
    const std::filesystem::path given(path);
    if (given.is_absolute() || report_.base_directory.empty()) return path;
    return (std::filesystem::path(report_.base_directory) / given).lexically_normal().string();
  }

  const Node* const map_;
  const std::string path_;
  Report& report_;
  std::vector<std::string> known_;
};

// ---- writing

class Writer {
 public:
  Json Take() { return std::move(json_); }

  void Fixed(const char* key, const char* value) { json_[key] = value; }
  void Choice(const char* key, const std::string& value, const std::vector<std::string>&, Need,
              When when = {}) {
    if (when.applies) json_[key] = value;
  }
  void Text(const char* key, const std::string& value, TextRule, Need, When when = {}) {
    if (when.applies && !value.empty()) json_[key] = value;
  }
  void Integer(const char* key, std::int64_t value, Whole, When when = {}, Need = Need::kOptional) {
    if (when.applies) json_[key] = value;
  }
  void Number(const char* key, double value, Range, When when = {}) {
    if (when.applies) json_[key] = value;
  }
  void Flag(const char* key, bool value, When when = {}) {
    if (when.applies) json_[key] = value;
  }
  void Character(const char* key, char value, When when = {}) {
    if (when.applies) json_[key] = value == '\t' ? std::string("tab") : std::string(1, value);
  }
  void Integers(const char* key, const std::vector<std::int64_t>& values, Count, Whole, Need,
                When when = {}) {
    if (when.applies) json_[key] = values;
  }
  void Numbers(const char* key, const std::vector<double>& values, Count, Range, Need,
               When when = {}) {
    if (when.applies) json_[key] = values;
  }
  void Texts(const char* key, const std::vector<std::string>& values, Count, TextRule, Need,
             When when = {}) {
    if (when.applies) json_[key] = values;
  }
  void Pairs(const char* key, const std::vector<std::pair<std::string, std::string>>& pairs, Count,
             TextRule) {
    for (const auto& [name, value] : pairs) json_[key][name] = value;
  }
  template <typename Spec>
  void Sections(const char* key, std::vector<Spec>& specs, Count) {
    for (Spec& spec : specs) {
      Writer writer;
      Visit(writer, spec);
      json_[key].push_back(writer.Take());
    }
  }
  void Staleness(const char* key, std::int64_t value) { json_[key] = value; }
  void LearningRate(const char* key, LearningRateSpec& value) {
    Section(key, value, Need::kOptional);
  }
  template <typename Spec>
  void Section(const char* key, Spec& spec, Need) {
    Writer writer;
    Visit(writer, spec);
    json_[key] = writer.Take();
  }
  void Section(const char* key, std::optional<DataSourceSpec>& spec, const DataSourceSpec&) {
    if (spec) Section(key, *spec, Need::kOptional);
  }

 private:
  Json json_ = Json::object();
};

// ---- rules across fields

void CheckModel(const JobSpec& spec, Report& report) {
  const ModelSpec& model = spec.model;
  if (model.type == "mlp") {
    // Each width is at most a million and there are at most 64: this cannot overflow.
    std::int64_t parameters = 0;
    for (std::size_t i = 1; i < model.layers.size(); ++i) {
      parameters += model.layers[i - 1] * model.layers[i] + model.layers[i];
    }
    if (parameters > kParametersMax) {
      report.AddAt("model.layers", "make " + std::to_string(parameters) +
                                       " parameters; a job may have at most 2000000000");
    }
  }
  if (model.type == "transformer") {
    const double width = static_cast<double>(model.width);
    const double parameters = 12 * static_cast<double>(model.depth) * width * width +
                              static_cast<double>(256 + spec.data.train.context) * width;
    if (parameters > static_cast<double>(kParametersMax)) {
      report.AddAt("model.width",
                   "makes more than 2000000000 parameters with this depth and context");
    }
  }
  if (model.type == "cnn" && model.input_shape.size() == 3) {
    const auto& shape = model.input_shape;
    if (shape[0] > 4096 || shape[1] > 65'536 || shape[2] > 65'536) {
      report.AddAt("model.input_shape",
                   "must be [channels, height, width] of at most 4096 channels "
                   "and 65536 x 65536");
    } else if (shape[1] < 4 || shape[2] < 4) {
      report.AddAt("model.input_shape",
                   "must be [channels, height, width] with a height and width of at least 4, which "
                   "are halved twice");
    } else {
      const std::int64_t flat = model.channels[1] * (shape[1] / 4) * (shape[2] / 4);
      if (flat > kParametersMax / model.hidden) {
        report.AddAt("model.hidden", "makes more than 2000000000 parameters with this input_shape");
      }
    }
  }
}

void CheckTables(const JobSpec& spec, Report& report) {
  const bool ledger = spec.model.type == "ledger";
  const bool deepfm = spec.model.type == "deepfm";
  const auto& tables = spec.embedding_tables;
  if (!tables.empty() && !ledger && !deepfm && !spec.model.type.empty()) {
    report.AddAt("embedding_tables", "has no use in a model of type " + spec.model.type +
                                         ", only in deepfm and ledger");
    return;
  }
  if (deepfm && tables.empty()) {
    report.AddAt("embedding_tables",
                 "is missing: a deepfm has at least one table with the ids of a column");
  }
  std::set<std::string> names;
  std::map<std::string, std::string> users;  // column to table
  for (std::size_t i = 0; i < tables.size(); ++i) {
    const EmbeddingTableSpec& table = tables[i];
    const std::string path = ItemPath("embedding_tables", i);
    if (!table.name.empty() && !names.insert(table.name).second) {
      report.AddAt(path + ".name", "`" + table.name + "` is the name of a table before it too");
    }
    if (ledger && !table.columns.empty()) {
      report.AddAt(path + ".columns", "must not be given for the ledger model, which has no data");
    }
    if (deepfm && table.columns.empty()) {
      report.AddAt(path + ".columns", "is missing: the columns whose ids are this table's");
    }
    if (deepfm && table.width < 2) {
      report.AddAt(path + ".width",
                   "must be at least 2 for a deepfm: a weight and the factors of an id");
    }
    if (deepfm && table.width != tables.front().width) {
      report.AddAt(path + ".width", "is " + std::to_string(table.width) + ", but " +
                                        std::to_string(tables.front().width) +
                                        " for the first table; a deepfm multiplies their rows");
    }
    for (const std::string& column : table.columns) {
      const auto [found, fresh] = users.emplace(column, table.name);
      if (!fresh) {
        report.AddAt(path + ".columns", "`" + column + "` is used twice, by the table `" +
                                            found->second + "` and here");
      }
      for (const auto* source : {&spec.data.train, spec.data.test ? &*spec.data.test : nullptr}) {
        if (source == nullptr) continue;
        if (source->label == column) {
          report.AddAt(path + ".columns", "`" + column + "` is the label");
          break;
        }
        if (std::find(source->ignore.begin(), source->ignore.end(), column) !=
            source->ignore.end()) {
          report.AddAt(path + ".columns", "`" + column + "` is ignored by the data");
          break;
        }
      }
    }
    const RowInitializerSpec& initializer = table.initializer;
    if (initializer.type == "uniform" && initializer.low > initializer.high) {
      report.AddAt(path + ".initializer.low", "is " + NumberText(initializer.low) +
                                                  ", more than `high`, which is " +
                                                  NumberText(initializer.high));
    }
  }
  if (deepfm && !spec.data.train.format.empty() && spec.data.train.format != "csv") {
    report.AddAt("data.train.format", "must be csv for a deepfm, whose ids are columns, found `" +
                                          spec.data.train.format + "`");
  }
}

void CheckData(const JobSpec& spec, Report& report) {
  const bool ledger = spec.model.type == "ledger";
  const bool counter = spec.data.train.format == "counter";
  if (ledger && !counter && !spec.data.train.format.empty()) {
    report.AddAt("data.train.format",
                 "must be counter for the ledger model, found `" + spec.data.train.format + "`");
  }
  if (!ledger && counter && !spec.model.type.empty()) {
    report.AddAt("data.train.format",
                 "counter has records without content, which only the ledger model can train on");
  }
  if (spec.data.test && (counter || spec.data.test->format == "counter")) {
    report.AddAt("data.test", "must not be given with counter data, there is nothing to test");
  }
  const bool transformer = spec.model.type == "transformer";
  if (transformer && !spec.data.train.format.empty() && spec.data.train.format != "text") {
    report.AddAt("data.train.format", "must be text for a transformer, which reads bytes, found `" +
                                          spec.data.train.format + "`");
  }
  if (transformer && spec.model.width % spec.model.heads != 0) {
    report.AddAt("model.heads",
                 "must divide model.width, which is " + std::to_string(spec.model.width));
  }
  if (spec.data.train.format == "text" &&
      ((spec.data.scale != 0 && spec.data.scale != 1) || spec.data.mean != 0 ||
       spec.data.standard_deviation != 1)) {
    report.AddAt("data", "scale, mean and standard_deviation are not for text");
  }
  const auto check_text = [&](const DataSourceSpec& source, const std::string& path) {
    if (source.format == "text" && source.begin >= source.end) {
      report.AddAt(path + ".begin", "must be less than `end`, which is " + NumberText(source.end));
    }
    if (source.format == "text" && source.context != spec.data.train.context) {
      report.AddAt(path + ".context", "is " + std::to_string(source.context) + ", " +
                                          std::to_string(spec.data.train.context) +
                                          " in data.train");
    }
  };
  check_text(spec.data.train, "data.train");
  if (spec.data.test) check_text(*spec.data.test, "data.test");
  const auto check_column = [&report](const DataSourceSpec& source, const std::string& path) {
    if (source.format == "csv" && !source.header && !source.label.empty() &&
        !IsNumeral(source.label)) {
      report.AddAt(
          path + ".label",
          "must be the number of a column (from 0) because the file has no header, found `" +
              source.label + "`");
    }
  };
  const auto check_columns = [&report](const DataSourceSpec& source,
                                       const std::vector<std::string>& columns,
                                       const std::string& path) {
    for (const std::string& column : columns) {
      if (source.format == "csv" && !source.header && !IsNumeral(column)) {
        report.AddAt(path,
                     "must be numbers of columns (from 0) because the file has no header, "
                     "found `" +
                         column + "`");
      }
    }
  };
  check_column(spec.data.train, "data.train");
  check_columns(spec.data.train, spec.data.train.ignore, "data.train.ignore");
  for (std::size_t i = 0; i < spec.embedding_tables.size(); ++i) {
    check_columns(spec.data.train, spec.embedding_tables[i].columns,
                  ItemPath("embedding_tables", i) + ".columns");
  }
  if (spec.data.test) {
    check_column(*spec.data.test, "data.test");
    check_columns(*spec.data.test, spec.data.test->ignore, "data.test.ignore");
  }
}

// What the kernels of a GPU do not do.
void CheckGpus(const JobSpec& spec, Report& report) {
  if (spec.resources.gpus == 0) return;
  if (spec.model.type == "ledger") {
    report.AddAt("resources.gpus", "is not for the ledger model, which computes nothing");
  }
  if (spec.resources.gpus > spec.training.batch_size) {
    report.AddAt("resources.gpus",
                 "is more than training.batch_size: each GPU computes a part of "
                 "every batch, of one record or more");
  }
  if (spec.training.local_steps > 1) {
    report.AddAt("training.local_steps", "is not computed on GPUs: use 1, or resources.gpus: 0");
  }
  const std::string& codec = spec.sparsification.value_codec;
  if (codec != "fp32" && codec != "bf16" && codec != "2bit") {
    report.AddAt("sparsification.value_codec",
                 codec + " is not computed on GPUs: use 2bit, bf16 or fp32, or resources.gpus: 0");
  }
}

void CheckTraining(const JobSpec& spec, Report& report) {
  const TrainingSpec& training = spec.training;
  if (training.local_steps > 1) {
    const std::string& optimizer = spec.optimizer.type;
    const bool adds =
        optimizer == "worker_nesterov" || optimizer == "worker_adam" || optimizer == "sgd";
    if (!adds) {
      report.AddAt(
          "training.local_steps",
          "needs the optimizer worker_nesterov, worker_adam or sgd: a step on the worker's "
          "own weights must be the one that the servers will make");
    }
    if (!spec.embedding_tables.empty()) {
      report.AddAt("training.local_steps", "is not for jobs with embedding_tables");
    }
    if (spec.model.type == "ledger") {
      report.AddAt("training.local_steps", "is not for the ledger model");
    }
  }
  if (training.step_records() > kStepRecordsMax) {
    report.AddAt(
        "training.accumulate",
        "makes steps of " + std::to_string(training.step_records()) + " records, at most 1048576");
  }
  if (spec.model.type == "ledger") {
    const std::string why = "is not for the ledger model, which computes no gradients";
    if (training.accumulate > 1) report.AddAt("training.accumulate", why);
    if (training.precision != "auto") report.AddAt("training.precision", why);
    if (training.loss_scaling.mode == "dynamic") report.AddAt("training.loss_scaling.mode", why);
    if (training.loss_calibration.enabled) report.AddAt("training.loss_calibration.enabled", why);
  }
  if (training.outer_momentum > 0 && training.local_steps == 1) {
    report.AddAt("training.outer_momentum",
                 "needs local_steps above 1; the momentum of single steps is optimizer.momentum");
  }
  if (training.batch_by_speed && training.staleness == 0) {
    report.AddAt("training.batch_by_speed",
                 "needs a staleness above 0: with 0 the parameters must not depend on how fast a "
                 "worker is");
  }
  if (spec.checkpoint.flush_residuals && training.staleness == 0) {
    report.AddAt("checkpoint.flush_residuals",
                 "needs a staleness above 0: with 0 the parameters must not depend on when a "
                 "checkpoint begins");
  }
  if (training.pull_values == "increments") {
    // Each of these changes every entry with every push, or is to be exact.
    std::string_view bad;
    if (spec.sparsification.ratio >= 1) bad = "a sparsification.ratio below 1";
    if (training.staleness == 0) bad = "a staleness above 0";
    if (spec.optimizer.weight_decay > 0) bad = "an optimizer.weight_decay of 0";
    if (!bad.empty()) {
      report.AddAt("training.pull_values", "increments need " + std::string(bad));
    }
  }
  if (spec.model.type == "ledger") {
    if (training.loss != "none") {
      report.AddAt("training.loss",
                   "must be none for the ledger model, found `" + training.loss + "`");
    }
    if (training.metric != "none") {
      report.AddAt("training.metric",
                   "must be none for the ledger model, found `" + training.metric + "`");
    }
    return;
  }
  if (training.loss == "none") {
    report.AddAt("training.loss", "none is for the ledger model only");
  }
  const bool binary = training.loss == "binary_cross_entropy";
  if (spec.model.type == "deepfm" && !binary && training.loss != "mse" && training.loss != "none") {
    report.AddAt("training.loss",
                 "must be binary_cross_entropy or mse for a deepfm, which has one output");
  }
  if (training.metric == "accuracy" && training.loss == "mse") {
    report.AddAt("training.metric",
                 "accuracy needs the loss cross_entropy or binary_cross_entropy; use mse or none");
  }
  if (training.metric == "mse" && training.loss != "mse" && training.loss != "none") {
    report.AddAt("training.metric", "mse needs the loss mse; use accuracy or none");
  }
  if ((training.metric == "auc" || training.metric == "logloss") && !binary &&
      training.loss != "none") {
    report.AddAt("training.metric", training.metric + " needs the loss binary_cross_entropy");
  }
}

// `path` is of an optimizer, whose learning rate this is.
void CheckSchedule(const JobSpec& spec, const OptimizerSpec& optimizer, const std::string& path,
                   Report& report) {
  const LearningRateSpec& rate = optimizer.learning_rate;
  if (rate.warmup_epochs > spec.training.epochs) {
    report.AddAt(
        path + ".learning_rate.warmup_epochs",
        "is longer than the training, which has " + NumberText(spec.training.epochs) + " epochs");
  }
  if (rate.schedule == "inverse_square_root" && rate.warmup_epochs == 0) {
    report.AddAt(path + ".learning_rate.warmup_epochs",
                 "must be more than 0 for the schedule inverse_square_root, which falls with the "
                 "root of the samples trained by the end of the warm-up");
  }
  if (optimizer.type == "ftrl" && (rate.schedule != "constant" || rate.warmup_epochs != 0)) {
    report.AddAt(path + ".learning_rate",
                 "must be constant and without a warm-up for ftrl, whose values follow from all of "
                 "its gradients at one rate");
  }
  for (std::size_t i = 1; i < rate.step_epochs.size(); ++i) {
    if (rate.step_epochs[i] <= rate.step_epochs[i - 1]) {
      report.AddAt(path + ".learning_rate.step_epochs", "must increase");
      break;
    }
  }
}

void CheckSchedules(const JobSpec& spec, Report& report) {
  CheckSchedule(spec, spec.optimizer, "optimizer", report);
  for (std::size_t i = 0; i < spec.embedding_tables.size(); ++i) {
    CheckSchedule(spec, spec.embedding_tables[i].optimizer,
                  ItemPath("embedding_tables", i) + ".optimizer", report);
  }
  const SparsificationSpec& sparse = spec.sparsification;
  if (sparse.ratio_max > 0 && (sparse.ratio_max < sparse.ratio || spec.training.staleness == 0)) {
    report.AddAt("sparsification.ratio_max",
                 sparse.ratio_max < sparse.ratio
                     ? "must not be below ratio, which is " + NumberText(sparse.ratio)
                     : "needs a staleness above 0: it follows the link, so no two runs are alike");
  }
  if (spec.sparsification.warmup_epochs > spec.training.epochs) {
    report.AddAt("sparsification.warmup_epochs", "is longer than the training, which has " +
                                                     NumberText(spec.training.epochs) + " epochs");
  }
}

void CheckLoad(const CheckpointSpec& spec, Report& report) {
  if (!spec.from.empty() && !spec.load.empty()) {
    report.AddAt("checkpoint.load",
                 "is for parts of checkpoints and `from` for a whole one; "
                 "only one of them can be given");
  }
  for (std::size_t i = 0; i < spec.load.size(); ++i) {
    const LoadSourceSpec& source = spec.load[i];
    const std::string path = ItemPath("checkpoint.load", i);
    if (source.from.empty() == source.file.empty()) {
      report.AddAt(path,
                   "must have `from` (a checkpoint) or `file` (a .safetensors file), and not "
                   "both");
    }
    if (source.tensors.empty() && source.tables.empty()) {
      report.AddAt(path, "names no `tensors` and no `tables`; \"*\" names all of the source");
    }
    for (const auto& [name, value] : source.rename) {
      const bool prefix = name.back() == '*';
      const auto bare = [](const std::string& text) {
        return text.find_first_of("*?") >= text.size() - (text.back() == '*' ? 1 : 0);
      };
      if (prefix != (value.back() == '*') || !bare(name) || !bare(value)) {
        report.AddAt(path + ".rename", "`" + name + "` to `" + value +
                                           "`: both must be names, or both beginnings of names "
                                           "that end with `*`, which keep their rest");
      }
    }
  }
}

// ---- overrides

void SetLines(Node& node, int line) {
  node.line = line;
  for (Node& item : node.items) SetLines(item, line);
}

struct PathStep {
  std::string key;
  std::optional<std::size_t> item;  // of the list under the key
};

// "embedding_tables[0].width" in two steps; nothing if it is no path.
std::optional<std::vector<PathStep>> ParsePath(const std::string& path) {
  std::vector<PathStep> steps;
  std::size_t at = 0;
  while (at <= path.size()) {
    const std::size_t end = std::min(path.find('.', at), path.size());
    std::string key = path.substr(at, end - at);
    PathStep step;
    if (!key.empty() && key.back() == ']') {
      const std::size_t open = key.find('[');
      const std::string number =
          open == std::string::npos ? "" : key.substr(open + 1, key.size() - open - 2);
      if (!IsNumeral(number)) return std::nullopt;
      step.item = static_cast<std::size_t>(std::stoull(number));
      key.resize(open);
    }
    if (key.empty() || key.find_first_of("[]") != std::string::npos) return std::nullopt;
    step.key = std::move(key);
    steps.push_back(std::move(step));
    at = end + 1;
  }
  if (steps.size() > static_cast<std::size_t>(job::kDocumentDepthMax)) return std::nullopt;
  return steps;
}

// Puts the value where the path says. Maps on the way are made if they are missing; a scalar or a
// list is not replaced by a map.
Status Override(Node& root, const JobOverride& override, int line) {
  const std::string place = "--set " + override.path + "=" + override.value;
  const auto steps = ParsePath(override.path);
  if (!steps) {
    return Error{ErrorId::kSetPath,
                 place + ": must be a path such as training.workers or embedding_tables[0].width"};
  }
  Node value = PS_TRY(job::ParseYamlDocument(override.value, place));
  SetLines(value, line);
  Node* node = &root;
  std::string so_far;
  for (const PathStep& step : *steps) {
    if (node->kind == Node::Kind::kNull && node != &root) {
      node->kind = Node::Kind::kMap;
      node->line = line;
    }
    if (node->kind != Node::Kind::kMap) {
      return Error{ErrorId::kSetPath, place + ": " + (so_far.empty() ? "the file" : so_far) +
                                          " is " + DescribeNode(*node) + ", not a map of keys"};
    }
    const auto found = std::find(node->keys.begin(), node->keys.end(), step.key);
    const auto index = static_cast<std::size_t>(found - node->keys.begin());
    if (found == node->keys.end()) {
      node->keys.push_back(step.key);
      node->items.emplace_back();
    }
    node = &node->items[index];
    so_far += (so_far.empty() ? "" : ".") + step.key;
    if (!step.item) continue;
    if (node->kind != Node::Kind::kList || *step.item >= node->items.size()) {
      const std::string what = node->kind == Node::Kind::kList
                                   ? "a list of " + std::to_string(node->items.size())
                               : node->kind == Node::Kind::kNull ? "not there"
                                                                 : DescribeNode(*node);
      return Error{ErrorId::kSetPath, place + ": " + so_far + " is " + what + ", it has no item " +
                                          std::to_string(*step.item)};
    }
    node = &node->items[*step.item];
    so_far = ItemPath(so_far, *step.item);
  }
  *node = std::move(value);
  return Ok();
}

// Fills in the defaults that depend on another field.
void Resolve(JobSpec& spec) {
  if (spec.data.scale == 0) spec.data.scale = spec.data.train.format == "idx" ? 1.0 / 255.0 : 1.0;
  for (EmbeddingTableSpec& table : spec.embedding_tables) {
    table.optimizer.reference_batch = spec.optimizer.reference_batch;
  }
}

Result<JobSpec> ReadJob(const Node& root, const std::string& file,
                        const std::string& base_directory,
                        const std::vector<JobOverride>& overrides = {}) {
  Report report;
  report.file = file;
  report.overrides = overrides;
  report.base_directory = base_directory;
  JobSpec spec;
  if (root.kind != Node::Kind::kMap) {
    report.Add(root.line, "",
               "must be a map of keys (apiVersion, kind, name, ...), found " + DescribeNode(root));
    return report.ToError();
  }
  Reader reader(&root, "", report);
  Visit(reader, spec);
  reader.Finish();

  if (spec.model.type == "ledger") {
    if (!report.Given("training.loss")) spec.training.loss = "none";
    if (!report.Given("training.metric")) spec.training.metric = "none";
  } else {
    if (spec.model.type == "deepfm" && !report.Given("training.loss")) {
      spec.training.loss = "binary_cross_entropy";
    }
    if (!report.Given("training.metric")) {
      if (spec.training.loss == "mse") spec.training.metric = "mse";
      if (spec.training.loss == "binary_cross_entropy") spec.training.metric = "auc";
    }
  }
  const auto resolve_optimizer = [&report](OptimizerSpec& optimizer, const std::string& path) {
    if (optimizer.type == "adamw" && !report.Given(path + ".weight_decay")) {
      optimizer.weight_decay = 0.01;
    }
    if (!report.Given(path + ".epsilon")) {
      const bool adagrad = optimizer.type == "adagrad" || optimizer.type == "rowwise_adagrad";
      optimizer.epsilon = adagrad ? 1e-10 : OptimizerSpec().epsilon;
    }
  };
  resolve_optimizer(spec.optimizer, "optimizer");
  // Asynchronous workers are momentum enough.
  if (spec.optimizer.type == "worker_adam" && !report.Given("optimizer.beta1")) {
    spec.optimizer.beta1 = 0;
  }
  for (std::size_t i = 0; i < spec.embedding_tables.size(); ++i) {
    resolve_optimizer(spec.embedding_tables[i].optimizer,
                      ItemPath("embedding_tables", i) + ".optimizer");
  }
  CheckModel(spec, report);
  CheckTables(spec, report);
  CheckData(spec, report);
  CheckTraining(spec, report);
  CheckGpus(spec, report);
  CheckSchedules(spec, report);
  CheckLoad(spec.checkpoint, report);
  if (!report.findings.empty()) return report.ToError();
  Resolve(spec);
  return spec;
}

Json ToJson(JobSpec spec) {
  Resolve(spec);
  Writer writer;
  Visit(writer, spec);
  return writer.Take();
}

// ---- YAML for people

std::string YamlScalar(const Json& json) {
  if (!json.is_string()) return json.dump(-1, ' ', false, Json::error_handler_t::replace);
  const auto& text = json.get_ref<const std::string&>();
  static const std::set<std::string> kWords = {"true", "false", "null", "yes", "no",
                                               "on",   "off",   "y",    "n"};
  const bool plain = !text.empty() &&
                     (std::isalpha(static_cast<unsigned char>(text[0])) != 0 || text[0] == '/') &&
                     kWords.count(text) == 0 && std::all_of(text.begin(), text.end(), [](char c) {
                       return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' ||
                              c == '-' || c == '/' || c == '.' || c == '@';
                     });
  // A JSON string is a double-quoted YAML scalar.
  return plain ? text : json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void WriteYaml(const Json& map, int indent, std::string& out) {
  for (const auto& item : map.items()) {
    out.append(static_cast<std::size_t>(indent), ' ');
    out += YamlScalar(item.key()) + ":";
    if (item.value().is_object()) {
      out += '\n';
      WriteYaml(item.value(), indent + 2, out);
      continue;
    }
    if (item.value().is_array() && !item.value().empty() && item.value().front().is_object()) {
      out += '\n';
      for (const auto& entry : item.value()) {
        std::string text;
        WriteYaml(entry, indent + 4, text);
        text[static_cast<std::size_t>(indent) + 2] = '-';
        out += text;
      }
      continue;
    }
    if (item.value().is_array()) {
      out += " [";
      bool first = true;
      for (const auto& entry : item.value()) {
        if (!first) out += ", ";
        first = false;
        out += YamlScalar(entry);
      }
      out += "]\n";
      continue;
    }
    out += " " + YamlScalar(item.value()) + "\n";
  }
}

}  // namespace

OptimizerSpec RowOptimizerDefault() {
  OptimizerSpec optimizer;
  optimizer.type = "adagrad";
  optimizer.epsilon = 1e-10;
  return optimizer;
}

CheckpointOrigin ParseOrigin(const std::string& text) {
  const auto at = text.find('@');
  CheckpointOrigin origin{text.substr(0, at), std::nullopt};
  if (at != std::string::npos) origin.round = std::stoull(text.substr(at + 1));
  return origin;
}

Result<JobSpec> ParseJobYaml(const std::string& text, const std::string& file_name,
                             const std::string& base_directory,
                             const std::vector<JobOverride>& overrides) {
  Node root = PS_TRY(job::ParseYamlDocument(text, file_name));
  for (std::size_t i = 0; i < overrides.size(); ++i) {
    PS_TRY(Override(root, overrides[i], -1 - static_cast<int>(i)));
  }
  return ReadJob(root, file_name, base_directory, overrides);
}

Result<JobSpec> ParseJobJson(const std::string& json) {
  const Node root = PS_TRY(job::ParseJsonDocument(json, "job spec"));
  return ReadJob(root, "job spec", "");
}

std::string ResolvedJson(const JobSpec& spec, int indent) {
  return ToJson(spec).dump(indent, ' ', false, Json::error_handler_t::replace);
}

std::string ResolvedYaml(const JobSpec& spec) {
  std::string out;
  WriteYaml(ToJson(spec), 0, out);
  return out;
}

std::vector<std::string> JobWarnings(const JobSpec& spec) {
  std::vector<std::string> warnings;
  const bool asynchronous = spec.training.staleness != 0;
  if (asynchronous && spec.training.workers > 8) {
    warnings.push_back("training.workers is " + std::to_string(spec.training.workers) +
                       ": with more than 8 workers sparse asynchronous updates may cost accuracy");
  }
  const std::string& optimizer = spec.optimizer.type;
  const bool accumulates =
      optimizer == "momentum" || optimizer == "nesterov" ||
      ((optimizer == "adam" || optimizer == "adamw") && spec.optimizer.beta1 > 0);
  if (asynchronous && accumulates && spec.training.workers > 1) {
    warnings.push_back("optimizer.type " + optimizer +
                       " keeps its momentum on the servers: with several asynchronous workers it "
                       "may need a lower rate or diverge; worker_nesterov does not");
  }
  if (spec.sparsification.ratio < 1 && optimizer != "worker_nesterov" &&
      optimizer != "worker_adam" && optimizer != "sgd" && optimizer != "sparse_adam") {
    warnings.push_back("optimizer.type " + optimizer + " with sparsification.ratio " +
                       NumberText(spec.sparsification.ratio) +
                       ": an entry is updated only when it is pushed, with the sum of many steps' "
                       "gradients; ratio 1 gives the optimizer as it is known");
  }
  if (!spec.sparsification.error_feedback && spec.sparsification.ratio < 1) {
    warnings.push_back("sparsification.error_feedback is off: " +
                       NumberText(100 * (1 - spec.sparsification.ratio)) +
                       " % of each gradient of the large tensors is lost");
  }
  const LossScalingSpec& scaling = spec.training.loss_scaling;
  if (scaling.mode == "none" && spec.training.precision == "fp16") {
    warnings.emplace_back(
        "training.loss_scaling.mode is none with training.precision fp16: gradients below 6e-8 "
        "become 0");
  }
  if (spec.training.staleness < 0) {
    warnings.emplace_back(
        "training.staleness is unlimited: one slow worker may train on old values");
  }
  if (!spec.data.test && spec.model.type != "ledger" && spec.training.metric != "none") {
    warnings.emplace_back("data.test is not given: the job ends without a final " +
                          spec.training.metric);
  }
  return warnings;
}

}  // namespace ps
