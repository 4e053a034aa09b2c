// What the chip does with events, compiled once per instruction set (SPIKEBRIDGE_ISA).
//
// Nothing of the standard library is called: an inline function of it would be compiled for each
// instruction set, and the linker keeps one copy for all.
#include "chip.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#include <cstring>

namespace spikebridge {
namespace SPIKEBRIDGE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = kBytes / 4;

typedef int32_t Ints __attribute__((vector_size(kBytes)));
typedef int16_t Shorts __attribute__((vector_size(kBytes)));           // 2 kLanes of them
typedef int16_t HalfShorts __attribute__((vector_size(kBytes / 2)));   // kLanes
typedef int8_t HalfBytes __attribute__((vector_size(kBytes / 2)));     // 2 kLanes
typedef int8_t QuarterBytes __attribute__((vector_size(kBytes / 4)));  // kLanes

template <typename Vector, typename Item>
inline Vector load(const Item* from) {
  Vector found;
  std::memcpy(&found, from, sizeof found);
  return found;
}

template <typename Vector, typename Item>
inline void store(Item* to, const Vector& what) {
  std::memcpy(to, &what, sizeof what);
}

// Sums of int8 stay in 16 bits for so many events: 255 * 128 < 2^15.
constexpr int64_t kShortSums = 255;

// K vectors side by side are summed over all events before they meet the membranes.
template <int K>
inline void add_block(const int8_t* weight, int64_t stride, int shift, const int32_t* events,
                      int64_t count, int32_t* v) {
  for (int64_t done = 0; done < count;) {
    const int64_t stop = count - done > kShortSums ? done + kShortSums : count;
    Shorts sum[K] = {};
    for (; done < stop; ++done) {
      const int8_t* row = weight + events[done] * stride;
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k)
        sum[k] += __builtin_convertvector(load<HalfBytes>(row + 2 * kLanes * k), Shorts);
    }
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      HalfShorts half[2];
      std::memcpy(half, &sum[k], sizeof half);
      for (int h = 0; h < 2; ++h) {
        int32_t* to = v + kLanes * (2 * k + h);
        store(to, load<Ints>(to) + (__builtin_convertvector(half[h], Ints) << shift));
      }
    }
  }
}

template <int K>
inline void add_block(const int16_t* weight, int64_t stride, int shift, const int32_t* events,
                      int64_t count, int32_t* v) {
  Ints sum[K] = {};
  for (int64_t done = 0; done < count; ++done) {
    const int16_t* row = weight + events[done] * stride;
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k)
      sum[k] += __builtin_convertvector(load<HalfShorts>(row + kLanes * k), Ints);
  }
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k) {
    int32_t* to = v + kLanes * k;
    store(to, load<Ints>(to) + (sum[k] << shift));
  }
}

template <typename Weight>
void add_dense(const ChipLayer& layer, const int32_t* events, int64_t count, int64_t first,
               int32_t* v) {
  constexpr int64_t kWide = sizeof(Weight) == 1 ? 2 * kLanes : kLanes;  // neurons of a vector
  const Weight* weight = static_cast<const Weight*>(layer.weight) + first * layer.stride;
  int64_t at = 0;
  // `lanes` is a multiple of 32, which is at least a vector of every instruction set.
  for (; layer.lanes - at >= 8 * kWide; at += 8 * kWide)
    add_block<8>(weight + at, layer.stride, layer.shift, events, count, v + at);
  for (; layer.lanes - at >= 2 * kWide; at += 2 * kWide)
    add_block<2>(weight + at, layer.stride, layer.shift, events, count, v + at);
  for (; at < layer.lanes; at += kWide)
    add_block<1>(weight + at, layer.stride, layer.shift, events, count, v + at);
}

void add_rows(const ChipLayer& layer, const int32_t* events, int64_t count, int64_t first,
              int32_t* v) {
  if (count == 0) return;
  if (layer.narrow)
    add_dense<int8_t>(layer, events, count, first, v);
  else
    add_dense<int16_t>(layer, events, count, first, v);
}

inline Ints widened(const int8_t* from) {
  return __builtin_convertvector(load<QuarterBytes>(from), Ints);
}

inline Ints widened(const int16_t* from) {
  return __builtin_convertvector(load<HalfShorts>(from), Ints);
}

