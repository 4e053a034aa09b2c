// Convolutions of sparse images: only pixels that are not zero are gone through.
//
// x (samples, channels height width) is known by its marks, see sparse.h.
#pragma once
#include "sparse.h"

namespace spikebridge {

struct ConvShape {
  int64_t samples, channels, height, width;  // of x
  int64_t outputs, rows, columns;            // of y (samples, outputs, rows, columns)
  int64_t kernel, stride, padding;           // alike in both directions
};

// What a convolution needs to know of x.
template <typename Real>
struct Images {
  ConvShape shape;
  const uint64_t* bits;  // (samples, words)
  const Real* values;    // x itself, (samples, channels height width), or null where all marks are 1
};

template <typename Io, typename Real>
struct ConvForward {
  Images<Real> x;
  const Real* weight;  // (outputs, channels, kernel, kernel)
  Io* y;
  int threads;
};

template <typename Io, typename Real>
struct ConvWeights {
  Images<Real> x;
  const Io* grad;  // of y
  Real* out;       // (outputs, channels, kernel, kernel)
  int threads;
};

// They return false where memory has run out.
#define SPIKEBRIDGE_CONV(isa, Io, Real)               \
  namespace isa {                                     \
  bool conv_forward(const ConvForward<Io, Real>&);    \
  bool conv_weights(const ConvWeights<Io, Real>&);    \
  }
#define SPIKEBRIDGE_CONV_ALL(isa)       \
  SPIKEBRIDGE_CONV(isa, float, float)   \
  SPIKEBRIDGE_CONV(isa, double, double) \
  SPIKEBRIDGE_CONV(isa, Bf16, float)
SPIKEBRIDGE_CONV_ALL(baseline)
#ifdef SPIKEBRIDGE_X86
SPIKEBRIDGE_CONV_ALL(avx2)
SPIKEBRIDGE_CONV_ALL(avx512)
#endif
#undef SPIKEBRIDGE_CONV_ALL
#undef SPIKEBRIDGE_CONV

}  // namespace spikebridge
