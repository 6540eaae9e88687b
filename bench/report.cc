#include "bench/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <utility>

namespace ps::bench {
namespace {

double Microseconds(std::uint64_t ns) { return static_cast<double>(ns) / 1000; }

double PerSecond(double count, double seconds) { return seconds > 0 ? count / seconds : 0; }

std::string Size(std::uint64_t bytes) {
  constexpr std::array<const char*, 4> kUnits = {"B", "KiB", "MiB", "GiB"};
  std::size_t unit = 0;
  auto size = static_cast<double>(bytes);
  for (; size >= 1024 && unit + 1 < kUnits.size(); ++unit) size /= 1024;
  return fmt::format("{:.4g} {}", size, kUnits[unit]);
}

std::string Count(double count) {
  if (count >= 1e6) return fmt::format("{:.4g} M", count / 1e6);
  if (count >= 1e4) return fmt::format("{:.4g} k", count / 1e3);
  return fmt::format("{:.4g}", count);
}

}  // namespace

const char* NameOf(Operation operation) {
  switch (operation) {
    case Operation::kPush: return "push";
    case Operation::kPull: return "pull";
    case Operation::kPushPull: return "pushpull";
    case Operation::kRowPush: return "rowpush";
    case Operation::kRowPull: return "rowpull";
    case Operation::kRowPushPull: return "rowpushpull";
    case Operation::kOverload: return "overload";
    case Operation::kApply: return "apply";
    case Operation::kKernel: return "kernel";
  }
  return "?";
}

const char* NameOf(Distribution distribution) {
  switch (distribution) {
    case Distribution::kUniform: return "uniform";
    case Distribution::kZipf: return "zipf";
  }
  return "?";
}

const char* NameOf(Carrier carrier) {
  switch (carrier) {
    case Carrier::kDs: return "ds";
    case Carrier::kCluster: return "cluster";
    case Carrier::kZmq: return "zmq";
    case Carrier::kNone: return "none";
  }
  return "?";
}

double Row::OperationsPerSecond() const {
  return PerSecond(static_cast<double>(operations), seconds);
}
double Row::StallMs() const {
  return (static_cast<double>(checkpoints.writing.Percentile(0.99)) -
          static_cast<double>(latency.Percentile(0.99))) /
         1e6;
}
double Row::LossPercent() const {
  std::vector<double> losses = checkpoints.losses_percent;
  if (losses.empty()) return 0;
  std::sort(losses.begin(), losses.end());
  const std::size_t middle = losses.size() / 2;
  return losses.size() % 2 == 1 ? losses[middle] : (losses[middle - 1] + losses[middle]) / 2;
}
double Row::GigabytesPerSecond() const {
  return OperationsPerSecond() * static_cast<double>(bytes) / 1e9;
}
double Row::UpdatesPerSecond() const {
  return OperationsPerSecond() * static_cast<double>(entries);
}
double Row::RowsPerSecond() const { return OperationsPerSecond() * rows; }

std::string Table(const std::vector<Row>& rows) {
  std::string table = fmt::format(
      "{:<11} {:<7} {:>9} {:>9} {:>7} {:>6} {:>7} {:>5} {:>9} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} "
      "{:>9} {:>9}\n",
      "operation", "over", "size", "entries", "rows", "window", "workers", "lanes", "ops/s", "GB/s",
      "updates/s", "rows/s", "p50 us", "p90 us", "p99 us", "p99.9 us", "max us");
  for (const Row& row : rows) {
    table += fmt::format(
        "{:<11} {:<7} {:>9} {:>9} {:>7} {:>6} {:>7} {:>5} {:>9} {:>7.3f} {:>9} {:>9} {:>9.1f} "
        "{:>9.1f} {:>9.1f} {:>9.1f} {:>9.1f}\n",
        NameOf(row.operation), NameOf(row.carrier), Size(row.bytes),
        row.entries > 0 ? std::to_string(row.entries) : "-", row.rows > 0 ? Count(row.rows) : "-",
        row.window, row.workers, row.lanes, Count(row.OperationsPerSecond()),
        row.GigabytesPerSecond(), row.entries > 0 ? Count(row.UpdatesPerSecond()) : "-",
        row.rows > 0 ? Count(row.RowsPerSecond()) : "-", Microseconds(row.latency.Percentile(0.5)),
        Microseconds(row.latency.Percentile(0.9)), Microseconds(row.latency.Percentile(0.99)),
        Microseconds(row.latency.Percentile(0.999)), Microseconds(row.latency.max()));
    if (row.operation == Operation::kOverload) {
      table += fmt::format("          beside {} pushes/s; memory grew by {:.0f} MiB\n",
                           Count(PerSecond(static_cast<double>(row.pushes), row.seconds)),
                           row.memory_growth_mib);
    }
    if (row.checkpoints.count > 0) {
      const Row::Checkpoints& with = row.checkpoints;
      table += fmt::format(
          "          with a checkpoint in each of {} windows, written in {:.2f} s: {} ops/s "
          "({:.1f} % less, the median), p99 {:.1f} us while it is written ({:.2f} ms more)\n",
          with.count, PerSecond(with.writing_seconds, static_cast<double>(with.count)),
          Count(PerSecond(static_cast<double>(with.operations), with.seconds)), row.LossPercent(),
          Microseconds(with.writing.Percentile(0.99)), row.StallMs());
    }
  }
  return table;
}

nlohmann::ordered_json CheckpointsJson(const Row& row) {
  const Row::Checkpoints& checkpoints = row.checkpoints;
  nlohmann::ordered_json json;
  json["count"] = checkpoints.count;
  json["seconds"] = checkpoints.seconds;
  json["writing_s"] =
      PerSecond(checkpoints.writing_seconds, static_cast<double>(checkpoints.count));
  json["ops_per_s"] = PerSecond(static_cast<double>(checkpoints.operations), checkpoints.seconds);
  json["p99_us"] = Microseconds(checkpoints.latency.Percentile(0.99));
  json["max_us"] = Microseconds(checkpoints.latency.max());
  json["writing_operations"] = checkpoints.writing.count();
  json["writing_p50_us"] = Microseconds(checkpoints.writing.Percentile(0.5));
  json["writing_p99_us"] = Microseconds(checkpoints.writing.Percentile(0.99));
  json["writing_max_us"] = Microseconds(checkpoints.writing.max());
  json["stall_ms"] = row.StallMs();
  json["loss_percent"] = row.LossPercent();
  json["losses_percent"] = checkpoints.losses_percent;
  return json;
}

std::string Json(const std::vector<Row>& rows) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Row& row : rows) {
    nlohmann::ordered_json one;
    one["operation"] = NameOf(row.operation);
    one["over"] = NameOf(row.carrier);
    one["bytes"] = row.bytes;
    one["entries"] = row.entries;
    one["rows"] = row.rows;
    one["row_width"] = row.row_width;
    one["window"] = row.window;
    one["workers"] = row.workers;
    one["servers"] = row.servers;
    one["replicas"] = row.replicas;
    one["lanes"] = row.lanes;
    one["seconds"] = row.seconds;
    one["operations"] = row.operations;
    one["ops_per_s"] = row.OperationsPerSecond();
    one["gb_per_s"] = row.GigabytesPerSecond();
    one["updates_per_s"] = row.UpdatesPerSecond();
    one["rows_per_s"] = row.RowsPerSecond();
    for (const auto& [name, share] : {std::pair("p50_us", 0.5), std::pair("p90_us", 0.9),
                                      std::pair("p99_us", 0.99), std::pair("p99_9_us", 0.999)}) {
      one[name] = Microseconds(row.latency.Percentile(share));
    }
    one["max_us"] = Microseconds(row.latency.max());
    if (row.operation == Operation::kOverload) {
      one["pushes_per_s"] = PerSecond(static_cast<double>(row.pushes), row.seconds);
      one["memory_growth_mib"] = row.memory_growth_mib;
    }
    if (row.checkpoints.count > 0) one["checkpoints"] = CheckpointsJson(row);
    list.push_back(std::move(one));
  }
  return list.dump(2);
}

}  // namespace ps::bench
