// Lays the tensors of a model out as the tables of a control::Layout.
//
// Large tensors (more than `small_tensor_elements` elements and more than one
// dimension) come first, then, in a new block, the others; each group keeps the
// order of the model. See common/layout/layout.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/job/job_spec.h"
#include "common/messages/control.h"

namespace ps::worker {

struct TensorShape {
  std::string name;
  std::vector<std::int64_t> shape;

  std::uint64_t elements() const;
};

struct ParameterTable {
  control::TableInfoT table;
  std::vector<std::uint64_t> offsets;  // of each tensor, in the order given
  std::uint64_t selected_elements = 0;
};

// The table `parameters`.
ParameterTable BuildParameterTable(const std::vector<TensorShape>& tensors,
                                   std::int64_t small_tensor_elements);

// A table whose tensors lie one after the other (buffers, counters, the ledger).
control::TableInfoT BuildPlainTable(const std::string& name, control::TableRule rule,
                                    const std::vector<TensorShape>& tensors);

// Puts the job's tables of rows into the layout and its fingerprint.
void AddRowTables(const std::vector<EmbeddingTableSpec>& tables, control::LayoutT& layout);

// Numbers the blocks through `tables`, leaves empty ones out, and sets counts and fingerprint.
// `salt` goes into the fingerprint: what else must be the same on all tasks.
control::LayoutT BuildLayout(std::vector<control::TableInfoT> tables, std::uint64_t salt);

}  // namespace ps::worker
