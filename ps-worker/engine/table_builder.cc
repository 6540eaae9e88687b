#include "ps-worker/engine/table_builder.h"

#include <xxhash.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "common/messages/wire.h"

namespace ps::worker {
namespace {

void AddBlocks(std::uint64_t elements, std::vector<std::uint32_t>& blocks) {
  while (elements > 0) {
    const auto size = std::min<std::uint64_t>(elements, wire::kBlockElements);
    blocks.push_back(static_cast<std::uint32_t>(size));
    elements -= size;
  }
}

void AddTensor(const TensorShape& tensor, std::uint64_t offset, control::TableInfoT& table) {
  auto info = std::make_unique<control::TensorInfoT>();
  info->name = tensor.name;
  for (const std::int64_t size : tensor.shape) {
    info->shape.push_back(std::make_unique<control::ExtentT>());
    info->shape.back()->size = size;
  }
  info->offset = offset;
  info->elements = tensor.elements();
  table.tensors.push_back(std::move(info));
}

class Fingerprint {
 public:
  Fingerprint() : state_(XXH3_createState()) { XXH3_64bits_reset(state_.get()); }

  void Add(const void* data, std::size_t bytes) { XXH3_64bits_update(state_.get(), data, bytes); }
  void Add(std::uint64_t number) { Add(&number, sizeof(number)); }
  void Add(const std::string& text) {
    Add(std::uint64_t{text.size()});
    Add(text.data(), text.size());
  }
  std::uint64_t value() const { return XXH3_64bits_digest(state_.get()); }

 private:
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state_;
};

}  // namespace

std::uint64_t TensorShape::elements() const {
  std::uint64_t product = 1;
  for (const auto extent : shape) product *= static_cast<std::uint64_t>(extent);
  return product;
}

ParameterTable BuildParameterTable(const std::vector<TensorShape>& tensors,
                                   std::int64_t small_tensor_elements) {
  ParameterTable result;
  result.table.name = "parameters";
  result.table.rule = control::TableRule::Sgd;
  result.offsets.resize(tensors.size());
  std::uint64_t offset = 0;
  for (const bool large : {true, false}) {
    const std::uint64_t begin = offset;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const bool is_large =
          tensors[i].shape.size() > 1 &&
          tensors[i].elements() >
              static_cast<std::uint64_t>(std::max<std::int64_t>(small_tensor_elements, 0));
      if (is_large != large) continue;
      result.offsets[i] = offset;
      AddTensor(tensors[i], offset, result.table);
      offset += tensors[i].elements();
    }
    AddBlocks(offset - begin, result.table.block_elements);
    if (large) result.selected_elements = offset;
  }
  result.table.elements = offset;
  return result;
}

control::TableInfoT BuildPlainTable(const std::string& name, control::TableRule rule,
                                    const std::vector<TensorShape>& tensors) {
  control::TableInfoT table;
  table.name = name;
  table.rule = rule;
  std::uint64_t offset = 0;
  for (const auto& tensor : tensors) {
    AddTensor(tensor, offset, table);
    offset += tensor.elements();
  }
  table.elements = offset;
  AddBlocks(offset, table.block_elements);
  return table;
}

void AddRowTables(const std::vector<EmbeddingTableSpec>& tables, control::LayoutT& layout) {
  if (tables.empty()) return;
  Fingerprint fingerprint;
  fingerprint.Add(layout.fingerprint);
  for (const EmbeddingTableSpec& table : tables) {
    auto info = std::make_unique<control::RowTableInfoT>();
    info->name = table.name;
    info->width = static_cast<std::uint32_t>(table.width);
    layout.row_tables.push_back(std::move(info));
    fingerprint.Add(table.name);
    fingerprint.Add(static_cast<std::uint64_t>(table.width));
    fingerprint.Add(std::uint64_t{table.columns.size()});
    for (const std::string& column : table.columns) fingerprint.Add(column);
  }
  layout.fingerprint = fingerprint.value();
}

control::LayoutT BuildLayout(std::vector<control::TableInfoT> tables, std::uint64_t salt) {
  control::LayoutT layout;
  Fingerprint fingerprint;
  fingerprint.Add(salt);
  for (auto& table : tables) {
    if (table.elements == 0) continue;
    table.first_block = layout.blocks;
    layout.blocks += static_cast<std::uint32_t>(table.block_elements.size());
    if (table.rule == control::TableRule::Sgd) layout.parameters += table.elements;
    fingerprint.Add(table.name);
    fingerprint.Add(static_cast<std::uint64_t>(table.rule));
    for (const auto elements : table.block_elements) fingerprint.Add(std::uint64_t{elements});
    for (const auto& tensor : table.tensors) {
      fingerprint.Add(tensor->name);
      fingerprint.Add(std::uint64_t{tensor->shape.size()});
      for (const auto& extent : tensor->shape) {
        fingerprint.Add(static_cast<std::uint64_t>(extent->size));
      }
      fingerprint.Add(tensor->offset);
    }
    layout.tables.push_back(std::make_unique<control::TableInfoT>(std::move(table)));
  }
  layout.fingerprint = fingerprint.value();
  return layout;
}

}  // namespace ps::worker
