#include "tests/simulation/hostile_network.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <tuple>
#include <vector>

#include "ps-server/core/lane_core.h"
#include "tests/ps-server/core/server_testing.h"
#include "tests/simulation/event_queue.h"
#include "tests/simulation/simulated_network.h"
#include "tests/simulation/simulated_worker.h"

namespace ps::simulation {
namespace {

using server::LaneCore;
using server::Member;

const JobId kJob(1);
constexpr float kInitial = 1000;
constexpr std::int64_t kFaultsMs = 12'000;
constexpr std::int64_t kSettleMs = 240'000;
constexpr std::int64_t kTickMs = 20;
constexpr std::size_t kRingBytes = std::size_t{1} << 20;

class Cluster {
 public:
  explicit Cluster(std::uint64_t seed);
  HostileReport Run();

 private:
  struct Lane {
    std::unique_ptr<LaneCore> core;  // null: the server is gone
    std::int64_t control_ms = 0;     // control messages arrive in order
  };
  struct Place {
    std::uint32_t lane = 0;
    Epoch epoch;
    std::uint32_t lineage = 1;
    Round restore;
  };
  struct Slot {
    Incarnation incarnation;
    bool live = false;
    Clock first_clock;
    std::unique_ptr<SimulatedWorker> task;
    std::vector<ShardEntries> residual;
    std::uint64_t reported = 0;  // the clock that the coordinator knows
    std::int64_t control_ms = 0;
    std::int64_t pace_ms = 0;
  };
  struct Dead {
    std::uint32_t worker = 0;
    Incarnation incarnation;
    Clock first_clock;
    bool replayed = false;
    std::unique_ptr<SimulatedWorker> ghost;
    std::int64_t control_ms = 0;
  };
  struct OpenRound {
    std::uint64_t number = 0;
    std::int64_t begun_ms = 0;
    std::set<Incarnation> dead;
    std::map<Incarnation, Clock> cuts;
    std::set<std::uint32_t> lanes;
    std::map<std::uint32_t, checkpoint::ShardImage> images;
  };
  struct Pushed {
    std::uint32_t samples = 0;
    std::vector<ShardEntries> shards;  // what counts; emptied where it was taken back
  };

  std::uint64_t Dice(std::uint64_t sides) { return random_() % sides; }
  void Fail(const std::string& what);

  // Members.
  void AddLane();
  void StartTask(std::uint32_t slot);
  void TakeStart(std::uint32_t slot, Incarnation incarnation, Clock first_clock,
                 const worker::StreamMap& map);
  void KillTask(std::uint32_t slot);
  void LoseServer();
  void Tick();
  void Step(std::uint32_t slot);
  void Misfortune();

  // The coordinator.
  template <typename Act>
  void ToLane(std::uint32_t lane, Act act);
  template <typename Act>
  void ToTask(std::uint32_t slot, Act act);
  template <typename Act>
  void ToGhost(Incarnation incarnation, Act act);
  template <typename Act>
  void ToCoordinator(Act act) {
    events_.After(static_cast<std::int64_t>(1 + Dice(100)), act);
  }
  void BroadcastLive();
  void BroadcastMap();
  server::LaneMap LaneMapFor(std::uint32_t lane) const;
  server::LiveMembers Live() const;
  worker::StreamMap Map() const;
  void MaybeBeginRound();
  void AbortRound();
  void MaybeCommit();
  void OnTaskExited(std::uint32_t slot, Incarnation incarnation);
  Dead* FindDead(Incarnation incarnation);

  // Lanes.
  void Flush(std::uint32_t lane);
  void Observe(const wire::Head& head);
  void OnRestoreWanted(std::uint32_t lane, const server::RestoreWanted& wanted);

  SimulatedWorker::Callbacks CallbacksOf(std::uint32_t slot, Incarnation incarnation, bool ghost);
  std::string Unsettled() const;
  void VerifyStaleness();
  void Verify();

  const std::uint64_t seed_;
  std::mt19937_64 random_;
  EventQueue events_;
  HostileReport report_;
  bool calm_ = false;
  LayoutView layout_;
  std::optional<ShardSpace> space_;
  server::JobRules rules_;
  std::uint32_t window_ = 4;
  std::int64_t staleness_ = 3;  // < 0: unlimited
  std::uint32_t weights_ = 1;   // samples of a push: 1 .. weights_
  bool holds_ = false;          // workers leave the staleness rule now and then
  bool bounded_ = false;        // no push may be staler than the bound: nobody joins, dies or holds
  std::uint32_t task_deaths_left_ = 0;
  std::uint32_t server_deaths_left_ = 0;
  std::optional<SimulatedNetwork> network_;

  std::vector<Lane> lanes_;
  std::vector<Slot> slots_;
  std::vector<Dead> dead_;
  std::map<std::uint64_t, SimulatedWorker*> peers_;
  std::map<Incarnation, std::unique_ptr<RingMemory>> memories_;
  std::uint64_t next_peer_ = 1;
  std::uint32_t next_incarnation_ = 1;

