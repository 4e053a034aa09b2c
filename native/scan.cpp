// The scan, compiled once per instruction set (SPIKEBRIDGE_ISA).
//
// (B, N) is cut into tiles whose state stays in the first-level cache; each thread carries its
// tiles through all of time, so that every (T, B, N) tensor moves through memory once and no
// thread waits for another.  Results do not depend on the number of threads.
#include "scan.h"

#include "elementary.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace spikebridge {
namespace SPIKEBRIDGE_ISA {
namespace {

constexpr int64_t kTileBytes = 4096;
constexpr int64_t kSerialWork = 16384;             // unit-steps below which one thread is faster
constexpr int64_t kStreamBytes = 24 * 1024 * 1024;  // outputs larger than this bypass the cache

template <typename Real>
constexpr int64_t tile_width() {
  return kTileBytes / static_cast<int64_t>(sizeof(Real));
}

template <G g, typename Real>
inline Real apply_g(Real u, Real slope) {
  if constexpr (g == G::piecewise) return u > Real(0) ? u : slope * u;
  if constexpr (g == G::relu) return u <= Real(0) ? Real(0) : u;
  if constexpr (g == G::elu) {
    Real negative = expm1_nonpositive(u < Real(0) ? u : Real(0));
    return u > Real(0) ? u : negative;
  }
}

// g'(u) read off s = g(u): each g here keeps the sign.
template <G g, typename Real>
inline Real slope_g(Real s, Real slope) {
  if constexpr (g == G::piecewise) return s > Real(0) ? Real(1) : slope;
  if constexpr (g == G::relu) return s > Real(0) ? Real(1) : Real(0);
  if constexpr (g == G::elu) return s > Real(0) ? Real(1) : s + Real(1);
}

template <H h, typename Real>
inline Real output(Real x) {
  if constexpr (h == H::sigmoid) return logistic(x);
  return x > Real(0) ? Real(1) : Real(0);
}

// dh/dx at x = s + bias; y = h(x).
template <H h, typename Real>
inline Real slope_h(Real x, Real y, Real inverse_width, Real height) {
  Real z = x * inverse_width;
  if constexpr (h == H::sigmoid) return y * (Real(1) - y);
  if constexpr (h == H::tanh_prime) return height * sech_squared(z);
  if constexpr (h == H::window) return absolute(z) < Real(1) ? height : Real(0);
  if constexpr (h == H::triangle) {
    Real below = Real(1) - absolute(z);
    return below > Real(0) ? height * below : Real(0);
  }
  if constexpr (h == H::fast_sigmoid) {
    Real d = Real(1) + absolute(z);
    return height / (d * d);
  }
  if constexpr (h == H::arctan) return height / (Real(1) + z * z);
  if constexpr (h == H::sigmoid_prime) {
    Real p = logistic(z);
    return Real(4) * height * p * (Real(1) - p);
  }
}

// The part of one row of B that lies in a tile.
struct Segment {
  int64_t row, column, at, length;  // at: offset in the tile
};

struct Tile {
  int64_t begin, width, n;
  bool flat;  // rows of the operand follow one another without a gap

  template <typename Do>
  inline void each(Do&& action) const {
    if (flat) {
      action(Segment{begin / n, begin % n, 0, width});
      return;
    }
    for (int64_t at = 0; at < width;) {
      int64_t row = (begin + at) / n, column = (begin + at) % n;
      int64_t length = n - column < width - at ? n - column : width - at;
      action(Segment{row, column, at, length});
      at += length;
    }
  }
};

template <typename Real>
inline void fill_parameter(Real* to, const Real* parameter, const Tile& tile) {
  for (int64_t j = 0, column = tile.begin % tile.n; j < tile.width; ++j) {
    to[j] = parameter[column];
    if (++column == tile.n) column = 0;
  }
}

template <typename Real>
inline void copy(Real* to, const Real* from, int64_t count) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(Real));
}

// A copy out of the cache that does not read the destination first.
template <typename Real>
inline void stream(Real* to, const Real* from, int64_t count) {
#if defined(__AVX512F__)
  using Vector = __m512i;
#elif defined(__AVX2__)
  using Vector = __m256i;
#endif
#if defined(__AVX512F__) || defined(__AVX2__)
  constexpr int64_t lanes = sizeof(Vector) / sizeof(Real);
  int64_t j = 0;
  for (; j < count && reinterpret_cast<uintptr_t>(to + j) % sizeof(Vector); ++j) to[j] = from[j];
  for (; j + lanes <= count; j += lanes) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + j), _mm512_loadu_si512(from + j));
#else
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + j),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + j)));
#endif
  }
  for (; j < count; ++j) to[j] = from[j];
#else
  copy(to, from, count);
#endif
}

