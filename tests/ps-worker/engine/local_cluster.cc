#include "tests/ps-worker/engine/local_cluster.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "checkpoint/digest.h"
#include "common/codec/block_codec.h"
#include "common/codec/increment.h"
#include "common/codec/row_codec.h"

namespace ps::test {
namespace {

LayoutView ViewOf(const JobSpec& spec, const control::LayoutT& layout, std::uint32_t shards) {
  if (shards == 0) shards = ChooseShardCount(layout, spec.resources.shards);
  auto view = LayoutView::Create(layout, shards);
  PS_CHECK(view.ok(), view.ok() ? "" : view.error().message);
  return std::move(view).value();
}

}  // namespace

class LocalSession final : public worker::TaskSession {
 public:
  LocalSession(LocalCluster& cluster, std::uint32_t worker) : cluster_(cluster), worker_(worker) {}

  Result<worker::TaskContext> Ready(const control::TaskReadyT& ready) override {
    if (ready.records != cluster_.records_) {
      return Error{ErrorCode::kInvalid, "the job has another number of records"};
    }
    known_.resize(cluster_.view_.shard_count());
    worker::TaskContext context;
    context.worker = WorkerId(worker_);
    context.incarnation = Member().incarnation;
    context.first_clock = clock_ = cluster_.options_.first_clock;
    context.shards = cluster_.view_.shard_count();
    context.start.loss_scale = cluster_.options_.loss_scale.scale;
    context.start.growth_tracker = cluster_.options_.loss_scale.growth_tracker;
    return context;
  }

  void SetInitialValues(std::function<void(ShardId, std::span<float>)> fill) override {
    const std::lock_guard lock(cluster_.mutex_);
    std::vector<float> values;
    std::vector<std::byte> bytes;
    std::vector<codec::BlockView> blocks;
    for (auto& shard : cluster_.shards_) {
      if (shard->ready()) continue;
      const auto& view = cluster_.view_;
      values.resize(view.shard_elements(shard->id()));
      fill(shard->id(), values);
      bytes.resize(values.size() * sizeof(float) + 64 * std::size_t{view.block_count()});
      std::size_t used = 0;
      for (auto block = view.shard_first_block(shard->id());
           block < view.shard_last_block(shard->id()); ++block) {
        const std::span<const float> part(values.data() + view.offset_in_shard(block),
                                          view.block(block).elements);
        used +=
            codec::EncodeBlock(block, view.block(block).elements, {}, part, wire::IndexCodec::Dense,
                               wire::ValueCodec::Fp32, bytes.data() + used, {});
      }
      Parse(*shard, {bytes.data(), used}, blocks);
      PS_CHECK(shard->Init(blocks) == wire::Code::Applied);
    }
    cluster_.changed_.notify_all();
  }

  Result<worker::Work> NextWork() override {
    std::unique_lock lock(cluster_.mutex_);
    auto& state = cluster_.workers_[worker_];
    const bool was_held = Member().held;
    state.lease_open = false;
    state.waiting = true;
    cluster_.changed_.notify_all();
    const auto until = std::chrono::steady_clock::now() + cluster_.options_.deadline;
    while (true) {
      if (cluster_.stopped_) return Finish(state, worker::StopWork{"the job has ended"}, was_held);
      if (LeaveDue()) return Finish(state, worker::LeaveWork{"fewer are wanted"}, was_held);
      if (!cluster_.outcome_.failures.empty()) {
        return Error{ErrorCode::kClosed, "another worker failed"};
      }
      if (ahead_) {
        state.lease_open = true;
        return Finish(state, worker::TrainLease{*std::exchange(ahead_, std::nullopt)}, was_held);
      }
      if (cluster_.next_position_ < cluster_.total_) {
        state.lease_open = true;
        return Finish(state, worker::TrainLease{TakeLease()}, was_held);
      }
      if (cluster_.rules_.bulk_synchronous && !state.flush_told) {
        state.flush_told = true;
        return Finish(state, worker::FlushWork{}, was_held);
      }
      if (cluster_.AllTrained() && !state.drain_told) {
        state.drain_told = true;
        return Finish(state, worker::DrainWork{}, was_held);
      }
      const bool drained = std::all_of(cluster_.workers_.begin(), cluster_.workers_.end(),
                                       [](const auto& worker) { return worker.drained; });
      if (drained && worker_ == 0 && !cluster_.evaluation_told_) {
        cluster_.evaluation_told_ = true;
        return Finish(state, worker::EvaluateWork{7, Digests()}, was_held);
      }
      // Nobody waits for a worker that has nothing to train.
      if (!Member().held) {
        Member().held = true;
        cluster_.MembersChanged();
      }
      if (cluster_.changed_.wait_until(lock, until) == std::cv_status::timeout) {
        return Error{ErrorCode::kTimeout, "no work"};
      }
    }
  }

