#include "checkpoint/reader.h"

#include <rocksdb/db.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <system_error>

#include "checkpoint/content.h"
#include "checkpoint/database.h"
#include "checkpoint/part_directory.h"
#include "checkpoint/part_environment.h"
#include "checkpoint/record.h"
#include "checkpoint/round_path.h"
#include "common/error_id.h"

namespace ps::checkpoint {
namespace {

namespace fs = std::filesystem;

// Of a table that is read from one end to the other.
constexpr std::size_t kReadAheadBytes = std::size_t{4} << 20;

std::string_view View(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

Error Missing() { return Error{ErrorId::kCheckpointDamaged, "a record is missing"}; }

std::uint64_t KeyAt(std::string_view bytes, std::size_t at) {
  std::uint64_t key = 0;
  std::memcpy(&key, bytes.data() + at, sizeof(key));
  return key;
}

// The records of one part from `begin` to before `end`, each unsealed.
class RecordCursor {
 public:
  // `name` of the part outlives the cursor.
  RecordCursor(rocksdb::DB& database, const std::string& name, const std::string& begin,
               std::string end)
      : name_(name), end_(std::move(end)), upper_(end_) {
    rocksdb::ReadOptions options;
    options.verify_checksums = true;
    options.fill_cache = false;
    options.readahead_size = kReadAheadBytes;
    options.iterate_upper_bound = &upper_;
    iterator_.reset(database.NewIterator(options));
    iterator_->Seek(begin);
  }
  RecordCursor(const RecordCursor&) = delete;
  RecordCursor& operator=(const RecordCursor&) = delete;

  bool valid() const { return valid_; }
  const RecordKey& key() const { return key_; }
  std::string_view content() const { return content_; }

  // Of the record that the cursor stands on, also after the constructor.
  Status Load() {
    valid_ = iterator_->Valid();
    if (!valid_) {
      if (iterator_->status().ok()) return Ok();
      return DatabaseError(name_, "cannot read", iterator_->status());
    }
    key_ = PS_TRY(DecodeKey(View(iterator_->key())));
    content_ = PS_TRY(Unseal(View(iterator_->key()), View(iterator_->value())));
    return Ok();
  }
  Status Next() {
    iterator_->Next();
    return Load();
  }

 private:
  const std::string& name_;
  const std::string end_;
  const rocksdb::Slice upper_;
  std::unique_ptr<rocksdb::Iterator> iterator_;
  bool valid_ = false;
  RecordKey key_;
  std::string_view content_;
};

// Rows of a table, or keys of removed ones, in one part of a chain.
class RowCursor {
 public:
  // `table` outlives the cursor.
  RowCursor(std::unique_ptr<RecordCursor> records, const RowTableImage& table, bool removed)
      : records_(std::move(records)),
        table_(table),
        removed_(removed),
        item_bytes_(removed ? sizeof(std::uint64_t) : table.record_bytes()) {}

  bool removed() const { return removed_; }
  bool valid() const { return records_->valid(); }
  std::uint64_t key() const { return key_; }

  Status Load() {
    PS_TRY(records_->Load());
    return Enter();
  }
  // The rows from this one on whose keys are below `end`, or all in the record; the cursor stands
  // behind them. They are gone with the next call but PassRecord().
  std::string_view TakeBelow(std::optional<std::uint64_t> end) {
    const std::string_view content = records_->content();
    const std::size_t from = at_;
    if (!end.has_value() || KeyAt(content, content.size() - item_bytes_) < *end) {
      at_ = content.size();
    } else {
      while (KeyAt(content, at_) < *end) at_ += item_bytes_;
    }
    return content.substr(from, at_ - from);
  }
  std::string_view TakeOne() {
    const std::size_t from = at_;
    at_ += item_bytes_;
    return records_->content().substr(from, item_bytes_);
  }
  // After what was taken has been used: the next record, if this one has ended.
  Status Advance() {
    if (at_ < records_->content().size()) {
      key_ = KeyAt(records_->content(), at_);
      return Ok();
    }
    // Every record but the last of a part is full, so that none of them is lost unseen.
    short_ = short_ || records_->content().size() + item_bytes_ <= FullBytes();
    PS_TRY(records_->Next());
    return Enter();
  }

 private:
  std::size_t FullBytes() const {
    return removed_ ? kChunkBytes : RowsPerRecord(table_) * item_bytes_;
  }
  Status Enter() {
    at_ = 0;
    if (!valid()) return Ok();
    if (short_) return Missing();
    const std::uint64_t first = records_->key().first;
    const std::string_view content = records_->content();
    PS_TRY(removed_ ? CheckRemovedRecord(content, first) : CheckRowsRecord(content, first, table_));
    if (entered_ && first <= key_) {
      return Error{ErrorId::kCheckpointDamaged,
                   "row " + std::to_string(first) + " stands after a higher one"};
    }
    entered_ = true;
    key_ = first;
    return Ok();
  }

  const std::unique_ptr<RecordCursor> records_;
  const RowTableImage& table_;
  const bool removed_;
  const std::size_t item_bytes_;
  std::size_t at_ = 0;  // in the record's content
  std::uint64_t key_ = 0;
  bool short_ = false;  // the record before was not full
  bool entered_ = false;
};

}  // namespace

fs::path BaseDirectory(const fs::path& part, Round base) {
  const fs::path normal = NormalPart(part);
  // A path that ends in the round directory itself has no other name for the one above it.
  fs::path round = normal.parent_path();
  return (round.has_filename() ? round.parent_path() : round / "..") / RoundFolder(base) /
         normal.filename();
}

class Reader::Impl {
 public:
  Impl(const fs::path& directory, const Storage& storage)
      : storage_(storage), directory_(NormalPart(directory)), name_(storage.Describe(directory_)) {}

