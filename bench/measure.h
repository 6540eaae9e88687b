// The measurements of ds-bench that are not libzmq's: over the lanes of ps-server, and in process.
#pragma once

#include "bench/load.h"
#include "bench/options.h"
#include "bench/report.h"
#include "common/result.h"

namespace ps::bench {

// Any but kApply and kKernel, through lanes of this process. kTimeout if something does not
// answer; kInternal if the lanes have not applied exactly what the workers were told.
Result<Row> MeasureLocal(const Options& options, Operation operation, std::uint64_t size,
                         const Say& say);

// kApply: a lane's rules without a socket, on the pushes of kPush. kKernel: a plain loop that adds
// the same values at the same places; sparse ones from an array of 32-bit indices.
Result<Row> MeasureInProcess(const Options& options, Operation operation, std::uint64_t size);

}  // namespace ps::bench
