// The source of one variant of the kernels; see kernels.h.
//
// Included by plain.cc, avx2.cc and avx512.cc, which are compiled for their
// processors: everything here has internal linkage and nothing with inline
// functions may be included. The loops are written so that the compiler makes
// vectors of them; each element's result depends on that element alone, so the
// width of the vectors cannot change it.
//
// A sparse push is worked off in pieces of kPiece entries: their positions are
// decoded, their memory is asked for, then they are gathered into arrays in the
// L1 cache, updated as a dense piece would be, and scattered. The memory of the
// next piece is asked for while the present one is worked on.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ps-server/core/kernels/kernels.h"

namespace ps::server::kernels {
namespace {

using Size = std::size_t;

constexpr Size kPiece = 256;
constexpr Size kDensePiece = 2048;

// ---- the value of an entry

inline float Load32(const std::byte* from) {
  float value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

inline std::uint16_t Load16(const std::byte* from) {
  std::uint16_t bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return bits;
}

inline float FromBits(std::uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

inline std::uint32_t ToBits(float value) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

struct Fp32Source {
  const std::byte* bytes;
  float operator[](Size entry) const { return Load32(bytes + entry * 4); }
  Fp32Source From(Size entry) const { return Fp32Source{bytes + entry * 4}; }
};

struct Bf16Source {
  const std::byte* bytes;
  float operator[](Size entry) const {
    return FromBits(std::uint32_t{Load16(bytes + entry * 2)} << 16);
  }
  Bf16Source From(Size entry) const { return Bf16Source{bytes + entry * 2}; }
};

struct FloatSource {
  const float* floats;
  float operator[](Size entry) const { return floats[entry]; }
};

// ---- the rules: Update() changes one value and its slots by one gradient

inline float Clipped(float gradient, float bound) {
  const float below = gradient > bound ? bound : gradient;
  return below < -bound ? -bound : below;
}

struct Sgd {
  static constexpr int kSlots = 0;
  float rate;
  float clip;

  Sgd(const Rules& rules, const Step& step) : rate(step.rate), clip(rules.clip) {}
  void Update(float& w, float&, float&, float gradient, Correction) const {
    w -= rate * Clipped(gradient, clip);
  }
};

struct Momentum {
  static constexpr int kSlots = 1;
  float rate;
  float clip;
  float momentum;

  Momentum(const Rules& rules, const Step& step)
      : rate(step.rate), clip(rules.clip), momentum(rules.momentum) {}
  void Update(float& w, float& m, float&, float gradient, Correction) const {
    m = momentum * m + Clipped(gradient, clip);
    w -= rate * m;
  }
};

struct Nesterov {
  static constexpr int kSlots = 1;
  float rate;
  float clip;
  float momentum;

  Nesterov(const Rules& rules, const Step& step)
      : rate(step.rate), clip(rules.clip), momentum(rules.momentum) {}
  void Update(float& w, float& m, float&, float gradient, Correction) const {
    const float g = Clipped(gradient, clip);
    m = momentum * m + g;
    w -= rate * (g + momentum * m);
  }
};

struct Adagrad {
  static constexpr int kSlots = 1;
  float rate;
  float clip;
  float epsilon;

  Adagrad(const Rules& rules, const Step& step)
      : rate(step.rate), clip(rules.clip), epsilon(rules.epsilon) {}
  void Update(float& w, float& s, float&, float gradient, Correction) const {
    const float g = Clipped(gradient, clip);
    s += g * g;
    w -= rate * g / (__builtin_sqrtf(s) + epsilon);
  }
};

struct Adam {
  static constexpr int kSlots = 2;
  float rate;
  float clip;
  float beta1;
  float beta1_rest;
  float beta2;
  float beta2_rest;
  float epsilon;

  Adam(const Rules& rules, const Step& step)
      : rate(step.rate),
        clip(rules.clip),
        beta1(rules.beta1),
        beta1_rest(rules.beta1_rest),
        beta2(rules.beta2),
        beta2_rest(rules.beta2_rest),
        epsilon(rules.epsilon) {}
  void Update(float& w, float& m, float& v, float gradient, Correction correction) const {
    const float g = Clipped(gradient, clip);
    m = beta1 * m + beta1_rest * g;
    v = beta2 * v + beta2_rest * (g * g);
    w -= (rate * correction.first) * m / (__builtin_sqrtf(v) * correction.second + epsilon);
  }
};

// The correction's `first` is how much of v the pushes since the last one have left.
struct SparseAdam {
  static constexpr int kSlots = 1;
  float rate;
  float clip;
  float beta2_rest;
  float epsilon;

  SparseAdam(const Rules& rules, const Step& step)
      : rate(step.rate), clip(rules.clip), beta2_rest(rules.beta2_rest), epsilon(rules.epsilon) {}
  void Update(float& w, float& v, float&, float gradient, Correction correction) const {
    const float g = Clipped(gradient, clip);
    v = correction.first * v + beta2_rest * (g * g);
    w -= rate * g / (__builtin_sqrtf(v) * correction.second + epsilon);
  }
};

template <typename R>
inline constexpr bool kDecays = false;
template <>
inline constexpr bool kDecays<SparseAdam> = true;

struct Ftrl {
  static constexpr int kSlots = 2;
  float inverse_rate;
  float scale;
  float clip;
  float l1;
  float l2;
  float beta;

  Ftrl(const Rules& rules, const Step& step)
      : inverse_rate(1.0f / step.rate),
        scale(step.scale),
        clip(rules.clip),
        l1(rules.l1),
        l2(rules.l2),
        beta(rules.beta) {}
  void Update(float& w, float& z, float& n, float gradient, Correction) const {
    const float g = scale * Clipped(gradient, clip);
    const float sum = n + g * g;
    const float root = __builtin_sqrtf(sum);
    z += g - (root - __builtin_sqrtf(n)) * inverse_rate * w;
    n = sum;
    const float moved = (__builtin_copysignf(l1, z) - z) / ((beta + root) * inverse_rate + l2);
    w = __builtin_fabsf(z) <= l1 ? 0.0f : moved;
  }
};

// ---- contiguous elements

struct OneCorrection {
  Correction correction;
  Correction operator[](Size) const { return correction; }
};

struct OwnCorrections {
  const float* first;
  const float* second;
  Correction operator[](Size at) const { return Correction{first[at], second[at]}; }
};

template <typename R, typename Gradients, typename CorrectionsAt>
inline void Update(const R rule, float* __restrict w, float* __restrict a, float* __restrict b,
                   const Gradients gradients, const CorrectionsAt corrections, Size count) {
  for (Size i = 0; i < count; ++i) {
    float value = w[i];
    float slot0 = 0;
    float slot1 = 0;
    if constexpr (R::kSlots > 0) slot0 = a[i];
    if constexpr (R::kSlots > 1) slot1 = b[i];
    rule.Update(value, slot0, slot1, gradients[i], corrections[i]);
    w[i] = value;
    if constexpr (R::kSlots > 0) a[i] = slot0;
    if constexpr (R::kSlots > 1) b[i] = slot1;
  }
}

inline void Decay(float* values, Size count, std::uint32_t stride, float decay) {
  if (stride == 1) {
    for (Size i = 0; i < count; ++i) values[i] -= decay * values[i];
    return;
  }
  for (Size i = 0; i < count; ++i) values[i * stride] -= decay * values[i * stride];
}

template <typename R, typename Source>
void UpdateDense(const R rule, float decay, Correction correction, const Elements& to,
                 Source gradients, Size count) {
  for (Size begin = 0; begin < count; begin += kDensePiece) {
    const Size size = count - begin < kDensePiece ? count - begin : kDensePiece;
    float* const w = to.value + begin;
    if (decay != 0) Decay(w, size, 1, decay);
    Update(rule, w, R::kSlots > 0 ? to.slot0 + begin : nullptr,
           R::kSlots > 1 ? to.slot1 + begin : nullptr, gradients.From(begin),
           OneCorrection{correction}, size);
  }
}

// ---- elements at positions

// Decodes the positions of a push, a piece at a time.
class PositionReader {
 public:
  explicit PositionReader(const Push& push)
      : positions_(push.positions), at_(push.index_bytes), left_(push.count) {}

  // Writes up to kPiece positions and returns how many.
  Size Next(std::uint16_t* out) {
    const Size count = left_ < kPiece ? left_ : kPiece;
    if (count == 0) return 0;
    left_ -= count;
    switch (positions_) {
      case Positions::kDense:
        for (Size i = 0; i < count; ++i) out[i] = static_cast<std::uint16_t>(next_ + i);
        next_ += static_cast<std::uint32_t>(count);
        break;
      case Positions::kRaw16:
        __builtin_memcpy(out, at_, count * 2);
        at_ += count * 2;
        break;
      case Positions::kGap8: NextGaps(out, count); break;
    }
    return count;
  }

 private:
  // A skip writes its position too, where the next entry overwrites it: no branch.
  void NextGaps(std::uint16_t* out, Size count) {
    constexpr std::uint32_t kSkip = 255;
    const std::byte* at = at_;
    std::uint32_t next = next_;
    for (Size done = 0; done < count;) {
      const auto gap = static_cast<std::uint32_t>(*at++);
      next += gap;
      out[done] = static_cast<std::uint16_t>(next);
      const std::uint32_t entry = gap != kSkip ? 1 : 0;
      next += entry;
      done += entry;
    }
    at_ = at;
    next_ = next;
  }

  const Positions positions_;
  const std::byte* at_;
  Size left_;
  std::uint32_t next_ = 0;  // the first position that no entry has passed
};

// What was never written in it is 0, which is a position as well, and what is left of an earlier
// piece is one too: all of it may be asked for.
struct Piece {
  std::uint16_t positions[kPiece] = {};
  Size count = 0;
};

inline void AskFor(const Piece& piece, const float* base, std::uint32_t stride) {
  for (Size i = 0; i < piece.count; ++i) {
    __builtin_prefetch(base + Size{piece.positions[i]} * stride, 1);
  }
}

template <typename Source>
void ScatterSgd(const Sgd rule, const Elements& to, Source gradients, const Push& push) {
  PositionReader reader(push);
  Piece pieces[2];
  Piece* piece = &pieces[0];
  Piece* next = &pieces[1];
  float* const w = to.value;
  const std::uint32_t stride = to.stride;
  piece->count = reader.Next(piece->positions);
  AskFor(*piece, w, stride);
  for (Size entry = 0; piece->count > 0;) {
    next->count = reader.Next(next->positions);
    for (Size i = 0; i < piece->count; ++i, ++entry) {
      __builtin_prefetch(w + Size{next->positions[i]} * stride, 1);
      float& value = w[Size{piece->positions[i]} * stride];
      value -= rule.rate * Clipped(gradients[entry], rule.clip);
    }
    Piece* const worked = piece;
    piece = next;
    next = worked;
  }
}

inline Correction At(const Corrections& corrections, std::uint32_t t) {
  return corrections.of[t < corrections.last ? t : corrections.last];
}

// Of all elements of a block that are not counted one by one.
template <typename R>
inline Correction CorrectionOfBlock(const Corrections& corrections, const Step& step,
                                    const Elements& to) {
  if (corrections.of == nullptr) return Correction{1, 1};
  if constexpr (kDecays<R>) {
    return Correction{At(corrections, step.tick - to.block_updates).first,
                      At(corrections, step.age).second};
  }
  return At(corrections, to.block_updates);
}

template <typename R, typename Source>
void UpdateScattered(const R rule, const Step& step, const Corrections& corrections,
                     const Elements& to, Source gradients, const Push& push) {
  PositionReader reader(push);
  Piece pieces[2];
  Piece* piece = &pieces[0];
  Piece* next = &pieces[1];
  float value[kPiece];
  float slot0[kPiece];
  float slot1[kPiece];
  float gradient[kPiece];
  float first[kPiece];
  float second[kPiece];
  const std::uint32_t stride = to.stride;
  const bool corrected = corrections.of != nullptr;
  const Correction shared = CorrectionOfBlock<R>(corrections, step, to);
  piece->count = reader.Next(piece->positions);
  AskFor(*piece, to.value, stride);
  for (Size entry = 0; piece->count > 0;) {
    next->count = reader.Next(next->positions);
    const Size count = piece->count;
    for (Size i = 0; i < count; ++i) {
      const Size at = Size{piece->positions[i]} * stride;
      const Size ahead = Size{next->positions[i]} * stride;
      __builtin_prefetch(to.value + ahead, 1);
      value[i] = to.value[at];
      slot0[i] = to.slot0[at];
      if (stride == 1) __builtin_prefetch(to.slot0 + ahead, 1);
      if constexpr (R::kSlots > 1) {
        slot1[i] = to.slot1[at];
        if (stride == 1) __builtin_prefetch(to.slot1 + ahead, 1);
      }
    }
    for (Size i = 0; i < count; ++i) gradient[i] = gradients[entry + i];
    if (corrected && to.updates != nullptr) {
      for (Size i = 0; i < count; ++i) {
        float& word = to.updates[Size{piece->positions[i]} * stride];
        const std::uint32_t before = ToBits(word);
        if constexpr (kDecays<R>) {
          word = FromBits(step.tick);
          first[i] = At(corrections, step.tick - before).first;
          second[i] = shared.second;
        } else {
          const std::uint32_t updates = before + (before != UINT32_MAX ? 1 : 0);
          word = FromBits(updates);
          const Correction own = At(corrections, updates);
          first[i] = own.first;
          second[i] = own.second;
        }
      }
      Update(rule, value, slot0, slot1, FloatSource{gradient}, OwnCorrections{first, second},
             count);
    } else {
      Update(rule, value, slot0, slot1, FloatSource{gradient}, OneCorrection{shared}, count);
    }
    for (Size i = 0; i < count; ++i) {
      const Size at = Size{piece->positions[i]} * stride;
      to.value[at] = value[i];
      to.slot0[at] = slot0[i];
      if constexpr (R::kSlots > 1) to.slot1[at] = slot1[i];
    }
    entry += count;
    Piece* const worked = piece;
    piece = next;
    next = worked;
  }
}

// ---- the functions of the table

template <typename R, typename Source>
void BlockFrom(const R rule, const Step& step, const Corrections& corrections, const Elements& to,
               std::uint32_t elements, Source gradients, const Push& push) {
  if (push.positions == Positions::kDense && to.stride == 1) {
    UpdateDense(rule, step.decay, CorrectionOfBlock<R>(corrections, step, to), to, gradients,
                elements);
    return;
  }
  if (step.decay != 0) Decay(to.value, elements, to.stride, step.decay);
  if constexpr (R::kSlots == 0) {
    ScatterSgd(rule, to, gradients, push);
  } else {
    UpdateScattered(rule, step, corrections, to, gradients, push);
  }
}

template <typename R>
void BlockOf(const Rules& rules, const Step& step, const Corrections& corrections,
             const Elements& to, std::uint32_t elements, const Push& push) {
  const R rule(rules, step);
  if (push.bf16) {
    BlockFrom(rule, step, corrections, to, elements, Bf16Source{push.values}, push);
  } else {
    BlockFrom(rule, step, corrections, to, elements, Fp32Source{push.values}, push);
  }
}

void Block(const Rules& rules, const Step& step, const Corrections& corrections, const Elements& to,
           std::uint32_t elements, const Push& push) {
  switch (rules.rule) {
    case Rule::kSgd: return BlockOf<Sgd>(rules, step, corrections, to, elements, push);
    case Rule::kMomentum: return BlockOf<Momentum>(rules, step, corrections, to, elements, push);
    case Rule::kNesterov: return BlockOf<Nesterov>(rules, step, corrections, to, elements, push);
    case Rule::kAdagrad: return BlockOf<Adagrad>(rules, step, corrections, to, elements, push);
    case Rule::kAdam: return BlockOf<Adam>(rules, step, corrections, to, elements, push);
    case Rule::kFtrl: return BlockOf<Ftrl>(rules, step, corrections, to, elements, push);
    case Rule::kSparseAdam:
      return BlockOf<SparseAdam>(rules, step, corrections, to, elements, push);
  }
}

template <typename R>
void RowOf(const Rules& rules, const Step& step, Correction correction, float* values, float* slot0,
           float* slot1, const float* gradient, Size width) {
  if (step.decay != 0) Decay(values, width, 1, step.decay);
  Update(R(rules, step), values, slot0, slot1, FloatSource{gradient}, OneCorrection{correction},
         width);
}

void Row(const Rules& rules, const Step& step, Correction correction, float* values, float* slot0,
         float* slot1, const float* gradient, Size width) {
  switch (rules.rule) {
    case Rule::kSgd:
      return RowOf<Sgd>(rules, step, correction, values, slot0, slot1, gradient, width);
    case Rule::kMomentum:
      return RowOf<Momentum>(rules, step, correction, values, slot0, slot1, gradient, width);
    case Rule::kNesterov:
      return RowOf<Nesterov>(rules, step, correction, values, slot0, slot1, gradient, width);
    case Rule::kAdagrad:
      return RowOf<Adagrad>(rules, step, correction, values, slot0, slot1, gradient, width);
    case Rule::kAdam:
      return RowOf<Adam>(rules, step, correction, values, slot0, slot1, gradient, width);
    case Rule::kFtrl:
      return RowOf<Ftrl>(rules, step, correction, values, slot0, slot1, gradient, width);
    case Rule::kSparseAdam: return;  // not for rows
  }
}

// The sum goes over sixteen lanes whatever the vectors' width, so that it is the same in all
// variants.
void RowwiseAdagrad(const Rules& rules, const Step& step, float* values, float* row_slot,
                    const float* gradient, Size width) {
  if (step.decay != 0) Decay(values, width, 1, step.decay);
  constexpr Size kLanes = 16;
  float lanes[kLanes] = {};
  Size done = 0;
  for (; done + kLanes <= width; done += kLanes) {
    for (Size lane = 0; lane < kLanes; ++lane) {
      const float g = Clipped(gradient[done + lane], rules.clip);
      lanes[lane] += g * g;
    }
  }
  for (Size lane = 0; done + lane < width; ++lane) {
    const float g = Clipped(gradient[done + lane], rules.clip);
    lanes[lane] += g * g;
  }
  for (Size half = kLanes / 2; half > 0; half /= 2) {
    for (Size lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  *row_slot += lanes[0] / static_cast<float>(width);
  const float factor = step.rate / (__builtin_sqrtf(*row_slot) + rules.epsilon);
  for (Size i = 0; i < width; ++i) values[i] -= factor * Clipped(gradient[i], rules.clip);
}

constexpr Table MakeTable(const char* name) { return Table{name, &Row, &RowwiseAdagrad, &Block}; }

}  // namespace
}  // namespace ps::server::kernels
