// The inside of a Session: the C client's handle, the state, the open operations. Not for others.
//
// A handle belongs to one generation. What its threads report goes through a Mailbox to the loop,
// which drops what is of an older generation. An operation is entered in a table under a number
// before the C client can answer it; whoever comes first, the answer, the deadline or the end of
// the handle, takes it out and calls back.
#pragma once

#include <zookeeper/zookeeper.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "common/zookeeper/hosts.h"
#include "common/zookeeper/session.h"

namespace ps::zk {

// What the C client delivered, copied out of its buffers.
struct Answer {
  int rc = ZOK;      // ZOK, Z..., or a k... below
  std::string text;  // data of a Get, path of a Create
  std::vector<std::string> names;
  Stat stat{};
  std::vector<zoo_op_result_t> results;  // of a Multi, without its pointers
  std::vector<std::int32_t> versions;    // of a Multi
};

// Memory that the C client writes the results of a Multi to.
struct MultiCall {
  std::vector<zoo_op_t> ops;
  std::vector<zoo_op_result_t> results;
  std::vector<Stat> stats;
  std::vector<std::vector<char>> paths;
};

struct Operation {
  bool write = false;
  std::string what;  // "set /a/b"
  std::function<void(Answer&, const Error*)> finish;
};

// Result codes of our own beside those of the C client.
inline constexpr int kNotSent = -1001;
inline constexpr int kNoAnswer = -1002;
inline constexpr int kTooLarge = -1003;
inline constexpr int kBadPath = -1004;

// True if only a live server can have caused this code, so that it proves contact.
bool IsAnswer(int rc);

int ClientMode(CreateMode mode);

class Session::Impl : public std::enable_shared_from_this<Session::Impl> {
 public:
  Impl(boost::asio::io_context& loop, Options session_options)
      : io(loop), options(std::move(session_options)), timer_(loop) {}

  Status Start();
  void Close();

  struct Mailbox;
  // What the C client hands back with an answer. The mailbox owns it, as the C client may forget
  // one when it is closed.
  struct Completion {
    Mailbox* mailbox = nullptr;
    std::uint64_t id = 0;
    std::chrono::steady_clock::time_point sent_at{};
    std::unique_ptr<MultiCall> multi;
  };
  // Passes its Completion to the C client.
  using Send = std::function<int(zhandle_t*, Completion*)>;
  void Submit(Operation operation, Send send, int refuse = ZOK);

  std::string FullPath(const std::string& path) const {
    if (chroot_.empty()) return path;
    return path == "/" ? chroot_ : chroot_ + path;
  }
  std::string StripChroot(std::string path) const {
    if (!chroot_.empty() && path.compare(0, chroot_.size(), chroot_) == 0) {
      path.erase(0, chroot_.size());
      if (path.empty()) path = "/";
    }
    return path;
  }
  static int Refusal(const std::string& path, std::size_t bytes) {
    if (!ValidPath(path)) return kBadPath;
    return bytes > kDataBytesMax ? kTooLarge : ZOK;
  }

  // Of nodes that are made.
  const ACL_vector* Acl() const {
    return secret_.empty() ? &ZOO_OPEN_ACL_UNSAFE : &ZOO_CREATOR_ALL_ACL;
  }
  void CreateFull(const std::string& full_path, std::string data, CreateMode mode,
                  CreateCallback callback);
  void EnsureNext(std::vector<std::string> paths, std::size_t next, StatusCallback callback);

  std::string Trouble() const;
  std::chrono::milliseconds SessionTimeout() const {
    return negotiated_.count() > 0 ? negotiated_ : options.session_timeout;
  }

  // The functions that the C client calls, on its completion thread.
  static void OnSessionEvent(zhandle_t* handle, int type, int state, const char* path,
                             void* context);
  static void OnWatch(zhandle_t* handle, int type, int state, const char* path, void* context);
  static void OnVoid(int rc, const void* data);
  static void OnStat(int rc, const Stat* stat, const void* data);
  static void OnData(int rc, const char* value, int value_len, const Stat* stat, const void* data);
  static void OnStrings(int rc, const String_vector* strings, const void* data);
  static void OnString(int rc, const char* value, const void* data);

