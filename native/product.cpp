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
struct Simd {
  typedef Real Vector __attribute__((vector_size(kVectorBytes), may_alias));
  static constexpr int64_t lanes = kVectorBytes / sizeof(Real);
  static constexpr int64_t block = 2 * lanes;  // columns of the micro-kernel
};

// to (rows, width) += from (rows, n) matrix (n, width), for up to kBlockRows rows at a time.
template <int rows, typename Real>
inline void multiply_block(Real* to, const Real* from, const Real* matrix, int64_t n,
                           int64_t width) {
  using Vector = typename Simd<Real>::Vector;
  constexpr int64_t lanes = Simd<Real>::lanes, block = Simd<Real>::block;
  for (int64_t j = 0; j < width; j += block) {
    Vector low[rows], high[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      low[r] = *reinterpret_cast<const Vector*>(to + r * width + j);
      high[r] = *reinterpret_cast<const Vector*>(to + r * width + j + lanes);
    }
    for (int64_t k = 0; k < n; ++k) {
      const Vector a = *reinterpret_cast<const Vector*>(matrix + k * width + j);
      const Vector b = *reinterpret_cast<const Vector*>(matrix + k * width + j + lanes);
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

// to (width) += the rows of matrix that are listed, in their order.
template <typename Real>
void add_listed(Real* to, const int32_t* list, int64_t count, const Real* matrix,
                     int64_t width) {
  using Vector = typename Simd<Real>::Vector;
  constexpr int64_t lanes = Simd<Real>::lanes, block = Simd<Real>::block;
  int64_t j = 0;
  for (; j + 4 * block <= width; j += 4 * block) {
    Vector sum[8];
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) sum[v] = *reinterpret_cast<const Vector*>(to + j + v * lanes);
    for (int64_t i = 0; i < count; ++i) {
      const Real* row = matrix + list[i] * width + j;
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) sum[v] += *reinterpret_cast<const Vector*>(row + v * lanes);
    }
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) *reinterpret_cast<Vector*>(to + j + v * lanes) = sum[v];
  }
  for (; j < width; j += lanes) {
    Vector sum = *reinterpret_cast<const Vector*>(to + j);
    for (int64_t i = 0; i < count; ++i)
      sum += *reinterpret_cast<const Vector*>(matrix + list[i] * width + j);
    *reinterpret_cast<Vector*>(to + j) = sum;
  }
}

}  // namespace

void multiply(float* to, const float* from, const float* matrix, int64_t rows, int64_t n,
              int64_t width) {
  multiply_rows(to, from, matrix, rows, n, width);
}
void multiply(double* to, const double* from, const double* matrix, int64_t rows, int64_t n,
              int64_t width) {
  multiply_rows(to, from, matrix, rows, n, width);
}
void add_rows(float* to, const int32_t* list, int64_t count, const float* matrix, int64_t width) {
  add_listed(to, list, count, matrix, width);
}
void add_rows(double* to, const int32_t* list, int64_t count, const double* matrix, int64_t width) {
  add_listed(to, list, count, matrix, width);
}

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
