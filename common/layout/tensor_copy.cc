#include "common/layout/tensor_copy.h"

#include "common/check.h"

namespace ps {

bool TensorCopy::CanHold(const std::vector<std::int64_t>& to,
                         const std::vector<std::int64_t>& from) {
  if (to.size() != from.size()) return false;
  for (std::size_t i = 0; i < to.size(); ++i) {
    if (from[i] > to[i]) return false;
  }
  return true;
}

TensorCopy::TensorCopy(std::vector<std::int64_t> from, std::vector<std::int64_t> to)
    : from_(from.begin(), from.end()), to_(to.begin(), to.end()) {
  PS_CHECK(CanHold(to, from), from.size(), to.size());
  for (const std::uint64_t size : from_) elements_ *= size;
  outer_ = from_.size();
  bool same = true;
  while (outer_ > 0 && same) {
    --outer_;
    run_ *= from_[outer_];
    to_stride_ *= to_[outer_];
    same = from_[outer_] == to_[outer_];
  }
}

std::uint64_t TensorCopy::TargetOfRun(std::uint64_t run) const {
  std::uint64_t target = 0;
  std::uint64_t stride = to_stride_;
  for (std::size_t i = outer_; i-- > 0;) {
    target += run % from_[i] * stride;
    run /= from_[i];
    stride *= to_[i];
  }
  return target;
}

std::uint64_t TensorCopy::ElementsBefore(std::uint64_t target) const {
  std::uint64_t stride = 1;
  for (const std::uint64_t size : to_) stride *= size;
  if (target >= stride) return elements_;
  std::uint64_t before = 0;
  std::uint64_t from_stride = elements_;
  for (std::size_t i = 0; i < from_.size() && from_stride > 0; ++i) {
    stride /= to_[i];
    from_stride /= from_[i];
    const std::uint64_t index = target / stride;
    before += std::min(index, from_[i]) * from_stride;
    // All that follow in this one lie behind the source's corner.
    if (index >= from_[i]) return before;
    target %= stride;
  }
  return before;
}

}  // namespace ps
