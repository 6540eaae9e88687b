#include "tests/simulation/cluster/network.h"

#include <algorithm>
#include <charconv>

#include "common/check.h"

namespace ps::simulation {
namespace {

constexpr std::int64_t kRetryMs = 40;        // between attempts to connect, and to deliver
constexpr std::int64_t kReconnectMs = 300;   // at most, after a connection broke
constexpr std::int64_t kNoticeMs = 20;       // until a client sees that the server's process ended
constexpr std::int64_t kHeartbeatMs = 3000;  // until it sees that nothing answers
constexpr std::int64_t kLingerMs = 1500;  // of messages towards the server on a broken connection
constexpr std::int64_t kRepeatMs = 4000;

}  // namespace

std::string Network::IdentityOf(LinkId id, std::uint32_t generation) {
  return std::to_string(id) + "/" + std::to_string(generation);
}

std::int64_t Network::DelayBetween(MachineId a, MachineId b) {
  std::int64_t delay = schedule_.Below(faults_.delay_ms_max + 1);
  for (const MachineId machine : {a, b}) {
    const auto slow = slow_.find(machine);
    if (slow != slow_.end()) delay += schedule_.Below(slow->second + 1);
  }
  return delay;
}

void Network::Bind(const std::string& address, MachineId machine, ServerFn receive, LostFn lost) {
  addresses_[address] = Address{
      machine,        true, false, next_binding_++, std::make_shared<ServerFn>(std::move(receive)),
      std::move(lost)};
}

void Network::Unbind(const std::string& name, bool silently) {
  const auto found = addresses_.find(name);
  if (found == addresses_.end() || found->second.receive == nullptr) return;
  Address& address = found->second;
  address.receive = nullptr;
  address.lost = nullptr;
  address.silent = silently;
  for (LinkId id = 1; id <= links_.size(); ++id) {
    Link& link = *Find(id);
    if (link.address != &address || !link.up) continue;
    // What was on its way reaches nobody.
    link.to_server.queue.clear();
    link.to_client.queue.clear();
    const std::int64_t delay = 1 + schedule_.Below(silently ? kHeartbeatMs : kNoticeMs);
    schedule_.After(delay, [this, id, generation = link.generation] {
      if (Find(id)->generation == generation) Break(id);
    });
  }
}

Network::LinkId Network::Connect(MachineId from, const std::string& address, Plane plane,
                                 ClientFn receive, ConnectionFn connection) {
  Link& link = links_.emplace_back();
  const LinkId id = links_.size();
  link.from = from;
  link.address = &addresses_[address];
  link.plane = plane;
  link.receive = std::make_shared<ClientFn>(std::move(receive));
  link.connection = std::move(connection);
  schedule_.After(1 + schedule_.Below(kRetryMs), [this, id] { Try(id, 0); });
  return id;
}

void Network::Close(LinkId id) {
  Link* const link = Find(id);
  if (link == nullptr) return;
  if (link->up && !link->closed) TellLost(*link, id);
  link->closed = true;
  link->up = false;
  link->receive = nullptr;
  link->connection = nullptr;
  link->to_client.queue.clear();
}

void Network::Try(LinkId id, std::uint32_t generation) {
  Link& link = *Find(id);
  if (link.closed || link.up || link.generation != generation) return;
  if (link.address->receive == nullptr || Blocked(link)) {
    schedule_.After(kRetryMs + schedule_.Below(2 * kRetryMs),
                    [this, id, generation] { Try(id, generation); });
    return;
  }
  link.up = true;
  link.to_server.last_ms = link.to_client.last_ms = schedule_.now_ms();
  schedule_.Trace("up", id, generation);
  if (link.connection) link.connection(true);
}

void Network::Break(LinkId id) {
  Link& link = *Find(id);
  if (link.closed || !link.up) return;
  ++counters_.broken;
  schedule_.Trace("broken", id, link.generation);
  link.up = false;
  TellLost(link, id);
  link.to_client.queue.clear();
  // Of what is under way to the server, some beginning arrives.
  std::deque<Waiting>& queue = link.to_server.queue;
  const bool lingers = schedule_.Dice(2) == 0;
  const std::int64_t until = schedule_.now_ms() + (lingers ? schedule_.Below(kLingerMs) : 0);
  for (const Waiting& waiting : queue) {
    if (waiting.due_ms > until) break;
    // Those that are late anyway are late by more than the next connection takes.
    const std::int64_t due =
        lingers ? waiting.due_ms + schedule_.Below(until + 1 - waiting.due_ms) : waiting.due_ms;
    schedule_.At(due, [this, id, identity = waiting.identity, packet = waiting.packet] {
      DeliverToServer(*Find(id), identity, packet);
    });
  }
  queue.clear();
  const std::uint32_t generation = ++link.generation;
  schedule_.After(1 + schedule_.Below(kReconnectMs),
                  [this, id, generation] { Try(id, generation); });
  if (link.connection) link.connection(false);
}

void Network::TellLost(const Link& link, LinkId id) {
  if (!link.address->lost) return;
  schedule_.After(1 + schedule_.Below(kNoticeMs),
                  [this, address = link.address, number = link.address->number,
                   identity = IdentityOf(id, link.generation)] {
                    if (address->number != number || !address->lost) return;
                    const LostFn lost = address->lost;
                    lost(identity);
                  });
}

bool Network::Refuses(MachineId from, const std::string& address) const {
  const auto found = addresses_.find(address);
  if (found == addresses_.end()) return false;
  const Address& at = found->second;
  return at.known && at.receive == nullptr && !at.silent && !Blocked(from, at.home) &&
         !Blocked(at.home, from);
}

void Network::BreakIfBlocked(LinkId id, std::uint32_t generation) {
  const Link& link = *Find(id);
  if (link.generation == generation && Blocked(link)) Break(id);
}

void Network::Cut(MachineId from, MachineId to) {
  ++cuts_[{from, to}];
  for (LinkId id = 1; id <= links_.size(); ++id) {
    const Link& link = *Find(id);
    if (link.closed || !link.up) continue;
    const MachineId home = link.address->home;
    if ((link.from != from || home != to) && (link.from != to || home != from)) continue;
    schedule_.After(kHeartbeatMs / 2 + schedule_.Below(kHeartbeatMs),
                    [this, id, generation = link.generation] { BreakIfBlocked(id, generation); });
  }
}

void Network::Heal(MachineId from, MachineId to) {
  const auto found = cuts_.find({from, to});
  if (found != cuts_.end() && --found->second <= 0) cuts_.erase(found);
}

bool Network::Send(LinkId id, Packet packet) {
  Link* const found = Find(id);
  if (found == nullptr || found->closed || !found->up) return false;
  Link& link = *found;
  ++counters_.messages;
  if (schedule_.Happens(faults_.broken)) {
    Break(id);
    return true;
  }
  if (link.plane == Plane::kData && schedule_.Happens(faults_.lost)) {
    ++counters_.lost;
    return true;
  }
  const MachineId home = link.address->home;
  const std::int64_t due =
      std::max(schedule_.now_ms() + 1 + DelayBetween(link.from, home), link.to_server.last_ms);
  link.to_server.last_ms = due;
  const std::string identity = IdentityOf(id, link.generation);
  if (link.plane == Plane::kData && schedule_.Happens(faults_.repeated)) {
    ++counters_.repeated;
    schedule_.At(due + schedule_.Below(kRepeatMs),
                 [this, id, identity, packet] { DeliverToServer(*Find(id), identity, packet); });
  }
  link.to_server.queue.push_back({due, identity, std::move(packet)});
  schedule_.At(due, [this, id] { PumpToServer(id); });
  return true;
}

void Network::PumpToServer(LinkId id) {
  Link& link = *Find(id);
  Direction& direction = link.to_server;
  while (!direction.queue.empty() && direction.queue.front().due_ms <= schedule_.now_ms()) {
    const MachineId home = link.address->home;
    const std::int64_t awake = schedule_.AwakeAt(home);
    if (Blocked(link.from, home) || awake > schedule_.now_ms()) {
      if (direction.pumping) return;
      direction.pumping = true;
      schedule_.At(std::max(awake, schedule_.now_ms() + kRetryMs), [this, id] {
        Find(id)->to_server.pumping = false;
        PumpToServer(id);
      });
      return;
    }
    const Waiting waiting = std::move(direction.queue.front());
    direction.queue.pop_front();
    DeliverToServer(link, waiting.identity, waiting.packet);
  }
}

void Network::DeliverToServer(const Link& link, const std::string& identity, const Packet& packet) {
  // The receiver may end its process.
  const std::shared_ptr<const ServerFn> receive = link.address->receive;
  if (receive == nullptr) return;
  schedule_.Trace("to server", packet.head);
  (*receive)(identity, packet);
}

void Network::Reply(const std::string& identity, Packet packet) {
  const char* const end = identity.data() + identity.size();
  LinkId id = 0;
  std::uint32_t generation = 0;
  const auto slash = std::from_chars(identity.data(), end, id).ptr;
  PS_CHECK(slash != end && Find(id) != nullptr, identity);
  std::from_chars(slash + 1, end, generation);
  Link& link = *Find(id);
  if (link.closed || !link.up || link.generation != generation) return;
  ++counters_.messages;
  if (schedule_.Happens(faults_.broken)) return Break(id);
  if (link.plane == Plane::kData && schedule_.Happens(faults_.lost)) {
    ++counters_.lost;
    return;
  }
  const MachineId home = link.address->home;
  const std::int64_t due =
      std::max(schedule_.now_ms() + 1 + DelayBetween(home, link.from), link.to_client.last_ms);
  link.to_client.last_ms = due;
  link.to_client.queue.push_back({due, identity, std::move(packet)});
  schedule_.At(due, [this, id] { PumpToClient(id); });
}

void Network::PumpToClient(LinkId id) {
  Link& link = *Find(id);
  Direction& direction = link.to_client;
  while (!link.closed && !direction.queue.empty() &&
         direction.queue.front().due_ms <= schedule_.now_ms()) {
    const MachineId home = link.address->home;
    const std::int64_t awake = schedule_.AwakeAt(link.from);
    if (Blocked(home, link.from) || awake > schedule_.now_ms()) {
      if (direction.pumping) return;
      direction.pumping = true;
      schedule_.At(std::max(awake, schedule_.now_ms() + kRetryMs), [this, id] {
        Find(id)->to_client.pumping = false;
        PumpToClient(id);
      });
      return;
    }
    const Waiting waiting = std::move(direction.queue.front());
    direction.queue.pop_front();
    schedule_.Trace("to client", waiting.packet.head);
    const std::shared_ptr<const ClientFn> receive = link.receive;
    if (receive != nullptr && *receive) (*receive)(waiting.packet);
  }
}

}  // namespace ps::simulation
