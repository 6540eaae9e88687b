#include "ps-server/core/cow_pages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
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

// What a view says of a page.
std::vector<std::byte> Content(const FrozenPages& view, std::size_t page) {
  std::vector<std::byte> scratch;
  const std::byte* const at = view.Read(page, scratch);
  return {at, at + view.bytes(page)};
}
bool Shows(const FrozenPages& view, std::size_t page, int value) {
  const std::vector<std::byte> content = Content(view, page);
  return Is(content.data(), content.size(), value);
}

TEST(CowPagesTest, AViewKeepsWhatItsOwnerOverwrites) {
  CountingMemory memory;
  {
    CowPages pages(&memory);
    for (int i = 0; i < 3; ++i) Fill(pages.Append(1000), 1000, i);
    std::optional<FrozenPages> view = pages.Freeze();
    EXPECT_EQ(memory.bytes(), 3000u);  // nothing was copied yet
    Fill(pages.Write(1), 1000, 9);
    Fill(pages.Write(1), 1000, 10);
    EXPECT_EQ(memory.bytes(), 4000u);
    EXPECT_EQ(pages.bytes(), 3000u);
    EXPECT_EQ(pages.bytes_copied(), 1000u);
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(Shows(*view, i, i)) << i;
    EXPECT_TRUE(Is(pages.Read(1), 1000, 10));
    // The page that only the view holds goes with it.
    view.reset();
    EXPECT_EQ(memory.bytes(), 3000u);
    // What the view has let go need not be copied.
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
  EXPECT_TRUE(Shows(*view, 0, 1));
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
        ASSERT_TRUE(Shows(instants[at].view, i, instants[at].values[i]));
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
        if (!Shows(view, i, expected)) ++wrong;
      }
      view = FrozenPages();
    });
    for (std::size_t i = kPages; i-- > 0;) Fill(pages.Write(i), 256, round);
    reader.join();
  }
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(memory.bytes(), kPages * 256);
}

constexpr std::size_t kLine = detail::kLine;

TEST(CowPagesTest, FewLinesAreWrittenInPlaceAndSavedForTheView) {
  CountingMemory memory;
  CowPages pages(&memory);
  constexpr std::size_t kBytes = 20 * kLine + 8;  // the last line is a short one
  Fill(pages.Append(kBytes), kBytes, 1);
  const std::byte* const place = pages.Read(0);
  std::optional<FrozenPages> view = pages.Freeze();
  const std::vector<std::uint32_t> lines = {3, 20, 3};
  {
    const CowPages::Writing writing = pages.WriteLines(0, lines);
    EXPECT_EQ(writing.data(), place);
    Fill(writing.data() + 3 * kLine, kLine, 2);
    Fill(writing.data() + 20 * kLine, 8, 2);
  }
  EXPECT_EQ(pages.bytes_copied(), 2 * kLine);
  EXPECT_EQ(memory.bytes(), kBytes);
  { Fill(pages.WriteLines(0, lines).data() + 3 * kLine, kLine, 3); }
  EXPECT_EQ(pages.bytes_copied(), 2 * kLine);  // saved once
  EXPECT_EQ(Content(*view, 0), std::vector<std::byte>(kBytes, std::byte{1}));
  EXPECT_TRUE(Is(pages.Read(0) + 3 * kLine, kLine, 3));

  // Written on as a whole: the view keeps the old page, with what was saved.
  Fill(pages.Write(0), kBytes, 4);
  EXPECT_NE(pages.Read(0), place);
  EXPECT_EQ(Content(*view, 0), std::vector<std::byte>(kBytes, std::byte{1}));
  EXPECT_TRUE(view->Changed(0, 0));
  EXPECT_TRUE(pages.Freeze().Changed(0, 1));
  view.reset();
  EXPECT_EQ(memory.bytes(), kBytes);
}

TEST(CowPagesTest, AStretchIsWrittenInPlaceAndReadAsItWas) {
  CountingMemory memory;
  CowPages pages(&memory);
  constexpr std::size_t kBytes = 20 * kLine;
  Fill(pages.Append(kBytes), kBytes, 1);
  const std::byte* const place = pages.Read(0);
  const FrozenPages view = pages.Freeze();
  std::vector<std::byte> part(100);
  view.CopyRange(0, 100, part.size(), part.data());
  EXPECT_TRUE(Is(part.data(), part.size(), 1));
  // The end of one line, a whole one and the beginning of a third.
  { Fill(pages.WriteRange(0, kLine - 1, kLine + 2).data() + kLine - 1, kLine + 2, 2); }
  EXPECT_EQ(pages.bytes_copied(), 3 * kLine);
  EXPECT_EQ(pages.Read(0), place);
  for (const std::size_t begin : {std::size_t{0}, kLine - 1, kLine, 2 * kLine, 3 * kLine - 1}) {
    view.CopyRange(0, begin, part.size(), part.data());
    EXPECT_TRUE(Is(part.data(), part.size(), 1)) << begin;
  }
  // What was saved after the first look is found, too, and what was saved before is not lost.
  { Fill(pages.WriteRange(0, 7 * kLine, 1).data() + 7 * kLine, 1, 3); }
  for (const std::size_t begin : {std::size_t{0}, 6 * kLine}) {
    view.CopyRange(0, begin, part.size(), part.data());
    EXPECT_TRUE(Is(part.data(), part.size(), 1)) << begin;
  }
}

