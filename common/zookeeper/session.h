// One ZooKeeper session that re-opens itself, on a boost::asio::io_context.
//
// A process has exactly one Session. It wraps the multi-threaded C client: the client's two threads
// only post to the io_context, and every callback given here runs on the io_context's thread. All
// methods must be called on that thread too (before the io_context runs, any one thread will do).
//
//                        Start()
//        (not started) ----------> Connecting --> Connected <--> Suspended
//                                                  ^    \          |
//                                                  |     v         v
//                                                  +------- Lost <-+
//
// Connecting  no session was ever open.
// Connected   the session lives, and ZooKeeper answered less than a session timeout ago.
// Suspended   the connection is gone; the session may still live. Act on nothing that needs it.
// Lost        the session expired, or its negotiated timeout ran out on our own clock since the
//             sending of the last request that was answered (the C client does not learn of an
//             expiry while it is cut off). Ephemeral nodes are, or may be, gone.
//
// After Lost comes Connected: with a new session_id when the session had expired, with the same
// one when ZooKeeper kept it (it was away longer than the timeout, as was everybody's lease).
//
// Operations. Paths are absolute below the chroot of Options::hosts. Before the first connection
// they wait for it; in Suspended and Lost they fail at once with kUnreachable: nothing was sent.
//   kNotFound      no such node, or no such parent
//   kConflict      the node exists already, has another version, or has children
//   kMaybeApplied  a write was sent, its outcome is unknown: read back
//   kUnreachable   a read was not answered, or nothing was sent
//   kInvalid       the path is malformed, or the data too large for ZooKeeper
//   kClosed        the session expired before the answer, or Close() was called; a write may have
//                  been applied
// Every callback is called exactly once, never from within the call that takes it, except that
// Close() calls those that are still open with kClosed.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/result.h"

namespace ps::zk {

// What ZooKeeper refuses to store is refused here, with a message (its jute.maxbuffer is 1 MiB).
inline constexpr std::size_t kDataBytesMax = 1'000'000;
// More operations than this at a time are refused with kUnreachable.
inline constexpr std::size_t kOperationsMax = 8192;
// Any version of a node, in Set, Delete and Op.
inline constexpr std::int32_t kAnyVersion = -1;

enum class State { kConnecting, kConnected, kSuspended, kLost };
// "connecting", "connected", "suspended", "lost".
const char* StateName(State state);

struct StateEvent {
  State state = State::kConnecting;
  std::int64_t session_id = 0;  // of Connected; else of the last session, 0 if there was none
  std::string reason;           // in words, empty for Connected
};

// A node as it was read.
struct NodeValue {
  std::string data;
  std::int32_t version = 0;          // grows with each Set, 0 after Create
  std::int64_t created_zxid = 0;     // differs when the node was deleted and created again
  std::int64_t modified_zxid = 0;    // differs after each Set
  std::int64_t ephemeral_owner = 0;  // the session it lives with, 0 for a persistent node
};

enum class CreateMode { kPersistent, kEphemeral, kEphemeralSequential };

// One step of a Multi.
struct Op {
  enum class Kind { kCheck, kCreate, kSet, kDelete };

  static Op Check(std::string path, std::int32_t version);
  static Op Create(std::string path, std::string data, CreateMode mode = CreateMode::kPersistent);
  static Op Set(std::string path, std::string data, std::int32_t version);
  static Op Delete(std::string path, std::int32_t version);

  Kind kind = Kind::kCheck;
  std::string path;
  std::string data;
  std::int32_t version = kAnyVersion;
  CreateMode mode = CreateMode::kPersistent;
};

struct MultiOutcome {
  Status status;
  // With kConflict or kNotFound: the first operation that failed. None was applied.
  std::optional<std::size_t> failed_op;
  // When ok, per operation: the node's version after a Set, 0 for the others.
  std::vector<std::int32_t> versions;
};

class Session {
 public:
  struct Options {
    // "host:port,host:port/chroot"; the chroot is created by EnsurePath.
    std::string hosts;
    // Asked of the server, which may grant another (from 2 to 20 of its ticks).
    std::chrono::milliseconds session_timeout{6000};
    // File with a line NAME:PASSWORD (ReadSecret). Nodes are made so that only sessions with the
    // same one may read, change or delete them (ZooKeeper's scheme `digest`). Empty: everybody may.
    std::string secret_file{};
    // No connection for so long: a StateEvent with the same state and the reason, and a log line,
    // again after each further such time.
    std::chrono::milliseconds connect_deadline{10000};
  };

