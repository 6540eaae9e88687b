#include "ps-server/shell/lane.h"

#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "common/error_id.h"
#include "common/net/context.h"
#include "common/net/loop.h"
#include "ps-server/shell/huge_page_memory.h"

namespace ps::server {
namespace {

// Received before commands and the status have their turn.
constexpr int kMessagesPerTurn = 64;
constexpr std::size_t kFramesMax = 3;
constexpr std::array<net::Role, 1> kServers = {net::Role::kServer};
// So much is handled before what was answered is sent: enough to answer small pushes together, too
// little to keep the sender of a large one waiting.
constexpr std::size_t kAnswerAfterBytes = std::size_t{64} << 10;
// Below this a copy costs less than the hand-over of a buffer.
constexpr std::size_t kCopyBelow = 512;
constexpr std::int64_t kChainTickMs = 25;
// Messages queued for the next member of a chain.
constexpr int kChainHighWater = 4096;

std::span<const std::byte> BytesOf(const zmq::message_t& frame) {
  return {static_cast<const std::byte*>(frame.data()), frame.size()};
}

// The buffer goes back to its pool when libzmq has sent it.
zmq::message_t FrameOf(PooledBuffer buffer) {
  if (buffer.size() < kCopyBelow) return zmq::message_t(buffer.data(), buffer.size());
  void* const data = buffer.data();
  const std::size_t size = buffer.size();
  return zmq::message_t(
      data, size, [](void*, void* hint) { PooledBuffer::Attach(hint).Reset(); }, buffer.Detach());
}

int SendFrame(zmq::message_t& frame, void* socket, int flags) {
  int sent;
  do {
    sent = zmq_msg_send(frame.handle(), socket, flags | ZMQ_DONTWAIT);
  } while (sent < 0 && zmq_errno() == EINTR);
  return sent;
}

}  // namespace

Lane::Lane(Private, net::Context& context, LaneOptions options, EventFn on_event)
    : context_(context),
      options_(std::move(options)),
      on_event_(std::move(on_event)),
      core_(LaneMemory{options_.row_hash_seed, [] { return std::make_shared<HugePageMemory>(); }},
            options_.image_rate),
      last_round_ms_(net::MonotonicMs()) {}

Result<std::unique_ptr<Lane>> Lane::Start(net::Context& context, LaneOptions options,
                                          EventFn on_event) {
  auto lane = std::make_unique<Lane>(Private(), context, std::move(options), std::move(on_event));
  lane->wake_ = net::UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  lane->socket_.reset(zmq_socket(context.handle(), ZMQ_ROUTER));
  if (!lane->wake_.valid() || lane->socket_ == nullptr) {
    return Error{ErrorCode::kInternal,
                 std::string("a lane's socket cannot be opened: ") + zmq_strerror(zmq_errno())};
  }
  void* const socket = lane->socket_.get();
  const std::array<std::pair<int, int>, 8> ints = {{
      {ZMQ_LINGER, 0},
      {ZMQ_SNDHWM, lane->options_.send_high_water},
      {ZMQ_RCVHWM, lane->options_.receive_high_water},
      // Without it libzmq drops silently what it cannot route or queue; with it we can count.
      {ZMQ_ROUTER_MANDATORY, 1},
      {ZMQ_HEARTBEAT_IVL, 2000},
      {ZMQ_HEARTBEAT_TIMEOUT, 15000},
      {ZMQ_HANDSHAKE_IVL, 5000},
      {ZMQ_BACKLOG, 1024},
  }};
  const std::int64_t frame_bytes_max = static_cast<std::int64_t>(wire::kMaxPayloadBytes);
  bool set =
      zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &frame_bytes_max, sizeof(frame_bytes_max)) == 0 &&
      net::RefuseOldProtocols(socket);
  for (const auto& option : ints) {
    set = set && zmq_setsockopt(socket, option.first, &option.second, sizeof(option.second)) == 0;
  }
  if (!set) {
    return Error{ErrorCode::kInternal,
                 std::string("a lane's socket cannot be set up: ") + zmq_strerror(zmq_errno())};
  }
  const std::array<net::Role, 2> admitted = {net::Role::kWorker, net::Role::kServer};
  PS_TRY(context.Listen(socket, admitted));
  PS_TRY(context.LogFailures(socket, "lane " + std::to_string(lane->options_.number)));
  if (zmq_bind(socket, lane->options_.bind.c_str()) != 0) {
    return Error{zmq_errno() == EADDRINUSE ? ErrorId::kPortTaken : ErrorId::kOptionValue,
                 "cannot listen on " + lane->options_.bind + ": " + zmq_strerror(zmq_errno())};
  }
  std::array<char, 512> real{};
  std::size_t size = real.size();
  if (zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, real.data(), &size) != 0) {
    return Error{ErrorCode::kInternal, "a lane does not know its own endpoint"};
  }
  lane->endpoint_ = context.Advertised(real.data());
  size = sizeof(lane->socket_fd_);
  if (zmq_getsockopt(socket, ZMQ_FD, &lane->socket_fd_, &size) != 0) {
    return Error{ErrorCode::kInternal, "a lane's socket cannot be waited for"};
  }
  lane->thread_ = std::thread([raw = lane.get()] { raw->Run(); });
  return lane;
}

