// The steps of all units and their adjoints, for one neuron: the one place to extend.
//
// A unit with k states has `states` = k, the membrane first, and three functions: `step`; `argument`,
// the x of y = h(x), from its states; and `adjoint`.  Its row in SPIKEBRIDGE_UNITS names it for
// Python, whose table of steps (nn/kernels/ops.py) gives `numbers`.  scan.cpp and recurrent.cpp
// carry every row through time and keep all states of each step.
#pragma once
#include <utility>

#include "pointwise.h"

// Inlined before anything else, so that what is passed by reference stays in registers.
#define SPIKEBRIDGE_INLINE __attribute__((always_inline)) inline

namespace spikebridge {
namespace SPIKEBRIDGE_ISA {

// The numbers of a rule in the type of the state.
template <typename Real>
struct Constants {
  Real slope, gate, fixed, height, width, inverse;
  Real trained;  // 1 where the amount is the threshold, else 0: a bool would not be vectorised
  Real numbers[kNumbers];
  explicit Constants(const Rule& rule)
      : slope(Real(rule.slope)),
        gate(rule.gate || rule.lateral ? Real(1) : Real(0)),
        fixed(Real(rule.amount)),
        height(Real(rule.height)),
        width(Real(rule.width)),
        inverse(Real(1) / Real(rule.width)),
        trained(rule.amount < 0 ? Real(1) : Real(0)) {
    for (int i = 0; i < kNumbers; ++i) numbers[i] = Real(rule.numbers[i]);
  }
  SPIKEBRIDGE_INLINE Real amount(Real bias) const { return trained > Real(0) ? -bias : fixed; }
};

// What one neuron is given at one step: `by` is the output that gates its membrane, `y` its last one.
template <typename Real>
struct Given {
  Real decay, bias, y, by;
};

// What flows back through one step.  In: dL/ds_t and dL/dy_t.  Out: the same of step t - 1, and
// dL/dby apart from dL/dy.  Added to: dL/ddecay and dL/dbias.
template <typename Real, int k>
struct Flow {
  Real s[k], y, by, decay, bias;
};

// The new membrane; the order of operations is that of the loop.
template <G g, typename Real>
SPIKEBRIDGE_INLINE Real membrane(const Constants<Real>& c, const Given<Real>& in, Real drive, Real s) {
  Real kept = in.decay * (s * (Real(1) - c.gate * in.by));
  Real u = (drive + kept) - c.amount(in.bias) * in.y;
  return apply_g<g>(u, c.slope);
}

// Back through the membrane, which went from `before` to `s`, with dx = dL/dx; returns dL/ddrive.
template <G g, typename Real, int k>
SPIKEBRIDGE_INLINE Real membrane_adjoint(const Constants<Real>& c, const Given<Real>& in, Real dx, Real s,
                             Real before, Flow<Real, k>& flow) {
  Real du = (flow.s[0] + dx) * slope_g<g>(s, c.slope);
  Real keep = Real(1) - c.gate * in.by;
  Real through = du * in.decay;
  flow.bias += dx + (c.trained > Real(0) ? du * in.y : Real(0));
  flow.decay += du * (before * keep);
  flow.s[0] = through * keep;
  // The gate goes to the state first: 0 times a product that overflows would be NaN.
  flow.by = -(through * (c.gate * before));
  flow.y = -(c.amount(in.bias) * du);
  return du;
}

struct Snu {
  static constexpr int states = 1;

  template <G g, typename Real>
  static SPIKEBRIDGE_INLINE void step(const Constants<Real>& c, const Given<Real>& in, Real drive,
                          Real (&s)[states]) {
    s[0] = membrane<g>(c, in, drive, s[0]);
  }

  template <typename Real>
  static SPIKEBRIDGE_INLINE Real argument(const Constants<Real>&, Real bias, const Real (&s)[states]) {
    return s[0] + bias;
  }

  template <G g, typename Real>
  static SPIKEBRIDGE_INLINE Real adjoint(const Constants<Real>& c, const Given<Real>& in, Real dx,
                             const Real (&s)[states], const Real (&before)[states],
                             Flow<Real, states>& flow) {
    return membrane_adjoint<g>(c, in, dx, s[0], before[0], flow);
  }
};

// a' = rho a + (1 - rho) y_prev,  y' = h(s' + bias - beta a'); numbers: rho, 1 - rho, beta.
struct Adaptive {
  static constexpr int states = 2;

