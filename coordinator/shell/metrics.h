// What a coordinator knows, as Prometheus' text format.
#pragma once

#include <cstdint>
#include <string>

#include "coordinator/core/core.h"

namespace ps::coordinator {

// `core`: null unless it leads. Counters of jobs begin anew with each leader, as those of a
// process.
std::string MetricsText(const Core* core, std::uint64_t leader_epoch);

}  // namespace ps::coordinator
