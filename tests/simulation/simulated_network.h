// The network between workers and lanes, as bad as it may be.
//
// Each (peer, lane) pair has one connection at a time, in order in each
// direction. While the faults are on, messages are lost, delivered again much
// later, stalled; and connections are cut: what is under way to the worker is
// lost, what is under way to the lane is lost from some point on, and until
// then overtaken by what the next connection brings. A copy of a message that
// was cut short may reach the lane from a stranger. A lane sees a new identity
// for each connection, as behind a ROUTER. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tests/simulation/event_queue.h"

namespace ps::simulation {

using Bytes = std::vector<std::byte>;

// How often, of a thousand messages.
struct NetworkFaults {
  std::uint32_t lost = 0;
  std::uint32_t repeated = 0;
  std::uint32_t stalled = 0;  // and all behind it in its direction
  std::uint32_t cut = 0;
  std::uint32_t garbled = 0;
  std::uint32_t delay_ms_max = 30;
};

class SimulatedNetwork {
 public:
  struct Callbacks {
    std::function<void(std::uint32_t lane, const std::string& identity, const Bytes& head,
                       const Bytes& payload)>
        to_lane;
    std::function<void(std::uint64_t peer, std::uint32_t lane, const Bytes& head,
                       const Bytes& payload)>
        to_worker;
    std::function<void(std::uint64_t peer, std::uint32_t lane)> reconnected;
  };
  struct Counters {
    std::uint64_t messages = 0;
    std::uint64_t lost = 0;
    std::uint64_t repeated = 0;
    std::uint64_t cuts = 0;
    std::uint64_t garbled = 0;
  };

  SimulatedNetwork(EventQueue& events, std::mt19937_64& random, const NetworkFaults& faults,
                   Callbacks callbacks)
      : events_(events), random_(random), faults_(faults), callbacks_(std::move(callbacks)) {}

  void SendToLane(std::uint64_t peer, std::uint32_t lane, Bytes head, Bytes payload);
  void SendToWorker(std::uint32_t lane, const std::string& identity, Bytes head, Bytes payload);
  // The peer is dead: nothing reaches it any more; what it has sent may still arrive.
  void Close(std::uint64_t peer);
  void StopFaults() { faults_ = NetworkFaults(); }

  const Counters& counters() const { return counters_; }

 private:
  using Key = std::pair<std::uint64_t, std::uint32_t>;  // peer, lane
  struct Connection {
    std::uint32_t generation = 0;
    bool closed = false;
    std::int64_t up_at_ms = 0;  // what is sent before it waits for it
    std::int64_t last_to_lane_ms = 0;
    std::int64_t last_to_worker_ms = 0;
    std::vector<std::int64_t> alive_until_ms;  // of the generations before, towards the lane
  };

  bool Happens(std::uint32_t per_thousand) {
    return per_thousand != 0 && random_() % 1000 < per_thousand;
  }
  std::int64_t Below(std::int64_t limit) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(limit));
  }
  static std::string IdentityOf(const Key& key, std::uint32_t generation);
  void Cut(const Key& key, Connection& connection);
  void DeliverToLane(const Key& key, std::uint32_t generation, std::int64_t time_ms,
                     const Bytes& head, const Bytes& payload);
  void DeliverToWorker(const Key& key, std::uint32_t generation, const Bytes& head,
                       const Bytes& payload);

  EventQueue& events_;
  std::mt19937_64& random_;
  NetworkFaults faults_;
  const Callbacks callbacks_;
  std::map<Key, Connection> connections_;
  std::map<std::string, std::pair<Key, std::uint32_t>> identities_;
  Counters counters_;
};

}  // namespace ps::simulation
