#include "coordinator/core/leases.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "common/error_id.h"
#include "coordinator/core/json_writer.h"

namespace ps::coordinator {
namespace {

constexpr std::size_t kMaxReturned = 4096;

void AddRange(std::vector<Range>& ranges, Range range) {
  if (range.begin >= range.end) return;
  auto at = std::lower_bound(ranges.begin(), ranges.end(), range.begin,
                             [](const Range& r, std::uint64_t begin) { return r.begin < begin; });
  at = ranges.insert(at, range);
  if (at != ranges.begin() && std::prev(at)->end >= at->begin) {
    auto before = std::prev(at);
    before->end = std::max(before->end, at->end);
    at = std::prev(ranges.erase(at));
  }
  while (std::next(at) != ranges.end() && at->end >= std::next(at)->begin) {
    at->end = std::max(at->end, std::next(at)->end);
    ranges.erase(std::next(at));
  }
}

void AddRanges(JsonWriter& out, const std::vector<Range>& ranges) {
  out.BeginArray();
  for (const Range& range : ranges) out.Row(range.begin, range.end);
  out.EndArray();
}

}  // namespace

LeaseBook::LeaseBook(const Options& options) : options_(options) {
  PS_CHECK(options.batch > 0 && options.lease_records > 0 && options.records > 0 &&
           options.workers > 0);
}

void LeaseBook::SetWorkers(std::uint64_t workers) {
  PS_CHECK(workers > 0 && !options_.in_turn, workers);
  options_.workers = workers;
}

std::optional<control::LeaseT> LeaseBook::Grant(WorkerId worker, Incarnation incarnation,
                                                std::uint32_t push_records) {
  const auto range = options_.in_turn ? TakeInTurn(worker) : Take(push_records);
  if (!range) return std::nullopt;
  const auto [begin, end] = *range;
  const std::uint64_t id = next_lease_++;
  holdings_[id] = Holding{incarnation, worker, *range, 0, push_records};
  if (cut_open_ && cut_workers_.contains(incarnation)) AddRange(cut_remaining_, {begin, end});

  control::LeaseT lease;
  lease.id = id;
  lease.begin = begin;
  lease.end = end;
  lease.push_records = push_records;
  return lease;
}

LeaseBook::Turn LeaseBook::TurnOf(std::uint64_t position) const {
  const std::uint64_t size = options_.lease_records;
  const std::uint64_t epoch = position / options_.records;
  const std::uint64_t in_epoch = position % options_.records / size;
  const std::uint64_t begin = epoch * options_.records + in_epoch * size;
  const std::uint64_t end =
      std::min({begin + size, options_.total, (epoch + 1) * options_.records});
  return {epoch * ((options_.records + size - 1) / size) + in_epoch, {begin, end}};
}

std::optional<Range> LeaseBook::TakeInTurn(WorkerId worker) {
  absent_.erase(worker.value());
  if (!pool_.empty()) return Take(0);
  std::vector<Range>& own = set_aside_[worker.value()];
  while (own.empty() && cursor_ < options_.total) {
    const Turn turn = TurnOf(cursor_);
    // A leader of an earlier version may have left the cursor within a lease.
    const Range next{cursor_, turn.range.end};
    cursor_ = next.end;
    const auto whose = static_cast<std::uint32_t>(turn.number % options_.workers);
    set_aside_[absent_.contains(whose) ? worker.value() : whose].push_back(next);
  }
  if (own.empty()) return std::nullopt;
  const Range range = own.front();
  own.erase(own.begin());
  return range;
}

std::optional<Range> LeaseBook::Take(std::uint32_t push_records) {
  const bool from_pool = !pool_.empty();
  if (!from_pool && cursor_ >= options_.total) return std::nullopt;
  const std::uint64_t begin = from_pool ? pool_.front().begin : cursor_;
  const std::uint64_t limit = from_pool ? pool_.front().end : options_.total;

  std::uint64_t left = options_.total - cursor_;
  for (const Range& range : pool_) left += range.end - range.begin;
  const std::uint64_t share = left / (2 * options_.workers);
  const std::uint64_t push = push_records != 0 ? push_records : options_.batch;
  const std::uint64_t pushes =
      std::max<std::uint64_t>(1, std::min(options_.lease_records / options_.batch, share / push));
  const std::uint64_t epoch_end = (begin / options_.records + 1) * options_.records;
  const std::uint64_t end = std::min({begin + pushes * push, limit, epoch_end});

  if (from_pool) {
    pool_.front().begin = end;
    if (pool_.front().begin == pool_.front().end) pool_.erase(pool_.begin());
  } else {
    cursor_ = end;
  }
  return Range{begin, end};
}

std::vector<control::LeaseT> LeaseBook::GrantedAbove(Incarnation incarnation,
                                                     std::uint64_t highest) const {
  std::vector<control::LeaseT> leases;
  for (auto at = holdings_.upper_bound(highest); at != holdings_.end(); ++at) {
    if (at->second.incarnation != incarnation) continue;
    control::LeaseT lease;
    lease.id = at->first;
    lease.begin = at->second.range.begin;
    lease.end = at->second.range.end;
    lease.done = at->second.done;
    lease.push_records = at->second.push_records;
    leases.push_back(lease);
  }
  return leases;
}

void LeaseBook::Progress(Incarnation incarnation, std::uint64_t lease, std::uint64_t done) {
  const auto at = holdings_.find(lease);
  if (at == holdings_.end() || at->second.incarnation != incarnation) return;
  Holding& holding = at->second;
  const std::uint64_t size = holding.range.end - holding.range.begin;
  holding.done = std::max(holding.done, std::min(done, size));
  if (holding.done == size) holdings_.erase(at);
}

void LeaseBook::Return(WorkerId worker, Incarnation incarnation,
                       std::optional<std::uint64_t> last_lease, std::uint64_t last_done) {
  if (options_.in_turn) {
    absent_.insert(worker.value());
    for (const Range& range : set_aside_[worker.value()]) GiveBack(range);
    set_aside_.erase(worker.value());
  }
  for (auto at = holdings_.begin(); at != holdings_.end();) {
    Holding& holding = at->second;
    if (holding.incarnation != incarnation) {
      ++at;
      continue;
    }
    const std::uint64_t size = holding.range.end - holding.range.begin;
    if (last_lease) {
      if (at->first < *last_lease) holding.done = size;
      if (at->first == *last_lease)
        holding.done = std::max(holding.done, std::min(last_done, size));
    } else {
      returned_.push_back(Returned{incarnation, at->first, holding.range, holding.done});
      if (returned_.size() > kMaxReturned) returned_.erase(returned_.begin());
    }
    GiveBack({holding.range.begin + holding.done, holding.range.end});
    at = holdings_.erase(at);
  }
}

void LeaseBook::Reclaim(Incarnation incarnation, std::uint64_t last_lease,
                        std::uint64_t last_done) {
  for (auto at = returned_.begin(); at != returned_.end();) {
    if (at->incarnation != incarnation) {
      ++at;
      continue;
    }
    const std::uint64_t size = at->whole.end - at->whole.begin;
    std::uint64_t done = at->done;
    if (at->lease < last_lease) done = size;
    if (at->lease == last_lease) done = std::max(done, std::min(last_done, size));
    const Range found{at->whole.begin + at->done, at->whole.begin + done};
    repeated_ += (found.end - found.begin) - TakeFromPool(found);
    at = returned_.erase(at);
  }
}

void LeaseBook::BeginCut() {
  cut_open_ = true;
  cut_workers_.clear();
  cut_remaining_.clear();
}

void LeaseBook::CutWorker(Incarnation incarnation) {
  PS_CHECK(cut_open_, "a cut without BeginCut");
  cut_workers_[incarnation] = true;
  for (const auto& [id, holding] : holdings_) {
    if (holding.incarnation != incarnation) continue;
    AddRange(cut_remaining_, {holding.range.begin + holding.done, holding.range.end});
  }
}

std::vector<Range> LeaseBook::RemainingAtCut() const {
  std::vector<Range> remaining = cut_remaining_;
  for (const Range& range : pool_) AddRange(remaining, range);
  for (const auto& [worker, ranges] : set_aside_) {
    for (const Range& range : ranges) AddRange(remaining, range);
  }
  AddRange(remaining, {cursor_, options_.total});
  return remaining;
}

bool LeaseBook::NothingToGrant() const {
  return pool_.empty() && cursor_ >= options_.total &&
         std::all_of(set_aside_.begin(), set_aside_.end(),
                     [](const auto& worker) { return worker.second.empty(); });
}

bool LeaseBook::AllTrained() const { return NothingToGrant() && holdings_.empty(); }

std::uint64_t LeaseBook::trained() const {
  std::uint64_t trained = cursor_;
  for (const Range& range : pool_) trained -= range.end - range.begin;
  for (const auto& [worker, ranges] : set_aside_) {
    for (const Range& range : ranges) trained -= range.end - range.begin;
  }
  for (const auto& [id, holding] : holdings_) {
    trained -= holding.range.end - holding.range.begin - holding.done;
  }
  return trained;
}

void LeaseBook::Reset(const std::vector<Range>& remaining) {
  holdings_.clear();
  returned_.clear();
  pool_.clear();
  set_aside_.clear();
  absent_.clear();
  cut_open_ = false;
  cursor_ = options_.total;
  if (options_.in_turn) return ResetTurns(remaining);
  for (const Range& range : remaining) GiveBack(range);
  // The tail that was never granted needs no pool entry.
  if (!pool_.empty() && pool_.back().end == options_.total) {
    cursor_ = pool_.back().begin;
    pool_.pop_back();
  }
}

void LeaseBook::ResetTurns(const std::vector<Range>& remaining) {
  std::vector<Range> left;
  for (const Range& range : remaining) AddRange(left, range);
  if (!left.empty() && left.back().end == options_.total) {
    // From the first whole lease on.
    const Range first = TurnOf(left.back().begin).range;
    cursor_ = first.begin == left.back().begin ? first.begin : first.end;
    left.back().end = cursor_;
  }
  for (const Range& range : left) {
    for (std::uint64_t at = range.begin; at < range.end;) {
      const Turn turn = TurnOf(at);
      const std::uint64_t end = std::min(turn.range.end, range.end);
      set_aside_[static_cast<std::uint32_t>(turn.number % options_.workers)].push_back({at, end});
      at = end;
    }
  }
}

void LeaseBook::GiveBack(Range range) { AddRange(pool_, range); }

std::uint64_t LeaseBook::TakeFromPool(Range range) {
  std::uint64_t taken = 0;
  std::vector<Range> rest;
  for (const Range& piece : pool_) {
    const std::uint64_t begin = std::max(piece.begin, range.begin);
    const std::uint64_t end = std::min(piece.end, range.end);
    if (begin >= end) {
      rest.push_back(piece);
      continue;
    }
    taken += end - begin;
    if (piece.begin < begin) rest.push_back({piece.begin, begin});
    if (end < piece.end) rest.push_back({end, piece.end});
  }
  pool_ = std::move(rest);
  return taken;
}

void LeaseBook::Write(JsonWriter& out) const {
  out.BeginObject();
  out.Member("absent", absent_);
  out.Member("batch", options_.batch);
  out.Member("cursor", cursor_);
  out.Key("holdings");
  out.BeginArray();
  for (const auto& [id, holding] : holdings_) {
    out.Row(id, holding.incarnation.value(), holding.worker.value(), holding.range.begin,
            holding.range.end, holding.done, holding.push_records);
  }
  out.EndArray();
  out.Member("in_turn", options_.in_turn);
  out.Member("lease_records", options_.lease_records);
  out.Member("next_lease", next_lease_);
  // For a leader of an earlier version, which cannot do without.
  out.Member("next_turn", options_.in_turn ? TurnOf(cursor_).number : 0);
  out.Key("pool");
  AddRanges(out, pool_);
  out.Member("records", options_.records);
  out.Member("repeated", repeated_);
  out.Key("returned");
  out.BeginArray();
  for (const Returned& entry : returned_) {
    out.Row(entry.incarnation.value(), entry.lease, entry.whole.begin, entry.whole.end, entry.done);
  }
  out.EndArray();
  out.Key("set_aside");
  out.BeginArray();
  for (const auto& [worker, ranges] : set_aside_) {
    out.BeginArray();
    out.Add(worker);
    AddRanges(out, ranges);
    out.EndArray();
  }
  out.EndArray();
  out.Member("total", options_.total);
  out.Member("workers", options_.workers);
  out.EndObject();
}

Result<LeaseBook> LeaseBook::FromJson(const nlohmann::json& json) {
  try {
    Options options;
    options.records = json.at("records").get<std::uint64_t>();
    options.total = json.at("total").get<std::uint64_t>();
    options.batch = json.at("batch").get<std::uint64_t>();
    options.lease_records = json.at("lease_records").get<std::uint64_t>();
    options.workers = json.at("workers").get<std::uint64_t>();
    options.in_turn = json.at("in_turn").get<bool>();
    if (options.records == 0 || options.batch == 0 || options.lease_records == 0 ||
        options.workers == 0) {
      return Error{ErrorId::kZooKeeperContent, "lease book: a size is zero"};
    }
    LeaseBook book(options);
    book.cursor_ = json.at("cursor").get<std::uint64_t>();
    book.next_lease_ = json.at("next_lease").get<std::uint64_t>();
    book.repeated_ = json.at("repeated").get<std::uint64_t>();
    book.absent_ = json.at("absent").get<std::set<std::uint32_t>>();
    for (const auto& entry : json.at("set_aside")) {
      std::vector<Range>& ranges = book.set_aside_[entry.at(0).get<std::uint32_t>()];
      for (const auto& pair : entry.at(1)) {
        const Range range{pair.at(0).get<std::uint64_t>(), pair.at(1).get<std::uint64_t>()};
        if (range.begin >= range.end) {
          return Error{ErrorId::kZooKeeperContent, "lease book: a range set aside is out of order"};
        }
        ranges.push_back(range);
      }
    }
    for (const auto& range : json.at("pool")) {
      book.GiveBack({range.at(0).get<std::uint64_t>(), range.at(1).get<std::uint64_t>()});
    }
    for (const auto& entry : json.at("holdings")) {
      Holding holding;
      holding.incarnation = Incarnation(entry.at(1).get<std::uint32_t>());
      holding.worker = WorkerId(entry.at(2).get<std::uint32_t>());
      holding.range = {entry.at(3).get<std::uint64_t>(), entry.at(4).get<std::uint64_t>()};
      holding.done = entry.at(5).get<std::uint64_t>();
      // A leader of an earlier version wrote none.
      if (entry.size() > 6) holding.push_records = entry.at(6).get<std::uint32_t>();
      if (holding.range.begin > holding.range.end ||
          holding.done > holding.range.end - holding.range.begin) {
        return Error{ErrorId::kZooKeeperContent, "lease book: a lease is out of order"};
      }
      book.holdings_[entry.at(0).get<std::uint64_t>()] = holding;
    }
    for (const auto& entry : json.at("returned")) {
      book.returned_.push_back(
          Returned{Incarnation(entry.at(0).get<std::uint32_t>()), entry.at(1).get<std::uint64_t>(),
                   Range{entry.at(2).get<std::uint64_t>(), entry.at(3).get<std::uint64_t>()},
                   entry.at(4).get<std::uint64_t>()});
    }
    return book;
  } catch (const nlohmann::json::exception& e) {
    return Error{ErrorId::kZooKeeperContent, std::string("lease book: ") + e.what()};
  }
}

}  // namespace ps::coordinator