  using StateCallback = std::function<void(const StateEvent&)>;
  using StatusCallback = std::function<void(Status)>;
  using GetCallback = std::function<void(Result<NodeValue>)>;
  using ExistsCallback = std::function<void(Result<bool>)>;
  using ChildrenCallback = std::function<void(Result<std::vector<std::string>>)>;
  using CreateCallback = std::function<void(Result<std::string>)>;  // the path created
  using SetCallback = std::function<void(Result<std::int32_t>)>;    // the new version
  using MultiCallback = std::function<void(MultiOutcome)>;
  // The path of the node whose watch fired.
  using WatchCallback = std::function<void(const std::string& path)>;
  using WatchId = std::uint64_t;
  using SubscriptionId = std::uint64_t;

  Session(boost::asio::io_context& io, Options options);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session();  // Close()

  // Connects in the background. kInvalid if `hosts` is malformed, or what ReadSecret() has. A
  // server that is away is no error: see connect_deadline.
  Status Start();

  // Ends the session: its ephemeral nodes go. Open operations get kClosed, no state callback is
  // called any more. Takes at most some 5 s, 10 ms as a rule.
  void Close();

  // The callback is called for each change from now on, not for the present state.
  SubscriptionId OnState(StateCallback callback);
  void RemoveOnState(SubscriptionId id);

  State state() const;
  bool connected() const { return state() == State::kConnected; }
  std::int64_t session_id() const;                    // 0 before the first connection
  std::chrono::milliseconds session_timeout() const;  // as negotiated; as asked for before that
  // Time since ZooKeeper surely knew that we live: since the last answered request was sent.
  std::chrono::milliseconds since_contact() const;
  // True if `session_id` is an earlier session of this object, one that has expired.
  bool IsFormerSession(std::int64_t session_id) const;
  // Why we are not connected: "ZooKeeper at 127.0.0.1:2181 does not answer since 10 s".
  std::string Trouble() const;
  const Options& options() const;
  boost::asio::io_context& io() const;

  void Get(const std::string& path, GetCallback callback, WatchId watch = 0);
  // A watch on a node that does not exist fires when it is created.
  void Exists(const std::string& path, ExistsCallback callback, WatchId watch = 0);
  // Names, not paths, sorted.
  void Children(const std::string& path, ChildrenCallback callback, WatchId watch = 0);
  // With kEphemeralSequential ZooKeeper appends ten digits to the path.
  void Create(const std::string& path, std::string data, CreateMode mode, CreateCallback callback);
  void Set(const std::string& path, std::string data, std::int32_t version, SetCallback callback);
  void Delete(const std::string& path, std::int32_t version, StatusCallback callback);
  // All operations or none.
  void Multi(std::vector<Op> ops, MultiCallback callback);
  // Creates the chroot, all parents of `path` and `path` itself, with empty data, where they are
  // missing. EnsurePath("/") creates the chroot.
  void EnsurePath(const std::string& path, StatusCallback callback);

  // Raw one-shot watches, which watcher.h makes level-triggered: an id is passed to reads; when the
  // watch fires the callback is called, and the id may be passed again. Watches are gone with the
  // session.
  WatchId AddWatch(WatchCallback callback);
  void RemoveWatch(WatchId id);

  // What opens the same session a second time; closing that second one expires this. For tests.
  struct Credentials {
    std::int64_t session_id = 0;
    std::string password;
  };
  Credentials credentials() const;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;  // shared with what is posted to the loop, which holds it weakly
};

// "/a/b/c" -> "/a/b" and "c".
std::string ParentOf(const std::string& path);
std::string NameOf(const std::string& path);
std::string Join(const std::string& directory, const std::string& name);

}  // namespace ps::zk