Lane::~Lane() {
  stopping_ = true;
  if (wake_.valid()) ::eventfd_write(wake_.get(), 1);
  if (thread_.joinable()) thread_.join();
}

Status Lane::Post(Command command) {
  {
    const std::lock_guard lock(mutex_);
    if (commands_.size() >= kCommandsMax) {
      return Error{ErrorCode::kUnreachable, "lane " + std::to_string(options_.number) +
                                                " does not keep up with its commands"};
    }
    commands_.push_back(std::move(command));
  }
  ::eventfd_write(wake_.get(), 1);
  return Ok();
}

LaneStatus Lane::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

void Lane::Run() {
  std::int64_t next_status_ms = 0;
  bool more = false;
  while (!stopping_) {
    const std::int64_t now_ms = net::MonotonicMs();
    last_round_ms_.store(now_ms, std::memory_order_relaxed);
    if (now_ms >= next_status_ms) {
      PublishStatus();
      next_status_ms = now_ms + options_.status_interval_ms;
    }
    std::int64_t wake_ms = next_status_ms;
    if (core_.has_chains()) {
      if (now_ms >= next_chain_tick_ms_) {
        next_chain_tick_ms_ = now_ms + kChainTickMs;
        core_.Tick(now_ms);
        // What was sent may have taken the news that a descriptor had.
        more = Flush() || more;
      }
      wake_ms = std::min(wake_ms, next_chain_tick_ms_);
    }
    Wait(more ? 0 : wake_ms - now_ms);
    more = ReceiveSome();
  }
  chains_.clear();
  socket_.reset();
}

// libzmq's descriptor tells of news once, and any call on the socket may take them: the socket is
// only waited for when the last thing it said was that there is no message.
void Lane::Wait(std::int64_t timeout_ms) {
  polled_.assign({{wake_.get(), POLLIN, 0}, {socket_fd_, POLLIN, 0}});
  for (const auto& [endpoint, chain] : chains_) polled_.push_back({chain.fd, POLLIN, 0});
  std::vector<pollfd>& items = polled_;
  const nfds_t count = timeout_ms > 0 ? items.size() : 1;
  if (::poll(items.data(), count, static_cast<int>(timeout_ms)) <= 0) return;
  if ((items[0].revents & POLLIN) == 0) return;
  eventfd_t ignored;
  ::eventfd_read(wake_.get(), &ignored);
  RunCommands();
}

void Lane::RunCommands() {
  std::vector<Command> commands;
  {
    const std::lock_guard lock(mutex_);
    commands.swap(commands_);
  }
  for (const Command& command : commands) {
    command(core_);
    Flush();
  }
  if (!commands.empty()) {
    CloseIdleChains();
    PublishStatus();
  }
}

