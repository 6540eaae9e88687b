#include "tests/simulation/cluster/cluster_simulation.h"

#include <algorithm>
#include <memory>
#include <random>
#include <set>
#include <sstream>

#include "common/check.h"
#include "coordinator/core/job_state.h"
#include "tests/simulation/cluster/agent_node.h"
#include "tests/simulation/cluster/coordinator_node.h"
#include "tests/simulation/cluster/server_node.h"

namespace ps::simulation {
namespace {

constexpr std::int64_t kFaultsBeginMs = 3000;
constexpr std::int64_t kHealMs = 300'000;  // the job must end within this time after all has healed
constexpr std::int64_t kCheckMs = 1000;
constexpr std::int64_t kOperatorMs = 4000;
constexpr std::int64_t kDutiesMs = 300;
constexpr std::int64_t kRestartMs = 4000;  // at most, by whoever watches over the processes
constexpr std::int64_t kBadClocks = 3600;  // one cluster of four has clocks wrong by up to an hour
constexpr const char* kJobPath = "/jobs/0000000001";

class Cluster {
 public:
  explicit Cluster(const ClusterOptions& options);
  ClusterReport Run();

 private:
  enum class Role { kCoordinator, kServer, kAgent };
  struct Machine {
    Role role = Role::kServer;
    std::string name;
    std::int64_t skew_ms = 0;
    std::uint32_t size = 1;  // lanes, slots
    std::unique_ptr<CoordinatorNode> coordinator;
    std::unique_ptr<ServerNode> server;
    std::unique_ptr<AgentNode> agent;
    Rings rings;
    std::uint64_t starts = 0;

    bool up() const { return coordinator || server || agent; }
  };

  std::uint64_t Dice(std::uint64_t sides) { return world_.schedule.Dice(sides); }
  int Replicas() const;
  int FullEvery() const;
  bool Loads() const;
  void MakeJob();
  void MakeFaults();
  void Start(MachineId number);
  // `crash`: the machine, not only the process.
  void Stop(MachineId number, bool crash);
  void StartLater(MachineId number, std::int64_t delay_ms);
  // A machine of the role, by chance; -1 if none is up.
  MachineId Pick(Role role, std::uint32_t target) const;
  void Strike(const Fault& fault);
  void PlanSuspicions();
  void PlanDuties();
  void PlanSuspensions();
  void SeeToSuspension();
  void PlanScalings();
  void SeeToScale();
  void NoteLost(const std::string& message);
  void SeeToDuties();
  void Suspect(std::uint64_t chance);
  void HealAll();
  void Operator();
  void CheckShards();
  bool MayLoseDisk(MachineId number) const;
  void OnWrite(std::int64_t session, const std::string& path, const std::string& data);
  std::string WaitsFor() const;

