#include "tests/ps-worker/task/hostile_proxy.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <queue>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/net/loop.h"

namespace ps::worker::testing {
namespace {

sockaddr_in Loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  return address;
}

int PortOf(const std::string& endpoint) {
  return std::stoi(endpoint.substr(endpoint.rfind(':') + 1));
}

}  // namespace

// ---- bytes

TcpProxy::TcpProxy(const std::string& upstream, std::uint64_t seed, const Faults& faults)
    : faults_(faults),
      upstream_port_(PortOf(upstream)),
      listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)),
      random_(seed) {
  sockaddr_in address = Loopback(0);
  socklen_t size = sizeof(address);
  PS_CHECK(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), size) == 0);
  PS_CHECK(::listen(listener_.get(), 64) == 0);
  PS_CHECK(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
  endpoint_ = "tcp://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  thread_ = std::thread([this] { Run(); });
}

TcpProxy::~TcpProxy() {
  stopping_ = true;
  thread_.join();
}

void TcpProxy::Accept() {
  while (true) {
    net::UniqueFd client(
        ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!client.valid()) return;
    net::UniqueFd server(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_in address = Loopback(upstream_port_);
    if (::connect(server.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) !=
        0) {
      continue;
    }
    ::fcntl(server.get(), F_SETFL, O_NONBLOCK);
    Connection connection;
    connection.client = std::move(client);
    connection.server = std::move(server);
    connection.bytes_left = faults_.cut_after_bytes > 0 ? 1 + Below(2 * faults_.cut_after_bytes)
                                                        : std::int64_t{1} << 60;
    connections_.push_back(std::move(connection));
  }
}

bool TcpProxy::Pump(Connection& connection, int from, int to, Direction& direction,
                    std::int64_t now_ms) {
  if (direction.waiting.empty() && (calm_ || now_ms >= direction.next_ms)) {
    std::vector<char> piece(calm_ ? 65536
                                  : static_cast<std::size_t>(1 + Below(faults_.piece_bytes_max)));
    const ssize_t got = ::recv(from, piece.data(), piece.size(), 0);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return false;
    if (got > 0) {
      direction.waiting.assign(piece.data(), static_cast<std::size_t>(got));
      direction.next_ms = now_ms + (faults_.delay_ms_max > 0 ? Below(faults_.delay_ms_max) : 0);
      if (faults_.hold_ms_max > 0 && Below(100) == 0)
        direction.next_ms += Below(faults_.hold_ms_max);
    }
  }
  if (direction.waiting.empty()) return true;
  const bool cut =
      !calm_ && static_cast<std::int64_t>(direction.waiting.size()) >= connection.bytes_left;
  if (cut) direction.waiting.resize(static_cast<std::size_t>(connection.bytes_left));
  const ssize_t sent = ::send(to, direction.waiting.data(), direction.waiting.size(), MSG_NOSIGNAL);
  if (cut) {
    ++cuts_;
    return false;
  }
  if (sent < 0) return errno == EAGAIN || errno == EINTR;
  direction.waiting.erase(0, static_cast<std::size_t>(sent));
  connection.bytes_left -= sent;
  return true;
}

void TcpProxy::Run() {
  while (!stopping_) {
    std::vector<pollfd> polled = {{listener_.get(), POLLIN, 0}};
    for (const Connection& connection : connections_) {
      polled.push_back({connection.client.get(), POLLIN, 0});
      polled.push_back({connection.server.get(), POLLIN, 0});
    }
    ::poll(polled.data(), polled.size(), 2);
    // Held bytes stay readable: without this the thread would spin.
    if (!calm_) ::usleep(500);
    Accept();
    const std::int64_t now = net::MonotonicMs();
    connections_.remove_if([&](Connection& connection) {
      return !Pump(connection, connection.client.get(), connection.server.get(), connection.up,
                   now) ||
             !Pump(connection, connection.server.get(), connection.client.get(), connection.down,
                   now);
    });
  }
}

// ---- messages

MessageProxy::MessageProxy(const std::string& upstream, std::uint64_t seed, const Faults& faults)
    : upstream_(upstream), faults_(faults), front_(context_.zmq(), ZMQ_ROUTER), random_(seed) {
  front_.set(zmq::sockopt::linger, 0);
  front_.bind("tcp://127.0.0.1:*");
  endpoint_ = front_.get(zmq::sockopt::last_endpoint);
  thread_ = std::thread([this] { Run(); });
}

MessageProxy::~MessageProxy() {
  stopping_ = true;
  thread_.join();
}

void MessageProxy::Run() {
  using Frames = std::vector<std::string>;
  struct Waiting {
    std::int64_t due_ms;
    std::uint64_t order;
    std::string peer;
    bool up;
    Frames frames;
    bool operator<(const Waiting& other) const {
      return due_ms != other.due_ms ? due_ms > other.due_ms : order > other.order;
    }
  };
  std::map<std::string, zmq::socket_t> backs;  // by identity of the worker's connection
  std::priority_queue<Waiting> waiting;
  std::uint64_t order = 0;
  const auto percent = [this](int chance) {
    return !calm_ && static_cast<int>(random_() % 100) < chance;
  };
  const auto receive = [](zmq::socket_t& socket, Frames& frames) {
    frames.clear();
    zmq::message_t frame;
    do {
      if (!socket.recv(frame, zmq::recv_flags::dontwait)) return false;
      frames.push_back(frame.to_string());
    } while (frame.more());
    return true;
  };
  const auto take = [&](const std::string& peer, bool up, const Frames& frames) {
    if (percent(faults_.lost_percent)) {
      ++lost_;
      return;
    }
    int copies = 1;
    if (percent(faults_.repeated_percent)) {
      ++repeated_;
      ++copies;
    }
    for (; copies > 0; --copies) {
      const int delay =
          calm_ ? 0 : static_cast<int>(random_() % static_cast<unsigned>(faults_.delay_ms_max + 1));
      waiting.push(Waiting{net::MonotonicMs() + delay, order++, peer, up, frames});
    }
  };
  const auto send = [](zmq::socket_t& socket, const Frames& frames) {
    for (std::size_t i = 0; i < frames.size(); ++i) {
      const auto flags = zmq::send_flags::dontwait |
                         (i + 1 < frames.size() ? zmq::send_flags::sndmore : zmq::send_flags::none);
      if (!socket.send(zmq::buffer(frames[i]), flags)) return;
    }
  };
  while (!stopping_) {
    std::vector<zmq::pollitem_t> items = {{front_.handle(), 0, ZMQ_POLLIN, 0}};
    for (auto& [peer, back] : backs) items.push_back({back.handle(), 0, ZMQ_POLLIN, 0});
    zmq::poll(items, std::chrono::milliseconds(1));
    Frames frames;
    while (receive(front_, frames)) {
      const std::string peer = frames.front();
      frames.erase(frames.begin());
      if (!backs.contains(peer)) {
        zmq::socket_t back(context_.zmq(), ZMQ_DEALER);
        back.set(zmq::sockopt::linger, 0);
        back.connect(upstream_);
        backs.emplace(peer, std::move(back));
      }
      take(peer, true, frames);
    }
    for (auto& [peer, back] : backs) {
      while (receive(back, frames)) take(peer, false, frames);
    }
    while (!waiting.empty() && waiting.top().due_ms <= net::MonotonicMs()) {
      Waiting next = waiting.top();
      waiting.pop();
      if (next.up) {
        send(backs.at(next.peer), next.frames);
      } else {
        next.frames.insert(next.frames.begin(), next.peer);
        send(front_, next.frames);
      }
    }
  }
  backs.clear();
  front_.close();
}

}  // namespace ps::worker::testing
