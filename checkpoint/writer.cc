#include "checkpoint/writer.h"

#include <rocksdb/db.h>
#include <rocksdb/sst_file_writer.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <map>
#include <optional>
#include <span>
#include <system_error>
#include <utility>

#include "checkpoint/content.h"
#include "checkpoint/database.h"
#include "checkpoint/digest.h"
#include "checkpoint/files.h"
#include "checkpoint/manifest.h"
#include "checkpoint/part_directory.h"
#include "checkpoint/record.h"
#include "checkpoint/write_back.h"

namespace ps::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStaging = "staging";

}  // namespace

class Writer::Impl {
 public:
  Impl(fs::path directory, fs::path partial)
      : directory_(std::move(directory)),
        partial_(std::move(partial)),
        options_(DatabaseOptions()) {}

  Result<ShardBase> Add(const ShardSource& source, const ShardBase* base) {
    PS_CHECK(!finished_, "a shard after Finish()");
    PS_TRY(Usable());
    const ShardImage& head = source.head();
    PS_TRY(CheckHead(head));
    if (metas_.count(head.shard) != 0) {
      return Error{ErrorCode::kConflict, directory_.string() + ": shard " +
                                             std::to_string(head.shard.value()) +
                                             " was added already"};
    }
    ShardBase made;
    made.round = head.round;
    made.identity = source.identity();
    made.cut = source.cut();
    made.hashes.rows.resize(head.rows.size());
    made.tables.resize(head.rows.size());
    Content content{source, base, std::nullopt, StateBytes(source), 0};
    if (base != nullptr) content.change = FindChange(content, made);
    if (content.change.has_value()) {
      made.bases.push_back(base->round);
      made.bases.insert(made.bases.end(), base->bases.begin(), base->bases.end());
      made.chain_bytes = base->chain_bytes + content.change->bytes;
    }
    Status written = WriteBlocks(content, made);
    if (written.ok()) written = WriteRows(content, made);
    if (written.ok()) written = WriteRemoved(content);
    if (written.ok()) written = WriteSketches(content, made);
    if (!written.ok()) return Fail(written.error());
    return AddMeta(content, std::move(made));
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
  using Records = std::map<ShardId, std::pair<std::string, std::string>>;  // key and value

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
    return WriteSealed(name, [&](auto put) {
      fill([&](const std::string& key, std::string_view content) {
        const std::string value = checkpoint::Seal(key, content);
        bytes += key.size() + value.size();
        return put(key, value);
      });
    });
  }
  template <typename Fill>
  Status WriteSealed(const std::string& name, Fill fill) {
    const fs::path table = Staged(name);
    rocksdb::Options options = options_;
    options.env = write_back_.env();
    rocksdb::SstFileWriter writer(WriteBack::Options(), options);
    rocksdb::Status status;
    bool any = false;
    fill([&](const std::string& key, const std::string& value) {
      if (!any) status = writer.Open(table.string());
      any = true;
      if (status.ok()) status = writer.Put(key, value);
      return status.ok();
    });
    if (!any) return Ok();
    if (status.ok()) status = writer.Finish();
    if (!status.ok()) return DatabaseError(table, "cannot write", status);
    tables_.push_back(table);
    return Ok();
  }

  // What has changed since a base, by table where there are several.
  struct Change {
    std::vector<bool> blocks;
    std::vector<std::vector<SourceRow>> rows;
    std::vector<std::vector<std::uint64_t>> removed;  // sorted, each once
    std::uint64_t bytes = 0;                          // of content
  };
  // A shard on its way into the part.
  struct Content {
    const ShardSource& source;
    const ShardBase* base;         // null: everything is written
    std::optional<Change> change;  // nothing: everything is written
    std::uint64_t state_bytes;
    std::uint64_t stored_bytes;  // keys and values so far

    const ShardImage& head() const { return source.head(); }
  };

