// The made-up device of torch whose memory the host may not touch: see device.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace fastgan::bindings {

void register_device_memory(pybind11::module_& m);

}  // namespace fastgan::bindings
