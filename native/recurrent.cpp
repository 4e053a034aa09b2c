// The scan with a recurrent matrix inside, compiled once per instruction set (SPIKEBRIDGE_ISA).
//
// A thread owns some rows of the batch for all of time, so no thread waits for another.  Forward,
// spiking units add up only the matrix rows of the neurons that fired; soft units, and spiking
// ones where that is cheaper, use a dense product of the thread's rows.  Both add the same numbers
// in the same order.  The gradient of the matrix is one product over all steps, left to torch.
#include <cstdlib>

#include "pointwise.h"
#include "product.h"

namespace spikebridge {
namespace SPIKEBRIDGE_ISA {
namespace {

constexpr int64_t kSerialWork = 65536;  // multiply-adds of a step below which one thread is faster

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

template <H h, G g, typename Io, typename Real>
bool forward_rows(const Forward<Io, Real>& p, const Real* matrix, int64_t first, int64_t rows) {
  const int64_t n = p.shape.n, m = p.shape.b * n, width = padded<Real>(n);
  Buffer<Real> s(rows * width), y(rows * width), sum(rows * width);
  Buffer<int32_t> list(n + 1);
  if (!(s && y && sum && list)) return false;
  const Constants<Real> c(p.rule);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < n; ++j) {
      s.get()[r * width + j] = p.s0[(first + r) * n + j];
      y.get()[r * width + j] = p.y0[(first + r) * n + j];
    }
  for (int64_t t = 0; t < p.shape.t; ++t) {
    std::memset(sum.get(), 0, rows * width * sizeof(Real));
    add_recurrent<h != H::sigmoid>(sum.get(), y.get(), matrix, list.get(), rows, n, width, t > 0);
    for (int64_t r = 0; r < rows; ++r) {
      const Io* drive = p.drive.data + t * p.drive.t + (first + r) * p.drive.b;
      const int64_t at = t * m + (first + r) * n;
      Io* to_y = p.y + at;
      Real *s_ = s.get() + r * width, *y_ = y.get() + r * width;
      const Real *sum_ = sum.get() + r * width, *decay = p.decay, *bias = p.bias;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        step_forward<h, g>(c, Real(load(drive[j])) + sum_[j], decay[j], bias[j], s_[j], y_[j]);
        store(to_y[j], y_[j]);
      }
      if (p.s_all) std::memcpy(p.s_all + at, s_, n * sizeof(Real));
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(p.s_last + (first + r) * n, s.get() + r * width, n * sizeof(Real));
    std::memcpy(p.y_last + (first + r) * n, y.get() + r * width, n * sizeof(Real));
  }
  return true;
}

template <H h, G g, typename Io, typename Real>
bool backward_rows(const Backward<Io, Real>& p, const Real* matrix, int64_t first, int64_t rows) {
  const int64_t n = p.shape.n, m = p.shape.b * n, width = padded<Real>(n);
  Buffer<Real> ds(rows * width), dy(rows * width), du(rows * width), out(rows * width);
  Buffer<Real> d_decay(rows * width), d_bias(rows * width);
  Buffer<Io> zeros(n);
  if (!(ds && dy && du && out && d_decay && d_bias && zeros)) return false;
  const Constants<Real> c(p.rule);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < n; ++j) {
      if (p.grad_s_last) ds.get()[r * width + j] = p.grad_s_last[(first + r) * n + j];
      if (p.grad_y_last) dy.get()[r * width + j] = p.grad_y_last[(first + r) * n + j];
      if (p.shape.t) {
        const Real s = p.s_all[(p.shape.t - 1) * m + (first + r) * n + j];
        out.get()[r * width + j] = output<h>(s + p.bias[j]);
      }
    }
  for (int64_t t = p.shape.t - 1; t >= 0; --t) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = (first + r) * n;
      const Real *s = p.s_all + t * m + row, *s_prev = t ? s - m : p.s0 + row;
      const Io* grad_y =
          p.grad_y.data ? p.grad_y.data + t * p.grad_y.t + (first + r) * p.grad_y.b : zeros.get();
      const Real* y0 = p.y0 + row;
      Io* to = p.grad_drive + t * m + row;
      const Real *decay = p.decay, *bias = p.bias;
      Real *ds_ = ds.get() + r * width, *dy_ = dy.get() + r * width, *du_ = du.get() + r * width;
      Real *out_ = out.get() + r * width, *dd = d_decay.get() + r * width;
      Real* db = d_bias.get() + r * width;
      const bool start = t == 0;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        Real y_prev = output<h>(s_prev[j] + bias[j]);
        if (start) y_prev = y0[j];
        du_[j] = step_backward<h, g>(c, Real(load(grad_y[j])), s[j], s_prev[j], y_prev, decay[j],
                                     bias[j], ds_[j], dy_[j], out_[j], dd[j], db[j]);
        store(to[j], du_[j]);
      }
    }
    multiply(dy.get(), du.get(), matrix, rows, n, width);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = (first + r) * n, bytes = n * sizeof(Real);
    std::memcpy(p.grad_s0 + row, ds.get() + r * width, bytes);
    std::memcpy(p.grad_y0 + row, dy.get() + r * width, bytes);
    std::memcpy(p.grad_decay + row, d_decay.get() + r * width, bytes);
    std::memcpy(p.grad_bias + row, d_bias.get() + r * width, bytes);
  }
  return true;
}

