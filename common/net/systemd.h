// Tells systemd how the daemon is: ready, what it does, alive, reloading, stopping (sd_notify(3)).
//
// The daemon gives one function that says how it is; it is asked twice a second, and more often if
// the watchdog wants that, from the loop: a loop that hangs feeds no watchdog. While it is not
// ready yet it asks for more time, so that one that waits for ZooKeeper is not killed and one that
// hangs is. Where NOTIFY_SOCKET is not set nothing happens, and the function is not asked.
//
// Belongs to the loop's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "common/net/loop.h"
#include "common/result.h"

namespace ps::net {

struct DaemonState {
  bool ready = false;
  std::string status;  // for people, one line: "registered, 12 shards of 2 jobs"
  // What hangs, if anything does: the watchdog is not fed then.
  std::string stuck;
};

class SystemdNotifier {
 public:
  using Look = std::function<DaemonState()>;

  SystemdNotifier(Loop& loop, Look look);
  SystemdNotifier(const SystemdNotifier&) = delete;
  SystemdNotifier& operator=(const SystemdNotifier&) = delete;

  // systemd waits for messages of this process.
  bool active() const { return active_; }
  // What the watchdog allows between two signs of life; 0: there is none.
  Milliseconds watchdog() const { return watchdog_; }

  // Around a reload; tells systemd of its begin and end. An error is logged.
  void Reload(const std::function<Status()>& reload);
  // The daemon ends, which may take its time; what `Look` says is still told. Once is enough.
  void Stopping();

 private:
  void Tell();

  const bool active_;
  const Milliseconds watchdog_;
  const Look look_;
  Timer timer_;
  bool ready_ = false;
  bool stopping_ = false;
  std::string status_;
  std::string stuck_;
};

}  // namespace ps::net
