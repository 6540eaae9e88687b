// The job that a run measures: its model, and what its workers push.
//
// A model is one table of `parameters` floats with plain SGD. Dense pushes carry every value;
// sparse ones `entries` values at random places, the same number in every shard but for rounding.
// For operations of rows it is one parameter and a table of rows beside it. Their ids are drawn
// before, so that drawing is not measured: of so many messages as keep the memory small.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "bench/options.h"
#include "common/job/job_spec.h"
#include "common/layout/layout.h"
#include "common/result.h"
#include "ps-worker/core/retention_ring.h"
#include "ps-worker/task/task_session.h"

namespace ps::bench {

// One encoded push, as it lies in a retention ring.
struct EncodedPush {
  std::vector<std::byte> payload;
  std::vector<worker::RingPart> parts;
};

struct Plan {
  control::LayoutT model;  // what a coordinator is told
  LayoutView layout;
  std::uint64_t parameters = 0;
  std::uint64_t entries = 0;        // of one push
  std::uint64_t value_bytes = 0;    // of one push, without headers and indices
  std::vector<EncodedPush> pushes;  // used in turn; all of one size if dense
  bool dense = true;
  wire::ValueCodec values = wire::ValueCodec::Fp32;

  // Of rows; their `entries` and `value_bytes` are means, as equal ids are one row.
  std::uint32_t row_width = 0;                                     // 0: none
  double rows = 0;                                                 // of one message
  std::uint64_t keys = 0;                                          // of the table
  std::vector<std::shared_ptr<const worker::RowKeys>> look_ups{};  // used in turn
  std::uint64_t filled_at_once = 0;                                // rows of a FillPush

  // kUsage if the options contradict each other.
  static Result<Plan> Make(const Options& options, Operation operation, std::uint64_t size);

  // Makes rows first .. first + filled_at_once - 1 of the table, as far as it has them.
  EncodedPush FillPush(std::uint64_t first) const;
  std::size_t max_push_bytes() const;
};

// The job that servers are told of, or would be: `workers` of them, none of which evaluates, takes
// records or needs a checkpoint.
JobSpec SpecOf(const Options& options, const Plan& plan, std::uint32_t workers);

}  // namespace ps::bench
