#include "ps-server/core/rows/row_initializer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>

#include "ps-server/core/rows/philox.h"

namespace ps::server {
namespace {

constexpr double kTwoTo32 = 4294967296.0;
// Phi(-2), and Phi(2) - Phi(-2).
constexpr double kBelowTwo = 0.022750131948179207200;
constexpr double kWithinTwo = 0.954499736103641585599;

using Coefficients = std::array<double, 8>;

double Horner(const Coefficients& coefficients, double x) {
  double sum = coefficients[7];
  for (int i = 6; i >= 0; --i) sum = sum * x + coefficients[static_cast<std::size_t>(i)];
  return sum;
}

// log(x) of a normal x > 0, by x = m 2^e with m in [sqrt(1/2), sqrt(2)) and
// log(m) = 2 artanh(s) with s = (m - 1) / (m + 1), |s| < 0.172.
double Log(double x) {
  const std::uint64_t bits = std::bit_cast<std::uint64_t>(x);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0x000fffffffffffffu) | 0x3ff0000000000000u);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1) / (m + 1);
  const double square = s * s;
  double sum = 0;
  for (int k = 23; k >= 1; k -= 2) sum = sum * square + 1.0 / k;
  constexpr double kLog2 = 0.693147180559945309417;
  return exponent * kLog2 + 2 * s * sum;
}

constexpr Coefficients kA = {3.3871328727963666080e0,  1.3314166789178437745e+2,
                             1.9715909503065514427e+3, 1.3731693765509461125e+4,
                             4.5921953931549871457e+4, 6.7265770927008700853e+4,
                             3.3430575583588128105e+4, 2.5090809287301226727e+3};
constexpr Coefficients kB = {1.0,
                             4.2313330701600911252e+1,
                             6.8718700749205790830e+2,
                             5.3941960214247511077e+3,
                             2.1213794301586595867e+4,
                             3.9307895800092710610e+4,
                             2.8729085735721942674e+4,
                             5.2264952788528545610e+3};
constexpr Coefficients kC = {1.42343711074968357734e0,  4.63033784615654529590e0,
                             5.76949722146069140550e0,  3.64784832476320460504e0,
                             1.27045825245236838258e0,  2.41780725177450611770e-1,
                             2.27238449892691845833e-2, 7.74545014278341407640e-4};
constexpr Coefficients kD = {1.0,
                             2.05319162663775882187e0,
                             1.67638483018380384940e0,
                             6.89767334985100004550e-1,
                             1.48103976427480074590e-1,
                             1.51986665636164571966e-2,
                             5.47593808499534494600e-4,
                             1.05075007164441684324e-9};
constexpr Coefficients kE = {6.65790464350110377720e0,  5.46378491116411436990e0,
                             1.78482653991729133580e0,  2.96560571828504891230e-1,
                             2.65321895265761230930e-2, 1.24266094738807843860e-3,
                             2.71155556874348757815e-5, 2.01033439929228813265e-7};
constexpr Coefficients kF = {1.0,
                             5.99832206555887937690e-1,
                             1.36929880922735805310e-1,
                             1.48753612908506148525e-2,
                             7.86869131145613259100e-4,
                             1.84631831751005468180e-5,
                             1.42151175831644588870e-7,
                             2.04426310338993978564e-15};

}  // namespace

double InverseNormal(double p) {
  const double q = p - 0.5;
  if (q >= -0.425 && q <= 0.425) {
    const double r = 0.180625 - q * q;
    return q * Horner(kA, r) / Horner(kB, r);
  }
  double r = std::sqrt(-Log(q < 0 ? p : 1 - p));
  double x = 0;
  if (r <= 5) {
    r -= 1.6;
    x = Horner(kC, r) / Horner(kD, r);
  } else {
    r -= 5;
    x = Horner(kE, r) / Horner(kF, r);
  }
  return q < 0 ? -x : x;
}

RowInitializer::RowInitializer(Kind kind, float first, float second, std::uint64_t seed,
                               std::uint32_t table)
    : kind_(kind), first_(first), second_(second), seed_(seed), table_(table) {}

float RowInitializer::ValueOf(std::uint32_t word) const {
  double u = (word + 0.5) / kTwoTo32;
  if (kind_ == Kind::kUniform) {
    const auto value = static_cast<float>(double{first_} + u * (double{second_} - double{first_}));
    // The last step to a binary32 may round up to the end that is left out.
    return value < second_ ? value : first_;
  }
  if (kind_ == Kind::kTruncatedNormal) u = kBelowTwo + u * kWithinTwo;
  return static_cast<float>(double{first_} + double{second_} * InverseNormal(u));
}

void RowInitializer::Fill(std::uint64_t key, std::span<float> values) const {
  if (kind_ == Kind::kConstant) {
    std::fill(values.begin(), values.end(), first_);
    return;
  }
  const PhiloxKey seed = {static_cast<std::uint32_t>(seed_),
                          static_cast<std::uint32_t>(seed_ >> 32)};
  for (std::size_t at = 0; at < values.size(); at += 4) {
    const PhiloxCounter words =
        Philox({static_cast<std::uint32_t>(at / 4), table_, static_cast<std::uint32_t>(key),
                static_cast<std::uint32_t>(key >> 32)},
               seed);
    const std::size_t count = std::min<std::size_t>(4, values.size() - at);
    for (std::size_t i = 0; i < count; ++i) values[at + i] = ValueOf(words[i]);
  }
}

}  // namespace ps::server
