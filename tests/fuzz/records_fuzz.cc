// Data files from a stranger: idx and csv, compressed or not.
//
// Input: u8 flags (1: csv, 2: with a header, 4: a column of ids), then the file; of idx, u16 length
// of the images (little endian), images, labels. What opens must give every record it says it has.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <vector>

#include "common/check.h"
#include "ps-worker/engine/data/dataset.h"

namespace {

// A file that is in memory alone, and has a path.
class MemoryFile {
 public:
  explicit MemoryFile(const char* name) : fd_(memfd_create(name, 0)) { PS_CHECK(fd_ >= 0, name); }
  void Set(const std::uint8_t* data, std::size_t size) const {
    PS_CHECK(ftruncate(fd_, 0) == 0, size);
    PS_CHECK(pwrite(fd_, data, size, 0) == static_cast<ssize_t>(size), size);
  }
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  const int fd_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const MemoryFile first("first");
  static const MemoryFile second("second");
  if (size < 3) return 0;
  const std::uint8_t flags = data[0];
  ps::DataSourceSpec source;
  std::vector<std::string> ids;
  if ((flags & 1) != 0) {
    first.Set(data + 1, size - 1);
    source.format = "csv";
    source.file = first.path();
    source.header = (flags & 2) != 0;
    source.label = source.header ? "label" : "0";
    if ((flags & 4) != 0) ids.push_back(source.header ? "user" : "1");
  } else {
    const std::size_t images = data[1] | static_cast<std::size_t>(data[2]) << 8;
    if (images > size - 3) return 0;
    first.Set(data + 3, images);
    second.Set(data + 3 + images, size - 3 - images);
    source.format = "idx";
    source.images = first.path();
    source.labels = second.path();
  }
  const auto opened = ps::worker::Dataset::Open(source, ps::DataSpec{}, ids);
  if (!opened.ok()) return 0;
  const ps::worker::Dataset& dataset = *opened.value();
  std::uint64_t shape = 1;
  for (const std::int64_t extent : dataset.feature_shape()) {
    shape *= static_cast<std::uint64_t>(extent);
  }
  PS_CHECK(shape == dataset.features(), shape);
  std::vector<float> features(dataset.features());
  std::vector<std::uint64_t> found(dataset.id_columns());
  for (std::uint64_t record = 0; record < dataset.records(); ++record) {
    std::int64_t label = 0;
    float target = 0;
    PS_CHECK(dataset
                 .Read(std::vector{record}, features.data(), &label, &target,
                       found.empty() ? nullptr : found.data())
                 .ok(),
             record);
  }
  PS_CHECK(!dataset.Read(std::vector{dataset.records()}, features.data(), nullptr, nullptr).ok(),
           dataset.records());
  return 0;
}
