// The time of a simulation: things happen in the order of their moments, one at a time.
//
// Equal moments keep the order in which they were put in, so a run depends on its seed alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <queue>
#include <utility>
#include <vector>

namespace ps::simulation {

class EventQueue {
 public:
  std::int64_t now_ms() const { return now_ms_; }

  // Not before now.
  void At(std::int64_t time_ms, std::function<void()> act) {
    std::size_t place = acts_.size();
    if (free_.empty()) {
      acts_.push_back(std::move(act));
    } else {
      place = free_.back();
      free_.pop_back();
      acts_[place] = std::move(act);
    }
    events_.push(Event{std::max(time_ms, now_ms_), next_++, place});
  }
  void After(std::int64_t delay_ms, std::function<void()> act) {
    At(now_ms_ + delay_ms, std::move(act));
  }

  // False if nothing is left to happen.
  bool RunNext() {
    if (events_.empty()) return false;
    const Event event = events_.top();
    events_.pop();
    now_ms_ = event.time_ms;
    const std::function<void()> act = std::exchange(acts_[event.place], nullptr);
    free_.push_back(event.place);
    act();
    return true;
  }

 private:
  // What is done lies elsewhere: the queue moves its entries about.
  struct Event {
    std::int64_t time_ms;
    std::uint64_t order;
    std::size_t place;
    bool operator<(const Event& other) const {
      return time_ms != other.time_ms ? time_ms > other.time_ms : order > other.order;
    }
  };

  std::int64_t now_ms_ = 0;
  std::uint64_t next_ = 0;
  std::priority_queue<Event> events_;
  std::vector<std::function<void()>> acts_;  // by place
  std::vector<std::size_t> free_;            // places
};

}  // namespace ps::simulation