  std::uint64_t map_version_ = 1;
  std::vector<Place> map_;
  std::uint64_t live_version_ = 1;
  std::uint64_t next_round_ = 1;
  std::optional<OpenRound> round_;
  std::map<std::uint64_t, std::map<std::uint32_t, checkpoint::ShardImage>> committed_;

  std::map<std::pair<Incarnation, Clock>, Pushed> ledger_;
  // (shard, epoch, incarnation, clock) whose verdict a lane has given as TooOld.
  std::set<std::tuple<std::uint32_t, Epoch, Incarnation, Clock>> too_old_;
};

Cluster::Cluster(std::uint64_t seed) : seed_(seed), random_(seed) {
  const auto shards = static_cast<std::uint32_t>(1 + Dice(6));
  std::vector<std::uint32_t> widths;
  for (std::uint64_t table = Dice(3); table > 0; --table) {
    widths.push_back(static_cast<std::uint32_t>(1 + Dice(4)));
  }
  // With tables of rows some shards may have no block.
  const std::uint64_t block_count = widths.empty() ? shards + Dice(4) : 1 + Dice(shards + 3);
  std::vector<std::uint32_t> blocks;
  for (std::uint64_t i = 0; i < block_count; ++i) {
    blocks.push_back(static_cast<std::uint32_t>(3 + Dice(40)));
  }
  layout_ = server::testing::MakeLayout({{TableRule::Sgd, blocks}}, shards, widths);
  space_.emplace(layout_);
  rules_ = server::testing::ConstantRules(1.0);
  for (std::uint32_t table = 0; table < widths.size(); ++table) {
    rules_.rows.push_back(server::testing::MakeRowRules(table, widths[table], 1.0));
    rules_.rows.back().initializer =
        server::RowInitializer(server::RowInitializer::Kind::kConstant, kInitial, 0, seed_, table);
  }
  slots_.resize(2 + Dice(3));
  rules_.version_gap_max = 2 * slots_.size() + Dice(20);
  window_ = static_cast<std::uint32_t>(1 + Dice(12));
  staleness_ = static_cast<std::int64_t>(Dice(6)) - 1;
  rules_.bulk_synchronous = staleness_ == 0;
  weights_ = Dice(2) == 0 ? 1 : 4;
  task_deaths_left_ = static_cast<std::uint32_t>(Dice(6));
  server_deaths_left_ = static_cast<std::uint32_t>(Dice(4));
  holds_ = Dice(3) == 0;
  bounded_ = task_deaths_left_ == 0 && server_deaths_left_ == 0 && !holds_;

  NetworkFaults faults;
  faults.delay_ms_max = static_cast<std::uint32_t>(2 + Dice(60));
  if (Dice(4) != 0) faults.lost = static_cast<std::uint32_t>(Dice(120));
  if (Dice(4) != 0) faults.repeated = static_cast<std::uint32_t>(Dice(100));
  if (Dice(3) != 0) faults.stalled = static_cast<std::uint32_t>(Dice(10));
  if (Dice(3) != 0) faults.cut = static_cast<std::uint32_t>(Dice(25));
  if (Dice(3) != 0) faults.garbled = static_cast<std::uint32_t>(Dice(30));
  SimulatedNetwork::Callbacks callbacks;
  callbacks.to_lane = [this](std::uint32_t lane, const std::string& from, const Bytes& head,
                             const Bytes& payload) {
    if (lanes_[lane].core == nullptr) return;
    lanes_[lane].core->OnMessage(from, head, payload);
    Flush(lane);
  };
  callbacks.to_worker = [this](std::uint64_t peer, std::uint32_t lane, const Bytes& head,
                               const Bytes& payload) {
    if (const auto found = peers_.find(peer); found != peers_.end()) {
      found->second->OnMessage(lane, head, payload);
    }
  };
  callbacks.reconnected = [this](std::uint64_t peer, std::uint32_t lane) {
    if (const auto found = peers_.find(peer); found != peers_.end()) {
      found->second->Reconnected(lane);
    }
  };
  network_.emplace(events_, random_, faults, std::move(callbacks));

  const std::uint64_t lanes = 1 + Dice(3);
  for (std::uint32_t i = 0; i < shards; ++i) {
    map_.push_back(Place{static_cast<std::uint32_t>(Dice(lanes)), Epoch(1), 1, Round()});
  }
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    slots_[slot].pace_ms = static_cast<std::int64_t>(5 + Dice(Dice(4) == 0 ? 300 : 40));
    // All are in the first live set, as the coordinator has it, however late they hear of it.
    Slot& first = slots_[slot];
    first.incarnation = Incarnation(next_incarnation_++);
    first.live = true;
    first.control_ms = static_cast<std::int64_t>(1 + Dice(500));
    events_.At(first.control_ms, [this, slot, incarnation = first.incarnation, map = Map()] {
      TakeStart(slot, incarnation, Clock(0), map);
    });
  }
  for (std::uint64_t i = 0; i < lanes; ++i) AddLane();
}

void Cluster::Fail(const std::string& what) {
  if (report_.violation.empty()) {
    report_.violation = "seed " + std::to_string(seed_) + " at " +
                        std::to_string(events_.now_ms()) + " ms: " + what;
  }
}

// ---- what the coordinator sends arrives in order for each receiver, some time

template <typename Act>
void Cluster::ToLane(std::uint32_t lane, Act act) {
  std::int64_t& last = lanes_[lane].control_ms;
  last = std::max(last, events_.now_ms() + static_cast<std::int64_t>(1 + Dice(150)));
  events_.At(last, [this, lane, act] {
    if (lanes_[lane].core == nullptr) return;
    act(*lanes_[lane].core);
    Flush(lane);
  });
}

template <typename Act>
void Cluster::ToTask(std::uint32_t slot, Act act) {
  const Incarnation incarnation = slots_[slot].incarnation;
  std::int64_t& last = slots_[slot].control_ms;
  last = std::max(last, events_.now_ms() + static_cast<std::int64_t>(1 + Dice(150)));
  events_.At(last, [this, slot, incarnation, act] {
    Slot& to = slots_[slot];
    if (to.incarnation == incarnation && to.task != nullptr) act(*to.task);
  });
}

template <typename Act>
void Cluster::ToGhost(Incarnation incarnation, Act act) {
  Dead* dead = FindDead(incarnation);
  dead->control_ms =
      std::max(dead->control_ms, events_.now_ms() + static_cast<std::int64_t>(1 + Dice(150)));
  events_.At(dead->control_ms, [this, incarnation, act] {
    if (Dead* to = FindDead(incarnation)) act(*to);
  });
}

Cluster::Dead* Cluster::FindDead(Incarnation incarnation) {
  const auto found = std::find_if(dead_.begin(), dead_.end(), [&](const Dead& dead) {
    return dead.incarnation == incarnation;
  });
  return found != dead_.end() ? &*found : nullptr;
}

server::LaneMap Cluster::LaneMapFor(std::uint32_t lane) const {
  server::LaneMap map;
  map.version = map_version_;
  for (std::uint32_t i = 0; i < map_.size(); ++i) {
    if (map_[i].lane != lane) continue;
    map.shards.push_back({ShardId(i), map_[i].epoch, map_[i].lineage, map_[i].restore});
  }
  return map;
}

worker::StreamMap Cluster::Map() const {
  worker::StreamMap map;
  map.version = map_version_;
  for (const Place& place : map_) map.shards.push_back({place.lane, place.epoch, place.lineage});
  return map;
}

server::LiveMembers Cluster::Live() const {
  server::LiveMembers live;
  live.version = live_version_;
  for (std::uint32_t i = 0; i < slots_.size(); ++i) {
    if (!slots_[i].live) continue;
    live.members.push_back(
        {WorkerId(i), slots_[i].incarnation, slots_[i].first_clock, false, false});
  }
  for (const Dead& dead : dead_) {
    live.members.push_back(
        {WorkerId(dead.worker), dead.incarnation, dead.first_clock, true, false});
  }
  std::sort(live.members.begin(), live.members.end(),
            [](const Member& a, const Member& b) { return a.incarnation < b.incarnation; });
  return live;
}

void Cluster::BroadcastLive() {
  for (std::uint32_t lane = 0; lane < lanes_.size(); ++lane) {
    ToLane(lane, [live = Live()](LaneCore& core) { core.UpdateLive(kJob, live); });
  }
}

void Cluster::BroadcastMap() {
  for (std::uint32_t lane = 0; lane < lanes_.size(); ++lane) {
    ToLane(lane, [map = LaneMapFor(lane)](LaneCore& core) { core.UpdateMap(kJob, map); });
  }
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot].live) {
      ToTask(slot, [map = Map()](SimulatedWorker& task) { task.SetMap(map); });
    }
  }
  for (Dead& dead : dead_) {
    dead.replayed = false;
    ToGhost(dead.incarnation, [map = Map()](Dead& to) {
      if (to.ghost != nullptr) to.ghost->SetMap(map);
    });
  }
}

