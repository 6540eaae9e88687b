#include "ps-server/core/cow_pages.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace ps::server {
namespace {

using detail::CowPage;

constexpr std::size_t kAlignment = 64;

// The last holder frees the page. What the others have read or written is over by then: their
// releases are ordered before this acquire.
void Drop(CowPage* page) {
  if (page == nullptr || page->holders.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  page->memory->deallocate(page->data, page->bytes, kAlignment);
  delete page;
}

}  // namespace

FrozenPages::FrozenPages(FrozenPages&& other) noexcept
    : pages_(std::exchange(other.pages_, {})),
      changed_(std::exchange(other.changed_, {})),
      number_(other.number_) {}

FrozenPages& FrozenPages::operator=(FrozenPages&& other) noexcept {
  if (this != &other) {
    for (CowPage* const page : pages_) Drop(page);
    pages_ = std::exchange(other.pages_, {});
    changed_ = std::exchange(other.changed_, {});
    number_ = other.number_;
  }
  return *this;
}

FrozenPages::~FrozenPages() {
  for (CowPage* const page : pages_) Drop(page);
}

void FrozenPages::Release(std::size_t page) { Drop(std::exchange(pages_[page], nullptr)); }

CowPages::CowPages(CowPages&& other) noexcept
    : memory_(other.memory_),
      data_(std::exchange(other.data_, {})),
      shared_(std::exchange(other.shared_, {})),
      pages_(std::exchange(other.pages_, {})),
      changed_(std::exchange(other.changed_, {})),
      freezes_(other.freezes_),
      bytes_(std::exchange(other.bytes_, 0)),
      bytes_copied_(other.bytes_copied_) {}

CowPages::~CowPages() {
  for (CowPage* const page : pages_) Drop(page);
}

void CowPages::Clear() {
  for (CowPage* const page : pages_) Drop(page);
  data_.clear();
  shared_.clear();
  pages_.clear();
  changed_.clear();
  freezes_ = 0;
  bytes_ = 0;
}

CowPage* CowPages::Make(std::size_t bytes) const {
  auto* const page = new CowPage;
  page->data = static_cast<std::byte*>(memory_->allocate(bytes, kAlignment));
  page->bytes = bytes;
  page->memory = memory_;
  return page;
}

std::byte* CowPages::Append(std::size_t bytes) {
  CowPage* const page = Make(bytes);
  pages_.push_back(page);
  data_.push_back(page->data);
  shared_.push_back(0);
  changed_.push_back(freezes_);
  bytes_ += bytes;
  return page->data;
}

std::byte* CowPages::Resize(std::size_t page, std::size_t bytes) {
  CowPage* const old = pages_[page];
  CowPage* const fresh = Make(bytes);
  std::memcpy(fresh->data, old->data, std::min(old->bytes, bytes));
  bytes_ += bytes - old->bytes;
  pages_[page] = fresh;
  data_[page] = fresh->data;
  shared_[page] = 0;
  changed_[page] = freezes_;
  Drop(old);
  return fresh->data;
}

void CowPages::Unshare(std::size_t page) {
  CowPage* const old = pages_[page];
  shared_[page] = 0;
  changed_[page] = freezes_;
  // With the acquire, reads of the view that has ended are over before we write.
  if (old->holders.load(std::memory_order_acquire) == 1) return;
  CowPage* const copy = Make(old->bytes);
  std::memcpy(copy->data, old->data, old->bytes);
  bytes_copied_ += old->bytes;
  pages_[page] = copy;
  data_[page] = copy->data;
  Drop(old);
}

FrozenPages CowPages::Freeze() const {
  FrozenPages view;
  view.pages_ = pages_;
  view.changed_ = changed_;
  view.number_ = ++freezes_;
  for (CowPage* const page : pages_) page->holders.fetch_add(1, std::memory_order_relaxed);
  std::fill(shared_.begin(), shared_.end(), std::uint8_t{1});
  return view;
}

}  // namespace ps::server
