// What a coordinator knows, as Prometheus' text format.
#pragma once

#include <cstdint>
#include <string>

#include "coordinator/core/core.h"

namespace ps::coordinator {

// Of the REST API, since the process began.
struct ApiMetrics {
  std::uint64_t requests = 0;
  std::uint64_t refused = 0;      // without a valid token
  std::uint64_t forbidden = 0;    // with one whose role does not suffice
  std::uint64_t bad = 0;          // junk, too long, too slow, too often
  std::uint64_t connections = 0;  // that were refused as too many
  std::uint64_t handshakes = 0;   // of TLS that failed
  std::int64_t certificate_until_ms = 0;
};

// `core`: null unless it leads. Counters of jobs begin anew with each leader, as those of a
// process.
std::string MetricsText(const Core* core, std::uint64_t leader_epoch, const ApiMetrics& api);

}  // namespace ps::coordinator