  bool cut_wanted() const override {
    const std::lock_guard lock(cluster_.mutex_);
    const std::uint64_t after = cluster_.options_.cut_after_pushes;
    return after > 0 && cluster_.outcome_.pushes >= after && !cluster_.workers_[worker_].cut;
  }

  bool leave_wanted() const override {
    const std::lock_guard lock(cluster_.mutex_);
    return LeaveDue();
  }

  void Flushed(bool whole) override {
    const std::lock_guard lock(cluster_.mutex_);
    if (!whole) cluster_.Fail("the residual could not be flushed");
    cluster_.workers_[worker_].cut = true;
    cluster_.outcome_.cuts.push_back(cluster_.Table(0));
  }

  // The next lease is set aside for who looks at it.
  std::optional<control::LeaseT> NextLease() const override {
    const std::lock_guard lock(cluster_.mutex_);
    if (!ahead_ && cluster_.next_position_ < cluster_.total_) ahead_ = TakeLease();
    return ahead_;
  }

  void RequestPull(const PullRequest& request) override {
    const std::lock_guard lock(cluster_.mutex_);
    request_ = request;
    answer_.reset();
    ++cluster_.outcome_.pulls;
    if (request.snapshot) ++cluster_.outcome_.snapshot_pulls;
    // A server answers when the question comes in, not when the answer is looked at.
    if (Reached()) answer_ = Answer();
  }

  Result<worker::PullResult> WaitPull() override {
    std::unique_lock lock(cluster_.mutex_);
    PS_CHECK(request_.has_value(), "nothing was asked for");
    const auto until = std::chrono::steady_clock::now() + cluster_.options_.deadline;
    while (!answer_.has_value()) {
      if (Reached()) {
        answer_ = Answer();
        break;
      }
      if (cluster_.cancelled_) return Error{ErrorCode::kClosed, "the job was cancelled"};
      if (!cluster_.outcome_.failures.empty()) {
        return Error{ErrorCode::kClosed, "another worker failed"};
      }
      if (cluster_.changed_.wait_until(lock, until) == std::cv_status::timeout) {
        return Error{ErrorCode::kTimeout, "the pull was not answered"};
      }
    }
    request_.reset();
    for (const auto& shard : answer_->shards) {
      known_[shard.shard.value()] = {shard.version, shard.lineage};
    }
    auto result = std::move(*answer_);
    answer_.reset();
    return result;
  }

  std::vector<worker::PushBuilder::Base> Bases() const override {
    std::vector<worker::PushBuilder::Base> bases;
    for (const auto& known : known_) bases.push_back({known.version, known.lineage});
    return bases;
  }

  bool PullIsThere() override {
    const std::lock_guard lock(cluster_.mutex_);
    return answer_.has_value() || Reached();
  }

  Result<worker::PushBuilder> BeginPush(std::size_t max_bytes) override {
    ring_.resize(max_bytes);
    return worker::PushBuilder(std::span<std::byte>(ring_), Bases());
  }

