// The rows of embedding tables that a batch reads.
//
// Where a table has one column of ids the key of a row is the id; where it has several the number
// of the column goes into the key (docs/job-file.md, `embedding_tables`). A batch reads each row
// once, whatever the number of its ids there.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/job/job_spec.h"
#include "ps-worker/core/row_push.h"

namespace ps::worker {

struct BatchRows {
  std::vector<TableRows> tables;     // one entry a table of the job; values once they were pulled
  std::vector<std::uint32_t> index;  // by record and id column: place in the keys of its table
};

// The key of an id in column `column` (from 0) of the `columns` of its table.
std::uint64_t RowKey(std::uint64_t id, std::uint32_t column, std::uint32_t columns);

// All id columns of a job: those of its tables, one table after the other.
std::vector<std::string> IdColumns(const std::vector<EmbeddingTableSpec>& tables);
// The table of each of them.
std::vector<std::uint32_t> IdColumnTables(const std::vector<EmbeddingTableSpec>& tables);

// Keys and index for `ids`, which has one for each id column, record after record.
void FindRows(const std::vector<EmbeddingTableSpec>& tables, std::span<const std::uint64_t> ids,
              BatchRows& rows);

// How the tables' gradients are written in a push.
std::vector<wire::ValueCodec> RowCodecs(const std::vector<EmbeddingTableSpec>& tables);

}  // namespace ps::worker