  static std::uint64_t StateBytes(const ShardSource& source) {
    const ShardImage& head = source.head();
    std::uint64_t elements = 0;
    for (const std::uint32_t count : head.block_elements) elements += count;
    std::uint64_t bytes = elements * BytesPerElement(head);
    if (head.slots.counts == UpdateCounts::kPerBlock) {
      bytes += head.block_elements.size() * sizeof(std::uint32_t);
    }
    for (std::size_t table = 0; table < head.rows.size(); ++table) {
      bytes += source.rows(table) * head.rows[table].record_bytes() + source.sketch(table).size();
    }
    return bytes;
  }

  // Nothing if the base is of no use, or saves too little: parts that build on others must not take
  // twice the room of a whole one, nor a restore twice the time.
  static std::optional<Change> FindChange(const Content& content, ShardBase& made) {
    const ShardSource& source = content.source;
    const ShardBase& base = *content.base;
    const ShardImage& head = content.head();
    const std::uint64_t most = content.state_bytes / 2;
    if (base.identity == nullptr || base.identity != made.identity ||
        base.bases.size() + 1 >= kBasesMax || base.round >= head.round ||
        base.hashes.blocks.size() != head.block_elements.size() ||
        base.tables.size() != head.rows.size()) {
      return std::nullopt;
    }
    Change change;
    const std::size_t element_bytes = BytesPerElement(head);
    for (std::size_t i = 0; i < head.block_elements.size(); ++i) {
      change.blocks.push_back(source.BlockChanged(i, base.cut));
      if (change.blocks.back()) change.bytes += head.block_elements[i] * element_bytes;
    }
    for (std::size_t table = 0; table < head.rows.size(); ++table) {
      const ShardBase::Table& before = base.tables[table];
      const std::size_t record_bytes = head.rows[table].record_bytes();
      auto removed = source.Removed(table, base.cut);
      if (!removed.has_value()) return std::nullopt;
      std::sort(removed->begin(), removed->end());
      removed->erase(std::unique(removed->begin(), removed->end()), removed->end());
      std::vector<ContentHash>& groups = made.tables[table].groups;
      std::vector<SourceRow> changed;
      for (std::size_t group = 0; group < source.row_groups(table); ++group) {
        if (group < before.groups.size() && !source.GroupChanged(table, group, base.cut)) {
          groups.push_back(before.groups[group]);
          continue;
        }
        groups.emplace_back();
        source.VisitRows(table, group, [&](const SourceRow& row, const std::byte* record) {
          const ContentHash hash = HashOf(record, record_bytes);
          const std::uint32_t used = LastUsed(record);
          groups.back() += hash;
          if (used == head.rows[table].tick) made.tables[table].recent.push_back({row.key, hash});
          // One that went and came back is new, even if it is as it was.
          if (used > before.tick ||
              (used == before.tick &&
               (!Contains(before.recent, row, hash) ||
                std::binary_search(removed->begin(), removed->end(), row.key)))) {
            changed.push_back(row);
          }
        });
        if (change.bytes + changed.size() * record_bytes > most) return std::nullopt;
      }
      if (head.rows[table].tick == before.tick) {
        // Those in groups that have not changed are as they were.
        AddMissing(before.recent, *removed, made.tables[table].recent);
      }
      change.bytes += ChangedSketchBytes(source.sketch(table), base.hashes.sketches[table]);
      change.bytes += changed.size() * record_bytes + removed->size() * sizeof(std::uint64_t);
      change.rows.push_back(std::move(changed));
      change.removed.push_back(std::move(*removed));
    }
    if (base.chain_bytes + change.bytes > most) return std::nullopt;
    return change;
  }

