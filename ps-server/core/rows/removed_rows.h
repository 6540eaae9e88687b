// Keys of the rows that a table has removed, by the freezes between which that was.
//
// A checkpoint that holds what changed since an earlier one names them. Nothing
// is kept before the first freeze, of more than kIntervals freezes, or of more
// keys than a sixteenth of the table's rows (at least 4,096): what was removed
// since an earlier freeze is then not known, and the checkpoint is whole.
//
// The log is of one thread; what Freeze() gives may be read on another.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

namespace ps::server {

class RemovedRows {
 public:
  static constexpr std::size_t kIntervals = 8;
  static constexpr std::uint64_t kKeysMin = 4096;

  struct Interval {
    std::uint64_t after = 0;  // number of the freeze that it follows
    std::shared_ptr<std::vector<std::uint64_t>> keys;
    bool whole = true;
  };

  // What is known at a freeze.
  class Frozen {
   public:
    // Keys removed since the freeze `since`, if that is known.
    std::optional<std::vector<std::uint64_t>> Since(std::uint64_t since) const {
      std::vector<std::uint64_t> keys;
      bool known = false;
      for (const Interval& interval : intervals_) {
        if (interval.after < since) continue;
        known = known || interval.after == since;
        if (!interval.whole) return std::nullopt;
        keys.insert(keys.end(), interval.keys->begin(), interval.keys->end());
      }
      if (!known) return std::nullopt;
      return keys;
    }

   private:
    friend class RemovedRows;
    std::deque<Interval> intervals_;
  };

  // Of a table that has `rows` rows.
  void Add(std::uint64_t key, std::uint64_t rows) {
    if (intervals_.empty() || !intervals_.back().whole) return;
    while (keys_ >= std::max(kKeysMin, rows / 16) && intervals_.size() > 1) DropOldest();
    Interval& now = intervals_.back();
    if (keys_ >= std::max(kKeysMin, rows / 16)) {
      keys_ = 0;
      now.keys = std::make_shared<std::vector<std::uint64_t>>();
      now.whole = false;
      return;
    }
    now.keys->push_back(key);
    ++keys_;
  }

  // At the freeze `number`, which ends an interval: the keys in it change no more.
  Frozen Freeze(std::uint64_t number) {
    Frozen frozen;
    frozen.intervals_ = intervals_;
    if (intervals_.size() == kIntervals) DropOldest();
    intervals_.push_back({number, std::make_shared<std::vector<std::uint64_t>>(), true});
    return frozen;
  }

 private:
  void DropOldest() {
    keys_ -= intervals_.front().keys->size();
    intervals_.pop_front();
  }

  std::deque<Interval> intervals_;  // by `after`
  std::uint64_t keys_ = 0;          // in all of them
};

}  // namespace ps::server
