// An environment in which RocksDB writes tables whose fsync goes on while the next one is made.
//
// A table that is closed is synced by a thread of its own, one table at a time: the disk has
// something to do while the writer computes, and its file stays open until the fsync has said how
// it ended, as an error of the disk would else be forgotten with it. A failed fsync is never
// repeated.
#pragma once

#include <rocksdb/env.h>

#include <filesystem>
#include <memory>
#include <string>

#include "common/result.h"

namespace ps::checkpoint {

// One thread at a time. Must outlive whoever writes through env().
class WriteBack {
 public:
  WriteBack();
  // Waits for what is under way.
  ~WriteBack();
  WriteBack(const WriteBack&) = delete;
  WriteBack& operator=(const WriteBack&) = delete;

  rocksdb::Env* env() const { return env_.get(); }
  // With this the disk begins with a table before it is closed.
  static rocksdb::EnvOptions Options();

  // Every table that was closed has reached the disk. The first error stays.
  Status Wait();

  // Digester's of a table that was closed, whatever its name is by now; empty for other files.
  std::string DigestOf(const std::filesystem::path& table) const;

 private:
  class Files;

  std::shared_ptr<Files> files_;
  std::unique_ptr<rocksdb::Env> env_;
};

}  // namespace ps::checkpoint
