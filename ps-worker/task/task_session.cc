#include "ps-worker/task/task_session.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "common/check.h"
#include "common/error_id.h"
#include "common/net/loop.h"
#include "common/net/socket_pair_channel.h"
#include "common/net/zmq_socket.h"
#include "ps-worker/core/lease_tracker.h"
#include "ps-worker/core/retention_ring.h"
#include "ps-worker/task/data_client.h"
#include "ps-worker/task/ring_file.h"

namespace ps::worker {
namespace {

using Clock_ = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr std::uint32_t kLeasesQueued = 2;
constexpr std::int64_t kLeaseRequestMs = 2000;
constexpr std::int64_t kLeaseProgressMs = 300;
constexpr std::int64_t kProgressMs = 500;
constexpr std::int64_t kCheckpointReminderMs = 10'000;
constexpr std::int64_t kNotLiveWarningMs = 5000;
constexpr auto kTickPeriod = net::Milliseconds(100);
constexpr auto kReserveRetry = net::Milliseconds(2);
// How long NextWork waits before the task's clock leaves the staleness rule.
constexpr auto kIdleBeforeHold = milliseconds(200);
constexpr auto kWaitReminder = std::chrono::seconds(30);
constexpr auto kWaitForStart = std::chrono::minutes(30);
constexpr auto kWaitForWork = std::chrono::hours(24);
constexpr auto kWaitForPull = std::chrono::hours(1);
constexpr auto kWaitForRoom = std::chrono::hours(1);
constexpr auto kWaitForVerdicts = std::chrono::hours(1);
// How long a checkpoint's cut waits for the residual.
constexpr std::int64_t kFlushForCutMs = 20'000;
constexpr auto kFlushOnExit = std::chrono::seconds(2);
constexpr std::size_t kGapsKept = 2048;
constexpr std::size_t kRateSamples = 10;
constexpr std::int64_t kLongestPullMs = 30'000;  // how long the longest pull is reported

double Percentile(std::vector<std::uint32_t>& values, double part) {
  if (values.empty()) return 0;
  const auto at = static_cast<std::ptrdiff_t>(part * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[static_cast<std::size_t>(at)];
}

}  // namespace

std::span<std::byte> PushBuilder::space() {
  return std::span<std::byte>(begin_ + used_, capacity_ - used_);
}

void PushBuilder::Add(ShardId shard, std::size_t bytes) {
  PS_CHECK(bytes <= capacity_ - used_, shard, bytes, used_, capacity_);
  parts_.push_back(
      Part{shard, static_cast<std::uint32_t>(used_), static_cast<std::uint32_t>(bytes)});
  used_ += bytes;
}

class TaskSessionImpl final : public TaskSession {
 public:
  explicit TaskSessionImpl(const TaskOptions& options) : options_(options) {}

  ~TaskSessionImpl() override {
    loop_.Post([this] { FlushAndStop(); });
    if (thread_.joinable()) thread_.join();
  }

  Status Start() {
    PS_TRY(zmq_.Secure(options_.security));
    channel_ = PS_TRY(net::FrameChannel::Open(loop_, net::UniqueFd(options_.control_fd)));
    channel_->OnMessage([this](std::span<const std::byte> bytes) { OnMessage(bytes); });
    channel_->OnClosed(
        [this](const std::string& reason) { Fatal("the agent is gone: " + reason); });
    channel_->Start();
    timer_.Every(kTickPeriod, [this] { TickOnLoop(); });
    thread_ = std::thread([this] { loop_.Run(); });
    return Ok();
  }

  // ---- compute thread

  Result<TaskContext> Ready(const control::TaskReadyT& ready) override {
    loop_.Post([this, message = ready] { Tell(message); });
    std::unique_lock lock(mutex_);
    PS_TRY(Wait(lock, "the coordinator's start", kWaitForStart, nullptr,
                [this] { return shared_.context.has_value(); }));
    TaskContext context = std::move(*shared_.context);
    shared_.context.reset();
    lock.unlock();
    shards_ = context.shards;
    clock_ = first_clock_ = context.first_clock;
    bases_.assign(shards_, DataClient::Base());
    return context;
  }

  void SetInitialValues(std::function<void(ShardId, std::span<float>)> fill) override {
    loop_.Post([this, fill = std::move(fill)] { fill_ = fill; });
  }

  Result<Work> NextWork() override {
    std::unique_lock lock(mutex_);
    const auto some = [this] {
      return !shared_.leases.empty() || shared_.drain || shared_.evaluate.has_value() ||
             FlushDue() || shared_.cut_wanted || shared_.leave.has_value();
    };
    const auto begin = Clock_::now();
    if (!changed_.wait_for(lock, kIdleBeforeHold, [&] { return Ended() || some(); })) {
      const bool hold = !options_.bulk_synchronous || shared_.flushed;
      if (hold) loop_.Post([this] { SetIdleOnLoop(true); });
      const Status waited = Wait(lock, "work", kWaitForWork, nullptr, some);
      if (hold) loop_.Post([this] { SetIdleOnLoop(false); });
      if (!waited.ok() && !shared_.stop) return waited.error();
    }
    wait_data_us_ += Since(begin);
    if (shared_.fatal) return Error{ErrorCode::kClosed, *shared_.fatal};
    if (shared_.stop) return Work(StopWork{*shared_.stop});
    if (shared_.leave) return Work(LeaveWork{*shared_.leave});
    if (shared_.cut_wanted) return Work(CutWork{});
    if (!shared_.leases.empty()) {
      TrainLease work{std::move(shared_.leases.front())};
      shared_.leases.pop_front();
      shared_.flushed = false;
      loop_.Post([this] { AskForLeases(); });
      return Work(std::move(work));
    }
    if (FlushDue()) {
      shared_.flushed = true;
      return Work(FlushWork{});
    }
    if (shared_.drain) {
      shared_.drain = false;
      return Work(DrainWork{});
    }
    EvaluateWork work = std::move(*shared_.evaluate);
    shared_.evaluate.reset();
    return Work(std::move(work));
  }

