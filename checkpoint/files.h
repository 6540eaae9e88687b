// Durable files, and the seal over the files of a checkpoint part.
//
// The seal lists every file of a part with its size, the digest of the whole and
// the digest of its last 64 KiB (in which RocksDB keeps what locates everything
// else of a table), and ends with a digest of itself. Blocks on the disk; any
// thread. kIo: the system refused; kInvalid: what is there is not what was sealed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/storage.h"
#include "common/result.h"

namespace ps::checkpoint {

inline constexpr const char* kSealFile = "SEAL";
inline constexpr std::size_t kTailBytes = std::size_t{64} << 10;
inline constexpr std::size_t kMaxSealBytes = std::size_t{16} << 20;

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor();
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;

  int get() const { return fd_; }
  // Close may be what reports a failed write: its result is that of close().
  int Close();

 private:
  int fd_;
};

// "FILE: cannot sync: No space left on device"; kNotFound if there is no such file, else kIo.
Error IoError(const std::filesystem::path& path, const std::string& what, int error_number);

Status SyncFile(const std::filesystem::path& path);
Status SyncDirectory(const std::filesystem::path& path);
// Creates what is missing of `path` and makes each new entry durable in its parent.
Status CreateDirectories(const std::filesystem::path& path);
// Those right below `path`, sorted; no links, as what they lead to is not of this folder.
Result<std::vector<std::filesystem::path>> ListDirectories(const std::filesystem::path& path);
// The same, and none if it cannot be read: it may just have been deleted.
std::vector<std::filesystem::path> DirectoriesIn(const std::filesystem::path& path);
// Temporary file, fsync, rename, fsync of the directory.
Status WriteFileDurably(const std::filesystem::path& path, std::string_view content);
// kNotFound if there is none; kInvalid if it is larger than `limit`.
Result<std::string> ReadWholeFile(const std::filesystem::path& path, std::size_t limit,
                                  const Storage& storage = ThisHost());

struct SealedFile {
  std::string name;
  std::uint64_t bytes = 0;
  std::string digest;
  std::string tail_digest;
};

// Lists all regular files of `directory` but the seal itself, in order of their names, and reads
// them, but for those whose digest `known` knows; for others it is empty.
Result<std::vector<SealedFile>> SealFiles(
    const std::filesystem::path& directory,
    const std::function<std::string(const std::filesystem::path&)>& known = {});
std::string EncodeSeal(const std::vector<SealedFile>& files);
Result<std::vector<SealedFile>> DecodeSeal(std::string_view text);

// Compares size and tail, and with `whole` every byte.
Status CheckSealedFile(const Storage& storage, const std::filesystem::path& directory,
                       const SealedFile& file, bool whole,
                       const std::function<void(std::uint64_t)>& progress);
// Of the whole file, as it is read: whoever copies it looks at it too.
Status CheckSealedFile(const Storage& storage, const std::filesystem::path& directory,
                       const SealedFile& file,
                       const std::function<Status(std::string_view piece)>& take);

}  // namespace ps::checkpoint
