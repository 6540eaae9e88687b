#include "coordinator/core/leases.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <vector>

#include "coordinator/core/json_writer.h"

namespace ps::coordinator {
namespace {

nlohmann::json Written(const LeaseBook& book) {
  JsonWriter out;
  book.Write(out);
  return nlohmann::json::parse(out.Take());
}

LeaseBook::Options Small() {
  LeaseBook::Options options;
  options.records = 1000;
  options.total = 3000;
  options.batch = 32;
  options.lease_records = 128;
  options.workers = 2;
  return options;
}

TEST(LeaseBookTest, GrantsEveryPositionOnceAndNeverAcrossAnEpoch) {
  LeaseBook book(Small());
  std::uint64_t next = 0;
  while (auto lease = book.Grant(WorkerId(0), Incarnation(1))) {
    EXPECT_EQ(lease->begin, next);
    EXPECT_EQ(lease->begin / 1000, (lease->end - 1) / 1000);
    next = lease->end;
    book.Progress(Incarnation(1), lease->id, lease->end - lease->begin);
  }
  EXPECT_EQ(next, 3000u);
  EXPECT_TRUE(book.AllTrained());
  EXPECT_EQ(book.trained(), 3000u);
}

TEST(LeaseBookTest, PushesOfAnySizeTrainEveryPositionOnce) {
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    LeaseBook book(Small());
    std::vector<int> trained(3000);
    std::map<std::uint64_t, std::uint32_t> records_of;
    while (true) {
      const Incarnation worker(1 + static_cast<std::uint32_t>(random() % 3));
      const auto records = static_cast<std::uint32_t>(1 + random() % 100);
      const auto lease = book.Grant(WorkerId(worker.value()), worker, records);
      if (!lease) break;
      EXPECT_EQ(lease->push_records, records);
      // Whole pushes, but for the end of an epoch and what the dead have left.
      const std::uint64_t size = lease->end - lease->begin;
      EXPECT_TRUE(size % records == 0 || lease->end % 1000 == 0 || seed % 2 == 1) << seed;
      std::uint64_t done = size;
      if (seed % 2 == 1 && random() % 4 == 0) done = random() % size;
      book.Progress(worker, lease->id, done);
      for (std::uint64_t at = 0; at < done; ++at) ++trained[lease->begin + at];
      if (done < size) book.Return(WorkerId(worker.value()), worker, std::nullopt, 0);
    }
    EXPECT_TRUE(book.AllTrained());
    EXPECT_EQ(trained, std::vector<int>(3000, 1)) << seed;
  }
}

TEST(LeaseBookTest, AGrantThatIsRepeatedHasTheSamePushes) {
  LeaseBook book(Small());
  book.Grant(WorkerId(0), Incarnation(1), 48);
  book = *LeaseBook::FromJson(Written(book));
  const auto again = book.GrantedAbove(Incarnation(1), 0);
  ASSERT_EQ(again.size(), 1u);
  EXPECT_EQ(again[0].push_records, 48u);
  EXPECT_EQ((again[0].end - again[0].begin) % 48, 0u);
}

TEST(LeaseBookTest, ShortBatchesOccurOnlyAtTheEndOfAnEpoch) {
  LeaseBook book(Small());
  while (auto lease = book.Grant(WorkerId(0), Incarnation(1))) {
    if ((lease->end - lease->begin) % 32 != 0) {
      EXPECT_EQ(lease->end % 1000, 0u);
    }
  }
}

TEST(LeaseBookTest, InTurnTheLeasesOfAWorkerDoNotDependOnWhoAsksFirst) {
  LeaseBook::Options options = Small();
  options.workers = 3;
  options.in_turn = true;
  std::vector<std::vector<std::uint64_t>> expected;
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    LeaseBook book(options);
    std::vector<std::vector<std::uint64_t>> begins(3);
    std::set<std::uint32_t> done;
    while (done.size() < 3) {
      const auto worker = static_cast<std::uint32_t>(random() % 3);
      const auto lease = book.Grant(WorkerId(worker), Incarnation(worker + 1));
      if (!lease) {
        done.insert(worker);
        continue;
      }
      begins[worker].push_back(lease->begin);
      book.Progress(Incarnation(worker + 1), lease->id, lease->end - lease->begin);
      if (random() % 5 == 0) book = *LeaseBook::FromJson(Written(book));
    }
    EXPECT_TRUE(book.AllTrained());
    EXPECT_EQ(book.trained(), 3000u);
    if (expected.empty()) expected = begins;
    EXPECT_EQ(begins, expected) << "seed " << seed;
  }
}

