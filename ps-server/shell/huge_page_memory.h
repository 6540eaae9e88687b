// Memory in huge pages, for what is large and read at random.
//
// A row of an embedding table is a random access; with pages of 4 KiB each costs
// a walk through the page tables besides. Blocks of 4 KiB and more are cut from
// regions of 32 MiB that ask for transparent huge pages (madvise; where the
// system does not give them, ordinary pages do). A block that is given back is
// used again for one of the same size, regions are unmapped with this object.
// Smaller blocks come from operator new.
//
// Any thread. Each lane has its own, so that blocks of one lane lie together; others give back what
// they read of its frozen shards.
#pragma once

#include <cstddef>
#include <map>
#include <memory_resource>
#include <mutex>
#include <vector>

namespace ps::server {

class HugePageMemory : public std::pmr::memory_resource {
 public:
  HugePageMemory() = default;
  ~HugePageMemory() override;
  HugePageMemory(const HugePageMemory&) = delete;
  HugePageMemory& operator=(const HugePageMemory&) = delete;

 private:
  struct Region {
    std::byte* begin;
    std::size_t bytes;
  };
  struct FreeBlock {
    FreeBlock* next;
  };

  void* do_allocate(std::size_t bytes, std::size_t alignment) override;
  void do_deallocate(void* block, std::size_t bytes, std::size_t alignment) override;
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }

  std::mutex mutex_;
  std::vector<Region> regions_;
  std::byte* next_ = nullptr;  // what is left of the newest region
  std::byte* end_ = nullptr;
  std::map<std::size_t, FreeBlock*> free_;  // by size
};

}  // namespace ps::server