  bool cut_wanted() const override {
    const std::lock_guard lock(mutex_);
    return shared_.cut_wanted;
  }

  bool leave_wanted() const override {
    const std::lock_guard lock(mutex_);
    return shared_.leave.has_value();
  }

  void Flushed(bool whole) override {
    {
      const std::lock_guard lock(mutex_);
      shared_.cut_wanted = false;
    }
    loop_.Post([this, whole] {
      if (waiting_round_ != 0)
        Cut(whole, whole ? "" : "some of it came back as too old again and again");
    });
  }

  std::optional<control::LeaseT> NextLease() const override {
    const std::lock_guard lock(mutex_);
    if (shared_.leases.empty()) return std::nullopt;
    return shared_.leases.front();
  }

  void RequestPull(const PullRequest& request) override {
    DataClient::Pull pull;
    pull.needed = request.needed;
    pull.fp32 = request.fp32;
    pull.snapshot = request.snapshot;
    pull.shards = request.shards;
    pull.bases = bases_;
    pull.rows = request.rows;
    {
      const std::lock_guard lock(mutex_);
      shared_.pulled.reset();
    }
    const std::uint64_t number = ++pull_number_;
    loop_.Post([this, number, pull = std::move(pull)] {
      pull_number_on_loop_ = number;
      pull_since_ms_ = loop_.NowMs();
      pull_waits_ = true;
      if (client_ != nullptr) client_->StartPull(pull);
    });
  }

  Result<PullResult> WaitPull() override {
    if (pull_number_ == 0) return Error{ErrorCode::kInternal, "WaitPull without RequestPull"};
    std::unique_lock lock(mutex_);
    PS_TRY(Wait(lock, "the answer to a pull", kWaitForPull, &wait_pull_us_, [this] {
      return shared_.pulled.has_value() && shared_.pulled_number == pull_number_;
    }));
    PullResult result = std::move(*shared_.pulled);
    shared_.pulled.reset();
    lock.unlock();
    for (const PulledShard& shard : result.shards) {
      bases_[shard.shard.value()] = DataClient::Base{shard.version, shard.lineage};
    }
    return result;
  }

  std::vector<PushBuilder::Base> Bases() const override {
    std::vector<PushBuilder::Base> bases;
    for (const DataClient::Base& base : bases_) bases.push_back({base.version, base.lineage});
    return bases;
  }

  bool PullIsThere() override {
    const std::lock_guard lock(mutex_);
    return shared_.pulled.has_value() && shared_.pulled_number == pull_number_;
  }

  Result<PushBuilder> BeginPush(std::size_t max_bytes) override {
    loop_.Post([this, max_bytes] {
      reserve_bytes_ = max_bytes;
      reserve_wanted_ = true;
      TryReserve();
    });
    std::unique_lock lock(mutex_);
    PS_TRY(Wait(lock, "room for a push", kWaitForRoom, &wait_push_us_,
                [this] { return shared_.reserved.has_value(); }));
    const std::span<std::byte> memory = *shared_.reserved;
    shared_.reserved.reset();
    return PushBuilder(memory, Bases());
  }

  Result<Clock> CommitPush(PushBuilder push, std::uint32_t samples, std::uint64_t lease_id,
                           std::uint64_t lease_done) override {
    {
      const std::lock_guard lock(mutex_);
      if (shared_.fatal) return Error{ErrorCode::kClosed, *shared_.fatal};
      shared_.drained_at.reset();
    }
    std::vector<RingPart> parts;
    parts.reserve(push.parts_.size());
    for (const PushBuilder::Part& part : push.parts_) {
      PS_CHECK(part.shard.value() < shards_, part.shard, shards_);
      RingPart stored;
      stored.shard = part.shard.value();
      stored.offset = part.offset;
      stored.bytes = part.bytes;
      stored.base_version = push.base(part.shard).version;
      stored.lineage = push.base(part.shard).lineage;
      parts.push_back(stored);
    }
    std::sort(parts.begin(), parts.end(),
              [](const RingPart& a, const RingPart& b) { return a.shard < b.shard; });
    clock_ = Clock(clock_.value() + 1);
    RingEntryInfo info;
    info.clock = clock_;
    info.samples = samples;
    info.lease_id = lease_id;
    info.lease_done = lease_done;
    loop_.Post([this, info, parts = std::move(parts), bytes = push.used_, scale = loss_scale_] {
      if (scale) {
        progress_.loss_scale = scale->scale;
        progress_.growth_tracker = scale->growth_tracker;
      }
      CommitOnLoop(info, parts, bytes);
    });
    return clock_;
  }

