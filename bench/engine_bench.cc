// What a step of a task takes on a GPU, and where its time goes.
//
//   bench_engine [--model mlp|transformer|FILE.pt] [--layers 1024,4096,4096,1000]
//                [--transformer DEPTH,HEADS,WIDTH,CONTEXT] [--input-shape 3,32,32] [--classes 10]
//                [--batch 4096] [--ratio 0.01] [--precision auto] [--steps 50]
//                [--json]
//
// FILE.pt is a TorchScript module, which needs --input-shape and --classes. A step is that of
// ps-task without the network: the batch goes to the device, the model computes, the sparsifier
// selects, the host encodes what is packed, and what was pushed comes back as if it were pulled.
// Records are random, and in the host's memory. Times are medians by wall clock. The parts are
// measured one after the other: "compute" and "select and copy" wait for the device, "encode" and
// "pull" are the host's. A step is measured as a task does it: these two while the device computes
// the next one. Exit 0, or 2 if the arguments are bad or CUDA fails, 3 if there is no device.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bench/bench_support.h"
#include "common/codec/block_codec.h"
#include "common/job/job_spec.h"
#include "common/layout/layout.h"
#include "ps-worker/core/precision.h"
#include "ps-worker/engine/model.h"
#include "ps-worker/engine/task_device.h"

