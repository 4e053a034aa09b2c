// Sums and products channel by channel, at the speed at which the numbers arrive.
//
// Sums of float32 and bfloat16 are taken in float32 over short runs, and runs in double.  Each channel
// is summed by one thread in one order: the result does not depend on the number of threads.
// Compiled once per instruction set (SPIKEBRIDGE_ISA), so no inline function of the standard library
// is called: the linker would keep one copy of it for all.
#include "rescale.h"

#include "pointwise.h"

namespace spikebridge {
namespace SPIKEBRIDGE_ISA {
namespace {

constexpr int64_t kRun = 512;   // pixels whose sum is taken in one go
constexpr int64_t kDeep = 32;   // samples, where channels are next to each other
constexpr int64_t kTile = 256;  // channels of which sums are held at a time
constexpr int64_t kThreaded = int64_t{1} << 16;  // numbers from which threads are worth their start

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

inline int useful(const Extent& e, int threads) {
  return e.samples * e.channels * e.pixels <= kThreaded ? 1 : threads;
}

template <typename Io, typename Real>
double dot_of_channel(const ChannelDots<Io, Real>& p, int64_t channel) {
  const Extent e = p.extent;
  double total = 0;
  for (int64_t i = 0; i < e.samples; ++i) {
    const int64_t start = (i * e.channels + channel) * e.pixels;
    const Io *a = p.a + start, *b = p.b + start;
    for (int64_t begin = 0; begin < e.pixels; begin += kRun) {
      const int64_t end = least(begin + kRun, e.pixels);
      Real part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t j = begin; j < end; ++j) part += load(a[j]) * load(b[j]);
      total += part;
    }
  }
  return total;
}

// One pixel each: channels from `first` on, `width` of them, at most a tile.
template <typename Io, typename Real>
void dots_down(const ChannelDots<Io, Real>& p, int64_t first, int64_t width) {
  const Extent e = p.extent;
  double total[kTile] = {};
  Real part[kTile];
  for (int64_t begin = 0; begin < e.samples; begin += kDeep) {
    for (int64_t j = 0; j < width; ++j) part[j] = 0;
    for (int64_t i = begin; i < least(begin + kDeep, e.samples); ++i) {
      const Io *a = p.a + i * e.channels + first, *b = p.b + i * e.channels + first;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) part[j] += load(a[j]) * load(b[j]);
    }
    for (int64_t j = 0; j < width; ++j) total[j] += part[j];
  }
  for (int64_t j = 0; j < width; ++j) p.out[first + j] = static_cast<Real>(total[j]);
}

template <typename Io, typename Real>
void dots(const ChannelDots<Io, Real>& p) {
  const Extent e = p.extent;
  [[maybe_unused]] const int threads = useful(e, p.threads);
  if (e.pixels == 1) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t first = 0; first < e.channels; first += kTile)
      dots_down(p, first, least(kTile, e.channels - first));
    return;
  }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t channel = 0; channel < e.channels; ++channel)
    p.out[channel] = static_cast<Real>(dot_of_channel(p, channel));
}

// A run of numbers with factors `step` apart: 0 for one factor, 1 for one each.
template <int step, typename Io, typename Real>
inline void sum_run(const Io* a, const Io* b, const Real* factor_a, const Real* factor_b, Io* out,
                    int64_t count) {
  if (b) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j)
      store(out[j], load(a[j]) * factor_a[j * step] + load(b[j]) * factor_b[j * step]);
  } else {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) store(out[j], load(a[j]) * factor_a[j * step]);
  }
}

template <typename Io, typename Real>
void sums(const ChannelSums<Io, Real>& p) {
  const Extent e = p.extent;
  [[maybe_unused]] const int threads = useful(e, p.threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < e.samples; ++i) {
    const int64_t start = i * e.channels * e.pixels;
    if (e.pixels == 1) {
      sum_run<1>(p.a + start, p.b ? p.b + start : nullptr, p.factor_a, p.factor_b, p.out + start,
                 e.channels);
      continue;
    }
    for (int64_t c = 0; c < e.channels; ++c) {
      const int64_t from = start + c * e.pixels;
      const Real fa = p.factor_a[c], fb = p.b ? p.factor_b[c] : Real(0);
      sum_run<0>(p.a + from, p.b ? p.b + from : nullptr, &fa, &fb, p.out + from, e.pixels);
    }
  }
}

}  // namespace

#define SPIKEBRIDGE_DEFINE(Io, Real)                                   \
  void channel_dots(const ChannelDots<Io, Real>& wanted) { dots(wanted); } \
  void channel_sums(const ChannelSums<Io, Real>& wanted) { sums(wanted); }
SPIKEBRIDGE_DEFINE(float, float)
SPIKEBRIDGE_DEFINE(double, double)
SPIKEBRIDGE_DEFINE(Bf16, float)
#undef SPIKEBRIDGE_DEFINE

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
