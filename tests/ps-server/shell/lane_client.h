// A worker's side of a lane, for tests: a DEALER over tcp with deadlines.
#pragma once

#include <zmq.h>

#include <cstring>
#include <deque>
#include <optional>
#include <string>
#include <vector>
#include <zmq.hpp>

#include "common/check.h"
#include "common/net/context.h"
#include "tests/ps-server/core/server_testing.h"

namespace ps::server::testing {

class LaneClient {
 public:
  LaneClient(net::Context& context, const std::string& endpoint, int receive_high_water = 1000)
      : socket_(context.zmq(), zmq::socket_type::dealer) {
    socket_.set(zmq::sockopt::linger, 0);
    socket_.set(zmq::sockopt::rcvhwm, receive_high_water);
    socket_.connect(endpoint);
  }

  void Send(const TestMessage& message) {
    std::vector<Bytes> frames = {message.Head()};
    if (!message.payload.empty()) frames.push_back(message.payload);
    SendFrames(frames);
  }
  void SendFrames(const std::vector<Bytes>& frames) {
    for (std::size_t i = 0; i < frames.size(); ++i) {
      socket_.send(zmq::const_buffer(frames[i].data(), frames[i].size()),
                   i + 1 < frames.size() ? zmq::send_flags::sndmore : zmq::send_flags::none);
    }
  }
  // Nothing if no answer comes in time.
  std::optional<TestReply> Receive(int timeout_ms = 5000) {
    if (received_.empty() && !ReceiveMessage(timeout_ms)) return std::nullopt;
    TestReply reply = std::move(received_.front());
    received_.pop_front();
    return reply;
  }
  std::optional<TestReply> Ask(const TestMessage& message) {
    Send(message);
    return Receive();
  }

 private:
  // One message, which may answer several pushes.
  bool ReceiveMessage(int timeout_ms) {
    socket_.set(zmq::sockopt::rcvtimeo, timeout_ms);
    zmq::message_t head;
    if (!socket_.recv(head)) return false;
    ByteBuffer payload;
    if (head.more()) {
      zmq::message_t frame;
      PS_CHECK(socket_.recv(frame).has_value());
      PS_CHECK(!frame.more());
      const auto* data = static_cast<const std::byte*>(frame.data());
      payload.assign(data, data + frame.size());
    }
    for (std::span<const std::byte> rest(static_cast<const std::byte*>(head.data()), head.size());
         !rest.empty();) {
      TestReply reply;
      rest = rest.subspan(wire::ParseFirst(rest, reply.head).value());
      PS_CHECK(reply.head.header.payload_bytes() == payload.size());
      reply.payload = payload;
      received_.push_back(std::move(reply));
    }
    return true;
  }

  zmq::socket_t socket_;
  std::deque<TestReply> received_;
};

}  // namespace ps::server::testing