  void SetLossScale(const LossScale& state) override { loss_scale_ = state; }

  void SetPrecision(const std::string& name) override {
    loop_.Post([this, name] { progress_.precision = name; });
  }

  Clock clock() const override { return clock_; }

  std::uint32_t pushes_without_verdict() const override {
    const std::lock_guard lock(mutex_);
    const ps::Clock acked = std::max(shared_.acked, first_clock_);
    return static_cast<std::uint32_t>(clock_.value() - std::min(clock_, acked).value());
  }

  std::vector<ReturnedSegment> TakeReturned() override {
    const std::lock_guard lock(mutex_);
    return std::exchange(shared_.returned, {});
  }

  Status WaitVerdicts() override {
    // What was committed last is on its way to the loop: the state it publishes after that counts.
    const std::uint64_t ticket = ++ticket_;
    loop_.Post([this, ticket] {
      ticket_on_loop_ = ticket;
      Publish();
    });
    std::unique_lock lock(mutex_);
    return Wait(lock, "the verdicts on all pushes", kWaitForVerdicts, &wait_push_us_,
                [this, ticket] { return shared_.ticket >= ticket && shared_.all_acked; });
  }

  Status Hold(bool on) override {
    loop_.Post([this, on] {
      hold_asked_ = on;
      UpdateHold();
    });
    const std::lock_guard lock(mutex_);
    if (shared_.fatal) return Error{ErrorCode::kClosed, *shared_.fatal};
    return Ok();
  }

  void Report(const StepReport& report) override {
    loop_.Post([this, report] {
      progress_.push_entries += report.entries;
      if (report.flush) return;
      ++progress_.steps;
      progress_.samples += report.samples;
      if (report.skipped && report.nonfinite > 0) {
        ++progress_.skipped;
        progress_.skipped_position = report.position;
      }
      if (!report.skipped || report.dropped == 0) {
        loss_sum_ += report.loss;
        ++loss_count_;
      }
      if (report.residual_norm >= 0) progress_.residual_norm = report.residual_norm;
      progress_.compute_ms += report.compute_ms;
      progress_.overflows += report.overflows;
      progress_.anomalies += report.redone + report.dropped;
      progress_.redone += report.redone;
      progress_.dropped += report.dropped;
      if (report.redone > 0) progress_.last_redone = report.last_redone;
      if (report.dropped > 0) progress_.last_dropped = report.last_dropped;
      // At once, so that each is an event that names its records.
      if (report.redone + report.dropped > 0) SendProgress();
    });
  }

  void ReportMetric(double metric, std::uint64_t samples_trained) override {
    loop_.Post([this, metric, samples_trained] {
      progress_.metric = metric;
      progress_.metric_samples = samples_trained;
      SendProgress();
    });
  }

  void Drained() override {
    loop_.Post([this, clock = clock_] {
      SendLeaseProgress();
      SendProgress();
      control::DrainedT drained;
      drained.clock = clock.value();
      Tell(drained);
    });
    const std::lock_guard lock(mutex_);
    shared_.drained_at = clock_;
    shared_.draining = false;
  }

  void Evaluated(const control::EvaluatedT& result) override {
    loop_.Post([this, result] { Tell(result); });
    const std::lock_guard lock(mutex_);
    if (shared_.evaluating == result.round) shared_.evaluating = 0;
  }

  std::string stop_reason() const override {
    const std::lock_guard lock(mutex_);
    return shared_.stop.value_or(std::string());
  }

  void Failed(bool permanent, const std::string& message) override {
    loop_.Post([this, permanent, message] {
      control::TaskFailedT failed;
      failed.permanent = permanent;
      failed.message = message;
      Tell(failed);
    });
  }

 private:
  static std::uint64_t Since(Clock_::time_point begin) {
    return static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::microseconds>(Clock_::now() - begin).count());
  }

  bool FlushDue() const {
    return options_.bulk_synchronous && shared_.no_more && shared_.leases.empty() &&
           !shared_.flushed;
  }
  bool Ended() const { return shared_.fatal.has_value() || shared_.stop.has_value(); }

  // Waits until `done` holds; kClosed at the end of the task, kTimeout after `limit`.
  template <typename Done>
  Status Wait(std::unique_lock<std::mutex>& lock, const char* what, Clock_::duration limit,
              std::atomic<std::uint64_t>* waited_us, Done done) {
    const auto begin = Clock_::now();
    Status status = Ok();
    while (true) {
      if (changed_.wait_for(lock, std::min<Clock_::duration>(limit, kWaitReminder),
                            [&] { return Ended() || done(); })) {
        if (shared_.fatal) {
          status = Error{ErrorCode::kClosed, *shared_.fatal};
        } else if (shared_.stop && !done()) {
          status = Error{ErrorCode::kClosed, *shared_.stop};
        }
        break;
      }
      const auto seconds =
          std::chrono::duration_cast<std::chrono::seconds>(Clock_::now() - begin).count();
      if (Clock_::now() - begin >= limit) {
        status = Error{ErrorCode::kTimeout,
                       std::string("waited ") + std::to_string(seconds) + " s for " + what};
        break;
      }
      spdlog::info("still waiting for {}, {} s by now", what, seconds);
    }
    if (waited_us != nullptr) *waited_us += Since(begin);
    return status;
  }

