#include "ps-server/core/shard.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "common/check.h"
#include "common/codec/increment.h"
#include "ps-server/core/dense_kernels.h"
#include "ps-server/core/kernels/denormals.h"
#include "ps-server/core/segment_content.h"
#include "ps-server/core/shard_load.h"

namespace ps::server {
namespace {

constexpr Clock kNoClock{std::numeric_limits<std::uint64_t>::max()};

std::size_t DenseBytes(std::uint32_t elements, wire::ValueCodec codec) {
  return codec::MaxEncodedBytes(elements, elements, wire::IndexCodec::Dense, codec);
}

}  // namespace

JobRules JobRules::Of(const JobSpec& spec, std::uint64_t records) {
  JobRules rules;
  rules.learning_rate = LearningRate(spec.optimizer.learning_rate, spec.training.epochs, records);
  rules.reference_batch =
      static_cast<double>(std::max<std::int64_t>(1, spec.optimizer.reference_batch));
  rules.optimizer = Optimizer(OptimizerRulesOf(spec.optimizer));
  rules.sparse = spec.sparsification.ratio < 1;
  rules.increments = spec.training.pull_values == "increments";
  const std::int64_t gap = spec.training.max_version_gap > 0
                               ? spec.training.max_version_gap
                               : std::max<std::int64_t>(8, 2 * spec.training.workers);
  rules.version_gap_max = static_cast<std::uint64_t>(gap);
  rules.version_gap_follows = spec.training.max_version_gap == 0;
  rules.bulk_synchronous = spec.training.staleness == 0;
  rules.loads = std::any_of(spec.checkpoint.load.begin(), spec.checkpoint.load.end(),
                            [](const LoadSourceSpec& source) { return !source.from.empty(); });
  for (std::uint32_t table = 0; table < spec.embedding_tables.size(); ++table) {
    rules.rows.push_back(RowRules::Of(spec, table, records));
  }
  return rules;
}

Shard::Shard(const LayoutView& layout, const JobRules& rules, ShardId id, Epoch epoch,
             std::uint32_t lineage, bool restoring, ShardMemory memory)
    : layout_(layout),
      rules_(rules),
      id_(id),
      lineage_(lineage),
      first_block_(layout.shard_first_block(id)),
      last_block_(layout.shard_last_block(id)),
      epoch_(epoch),
      state_(restoring ? wire::Code::Restoring : wire::Code::Blank),
      rows_(layout, rules.rows, std::move(memory)),
      store_(layout, first_block_, last_block_, rules.store_shape(), rows_.memory()),
      log_(layout.shard_elements(id) * sizeof(float) / 2) {
  if (rules.increments) shadow_.emplace(layout, first_block_, last_block_);
}

MemoryUse& MemoryUse::operator+=(const MemoryUse& other) {
  dense += other.dense;
  change_log += other.change_log;
  shadow += other.shadow;
  copied += other.copied;
  return *this;
}

MemoryUse Shard::memory_use() const {
  return {store_.bytes(), log_.bytes(), shadow_.has_value() ? shadow_->bytes() : 0,
          store_.bytes_copied() + rows_.bytes_copied()};
}

void Shard::Promote(Epoch epoch) {
  epoch_ = epoch;
  if (!shadow_.has_value()) return;
  shadow_->TakeAll(store_);
  log_.Reset(version_ + 1);
}

std::uint32_t Shard::ElementsOf(std::uint32_t block) const {
  return block >= first_block_ && block < last_block_ ? layout_.block(block).elements : 0;
}

wire::Code Shard::Init(std::span<const codec::BlockView> blocks) {
  if (state_ != wire::Code::Blank) return state_;
  if (blocks.size() != last_block_ - first_block_) return wire::Code::Malformed;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const codec::BlockView& block = blocks[i];
    if (block.header.block() != first_block_ + i || !block.dense() ||
        block.header.value_codec() != static_cast<std::uint8_t>(wire::ValueCodec::Fp32)) {
      return wire::Code::Malformed;
    }
    if (!codec::AllFinite(block)) return wire::Code::NonFinite;
  }
  std::vector<float> values(layout_.shard_elements(id_));
  for (const codec::BlockView& block : blocks) {
    float* const to = values.data() + layout_.offset_in_shard(block.header.block());
    std::memcpy(to, block.value_bytes.data(), block.value_bytes.size());
  }
  for (std::size_t i = 0; i < loaded_.size(); ++i) {
    if (!std::isnan(loaded_[i])) values[i] = loaded_[i];
  }
  loaded_ = {};
  store_.Init(std::move(values), rules_.optimizer);
  if (shadow_.has_value()) shadow_->TakeAll(store_);
  log_.Reset(version_);
  state_ = wire::Code::Applied;
  return state_;
}

