// StepEngine and Watch in the compiled module.
#include "step.h"

#include "step_engine.h"

namespace fastgan::bindings {

void register_step_engine(py::module_& m) {
#ifdef FASTGAN_SIMT
  m.def("has_bf16_step", [](bool) { return true; });
#else
  m.def(
      "has_bf16_step", [](bool on_cpu) { return !on_cpu || cpu::has_bf16_step(); }, py::arg("on_cpu"),
      "Whether the engine has products of bfloat16: on a CPU those of AVX-512 BF16 or AMX.");
#endif
  m.def(
      "is_plain", [](const py::object& t) { return THPVariable_CheckExact(t.ptr()) && is_trainable(tensor_of(t)); },
      py::arg("tensor"),
      "Whether a tensor's elements lie in memory as its sizes and strides say, and autograd takes it.");
  m.def(
      "has_node_hooks", [](const py::object& leaf) { return has_node_hooks(tensor_of(leaf)); }, py::arg("leaf"),
      "Whether the autograd node that accumulates a leaf's gradient has hooks.");
  py::class_<Watch, std::shared_ptr<Watch>>(m, "Watch", py::module_local(), "What a plan was made of.")
      .def(py::init<>())
      .def("object", &Watch::object, py::arg("instance"), py::arg("counted"))
      .def("dict", &Watch::dict)
      .def("again", &Watch::again)
      .def("items", &Watch::items, py::arg("dict"), py::arg("names"))
      .def("list", &Watch::list)
      .def("empty", &Watch::empty)
      .def("type", &Watch::type)
      .def("tensor", &Watch::tensor, py::arg("tensor"), py::arg("is_parameter") = false)
      .def("overlaps", &Watch::overlaps)
      .def("is_current", &Watch::is_current);
  py::class_<StepEngine>(m, "StepEngine", py::module_local(),
                         "A whole training step; see fastgan/engine.py, which makes it.")
      .def(py::init([](int64_t latent, int64_t data, int64_t classes, int64_t pac, int64_t d_steps, bool reuse_fake,
                       const std::string& loss, double real_target, double fake_target, double r1, double r2, double gp,
                       double gp_center, bool of_probability, double clip_norm, double average_rate, bool has_noise,
                       int64_t least_batch, double condition_weight, bool bf16, std::shared_ptr<Watch> watch,
                       py::object device_mode) {
             return std::make_unique<StepEngine>(
                 StepSettings{.latent = latent,
                              .data = data,
                              .classes = classes,
                              .pac = pac,
                              .d_steps = d_steps,
                              .reuse_fake = reuse_fake,
                              .loss = loss_named(loss),
                              .real_target = real_target,
                              .fake_target = fake_target,
                              .penalties = {r1, r2, gp, gp_center, /*are_due=*/false, of_probability},
                              .clip_norm = clip_norm,
                              .average_rate = average_rate,
                              .has_noise = has_noise,
                              .least_batch = least_batch,
                              .condition_weight = condition_weight,
                              .bf16 = bf16},
                 std::move(watch), std::move(device_mode));
           }),
           py::arg("latent"), py::arg("data"), py::arg("classes"), py::arg("pac"), py::arg("d_steps"),
           py::arg("reuse_fake"), py::arg("loss"), py::arg("real_target"), py::arg("fake_target"), py::arg("r1"),
           py::arg("r2"), py::arg("gp"), py::arg("gp_center"), py::arg("of_probability"), py::arg("clip_norm"),
           py::arg("average_rate"), py::arg("has_noise"), py::arg("least_batch"), py::arg("condition_weight"),
           py::arg("bf16"), py::arg("watch"), py::arg("device_mode"))
      .def("add_layer", &StepEngine::add_layer)
      .def("set_batch_norm", &StepEngine::set_batch_norm)
      .def("set_segments", &StepEngine::set_segments)
      .def("set_dropout", &StepEngine::set_dropout)
      .def("add_parameter", &StepEngine::add_parameter, py::arg("network"), py::arg("is_bias"), py::arg("value"),
           py::arg("average"), py::arg("is_in_optimizer"), py::arg("group"), py::arg("state"))
      .def("add_copied_buffer", &StepEngine::add_copied_buffer)
      .def("add_group", &StepEngine::add_group)
#ifndef FASTGAN_SIMT
      .def("set_exchange", &StepEngine::set_exchange, py::arg("begin_sum"), py::arg("meet"), py::arg("processes"),
           py::arg("shared"), py::arg("part_bytes"))
      .def("set_timed", &StepEngine::set_timed)
      .def("seconds", &StepEngine::seconds)
#endif
      .def(
          "set_choice",
          [](StepEngine& engine, int64_t batch, bool tf32, bool composed, std::optional<bool> narrow,
             const std::map<ProductKey, int64_t>& products) {
            engine.set_choice(batch, tf32, {.composed = composed, .narrow = narrow, .products = products});
          },
          py::arg("batch"), py::arg("tf32"), py::arg("composed"), py::arg("narrow"), py::arg("products"))
      .def("rounds_to_tf32", &StepEngine::rounds_to_tf32)
      .def("is_on_cuda", &StepEngine::is_on_cuda)
      .def("taken", &StepEngine::taken)
      .def("accepts", &StepEngine::accepts, py::arg("real"), py::arg("labels"), py::arg("noise"))
      .def("accepts_discriminator", &StepEngine::accepts_discriminator, py::arg("real"), py::arg("fake"),
           py::arg("labels"), py::arg("fake_labels"), py::arg("due") = false)
      .def("step", &StepEngine::step, py::arg("real"), py::arg("labels"), py::arg("noise"), py::arg("asks") = false,
           py::arg("due") = false, py::arg("noise_scale") = 0.0)
      .def("step_discriminator", &StepEngine::step_discriminator, py::arg("real"), py::arg("fake"), py::arg("labels"),
           py::arg("fake_labels"), py::arg("asks") = false, py::arg("due") = false);
}

}  // namespace fastgan::bindings
