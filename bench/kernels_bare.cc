#include "bench/kernels_bare.h"

#include <cmath>
#include <cstddef>

namespace ps::bench {
namespace {

constexpr float kBeta1 = 0.9f;
constexpr float kBeta2 = 0.999f;
constexpr float kEpsilon = 1e-8f;

}  // namespace

void BareTouch(std::span<float> values, float factor) {
  for (float& value : values) value *= factor;
}

void BareSgd(std::span<float> w, std::span<const float> g, float rate) {
  float* __restrict to = w.data();
  const float* __restrict from = g.data();
  const std::size_t count = g.size();
  for (std::size_t i = 0; i < count; ++i) to[i] -= rate * from[i];
}

void BareMomentum(std::span<float> w, std::span<float> m, std::span<const float> g, float rate,
                  float momentum) {
  float* __restrict to = w.data();
  float* __restrict slot = m.data();
  const float* __restrict from = g.data();
  const std::size_t count = g.size();
  for (std::size_t i = 0; i < count; ++i) {
    slot[i] = momentum * slot[i] + from[i];
    to[i] -= rate * slot[i];
  }
}

void BareAdam(std::span<float> w, std::span<float> m, std::span<float> v, std::span<const float> g,
              float rate) {
  float* __restrict to = w.data();
  float* __restrict mean = m.data();
  float* __restrict square = v.data();
  const float* __restrict from = g.data();
  const std::size_t count = g.size();
  for (std::size_t i = 0; i < count; ++i) {
    mean[i] = kBeta1 * mean[i] + (1 - kBeta1) * from[i];
    square[i] = kBeta2 * square[i] + (1 - kBeta2) * (from[i] * from[i]);
    to[i] -= rate * mean[i] / (std::sqrt(square[i]) + kEpsilon);
  }
}

void BareAccumulate(std::span<float> v, std::span<const float> g) {
  float* __restrict to = v.data();
  const float* __restrict from = g.data();
  const std::size_t count = g.size();
  for (std::size_t i = 0; i < count; ++i) to[i] += from[i];
}

void BareNesterov(std::span<float> v, std::span<float> u, std::span<const float> g,
                  float momentum) {
  float* __restrict to = v.data();
  float* __restrict slot = u.data();
  const float* __restrict from = g.data();
  const std::size_t count = g.size();
  for (std::size_t i = 0; i < count; ++i) {
    slot[i] = momentum * slot[i] + from[i];
    to[i] += momentum * slot[i] + from[i];
  }
}

void BareScatterSgd(std::span<float> w, std::span<const std::uint32_t> indices,
                    std::span<const float> g, float rate) {
  float* __restrict to = w.data();
  const std::uint32_t* __restrict at = indices.data();
  const float* __restrict from = g.data();
  const std::size_t count = indices.size();
  for (std::size_t i = 0; i < count; ++i) to[at[i]] -= rate * from[i];
}

void BareScatterAdam(std::span<BareRecord> records, std::span<const std::uint32_t> indices,
                     std::span<const float> g, float rate) {
  BareRecord* __restrict to = records.data();
  const std::uint32_t* __restrict at = indices.data();
  const float* __restrict from = g.data();
  const std::size_t count = indices.size();
  for (std::size_t i = 0; i < count; ++i) {
    BareRecord& record = to[at[i]];
    ++record.updates;
    record.m = kBeta1 * record.m + (1 - kBeta1) * from[i];
    record.v = kBeta2 * record.v + (1 - kBeta2) * (from[i] * from[i]);
    record.w -= rate * record.m / (std::sqrt(record.v) + kEpsilon);
  }
}

}  // namespace ps::bench
