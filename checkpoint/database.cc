#include "checkpoint/database.h"

#include <rocksdb/env.h>
#include <rocksdb/table.h>

#include <cstdarg>
#include <memory>

#include "common/error_id.h"

namespace ps::checkpoint {
namespace {

// RocksDB would otherwise write its LOG into the part, also when that is only read.
class SilentLogger : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
};

}  // namespace

rocksdb::Options DatabaseOptions() {
  rocksdb::BlockBasedTableOptions table;
  table.checksum = rocksdb::kXXH3;
  table.no_block_cache = true;
  table.format_version = 5;
  rocksdb::Options options;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  options.compression = rocksdb::kNoCompression;
  options.info_log = std::make_shared<SilentLogger>();
  options.disable_auto_compactions = true;
  options.paranoid_checks = true;
  options.use_fsync = true;
  options.write_dbid_to_manifest = true;
  options.skip_stats_update_on_db_open = true;
  options.max_open_files = 256;
  options.max_background_jobs = 1;
  // Tables are read from one end to the other: the kernel may read ahead.
  options.advise_random_on_open = false;
  return options;
}

Error DatabaseError(const std::string& name, const std::string& what,
                    const rocksdb::Status& status) {
  const bool damage = !status.IsIOError() || status.IsPathNotFound();
  return Error{damage               ? ErrorId::kCheckpointDamaged
               : status.IsNoSpace() ? ErrorId::kDiskFull
                                    : ErrorId::kIo,
               name + ": " + what + ": " + status.ToString()};
}

}  // namespace ps::checkpoint
