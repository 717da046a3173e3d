#include <cmath>

#include "../../csrc/cuda/adam.h"
#include "../../csrc/cuda/step_parts.h"
#include "check.h"

namespace checks {

namespace {

// By the loss of one logit, which prepares them by the way: alone, or with the layer before it.
template <class T>
void prepare(const Context& context, bool with_layer, const fastgan::cuda::AdamPreparation<T>& adam) {
  const Buffer<T> weight = random<T>(4, -1, 1);
  Buffer<T> x(4), logit(1), gradient(1);
  for (int64_t i = 0; i < 4; ++i) x.data()[i] = T(2) * weight.data()[i];
  double wanted = 0;
  for (int64_t i = 0; i < 4; ++i) wanted += x[i] * weight[i];
  *logit.data() = T(with_layer ? 0 : wanted);
  T result = 0;
  fastgan::cuda::StepHead<T> head{};
  fastgan::cuda::StepLoss<T>& loss = head.loss;
  loss.parts.add(1);
  loss.judged = 1;
  loss.logits = loss.saved = logit.data();
  loss.activation = {fastgan::Activation::identity, 0};
  loss.part[0] = fastgan::likely;
  loss.grad_z = gradient.data();
  loss.loss = &result;
  loss.adam = adam;
  head.in = 4, head.x = x.data(), head.weight = weight.data(), head.y = logit.data();
  if (with_layer)
    fastgan::cuda::step_head(context, head);
  else
    fastgan::cuda::step_loss(context, loss);
  expect_close(result, std::log1p(std::exp(-wanted)), 1, tolerance<T>, "a loss beside which updates are prepared");
}

// Parameters of these sizes, updated twice by gradients in memory, as the whole step does where a library makes them.
template <class T>
void check(const std::vector<int64_t>& sizes, fastgan::AdamOptions o, const float* lr, int offset) {
  const Context context;
  const std::string about = std::string(name_of<T>()) + " adam of " + std::to_string(sizes.size()) + " tensors";
  const int count = int(sizes.size());
  std::vector<Buffer<T>> param, grad, first, second, most, average;
  for (const int64_t n : sizes) {
    param.push_back(random<T>(n, -1, 1, offset));
    grad.push_back(random<T>(n, -1, 1));
    first.push_back(random<T>(n, -1, 1));
    second.push_back(random<T>(n, 0.1, 1));
    most.push_back(random<T>(n, 0.1, 1));
    average.push_back(random<T>(n, -1, 1));
  }
  // Of two in turn the counts are in float and in double; those of two others are set to 3 beforehand.
  std::vector<float> counts(count, 3.0f);
  std::vector<double> wide_counts(count, 3.0), set(count, -1.0);
  std::vector<fastgan::cuda::AdamDue> due, on_device(count);
  for (int k = 0; k < count; ++k) {
    due.push_back({o, 0.01, lr, k % 2 == 0 ? &counts[k] : nullptr, k % 2 == 0 ? nullptr : &wide_counts[k]});
    if (k % 4 >= 2) counts[k] = 7, wide_counts[k] = 7, set[k] = 3;
  }
  fastgan::cuda::set_adam(context, due.data(), set.data(), count, on_device.data());
  std::vector<fastgan::AdamStep<T>> steps(count);
  const double rate = lr != nullptr ? *lr : 0.01, average_rate = 0.25;
  for (int number = 4; number <= 5; ++number) {
    const auto param_before = param, first_before = first, second_before = second, most_before = most,
               average_before = average;
    prepare<T>(context, /*with_layer=*/number == 5, {on_device.data(), count, steps.data()});
    for (int k = 0; k < count; ++k) {
      const fastgan::AdamParameter<T> parameter{param[k].data(),
                                                first[k].data(),
                                                second[k].data(),
                                                o.amsgrad ? most[k].data() : nullptr,
                                                k % 2 == 0 ? average[k].data() : nullptr,
                                                &steps[k]};
      fastgan::cuda::update_parameter(context, fastgan::cuda::Update<T>{parameter, grad[k].data(), sizes[k]},
                                      T(average_rate));
      expect((k % 2 == 0 ? counts[k] : wide_counts[k]) == number, about + " counts each step once");
      for (int64_t i = 0; i < sizes[k]; ++i) {
        double p = param_before[k][i], g = o.maximize ? -grad[k][i] : grad[k][i];
        if (o.decoupled_weight_decay)
          p -= rate * o.weight_decay * p;
        else
          g += o.weight_decay * p;
        const double m = o.beta1 * first_before[k][i] + (1 - o.beta1) * g;
        const double v = o.beta2 * second_before[k][i] + (1 - o.beta2) * g * g;
        const double largest = o.amsgrad ? std::max(most_before[k][i], v) : v;
        const double root = std::sqrt(largest) / std::sqrt(1 - std::pow(o.beta2, number)) + o.eps;
        p -= rate / (1 - std::pow(o.beta1, number)) * m / root;
        const double mean =
            k % 2 == 0 ? average_before[k][i] + average_rate * (p - average_before[k][i]) : average_before[k][i];
        expect_close(first[k][i], m, 1, tolerance<T>, about + ", first moment");
        expect_close(second[k][i], v, 1, tolerance<T>, about + ", second moment");
        expect_close(param[k][i], p, 1, tolerance<T>, about);
        expect_close(most[k][i], o.amsgrad ? largest : most_before[k][i], 1, tolerance<T>,
                     about + ", largest second moment");
        expect_close(average[k][i], mean, 1, tolerance<T>, about + ", moving average");
      }
    }
  }
}

template <class T>
void check_type() {
  const float rate = 0.02f;
  check<T>({1, 7, 9001}, {0.5, 0.999, 0.1, 1e-8, true, true, false}, &rate, 1);
  if (few) return;
  check<T>({33, 8192}, {0.9, 0.99, 0.1, 1e-8, false, false, true}, nullptr, 0);
  check<T>(std::vector<int64_t>(300, 3), {0.9, 0.99, 0, 1e-8, false, false, false}, nullptr, 0);
}

}  // namespace

void check_adam() {
  const Context context;
  float count = 7;
  fastgan::cuda::AdamDue on_device{};
  const fastgan::cuda::AdamDue due{{}, 0.01, nullptr, &count, nullptr};
  for (const double done : {-1.0, 0.0}) {
    fastgan::cuda::set_adam(context, &due, &done, 1, &on_device);
    expect(count == (done < 0 ? 7 : 0), "a count of updates is set, to zero too, or left");
  }
  check_type<float>();
  check_type<double>();
}

}  // namespace checks