// ---- members

void Cluster::AddLane() {
  const auto number = static_cast<std::uint32_t>(lanes_.size());
  lanes_.emplace_back();
  lanes_.back().core = std::make_unique<LaneCore>(server::LaneMemory{random_(), {}});
  ToLane(number, [this, map = LaneMapFor(number), live = Live()](LaneCore& core) {
    core.SetJob(server::JobSetup{kJob, layout_, rules_, map, live});
  });
}

void Cluster::StartTask(std::uint32_t number) {
  Slot& slot = slots_[number];
  slot.incarnation = Incarnation(next_incarnation_++);
  slot.control_ms = events_.now_ms();
  events_.After(static_cast<std::int64_t>(Dice(500)),
                [this, number, incarnation = slot.incarnation] {
                  // The task is ready: it joins the live set behind all clocks that the coordinator
                  // knows.
                  Slot& ready = slots_[number];
                  if (ready.incarnation != incarnation) return;
                  Clock first(0);
                  for (const Slot& other : slots_) {
                    first = std::max({first, other.first_clock, Clock(other.reported)});
                  }
                  AbortRound();
                  ready.first_clock = first;
                  ready.live = true;
                  ++live_version_;
                  BroadcastLive();
                  ready.control_ms += static_cast<std::int64_t>(1 + Dice(150));
                  events_.At(ready.control_ms, [this, number, incarnation, first, map = Map()] {
                    TakeStart(number, incarnation, first, map);
                  });
                });
}

