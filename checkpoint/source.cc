#include "checkpoint/source.h"

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

void ImageSource::AppendRows(std::size_t table, std::size_t, std::vector<SourceRow>& rows) const {
  const RowTableImage& from = image_.rows[table];
  for (std::size_t row = 0; row < from.rows(); ++row) {
    rows.push_back({from.key(row), from.records.data() + row * from.record_bytes()});
  }
}

}  // namespace ps::checkpoint
