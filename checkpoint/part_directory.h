// The directory of a part: it comes into being whole, under its final name, or not at all.
//
// A part is made in `<directory>.partial`. A crash before FinishPart() leaves
// only that, which RemovePartial() deletes. A failed write or fsync is an error
// of the whole part and nothing is tried again, since after a failed fsync the
// kernel may have dropped the pages. Blocks on the disk; one thread for each part.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/files.h"
#include "checkpoint/storage.h"
#include "common/result.h"

namespace ps::checkpoint {

// Without a trailing separator, which would put the partial directory inside the finished one.
std::filesystem::path NormalPart(const std::filesystem::path& directory);

// Creates missing parents and an empty partial directory, in the place of a leftover one, and
// returns its path. With less than twice `expected_bytes` free on the file system it is refused
// (kIo) before anything is written. kConflict if `directory` exists already.
Result<std::filesystem::path> BeginPart(const std::filesystem::path& directory,
                                        std::uint64_t expected_bytes);

// Writes the seal, which lists `files`, all durable already, and gives the part its name.
Status FinishPart(const std::filesystem::path& directory, const std::vector<SealedFile>& files);

// Deletes `<directory>.partial`, if there is one.
Status RemovePartial(const std::filesystem::path& directory);

// Deletes a finished part, its manifest first, so that a crash half-way leaves a part that does not
// claim to be complete; then the round directory above it if nothing else is in it. Ok if the part
// does not exist.
Status RemovePart(const std::filesystem::path& directory);

// Copies the part `part` of `source` to `directory`, each file compared with the seal as it comes;
// the manifest is not of the part and does not come. Ok at once if `directory` has the same part
// already, kConflict if it has another one. kInvalid if the source is damaged: then nothing of it
// is left here. `progress`, which may be empty, gets the bytes of each piece; false ends the copy
// with kClosed.
Status CopyPart(const Storage& source, const std::filesystem::path& part,
                const std::filesystem::path& directory,
                const std::function<bool(std::uint64_t)>& progress);

// What the seal of a part lists; `text` gets the seal itself. kNotFound if there is none, kInvalid
// if it is damaged.
Result<std::vector<SealedFile>> ReadSeal(const Storage& source, const std::filesystem::path& part,
                                         std::string& text);

// As CopyPart() for a part that is there and damaged: once the copy is whole it takes its place, in
// one step where the file system can (not on NFS), with `manifest` as its MANIFEST.json unless that
// is empty. What was there stays until then, and for good if this fails.
Status ReplacePart(const Storage& source, const std::filesystem::path& part,
                   const std::filesystem::path& directory, const std::string& manifest,
                   const std::function<bool(std::uint64_t)>& progress);

// Reads every byte of a part on this host and compares it with its seal; `progress` as above.
// kNotFound if there is no such part, kInvalid if it is damaged, which a missing file is, too.
Status CheckPart(const std::filesystem::path& directory,
                 const std::function<bool(std::uint64_t)>& progress);

// kIo, with what is missing, unless the file system of the directory, which may not be there yet,
// has so many bytes free.
Status CheckFreeBytes(const std::filesystem::path& directory, std::uint64_t bytes);

}  // namespace ps::checkpoint
