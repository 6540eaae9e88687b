// A ZeroMQ DEALER or ROUTER on a Loop: whole messages in a callback, non-blocking sends.
//
// The socket belongs to the loop's thread, as libzmq asks. Nothing here blocks and nothing throws.
// Bytes that are no ZMTP, frames above max_frame_bytes and messages of too many frames harm nobody:
// libzmq drops that connection, or the message is counted in dropped_messages() and left out.
//
// A received frame may start at any address (libzmq hands out pieces of its read buffer):
// copy with memcpy, never cast frame.data() to a wider type.
//
// Delivery: a message that Send() took may still be lost when the connection breaks. With
// options.immediate (the default) nothing is kept over a reconnect: who needs an answer asks again
// when OnConnection(true) or a timer says so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>
#include <zmq.hpp>

#include "common/net/context.h"
#include "common/net/loop.h"
#include "common/result.h"

namespace ps::net {

enum class ZmqKind { kDealer, kRouter };

struct ZmqOptions {
  int linger_ms = 0;              // how long a closed socket still tries to deliver; never infinite
  int send_high_water = 1000;     // messages queued per peer; 0 is refused: no bound
  int receive_high_water = 1000;  // messages queued per peer before TCP pushes back
  std::int64_t max_frame_bytes = std::int64_t{64}
                                 << 20;  // a peer that sends a longer one is cut off
  std::size_t frames_max = 16;           // a message of more is dropped and counted
  // libzmq's own pings find a peer whose host vanished. A peer cannot answer while it is in the
  // middle of a large frame or its receive queue is full: leave the timeout generous. 0: off.
  int heartbeat_interval_ms = 2000;
  int heartbeat_timeout_ms = 15000;
  int handshake_timeout_ms = 5000;  // a connection that does not speak ZMTP by then is closed
  int connect_timeout_ms = 5000;
  int reconnect_interval_ms = 100;
  int reconnect_interval_max_ms = 2000;
  bool immediate = true;       // DEALER: queue only onto a finished connection, drop when it breaks
  int messages_per_turn = 64;  // received before other work of the loop has its turn
  std::string name;            // who the peer is, for error texts; the endpoint if empty
  // Between processes with keys (context.h): who may connect; who must be connected to.
  std::vector<Role> admits;
  std::vector<Role> peers = {Role::kServer};
};

class ZmqSocket {
  struct State;
  struct Private {  // makes the constructor below ours alone
    explicit Private() = default;
  };

 public:
  using Frames = std::vector<zmq::message_t>;

  // kInternal when the context has no socket left or an option is refused.
  static Result<std::unique_ptr<ZmqSocket>> Open(Loop& loop, net::Context& context, ZmqKind kind,
                                                 ZmqOptions options = {});
  // Closes at once. May be called from inside the socket's own callbacks.
  ~ZmqSocket();
  ZmqSocket(Private, std::shared_ptr<State> state);
  ZmqSocket(const ZmqSocket&) = delete;
  ZmqSocket& operator=(const ZmqSocket&) = delete;

  // "tcp://127.0.0.1:0" or ":*": any free port. Returns the endpoint with the real port, and
  // the own key if there is one. kConflict when the port is taken.
  Result<std::string> Bind(const std::string& endpoint);

  // Starts to connect, and reconnects for ever. kInvalid when the endpoint makes no sense;
  // kDenied when its key is not that of such a peer.
  Status Connect(const std::string& endpoint);

  // Set before Bind() or Connect(). On a ROUTER the first frame is the peer's identity, which is
  // new for each connection. Frames belong to the callback.
  void OnReceive(std::function<void(Frames&&)> fn);

  // Set before Bind() or Connect(). DEALER: true when a connection is up (handshake done), false
  // when it is lost. Send() works inside fn(true); after fn(false) it may still take messages for a
  // moment, which are lost.
  Status OnConnection(std::function<void(bool connected)> fn);

  // Set before Bind(). ROUTER: the connection of a peer that has sent something broke; its identity
  // is not used again. A hint: libzmq knows connections by their descriptors, and one that is used
  // anew before its end was read here may pass for the former one, so that the wrong peer is named
  // or none.
  Status OnPeerLost(std::function<void(const std::string& identity)> fn);

  // Called once, on a later turn, when the socket can send again after a Send() failed with
  // kUnreachable. On a ROUTER libzmq does not tell which peer: use a timer there.
  void OnWritable(std::function<void()> fn);

  // Never blocks; queues all frames or none. On an error the frames are still the caller's.
  //   kUnreachable  the peer's queue is full (its high-water mark), or a DEALER has no connection
  //   kNotFound     ROUTER: no peer has this identity any more
  // Only if the connection breaks between two frames are some of them gone with the error.
  // A frame made over foreign memory (zmq::message_t(data, size, free_fn)) is not copied; libzmq
  // calls its free function on one of its own threads.
  Status Send(Frames&& frames);

  // Messages left out because they had too many frames.
  std::uint64_t dropped_messages() const;

 private:
  // Shared with waits and posted drains, which find out through it that the socket is closed.
  const std::shared_ptr<State> state_;
};

// "tcp://0.0.0.0:4711" and "node7" make "tcp://node7:4711", and likewise with a key behind it: what
// to tell others to connect to.
std::string EndpointWithHost(const std::string& bound_endpoint, const std::string& host);

// A frame that holds a copy of the bytes.
zmq::message_t CopyFrame(const void* data, std::size_t size);

// A frame over the vector's own memory, which libzmq frees when it is sent.
zmq::message_t TakeFrame(std::vector<std::byte> bytes);

}  // namespace ps::net
