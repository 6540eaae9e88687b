#include "ps-server/core/shard_load.h"

#include <algorithm>
#include <string>
#include <utility>

#include "common/check.h"

namespace ps::server {

ShardLoad::~ShardLoad() {
  if (!begun_) return;
  shard_.store_.Clear();
  shard_.rows_.Clear();
}

Status ShardLoad::CheckFits(const checkpoint::ShardImage& image) const {
  const auto fits = [&] {
    if (image.shard != shard_.id_ || image.first_block != shard_.first_block_) return false;
    if (image.block_elements.size() != shard_.last_block_ - shard_.first_block_) return false;
    for (std::size_t i = 0; i < image.block_elements.size(); ++i) {
      const auto block = shard_.first_block_ + static_cast<std::uint32_t>(i);
      if (image.block_elements[i] != shard_.layout_.block(block).elements) return false;
    }
    return true;
  };
  if (!fits()) {
    return Error{ErrorCode::kInvalid, "the image in the checkpoint is of another layout"};
  }
  return Ok();
}

Status ShardLoad::TakeStreams(const checkpoint::ShardImage& image) {
  for (const checkpoint::WorkerMark& mark : image.marks) {
    if (mark.verdicts.size() > kVerdictsKept || mark.watermark < mark.first_clock ||
        mark.verdicts.size() > mark.watermark.value() - mark.first_clock.value()) {
      return Error{ErrorCode::kInvalid, "the image has a watermark that cannot be"};
    }
    Shard::Stream stream;
    stream.worker = mark.worker;
    stream.incarnation = mark.incarnation;
    stream.first_clock = mark.first_clock;
    stream.watermark = mark.watermark;
    stream.verdict_count = static_cast<std::uint32_t>(mark.verdicts.size());
    std::uint64_t clock = mark.watermark.value() - mark.verdicts.size();
    for (const std::uint8_t verdict : mark.verdicts) {
      // Another one would be answered to whoever repeats the push, and never settle it.
      if (verdict != static_cast<std::uint8_t>(wire::Code::Applied) &&
          verdict != static_cast<std::uint8_t>(wire::Code::TooOld) &&
          verdict != static_cast<std::uint8_t>(wire::Code::NonFinite)) {
        return Error{ErrorCode::kInvalid, "the image has a verdict that cannot be"};
      }
      stream.verdicts[++clock % kVerdictsKept] = verdict;
    }
    streams_.push_back(stream);
  }
  std::sort(streams_.begin(), streams_.end(),
            [](const Shard::Stream& left, const Shard::Stream& right) {
              return left.incarnation < right.incarnation;
            });
  const auto twice = std::adjacent_find(streams_.begin(), streams_.end(),
                                        [](const Shard::Stream& left, const Shard::Stream& right) {
                                          return left.incarnation == right.incarnation;
                                        });
  if (twice != streams_.end()) {
    return Error{ErrorCode::kInvalid, "the image names an incarnation twice"};
  }
  return Ok();
}

Status ShardLoad::Begin(const checkpoint::ShardMeta& meta) {
  PS_CHECK(!begun_, "a second meta");
  const checkpoint::ShardImage& image = meta.image;
  const std::string name = "shard " + std::to_string(shard_.id_.value()) + ": ";
  if (shard_.state_ != wire::Code::Restoring) {
    return Error{ErrorCode::kConflict, name + "does not wait for a checkpoint"};
  }
  const auto begin = [&]() -> Status {
    PS_TRY(CheckFits(image));
    if (!options_.values_only) {
      PS_TRY(TakeStreams(image));
      PS_TRY(shard_.CheckHeld(image));
    }
    PS_TRY(shard_.store_.BeginLoad(image.slots,
                                   options_.values_only ? &shard_.rules_.optimizer : nullptr));
    begun_ = true;  // what is not finished is undone
    return shard_.rows_.BeginLoad(meta, shard_.id_, options_.values_only, options_.expect);
  };
  const Status begun = begin();
  if (!begun.ok()) return Annotate(begun.error(), name);
  head_ = image;
  return Ok();
}

Status ShardLoad::AddBlock(std::size_t, std::string_view content) {
  shard_.store_.LoadBlock(content);
  return Ok();
}

Status ShardLoad::AddRows(std::uint32_t table, std::span<const std::byte> records) {
  const Status added = shard_.rows_.LoadRows(table, records);
  if (added.ok()) return added;
  return Annotate(added.error(), "shard " + std::to_string(shard_.id_.value()) + ": ");
}

Status ShardLoad::AddSketch(std::uint32_t table, std::span<const std::uint8_t> counters) {
  shard_.rows_.LoadSketch(table, counters);
  return Ok();
}

void ShardLoad::Finish() {
  PS_CHECK(begun_, "a load without a meta");
  begun_ = false;
  shard_.rows_.EndLoad();
  if (!options_.values_only) {
    shard_.held_.Load(head_.held);
    shard_.version_ = head_.version;
    shard_.samples_trained_ = head_.samples_trained;
  }
  shard_.streams_ = std::move(streams_);
  if (shard_.shadow_.has_value()) shard_.shadow_->TakeAll(shard_.store_);
  shard_.log_.Reset(shard_.version_);
  shard_.slowest_known_ = false;
  shard_.state_ = wire::Code::Applied;
}

}  // namespace ps::server
