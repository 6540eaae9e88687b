#include "ps-server/core/optimizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "common/check.h"

namespace ps::server {
namespace {

constexpr std::array<std::string_view, 9> kNames = {
    "sgd",  "momentum", "nesterov", "adagrad",    "rowwise_adagrad",
    "adam", "adamw",    "ftrl",     "sparse_adam"};

bool IsAdam(OptimizerType type) {
  return type == OptimizerType::kAdam || type == OptimizerType::kAdamW;
}

kernels::Rule KernelRule(OptimizerType type) {
  switch (type) {
    case OptimizerType::kSgd: return kernels::Rule::kSgd;
    case OptimizerType::kMomentum: return kernels::Rule::kMomentum;
    case OptimizerType::kNesterov: return kernels::Rule::kNesterov;
    case OptimizerType::kAdagrad:
    case OptimizerType::kRowwiseAdagrad: return kernels::Rule::kAdagrad;
    case OptimizerType::kAdam:
    case OptimizerType::kAdamW: return kernels::Rule::kAdam;
    case OptimizerType::kFtrl: return kernels::Rule::kFtrl;
    case OptimizerType::kSparseAdam: return kernels::Rule::kSparseAdam;
  }
  return kernels::Rule::kSgd;
}

kernels::Rules KernelRules(const OptimizerRules& rules) {
  kernels::Rules out{};
  out.rule = KernelRule(rules.type);
  out.momentum = static_cast<float>(rules.momentum);
  out.beta1 = static_cast<float>(rules.beta1);
  out.beta1_rest = static_cast<float>(1 - rules.beta1);
  out.beta2 = static_cast<float>(rules.beta2);
  out.beta2_rest = static_cast<float>(1 - rules.beta2);
  out.epsilon = static_cast<float>(rules.epsilon);
  out.l1 = static_cast<float>(rules.l1);
  out.l2 = static_cast<float>(rules.l2);
  out.beta = static_cast<float>(rules.beta);
  out.clip = rules.clip_value > 0 ? static_cast<float>(rules.clip_value)
                                  : std::numeric_limits<float>::infinity();
  return out;
}

}  // namespace

std::string_view NameOf(OptimizerType type) { return kNames[static_cast<std::size_t>(type)]; }

std::optional<OptimizerType> OptimizerTypeOf(std::string_view name) {
  const auto at = std::find(kNames.begin(), kNames.end(), name);
  if (at == kNames.end()) return std::nullopt;
  return static_cast<OptimizerType>(at - kNames.begin());
}

OptimizerRules OptimizerRulesOf(const OptimizerSpec& spec) {
  OptimizerRules rules;
  rules.type = OptimizerTypeOf(spec.type).value_or(OptimizerType::kSgd);
  rules.learning_rate = spec.learning_rate.base;
  rules.momentum = spec.momentum;
  rules.beta1 = spec.beta1;
  rules.beta2 = spec.beta2;
  rules.epsilon = spec.epsilon;
  rules.initial_accumulator = spec.initial_accumulator;
  rules.l1 = spec.l1;
  rules.l2 = spec.l2;
  rules.beta = spec.beta;
  rules.weight_decay = spec.weight_decay;
  rules.clip_value = spec.clip_value;
  return rules;
}

Optimizer::Optimizer(const OptimizerRules& rules, const kernels::Table& kernels)
    : rules_(rules), kernel_rules_(KernelRules(rules)), kernels_(&kernels) {
  if (!counts_updates()) return;
  const double beta1 = keeps_ticks() ? 0 : rules.beta1;
  PS_CHECK(beta1 >= 0 && beta1 <= kBetaMax, beta1);
  PS_CHECK(rules.beta2 >= 0 && rules.beta2 <= kBetaMax, rules.beta2);
  constexpr double kNothing = 1.0 / (1 << 26);
  double power1 = 1;
  double power2 = 1;
  corrections_.push_back({1, 1});  // of no update: never read
  do {
    power1 *= beta1;
    power2 *= rules.beta2;
    corrections_.push_back({static_cast<float>(keeps_ticks() ? power2 : 1 / (1 - power1)),
                            static_cast<float>(1 / std::sqrt(1 - power2))});
  } while (power1 > kNothing || power2 > kNothing);
}

std::uint32_t Optimizer::slots_per_element() const {
  switch (rules_.type) {
    case OptimizerType::kSgd:
    case OptimizerType::kRowwiseAdagrad: return 0;
    case OptimizerType::kMomentum:
    case OptimizerType::kNesterov:
    case OptimizerType::kAdagrad:
    case OptimizerType::kSparseAdam: return 1;
    case OptimizerType::kAdam:
    case OptimizerType::kAdamW:
    case OptimizerType::kFtrl: return 2;
  }
  return 0;
}

std::uint32_t Optimizer::slots_per_row() const {
  return rules_.type == OptimizerType::kRowwiseAdagrad ? 1 : 0;
}

bool Optimizer::counts_updates() const { return IsAdam(rules_.type) || keeps_ticks(); }

float Optimizer::InitialSlot(std::uint32_t slot, float value) const {
  const auto accumulator = static_cast<float>(rules_.initial_accumulator);
  switch (rules_.type) {
    case OptimizerType::kAdagrad:
    case OptimizerType::kRowwiseAdagrad: return accumulator;
    case OptimizerType::kFtrl: {
      if (slot == 1) return accumulator;
      if (value == 0) return 0;
      const double slope =
          (rules_.beta + std::sqrt(rules_.initial_accumulator)) / rules_.learning_rate + rules_.l2;
      return static_cast<float>(-(value * slope + std::copysign(rules_.l1, double{value})));
    }
    default: return 0;
  }
}

void Optimizer::InitRowSlots(const float* values, float* slots, std::uint32_t width) const {
  for (std::uint32_t slot = 0; slot < slots_per_element(); ++slot) {
    for (std::uint32_t i = 0; i < width; ++i) *slots++ = InitialSlot(slot, values[i]);
  }
  for (std::uint32_t slot = 0; slot < slots_per_row(); ++slot) *slots++ = InitialSlot(slot, 0);
}

kernels::Step Optimizer::StepOf(double rate, double weight, std::uint64_t pushes) const {
  constexpr std::uint64_t kMost = std::numeric_limits<std::uint32_t>::max();
  const auto tick = static_cast<std::uint32_t>(pushes);
  const auto age = static_cast<std::uint32_t>(std::min(pushes, kMost));
  if (rules_.type == OptimizerType::kFtrl) {
    return kernels::Step{static_cast<float>(rules_.learning_rate), static_cast<float>(weight), 0,
                         tick, age};
  }
  return kernels::Step{static_cast<float>(rate * weight), 1,
                       static_cast<float>(rate * weight * rules_.weight_decay), tick, age};
}

kernels::Corrections Optimizer::corrections() const {
  if (corrections_.empty()) return kernels::Corrections{nullptr, 0};
  return kernels::Corrections{corrections_.data(),
                              static_cast<std::uint32_t>(corrections_.size() - 1)};
}

void Optimizer::ApplyRow(const kernels::Step& step, std::uint64_t count, float* values,
                         float* slots, const float* gradient, std::uint32_t width) const {
  if (rules_.type == OptimizerType::kRowwiseAdagrad) {
    kernels_->rowwise_adagrad(kernel_rules_, step, values, slots, gradient, width);
    return;
  }
  kernels::Correction correction{1, 1};
  if (!corrections_.empty()) {
    correction = corrections_[std::min<std::uint64_t>(count, corrections_.size() - 1)];
  }
  kernels_->row(kernel_rules_, step, correction, values, slots,
                slots_per_element() > 1 ? slots + width : nullptr, gradient, width);
}

}  // namespace ps::server
