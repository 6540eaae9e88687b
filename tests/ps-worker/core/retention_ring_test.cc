#include "ps-worker/core/retention_ring.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <utility>

namespace ps::worker {
namespace {

struct alignas(64) Line {
  std::byte bytes[64];
};

class Region {
 public:
  explicit Region(std::size_t bytes) : lines_(bytes / 64), bytes_(bytes / 64 * 64) {}
  std::span<std::byte> span() { return {reinterpret_cast<std::byte*>(lines_.data()), bytes_}; }

 private:
  std::vector<Line> lines_;
  std::size_t bytes_;
};

RingIdentity Identity(std::uint64_t first_clock = 10) {
  return RingIdentity{JobId(7), WorkerId(2), Incarnation(5), 1, 8, Clock(first_clock)};
}

std::byte Pattern(std::uint64_t clock, std::size_t at) {
  return static_cast<std::byte>((clock * 131 + at * 7) & 0xff);
}

// Entry of `clock` with two parts and a payload that says which clock it is of.
bool Write(RetentionRing& ring, std::uint64_t clock, std::size_t payload) {
  RetentionRing::Reservation place;
  if (ring.Reserve(payload, 8, place) != RetentionRing::ReserveStatus::kReserved) return false;
  for (std::size_t i = 0; i < payload; ++i) place.payload[i] = Pattern(clock, i);
  const auto half = static_cast<std::uint32_t>(payload / 2);
  RingPart parts[2];
  parts[0] = RingPart{1, 0, half, 0, clock, 3, 0};
  parts[1] = RingPart{6, half, static_cast<std::uint32_t>(payload) - half, 0, clock + 1, 4, 0};
  RingEntryInfo info;
  info.clock = Clock(clock);
  info.samples = static_cast<std::uint32_t>(clock * 3);
  info.lease_id = clock / 4;
  info.lease_done = clock % 4;
  ring.Commit(info, payload, parts);
  return true;
}

void ExpectWhole(const RetentionRing& ring, std::uint64_t clock) {
  RingEntryView view;
  ASSERT_TRUE(ring.Find(Clock(clock), view)) << clock;
  EXPECT_EQ(view.info.clock, Clock(clock));
  EXPECT_EQ(view.info.samples, clock * 3);
  EXPECT_EQ(view.info.lease_id, clock / 4);
  ASSERT_EQ(view.parts.size(), 2u);
  EXPECT_EQ(view.parts[0].bytes + view.parts[1].bytes, view.payload.size());
  EXPECT_EQ(view.parts[1].base_version, clock + 1);
  for (std::size_t i = 0; i < view.payload.size(); ++i) {
    ASSERT_EQ(view.payload[i], Pattern(clock, i)) << clock << " byte " << i;
  }
}

TEST(RetentionRingTest, EntriesAreFoundByClockUntilTheyAreReleased) {
  Region region(64 << 10);
  auto ring = RetentionRing::Create(region.span(), Identity());
  ASSERT_TRUE(ring.ok());
  EXPECT_TRUE(ring->empty());
  EXPECT_EQ(ring->last_clock(), Clock(10));
  for (std::uint64_t clock = 11; clock <= 15; ++clock) ASSERT_TRUE(Write(*ring, clock, 100));
  for (std::uint64_t clock = 11; clock <= 15; ++clock) ExpectWhole(*ring, clock);
  ring->Release(Clock(13));
  RingEntryView view;
  EXPECT_FALSE(ring->Find(Clock(13), view));
  EXPECT_FALSE(ring->Find(Clock(16), view));
  ExpectWhole(*ring, 14);
  EXPECT_EQ(ring->released(), Clock(13));
  ring->Release(Clock(99));
  EXPECT_TRUE(ring->empty());
  EXPECT_EQ(ring->last_clock(), Clock(15));
  ASSERT_TRUE(Write(*ring, 16, 0));
  ExpectWhole(*ring, 16);
}

TEST(RetentionRingTest, FindPartTellsWhichShardsWereTouched) {
  Region region(64 << 10);
  auto ring = RetentionRing::Create(region.span(), Identity());
  ASSERT_TRUE(Write(*ring, 11, 64));
  RingEntryView view;
  ASSERT_TRUE(ring->Find(Clock(11), view));
  ASSERT_NE(view.FindPart(ShardId(6)), nullptr);
  EXPECT_EQ(view.FindPart(ShardId(6))->offset, 32u);
  EXPECT_EQ(view.FindPart(ShardId(5)), nullptr);
  EXPECT_EQ(view.FindPart(ShardId(7)), nullptr);
}

TEST(RetentionRingTest, ASegmentBecomesVoidOnceAndStaysSo) {
  Region region(64 << 10);
  {
    auto ring = RetentionRing::Create(region.span(), Identity());
    ASSERT_TRUE(Write(*ring, 11, 64));
    EXPECT_TRUE(ring->MarkVoid(Clock(11), ShardId(1)));
    EXPECT_FALSE(ring->MarkVoid(Clock(11), ShardId(1)));
    EXPECT_FALSE(ring->MarkVoid(Clock(11), ShardId(0)));
    EXPECT_FALSE(ring->MarkVoid(Clock(12), ShardId(1)));
  }
  auto again = RetentionRing::Open(region.span());
  ASSERT_TRUE(again.ok()) << again.error().message;
  RingEntryView view;
  ASSERT_TRUE(again->Find(Clock(11), view));
  EXPECT_EQ(view.FindPart(ShardId(1))->is_void, 1u);
  EXPECT_EQ(view.FindPart(ShardId(6))->is_void, 0u);
}

TEST(RetentionRingTest, AFullRingSaysSoAndGoesOnAfterARelease) {
  Region region(16 << 10);
  auto ring = RetentionRing::Create(region.span(), Identity(0));
  std::uint64_t clock = 0;
  while (Write(*ring, clock + 1, 1000)) ++clock;
  ASSERT_GT(clock, 5u);
  RetentionRing::Reservation place;
  EXPECT_EQ(ring->Reserve(1 << 20, 8, place), RetentionRing::ReserveStatus::kTooLarge);
  EXPECT_EQ(ring->Reserve(1000, 9, place), RetentionRing::ReserveStatus::kTooLarge);
  ring->Release(Clock(clock - 1));
  ASSERT_TRUE(Write(*ring, clock + 1, 1000));
  ExpectWhole(*ring, clock);
  ExpectWhole(*ring, clock + 1);
}

TEST(RetentionRingTest, AnEntryOfAlmostTheWholeRingFitsWhereverTheHeadStands) {
  Region region(16 << 10);
  auto ring = RetentionRing::Create(region.span(), Identity(0));
  const std::size_t large = ring->capacity_bytes() - 64 - 8 * 32;
  for (std::uint64_t clock = 1; clock < 40; clock += 2) {
    ASSERT_TRUE(Write(*ring, clock, 700));
    ring->Release(Clock(clock));
    ASSERT_TRUE(Write(*ring, clock + 1, large)) << clock;
    ExpectWhole(*ring, clock + 1);
    auto reader = RetentionRing::Open(region.span());
    ASSERT_TRUE(reader.ok()) << reader.error().message;
    ExpectWhole(*reader, clock + 1);
    ring->Release(Clock(clock + 1));
  }
}

TEST(RetentionRingTest, APinKeepsAnEntryUntilAnotherThreadLetsItGo) {
  Region region(16 << 10);
  auto ring = RetentionRing::Create(region.span(), Identity(0));
  ASSERT_TRUE(Write(*ring, 1, 4000));
  RingPin pin = ring->Pin(Clock(1));
  ring->Release(Clock(1));
  EXPECT_TRUE(ring->empty());
  ASSERT_TRUE(Write(*ring, 2, 4000));
  // What is left is less than the pinned entry takes.
  EXPECT_FALSE(Write(*ring, 3, 8000));
  std::thread other([moved = std::move(pin)]() mutable { moved.Reset(); });
  other.join();
  ring->Release(Clock(2));
  EXPECT_TRUE(Write(*ring, 3, 8000));
  ExpectWhole(*ring, 3);
}

TEST(RetentionRingTest, ThePinKeepsTheMemoryMappedAfterTheRingIsGone) {
  auto memory = std::make_shared<Region>(16 << 10);
  std::weak_ptr<Region> watch = memory;
  RingPin pin;
  {
    auto ring = RetentionRing::Create(memory->span(), Identity(0), memory);
    ASSERT_TRUE(Write(*ring, 1, 100));
    pin = ring->Pin(Clock(1));
    memory.reset();
  }
  EXPECT_FALSE(watch.expired());
  pin.Reset();
  EXPECT_TRUE(watch.expired());
}

TEST(RetentionRingTest, RandomUseKeepsExactlyWhatIsNotReleased) {
  for (std::uint32_t seed = 0; seed < 50; ++seed) {
    std::mt19937 random(seed);
    Region region(8192 + 64 * (random() % 300));
    auto ring = RetentionRing::Create(region.span(), Identity(0));
    std::uint64_t clock = 0;
    std::map<std::uint64_t, RingPin> pins;
    for (int step = 0; step < 300; ++step) {
      switch (random() % 4) {
        case 0: ring->Release(Clock(ring->released().value() + random() % 4)); break;
        case 1:
          if (!ring->empty()) pins[ring->last_clock().value()] = ring->Pin(ring->last_clock());
          break;
        case 2:
          if (!pins.empty()) pins.erase(pins.begin());
          break;
        default:
          if (Write(*ring, clock + 1, random() % 1500)) ++clock;
      }
      ASSERT_EQ(ring->last_clock(), Clock(clock));
      if (step % 20 != 0) continue;
      for (std::uint64_t c = ring->released().value() + 1; c <= clock; ++c) ExpectWhole(*ring, c);
      // A reader beside the writer sees the same; it does not know of pins.
      std::vector<std::byte> copy(region.span().begin(), region.span().end());
      Region second(copy.size());
      std::memcpy(second.span().data(), copy.data(), copy.size());
      auto reader = RetentionRing::Open(second.span());
      ASSERT_TRUE(reader.ok()) << seed << ": " << reader.error().message;
      ASSERT_EQ(reader->last_clock(), Clock(clock));
      for (std::uint64_t c = reader->released().value() + 1; c <= clock; ++c) {
        ExpectWhole(*reader, c);
      }
    }
  }
}

TEST(RetentionRingTest, AReopenedRingGoesOnWhereTheWriterStopped) {
  Region region(32 << 10);
  {
    auto ring = RetentionRing::Create(region.span(), Identity());
    for (std::uint64_t clock = 11; clock <= 20; ++clock) ASSERT_TRUE(Write(*ring, clock, 500));
    ring->Release(Clock(14));
  }
  auto ring = RetentionRing::Open(region.span());
  ASSERT_TRUE(ring.ok()) << ring.error().message;
  EXPECT_EQ(ring->identity(), Identity());
  EXPECT_EQ(ring->released(), Clock(14));
  for (std::uint64_t clock = 15; clock <= 20; ++clock) ExpectWhole(*ring, clock);
  ring->Release(Clock(20));
  EXPECT_TRUE(ring->empty());
  EXPECT_EQ(RetentionRing::Open(region.span())->last_clock(), Clock(20));
}

TEST(RetentionRingTest, WhatIsNoRingIsRefusedWithAReason) {
  Region region(16 << 10);
  const auto refused = [&] {
    auto ring = RetentionRing::Open(region.span());
    EXPECT_FALSE(ring.ok());
    return ring.ok() ? std::string() : ring.error().message;
  };
  EXPECT_NE(refused().find("magic"), std::string::npos);
  ASSERT_TRUE(RetentionRing::Create(region.span(), Identity()).ok());
  region.span()[20] ^= std::byte{1};
  EXPECT_NE(refused().find("checksum"), std::string::npos);
  ASSERT_TRUE(RetentionRing::Create(region.span(), Identity()).ok());
  EXPECT_FALSE(RetentionRing::Open(region.span().first(8192)).ok());
  EXPECT_FALSE(RetentionRing::Open(region.span().first(100)).ok());
  EXPECT_FALSE(RetentionRing::Create(region.span().subspan(8), Identity()).ok());
}

// Flips, overwrites and cuts: whatever opens must be safe to read to the last byte.
TEST(RetentionRingTest, HostileBytesNeverLeadOutsideTheRegion) {
  int opened = 0;
  for (std::uint32_t seed = 0; seed < 3000; ++seed) {
    std::mt19937 random(seed);
    Region region(16 << 10);
    {
      auto ring = RetentionRing::Create(region.span(), Identity());
      for (std::uint64_t clock = 11; clock < 31; ++clock) Write(*ring, clock, random() % 600);
      ring->Release(Clock(10 + random() % 10));
    }
    for (std::uint32_t i = 0; i < 1 + random() % 4; ++i) {
      // The words that change, record heads and anything else.
      const std::size_t places[] = {128, 192, 256, 4096 + 64 * (random() % 180),
                                    random() % region.span().size()};
      std::size_t at = places[random() % 5] + random() % 8;
      if (random() % 4 == 0) {
        const std::uint64_t values[] = {
            0, 64, 128, ~std::uint64_t{0}, 4096, std::uint64_t{1} << 62};
        at = at / 8 * 8;
        std::memcpy(region.span().data() + at, &values[random() % 6], 8);
      } else {
        region.span()[at] ^= static_cast<std::byte>(1u << (random() % 8));
      }
    }
    auto ring = RetentionRing::Open(region.span());
    if (!ring.ok()) continue;
    ++opened;
    std::uint64_t sum = 0;
    for (std::uint64_t clock = ring->released().value() + 1; clock <= ring->last_clock().value();
         ++clock) {
      RingEntryView view;
      if (!ring->Find(Clock(clock), view)) continue;
      for (const RingPart& part : view.parts) {
        ASSERT_LT(part.shard, 8u);
        for (const std::byte b : view.payload.subspan(part.offset, part.bytes)) {
          sum += static_cast<std::uint64_t>(b);
        }
      }
    }
    EXPECT_GE(sum, 0u);
    Write(*ring, ring->last_clock().value() + 1, 300);
  }
  EXPECT_GT(opened, 100);
}

// The writer is another process and is killed in the middle of whatever it does.
TEST(RetentionRingTest, AKilledWriterLeavesOnlyWholeEntries) {
  constexpr std::size_t kBytes = 64 << 10;
  std::mt19937 random(1);
  std::uint64_t most = 0;
  for (int run = 0; run < 60; ++run) {
    void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(memory, MAP_FAILED);
    const std::span<std::byte> region(static_cast<std::byte*>(memory), kBytes);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto ring = RetentionRing::Create(region, Identity(0));
      if (!ring.ok()) _exit(1);
      for (std::uint64_t clock = 1;; ++clock) {
        while (!Write(*ring, clock, (clock * 977) % 3000)) {
          ring->Release(Clock(ring->released().value() + 1 + clock % 5));
        }
        ring->MarkVoid(Clock(clock), ShardId(clock % 2 == 0 ? 1 : 6));
      }
    }
    usleep(200 + random() % 6000);
    ASSERT_EQ(kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    auto ring = RetentionRing::Open(region);
    // Killed before the header was whole, which is not a ring yet.
    if (ring.ok()) {
      const std::uint64_t last = ring->last_clock().value();
      most = std::max(most, last);
      for (std::uint64_t clock = ring->released().value() + 1; clock <= last; ++clock) {
        ExpectWhole(*ring, clock);
      }
    } else {
      EXPECT_NE(ring.error().message.find("magic"), std::string::npos) << ring.error().message;
    }
    munmap(memory, kBytes);
  }
  EXPECT_GT(most, 50u);
}

}  // namespace
}  // namespace ps::worker