  // ---- loop

  void Fatal(const std::string& reason) {
    {
      const std::lock_guard lock(mutex_);
      if (shared_.fatal) return;
      shared_.fatal = reason;
    }
    spdlog::error("the task ends: {}", reason);
    changed_.notify_all();
  }

  template <typename BodyT>
  void Tell(BodyT body) {
    if (channel_->closed()) return;
    const Status sent = channel_->Send(control::Encode(control::Make(std::move(body))));
    if (!sent.ok()) spdlog::warn("a message to the agent is lost: {}", sent.error().message);
  }

  void OnMessage(std::span<const std::byte> bytes) {
    auto decoded = control::Decode(bytes);
    if (!decoded.ok()) {
      spdlog::warn("the agent sent: {}", decoded.error().message);
      return;
    }
    const control::MessageT& message = *decoded;
    if (message.leader_epoch != 0) {
      if (message.leader_epoch < leader_epoch_) return;
      leader_epoch_ = message.leader_epoch;
    }
    switch (message.body.type) {
      case control::Body::TaskStart: OnTaskStart(*message.body.AsTaskStart()); break;
      case control::Body::JobUpdate: OnJobUpdate(*message.body.AsJobUpdate()); break;
      case control::Body::LeaseGrant: OnLeaseGrant(*message.body.AsLeaseGrant()); break;
      case control::Body::RoundBegin: OnRoundBegin(*message.body.AsRoundBegin()); break;
      case control::Body::RoundAbort: OnRoundAbort(message.body.AsRoundAbort()->round); break;
      case control::Body::RoundCommitted: OnCommitted(*message.body.AsRoundCommitted()); break;
      case control::Body::Drain: OnDrain(); break;
      case control::Body::Evaluate: OnEvaluate(*message.body.AsEvaluate()); break;
      case control::Body::StopTask: OnStopTask(message.body.AsStopTask()->reason); break;
      case control::Body::Ping: {
        control::PongT pong;
        pong.sent_ms = message.body.AsPing()->sent_ms;
        Tell(pong);
        break;
      }
      default: spdlog::debug("no use for a {} here", control::BodyName(message)); break;
    }
  }

  // With what it holds back, if it can push that alone: with staleness 0 others would have to wait
  // for it. The agent sees to it that it does not take too long.
  void OnStopTask(const std::string& text) {
    const std::string reason = text.empty() ? "the job wants this task to stop" : text;
    const std::lock_guard lock(mutex_);
    const bool holds = client_ != nullptr && !options_.bulk_synchronous && !shared_.drained_at;
    (holds ? shared_.leave : shared_.stop) = reason;
    changed_.notify_all();
  }

  void OnTaskStart(const control::TaskStartT& start) {
    if (client_ != nullptr) {
      // Sent again by a new leader.
      if (start.start != nullptr && start.start->map != nullptr) SetMap(*start.start->map);
      return;
    }
    if (const Status status = Begin(start); !status.ok()) {
      control::TaskFailedT failed;
      failed.permanent = status.error().code == ErrorCode::kInvalid;
      failed.message = status.error().message;
      Tell(failed);
      Fatal(status.error().message);
    }
  }

  Status Begin(const control::TaskStartT& start) {
    if (start.start == nullptr || start.start->layout == nullptr || start.start->map == nullptr) {
      return Error{ErrorCode::kInternal, "a start without layout or map"};
    }
    const control::JobStartT& job = *start.start;
    const auto shards = static_cast<std::uint32_t>(job.map->shards.size());
    layout_ = PS_TRY(LayoutView::Create(*job.layout, shards));
    RingIdentity identity;
    identity.job = JobId(job.job);
    identity.worker = WorkerId(start.worker);
    identity.incarnation = Incarnation(start.incarnation);
    identity.generation = job.generation;
    identity.shards = shards;
    identity.first_clock = ps::Clock(start.first_clock);
    ring_file_ = PS_TRY(RingFile::Create(options_.ring_path, options_.ring_bytes));
    ring_ = std::make_unique<RetentionRing>(
        PS_TRY(RetentionRing::Create(ring_file_->region(), identity, ring_file_)));
    DataClientOptions options;
    options.token = job.token;
    options.window = std::clamp<std::uint32_t>(options_.window, 1, 32);
    options.resend_timeout_ms = options_.resend_timeout.count();
    client_ = std::make_unique<DataClient>(loop_, zmq_, *ring_, &*layout_, options, Callbacks());
    PS_TRY(client_->SetMap(*job.map));
    UpdateHold();
    live_version_ = job.live != nullptr ? job.live->version : 0;

    TaskContext context;
    context.start = control::Clone(start);
    context.worker = identity.worker;
    context.incarnation = identity.incarnation;
    context.first_clock = identity.first_clock;
    context.shards = shards;
    {
      const std::lock_guard lock(mutex_);
      shared_.context = std::move(context);
    }
    changed_.notify_all();
    AskForLeases();
    return Ok();
  }

