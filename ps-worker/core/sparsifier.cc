#include "ps-worker/core/sparsifier.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "common/check.h"
#include "common/error_id.h"

namespace ps::worker {
namespace {

constexpr std::size_t kChunk = 2048;  // floats: three arrays of a chunk lie in the L1 cache
// A gradient that is so much larger than the threshold may be part of one that is not finite.
constexpr float kSuspicious = 1024;
constexpr double kWarmupStart = 0.25;
constexpr std::size_t kLinesAhead = 24;  // of the sample, that are fetched
constexpr std::uint32_t kMagnitude = 0x7fffffffu;

float Bounded(float value) {
  constexpr float kLimit = Sparsifier::kLimit;
  const float low = value < -kLimit ? -kLimit : value;
  return low > kLimit ? kLimit : low;
}

// Magnitudes compare like their bits.
std::uint32_t MagnitudeBits(float value) {
  return std::bit_cast<std::uint32_t>(value) & kMagnitude;
}

// The greatest value that `rank` of them, at least 1, are not less than.
std::uint32_t LargestButRank(std::span<const std::uint32_t> values, std::size_t rank,
                             std::vector<std::uint32_t>& scratch) {
  constexpr int kShift = 20;  // eight classes per power of two
  std::array<std::uint32_t, (kMagnitude >> kShift) + 1> classes{};
  for (const std::uint32_t value : values) ++classes[value >> kShift];
  std::size_t above = 0;
  std::size_t at = classes.size() - 1;
  for (; at > 0 && above + classes[at] < rank; --at) above += classes[at];
  scratch.clear();
  for (const std::uint32_t value : values) {
    if (value >> kShift == at) scratch.push_back(value);
  }
  const auto nth = scratch.begin() + static_cast<std::ptrdiff_t>(rank - above - 1);
  std::nth_element(scratch.begin(), nth, scratch.end(), std::greater<>());
  return *nth;
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

wire::ValueCodec ValueCodecNamed(std::string_view name, double ratio) {
  // What is selected lies close above the threshold, where two magnitudes are enough; the values of
  // a whole gradient do not.
  if (name == "auto") return ratio < 1 ? wire::ValueCodec::Bits2 : wire::ValueCodec::Bf16;
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
                       std::uint64_t selected_elements, const SparsifierOptions& options,
                       const kernels::Table& kernels)
    : layout_(layout), options_(options), kernels_(kernels) {
  PS_CHECK(options.momentum >= 0 && options.momentum < 1, options.momentum);
  PS_CHECK(options.outer_momentum >= 0 && options.outer_momentum < 1, options.outer_momentum);
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
  const bool nesterov = options_.rule == AccumulationRule::kNesterov && options_.momentum > 0;
  if (nesterov || (adam && options_.beta1 > 0)) {
    momentum_.assign(elements, 0.0f);
  }
  if (adam) squares_.assign(elements, 0.0f);
  if (options_.outer_momentum > 0) {
    outer_.assign(elements, 0.0f);
    pseudo_.assign(elements, 0.0f);
  }
  selections_.resize(block_count_);
  scratch_sent_.resize(largest);
}

Status Sparsifier::CheckFinite(std::span<const float> gradient, std::size_t begin,
                               std::size_t end) const {
  const std::uint32_t limit = MagnitudeBits(kLimit);
  for (; begin < end; begin += kChunk) {
    const std::size_t count = std::min(kChunk, end - begin);
    if (kernels_.largest(gradient.data() + begin, count) <= limit) continue;
    while (MagnitudeBits(gradient[begin]) <= limit) ++begin;
    return Error{ErrorId::kNotFinite,
                 "the gradient is not finite: element " + std::to_string(begin) + " of " +
                     std::to_string(gradient.size()) + " is " + std::to_string(gradient[begin])};
  }
  return Ok();
}

Result<float> Sparsifier::Scale(std::span<const float> gradient) const {
  if (options_.clip_norm <= 0) {
    PS_TRY(CheckFinite(gradient, 0, gradient.size()));
    return 1.0f;
  }
  double squares = 0;
  for (std::size_t begin = 0; begin < gradient.size(); begin += kChunk) {
    const std::size_t end = std::min(begin + kChunk, gradient.size());
    PS_TRY(CheckFinite(gradient, begin, end));
    squares += kernels_.squares(gradient.data() + begin, end - begin);
  }
  const double norm = std::sqrt(squares);
  return norm > options_.clip_norm ? static_cast<float>(options_.clip_norm / norm) : 1.0f;
}

void Sparsifier::Accumulate(std::span<const float> gradient, float scale, std::size_t begin,
                            std::size_t end) {
  if (AdamNow()) return AccumulateAdam(gradient, scale, begin, end);
  const float* g = gradient.data();
  float* v = residual_.data();
  if (Velocity().empty()) {
    for (std::size_t i = begin; i < end; ++i) v[i] = Bounded(v[i] + scale * g[i]);
    return;
  }
  const float m = VelocityFactor();
  float* u = Velocity().data();
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

std::size_t Sparsifier::AddAndPick(const kernels::Gradient& gradient, std::size_t begin,
                                   std::size_t end, std::size_t block_begin,
                                   kernels::Picker& picker) {
  const kernels::Piece piece{end - begin, static_cast<std::uint32_t>(begin - block_begin)};
  float* const v = residual_.data() + begin;
  if (accumulated_) {
    kernels_.pick(piece, v, picker);
    return piece.count;
  }
  kernels::Gradient part = gradient;
  part.g += begin;
  if (Velocity().empty()) return kernels_.add(piece, part, kLimit, v, picker);
  return kernels_.add_nesterov(piece, part, VelocityFactor(), kLimit, Velocity().data() + begin, v,
                               picker);
}

void Sparsifier::Subtract(std::span<const float> gradient, std::size_t end) {
  const float m = options_.momentum;
  for (std::size_t i = 0; i < end; ++i) {
    float added = gradient[i];
    if (!momentum_.empty()) {
      added += m * momentum_[i];
      momentum_[i] = Bounded((momentum_[i] - gradient[i]) / m);
    }
    residual_[i] = Bounded(residual_[i] - added);
  }
}

std::uint32_t Sparsifier::Preview(std::span<const float> gradient, float scale, std::size_t begin,
                                  std::size_t end, std::vector<std::uint32_t>& magnitudes) const {
  const std::size_t first = magnitudes.size();
  magnitudes.resize(first + end - begin);
  std::uint32_t* const out = magnitudes.data() + first;
  const float* const v = residual_.data() + begin;
  const std::size_t count = end - begin;
  if (accumulated_) {
    for (std::size_t i = 0; i < count; ++i) out[i] = MagnitudeBits(Bounded(v[i]));
    return 0;
  }
  const float* const g = gradient.data() + begin;
  if (AdamNow()) {
    const float* const u = momentum_.empty() ? nullptr : momentum_.data() + begin;
    const float* const s = squares_.data() + begin;
    const auto b1 = static_cast<float>(options_.beta1);
    const auto b2 = static_cast<float>(options_.beta2);
    for (std::size_t i = 0; i < count; ++i) {
      const float clipped = scale * g[i];
      const float moved = u == nullptr ? clipped : b1 * u[i] + (1 - b1) * clipped;
      const float square = Bounded(b2 * s[i] + (1 - b2) * clipped * clipped);
      const float step = moved * correction1_ /
                         (std::sqrt(square * correction2_) + static_cast<float>(options_.epsilon));
      out[i] = MagnitudeBits(Bounded(v[i] + step));
    }
  } else if (Velocity().empty()) {
    for (std::size_t i = 0; i < count; ++i) out[i] = MagnitudeBits(Bounded(v[i] + scale * g[i]));
  } else {
    const float* const u = Velocity().data() + begin;
    const float m = VelocityFactor();
    for (std::size_t i = 0; i < count; ++i) {
      const float clipped = scale * g[i];
      const float moved = Bounded(m * u[i] + clipped);
      out[i] = MagnitudeBits(Bounded(v[i] + (m * moved + clipped)));
    }
  }
  std::uint32_t largest = 0;
  for (std::size_t i = 0; i < count; ++i) largest = std::max(largest, MagnitudeBits(g[i]));
  return largest;
}

void Sparsifier::Fetch(std::span<const float> gradient, std::size_t at) const {
  __builtin_prefetch(residual_.data() + at);
  if (accumulated_) return;
  __builtin_prefetch(gradient.data() + at);
  if (!Velocity().empty()) __builtin_prefetch(Velocity().data() + at);
  if (AdamNow()) __builtin_prefetch(squares_.data() + at);
}

Sparsifier::Sampled Sparsifier::SampleThreshold(std::span<const float> gradient, float scale,
                                                double aim) {
  const Sample plan = PlanSample(selected_elements_, aim, options_.seed + steps_);
  sample_.clear();
  std::uint32_t largest = 0;
  for (std::size_t stratum = 0; stratum < plan.strata; ++stratum) {
    if (stratum + kLinesAhead < plan.strata) Fetch(gradient, plan.BeginOf(stratum + kLinesAhead));
    const std::size_t begin = plan.BeginOf(stratum);
    const std::size_t end = std::min(begin + kSampledLine, selected_elements_);
    largest = std::max(largest, Preview(gradient, scale, begin, end, sample_));
  }
  const std::size_t rank = plan.Rank(aim);
  return {LargestButRank(sample_, rank, scratch_sample_), largest};
}

std::uint32_t Sparsifier::ScanThreshold(double aim) const {
  constexpr int kShift = 20;  // eight classes per power of two
  std::array<std::uint32_t, (kMagnitude >> kShift) + 1> classes{};
  for (std::size_t i = 0; i < selected_elements_; ++i) {
    ++classes[MagnitudeBits(residual_[i]) >> kShift];
  }
  double above = 0;
  for (std::size_t at = classes.size() - 1; at > 0; --at) {
    above += classes[at];
    if (above >= aim) return static_cast<std::uint32_t>(at) << kShift;
  }
  return 0;
}

void Sparsifier::BeginSelection() {
  PutBack();
  flushing_ = false;
  sent_squares_ = 0;
  picked_ = 0;
  selections_.assign(block_count_, Selection());
}

Status Sparsifier::SelectAbove(std::uint32_t threshold, std::span<const float> gradient,
                               float scale, bool checked, double encode_most) {
  const float suspicious = std::min(std::bit_cast<float>(threshold) * kSuspicious, kLimit);
  kernels::Gradient source{gradient.data(), scale,
                           checked ? kernels::kNoBound : MagnitudeBits(suspicious)};
  // Zero is never worth an entry.
  kernels::Picker picker{std::max(threshold, 1u), nullptr, nullptr, 0};
  picked_ = 0;
  encoded_used_ = 0;
  for (std::uint32_t at = 0; at < selected_blocks_; ++at) {
    const std::size_t block_begin = BlockAt(at).table_offset;
    const std::size_t block_end = block_begin + BlockAt(at).elements;
    const std::size_t room = picked_ + BlockAt(at).elements + kernels::kSlack;
    if (indices_.size() < room) {
      indices_.resize(room + room / 2);
      values_.resize(room + room / 2);
    }
    picker.positions = indices_.data() + picked_;
    picker.values = values_.data() + picked_;
    picker.count = 0;
    for (std::size_t begin = block_begin; begin < block_end; begin += kChunk) {
      const std::size_t end = std::min(begin + kChunk, block_end);
      if (AdamNow() && !accumulated_) {
        AccumulateAdam(gradient, scale, begin, end);
        kernels_.pick({end - begin, static_cast<std::uint32_t>(begin - block_begin)},
                      residual_.data() + begin, picker);
        continue;
      }
      std::size_t done = begin + AddAndPick(source, begin, end, block_begin, picker);
      if (done == end) continue;
      // Of v nothing might be left beside such a value. So what comes is looked at first.
      if (auto status = CheckFinite(gradient, done, selected_elements_); !status.ok()) {
        PutBack();
        Subtract(gradient, done);
        return status;
      }
      source.bound = kernels::kNoBound;
      done += AddAndPick(source, done, end, block_begin, picker);
      PS_CHECK(done == end, done, end);
    }
    selections_[at].mode = picker.count > 0 ? Mode::kSparse : Mode::kNothing;
    selections_[at].first = picked_;
    selections_[at].count = static_cast<std::uint32_t>(picker.count);
    picked_ += picker.count;
    if (picker.count > 0 && static_cast<double>(picked_) <= encode_most) EncodeAhead(at);
  }
  return Ok();
}

std::size_t Sparsifier::EncodeSparse(std::uint32_t at, std::byte* out, float* sent_to) {
  const Selection& selection = selections_[at];
  const std::uint32_t elements = BlockAt(at).elements;
  const std::span<const std::uint16_t> indices(indices_.data() + selection.first, selection.count);
  const std::span<const float> values(values_.data() + selection.first, selection.count);
  const std::span<float> sent(sent_to, selection.count);
  const wire::IndexCodec index_codec = options_.index_codec.has_value()
                                           ? *options_.index_codec
                                           : codec::SmallestIndexCodec(elements, indices);
  const std::size_t bytes = codec::EncodeBlock(
      first_block_ + at, elements,
      index_codec == wire::IndexCodec::Dense ? std::span<const std::uint16_t>() : indices, values,
      index_codec, ValueCodecOf(at), out, sent);
  float* const v = residual_.data() + BlockAt(at).table_offset;
  for (std::size_t i = 0; i < indices.size(); ++i) v[indices[i]] -= sent[i];
  if (masks_momentum()) {
    float* const u = momentum_.data() + BlockAt(at).table_offset;
    for (const std::uint16_t index : indices) u[index] = 0.0f;
  }
  if (!outer_.empty()) {
    float* const o = outer_.data() + BlockAt(at).table_offset;
    for (const std::uint16_t index : indices) o[index] = 0.0f;
  }
  return bytes;
}

void Sparsifier::EncodeAhead(std::uint32_t at) {
  Selection& selection = selections_[at];
  const std::size_t end = selection.first + selection.count;
  const auto keep = [&](std::vector<float>& kept, const std::vector<float>& of) {
    if (kept.size() < end) kept.resize(values_.size());
    const float* const from = of.data() + BlockAt(at).table_offset;
    for (std::size_t i = selection.first; i < end; ++i) kept[i] = from[indices_[i]];
  };
  if (masks_momentum()) keep(masked_momentum_, momentum_);
  if (!outer_.empty()) keep(masked_outer_, outer_);
  const std::size_t room = encoded_used_ + MaxBlockBytes(at);
  if (encoded_.size() < room) encoded_.resize(room + room / 2);
  selection.encoded_at = encoded_used_;
  if (sent_.size() < end) sent_.resize(values_.size());
  selection.encoded_bytes =
      EncodeSparse(at, encoded_.data() + encoded_used_, sent_.data() + selection.first);
  encoded_used_ += selection.encoded_bytes;
  selection.mode = Mode::kEncoded;
}

void Sparsifier::PutBack() {
  for (std::uint32_t at = 0; at < selected_blocks_; ++at) {
    Selection& selection = selections_[at];
    if (selection.mode != Mode::kEncoded) continue;
    selection.mode = Mode::kSparse;
    const std::size_t offset = BlockAt(at).table_offset;
    for (std::size_t i = selection.first; i < selection.first + selection.count; ++i) {
      const std::size_t element = offset + indices_[i];
      float& v = residual_[element];
      // To the bit, unless something was taken back meanwhile.
      v = v == values_[i] - sent_[i] ? values_[i] : Bounded(v + sent_[i]);
      if (masks_momentum()) momentum_[element] = masked_momentum_[i];
      if (!outer_.empty()) outer_[element] = masked_outer_[i];
    }
  }
}

Status Sparsifier::SelectSparse(std::span<const float> gradient, float scale, double ratio,
                                bool checked) {
  const SelectionGoal goal = surplus_.GoalOf(ratio, selected_elements_);
  const Sampled sampled = SampleThreshold(gradient, scale, goal.aim);
  if (!checked && sampled.largest_gradient > MagnitudeBits(kLimit)) {
    return CheckFinite(gradient, 0, gradient.size());
  }
  PS_TRY(SelectAbove(sampled.threshold, gradient, scale, checked || accumulated_, goal.most()));
  if (goal.Misled(static_cast<double>(picked_))) PutBack();
  if (static_cast<double>(picked_) < goal.least()) {
    const bool accumulated = std::exchange(accumulated_, true);
    PS_TRY(
        SelectAbove(ScanThreshold(goal.aim), gradient, scale, /*checked=*/true, /*encode_most=*/0));
    // A class of the histogram may hold many more values than were asked for.
    if (static_cast<double>(picked_) > goal.aim) Trim(static_cast<std::size_t>(goal.aim));
    accumulated_ = accumulated;
  }
  if (static_cast<double>(picked_) > goal.most()) Trim(static_cast<std::size_t>(goal.aim));
  surplus_.Add(goal, static_cast<double>(picked_));
  return Ok();
}

void Sparsifier::Trim(std::size_t keep) {
  keep = std::max<std::size_t>(keep, 1);
  if (picked_ <= keep) return;
  sample_.clear();
  for (std::size_t i = 0; i < picked_; ++i) sample_.push_back(MagnitudeBits(values_[i]));
  const std::uint32_t threshold = LargestButRank(sample_, keep, scratch_sample_);
  std::size_t equal_left = keep;
  for (const std::uint32_t value : sample_) equal_left -= value > threshold ? 1 : 0;
  std::size_t to = 0;
  for (std::uint32_t at = 0; at < selected_blocks_; ++at) {
    Selection& selection = selections_[at];
    const std::size_t first = to;
    for (std::size_t from = selection.first; from < selection.first + selection.count; ++from) {
      if (sample_[from] < threshold) continue;
      if (sample_[from] == threshold) {
        if (equal_left == 0) continue;
        --equal_left;
      }
      indices_[to] = indices_[from];
      values_[to++] = values_[from];
    }
    selection.first = first;
    selection.count = static_cast<std::uint32_t>(to - first);
    if (selection.count == 0) selection.mode = Mode::kNothing;
  }
  picked_ = to;
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
  // To clip, the whole gradient must be known; of Adam's squares nothing can be subtracted. All
  // others check what they select from while they accumulate.
  const bool checked =
      !Sparse(ratio) || options_.clip_norm > 0 || options_.rule == AccumulationRule::kAdam;
  float scale = 1;
  if (checked) {
    scale = PS_TRY(Scale(gradient));
  } else {
    PS_TRY(CheckFinite(gradient, selected_elements_, gradient.size()));
  }
  BeginStep();
  accumulated_ = false;
  auto status = SelectFrom(gradient, scale, ratio, checked);
  if (!status.ok()) {
    --steps_;
    BeginSelection();
  }
  return status;
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
      float& sum = pseudo_.empty() ? before[i] : pseudo_[begin + i];
      sum = Bounded(sum + weight * v[i]);
      v[i] = before[i];
    }
  }
  return Ok();
}

void Sparsifier::Select(double ratio) {
  BeginSelection();
  outer_now_ = !pseudo_.empty();
  accumulated_ = !outer_now_;
  const auto status = SelectFrom(pseudo_, 1, ratio, /*checked=*/true);
  PS_CHECK(status.ok(), status.error().message);
  outer_now_ = false;
  std::fill(pseudo_.begin(), pseudo_.end(), 0.0f);
}

Status Sparsifier::SelectFrom(std::span<const float> gradient, float scale, double ratio,
                              bool checked) {
  PS_CHECK(ratio > 0, ratio);
  const bool accumulate = !accumulated_;
  std::uint32_t dense_from = 0;
  if (Sparse(ratio)) {
    PS_TRY(SelectSparse(gradient, scale, ratio, checked));
    dense_from = selected_blocks_;
  }
  for (std::uint32_t at = dense_from; at < block_count_; ++at) {
    const Block& block = BlockAt(at);
    if (accumulate) {
      Accumulate(gradient, scale, block.table_offset, block.table_offset + block.elements);
    }
    selections_[at].mode = Mode::kDense;
    selections_[at].count = block.elements;
  }
  return Ok();
}

void Sparsifier::Flush() {
  BeginSelection();
  flushing_ = true;
  for (std::size_t i = 0; i < pseudo_.size(); ++i) {
    residual_[i] = Bounded(residual_[i] + std::exchange(pseudo_[i], 0.0f));
  }
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
  if (selection.mode == Mode::kEncoded) return selection.encoded_bytes;
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

std::size_t Sparsifier::EncodeDense(std::uint32_t at, std::byte* out) {
  const std::uint32_t elements = BlockAt(at).elements;
  float* const v = residual_.data() + BlockAt(at).table_offset;
  const std::span<float> sent = std::span(scratch_sent_).first(elements);
  const std::size_t bytes =
      codec::EncodeBlock(first_block_ + at, elements, {}, std::span<const float>(v, elements),
                         wire::IndexCodec::Dense, ValueCodecOf(at), out, sent);
  for (std::uint32_t i = 0; i < elements; ++i) v[i] -= sent[i];
  return bytes;
}

std::size_t Sparsifier::EncodeShard(ShardId shard, std::byte* out, std::size_t capacity) {
  PS_CHECK(MaxShardBytes(shard) <= capacity, shard, capacity);
  const auto blocks = BlocksOf(shard);
  std::size_t used = 0;
  for (std::uint32_t at = blocks.first; at < blocks.second; ++at) {
    Selection& selection = selections_[at];
    std::span<const float> sent = std::span(scratch_sent_).first(selection.count);
    switch (selection.mode) {
      case Mode::kNothing: continue;
      case Mode::kEncoded:
        std::memcpy(out + used, encoded_.data() + selection.encoded_at, selection.encoded_bytes);
        used += selection.encoded_bytes;
        sent = std::span(sent_).subspan(selection.first, selection.count);
        break;
      case Mode::kSparse: used += EncodeSparse(at, out + used, scratch_sent_.data()); break;
      case Mode::kDense: used += EncodeDense(at, out + used); break;
    }
    sent_squares_ += kernels_.squares(sent.data(), sent.size());
    // What was sent must not be sent again by a second call.
    selection = Selection();
  }
  return used;
}

Status Sparsifier::TakeBack(std::span<const std::byte> payload, float weight) {
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
      v[indices[i]] = Bounded(v[indices[i]] + Bounded(weight * values[i]));
    }
  }
  return Ok();
}

void Sparsifier::ScaleResidual(float factor) {
  PutBack();
  for (float& value : residual_) value = Bounded(factor * value);
  for (float& value : pseudo_) value = Bounded(factor * value);
}

double Sparsifier::SentNorm() const { return std::sqrt(sent_squares_); }

double Sparsifier::ResidualNorm() const {
  return std::sqrt(kernels_.squares(residual_.data(), residual_.size()));
}

}  // namespace ps::worker
