// A row table with all features at once, beside a model of it made of standard containers.

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory_resource>
#include <optional>
#include <random>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "ps-server/core/rows/row_table.h"

namespace ps::server {
namespace {

constexpr std::uint32_t kWidth = 5;
constexpr std::uint32_t kSlots = 2;

struct ModelRow {
  std::uint32_t updates = 0;
  std::uint32_t last_used = 0;
  std::vector<float> floats;
};

struct Pushed {
  std::vector<std::uint64_t> keys;
  std::vector<float> gradient;  // one a key
  std::uint32_t tick = 0;
};

void Update(float gradient, std::uint32_t updates, float* values, float* slots) {
  for (std::uint32_t i = 0; i < kWidth; ++i)
    values[i] -= gradient / static_cast<float>(i + updates);
  slots[0] += gradient * gradient;
  slots[1] = static_cast<float>(updates);
}

// What the header of RowTable says, in the plainest way.
class Model {
 public:
  explicit Model(const RowTableRules& rules) : rules_(rules) {}

  void Push(const Pushed& push) {
    const std::uint32_t before = now_;
    now_ = std::max(now_, push.tick);
    const std::uint32_t period = rules_.unused_max / 16;
    if (before / period != now_ / period) {
      counters_.expired += std::erase_if(rows_, [&](const auto& entry) {
        return now_ - entry.second.last_used > rules_.unused_max;
      });
    }
    std::vector<std::size_t> unknown;
    for (std::size_t at = 0; at < push.keys.size(); ++at) {
      const auto found = rows_.find(push.keys[at]);
      if (found == rows_.end()) {
        unknown.push_back(at);
      } else {
        Use(found->second, push.gradient[at]);
      }
    }
    std::vector<std::size_t> admitted;
    for (const std::size_t at : unknown) {
      if (++seen_[push.keys[at]] >= rules_.sightings) {
        admitted.push_back(at);
      } else {
        ++counters_.rejected;
      }
    }
    if (rows_.size() + admitted.size() > rules_.rows_max) {
      if (rules_.when_full != RowsFull::kRefuse) MakeRoom(admitted.size());
      while (rows_.size() + admitted.size() > rules_.rows_max) {
        admitted.pop_back();
        ++counters_.refused;
      }
    }
    for (const std::size_t at : admitted) {
      ModelRow& row = rows_[push.keys[at]];
      row.floats.resize(kWidth + kSlots);
      rules_.initializer.Fill(push.keys[at], std::span(row.floats).first(kWidth));
      std::copy(rules_.initial_slots.begin(), rules_.initial_slots.end(),
                row.floats.begin() + kWidth);
      ++counters_.created;
      Use(row, push.gradient[at]);
    }
  }

  const ModelRow* Find(std::uint64_t key) const {
    const auto found = rows_.find(key);
    return found == rows_.end() ? nullptr : &found->second;
  }
  std::size_t rows() const { return rows_.size(); }
  const RowCounters& counters() const { return counters_; }

 private:
  void Use(ModelRow& row, float gradient) const {
    ++row.updates;
    row.last_used = now_;
    Update(gradient, row.updates, row.floats.data(), row.floats.data() + kWidth);
  }

  void MakeRoom(std::size_t wanted) {
    std::vector<std::tuple<std::uint32_t, std::uint32_t, std::uint64_t>> order;
    for (const auto& [key, row] : rows_) {
      order.emplace_back(rules_.when_full == RowsFull::kLfu ? row.updates : 0, row.last_used, key);
    }
    std::sort(order.begin(), order.end());
    const std::size_t many = std::min(
        order.size(),
        std::max<std::size_t>(rows_.size() + wanted - rules_.rows_max, rules_.rows_max / 16));
    for (std::size_t i = 0; i < many; ++i) rows_.erase(std::get<2>(order[i]));
    counters_.evicted += many;
  }

  const RowTableRules rules_;
  std::unordered_map<std::uint64_t, ModelRow> rows_;
  std::unordered_map<std::uint64_t, std::uint32_t> seen_;
  std::uint32_t now_ = 0;
  RowCounters counters_;
};

class RowTableModelTest : public testing::TestWithParam<RowsFull> {
 protected:
  static constexpr std::uint64_t kKeys = 3000;

  static RowTableRules Rules() {
    RowTableRules rules;
    rules.table = 1;
    rules.width = kWidth;
    rules.initializer = RowInitializer(RowInitializer::Kind::kNormal, 0, 0.1F, 5, 1);
    rules.initial_slots = {0.1F, 0};
    rules.sightings = 3;
    rules.sketch_bytes = 1 << 21;  // no two keys meet, and it does not age in this test
    rules.unused_max = 160;
    rules.rows_max = 700;
    rules.when_full = GetParam();
    return rules;
  }

