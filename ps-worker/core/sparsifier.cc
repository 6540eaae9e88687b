#include "ps-worker/core/sparsifier.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "common/check.h"

namespace ps::worker {
namespace {

constexpr std::size_t kChunk = 2048;  // floats: three arrays of a chunk lie in the L1 cache
constexpr std::size_t kLine = 16;     // floats that are sampled together
constexpr double kWarmupStart = 0.25;
constexpr double kSampledEntries = 500;  // sampled values above the threshold, if there are enough
constexpr double kAcceptLow = 0.8;
constexpr double kAcceptHigh = 1.3;
constexpr double kSurplusGain = 0.25;  // part of the surplus that the next step makes good
constexpr std::uint32_t kMagnitude = 0x7fffffffu;

std::uint64_t SplitMix(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

float Bounded(float value) {
  constexpr float kLimit = Sparsifier::kLimit;
  const float low = value < -kLimit ? -kLimit : value;
  return low > kLimit ? kLimit : low;
}

std::int32_t MagnitudeBits(float value) {
  return static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(value) & kMagnitude);
}

double SumOfSquares(std::span<const float> values) {
  std::array<double, 8> lanes{};
  std::size_t at = 0;
  for (; at + lanes.size() <= values.size(); at += lanes.size()) {
    for (std::size_t lane = 0; lane < lanes.size(); ++lane) {
      const double value = values[at + lane];
      lanes[lane] += value * value;
    }
  }
  double sum = 0;
  for (; at < values.size(); ++at) sum += double{values[at]} * values[at];
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace

std::optional<wire::IndexCodec> IndexCodecNamed(std::string_view name) {
  if (name == "auto") return std::nullopt;
  if (name == "rice") return wire::IndexCodec::Rice;
  if (name == "gap8") return wire::IndexCodec::Gap8;
  if (name == "raw16") return wire::IndexCodec::Raw16;
  PS_CHECK(name == "bitmap", name);
  return wire::IndexCodec::Bitmap;
}

wire::ValueCodec ValueCodecNamed(std::string_view name) {
  if (name == "fp32") return wire::ValueCodec::Fp32;
  if (name == "bf16") return wire::ValueCodec::Bf16;
  if (name == "int8") return wire::ValueCodec::Int8;
  if (name == "4bit") return wire::ValueCodec::Bits4;
  if (name == "2bit") return wire::ValueCodec::Bits2;
  PS_CHECK(name == "1bit", name);
  return wire::ValueCodec::Bits1;
}

double WarmupRatio(double ratio, double warmup_epochs, double epoch) {
  if (warmup_epochs <= 0 || epoch >= warmup_epochs || ratio >= kWarmupStart) return ratio;
  const double done = std::max(epoch, 0.0) / warmup_epochs;
  return kWarmupStart * std::pow(ratio / kWarmupStart, done);
}

Sparsifier::Sparsifier(const LayoutView& layout, std::uint32_t table,
                       std::uint64_t selected_elements, const SparsifierOptions& options)
    : layout_(layout), options_(options) {
  PS_CHECK(options.momentum >= 0 && options.momentum < 1, options.momentum);
  PS_CHECK(options.beta1 >= 0 && options.beta1 < 1, options.beta1);
  PS_CHECK(options.beta2 >= 0 && options.beta2 < 1, options.beta2);
  PS_CHECK(options.epsilon > 0, options.epsilon);
  PS_CHECK(options.index_codec != wire::IndexCodec::Dense, "dense blocks follow from the ratio");
  std::uint64_t elements = 0;
  std::uint32_t largest = 0;
  for (std::uint32_t number = 0; number < layout_.block_count(); ++number) {
    const Block& block = layout_.block(number);
    if (block.table != table) continue;
    if (block_count_ == 0) first_block_ = number;
    ++block_count_;
    elements += block.elements;
    largest = std::max(largest, block.elements);
    if (elements <= selected_elements) {
      selected_blocks_ = block_count_;
      selected_elements_ = elements;
    }
  }
  PS_CHECK(selected_elements_ == selected_elements, selected_elements, selected_elements_,
           elements);
  residual_.assign(elements, 0.0f);
  const bool adam = options_.rule == AccumulationRule::kAdam;
  if (options_.rule == AccumulationRule::kNesterov || (adam && options_.beta1 > 0)) {
    momentum_.assign(elements, 0.0f);
  }
  if (adam) squares_.assign(elements, 0.0f);
  selections_.resize(block_count_);
  scratch_indices_.resize(std::size_t{largest} + kLine);
  scratch_values_.resize(largest);
  scratch_sent_.resize(largest);
}

Result<float> Sparsifier::Scale(std::span<const float> gradient) const {
  const std::int32_t limit = MagnitudeBits(kLimit);
  bool bad = false;
  for (std::size_t begin = 0; begin < gradient.size() && !bad; begin += kChunk) {
    const std::size_t end = std::min(begin + kChunk, gradient.size());
    std::int32_t beyond = 0;
    for (std::size_t i = begin; i < end; ++i) beyond |= MagnitudeBits(gradient[i]) > limit ? 1 : 0;
    bad = beyond != 0;
  }
  if (bad) {
    const auto at = std::find_if(gradient.begin(), gradient.end(),
                                 [limit](float value) { return MagnitudeBits(value) > limit; });
    return Error{ErrorCode::kInvalid,
                 "the gradient is not finite: element " + std::to_string(at - gradient.begin()) +
                     " of " + std::to_string(gradient.size()) + " is " + std::to_string(*at)};
  }
  if (options_.clip_norm <= 0) return 1.0f;
  const double norm = std::sqrt(SumOfSquares(gradient));
  return norm > options_.clip_norm ? static_cast<float>(options_.clip_norm / norm) : 1.0f;
}

void Sparsifier::Accumulate(std::span<const float> gradient, float scale, std::size_t begin,
                            std::size_t end) {
  if (options_.rule == AccumulationRule::kAdam) return AccumulateAdam(gradient, scale, begin, end);
  const float* g = gradient.data();
  float* v = residual_.data();
  if (momentum_.empty()) {
    for (std::size_t i = begin; i < end; ++i) v[i] = Bounded(v[i] + scale * g[i]);
    return;
  }
  const float m = options_.momentum;
  float* u = momentum_.data();
  for (std::size_t i = begin; i < end; ++i) {
    const float clipped = scale * g[i];
    const float moved = Bounded(m * u[i] + clipped);
    u[i] = moved;
    v[i] = Bounded(v[i] + (m * moved + clipped));
  }
}

void Sparsifier::AccumulateAdam(std::span<const float> gradient, float scale, std::size_t begin,
                                std::size_t end) {
  const float* g = gradient.data();
  float* v = residual_.data();
  float* s = squares_.data();
  const auto b1 = static_cast<float>(options_.beta1);
  const auto b2 = static_cast<float>(options_.beta2);
  const auto epsilon = static_cast<float>(options_.epsilon);
  if (momentum_.empty()) {
    for (std::size_t i = begin; i < end; ++i) {
      const float clipped = scale * g[i];
      s[i] = Bounded(b2 * s[i] + (1 - b2) * clipped * clipped);
      v[i] = Bounded(v[i] + clipped / (std::sqrt(s[i] * correction2_) + epsilon));
    }
    return;
  }
  float* u = momentum_.data();
  for (std::size_t i = begin; i < end; ++i) {
    const float clipped = scale * g[i];
    u[i] = b1 * u[i] + (1 - b1) * clipped;
    s[i] = Bounded(b2 * s[i] + (1 - b2) * clipped * clipped);
    v[i] = Bounded(v[i] + u[i] * correction1_ / (std::sqrt(s[i] * correction2_) + epsilon));
  }
}

float Sparsifier::Addend(float gradient, float scale, std::size_t at) const {
  const float clipped = scale * gradient;
  if (options_.rule == AccumulationRule::kAdam) {
    const auto b1 = static_cast<float>(options_.beta1);
    const auto b2 = static_cast<float>(options_.beta2);
    const float moved = momentum_.empty() ? clipped : b1 * momentum_[at] + (1 - b1) * clipped;
    const float square = Bounded(b2 * squares_[at] + (1 - b2) * clipped * clipped);
    return moved * correction1_ /
           (std::sqrt(square * correction2_) + static_cast<float>(options_.epsilon));
  }
  if (momentum_.empty()) return clipped;
  const float m = options_.momentum;
  return m * Bounded(m * momentum_[at] + clipped) + clipped;
}

float Sparsifier::SampleThreshold(std::span<const float> gradient, float scale, double aim) {
  const std::size_t n = selected_elements_;
  const double wanted = std::max(
      {static_cast<double>(n) / 100, kSampledEntries * static_cast<double>(n) / aim, 4096.0});
  // A sample of more than a quarter would cost more than the pass it spares.
  const std::size_t lines = (n + kLine - 1) / kLine;
  const auto sampled = static_cast<std::size_t>(
      std::clamp(wanted / kLine, 1.0, std::max(static_cast<double>(lines) / 4, 256.0)));
  const float* v = residual_.data();
  sample_.clear();
  const std::size_t strata = std::min(sampled, lines);
  for (std::size_t stratum = 0; stratum < strata; ++stratum) {
    const std::size_t first = lines * stratum / strata;
    const std::size_t width = lines * (stratum + 1) / strata - first;
    const std::uint64_t random = SplitMix(SplitMix(options_.seed + steps_) ^ stratum);
    const std::size_t begin = (first + random % width) * kLine;
    const std::size_t end = std::min(begin + kLine, n);
    for (std::size_t i = begin; i < end; ++i) {
      const float addend = accumulated_ ? 0 : Addend(gradient[i], scale, i);
      sample_.push_back(std::abs(Bounded(v[i] + addend)));
    }
  }
  const double share = aim / static_cast<double>(n);
  const auto rank = static_cast<std::size_t>(
      std::clamp(std::round(share * static_cast<double>(sample_.size() + 1)), 1.0,
                 static_cast<double>(sample_.size())));
  const auto at = sample_.begin() + static_cast<std::ptrdiff_t>(rank - 1);
  std::nth_element(sample_.begin(), at, sample_.end(), std::greater<>());
  return *at;
}

float Sparsifier::ScanThreshold(double aim) const {
  constexpr int kShift = 20;  // eight classes per power of two
  std::array<std::uint32_t, (kMagnitude >> kShift) + 1> classes{};
  for (std::size_t i = 0; i < selected_elements_; ++i) {
    ++classes[static_cast<std::uint32_t>(MagnitudeBits(residual_[i])) >> kShift];
  }
  double above = 0;
  for (std::size_t at = classes.size() - 1; at > 0; --at) {
    above += classes[at];
    if (above >= aim) return std::bit_cast<float>(static_cast<std::uint32_t>(at) << kShift);
  }
  return 0;
}

void Sparsifier::Scan(std::size_t block_begin, std::size_t begin, std::size_t end,
                      float threshold) {
  // Magnitudes compare like their bits. Zero is never worth an entry.
  const std::int32_t least = std::max(MagnitudeBits(threshold), 1);
  const float* v = residual_.data();
  std::uint16_t* out = scratch_indices_.data();
  std::size_t count = scratch_count_;
  std::size_t at = begin;
  for (; at + kLine <= end; at += kLine) {
    std::int32_t any = 0;
    for (std::size_t lane = 0; lane < kLine; ++lane) {
      any |= MagnitudeBits(v[at + lane]) >= least ? 1 : 0;
    }
    if (any == 0) continue;
    for (std::size_t lane = 0; lane < kLine; ++lane) {
      out[count] = static_cast<std::uint16_t>(at + lane - block_begin);
      count += MagnitudeBits(v[at + lane]) >= least ? 1 : 0;
    }
  }
  for (; at < end; ++at) {
    out[count] = static_cast<std::uint16_t>(at - block_begin);
    count += MagnitudeBits(v[at]) >= least ? 1 : 0;
  }
  scratch_count_ = count;
}

void Sparsifier::BeginSelection() {
  flushing_ = false;
  sent_squares_ = 0;
  indices_.clear();
  selections_.assign(block_count_, Selection());
}

void Sparsifier::EndSparseBlock(std::uint32_t at) {
  Selection& selection = selections_[at];
  selection.mode = scratch_count_ > 0 ? Mode::kSparse : Mode::kNothing;
  selection.first = indices_.size();
  selection.count = static_cast<std::uint32_t>(scratch_count_);
  indices_.insert(indices_.end(), scratch_indices_.begin(),
                  scratch_indices_.begin() + static_cast<std::ptrdiff_t>(scratch_count_));
  scratch_count_ = 0;
}

void Sparsifier::SelectSparse(std::span<const float> gradient, float scale, double ratio) {
  const double target = std::max(ratio * static_cast<double>(selected_elements_), 1.0);
  const double aim =
      std::clamp(target - kSurplusGain * surplus_, std::max(0.9 * target, 1.0), 1.1 * target);
  const float threshold = SampleThreshold(gradient, scale, aim);
  // Each chunk is accumulated and scanned while it is in the cache.
  for (std::uint32_t at = 0; at < selected_blocks_; ++at) {
    const std::size_t block_begin = BlockAt(at).table_offset;
    const std::size_t block_end = block_begin + BlockAt(at).elements;
    for (std::size_t begin = block_begin; begin < block_end; begin += kChunk) {
      const std::size_t end = std::min(begin + kChunk, block_end);
      if (!accumulated_) Accumulate(gradient, scale, begin, end);
      Scan(block_begin, begin, end, threshold);
    }
    EndSparseBlock(at);
  }
  if (static_cast<double>(indices_.size()) < kAcceptLow * aim) {
    const float lower = ScanThreshold(aim);
    indices_.clear();
    for (std::uint32_t at = 0; at < selected_blocks_; ++at) {
      const std::size_t begin = BlockAt(at).table_offset;
      Scan(begin, begin, begin + BlockAt(at).elements, lower);
      EndSparseBlock(at);
    }
    // A class of the histogram may hold many more values than were asked for.
    if (static_cast<double>(indices_.size()) > aim) Trim(static_cast<std::size_t>(aim));
  }
  if (static_cast<double>(indices_.size()) > kAcceptHigh * aim) {
    Trim(static_cast<std::size_t>(aim));
  }
  // Where there is little but zeros, too few entries are no debt to make good later.
  surplus_ = std::clamp(surplus_ + static_cast<double>(indices_.size()) - target, -target, target);
}

void Sparsifier::Trim(std::size_t keep) {
  keep = std::max<std::size_t>(keep, 1);
  if (indices_.size() <= keep) return;
  sample_.clear();
  for (std::uint32_t at = 0; at < selected_blocks_; ++at) {
    const float* v = residual_.data() + BlockAt(at).table_offset;
    const Selection& selection = selections_[at];
    for (std::uint32_t i = 0; i < selection.count; ++i) {
      sample_.push_back(std::abs(v[indices_[selection.first + i]]));
    }
  }
  const auto last = sample_.begin() + static_cast<std::ptrdiff_t>(keep - 1);
  std::nth_element(sample_.begin(), last, sample_.end(), std::greater<>());
  const float threshold = *last;
  auto equal_left = static_cast<std::size_t>(std::count(sample_.begin(), last + 1, threshold));
  std::size_t to = 0;
  for (std::uint32_t at = 0; at < selected_blocks_; ++at) {
    const float* v = residual_.data() + BlockAt(at).table_offset;
    Selection& selection = selections_[at];
    const std::size_t first = to;
    for (std::uint32_t i = 0; i < selection.count; ++i) {
      const std::uint16_t index = indices_[selection.first + i];
      const float magnitude = std::abs(v[index]);
      if (magnitude < threshold) continue;
      if (magnitude == threshold) {
        if (equal_left == 0) continue;
        --equal_left;
      }
      indices_[to++] = index;
    }
    selection.first = first;
    selection.count = static_cast<std::uint32_t>(to - first);
    if (selection.count == 0) selection.mode = Mode::kNothing;
  }
  indices_.resize(to);
}

void Sparsifier::BeginStep() {
  ++steps_;
  if (options_.rule != AccumulationRule::kAdam) return;
  const auto t = static_cast<double>(steps_);
  // Without momentum u is g.
  correction1_ = momentum_.empty() ? 1 : static_cast<float>(1 / (1 - std::pow(options_.beta1, t)));
  correction2_ = static_cast<float>(1 / (1 - std::pow(options_.beta2, t)));
}

Status Sparsifier::Step(std::span<const float> gradient, double ratio) {
  PS_CHECK(gradient.size() == residual_.size(), gradient.size(), residual_.size());
  BeginSelection();
  const float scale = PS_TRY(Scale(gradient));
  BeginStep();
  accumulated_ = false;
  SelectFrom(gradient, scale, ratio);
  return Ok();
}

Status Sparsifier::AddLocalStep(std::span<const float> gradient, float weight, float rate,
                                std::span<float> parameters) {
  PS_CHECK(gradient.size() == residual_.size(), gradient.size(), residual_.size());
  PS_CHECK(parameters.size() == residual_.size(), parameters.size(), residual_.size());
  const float scale = PS_TRY(Scale(gradient));
  BeginStep();
  std::array<float, kChunk> before;
  for (std::size_t begin = 0; begin < residual_.size(); begin += kChunk) {
    const std::size_t end = std::min(begin + kChunk, residual_.size());
    float* const v = residual_.data() + begin;
    const std::size_t count = end - begin;
    std::copy_n(v, count, before.data());
    std::fill_n(v, count, 0.0f);
    Accumulate(gradient, scale, begin, end);
    for (std::size_t i = 0; i < count; ++i) {
      parameters[begin + i] -= rate * v[i];
      v[i] = Bounded(before[i] + weight * v[i]);
    }
  }
  return Ok();
}

void Sparsifier::Select(double ratio) {
  BeginSelection();
  accumulated_ = true;
  SelectFrom({}, 1, ratio);
}

void Sparsifier::SelectFrom(std::span<const float> gradient, float scale, double ratio) {
  PS_CHECK(ratio > 0, ratio);
  std::uint32_t dense_from = 0;
  if (ratio < 1 && selected_blocks_ > 0) {
    SelectSparse(gradient, scale, ratio);
    dense_from = selected_blocks_;
  }
  for (std::uint32_t at = dense_from; at < block_count_; ++at) {
    const Block& block = BlockAt(at);
    if (!accumulated_) {
      Accumulate(gradient, scale, block.table_offset, block.table_offset + block.elements);
    }
    selections_[at].mode = Mode::kDense;
    selections_[at].count = block.elements;
  }
}

void Sparsifier::Flush() {
  BeginSelection();
  flushing_ = true;
  for (std::uint32_t at = 0; at < block_count_; ++at) {
    const Block& block = BlockAt(at);
    const auto begin = residual_.begin() + static_cast<std::ptrdiff_t>(block.table_offset);
    const bool empty =
        std::all_of(begin, begin + block.elements, [](float value) { return value == 0.0f; });
    if (empty) continue;
    selections_[at].mode = Mode::kDense;
    selections_[at].count = block.elements;
  }
}

wire::ValueCodec Sparsifier::ValueCodecOf(std::uint32_t at) const {
  if (flushing_) return wire::ValueCodec::Fp32;
  const bool large = at < selected_blocks_;
  return large || options_.value_codec == wire::ValueCodec::Fp32 ? options_.value_codec
                                                                 : wire::ValueCodec::Bf16;
}

std::size_t Sparsifier::MaxBlockBytes(std::uint32_t at) const {
  const Selection& selection = selections_[at];
  if (selection.mode == Mode::kNothing) return 0;
  const std::uint32_t elements = BlockAt(at).elements;
  const wire::IndexCodec index = selection.mode == Mode::kDense ? wire::IndexCodec::Dense
                                 : options_.index_codec.has_value()
                                     ? *options_.index_codec
                                     : codec::ChooseIndexCodec(elements, selection.count);
  return codec::MaxEncodedBytes(elements, selection.count, index, ValueCodecOf(at));
}

std::size_t Sparsifier::MaxBytes() const {
  std::size_t bytes = 0;
  for (std::uint32_t at = 0; at < block_count_; ++at) bytes += MaxBlockBytes(at);
  return bytes;
}

std::pair<std::uint32_t, std::uint32_t> Sparsifier::BlocksOf(ShardId shard) const {
  const std::uint32_t table_end = first_block_ + block_count_;
  const auto within = [this, table_end](std::uint32_t block) {
    return std::clamp(block, first_block_, table_end) - first_block_;
  };
  return {within(layout_.shard_first_block(shard)), within(layout_.shard_last_block(shard))};
}

std::size_t Sparsifier::MaxShardBytes(ShardId shard) const {
  const auto blocks = BlocksOf(shard);
  std::size_t bytes = 0;
  for (std::uint32_t at = blocks.first; at < blocks.second; ++at) bytes += MaxBlockBytes(at);
  return bytes;
}

std::uint64_t Sparsifier::entries() const {
  std::uint64_t entries = 0;
  for (const Selection& selection : selections_) entries += selection.count;
  return entries;
}

std::size_t Sparsifier::EncodeShard(ShardId shard, std::byte* out, std::size_t capacity) {
  PS_CHECK(MaxShardBytes(shard) <= capacity, shard, capacity);
  const auto blocks = BlocksOf(shard);
  std::size_t used = 0;
  for (std::uint32_t at = blocks.first; at < blocks.second; ++at) {
    Selection& selection = selections_[at];
    if (selection.mode == Mode::kNothing) continue;
    const std::uint32_t elements = BlockAt(at).elements;
    const wire::ValueCodec value_codec = ValueCodecOf(at);
    float* v = residual_.data() + BlockAt(at).table_offset;
    const std::span<float> sent = std::span(scratch_sent_).first(selection.count);
    if (selection.mode == Mode::kDense) {
      used +=
          codec::EncodeBlock(first_block_ + at, elements, {}, std::span<const float>(v, elements),
                             wire::IndexCodec::Dense, value_codec, out + used, sent);
      for (std::uint32_t i = 0; i < elements; ++i) v[i] -= sent[i];
    } else {
      const std::span<const std::uint16_t> indices(indices_.data() + selection.first,
                                                   selection.count);
      const std::span<float> values = std::span(scratch_values_).first(selection.count);
      for (std::size_t i = 0; i < indices.size(); ++i) values[i] = v[indices[i]];
      const wire::IndexCodec index_codec = options_.index_codec.has_value()
                                               ? *options_.index_codec
                                               : codec::SmallestIndexCodec(elements, indices);
      used += codec::EncodeBlock(
          first_block_ + at, elements,
          index_codec == wire::IndexCodec::Dense ? std::span<const std::uint16_t>() : indices,
          values, index_codec, value_codec, out + used, sent);
      for (std::size_t i = 0; i < indices.size(); ++i) v[indices[i]] -= sent[i];
      if (options_.rule == AccumulationRule::kNesterov) {
        float* u = momentum_.data() + BlockAt(at).table_offset;
        for (const std::uint16_t index : indices) u[index] = 0.0f;
      }
    }
    sent_squares_ += SumOfSquares(sent);
    // What was sent must not be sent again by a second call.
    selection = Selection();
  }
  return used;
}

Status Sparsifier::TakeBack(std::span<const std::byte> payload) {
  std::vector<codec::BlockView> blocks;
  PS_TRY(codec::ParseSegment(
      payload,
      [this](std::uint32_t block) {
        return block < layout_.block_count() ? layout_.block(block).elements : 0;
      },
      blocks));
  for (const codec::BlockView& block : blocks) {
    if (!codec::AllFinite(block)) {
      return Error{ErrorCode::kInvalid, "block " + std::to_string(block.header.block()) +
                                            " of a returned segment is not finite"};
    }
  }
  std::vector<std::uint16_t> indices;
  std::vector<float> values;
  for (const codec::BlockView& block : blocks) {
    const std::uint32_t number = block.header.block();
    if (number < first_block_ || number >= first_block_ + block_count_) continue;
    codec::DecodeIndices(block, indices);
    codec::DecodeValues(block, values);
    float* v = residual_.data() + layout_.block(number).table_offset;
    for (std::size_t i = 0; i < indices.size(); ++i) {
      v[indices[i]] = Bounded(v[indices[i]] + Bounded(values[i]));
    }
  }
  return Ok();
}

double Sparsifier::SentNorm() const { return std::sqrt(sent_squares_); }

double Sparsifier::ResidualNorm() const { return std::sqrt(SumOfSquares(residual_)); }

}  // namespace ps::worker
