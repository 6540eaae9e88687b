#include "common/codec/value_codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "common/check.h"
#include "common/codec/finite.h"

namespace ps::codec {
namespace {

static_assert(std::endian::native == std::endian::little,
              "values and indices are copied to the wire as they lie in memory");

constexpr std::uint32_t kSign16 = 0x8000u;
constexpr std::uint16_t kGreatestBf16 = 0x7f7fu;
constexpr int kInt8Max = 127;
constexpr std::uint16_t kGreatestInt8Scale = 0x7bffu;  // -128 times it is still finite
constexpr int kBits4Levels = 8;
constexpr std::size_t kLanes = 4;

// What the codes of a group are.
struct Coding {
  std::uint32_t bits;    // of a code
  std::uint32_t scales;  // bf16 numbers of a group
};

// Of the quantising codecs; else no scales.
Coding CodingOf(wire::ValueCodec codec) {
  switch (codec) {
    case wire::ValueCodec::Fp32: return {32, 0};
    case wire::ValueCodec::Bf16: return {16, 0};
    case wire::ValueCodec::Absent: break;
    case wire::ValueCodec::Int8: return {8, 1};
    case wire::ValueCodec::Bits4: return {4, 2};
    case wire::ValueCodec::Bits2: return {2, 2};
    case wire::ValueCodec::Bits1: return {1, 1};
  }
  PS_CHECK(false, "entries of a block have values", static_cast<int>(codec));
  return {0, 0};
}

std::size_t ScaleBytes(Coding coding, std::size_t count) {
  return (count + kValueGroup - 1) / kValueGroup * coding.scales * 2;
}

std::uint16_t Load16(const std::byte* from) {
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return bits;
}

std::byte* Store16(std::byte* to, std::uint16_t bits) {
  std::memcpy(to, &bits, sizeof(bits));
  return to + sizeof(bits);
}

// What the codes of one group stand for: code i is values[i], repeated to 16 (see kernels.h).
using Levels = std::array<float, 16>;

Levels Bits4Levels(float least, float greatest) {
  Levels levels{};
  const float range = greatest - least;
  for (std::size_t i = 0; i < kBits4Levels; ++i) {
    levels[i] = least + range * (static_cast<float>(i) / (kBits4Levels - 1));
    levels[kBits4Levels + i] = -levels[i];
  }
  return levels;
}

Levels Bits2Levels(float small, float large) {
  Levels levels{};
  for (std::size_t i = 0; i < levels.size(); i += 4) {
    levels[i] = small;
    levels[i + 1] = large;
    levels[i + 2] = -small;
    levels[i + 3] = -large;
  }
  return levels;
}

Levels Bits1Levels(float magnitude) {
  Levels levels{};
  for (std::size_t i = 0; i < levels.size(); i += 2) {
    levels[i] = magnitude;
    levels[i + 1] = -magnitude;
  }
  return levels;
}

// ---- encoding one group

// Magnitudes that bf16 has: no infinity, no NaN.
float MagnitudeOf(float value) {
  const float greatest = Bf16ToFloat(kGreatestBf16);
  const float magnitude = std::abs(value);
  return magnitude <= greatest ? magnitude : greatest;
}

// The least and the greatest bf16 on this side of a magnitude.
std::uint16_t RoundDown(float magnitude) {
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(magnitude) >> 16);
}

std::uint16_t RoundUp(float magnitude) {
  return static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(magnitude) + 0xffffu) >> 16);
}

// To a whole number, of what is not negative. std::lround would be a call for each entry.
int Rounded(float value) {
  const float above = value + 0.5f;
  return static_cast<int>(above);
}

struct Group {
  std::array<float, kValueGroup> magnitude;
  std::array<std::uint8_t, kValueGroup> negative;  // 0 or 1
  std::size_t count = 0;

  explicit Group(std::span<const float> values) : count(values.size()) {
    for (std::size_t i = 0; i < count; ++i) {
      magnitude[i] = MagnitudeOf(values[i]);
      negative[i] = static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(values[i]) >> 31);
    }
  }

  float Greatest() const { return *std::max_element(magnitude.begin(), magnitude.begin() + count); }
  float Least() const { return *std::min_element(magnitude.begin(), magnitude.begin() + count); }
};