  static std::uint64_t ChangedSketchBytes(std::span<const std::uint8_t> sketch,
                                          const std::vector<ContentHash>& before) {
    std::uint64_t bytes = 0;
    for (std::size_t at = 0; at < sketch.size(); at += kChunkBytes) {
      const auto piece = sketch.subspan(at, std::min(kChunkBytes, sketch.size() - at));
      const std::size_t number = at / kChunkBytes;
      if (number >= before.size() || before[number] != HashOf(piece.data(), piece.size())) {
        bytes += piece.size();
      }
    }
    return bytes;
  }
  static std::uint32_t LastUsed(const std::byte* record) {
    std::uint32_t tick = 0;
    std::memcpy(&tick, record + sizeof(std::uint64_t) + sizeof(std::uint32_t), sizeof(tick));
    return tick;
  }
  static void SortRecent(std::vector<ShardBase::Row>& recent) {
    constexpr std::size_t kRecentMax = std::size_t{1} << 20;
    if (recent.size() > kRecentMax) recent = {};
    std::sort(recent.begin(), recent.end(), ByKey);
  }
  static bool ByKey(const ShardBase::Row& a, const ShardBase::Row& b) { return a.key < b.key; }
  static bool Contains(const std::vector<ShardBase::Row>& recent, const SourceRow& row,
                       const ContentHash& hash) {
    const auto at =
        std::lower_bound(recent.begin(), recent.end(), ShardBase::Row{row.key, {}}, ByKey);
    return at != recent.end() && at->key == row.key && at->hash == hash;
  }
  // Those of `from` whose keys neither `to` nor `removed` has. All are sorted, `to` afterwards.
  static void AddMissing(const std::vector<ShardBase::Row>& from,
                         const std::vector<std::uint64_t>& removed,
                         std::vector<ShardBase::Row>& to) {
    std::sort(to.begin(), to.end(), ByKey);
    std::vector<ShardBase::Row> merged;
    std::set_union(to.begin(), to.end(), from.begin(), from.end(), std::back_inserter(merged),
                   ByKey);
    std::erase_if(merged, [&](const ShardBase::Row& row) {
      return std::binary_search(removed.begin(), removed.end(), row.key) &&
             !std::binary_search(to.begin(), to.end(), row, ByKey);
    });
    to = std::move(merged);
  }

  static std::string NameOf(const char* what, const ShardImage& image) {
    return what + std::to_string(image.shard.value()) + ".sst";
  }

  Status WriteBlocks(Content& content, ShardBase& made) {
    const ShardImage& head = content.head();
    const auto changed = [&](std::size_t i) {
      return !content.change.has_value() || content.change->blocks[i];
    };
    bool any = false;
    for (std::size_t i = 0; !any && i < head.block_elements.size(); ++i) any = changed(i);
    if (!any && content.change.has_value()) {
      made.hashes.blocks = content.base->hashes.blocks;
      made.values_digest = content.base->values_digest;
      return Ok();
    }
    Digester values;
    const Status written = WriteTable(NameOf("shard-", head), content.stored_bytes, [&](auto put) {
      for (std::size_t i = 0; i < head.block_elements.size(); ++i) {
        const std::string block = content.source.EncodeBlock(i);
        values.Update(std::as_bytes(std::span(block)).first(head.block_elements[i] * 4ull));
        if (!changed(i)) {
          made.hashes.blocks.push_back(content.base->hashes.blocks[i]);
          continue;
        }
        made.hashes.blocks.push_back(HashOf(block.data(), block.size()));
        const std::string key = EncodeKey(RecordKind::kBlock, head.shard,
                                          head.first_block + static_cast<std::uint32_t>(i));
        if (!put(key, block)) return;
      }
    });
    made.values_digest = values.Hex();
    return written;
  }

  Status WriteRows(Content& content, ShardBase& made) {
    const ShardImage& head = content.head();
    Status order = Ok();
    PS_TRY(WriteTable(NameOf("rows-", head), content.stored_bytes, [&](auto put) {
      std::vector<SourceRow> rows;
      for (std::size_t number = 0; order.ok() && number < head.rows.size(); ++number) {
        const RowTableImage& table = head.rows[number];
        std::vector<ContentHash>& groups = made.tables[number].groups;
        rows.clear();
        if (content.change.has_value()) {
          rows = std::move(content.change->rows[number]);
        } else {
          groups.clear();
          made.tables[number].recent.clear();
          rows.reserve(content.source.rows(number));
          for (std::size_t at = 0; at < content.source.row_groups(number); ++at) {
            groups.emplace_back();
            content.source.VisitRows(
                number, at, [&](const SourceRow& row, const std::byte* record) {
                  const ContentHash hash = HashOf(record, table.record_bytes());
                  groups.back() += hash;
                  if (LastUsed(record) == table.tick) {
                    made.tables[number].recent.push_back({row.key, hash});
                  }
                  rows.push_back(row);
                });
          }
        }
        for (const ContentHash& sum : groups) made.hashes.rows[number] += sum;
        made.tables[number].tick = table.tick;
        SortRecent(made.tables[number].recent);
        std::sort(rows.begin(), rows.end(),
                  [](const SourceRow& a, const SourceRow& b) { return a.key < b.key; });
        const auto twice = std::adjacent_find(
            rows.begin(), rows.end(),
            [](const SourceRow& a, const SourceRow& b) { return a.key == b.key; });
        if (twice != rows.end()) {
          order = Error{ErrorCode::kInvalid, "row table " + std::to_string(number) + ": row " +
                                                 std::to_string(twice->key) + " is there twice"};
          return;
        }
        if (!PutRows(put, content.source, number, rows)) return;
      }
    }));
    return order;
  }

