// libzmq alone, for comparison: a DEALER and a ROUTER over tcp loopback in contexts of their own,
// with the socket options of a lane and its workers, blocking calls and frames sent without a copy.
//
// push: a frame of the size, answered by a small one. pushpull: answered by the same frame (an
// echo). pull: a small one, answered by a frame of the size. Nothing is done with the bytes.
#pragma once

#include "bench/options.h"
#include "bench/report.h"
#include "common/result.h"

namespace ps::bench {

// kTimeout if an answer does not come in time.
Result<Row> MeasureTransport(const Options& options, Operation operation, std::uint64_t size);

}  // namespace ps::bench
