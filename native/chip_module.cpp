// The chip as Python sees it: owns copies of a program, checks every input before it changes
// anything, and runs samples one step at a time or many in parallel.
#include "chip.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "chip_binding.h"
#include "chip_state.h"

#ifdef SPIKEBRIDGE_OPENMP
#include <omp.h>
#endif

namespace nb = nanobind;

namespace spikebridge {
namespace {

class Chip {
 public:
  Chip(int decay_bits, int fraction_bits, int64_t max_steps)
      : bits_(decay_bits), shift_(fraction_bits), max_steps_(max_steps) {
    rule(1 <= bits_ && bits_ <= 14, "factors have 1 to 14 bits behind the point, not " + std::to_string(bits_));
    rule(0 <= shift_ && shift_ <= 8, "membranes have 0 to 8 fraction bits, not " + std::to_string(shift_));
    rule(max_steps_ >= 0, "max_steps is negative");
  }

  void add_layer(nb::ndarray<const int16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> weight,
                 nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> parameters,
                 int64_t inputs, int slope, bool gate, bool recurrent, int reduce,
                 const std::vector<int64_t>& geometry, int slow, int slow_bits) {
    rule(!started_, "it runs already");
    rule(0 <= reduce && reduce <= 3, "no such readout");
    rule(layers_.empty() || layers_.back().neurons() == inputs, "layers do not fit together");
    rule(layers_.empty() || layers_.back().reduce == Reduce::none, "a layer behind the readout");
    OwnedLayer made;
    made.reduce = static_cast<Reduce>(reduce);
    ChipLayer& view = made.view;
    view.inputs = inputs;
    view.width = static_cast<int64_t>(weight.shape(1));
    view.shift = shift_;
    view.bits = bits_;
    view.slope = slope;
    view.gate = gate;
    rule(0 <= slow && slow <= 2, "no such slow state");
    view.slow = static_cast<Slow>(slow);
    rule(slow == 0 || (2 <= slow_bits && slow_bits <= 29 && geometry.empty() && reduce == 0),
         "slow states are those of dense hidden layers, of 2 to 29 bits");
    view.slow_top = slow ? (1 << (slow_bits - 1)) - 1 : 0;
    view.recurrent = recurrent;
    view.convolution = !geometry.empty();
    rule(0 <= inputs && inputs < kMost && 1 <= view.width && view.width < kMost, "a layer has a size that cannot be");
    if (view.convolution)
      set_geometry(made, geometry);
    else
      view.pixels = 1;
    // Kernels of dense layers take up to 32 lanes at once, those of convolutions 16.
    view.lanes = rounded(view.width, view.convolution ? 16 : 32);
    rule(view.lanes * view.pixels < kMost, "a layer has too many neurons");
    const int64_t rows = view.convolution ? in_channels_ * view.kernel * view.kernel
                                          : inputs + (recurrent ? view.width : 0);
    rule(static_cast<int64_t>(weight.shape(0)) == rows, "weights do not fit the inputs");
    take_weights(made, weight.data(), rows);
    rule(parameters.shape(0) == (slow ? 7 : 4) && static_cast<int64_t>(parameters.shape(1)) == made.neurons(),
         "parameters do not fit the neurons");
    take_parameters(made, parameters.data());
    layers_.push_back(std::move(made));
    layers_.back().view.rows = layers_.back().rows.view();
    layers_.back().view.columns = layers_.back().columns.view();
  }

  // After the last layer; from then on it can be used.
  void start() {
    rule(!started_ && !layers_.empty() && layers_.back().reduce != Reduce::none, "the last layer must be the readout");
    outputs_.assign(static_cast<size_t>(layers_.back().neurons()), 0);
    state_ = silent(true);
    started_ = true;
  }