  Result<Clock> CommitPush(worker::PushBuilder push, std::uint32_t samples, std::uint64_t lease_id,
                           std::uint64_t lease_done) override {
    const std::lock_guard lock(cluster_.mutex_);
    clock_ = Clock(clock_.value() + 1);
    auto& outcome = cluster_.outcome_;
    if (cluster_.cancelled_) return Error{ErrorCode::kClosed, "the job was cancelled"};
    ++outcome.pushes;
    if (outcome.pushes == cluster_.options_.stop_after_pushes) {
      cluster_.stopped_ = cluster_.cancelled_ = true;
    }
    if (push.parts().empty()) ++outcome.empty_pushes;
    if (cluster_.workers_[worker_].lease_open) {
      outcome.samples += samples;
      ++outcome.pushes_of[samples];
    }
    PS_CHECK(lease_id == lease_id_ ? lease_done >= lease_done_ : lease_id > lease_id_);
    lease_id_ = lease_id;
    lease_done_ = lease_done;
    const bool refuse = cluster_.options_.too_old_clocks.count(clock_.value()) > 0;
    server::SegmentContent content;
    LocalCluster::RetainedPush retained{worker_, clock_, samples, {}};
    const auto live = static_cast<std::uint32_t>(cluster_.members_.size());
    for (auto& shard : cluster_.shards_) {
      const auto part = std::find_if(push.parts().begin(), push.parts().end(),
                                     [&](const auto& p) { return p.shard == shard->id(); });
      std::span<const std::byte> payload;
      if (part != push.parts().end()) payload = {ring_.data() + part->offset, part->bytes};
      outcome.push_bytes += payload.size();
      server::PushFacts facts;
      facts.clock = clock_;
      facts.base_version = push.base(shard->id()).version;
      facts.samples = samples;
      if (shard->id() == ShardId(0)) {
        outcome.staleness.push_back(shard->version() - facts.base_version);
      }
      const auto parsed = server::ParsePush(cluster_.view_, shard->id(), payload, content);
      PS_CHECK(parsed.ok(), parsed.ok() ? "" : parsed.error().message);
      if (refuse) content = server::SegmentContent();
      const auto verdict = shard->Push(Member(), facts, content.blocks, live, content.rows);
      PS_CHECK(verdict.code == wire::Code::Applied || verdict.code == wire::Code::TooOld,
               static_cast<int>(verdict.code));
      if ((refuse || verdict.code == wire::Code::TooOld) && !payload.empty()) {
        returned_.push_back({clock_, shard->id(), {payload.begin(), payload.end()}, samples});
        ++outcome.returned;
        payload = {};
      }
      retained.segments.emplace_back(payload.begin(), payload.end());
    }
    cluster_.Retain(std::move(retained));
    cluster_.ApplyHeld();
    cluster_.changed_.notify_all();
    return clock_;
  }

  Clock clock() const override { return clock_; }

  std::uint32_t pushes_without_verdict() const override {
    return cluster_.options_.pushes_without_verdict;
  }

  std::string stop_reason() const override {
    const std::lock_guard lock(cluster_.mutex_);
    return cluster_.cancelled_ ? "the job was cancelled" : "";
  }

  std::vector<worker::ReturnedSegment> TakeReturned() override {
    return std::exchange(returned_, {});
  }

  Status WaitVerdicts() override { return Ok(); }

  Status Hold(bool on) override {
    const std::lock_guard lock(cluster_.mutex_);
    Member().held = on;
    cluster_.MembersChanged();
    return Ok();
  }

  void SetLossScale(const worker::LossScale& state) override {
    const std::lock_guard lock(cluster_.mutex_);
    cluster_.outcome_.loss_scales[worker_] = state;
  }

  void Report(const worker::StepReport& report) override {
    const std::lock_guard lock(cluster_.mutex_);
    cluster_.outcome_.losses.push_back(report.loss);
    cluster_.outcome_.entries += report.entries;
    if (report.skipped) ++cluster_.outcome_.skipped;
    cluster_.outcome_.overflows += report.overflows;
    cluster_.outcome_.redone += report.redone;
    cluster_.outcome_.dropped += report.dropped;
    for (const std::string& text : {report.last_redone, report.last_dropped}) {
      if (!text.empty()) cluster_.outcome_.anomalies.push_back(text);
    }
  }

  void ReportMetric(double metric, std::uint64_t samples_trained) override {
    const std::lock_guard lock(cluster_.mutex_);
    cluster_.outcome_.metrics.emplace_back(samples_trained, metric);
  }

