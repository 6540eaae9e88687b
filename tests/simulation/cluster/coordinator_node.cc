#include "tests/simulation/cluster/coordinator_node.h"

#include <algorithm>
#include <utility>

namespace ps::simulation {
namespace {

constexpr std::uint64_t kEpochStartMs = 1'700'000'000'000;
constexpr std::int64_t kTickMs = 100;
constexpr std::int64_t kTakeOverAgainMs = 5000;
constexpr std::int64_t kProbeMs = 20;  // coordinator/shell/death_watch.h
constexpr std::int64_t kPatienceMs = 1000;

void Join(coordinator::Output& into, coordinator::Output&& from) {
  for (coordinator::NodeWrite& write : from.writes) {
    const auto earlier = std::find_if(into.writes.begin(), into.writes.end(),
                                      [&](const auto& one) { return one.path == write.path; });
    if (earlier != into.writes.end()) {
      earlier->data = std::move(write.data);
    } else {
      into.writes.push_back(std::move(write));
    }
  }
  std::move(from.sends.begin(), from.sends.end(), std::back_inserter(into.sends));
  std::move(from.answers.begin(), from.answers.end(), std::back_inserter(into.answers));
}

std::vector<coordinator::Presence> Presences(const ZooKeeper::Children& children) {
  std::vector<coordinator::Presence> list;
  for (const auto& [name, node] : children) list.push_back({name, node.data, node.data});
  return list;
}

}  // namespace

CoordinatorNode::CoordinatorNode(World& world, MachineId machine, const std::string& name,
                                 std::int64_t skew_ms)
    : world_(world),
      machine_(machine),
      name_(name),
      skew_ms_(skew_ms),
      client_(world.schedule, world.zookeeper, machine, life_) {
  world_.network.Bind(
      name_, machine_,
      [this, weak = std::weak_ptr<void>(life_)](const std::string& from, const Packet& packet) {
        if (!weak.expired()) OnControl(from, packet);
      },
      [this, weak = std::weak_ptr<void>(life_)](const std::string& identity) {
        if (!weak.expired()) OnLost(identity);
      });
  servers_watcher_ = std::make_unique<ZkWatcher>(world_.schedule, client_, machine_, "/servers",
                                                 [this](const ZooKeeper::Children& children) {
                                                   servers_ = children;
                                                   FeedMembers();
                                                 });
  agents_watcher_ = std::make_unique<ZkWatcher>(world_.schedule, client_, machine_, "/agents",
                                                [this](const ZooKeeper::Children& children) {
                                                  agents_ = children;
                                                  FeedMembers();
                                                });
  election_ = std::make_unique<ZkElection>(
      world_.schedule, client_, machine_, name_,
      [this](const std::optional<ZkLeadership>& leadership) { OnLeadership(leadership); });
  world_.schedule.Every(kTickMs, machine_, life_, [this] { OnTick(); });
}

void CoordinatorNode::End(bool crash) {
  StepDown();
  world_.network.Unbind(name_, crash);
}

std::vector<std::string> CoordinatorNode::Describe() const {
  std::vector<std::string> lines;
  if (core_ == nullptr) return lines;
  const nlohmann::json described = core_->DescribeNodes();
  for (const nlohmann::json& node : described["nodes"]) {
    lines.push_back(name_ + " knows " + node["procid"].get<std::string>() + ": " +
                    node["state"].get<std::string>());
    if (node.contains("free_slots")) lines.back() += ", free slots " + node["free_slots"].dump();
  }
  return lines;
}

std::uint64_t CoordinatorNode::Now() const {
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(kEpochStartMs) +
                                    world_.schedule.now_ms() + skew_ms_);
}

void CoordinatorNode::OnLeadership(const std::optional<ZkLeadership>& leadership) {
  StepDown();
  leadership_ = leadership;
  world_.history.Log(name_ + (leadership ? " leads, epoch " + std::to_string(leadership->epoch)
                                         : std::string(" does not lead any more")));
  if (leadership_) TakeOver();
}

void CoordinatorNode::TakeOver() {
  term_ = std::make_shared<int>(0);
  client_.List("/jobs", false,
               [this, term = std::weak_ptr<void>(term_)](const Result<ZooKeeper::Children>& jobs) {
                 if (term.expired()) return;
                 if (jobs.ok()) return OnJobs(*jobs);
                 world_.schedule.After(kTakeOverAgainMs, machine_, life_, [this, term] {
                   if (!term.expired() && leadership_ && core_ == nullptr) TakeOver();
                 });
               });
}

