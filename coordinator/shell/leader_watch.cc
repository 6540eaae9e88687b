#include "coordinator/shell/leader_watch.h"

#include <spdlog/spdlog.h>

#include <utility>

namespace ps::coordinator {

LeaderWatch::LeaderWatch(net::Loop& loop, net::Context& context, DeadFn dead,
                         DeathWatchOptions options)
    : loop_(loop),
      context_(context),
      dead_(std::move(dead)),
      deaths_(
          loop,
          [this](const std::string& name) {
            // It would try to connect for ever.
            socket_.reset();
            dead_(name);
          },
          options) {}

void LeaderWatch::Watch(const std::string& name, const std::string& endpoint) {
  if (name == name_ && endpoint == endpoint_) return;
  deaths_.Clear();
  socket_.reset();
  name_ = name;
  endpoint_ = endpoint;
  if (endpoint_.empty()) return;
  const Status connected = Connect();
  if (connected.ok()) return;
  spdlog::warn("the leader at {} is left to its session: {}", endpoint_, connected.error().message);
  socket_.reset();
}

Status LeaderWatch::Connect() {
  net::ZmqOptions options;
  options.name = "the leader at " + endpoint_;
  options.peers = {net::Role::kCoordinator};
  socket_ = PS_TRY(net::ZmqSocket::Open(loop_, context_, net::ZmqKind::kDealer, options));
  PS_TRY(socket_->OnConnection([this](bool connected) { OnConnection(connected); }));
  return socket_->Connect(endpoint_);
}

void LeaderWatch::OnConnection(bool connected) {
  if (connected) {
    deaths_.Forget(name_);
  } else {
    deaths_.OnLost(name_, endpoint_);
  }
}

}  // namespace ps::coordinator