template <typename Weight>
Reached add_conv(const ChipLayer& layer, const int32_t* events, int64_t count, int32_t* v) {
  const Weight* weight = static_cast<const Weight*>(layer.weight);
  const ConvAxis &rows = layer.rows, &columns = layer.columns;
  const uint32_t width = static_cast<uint32_t>(layer.in_width);
  const uint32_t plane = static_cast<uint32_t>(layer.in_height) * width;
  const int64_t lanes = layer.lanes;
  int64_t inside = 0, tried = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t event = static_cast<uint32_t>(events[i]), pixel = event % plane;
    const int64_t channel = event / plane, y = pixel / width, x = pixel % width;
    const int32_t x0 = columns.first[x], x1 = columns.first[x + 1];
    for (int32_t r = rows.first[y]; r < rows.first[y + 1]; ++r) {
      const int64_t tap = (channel * layer.kernel + rows.taps[r].tap) * layer.kernel;
      int32_t* line = v + rows.taps[r].out * layer.out_width * lanes;
      for (int32_t c = x0; c < x1; ++c) {
        const Weight* row = weight + (tap + columns.taps[c].tap) * layer.stride;
        int32_t* to = line + columns.taps[c].out * lanes;
        for (int64_t at = 0; at < lanes; at += kLanes)
          store(to + at, load<Ints>(to + at) + (widened(row + at) << layer.shift));
      }
    }
    inside += static_cast<int64_t>(rows.first[y + 1] - rows.first[y]) * (x1 - x0);
    tried += static_cast<int64_t>(rows.tried[y]) * columns.tried[x];
  }
  return {inside, tried - inside};
}

Reached add_taps(const ChipLayer& layer, const int32_t* events, int64_t count, int32_t* v) {
  return layer.narrow ? add_conv<int8_t>(layer, events, count, v)
                      : add_conv<int16_t>(layer, events, count, v);
}

// floor(a * factor / 2^bits), 0 <= factor <= 2^bits, bits <= 14.  The high part of `a` gives whole
// numbers and the low part a product below 2^28: 32 bits hold it all, exactly.
inline Ints product(Ints a, Ints factor, int bits) {
  const Ints low = a & ((1 << bits) - 1);
  return (a >> bits) * factor + ((low * factor) >> bits);
}

// floor((w rho + k pull) / 2^bits + 1/2), as `product` does it; pull is up to 2^(bits + 2).
inline Ints two_products(Ints w, Ints rho, Ints k, Ints pull, int bits) {
  const int32_t mask = (1 << bits) - 1, half = 1 << (bits - 1);
  return (w >> bits) * rho + (k >> bits) * pull +
         (((w & mask) * rho + (k & mask) * pull + half) >> bits);
}

inline Ints chosen(Ints mask, Ints yes, Ints no) { return (yes & mask) | (no & ~mask); }

// Appends first + i * step for each lane i whose mask is -1.
inline int64_t append(Ints mask, int32_t first, int32_t step, int32_t* list, int64_t n) {
#if defined(__AVX512F__)
  const __m512i iota = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __mmask16 set = _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
  const __m512i numbers = _mm512_add_epi32(_mm512_set1_epi32(first),
                                           _mm512_mullo_epi32(iota, _mm512_set1_epi32(step)));
  _mm512_storeu_si512(list + n, _mm512_maskz_compress_epi32(set, numbers));
  return n + __builtin_popcount(set);
#else
#if defined(__AVX2__)
  unsigned set = static_cast<unsigned>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#elif defined(__SSE2__)
  unsigned set = static_cast<unsigned>(_mm_movemask_ps(reinterpret_cast<__m128>(mask)));
#else
  unsigned set = 0;
  for (int i = 0; i < kLanes; ++i) set |= static_cast<unsigned>(mask[i] & 1) << i;
#endif
  for (; set; set &= set - 1) list[n++] = first + __builtin_ctz(set) * step;
  return n;
#endif
}

template <Factor kSlope, Factor kDecay, bool kGate, bool kKeep>
int64_t fire_as(const ChipLayer& layer, int32_t* v, int32_t* s_out, int32_t* fired) {
  const int bits = layer.bits;
  const int32_t pixels = static_cast<int32_t>(layer.pixels);
  int64_t n = 0;
  for (int32_t pixel = 0; pixel < pixels; ++pixel)
    for (int64_t lane = 0; lane < layer.lanes; lane += kLanes) {
      const int64_t at = pixel * layer.lanes + lane;
      Ints s = load<Ints>(v + at);
      const Ints negative = s < 0;
      if constexpr (kSlope == Factor::zero) s &= ~negative;
      if constexpr (kSlope == Factor::other)
        s = (s & ~negative) | (product(s, layer.slope - Ints{}, bits) & negative);
      const Ints y = s > load<Ints>(layer.threshold + at);
      Ints kept = {};
      if constexpr (kDecay == Factor::one) kept = s;
      if constexpr (kDecay == Factor::other) kept = product(s, load<Ints>(layer.decay + at), bits);
      if constexpr (kGate)
        kept &= ~y;
      else
        kept -= load<Ints>(layer.amount + at) & y;
      if constexpr (kKeep) store(s_out + at, s);
      store(v + at, kept + load<Ints>(layer.bias + at));
      n = append(y, static_cast<int32_t>(lane) * pixels + pixel, pixels, fired, n);
    }
  return n;
}

