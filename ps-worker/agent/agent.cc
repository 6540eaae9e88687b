#include "ps-worker/agent/agent.h"

#include <fcntl.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <iterator>
#include <span>
#include <system_error>
#include <utility>

#include "common/error_id.h"
#include "common/job/job_spec.h"
#include "ps-worker/agent/task_log.h"

namespace ps::worker {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMessageLines = 12;
// As in sysexits.h: the system could not start the program.
constexpr int kExitOsError = 71;
constexpr int kExitInvalid = 65;
constexpr int kExitTemporary = 75;

Status WriteFile(const fs::path& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << content;
  file.close();
  if (file.fail()) {
    return Error{ErrorId::kFileNotWritten,
                 path.string() + ": cannot be written: " + std::generic_category().message(errno)};
  }
  return Ok();
}

Result<net::UniqueFd> Lock(const fs::path& path) {
  net::UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0640));
  if (!file.valid()) {
    return Error{ErrorId::kFileNotWritten,
                 path.string() + ": " + std::generic_category().message(errno)};
  }
  if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    return Error{ErrorId::kStateDirectoryTaken,
                 path.parent_path().string() +
                     ": another ps-worker uses this state directory; give "
                     "each its own with --state-dir"};
  }
  return file;
}

bool FromTaskKind(control::Body kind) {
  switch (kind) {
    case control::Body::TaskReady:
    case control::Body::TaskFailed:
    case control::Body::LeaseRequest:
    case control::Body::LeaseProgress:
    case control::Body::WorkerCut:
    case control::Body::Progress:
    case control::Body::Drained:
    case control::Body::Evaluated:
    case control::Body::ReadyForCheckpoint: return true;
    default: return false;
  }
}

// "0-3,8" as the system writes it; what is not so is nothing.
std::vector<int> CpuList(const std::string& text) {
  constexpr int kCpusMax = 8192;
  std::vector<int> cpus;
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  while (at != end) {
    int first = 0;
    auto read = std::from_chars(at, end, first);
    if (read.ec != std::errc()) return {};
    int last = first;
    if (read.ptr != end && *read.ptr == '-') {
      read = std::from_chars(read.ptr + 1, end, last);
      if (read.ec != std::errc()) return {};
    }
    if (first < 0 || last < first || last >= kCpusMax) return {};
    for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
    at = read.ptr;
    if (at == end) break;
    if (*at != ',') return {};
    ++at;
  }
  return cpus;
}

void RemoveFile(const fs::path& path) {
  std::error_code error;
  fs::remove(path, error);
}

// What ps-task wrote to --result.
Result<control::MessageT> ReadAnswer(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  return control::Decode(std::as_bytes(std::span(bytes)));
}

}  // namespace

Result<std::unique_ptr<Agent>> Agent::Create(net::Loop& loop, net::Context& context,
                                             AgentOptions options) {
  std::error_code error;
  for (const char* folder : {"tasks", "logs"}) {
    fs::create_directories(options.state_directory / folder, error);
    if (error) {
      return Error{ErrorId::kFolderNotMade,
                   (options.state_directory / folder).string() +
                       ": cannot create the directory: " + error.message()};
    }
  }
  auto lock = PS_TRY(Lock(options.state_directory / "lock"));
  auto rings = PS_TRY(RingStore::Open(options.retention_directory));
  // Job files of tasks that died with the agent before us.
  for (fs::directory_iterator entry(options.state_directory / "tasks", error), end;
       !error && entry != end; entry.increment(error)) {
    RemoveFile(entry->path());
  }
  for (const control::RingInfoT& ring : rings.Scan({})) {
    spdlog::info("found the pushes of job {}, worker {}, incarnation {} up to clock {}", ring.job,
                 ring.worker, ring.incarnation, ring.last_clock);
  }
  std::unique_ptr<Agent> agent(
      new Agent(loop, context, std::move(options), std::move(rings), std::move(lock)));
  const std::string& gpus = agent->options_.gpus;
  if (gpus == "on" || (gpus == "auto" && fs::exists("/proc/driver/nvidia/version", error))) {
    PS_TRY(agent->FindDevices());
  }
  return agent;
}

