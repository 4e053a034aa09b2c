// What native/module.cpp and native/chip.cpp know of each other.
#pragma once
#include <nanobind/nanobind.h>

#include "chip.h"

namespace spikebridge {

const ChipKernels& chip_kernels();  // of the chosen instruction set
void bind_chip(nanobind::module_& m);

}  // namespace spikebridge