void Cluster::TakeStart(std::uint32_t number, Incarnation incarnation, Clock first_clock,
                        const worker::StreamMap& map) {
  Slot& slot = slots_[number];
  if (slot.incarnation != incarnation) return;
  auto& memory = memories_[incarnation];
  memory = std::make_unique<RingMemory>(kRingBytes);
  worker::RingIdentity identity{kJob, WorkerId(number),      incarnation,
                                0,    layout_.shard_count(), first_clock};
  slot.task = std::make_unique<SimulatedWorker>(*network_, *space_, next_peer_++, identity, *memory,
                                                window_, /*ghost=*/false, /*fp32=*/true,
                                                CallbacksOf(number, incarnation, /*ghost=*/false));
  slot.residual.assign(layout_.shard_count(), {});
  slot.reported = first_clock.value();
  peers_[slot.task->peer()] = slot.task.get();
  slot.task->Tick(events_.now_ms());
  slot.task->SetMap(map);
  slot.task->StartPull(Clock(0));
}

SimulatedWorker::Callbacks Cluster::CallbacksOf(std::uint32_t slot, Incarnation incarnation,
                                                bool ghost) {
  SimulatedWorker::Callbacks callbacks;
  callbacks.initial = [this](Bytes& payload, ShardId shard) {
    payload = server::testing::ConstantShard(layout_, shard, kInitial);
  };
  callbacks.refused = [this, slot, incarnation, ghost](Clock clock, ShardId shard,
                                                       wire::Code code) {
    ShardEntries& entries = ledger_[{incarnation, clock}].shards[shard.value()];
    if (code == wire::Code::TooOld) {
      if (ghost) {
        report_.unheard_too_old += entries.empty() ? 0 : 1;
      } else {
        for (const auto& [element, value] : entries) {
          slots_[slot].residual[shard.value()][element] += value;
        }
      }
    }
    entries.clear();
  };
  callbacks.cut = [this, incarnation](std::uint64_t round, Clock clock) {
    ToCoordinator([this, incarnation, round, clock] {
      if (!round_ || round_->number != round) return;
      round_->cuts[incarnation] = clock;
      MaybeCommit();
    });
  };
  callbacks.broken = [this, incarnation](const std::string& why) {
    Fail("the stream of incarnation " + std::to_string(incarnation.value()) + " broke: " + why);
  };
  return callbacks;
}

void Cluster::KillTask(std::uint32_t number) {
  Slot& slot = slots_[number];
  if (slot.task == nullptr) return;
  ++report_.task_deaths;
  report_.replays += slot.task->stream().counters().replays;
  network_->Close(slot.task->peer());
  peers_.erase(slot.task->peer());
  slot.task.reset();
  ToCoordinator(
      [this, number, incarnation = slot.incarnation] { OnTaskExited(number, incarnation); });
}

void Cluster::OnTaskExited(std::uint32_t number, Incarnation incarnation) {
  Slot& slot = slots_[number];
  AbortRound();
  slot.live = false;
  const auto ring = worker::RetentionRing::Open(memories_[incarnation]->region());
  if (!ring.ok()) return Fail("a dead task's ring cannot be opened: " + ring.error().message);
  const bool pushed = ring->last_clock() > slot.first_clock;
  slot.reported = std::max(slot.reported, ring->last_clock().value());
  if (pushed) {
    dead_.push_back(Dead{number, incarnation, slot.first_clock, false, nullptr, events_.now_ms()});
  }
  ++live_version_;
  BroadcastLive();
  if (pushed) {
    ToGhost(incarnation, [this, map = Map()](Dead& dead) {
      worker::RingIdentity identity{kJob, WorkerId(dead.worker), dead.incarnation,
                                    0,    layout_.shard_count(), dead.first_clock};
      dead.ghost = std::make_unique<SimulatedWorker>(
          *network_, *space_, next_peer_++, identity, *memories_[dead.incarnation], window_,
          /*ghost=*/true, /*fp32=*/true, CallbacksOf(dead.worker, dead.incarnation, true));
      peers_[dead.ghost->peer()] = dead.ghost.get();
      dead.ghost->Tick(events_.now_ms());
      dead.ghost->SetMap(map);
    });
  }
  StartTask(number);
}

