// The Python module that registers the ops with their CUDA kernels, run by the host model, as torch.ops.fastgan_simt.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <iterator>
#include <string>
#include <vector>

#include "../../csrc/bindings/layer_path.h"
#include "../../csrc/bindings/step.h"
#include "../../csrc/core/activation.h"
#include "device.h"
#include "memory.h"
#include "modelled.h"
#include "simt.h"

PYBIND11_MODULE(_simt, m) {
  m.def("device_types",
        [] { return std::vector<std::string>{simt::are_kernels_kept_to_device_memory() ? "simt" : "cpu"}; });
  fastgan::bindings::register_device_memory(m);
  m.def("activations",
        [] { return std::vector<std::string>(fastgan::activation_names, std::end(fastgan::activation_names)); });
  m.def("layer_path", fastgan::bindings::layer_path_name);
  m.def("set_layer_path", fastgan::bindings::set_layer_path);
  m.def("set_thread_layer_path", fastgan::bindings::set_thread_layer_path);
  fastgan::bindings::register_step_engine(m);
  m.def("set_largest_cluster", [](int blocks) { simt::modelled.largest_cluster = blocks; });
  m.def("set_engine", [](const std::string& name) {
    simt::set_engine(name == "threads" ? simt::Engine::threads : simt::Engine::fibers);
  });
}
