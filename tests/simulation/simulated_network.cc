#include "tests/simulation/simulated_network.h"

#include <algorithm>

namespace ps::simulation {
namespace {

constexpr std::int64_t kStallMs = 4000;
constexpr std::int64_t kRepeatMs = 6000;
constexpr std::int64_t kReconnectMs = 800;
constexpr std::int64_t kLingerMs = 3000;  // of messages on a connection that was cut

}  // namespace

std::string SimulatedNetwork::IdentityOf(const Key& key, std::uint32_t generation) {
  return std::to_string(key.first) + "/" + std::to_string(key.second) + "/" +
         std::to_string(generation);
}

void SimulatedNetwork::Cut(const Key& key, Connection& connection) {
  ++counters_.cuts;
  const std::int64_t now = events_.now_ms();
  connection.alive_until_ms.push_back(random_() % 2 == 0 ? now : now + Below(kLingerMs));
  ++connection.generation;
  connection.up_at_ms = now + Below(kReconnectMs);
  connection.last_to_lane_ms = connection.last_to_worker_ms = connection.up_at_ms;
  events_.At(connection.up_at_ms, [this, key, generation = connection.generation] {
    const Connection& current = connections_[key];
    if (current.closed || current.generation != generation) return;
    callbacks_.reconnected(key.first, key.second);
  });
}

void SimulatedNetwork::SendToLane(std::uint64_t peer, std::uint32_t lane, Bytes head,
                                  Bytes payload) {
  const Key key{peer, lane};
  Connection& connection = connections_[key];
  ++counters_.messages;
  if (Happens(faults_.cut)) Cut(key, connection);
  if (Happens(faults_.lost)) {
    ++counters_.lost;
    return;
  }
  std::int64_t time = std::max(events_.now_ms(), connection.up_at_ms) + 1;
  time += Below(std::max<std::int64_t>(1, faults_.delay_ms_max));
  if (Happens(faults_.stalled)) time += Below(kStallMs);
  time = connection.last_to_lane_ms = std::max(time, connection.last_to_lane_ms);
  const std::uint32_t generation = connection.generation;
  identities_[IdentityOf(key, generation)] = {key, generation};
  if (Happens(faults_.repeated)) {
    ++counters_.repeated;
    const std::int64_t again = time + Below(kRepeatMs);
    events_.At(again, [=, this] { DeliverToLane(key, generation, again, head, payload); });
  }
  events_.At(time, [=, this, head = std::move(head), payload = std::move(payload)] {
    DeliverToLane(key, generation, time, head, payload);
  });
}

void SimulatedNetwork::DeliverToLane(const Key& key, std::uint32_t generation, std::int64_t time_ms,
                                     const Bytes& head, const Bytes& payload) {
  const Connection& connection = connections_[key];
  if (generation < connection.generation && time_ms > connection.alive_until_ms[generation]) return;
  if (Happens(faults_.garbled)) {
    ++counters_.garbled;
    Bytes short_head = head;
    Bytes short_payload = payload;
    if (payload.empty() || random_() % 2 == 0) {
      short_head.resize(random_() % head.size());
    } else {
      short_payload.resize(random_() % payload.size());
    }
    callbacks_.to_lane(key.second, "stranger", short_head, short_payload);
  }
  callbacks_.to_lane(key.second, IdentityOf(key, generation), head, payload);
}

void SimulatedNetwork::SendToWorker(std::uint32_t lane, const std::string& identity, Bytes head,
                                    Bytes payload) {
  const auto found = identities_.find(identity);
  if (found == identities_.end() || found->second.first.second != lane) return;  // the stranger
  const auto [key, generation] = found->second;
  Connection& connection = connections_[key];
  // The connection that the request came over is gone, and its answer with it.
  if (connection.closed || connection.generation != generation) return;
  ++counters_.messages;
  if (Happens(faults_.lost)) {
    ++counters_.lost;
    return;
  }
  std::int64_t time = events_.now_ms() + 1 + Below(std::max<std::int64_t>(1, faults_.delay_ms_max));
  if (Happens(faults_.stalled)) time += Below(kStallMs);
  time = connection.last_to_worker_ms = std::max(time, connection.last_to_worker_ms);
  if (Happens(faults_.repeated)) {
    ++counters_.repeated;
    const std::int64_t again = time + Below(kRepeatMs);
    events_.At(again, [=, this, key = key, generation = generation] {
      DeliverToWorker(key, generation, head, payload);
    });
  }
  events_.At(time,
             [=, this, key = key, generation = generation, head = std::move(head),
              payload = std::move(payload)] { DeliverToWorker(key, generation, head, payload); });
}

void SimulatedNetwork::DeliverToWorker(const Key& key, std::uint32_t generation, const Bytes& head,
                                       const Bytes& payload) {
  const Connection& connection = connections_[key];
  if (connection.closed || connection.generation != generation) return;
  callbacks_.to_worker(key.first, key.second, head, payload);
}

void SimulatedNetwork::Close(std::uint64_t peer) {
  for (auto& [key, connection] : connections_) {
    if (key.first == peer) connection.closed = true;
  }
}

}  // namespace ps::simulation
