#include "common/net/zmq_socket.h"

#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cerrno>
#include <cstring>
#include <map>
#include <utility>

#include "common/error_id.h"

namespace ps::net {

namespace asio = boost::asio;

namespace {

std::string ErrnoText() { return zmq_strerror(zmq_errno()); }

// Watches one libzmq socket on the loop.
//
// ZMQ_FD is edge-triggered towards libzmq's own state: it becomes readable when a command arrives,
// and *any* call on the socket may consume that command. So readiness is never concluded from the
// descriptor alone: after each wake-up and each send ZMQ_EVENTS is asked again.
class Watched {
 public:
  // Takes the handle over.
  Watched(asio::io_context& io, void* handle) : handle_(handle), descriptor_(io) {}
  ~Watched() {
    // The descriptor is libzmq's to close.
    if (descriptor_.is_open()) descriptor_.release();
    zmq_close(handle_);
  }
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

  Status Watch() {
    int fd = -1;
    std::size_t size = sizeof(fd);
    if (zmq_getsockopt(handle_, ZMQ_FD, &fd, &size) != 0) {
      return Error{ErrorCode::kInternal, "watching a ZeroMQ socket: " + ErrnoText()};
    }
    boost::system::error_code error;
    descriptor_.assign(fd, error);
    if (error) return Error{ErrorCode::kInternal, "watching a ZeroMQ socket: " + error.message()};
    return Ok();
  }

  // ZMQ_POLLIN | ZMQ_POLLOUT; 0 when the context is being ended.
  int Events() {
    int events = 0;
    std::size_t size = sizeof(events);
    return zmq_getsockopt(handle_, ZMQ_EVENTS, &events, &size) == 0 ? events : 0;
  }

  template <typename Fn>
  void AsyncWait(Fn fn) {
    descriptor_.async_wait(asio::posix::stream_descriptor::wait_read, std::move(fn));
  }

  void* handle() { return handle_; }

 private:
  void* const handle_;
  asio::posix::stream_descriptor descriptor_;
};

// Receives one whole message. 0: none is there; 1: `frames` holds it; -1: it had too many frames.
int ReceiveMessage(void* handle, std::size_t frames_max, ZmqSocket::Frames& frames) {
  frames.clear();
  bool too_many = false;
  while (true) {
    zmq::message_t frame;
    int received;
    do {
      received = zmq_msg_recv(frame.handle(), handle, ZMQ_DONTWAIT);
    } while (received < 0 && zmq_errno() == EINTR);
    // libzmq shows the frames of a message only once all are there.
    if (received < 0) return 0;
    const bool more = frame.more();
    if (frames.size() < frames_max) {
      frames.push_back(std::move(frame));
    } else {
      too_many = true;
    }
    if (!more) return too_many ? -1 : 1;
  }
}

// 0, or the error.
int TrySend(void* handle, zmq::message_t& frame, int flags) {
  while (zmq_msg_send(frame.handle(), handle, flags) < 0) {
    if (zmq_errno() != EINTR) return zmq_errno();
  }
  return 0;
}

struct Option {
  int name;
  int value;
};

std::string NextMonitorAddress() {
  static std::atomic<std::uint64_t> next{0};  // atomic: sockets are opened on several loops
  return "inproc://ps-monitor-" + std::to_string(next.fetch_add(1));
}

}  // namespace

struct ZmqSocket::State : std::enable_shared_from_this<ZmqSocket::State> {
  State(Loop& owner, net::Context& ctx, ZmqKind socket_kind, ZmqOptions socket_options)
      : loop(owner), context(ctx), kind(socket_kind), options(std::move(socket_options)) {}

  const char* PeerName() const {
    return options.name.empty() ? endpoint.c_str() : options.name.c_str();
  }

  void WaitOnMain() {
    if (waiting || closed) return;
    waiting = true;
    main->AsyncWait([self = shared_from_this()](const boost::system::error_code& error) {
      self->waiting = false;
      if (error || self->closed) return;
      self->Drain();
    });
  }

  // At most one drain is posted at a time.
  void PostDrain() {
    if (drain_posted || closed) return;
    drain_posted = true;
    loop.Post([self = shared_from_this()] {
      self->drain_posted = false;
      if (!self->closed) self->Drain();
    });
  }

  void Drain() {
    const auto self = shared_from_this();  // the callback may destroy the ZmqSocket
    Frames frames;
    draining = true;
    for (int turn = 0; turn < options.messages_per_turn; ++turn) {
      const int received = ReceiveMessage(main->handle(), options.frames_max, frames);
      if (received == 0) break;
      if (received < 0) {
        ++dropped;
        continue;
      }
      if (!context.Trusts(frames.back().handle())) continue;
      if (on_peer_lost && frames.size() > 1) {
        const int fd = zmq_msg_get(frames.back().handle(), ZMQ_SRCFD);
        if (fd >= 0) peers[fd].assign(frames[0].data<char>(), frames[0].size());
      }
      if (on_receive) on_receive(std::move(frames));
      if (closed) return;
    }
    draining = false;
    Recheck();
  }