struct Means {
  double below = 0;
  double above = 0;
};

// Of the magnitudes up to `split` and of those above; the same for both if there are none of one
// kind. Sums are scaled, so that they stay finite.
Means MeansAround(const Group& group, float split) {
  // The compiler does not find these vectors itself, and it is the loop that costs most.
  using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));
  using Ints = std::int32_t __attribute__((vector_size(kLanes * sizeof(std::int32_t))));
  constexpr float kScale = 0x1p-10f;
  Floats below{};
  Floats above{};
  Ints above_count{};
  const std::size_t whole = group.count - group.count % kLanes;
  for (std::size_t at = 0; at < whole; at += kLanes) {
    Floats magnitude;
    std::memcpy(&magnitude, group.magnitude.data() + at, sizeof(magnitude));
    const Ints is_above = magnitude > split;  // -1 or 0
    const Floats scaled = magnitude * kScale;
    // Not the sum of all less those above: of what is small nothing might be left.
    below += std::bit_cast<Floats>(std::bit_cast<Ints>(scaled) & ~is_above);
    above += std::bit_cast<Floats>(std::bit_cast<Ints>(scaled) & is_above);
    above_count -= is_above;
  }
  double sum_below = 0;
  double sum_above = 0;
  std::size_t count_above = 0;
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    sum_below += below[lane];
    sum_above += above[lane];
    count_above += static_cast<std::size_t>(above_count[lane]);
  }
  for (std::size_t at = whole; at < group.count; ++at) {
    const float magnitude = group.magnitude[at];
    (magnitude > split ? sum_above : sum_below) += magnitude * kScale;
    count_above += magnitude > split ? 1 : 0;
  }
  const std::size_t count_below = group.count - count_above;
  if (count_below == 0 || count_above == 0) {
    const double mean = (sum_below + sum_above) / kScale / static_cast<double>(group.count);
    return {mean, mean};
  }
  return {sum_below / kScale / static_cast<double>(count_below),
          sum_above / kScale / static_cast<double>(count_above)};
}

std::uint16_t Centroid(double mean) {
  return std::min(FloatToBf16(static_cast<float>(mean)), kGreatestBf16);
}

// Packs codes of kBits bits, and says what they stand for.
template <std::uint32_t kBits>
std::byte* WriteCodes(std::span<const std::uint8_t> codes, const Levels& levels, std::byte* out,
                      float* sent) {
  constexpr std::size_t kInByte = 8 / kBits;
  std::size_t at = 0;
  for (; at + kInByte <= codes.size(); at += kInByte) {
    unsigned byte = 0;
    for (std::size_t i = 0; i < kInByte; ++i) byte |= unsigned{codes[at + i]} << (i * kBits);
    *out++ = static_cast<std::byte>(byte);
  }
  if (at < codes.size()) {
    unsigned byte = 0;
    for (std::size_t i = 0; at + i < codes.size(); ++i) {
      byte |= unsigned{codes[at + i]} << (i * kBits);
    }
    *out++ = static_cast<std::byte>(byte);
  }
  if (sent != nullptr) {
    for (std::size_t i = 0; i < codes.size(); ++i) sent[i] = levels[codes[i]];
  }
  return out;
}

void WriteInt8(const Group& group, std::byte*& scales, std::byte*& codes, float* sent) {
  const std::uint16_t bits = Int8ScaleOf(group.Greatest());
  const float scale = Bf16ToFloat(bits);
  const float inverse = 1 / scale;
  scales = Store16(scales, bits);
  for (std::size_t i = 0; i < group.count; ++i) {
    const int magnitude = std::min(Rounded(group.magnitude[i] * inverse), kInt8Max);
    const int code = group.negative[i] != 0 ? -magnitude : magnitude;
    codes[i] = static_cast<std::byte>(static_cast<std::int8_t>(code));
    if (sent != nullptr) sent[i] = static_cast<float>(code) * scale;
  }
  codes += group.count;
}

