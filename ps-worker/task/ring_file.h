// The file behind a retention ring: memory that two processes map, first a task, later its agent.
//
// It lies on tmpfs or on a local disk; nothing syncs it, because it has to outlive the task, not
// the machine. Its pages are taken from the file system only as the ring reaches them (Back), so
// that a full file system is an error text and not a SIGBUS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "common/net/unique_fd.h"
#include "common/result.h"

namespace ps::worker {

class RingFile {
 public:
  // A new file of this size; an old one of the name is removed. kIo, or kInvalid for the size.
  static Result<std::shared_ptr<RingFile>> Create(const std::string& path, std::uint64_t bytes);
  // kNotFound if there is none.
  static Result<std::shared_ptr<RingFile>> Open(const std::string& path);
  ~RingFile();
  RingFile(const RingFile&) = delete;
  RingFile& operator=(const RingFile&) = delete;

  const std::string& path() const { return path_; }
  // Mapped as long as this object lives: hand the shared_ptr to the ring as its keep_alive.
  std::span<std::byte> region() const { return region_; }

  // Takes memory for region [begin, end) from the file system, in large steps. kIo with what to do
  // when there is none left.
  Status Back(std::size_t begin, std::size_t end);

 private:
  struct Key {};

 public:
  // Only for Create and Open.
  RingFile(Key, std::string path, net::UniqueFd fd, std::span<std::byte> region);

 private:
  const std::string path_;
  const net::UniqueFd fd_;
  const std::span<std::byte> region_;
  std::size_t backed_ = 0;  // [0, backed_) has memory
};

}  // namespace ps::worker