TEST(LeaseBookTest, InTurnWhatTheDeadLeaveIsTrainedByTheOthers) {
  LeaseBook::Options options = Small();
  options.in_turn = true;
  LeaseBook book(options);
  book.Grant(WorkerId(0), Incarnation(1));
  book.Return(WorkerId(0), Incarnation(1), std::nullopt, 0);
  std::uint64_t records = 0;
  while (const auto lease = book.Grant(WorkerId(1), Incarnation(2))) {
    records += lease->end - lease->begin;
    book.Progress(Incarnation(2), lease->id, lease->end - lease->begin);
  }
  EXPECT_EQ(records, 3000u);
  EXPECT_TRUE(book.AllTrained());
}

// What is trained before a checkpoint and after it is what would have been trained without.
TEST(LeaseBookTest, InTurnAResetGivesAllTheLeasesThatTheyWouldHaveHad) {
  LeaseBook::Options options = Small();
  options.workers = 3;
  options.in_turn = true;
  options.total = 2750;  // ends within an epoch
  // By worker, what it trains batch by batch.
  using Batches = std::vector<std::vector<std::uint64_t>>;
  const auto train = [&](LeaseBook& book, std::uint32_t generation, std::uint64_t batches,
                         Batches& trained) {
    std::vector<std::optional<control::LeaseT>> leases(3);
    for (std::uint64_t i = 0; i < batches; ++i) {
      // One worker is a batch ahead of the others: they are all in one step.
      for (std::uint32_t worker = 0; worker < 3; ++worker) {
        if (i + 1 == batches && batches < 1000 && worker == generation % 3) continue;
        const Incarnation incarnation(3 * generation + worker);
        std::optional<control::LeaseT>& lease = leases[worker];
        if (!lease || lease->begin + lease->done == lease->end) {
          lease = book.Grant(WorkerId(worker), incarnation);
        }
        if (!lease) continue;
        trained[worker].push_back(lease->begin + lease->done);
        lease->done = std::min(lease->done + options.batch, lease->end - lease->begin);
        book.Progress(incarnation, lease->id, lease->done);
      }
    }
    book.BeginCut();
    for (std::uint32_t worker = 0; worker < 3; ++worker) {
      book.CutWorker(Incarnation(3 * generation + worker));
    }
  };
  LeaseBook alone(options);
  Batches expected(3);
  train(alone, 1, 1000, expected);
  ASSERT_TRUE(alone.AllTrained());
  for (const std::uint64_t stop : {1, 2, 5, 8, 20, 27}) {
    LeaseBook book(options);
    Batches trained(3);
    for (std::uint32_t generation = 1; generation < 4; ++generation) {
      train(book, generation, stop, trained);
      book.Reset(book.RemainingAtCut());
      book = *LeaseBook::FromJson(Written(book));
    }
    train(book, 4, 1000, trained);
    EXPECT_TRUE(book.AllTrained()) << stop;
    EXPECT_EQ(trained, expected) << stop;
  }
}

TEST(LeaseBookTest, ReturnWithARingTakesTheRingsWord) {
  LeaseBook book(Small());
  const auto first = book.Grant(WorkerId(0), Incarnation(1));
  const auto second = book.Grant(WorkerId(0), Incarnation(1));
  // Nothing was reported, but the ring shows the first lease and 32 records of the second.
  book.Return(WorkerId(0), Incarnation(1), second->id, 32);
  EXPECT_EQ(book.trained(), (first->end - first->begin) + 32);
  const auto again = book.Grant(WorkerId(1), Incarnation(2));
  EXPECT_EQ(again->begin, second->begin + 32);
}

TEST(LeaseBookTest, RingFoundLaterIsTakenOutOfThePoolOrCountedAsRepeated) {
  LeaseBook book(Small());
  const auto lease = book.Grant(WorkerId(0), Incarnation(1));
  book.Return(WorkerId(0), Incarnation(1), std::nullopt, 0);
  EXPECT_EQ(book.trained(), 0u);
  // Half of it was trained and can be taken out of the pool: nothing is repeated.
  LeaseBook other = *LeaseBook::FromJson(Written(book));
  book.Reclaim(Incarnation(1), lease->id, 64);
  EXPECT_EQ(book.trained(), 64u);
  EXPECT_EQ(book.repeated(), 0u);
  // The same, but somebody else has got the range meanwhile.
  ASSERT_TRUE(other.Grant(WorkerId(1), Incarnation(2)));
  other.Reclaim(Incarnation(1), lease->id, 64);
  EXPECT_EQ(other.repeated(), 64u);
}

