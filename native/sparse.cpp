// The products of sparse.h: rows of a matrix are summed in registers, a block of columns at a time.
//
// A block of columns of the matrix lies in one piece, so that what is gathered stays in the
// second-level cache and in few pages.  Each sum is taken by one thread in one order: results do not
// depend on the number of threads.
#include "sparse.h"

#include <type_traits>

#include "pointwise.h"
#include "scratch.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace spikebridge {
namespace SPIKEBRIDGE_ISA {
namespace {

constexpr int kVectors = 8;  // of sums held in registers

template <typename Real>
constexpr int64_t kBlock = kVectors * Simd<Real>::lanes;  // columns of a block

constexpr int64_t kSerial = 1 << 14;  // numbers of x below which one thread is faster
constexpr int64_t kSide = 16;         // of a square that is transposed within the cache
// Where so many numbers are marked, what is gathered from is cut to fit the first-level cache: the
// sums are read and written more often.
constexpr double kCrowded = 0.06;
constexpr int64_t kShort = 2, kLong = 8;                // words of a span
constexpr int64_t kShortRows = 64, kLongRows = 1024;  // of a chunk of the gradient
constexpr int64_t kFewRows = 512, kManyRows = 1024;   // of a tile of x, whose sums lie in a cache
constexpr int64_t kSpanInputs = 512;                  // whose sums lie in the second-level cache

// ---- marks

template <typename Io>
inline bool is_zero(Io x) {
  return load(x) == 0;
}
template <typename Io>
inline bool is_one(Io x) {
  return load(x) == 1;
}

// Marks of up to 64 numbers; `other` gets those that are neither 0 nor 1.
template <typename Io>
inline uint64_t mark_some(const Io* x, int64_t count, uint64_t& other) {
  uint64_t set = 0;
  for (int64_t j = 0; j < count; ++j) {
    set |= static_cast<uint64_t>(!is_zero(x[j])) << j;
    other |= static_cast<uint64_t>(!is_zero(x[j]) && !is_one(x[j])) << j;
  }
  return set;
}

inline uint64_t mark_word(const float* x, uint64_t& other) {
#if defined(__AVX512F__)
  uint64_t set = 0, ones = 0;
  for (int i = 0; i < 4; ++i) {
    const __m512 v = _mm512_loadu_ps(x + 16 * i);
    set |= static_cast<uint64_t>(_mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ)) << 16 * i;
    ones |= static_cast<uint64_t>(_mm512_cmp_ps_mask(v, _mm512_set1_ps(1), _CMP_EQ_OQ)) << 16 * i;
  }
  other |= set & ~ones;
  return set;
#elif defined(__AVX2__)
  uint64_t set = 0, ones = 0;
  for (int i = 0; i < 8; ++i) {
    const __m256 v = _mm256_loadu_ps(x + 8 * i);
    const auto bits = [](__m256 mask) {
      return static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_ps(mask)));
    };
    set |= bits(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NEQ_UQ)) << 8 * i;
    ones |= bits(_mm256_cmp_ps(v, _mm256_set1_ps(1), _CMP_EQ_OQ)) << 8 * i;
  }
  other |= set & ~ones;
  return set;
#else
  return mark_some(x, 64, other);
#endif
}

inline uint64_t mark_word(const double* x, uint64_t& other) {
#if defined(__AVX512F__)
  uint64_t set = 0, ones = 0;
  for (int i = 0; i < 8; ++i) {
    const __m512d v = _mm512_loadu_pd(x + 8 * i);
    set |= static_cast<uint64_t>(_mm512_cmp_pd_mask(v, _mm512_setzero_pd(), _CMP_NEQ_UQ)) << 8 * i;
    ones |= static_cast<uint64_t>(_mm512_cmp_pd_mask(v, _mm512_set1_pd(1), _CMP_EQ_OQ)) << 8 * i;
  }
  other |= set & ~ones;
  return set;
#else
  return mark_some(x, 64, other);
#endif
}