void WriteBits4(const Group& group, std::byte*& scales, std::byte*& codes, float* sent) {
  const std::uint16_t least_bits = RoundDown(group.Least());
  const std::uint16_t greatest_bits = std::min(RoundUp(group.Greatest()), kGreatestBf16);
  scales = Store16(Store16(scales, least_bits), greatest_bits);
  const float least = Bf16ToFloat(least_bits);
  const float step = (Bf16ToFloat(greatest_bits) - least) / (kBits4Levels - 1);
  // Steps without a finite inverse would not be worth telling apart.
  const float inverse = step >= std::numeric_limits<float>::min() ? 1 / step : 0;
  std::array<std::uint8_t, kValueGroup> levels_of;
  for (std::size_t i = 0; i < group.count; ++i) {
    const int level = std::min(Rounded((group.magnitude[i] - least) * inverse), kBits4Levels - 1);
    levels_of[i] = static_cast<std::uint8_t>(level | group.negative[i] << 3);
  }
  codes = WriteCodes<4>(std::span(levels_of).first(group.count),
                        Bits4Levels(least, Bf16ToFloat(greatest_bits)), codes, sent);
}

void WriteBits2(const Group& group, std::byte*& scales, std::byte*& codes, float* sent) {
  // Lloyd's algorithm from the mean on. For values that lie above a threshold the error is then
  // within a hundredth of what it would be after ten rounds.
  constexpr int kRounds = 3;
  double split = MeansAround(group, std::numeric_limits<float>::max()).below;
  Means means;
  for (int round = 0; round < kRounds; ++round) {
    means = MeansAround(group, static_cast<float>(split));
    split = (means.below + means.above) / 2;
  }
  const std::uint16_t small_bits = Centroid(means.below);
  const std::uint16_t large_bits = Centroid(means.above);
  scales = Store16(Store16(scales, small_bits), large_bits);
  const float small = Bf16ToFloat(small_bits);
  const float large = Bf16ToFloat(large_bits);
  const float between = small + (large - small) / 2;
  std::array<std::uint8_t, kValueGroup> codes_of;
  for (std::size_t i = 0; i < group.count; ++i) {
    const int is_large = group.magnitude[i] > between ? 1 : 0;
    codes_of[i] = static_cast<std::uint8_t>(is_large | group.negative[i] << 1);
  }
  codes =
      WriteCodes<2>(std::span(codes_of).first(group.count), Bits2Levels(small, large), codes, sent);
}

void WriteBits1(const Group& group, std::byte*& scales, std::byte*& codes, float* sent) {
  const std::uint16_t bits = Centroid(MeansAround(group, std::numeric_limits<float>::max()).below);
  scales = Store16(scales, bits);
  codes = WriteCodes<1>(std::span(group.negative).first(group.count),
                        Bits1Levels(Bf16ToFloat(bits)), codes, sent);
}

// ---- checks

Error Bad(const wire::BlockHeader& header, const std::string& what) {
  return Error{ErrorCode::kInvalid, "block " + std::to_string(header.block()) + ": " + what};
}

Status CheckScales(const wire::BlockHeader& header, std::span<const std::byte> scales) {
  const bool int8 = header.value_codec() == static_cast<std::uint8_t>(wire::ValueCodec::Int8);
  for (std::size_t at = 0; at < scales.size(); at += 2) {
    const std::uint16_t bits = Load16(scales.data() + at);
    const float scale = Bf16ToFloat(bits);
    if (int8 ? !IsInt8Scale(bits) : (bits & kSign16) != 0 || !std::isfinite(scale)) {
      return Bad(header, "a scale of " + std::to_string(scale));
    }
  }
  return Ok();
}

}  // namespace

std::uint16_t Int8ScaleOf(float greatest) {
  const float wanted = std::max(greatest / kInt8Max, std::numeric_limits<float>::min());
  return std::min(RoundUp(wanted), kGreatestInt8Scale);
}

bool IsInt8Scale(std::uint16_t bits) { return bits <= kGreatestInt8Scale; }

std::size_t ValueBytes(wire::ValueCodec codec, std::size_t count) {
  const Coding coding = CodingOf(codec);
  return ScaleBytes(coding, count) + (count * coding.bits + 7) / 8;
}

