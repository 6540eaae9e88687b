// The simplest loops that change a table, over plain arrays: what our kernels are compared with.
//
// They know neither blocks nor codecs, check nothing, and are compiled for the
// machine that they run on.
#pragma once

#include <cstdint>
#include <span>

namespace ps::bench {

// Adam's value and slots in one record.
struct BareRecord {
  float w;
  float m;
  float v;
  std::uint32_t updates;
};

void BareTouch(std::span<float> values, float factor);  // read and write in place
void BareSgd(std::span<float> w, std::span<const float> g, float rate);
void BareMomentum(std::span<float> w, std::span<float> m, std::span<const float> g, float rate,
                  float momentum);
void BareAdam(std::span<float> w, std::span<float> m, std::span<float> v, std::span<const float> g,
              float rate);
void BareAccumulate(std::span<float> v, std::span<const float> g);
void BareNesterov(std::span<float> v, std::span<float> u, std::span<const float> g, float momentum);
void BareScatterSgd(std::span<float> w, std::span<const std::uint32_t> indices,
                    std::span<const float> g, float rate);
void BareScatterAdam(std::span<BareRecord> records, std::span<const std::uint32_t> indices,
                     std::span<const float> g, float rate);

}  // namespace ps::bench
