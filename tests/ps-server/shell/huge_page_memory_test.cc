#include "ps-server/shell/huge_page_memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace ps::server {
namespace {

TEST(HugePageMemoryTest, BlocksOfAnySizeDoNotOverlap) {
  HugePageMemory memory;
  struct Block {
    unsigned char* at;
    std::size_t bytes;
  };
  std::vector<Block> blocks;
  // Small, around the limit, many that together need a second region, and one larger than a region.
  for (const std::size_t bytes : {1, 100, 4095, 4096, 4097, 1 << 20, 40 << 20, 64}) {
    for (int i = 0; i < (bytes == 1 << 20 ? 50 : 2); ++i) {
      auto* const at = static_cast<unsigned char*>(memory.allocate(bytes, 64));
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(at) % 64, 0u);
      const auto mark = static_cast<unsigned char>(blocks.size() + 1);
      std::memset(at, mark, bytes);
      blocks.push_back({at, bytes});
    }
  }
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const auto mark = static_cast<unsigned char>(i + 1);
    EXPECT_EQ(blocks[i].at[0], mark);
    EXPECT_EQ(blocks[i].at[blocks[i].bytes - 1], mark);
    memory.deallocate(blocks[i].at, blocks[i].bytes, 64);
  }
}

TEST(HugePageMemoryTest, ABlockThatWasGivenBackIsUsedAgain) {
  HugePageMemory memory;
  void* const first = memory.allocate(5000, 64);
  void* const second = memory.allocate(5000, 64);
  memory.deallocate(first, 5000, 64);
  memory.deallocate(second, 5000, 64);
  EXPECT_NE(memory.allocate(6000, 64), second);
  EXPECT_EQ(memory.allocate(5000, 64), second);
  EXPECT_EQ(memory.allocate(5000, 64), first);
}

}  // namespace
}  // namespace ps::server
