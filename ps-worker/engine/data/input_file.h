// Reads a data file from begin to end, gzip or plain.
//
// Errors name the file; a file that ends early says how many bytes were expected and found. Bytes
// after the end of a gzip stream that begin no other one are passed over, as gzip does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/result.h"

struct gzFile_s;

namespace ps::worker {

class InputFile {
 public:
  static Result<InputFile> Open(const std::string& path);

  const std::string& path() const { return path_; }

  // Appends exactly `bytes` bytes; kInvalid if the file ends before. Memory grows with what is
  // there, not with what a header claims.
  Status Read(std::uint64_t bytes, std::vector<std::uint8_t>& to);
  // kInvalid if anything is left.
  Status ExpectEnd();
  // Appends all that is left.
  Status ReadRest(std::string& to);

 private:
  struct Close {
    void operator()(gzFile_s* file) const;
  };

  InputFile(std::string path, gzFile_s* file) : path_(std::move(path)), file_(file) {}

  // At most 1 MiB; 0 at the end.
  Result<std::size_t> ReadSome(void* to, std::size_t bytes);

  std::string path_;
  std::unique_ptr<gzFile_s, Close> file_;
  std::uint64_t position_ = 0;
  std::uint64_t expected_ = 0;  // bytes that the caller knows must be there
};

}  // namespace ps::worker
