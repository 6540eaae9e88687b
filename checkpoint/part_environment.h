// A part of a checkpoint on another host as RocksDB's environment, to read from only.
#pragma once

#include <rocksdb/env.h>

#include <filesystem>
#include <memory>
#include <vector>

#include "checkpoint/files.h"
#include "checkpoint/storage.h"

namespace ps::checkpoint {

// The name under which RocksDB is to open the part.
inline constexpr const char* kPartPath = "/part";

// Shows the sealed files of `directory`, with their sealed sizes, and nothing else. `storage`
// outlives the environment.
std::unique_ptr<rocksdb::Env> PartEnvironment(const Storage& storage,
                                              const std::filesystem::path& directory,
                                              const std::vector<SealedFile>& files);

}  // namespace ps::checkpoint
