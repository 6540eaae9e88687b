// Chooses which gradient entries of the table `parameters` a step sends, and keeps the rest.
//
// State per element: the residual v (all that was accumulated and not sent yet) and what the rule
// of accumulation keeps:
//     plain          v += g
//     nesterov       u = m u + g        v += m u + g
//     adam           u = b1 u + (1 - b1) g      s = b2 s + (1 - b2) g g
//                    v += (u / (1 - b1^t)) / (sqrt(s / (1 - b2^t)) + epsilon)
// With local steps several of them are added up before they are sent, and with an outer momentum
// what they come to, p, is in turn a gradient of Nesterov's rule: o = m o + p, v += m o + p. As
// each worker has its own, asynchronous workers apply momentum once in as many pushes as there are
// workers. Blocks of the selected region (the large tensors) send the entries with |v| above a
// threshold; what is sent leaves v, and u (of nesterov) and o of a sent entry become 0
// (momentum-factor masking). Blocks of the small tensors, and with ratio 1 all blocks, are sent
// dense; theirs are not masked, so that they follow the rule as it is known. In every block the
// error of the value codec stays in v: the sum of all that was sent plus v is always the sum of all
// that was accumulated.
//
// The threshold is a quantile of a seeded sample, corrected by the surplus of earlier steps; the
// same gradients and seed select the same entries, on every processor. So one pass over gradient,
// v and u does all: it checks that the gradient is finite, accumulates, selects, and encodes what
// is selected of a block while the block is still in the cache. The number of selected entries is
// within 0.8 and 1.3 of the ratio, unless fewer are not zero: where the sample misled, what was
// encoded is put back and they are chosen anew from v.
//
// A step: Step() or Flush(), then EncodeShard() for each shard. What of a shard is not taken is put
// back into v before the next step. One thread; no locks. Magnitudes are bounded by kLimit, so that
// no value on the wire is ever infinite.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "common/codec/block_codec.h"
#include "common/ids.h"
#include "common/layout/layout.h"
#include "common/result.h"
#include "ps-worker/core/accumulation.h"
#include "ps-worker/core/kernels/kernels.h"
#include "ps-worker/core/selection.h"

namespace ps::worker {

struct SparsifierOptions {
  AccumulationRule rule = AccumulationRule::kNesterov;
  float momentum = 0.9f;     // nesterov; 0 <= momentum < 1
  float outer_momentum = 0;  // of local steps; 0 <= outer_momentum < 1; 0: none
  double beta1 = 0;          // adam, as the next two; 0 <= beta1, beta2 < 1
  double beta2 = 0.999;
  double epsilon = 1e-8;                        // more than 0
  double clip_norm = 0;                         // of the whole gradient; 0: off
  std::optional<wire::IndexCodec> index_codec;  // of sparse blocks; absent: the smallest per block
  // Of the large tensors. Small ones are sent as Bf16 where this has fewer bits: their values
  // differ widely, and they are few.
  wire::ValueCodec value_codec = wire::ValueCodec::Bf16;
  std::uint64_t seed = 1;
};

// As a job file names them: "rice", "2bit". An index codec is nothing for "auto"; a value codec
// then depends on the ratio. Other names abort.
std::optional<wire::IndexCodec> IndexCodecNamed(std::string_view name);
wire::ValueCodec ValueCodecNamed(std::string_view name, double ratio = 1);

// Part of the large tensors' entries that is sent at `epoch`: 25 % at first, falling exponentially
// to `ratio` at `warmup_epochs`.
double WarmupRatio(double ratio, double warmup_epochs, double epoch);

class Sparsifier {
 public:
  static constexpr float kLimit = kAccumulatedLimit;

  // `table` is the index of `parameters` in the layout; blocks of it that end at or before
  // `selected_elements` are sparsified.
  Sparsifier(const LayoutView& layout, std::uint32_t table, std::uint64_t selected_elements,
             const SparsifierOptions& options, const kernels::Table& kernels = kernels::Fastest());

  std::uint64_t elements() const { return residual_.size(); }

