#include "checkpoint/verify.h"

#include <algorithm>
#include <map>
#include <system_error>
#include <utility>

#include "checkpoint/image.h"
#include "checkpoint/reader.h"
#include "common/codec/row_codec.h"

namespace ps::checkpoint {
namespace {

namespace fs = std::filesystem;

// The round directory first, then the parts in it by name.
Result<std::vector<fs::path>> PlacesOfManifest(const fs::path& round_directory) {
  std::error_code error;
  if (!fs::is_directory(round_directory, error)) {
    return Error{ErrorCode::kNotFound, round_directory.string() + ": no such checkpoint"};
  }
  std::vector<fs::path> parts;
  for (fs::directory_iterator entry(round_directory, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->is_directory(error) && entry->path().extension() != ".partial") {
      parts.push_back(entry->path());
    }
  }
  if (error) {
    return Error{ErrorCode::kIo, round_directory.string() + ": cannot list: " + error.message()};
  }
  std::sort(parts.begin(), parts.end());
  parts.insert(parts.begin(), round_directory);
  return parts;
}

struct Copies {
  std::map<std::string, std::vector<fs::path>> valid;  // text -> where
  std::vector<std::string> findings;
};

Result<Copies> CollectCopies(const fs::path& round_directory) {
  Copies copies;
  for (const fs::path& place : PS_TRY(PlacesOfManifest(round_directory))) {
    Result<std::string> text = ReadManifest(place);
    if (!text.ok()) {
      if (text.error().code != ErrorCode::kNotFound)
        copies.findings.push_back(text.error().message);
      continue;
    }
    const Result<Manifest> manifest = FromJson(*text);
    if (manifest.ok()) {
      copies.valid[*text].push_back(place);
    } else {
      copies.findings.push_back((place / kManifestFile).string() + ": " + manifest.error().message);
    }
  }
  return copies;
}

Error NoManifest(const fs::path& round_directory, const Copies& copies) {
  std::string message = round_directory.string() + ": no valid manifest, so nothing in it counts";
  for (const std::string& finding : copies.findings) message += "\n" + finding;
  return Error{ErrorCode::kInvalid, message};
}

class Verification {
 public:
  Verification(const fs::path& round_directory, VerifyReport& report,
               const VerifyProgress& progress)
      : round_directory_(round_directory), report_(report), progress_(progress) {}

  void Run() {
    std::map<std::string, std::vector<const ManifestShard*>> by_server;
    for (const ManifestShard& shard : report_.manifest.shards) {
      by_server[shard.server].push_back(&shard);
    }
    for (const auto& entry : by_server) VerifyPart(entry.first, entry.second);
  }

 private:
  void Find(const std::string& finding) { report_.findings.push_back(finding); }

  void Advance() {
    ++done_;
    if (progress_) progress_(done_, static_cast<std::uint32_t>(report_.manifest.shards.size()));
  }

  void VerifyPart(const std::string& server, const std::vector<const ManifestShard*>& shards) {
    const fs::path directory = round_directory_ / server;
    const Result<std::string> copy = ReadManifest(directory);
    if (!copy.ok() && copy.error().code == ErrorCode::kNotFound) {
      Find((directory / kManifestFile).string() + ": the file is missing");
    }
    Result<Reader> reader = Reader::Open(directory);
    if (!reader.ok()) {
      Find(reader.error().message);
      for (std::size_t i = 0; i < shards.size(); ++i) Advance();
      return;
    }
    const Status files =
        reader->VerifyFiles([this](std::uint64_t bytes) { report_.bytes += bytes; });
    if (!files.ok()) Find(files.error().message);
    for (const ManifestShard* shard : shards) {
      VerifyShard(*reader, *shard);
      Advance();
    }
  }

  void VerifyShard(const Reader& reader, const ManifestShard& expected) {
    const Result<ShardImage> image = reader.ReadShard(expected.shard, expected.digest);
    if (!image.ok()) return Find(image.error().message);
    const Manifest& manifest = report_.manifest;
    const std::string name = (round_directory_ / expected.server).string() + ": shard " +
                             std::to_string(expected.shard.value()) + ": ";
    if (image->job != manifest.job || image->round != manifest.round) {
      return Find(name + "it belongs to job " + std::to_string(image->job.value()) + ", round " +
                  std::to_string(image->round.value()));
    }
    if (image->epoch != expected.epoch || image->version != expected.version) {
      return Find(name + "epoch or version is not that of the manifest");
    }
    if (ValuesDigest(image->values) != expected.values_digest) {
      return Find(name + "the digest of its values is not that of the manifest");
    }
    const std::string rows = RowFinding(*image, expected);
    if (!rows.empty()) return Find(name + rows);
    ++report_.shards;
  }

  // What is wrong with the rows of a shard; empty if nothing is.
  std::string RowFinding(const ShardImage& image, const ManifestShard& expected) const {
    const Manifest& manifest = report_.manifest;
    if (RowCount(image) != expected.rows) {
      return "it has " + std::to_string(RowCount(image)) + " rows, the manifest says " +
             std::to_string(expected.rows);
    }
    if (image.rows.size() != manifest.row_tables.size()) {
      return "its tables of rows are not those of the manifest";
    }
    const auto shards = static_cast<std::uint32_t>(manifest.shards.size());
    for (const RowTableImage& table : image.rows) {
      if (table.width != manifest.row_tables[table.table].width) {
        return "its tables of rows are not those of the manifest";
      }
      for (std::size_t row = 0; row < table.rows(); ++row) {
        if (codec::ShardOfRow(table.key(row), shards) != image.shard) {
          return "row " + std::to_string(table.key(row)) + " belongs on another shard";
        }
      }
    }
    return "";
  }

  const fs::path& round_directory_;
  VerifyReport& report_;
  const VerifyProgress& progress_;
  std::uint32_t done_ = 0;
};

}  // namespace

Result<VerifyReport> VerifyCheckpoint(const fs::path& round_directory,
                                      const VerifyProgress& progress) {
  Copies copies = PS_TRY(CollectCopies(round_directory));
  if (copies.valid.empty()) return NoManifest(round_directory, copies);
  const auto chosen = std::max_element(
      copies.valid.begin(), copies.valid.end(),
      [](const auto& a, const auto& b) { return a.second.size() < b.second.size(); });
  VerifyReport report;
  report.findings = std::move(copies.findings);
  for (auto other = copies.valid.begin(); other != copies.valid.end(); ++other) {
    if (other == chosen) continue;
    for (const fs::path& place : other->second) {
      report.findings.push_back((place / kManifestFile).string() +
                                ": differs from the other copies of the manifest");
    }
  }
  report.manifest = PS_TRY(FromJson(chosen->first));
  report.manifest_hash = Hash(chosen->first);
  Verification(round_directory, report, progress).Run();
  return report;
}

Result<std::string> FindManifest(const fs::path& round_directory,
                                 const std::string& expected_hash) {
  Copies copies = PS_TRY(CollectCopies(round_directory));
  if (copies.valid.empty()) return NoManifest(round_directory, copies);
  for (const auto& copy : copies.valid) {
    if (expected_hash.empty() || Hash(copy.first) == expected_hash) return copy.first;
  }
  return Error{ErrorCode::kInvalid,
               round_directory.string() + ": no manifest with the committed hash " + expected_hash};
}

}  // namespace ps::checkpoint