  DataClient::Callbacks Callbacks() {
    DataClient::Callbacks callbacks;
    callbacks.initial_values = [this](ShardId shard, std::span<float> values) {
      if (!fill_) return false;
      fill_(shard, values);
      return true;
    };
    callbacks.returned = [this](const RingEntryInfo& push, ShardId shard,
                                std::span<const std::byte> payload) {
      ++progress_.too_old;
      ReturnedSegment segment{push.clock, shard, {payload.begin(), payload.end()}, push.samples};
      const std::lock_guard lock(mutex_);
      shared_.returned.push_back(std::move(segment));
    };
    callbacks.non_finite = [this](const RingEntryInfo& push, ShardId shard) {
      OnNonFinite(push, shard);
    };
    callbacks.round_cut = [this](std::uint64_t round, ps::Clock clock) { OnCut(round, clock); };
    callbacks.round_ended = [](std::uint64_t round, bool frozen) {
      spdlog::debug("round {}: {}", round, frozen ? "frozen" : "over without us");
    };
    callbacks.advanced = [this] {
      TryReserve();
      Publish();
    };
    callbacks.pulled = [this](PullResult result) {
      NotePull();
      pull_waits_ = false;
      {
        const std::lock_guard lock(mutex_);
        shared_.pulled = std::move(result);
        shared_.pulled_number = pull_number_on_loop_;
      }
      changed_.notify_all();
    };
    callbacks.broken = [this](const Error& error) {
      control::TaskFailedT failed;
      failed.message = error.message;
      Tell(failed);
      Fatal(error.message);
    };
    return callbacks;
  }

  void SetMap(const control::MapT& map) {
    if (const Status status = client_->SetMap(map); !status.ok()) {
      spdlog::error("a map is left out: {}", ErrorLine(status.error()));
    }
  }

  void OnJobUpdate(const control::JobUpdateT& update) {
    if (client_ == nullptr) return;
    if (update.map != nullptr) SetMap(*update.map);
    if (update.live != nullptr && update.live->version > live_version_) {
      live_version_ = update.live->version;
      const std::uint32_t me = ring_->identity().incarnation.value();
      const bool live = std::any_of(update.live->workers.begin(), update.live->workers.end(),
                                    [me](const auto& worker) {
                                      return worker != nullptr && worker->incarnation == me &&
                                             worker->state == control::WorkerState::Live;
                                    });
      // The agent decides what becomes of us; until then nothing of ours is accepted anyway.
      if (!live) spdlog::warn("incarnation {} is not in live set {}", me, live_version_);
    }
  }

  // The values were finite when they left, so they were changed on their way or in memory.
  void OnNonFinite(const RingEntryInfo& push, ShardId shard) {
    ++progress_.refused;
    progress_.last_refused = "shard " + std::to_string(shard.value()) +
                             " refused its part of the push of clock " +
                             std::to_string(push.clock.value());
    for (const control::LeaseT& lease : leases_.Positions()) {
      if (lease.id != push.lease_id) continue;
      const std::uint64_t end = lease.begin + push.lease_done;
      progress_.last_refused += ", data positions " + std::to_string(end - push.samples) + " to " +
                                std::to_string(end - 1);
    }
    if (options_.stop_on_nonfinite) {
      control::TaskFailedT failed;
      failed.permanent = true;
      failed.message = progress_.last_refused +
                       ": it is not finite, and the task had sent finite "
                       "values; look for bad memory on both nodes";
      const std::string message = failed.message;
      Tell(std::move(failed));
      Fatal(message);
    }
    SendProgress();
  }

  // ---- leases

  void AskForLeases() {
    if (client_ == nullptr) return;
    std::size_t have = 0;
    {
      const std::lock_guard lock(mutex_);
      have = shared_.leases.size();
    }
    const std::int64_t now = loop_.NowMs();
    if (have >= kLeasesQueued || now < next_lease_request_ms_) return;
    next_lease_request_ms_ = now + kLeaseRequestMs;
    control::LeaseRequestT request;
    request.have = static_cast<std::uint32_t>(have);
    request.highest_lease = leases_.highest();
    Tell(request);
  }

  void OnLeaseGrant(const control::LeaseGrantT& grant) {
    std::vector<control::LeaseT> leases;
    for (const auto& lease : grant.leases) {
      if (lease != nullptr) leases.push_back(*lease);
    }
    {
      // At once: whoever saw the one without the other could take this for the end of the data.
      const std::lock_guard lock(mutex_);
      for (control::LeaseT& lease : leases_.Add(leases)) shared_.leases.push_back(std::move(lease));
      shared_.no_more = grant.no_more;
    }
    changed_.notify_all();
    // Answered: the next lease taken may ask at once, unless there was nothing to give.
    if (!grant.no_more) next_lease_request_ms_ = 0;
    AskForLeases();
  }

  void SendLeaseProgress() {
    // Only what every shard has answered counts: should this node be lost with the retention ring,
    // the records of the pushes after that are trained again.
    control::LeaseProgressT progress;
    RingEntryView open;
    const bool some_open = client_ != nullptr && ring_ != nullptr &&
                           ring_->Find(Clock(client_->stream().AckedByAll().value() + 1), open);
    for (control::LeaseT& lease : leases_.Positions()) {
      if (some_open && lease.id >= open.info.lease_id) {
        const std::uint64_t before =
            open.info.lease_done - std::min<std::uint64_t>(open.info.samples, open.info.lease_done);
        lease.done = lease.id == open.info.lease_id ? std::min(lease.done, before) : 0;
      }
      progress.leases.push_back(std::make_unique<control::LeaseT>(lease));
    }
    next_lease_progress_ms_ = loop_.NowMs() + kLeaseProgressMs;
    if (!progress.leases.empty()) Tell(std::move(progress));
  }