void Cluster::LoseServer() {
  std::vector<std::uint32_t> alive;
  for (std::uint32_t i = 0; i < lanes_.size(); ++i) {
    if (lanes_[i].core != nullptr) alive.push_back(i);
  }
  if (alive.empty()) return;
  const std::uint32_t victim = alive[Dice(alive.size())];
  ++report_.server_deaths;
  lanes_[victim].core.reset();
  // The coordinator hears of it and lets another process take its place.
  events_.After(static_cast<std::int64_t>(1 + Dice(500)), [this, victim] {
    AbortRound();
    ++map_version_;
    const auto heir = static_cast<std::uint32_t>(lanes_.size());
    for (Place& place : map_) {
      if (place.lane != victim) continue;
      place.lane = heir;
      if (Dice(3) == 0) {
        const auto other = static_cast<std::uint32_t>(Dice(lanes_.size()));
        if (lanes_[other].core != nullptr) place.lane = other;
      }
      place.epoch = Epoch(place.epoch.value() + 1);
      ++place.lineage;
      place.restore = committed_.empty() ? Round() : Round(committed_.rbegin()->first);
    }
    AddLane();
    BroadcastMap();
  });
}

// ---- checkpoint rounds

void Cluster::MaybeBeginRound() {
  if (round_) {
    if (events_.now_ms() - round_->begun_ms > 20'000) AbortRound();
    return;
  }
  for (const Slot& slot : slots_) {
    if (!slot.live) return;
  }
  for (const Dead& dead : dead_) {
    if (!dead.replayed) return;
  }
  for (std::uint32_t i = 0; i < map_.size(); ++i) {
    const LaneCore* core = lanes_[map_[i].lane].core.get();
    const server::Shard* shard = core != nullptr ? core->FindShard(kJob, ShardId(i)) : nullptr;
    if (shard == nullptr || shard->epoch() != map_[i].epoch || !shard->ready()) return;
  }
  round_.emplace(OpenRound{});
  round_->number = next_round_++;
  round_->begun_ms = events_.now_ms();
  for (const Dead& dead : dead_) round_->dead.insert(dead.incarnation);
  for (const Place& place : map_) round_->lanes.insert(place.lane);
  const std::uint64_t number = round_->number;
  for (const std::uint32_t lane : round_->lanes) {
    ToLane(lane, [number, live = live_version_, map = map_version_](LaneCore& core) {
      core.BeginRound(kJob, Round(number), live, map);
    });
  }
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    ToTask(slot, [number](SimulatedWorker& task) { task.BeginRound(number); });
  }
}

void Cluster::AbortRound() {
  if (!round_) return;
  const std::uint64_t number = round_->number;
  for (const std::uint32_t lane : round_->lanes) {
    ToLane(lane, [number](LaneCore& core) { core.AbortRound(kJob, Round(number)); });
  }
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    if (!slots_[slot].live) continue;
    ToTask(slot, [number](SimulatedWorker& task) { task.AbortRound(number); });
  }
  round_.reset();
}

void Cluster::MaybeCommit() {
  if (round_->images.size() < map_.size() || round_->cuts.size() < slots_.size()) return;
  for (const auto& [number, image] : round_->images) {
    for (const auto& [incarnation, clock] : round_->cuts) {
      const auto mark = std::find_if(
          image.marks.begin(), image.marks.end(),
          [worker = incarnation](const auto& one) { return one.incarnation == worker; });
      // A worker that has not pushed yet has no mark.
      if (mark != image.marks.end() && mark->watermark != clock) {
        Fail("the image of shard " + std::to_string(number) + " is not of the cut");
      }
    }
  }
  const OpenRound round = std::move(*round_);
  round_.reset();
  ++report_.checkpoints;
  committed_[round.number] = round.images;
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    const auto cut = round.cuts.find(slots_[slot].incarnation);
    if (cut == round.cuts.end()) continue;
    ToTask(slot, [number = round.number, clock = cut->second](SimulatedWorker& task) {
      task.AbortRound(number);
      task.Release(clock);
    });
  }
  bool changed = false;
  std::erase_if(dead_, [&](Dead& dead) {
    if (!round.dead.contains(dead.incarnation)) return false;
    if (dead.ghost != nullptr) {
      report_.replays += dead.ghost->stream().counters().replays;
      network_->Close(dead.ghost->peer());
      peers_.erase(dead.ghost->peer());
    }
    memories_.erase(dead.incarnation);
    changed = true;
    return true;
  });
  if (changed) {
    ++live_version_;
    BroadcastLive();
  }
}

// ---- lanes