  template <G g, typename Real>
  static SPIKEBRIDGE_INLINE void step(const Constants<Real>& c, const Given<Real>& in, Real drive,
                          Real (&s)[states]) {
    s[1] = c.numbers[0] * s[1] + c.numbers[1] * in.y;
    s[0] = membrane<g>(c, in, drive, s[0]);
  }

  template <typename Real>
  static SPIKEBRIDGE_INLINE Real argument(const Constants<Real>& c, Real bias, const Real (&s)[states]) {
    return (s[0] + bias) - c.numbers[2] * s[1];
  }

  template <G g, typename Real>
  static SPIKEBRIDGE_INLINE Real adjoint(const Constants<Real>& c, const Given<Real>& in, Real dx,
                             const Real (&s)[states], const Real (&before)[states],
                             Flow<Real, states>& flow) {
    Real da = flow.s[1] - c.numbers[2] * dx;
    Real du = membrane_adjoint<g>(c, in, dx, s[0], before[0], flow);
    flow.s[1] = c.numbers[0] * da;
    flow.y += c.numbers[1] * da;
    return du;
  }
};

// Each unit with its name; Python takes their codes from here.
#define SPIKEBRIDGE_UNITS(of) of(Snu, "snu") of(Adaptive, "adaptive")

// The k states of a neuron, `apart` numbers apart in memory.
template <typename Real, size_t... i>
SPIKEBRIDGE_INLINE void get(Real (&s)[sizeof...(i)], const Real* from, int64_t apart, std::index_sequence<i...>) {
  ((s[i] = from[int64_t(i) * apart]), ...);
}

template <typename Real, int k>
SPIKEBRIDGE_INLINE void get(Real (&s)[k], const Real* from, int64_t apart) {
  get(s, from, apart, std::make_index_sequence<k>());
}

template <typename Real, size_t... i>
SPIKEBRIDGE_INLINE void put(const Real (&s)[sizeof...(i)], Real* to, int64_t apart, std::index_sequence<i...>) {
  ((to[int64_t(i) * apart] = s[i]), ...);
}

template <typename Real, int k>
SPIKEBRIDGE_INLINE void put(const Real (&s)[k], Real* to, int64_t apart) {
  put(s, to, apart, std::make_index_sequence<k>());
}

template <typename Real, size_t... i>
SPIKEBRIDGE_INLINE void copy_states(Real (&to)[sizeof...(i)], const Real (&from)[sizeof...(i)],
                                    std::index_sequence<i...>) {
  ((to[i] = from[i]), ...);
}

// The output of a neuron in states that lie in memory.
template <class U, H h, typename Real>
SPIKEBRIDGE_INLINE Real output_of(const Constants<Real>& c, Real bias, const Real* s, int64_t apart) {
  Real states[U::states];
  get(states, s, apart);
  return output<h>(U::argument(c, bias, states));
}

// One step: states and output go from one step to the next.
template <class U, H h, G g, typename Real>
SPIKEBRIDGE_INLINE void step_forward(const Constants<Real>& c, const Given<Real>& in, Real drive,
                         Real (&s)[U::states], Real& y) {
  U::template step<g>(c, in, drive, s);
  y = output<h>(U::argument(c, in.bias, s));
}

// Back through one step, y_t in `out`; returns dL/ddrive.
template <class U, H h, G g, typename Real>
SPIKEBRIDGE_INLINE Real step_backward(const Constants<Real>& c, const Given<Real>& in, Real grad_y, Real out,
                          const Real (&s)[U::states], const Real (&before)[U::states],
                          Flow<Real, U::states>& flow) {
  Real x = U::argument(c, in.bias, s);
  Real dx = (grad_y + flow.y) * slope_h<h>(x, out, c.width, c.inverse, c.height);
  return U::template adjoint<g>(c, in, dx, s, before, flow);
}

// From values known at run time to template arguments.
template <class U, typename Action>
void with_g(G g, Action&& action) {
  switch (g) {
    case G::piecewise: return action.template operator()<U, G::piecewise>();
    case G::relu: return action.template operator()<U, G::relu>();
    case G::elu: return action.template operator()<U, G::elu>();
  }
}

template <typename Action>
void with_rule(const Rule& rule, Action&& action) {
  int code = 0;
#define SPIKEBRIDGE_UNIT(U, name) \
  if (rule.unit == code++) return with_g<U>(rule.g, action);
  SPIKEBRIDGE_UNITS(SPIKEBRIDGE_UNIT)
#undef SPIKEBRIDGE_UNIT
}

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