  template <typename Put>
  static bool PutRows(const Put& put, const ShardSource& source, std::size_t number,
                      const std::vector<SourceRow>& rows) {
    const RowTableImage& table = source.head().rows[number];
    const std::size_t bytes = table.record_bytes();
    const std::size_t per_record = RowsPerRecord(table);
    std::string content;
    for (std::size_t at = 0; at < rows.size(); at += per_record) {
      const std::size_t count = std::min(per_record, rows.size() - at);
      content.resize(count * bytes);
      for (std::size_t i = 0; i < count; ++i) {
        source.CopyRow(number, rows[at + i],
                       reinterpret_cast<std::byte*>(content.data()) + i * bytes);
      }
      if (!put(EncodeRowKey(RecordKind::kRows, source.head().shard, table.table, rows[at].key),
               content)) {
        return false;
      }
    }
    return true;
  }

  Status WriteRemoved(Content& content) {
    if (!content.change.has_value()) return Ok();
    const ShardImage& head = content.head();
    return WriteTable(NameOf("removed-", head), content.stored_bytes, [&](auto put) {
      constexpr std::size_t kPerRecord = kChunkBytes / sizeof(std::uint64_t);
      for (std::size_t table = 0; table < head.rows.size(); ++table) {
        const std::vector<std::uint64_t>& keys = content.change->removed[table];
        for (std::size_t at = 0; at < keys.size(); at += kPerRecord) {
          const std::size_t count = std::min(kPerRecord, keys.size() - at);
          const std::string key = EncodeRowKey(RecordKind::kRemoved, head.shard,
                                               static_cast<std::uint32_t>(table), keys[at]);
          const auto bytes = std::as_bytes(std::span(keys).subspan(at, count));
          if (!put(key, Chars(bytes.data(), bytes.size()))) return;
        }
      }
    });
  }

  Status WriteSketches(Content& content, ShardBase& made) {
    const ShardImage& head = content.head();
    made.hashes.sketches.resize(head.rows.size());
    return WriteTable(NameOf("sketches-", head), content.stored_bytes, [&](auto put) {
      for (std::size_t table = 0; table < head.rows.size(); ++table) {
        const auto sketch = content.source.sketch(table);
        std::vector<ContentHash>& hashes = made.hashes.sketches[table];
        for (std::size_t at = 0; at < sketch.size(); at += kChunkBytes) {
          const auto piece = sketch.subspan(at, std::min(kChunkBytes, sketch.size() - at));
          hashes.push_back(HashOf(piece.data(), piece.size()));
          if (content.change.has_value()) {
            const auto& before = content.base->hashes.sketches[table];
            if (hashes.size() <= before.size() && before[hashes.size() - 1] == hashes.back()) {
              continue;
            }
          }
          const std::string key =
              EncodeRowKey(RecordKind::kSketch, head.shard, static_cast<std::uint32_t>(table), at);
          if (!put(key, Chars(piece.data(), piece.size()))) return;
        }
      }
    });
  }

