#include "ps-server/core/rows/row_table.h"

#include <gtest/gtest.h>

#include <map>
#include <memory_resource>
#include <numeric>
#include <vector>

namespace ps::server {
namespace {

using Keys = std::vector<std::uint64_t>;

class RowTableTest : public testing::Test {
 protected:
  static RowTableRules Rules() {
    RowTableRules rules;
    rules.table = 2;
    rules.width = 3;
    rules.initializer = RowInitializer(RowInitializer::Kind::kUniform, -1, 1, 42, 2);
    rules.initial_slots = {0.5F, 7};
    return rules;
  }
  static RowTable Make(const RowTableRules& rules) {
    return RowTable(rules, 123, std::pmr::new_delete_resource());
  }
  // Adds 1 to each value and counts in the first slot.
  static void Add(RowTable& table, const Keys& keys, std::uint32_t tick) {
    table.Push(keys, tick, [](std::size_t, std::uint32_t, float* values, float* slots) {
      for (int i = 0; i < 3; ++i) values[i] += 1;
      slots[0] += 1;
    });
  }
  // The keys that are there.
  static Keys Known(const RowTable& table, const Keys& keys) {
    Keys known;
    table.Read(keys, [&](std::size_t at, const float* values) {
      if (values != nullptr) known.push_back(keys[at]);
    });
    return known;
  }
  static Keys Range(std::uint64_t first, std::uint64_t last) {
    Keys keys(last - first + 1);
    std::iota(keys.begin(), keys.end(), first);
    return keys;
  }
};

TEST_F(RowTableTest, ReadingMakesNoRow) {
  RowTable table = Make(Rules());
  EXPECT_EQ(Known(table, Range(1, 50)), Keys());
  EXPECT_EQ(table.rows(), 0u);
  EXPECT_EQ(table.Export(), Make(Rules()).Export());
}

TEST_F(RowTableTest, AFirstPushStartsFromInitialiserAndInitialSlots) {
  RowTable table = Make(Rules());
  std::vector<float> expected(3);
  Rules().initializer.Fill(11, expected);
  std::uint32_t calls = 0;
  table.Push(Keys{11}, 4, [&](std::size_t at, std::uint32_t updates, float* values, float* slots) {
    ++calls;
    EXPECT_EQ(at, 0u);
    EXPECT_EQ(updates, 1u);
    EXPECT_EQ(std::vector<float>(values, values + 3), expected);
    EXPECT_EQ(slots[0], 0.5F);
    EXPECT_EQ(slots[1], 7.0F);
  });
  EXPECT_EQ(calls, 1u);
  EXPECT_EQ(table.counters().created, 1u);
}

TEST_F(RowTableTest, RemovedRowsComeBackWithFreshValuesAndSlots) {
  RowTableRules rules = Rules();
  rules.unused_max = 16;
  RowTable table = Make(rules);
  for (std::uint32_t tick = 0; tick < 5; ++tick) Add(table, Keys{11}, tick);
  Add(table, Keys{12}, 30);  // 11 expires, and its record is used for 12
  EXPECT_EQ(Known(table, Keys{11, 12}), Keys{12});
  const auto fresh = [&](std::size_t, std::uint32_t updates, float*, const float* slots) {
    EXPECT_EQ(updates, 1u);
    EXPECT_EQ(slots[0], 0.5F);
    EXPECT_EQ(slots[1], 7.0F);
  };
  table.Push(Keys{11}, 31, fresh);
  table.Push(Keys{13}, 31, fresh);
}

TEST_F(RowTableTest, RowsAreMadeOnceTheyWereSeenOftenEnough) {
  RowTableRules rules = Rules();
  rules.sightings = 3;
  rules.sketch_bytes = 1 << 12;
  RowTable table = Make(rules);
  Add(table, Keys{1, 2}, 1);
  Add(table, Keys{1}, 2);
  EXPECT_EQ(table.rows(), 0u);
  EXPECT_EQ(table.counters().rejected, 3u);
  Add(table, Keys{1, 2}, 3);
  EXPECT_EQ(Known(table, Keys{1, 2}), Keys{1});
  EXPECT_EQ(table.counters().rejected, 4u);
  EXPECT_EQ(table.counters().created, 1u);
}

TEST_F(RowTableTest, RowsThatNobodyUsesExpire) {
  RowTableRules rules = Rules();
  rules.unused_max = 160;
  RowTable table = Make(rules);
  Add(table, Keys{1, 2}, 0);
  Add(table, Keys{2}, 160);
  Add(table, Keys{3}, 161);
  EXPECT_EQ(Known(table, Keys{1, 2, 3}), Keys({1, 2, 3})) << "no sixteenth of 160 was crossed";
  Add(table, Keys{3}, 170);
  EXPECT_EQ(Known(table, Keys{1, 2, 3}), Keys({2, 3}));
  EXPECT_EQ(table.counters().expired, 1u);
  Add(table, {}, 400);
  EXPECT_EQ(table.rows(), 0u);
  EXPECT_EQ(table.counters().expired, 3u);
}

TEST_F(RowTableTest, ATickThatFallsCountsAsTheLast) {
  RowTableRules rules = Rules();
  rules.unused_max = 32;
  RowTable table = Make(rules);
  Add(table, Keys{1}, 50);
  Add(table, Keys{2}, 10);
  EXPECT_EQ(Known(table, Keys{1, 2}), Keys({1, 2}));
  Add(table, {}, 50 + 32);
  EXPECT_EQ(Known(table, Keys{1, 2}), Keys({1, 2}));
}

TEST_F(RowTableTest, AFullTableRefusesNewRowsAndUpdatesOld) {
  RowTableRules rules = Rules();
  rules.rows_max = 3;
  RowTable table = Make(rules);
  Add(table, Keys{1, 2}, 1);
  Add(table, Keys{1, 5, 7, 9}, 2);
  EXPECT_EQ(Known(table, Range(1, 9)), Keys({1, 2, 5}));
  EXPECT_EQ(table.counters().refused, 2u);
}

TEST_F(RowTableTest, LruEvictsTheLongestUnusedAndOfEqualsTheLowerKey) {
  RowTableRules rules = Rules();
  rules.rows_max = 4;
  rules.when_full = RowsFull::kLru;
  RowTable table = Make(rules);
  Add(table, Keys{1, 2, 3, 4}, 1);
  Add(table, Keys{1, 3}, 2);
  Add(table, Keys{9}, 3);
  EXPECT_EQ(Known(table, Range(1, 9)), Keys({1, 3, 4, 9}));
  Add(table, Keys{5, 6}, 4);
  EXPECT_EQ(Known(table, Range(1, 9)), Keys({3, 5, 6, 9}));
  EXPECT_EQ(table.counters().evicted, 3u);
}

TEST_F(RowTableTest, LfuEvictsTheLeastOftenUpdated) {
  RowTableRules rules = Rules();
  rules.rows_max = 3;
  rules.when_full = RowsFull::kLfu;
  RowTable table = Make(rules);
  Add(table, Keys{1, 2, 3}, 1);
  Add(table, Keys{1, 3}, 2);
  Add(table, Keys{3}, 3);
  Add(table, Keys{2}, 4);
  Add(table, Keys{2}, 5);
  Add(table, Keys{4}, 6);
  EXPECT_EQ(Known(table, Range(1, 4)), Keys({2, 3, 4}));
}

TEST_F(RowTableTest, AFullTableEvictsASixteenthAtOnce) {
  RowTableRules rules = Rules();
  rules.rows_max = 160'000;  // more than are sorted directly
  rules.when_full = RowsFull::kLru;
  RowTable table = Make(rules);
  for (std::uint32_t i = 0; i < 16; ++i) Add(table, Range(i * 10'000, i * 10'000 + 9'999), i / 2);
  Add(table, Keys{500'000}, 20);
  EXPECT_EQ(table.counters().evicted, 10'000u);
  // Half of those of the first tick, those with lower keys.
  EXPECT_EQ(Known(table, Range(0, 10'001)), Keys({10'000, 10'001}));
  EXPECT_EQ(table.rows(), 150'001u);
}

TEST_F(RowTableTest, APushLargerThanTheTableFillsIt) {
  RowTableRules rules = Rules();
  rules.rows_max = 4;
  rules.when_full = RowsFull::kLru;
  RowTable table = Make(rules);
  Add(table, Keys{100, 101}, 1);
  Add(table, Range(1, 9), 2);
  EXPECT_EQ(Known(table, Range(1, 101)), Range(1, 4));
  EXPECT_EQ(table.counters().refused, 5u);
  EXPECT_EQ(table.counters().evicted, 2u);
}

TEST_F(RowTableTest, CountsTheMemoryItTakes) {
  RowTableRules rules = Rules();
  rules.width = 64;
  rules.initial_slots.clear();
  RowTable table = Make(rules);
  const std::uint64_t rows = 100'000;
  table.Push(Range(1, rows), 1, [](std::size_t, std::uint32_t, float*, float*) {});
  const std::size_t floats = rows * 64 * sizeof(float);
  EXPECT_GT(table.bytes(), floats);
  EXPECT_LT(table.bytes(), floats + rows * kRowOverheadBytes + (1 << 20));
}

TEST_F(RowTableTest, RefusesAnImageOfAnotherShapeOrWithImpossibleRows) {
  RowTable table = Make(Rules());
  Add(table, Range(1, 5), 3);
  checkpoint::RowTableImage good = table.Export();
  checkpoint::SortRows(good);
  const auto refuses = [&](auto damage, const std::string& what) {
    checkpoint::RowTableImage image = good;
    damage(image);
    RowTable other = Make(Rules());
    const Status status = other.Restore(image);
    ASSERT_FALSE(status.ok()) << what;
    EXPECT_EQ(status.error().code, ErrorCode::kInvalid);
    EXPECT_NE(status.error().message.find(what), std::string::npos) << status.error().message;
    EXPECT_EQ(other.rows(), 0u);
  };
  using Image = checkpoint::RowTableImage;
  refuses([](Image& image) { image.width = 4; }, "4 values");
  refuses([](Image& image) { image.slots = 1; }, "1 slots");
  refuses([](Image& image) { image.table = 9; }, "table 9");
  refuses([](Image& image) { image.records.pop_back(); }, "no whole number of records");
  refuses([](Image& image) { image.tick = 2; }, "after the cut");
  refuses([](Image& image) { std::fill_n(image.records.begin() + 8, 4, std::byte{0}); },
          "row 1 is none");
  refuses(
      [](Image& image) {
        std::copy_n(image.records.begin(), 8,
                    image.records.begin() + static_cast<std::ptrdiff_t>(image.record_bytes()));
      },
      "row 1 stands after row 1");
  RowTable other = Make(Rules());
  EXPECT_TRUE(other.Restore(good).ok());
  EXPECT_EQ(Known(other, Range(1, 9)), Range(1, 5));
}

}  // namespace
}  // namespace ps::server
