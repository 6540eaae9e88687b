#include "common/codec/key_codec.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace ps::codec {
namespace {

using Bytes = std::vector<std::byte>;
using Keys = std::vector<std::uint64_t>;

constexpr std::uint64_t kGreatest = std::numeric_limits<std::uint64_t>::max();

Bytes Encode(const Keys& keys) {
  Bytes bytes(MaxKeyBytes(keys.size()));
  bytes.resize(EncodeKeys(keys, bytes.data()));
  return bytes;
}

// From bytes of their own, so that a sanitizer sees what is read behind them.
Keys Decode(std::size_t count, const Bytes& bytes) {
  const Bytes own(bytes);
  Keys keys(count);
  KeyReader reader(count, own);
  std::size_t at = 0;
  while (const std::size_t read = reader.Next(keys.data() + at)) at += read;
  keys.resize(at);
  return keys;
}

Bytes Of(const std::vector<int>& bytes) {
  Bytes out;
  for (const int byte : bytes) out.push_back(static_cast<std::byte>(byte));
  return out;
}

Keys Random(std::size_t count, unsigned gap_bits, std::mt19937_64& random) {
  Keys keys;
  std::uint64_t key = random() >> 1;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t gap = gap_bits == 0 ? 0 : random() >> (64 - gap_bits);
    if (i > 0 && key > kGreatest - gap - 1) break;
    if (i > 0) key += gap + 1;
    keys.push_back(key);
  }
  return keys;
}

TEST(KeyCodecTest, KeysOfEveryNumberAndGapComeBack) {
  std::mt19937_64 random(3);
  for (unsigned gap_bits = 0; gap_bits <= 64; ++gap_bits) {
    for (const std::size_t count : {0u, 1u, 2u, 15u, 16u, 17u, 31u, 32u, 33u, 64u, 100u, 1000u}) {
      const Keys keys = Random(count, gap_bits, random);
      const Bytes bytes = Encode(keys);
      EXPECT_LE(bytes.size(), MaxKeyBytes(keys.size()));
      EXPECT_TRUE(KeysFit(keys.size(), bytes)) << gap_bits << " " << count;
      EXPECT_EQ(Decode(keys.size(), bytes), keys) << gap_bits << " " << count;
    }
  }
}

TEST(KeyCodecTest, KeysMayBeAllThatThereAre) {
  const std::vector<Keys> all = {{0},
                                 {kGreatest},
                                 {0, kGreatest},
                                 {0, 1, kGreatest - 1, kGreatest},
                                 {std::uint64_t{1} << 63, kGreatest}};
  for (const Keys& keys : all) {
    EXPECT_TRUE(KeysFit(keys.size(), Encode(keys)));
    EXPECT_EQ(Decode(keys.size(), Encode(keys)), keys);
  }
}

TEST(KeyCodecTest, KeysSideBySideHaveAByteForSixteen) {
  Keys keys;
  for (std::uint64_t key = 0; key < 160; ++key) keys.push_back(key);
  EXPECT_EQ(Encode(keys), Bytes(10, std::byte{0}));
}

TEST(KeyCodecTest, IdsOfTenMillionHaveLessThanTwoBytes) {
  std::mt19937_64 random(5);
  std::set<std::uint64_t> ids;
  while (ids.size() < 4096) ids.insert(random() % 10'000'000);
  std::set<std::uint64_t> hashes;
  while (hashes.size() < 4096) hashes.insert(random());
  EXPECT_LT(Encode(Keys(ids.begin(), ids.end())).size(), 4096u * 2);
  EXPECT_LT(Encode(Keys(hashes.begin(), hashes.end())).size(), 4096u * 7);
}

