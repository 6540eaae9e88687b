#include "checkpoint/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <span>
#include <system_error>
#include <utility>

#include "checkpoint/digest.h"
#include "checkpoint/image.h"
#include "common/error_id.h"

namespace ps::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSealHeading = "ds-checkpoint-part 1\n";
constexpr std::size_t kReadBytes = std::size_t{1} << 20;

Status SyncPath(const fs::path& path, int flags) {
  FileDescriptor file(::open(path.c_str(), flags | O_CLOEXEC));
  if (file.get() < 0) return IoError(path, "cannot open to sync", errno);
  if (::fsync(file.get()) != 0) return IoError(path, "cannot sync", errno);
  return Ok();
}

// Reads the whole file in pieces; `take` gets each.
Status ForEachPiece(const Storage& storage, const fs::path& path,
                    const std::function<Status(std::string_view)>& take) {
  std::string buffer(kReadBytes, '\0');
  std::uint64_t offset = 0;
  while (true) {
    const std::size_t got =
        PS_TRY(storage.Read(path, offset, std::as_writable_bytes(std::span(buffer))));
    if (got > 0) PS_TRY(take(std::string_view(buffer.data(), got)));
    if (got < buffer.size()) return Ok();
    offset += got;
  }
}

Result<std::string> ReadTail(const Storage& storage, const fs::path& path,
                             std::uint64_t file_bytes) {
  std::string tail(static_cast<std::size_t>(std::min<std::uint64_t>(file_bytes, kTailBytes)), '\0');
  const std::size_t got =
      PS_TRY(storage.Read(path, file_bytes - tail.size(), std::as_writable_bytes(std::span(tail))));
  if (got < tail.size()) {
    return Error{ErrorId::kCheckpointDamaged, storage.Describe(path) + ": the file is cut short"};
  }
  return tail;
}

Result<std::string> DigestFile(const Storage& storage, const fs::path& path,
                               const std::function<Status(std::string_view)>& take) {
  Digester digester;
  PS_TRY(ForEachPiece(storage, path, [&](std::string_view piece) -> Status {
    digester.Update(std::as_bytes(std::span(piece)));
    return take ? take(piece) : Ok();
  }));
  return digester.Hex();
}

// A file name of the part: no separators, nothing that leaves the directory.
bool IsPlainName(std::string_view name) {
  if (name.empty() || name.size() > 255 || name == "." || name == "..") return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' ||
           c == '-' || c == '_';
  });
}

}  // namespace

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) ::close(fd_);
}

int FileDescriptor::Close() { return ::close(std::exchange(fd_, -1)); }

Error IoError(const fs::path& path, const std::string& what, int error_number) {
  const bool full = error_number == ENOSPC || error_number == EDQUOT;
  return Error{error_number == ENOENT ? ErrorId::kNotFound
               : full                 ? ErrorId::kDiskFull
                                      : ErrorId::kIo,
               path.string() + ": " + what + ": " +
                   std::error_code(error_number, std::generic_category()).message()};
}

Status SyncFile(const fs::path& path) { return SyncPath(path, O_RDONLY); }

Status SyncDirectory(const fs::path& path) { return SyncPath(path, O_RDONLY | O_DIRECTORY); }

Status CreateDirectories(const fs::path& path) {
  std::error_code error;
  if (path.empty() || fs::is_directory(path, error)) return Ok();
  const fs::path parent = path.parent_path();
  if (parent != path) PS_TRY(CreateDirectories(parent));
  if (::mkdir(path.c_str(), 0777) != 0 && errno != EEXIST) {
    return IoError(path, "cannot create the directory", errno);
  }
  return SyncDirectory(parent.empty() ? fs::path(".") : parent);
}

Result<std::vector<fs::path>> ListDirectories(const fs::path& path) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator at(path, error), end; !error && at != end; at.increment(error)) {
    std::error_code ignored;
    if (at->is_directory(ignored) && !at->is_symlink(ignored)) found.push_back(at->path());
  }
  if (error) return IoError(path, "cannot list", error.value());
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<fs::path> DirectoriesIn(const fs::path& path) {
  auto found = ListDirectories(path);
  return found.ok() ? std::move(found).value() : std::vector<fs::path>();
}

Status WriteFileDurably(const fs::path& path, std::string_view content) {
  fs::path temporary = path;
  temporary += ".tmp";
  FileDescriptor file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (file.get() < 0) return IoError(temporary, "cannot create", errno);
  while (!content.empty()) {
    const ssize_t put = ::write(file.get(), content.data(), content.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return IoError(temporary, "cannot write", errno);
    content.remove_prefix(static_cast<std::size_t>(put));
  }
  if (::fsync(file.get()) != 0) return IoError(temporary, "cannot sync", errno);
  if (file.Close() != 0) return IoError(temporary, "cannot close", errno);
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    return IoError(path, "cannot rename into place", errno);
  }
  return SyncDirectory(path.has_parent_path() ? path.parent_path() : fs::path("."));
}

