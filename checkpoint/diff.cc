#include "checkpoint/diff.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "checkpoint/content.h"
#include "checkpoint/reader.h"
#include "common/error_id.h"

namespace ps::checkpoint {
namespace {

namespace fs = std::filesystem;

// Sums of squares until Finish().
class ValuesCompare {
 public:
  explicit ValuesCompare(ValuesDiff& result) : result_(result) {}

  // How many have other bits.
  std::uint64_t Add(std::span<const float> before, std::span<const float> after) {
    std::uint64_t changed = 0;
    for (std::size_t i = 0; i < before.size(); ++i) {
      changed += std::memcmp(&before[i], &after[i], sizeof(float)) != 0 ? 1 : 0;
      if (!std::isfinite(before[i]) || !std::isfinite(after[i])) {
        ++result_.nonfinite;
        continue;
      }
      const double old = before[i];
      const double step = double{after[i]} - old;
      before_ += old * old;
      difference_ += step * step;
      result_.largest = std::max(result_.largest, std::abs(step));
    }
    return changed;
  }
  void Finish() {
    result_.before_norm = std::sqrt(before_);
    result_.difference_norm = std::sqrt(difference_);
  }

 private:
  ValuesDiff& result_;
  double before_ = 0;
  double difference_ = 0;
};

struct ShardValues {
  std::vector<std::uint32_t> block_elements;
  std::vector<float> values;
  struct Rows {
    std::size_t width = 0;
    std::vector<std::uint64_t> keys;  // increasing
    std::vector<float> values;
  };
  std::vector<Rows> tables;
};

Error OtherShards(const std::string& what) {
  return Error{ErrorId::kCheckpointsDiffer, "the checkpoints have other " + what};
}

// Takes the values of a shard, and no more of it.
class ValuesSink : public ShardSink {
 public:
  explicit ValuesSink(const Manifest& manifest) : manifest_(manifest) {}

  Status Begin(const ShardMeta& meta) override {
    const ShardImage& image = meta.image;
    if (image.rows.size() != manifest_.row_tables.size()) {
      return Error{ErrorId::kCheckpointDamaged,
                   "a shard has other tables of rows than the manifest"};
    }
    shard_.block_elements = image.block_elements;
    for (std::size_t i = 0; i < image.rows.size(); ++i) {
      if (image.rows[i].width != manifest_.row_tables[i].width) {
        return Error{ErrorId::kCheckpointDamaged,
                     "a shard has rows of another width than the manifest"};
      }
      shard_.tables.push_back({image.rows[i].width, {}, {}});
      record_bytes_.push_back(image.rows[i].record_bytes());
    }
    return Ok();
  }
  Status AddBlock(std::size_t index, std::string_view content) override {
    const std::size_t at = shard_.values.size();
    const std::size_t count = shard_.block_elements[index];
    shard_.values.resize(at + count);
    std::memcpy(shard_.values.data() + at, content.data(), count * sizeof(float));
    return Ok();
  }
  Status AddRows(std::uint32_t table, std::span<const std::byte> records) override {
    ShardValues::Rows& rows = shard_.tables[table];
    const std::size_t step = record_bytes_[table];
    for (std::size_t at = 0; at + step <= records.size(); at += step) {
      std::uint64_t key = 0;
      std::memcpy(&key, records.data() + at, sizeof(key));
      rows.keys.push_back(key);
      const std::size_t to = rows.values.size();
      rows.values.resize(to + rows.width);
      std::memcpy(rows.values.data() + to, records.data() + at + kRowHeaderBytes,
                  rows.width * sizeof(float));
    }
    return Ok();
  }
  Status AddSketch(std::uint32_t, std::span<const std::uint8_t>) override { return Ok(); }

  ShardValues Take() { return std::move(shard_); }

 private:
  const Manifest& manifest_;
  ShardValues shard_;
  std::vector<std::size_t> record_bytes_;
};

// One of the two, whose shards are read one by one.
class Side {
 public:
  static Result<Side> Open(const DiffSide& side) {
    const std::string text = PS_TRY(FindManifest(side.directory, side.expected_hash));
    auto manifest = FromJson(text);
    if (!manifest.ok()) return Annotate(manifest.error(), side.directory.string() + ": ");
    return Side(side.directory, std::move(manifest).value());
  }

