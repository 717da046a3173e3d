// The mlp op: schemas, and derivatives of every order.
//   first order    mlp_backward
//   second order   mlp_double_backward, where backward is itself recorded (create_graph)
//   higher orders  the definition in torch ops, differentiated by torch
#include "mlp.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>

#include "higher_order.h"
#include "undispatched.h"

namespace fastgan::bindings {

namespace {

using torch::autograd::AutogradContext;

Tensor activation_composed(const Tensor& z, LayerActivation a) {
  Tensor y;
  with_activation(a.activation, [&](auto act) { y = decltype(act)::composed(z, a.negative_slope); });
  return y;
}

using FlagList = std::vector<int64_t>;  // zeros and ones

// The biases as the schema has them, from one a layer, undefined where it has none.
Biases as_optional(TensorList biases) {
  Biases list;
  for (const Tensor& bias : biases) list.push_back(bias.defined() ? std::optional<Tensor>(bias) : std::nullopt);
  return list;
}

// What every derivative of one call shares. Not a tensor list, so that autograd records none of it as an input.
struct MlpArguments {
  std::vector<int64_t> activations;
  std::vector<double> slopes;
  FlagList has_bias;
  std::vector<int64_t> bias_versions;  // of the defined ones, when the value was computed

  bool undispatched = false;  // of the forward pass alone: whether it calls the CPU's kernels themselves

  size_t count() const { return activations.size(); }

  // One bias a layer, from a list of the defined ones.
  std::vector<Tensor> biases(TensorList defined) const {
    std::vector<Tensor> list(has_bias.size());
    size_t next = 0;
    for (size_t l = 0; l < has_bias.size(); ++l)
      if (has_bias[l]) list[l] = defined[next++];
    return list;
  }

  static int64_t version_of(const Tensor& tensor) { return tensor.is_inference() ? 0 : tensor._version(); }

  // What torch says of a saved tensor; the biases are not saved, since only derivatives of high order read them again.
  void check_unchanged(TensorList biases) const {
    for (size_t i = 0; i < biases.size(); ++i)
      TORCH_CHECK(version_of(biases[i]) == bias_versions[i],
                  "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                  "bias of fastgan's mlp of shape ",
                  biases[i].sizes(), ", before a derivative that computes the layers again");
  }

  // As one list of numbers, for each entry of a context costs memory of its own.
  void save(AutogradContext* ctx) const {
    std::vector<double> numbers;
    numbers.reserve(1 + 3 * count() + bias_versions.size());
    numbers.push_back(static_cast<double>(count()));
    numbers.insert(numbers.end(), activations.begin(), activations.end());
    numbers.insert(numbers.end(), slopes.begin(), slopes.end());
    numbers.insert(numbers.end(), has_bias.begin(), has_bias.end());
    numbers.insert(numbers.end(), bias_versions.begin(), bias_versions.end());
    ctx->saved_data["call"] = std::move(numbers);
  }

  explicit MlpArguments(AutogradContext* ctx) {
    const std::vector<double> numbers = ctx->saved_data["call"].toDoubleVector();
    const size_t count = static_cast<size_t>(numbers[0]);
    const auto at = numbers.begin() + 1;
    activations.assign(at, at + count);
    slopes.assign(at + count, at + 2 * count);
    has_bias.assign(at + 2 * count, at + 3 * count);
    bias_versions.assign(at + 3 * count, numbers.end());
  }