TEST(CowPagesTest, ManyLinesMakeACopy) {
  CountingMemory memory;
  CowPages pages(&memory);
  constexpr std::size_t kBytes = 8 * kLine;
  Fill(pages.Append(kBytes), kBytes, 1);
  const FrozenPages view = pages.Freeze();
  const std::vector<std::uint32_t> many = {0, 1, 2};
  { Fill(pages.WriteLines(0, many).data(), kLine, 2); }
  EXPECT_EQ(memory.bytes(), 2 * kBytes);
  EXPECT_EQ(Content(view, 0), std::vector<std::byte>(kBytes, std::byte{1}));
}

// Of one page, without a copy of it: each knows how long the log was when it was made.
TEST(CowPagesTest, SeveralViewsShareALog) {
  CountingMemory memory;
  CowPages pages(&memory);
  constexpr std::size_t kBytes = 8 * kLine;
  Fill(pages.Append(kBytes), kBytes, 1);
  const std::vector<std::uint32_t> line = {0};
  const std::vector<std::uint32_t> other = {5};
  const FrozenPages first = pages.Freeze();
  { Fill(pages.WriteLines(0, line).data(), kLine, 2); }
  const FrozenPages second = pages.Freeze();
  { Fill(pages.WriteLines(0, line).data(), kLine, 3); }
  { Fill(pages.WriteLines(0, other).data() + 5 * kLine, kLine, 3); }
  const FrozenPages third = pages.Freeze();
  { Fill(pages.WriteLines(0, line).data(), kLine, 4); }
  EXPECT_EQ(memory.bytes(), kBytes);
  EXPECT_EQ(Content(first, 0), std::vector<std::byte>(kBytes, std::byte{1}));
  EXPECT_EQ(Content(second, 0)[0], std::byte{2});
  EXPECT_EQ(Content(second, 0)[5 * kLine], std::byte{1});
  EXPECT_EQ(Content(third, 0)[0], std::byte{3});
  EXPECT_EQ(Content(third, 0)[5 * kLine], std::byte{3});
  EXPECT_EQ(pages.Read(0)[0], std::byte{4});
}

// Again and again the same lines, each time after a freeze: the log does not grow without end.
TEST(CowPagesTest, ALogIsNoLargerThanItsPage) {
  CountingMemory memory;
  CowPages pages(&memory);
  constexpr std::size_t kBytes = 8 * kLine;
  Fill(pages.Append(kBytes), kBytes, 0);
  const std::vector<std::uint32_t> line = {3};
  std::vector<FrozenPages> views;
  for (int value = 1; value <= 20; ++value) {
    views.push_back(pages.Freeze());
    Fill(pages.WriteLines(0, line).data() + 3 * kLine, kLine, value);
  }
  EXPECT_GT(memory.bytes(), kBytes);
  EXPECT_LE(memory.bytes(), 4 * kBytes);
  for (std::size_t i = 0; i < views.size(); ++i) {
    EXPECT_EQ(Content(views[i], 0)[3 * kLine], static_cast<std::byte>(i));
    EXPECT_EQ(Content(views[i], 0)[0], std::byte{0});
  }
}

TEST(CowPagesTest, AfterTheViewThePageIsItsOwnersAgain) {
  CountingMemory memory;
  CowPages pages(&memory);
  constexpr std::size_t kBytes = 8 * kLine;
  Fill(pages.Append(kBytes), kBytes, 1);
  const std::vector<std::uint32_t> one = {1};
  {
    const FrozenPages view = pages.Freeze();
    Fill(pages.WriteLines(0, one).data() + kLine, kLine, 2);
  }
  const std::byte* const place = pages.Read(0);
  EXPECT_TRUE(pages.shared(0));  // as far as the owner knows
  { Fill(pages.WriteLines(0, one).data() + kLine, kLine, 3); }
  EXPECT_FALSE(pages.shared(0));
  EXPECT_EQ(pages.Read(0), place);
  // What was saved for the one that has gone is not taken for the next.
  const FrozenPages next = pages.Freeze();
  EXPECT_EQ(Content(next, 0)[kLine], std::byte{3});
  EXPECT_EQ(Content(next, 0)[0], std::byte{1});
}

