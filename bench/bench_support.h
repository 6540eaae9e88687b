// What the benchmarks of kernels, codecs and the sparsifier have in common.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/layout/layout.h"
#include "common/messages/control.h"
#include "common/messages/wire.h"

namespace ps::bench {

// One table of whole blocks, but for the last.
inline LayoutView PlainLayout(std::uint64_t elements, std::uint32_t shards) {
  control::LayoutT layout;
  auto table = std::make_unique<control::TableInfoT>();
  table->name = "parameters";
  table->elements = elements;
  for (std::uint64_t at = 0; at < elements; at += wire::kBlockElements) {
    table->block_elements.push_back(
        static_cast<std::uint32_t>(std::min<std::uint64_t>(wire::kBlockElements, elements - at)));
  }
  layout.blocks = static_cast<std::uint32_t>(table->block_elements.size());
  layout.parameters = elements;
  layout.tables.push_back(std::move(table));
  return LayoutView::Create(layout, std::min(layout.blocks, shards)).value();
}

inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The variant of that name (plain, avx2, avx512), or the fastest one.
template <typename Table>
const Table& VariantNamed(const std::string& name, const Table* const* available,
                          const Table& fastest) {
  for (; *available != nullptr; ++available) {
    if (name == (*available)->name) return **available;
  }
  return fastest;
}

}  // namespace ps::bench