bool Lane::ReceiveSome() {
  for (int turn = 0; turn < kMessagesPerTurn;) {
    if (ReceiveOne()) {
      ++turn;
      if (unanswered_bytes_ >= kAnswerAfterBytes) Flush();
    } else {
      const bool chained = ReceiveFromChains();
      if (!Flush() && !chained) return false;
      if (chained) ++turn;
    }
  }
  Flush();
  return true;
}

bool Lane::ReceiveOne() {
  std::array<zmq::message_t, kFramesMax> frames;
  std::size_t count = 0;
  bool more = true;
  while (more) {
    zmq::message_t frame;
    int received;
    do {
      received = zmq_msg_recv(frame.handle(), socket_.get(), ZMQ_DONTWAIT);
    } while (received < 0 && zmq_errno() == EINTR);
    // libzmq shows the frames of a message only once all are there.
    if (received < 0) {
      if (zmq_errno() == ETERM) stopping_ = true;
      return false;
    }
    more = frame.more();
    if (count < kFramesMax) frames[count] = std::move(frame);
    ++count;
  }
  ++messages_;
  if (!context_.Trusts(frames[0].handle())) return true;
  if (count < 2 || count > kFramesMax) {
    ++bad_framing_;
    return true;
  }
  const std::span<const std::byte> payload =
      count == 3 ? BytesOf(frames[2]) : std::span<const std::byte>();
  const auto identity = BytesOf(frames[0]);
  unanswered_bytes_ += frames[1].size() + payload.size();
  core_.OnMessage(std::string_view(reinterpret_cast<const char*>(identity.data()), identity.size()),
                  BytesOf(frames[1]), payload);
  if (const auto job = core_.TakeDenied(); job.has_value()) {
    refusals_.Warn("lane " + std::to_string(options_.number) + ": " +
                   context_.Sender(frames[0].handle()) + " asked for something of job " +
                   std::to_string(job->value()) + " without the token of that job");
  }
  return true;
}

bool Lane::Flush() {
  unanswered_bytes_ = 0;
  // The next members of chains first: answers wait for theirs.
  const bool chained = core_.has_chains() && SendToChains();
  core_.TakeReplies(replies_);
  for (LaneReply& reply : replies_) SendReply(reply);
  if (core_.has_events()) {
    std::vector<LaneEvent> events = core_.TakeEvents();
    // Who hears of it asks for the status.
    if (core_.has_chains()) PublishStatus();
    for (LaneEvent& event : events) on_event_(std::move(event));
  }
  return !replies_.empty() || chained;
}

// ---- chains

void* Lane::ChainSocket(const std::string& endpoint) {
  const auto known = chains_.find(endpoint);
  if (known != chains_.end()) return known->second.socket.get();
  Chain chain;
  chain.socket.reset(zmq_socket(context_.handle(), ZMQ_DEALER));
  void* const socket = chain.socket.get();
  if (socket == nullptr) return nullptr;
  const std::array<std::pair<int, int>, 7> ints = {{
      {ZMQ_LINGER, 0},
      {ZMQ_SNDHWM, kChainHighWater},
      {ZMQ_RCVHWM, kChainHighWater},
      {ZMQ_RECONNECT_IVL, 50},
      {ZMQ_HEARTBEAT_IVL, 2000},
      {ZMQ_HEARTBEAT_TIMEOUT, 15000},
      {ZMQ_HANDSHAKE_IVL, 5000},
  }};
  bool set = net::RefuseOldProtocols(socket);
  for (const auto& option : ints) {
    set = set && zmq_setsockopt(socket, option.first, &option.second, sizeof(option.second)) == 0;
  }
  std::size_t size = sizeof(chain.fd);
  set = set && zmq_getsockopt(socket, ZMQ_FD, &chain.fd, &size) == 0;
  const auto address = context_.Reach(socket, endpoint, kServers);
  if (!address.ok() && denied_.insert(endpoint).second) {
    spdlog::error("lane {}: {}", options_.number, ErrorLine(address.error()));
  }
  if (!set || !address.ok() || zmq_connect(socket, address->c_str()) != 0) return nullptr;
  return chains_.emplace(endpoint, std::move(chain)).first->second.socket.get();
}

