#include "common/net/control_client.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/error_id.h"

namespace ps::net {

struct ControlClient::State {
  State(Loop& owner, net::Context& ctx, RegistrationFn make_registration,
        ControlClientOptions client_options)
      : loop(owner),
        context(ctx),
        registration(std::move(make_registration)),
        options(client_options),
        heartbeat(client_options.heartbeat),
        timer(owner) {}

  void Open() {
    socket.reset();
    connected = false;
    registered = false;
    register_sent = false;
    if (endpoint.empty()) {
      timer.Cancel();
      return;
    }
    const Status opened = TryOpen();
    if (!opened.ok()) {
      spdlog::warn("control connection to {}: {}", endpoint, opened.error().message);
      socket.reset();
    }
    // Also what tries again when opening failed.
    Expect(options.welcome_timeout);
  }

  Status TryOpen() {
    ZmqOptions zmq_options;
    zmq_options.name = "the coordinator at " + endpoint;
    zmq_options.max_frame_bytes = static_cast<std::int64_t>(control::kMaxMessageBytes);
    zmq_options.frames_max = 1;
    zmq_options.peers = {Role::kCoordinator};
    socket = PS_TRY(ZmqSocket::Open(loop, context, ZmqKind::kDealer, zmq_options));
    socket->OnReceive([this](ZmqSocket::Frames&& frames) { Receive(frames[0]); });
    PS_TRY(socket->OnConnection([this](bool up) {
      connected = up;
      registered = false;
      register_sent = false;
      if (up) Register();
    }));
    return socket->Connect(endpoint);
  }

  void Register() {
    if (!socket) return;
    const Status sent = SendNow(registration());
    register_sent = sent.ok();
    if (!sent.ok()) spdlog::warn("registering: {}", sent.error().message);
    Expect(options.welcome_timeout);
  }

  Status SendNow(const control::MessageT& message) {
    ZmqSocket::Frames frames;
    auto bytes = control::Encode(message);
    if (bytes.size() > control::kMaxMessageBytes) {
      return Error{ErrorId::kMessageTooLong,
                   std::string(control::BodyName(message)) + " is too long to be sent"};
    }
    frames.push_back(TakeFrame(std::move(bytes)));
    return socket->Send(std::move(frames));
  }

  // Something must come from the leader within this time.
  void Expect(Milliseconds time) {
    timer.After(time, [this] { Silent(); });
  }

  void Silent() {
    if (!socket || registered) {
      if (registered) {
        spdlog::warn("the coordinator at {} sent no ping for {} heartbeats: connecting anew",
                     endpoint, options.missed_heartbeats);
      }
      Open();
      return;
    }
    if (connected) {
      Register();
    } else {
      Expect(options.welcome_timeout);
    }
  }

  void Receive(const zmq::message_t& frame) {
    auto decoded =
        control::Decode(std::span(static_cast<const std::byte*>(frame.data()), frame.size()));
    if (!decoded.ok()) {
      ++bad_messages;
      return;
    }
    control::MessageT message = std::move(decoded).value();
    std::uint64_t epoch = message.leader_epoch;
    const auto* const welcome = message.body.AsWelcome();
    if (welcome != nullptr) epoch = std::max(epoch, welcome->leader_epoch);
    if (epoch < leader_epoch) {
      ++stale_messages;
      return;
    }
    leader_epoch = epoch;
    if (welcome != nullptr) {
      if (welcome->heartbeat_ms > 0) heartbeat = Milliseconds(welcome->heartbeat_ms);
      registered = true;
      ExpectPing();
    } else if (const auto* const ping = message.body.AsPing()) {
      Answer(*ping, message.task);
      if (registered) ExpectPing();
      return;
    }
    if (on_message) on_message(std::move(message));
  }

  void ExpectPing() { Expect(heartbeat * options.missed_heartbeats); }

  void Answer(const control::PingT& ping, std::uint64_t task) {
    control::PongT pong;
    pong.sent_ms = ping.sent_ms;
    // A lost Pong is a missed beat, which the coordinator notices by itself.
    (void)SendNow(control::Make(std::move(pong), task, leader_epoch)).ok();
  }

  Loop& loop;
  net::Context& context;
  const RegistrationFn registration;
  const ControlClientOptions options;
  Milliseconds heartbeat;
  MessageFn on_message;
  std::string endpoint;
  std::uint64_t leader_epoch = 0;
  std::uint64_t stale_messages = 0;
  std::uint64_t bad_messages = 0;
  bool connected = false;
  bool register_sent = false;
  bool registered = false;
  Timer timer;
  // Last: its callbacks use all of the above.
  std::unique_ptr<ZmqSocket> socket;
};

ControlClient::ControlClient(Loop& loop, net::Context& context, RegistrationFn registration,
                             ControlClientOptions options)
    : state_(std::make_unique<State>(loop, context, std::move(registration), options)) {
  PS_CHECK(options.heartbeat.count() > 0 && options.missed_heartbeats > 0 &&
           options.welcome_timeout.count() > 0);
}

ControlClient::~ControlClient() { state_->loop.AssertInLoop(); }

void ControlClient::OnMessage(MessageFn fn) { state_->on_message = std::move(fn); }

void ControlClient::SetEndpoint(const std::string& endpoint) {
  state_->loop.AssertInLoop();
  if (endpoint == state_->endpoint) return;
  state_->endpoint = endpoint;
  state_->Open();
}

Status ControlClient::Send(const control::MessageT& message) {
  state_->loop.AssertInLoop();
  if (state_->endpoint.empty()) {
    return Error{ErrorId::kNoLeader, "no coordinator leads now"};
  }
  if (!state_->socket || !state_->register_sent) {
    return Error{ErrorCode::kUnreachable,
                 "not connected to the coordinator at " + state_->endpoint};
  }
  return state_->SendNow(message);
}

bool ControlClient::registered() const { return state_->registered; }
std::uint64_t ControlClient::leader_epoch() const { return state_->leader_epoch; }
std::uint64_t ControlClient::stale_messages() const { return state_->stale_messages; }
std::uint64_t ControlClient::bad_messages() const { return state_->bad_messages; }

}  // namespace ps::net