TEST(LeaseBookTest, CutHoldsWhatIsUntrainedAtEachWorkersMarker) {
  LeaseBook book(Small());
  const auto a = book.Grant(WorkerId(0), Incarnation(1));
  const auto b = book.Grant(WorkerId(1), Incarnation(2));
  book.BeginCut();
  book.Progress(Incarnation(1), a->id, 32);
  book.CutWorker(Incarnation(1));
  // After its cut worker 1 finishes its lease and gets another: both stay in what remains.
  book.Progress(Incarnation(1), a->id, a->end - a->begin);
  const auto c = book.Grant(WorkerId(0), Incarnation(1));
  book.Progress(Incarnation(1), c->id, c->end - c->begin);
  book.Progress(Incarnation(2), b->id, 64);
  book.CutWorker(Incarnation(2));
  const std::vector<Range> remaining = book.RemainingAtCut();
  ASSERT_EQ(remaining.size(), 2u);
  EXPECT_EQ(remaining[0], (Range{a->begin + 32, a->end}));
  EXPECT_EQ(remaining[1], (Range{b->begin + 64, 3000}));
}

TEST(LeaseBookTest, ResetGoesOnWithWhatRemained) {
  LeaseBook book(Small());
  book.Reset({{10, 20}, {500, 3000}});
  EXPECT_EQ(book.trained(), 490u);
  const auto lease = book.Grant(WorkerId(0), Incarnation(5));
  EXPECT_EQ(lease->begin, 10u);
  EXPECT_EQ(lease->end, 20u);
  EXPECT_EQ(book.Grant(WorkerId(0), Incarnation(5))->begin, 500u);
}

TEST(LeaseBookTest, GrantsThatWereNeverHeardOfAreGivenAgain) {
  LeaseBook book(Small());
  const auto a = book.Grant(WorkerId(0), Incarnation(1));
  const auto b = book.Grant(WorkerId(0), Incarnation(1));
  const auto again = book.GrantedAbove(Incarnation(1), a->id);
  ASSERT_EQ(again.size(), 1u);
  EXPECT_EQ(again[0].id, b->id);
  EXPECT_TRUE(book.GrantedAbove(Incarnation(2), 0).empty());
}

TEST(LeaseBookTest, RefusesABookThatContradictsItself) {
  auto json = Written(LeaseBook(Small()));
  json["batch"] = 0;
  EXPECT_FALSE(LeaseBook::FromJson(json).ok());
  json = Written(LeaseBook(Small()));
  json["holdings"].push_back({1, 1, 0, 10, 5, 0});
  EXPECT_FALSE(LeaseBook::FromJson(json).ok());
  json.erase("pool");
  EXPECT_FALSE(LeaseBook::FromJson(json).ok());
}

// Workers that come, go, report late and leave rings: each position is trained at least once, and
// trained counts what is known exactly.
TEST(LeaseBookTest, RandomLivesOfWorkersTrainEveryPosition) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    LeaseBook book(Small());
    std::vector<int> trained(3000, 0);
    struct Worker {
      std::vector<control::LeaseT> leases;
      std::size_t current = 0;
      std::uint64_t done = 0;
    };
    std::map<std::uint32_t, Worker> workers;
    std::uint32_t next = 1;
    std::uint64_t lost_reports = 0;
    for (int turn = 0; turn < 200'000 && !book.AllTrained(); ++turn) {
      if (workers.size() < 3) workers[next++];
      auto at = workers.begin();
      std::advance(at, random() % workers.size());
      auto& [incarnation, worker] = *at;
      if (worker.current == worker.leases.size()) {
        if (auto lease = book.Grant(WorkerId(0), Incarnation(incarnation))) {
          worker.leases.push_back(*lease);
        }
        continue;
      }
      const auto& lease = worker.leases[worker.current];
      const std::uint64_t size = lease.end - lease.begin;
      const std::uint64_t step = std::min<std::uint64_t>(32, size - worker.done);
      for (std::uint64_t i = 0; i < step; ++i) ++trained[lease.begin + worker.done + i];
      worker.done += step;
      const bool report = random() % 3 == 0 || worker.done == size;
      if (report) book.Progress(Incarnation(incarnation), lease.id, worker.done);
      const bool finished = worker.done == size;
      if (random() % 40 == 0 && !finished) {
        if (random() % 2 == 0) {
          book.Return(WorkerId(0), Incarnation(incarnation), lease.id, worker.done);
        } else {
          ++lost_reports;
          book.Return(WorkerId(0), Incarnation(incarnation), std::nullopt, 0);
        }
        workers.erase(at);
        continue;
      }
      if (finished) {
        ++worker.current;
        worker.done = 0;
      }
      if (random() % 50 == 0) {
        auto copy = LeaseBook::FromJson(Written(book));
        ASSERT_TRUE(copy.ok());
        book = std::move(copy).value();
      }
    }
    ASSERT_TRUE(book.AllTrained()) << "seed " << seed;
    for (std::size_t i = 0; i < trained.size(); ++i) {
      ASSERT_GE(trained[i], 1) << "seed " << seed << " position " << i;
      if (lost_reports == 0) {
        ASSERT_EQ(trained[i], 1) << "seed " << seed << " position " << i;
      }
    }
  }
}

}  // namespace
}  // namespace ps::coordinator
