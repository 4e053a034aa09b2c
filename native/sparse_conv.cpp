// The convolutions of sparse_conv.h: each pixel that is not zero adds its weights to the outputs that
// it reaches, whose channels lie next to each other for the while.
//
// Sums over samples are taken in a fixed number of parts: they do not depend on the number of threads.
#include "sparse_conv.h"

#include "pointwise.h"
#include "scratch.h"

#include <type_traits>

namespace spikebridge {
namespace SPIKEBRIDGE_ISA {
namespace {

constexpr int64_t kParts = 16;  // of the samples, each with sums of its own

// Weights (channels, kernel, kernel, wide) and outputs (rows, columns, wide): channels of the output
// last, padded to whole vectors.
template <typename Real>
int64_t wide_of(const ConvShape& s) {
  return pieces(s.outputs, Simd<Real>::lanes) * Simd<Real>::lanes;
}

// to += value from, or += from where `ones`; `vectors` of them, or as many as `wide` holds if 0.
template <int vectors, bool ones, typename Real>
inline void add(Real* to, const Real* from, Real value, int64_t wide) {
  using Vector = typename Simd<Real>::Vector;
  constexpr int64_t lanes = Simd<Real>::lanes;
  const int64_t count = vectors ? vectors : wide / lanes;
#pragma GCC unroll 4
  for (int64_t v = 0; v < count; ++v) {
    const Vector x = *reinterpret_cast<const Vector*>(from + v * lanes);
    *reinterpret_cast<Vector*>(to + v * lanes) += ones ? x : value * x;
  }
}

// Calls action(weights, outputs, value), offsets in vectors of channels, for each pair of a weight and
// an output that a marked pixel of a sample connects.
template <typename Real, typename Action>
inline void each_pair(const Images<Real>& x, int64_t sample, Action&& action) {
  const ConvShape& s = x.shape;
  const int64_t pixels = s.height * s.width, size = s.channels * pixels, words = words_of(size);
  const uint64_t* bits = x.bits + sample * words;
  for (int64_t w = 0; w < words; ++w)
    for (uint64_t left = bits[w]; left; left &= left - 1) {
      const int64_t place = 64 * w + __builtin_ctzll(left);
      const int64_t channel = place / pixels, pixel = place % pixels;
      const int64_t row = pixel / s.width + s.padding, column = pixel % s.width + s.padding;
      const Real value = x.values ? x.values[sample * size + place] : Real(1);
      for (int64_t i = row % s.stride; i < s.kernel && i <= row; i += s.stride) {
        const int64_t to_row = (row - i) / s.stride;
        if (to_row >= s.rows) continue;
        for (int64_t j = column % s.stride; j < s.kernel && j <= column; j += s.stride) {
          const int64_t to_column = (column - j) / s.stride;
          if (to_column < s.columns)
            action((channel * s.kernel + i) * s.kernel + j, to_row * s.columns + to_column, value);
        }
      }
    }
}

template <int vectors, bool ones, typename Io, typename Real>
bool forward_as(const ConvForward<Io, Real>& p) {
  const ConvShape& s = p.x.shape;
  const int64_t wide = wide_of<Real>(s), taps = s.kernel * s.kernel, places = s.rows * s.columns;
  Scratch<Real> weights(s.channels * taps * wide), sums(p.threads * places * wide);
  if (!weights || !sums) return false;
  std::memset(weights.get(), 0, static_cast<size_t>(s.channels * taps * wide) * sizeof(Real));
  for (int64_t o = 0; o < s.outputs; ++o)
    for (int64_t at = 0; at < s.channels * taps; ++at)
      weights.get()[at * wide + o] = p.weight[o * s.channels * taps + at];
#pragma omp parallel for schedule(dynamic) num_threads(p.threads) if (p.threads > 1)
  for (int64_t m = 0; m < s.samples; ++m) {
    Real* own = sums.get() + thread_number() * places * wide;
    std::memset(own, 0, static_cast<size_t>(places * wide) * sizeof(Real));
    each_pair(p.x, m, [&](int64_t from, int64_t to, Real value) {
      add<vectors, ones>(own + to * wide, weights.get() + from * wide, value, wide);
    });
    Io* y = p.y + m * s.outputs * places;
    for (int64_t o = 0; o < s.outputs; ++o)
      for (int64_t at = 0; at < places; ++at) store(y[o * places + at], own[at * wide + o]);
  }
  return true;
}

template <int vectors, bool ones, typename Io, typename Real>
bool weights_as(const ConvWeights<Io, Real>& p) {
  const ConvShape& s = p.x.shape;
  const int64_t wide = wide_of<Real>(s), taps = s.kernel * s.kernel, places = s.rows * s.columns;
  const int64_t size = s.channels * taps * wide;
  Scratch<Real> sums(kParts * size), grads(p.threads * places * wide);
  if (!sums || !grads) return false;
  std::memset(sums.get(), 0, static_cast<size_t>(kParts * size) * sizeof(Real));
  std::memset(grads.get(), 0, static_cast<size_t>(p.threads * places * wide) * sizeof(Real));
#pragma omp parallel for schedule(dynamic) num_threads(p.threads) if (p.threads > 1)
  for (int64_t part = 0; part < kParts; ++part) {
    Real* own = grads.get() + thread_number() * places * wide;
    Real* to = sums.get() + part * size;
    for (int64_t m = part; m < s.samples; m += kParts) {
      const Io* grad = p.grad + m * s.outputs * places;
      for (int64_t o = 0; o < s.outputs; ++o)
        for (int64_t at = 0; at < places; ++at) own[at * wide + o] = load(grad[o * places + at]);
      each_pair(p.x, m, [&](int64_t weight, int64_t from, Real value) {
        add<vectors, ones>(to + weight * wide, own + from * wide, value, wide);
      });
    }
  }
  for (int64_t part = 1; part < kParts; ++part)
    for (int64_t i = 0; i < size; ++i) sums.get()[i] += sums.get()[part * size + i];
  for (int64_t o = 0; o < s.outputs; ++o)
    for (int64_t at = 0; at < s.channels * taps; ++at)
      p.out[o * s.channels * taps + at] = sums.get()[at * wide + o];
  return true;
}

// run(vectors of a pixel's channels, whether all marks are 1), both known when it is compiled.
template <typename Real, typename Run>
bool chosen_for(const Images<Real>& x, Run&& run) {
  const int64_t vectors = wide_of<Real>(x.shape) / Simd<Real>::lanes;
  const auto with = [&](auto ones) {
    if (vectors == 1) return run(std::integral_constant<int, 1>{}, ones);
    if (vectors == 2) return run(std::integral_constant<int, 2>{}, ones);
    if (vectors == 4) return run(std::integral_constant<int, 4>{}, ones);
    return run(std::integral_constant<int, 0>{}, ones);
  };
  return x.values ? with(std::false_type{}) : with(std::true_type{});
}

}  // namespace

#define SPIKEBRIDGE_DEFINE(Io, Real)                                       \
  bool conv_forward(const ConvForward<Io, Real>& p) {                      \
    return chosen_for(p.x, [&](auto vectors, auto ones) {                  \
      return forward_as<decltype(vectors)::value, decltype(ones)::value>(p); \
    });                                                                    \
  }                                                                        \
  bool conv_weights(const ConvWeights<Io, Real>& p) {                      \
    return chosen_for(p.x, [&](auto vectors, auto ones) {                  \
      return weights_as<decltype(vectors)::value, decltype(ones)::value>(p); \
    });                                                                    \
  }
SPIKEBRIDGE_DEFINE(float, float)
SPIKEBRIDGE_DEFINE(double, double)
SPIKEBRIDGE_DEFINE(Bf16, float)

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