inline uint64_t mark_word(const Bf16* x, uint64_t& other) {
#if defined(__AVX512F__)
  uint64_t set = 0, ones = 0;
  for (int i = 0; i < 2; ++i) {
    const __m512i v = _mm512_loadu_si512(x + 32 * i);
    set |= static_cast<uint64_t>(_mm512_test_epi16_mask(v, _mm512_set1_epi16(0x7fff))) << 32 * i;
    ones |= static_cast<uint64_t>(_mm512_cmpeq_epi16_mask(v, _mm512_set1_epi16(0x3f80))) << 32 * i;
  }
  other |= set & ~ones;
  return set;
#else
  return mark_some(x, 64, other);
#endif
}

template <typename Io>
Marks mark_rows(const Dense<Io>& x, uint64_t* bits, int threads) {
  const int64_t words = words_of(x.inputs), whole = x.inputs / 64, rest = x.inputs % 64;
  int64_t count = 0, others = 0;
  if (x.rows * x.inputs < kSerial || threads < 1) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) \
    reduction(+ : count, others)
  for (int64_t m = 0; m < x.rows; ++m) {
    const Io* row = x.data + m * x.stride;
    uint64_t* to = bits + m * words;
    uint64_t other = 0;
    for (int64_t w = 0; w < whole; ++w) to[w] = mark_word(row + 64 * w, other);
    if (rest) to[whole] = mark_some(row + 64 * whole, rest, other);
    for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(to[w]);
    others += other != 0;
  }
  return {count, others == 0};
}

// Marks where |s + bias| <= width: beyond, a surrogate of that compact support is 0.
template <typename Real>
Marks near_rows(const Near<Real>& p, uint64_t* bits, int threads) {
  const int64_t words = words_of(p.columns);
  int64_t count = 0;
  if (p.rows * p.columns < kSerial || threads < 1) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(+ : count)
  for (int64_t m = 0; m < p.rows; ++m)
    for (int64_t w = 0; w < words; ++w) {
      const Real *s = p.s + m * p.columns + 64 * w, *bias = p.bias + 64 * w;
      const int64_t some = least(64, p.columns - 64 * w);
      alignas(64) Real hit[64] = {};
#pragma omp simd
      for (int64_t j = 0; j < some; ++j) {
        const Real x = s[j] + bias[j];
        hit[j] = (x < 0 ? -x : x) <= p.width ? Real(1) : Real(0);
      }
      uint64_t other = 0;
      const uint64_t word = mark_word(hit, other);
      bits[m * words + w] = word;
      count += __builtin_popcountll(word);
    }
  return {count, false};
}

// ---- sums of rows

// to (vectors * lanes) = the sum of the listed rows of a block, each times its value; `more` adds it
// to `before`.  `to` may lie anywhere in memory.
template <int vectors, bool ones, bool more, typename Index, typename Real>
inline void sum_rows(const Real* block, const Index* list, const Real* values, int64_t count,
                     const Real* before, Real* to) {
  using Vector = typename Simd<Real>::Vector;
  constexpr int64_t lanes = Simd<Real>::lanes, width = kBlock<Real>;
  Vector sum[vectors];
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v)
    sum[v] = more ? *reinterpret_cast<const Vector*>(before + v * lanes) : Vector{};
  for (int64_t i = 0; i < count; ++i) {
    const Real* row = block + static_cast<int64_t>(list[i]) * width;
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      const Vector x = *reinterpret_cast<const Vector*>(row + v * lanes);
      sum[v] += ones ? x : values[i] * x;
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) std::memcpy(to + v * lanes, &sum[v], sizeof sum[v]);
}

template <bool more, typename Index, typename Real>
using SumRows = void (*)(const Real*, const Index*, const Real*, int64_t, const Real*, Real*);

// The narrowest sum that covers so many columns.
template <bool more, typename Index, typename Real>
SumRows<more, Index, Real> sum_rows_for(int64_t columns, bool ones) {
  const int64_t vectors = pieces(columns, Simd<Real>::lanes);
  if (vectors <= 1)
    return ones ? sum_rows<1, true, more, Index, Real> : sum_rows<1, false, more, Index, Real>;
  if (vectors <= 2)
    return ones ? sum_rows<2, true, more, Index, Real> : sum_rows<2, false, more, Index, Real>;
  if (vectors <= 4)
    return ones ? sum_rows<4, true, more, Index, Real> : sum_rows<4, false, more, Index, Real>;
  return ones ? sum_rows<8, true, more, Index, Real> : sum_rows<8, false, more, Index, Real>;
}