  // Clips, accumulates and selects. `gradient` has elements() values. kInvalid if one of them is
  // not finite (or beyond kLimit): then nothing is selected, and u and v are as before. But where
  // the pass finds it after it has begun, what it had added is subtracted again, and the
  // rounding of that sum stays, about 2^-13 of the threshold at most.
  Status Step(std::span<const float> gradient, double ratio);

  // A step in two: accumulates `weight` times what one step on this gradient adds, and takes `rate`
  // times the step from `parameters` (elements() values), which thereby are where the step leads;
  // then selects of all that was added so, after the outer momentum. Errors as Step(), and then
  // nothing has changed.
  Status AddLocalStep(std::span<const float> gradient, float weight, float rate,
                      std::span<float> parameters);
  void Select(double ratio);

  // Selects the whole residual instead, to be encoded dense in fp32, which empties it. Blocks that
  // are zero throughout are left out.
  void Flush();

  // Bounds for what EncodeShard will write after the last Step() or Flush().
  std::size_t MaxBytes() const;
  std::size_t MaxShardBytes(ShardId shard) const;
  // Entries that are selected.
  std::uint64_t entries() const;

  // Writes the selected blocks of a shard in their order; they are out of the residual then.
  // Returns the bytes written, at most MaxShardBytes() <= capacity. Once per shard and step.
  std::size_t EncodeShard(ShardId shard, std::byte* out, std::size_t capacity);

  // Puts a segment that a shard refused back into the residual, `weight` times. Blocks of other
  // tables are passed over. kInvalid, and nothing changed, if it is not a segment of this layout.
  Status TakeBack(std::span<const std::byte> payload, float weight = 1);

  // The residual is counted in other units: pushes of another number of samples weigh otherwise.
  void ScaleResidual(float factor);

  double ResidualNorm() const;
  // Of what the shards were sent since the last Step() or Flush().
  double SentNorm() const;
  std::span<const float> residual() const { return residual_; }
  std::span<const float> momentum() const { return momentum_; }

 private:
  enum class Mode : std::uint8_t { kNothing, kSparse, kEncoded, kDense };

  // What is selected in one block. kSparse: [first, first + count) of indices_ and values_.
  // kEncoded: the same, out of the residual already, as bytes.
  struct Selection {
    Mode mode = Mode::kNothing;
    std::size_t first = 0;
    std::uint32_t count = 0;
    std::size_t encoded_at = 0;
    std::size_t encoded_bytes = 0;
  };

  const Block& BlockAt(std::uint32_t at) const { return layout_.block(first_block_ + at); }
  // Range of a shard's blocks within this table, counted from first_block_.
  std::pair<std::uint32_t, std::uint32_t> BlocksOf(ShardId shard) const;
  std::size_t MaxBlockBytes(std::uint32_t at) const;
  wire::ValueCodec ValueCodecOf(std::uint32_t at) const;

