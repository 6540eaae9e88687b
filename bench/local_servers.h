// Lanes of ps-server in this process, as a server runs them, with one job on them.
//
// They listen on tcp loopback and have a libzmq context (and its I/O thread) of their own, as the
// processes of a cluster have. What is missing of a server is its control loop and its checkpoints.
// One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "bench/options.h"
#include "bench/plan.h"
#include "common/ids.h"
#include "common/messages/control.h"
#include "common/net/context.h"
#include "common/result.h"
#include "ps-server/shell/lane.h"

namespace ps::bench {

inline constexpr JobId kLocalJob{1};

class LocalServers {
 public:
  static Result<std::unique_ptr<LocalServers>> Start(const Options& options, const Plan& plan,
                                                     std::uint32_t workers);
  ~LocalServers();

  const control::MapT& map() const { return map_; }
  static Incarnation IncarnationOf(std::uint32_t worker) { return Incarnation(worker + 1); }

  struct Content {
    std::uint64_t pushes_applied = 0;  // by a shard
    std::uint64_t rows = 0;
  };
  // The sum over all lanes, as of now. kTimeout if a lane does not answer.
  Result<Content> Count(double deadline_seconds) const;

 private:
  LocalServers();

  net::Context context_;
  control::MapT map_;
  std::vector<std::unique_ptr<server::Lane>> lanes_;
};

}  // namespace ps::bench