  // ---- pushes

  void TryReserve() {
    if (!reserve_wanted_ || client_ == nullptr) return;
    const auto reserved =
        client_->has_room() ? Reserve() : Result<std::optional<std::span<std::byte>>>(std::nullopt);
    if (!reserved.ok()) {
      reserve_wanted_ = false;
      control::TaskFailedT failed;
      failed.permanent = reserved.error().code == ErrorCode::kInvalid;
      failed.message = reserved.error().message;
      Tell(failed);
      Fatal(reserved.error().message);
      return;
    }
    if (!*reserved) {
      reserve_timer_.After(kReserveRetry, [this] { TryReserve(); });
      return;
    }
    reserve_wanted_ = false;
    {
      const std::lock_guard lock(mutex_);
      shared_.reserved = **reserved;
    }
    changed_.notify_all();
  }

  Result<std::optional<std::span<std::byte>>> Reserve() {
    if (reserve_bytes_ > wire::kMaxPayloadBytes) {
      return Error{ErrorCode::kInvalid, "a push of up to " + std::to_string(reserve_bytes_) +
                                            " bytes, at most " +
                                            std::to_string(wire::kMaxPayloadBytes)};
    }
    // A builder that was never committed leaves its place to the next.
    ring_->Cancel();
    RetentionRing::Reservation reservation;
    switch (ring_->Reserve(reserve_bytes_, ring_->identity().shards, reservation)) {
      case RetentionRing::ReserveStatus::kReserved: break;
      case RetentionRing::ReserveStatus::kFull:
        // Only a checkpoint makes room.
        if (waiting_round_ != 0) Cut(false, "the retention ring is full");
        WantCheckpoint("the retention ring is full");
        return std::optional<std::span<std::byte>>();
      case RetentionRing::ReserveStatus::kTooLarge:
        return Error{ErrorId::kRingTooSmall, "a push of up to " + std::to_string(reserve_bytes_) +
                                                 " bytes does not fit into the retention ring of " +
                                                 std::to_string(ring_->capacity_bytes()) +
                                                 " bytes; raise resources.retention_mebibytes"};
    }
    if (Status backed = ring_file_->Back(reservation.region_begin, reservation.region_end);
        !backed.ok()) {
      ring_->Cancel();
      return backed.error();
    }
    return std::optional<std::span<std::byte>>(reservation.payload);
  }

  void CommitOnLoop(const RingEntryInfo& info, const std::vector<RingPart>& parts,
                    std::size_t bytes) {
    if (client_ == nullptr) return;
    ring_->Commit(info, bytes, parts);
    samples_ += info.samples;
    const bool finished = leases_.Trained(info.lease_id, info.lease_done);
    client_->Committed();
    if (finished) SendLeaseProgress();
    if (ring_->used_bytes() > ring_->capacity_bytes() / 2) {
      WantCheckpoint("the retention ring is half full");
    }
  }

  void WantCheckpoint(const char* reason) {
    const std::int64_t now = loop_.NowMs();
    if (now < next_checkpoint_wish_ms_) return;
    next_checkpoint_wish_ms_ = now + kCheckpointReminderMs;
    control::ReadyForCheckpointT ready;
    ready.reason = reason;
    Tell(ready);
  }

  // What the compute thread waits for.
  void Publish() {
    if (client_ == nullptr) return;
    const bool all_acked = client_->all_acked();
    const ps::Clock acked = client_->stream().AckedByAll();
    {
      const std::lock_guard lock(mutex_);
      shared_.acked = acked;
      shared_.ticket = ticket_on_loop_;
      shared_.all_acked = all_acked;
    }
    if (all_acked) changed_.notify_all();
  }

  // ---- rounds

  void OnRoundBegin(const control::RoundBeginT& begin) {
    if (client_ == nullptr) return;
    const std::uint64_t round = begin.round;
    if (round <= last_round_) return;
    last_round_ = round;
    // In a round of BSP nobody may push once more than the others.
    const bool flush = (options_.flush_residuals || begin.flush) && !options_.bulk_synchronous;
    if (!flush) {
      flushed_ = false;
      client_->BeginRound(round);
      return;
    }
    {
      const std::lock_guard lock(mutex_);
      // Drained: the residual is pushed, or is being pushed.
      shared_.cut_wanted = !shared_.draining && !shared_.drained_at;
      flushed_ = !shared_.cut_wanted;
      waiting_round_ = shared_.cut_wanted ? round : 0;
    }
    if (waiting_round_ == 0) {
      client_->BeginRound(round);
      return;
    }
    cut_deadline_ms_ = loop_.NowMs() + kFlushForCutMs;
    changed_.notify_all();
  }

  void OnRoundAbort(std::uint64_t round) {
    if (client_ == nullptr) return;
    last_round_ = std::max(last_round_, round);
    if (waiting_round_ != 0 && waiting_round_ <= round) ForgetWaitingRound();
    client_->AbortRound(round);
  }

  std::uint64_t ForgetWaitingRound() {
    const std::lock_guard lock(mutex_);
    shared_.cut_wanted = false;
    return std::exchange(waiting_round_, 0);
  }

