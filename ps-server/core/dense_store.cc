#include "ps-server/core/dense_store.h"

#include <array>
#include <bit>
#include <cstring>
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

// Where an element's floats lie in the page of its block.
struct Place {
  Place(const StoreShape& shape, std::size_t size)
      : elements(size), stride(shape.stride()), records(shape.records) {}

  std::size_t Value(std::size_t element) const { return element * stride; }
  std::size_t Slot(std::uint32_t slot, std::size_t element) const {
    return records ? element * stride + 1 + slot : (1 + slot) * elements + element;
  }

  std::size_t elements;
  std::size_t stride;
  bool records;
};

std::string NameOfNumber(std::uint8_t type) {
  constexpr auto kLast = static_cast<std::uint8_t>(OptimizerType::kSparseAdam);
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
                       std::uint32_t last_block, const StoreShape& shape,
                       std::pmr::memory_resource* memory)
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
      shape_(shape),
      blocks_(memory) {}

void DenseStore::MakePages() {
  PS_CHECK(blocks_.size() == 0, "the store has its values already");
  for (std::uint32_t block = first_block_; block < last_block_; ++block) {
    blocks_.Append(layout_.block(block).elements * shape_.floats() * sizeof(float));
  }
}

void DenseStore::InitBlock(std::uint32_t block, const float* values, const Optimizer& optimizer) {
  const Place place(shape_, layout_.block(block).elements);
  float* const page = ValueAt(block);
  for (std::size_t i = 0; i < place.elements; ++i) {
    page[place.Value(i)] = values[i];
    for (std::uint32_t slot = 0; slot < shape_.slots; ++slot) {
      page[place.Slot(slot, i)] = optimizer.InitialSlot(slot, values[i]);
    }
    for (std::uint32_t word = 1 + shape_.slots; word < place.stride; ++word) {
      page[place.Value(i) + word] = 0;  // the count of updates, or nothing
    }
  }
}

void DenseStore::Init(std::vector<float> values, const Optimizer& optimizer) {
  PS_CHECK(values.size() == elements_, values.size(), elements_);
  PS_CHECK(optimizer.type() == shape_.optimizer, "the shape was made for another optimizer");
  MakePages();
  const float* value = values.data();
  for (std::uint32_t block = first_block_; block < last_block_; ++block) {
    InitBlock(block, value, optimizer);
    value += layout_.block(block).elements;
  }
  if (shape_.counts == UpdateCounts::kPerBlock) {
    block_updates_.assign(last_block_ - first_block_, 0);
  }
}

Status DenseStore::BeginLoad(const checkpoint::ImageSlots& head, const Optimizer* fresh) {
  PS_CHECK(blocks_.size() == 0, "the store has its values already");
  fresh_ = fresh;
  if (fresh != nullptr) {
    PS_CHECK(fresh->type() == shape_.optimizer, "the shape was made for another optimizer");
    if (shape_.counts == UpdateCounts::kPerBlock) {
      block_updates_.assign(last_block_ - first_block_, 0);
    }
    return Ok();
  }
  const auto own = static_cast<std::uint8_t>(shape_.optimizer);
  if (head.optimizer != own || head.per_element != shape_.slots) {
    return Error{ErrorCode::kInvalid, "the image has the state of " + NameOfNumber(head.optimizer) +
                                          ", the job's optimizer is " + NameOfNumber(own)};
  }
  if (head.counts != shape_.counts) {
    return Error{ErrorCode::kInvalid,
                 "the image counts the updates of " + NameOfNumber(own) +
                     " per block or per element, the job does it the other way: its pushes were "
                     "sparse and are dense now, or the reverse"};
  }
  if (shape_.counts == UpdateCounts::kPerBlock) block_updates_ = head.updates;
  return Ok();
}

