#include "checkpoint/row_image.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "common/error_id.h"

namespace ps::checkpoint {
namespace {

struct RowHeader {
  std::uint64_t key;
  std::uint32_t updates;
  std::uint32_t last_used;
};
static_assert(sizeof(RowHeader) == kRowHeaderBytes);

RowHeader HeaderAt(const std::byte* record) {
  RowHeader header;
  std::memcpy(&header, record, sizeof(header));
  return header;
}

}  // namespace

void SortRows(RowTableImage& image) {
  const std::size_t bytes = image.record_bytes();
  std::vector<std::pair<std::uint64_t, const std::byte*>> order(image.rows());
  for (std::size_t row = 0; row < order.size(); ++row) {
    const std::byte* const record = image.records.data() + row * bytes;
    order[row] = {HeaderAt(record).key, record};
  }
  if (std::is_sorted(order.begin(), order.end())) return;
  std::sort(order.begin(), order.end());
  std::vector<std::byte> sorted;
  sorted.reserve(image.records.size());
  for (const auto& [key, record] : order) sorted.insert(sorted.end(), record, record + bytes);
  image.records = std::move(sorted);
}

Status CheckRows(const RowTableImage& image) {
  const auto bad = [&](const std::string& what) {
    return Error{ErrorId::kCheckpointDamaged,
                 "row table " + std::to_string(image.table) + ": " + what};
  };
  if (image.width == 0) return bad("its rows have no values");
  const std::size_t bytes = image.record_bytes();
  if (image.records.size() % bytes != 0) {
    return bad(std::to_string(image.records.size()) + " bytes are no whole number of records of " +
               std::to_string(bytes));
  }
  std::uint64_t previous = 0;
  for (std::size_t row = 0; row < image.rows(); ++row) {
    const RowHeader header = HeaderAt(image.records.data() + row * bytes);
    const auto name = [&] { return "row " + std::to_string(header.key); };
    if (header.updates == 0) return bad(name() + " is none: it has 0 updates");
    if (header.last_used > image.tick) return bad(name() + " was used after the cut");
    if (row > 0 && header.key <= previous) {
      return bad(name() + " stands after row " + std::to_string(previous));
    }
    previous = header.key;
  }
  return Ok();
}

}  // namespace ps::checkpoint