  const ClusterOptions options_;
  World world_;
  ClusterReport report_;
  std::vector<Machine> machines_;
  std::vector<std::function<void()>> heal_;
  std::map<std::string, coordinator::Duty> duties_;  // by machine, as an operator wants them
  bool suspends_ = false;                            // as an operator wants it
  std::uint64_t workers_wanted_ = 0;                 // by an operator; 0: as the job has it
  std::int64_t faults_end_ms_ = 0;
  bool healed_ = false;
  std::string phase_;
  std::string reason_;
  std::string committed_;  // the list of checkpoints, as ZooKeeper has it
  std::vector<coordinator::CommittedCheckpoint> checkpoints_;
  bool disk_lost_ = false;
  std::uint64_t events_told_ = 0;
  std::int64_t leader_session_ = 0;
};

Cluster::Cluster(const ClusterOptions& options)
    : options_(options), world_(options.seed, options.mutant) {
  if (options.log) {
    world_.history.log = [this](const std::string& line) {
      options_.log(std::to_string(world_.schedule.now_ms()) + " " + line);
    };
  }
  MakeJob();
  const auto add = [this](Role role, const std::string& prefix, std::uint64_t count,
                          std::uint64_t size_max) {
    for (std::uint64_t i = 0; i < count; ++i) {
      Machine machine;
      machine.role = role;
      machine.name = prefix + std::to_string(i);
      machine.skew_ms = static_cast<std::int64_t>(Dice(2000)) - 1000;
      if (options_.seed % 4 == 3) machine.skew_ms *= kBadClocks;
      machine.size = static_cast<std::uint32_t>(1 + Dice(size_max));
      machines_.push_back(std::move(machine));
    }
  };
  add(Role::kCoordinator, "c", 1 + Dice(3), 1);
  add(Role::kServer, "s", 2 + Dice(5), 3);
  const auto workers = static_cast<std::uint64_t>(world_.spec.training.workers);
  add(Role::kAgent, "a", std::max<std::uint64_t>(2, 1 + Dice(workers + 2)), 2);
  // There are slots enough for the job, and one more for who waits for an end that was not told.
  std::uint64_t slots = 0;
  for (const Machine& machine : machines_) slots += machine.role == Role::kAgent ? machine.size : 0;
  for (Machine& machine : machines_) {
    if (machine.role != Role::kAgent || slots > workers) continue;
    machine.size += static_cast<std::uint32_t>(workers + 1 - slots);
    slots = workers + 1;
  }
  LinkFaults faults;
  faults.delay_ms_max = static_cast<std::int64_t>(1 + Dice(20));
  if (Dice(2) == 0) faults.lost = static_cast<std::uint32_t>(Dice(200));
  if (Dice(2) == 0) faults.repeated = static_cast<std::uint32_t>(Dice(200));
  if (Dice(2) == 0) faults.broken = static_cast<std::uint32_t>(Dice(30));
  world_.network.SetFaults(faults);
  world_.zookeeper.on_write = [this](std::int64_t session, const std::string& path,
                                     const std::string& data) { OnWrite(session, path, data); };
  world_.zookeeper.on_expired = [this](const std::string& path) {
    for (Machine& machine : machines_) {
      if (machine.agent && path == "/agents/" + machine.agent->procid()) machine.agent->Orphan();
    }
  };
  MakeFaults();
}

// By a generator of its own, so that all else is as it would be without.
int Cluster::Replicas() const {
  if (options_.replicas.has_value()) return *options_.replicas;
  constexpr int kReplicas[] = {0, 1, 1, 2};
  return kReplicas[std::mt19937_64(options_.seed ^ 0x9e3779b97f4a7c15)() % 4];
}

// Likewise. Chains are often longer than what is kept for its own sake.
int Cluster::FullEvery() const {
  constexpr int kFullEvery[] = {1, 3, 4, 8};
  return kFullEvery[std::mt19937_64(options_.seed ^ 0xd1b54a32d192ed03)() % 4];
}

// A generator of its own here, too.
bool Cluster::Loads() const {
  return options_.mutant == Mutant::kInitWithoutLoad ||
         std::mt19937_64(options_.seed ^ 0x6a09e667f3bcc909)() % 5 == 0;
}

void Cluster::MakeJob() {
  const std::uint64_t workers = 2 + Dice(4);
  const std::uint64_t shards = 2 + Dice(6);
  const std::uint64_t batch = 4;
  const std::uint64_t records = batch * (100 + Dice(400));
  const int staleness_of[] = {0, 1, 3, 3, -1};
  std::ostringstream yaml;
  yaml << "apiVersion: ds/v1\nkind: TrainJob\nname: count\n"
       << "model: {type: ledger, blocks: " << shards << "}\n"
       << "data: {train: {format: counter, records: " << records << "}}\n"
       << "training: {workers: " << workers << ", batch_size: " << batch
       << ", epochs: " << 1 + Dice(2)
       << ", loss: none, metric: none, pull_values: fp32, staleness: " << staleness_of[Dice(5)]
       << ", max_version_gap: " << 2 * workers + Dice(20) << "}\n"
       << "optimizer: {type: sgd, learning_rate: 1.0, reference_batch: " << batch << "}\n"
       << "checkpoint: {every_steps: " << 8 + Dice(30) << ", keep: " << 1 + Dice(3)
       << ", full_every: " << FullEvery() << "}\n"
       << "resources: {max_restarts: 1000, replicas: " << Replicas() << "}\n";
  auto spec = ParseJobYaml(yaml.str(), "job.yaml", "/");
  PS_CHECK(spec.ok(), spec.ok() ? "" : spec.error().message);
  world_.spec_json = ResolvedJson(*spec);
  world_.spec = ParseJobJson(world_.spec_json).value();
  auto table = std::make_unique<control::TableInfoT>();
  table->name = "parameters";
  table->elements = 2 * kCells * shards;
  table->block_elements.assign(shards, 2 * kCells);
  auto tensor = std::make_unique<control::TensorInfoT>();
  tensor->name = "counts";
  tensor->shape.push_back(std::make_unique<control::ExtentT>());
  tensor->shape.back()->size = static_cast<std::int64_t>(table->elements);
  tensor->elements = table->elements;
  table->tensors.push_back(std::move(tensor));
  world_.layout.blocks = static_cast<std::uint32_t>(shards);
  world_.layout.parameters = table->elements;
  world_.layout.fingerprint = 77;
  world_.layout.tables.push_back(std::move(table));
  world_.data.records = records;
  world_.data.fingerprint = 5;
  world_.total_positions =
      static_cast<std::uint64_t>(world_.spec.training.epochs * static_cast<double>(records));
  world_.history.SetLayout(
      LayoutView::Create(world_.layout, static_cast<std::uint32_t>(shards)).value());
  world_.history.SetLoads(Loads());
  world_.history.SetBulk(world_.spec.training.staleness == 0);
}

void Cluster::MakeFaults() {
  // Each seed has some kinds, so that each kind is also seen without the noise of all others.
  std::vector<FaultKind> kinds;
  for (int kind = 0; kind < kFaultKinds; ++kind) {
    if (Dice(3) == 0) kinds.push_back(static_cast<FaultKind>(kind));
  }
  const std::uint64_t count = kinds.empty() ? 0 : Dice(15);
  const std::int64_t span = 10'000 + static_cast<std::int64_t>(Dice(30'000));
  for (std::uint64_t i = 0; i < count; ++i) {
    Fault fault;
    fault.kind = kinds[Dice(kinds.size())];
    fault.at_ms =
        kFaultsBeginMs + static_cast<std::int64_t>(Dice(static_cast<std::uint64_t>(span)));
    const std::uint64_t length = Dice(3) == 0 ? 15'000 : 4000;
    fault.lasts_ms = 50 + static_cast<std::int64_t>(Dice(length));
    fault.target = static_cast<std::uint32_t>(Dice(1000));
    fault.other = static_cast<std::uint32_t>(Dice(1000));
    report_.faults.push_back(fault);
  }
  std::sort(report_.faults.begin(), report_.faults.end(),
            [](const Fault& a, const Fault& b) { return a.at_ms < b.at_ms; });
  faults_end_ms_ = kFaultsBeginMs + span + 2000;
}

