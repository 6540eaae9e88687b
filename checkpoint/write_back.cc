#include "checkpoint/write_back.h"

#include <rocksdb/file_system.h>

#include <future>
#include <string>
#include <system_error>
#include <utility>

namespace ps::checkpoint {
namespace {

using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;

constexpr std::uint64_t kBytesPerSync = 4 << 20;

using File = std::unique_ptr<rocksdb::FSWritableFile>;

IOStatus SyncAndClose(rocksdb::FSWritableFile& file) {
  const IOStatus synced = file.Fsync(IOOptions(), nullptr);
  const IOStatus closed = file.Close(IOOptions(), nullptr);
  return synced.ok() ? closed : synced;
}

}  // namespace

class WriteBack::Files : public rocksdb::FileSystemWrapper {
 public:
  Files() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "WriteBack"; }

  IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* file,
                           IODebugContext* debug) override {
    File target;
    IOStatus status = FileSystemWrapper::NewWritableFile(name, options, &target, debug);
    if (status.ok()) *file = std::make_unique<Table>(*this, name, std::move(target));
    return status;
  }

  IOStatus Wait() {
    if (syncing_.valid()) {
      const IOStatus synced = syncing_.get();
      if (failed_.ok() && !synced.ok()) failed_ = synced;
    }
    return failed_;
  }
  const std::string& failed_file() const { return name_; }

 private:
  class Table : public rocksdb::FSWritableFileWrapper {
   public:
    Table(Files& files, std::string name, File target)
        : FSWritableFileWrapper(target.get()),
          files_(files),
          name_(std::move(name)),
          owned_(std::move(target)) {}
    IOStatus Sync(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }
    IOStatus Fsync(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }
    IOStatus Close(const IOOptions&, IODebugContext*) override {
      return files_.Begin(name_, std::move(owned_));
    }

   private:
    Files& files_;
    const std::string name_;
    File owned_;
  };

  IOStatus Begin(const std::string& name, File file) {
    const IOStatus before = Wait();
    if (!before.ok()) return before;
    name_ = name;
    const std::shared_ptr<rocksdb::FSWritableFile> shared(std::move(file));
    try {
      syncing_ = std::async(std::launch::async, [shared] { return SyncAndClose(*shared); });
    } catch (const std::system_error&) {  // no thread is to be had
      failed_ = SyncAndClose(*shared);
    }
    return failed_;
  }

  std::string name_;  // of the newest one
  std::future<IOStatus> syncing_;
  IOStatus failed_;
};

WriteBack::WriteBack()
    : files_(std::make_shared<Files>()), env_(rocksdb::NewCompositeEnv(files_)) {}

WriteBack::~WriteBack() = default;

rocksdb::EnvOptions WriteBack::Options() {
  rocksdb::EnvOptions options;
  options.bytes_per_sync = kBytesPerSync;
  return options;
}

Status WriteBack::Wait() {
  const IOStatus synced = files_->Wait();
  if (synced.ok()) return Ok();
  return Error{ErrorCode::kIo, files_->failed_file() + ": cannot sync: " + synced.ToString()};
}

}  // namespace ps::checkpoint
