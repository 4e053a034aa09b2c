// The scan of layers whose neurons are coupled, by a recurrent matrix, by lateral inhibition or both;
// compiled once per instruction set (SPIKEBRIDGE_ISA).
//
// A thread owns some rows of the batch for all of time, so no thread waits for another.  Forward,
// spiking units add up only the matrix rows of the neurons that fired; soft units, and spiking
// ones where that is cheaper, use a dense product of the thread's rows.  Both add the same numbers
// in the same order.  The gradient of the matrix is one product over all steps, left to torch.
#include <cstdlib>
#include <limits>
#include <type_traits>

#include "product.h"
#include "units.h"

namespace spikebridge {
namespace SPIKEBRIDGE_ISA {
namespace {

constexpr int64_t kSerialWork = 65536;  // multiply-adds of a step below which one thread is faster
constexpr int64_t kSerialSteps = 16384;  // the same for unit-steps without a matrix

// Memory that starts on a cache line, filled with zeros: padding stays zero.
template <typename Real>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(Real) + 63) / 64 * 64;
    data_ = static_cast<Real*>(std::aligned_alloc(64, bytes ? bytes : 64));
    if (data_) std::memset(static_cast<void*>(data_), 0, bytes);
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Real* get() const { return data_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  Real* data_;
};

template <bool spiking, typename Real>
void add_recurrent(Real* to, const Real* y, const Real* matrix, int32_t* list, int64_t rows,
                   int64_t n, int64_t width, bool binary) {
  if constexpr (spiking) {
    int64_t total = 0;
    for (int64_t i = 0; i < rows * width; ++i) total += y[i] != Real(0);
    if (binary && total * 4 <= rows * n) {
      for (int64_t r = 0; r < rows; ++r) {
        int64_t count = 0;
        for (int64_t k = 0; k < n; ++k) {
          list[count] = static_cast<int32_t>(k);
          count += y[r * width + k] != Real(0);
        }
        add_rows(to + r * width, list, count, matrix, n, width);
      }
      return;
    }
  }
  multiply(to, y, matrix, rows, n, width);
}

// The largest of the outputs of a layer, NaN where one of them is, and how many have it.
template <typename Real>
struct Largest {
  Real value, count;

  Largest(Real value, Real count) : value(value), count(count) {}

  Largest(const Real* y, int64_t n) {
    constexpr int64_t lanes = 16;
    Real most[lanes], missing[lanes], among[lanes];
    for (int64_t l = 0; l < lanes; ++l) {
      most[l] = -std::numeric_limits<Real>::infinity();
      missing[l] = among[l] = Real(0);
    }
    each(y, n, lanes, [&](int64_t l, Real x) {
      most[l] = x > most[l] ? x : most[l];
      missing[l] = x == x ? missing[l] : x;
    });
    value = most[0];
    for (int64_t l = 1; l < lanes; ++l) value = most[l] > value ? most[l] : value;
    for (int64_t l = 0; l < lanes; ++l) value += missing[l];
    each(y, n, lanes, [&](int64_t l, Real x) { among[l] += x == value ? Real(1) : Real(0); });
    count = Real(0);
    for (int64_t l = 0; l < lanes; ++l) count += among[l];
  }

 private:
  template <typename Do>
  static inline void each(const Real* y, int64_t n, int64_t lanes, Do&& action) {
    int64_t j = 0;
    for (; j + lanes <= n; j += lanes)
#pragma omp simd
      for (int64_t l = 0; l < lanes; ++l) action(l, y[j + l]);
    for (int64_t l = 0; j < n; ++j, ++l) action(l, y[j]);
  }
};

// Rows of the batch as a thread has them, in rows of `width`: what it carries for each neuron.
template <typename Real>
inline void spread(Real* to, const Real* from, int64_t rows, int64_t n, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * width, from + r * n, n * sizeof(Real));
}

template <typename Real>
inline void gather(Real* to, const Real* from, int64_t rows, int64_t n, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * n, from + r * width, n * sizeof(Real));
}

// What neuron j is given beside its drives and last output.  A loop that sets or copies a whole structure,
// or has an array filled two calls deep, is not vectorised: hence a macro.
#define SPIKEBRIDGE_GIVE(in)          \
  typename U::template In<Real> in;   \
  in.decay = decay[j];                \
  in.bias = bias[j];                  \
  if constexpr (U::more > 0) get(in.own, own + j, n)