// Rows of the batch, even among the threads; false where memory ran out.
template <typename Real, typename Run>
bool over_rows(const Shape& shape, const Real* recurrent, bool transposed, int threads, Run&& run) {
  const int64_t n = shape.n, width = padded<Real>(n);
  if (shape.b == 0 || n == 0) return true;
  Buffer<Real> matrix(n * width);
  if (!matrix) return false;
  pack(matrix.get(), recurrent, n, transposed);  // (out, in): transposed, row k is what k sends
  if (shape.b * n * n < kSerialWork || threads < 1) threads = 1;
  if (threads > shape.b) threads = static_cast<int>(shape.b);
  const int64_t share = (shape.b + threads - 1) / threads;
  bool done = true;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1) reduction(&& : done)
  for (int64_t first = 0; first < shape.b; first += share)
    done = run(matrix.get(), first, shape.b - first < share ? shape.b - first : share) && done;
  return done;
}

template <typename Io, typename Real>
struct RunForward {
  const Forward<Io, Real>& p;
  bool& done;
  template <G g>
  void operator()() const {
    auto rows = p.rule.h == static_cast<int>(H::sigmoid) ? forward_rows<H::sigmoid, g, Io, Real>
                                                         : forward_rows<H::window, g, Io, Real>;
    done = over_rows<Real>(p.shape, p.recurrent, true, p.threads,
                           [&](const Real* m, int64_t first, int64_t count) {
                             return rows(p, m, first, count);
                           });
  }
};

template <typename Io, typename Real>
struct RunBackward {
  const Backward<Io, Real>& p;
  bool& done;
  template <G g>
  void operator()() const {
    using Function = bool (*)(const Backward<Io, Real>&, const Real*, int64_t, int64_t);
    static constexpr Function all[] = {
#define SPIKEBRIDGE_ROWS(name, slope) , backward_rows<H::name, g, Io, Real>
        backward_rows<H::sigmoid, g, Io, Real> SPIKEBRIDGE_SURROGATES(SPIKEBRIDGE_ROWS)};
#undef SPIKEBRIDGE_ROWS
    auto rows = all[p.rule.h];
    done = over_rows<Real>(p.shape, p.recurrent, false, p.threads,
                           [&](const Real* m, int64_t first, int64_t count) {
                             return rows(p, m, first, count);
                           });
  }
};

}  // namespace

#define SPIKEBRIDGE_DEFINE(Io, Real)                        \
  bool recurrent_forward(const Forward<Io, Real>& p) {      \
    bool done = true;                                       \
    with_g(p.rule.g, RunForward<Io, Real>{p, done});        \
    return done;                                            \
  }                                                         \
  bool recurrent_backward(const Backward<Io, Real>& p) {    \
    bool done = true;                                       \
    with_g(p.rule.g, RunBackward<Io, Real>{p, done});       \
    return done;                                            \
  }
SPIKEBRIDGE_DEFINE(float, float)
SPIKEBRIDGE_DEFINE(double, double)
SPIKEBRIDGE_DEFINE(Bf16, float)

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
