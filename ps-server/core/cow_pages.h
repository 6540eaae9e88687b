// Memory in pages that can be frozen at an instant and written on at once.
//
// Freeze() gives a view of all pages as they are, in time that grows with their
// number and not with their bytes: owner and view share the pages, and the first
// Write() to a shared one copies it for the owner. So a shard's image can be
// taken between two pushes and written to disk while training goes on; memory
// grows by the pages touched meanwhile. (Copy on write; DESIGN's freeze.)
//
// A push of a percent of the gradient, or of some thousand rows, touches nearly all
// pages, of each a few lines: the first one after a freeze would copy everything, and
// be late by that. So WriteLines() and WriteRange() write on the shared page itself,
// and save for the views only the lines that they write on, as they were, in the order
// in which they did (an undo log; a view knows how long it was at its freeze). A view
// puts back what came after that into what it copies of the page; the owner does not
// wait for that, it makes a copy of the page where it would have to, or where the log
// would be larger than the page. A log stays until its page is written on, or frozen,
// after its last view has ended.
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
#include <span>
#include <utility>
#include <vector>

namespace ps::server {

namespace detail {

struct CowPage {
  std::atomic<std::uint32_t> holders{1};
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::pmr::memory_resource* memory = nullptr;
  // The log of what the owner has written on while views share the page. It is changed, and `data`
  // too then, by the owner alone and while it has locked the page; a view locks it to read.
  std::atomic<bool> locked{false};
  std::vector<std::uint32_t> lines;
  std::vector<std::byte> before;       // these lines as they were, kLine bytes each
  std::vector<std::uint64_t> written;  // a bit for each line since the newest freeze; the owner's

  bool TryLock() { return !locked.exchange(true, std::memory_order_acquire); }
  void Lock() {
    while (!TryLock()) locked.wait(true, std::memory_order_relaxed);
  }
  void Unlock() {
    locked.store(false, std::memory_order_release);
    locked.notify_one();
  }
};

inline constexpr std::size_t kLine = 64;

}  // namespace detail

// Pages as of an instant.
class FrozenPages {
 public:
  FrozenPages() = default;
  FrozenPages(FrozenPages&& other) noexcept;
  FrozenPages& operator=(FrozenPages&& other) noexcept;
  ~FrozenPages();

  std::size_t size() const { return pages_.size(); }
  std::size_t bytes(std::size_t page) const { return pages_[page]->bytes; }
  // In place, or in `scratch` while the owner has the page too, or has written on it.
  const std::byte* Read(std::size_t page, std::vector<std::byte>& scratch) const;
  // Copies it, bytes(page) of them.
  void Copy(std::size_t page, std::byte* to) const;
  // Copies a part of it. What was saved of the page is looked through once, and not each time.
  void CopyRange(std::size_t page, std::size_t offset, std::size_t bytes, std::byte* to) const;

  // The number of the freeze.
  std::uint32_t number() const { return number_; }
  // True if the page is not as it was at the freeze `since`.
  bool Changed(std::size_t page, std::uint64_t since) const { return changed_[page] >= since; }

 private:
  friend class CowPages;

  // Which of the lines saved since the freeze is a line of the page, as far as the log was looked
  // through.
  struct Saved {
    std::uint32_t end = 0;              // of what was looked through
    std::vector<std::uint32_t> places;  // by line, in the log, plus 1; 0: it was not saved
  };

  std::vector<detail::CowPage*> pages_;
  std::vector<std::uint32_t> log_;    // lines in the log of each page at the freeze
  mutable std::vector<Saved> saved_;  // of each page, from the first CopyRange() on
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

  bool shared(std::size_t page) const { return shared_[page] != 0; }

  // A page that may be written on as long as this lives.
  class Writing {
   public:
    Writing(Writing&& other) noexcept
        : data_(other.data_), locked_(std::exchange(other.locked_, nullptr)) {}
    Writing& operator=(Writing&&) = delete;
    ~Writing() {
      if (locked_ != nullptr) locked_->Unlock();
    }
    std::byte* data() const { return data_; }

   private:
    friend class CowPages;
    explicit Writing(std::byte* data, detail::CowPage* locked = nullptr)
        : data_(data), locked_(locked) {}

    std::byte* data_;
    detail::CowPage* locked_;  // one that views share
  };
  Writing WriteAll(std::size_t page) { return Writing(Write(page)); }
  // As Write(), for who writes on these lines of detail::kLine bytes only, by their numbers, which
  // may be there several times. Nothing else may be called before it has ended.
  Writing WriteLines(std::size_t page, std::span<const std::uint32_t> lines);
  // The same for a stretch of the page, which is not empty.
  Writing WriteRange(std::size_t page, std::size_t offset, std::size_t bytes) {
    if (shared_[page] == 0) [[likely]]
      return Writing(data_[page]);
    return WriteSharedRange(page, offset, bytes);
  }

  FrozenPages Freeze() const;
  // Freezes so far.
  std::uint32_t freezes() const { return freezes_; }
  // Lets go of all pages and begins anew.
  void Clear();

 private:
  detail::CowPage* Make(std::size_t bytes) const;
  void Unshare(std::size_t page);
  template <typename Lines>
  Writing WriteShared(std::size_t page, const Lines& lines);
  Writing WriteSharedRange(std::size_t page, std::size_t offset, std::size_t bytes);

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