void Cluster::Flush(std::uint32_t number) {
  LaneCore& core = *lanes_[number].core;
  std::vector<server::LaneReply> replies;
  core.TakeReplies(replies);
  for (const server::LaneReply& reply : replies) {
    // Answers that travel together meet the network one by one: it can do more to them.
    for (std::span<const std::byte> rest(reply.head); !rest.empty();) {
      wire::Head head;
      const Result<std::size_t> bytes = wire::ParseFirst(rest, head);
      if (!bytes.ok()) return Fail("a lane's answer does not parse");
      Observe(head);
      network_->SendToWorker(
          number, reply.to, Bytes(rest.begin(), rest.begin() + *bytes),
          Bytes(reply.payload.data(), reply.payload.data() + reply.payload.size()));
      rest = rest.subspan(*bytes);
    }
  }
  for (server::LaneEvent& event : core.TakeEvents()) {
    if (auto* frozen = std::get_if<server::LaneFrozen>(&event)) {
      std::vector<checkpoint::ShardImage> images;
      for (const auto& shard : frozen->shards) images.push_back(shard.ToImage());
      ToCoordinator([this, round = frozen->round.value(), images = std::move(images)] {
        if (!round_ || round_->number != round) return;
        for (const auto& image : images) {
          checkpoint::ShardImage& taken = round_->images[image.shard.value()] = image;
          for (checkpoint::RowTableImage& table : taken.rows) checkpoint::SortRows(table);
        }
        MaybeCommit();
      });
    } else if (const auto* wanted = std::get_if<server::RestoreWanted>(&event)) {
      OnRestoreWanted(number, *wanted);
    } else if (const auto* failed = std::get_if<server::LaneRoundFailed>(&event)) {
      ToCoordinator([this, round = failed->round.value()] {
        if (round_ && round_->number == round) AbortRound();
      });
    }
  }
}

// Notes which verdicts are TooOld, before the network may lose the answer.
void Cluster::Observe(const wire::Head& head) {
  if (head.header.kind() != static_cast<std::uint8_t>(wire::Kind::PushReply)) return;
  for (const wire::Segment& segment : head.segments) {
    if (segment.code() != static_cast<std::uint8_t>(wire::Code::TooOld)) continue;
    if (too_old_
            .emplace(segment.shard(), Epoch(segment.epoch()),
                     Incarnation(head.header.incarnation()), Clock(head.header.clock()))
            .second) {
      ++report_.too_old;
    }
  }
}

void Cluster::OnRestoreWanted(std::uint32_t number, const server::RestoreWanted& wanted) {
  events_.After(static_cast<std::int64_t>(1 + Dice(600)), [this, number, wanted] {
    if (lanes_[number].core == nullptr) return;
    const checkpoint::ShardImage& image = committed_[wanted.round.value()][wanted.shard.value()];
    if (!lanes_[number].core->InstallRestored(kJob, wanted.epoch, image, false).ok()) return;
    // The shard has the verdicts of the image again, and none that was given after it.
    std::vector<std::pair<Incarnation, Clock>> kept;
    for (const auto& [shard, epoch, incarnation, clock] : too_old_) {
      if (shard != wanted.shard.value() || epoch != image.epoch) continue;
      for (const auto& mark : image.marks) {
        if (mark.incarnation == incarnation && clock <= mark.watermark) {
          kept.emplace_back(incarnation, clock);
        }
      }
    }
    for (const auto& [incarnation, clock] : kept) {
      too_old_.emplace(wanted.shard.value(), wanted.epoch, incarnation, clock);
    }
    Flush(number);
  });
}

// ---- time

void Cluster::Tick() {
  for (auto& [peer, worker] : peers_) worker->Tick(events_.now_ms());
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot].task != nullptr) Step(slot);
    if (slots_[slot].task != nullptr && Dice(20) == 0) {
      slots_[slot].reported = slots_[slot].task->ring().last_clock().value();
    }
  }
  for (Dead& dead : dead_) {
    if (dead.ghost == nullptr || !dead.ghost->stream().AllAcked()) continue;
    if (Dice(5) != 0) continue;
    ToCoordinator(
        [this, incarnation = dead.incarnation, version = dead.ghost->stream().map_version()] {
          if (Dead* done = FindDead(incarnation); done != nullptr && version == map_version_) {
            done->replayed = true;
          }
        });
  }
  if (Dice(50) == 0) MaybeBeginRound();
  if (!calm_) Misfortune();
  events_.After(kTickMs, [this] { Tick(); });
}

void Cluster::Misfortune() {
  if (task_deaths_left_ > 0 && Dice(120) == 0) {
    --task_deaths_left_;
    KillTask(static_cast<std::uint32_t>(Dice(slots_.size())));
  }
  if (server_deaths_left_ > 0 && Dice(150) == 0) {
    --server_deaths_left_;
    LoseServer();
  }
  if (Dice(400) == 0) AbortRound();
  if (holds_ && Dice(60) == 0) {
    Slot& slot = slots_[Dice(slots_.size())];
    if (slot.task != nullptr) slot.task->SetHold(Dice(2) == 0);
  }
}