inline void stream_fence() {
#if defined(__AVX512F__) || defined(__AVX2__)
  _mm_sfence();
#endif
}

// The next row of an operand lies a stride away, on another page: fetch it before it is asked for.
template <typename Real>
inline void prefetch(const Real* from, int64_t count) {
#if defined(__GNUC__)
  constexpr int64_t line = 64 / sizeof(Real);
  for (int64_t j = 0; j < count; j += line) __builtin_prefetch(from + j, 0, 2);
#endif
}

template <H h, G g, typename Real>
void forward_tile(const Forward<Real>& p, const Tile& tile, bool streaming) {
  constexpr int64_t width = tile_width<Real>();
  alignas(64) Real s[width], y[width], decay[width], bias[width];
  const int64_t m = p.shape.b * p.shape.n;
  const Real slope = Real(p.rule.slope), gate = p.rule.gate ? Real(1) : Real(0);
  const Real amount = Real(p.rule.amount);
  copy(s, p.s0 + tile.begin, tile.width);
  copy(y, p.y0 + tile.begin, tile.width);
  fill_parameter(decay, p.decay, tile);
  fill_parameter(bias, p.bias, tile);
  auto put = streaming ? stream<Real> : copy<Real>;
  for (int64_t t = 0; t < p.shape.t; ++t) {
    tile.each([&](const Segment& part) {
      const Real* drive =
          p.drive.data + t * p.drive.t + part.row * p.drive.b + part.column;
      if (t + 1 < p.shape.t) prefetch(drive + p.drive.t, part.length);
      Real *s_ = s + part.at, *y_ = y + part.at;
      const Real *decay_ = decay + part.at, *bias_ = bias + part.at;
#pragma omp simd
      for (int64_t j = 0; j < part.length; ++j) {
        Real kept = decay_[j] * (s_[j] * (Real(1) - gate * y_[j]));
        Real u = (drive[j] + kept) - amount * y_[j];
        Real next = apply_g<g>(u, slope);
        s_[j] = next;
        y_[j] = output<h>(next + bias_[j]);
      }
    });
    put(p.y + t * m + tile.begin, y, tile.width);
    if (p.s_all) put(p.s_all + t * m + tile.begin, s, tile.width);
  }
  copy(p.s_last + tile.begin, s, tile.width);
}

// What a tile carries backwards through time.
template <typename Real>
struct Adjoint {
  static constexpr int64_t width = tile_width<Real>();
  alignas(64) Real s[width], y[width];             // dL/ds_t and dL/dy_t that come from step t + 1
  alignas(64) Real decay[width], bias[width];      // sums over time
  alignas(64) Real output[width];                  // y_t, recomputed from s_t
};

template <H h, G g, bool first, typename Real>
inline void backward_step(const Backward<Real>& p, const Segment& part, Adjoint<Real>& adjoint,
                          const Real* decay, const Real* bias, const Real* grad_y, const Real* s,
                          const Real* s_prev, const Real* y0, Real* grad_drive) {
  const Real slope = Real(p.rule.slope), gate = p.rule.gate ? Real(1) : Real(0);
  const Real amount = Real(p.rule.amount), height = Real(p.rule.height);
  const Real inverse_width = Real(1.0 / p.rule.width);
  Real *gs = adjoint.s + part.at, *gy = adjoint.y + part.at, *out = adjoint.output + part.at;
  Real *g_decay = adjoint.decay + part.at, *g_bias = adjoint.bias + part.at;
#pragma omp simd
  for (int64_t j = 0; j < part.length; ++j) {
    Real x = s[j] + bias[j];
    Real y_prev = first ? y0[j] : output<h>(s_prev[j] + bias[j]);
    Real dx = (grad_y[j] + gy[j]) * slope_h<h>(x, out[j], inverse_width, height);
    Real du = (gs[j] + dx) * slope_g<g>(s[j], slope);
    Real keep = Real(1) - gate * y_prev;
    Real through = du * decay[j];
    g_bias[j] += dx;
    g_decay[j] += du * (s_prev[j] * keep);
    grad_drive[j] = du;
    gs[j] = through * keep;
    gy[j] = -gate * (through * s_prev[j]) - amount * du;
    out[j] = y_prev;
  }
}