Status Agent::FindDevices() {
  devices_ = PS_TRY(Ask("devices", {"--devices"}, options_.devices_deadline, "",
                        [this](net::ExitStatus status) { OnDevices(status); }));
  return Ok();
}

Result<std::unique_ptr<Agent::Check>> Agent::Ask(const std::string& name,
                                                 const std::vector<std::string>& words,
                                                 net::Milliseconds deadline,
                                                 const std::string& gpus,
                                                 std::function<void(net::ExitStatus)> on_exit) {
  const fs::path stem = options_.state_directory / "tasks" / name;
  auto check = std::make_unique<Check>();
  check->result = stem.string() + ".result";
  check->log = stem.string() + ".log";
  RemoveFile(check->result);
  RemoveFile(check->log);
  const net::UniqueFd log = PS_TRY(OpenTaskLog(check->log, words.front().substr(2)));
  net::ProcessSpec spec;
  spec.argv = {options_.task_binary};
  spec.argv.insert(spec.argv.end(), words.begin(), words.end());
  spec.argv.insert(spec.argv.end(), {"--result", check->result.string()});
  spec.output_fd = log.get();
  if (!gpus.empty()) spec.environment = {{"CUDA_VISIBLE_DEVICES", gpus}};
  check->child = PS_TRY(net::ChildProcess::Spawn(loop_, spec));
  check->child->OnExit(std::move(on_exit));
  check->deadline = std::make_unique<net::Timer>(loop_);
  Check* const borrowed = check.get();
  check->deadline->After(deadline, [borrowed] {
    borrowed->timed_out = true;
    (void)borrowed->child->SignalGroup(SIGKILL).ok();
  });
  return check;
}

std::string Agent::IdleGpus() const {
  std::string idle;
  for (const control::GpuInfoT& gpu : gpus_) {
    const bool used = std::any_of(tasks_.begin(), tasks_.end(), [&](const auto& entry) {
      const std::vector<std::string>& of = entry.second.gpus;
      return std::find(of.begin(), of.end(), gpu.uuid) != of.end();
    });
    if (gpu.trouble.empty() && !used) idle += (idle.empty() ? "" : ",") + gpu.uuid;
  }
  // A list that names none hides all.
  return idle.empty() && !gpus_.empty() ? "none" : idle;
}

// A node whose GPUs are of no use is one without: it says so once, in its log.
void Agent::OnDevices(net::ExitStatus status) {
  const std::unique_ptr<Check> check = std::move(devices_);
  Result<control::MessageT> message = ReadAnswer(check->result);
  if (check->timed_out) {
    spdlog::error("no GPU is used: {} --devices did not end within {} s", options_.task_binary,
                  options_.devices_deadline.count() / 1000);
  } else if (!message.ok() || message->body.type != control::Body::DeviceReport) {
    spdlog::error("no GPU is used: {} --devices {}: {}", options_.task_binary, status.ToString(),
                  LastLogLines(check->log, kMessageLines));
  } else {
    const control::DeviceReportT& report = *message->body.AsDeviceReport();
    for (const auto& gpu : report.gpus) {
      gpus_.push_back(*gpu);
      spdlog::info("GPU {} ({}): {}, {} GiB, sm_{}{}", gpus_.size() - 1, gpu->uuid, gpu->name,
                   gpu->memory_bytes >> 30, gpu->major, gpu->minor);
    }
    if (!report.note.empty()) spdlog::warn("no GPU is used: {}", report.note);
  }
  for (const fs::path& path : {check->result, check->log}) RemoveFile(path);
  if (!gpus_.empty()) {
    gpu_look_ = std::make_unique<net::Timer>(loop_);
    gpu_look_->After(options_.gpu_look_deadline, [this] {
      spdlog::warn(
          "the GPUs are used without a look at how they are: NVML did not answer within {} s",
          options_.gpu_look_deadline.count() / 1000);
      OnGpuReport({gpus_, {}});
    });
    gpu_watch_ = std::make_unique<GpuWatch>(
        loop_, gpus_, options_.gpu_watch,
        [this](GpuWatch::Report report) { OnGpuReport(std::move(report)); });
  }
  SetLeader(leader_);
}

