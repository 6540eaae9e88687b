#include "ps-server/shell/scrubber.h"

#include <fcntl.h>
#include <pthread.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>
#include <vector>

#include "checkpoint/manifest.h"
#include "checkpoint/part_directory.h"
#include "checkpoint/round_path.h"
#include "common/net/loop.h"
#include "common/net/unique_fd.h"

namespace ps::server {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLockFile = "SCRUB";
constexpr std::chrono::milliseconds kLockRetry{5'000};
constexpr std::chrono::milliseconds kYieldLook{100};
constexpr int kRestFactor = 10;

// What is read next comes from the disk, and does not push out what others need.
void DropFromCache(const fs::path& part) {
  std::error_code error;
  for (fs::directory_iterator at(part, error), end; !error && at != end; at.increment(error)) {
    const net::UniqueFd file(::open(at->path().c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (file.valid()) ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
  }
}

// The manifest has no line in the seal, and a checksum of its own.
Status CheckManifest(const fs::path& part) {
  const Result<std::string> text = checkpoint::ReadManifest(part);
  if (!text.ok()) return text.error().code == ErrorCode::kNotFound ? Ok() : Status(text.error());
  const auto manifest = checkpoint::FromJson(*text);
  if (manifest.ok()) return Ok();
  return Annotate(manifest.error(), (part / checkpoint::kManifestFile).string() + ": ");
}

}  // namespace

Scrubber::Scrubber(ScrubOptions options, std::function<void(const DamagedPart&)> on_damage)
    : options_(std::move(options)), on_damage_(std::move(on_damage)), thread_([this] { Run(); }) {}

Scrubber::~Scrubber() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

ScrubCounters Scrubber::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

bool Scrubber::Wait(std::chrono::milliseconds duration) {
  std::unique_lock lock(mutex_);
  return !changed_.wait_for(lock, duration, [this] { return stopping_; });
}

bool Scrubber::Pace(std::uint64_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    counters_.bytes += bytes;
  }
  debt_ms_ += static_cast<double>(bytes) * 1000.0 / static_cast<double>(options_.bytes_per_second);
  const auto owed = static_cast<std::int64_t>(debt_ms_);
  debt_ms_ -= static_cast<double>(owed);
  if (!Wait(std::chrono::milliseconds(owed))) return false;
  while (yields_ > 0) {
    if (!Wait(kYieldLook)) return false;
  }
  return true;
}

void Scrubber::Run() {
  ::pthread_setname_np(::pthread_self(), "scrub");
  const fs::path path = options_.root / kLockFile;
  const net::UniqueFd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  if (!lock.valid()) {
    return spdlog::error("checkpoints are not scrubbed: {}: {}", path.string(),
                         std::strerror(errno));
  }
  // Another server scrubs the same folder; if it ends its turn is ours.
  while (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) {
      return spdlog::error("checkpoints are not scrubbed: {}: {}", path.string(),
                           std::strerror(errno));
    }
    if (!Wait(kLockRetry)) return;
  }
  // What has just been written is checked a little later than at once.
  if (!Wait(options_.rest_min)) return;
  for (;;) {
    const std::int64_t begun_ms = net::MonotonicMs();
    if (!Pass()) return;
    const std::chrono::milliseconds took(net::MonotonicMs() - begun_ms);
    {
      const std::lock_guard guard(mutex_);
      ++counters_.passes;
      counters_.last_pass_end_ms = static_cast<std::uint64_t>(net::WallClockMs());
      counters_.last_pass_ms = static_cast<std::uint64_t>(took.count());
    }
    if (!Wait(std::clamp(took * kRestFactor, options_.rest_min, options_.rest_max))) return;
  }
}

bool Scrubber::Pass() {
  if (!Pace(0)) return false;
  for (const fs::path& job_path : checkpoint::DirectoriesIn(options_.root)) {
    const auto job = checkpoint::JobOfFolder(job_path.filename().string());
    if (!job) continue;
    for (const fs::path& round_path : checkpoint::DirectoriesIn(job_path)) {
      const auto round = checkpoint::RoundOfFolder(round_path.filename().string());
      if (!round) continue;
      for (const fs::path& part : checkpoint::DirectoriesIn(round_path)) {
        if (part.extension() == ".partial") continue;
        if (!CheckOne({*job, *round, part.filename().string(), ""}, part)) return false;
      }
    }
  }
  return true;
}

bool Scrubber::CheckOne(const DamagedPart& part, const fs::path& directory) {
  DropFromCache(directory);
  Status checked =
      checkpoint::CheckPart(directory, [this](std::uint64_t piece) { return Pace(piece); });
  if (!checked.ok() && checked.error().code == ErrorCode::kClosed) return false;
  if (checked.ok()) checked = CheckManifest(directory);
  DropFromCache(directory);
  {
    const std::lock_guard lock(mutex_);
    ++counters_.parts;
  }
  if (checked.ok()) return true;
  // It may have been deleted while it was read, its files one after the other.
  std::error_code error;
  if (!fs::exists(directory, error) || !Wait(std::chrono::milliseconds(200)) ||
      !fs::exists(directory, error)) {
    return Pace(0);
  }
  {
    const std::lock_guard lock(mutex_);
    ++counters_.damaged;
  }
  DamagedPart found = part;
  found.message = checked.error().message;
  on_damage_(found);
  return Pace(0);
}

}  // namespace ps::server
