#include "common/net/context.h"

#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <list>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "common/error_id.h"
#include "common/net/file_state.h"
#include "common/net/loop.h"
#include "common/net/sparse_log.h"
#include "common/net/unique_fd.h"

namespace ps::net {
namespace {

constexpr char kZapAddress[] = "inproc://zeromq.zap.01";
constexpr int kLookEveryMs = 500;  // at the file of trusted keys
constexpr int kProbeMs = 3000;
constexpr std::size_t kZapFramesMax = 16;

Error Failed(const std::string& what) {
  return Error{ErrorCode::kInternal, what + ": " + zmq_strerror(zmq_errno())};
}

struct CloseSocket {
  void operator()(void* socket) const { zmq_close(socket); }
};
using RawSocket = std::unique_ptr<void, CloseSocket>;

RawSocket OpenSocket(void* context, int type) {
  RawSocket socket(zmq_socket(context, type));
  const int no_linger = 0;
  if (socket != nullptr) zmq_setsockopt(socket.get(), ZMQ_LINGER, &no_linger, sizeof(no_linger));
  return socket;
}

// Whole messages; false: none is there.
bool Receive(void* socket, std::vector<std::string>& frames) {
  frames.clear();
  while (true) {
    zmq::message_t frame;
    int got;
    do {
      got = zmq_msg_recv(frame.handle(), socket, ZMQ_DONTWAIT);
    } while (got < 0 && zmq_errno() == EINTR);
    if (got < 0) return false;
    const bool more = frame.more();
    if (frames.size() < kZapFramesMax) frames.push_back(frame.to_string());
    if (!more) return true;
  }
}

bool SetText(void* socket, int option, const std::string& text) {
  return zmq_setsockopt(socket, option, text.data(), text.size()) == 0;
}

// Roles as the domain of a listening socket, and back.
std::string DomainOf(std::span<const Role> roles) {
  std::string domain = "ds";
  for (const Role role : roles) domain += std::string("+") + RoleName(role);
  return domain;
}
bool DomainAdmits(const std::string& domain, Role role) {
  return (domain + "+").find(std::string("+") + RoleName(role) + "+") != std::string::npos;
}

}  // namespace

// Answers libzmq's questions about keys, on a thread of its own.
class Context::Gate {
 public:
  Gate(void* context, KeyPair pair, TrustedKeys trusted, std::string path, FileState file)
      : pair_(std::move(pair)),
        context_(context),
        path_(std::move(path)),
        file_(file),
        trusted_(std::move(trusted)) {}

  ~Gate() {
    if (!thread_.joinable()) return;
    const std::uint64_t one = 1;
    while (::write(wake_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
    }
    thread_.join();
  }

  Status Start() {
    admitted_ = Admitted();
    wake_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    questions_ = OpenSocket(context_, ZMQ_REP);
    if (!wake_.valid() || questions_ == nullptr || zmq_bind(questions_.get(), kZapAddress) != 0) {
      return Failed("who may connect cannot be decided");
    }
    thread_ = std::thread([this] { Run(); });
    return Ok();
  }

  // kDenied if a key that nobody trusts is admitted.
  Status Probe() {
    RawSocket door = OpenSocket(context_, ZMQ_ROUTER);
    RawSocket stranger = OpenSocket(context_, ZMQ_DEALER);
    if (door == nullptr || stranger == nullptr) return Failed("the trial of the keys");
    const KeyPair unknown = PS_TRY(MakeKeyPair());
    const std::array<Role, 4> all = {Role::kCoordinator, Role::kServer, Role::kWorker,
                                     Role::kOperator};
    PS_TRY(Listen(door.get(), all));
    std::array<char, 256> address{};
    std::size_t size = address.size();
    if (zmq_bind(door.get(), "tcp://127.0.0.1:*") != 0 ||
        zmq_getsockopt(door.get(), ZMQ_LAST_ENDPOINT, address.data(), &size) != 0 ||
        !SetText(stranger.get(), ZMQ_CURVE_PUBLICKEY, unknown.public_key) ||
        !SetText(stranger.get(), ZMQ_CURVE_SECRETKEY, unknown.secret_key) ||
        !SetText(stranger.get(), ZMQ_CURVE_SERVERKEY, pair_.public_key)) {
      return Failed("the trial of the keys");
    }
    constexpr char kSeen[] = "inproc://ps-gate-probe";
    if (zmq_socket_monitor(stranger.get(), kSeen,
                           ZMQ_EVENT_HANDSHAKE_SUCCEEDED | kHandshakeFailures) != 0) {
      return Failed("the trial of the keys");
    }
    RawSocket seen = OpenSocket(context_, ZMQ_PAIR);
    if (seen == nullptr || zmq_connect(seen.get(), kSeen) != 0) {
      return Failed("the trial of the keys");
    }
    probing_ = true;
    const bool connected = zmq_connect(stranger.get(), address.data()) == 0;
    zmq_pollitem_t item = {seen.get(), 0, ZMQ_POLLIN, 0};
    std::vector<std::string> frames;
    std::uint16_t event = 0;
    if (connected && zmq_poll(&item, 1, kProbeMs) > 0 && Receive(seen.get(), frames) &&
        frames[0].size() >= sizeof(event)) {
      std::memcpy(&event, frames[0].data(), sizeof(event));
    }
    zmq_socket_monitor(stranger.get(), nullptr, 0);
    stranger.reset();
    probing_ = false;
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) return Ok();
    return Error{ErrorCode::kInternal,
                 event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED
                     ? "a key that nobody trusts was admitted: libzmq does not ask who may connect"
                     : "a trial with a key that nobody trusts came to no end: connections to "
                       "127.0.0.1 do not work"};
  }