  // False, with nothing changed, where the events or the step may not be.
  bool step(nb::ndarray<const int64_t, nb::ndim<1>, nb::device::cpu> events, bool last) {
    ready();
    const int64_t count = static_cast<int64_t>(events.shape(0)), stride = events.stride(0);
    const int64_t inputs = layers_.front().view.inputs;
    if (count > inputs || (max_steps_ && state_.step >= max_steps_)) return false;
    const int64_t* from = events.data();
    int64_t before = -1;
    bool wrong = false;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t event = from[i * stride];
      wrong |= event <= before;
      before = event;
    }
    if (wrong || before >= inputs) return false;
    for (int64_t i = 0; i < count; ++i) state_.input[i] = static_cast<int32_t>(from[i * stride]);
    advance(chip_kernels(), state_, state_.input.data(), count, last, outputs_.data());
    return true;
  }

  void reset() {
    ready();
    silence(state_);
    rest(state_);
  }

  Numbers outputs() {
    ready();
    return Numbers(outputs_.data(), {outputs_.size()}, nb::find(this));
  }

  Numbers spikes(int64_t layer) const {
    const State::Part& part = hidden(layer);
    std::vector<int64_t> found(part.fired.data(), part.fired.data() + part.shown);
    std::sort(found.begin(), found.end());  // a convolution finds them pixel by pixel
    return numbers(std::move(found));
  }

  Numbers membranes(int64_t layer) const {
    const State::Part& part = hidden(layer);
    const OwnedLayer& of = layers_[static_cast<size_t>(layer)];
    std::vector<int64_t> found(static_cast<size_t>(of.neurons()));
    for (int64_t i = 0; i < of.neurons(); ++i) found[static_cast<size_t>(i)] = part.s[of.place(i)];
    return numbers(std::move(found));
  }

  // Steps, samples, input events; then of each layer events, taps inside, outside, spikes.
  std::vector<int64_t> tally() const {
    ready();
    return tally_of(state_);
  }

  int64_t steps() const { return state_.step; }

  // Place of the first number of x that is neither 0 nor 1, and nothing done, or -1; and the tally.
  template <typename Item>
  std::pair<int64_t, std::vector<int64_t>> run(Spikes<Item> x, Outputs outputs, int threads) const {
    ready();
    const int64_t t = static_cast<int64_t>(x.shape(0)), b = static_cast<int64_t>(x.shape(1));
    const int64_t answers = layers_.back().reduce == Reduce::each ? t : 1;
    if (t < 1 || (max_steps_ && t > max_steps_) ||
        static_cast<int64_t>(x.shape(2)) != layers_.front().view.inputs ||
        static_cast<int64_t>(outputs.shape(0)) != answers ||
        static_cast<int64_t>(outputs.shape(1)) != b ||
        static_cast<int64_t>(outputs.shape(2)) != layers_.back().neurons())
      throw std::invalid_argument("run: x and outputs do not fit the program");
    const ChipKernels& kernels = chip_kernels();
    const Item* from = x.data();
    int64_t* to = outputs.data();
    nb::gil_scoped_release release;
    const int64_t wrong = first_wrong(kernels, from, t * b, layers_.front().view.inputs);
    if (wrong >= 0) return {wrong, {}};
    return {-1, batch(kernels, from, t, b, to, threads)};
  }

 private:
  void ready() const {
    if (!started_) throw std::runtime_error("the chip has not been started: it has no program yet");
  }

  const State::Part& hidden(int64_t layer) const {
    ready();
    if (layer < 0 || layer >= static_cast<int64_t>(layers_.size()) - 1) throw std::out_of_range("no such hidden layer");
    return state_.parts[static_cast<size_t>(layer)];
  }