void Lane::CloseIdleChains() {
  if (chains_.empty()) return;
  const std::vector<std::string> used = core_.ChainEndpoints();
  std::erase_if(chains_, [&](const auto& chain) {
    return !std::binary_search(used.begin(), used.end(), chain.first);
  });
}

bool Lane::SendToChains() {
  core_.TakeChainMessages(chain_messages_);
  for (ChainMessage& message : chain_messages_) {
    void* const socket = ChainSocket(message.endpoint);
    if (socket != nullptr) {
      SendToChain(socket, message);
    } else {
      ++unsent_chain_;
    }
  }
  return !chain_messages_.empty();
}

void Lane::SendToChain(void* socket, ChainMessage& message) {
  const bool with_payload = message.payload != nullptr && !message.payload->empty();
  zmq::message_t head(message.head.data(), message.head.size());
  if (SendFrame(head, socket, with_payload ? ZMQ_SNDMORE : 0) < 0) {
    ++unsent_chain_;
    return;
  }
  if (!with_payload) return;
  // The core may send the same bytes again: they are shared, and never written to.
  auto owner = std::make_unique<std::shared_ptr<const ByteBuffer>>(std::move(message.payload));
  void* const data = const_cast<std::byte*>((*owner)->data());
  const std::size_t size = (*owner)->size();
  zmq::message_t payload(
      data, size,
      [](void*, void* hint) { delete static_cast<std::shared_ptr<const ByteBuffer>*>(hint); },
      owner.release());
  SendFrame(payload, socket, 0);
}

bool Lane::ReceiveFromChains() {
  bool any = false;
  for (auto& [endpoint, chain] : chains_) {
    for (int turn = 0; turn < kMessagesPerTurn; ++turn) {
      zmq::message_t head;
      int received;
      do {
        received = zmq_msg_recv(head.handle(), chain.socket.get(), ZMQ_DONTWAIT);
      } while (received < 0 && zmq_errno() == EINTR);
      if (received < 0) break;
      any = true;
      // Answers have one frame.
      bool more = head.more();
      const bool whole = !more;
      while (more) {
        zmq::message_t frame;
        if (zmq_msg_recv(frame.handle(), chain.socket.get(), ZMQ_DONTWAIT) < 0) break;
        more = frame.more();
      }
      if (whole) {
        core_.OnChainMessage(endpoint, BytesOf(head));
      } else {
        ++bad_framing_;
      }
    }
  }
  return any;
}

void Lane::SendReply(LaneReply& reply) {
  const bool with_payload = !reply.payload.empty();
  zmq::message_t identity(reply.to.data(), reply.to.size());
  // Only the first frame can fail for want of a peer or of room; the rest follows it.
  if (SendFrame(identity, socket_.get(), ZMQ_SNDMORE) < 0) {
    if (zmq_errno() == EAGAIN) {
      ++slow_peer_;
    } else {
      ++unroutable_;
    }
    reply.payload.Reset();
    return;
  }
  zmq::message_t head(reply.head.data(), reply.head.size());
  SendFrame(head, socket_.get(), with_payload ? ZMQ_SNDMORE : 0);
  if (!with_payload) return;
  zmq::message_t payload = FrameOf(std::move(reply.payload));
  SendFrame(payload, socket_.get(), 0);
}

void Lane::PublishStatus() {
  LaneStatus status;
  status.jobs = core_.Report();
  status.counters = core_.counters();
  status.parked_pulls = core_.parked_pulls();
  status.bad_framing = bad_framing_;
  status.unroutable = unroutable_;
  status.slow_peer = slow_peer_;
  status.unsent_chain = unsent_chain_;
  status.messages = messages_;
  const std::lock_guard lock(mutex_);
  status_ = std::move(status);
}

}  // namespace ps::server
