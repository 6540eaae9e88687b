#include "ps-server/core/rows/row_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory_resource>
#include <random>
#include <span>
#include <unordered_map>
#include <vector>

namespace ps::server {
namespace {

// Counts what is taken and given back.
class CountingMemory : public std::pmr::memory_resource {
 public:
  std::size_t taken() const { return taken_; }

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    taken_ += bytes;
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override {
    taken_ -= bytes;
    std::pmr::new_delete_resource()->deallocate(memory, bytes, alignment);
  }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

  std::size_t taken_ = 0;
};

class RowIndexTest : public testing::Test {
 protected:
  RowNumber Add(std::uint64_t key) {
    const RowNumber row = store_.Create();
    store_.Change(row)->set_key(key);
    store_.Change(row)->updates = 1;
    index_.Insert(row);
    return row;
  }
  void Remove(RowNumber row) {
    index_.Remove(row);
    store_.Remove(row);
  }

  CountingMemory memory_;
  RowStore store_{1, &memory_};
  RowIndex index_{store_, 99, &memory_};
};

TEST_F(RowIndexTest, AnEmptyIndexFindsNothing) {
  EXPECT_EQ(index_.Find(0), kNoRow);
  EXPECT_EQ(index_.Find(~std::uint64_t{0}), kNoRow);
}

TEST_F(RowIndexTest, HoldsWhatAMapHoldsThroughGrowthAndRemovals) {
  std::mt19937_64 random(1);
  std::unordered_map<std::uint64_t, RowNumber> model;
  std::vector<std::uint64_t> keys;
  for (int phase = 0; phase < 4; ++phase) {
    for (int i = 0; i < 40'000; ++i) {
      const std::uint64_t key = random() % 200'000;
      if (model.contains(key)) continue;
      model[key] = Add(key);
    }
    for (int i = 0; i < (phase == 2 ? 400'000 : 30'000); ++i) {
      const auto found = model.find(random() % 200'000);
      if (found == model.end()) continue;
      Remove(found->second);
      model.erase(found);
    }
    keys.clear();
    for (std::uint64_t key = 0; key < 200'000; ++key) {
      const auto found = model.find(key);
      ASSERT_EQ(index_.Find(key), found == model.end() ? kNoRow : found->second) << key;
      keys.push_back(key);
    }
    std::size_t visited = 0;
    index_.FindEach(keys, store_.record_bytes(), [&](std::size_t at, RowNumber row) {
      ASSERT_EQ(at, visited++);
      ASSERT_EQ(row, index_.Find(keys[at]));
    });
    ASSERT_EQ(visited, keys.size());
  }
}

TEST_F(RowIndexTest, FindsEachOfAnyNumberOfKeys) {
  for (std::uint64_t key = 0; key < 100; key += 2) Add(key);
  for (std::size_t count = 0; count < 70; ++count) {
    std::vector<std::uint64_t> keys;
    for (std::size_t i = 0; i < count; ++i) keys.push_back(i);
    std::size_t visited = 0;
    index_.FindEach(keys, store_.record_bytes(), [&](std::size_t at, RowNumber row) {
      EXPECT_EQ(at, visited++);
      EXPECT_EQ(row != kNoRow, at % 2 == 0);
    });
    EXPECT_EQ(visited, count);
  }
}

TEST_F(RowIndexTest, TakesAtMostTwentyFourBytesARowWithTheHeader) {
  const std::size_t floats = sizeof(float);
  double worst = 0;
  for (std::uint64_t rows = 1; rows <= 300'000; ++rows) {
    Add(rows * 0x9e3779b97f4a7c15u);
    if (rows < 20'000) continue;
    const double index = static_cast<double>(index_.bytes()) / static_cast<double>(rows);
    worst = std::max(worst, index + static_cast<double>(sizeof(RowRecord)));
  }
  EXPECT_LE(worst, 24);
  // Records are full but for the last slab, and the counters tell the truth.
  EXPECT_LE(store_.bytes(), 300'000 * (sizeof(RowRecord) + floats) + (1u << 20) + 4096);
  EXPECT_LE(memory_.taken(), store_.bytes() + index_.bytes());
}

TEST_F(RowIndexTest, GivesAllMemoryBack) {
  CountingMemory memory;
  {
    RowStore store(3, &memory);
    RowIndex index(store, 5, &memory);
    for (std::uint64_t key = 0; key < 50'000; ++key) {
      const RowNumber row = store.Create();
      store.Change(row)->set_key(key);
      store.Change(row)->updates = 1;
      index.Insert(row);
    }
    for (RowNumber row = 0; row < 49'000; ++row) {
      index.Remove(row);
      store.Remove(row);
    }
    EXPECT_GT(memory.taken(), 0u);
  }
  EXPECT_EQ(memory.taken(), 0u);
}

// Who knows the seed can choose keys whose hashes agree in their highest bits; the directory must
// not grow with every bit that they share.
TEST_F(RowIndexTest, KeysWithLikeHashesTakeNoMoreMemoryThanOthers) {
  const auto inverse_of = [](std::uint64_t hash) {
    // The finaliser of MurmurHash3 backwards.
    hash ^= hash >> 33;
    hash *= 0x9cb4b2f8129337dbu;
    hash ^= hash >> 33;
    hash *= 0x4f74430c22a54005u;
    hash ^= hash >> 33;
    return hash ^ 99;
  };
  for (std::uint64_t i = 0; i < 40'000; ++i) Add(inverse_of(i << 16));
  EXPECT_LT(index_.bytes(), 40'000u * 16);
  for (std::uint64_t i = 0; i < 40'000; ++i) ASSERT_NE(index_.Find(inverse_of(i << 16)), kNoRow);
}

TEST_F(RowIndexTest, RoomMadeAtOnceHoldsTheSameAsRoomMadeByAndBy) {
  for (const std::uint64_t rows : {1u, 700u, 5000u, 60'000u, 300'000u}) {
    SCOPED_TRACE(rows);
    RowStore store(1, &memory_);
    RowIndex reserved(store, 7, &memory_);
    RowIndex grown(store, 7, &memory_);
    reserved.Reserve(rows);
    std::mt19937_64 random(rows);
    std::vector<std::byte> records;
    std::vector<std::uint64_t> keys;
    for (std::uint64_t i = 0; i < rows; ++i) {
      keys.push_back(random());
      const std::uint32_t words[5] = {static_cast<std::uint32_t>(keys.back()),
                                      static_cast<std::uint32_t>(keys.back() >> 32), 1, 0, 0};
      const auto bytes = std::as_bytes(std::span(words));
      records.insert(records.end(), bytes.begin(), bytes.end());
    }
    // In pieces of any size, as records of a checkpoint come.
    for (std::size_t at = 0; at < rows;) {
      const std::size_t count = std::min<std::size_t>(1 + random() % 2000, rows - at);
      const RowNumber first = store.Append(std::span(records).subspan(at * 20, count * 20));
      EXPECT_EQ(first, at);
      reserved.InsertAll(first, static_cast<RowNumber>(count));
      for (std::size_t i = 0; i < count; ++i) grown.Insert(first + static_cast<RowNumber>(i));
      at += count;
    }
    EXPECT_EQ(store.size(), rows);
    for (std::size_t i = 0; i < rows; ++i) {
      ASSERT_EQ(store.At(static_cast<RowNumber>(i))->key(), keys[i]);
      ASSERT_EQ(reserved.Find(keys[i]), i);
      ASSERT_EQ(grown.Find(keys[i]), i);
    }
    for (int i = 0; i < 1000; ++i) EXPECT_EQ(reserved.Find(random()), kNoRow);
    // It does not take much more, and goes on to grow and to shrink.
    EXPECT_LT(reserved.bytes(), grown.bytes() * 5 / 4 + 8192);
    for (std::size_t i = 0; i < rows; i += 2) reserved.Remove(static_cast<RowNumber>(i));
    for (std::size_t i = 0; i < rows; ++i) {
      ASSERT_EQ(reserved.Find(keys[i]), i % 2 == 0 ? kNoRow : i);
    }
    for (std::size_t i = 0; i < rows; i += 2) reserved.Insert(static_cast<RowNumber>(i));
    for (std::size_t i = 0; i < rows; ++i) ASSERT_EQ(reserved.Find(keys[i]), i);
  }
}

}  // namespace
}  // namespace ps::server
