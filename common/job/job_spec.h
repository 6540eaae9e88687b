// The job file: what a user may say about a training run, with every default.
//
// YAML, `apiVersion: ds/v1`, `kind: TrainJob`. Unknown keys, wrong types and
// values out of range are errors that name the key, the line and the nearest
// valid key. docs/job-file.md describes each field; ResolvedJson() is what is
// stored with the job and with each checkpoint, and parses back to the same.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/result.h"

namespace ps {

struct ModelSpec {
  std::string type;                  // mlp | cnn | torchscript | deepfm | transformer | ledger
  std::vector<std::int64_t> layers;  // mlp: widths with input and output, e.g. [784, 1024, 10]
  std::string activation = "relu";   // mlp: relu | tanh
  std::vector<std::int64_t> channels = {16, 32};  // cnn: of its two convolutions
  std::int64_t hidden = 128;                      // cnn: units of the dense layer
  std::vector<std::int64_t> hidden_layers;  // deepfm: `hidden` of the file, widths; may be empty
  bool batch_norm = true;                   // cnn
  std::vector<std::int64_t> input_shape;    // cnn, torchscript: without the batch, e.g. [1, 28, 28]
  std::int64_t classes = 10;                // cnn
  std::int64_t depth = 6;                   // transformer: blocks
  std::int64_t heads = 6;                   // transformer: of its attention
  std::int64_t width = 384;                 // transformer: of what stands for a byte
  double dropout = 0;                       // transformer
  std::string file;                         // torchscript: path on the worker nodes
  std::int64_t blocks = 16;  // ledger: counts pushes exactly, to test a cluster (docs/job-file.md)
  std::int64_t rows = 1000;  // ledger with tables of rows: their keys
  std::string initialization = "kaiming_uniform";  // kaiming_uniform | xavier_uniform | zeros
};

struct DataSourceSpec {
  std::string format;  // idx | csv | text | counter
  std::string images;  // idx: features, .gz or not
  std::string labels;  // idx
  std::string file;    // csv, text
  std::string label;   // csv: name of the column (with header) or its number from 0
  bool header = true;  // csv
  char delimiter = ',';
  std::vector<std::string> ignore;          // csv: columns that are not used, as `label`
  std::vector<std::string> label_positive;  // csv: labels that count as 1, all others as 0
  std::int64_t context = 256;               // text: bytes of a record
  double begin = 0;                         // text: part of the file that is used, from 0 to 1
  double end = 1;
  std::int64_t records = 0;  // counter: records without content, for the ledger model
};

struct DataSpec {
  DataSourceSpec train;
  std::optional<DataSourceSpec> test;
  // x' = (x * scale - mean) / standard_deviation; idx bytes have the scale 1/255, csv 1.
  double scale = 0;  // 0: by format
  double mean = 0;
  double standard_deviation = 1;
  bool shuffle = true;
};

struct LearningRateSpec {
  double base = 0.05;
  std::string schedule = "constant";  // constant | step | cosine | linear | inverse_square_root
  double step_factor = 0.1;           // step
  std::vector<double> step_epochs;    // step: at these epochs
  double warmup_epochs = 0;           // linear from 0
  double final_factor = 0;            // cosine, linear: last rate as a factor of base
};

struct OptimizerSpec {
  // worker_nesterov, worker_adam: on the workers. On the servers: sgd | momentum | nesterov |
  // adagrad | adam | adamw | ftrl, and for rows rowwise_adagrad; ps-server/core/optimizer.h has the
  // formulas.
  std::string type = "worker_nesterov";
  double momentum = 0.9;           // worker_nesterov, momentum, nesterov
  double beta1 = 0.9;              // adam, adamw; worker_adam: 0 if not given
  double beta2 = 0.999;            // adam, adamw, worker_adam, sparse_adam
  double epsilon = 1e-8;           // as beta2; adagrad, rowwise_adagrad: 1e-10 if not given
  double initial_accumulator = 0;  // adagrad, rowwise_adagrad, ftrl
  double l1 = 0;                   // ftrl
  double l2 = 0;                   // ftrl
  double beta = 1;                 // ftrl
  LearningRateSpec learning_rate;
  std::int64_t reference_batch = 256;  // `base` belongs to this many samples
  // Decoupled, on the server: w -= lr * weight_decay * w. adamw: 0.01 if not given.
  double weight_decay = 0;
  double clip_norm = 0;   // of one worker's gradient; 0: off
  double clip_value = 0;  // of each pushed entry, on the server; 0: off
};

struct SparsificationSpec {
  double ratio = 0.01;               // kept entries of the large tensors; 1.0: dense
  double ratio_max = 0;              // the ratio may rise to it while the link has room; 0: off
  double warmup_epochs = 0;          // exponential from 25 % down to `ratio`
  bool error_feedback = true;        // what a push leaves out is added to the next step
  std::string index_codec = "auto";  // auto | rice | gap8 | raw16 | bitmap
  std::string value_codec = "bf16";  // fp32 | bf16 | int8 | 4bit | 2bit | 1bit
  std::int64_t small_tensor_elements =
      2048;  // tensors up to this size, and 1-D ones, are sent dense
};

struct RowInitializerSpec {
  std::string type = "uniform";      // constant | uniform | normal | truncated_normal
  double value = 0;                  // constant
  double low = -0.01;                // uniform
  double high = 0.01;                // uniform
  double mean = 0;                   // normal, truncated_normal
  double standard_deviation = 0.01;  // normal, truncated_normal
};

// What a table of rows is trained with if the file does not say: adagrad at the rate 0.05.
OptimizerSpec RowOptimizerDefault();

// Rows of one width under 64-bit keys, made on first use; ps-server/core/rows/row_table.h.
struct EmbeddingTableSpec {
  std::string name;
  std::int64_t width = 16;           // floats of a row, 1 .. 1,024
  std::vector<std::string> columns;  // of the data, whose ids are this table's; none for the ledger
  RowInitializerSpec initializer;
  // On the servers: sgd | momentum | nesterov | adagrad | rowwise_adagrad | adam | adamw | ftrl.
  // `reference_batch` is the job's, `clip_norm` is not for rows.
  OptimizerSpec optimizer = RowOptimizerDefault();
  std::int64_t sightings = 1;          // pushes that must name a key until its row is made, .. 256
  std::int64_t sketch_mebibytes = 16;  // of the whole table, where they are counted
  double unused_epochs = 0;            // a row not pushed for so long is removed; 0: never
  std::int64_t max_mebibytes = 0;  // of the whole table, optimizer's slots included; 0: no bound
  std::string when_full = "lru";   // lru | lfu | refuse
  std::string values = "bf16";     // of rows on the wire: bf16 | fp32 | int8
};

// PyTorch's GradScaler, for each task; ps-worker/core/loss_scaler.h.
struct LossScalingSpec {
  std::string mode = "auto";  // auto: dynamic where the precision is fp16 | dynamic | none
  double initial_scale = 65'536;
  double growth_factor = 2;
  double backoff_factor = 0.5;
  std::int64_t growth_interval = 2000;  // steps without an overflow
};

// Steps whose loss or gradient norm is implausible; ps-worker/core/loss_calibration.h.
struct LossCalibrationSpec {
  bool enabled = false;
  double threshold = 5;             // deviations above what was predicted
  std::int64_t warmup_steps = 600;  // that are looked at first, and not judged
};

inline constexpr std::int64_t kWorkersMax = 1024;  // of a job

struct TrainingSpec {
  std::int64_t workers = 2;
  std::int64_t threads_per_worker = 1;
  std::int64_t batch_size = 128;   // records a worker, and step if it does not accumulate
  std::int64_t accumulate = 1;     // batches whose gradients make one step
  std::string precision = "auto";  // auto: by the device | fp32 | bf16 | fp16
  LossScalingSpec loss_scaling;
  LossCalibrationSpec loss_calibration;
  bool batch_by_speed = false;   // batches in proportion to the workers' speeds, once they differ
  std::int64_t local_steps = 1;  // batches a push; more than 1: each on weights of the worker's own
  double outer_momentum = 0;     // Nesterov's, of pushes of several local steps; 0: none
  double epochs = 1;
  // cross_entropy | binary_cross_entropy | mse | none (ledger)
  std::string loss = "cross_entropy";
  std::string metric = "accuracy";   // accuracy | auc | logloss | mse | none
  std::int64_t staleness = 3;        // clocks the fastest may be ahead; -1: unlimited
  std::int64_t max_version_gap = 0;  // TooOld beyond this many applied pushes; 0: max(8, 2 workers)
  std::string pull_values = "auto";  // auto | bf16 | fp32 | increments
  double evaluate_every_epochs = 1;  // live, on the test data; 0: only at the end
  std::string on_nonfinite = "skip";  // skip | stop
  std::int64_t seed = 1;