// What the neurons of a row of the batch were given at a step, where the way back reads it.
template <class U, class Operands>
SPIKEBRIDGE_INLINE auto drives_of(const Operands& p, int64_t t, int64_t row) {
  return U::reads ? p.seen + (t * p.shape.b + row) * U::drives * p.shape.n : nullptr;
}

template <class U, H h, G g, typename Io, typename Real>
bool forward_rows(const Forward<Io, Real>& p, const Real* matrix, int64_t first, int64_t rows) {
  constexpr int64_t states = U::states;
  const int64_t n = p.shape.n, m = p.shape.b * n, width = padded<Real>(n), all = rows * width;
  const int64_t fed = matrix ? p.fed : 1;
  Buffer<Real> s(states * all), y(all), sum(fed * all);
  Buffer<int32_t> list(n + 1);
  if (!(s && y && sum && list)) return false;
  const Constants<Real> c(p.rule);
  const Real *decay = p.decay, *bias = p.bias;
  [[maybe_unused]] const Real* own = p.own;
  for (int64_t i = 0; i < states; ++i)
    spread(s.get() + i * all, p.s0 + i * m + first * n, rows, n, width);
  spread(y.get(), p.y0 + first * n, rows, n, width);
  const bool lateral = p.rule.lateral;
  const Real shared = lateral ? Real(1) : Real(0);  // a bool would not be vectorised
  for (int64_t t = 0; t < p.shape.t; ++t) {
    if (matrix) {
      std::memset(sum.get(), 0, fed * all * sizeof(Real));
      for (int64_t i = 0; i < fed; ++i)
        add_recurrent<h != H::sigmoid>(sum.get() + i * all, y.get(), matrix + i * n * width, list.get(),
                                       rows, n, width, t > 0);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const Io* drive = p.drive.data + t * p.drive.t + (first + r) * p.drive.b;
      const int64_t at = (first + r) * n;
      Io* to_y = p.y + t * m + at;
      Real* seen = p.seen ? p.seen + (t * p.shape.b + first + r) * U::drives * n : nullptr;
      Real *s_ = s.get() + r * width, *y_ = y.get() + r * width;
      const Real* sum_ = sum.get() + r * width;
      const Real most = lateral ? Largest<Real>(y_, n).value : Real(0);
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        Real now[states], y_own = y_[j];
        get(now, s_ + j, all);
        SPIKEBRIDGE_GIVE(in);
        load_all(in.drive, drive + j, n);
        in.drive[0] += sum_[j];
        for (int i = 1; i < U::drives; ++i) in.drive[i] += fed > 1 ? sum_[i * all + j] : Real(0);
        if constexpr (U::reads)
          if (seen) put(in.drive, seen + j, n);
        in.y = y_own;
        in.by = shared > Real(0) ? most : y_own;
        U::template step<h, g>(c, in, now, y_own);
        put(now, s_ + j, all);
        y_[j] = y_own;
        store(to_y[j], y_own);
      }
      for (int64_t i = 0; p.s_all && i < states; ++i)
        std::memcpy(p.s_all + (t * states + i) * m + at, s_ + i * all, n * sizeof(Real));
    }
  }
  for (int64_t i = 0; i < states; ++i)
    gather(p.s_last + i * m + first * n, s.get() + i * all, rows, n, width);
  gather(p.y_last + first * n, y.get(), rows, n, width);
  return true;
}