  Status Listen(void* socket, std::span<const Role> admitted) {
    const int server = 1;
    if (zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &server, sizeof(server)) != 0 ||
        !SetText(socket, ZMQ_CURVE_SECRETKEY, pair_.secret_key) ||
        !SetText(socket, ZMQ_ZAP_DOMAIN, DomainOf(admitted))) {
      return Failed("setting a key");
    }
    return Ok();
  }

  Status Reach(void* socket, const KeyedEndpoint& endpoint, std::span<const Role> roles) {
    if (endpoint.key.empty()) {
      return Error{ErrorId::kPeerWithoutKey, endpoint.address +
                                                 " has no key: it was started with "
                                                 "--insecure, and this process was not"};
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const TrustedKey* const known = trusted_.Find(endpoint.key, WallClockMs());
      const bool fits =
          known != nullptr && std::find(roles.begin(), roles.end(), known->role) != roles.end();
      if (!fits) {
        return Error{ErrorId::kPeerUnknown, "the key of " + endpoint.address + " (" + endpoint.key +
                                                ") is not that of a " + RoleName(roles.front()) +
                                                " in " + path_};
      }
    }
    if (!IsPublicKey(endpoint.key) || !SetText(socket, ZMQ_CURVE_PUBLICKEY, pair_.public_key) ||
        !SetText(socket, ZMQ_CURVE_SECRETKEY, pair_.secret_key) ||
        !SetText(socket, ZMQ_CURVE_SERVERKEY, endpoint.key)) {
      return Failed("setting a key");
    }
    return Ok();
  }

  bool Trusts(zmq_msg_t* frame) {
    // As long as nobody has left the list since we read it first, libzmq's own check is enough.
    if (!shrunk_.load(std::memory_order_relaxed)) return true;
    const char* const key = zmq_msg_gets(frame, "User-Id");
    if (key == nullptr) return true;  // of a connection that we made
    const std::lock_guard<std::mutex> lock(mutex_);
    if (admitted_.contains(key)) return true;
    Refuse("a message of a key that is not trusted any more was not taken: " + std::string(key));
    return false;
  }

  // Empty if it is nobody of the list.
  std::string NameOf(zmq_msg_t* frame) {
    const char* const key = zmq_msg_gets(frame, "User-Id");
    if (key == nullptr) return {};
    const std::lock_guard<std::mutex> lock(mutex_);
    const TrustedKey* const known = trusted_.Find(key, WallClockMs());
    return known == nullptr ? std::string() : RoleName(known->role) + (" " + known->name);
  }

