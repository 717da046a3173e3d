// The kernels that a penalty of D's derivatives asks for, each by itself, at sizes of more than a tile.
#include <array>
#include <cmath>

#include "../../csrc/cuda/linear.h"
#include "../../csrc/cuda/step_parts.h"
#include "../../csrc/cuda/step_penalty.h"
#include "check_training.h"

namespace checks {

namespace {

using fastgan::Activation;
using fastgan::ActivationArguments;
using fastgan::cuda::Rounding;

template <class T>
double tolerance_of(Rounding rounding) {
  return rounding == Rounding::bf16 ? 1e-2 : rounding == Rounding::tf32 ? 2e-3 : 4 * tolerance<T>;
}

// What becomes of y, of the gradient by y, or of what is added to.
enum class Beside { nothing, mixed, curved, added };

template <class T>
void check_tangent(int64_t batch, int64_t in, int64_t out, ActivationArguments activation, Beside beside,
                   Rounding rounding, int processors, int offset) {
  const Context context(processors);
  const auto steps = random<T>(batch * in, -1, 1, offset), weight = random<T>(out * in, -1, 1, offset);
  const auto saved = random<T>(batch * out, -1, 1, offset), row_weight = random<T>(batch);
  const auto before = random<T>(batch * out, -2, 2, offset);
  auto after = before, t = before, after_apart = before;
  fastgan::cuda::Tangent<T> to{};
  to.batch = batch, to.out = out, to.activation = activation, to.saved = saved.data(), to.t = t.data();
  to.row_weight = row_weight.data();
  T* fastgan::cuda::Tangent<T>::* const places[] = {nullptr, &fastgan::cuda::Tangent<T>::mixed,
                                                    &fastgan::cuda::Tangent<T>::curved,
                                                    &fastgan::cuda::Tangent<T>::added};
  const auto place = places[int(beside)];
  if (place != nullptr) to.*place = after.data();
  fastgan::cuda::linear_tangent(context, fastgan::cuda::LinearTangent<T>{in, steps.data(), weight.data(), to},
                                rounding);
  const std::string about = std::string(name_of<T>()) + " tangent of " + std::to_string(batch) + "x" +
                            std::to_string(in) + "x" + std::to_string(out) + " " +
                            fastgan::activation_names[int(activation.activation)];
  Buffer<T> u(batch * out);
  const auto check = [&](const Buffer<T>& result, double relative, const std::string& what) {
    for (int64_t r = 0; r < batch; ++r)
      for (int64_t o = 0; o < out; ++o) {
        const int64_t i = r * out + o;
        double sum = 0;
        for (int64_t k = 0; k < in; ++k) sum += steps[r * in + k] * weight[o * in + k];
        u.data()[i] = T(sum);
        const double first = derivative(activation, saved[i], 1) * sum;
        const double second = derivative(activation, saved[i], 2) * sum;
        expect_close(t[i], first, double(in), relative, what);
        const double exact = beside == Beside::nothing  ? before[i]
                             : beside == Beside::mixed  ? row_weight[r] * before[i] + first
                             : beside == Beside::curved ? before[i] * second
                                                        : before[i] + second;
        expect_close(result[i], exact, 2 * double(in), relative, what + ", what goes beside it");
      }
  };
  check(after, tolerance_of<T>(rounding), about);
  if (place != nullptr) to.*place = after_apart.data();
  std::copy_n(u.data(), u.size(), t.data());
  fastgan::cuda::act_tangent<T>(context, to, t.data());
  check(after_apart, 8 * tolerance<T>, about + " of a library's product");
}

// The input gradient with more in some rows.
template <class T>
void check_added(int64_t batch, int64_t in, int64_t out, ActivationArguments activation, Rounding rounding,
                 int processors, int offset) {
  const Context context(processors);
  const auto grad_z = random<T>(batch * out, -1, 1, offset), weight = random<T>(out * in, -1, 1, offset);
  const auto saved = random<T>(batch * in, -1, 1, offset);
  const int64_t begin = batch / 3, rows = (batch + 1) / 2;
  const auto added = random<T>(rows * in, -1, 1, offset);
  Buffer<T> grad(batch * in, offset);
  fastgan::cuda::LinearAddedGradient<T> a{};
  a.batch = batch, a.in = in, a.out = out, a.grad_z = grad_z.data(), a.weight = weight.data();
  a.saved = saved.data(), a.activation = activation, a.grad_z_before = grad.data();
  a.added = added.data(), a.added_begin = begin, a.added_rows = rows;
  fastgan::cuda::linear_added_gradient(context, a, rounding);
  for (int64_t r = 0; r < batch; ++r)
    for (int64_t i = 0; i < in; ++i) {
      double sum = 0;
      for (int64_t o = 0; o < out; ++o) sum += grad_z[r * out + o] * weight[o * in + i];
      sum *= derivative(activation, saved[r * in + i], 1);
      if (r >= begin && r < begin + rows) sum += added[(r - begin) * in + i];
      expect_close(grad[r * in + i], sum, double(out), tolerance_of<T>(rounding), "an input gradient with more in it");
    }
}

// A weight gradient that is stored, with rows that count differently for the bias.
template <class T>
void check_weighted(int64_t batch, int64_t in, int64_t out, bool cancels, Rounding rounding, int processors) {
  const Context context(processors);
  const auto grad_z = random<T>(batch * out, -1, 1), x = random<T>(batch * in, -1, 1), row_weight = random<T>(batch);
  Parameter<T> weight(out * in), bias(out);
  const auto value = weight.value, bias_value = bias.value;
  Buffer<T> grad_weight(out * in), grad_bias(out);
  fastgan::cuda::LinearUpdate<T> a{};
  a.batch = batch, a.in = in, a.out = out, a.grad_z = grad_z.data(), a.x = x.data();
  a.weight = weight.adam_parameter(nullptr), a.bias = bias.adam_parameter(nullptr);
  a.bias_cancels = cancels, a.row_weight = row_weight.data();
  a.grad_weight = grad_weight.data(), a.grad_bias = grad_bias.data();
  fastgan::cuda::linear_update(context, a, rounding);
  for (int64_t o = 0; o < out; ++o) {
    double sum = 0;
    for (int64_t r = 0; r < batch; ++r) sum += cancels ? 0 : row_weight[r] * grad_z[r * out + o];
    expect_close(grad_bias[o], sum, double(batch), 2 * tolerance<T>, "a bias gradient of rows that count differently");
    expect(bias.value[o] == bias_value[o], "a gradient that is stored updates no bias");
    for (int64_t i = 0; i < in; ++i) {
      sum = 0;
      for (int64_t r = 0; r < batch; ++r) sum += grad_z[r * out + o] * x[r * in + i];
      expect_close(grad_weight[o * in + i], sum, double(batch), tolerance_of<T>(rounding), "a weight gradient stored");
      expect(weight.value[o * in + i] == value[o * in + i], "a gradient that is stored updates no weight");
    }
  }
}

// Where the tangent pass starts, for rows of `pac` samples; a row whose gradient is zero, and one that does not count.
template <class T>
void check_start(int64_t pac, int64_t data, int64_t classes, bool of_probability, double center) {
  const Context context;
  const int64_t sample = data + classes, width = pac * sample;
  fastgan::cuda::PenaltyStart<T> a{};
  for (const int64_t rows : {5, 3, 7}) a.parts.add(rows);
  a.weight[0] = 3, a.weight[2] = 2, a.penalties.gp_center = center;
  const int64_t rows = a.parts.rows();
  auto gradient = random<T>(rows * width, -1, 1);
  for (int64_t i = 0; i < width; ++i) gradient.data()[10 * width + i] = 0, gradient.data()[6 * width + i] = T(NAN);
  const auto before = gradient, logits = random<T>(rows), saved = random<T>(rows, -1, 1), x = random<T>(rows * width);
  const auto weight_before = random<T>(rows), grad_before = random<T>(rows);
  auto weight = weight_before, grad_z = grad_before, mixed = x;
  Buffer<T> penalty(1);
  unsigned odd_label = 0;
  a.width = width, a.sample = sample, a.data = data, a.gradient = gradient.data();
  a.penalties.of_probability = of_probability, a.logits = logits.data();
  a.row_weight = weight.data(), a.grad_z = grad_z.data(), a.saved = saved.data();
  a.activation = {Activation::tanh, 0}, a.mixed = mixed.data();
  a.penalty = penalty.data(), a.odd_label = &odd_label;
  fastgan::cuda::penalty_start(context, a);
  double total = 0;
  const double relative = 8 * tolerance<T>;
  for (int64_t r = 0; r < rows; ++r) {
    const int part = a.parts.of_row(r);
    double squares = 0, s = 1 / (1 + std::exp(-logits[r])), p1 = 1, p2 = 0;
    if (of_probability) p1 = s * (1 - s), p2 = p1 * (1 - 2 * s);
    for (int64_t i = 0; i < width; ++i)
      if (i % sample < data) squares += before[r * width + i] * before[r * width + i];
    const double each = a.weight[part] / double(a.parts.rows_of(part)), length = std::sqrt(squares);
    double scale = 0, by_logit = 0;
    if (part == 0) {
      total += each / 2 * p1 * p1 * squares;
      scale = each * p1 * p1, by_logit = each * p1 * p2 * squares;
    } else if (part == 2) {
      total += each * std::pow(p1 * length - center, 2);
      if (squares > 0) scale = 2 * each * (p1 * length - center) * p1 / length;
      by_logit = 2 * each * (p1 * length - center) * p2 * length;
    }
    expect_close(weight[r], weight_before[r] + by_logit, squares, relative, "how often a row counts");
    expect_close(grad_z[r], grad_before[r] + by_logit * (1 - saved[r] * saved[r]), squares, relative,
                 "the gradient by z of the last layer");
    for (int64_t i = 0; i < width; ++i) {
      const bool counts = part != 1 && i % sample < data;
      const double t = counts ? scale * before[r * width + i] : 0;
      expect_close(gradient[r * width + i], t, 1, relative, "where a tangent starts");
      expect_close(mixed[r * width + i], (weight_before[r] + by_logit) * x[r * width + i] + t, squares, relative,
                   "what a weight gradient is of");
    }
  }
  expect_close(penalty[0], total, total, relative, "a penalty");
  odd_label = 1, a.is_last_of_step = true;
  std::copy_n(before.data(), before.size(), gradient.data());
  fastgan::cuda::penalty_start(context, a);
  expect(std::isnan(penalty[0]) && odd_label == 0, "the penalty of a step with odd labels is NaN");
}

// More gradients than one launch takes, whose norm is over what is allowed, under it, or none.
template <class T>
void check_clip(double most, double spoilt) {
  const Context context;
  constexpr int count = 100;
  fastgan::AdamStep<T> step = fastgan::adam_step<T>(adam_options, learning_rate, updates_done + 1);
  std::vector<std::unique_ptr<Parameter<T>>> parameters;
  std::vector<Buffer<T>> gradients;
  std::vector<PlainParameter> exact;
  double squares = 0;
  for (int k = 0; k < count; ++k) {
    const int64_t n = k % 7 == 3 ? 700 : k + 1;
    parameters.push_back(std::make_unique<Parameter<T>>(n));
    gradients.push_back(random<T>(n, -1, 1));
    if (k == 77) gradients.back().data()[0] = T(spoilt);
    exact.push_back(plain_of(*parameters.back()));
    exact.back().is_updated = true;
    for (int64_t i = 0; i < n; ++i) squares += gradients[k][i] * gradients[k][i];
  }
  std::vector<fastgan::cuda::Update<T>> updates;
  for (int k = 0; k < count; ++k)
    updates.push_back({parameters[k]->adam_parameter(&step), gradients[k].data(), gradients[k].size()});
  fastgan::cuda::update_clipped<T>(context, updates.data(), count, most, T(average_rate));
  const double ratio = most / (std::sqrt(squares) + 1e-6), scale = ratio > 1 ? 1 : ratio;
  for (int k = 0; k < count; ++k) {
    exact[k].grad.clear();
    for (int64_t i = 0; i < gradients[k].size(); ++i) exact[k].grad.push_back(scale * gradients[k][i]);
    exact[k].update(average_rate);
    for (int64_t i = 0; i < gradients[k].size(); ++i) {
      if (std::isnan(exact[k].exp_avg[i])) {
        expect(std::isnan(parameters[k]->exp_avg[i]), "a clipped gradient that is NaN stays NaN");
        continue;
      }
      expect_close(parameters[k]->exp_avg[i], exact[k].exp_avg[i], 1, 8 * tolerance<T>, "clipped: first moments");
      expect_close(parameters[k]->value[i], exact[k].value[i], 1, 8 * tolerance<T>, "clipped: parameters");
      expect_close(parameters[k]->average[i], exact[k].average[i], 1, 8 * tolerance<T>, "clipped: averages");
    }
  }
}

template <class T>
void check_type() {
  int activation = 0;
  for (const auto& [batch, in, out] :
       {std::array<int64_t, 3>{1, 1, 1}, {7, 33, 5}, {33, 7, 68}, {70, 129, 3}, {5, 264, 66}})
    for (const Rounding rounding : {Rounding::none, Rounding::tf32, Rounding::bf16}) {
      if ((rounding != Rounding::none && !std::is_same_v<T, float>) || (few && in < 264)) continue;
      for (const int processors : {4, 64}) {  // with many k is shared out
        const ActivationArguments act{Activation(activation++ % fastgan::activation_count), 0.2};
        const int offset = activation % 2;  // not aligned
        for (const Beside beside : {Beside::nothing, Beside::mixed, Beside::curved, Beside::added})
          if (!few || beside == Beside::mixed)
            check_tangent<T>(batch, in, out, act, beside, rounding, processors, offset);
        check_added<T>(batch, out, in, act, rounding, processors, offset);
        check_weighted<T>(in, batch, out, activation % 5 == 0, rounding, processors);
      }
    }
  if (!few)
    for (int a = 0; a < fastgan::activation_count; ++a)
      for (const Beside beside : {Beside::mixed, Beside::curved, Beside::added})
        check_tangent<T>(9, 3, 8, {Activation(a), 0.2}, beside, Rounding::none, 4, 0);
  check_start<T>(1, 40, 0, false, 1);
  check_start<T>(1, 1500, 0, true, 0);  // a block a row
  if (few) return;
  check_start<T>(1, 33, 5, true, 1);
  check_start<T>(3, 7, 2, true, 0.5);
  check_start<T>(2, 600, 4, false, 1);
  check_clip<T>(0.5, 1);
  check_clip<T>(1e6, 1);
  check_clip<T>(0.5, NAN);
  check_clip<T>(0.5, INFINITY);
}

}  // namespace

void check_penalties() {
  check_type<float>();
  if (!few) check_type<double>();
}

}  // namespace checks