  const Manifest& manifest() const { return manifest_; }

  Result<ShardValues> Read(std::size_t index) {
    auto read = TryRead(manifest_.shards[index]);
    if (read.ok()) return read;
    return Annotate(read.error(), directory_.string() + ": ");
  }

 private:
  Side(fs::path directory, Manifest manifest)
      : directory_(std::move(directory)), manifest_(std::move(manifest)) {}

  Result<ShardValues> TryRead(const ManifestShard& shard) {
    auto reader = readers_.find(shard.server);
    if (reader == readers_.end()) {
      Reader opened = PS_TRY(Reader::Open(directory_ / shard.server));
      reader = readers_.emplace(shard.server, std::move(opened)).first;
    }
    ValuesSink sink(manifest_);
    PS_TRY(reader->second.ReadShard(shard.shard, shard.digest, sink));
    return sink.Take();
  }

  fs::path directory_;
  Manifest manifest_;
  std::map<std::string, Reader> readers_;
};

Status CheckComparable(const Manifest& before, const Manifest& after) {
  const auto same_table = [](const ManifestTable& a, const ManifestTable& b) {
    return a.name == b.name && a.elements == b.elements;
  };
  const auto same_rows = [](const ManifestRowTable& a, const ManifestRowTable& b) {
    return a.name == b.name && a.width == b.width;
  };
  if (!std::equal(before.tables.begin(), before.tables.end(), after.tables.begin(),
                  after.tables.end(), same_table)) {
    return OtherShards("dense tables");
  }
  if (!std::equal(before.row_tables.begin(), before.row_tables.end(), after.row_tables.begin(),
                  after.row_tables.end(), same_rows)) {
    return OtherShards("tables of rows");
  }
  if (before.shards.size() != after.shards.size()) return OtherShards("numbers of shards");
  return Ok();
}

// The dense tables lie one after the other in the elements of the shards.
class DenseCompare {
 public:
  explicit DenseCompare(std::vector<TableDiff>& tables) : tables_(tables) {
    for (TableDiff& table : tables_) {
      end_ += table.elements;
      ends_.push_back(end_);
      compares_.emplace_back(table.values);
    }
  }

  Status Add(const ShardValues& before, const ShardValues& after) {
    if (before.block_elements != after.block_elements) return OtherShards("blocks");
    std::size_t from = 0;
    for (const std::uint32_t count : before.block_elements) {
      PS_TRY(AddBlock(std::span(before.values).subspan(from, count),
                      std::span(after.values).subspan(from, count)));
      from += count;
    }
    return Ok();
  }
  Status Finish() {
    if (at_ != end_) {
      return Error{ErrorId::kCheckpointDamaged, "the shards have " + std::to_string(at_) +
                                                    " values, their tables " +
                                                    std::to_string(end_)};
    }
    for (ValuesCompare& compare : compares_) compare.Finish();
    return Ok();
  }

 private:
  Status AddBlock(std::span<const float> before, std::span<const float> after) {
    while (!before.empty()) {
      while (table_ < tables_.size() && at_ >= ends_[table_]) ++table_;
      if (table_ == tables_.size()) {
        return Error{ErrorId::kCheckpointDamaged, "the shards have more values than their tables"};
      }
      const auto count =
          static_cast<std::size_t>(std::min<std::uint64_t>(before.size(), ends_[table_] - at_));
      const std::uint64_t changed = compares_[table_].Add(before.first(count), after.first(count));
      tables_[table_].elements_changed += changed;
      tables_[table_].blocks += 1;
      tables_[table_].blocks_changed += changed > 0 ? 1 : 0;
      at_ += count;
      before = before.subspan(count);
      after = after.subspan(count);
    }
    return Ok();
  }

