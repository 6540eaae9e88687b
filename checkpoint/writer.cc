#include "checkpoint/writer.h"

#include <rocksdb/db.h>
#include <rocksdb/sst_file_writer.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <system_error>
#include <utility>

#include "checkpoint/database.h"
#include "checkpoint/files.h"
#include "checkpoint/manifest.h"
#include "checkpoint/record.h"

namespace ps::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStaging = "staging";

fs::path PartialOf(const fs::path& directory) {
  fs::path partial = directory;
  partial += ".partial";
  return partial;
}

// A trailing separator would put the partial directory inside the finished one.
fs::path Normal(const fs::path& directory) {
  const fs::path normal = directory.lexically_normal();
  return normal.has_filename() ? normal : normal.parent_path();
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

}  // namespace

class Writer::Impl {
 public:
  Impl(fs::path directory, fs::path partial)
      : directory_(std::move(directory)),
        partial_(std::move(partial)),
        options_(DatabaseOptions()) {}

  Status Add(const ShardImage& image) {
    PS_CHECK(!finished_, "a shard after Finish()");
    PS_TRY(Usable());
    PS_TRY(CheckImage(image));
    if (metas_.count(image.shard) != 0) {
      return Error{ErrorCode::kConflict, directory_.string() + ": shard " +
                                             std::to_string(image.shard.value()) +
                                             " was added already"};
    }
    std::uint64_t bytes = 0;
    Status written = WriteBlocks(image, bytes);
    if (written.ok()) written = WriteRows(image, bytes);
    if (written.ok()) written = WriteSketches(image, bytes);
    if (!written.ok()) return Fail(written.error());
    std::string key = EncodeKey(RecordKind::kMeta, image.shard, 0);
    std::string value = checkpoint::Seal(key, EncodeMeta(image));
    WrittenShard shard;
    shard.shard = image.shard;
    shard.epoch = image.epoch;
    shard.version = image.version;
    shard.bytes = bytes + key.size() + value.size();
    shard.rows = RowCount(image);
    shard.digest = Digest(image);
    shard.values_digest = ValuesDigest(image.values);
    shards_.push_back(std::move(shard));
    metas_.emplace(image.shard, std::make_pair(std::move(key), std::move(value)));
    return Ok();
  }

  Result<std::vector<WrittenShard>> Finish() {
    PS_CHECK(!finished_, "a second Finish()");
    PS_TRY(Usable());
    finished_ = true;
    Status made = MakeVisible();
    if (!made.ok()) return Fail(made.error());
    return std::move(shards_);
  }

 private:
  fs::path Staged(const std::string& name) const { return partial_ / kStaging / name; }

  Status Usable() const {
    if (failed_.has_value()) return Annotate(*failed_, "the writer failed before: ");
    return Ok();
  }
  Error Fail(Error error) {
    failed_ = error;
    return error;
  }

  // One table of the database from records in the order of their keys; without records it is left
  // away. `fill(put)` calls put(key, content) for each, which is false once a write has failed.
  template <typename Fill>
  Status WriteTable(const std::string& name, std::uint64_t& bytes, Fill fill) {
    const fs::path table = Staged(name);
    rocksdb::SstFileWriter writer(rocksdb::EnvOptions(), options_);
    rocksdb::Status status;
    bool any = false;
    fill([&](const std::string& key, std::string_view content) {
      if (!any) status = writer.Open(table.string());
      any = true;
      const std::string value = checkpoint::Seal(key, content);
      if (status.ok()) status = writer.Put(key, value);
      bytes += key.size() + value.size();
      return status.ok();
    });
    if (!any) return Ok();
    if (status.ok()) status = writer.Finish();
    if (!status.ok()) return DatabaseError(table, "cannot write", status);
    tables_.push_back(table);
    return Ok();
  }

  static std::string NameOf(const char* what, const ShardImage& image) {
    return what + std::to_string(image.shard.value()) + ".sst";
  }

  Status WriteBlocks(const ShardImage& image, std::uint64_t& bytes) {
    return WriteTable(NameOf("shard-", image), bytes, [&](auto put) {
      std::size_t offset = 0;
      for (std::size_t i = 0; i < image.block_elements.size(); ++i) {
        const std::string key = EncodeKey(RecordKind::kBlock, image.shard,
                                          image.first_block + static_cast<std::uint32_t>(i));
        if (!put(key, EncodeBlock(image, i, offset))) return;
        offset += image.block_elements[i];
      }
    });
  }

  Status WriteRows(const ShardImage& image, std::uint64_t& bytes) {
    return WriteTable(NameOf("rows-", image), bytes, [&](auto put) {
      for (const RowTableImage& table : image.rows) {
        const std::size_t chunk = RowsPerRecord(table) * table.record_bytes();
        for (std::size_t at = 0; at < table.records.size(); at += chunk) {
          std::uint64_t first = 0;
          std::memcpy(&first, table.records.data() + at, sizeof(first));
          const std::string key = EncodeRowKey(RecordKind::kRows, image.shard, table.table, first);
          if (!put(key,
                   Chars(table.records.data() + at, std::min(chunk, table.records.size() - at)))) {
            return;
          }
        }
      }
    });
  }

  Status WriteSketches(const ShardImage& image, std::uint64_t& bytes) {
    return WriteTable(NameOf("sketches-", image), bytes, [&](auto put) {
      for (const RowTableImage& table : image.rows) {
        for (std::size_t at = 0; at < table.sketch.size(); at += kChunkBytes) {
          const std::string key = EncodeRowKey(RecordKind::kSketch, image.shard, table.table, at);
          if (!put(key, Chars(table.sketch.data() + at,
                              std::min(kChunkBytes, table.sketch.size() - at)))) {
            return;
          }
        }
      }
    });
  }

