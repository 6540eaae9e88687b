// How often keys were seen lately, in bounded memory.
//
// A counting Bloom filter: a key has four 8-bit counters in one cache line, and
// was seen as often as the lowest of them says, or less: other keys may have
// raised all four. Seeing a key raises only those that are the lowest. After as
// many sightings as an eighth of the counters all are halved, so that what was
// seen long ago is forgotten and the counters do not fill up.
//
// Its content is part of a table's state: hashes are not seeded, and the same
// sightings make the same bytes. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/result.h"

namespace ps::server {

inline constexpr std::uint32_t kSightingsMax = 255;

class AdmissionSketch {
 public:
  // `bytes` is rounded up to whole lines of 64; 0: no sketch, Saw() must not be called.
  explicit AdmissionSketch(std::size_t bytes);

  // One more sighting; how often the key was seen before, at most 255.
  std::uint32_t Saw(std::uint64_t key);

  std::size_t bytes() const { return counters_.size(); }
  std::span<const std::uint8_t> counters() const { return counters_; }
  std::uint64_t sightings() const { return sightings_; }
  // Takes the state of another sketch. False, and nothing changes, if that has another size.
  bool Restore(std::span<const std::uint8_t> counters, std::uint64_t sightings);

 private:
  std::vector<std::uint8_t> counters_;
  std::uint64_t sightings_ = 0;  // since the last halving
};

}  // namespace ps::server