void Agent::OnGpuReport(GpuWatch::Report report) {
  gpus_ = std::move(report.gpus);
  gpu_bandwidth_ = std::move(report.bandwidth);
  if (gpu_look_ != nullptr) {
    loop_.Post([timer = std::exchange(gpu_look_, nullptr)] {});  // this may be its own call
    return SetLeader(leader_);
  }
  control::GpuReportT message;
  for (const control::GpuInfoT& gpu : gpus_) {
    message.gpus.push_back(std::make_unique<control::GpuInfoT>(gpu));
  }
  message.gpu_bandwidth = gpu_bandwidth_;
  if (client_.registered()) (void)client_.Send(control::Make(std::move(message))).ok();
}

Agent::Agent(net::Loop& loop, net::Context& context, AgentOptions options, RingStore rings,
             net::UniqueFd lock)
    : loop_(loop),
      context_(context),
      options_(std::move(options)),
      rings_(std::move(rings)),
      lock_(std::move(lock)),
      client_(
          loop, context, [this] { return Registration(); }, options_.control),
      housekeeping_(loop) {
  client_.OnMessage([this](control::MessageT message) { OnMessage(std::move(message)); });
  housekeeping_.Every(options_.housekeeping, [this] { Housekeep(); });
}

Agent::~Agent() {
  // Memory file systems are not tidied up by anybody else. It stays while there is a ring in it.
  if (options_.retention_directory == DefaultRetentionDirectory(options_.state_directory)) {
    RemoveFile(options_.retention_directory);
  }
}

void Agent::SetLeader(const std::string& endpoint) {
  leader_ = endpoint;
  if (devices_known()) client_.SetEndpoint(endpoint);
}

void Agent::Stop(const std::string& reason, std::function<void()> done) {
  stopping_ = true;
  stopped_ = std::move(done);
  for (auto& task : tasks_) {
    control::StopTaskT stop;
    stop.task = task.first;
    stop.reason = reason;
    task.second.process->Stop(stop);
  }
  checks_.clear();
  devices_.reset();
  gpu_look_.reset();
  gpu_watch_.reset();
  loop_.Post([this] { MaybeStopped(); });
}

void Agent::MaybeStopped() {
  if (!stopping_ || !tasks_.empty() || !stopped_) return;
  const auto done = std::exchange(stopped_, nullptr);
  done();
}

// ---- the coordinator

control::MessageT Agent::Registration() const {
  control::RegisterAgentT registration;
  registration.name = options_.name;
  registration.procid = options_.procid;
  registration.host = options_.host;
  registration.version = options_.version;
  registration.slots = stopping_ ? 0 : options_.slots;
  registration.label = options_.label;
  for (const control::GpuInfoT& gpu : gpus_) {
    registration.gpus.push_back(std::make_unique<control::GpuInfoT>(gpu));
  }
  registration.gpu_bandwidth = gpu_bandwidth_;
  for (const auto& entry : tasks_) {
    const Task& task = entry.second;
    control::TaskInfoT info;
    info.task = entry.first;
    info.job = task.key.job.value();
    info.worker = task.key.worker.value();
    info.incarnation = task.key.incarnation.value();
    info.pid = static_cast<std::uint32_t>(task.process->pid());
    registration.tasks.push_back(std::make_unique<control::TaskInfoT>(info));
  }
  // Their ends follow the Welcome, with the reasons.
  for (const control::TaskExitedT* exited : outbox_.Exits()) {
    control::TaskInfoT info;
    info.task = exited->task;
    info.job = exited->job;
    info.worker = exited->worker;
    info.incarnation = exited->incarnation;
    registration.tasks.push_back(std::make_unique<control::TaskInfoT>(info));
  }
  for (const control::RingInfoT& ring : rings_.Scan(Running())) {
    registration.rings.push_back(std::make_unique<control::RingInfoT>(ring));
  }
  return control::Make(std::move(registration));
}

