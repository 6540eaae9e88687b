#include "checkpoint/part_directory.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <string_view>
#include <system_error>

#include "checkpoint/manifest.h"

namespace ps::checkpoint {

namespace fs = std::filesystem;

namespace {

fs::path PartialOf(const fs::path& directory) {
  fs::path partial = directory;
  partial += ".partial";
  return partial;
}

Status RemoveTree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return IoError(path, "cannot remove", error.value());
  return Ok();
}

Status CheckFreeSpace(const fs::path& directory, std::uint64_t expected_bytes) {
  struct statvfs space = {};
  if (::statvfs(directory.c_str(), &space) != 0) {
    return IoError(directory, "cannot read the free space", errno);
  }
  const std::uint64_t free_bytes = std::uint64_t{space.f_bavail} * space.f_frsize;
  if (free_bytes / 2 < expected_bytes) {
    return Error{ErrorCode::kIo,
                 directory.string() +
                     ": not enough space for a checkpoint: " + std::to_string(free_bytes >> 20) +
                     " MiB free, " + std::to_string((2 * expected_bytes) >> 20) +
                     " MiB wanted (twice the data); free some or lower checkpoint.keep"};
  }
  return Ok();
}

Status WriteAll(const FileDescriptor& file, const fs::path& path, std::string_view piece) {
  while (!piece.empty()) {
    const ssize_t put = ::write(file.get(), piece.data(), piece.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return IoError(path, "cannot write", errno);
    piece.remove_prefix(static_cast<std::size_t>(put));
  }
  return Ok();
}

Status CopyFile(const Storage& source, const fs::path& part, const SealedFile& sealed,
                const fs::path& target, const std::function<bool(std::uint64_t)>& progress) {
  FileDescriptor file(::open(target.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (file.get() < 0) return IoError(target, "cannot create", errno);
  const auto take = [&](std::string_view piece) -> Status {
    PS_TRY(WriteAll(file, target, piece));
    if (progress && !progress(piece.size())) {
      return Error{ErrorCode::kClosed, target.string() + ": the copy was stopped"};
    }
    return Ok();
  };
  PS_TRY(CheckSealedFile(source, part, sealed, take));
  if (::fsync(file.get()) != 0) return IoError(target, "cannot sync", errno);
  if (file.Close() != 0) return IoError(target, "cannot close", errno);
  return Ok();
}

Status CopyFiles(const Storage& source, const fs::path& part, const std::vector<SealedFile>& files,
                 const fs::path& directory, const std::function<bool(std::uint64_t)>& progress) {
  std::uint64_t bytes = 0;
  for (const SealedFile& file : files) bytes += file.bytes;
  const fs::path partial = PS_TRY(BeginPart(directory, bytes));
  for (const SealedFile& file : files) {
    PS_TRY(CopyFile(source, part, file, partial / file.name, progress));
  }
  return FinishPart(directory, files);
}

}  // namespace

fs::path NormalPart(const fs::path& directory) {
  const fs::path normal = directory.lexically_normal();
  return normal.has_filename() ? normal : normal.parent_path();
}

Result<fs::path> BeginPart(const fs::path& directory, std::uint64_t expected_bytes) {
  const fs::path target = NormalPart(directory);
  if (target.filename().empty() || !target.has_parent_path()) {
    return Error{ErrorCode::kUsage, directory.string() + ": not the path of a checkpoint part"};
  }
  fs::path partial = PartialOf(target);
  PS_TRY(CreateDirectories(target.parent_path()));
  PS_TRY(CheckFreeSpace(target.parent_path(), expected_bytes));
  std::error_code error;
  if (fs::exists(target, error)) {
    return Error{ErrorCode::kConflict, target.string() + ": exists already"};
  }
  PS_TRY(RemoveTree(partial));
  PS_TRY(CreateDirectories(partial));
  return partial;
}

Status FinishPart(const fs::path& directory, const std::vector<SealedFile>& files) {
  const fs::path target = NormalPart(directory);
  const fs::path partial = PartialOf(target);
  PS_TRY(WriteFileDurably(partial / kSealFile, EncodeSeal(files)));
  PS_TRY(SyncDirectory(partial));
  std::error_code error;
  fs::rename(partial, target, error);
  if (error) return IoError(target, "cannot rename into place", error.value());
  return SyncDirectory(target.parent_path());
}

Status RemovePartial(const fs::path& directory) {
  return RemoveTree(PartialOf(NormalPart(directory)));
}

Status RemovePart(const fs::path& directory) {
  const fs::path target = NormalPart(directory);
  std::error_code error;
  if (!fs::exists(target, error)) return Ok();
  if (fs::remove(target / kManifestFile, error)) PS_TRY(SyncDirectory(target));
  if (error) return IoError(target / kManifestFile, "cannot remove", error.value());
  PS_TRY(RemoveTree(target));
  // Fails while other servers' parts are there; the last one takes the round directory with it.
  fs::remove(target.parent_path(), error);
  return Ok();
}

Status CopyPart(const Storage& source, const fs::path& part, const fs::path& directory,
                const std::function<bool(std::uint64_t)>& progress) {
  const std::string seal = PS_TRY(ReadWholeFile(part / kSealFile, kMaxSealBytes, source));
  const Result<std::vector<SealedFile>> files = DecodeSeal(seal);
  if (!files.ok()) return Annotate(files.error(), source.Describe(part / kSealFile) + ": ");
  const fs::path target = NormalPart(directory);
  std::error_code error;
  if (fs::exists(target, error)) {
    const Result<std::string> own = ReadWholeFile(target / kSealFile, kMaxSealBytes);
    // Its name may be there without being durable yet.
    if (own.ok() && *own == seal) return SyncDirectory(target.parent_path());
    return Error{ErrorCode::kConflict, target.string() + ": exists already, and is not a copy of " +
                                           source.Describe(part)};
  }
  const Status copied = CopyFiles(source, part, *files, target, progress);
  if (!copied.ok()) (void)RemovePartial(target);
  return copied;
}

}  // namespace ps::checkpoint