Status Shard::Restore(const checkpoint::ShardImage& image, bool values_only) {
  PS_TRY(checkpoint::CheckImage(image));
  ShardLoad load(*this, {values_only, /*expect=*/true});
  checkpoint::ContentCheck check(image.shard, load, /*with_digest=*/false);
  PS_TRY(checkpoint::SendImage(image, check));
  PS_TRY(check.Finish());
  load.Finish();
  return Ok();
}

const Shard::Stream* Shard::FindStream(Incarnation incarnation) const {
  const auto at = std::lower_bound(
      streams_.begin(), streams_.end(), incarnation,
      [](const Stream& stream, Incarnation wanted) { return stream.incarnation < wanted; });
  return at != streams_.end() && at->incarnation == incarnation ? &*at : nullptr;
}

Shard::Stream& Shard::StreamOf(WorkerId worker, Incarnation incarnation, Clock first_clock) {
  const auto at = std::lower_bound(
      streams_.begin(), streams_.end(), incarnation,
      [](const Stream& stream, Incarnation wanted) { return stream.incarnation < wanted; });
  if (at != streams_.end() && at->incarnation == incarnation) return *at;
  Stream stream;
  stream.worker = worker;
  stream.incarnation = incarnation;
  stream.first_clock = first_clock;
  stream.watermark = first_clock;
  return *streams_.insert(at, stream);
}

Clock Shard::Watermark(const Member& member) const {
  const Stream* stream = FindStream(member.incarnation);
  return stream != nullptr ? stream->watermark : member.first_clock;
}

Clock Shard::SlowestClock(std::span<const Member> members) {
  if (!slowest_known_) {
    slowest_ = kNoClock;
    for (const Member& member : members) {
      if (member.Counts()) slowest_ = std::min(slowest_, Watermark(member));
    }
    slowest_known_ = true;
  }
  return slowest_;
}

void Shard::Consume(Stream& stream, Clock clock, wire::Code verdict) {
  // Only who was the slowest can raise the lowest watermark.
  if (stream.watermark <= slowest_) slowest_known_ = false;
  stream.watermark = clock;
  stream.verdicts[clock.value() % kVerdictsKept] = static_cast<std::uint8_t>(verdict);
  if (stream.verdict_count < kVerdictsKept) ++stream.verdict_count;
}

PushVerdict Shard::Push(const Member& member, const PushFacts& facts,
                        std::span<const codec::BlockView> blocks, std::uint32_t live_workers,
                        std::span<const codec::RowsView> rows) {
  if (!ready()) return PushVerdict{state_, false, false, version_};
  const Stream* const known = FindStream(member.incarnation);
  const Clock watermark = known != nullptr ? known->watermark : member.first_clock;
  if (facts.clock <= watermark) {
    const std::uint64_t age = watermark.value() - facts.clock.value();
    // A verdict that is no longer kept was seen by its sender long ago: it has gone on since.
    const wire::Code verdict =
        known != nullptr && age < known->verdict_count
            ? static_cast<wire::Code>(known->verdicts[facts.clock.value() % kVerdictsKept])
            : wire::Code::Applied;
    return PushVerdict{verdict, true, false, version_};
  }
  if (facts.clock.value() != watermark.value() + 1) {
    return PushVerdict{wire::Code::Gap, false, false, watermark.value()};
  }
  if (rules_.bulk_synchronous && held_.CountOf(member.incarnation) >= kHeldPerWorkerMax) {
    return PushVerdict{wire::Code::Overloaded, false, false, watermark.value()};
  }
  wire::Code verdict = wire::Code::Applied;
  if (!blocks.empty() || !rows.empty()) {
    const bool finite = AllFinite(blocks, rows);
    const std::uint64_t gap_max =
        rules_.version_gap_follows
            ? std::max(rules_.version_gap_max, std::uint64_t{2} * live_workers)
            : rules_.version_gap_max;
    // After a restore the base may lie ahead of the shard: that is not old.
    const bool too_old = !facts.replay && !rules_.bulk_synchronous &&
                         facts.base_version < version_ && version_ - facts.base_version > gap_max;
    if (!finite) {
      verdict = wire::Code::NonFinite;
    } else if (too_old) {
      verdict = wire::Code::TooOld;
    }
  }
  Settle(StreamOf(member.worker, member.incarnation, member.first_clock), facts.clock,
         facts.samples, verdict, blocks, rows, live_workers);
  return PushVerdict{verdict, false, true, version_};
}