void Agent::OnMessage(control::MessageT message) {
  if (message.task != 0 && message.body.type != control::Body::StopTask) {
    ToTask(std::move(message));
    return;
  }
  switch (message.body.type) {
    case control::Body::Welcome: OnWelcome(); break;
    case control::Body::StartTask: OnStartTask(*message.body.AsStartTask()); break;
    case control::Body::StopTask: OnStopTask(*message.body.AsStopTask()); break;
    case control::Body::Replay: OnReplay(*message.body.AsReplay()); break;
    case control::Body::JobUpdate: OnJobUpdate(*message.body.AsJobUpdate()); break;
    case control::Body::JobDrop: OnJobDrop(*message.body.AsJobDrop()); break;
    case control::Body::DropRing: {
      const control::DropRingT& drop = *message.body.AsDropRing();
      DropRing({JobId(drop.job), WorkerId(drop.worker), Incarnation(drop.incarnation)});
      break;
    }
    case control::Body::Preflight: OnPreflight(*message.body.AsPreflight()); break;
    case control::Body::LogRead: OnLogRead(*message.body.AsLogRead()); break;
    default: spdlog::debug("a {} is not for an agent", control::BodyName(message)); break;
  }
}

void Agent::OnWelcome() {
  spdlog::info("registered with the coordinator, {} tasks, {} messages kept", tasks_.size(),
               outbox_.size());
  outbox_.Flush([this](const control::MessageT& message) { return client_.Send(message).ok(); });
}

void Agent::ToTask(control::MessageT message) {
  switch (message.body.type) {
    case control::Body::TaskStart: outbox_.Settle(message.task, control::Body::TaskReady); break;
    case control::Body::LeaseGrant:
      outbox_.Settle(message.task, control::Body::LeaseRequest);
      break;
    case control::Body::RoundCommitted:
    case control::Body::RoundAbort: outbox_.Settle(message.task, control::Body::WorkerCut); break;
    default: break;
  }
  const auto found = tasks_.find(message.task);
  if (found != tasks_.end()) found->second.process->Send(message);
}

void Agent::FromTask(std::uint64_t task, control::MessageT message) {
  if (!FromTaskKind(message.body.type)) {
    spdlog::warn("task {} sent a {}, which is not for it to say", task, control::BodyName(message));
    return;
  }
  message.task = task;
  message.leader_epoch = 0;
  ToCoordinator(std::move(message));
}

void Agent::ToCoordinator(control::MessageT message) {
  if (client_.registered()) (void)client_.Send(message).ok();
  if (Outbox::Keeps(message.body.type)) outbox_.Keep(std::move(message));
}

// ---- tasks

fs::path Agent::LogPath(JobId job, WorkerId worker) const {
  return options_.state_directory / "logs" /
         ("job-" + std::to_string(job.value()) + "-worker-" + std::to_string(worker.value()) +
          ".log");
}

void Agent::OnStartTask(const control::StartTaskT& start) {
  if (tasks_.count(start.task) != 0) return;  // said twice
  Task task;
  task.key = {JobId(start.job), WorkerId(start.worker), Incarnation(start.incarnation)};
  task.gpus = start.gpus;
  task.generation = start.generation;
  task.log = LogPath(task.key.job, task.key.worker);
  if (stopping_ || BusySlots() >= options_.slots) {
    ReportExit(start.task, task, kExitTemporary,
               stopping_ ? "the agent stops" : "no free slot on this agent");
    return;
  }
  const Result<TaskCommand> command = PrepareTask(start, task);
  if (!command.ok()) {
    spdlog::error("task {}: {}", start.task, ErrorLine(command.error()));
    ReportExit(start.task, task,
               command.error().code == ErrorCode::kInvalid ? kExitInvalid : kExitOsError,
               command.error().message);
    return;
  }
  const std::uint64_t number = start.task;
  TaskProcess::Callbacks callbacks;
  callbacks.on_message = [this, number](control::MessageT message) {
    FromTask(number, std::move(message));
  };
  callbacks.on_exit = [this, number](net::ExitStatus status) { OnTaskExit(number, status); };
  Result<std::unique_ptr<TaskProcess>> process =
      TaskProcess::Start(loop_, *command, options_.task, std::move(callbacks));
  if (!process.ok()) {
    spdlog::error("task {}: {}", start.task, ErrorLine(process.error()));
    RemoveFile(task.spec);
    ReportExit(start.task, task, kExitOsError, process.error().message);
    return;
  }
  task.process = std::move(*process);
  spdlog::info("job {} ({}), worker {}: task with pid {} started as incarnation {}", start.job,
               start.job_name, start.worker, task.process->pid(), start.incarnation);
  tasks_.emplace(number, std::move(task));
}