TEST(KeyCodecTest, OtherBytesForTheSameKeysAreRefused) {
  // The keys 3, 4, 5, 21.
  EXPECT_TRUE(KeysFit(4, Of({4, 0x03, 0xf0})));
  EXPECT_FALSE(KeysFit(4, Of({8, 3, 0, 0, 15}))) << "more bits than the greatest gap has";
  EXPECT_FALSE(KeysFit(4, Of({5, 0x03, 0x80, 0x07}))) << "a bit more";
  EXPECT_FALSE(KeysFit(3, Of({4, 0x03, 0xf0}))) << "bits behind the last";
  EXPECT_TRUE(KeysFit(3, Of({2, 0x03})));
  EXPECT_FALSE(KeysFit(3, Of({2, 0x43}))) << "one bit behind the last";
  EXPECT_TRUE(KeysFit(1, Of({0})));
  EXPECT_FALSE(KeysFit(1, Of({1, 0}))) << "a bit for nothing";
}

TEST(KeyCodecTest, StreamsOfOtherLengthsAreRefused) {
  std::mt19937_64 random(7);
  for (const unsigned gap_bits : {0u, 3u, 20u, 58u, 59u}) {
    const Keys keys = Random(gap_bits > 50 ? 20 : 40, gap_bits, random);
    const Bytes bytes = Encode(keys);
    ASSERT_TRUE(KeysFit(keys.size(), bytes));
    for (std::size_t size = 0; size < bytes.size(); ++size) {
      const Bytes cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
      EXPECT_FALSE(KeysFit(keys.size(), cut)) << gap_bits << " " << size;
    }
    for (std::size_t count = 0; count < keys.size() + 20; ++count) {
      // Gaps of no bits are as many as one likes.
      if (count == keys.size() || (gap_bits == 0 && count > 32 && count <= 48)) continue;
      EXPECT_FALSE(KeysFit(count, bytes)) << gap_bits << " " << count;
    }
    Bytes more = bytes;
    more.push_back(std::byte{0});
    EXPECT_FALSE(KeysFit(keys.size(), more));
    EXPECT_FALSE(KeysFit(std::size_t{1} << 40, bytes));
  }
  EXPECT_TRUE(KeysFit(0, {}));
  EXPECT_FALSE(KeysFit(0, Of({0})));
  for (int bits = 65; bits < 256; ++bits) {
    Bytes bytes(100, std::byte{0xff});
    bytes[0] = static_cast<std::byte>(bits);
    EXPECT_FALSE(KeysFit(1, bytes)) << bits;
  }
}

TEST(KeyCodecTest, KeysPastTheGreatestAreRefused) {
  // The greatest, and one more.
  Bytes bytes = Encode({kGreatest});
  ASSERT_EQ(bytes, Of({64, 255, 255, 255, 255, 255, 255, 255, 255}));
  Bytes two = bytes;
  two.insert(two.end(), 8, std::byte{0});
  EXPECT_FALSE(KeysFit(2, two));
  two.back() = std::byte{0x80};
  EXPECT_FALSE(KeysFit(2, two));
  two.assign(17, std::byte{255});
  two[0] = std::byte{64};
  EXPECT_FALSE(KeysFit(2, two)) << "a gap that leads back to the same key";
  // The same across groups.
  Keys keys;
  for (std::uint64_t i = 16; i-- > 0;) keys.push_back(kGreatest - i);
  bytes = Encode(keys);
  EXPECT_TRUE(KeysFit(16, bytes));
  bytes.push_back(std::byte{0});
  EXPECT_FALSE(KeysFit(17, bytes));
}

TEST(KeyCodecTest, WhatIsTakenForKeysIsWhatTheyAreWrittenAs) {
  std::mt19937_64 random(9);
  const Keys keys = Random(20, 11, random);
  const Bytes bytes = Encode(keys);
  std::size_t good = 0;
  for (std::size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    Bytes damaged = bytes;
    damaged[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    if (!KeysFit(keys.size(), damaged)) continue;
    ++good;
    EXPECT_EQ(Encode(Decode(keys.size(), damaged)), damaged) << bit;
  }
  EXPECT_GT(good, 100u);
}

}  // namespace
}  // namespace ps::codec
