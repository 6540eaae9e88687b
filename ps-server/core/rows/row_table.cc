#include "ps-server/core/rows/row_table.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "common/check.h"

namespace ps::server {
namespace {

static_assert(sizeof(RowRecord) == checkpoint::kRowHeaderBytes);

std::uint32_t FloatsOf(const RowTableRules& rules) {
  PS_CHECK(rules.width >= 1 && rules.width <= kRowWidthMax, rules.width);
  PS_CHECK(rules.initial_slots.size() <= 2 * rules.width, rules.initial_slots.size());
  PS_CHECK(rules.sightings >= 1 && rules.sightings <= kSightingsMax + 1, rules.sightings);
  PS_CHECK(rules.sightings == 1 || rules.sketch_bytes > 0, rules.sightings);
  return rules.width + static_cast<std::uint32_t>(rules.initial_slots.size());
}

}  // namespace

RowTable::RowTable(RowTableRules rules, std::uint64_t hash_seed, std::pmr::memory_resource* memory)
    : rules_(std::move(rules)),
      rows_(FloatsOf(rules_), memory),
      index_(rows_, hash_seed, memory),
      sketch_(rules_.sightings > 1 ? rules_.sketch_bytes : 0) {}

void RowTable::AdvanceTo(std::uint32_t tick) {
  const std::uint32_t before = std::exchange(now_, std::max(now_, tick));
  if (rules_.unused_max == 0) return;
  const std::uint32_t period = std::max(1u, rules_.unused_max / 16);
  if (before / period == now_ / period) return;
  rows_.ForEach([&](RowNumber row, const RowRecord& record) {
    if (now_ - record.last_used <= rules_.unused_max) return;
    Remove(row);
    ++counters_.expired;
  });
}

void RowTable::Admit(std::span<const std::uint64_t> keys) {
  if (rules_.sightings > 1) {
    const std::size_t before = unknown_.size();
    std::erase_if(unknown_,
                  [&](std::uint32_t at) { return sketch_.Saw(keys[at]) + 1 < rules_.sightings; });
    counters_.rejected += before - unknown_.size();
  }
  const std::uint64_t wanted = unknown_.size();
  if (rules_.rows_max == 0 || rows() + wanted <= rules_.rows_max) return;
  if (rules_.when_full != RowsFull::kRefuse) {
    const std::uint64_t many = std::max(rows() + wanted - rules_.rows_max,
                                        std::max<std::uint64_t>(1, rules_.rows_max / 16));
    const std::vector<RowNumber> going = RowsToEvict(rows_, many, rules_.when_full);
    for (const RowNumber row : going) Remove(row);
    counters_.evicted += going.size();
  }
  // After a restore under a lower bound there may be more rows than that.
  const std::uint64_t room = rules_.rows_max - std::min(rules_.rows_max, rows());
  if (wanted > room) {
    counters_.refused += wanted - room;
    unknown_.resize(room);
  }
}

RowNumber RowTable::Create(std::uint64_t key) {
  const RowNumber row = rows_.Create();
  {
    const RowStore::Changing record = rows_.Change(row);
    record->set_key(key);
    record->updates = 1;
    record->last_used = now_;
    rules_.initializer.Fill(key, std::span(record->floats(), rules_.width));
    std::copy(rules_.initial_slots.begin(), rules_.initial_slots.end(),
              record->floats() + rules_.width);
  }
  index_.Insert(row);
  ++counters_.created;
  return row;
}

void RowTable::Remove(RowNumber row) {
  removed_.Add(rows_.At(row)->key(), rows());
  index_.Remove(row);
  rows_.Remove(row);
}

FrozenRowTable RowTable::Freeze() const {
  checkpoint::RowTableImage rest;
  rest.table = rules_.table;
  rest.width = rules_.width;
  rest.slots = static_cast<std::uint32_t>(rules_.initial_slots.size());
  rest.tick = now_;
  rest.sketch.assign(sketch_.counters().begin(), sketch_.counters().end());
  rest.sightings = sketch_.sightings();
  FrozenRows rows = rows_.Freeze();
  RemovedRows::Frozen removed = removed_.Freeze(rows.number());
  return {std::move(rest), std::move(rows), std::move(removed)};
}

checkpoint::RowTableImage FrozenRowTable::ToImage() const {
  checkpoint::RowTableImage image = head_;
  const std::size_t bytes = rows_.record_bytes();
  image.records.reserve(rows_.size() * bytes);
  for (std::size_t slab = 0; slab < rows_.slabs(); ++slab) {
    rows_.ForEachIn(slab, [&](RowNumber, const RowRecord& record) {
      const auto* from = reinterpret_cast<const std::byte*>(&record);
      image.records.insert(image.records.end(), from, from + bytes);
    });
  }
  return image;
}

Status RowTable::Restore(const checkpoint::RowTableImage& image) {
  PS_TRY(BeginRestore(image, image.rows()));
  PS_TRY(checkpoint::CheckRows(image));
  RestoreRows(image.records);
  RestoreSketch(image.sketch, image.sightings);
  return Ok();
}

Status RowTable::BeginRestore(const checkpoint::RowTableImage& head, std::uint64_t expected) {
  PS_CHECK(rows() == 0, rows());
  if (head.table != rules_.table || head.width != rules_.width ||
      head.slots != rules_.initial_slots.size()) {
    return Error{ErrorCode::kInvalid, "row table " + std::to_string(rules_.table) +
                                          ": the image is of table " + std::to_string(head.table) +
                                          " with " + std::to_string(head.width) + " values and " +
                                          std::to_string(head.slots) + " slots, this one has " +
                                          std::to_string(rules_.width) + " and " +
                                          std::to_string(rules_.initial_slots.size())};
  }
  now_ = head.tick;
  index_.Reserve(expected);
  return Ok();
}

void RowTable::RestoreRows(std::span<const std::byte> records) {
  const auto rows = static_cast<RowNumber>(records.size() / rows_.record_bytes());
  index_.InsertAll(rows_.Append(records), rows);
}

void RowTable::RestoreSketch(std::span<const std::uint8_t> counters, std::uint64_t sightings) {
  (void)sketch_.Restore(counters, sightings);
}

}  // namespace ps::server
