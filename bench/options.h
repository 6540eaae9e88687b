// What one run of ds-bench measures.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/messages/wire.h"

namespace ps::bench {

enum class Operation {
  kPush,      // until every shard has given its verdict
  kPull,      // of all values
  kPushPull,  // steps of a push and a pull, as a task makes them
  kRowPush,   // of gradients of rows of an embedding table: an update
  kRowPull,   // of such rows: a look-up
  kRowPushPull,
  kOverload,  // pulls of one worker while the others push without pause
  kApply,     // the rules of a lane without any socket
  kKernel,    // a plain loop over arrays: what the memory allows
};
const char* NameOf(Operation operation);

inline bool IsOfRows(Operation operation) {
  return operation == Operation::kRowPush || operation == Operation::kRowPull ||
         operation == Operation::kRowPushPull;
}
// What one message of the operation does, whatever it carries: push, pull or both.
inline bool Pushes(Operation operation) {
  return operation != Operation::kPull && operation != Operation::kRowPull;
}
inline bool Pulls(Operation operation) {
  return operation != Operation::kPush && operation != Operation::kRowPush;
}

// What carries the bytes.
enum class Carrier {
  kDs,       // the lanes of ps-server and the worker's data client
  kCluster,  // the same, over the network with the servers of a running cluster
  kZmq,      // libzmq alone: frames of the same size, nothing done with them
  kNone,     // one thread, no socket
};
const char* NameOf(Carrier carrier);

// Which ids a message of rows names.
enum class Distribution { kUniform, kZipf };
const char* NameOf(Distribution distribution);

struct RowOptions {
  std::uint32_t width = 64;     // floats of a row
  std::uint32_t ids = 512;      // drawn for a message; equal ones are one row
  std::uint64_t keys = 100000;  // of the table, all of which have a row from the start
  Distribution distribution = Distribution::kUniform;
  double zipf_exponent = 0.99;
  std::string optimizer = "adagrad";
};

struct Options {
  std::vector<Operation> operations = {Operation::kPush, Operation::kPull, Operation::kPushPull};
  Carrier carrier = Carrier::kDs;
  std::vector<std::uint64_t> sizes = {65536};  // bytes of values in a dense push to all lanes
  std::uint64_t entries = 0;                   // of a sparse push; 0: dense
  double ratio = 0;                            // the same as a share of `parameters`; 0: dense
  std::uint64_t parameters = 0;                // of the model; 0: as a dense push of the size needs
  wire::ValueCodec values = wire::ValueCodec::Fp32;
  RowOptions rows;
  std::uint32_t window = 4;
  std::uint32_t pause_ms = 0;  // kCluster: of a worker between an answer and its next pushes
  std::uint32_t workers = 1;
  std::uint32_t servers = 1;
  std::uint32_t lanes = 1;     // of a server
  std::uint32_t shards = 0;    // 0: one per block, at most 256
  std::uint32_t replicas = 0;  // kCluster: backups of each shard
  double seconds = 1;
  double warm_up_seconds = 0.2;
  double deadline_seconds = 60;        // for connecting, and for what is still open at the end
  double checkpoint_seconds = 0;       // kCluster: every other window of so long has a checkpoint
  double stall_bound_ms = 0;           // by which pushes may be slower while it is written; 0: none
  double loss_bound_percent = 0;       // of operations in windows with one; 0: none
  double p99_bound_ms = 0;             // of an overload's pulls; 0: none
  std::uint64_t memory_bound_mib = 0;  // by which an overload may make the process grow; 0: none
};

}  // namespace ps::bench