  // biases: one a layer, undefined where it has none.
  MlpArguments(at::IntArrayRef activations, at::ArrayRef<double> slopes, TensorList biases)
      : activations(activations.vec()), slopes(slopes.vec()) {
    for (const Tensor& bias : biases) {
      has_bias.push_back(bias.defined());
      if (bias.defined()) bias_versions.push_back(version_of(bias));
    }
  }
};

Tensor mlp_composed(Tensor x, TensorList weights, TensorList biases, const MlpArguments& call) {
  const Layers layers(call.activations, call.slopes);
  size_t next = 0;
  for (size_t l = 0; l < call.count(); ++l)
    x = activation_composed(
        at::linear(x, weights[l], call.has_bias[l] ? std::optional<Tensor>(biases[next++]) : std::nullopt), layers[l]);
  return x;
}

// Spreads a packed list over the slots whose flag is set; the others stay undefined.
variable_list unpack(TensorList packed, const FlagList& flags) {
  variable_list out(flags.size());
  size_t next = 0;
  for (size_t i = 0; i < flags.size(); ++i)
    if (flags[i]) out[i] = packed[next++];
  return out;
}

// Drops the slots of layers without bias: from one a layer to one a defined bias.
variable_list without_missing_biases(variable_list slots, const MlpArguments& call, size_t before_biases) {
  variable_list out(slots.begin(), slots.begin() + before_biases);
  for (size_t l = 0; l < call.count(); ++l)
    if (call.has_bias[l]) out.push_back(slots[before_biases + l]);
  return out;
}

// mlp_backward, recorded: its own derivative is mlp_double_backward.
// Inputs: grad_output, input, weights, defined biases (they act through the recomputable outputs). Outputs: the
// gradients asked for by `need`, packed.
class MlpBackwardFunction : public torch::autograd::Function<MlpBackwardFunction> {
 public:
  struct Constants {
    std::vector<Tensor> outputs;  // of mlp_forward
    FlagList need;
  };

  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& input, TensorList weights,
                               TensorList biases, const MlpArguments& call, const Constants& constants) {
    at::AutoDispatchBelowADInplaceOrView below;
    FASTGAN_OP("mlp_backward", MlpBackward);
    variable_list packed =
        op.call(grad_output, input, weights, constants.outputs, call.activations, call.slopes, constants.need, true);
    const size_t gradients = packed.size() - 2 * call.count();
    variable_list saved{grad_output, input};
    saved.insert(saved.end(), weights.begin(), weights.end());
    saved.insert(saved.end(), biases.begin(), biases.end());
    saved.insert(saved.end(), constants.outputs.begin(), constants.outputs.end());
    saved.insert(saved.end(), packed.begin() + gradients, packed.end());
    ctx->save_for_backward(saved);
    call.save(ctx);
    ctx->saved_data["need"] = constants.need;
    ctx->set_materialize_grads(false);
    packed.resize(gradients);
    return packed;
  }

  static variable_list backward(AutogradContext* ctx, variable_list cotangents) {
    const MlpArguments call(ctx);
    const size_t count = call.count();
    const auto saved = ctx->get_saved_variables();
    size_t edges = 2 + count;  // the variables, saved first: grad_output, input, weights, defined biases
    for (const int64_t has : call.has_bias) edges += has;
    const TensorList all(saved), variables = all.slice(0, edges), weights = all.slice(2, count);
    const TensorList outputs = all.slice(edges, all.size() - edges - 2 * count);
    const TensorList intermediates = all.slice(all.size() - 2 * count);

    // The flag of each gradient that has a cotangent, and those cotangents, packed.
    FlagList given;
    variable_list defined;
    size_t next = 0;
    for (const int64_t needed : ctx->saved_data["need"].toIntVector()) {
      const bool has = needed && cotangents[next].defined();
      if (has) defined.push_back(cotangents[next]);
      next += needed;
      given.push_back(has);
    }

    const bool batched = std::any_of(cotangents.begin(), cotangents.end(), is_batched);
    variable_list gradients;
    if (batched || at::GradMode::is_enabled()) {
      gradients = composed(ctx, variables, cotangents, call);
    } else {
      const SecondOrderPaths paths(Flags(given, count), Layers(call.activations, call.slopes));
      FlagList need;
      need.push_back(paths.grad_output && ctx->needs_input_grad(0));
      need.push_back(paths.input && ctx->needs_input_grad(1));
      for (size_t l = 0; l < count; ++l) need.push_back(paths.weights[l] && ctx->needs_input_grad(2 + l));
      size_t edge = 2 + count;
      for (size_t l = 0; l < count; ++l)
        need.push_back(call.has_bias[l] && ctx->needs_input_grad(edge++) && paths.biases[l]);
      const at::AutoDispatchBelowADInplaceOrView below;  // nothing to record
      FASTGAN_OP("mlp_double_backward", MlpDoubleBackward);
      const auto packed =
          op.call(defined, given, variables[1], weights, outputs, intermediates, call.activations, call.slopes, need);
      gradients = without_missing_biases(unpack(packed, need), call, 2 + count);
    }
    gradients.resize(edges + 2);  // none for call and constants
    return gradients;
  }