  Status LogFailures(void* socket, const std::string& name) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::string address = "inproc://ps-gate-" + std::to_string(next_monitor_++);
    if (zmq_socket_monitor(socket, address.c_str(), kHandshakeFailures) != 0) {
      return Failed("monitoring a socket");
    }
    new_monitors_.emplace_back(address, name);
    return Ok();
  }

  void NoteRefusal(const std::string& why) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Refuse(why);
  }

  const KeyPair& pair() const { return pair_; }
  std::uint64_t refused() const { return refused_.load(std::memory_order_relaxed); }

 private:
  struct Monitor {
    RawSocket socket;
    std::string name;
  };

  // Those that the list has now; under the mutex.
  std::set<std::string, std::less<>> Admitted() const {
    std::set<std::string, std::less<>> admitted;
    const std::int64_t now_ms = WallClockMs();
    for (const auto& [key, trusted] : trusted_.keys()) {
      if (trusted_.Find(key, now_ms) != nullptr) admitted.insert(key);
    }
    return admitted;
  }

  // Under the mutex.
  void Refuse(const std::string& why) {
    refused_.fetch_add(1, std::memory_order_relaxed);
    log_.Warn(why);
  }

  // Takes the file over if it has changed; what cannot be read changes nothing.
  void Look() {
    const FileState now = StateOf(path_);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (now != file_) {
      file_ = now;
      auto read = TrustedKeys::ReadFile(path_);
      if (read.ok()) {
        trusted_ = std::move(read).value();
        spdlog::info("{} was read again: {} keys are trusted", path_, trusted_.keys().size());
      } else {
        spdlog::error("{}; what was trusted still is", ErrorLine(read.error()));
      }
    }
    std::set<std::string, std::less<>> admitted = Admitted();
    for (const std::string& key : admitted_) {
      if (!admitted.contains(key)) shrunk_.store(true, std::memory_order_relaxed);
    }
    admitted_ = std::move(admitted);
  }

  void Run() {
    std::vector<std::string> frames;
    while (true) {
      TakeMonitors();
      std::vector<zmq_pollitem_t> items = {{nullptr, wake_.get(), ZMQ_POLLIN, 0},
                                           {questions_.get(), 0, ZMQ_POLLIN, 0}};
      for (const Monitor& monitor : monitors_) {
        items.push_back({monitor.socket.get(), 0, ZMQ_POLLIN, 0});
      }
      const int ready = zmq_poll(items.data(), static_cast<int>(items.size()), kLookEveryMs);
      if (ready < 0 && zmq_errno() != EINTR) break;
      if ((items[0].revents & ZMQ_POLLIN) != 0) break;
      Look();
      while (Receive(questions_.get(), frames)) Answer(frames);
      for (auto monitor = monitors_.begin(); monitor != monitors_.end();) {
        monitor = Tell(*monitor) ? std::next(monitor) : monitors_.erase(monitor);
      }
    }
    monitors_.clear();
    questions_.reset();
  }

  void TakeMonitors() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [address, name] : new_monitors_) {
      RawSocket socket = OpenSocket(context_, ZMQ_PAIR);
      if (socket == nullptr || zmq_connect(socket.get(), address.c_str()) != 0) continue;
      monitors_.push_back(Monitor{std::move(socket), name});
    }
    new_monitors_.clear();
  }

  // False: the socket is closed.
  bool Tell(const Monitor& monitor) {
    std::vector<std::string> frames;
    while (Receive(monitor.socket.get(), frames)) {
      std::uint16_t event = 0;
      if (frames[0].size() < sizeof(event)) continue;
      std::memcpy(&event, frames[0].data(), sizeof(event));
      if (event == ZMQ_EVENT_MONITOR_STOPPED) return false;
      // Those that the list refused are in the log by then.
      if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) continue;
      NoteRefusal(monitor.name + kHandshakeFailedText);
    }
    return true;
  }

  void Answer(const std::vector<std::string>& question) {
    // Version, request, domain, address, identity, mechanism, credentials.
    if (question.size() < 2) return;
    const bool curve = question.size() == 7 && question[0] == "1.0" && question[5] == "CURVE" &&
                       question[6].size() == 32;
    std::string user;
    std::string status = "400";
    if (curve) {
      const std::string key = KeyText(reinterpret_cast<const std::uint8_t*>(question[6].data()));
      const std::lock_guard<std::mutex> lock(mutex_);
      const TrustedKey* const known = trusted_.Find(key, WallClockMs());
      if (known != nullptr && DomainAdmits(question[2], known->role)) {
        user = key;
        status = "200";
      } else if (!probing_) {
        Refuse("refused " + question[3] + ": " +
               (known == nullptr ? "nobody trusts its key " + key
                                 : std::string("the ") + RoleName(known->role) + " " + known->name +
                                       " has nothing to do here"));
      }
    }
    const std::array<std::string, 6> answer = {
        "1.0", question[1], status, status == "200" ? "OK" : "refused", user, ""};
    for (std::size_t i = 0; i < answer.size(); ++i) {
      zmq_send(questions_.get(), answer[i].data(), answer[i].size(),
               ZMQ_DONTWAIT | (i + 1 < answer.size() ? ZMQ_SNDMORE : 0));
    }
  }

  const KeyPair pair_;
  void* const context_;
  const std::string path_;
  UniqueFd wake_;
  RawSocket questions_;
  std::list<Monitor> monitors_;  // the thread's

  std::mutex mutex_;
  FileState file_;
  TrustedKeys trusted_;
  std::set<std::string, std::less<>> admitted_;
  std::vector<std::pair<std::string, std::string>> new_monitors_;
  std::uint64_t next_monitor_ = 0;
  SparseLog log_{"connections or messages were refused"};
  std::atomic<bool> shrunk_{false};   // read without the mutex for each message
  std::atomic<bool> probing_{false};  // the first connection is ours
  std::atomic<std::uint64_t> refused_{0};
  std::thread thread_;
};