void CoordinatorNode::OnJobs(const ZooKeeper::Children& jobs) {
  struct Reading {
    std::vector<coordinator::JobRecord> records;
    std::size_t open = 0;
    bool failed = false;
  };
  if (jobs.empty()) return Begin({});
  auto reading = std::make_shared<Reading>();
  reading->records.resize(jobs.size());
  std::size_t i = 0;
  for (const auto& [name, node] : jobs) {
    reading->records[i].id = std::stoull(name);
    const auto get = [&](const char* part, std::string coordinator::JobRecord::*field) {
      ++reading->open;
      client_.Get("/jobs/" + name + "/" + part,
                  [this, reading, i, field,
                   term = std::weak_ptr<void>(term_)](const Result<ZkNode>& value) {
                    if (term.expired()) return;
                    if (value.ok()) reading->records[i].*field = value->data;
                    reading->failed = reading->failed || !value.ok();
                    if (--reading->open > 0) return;
                    if (!reading->failed) return Begin(reading->records);
                    world_.schedule.After(kTakeOverAgainMs, machine_, life_, [this, term] {
                      if (!term.expired() && leadership_ && core_ == nullptr) TakeOver();
                    });
                  });
    };
    get("spec", &coordinator::JobRecord::spec);
    get("layout", &coordinator::JobRecord::layout);
    get("state", &coordinator::JobRecord::state);
    get("map", &coordinator::JobRecord::map);
    get("events", &coordinator::JobRecord::events);
    ++i;
  }
}

void CoordinatorNode::Begin(const std::vector<coordinator::JobRecord>& records) {
  coordinator::CoreOptions options;
  options.id = name_;
  options.preflight_ms = 5000;
  options.job.task_start_ms = 20'000;
  options.job.round_ms = 10'000;
  options.job.failed_round_retry_ms = 3000;
  auto core = std::make_unique<coordinator::Core>(options, leadership_->epoch);
  Status loaded = core->Load(records, Now());
  if (const ZkNode* cluster = world_.zookeeper.Find(coordinator::Core::kClusterPath);
      loaded.ok() && cluster != nullptr) {
    loaded = core->LoadCluster(cluster->data);
  }
  if (!loaded.ok()) return world_.history.Fail("a leader cannot load: " + loaded.error().message);
  core_ = std::move(core);
  pending_ = {};
  writing_ = broken_ = false;
  FeedMembers();
}

void CoordinatorNode::StepDown() {
  term_.reset();
  core_.reset();
  pending_ = {};
  identity_of_.clear();
  procid_of_.clear();
  watched_.clear();
}

// As the shell's death watch does.
void CoordinatorNode::OnLost(const std::string& identity) {
  const auto known = procid_of_.find(identity);
  if (core_ == nullptr || known == procid_of_.end()) return;
  const auto server = core_->servers().find(known->second);
  if (server == core_->servers().end() || server->second.lanes.empty()) return;
  const std::uint64_t watch = watched_[server->first] = next_watch_++;
  Watch(server->first, server->second.lanes.front(), watch, world_.schedule.now_ms() + kPatienceMs);
}

void CoordinatorNode::Watch(const std::string& procid, const std::string& endpoint,
                            std::uint64_t watch, std::int64_t until_ms) {
  const auto at = watched_.find(procid);
  if (at == watched_.end() || at->second != watch) return;
  const bool over = world_.schedule.now_ms() >= until_ms;
  const bool dead = world_.network.Refuses(machine_, endpoint);
  if (dead || over) watched_.erase(at);
  if (dead) return MarkServerDead(std::string(procid));
  if (over) return;
  world_.schedule.After(kProbeMs, machine_, life_, [this, procid, endpoint, watch, until_ms] {
    Watch(procid, endpoint, watch, until_ms);
  });
}

void CoordinatorNode::MarkServerDead(const std::string& procid) {
  if (core_ == nullptr) return;
  world_.history.Log(name_ + " takes " + procid + " for dead");
  core_->MarkServerDead(procid, Now());
  Flush(false);
}

void CoordinatorNode::FeedMembers() {
  if (core_ == nullptr) return;
  if (servers_) core_->SetServers(Presences(*servers_), Now());
  if (agents_) core_->SetAgents(Presences(*agents_), Now());
  Flush(false);
}