  // kInvalid if a value of the gradient in [begin, end) is not finite or beyond kLimit.
  Status CheckFinite(std::span<const float> gradient, std::size_t begin, std::size_t end) const;
  // Scale that brings the gradient's norm down to the bound, or an error if it is not finite.
  Result<float> Scale(std::span<const float> gradient) const;
  void Accumulate(std::span<const float> gradient, float scale, std::size_t begin, std::size_t end);
  void AccumulateAdam(std::span<const float> gradient, float scale, std::size_t begin,
                      std::size_t end);
  // Accumulates what was not yet, and picks, within a block; not for Adam. Returns how many
  // elements it did: all but where the gradient is beyond its bound.
  std::size_t AddAndPick(const kernels::Gradient& gradient, std::size_t begin, std::size_t end,
                         std::size_t block_begin, kernels::Picker& picker);
  // Takes what the pass has added to [0, end) out again. The scale was 1.
  void Subtract(std::span<const float> gradient, std::size_t end);
  // Magnitudes after Accumulate, as bits; returns the largest one of the gradient.
  std::uint32_t Preview(std::span<const float> gradient, float scale, std::size_t begin,
                        std::size_t end, std::vector<std::uint32_t>& magnitudes) const;
  // Brings what Preview() will read there into the cache.
  void Fetch(std::span<const float> gradient, std::size_t at) const;
  struct Sampled {
    std::uint32_t threshold;         // bits: about `aim` entries will not be less
    std::uint32_t largest_gradient;  // bits, of what was looked at
  };
  Sampled SampleThreshold(std::span<const float> gradient, float scale, double aim);
  // A threshold from a histogram of all residuals: never too few entries, if there are as many.
  std::uint32_t ScanThreshold(double aim) const;
  // One pass over the selected region. With `checked` nobody looks at the gradient any more. Blocks
  // are encoded as they come, as long as there are at most `encode_most` entries.
  Status SelectAbove(std::uint32_t threshold, std::span<const float> gradient, float scale,
                     bool checked, double encode_most);
  // Writes the block, which is kSparse, and takes it out of the residual; momenta are masked.
  // Returns the bytes; what the receiver will decode is in `sent`.
  std::size_t EncodeSparse(std::uint32_t at, std::byte* out, float* sent);
  std::size_t EncodeDense(std::uint32_t at, std::byte* out);
  void EncodeAhead(std::uint32_t at);
  // What EncodeAhead() did to blocks that nobody has taken: they are kSparse again.
  void PutBack();
  // Of the rule of the pass, which is not Adam's; empty: none.
  std::vector<float>& Velocity() { return outer_now_ ? outer_ : momentum_; }
  const std::vector<float>& Velocity() const { return outer_now_ ? outer_ : momentum_; }
  float VelocityFactor() const { return outer_now_ ? options_.outer_momentum : options_.momentum; }
  bool masks_momentum() const {
    return options_.rule == AccumulationRule::kNesterov && !momentum_.empty();
  }
  bool AdamNow() const { return options_.rule == AccumulationRule::kAdam && !outer_now_; }
  void BeginSelection();
  void BeginStep();
  // True if the ratio leaves anything out.
  bool Sparse(double ratio) const { return ratio < 1 && selected_blocks_ > 0; }
  Status SelectFrom(std::span<const float> gradient, float scale, double ratio, bool checked);
  Status SelectSparse(std::span<const float> gradient, float scale, double ratio, bool checked);
  // Keeps the `keep` largest of the selected entries; the first ones of equals.
  void Trim(std::size_t keep);

  const LayoutView layout_;
  const SparsifierOptions options_;
  const kernels::Table& kernels_;
  std::uint32_t first_block_ = 0;  // of the table
  std::uint32_t block_count_ = 0;
  std::uint32_t selected_blocks_ = 0;  // the first ones of the table
  std::size_t selected_elements_ = 0;

  std::vector<float> residual_;
  std::vector<float> momentum_;  // nesterov with momentum, adam with beta1
  std::vector<float> squares_;   // adam
  // With an outer momentum: o, and what local steps have come to since the last Select().
  std::vector<float> outer_;
  std::vector<float> pseudo_;
  // Of this step, adam: 1 / (1 - b1^t), 1 / (1 - b2^t)
  float correction1_ = 1;
  float correction2_ = 1;
  std::uint64_t steps_ = 0;
  double sent_squares_ = 0;
  Surplus surplus_;

  bool flushing_ = false;
  bool outer_now_ = false;             // the pass is that of the outer rule, over pseudo_
  bool accumulated_ = false;           // by AddLocalStep(): the gradient has nothing to add
  std::vector<Selection> selections_;  // per block of the table
  // Of all sparse blocks, one after the other: the first picked_ places.
  std::vector<std::uint16_t> indices_;
  std::vector<float> values_;
  std::size_t picked_ = 0;
  // Of blocks that are encoded ahead: their bytes, and in the places of values_ what the receiver
  // will decode and the momenta that were masked.
  std::vector<std::byte> encoded_;
  std::size_t encoded_used_ = 0;
  std::vector<float> sent_;
  std::vector<float> masked_momentum_;
  std::vector<float> masked_outer_;
  std::vector<std::uint32_t> sample_;  // magnitudes as bits
  std::vector<std::uint32_t> scratch_sample_;
  std::vector<float> scratch_sent_;  // of a block
};

}  // namespace ps::worker
