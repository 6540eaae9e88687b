#include "ps-server/core/rows/row_eviction.h"

#include <algorithm>
#include <cstddef>

namespace ps::server {
namespace {

__extension__ using Order = unsigned __int128;  // the lowest goes first

constexpr int kDigitBits = 16;
constexpr std::uint64_t kDigits = std::uint64_t{1} << kDigitBits;
// So many are sorted directly.
constexpr std::uint64_t kFewRows = 65'536;

Order OrderOf(const RowRecord& record, RowsFull policy) {
  const std::uint64_t use = policy == RowsFull::kLfu
                                ? std::uint64_t{record.updates} << 32 | record.last_used
                                : record.last_used;
  return Order{use} << 64 | record.key();
}

// The order of the row that `count` - 1 rows come before: digit by digit from the highest, each
// time among the rows that have the digits found so far, until these are few.
Order LastToGo(const RowStore& rows, std::uint64_t count, RowsFull policy) {
  Order found = 0;
  int shift = 128;  // bits of `found` above it are known
  std::uint64_t left = count;
  std::uint64_t candidates = rows.size();
  const auto for_candidates = [&](auto visit) {
    rows.ForEach([&](RowNumber, const RowRecord& record) {
      const Order order = OrderOf(record, policy);
      if (shift == 128 || order >> shift == found >> shift) visit(order);
    });
  };
  while (candidates > kFewRows) {
    std::vector<std::uint64_t> having(kDigits);
    const int below = shift - kDigitBits;
    for_candidates(
        [&](Order order) { ++having[static_cast<std::uint64_t>(order >> below) % kDigits]; });
    std::uint64_t digit = 0;
    for (; having[digit] < left; ++digit) left -= having[digit];
    found |= Order{digit} << below;
    shift = below;
    candidates = having[digit];
  }
  std::vector<Order> orders;
  orders.reserve(candidates);
  for_candidates([&](Order order) { orders.push_back(order); });
  const auto last = orders.begin() + static_cast<std::ptrdiff_t>(left - 1);
  std::nth_element(orders.begin(), last, orders.end());
  return *last;
}

}  // namespace

std::vector<RowNumber> RowsToEvict(const RowStore& rows, std::uint64_t count, RowsFull policy) {
  std::vector<RowNumber> going;
  count = std::min(count, rows.size());
  if (count == 0) return going;
  const Order last = LastToGo(rows, count, policy);
  going.reserve(count);
  rows.ForEach([&](RowNumber row, const RowRecord& record) {
    if (OrderOf(record, policy) <= last) going.push_back(row);
  });
  return going;
}

}  // namespace ps::server
