#include "bench/bench_agent.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "common/net/context.h"
#include "common/net/zmq_socket.h"
#include "common/zookeeper/leader.h"
#include "common/zookeeper/member.h"
#include "common/zookeeper/session.h"
#include "common/zookeeper/watcher.h"

namespace ps::bench {
namespace {

// "I am ready" is said again until the coordinator has heard it.
constexpr net::Milliseconds kReadyRepeat{500};
constexpr net::Milliseconds kZooKeeperAsked{200};
constexpr int kExitTemporary = 75;

std::string Announcement(const BenchAgent::Settings& settings) {
  const nlohmann::json data = {
      {"name", settings.name}, {"host", settings.host}, {"version", PS_VERSION}};
  return data.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

Result<std::unique_ptr<BenchAgent>> BenchAgent::Start(Settings settings) {
  std::unique_ptr<BenchAgent> agent(new BenchAgent(std::move(settings)));
  std::future<Status> begun = agent->begun_.get_future();
  agent->thread_ = std::thread([raw = agent.get()] { raw->RunThread(); });
  PS_TRY(begun.get());
  return agent;
}

BenchAgent::~BenchAgent() {
  loop_.Stop();
  if (thread_.joinable()) thread_.join();
}

void BenchAgent::RunThread() {
  net::Context context;
  if (Status secured = context.Secure(settings_.security); !secured.ok()) {
    begun_.set_value(secured.error());
    return;
  }
  net::ControlClient client(loop_, context, [this] { return Registration(); });
  client.OnMessage([this](control::MessageT message) { OnMessage(std::move(message)); });
  client_ = &client;
  zk::Session::Options options;
  options.hosts = settings_.zookeeper;
  options.secret_file = settings_.zookeeper_secret;
  zk::Session session(loop_.context(), options);
  if (Status started = session.Start(); !started.ok()) {
    begun_.set_value(started.error());
    return;
  }
  session.OnState([this](const zk::StateEvent& event) {
    if (event.state != zk::State::kLost) return;
    const std::lock_guard lock(mutex_);
    if (!tasks_.empty()) trouble_ = "the ZooKeeper session was lost: " + event.reason;
  });
  const auto node =
      zk::EphemeralNode::Fixed(session, "/agents/" + settings_.procid, Announcement(settings_));
  const zk::ChildrenWatcher coordinators(session, "/coordinators",
                                         [&](const zk::ChildrenWatcher::Children& children) {
                                           client.SetEndpoint(zk::LeaderEndpoint(children));
                                         });
  net::Timer ready(loop_);
  ready.Every(kReadyRepeat, [this] { SayReady(); });
  net::Timer asked(loop_);
  asked.Every(kZooKeeperAsked, [this, &session] {
    const std::string trouble = session.connected() ? "" : session.Trouble();
    const std::lock_guard lock(mutex_);
    zookeeper_trouble_ = trouble;
  });
  begun_.set_value(Ok());
  loop_.Run();
  client_ = nullptr;
}

void BenchAgent::Offer(control::LayoutT model, const control::DataInfoT& data) {
  const std::lock_guard lock(mutex_);
  offered_.emplace(Offered{std::move(model), data});
  tasks_.clear();
  map_.reset();
  trouble_.clear();
}

std::optional<BenchAgent::Started> BenchAgent::TakeStarted(std::uint32_t workers) {
  const std::lock_guard lock(mutex_);
  if (!map_) return std::nullopt;
  Started started;
  started.tasks.resize(workers);
  std::uint32_t count = 0;
  for (const auto& [number, task] : tasks_) {
    if (!task.started || task.worker >= workers) continue;
    started.tasks[task.worker] = task;
    ++count;
  }
  if (count < workers) return std::nullopt;
  started.map = control::Clone(*map_);
  return started;
}

void BenchAgent::OnMap(std::function<void(const control::MapT&)> fn) {
  const std::lock_guard lock(mutex_);
  on_map_ = std::move(fn);
  if (on_map_ && map_) on_map_(*map_);
}

void BenchAgent::OnRound(std::function<void(const RoundNews&)> fn) {
  const std::lock_guard lock(mutex_);
  on_round_ = std::move(fn);
}

void BenchAgent::TellRound(std::uint64_t number, RoundNews news) {
  const std::lock_guard lock(mutex_);
  const auto found = tasks_.find(number);
  if (found == tasks_.end() || !on_round_) return;
  news.worker = found->second.worker;
  on_round_(news);
}

void BenchAgent::WantCheckpoint() {
  loop_.Post([this] {
    std::uint64_t number = 0;
    {
      const std::lock_guard lock(mutex_);
      if (!tasks_.empty()) number = tasks_.begin()->first;
    }
    control::ReadyForCheckpointT ready;
    ready.reason = "to be measured";
    if (number != 0 && client_ != nullptr) Send(control::Make(std::move(ready), number));
  });
}

void BenchAgent::SayCut(std::uint64_t task, std::uint64_t round, Clock cut) {
  loop_.Post([this, task, round, cut] {
    control::WorkerCutT said;
    said.round = round;
    said.clock = cut.value();
    if (client_ != nullptr) Send(control::Make(std::move(said), task));
  });
}

std::string BenchAgent::trouble() const {
  const std::lock_guard lock(mutex_);
  return trouble_;
}

std::string BenchAgent::zookeeper_trouble() const {
  const std::lock_guard lock(mutex_);
  return zookeeper_trouble_;
}

control::MessageT BenchAgent::Registration() const {
  control::RegisterAgentT registration;
  registration.name = settings_.name;
  registration.procid = settings_.procid;
  registration.host = settings_.host;
  registration.version = PS_VERSION;
  registration.slots = settings_.slots;
  registration.label = settings_.name;
  const std::lock_guard lock(mutex_);
  for (const auto& [number, task] : tasks_) {
    auto info = std::make_unique<control::TaskInfoT>();
    info->task = number;
    info->job = task.job.value();
    info->worker = task.worker;
    info->incarnation = task.incarnation.value();
    registration.tasks.push_back(std::move(info));
  }
  return control::Make(std::move(registration));
}

// A message that is lost is said again, or asked for again.
void BenchAgent::Send(const control::MessageT& message) { (void)client_->Send(message).ok(); }

void BenchAgent::OnMessage(control::MessageT message) {
  switch (message.body.type) {
    case control::Body::Preflight: OnPreflight(*message.body.AsPreflight()); break;
    case control::Body::StartTask: OnStartTask(*message.body.AsStartTask()); break;
    case control::Body::TaskStart: OnTaskStart(message.task, *message.body.AsTaskStart()); break;
    case control::Body::JobUpdate: OnJobUpdate(message.task, *message.body.AsJobUpdate()); break;
    case control::Body::StopTask: OnStopTask(*message.body.AsStopTask()); break;
    case control::Body::LogRead: {
      const control::LogReadT& read = *message.body.AsLogRead();
      control::LogChunkT chunk;
      chunk.request = read.request;
      chunk.job = read.job;
      chunk.worker = read.worker;
      chunk.error = "the tasks of a benchmark have no log";
      Send(control::Make(std::move(chunk)));
      break;
    }
    case control::Body::RoundBegin:
      TellRound(message.task, {RoundNews::What::kBegun, 0, message.body.AsRoundBegin()->round});
      break;
    case control::Body::RoundAbort:
      TellRound(message.task, {RoundNews::What::kAborted, 0, message.body.AsRoundAbort()->round,
                               message.body.AsRoundAbort()->reason});
      break;
    case control::Body::RoundCommitted:
      TellRound(message.task,
                {RoundNews::What::kCommitted, 0, message.body.AsRoundCommitted()->round});
      break;
    // Leases and the end of the data are of training; nothing here asks for them.
    default: break;
  }
}

void BenchAgent::OnPreflight(const control::PreflightT& preflight) {
  control::PreflightResultT result;
  result.request = preflight.request;
  {
    const std::lock_guard lock(mutex_);
    if (offered_) {
      result.ok = true;
      result.layout = control::ClonePtr(offered_->model);
      result.data = control::ClonePtr(offered_->data);
    } else {
      result.error = "the agent " + settings_.name + " is a benchmark that takes no job now";
    }
  }
  Send(control::Make(std::move(result)));
}

void BenchAgent::OnStartTask(const control::StartTaskT& start) {
  {
    const std::lock_guard lock(mutex_);
    Task task;
    task.number = start.task;
    task.job = JobId(start.job);
    task.worker = start.worker;
    task.incarnation = Incarnation(start.incarnation);
    task.generation = start.generation;
    tasks_.try_emplace(start.task, task);
  }
  SayReady();
}

void BenchAgent::SayReady() {
  std::vector<control::MessageT> messages;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [number, task] : tasks_) {
      if (task.started || !offered_) continue;
      control::TaskReadyT ready;
      ready.layout_fingerprint = offered_->model.fingerprint;
      ready.data_fingerprint = offered_->data.fingerprint;
      ready.records = offered_->data.records;
      messages.push_back(control::Make(std::move(ready), number));
    }
  }
  for (const control::MessageT& message : messages) Send(message);
}

void BenchAgent::OnTaskStart(std::uint64_t number, const control::TaskStartT& start) {
  const std::lock_guard lock(mutex_);
  const auto found = tasks_.find(number);
  if (found == tasks_.end() || found->second.started) return;
  if (start.start == nullptr || start.start->map == nullptr) return;
  found->second.started = true;
  found->second.first_clock = Clock(start.first_clock);
  found->second.token = start.start->token;
  if (!map_) map_ = control::Clone(*start.start->map);
}

void BenchAgent::OnJobUpdate(std::uint64_t number, const control::JobUpdateT& update) {
  const std::lock_guard lock(mutex_);
  if (!tasks_.contains(number) || !map_ || update.map == nullptr) return;
  if (update.map->version <= map_->version) return;
  for (std::size_t i = 0; i < map_->shards.size(); ++i) {
    if (i < update.map->shards.size() &&
        update.map->shards[i]->lineage == map_->shards[i]->lineage) {
      continue;
    }
    trouble_ = "a server was lost, and no backup had the values of its shards";
    return;
  }
  map_ = control::Clone(*update.map);
  if (on_map_) on_map_(*map_);
}

void BenchAgent::OnStopTask(const control::StopTaskT& stop) {
  control::TaskExitedT exited;
  {
    const std::lock_guard lock(mutex_);
    const auto found = tasks_.find(stop.task);
    exited.task = stop.task;
    exited.job = stop.task >> 32;
    if (found != tasks_.end()) {
      exited.job = found->second.job.value();
      exited.worker = found->second.worker;
      exited.incarnation = found->second.incarnation.value();
      tasks_.erase(found);
      trouble_ = "the coordinator has ended the benchmark's job: " + stop.reason;
    }
  }
  exited.status = kExitTemporary;
  exited.message = "stopped: " + stop.reason;
  Send(control::Make(std::move(exited)));
}

}  // namespace ps::bench
