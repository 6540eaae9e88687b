#include "checkpoint/part_directory.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <string_view>
#include <system_error>

#include "checkpoint/manifest.h"
#include "common/error_id.h"

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

Result<std::uint64_t> FreeBytes(const fs::path& directory) {
  struct statvfs space = {};
  if (::statvfs(directory.c_str(), &space) != 0) {
    return IoError(directory, "cannot read the free space", errno);
  }
  return std::uint64_t{space.f_bavail} * space.f_frsize;
}

Status CheckFreeSpace(const fs::path& directory, std::uint64_t expected_bytes) {
  const std::uint64_t free_bytes = PS_TRY(FreeBytes(directory));
  if (free_bytes / 2 < expected_bytes) {
    return Error{ErrorId::kDiskFull,
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

std::uint64_t BytesOf(const std::vector<SealedFile>& files) {
  std::uint64_t bytes = 0;
  for (const SealedFile& file : files) bytes += file.bytes;
  return bytes;
}

Status CopyInto(const fs::path& partial, const Storage& source, const fs::path& part,
                const std::vector<SealedFile>& files,
                const std::function<bool(std::uint64_t)>& progress) {
  for (const SealedFile& file : files) {
    PS_TRY(CopyFile(source, part, file, partial / file.name, progress));
  }
  return Ok();
}

// The last that is written into a part before it gets its name.
Status Seal(const fs::path& partial, const std::vector<SealedFile>& files) {
  PS_TRY(WriteFileDurably(partial / kSealFile, EncodeSeal(files)));
  return SyncDirectory(partial);
}

Status CopyFiles(const Storage& source, const fs::path& part, const std::vector<SealedFile>& files,
                 const fs::path& directory, const std::function<bool(std::uint64_t)>& progress) {
  const fs::path partial = PS_TRY(BeginPart(directory, BytesOf(files)));
  PS_TRY(CopyInto(partial, source, part, files, progress));
  return FinishPart(directory, files);
}

// The two change places.
Status Exchange(const fs::path& partial, const fs::path& target) {
  if (::renameat2(AT_FDCWD, partial.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) {
    return Ok();
  }
  if (errno != EINVAL && errno != ENOSYS) return IoError(target, "cannot replace", errno);
  // A crash between the two leaves no part under the name, where there was a damaged one.
  const fs::path old = PartialOf(target.string() + ".old");
  PS_TRY(RemoveTree(old));
  std::error_code error;
  fs::rename(target, old, error);
  if (!error) fs::rename(partial, target, error);
  if (error) return IoError(target, "cannot replace", error.value());
  return RemoveTree(old);
}

Status CopyInPlace(const Storage& source, const fs::path& part,
                   const std::vector<SealedFile>& files, const fs::path& target,
                   const std::string& manifest,
                   const std::function<bool(std::uint64_t)>& progress) {
  const fs::path partial = PartialOf(target);
  PS_TRY(CheckFreeSpace(target.parent_path(), BytesOf(files)));
  PS_TRY(RemoveTree(partial));
  PS_TRY(CreateDirectories(partial));
  PS_TRY(CopyInto(partial, source, part, files, progress));
  if (!manifest.empty()) PS_TRY(WriteManifest(partial, manifest));
  PS_TRY(Seal(partial, files));
  PS_TRY(Exchange(partial, target));
  return SyncDirectory(target.parent_path());
}

}  // namespace

Result<std::vector<SealedFile>> ReadSeal(const Storage& source, const fs::path& part,
                                         std::string& text) {
  text = PS_TRY(ReadWholeFile(part / kSealFile, kMaxSealBytes, source));
  Result<std::vector<SealedFile>> files = DecodeSeal(text);
  if (!files.ok()) return Annotate(files.error(), source.Describe(part / kSealFile) + ": ");
  return files;
}

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
  PS_TRY(Seal(partial, files));
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
  std::string seal;
  const std::vector<SealedFile> files = PS_TRY(ReadSeal(source, part, seal));
  const fs::path target = NormalPart(directory);
  std::error_code error;
  if (fs::exists(target, error)) {
    const Result<std::string> own = ReadWholeFile(target / kSealFile, kMaxSealBytes);
    // Its name may be there without being durable yet.
    if (own.ok() && *own == seal) return SyncDirectory(target.parent_path());
    return Error{ErrorCode::kConflict, target.string() + ": exists already, and is not a copy of " +
                                           source.Describe(part)};
  }
  Status copied = CopyFiles(source, part, files, target, progress);
  if (!copied.ok()) (void)RemovePartial(target);
  return copied;
}

Status ReplacePart(const Storage& source, const fs::path& part, const fs::path& directory,
                   const std::string& manifest,
                   const std::function<bool(std::uint64_t)>& progress) {
  std::string seal;
  const std::vector<SealedFile> files = PS_TRY(ReadSeal(source, part, seal));
  const fs::path target = NormalPart(directory);
  Status copied = CopyInPlace(source, part, files, target, manifest, progress);
  // After the exchange that is what was damaged.
  (void)RemovePartial(target);
  return copied;
}

Status CheckPart(const fs::path& directory, const std::function<bool(std::uint64_t)>& progress) {
  const fs::path part = NormalPart(directory);
  std::error_code error;
  if (!fs::is_directory(part, error)) {
    return Error{ErrorId::kCheckpointMissing, part.string() + ": there is no such part"};
  }
  const auto damaged = [](const Error& found) {
    // A part comes with all its files or not at all: one that is missing was lost.
    return found.code == ErrorCode::kNotFound ? Error{ErrorId::kCheckpointDamaged, found.message}
                                              : found;
  };
  std::string seal;
  const auto files = ReadSeal(ThisHost(), part, seal);
  if (!files.ok()) return damaged(files.error());
  for (const SealedFile& file : *files) {
    const auto count = [&](std::string_view piece) -> Status {
      if (!progress || progress(piece.size())) return Ok();
      return Error{ErrorCode::kClosed, part.string() + ": the check was stopped"};
    };
    const Status checked = CheckSealedFile(ThisHost(), part, file, count);
    if (!checked.ok()) return damaged(checked.error());
  }
  return Ok();
}

Status CheckFreeBytes(const fs::path& directory, std::uint64_t bytes) {
  fs::path there = directory;
  std::error_code error;
  while (!fs::exists(there, error) && there.has_parent_path() && there != there.parent_path()) {
    there = there.parent_path();
  }
  const std::uint64_t free_bytes = PS_TRY(FreeBytes(there.empty() ? fs::path(".") : there));
  if (free_bytes >= bytes) return Ok();
  return Error{ErrorId::kDiskFull,
               directory.string() + ": not enough space: " + std::to_string(free_bytes >> 20) +
                   " MiB free, " + std::to_string((bytes >> 20) + 1) + " MiB wanted"};
}

}  // namespace ps::checkpoint