  void set_geometry(OwnedLayer& made, const std::vector<int64_t>& g) {
    rule(g.size() == 9, "a geometry has nine numbers");
    const int64_t channels = g[0], height = g[1], width = g[2], out_height = g[3], out_width = g[4];
    const int64_t kernel = g[5], stride = g[6], padding = g[7], pool = g[8];
    for (int64_t value : {channels, height, width, out_height, out_width, kernel, stride, pool})
      rule(1 <= value && value < (1 << 15), "a convolution has a size that cannot be");
    rule(0 <= padding && padding < (1 << 15), "a convolution has a padding that cannot be");
    ChipLayer& view = made.view;
    rule(channels * height * width == view.inputs, "inputs do not fit the image");
    rule(!view.recurrent, "a convolution cannot be recurrent");
    view.pixels = out_height * out_width;
    view.in_height = height;
    view.in_width = width;
    view.out_width = out_width;
    view.kernel = kernel;
    in_channels_ = channels;
    made.rows = Axis(height, out_height, kernel, stride, padding, pool);
    made.columns = Axis(width, out_width, kernel, stride, padding, pool);
  }

  static void take_weights(OwnedLayer& made, const int16_t* from, int64_t rows) {
    ChipLayer& view = made.view;
    const int64_t width = view.width;
    view.narrow = std::all_of(from, from + rows * width, [](int16_t w) { return -128 <= w && w < 128; });
    view.stride = rounded(view.lanes, view.narrow ? 64 : 32);
    const int64_t bytes = view.narrow ? 1 : 2;
    made.weight = Buffer<int8_t>(rows * view.stride * bytes);
    for (int64_t r = 0; r < rows; ++r, from += width) {
      int8_t* row = made.weight.data() + r * view.stride * bytes;
      if (view.narrow)
        std::transform(from, from + width, row, [](int16_t w) { return static_cast<int8_t>(w); });
      else
        std::memcpy(row, from, static_cast<size_t>(width) * 2);
    }
    view.weight = made.weight.data();
  }

  void take_parameters(OwnedLayer& made, const int32_t* from) const {
    ChipLayer& view = made.view;
    const int64_t n = made.neurons(), size = made.size();
    const int32_t one = 1 << bits_, *decay = from + 2 * n;
    rule(std::all_of(decay, decay + n, [one](int32_t d) { return 0 <= d && d <= one; }) &&
             0 <= view.slope && view.slope <= one,
         "decays and slopes lie in 0 to " + std::to_string(one));
    const auto kind = [one](const int32_t* begin, const int32_t* end) {
      const auto all = [&](int32_t value) { return std::all_of(begin, end, [value](int32_t d) { return d == value; }); };
      return all(0) ? Factor::zero : all(one) ? Factor::one : Factor::other;
    };
    view.decays = kind(decay, decay + n);
    view.slopes = kind(&view.slope, &view.slope + 1);
    const bool slow = view.slow != Slow::none;
    const int64_t parts = slow ? 7 : 4;
    if (slow) {
      const int32_t* rho = from + 4 * n;
      const int32_t* pull = from + 5 * n;
      rule(std::all_of(rho, rho + n, [one](int32_t r) { return 0 <= r && r <= one; }) &&
               std::all_of(pull, pull + n, [one](int32_t p) { return 0 <= p && p <= 4 * one; }),
           "factors of slow states lie in 0 to " + std::to_string(one) + " and to four times that");
    }
    made.parameters = Buffer<int32_t>(parts * size);
    int32_t* to[7] = {};
    for (int64_t part = 0; part < parts; ++part) {
      to[part] = made.parameters.data() + part * size;
      if (part == 1) std::fill(to[1], to[1] + size, INT32_MAX);  // nothing is above it
      for (int64_t i = 0; i < n; ++i) to[part][made.place(i)] = from[part * n + i];
    }
    view.bias = to[0];
    view.threshold = to[1];
    view.decay = to[2];
    view.amount = to[3];
    view.rho = to[4];
    view.pull = to[5];
    view.kick = to[6];
  }

  State silent(bool keep) const {
    State state;
    for (const OwnedLayer& layer : layers_) {
      State::Part part;
      part.v = Buffer<int32_t>(layer.size());
      if (layer.view.slow != Slow::none) part.w = Buffer<int32_t>(layer.size());
      if (keep) part.s = Buffer<int32_t>(layer.size());
      part.fired = Buffer<int32_t>(layer.neurons() + kSpare);
      state.parts.push_back(std::move(part));
    }
    state.input = Buffer<int32_t>(layers_.front().view.inputs + kSpare);
    silence(state);
    if (keep) rest(state);
    return state;
  }

