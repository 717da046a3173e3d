// SharedGroup: csrc/cpu/shared_group.h over tensors. fastgan/shared_memory.py says who opens it, and when.
#ifndef FASTGAN_SIMT  // whose module has no kernels of the CPU
#include "shared_group.h"

#include <pybind11/stl.h>

#include "../cpu/shared_group.h"
#include "common.h"

namespace fastgan::bindings {

namespace py = pybind11;
using cpu::SharedGroup;

void register_shared_group(py::module_& m) {
  using Free = py::call_guard<py::gil_scoped_release>;
  py::class_<SharedGroup, std::shared_ptr<SharedGroup>>(m, "SharedGroup")
      .def_static("exists", &SharedGroup::exists)
      .def(py::init([](const std::string& path, uint64_t token, int rank, int size, size_t bytes, double patience) {
             auto group = std::make_shared<SharedGroup>(path, token, rank, size, bytes);
             group->patience = patience;
             group->interrupted = [] {  // Ctrl-C, and what else Python has handlers for
               const py::gil_scoped_acquire gil;
               if (PyErr_CheckSignals() != 0) throw py::error_already_set();
             };
             return group;
           }),
           py::arg("path"), py::arg("token"), py::arg("rank"), py::arg("size"), py::arg("bytes"), py::arg("patience"))
      .def_property_readonly("path", &SharedGroup::path)
      .def_property_readonly("bytes", &SharedGroup::bytes)
      .def("watch", &SharedGroup::watch)
      .def("most", &SharedGroup::most, py::arg("values"), Free())
      .def("meet", &SharedGroup::meet, Free())
      .def("fail", &SharedGroup::fail)
      .def(
          "add_up",
          [](SharedGroup& group, const Tensor& values) {
            TORCH_CHECK(values.is_cpu() && values.is_contiguous(), "values must be contiguous and on the CPU");
            if (values.scalar_type() == at::kFloat)
              return group.add_up(values.mutable_data_ptr<float>(), values.numel());
            TORCH_CHECK(values.scalar_type() == at::kDouble, "values must be float32 or float64");
            group.add_up(values.mutable_data_ptr<double>(), values.numel());
          },
          py::arg("values"), Free());
}

}  // namespace fastgan::bindings
#endif
