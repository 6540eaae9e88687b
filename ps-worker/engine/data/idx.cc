#include <bit>
#include <cmath>
#include <utility>

#include "common/error_id.h"
#include "ps-worker/engine/data/input_file.h"
#include "ps-worker/engine/data/memory_dataset.h"

namespace ps::worker {
namespace {

// An IDX file: 0, 0, element type, number of dimensions; each dimension as a big-endian u32; then
// the elements, big endian, the last dimension running fastest.
enum class ElementType : std::uint8_t {
  kU8 = 0x08,
  kI8 = 0x09,
  kI16 = 0x0b,
  kI32 = 0x0c,
  kF32 = 0x0d,
  kF64 = 0x0e,
};

constexpr std::uint8_t kMaxDimensions = 4;
constexpr std::uint64_t kMaxContentBytes = std::uint64_t{1} << 40;

struct Idx {
  ElementType type = ElementType::kU8;
  std::vector<std::uint32_t> dimensions;
  std::vector<std::uint8_t> content;
};

// 0 for an unknown type.
std::size_t ElementBytes(ElementType type) {
  switch (type) {
    case ElementType::kU8:
    case ElementType::kI8: return 1;
    case ElementType::kI16: return 2;
    case ElementType::kI32:
    case ElementType::kF32: return 4;
    case ElementType::kF64: return 8;
  }
  return 0;
}

std::uint64_t BigEndian(const std::uint8_t* from, std::size_t bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < bytes; ++i) value = value << 8 | from[i];
  return value;
}

double ElementAt(const Idx& idx, std::size_t at) {
  const std::size_t bytes = ElementBytes(idx.type);
  const std::uint64_t bits = BigEndian(idx.content.data() + at * bytes, bytes);
  switch (idx.type) {
    case ElementType::kU8: return static_cast<double>(bits);
    case ElementType::kI8: return static_cast<std::int8_t>(bits);
    case ElementType::kI16: return static_cast<std::int16_t>(bits);
    case ElementType::kI32: return static_cast<std::int32_t>(bits);
    case ElementType::kF32: return std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    case ElementType::kF64: return std::bit_cast<double>(bits);
  }
  return 0;
}

Error Bad(const InputFile& file, const std::string& what) {
  return Error{ErrorId::kDataFileFormat, file.path() + ": " + what};
}

Result<Idx> ReadIdx(const std::string& path) {
  InputFile file = PS_TRY(InputFile::Open(path));
  std::vector<std::uint8_t> head;
  PS_TRY(file.Read(4, head));
  Idx idx;
  idx.type = static_cast<ElementType>(head[2]);
  const std::size_t element_bytes = ElementBytes(idx.type);
  if (head[0] != 0 || head[1] != 0 || element_bytes == 0) {
    return Bad(file, "not an IDX file: it begins with " + std::to_string(head[0]) + " " +
                         std::to_string(head[1]) + " " + std::to_string(head[2]) +
                         ", expected 0 0 and a type of 8, 9, 11, 12, 13 or 14");
  }
  const std::uint8_t dimensions = head[3];
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    return Bad(file, std::to_string(dimensions) + " dimensions, 1 to " +
                         std::to_string(kMaxDimensions) + " expected");
  }
  head.clear();
  PS_TRY(file.Read(std::uint64_t{dimensions} * 4, head));
  std::uint64_t bytes = element_bytes;
  for (std::uint8_t at = 0; at < dimensions; ++at) {
    const auto size = static_cast<std::uint32_t>(BigEndian(head.data() + at * 4, 4));
    if (size == 0) return Bad(file, "dimension " + std::to_string(at) + " is 0");
    if (bytes > kMaxContentBytes / size) {
      return Bad(file,
                 "its dimensions make more than " + std::to_string(kMaxContentBytes) + " bytes");
    }
    bytes *= size;
    idx.dimensions.push_back(size);
  }
  PS_TRY(file.Read(bytes, idx.content));
  PS_TRY(file.ExpectEnd());
  return idx;
}

Result<std::vector<double>> ReadLabels(const std::string& path) {
  const Idx idx = PS_TRY(ReadIdx(path));
  if (idx.dimensions.size() != 1) {
    return Error{
        ErrorId::kDataFileFormat,
        path + ": labels of " + std::to_string(idx.dimensions.size()) + " dimensions, 1 expected"};
  }
  std::vector<double> labels(idx.dimensions[0]);
  for (std::size_t i = 0; i < labels.size(); ++i) {
    labels[i] = ElementAt(idx, i);
    if (!std::isfinite(labels[i])) {
      return Error{ErrorId::kDataLabels, path + ": label " + std::to_string(i) + " is not finite"};
    }
  }
  return labels;
}

}  // namespace

Result<std::unique_ptr<Dataset>> OpenIdx(const DataSourceSpec& source, const DataSpec& data) {
  std::vector<double> labels = PS_TRY(ReadLabels(source.labels));
  Idx images = PS_TRY(ReadIdx(source.images));
  if (images.dimensions[0] != labels.size()) {
    return Error{ErrorId::kDataDisagree,
                 source.images + ": " + std::to_string(images.dimensions[0]) + " records, but " +
                     source.labels + " has " + std::to_string(labels.size()) + " labels"};
  }
  std::vector<std::int64_t> shape(images.dimensions.begin() + 1, images.dimensions.end());
  if (shape.empty()) shape.push_back(1);
  const bool bytes = images.type == ElementType::kU8;
  const Normalisation normalisation = PS_TRY(Normalisation::Create(data, bytes ? 1.0 / 255 : 1.0));
  if (bytes) {
    return std::unique_ptr<Dataset>(std::make_unique<MemoryDataset>(
        std::move(shape), std::move(images.content), normalisation, std::move(labels)));
  }
  std::vector<float> values(images.content.size() / ElementBytes(images.type));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = normalisation.Apply(ElementAt(images, i));
    if (!std::isfinite(values[i])) {
      return Error{ErrorId::kDataFileFormat,
                   source.images + ": element " + std::to_string(i) + " is not finite"};
    }
  }
  return std::unique_ptr<Dataset>(
      std::make_unique<MemoryDataset>(std::move(shape), std::move(values), std::move(labels)));
}

}  // namespace ps::worker