Result<TaskCommand> Agent::PrepareTask(const control::StartTaskT& start, Task& task) const {
  const JobSpec spec = PS_TRY(ParseJobJson(start.spec_json));
  task.spec = options_.state_directory / "tasks" / ("task-" + std::to_string(start.task) + ".json");
  PS_TRY(WriteFile(task.spec, start.spec_json));
  PruneTaskLogs(options_.state_directory / "logs", options_.log_files_max);
  const std::uint64_t ring_bytes = static_cast<std::uint64_t>(spec.resources.retention_mebibytes)
                                   << 20;
  const std::string threads = std::to_string(spec.training.threads_per_worker);
  TaskCommand command;
  command.argv = {options_.task_binary,
                  "--spec",
                  task.spec.string(),
                  "--control-fd",
                  "3",
                  "--ring",
                  rings_.PathOf(task.key).string(),
                  "--ring-bytes",
                  std::to_string(ring_bytes),
                  "--log-level",
                  options_.log_level};
  if (options_.security.secure()) {
    command.argv.insert(command.argv.end(),
                        {"--key", options_.security.key, "--trusted", options_.security.trusted});
  }
  // These libraries take the number of threads from the environment before main() can say it.
  command.environment = {{"OMP_NUM_THREADS", threads}, {"OPENBLAS_NUM_THREADS", threads}};
  // Others are not there for it, and its own is its first.
  std::string visible;
  for (const std::string& gpu : start.gpus) visible += (visible.empty() ? "" : ",") + gpu;
  command.environment.emplace_back("CUDA_VISIBLE_DEVICES", visible);
  if (!start.gpus.empty()) command.cpus = CpusNearGpu(start.gpus.front());
  command.log = task.log;
  command.log_heading = "job " + std::to_string(start.job) + " worker " +
                        std::to_string(start.worker) + " incarnation " +
                        std::to_string(start.incarnation);
  return command;
}

// Those of its NUMA node: its copies do not cross between processors, nor does what they are made
// of.
std::vector<int> Agent::CpusNearGpu(const std::string& uuid) const {
  const auto gpu = std::find_if(gpus_.begin(), gpus_.end(),
                                [&](const control::GpuInfoT& one) { return one.uuid == uuid; });
  if (gpu == gpus_.end() || gpu->pci.empty() || gpu->pci.find('/') != std::string::npos) return {};
  std::ifstream file(options_.pci_directory / gpu->pci / "local_cpulist");
  std::string list;
  std::getline(file, list);
  return CpuList(list);
}

void Agent::OnTaskExit(std::uint64_t number, net::ExitStatus status) {
  const auto found = tasks_.find(number);
  if (found == tasks_.end()) return;
  const Task task = std::move(found->second);
  tasks_.erase(found);
  spdlog::info("job {}, worker {}: task of incarnation {} {}", task.key.job.value(),
               task.key.worker.value(), task.key.incarnation.value(), status.ToString());
  RemoveFile(task.spec);
  ReportExit(number, task, status.Number(),
             status.success() ? "" : LastLogLines(task.log, kMessageLines));
  if (task.drop_ring) DropRing(task.key);
  MaybeStopped();
}

