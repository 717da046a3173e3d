// The Python module fastgan._C: importing it registers the ops; it reports how it was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <iterator>
#include <string>
#include <vector>

#include "../core/activation.h"
#include "../core/gan_losses.h"
#include "../core/segmented.h"
#include "../cpu/simd.h"
#ifndef _OPENMP
#include <ATen/Parallel.h>

#include "../cpu/threads.h"
#endif
#include "direct_calls.h"
#include "layer_path.h"
#include "shared_group.h"
#include "step.h"
#ifdef FASTGAN_WITH_CUDA
#include "../cuda/device.h"
#endif

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastgan's compiled ops, registered under torch.ops.fastgan, and facts of their build";

#ifndef _OPENMP
  fastgan::cpu::set_most_threads([] { return at::in_parallel_region() ? 1 : at::get_num_threads(); });
#endif

  m.def(
      "build_facts",
      [] {
        py::dict facts;
        facts["torch"] = TORCH_VERSION;
#if defined(__clang__)
        facts["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
        facts["compiler"] = "g++ " __VERSION__;
#else
        facts["compiler"] = "unknown";
#endif
        facts["c++"] = static_cast<long>(__cplusplus);
#ifdef _OPENMP
        facts["openmp"] = true;
#else
        facts["openmp"] = false;
#endif
        facts["cpu_instructions"] = fastgan::cpu::isa_name();
        facts["cpu_bf16_instructions"] = fastgan::cpu::bf16_isa_name();
#ifdef FASTGAN_WITH_CUDA
        const int version = fastgan::cuda::toolkit_version();
        facts["cuda"] = std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
        facts["cuda_architectures"] = fastgan::cuda::architectures();
#else
        facts["cuda"] = py::none();
#endif
        return facts;
      },
      "How this module was built, and which CPU instructions it chose here.");

  m.def(
      "device_types",
      [] {
        std::vector<std::string> types{"cpu"};
#ifdef FASTGAN_WITH_CUDA
        types.push_back("cuda");
#endif
        return types;
      },
      "The torch device types that the ops have compiled kernels for.");

  m.def(
      "activations",
      [] { return std::vector<std::string>(fastgan::activation_names, std::end(fastgan::activation_names)); },
      "The names of the activations; the ops are given their places in this list.");

  m.def(
      "loss_terms",
      [] { return std::vector<std::string>(fastgan::loss_term_names, std::end(fastgan::loss_term_names)); },
      "The names of the terms of losses; the ops are given their places in this list.");

  m.def(
      "segment_kinds",
      [] { return std::vector<std::string>(fastgan::segment_kind_names, std::end(fastgan::segment_kind_names)); },
      "The kinds of segments; the op is given their places in this list.");

  m.def(
      "gan_losses",
      [] {
        const auto part = [](const fastgan::LossPart& of) {
          return py::make_tuple(fastgan::loss_term_names[static_cast<int>(of.term)], of.target, of.sign);
        };
        py::dict losses;
        for (const fastgan::GanLoss& loss : fastgan::gan_losses)
          losses[loss.name] = py::make_tuple(loss.discriminator, loss.is_paired, loss.takes_targets, part(loss.real),
                                             part(loss.fake), part(loss.generator), loss.scores_probability);
        return losses;
      },
      "The table of losses, by name: what fastgan.reference.GAN_LOSSES has.");

  m.def("layer_path", fastgan::bindings::layer_path_name, "Which kernels run the layers.");
  m.def("set_layer_path", fastgan::bindings::set_layer_path, py::arg("name"),
        "Choose them: automatic, narrow (a whole network a launch, where it fits), tiled (a product a launch) or "
        "library (torch's products). On the CPU both narrow and tiled are a whole network in one parallel region.");
  m.def("set_thread_layer_path", fastgan::bindings::set_thread_layer_path, py::arg("name"),
        "The same for this thread alone; an empty name ends that.");

  fastgan::bindings::register_direct_calls(m);
  fastgan::bindings::register_shared_group(m);
  fastgan::bindings::register_step_engine(m);
}
