#include "ps-worker/engine/data/permutation.h"

#include <bit>
#include <numeric>
#include <utility>

#include "common/check.h"
#include "ps-worker/engine/data/dataset.h"

namespace ps::worker {
namespace {

constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15u;

__extension__ typedef unsigned __int128 Wide;

class SplitMix64 {
 public:
  explicit SplitMix64(std::uint64_t state) : state_(state) {}

  std::uint64_t Next() {
    std::uint64_t value = state_ += kGolden;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
  }

 private:
  std::uint64_t state_;
};

class Xoshiro256 {
 public:
  Xoshiro256(std::uint64_t seed, std::uint64_t epoch) {
    SplitMix64 seeder(SplitMix64(seed + kGolden * (epoch + 1)).Next());
    for (std::uint64_t& word : state_) word = seeder.Next();
  }

  std::uint64_t Next() {
    const std::uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
    const std::uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }

 private:
  std::array<std::uint64_t, 4> state_{};
};

}  // namespace

std::vector<std::uint32_t> ShuffledEpoch(std::uint64_t records, std::uint64_t seed,
                                         std::uint64_t epoch) {
  std::vector<std::uint32_t> order(records);
  std::iota(order.begin(), order.end(), 0u);
  Xoshiro256 random(seed, epoch);
  for (std::uint64_t i = records; i-- > 1;) {
    const auto partner = static_cast<std::uint64_t>((Wide{random.Next()} * (i + 1)) >> 64);
    std::swap(order[i], order[partner]);
  }
  return order;
}

Permutation::Permutation(std::uint64_t records, std::uint64_t seed, bool shuffle)
    : records_(records), seed_(seed), shuffle_(shuffle) {
  PS_CHECK(records >= 1 && records <= kMaxRecords, records);
}

std::uint64_t Permutation::RecordAt(std::uint64_t position) {
  const std::uint64_t place = position % records_;
  if (!shuffle_) return place;
  const std::uint64_t epoch = position / records_;
  if (epochs_[0].number != epoch) {
    std::swap(epochs_[0], epochs_[1]);
    if (epochs_[0].number != epoch) {
      epochs_[0].number = epoch;
      epochs_[0].order = ShuffledEpoch(records_, seed_, epoch);
    }
  }
  return epochs_[0].order[place];
}

}  // namespace ps::worker
