// The layers that an nn.Sequential holds, read and run without a line of Python.
#pragma once

#include <pybind11/pybind11.h>

namespace fastgan::bindings {

void register_layer_reader(pybind11::module_& m);

}  // namespace fastgan::bindings