void Shard::Settle(Stream& stream, Clock clock, std::uint32_t samples, wire::Code verdict,
                   std::span<const codec::BlockView> blocks, std::span<const codec::RowsView> rows,
                   std::uint32_t live_workers) {
  ++changes_;
  Consume(stream, clock, verdict);
  const bool counts = verdict == wire::Code::Applied;
  if (rules_.bulk_synchronous) {
    // It counts from here on; what is refused still counts its samples, in its place.
    held_.Add(stream.worker, stream.incarnation, clock, samples,
              counts ? blocks : std::span<const codec::BlockView>(),
              counts ? rows : std::span<const codec::RowsView>());
    return;
  }
  if (counts) Apply(blocks, rows, samples, live_workers);
  // The samples were trained whatever became of their push: schedules go on, as they do when the
  // emptied push is replayed after a restore.
  samples_trained_ += samples;
}

Status Shard::Take(const DecidedPush& push, std::span<const codec::BlockView> blocks,
                   std::span<const codec::RowsView> rows, std::uint32_t live_workers) {
  const Stream* const known = FindStream(push.incarnation);
  const Clock watermark = known != nullptr ? known->watermark : push.first_clock;
  const bool empty = blocks.empty() && rows.empty();
  const bool fits =
      ready() && push.clock.value() == watermark.value() + 1 &&
      (known == nullptr || known->worker == push.worker) &&
      (push.verdict == wire::Code::Applied ||
       (empty && (push.verdict == wire::Code::TooOld || push.verdict == wire::Code::NonFinite))) &&
      AllFinite(blocks, rows) && held_.CountOf(push.incarnation) < kHeldPerWorkerMax;
  if (!fits) {
    return Error{ErrorCode::kConflict, "shard " + std::to_string(id_.value()) + ": clock " +
                                           std::to_string(push.clock.value()) + " of incarnation " +
                                           std::to_string(push.incarnation.value()) +
                                           " cannot be the next change of its copy"};
  }
  Settle(StreamOf(push.worker, push.incarnation, push.first_clock), push.clock, push.samples,
         push.verdict, blocks, rows, live_workers);
  return Ok();
}

std::optional<Clock> Shard::ApplyHeld(std::span<const Member> members, std::uint32_t live_workers,
                                      MergeScratch& scratch) {
  if (!ready() || held_.empty()) return std::nullopt;
  // While nobody is there it is open who else pushes these clocks: whoever goes on from a
  // checkpoint does so from clocks that say it.
  const auto dead = [](const Member& member) { return member.draining; };
  if (std::all_of(members.begin(), members.end(), dead)) return std::nullopt;
  const Clock slowest = SlowestClock(members);
  if (held_.OldestClock() > slowest) return std::nullopt;
  ApplyHeldUpTo(slowest, live_workers, scratch);
  return slowest;
}

void Shard::ApplyHeldUpTo(Clock clock, std::uint32_t live_workers, MergeScratch& scratch) {
  ++changes_;
  while (!held_.empty() && held_.OldestClock() <= clock) {
    const std::vector<HeldPush> pushes = held_.TakeOldest();
    const MergedPush merged = Merge(layout_, id_, pushes, scratch);
    Apply(merged.blocks, merged.rows, merged.samples, live_workers);
    for (const HeldPush& push : pushes) samples_trained_ += push.samples;
  }
}

