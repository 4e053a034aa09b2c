// The Python door of the kernels: addresses in, nothing out.  torch owns all memory.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "buffers.h"
#include "chip_binding.h"
#include "grapes_factors.h"
#include "rescale.h"
#include "scan.h"
#include "sparse.h"
#include "sparse_conv.h"

namespace nb = nanobind;
using namespace spikebridge;

namespace {

enum class Isa { baseline, avx2, avx512 };

bool runs_here(Isa isa) {
#ifdef SPIKEBRIDGE_X86
  __builtin_cpu_init();
  if (isa == Isa::avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return isa == Isa::baseline;
}

Isa best() {
  for (Isa isa : {Isa::avx512, Isa::avx2})
    if (runs_here(isa)) return isa;
  return Isa::baseline;
}

Isa chosen = best();
const char* const kNames[] = {"baseline", "avx2", "avx512"};

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (runs_here(isa)) names.emplace_back(kNames[static_cast<int>(isa)]);
  return names;
}

void choose(const std::string& name) {
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (name == kNames[static_cast<int>(isa)] && runs_here(isa)) {
      chosen = isa;
      return;
    }
  throw std::invalid_argument("instruction set '" + name + "' does not run on this processor");
}

using Address = uintptr_t;
using Sizes = std::tuple<int64_t, int64_t, int64_t>;
using Operand = std::tuple<Address, int64_t, int64_t>;
using RuleTuple =
    std::tuple<int, double, bool, double, int, double, double, bool, int, std::vector<double>>;

template <typename Real>
Real* at(Address address) {
  return reinterpret_cast<Real*>(address);
}

Shape shape_of(const Sizes& sizes) {
  return {std::get<0>(sizes), std::get<1>(sizes), std::get<2>(sizes)};
}

Rule rule_of(const RuleTuple& r) {
  Rule rule{static_cast<G>(std::get<0>(r)), std::get<1>(r), std::get<2>(r), std::get<3>(r),
            std::get<4>(r), std::get<5>(r), std::get<6>(r), std::get<7>(r), std::get<8>(r), {}};
  const std::vector<double>& numbers = std::get<9>(r);
  if (numbers.size() > kNumbers) throw std::invalid_argument("a unit has too many numbers");
  std::copy(numbers.begin(), numbers.end(), rule.numbers);
  return rule;
}

template <typename Io>
Strided<Io> strided(const Operand& o) {
  return {at<const Io>(std::get<0>(o)), std::get<1>(o), std::get<2>(o)};
}

// The exchange format of DLPack 0.8, which torch.utils.dlpack.from_dlpack takes.
struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};

struct Exchange {
  DLManagedTensor managed;
  std::vector<int64_t> shape;
};

// A dense CPU tensor of reused memory; `code` and `bits` as in DLPack (2: float, 4: bfloat16).
nb::object pooled(const std::vector<int64_t>& shape, int code, int bits) {
  // Numbers and strides alike must be countable: torch would refuse the tensor after it has freed it.
  int64_t count = 1, bytes = bits / 8;
  for (int64_t size : shape) {
    if (size < 0) throw std::invalid_argument("a size is negative");
    count = size ? count : 0;
    if (__builtin_mul_overflow(bytes, size ? size : 1, &bytes)) throw std::bad_alloc();
  }
  void* memory = acquire(count ? bytes : 0);
  if (!memory) throw std::bad_alloc();
  auto* made = new Exchange{{}, shape};
  made->managed.tensor = {memory, 1, 0, static_cast<int32_t>(shape.size()), static_cast<uint8_t>(code),
                          static_cast<uint8_t>(bits), 1, made->shape.data(), nullptr, 0};
  made->managed.context = made;
  // Called from any thread, with or without Python's lock, even after Python has ended.
  made->managed.deleter = [](DLManagedTensor* self) {
    release(self->tensor.data);
    delete static_cast<Exchange*>(self->context);
  };
  PyObject* capsule = PyCapsule_New(&made->managed, "dltensor", [](PyObject* self) {
    // Renamed by whoever took it over.
    if (!PyCapsule_IsValid(self, "dltensor")) return;
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(self, "dltensor"));
    managed->deleter(managed);
  });
  if (!capsule) {
    made->managed.deleter(&made->managed);
    throw nb::python_error();
  }
  return nb::steal(capsule);
}

