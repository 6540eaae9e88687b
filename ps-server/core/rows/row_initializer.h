// The values that a row has before its first push.
//
// A pure function of (seed, table, key, position): the same on every server, in
// any order, before and after a restart, so that a row need not exist to be
// read. Value p of a row is made from word p % 4 of Philox4x32-10 with counter
// {p / 4, table, lower and upper half of the row's key} and the seed as key.
//
// With u = (word + 0.5) / 2^32:
//   constant           first
//   uniform            first + u (second - first), from first up to below second
//   normal             first + second N(u), N the inverse of the normal distribution
//   truncated normal   the same, u taken from within two standard deviations
// N is algorithm AS 241 (PPND16) of Wichura with a logarithm of our own: only
// additions, multiplications, divisions and square roots of binary64, which IEEE
// 754 defines to the last bit, and no call of a mathematical library, so that
// all machines agree. (The file is compiled without contraction to fused
// multiply-add.) Any thread.
#pragma once

#include <cstdint>
#include <span>

namespace ps::server {

class RowInitializer {
 public:
  enum class Kind { kConstant, kUniform, kNormal, kTruncatedNormal };

  RowInitializer() = default;  // zeros
  // `first` and `second` are value and unused, low and high, or mean and standard deviation.
  RowInitializer(Kind kind, float first, float second, std::uint64_t seed, std::uint32_t table);

  void Fill(std::uint64_t key, std::span<float> values) const;

 private:
  float ValueOf(std::uint32_t word) const;

  Kind kind_ = Kind::kConstant;
  float first_ = 0;
  float second_ = 0;
  std::uint64_t seed_ = 0;
  std::uint32_t table_ = 0;
};

// The x with Phi(x) = p, 0 < p < 1, within 1e-15 relative to its size.
double InverseNormal(double p);

}  // namespace ps::server
