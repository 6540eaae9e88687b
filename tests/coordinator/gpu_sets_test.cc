#include "coordinator/core/gpu_sets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <limits>
#include <map>
#include <random>
#include <string>

#include "tests/support/gpu_machine.h"
#include "tests/support/gpu_set_reference.h"

namespace ps::coordinator {
namespace {

using test::BestQuality;
using test::GpuMachine;
using test::GpuSetQuality;
using test::QualityOf;

constexpr const char* kMachines[] = {"dgx-1v", "dgx-a100", "hgx-h100", "pcie"};

// Some numbers in the right order; the agent's own are tested where they are.
GpuTopology Recorded(const std::string& name) {
  const auto machine = GpuMachine::Read(std::string(PS_GPU_MACHINES) + "/" + name + ".txt");
  const std::map<std::string, std::uint16_t> slow = {{"PIX", 12}, {"PXB", 11}, {"PHB", 10},
                                                     {"NODE", 9}, {"SYS", 6},  {"X", 0}};
  std::vector<std::uint16_t> bandwidth;
  for (std::size_t a = 0; a < machine.count(); ++a) {
    for (std::size_t b = 0; b < machine.count(); ++b) {
      const int links = machine.NvLinks(a, b);
      bandwidth.push_back(links > 0 ? static_cast<std::uint16_t>(20 * links)
                                    : slow.at(machine.links[a][b]));
    }
  }
  return GpuTopology::Of(static_cast<std::uint32_t>(machine.count()), bandwidth);
}

GpuMask Chosen(const GpuTopology& topology, GpuMask free, std::uint32_t wanted) {
  const auto set = ChooseGpus(topology, free, wanted);
  return set.has_value() ? set->gpus : 0;
}

// What is chosen, and what is said of it.
void ExpectBest(const GpuTopology& topology, GpuMask free, std::uint32_t wanted) {
  const auto set = ChooseGpus(topology, free, wanted);
  const GpuMask there = free & ((GpuMask{1} << topology.count) - 1);
  ASSERT_EQ(set.has_value(), static_cast<std::uint32_t>(std::popcount(there)) >= wanted)
      << std::hex << free << " " << wanted;
  if (!set.has_value()) return;
  ASSERT_EQ(set->gpus & ~there, 0u) << std::hex << free;
  ASSERT_EQ(static_cast<std::uint32_t>(std::popcount(set->gpus)), wanted);
  const GpuSetQuality quality(set->slowest, set->sum, set->left);
  ASSERT_EQ(quality, QualityOf(topology, there, set->gpus)) << std::hex << set->gpus;
  ASSERT_EQ(quality, BestQuality(topology, there, wanted)) << std::hex << free << " " << wanted;
}

TEST(GpuSetsTest, RecordedMachinesAreUsedOptimally) {
  for (const char* name : kMachines) {
    const GpuTopology topology = Recorded(name);
    ASSERT_EQ(topology.count, 8u) << name;
    for (GpuMask free = 0; free < 256; ++free) {
      for (std::uint32_t wanted = 1; wanted <= 8; ++wanted) ExpectBest(topology, free, wanted);
    }
  }
}

TEST(GpuSetsTest, ADgx1IsCutWhereItsLinksAreFew) {
  const GpuTopology topology = Recorded("dgx-1v");
  // Two links join 0 and 3, and what is left has more than after other such pairs.
  EXPECT_EQ(std::popcount(Chosen(topology, 0xff, 2)), 2);
  EXPECT_EQ(ChooseGpus(topology, 0xff, 2)->slowest, 40);
  // Four and four, each fully connected.
  EXPECT_EQ(ChooseGpus(topology, 0xff, 4)->slowest, 40);
  // Those that are free have no NVLink to each other: the task does not get a slow pair where a
  // fast one is free.
  EXPECT_EQ(Chosen(topology, 0b1010'0011, 2), GpuMask{0b0010'0010});
}

TEST(GpuSetsTest, BehindASwitchAllAreAlikeAndTheLowestAreTaken) {
  EXPECT_EQ(Chosen(Recorded("dgx-a100"), 0xff, 3), GpuMask{0b111});
  EXPECT_EQ(Chosen(Recorded("hgx-h100"), 0b1110'1010, 2), GpuMask{0b1010});
}

TEST(GpuSetsTest, WithoutNvLinkASwitchAndThenAProcessorIsShared) {
  const GpuTopology topology = Recorded("pcie");
  EXPECT_EQ(Chosen(topology, 0xff, 2), GpuMask{0b11});
  EXPECT_EQ(Chosen(topology, 0b1111'1101, 2), GpuMask{0b1100});
  EXPECT_EQ(Chosen(topology, 0b1111'0111, 4), GpuMask{0b1111'0000});
}

TEST(GpuSetsTest, OneGpuLeavesThoseThatBelongTogether) {
  // Number 1's neighbour is gone already.
  EXPECT_EQ(Chosen(Recorded("pcie"), 0b1111'1110, 1), GpuMask{0b10});
}

TEST(GpuSetsTest, WithoutKnownLinksTheLowestAreTaken) {
  for (const auto& told : {std::vector<std::uint16_t>{}, std::vector<std::uint16_t>(15, 7)}) {
    const GpuTopology topology = GpuTopology::Of(4, told);
    EXPECT_EQ(Chosen(topology, 0b1110, 2), GpuMask{0b0110});
  }
}

TEST(GpuSetsTest, OfTwoNumbersForALinkTheSmallerCounts) {
  const GpuTopology topology = GpuTopology::Of(2, {0, 9, 4, 0});
  EXPECT_EQ(topology.Between(0, 1), 4);
  EXPECT_EQ(topology.Between(1, 0), 4);
}

TEST(GpuSetsTest, TheLargestNodeIsNotTooLarge) {
  std::vector<std::uint16_t> bandwidth(256);
  for (std::size_t i = 0; i < 256; ++i) {
    bandwidth[i] = i / 16 / 8 == i % 16 / 8 ? 100 : 10;
  }
  const GpuTopology topology = GpuTopology::Of(16, bandwidth);
  EXPECT_EQ(Chosen(topology, 0xffff, 16), GpuMask{0xffff});
  EXPECT_EQ(Chosen(topology, 0xfffe, 8), GpuMask{0xff00});
  EXPECT_EQ(ChooseGpus(topology, 0xffff, 1)->slowest, std::numeric_limits<std::uint16_t>::max());
}

TEST(GpuSetsTest, OfAnyTopologyTheBestSetIsChosen) {
  std::mt19937 random(11);
  for (int round = 0; round < 3000; ++round) {
    const std::uint32_t count = 1 + random() % 8;
    // Few different links make many sets equal in what counts first.
    const std::uint32_t kinds = 1 + random() % 5;
    std::vector<std::uint16_t> bandwidth(count * count);
    for (auto& link : bandwidth) link = static_cast<std::uint16_t>(random() % kinds * 25);
    const GpuTopology topology = GpuTopology::Of(count, bandwidth);
    ExpectBest(topology, random() & 0x3ff, 1 + random() % count);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace ps::coordinator