void Cluster::Step(std::uint32_t number) {
  Slot& slot = slots_[number];
  const bool rest = std::any_of(slot.residual.begin(), slot.residual.end(),
                                [](const ShardEntries& entries) { return !entries.empty(); });
  if (calm_ && !rest) {
    // Nothing more comes from it: nobody waits for its clock.
    slot.task->SetHold(true);
    return;
  }
  if (!slot.task->Ready() || Dice(static_cast<std::uint64_t>(slot.pace_ms)) > kTickMs) return;
  // As the trainer: the step computes on what was pulled, and asks for the next step's values.
  slot.task->Adopt();
  const Clock clock(slot.task->ring().last_clock().value() + 1);
  const auto s = static_cast<std::uint64_t>(staleness_);
  const bool wait = !calm_ && staleness_ >= 0 && clock.value() > s;
  // Bulk-synchronous workers cannot ask before they have pushed: see below.
  if (staleness_ != 0) slot.task->StartPull(Clock(wait ? clock.value() - s : 0));
  Pushed pushed;
  pushed.samples = static_cast<std::uint32_t>(1 + Dice(weights_));
  pushed.shards = std::exchange(slot.residual, std::vector<ShardEntries>(layout_.shard_count()));
  std::vector<ShardEntries> sent;
  for (std::uint32_t shard = 0; shard < layout_.shard_count(); ++shard) {
    ShardEntries& entries = pushed.shards[shard];
    for (std::uint64_t n = calm_ ? 0 : Dice(4); n > 0; --n) {
      const auto element = static_cast<std::uint32_t>(Dice(space_->Elements(shard)));
      entries[element] += static_cast<float>(Dice(9)) - 4;
      report_.rows += element >= space_->BlockElements(shard) ? 1 : 0;
    }
    sent.push_back(entries);
    if (!entries.empty() && !calm_ && Dice(100) == 0) {
      sent.back().begin()->second = std::numeric_limits<float>::quiet_NaN();
      entries.clear();  // refused whole
      ++report_.non_finite;
    }
  }
  // Known before it leaves: an answer can only come later.
  Pushed& entry = ledger_[{slot.incarnation, clock}];
  entry = std::move(pushed);
  if (slot.task->Push(sent, entry.samples)) {
    ++report_.steps;
    if (staleness_ == 0) slot.task->StartPull(Clock(wait ? clock.value() : 0));
    return;
  }
  slot.residual = std::move(entry.shards);
  ledger_.erase({slot.incarnation, clock});
}

// ---- the end

// What is still under way; empty: nothing.
std::string Cluster::Unsettled() const {
  for (const Slot& slot : slots_) {
    const std::string name = "incarnation " + std::to_string(slot.incarnation.value());
    if (slot.task == nullptr) return name + " has no task";
    const worker::PushStream& stream = slot.task->stream();
    if (stream.map_version() != map_version_) return name + " has an old map";
    if (!stream.AllAcked()) {
      return name + " has " + std::to_string(stream.AckedByAll().value()) + " of " +
             std::to_string(stream.head().value()) + " acknowledged";
    }
    if (!slot.task->pulled()) return name + " waits for a pull";
    for (const ShardEntries& entries : slot.residual) {
      if (!entries.empty()) return name + " has a residual";
    }
  }
  for (const Dead& dead : dead_) {
    if (!dead.replayed) {
      return "incarnation " + std::to_string(dead.incarnation.value()) + " is not replayed";
    }
  }
  const bool homeless = std::any_of(map_.begin(), map_.end(), [this](const Place& place) {
    return lanes_[place.lane].core == nullptr;
  });
  return homeless ? "a shard is on no server" : "";
}

// While the faults go on: who only pushes what it may is never staler than the bound.
void Cluster::VerifyStaleness() {
  for (const Lane& lane : lanes_) {
    if (lane.core == nullptr) continue;
    const server::LaneCounters& counters = lane.core->counters();
    report_.measured += counters.clocks_ahead.count();
    if (bounded_ && staleness_ >= 0 &&
        counters.clocks_ahead.largest() > static_cast<std::uint64_t>(staleness_)) {
      Fail("a push was " + std::to_string(counters.clocks_ahead.largest()) +
           " clocks ahead, the bound is " + std::to_string(staleness_));
    }
    if (!rules_.bulk_synchronous && counters.version_gap.largest() > rules_.version_gap_max) {
      Fail("a push on values " + std::to_string(counters.version_gap.largest()) +
           " pushes old was applied, the bound is " + std::to_string(rules_.version_gap_max));
    }
    if (bounded_ && rules_.bulk_synchronous && counters.version_gap.largest() > 0) {
      Fail("a bulk-synchronous push was computed on old values");
    }
  }
}

