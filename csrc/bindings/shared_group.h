// The memory that processes of one computer share, in the compiled module.
#pragma once

#include <pybind11/pybind11.h>

namespace fastgan::bindings {

void register_shared_group(pybind11::module_& m);

}  // namespace fastgan::bindings
