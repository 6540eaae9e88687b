#include "ps-worker/cuda/device_sparsifier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <random>

#include "common/messages/control.h"
#include "ps-worker/cuda/arithmetic.h"
#include "tests/ps-worker/cuda/device_support.h"

namespace ps::worker::cuda {
namespace {

using ::testing::HasSubstr;
using Values = std::vector<float>;
using Segments = std::vector<std::vector<std::byte>>;

// One table; `selected` blocks of it are of large tensors.
struct Shape {
  std::vector<std::uint32_t> blocks;
  std::size_t selected;

  std::uint64_t selected_elements() const {
    std::uint64_t elements = 0;
    for (std::size_t i = 0; i < selected; ++i) elements += blocks[i];
    return elements;
  }
};

const Shape kShape{{65536, 12291, 50, 777}, 2};

LayoutView LayoutOf(const Shape& shape) {
  control::LayoutT layout;
  layout.tables.push_back(std::make_unique<control::TableInfoT>());
  control::TableInfoT& parameters = *layout.tables[0];
  for (const std::uint32_t elements : shape.blocks) parameters.elements += elements;
  parameters.block_elements = shape.blocks;
  layout.blocks = static_cast<std::uint32_t>(shape.blocks.size());
  auto view = LayoutView::Create(layout, std::min(3u, layout.blocks));
  EXPECT_TRUE(view.ok());
  return std::move(view).value();
}

SparsifierOptions Options(AccumulationRule rule, wire::ValueCodec codec) {
  SparsifierOptions options;
  options.rule = rule;
  options.value_codec = codec;
  options.beta1 = 0.9;
  return options;
}

Values Gaussian(std::mt19937& random, std::size_t count) {
  std::normal_distribution<float> normal;
  Values values(count);
  for (float& value : values) value = normal(random);
  return values;
}

std::uint16_t FloatToFp16(float value) {
  // Nearest by bits: the values of tests are in the range of normal numbers, or zero.
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude < 0x38800000u) return static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const std::uint32_t rounded = (magnitude + 0xfffu - (112u << 23)) >> 13;
  return static_cast<std::uint16_t>((bits >> 16 & 0x8000u) | std::min(rounded, 0x7c00u));
}

// A gradient of some type on the device, and its values.
class Gradient {
 public:
  Gradient(const Values& values, GradientType type, float unscale = 1)
      : type_(type), unscale_(unscale), values_(values) {
    if (type == GradientType::kFp32) {
      wide_ = ToDevice(values);
      return;
    }
    std::vector<std::uint16_t> halves;
    for (float& value : values_) {
      const bool bf16 = type == GradientType::kBf16;
      halves.push_back(bf16 ? codec::FloatToBf16(value) : FloatToFp16(value));
      value = bf16 ? codec::Bf16ToFloat(halves.back()) : Fp16ToFloat(halves.back());
    }
    halves_ = ToDevice(halves);
  }

  DeviceGradient view() const {
    const bool wide = type_ == GradientType::kFp32;
    return {wide ? static_cast<const void*>(wide_.data()) : halves_.data(), type_, unscale_};
  }
  // As a CPU gets it: already unscaled.
  Values values() const {
    Values unscaled = values_;
    for (float& value : unscaled) value *= unscale_;
    return unscaled;
  }

 private:
  GradientType type_;
  float unscale_;
  Values values_;
  DeviceBuffer<float> wide_;
  DeviceBuffer<std::uint16_t> halves_;
};

template <typename AnySparsifier>
Segments Encode(const LayoutView& layout, AnySparsifier& sparsifier) {
  Segments segments;
  std::size_t bytes = 0;
  const std::size_t bound = sparsifier.MaxBytes();
  for (std::uint32_t shard = 0; shard < layout.shard_count(); ++shard) {
    std::vector<std::byte> segment(sparsifier.MaxShardBytes(ShardId(shard)));
    segment.resize(sparsifier.EncodeShard(ShardId(shard), segment.data(), segment.size()));
    bytes += segment.size();
    segments.push_back(std::move(segment));
  }
  EXPECT_LE(bytes, bound);
  return segments;
}

void AddTo(Values& sum, const LayoutView& layout, const Segments& segments) {
  std::vector<std::uint16_t> indices;
  Values values;
  for (const auto& segment : segments) {
    std::vector<codec::BlockView> blocks;
    ASSERT_TRUE(
        codec::ParseSegment(
            segment, [&](std::uint32_t block) { return layout.block(block).elements; }, blocks)
            .ok());
    for (const codec::BlockView& block : blocks) {
      codec::DecodeIndices(block, indices);
      codec::DecodeValues(block, values);
      const std::uint64_t begin = layout.block(block.header.block()).table_offset;
      for (std::size_t i = 0; i < indices.size(); ++i) sum[begin + indices[i]] += values[i];
    }
  }
}

// A sparsifier on the device and one on the CPU, which must do the same.
class Both {
 public:
  Both(const Shape& shape, const SparsifierOptions& options)
      : layout(LayoutOf(shape)), cpu(layout, 0, shape.selected_elements(), options) {
    auto made = DeviceSparsifier::Create(layout, 0, shape.selected_elements(), options);
    EXPECT_TRUE(made.ok()) << (made.ok() ? "" : made.error().message);
    gpu = std::move(made).value();
  }

