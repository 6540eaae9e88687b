// The connection of a server or an agent to the leading coordinator.
//
// Keeps one DEALER to the leader's control endpoint and stays registered: the registration is sent
// on each new endpoint and each reconnect, again every welcome_timeout until a Welcome comes, and
// when no Ping came for missed_heartbeats beats (then over a new connection). Messages
// with a lower leader_epoch than the highest seen are dropped; Pings are answered here; everything
// else, Welcome included, goes to the callback. Belongs to the loop's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/messages/control.h"
#include "common/net/context.h"
#include "common/net/loop.h"
#include "common/net/zmq_socket.h"
#include "common/result.h"

namespace ps::net {

struct ControlClientOptions {
  Milliseconds welcome_timeout{2000};
  Milliseconds heartbeat{1000};  // until a Welcome names the leader's
  int missed_heartbeats = 3;
};

class ControlClient {
 public:
  // Called for each registration, so that it says what is true now.
  using RegistrationFn = std::function<control::MessageT()>;
  using MessageFn = std::function<void(control::MessageT)>;

  ControlClient(Loop& loop, net::Context& context, RegistrationFn registration,
                ControlClientOptions options = {});
  ~ControlClient();
  ControlClient(const ControlClient&) = delete;
  ControlClient& operator=(const ControlClient&) = delete;

  // Set before the first SetEndpoint(). Must not destroy the client.
  void OnMessage(MessageFn fn);

  // Where the leader is now; empty: there is none. The same endpoint again changes nothing.
  void SetEndpoint(const std::string& endpoint);

  // kUnreachable when there is no leader, no connection, or its queue is full: the message is
  // dropped. Sent after a registration it is received after it. Never a promise of delivery.
  Status Send(const control::MessageT& message);

  // A Welcome came over the present connection.
  bool registered() const;
  std::uint64_t leader_epoch() const;  // the highest seen
  std::uint64_t stale_messages() const;
  std::uint64_t bad_messages() const;

 private:
  struct State;

  const std::unique_ptr<State> state_;
};

}  // namespace ps::net
