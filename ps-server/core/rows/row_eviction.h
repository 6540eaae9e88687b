// Which rows go when a table is full.
//
// The choice is a function of the rows' keys, ticks and numbers of updates
// alone, so that a table that was restored from a checkpoint chooses as the
// original does. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "ps-server/core/rows/row_store.h"

namespace ps::server {

enum class RowsFull {
  kRefuse,  // nothing goes; new rows are not made
  kLru,     // the longest not used, of equals the lower key
  kLfu,     // the least often updated, of equals the longest not used, then the lower key
};

// The `count` rows to remove, at most as many as there are, in the order of their numbers. Reads
// all records two or three times, and takes memory for no more than 65,536 of them beside the
// result.
std::vector<RowNumber> RowsToEvict(const RowStore& rows, std::uint64_t count, RowsFull policy);

}  // namespace ps::server
