// The steps of all units and their adjoints, for one neuron: the one place to extend.
//
// A neuron is a memory, how its membrane goes on, and a modulation, what moves its threshold or its
// output.  Each part says how many states, drives and parameters it adds, and has a step and an adjoint.
// A row of SPIKEBRIDGE_UNITS names a pair for Python, whose table of steps (nn/kernels/ops.py) gives
// `numbers`.  scan.cpp and recurrent.cpp carry every row through time and keep all states of each step.
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

constexpr int at_least_one(int count) { return count ? count : 1; }  // an array has a size

// What one neuron is given at one step: `by` is the output that gates its membrane, `y` its last one.
template <typename Real, int drives, int more>
struct Given {
  Real decay, bias, y, by;
  Real drive[drives], own[at_least_one(more)];
};

// What flows back through one step.  In: dL/ds_t and dL/dy_t.  Out: the same of step t - 1, dL/dby
// apart from dL/dy, and dL/ddrive.  Added to: dL/ddecay, dL/dbias and those of further parameters.
template <typename Real, int states, int drives, int more>
struct Flow {
  Real s[states], y, by, decay, bias;
  Real drive[drives], own[at_least_one(more)];
};

// Of the reset: what it leaves of the membrane.
template <typename Real, class In>
SPIKEBRIDGE_INLINE Real kept(const Constants<Real>& c, const In& in, Real s) {
  return s * (Real(1) - c.gate * in.by);
}

// Back through g and the reset by subtraction, with dx = dL/dx; returns dL/du.
template <G g, typename Real, class In, class F>
SPIKEBRIDGE_INLINE Real into(const Constants<Real>& c, const In& in, Real dx, Real s, F& flow) {
  Real du = (flow.s[0] + dx) * slope_g<g>(s, c.slope);
  flow.bias += dx + (c.trained > Real(0) ? du * in.y : Real(0));
  flow.y = -(c.amount(in.bias) * du);
  return du;
}

// Back through what the reset leaves, with `through` = dL/dkept.
template <typename Real, class In, class F>
SPIKEBRIDGE_INLINE void out_of_reset(const Constants<Real>& c, const In& in, Real through, Real before,
                                     F& flow) {
  flow.s[0] = through * (Real(1) - c.gate * in.by);
  // The gate goes to the state first: 0 times a product that overflows would be NaN.
  flow.by = -(through * (c.gate * before));
}

// u = drive + decay kept - amount y
struct Leak {
  static constexpr int states = 1, drives = 0, more = 0;
  static constexpr bool reads = false;  // the adjoint needs the drives
  static constexpr bool every_g = true;

  template <G g, typename Real, class In, int k>
  static SPIKEBRIDGE_INLINE void step(const Constants<Real>& c, const In& in, Real (&s)[k]) {
    Real u = (in.drive[0] + in.decay * kept(c, in, s[0])) - c.amount(in.bias) * in.y;
    s[0] = apply_g<g>(u, c.slope);
  }

  template <G g, typename Real, class In, int k, class F>
  static SPIKEBRIDGE_INLINE void adjoint(const Constants<Real>& c, const In& in, Real dx, const Real (&s)[k],
                                         const Real (&before)[k], F& flow) {
    Real du = into<g>(c, in, dx, s[0], flow);
    flow.decay += du * kept(c, in, before[0]);
    out_of_reset(c, in, du * in.decay, before[0], flow);
    flow.drive[0] = du;
  }
};

// z = logistic(decay + drive_1),  u = (1 - z) drive + z kept - amount y; `decay` is a logit.
struct Gate {
  static constexpr int states = 1, drives = 1, more = 0;
  static constexpr bool reads = true;
  static constexpr bool every_g = false;

  template <G g, typename Real, class In, int k>
  static SPIKEBRIDGE_INLINE void step(const Constants<Real>& c, const In& in, Real (&s)[k]) {
    Real z = logistic(in.decay + in.drive[1]);
    Real u = ((Real(1) - z) * in.drive[0] + z * kept(c, in, s[0])) - c.amount(in.bias) * in.y;
    s[0] = apply_g<g>(u, c.slope);
  }

  template <G g, typename Real, class In, int k, class F>
  static SPIKEBRIDGE_INLINE void adjoint(const Constants<Real>& c, const In& in, Real dx, const Real (&s)[k],
                                         const Real (&before)[k], F& flow) {
    Real z = logistic(in.decay + in.drive[1]);
    Real du = into<g>(c, in, dx, s[0], flow);
    Real logit = du * (kept(c, in, before[0]) - in.drive[0]) * (z * (Real(1) - z));
    flow.decay += logit;
    out_of_reset(c, in, du * z, before[0], flow);
    flow.drive[0] = du * (Real(1) - z);
    flow.drive[1] = logit;
  }
};