void Agent::ReportExit(std::uint64_t number, const Task& task, int status, std::string message) {
  control::TaskExitedT exited;
  exited.task = number;
  exited.job = task.key.job.value();
  exited.worker = task.key.worker.value();
  exited.incarnation = task.key.incarnation.value();
  exited.status = status;
  exited.message = std::move(message);
  const Result<std::optional<control::RingInfoT>> ring = rings_.Describe(task.key);
  if (!ring.ok()) {
    // Absent: what it had pushed since the last checkpoint cannot be replayed.
    spdlog::error("{}; its pushes are lost", ErrorLine(ring.error()));
  } else if (ring->has_value()) {
    exited.ring = std::make_unique<control::RingInfoT>(**ring);
  } else {
    // It never pushed, and that is certain.
    exited.ring = std::make_unique<control::RingInfoT>();
    exited.ring->job = exited.job;
    exited.ring->worker = exited.worker;
    exited.ring->incarnation = exited.incarnation;
    exited.ring->generation = task.generation;
    rings_.Remove(task.key);
  }
  control::MessageT last = control::Make(std::move(exited));
  // What it had said before was sent when it came, or at the last Welcome.
  if (client_.registered() && client_.Send(last).ok()) {
    outbox_.Forget(number);
  } else {
    outbox_.KeepExit(std::move(last));
  }
}

void Agent::OnStopTask(const control::StopTaskT& stop) {
  const auto found = tasks_.find(stop.task);
  if (found == tasks_.end()) return;
  spdlog::info("task {} is {}: {}", stop.task, stop.kill ? "killed" : "stopped", stop.reason);
  found->second.ending = true;
  found->second.process->Stop(stop);
}

std::set<RingKey> Agent::Running() const {
  std::set<RingKey> running;
  for (const auto& task : tasks_) running.insert(task.second.key);
  return running;
}

std::size_t Agent::BusySlots() const {
  return static_cast<std::size_t>(std::count_if(
      tasks_.begin(), tasks_.end(), [](const auto& task) { return !task.second.ending; }));
}

// ---- replays

void Agent::OnReplay(const control::ReplayT& replay) {
  const RingKey key{JobId(replay.job), WorkerId(replay.worker), Incarnation(replay.incarnation)};
  if (replay.start == nullptr || replay.start->map == nullptr) {
    spdlog::warn("a replay of job {} without a map", replay.job);
    return;
  }
  for (const auto& task : tasks_) {
    if (task.second.key == key) {
      spdlog::warn("a replay of task {}, which still runs", task.first);
      return;
    }
  }
  auto found = ghosts_.find(key);
  if (found == ghosts_.end()) {
    Result<std::unique_ptr<Ghost>> ghost =
        Ghost::Start(loop_, context_, rings_, key, replay.start->token,
                     [this](const control::ReplayDoneT& done) {
                       ToCoordinator(control::Make(control::ReplayDoneT(done)));
                     });
    if (!ghost.ok()) {
      spdlog::error("job {}, worker {}: cannot replay: {}", replay.job, replay.worker,
                    ErrorLine(ghost.error()));
      return;
    }
    spdlog::info("job {}, worker {}: replays the pushes of incarnation {}", replay.job,
                 replay.worker, replay.incarnation);
    found = ghosts_.emplace(key, std::move(*ghost)).first;
  }
  const Status mapped = found->second->SetMap(*replay.start->map);
  if (!mapped.ok()) spdlog::error("job {}: {}", replay.job, ErrorLine(mapped.error()));
}

void Agent::OnJobUpdate(const control::JobUpdateT& update) {
  if (update.map == nullptr) return;
  for (auto& ghost : ghosts_) {
    if (ghost.first.job.value() != update.job) continue;
    const Status mapped = ghost.second->SetMap(*update.map);
    if (!mapped.ok()) spdlog::error("job {}: {}", update.job, ErrorLine(mapped.error()));
  }
}

void Agent::OnJobDrop(const control::JobDropT& drop) {
  for (auto& task : tasks_) {
    if (task.second.key.job.value() != drop.job) continue;
    task.second.drop_ring = true;
    task.second.ending = true;
    control::StopTaskT stop;
    stop.task = task.first;
    stop.reason = "the job is over";
    task.second.process->Stop(stop);
  }
  for (const control::RingInfoT& ring : rings_.Scan(Running())) {
    if (ring.job != drop.job) continue;
    DropRing({JobId(ring.job), WorkerId(ring.worker), Incarnation(ring.incarnation)});
  }
}