  template <typename Byte>
  static std::string_view Chars(const Byte* bytes, std::size_t count) {
    static_assert(sizeof(Byte) == 1);
    return {reinterpret_cast<const char*>(bytes), count};
  }

  Status MakeVisible() {
    PS_TRY(WriteMetas());
    PS_TRY(BuildDatabase());
    // What a reader does not need: the lock, and the empty log of a database that has none.
    PS_TRY(RemoveTree(partial_ / kStaging));
    PS_TRY(RemoveTree(partial_ / "LOCK"));
    PS_TRY(RemoveLogs());
    const std::vector<SealedFile> files = PS_TRY(SealFiles(partial_));
    for (const SealedFile& file : files) PS_TRY(SyncFile(partial_ / file.name));
    PS_TRY(WriteFileDurably(partial_ / kSealFile, EncodeSeal(files)));
    PS_TRY(SyncDirectory(partial_));
    std::error_code error;
    fs::rename(partial_, directory_, error);
    if (error) return IoError(directory_, "cannot rename into place", error.value());
    return SyncDirectory(directory_.parent_path());
  }

  Status WriteMetas() {
    if (metas_.empty()) return Ok();
    const fs::path table = Staged("metas.sst");
    rocksdb::SstFileWriter writer(rocksdb::EnvOptions(), options_);
    rocksdb::Status status = writer.Open(table.string());
    for (const auto& entry : metas_) {
      if (status.ok()) status = writer.Put(entry.second.first, entry.second.second);
    }
    if (status.ok()) status = writer.Finish();
    if (!status.ok()) return DatabaseError(table, "cannot write", status);
    tables_.push_back(table);
    return Ok();
  }

  Status BuildDatabase() {
    rocksdb::Options options = options_;
    options.create_if_missing = true;
    options.error_if_exists = true;
    rocksdb::DB* opened = nullptr;
    rocksdb::Status status = rocksdb::DB::Open(options, partial_.string(), &opened);
    const std::unique_ptr<rocksdb::DB> database(opened);
    if (status.ok() && !tables_.empty()) {
      rocksdb::IngestExternalFileOptions ingest;
      ingest.move_files = true;
      ingest.failed_move_fall_back_to_copy = true;
      ingest.snapshot_consistency = false;
      ingest.write_global_seqno = false;
      std::vector<std::string> names;
      for (const fs::path& table : tables_) names.push_back(table.string());
      status = database->IngestExternalFile(names, ingest);
    }
    if (status.ok()) status = database->Close();
    if (!status.ok()) return DatabaseError(partial_, "cannot build the database", status);
    return Ok();
  }

  Status RemoveLogs() {
    std::error_code error;
    std::vector<fs::path> logs;
    for (fs::directory_iterator entry(partial_, error), end; !error && entry != end;
         entry.increment(error)) {
      if (entry->path().extension() == ".log") logs.push_back(entry->path());
    }
    if (error) return IoError(partial_, "cannot list", error.value());
    for (const fs::path& log : logs) PS_TRY(RemoveTree(log));
    return Ok();
  }

  const fs::path directory_;
  const fs::path partial_;
  const rocksdb::Options options_;

  std::vector<fs::path> tables_;
  std::vector<WrittenShard> shards_;
  std::map<ShardId, std::pair<std::string, std::string>> metas_;  // key and value, in key order
  std::optional<Error> failed_;
  bool finished_ = false;
};

Writer::Writer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Writer::Writer(Writer&&) noexcept = default;
Writer& Writer::operator=(Writer&&) noexcept = default;
Writer::~Writer() = default;

Result<Writer> Writer::Open(const fs::path& directory, std::uint64_t expected_bytes) {
  const fs::path target = Normal(directory);
  if (target.filename().empty() || !target.has_parent_path()) {
    return Error{ErrorCode::kUsage, directory.string() + ": not the path of a checkpoint part"};
  }
  const fs::path partial = PartialOf(target);
  PS_TRY(CreateDirectories(target.parent_path()));
  PS_TRY(CheckFreeSpace(target.parent_path(), expected_bytes));
  std::error_code error;
  if (fs::exists(target, error)) {
    return Error{ErrorCode::kConflict, target.string() + ": exists already"};
  }
  PS_TRY(RemoveTree(partial));
  PS_TRY(CreateDirectories(partial / kStaging));
  return Writer(std::make_unique<Impl>(target, partial));
}

Status Writer::Add(const ShardImage& image) { return impl_->Add(image); }

Result<std::vector<WrittenShard>> Writer::Finish() { return impl_->Finish(); }

Status RemovePartial(const fs::path& directory) { return RemoveTree(PartialOf(Normal(directory))); }

Status RemovePart(const fs::path& directory) {
  const fs::path target = Normal(directory);
  std::error_code error;
  if (!fs::exists(target, error)) return Ok();
  if (fs::remove(target / kManifestFile, error)) PS_TRY(SyncDirectory(target));
  if (error) return IoError(target / kManifestFile, "cannot remove", error.value());
  PS_TRY(RemoveTree(target));
  // Fails while other servers' parts are there; the last one takes the round directory with it.
  fs::remove(target.parent_path(), error);
  return Ok();
}

}  // namespace ps::checkpoint
