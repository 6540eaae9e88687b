#include "bench/transport.h"

#include <zmq.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>
#include <zmq.hpp>

#include "bench/clock.h"
#include "common/net/context.h"
#include "common/net/zmq_socket.h"
#include "ps-server/shell/lane.h"

namespace ps::bench {
namespace {

constexpr std::size_t kSmall = 8;
constexpr int kPollMs = 100;  // how often the echoing side looks whether it is to end

struct Closer {
  void operator()(void* socket) const { zmq_close(socket); }
};
using Socket = std::unique_ptr<void, Closer>;

Error Failed(const char* what) {
  return Error{ErrorCode::kInternal,
               std::string("libzmq, ") + what + ": " + zmq_strerror(zmq_errno())};
}

Result<Socket> Open(net::Context& context, int type, const Options& options, int timeout_ms) {
  const server::LaneOptions lane;
  Socket socket(zmq_socket(context.handle(), type));
  if (socket == nullptr) return Failed("opening a socket");
  const std::int64_t frame_bytes_max = static_cast<std::int64_t>(wire::kMaxPayloadBytes);
  const int window = static_cast<int>(options.window);
  const std::array<std::pair<int, int>, 6> ints = {{
      {ZMQ_LINGER, 0},
      {ZMQ_SNDHWM, std::max(lane.send_high_water, window)},
      {ZMQ_RCVHWM, std::max(lane.receive_high_water, window)},
      {ZMQ_HEARTBEAT_IVL, 2000},
      {ZMQ_HEARTBEAT_TIMEOUT, 15000},
      {ZMQ_RCVTIMEO, timeout_ms},
  }};
  bool set = zmq_setsockopt(socket.get(), ZMQ_MAXMSGSIZE, &frame_bytes_max,
                            sizeof(frame_bytes_max)) == 0 &&
             net::RefuseOldProtocols(socket.get());
  for (const auto& [name, value] : ints) {
    set = set && zmq_setsockopt(socket.get(), name, &value, sizeof(value)) == 0;
  }
  // Without it a ROUTER drops what it has no room for, as a lane's must not either.
  const int mandatory = 1;
  set = set && (type != ZMQ_ROUTER || zmq_setsockopt(socket.get(), ZMQ_ROUTER_MANDATORY, &mandatory,
                                                     sizeof(mandatory)) == 0);
  if (!set) return Failed("setting an option");
  return socket;
}

// A frame over memory that outlives it; small ones are copied, as libzmq's guide advises.
bool Send(void* socket, std::byte* data, std::size_t size, int flags) {
  zmq_msg_t frame;
  if (size <= 512) {
    zmq_msg_init_size(&frame, size);
    std::memcpy(zmq_msg_data(&frame), data, size);
  } else {
    zmq_msg_init_data(
        &frame, data, size, [](void*, void*) {}, nullptr);
  }
  if (zmq_msg_send(&frame, socket, flags) >= 0) return true;
  zmq_msg_close(&frame);
  return false;
}

// Answers every frame until told to stop.
void Answer(void* socket, Operation operation, std::vector<std::byte>& large,
            const std::atomic<bool>& stopping) {
  std::array<std::byte, kSmall> small{};
  while (!stopping) {
    zmq::message_t identity;
    zmq::message_t frame;
    if (zmq_msg_recv(identity.handle(), socket, 0) < 0) continue;  // only the timeout ends it
    if (zmq_msg_recv(frame.handle(), socket, 0) < 0) continue;
    zmq_msg_send(identity.handle(), socket, ZMQ_SNDMORE);
    switch (operation) {
      case Operation::kPush: Send(socket, small.data(), small.size(), 0); break;
      case Operation::kPull: Send(socket, large.data(), large.size(), 0); break;
      default: zmq_msg_send(frame.handle(), socket, 0); break;
    }
  }
}

}  // namespace

Result<Row> MeasureTransport(const Options& options, Operation operation, std::uint64_t size) {
  net::Context server_context;
  net::Context client_context;
  const Socket router = PS_TRY(Open(server_context, ZMQ_ROUTER, options, kPollMs));
  const Socket dealer = PS_TRY(
      Open(client_context, ZMQ_DEALER, options, static_cast<int>(options.deadline_seconds * 1000)));
  if (zmq_bind(router.get(), "tcp://127.0.0.1:*") != 0) return Failed("listening");
  std::array<char, 256> endpoint{};
  std::size_t endpoint_size = endpoint.size();
  if (zmq_getsockopt(router.get(), ZMQ_LAST_ENDPOINT, endpoint.data(), &endpoint_size) != 0 ||
      zmq_connect(dealer.get(), endpoint.data()) != 0) {
    return Failed("connecting");
  }
  std::vector<std::byte> large(size);
  std::vector<std::byte> answer(size);
  std::atomic<bool> stopping{false};
  std::thread server([&] { Answer(router.get(), operation, answer, stopping); });

  Row row;
  row.operation = operation;
  row.carrier = Carrier::kZmq;
  row.bytes = size;
  row.window = options.window;
  const std::size_t sent_bytes = operation == Operation::kPull ? kSmall : large.size();
  std::deque<std::uint64_t> started;
  const auto send = [&] {
    started.push_back(NowNs());
    Send(dealer.get(), large.data(), std::min(sent_bytes, large.size()), 0);
  };
  Status failed = Ok();
  const std::uint64_t begin = NowNs();
  const std::uint64_t measure_from = begin + Nanoseconds(options.warm_up_seconds);
  const std::uint64_t end = measure_from + Nanoseconds(options.seconds);
  std::uint64_t first = 0;
  std::uint64_t last = 0;
  for (std::uint32_t i = 0; i < options.window; ++i) send();
  while (!started.empty()) {
    zmq::message_t frame;
    if (zmq_msg_recv(frame.handle(), dealer.get(), 0) < 0) {
      failed = Error{ErrorCode::kTimeout,
                     "libzmq: no answer within " + std::to_string(options.deadline_seconds) + " s"};
      break;
    }
    const std::uint64_t now = NowNs();
    if (now >= measure_from && now < end) {
      if (first == 0) {
        first = now;
      } else {
        ++row.operations;
        row.latency.Add(now - started.front());
      }
      last = now;
    }
    started.pop_front();
    if (now < end) send();
  }
  row.seconds = static_cast<double>(last - first) / 1e9;
  stopping = true;
  server.join();
  PS_TRY(std::move(failed));
  return row;
}

}  // namespace ps::bench