template <typename Real>
inline void copy_out(Real* to, const Real* from, int64_t count) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(Real));
}
inline void copy_out(Bf16* to, const float* from, int64_t count) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) store(to[j], from[j]);
}

// ---- y = x W^T

// How x (rows, inputs) is walked through: the inputs in spans, whose rows of a block of the matrix
// lie in a cache while the rows of a tile of x pass.
struct Spans {
  int64_t words, count, each;  // words of a row; spans, and words of each

  Spans(int64_t inputs, int64_t wanted)
      : words(words_of(inputs)), count(pieces(words, wanted)), each(wanted) {}
};

// What a thread needs for a tile.
template <typename Real>
struct Tile {
  int64_t rows;
  int32_t* list;  // the marked inputs, row by row
  int32_t* ends;  // (rows, spans): where each span ends in the list
  Real* values;
  Real* sums;  // (rows, block)
};

// The marks of the rows of a tile as a list; returns how many.
template <typename Real>
int32_t list_tile(const Marked<Real>& x, const Spans& spans, int64_t from, int64_t rows,
                  const Tile<Real>& tile) {
  int32_t end = 0;
  for (int64_t m = 0; m < rows; ++m) {
    const uint64_t* bits = x.bits + (from + m) * spans.words;
    for (int64_t w = 0; w < spans.words; ++w) {
      for (uint64_t left = bits[w]; left; left &= left - 1)
        tile.list[end++] = static_cast<int32_t>(64 * w + __builtin_ctzll(left));
      tile.ends[m * spans.count + w / spans.each] = end;
    }
  }
  return end;
}

template <typename Io, typename Real>
void forward_tile(const SparseForward<Io, Real>& p, const Spans& spans, const Real* packed,
                  int64_t from, const Tile<Real>& tile) {
  constexpr int64_t block = kBlock<Real>;
  const auto& x = p.x;
  const int64_t rows = least(tile.rows, x.rows - from);
  list_tile(x, spans, from, rows, tile);
  if (x.values)
    for (int64_t m = 0; m < rows; ++m)
      for (int32_t i = m ? tile.ends[m * spans.count - 1] : 0; i < tile.ends[(m + 1) * spans.count - 1];
           ++i)
        tile.values[i] = x.values[(from + m) * x.stride + tile.list[i]];
  for (int64_t j = 0; j < x.outputs; j += block) {
    const int64_t columns = least(block, x.outputs - j);
    const auto first = sum_rows_for<false, int32_t, Real>(columns, !x.values);
    const auto later = sum_rows_for<true, int32_t, Real>(columns, !x.values);
    const bool direct = std::is_same_v<Io, Real> && columns == block;
    for (int64_t span = 0; span < spans.count; ++span) {
      const auto sum = span ? later : first;
      const bool out = direct && span + 1 == spans.count;  // past the sums, into y
      for (int64_t m = 0; m < rows; ++m) {
        const int64_t at = m * spans.count + span;
        const int32_t start = at ? tile.ends[at - 1] : 0;
        Real* sums = tile.sums + m * block;
        Real* to = out ? reinterpret_cast<Real*>(p.y + (from + m) * x.outputs + j) : sums;
        sum(packed + j * x.inputs, tile.list + start, tile.values + start, tile.ends[at] - start,
            sums, to);
      }
    }
    if (direct) continue;
    for (int64_t m = 0; m < rows; ++m)
      copy_out(p.y + (from + m) * x.outputs + j, tile.sums + m * block, columns);
  }
}

