#include "checkpoint/part_environment.h"

#include <rocksdb/file_system.h>

#include <algorithm>
#include <map>
#include <span>
#include <string>
#include <utility>

namespace ps::checkpoint {
namespace {

namespace fs = std::filesystem;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

// A file of the part, which others know by its path below the storage.
class PartFile {
 public:
  PartFile(const Storage& storage, fs::path path, std::uint64_t bytes)
      : storage_(storage), path_(std::move(path)), bytes_(bytes) {}

  IOStatus Read(std::uint64_t offset, std::size_t count, Slice* result, char* scratch) const {
    const std::uint64_t left = offset < bytes_ ? bytes_ - offset : 0;
    count = static_cast<std::size_t>(std::min<std::uint64_t>(count, left));
    *result = Slice(scratch, 0);
    if (count == 0) return IOStatus::OK();
    const Result<std::size_t> got =
        storage_.Read(path_, offset, std::as_writable_bytes(std::span(scratch, count)));
    if (!got.ok() && got.error().code == ErrorCode::kNotFound) {
      return IOStatus::PathNotFound(got.error().message);
    }
    if (!got.ok()) return IOStatus::IOError(got.error().message);
    if (*got < count) return IOStatus::Corruption("the file is shorter than it was sealed");
    *result = Slice(scratch, count);
    return IOStatus::OK();
  }

 private:
  const Storage& storage_;
  const fs::path path_;
  const std::uint64_t bytes_;
};

class RandomAccess : public rocksdb::FSRandomAccessFile {
 public:
  explicit RandomAccess(PartFile file) : file_(std::move(file)) {}
  IOStatus Read(std::uint64_t offset, std::size_t count, const IOOptions&, Slice* result,
                char* scratch, IODebugContext*) const override {
    return file_.Read(offset, count, result, scratch);
  }

 private:
  const PartFile file_;
};

class Sequential : public rocksdb::FSSequentialFile {
 public:
  explicit Sequential(PartFile file) : file_(std::move(file)) {}
  IOStatus Read(std::size_t count, const IOOptions&, Slice* result, char* scratch,
                IODebugContext*) override {
    const IOStatus read = file_.Read(offset_, count, result, scratch);
    offset_ += result->size();
    return read;
  }
  IOStatus Skip(std::uint64_t count) override {
    offset_ += count;
    return IOStatus::OK();
  }

 private:
  const PartFile file_;
  std::uint64_t offset_ = 0;
};

// Whatever is not asked for here must not reach the disk of this host.
class PartFileSystem : public rocksdb::FileSystemWrapper {
 public:
  PartFileSystem(const Storage& storage, fs::path directory, const std::vector<SealedFile>& files)
      : FileSystemWrapper(rocksdb::FileSystem::Default()),
        storage_(storage),
        directory_(std::move(directory)) {
    for (const SealedFile& file : files) bytes_[file.name] = file.bytes;
  }
  const char* Name() const override { return "PartFileSystem"; }

  IOStatus NewSequentialFile(const std::string& name, const rocksdb::FileOptions&,
                             std::unique_ptr<rocksdb::FSSequentialFile>* file,
                             IODebugContext*) override {
    const auto* const found = Find(name);
    if (found == nullptr) return Missing(name);
    *file = std::make_unique<Sequential>(Open(*found));
    return IOStatus::OK();
  }
  IOStatus NewRandomAccessFile(const std::string& name, const rocksdb::FileOptions&,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* file,
                               IODebugContext*) override {
    const auto* const found = Find(name);
    if (found == nullptr) return Missing(name);
    *file = std::make_unique<RandomAccess>(Open(*found));
    return IOStatus::OK();
  }
  IOStatus FileExists(const std::string& name, const IOOptions&, IODebugContext*) override {
    return Find(name) != nullptr ? IOStatus::OK() : IOStatus::NotFound(name);
  }
  IOStatus GetChildren(const std::string&, const IOOptions&, std::vector<std::string>* names,
                       IODebugContext*) override {
    names->clear();
    for (const auto& entry : bytes_) names->push_back(entry.first);
    return IOStatus::OK();
  }
  IOStatus GetFileSize(const std::string& name, const IOOptions&, std::uint64_t* bytes,
                       IODebugContext*) override {
    const auto* const found = Find(name);
    if (found == nullptr) return Missing(name);
    *bytes = found->second;
    return IOStatus::OK();
  }
  IOStatus GetFileModificationTime(const std::string&, const IOOptions&, std::uint64_t* time,
                                   IODebugContext*) override {
    *time = 0;
    return IOStatus::OK();
  }
  IOStatus GetAbsolutePath(const std::string& path, const IOOptions&, std::string* absolute,
                           IODebugContext*) override {
    *absolute = path;
    return IOStatus::OK();
  }
  IOStatus IsDirectory(const std::string& path, const IOOptions&, bool* is,
                       IODebugContext*) override {
    *is = path == kPartPath;
    return IOStatus::OK();
  }

  IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions&,
                           std::unique_ptr<rocksdb::FSWritableFile>*, IODebugContext*) override {
    return ReadOnly(name);
  }
  IOStatus ReopenWritableFile(const std::string& name, const rocksdb::FileOptions&,
                              std::unique_ptr<rocksdb::FSWritableFile>*, IODebugContext*) override {
    return ReadOnly(name);
  }
  IOStatus ReuseWritableFile(const std::string& name, const std::string&,
                             const rocksdb::FileOptions&, std::unique_ptr<rocksdb::FSWritableFile>*,
                             IODebugContext*) override {
    return ReadOnly(name);
  }
  IOStatus NewRandomRWFile(const std::string& name, const rocksdb::FileOptions&,
                           std::unique_ptr<rocksdb::FSRandomRWFile>*, IODebugContext*) override {
    return ReadOnly(name);
  }
  IOStatus NewDirectory(const std::string& name, const IOOptions&,
                        std::unique_ptr<rocksdb::FSDirectory>*, IODebugContext*) override {
    return ReadOnly(name);
  }
  IOStatus CreateDir(const std::string& name, const IOOptions&, IODebugContext*) override {
    return ReadOnly(name);
  }
  IOStatus CreateDirIfMissing(const std::string& name, const IOOptions&, IODebugContext*) override {
    return ReadOnly(name);
  }
  IOStatus DeleteFile(const std::string& name, const IOOptions&, IODebugContext*) override {
    return ReadOnly(name);
  }
  IOStatus DeleteDir(const std::string& name, const IOOptions&, IODebugContext*) override {
    return ReadOnly(name);
  }
  IOStatus RenameFile(const std::string& name, const std::string&, const IOOptions&,
                      IODebugContext*) override {
    return ReadOnly(name);
  }
  IOStatus LinkFile(const std::string& name, const std::string&, const IOOptions&,
                    IODebugContext*) override {
    return ReadOnly(name);
  }
  IOStatus LockFile(const std::string& name, const IOOptions&, rocksdb::FileLock**,
                    IODebugContext*) override {
    return ReadOnly(name);
  }

 private:
  using Entry = std::map<std::string, std::uint64_t>::value_type;

  const Entry* Find(const std::string& name) const {
    const fs::path path(name);
    if (path.parent_path() != kPartPath) return nullptr;
    const auto found = bytes_.find(path.filename().string());
    return found == bytes_.end() ? nullptr : &*found;
  }
  PartFile Open(const Entry& entry) const {
    return {storage_, directory_ / entry.first, entry.second};
  }
  static IOStatus Missing(const std::string& name) { return IOStatus::PathNotFound(name); }
  static IOStatus ReadOnly(const std::string& name) {
    return IOStatus::NotSupported(name + ": this part is only read");
  }

  const Storage& storage_;
  const fs::path directory_;
  std::map<std::string, std::uint64_t> bytes_;  // by name
};

}  // namespace

std::unique_ptr<rocksdb::Env> PartEnvironment(const Storage& storage, const fs::path& directory,
                                              const std::vector<SealedFile>& files) {
  return rocksdb::NewCompositeEnv(std::make_shared<PartFileSystem>(storage, directory, files));
}

}  // namespace ps::checkpoint
