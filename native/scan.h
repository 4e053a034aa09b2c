// One recurrence for all units of the family, forward and backward, on raw pointers.
//
//     u  = drive + recurrent y_prev + decay * s * (1 - gate * y_prev) - amount * y_prev
//     s' = g(u),   y' = h(s' + bias)
//
// An amount below 0 stands for -bias, the threshold of each neuron, as it is trained.  With lateral
// inhibition the largest output of the layer gates in the place of each neuron's own.  A unit with
// k states keeps k - 1 more beside the membrane, one with d drives has as many currents for each
// neuron; units.h has the steps and their adjoints.
//
// Layout: (T, B, N) with unit stride along N, drives (T, B, d N), one after another; states (k, B, N),
// those of all steps (T, k, B, N).  Everything but `drive` and `grad_y` is dense.
// `Io` is the type of drives and outputs, `Real` that of states, parameters and sums.
#pragma once
#include <cstdint>

namespace spikebridge {

enum class G : int { piecewise = 0, relu = 1, elu = 2 };  // identity is piecewise with slope 1

struct Bf16 {
  uint16_t bits;
};

constexpr int kNumbers = 4;  // that a unit may have beside those of the rule

struct Rule {
  G g;
  double slope;
  bool gate;
  double amount;
  int h;  // H of pointwise.h: the surrogate, or the logistic function
  double width, height;
  bool lateral;
  int unit;  // a row of SPIKEBRIDGE_UNITS in units.h
  double numbers[kNumbers];
};

struct UnitName {
  const char* name;  // null beyond the last
  int states, drives, more;  // of a neuron; `more`: parameters beside decay and bias
  bool reads, every_g;       // whether the way back needs the drives; whether it has every g
};

struct Shape {
  int64_t t, b, n;
};

// A (T, B, N) or (T, B, d N) operand with any strides over time and batch.
template <typename Io>
struct Strided {
  const Io* data;
  int64_t t, b;
};

template <typename Io, typename Real>
struct Forward {
  Shape shape;
  Rule rule;
  Strided<Io> drive;
  const Real* recurrent;  // (fed N, N), out by in, or null
  int fed;                // so many of the drives, from the first on
  const Real *s0, *y0;    // (k, B, N), (B, N)
  const Real *decay, *bias, *own;  // (N), (N) and (more, N)
  Io* y;                  // (T, B, N)
  Real* s_all;            // (T, k, B, N) or null
  Real* seen;             // (T, B, d N), the drives with what came back to them, or null; of coupled
                          // layers only, whose way back needs them
  Real *s_last, *y_last;  // (k, B, N), (B, N)
  int threads;
};

template <typename Io, typename Real>
struct Backward {
  Shape shape;
  Rule rule;
  Strided<Io> grad_y;       // data may be null
  Strided<Io> drive;        // data may be null where the unit does not read it
  const Real* seen;         // as in Forward, in place of it
  const Real* recurrent;    // as in Forward
  int fed;
  const Real *grad_s_last, *grad_y_last;  // as s_last and y_last, or null
  const Real *s_all, *s0, *y0;
  const Real *decay, *bias, *own;
  Io* grad_drive;                                 // (T, B, d N)
  Real *grad_s0;                                  // (k, B, N)
  Real *grad_y0, *grad_decay, *grad_bias;         // (B, N)
  Real* grad_own;                                 // (more, B, N)
  int threads;
};

// One copy of scan.cpp and recurrent.cpp per instruction set.  What couples the neurons of a layer,
// a recurrent matrix or lateral inhibition, is for recurrent.cpp.
#define SPIKEBRIDGE_DECLARE(isa)                     \
  namespace isa {                                    \
  const char* surrogate(int code);                   \
  UnitName unit_name(int code);                      \
  void forward(const Forward<float, float>&);        \
  void forward(const Forward<double, double>&);      \
  void forward(const Forward<Bf16, float>&);         \
  void backward(const Backward<float, float>&);      \
  void backward(const Backward<double, double>&);    \
  void backward(const Backward<Bf16, float>&);       \
  bool recurrent_forward(const Forward<float, float>&);      \
  bool recurrent_forward(const Forward<double, double>&);    \
  bool recurrent_forward(const Forward<Bf16, float>&);       \
  bool recurrent_backward(const Backward<float, float>&);    \
  bool recurrent_backward(const Backward<double, double>&);  \
  bool recurrent_backward(const Backward<Bf16, float>&);     \
  }
SPIKEBRIDGE_DECLARE(baseline)
#ifdef SPIKEBRIDGE_X86
SPIKEBRIDGE_DECLARE(avx2)
SPIKEBRIDGE_DECLARE(avx512)
#endif

}  // namespace spikebridge