  Status Open() {
    PS_TRY(OpenSeal());
    for (const SealedFile& file : files_) {
      // Tables may be gigabytes; what leads RocksDB to their blocks lies in their tail.
      const bool whole = fs::path(file.name).extension() != ".sst";
      PS_TRY(CheckSealedFile(storage_, directory_, file, whole, {}));
      part_bytes_ += file.bytes;
    }
    rocksdb::Options options = DatabaseOptions();
    fs::path path = storage_.LocalPath(directory_);
    if (path.empty()) {
      environment_ = PartEnvironment(storage_, directory_, files_);
      options.env = environment_.get();
      path = kPartPath;
    }
    rocksdb::DB* opened = nullptr;
    const rocksdb::Status status = rocksdb::DB::OpenForReadOnly(options, path.string(), &opened);
    database_.reset(opened);
    if (!status.ok()) return DatabaseError(name_, "cannot open the database", status);
    return ListKeys();
  }

  const std::vector<ShardId>& shards() const { return shards_; }

  Status ReadShard(ShardId shard, const std::string& digest, ShardSink& sink) {
    const Status read = ReadUnnamed(shard, digest, sink);
    if (!read.ok()) return Named(shard, read.error());
    return Ok();
  }

  Result<ShardImage> ReadImage(ShardId shard, const std::string& digest) {
    const auto chain = Chain(shard);
    if (!chain.ok()) return Named(shard, chain.error());
    ImageSink sink(BytesOf(*chain));
    PS_TRY(ReadShard(shard, digest, sink));
    return sink.Take();
  }

  Result<std::vector<Round>> ListBases(ShardId shard) {
    auto bases = ReadBases(shard);
    if (!bases.ok()) return Named(shard, bases.error());
    return bases;
  }

  Result<ShardMeta> ReadNamedMeta(ShardId shard) const {
    auto meta = ReadMeta(shard);
    if (!meta.ok()) return Named(shard, meta.error());
    return meta;
  }

  Status VerifyFiles(const std::function<void(std::uint64_t)>& progress) const {
    for (const SealedFile& file : files_) {
      PS_TRY(CheckSealedFile(storage_, directory_, file, /*whole=*/true, progress));
    }
    return Ok();
  }

 private:
  using Parts = std::vector<Impl*>;  // of one shard, the newest first

  Error Named(ShardId shard, const Error& error) const {
    return Annotate(error, name_ + ": shard " + std::to_string(shard.value()) + ": ");
  }
  static std::uint64_t BytesOf(const Parts& parts) {
    std::uint64_t bytes = 0;
    for (const Impl* part : parts) bytes += part->part_bytes_;
    return bytes;
  }