// ---- processes

void Cluster::Start(MachineId number) {
  Machine& machine = machines_[static_cast<std::size_t>(number)];
  if (machine.up()) return;
  ++machine.starts;
  world_.history.Log(machine.name + " starts");
  switch (machine.role) {
    case Role::kCoordinator:
      machine.coordinator =
          std::make_unique<CoordinatorNode>(world_, number, machine.name, machine.skew_ms);
      break;
    case Role::kServer:
      machine.server = std::make_unique<ServerNode>(world_, number, machine.name, machine.size);
      break;
    case Role::kAgent:
      machine.agent =
          std::make_unique<AgentNode>(world_, number, machine.name, machine.size, machine.rings);
      break;
  }
}

void Cluster::Stop(MachineId number, bool crash) {
  Machine& machine = machines_[static_cast<std::size_t>(number)];
  if (machine.up()) world_.history.Log(machine.name + (crash ? " crashes" : " is killed"));
  if (machine.coordinator) machine.coordinator->End(crash);
  if (machine.server) machine.server->End(crash);
  if (machine.agent) machine.agent->End();
  machine.coordinator.reset();
  machine.server.reset();
  machine.agent.reset();
  if (!crash) return;
  world_.disk.Crash(number);
  for (const auto& [key, region] : machine.rings) {
    History::Run& run = world_.history.run(std::get<2>(key));
    run.orphan = run.ring_lost = true;
  }
  machine.rings.clear();
}

// Once in a history, and only what is elsewhere, too.
bool Cluster::MayLoseDisk(MachineId number) const {
  if (world_.stores.shared() || disk_lost_ ||
      machines_[static_cast<std::size_t>(number)].role != Role::kServer) {
    return false;
  }
  const std::string store = world_.stores.Of(number);
  return std::all_of(checkpoints_.begin(), checkpoints_.end(), [&](const auto& checkpoint) {
    const coordinator::PartPlaces& places = checkpoint.places;
    return std::all_of(places.parts.begin(), places.parts.end(), [&](const auto& part) {
      return part.size() > 1 || places.stores[part.front()].id != store;
    });
  });
}

