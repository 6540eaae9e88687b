#include "tests/support/faulty_disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <map>
#include <mutex>
#include <new>
#include <random>
#include <string>
#include <vector>

namespace ps::testing {
namespace {

// Calls of the library itself, and of hooks, pass.
thread_local int inside = 0;

struct Inside {
  Inside() { ++inside; }
  ~Inside() { --inside; }
};

using FileId = std::uint64_t;  // of a file or directory as long as it lives; inodes are used again

struct DirectoryState {
  std::map<std::string, FileId> names;
};

struct Disk {
  std::recursive_mutex mutex;
  std::string root;
  std::uint64_t calls[2] = {};
  std::uint64_t fail_at[2] = {};
  DiskFault fault[2] = {};
  std::map<std::uint64_t, DiskFault> plan;  // of the environment
  const char* mood = nullptr;               // a file, of the environment
  void (*hook)(std::uint64_t, void*) = nullptr;
  void* context = nullptr;
  // What is on the disk, unless nobody will ask.
  bool models = false;
  FileId next_id = 1;
  std::map<ino_t, FileId> ids;
  std::map<FileId, std::string> contents;
  std::map<FileId, DirectoryState> directories;
};

std::atomic<bool> watching{false};

Disk& TheDisk() {
  // Never destroyed: others write until the very end.
  alignas(Disk) static std::byte memory[sizeof(Disk)];
  static Disk* const disk = ::new (memory) Disk;
  return *disk;
}

// Below the root, or the root itself.
bool Concerns(const Disk& disk, const std::string& path) {
  return path.compare(0, disk.root.size(), disk.root) == 0 &&
         (path.size() == disk.root.size() || path[disk.root.size()] == '/');
}

std::string PathOf(int fd) {
  char link[64];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  char path[PATH_MAX];
  const long size = syscall(SYS_readlink, link, path, sizeof(path));
  return size > 0 ? std::string(path, static_cast<std::size_t>(size)) : std::string();
}

std::string PathOf(int directory, const char* path) {
  if (path[0] == '/') return path;
  std::string base;
  if (directory == AT_FDCWD) {
    char here[PATH_MAX];
    if (syscall(SYS_getcwd, here, sizeof(here)) > 0) base = here;
  } else {
    base = PathOf(directory);
  }
  return base + "/" + path;
}

// What is to happen with a call: 0 that it passes, an error, or kShortCall.
constexpr int kShortCall = -1;

// What the mood of the disk makes of a writing call.
int Endure(const Disk& disk) {
  char mood[32] = {};
  const long fd = syscall(SYS_openat, AT_FDCWD, disk.mood, O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) return 0;
  const long size = syscall(SYS_read, fd, mood, sizeof(mood) - 1);
  syscall(SYS_close, fd);
  if (size <= 0) return 0;
  if (strncmp(mood, "full", 4) == 0) return ENOSPC;
  if (strncmp(mood, "slow ", 5) == 0) usleep(static_cast<unsigned>(atoi(mood + 5)) * 1000);
  return 0;
}

int Before(DiskCall kind, const std::string& path) {
  Disk& disk = TheDisk();
  if (disk.mood != nullptr && kind == DiskCall::kWriting && Concerns(disk, path)) {
    const int fault = Endure(disk);
    if (fault != 0) return fault;
  }
  const std::lock_guard<std::recursive_mutex> lock(disk.mutex);
  if (!watching.load() || !Concerns(disk, path)) return 0;
  const int k = static_cast<int>(kind);
  const std::uint64_t n = ++disk.calls[k];
  const Inside guard;
  if (kind == DiskCall::kWriting && disk.hook != nullptr) disk.hook(n, disk.context);
  DiskFault fault = n == disk.fail_at[k] ? disk.fault[k] : DiskFault::kNone;
  if (kind == DiskCall::kWriting) {
    const auto planned = disk.plan.find(n);
    if (planned != disk.plan.end()) fault = planned->second;
  }
  switch (fault) {
    case DiskFault::kIoError: return EIO;
    case DiskFault::kNoSpace: return ENOSPC;
    case DiskFault::kShort: return kShortCall;
    case DiskFault::kNone: break;
  }
  return 0;
}

bool Watched() { return inside == 0 && watching.load(); }

FileId IdOf(Disk& disk, ino_t inode) {
  const auto [at, fresh] = disk.ids.emplace(inode, disk.next_id);
  if (fresh) ++disk.next_id;
  return at->second;
}

std::string ReadAll(const std::string& path) {
  std::string content;
  const long fd = syscall(SYS_openat, AT_FDCWD, path.c_str(), O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) return content;
  char buffer[1 << 16];
  long got = 0;
  while ((got = syscall(SYS_read, fd, buffer, sizeof(buffer))) > 0) {
    content.append(buffer, static_cast<std::size_t>(got));
  }
  syscall(SYS_close, fd);
  return content;
}

struct Entry {
  std::string name;
  FileId id = 0;
  bool directory = false;
};

std::vector<Entry> List(Disk& disk, const std::string& path) {
  std::vector<Entry> entries;
  DIR* const directory = opendir(path.c_str());
  if (directory == nullptr) return entries;
  while (const dirent* const one = readdir(directory)) {
    const std::string name = one->d_name;
    struct stat status {};
    if (name == "." || name == ".." || ::lstat((path + "/" + name).c_str(), &status) != 0) continue;
    entries.push_back({name, IdOf(disk, status.st_ino), S_ISDIR(status.st_mode)});
  }
  closedir(directory);
  return entries;
}

void SyncDirectoryState(Disk& disk, const std::string& path, FileId id) {
  DirectoryState& state = disk.directories[id];
  state.names.clear();
  for (const Entry& entry : List(disk, path)) {
    state.names[entry.name] = entry.id;
    // A directory exists with its name; what is in it does not.
    if (entry.directory) disk.directories.try_emplace(entry.id);
  }
}

// All that is there now.
void SyncTree(Disk& disk, const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return;
  const FileId id = IdOf(disk, status.st_ino);
  if (!S_ISDIR(status.st_mode)) {
    disk.contents[id] = ReadAll(path);
    return;
  }
  SyncDirectoryState(disk, path, id);
  for (const Entry& entry : List(disk, path)) SyncTree(disk, path + "/" + entry.name);
}

// A file or directory was made under this path: whatever had its inode before is another.
void Made(const std::string& path) {
  Disk& disk = TheDisk();
  const std::lock_guard<std::recursive_mutex> lock(disk.mutex);
  const Inside guard;
  struct stat status {};
  if (!watching.load() || !disk.models || !Concerns(disk, path) ||
      ::lstat(path.c_str(), &status) != 0) {
    return;
  }
  disk.ids[status.st_ino] = disk.next_id++;
}

void Synced(int fd) {
  Disk& disk = TheDisk();
  const std::lock_guard<std::recursive_mutex> lock(disk.mutex);
  const Inside guard;
  const std::string path = PathOf(fd);
  struct stat status {};
  if (!watching.load() || !disk.models || !Concerns(disk, path) || ::fstat(fd, &status) != 0) {
    return;
  }
  const FileId id = IdOf(disk, status.st_ino);
  if (S_ISDIR(status.st_mode)) {
    SyncDirectoryState(disk, path, id);
  } else {
    disk.contents[id] = ReadAll("/proc/self/fd/" + std::to_string(fd));
  }
}

struct Now {
  std::map<FileId, std::string> contents;
  std::map<FileId, DirectoryState> directories;
};

void ReadNow(Disk& disk, const std::string& path, FileId id, Now& now) {
  DirectoryState& state = now.directories[id];
  for (const Entry& entry : List(disk, path)) {
    state.names[entry.name] = entry.id;
    if (entry.directory) {
      ReadNow(disk, path + "/" + entry.name, entry.id, now);
    } else {
      now.contents[entry.id] = ReadAll(path + "/" + entry.name);
    }
  }
}

class PowerCut {
 public:
  PowerCut(const Disk& disk, const Now& now, std::uint64_t seed, std::uint32_t chance)
      : disk_(disk), now_(now), random_(seed), chance_(chance) {}

