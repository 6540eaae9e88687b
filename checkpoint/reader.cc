#include "checkpoint/reader.h"

#include <rocksdb/db.h>

#include <algorithm>
#include <system_error>

#include "checkpoint/database.h"
#include "checkpoint/files.h"
#include "checkpoint/record.h"

namespace ps::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxSealBytes = std::size_t{16} << 20;

std::string_view View(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

}  // namespace

class Reader::Impl {
 public:
  explicit Impl(fs::path directory) : directory_(std::move(directory)) {}

  Status Open() {
    std::error_code error;
    if (!fs::is_directory(directory_, error)) {
      return Error{ErrorCode::kNotFound, directory_.string() + ": no such checkpoint part"};
    }
    PS_TRY(OpenSeal());
    for (const SealedFile& file : files_) {
      // Tables may be gigabytes; what leads RocksDB to their blocks lies in their tail.
      const bool whole = fs::path(file.name).extension() != ".sst";
      PS_TRY(CheckSealedFile(directory_, file, whole, {}));
      part_bytes_ += file.bytes;
    }
    rocksdb::DB* opened = nullptr;
    const rocksdb::Status status =
        rocksdb::DB::OpenForReadOnly(DatabaseOptions(), directory_.string(), &opened);
    database_.reset(opened);
    if (!status.ok()) return DatabaseError(directory_, "cannot open the database", status);
    return ListKeys();
  }

  const std::vector<ShardId>& shards() const { return shards_; }

  Result<ShardImage> ReadShard(ShardId shard, const std::string& digest) const {
    Result<ShardImage> image = ReadUnnamed(shard, digest);
    if (!image.ok()) {
      return Annotate(image.error(),
                      directory_.string() + ": shard " + std::to_string(shard.value()) + ": ");
    }
    return image;
  }

  Status VerifyFiles(const std::function<void(std::uint64_t)>& progress) const {
    for (const SealedFile& file : files_) {
      PS_TRY(CheckSealedFile(directory_, file, /*whole=*/true, progress));
    }
    return Ok();
  }

 private:
  Status OpenSeal() {
    const fs::path path = directory_ / kSealFile;
    Result<std::string> text = ReadWholeFile(path, kMaxSealBytes);
    if (!text.ok()) {
      if (text.error().code != ErrorCode::kNotFound) return text.error();
      return Error{ErrorCode::kInvalid, path.string() + ": the file is missing"};
    }
    Result<std::vector<SealedFile>> files = DecodeSeal(*text);
    if (!files.ok()) return Annotate(files.error(), path.string() + ": ");
    files_ = std::move(*files);
    return Ok();
  }

  Status ListKeys() {
    rocksdb::ReadOptions options;
    options.verify_checksums = true;
    const std::string end = EncodeKey(RecordKind::kBlock, ShardId(0), 0);
    const rocksdb::Slice upper(end);
    options.iterate_upper_bound = &upper;
    const std::unique_ptr<rocksdb::Iterator> iterator(database_->NewIterator(options));
    for (iterator->SeekToFirst(); iterator->Valid(); iterator->Next()) {
      Result<RecordKey> key = DecodeKey(View(iterator->key()));
      if (!key.ok()) return Annotate(key.error(), directory_.string() + ": ");
      shards_.push_back(key->shard);
    }
    if (!iterator->status().ok()) {
      return DatabaseError(directory_, "cannot list the shards", iterator->status());
    }
    return Ok();
  }

  // The content of a record, checked; `holder` owns the bytes.
  Result<std::string_view> Get(const std::string& key, rocksdb::PinnableSlice& holder) const {
    rocksdb::ReadOptions options;
    options.verify_checksums = true;
    options.fill_cache = false;
    holder.Reset();
    const rocksdb::Status status =
        database_->Get(options, database_->DefaultColumnFamily(), key, &holder);
    if (status.IsNotFound()) return Error{ErrorCode::kInvalid, "a record is missing"};
    if (!status.ok()) return DatabaseError(directory_, "cannot read", status);
    return Unseal(key, View(holder));
  }

