// Messages between an agent and its task, over a Unix stream socket that the task inherits.
//
//   +--------------------+------------------+
//   | length: u32, little| length bytes     |   repeated
//   +--------------------+------------------+
//
// A length above kMaxFrameBytes closes the channel. Sends are queued up to a bound. Belongs to the
// loop's thread. Callbacks may destroy the channel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "common/net/loop.h"
#include "common/net/unique_fd.h"
#include "common/result.h"

namespace ps::net {

// A connected pair of Unix stream sockets, both close-on-exec.
Result<std::pair<UniqueFd, UniqueFd>> MakeSocketPair();

class FrameChannel {
  struct State;
  struct Private {  // makes the constructor below ours alone
    explicit Private() = default;
  };

 public:
  static constexpr std::size_t kMaxFrameBytes = std::size_t{64} << 20;
  static constexpr std::size_t kDefaultQueueBytesMax = std::size_t{128} << 20;

  using MessageFn = std::function<void(std::span<const std::byte>)>;
  using ClosedFn = std::function<void(const std::string& reason)>;

  // Takes the descriptor over. Reading starts with Start(). kInvalid if it is no Unix socket.
  static Result<std::unique_ptr<FrameChannel>> Open(
      Loop& loop, UniqueFd socket, std::size_t queue_bytes_max = kDefaultQueueBytesMax);
  // Closes without calling OnClosed. Queued bytes that the socket's buffer has no room for are
  // lost.
  ~FrameChannel();
  FrameChannel(Private, std::shared_ptr<State> state);
  FrameChannel(const FrameChannel&) = delete;
  FrameChannel& operator=(const FrameChannel&) = delete;

  // The bytes are valid only inside the call and may start at any address.
  void OnMessage(MessageFn fn);
  // Once, after the last message: the peer closed, the socket failed, or a frame was too long.
  void OnClosed(ClosedFn fn);
  void Start();

  // Copies the message into the queue. kClosed after the end; kUnreachable when the queue is full,
  // kInvalid when the message is longer than kMaxFrameBytes.
  Status Send(std::span<const std::byte> message);

  std::size_t queued_bytes() const;
  bool closed() const;

 private:
  // Shared with pending reads and writes.
  const std::shared_ptr<State> state_;
};

}  // namespace ps::net
