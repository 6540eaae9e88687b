#include "ps-server/core/dense_store.h"

#include <array>
#include <bit>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "common/check.h"
#include "ps-server/core/dense_kernels.h"

namespace ps::server {
namespace {

using checkpoint::UpdateCounts;

// Where a record of three or four words has its count of updates.
constexpr std::size_t kUpdatesWord = 3;

// What the kernels read in place, without anything between.
std::optional<kernels::Positions> PositionsInPlace(wire::IndexCodec codec) {
  switch (codec) {
    case wire::IndexCodec::Dense: return kernels::Positions::kDense;
    case wire::IndexCodec::Gap8: return kernels::Positions::kGap8;
    case wire::IndexCodec::Raw16: return kernels::Positions::kRaw16;
    default: return std::nullopt;
  }
}

bool ValuesInPlace(wire::ValueCodec codec) {
  return codec == wire::ValueCodec::Fp32 || codec == wire::ValueCodec::Bf16;
}

kernels::Push PushInPlace(const codec::BlockView& block, kernels::Positions positions) {
  kernels::Push push{};
  push.positions = positions;
  push.bf16 = block.value_codec() == wire::ValueCodec::Bf16;
  push.count = block.count();
  push.index_bytes = block.index_bytes.data();
  push.values = block.value_bytes.data();
  return push;
}

std::string NameOfNumber(std::uint8_t type) {
  constexpr auto kLast = static_cast<std::uint8_t>(OptimizerType::kFtrl);
  if (type > kLast) return "optimizer " + std::to_string(type);
  return std::string(NameOf(static_cast<OptimizerType>(type)));
}

}  // namespace

StoreShape StoreShape::Of(const Optimizer& optimizer, bool sparse) {
  StoreShape shape;
  shape.optimizer = optimizer.type();
  shape.slots = optimizer.slots_per_element();
  shape.records = sparse && shape.slots > 0;
  if (optimizer.counts_updates()) {
    shape.counts = shape.records ? UpdateCounts::kPerElement : UpdateCounts::kPerBlock;
  }
  return shape;
}

DenseStore::DenseStore(const LayoutView& layout, std::uint32_t first_block,
                       std::uint32_t last_block, const StoreShape& shape)
    : layout_(layout),
      first_block_(first_block),
      last_block_(last_block),
      elements_([&] {
        std::size_t elements = 0;
        for (std::uint32_t block = first_block; block < last_block; ++block) {
          elements += layout.block(block).elements;
        }
        return elements;
      }()),
      shape_(shape) {}

void DenseStore::Init(std::vector<float> values, const Optimizer& optimizer) {
  PS_CHECK(values.size() == elements_, values.size(), elements_);
  PS_CHECK(optimizer.type() == shape_.optimizer, "the shape was made for another optimizer");
  const std::size_t stride = shape_.stride();
  if (shape_.records) {
    values_.assign(elements_ * stride, 0.0f);
    for (std::size_t i = 0; i < elements_; ++i) {
      float* const record = values_.data() + i * stride;
      record[0] = values[i];
      for (std::uint32_t slot = 0; slot < shape_.slots; ++slot) {
        record[1 + slot] = optimizer.InitialSlot(slot, values[i]);
      }
    }
    return;
  }
  values_ = std::move(values);
  slots_.resize(elements_ * shape_.slots);
  for (std::uint32_t slot = 0; slot < shape_.slots; ++slot) {
    for (std::size_t i = 0; i < elements_; ++i) {
      slots_[slot * elements_ + i] = optimizer.InitialSlot(slot, values_[i]);
    }
  }
  if (shape_.counts == UpdateCounts::kPerBlock)
    block_updates_.assign(last_block_ - first_block_, 0);
}

Status DenseStore::Load(checkpoint::ShardImage& image) {
  PS_CHECK(image.values.size() == elements_, image.values.size(), elements_);
  checkpoint::ImageSlots& slots = image.slots;
  const auto own = static_cast<std::uint8_t>(shape_.optimizer);
  if (slots.optimizer != own || slots.per_element != shape_.slots) {
    return Error{ErrorCode::kInvalid, "the image has the state of " +
                                          NameOfNumber(slots.optimizer) +
                                          ", the job's optimizer is " + NameOfNumber(own)};
  }
  if (slots.counts != shape_.counts) {
    return Error{ErrorCode::kInvalid,
                 "the image counts the updates of " + NameOfNumber(own) +
                     " per block or per element, the job does it the other way: its pushes were "
                     "sparse and are dense now, or the reverse"};
  }
  if (!shape_.records) {
    values_ = std::move(image.values);
    slots_ = std::move(slots.floats);
    block_updates_ = std::move(slots.updates);
    return Ok();
  }
  const std::size_t stride = shape_.stride();
  values_.assign(elements_ * stride, 0.0f);
  for (std::size_t i = 0; i < elements_; ++i) {
    float* const record = values_.data() + i * stride;
    record[0] = image.values[i];
    for (std::uint32_t slot = 0; slot < shape_.slots; ++slot) {
      record[1 + slot] = slots.floats[slot * elements_ + i];
    }
    if (shape_.counts == UpdateCounts::kPerElement) {
      record[kUpdatesWord] = std::bit_cast<float>(slots.updates[i]);
    }
  }
  return Ok();
}

void DenseStore::Save(checkpoint::ShardImage& image) const {
  checkpoint::ImageSlots& slots = image.slots;
  slots.optimizer = static_cast<std::uint8_t>(shape_.optimizer);
  slots.per_element = static_cast<std::uint8_t>(shape_.slots);
  slots.counts = shape_.counts;
  if (!shape_.records) {
    image.values = values_;
    slots.floats = slots_;
    slots.updates = block_updates_;
    return;
  }
  image.values = Values();
  const std::size_t stride = shape_.stride();
  slots.floats.resize(elements_ * shape_.slots);
  for (std::uint32_t slot = 0; slot < shape_.slots; ++slot) {
    float* const to = slots.floats.data() + slot * elements_;
    for (std::size_t i = 0; i < elements_; ++i) to[i] = values_[i * stride + 1 + slot];
  }
  if (shape_.counts == UpdateCounts::kPerElement) {
    slots.updates.resize(elements_);
    for (std::size_t i = 0; i < elements_; ++i) {
      slots.updates[i] = std::bit_cast<std::uint32_t>(values_[i * stride + kUpdatesWord]);
    }
  }
}

float* DenseStore::ValueAt(std::uint32_t block) {
  return values_.data() + layout_.offset_in_shard(block) * shape_.stride();
}

const float* DenseStore::ValueAt(std::uint32_t block) const {
  return values_.data() + layout_.offset_in_shard(block) * shape_.stride();
}

std::vector<float> DenseStore::Values() const {
  if (!shape_.records) return values_;
  const std::size_t stride = shape_.stride();
  std::vector<float> values(values_.size() / stride);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = values_[i * stride];
  return values;
}

std::span<const float> DenseStore::ValuesOf(std::uint32_t block,
                                            std::vector<float>& scratch) const {
  const std::size_t count = layout_.block(block).elements;
  const float* const from = ValueAt(block);
  if (!shape_.records) return {from, count};
  const std::size_t stride = shape_.stride();
  scratch.resize(count);
  for (std::size_t i = 0; i < count; ++i) scratch[i] = from[i * stride];
  return scratch;
}

void DenseStore::Gather(std::uint32_t block, std::span<const std::uint16_t> positions,
                        std::vector<float>& values) const {
  const float* const from = ValueAt(block);
  const std::size_t stride = shape_.stride();
  values.resize(positions.size());
  for (std::size_t i = 0; i < positions.size(); ++i) values[i] = from[positions[i] * stride];
}

void DenseStore::Update(const codec::BlockView& push, const Optimizer& optimizer,
                        const kernels::Step& step) {
  const std::uint32_t block = push.header.block();
  kernels::Elements elements{};
  elements.value = ValueAt(block);
  elements.stride = shape_.stride();
  if (shape_.records) {
    elements.slot0 = elements.value + 1;
    if (shape_.slots > 1) elements.slot1 = elements.value + 2;
    if (shape_.counts == UpdateCounts::kPerElement) {
      elements.updates = elements.value + kUpdatesWord;
    }
  } else {
    const std::size_t offset = layout_.offset_in_shard(block);
    if (shape_.slots > 0) elements.slot0 = slots_.data() + offset;
    if (shape_.slots > 1) elements.slot1 = slots_.data() + elements_ + offset;
    if (shape_.counts == UpdateCounts::kPerBlock) {
      std::uint32_t& updates = block_updates_[block - first_block_];
      if (updates != std::numeric_limits<std::uint32_t>::max()) ++updates;
      elements.block_updates = updates;
    }
  }
  const auto positions = PositionsInPlace(push.index_codec());
  if (positions && ValuesInPlace(push.value_codec())) {
    optimizer.kernels().block(optimizer.kernel_rules(), step, optimizer.corrections(), elements,
                              layout_.block(block).elements, PushInPlace(push, *positions));
    return;
  }
  UpdateInPieces(push, optimizer, step, elements);
}

// Decodes a piece of the push into the L1 cache and gives it to the kernels.
void DenseStore::UpdateInPieces(const codec::BlockView& push, const Optimizer& optimizer,
                                kernels::Step step, kernels::Elements elements) {
  constexpr std::size_t kPiece = codec::EntryReader::kPiece;
  std::array<std::uint16_t, codec::EntryReader::kRoom> positions;
  std::array<float, kPiece> values;
  codec::EntryReader reader(push);
  const std::uint32_t size = layout_.block(push.header.block()).elements;
  std::size_t count = reader.Next(positions.data(), values.data());
  // An empty push lets its block decay, too.
  do {
    kernels::Push piece{};
    piece.positions = push.dense() ? kernels::Positions::kDense : kernels::Positions::kRaw16;
    piece.count = static_cast<std::uint32_t>(count);
    piece.index_bytes = reinterpret_cast<const std::byte*>(positions.data());
    piece.values = reinterpret_cast<const std::byte*>(values.data());
    optimizer.kernels().block(optimizer.kernel_rules(), step, optimizer.corrections(), elements,
                              push.dense() ? piece.count : size, piece);
    if (push.dense()) {
      // The next piece begins behind this one.
      const std::size_t passed = count * elements.stride;
      elements.value += passed;
      if (elements.slot0 != nullptr) elements.slot0 += passed;
      if (elements.slot1 != nullptr) elements.slot1 += passed;
      if (elements.updates != nullptr) elements.updates += passed;
    } else {
      step.decay = 0;  // the first piece let the whole block decay
    }
    count = reader.Next(positions.data(), values.data());
  } while (count > 0);
}

void DenseStore::Average(const codec::BlockView& push, float weight) {
  ApplyAverage(ValueAt(push.header.block()), shape_.stride(), push, weight);
}

void DenseStore::Maximum(const codec::BlockView& push) {
  ApplyMaximum(ValueAt(push.header.block()), shape_.stride(), push);
}

}  // namespace ps::server