#define SPIKEBRIDGE_RUN(isa, name) \
  (arguments.recurrent || arguments.rule.lateral ? isa::recurrent_##name(arguments) : (isa::name(arguments), true))

template <typename Arguments>
bool run_forward(const Arguments& arguments) {
#ifdef SPIKEBRIDGE_X86
  if (chosen == Isa::avx512) return SPIKEBRIDGE_RUN(avx512, forward);
  if (chosen == Isa::avx2) return SPIKEBRIDGE_RUN(avx2, forward);
#endif
  return SPIKEBRIDGE_RUN(baseline, forward);
}

template <typename Arguments>
bool run_backward(const Arguments& arguments) {
#ifdef SPIKEBRIDGE_X86
  if (chosen == Isa::avx512) return SPIKEBRIDGE_RUN(avx512, backward);
  if (chosen == Isa::avx2) return SPIKEBRIDGE_RUN(avx2, backward);
#endif
  return SPIKEBRIDGE_RUN(baseline, backward);
}

template <typename Io, typename Real>
void forward(const Sizes& sizes, const Operand& drive, Address recurrent, int fed, Address s0,
             Address y0, Address decay, Address bias, Address own, const RuleTuple& rule, Address y,
             Address s_all, Address seen, Address s_last, Address y_last, int threads) {
  const Shape shape = shape_of(sizes);
  if (!run_forward(Forward<Io, Real>{shape, rule_of(rule), strided<Io>(drive), at<Real>(recurrent),
                                     fed, at<Real>(s0), at<Real>(y0), at<Real>(decay), at<Real>(bias),
                                     at<Real>(own), at<Io>(y), at<Real>(s_all), at<Real>(seen),
                                     at<Real>(s_last), at<Real>(y_last), threads}))
    throw std::bad_alloc();
}

template <typename Io, typename Real>
void backward(const Sizes& sizes, const Operand& grad_y, const Operand& drive, Address seen,
              Address recurrent, int fed, Address grad_s_last, Address grad_y_last, Address s_all, Address s0, Address y0,
              Address decay, Address bias, Address own, const RuleTuple& rule, Address grad_drive,
              const std::vector<Address>& small, int threads) {
  const Shape shape = shape_of(sizes);
  if (!run_backward(Backward<Io, Real>{
          shape, rule_of(rule), strided<Io>(grad_y), strided<Io>(drive), at<Real>(seen), at<Real>(recurrent), fed,
          at<Real>(grad_s_last), at<Real>(grad_y_last), at<Real>(s_all), at<Real>(s0), at<Real>(y0),
          at<Real>(decay), at<Real>(bias), at<Real>(own), at<Io>(grad_drive), at<Real>(small.at(0)),
          at<Real>(small.at(1)), at<Real>(small.at(2)), at<Real>(small.at(3)), at<Real>(small.at(4)),
          threads}))
    throw std::bad_alloc();
}

// The copy for the instruction set in use.
#ifdef SPIKEBRIDGE_X86
#define SPIKEBRIDGE_CHOSEN(name, ...)              \
  (chosen == Isa::avx512 ? avx512::name(__VA_ARGS__) \
   : chosen == Isa::avx2 ? avx2::name(__VA_ARGS__)   \
                         : baseline::name(__VA_ARGS__))
#else
#define SPIKEBRIDGE_CHOSEN(name, ...) baseline::name(__VA_ARGS__)
#endif

using WeightsTuple = std::tuple<Address, int64_t, int64_t, int, int64_t, int64_t>;

template <typename Real>
void importance(const std::vector<WeightsTuple>& weights, int64_t size, Address sums, Address factors,
                const std::tuple<bool, double, double, bool>& rule, int threads) {
  std::vector<Weights<Real>> sources;
  for (const auto& [data, rows, columns, axis, gates, repeat] : weights)
    sources.push_back({at<const Real>(data), rows, columns, axis, gates, repeat});
  const auto& [clipped, low, high, gain] = rule;
  const Importance<Real> wanted{sources.data(), static_cast<int64_t>(sources.size()), size,
                                at<Real>(sums), at<Real>(factors), clipped,
                                static_cast<Real>(low), static_cast<Real>(high), gain, threads};
  if (!SPIKEBRIDGE_CHOSEN(importance, wanted)) throw std::bad_alloc();
}

Extent extent_of(const Sizes& sizes) {
  return {std::get<0>(sizes), std::get<1>(sizes), std::get<2>(sizes)};
}

template <typename Io, typename Real>
void channel_dots(const Sizes& sizes, Address a, Address b, Address out, int threads) {
  const ChannelDots<Io, Real> wanted{extent_of(sizes), at<const Io>(a), at<const Io>(b), at<Real>(out),
                                     threads};
  SPIKEBRIDGE_CHOSEN(channel_dots, wanted);
}

template <typename Io, typename Real>
void channel_sums(const Sizes& sizes, Address a, Address factor_a, Address b, Address factor_b,
                  Address out, int threads) {
  const ChannelSums<Io, Real> wanted{extent_of(sizes),        at<const Io>(a),          at<const Io>(b),
                                     at<const Real>(factor_a), at<const Real>(factor_b), at<Io>(out),
                                     threads};
  SPIKEBRIDGE_CHOSEN(channel_sums, wanted);
}

// Marks of x (rows, inputs) into bits (rows, words): how many, and whether each is of a 1.
template <typename Io>
std::tuple<int64_t, bool> mark(const Sizes& sizes, Address x, Address bits, int threads) {
  const auto [rows, inputs, stride] = sizes;
  const Dense<Io> of{at<const Io>(x), rows, inputs, stride};
  const Marks marks = SPIKEBRIDGE_CHOSEN(mark, of, at<uint64_t>(bits), threads);
  return {marks.count, marks.ones};
}

// The same of membranes near the threshold.
template <typename Real>
std::tuple<int64_t, bool> mark_near(const std::tuple<int64_t, int64_t>& sizes, Address s,
                                    Address bias, double width, Address bits, int threads) {
  const auto [rows, columns] = sizes;
  const Near<Real> of{at<const Real>(s), at<const Real>(bias), rows, columns,
                      static_cast<Real>(width)};
  const Marks marks = SPIKEBRIDGE_CHOSEN(mark_near, of, at<uint64_t>(bits), threads);
  return {marks.count, marks.ones};
}

template <typename Real>
Marked<Real> marked(const Sizes& sizes, const std::tuple<Address, int64_t>& bits,
                    const std::tuple<Address, int64_t>& values) {
  const auto [rows, inputs, outputs] = sizes;
  return {rows, inputs, outputs, at<const uint64_t>(std::get<0>(bits)), std::get<1>(bits), at<const Real>(std::get<0>(values)),
          std::get<1>(values)};
}

template <typename Io, typename Real>
void sparse_forward(const Sizes& sizes, const std::tuple<Address, int64_t>& bits,
                    const std::tuple<Address, int64_t>& values,
                    Address weight, Address y, int threads) {
  const SparseForward<Io, Real> wanted{marked<Real>(sizes, bits, values), at<const Real>(weight),
                                       at<Io>(y), threads};
  if (!SPIKEBRIDGE_CHOSEN(sparse_forward, wanted)) throw std::bad_alloc();
}

template <typename Io, typename Real>
void sparse_inputs(const Sizes& sizes, const std::tuple<Address, int64_t>& bits,
                   const std::tuple<Address, int64_t>& grad, Address weight, Address out,
                   int threads) {
  const SparseInputs<Io, Real> wanted{marked<Real>(sizes, bits, {0, 0}),
                                      at<const Io>(std::get<0>(grad)), std::get<1>(grad),
                                      at<const Real>(weight), at<Io>(out), threads};
  if (!SPIKEBRIDGE_CHOSEN(sparse_inputs, wanted)) throw std::bad_alloc();
}

template <typename Io, typename Real>
void sparse_weights(const Sizes& sizes, const std::tuple<Address, int64_t>& bits,
                    const std::tuple<Address, int64_t>& values,
                    const std::tuple<Address, int64_t>& grad, Address out, int threads) {
  const SparseWeights<Io, Real> wanted{marked<Real>(sizes, bits, values),
                                       at<const Io>(std::get<0>(grad)), std::get<1>(grad),
                                       at<Real>(out), threads};
  if (!SPIKEBRIDGE_CHOSEN(sparse_weights, wanted)) throw std::bad_alloc();
}

template <typename Real>
Images<Real> images(const std::vector<int64_t>& sizes, Address bits, Address values) {
  const ConvShape shape{sizes.at(0), sizes.at(1), sizes.at(2), sizes.at(3), sizes.at(4),
                        sizes.at(5), sizes.at(6), sizes.at(7), sizes.at(8), sizes.at(9)};
  return {shape, at<const uint64_t>(bits), at<const Real>(values)};
}

template <typename Io, typename Real>
void conv_forward(const std::vector<int64_t>& sizes, Address bits, Address values, Address weight,
                  Address y, int threads) {
  const ConvForward<Io, Real> wanted{images<Real>(sizes, bits, values), at<const Real>(weight),
                                     at<Io>(y), threads};
  if (!SPIKEBRIDGE_CHOSEN(conv_forward, wanted)) throw std::bad_alloc();
}

template <typename Io, typename Real>
void conv_weights(const std::vector<int64_t>& sizes, Address bits, Address values, Address grad,
                  Address out, int threads) {
  const ConvWeights<Io, Real> wanted{images<Real>(sizes, bits, values), at<const Io>(grad),
                                     at<Real>(out), threads};
  if (!SPIKEBRIDGE_CHOSEN(conv_weights, wanted)) throw std::bad_alloc();
}

}  // namespace

