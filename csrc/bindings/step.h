// The whole-step engine's class in the compiled module.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace fastgan::bindings {

void register_step_engine(pybind11::module_& m);

}  // namespace fastgan::bindings