  // Arms the wait, or posts another drain when libzmq holds more already.
  void Recheck() {
    if (draining) return;  // Drain() does it at its end
    const int events = main->Events();
    if (on_writable && (events & ZMQ_POLLOUT) != 0 && !writable_posted) {
      writable_posted = true;
      loop.Post([self = shared_from_this()] {
        self->writable_posted = false;
        if (self->closed || !self->on_writable) return;
        const auto call = std::exchange(self->on_writable, nullptr);
        call();
      });
    }
    if ((events & ZMQ_POLLIN) != 0) {
      PostDrain();
    } else {
      WaitOnMain();
    }
  }

  // A handshake that came to nothing.
  void Refused(std::uint16_t event) {
    const bool dealer = kind == ZmqKind::kDealer;
    // The list's own refusals are in the log with the key.
    if (!dealer && event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) return;
    context.NoteRefusal(std::string(PeerName()) +
                        (!dealer ? kHandshakeFailedText
                         : event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH
                             ? " does not trust our key"
                             : ": the handshake failed; it has another key than the one that is "
                               "announced, or none"));
  }

  Status Monitor(int events) {
    PS_CHECK(!monitor, "a socket is monitored once");
    if (context.secure()) events |= kHandshakeFailures;
    const std::string address = NextMonitorAddress();
    if (zmq_socket_monitor(main->handle(), address.c_str(), events) != 0) {
      return Error{ErrorCode::kInternal, "monitoring a ZeroMQ socket: " + ErrnoText()};
    }
    void* const pair = zmq_socket(context.handle(), ZMQ_PAIR);
    if (pair == nullptr) {
      return Error{ErrorCode::kInternal, "opening a ZeroMQ monitor: " + ErrnoText()};
    }
    auto watched = std::make_unique<Watched>(loop.context(), pair);
    const int no_linger = 0;
    if (zmq_setsockopt(pair, ZMQ_LINGER, &no_linger, sizeof(no_linger)) != 0 ||
        zmq_connect(pair, address.c_str()) != 0) {
      return Error{ErrorCode::kInternal, "connecting a ZeroMQ monitor: " + ErrnoText()};
    }
    PS_TRY(watched->Watch());
    monitor = std::move(watched);
    // Connecting leaves libzmq's mailbox active: its descriptor stays silent until it is asked.
    PostMonitorDrain();
    return Ok();
  }

  void WaitOnMonitor() {
    if (closed || !monitor) return;
    monitor->AsyncWait([self = shared_from_this()](const boost::system::error_code& error) {
      if (error || self->closed) return;
      self->DrainMonitor();
    });
  }

  void PostMonitorDrain() {
    loop.Post([self = shared_from_this()] {
      if (!self->closed) self->DrainMonitor();
    });
  }

  void DrainMonitor() {
    const auto self = shared_from_this();
    Frames frames;
    for (int turn = 0; turn < options.messages_per_turn; ++turn) {
      const int received = ReceiveMessage(monitor->handle(), 2, frames);
      if (received == 0) break;
      if (received < 0 || frames.empty() || frames[0].size() < sizeof(std::uint16_t)) continue;
      std::uint16_t event = 0;
      std::memcpy(&event, frames[0].data(), sizeof(event));
      if ((event & kHandshakeFailures) != 0) {
        Refused(event);
        continue;
      }
      if (on_peer_lost) {
        std::uint32_t fd = 0;
        if (frames[0].size() < sizeof(event) + sizeof(fd)) continue;
        std::memcpy(&fd, frames[0].data<char>() + sizeof(event), sizeof(fd));
        const auto peer = peers.extract(static_cast<int>(fd));
        if (!peer.empty()) on_peer_lost(peer.mapped());
        if (closed) return;
        continue;
      }
      const bool up = event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED;
      // A connection that broke before its handshake was never reported as up.
      if (!up && !connected) continue;
      connected = up;
      on_connection(up);
      if (closed) return;
    }
    if ((monitor->Events() & ZMQ_POLLIN) != 0) {
      PostMonitorDrain();
    } else {
      WaitOnMonitor();
    }
  }

  void Close() {
    closed = true;
    // The callbacks stay until the state goes: one of them may be what is running.
    if (monitor) zmq_socket_monitor(main->handle(), nullptr, 0);
    monitor.reset();
    main.reset();
  }