bool RefuseOldProtocols(void* socket) { return SetText(socket, ZMQ_ZAP_DOMAIN, "ds"); }

Context::Context(int io_threads) : context_(io_threads) {
  zmq_ctx_set(context_.handle(), ZMQ_MAX_SOCKETS, 65535);
}
Context::~Context() = default;

Status Context::Secure(const SecurityOptions& options) {
  if (!options.secure()) return Ok();
  KeyPair pair = PS_TRY(ReadKeyFile(options.key));
  const FileState file = StateOf(options.trusted);
  TrustedKeys trusted = PS_TRY(TrustedKeys::ReadFile(options.trusted));
  if (trusted.Find(pair.public_key, WallClockMs()) == nullptr) {
    return Error{ErrorId::kOwnKeyUnknown, "the own key " + pair.public_key + " (" + options.key +
                                              ") is not in " + options.trusted +
                                              ": nobody would talk to us"};
  }
  auto gate = std::make_unique<Gate>(context_.handle(), std::move(pair), std::move(trusted),
                                     options.trusted, file);
  PS_TRY(gate->Start());
  PS_TRY(gate->Probe());
  gate_ = std::move(gate);
  return Ok();
}

Status Context::Listen(void* socket, std::span<const Role> admitted) {
  return gate_ == nullptr ? Ok() : gate_->Listen(socket, admitted);
}

Status Context::LogFailures(void* socket, const std::string& name) {
  return gate_ == nullptr ? Ok() : gate_->LogFailures(socket, name);
}

void Context::NoteRefusal(const std::string& why) {
  if (gate_ != nullptr) gate_->NoteRefusal(why);
}

std::string Context::Advertised(const std::string& address) const {
  return gate_ == nullptr ? address : WithKey(address, gate_->pair().public_key);
}

Result<std::string> Context::Reach(void* socket, const std::string& endpoint,
                                   std::span<const Role> roles) {
  const KeyedEndpoint split = SplitKey(endpoint);
  if (gate_ != nullptr) {
    PS_TRY(gate_->Reach(socket, split, roles));
  } else if (!split.key.empty()) {
    return Error{ErrorId::kKeyWanted, split.address +
                                          " talks to those only that have a key "
                                          "(--key, --trusted)"};
  }
  return split.address;
}

bool Context::Trusts(zmq_msg_t* frame) { return gate_ == nullptr || gate_->Trusts(frame); }

std::string Context::Sender(zmq_msg_t* frame) {
  const char* const address = zmq_msg_gets(frame, "Peer-Address");
  const std::string at = address == nullptr ? "an unknown address" : address;
  const std::string name = gate_ == nullptr ? std::string() : gate_->NameOf(frame);
  return name.empty() ? at : "the " + name + " at " + at;
}

std::uint64_t Context::refused() const { return gate_ == nullptr ? 0 : gate_->refused(); }

}  // namespace ps::net
