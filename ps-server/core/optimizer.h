// The optimizers that run on a server: their rules as values, and the update of one row.
//
// An optimizer keeps *slots* beside each value: floats of its own, and for Adam
// the number of updates, which its bias correction needs. Values of dense
// tables and their slots live in a DenseStore; rows of embedding tables keep
// theirs beside the row and are updated by ApplyRow.
//
// The formulas, for a gradient g that is clipped to [-clip_value, clip_value]
// (d = decoupled weight decay, r = learning rate x samples of the push /
// reference batch, t = updates of the element, this one included):
//   first, where there is weight decay: w -= r d w
//   sgd              w -= r g
//   momentum         m = mu m + g;  w -= r m
//   nesterov         m = mu m + g;  w -= r (g + mu m)
//   adagrad          s += g^2;  w -= r g / (sqrt(s) + eps)
//   rowwise_adagrad  s += mean of g^2 over the row (one s);  w -= r g / (sqrt(s) + eps)
//   adam, adamw      m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
//                    w -= r / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)
//   sparse_adam      v = b2^p v + (1 - b2) g^2;  w -= r g / (sqrt(v / (1 - b2^t)) + eps), with t
//                    the pushes that the shard has applied, this one included, and p those since
//                    the element's last: so a push that leaves entries out does exactly what adam
//                    with b1 = 0 does with zeros in their place
//   ftrl             with g scaled by samples / reference batch and a = learning rate:
//                    s = (sqrt(n + g^2) - sqrt(n)) / a;  z += g - s w;  n += g^2;
//                    w = |z| <= l1 ? 0 : (sign(z) l1 - z) / ((beta + sqrt(n)) / a + l2);
//                    a must not change, and z begins where this w is the initial value
//                    (the paper's w begins at 0)
// Sources: PyTorch's documentation of torch.optim (momentum to AdamW), FBGEMM
// (row-wise AdaGrad), McMahan et al., "Ad Click Prediction", 2013 (FTRL-Proximal).
// Values; const methods may run on any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "common/job/job_spec.h"
#include "ps-server/core/kernels/kernels.h"

namespace ps::server {

// The numbers are those of checkpoints.
enum class OptimizerType : std::uint8_t {
  kSgd = 0,
  kMomentum = 1,
  kNesterov = 2,
  kAdagrad = 3,
  kRowwiseAdagrad = 4,  // of rows only
  kAdam = 5,
  kAdamW = 6,
  kFtrl = 7,
  kSparseAdam = 8,  // not of rows
};

// As in the job file: "rowwise_adagrad".
std::string_view NameOf(OptimizerType type);
std::optional<OptimizerType> OptimizerTypeOf(std::string_view name);

struct OptimizerRules {
  OptimizerType type = OptimizerType::kSgd;
  double momentum = 0.9;           // momentum, nesterov: mu
  double learning_rate = 0.05;     // ftrl: a
  double beta1 = 0.9;              // adam, adamw; below 1
  double beta2 = 0.999;            // adam, adamw, sparse_adam; at most kBetaMax
  double epsilon = 1e-8;           // adagrad, rowwise_adagrad, adam, adamw, sparse_adam
  double initial_accumulator = 0;  // adagrad, rowwise_adagrad: s, ftrl: n
  double l1 = 0;                   // ftrl
  double l2 = 0;                   // ftrl
  double beta = 1;                 // ftrl
  double weight_decay = 0;         // not ftrl
  double clip_value = 0;           // of one entry of the gradient; 0: off
};

// Keeps the table of bias corrections below 1.5 MB.
inline constexpr double kBetaMax = 0.9999;

// `spec.type` worker_nesterov is sgd here: its momentum is on the workers.
OptimizerRules OptimizerRulesOf(const OptimizerSpec& spec);

class Optimizer {
 public:
  Optimizer() : Optimizer(OptimizerRules{}) {}
  explicit Optimizer(const OptimizerRules& rules,
                     const kernels::Table& kernels = kernels::Fastest());

  const OptimizerRules& rules() const { return rules_; }
  OptimizerType type() const { return rules_.type; }

  // Floats of slots beside each element: 0, 1 or 2.
  std::uint32_t slots_per_element() const;
  // Floats of slots beside each row, in addition: 0, or 1 for rowwise_adagrad.
  std::uint32_t slots_per_row() const;
  // True if updates must be counted (ApplyRow's count), or the tick of the last be kept.
  bool counts_updates() const;
  bool keeps_ticks() const { return rules_.type == OptimizerType::kSparseAdam; }
  // What a slot of an element holds before the first update of this value.
  float InitialSlot(std::uint32_t slot, float value) const;

  // ---- rows

  // Floats of slots of a row: slot 0 of all elements, slot 1 of all elements, those of the row.
  std::size_t RowSlots(std::uint32_t width) const {
    return std::size_t{width} * slots_per_element() + slots_per_row();
  }
  // What the slots hold before the first update of a row with these values.
  void InitRowSlots(const float* values, float* slots, std::uint32_t width) const;

  // What all elements of one push have in common: `rate` is the schedule's, `weight` the samples of
  // the push / reference batch, `pushes` those that the shard has applied, this one included, which
  // sparse_adam needs.
  kernels::Step StepOf(double rate, double weight, std::uint64_t pushes = 0) const;

  // One update of a row. `count`: updates of this row, this one included, so from 1; not read
  // unless counts_updates(). `gradient` is finite. All pointers are aligned for floats and do not
  // overlap.
  void ApplyRow(const kernels::Step& step, std::uint64_t count, float* values, float* slots,
                const float* gradient, std::uint32_t width) const;

  // ---- dense tables: see dense_store.h

  const kernels::Table& kernels() const { return *kernels_; }
  const kernels::Rules& kernel_rules() const { return kernel_rules_; }
  kernels::Corrections corrections() const;

 private:
  OptimizerRules rules_;
  kernels::Rules kernel_rules_;
  const kernels::Table* kernels_;  // lives for ever
  // By the number of updates, the last entry for all higher ones, which differ from 1 by less than
  // a float can say. Empty unless counts_updates().
  std::vector<kernels::Correction> corrections_;
};

}  // namespace ps::server
