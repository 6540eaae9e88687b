// The network of a simulated cluster: connections as ZeroMQ makes them, between machines.
//
// A connection is opened by a client to a bound address, keeps the order of messages in each
// direction, and is made again when it breaks: what was under way to the client is lost, what was
// under way to the server may still arrive, from the identity of the broken connection, even after
// what the next one brings. Between machines that are cut off from each other messages wait; if it
// lasts, the connection breaks and cannot be made again until the cut has healed. A cut may be of
// one direction only. Faults of single messages (lost, repeated) are for data links alone, where
// the protocol promises to bear them. One thread.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/simulation/cluster/schedule.h"

namespace ps::simulation {

struct Packet {
  Bytes head;
  Bytes payload;
};

// How often, of ten thousand messages.
struct LinkFaults {
  std::uint32_t lost = 0;      // data links only
  std::uint32_t repeated = 0;  // data links only: delivered again, up to seconds later
  std::uint32_t broken = 0;
  std::int64_t delay_ms_max = 5;
};

class Network {
 public:
  using LinkId = std::uint64_t;
  using ServerFn = std::function<void(const std::string& from, const Packet& packet)>;
  using ClientFn = std::function<void(const Packet& packet)>;
  using ConnectionFn = std::function<void(bool connected)>;
  using LostFn = std::function<void(const std::string& identity)>;
  enum class Plane { kControl, kData };

  explicit Network(Schedule& schedule) : schedule_(schedule) {}

  // `lost`: a peer's connection broke or was closed.
  void Bind(const std::string& address, MachineId machine, ServerFn receive, LostFn lost = nullptr);
  // `silently`: no one is told; peers find out after a while (the machine is gone, not the
  // process).
  void Unbind(const std::string& address, bool silently);
  LinkId Connect(MachineId from, const std::string& address, Plane plane, ClientFn receive,
                 ConnectionFn connection);
  // What was sent may still arrive; nothing is received any more.
  void Close(LinkId link);
  // False without a connection: nothing is kept for the next one.
  bool Send(LinkId link, Packet packet);
  // A connection from there is refused: nobody listens, and the machine is there to say so.
  bool Refuses(MachineId from, const std::string& address) const;
  // To whom a message came from; dropped if that connection is gone.
  void Reply(const std::string& identity, Packet packet);

  // One direction. Cuts add up; each needs its own Heal.
  void Cut(MachineId from, MachineId to);
  void Heal(MachineId from, MachineId to);
  bool Blocked(MachineId from, MachineId to) const { return cuts_.contains({from, to}); }
  void SlowDown(MachineId machine, std::int64_t extra_ms) { slow_[machine] = extra_ms; }
  void SetFaults(const LinkFaults& faults) { faults_ = faults; }

  struct Counters {
    std::uint64_t messages = 0;
    std::uint64_t lost = 0;
    std::uint64_t repeated = 0;
    std::uint64_t broken = 0;
  };
  const Counters& counters() const { return counters_; }

 private:
  // Ever bound or connected to.
  struct Address {
    MachineId home = 0;
    bool known = false;                       // bound once
    bool silent = false;                      // unbound silently, and not bound since
    std::uint64_t number = 0;                 // of the newest binding
    std::shared_ptr<const ServerFn> receive;  // null unless it is bound
    LostFn lost;
  };
  struct Waiting {
    std::int64_t due_ms = 0;
    std::string identity;  // towards the server: of the connection it was sent over
    Packet packet;
  };
  struct Direction {
    std::deque<Waiting> queue;
    std::int64_t last_ms = 0;
    bool pumping = false;  // an event for the blocked head is under way
  };
  struct Link {
    MachineId from = 0;
    Address* address = nullptr;
    Plane plane = Plane::kControl;
    std::shared_ptr<const ClientFn> receive;
    ConnectionFn connection;
    std::uint32_t generation = 0;
    bool up = false;
    bool closed = false;
    Direction to_server;
    Direction to_client;
  };

  static std::string IdentityOf(LinkId id, std::uint32_t generation);
  // Null if there is none of that id.
  Link* Find(LinkId id) { return id == 0 || id > links_.size() ? nullptr : &links_[id - 1]; }
  bool Blocked(const Link& link) const {
    return Blocked(link.from, link.address->home) || Blocked(link.address->home, link.from);
  }
  std::int64_t DelayBetween(MachineId a, MachineId b);
  void Try(LinkId id, std::uint32_t generation);
  void Break(LinkId id);
  void TellLost(const Link& link, LinkId id);
  void BreakIfBlocked(LinkId id, std::uint32_t generation);
  void PumpToServer(LinkId id);
  void PumpToClient(LinkId id);
  void DeliverToServer(const Link& link, const std::string& identity, const Packet& packet);

  Schedule& schedule_;
  LinkFaults faults_;
  std::map<std::string, Address> addresses_;
  std::deque<Link> links_;  // by id, from 1; none ever goes
  std::map<std::pair<MachineId, MachineId>, int> cuts_;
  std::map<MachineId, std::int64_t> slow_;
  std::uint64_t next_binding_ = 1;
  Counters counters_;
};

}  // namespace ps::simulation
