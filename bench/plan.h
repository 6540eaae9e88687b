// The job that a run measures: its model, and what its workers push.
//
// A model is one table of `parameters` floats with plain SGD. Dense pushes carry every value;
// sparse ones `entries` values at random places, the same number in every shard but for rounding.
// (Embedding rows belong here too: another table, another kind of push.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "bench/options.h"
#include "common/layout/layout.h"
#include "common/result.h"
#include "ps-worker/core/retention_ring.h"

namespace ps::bench {

// One encoded push, as it lies in a retention ring.
struct EncodedPush {
  std::vector<std::byte> payload;
  std::vector<worker::RingPart> parts;
};

struct Plan {
  LayoutView layout;
  std::uint64_t parameters = 0;
  std::uint64_t entries = 0;        // of one push
  std::uint64_t value_bytes = 0;    // of one push, without headers and indices
  std::vector<EncodedPush> pushes;  // used in turn; all of one size if dense
  bool dense = true;
  wire::ValueCodec values = wire::ValueCodec::Fp32;

  // kUsage if the options contradict each other.
  static Result<Plan> Make(const Options& options, std::uint64_t size);
};

}  // namespace ps::bench