void CoordinatorNode::OnControl(const std::string& identity, const Packet& packet) {
  if (core_ == nullptr) return;
  auto message = control::Decode(packet.head);
  if (!message.ok()) return world_.history.Fail("a control message does not decode");
  std::string procid;
  if (const auto* server = message->body.AsRegisterServer()) procid = server->procid;
  if (const auto* agent = message->body.AsRegisterAgent()) procid = agent->procid;
  if (!procid.empty()) {
    procid_of_.erase(identity_of_[procid]);
    identity_of_[procid] = identity;
    procid_of_[identity] = procid;
    watched_.erase(procid);
  }
  const auto known = procid_of_.find(identity);
  if (known == procid_of_.end()) return;
  core_->OnMessage(known->second, std::move(*message), Now());
  Flush(false);
}

void CoordinatorNode::OnTick() {
  if (core_ == nullptr) return;
  core_->Tick(Now());
  const std::int64_t now = world_.schedule.now_ms();
  const bool lazy = now - last_lazy_ms_ >= 1000;
  if (lazy) last_lazy_ms_ = now;
  Flush(lazy);
}

void CoordinatorNode::Submit() {
  // As an operator who gets no answer does, again and again: an agent may take long to look at it.
  if (core_ == nullptr) return;
  core_->Submit(next_ticket_++,
                {world_.spec_json, false, {.request = "the job", .token = world_.token}}, Now());
  Flush(false);
}

void CoordinatorNode::SetDuty(const std::string& node, coordinator::Duty duty) {
  if (core_ == nullptr) return;
  core_->SetDuty(next_ticket_++, node, duty, Now());
  Flush(false);
}

void CoordinatorNode::Rebalance() {
  if (core_ == nullptr) return;
  core_->Rebalance(next_ticket_++, "1", false, Now());
  Flush(false);
}

void CoordinatorNode::Suspend(bool suspend) {
  if (core_ == nullptr) return;
  if (suspend) {
    core_->Suspend(next_ticket_++, "1", Now());
  } else {
    core_->Resume(next_ticket_++, "1", Now());
  }
  Flush(false);
}

void CoordinatorNode::Scale(std::uint64_t workers) {
  if (core_ == nullptr) return;
  core_->Scale(next_ticket_++, "1", workers, false, Now());
  Flush(false);
}

std::optional<coordinator::Duty> CoordinatorNode::DutyOf(const std::string& node) const {
  if (core_ == nullptr) return std::nullopt;
  for (const coordinator::Members* members : {&core_->servers(), &core_->agents()}) {
    for (const auto& [procid, member] : *members) {
      if (member.name == node) return member.duty;
    }
  }
  return std::nullopt;
}

void CoordinatorNode::Flush(bool with_lazy) {
  if (core_ == nullptr || broken_) return;
  coordinator::Output output = core_->TakeOutput(with_lazy);
  if (output.empty()) return;
  if (world_.Lacks(Mutant::kSendBeforeDurable)) {
    Release(output);
    output.sends.clear();
  }
  Join(pending_, std::move(output));
  if (!writing_) Write();
}

void CoordinatorNode::Write() {
  auto batch = std::make_shared<coordinator::Output>(std::exchange(pending_, {}));
  if (batch->empty()) return;
  if (batch->writes.empty()) return Release(*batch);
  std::vector<ZkOp> ops;
  if (!world_.Lacks(Mutant::kUnfencedWrites)) {
    ops.push_back({ZkOp::Kind::kCheck, "/epoch", "", leadership_->epoch_version});
  }
  for (const coordinator::NodeWrite& write : batch->writes) {
    ops.push_back({write.create ? ZkOp::Kind::kCreate : ZkOp::Kind::kSet, write.path, write.data});
  }
  writing_ = true;
  client_.Multi(std::move(ops),
                [this, batch, term = std::weak_ptr<void>(term_)](const ZkOutcome& outcome) {
                  if (term.expired()) return;
                  writing_ = false;
                  if (!outcome.status.ok()) {
                    broken_ = true;
                    world_.schedule.After(0, machine_, life_, [this, term] {
                      if (term.expired()) return;
                      StepDown();
                      if (leadership_) TakeOver();
                    });
                    return;
                  }
                  Release(*batch);
                  if (!broken_) Write();
                });
}

void CoordinatorNode::Release(const coordinator::Output& output) {
  for (const coordinator::Output::Send& send : output.sends) {
    const auto identity = identity_of_.find(send.procid);
    if (identity != identity_of_.end()) world_.network.Reply(identity->second, {send.bytes, {}});
  }
  for (const coordinator::Answer& answer : output.answers) {
    if (!answer.body.ok()) world_.history.Log("answer: " + answer.body.error().message);
  }
}

}  // namespace ps::simulation
