// What the steps of units.h are made of: numbers in and out, g and h with their derivatives.
#pragma once
#include "elementary.h"
#include "scan.h"

namespace spikebridge {
namespace SPIKEBRIDGE_ISA {

inline float load(float x) { return x; }
inline double load(double x) { return x; }
inline float load(Bf16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void store(float& to, float x) { to = x; }
inline void store(double& to, double x) { to = x; }
inline void store(Bf16& to, float x) {  // to the nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// Each surrogate with its derivative at x, where z = x / width; Python takes their codes from here.
// The window's edge must not move by the rounding of 1 / width: |x / width| < 1 exactly where
// |x| < width.
#define SPIKEBRIDGE_SURROGATES(of)                                                               \
  of(tanh_prime, height * sech_squared(z))                                                       \
  of(window, absolute(x) < width ? height : Real(0))                                             \
  of(triangle, Real(1) - absolute(z) > Real(0) ? height * (Real(1) - absolute(z)) : Real(0))     \
  of(fast_sigmoid, height / ((Real(1) + absolute(z)) * (Real(1) + absolute(z))))                 \
  of(arctan, height / (Real(1) + z * z))                                                         \
  of(sigmoid_prime, Real(4) * height * logistic(z) * (Real(1) - logistic(z)))

#define SPIKEBRIDGE_NAME(name, slope) , name
enum class H : int { sigmoid SPIKEBRIDGE_SURROGATES(SPIKEBRIDGE_NAME) };  // sigmoid: of soft units
#undef SPIKEBRIDGE_NAME

template <G g, typename Real>
inline Real apply_g(Real u, Real slope) {
  if constexpr (g == G::piecewise) return u > Real(0) ? u : slope * u;
  if constexpr (g == G::relu) return u <= Real(0) ? Real(0) : u;
  if constexpr (g == G::elu) {
    Real negative = expm1_nonpositive(u > Real(0) ? Real(0) : u);  // NaN passes
    return u > Real(0) ? u : negative;
  }
}

// g'(u) read off s = g(u): each g here keeps the sign.
template <G g, typename Real>
inline Real slope_g(Real s, Real slope) {
  if constexpr (g == G::piecewise) return s > Real(0) ? Real(1) : slope;
  if constexpr (g == G::relu) return s > Real(0) ? Real(1) : Real(0);
  if constexpr (g == G::elu) return s > Real(0) ? Real(1) : s + Real(1);
}

template <H h, typename Real>
inline Real output(Real x) {
  if constexpr (h == H::sigmoid) return logistic(x);
  return x > Real(0) ? Real(1) : Real(0);
}

// dh/dx at x = s + bias; y = h(x).  `inverse` is 1 / width.
template <H h, typename Real>
inline Real slope_h(Real x, Real y, Real width, Real inverse, Real height) {
  if constexpr (h == H::sigmoid) return y * (Real(1) - y);
  [[maybe_unused]] Real z = x * inverse;
#define SPIKEBRIDGE_SLOPE(name, slope) \
  if constexpr (h == H::name) return slope;
  SPIKEBRIDGE_SURROGATES(SPIKEBRIDGE_SLOPE)
#undef SPIKEBRIDGE_SLOPE
}

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
