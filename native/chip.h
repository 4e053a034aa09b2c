// The digital chip in C++: what spikebridge/chip/golden.py defines, bit for bit.
//
// Membranes are int32, as the bounds of a compiled program promise.  All sums are formed modulo
// 2^32 (-fwrapv), so their order does not matter, and what passes through a larger number on the
// way comes out right.
#pragma once
#include <cstdint>

namespace spikebridge {

enum class Factor { zero, one, other };  // of all neurons of a layer; the first two need no product

enum class Slow { none, oscillation, adaptation };

struct ConvTap {
  int32_t tap, out;  // column (or row) of the kernel, and of the image that comes out
};

// One axis of a convolution: where a coordinate of the input image goes.
struct ConvAxis {
  const ConvTap* taps;    // those inside of the image
  const int32_t* first;   // (size + 1): which of them belong to a coordinate
  const int32_t* tried;   // (size): how many were tried for it, those outside included
};

// A layer as the kernels want it.  A neuron (channel, pixel) lies at pixel * lanes + channel; a
// dense layer is one pixel.  Lanes beyond the width are filled up with neurons that never fire.
struct ChipLayer {
  int64_t inputs, width, lanes, pixels;
  int64_t stride;      // weights from one row to the next
  const void* weight;  // int8_t (narrow) or int16_t
  bool narrow;
  int shift;  // fraction bits
  int bits;   // behind the point of factors
  const int32_t *bias, *threshold, *decay, *amount;  // (pixels * lanes)
  Slow slow;
  const int32_t *rho, *pull, *kick;  // the same, where there is a slow state
  int32_t slow_top;                  // it saturates at -slow_top - 1 and slow_top
  int32_t slope;
  Factor slopes, decays;
  bool gate;  // otherwise `amount` is taken off
  bool convolution, recurrent;
  int64_t in_height, in_width, kernel, out_width;
  ConvAxis rows, columns;
};

struct Reached {
  int64_t inside, outside;  // taps
};

constexpr int64_t kSpare = 16;  // entries behind a list of spikes that may be written over

// What there is one copy of per instruction set.
struct ChipKernels {
  // v += the rows of the events, counted from row `first`; dense layers.
  void (*add_rows)(const ChipLayer&, const int32_t* events, int64_t count, int64_t first, int32_t* v);
  Reached (*add_taps)(const ChipLayer&, const int32_t* events, int64_t count, int32_t* v);
  // Leak, comparison and reset.  Writes the numbers of the neurons that fire, in the order of
  // memory, and says how many; `s`, the membranes before the reset, is written unless it is null;
  // `w` has the slow states, where there are any.
  int64_t (*fire)(const ChipLayer&, int32_t* v, int32_t* w, int32_t* s, int32_t* fired);
  // The numbers of the ones of a row of 0 and 1.
  int64_t (*ones_of_bytes)(const uint8_t* x, int64_t count, int32_t* numbers);
  int64_t (*ones_of_floats)(const float* x, int64_t count, int32_t* numbers);
  int64_t (*ones_of_doubles)(const double* x, int64_t count, int32_t* numbers);
  // Whether there is nothing but 0 and 1.
  bool (*bits_in_bytes)(const uint8_t* x, int64_t count);
  bool (*bits_in_floats)(const float* x, int64_t count);
  bool (*bits_in_doubles)(const double* x, int64_t count);
};

namespace baseline {
extern const ChipKernels chip_kernels;
}
namespace avx2 {
extern const ChipKernels chip_kernels;
}
namespace avx512 {
extern const ChipKernels chip_kernels;
}

}  // namespace spikebridge
