// Sums of |w| in one pass, at the speed at which the weights arrive.
//
// Numbers of float32 are added in several lanes over short runs, and runs in double: the relative
// error stays below 1e-6 whatever the length, since nothing cancels.
// Compiled once per instruction set (SPIKEBRIDGE_ISA), so no inline function of the standard library
// is called: the linker would keep one copy of it for all.
#include "grapes_factors.h"

#include <stdlib.h>

#include <limits>

namespace spikebridge {
namespace SPIKEBRIDGE_ISA {
namespace {

constexpr int64_t kRun = 512;   // columns whose sum is taken in one go
constexpr int64_t kDeep = 32;   // rows, where sums go down the columns
constexpr int64_t kTile = 256;  // columns of which sums are held at a time
constexpr int64_t kThreaded = int64_t{1} << 18;  // numbers from which threads are worth their start

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline float size_of(float x) { return __builtin_fabsf(x); }
inline double size_of(double x) { return __builtin_fabs(x); }

// Four rows at once: one sum alone would wait for its last addition.
template <typename Real>
void across_four(const Real* w, int64_t columns, Real* out) {
  double total[4] = {0, 0, 0, 0};
  const Real *w1 = w + columns, *w2 = w1 + columns, *w3 = w2 + columns;
  for (int64_t begin = 0; begin < columns; begin += kRun) {
    const int64_t end = least(begin + kRun, columns);
    Real a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
    for (int64_t j = begin; j < end; ++j) {
      a += size_of(w[j]);
      b += size_of(w1[j]);
      c += size_of(w2[j]);
      d += size_of(w3[j]);
    }
    total[0] += a;
    total[1] += b;
    total[2] += c;
    total[3] += d;
  }
  for (int r = 0; r < 4; ++r) out[r] = static_cast<Real>(total[r]);
}

template <typename Real>
void across_one(const Real* w, int64_t columns, Real* out) {
  double total = 0;
  for (int64_t begin = 0; begin < columns; begin += kRun) {
    const int64_t end = least(begin + kRun, columns);
    Real a = 0;
#pragma omp simd reduction(+ : a)
    for (int64_t j = begin; j < end; ++j) a += size_of(w[j]);
    total += a;
  }
  *out = static_cast<Real>(total);
}

// Sums of `width` columns, at most a tile of them.
template <typename Real>
void down(const Real* w, int64_t rows, int64_t columns, int64_t width, Real* out) {
  double total[kTile] = {};
  Real part[kTile];
  for (int64_t begin = 0; begin < rows; begin += kDeep) {
    for (int64_t j = 0; j < width; ++j) part[j] = 0;
    for (int64_t i = begin; i < least(begin + kDeep, rows); ++i) {
      const Real* row = w + i * columns;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) part[j] += size_of(row[j]);
    }
    for (int64_t j = 0; j < width; ++j) total[j] += part[j];
  }
  for (int64_t j = 0; j < width; ++j) out[j] = static_cast<Real>(total[j]);
}

// out (rows), or (columns) for axis 1.
template <typename Real>
void absolute_sums(const Weights<Real>& w, Real* out, int threads) {
  const int64_t rows = w.rows, columns = w.columns;
  const int64_t step = w.axis == 0 ? 4 : kTile, length = w.axis == 0 ? rows : columns;
  if (rows * columns <= kThreaded) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t k = 0; k < length; k += step) {
    const int64_t width = least(step, length - k);
    if (w.axis == 1)
      down(w.data + k, rows, columns, width, out + k);
    else if (width == step)
      across_four(w.data + k * columns, columns, out + k);
    else
      for (int64_t i = k; i < k + width; ++i) across_one(w.data + i * columns, columns, out + i);
  }
}

// NaN stays NaN, so that weights that have left all bounds are seen.
template <typename Real>
void write_factors(const Importance<Real>& p) {
  const Real tiny = std::numeric_limits<Real>::min();
  Real top = tiny;
  for (int64_t i = 0; i < p.size && top == top; ++i)
    if (!(p.sums[i] <= top)) top = p.sums[i];
  for (int64_t i = 0; i < p.size; ++i) {
    Real m = 2 * p.sums[i] / top;
    if (p.clipped)
      m = m < p.low ? p.low : m > p.high ? p.high : m;
    else if (top <= tiny)
      m = 1;  // all weights are 0
    p.factors[i] = m;
  }
  if (p.gain) {
    double total = 0;
    for (int64_t i = 0; i < p.size; ++i) total += p.factors[i];
    for (int64_t i = 0; i < p.size; ++i) p.factors[i] = static_cast<Real>(total / p.size);
  }
}

template <typename Real>
bool all(const Importance<Real>& p) {
  for (int64_t k = 0; k < p.count; ++k) {
    const Weights<Real>& w = p.sources[k];
    if (k == 0 && w.gates == 1 && w.repeat == 1) {
      absolute_sums(w, p.sums, p.threads);
      continue;
    }
    const int64_t length = w.axis == 0 ? w.rows : w.columns, neurons = length / w.gates;
    Real* own = static_cast<Real*>(malloc((length + 1) * sizeof(Real)));
    if (!own) return false;
    absolute_sums(w, own, p.threads);
    for (int64_t i = 0; i < neurons; ++i) {
      Real sum = 0;
      for (int64_t gate = 0; gate < w.gates; ++gate) sum += own[gate * neurons + i];
      for (int64_t j = i * w.repeat; j < (i + 1) * w.repeat; ++j)
        p.sums[j] = k == 0 ? sum : p.sums[j] + sum;
    }
    free(own);
  }
  if (p.factors) write_factors(p);
  return true;
}

}  // namespace

bool importance(const Importance<float>& wanted) { return all(wanted); }
bool importance(const Importance<double>& wanted) { return all(wanted); }

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
