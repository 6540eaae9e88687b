#include "ps-worker/engine/trainer.h"

#include <spdlog/spdlog.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "common/codec/block_codec.h"
#include "common/codec/increment.h"
#include "common/codec/row_codec.h"
#include "common/error_id.h"

namespace ps::worker {
namespace {

// How often a task sends its own buffers (batch norm), and measures its residual.
constexpr std::uint64_t kBufferSteps = 10;
constexpr std::uint64_t kResidualSteps = 50;
// A wait for work after which weights that were asked for before it are asked for again.
constexpr auto kLongWait = std::chrono::milliseconds(100);
// Records of a push are at most so many times those that the job file says.
constexpr std::uint64_t kSharesMost = 16;
// Flushes at the end that may come back as too old before the task gives up.
constexpr int kFlushesMax = 50;
// The values of a step may lack the worker's own last two pushes: that of the step before is not
// written yet when they are waited for, and the one before that may be on its way.
constexpr std::int64_t kOverlapStaleness = 2;
// Ranges of records that an event names; a shuffled batch has as many as records.
constexpr std::size_t kRangesNamed = 12;

std::string HexDigest(XXH3_state_t* state) {
  constexpr char kDigits[] = "0123456789abcdef";
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
  std::string text;
  for (const unsigned char byte : canonical.digest) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

struct FreeState {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};

}  // namespace

Trainer::Trainer(const JobSpec& spec, TaskSession& session, Workload& workload,
                 const Dataset& train, const Dataset* test, std::uint64_t files_fingerprint)
    : spec_(spec),
      session_(session),
      workload_(workload),
      train_(train),
      test_(test),
      files_fingerprint_(files_fingerprint),
      overlaps_(workload.computes_apart() && spec.embedding_tables.empty() &&
                spec.training.local_steps == 1 && !spec.training.loss_calibration.enabled &&
                (spec.training.staleness < 0 || spec.training.staleness >= kOverlapStaleness)),
      push_records_(static_cast<std::uint32_t>(spec.training.push_records())),
      learning_rate_(spec.optimizer.learning_rate, spec.training.epochs, train.records()),
      order_(train.records(), static_cast<std::uint64_t>(spec.training.seed), spec.data.shuffle) {}

Result<std::string> Trainer::Run() {
  auto result = RunLoop();
  // The job may end a task in the middle of a step.
  if (!result.ok() && result.error().code == ErrorCode::kClosed) {
    if (auto reason = session_.stop_reason(); !reason.empty()) return reason;
  }
  // What is wrong with model or data is wrong everywhere: no other node need try. With kClosed the
  // session knows more than we do.
  if (!result.ok() && result.error().code != ErrorCode::kClosed) {
    session_.Failed(/*permanent=*/result.error().code == ErrorCode::kInvalid,
                    ErrorLine(result.error()));
  }
  return result;
}

Result<std::string> Trainer::RunLoop() {
  PS_TRY(Start());
  while (true) {
    const auto asked = std::chrono::steady_clock::now();
    const Work work = PS_TRY(session_.NextWork());
    // The others have gone on meanwhile: the weights of an old answer are too old.
    if (std::chrono::steady_clock::now() - asked > kLongWait) pull_pending_ = pull_applied_ = false;
    if (const auto* train = std::get_if<TrainLease>(&work)) {
      PS_TRY(Train(train->lease));
    } else if (std::get_if<FlushWork>(&work) != nullptr) {
      PS_TRY(FlushOnce());
    } else if (std::get_if<CutWork>(&work) != nullptr) {
      PS_TRY(FlushForCut());
    } else if (std::get_if<DrainWork>(&work) != nullptr) {
      PS_TRY(Drain());
    } else if (const auto* leave = std::get_if<LeaveWork>(&work)) {
      PS_TRY(Leave());
      return leave->reason;
    } else if (const auto* evaluate = std::get_if<EvaluateWork>(&work)) {
      PS_TRY(EvaluateFinal(*evaluate));
    } else {
      return std::get<StopWork>(work).reason;
    }
  }
}

Status Trainer::Start() {
  control::TaskReadyT ready;
  ready.layout_fingerprint = workload_.layout().fingerprint;
  ready.data_fingerprint = train_.fingerprint();
  ready.files_fingerprint = files_fingerprint_;
  ready.records = train_.records();
  context_ = PS_TRY(session_.Ready(ready));
  clock_ = context_.first_clock;
  view_ = PS_TRY(LayoutView::Create(workload_.layout(), context_.shards));

  // The communication thread reads a copy: the tables change while it does.
  auto initial = std::make_shared<std::vector<std::vector<float>>>();
  for (std::uint32_t i = 0; i < workload_.layout().tables.size(); ++i) {
    const auto values = workload_.table(i);
    initial->emplace_back(values.begin(), values.end());
  }
  session_.SetInitialValues([initial, view = *view_](ShardId shard, std::span<float> values) {
    for (auto number = view.shard_first_block(shard); number < view.shard_last_block(shard);
         ++number) {
      const Block& block = view.block(number);
      PS_CHECK(view.offset_in_shard(number) + block.elements <= values.size(), shard, number);
      std::copy_n((*initial)[block.table].data() + block.table_offset, block.elements,
                  values.data() + view.offset_in_shard(number));
    }
  });

  PS_TRY(workload_.Prepare(*view_, context_.worker));
  session_.SetPrecision(PrecisionName(workload_.precision()));
  if (context_.start.loss_scale > 0) {
    workload_.RestoreLossScale({context_.start.loss_scale, context_.start.growth_tracker});
  }
  PS_TRY(Pull(pull_fp32(), /*snapshot=*/true));
  workload_.AdoptBuffers();
  spdlog::info("worker {} starts at clock {} with {} shards", context_.worker.value(),
               clock_.value(), context_.shards);
  return Ok();
}

Status Trainer::CheckLease(const control::LeaseT& lease) const {
  const std::uint64_t records = train_.records();
  if (lease.begin > lease.end || lease.done > lease.end - lease.begin ||
      (lease.end > lease.begin && lease.begin / records != (lease.end - 1) / records)) {
    return Error{ErrorCode::kInternal,
                 "lease " + std::to_string(lease.id) + " of [" + std::to_string(lease.begin) +
                     ", " + std::to_string(lease.end) + ") is not within an epoch of " +
                     std::to_string(records) + " records"};
  }
  const auto usual = static_cast<std::uint64_t>(spec_.training.push_records());
  if (lease.push_records > usual * kSharesMost) {
    return Error{ErrorCode::kInternal, "lease " + std::to_string(lease.id) + " has pushes of " +
                                           std::to_string(lease.push_records) + " records for " +
                                           std::to_string(usual)};
  }
  return Ok();
}

std::uint32_t Trainer::PushRecords(const control::LeaseT& lease) const {
  return lease.push_records != 0 ? lease.push_records
                                 : static_cast<std::uint32_t>(spec_.training.push_records());
}

std::uint64_t Trainer::BatchRecords(const control::LeaseT& lease) const {
  const bool local = spec_.training.local_steps > 1;
  return local ? static_cast<std::uint64_t>(spec_.training.step_records()) : PushRecords(lease);
}

Status Trainer::SetPushRecords(std::uint32_t records) {
  if (records == push_records_) return Ok();
  PS_TRY(workload_.ScaleResidual(static_cast<float>(push_records_) / static_cast<float>(records)));
  push_records_ = records;
  return Ok();
}

Status Trainer::Train(const control::LeaseT& lease) {
  PS_TRY(CheckLease(lease));
  PS_TRY(SetHold(false));
  PS_TRY(SetPushRecords(PushRecords(lease)));
  for (std::uint64_t done = lease.done; lease.begin + done < lease.end;) {
    PS_TRY(EvaluateLive(lease.begin + done));
    if (session_.leave_wanted()) break;
    if (session_.cut_wanted()) {
      PS_TRY(FinishOpenPush());
      PS_TRY(FlushForCut());
    }
    PS_TRY(Step(lease, done));
  }
  return FinishOpenPush();
}

Status Trainer::ReadBatch(const control::LeaseT& lease, std::uint64_t done, StepBatch& step) {
  const std::uint64_t position = lease.begin + done;
  const auto count = static_cast<std::size_t>(std::min(BatchRecords(lease), lease.end - position));
  step.lease = lease;
  step.done = done;
  step.read = false;
  step.records.resize(count);
  for (std::size_t i = 0; i < count; ++i) step.records[i] = order_.RecordAt(position + i);
  step.batch = PS_TRY(step.buffer.Read(train_, step.records));
  step.batch.position = position;
  if (has_rows()) {
    workload_.FindRows(step.batch, step.rows);
    step.batch.rows = &step.rows;
  }
  step.read = true;
  return Ok();
}

Status Trainer::ReadAhead(const StepBatch& step) {
  control::LeaseT lease = step.lease;
  std::uint64_t done = step.done + step.records.size();
  if (lease.begin + done >= lease.end) {
    const auto next = session_.NextLease();
    // A lease that cannot be is refused when its turn comes.
    if (!next.has_value() || !CheckLease(*next).ok() || next->done >= next->end - next->begin) {
      return Ok();
    }
    lease = *next;
    done = next->done;
  }
  PS_TRY(ReadBatch(lease, done, ahead_));
  RequestPull(Clock(clock_.value() + 1), &ahead_.rows);
  return Ok();
}

Status Trainer::Step(const control::LeaseT& lease, std::uint64_t& done) {
  // Which rows to ask for is known only when the batch is. What was asked for ahead of time may be
  // of another: a lease came that was not granted by then, or the pull served an evaluation.
  if (has_rows()) {
    if (ahead_.Is(lease, done)) {
      std::swap(step_, ahead_);
      if (pull_pending_ && pull_rows_ == &ahead_.rows) pull_rows_ = &step_.rows;
    } else {
      PS_TRY(ReadBatch(lease, done, step_));
    }
    ahead_.read = false;
    step_.batch.rows = &step_.rows;
    if (pull_rows_ != &step_.rows) pull_pending_ = false;
  }
  // The push of the step before may not be handed over yet.
  const std::uint64_t pushed = clock_.value() + (open_push_.has_value() ? 1 : 0);
  if (!pull_applied_) {
    if (!pull_pending_) RequestPull(Clock(pushed), has_rows() ? &step_.rows : nullptr);
    PS_TRY(WaitPull());
  }
  pull_applied_ = false;
  if (overlaps_) bases_ = session_.Bases();
  PS_TRY(TakeReturned());
  // A bulk-synchronous step needs the push of the step before, its own too: nothing to ask for yet.
  if (!bulk_synchronous()) {
    if (has_rows()) {
      PS_TRY(ReadAhead(step_));
    } else {
      RequestPull(Clock(pushed + 1), nullptr);
    }
  }

  const auto begin = std::chrono::steady_clock::now();
  meanwhile_ = {};
  // What the push of the step before has sent is known once that is written.
  if (!open_push_.has_value()) PS_TRY(workload_.Observe(session_.pushes_without_verdict()));
  StepReport report;
  PS_TRY(Compute(lease, done, report));
  ++steps_;
  if (!report.skipped && steps_ % kBufferSteps == 0) workload_.SelectBuffers();
  compute_us_ +=
      static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(
                                     std::chrono::steady_clock::now() - begin - meanwhile_)
                                     .count());
  report.compute_ms = compute_us_ / 1000;
  compute_us_ %= 1000;