namespace ps::bench {
namespace {

struct Options {
  std::string model = "mlp";
  std::vector<std::int64_t> layers = {1024, 4096, 4096, 1000};
  std::vector<std::int64_t> transformer = {6, 8, 512, 256};
  std::vector<std::int64_t> input_shape;
  std::int64_t classes = 10;
  std::uint32_t batch = 4096;
  double ratio = 0.01;
  std::string precision = "auto";
  int steps = 50;
  bool json = false;
};

constexpr int kWarmUp = 10;
constexpr std::uint32_t kBatches = 4;  // that take turns

[[noreturn]] void Fail(const Error& error, int status) {
  std::fprintf(stderr, "bench_engine: %s\n", error.message.c_str());
  std::exit(status);
}

template <typename T>
T Must(Result<T> result) {
  if (!result.ok()) Fail(result.error(), 2);
  return std::move(result).value();
}

void Must(const Status& status) {
  if (!status.ok()) Fail(status.error(), 2);
}

JobSpec SpecOf(const Options& options) {
  JobSpec spec;
  spec.resources.gpus = 1;
  spec.training.loss = "cross_entropy";
  spec.training.metric = "accuracy";
  if (options.model == "mlp") {
    spec.model.type = "mlp";
    spec.model.layers = options.layers;
  } else if (options.model == "transformer") {
    spec.model.type = "transformer";
    spec.model.depth = options.transformer[0];
    spec.model.heads = options.transformer[1];
    spec.model.width = options.transformer[2];
  } else {
    spec.model.type = "torchscript";
    spec.model.file = options.model;
    spec.model.input_shape = options.input_shape;
  }
  return spec;
}

// Milliseconds since the last call.
class Clock {
 public:
  double Lap() {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double, std::milli>(now - std::exchange(last_, now)).count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// The sparse blocks of a push, with zeros.
std::vector<std::byte> WithoutValues(const std::vector<std::byte>& push, const LayoutView& view) {
  std::vector<codec::BlockView> blocks;
  Must(codec::ParseSegment(
      push, [&](std::uint32_t block) { return view.block(block).elements; }, blocks));
  std::vector<std::byte> bytes;
  std::vector<std::uint16_t> indices;
  for (const auto& block : blocks) {
    if (block.dense()) continue;
    codec::DecodeIndices(block, indices);
    const std::vector<float> zeros(indices.size());
    const std::uint32_t number = block.header.block();
    const std::uint32_t elements = view.block(number).elements;
    const std::size_t used = bytes.size();
    bytes.resize(used + codec::MaxEncodedBytes(elements, block.count(), wire::IndexCodec::Rice,
                                               wire::ValueCodec::Bits2));
    bytes.resize(used + codec::EncodeBlock(number, elements, indices, zeros, wire::IndexCodec::Rice,
                                           wire::ValueCodec::Bits2, bytes.data() + used, {}));
  }
  return bytes;
}

int Run(const Options& options) {
  const JobSpec spec = SpecOf(options);
  auto device = worker::ChooseDevice(spec);
  if (!device.ok()) Fail(device.error(), 3);
  worker::SetComputeThreads(4);
  const auto precision =
      Must(worker::ChoosePrecision(options.precision, device->models[0].compute));
  const bool text = options.model == "transformer";
  const auto context = static_cast<std::uint64_t>(options.transformer[3]);
  const auto model = Must(worker::Model::Create(spec, text ? context : 0, device->models[0]));
  const auto view =
      Must(LayoutView::Create(model->layout(), std::min(model->layout().blocks, 16u)));
  worker::SparsifierOptions sparsifier;
  sparsifier.value_codec = wire::ValueCodec::Bits2;
  const auto parameters = Must(device->make_parameters(*model, view, sparsifier));

  std::uint64_t features = text ? context : 1;
  if (options.model == "mlp") {
    features = static_cast<std::uint64_t>(options.layers.front());
  } else if (!text) {
    for (const auto extent : options.input_shape) features *= static_cast<std::uint64_t>(extent);
  }
  const std::int64_t classes = text                     ? 256
                               : options.model == "mlp" ? options.layers.back()
                                                        : options.classes;
  const std::size_t labels_each = text ? context : 1;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(kBatches * options.batch * features);
  for (float& value : values) {
    value = text ? static_cast<float>(random() % 256) : normal(random);
  }
  std::vector<float> labels(std::size_t{kBatches} * options.batch * labels_each);
  for (float& label : labels) {
    label = static_cast<float>(random() % static_cast<std::uint64_t>(classes));
  }

  const auto batch_of = [&](int step) {
    const std::size_t at = static_cast<std::size_t>(step) % kBatches * options.batch;
    worker::Batch batch;
    batch.features = std::span(values).subspan(at * features, options.batch * features);
    batch.labels = std::span(labels).subspan(at * labels_each, options.batch * labels_each);
    batch.records = options.batch;
    return batch;
  };
  worker::StepMode mode;
  mode.precision = precision;
  std::vector<std::byte> push(parameters->MaxBytes());
  std::size_t push_bytes = 0;
  const auto encode_push = [&] {
    push.resize(parameters->MaxBytes());
    std::size_t used = 0;
    for (std::uint32_t shard = 0; shard < view.shard_count(); ++shard) {
      used += parameters->EncodeShard(ShardId(shard), push.data() + used, push.size() - used);
    }
    push.resize(used);
    push_bytes = used;
  };
  // What another worker's push of as many entries would bring, but for its values, which are zero:
  // the model is to stay what it is.
  std::vector<std::byte> answer;
  std::vector<codec::BlockView> blocks;
  const auto apply_pull = [&] {
    Must(codec::ParseSegment(
        answer, [&](std::uint32_t block) { return view.block(block).elements; }, blocks));
    for (const auto& block : blocks) {
      Must(parameters->Apply(view.block(block.header.block()), block, /*increments=*/true));
    }
    Must(parameters->EndPull());
  };

  // One after the other: where the time goes.
  std::vector<double> compute, select, encode, pull, total;
  for (int step = 0; step < kWarmUp + options.steps; ++step) {
    Clock clock;
    Must(model->Step(batch_of(step), mode));
    const double computed = clock.Lap();
    Must(parameters->Step(options.ratio));
    const double selected = clock.Lap();
    encode_push();
    const double encoded = clock.Lap();
    if (answer.empty()) answer = WithoutValues(push, view);
    clock.Lap();
    apply_pull();
    const double pulled = clock.Lap();
    if (step < kWarmUp) continue;
    compute.push_back(computed);
    select.push_back(selected);
    encode.push_back(encoded);
    pull.push_back(pulled);
  }
  // As a task does it: the host's part of a step while the device computes the next one.
  const std::function<void()> meanwhile = [&] {
    encode_push();
    apply_pull();
  };
  Must(model->Step(batch_of(0), mode));
  Must(parameters->Step(options.ratio));
  mode.meanwhile = &meanwhile;
  for (int step = 0; step < kWarmUp + options.steps; ++step) {
    Clock clock;
    Must(model->Step(batch_of(step), mode));
    Must(parameters->Step(options.ratio));
    const double took = clock.Lap();
    if (step >= kWarmUp) total.push_back(took);
  }

  const double step_ms = Median(total);
  const nlohmann::json result = {{"model", options.model},
                                 {"parameters", model->layout().parameters},
                                 {"batch", options.batch},
                                 {"precision", worker::PrecisionName(precision)},
                                 {"compute_ms", Median(compute)},
                                 {"select_and_copy_ms", Median(select)},
                                 {"encode_ms", Median(encode)},
                                 {"pull_ms", Median(pull)},
                                 {"step_ms", step_ms},
                                 {"push_bytes", push_bytes},
                                 {"samples_per_second", 1000.0 * options.batch / step_ms}};
  if (options.json) {
    std::puts(result.dump().c_str());
  } else {
    for (const auto& [key, value] : result.items()) {
      std::printf("%-20s %s\n", key.c_str(), value.dump().c_str());
    }
  }
  return 0;
}

}  // namespace
}  // namespace ps::bench

int main(int argc, char** argv) {
  ps::bench::Options options;
  CLI::App app("What a step of a task takes on a GPU.", "bench_engine");
  app.add_option("--model", options.model, "mlp, transformer, or a TorchScript file")
      ->capture_default_str();
  app.add_option("--layers", options.layers, "Widths of the mlp")->delimiter(',');
  app.add_option("--transformer", options.transformer, "Its depth, heads, width and context")
      ->delimiter(',')
      ->expected(4);
  app.add_option("--input-shape", options.input_shape, "Of a record of the file's")->delimiter(',');
  app.add_option("--classes", options.classes, "Of the file's")->capture_default_str();
  app.add_option("--batch", options.batch, "Records of a step")
      ->capture_default_str()
      ->check(CLI::Range(1u, 1u << 20));
  app.add_option("--ratio", options.ratio, "Part of the gradient that is pushed")
      ->capture_default_str()
      ->check(CLI::Range(1e-6, 1.0));
  app.add_option("--precision", options.precision, "auto, fp32, bf16 or fp16")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "fp32", "bf16", "fp16"}));
  app.add_option("--steps", options.steps, "That are measured")
      ->capture_default_str()
      ->check(CLI::Range(1, 1'000'000));
  app.add_flag("--json", options.json, "One line of JSON");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return ps::bench::Run(options);
}