void DenseStore::LoadBlock(std::string_view content) {
  const auto block = first_block_ + static_cast<std::uint32_t>(blocks_.size());
  const std::size_t elements = layout_.block(block).elements;
  const Place place(shape_, elements);
  auto* const page =
      reinterpret_cast<float*>(blocks_.Append(elements * shape_.floats() * sizeof(float)));
  if (fresh_ != nullptr) {
    std::vector<float> values(elements);
    std::memcpy(values.data(), content.data(), elements * sizeof(float));
    return InitBlock(block, values.data(), *fresh_);
  }
  const auto take = [&](std::size_t array, std::size_t element) {
    float word = 0;
    std::memcpy(&word, content.data() + (array * elements + element) * sizeof(float), sizeof(word));
    return word;
  };
  if (!shape_.records) {
    std::memcpy(page, content.data(), elements * (1 + shape_.slots) * sizeof(float));
    return;
  }
  for (std::size_t i = 0; i < elements; ++i) {
    for (std::size_t word = 0; word < place.stride; ++word) page[place.Value(i) + word] = 0;
    page[place.Value(i)] = take(0, i);
    for (std::uint32_t slot = 0; slot < shape_.slots; ++slot) {
      page[place.Slot(slot, i)] = take(1 + slot, i);
    }
    if (shape_.counts == UpdateCounts::kPerElement) {
      page[place.Value(i) + kUpdatesWord] = take(1 + shape_.slots, i);
    }
  }
}

void DenseStore::Clear() {
  blocks_.Clear();
  block_updates_.clear();
}

FrozenDenseStore DenseStore::Freeze() const {
  FrozenDenseStore frozen;
  frozen.shape_ = shape_;
  for (std::uint32_t block = first_block_; block < last_block_; ++block) {
    frozen.block_elements_.push_back(layout_.block(block).elements);
  }
  frozen.block_updates_ = block_updates_;
  frozen.blocks_ = blocks_.Freeze();
  return frozen;
}

std::uint64_t FrozenDenseStore::content_bytes() const {
  const std::uint32_t words =
      1 + shape_.slots + (shape_.counts == UpdateCounts::kPerElement ? 1u : 0u);
  std::uint64_t bytes = block_updates_.size() * sizeof(std::uint32_t);
  for (const std::uint32_t elements : block_elements_) {
    bytes += std::uint64_t{elements} * words * sizeof(float);
  }
  return bytes;
}

void FrozenDenseStore::SaveHead(checkpoint::ShardImage& image) const {
  checkpoint::ImageSlots& slots = image.slots;
  slots.optimizer = static_cast<std::uint8_t>(shape_.optimizer);
  slots.per_element = static_cast<std::uint8_t>(shape_.slots);
  slots.counts = shape_.counts;
  slots.updates = block_updates_;
}

std::string FrozenDenseStore::EncodeBlock(std::size_t index) const {
  const std::size_t elements = block_elements_[index];
  const Place place(shape_, elements);
  const bool counted = shape_.counts == UpdateCounts::kPerElement;
  std::string content(elements * (1 + shape_.slots + (counted ? 1 : 0)) * sizeof(float), '\0');
  if (!shape_.records) {
    PS_CHECK(content.size() == blocks_.bytes(index), content.size(), blocks_.bytes(index));
    blocks_.Copy(index, reinterpret_cast<std::byte*>(content.data()));
    return content;
  }
  const float* const page = Page(index);
  const auto put = [&](std::size_t array, const float* from) {
    char* to = content.data() + array * elements * sizeof(float);
    for (std::size_t i = 0; i < elements; ++i, to += sizeof(float)) {
      std::memcpy(to, from + i * place.stride, sizeof(float));
    }
  };
  for (std::size_t word = 0; word <= shape_.slots; ++word) put(word, page + word);
  if (counted) put(1 + shape_.slots, page + kUpdatesWord);
  return content;
}

