// The data side of a simulated task, or of the agent that replays a dead one: the real retention
// ring and push stream, with messages, pulls and holds as ps-worker/task/data_client.h makes them.
//
// The ring's memory is shared memory of the machine and outlives the client.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/messages/control.h"
#include "common/messages/wire.h"
#include "ps-worker/core/push_stream.h"
#include "ps-worker/core/retention_ring.h"
#include "tests/simulation/cluster/history.h"
#include "tests/simulation/cluster/network.h"

namespace ps::simulation {

// As aligned as a retention ring wants it.
class RingRegion {
 public:
  explicit RingRegion(std::size_t bytes) : lines_(bytes / sizeof(Line)) {}
  std::span<std::byte> bytes() {
    return {reinterpret_cast<std::byte*>(lines_.data()), lines_.size() * sizeof(Line)};
  }

 private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> lines_;
};

class SimulatedDataClient {
 public:
  struct Callbacks {
    std::function<void(ShardId, Units)> returned;  // TooOld: back into the residual
    std::function<void(std::uint64_t round, Clock)> round_cut;
    std::function<void()> advanced;
    std::function<void()> pulled;
    std::function<void(const std::string&)> broken;
  };

  SimulatedDataClient(Schedule& schedule, Network& network, History& history, MachineId machine,
                      worker::RetentionRing& ring, std::uint64_t token, bool ghost,
                      std::uint32_t window, bool keep_refused, Callbacks callbacks);
  ~SimulatedDataClient();

  void SetMap(const control::MapT& map);
  void BeginRound(std::uint64_t round);
  void AbortRound(std::uint64_t round);
  void Committed();
  void Release(Clock cut);
  void StartPull(Clock needed, bool snapshot);
  void SetHold(bool on);
  // The newest pulled values become the base of pushes from now on.
  void Adopt() { base_ = pulled_; }

  bool pulled() const { return !pull_.has_value(); }
  const worker::PushStream& stream() const { return stream_; }
  // By shard, as pulled.
  const std::vector<std::vector<float>>& values() const { return values_; }
  // One step: adds `units` of each shard in the incarnation's cells. False if the ring is full.
  bool Push(worker::RingEntryInfo info, const std::vector<Units>& units);

 private:
  struct Base {
    std::uint64_t version = 0;
    std::uint32_t lineage = 0;
  };
  struct Lane {
    Network::LinkId link = 0;
    bool hold_known = true;
    std::int64_t hold_sent_ms = 0;
  };
  struct CurrentPull {
    std::uint64_t request = 0;
    Clock needed;
    bool snapshot = false;
    std::vector<bool> have;
    std::map<std::uint32_t, std::int64_t> next_send_ms;  // by lane
    Clock acked;                                         // by all shards, when it was asked for
    std::uint64_t map_version = 0;
  };

  void Tick();
  void OnConnection(std::uint32_t lane, bool connected);
  void OnMessage(std::uint32_t lane, const Packet& packet);
  void Do(worker::StreamActions actions);
  void SendPush(const worker::SendPush& push);
  void SendPulls();
  void SendHolds();
  void OnPullReply(const wire::Head& head, const Bytes& payload);
  wire::LaneHeader Header(wire::Kind kind, std::uint64_t request) const;
  void Send(std::uint32_t lane, wire::LaneHeader header, std::span<const wire::Segment> segments,
            Bytes payload = {});

  Schedule& schedule_;
  Network& network_;
  History& history_;
  const MachineId machine_;
  worker::RetentionRing& ring_;
  const std::uint64_t token_;
  const bool ghost_;
  const bool keep_refused_;
  const Callbacks callbacks_;
  worker::PushStream stream_;
  std::map<std::string, std::uint32_t> lane_numbers_;
  std::map<std::uint32_t, Lane> lanes_;
  std::vector<Base> pulled_;
  std::vector<Base> base_;
  std::vector<std::vector<float>> values_;
  std::optional<CurrentPull> pull_;
  bool hold_ = false;
  std::uint64_t hold_request_ = 0;
  std::uint64_t next_pull_;
  Life life_ = std::make_shared<int>(0);
};

}  // namespace ps::simulation
