// What the kernels of a push and of a pull cost on a GPU, beside a copy on the same device.
//
//   bench_cuda_kernels [--elements 100000000] [--ratio 0.01] [--rounds 21] [--json]
//
// The peer is cudaMemcpy from device to device, counted by the bytes that it reads and writes; a
// kernel is counted by those that it must move (ps-worker/cuda/select_kernels.h). "push" is all
// that a push does on the device: threshold from a sample, accumulation, selection, coding,
// packing. "select" is its one pass over the gradient alone. Kernels and copy take turns, and a
// figure is the median of the rounds, by the device's clock. Before it measures it makes steps
// until the residual is that of a job under way. "step and collect" is a push through
// DeviceSparsifier with the copy to the host, and "encode" what the host does then, by wall clock.
// Exit 0 if the goals hold, 1 if one is missed, 2 if the arguments are bad or CUDA fails, 3 if
// there is no device: then nothing is measured.
#include <cuda_runtime.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "bench/bench_support.h"
#include "common/codec/value_codec.h"
#include "ps-worker/cuda/device_sparsifier.h"
#include "ps-worker/cuda/pull_kernels.h"
#include "ps-worker/cuda/runtime.h"
#include "ps-worker/cuda/select_kernels.h"

namespace ps::bench {
namespace {

using namespace worker::cuda;  // NOLINT(google-build-using-namespace): all of it is measured
using worker::AccumulationRule;
using worker::Sample;
using worker::SparsifierOptions;

struct Options {
  std::uint64_t elements = 100'000'000;
  double ratio = 0.01;
  int rounds = 21;
  bool json = false;
};

constexpr double kGoal = 0.85;  // of the copy's bandwidth
constexpr double kKeptLeast = 0.8;
constexpr double kKeptMost = 1.3;
constexpr wire::ValueCodec kCodec = wire::ValueCodec::Bits2;
constexpr std::uint64_t kShift = 1u << 20;  // gradients are pieces of one longer row

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "bench_cuda_kernels: %s\n", what.c_str());
  std::exit(2);
}

void Must(cudaError_t error, const char* what) {
  if (const Status status = Checked(error, what); !status.ok()) Fail(status.error().message);
}

template <typename T>
T Must(Result<T> result) {
  if (!result.ok()) Fail(result.error().message);
  return std::move(result).value();
}

void Must(const Status& status) {
  if (!status.ok()) Fail(status.error().message);
}

// Seconds that the device takes for what `enqueue` puts on the default stream.
class DeviceTimer {
 public:
  DeviceTimer() {
    Must(cudaEventCreate(&begin_), "creating an event");
    Must(cudaEventCreate(&end_), "creating an event");
  }
  ~DeviceTimer() {
    (void)cudaEventDestroy(begin_);
    (void)cudaEventDestroy(end_);
  }
  DeviceTimer(const DeviceTimer&) = delete;
  DeviceTimer& operator=(const DeviceTimer&) = delete;

  double Time(const std::function<void()>& enqueue) {
    Must(cudaEventRecord(begin_, nullptr), "recording an event");
    enqueue();
    Must(cudaEventRecord(end_, nullptr), "recording an event");
    Must(cudaEventSynchronize(end_), "waiting for the device");
    float ms = 0;
    Must(cudaEventElapsedTime(&ms, begin_, end_), "reading the clock");
    return ms * 1e-3;
  }

 private:
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

double WallClock() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

// The figures, and whether their goals hold.
class Report {
 public:
  void Add(const std::string& name, const char* unit, double value, const nlohmann::json& peer,
           const nlohmann::json& goal, bool holds) {
    list_.push_back({{"name", name},
                     {"value", value},
                     {"unit", unit},
                     {"floor", nullptr},
                     {"peer", peer},
                     {"goal", goal},
                     {"holds", holds}});
    holds_ = holds_ && holds;
  }
  // `bytes` in `seconds`, beside a copy's bytes a second; goal 0: none.
  void AddBandwidth(const std::string& name, double bytes, double seconds, double copy,
                    double goal) {
    const double rate = bytes / seconds;
    Add(name, "GB/s", rate * 1e-9, copy * 1e-9, goal > 0 ? nlohmann::json(goal) : "",
        rate >= goal * copy);
  }
  bool holds() const { return holds_; }