  static std::uint64_t NameOf(std::uint64_t key) { return key * 0x9e3779b97f4a7c15u; }

  Pushed MakePush(std::uint32_t tick) {
    Pushed push;
    push.tick = tick;
    const std::size_t count = random_() % 60;
    for (std::size_t i = 0; i < count; ++i) {
      // Some keys are used much more than others.
      const double u = std::uniform_real_distribution<double>(0, 1)(random_);
      push.keys.push_back(NameOf(static_cast<std::uint64_t>(u * u * kKeys)));
    }
    std::sort(push.keys.begin(), push.keys.end());
    push.keys.erase(std::unique(push.keys.begin(), push.keys.end()), push.keys.end());
    for (std::size_t i = 0; i < push.keys.size(); ++i) {
      push.gradient.push_back(std::uniform_real_distribution<float>(-1, 1)(random_));
    }
    return push;
  }

  static void Push(RowTable& table, const Pushed& push) {
    table.Push(push.keys, push.tick,
               [&](std::size_t at, std::uint32_t updates, float* values, float* slots) {
                 Update(push.gradient[at], updates, values, slots);
               });
  }

  static void ExpectSame(const RowTable& table, const Model& model) {
    ASSERT_EQ(table.rows(), model.rows());
    std::vector<std::uint64_t> keys;
    for (std::uint64_t key = 0; key < kKeys; ++key) keys.push_back(NameOf(key));
    table.Read(keys, [&](std::size_t at, const float* values) {
      const ModelRow* const row = model.Find(keys[at]);
      ASSERT_EQ(values != nullptr, row != nullptr) << at;
      if (row == nullptr) return;
      ASSERT_EQ(std::vector<float>(values, values + kWidth + kSlots), row->floats) << at;
    });
    EXPECT_EQ(table.counters().created, model.counters().created);
    EXPECT_EQ(table.counters().rejected, model.counters().rejected);
    EXPECT_EQ(table.counters().refused, model.counters().refused);
    EXPECT_EQ(table.counters().expired, model.counters().expired);
    EXPECT_EQ(table.counters().evicted, model.counters().evicted);
  }

  std::mt19937_64 random_{7};
};

TEST_P(RowTableModelTest, DoesWhatTheModelDoes) {
  RowTable table(Rules(), 1, std::pmr::new_delete_resource());
  Model model(Rules());
  std::uint32_t tick = 0;
  for (int step = 0; step < 4000; ++step) {
    if (step % 700 == 699) tick += 200;  // everything expires
    tick += random_() % 2;
    const Pushed push = MakePush(tick);
    Push(table, push);
    model.Push(push);
    if (step % 100 == 99) ExpectSame(table, model);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(table.counters().created, 1000u);
  EXPECT_GT(table.counters().rejected, 1000u);
  EXPECT_GT(table.counters().expired, 1000u);
  if (GetParam() == RowsFull::kRefuse) {
    EXPECT_GT(table.counters().refused, 1000u);
  } else {
    EXPECT_GT(table.counters().evicted, 1000u);
  }
}

TEST_P(RowTableModelTest, ARestoredTableGoesOnBitForBit) {
  RowTableRules rules = Rules();
  rules.sketch_bytes = 1 << 12;  // keys meet, counters age
  RowTable table(rules, 1, std::pmr::new_delete_resource());
  std::uint32_t tick = 0;
  for (int step = 0; step < 1000; ++step) Push(table, MakePush(tick += random_() % 2));

  checkpoint::RowTableImage image = table.Freeze().ToImage();
  checkpoint::SortRows(image);
  RowTable restored(rules, 2, std::pmr::new_delete_resource());
  ASSERT_TRUE(restored.Restore(image).ok());
  for (int step = 0; step < 1000; ++step) {
    const Pushed push = MakePush(tick += random_() % 2);
    Push(table, push);
    Push(restored, push);
    if (step % 100 != 99 && step != 0) continue;
    checkpoint::RowTableImage here = table.Freeze().ToImage();
    checkpoint::RowTableImage there = restored.Freeze().ToImage();
    checkpoint::SortRows(here);
    checkpoint::SortRows(there);
    ASSERT_TRUE(here == there) << step;
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, RowTableModelTest,
                         testing::Values(RowsFull::kRefuse, RowsFull::kLru, RowsFull::kLfu),
                         [](const auto& policy) {
                           switch (policy.param) {
                             case RowsFull::kRefuse: return "Refuse";
                             case RowsFull::kLru: return "Lru";
                             case RowsFull::kLfu: return "Lfu";
                           }
                           return "";
                         });

}  // namespace
}  // namespace ps::server