  Status OpenSeal() {
    const fs::path path = directory_ / kSealFile;
    Result<std::string> text = ReadWholeFile(path, kMaxSealBytes, storage_);
    if (!text.ok()) {
      if (text.error().code != ErrorCode::kNotFound) return text.error();
      const auto there = storage_.ListDirectories(directory_);
      if (!there.ok() && there.error().code == ErrorCode::kNotFound) {
        return Error{ErrorId::kCheckpointMissing, name_ + ": no such checkpoint part"};
      }
      PS_TRY(there);
      return Error{ErrorId::kCheckpointDamaged, storage_.Describe(path) + ": the file is missing"};
    }
    Result<std::vector<SealedFile>> files = DecodeSeal(*text);
    if (!files.ok()) return Annotate(files.error(), storage_.Describe(path) + ": ");
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
      if (!key.ok()) return Annotate(key.error(), name_ + ": ");
      shards_.push_back(key->shard);
    }
    if (!iterator->status().ok()) {
      return DatabaseError(name_, "cannot list the shards", iterator->status());
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
    if (status.IsNotFound()) return Error{ErrorId::kCheckpointDamaged, "a record is missing"};
    if (!status.ok()) return DatabaseError(name_, "cannot read", status);
    return Unseal(key, View(holder));
  }

  // In one part: the rounds that the shard's records there build on.
  Result<std::vector<Round>> ReadBases(ShardId shard) const {
    rocksdb::PinnableSlice holder;
    const std::string key = EncodeKey(RecordKind::kBases, shard, 0);
    rocksdb::ReadOptions options;
    options.verify_checksums = true;
    const rocksdb::Status status =
        database_->Get(options, database_->DefaultColumnFamily(), key, &holder);
    if (status.IsNotFound()) return std::vector<Round>();
    if (!status.ok()) return DatabaseError(name_, "cannot read", status);
    return DecodeBases(PS_TRY(Unseal(key, View(holder))));
  }

  Result<ShardMeta> ReadMeta(ShardId shard) const {
    if (!std::binary_search(shards_.begin(), shards_.end(), shard)) {
      return Error{ErrorCode::kNotFound, "not in this part"};
    }
    rocksdb::PinnableSlice holder;
    const std::string_view record = PS_TRY(Get(EncodeKey(RecordKind::kMeta, shard, 0), holder));
    ShardMeta meta = PS_TRY(DecodeMeta(record));
    if (meta.image.shard != shard) {
      return Error{ErrorId::kCheckpointDamaged,
                   "the record is that of shard " + std::to_string(meta.image.shard.value())};
    }
    return meta;
  }

  // The part with the name of this one in an earlier round. It stays open.
  Result<Impl*> OpenBase(Round round) {
    std::unique_ptr<Impl>& base = bases_[round];
    if (base != nullptr) return base.get();
    auto opened = std::make_unique<Impl>(BaseDirectory(directory_, round), storage_);
    const Status status = opened->Open();
    if (!status.ok()) {
      const bool missing = status.error().code == ErrorCode::kNotFound;
      return Annotate(
          missing ? Error{ErrorId::kCheckpointDamaged, status.error().message} : status.error(),
          "it builds on checkpoint " + std::to_string(round.value()) + ": ");
    }
    base = std::move(opened);
    return base.get();
  }

  // The parts that a shard lies in.
  Result<Parts> Chain(ShardId shard) {
    const ShardMeta meta = PS_TRY(ReadMeta(shard));
    const std::vector<Round> bases = PS_TRY(ReadBases(shard));
    PS_TRY(CheckBases(meta.image.round, bases));
    Parts parts{this};
    for (std::size_t i = 0; i < bases.size(); ++i) {
      Impl* const base = PS_TRY(OpenBase(bases[i]));
      const auto check = [&]() -> Status {
        const ShardMeta of = PS_TRY(base->ReadMeta(shard));
        const bool fits =
            of.image.job == meta.image.job && of.image.round == bases[i] &&
            of.image.block_elements == meta.image.block_elements &&
            of.rows.size() == meta.rows.size() &&
            PS_TRY(base->ReadBases(shard)) ==
                std::vector<Round>(bases.begin() + static_cast<std::ptrdiff_t>(i) + 1, bases.end());
        if (!fits) return Error{ErrorId::kCheckpointDamaged, "it is another history of the shard"};
        return Ok();
      };
      const Status checked = check();
      if (!checked.ok()) {
        return Error{ErrorId::kCheckpointDamaged,
                     "it builds on " + base->name_ + ": " + checked.error().message};
      }
      parts.push_back(base);
    }
    return parts;
  }