  void Print(bool json) const {
    if (json) {
      std::printf("%s\n", list_.dump(2).c_str());
      return;
    }
    for (const auto& line : list_) {
      const double value = line["value"];
      std::printf("%-36s %10.4g %-5s", line["name"].get<std::string>().c_str(), value,
                  line["unit"].get<std::string>().c_str());
      if (line["peer"].is_number())
        std::printf("  %.3f of a copy", value / line["peer"].get<double>());
      std::printf("%s\n", line["holds"].get<bool>() ? "" : "  MISSED");
    }
  }

 private:
  nlohmann::ordered_json list_ = nlohmann::ordered_json::array();
  bool holds_ = true;
};

// Rows of about normal numbers on the device, in two types.
struct Gradients {
  explicit Gradients(std::uint64_t elements) {
    std::mt19937_64 random(7);
    std::vector<float> values(elements + kShift);
    // The sum of the bytes of a random word: near enough to normal, and fast.
    for (float& value : values) {
      const std::uint64_t word = random();
      int sum = 0;
      for (int byte = 0; byte < 8; ++byte) sum += static_cast<int>(word >> (8 * byte) & 255);
      value = (static_cast<float>(sum) - 1020.0f) / 209.0f;
    }
    std::vector<std::uint16_t> halves(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) halves[i] = codec::FloatToBf16(values[i]);
    wide = Must(DeviceBuffer<float>::Create(values.size()));
    narrow = Must(DeviceBuffer<std::uint16_t>::Create(values.size()));
    Must(cudaMemcpy(wide.data(), values.data(), wide.bytes(), cudaMemcpyHostToDevice),
         "copying gradients");
    Must(cudaMemcpy(narrow.data(), halves.data(), narrow.bytes(), cudaMemcpyHostToDevice),
         "copying gradients");
  }

  DeviceGradient Next(GradientType type) {
    const std::uint64_t at = random_() % kShift & ~std::uint64_t{15};
    if (type == GradientType::kFp32) return {wide.data() + at, type, 1};
    return {narrow.data() + at, type, 1};
  }

  DeviceBuffer<float> wide;
  DeviceBuffer<std::uint16_t> narrow;

 private:
  std::mt19937_64 random_{8};
};

struct Case {
  const char* name;
  AccumulationRule rule;
  GradientType type;
  double bytes;  // that must be moved for each element
};

constexpr Case kCases[] = {
    {"sgd, fp32", AccumulationRule::kPlain, GradientType::kFp32, 12},
    {"sgd, bf16", AccumulationRule::kPlain, GradientType::kBf16, 10},
    {"nesterov, fp32", AccumulationRule::kNesterov, GradientType::kFp32, 20},
    {"nesterov, bf16", AccumulationRule::kNesterov, GradientType::kBf16, 18},
};

// The kernels of a push on buffers of their own, so that each can be measured.
class Push {
 public:
  Push(const Options& options, const Case& one) : options_(options) {
    const std::uint64_t n = options.elements;
    for (int copy = 0; copy < 2; ++copy) {
      v_[copy] = Cleared(n);
      if (one.rule == AccumulationRule::kNesterov) u_[copy] = Cleared(n);
    }
    target_ = options.ratio * static_cast<double>(n);
    pool_.capacity = static_cast<std::uint32_t>(kKeptMost * target_);
    positions_ = Must(DeviceBuffer<std::uint16_t>::Create(pool_.capacity));
    values_ = Must(DeviceBuffer<float>::Create(pool_.capacity));
    slots_ = Must(DeviceBuffer<Slot>::Create(TilesOf(n)));
    workspace_ = Must(DeviceBuffer<Workspace>::Create(1));
    const std::uint64_t blocks = (n + wire::kBlockElements - 1) / wire::kBlockElements;
    const std::uint64_t bytes = blocks * (sizeof(PackedBlock) + 64) + kPackedUnit +
                                pool_.capacity * 2ull + codec::ValueBytes(kCodec, pool_.capacity);
    packed_bytes_ = Must(DeviceBuffer<std::byte>::Create(bytes));
    pool_.positions = positions_.data();
    pool_.values = values_.data();
    pool_.slots = slots_.data();
    packed_.blocks = reinterpret_cast<PackedBlock*>(packed_bytes_.data());
    packed_.bytes = packed_bytes_.data();
    packed_.first_unit =
        static_cast<std::uint32_t>((blocks * sizeof(PackedBlock) + kPackedUnit - 1) / kPackedUnit);
    packed_.units = static_cast<std::uint32_t>(bytes / kPackedUnit);
    step_.rule = one.rule;
    step_.with.momentum = 0.9f;
    step_.type = one.type;
    step_.elements = n;
    step_.selected_elements = n;
    step_.workspace = workspace_.data();
  }

