// The products of the recurrent scan.  The only file that may be contracted to fused multiply-add: a
// sum over neurons differs from the loop's in its order anyway.
#include "product.h"

namespace spikebridge {
namespace SPIKEBRIDGE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kBlockRows = 8;  // with two vectors of columns: 16 of 32 registers hold sums
#else
constexpr int kBlockRows = 4;
#endif

template <typename Real>
constexpr int64_t kColumns = 2 * Simd<Real>::lanes;  // of the micro-kernel

// to (rows, width) += from (rows, n) matrix (n, width), for up to kBlockRows rows at a time.
template <int rows, typename Real>
inline void multiply_block(Real* to, const Real* from, const Real* matrix, int64_t n,
                           int64_t width) {
  using Vector = typename Simd<Real>::Vector;
  constexpr int64_t lanes = Simd<Real>::lanes, block = kColumns<Real>;
  for (int64_t j = 0; j < width; j += block) {
    Vector low[rows], high[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      low[r] = *reinterpret_cast<const Vector*>(to + r * width + j);
      high[r] = *reinterpret_cast<const Vector*>(to + r * width + j + lanes);
    }
    const Real* panel = matrix + j * n;
    for (int64_t k = 0; k < n; ++k) {
      const Vector a = *reinterpret_cast<const Vector*>(panel + k * block);
      const Vector b = *reinterpret_cast<const Vector*>(panel + k * block + lanes);
      __builtin_prefetch(panel + (k + 16) * block);  // the matrix lies in the second-level cache
      __builtin_prefetch(panel + (k + 16) * block + lanes);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const Real x = from[r * width + k];
        low[r] += x * a;
        high[r] += x * b;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      *reinterpret_cast<Vector*>(to + r * width + j) = low[r];
      *reinterpret_cast<Vector*>(to + r * width + j + lanes) = high[r];
    }
  }
}

template <typename Real>
void multiply_rows(Real* to, const Real* from, const Real* matrix, int64_t rows, int64_t n,
                     int64_t width) {
  int64_t r = 0;
  for (; r + kBlockRows <= rows; r += kBlockRows)
    multiply_block<kBlockRows>(to + r * width, from + r * width, matrix, n, width);
  for (; r + 2 <= rows; r += 2)
    multiply_block<2>(to + r * width, from + r * width, matrix, n, width);
  for (; r < rows; ++r) multiply_block<1>(to + r * width, from + r * width, matrix, n, width);
}

// to (columns of `panels` panels) += the listed rows of the matrix.
template <int panels, typename Real>
inline void add_panels(Real* to, const int32_t* list, int64_t count, const Real* matrix, int64_t n) {
  using Vector = typename Simd<Real>::Vector;
  constexpr int64_t lanes = Simd<Real>::lanes, block = kColumns<Real>;
  Vector sum[2 * panels];
#pragma GCC unroll 8
  for (int v = 0; v < 2 * panels; ++v) sum[v] = *reinterpret_cast<const Vector*>(to + v * lanes);
  for (int64_t i = 0; i < count; ++i) {
    const Real* row = matrix + list[i] * block;
#pragma GCC unroll 4
    for (int p = 0; p < panels; ++p) {
      sum[2 * p] += *reinterpret_cast<const Vector*>(row + p * n * block);
      sum[2 * p + 1] += *reinterpret_cast<const Vector*>(row + p * n * block + lanes);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < 2 * panels; ++v) *reinterpret_cast<Vector*>(to + v * lanes) = sum[v];
}

template <typename Real>
void add_listed(Real* to, const int32_t* list, int64_t count, const Real* matrix, int64_t n,
                int64_t width) {
  constexpr int64_t block = kColumns<Real>;
  int64_t j = 0;
  for (; j + 4 * block <= width; j += 4 * block)
    add_panels<4>(to + j, list, count, matrix + j * n, n);
  for (; j < width; j += block) add_panels<1>(to + j, list, count, matrix + j * n, n);
}

template <typename Real>
void pack_panels(Real* to, const Real* matrix, int64_t n, bool transposed) {
  constexpr int64_t block = kColumns<Real>;
  for (int64_t k = 0; k < n; ++k)
    for (int64_t j = 0; j < n; ++j)
      to[j / block * n * block + k * block + j % block] =
          transposed ? matrix[j * n + k] : matrix[k * n + j];
}

}  // namespace

void pack(float* to, const float* matrix, int64_t n, bool transposed) {
  pack_panels(to, matrix, n, transposed);
}
void pack(double* to, const double* matrix, int64_t n, bool transposed) {
  pack_panels(to, matrix, n, transposed);
}
void multiply(float* to, const float* from, const float* matrix, int64_t rows, int64_t n,
              int64_t width) {
  multiply_rows(to, from, matrix, rows, n, width);
}
void multiply(double* to, const double* from, const double* matrix, int64_t rows, int64_t n,
              int64_t width) {
  multiply_rows(to, from, matrix, rows, n, width);
}
void add_rows(float* to, const int32_t* list, int64_t count, const float* matrix, int64_t n,
              int64_t width) {
  add_listed(to, list, count, matrix, n, width);
}
void add_rows(double* to, const int32_t* list, int64_t count, const double* matrix, int64_t n,
              int64_t width) {
  add_listed(to, list, count, matrix, n, width);
}

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