  Status ReadUnnamed(ShardId shard, const std::string& digest, ShardSink& sink) {
    const Parts parts = PS_TRY(Chain(shard));
    rocksdb::PinnableSlice holder;
    const std::string_view record = PS_TRY(Get(EncodeKey(RecordKind::kMeta, shard, 0), holder));
    const ShardMeta meta = PS_TRY(DecodeMeta(record));
    PS_TRY(CheckRoom(meta, BytesOf(parts)));
    ContentCheck check(shard, sink, /*with_digest=*/true);
    PS_TRY(check.AddMeta(record));
    PS_TRY(ReadBlocks(parts, shard, meta.image, check));
    for (std::uint32_t table = 0; table < meta.image.rows.size(); ++table) {
      const Status rows = ReadRows(parts, shard, meta.image.rows[table], check);
      if (!rows.ok()) return Annotate(rows.error(), "row table " + std::to_string(table) + ": ");
    }
    for (std::uint32_t table = 0; table < meta.image.rows.size(); ++table) {
      const Status read = ReadSketch(parts, shard, table, meta.rows[table].sketch_bytes, check);
      if (!read.ok()) return Annotate(read.error(), "row table " + std::to_string(table) + ": ");
    }
    const std::string found = PS_TRY(check.Finish());
    if (!digest.empty() && found != digest) {
      return Error{ErrorId::kCheckpointDamaged,
                   "its digest is " + found + ", the manifest says " + digest};
    }
    return Ok();
  }

  // What the meta claims is held against the files before anybody makes room for it.
  static Status CheckRoom(const ShardMeta& meta, std::uint64_t bytes) {
    std::uint64_t elements = 0;
    for (const std::uint32_t count : meta.image.block_elements) elements += count;
    if (elements > bytes / BytesPerElement(meta.image)) {
      return Error{ErrorId::kCheckpointDamaged,
                   std::to_string(elements) + " elements, more than the files can hold"};
    }
    for (std::size_t table = 0; table < meta.rows.size(); ++table) {
      const ShardMeta::Rows& counts = meta.rows[table];
      if (counts.rows > bytes / meta.image.rows[table].record_bytes() ||
          counts.sketch_bytes > bytes) {
        return Error{ErrorId::kCheckpointDamaged,
                     std::to_string(counts.rows) + " rows and " +
                         std::to_string(counts.sketch_bytes) +
                         " bytes of a sketch, more than the files can hold"};
      }
    }
    return Ok();
  }

  using Cursors = std::vector<std::unique_ptr<RecordCursor>>;

  Result<Cursors> CursorsOf(const Parts& parts, const std::string& begin,
                            const std::string& end) const {
    Cursors cursors;
    for (const Impl* part : parts) {
      cursors.push_back(std::make_unique<RecordCursor>(*part->database_, part->name_, begin, end));
      PS_TRY(cursors.back()->Load());
    }
    return cursors;
  }

  // The record at `place` of the newest part that has one, where no part has an earlier one left.
  // Calls use(content).
  template <typename Place, typename Use>
  static Status UseNewest(const Cursors& cursors, Place place, std::uint64_t at, Use use) {
    bool used = false;
    for (const auto& cursor : cursors) {
      if (!cursor->valid() || place(cursor->key()) != at) continue;
      if (!used) PS_TRY(use(cursor->content()));
      used = true;
      PS_TRY(cursor->Next());
    }
    if (!used) return Missing();
    return Ok();
  }
  static Status CheckEnd(const Cursors& cursors) {
    for (const auto& cursor : cursors) {
      if (cursor->valid()) return Error{ErrorId::kCheckpointDamaged, "a record too many"};
    }
    return Ok();
  }

  Status ReadBlocks(const Parts& parts, ShardId shard, const ShardImage& image,
                    ContentCheck& check) const {
    const std::string end = shard.value() == UINT32_MAX
                                ? EncodeKey(RecordKind::kRows, ShardId(0), 0)
                                : EncodeKey(RecordKind::kBlock, ShardId(shard.value() + 1), 0);
    const Cursors cursors = PS_TRY(CursorsOf(parts, EncodeKey(RecordKind::kBlock, shard, 0), end));
    for (std::size_t i = 0; i < image.block_elements.size(); ++i) {
      const std::uint32_t block = image.first_block + static_cast<std::uint32_t>(i);
      const Status used = UseNewest(
          cursors, [](const RecordKey& key) { return std::uint64_t{key.block}; }, block,
          [&](std::string_view content) { return check.AddBlock(block, content); });
      if (!used.ok()) return Annotate(used.error(), "block " + std::to_string(block) + ": ");
    }
    return CheckEnd(cursors);
  }