// With slow states: a dense layer, whose factors are all multiplied.
int64_t fire_slow(const ChipLayer& layer, int32_t* v, int32_t* w_at, int32_t* s_out, int32_t* fired) {
  const Ints top = layer.slow_top - Ints{}, bottom = ~top, slope = layer.slope - Ints{};
  const bool adapts = layer.slow == Slow::adaptation;
  int64_t n = 0;
  for (int64_t at = 0; at < layer.lanes; at += kLanes) {
    Ints s = load<Ints>(v + at), w = load<Ints>(w_at + at), limit = load<Ints>(layer.threshold + at);
    s = chosen(s < 0, product(s, slope, layer.bits), s);
    if (adapts) limit += w;
    const Ints y = s > limit;
    const Ints left = layer.gate ? s & ~y : s;
    Ints kept = product(left, load<Ints>(layer.decay + at), layer.bits);
    if (!layer.gate) kept -= load<Ints>(layer.amount + at) & y;
    w = two_products(w, load<Ints>(layer.rho + at), left, load<Ints>(layer.pull + at), layer.bits);
    w += load<Ints>(layer.kick + at) & y;
    w = chosen(w > top, top, w);
    w = chosen(w < bottom, bottom, w);
    store(w_at + at, w);
    if (!adapts) kept -= w;
    if (s_out) store(s_out + at, s);
    store(v + at, kept + load<Ints>(layer.bias + at));
    n = append(y, static_cast<int32_t>(at), 1, fired, n);
  }
  return n;
}

template <Factor kSlope, Factor kDecay>
int64_t fire_reset(const ChipLayer& layer, int32_t* v, int32_t* s, int32_t* fired) {
  if (layer.gate)
    return s ? fire_as<kSlope, kDecay, true, true>(layer, v, s, fired)
             : fire_as<kSlope, kDecay, true, false>(layer, v, s, fired);
  return s ? fire_as<kSlope, kDecay, false, true>(layer, v, s, fired)
           : fire_as<kSlope, kDecay, false, false>(layer, v, s, fired);
}

template <Factor kSlope>
int64_t fire_decay(const ChipLayer& layer, int32_t* v, int32_t* s, int32_t* fired) {
  if (layer.decays == Factor::zero) return fire_reset<kSlope, Factor::zero>(layer, v, s, fired);
  if (layer.decays == Factor::one) return fire_reset<kSlope, Factor::one>(layer, v, s, fired);
  return fire_reset<kSlope, Factor::other>(layer, v, s, fired);
}

int64_t fire(const ChipLayer& layer, int32_t* v, int32_t* w, int32_t* s, int32_t* fired) {
  if (layer.slow != Slow::none) return fire_slow(layer, v, w, s, fired);
  if (layer.slopes == Factor::zero) return fire_decay<Factor::zero>(layer, v, s, fired);
  if (layer.slopes == Factor::one) return fire_decay<Factor::one>(layer, v, s, fired);
  return fire_decay<Factor::other>(layer, v, s, fired);
}

template <typename Item>
int64_t ones(const Item* x, int64_t count, int32_t* numbers) {
  int64_t n = 0, i = 0;
  if constexpr (sizeof(Item) == 1)  // mostly silence: eight at a time
    for (; i + 8 <= count; i += 8) {
      uint64_t eight;
      std::memcpy(&eight, x + i, sizeof eight);
      if (!eight) continue;
      for (int64_t k = i; k < i + 8; ++k) {
        numbers[n] = static_cast<int32_t>(k);
        n += x[k] != 0;
      }
    }
  for (; i < count; ++i) {
    numbers[n] = static_cast<int32_t>(i);
    n += x[i] != 0;
  }
  return n;
}

template <typename Item>
bool bits(const Item* x, int64_t count) {
  int other = 0;
  for (int64_t i = 0; i < count; ++i) other |= !((x[i] == 0) | (x[i] == 1));
  return !other;
}

}  // namespace

const ChipKernels chip_kernels = {add_rows,       add_taps,      fire,
                                  ones<uint8_t>,  ones<float>,   ones<double>,
                                  bits<uint8_t>,  bits<float>,   bits<double>};

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