  void Drained() override {
    const std::lock_guard lock(cluster_.mutex_);
    cluster_.workers_[worker_].drained = true;
    ++cluster_.outcome_.drained;
    cluster_.changed_.notify_all();
  }

  void Evaluated(const control::EvaluatedT& result) override {
    const std::lock_guard lock(cluster_.mutex_);
    cluster_.outcome_.evaluated = result;
    cluster_.stopped_ = true;
    cluster_.changed_.notify_all();
  }

  void Failed(bool permanent, const std::string& message) override {
    const std::lock_guard lock(cluster_.mutex_);
    cluster_.Fail((permanent ? "permanent: " : "once: ") + message);
  }

 private:
  // Under the mutex.
  bool LeaveDue() const {
    const std::uint64_t after = cluster_.options_.leave_after_pushes;
    return after > 0 && cluster_.outcome_.pushes >= after;
  }
  server::Member& Member() { return cluster_.MemberOf(worker_); }

  worker::Work Finish(LocalCluster::WorkerState& state, worker::Work work, bool held) {
    state.waiting = false;
    if (Member().held != held) {
      Member().held = held;
      cluster_.MembersChanged();
    }
    return work;
  }

  control::LeaseT TakeLease() const {
    control::LeaseT lease;
    const auto begin = cluster_.next_position_;
    const auto epoch_end = (begin / cluster_.records_ + 1) * cluster_.records_;
    lease.id = cluster_.next_lease_++;
    lease.begin = begin;
    lease.end = std::min({begin + cluster_.options_.lease_records, epoch_end, cluster_.total_});
    cluster_.next_position_ = lease.end;
    const auto& records = cluster_.options_.push_records;
    if (!records.empty()) lease.push_records = records[lease.id % records.size()];
    return lease;
  }

  std::vector<std::string> Digests() {
    std::vector<std::string> digests;
    for (const auto& shard : cluster_.shards_) {
      checkpoint::Digester digester;
      const std::vector<float> values = shard->values();
      digester.Update(std::as_bytes(std::span(values)));
      digests.push_back(digester.Hex());
    }
    if (cluster_.options_.damage_digests) digests.back()[0] ^= 1;
    return digests;
  }

  void Parse(const server::Shard& shard, std::span<const std::byte> payload,
             std::vector<codec::BlockView>& blocks, std::uint32_t runs = 1) {
    const auto status = codec::ParseSegment(
        payload, [&](std::uint32_t block) { return shard.ElementsOf(block); }, blocks, runs);
    PS_CHECK(status.ok(), status.ok() ? "" : status.error().message);
  }

  bool Reached() {
    return std::all_of(cluster_.shards_.begin(), cluster_.shards_.end(), [&](auto& shard) {
      return shard->ready() && shard->SlowestClock(cluster_.members_) >= request_->needed;
    });
  }

  // The parts of a pull for one shard.
  std::vector<std::byte> KeysOf(const worker::RowKeys& keys, ShardId shard) {
    std::vector<std::byte> bytes;
    for (std::uint32_t table = 0; table < keys.size(); ++table) {
      std::vector<std::uint64_t> here;
      for (const std::uint64_t key : keys[table]) {
        if (codec::ShardOfRow(key, cluster_.view_.shard_count()) == shard) here.push_back(key);
      }
      if (here.empty()) continue;
      const auto width = cluster_.view_.row_width(table);
      const std::size_t at = bytes.size();
      bytes.resize(at + codec::MaxRowBytes(here.size(), width, codec::RowContent::kKeys,
                                           wire::ValueCodec::Absent));
      bytes.resize(at + codec::EncodeRows(table, here, {}, width, codec::RowContent::kKeys,
                                          wire::ValueCodec::Absent, bytes.data() + at));
    }
    return bytes;
  }

