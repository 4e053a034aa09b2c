// What native/module.cpp and native/chip_module.cpp know of each other.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <utility>
#include <vector>

#include "chip.h"

namespace spikebridge {

namespace nb = nanobind;

// What Python hands in and is given.
template <typename Item>
using Spikes = nb::ndarray<const Item, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Outputs = nb::ndarray<int64_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<nb::numpy, int64_t, nb::ndim<1>>;

inline Numbers numbers(std::vector<int64_t>&& values) {
  auto* owned = new std::vector<int64_t>(std::move(values));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<int64_t>*>(p); });
  return Numbers(owned->data(), {owned->size()}, owner);
}

const ChipKernels& chip_kernels();  // of the chosen instruction set
void bind_chip(nanobind::module_& m);

}  // namespace spikebridge
