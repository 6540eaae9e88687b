// The log of a worker slot of a job on this node: what its tasks print, one after the other.
//
// A task writes into the file itself (O_APPEND), so nothing is lost when it crashes. The file is
// kept small by punching a hole into its front: offsets into it stay what they were, only the old
// bytes are gone. Functions of one thread each call; they block on the disk, briefly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

#include "common/net/unique_fd.h"
#include "common/result.h"

namespace ps::worker {

// The offset that asks ReadTaskLog for the end of the log.
inline constexpr std::uint64_t kLogTail = UINT64_MAX;
inline constexpr std::uint32_t kLogChunkBytesMax = std::uint32_t{1} << 20;

// For stdout and stderr of a task; begins with a line that says which.
Result<net::UniqueFd> OpenTaskLog(const std::filesystem::path& path, const std::string& heading);

// Frees the oldest bytes once the log occupies more than twice `keep_bytes`.
Status TrimTaskLog(const std::filesystem::path& path, std::uint64_t keep_bytes);

struct LogPiece {
  std::uint64_t offset = 0;  // where `text` begins: later than asked for if that was trimmed
  std::string text;
  bool end = false;  // `text` reaches the present end of the log
};
// At most `limit` bytes (and kLogChunkBytesMax) from `offset`. kNotFound if there is no log.
Result<LogPiece> ReadTaskLog(const std::filesystem::path& path, std::uint64_t offset,
                             std::uint32_t limit);

// The last lines, for a message to people; empty if there is nothing.
std::string LastLogLines(const std::filesystem::path& path, std::size_t lines_max);

// Deletes all but the newest `keep` of the files in the directory.
void PruneTaskLogs(const std::filesystem::path& directory, std::size_t keep);

}  // namespace ps::worker