template <class U, H h, G g, typename Io, typename Real>
bool backward_rows(const Backward<Io, Real>& p, const Real* matrix, int64_t first, int64_t rows) {
  constexpr int64_t states = U::states;
  const int64_t n = p.shape.n, m = p.shape.b * n, width = padded<Real>(n), all = rows * width;
  constexpr int64_t drives = U::drives, more = U::more;
  const int64_t fed = matrix ? p.fed : 1;
  Buffer<Real> ds(states * all), dy(all), du(drives * all), out(all), d_decay(all), d_bias(all);
  Buffer<Real> d_own(more * all);
  Buffer<Real> y_before(n);
  Buffer<Io> zeros(n);
  if (!(ds && dy && du && out && d_decay && d_bias && d_own && y_before && zeros)) return false;
  const Constants<Real> c(p.rule);
  const Real *decay = p.decay, *bias = p.bias;
  [[maybe_unused]] const Real* own = p.own;
  for (int64_t i = 0; p.grad_s_last && i < states; ++i)
    spread(ds.get() + i * all, p.grad_s_last + i * m + first * n, rows, n, width);
  if (p.grad_y_last) spread(dy.get(), p.grad_y_last + first * n, rows, n, width);
  for (int64_t r = 0; p.shape.t && r < rows; ++r) {
    const Real* s = p.s_all + (p.shape.t - 1) * states * m + (first + r) * n;
    const Real* drive = drives_of<U>(p, p.shape.t - 1, first + r);
    for (int64_t j = 0; j < n; ++j) {
      Real now[states];
      get(now, s + j, m);
      SPIKEBRIDGE_GIVE(in);
      if constexpr (U::reads) get(in.drive, drive + j, n);
      out.get()[r * width + j] = U::template output_of<h>(c, in, now);
    }
  }
  const bool lateral = p.rule.lateral;
  const Real shared = lateral ? Real(1) : Real(0);  // a bool would not be vectorised
  for (int64_t t = p.shape.t - 1; t >= 0; --t) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = (first + r) * n;
      const Real* s = p.s_all + t * states * m + row;
      const Real* s_prev = t ? s - states * m : p.s0 + row;
      const Io* grad_y =
          p.grad_y.data ? p.grad_y.data + t * p.grad_y.t + (first + r) * p.grad_y.b : zeros.get();
      const Real* drive = drives_of<U>(p, t, first + r);
      const Real* earlier = t ? drives_of<U>(p, t - 1, first + r) : nullptr;
      Io* to = p.grad_drive + (t * p.shape.b + first + r) * drives * n;
      Real *ds_ = ds.get() + r * width, *dy_ = dy.get() + r * width, *du_ = du.get() + r * width;
      Real *out_ = out.get() + r * width, *dd = d_decay.get() + r * width;
      Real *db = d_bias.get() + r * width, *own_ = d_own.get() + r * width, *y_prev = y_before.get();
      if (t == 0) std::memcpy(y_prev, p.y0 + row, n * sizeof(Real));
      else
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) {
          Real before[states];
          get(before, s_prev + j, m);
          SPIKEBRIDGE_GIVE(in);
          if constexpr (U::reads) get(in.drive, earlier + j, n);
          y_prev[j] = U::template output_of<h>(c, in, before);
        }
      const Real nothing = 0;
      const Largest<Real> largest = lateral ? Largest<Real>(y_prev, n) : Largest<Real>(nothing, nothing);
      const Real most = largest.value;
      Real to_most = 0;  // dL/d of the largest output
#pragma omp simd reduction(+ : to_most)
      for (int64_t j = 0; j < n; ++j) {
        Real now[states], before[states];
        get(now, s + j, m);
        get(before, s_prev + j, m);
        typename U::template Back<Real> flow;
        get(flow.s, ds_ + j, all);
        flow.y = dy_[j];
        flow.decay = dd[j];
        flow.bias = db[j];
        if constexpr (more > 0) get(flow.own, own_ + j, all);
        SPIKEBRIDGE_GIVE(in);
        if constexpr (U::reads) get(in.drive, drive + j, n);
        in.y = y_prev[j];
        in.by = shared > Real(0) ? most : y_prev[j];
        U::template adjoint<h, g>(c, in, Real(load(grad_y[j])), out_[j], now, before, flow);
        put(flow.drive, du_ + j, all);
        store_all(flow.drive, to + j, n);
        put(flow.s, ds_ + j, all);
        if constexpr (more > 0) put(flow.own, own_ + j, all);
        dy_[j] = shared > Real(0) ? flow.y : flow.by + flow.y;
        to_most += flow.by;
        dd[j] = flow.decay;
        db[j] = flow.bias;
        if constexpr (h == H::sigmoid) out_[j] = y_prev[j];
      }
      if (lateral) {  // equal outputs share it, and NaN reaches the others too, as in torch
        const Real share = to_most / largest.count, none = share * Real(0);
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) dy_[j] += y_prev[j] == most ? share : none;
      }
    }
    for (int64_t i = 0; matrix && i < fed; ++i)
      multiply(dy.get(), du.get() + i * all, matrix + i * n * width, rows, n, width);
  }
  for (int64_t i = 0; i < states; ++i)
    gather(p.grad_s0 + i * m + first * n, ds.get() + i * all, rows, n, width);
  gather(p.grad_y0 + first * n, dy.get(), rows, n, width);
  gather(p.grad_decay + first * n, d_decay.get(), rows, n, width);
  gather(p.grad_bias + first * n, d_bias.get(), rows, n, width);
  for (int64_t i = 0; i < more; ++i)
    gather(p.grad_own + i * m + first * n, d_own.get() + i * all, rows, n, width);
  return true;
}

