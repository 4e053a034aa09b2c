// What a chip in C++ owns: its layers, and the state of a sample under way.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "chip.h"

namespace spikebridge {

constexpr int64_t kMost = int64_t{1} << 30;  // neurons, weights of a row, inputs: int32 numbers

inline void rule(bool holds, const std::string& text) {
  if (!holds) throw std::invalid_argument("not a program of the chip: " + text + "; compile the network again");
}

// Zeroed memory that starts with a cache line.
template <typename Item>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) : size_(count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(Item) + 63) / 64 * 64 + 64;
    memory_.reset(static_cast<Item*>(std::aligned_alloc(64, bytes)));
    if (!memory_) throw std::bad_alloc();
    std::memset(memory_.get(), 0, bytes);
  }
  Item* data() const { return memory_.get(); }
  Item& operator[](int64_t i) const { return memory_.get()[i]; }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(Item* memory) const { std::free(memory); }
  };
  std::unique_ptr<Item, Free> memory_;
  int64_t size_ = 0;
};

inline int64_t rounded(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

// Geometry.targets of spec.py for every coordinate of one axis.
class Axis {
 public:
  Axis() = default;
  Axis(int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t padding, int64_t pool) {
    const int64_t before = floor_div(size + 2 * padding - kernel, stride) + 1;
    first_.push_back(0);
    for (int64_t at = 0; at < size; ++at) {
      int32_t tried = 0;
      for (int64_t tap = (at + padding) % stride; tap < kernel; tap += stride, ++tried) {
        const int64_t to = floor_div(at + padding - tap, stride);
        if (0 <= to && to < before && to / pool < out)
          taps_.push_back({static_cast<int32_t>(tap), static_cast<int32_t>(to / pool)});
      }
      first_.push_back(static_cast<int32_t>(taps_.size()));
      tried_.push_back(tried);
    }
  }
  ConvAxis view() const { return {taps_.data(), first_.data(), tried_.data()}; }

 private:
  std::vector<ConvTap> taps_;
  std::vector<int32_t> first_, tried_;
};

enum class Reduce : int { none, each, last, sum };

struct OwnedLayer {
  ChipLayer view{};
  Reduce reduce = Reduce::none;
  Buffer<int8_t> weight;
  Buffer<int32_t> parameters;  // bias, threshold, decay, amount; rho, pull, kick of a slow state
  Axis rows, columns;

  int64_t neurons() const { return view.width * view.pixels; }
  int64_t size() const { return view.lanes * view.pixels; }
  // Where a neuron of the program lies.
  int64_t place(int64_t neuron) const {
    return neuron % view.pixels * view.lanes + neuron / view.pixels;
  }
};

struct Tally {
  int64_t events = 0, inside = 0, outside = 0, spikes = 0;
};

// One sample under way.
struct State {
  struct Part {
    Buffer<int32_t> v, w, s, fired;
    int64_t heard = 0;  // spikes of the last step, until the sample ends
    int64_t shown = 0;  // the same, also afterwards
    Tally tally;
  };
  std::vector<Part> parts;
  Buffer<int32_t> input;
  int64_t step = 0;  // of this sample
  int64_t steps = 0, samples = 0, input_events = 0;
};

}  // namespace spikebridge