void Cluster::StartLater(MachineId number, std::int64_t delay_ms) {
  const std::uint64_t starts = machines_[static_cast<std::size_t>(number)].starts;
  world_.schedule.After(delay_ms, [this, number, starts] {
    if (machines_[static_cast<std::size_t>(number)].starts == starts) Start(number);
  });
}

MachineId Cluster::Pick(Role role, std::uint32_t target) const {
  std::vector<MachineId> some;
  for (std::size_t i = 0; i < machines_.size(); ++i) {
    if (machines_[i].role == role && machines_[i].up()) some.push_back(static_cast<MachineId>(i));
  }
  return some.empty() ? -1 : some[target % some.size()];
}

// ---- faults

void Cluster::Strike(const Fault& fault) {
  if (healed_) return;
  const auto count = static_cast<std::uint32_t>(machines_.size());
  const auto target = static_cast<MachineId>(fault.target % count);
  auto other = static_cast<MachineId>(fault.other % count);
  if (other == target) other = (other + 1) % static_cast<MachineId>(count);
  ++report_.strikes[static_cast<int>(fault.kind)];
  world_.history.Log("FAULT " + simulation::Describe(fault));
  const auto until = [this, &fault](std::function<void()> heal) {
    auto once = std::make_shared<std::function<void()>>(std::move(heal));
    const auto act = [once] {
      if (*once) std::exchange(*once, nullptr)();
    };
    world_.schedule.After(fault.lasts_ms, act);
    heal_.push_back(act);
  };
  const auto kill = [&](Role role) {
    const MachineId number = Pick(role, fault.target);
    if (number < 0) return;
    Stop(number, false);
    StartLater(number, std::min(fault.lasts_ms, kRestartMs));
  };
  const auto cut = [this](MachineId from, MachineId to) {
    world_.network.Cut(from, to);
    return [this, from, to] { world_.network.Heal(from, to); };
  };
  switch (fault.kind) {
    case FaultKind::kKillTask: {
      const MachineId number = Pick(Role::kAgent, fault.target);
      if (number >= 0) {
        machines_[static_cast<std::size_t>(number)].agent->KillTask(fault.other);
      }
      break;
    }
    case FaultKind::kKillAgent: kill(Role::kAgent); break;
    case FaultKind::kKillServer: kill(Role::kServer); break;
    case FaultKind::kKillCoordinator: kill(Role::kCoordinator); break;
    case FaultKind::kCrashMachine:
      Stop(target, true);
      if (fault.other % 2 == 1 && MayLoseDisk(target)) {
        const std::string store = world_.stores.Lose(target);
        world_.disk.RemoveTree(store);
        world_.history.Log("the disk " + store + " is lost");
        disk_lost_ = true;
        ++report_.disks_lost;
      }
      StartLater(target, fault.lasts_ms);
      break;
    case FaultKind::kPower:
      for (MachineId number = 0; number < static_cast<MachineId>(count); ++number) {
        Stop(number, true);
        StartLater(number, 100 + static_cast<std::int64_t>(
                                     Dice(static_cast<std::uint64_t>(fault.lasts_ms))));
      }
      break;
    case FaultKind::kZooKeeperAway:
      world_.zookeeper.GoAway();
      until([this] { world_.zookeeper.ComeBack(); });
      break;
    case FaultKind::kCutFromZooKeeper: until(cut(target, kZooKeeperMachine)); break;
    case FaultKind::kDropZooKeeper: {
      Machine& machine = machines_[static_cast<std::size_t>(target)];
      if (machine.coordinator) machine.coordinator->client().Disconnect();
      if (machine.server) machine.server->client().Disconnect();
      if (machine.agent) machine.agent->client().Disconnect();
      break;
    }
    case FaultKind::kIsolate:
      for (MachineId number = kZooKeeperMachine; number < static_cast<MachineId>(count); ++number) {
        if (number == target) continue;
        until(cut(number, target));
        until(cut(target, number));
      }
      break;
    case FaultKind::kCutPair:
      until(cut(target, other));
      until(cut(other, target));
      break;
    case FaultKind::kCutOneWay: until(cut(target, other)); break;
    case FaultKind::kSlow:
      world_.network.SlowDown(target, 20 + static_cast<std::int64_t>(fault.other));
      until([this, target] { world_.network.SlowDown(target, 0); });
      break;
    case FaultKind::kDiskFull:
      world_.disk.SetFull(target, true);
      until([this, target] { world_.disk.SetFull(target, false); });
      break;
    case FaultKind::kDeleteLeader: {
      const auto children = world_.zookeeper.ListChildren("/coordinators");
      const auto lowest = LowestOf(children);
      if (lowest && !world_.zookeeper.away()) {
        world_.zookeeper.Delete("/coordinators/" + *lowest);
      }
      break;
    }
    case FaultKind::kPause:
      world_.schedule.Pause(target, world_.schedule.now_ms() + fault.lasts_ms);
      break;
  }
}

