// Where the elements of a tensor go in one that is as large or larger.
//
// The source becomes the leading corner of the target: the element with the
// indices (i, j, ...) of the one is that of the other. Both lie in row-major
// order, so that elements of the source keep their order in the target, and a
// range of the target holds a range of the source. Pure, any thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ps {

class TensorCopy {
 public:
  // Both have as many dimensions, and `from` is nowhere larger (CanHold).
  TensorCopy(std::vector<std::int64_t> from, std::vector<std::int64_t> to);

  static bool CanHold(const std::vector<std::int64_t>& to, const std::vector<std::int64_t>& from);

  // Elements of the source.
  std::uint64_t elements() const { return elements_; }
  // Elements of the source that go before the element `target` of the target.
  std::uint64_t ElementsBefore(std::uint64_t target) const;
  // Calls visit(first, target, count) for the elements [begin, end) of the source, in order:
  // `count` of them from `first` on go to those from `target` on.
  template <typename Visit>
  void ForEachRun(std::uint64_t begin, std::uint64_t end, Visit visit) const {
    while (begin < end) {
      const std::uint64_t in_run = begin % run_;
      const std::uint64_t count = std::min(run_ - in_run, end - begin);
      visit(begin, TargetOfRun(begin / run_) + in_run, count);
      begin += count;
    }
  }

 private:
  std::uint64_t TargetOfRun(std::uint64_t run) const;

  std::vector<std::uint64_t> from_;
  std::vector<std::uint64_t> to_;
  std::uint64_t elements_ = 1;
  // Elements that lie side by side in both: all dimensions behind the last one that differs, and
  // that one as far as the source has it.
  std::uint64_t run_ = 1;
  std::size_t outer_ = 0;        // dimensions before those of a run
  std::uint64_t to_stride_ = 1;  // elements of the target that a run stands for
};

}  // namespace ps
