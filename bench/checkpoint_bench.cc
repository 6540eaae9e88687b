// What checkpoints of embedding rows cost a server: writing all, writing what changed, restoring.
//
//   bench_checkpoint --dir DIR [--rows 10000000] [--width 16] [--shards 64] [--threads 2]
//                    [--dirty 2] [--json] [--keep]
//
// Rows with AdaGrad are pushed into shards as a lane has them, a checkpoint of all is written into
// DIR (a folder that is not there), `dirty` percent of the rows are pushed again, and a second
// checkpoint builds on the first. Then the shards go, the files are dropped from the system's
// cache, and each of `threads` threads restores its shards from both together, as a server's
// restore threads do. Beside that the disk: as many bytes written, and the
// same files read, by O_DIRECT, one after the other. Exit 1 if a goal is missed.
// Peaks are of the whole process (VmHWM), above what it had when the step began. DIR is removed at
// the end, unless told to stay.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/manifest.h"
#include "common/check.h"
#include "common/codec/block_codec.h"
#include "common/codec/row_codec.h"
#include "common/net/unique_fd.h"
#include "ps-server/core/segment_content.h"
#include "ps-server/core/shard_load.h"
#include "ps-server/shell/checkpoint_store.h"
#include "ps-server/shell/huge_page_memory.h"

namespace ps::bench {
namespace {

namespace fs = std::filesystem;
using server::Shard;

// Goals: of the disk's rate with O_DIRECT in the same run, or bytes a second; and bytes.
constexpr double kShareOfDisk = 0.7;
constexpr double kRestoreRate = 1e9;
constexpr double kWrittenMost = 1.15;

struct Options {
  std::string directory;
  std::uint64_t rows = 10'000'000;
  std::uint32_t width = 16;
  std::uint32_t shards = 64;
  std::uint32_t threads = 2;
  double dirty = 2;  // percent
  bool json = false;
  bool keep = false;
};

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Of /proc/self/status, in bytes.
double Memory(const char* name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(name, 0) == 0)
      return std::strtod(line.c_str() + line.find(':') + 1, nullptr) * 1024;
  }
  return 0;
}
void ResetPeak() { std::ofstream("/proc/self/clear_refs") << "5"; }

std::vector<fs::path> FilesBelow(const fs::path& directory) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  return files;
}

void DropFromCache(const fs::path& directory) {
  for (const fs::path& file : FilesBelow(directory)) {
    const net::UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
    if (fd.valid()) (void)::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
  }
}

// Bytes per second; 0 where the file system has no O_DIRECT.
double DirectReadRate(const fs::path& directory) {
  constexpr std::size_t kBytes = std::size_t{4} << 20;
  const std::unique_ptr<void, void (*)(void*)> buffer(std::aligned_alloc(4096, kBytes), std::free);
  std::uint64_t bytes = 0;
  const double begun = Now();
  for (const fs::path& file : FilesBelow(directory)) {
    const net::UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));
    if (!fd.valid()) return 0;
    for (ssize_t got = 0; (got = ::read(fd.get(), buffer.get(), kBytes)) > 0;) {
      bytes += static_cast<std::uint64_t>(got);
    }
  }
  return static_cast<double>(bytes) / (Now() - begun);
}

// Seconds to write so many bytes into one file, one piece after the other, until the disk has them;
// 0 where the file system has no O_DIRECT.
double DirectWriteSeconds(const fs::path& file, std::uint64_t bytes) {
  constexpr std::size_t kBytes = std::size_t{4} << 20;
  const std::unique_ptr<void, void (*)(void*)> buffer(std::aligned_alloc(4096, kBytes), std::free);
  std::mt19937_64 random(1);
  auto* const words = static_cast<std::uint64_t*>(buffer.get());
  for (std::size_t i = 0; i < kBytes / sizeof(*words); ++i) words[i] = random();
  const double begun = Now();
  {
    const net::UniqueFd fd(
        ::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_DIRECT, 0600));
    if (!fd.valid()) return 0;
    for (std::uint64_t written = 0; written < bytes; written += kBytes) {
      const ssize_t count = ::write(fd.get(), buffer.get(), kBytes);
      PS_CHECK(count == static_cast<ssize_t>(kBytes), count);
    }
    PS_CHECK(::fsync(fd.get()) == 0);
  }
  const double seconds = Now() - begun;
  fs::remove(file);
  return seconds;
}

