#include "ps-server/core/rows/admission_sketch.h"

#include <algorithm>

namespace ps::server {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kCountersOfKey = 4;

// SplitMix64.
std::uint64_t Mix(std::uint64_t key) {
  key += 2 * 0x9e3779b97f4a7c15u;  // the second number, since the first chooses the shard
  key = (key ^ key >> 30) * 0xbf58476d1ce4e5b9u;
  key = (key ^ key >> 27) * 0x94d049bb133111ebu;
  return key ^ key >> 31;
}

}  // namespace

AdmissionSketch::AdmissionSketch(std::size_t bytes)
    : counters_((bytes + kLine - 1) / kLine * kLine) {}

std::uint32_t AdmissionSketch::Saw(std::uint64_t key) {
  if (++sightings_ > counters_.size() / 8) {
    for (std::uint8_t& counter : counters_) counter /= 2;
    sightings_ = 1;
  }
  const std::uint64_t hash = Mix(key);
  const std::uint64_t lines = counters_.size() / kLine;
  std::uint8_t* const line =
      counters_.data() + ((hash >> 32) * lines >> 32) * kLine;  // at most 2^32 lines
  std::uint8_t lowest = kSightingsMax;
  for (std::size_t i = 0; i < kCountersOfKey; ++i) {
    lowest = std::min(lowest, line[hash >> (8 * i) & (kLine - 1)]);
  }
  if (lowest == kSightingsMax) return lowest;
  for (std::size_t i = 0; i < kCountersOfKey; ++i) {
    std::uint8_t& counter = line[hash >> (8 * i) & (kLine - 1)];
    if (counter == lowest) ++counter;
  }
  return lowest;
}

bool AdmissionSketch::Restore(std::span<const std::uint8_t> counters, std::uint64_t sightings) {
  if (counters.size() != counters_.size()) return false;
  counters_.assign(counters.begin(), counters.end());
  sightings_ = sightings;
  return true;
}

}  // namespace ps::server
