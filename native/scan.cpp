// The scan of neurons that nothing couples, compiled once per instruction set (SPIKEBRIDGE_ISA).
//
// (B, N) is cut into tiles whose state stays in the nearest caches; each thread carries its
// tiles through all of time, so that every (T, B, N) tensor moves through memory once and no
// thread waits for another.  Results do not depend on the number of threads.
#include "units.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace spikebridge {
namespace SPIKEBRIDGE_ISA {
namespace {

constexpr int64_t kTileBytes = 16384;
constexpr int64_t kPiece = 256;  // neurons computed between two stores
constexpr int kSteps = 4;        // time steps between which their state stays in registers
constexpr int64_t kSerialWork = 16384;             // unit-steps below which one thread is faster
constexpr int64_t kStreamBytes = 4 * 1024 * 1024;  // outputs larger than this bypass the cache

template <typename Real>
constexpr int64_t tile_width() {
  return kTileBytes / static_cast<int64_t>(sizeof(Real));
}

// The part of one row of B that lies in a tile.
struct Segment {
  int64_t row, column, at, length;  // at: offset in the tile
};

struct Tile {
  int64_t begin, width, n;
  bool flat;  // rows of the operand follow one another without a gap

  // In short pieces, so that fetching the next step, computing this one and storing it overlap.
  template <typename Do>
  inline void each(Do&& action) const {
    int64_t row = begin / n, column = begin % n;
    for (int64_t at = 0; at < width;) {
      int64_t length = width - at < kPiece ? width - at : kPiece;
      if (!flat && n - column < length) length = n - column;
      action(Segment{row, column, at, length});
      at += length;
      column += length;
      if (!flat && column == n) {
        column = 0;
        ++row;
      }
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

template <typename Any>
inline void copy(Any* to, const Any* from, int64_t count) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(Any));
}

// A copy out of the cache that does not read the destination first.
template <typename Any>
inline void stream(Any* to, const Any* from, int64_t count) {
#if defined(__AVX512F__)
  using Vector = __m512i;
#elif defined(__AVX2__)
  using Vector = __m256i;
#endif
#if defined(__AVX512F__) || defined(__AVX2__)
  constexpr int64_t lanes = sizeof(Vector) / sizeof(Any);
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

// What a neuron is given beside its drives and last output.  A loop that sets or copies a whole structure,
// or has an array filled two calls deep, is not vectorised: hence a macro.
#define SPIKEBRIDGE_GIVE(in, at)              \
  typename U::template In<Real> in;           \
  in.decay = decay[at];                       \
  in.bias = bias[at];                         \
  if constexpr (U::more > 0) get(in.own, own + (at), tile_width<Real>())

// The parameters of a tile, (N) each in memory.
template <class U, typename Real>
struct Parameters {
  static constexpr int64_t width = tile_width<Real>();
  alignas(64) Real decay[width], bias[width], own[at_least_one(U::more) * width];
  template <class Operands>
  Parameters(const Operands& p, const Tile& tile) {
    fill_parameter(decay, p.decay, tile);
    fill_parameter(bias, p.bias, tile);
    for (int64_t i = 0; i < U::more; ++i) fill_parameter(own + i * width, p.own + i * p.shape.n, tile);
  }
};

// `steps` time steps of one piece: what goes from one to the next stays in registers between them.
template <int steps, class U, H h, G g, typename Io, typename Real>
inline void forward_piece(const Constants<Real>& c, int64_t length, int64_t n, const Io* drive,
                          int64_t stride, const Real* decay, const Real* bias, const Real* own, Real* s,
                          Real* y, Io* to_y, Real* to_s) {
#pragma omp simd
  for (int64_t j = 0; j < length; ++j) {
    Real s_[U::states], y_ = y[j];
    get(s_, s + j, tile_width<Real>());
    SPIKEBRIDGE_GIVE(in, j);
#pragma GCC unroll 4
    for (int k = 0; k < steps; ++k) {
      load_all(in.drive, drive + k * stride + j, n);
      in.y = in.by = y_;
      U::template step<h, g>(c, in, s_, y_);
      store(to_y[k * kPiece + j], y_);
      put(s_, to_s + k * U::states * kPiece + j, kPiece);
    }
    put(s_, s + j, tile_width<Real>());
    y[j] = y_;
  }
}

template <class U, H h, G g, typename Io, typename Real>
void forward_tile(const Forward<Io, Real>& p, const Tile& tile, bool streaming) {
  constexpr int64_t width = tile_width<Real>(), states = U::states;
  alignas(64) Real s[states * width], y[width];
  alignas(64) Io y_rows[kSteps * kPiece];
  alignas(64) Real s_rows[kSteps * states * kPiece];
  const int64_t n = p.shape.n, m = p.shape.b * n;
  const Constants<Real> c(p.rule);
  const Parameters<U, Real> own(p, tile);
  for (int64_t i = 0; i < states; ++i) copy(s + i * width, p.s0 + i * m + tile.begin, tile.width);
  copy(y, p.y0 + tile.begin, tile.width);
  auto put_y = streaming ? stream<Io> : copy<Io>;
  auto put_s = streaming ? stream<Real> : copy<Real>;
  for (int64_t t = 0, steps = 0; t < p.shape.t; t += steps) {
    steps = p.shape.t - t >= kSteps ? kSteps : 1;
    auto run = steps == kSteps ? forward_piece<kSteps, U, h, g, Io, Real>
                               : forward_piece<1, U, h, g, Io, Real>;
    tile.each([&](const Segment& part) {
      const Io* drive = p.drive.data + t * p.drive.t + part.row * p.drive.b + part.column;
      run(c, part.length, n, drive, p.drive.t, own.decay + part.at, own.bias + part.at,
          own.own + part.at, s + part.at, y + part.at, y_rows, s_rows);
      const int64_t at = tile.begin + part.at;
      for (int64_t k = 0; k < steps; ++k)
        put_y(p.y + (t + k) * m + at, y_rows + k * kPiece, part.length);
      for (int64_t k = 0; p.s_all && k < steps * states; ++k)
        put_s(p.s_all + (t * states + k) * m + at, s_rows + k * kPiece, part.length);
    });
  }
  for (int64_t i = 0; i < states; ++i)
    copy(p.s_last + i * m + tile.begin, s + i * width, tile.width);
  copy(p.y_last + tile.begin, y, tile.width);
}

// What a tile carries backwards through time.
template <class U, typename Real>
struct Adjoint {
  static constexpr int64_t width = tile_width<Real>();
  // dL/ds_t and dL/dy_t that come from step t + 1
  alignas(64) Real s[U::states * width], y[width];
  alignas(64) Real decay[width], bias[width], own[at_least_one(U::more) * width];  // sums over time
  alignas(64) Real output[width];  // y_t, recomputed from s_t
};

// What goes back through `steps` steps reads these; pointers to the last of the steps.
template <typename Io, typename Real>
struct Seen {
  const Io *grad_y, *drive;
  int64_t grad_y_stride, drive_stride, n, m;
  const Real *s, *s_prev, *y0;  // of the last of these steps, of the one before, of the first of all
};

template <int steps, bool first, class U, H h, G g, typename Io, typename Real>
inline void backward_piece(const Constants<Real>& c, int64_t length, int64_t at,
                           Adjoint<U, Real>& adjoint, const Parameters<U, Real>& parameters,
                           const Seen<Io, Real>& seen, Io* grad_drive) {
  constexpr int64_t width = tile_width<Real>();
  Real *ds = adjoint.s + at, *dy = adjoint.y + at, *out = adjoint.output + at;
  Real *d_decay = adjoint.decay + at, *d_bias = adjoint.bias + at, *d_own = adjoint.own + at;
  const Real *decay = parameters.decay + at, *bias = parameters.bias + at, *own = parameters.own + at;
  const Io *grad_y = seen.grad_y, *drive = seen.drive;
  const Real *s = seen.s, *s_prev = seen.s_prev, *y0 = seen.y0;
  const int64_t m = seen.m, n = seen.n, stride = seen.grad_y_stride, drive_stride = seen.drive_stride;
#pragma omp simd
  for (int64_t j = 0; j < length; ++j) {
    typename U::template Back<Real> flow;
    get(flow.s, ds + j, width);
    flow.y = dy[j];
    flow.decay = d_decay[j];
    flow.bias = d_bias[j];
    if constexpr (U::more > 0) get(flow.own, d_own + j, width);
    Real out_ = out[j], now[U::states], before[U::states];
    get(now, s + j, m);
    SPIKEBRIDGE_GIVE(in, j);     // at this step
    SPIKEBRIDGE_GIVE(prior, j);  // at the one before
    if constexpr (U::reads) load_all(in.drive, drive + j, n);
#pragma GCC unroll 4
    for (int k = 0; k < steps; ++k) {
      get(before, s_prev + j - k * U::states * m, m);
      if constexpr (U::reads && !first) load_all(prior.drive, drive + j - (k + 1) * drive_stride, n);
      const Real y_prev = first ? y0[j] : U::template output_of<h>(c, prior, before);
      in.y = in.by = y_prev;
      U::template adjoint<h, g>(c, in, Real(load(grad_y[j - k * stride])), out_, now, before, flow);
      flow.y = flow.by + flow.y;
      store_all(flow.drive, grad_drive + k * U::drives * kPiece + j, kPiece);
      if constexpr (h == H::sigmoid) out_ = y_prev;  // the slope of a spike does not read its output
      copy_states(now, before, std::make_index_sequence<U::states>());
      if constexpr (U::reads)
        copy_states(in.drive, prior.drive, std::make_index_sequence<U::drives>());
    }
    put(flow.s, ds + j, width);
    dy[j] = flow.y;
    if constexpr (h == H::sigmoid) out[j] = out_;
    d_decay[j] = flow.decay;
    d_bias[j] = flow.bias;
    if constexpr (U::more > 0) put(flow.own, d_own + j, width);
  }
}

// The outputs of the last step of all.
template <class U, H h, typename Io, typename Real>
void last_outputs(const Backward<Io, Real>& p, const Tile& tile, const Constants<Real>& c,
                  const Parameters<U, Real>& parameters, Real* to) {
  const int64_t n = p.shape.n, m = p.shape.b * n, t = p.shape.t - 1;
  const Real* s = p.s_all + t * U::states * m + tile.begin;
  tile.each([&](const Segment& part) {
    const Io* drive = nullptr;
    if constexpr (U::reads) drive = p.drive.data + t * p.drive.t + part.row * p.drive.b + part.column;
    const int64_t at = part.at;
    const Real *decay = parameters.decay + at, *bias = parameters.bias + at, *own = parameters.own + at;
#pragma omp simd
    for (int64_t j = 0; j < part.length; ++j) {
      Real states[U::states];
      get(states, s + at + j, m);
      SPIKEBRIDGE_GIVE(in, j);
      if constexpr (U::reads) load_all(in.drive, drive + j, n);
      to[at + j] = U::template output_of<h>(c, in, states);
    }
  });
}

template <class U, H h, G g, typename Io, typename Real>
void backward_tile(const Backward<Io, Real>& p, const Tile& tile, bool streaming) {
  constexpr int64_t width = tile_width<Real>(), states = U::states;
  Adjoint<U, Real> adjoint;
  alignas(64) Io rows[kSteps * U::drives * kPiece];
  alignas(64) static const Io zeros[kPiece] = {};
  const int64_t n = p.shape.n, m = p.shape.b * n, bytes = tile.width * sizeof(Real);
  const Constants<Real> c(p.rule);
  const Parameters<U, Real> own(p, tile);
  std::memset(adjoint.y, 0, bytes);
  std::memset(adjoint.decay, 0, bytes);
  std::memset(adjoint.bias, 0, bytes);
  for (int64_t i = 0; i < U::more; ++i) std::memset(adjoint.own + i * width, 0, bytes);
  for (int64_t i = 0; i < states; ++i) {
    std::memset(adjoint.s + i * width, 0, bytes);
    if (p.grad_s_last)
      copy(adjoint.s + i * width, p.grad_s_last + i * m + tile.begin, tile.width);
  }
  if (p.grad_y_last) copy(adjoint.y, p.grad_y_last + tile.begin, tile.width);
  auto put_row = streaming ? stream<Io> : copy<Io>;
  if (p.shape.t > 0) last_outputs<U, h>(p, tile, c, own, adjoint.output);
  for (int64_t t = p.shape.t - 1, steps = 0; t >= 0; t -= steps) {
    steps = t >= kSteps ? kSteps : 1;  // the first step of all begins at s0 and goes alone
    auto run = t == 0            ? backward_piece<1, true, U, h, g, Io, Real>
               : steps == kSteps ? backward_piece<kSteps, false, U, h, g, Io, Real>
                                 : backward_piece<1, false, U, h, g, Io, Real>;
    const Real* s = p.s_all + t * states * m + tile.begin;
    const Real* s_prev = t ? s - states * m : p.s0 + tile.begin;
    tile.each([&](const Segment& part) {
      Seen<Io, Real> seen{zeros, nullptr, 0, p.drive.t, n, m,
                          s + part.at, s_prev + part.at, p.y0 + tile.begin + part.at};
      if (p.grad_y.data) {
        seen.grad_y = p.grad_y.data + t * p.grad_y.t + part.row * p.grad_y.b + part.column;
        seen.grad_y_stride = p.grad_y.t;
      }
      if constexpr (U::reads)
        seen.drive = p.drive.data + t * p.drive.t + part.row * p.drive.b + part.column;
      run(c, part.length, part.at, adjoint, own, seen, rows);
      for (int64_t k = 0; k < steps * U::drives; ++k) {
        const int64_t row = (t - k / U::drives) * m + part.row * n;
        put_row(p.grad_drive + row * U::drives + k % U::drives * n + part.column, rows + k * kPiece,
                part.length);
      }
    });
  }
  for (int64_t i = 0; i < states; ++i)
    copy(p.grad_s0 + i * m + tile.begin, adjoint.s + i * width, tile.width);
  copy(p.grad_y0 + tile.begin, adjoint.y, tile.width);
  copy(p.grad_decay + tile.begin, adjoint.decay, tile.width);
  copy(p.grad_bias + tile.begin, adjoint.bias, tile.width);
  for (int64_t i = 0; i < U::more; ++i)
    copy(p.grad_own + i * m + tile.begin, adjoint.own + i * width, tile.width);
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

template <typename Io, typename Real>
struct RunForward {
  const Forward<Io, Real>& p;
  template <class U, G g>
  void operator()() const {
    auto tile = p.rule.h == static_cast<int>(H::sigmoid) ? forward_tile<U, H::sigmoid, g, Io, Real>
                                                         : forward_tile<U, H::window, g, Io, Real>;  // any step will do
    over_tiles<Real>(p.shape, U::drives == 1 && p.drive.b == p.shape.n, p.threads,
                     [&](const Tile& t, bool streaming) { tile(p, t, streaming); });
  }
};

template <typename Io, typename Real>
struct RunBackward {
  const Backward<Io, Real>& p;
  template <class U, G g>
  void operator()() const {
    using Function = void (*)(const Backward<Io, Real>&, const Tile&, bool);
    static constexpr Function tiles[] = {
#define SPIKEBRIDGE_TILE(name, slope) , backward_tile<U, H::name, g, Io, Real>
        backward_tile<U, H::sigmoid, g, Io, Real> SPIKEBRIDGE_SURROGATES(SPIKEBRIDGE_TILE)};
#undef SPIKEBRIDGE_TILE
    auto tile = tiles[p.rule.h];
    const int64_t n = p.shape.n;
    const bool flat = U::drives == 1 && p.grad_y.data && p.grad_y.b == n && (!U::reads || p.drive.b == n);
    over_tiles<Real>(p.shape, flat, p.threads,
                     [&](const Tile& t, bool streaming) { tile(p, t, streaming); });
  }
};

}  // namespace

// The name of a code of H; null beyond the last.
const char* surrogate(int code) {
#define SPIKEBRIDGE_NAME(name, slope) , #name
  static const char* const names[] = {"sigmoid" SPIKEBRIDGE_SURROGATES(SPIKEBRIDGE_NAME), nullptr};
#undef SPIKEBRIDGE_NAME
  return names[code];
}

UnitName unit_name(int code) {
#define SPIKEBRIDGE_NAME(U, name) {name, U::states, U::drives, U::more, U::reads, U::every_g},
  static const UnitName names[] = {SPIKEBRIDGE_UNITS(SPIKEBRIDGE_NAME){}};
#undef SPIKEBRIDGE_NAME
  return names[code];
}

#define SPIKEBRIDGE_DEFINE(Io, Real)                                                             \
  void forward(const Forward<Io, Real>& p) { with_rule(p.rule, RunForward<Io, Real>{p}); }        \
  void backward(const Backward<Io, Real>& p) { with_rule(p.rule, RunBackward<Io, Real>{p}); }
SPIKEBRIDGE_DEFINE(float, float)
SPIKEBRIDGE_DEFINE(double, double)
SPIKEBRIDGE_DEFINE(Bf16, float)

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
