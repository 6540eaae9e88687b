#include "common/zookeeper/session_impl.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <thread>

#include "common/error_id.h"
#include "common/zookeeper/secret.h"

// The C client forgets an answer that comes while it is closed.
#if defined(__SANITIZE_ADDRESS__)
#define PS_LEAK_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PS_LEAK_SANITIZER
#endif
#endif
#ifdef PS_LEAK_SANITIZER
extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() { return "leak:libzookeeper_mt"; }
#endif

namespace ps::zk {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr std::size_t kFormerSessionsMax = 64;
constexpr milliseconds kCloseMax{5000};
constexpr milliseconds kReopenPause{1000};

void LogLine(const char* line) { spdlog::debug("zookeeper client: {}", line); }

// "10 s", or "0.7 s" below 10.
std::string Seconds(Clock::duration duration) {
  const auto ms = std::chrono::duration_cast<milliseconds>(duration).count();
  if (ms >= 10'000) return fmt::format("{} s", ms / 1000);
  return fmt::format("{}.{} s", ms / 1000, ms % 1000 / 100);
}

Error MakeError(int rc, const Operation& operation, const std::string& trouble) {
  // By a code, or by an id.
  const auto error = [&](auto what, const std::string& why) {
    return Error{what, "ZooKeeper: " + operation.what + ": " + why};
  };
  switch (rc) {
    case ZNONODE: return error(ErrorCode::kNotFound, "no such node");
    case ZNODEEXISTS: return error(ErrorCode::kConflict, "the node exists already");
    case ZBADVERSION: return error(ErrorCode::kConflict, "the node has another version");
    case ZNOTEMPTY: return error(ErrorCode::kConflict, "the node has children");
    case ZNOCHILDRENFOREPHEMERALS:
      return error(ErrorCode::kInvalid, "an ephemeral node has no children");
    case ZNOAUTH:
    case ZAUTHFAILED:
      return error(ErrorId::kZooKeeperDenied,
                   "not allowed by the node's access list; is --zookeeper-secret here that of "
                   "the daemons that made it?");
    case ZBADARGUMENTS:
    case kBadPath: return error(ErrorCode::kInvalid, "not a valid path");
    case kTooLarge:
      return error(
          ErrorId::kZooKeeperTooLarge,
          fmt::format("more than {} bytes, the most that ZooKeeper stores", kDataBytesMax));
    case ZSESSIONEXPIRED: return error(ErrorId::kZooKeeperSession, "the session expired");
    case ZCLOSING: return error(ErrorCode::kClosed, "the session was closed");
    case ZINVALIDSTATE:
    case ZTHROTTLEDOP:
    case kNotSent: return error(ErrorId::kZooKeeperLost, "not sent: " + trouble);
    case ZCONNECTIONLOSS:
    case ZOPERATIONTIMEOUT:
    case kNoAnswer:
      return error(operation.write ? ErrorId::kZooKeeperOutcome : ErrorId::kZooKeeperLost,
                   "the connection was lost before the answer");
    default: return error(ErrorCode::kInternal, zerror(rc));
  }
}

}  // namespace

bool IsAnswer(int rc) {
  if (rc == ZOK) return true;
  return rc < ZAPIERROR && rc > kNotSent && rc != ZSESSIONEXPIRED && rc != ZCLOSING &&
         rc != ZINVALIDCALLBACK && rc != ZSESSIONMOVED;
}

int ClientMode(CreateMode mode) {
  switch (mode) {
    case CreateMode::kPersistent: return ZOO_PERSISTENT;
    case CreateMode::kEphemeral: return ZOO_EPHEMERAL;
    case CreateMode::kEphemeralSequential: return ZOO_EPHEMERAL_SEQUENTIAL;
  }
  return ZOO_PERSISTENT;
}

// --- what the C client calls ---

void Session::Impl::OnSessionEvent(zhandle_t* handle, int type, int state, const char* /*path*/,
                                   void* /*context*/) {
  if (type != ZOO_SESSION_EVENT) return;
  // zoo_get_context, as the handle's own context is not known to watches of reads.
  auto* const mailbox = static_cast<Mailbox*>(const_cast<void*>(zoo_get_context(handle)));
  if (!mailbox->secret.empty() && (state == ZOO_CONNECTED_STATE || state == ZOO_READONLY_STATE)) {
    // Once: the client sends it again on each later connection, before anything else. It takes it
    // only while there is a connection; if that is gone already there will be another one.
    const std::string& secret = mailbox->secret;
    const int rc = zoo_add_auth(handle, "digest", secret.data(), static_cast<int>(secret.size()),
                                nullptr, nullptr);
    if (rc != ZOK) return;
    mailbox->secret.clear();
  }
  std::int64_t id = 0;
  std::string password;
  if (const clientid_t* client = zoo_client_id(handle)) {
    id = client->client_id;
    password.assign(client->passwd, sizeof(client->passwd));
  }
  mailbox->Post([state, id, password, timeout_ms = zoo_recv_timeout(handle)](Impl& self) {
    self.HandleSessionEvent(state, id, password, timeout_ms);
  });
}

void Session::Impl::OnWatch(zhandle_t* handle, int type, int /*state*/, const char* path,
                            void* context) {
  if (type == ZOO_SESSION_EVENT) return;
  auto* const mailbox = static_cast<Mailbox*>(const_cast<void*>(zoo_get_context(handle)));
  const auto id = static_cast<WatchId>(reinterpret_cast<std::uintptr_t>(context));
  mailbox->Post([id, path = std::string(path == nullptr ? "" : path)](Impl& self) {
    const auto found = self.watches.find(id);
    if (found == self.watches.end()) return;
    const WatchCallback callback = found->second;  // it may remove itself
    callback(self.StripChroot(path));
  });
}

std::unique_ptr<Session::Impl::Completion> Session::Impl::Take(const void* data) {
  const auto* const completion = static_cast<const Completion*>(data);
  const std::lock_guard lock(completion->mailbox->mutex);
  return std::move(completion->mailbox->completions.extract(completion->id).mapped());
}

void Session::Impl::PostAnswer(std::unique_ptr<Completion> completion, Answer answer) {
  completion->mailbox->Post(
      [id = completion->id, sent_at = completion->sent_at,
       answer = std::move(answer)](Impl& self) mutable { self.HandleAnswer(id, sent_at, answer); });
}

void Session::Impl::OnVoid(int rc, const void* data) {
  auto completion = Take(data);
  Answer answer;
  answer.rc = rc;
  if (completion->multi) {
    for (const zoo_op_result_t& result : completion->multi->results) {
      answer.results.push_back({result.err, nullptr, 0, nullptr});
    }
    for (const Stat& stat : completion->multi->stats) answer.versions.push_back(stat.version);
  }
  PostAnswer(std::move(completion), std::move(answer));
}

void Session::Impl::OnStat(int rc, const Stat* stat, const void* data) {
  Answer answer;
  answer.rc = rc;
  if (rc == ZOK && stat != nullptr) answer.stat = *stat;
  PostAnswer(Take(data), std::move(answer));
}

void Session::Impl::OnData(int rc, const char* value, int value_len, const Stat* stat,
                           const void* data) {
  Answer answer;
  answer.rc = rc;
  if (rc == ZOK && value != nullptr && value_len > 0) {
    answer.text.assign(value, static_cast<std::size_t>(value_len));
  }
  if (rc == ZOK && stat != nullptr) answer.stat = *stat;
  PostAnswer(Take(data), std::move(answer));
}

void Session::Impl::OnStrings(int rc, const String_vector* strings, const void* data) {
  Answer answer;
  answer.rc = rc;
  if (rc == ZOK && strings != nullptr) {
    for (std::int32_t i = 0; i < strings->count; ++i) answer.names.emplace_back(strings->data[i]);
  }
  PostAnswer(Take(data), std::move(answer));
}

void Session::Impl::OnString(int rc, const char* value, const void* data) {
  Answer answer;
  answer.rc = rc;
  if (rc == ZOK && value != nullptr) answer.text = value;
  PostAnswer(Take(data), std::move(answer));
}

// --- the handle ---

void Session::Impl::RunAside(std::function<void()> work) {
  std::erase_if(aside_, [](const std::future<void>& future) {
    return future.wait_for(milliseconds(0)) == std::future_status::ready;
  });
  std::promise<void> promise;
  auto future = promise.get_future();
  // Detached, as nobody can say how long the C client takes; Close() waits for a bounded time.
  try {
    std::thread([work, done = std::move(promise)]() mutable {
      work();
      work = nullptr;  // releases what it holds before anybody is told that it is done
      done.set_value();
    }).detach();
    aside_.push_back(std::move(future));
  } catch (const std::system_error& error) {
    spdlog::error("zookeeper: cannot start a thread: {}", error.what());
    work();
  }
}

void Session::Impl::OpenHandle() {
  mailbox_ = std::make_shared<Mailbox>();
  mailbox_->loop = &io;
  mailbox_->impl = weak_from_this();
  mailbox_->generation = ++generation_;
  mailbox_->secret = secret_;
  client_connected_ = false;
  reopen_at_ = Clock::time_point::max();
  // zookeeper_init resolves host names and so may block.
  RunAside([mailbox = mailbox_, servers = servers_, timeout = options.session_timeout] {
    static std::once_flag quiet;
    std::call_once(quiet, [] { zoo_set_debug_level(ZOO_LOG_LEVEL_WARN); });
    zhandle_t* const client =
        zookeeper_init2(servers.c_str(), &Impl::OnSessionEvent, static_cast<int>(timeout.count()),
                        nullptr, mailbox.get(), ZOO_NO_LOG_CLIENTENV, &LogLine);
    const int error = client == nullptr ? errno : 0;
    auto handle = std::make_shared<Handle>(client, mailbox);
    mailbox->Post([handle = std::move(handle), error](Impl& self) mutable {
      self.OnOpened(std::move(handle), error);
    });
  });
}

void Session::Impl::OnOpened(std::shared_ptr<Handle> handle, int error) {
  if (handle->client == nullptr) {
    spdlog::warn("zookeeper: cannot open a session with {}: {}", servers_, std::strerror(error));
    reopen_at_ = Clock::now() + kReopenPause;
    return;
  }
  handle_ = std::move(handle);
  if (client_connected_) SendHeartbeat();
  Evaluate();
}

// The handle's late events are of an old generation from here on. Its operations fail in the
// caller's name, as the C client's own word on them comes too late.
void Session::Impl::DropHandle() {
  ++generation_;
  client_connected_ = false;
  if (mailbox_) mailbox_->Detach();
  mailbox_.reset();
  if (handle_) RunAside([handle = std::exchange(handle_, nullptr)]() mutable { handle.reset(); });
}

void Session::Impl::HandleSessionEvent(int event_state, std::int64_t id, const std::string& secret,
                                       int timeout_ms) {
  const auto now = Clock::now();
  if (event_state == ZOO_CONNECTED_STATE || event_state == ZOO_READONLY_STATE) {
    client_connected_ = true;
    if (negotiated_.count() != timeout_ms && timeout_ms != options.session_timeout.count()) {
      spdlog::warn(
          "zookeeper: asked for sessions of {} ms, {} grants {} ms (2 to 20 of its ticks): a host "
          "that is lost or hangs is noticed after that time",
          options.session_timeout.count(), servers_, timeout_ms);
    }
    negotiated_ = milliseconds(timeout_ms);
    // The handshake was sent at most a third of the timeout ago, or the client had given it up.
    const auto sent_at = now - SessionTimeout() / 3;
    contact = id == session_id ? std::max(contact, sent_at) : sent_at;
    session_id = id;
    password = secret;
    lost_reason_.clear();
    if (handle_) SendHeartbeat();
    Evaluate();
    return;
  }
  if (event_state == ZOO_EXPIRED_SESSION_STATE || event_state == ZOO_AUTH_FAILED_STATE) {
    if (session_id != 0) {
      former_sessions.push_back(session_id);
      if (former_sessions.size() > kFormerSessionsMax) former_sessions.pop_front();
    }
    DropHandle();
    lost_reason_ = event_state == ZOO_EXPIRED_SESSION_STATE
                       ? fmt::format("ZooKeeper at {} expired the session 0x{:x}", servers_,
                                     static_cast<std::uint64_t>(session_id))
                       : fmt::format("ZooKeeper at {} refused us", servers_);
    FailAll(ZSESSIONEXPIRED);
    if (closed_) return;
    if (session_id != 0 && state != State::kLost) {
      state = State::kLost;
      next_report_ = now + options.connect_deadline;
      Announce(lost_reason_);
      if (closed_) return;
    }
    if (event_state == ZOO_EXPIRED_SESSION_STATE) {
      OpenHandle();
    } else {
      reopen_at_ = now + kReopenPause;
    }
    return;
  }
  client_connected_ = false;
  Evaluate();
}

// --- state ---

std::string Session::Impl::Trouble() const {
  if (closed_) return "the ZooKeeper session was closed";
  if (state == State::kConnected) return "";
  const auto since = std::max(start_time_, contact);
  if (state == State::kSuspended) {
    return fmt::format("the connection to ZooKeeper at {} is gone, it answered last {} ago",
                       servers_, Seconds(Clock::now() - since));
  }
  std::string text = fmt::format("ZooKeeper at {} does not answer since {}", servers_,
                                 Seconds(Clock::now() - since));
  return lost_reason_.empty() ? text : lost_reason_ + "; " + text;
}

void Session::Impl::Evaluate() {
  if (closed_) return;
  const auto now = Clock::now();
  const bool fresh = now < contact + SessionTimeout();
  State next = State::kSuspended;
  if (client_connected_ && handle_ && fresh) {
    next = State::kConnected;
  } else if (session_id == 0 || (state == State::kConnecting && !handle_)) {
    next = State::kConnecting;
  } else if (state == State::kLost || !fresh) {
    next = State::kLost;
  }
  if (next == state) return;
  if (state == State::kConnected) next_report_ = now + options.connect_deadline;
  state = next;
  Announce(Trouble());
  if (closed_ || state != State::kConnected) return;
  auto waiting = std::exchange(waiting_, {});
  for (WaitingOperation& one : waiting) SendNow(std::move(one.operation), one.send);
}

void Session::Impl::Announce(const std::string& reason) {
  StateEvent event;
  event.state = state;
  event.session_id = session_id;
  event.reason = reason;
  if (state == State::kConnected) {
    spdlog::info("zookeeper: session 0x{:x} with {} is connected, timeout {} ms",
                 static_cast<std::uint64_t>(session_id), servers_, SessionTimeout().count());
  } else {
    spdlog::warn("zookeeper: {}: {}", StateName(state), reason);
  }
  std::vector<SubscriptionId> ids;
  for (const auto& entry : subscribers) ids.push_back(entry.first);
  for (const SubscriptionId id : ids) {
    const auto found = subscribers.find(id);
    if (found == subscribers.end()) continue;
    const StateCallback callback = found->second;  // it may remove itself
    callback(event);
    // A callback may have closed the session, or changed the state by doing so.
    if (closed_ || state != event.state) return;
  }
}

void Session::Impl::ArmTimer() {
  const auto interval = std::clamp(SessionTimeout() / 20, milliseconds(5), milliseconds(250));
  timer_.expires_after(interval);
  timer_.async_wait([weak = weak_from_this()](const boost::system::error_code& error) {
    const auto self = weak.lock();
    if (error || !self || self->closed_) return;
    self->Tick();
    if (!self->closed_) self->ArmTimer();
  });
}

void Session::Impl::Tick() {
  const auto now = Clock::now();
  if (now >= reopen_at_) OpenHandle();
  if (client_connected_ && handle_ && now >= next_heartbeat_) SendHeartbeat();
  Evaluate();
  // Deadlines are in the order of the numbers, as all are equally long.
  while (!closed_ && !open_.empty() && open_.begin()->second.deadline <= now) {
    Operation operation = std::move(open_.begin()->second.operation);
    open_.erase(open_.begin());
    Answer answer;
    answer.rc = kNoAnswer;
    Finish(operation, answer);
  }
  while (!closed_ && !waiting_.empty() && waiting_.front().deadline <= now) {
    Operation operation = std::move(waiting_.front().operation);
    waiting_.pop_front();
    Answer answer;
    answer.rc = kNotSent;
    Finish(operation, answer);
  }
  if (!closed_ && state != State::kConnected && now >= next_report_) {
    next_report_ = now + options.connect_deadline;
    Announce(Trouble());
  }
}

// The C client's own pings leave no trace that we could see, and the lease needs one.
void Session::Impl::SendHeartbeat() {
  next_heartbeat_ = Clock::now() + SessionTimeout() / 6;
  Operation operation;
  operation.what = "heartbeat";
  operation.finish = [](Answer&, const Error*) {};
  const std::string path = FullPath("/");
  SendNow(std::move(operation), [path](zhandle_t* client, Completion* completion) {
    return zoo_aexists(client, path.c_str(), 0, &Impl::OnStat, completion);
  });
}

// --- operations ---

void Session::Impl::Submit(Operation operation, Send send, int refuse) {
  if (refuse != ZOK) return FinishLater(std::move(operation), refuse);
  if (closed_) return FinishLater(std::move(operation), ZCLOSING);
  if (state == State::kConnected) return SendNow(std::move(operation), send);
  if (state == State::kConnecting && waiting_.size() < kOperationsMax) {
    waiting_.push_back(
        {std::move(operation), std::move(send), Clock::now() + options.connect_deadline});
    return;
  }
  FinishLater(std::move(operation), kNotSent);
}

void Session::Impl::SendNow(Operation operation, const Send& send) {
  if (open_.size() >= kOperationsMax || !handle_) {
    return FinishLater(std::move(operation), kNotSent);
  }
  const std::uint64_t id = ++last_id;
  auto owned = std::make_unique<Completion>();
  Completion* const completion = owned.get();
  completion->mailbox = mailbox_.get();
  completion->id = id;
  const auto now = completion->sent_at = Clock::now();
  {
    const std::lock_guard lock(mailbox_->mutex);
    mailbox_->completions.emplace(id, std::move(owned));
  }
  // Once it is sent the answer may come at any time, and free the completion.
  const int rc = send(handle_->client, completion);
  if (rc != ZOK) {
    const std::lock_guard lock(mailbox_->mutex);
    mailbox_->completions.erase(id);
    return FinishLater(std::move(operation), rc);
  }
  open_.emplace(id, OpenOperation{std::move(operation), now + 2 * SessionTimeout()});
}

void Session::Impl::FinishLater(Operation operation, int rc) {
  auto shared = std::make_shared<Operation>(std::move(operation));
  const std::string trouble = Trouble();
  boost::asio::post(io, [shared, rc, trouble] {
    Answer answer;
    answer.rc = rc;
    const Error error = MakeError(rc, *shared, trouble);
    shared->finish(answer, &error);
  });
}

void Session::Impl::Finish(Operation& operation, Answer& answer) {
  if (answer.rc == ZOK) return operation.finish(answer, nullptr);
  const Error error = MakeError(answer.rc, operation, Trouble());
  if (const auto now = Clock::now(); answer.rc == ZNOAUTH && now >= next_denied_report_) {
    // Whoever asked tries again, for as long as it takes.
    next_denied_report_ = now + options.connect_deadline;
    spdlog::error("{}", ErrorLine(error));
  }
  operation.finish(answer, &error);
}

void Session::Impl::FailAll(int rc) {
  auto open = std::exchange(open_, {});
  auto waiting = std::exchange(waiting_, {});
  Answer answer;
  answer.rc = rc;
  for (auto& entry : open) Finish(entry.second.operation, answer);
  for (WaitingOperation& one : waiting) Finish(one.operation, answer);
}

void Session::Impl::HandleAnswer(std::uint64_t id, Clock::time_point sent_at, Answer& answer) {
  if (IsAnswer(answer.rc) && sent_at > contact) {
    contact = sent_at;
    Evaluate();
    if (closed_) return;
  }
  const auto found = open_.find(id);
  if (found == open_.end()) return;  // its deadline passed before
  Operation operation = std::move(found->second.operation);
  open_.erase(found);
  Finish(operation, answer);
}

void Session::Impl::CreateFull(const std::string& full_path, std::string data, CreateMode mode,
                               CreateCallback callback) {
  Operation operation;
  operation.write = true;
  operation.what = "create " + full_path;
  operation.finish = [weak = weak_from_this(), callback = std::move(callback)](Answer& answer,
                                                                               const Error* error) {
    if (error != nullptr) return callback(*error);
    const auto self = weak.lock();
    callback(self ? self->StripChroot(std::move(answer.text)) : std::move(answer.text));
  };
  const int refusal = Refusal(full_path, data.size());
  Submit(
      std::move(operation),
      [full_path, data = std::move(data), mode, acl = Acl()](zhandle_t* client,
                                                             Completion* completion) {
        return zoo_acreate(client, full_path.c_str(), data.data(), static_cast<int>(data.size()),
                           acl, ClientMode(mode), &Impl::OnString, completion);
      },
      refusal);
}

void Session::Impl::EnsureNext(std::vector<std::string> paths, std::size_t next,
                               StatusCallback callback) {
  if (next == paths.size()) return callback(Ok());
  const std::string path = paths[next];
  CreateFull(path, "", CreateMode::kPersistent,
             [weak = weak_from_this(), paths = std::move(paths), next,
              callback = std::move(callback)](const Result<std::string>& created) mutable {
               const auto self = weak.lock();
               // A creation whose outcome is unknown is safe to repeat here, but that is left to
               // the caller, who knows for how long.
               if (!created.ok() && created.error().code != ErrorCode::kConflict) {
                 return callback(created.error());
               }
               if (!self) return callback(Error{ErrorCode::kClosed, "the session was closed"});
               self->EnsureNext(std::move(paths), next + 1, std::move(callback));
             });
}

// --- start and end ---

Status Session::Impl::Start() {
  PS_CHECK(!started_, "Session::Start is called once");
  auto hosts = PS_TRY(ParseHosts(options.hosts));
  if (!options.secret_file.empty()) secret_ = PS_TRY(ReadSecret(options.secret_file));
  servers_ = hosts.servers;
  chroot_ = hosts.chroot;
  started_ = true;
  start_time_ = Clock::now();
  next_report_ = start_time_ + options.connect_deadline;
  OpenHandle();
  ArmTimer();
  return Ok();
}

void Session::Impl::Close() {
  if (closed_) return;
  closed_ = true;
  state = State::kLost;
  timer_.cancel();
  subscribers.clear();
  watches.clear();
  DropHandle();
  FailAll(ZCLOSING);
  const auto deadline = Clock::now() + kCloseMax;
  for (const std::future<void>& future : aside_) {
    if (future.wait_until(deadline) != std::future_status::ready) {
      spdlog::warn("zookeeper: the client for {} does not close within {}", servers_,
                   Seconds(kCloseMax));
      break;
    }
  }
}

}  // namespace ps::zk