void Cluster::PlanSuspicions() {
  // A generator of its own, as for the number of backups.
  std::mt19937_64 chance(options_.seed ^ 0x517cc1b727220a95);
  if (!options_.suspicions || chance() % 3 != 0) return;
  const auto span = static_cast<std::uint64_t>(faults_end_ms_ - kFaultsBeginMs);
  const std::uint64_t count = 1 + chance() % 4;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::int64_t at_ms = kFaultsBeginMs + static_cast<std::int64_t>(chance() % span);
    world_.schedule.At(at_ms, [this, one = chance()] { Suspect(one); });
  }
}

// An operator lets servers and agents drain, and takes them back.
void Cluster::PlanDuties() {
  std::mt19937_64 chance(options_.seed ^ 0x2545f4914f6cdd1d);
  if (!options_.suspicions || chance() % 3 != 0) return;
  const auto span = static_cast<std::uint64_t>(faults_end_ms_ - kFaultsBeginMs);
  const std::uint64_t count = 1 + chance() % 4;
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto begin_ms = kFaultsBeginMs + static_cast<std::int64_t>(chance() % span);
    const auto end_ms = begin_ms + 500 + static_cast<std::int64_t>(chance() % 15'000);
    std::vector<std::string> names;
    for (const Machine& machine : machines_) {
      if (machine.role != Role::kCoordinator) names.push_back(machine.name);
    }
    const std::string name = names[chance() % names.size()];
    const auto duty =
        chance() % 4 == 0 ? coordinator::Duty::kCordoned : coordinator::Duty::kDraining;
    world_.schedule.At(begin_ms, [this, name, duty] {
      if (healed_) return;
      world_.history.Log("DUTY of " + name + ": " + coordinator::DutyName(duty));
      ++report_.drains;
      duties_[name] = duty;
    });
    world_.schedule.At(end_ms, [this, name, rebalances = chance() % 2 == 0] {
      duties_[name] = coordinator::Duty::kFull;
      if (!rebalances) return;
      world_.schedule.After(2 * kDutiesMs, [this] {
        for (Machine& machine : machines_) {
          if (machine.coordinator) machine.coordinator->Rebalance();
        }
      });
    });
  }
  SeeToDuties();
}

// An operator takes the job off the cluster, and brings it back.
void Cluster::PlanSuspensions() {
  std::mt19937_64 chance(options_.seed ^ 0x9e6c63d0876a9a47);
  if (!options_.suspicions || chance() % 4 != 0) return;
  const auto span = static_cast<std::uint64_t>(faults_end_ms_ - kFaultsBeginMs);
  const auto begin_ms = kFaultsBeginMs + static_cast<std::int64_t>(chance() % span);
  const auto end_ms = begin_ms + 200 + static_cast<std::int64_t>(chance() % 20'000);
  world_.schedule.At(begin_ms, [this] {
    if (healed_) return;
    world_.history.Log("SUSPENSION");
    suspends_ = true;
    SeeToSuspension();
  });
  world_.schedule.At(end_ms, [this] {
    if (suspends_) world_.history.Log("end of the SUSPENSION");
    suspends_ = false;
  });
}

void Cluster::SeeToSuspension() {
  for (Machine& machine : machines_) {
    if (machine.coordinator) machine.coordinator->Suspend(suspends_ && !healed_);
  }
  world_.schedule.After(kDutiesMs, [this] { SeeToSuspension(); });
}

// An operator gives the job more workers, or fewer.
void Cluster::PlanScalings() {
  std::mt19937_64 chance(options_.seed ^ 0x2545f4914f6cdd1d);
  if (!options_.suspicions || chance() % 4 != 0) return;
  const auto span = static_cast<std::uint64_t>(faults_end_ms_ - kFaultsBeginMs);
  const auto most = static_cast<std::uint64_t>(world_.spec.training.workers) + 3;
  const std::uint64_t count = 1 + chance() % 3;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::int64_t at_ms = kFaultsBeginMs + static_cast<std::int64_t>(chance() % span);
    world_.schedule.At(at_ms, [this, workers = 1 + chance() % most] {
      world_.history.Log("SCALED to " + std::to_string(workers));
      if (std::exchange(workers_wanted_, workers) == 0) SeeToScale();
    });
  }
}

