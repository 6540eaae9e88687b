// Where files of checkpoints lie, to those who read them: on this host, or on others.
//
// Paths are relative to a folder that the storage knows. Calls block on the disk or on
// the network, with a deadline; any thread. What is read is not trusted: seals
// and digests say whether it is what was written.
//
// Errors: kNotFound if there is no such file or directory; kUnreachable or
// kTimeout if who has it does not answer; kIo if the system refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"

namespace ps::checkpoint {

class Storage {
 public:
  virtual ~Storage() = default;

  // Names of the directories in it, in order; what is still being written is left out.
  virtual Result<std::vector<std::string>> ListDirectories(
      const std::filesystem::path& directory) const = 0;
  virtual Result<std::uint64_t> FileBytes(const std::filesystem::path& file) const = 0;
  // Returns how many bytes it read: fewer than `out` has only at the end of the file.
  virtual Result<std::size_t> Read(const std::filesystem::path& file, std::uint64_t offset,
                                   std::span<std::byte> out) const = 0;

  // Where this host has it; empty if it is elsewhere.
  virtual std::filesystem::path LocalPath(const std::filesystem::path& path) const = 0;
  // For messages.
  virtual std::string Describe(const std::filesystem::path& path) const = 0;
};

// Files of this host below `root`; with an empty one paths are those of the system.
class LocalStorage : public Storage {
 public:
  explicit LocalStorage(std::filesystem::path root = {}) : root_(std::move(root)) {}

  Result<std::vector<std::string>> ListDirectories(
      const std::filesystem::path& directory) const override;
  Result<std::uint64_t> FileBytes(const std::filesystem::path& file) const override;
  Result<std::size_t> Read(const std::filesystem::path& file, std::uint64_t offset,
                           std::span<std::byte> out) const override;
  std::filesystem::path LocalPath(const std::filesystem::path& path) const override {
    return root_ / path;
  }
  std::string Describe(const std::filesystem::path& path) const override {
    return LocalPath(path).string();
  }

 private:
  const std::filesystem::path root_;
};

// Paths as the system has them.
const Storage& ThisHost();

}  // namespace ps::checkpoint
