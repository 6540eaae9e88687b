#include "checkpoint/remote/fetch.h"

#include <algorithm>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "checkpoint/part_directory.h"
#include "checkpoint/reader.h"
#include "checkpoint/verify.h"
#include "common/error_id.h"

namespace ps::checkpoint {
namespace {

namespace fs = std::filesystem;

// A name of a part, which leads nowhere else.
bool IsName(const std::string& text) {
  const fs::path path(text);
  return !text.empty() && path.filename() == path && path != "." && path != "..";
}

// Tries `from(source)` until it succeeds. What may be there after all weighs more than what is not.
template <typename From>
Status TryEach(const std::vector<const Storage*>& sources, const std::string& what, From from) {
  Error error{ErrorId::kCheckpointMissing, ""};
  for (const Storage* const source : sources) {
    const Status done = from(*source);
    if (done.ok() || done.error().code == ErrorCode::kClosed) return done;
    if (done.error().code == ErrorCode::kNotFound) continue;
    if (error.code == ErrorCode::kNotFound || error.code == ErrorCode::kInvalid) {
      error.code = done.error().code;
      error.id = done.error().id;
    }
    error.message += (error.message.empty() ? "" : "; ") + done.error().message;
  }
  if (error.code == ErrorCode::kNotFound) {
    error.message =
        what + " is on none of the " + std::to_string(sources.size()) + " servers that were asked";
  }
  return error;
}

struct WantedPart {
  fs::path from;  // below the sources
  fs::path to;
  std::uint64_t bytes = 0;
  bool present = false;
  bool damaged = false;  // what is present
};

// All parts of the checkpoint, what it builds on first.
Result<std::vector<WantedPart>> WantedParts(const Manifest& manifest, const FetchOrder& order) {
  std::map<std::string, std::set<Round>> parts;  // and the rounds that they build on
  for (const ManifestShard& shard : manifest.shards) {
    if (!IsName(shard.server)) {
      return Error{ErrorId::kCheckpointDamaged,
                   order.directory.string() + ": `" + shard.server + "` is no name of a part"};
    }
    parts[shard.server].insert(shard.bases.begin(), shard.bases.end());
  }
  const fs::path to = NormalPart(order.to);
  std::vector<WantedPart> wanted;
  for (const auto& [part, bases] : parts) {
    for (const Round base : bases) {
      wanted.push_back({BaseDirectory(order.directory / part, base), BaseDirectory(to / part, base),
                        0, false, false});
    }
    wanted.push_back({order.directory / part, to / part, 0, false, false});
  }
  return wanted;
}

class Fetch {
 public:
  Fetch(const std::vector<const Storage*>& sources, const FetchOrder& order,
        const FetchProgress& progress)
      : sources_(sources), order_(order), progress_(progress) {}

  Result<FetchReport> Run() {
    std::string text;
    const auto find = [&](const Storage& source) -> Status {
      text = PS_TRY(FindManifest(order_.directory, order_.hash, source));
      return Ok();
    };
    PS_TRY(TryEach(sources_, "the manifest of " + order_.directory.string(), find));
    report_.manifest = PS_TRY(FromJson(text));
    report_.manifest_hash = Hash(text);
    std::vector<WantedPart> wanted = PS_TRY(WantedParts(report_.manifest, order_));
    for (WantedPart& part : wanted) PS_TRY(Look(part));
    PS_TRY(CheckRoom(wanted));
    for (const WantedPart& part : wanted) PS_TRY(Get(part));
    std::set<std::string> own;
    for (const ManifestShard& shard : report_.manifest.shards) own.insert(shard.server);
    for (const std::string& part : own) PS_TRY(WriteManifest(order_.to / part, text));
    return report_;
  }

 private:
  // Is it here, and how much is there to copy if it is not?
  Status Look(WantedPart& part) {
    ++report_.parts;
    std::string seal;
    std::vector<SealedFile> files;
    const auto read = [&](const Storage& source) -> Status {
      files = PS_TRY(ReadSeal(source, part.from, seal));
      return Ok();
    };
    PS_TRY(TryEach(sources_, part.from.string(), read));
    std::error_code error;
    part.present = fs::exists(part.to, error);
    if (part.present) {
      ++report_.present;
      if (!order_.check_present) return Ok();
      const Result<std::string> own = ReadWholeFile(part.to / kSealFile, kMaxSealBytes);
      part.damaged = !own.ok() || *own != seal;
      if (!part.damaged) {
        const Status checked =
            CheckPart(part.to, [this](std::uint64_t) { return !progress_ || progress_(0, 0); });
        if (!checked.ok() && checked.error().code != ErrorCode::kInvalid) return checked;
        part.damaged = !checked.ok();
      }
      if (!part.damaged) return Ok();
      ++report_.repaired;
    }
    for (const SealedFile& file : files) part.bytes += file.bytes;
    return Ok();
  }

  // Whoever writes a part wants twice its size free (BeginPart), so that much is left at the end.
  Status CheckRoom(const std::vector<WantedPart>& wanted) {
    std::uint64_t largest = 0;
    for (const WantedPart& part : wanted) {
      total_ += part.bytes;
      largest = std::max(largest, part.bytes);
    }
    return total_ == 0 ? Ok() : CheckFreeBytes(order_.to, total_ + largest);
  }

  Status Get(const WantedPart& part) {
    const auto count = [this](std::uint64_t bytes) {
      report_.bytes += bytes;
      return !progress_ || progress_(bytes, total_);
    };
    // An earlier checkpoint in whose part the damage is must still be known as one.
    std::string manifest;
    if (part.damaged) {
      const Result<std::string> own = ReadManifest(part.to);
      if (own.ok() && FromJson(*own).ok()) manifest = *own;
    }
    const auto copy = [&](const Storage& source) {
      return part.damaged ? ReplacePart(source, part.from, part.to, manifest, count)
                          : CopyPart(source, part.from, part.to, count);
    };
    return TryEach(sources_, part.from.string(), copy);
  }

  const std::vector<const Storage*>& sources_;
  const FetchOrder& order_;
  const FetchProgress& progress_;
  FetchReport report_;
  std::uint64_t total_ = 0;
};

}  // namespace

Result<FetchReport> FetchCheckpoint(const std::vector<const Storage*>& sources,
                                    const FetchOrder& order, const FetchProgress& progress) {
  const fs::path& directory = order.directory;
  const bool climbs = std::any_of(directory.begin(), directory.end(),
                                  [](const fs::path& one) { return one == ".."; });
  if (directory.empty() || directory.is_absolute() || climbs) {
    return Error{ErrorCode::kDenied,
                 "`" + directory.string() + "` is no path of a checkpoint below a folder of them"};
  }
  return Fetch(sources, order, progress).Run();
}

}  // namespace ps::checkpoint