std::byte* WriteValues(std::span<const float> values, wire::ValueCodec codec, std::byte* out,
                       std::span<float> sent) {
  const std::size_t count = values.size();
  if (count == 0) return out;
  if (codec == wire::ValueCodec::Fp32) {
    std::memcpy(out, values.data(), count * 4);
    if (!sent.empty()) std::memcpy(sent.data(), values.data(), count * 4);
    return out + count * 4;
  }
  if (codec == wire::ValueCodec::Bf16) {
    for (std::size_t i = 0; i < count; ++i) Store16(out + i * 2, FloatToBf16(values[i]));
    for (std::size_t i = 0; i < sent.size(); ++i) sent[i] = Bf16ToFloat(FloatToBf16(values[i]));
    return out + count * 2;
  }
  std::byte* scales = out;
  std::byte* codes = out + ScaleBytes(CodingOf(codec), count);
  for (std::size_t first = 0; first < count; first += kValueGroup) {
    const Group group(values.subspan(first, std::min<std::size_t>(kValueGroup, count - first)));
    float* const group_sent = sent.empty() ? nullptr : sent.data() + first;
    switch (codec) {
      case wire::ValueCodec::Int8: WriteInt8(group, scales, codes, group_sent); break;
      case wire::ValueCodec::Bits4: WriteBits4(group, scales, codes, group_sent); break;
      case wire::ValueCodec::Bits2: WriteBits2(group, scales, codes, group_sent); break;
      default: WriteBits1(group, scales, codes, group_sent); break;
    }
  }
  return codes;
}

Status CheckValues(const wire::BlockHeader& header, std::span<const std::byte> bytes) {
  const auto codec = static_cast<wire::ValueCodec>(header.value_codec());
  const Coding coding = CodingOf(codec);
  if (bytes.size() != ValueBytes(codec, header.count())) {
    return Bad(header, std::to_string(bytes.size()) + " bytes for " +
                           std::to_string(header.count()) + " values of " +
                           std::to_string(ValueBytes(codec, header.count())) + " bytes");
  }
  if (coding.scales == 0 || bytes.empty()) return Ok();
  const std::size_t used = header.count() * coding.bits % 8;
  if (used != 0 && std::to_integer<unsigned>(bytes.back()) >> used != 0) {
    return Bad(header, "bits behind its last value are not zero");
  }
  return CheckScales(header, bytes.first(ScaleBytes(coding, header.count())));
}

bool ValuesFinite(wire::ValueCodec codec, std::span<const std::byte> bytes) {
  if (codec == wire::ValueCodec::Fp32) return AllFinite32(bytes);
  return codec != wire::ValueCodec::Bf16 || AllFinite16(bytes);
}

ValueReader::ValueReader(wire::ValueCodec codec, std::size_t count,
                         std::span<const std::byte> bytes, const kernels::Table& kernels)
    : kernels_(&kernels),
      codec_(codec),
      scales_(bytes.data()),
      at_(bytes.data() + ScaleBytes(CodingOf(codec), count)) {}

void ValueReader::Next(std::size_t count, float* out) {
  if (count == 0) return;
  if (codec_ == wire::ValueCodec::Fp32) {
    std::memcpy(out, at_, count * 4);
    at_ += count * 4;
    return;
  }
  if (codec_ == wire::ValueCodec::Bf16) {
    kernels_->widen_bf16(at_, count, out);
    at_ += count * 2;
    return;
  }
  for (std::size_t first = 0; first < count; first += kValueGroup) {
    NextGroup(std::min<std::size_t>(kValueGroup, count - first), out + first);
  }
}

void ValueReader::NextGroup(std::size_t count, float* out) {
  const Coding coding = CodingOf(codec_);
  const float first = Bf16ToFloat(Load16(scales_));
  const float second = coding.scales > 1 ? Bf16ToFloat(Load16(scales_ + 2)) : 0;
  scales_ += coding.scales * 2;
  if (codec_ == wire::ValueCodec::Int8) {
    kernels_->scale_int8(at_, count, first, out);
  } else {
    const Levels levels = codec_ == wire::ValueCodec::Bits4   ? Bits4Levels(first, second)
                          : codec_ == wire::ValueCodec::Bits2 ? Bits2Levels(first, second)
                                                              : Bits1Levels(first);
    kernels_->look_up(at_, coding.bits, count, levels.data(), out);
  }
  at_ += (count * coding.bits + 7) / 8;
}

}  // namespace ps::codec