// w' = rho w + pull kept + kick y,  u = decay kept + (1 - decay) (drive - w') - amount y; own: rho,
// pull, kick.
struct Oscillation {
  static constexpr int states = 2, drives = 0, more = 3;
  static constexpr bool reads = true;
  static constexpr bool every_g = false;

  template <G g, typename Real, class In, int k>
  static SPIKEBRIDGE_INLINE void step(const Constants<Real>& c, const In& in, Real (&s)[k]) {
    Real left = kept(c, in, s[0]);
    s[1] = (in.own[0] * s[1] + in.own[1] * left) + in.own[2] * in.y;
    Real u = (in.decay * left + (Real(1) - in.decay) * (in.drive[0] - s[1])) - c.amount(in.bias) * in.y;
    s[0] = apply_g<g>(u, c.slope);
  }

  template <G g, typename Real, class In, int k, class F>
  static SPIKEBRIDGE_INLINE void adjoint(const Constants<Real>& c, const In& in, Real dx, const Real (&s)[k],
                                         const Real (&before)[k], F& flow) {
    Real left = kept(c, in, before[0]);
    Real du = into<g>(c, in, dx, s[0], flow);
    Real driven = du * (Real(1) - in.decay);
    Real dw = flow.s[1] - driven;
    flow.decay += du * (left - (in.drive[0] - s[1]));
    flow.own[0] += dw * before[1];
    flow.own[1] += dw * left;
    flow.own[2] += dw * in.y;
    out_of_reset(c, in, du * in.decay + dw * in.own[1], before[0], flow);
    flow.s[1] = in.own[0] * dw;
    flow.y += in.own[2] * dw;
    flow.drive[0] = driven;
  }
};

// x = s + bias and no more.  The states, drives and parameters of a modulation lie behind those of
// the memory: `Part` says from where on.
struct Unmoved {
  static constexpr int states = 0, drives = 0, more = 0, outputs = 1;
  static constexpr bool every_g = true;

  template <class Part, typename Real, class In, int k>
  static SPIKEBRIDGE_INLINE void step(const Constants<Real>&, const In&, Real (&)[k]) {}

  template <class Part, typename Real, class In, int k>
  static SPIKEBRIDGE_INLINE Real argument(const Constants<Real>&, const In& in, const Real (&s)[k]) {
    return s[0] + in.bias;
  }

  template <class Part, typename Real, class F>
  static SPIKEBRIDGE_INLINE void adjoint(const Constants<Real>&, Real, Real, F&) {}
};

// a' = rho a + (1 - rho) y_prev,  x = s + bias - beta a'; numbers: rho, 1 - rho, beta.
struct Adaptation : Unmoved {
  static constexpr int states = 1;

  template <class Part, typename Real, class In, int k>
  static SPIKEBRIDGE_INLINE void step(const Constants<Real>& c, const In& in, Real (&s)[k]) {
    s[Part::state] = c.numbers[0] * s[Part::state] + c.numbers[1] * in.y;
  }

  template <class Part, typename Real, class In, int k>
  static SPIKEBRIDGE_INLINE Real argument(const Constants<Real>& c, const In& in, const Real (&s)[k]) {
    return (s[0] + in.bias) - c.numbers[2] * s[Part::state];
  }

  template <class Part, typename Real, class F>
  static SPIKEBRIDGE_INLINE void adjoint(const Constants<Real>& c, Real dx, Real later, F& flow) {
    Real da = later - c.numbers[2] * dx;
    flow.s[Part::state] = c.numbers[0] * da;
    flow.y += c.numbers[1] * da;
  }
};

// a' = rho a + (1 - rho) drive,  x = s + bias + a'; numbers: rho, 1 - rho.
struct Threshold : Unmoved {
  static constexpr int states = 1, drives = 1;
  static constexpr bool every_g = false;

  template <class Part, typename Real, class In, int k>
  static SPIKEBRIDGE_INLINE void step(const Constants<Real>& c, const In& in, Real (&s)[k]) {
    s[Part::state] = c.numbers[0] * s[Part::state] + c.numbers[1] * in.drive[Part::drive];
  }

  template <class Part, typename Real, class In, int k>
  static SPIKEBRIDGE_INLINE Real argument(const Constants<Real>&, const In& in, const Real (&s)[k]) {
    return (s[0] + in.bias) + s[Part::state];
  }

  template <class Part, typename Real, class F>
  static SPIKEBRIDGE_INLINE void adjoint(const Constants<Real>& c, Real dx, Real later, F& flow) {
    Real da = later + dx;
    flow.s[Part::state] = c.numbers[0] * da;
    flow.drive[Part::drive] = c.numbers[1] * da;
  }
};

// y = h(x) h(drive + open); own: open.
struct Output : Unmoved {
  static constexpr int drives = 1, more = 1, outputs = 2;
  static constexpr bool every_g = false;