  void silence(State& state) const {
    state.step = 0;
    for (size_t l = 0; l < layers_.size(); ++l) {
      std::memcpy(state.parts[l].v.data(), layers_[l].view.bias, static_cast<size_t>(layers_[l].size()) * 4);
      if (layers_[l].view.slow != Slow::none)
        std::memset(state.parts[l].w.data(), 0, static_cast<size_t>(layers_[l].size()) * 4);
      state.parts[l].heard = 0;
    }
  }

  // What is shown before the first step: no spikes, and the membranes that wait for it.
  void rest(State& state) const {
    for (size_t l = 0; l < layers_.size(); ++l) {
      std::memcpy(state.parts[l].s.data(), layers_[l].view.bias, static_cast<size_t>(layers_[l].size()) * 4);
      state.parts[l].shown = 0;
    }
  }

  void advance(const ChipKernels& kernels, State& state, const int32_t* events, int64_t count,
               bool last, int64_t* outputs) const {
    ++state.step;
    ++state.steps;
    state.input_events += count;
    for (size_t l = 0; l < layers_.size(); ++l) {
      const OwnedLayer& layer = layers_[l];
      State::Part& part = state.parts[l];
      int32_t* v = part.v.data();
      part.tally.events += count;
      if (layer.view.convolution) {
        const Reached taps = kernels.add_taps(layer.view, events, count, v);
        part.tally.inside += taps.inside;
        part.tally.outside += taps.outside;
      } else {
        kernels.add_rows(layer.view, events, count, 0, v);
        if (layer.view.recurrent) {
          kernels.add_rows(layer.view, part.fired.data(), part.heard, layer.view.inputs, v);
          part.tally.events += part.heard;
        }
      }
      if (layer.reduce != Reduce::none) {
        read_out(layer, v, outputs);
        break;
      }
      count = kernels.fire(layer.view, v, part.w.data(), part.s.data(), part.fired.data());
      events = part.fired.data();
      part.heard = part.shown = count;
      part.tally.spikes += count;
    }
    if (last) {
      ++state.samples;
      silence(state);
    }
  }

  // Writes (O,) outputs and leaves what waits for the next step.
  void read_out(const OwnedLayer& layer, int32_t* v, int64_t* outputs) const {
    const ChipLayer& view = layer.view;
    for (int64_t channel = 0; channel < view.width; ++channel)
      for (int64_t pixel = 0; pixel < view.pixels; ++pixel) {
        const int64_t at = pixel * view.lanes + channel;
        *outputs++ = (static_cast<int64_t>(v[at]) * view.decay[at]) >> bits_;
        v[at] = layer.reduce == Reduce::sum ? v[at] + view.bias[at] : view.bias[at];
      }
  }

  static std::vector<int64_t> tally_of(const State& state) {
    std::vector<int64_t> found = {state.steps, state.samples, state.input_events};
    for (const State::Part& part : state.parts)
      for (int64_t value : {part.tally.events, part.tally.inside, part.tally.outside, part.tally.spikes})
        found.push_back(value);
    return found;
  }

  static bool bits(const ChipKernels& k, const uint8_t* x, int64_t n) { return k.bits_in_bytes(x, n); }
  static bool bits(const ChipKernels& k, const float* x, int64_t n) { return k.bits_in_floats(x, n); }
  static bool bits(const ChipKernels& k, const double* x, int64_t n) { return k.bits_in_doubles(x, n); }
  static int64_t ones(const ChipKernels& k, const uint8_t* x, int64_t n, int32_t* to) { return k.ones_of_bytes(x, n, to); }
  static int64_t ones(const ChipKernels& k, const float* x, int64_t n, int32_t* to) { return k.ones_of_floats(x, n, to); }
  static int64_t ones(const ChipKernels& k, const double* x, int64_t n, int32_t* to) { return k.ones_of_doubles(x, n, to); }

