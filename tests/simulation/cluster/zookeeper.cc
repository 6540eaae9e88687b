#include "tests/simulation/cluster/zookeeper.h"

#include <algorithm>
#include <cstdio>
#include <utility>

namespace ps::simulation {
namespace {

constexpr std::int64_t kServiceTickMs = 100;
constexpr std::int64_t kClientTickMs = 200;
constexpr std::int64_t kAnswerMs = 8;       // at most, each way
constexpr std::int64_t kWatchLateMs = 400;  // at most
constexpr std::int64_t kRetryMs = 500;

std::string ParentOf(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == 0 ? "/" : path.substr(0, slash);
}
std::string NameOf(const std::string& path) { return path.substr(path.rfind('/') + 1); }

template <typename Act>
auto WhileAlive(const Life& life, Act act) {
  return [weak = std::weak_ptr<void>(life), act = std::move(act)](auto&&... arguments) {
    if (!weak.expired()) act(std::forward<decltype(arguments)>(arguments)...);
  };
}

}  // namespace

// ---- the service

ZooKeeper::ZooKeeper(Schedule& schedule, Network& network)
    : schedule_(schedule), network_(network) {
  schedule_.After(kServiceTickMs, [this] { Tick(); });
}

void ZooKeeper::GoAway() { ++away_; }

void ZooKeeper::ComeBack() {
  if (--away_ > 0) return;
  // A new ensemble gives every session its whole timeout.
  for (auto& [id, session] : sessions_) session.heard_ms = schedule_.now_ms();
}

bool ZooKeeper::Reaches(MachineId machine) const {
  return away_ == 0 && !network_.Blocked(machine, kZooKeeperMachine) &&
         !network_.Blocked(kZooKeeperMachine, machine);
}

const ZkNode* ZooKeeper::Find(const std::string& path) const {
  const auto found = nodes_.find(path);
  return found == nodes_.end() ? nullptr : &found->second;
}

void ZooKeeper::Delete(const std::string& path) {
  if (nodes_.erase(path) != 0) Changed(path);
}

std::int64_t ZooKeeper::OpenSession() {
  const std::int64_t id = next_session_++;
  sessions_[id].heard_ms = schedule_.now_ms();
  return id;
}

bool ZooKeeper::Touch(std::int64_t id) {
  Session& session = sessions_[id];
  if (session.expired) return false;
  session.heard_ms = schedule_.now_ms();
  return true;
}

void ZooKeeper::Tick() {
  schedule_.After(kServiceTickMs, [this] { Tick(); });
  if (away()) return;
  for (auto& [id, session] : sessions_) {
    if (session.expired || schedule_.now_ms() - session.heard_ms <= kSessionMs) continue;
    session.expired = true;
    schedule_.Trace("expired", static_cast<std::uint64_t>(id));
    for (auto node = nodes_.begin(); node != nodes_.end();) {
      if (node->second.owner != id) {
        ++node;
        continue;
      }
      const std::string path = node->first;
      node = nodes_.erase(node);
      if (on_expired) on_expired(path);
      Changed(path);
    }
  }
}

void ZooKeeper::Changed(const std::string& path) {
  const auto watches = watches_.find(ParentOf(path));
  if (watches == watches_.end()) return;
  for (const WatchFn& fired : std::exchange(watches->second, {})) fired();
}

ZkOutcome ZooKeeper::Apply(std::int64_t session, const std::vector<ZkOp>& ops) {
  ZkOutcome outcome;
  std::map<std::string, ZkNode> next = nodes_;
  std::vector<std::pair<std::string, bool>> changed;  // path; whether children changed
  for (const ZkOp& op : ops) {
    const auto node = next.find(op.path);
    const auto refuse = [&](ErrorCode code) {
      outcome.status = Error{code, op.path};
      outcome.versions.clear();
    };
    if (op.kind == ZkOp::Kind::kCreate) {
      if (node != next.end()) return refuse(ErrorCode::kConflict), outcome;
      next[op.path] = ZkNode{op.data, 0, op.ephemeral ? session : 0, schedule_.now_ms()};
      outcome.created = op.path;
      outcome.versions.push_back(0);
      changed.emplace_back(op.path, true);
      continue;
    }
    if (node == next.end()) return refuse(ErrorCode::kNotFound), outcome;
    if (op.version != -1 && op.version != node->second.version) {
      return refuse(ErrorCode::kConflict), outcome;
    }
    if (op.kind == ZkOp::Kind::kSet) {
      node->second.data = op.data;
      ++node->second.version;
      changed.emplace_back(op.path, true);
    }
    outcome.versions.push_back(node->second.version);
    if (op.kind == ZkOp::Kind::kDelete) {
      next.erase(node);
      changed.emplace_back(op.path, true);
    }
  }
  nodes_ = std::move(next);
  for (const auto& [path, children] : changed) {
    const ZkNode* node = Find(path);
    schedule_.Trace("written", node != nullptr ? static_cast<std::uint64_t>(node->version) : 0);
    if (on_write && node != nullptr) on_write(session, path, node->data);
    if (children) Changed(path);
  }
  return outcome;
}

std::string ZooKeeper::CreateSequential(std::int64_t session, const std::string& start,
                                        const std::string& data) {
  char digits[16];
  std::snprintf(digits, sizeof(digits), "%010llu",
                static_cast<unsigned long long>(sequences_[ParentOf(start)]++));
  const std::string path = start + digits;
  nodes_[path] = ZkNode{data, 0, session, schedule_.now_ms()};
  Changed(path);
  return path;
}

ZooKeeper::Children ZooKeeper::ListChildren(const std::string& path) const {
  Children children;
  const std::string prefix = path + "/";
  for (auto node = nodes_.lower_bound(prefix);
       node != nodes_.end() && node->first.compare(0, prefix.size(), prefix) == 0; ++node) {
    const std::string name = node->first.substr(prefix.size());
    if (name.find('/') == std::string::npos) children[name] = node->second;
  }
  return children;
}

void ZooKeeper::WatchChildren(const std::string& path, WatchFn fired) {
  watches_[path].push_back(std::move(fired));
}

// ---- a session

ZkClient::ZkClient(Schedule& schedule, ZooKeeper& zookeeper, MachineId machine, Life process)
    : schedule_(schedule),
      zookeeper_(zookeeper),
      machine_(machine),
      process_(std::move(process)),
      contact_ms_(schedule.now_ms()) {
  schedule_.After(1 + schedule_.Below(kClientTickMs), machine_, life_, [this] { Tick(); });
}

ZkClient::~ZkClient() = default;

bool ZkClient::IsFormerSession(std::int64_t session) const {
  return std::find(former_.begin(), former_.end(), session) != former_.end();
}

void ZkClient::Tell(State state) {
  state_ = state;
  for (const auto& told : std::vector(told_)) told(state);
}

void ZkClient::Lose(State state) {
  ++connection_;
  Tell(state);
  for (auto& [call, failed] : std::exchange(open_, {})) failed();
}

void ZkClient::Disconnect() {
  if (state_ != State::kConnected) return;
  not_before_ms_ = schedule_.now_ms() + 20 + schedule_.Below(600);
  Lose(State::kSuspended);
}

void ZkClient::Tick() {
  schedule_.After(kClientTickMs, machine_, life_, [this] { Tick(); });
  const std::int64_t now = schedule_.now_ms();
  if (!zookeeper_.Reaches(machine_) || now < not_before_ms_) {
    if (state_ == State::kConnected && now - contact_ms_ >= ZooKeeper::kSessionMs * 2 / 3) {
      Lose(State::kSuspended);
    }
    return;
  }
  if (session_ == 0) {
    session_ = zookeeper_.OpenSession();
  } else if (!zookeeper_.Touch(session_)) {
    former_.push_back(session_);
    session_ = 0;
    Lose(State::kLost);
    return;  // the next session begins with the next tick
  }
  contact_ms_ = now;
  if (state_ != State::kConnected) Tell(State::kConnected);
}

// Two ways that keep their order; whatever meets a cut is lost.
void ZkClient::Call(Service service, std::function<void()> failed) {
  if (!connected()) {
    schedule_.After(1, machine_, life_, std::move(failed));
    return;
  }
  const std::uint64_t call = next_call_++;
  open_[call] = std::move(failed);
  last_to_ms_ = std::max(last_to_ms_, schedule_.now_ms() + 1 + schedule_.Below(kAnswerMs));
  schedule_.At(last_to_ms_, [this, weak = std::weak_ptr<void>(life_), call,
                             connection = connection_, session = session_, machine = machine_,
                             zookeeper = &zookeeper_, service = std::move(service)] {
    if (weak.expired() || connection != connection_) return;
    if (!zookeeper->Reaches(machine) || !zookeeper->Touch(session)) return Lose(State::kSuspended);
    std::function<void()> answer = service();
    last_from_ms_ = std::max(last_from_ms_, schedule_.now_ms() + 1 + schedule_.Below(kAnswerMs));
    schedule_.At(last_from_ms_,
                 [this, weak, call, connection, machine, zookeeper, answer = std::move(answer)] {
                   if (weak.expired() || connection != connection_) return;
                   if (!zookeeper->Reaches(machine)) return Lose(State::kSuspended);
                   schedule_.After(0, machine, life_, [this, call, connection, answer] {
                     if (connection != connection_ || open_.erase(call) == 0) return;
                     contact_ms_ = schedule_.now_ms();
                     answer();
                   });
                 });
  });
}

void ZkClient::Multi(std::vector<ZkOp> ops, std::function<void(const ZkOutcome&)> done) {
  Call(
      [this, ops = std::move(ops), done]() -> std::function<void()> {
        return [done, outcome = zookeeper_.Apply(session_, ops)] { done(outcome); };
      },
      [done] {
        ZkOutcome outcome;
        outcome.status = Error{ErrorCode::kUnreachable, "the connection to ZooKeeper is lost"};
        done(outcome);
      });
}

void ZkClient::CreateSequential(const std::string& start, const std::string& data,
                                std::function<void(const Result<std::string>&)> done) {
  Call(
      [this, start, data, done]() -> std::function<void()> {
        return [done, path = zookeeper_.CreateSequential(session_, start, data)] { done(path); };
      },
      [done] {
        done(Error{ErrorCode::kUnreachable, "the connection to ZooKeeper is lost"});
      });
}

void ZkClient::Get(const std::string& path, std::function<void(const Result<ZkNode>&)> done) {
  Call(
      [this, path, done]() -> std::function<void()> {
        const ZkNode* node = zookeeper_.Find(path);
        if (node == nullptr) return [done, path] { done(Error{ErrorCode::kNotFound, path}); };
        return [done, node = *node] { done(node); };
      },
      [done] {
        done(Error{ErrorCode::kUnreachable, "the connection to ZooKeeper is lost"});
      });
}

void ZkClient::List(const std::string& path, bool watch,
                    std::function<void(const Result<ZooKeeper::Children>&)> done,
                    std::function<void()> fired) {
  Call(
      [this, path, watch, done, fired]() -> std::function<void()> {
        if (watch) {
          zookeeper_.WatchChildren(
              path, [this, weak = std::weak_ptr<void>(life_), connection = connection_, fired] {
                if (weak.expired() || connection != connection_) return;
                // Late, but not after an answer that shows the change.
                last_from_ms_ =
                    std::max(last_from_ms_, schedule_.now_ms() + 1 + schedule_.Below(kWatchLateMs));
                schedule_.At(last_from_ms_, [this, weak, connection, fired] {
                  if (weak.expired() || connection != connection_) return;
                  schedule_.After(0, machine_, life_, fired);
                });
              });
        }
        return [done, children = zookeeper_.ListChildren(path)] { done(children); };
      },
      [done] {
        done(Error{ErrorCode::kUnreachable, "the connection to ZooKeeper is lost"});
      });
}

// ---- members and watchers

ZkMember::ZkMember(Schedule& schedule, ZkClient& client, MachineId machine, std::string path,
                   std::string data)
    : schedule_(schedule),
      client_(client),
      machine_(machine),
      path_(std::move(path)),
      data_(std::move(data)) {
  client_.OnState(WhileAlive(life_, [this](ZkClient::State state) {
    if (state == ZkClient::State::kConnected) Reconcile();
  }));
}

void ZkMember::Reconcile() {
  if (std::exchange(busy_, true)) {
    again_ = true;
    return;
  }
  again_ = false;
  client_.Get(path_, WhileAlive(life_, [this](const Result<ZkNode>& node) {
                const auto finish = WhileAlive(life_, [this](const ZkOutcome& outcome) {
                  busy_ = false;
                  if (outcome.status.ok() && !again_) return;
                  schedule_.After(kRetryMs, machine_, life_, [this] {
                    if (client_.connected()) Reconcile();
                  });
                });
                if (node.ok() && node->owner == client_.session()) {
                  busy_ = false;
                  if (again_) Reconcile();
                  return;
                }
                if (!node.ok() && node.error().code != ErrorCode::kNotFound) {
                  ZkOutcome failed;
                  failed.status = node.error();
                  return finish(failed);
                }
                std::vector<ZkOp> ops;
                if (node.ok()) ops.push_back({ZkOp::Kind::kDelete, path_, "", node->version});
                ops.push_back({ZkOp::Kind::kCreate, path_, data_, -1, true});
                client_.Multi(std::move(ops), finish);
              }));
}

ZkWatcher::ZkWatcher(Schedule& schedule, ZkClient& client, MachineId machine, std::string path,
                     Callback callback)
    : schedule_(schedule),
      client_(client),
      machine_(machine),
      path_(std::move(path)),
      callback_(std::move(callback)) {
  client_.OnState(WhileAlive(life_, [this](ZkClient::State state) {
    if (state == ZkClient::State::kConnected) Read();
  }));
}

void ZkWatcher::Read() {
  if (std::exchange(reading_, true)) {
    again_ = true;
    return;
  }
  again_ = false;
  client_.List(path_, true,
               WhileAlive(life_,
                          [this](const Result<ZooKeeper::Children>& children) {
                            reading_ = false;
                            if (!children.ok()) {
                              schedule_.After(kRetryMs, machine_, life_, [this] {
                                if (client_.connected()) Read();
                              });
                              return;
                            }
                            if (again_) Read();
                            const bool same =
                                told_ &&
                                std::equal(told_->begin(), told_->end(), children->begin(),
                                           children->end(), [](const auto& a, const auto& b) {
                                             return a.first == b.first &&
                                                    a.second.data == b.second.data &&
                                                    a.second.owner == b.second.owner;
                                           });
                            if (same) return;
                            told_ = *children;
                            const Callback callback = callback_;
                            callback(*children);
                          }),
               WhileAlive(life_, [this] { Read(); }));
}

std::optional<std::string> LowestOf(const ZooKeeper::Children& children) {
  std::optional<std::string> lowest;
  for (const auto& [name, node] : children) {
    if (!lowest || name.substr(name.size() - 10) < lowest->substr(lowest->size() - 10)) {
      lowest = name;
    }
  }
  return lowest;
}

// ---- election

ZkElection::ZkElection(Schedule& schedule, ZkClient& client, MachineId machine, std::string data,
                       Callback callback)
    : schedule_(schedule),
      client_(client),
      machine_(machine),
      start_("/coordinators/c-" + std::to_string(schedule.Dice(std::uint64_t{1} << 60)) + "-"),
      data_(std::move(data)),
      callback_(std::move(callback)) {
  client_.OnState(WhileAlive(life_, [this](ZkClient::State state) {
    switch (state) {
      case ZkClient::State::kConnected: Check(); break;
      case ZkClient::State::kSuspended: {
        if (!leadership_) break;
        const std::int64_t left = ZooKeeper::kSessionMs * 2 / 3 - client_.since_contact_ms();
        schedule_.After(std::max<std::int64_t>(left, 0), machine_, life_, [this] {
          if (!client_.connected()) StepDown();
        });
        break;
      }
      case ZkClient::State::kLost: StepDown(); break;
      case ZkClient::State::kConnecting: break;
    }
  }));
}

void ZkElection::Check() {
  if (std::exchange(busy_, true)) {
    again_ = true;
    return;
  }
  again_ = false;
  if (!client_.connected()) return Finish();
  client_.List("/coordinators", true,
               WhileAlive(life_,
                          [this](const Result<ZooKeeper::Children>& children) {
                            if (!children.ok()) return Retry();
                            Judge(*children);
                          }),
               WhileAlive(life_, [this] { Check(); }));
}

void ZkElection::Judge(const ZooKeeper::Children& children) {
  const std::string own_start = NameOf(start_);
  std::string own;
  for (const auto& [name, node] : children) {
    if (name.compare(0, own_start.size(), own_start) != 0) continue;
    if (node.owner != client_.session()) return Retry();  // of our former session: it will go
    own = name;
  }
  if (own.empty()) {
    // An answer may have been lost: whether the node is there is looked up before each try.
    node_.clear();
    if (leadership_) {
      StepDown();
      return Retry();
    }
    client_.CreateSequential(start_, data_, WhileAlive(life_, [this](const Result<std::string>&) {
                               again_ = true;
                               Finish();
                             }));
    return;
  }
  node_ = "/coordinators/" + own;
  if (LowestOf(children) != own || leadership_) return Finish();
  RaiseEpoch();
}

void ZkElection::RaiseEpoch() {
  client_.Get(
      "/epoch", WhileAlive(life_, [this](const Result<ZkNode>& value) {
        if (!value.ok() && value.error().code != ErrorCode::kNotFound) return Retry();
        const std::uint64_t number = value.ok() ? std::stoull(value->data) + 1 : 1;
        std::vector<ZkOp> ops;
        ops.push_back({ZkOp::Kind::kCheck, node_, ""});
        ops.push_back(value.ok()
                          ? ZkOp{ZkOp::Kind::kSet, "/epoch", std::to_string(number), value->version}
                          : ZkOp{ZkOp::Kind::kCreate, "/epoch", std::to_string(number), -1});
        client_.Multi(std::move(ops), WhileAlive(life_, [this, number, session = client_.session()](
                                                            const ZkOutcome& outcome) {
                        if (!outcome.status.ok()) return Retry();
                        if (!client_.connected() || client_.session() != session) {
                          again_ = true;
                          return Finish();
                        }
                        leadership_ = ZkLeadership{number, outcome.versions.at(1)};
                        Finish();
                        const Callback callback = callback_;
                        callback(leadership_);
                      }));
      }));
}

void ZkElection::Retry() {
  busy_ = false;
  schedule_.After(kRetryMs, machine_, life_, [this] {
    if (client_.connected()) Check();
  });
}

void ZkElection::Finish() {
  busy_ = false;
  if (again_) Check();
}

void ZkElection::StepDown() {
  if (!leadership_) return;
  leadership_.reset();
  const Callback callback = callback_;
  callback(std::nullopt);
}

}  // namespace ps::simulation
