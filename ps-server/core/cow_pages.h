// Memory in pages that can be frozen at an instant and written on at once.
//
// Freeze() gives a view of all pages as they are, in time that grows with their
// number and not with their bytes: owner and view share the pages, and the first
// Write() to a shared one copies it for the owner. So a shard's image can be
// taken between two pushes and written to disk while training goes on; memory
// grows by the pages touched meanwhile. (Copy on write; DESIGN's freeze.)
//
// Freezes are numbered from 1: a view has the number of its own, and knows of each
// page after which one it was last written on. That costs writes nothing, as the
// first one after a freeze takes its time anyway.
//
// The owner is of one thread. A view may be read, and ended, on another one, and
// may outlive its owner. `memory` outlives both, is safe to call from any thread
// and aligns to 64 bytes.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <vector>

namespace ps::server {

namespace detail {

struct CowPage {
  std::atomic<std::uint32_t> holders{1};
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::pmr::memory_resource* memory = nullptr;
};

}  // namespace detail

// Pages as of an instant.
class FrozenPages {
 public:
  FrozenPages() = default;
  FrozenPages(FrozenPages&& other) noexcept;
  FrozenPages& operator=(FrozenPages&& other) noexcept;
  ~FrozenPages();

  std::size_t size() const { return pages_.size(); }
  // Null after Release().
  const std::byte* Read(std::size_t page) const {
    return pages_[page] == nullptr ? nullptr : pages_[page]->data;
  }
  std::size_t bytes(std::size_t page) const { return pages_[page]->bytes; }
  // The page is not needed any more: from now on the owner need not copy it.
  void Release(std::size_t page);

  // The number of the freeze.
  std::uint32_t number() const { return number_; }
  // True if the page is not as it was at the freeze `since`.
  bool Changed(std::size_t page, std::uint64_t since) const { return changed_[page] >= since; }

 private:
  friend class CowPages;

  std::vector<detail::CowPage*> pages_;
  std::vector<std::uint32_t> changed_;
  std::uint32_t number_ = 0;
};

class CowPages {
 public:
  explicit CowPages(std::pmr::memory_resource* memory) : memory_(memory) {}
  ~CowPages();
  CowPages(CowPages&& other) noexcept;  // leaves `other` without pages
  CowPages& operator=(CowPages&&) = delete;

  std::size_t size() const { return data_.size(); }
  // Of all pages, without those that only views still hold.
  std::size_t bytes() const { return bytes_; }
  // That writes to shared pages have cost so far.
  std::uint64_t bytes_copied() const { return bytes_copied_; }

  // A page whose content is not defined.
  std::byte* Append(std::size_t bytes);
  // Gives a page another size; what fits of its content is kept.
  std::byte* Resize(std::size_t page, std::size_t bytes);

  const std::byte* Read(std::size_t page) const { return data_[page]; }
  // Valid until the next Freeze() or Resize().
  std::byte* Write(std::size_t page) {
    if (shared_[page] != 0) [[unlikely]]
      Unshare(page);
    return data_[page];
  }

  FrozenPages Freeze() const;
  // Freezes so far.
  std::uint32_t freezes() const { return freezes_; }
  // Lets go of all pages and begins anew.
  void Clear();

 private:
  detail::CowPage* Make(std::size_t bytes) const;
  void Unshare(std::size_t page);

  std::pmr::memory_resource* const memory_;
  // By page. What reads and writes need is kept apart from the rest.
  std::vector<std::byte*> data_;
  mutable std::vector<std::uint8_t> shared_;  // 1: a view may hold it
  std::vector<detail::CowPage*> pages_;
  std::vector<std::uint32_t> changed_;  // freezes there had been at the last write that took time
  mutable std::uint32_t freezes_ = 0;
  std::size_t bytes_ = 0;
  std::uint64_t bytes_copied_ = 0;
};

}  // namespace ps::server
