// What tells that a file was written or replaced since we looked at it last.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <string>

namespace ps::net {

struct FileState {
  ino_t inode = 0;
  off_t size = -1;
  std::int64_t changed_ns = 0;

  friend bool operator==(const FileState&, const FileState&) = default;
};

// Of a file that cannot be looked at: as fresh.
inline FileState StateOf(const std::string& path) {
  struct stat state {};
  if (::stat(path.c_str(), &state) != 0) return {};
  return {state.st_ino, state.st_size,
          std::int64_t{state.st_mtim.tv_sec} * 1'000'000'000 + state.st_mtim.tv_nsec};
}

}  // namespace ps::net
