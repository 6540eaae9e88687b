#include "checkpoint/write_back.h"

#include <rocksdb/file_system.h>
#include <sys/stat.h>

#include <future>
#include <map>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include "checkpoint/digest.h"

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

  std::string DigestOf(const std::filesystem::path& path) const {
    struct stat status = {};
    if (::stat(path.c_str(), &status) != 0) return {};
    const auto found = digests_.find({status.st_dev, status.st_ino});
    if (found == digests_.end()) return {};
    const auto& [bytes, digest] = found->second;
    return bytes == static_cast<std::uint64_t>(status.st_size) ? digest : std::string();
  }

 private:
  class Table : public rocksdb::FSWritableFileWrapper {
   public:
    Table(Files& files, std::string name, File target)
        : FSWritableFileWrapper(target.get()),
          files_(files),
          name_(std::move(name)),
          owned_(std::move(target)) {}
    using FSWritableFileWrapper::Append;
    IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                    IODebugContext* debug) override {
      Digest(data);
      return FSWritableFileWrapper::Append(data, options, debug);
    }
    IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                    const rocksdb::DataVerificationInfo& info, IODebugContext* debug) override {
      Digest(data);
      return FSWritableFileWrapper::Append(data, options, info, debug);
    }
    // Not in order; tables are not written so.
    IOStatus PositionedAppend(const rocksdb::Slice&, std::uint64_t, const IOOptions&,
                              IODebugContext*) override {
      return IOStatus::NotSupported(name_);
    }
    IOStatus PositionedAppend(const rocksdb::Slice&, std::uint64_t, const IOOptions&,
                              const rocksdb::DataVerificationInfo&, IODebugContext*) override {
      return IOStatus::NotSupported(name_);
    }
    IOStatus Truncate(std::uint64_t size, const IOOptions& options,
                      IODebugContext* debug) override {
      if (size != bytes_) return IOStatus::NotSupported(name_);
      return FSWritableFileWrapper::Truncate(size, options, debug);
    }
    IOStatus Sync(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }
    IOStatus Fsync(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }
    IOStatus Close(const IOOptions&, IODebugContext*) override {
      struct stat status = {};
      if (::stat(name_.c_str(), &status) == 0) {
        files_.digests_[{status.st_dev, status.st_ino}] = {bytes_, digester_.Hex()};
      }
      return files_.Begin(name_, std::move(owned_));
    }

   private:
    void Digest(const rocksdb::Slice& data) {
      digester_.Update(std::as_bytes(std::span(data.data(), data.size())));
      bytes_ += data.size();
    }

    Files& files_;
    const std::string name_;
    File owned_;
    Digester digester_;
    std::uint64_t bytes_ = 0;
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

  // Bytes and digest of each table, by device and inode: RocksDB gives tables other names.
  std::map<std::pair<dev_t, ino_t>, std::pair<std::uint64_t, std::string>> digests_;
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

std::string WriteBack::DigestOf(const std::filesystem::path& table) const {
  return files_->DigestOf(table);
}

Status WriteBack::Wait() {
  const IOStatus synced = files_->Wait();
  if (synced.ok()) return Ok();
  return Error{ErrorCode::kIo, files_->failed_file() + ": cannot sync: " + synced.ToString()};
}

}  // namespace ps::checkpoint