void FrozenDenseStore::Save(checkpoint::ShardImage& image) const {
  SaveHead(image);
  checkpoint::ImageSlots& slots = image.slots;
  std::size_t elements = 0;
  for (const std::uint32_t count : block_elements_) elements += count;
  image.values.resize(elements);
  slots.floats.resize(elements * shape_.slots);
  if (shape_.counts == UpdateCounts::kPerElement) slots.updates.resize(elements);
  std::size_t first = 0;
  for (std::size_t block = 0; block < block_elements_.size(); ++block) {
    const Place place(shape_, block_elements_[block]);
    const float* const page = Page(block);
    for (std::size_t i = 0; i < place.elements; ++i) {
      image.values[first + i] = page[place.Value(i)];
    }
    for (std::uint32_t slot = 0; slot < shape_.slots; ++slot) {
      float* const to = slots.floats.data() + slot * elements + first;
      for (std::size_t i = 0; i < place.elements; ++i) to[i] = page[place.Slot(slot, i)];
    }
    if (shape_.counts == UpdateCounts::kPerElement) {
      for (std::size_t i = 0; i < place.elements; ++i) {
        slots.updates[first + i] =
            std::bit_cast<std::uint32_t>(page[place.Value(i) + kUpdatesWord]);
      }
    }
    first += place.elements;
  }
}

std::vector<float> DenseStore::Values() const {
  std::vector<float> values;
  values.reserve(elements_);
  for (std::uint32_t block = first_block_; blocks_.size() > 0 && block < last_block_; ++block) {
    const Place place(shape_, layout_.block(block).elements);
    const float* const page = ValueAt(block);
    for (std::size_t i = 0; i < place.elements; ++i) values.push_back(page[place.Value(i)]);
  }
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

CowPages::Writing DenseStore::Open(const codec::BlockView& push, const Optimizer& optimizer,
                                   const kernels::Step& step) {
  const std::size_t index = push.header.block() - first_block_;
  // What changes the whole block: values that decay, and slots that do so between pushes.
  const bool whole =
      push.dense() || step.decay != 0 || (!shape_.records && optimizer.keeps_ticks());
  if (whole || !blocks_.shared(index)) return blocks_.WriteAll(index);
  const Place place(shape_, layout_.block(push.header.block()).elements);
  constexpr std::size_t kLineFloats = detail::kLine / sizeof(float);
  codec::DecodeIndices(push, positions_);
  lines_.clear();
  for (const std::size_t position : positions_) {
    lines_.push_back(static_cast<std::uint32_t>(place.Value(position) / kLineFloats));
    // A record lies in one line.
    for (std::uint32_t slot = 0; !shape_.records && slot < shape_.slots; ++slot) {
      lines_.push_back(static_cast<std::uint32_t>(place.Slot(slot, position) / kLineFloats));
    }
  }
  return blocks_.WriteLines(index, lines_);
}

void DenseStore::Update(const codec::BlockView& push, const Optimizer& optimizer,
                        const kernels::Step& step) {
  const std::uint32_t block = push.header.block();
  const CowPages::Writing writing = Open(push, optimizer, step);
  kernels::Elements elements{};
  elements.value = reinterpret_cast<float*>(writing.data());
  elements.stride = shape_.stride();
  if (shape_.records) {
    elements.slot0 = elements.value + 1;
    if (shape_.slots > 1) elements.slot1 = elements.value + 2;
    if (shape_.counts == UpdateCounts::kPerElement) {
      elements.updates = elements.value + kUpdatesWord;
    }
  } else {
    const std::size_t size = layout_.block(block).elements;
    if (shape_.slots > 0) elements.slot0 = elements.value + size;
    if (shape_.slots > 1) elements.slot1 = elements.value + 2 * size;
    if (shape_.counts == UpdateCounts::kPerBlock) {
      std::uint32_t& updates = block_updates_[block - first_block_];
      if (optimizer.keeps_ticks()) {
        elements.block_updates = std::exchange(updates, step.tick);
      } else {
        if (updates != std::numeric_limits<std::uint32_t>::max()) ++updates;
        elements.block_updates = updates;
      }
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
