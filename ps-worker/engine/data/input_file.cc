#include "ps-worker/engine/data/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/error_id.h"

namespace ps::worker {
namespace {

constexpr std::size_t kReadBytes = std::size_t{128} << 10;

Error CannotRead(const std::string& path, int error_number) {
  const ErrorId id =
      error_number == ENOENT ? ErrorId::kDataFileMissing : ErrorId::kDataFileUnreadable;
  return Error{id, path + ": cannot be read: " + std::strerror(error_number)};
}

}  // namespace

void InputFile::Close::operator()(gzFile_s* file) const { gzclose_r(file); }

Result<InputFile> InputFile::Open(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return CannotRead(path, errno);
  struct stat status {};
  if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(descriptor);
    return Error{ErrorId::kDataFileFormat, path + ": is not a file"};
  }
  gzFile file = gzdopen(descriptor, "rb");
  if (file == nullptr) {
    close(descriptor);
    return CannotRead(path, ENOMEM);
  }
  gzbuffer(file, static_cast<unsigned>(kReadBytes));
  return InputFile(path, file);
}

Result<std::size_t> InputFile::ReadSome(void* to, std::size_t bytes) {
  const int got = gzread(file_.get(), to, static_cast<unsigned>(std::min(bytes, kReadBytes)));
  int code = Z_OK;
  const char* reason = gzerror(file_.get(), &code);
  // A read that brought bytes may have seen the cut already; the next one brings none and says so.
  if (got < 0 || (got == 0 && code != Z_OK && code != Z_STREAM_END)) {
    if (code == Z_ERRNO) return CannotRead(path_, errno);
    std::string found = std::to_string(position_ + static_cast<std::uint64_t>(std::max(got, 0)));
    if (expected_ > position_) found += " of " + std::to_string(expected_);
    return Error{ErrorId::kDataFileDamaged, path_ +
                                                ": the compressed data is cut or damaged after " +
                                                found + " bytes of content: " + reason};
  }
  position_ += static_cast<std::uint64_t>(got);
  return static_cast<std::size_t>(got);
}

Status InputFile::Read(std::uint64_t bytes, std::vector<std::uint8_t>& to) {
  expected_ = position_ + bytes;
  while (position_ < expected_) {
    const std::size_t before = to.size();
    to.resize(before + std::min<std::uint64_t>(expected_ - position_, kReadBytes));
    const std::size_t got = PS_TRY(ReadSome(to.data() + before, to.size() - before));
    to.resize(before + got);
    if (got == 0) {
      return Error{ErrorId::kDataFileDamaged,
                   path_ + ": the file is cut: " + std::to_string(expected_) + " bytes expected, " +
                       std::to_string(position_) + " found"};
    }
  }
  return Ok();
}

Status InputFile::ExpectEnd() {
  const std::uint64_t expected = position_;
  std::vector<std::uint8_t> ignored(kReadBytes);
  while (PS_TRY(ReadSome(ignored.data(), ignored.size())) > 0) {
  }
  if (position_ == expected) return Ok();
  return Error{ErrorId::kDataFileDamaged,
               path_ + ": the file is too long: " + std::to_string(expected) + " bytes expected, " +
                   std::to_string(position_) + " found"};
}

Status InputFile::ReadRest(std::string& to) {
  while (true) {
    const std::size_t before = to.size();
    to.resize(before + kReadBytes);
    const std::size_t got = PS_TRY(ReadSome(to.data() + before, kReadBytes));
    to.resize(before + got);
    if (got == 0) return Ok();
  }
}

}  // namespace ps::worker