  void Begin(const DeviceGradient& gradient) {
    step_.gradient = gradient.data;
    step_.before = {v_[generation_].data(), u_[generation_].data(), nullptr};
    generation_ = 1 - generation_;
    step_.after = {v_[generation_].data(), u_[generation_].data(), nullptr};
    ++steps_;
  }
  void Threshold() {
    const Sample sample = worker::PlanSample(options_.elements, target_, steps_);
    Must(cudaMemsetAsync(workspace_.data(), 0, workspace_.bytes(), nullptr), "clearing");
    Must(LaunchRank(step_, &sample, static_cast<std::uint32_t>(sample.Rank(target_)), nullptr),
         "sampling");
  }
  void Select() { Must(LaunchSelect(step_, pool_, kCodec, false, nullptr), "selecting"); }
  void Finish() { Must(LaunchFinish(step_, pool_, packed_, kCodec, nullptr), "packing"); }
  void All() {
    Threshold();
    Select();
    Finish();
  }

  // Of the last push, of the ratio's.
  double Kept() const {
    Control control;
    Must(cudaMemcpy(&control, workspace_.data(), sizeof(control), cudaMemcpyDeviceToHost),
         "reading the count");
    return control.selected / target_;
  }

 private:
  static DeviceBuffer<float> Cleared(std::uint64_t n) {
    auto buffer = Must(DeviceBuffer<float>::Create(n));
    Must(cudaMemset(buffer.data(), 0, buffer.bytes()), "clearing");
    return buffer;
  }

  const Options& options_;
  double target_ = 0;
  DeviceBuffer<float> v_[2];
  DeviceBuffer<float> u_[2];
  DeviceBuffer<std::uint16_t> positions_;
  DeviceBuffer<float> values_;
  DeviceBuffer<Slot> slots_;
  DeviceBuffer<Workspace> workspace_;
  DeviceBuffer<std::byte> packed_bytes_;
  Pool pool_;
  Packed packed_;
  StepArguments step_;
  int generation_ = 0;
  std::uint64_t steps_ = 0;
};

// A copy on the device, as large as what is measured beside it.
class Copy {
 public:
  explicit Copy(std::uint64_t elements)
      : from_(Must(DeviceBuffer<float>::Create(elements))),
        to_(Must(DeviceBuffer<float>::Create(elements))) {
    Must(cudaMemset(from_.data(), 1, from_.bytes()), "clearing");
  }
  void Run() {
    Must(
        cudaMemcpyAsync(to_.data(), from_.data(), from_.bytes(), cudaMemcpyDeviceToDevice, nullptr),
        "copying");
  }
  double bytes() const { return 2.0 * static_cast<double>(from_.bytes()); }

