#include "ps-server/core/cow_pages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <random>
#include <thread>
#include <vector>

namespace ps::server {
namespace {

// Counts what is allocated; safe on any thread, as CowPages asks.
class CountingMemory : public std::pmr::memory_resource {
 public:
  std::size_t bytes() const { return bytes_; }

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    bytes_ += bytes;
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* at, std::size_t bytes, std::size_t alignment) override {
    bytes_ -= bytes;
    std::pmr::new_delete_resource()->deallocate(at, bytes, alignment);
  }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

  std::atomic<std::size_t> bytes_ = 0;
};

void Fill(std::byte* at, std::size_t bytes, int value) { std::memset(at, value, bytes); }
bool Is(const std::byte* at, std::size_t bytes, int value) {
  return std::all_of(at, at + bytes, [&](std::byte b) { return b == std::byte(value); });
}

TEST(CowPagesTest, AViewKeepsWhatItsOwnerOverwrites) {
  CountingMemory memory;
  {
    CowPages pages(&memory);
    for (int i = 0; i < 3; ++i) Fill(pages.Append(1000), 1000, i);
    FrozenPages view = pages.Freeze();
    EXPECT_EQ(memory.bytes(), 3000u);  // nothing was copied yet
    Fill(pages.Write(1), 1000, 9);
    Fill(pages.Write(1), 1000, 10);
    EXPECT_EQ(memory.bytes(), 4000u);
    EXPECT_EQ(pages.bytes(), 3000u);
    EXPECT_EQ(pages.bytes_copied(), 1000u);
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(Is(view.Read(i), 1000, i)) << i;
    EXPECT_TRUE(Is(pages.Read(1), 1000, 10));
    EXPECT_EQ(pages.Read(0), view.Read(0));
    // The page that only the view holds goes with it.
    view.Release(1);
    EXPECT_EQ(view.Read(1), nullptr);
    EXPECT_EQ(memory.bytes(), 3000u);
    // What the view has let go need not be copied.
    view.Release(0);
    const std::byte* const before = pages.Read(0);
    EXPECT_EQ(pages.Write(0), before);
    EXPECT_EQ(pages.bytes_copied(), 1000u);
  }
  EXPECT_EQ(memory.bytes(), 0u);
}

TEST(CowPagesTest, PagesGrowAndAreAddedWhileAViewLives) {
  CountingMemory memory;
  std::optional<FrozenPages> view;
  {
    CowPages pages(&memory);
    Fill(pages.Append(100), 100, 1);
    view = pages.Freeze();
    Fill(pages.Append(50), 50, 2);
    std::byte* const grown = pages.Resize(0, 200);
    EXPECT_TRUE(Is(grown, 100, 1));
    Fill(grown, 200, 3);
    EXPECT_EQ(pages.bytes(), 250u);
    EXPECT_EQ(view->size(), 1u);
    EXPECT_EQ(view->bytes(0), 100u);
    EXPECT_TRUE(Is(pages.Resize(0, 10), 10, 3));
  }
  // The view outlives its owner.
  EXPECT_TRUE(Is(view->Read(0), 100, 1));
  EXPECT_EQ(memory.bytes(), 100u);
  view.reset();
  EXPECT_EQ(memory.bytes(), 0u);
}

TEST(CowPagesTest, SeveralViewsEachKeepTheirInstant) {
  CountingMemory memory;
  CowPages pages(&memory);
  std::mt19937 random(7);
  constexpr std::size_t kPages = 20;
  std::vector<int> now(kPages, 0);
  for (std::size_t i = 0; i < kPages; ++i) Fill(pages.Append(64), 64, 0);
  struct Instant {
    FrozenPages view;
    std::vector<int> values;
  };
  std::vector<Instant> instants;
  for (int round = 1; round < 2000; ++round) {
    const std::size_t page = random() % kPages;
    now[page] = round % 256;
    Fill(pages.Write(page), 64, now[page]);
    if (random() % 10 == 0) instants.push_back({pages.Freeze(), now});
    if (!instants.empty() && random() % 10 == 0) {
      const std::size_t at = random() % instants.size();
      for (std::size_t i = 0; i < kPages; ++i) {
        ASSERT_TRUE(Is(instants[at].view.Read(i), 64, instants[at].values[i]));
      }
      instants.erase(instants.begin() + static_cast<std::ptrdiff_t>(at));
    }
  }
  for (std::size_t i = 0; i < kPages; ++i) EXPECT_TRUE(Is(pages.Read(i), 64, now[i]));
  instants.clear();
  EXPECT_EQ(memory.bytes(), kPages * 64);
}

TEST(CowPagesTest, AViewKnowsWhichPagesHaveChangedSinceAnEarlierOne) {
  CountingMemory memory;
  CowPages pages(&memory);
  for (int i = 0; i < 4; ++i) Fill(pages.Append(64), 64, 0);
  const auto changed = [](const FrozenPages& view, std::uint64_t since) {
    std::vector<std::size_t> found;
    for (std::size_t page = 0; page < view.size(); ++page) {
      if (view.Changed(page, since)) found.push_back(page);
    }
    return found;
  };
  using Pages = std::vector<std::size_t>;
  EXPECT_EQ(pages.freezes(), 0u);
  FrozenPages first = pages.Freeze();
  EXPECT_EQ(first.number(), 1u);
  EXPECT_EQ(changed(first, 0), (Pages{0, 1, 2, 3}));
  EXPECT_EQ(changed(first, 1), Pages{});
  Fill(pages.Write(2), 64, 1);
  Fill(pages.Write(2), 64, 2);
  const FrozenPages second = pages.Freeze();
  EXPECT_EQ(changed(second, 1), Pages{2});
  EXPECT_EQ(changed(second, 2), Pages{});
  // Nobody holds the first view any more: the page is not copied, and yet it has changed.
  first = FrozenPages();
  Fill(pages.Write(0), 64, 3);
  Fill(pages.Append(64), 64, 3);
  const FrozenPages third = pages.Freeze();
  EXPECT_EQ(changed(third, 1), (Pages{0, 2, 4}));
  EXPECT_EQ(changed(third, 2), (Pages{0, 4}));
  EXPECT_EQ(changed(third, 3), Pages{});
  pages.Resize(1, 128);
  EXPECT_EQ(changed(pages.Freeze(), 3), Pages{1});
  EXPECT_EQ(changed(second, 1), Pages{2}) << "a view does not change";
  pages.Clear();
  EXPECT_EQ(pages.size(), 0u);
  EXPECT_EQ(pages.bytes(), 0u);
  EXPECT_EQ(pages.freezes(), 0u);
}

// The owner writes on while views are read and let go elsewhere; TSan looks on.
TEST(CowPagesTest, AnotherThreadReadsWhatWasFrozen) {
  CountingMemory memory;
  CowPages pages(&memory);
  constexpr std::size_t kPages = 50;
  for (std::size_t i = 0; i < kPages; ++i) Fill(pages.Append(256), 256, 0);
  std::atomic<int> wrong = 0;
  for (int round = 1; round <= 40; ++round) {
    std::thread reader([view = pages.Freeze(), &wrong, expected = round - 1]() mutable {
      for (std::size_t i = 0; i < kPages; ++i) {
        if (!Is(view.Read(i), 256, expected)) ++wrong;
        view.Release(i);
      }
    });
    for (std::size_t i = kPages; i-- > 0;) Fill(pages.Write(i), 256, round);
    reader.join();
  }
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(memory.bytes(), kPages * 256);
}

}  // namespace
}  // namespace ps::server