// Rows of the batch, even among the threads; false where memory ran out.
template <typename Real, typename Run>
bool over_rows(const Shape& shape, const Real* recurrent, int fed, bool transposed, int threads, Run&& run) {
  const int64_t n = shape.n, width = padded<Real>(n);
  if (shape.b == 0 || n == 0) return true;
  Buffer<Real> matrix(recurrent ? fed * n * width : 0);
  if (!matrix) return false;
  // (out, in): transposed, row k is what k sends
  for (int64_t i = 0; recurrent && i < fed; ++i)
    pack(matrix.get() + i * n * width, recurrent + i * n * n, n, transposed);
  const bool small = recurrent ? shape.b * n * n < kSerialWork
                               : shape.t * shape.b * n < kSerialSteps;
  if (small || threads < 1) threads = 1;
  if (threads > shape.b) threads = static_cast<int>(shape.b);
  const int64_t share = (shape.b + threads - 1) / threads;
  bool done = true;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1) reduction(&& : done)
  for (int64_t first = 0; first < shape.b; first += share)
    done = run(recurrent ? matrix.get() : nullptr, first, shape.b - first < share ? shape.b - first : share) && done;
  return done;
}

template <typename Io, typename Real>
struct RunForward {
  const Forward<Io, Real>& p;
  bool& done;
  template <class U, G g>
  void operator()() const {
    auto rows = p.rule.h == static_cast<int>(H::sigmoid) ? forward_rows<U, H::sigmoid, g, Io, Real>
                                                         : forward_rows<U, H::window, g, Io, Real>;
    done = over_rows<Real>(p.shape, p.recurrent, p.fed, true, p.threads,
                           [&](const Real* m, int64_t first, int64_t count) {
                             return rows(p, m, first, count);
                           });
  }
};

template <typename Io, typename Real>
struct RunBackward {
  const Backward<Io, Real>& p;
  bool& done;
  template <class U, G g>
  void operator()() const {
    using Function = bool (*)(const Backward<Io, Real>&, const Real*, int64_t, int64_t);
    static constexpr Function all[] = {
#define SPIKEBRIDGE_ROWS(name, slope) , backward_rows<U, H::name, g, Io, Real>
        backward_rows<U, H::sigmoid, g, Io, Real> SPIKEBRIDGE_SURROGATES(SPIKEBRIDGE_ROWS)};
#undef SPIKEBRIDGE_ROWS
    auto rows = all[p.rule.h];
    done = over_rows<Real>(p.shape, p.recurrent, p.fed, false, p.threads,
                           [&](const Real* m, int64_t first, int64_t count) {
                             return rows(p, m, first, count);
                           });
  }
};

}  // namespace

#define SPIKEBRIDGE_DEFINE(Io, Real)                        \
  bool recurrent_forward(const Forward<Io, Real>& p) {      \
    bool done = true;                                       \
    with_rule(p.rule, RunForward<Io, Real>{p, done});        \
    return done;                                            \
  }                                                         \
  bool recurrent_backward(const Backward<Io, Real>& p) {    \
    bool done = true;                                       \
    with_rule(p.rule, RunBackward<Io, Real>{p, done});       \
    return done;                                            \
  }
SPIKEBRIDGE_DEFINE(float, float)
SPIKEBRIDGE_DEFINE(double, double)
SPIKEBRIDGE_DEFINE(Bf16, float)

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