class Server {
 public:
  explicit Server(const Options& options)
      : options_(options), layout_(MakeLayout()), store_(options.directory, "server") {
    LearningRateSpec rate;
    rate.base = 0.1;
    rules_.learning_rate = LearningRate(rate, 1, 1000);
    server::OptimizerRules optimizer;
    optimizer.type = server::OptimizerType::kAdagrad;
    optimizer.learning_rate = 0.1;
    server::RowRules rows;
    rows.name = "rows";
    rows.width = options.width;
    rows.optimizer = server::Optimizer(optimizer);
    rows.learning_rate = rules_.learning_rate;
    rules_.rows.push_back(rows);
  }

  void MakeShards() {
    memory_.memory = std::make_shared<server::HugePageMemory>();
    for (std::uint32_t number = 0; number < options_.shards; ++number) {
      shards_.push_back(std::make_unique<Shard>(layout_, rules_, ShardId(number), Epoch(1), 1,
                                                /*restoring=*/false, memory_));
      const wire::Code code = Init(*shards_.back());
      PS_CHECK(code == wire::Code::Applied, static_cast<int>(code));
    }
  }
  void DropShards() {
    shards_.clear();
    memory_ = {};
  }

  // The rows whose key is a multiple of `every`, batch by batch.
  std::uint64_t Push(std::uint64_t every) {
    constexpr std::size_t kBatch = 16'384;
    std::vector<std::vector<std::uint64_t>> keys(options_.shards);
    std::uint64_t pushed = 0;
    const auto flush = [&](std::uint32_t shard) {
      pushed += keys[shard].size();
      PushTo(shard, keys[shard]);
      keys[shard].clear();
    };
    for (std::uint64_t key = 0; key < options_.rows; key += every) {
      const ShardId shard = codec::ShardOfRow(key, options_.shards);
      keys[shard.value()].push_back(key);
      if (keys[shard.value()].size() == kBatch) flush(shard.value());
    }
    for (std::uint32_t shard = 0; shard < options_.shards; ++shard) {
      if (!keys[shard].empty()) flush(shard);
    }
    return pushed;
  }

  std::uint64_t Write(std::uint64_t round, std::uint64_t base) {
    std::vector<server::FrozenShard> frozen;
    for (const auto& shard : shards_) frozen.push_back(shard->Freeze(JobId(1), Round(round)));
    const std::string name = NameOf(round);
    auto written = store_.Write(name, std::move(frozen), Round(base));
    PS_CHECK(written.ok(), written.error().message);
    checkpoint::Manifest manifest;
    manifest.job = JobId(1);
    manifest.round = Round(round);
    manifest.tables = {{"bias", TableRule::Sgd, 1, {{"bias", {1}, 0, 1}}}};
    manifest.row_tables = {{"rows", options_.width}};
    manifest.spec_json = "{}";
    std::uint64_t bytes = 0;
    for (const auto& shard : *written) {
      bytes += shard.bytes;
      checkpoint::ManifestShard stored;
      stored.shard = ShardId(shard.shard);
      stored.server = "server";
      stored.epoch = Epoch(shard.epoch);
      stored.version = shard.version;
      stored.rows = shard.rows;
      stored.bytes = shard.bytes;
      stored.state_bytes = shard.state_bytes;
      stored.digest = shard.digest;
      stored.values_digest = shard.values_digest;
      for (const auto& one : shard.bases) stored.bases.emplace_back(one->round);
      manifest.shards.push_back(stored);
    }
    const auto text = checkpoint::ToJson(manifest);
    PS_CHECK(text.ok(), text.error().message);
    const Status kept = store_.WriteManifest(name, {"server"}, *text);
    PS_CHECK(kept.ok(), kept.error().message);
    return bytes;
  }

