#include "ps-worker/task/ring_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "common/error_id.h"
#include "ps-worker/core/retention_ring.h"

namespace ps::worker {
namespace {

constexpr std::size_t kBackBytes = std::size_t{16} << 20;
constexpr std::uint64_t kRingBytesMax = std::uint64_t{1} << 40;

Error IoError(const std::string& path, const char* what) {
  return Error{errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo,
               "retention ring " + path + ": " + what + ": " + std::strerror(errno)};
}

Status CheckSize(const std::string& path, std::uint64_t bytes) {
  if (bytes >= RetentionRing::kRegionBytesMin && bytes <= kRingBytesMax) return Ok();
  return Error{ErrorCode::kInvalid,
               "retention ring " + path + ": " + std::to_string(bytes) + " bytes make no ring"};
}

Result<std::span<std::byte>> Map(const std::string& path, int fd, std::uint64_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return IoError(path, "mmap");
  return std::span<std::byte>(static_cast<std::byte*>(memory), bytes);
}

}  // namespace

RingFile::RingFile(Key, std::string path, net::UniqueFd fd, std::span<std::byte> region)
    : path_(std::move(path)), fd_(std::move(fd)), region_(region) {}

RingFile::~RingFile() { munmap(region_.data(), region_.size()); }

Result<std::shared_ptr<RingFile>> RingFile::Create(const std::string& path, std::uint64_t bytes) {
  PS_TRY(CheckSize(path, bytes));
  unlink(path.c_str());
  net::UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (fd.get() < 0) return IoError(path, "cannot be created");
  if (ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return IoError(path, "ftruncate");
  const auto region = PS_TRY(Map(path, fd.get(), bytes));
  auto file = std::make_shared<RingFile>(Key(), path, std::move(fd), region);
  PS_TRY(file->Back(0, RetentionRing::kHeaderBytes));
  return file;
}

Result<std::shared_ptr<RingFile>> RingFile::Open(const std::string& path) {
  net::UniqueFd fd(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (fd.get() < 0) return IoError(path, "cannot be opened");
  struct stat status = {};
  if (fstat(fd.get(), &status) != 0) return IoError(path, "stat");
  if (!S_ISREG(status.st_mode)) {
    return Error{ErrorCode::kInvalid, "retention ring " + path + ": not a regular file"};
  }
  const auto bytes = static_cast<std::uint64_t>(status.st_size);
  PS_TRY(CheckSize(path, bytes));
  const auto region = PS_TRY(Map(path, fd.get(), bytes));
  return std::make_shared<RingFile>(Key(), path, std::move(fd), region);
}

Status RingFile::Back(std::size_t begin, std::size_t end) {
  // The ring may write one record head behind its last entry.
  end = std::min(end + 64, region_.size());
  if (begin >= end || end <= backed_) return Ok();
  // The ring fills from the front, so what lies below is backed or was skipped.
  const std::size_t from = backed_;
  const std::size_t to = std::min(region_.size(), (end + kBackBytes - 1) / kBackBytes * kBackBytes);
  const int error =
      posix_fallocate(fd_.get(), static_cast<off_t>(from), static_cast<off_t>(to - from));
  if (error != 0) {
    return Error{ErrorId::kRingMemory, "retention ring " + path_ + ": no memory for " +
                                           std::to_string(to) + " bytes (" + std::strerror(error) +
                                           "); make room there or lower "
                                           "resources.retention_mebibytes of the job"};
  }
  backed_ = to;
  return Ok();
}

}  // namespace ps::worker