// A registration that was long on its way lacks the tasks that its agent has got since: they are
// given up as if it had been away.
void Cluster::NoteLost(const std::string& message) {
  const std::string mark = "(incarnation ";
  const auto at = message.find(mark);
  if (at == std::string::npos || !message.ends_with("is not known to its agent")) return;
  const auto number = std::stoul(message.substr(at + mark.size()));
  world_.history.run(Incarnation(static_cast<std::uint32_t>(number))).orphan = true;
}

void Cluster::SeeToScale() {
  // In the end as many as there are slots for: a job that is suspended or queued waits for all.
  const std::uint64_t workers =
      healed_ ? static_cast<std::uint64_t>(world_.spec.training.workers) : workers_wanted_;
  for (Machine& machine : machines_) {
    if (machine.coordinator) machine.coordinator->Scale(workers);
  }
  world_.schedule.After(kDutiesMs, [this] { SeeToScale(); });
}

// Again and again, as a request may be lost with its leader.
void Cluster::SeeToDuties() {
  for (const auto& [name, duty] : duties_) {
    for (Machine& machine : machines_) {
      if (!machine.coordinator) continue;
      const auto now = machine.coordinator->DutyOf(name);
      const auto wanted = healed_ ? coordinator::Duty::kFull : duty;
      if (now && *now != wanted) machine.coordinator->SetDuty(name, wanted);
    }
  }
  world_.schedule.After(kDutiesMs, [this] { SeeToDuties(); });
}

void Cluster::Suspect(std::uint64_t chance) {
  const MachineId number = Pick(Role::kServer, static_cast<std::uint32_t>(chance % 1000));
  if (healed_ || number < 0 || world_.zookeeper.away()) return;
  Machine& machine = machines_[static_cast<std::size_t>(number)];
  ++report_.suspicions;
  world_.history.Log("SUSPICION of " + machine.name);
  if (chance % 2 == 0) {
    // A leader takes it for dead although its node stays.
    for (Machine& other : machines_) {
      if (other.coordinator) other.coordinator->MarkServerDead(machine.server->procid());
    }
    return;
  }
  world_.zookeeper.Delete("/servers/" + machine.server->procid());
  // Its session looks again after its next reconnect.
  world_.schedule.After(static_cast<std::int64_t>(200 + chance / 1000 % 3000),
                        [this, number, starts = machine.starts] {
                          Machine& same = machines_[static_cast<std::size_t>(number)];
                          if (same.server && same.starts == starts)
                            same.server->client().Disconnect();
                        });
}

void Cluster::HealAll() {
  healed_ = true;
  world_.history.Log("all heals");
  for (const auto& heal : std::exchange(heal_, {})) heal();
  world_.schedule.EndPauses();
  LinkFaults calm;
  calm.delay_ms_max = 5;
  world_.network.SetFaults(calm);
  for (std::size_t number = 0; number < machines_.size(); ++number) {
    Start(static_cast<MachineId>(number));
  }
}

// ---- what is seen from outside

void Cluster::Operator() {
  if (world_.zookeeper.Find(std::string(kJobPath) + "/state") != nullptr) return;
  for (Machine& machine : machines_) {
    if (machine.coordinator && machine.coordinator->leads()) machine.coordinator->Submit();
  }
  world_.schedule.After(kOperatorMs, [this] { Operator(); });
}

void Cluster::CheckShards() {
  for (Machine& machine : machines_) {
    if (machine.server) machine.server->CheckShards();
  }
  world_.schedule.After(kCheckMs, [this] { CheckShards(); });
}