 private:
  // The gradients asked for, as torch makes them out of the definition in torch's ops.
  static variable_list composed(AutogradContext* ctx, TensorList variables, const variable_list& cotangents,
                                const MlpArguments& call) {
    const auto need = ctx->saved_data["need"].toIntVector();
    call.check_unchanged(variables.slice(2 + call.count()));
    return differentiate(variables, cotangents, [&](TensorList v) {
      const size_t count = call.count();
      const Tensor output = mlp_composed(v[1], v.slice(2, count), v.slice(2 + count), call);
      variable_list by;
      size_t bias = 2 + count;
      for (size_t slot = 0; slot < need.size(); ++slot) {
        const bool is_bias = slot > count;
        const size_t place = !is_bias ? 1 + slot : call.has_bias[slot - 1 - count] ? bias++ : 0;
        if (need[slot]) by.push_back(v[place]);
      }
      return torch::autograd::grad({output}, by, {v[0]}, true, true, true);
    });
  }
};

class MlpFunction : public torch::autograd::Function<MlpFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, TensorList weights, TensorList biases,
                        const MlpArguments& call) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto outputs = compute(input, weights, call.biases(biases), call);
    variable_list saved{input};
    saved.insert(saved.end(), weights.begin(), weights.end());
    saved.insert(saved.end(), outputs.begin(), outputs.end());
    // Where no derivative reads the last output, it is the caller's to change or to free, as in torch.
    Tensor& last_saved = saved[2 * call.count()];
    switch (saved_by(Layers(call.activations, call.slopes)[call.count() - 1])) {
      case Saved::nothing:
      case Saved::argument:
        last_saved = Tensor();
        break;
      case Saved::output:
        break;
      case Saved::output_copy:
        last_saved = last_saved.clone();  // `out += skip` after a block is usual
        break;
    }
    ctx->save_for_backward(saved);
    // First-order backward does not read the biases, so changing one in place before it is no error, as in torch.
    ctx->saved_data["biases"] = c10::List<Tensor>(biases);
    call.save(ctx);
    return outputs[call.count() - 1];
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const MlpArguments call(ctx);
    const size_t count = call.count();
    auto saved = ctx->get_saved_variables();
    // What was not saved is not read either; its place is taken by a tensor of its shape.
    if (!saved[2 * count].defined()) saved[2 * count] = grad_outputs[0];
    const Tensor& input = saved[0];
    const TensorList weights = TensorList(saved).slice(1, count), outputs = TensorList(saved).slice(1 + count);
    const std::vector<Tensor> biases = ctx->saved_data["biases"].toTensorVector();
    const size_t edges = 1 + count + biases.size();

    FlagList need;
    for (size_t i = 0; i <= count; ++i) need.push_back(ctx->needs_input_grad(i));
    size_t edge = 1 + count;
    for (const int64_t has : call.has_bias) need.push_back(has && ctx->needs_input_grad(edge++));

    if (is_batched(grad_outputs[0])) {
      call.check_unchanged(biases);
      variable_list variables(saved.begin(), saved.begin() + 1 + count);
      variables.insert(variables.end(), biases.begin(), biases.end());
      variable_list gradients = differentiate(variables, grad_outputs, [&](TensorList v) -> variable_list {
        return {mlp_composed(v[0], v.slice(1, count), v.slice(1 + count), call)};
      });
      gradients.resize(edges + 1);
      return gradients;
    }

    variable_list packed;
    if (at::GradMode::is_enabled()) {
      MlpBackwardFunction::Constants constants{{}, need};
      for (const Tensor& output : outputs) constants.outputs.push_back(output.detach());
      packed = MlpBackwardFunction::apply(grad_outputs[0], input, weights, TensorList(biases), call, constants);
    } else {
      packed = compute_backward(grad_outputs[0], input, weights, outputs, call, need);
    }
    variable_list gradients = without_missing_biases(unpack(packed, need), call, 1 + count);
    gradients.resize(edges + 1);  // none for call
    return gradients;
  }

 private:
  static std::vector<Tensor> compute(const Tensor& input, TensorList weights, const std::vector<Tensor>& biases,
                                     const MlpArguments& call) {
#ifndef FASTGAN_SIMT
    if (call.undispatched) return mlp_forward_on_cpu(input, weights, biases, Layers(call.activations, call.slopes));
#endif
    FASTGAN_OP("mlp_forward", MlpForward);
    return op.call(input, weights, as_optional(biases), call.activations, call.slopes);
  }

  static variable_list compute_backward(const Tensor& grad_output, const Tensor& input, TensorList weights,
                                        TensorList outputs, const MlpArguments& call, const FlagList& need) {
#ifndef FASTGAN_SIMT
    const bool undispatched = is_undisturbed() && is_ordinary(grad_output) && is_ordinary(input) &&
                              are_ordinary(weights) && are_ordinary(outputs);
    const at::AutoDispatchBelowADInplaceOrView below;  // nothing to record
    if (undispatched)
      return mlp_backward_on_cpu(grad_output, input, weights, outputs, call.activations, call.slopes, need);
#else
    const at::AutoDispatchBelowADInplaceOrView below;
#endif
    FASTGAN_OP("mlp_backward", MlpBackward);
    return op.call(grad_output, input, weights, outputs, call.activations, call.slopes, need, false);
  }
};