// The image comes from a disk: what is held must be what a push could have brought.
Status Shard::CheckHeld(const checkpoint::ShardImage& image) const {
  for (const checkpoint::HeldPush& push : image.held) {
    SegmentContent content;
    const Status parsed = ParsePush(layout_, id_, push.bytes, content);
    // It has its verdict.
    const bool known = std::any_of(
        image.marks.begin(), image.marks.end(), [&push](const checkpoint::WorkerMark& mark) {
          return mark.incarnation == push.incarnation && push.clock <= mark.watermark;
        });
    if (!known || !parsed.ok() || !AllFinite(content.blocks, content.rows)) {
      return Error{ErrorCode::kInvalid, "shard " + std::to_string(id_.value()) +
                                            ": the image has a held push that cannot be"};
    }
  }
  return Ok();
}

void Shard::Apply(std::span<const codec::BlockView> blocks, std::span<const codec::RowsView> rows,
                  std::uint32_t samples, std::uint32_t live_workers) {
  ++version_;
  if (blocks.empty() && rows.empty()) return;
  const kernels::DenormalsAreZero denormals_are_zero;
  const double weight = static_cast<double>(samples) / rules_.reference_batch;
  rows_.Push(rows, samples_trained_, weight);
  const kernels::Step step =
      rules_.optimizer.StepOf(rules_.learning_rate.At(samples_trained_), weight, version_);
  bool whole_blocks = false;
  for (const codec::BlockView& block : blocks) {
    switch (layout_.block(block.header.block()).rule) {
      case TableRule::Sgd:
        store_.Update(block, rules_.optimizer, step);
        whole_blocks = whole_blocks || step.decay != 0;
        break;
      case TableRule::Average:
        store_.Average(block, 1.0f / static_cast<float>(std::max(1u, live_workers)));
        break;
      case TableRule::Maximum: store_.Maximum(block); break;
    }
  }
  if (shadow_.has_value()) {
    log_.Append(version_, shadow_->Follow(blocks, whole_blocks, store_));
  } else {
    log_.Append(version_, blocks, whole_blocks);
  }
}

wire::ValueCodec Shard::PullCodecOf(std::uint32_t block, bool fp32) const {
  return fp32 || layout_.block(block).rule != TableRule::Sgd ? wire::ValueCodec::Fp32
                                                             : wire::ValueCodec::Bf16;
}

std::span<const float> Shard::PulledValues(std::uint32_t block, bool fp32,
                                           std::vector<float>& values) const {
  return FromShadow(block, fp32) ? shadow_->ValuesOf(block, values)
                                 : store_.ValuesOf(block, values);
}

void Shard::PulledValuesAt(std::uint32_t block, bool fp32, std::span<const std::uint16_t> positions,
                           std::vector<float>& values) const {
  if (FromShadow(block, fp32)) {
    shadow_->Gather(block, positions, values);
  } else {
    store_.Gather(block, positions, values);
  }
}

std::size_t Shard::MaxPullBytes(bool fp32, std::span<const codec::RowsView> rows) const {
  const std::size_t hash = shadow_.has_value() ? sizeof(std::uint64_t) : 0;
  return MaxBlockBytes(fp32) + hash + rows_.PullBytes(rows, fp32);
}

std::size_t Shard::MaxBlockBytes(bool fp32) const {
  std::size_t bytes = 0;
  for (std::uint32_t block = first_block_; block < last_block_; ++block) {
    bytes += DenseBytes(layout_.block(block).elements, PullCodecOf(block, fp32));
  }
  return bytes;
}

void Shard::WriteSnapshot(bool fp32, PullScratch& scratch, ByteBuffer& out) const {
  std::size_t at = out.size();
  out.resize(at + MaxBlockBytes(fp32));
  for (std::uint32_t block = first_block_; block < last_block_; ++block) {
    at += codec::EncodeBlock(block, layout_.block(block).elements, {},
                             PulledValues(block, fp32, scratch.values), wire::IndexCodec::Dense,
                             PullCodecOf(block, fp32), out.data() + at, {});
  }
  out.resize(at);
}

