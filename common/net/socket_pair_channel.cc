#include "common/net/socket_pair_channel.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <cstring>
#include <deque>
#include <vector>

#include "common/check.h"

namespace ps::net {

namespace asio = boost::asio;

namespace {

constexpr std::size_t kHeaderBytes = 4;
constexpr std::size_t kReadBytes = 64u << 10;
// A buffer that grew for one long message is given back after it.
constexpr std::size_t kKeepBytes = 1u << 20;

std::uint32_t ReadLength(const std::byte* bytes) {
  std::uint32_t length = 0;
  for (std::size_t i = 0; i < kHeaderBytes; ++i) {
    length |= static_cast<std::uint32_t>(bytes[i]) << (8 * i);
  }
  return length;
}

}  // namespace

Result<std::pair<UniqueFd, UniqueFd>> MakeSocketPair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
    return Error{ErrorCode::kIo, std::string("making a socket pair: ") + std::strerror(errno)};
  }
  return std::make_pair(UniqueFd(fds[0]), UniqueFd(fds[1]));
}

struct FrameChannel::State : std::enable_shared_from_this<FrameChannel::State> {
  State(Loop& owner, std::size_t bound)
      : loop(owner), queue_bytes_max(bound), socket(owner.context()), buffer(kReadBytes) {}

  void Read() {
    socket.async_read_some(
        asio::buffer(buffer.data() + filled, buffer.size() - filled),
        [self = shared_from_this()](const boost::system::error_code& error, std::size_t bytes) {
          if (self->closed) return;
          if (error) {
            self->Fail(error == asio::error::eof
                           ? (self->filled == 0 ? "the peer closed the channel"
                                                : "the peer closed the channel inside a message")
                           : error.message());
            return;
          }
          self->filled += bytes;
          self->Parse();
        });
  }

  void Parse() {
    std::size_t used = 0;
    while (filled - used >= kHeaderBytes) {
      const std::size_t length = ReadLength(buffer.data() + used);
      if (length > kMaxFrameBytes) {
        Fail("the peer announced a message of " + std::to_string(length) + " bytes");
        return;
      }
      if (filled - used - kHeaderBytes < length) break;
      if (on_message) on_message(std::span(buffer).subspan(used + kHeaderBytes, length));
      if (closed) return;
      used += kHeaderBytes + length;
    }
    std::memmove(buffer.data(), buffer.data() + used, filled - used);
    filled -= used;
    // The buffer grows with the bytes that have come, not with the length the peer announces.
    if (filled == buffer.size()) {
      buffer.resize(buffer.size() * 2);
    } else if (filled == 0 && buffer.size() > kKeepBytes) {
      buffer = std::vector<std::byte>(kReadBytes);
    }
    Read();
  }

  void Write() {
    if (writing || queue.empty() || closed) return;
    writing = true;
    asio::async_write(
        socket, asio::buffer(queue.front()),
        [self = shared_from_this()](const boost::system::error_code& error, std::size_t) {
          self->writing = false;
          if (self->closed) return;
          if (error) {
            // What the peer sent before it went is still read; the end comes there.
            self->broken = "writing: " + error.message();
            self->queue.clear();
            self->queued_bytes = 0;
            if (!self->started) self->Fail(self->broken);
            return;
          }
          self->queued_bytes -= self->queue.front().size();
          self->queue.pop_front();
          self->Write();
        });
  }

  void Fail(const std::string& reason) {
    Close();
    const auto call = std::move(on_closed);
    on_closed = nullptr;
    if (call) call(reason);
  }

  void Close() {
    closed = true;
    boost::system::error_code ignored;
    socket.close(ignored);
    // A write that was under way still points into the front; its handler has not run yet.
    while (queue.size() > (writing ? 1u : 0u)) queue.pop_back();
    queued_bytes = 0;
  }

  Loop& loop;
  const std::size_t queue_bytes_max;
  asio::local::stream_protocol::socket socket;
  std::vector<std::byte> buffer;
  std::size_t filled = 0;
  std::deque<std::vector<std::byte>> queue;
  std::size_t queued_bytes = 0;
  bool started = false;
  bool writing = false;
  bool closed = false;
  std::string broken;
  MessageFn on_message;
  ClosedFn on_closed;
};

Result<std::unique_ptr<FrameChannel>> FrameChannel::Open(Loop& loop, UniqueFd socket,
                                                         std::size_t queue_bytes_max) {
  loop.AssertInLoop();
  int domain = 0;
  int type = 0;
  socklen_t size = sizeof(int);
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 ||
      ::getsockopt(socket.get(), SOL_SOCKET, SO_TYPE, &type, &size) != 0 || domain != AF_UNIX ||
      type != SOCK_STREAM) {
    return Error{ErrorCode::kInvalid,
                 "descriptor " + std::to_string(socket.get()) + " is no Unix stream socket"};
  }
  auto state = std::make_shared<State>(loop, queue_bytes_max);
  boost::system::error_code error;
  state->socket.assign(asio::local::stream_protocol(), socket.get(), error);
  if (error) return Error{ErrorCode::kInternal, "watching a socket pair: " + error.message()};
  (void)socket.Release();
  return std::make_unique<FrameChannel>(Private(), std::move(state));
}

FrameChannel::FrameChannel(Private, std::shared_ptr<State> state) : state_(std::move(state)) {}

FrameChannel::~FrameChannel() {
  state_->loop.AssertInLoop();
  if (!state_->closed) state_->Close();
}

void FrameChannel::OnMessage(MessageFn fn) { state_->on_message = std::move(fn); }
void FrameChannel::OnClosed(ClosedFn fn) { state_->on_closed = std::move(fn); }

void FrameChannel::Start() {
  state_->loop.AssertInLoop();
  PS_CHECK(!state_->started, "Start is called once");
  state_->started = true;
  if (!state_->closed) state_->Read();
}

Status FrameChannel::Send(std::span<const std::byte> message) {
  State& state = *state_;
  state.loop.AssertInLoop();
  if (state.closed || !state.broken.empty()) {
    return Error{ErrorCode::kClosed, "the channel is closed"};
  }
  if (message.size() > kMaxFrameBytes) {
    return Error{ErrorCode::kInvalid,
                 "a message of " + std::to_string(message.size()) + " bytes is too long"};
  }
  const std::size_t total = kHeaderBytes + message.size();
  if (total > state.queue_bytes_max || state.queued_bytes > state.queue_bytes_max - total) {
    return Error{
        ErrorCode::kUnreachable,
        "the peer does not read: " + std::to_string(state.queued_bytes) + " bytes wait for it"};
  }
  std::vector<std::byte> frame(total);
  for (std::size_t i = 0; i < kHeaderBytes; ++i) {
    frame[i] = static_cast<std::byte>(message.size() >> (8 * i));
  }
  if (!message.empty()) std::memcpy(frame.data() + kHeaderBytes, message.data(), message.size());
  state.queued_bytes += total;
  state.queue.push_back(std::move(frame));
  state.Write();
  return Ok();
}

std::size_t FrameChannel::queued_bytes() const { return state_->queued_bytes; }
bool FrameChannel::closed() const { return state_->closed; }

}  // namespace ps::net
