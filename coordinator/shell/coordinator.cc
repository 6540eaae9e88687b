#include "coordinator/shell/coordinator.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "common/messages/control.h"
#include "common/zookeeper/leader.h"
#include "common/zookeeper/member.h"

namespace ps::coordinator {
namespace {

std::vector<Presence> Presences(const zk::ChildrenWatcher::Children& children) {
  std::vector<Presence> list;
  for (const auto& [name, node] : children) {
    const auto json = nlohmann::json::parse(node.data, nullptr, false);
    if (!json.is_object()) continue;
    list.push_back({name, json.value("name", name), json.value("host", std::string())});
  }
  return list;
}

std::string Text(const zmq::message_t& frame) {
  return {static_cast<const char*>(frame.data()), frame.size()};
}

}  // namespace

Coordinator::Coordinator(net::Loop& loop, CoordinatorOptions options)
    : loop_(loop),
      options_(std::move(options)),
      tick_(loop),
      retry_(loop),
      deaths_(loop, [this](const std::string& procid) { OnDead(procid); }),
      leader_watch_(loop, context_, [this](const std::string& node) { OnLeaderDead(node); }) {}

Coordinator::~Coordinator() { StepDown("the coordinator stops"); }

Status Coordinator::Start() {
  net::ZmqOptions socket_options;
  socket_options.name = "control socket";
  socket_options.admits = {net::Role::kServer, net::Role::kWorker, net::Role::kCoordinator};
  PS_TRY(context_.Secure(options_.security));
  control_ = PS_TRY(net::ZmqSocket::Open(loop_, context_, net::ZmqKind::kRouter, socket_options));
  control_->OnReceive([this](net::ZmqSocket::Frames&& frames) { OnControl(std::move(frames)); });
  PS_TRY(control_->OnPeerLost([this](const std::string& identity) { OnPeerLost(identity); }));
  control_endpoint_ = PS_TRY(
      control_->Bind("tcp://" + options_.bind + ":" + std::to_string(options_.control_port)));

  net::HttpServerOptions http_options;
  http_options.answer_timeout = net::Milliseconds(110'000);  // a submission waits for its check
  http_options.rate_per_peer = 200;
  http_options.burst_per_peer = 400;
  http_ = std::make_unique<net::HttpServer>(loop_, options_.bind, options_.http_port, http_options);
  http_->OnRequest([this](const net::HttpRequest& request, const net::Responder& responder) {
    OnRequest(request, responder);
  });
  access_ = std::make_unique<ApiAccess>(loop_, *http_, options_.api);
  PS_TRY(access_->Open());
  std::string http_endpoint = PS_TRY(http_->Start());
  if (!options_.advertise.empty()) {
    control_endpoint_ = net::EndpointWithHost(control_endpoint_, options_.advertise);
    http_endpoint = options_.advertise + http_endpoint.substr(http_endpoint.rfind(':'));
  }
  url_ = (options_.api.tls.given() ? "https://" : "http://") + http_endpoint;

  zk::Session::Options session_options;
  session_options.hosts = options_.zookeeper;
  session_options.secret_file = options_.zookeeper_secret;
  session_options.session_timeout = std::chrono::milliseconds(options_.session_timeout_ms);
  session_ = std::make_unique<zk::Session>(loop_.context(), session_options);
  servers_watcher_ = std::make_unique<zk::ChildrenWatcher>(
      *session_, "/servers", [this](const zk::ChildrenWatcher::Children& children) {
        servers_ = children;
        FeedMembers();
      });
  agents_watcher_ = std::make_unique<zk::ChildrenWatcher>(
      *session_, "/agents", [this](const zk::ChildrenWatcher::Children& children) {
        agents_ = children;
        FeedMembers();
      });
  coordinators_watcher_ = std::make_unique<zk::ChildrenWatcher>(
      *session_, "/coordinators", [this](const zk::ChildrenWatcher::Children& children) {
        coordinators_ = children;
        WatchLeader();
      });
  zk::Election::Options election_options;
  election_options.data =
      nlohmann::json{{"id", options_.id}, {"control", control_endpoint_}, {"http", url_}}.dump();
  election_ = std::make_unique<zk::Election>(
      *session_, election_options,
      [this](const std::optional<zk::Leadership>& leadership) { OnLeadership(leadership); });
  PS_TRY(session_->Start());
  tick_.Every(net::Milliseconds(100), [this] { OnTick(); });
  spdlog::info("coordinator {} listens on {} (control) and {} (API)", options_.id,
               control_endpoint_, url_);
  return Ok();
}

void Coordinator::Reload() { access_->Reload(); }

net::DaemonState Coordinator::State() const {
  net::DaemonState state;
  state.ready = session_->connected();
  if (!session_->connected()) {
    state.status = "waits: " + session_->Trouble();
  } else if (core_) {
    state.status = "leads, epoch " + std::to_string(leadership_->epoch) + "; " +
                   std::to_string(core_->servers().size()) + " servers, " +
                   std::to_string(core_->agents().size()) + " agents";
  } else if (leadership_) {
    state.status = "takes over";
  } else {
    const std::string leader = LeaderHttp();
    state.status = leader.empty() ? "stands by; nobody leads" : "stands by; " + leader + " leads";
  }
  return state;
}

void Coordinator::OnLeadership(const std::optional<zk::Leadership>& leadership) {
  StepDown("the leadership is lost");
  leadership_ = leadership;
  if (leadership_) TakeOver();
}

void Coordinator::TakeOver() {
  spdlog::info("leads from now on, leader epoch {}", leadership_->epoch);
  term_ = std::make_shared<int>(0);
  wall_offset_ms_ = net::WallClockMs() - loop_.NowMs();
  ReadRecords(*session_, term_, [this](Result<Records> records) {
    const auto again = [this](const std::string& why) {
      spdlog::error("cannot take over: {}; tries again in 5 s", why);
      retry_.After(net::Milliseconds(5000), [this] {
        if (leadership_ && !core_) TakeOver();
      });
    };
    if (!records.ok()) return again(records.error().message);
    CoreOptions options;
    options.id = options_.id;
    auto core = std::make_unique<Core>(options, leadership_->epoch);
    Status loaded = core->Load(records->jobs, Now());
    if (loaded.ok() && records->cluster) loaded = core->LoadCluster(*records->cluster);
    if (!loaded.ok()) return again(loaded.error().message);
    spdlog::info("took over {} jobs", records->jobs.size());
    core_ = std::move(core);
    store_ = std::make_unique<Store>(
        *session_, *leadership_, [this](Output& output) { Release(output); },
        [this](const std::string& why) {
          // Not from inside the store: it is destroyed here.
          loop_.Post([this, why, term = std::weak_ptr<void>(term_)] {
            if (term.expired()) return;
            StepDown("a write to ZooKeeper failed: " + why);
            if (leadership_) TakeOver();
          });
        });
    FeedMembers();
  });
}

void Coordinator::StepDown(const std::string& why) {
  if (core_) spdlog::warn("does not lead any more: {}", why);
  term_.reset();
  store_.reset();
  core_.reset();
  deaths_.Clear();
  identity_of_.clear();
  procid_of_.clear();
  for (const auto& [ticket, responder] : tickets_) {
    responder.Answer(ApiError({ErrorCode::kUnreachable,
                               "the coordinator lost its leadership before the answer; look "
                               "whether it was done before trying again"}));
  }
  tickets_.clear();
}

void Coordinator::FeedMembers() {
  if (!core_) return;
  const auto now = Now();
  if (servers_) core_->SetServers(Presences(*servers_), now);
  if (agents_) core_->SetAgents(Presences(*agents_), now);
  Flush(false);
}

void Coordinator::OnControl(std::vector<zmq::message_t>&& frames) {
  if (!core_) return;
  if (frames.size() != 2) {
    ++bad_messages_;
    return;
  }
  const std::string identity = Text(frames[0]);
  auto message =
      control::Decode({static_cast<const std::byte*>(frames[1].data()), frames[1].size()});
  if (!message.ok()) {
    ++bad_messages_;
    spdlog::warn("control socket: {}", message.error().message);
    return;
  }
  std::string procid;
  if (const auto* server = message->body.AsRegisterServer()) procid = server->procid;
  if (const auto* agent = message->body.AsRegisterAgent()) procid = agent->procid;
  if (!procid.empty()) {
    procid_of_.erase(identity_of_[procid]);
    identity_of_[procid] = identity;
    procid_of_[identity] = procid;
    deaths_.Forget(procid);
    spdlog::info("{} {} registered", control::BodyName(*message) + 8, procid);
  }
  const auto known = procid_of_.find(identity);
  if (known == procid_of_.end()) return;
  core_->OnMessage(known->second, std::move(*message), Now());
  Flush(false);
}

void Coordinator::OnPeerLost(const std::string& identity) {
  const auto known = procid_of_.find(identity);
  if (!core_ || known == procid_of_.end()) return;
  const auto server = core_->servers().find(known->second);
  if (server == core_->servers().end() || server->second.lanes.empty()) return;
  deaths_.OnLost(server->first, server->second.lanes.front());
}

void Coordinator::OnDead(const std::string& procid) {
  if (!core_) return;
  const auto server = core_->servers().find(procid);
  if (server == core_->servers().end()) return;
  spdlog::warn("server {} ({}) is dead: its connection broke and {} refuses connections",
               server->second.name, procid, server->second.lanes.front());
  core_->MarkServerDead(procid, Now());
  Flush(false);
}

std::uint64_t Coordinator::Now() const {
  return static_cast<std::uint64_t>(loop_.NowMs() + wall_offset_ms_);
}

void Coordinator::OnTick() {
  if (!core_) return;
  core_->Tick(Now());
  const std::int64_t now = loop_.NowMs();
  const bool lazy = now - last_lazy_ms_ >= 1000;
  if (lazy) last_lazy_ms_ = now;
  Flush(lazy);
}

void Coordinator::Flush(bool with_lazy) {
  if (!core_ || !store_) return;
  Output output = core_->TakeOutput(with_lazy);
  if (!output.empty()) store_->Write(std::move(output));
}

void Coordinator::Release(Output& output) {
  for (Output::Send& send : output.sends) {
    const auto identity = identity_of_.find(send.procid);
    if (identity == identity_of_.end()) continue;
    net::ZmqSocket::Frames frames;
    frames.push_back(net::CopyFrame(identity->second.data(), identity->second.size()));
    frames.push_back(net::TakeFrame(std::move(send.bytes)));
    const Status sent = control_->Send(std::move(frames));
    // A member that cannot be reached registers again and is told all anew.
    if (!sent.ok()) spdlog::debug("to {}: {}", send.procid, sent.error().message);
  }
  for (Answer& answer : output.answers) {
    const auto at = tickets_.find(answer.ticket);
    if (at == tickets_.end()) continue;
    if (answer.body.ok()) {
      answer.body->emplace("apiVersion", "ds/v1");
      at->second.Answer(net::JsonResponse(answer.created ? 201 : 200, *answer.body));
    } else {
      at->second.Answer(ApiError(answer.body.error()));
    }
    tickets_.erase(at);
  }
}

std::optional<std::string> Coordinator::LeaderNode() const {
  std::vector<std::string> names;
  for (const auto& [name, node] : coordinators_) names.push_back(name);
  return zk::LowestSequence(names);
}

void Coordinator::WatchLeader() {
  const auto leader = LeaderNode();
  std::string endpoint;
  if (leader) endpoint = zk::ControlEndpointOf(coordinators_.at(*leader).data);
  // Our own, of this process or of the one before it.
  if (endpoint == control_endpoint_) endpoint.clear();
  leader_watch_.Watch(leader.value_or(""), endpoint);
}

void Coordinator::OnLeaderDead(const std::string& node) {
  const std::string path = "/coordinators/" + node;
  spdlog::warn("the leader ({}) is dead: its connection broke and its port refuses others", node);
  session_->Delete(path, zk::kAnyVersion, [path](const Status& deleted) {
    if (deleted.ok() || deleted.error().code == ErrorCode::kNotFound) return;
    spdlog::warn("{} stays until its session ends: {}", path, deleted.error().message);
  });
}

std::string Coordinator::LeaderHttp() const {
  const auto lowest = LeaderNode();
  if (!lowest) return "";
  const auto json = nlohmann::json::parse(coordinators_.at(*lowest).data, nullptr, false);
  return json.is_object() ? json.value("http", std::string()) : "";
}

}  // namespace ps::coordinator