  boost::asio::io_context& io;
  const Options options;

  State state = State::kConnecting;
  std::int64_t session_id = 0;
  std::string password;
  std::chrono::steady_clock::time_point contact{};  // when the last answered request was sent
  std::deque<std::int64_t> former_sessions;
  std::map<SubscriptionId, StateCallback> subscribers;
  std::map<WatchId, WatchCallback> watches;
  std::uint64_t last_id = 0;  // of operations, watches and subscriptions

 private:
  struct Handle {
    Handle(zhandle_t* zookeeper, std::shared_ptr<Mailbox> events)
        : client(zookeeper), mailbox(std::move(events)) {}
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    ~Handle() {
      if (client != nullptr) zookeeper_close(client);  // joins its threads, up to 4.5 s
    }

    zhandle_t* const client;
    const std::shared_ptr<Mailbox> mailbox;  // shared with the C client, as its context
  };

  struct OpenOperation {
    Operation operation;
    std::chrono::steady_clock::time_point deadline;
  };
  struct WaitingOperation {
    Operation operation;
    Send send;
    std::chrono::steady_clock::time_point deadline;
  };

  void OpenHandle();
  void OnOpened(std::shared_ptr<Handle> handle, int error);
  void DropHandle();
  void RunAside(std::function<void()> work);
  void HandleSessionEvent(int event_state, std::int64_t id, const std::string& secret,
                          int timeout_ms);
  void HandleAnswer(std::uint64_t id, std::chrono::steady_clock::time_point sent_at,
                    Answer& answer);
  void SendNow(Operation operation, const Send& send);
  void FinishLater(Operation operation, int rc);
  void Finish(Operation& operation, Answer& answer);
  void FailAll(int rc);
  void SendHeartbeat();
  void Evaluate();
  void Announce(const std::string& reason);
  void ArmTimer();
  void Tick();
  static std::unique_ptr<Completion> Take(const void* data);
  static void PostAnswer(std::unique_ptr<Completion> completion, Answer answer);

  std::string secret_;  // empty: none
  std::string servers_;
  std::string chroot_;
  boost::asio::steady_timer timer_;
  bool started_ = false;
  bool closed_ = false;
  std::chrono::steady_clock::time_point start_time_{};
  std::uint64_t generation_ = 0;
  std::shared_ptr<Mailbox> mailbox_;
  std::shared_ptr<Handle> handle_;
  bool client_connected_ = false;
  std::string lost_reason_;
  std::chrono::milliseconds negotiated_{0};
  std::chrono::steady_clock::time_point next_heartbeat_{};
  std::chrono::steady_clock::time_point next_report_{};
  std::chrono::steady_clock::time_point next_denied_report_{};
  std::chrono::steady_clock::time_point reopen_at_ = std::chrono::steady_clock::time_point::max();
  std::map<std::uint64_t, OpenOperation> open_;
  std::deque<WaitingOperation> waiting_;
  std::vector<std::future<void>> aside_;
};

// Carries what happens on a handle's threads to the loop, as long as both are there. It belongs
// to one handle, whose late events are dropped once another one is open.
struct Session::Impl::Mailbox {
  template <typename Function>
  void Post(Function function) {
    // The io_context may be destroyed after Detach() only, so it is used under the lock.
    const std::lock_guard lock(mutex);
    if (loop == nullptr) return;
    boost::asio::post(
        *loop, [impl = impl, generation = generation, function = std::move(function)]() mutable {
          const auto self = impl.lock();
          if (self && !self->closed_ && self->generation_ == generation) function(*self);
        });
  }
  void Detach() {
    const std::lock_guard lock(mutex);
    loop = nullptr;
  }

  std::weak_ptr<Impl> impl;
  std::uint64_t generation = 0;
  // What the C client is still to be given. Set before it starts, then its completion thread's.
  std::string secret;

  std::mutex mutex;  // guards the following
  boost::asio::io_context* loop = nullptr;
  std::map<std::uint64_t, std::unique_ptr<Completion>> completions;
};

}  // namespace ps::zk
