#include "ps-server/shell/huge_page_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <new>

namespace ps::server {
namespace {

constexpr std::size_t kSmall = 4096;
constexpr std::size_t kRegion = std::size_t{32} << 20;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kLine = 64;

std::size_t RoundUp(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

HugePageMemory::~HugePageMemory() {
  for (const Region& region : regions_) ::munmap(region.begin, region.bytes);
}

void* HugePageMemory::do_allocate(std::size_t bytes, std::size_t alignment) {
  if (bytes < kSmall || alignment > kLine) {
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  bytes = RoundUp(bytes, kLine);
  const std::lock_guard lock(mutex_);
  if (const auto found = free_.find(bytes); found != free_.end() && found->second != nullptr) {
    FreeBlock* const block = found->second;
    found->second = block->next;
    return block;
  }
  if (bytes > static_cast<std::size_t>(end_ - next_)) {
    // Room to begin where a huge page does; what is not touched costs nothing.
    const std::size_t mapped = std::max(RoundUp(bytes, kHugePage), kRegion) + kHugePage;
    void* const memory = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    (void)::madvise(memory, mapped, MADV_HUGEPAGE);
    regions_.push_back({static_cast<std::byte*>(memory), mapped});
    const auto at = reinterpret_cast<std::uintptr_t>(memory);
    next_ = regions_.back().begin + (RoundUp(at, kHugePage) - at);
    end_ = regions_.back().begin + mapped;
  }
  std::byte* const block = next_;
  next_ += bytes;
  return block;
}

void HugePageMemory::do_deallocate(void* block, std::size_t bytes, std::size_t alignment) {
  if (bytes < kSmall || alignment > kLine) {
    return std::pmr::new_delete_resource()->deallocate(block, bytes, alignment);
  }
  const std::lock_guard lock(mutex_);
  FreeBlock*& list = free_[RoundUp(bytes, kLine)];
  list = ::new (block) FreeBlock{list};
}

}  // namespace ps::server