  void Restore(std::uint64_t round) {
    memory_.memory = std::make_shared<server::HugePageMemory>();
    shards_.resize(options_.shards);
    std::vector<std::thread> threads;
    for (std::uint32_t thread = 0; thread < options_.threads; ++thread) {
      threads.emplace_back([this, round, thread] {
        server::RestoreReader reader(options_.directory);
        for (std::uint32_t i = thread; i < options_.shards; i += options_.threads) {
          shards_[i] = std::make_unique<Shard>(layout_, rules_, ShardId(i), Epoch(2), 2,
                                               /*restoring=*/true, memory_);
          server::ShardLoad load(*shards_[i], {false, true});
          const Status read = reader.Read(NameOf(round), ShardId(i), load);
          PS_CHECK(read.ok(), read.error().message);
          load.Finish();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  std::uint64_t state_bytes() const {
    return options_.rows * (16 + 8 * std::uint64_t{options_.width});
  }
  static std::string NameOf(std::uint64_t round) { return "job-1/ckpt-" + std::to_string(round); }

 private:
  LayoutView MakeLayout() const {
    control::LayoutT layout;
    auto info = std::make_unique<control::RowTableInfoT>();
    info->name = "rows";
    info->width = options_.width;
    layout.row_tables.push_back(std::move(info));
    auto dense = std::make_unique<control::TableInfoT>();
    dense->name = "bias";
    dense->elements = 1;
    dense->block_elements = {1};
    layout.tables.push_back(std::move(dense));
    layout.blocks = 1;
    layout.parameters = 1;
    auto view = LayoutView::Create(layout, options_.shards);
    PS_CHECK(view.ok(), view.error().message);
    return std::move(view).value();
  }

  // A job has at least one block: here of one element.
  wire::Code Init(Shard& shard) const {
    if (layout_.shard_first_block(shard.id()) == layout_.shard_last_block(shard.id())) {
      return shard.Init({});
    }
    const float zero = 0;
    std::vector<std::byte> bytes(
        codec::MaxEncodedBytes(1, 1, wire::IndexCodec::Dense, wire::ValueCodec::Fp32));
    bytes.resize(codec::EncodeBlock(0, 1, {}, {&zero, 1}, wire::IndexCodec::Dense,
                                    wire::ValueCodec::Fp32, bytes.data(), {}));
    std::vector<codec::BlockView> blocks;
    const Status parsed = codec::ParseSegment(
        bytes, [](std::uint32_t) { return 1u; }, blocks);
    PS_CHECK(parsed.ok(), parsed.error().message);
    return shard.Init(blocks);
  }

  void PushTo(std::uint32_t shard, const std::vector<std::uint64_t>& keys) {
    const std::vector<float> values(keys.size() * options_.width, 0.5f);
    constexpr auto kContent = codec::RowContent::kKeysAndValues;
    std::vector<std::byte> bytes(
        codec::MaxRowBytes(keys.size(), options_.width, kContent, wire::ValueCodec::Fp32));
    bytes.resize(codec::EncodeRows(0, keys, values, options_.width, kContent,
                                   wire::ValueCodec::Fp32, bytes.data()));
    server::SegmentContent content;
    const Status parsed = server::ParsePush(layout_, ShardId(shard), bytes, content);
    PS_CHECK(parsed.ok(), parsed.error().message);
    const server::Member member{WorkerId(0), Incarnation(1), Clock(0)};
    Shard& to = *shards_[shard];
    const auto verdict =
        to.Push(member, {Clock(to.Watermark(member).value() + 1), to.version(), 1024, false},
                content.blocks, 1, content.rows);
    PS_CHECK(verdict.code == wire::Code::Applied, static_cast<int>(verdict.code));
  }

  const Options options_;
  const LayoutView layout_;
  server::JobRules rules_;
  server::CheckpointStore store_;
  server::ShardMemory memory_;
  std::vector<std::unique_ptr<Shard>> shards_;
};

int Run(const Options& options) {
  std::error_code error;
  if (fs::exists(options.directory, error)) {
    std::fprintf(stderr, "bench_checkpoint: %s is there already\n", options.directory.c_str());
    return 2;
  }
  fs::create_directories(options.directory);
  Server server(options);
  nlohmann::json report;
  const auto step = [&](const char* name, const auto& what) {
    ResetPeak();
    const double before = Memory("VmRSS");
    const double begun = Now();
    const std::clock_t cpu_begun = std::clock();
    const double bytes = static_cast<double>(what());
    const double seconds = Now() - begun;
    const double cpu = static_cast<double>(std::clock() - cpu_begun) / CLOCKS_PER_SEC;
    report[name] = {{"bytes", bytes},
                    {"seconds", seconds},
                    {"processor_seconds", cpu},
                    {"bytes_per_second", bytes / seconds},
                    {"memory_before", before},
                    {"memory_after", Memory("VmRSS")},
                    {"memory_peak", Memory("VmHWM")}};
    if (options.json) return;
    std::printf(
        "%-12s %7.2f GB %7.2f s %6.2f GB/s, %6.2f s of processors   "
        "memory %6.2f -> %6.2f GB, peak %6.2f GB\n",
        name, bytes / 1e9, seconds, bytes / 1e9 / seconds, cpu, before / 1e9, Memory("VmRSS") / 1e9,
        Memory("VmHWM") / 1e9);
    std::fflush(stdout);
  };
  server.MakeShards();
  step("fill", [&] {
    server.Push(1);
    return server.state_bytes();
  });
  step("write", [&] { return server.Write(1, 0); });
  // Beside the folder: on the same disk.
  const auto written = report["write"]["bytes"].get<double>();
  step("write direct", [&] {
    const double seconds =
        DirectWriteSeconds(options.directory + ".direct", static_cast<std::uint64_t>(written));
    return seconds > 0 ? written : 0;
  });
  const auto every = static_cast<std::uint64_t>(100 / std::max(options.dirty, 0.01));
  const std::uint64_t dirty = server.Push(every) * (16 + 8 * std::uint64_t{options.width});
  step("write change", [&] { return server.Write(2, 1); });
  server.DropShards();
  DropFromCache(options.directory);
  step("read direct", [&] {
    const double begun = Now();
    return DirectReadRate(options.directory) * (Now() - begun);
  });
  DropFromCache(options.directory);
  step("restore", [&] {
    server.Restore(2);
    return server.state_bytes();
  });
  const double ratio = report["write change"]["bytes"].get<double>() / static_cast<double>(dirty);
  const auto rate = [&](const char* name) {
    return report[name]["bytes_per_second"].get<double>();
  };
  const auto share = [&](const char* name, const char* of) {
    return rate(of) > 0 ? rate(name) / rate(of) : 0;
  };
  const double writes = share("write", "write direct");
  const double reads = share("restore", "read direct");
  const bool holds = writes >= kShareOfDisk && ratio <= kWrittenMost &&
                     (reads >= kShareOfDisk || rate("restore") >= kRestoreRate);
  report["written_per_dirty_byte"] = ratio;
  report["write_share_of_disk"] = writes;
  report["restore_share_of_disk"] = reads;
  report["holds"] = holds;
  if (options.json) {
    std::printf("%s\n", report.dump(1).c_str());
  } else {
    std::printf(
        "written at %.2f of the disk's rate (goal %.1f), restored at %.2f (goal %.1f, or %.0f "
        "GB/s), written for each dirty byte %.3f (goal %.2f)\n",
        writes, kShareOfDisk, reads, kShareOfDisk, kRestoreRate / 1e9, ratio, kWrittenMost);
  }
  server.DropShards();
  if (!options.keep) fs::remove_all(options.directory, error);
  return holds ? 0 : 1;
}

}  // namespace
}  // namespace ps::bench

int main(int argc, char** argv) {
  ps::bench::Options options;
  CLI::App app{"what checkpoints of embedding rows cost a server"};
  app.add_option("--dir", options.directory)->required();
  app.add_option("--rows", options.rows)->check(CLI::Range(1, 1'000'000'000));
  app.add_option("--width", options.width)->check(CLI::Range(1, 1024));
  app.add_option("--shards", options.shards)->check(CLI::Range(1, 4096));
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 64));
  app.add_option("--dirty", options.dirty, "percent")->check(CLI::Range(0.01, 100.0));
  app.add_flag("--json", options.json);
  app.add_flag("--keep", options.keep, "DIR stays");
  CLI11_PARSE(app, argc, argv);
  return ps::bench::Run(options);
}