  // A step of both, whose bytes and states are compared.
  void Step(const Values& values, double ratio, GradientType type = GradientType::kFp32,
            float unscale = 1) {
    const Gradient gradient(values, type, unscale);
    ASSERT_TRUE(gpu->Step(gradient.view(), ratio, nullptr).ok());
    const Status collected = gpu->Collect();
    ASSERT_TRUE(collected.ok()) << collected.error().message;
    ASSERT_TRUE(cpu.Step(gradient.values(), ratio).ok());
    ASSERT_EQ(gpu->entries(), cpu.entries());
    segments = Encode(layout, *gpu);
    ASSERT_EQ(segments, Encode(layout, cpu));
    ExpectEqualStates();
    EXPECT_NEAR(gpu->SentNorm(), cpu.SentNorm(), 1e-6 * cpu.SentNorm());
  }

  void ExpectEqualStates() {
    ASSERT_EQ(FirstDifference(gpu->residual().value(), Copy(cpu.residual())), -1);
    ASSERT_EQ(FirstDifference(gpu->momentum().value(), Copy(cpu.momentum())), -1);
  }

  static Values Copy(std::span<const float> values) { return {values.begin(), values.end()}; }

  const LayoutView layout;
  Sparsifier cpu;
  std::unique_ptr<DeviceSparsifier> gpu;
  Segments segments;
};

using DeviceSparsifierTest = OnDevice;

constexpr AccumulationRule kRules[] = {AccumulationRule::kPlain, AccumulationRule::kNesterov,
                                       AccumulationRule::kAdam};
constexpr wire::ValueCodec kCodecs[] = {wire::ValueCodec::Fp32, wire::ValueCodec::Bf16,
                                        wire::ValueCodec::Bits2};

TEST_F(DeviceSparsifierTest, SendsAndKeepsWhatTheCpuDoesByEveryRuleAndCodec) {
  for (const AccumulationRule rule : kRules) {
    for (const wire::ValueCodec codec : kCodecs) {
      SCOPED_TRACE(testing::Message()
                   << static_cast<int>(rule) << " " << wire::EnumNameValueCodec(codec));
      Both both(kShape, Options(rule, codec));
      std::mt19937 random(1);
      for (const double ratio : {0.01, 0.01, 0.2, 1.0, 0.01}) {
        both.Step(Gaussian(random, both.gpu->elements()), ratio);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(DeviceSparsifierTest, GradientsOf16BitsAndScaledOnesAreWhatTheyStandFor) {
  for (const AccumulationRule rule : kRules) {
    for (const GradientType type :
         {GradientType::kFp32, GradientType::kBf16, GradientType::kFp16}) {
      SCOPED_TRACE(testing::Message() << static_cast<int>(rule) << " " << static_cast<int>(type));
      Both both(kShape, Options(rule, wire::ValueCodec::Bits2));
      std::mt19937 random(2);
      for (const float unscale : {1.0f, 1.0f / 1024}) {
        both.Step(Gaussian(random, both.gpu->elements()), 0.02, type, unscale);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(DeviceSparsifierTest, RulesWithoutMomentumHaveNone) {
  for (const AccumulationRule rule : {AccumulationRule::kNesterov, AccumulationRule::kAdam}) {
    SparsifierOptions options = Options(rule, wire::ValueCodec::Bf16);
    options.momentum = 0;
    options.beta1 = 0;
    Both both(kShape, options);
    std::mt19937 random(3);
    for (int step = 0; step < 2; ++step) {
      both.Step(Gaussian(random, both.gpu->elements()), 0.05);
      if (HasFatalFailure()) return;
    }
    EXPECT_TRUE(both.gpu->momentum().value().empty());
  }
}

TEST_F(DeviceSparsifierTest, SizesAroundTilesAndVectors) {
  std::mt19937 random(4);
  for (const std::uint32_t size : {1u, 3u, 31u, 511u, 513u, 4095u, 4096u, 4097u, 65535u}) {
    SCOPED_TRACE(size);
    for (const Shape& shape : {Shape{{size}, 1}, Shape{{size}, 0}, Shape{{65536, size, 5}, 2}}) {
      if (shape.blocks.size() == 3 && size != 1 && size != 4097)
        continue;  // enough of the slow ones
      Both both(shape, Options(AccumulationRule::kNesterov, wire::ValueCodec::Bits2));
      for (const double ratio : {0.05, 0.3}) {
        both.Step(Gaussian(random, both.gpu->elements()), ratio);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(DeviceSparsifierTest, WithoutElementsThereIsNothingToDo) {
  Both both({{50}, 0}, Options(AccumulationRule::kPlain, wire::ValueCodec::Bf16));
  const Gradient gradient(Values(50, 1.0f), GradientType::kFp32);
  // Of a table that has no block.
  const SparsifierOptions options = Options(AccumulationRule::kPlain, wire::ValueCodec::Bf16);
  auto none = DeviceSparsifier::Create(both.layout, 1, 0, options);
  ASSERT_TRUE(none.ok());
  ASSERT_TRUE((*none)->Step(gradient.view(), 0.01, nullptr).ok());
  ASSERT_TRUE((*none)->Collect().ok());
  EXPECT_EQ((*none)->entries(), 0u);
  EXPECT_EQ((*none)->MaxBytes(), 0u);
  ASSERT_TRUE((*none)->Flush(nullptr).ok());
  EXPECT_EQ((*none)->entries(), 0u);
}

// Where the sample misleads, the largest ones are found exactly, of equals the first.
TEST_F(DeviceSparsifierTest, ValuesThatMisleadASampleAreSelectedAsOnTheCpu) {
  std::mt19937 random(5);
  const std::size_t count = 65536 + 12291 + 50 + 777;
  std::vector<Values> gradients;
  gradients.emplace_back(count, 0.0f);
  gradients.emplace_back(count, 1.0f);
  gradients.emplace_back(count, -3e37f);
  gradients.emplace_back(count, 1e-44f);
  Values few(count);
  for (std::size_t i = 77; i < count; i += 9973) few[i] = 1e-30f;
  gradients.push_back(few);
  Values two(count);
  for (float& value : two) value = random() % 20 == 0 ? 2.0f : (random() % 2 == 0 ? 1.0f : -1.0f);
  gradients.push_back(two);
  Values cluster(count);
  for (std::size_t i = 30000; i < 31000; ++i) cluster[i] = static_cast<float>(i);
  gradients.push_back(cluster);
  for (const AccumulationRule rule : {AccumulationRule::kPlain, AccumulationRule::kNesterov}) {
    Both both(kShape, Options(rule, wire::ValueCodec::Bits2));
    for (const Values& gradient : gradients) {
      SCOPED_TRACE(&gradient - gradients.data());
      both.Step(gradient, 0.01);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(DeviceSparsifierTest, HugeTinyAndOddValues) {
  const float odd[] = {0.0f, -0.0f, 1e-45f, -1e-40f, 1e38f, -1e38f, 1e30f, 1.0f, -1.0f, 6e-39f};
  for (const AccumulationRule rule : kRules) {
    for (const wire::ValueCodec codec : {wire::ValueCodec::Bf16, wire::ValueCodec::Bits2}) {
      Both both(kShape, Options(rule, codec));
      std::mt19937 random(6);
      for (int step = 0; step < 2; ++step) {
        Values gradient = Gaussian(random, both.gpu->elements());
        for (float& value : gradient) {
          if (random() % 3 == 0) value = odd[random() % std::size(odd)];
        }
        both.Step(gradient, 0.05);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(DeviceSparsifierTest, GradientThatIsNotFiniteChangesNothing) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const AccumulationRule rule : kRules) {
    Both both(kShape, Options(rule, wire::ValueCodec::Bf16));
    const std::size_t count = both.gpu->elements();
    std::mt19937 random(7);
    both.Step(Gaussian(random, count), 0.01);
    for (const std::size_t at :
         {std::size_t{0}, std::size_t{4095}, std::size_t{70003}, count - 1}) {
      for (const float bad : {kInfinity, -kInfinity, std::nanf(""), 1.1e38f}) {
        if (at != 4095 && (bad != kInfinity || rule != AccumulationRule::kNesterov)) continue;
        Values gradient = Gaussian(random, count);
        gradient[at] = bad;
        gradient[std::min(at + 500, count - 1)] = kInfinity;
        const Gradient on_device(gradient, GradientType::kFp32);
        ASSERT_TRUE(both.gpu->Step(on_device.view(), 0.01, nullptr).ok());
        const Status status = both.gpu->Collect();
        ASSERT_FALSE(status.ok());
        EXPECT_EQ(status.error().code, ErrorCode::kInvalid);
        EXPECT_THAT(status.error().message, HasSubstr("element " + std::to_string(at) + " of "));
        EXPECT_EQ(both.gpu->entries(), 0u);
        both.ExpectEqualStates();
      }
    }
    both.Step(Gaussian(random, count), 0.01);
    if (HasFatalFailure()) return;
  }
}

TEST_F(DeviceSparsifierTest, ClippingBringsTheNormDownToItsBound) {
  SparsifierOptions options = Options(AccumulationRule::kPlain, wire::ValueCodec::Fp32);
  options.clip_norm = 2;
  Both both(kShape, options);
  std::mt19937 random(8);
  const Values values = Gaussian(random, both.gpu->elements());
  for (const GradientType type : {GradientType::kFp32, GradientType::kFp16}) {
    const Gradient gradient(values, type, 1.0f / 64);
    ASSERT_TRUE(both.gpu->Step(gradient.view(), 1.0, nullptr).ok());
    ASSERT_TRUE(both.gpu->Collect().ok());
    ASSERT_TRUE(both.cpu.Step(gradient.values(), 1.0).ok());
    Values sent(values.size());
    Values expected(values.size());
    AddTo(sent, both.layout, Encode(both.layout, *both.gpu));
    AddTo(expected, both.layout, Encode(both.layout, both.cpu));
    double squares = 0;
    for (std::size_t i = 0; i < sent.size(); ++i) {
      ASSERT_NEAR(sent[i], expected[i], 1e-6 * std::abs(expected[i])) << i;
      squares += double{sent[i]} * sent[i];
    }
    EXPECT_NEAR(std::sqrt(squares), 2, 1e-5);
  }
  // A small gradient stays as it is, to the bit.
  Values small = values;
  for (float& value : small) value *= 0x1p-20f;
  both.Step(small, 0.01);
}

TEST_F(DeviceSparsifierTest, NothingIsLostAndNothingCountsTwice) {
  for (const wire::ValueCodec codec : kCodecs) {
    SCOPED_TRACE(wire::EnumNameValueCodec(codec));
    const LayoutView layout = LayoutOf(kShape);
    auto made = DeviceSparsifier::Create(layout, 0, kShape.selected_elements(),
                                         Options(AccumulationRule::kPlain, codec));
    ASSERT_TRUE(made.ok());
    DeviceSparsifier& sparsifier = **made;
    const std::size_t count = sparsifier.elements();
    Values sum(count);
    Values sent(count);
    std::mt19937 random(9);
    for (int step = 0; step < 6; ++step) {
      Values values(count);
      for (std::size_t i = 0; i < count; ++i) {
        values[i] = static_cast<float>(static_cast<int>(random() % 257) - 128);
        sum[i] += values[i];
      }
      const Gradient gradient(values, GradientType::kBf16);
      ASSERT_TRUE(sparsifier.Step(gradient.view(), step == 3 ? 1.0 : 0.02, nullptr).ok());
      ASSERT_TRUE(sparsifier.Collect().ok());
      if (step == 4) continue;  // nobody takes it
      const Segments segments = Encode(layout, sparsifier);
      if (step == 1) {  // refused
        for (const auto& segment : segments) {
          ASSERT_TRUE(sparsifier.TakeBack(segment, 1, nullptr).ok());
        }
        continue;
      }
      AddTo(sent, layout, segments);
    }
    ASSERT_TRUE(sparsifier.Flush(nullptr).ok());
    const Segments segments = Encode(layout, sparsifier);
    AddTo(sent, layout, segments);
    for (std::size_t i = 0; i < count; ++i) ASSERT_EQ(sent[i], sum[i]) << i;
    const Values residual = sparsifier.residual().value();
    for (const float value : residual) ASSERT_EQ(value, 0.0f);
    ASSERT_TRUE(sparsifier.Flush(nullptr).ok());
    EXPECT_EQ(sparsifier.entries(), 0u);
  }
}

TEST_F(DeviceSparsifierTest, FlushThatNobodyTakesIsInTheResidualAgain) {
  Both both(kShape, Options(AccumulationRule::kPlain, wire::ValueCodec::Bits2));
  std::mt19937 random(10);
  both.Step(Gaussian(random, both.gpu->elements()), 0.01);
  ASSERT_TRUE(both.gpu->Flush(nullptr).ok());
  ASSERT_EQ(both.gpu->entries(), both.gpu->elements());
  both.Step(Gaussian(random, both.gpu->elements()), 0.01);
}

TEST_F(DeviceSparsifierTest, EntriesAreAlwaysNearTheRatio) {
  const Shape shape{{65536, 65536, 40000}, 3};
  const auto selected = static_cast<double>(shape.selected_elements());
  std::mt19937 random(11);
  std::student_t_distribution<float> heavy(2);
  for (const double ratio : {0.001, 0.01, 0.25}) {
    const LayoutView layout = LayoutOf(shape);
    auto made =
        DeviceSparsifier::Create(layout, 0, shape.selected_elements(),
                                 Options(AccumulationRule::kNesterov, wire::ValueCodec::Bits2));
    ASSERT_TRUE(made.ok());
    for (int step = 0; step < 4; ++step) {
      Values values(shape.selected_elements());
      // Blocks that differ by orders of magnitude, as layers do.
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = heavy(random) * (i < 65536 ? 100.0f : 1.0f);
      }
      const Gradient gradient(values, GradientType::kFp32);
      ASSERT_TRUE((*made)->Step(gradient.view(), ratio, nullptr).ok());
      ASSERT_TRUE((*made)->Collect().ok());
      const auto entries = static_cast<double>((*made)->entries());
      EXPECT_GE(entries, 0.8 * ratio * selected) << ratio << " " << step;
      EXPECT_LE(entries, 1.3 * ratio * selected) << ratio << " " << step;
      Encode(layout, **made);
    }
  }
}

TEST_F(DeviceSparsifierTest, OtherUnitsAndNormsOfTheResidual) {
  Both both(kShape, Options(AccumulationRule::kNesterov, wire::ValueCodec::Bf16));
  std::mt19937 random(12);
  both.Step(Gaussian(random, both.gpu->elements()), 0.01);
  EXPECT_NEAR(both.gpu->ResidualNorm(nullptr).value(), both.cpu.ResidualNorm(), 1e-9 * 300);
  ASSERT_TRUE(both.gpu->ScaleResidual(0.3f, nullptr).ok());
  both.cpu.ScaleResidual(0.3f);
  both.ExpectEqualStates();
  const std::vector<std::byte> segment = both.segments[0];
  ASSERT_TRUE(both.gpu->TakeBack(segment, 0.7f, nullptr).ok());
  ASSERT_TRUE(both.cpu.TakeBack(segment, 0.7f).ok());
  both.ExpectEqualStates();
  EXPECT_FALSE(both.gpu->TakeBack(std::vector<std::byte>(7), 1, nullptr).ok());
  both.ExpectEqualStates();
}

TEST_F(DeviceSparsifierTest, WhatIsNotHereIsRefused) {
  const LayoutView layout = LayoutOf(kShape);
  SparsifierOptions options = Options(AccumulationRule::kPlain, wire::ValueCodec::Int8);
  auto made = DeviceSparsifier::Create(layout, 0, 0, options);
  ASSERT_FALSE(made.ok());
  EXPECT_THAT(made.error().message, HasSubstr("value codec Int8"));
  options = Options(AccumulationRule::kNesterov, wire::ValueCodec::Bf16);
  options.outer_momentum = 0.5f;
  EXPECT_FALSE(DeviceSparsifier::Create(layout, 0, 0, options).ok());
  const Shape uneven{{1000, 2000}, 2};
  made = DeviceSparsifier::Create(LayoutOf(uneven), 0, 3000,
                                  Options(AccumulationRule::kPlain, wire::ValueCodec::Bf16));
  ASSERT_FALSE(made.ok());
  EXPECT_THAT(made.error().message, HasSubstr("block 0 has 1000 elements"));
}

}  // namespace
}  // namespace ps::worker::cuda
