// A worker task, or the agent that replays a dead one, in a simulation: the real retention ring and
// the real push stream, with messages as DataClient builds them and pulls as the Trainer asks.
//
// One thread. The ring's memory outlives the worker: a ghost opens what a task left.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/layout/layout.h"
#include "common/messages/wire.h"
#include "ps-worker/core/push_stream.h"
#include "ps-worker/core/retention_ring.h"
#include "tests/simulation/shard_space.h"
#include "tests/simulation/simulated_network.h"

namespace ps::simulation {

// Memory of a retention ring, as aligned as the ring wants it.
class RingMemory {
 public:
  explicit RingMemory(std::size_t bytes) : lines_(bytes / sizeof(Line)) {}
  std::span<std::byte> region() {
    return {reinterpret_cast<std::byte*>(lines_.data()), lines_.size() * sizeof(Line)};
  }

 private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> lines_;
};

class SimulatedWorker {
 public:
  struct Callbacks {
    std::function<void(Bytes& values, ShardId shard)> initial;  // the Init payload of a shard
    std::function<void(Clock, ShardId, wire::Code)> refused;    // before the ring's copy is void
    std::function<void(std::uint64_t round, Clock)> cut;
    std::function<void(const std::string&)> broken;
  };

  // A live task; `ghost`: what the ring in `memory` holds is replayed.
  SimulatedWorker(SimulatedNetwork& network, const ShardSpace& space, std::uint64_t peer,
                  const worker::RingIdentity& identity, RingMemory& memory, std::uint32_t window,
                  bool ghost, bool fp32, Callbacks callbacks);

  void Tick(std::int64_t now_ms);
  void SetMap(const worker::StreamMap& map);
  void Reconnected(std::uint32_t lane);
  void OnMessage(std::uint32_t lane, const Bytes& head, const Bytes& payload);
  void BeginRound(std::uint64_t round);
  void AbortRound(std::uint64_t round);
  void Release(Clock cut);

  // Whether a step could be made: room in window and ring, the last pull answered.
  bool Ready() const { return stream_->HasRoom() && !pull_.has_value(); }
  // The push of the next clock. False if the ring is full.
  bool Push(const std::vector<ShardEntries>& shards, std::uint32_t samples);
  // The newest pulled values are the base of pushes from now on.
  void Adopt() { base_ = pulled_; }
  void StartPull(Clock needed);
  // Takes the clock out of the staleness rule, or back in; repeated until every lane has it.
  void SetHold(bool on);

  const worker::PushStream& stream() const { return *stream_; }
  const worker::RetentionRing& ring() const { return *ring_; }
  std::uint64_t peer() const { return peer_; }
  bool pulled() const { return !pull_.has_value(); }
  // As pulled, by block of the job.
  const std::vector<std::vector<float>>& values() const { return values_; }
  // As pulled, by shard: all rows that the space has, one after the other, table by table.
  const std::vector<std::vector<float>>& rows() const { return rows_; }

 private:
  struct Base {
    std::uint64_t version = 0;
    std::uint32_t lineage = 0;
  };
  struct CurrentPull {
    std::uint64_t request = 0;
    Clock needed;
    std::vector<bool> have;
    std::map<std::uint32_t, std::int64_t> next_send_ms;  // by lane
  };

  void Do(worker::StreamActions actions);
  void Send(std::uint32_t lane, wire::LaneHeader header, std::span<const wire::Segment> segments,
            Bytes payload = {});
  void SendPush(const worker::SendPush& push);
  void SendPulls();
  void SendHolds();
  void OnPullReply(const wire::Head& head, const Bytes& payload);
  wire::LaneHeader Header(wire::Kind kind, std::uint64_t request) const;

  SimulatedNetwork& network_;
  const ShardSpace& space_;
  const LayoutView& layout_;
  const std::uint64_t peer_;
  const bool ghost_;
  const bool fp32_;
  const Callbacks callbacks_;
  std::optional<worker::RetentionRing> ring_;
  std::optional<worker::PushStream> stream_;
  std::int64_t now_ms_ = 0;
  std::vector<Base> pulled_;
  std::vector<Base> base_;
  std::vector<std::vector<float>> values_;
  std::vector<std::vector<float>> rows_;
  std::optional<CurrentPull> pull_;
  bool hold_ = false;
  std::uint64_t hold_request_ = 0;                      // 0: never asked for
  std::map<std::uint32_t, std::int64_t> hold_next_ms_;  // by lane; the last possible: confirmed
  std::uint64_t next_pull_ = std::uint64_t{1} << 60;
};

}  // namespace ps::simulation
