// The Python door of the kernels: addresses in, nothing out.  torch owns all memory.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

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

template <typename Real>
Strided<Real> strided(const Operand& o) {
  return {at<const Real>(std::get<0>(o)), std::get<1>(o), std::get<2>(o)};
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

template <typename Real>
int64_t bytes_of(const Shape& shape) {
  return shape.t * shape.b * shape.n * static_cast<int64_t>(sizeof(Real));
}

template <typename Arguments>
void run_forward(const Arguments& arguments) {
#ifdef SPIKEBRIDGE_X86
  if (chosen == Isa::avx512) return avx512::forward(arguments);
  if (chosen == Isa::avx2) return avx2::forward(arguments);
#endif
  baseline::forward(arguments);
}

template <typename Arguments>
void run_backward(const Arguments& arguments) {
#ifdef SPIKEBRIDGE_X86
  if (chosen == Isa::avx512) return avx512::backward(arguments);
  if (chosen == Isa::avx2) return avx2::backward(arguments);
#endif
  baseline::backward(arguments);
}

template <typename Real>
void forward(const Sizes& sizes, const Operand& drive, Address s0, Address y0, Address decay,
             Address bias, const RuleTuple& rule, Address y, Address s_all, Address s_last,
             int threads) {
  const int64_t bytes = bytes_of<Real>(shape_of(sizes));
  expect_large(at<Real>(y), bytes);
  expect_large(at<Real>(s_all), bytes);
  run_forward(Forward<Real>{shape_of(sizes), rule_of(rule), strided<Real>(drive), at<Real>(s0),
                            at<Real>(y0), at<Real>(decay), at<Real>(bias), at<Real>(y),
                            at<Real>(s_all), at<Real>(s_last), threads});
}

template <typename Real>
void backward(const Sizes& sizes, const Operand& grad_y, Address grad_s_last, Address s_all,
              Address s0, Address y0, Address decay, Address bias, const RuleTuple& rule,
              Address grad_drive, const std::vector<Address>& small, int threads) {
  expect_large(at<Real>(grad_drive), bytes_of<Real>(shape_of(sizes)));
  run_backward(Backward<Real>{shape_of(sizes), rule_of(rule), strided<Real>(grad_y),
                              at<Real>(grad_s_last), at<Real>(s_all), at<Real>(s0), at<Real>(y0),
                              at<Real>(decay), at<Real>(bias), at<Real>(grad_drive),
                              at<Real>(small.at(0)), at<Real>(small.at(1)), at<Real>(small.at(2)),
                              at<Real>(small.at(3)), threads});
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
  m.def("forward_float32", &forward<float>, nb::call_guard<nb::gil_scoped_release>());
  m.def("forward_float64", &forward<double>, nb::call_guard<nb::gil_scoped_release>());
  m.def("backward_float32", &backward<float>, nb::call_guard<nb::gil_scoped_release>());
  m.def("backward_float64", &backward<double>, nb::call_guard<nb::gil_scoped_release>());
}
