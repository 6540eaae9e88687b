#include "checkpoint/storage.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "checkpoint/files.h"

namespace ps::checkpoint {

namespace fs = std::filesystem;

Result<std::vector<std::string>> LocalStorage::ListDirectories(const fs::path& directory) const {
  const fs::path path = LocalPath(directory);
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator entry(path, error);
  for (const fs::directory_iterator end; !error && entry != end; entry.increment(error)) {
    if (entry->is_directory(error) && entry->path().extension() != ".partial") {
      names.push_back(entry->path().filename().string());
    }
  }
  if (error) return IoError(path, "cannot list", error.value());
  std::sort(names.begin(), names.end());
  return names;
}

Result<std::uint64_t> LocalStorage::FileBytes(const fs::path& file) const {
  const fs::path path = LocalPath(file);
  struct stat found {};
  if (::stat(path.c_str(), &found) != 0) return IoError(path, "cannot read its size", errno);
  if (!S_ISREG(found.st_mode)) {
    return Error{ErrorCode::kNotFound, path.string() + ": is not a file"};
  }
  return static_cast<std::uint64_t>(found.st_size);
}

Result<std::size_t> LocalStorage::Read(const fs::path& file, std::uint64_t offset,
                                       std::span<std::byte> out) const {
  const fs::path path = LocalPath(file);
  const FileDescriptor opened(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (opened.get() < 0) return IoError(path, "cannot open", errno);
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t got = ::pread(opened.get(), out.data() + done, out.size() - done,
                                static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return IoError(path, "cannot read", errno);
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

const Storage& ThisHost() {
  static const LocalStorage storage;
  return storage;
}

}  // namespace ps::checkpoint
