// Calls from Python that skip its argument checks and torch.ops where everything is as usual. Each returns None where
// it is not: the Python function then looks for itself, and raises what is to be raised.
#pragma once

#include <pybind11/pybind11.h>

namespace fastgan::bindings {

void register_direct_calls(pybind11::module_& m);

}  // namespace fastgan::bindings