  // The cut that waited for the residual, here: after the last push that was committed.
  void Cut(bool flushed, const char* why_not) {
    flushed_ = flushed;
    const std::uint64_t round = ForgetWaitingRound();
    if (!flushed) {
      spdlog::warn("checkpoint {} is without the residual of this worker: {}", round, why_not);
    }
    client_->BeginRound(round);
  }

  void OnCut(std::uint64_t round, ps::Clock clock) {
    // Every push up to `clock` went through CommitOnLoop and none after it: the tracker stands at
    // exactly this cut.
    PS_CHECK(clock == ring_->last_clock(), clock, ring_->last_clock());
    leases_.Cut(round);
    control::WorkerCutT cut;
    cut.round = round;
    cut.clock = clock.value();
    cut.highest_lease = leases_.highest();
    cut.samples = samples_;
    cut.flushed = flushed_;
    cut.loss_scale = progress_.loss_scale;
    cut.growth_tracker = progress_.growth_tracker;
    for (const control::LeaseT& lease : leases_.Positions()) {
      cut.leases.push_back(std::make_unique<control::LeaseT>(lease));
    }
    Tell(std::move(cut));
  }

  void OnCommitted(const control::RoundCommittedT& committed) {
    if (client_ == nullptr) return;
    const RingIdentity& me = ring_->identity();
    for (const auto& cut : committed.cuts) {
      if (cut == nullptr || cut->worker != me.worker.value() ||
          cut->incarnation != me.incarnation.value()) {
        continue;
      }
      // Frozen by every lane, whatever became of their answers.
      client_->AbortRound(committed.round);
      client_->Release(ps::Clock(cut->clock));
      leases_.Committed(committed.round);
      next_checkpoint_wish_ms_ = 0;
      TryReserve();
    }
  }

  // ---- the end of a job

  void OnDrain() {
    std::unique_lock lock(mutex_);
    if (shared_.drained_at) {
      // Drained already, and nothing was pushed since: the answer was lost.
      const ps::Clock clock = *shared_.drained_at;
      lock.unlock();
      control::DrainedT drained;
      drained.clock = clock.value();
      Tell(drained);
      return;
    }
    if (shared_.draining) return;
    shared_.draining = true;
    shared_.drain = true;
    changed_.notify_all();
  }

  void OnEvaluate(const control::EvaluateT& evaluate) {
    const std::lock_guard lock(mutex_);
    if (shared_.evaluating == evaluate.round && evaluate.round != 0) return;
    shared_.evaluating = evaluate.round;
    shared_.evaluate = EvaluateWork{evaluate.round, evaluate.digests};
    changed_.notify_all();
  }

  // ---- staleness

  void SetIdleOnLoop(bool idle) {
    idle_ = idle;
    UpdateHold();
  }

  void UpdateHold() {
    if (client_ != nullptr) client_->SetHold(hold_asked_ || idle_);
  }

  // ---- time

  void TickOnLoop() {
    if (client_ == nullptr) return;
    const std::int64_t now = loop_.NowMs();
    AskForLeases();
    if (waiting_round_ != 0 && now >= cut_deadline_ms_) Cut(false, "it was not pushed within 20 s");
    if (now >= next_lease_progress_ms_) SendLeaseProgress();
    if (now >= next_progress_ms_) SendProgress();
    Publish();
    const auto not_live = client_->stream().not_live_since();
    if (not_live && now - *not_live > kNotLiveWarningMs && now >= next_not_live_warning_ms_) {
      next_not_live_warning_ms_ = now + kNotLiveWarningMs;
      spdlog::warn("a lane has refused this incarnation for {} ms", now - *not_live);
    }
  }

  void SendProgress() {
    if (client_ == nullptr) return;
    const std::int64_t now = loop_.NowMs();
    next_progress_ms_ = now + kProgressMs;
    progress_.clock = ring_->last_clock().value();
    if (loss_count_ > 0) progress_.loss = loss_sum_ / static_cast<double>(loss_count_);
    loss_sum_ = 0;
    loss_count_ = 0;
    rate_.emplace_back(now, progress_.samples);
    if (rate_.size() > kRateSamples) rate_.pop_front();
    const std::int64_t span_ms = rate_.back().first - rate_.front().first;
    if (span_ms > 0) {
      progress_.samples_per_second =
          static_cast<double>(rate_.back().second - rate_.front().second) * 1000.0 /
          static_cast<double>(span_ms);
    }
    for (const std::uint32_t gap : client_->TakeVersionGaps()) gaps_.push_back(gap);
    if (gaps_.size() > kGapsKept) {
      gaps_.erase(gaps_.begin(), gaps_.end() - static_cast<std::ptrdiff_t>(kGapsKept));
    }
    std::vector<std::uint32_t> sorted = gaps_;
    progress_.staleness_p50 = Percentile(sorted, 0.5);
    progress_.staleness_p99 = Percentile(sorted, 0.99);
    const DataClientCounters& counters = client_->counters();
    progress_.pushes = counters.pushes;
    progress_.push_bytes = counters.push_bytes;
    progress_.pulls = counters.pulls;
    progress_.pull_bytes = counters.pull_bytes;
    progress_.retained_bytes = ring_->used_bytes();
    progress_.retained_limit = ring_->capacity_bytes();
    progress_.wait_data_ms = wait_data_us_ / 1000;
    progress_.wait_pull_ms = wait_pull_us_ / 1000;
    progress_.wait_push_ms = wait_push_us_ / 1000;
    if (pull_waits_) NotePull();
    longest_pulls_.emplace_back(now, std::exchange(longest_pull_ms_, 0));
    while (longest_pulls_.front().first < now - kLongestPullMs) longest_pulls_.pop_front();
    progress_.longest_pull_ms = 0;
    for (const auto& [at, ms] : longest_pulls_) {
      progress_.longest_pull_ms = std::max(progress_.longest_pull_ms, ms);
    }
    Tell(progress_);
  }