template <H h, G g, typename Real>
void backward_tile(const Backward<Real>& p, const Tile& tile, bool streaming) {
  constexpr int64_t width = tile_width<Real>();
  Adjoint<Real> adjoint;
  alignas(64) Real decay[width], bias[width], row[width];
  alignas(64) static const Real zeros[width] = {};
  const int64_t m = p.shape.b * p.shape.n, bytes = tile.width * sizeof(Real);
  std::memset(adjoint.y, 0, bytes);
  std::memset(adjoint.decay, 0, bytes);
  std::memset(adjoint.bias, 0, bytes);
  std::memset(adjoint.s, 0, bytes);
  if (p.grad_s_last) copy(adjoint.s, p.grad_s_last + tile.begin, tile.width);
  fill_parameter(decay, p.decay, tile);
  fill_parameter(bias, p.bias, tile);
  auto put = streaming ? stream<Real> : copy<Real>;
  if (p.shape.t > 0) {
    const Real* s = p.s_all + (p.shape.t - 1) * m + tile.begin;
#pragma omp simd
    for (int64_t j = 0; j < tile.width; ++j) adjoint.output[j] = output<h>(s[j] + bias[j]);
  }
  for (int64_t t = p.shape.t - 1; t >= 0; --t) {
    const Real* s = p.s_all + t * m + tile.begin;
    const Real* s_prev = t ? s - m : p.s0 + tile.begin;
    if (t > 1) prefetch(s_prev - m, tile.width);
    tile.each([&](const Segment& part) {
      const Real* grad_y = zeros;
      if (p.grad_y.data) {
        grad_y = p.grad_y.data + t * p.grad_y.t + part.row * p.grad_y.b + part.column;
        if (t) prefetch(grad_y - p.grad_y.t, part.length);
      }
      auto run = t ? backward_step<h, g, false, Real> : backward_step<h, g, true, Real>;
      run(p, part, adjoint, decay + part.at, bias + part.at, grad_y, s + part.at, s_prev + part.at,
          p.y0 + tile.begin + part.at, row + part.at);
    });
    put(p.grad_drive + t * m + tile.begin, row, tile.width);
  }
  copy(p.grad_s0 + tile.begin, adjoint.s, tile.width);
  copy(p.grad_y0 + tile.begin, adjoint.y, tile.width);
  copy(p.grad_decay + tile.begin, adjoint.decay, tile.width);
  copy(p.grad_bias + tile.begin, adjoint.bias, tile.width);
}

// Cuts (B, N) into tiles, even among the threads and no wider than the cache allows.
template <typename Real, typename Run>
void over_tiles(const Shape& shape, bool flat, int threads, Run&& run) {
  const int64_t m = shape.b * shape.n;
  if (m == 0) return;
  if (shape.t * m < kSerialWork || threads < 1) threads = 1;
  constexpr int64_t line = 64 / sizeof(Real);
  int64_t width = (m + threads - 1) / threads;
  width = (width + line - 1) / line * line;
  if (width > tile_width<Real>()) width = tile_width<Real>();
  const int64_t tiles = (m + width - 1) / width;
  const bool streaming = shape.t * m * int64_t(sizeof(Real)) > kStreamBytes;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t begin = i * width;
      run(Tile{begin, m - begin < width ? m - begin : width, shape.n, flat}, streaming);
    }
    if (streaming) stream_fence();
  }
}

// From run-time values to template arguments.
template <typename Action>
void with_g(G g, Action&& action) {
  switch (g) {
    case G::piecewise: return action.template operator()<G::piecewise>();
    case G::relu: return action.template operator()<G::relu>();
    case G::elu: return action.template operator()<G::elu>();
  }
}

template <typename Real>
struct RunForward {
  const Forward<Real>& p;
  template <G g>
  void operator()() const {
    auto tile = p.rule.h == H::sigmoid ? forward_tile<H::sigmoid, g, Real>
                                       : forward_tile<H::window, g, Real>;  // any step will do
    over_tiles<Real>(p.shape, p.drive.b == p.shape.n, p.threads,
                     [&](const Tile& t, bool streaming) { tile(p, t, streaming); });
  }
};

template <typename Real>
struct RunBackward {
  const Backward<Real>& p;
  template <G g>
  void operator()() const {
    using Function = void (*)(const Backward<Real>&, const Tile&, bool);
    static constexpr Function tiles[] = {
        backward_tile<H::sigmoid, g, Real>,      backward_tile<H::tanh_prime, g, Real>,
        backward_tile<H::window, g, Real>,       backward_tile<H::triangle, g, Real>,
        backward_tile<H::fast_sigmoid, g, Real>, backward_tile<H::arctan, g, Real>,
        backward_tile<H::sigmoid_prime, g, Real>};
    auto tile = tiles[static_cast<int>(p.rule.h)];
    over_tiles<Real>(p.shape, p.grad_y.data && p.grad_y.b == p.shape.n, p.threads,
                     [&](const Tile& t, bool streaming) { tile(p, t, streaming); });
  }
};

}  // namespace

void forward(const Forward<float>& p) { with_g(p.rule.g, RunForward<float>{p}); }
void forward(const Forward<double>& p) { with_g(p.rule.g, RunForward<double>{p}); }
void backward(const Backward<float>& p) { with_g(p.rule.g, RunBackward<float>{p}); }
void backward(const Backward<double>& p) { with_g(p.rule.g, RunBackward<double>{p}); }

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