  Loop& loop;
  net::Context& context;
  const ZmqKind kind;
  const ZmqOptions options;
  std::unique_ptr<Watched> main;
  std::unique_ptr<Watched> monitor;
  std::string endpoint = "no endpoint";
  std::function<void(Frames&&)> on_receive;
  std::function<void(bool)> on_connection;
  std::function<void(const std::string&)> on_peer_lost;
  std::map<int, std::string> peers;  // with on_peer_lost: identity by descriptor
  std::function<void()> on_writable;
  std::uint64_t dropped = 0;
  bool closed = false;
  bool connected = false;
  bool waiting = false;
  bool drain_posted = false;
  bool draining = false;  // inside Drain()
  bool writable_posted = false;
};

Result<std::unique_ptr<ZmqSocket>> ZmqSocket::Open(Loop& loop, net::Context& context, ZmqKind kind,
                                                   ZmqOptions options) {
  loop.AssertInLoop();
  if (options.send_high_water <= 0 || options.receive_high_water <= 0 || options.linger_ms < 0 ||
      options.max_frame_bytes <= 0 || options.messages_per_turn <= 0) {
    return Error{ErrorCode::kInternal, "ZeroMQ socket options without a bound"};
  }
  const bool dealer = kind == ZmqKind::kDealer;
  void* const handle = zmq_socket(context.handle(), dealer ? ZMQ_DEALER : ZMQ_ROUTER);
  if (handle == nullptr) {
    return Error{ErrorCode::kInternal, "opening a ZeroMQ socket: " + ErrnoText() +
                                           " (limit of descriptors: see ulimit -n)"};
  }
  auto state = std::make_shared<State>(loop, context, kind, std::move(options));
  state->main = std::make_unique<Watched>(loop.context(), handle);
  const ZmqOptions& o = state->options;
  const int role = dealer ? ZMQ_IMMEDIATE : ZMQ_ROUTER_MANDATORY;
  const int role_value = dealer ? static_cast<int>(o.immediate) : 1;
  const Option ints[] = {
      {ZMQ_LINGER, o.linger_ms},
      {ZMQ_SNDHWM, o.send_high_water},
      {ZMQ_RCVHWM, o.receive_high_water},
      {ZMQ_HEARTBEAT_IVL, o.heartbeat_interval_ms},
      {ZMQ_HEARTBEAT_TIMEOUT, o.heartbeat_timeout_ms},
      {ZMQ_HANDSHAKE_IVL, o.handshake_timeout_ms},
      {ZMQ_CONNECT_TIMEOUT, o.connect_timeout_ms},
      {ZMQ_RECONNECT_IVL, o.reconnect_interval_ms},
      {ZMQ_RECONNECT_IVL_MAX, o.reconnect_interval_max_ms},
      {ZMQ_BACKLOG, 1024},
      {role, role_value},
  };
  bool set =
      zmq_setsockopt(handle, ZMQ_MAXMSGSIZE, &o.max_frame_bytes, sizeof(o.max_frame_bytes)) == 0;
  set = set && RefuseOldProtocols(handle);
  for (const Option& option : ints) {
    set = set && zmq_setsockopt(handle, option.name, &option.value, sizeof(option.value)) == 0;
  }
  if (!set) return Error{ErrorCode::kInternal, "setting a ZeroMQ option: " + ErrnoText()};
  PS_TRY(state->main->Watch());
  return std::make_unique<ZmqSocket>(Private(), std::move(state));
}

ZmqSocket::ZmqSocket(Private, std::shared_ptr<State> state) : state_(std::move(state)) {}

ZmqSocket::~ZmqSocket() {
  state_->loop.AssertInLoop();
  state_->Close();
}

Result<std::string> ZmqSocket::Bind(const std::string& endpoint) {
  state_->loop.AssertInLoop();
  void* const handle = state_->main->handle();
  state_->endpoint = endpoint;
  PS_TRY(state_->context.Listen(handle, state_->options.admits));
  if (!state_->monitor) PS_TRY(state_->context.LogFailures(handle, state_->PeerName()));
  if (zmq_bind(handle, endpoint.c_str()) != 0) {
    const auto id = zmq_errno() == EADDRINUSE ? ErrorId::kPortTaken : ErrorId::kAddressUnusable;
    return Error{id, "cannot listen on " + endpoint + ": " + ErrnoText()};
  }
  std::array<char, 512> real{};
  std::size_t size = real.size();
  if (zmq_getsockopt(handle, ZMQ_LAST_ENDPOINT, real.data(), &size) != 0) {
    return Error{ErrorCode::kInternal, "asking for the endpoint of a socket: " + ErrnoText()};
  }
  state_->endpoint = state_->context.Advertised(real.data());
  state_->Recheck();
  return state_->endpoint;
}

Status ZmqSocket::Connect(const std::string& endpoint) {
  state_->loop.AssertInLoop();
  void* const handle = state_->main->handle();
  state_->endpoint = PS_TRY(state_->context.Reach(handle, endpoint, state_->options.peers));
  if (zmq_connect(handle, state_->endpoint.c_str()) != 0) {
    return Error{ErrorCode::kInvalid, "cannot connect to " + endpoint + ": " + ErrnoText()};
  }
  state_->Recheck();
  return Ok();
}

void ZmqSocket::OnReceive(std::function<void(Frames&&)> fn) {
  state_->loop.AssertInLoop();
  state_->on_receive = std::move(fn);
}

Status ZmqSocket::OnConnection(std::function<void(bool)> fn) {
  state_->loop.AssertInLoop();
  PS_TRY(state_->Monitor(ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED));
  state_->on_connection = std::move(fn);
  return Ok();
}

Status ZmqSocket::OnPeerLost(std::function<void(const std::string&)> fn) {
  state_->loop.AssertInLoop();
  PS_CHECK(state_->kind == ZmqKind::kRouter, "only a ROUTER has peers with identities");
  PS_TRY(state_->Monitor(ZMQ_EVENT_DISCONNECTED));
  state_->on_peer_lost = std::move(fn);
  return Ok();
}

void ZmqSocket::OnWritable(std::function<void()> fn) {
  state_->loop.AssertInLoop();
  state_->on_writable = std::move(fn);
  state_->Recheck();
}

Status ZmqSocket::Send(Frames&& frames) {
  State& state = *state_;
  state.loop.AssertInLoop();
  PS_CHECK(!frames.empty(), "a message has a frame");
  void* const handle = state.main->handle();
  int failed = 0;
  for (std::size_t i = 0; i < frames.size(); ++i) {
    const int flags = ZMQ_DONTWAIT | (i + 1 < frames.size() ? ZMQ_SNDMORE : 0);
    int error = TrySend(handle, frames[i], flags);
    // libzmq looks for news of its I/O threads only now and then while sending; asking for the
    // events makes it look, so that a connection or room that is already there is used.
    if (error != 0 && i == 0 && (state.main->Events() & ZMQ_POLLOUT) != 0) {
      error = TrySend(handle, frames[i], flags);
    }
    if (error == 0) continue;
    failed = error;
    // Nothing went out yet. Later the rest must follow even so, or libzmq takes the frames of the
    // next message for it.
    if (i == 0) break;
  }
  state.Recheck();
  if (failed == 0) return Ok();
  if (failed == EHOSTUNREACH) {
    return Error{ErrorCode::kNotFound, std::string("no peer with this identity on ") +
                                           state.PeerName() + " (it disconnected)"};
  }
  if (failed == EAGAIN) {
    return Error{ErrorCode::kUnreachable,
                 state.kind == ZmqKind::kDealer
                     ? std::string(state.PeerName()) + " is not connected or overloaded (" +
                           std::to_string(state.options.send_high_water) + " messages wait)"
                     : std::string("a peer of ") + state.PeerName() + " is overloaded (" +
                           std::to_string(state.options.send_high_water) + " messages wait)"};
  }
  return Error{ErrorCode::kInternal,
               std::string("sending to ") + state.PeerName() + ": " + zmq_strerror(failed)};
}

std::uint64_t ZmqSocket::dropped_messages() const { return state_->dropped; }

std::string EndpointWithHost(const std::string& bound_endpoint, const std::string& host) {
  const auto [bound, key] = SplitKey(bound_endpoint);
  const auto colon = bound.rfind(':');
  if (bound.rfind("tcp://", 0) != 0 || colon == std::string::npos) return bound_endpoint;
  const bool bare_ipv6 = host.find(':') != std::string::npos && host.front() != '[';
  return WithKey("tcp://" + (bare_ipv6 ? "[" + host + "]" : host) + bound.substr(colon), key);
}

zmq::message_t CopyFrame(const void* data, std::size_t size) { return zmq::message_t(data, size); }

zmq::message_t TakeFrame(std::vector<std::byte> bytes) {
  if (bytes.empty()) return zmq::message_t();
  auto owned = std::make_unique<std::vector<std::byte>>(std::move(bytes));
  auto* const raw = owned.get();
  zmq::message_t frame(
      raw->data(), raw->size(),
      [](void*, void* hint) {
        const std::unique_ptr<std::vector<std::byte>> freed(
            static_cast<std::vector<std::byte>*>(hint));
      },
      owned.release());
  return frame;
}

}  // namespace ps::net