// Calls run(spans, packed, first row, tile) for all tiles of x, on all threads, with the matrix
// packed in blocks, zeros after its last column.  `valued` asks for a value per mark.
template <typename Real, typename Run>
bool over_tiles(const Marked<Real>& x, const Real* weight, bool valued, int threads, Run&& run) {
  constexpr int64_t block = kBlock<Real>;
  const bool crowded = x.count > kCrowded * x.rows * x.inputs;
  if (x.rows * x.inputs < kSerial || threads < 1) threads = 1;
  // The matrix is read once a tile, so tiles are large where a row of it is seldom used.
  const int64_t rows = least(crowded ? kFewRows : kManyRows, pieces(x.rows, threads));
  const int64_t blocks = pieces(x.outputs, block), tiles = rows ? pieces(x.rows, rows) : 0;
  const Spans spans(x.inputs, crowded ? kShort : kLong);
  const int64_t places = least(rows * x.inputs, x.count), ends = rows * spans.count;
  Scratch<Real> packed(blocks * block * x.inputs), values(valued ? threads * places : 0);
  Scratch<Real> sums(threads * rows * block);
  Scratch<int32_t> lists(threads * places), all_ends(threads * ends);
  if (!packed || !values || !sums || !lists || !all_ends) return false;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; ++b) {
      Real* to = packed.get() + b * x.inputs * block;
      const int64_t width = least(block, x.outputs - b * block);
      if (width < block) std::memset(to, 0, static_cast<size_t>(x.inputs * block) * sizeof(Real));
      for (int64_t k = 0; k < x.inputs; k += kSide)
        for (int64_t j = 0; j < width; ++j)
          for (int64_t i = k; i < least(k + kSide, x.inputs); ++i)
            to[i * block + j] = weight[(b * block + j) * x.inputs + i];
    }
    const int64_t own = thread_number();
    const Tile<Real> tile{rows, lists.get() + own * places, all_ends.get() + own * ends,
                          values.get() + (valued ? own * places : 0),
                          sums.get() + own * rows * block};
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < tiles; ++t) run(spans, packed.get(), t * rows, tile);
  }
  return true;
}

template <typename Io, typename Real>
bool run_forward(const SparseForward<Io, Real>& p) {
  return over_tiles(p.x, p.weight, p.x.values, p.threads,
                    [&](const Spans& spans, const Real* packed, int64_t from,
                        const Tile<Real>& tile) { forward_tile(p, spans, packed, from, tile); });
}

// ---- out = grad W, at marked places

template <typename Real>
inline Real total(const typename Simd<Real>::Vector& v) {
  constexpr int64_t lanes = Simd<Real>::lanes;
  Real part[lanes];
  std::memcpy(part, &v, sizeof part);
  for (int64_t half = lanes / 2; half; half /= 2)
    for (int64_t i = 0; i < half; ++i) part[i] += part[i + half];
  return part[0];
}

// The sums of four vectors each.
template <typename Real>
inline void totals(const typename Simd<Real>::Vector (&v)[4], Real* to) {
  for (int i = 0; i < 4; ++i) to[i] = total<Real>(v[i]);
}
#if defined(__AVX512F__)
inline void totals(const Simd<float>::Vector (&v)[4], float* to) {
  const auto both = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  const __m512d ab = _mm512_castps_pd(both((__m512)v[0], (__m512)v[1]));
  const __m512d cd = _mm512_castps_pd(both((__m512)v[2], (__m512)v[3]));
  const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                                   _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
#endif

// to[i] += the product of `grad` (block) with row list[i] of a block.
template <typename Real>
inline void dot_rows(const Real* block, const int32_t* list, int64_t count, const Real* grad,
                     Real* to) {
  using Vector = typename Simd<Real>::Vector;
  constexpr int64_t lanes = Simd<Real>::lanes, width = kBlock<Real>;
  Vector d[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) d[v] = *reinterpret_cast<const Vector*>(grad + v * lanes);
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    Vector sum[4] = {};
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const Real* row = block + static_cast<int64_t>(list[i + r]) * width;
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        sum[r] += d[v] * *reinterpret_cast<const Vector*>(row + v * lanes);
    }
    Real four[4];
    totals(sum, four);
    for (int r = 0; r < 4; ++r) to[i + r] += four[r];
  }
  for (; i < count; ++i) {
    Vector sum = {};
    const Real* row = block + static_cast<int64_t>(list[i]) * width;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v)
      sum += d[v] * *reinterpret_cast<const Vector*>(row + v * lanes);
    to[i] += total<Real>(sum);
  }
}

