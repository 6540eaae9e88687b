// What was measured, as a table for people or as JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/histogram.h"
#include "bench/options.h"

namespace ps::bench {

struct Row {
  Operation operation = Operation::kPush;
  Carrier carrier = Carrier::kDs;
  std::uint64_t bytes = 0;    // of values (ds) or of frames (zmq) that one operation moves one way
  std::uint64_t entries = 0;  // values that one push changes
  double rows = 0;            // of an embedding table, in one operation; 0: not of rows
  std::uint32_t row_width = 0;
  std::uint32_t window = 1;
  std::uint32_t workers = 1;
  std::uint32_t servers = 1;
  std::uint32_t replicas = 0;
  std::uint32_t lanes = 1;  // of all servers
  double seconds = 0;
  std::uint64_t operations = 0;
  Histogram latency;             // of one operation, from its start to its answer
  double memory_growth_mib = 0;  // overload: of the process
  std::uint64_t pushes = 0;      // overload: of the other workers meanwhile

  // Windows with a checkpoint each, beside as many without, which are what stands above.
  struct Checkpoints {
    std::uint64_t count = 0;
    double seconds = 0;          // of these windows
    double writing_seconds = 0;  // from asking for a checkpoint until it is committed
    std::uint64_t operations = 0;
    Histogram latency;
    Histogram writing;                   // of operations that ended while one was written
    std::vector<double> losses_percent;  // of operations a second, of each beside the one before it
  };
  Checkpoints checkpoints;

  // By how much the 99th percentile is higher while a checkpoint is written.
  double StallMs() const;
  // Of operations a second, in windows with a checkpoint: the median of the pairs.
  double LossPercent() const;
  double OperationsPerSecond() const;
  double GigabytesPerSecond() const;
  double UpdatesPerSecond() const;
  double RowsPerSecond() const;
};

std::string Table(const std::vector<Row>& rows);
// A list of objects; latencies in microseconds.
std::string Json(const std::vector<Row>& rows);

}  // namespace ps::bench
