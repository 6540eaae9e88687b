#include "bench/measure_cluster.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <mutex>
#include <random>
#include <set>
#include <utility>

#include "cli/context.h"
#include "cli/output.h"
#include "common/net/context.h"
#include "common/net/zmq_socket.h"

namespace ps::bench {
namespace {

using cli::MemberOf;
using cli::TextOf;

constexpr std::chrono::milliseconds kPoll{50};
constexpr std::int64_t kLookMs = 1000;          // at the job, while it is measured
constexpr std::int64_t kLookDeadlineMs = 2000;  // of such a look
const char* const kInterrupted = "interrupted";

std::string Hex(std::size_t digits) {
  std::random_device random;
  std::string text;
  for (std::size_t i = 0; i < digits; ++i) text += "0123456789abcdef"[random() % 16];
  return text;
}

std::string HostName() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "localhost";
}

std::string Counted(std::size_t count, const char* what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

// What the agent's thread has heard of checkpoints.
struct RoundsSeen {
  std::atomic<std::uint64_t> committed{0};
  std::mutex mutex{};
  std::string aborted{};  // why the newest was, under the mutex
};

// "3 servers, 6 lanes", and whose jobs are on them.
std::string ServersText(const cli::Json& nodes) {
  std::size_t servers = 0;
  std::size_t lanes = 0;
  std::set<std::string> jobs;
  for (const cli::Json& node : MemberOf(nodes, "nodes")) {
    if (TextOf(node, "kind") != "server" || TextOf(node, "state") != "ready") continue;
    ++servers;
    lanes += MemberOf(node, "lanes").is_array() ? MemberOf(node, "lanes").size() : 0;
    for (const cli::Json& job : MemberOf(node, "jobs")) {
      if (job.is_string()) jobs.insert(cli::Printable(job.get<std::string>()));
    }
  }
  if (servers == 0) return "";
  std::string text = Counted(servers, "server") + ", " + Counted(lanes, "lane");
  std::string names;
  for (const std::string& job : jobs) names += (names.empty() ? "" : ", ") + job;
  if (!names.empty()) text += "; shared with running jobs, which this slows down: " + names;
  return text;
}

}  // namespace

ClusterBench::ClusterBench(cli::Environment& environment, cli::Context context)
    : environment_(environment),
      uninterrupted_(environment),
      api_(environment_, context),
      end_api_(uninterrupted_, context) {
  uninterrupted_.interrupted = [] { return false; };
}

Result<std::unique_ptr<ClusterBench>> ClusterBench::Join(
    cli::Environment& environment, const std::vector<std::string>& coordinators,
    const std::string& zookeeper, const Options& options, const Say& say) {
  auto context = PS_TRY(cli::FindContext(environment, coordinators));
  BenchAgent::Settings settings;
  settings.security = context.security;
  settings.zookeeper_secret = environment.variable("DS_ZOOKEEPER_SECRET");
  std::unique_ptr<ClusterBench> bench(new ClusterBench(environment, std::move(context)));
  const cli::Json version = PS_TRY(bench->api_.Get("/v1/version"));
  const cli::Json nodes = PS_TRY(bench->api_.Get("/v1/nodes"));
  const std::string servers = ServersText(nodes);
  if (servers.empty()) {
    return Error{ErrorCode::kUnreachable,
                 "no ps-server is registered with the coordinator, there is nothing to measure "
                 "(`ds-cli node list` shows who is there)"};
  }
  say(servers);
  settings.zookeeper = zookeeper.empty() ? TextOf(version, "zookeeper") : zookeeper;
  if (settings.zookeeper.empty()) {
    return Error{ErrorCode::kUsage,
                 "the coordinator does not say where ZooKeeper is; give it with --zookeeper"};
  }
  settings.name = "ds-bench-" + Hex(8);
  settings.procid = Hex(32);
  settings.host = HostName();
  settings.slots = options.workers;
  bench->agent_ = PS_TRY(BenchAgent::Start(std::move(settings)));
  PS_TRY(bench->AwaitRegistered(options.deadline_seconds));
  return bench;
}

Status ClusterBench::AwaitRegistered(double deadline_seconds) {
  const auto end = environment_.now_ms() + static_cast<std::int64_t>(deadline_seconds * 1000);
  while (true) {
    const cli::Json nodes = PS_TRY(api_.Get("/v1/nodes"));
    for (const cli::Json& node : MemberOf(nodes, "nodes")) {
      if (TextOf(node, "procid") == agent_->settings().procid && TextOf(node, "state") == "ready") {
        return Ok();
      }
    }
    if (environment_.interrupted()) return Error{ErrorCode::kClosed, kInterrupted};
    if (environment_.now_ms() >= end) {
      const std::string trouble = agent_->zookeeper_trouble();
      return Error{
          ErrorCode::kTimeout,
          "the coordinator did not take this process as a worker node within " +
              cli::DecimalText(deadline_seconds) + " s: " +
              (trouble.empty() ? "its control port cannot be reached from here, or it uses "
                                 "another ZooKeeper than " +
                                     agent_->settings().zookeeper
                               : trouble)};
    }
    environment_.sleep(kPoll);
  }
}

Result<cli::Json> ClusterBench::JobNow() {
  const cli::Json answer = PS_TRY(api_.Get("/v1/jobs/" + agent_->settings().name));
  return cli::Json(MemberOf(answer, "job"));
}

Result<BenchAgent::Started> ClusterBench::AwaitStarted(const Options& options) {
  const auto end =
      environment_.now_ms() + static_cast<std::int64_t>(options.deadline_seconds * 1000);
  std::int64_t next_look = 0;
  std::string state = "unknown";
  while (true) {
    if (auto started = agent_->TakeStarted(options.workers)) return std::move(*started);
    if (environment_.interrupted()) return Error{ErrorCode::kClosed, kInterrupted};
    if (environment_.now_ms() >= next_look) {
      next_look = environment_.now_ms() + kLookMs / 2;
      const cli::Json job = PS_TRY(JobNow());
      const std::string phase = TextOf(job, "phase");
      state = cli::Printable(phase + ", " + TextOf(job, "reason"));
      if (phase == "failed" || phase == "cancelled" || phase == "succeeded") {
        return Error{ErrorCode::kClosed, "the benchmark's job is over before it began: " + state};
      }
    }
    if (environment_.now_ms() >= end) {
      return Error{ErrorCode::kTimeout, "the benchmark's job did not start within " +
                                            cli::DecimalText(options.deadline_seconds) +
                                            " s; it is " + state};
    }
    environment_.sleep(kPoll);
  }
}

Status ClusterBench::AwaitReplicated(const Options& options, const Plan& plan) {
  if (options.replicas == 0) return Ok();
  const auto end =
      environment_.now_ms() + static_cast<std::int64_t>(options.deadline_seconds * 1000);
  const std::uint64_t shards = plan.layout.shard_count();
  while (true) {
    const cli::Json job = PS_TRY(JobNow());
    const cli::Json& replicated = MemberOf(job, "replicated_shards");
    const std::uint64_t count =
        replicated.is_number_unsigned() ? replicated.get<std::uint64_t>() : 0;
    if (count >= shards) return Ok();
    if (const std::string why = GiveUp(); !why.empty()) return Error{ErrorCode::kClosed, why};
    if (environment_.now_ms() >= end) {
      return Error{ErrorCode::kTimeout, std::to_string(count) + " of " + std::to_string(shards) +
                                            " shards have " + Counted(options.replicas, "backup") +
                                            " after " + cli::DecimalText(options.deadline_seconds) +
                                            " s; are there enough servers?"};
    }
    environment_.sleep(kPoll);
  }
}

std::string ClusterBench::GiveUp() {
  if (environment_.interrupted()) return kInterrupted;
  if (std::string trouble = agent_->trouble(); !trouble.empty()) return trouble;
  if (environment_.now_ms() < next_look_ms_) return "";
  next_look_ms_ = environment_.now_ms() + kLookMs;
  // That no coordinator answers for a while is nothing to the data plane.
  const Result<cli::Json> job = JobNow();
  if (!job.ok()) return environment_.interrupted() ? kInterrupted : "";
  const std::string phase = TextOf(*job, "phase");
  // With backups a server may go: they take over.
  if (phase == "running" || (phase == "recovering" && replicas_ > 0)) return "";
  return "the benchmark's job is " + cli::Printable(phase + ": " + TextOf(*job, "reason"));
}

Result<Row> ClusterBench::Measure(const Options& options, Operation operation, std::uint64_t size,
                                  const Say& say) {
  const Plan plan = PS_TRY(Plan::Make(options, operation, size));
  Result<Row> row = MeasureJob(options, operation, plan, say);
  const Status ended = EndJob(row.ok() ? "measured" : row.error().message);
  if (!ended.ok()) {
    const std::string what =
        "job " + agent_->settings().name + " could not be cancelled: " + ended.error().message;
    if (row.ok()) return Error{ended.error().code, what};
    say(what);
  }
  return row;
}

Result<Row> ClusterBench::MeasureJob(const Options& options, Operation operation, const Plan& plan,
                                     const Say& say) {
  const std::string& name = agent_->settings().name;
  replicas_ = options.replicas;
  JobSpec spec = SpecOf(options, plan, options.workers);
  spec.name = name;
  spec.resources.label = name;
  spec.resources.replicas = static_cast<int>(options.replicas);
  control::DataInfoT data;
  data.records = static_cast<std::uint64_t>(spec.data.train.records);
  data.fingerprint = data.records;
  agent_->Offer(control::Clone(plan.model), data);
  const cli::Json answer = PS_TRY(api_.Post(
      "/v1/jobs", cli::Json{{"spec", cli::Json::parse(ResolvedJson(spec), nullptr, false)}}));
  const BenchAgent::Started started = PS_TRY(AwaitStarted(options));
  std::size_t lanes = 0;
  for (const auto& server : started.map.servers) lanes += server->lanes.size();
  std::set<std::pair<std::uint16_t, std::uint16_t>> used;
  for (const auto& shard : started.map.shards) used.emplace(shard->server, shard->lane);
  say("job " + TextOf(MemberOf(answer, "job"), "id") + " (" + name +
      ") runs: " + Counted(started.map.shards.size(), "shard") + " on " +
      std::to_string(used.size()) + " of " + std::to_string(lanes) + " lanes");

  net::Context context;
  PS_TRY(context.Secure(agent_->settings().security));
  next_look_ms_ = environment_.now_ms() + kLookMs;
  api_.set_deadline_ms(kLookDeadlineMs);
  const auto give_up = [this] { return GiveUp(); };
  std::vector<std::unique_ptr<LoadWorker>> load;
  for (const BenchAgent::Task& task : started.tasks) {
    LoadWorker::Settings settings;
    settings.operation = operation;
    settings.job = task.job;
    settings.number = task.worker;
    settings.incarnation = task.incarnation;
    settings.generation = task.generation;
    settings.token = task.token;
    settings.first_clock = task.first_clock;
    settings.fills = plan.row_width > 0 && task.worker == 0;
    settings.window = options.window;
    settings.pause_ms = options.pause_ms;
    settings.deadline_seconds = options.deadline_seconds;
    settings.give_up = give_up;
    settings.cut = [this, number = task.number](std::uint64_t round, Clock cut) {
      agent_->SayCut(number, round, cut);
    };
    load.push_back(std::make_unique<LoadWorker>(context, plan, started.map, settings));
  }
  Row row;
  // Not before all are connected: until then a lost server ends the measurement.
  const auto connected = [&]() -> Status {
    agent_->OnMap([&load](const control::MapT& map) {
      for (const auto& worker : load) worker->SetMap(map);
    });
    return AwaitReplicated(options, plan);
  };
  RoundsSeen seen;
  const Checkpoints checkpoints{
      [this] { agent_->WantCheckpoint(); },
      [&seen] { return seen.committed.load(); },
      [&seen] {
        const std::lock_guard lock(seen.mutex);
        return seen.aborted;
      },
  };
  agent_->OnRound([&load, &seen](const BenchAgent::RoundNews& news) {
    switch (news.what) {
      case BenchAgent::RoundNews::What::kBegun: load[news.worker]->BeginRound(news.round); break;
      case BenchAgent::RoundNews::What::kAborted: {
        load[news.worker]->AbortRound(news.round);
        const std::lock_guard lock(seen.mutex);
        seen.aborted = "checkpoint " + std::to_string(news.round) + ": " + news.reason;
        break;
      }
      case BenchAgent::RoundNews::What::kCommitted:
        if (news.worker == 0) ++seen.committed;
        break;
    }
  });
  const auto pushes = RunLoad(load, options, operation, plan, say, give_up, connected,
                              options.checkpoint_seconds > 0 ? &checkpoints : nullptr, row);
  const auto applied = pushes.ok() ? load.front()->CountApplied() : Result<std::uint64_t>(0);
  agent_->OnMap(nullptr);
  agent_->OnRound(nullptr);
  load.clear();
  api_.set_deadline_ms(cli::Api::kDeadlineMs);
  if (!pushes.ok()) return pushes.error();
  if (!applied.ok()) return applied.error();
  PS_TRY(CheckPushes(*applied, *pushes, plan));
  row.carrier = Carrier::kCluster;
  row.replicas = options.replicas;
  row.servers = static_cast<std::uint32_t>(started.map.servers.size());
  row.lanes = static_cast<std::uint32_t>(lanes);
  return row;
}

Status ClusterBench::EndJob(const std::string& reason) {
  const auto cancelled = end_api_.Post("/v1/jobs/" + agent_->settings().name + "/cancel",
                                       cli::Json{{"reason", "ds-bench: " + reason}});
  if (cancelled.ok()) return Ok();
  const ErrorCode code = cancelled.error().code;
  // It was never created, or it is over.
  if (code == ErrorCode::kNotFound || code == ErrorCode::kConflict) return Ok();
  return cancelled.error();
}

}  // namespace ps::bench
