#include "checkpoint/export.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <utility>

#include "checkpoint/content.h"
#include "checkpoint/image.h"
#include "checkpoint/reader.h"
#include "common/error_id.h"

namespace ps::checkpoint {
namespace {

namespace fs = std::filesystem;

// A file that is written at any place and closed with its errors.
class OutputFile {
 public:
  static Result<OutputFile> Create(const fs::path& path) {
    OutputFile file(path);
    file.fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (file.fd_ < 0) return IoError(path, "cannot create", errno);
    return file;
  }
  OutputFile(OutputFile&& other) noexcept
      : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile() {
    if (fd_ >= 0) ::close(fd_);
  }

  Status Write(const void* data, std::size_t bytes, std::uint64_t at) {
    const auto* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t written = ::pwrite(fd_, from, bytes, static_cast<off_t>(at));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) return IoError(path_, "cannot write", written < 0 ? errno : ENOSPC);
      from += written;
      at += static_cast<std::uint64_t>(written);
      bytes -= static_cast<std::size_t>(written);
    }
    return Ok();
  }
  Status Finish() {
    if (::fsync(fd_) != 0) return IoError(path_, "cannot sync", errno);
    if (::close(std::exchange(fd_, -1)) != 0) return IoError(path_, "cannot close", errno);
    return Ok();
  }

 private:
  explicit OutputFile(fs::path path) : path_(std::move(path)) {}

  fs::path path_;
  int fd_ = -1;
};

// A tensor in the job's space of elements, and in the file.
struct Placed {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint64_t file_offset = 0;
  bool integers = false;
};

class DenseExport {
 public:
  static Result<DenseExport> Create(const Manifest& manifest, const fs::path& path) {
    std::vector<Placed> tensors;
    nlohmann::json header = nlohmann::json::object();
    header["__metadata__"] = {{"format", "pt"},
                              {"job", manifest.job_name},
                              {"round", std::to_string(manifest.round.value())},
                              {"samples", std::to_string(manifest.samples)}};
    std::uint64_t elements = 0;
    std::uint64_t bytes = 0;
    for (const ManifestTable& table : manifest.tables) {
      const bool integers = table.rule == TableRule::Maximum;
      for (const ManifestTensor& tensor : table.tensors) {
        if (header.contains(tensor.name)) {
          return Error{ErrorCode::kInvalid, "two tensors have the name `" + tensor.name + "`"};
        }
        const std::uint64_t size = tensor.elements * (integers ? 8 : 4);
        header[tensor.name] = {{"dtype", integers ? "I64" : "F32"},
                               {"shape", tensor.shape},
                               {"data_offsets", {bytes, bytes + size}}};
        const std::uint64_t begin = elements + tensor.offset;
        tensors.push_back({begin, begin + tensor.elements, bytes, integers});
        bytes += size;
      }
      elements += table.elements;
    }
    std::string text =
        header.dump(-1, ' ', /*ensure_ascii=*/false, nlohmann::json::error_handler_t::replace);
    text.resize((text.size() + 7) / 8 * 8, ' ');
    for (Placed& tensor : tensors) tensor.file_offset += sizeof(std::uint64_t) + text.size();
    OutputFile file = PS_TRY(OutputFile::Create(path));
    const std::uint64_t length = text.size();
    PS_TRY(file.Write(&length, sizeof(length), 0));
    PS_TRY(file.Write(text.data(), text.size(), sizeof(length)));
    return DenseExport(std::move(file), std::move(tensors), elements);
  }

  // The next values of the job's space.
  Status Add(std::span<const float> values) {
    const std::uint64_t first = at_;
    at_ += values.size();
    for (const Placed& tensor : tensors_) {
      const std::uint64_t begin = std::max(first, tensor.begin);
      const std::uint64_t end = std::min(at_, tensor.end);
      if (begin >= end) continue;
      const auto part = values.subspan(begin - first, end - begin);
      const std::uint64_t into = begin - tensor.begin;
      if (!tensor.integers) {
        PS_TRY(file_.Write(part.data(), part.size_bytes(), tensor.file_offset + 4 * into));
        continue;
      }
      std::vector<std::int64_t> whole;
      for (const float value : part) {
        if (!(std::abs(value) < 0x1p62f)) {
          return Error{ErrorId::kCheckpointDamaged, "a counter is no whole number"};
        }
        whole.push_back(static_cast<std::int64_t>(value));
      }
      PS_TRY(file_.Write(whole.data(), 8 * whole.size(), tensor.file_offset + 8 * into));
    }
    return Ok();
  }
  Status Finish() {
    if (at_ != elements_) {
      return Error{ErrorId::kCheckpointDamaged, "its shards have " + std::to_string(at_) +
                                                    " values, its tables " +
                                                    std::to_string(elements_)};
    }
    return file_.Finish();
  }