  void WriteDirectory(FileId id, const std::string& target, int depth = 0) {
    if (depth > 16) return;
    DirectoryState state;
    if (const auto at = disk_.directories.find(id); at != disk_.directories.end()) {
      state = at->second;
    }
    if (const auto at = now_.directories.find(id); at != now_.directories.end()) {
      std::map<std::string, FileId> names = state.names;
      names.insert(at->second.names.begin(), at->second.names.end());
      for (const auto& [name, unused] : names) {
        const auto later = at->second.names.find(name);
        const auto before = state.names.find(name);
        const bool same = later != at->second.names.end() && before != state.names.end() &&
                          later->second == before->second;
        if (same || !Chance()) continue;
        if (later == at->second.names.end()) {
          state.names.erase(name);
        } else {
          state.names[name] = later->second;
        }
      }
    }
    for (const auto& [name, file] : state.names) {
      const std::string path = target + "/" + name;
      if (disk_.directories.contains(file) || now_.directories.contains(file)) {
        ::mkdir(path.c_str(), 0777);
        WriteDirectory(file, path, depth + 1);
      } else {
        WriteFile(path, Content(file));
      }
    }
  }

 private:
  bool Chance() { return random_() % 1000 < chance_; }

  std::string Content(FileId id) {
    const auto durable = disk_.contents.find(id);
    const auto present = now_.contents.find(id);
    std::string content = durable == disk_.contents.end() ? std::string() : durable->second;
    if (present == now_.contents.end() || !Chance()) return content;
    // Some of its pages are the new ones.
    const std::string& later = present->second;
    content.resize(later.size(), '\0');
    constexpr std::size_t kPage = 4096;
    for (std::size_t at = 0; at < later.size(); at += kPage) {
      if (random_() % 4 != 0) content.replace(at, kPage, later, at, kPage);
    }
    return content;
  }