template <typename Io, typename Real>
void inputs_tile(const SparseInputs<Io, Real>& p, const Spans& spans, const Real* packed,
                 int64_t from, const Tile<Real>& tile) {
  constexpr int64_t block = kBlock<Real>;
  const auto& x = p.x;
  const int64_t rows = least(tile.rows, x.rows - from);
  const int32_t count = list_tile(x, spans, from, rows, tile);
  std::memset(tile.values, 0, static_cast<size_t>(count) * sizeof(Real));
  for (int64_t j = 0; j < x.outputs; j += block) {
    const int64_t columns = least(block, x.outputs - j);
    for (int64_t m = 0; m < rows; ++m) {
      const Io* row = p.grad + (from + m) * p.grad_stride + j;
      Real* to = tile.sums + m * block;
      for (int64_t i = columns; i < block; ++i) to[i] = 0;
#pragma omp simd
      for (int64_t i = 0; i < columns; ++i) to[i] = load(row[i]);
    }
    for (int64_t span = 0; span < spans.count; ++span)
      for (int64_t m = 0; m < rows; ++m) {
        const int64_t at = m * spans.count + span;
        const int32_t start = at ? tile.ends[at - 1] : 0;
        dot_rows(packed + j * x.inputs, tile.list + start, tile.ends[at] - start,
                 tile.sums + m * block, tile.values + start);
      }
  }
  for (int64_t m = 0; m < rows; ++m) {
    Io* to = p.out + (from + m) * x.inputs;
    std::memset(to, 0, static_cast<size_t>(x.inputs) * sizeof(Io));
    for (int32_t i = m ? tile.ends[m * spans.count - 1] : 0; i < tile.ends[(m + 1) * spans.count - 1];
         ++i)
      store(to[tile.list[i]], tile.values[i]);
  }
}

template <typename Io, typename Real>
bool run_inputs(const SparseInputs<Io, Real>& p) {
  return over_tiles(p.x, p.weight, true, p.threads,
                    [&](const Spans& spans, const Real* packed, int64_t from,
                        const Tile<Real>& tile) { inputs_tile(p, spans, packed, from, tile); });
}

// ---- out = grad^T x

// The rows of each chunk that have a mark in a column, column by column.
template <typename Real>
struct Columns {
  int64_t chunk;    // rows of each
  int64_t* bases;   // (chunks + 1): where the places of a chunk begin
  int32_t* starts;  // (chunks, inputs + 1), from there
  uint16_t* rows;
  Real* values;
};

template <typename Real>
void list_columns(const Marked<Real>& x, const Columns<Real>& columns, int64_t chunk) {
  const int64_t words = words_of(x.inputs), from = chunk * columns.chunk;
  const int64_t to = least(from + columns.chunk, x.rows), base = columns.bases[chunk];
  int32_t* starts = columns.starts + chunk * (x.inputs + 1);
  const auto each = [&](auto&& action) {
    for (int64_t m = from; m < to; ++m)
      for (int64_t w = 0; w < words; ++w)
        for (uint64_t left = x.bits[m * words + w]; left; left &= left - 1)
          action(m, 64 * w + __builtin_ctzll(left));
  };
  // Counts, kept one place further on, become the starts while the places are filled.
  std::memset(starts, 0, static_cast<size_t>(x.inputs + 1) * sizeof *starts);
  each([&](int64_t, int64_t k) { ++starts[k + 1]; });
  int32_t before = 0;
  for (int64_t k = 1; k <= x.inputs; ++k) {
    const int32_t count = starts[k];
    starts[k] = before;
    before += count;
  }
  each([&](int64_t m, int64_t k) {
    const int64_t place = base + starts[k + 1]++;
    columns.rows[place] = static_cast<uint16_t>(m - from);
    if (x.values) columns.values[place] = x.values[m * x.stride + k];
  });
}