std::vector<Tensor> defined_ones(TensorList biases) {
  std::vector<Tensor> defined;
  for (const Tensor& bias : biases)
    if (bias.defined()) defined.push_back(bias);
  return defined;
}

// None of them passes over a tensor, for each looks for tangents.
bool is_recorded(const Tensor& input, TensorList weights, TensorList biases) {
  const bool by_input = any_requires_grad({input}), by_weights = any_requires_grad(weights);
  return any_requires_grad(biases) || by_input || by_weights;
}

Tensor mlp_autograd(const Tensor& input, TensorList weights, const Biases& given_biases, at::IntArrayRef activations,
                    at::ArrayRef<double> slopes) {
  std::vector<Tensor> biases;
  for (const std::optional<Tensor> bias : given_biases) biases.push_back(bias.value_or(Tensor()));
  if (is_recorded(input, weights, biases))
    return MlpFunction::apply(input, weights, TensorList(defined_ones(biases)),
                              MlpArguments(activations, slopes, biases));
  at::AutoDispatchBelowADInplaceOrView below;
  FASTGAN_OP("mlp", MlpSignature);
  return op.call(input, weights, given_biases, activations, slopes);
}

// Autocast runs layers in its lower precision, as it does torch's linear.
template <c10::DeviceType device>
Tensor mlp_autocast(const Tensor& input, TensorList weights, const Biases& biases, at::IntArrayRef activations,
                    at::ArrayRef<double> slopes) {
  const WithoutAutocast guard;
  const auto cast = [](const Tensor& t) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), t, device);
  };
  std::vector<Tensor> cast_weights;
  for (const Tensor& w : weights) cast_weights.push_back(cast(w));
  Biases cast_biases;
  for (const std::optional<Tensor> bias : biases)
    cast_biases.push_back(bias ? std::optional<Tensor>(cast(*bias)) : std::nullopt);
  FASTGAN_OP("mlp", MlpSignature);
  return op.call(cast(input), cast_weights, cast_biases, activations, slopes);
}

}  // namespace

Tensor call_mlp(const Tensor& input, TensorList weights, TensorList biases, at::IntArrayRef activations,
                at::ArrayRef<double> slopes) {
#ifndef FASTGAN_SIMT
  if (is_undisturbed() && is_ordinary(input) && are_ordinary(weights) && are_ordinary(biases)) {
    if (is_recorded(input, weights, biases)) {
      MlpArguments call(activations, slopes, biases);
      call.undispatched = true;
      return MlpFunction::apply(input, weights, TensorList(defined_ones(biases)), call);
    }
    const at::AutoDispatchBelowADInplaceOrView below;
    return mlp_on_cpu(input, weights, biases, Layers(activations, slopes));
  }
#endif
  FASTGAN_OP("mlp", MlpSignature);
  return op.call(input, weights, as_optional(biases), activations, slopes);
}

TORCH_LIBRARY_FRAGMENT(FASTGAN_LIBRARY, m) {
  m.def("mlp(Tensor input, Tensor[] weights, Tensor?[] biases, int[] activations, float[] slopes) -> Tensor");
  m.def("mlp_forward(Tensor input, Tensor[] weights, Tensor?[] biases, int[] activations, float[] slopes) -> Tensor[]");
  m.def(
      "mlp_backward(Tensor grad_output, Tensor input, Tensor[] weights, Tensor[] outputs, int[] activations, "
      "float[] slopes, int[] need, bool keep_intermediates) -> Tensor[]");
  m.def(
      "mlp_double_backward(Tensor[] cotangents, int[] given, Tensor input, Tensor[] weights, Tensor[] outputs, "
      "Tensor[] intermediates, int[] activations, float[] slopes, int[] need) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, Autograd, m) {
  m.impl("mlp", mlp_autograd);
  m.impl("mlp_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("mlp_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("mlp_double_backward", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, AutocastCPU, m) { m.impl("mlp", mlp_autocast<c10::kCPU>); }
TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, AutocastCUDA, m) { m.impl("mlp", mlp_autocast<c10::kCUDA>); }

}  // namespace fastgan::bindings