void Cluster::OnWrite(std::int64_t session, const std::string& path, const std::string& data) {
  if (path == "/epoch") {
    ++report_.leaders;
    leader_session_ = session;
    return;
  }
  if (path.compare(0, 6, "/jobs/") == 0 && session != leader_session_) {
    return world_.history.Fail("a write of a former leader reaches " + path);
  }
  if (path == std::string(kJobPath) + "/events") {
    // They are in order, and the number is all of it that a text cannot have: a quote in one has a
    // backslash before it.
    std::string fresh = data;
    const std::size_t last = data.rfind("\"seq\":" + std::to_string(events_told_) + ",");
    if (last != std::string::npos) {
      const std::size_t next = data.find(",{", last);
      fresh = next == std::string::npos ? "[]" : "[" + data.substr(next + 1);
    }
    for (const auto& event : nlohmann::json::parse(fresh, nullptr, false)) {
      const auto number = event.value("seq", std::uint64_t{0});
      if (number <= events_told_) continue;
      events_told_ = number;
      if (event.value("type", "") == "backup lost") ++report_.backups_lost;
      if (event.value("type", "") == "moved") ++report_.moves;
      if (event.value("type", "") == "adopted") ++report_.adoptions;
      if (event.value("type", "") == "worker lost") NoteLost(event.value("message", ""));
      if (event.value("type", "") == "scaled") ++report_.scalings;
      world_.history.Log("  " + event.value("type", "") + ": " + event.value("message", ""));
    }
  }
  if (path != std::string(kJobPath) + "/state") return;
  const auto json = nlohmann::json::parse(data, nullptr, false);
  const auto state = coordinator::StateFromJson(json);
  if (!state.ok()) return world_.history.Fail("the job's state: " + state.error().message);
  const std::string phase = coordinator::PhaseName(state->phase);
  if (phase != phase_ || state->reason != reason_) {
    world_.history.Log("job: " + phase + ": " + state->reason);
  }
  phase_ = phase;
  reason_ = state->reason;
  if (state->generation > world_.history.generation()) {
    ++(state->phase == coordinator::Phase::kSuspended ? report_.suspensions : report_.rewinds);
  }
  std::set<Incarnation> away;
  for (const coordinator::DeadWorker& dead : state->dead) {
    if (dead.agent.empty()) away.insert(dead.incarnation);
  }
  // From its final checkpoint on nothing more is added.
  const bool closed =
      coordinator::IsOver(state->phase) || state->phase == coordinator::Phase::kEvaluating;
  world_.history.SetJob(closed, state->generation, std::move(away));
  for (const Machine& machine : machines_) {
    if (machine.agent) machine.agent->TellOffered();
  }
  if (!state->checkpoints.empty()) {
    const coordinator::CommittedCheckpoint& newest = state->checkpoints.back();
    if (newest.directory != committed_) {
      committed_ = newest.directory;
      ++report_.checkpoints;
      world_.history.Log("committed " + committed_);
      world_.history.CheckCommitted(newest);
    }
    checkpoints_ = state->checkpoints;
    for (const coordinator::CommittedCheckpoint& one : state->checkpoints) {
      world_.history.CheckKept(one);
    }
  }
  if (state->phase == coordinator::Phase::kSucceeded) {
    world_.history.CheckEnd(committed_, world_.total_positions, state->leases.repeated());
  } else if (coordinator::IsOver(state->phase)) {
    world_.history.Fail("the job has " + phase + ": " + reason_);
  }
}

std::string Cluster::WaitsFor() const {
  std::string text = "the job is " + (phase_.empty() ? "not there" : phase_) +
                     (reason_.empty() ? "" : " (" + reason_ + ")");
  const ZkNode* state = world_.zookeeper.Find(std::string(kJobPath) + "/state");
  for (const Machine& machine : machines_) {
    std::vector<std::string> lines;
    if (machine.agent) lines = machine.agent->Describe();
    if (machine.coordinator) lines = machine.coordinator->Describe();
    for (const std::string& line : lines) text += "\n  " + line;
  }
  if (state != nullptr) text += "\n  " + state->data;
  return text;
}