 private:
  DenseExport(OutputFile file, std::vector<Placed> tensors, std::uint64_t elements)
      : file_(std::move(file)), tensors_(std::move(tensors)), elements_(elements) {}

  OutputFile file_;
  std::vector<Placed> tensors_;
  const std::uint64_t elements_;
  std::uint64_t at_ = 0;
};

// An array whose first dimension is known at the end.
class NpyFile {
 public:
  static Result<NpyFile> Create(const fs::path& path, std::string type, std::string inner) {
    return NpyFile(PS_TRY(OutputFile::Create(path)), std::move(type), std::move(inner));
  }

  Status Append(const void* data, std::size_t bytes, std::uint64_t items) {
    PS_TRY(file_.Write(data, bytes, at_));
    at_ += bytes;
    items_ += items;
    return Ok();
  }
  Status Finish() {
    std::string header("\x93NUMPY\x01\x00", 8);
    const std::uint16_t length = kHeaderBytes - 10;
    header += static_cast<char>(length & 0xff);
    header += static_cast<char>(length >> 8);
    header += "{'descr': '" + type_ + "', 'fortran_order': False, 'shape': (" +
              std::to_string(items_) + "," + inner_ + "), }";
    header.resize(kHeaderBytes - 1, ' ');
    header += '\n';
    PS_TRY(file_.Write(header.data(), header.size(), 0));
    return file_.Finish();
  }

 private:
  static constexpr std::size_t kHeaderBytes = 128;

  NpyFile(OutputFile file, std::string type, std::string inner)
      : file_(std::move(file)), type_(std::move(type)), inner_(std::move(inner)) {}

  OutputFile file_;
  const std::string type_;
  const std::string inner_;
  std::uint64_t at_ = kHeaderBytes;
  std::uint64_t items_ = 0;
};

class RowsExport {
 public:
  static Result<RowsExport> Create(const ManifestRowTable& table, const fs::path& directory) {
    NpyFile keys = PS_TRY(NpyFile::Create(directory / (table.name + ".keys.npy"), "<u8", ""));
    NpyFile values = PS_TRY(NpyFile::Create(directory / (table.name + ".values.npy"), "<f4",
                                            " " + std::to_string(table.width)));
    return RowsExport(std::move(keys), std::move(values), table.width);
  }

  std::uint32_t width() const { return width_; }

  // Of `record_bytes` each.
  Status Add(std::span<const std::byte> records, std::size_t record_bytes) {
    const std::size_t rows = records.size() / record_bytes;
    std::vector<std::uint64_t> keys(rows);
    std::vector<float> values(rows * width_);
    for (std::size_t row = 0; row < rows; ++row) {
      const std::byte* const record = records.data() + row * record_bytes;
      std::memcpy(&keys[row], record, sizeof(keys[row]));
      std::memcpy(values.data() + row * width_, record + kRowHeaderBytes, width_ * sizeof(float));
    }
    PS_TRY(keys_.Append(keys.data(), keys.size() * sizeof(keys[0]), keys.size()));
    return values_.Append(values.data(), values.size() * sizeof(float), keys.size());
  }
  Status Finish() {
    PS_TRY(keys_.Finish());
    return values_.Finish();
  }

 private:
  RowsExport(NpyFile keys, NpyFile values, std::uint32_t width)
      : keys_(std::move(keys)), values_(std::move(values)), width_(width) {}

  NpyFile keys_;
  NpyFile values_;
  const std::uint32_t width_;
};

// Writes one shard after the other, as they are read.
class ExportSink : public ShardSink {
 public:
  ExportSink(DenseExport& dense, std::vector<RowsExport>& tables)
      : dense_(dense), tables_(tables) {}

