// Ends a daemon with SIGKILL at a named step of a checkpoint round, for tests.
//
// Preloaded (LD_PRELOAD) into coordinator, ps-server and ps-worker it stands before libzmq, the
// client of ZooKeeper and the C library, and so sees every step that the rest of the world could
// see: each control message as it is taken or given, each name that is given or taken on the disk
// of the checkpoints, each write of a job's state. So the daemons themselves need no hooks; what
// lies between two of these steps is in the memory of one process and ends with it.
//
// DIE_AT names a directory. The first process that reaches a step of which a file lies there
// renames the file to STEP.died and dies. Steps:
//   ROLE.MESSAGE.received   the message was taken from its socket, nobody has seen it yet
//   ROLE.MESSAGE.before     it is about to be given to its socket
//   ROLE.MESSAGE.sent       it was given, and has had the time to leave
//     ROLE: coordinator, server or agent; MESSAGE: as control.fbs has it. One of several to
//     different peers is the first of them.
//   server.part.begun       the directory of a part was made: all shards are frozen
//   server.part.synced      the first of a part's files was synced, the others were not
//   server.SEAL.before      the part's list of files is not in its place, all of the files are
//   server.SEAL.renamed
//   server.part.before      the part does not have its name yet
//   server.part.renamed     and now it has
//   server.manifest.before  the same of the manifest in a part
//   server.manifest.renamed
//   server.part.deleting    the manifest was taken from a part that is to go
//   coordinator.commit.before   a write that commits a checkpoint is about to be given to ZooKeeper
//   coordinator.commit.given    it was given; whether it left and counts, nobody here can know
//   coordinator.commit.sent     it has had the time to be answered, and nobody here has read that
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <zmq.h>
#include <zookeeper/zookeeper.h>

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "control_generated.h"

namespace ps::testing {
namespace {

namespace control = ps::control;

constexpr unsigned kLeavesMs = 200;  // what was given to a socket has left by then

// The process's, for its whole life; others run until the very end.
struct Plan {
  std::string directory;
  std::string role;  // empty: none that this is about

