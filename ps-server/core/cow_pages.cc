#include "ps-server/core/cow_pages.h"

#include <algorithm>
#include <cstring>
#include <ranges>
#include <utility>

namespace ps::server {
namespace {

using detail::CowPage;
using detail::kLine;

// Who writes on more of a page than that part of its lines copies it whole.
constexpr std::size_t kLinesPart = 4;

constexpr std::size_t kAlignment = kLine;

// The last holder frees the page. What the others have read or written is over by then: their
// releases are ordered before this acquire.
void Drop(CowPage* page) {
  if (page == nullptr || page->holders.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  page->memory->deallocate(page->data, page->bytes, kAlignment);
  delete page;
}

// There is no view any more that what was saved is for.
void Forget(CowPage& page) {
  page.written = {};
  page.lines = {};
  page.before = {};
}

}  // namespace

FrozenPages::FrozenPages(FrozenPages&& other) noexcept
    : pages_(std::exchange(other.pages_, {})),
      log_(std::exchange(other.log_, {})),
      saved_(std::exchange(other.saved_, {})),
      changed_(std::exchange(other.changed_, {})),
      number_(other.number_) {}

FrozenPages& FrozenPages::operator=(FrozenPages&& other) noexcept {
  if (this != &other) {
    for (CowPage* const page : pages_) Drop(page);
    pages_ = std::exchange(other.pages_, {});
    log_ = std::exchange(other.log_, {});
    saved_ = std::exchange(other.saved_, {});
    changed_ = std::exchange(other.changed_, {});
    number_ = other.number_;
  }
  return *this;
}

FrozenPages::~FrozenPages() {
  for (CowPage* const page : pages_) Drop(page);
}

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
  if (old->holders.load(std::memory_order_acquire) == 1) return Forget(*old);
  CowPage* const copy = Make(old->bytes);
  std::memcpy(copy->data, old->data, old->bytes);
  bytes_copied_ += old->bytes;
  pages_[page] = copy;
  data_[page] = copy->data;
  Drop(old);
}

template <typename Lines>
CowPages::Writing CowPages::WriteShared(std::size_t page, const Lines& lines) {
  CowPage& here = *pages_[page];
  const std::size_t all = (here.bytes + kLine - 1) / kLine;
  if (here.holders.load(std::memory_order_acquire) == 1 || lines.size() > all / kLinesPart ||
      here.lines.size() + lines.size() > all || !here.TryLock()) {
    Unshare(page);
    return Writing(data_[page]);
  }
  changed_[page] = freezes_;
  if (here.written.empty()) here.written.resize((all + 63) / 64);
  for (const std::uint32_t line : lines) {
    std::uint64_t& bits = here.written[line / 64];
    const std::uint64_t bit = std::uint64_t{1} << line % 64;
    if ((bits & bit) != 0) continue;
    bits |= bit;
    here.lines.push_back(line);
    const std::size_t at = here.before.size();
    here.before.resize(at + kLine);
    const std::size_t offset = std::size_t{line} * kLine;
    std::memcpy(here.before.data() + at, here.data + offset, std::min(kLine, here.bytes - offset));
    bytes_copied_ += kLine;
  }
  return Writing(here.data, &here);
}

CowPages::Writing CowPages::WriteLines(std::size_t page, std::span<const std::uint32_t> lines) {
  if (shared_[page] == 0) return Writing(data_[page]);
  return WriteShared(page, lines);
}

CowPages::Writing CowPages::WriteSharedRange(std::size_t page, std::size_t offset,
                                             std::size_t bytes) {
  return WriteShared(
      page, std::views::iota(static_cast<std::uint32_t>(offset / kLine),
                             static_cast<std::uint32_t>((offset + bytes - 1) / kLine) + 1));
}

const std::byte* FrozenPages::Read(std::size_t page, std::vector<std::byte>& scratch) const {
  CowPage& here = *pages_[page];
  // Without its owner nobody writes on it any more.
  const bool alone = here.holders.load(std::memory_order_acquire) == 1;
  if (alone && here.lines.size() == log_[page]) return here.data;
  scratch.resize(here.bytes);
  Copy(page, scratch.data());
  return scratch.data();
}

void FrozenPages::Copy(std::size_t page, std::byte* to) const {
  CowPage& here = *pages_[page];
  here.Lock();
  std::memcpy(to, here.data, here.bytes);
  // The newest first: of a line that was saved after several freezes the first after this one
  // counts.
  for (std::size_t i = here.lines.size(); i-- > log_[page];) {
    const std::size_t offset = std::size_t{here.lines[i]} * kLine;
    std::memcpy(to + offset, here.before.data() + i * kLine, std::min(kLine, here.bytes - offset));
  }
  here.Unlock();
}

void FrozenPages::CopyRange(std::size_t page, std::size_t offset, std::size_t bytes,
                            std::byte* to) const {
  if (saved_.empty()) saved_.resize(pages_.size());
  Saved& saved = saved_[page];
  CowPage& here = *pages_[page];
  here.Lock();
  std::memcpy(to, here.data + offset, bytes);
  const auto end = static_cast<std::uint32_t>(here.lines.size());
  for (std::uint32_t i = std::max(saved.end, log_[page]); i < end; ++i) {
    if (saved.places.empty()) saved.places.resize((here.bytes + kLine - 1) / kLine);
    // Of those after several freezes the first after this one counts.
    std::uint32_t& place = saved.places[here.lines[i]];
    if (place == 0) place = i + 1;
  }
  saved.end = end;
  if (!saved.places.empty()) {
    for (std::size_t line = offset / kLine; line * kLine < offset + bytes; ++line) {
      if (saved.places[line] == 0) continue;
      const std::byte* const before = here.before.data() + (saved.places[line] - 1) * kLine;
      const std::size_t begin = std::max(offset, line * kLine);
      const std::size_t until = std::min(offset + bytes, (line + 1) * kLine);
      std::memcpy(to + (begin - offset), before + (begin - line * kLine), until - begin);
    }
  }
  here.Unlock();
}

FrozenPages CowPages::Freeze() const {
  FrozenPages view;
  view.log_.reserve(pages_.size());
  for (CowPage* const page : pages_) {
    if (!page->written.empty()) {
      if (page->holders.load(std::memory_order_acquire) == 1) Forget(*page);
      std::fill(page->written.begin(), page->written.end(), std::uint64_t{0});
    }
    view.log_.push_back(static_cast<std::uint32_t>(page->lines.size()));
  }
  view.pages_ = pages_;
  view.changed_ = changed_;
  view.number_ = ++freezes_;
  for (CowPage* const page : pages_) page->holders.fetch_add(1, std::memory_order_relaxed);
  std::fill(shared_.begin(), shared_.end(), std::uint8_t{1});
  return view;
}

}  // namespace ps::server