  // How long the newest pull has taken so far.
  void NotePull() {
    const auto ms = static_cast<std::uint64_t>(loop_.NowMs() - pull_since_ms_);
    longest_pull_ms_ = std::max(longest_pull_ms_, ms);
  }

  void FlushAndStop() {
    const auto end = loop_.NowMs() + std::chrono::milliseconds(kFlushOnExit).count();
    timer_.Every(net::Milliseconds(2), [this, end] {
      if (channel_->closed() || channel_->queued_bytes() == 0 || loop_.NowMs() >= end) {
        loop_.Stop();
      }
    });
  }

  // Constant after construction.
  const TaskOptions options_;

  // Compute thread only.
  std::uint32_t shards_ = 0;
  ps::Clock first_clock_;
  ps::Clock clock_;
  std::vector<DataClient::Base> bases_;  // of the values that WaitPull returned
  std::uint64_t pull_number_ = 0;
  std::uint64_t ticket_ = 0;
  std::optional<LossScale> loss_scale_;

  // Written by the compute thread, read by the loop for its reports.
  std::atomic<std::uint64_t> wait_data_us_{0};
  std::atomic<std::uint64_t> wait_pull_us_{0};
  std::atomic<std::uint64_t> wait_push_us_{0};

  // Guarded by mutex_.
  struct Shared {
    std::optional<std::string> fatal;
    std::optional<std::string> stop;
    std::optional<std::string> leave;
    std::optional<TaskContext> context;
    std::deque<control::LeaseT> leases;
    bool no_more = false;  // the last grant said that nothing is left for this task
    bool flushed = false;  // FlushWork was given since the last lease
    bool drain = false;
    bool draining = false;                // asked for and not yet answered
    std::optional<ps::Clock> drained_at;  // nothing was pushed since Drained()
    bool cut_wanted = false;              // a checkpoint waits for Flushed()
    std::optional<EvaluateWork> evaluate;
    std::uint64_t evaluating = 0;
    std::optional<PullResult> pulled;
    std::uint64_t pulled_number = 0;
    std::optional<std::span<std::byte>> reserved;
    std::vector<ReturnedSegment> returned;  // bounded by the ring
    std::uint64_t ticket = 0;
    bool all_acked = false;
    ps::Clock acked;
  };
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Shared shared_;

  // Loop only, in the order in which they need each other.
  net::Loop loop_;
  net::Context zmq_;
  std::function<void(ShardId, std::span<float>)> fill_;
  std::optional<LayoutView> layout_;
  std::shared_ptr<RingFile> ring_file_;
  std::unique_ptr<RetentionRing> ring_;
  std::unique_ptr<DataClient> client_;
  std::unique_ptr<net::FrameChannel> channel_;
  net::Timer timer_{loop_};
  net::Timer reserve_timer_{loop_};
  LeaseTracker leases_;
  std::uint64_t leader_epoch_ = 0;
  std::uint64_t live_version_ = 0;
  std::uint64_t pull_number_on_loop_ = 0;
  std::uint64_t ticket_on_loop_ = 0;
  bool reserve_wanted_ = false;
  std::size_t reserve_bytes_ = 0;
  std::uint64_t last_round_ = 0;     // that began or was aborted
  std::uint64_t waiting_round_ = 0;  // its cut waits for the residual; 0: none
  std::int64_t cut_deadline_ms_ = 0;
  bool flushed_ = false;  // before the newest cut
  bool hold_asked_ = false;
  bool idle_ = false;
  std::uint64_t samples_ = 0;
  control::ProgressT progress_;
  double loss_sum_ = 0;
  std::uint64_t loss_count_ = 0;
  std::deque<std::pair<std::int64_t, std::uint64_t>> rate_;
  std::int64_t pull_since_ms_ = 0;
  bool pull_waits_ = false;
  std::uint64_t longest_pull_ms_ = 0;                                 // since the last report
  std::deque<std::pair<std::int64_t, std::uint64_t>> longest_pulls_;  // of each report
  std::vector<std::uint32_t> gaps_;
  std::int64_t next_lease_request_ms_ = 0;
  std::int64_t next_lease_progress_ms_ = 0;
  std::int64_t next_progress_ms_ = 0;
  std::int64_t next_checkpoint_wish_ms_ = 0;
  std::int64_t next_not_live_warning_ms_ = 0;

  std::thread thread_;
};

Result<std::unique_ptr<TaskSession>> TaskSession::Open(const TaskOptions& options) {
  auto session = std::make_unique<TaskSessionImpl>(options);
  PS_TRY(session->Start());
  return std::unique_ptr<TaskSession>(std::move(session));
}

}  // namespace ps::worker
