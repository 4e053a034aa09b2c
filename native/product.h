// Small dense and sparse products on rows padded to whole blocks of columns.
#pragma once
#include <cstdint>

#include "vectors.h"

namespace spikebridge {
namespace SPIKEBRIDGE_ISA {

// The width that a row of n numbers is padded to.
template <typename Real>
int64_t padded(int64_t n) {
  constexpr int64_t block = 2 * kVectorBytes / sizeof(Real);
  return (n + block - 1) / block * block;
}

// The matrix (N, N) in panels of a block of columns, each (N, block): what a product reads follows in
// memory.  Transposed or not; columns beyond N are left as they are.
void pack(float* to, const float* matrix, int64_t n, bool transposed);
void pack(double* to, const double* matrix, int64_t n, bool transposed);

// to (rows, width) += from (rows, n; in rows of width) times the packed matrix (n, width).
void multiply(float* to, const float* from, const float* matrix, int64_t rows, int64_t n,
              int64_t width);
void multiply(double* to, const double* from, const double* matrix, int64_t rows, int64_t n,
              int64_t width);

// to (width) += the rows of the packed matrix that are listed, in their order.
void add_rows(float* to, const int32_t* list, int64_t count, const float* matrix, int64_t n,
              int64_t width);
void add_rows(double* to, const int32_t* list, int64_t count, const double* matrix, int64_t n,
              int64_t width);

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