template <typename Io, typename Real>
void weights_block(const SparseWeights<Io, Real>& p, const Columns<Real>& columns, int64_t j,
                   int64_t first, int64_t last, Real* grad, Real* sums) {
  constexpr int64_t block = kBlock<Real>;
  const auto& x = p.x;
  const int64_t width = least(block, x.outputs - j);
  const auto sum = sum_rows_for<true, uint16_t, Real>(width, !x.values);
  std::memset(sums, 0, static_cast<size_t>((last - first) * block) * sizeof(Real));
  for (int64_t from = 0, chunk = 0; from < x.rows; from += columns.chunk, ++chunk) {
    const int64_t rows = least(columns.chunk, x.rows - from);
    for (int64_t m = 0; m < rows; ++m) {
      const Io* row = p.grad + (from + m) * p.grad_stride + j;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) grad[m * block + i] = load(row[i]);
    }
    const int32_t* starts = columns.starts + chunk * (x.inputs + 1);
    const int64_t base = columns.bases[chunk];
    for (int64_t k = first; k < last; ++k)
      sum(grad, columns.rows + base + starts[k], columns.values + base + starts[k],
          starts[k + 1] - starts[k], sums + (k - first) * block, sums + (k - first) * block);
  }
  for (int64_t k = first; k < last; k += kSide)
    for (int64_t i = 0; i < width; ++i)
      for (int64_t c = k; c < least(k + kSide, last); ++c)
        p.out[(j + i) * x.inputs + c] = sums[(c - first) * block + i];
}

template <typename Io, typename Real>
bool run_weights(const SparseWeights<Io, Real>& p) {
  constexpr int64_t block = kBlock<Real>;
  const auto& x = p.x;
  const int64_t chunk = x.count > kCrowded * x.rows * x.inputs ? kShortRows : kLongRows;
  const int64_t words = words_of(x.inputs), chunks = pieces(x.rows, chunk);
  const int64_t blocks = pieces(x.outputs, block), cuts = pieces(x.inputs, kSpanInputs);
  const int threads = x.rows * x.inputs < kSerial || p.threads < 1 ? 1 : p.threads;
  Scratch<int64_t> bases(chunks + 1);
  Scratch<int32_t> starts(chunks * (x.inputs + 1));
  Scratch<uint16_t> rows(x.count);
  Scratch<Real> values(x.values ? x.count : 0);
  Scratch<Real> grads(threads * chunk * block), sums(threads * kSpanInputs * block);
  if (!bases || !starts || !rows || !values || !grads || !sums) return false;
  const Columns<Real> columns{chunk, bases.get(), starts.get(), rows.get(), values.get()};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t c = 0; c < chunks; ++c) {
      int64_t count = 0;
      const int64_t to = least((c + 1) * chunk, x.rows) * words;
      for (int64_t w = c * chunk * words; w < to; ++w) count += __builtin_popcountll(x.bits[w]);
      columns.bases[c + 1] = count;
    }
#pragma omp single
    {
      columns.bases[0] = 0;
      for (int64_t c = 0; c < chunks; ++c) columns.bases[c + 1] += columns.bases[c];
    }
#pragma omp for schedule(static)
    for (int64_t c = 0; c < chunks; ++c) list_columns(x, columns, c);
    const int64_t own = thread_number();
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < blocks * cuts; ++item) {
      const int64_t first = item % cuts * kSpanInputs;
      weights_block(p, columns, item / cuts * block, first, least(first + kSpanInputs, x.inputs),
                    grads.get() + own * chunk * block, sums.get() + own * kSpanInputs * block);
    }
  }
  return true;
}

}  // namespace


Marks mark_near(const Near<float>& p, uint64_t* bits, int threads) { return near_rows(p, bits, threads); }
Marks mark_near(const Near<double>& p, uint64_t* bits, int threads) { return near_rows(p, bits, threads); }

#define SPIKEBRIDGE_DEFINE(Io, Real)                                                      \
  Marks mark(const Dense<Io>& x, uint64_t* bits, int threads) { return mark_rows(x, bits, threads); } \
  bool sparse_forward(const SparseForward<Io, Real>& p) { return run_forward(p); }        \
  bool sparse_inputs(const SparseInputs<Io, Real>& p) { return run_inputs(p); }           \
  bool sparse_weights(const SparseWeights<Io, Real>& p) { return run_weights(p); }
SPIKEBRIDGE_DEFINE(float, float)
SPIKEBRIDGE_DEFINE(double, double)
SPIKEBRIDGE_DEFINE(Bf16, float)

}  // namespace SPIKEBRIDGE_ISA
}  // namespace spikebridge