  template <typename Item>
  static int64_t first_wrong(const ChipKernels& kernels, const Item* x, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; ++row) {
      if (bits(kernels, x + row * width, width)) continue;
      for (int64_t i = row * width;; ++i)
        if (!(x[i] == 0 || x[i] == 1)) return i;
    }
    return -1;
  }

  template <typename Item>
  std::vector<int64_t> batch(const ChipKernels& kernels, const Item* x, int64_t t, int64_t b,
                             int64_t* outputs, int threads) const {
    const int64_t inputs = layers_.front().view.inputs, answers = layers_.back().neurons();
    const bool each = layers_.back().reduce == Reduce::each;
#ifdef SPIKEBRIDGE_OPENMP
    const int64_t wanted = threads > 0 ? threads : omp_get_max_threads();
#else
    const int64_t wanted = 1;
#endif
    const int count = static_cast<int>(std::max<int64_t>(1, std::min(wanted, b)));
    std::vector<State> states;  // made here: nothing may be thrown among the threads
    for (int i = 0; i < count; ++i) states.push_back(silent(false));
#ifdef SPIKEBRIDGE_OPENMP
#pragma omp parallel for schedule(dynamic, 4) num_threads(count)
#endif
    for (int64_t sample = 0; sample < b; ++sample) {
#ifdef SPIKEBRIDGE_OPENMP
      State& state = states[static_cast<size_t>(omp_get_thread_num())];
#else
      State& state = states[0];
#endif
      for (int64_t step = 0; step < t; ++step) {
        const int64_t n = ones(kernels, x + (step * b + sample) * inputs, inputs, state.input.data());
        int64_t* to = outputs + ((each ? step * b : 0) + sample) * answers;
        advance(kernels, state, state.input.data(), n, step == t - 1, to);
      }
    }
    std::vector<int64_t> sum = tally_of(states[0]);
    for (int i = 1; i < count; ++i) {
      const std::vector<int64_t> more = tally_of(states[static_cast<size_t>(i)]);
      for (size_t k = 0; k < sum.size(); ++k) sum[k] += more[k];
    }
    return sum;
  }

  int bits_, shift_;
  int64_t max_steps_;
  int64_t in_channels_ = 0;  // of the convolution that is being added
  std::vector<OwnedLayer> layers_;
  State state_;
  std::vector<int64_t> outputs_;
  bool started_ = false;
};

}  // namespace

void bind_chip(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<Chip>(m, "Chip", "See spikebridge/chip/engine.py, which is the way to it.")
      .def(nb::init<int, int, int64_t>(), "decay_bits"_a, "fraction_bits"_a, "max_steps"_a)
      .def("add_layer", &Chip::add_layer, "weight"_a.noconvert(), "parameters"_a.noconvert(), "inputs"_a,
           "slope"_a, "gate"_a, "recurrent"_a, "reduce"_a, "geometry"_a,
           "slow"_a = 0, "slow_bits"_a = 0)
      .def("start", &Chip::start)
      .def("step", &Chip::step, nb::arg().noconvert(), nb::arg())
      .def("reset", &Chip::reset)
      .def("outputs", &Chip::outputs)
      .def("spikes", &Chip::spikes)
      .def("membranes", &Chip::membranes)
      .def("tally", &Chip::tally)
      .def_prop_ro("steps", &Chip::steps)
      .def("run", &Chip::run<uint8_t>, "x"_a.noconvert(), "outputs"_a.noconvert(), "threads"_a)
      .def("run", &Chip::run<float>, "x"_a.noconvert(), "outputs"_a.noconvert(), "threads"_a)
      .def("run", &Chip::run<double>, "x"_a.noconvert(), "outputs"_a.noconvert(), "threads"_a);
}

}  // namespace spikebridge
