// The counters of a server as Prometheus' text format.
#pragma once

#include <string>
#include <vector>

#include "ps-server/shell/lane.h"
#include "ps-server/shell/scrubber.h"

namespace ps::server {

// What the control loop counts.
struct ControlCounters {
  std::uint64_t checkpoints_written = 0;
  std::uint64_t checkpoints_failed = 0;
  std::uint64_t checkpoint_bytes = 0;
  std::uint64_t parts_copied = 0;
  std::uint64_t copied_bytes = 0;
  std::uint64_t shards_restored = 0;
  std::uint64_t restores_failed = 0;
  std::uint64_t unsent_messages = 0;  // to the coordinator
  bool registered = false;
  bool scrubs = false;
  ScrubCounters scrub;
  std::uint64_t parts_repaired = 0;
  std::uint64_t repairs_failed = 0;
};

// One lane's status per element, by number.
std::string MetricsText(const std::vector<LaneStatus>& lanes, const ControlCounters& control);

// "stale-map", "not-live", ...: how a Code is called in metrics and logs.
const char* CodeName(wire::Code code);

}  // namespace ps::server
