#include "checkpoint/remote/fetch.h"

#include <algorithm>
#include <map>
#include <set>

#include "checkpoint/part_directory.h"
#include "checkpoint/reader.h"
#include "checkpoint/verify.h"

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
  Error error{ErrorCode::kNotFound, ""};
  for (const Storage* const source : sources) {
    const Status done = from(*source);
    if (done.ok() || done.error().code == ErrorCode::kClosed) return done;
    if (done.error().code == ErrorCode::kNotFound) continue;
    if (error.code == ErrorCode::kNotFound || error.code == ErrorCode::kInvalid) {
      error.code = done.error().code;
    }
    error.message += (error.message.empty() ? "" : "; ") + done.error().message;
  }
  if (error.code == ErrorCode::kNotFound) {
    error.message =
        what + " is on none of the " + std::to_string(sources.size()) + " servers that were asked";
  }
  return error;
}

}  // namespace

Result<FetchReport> FetchCheckpoint(const std::vector<const Storage*>& sources,
                                    const fs::path& directory, const std::string& hash,
                                    const fs::path& root,
                                    const std::function<bool(std::uint64_t)>& progress) {
  const bool climbs = std::any_of(directory.begin(), directory.end(),
                                  [](const fs::path& one) { return one == ".."; });
  if (directory.empty() || directory.is_absolute() || climbs) {
    return Error{ErrorCode::kDenied,
                 "`" + directory.string() + "` is no path of a checkpoint below a folder of them"};
  }
  std::string text;
  const auto find = [&](const Storage& source) -> Status {
    text = PS_TRY(FindManifest(directory, hash, source));
    return Ok();
  };
  PS_TRY(TryEach(sources, "the manifest of " + directory.string(), find));
  FetchReport report;
  report.manifest = PS_TRY(FromJson(text));
  std::map<std::string, std::set<Round>> parts;  // and the rounds that they build on
  for (const ManifestShard& shard : report.manifest.shards) {
    if (!IsName(shard.server)) {
      return Error{ErrorCode::kInvalid,
                   directory.string() + ": `" + shard.server + "` is no name of a part"};
    }
    parts[shard.server].insert(shard.bases.begin(), shard.bases.end());
  }
  const auto count = [&](std::uint64_t bytes) {
    report.bytes += bytes;
    return !progress || progress(bytes);
  };
  for (const auto& [part, bases] : parts) {
    std::vector<fs::path> wanted;
    for (const Round base : bases) wanted.push_back(BaseDirectory(directory / part, base));
    wanted.push_back(directory / part);
    for (const fs::path& path : wanted) {
      const auto copy = [&](const Storage& source) {
        return CopyPart(source, path, root / path, count);
      };
      PS_TRY(TryEach(sources, path.string(), copy));
      ++report.parts;
    }
  }
  for (const auto& entry : parts) PS_TRY(WriteManifest(root / directory / entry.first, text));
  return report;
}

}  // namespace ps::checkpoint
