// exp for arguments <= 0 and what follows from it, written so that compilers vectorise it.
//
// Kept apart from <cmath>: an inline library function compiled for AVX-512 in one file may be the
// copy that the linker keeps for all of them.  Hence the namespace per instruction set.
#pragma once
#include <cstdint>
#include <cstring>

namespace spikebridge {
namespace SPIKEBRIDGE_ISA {

// a * b + c in one instruction where there is one: exp is never bit-equal to the loop's anyway.
#if defined(__FMA__)
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
template <typename Real>
inline Real fused(Real a, Real b, Real c) {
  return a * b + c;
}
#endif

template <typename Real>
struct Exp;

// x = k ln 2 + r with ln 2 split in two (Cody and Waite), so that k * high is exact.
template <>
struct Exp<float> {
  using Bits = uint32_t;  // wraps where x is NaN
  static constexpr float lowest = -87.0f, log2_e = 1.44269504f, round = 12582912.0f;
  static constexpr float high = 0.693359375f, low = -2.12194440e-4f;
  static constexpr int bias = 127, mantissa = 23;
  static inline float polynomial(float r) {  // (exp(r) - 1) / r, |r| <= ln 2 / 2
    float p = 1.0f / 5040;
    p = fused(p, r, 1.0f / 720);
    p = fused(p, r, 1.0f / 120);
    p = fused(p, r, 1.0f / 24);
    p = fused(p, r, 1.0f / 6);
    p = fused(p, r, 0.5f);
    return fused(p, r, 1.0f);
  }
};

template <>
struct Exp<double> {
  using Bits = uint64_t;
  static constexpr double lowest = -708.0, log2_e = 1.4426950408889634, round = 6755399441055744.0;
  static constexpr double high = 6.93145751953125e-1, low = 1.42860682030941723212e-6;
  static constexpr int bias = 1023, mantissa = 52;
  static inline double polynomial(double r) {
    double p = 1.0 / 6227020800.0;
    p = fused(p, r, 1.0 / 479001600);
    p = fused(p, r, 1.0 / 39916800);
    p = fused(p, r, 1.0 / 3628800);
    p = fused(p, r, 1.0 / 362880);
    p = fused(p, r, 1.0 / 40320);
    p = fused(p, r, 1.0 / 5040);
    p = fused(p, r, 1.0 / 720);
    p = fused(p, r, 1.0 / 120);
    p = fused(p, r, 1.0 / 24);
    p = fused(p, r, 1.0 / 6);
    p = fused(p, r, 0.5);
    return fused(p, r, 1.0);
  }
};

// exp(x) - 1 = (2^k - 1) + 2^k (exp(r) - 1); both parts keep their relative accuracy near x = 0.
template <typename Real>
struct ScaledExp {
  Real two_k, tail;  // exp(x) = two_k + tail
};

template <typename Real>
static inline ScaledExp<Real> split_exp(Real x) {  // x <= 0
  using E = Exp<Real>;
  x = x < E::lowest ? E::lowest : x;
  // Adding and taking off 1.5 * 2^mantissa rounds to the nearest integer and leaves it in the bits.
  Real shifted = fused(x, E::log2_e, E::round);
  Real k = shifted - E::round;
  Real r = fused(-k, E::low, fused(-k, E::high, x));
  typename E::Bits bits, zero;
  std::memcpy(&bits, &shifted, sizeof bits);
  const Real origin = E::round;
  std::memcpy(&zero, &origin, sizeof zero);
  bits = (bits - zero + E::bias) << E::mantissa;
  Real two_k;
  std::memcpy(&two_k, &bits, sizeof two_k);
  return {two_k, two_k * (r * E::polynomial(r))};
}

template <typename Real>
static inline Real exp_nonpositive(Real x) {
  auto e = split_exp(x);
  return e.two_k + e.tail;
}

template <typename Real>
static inline Real expm1_nonpositive(Real x) {
  auto e = split_exp(x);
  return (e.two_k - Real(1)) + e.tail;
}

template <typename Real>
static inline Real absolute(Real x) {
  return x < Real(0) ? -x : x;
}

template <typename Real>
static inline Real logistic(Real x) {
  Real e = exp_nonpositive(-absolute(x));
  return (x < Real(0) ? e : Real(1)) / (Real(1) + e);
}

// 1 - tanh(x)^2, without its cancellation at large x.
template <typename Real>
static inline Real sech_squared(Real x) {
  Real e = exp_nonpositive(Real(-2) * absolute(x));
  return Real(4) * e / ((Real(1) + e) * (Real(1) + e));
}

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