  ShardBase AddMeta(Content& content, ShardBase made) {
    const ShardImage& head = content.head();
    std::vector<ShardMeta::Rows> counts;
    WrittenShard shard;
    for (std::size_t table = 0; table < head.rows.size(); ++table) {
      counts.push_back({content.source.rows(table), content.source.sketch(table).size()});
      shard.rows += counts.back().rows;
    }
    const std::string meta = EncodeMeta(head, counts);
    const auto add = [&content](Records& records, RecordKind kind, ShardId id,
                                const std::string& bytes) {
      std::string key = EncodeKey(kind, id, 0);
      std::string value = checkpoint::Seal(key, bytes);
      content.stored_bytes += key.size() + value.size();
      records.emplace(id, std::make_pair(std::move(key), std::move(value)));
    };
    add(metas_, RecordKind::kMeta, head.shard, meta);
    if (!made.bases.empty()) {
      add(bases_, RecordKind::kBases, head.shard, EncodeBases(made.bases));
    }
    shard.shard = head.shard;
    shard.epoch = head.epoch;
    shard.version = head.version;
    shard.bytes = content.stored_bytes;
    shard.state_bytes = content.state_bytes;
    shard.bases = made.bases;
    shard.digest = DigestOf(meta, made.hashes);
    shard.values_digest = made.values_digest;
    shards_.push_back(std::move(shard));
    return made;
  }

  template <typename Byte>
  static std::string_view Chars(const Byte* bytes, std::size_t count) {
    static_assert(sizeof(Byte) == 1);
    return {reinterpret_cast<const char*>(bytes), count};
  }

  Status MakeVisible() {
    PS_TRY(WriteSmall("metas.sst", metas_));
    PS_TRY(WriteSmall("bases.sst", bases_));
    PS_TRY(write_back_.Wait());
    PS_TRY(BuildDatabase());
    // What a reader does not need: the lock, and the empty log of a database that has none.
    PS_TRY(Remove(partial_ / kStaging));
    PS_TRY(Remove(partial_ / "LOCK"));
    PS_TRY(RemoveLogs());
    const std::vector<SealedFile> files = PS_TRY(
        SealFiles(partial_, [this](const fs::path& file) { return write_back_.DigestOf(file); }));
    for (const SealedFile& file : files) PS_TRY(SyncFile(partial_ / file.name));
    return FinishPart(directory_, files);
  }

  // One table of all shards' records of a kind.
  Status WriteSmall(const std::string& name, const Records& records) {
    return WriteSealed(name, [&records](auto put) {
      for (const auto& [shard, record] : records) {
        if (!put(record.first, record.second)) return;
      }
    });
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

  static Status Remove(const fs::path& path) {
    std::error_code error;
    fs::remove(path, error);
    if (error) return IoError(path, "cannot remove", error.value());
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
    for (const fs::path& log : logs) PS_TRY(Remove(log));
    return Ok();
  }

  const fs::path directory_;
  const fs::path partial_;
  const rocksdb::Options options_;

  WriteBack write_back_;
  std::vector<fs::path> tables_;
  std::vector<WrittenShard> shards_;
  Records metas_;
  Records bases_;  // of shards that build on earlier parts
  std::optional<Error> failed_;
  bool finished_ = false;
};

Writer::Writer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Writer::Writer(Writer&&) noexcept = default;
Writer& Writer::operator=(Writer&&) noexcept = default;
Writer::~Writer() = default;

Result<Writer> Writer::Open(const fs::path& directory, std::uint64_t expected_bytes) {
  fs::path partial = PS_TRY(BeginPart(directory, expected_bytes));
  PS_TRY(CreateDirectories(partial / kStaging));
  return Writer(std::make_unique<Impl>(NormalPart(directory), std::move(partial)));
}

Status Writer::Add(const ShardImage& image) {
  PS_TRY(CheckImage(image));
  PS_TRY(impl_->Add(ImageSource(image), nullptr));
  return Ok();
}

Result<ShardBase> Writer::Add(const ShardSource& source, const ShardBase* base) {
  return impl_->Add(source, base);
}

Result<std::vector<WrittenShard>> Writer::Finish() { return impl_->Finish(); }

}  // namespace ps::checkpoint
