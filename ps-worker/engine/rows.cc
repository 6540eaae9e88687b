#include "ps-worker/engine/rows.h"

#include <xxhash.h>

#include <algorithm>
#include <array>

#include "common/codec/row_codec.h"

namespace ps::worker {

std::uint64_t RowKey(std::uint64_t id, std::uint32_t column, std::uint32_t columns) {
  if (columns < 2) return id;
  std::array<unsigned char, sizeof(id)> bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<unsigned char>(id >> (8 * i));
  }
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), column);
}

std::vector<std::string> IdColumns(const std::vector<EmbeddingTableSpec>& tables) {
  std::vector<std::string> columns;
  for (const auto& table : tables) {
    columns.insert(columns.end(), table.columns.begin(), table.columns.end());
  }
  return columns;
}

std::vector<std::uint32_t> IdColumnTables(const std::vector<EmbeddingTableSpec>& tables) {
  std::vector<std::uint32_t> numbers;
  for (std::uint32_t i = 0; i < tables.size(); ++i) {
    numbers.insert(numbers.end(), tables[i].columns.size(), i);
  }
  return numbers;
}

void FindRows(const std::vector<EmbeddingTableSpec>& tables, std::span<const std::uint64_t> ids,
              BatchRows& rows) {
  std::size_t all = 0;
  for (const auto& table : tables) all += table.columns.size();
  const std::size_t records = all == 0 ? 0 : ids.size() / all;
  rows.tables.resize(tables.size());
  rows.index.resize(records * all);
  std::vector<std::uint64_t> found;  // by record and column of the table
  std::size_t first = 0;
  for (std::size_t t = 0; t < tables.size(); ++t) {
    const std::size_t columns = tables[t].columns.size();
    found.clear();
    for (std::size_t record = 0; record < records; ++record) {
      for (std::size_t column = 0; column < columns; ++column) {
        found.push_back(RowKey(ids[record * all + first + column],
                               static_cast<std::uint32_t>(column),
                               static_cast<std::uint32_t>(columns)));
      }
    }
    auto& keys = rows.tables[t].keys;
    keys = found;
    std::sort(keys.begin(), keys.end());
    keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
    rows.tables[t].values.clear();
    for (std::size_t record = 0; record < records; ++record) {
      for (std::size_t column = 0; column < columns; ++column) {
        const auto at =
            std::lower_bound(keys.begin(), keys.end(), found[record * columns + column]);
        rows.index[record * all + first + column] = static_cast<std::uint32_t>(at - keys.begin());
      }
    }
    first += columns;
  }
}

std::vector<wire::ValueCodec> RowCodecs(const std::vector<EmbeddingTableSpec>& tables) {
  std::vector<wire::ValueCodec> codecs;
  for (const auto& table : tables) {
    codecs.push_back(codec::RowCodecNamed(table.values));
  }
  return codecs;
}

}  // namespace ps::worker