  std::vector<TableDiff>& tables_;
  std::vector<ValuesCompare> compares_;
  std::vector<std::uint64_t> ends_;
  std::uint64_t end_ = 0;
  std::uint64_t at_ = 0;
  std::size_t table_ = 0;
};

void CompareRows(const ShardValues::Rows& before, const ShardValues::Rows& after,
                 RowTableDiff& diff, ValuesCompare& compare) {
  diff.rows_before += before.keys.size();
  diff.rows_after += after.keys.size();
  std::size_t a = 0;
  std::size_t b = 0;
  while (a < before.keys.size() && b < after.keys.size()) {
    if (before.keys[a] < after.keys[b]) {
      ++diff.rows_removed;
      ++a;
    } else if (after.keys[b] < before.keys[a]) {
      ++diff.rows_added;
      ++b;
    } else {
      const auto old = std::span(before.values).subspan(a * before.width, before.width);
      const auto now = std::span(after.values).subspan(b * after.width, after.width);
      diff.rows_changed += compare.Add(old, now) > 0 ? 1 : 0;
      ++a;
      ++b;
    }
  }
  diff.rows_removed += before.keys.size() - a;
  diff.rows_added += after.keys.size() - b;
}

// Leaves of objects by their paths; a list is one leaf.
void Flatten(const nlohmann::json& json, const std::string& path,
             std::map<std::string, std::string>& leaves) {
  if (!json.is_object() || json.empty()) {
    leaves[path] = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    return;
  }
  for (const auto& [key, value] : json.items()) {
    Flatten(value, path.empty() ? key : path + "." + key, leaves);
  }
}

std::vector<SpecDiff> CompareSpecs(const std::string& before, const std::string& after) {
  std::map<std::string, std::string> old;
  std::map<std::string, std::string> now;
  Flatten(nlohmann::json::parse(before, nullptr, false), "", old);
  Flatten(nlohmann::json::parse(after, nullptr, false), "", now);
  std::map<std::string, SpecDiff> found;
  for (const auto& [path, value] : old) found[path].before = value;
  for (const auto& [path, value] : now) found[path].after = value;
  std::vector<SpecDiff> different;
  for (auto& [path, diff] : found) {
    if (diff.before == diff.after) continue;
    diff.path = path;
    different.push_back(std::move(diff));
  }
  return different;
}

}  // namespace

bool DiffReport::different() const {
  return !spec.empty() || std::any_of(tables.begin(), tables.end(), [](const TableDiff& table) {
    return table.elements_changed > 0;
  }) || std::any_of(row_tables.begin(), row_tables.end(), [](const RowTableDiff& table) {
    return table.rows_added + table.rows_removed + table.rows_changed > 0;
  });
}

Result<DiffReport> DiffCheckpoints(const DiffSide& before, const DiffSide& after,
                                   const VerifyProgress& progress) {
  Side first = PS_TRY(Side::Open(before));
  Side second = PS_TRY(Side::Open(after));
  PS_TRY(CheckComparable(first.manifest(), second.manifest()));
  DiffReport report;
  for (const ManifestTable& table : first.manifest().tables) {
    TableDiff diff;
    diff.name = table.name;
    diff.elements = table.elements;
    report.tables.push_back(std::move(diff));
  }
  std::vector<ValuesCompare> rows;
  for (const ManifestRowTable& table : first.manifest().row_tables) {
    RowTableDiff diff;
    diff.name = table.name;
    report.row_tables.push_back(std::move(diff));
  }
  for (RowTableDiff& diff : report.row_tables) rows.emplace_back(diff.values);
  DenseCompare dense(report.tables);
  const std::size_t shards = first.manifest().shards.size();
  for (std::size_t i = 0; i < shards; ++i) {
    const ShardValues old = PS_TRY(first.Read(i));
    const ShardValues now = PS_TRY(second.Read(i));
    PS_TRY(dense.Add(old, now));
    for (std::size_t table = 0; table < rows.size(); ++table) {
      CompareRows(old.tables[table], now.tables[table], report.row_tables[table], rows[table]);
    }
    if (progress) progress(static_cast<std::uint32_t>(i + 1), static_cast<std::uint32_t>(shards));
  }
  PS_TRY(dense.Finish());
  for (ValuesCompare& compare : rows) compare.Finish();
  report.spec = CompareSpecs(first.manifest().spec_json, second.manifest().spec_json);
  report.before = first.manifest();
  report.after = second.manifest();
  return report;
}

}  // namespace ps::checkpoint