const ChipKernels& spikebridge::chip_kernels() {
#ifdef SPIKEBRIDGE_X86
  if (chosen == Isa::avx512) return avx512::chip_kernels;
  if (chosen == Isa::avx2) return avx2::chip_kernels;
#endif
  return baseline::chip_kernels;
}

NB_MODULE(_native, m) {
  m.doc() = "Fused scans of spikebridge on raw pointers; see native/scan.h.";
  m.def("instruction_set", [] { return std::string(kNames[static_cast<int>(chosen)]); });
  m.def("instruction_sets", &instruction_sets, "Those that this processor can run.");
  m.def("choose_instruction_set", &choose, "For tests and measurements.");
  nb::list surrogates;  // H by its codes
  for (int code = 0; const char* name = baseline::surrogate(code); ++code) surrogates.append(name);
  m.attr("surrogates") = surrogates;
  nb::list units;  // their steps by their codes, with what a neuron of each has
  for (int code = 0; baseline::unit_name(code).name; ++code) {
    const UnitName unit = baseline::unit_name(code);
    units.append(nb::make_tuple(unit.name, unit.states, unit.drives, unit.more, unit.reads, unit.every_g));
  }
  m.attr("units") = units;
#ifdef SPIKEBRIDGE_OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  using Release = nb::call_guard<nb::gil_scoped_release>;
  m.def("pooled", &pooled, "A DLPack capsule of a tensor whose memory is used again when it dies.");
  m.def("buffer_use", [] {
    const BufferUse use = buffer_use();
    return std::make_tuple(use.live, use.idle);
  });
  m.def("release_idle_buffers", &release_idle_buffers, Release());
  m.def("set_idle_limit", &set_idle_limit, Release());
  m.def("idle_limit", &idle_limit);
  m.def("forward_float32", &forward<float, float>, Release());
  m.def("forward_float64", &forward<double, double>, Release());
  m.def("forward_bfloat16", &forward<Bf16, float>, Release());
  m.def("backward_float32", &backward<float, float>, Release());
  m.def("backward_float64", &backward<double, double>, Release());
  m.def("backward_bfloat16", &backward<Bf16, float>, Release());
  m.def("importance_float32", &importance<float>, Release());
  m.def("importance_float64", &importance<double>, Release());
  m.def("channel_dots_float32", &channel_dots<float, float>, Release());
  m.def("channel_dots_float64", &channel_dots<double, double>, Release());
  m.def("channel_dots_bfloat16", &channel_dots<Bf16, float>, Release());
  m.def("channel_sums_float32", &channel_sums<float, float>, Release());
  m.def("channel_sums_float64", &channel_sums<double, double>, Release());
  m.def("channel_sums_bfloat16", &channel_sums<Bf16, float>, Release());
  m.def("mark_float32", &mark<float>, Release());
  m.def("mark_float64", &mark<double>, Release());
  m.def("mark_bfloat16", &mark<Bf16>, Release());
  m.def("mark_near_float32", &mark_near<float>, Release());
  m.def("mark_near_float64", &mark_near<double>, Release());
  m.def("sparse_forward_float32", &sparse_forward<float, float>, Release());
  m.def("sparse_forward_float64", &sparse_forward<double, double>, Release());
  m.def("sparse_forward_bfloat16", &sparse_forward<Bf16, float>, Release());
  m.def("sparse_inputs_float32", &sparse_inputs<float, float>, Release());
  m.def("sparse_inputs_float64", &sparse_inputs<double, double>, Release());
  m.def("sparse_inputs_bfloat16", &sparse_inputs<Bf16, float>, Release());
  m.def("sparse_weights_float32", &sparse_weights<float, float>, Release());
  m.def("sparse_weights_float64", &sparse_weights<double, double>, Release());
  m.def("sparse_weights_bfloat16", &sparse_weights<Bf16, float>, Release());
  m.def("conv_forward_float32", &conv_forward<float, float>, Release());
  m.def("conv_forward_float64", &conv_forward<double, double>, Release());
  m.def("conv_forward_bfloat16", &conv_forward<Bf16, float>, Release());
  m.def("conv_weights_float32", &conv_weights<float, float>, Release());
  m.def("conv_weights_float64", &conv_weights<double, double>, Release());
  m.def("conv_weights_bfloat16", &conv_weights<Bf16, float>, Release());
  bind_chip(m);
}