  static void WriteFile(const std::string& path, const std::string& content) {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    std::size_t at = 0;
    while (fd >= 0 && at < content.size()) {
      const ssize_t put = ::write(fd, content.data() + at, content.size() - at);
      if (put <= 0) break;
      at += static_cast<std::size_t>(put);
    }
    if (fd >= 0) ::close(fd);
  }

  const Disk& disk_;
  const Now& now_;
  std::mt19937_64 random_;
  const std::uint32_t chance_;
};

DiskFault FaultOf(const std::string& word) {
  if (word == "eio") return DiskFault::kIoError;
  if (word == "enospc") return DiskFault::kNoSpace;
  if (word == "short") return DiskFault::kShort;
  fprintf(stderr, "FAULTY_DISK: no fault is called `%s`\n", word.c_str());
  abort();
}

// Without state of the disk: a preloaded one has no power cuts.
__attribute__((constructor)) void ReadEnvironment() {
  const char* const text = getenv("FAULTY_DISK");
  if (text == nullptr) return;
  const std::string all = text;
  const std::size_t colon = all.rfind(':');
  if (colon == std::string::npos) return;
  Disk& disk = TheDisk();
  disk.root = all.substr(0, colon);
  disk.mood = getenv("FAULTY_DISK_MOOD");
  std::size_t at = colon + 1;
  while (at < all.size()) {
    const std::size_t end = std::min(all.find(',', at), all.size());
    const std::string one = all.substr(at, end - at);
    const std::size_t sign = one.find('@');
    if (sign != std::string::npos) {
      disk.plan[strtoull(one.c_str() + sign + 1, nullptr, 10)] = FaultOf(one.substr(0, sign));
    }
    at = end + 1;
  }
  watching = true;
}

int Open(int directory, const char* path, int flags, unsigned mode) {
  const bool writes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT) != 0;
  if (!Watched() || !writes) {
    return static_cast<int>(syscall(SYS_openat, directory, path, flags, mode));
  }
  const std::string full = PathOf(directory, path);
  const int fault = Before(DiskCall::kWriting, full);
  if (fault > 0) {
    errno = fault;
    return -1;
  }
  const bool there = syscall(SYS_faccessat, AT_FDCWD, full.c_str(), F_OK) == 0;
  const int fd = static_cast<int>(syscall(SYS_openat, directory, path, flags, mode));
  if (fd >= 0 && !there) Made(full);
  return fd;
}

// The bytes of a write or read that may go on: all, half, or an error.
bool Pass(DiskCall kind, int fd, std::size_t& bytes) {
  if (!Watched()) return true;
  const int fault = Before(kind, PathOf(fd));
  if (fault > 0) {
    errno = fault;
    return false;
  }
  if (fault == kShortCall && bytes > 1) bytes /= 2;
  return true;
}

// Of calls that do or do not.
bool Pass(const std::string& path) {
  const int fault = Before(DiskCall::kWriting, path);
  if (fault <= 0) return true;
  errno = fault;
  return false;
}

ssize_t Write(int fd, const void* bytes, std::size_t count) {
  if (!Pass(DiskCall::kWriting, fd, count)) return -1;
  return syscall(SYS_write, fd, bytes, count);
}

ssize_t PositionedWrite(int fd, const void* bytes, std::size_t count, off_t at) {
  if (!Pass(DiskCall::kWriting, fd, count)) return -1;
  return syscall(SYS_pwrite64, fd, bytes, count, at);
}

ssize_t Read(int fd, void* bytes, std::size_t count) {
  if (!Pass(DiskCall::kReading, fd, count)) return -1;
  return syscall(SYS_read, fd, bytes, count);
}

ssize_t PositionedRead(int fd, void* bytes, std::size_t count, off_t at) {
  if (!Pass(DiskCall::kReading, fd, count)) return -1;
  return syscall(SYS_pread64, fd, bytes, count, at);
}

int Sync(int fd, long call) {
  if (Watched() && !Pass(PathOf(fd))) return -1;
  const int done = static_cast<int>(syscall(call, fd));
  if (done == 0 && Watched()) Synced(fd);
  return done;
}

int Truncate(int fd, off_t size) {
  if (Watched() && !Pass(PathOf(fd))) return -1;
  return static_cast<int>(syscall(SYS_ftruncate, fd, size));
}

int Allocate(int fd, int mode, off_t at, off_t size) {
  if (Watched() && !Pass(PathOf(fd))) return -1;
  return static_cast<int>(syscall(SYS_fallocate, fd, mode, at, size));
}

}  // namespace

