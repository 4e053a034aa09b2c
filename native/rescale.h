// What scaling drives to a root mean square needs: sums and products channel by channel, one pass
// over memory each; see spikebridge/nn/kernels/rescale.py, which is their definition.
#pragma once
#include <cstdint>

#include "scan.h"

namespace spikebridge {

// Dense numbers (samples, channels, pixels).
struct Extent {
  int64_t samples, channels, pixels;
};

// out (channels): sums of a b over samples and pixels.
template <typename Io, typename Real>
struct ChannelDots {
  Extent extent;
  const Io *a, *b;
  Real* out;
  int threads;
};

// out = a times its channel's factor, plus b times its channel's other factor where there is a b.
template <typename Io, typename Real>
struct ChannelSums {
  Extent extent;
  const Io *a, *b;
  const Real *factor_a, *factor_b;
  Io* out;
  int threads;
};

#define SPIKEBRIDGE_RESCALE(isa, Io, Real)            \
  namespace isa {                                     \
  void channel_dots(const ChannelDots<Io, Real>&);    \
  void channel_sums(const ChannelSums<Io, Real>&);    \
  }
#define SPIKEBRIDGE_RESCALE_ALL(isa)      \
  SPIKEBRIDGE_RESCALE(isa, float, float)  \
  SPIKEBRIDGE_RESCALE(isa, double, double) \
  SPIKEBRIDGE_RESCALE(isa, Bf16, float)
SPIKEBRIDGE_RESCALE_ALL(baseline)
#ifdef SPIKEBRIDGE_X86
SPIKEBRIDGE_RESCALE_ALL(avx2)
SPIKEBRIDGE_RESCALE_ALL(avx512)
#endif
#undef SPIKEBRIDGE_RESCALE_ALL
#undef SPIKEBRIDGE_RESCALE

}  // namespace spikebridge
