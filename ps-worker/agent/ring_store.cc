#include "ps-worker/agent/ring_store.h"

#include <pwd.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <system_error>
#include <tuple>
#include <utility>

#include "common/error_id.h"
#include "ps-worker/core/retention_ring.h"
#include "ps-worker/task/ring_file.h"

namespace ps::worker {
namespace {

namespace fs = std::filesystem;

std::string UserName() {
  struct passwd entry = {};
  struct passwd* found = nullptr;
  std::string buffer(16384, '\0');
  if (::getpwuid_r(::geteuid(), &entry, buffer.data(), buffer.size(), &found) == 0 &&
      found != nullptr) {
    return found->pw_name;
  }
  return std::to_string(::geteuid());
}

// A file that its task made but had not begun to use: the first page is still zero.
bool Unused(std::span<const std::byte> region) {
  const std::size_t bytes = std::min(region.size(), RetentionRing::kHeaderBytes);
  return std::all_of(region.begin(), region.begin() + static_cast<std::ptrdiff_t>(bytes),
                     [](std::byte b) { return b == std::byte{0}; });
}

template <typename Number>
bool TakeNumber(const char*& at, const char* end, Number& number) {
  const auto parsed = std::from_chars(at, end, number);
  if (parsed.ec != std::errc()) return false;
  at = parsed.ptr;
  return true;
}

}  // namespace

std::string RingFileName(const RingKey& key) {
  return "job-" + std::to_string(key.job.value()) + "-" + std::to_string(key.worker.value()) + "-" +
         std::to_string(key.incarnation.value()) + ".ring";
}

std::optional<RingKey> ParseRingFileName(const std::string& name) {
  if (name.compare(0, 4, "job-") != 0) return std::nullopt;
  const char* at = name.data() + 4;
  const char* end = name.data() + name.size();
  std::uint64_t job = 0;
  std::uint32_t worker = 0;
  std::uint32_t incarnation = 0;
  const auto dash = [&] { return at != end && *at++ == '-'; };
  if (!TakeNumber(at, end, job) || !dash() || !TakeNumber(at, end, worker) || !dash() ||
      !TakeNumber(at, end, incarnation)) {
    return std::nullopt;
  }
  const RingKey key{JobId(job), WorkerId(worker), Incarnation(incarnation)};
  // Leading zeros and other spellings are not ours.
  if (RingFileName(key) != name) return std::nullopt;
  return key;
}

fs::path DefaultRetentionDirectory(const fs::path& state_directory) {
  std::error_code error;
  fs::path whole = fs::weakly_canonical(state_directory, error);
  if (error) whole = fs::absolute(state_directory, error);
  const std::string text = whole.string();
  char hash[17];
  std::snprintf(hash, sizeof(hash), "%016llx",
                static_cast<unsigned long long>(XXH3_64bits(text.data(), text.size())));
  return fs::path("/dev/shm") / ("ds-" + UserName() + "-" + hash);
}

Result<RingStore> RingStore::Open(const fs::path& directory) {
  std::error_code error;
  if (directory.has_parent_path()) fs::create_directories(directory.parent_path(), error);
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
    return Error{ErrorId::kFolderNotMade, directory.string() + ": cannot create the directory: " +
                                              std::generic_category().message(errno)};
  }
  struct stat status = {};
  if (::lstat(directory.c_str(), &status) != 0) {
    return Error{ErrorCode::kIo,
                 directory.string() + ": " + std::generic_category().message(errno)};
  }
  if (!S_ISDIR(status.st_mode) || status.st_uid != ::geteuid()) {
    return Error{ErrorId::kRetentionDirectory,
                 directory.string() +
                     ": not a directory of this user; choose another with "
                     "--retention-dir"};
  }
  if ((status.st_mode & 077) != 0 && ::chmod(directory.c_str(), 0700) != 0) {
    return Error{ErrorId::kRetentionDirectory,
                 directory.string() + ": others may read it and its mode cannot be changed"};
  }
  return RingStore(directory);
}

fs::path RingStore::PathOf(const RingKey& key) const { return directory_ / RingFileName(key); }

Result<std::optional<control::RingInfoT>> RingStore::Describe(const RingKey& key) const {
  Result<std::shared_ptr<RingFile>> file = RingFile::Open(PathOf(key).string());
  if (!file.ok()) {
    if (file.error().code == ErrorCode::kNotFound) return std::optional<control::RingInfoT>();
    return file.error();
  }
  Result<RetentionRing> ring = RetentionRing::Open((*file)->region(), *file);
  if (!ring.ok()) {
    if (Unused((*file)->region())) return std::optional<control::RingInfoT>();
    return Annotate(ring.error(), PathOf(key).string() + ": ");
  }
  const RingIdentity& identity = ring->identity();
  if (RingKey{identity.job, identity.worker, identity.incarnation} != key) {
    return Error{ErrorCode::kInvalid, PathOf(key).string() + ": holds the pushes of another task"};
  }
  control::RingInfoT info;
  info.job = key.job.value();
  info.worker = key.worker.value();
  info.incarnation = key.incarnation.value();
  info.generation = identity.generation;
  info.last_clock = ring->last_clock().value();
  RingEntryView last;
  if (ring->Find(ring->last_clock(), last)) {
    info.lease_id = last.info.lease_id;
    info.lease_done = last.info.lease_done;
  }
  return std::optional<control::RingInfoT>(info);
}

std::vector<control::RingInfoT> RingStore::Scan(const std::set<RingKey>& running) const {
  std::vector<control::RingInfoT> rings;
  std::error_code error;
  for (fs::directory_iterator entry(directory_, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::optional<RingKey> key = ParseRingFileName(entry->path().filename().string());
    if (!key.has_value() || running.count(*key) != 0) continue;
    const Result<std::optional<control::RingInfoT>> info = Describe(*key);
    if (!info.ok()) {
      spdlog::error("{}; its pushes are lost", ErrorLine(info.error()));
    } else if (info->has_value()) {
      rings.push_back(**info);
    }
  }
  if (error)
    spdlog::error("{}: cannot list the retention rings: {}", directory_.string(), error.message());
  std::sort(rings.begin(), rings.end(), [](const auto& a, const auto& b) {
    return std::tie(a.job, a.incarnation) < std::tie(b.job, b.incarnation);
  });
  return rings;
}

void RingStore::Remove(const RingKey& key) const {
  std::error_code error;
  fs::remove(PathOf(key), error);
  if (error) spdlog::warn("{}: cannot remove: {}", PathOf(key).string(), error.message());
}

}  // namespace ps::worker