  std::mutex mutex;
  std::string written;  // directory of the round whose manifest was sent last, under the mutex
  std::uint64_t written_round = 0;  // its number, under the mutex
};

Plan& ThePlan() {
  static Plan* const plan = [] {
    auto* const made = new Plan;
    const char* const directory = getenv("DIE_AT");
    if (directory == nullptr) return made;
    const std::string_view program = program_invocation_short_name;
    made->directory = directory;
    made->role = program == "coordinator" ? "coordinator"
                 : program == "ps-server" ? "server"
                 : program == "ps-worker" ? "agent"
                                          : "";
    return made;
  }();
  return *plan;
}

bool Takes(std::string_view role) { return ThePlan().role == role; }

// Dies if this step is wanted, after `wait_ms`.
void Reach(const std::string& step, std::uint64_t round, unsigned wait_ms = 0) {
  const std::string wanted = ThePlan().directory + "/" + step;
  const std::string died = wanted + ".died";
  if (syscall(SYS_rename, wanted.c_str(), died.c_str()) != 0) return;
  if (wait_ms > 0) usleep(wait_ms * 1000);
  const std::string text = std::to_string(round) + "\n";
  const long fd = syscall(SYS_openat, AT_FDCWD, died.c_str(), O_WRONLY | O_CLOEXEC, 0);
  if (fd >= 0 && syscall(SYS_write, fd, text.data(), text.size()) < 0) abort();
  fprintf(stderr, "dies at %s of round %s", step.c_str(), text.c_str());
  kill(getpid(), SIGKILL);
  pause();
}

// ---- messages

// Looked up by name: not every program that this is preloaded into has libzmq.
template <typename Function>
Function* Next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

// A message of a checkpoint round: its name, the round and, where it has that, the round's
// directory.
struct Seen {
  std::string name;
  std::uint64_t round = 0;
  std::string directory;
};

template <typename Body>
bool Take(const control::Message& message, Seen& seen) {
  const Body* const body = message.body_as<Body>();
  if (body == nullptr) return false;
  seen.round = body->round();
  return true;
}

Seen Look(zmq_msg_t* frame) {
  static const auto size_of = Next<std::size_t(const zmq_msg_t*)>("zmq_msg_size");
  static const auto data_of = Next<void*(zmq_msg_t*)>("zmq_msg_data");
  const std::size_t size = size_of(frame);
  if (size < 8 || size > (std::size_t{64} << 20)) return {};
  // It may start at any address.
  std::vector<std::uint64_t> aligned((size + 7) / 8);
  memcpy(aligned.data(), data_of(frame), size);
  const auto* const bytes = reinterpret_cast<const std::uint8_t*>(aligned.data());
  flatbuffers::Verifier verifier(bytes, size, 16, 1'000'000);
  if (!control::VerifyMessageBuffer(verifier)) return {};
  const control::Message* const message = control::GetMessage(bytes);
  if (message->body() == nullptr) return {};
  Seen seen;
  seen.name = control::EnumNameBody(message->body_type());
  if (!Take<control::RoundBegin>(*message, seen) && !Take<control::WorkerCut>(*message, seen) &&
      !Take<control::Prepared>(*message, seen) && !Take<control::WriteManifest>(*message, seen) &&
      !Take<control::ManifestWritten>(*message, seen) && !Take<control::CopyPart>(*message, seen) &&
      !Take<control::PartCopied>(*message, seen)) {
    Take<control::RoundCommitted>(*message, seen);
  }
  const auto* const write = message->body_as_WriteManifest();
  if (write != nullptr && write->directory() != nullptr) seen.directory = write->directory()->str();
  return seen;
}

// ---- the disk

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// The round in whose directory the path lies; 0: in none.
std::uint64_t RoundOf(std::string_view path) {
  constexpr std::string_view kRound = "/ckpt-";
  const std::size_t at = path.rfind(kRound);
  if (at == std::string_view::npos) return 0;
  return strtoull(std::string(path.substr(at + kRound.size())).c_str(), nullptr, 10);
}

std::string PathOf(int fd) {
  char link[64];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  char path[PATH_MAX];
  const long size = syscall(SYS_readlink, link, path, sizeof(path));
  return size > 0 ? std::string(path, static_cast<std::size_t>(size)) : std::string();
}

// What a rename within a round makes; empty: nothing that counts.
std::string RenamedTo(std::string_view from, std::string_view to) {
  if (!Takes("server") || RoundOf(to) == 0) return "";
  if (EndsWith(to, "/SEAL")) return "SEAL";
  if (EndsWith(to, "/MANIFEST.json")) return "manifest";
  return EndsWith(from, ".partial") ? "part" : "";
}

void AfterRemoval(std::string_view path) {
  if (Takes("server") && RoundOf(path) > 0 && EndsWith(path, "/MANIFEST.json")) {
    Reach("server.part.deleting", RoundOf(path));
  }
}

int Sync(int fd, long call) {
  const int done = static_cast<int>(syscall(call, fd));
  if (Takes("server")) {
    const std::string path = PathOf(fd);
    const bool file = path.find(".partial/") != std::string::npos;
    if (file && RoundOf(path) > 0) Reach("server.part.synced", RoundOf(path));
  }
  return done;
}

}  // namespace

extern "C" {

int zmq_msg_send(zmq_msg_t* frame, void* socket, int flags) {
  static const auto real = Next<int(zmq_msg_t*, void*, int)>("zmq_msg_send");
  Plan& plan = ThePlan();
  const Seen seen = plan.role.empty() ? Seen() : Look(frame);
  if (seen.name.empty()) return real(frame, socket, flags);
  const std::string step = plan.role + "." + seen.name;
  if (!seen.directory.empty()) {
    const std::lock_guard<std::mutex> lock(plan.mutex);
    plan.written = seen.directory;
    plan.written_round = seen.round;
  }
  Reach(step + ".before", seen.round);
  const int sent = real(frame, socket, flags);
  if (sent >= 0) Reach(step + ".sent", seen.round, kLeavesMs);
  return sent;
}

int zmq_msg_recv(zmq_msg_t* frame, void* socket, int flags) {
  static const auto real = Next<int(zmq_msg_t*, void*, int)>("zmq_msg_recv");
  const int received = real(frame, socket, flags);
  if (received < 0 || ThePlan().role.empty()) return received;
  const int reason = errno;
  const Seen seen = Look(frame);
  if (!seen.name.empty()) Reach(ThePlan().role + "." + seen.name + ".received", seen.round);
  errno = reason;
  return received;
}

int zoo_amulti(zhandle_t* handle, int count, const zoo_op_t* ops, zoo_op_result_t* results,
               void_completion_t completion, const void* data) {
  static const auto real =
      Next<int(zhandle_t*, int, const zoo_op_t*, zoo_op_result_t*, void_completion_t, const void*)>(
          "zoo_amulti");
  bool commits = false;
  std::uint64_t round = 0;
  if (Takes("coordinator")) {
    Plan& plan = ThePlan();
    const std::lock_guard<std::mutex> lock(plan.mutex);
    for (int i = 0; i < count && !plan.written.empty(); ++i) {
      if (ops[i].type != ZOO_SETDATA_OP || !EndsWith(ops[i].set_op.path, "/state")) continue;
      const std::string_view state(ops[i].set_op.data,
                                   static_cast<std::size_t>(ops[i].set_op.datalen));
      commits = commits || state.find('"' + plan.written + '"') != std::string_view::npos;
    }
    round = plan.written_round;
    if (commits) plan.written.clear();
  }
  if (commits) Reach("coordinator.commit.before", round);
  const int given = real(handle, count, ops, results, completion, data);
  if (commits && given == ZOK) {
    Reach("coordinator.commit.given", round);
    Reach("coordinator.commit.sent", round, kLeavesMs);
  }
  return given;
}

int mkdir(const char* path, mode_t mode) noexcept {
  const int done = static_cast<int>(syscall(SYS_mkdir, path, mode));
  if (done == 0 && Takes("server") && RoundOf(path) > 0 && EndsWith(path, ".partial")) {
    Reach("server.part.begun", RoundOf(path));
  }
  return done;
}

int rename(const char* from, const char* to) noexcept {
  const std::string what = RenamedTo(from, to);
  if (!what.empty()) Reach("server." + what + ".before", RoundOf(to));
  const int done = static_cast<int>(syscall(SYS_rename, from, to));
  if (!what.empty() && done == 0) Reach("server." + what + ".renamed", RoundOf(to));
  return done;
}

int fsync(int fd) { return Sync(fd, SYS_fsync); }
int fdatasync(int fd) { return Sync(fd, SYS_fdatasync); }

int unlink(const char* path) noexcept {
  const int done = static_cast<int>(syscall(SYS_unlink, path));
  if (done == 0) AfterRemoval(path);
  return done;
}

int remove(const char* path) noexcept {
  static const auto real = Next<int(const char*)>("remove");
  const int done = real(path);
  if (done == 0) AfterRemoval(path);
  return done;
}

int unlinkat(int directory, const char* path, int flags) noexcept {
  const int done = static_cast<int>(syscall(SYS_unlinkat, directory, path, flags));
  if (done == 0 && path[0] == '/') AfterRemoval(path);
  return done;
}
}

}  // namespace ps::testing
