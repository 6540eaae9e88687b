// What the operating system gives a dense shard, beside what its values and slots need. A program
// of its own: it looks at the memory of the process.
#include <gtest/gtest.h>
#include <malloc.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "ps-server/core/shard.h"
#include "ps-server/shell/huge_page_memory.h"
#include "tests/ps-server/core/server_testing.h"

namespace ps::server {
namespace {

using testing::Bytes;
using testing::DenseBlock;
using testing::MakeLayout;
using testing::MakeMember;
using testing::Parse;

constexpr std::uint32_t kElements = 65'536;
constexpr std::uint32_t kBlocks = 256;  // 16.8 M elements, 67 MB of values

std::uint64_t ResidentBytes() {
  ::malloc_trim(0);
  std::ifstream file("/proc/self/statm");
  std::uint64_t total = 0;
  std::uint64_t resident = 0;
  file >> total >> resident;
  return resident * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

// Optimizer, whether pushes are sparse, floats (and counts) that an element needs.
class DenseMemoryTest : public ::testing::TestWithParam<std::tuple<const char*, bool, int>> {};

TEST_P(DenseMemoryTest, AShardTakesATenthMoreThanItsValuesAndSlotsAtMost) {
  const auto [type, sparse, words] = GetParam();
  JobSpec spec;
  spec.training.epochs = 1;
  spec.training.workers = 2;
  spec.optimizer.type = type;
  spec.optimizer.reference_batch = 32;
  spec.sparsification.ratio = sparse ? 0.01 : 1;
  const JobRules rules = JobRules::Of(spec, 4000);
  const LayoutView layout =
      MakeLayout({{TableRule::Sgd, std::vector<std::uint32_t>(kBlocks, kElements)}}, 1);
  const std::vector<float> values(kElements, 1.0F);
  const std::uint64_t before = ResidentBytes();
  ShardMemory memory;
  memory.memory = std::make_shared<HugePageMemory>();
  Shard shard(layout, rules, ShardId(0), Epoch(1), 1, false, memory);
  {
    Bytes all;
    all.reserve(std::size_t{kBlocks} * (kElements * sizeof(float) + 64));
    for (std::uint32_t block = 0; block < kBlocks; ++block) {
      testing::operator+=(all, DenseBlock(block, values));
    }
    ASSERT_EQ(shard.Init(Parse(layout, all)), wire::Code::Applied);
  }
  // One push of all, so that no page of it is only promised.
  const Member member = MakeMember(0, 11);
  {
    Bytes all;
    all.reserve(std::size_t{kBlocks} * (kElements * sizeof(float) + 64));
    for (std::uint32_t block = 0; block < kBlocks; ++block) {
      testing::operator+=(all, DenseBlock(block, values));
    }
    ASSERT_EQ(
        shard.Push(member, PushFacts{Clock(1), shard.version(), 32, false}, Parse(layout, all), 2)
            .code,
        wire::Code::Applied);
  }
  const std::uint64_t needed = std::uint64_t{kBlocks} * kElements * sizeof(float) * words;
  // The log of what recent pushes changed comes on top, with its first push: half of the values.
  const std::uint64_t log = std::uint64_t{kBlocks} * kElements * sizeof(float) / 2;
  const std::uint64_t taken = ResidentBytes() - before - log;
  EXPECT_GE(taken, needed);
  EXPECT_LE(static_cast<double>(taken), 1.10 * static_cast<double>(needed));
  std::printf("%s, %s pushes: %.3f of what %d words of an element need\n", type,
              sparse ? "sparse" : "dense", static_cast<double>(taken) / static_cast<double>(needed),
              words);
}

INSTANTIATE_TEST_SUITE_P(Optimizers, DenseMemoryTest,
                         ::testing::Values(std::tuple("sgd", false, 1), std::tuple("sgd", true, 1),
                                           std::tuple("momentum", false, 2),
                                           std::tuple("adagrad", true, 2),
                                           std::tuple("adam", false, 3),
                                           // Values, two slots, and a count of updates.
                                           std::tuple("adam", true, 4)));

}  // namespace
}  // namespace ps::server