void Agent::DropRing(const RingKey& key) {
  for (auto& task : tasks_) {
    if (task.second.key == key) {
      task.second.drop_ring = true;
      return;
    }
  }
  ghosts_.erase(key);
  rings_.Remove(key);
}

// ---- preflights

void Agent::OnPreflight(const control::PreflightT& preflight) {
  if (checks_.count(preflight.request) != 0) return;  // said twice
  Result<std::unique_ptr<Check>> check = StartCheck(preflight);
  if (!check.ok()) {
    control::PreflightResultT result;
    result.error = options_.name + ": " + check.error().message;
    result.error_id = static_cast<std::uint16_t>(check.error().id);
    AnswerPreflight(preflight.request, std::move(result));
    return;
  }
  checks_.emplace(preflight.request, std::move(*check));
}

Result<std::unique_ptr<Agent::Check>> Agent::StartCheck(const control::PreflightT& preflight) {
  if (stopping_ || checks_.size() >= options_.preflights_max) {
    return Error{ErrorId::kCheckBusy, "too many jobs are being checked, try again"};
  }
  const std::uint64_t request = preflight.request;
  const fs::path stem =
      options_.state_directory / "tasks" / ("preflight-" + std::to_string(request));
  const fs::path spec = stem.string() + ".json";
  PS_TRY(WriteFile(spec, preflight.spec_json));
  auto check =
      PS_TRY(Ask(stem.filename().string(), {"--preflight", "--spec", spec.string()},
                 options_.preflight_deadline, IdleGpus(),
                 [this, request](net::ExitStatus status) { OnCheckExit(request, status); }));
  check->spec = spec;
  return check;
}

void Agent::OnCheckExit(std::uint64_t request, net::ExitStatus status) {
  const auto found = checks_.find(request);
  if (found == checks_.end()) return;
  const std::unique_ptr<Check> check = std::move(found->second);
  checks_.erase(found);
  control::PreflightResultT result;
  Result<control::MessageT> message = ReadAnswer(check->result);
  if (check->timed_out) {
    result.error = "the job could not be checked within " +
                   std::to_string(options_.preflight_deadline.count() / 1000) + " s on " +
                   options_.name;
    result.error_id = static_cast<std::uint16_t>(ErrorId::kCheckTimeout);
  } else if (message.ok() && message->body.type == control::Body::PreflightResult) {
    result = std::move(*message->body.AsPreflightResult());
  } else {
    result.error = "the check on " + options_.name + " " + status.ToString();
    const std::string lines = LastLogLines(check->log, kMessageLines);
    if (!lines.empty()) result.error += ":\n" + lines;
  }
  for (const fs::path& path : {check->spec, check->result, check->log}) RemoveFile(path);
  AnswerPreflight(request, std::move(result));
}

void Agent::AnswerPreflight(std::uint64_t request, control::PreflightResultT result) {
  result.request = request;
  ToCoordinator(control::Make(std::move(result)));
}

// ---- the rest

void Agent::OnLogRead(const control::LogReadT& read) {
  control::LogChunkT chunk;
  chunk.request = read.request;
  chunk.job = read.job;
  chunk.worker = read.worker;
  Result<LogPiece> piece =
      ReadTaskLog(LogPath(JobId(read.job), WorkerId(read.worker)), read.offset, read.limit);
  if (piece.ok()) {
    chunk.offset = piece->offset;
    chunk.text = std::move(piece->text);
    chunk.end = piece->end;
  } else {
    chunk.error = piece.error().code == ErrorCode::kNotFound
                      ? "worker " + std::to_string(read.worker) + " has no log on " + options_.name
                      : piece.error().message;
  }
  ToCoordinator(control::Make(std::move(chunk)));
}

void Agent::Housekeep() {
  for (const auto& task : tasks_) {
    const Status trimmed = TrimTaskLog(task.second.log, options_.log_keep_bytes);
    if (!trimmed.ok()) spdlog::warn("{}", trimmed.error().message);
  }
}

}  // namespace ps::worker