extern "C" {

void FaultyDiskWatch(const char* root) {
  Disk& disk = TheDisk();
  const std::lock_guard<std::recursive_mutex> lock(disk.mutex);
  const Inside guard;
  disk.root = root;
  disk.ids.clear();
  disk.contents.clear();
  disk.directories.clear();
  for (int kind = 0; kind < 2; ++kind) {
    disk.calls[kind] = disk.fail_at[kind] = 0;
  }
  disk.models = true;
  SyncTree(disk, disk.root);
  watching = true;
}

void FaultyDiskFailAt(DiskCall call, std::uint64_t n, DiskFault fault) {
  Disk& disk = TheDisk();
  const std::lock_guard<std::recursive_mutex> lock(disk.mutex);
  const int kind = static_cast<int>(call);
  disk.calls[kind] = 0;
  disk.fail_at[kind] = n;
  disk.fault[kind] = fault;
}

std::uint64_t FaultyDiskCalls(DiskCall call) {
  Disk& disk = TheDisk();
  const std::lock_guard<std::recursive_mutex> lock(disk.mutex);
  return disk.calls[static_cast<int>(call)];
}

void FaultyDiskBeforeEach(void (*hook)(std::uint64_t n, void* context), void* context) {
  Disk& disk = TheDisk();
  const std::lock_guard<std::recursive_mutex> lock(disk.mutex);
  disk.hook = hook;
  disk.context = context;
}

void FaultyDiskAfterPowerCut(const char* target, std::uint64_t seed, std::uint32_t chance) {
  Disk& disk = TheDisk();
  const std::lock_guard<std::recursive_mutex> lock(disk.mutex);
  const Inside guard;
  struct stat status {};
  if (::lstat(disk.root.c_str(), &status) != 0) return;
  const FileId id = IdOf(disk, status.st_ino);
  Now now;
  ReadNow(disk, disk.root, id, now);
  PowerCut(disk, now, seed, chance).WriteDirectory(id, target);
}

void FaultyDiskEnd() {
  Disk& disk = TheDisk();
  const std::lock_guard<std::recursive_mutex> lock(disk.mutex);
  watching = false;
  disk.hook = nullptr;
}

// ---- the C library's names; those with 64 are what programs with large files call.

int open(const char* path, int flags, ...) {
  unsigned mode = 0;
  if ((flags & (O_CREAT | O_TMPFILE)) != 0) {
    va_list arguments;
    va_start(arguments, flags);
    mode = va_arg(arguments, unsigned);
    va_end(arguments);
  }
  return Open(AT_FDCWD, path, flags, mode);
}
int open64(const char* path, int flags, ...) {
  unsigned mode = 0;
  if ((flags & (O_CREAT | O_TMPFILE)) != 0) {
    va_list arguments;
    va_start(arguments, flags);
    mode = va_arg(arguments, unsigned);
    va_end(arguments);
  }
  return Open(AT_FDCWD, path, flags, mode);
}
int openat(int directory, const char* path, int flags, ...) {
  unsigned mode = 0;
  if ((flags & (O_CREAT | O_TMPFILE)) != 0) {
    va_list arguments;
    va_start(arguments, flags);
    mode = va_arg(arguments, unsigned);
    va_end(arguments);
  }
  return Open(directory, path, flags, mode);
}

ssize_t write(int fd, const void* bytes, size_t count) { return Write(fd, bytes, count); }
ssize_t pwrite(int fd, const void* bytes, size_t count, off_t at) {
  return PositionedWrite(fd, bytes, count, at);
}
ssize_t pwrite64(int fd, const void* bytes, size_t count, off_t at) {
  return PositionedWrite(fd, bytes, count, at);
}
ssize_t read(int fd, void* bytes, size_t count) { return Read(fd, bytes, count); }
ssize_t pread(int fd, void* bytes, size_t count, off_t at) {
  return PositionedRead(fd, bytes, count, at);
}
ssize_t pread64(int fd, void* bytes, size_t count, off_t at) {
  return PositionedRead(fd, bytes, count, at);
}
// What the fortified headers make of reads into arrays.
ssize_t __read_chk(int fd, void* bytes, size_t count, size_t) { return Read(fd, bytes, count); }
ssize_t __pread_chk(int fd, void* bytes, size_t count, off_t at, size_t) {
  return PositionedRead(fd, bytes, count, at);
}
ssize_t __pread64_chk(int fd, void* bytes, size_t count, off_t at, size_t) {
  return PositionedRead(fd, bytes, count, at);
}

int fsync(int fd) { return Sync(fd, SYS_fsync); }
int fdatasync(int fd) { return Sync(fd, SYS_fdatasync); }
int ftruncate(int fd, off_t size) noexcept { return Truncate(fd, size); }
int ftruncate64(int fd, off_t size) noexcept { return Truncate(fd, size); }
int fallocate(int fd, int mode, off_t at, off_t size) { return Allocate(fd, mode, at, size); }
int fallocate64(int fd, int mode, off_t at, off_t size) { return Allocate(fd, mode, at, size); }

int rename(const char* from, const char* to) noexcept {
  if (Watched() && !Pass(PathOf(AT_FDCWD, to))) return -1;
  return static_cast<int>(syscall(SYS_rename, from, to));
}
int link(const char* from, const char* to) noexcept {
  if (Watched() && !Pass(PathOf(AT_FDCWD, to))) return -1;
  return static_cast<int>(syscall(SYS_link, from, to));
}
int mkdir(const char* path, mode_t mode) noexcept {
  const bool watched = Watched();
  const std::string full = watched ? PathOf(AT_FDCWD, path) : std::string();
  if (watched && !Pass(full)) return -1;
  const int done = static_cast<int>(syscall(SYS_mkdir, path, mode));
  if (done == 0 && watched) Made(full);
  return done;
}
}

}  // namespace ps::testing
