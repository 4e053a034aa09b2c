// The Python door of the kernels: addresses in, nothing out.  torch owns all memory.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "scan.h"

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
using RuleTuple = std::tuple<int, double, bool, double, int, double, double>;

template <typename Real>
Real* at(Address address) {
  return reinterpret_cast<Real*>(address);
}

Shape shape_of(const Sizes& sizes) {
  return {std::get<0>(sizes), std::get<1>(sizes), std::get<2>(sizes)};
}

Rule rule_of(const RuleTuple& r) {
  return {static_cast<G>(std::get<0>(r)), std::get<1>(r), std::get<2>(r), std::get<3>(r),
          static_cast<H>(std::get<4>(r)), std::get<5>(r), std::get<6>(r)};
}

template <typename Io>
Strided<Io> strided(const Operand& o) {
  return {at<const Io>(std::get<0>(o)), std::get<1>(o), std::get<2>(o)};
}

// Fresh memory of this size comes from the system page by page; asking for large pages takes most of
// the faults away, which cost more than the scan itself.
void expect_large(const void* begin, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = 2 * 1024 * 1024;
  uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  uintptr_t end = (reinterpret_cast<uintptr_t>(begin) + bytes) / page * page;
  if (begin && end > first && end - first >= 4 * page)
    madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

#define SPIKEBRIDGE_RUN(isa, name) \
  (arguments.recurrent ? isa::recurrent_##name(arguments) : (isa::name(arguments), true))

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
void forward(const Sizes& sizes, const Operand& drive, Address recurrent, Address s0, Address y0,
             Address decay, Address bias, const RuleTuple& rule, Address y, Address s_all,
             Address s_last, Address y_last, int threads) {
  const Shape shape = shape_of(sizes);
  const int64_t count = shape.t * shape.b * shape.n;
  expect_large(at<Io>(y), count * sizeof(Io));
  expect_large(at<Real>(s_all), count * sizeof(Real));
  if (!run_forward(Forward<Io, Real>{shape, rule_of(rule), strided<Io>(drive), at<Real>(recurrent),
                                     at<Real>(s0), at<Real>(y0), at<Real>(decay), at<Real>(bias),
                                     at<Io>(y), at<Real>(s_all), at<Real>(s_last),
                                     at<Real>(y_last), threads}))
    throw std::bad_alloc();
}

template <typename Io, typename Real>
void backward(const Sizes& sizes, const Operand& grad_y, Address recurrent, Address grad_s_last,
              Address grad_y_last, Address s_all, Address s0, Address y0, Address decay, Address bias,
              const RuleTuple& rule, Address grad_drive, const std::vector<Address>& small,
              int threads) {
  const Shape shape = shape_of(sizes);
  expect_large(at<Io>(grad_drive), shape.t * shape.b * shape.n * sizeof(Io));
  if (!run_backward(Backward<Io, Real>{
          shape, rule_of(rule), strided<Io>(grad_y), at<Real>(recurrent), at<Real>(grad_s_last),
          at<Real>(grad_y_last), at<Real>(s_all), at<Real>(s0), at<Real>(y0), at<Real>(decay), at<Real>(bias),
          at<Io>(grad_drive), at<Real>(small.at(0)), at<Real>(small.at(1)), at<Real>(small.at(2)),
          at<Real>(small.at(3)), threads}))
    throw std::bad_alloc();
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Fused scans of spikebridge on raw pointers; see native/scan.h.";
  m.def("instruction_set", [] { return std::string(kNames[static_cast<int>(chosen)]); });
  m.def("instruction_sets", &instruction_sets, "Those that this processor can run.");
  m.def("choose_instruction_set", &choose, "For tests and measurements.");
#ifdef SPIKEBRIDGE_OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  using Release = nb::call_guard<nb::gil_scoped_release>;
  m.def("forward_float32", &forward<float, float>, Release());
  m.def("forward_float64", &forward<double, double>, Release());
  m.def("forward_bfloat16", &forward<Bf16, float>, Release());
  m.def("backward_float32", &backward<float, float>, Release());
  m.def("backward_float64", &backward<double, double>, Release());
  m.def("backward_bfloat16", &backward<Bf16, float>, Release());
}