 private:
  DeviceBuffer<float> from_;
  DeviceBuffer<float> to_;
};

void MeasurePush(const Options& options, const Case& one, Gradients& gradients, Copy& copy,
                 Report& report) {
  Push push(options, one);
  DeviceTimer timer;
  std::vector<double> copies, all, threshold, select, finish;
  const int warmup = static_cast<int>(1 / options.ratio);
  for (int step = 0; step < warmup; ++step) {
    push.Begin(gradients.Next(one.type));
    push.All();
  }
  double kept_least = 1e9;
  double kept_most = 0;
  for (int round = 0; round < options.rounds; ++round) {
    copies.push_back(timer.Time([&] { copy.Run(); }));
    push.Begin(gradients.Next(one.type));
    all.push_back(timer.Time([&] { push.All(); }));
    kept_least = std::min(kept_least, push.Kept());
    kept_most = std::max(kept_most, push.Kept());
    push.Begin(gradients.Next(one.type));
    threshold.push_back(timer.Time([&] { push.Threshold(); }));
    select.push_back(timer.Time([&] { push.Select(); }));
    finish.push_back(timer.Time([&] { push.Finish(); }));
  }
  const std::string name = one.name;
  const double bandwidth = copy.bytes() / Median(copies);
  const double bytes = one.bytes * static_cast<double>(options.elements);
  report.AddBandwidth(name + ", push", bytes, Median(all), bandwidth, kGoal);
  report.AddBandwidth(name + ", select alone", bytes, Median(select), bandwidth, 0);
  report.Add(name + ", push, time", "ms", Median(all) * 1e3, nullptr, "", true);
  report.Add(name + ", threshold, time", "ms", Median(threshold) * 1e3, nullptr, "", true);
  report.Add(name + ", finish, time", "ms", Median(finish) * 1e3, nullptr, "", true);
  for (const auto& [what, kept] : {std::pair{"fewest", kept_least}, std::pair{"most", kept_most}}) {
    report.Add(name + ", " + what + " entries of the ratio's", "", kept, nullptr, "0.8 to 1.3",
               kept >= kKeptLeast && kept <= kKeptMost);
  }
}

void MeasureSparsifier(const Options& options, Gradients& gradients, Report& report) {
  const LayoutView layout = PlainLayout(options.elements, 256);
  SparsifierOptions sparsifier_options;
  sparsifier_options.rule = AccumulationRule::kPlain;
  sparsifier_options.value_codec = kCodec;
  const auto sparsifier =
      Must(DeviceSparsifier::Create(layout, 0, options.elements, sparsifier_options));
  std::vector<double> collect, encode;
  std::vector<std::byte> push;
  double bytes = 0;
  for (int round = 0; round < options.rounds; ++round) {
    Must(cudaDeviceSynchronize(), "waiting for the device");
    const double begin = WallClock();
    Must(sparsifier->Step(gradients.Next(GradientType::kFp32), options.ratio, nullptr));
    Must(sparsifier->Collect());
    const double collected = WallClock();
    if (push.size() < sparsifier->MaxBytes()) push.resize(2 * sparsifier->MaxBytes());
    std::size_t used = 0;
    for (std::uint32_t shard = 0; shard < layout.shard_count(); ++shard) {
      used += sparsifier->EncodeShard(ShardId(shard), push.data() + used, push.size() - used);
    }
    collect.push_back(collected - begin);
    encode.push_back(WallClock() - collected);
    bytes = static_cast<double>(used);
  }
  report.Add("sgd, fp32, step and collect", "ms", Median(collect) * 1e3, nullptr, "", true);
  report.Add("sgd, fp32, encode on the host", "ms", Median(encode) * 1e3, nullptr, "", true);
  report.Add("sgd, fp32, bytes of a push", "B/el", bytes / static_cast<double>(options.elements),
             nullptr, "", true);
  report.Add(
      "sgd, fp32, bytes copied to the host", "B/el",
      static_cast<double>(sparsifier->copied_bytes()) / static_cast<double>(options.elements),
      nullptr, "", true);
}

void MeasurePull(const Options& options, Gradients& gradients, Copy& copy, Report& report) {
  const std::uint64_t n = options.elements;
  std::vector<CopyPiece> pieces;
  for (std::uint64_t at = 0; at < n; at += wire::kBlockElements) {
    const auto elements =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(wire::kBlockElements, n - at));
    pieces.push_back({at, at, elements});
  }
  auto device_pieces = Must(DeviceBuffer<CopyPiece>::Create(pieces.size()));
  Must(cudaMemcpy(device_pieces.data(), pieces.data(), device_pieces.bytes(),
                  cudaMemcpyHostToDevice),
       "copying");
  const auto to = Must(DeviceBuffer<float>::Create(n));
  const auto count = static_cast<std::uint32_t>(pieces.size());