  // Records of one step, and of one push, as the file says them.
  std::int64_t step_records() const { return batch_size * accumulate; }
  std::int64_t push_records() const { return step_records() * local_steps; }
};

// Where some of a new job's values come from; common/job/load_mapping.h has the rules. One of
// `from` and `file` is there.
struct LoadSourceSpec {
  std::string from;                  // JOB or JOB@ROUND: a checkpoint, read by the servers
  std::string file;                  // a .safetensors file: path on the worker nodes
  std::vector<std::string> tensors;  // names in the source; `*` and `?` stand for any text
  std::vector<std::string> tables;   // the same of embedding tables; not with a file
  // Name in the source and in this job. Both end with `*`: all names that begin so.
  std::vector<std::pair<std::string, std::string>> rename;
  bool grow = false;  // what the source has may be smaller; the rest keeps its initial values
};

struct CheckpointSpec {
  std::int64_t every_steps = 1000;  // of the slowest live worker
  std::int64_t keep = 5;
  std::int64_t keep_every = 0;  // and every so many-th checkpoint for good; 0: none
  std::int64_t full_every = 4;  // checkpoints; those between hold what changed since the one before
  bool flush_residuals = false;      // each worker pushes its residual before the cut
  std::int64_t copies = 2;           // stores that have every part; fewer if there are not so many
  std::string from;                  // JOB or JOB@ROUND: start from its values
  std::vector<LoadSourceSpec> load;  // or from parts of them
};

// GPUs of a node, and so of a task.
inline constexpr std::int64_t kGpusMax = 16;

struct JobResources {
  std::int64_t shards = 0;                  // virtual shards; 0: one per block, at most 256
  std::int64_t retention_mebibytes = 1024;  // per task
  std::int64_t replicas = 1;                // backups of every shard, on other servers
  std::int64_t max_restarts = 100;          // of worker tasks, per job
  std::int64_t gpus = 0;                    // of each task, on one node; 0: it computes on the CPU
  std::string label;                        // only agents that have it run the tasks, and only them
};

struct JobSpec {
  std::string name;
  ModelSpec model;
  DataSpec data;
  TrainingSpec training;
  OptimizerSpec optimizer;
  SparsificationSpec sparsification;
  std::vector<EmbeddingTableSpec> embedding_tables;  // by number of the table
  CheckpointSpec checkpoint;
  JobResources resources;
};

// What `from` of a checkpoint names.
struct CheckpointOrigin {
  std::string job;                     // name or number
  std::optional<std::uint64_t> round;  // none: the newest
};
// Of a text that a parsed spec has.
CheckpointOrigin ParseOrigin(const std::string& text);

// A value that takes the place of the file's, or is added to it.
struct JobOverride {
  std::string path;   // "training.workers", "embedding_tables[0].width"
  std::string value;  // YAML: 4, adam, [784, 10]
};

// Parses and validates all that can be known without the files it names. Relative paths are made
// absolute against `base_directory`. kInvalid: "FILE:LINE: training.workrs: unknown key, did you
// mean `workers`?", or "--set PATH=VALUE: ..." for what an override says; all findings, one per
// line.
Result<JobSpec> ParseJobYaml(const std::string& text, const std::string& file_name,
                             const std::string& base_directory,
                             const std::vector<JobOverride>& overrides = {});

// JSON with every default filled in (pretty printed with indent >= 0).
std::string ResolvedJson(const JobSpec& spec, int indent = -1);
// The same as YAML, for people.
std::string ResolvedYaml(const JobSpec& spec);

// What is allowed and yet probably not meant, one sentence each.
std::vector<std::string> JobWarnings(const JobSpec& spec);

// The inverse of ResolvedJson; validates as ParseJobYaml does.
Result<JobSpec> ParseJobJson(const std::string& json);

}  // namespace ps