  lease_id_ = lease.id;
  lease_done_ = done;
  if (overlaps_) return BeginOpenPush(report);
  if (const auto scale = workload_.loss_scale()) session_.SetLossScale(*scale);
  if (report.skipped) {
    auto empty = PS_TRY(session_.BeginPush(0));
    clock_ = PS_TRY(session_.CommitPush(std::move(empty), report.samples, lease_id_, lease_done_));
  } else {
    PS_TRY(Push(report.samples));
  }
  if (steps_ % kResidualSteps == 0) report.residual_norm = PS_TRY(workload_.ResidualNorm());
  session_.Report(report);
  return Ok();
}

Status Trainer::Compute(const control::LeaseT& lease, std::uint64_t& done, StepReport& report) {
  const std::uint64_t left = lease.end - lease.begin - done;
  const bool local = spec_.training.local_steps > 1;
  const std::uint64_t samples = std::min<std::uint64_t>(left, push_records_);
  const double epoch =
      static_cast<double>(lease.begin + done) / static_cast<double>(train_.records());
  double loss = 0;
  std::uint64_t good = 0;
  Workload::LocalStep step;
  step.first = true;
  while (report.samples < samples) {
    const std::uint64_t position = lease.begin + done;
    if (!has_rows()) PS_TRY(ReadBatch(lease, done, step_));
    const auto count = static_cast<double>(step_.records.size());
    // Every sample weighs the same, in the push and on the way there.
    step.weight = static_cast<float>(count / static_cast<double>(samples));
    step.rate = static_cast<float>(learning_rate_.At(position) * count /
                                   static_cast<double>(spec_.optimizer.reference_batch));
    const ComputeResult computed = local       ? PS_TRY(workload_.ComputeLocal(step_.batch, step))
                                   : overlaps_ ? PS_TRY(ComputeOverlapped(epoch))
                                               : PS_TRY(workload_.Compute(step_.batch, epoch));
    step.first = false;
    done += step_.records.size();
    report.samples += static_cast<std::uint32_t>(step_.records.size());
    PS_TRY(Judge(computed, position, report));
    if (computed.kept()) {
      ++good;
      loss += computed.loss;
    } else if (good == 0) {
      report.loss = computed.loss;
    }
  }
  report.skipped = good == 0;
  if (good == 0) return Ok();
  if (local) PS_TRY(workload_.SelectLocal(epoch));
  report.loss = loss / static_cast<double>(good);
  report.entries = workload_.selected_entries();
  return Ok();
}

Result<ComputeResult> Trainer::ComputeOverlapped(double epoch) {
  Status done = Ok();
  ComputeResult computed = PS_TRY(workload_.Compute(step_.batch, epoch, [&] {
    const auto begin = std::chrono::steady_clock::now();
    done = Meanwhile();
    meanwhile_ = std::chrono::steady_clock::now() - begin;
  }));
  PS_TRY(done);
  return computed;
}

Status Trainer::Meanwhile() {
  if (open_push_.has_value()) {
    PS_TRY(FinishOpenPush());
    PS_TRY(workload_.Observe(session_.pushes_without_verdict()));
  }
  if (!pull_pending_ || !session_.PullIsThere()) return Ok();
  PS_TRY(WaitPull());
  pull_applied_ = true;
  return Ok();
}

Status Trainer::BeginOpenPush(const StepReport& report) {
  OpenPush& open = open_push_.emplace();
  open.report = report;
  open.lease_id = lease_id_;
  open.lease_done = lease_done_;
  open.loss_scale = workload_.loss_scale();
  open.push = PS_TRY(session_.BeginPush(report.skipped ? 0 : workload_.max_push_bytes()));
  open.push.set_bases(bases_);
  if (steps_ % kResidualSteps == 0) open.report.residual_norm = PS_TRY(workload_.ResidualNorm());
  return Ok();
}

Status Trainer::FinishOpenPush() {
  if (!open_push_.has_value()) return Ok();
  OpenPush open = std::move(*open_push_);
  open_push_.reset();
  if (open.loss_scale) session_.SetLossScale(*open.loss_scale);
  if (!open.report.skipped) WriteSegments(open.push);
  clock_ = PS_TRY(session_.CommitPush(std::move(open.push), open.report.samples, open.lease_id,
                                      open.lease_done));
  session_.Report(open.report);
  return Ok();
}

Status Trainer::Judge(const ComputeResult& computed, std::uint64_t position,
                      StepReport& report) const {
  if (computed.overflow) {
    ++report.overflows;
    spdlog::info("step skipped: {}, it is smaller from now on", computed.nonfinite);
    return Ok();
  }
  if (!computed.nonfinite.empty()) {
    const std::string text = computed.nonfinite + ", in the batch of positions " +
                             std::to_string(position) + " to " +
                             std::to_string(position + step_.records.size() - 1) + " (epoch " +
                             std::to_string(position / train_.records()) + ", first record " +
                             std::to_string(step_.records.front()) + ")";
    if (spec_.training.on_nonfinite == "stop") return Error{ErrorId::kNotFinite, text};
    spdlog::warn("step skipped: {}", text);
    ++report.nonfinite;
    report.position = position;
  }
  if (computed.implausible.empty()) return Ok();
  const std::string text = computed.implausible + "; " + RecordsText(position);
  if (computed.redone) {
    ++report.redone;
    report.last_redone = text;
    spdlog::warn("computed again in fp32: {}", text);
  } else {
    ++report.dropped;
    report.last_dropped = text;
    spdlog::warn("batch skipped, implausible in fp32 too: {}", text);
  }
  return Ok();
}

std::string Trainer::RecordsText(std::uint64_t position) const {
  std::vector<std::uint64_t> records = step_.records;
  std::sort(records.begin(), records.end());
  std::string text = "records ";
  std::size_t ranges = 0;
  for (std::size_t i = 0; i < records.size();) {
    std::size_t end = i + 1;
    while (end < records.size() && records[end] == records[end - 1] + 1) ++end;
    if (++ranges > kRangesNamed) {
      text += ", ... (" + std::to_string(records.size()) + ")";
      break;
    }
    if (i > 0) text += ", ";
    text += std::to_string(records[i]);
    if (end > i + 1) text += "-" + std::to_string(records[end - 1]);
    i = end;
  }
  const DataSourceSpec& source = spec_.data.train;
  text += " of " + (source.format == "idx" ? source.images + " and " + source.labels : source.file);
  return text + ", positions " + std::to_string(position) + " to " +
         std::to_string(position + step_.records.size() - 1) + " of epoch " +
         std::to_string(position / train_.records()) + ", lease " + std::to_string(step_.lease.id);
}

void Trainer::WriteSegments(PushBuilder& push) {
  for (std::uint32_t shard = 0; shard < context_.shards; ++shard) {
    const std::size_t bytes = workload_.WriteShard(ShardId(shard), push.space());
    if (bytes > 0) push.Add(ShardId(shard), bytes);
  }
}

Status Trainer::Push(std::uint32_t samples) {
  auto push = PS_TRY(session_.BeginPush(workload_.max_push_bytes()));
  WriteSegments(push);
  clock_ = PS_TRY(session_.CommitPush(std::move(push), samples, lease_id_, lease_done_));
  return Ok();
}

// The lowest slot evaluates on behalf of all. Its clock is out of the staleness rule meanwhile, so
// that nobody waits for it, and its next step begins with a fresh pull.
Status Trainer::EvaluateLive(std::uint64_t position) {
  const double every = spec_.training.evaluate_every_epochs;
  if (every <= 0 || context_.worker != WorkerId(0)) return Ok();
  const auto passed = static_cast<std::uint64_t>(static_cast<double>(position) /
                                                 (every * static_cast<double>(train_.records())));
  const bool due = evaluations_known_ && passed > evaluations_;
  evaluations_ = std::max(evaluations_, passed);
  evaluations_known_ = true;
  if (!due) return Ok();
  PS_TRY(FinishOpenPush());
  if (bulk_synchronous()) {
    // The others wait: who goes on without this worker would not come to the same sums.
    RequestPull(clock_, nullptr);
  } else {
    PS_TRY(SetHold(true));
  }
  if (pull_pending_) PS_TRY(WaitPull());
  const auto sums = PS_TRY(workload_.Evaluate(
      test_, [this](BatchRows& rows) { return Pull(pull_fp32(), /*snapshot=*/false, &rows); }));
  if (sums.records > 0) {
    session_.ReportMetric(sums.mean_metric(), position);
    spdlog::info("at position {}: metric {:.4f}, loss {:.4f} on {} test records", position,
                 sums.mean_metric(), sums.mean_loss(), sums.records);
  }
  return SetHold(false);
}

// A flush weighs as much as the step whose gradients it holds.
Status Trainer::PushSelected() {
  if (workload_.max_push_bytes() == 0) return Ok();
  StepReport report;
  report.flush = true;
  report.entries = workload_.selected_entries();
  session_.Report(report);
  return Push(push_records_);
}

Status Trainer::FlushOnce() {
  if (flushed_at_ == clock_) return Ok();
  PS_TRY(workload_.SelectAll());
  workload_.SelectBuffers();
  PS_TRY(PushSelected());
  PS_TRY(session_.WaitVerdicts());
  flushed_at_ = clock_;
  return Ok();
}

Result<bool> Trainer::PushResidual() {
  // The next step begins with what the shards are after it.
  pull_applied_ = false;
  for (int flush = 0; flush < kFlushesMax; ++flush) {
    // Brings the base version of the push up to date, so that it is not too old.
    PS_TRY(Pull(/*fp32=*/false, /*snapshot=*/false));
    PS_TRY(TakeReturned());
    PS_TRY(workload_.SelectAll());
    if (flush == 0) workload_.SelectBuffers();
    PS_TRY(PushSelected());
    PS_TRY(session_.WaitVerdicts());
    bool returned = false;
    PS_TRY(TakeReturned(&returned));
    if (!returned) return true;
  }
  return false;
}

Status Trainer::FlushForCut() {
  // An empty push would be one of a clock, which the others' next steps would be averaged with.
  if (bulk_synchronous() && PS_TRY(workload_.ResidualNorm()) == 0) {
    session_.Flushed(true);
    return Ok();
  }
  session_.Flushed(PS_TRY(PushResidual()));
  return Ok();
}

// What is left in the residual stays with the job. Others do not wait for this task any more.
Status Trainer::Leave() {
  PS_TRY(SetHold(true));
  if (!PS_TRY(PushResidual())) {
    spdlog::warn("some of the residual came back as too old {} times, and goes with this task",
                 kFlushesMax);
  }
  return Ok();
}

// What is left in the residual belongs to the result.
Status Trainer::Drain() {
  if (bulk_synchronous()) {
    // Nothing is too old, and the flush belongs to its clock: the hold comes after it.
    PS_TRY(FlushOnce());
    PS_TRY(SetHold(true));
    session_.Drained();
    return Ok();
  }
  PS_TRY(SetHold(true));
  if (!PS_TRY(PushResidual())) {
    return Error{ErrorCode::kTimeout,
                 "the residual came back as too old " + std::to_string(kFlushesMax) + " times"};
  }
  session_.Drained();
  return Ok();
}

Status Trainer::EvaluateFinal(const EvaluateWork& work) {
  PS_TRY(Pull(/*fp32=*/true, /*snapshot=*/true));
  control::EvaluatedT result;
  result.round = work.round;
  result.error = PS_TRY(CheckDigests(work.digests));
  if (result.error.empty()) {
    const auto sums = PS_TRY(workload_.Evaluate(
        test_, [this](BatchRows& rows) { return Pull(/*fp32=*/true, /*snapshot=*/false, &rows); }));
    result.metric = sums.mean_metric();
    result.loss = sums.mean_loss();
    result.records = sums.records;
  }
  session_.Evaluated(result);
  return Ok();
}

Result<std::string> Trainer::CheckDigests(const std::vector<std::string>& digests) {
  if (digests.empty()) return std::string();
  if (digests.size() != context_.shards) {
    return "digests of " + std::to_string(digests.size()) + " shards, the job has " +
           std::to_string(context_.shards);
  }
  std::unique_ptr<XXH3_state_t, FreeState> state(XXH3_createState());
  for (std::uint32_t shard = 0; shard < context_.shards; ++shard) {
    XXH3_128bits_reset(state.get());
    for (auto number = view_->shard_first_block(ShardId(shard));
         number < view_->shard_last_block(ShardId(shard)); ++number) {
      const Block& block = view_->block(number);
      values_.resize(block.elements);
      PS_TRY(workload_.Read(block, values_));
      XXH3_128bits_update(state.get(), values_.data(), block.elements * sizeof(float));
    }
    if (const auto digest = HexDigest(state.get()); digest != digests[shard]) {
      return "shard " + std::to_string(shard) + " has the values " + digest +
             ", the manifest says " + digests[shard];
    }
  }
  return std::string();
}

Clock Trainer::Needed(Clock clock) const {
  const auto staleness = spec_.training.staleness;
  if (staleness < 0 || clock.value() < static_cast<std::uint64_t>(staleness)) return Clock(0);
  return Clock(clock.value() - static_cast<std::uint64_t>(staleness));
}

bool Trainer::pull_fp32() const {
  const std::string& values = spec_.training.pull_values;
  return values == "fp32" || (values == "auto" && bulk_synchronous());
}

void Trainer::RequestPull(Clock clock, BatchRows* rows) {
  TaskSession::PullRequest request;
  request.needed = Needed(clock);
  request.fp32 = pull_fp32();
  Request(std::move(request), rows);
  pull_pending_ = true;
}

void Trainer::Request(TaskSession::PullRequest request, BatchRows* rows) {
  if (rows != nullptr) {
    // The communication thread reads a copy: it may ask again while the next batch is read.
    auto keys = std::make_shared<RowKeys>();
    for (const TableRows& table : rows->tables) keys->push_back(table.keys);
    request.rows = std::move(keys);
  }
  if (pull_increments() && !request.fp32 && !holds_shadow_) request.snapshot = true;
  pull_is_fp32_ = request.fp32;
  session_.RequestPull(request);
  pull_rows_ = rows;
}

Status Trainer::WaitPull() {
  const auto pull = PS_TRY(session_.WaitPull());
  pull_pending_ = false;
  BatchRows* const rows = std::exchange(pull_rows_, nullptr);
  holds_shadow_ = PS_TRY(Apply(pull)) && !pull_is_fp32_;
  if (rows != nullptr) ApplyRows(pull, *rows);
  if (pull_increments() && !pull_is_fp32_ && !holds_shadow_) {
    return Pull(/*fp32=*/false, /*snapshot=*/true, rows);
  }
  return Ok();
}

Status Trainer::Pull(bool fp32, bool snapshot, BatchRows* rows) {
  TaskSession::PullRequest request;
  request.fp32 = fp32;
  request.snapshot = snapshot;
  Request(std::move(request), rows);
  return WaitPull();
}

// A shard's rows come in the order of their keys, without them.
void Trainer::ApplyRows(const PullResult& pull, BatchRows& rows) const {
  struct Cursor {
    const codec::RowsView* part = nullptr;
    std::size_t row = 0;
  };
  std::vector<Cursor> cursors(context_.shards);
  for (std::uint32_t table = 0; table < rows.tables.size(); ++table) {
    std::fill(cursors.begin(), cursors.end(), Cursor());
    for (const PulledShard& shard : pull.shards) {
      for (const codec::RowsView& part : shard.rows) {
        if (part.table == table) cursors[shard.shard.value()].part = &part;
      }
    }
    const std::size_t width = view_->row_width(table);
    TableRows& into = rows.tables[table];
    into.values.resize(into.keys.size() * width);
    for (std::size_t i = 0; i < into.keys.size(); ++i) {
      Cursor& cursor = cursors[codec::ShardOfRow(into.keys[i], context_.shards).value()];
      // The session has held the answers against what was asked for.
      PS_CHECK(cursor.part != nullptr && cursor.row < cursor.part->count, table, into.keys[i]);
      codec::DecodeRow(*cursor.part, cursor.row++,
                       std::span(into.values).subspan(i * width, width));
    }
  }
}

Result<bool> Trainer::Apply(const PullResult& pull) {
  for (const auto& shard : pull.shards) {
    if (shard.content == wire::PullContent::Unchanged) continue;
    const bool increments = shard.content == wire::PullContent::Increments;
    for (const auto& view : shard.blocks) {
      const std::uint32_t number = view.header.block();
      // The session has validated the segment against the layout of the job.
      PS_CHECK(number < view_->block_count(), number);
      PS_TRY(workload_.Apply(view_->block(number), view, increments));
    }
  }
  PS_TRY(workload_.EndPull());
  bool good = true;
  for (const auto& shard : pull.shards) {
    if (!shard.hash.has_value() || PS_TRY(HashHolds(shard))) continue;
    spdlog::error("shard {} at version {}: this task does not hold what the server says it does",
                  shard.shard.value(), shard.version);
    good = false;
  }
  return good;
}

Result<bool> Trainer::HashHolds(const PulledShard& shard) {
  codec::HeldHash hash;
  for (auto number = view_->shard_first_block(shard.shard);
       number < view_->shard_last_block(shard.shard); ++number) {
    const Block& block = view_->block(number);
    if (block.rule != TableRule::Sgd) continue;
    values_.resize(block.elements);
    PS_TRY(workload_.Read(block, values_));
    halves_.resize(values_.size());
    std::transform(values_.begin(), values_.end(), halves_.begin(), codec::FloatToBf16);
    hash.Add(halves_);
  }
  return hash.Digest() == *shard.hash;
}

Status Trainer::TakeReturned(bool* any) {
  const auto returned = session_.TakeReturned();
  for (const auto& segment : returned) {
    // Its entries weighed as much as the samples of their push. Where all pushes have as many, that
    // is so of the short one at the end of an epoch alone, and whole numbers stay whole.
    const float weight =
        spec_.training.batch_by_speed && segment.samples > 0
            ? static_cast<float>(segment.samples) / static_cast<float>(push_records_)
            : 1.0f;
    if (auto status = workload_.TakeBack(segment.payload, weight); !status.ok()) {
      return Error{ErrorCode::kInternal,
                   "shard " + std::to_string(segment.shard.value()) +
                       " returned what was not pushed: " + status.error().message};
    }
  }
  if (any != nullptr) *any = !returned.empty();
  return Ok();
}

Status Trainer::SetHold(bool on) {
  if (held_ == on) return Ok();
  PS_TRY(session_.Hold(on));
  held_ = on;
  // After a hold the others have gone on: what was asked for before it is of no use.
  if (!on) pull_pending_ = pull_applied_ = false;
  return Ok();
}

}  // namespace ps::worker
