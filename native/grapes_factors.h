// How much each neuron weighs, and the factors of GRAPES that follow from it; see
// spikebridge/learning/grapes_factors.py, which is their definition.
#pragma once
#include <cstdint>

namespace spikebridge {

// A dense matrix (rows, columns) of the weights of neurons.
template <typename Real>
struct Weights {
  const Real* data;
  int64_t rows, columns;
  int axis;        // that of the neurons: 0 sums over each row, 1 over each column
  int64_t gates;   // rows of so many gates lie one below the other, each with all neurons
  int64_t repeat;  // neurons of a row, which share its weights
};

// Neurons that are compared with each other.
template <typename Real>
struct Importance {
  const Weights<Real>* sources;
  int64_t count;  // of sources
  int64_t size;   // of the population
  Real* sums;     // (size): of |w| over all sources
  Real* factors;  // (size), 2 sums / max; null where nobody wants them
  bool clipped;
  Real low, high;
  bool gain;  // each neuron gets the mean factor
  int threads;
};

// False where the system has no memory left.
#define SPIKEBRIDGE_SUMS(isa)                        \
  namespace isa {                                    \
  bool importance(const Importance<float>& wanted);  \
  bool importance(const Importance<double>& wanted); \
  }
SPIKEBRIDGE_SUMS(baseline)
#ifdef SPIKEBRIDGE_X86
SPIKEBRIDGE_SUMS(avx2)
SPIKEBRIDGE_SUMS(avx512)
#endif
#undef SPIKEBRIDGE_SUMS

}  // namespace spikebridge