  worker::PullResult Answer() {
    worker::PullResult result;
    if (known_[0].version != 0 && !request_->snapshot) ++cluster_.outcome_.update_pulls;
    for (const auto& shard : cluster_.shards_) {
      auto bytes = std::make_shared<server::ByteBuffer>();
      server::Shard::PullQuery query;
      query.version = known_[shard->id().value()].version;
      query.lineage = known_[shard->id().value()].lineage;
      query.fp32 = request_->fp32;
      query.snapshot = request_->snapshot;
      worker::PulledShard pulled;
      pulled.shard = shard->id();
      std::vector<std::byte> asked_bytes;
      std::vector<codec::RowsView> asked;
      if (request_->rows != nullptr) {
        asked_bytes = KeysOf(*request_->rows, shard->id());
        const auto parsed = server::ParsePull(cluster_.view_, shard->id(), asked_bytes, asked);
        PS_CHECK(parsed.ok(), parsed.ok() ? "" : parsed.error().message);
      }
      pulled.content = shard->Pull(query, scratch_, *bytes, asked);
      pulled.version = shard->version();
      if (query.version != 0 && !query.snapshot) {
        cluster_.outcome_.update_bytes += bytes->size();
        cluster_.outcome_.update_versions +=
            shard->version() - std::min(query.version, shard->version());
      }
      pulled.lineage = shard->lineage();
      std::span<const std::byte> payload(bytes->data(), bytes->size());
      std::uint32_t runs = 1;
      if (pulled.content == wire::PullContent::IncrementsAndHash) {
        pulled.hash.emplace();
        std::memcpy(&*pulled.hash, payload.data(), sizeof(*pulled.hash));
        payload = payload.subspan(sizeof(*pulled.hash));
        pulled.content = wire::PullContent::Increments;
        ++cluster_.outcome_.hashes;
        if (cluster_.options_.damage_hash && !std::exchange(cluster_.hash_damaged_, true)) {
          *pulled.hash ^= 1;
        }
      }
      if (pulled.content == wire::PullContent::Increments) {
        runs = 1 + codec::kIncrementPushesMax;
        ++cluster_.outcome_.increments;
      }
      const auto parts = codec::SplitSegment(payload).value();
      Parse(*shard, parts.blocks, pulled.blocks, runs);
      const auto rows = codec::ParseRows(
          parts.rows, codec::RowContent::kValues,
          [&](std::uint32_t table) { return cluster_.view_.row_width(table); }, pulled.rows);
      PS_CHECK(rows.ok(), rows.ok() ? "" : rows.error().message);
      result.shards.push_back(std::move(pulled));
      result.frames.push_back(std::move(bytes));
    }
    return result;
  }