ClusterReport Cluster::Run() {
  for (std::size_t number = 0; number < machines_.size(); ++number) {
    world_.schedule.After(static_cast<std::int64_t>(Dice(1000)),
                          [this, number] { Start(static_cast<MachineId>(number)); });
  }
  world_.schedule.After(1500, [this] { Operator(); });
  world_.schedule.After(kCheckMs, [this] { CheckShards(); });
  for (std::size_t i = 0; i < report_.faults.size(); ++i) {
    if (i < options_.faults.size() && !options_.faults[i]) continue;
    world_.schedule.At(report_.faults[i].at_ms, [this, i] { Strike(report_.faults[i]); });
  }
  PlanSuspicions();
  PlanDuties();
  PlanSuspensions();
  PlanScalings();
  world_.schedule.At(faults_end_ms_, [this] { HealAll(); });
  const History& history = world_.history;
  while (history.violation().empty() && phase_ != "succeeded") {
    world_.schedule.RunNext();
    if (world_.schedule.now_ms() > faults_end_ms_ + kHealMs) {
      world_.history.Fail("does not end: " + WaitsFor());
    }
  }
  if (world_.zookeeper.ListChildren("/jobs").size() > 1) {
    world_.history.Fail("one submission that was repeated became two jobs");
  }
  report_.violation = history.violation();
  report_.trace_hash = world_.schedule.trace_hash();
  report_.events = world_.schedule.events_run();
  report_.virtual_ms = world_.schedule.now_ms();
  report_.messages = world_.network.counters().messages;
  report_.pushes = history.pushes();
  report_.checks = history.checks();
  report_.restores = history.restores();
  report_.promotions = history.promotions();
  report_.copies_compared = history.copies_compared();
  report_.increments = history.increments();
  report_.kept_checked = history.kept_checked();
  report_.copies_checked = history.copies_checked();
  report_.too_old = history.too_old();
  report_.incarnations = history.runs().size();
  report_.records_lost = history.records_lost();
  report_.records_repeated = history.records_repeated();
  return report_;
}

}  // namespace

const char* FaultName(FaultKind kind) {
  static constexpr const char* kNames[kFaultKinds] = {
      "kill task",      "kill agent", "kill server",    "kill coordinator",
      "crash machine",  "power",      "zookeeper away", "cut from zookeeper",
      "drop zookeeper", "isolate",    "cut pair",       "cut one way",
      "slow",           "disk full",  "pause",          "delete leader"};
  return kNames[static_cast<int>(kind)];
}

std::string Describe(const Fault& fault) {
  return std::string(FaultName(fault.kind)) + " at " + std::to_string(fault.at_ms) + " ms for " +
         std::to_string(fault.lasts_ms) + " ms, target " + std::to_string(fault.target) +
         ", other " + std::to_string(fault.other);
}

ClusterReport& ClusterReport::operator+=(const ClusterReport& other) {
  if (violation.empty()) violation = other.violation;
  trace_hash += other.trace_hash;
  events += other.events;
  virtual_ms += other.virtual_ms;
  messages += other.messages;
  pushes += other.pushes;
  checkpoints += other.checkpoints;
  increments += other.increments;
  kept_checked += other.kept_checked;
  copies_checked += other.copies_checked;
  disks_lost += other.disks_lost;
  checks += other.checks;
  leaders += other.leaders;
  restores += other.restores;
  promotions += other.promotions;
  adoptions += other.adoptions;
  scalings += other.scalings;
  copies_compared += other.copies_compared;
  backups_lost += other.backups_lost;
  suspicions += other.suspicions;
  drains += other.drains;
  suspensions += other.suspensions;
  moves += other.moves;
  too_old += other.too_old;
  rewinds += other.rewinds;
  incarnations += other.incarnations;
  records_lost += other.records_lost;
  records_repeated += other.records_repeated;
  for (int kind = 0; kind < kFaultKinds; ++kind) strikes[kind] += other.strikes[kind];
  return *this;
}

ClusterReport RunCluster(const ClusterOptions& options) { return Cluster(options).Run(); }

std::vector<bool> Shrink(const ClusterOptions& options) {
  ClusterOptions tried = options;
  tried.log = nullptr;
  const ClusterReport whole = RunCluster(tried);
  std::vector<bool> faults(whole.faults.size(), true);
  for (std::size_t i = 0; i < options.faults.size(); ++i) faults[i] = options.faults[i];
  if (whole.violation.empty()) return faults;
  for (bool less = true; less;) {
    less = false;
    for (std::size_t i = faults.size(); i-- > 0;) {
      if (!faults[i]) continue;
      faults[i] = false;
      tried.faults = faults;
      if (!RunCluster(tried).violation.empty()) {
        less = true;
      } else {
        faults[i] = true;
      }
    }
  }
  return faults;
}

}  // namespace ps::simulation
