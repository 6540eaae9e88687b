#include "common/codec/finite.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <span>
#include <vector>

namespace ps::codec {
namespace {

// Every position of every length, so that the vector part and what is left of it are both looked
// at, from an address that is not aligned.
template <typename Bits>
void CheckAll(bool (*finite)(std::span<const std::byte>), Bits largest,
              std::initializer_list<Bits> bad) {
  for (std::size_t count = 0; count <= 150; ++count) {
    std::vector<std::byte> bytes(count * sizeof(Bits) + 1);
    const std::span<std::byte> at = std::span(bytes).subspan(1);
    for (std::size_t i = 0; i < count; ++i)
      std::memcpy(&at[i * sizeof(Bits)], &largest, sizeof(Bits));
    EXPECT_TRUE(finite(at)) << count;
    for (std::size_t i = 0; i < count; ++i) {
      for (const Bits value : bad) {
        std::memcpy(&at[i * sizeof(Bits)], &value, sizeof(Bits));
        EXPECT_FALSE(finite(at)) << count << ", " << i << ", " << value;
      }
      std::memcpy(&at[i * sizeof(Bits)], &largest, sizeof(Bits));
    }
  }
}

TEST(FiniteTest, FindsOneOfManyAtEveryPosition) {
  CheckAll<std::uint32_t>(AllFinite32, 0xff7fffffu,
                          {0x7f800000u, 0xff800000u, 0x7f800001u, 0xffffffffu});
  CheckAll<std::uint16_t>(AllFinite16, std::uint16_t{0xff7f},
                          {std::uint16_t{0x7f80}, std::uint16_t{0xff80}, std::uint16_t{0xffc0}});
}

TEST(FiniteTest, ZerosAndDenormalsAreFinite) {
  for (const float value : {0.0F, -0.0F, std::numeric_limits<float>::denorm_min(),
                            -std::numeric_limits<float>::max()}) {
    const std::vector<float> values(100, value);
    EXPECT_TRUE(AllFinite32(std::as_bytes(std::span(values))));
  }
}

}  // namespace
}  // namespace ps::codec