  LocalCluster& cluster_;
  const std::uint32_t worker_;
  Clock clock_;
  mutable std::optional<control::LeaseT> ahead_;
  struct Known {
    std::uint64_t version = 0;
    std::uint32_t lineage = 1;
  };
  std::vector<Known> known_;  // of each shard, what was returned last
  std::optional<PullRequest> request_;
  std::optional<worker::PullResult> answer_;
  server::PullScratch scratch_;
  std::vector<std::byte> ring_;
  std::vector<worker::ReturnedSegment> returned_;
  std::uint64_t lease_id_ = 0;
  std::uint64_t lease_done_ = 0;
};

LocalCluster::LocalCluster(const JobSpec& spec, const control::LayoutT& layout,
                           std::uint64_t records, const LocalClusterOptions& options)
    : spec_(spec),
      options_(options),
      view_(ViewOf(spec, layout, options.shards)),
      records_(records),
      total_(static_cast<std::uint64_t>(
          std::llround(spec.training.epochs * static_cast<double>(records)))),
      rules_(server::JobRules::Of(spec, records)),
      workers_(static_cast<std::size_t>(spec.training.workers)) {
  for (std::uint32_t shard = 0; shard < view_.shard_count(); ++shard) {
    shards_.push_back(std::make_unique<server::Shard>(view_, rules_, ShardId(shard), Epoch(1), 1,
                                                      /*restoring=*/false));
  }
  for (std::uint32_t worker = 0; worker < workers_.size(); ++worker) {
    server::Member member;
    member.worker = WorkerId(worker);
    member.incarnation = Incarnation(worker + 1);
    member.first_clock = options_.first_clock;
    members_.push_back(member);
  }
}

LocalCluster::~LocalCluster() = default;

std::unique_ptr<worker::TaskSession> LocalCluster::Connect(std::uint32_t worker) {
  return std::make_unique<LocalSession>(*this, worker);
}

std::vector<float> LocalCluster::Table(std::uint32_t index) const {
  std::vector<float> values;
  std::vector<float> of_shard;
  ShardId copied(view_.shard_count());  // none yet
  for (std::uint32_t number = 0; number < view_.block_count(); ++number) {
    if (view_.block(number).table != index) continue;
    const ShardId shard = view_.shard_of_block(number);
    if (shard != copied) {
      of_shard = shards_[shard.value()]->values();
      copied = shard;
    }
    const auto begin =
        of_shard.begin() + static_cast<std::ptrdiff_t>(view_.offset_in_shard(number));
    values.insert(values.end(), begin, begin + view_.block(number).elements);
  }
  return values;
}

std::map<std::uint64_t, std::vector<float>> LocalCluster::Rows(std::uint32_t table) const {
  std::map<std::uint64_t, std::vector<float>> rows;
  for (const auto& shard : shards_) {
    const auto image = shard->Freeze(JobId(1), Round(1)).ToImage();
    for (const auto& part : image.rows) {
      if (part.table != table) continue;
      for (std::size_t row = 0; row < part.rows(); ++row) {
        const std::byte* const record = part.records.data() + row * part.record_bytes();
        std::uint64_t key = 0;
        std::memcpy(&key, record, sizeof(key));
        std::vector<float> values(part.width);
        std::memcpy(values.data(), record + checkpoint::kRowHeaderBytes,
                    values.size() * sizeof(float));
        PS_CHECK(rows.emplace(key, std::move(values)).second, "a key on two shards", key);
      }
    }
  }
  return rows;
}

bool LocalCluster::AllTrained() const {
  return next_position_ >= total_ &&
         std::none_of(workers_.begin(), workers_.end(),
                      [](const auto& worker) { return worker.lease_open; });
}

void LocalCluster::ApplyHeld() {
  if (!rules_.bulk_synchronous) return;
  const auto live = static_cast<std::uint32_t>(members_.size());
  for (auto& shard : shards_) shard->ApplyHeld(members_, live, merge_scratch_);
}

void LocalCluster::Retain(RetainedPush push) {
  if (options_.checkpoint_after_pushes == 0) return;
  if (outcome_.pushes > options_.checkpoint_after_pushes) retained_.push_back(std::move(push));
  if (outcome_.pushes == options_.checkpoint_after_pushes) {
    for (const auto& shard : shards_) {
      images_.push_back(shard->Freeze(JobId(1), Round(1)).ToImage());
    }
  }
  if (outcome_.pushes == options_.checkpoint_after_pushes + options_.lose_shards_after_pushes) {
    LoseShards();
  }
}

void LocalCluster::LoseShards() {
  const auto live = static_cast<std::uint32_t>(members_.size());
  for (auto& shard : shards_) {
    const ShardId id = shard->id();
    shard = std::make_unique<server::Shard>(view_, rules_, id, Epoch(2), 2, /*restoring=*/true);
    const auto restored = shard->Restore(images_[id.value()], /*values_only=*/false);
    PS_CHECK(restored.ok(), restored.ok() ? "" : restored.error().message);
    server::SegmentContent content;
    for (const RetainedPush& push : retained_) {
      const auto parsed = server::ParsePush(view_, id, push.segments[id.value()], content);
      PS_CHECK(parsed.ok(), parsed.ok() ? "" : parsed.error().message);
      server::PushFacts facts;
      facts.clock = push.clock;
      facts.samples = push.samples;
      facts.replay = true;
      const auto verdict =
          shard->Push(members_[push.worker], facts, content.blocks, live, content.rows);
      PS_CHECK(verdict.code == wire::Code::Applied && !verdict.repeated,
               static_cast<int>(verdict.code));
    }
  }
  outcome_.replayed += retained_.size();
  MembersChanged();
}

void LocalCluster::MembersChanged() {
  for (auto& shard : shards_) shard->MembersChanged();
  ApplyHeld();
  changed_.notify_all();
}

void LocalCluster::Fail(const std::string& message) {
  outcome_.failures.push_back(message);
  changed_.notify_all();
}

}  // namespace ps::test
