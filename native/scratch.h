// Memory of the buffers that goes back by itself, and small helps of the sparse products.
#pragma once
#include "buffers.h"
#include "vectors.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace spikebridge {
namespace SPIKEBRIDGE_ISA {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t pieces(int64_t all, int64_t size) { return (all + size - 1) / size; }

inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

template <typename Any>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(static_cast<Any*>(acquire(count * sizeof(Any) + 64))) {}
  ~Scratch() {
    if (data_) release(data_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  explicit operator bool() const { return data_; }
  Any* get() const { return data_; }

 private:
  Any* data_;
};

}  // namespace
}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