void Cluster::Verify() {
  std::uint64_t samples = 0;
  for (const auto& [name, pushed] : ledger_) samples += pushed.samples;
  std::set<Incarnation> living;
  for (const Slot& slot : slots_) living.insert(slot.incarnation);
  for (std::uint32_t number = 0; number < map_.size(); ++number) {
    const server::Shard* shard = lanes_[map_[number].lane].core->FindShard(kJob, ShardId(number));
    const std::string name = "shard " + std::to_string(number);
    if (shard == nullptr || shard->epoch() != map_[number].epoch)
      return Fail(name + " is not there");
    std::vector<double> sum(space_->Elements(number), 0);
    for (const auto& [key, pushed] : ledger_) {
      const auto& [incarnation, clock] = key;
      const ShardEntries& entries = pushed.shards[number];
      if (entries.empty()) continue;
      if (too_old_.contains({number, map_[number].epoch, incarnation, clock})) {
        if (living.contains(incarnation)) {
          return Fail(name + ": worker never heard that clock " + std::to_string(clock.value()) +
                      " was too old");
        }
        ++report_.unheard_too_old;
        continue;
      }
      for (const auto& [element, value] : entries) sum[element] += pushed.samples * value;
    }
    std::vector<float> values = shard->values();
    for (std::uint32_t table = 0; table < layout_.row_table_count(); ++table) {
      const std::uint32_t width = layout_.row_width(table);
      shard->rows().table(table).Read(space_->Keys(number, table),
                                      [&](std::size_t, const float* row) {
                                        // A row that nobody pushed to is not there.
                                        values.resize(values.size() + width, kInitial);
                                        if (row != nullptr)
                                          std::copy_n(row, width, values.end() - width);
                                      });
    }
    if (values.size() != sum.size()) return Fail(name + " has another size");
    for (std::size_t i = 0; i < sum.size(); ++i) {
      // The rate is 1, and w falls by what is pushed.
      if (values[i] != static_cast<float>(kInitial - sum[i])) {
        std::ostringstream text;
        text << name << " element " << i << " is " << values[i] << ", not " << kInitial - sum[i];
        return Fail(text.str());
      }
    }
    if (!shard->held().empty()) return Fail(name + " holds pushes back");
    if (shard->samples_trained() != samples) {
      return Fail(name + " counts " + std::to_string(shard->samples_trained()) + " samples, not " +
                  std::to_string(samples));
    }
    for (const Slot& slot : slots_) {
      for (auto block = layout_.shard_first_block(ShardId(number));
           block < layout_.shard_last_block(ShardId(number)); ++block) {
        const auto begin = layout_.offset_in_shard(block);
        const auto& pulled = slot.task->values()[block];
        if (!std::equal(pulled.begin(), pulled.end(),
                        values.begin() + static_cast<std::ptrdiff_t>(begin))) {
          return Fail(name + ": a worker's pulled values are others than the shard's");
        }
      }
      if (!std::equal(slot.task->rows()[number].begin(), slot.task->rows()[number].end(),
                      values.begin() + space_->BlockElements(number), values.end())) {
        return Fail(name + ": a worker's pulled rows are others than the shard's");
      }
    }
  }
}

HostileReport Cluster::Run() {
  Tick();
  while (report_.violation.empty() && events_.now_ms() < kFaultsMs) events_.RunNext();
  VerifyStaleness();
  calm_ = true;
  network_->StopFaults();
  // Who stops first must not let the others wait for its clock.
  for (Slot& slot : slots_) {
    if (slot.task != nullptr) slot.task->StartPull(Clock(0));
  }
  const std::int64_t end = events_.now_ms() + kSettleMs;
  // Quiet for longer than any message may have been stalled or repeated.
  std::int64_t quiet_since = events_.now_ms();
  bool pulled_last = false;
  while (report_.violation.empty()) {
    events_.RunNext();
    if (!Unsettled().empty()) {
      quiet_since = events_.now_ms();
      if (quiet_since > end) Fail("does not settle: " + Unsettled());
    } else if (events_.now_ms() - quiet_since > 12'000) {
      if (pulled_last) break;
      pulled_last = true;
      for (Slot& slot : slots_) slot.task->StartPull(Clock(0));
    }
  }
  if (report_.violation.empty()) Verify();
  for (const Slot& slot : slots_) {
    if (slot.task != nullptr) report_.replays += slot.task->stream().counters().replays;
  }
  report_.messages = network_->counters().messages;
  report_.lost = network_->counters().lost;
  report_.repeated = network_->counters().repeated;
  report_.cuts = network_->counters().cuts;
  report_.garbled = network_->counters().garbled;
  report_.virtual_ms = events_.now_ms();
  return report_;
}

}  // namespace

HostileReport& HostileReport::operator+=(const HostileReport& other) {
  if (violation.empty()) violation = other.violation;
  steps += other.steps;
  messages += other.messages;
  lost += other.lost;
  repeated += other.repeated;
  cuts += other.cuts;
  garbled += other.garbled;
  replays += other.replays;
  too_old += other.too_old;
  non_finite += other.non_finite;
  rows += other.rows;
  measured += other.measured;
  task_deaths += other.task_deaths;
  server_deaths += other.server_deaths;
  checkpoints += other.checkpoints;
  unheard_too_old += other.unheard_too_old;
  virtual_ms += other.virtual_ms;
  return *this;
}

HostileReport RunHostileNetwork(std::uint64_t seed) { return Cluster(seed).Run(); }

}  // namespace ps::simulation
