#include "common/net/systemd.h"

#include <spdlog/spdlog.h>
#include <systemd/sd-daemon.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <utility>

namespace ps::net {
namespace {

constexpr Milliseconds kLookEvery{500};
// More time to become ready, asked for at each look.
constexpr char kMoreTime[] = "EXTEND_TIMEOUT_USEC=30000000\n";

bool HasSocket() {
  const char* const socket = std::getenv("NOTIFY_SOCKET");
  return socket != nullptr && *socket != '\0';
}

Milliseconds WatchdogTime() {
  std::uint64_t usec = 0;
  // Only if it is meant for this process and not for our parent.
  if (sd_watchdog_enabled(0, &usec) <= 0) return Milliseconds(0);
  return Milliseconds(usec / 1000);
}

void Send(const std::string& message) {
  const int sent = sd_notify(0, message.c_str());
  // The next look says it again, or systemd is gone.
  if (sent < 0) spdlog::debug("systemd was not told: {}", std::strerror(-sent));
}

// One line, whatever a name of the cluster holds.
std::string OneLine(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
  return text;
}

}  // namespace

SystemdNotifier::SystemdNotifier(Loop& loop, Look look)
    : active_(HasSocket()), watchdog_(WatchdogTime()), look_(std::move(look)), timer_(loop) {
  if (!active_) return;
  const Milliseconds every =
      watchdog_.count() > 0 ? std::clamp(watchdog_ / 4, Milliseconds(10), kLookEvery) : kLookEvery;
  timer_.Every(every, [this] { Tell(); });
}

void SystemdNotifier::Tell() {
  const DaemonState state = look_();
  std::string message;
  const std::string status = state.stuck.empty() ? state.status : "stuck: " + state.stuck;
  if (status != status_) {
    status_ = status;
    message += "STATUS=" + OneLine(status) + "\n";
  }
  if (state.ready && !ready_ && !stopping_) {
    ready_ = true;
    message += "READY=1\n";
  }
  if (!ready_ && !stopping_) message += kMoreTime;
  if (state.stuck.empty()) {
    if (!stuck_.empty()) spdlog::warn("does not hang any more: {}", stuck_);
    if (watchdog_.count() > 0) message += "WATCHDOG=1\n";
  } else if (stuck_.empty()) {
    spdlog::error("hangs: {}", state.stuck);
  }
  stuck_ = state.stuck;
  if (!message.empty()) Send(message);
}

void SystemdNotifier::Reload(const std::function<Status()>& reload) {
  timespec now = {};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  const auto usec = static_cast<std::uint64_t>(now.tv_sec) * 1'000'000 +
                    static_cast<std::uint64_t>(now.tv_nsec) / 1000;
  // Of one that is not ready, READY=1 would say that it is.
  const bool tell = active_ && ready_ && !stopping_;
  if (tell) Send("RELOADING=1\nMONOTONIC_USEC=" + std::to_string(usec) + "\n");
  const Status reloaded = reload();
  if (!reloaded.ok()) spdlog::error("not reloaded: {}", ErrorLine(reloaded.error()));
  if (tell) Send("READY=1\n");
}

void SystemdNotifier::Stopping() {
  if (!active_ || std::exchange(stopping_, true)) return;
  Send("STOPPING=1\n");
}

}  // namespace ps::net
