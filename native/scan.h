// One recurrence for all units of the family, forward and backward, on raw pointers.
//
//     u  = drive + decay * s * (1 - gate * y_prev) - amount * y_prev
//     s' = g(u),   y' = h(s' + bias)
//
// Layout: (T, B, N) with unit stride along N.  Everything but `drive` and `grad_y` is dense.
#pragma once
#include <cstdint>

namespace spikebridge {

enum class G : int { piecewise = 0, relu = 1, elu = 2 };  // identity is piecewise with slope 1
enum class H : int { sigmoid, tanh_prime, window, triangle, fast_sigmoid, arctan, sigmoid_prime };

struct Rule {
  G g;
  double slope;
  bool gate;
  double amount;
  H h;
  double width, height;
};

struct Shape {
  int64_t t, b, n;
};

// A (T, B, N) operand with any strides over time and batch.
template <typename Real>
struct Strided {
  const Real* data;
  int64_t t, b;
};

template <typename Real>
struct Forward {
  Shape shape;
  Rule rule;
  Strided<Real> drive;
  const Real *s0, *y0, *decay, *bias;  // (B, N), (B, N), (N), (N)
  Real *y, *s_all, *s_last;            // (T, B, N), the same or null, (B, N)
  int threads;
};

template <typename Real>
struct Backward {
  Shape shape;
  Rule rule;
  Strided<Real> grad_y;                                    // data may be null
  const Real *grad_s_last, *s_all, *s0, *y0, *decay, *bias;  // grad_s_last may be null
  Real *grad_drive, *grad_s0, *grad_y0, *grad_decay, *grad_bias;  // the last four (B, N)
  int threads;
};

// One copy of scan.cpp per instruction set.
#define SPIKEBRIDGE_DECLARE(isa)             \
  namespace isa {                            \
  void forward(const Forward<float>&);       \
  void forward(const Forward<double>&);      \
  void backward(const Backward<float>&);     \
  void backward(const Backward<double>&);    \
  }
SPIKEBRIDGE_DECLARE(baseline)
#ifdef SPIKEBRIDGE_X86
SPIKEBRIDGE_DECLARE(avx2)
SPIKEBRIDGE_DECLARE(avx512)
#endif

}  // namespace spikebridge
