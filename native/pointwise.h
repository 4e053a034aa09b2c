// The recurrence for one neuron and one step, forward and backward; see scan.h.
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

// The numbers of a rule in the type of the state.
template <typename Real>
struct Constants {
  Real slope, gate, fixed, height, width, inverse;
  Real trained;  // 1 where the amount is the threshold, else 0: a bool would not be vectorised
  explicit Constants(const Rule& rule)
      : slope(Real(rule.slope)),
        gate(rule.gate ? Real(1) : Real(0)),
        fixed(Real(rule.amount)),
        height(Real(rule.height)),
        width(Real(rule.width)),
        inverse(Real(1) / Real(rule.width)),
        trained(rule.amount < 0 ? Real(1) : Real(0)) {}
  inline Real amount(Real bias) const { return trained > Real(0) ? -bias : fixed; }
};

// s and y go from one step to the next; the order of operations is that of the loop.
template <H h, G g, typename Real>
inline void step_forward(const Constants<Real>& c, Real drive, Real decay, Real bias, Real& s,
                         Real& y) {
  Real kept = decay * (s * (Real(1) - c.gate * y));
  Real u = (drive + kept) - c.amount(bias) * y;
  s = apply_g<g>(u, c.slope);
  y = output<h>(s + bias);
}

// What flows back through one step.  In: dL/ds_t and dL/dy_t from step t + 1 in `ds` and `dy`, y_t in
// `out`.  Out: the same of step t - 1; returns dL/ddrive.
template <H h, G g, typename Real>
inline Real step_backward(const Constants<Real>& c, Real grad_y, Real s, Real s_prev, Real y_prev,
                          Real decay, Real bias, Real& ds, Real& dy, Real& out, Real& d_decay,
                          Real& d_bias) {
  Real dx = (grad_y + dy) * slope_h<h>(s + bias, out, c.width, c.inverse, c.height);
  Real du = (ds + dx) * slope_g<g>(s, c.slope);
  Real keep = Real(1) - c.gate * y_prev;
  Real through = du * decay;
  d_bias += dx + (c.trained > Real(0) ? du * y_prev : Real(0));
  d_decay += du * (s_prev * keep);
  ds = through * keep;
  // The gate goes to the state first: 0 times a product that overflows would be NaN.
  dy = -(through * (c.gate * s_prev)) - c.amount(bias) * du;
  if constexpr (h == H::sigmoid) out = y_prev;  // the slope of a spike does not read its output
  return du;
}

// From a value known at run time to a template argument.
template <typename Action>
void with_g(G g, Action&& action) {
  switch (g) {
    case G::piecewise: return action.template operator()<G::piecewise>();
    case G::relu: return action.template operator()<G::relu>();
    case G::elu: return action.template operator()<G::elu>();
  }
}

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
