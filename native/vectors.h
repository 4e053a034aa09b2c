// Vectors as wide as the instruction set has them.
#pragma once
#include <cstdint>

namespace spikebridge {
namespace SPIKEBRIDGE_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename Real>
struct Simd {
  typedef Real Vector __attribute__((vector_size(kVectorBytes), may_alias));
  static constexpr int64_t lanes = kVectorBytes / sizeof(Real);
};

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