  Status Begin(const ShardMeta& meta) override {
    const ShardImage& image = meta.image;
    if (image.rows.size() != tables_.size()) {
      return Error{ErrorId::kCheckpointDamaged, std::to_string(image.rows.size()) +
                                                    " tables of rows, the manifest has " +
                                                    std::to_string(tables_.size())};
    }
    elements_ = image.block_elements;
    record_bytes_.clear();
    for (std::size_t i = 0; i < tables_.size(); ++i) {
      if (image.rows[i].width != tables_[i].width()) {
        return Error{ErrorId::kCheckpointDamaged, "rows of " + std::to_string(image.rows[i].width) +
                                                      " values, the manifest says " +
                                                      std::to_string(tables_[i].width())};
      }
      record_bytes_.push_back(image.rows[i].record_bytes());
    }
    return Ok();
  }
  Status AddBlock(std::size_t index, std::string_view content) override {
    std::vector<float> values(elements_[index]);
    std::memcpy(values.data(), content.data(), values.size() * sizeof(float));
    return dense_.Add(values);
  }
  Status AddRows(std::uint32_t table, std::span<const std::byte> records) override {
    return tables_[table].Add(records, record_bytes_[table]);
  }
  Status AddSketch(std::uint32_t, std::span<const std::uint8_t>) override { return Ok(); }

 private:
  DenseExport& dense_;
  std::vector<RowsExport>& tables_;
  std::vector<std::uint32_t> elements_;
  std::vector<std::size_t> record_bytes_;
};

// The names of tables become names of files.
Status CheckNames(const Manifest& manifest) {
  std::set<std::string> seen;
  for (const ManifestRowTable& table : manifest.row_tables) {
    const bool plain = std::all_of(table.name.begin(), table.name.end(), [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
             c == '_' || c == '-' || c == '.';
    });
    if (!plain || table.name.empty() || table.name.size() > 63 || table.name[0] == '.' ||
        !seen.insert(table.name).second) {
      return Error{ErrorId::kCheckpointDamaged,
                   "the table of rows `" + table.name + "` has no name for a file"};
    }
  }
  return Ok();
}

Status WriteAll(const fs::path& round_directory, const Manifest& manifest,
                const fs::path& directory, const VerifyProgress& progress) {
  DenseExport dense = PS_TRY(DenseExport::Create(manifest, directory / "model.safetensors"));
  std::vector<RowsExport> tables;
  for (const ManifestRowTable& table : manifest.row_tables) {
    tables.push_back(PS_TRY(RowsExport::Create(table, directory)));
  }
  std::map<std::string, Reader> readers;
  std::uint32_t done = 0;
  for (const ManifestShard& shard : manifest.shards) {
    auto reader = readers.find(shard.server);
    if (reader == readers.end()) {
      Reader opened = PS_TRY(Reader::Open(round_directory / shard.server));
      reader = readers.emplace(shard.server, std::move(opened)).first;
    }
    ExportSink sink(dense, tables);
    PS_TRY(reader->second.ReadShard(shard.shard, shard.digest, sink));
    ++done;
    if (progress) progress(done, static_cast<std::uint32_t>(manifest.shards.size()));
  }
  PS_TRY(dense.Finish());
  for (RowsExport& table : tables) PS_TRY(table.Finish());
  return Ok();
}

}  // namespace

Result<ExportReport> ExportCheckpoint(const fs::path& round_directory,
                                      const std::string& expected_hash, const fs::path& directory,
                                      const VerifyProgress& progress) {
  std::error_code error;
  if (fs::symlink_status(directory, error).type() != fs::file_type::not_found) {
    return Error{ErrorId::kExportTarget,
                 directory.string() + " is there already; name a folder that is not"};
  }
  const std::string text = PS_TRY(FindManifest(round_directory, expected_hash));
  const auto in_place = [&round_directory](const Error& problem) {
    return Annotate(problem, round_directory.string() + ": ");
  };
  auto manifest = FromJson(text);
  if (!manifest.ok()) return in_place(manifest.error());
  if (const Status named = CheckNames(*manifest); !named.ok()) return in_place(named.error());
  // Of an export that was killed.
  const fs::path partial = directory.string() + ".partial";
  fs::remove_all(partial, error);
  PS_TRY(CreateDirectories(partial));
  const auto write = [&]() -> Result<ExportReport> {
    if (const Status done = WriteAll(round_directory, *manifest, partial, progress); !done.ok()) {
      return done.error().code == ErrorCode::kInvalid ? in_place(done.error()) : done.error();
    }
    PS_TRY(WriteFileDurably(partial / "manifest.json", text));
    ExportReport report{*manifest, PS_TRY(SealFiles(partial))};
    PS_TRY(SyncDirectory(partial));
    fs::rename(partial, directory, error);
    if (error) return IoError(directory, "cannot rename " + partial.string(), error.value());
    const fs::path parent = fs::absolute(directory, error).parent_path();
    PS_TRY(SyncDirectory(parent));
    return report;
  };
  auto report = write();
  if (!report.ok()) fs::remove_all(partial, error);
  return report;
}

}  // namespace ps::checkpoint