bool Shard::WriteChanges(std::uint64_t since, bool fp32, std::size_t most, PullScratch& scratch,
                         ByteBuffer& out) const {
  const std::size_t blocks = last_block_ - first_block_;
  scratch.touched.assign(blocks, 0);
  const auto elements_of = [&](std::size_t index) {
    return layout_.block(first_block_ + static_cast<std::uint32_t>(index)).elements;
  };
  scratch.bitmap_begins.assign(blocks + 1, 0);
  for (std::size_t index = 0; index < blocks; ++index) {
    scratch.bitmap_begins[index + 1] =
        scratch.bitmap_begins[index] + BitmapWords(elements_of(index));
  }
  if (scratch.bitmap.size() < scratch.bitmap_begins.back()) {
    scratch.bitmap.resize(scratch.bitmap_begins.back());
  }
  const auto bitmap_of = [&](std::size_t index) {
    return BlockBitmap(scratch.bitmap.data() + scratch.bitmap_begins[index],
                       BitmapWords(elements_of(index)));
  };
  log_.ForEachAfter(since, [&](const ChangeLog::Touched& touched) {
    const std::size_t index = touched.block - first_block_;
    std::uint8_t& mark = scratch.touched[index];
    if (mark == 2) return;
    if (touched.whole) {
      mark = 2;
      return;
    }
    const BlockBitmap bitmap = bitmap_of(index);
    if (mark == 0) std::fill(bitmap.begin(), bitmap.end(), 0);
    mark = 1;
    MarkPositions(touched.positions(), bitmap);
  });

  std::size_t expected = 0;
  scratch.plans.assign(blocks, wire::IndexCodec::Dense);
  for (std::size_t index = 0; index < blocks; ++index) {
    if (scratch.touched[index] == 0) continue;
    const std::uint32_t elements = elements_of(index);
    const wire::ValueCodec codec =
        PullCodecOf(first_block_ + static_cast<std::uint32_t>(index), fp32);
    std::size_t bytes = DenseBytes(elements, codec);
    if (scratch.touched[index] == 1) {
      const std::uint32_t count = CountPositions(bitmap_of(index));
      const wire::IndexCodec choice = codec::ChooseIndexCodec(elements, count);
      const std::size_t sparse = codec::MaxEncodedBytes(elements, count, choice, codec);
      if (sparse < bytes) {
        scratch.plans[index] = choice;
        bytes = sparse;
      }
    }
    expected += bytes;
  }
  if (expected > 0 && expected >= most) return false;

  std::size_t at = out.size();
  out.resize(at + expected);
  for (std::size_t index = 0; index < blocks; ++index) {
    if (scratch.touched[index] == 0) continue;
    const auto block = first_block_ + static_cast<std::uint32_t>(index);
    const std::uint32_t elements = elements_of(index);
    const wire::IndexCodec plan = scratch.plans[index];
    if (plan == wire::IndexCodec::Dense) {
      at += codec::EncodeBlock(block, elements, {}, PulledValues(block, fp32, scratch.values), plan,
                               PullCodecOf(block, fp32), out.data() + at, {});
      continue;
    }
    CollectPositions(bitmap_of(index), scratch.positions);
    PulledValuesAt(block, fp32, scratch.positions, scratch.values);
    at += codec::EncodeBlock(block, elements, scratch.positions, scratch.values, plan,
                             PullCodecOf(block, fp32), out.data() + at, {});
  }
  out.resize(at);
  return true;
}