  // Eight pushes of the ratio's entries.
  constexpr std::uint32_t kPushes = 8;
  std::mt19937 random(9);
  std::geometric_distribution<std::uint32_t> gap(options.ratio);
  std::vector<EntryBlock> blocks;
  std::vector<EntryRun> runs;
  std::vector<std::uint16_t> positions;
  for (const CopyPiece& piece : pieces) {
    blocks.push_back({piece.to, static_cast<std::uint32_t>(runs.size()), kPushes});
    for (std::uint32_t push = 0; push < kPushes; ++push) {
      const auto first = static_cast<std::uint32_t>(positions.size());
      for (std::uint64_t at = gap(random); at < piece.elements; at += 1 + gap(random)) {
        positions.push_back(static_cast<std::uint16_t>(at));
      }
      runs.push_back({first, static_cast<std::uint32_t>(positions.size()) - first});
    }
  }
  const auto upload = [](const auto& values) {
    using T = typename std::decay_t<decltype(values)>::value_type;
    auto buffer = Must(DeviceBuffer<T>::Create(values.size()));
    Must(cudaMemcpy(buffer.data(), values.data(), buffer.bytes(), cudaMemcpyHostToDevice),
         "copying");
    return buffer;
  };
  const auto device_blocks = upload(blocks);
  const auto device_runs = upload(runs);
  const auto device_positions = upload(positions);
  const auto device_values = upload(std::vector<float>(positions.size(), 0.01f));
  const EntryList entries{device_blocks.data(), count, device_runs.data(), device_positions.data(),
                          device_values.data()};

  DeviceTimer timer;
  std::vector<double> copies, pieces_times, widen, add;
  for (int round = 0; round < options.rounds; ++round) {
    copies.push_back(timer.Time([&] { copy.Run(); }));
    pieces_times.push_back(timer.Time([&] {
      Must(LaunchCopyPieces(device_pieces.data(), count, gradients.wide.data(), to.data(), nullptr),
           "copying blocks");
    }));
    widen.push_back(timer.Time([&] {
      Must(LaunchWidenPieces(device_pieces.data(), count, gradients.narrow.data(), to.data(),
                             nullptr),
           "widening blocks");
    }));
    add.push_back(timer.Time(
        [&] { Must(LaunchAddIncrements(entries, to.data(), nullptr), "adding increments"); }));
  }
  const double bandwidth = copy.bytes() / Median(copies);
  const auto elements = static_cast<double>(n);
  report.AddBandwidth("pull, blocks of fp32", 8 * elements, Median(pieces_times), bandwidth, kGoal);
  report.AddBandwidth("pull, blocks of bf16", 6 * elements, Median(widen), bandwidth, kGoal);
  report.Add("pull, increments of 8 pushes", "ns/entry",
             Median(add) * 1e9 / static_cast<double>(positions.size()), nullptr, "", true);
}

int Main(const Options& options) {
  if (DeviceCount() == 0) {
    std::fprintf(stderr, "bench_cuda_kernels: skipped: no CUDA device\n");
    return 3;
  }
  std::fprintf(stderr, "%s\n", Must(DeviceDescription(0)).c_str());
  Report report;
  Gradients gradients(options.elements);
  Copy copy(options.elements);
  DeviceTimer timer;
  std::vector<double> copies;
  for (int round = 0; round < options.rounds; ++round) {
    copies.push_back(timer.Time([&] { copy.Run(); }));
  }
  report.Add("copy on the device", "GB/s", copy.bytes() / Median(copies) * 1e-9, nullptr, "", true);
  for (const Case& one : kCases) MeasurePush(options, one, gradients, copy, report);
  MeasureSparsifier(options, gradients, report);
  MeasurePull(options, gradients, copy, report);
  report.Print(options.json);
  return report.holds() ? 0 : 1;
}

}  // namespace
}  // namespace ps::bench

int main(int argc, char** argv) {
  ps::bench::Options options;
  CLI::App app("What the kernels of a push and of a pull cost on a GPU, beside a copy there.");
  app.add_option("--elements", options.elements, "of the gradient")
      ->check(CLI::Range(std::uint64_t{65536}, std::uint64_t{1} << 31))
      ->capture_default_str();
  app.add_option("--ratio", options.ratio, "part of them that is selected")
      ->check(CLI::Range(1e-4, 0.5))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "the median of so many is shown")
      ->check(CLI::Range(1, 999))
      ->capture_default_str();
  app.add_flag("--json", options.json, "a list of {name, value, unit, floor, peer, goal, holds}");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int status = app.exit(error);
    return status == 0 ? 0 : 2;
  }
  return ps::bench::Main(options);
}