  Status ReadSketch(const Parts& parts, ShardId shard, std::uint32_t table, std::uint64_t bytes,
                    ContentCheck& check) const {
    const Cursors cursors =
        PS_TRY(CursorsOf(parts, EncodeRowKey(RecordKind::kSketch, shard, table, 0),
                         EncodeRowKey(RecordKind::kSketch, shard, table + 1, 0)));
    for (std::uint64_t at = 0; at < bytes; at += kChunkBytes) {
      PS_TRY(UseNewest(
          cursors, [](const RecordKey& key) { return key.first; }, at,
          [&](std::string_view content) { return check.AddSketch(table, at, content); }));
    }
    return CheckEnd(cursors);
  }

  // Rows in the order of their keys, of each the newest; those that a part says are removed are
  // not taken from the parts it builds on.
  Status ReadRows(const Parts& parts, ShardId shard, const RowTableImage& table,
                  ContentCheck& check) const {
    // By age: the rows of a part stand before what it removes, which is of older parts.
    std::vector<std::unique_ptr<RowCursor>> cursors;
    for (const Impl* part : parts) {
      for (const RecordKind kind : {RecordKind::kRows, RecordKind::kRemoved}) {
        if (kind == RecordKind::kRemoved && part == parts.back()) continue;
        cursors.push_back(std::make_unique<RowCursor>(
            std::make_unique<RecordCursor>(*part->database_, part->directory_,
                                           EncodeRowKey(kind, shard, table.table, 0),
                                           EncodeRowKey(kind, shard, table.table + 1, 0)),
            table, kind == RecordKind::kRemoved));
        PS_TRY(cursors.back()->Load());
        if (!cursors.back()->valid()) cursors.pop_back();
      }
    }
    while (!cursors.empty()) {
      RowCursor* lowest = cursors.front().get();
      std::optional<std::uint64_t> others;  // the lowest key of the other cursors
      for (const auto& cursor : cursors) {
        if (cursor->key() < lowest->key()) lowest = cursor.get();
      }
      for (const auto& cursor : cursors) {
        if (cursor.get() == lowest) continue;
        if (!others.has_value() || cursor->key() < *others) others = cursor->key();
      }
      const bool alone = !others.has_value() || lowest->key() < *others;
      const std::string_view taken = alone ? lowest->TakeBelow(others) : lowest->TakeOne();
      if (!lowest->removed()) PS_TRY(check.AddRows(table.table, taken));
      if (!alone) {
        const std::uint64_t key = *others;
        for (const auto& cursor : cursors) {
          if (cursor.get() == lowest || cursor->key() != key) continue;
          (void)cursor->TakeOne();
          PS_TRY(cursor->Advance());
        }
      }
      PS_TRY(lowest->Advance());
      std::erase_if(cursors, [](const auto& cursor) { return !cursor->valid(); });
    }
    return Ok();
  }

  const Storage& storage_;
  const fs::path directory_;
  const std::string name_;  // for messages
  std::vector<SealedFile> files_;
  std::uint64_t part_bytes_ = 0;
  std::unique_ptr<rocksdb::Env> environment_;  // of a part on another host
  std::unique_ptr<rocksdb::DB> database_;
  std::vector<ShardId> shards_;
  std::map<Round, std::unique_ptr<Impl>> bases_;  // that have been needed
};

Reader::Reader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Reader::Reader(Reader&&) noexcept = default;
Reader& Reader::operator=(Reader&&) noexcept = default;
Reader::~Reader() = default;

Result<Reader> Reader::Open(const fs::path& directory, const Storage& storage) {
  auto impl = std::make_unique<Impl>(directory, storage);
  PS_TRY(impl->Open());
  return Reader(std::move(impl));
}

const std::vector<ShardId>& Reader::ListShards() const { return impl_->shards(); }

Status Reader::ReadShard(ShardId shard, const std::string& digest, ShardSink& sink) const {
  return impl_->ReadShard(shard, digest, sink);
}

Result<ShardImage> Reader::ReadShard(ShardId shard, const std::string& digest) const {
  return impl_->ReadImage(shard, digest);
}

Result<ShardMeta> Reader::ReadMeta(ShardId shard) const { return impl_->ReadNamedMeta(shard); }

Result<std::vector<Round>> Reader::ListBases(ShardId shard) const {
  return impl_->ListBases(shard);
}

Status Reader::VerifyFiles(const std::function<void(std::uint64_t)>& progress) const {
  return impl_->VerifyFiles(progress);
}

}  // namespace ps::checkpoint
