#include "ps-worker/agent/task_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>
#include <vector>

namespace ps::worker {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t kTailBytes = 4096;
constexpr std::size_t kLineBytesMax = 500;

Error LogError(const fs::path& path, const std::string& what) {
  return Error{errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo,
               path.string() + ": " + what + ": " + std::generic_category().message(errno)};
}

Result<net::UniqueFd> OpenToRead(const fs::path& path) {
  net::UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file.valid()) return LogError(path, "cannot open the log");
  return file;
}

}  // namespace

Result<net::UniqueFd> OpenTaskLog(const fs::path& path, const std::string& heading) {
  net::UniqueFd file(
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0640));
  if (!file.valid()) return LogError(path, "cannot open the log");
  const std::string line = "--- " + heading + "\n";
  if (::write(file.get(), line.data(), line.size()) < 0) return LogError(path, "cannot write");
  return file;
}

Status TrimTaskLog(const fs::path& path, std::uint64_t keep_bytes) {
  net::UniqueFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file.valid()) return LogError(path, "cannot open the log");
  struct stat status = {};
  if (::fstat(file.get(), &status) != 0) return LogError(path, "cannot read its size");
  const auto occupied = static_cast<std::uint64_t>(status.st_blocks) * 512;
  const auto size = static_cast<std::uint64_t>(status.st_size);
  if (size <= 2 * keep_bytes || occupied <= 2 * keep_bytes) return Ok();
  // Only whole blocks become a hole; part of one would be left as zeros.
  const auto block = static_cast<std::uint64_t>(std::max<blksize_t>(status.st_blksize, 4096));
  const std::uint64_t freed = (size - keep_bytes) / block * block;
  if (freed == 0 || ::fallocate(file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                                static_cast<off_t>(freed)) == 0) {
    return Ok();
  }
  if (errno != EOPNOTSUPP && errno != ENOSYS) return LogError(path, "cannot trim");
  // A file system without holes: the log starts again, which is better than to fill the disk.
  if (::ftruncate(file.get(), 0) != 0) return LogError(path, "cannot truncate");
  return Ok();
}

Result<LogPiece> ReadTaskLog(const fs::path& path, std::uint64_t offset, std::uint32_t limit) {
  const net::UniqueFd file = PS_TRY(OpenToRead(path));
  struct stat status = {};
  if (::fstat(file.get(), &status) != 0) return LogError(path, "cannot read its size");
  const auto size = static_cast<std::uint64_t>(status.st_size);
  limit = std::min(limit == 0 ? kLogChunkBytesMax : limit, kLogChunkBytesMax);
  LogPiece piece;
  piece.offset =
      offset == kLogTail ? size - std::min<std::uint64_t>(size, limit) : std::min(offset, size);
  // Over what was trimmed.
  const off_t data = ::lseek(file.get(), static_cast<off_t>(piece.offset), SEEK_DATA);
  if (data > static_cast<off_t>(piece.offset)) piece.offset = static_cast<std::uint64_t>(data);
  piece.text.resize(static_cast<std::size_t>(std::min<std::uint64_t>(limit, size - piece.offset)));
  std::size_t done = 0;
  while (done < piece.text.size()) {
    const ssize_t got = ::pread(file.get(), piece.text.data() + done, piece.text.size() - done,
                                static_cast<off_t>(piece.offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return LogError(path, "cannot read");
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  piece.text.resize(done);
  piece.end = piece.offset + done >= size;
  return piece;
}

std::string LastLogLines(const fs::path& path, std::size_t lines_max) {
  const Result<LogPiece> piece = ReadTaskLog(path, kLogTail, kTailBytes);
  if (!piece.ok()) return "";
  std::vector<std::string> lines;
  std::size_t begin = 0;
  while (begin < piece->text.size()) {
    const std::size_t newline = std::min(piece->text.find('\n', begin), piece->text.size());
    std::string line = piece->text.substr(begin, newline - begin);
    begin = newline + 1;
    if (line.empty()) continue;
    // What came before belongs to an earlier task.
    if (line.compare(0, 4, "--- ") == 0) {
      lines.clear();
      continue;
    }
    if (line.size() > kLineBytesMax) line = line.substr(0, kLineBytesMax) + "...";
    lines.push_back(std::move(line));
  }
  std::string text;
  for (std::size_t i = lines.size() - std::min(lines.size(), lines_max); i < lines.size(); ++i) {
    text += (text.empty() ? "" : "\n") + lines[i];
  }
  return text;
}

void PruneTaskLogs(const fs::path& directory, std::size_t keep) {
  std::vector<std::pair<fs::file_time_type, fs::path>> files;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code gone;
    const fs::file_time_type time = entry->last_write_time(gone);
    if (!gone) files.emplace_back(time, entry->path());
  }
  if (files.size() <= keep) return;
  std::sort(files.begin(), files.end());
  for (std::size_t i = 0; i < files.size() - keep; ++i) fs::remove(files[i].second, error);
}

}  // namespace ps::worker