  template <class Part, typename Real, class In>
  static SPIKEBRIDGE_INLINE Real second(const In& in) {
    return in.drive[Part::drive] + in.own[Part::own];
  }
};

template <class M, class O>
struct Neuron {
  using Memory = M;
  using Modulation = O;
  static constexpr int states = M::states + O::states, drives = 1 + M::drives + O::drives,
                       more = M::more + O::more;
  static constexpr bool two = O::outputs == 2, reads = M::reads || two,
                        every_g = M::every_g && O::every_g;
  struct Part {
    static constexpr int state = M::states, drive = 1 + M::drives, own = M::more;
  };
  template <typename Real>
  using In = Given<Real, drives, more>;
  template <typename Real>
  using Back = Flow<Real, states, drives, more>;

  template <H h, typename Real>
  static SPIKEBRIDGE_INLINE Real output_of(const Constants<Real>& c, const In<Real>& in,
                                           const Real (&s)[states]) {
    Real y = output<h>(O::template argument<Part>(c, in, s));
    if constexpr (two) y = y * output<h>(O::template second<Part, Real>(in));
    return y;
  }

  // States and output go from one step to the next.
  template <H h, G g, typename Real>
  static SPIKEBRIDGE_INLINE void step(const Constants<Real>& c, const In<Real>& in, Real (&s)[states], Real& y) {
    O::template step<Part>(c, in, s);
    M::template step<g>(c, in, s);
    y = output_of<h>(c, in, s);
  }

  // Back through one step, y_t in `out`.
  template <H h, G g, typename Real>
  static SPIKEBRIDGE_INLINE void adjoint(const Constants<Real>& c, const In<Real>& in, Real grad_y, Real out,
                                         const Real (&s)[states], const Real (&before)[states],
                                         Back<Real>& flow) {
    Real x = O::template argument<Part>(c, in, s), dy = grad_y + flow.y, dx;
    if constexpr (two) {
      Real x2 = O::template second<Part, Real>(in), p = output<h>(x), q = output<h>(x2);
      Real opened = (dy * p) * slope_h<h>(x2, q, c.width, c.inverse, c.height);
      dx = (dy * q) * slope_h<h>(x, p, c.width, c.inverse, c.height);
      flow.own[Part::own] += opened;
      flow.drive[Part::drive] = opened;
    } else {
      dx = dy * slope_h<h>(x, out, c.width, c.inverse, c.height);
    }
    Real later = Real(0);
    if constexpr (O::states > 0) later = flow.s[Part::state];
    M::template adjoint<g>(c, in, dx, s, before, flow);
    O::template adjoint<Part>(c, dx, later, flow);
  }
};

// Each unit with its name; Python takes their codes from here.
using Snu = Neuron<Leak, Unmoved>;
using Adaptive = Neuron<Leak, Adaptation>;
using Gated = Neuron<Gate, Unmoved>;
using Oscillating = Neuron<Oscillation, Unmoved>;
using AxoSomatic = Neuron<Leak, Threshold>;
using AxoAxonic = Neuron<Leak, Output>;
using GatedAxoAxonic = Neuron<Gate, Output>;
#define SPIKEBRIDGE_UNITS(of)                                                                         \
  of(Snu, "snu") of(Adaptive, "adaptation") of(Gated, "gate") of(Oscillating, "oscillation")            \
  of(AxoSomatic, "threshold") of(AxoAxonic, "output") of(GatedAxoAxonic, "gate+output")

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

// The drives of a neuron in their own type, `apart` numbers apart in memory.
template <typename Io, typename Real, size_t... i>
SPIKEBRIDGE_INLINE void load_all(Real (&to)[sizeof...(i)], const Io* from, int64_t apart, std::index_sequence<i...>) {
  ((to[i] = Real(load(from[int64_t(i) * apart]))), ...);
}

template <typename Io, typename Real, int k>
SPIKEBRIDGE_INLINE void load_all(Real (&to)[k], const Io* from, int64_t apart) {
  load_all(to, from, apart, std::make_index_sequence<k>());
}

template <typename Io, typename Real, size_t... i>
SPIKEBRIDGE_INLINE void store_all(const Real (&from)[sizeof...(i)], Io* to, int64_t apart,
                                  std::index_sequence<i...>) {
  (store(to[int64_t(i) * apart], from[i]), ...);
}

template <typename Io, typename Real, int k>
SPIKEBRIDGE_INLINE void store_all(const Real (&from)[k], Io* to, int64_t apart) {
  store_all(from, to, apart, std::make_index_sequence<k>());
}

// From values known at run time to template arguments.  What needs a g that a unit has not is kept
// from coming here by Python.
template <class U, typename Action>
void with_g(G g, Action&& action) {
  if constexpr (U::every_g) {
    if (g == G::relu) return action.template operator()<U, G::relu>();
    if (g == G::elu) return action.template operator()<U, G::elu>();
  }
  return action.template operator()<U, G::piecewise>();
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
