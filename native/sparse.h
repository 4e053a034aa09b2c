// Products with a sparse left operand: only inputs that are not zero are summed over.
//
// x (rows, inputs) is known by its marks, a bit per number, 64 to a word; each row starts a word.  A
// number that is NaN is marked, so it reaches the result.  Weights of inputs that are zero are not
// read: NaN or Inf among them stays where it is.
#pragma once
#include <cstdint>

#include "scan.h"

namespace spikebridge {

// x (rows, inputs), `stride` numbers from row to row.
template <typename Io>
struct Dense {
  const Io* data;
  int64_t rows, inputs, stride;
};

// Membranes s (rows, columns) and what is added to each column, minus its threshold.
template <typename Real>
struct Near {
  const Real *s, *bias;
  int64_t rows, columns;
  Real width;
};

struct Marks {
  int64_t count;  // of numbers that are not zero
  bool ones;      // each of them is 1
};

// What a product needs to know of x.
template <typename Real>
struct Marked {
  int64_t rows, inputs, outputs;
  const uint64_t* bits;  // (rows, words)
  int64_t count;         // of marks
  const Real* values;    // x itself, or null where each marked input is 1
  int64_t stride;        // of values
};

template <typename Io, typename Real>
struct SparseForward {
  Marked<Real> x;
  const Real* weight;  // (outputs, inputs)
  Io* y;               // (rows, outputs)
  int threads;
};

template <typename Io, typename Real>
struct SparseWeights {
  Marked<Real> x;
  const Io* grad;  // (rows, outputs), `grad_stride` numbers from row to row
  int64_t grad_stride;
  Real* out;  // (outputs, inputs)
  int threads;
};

// Only at marked places of x is the gradient of x wanted; it is 0 elsewhere.
template <typename Io, typename Real>
struct SparseInputs {
  Marked<Real> x;
  const Io* grad;  // (rows, outputs), `grad_stride` numbers from row to row
  int64_t grad_stride;
  const Real* weight;  // (outputs, inputs)
  Io* out;             // (rows, inputs)
  int threads;
};

inline int64_t words_of(int64_t inputs) { return (inputs + 63) / 64; }

// `mark` writes the marks of x into bits (rows, words).  sparse_forward is y = x W^T, sparse_weights
// out = grad^T x, sparse_inputs out = grad W at the marked places; they return false where memory has run out.
#define SPIKEBRIDGE_SPARSE(isa, Io, Real)             \
  namespace isa {                                     \
  Marks mark(const Dense<Io>&, uint64_t*, int);       \
  bool sparse_forward(const SparseForward<Io, Real>&); \
  bool sparse_weights(const SparseWeights<Io, Real>&); \
  bool sparse_inputs(const SparseInputs<Io, Real>&);   \
  }
#define SPIKEBRIDGE_SPARSE_ALL(isa)       \
  namespace isa {                                              \
  Marks mark_near(const Near<float>&, uint64_t*, int);  \
  Marks mark_near(const Near<double>&, uint64_t*, int); \
  }                                                            \
  SPIKEBRIDGE_SPARSE(isa, float, float)   \
  SPIKEBRIDGE_SPARSE(isa, double, double) \
  SPIKEBRIDGE_SPARSE(isa, Bf16, float)
SPIKEBRIDGE_SPARSE_ALL(baseline)
#ifdef SPIKEBRIDGE_X86
SPIKEBRIDGE_SPARSE_ALL(avx2)
SPIKEBRIDGE_SPARSE_ALL(avx512)
#endif
#undef SPIKEBRIDGE_SPARSE_ALL
#undef SPIKEBRIDGE_SPARSE

}  // namespace spikebridge