Result<std::string> ReadWholeFile(const fs::path& path, std::size_t limit, const Storage& storage) {
  std::string content;
  PS_TRY(ForEachPiece(storage, path, [&](std::string_view piece) -> Status {
    if (content.size() + piece.size() > limit) {
      return Error{ErrorId::kCheckpointDamaged,
                   storage.Describe(path) + ": larger than " + std::to_string(limit) + " bytes"};
    }
    content.append(piece);
    return Ok();
  }));
  return content;
}

Result<std::vector<SealedFile>> SealFiles(
    const fs::path& directory, const std::function<std::string(const fs::path&)>& known) {
  std::vector<SealedFile> files;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name == kSealFile || !entry->is_regular_file(error)) continue;
    SealedFile file;
    file.name = name;
    file.bytes = entry->file_size(error);
    if (error) break;
    if (known) file.digest = known(entry->path());
    if (file.digest.empty()) file.digest = PS_TRY(DigestFile(ThisHost(), entry->path(), {}));
    file.tail_digest = HexDigest(PS_TRY(ReadTail(ThisHost(), entry->path(), file.bytes)));
    files.push_back(std::move(file));
  }
  if (error) return IoError(directory, "cannot list", error.value());
  std::sort(files.begin(), files.end(),
            [](const SealedFile& a, const SealedFile& b) { return a.name < b.name; });
  return files;
}

std::string EncodeSeal(const std::vector<SealedFile>& files) {
  std::string text(kSealHeading);
  for (const SealedFile& file : files) {
    text += file.digest + ' ' + file.tail_digest + ' ' + std::to_string(file.bytes) + ' ' +
            file.name + '\n';
  }
  return text + "seal " + HexDigest(text) + '\n';
}

Result<std::vector<SealedFile>> DecodeSeal(std::string_view text) {
  const Error bad{ErrorId::kCheckpointDamaged, "the seal is damaged"};
  if (text.substr(0, kSealHeading.size()) != kSealHeading) {
    if (text.substr(0, 19) == kSealHeading.substr(0, 19)) {
      return Error{ErrorId::kCheckpointVersion,
                   "a part of format version " +
                       std::string(text.substr(19, text.find('\n') - 19)) +
                       ", this program reads 1"};
    }
    return bad;
  }
  std::vector<SealedFile> files;
  std::string_view rest = text.substr(kSealHeading.size());
  while (!rest.empty() && rest.substr(0, 5) != "seal ") {
    const std::size_t newline = rest.find('\n');
    if (newline == std::string_view::npos || newline < 67) return bad;
    const std::string_view line = rest.substr(0, newline);
    rest.remove_prefix(newline + 1);
    SealedFile file;
    file.digest = line.substr(0, 32);
    file.tail_digest = line.substr(33, 32);
    const std::size_t space = line.find(' ', 66);
    if (space == std::string_view::npos) return bad;
    const auto parsed = std::from_chars(line.data() + 66, line.data() + space, file.bytes);
    if (parsed.ec != std::errc() || parsed.ptr != line.data() + space) return bad;
    file.name = line.substr(space + 1);
    if (!IsHexDigest(file.digest) || !IsHexDigest(file.tail_digest) || !IsPlainName(file.name)) {
      return bad;
    }
    files.push_back(std::move(file));
  }
  // Whatever was not looked at above (separators, leading zeros, the digest) is compared here.
  if (EncodeSeal(files) != text) return bad;
  return files;
}

namespace {

// What is wrong with the file's place and size.
Status CheckSize(const Storage& storage, const fs::path& path, std::uint64_t expected) {
  const Result<std::uint64_t> bytes = storage.FileBytes(path);
  if (!bytes.ok() && bytes.error().code == ErrorCode::kNotFound) {
    return Error{ErrorId::kCheckpointDamaged, storage.Describe(path) + ": the file is missing"};
  }
  if (PS_TRY(bytes) != expected) {
    return Error{ErrorId::kCheckpointDamaged, storage.Describe(path) + ": " +
                                                  std::to_string(*bytes) + " bytes, " +
                                                  std::to_string(expected) + " were written"};
  }
  return Ok();
}

Status CheckDigest(const Storage& storage, const fs::path& path, const std::string& found,
                   const std::string& expected) {
  if (found == expected) return Ok();
  return Error{ErrorId::kCheckpointDamaged,
               storage.Describe(path) + ": the content is not what was written"};
}

}  // namespace

Status CheckSealedFile(const Storage& storage, const fs::path& directory, const SealedFile& file,
                       bool whole, const std::function<void(std::uint64_t)>& progress) {
  const fs::path path = directory / file.name;
  if (whole) {
    return CheckSealedFile(storage, directory, file, [&](std::string_view piece) {
      if (progress) progress(piece.size());
      return Ok();
    });
  }
  PS_TRY(CheckSize(storage, path, file.bytes));
  return CheckDigest(storage, path, HexDigest(PS_TRY(ReadTail(storage, path, file.bytes))),
                     file.tail_digest);
}

Status CheckSealedFile(const Storage& storage, const fs::path& directory, const SealedFile& file,
                       const std::function<Status(std::string_view)>& take) {
  const fs::path path = directory / file.name;
  PS_TRY(CheckSize(storage, path, file.bytes));
  return CheckDigest(storage, path, PS_TRY(DigestFile(storage, path, take)), file.digest);
}

}  // namespace ps::checkpoint