// Against a model: any order of freezes, of writes of lines and of pages, of ends of views.
TEST(CowPagesTest, EachViewKeepsItsInstantWhateverIsWritten) {
  CountingMemory memory;
  {
    CowPages pages(&memory);
    constexpr std::size_t kPages = 4;
    constexpr std::size_t kBytes = 16 * kLine + 24;
    using State = std::vector<std::vector<std::byte>>;
    State now(kPages, std::vector<std::byte>(kBytes, std::byte{0}));
    for (std::size_t i = 0; i < kPages; ++i) Fill(pages.Append(kBytes), kBytes, 0);
    struct Instant {
      FrozenPages view;
      State values;
    };
    std::vector<Instant> instants;
    std::mt19937 random(3);
    for (int round = 0; round < 6000; ++round) {
      const std::size_t page = random() % kPages;
      const auto value = static_cast<std::byte>(random());
      if (random() % 20 == 0) {
        std::memset(pages.Write(page), static_cast<int>(value), kBytes);
        std::fill(now[page].begin(), now[page].end(), value);
      } else {
        std::vector<std::uint32_t> lines(random() % 6);
        for (auto& line : lines) line = random() % 17;
        const CowPages::Writing writing = pages.WriteLines(page, lines);
        for (const std::uint32_t line : lines) {
          const std::size_t at = line * kLine + random() % 16;
          writing.data()[at] = value;
          now[page][at] = value;
        }
      }
      {
        const std::size_t begin = random() % kBytes;
        const std::size_t bytes = 1 + random() % std::min<std::size_t>(kBytes - begin, 150);
        const CowPages::Writing writing = pages.WriteRange(page, begin, bytes);
        std::memset(writing.data() + begin, round, bytes);
        std::memset(now[page].data() + begin, round, bytes);
      }
      if (random() % 15 == 0) instants.push_back({pages.Freeze(), now});
      if (!instants.empty() && random() % 15 == 0) {
        const std::size_t at = random() % instants.size();
        for (std::size_t i = 0; i < kPages; ++i) {
          ASSERT_EQ(Content(instants[at].view, i), instants[at].values[i]) << round;
          const std::size_t begin = random() % kBytes;
          std::vector<std::byte> part(random() % (kBytes - begin + 1));
          instants[at].view.CopyRange(i, begin, part.size(), part.data());
          ASSERT_TRUE(
              std::equal(part.begin(), part.end(),
                         instants[at].values[i].begin() + static_cast<std::ptrdiff_t>(begin)))
              << round;
        }
        if (random() % 3 > 0) instants.erase(instants.begin() + static_cast<std::ptrdiff_t>(at));
      }
      ASSERT_EQ(std::memcmp(pages.Read(page), now[page].data(), kBytes), 0) << round;
    }
  }
  EXPECT_EQ(memory.bytes(), 0u);
}

// The owner writes on lines while views are read elsewhere; TSan looks on.
TEST(CowPagesTest, AnotherThreadReadsWhileLinesAreWritten) {
  CountingMemory memory;
  CowPages pages(&memory);
  constexpr std::size_t kPages = 20;
  constexpr std::size_t kBytes = 64 * kLine;
  for (std::size_t i = 0; i < kPages; ++i) Fill(pages.Append(kBytes), kBytes, 0);
  std::atomic<int> wrong = 0;
  for (int round = 1; round <= 60; ++round) {
    std::atomic<bool> done = false;
    std::thread reader([view = pages.Freeze(), &wrong, &done, expected = round - 1]() mutable {
      std::vector<std::byte> scratch;
      for (int look = 0; look < 3; ++look) {
        for (std::size_t i = 0; i < kPages; ++i) {
          if (!Is(view.Read(i, scratch), kBytes, expected)) ++wrong;
          scratch.resize(5 * kLine);
          view.CopyRange(i, look * 20 * kLine + 8, scratch.size(), scratch.data());
          if (!Is(scratch.data(), scratch.size(), expected)) ++wrong;
        }
      }
      view = FrozenPages();
      done = true;
    });
    std::mt19937 random(static_cast<unsigned>(round));
    while (!done) {
      std::vector<std::uint32_t> lines(2);
      for (auto& line : lines) line = random() % 64;
      const CowPages::Writing writing = pages.WriteLines(random() % kPages, lines);
      for (const std::uint32_t line : lines) Fill(writing.data() + line * kLine, kLine, 77);
    }
    reader.join();
    for (std::size_t i = 0; i < kPages; ++i) Fill(pages.Write(i), kBytes, round);
  }
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(memory.bytes(), kPages * kBytes);
}

}  // namespace
}  // namespace ps::server