  Result<ShardImage> ReadUnnamed(ShardId shard, const std::string& digest) const {
    if (!std::binary_search(shards_.begin(), shards_.end(), shard)) {
      return Error{ErrorCode::kNotFound, "not in this part"};
    }
    rocksdb::PinnableSlice holder;
    const std::string_view record = PS_TRY(Get(EncodeKey(RecordKind::kMeta, shard, 0), holder));
    ShardMeta meta = PS_TRY(DecodeMeta(record));
    ShardImage& image = meta.image;
    if (image.shard != shard) {
      return Error{ErrorCode::kInvalid,
                   "the record is that of shard " + std::to_string(image.shard.value())};
    }
    std::uint64_t elements = 0;
    for (const std::uint32_t count : image.block_elements) elements += count;
    if (elements > part_bytes_ / BytesPerElement(image)) {
      return Error{ErrorCode::kInvalid,
                   std::to_string(elements) + " elements, more than the files can hold"};
    }
    image.values.resize(elements);
    image.slots.floats.resize(elements * image.slots.per_element);
    if (image.slots.counts == UpdateCounts::kPerElement) image.slots.updates.resize(elements);
    std::size_t offset = 0;
    for (std::size_t i = 0; i < image.block_elements.size(); ++i) {
      const std::uint32_t block = image.first_block + static_cast<std::uint32_t>(i);
      Result<std::string_view> content = Get(EncodeKey(RecordKind::kBlock, shard, block), holder);
      const std::string name = "block " + std::to_string(block) + ": ";
      if (!content.ok()) return Annotate(content.error(), name);
      const Status decoded = DecodeBlock(*content, i, offset, image);
      if (!decoded.ok()) return Annotate(decoded.error(), name);
      offset += image.block_elements[i];
    }
    for (std::size_t table = 0; table < image.rows.size(); ++table) {
      const Status rows = ReadTable(shard, meta.rows[table], image.rows[table]);
      if (!rows.ok()) {
        return Annotate(rows.error(), "row table " + std::to_string(table) + ": ");
      }
    }
    PS_TRY(CheckImage(image));
    if (!digest.empty()) {
      const std::string found = Digest(image);
      if (found != digest) {
        return Error{ErrorCode::kInvalid,
                     "its digest is " + found + ", the manifest says " + digest};
      }
    }
    return std::move(image);
  }

  // Calls take(key, content) for the records of a table in order, each checked.
  template <typename Take>
  Status ForEachRecord(RecordKind kind, ShardId shard, std::uint32_t table, Take take) const {
    rocksdb::ReadOptions options;
    options.verify_checksums = true;
    options.fill_cache = false;
    const std::string begin = EncodeRowKey(kind, shard, table, 0);
    const std::string end = EncodeRowKey(kind, shard, table + 1, 0);
    const rocksdb::Slice upper(end);
    options.iterate_upper_bound = &upper;
    const std::unique_ptr<rocksdb::Iterator> iterator(database_->NewIterator(options));
    for (iterator->Seek(begin); iterator->Valid(); iterator->Next()) {
      const RecordKey key = PS_TRY(DecodeKey(View(iterator->key())));
      const std::string_view content =
          PS_TRY(Unseal(View(iterator->key()), View(iterator->value())));
      PS_TRY(take(key.first, content));
    }
    if (!iterator->status().ok()) {
      return DatabaseError(directory_, "cannot read", iterator->status());
    }
    return Ok();
  }

  Status ReadTable(ShardId shard, const ShardMeta::Rows& counts, RowTableImage& table) const {
    if (counts.rows > part_bytes_ / table.record_bytes() || counts.sketch_bytes > part_bytes_) {
      return Error{ErrorCode::kInvalid, std::to_string(counts.rows) + " rows and " +
                                            std::to_string(counts.sketch_bytes) +
                                            " bytes of a sketch, more than the files can hold"};
    }
    table.records.reserve(counts.rows * table.record_bytes());
    table.sketch.reserve(counts.sketch_bytes);
    PS_TRY(ForEachRecord(RecordKind::kRows, shard, table.table,
                         [&](std::uint64_t first, std::string_view content) {
                           return DecodeRows(content, first, counts.rows, table);
                         }));
    PS_TRY(ForEachRecord(RecordKind::kSketch, shard, table.table,
                         [&](std::uint64_t first, std::string_view content) {
                           return DecodeSketch(content, first, counts.sketch_bytes, table);
                         }));
    if (table.rows() != counts.rows || table.sketch.size() != counts.sketch_bytes) {
      return Error{ErrorCode::kInvalid, "a record is missing"};
    }
    return Ok();
  }

  const fs::path directory_;
  std::vector<SealedFile> files_;
  std::uint64_t part_bytes_ = 0;
  std::unique_ptr<rocksdb::DB> database_;
  std::vector<ShardId> shards_;
};

Reader::Reader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Reader::Reader(Reader&&) noexcept = default;
Reader& Reader::operator=(Reader&&) noexcept = default;
Reader::~Reader() = default;

Result<Reader> Reader::Open(const fs::path& directory) {
  auto impl = std::make_unique<Impl>(directory);
  PS_TRY(impl->Open());
  return Reader(std::move(impl));
}

const std::vector<ShardId>& Reader::ListShards() const { return impl_->shards(); }

Result<ShardImage> Reader::ReadShard(ShardId shard, const std::string& digest) const {
  return impl_->ReadShard(shard, digest);
}

Status Reader::VerifyFiles(const std::function<void(std::uint64_t)>& progress) const {
  return impl_->VerifyFiles(progress);
}

}  // namespace ps::checkpoint
