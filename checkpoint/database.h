// How this library opens RocksDB: no WAL, no compression, XXH3 block checksums, no log file.
#pragma once

#include <rocksdb/options.h>
#include <rocksdb/status.h>

#include <string>

#include "common/result.h"

namespace ps::checkpoint {

rocksdb::Options DatabaseOptions();

// kInvalid for damage, kIo for the rest.
Error DatabaseError(const std::string& name, const std::string& what,
                    const rocksdb::Status& status);

}  // namespace ps::checkpoint