std::optional<wire::PullContent> Shard::WriteIncrements(std::uint64_t since, PullScratch& scratch,
                                                        ByteBuffer& out) const {
  const std::size_t snapshot = MaxBlockBytes(false);
  const std::size_t blocks = last_block_ - first_block_;
  // Blocks that changed as a whole are sent once, with all that came before and after that.
  std::vector<std::uint8_t>& touched = scratch.touched;
  const auto find_whole = [&] {
    touched.assign(blocks, 0);
    log_.ForEachAfter(since, [&](const ChangeLog::Touched& one) {
      if (one.whole) touched[one.block - first_block_] = 1;
    });
  };
  find_whole();
  std::size_t bytes = 0;
  for (std::size_t index = 0; index < blocks; ++index) {
    const auto block = first_block_ + static_cast<std::uint32_t>(index);
    if (touched[index] != 0) {
      bytes += DenseBytes(layout_.block(block).elements, PullCodecOf(block, false));
    }
  }
  log_.ForEachAfter(since, [&](const ChangeLog::Touched& one) {
    if (touched[one.block - first_block_] == 0) bytes += one.encoded.size();
  });
  if (bytes == 0) return wire::PullContent::Unchanged;

  // Many pushes change the same entries again: then their values may be fewer. That is looked into
  // only where it can be so.
  const bool too_many = version_ - since > codec::kIncrementPushesMax;
  if (too_many || bytes > snapshot / 8) {
    const std::size_t most = too_many ? snapshot : std::min(bytes, snapshot);
    if (WriteChanges(since, false, most, scratch, out)) return wire::PullContent::Sparse;
    if (too_many || bytes >= snapshot) return std::nullopt;
    find_whole();  // WriteChanges() had the scratch
  }

  const bool hashed = since / kHashedPushes != version_ / kHashedPushes;
  std::size_t at = out.size();
  out.resize(at + bytes + (hashed ? sizeof(std::uint64_t) : 0));
  if (hashed) {
    const std::uint64_t hash = shadow_->Hash();
    std::memcpy(out.data() + at, &hash, sizeof(hash));
    at += sizeof(hash);
  }
  for (std::size_t index = 0; index < blocks; ++index) {
    const auto block = first_block_ + static_cast<std::uint32_t>(index);
    if (touched[index] == 0) continue;
    at += codec::EncodeBlock(block, layout_.block(block).elements, {},
                             PulledValues(block, false, scratch.values), wire::IndexCodec::Dense,
                             PullCodecOf(block, false), out.data() + at, {});
  }
  log_.ForEachAfter(since, [&](const ChangeLog::Touched& one) {
    if (touched[one.block - first_block_] != 0) return;
    std::memcpy(out.data() + at, one.encoded.data(), one.encoded.size());
    at += one.encoded.size();
  });
  PS_CHECK(at == out.size(), id_, at, out.size());
  return hashed ? wire::PullContent::IncrementsAndHash : wire::PullContent::Increments;
}

wire::PullContent Shard::Pull(const PullQuery& query, PullScratch& scratch, ByteBuffer& out,
                              std::span<const codec::RowsView> rows) {
  PS_CHECK(ready(), id_);
  const wire::PullContent content = PullBlocks(query, scratch, out);
  rows_.Pull(rows, query.fp32, scratch.rows, out);
  return content;
}

wire::PullContent Shard::PullBlocks(const PullQuery& query, PullScratch& scratch,
                                    ByteBuffer& out) const {
  const bool known = !query.snapshot && query.version != 0 && query.lineage == lineage_ &&
                     query.version <= version_ && log_.Covers(query.version);
  if (known) {
    if (query.version == version_) return wire::PullContent::Unchanged;
    const std::size_t before = out.size();
    if (shadow_.has_value() && !query.fp32) {
      const auto content = WriteIncrements(query.version, scratch, out);
      if (content.has_value()) return *content;
    } else if (WriteChanges(query.version, query.fp32, MaxBlockBytes(query.fp32), scratch, out)) {
      return out.size() == before ? wire::PullContent::Unchanged : wire::PullContent::Sparse;
    }
  }
  WriteSnapshot(query.fp32, scratch, out);
  return wire::PullContent::Snapshot;
}

FrozenShard Shard::Freeze(JobId job, Round round) const {
  PS_CHECK(ready(), id_);
  checkpoint::ShardImage image;
  image.job = job;
  image.round = round;
  image.shard = id_;
  image.epoch = epoch_;
  image.lineage = lineage_;
  image.version = version_;
  image.samples_trained = samples_trained_;
  image.first_block = first_block_;
  for (std::uint32_t block = first_block_; block < last_block_; ++block) {
    image.block_elements.push_back(layout_.block(block).elements);
  }
  image.held = held_.Save();
  for (const Stream& stream : streams_) {
    checkpoint::WorkerMark mark{
        stream.worker, stream.incarnation, stream.first_clock, stream.watermark, {}};
    for (std::uint64_t age = stream.verdict_count; age > 0; --age) {
      mark.verdicts.push_back(
          stream.verdicts[(stream.watermark.value() - age + 1) % kVerdictsKept]);
    }
    image.marks.push_back(std::move(mark));
  }
  return {std::move(image), identity_, store_.Freeze(), rows_.Freeze()};
}

}  // namespace ps::server
