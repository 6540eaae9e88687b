#include "checkpoint/source.h"

#include <cstring>

#include "checkpoint/record.h"

namespace ps::checkpoint {

ImageSource::ImageSource(const ShardImage& image) : image_(image) {
  std::size_t offset = 0;
  for (const std::uint32_t elements : image.block_elements) {
    offsets_.push_back(offset);
    offset += elements;
  }
}

std::string ImageSource::EncodeBlock(std::size_t index) const {
  return checkpoint::EncodeBlock(image_, index, offsets_[index]);
}

void ImageSource::VisitRows(std::size_t table, std::size_t, const RowVisit& visit) const {
  const RowTableImage& from = image_.rows[table];
  for (std::size_t row = 0; row < from.rows(); ++row) {
    visit({from.key(row), row}, from.records.data() + row * from.record_bytes());
  }
}

void ImageSource::CopyRow(std::size_t table, const SourceRow& row, std::byte* to) const {
  const RowTableImage& from = image_.rows[table];
  std::memcpy(to, from.records.data() + row.place * from.record_bytes(), from.record_bytes());
}

}  // namespace ps::checkpoint
