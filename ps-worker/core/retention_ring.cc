#include "ps-worker/core/retention_ring.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "common/check.h"
#include "common/layout/layout.h"

namespace ps::worker {
namespace {

constexpr std::uint64_t kRingMagic = 0x31474e4952535044;  // "DPSRING1"
constexpr std::uint32_t kRingVersion = 1;
constexpr std::uint32_t kEntryMagic = 0x59525445;  // "ETRY"
constexpr std::uint32_t kSkipMagic = 0x50494b53;   // "SKIP"
constexpr std::uint64_t kAlign = 64;
// No job counts that far; keeps arithmetic on a hostile clock from overflowing.
constexpr std::uint64_t kClockMax = std::uint64_t{1} << 62;

struct RingHeader {
  std::uint64_t magic = 0;
  std::uint32_t version = 0;
  std::uint32_t header_bytes = 0;
  std::uint64_t job = 0;
  std::uint32_t worker = 0;
  std::uint32_t incarnation = 0;
  std::uint32_t generation = 0;
  std::uint32_t shards = 0;
  std::uint64_t first_clock = 0;
  std::uint64_t capacity = 0;
  std::uint64_t checksum = 0;  // of all the above
};
static_assert(sizeof(RingHeader) == 64);

// Words that change, each on a cache line of its own behind the header.
constexpr std::size_t kHeadAt = 128;
constexpr std::size_t kTailAt = 192;
constexpr std::size_t kReleasedAt = 256;

struct RecordHeader {
  std::uint32_t magic = 0;
  std::uint32_t parts = 0;
  std::uint64_t bytes = 0;  // of the whole record
  std::uint64_t clock = 0;
  std::uint64_t payload_bytes = 0;
  std::uint64_t lease_id = 0;
  std::uint64_t lease_done = 0;
  std::uint32_t samples = 0;
  std::uint32_t flags = 0;
  std::uint64_t checksum = 0;
};
static_assert(sizeof(RecordHeader) == kAlign);

constexpr std::uint64_t RoundUp(std::uint64_t value, std::uint64_t to) {
  return (value + to - 1) / to * to;
}

std::uint64_t EntryBytes(std::uint64_t payload, std::uint64_t parts) {
  return RoundUp(sizeof(RecordHeader) + RoundUp(payload, 8) + parts * sizeof(RingPart), kAlign);
}

std::uint64_t HeaderChecksum(const RingHeader& header) {
  return XXH3_64bits(&header, offsetof(RingHeader, checksum));
}

// The void flags change after the entry is published, so they are not summed.
std::uint64_t RecordChecksum(const RecordHeader& record, const RingPart* parts) {
  std::uint64_t sum = XXH3_64bits(&record, offsetof(RecordHeader, checksum));
  for (std::uint32_t i = 0; i < record.parts; ++i) {
    RingPart part = parts[i];
    part.is_void = 0;
    sum = XXH3_64bits_withSeed(&part, sizeof(part), sum);
  }
  return sum;
}

std::uint64_t Load(const std::byte* region, std::size_t at) {
  // atomic_ref wants a mutable object even to load; nothing is written.
  auto* word = reinterpret_cast<std::uint64_t*>(const_cast<std::byte*>(region) + at);
  return std::atomic_ref<std::uint64_t>(*word).load(std::memory_order_acquire);
}

void Store(std::byte* region, std::size_t at, std::uint64_t value) {
  auto* word = reinterpret_cast<std::uint64_t*>(region + at);
  std::atomic_ref<std::uint64_t>(*word).store(value, std::memory_order_release);
}

const RingPart* PartsOf(const std::byte* record, const RecordHeader& header) {
  return reinterpret_cast<const RingPart*>(record + sizeof(RecordHeader) +
                                           RoundUp(header.payload_bytes, 8));
}

Error Broken(const std::string& what) {
  return Error{ErrorCode::kInvalid, "retention ring: " + what};
}

Status CheckRegion(std::span<std::byte> region) {
  if (region.size() < RetentionRing::kRegionBytesMin) {
    return Broken("a region of " + std::to_string(region.size()) + " bytes, at least " +
                  std::to_string(RetentionRing::kRegionBytesMin) + " needed");
  }
  if (reinterpret_cast<std::uintptr_t>(region.data()) % kAlign != 0) {
    return Broken("the region is not aligned to 64 bytes");
  }
  return Ok();
}

}  // namespace

const RingPart* RingEntryView::FindPart(ShardId shard) const {
  const auto found = std::lower_bound(
      parts.begin(), parts.end(), shard.value(),
      [](const RingPart& part, std::uint32_t value) { return part.shard < value; });
  return found != parts.end() && found->shard == shard.value() ? &*found : nullptr;
}

RingPin::RingPin(RingPin&& other) noexcept
    : count_(std::move(other.count_)), keep_alive_(std::move(other.keep_alive_)) {}

RingPin& RingPin::operator=(RingPin&& other) noexcept {
  if (this != &other) {
    Reset();
    count_ = std::move(other.count_);
    keep_alive_ = std::move(other.keep_alive_);
  }
  return *this;
}

void RingPin::Reset() {
  // Release: what the sender read of the entry happens before the ring writes there again.
  if (count_ != nullptr) count_->fetch_sub(1, std::memory_order_release);
  count_.reset();
  keep_alive_.reset();
}

Result<RetentionRing> RetentionRing::Create(std::span<std::byte> region,
                                            const RingIdentity& identity,
                                            std::shared_ptr<void> keep_alive) {
  PS_TRY(CheckRegion(region));
  RetentionRing ring;
  ring.identity_ = identity;
  ring.region_ = region.data();
  ring.data_ = region.data() + kHeaderBytes;
  ring.capacity_ = (region.size() - kHeaderBytes) / kAlign * kAlign;
  ring.keep_alive_ = std::move(keep_alive);
  ring.released_ = identity.first_clock;

  RingHeader header;
  header.magic = kRingMagic;
  header.version = kRingVersion;
  header.header_bytes = kHeaderBytes;
  header.job = identity.job.value();
  header.worker = identity.worker.value();
  header.incarnation = identity.incarnation.value();
  header.generation = identity.generation;
  header.shards = identity.shards;
  header.first_clock = identity.first_clock.value();
  header.capacity = ring.capacity_;
  header.checksum = HeaderChecksum(header);
  // The magic goes last: until then the region is no ring for anybody.
  Store(region.data(), 0, 0);
  std::memset(region.data() + sizeof(header.magic), 0, kHeaderBytes - sizeof(header.magic));
  Store(region.data(), kReleasedAt, identity.first_clock.value());
  std::memcpy(region.data() + sizeof(header.magic),
              reinterpret_cast<const std::byte*>(&header) + sizeof(header.magic),
              sizeof(header) - sizeof(header.magic));
  Store(region.data(), 0, header.magic);
  return ring;
}

Result<RetentionRing> RetentionRing::Open(std::span<std::byte> region,
                                          std::shared_ptr<void> keep_alive) {
  PS_TRY(CheckRegion(region));
  RingHeader header;
  std::memcpy(&header, region.data(), sizeof(header));
  if (header.magic != kRingMagic) return Broken("wrong magic, nothing was ever retained here");
  if (header.version != kRingVersion) {
    return Broken("version " + std::to_string(header.version) + ", this program reads " +
                  std::to_string(kRingVersion));
  }
  if (header.checksum != HeaderChecksum(header)) return Broken("the header's checksum is wrong");
  if (header.header_bytes != kHeaderBytes ||
      header.capacity != (region.size() - kHeaderBytes) / kAlign * kAlign) {
    return Broken("the header speaks of " + std::to_string(header.capacity) +
                  " bytes, the region has " + std::to_string(region.size()));
  }
  if (header.shards == 0 || header.shards > kMaxShards) {
    return Broken(std::to_string(header.shards) + " shards");
  }
  RetentionRing ring;
  ring.identity_ =
      RingIdentity{JobId(header.job), WorkerId(header.worker), Incarnation(header.incarnation),
                   header.generation, header.shards,           Clock(header.first_clock)};
  ring.region_ = region.data();
  ring.data_ = region.data() + kHeaderBytes;
  ring.capacity_ = header.capacity;
  ring.keep_alive_ = std::move(keep_alive);
  ring.head_ = Load(region.data(), kHeadAt);
  ring.tail_ = Load(region.data(), kTailAt);
  ring.released_ = Clock(Load(region.data(), kReleasedAt));
  PS_TRY(ring.Walk());
  ring.Trim();
  return ring;
}

Status RetentionRing::Walk() {
  if (tail_ > head_ || head_ - tail_ > capacity_ || head_ % kAlign != 0 || tail_ % kAlign != 0) {
    return Broken("head " + std::to_string(head_) + " and tail " + std::to_string(tail_) +
                  " contradict each other");
  }
  if (released_ < identity_.first_clock) {
    return Broken("released up to clock " + std::to_string(released_.value()) +
                  ", before the first one");
  }
  for (std::uint64_t at = tail_; at < head_;) {
    const std::string where = "record at " + std::to_string(at) + ": ";
    const std::byte* place = At(at);
    RecordHeader record;
    std::memcpy(&record, place, sizeof(record));
    const std::uint64_t to_end = capacity_ - at % capacity_;
    if (record.bytes < kAlign || record.bytes % kAlign != 0 || record.bytes > to_end ||
        record.bytes > head_ - at) {
      return Broken(where + "a length of " + std::to_string(record.bytes));
    }
    if (record.magic == kSkipMagic) {
      if (record.bytes != to_end) return Broken(where + "a gap that ends too early");
      at += record.bytes;
      continue;
    }
    if (record.magic != kEntryMagic) return Broken(where + "wrong magic");
    if (record.parts > identity_.shards || record.payload_bytes > record.bytes ||
        EntryBytes(record.payload_bytes, record.parts) > record.bytes) {
      return Broken(where + "its parts do not fit in");
    }
    const RingPart* parts = PartsOf(place, record);
    if (record.checksum != RecordChecksum(record, parts)) {
      return Broken(where + "the checksum is wrong");
    }
    for (std::uint32_t i = 0; i < record.parts; ++i) {
      const RingPart& part = parts[i];
      if (part.shard >= identity_.shards || (i > 0 && part.shard <= parts[i - 1].shard) ||
          std::uint64_t{part.offset} + part.bytes > record.payload_bytes) {
        return Broken(where + "part " + std::to_string(i) + " is out of place");
      }
    }
    if (record.clock > kClockMax) return Broken(where + "clock " + std::to_string(record.clock));
    const bool follows = slots_.empty() ? record.clock > identity_.first_clock.value()
                                        : record.clock - 1 == slots_.back().clock.value();
    if (!follows) return Broken(where + "clock " + std::to_string(record.clock));
    slots_.push_back(Slot{Clock(record.clock), at, record.bytes,
                          std::make_shared<std::atomic<std::uint32_t>>(0)});
    at += record.bytes;
  }
  if (!slots_.empty() &&
      (released_.value() + 1 < slots_.front().clock.value() || released_ > slots_.back().clock)) {
    return Broken("released up to clock " + std::to_string(released_.value()) +
                  ", which is not next to its entries");
  }
  return Ok();
}

RetentionRing::ReserveStatus RetentionRing::Reserve(std::size_t max_payload, std::size_t max_parts,
                                                    Reservation& reservation) {
  PS_CHECK(!reserved_, "one reservation at a time");
  if (max_payload > capacity_ || max_parts > identity_.shards) return ReserveStatus::kTooLarge;
  const std::uint64_t need = EntryBytes(max_payload, max_parts);
  if (need > capacity_) return ReserveStatus::kTooLarge;
  Trim();
  std::uint64_t to_end = capacity_ - head_ % capacity_;
  if (tail_ == head_ && need > to_end) {
    // Empty, but the entry would straddle the end: start over at the front.
    WriteSkip(head_, to_end);
    head_ += to_end;
    StoreHead();
    tail_ = head_;
    StoreTail();
    to_end = capacity_;
  }
  const std::uint64_t begin = need > to_end ? head_ + to_end : head_;
  if (begin + need - tail_ > capacity_) return ReserveStatus::kFull;
  reserved_ = true;
  reserved_begin_ = begin;
  reserved_bytes_ = need;
  reserved_payload_ = max_payload;
  reserved_parts_ = max_parts;
  std::byte* place = At(begin);
  reservation.payload = std::span<std::byte>(place + sizeof(RecordHeader), max_payload);
  reservation.region_begin = static_cast<std::size_t>(place - region_);
  reservation.region_end = reservation.region_begin + need;
  return ReserveStatus::kReserved;
}

void RetentionRing::Commit(const RingEntryInfo& info, std::size_t payload_bytes,
                           std::span<const RingPart> parts) {
  PS_CHECK(reserved_ && payload_bytes <= reserved_payload_ && parts.size() <= reserved_parts_);
  PS_CHECK(info.clock.value() == last_clock().value() + 1, info.clock, last_clock());
  RecordHeader record;
  record.magic = kEntryMagic;
  record.parts = static_cast<std::uint32_t>(parts.size());
  record.bytes = EntryBytes(payload_bytes, parts.size());
  record.clock = info.clock.value();
  record.payload_bytes = payload_bytes;
  record.lease_id = info.lease_id;
  record.lease_done = info.lease_done;
  record.samples = info.samples;
  record.flags = info.flags;
  std::byte* place = At(reserved_begin_);
  auto* stored = reinterpret_cast<RingPart*>(place + sizeof(record) + RoundUp(payload_bytes, 8));
  for (std::size_t i = 0; i < parts.size(); ++i) {
    PS_CHECK(parts[i].shard < identity_.shards && (i == 0 || parts[i - 1].shard < parts[i].shard));
    PS_CHECK(std::uint64_t{parts[i].offset} + parts[i].bytes <= payload_bytes);
    std::memcpy(&stored[i], &parts[i], sizeof(RingPart));
  }
  record.checksum = RecordChecksum(record, stored);
  std::memcpy(place, &record, sizeof(record));
  if (reserved_begin_ != head_) WriteSkip(head_, reserved_begin_ - head_);
  slots_.push_back(Slot{info.clock, reserved_begin_, record.bytes,
                        std::make_shared<std::atomic<std::uint32_t>>(0)});
  head_ = reserved_begin_ + record.bytes;
  reserved_ = false;
  StoreHead();
}

void RetentionRing::Cancel() { reserved_ = false; }

Clock RetentionRing::last_clock() const {
  return slots_.empty() ? released_ : std::max(released_, slots_.back().clock);
}

std::size_t RetentionRing::Visible() const {
  return static_cast<std::size_t>(last_clock().value() - released_.value());
}

const RetentionRing::Slot* RetentionRing::SlotOf(Clock clock) const {
  if (clock <= released_ || slots_.empty() || clock > slots_.back().clock) return nullptr;
  return &slots_[static_cast<std::size_t>(clock.value() - slots_.front().clock.value())];
}

bool RetentionRing::Find(Clock clock, RingEntryView& view) const {
  const Slot* slot = SlotOf(clock);
  if (slot == nullptr) return false;
  const std::byte* place = At(slot->begin);
  RecordHeader record;
  std::memcpy(&record, place, sizeof(record));
  view.info =
      RingEntryInfo{clock, record.samples, record.flags, record.lease_id, record.lease_done};
  view.payload = std::span<const std::byte>(place + sizeof(record), record.payload_bytes);
  view.parts = std::span<const RingPart>(PartsOf(place, record), record.parts);
  return true;
}

RingPin RetentionRing::Pin(Clock clock) {
  RingPin pin;
  const Slot* slot = SlotOf(clock);
  if (slot == nullptr) return pin;
  slot->pins->fetch_add(1, std::memory_order_relaxed);
  pin.count_ = slot->pins;
  pin.keep_alive_ = keep_alive_;
  return pin;
}

bool RetentionRing::MarkVoid(Clock clock, ShardId shard) {
  RingEntryView view;
  if (!Find(clock, view)) return false;
  const RingPart* found = view.FindPart(shard);
  if (found == nullptr || found->is_void != 0) return false;
  auto* part = const_cast<RingPart*>(found);
  std::atomic_ref<std::uint32_t>(part->is_void).store(1, std::memory_order_release);
  return true;
}

void RetentionRing::Release(Clock clock) {
  clock = std::min(clock, last_clock());
  if (clock <= released_) return;
  released_ = clock;
  Store(region_, kReleasedAt, released_.value());
  Trim();
}

void RetentionRing::Trim() {
  bool moved = false;
  while (!slots_.empty() && slots_.front().clock <= released_ &&
         slots_.front().pins->load(std::memory_order_acquire) == 0) {
    // A skip record in front of the next entry goes with this one.
    tail_ = slots_.size() > 1 ? slots_[1].begin : head_;
    slots_.pop_front();
    moved = true;
  }
  if (slots_.empty() && tail_ != head_) {
    tail_ = head_;
    moved = true;
  }
  if (moved) StoreTail();
}

void RetentionRing::WriteSkip(std::uint64_t at, std::uint64_t bytes) {
  RecordHeader record;
  record.magic = kSkipMagic;
  record.bytes = bytes;
  std::memcpy(At(at), &record, sizeof(record));
}

void RetentionRing::StoreHead() { Store(region_, kHeadAt, head_); }
void RetentionRing::StoreTail() { Store(region_, kTailAt, tail_); }

}  // namespace ps::worker
